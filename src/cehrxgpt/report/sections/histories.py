"""How long histories are, and how much of them one window of the model holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cehrxgpt.report.markup import Markup, count, figure, join, number, paragraph, table
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections.data import log_histogram
from cehrxgpt.report.suppress import SMALL_CELL
from cehrxgpt.report.svg import grid
from cehrxgpt.report.tokens import VISIT_START, Store

PERCENTILES = (10, 25, 50, 75, 90, 95, 99)


def percentiles(values: npt.NDArray[Any], digits: int = 0, *, exact: bool = False) -> list[str]:
    """The percentiles as text; of real people one beyond which fewer than eleven stand is left out: it is nearly one person's own figure."""
    total = len(values)
    found = []
    for q in PERCENTILES:
        beyond = total * min(q, 100 - q) / 100
        value = float(np.quantile(values, q / 100))
        found.append("–" if beyond < SMALL_CELL and not exact else number(value, digits) if digits else count(value))
    return found


def fit(lengths: npt.NDArray[np.int64], context: int) -> tuple[int, float]:
    """(histories that fit into a window, share of all tokens that the last window of every history holds)."""
    total = int(lengths.sum())
    return int((lengths <= context).sum()), float(np.minimum(lengths, context).sum() / total) if total else 0.0


def histories(run: RunFolder, store: Store, starts: npt.NDArray[np.int64] | None) -> Markup:
    """Distributions of events, visits, years and tokens; the context against them. `starts`: token ids that open a visit."""
    full = store.lengths > 0
    lengths = store.lengths[full]
    if not len(lengths):
        return paragraph("No history has a token.")
    context = (run.json("model/config.json") or {}).get("context")
    rows = []
    for name, values, digits in _measures(store, starts):
        if values is not None:
            rows.append([name, *percentiles(values[full], digits, exact=run.tell.exact)])
    shown = table(
        ["Per subject", *(f"{q}th" if q != 50 else "Median" for q in PERCENTILES)],
        rows,
        caption=f"Length of histories: percentiles of {run.tell(len(lengths))} subjects",
    )
    parts: list[Any] = [shown]
    caption = f"Tokens per subject; {run.tell(int(lengths.sum()))} in all."
    if isinstance(context, int) and context > 0:
        fitting, share = fit(lengths, context)
        inside, of = run.tell(fitting), run.tell.share(fitting, len(lengths))
        parts.insert(0, paragraph(_verdict(context, inside, of, share, fitting == len(lengths))))
        caption += f" The line is the model’s context, {count(context)} tokens."
    chart = log_histogram(lengths, "tokens", tell=run.tell, mark=(float(context), "context") if isinstance(context, int) else None)
    charts = [figure(chart.svg(caption), caption)]
    years = store.years()
    if years is not None and np.isfinite(years).any():
        said = "Years from a subject’s first event to the last; a single day counts as a hundredth of a year."
        spans = np.maximum(years[np.isfinite(years)], 0.01)
        charts.append(figure(log_histogram(spans, "years", tell=run.tell, least=0.01).svg(said), said))
    return join([*parts, grid(charts)])


def _measures(store: Store, starts: npt.NDArray[np.int64] | None) -> list[tuple[str, npt.NDArray[Any] | None, int]]:
    years = store.years()
    return [
        ("events", store.array("events"), 0),
        ("visits", None if starts is None else store.visits(starts), 0),
        ("years from first to last event", None if years is None else np.nan_to_num(years), 1),
        ("tokens", store.lengths, 0),
    ]


def _verdict(context: int, inside: str, share: str, tokens: float, everybody: bool) -> str:
    if everybody:
        return f"The model reads {count(context)} tokens at once, and every history fits whole."
    return (
        f"The model reads {count(context)} tokens at once. {inside} histories{f' ({share})' if share else ''} fit whole. Of a longer one, training "
        "reads as many windows, drawn anew each time, as it takes to read each token once, and a forecast or an embedding reads the last window "
        f"before the prediction time; the last windows of all subjects hold {100 * tokens:.1f}% of all tokens."
    )


def visit_starts(vocabulary: Any) -> npt.NDArray[np.int64]:
    """Ids of the tokens that open a visit."""
    return np.flatnonzero(vocabulary["kind"].to_numpy() == VISIT_START)
