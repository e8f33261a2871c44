"""The forecast's own account: how many futures reached an end, why they stopped, and what the unfinished ones could change."""

from __future__ import annotations

from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.report.markup import Markup, Section, count, figure, is_number, join, number, paragraph, percent, readable, table, tag
from cehrxgpt.report.methods import method
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.sections.data import log_histogram
from cehrxgpt.report.suppress import Teller
from cehrxgpt.report.svg import grid

_STOPPED = {
    "horizon": "reached the horizon",
    "death": "death",
    "end": "the history’s end",
    "outcome": "the outcome came first",
    "budget": "out of tokens (unfinished)",
}


def section(run: RunFolder) -> Section:
    """Completion, bounds and stop reasons.

    Raises:
        MissingInputs: no forecast.
    """
    rows = [row for task in run.stems("forecast") if task != "samples" for row in _task_rows(run, task)]
    samples = run.parquet("forecast/samples.parquet", ("subject_id", "prediction_time", "sample_id", "tokens", "stop_reason"))
    if not rows and (samples is None or samples.is_empty()):
        raise MissingInputs("forecast/<task>.parquet, forecast/samples.parquet")
    parts: list[Any] = [
        paragraph(
            "A future that runs out of tokens before the horizon is unfinished. It stays in the denominator; the bounds are the mean risk if every "
            "unfinished future were free of the outcome, and if every one had it. Narrow bounds mean the token budget did not matter."
        )
    ]
    if rows:
        heads = ["Task", "Method", "Rows", "Futures", "Completed", "Mean risk", "Bounds", "Std. error", "Observed"]
        parts.append(table(heads, rows, caption="Forecasts: means over rows; futures are per row", left=2))
    if samples is not None and not samples.is_empty():
        parts.append(_samples(samples, run.tell))
    return Section("forecast", "Forecast completion", join(parts))


def _task_rows(run: RunFolder, task: str) -> list[list[Any]]:
    frame = run.parquet(f"forecast/{task}.parquet", ("subject_id", "prediction_time", "predicted_boolean_probability", "method"))
    if frame is None:
        return []
    predictions = run.predictions(task)
    own = run.parquet(f"forecast/{task}.parquet")
    found = []
    for name in sorted(set(frame["method"].drop_nulls().to_list())):
        rows = predictions.filter(pl.col("method") == name)
        samples = own.filter(pl.col("method") == name)["num_samples"].median() if own is not None and "num_samples" in own.columns else None
        refused = rows["probability"].null_count()
        completion, risk, lower, upper, error = (rows[c].mean() for c in ("completion", "probability", "lower_bound", "upper_bound", "std_error"))
        known, tell = rows["boolean_value"].drop_nulls(), run.tell
        shown = join([tell(rows.height), tag("span", f"{tell(refused)} refused", class_="ci")]) if refused else tell(rows.height)
        bounds = f"{percent(lower)} to {percent(upper)}" if is_number(lower) and is_number(upper) else "–"
        cells = [percent(completion), percent(risk), bounds, percent(error), tell.share(int(known.sum()), len(known)) or "–"]
        found.append([readable(task), method(name).label, shown, count(samples), *cells])
    return found


def _samples(samples: pl.DataFrame, tell: Teller) -> Markup:
    reasons = dict(samples.group_by("stop_reason").len().iter_rows())
    order = [*(reason for reason in s.STOP_REASONS if reason in reasons), *sorted(set(reasons) - set(s.STOP_REASONS), key=str)]
    rows = [[_STOPPED.get(reason, str(reason)), tell(reasons[reason]), tell.share(reasons[reason], samples.height) or "–"] for reason in order]
    tokens = samples["tokens"].to_numpy()
    caption = f"Tokens generated per future: mean {number(float(tokens.mean()), 1)}; {count(int(tokens.sum()))} in all."
    chart = log_histogram(tokens.clip(1), "tokens", tell=Teller(exact=True), per="future")
    prompts = samples.select("subject_id", "prediction_time").unique().height
    title = f"Why {tell(samples.height)} futures of {tell(prompts)} histories ended"
    return grid([figure(chart.svg(caption), caption), table(["Ended by", "Futures", "Share"], rows, caption=title)])
