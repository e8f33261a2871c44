"""How well outcomes are foretold: a glance over all tasks, then per task metrics, ROC, calibration, risk against the truth, few-shot."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt.report.markup import (
    Markup,
    Section,
    details,
    figure,
    is_number,
    join,
    legend,
    note,
    number,
    paragraph,
    percent,
    readable,
    table,
    tag,
)
from cehrxgpt.report.methods import TELLING, calibration, canonical, method, ordered, outcome_and_risk, roc, telling
from cehrxgpt.report.run import KEY, TRUE_RISK, RunFolder
from cehrxgpt.report.sections import MissingInputs
from cehrxgpt.report.suppress import SMALL_CELL, Teller
from cehrxgpt.report.svg import Axis, Chart, grid, responsive

_METRICS = {
    "auroc": "AUROC", "auprc": "AUPRC", "brier": "Brier", "calibration_slope": "Slope", "calibration_intercept": "Intercept",
    "correlation_with_truth": "Corr. with truth", "rmse_to_truth": "RMSE to truth",
}  # fmt: skip
_COUNTS = ("rows", "censored", "refused", "unshared")
_ALIASES = {
    "roc_auc": "auroc", "average_precision": "auprc", "brier_score": "brier", "slope": "calibration_slope", "intercept": "calibration_intercept",
    "truth_correlation": "correlation_with_truth", "true_risk_correlation": "correlation_with_truth", "correlation": "correlation_with_truth",
    "true_risk_rmse": "rmse_to_truth", "truth_rmse": "rmse_to_truth", "rmse": "rmse_to_truth",
}  # fmt: skip


def identifier(*parts: str) -> str:
    """An HTML id."""
    return "-".join(re.sub(r"[^a-z0-9]+", "-", part.lower()).strip("-") for part in parts)


def metric_rows(run: RunFolder, task: str | None = None) -> list[dict[str, Any]]:
    """Metric rows with one spelling per metric; of one task if named."""
    if run.metrics is None:
        return []
    return _spelled(run.metrics if task is None else run.metrics.filter(pl.col("task") == task))


def compared(rows: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    """(task, method) -> rows that were compared; where the table does not say, subjects: there are at least as many rows."""
    found = {(row["task"], row["method"]): row["subjects"] or 0 for row in rows}
    return found | {(row["task"], row["method"]): int(row["value"]) for row in rows if row["metric"] == "rows" and is_number(row["value"])}


def _told(rows: list[dict[str, Any]]) -> set[tuple[str, str]]:
    """(task, method) with outcomes enough for metrics to be shown."""
    sizes = compared(rows)
    positives = {(row["task"], row["method"]): row["positives"] for row in rows}
    return {key for key, n in sizes.items() if telling(positives[key], n)}


def telling_rows(run: RunFolder) -> list[dict[str, Any]]:
    """Metric rows that rest on outcomes enough (`methods.TELLING` with and without)."""
    rows = metric_rows(run)
    told = _told(rows)
    return [row for row in rows if (row["task"], row["method"]) in told]


def _spelled(rows: pl.DataFrame) -> list[dict[str, Any]]:
    found = []
    for row in rows.to_dicts():
        name = str(row["metric"]).lower().replace(" ", "_")
        found.append({**row, "metric": _ALIASES.get(name, name)})
    return found


def interval(row: dict[str, Any] | None, digits: int = 3) -> Any:
    """`0.781` with its 95% interval below, as a table cell."""
    if row is None or not is_number(row["value"]):
        return None
    value = _fixed(row["value"], digits)
    if not (is_number(row["lower"]) and is_number(row["upper"])):
        return value
    return join([value, tag("span", f"{_fixed(row['lower'], digits)} to {_fixed(row['upper'], digits)}", class_="ci")])


def _fixed(value: float, digits: int) -> str:
    """Always as many decimals: metrics stand below one another."""
    return f"{value:.{digits}f}".replace("-", "−") if abs(value) < 1000 else number(value)


def glance(run: RunFolder) -> Markup | None:
    """AUROC of every method and task with its interval, as one chart; None without metrics."""
    every = metric_rows(run)
    told = _told(every)
    every = [row for row in every if row["metric"] == "auroc" and canonical(row["method"]) != "constant"]
    rows = [row for row in every if (row["task"], row["method"]) in told and is_number(row["value"])]
    withheld = _withheld(run, [row for row in every if row["task"] not in {one["task"] for one in rows}])
    if not rows:
        return withheld
    by_task: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    names = ordered([row["method"] for row in rows])
    spoken = "; ".join(f"{readable(row['task'])}, {method(row['method']).label}: {number(row['value'])}" for row in rows)
    chart = responsive(lambda width: _forest(width, by_task, run.tell), f"AUROC with 95% intervals. {spoken}")
    explained = (
        "AUROC: how often a subject with the outcome is ranked above one without (0.5 is chance). Bars are 95% intervals, resampling subjects."
    )
    return join(
        [
            figure(chart, explained),
            withheld or "",
            details(
                "What the methods are", table(["Method", "What it is"], [[method(n).label, method(n).what] for n in names], caption="Methods", left=2)
            ),
        ]
    )


def _withheld(run: RunFolder, rows: list[dict[str, Any]]) -> Markup | None:
    """Tasks of too few outcomes, by name."""
    most: dict[str, int] = {}
    for row in rows:
        most[row["task"]] = max(most.get(row["task"], 0), row["positives"] or 0)
    if not most:
        return None
    named = "; ".join(f"{readable(task)} ({run.tell(n)} with the outcome)" for task, n in most.items())
    return note(f"Not shown, for want of rows to judge by ({TELLING} with the outcome and {TELLING} without it at least): {named}.")


def _forest(width: int, by_task: dict[str, list[dict[str, Any]]], tell: Teller) -> Chart:
    row_height, head_height = 20, 30
    height = 40 + sum(head_height + row_height * len(rows) for rows in by_task.values())
    ends = [end for rows in by_task.values() for row in rows for end in (row["lower"], row["value"]) if is_number(end)]
    low = min(0.5, max(0.0, np.floor(min(ends) * 10) / 10))
    left, right = (170, 60) if width > 500 else (128, 46)
    chart = Chart(
        width,
        height,
        Axis.linear(low, 1.0, target=5),
        Axis.linear(0, 1),
        margin=(4, right, 36, left),
        x_title="AUROC",
        show_y=False,
    )
    if low <= 0.5:
        chart.vertical(0.5, class_="rule")
    y = 4.0
    for task, rows in by_task.items():
        positives = max((row["positives"] for row in rows if row["positives"] is not None), default=None)
        chart.label(0, y + 20, readable(task), class_="strong")
        if width > 500:
            chart.label(width, y + 20, f"{tell(positives)} positives", anchor="end")
        y += head_height
        for name in ordered([row["method"] for row in rows]):
            row = next(row for row in rows if row["method"] == name)
            style, middle = method(name), y + row_height / 2
            chart.label(0, middle + 4, style.label, class_="plain")
            if is_number(row["lower"]) and is_number(row["upper"]):
                chart.raw(f"M{float(chart.at_x(row['lower'])):.1f} {middle:.1f}H{float(chart.at_x(row['upper'])):.1f}", f"line {style.colour}")
            shape = "hollow" if style.dashed else "fill"
            spot = float(chart.at_x(row["value"]))
            chart.box(spot - 4, middle - 4, 8, 8, f"{shape} {style.colour}", title=f"{style.label}: {number(row['value'])}", radius=4)
            chart.label(width, middle + 4, number(row["value"]), anchor="end", class_="plain")
            y += row_height
    return chart


def section(run: RunFolder) -> Section:
    """A sub-chapter per task.

    Raises:
        MissingInputs: no predictions and no metrics of any task.
    """
    parts, children = [], []
    for task in run.tasks:
        content = _task(run, task)
        if content is not None:
            children.append((identifier("task", task), readable(task)))
            parts.append(join([tag("h3", readable(task), id=identifier("task", task)), content]))
    if not parts:
        raise MissingInputs("forecast/<task>.parquet, probe/<task>/ or evaluation/metrics.parquet")
    intro = paragraph(
        "All methods are judged on held-out subjects. Zero-shot risks come from simulated futures and saw no labels; "
        "the others learned from the training split’s labels."
    )
    return Section("tasks", "Predictions by task", join([intro, *parts]), tuple(children), {"tasks": len(parts)})


def _task(run: RunFolder, task: str) -> Markup | None:
    metrics = metric_rows(run, task)
    predictions = run.predictions(task)
    few_shot = run.parquet(f"probe/{task}/few_shot.parquet")
    if not metrics and predictions.is_empty() and few_shot is None:
        return None
    parts: list[Any] = []
    if metrics:
        parts.append(_metric_table(task, metrics, run.tell))
    if run.has("evaluation/metrics.parquet") and (whole := _whole_split(run, task)):
        parts.append(whole)
    parts.append(_outcome_line(predictions, metrics, run.tell))
    # The prevalence for everyone is a reference of the table; it has no curve.
    names = [name for name in ordered(predictions["method"].drop_nulls().to_list()) if canonical(name) != "constant"]
    charts = [
        chart
        for chart in (
            _roc(predictions, names),
            _calibration(predictions, names, run.tell),
            _truth(predictions, names),
            _few_shot(few_shot) if _whole_is_telling(run, task) else None,
        )
        if chart is not None
    ]
    if charts:
        names = [name for name in names if _drawn(predictions, name)]
        styles = [(method(name).label, f"{method(name).colour}{' dash' if method(name).dashed else ''}") for name in names]
        parts += [legend(styles) if styles else "", grid(charts)]
    return join(parts)


def _drawn(predictions: pl.DataFrame, name: str) -> bool:
    """Whether a method has outcomes enough for a curve."""
    outcome, _ = outcome_and_risk(predictions, name)
    return telling(int(outcome.sum()), len(outcome))


def _metric_table(task: str, rows: list[dict[str, Any]], tell: Teller) -> Markup:
    told = {name for _, name in _told(rows)}
    if not told:
        return note(f"Too few outcomes for a metric: with under {TELLING} rows that have the outcome, or have not, it is hardly better than a guess.")
    cells = {(row["method"], row["metric"]): row for row in rows}
    columns = [name for name in _METRICS if any(metric == name for _, metric in cells)]
    counted = compared(rows)
    sizes = {row["method"]: (counted[row["task"], row["method"]], row["subjects"] or 0, row["positives"] or 0) for row in rows}
    same = len(set(sizes.values())) == 1
    body = []
    for name in ordered(list(sizes)):
        digits = [2 if column in ("calibration_slope", "calibration_intercept") else 3 for column in columns]
        shown = [interval(cells.get((name, column)) if name in told else None, places) for column, places in zip(columns, digits, strict=True)]
        body.append([method(name).label, *shown, *(() if same else map(tell, sizes[name]))])
    heads = ["Method", *(_METRICS[name] for name in columns), *(() if same else ("Rows", "Subjects", "Positive"))]
    size = next(iter(sizes.values()))
    of = f" ({tell(size[0])} rows of {tell(size[1])} subjects, {tell(size[2])} positive)" if same else ""
    shown_table = table(heads, body, caption=f"Held-out {readable(task)}: value and 95% interval{of}")
    others = [row for row in rows if row["metric"] not in _METRICS and row["method"] in told]
    if not others:
        return shown_table
    further = [
        [method(row["method"]).label, readable(row["metric"]), tell(row["value"]) if row["metric"] in _COUNTS else interval(row)] for row in others
    ]
    return join(
        [shown_table, details("Further metrics", table(["Method", "Metric", "Value"], further, caption=f"{readable(task)}: further metrics", left=2))]
    )


def _whole_split(run: RunFolder, task: str) -> Markup | None:
    """The learned methods on all held-out rows, where the table above is of the rows that were forecast."""
    frame = run.metric_table(f"probe/{task}/metrics.parquet")
    if frame is None or frame.is_empty() or not _told(_spelled(frame)):
        return None
    inner = _metric_table(task, _spelled(frame), run.tell)
    return details("The same for all held-out rows, without the methods that need a forecast", inner)


def _whole_is_telling(run: RunFolder, task: str) -> bool:
    """Whether the whole held-out split has outcomes enough; where nothing says so, it is taken to have."""
    frame = run.metric_table(f"probe/{task}/metrics.parquet")
    return frame is None or frame.is_empty() or bool(_told(_spelled(frame)))


def _outcome_line(predictions: pl.DataFrame, metrics: list[dict[str, Any]], tell: Teller) -> Markup:
    rows = predictions.group_by(KEY).agg(pl.col("boolean_value").drop_nulls().first())
    known = rows.filter(pl.col("boolean_value").is_not_null())
    positives = int(known["boolean_value"].sum() or 0)
    if rows.is_empty():
        return note("There are no predictions of this task in the run’s folder, so no curves.")
    share = tell.share(positives, known.height)
    line = (
        f"{tell(rows.height)} rows predicted, {tell(known.height)} with a known outcome, {tell(positives)} positive{f' ({share})' if share else ''}."
    )
    if not positives or positives == known.height:
        line += " Without both outcomes there is nothing to rank, so there is no ROC curve."
    elif not metrics:
        line += " The run has not been evaluated."
    return note(line)


def _roc(predictions: pl.DataFrame, names: list[str]) -> Markup | None:
    chart = Chart(
        360,
        340,
        Axis.linear(0, 1, label=_share),
        Axis.linear(0, 1, label=_share),
        x_title="false positive rate",
        y_title="true positive rate",
    )
    chart.line([0, 1], [0, 1], "soft thin dash")
    drawn = 0
    for name in reversed(names):
        found = roc(*outcome_and_risk(predictions, name)) if _drawn(predictions, name) else None
        if found is not None:
            drawn += 1
            chart.line(*found, f"{method(name).colour}{' dash' if method(name).dashed else ''}")
    return figure(chart.svg("ROC curves"), "ROC curves of the rows with a known outcome.") if drawn else None


def _share(value: float) -> str:
    return f"{100 * value:.10g}%"


_CALIBRATED = ("monte_carlo", "scope", "reach", "probe", TRUE_RISK)


def _calibration(predictions: pl.DataFrame, names: list[str], tell: Teller) -> Markup | None:
    curves = []
    for name in names:
        if canonical(name) in _CALIBRATED:
            outcome, risk = outcome_and_risk(predictions, name)
            bins = calibration(outcome, risk, least=1 if tell.exact else SMALL_CELL)
            if len(bins) > 1 and _drawn(predictions, name):
                curves.append((name, bins))
    if not curves:
        return None
    top = max(max(b.predicted, b.observed) for _, bins in curves for b in bins)
    top = min(1.0, max(top * 1.15, 0.02))
    axis = Axis.linear(0, top, label=_share, snap=True)
    chart = Chart(360, 340, axis, axis, x_title="predicted risk", y_title="observed share")
    chart.line([0, axis.high], [0, axis.high], "soft thin dash")
    for name, bins in reversed(curves):
        style = method(name)
        for b in bins:
            chart.whisker(b.predicted, min(b.lower, axis.high), min(b.upper, axis.high), f"{style.colour} pale")
        chart.line([b.predicted for b in bins], [b.observed for b in bins], f"{style.colour} thin{' dash' if style.dashed else ''}")
        for b in bins:
            title = f"{style.label}: predicted {percent(b.predicted)}, observed {percent(b.observed)} of {tell(b.rows)}"
            chart.dot(b.predicted, b.observed, f"{'hollow' if style.dashed else 'fill'} {style.colour}", title, radius=3.5)
    caption = "Calibration in bins of equal mass (fewer where risks tie), with 95% intervals. On the diagonal, risks mean what they say."
    return figure(chart.svg("Calibration: observed share by predicted risk"), caption)


def _truth(predictions: pl.DataFrame, names: list[str]) -> Markup | None:
    """Predicted against true risk, one point per row, where a simulator knows the truth (at most 600 points)."""
    model = next((name for name in names if canonical(name) in ("monte_carlo", "scope", "reach", "probe")), None)
    if model is None or TRUE_RISK not in names:
        return None
    truth = predictions.filter(pl.col("method") == TRUE_RISK).select(*KEY, pl.col("probability").alias("truth"))
    both = predictions.filter(pl.col("method") == model).join(truth, on=KEY).select("probability", "truth").drop_nulls().drop_nans()
    if both.height < 10:
        return None
    shown = both.gather_every(max(1, -(-both.height // 600)))
    predicted, true = both["probability"].to_numpy(), both["truth"].to_numpy()
    top = min(1.0, max(0.05, float(np.quantile(np.maximum(predicted, true), 0.995)) * 1.1))
    axis = Axis.linear(0, top, label=_share, snap=True)
    chart = Chart(360, 340, axis, axis, x_title="true risk", y_title=f"predicted risk, {method(model).label}")
    inside = shown.filter((pl.col("probability") <= axis.high) & (pl.col("truth") <= axis.high))
    chart.dots(inside["truth"].to_numpy(), inside["probability"].to_numpy(), f"{method(model).colour} small")
    chart.line([0, axis.high], [0, axis.high], "soft thin dash")
    rmse = float(np.sqrt(np.mean((predicted - true) ** 2)))
    same = predicted.std() == 0 or true.std() == 0
    correlation = "" if same else f", correlation {number(float(np.corrcoef(predicted, true)[0, 1]), 2)}"
    return figure(
        chart.svg("Predicted against true risk"),
        f"{method(model).label.capitalize()} against the simulator’s true risk: RMSE {number(rmse)}{correlation}.",
    )


def _few_shot(frame: pl.DataFrame | None) -> Markup | None:
    """AUROC by number of training labels."""
    if frame is None or frame.is_empty():
        return None
    size = next(
        (name for name in ("labels", "train_rows", "rows", "size", "n", "training_rows", "train_labels", "num_labels") if name in frame.columns), None
    )
    value = next((name for name in ("auroc", "value") if name in frame.columns), None)
    if size is None or value is None:
        return None
    if "metric" in frame.columns:
        frame = frame.filter(pl.col("metric").cast(pl.String).str.to_lowercase() == "auroc")
    ends = next((pair for pair in (("lowest", "highest"), ("lower", "upper")) if set(pair) <= set(frame.columns)), None)
    known = frame.select(
        pl.col("method") if "method" in frame.columns else pl.lit("probe").alias("method"),
        pl.col(size).cast(pl.Float64, strict=False).alias("labels"),
        pl.col(value).cast(pl.Float64).alias("auroc"),
        *(
            pl.col(name).cast(pl.Float64).alias(end) if name else pl.lit(None, dtype=pl.Float64).alias(end)
            for name, end in zip(ends or ("", ""), ("low", "high"))
        ),
    )
    points = known.filter((pl.col("labels") > 0) & pl.col("auroc").is_finite()).sort("labels")
    return _few_shot_chart(points) if points["labels"].n_unique() > 1 else None


def _sizes_axis(sizes: list[float]) -> Axis:
    """A log axis whose ticks are the sizes themselves; of two that would stand on each other the larger is told."""
    spread = max(sizes) / min(sizes)
    low, high = min(sizes) / spread**0.08, max(sizes) * spread**0.08
    told: list[float] = []
    for size in reversed(sizes):
        if not told or np.log(told[-1] / size) > 0.15 * np.log(high / low):
            told.append(size)
    return Axis(low, high, tuple((size, f"{size:,.0f}") for size in reversed(told)), log=True)


def _few_shot_chart(points: pl.DataFrame) -> Markup:
    sizes = sorted(set(points["labels"].to_list()))
    ends = [float(value) for value in points.select("auroc", "low", "high").to_numpy().ravel() if np.isfinite(value)]
    low, high = np.floor(min(ends) * 10) / 10, np.ceil(max(ends) * 10) / 10
    chart = Chart(
        360,
        340,
        _sizes_axis(sizes),
        Axis.linear(low, high),
        x_title="training labels",
        y_title="AUROC",
    )
    for name in ordered(points["method"].to_list()):
        rows = points.filter(pl.col("method") == name)
        style = method(name)
        for row in rows.drop_nulls(["low", "high"]).to_dicts():
            chart.whisker(row["labels"], row["low"], row["high"], f"{style.colour} pale")
        chart.line(rows["labels"].to_numpy(), rows["auroc"].to_numpy(), f"{style.colour} thin")
        for row in rows.to_dicts():
            title = f"{style.label}, {row['labels']:,.0f} labels: {number(row['auroc'])}"
            chart.dot(row["labels"], row["auroc"], f"fill {style.colour}", title, radius=3.5)
    if low < 0.5 < high:
        chart.line([chart.x.low, chart.x.high], [0.5, 0.5], "soft thin dash")
    caption = "Few-shot: AUROC on all held-out rows by the number of training labels, up to all there are; bars span repeated draws of them."
    return figure(chart.svg("AUROC by number of training labels"), caption)
