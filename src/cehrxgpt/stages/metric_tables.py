"""Metrics for the reader of a console, and as figures of a summary."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from cehrxgpt import schema as s
from cehrxgpt.stages.tables import interval, method_name, number

if TYPE_CHECKING:
    import polars as pl

Table = tuple[str, list[str], list[list[str]]]
"""Title, columns, rows."""

_MIDDLE = (0.05, 0.95)
_LOGIT_ALIKE = 0.2  # odds that differ by a fifth
_ORDER = re.compile(r"^\d: ")  # before the names of bands that would not sort by themselves


def metric_figures(metrics: pl.DataFrame) -> dict[str, float | None]:
    """`method metric` -> value of each metric row; the task is named before it where there are several."""
    several = metrics["task"].n_unique() > 1
    named = ((f"{row['task']} {row['method']}" if several else row["method"], row) for row in metrics.iter_rows(named=True))
    return {f"{name} {row['metric']}": rounded(row["value"]) for name, row in named}


def unjudged(metrics: pl.DataFrame) -> list[str]:
    """A line for each method that has no row to be judged by, or one where there is nothing at all."""
    import polars as pl

    if metrics.is_empty():
        return ["there is nothing to judge: the predictions have no row"]
    everybody = metrics.filter(pl.col("subgroup").is_null())
    others = {
        (task, method) for task, method in everybody.filter(pl.col("metric") == "unshared", pl.col("value") > 0).select("task", "method").rows()
    }
    bare = everybody.filter(pl.col("metric") == "rows", pl.col("value") == 0)
    return [
        f"{row['task']}: {method_name(row['method'])} has no row with both a prediction{of_all} and a known label, and so no metrics"
        for row in bare.iter_rows(named=True)
        for of_all in [" by every method" if (row["task"], row["method"]) in others else ""]
    ]


def unshared(metrics: pl.DataFrame) -> list[str]:
    """A line for each task of which some methods predict rows that others do not: these are compared for none."""
    import polars as pl

    lines = []
    left = metrics.filter(pl.col("subgroup").is_null(), pl.col("metric") == "unshared", pl.col("value") > 0)
    for (task,), rows in left.group_by("task", maintain_order=True):
        each = ", ".join(f"{method_name(row['method'])}: {row['value']:,.0f}" for row in rows.iter_rows(named=True))
        lines.append(f"{task}: its methods are compared on the rows that all of them predict; left out, though predicted: {each}")
    return lines


def cautions(predictions: pl.DataFrame, truth: pl.DataFrame) -> list[str]:
    """Lines for each task where few people of the judged rows have the outcome, or have it not (resamples of so few know nothing of others), where
    rows would stand for more others than they may, and where risks are of no future that was finished."""

    import polars as pl

    from cehrxgpt.evaluate.bootstrap import LARGEST_WEIGHT
    from cehrxgpt.evaluate.rows import Judged, join_labels, share

    lines, said = [], set()
    for (task, _), group in share(join_labels(predictions, truth)).group_by("task", "method", maintain_order=True):
        rows = Judged.of(group)
        if "completion" in rows.table.columns and (guessed := int((rows.table["completion"] == 0).sum())):
            method = method_name(str(rows.table["method"][0]))
            lines.append(f"{task}: {method}: no future was finished in {guessed:,} of {rows.counts['rows']:,} judged rows: extrapolations are judged")
        if task in said or not rows.counts["rows"]:
            continue
        said.add(task)
        _, having, lacking = rows.subjects
        if min(having, lacking) < s.SMALL_CELL:
            which = "have the outcome" if having <= lacking else "do not have the outcome"
            lines.append(
                f"{task}: fewer than {s.SMALL_CELL} people of the judged rows {which}; metrics say little then, and their intervals are too narrow"
            )
        lost = group.filter(pl.col("label").is_null())
        if lost.height and lost["time_to_event_days"].null_count() == lost.height:
            lines.append(
                f"{task}: {lost.height:,} labels are not known and say no time, so that no row can stand for these: metrics are of the others alone"
            )
        if capped := int((rows.weight >= LARGEST_WEIGHT).sum()):
            lines.append(
                f"{task}: under one in {LARGEST_WEIGHT:.0f} was followed for long enough; {capped:,} of the judged rows would have to stand for more "
                f"than {LARGEST_WEIGHT:.0f}, which is the limit, so that metrics still lean towards those who were lost late"
            )
    return lines


def alike(predictions: pl.DataFrame, remark: str = "the slope of risks so much alike says little", *, least_people: int = s.SMALL_CELL) -> list[str]:
    """A line, with a remark, for each task and method with risks of `least_people` or more that hardly differ: a slope over them is chance. Of fewer
    people no risk is told."""
    import numpy as np
    import polars as pl

    from cehrxgpt.evaluate.calibration import logit

    lines = []
    known = predictions.filter(pl.col("predicted_boolean_probability").is_not_null())
    for (task, method), rows in known.group_by("task", "method", maintain_order=True):
        risks = rows["predicted_boolean_probability"].to_numpy()
        if rows["subject_id"].n_unique() < least_people:
            continue
        low, high = np.quantile(risks, _MIDDLE)
        name = f"{task}: {method_name(str(method))}"
        if np.ptp(risks) == 0:
            lines.append(f"{name} gives all {len(risks):,} rows the risk {low:.4f}, which ranks nobody and has no slope")
        elif np.ptp(logit([low, high])) < _LOGIT_ALIKE:
            lines.append(f"{name}: nine in ten risks lie between {low:.4f} and {high:.4f}; {remark}")
    return lines


def metric_tables(metrics: pl.DataFrame) -> list[Table]:
    """(title, columns, rows) for each task: a row per metric, a column per method, values with their 95% intervals."""
    import polars as pl

    tables = []
    for task in metrics["task"].unique(maintain_order=True).to_list():
        mine = metrics.filter(pl.col("task") == task)
        methods = mine["method"].unique(maintain_order=True).to_list()
        cells = {(row["metric"], row["method"]): _cell(row) for row in mine.iter_rows(named=True)}
        rows = [[metric, *(cells.get((metric, method), "-") for method in methods)] for metric in mine["metric"].unique(maintain_order=True)]
        tables.append((f"Metrics of {task}, 95% intervals", ["metric", *map(method_name, methods)], rows))
    return tables


def _cell(row: dict[str, Any]) -> str:
    ends = interval(row["lower"], row["upper"])
    value = _metric(row["metric"], row["value"])
    return value if ends == "-" else f"{value} ({ends})"


def subgroup_tables(metrics: pl.DataFrame) -> list[Table]:
    """(title, columns, rows) for each task: a row per method and level, and how many levels are not shown as they are too small."""
    import polars as pl

    from cehrxgpt.evaluate.predictions import WITHHELD

    tables: dict[str, list[list[str]]] = {}
    parts = metrics.filter(pl.col("subgroup").is_not_null()).group_by("task", "method", "subgroup", "level", maintain_order=True)
    for (task, method, subgroup, level), part in parts:
        rows = {row["metric"]: row for row in part.iter_rows(named=True)}
        named = [method_name(str(method)), str(subgroup).replace("_", " ")]
        shown = tables.setdefault(str(task), [])
        if WITHHELD in rows:
            shown.append([*named, f"({rows[WITHHELD]['value']:.0f} too small)", *[""] * 6])
            continue
        auroc = rows["auroc"]
        rest = [number(rows[name]["value"]) for name in ("calibration_slope", "prevalence", "mean_predicted")]
        ends = interval(auroc["lower"], auroc["upper"])
        shown.append([*named, _ORDER.sub("", str(level)), _metric("rows", rows["rows"]["value"]), number(auroc["value"]), ends, *rest])
    columns = ["method", "group", "level", "rows", "AUROC", "95% interval", "slope", "observed", "predicted"]
    return [(f"By subgroup, {task}", columns, rows) for task, rows in tables.items()]


def headline_rows(metrics: pl.DataFrame) -> list[list[str]]:
    """A row for each task and method: its AUROC, and the rows, people and outcomes that it rests on."""
    rows = _rows_compared(metrics)
    return [
        [
            row["task"],
            method_name(row["method"]),
            _auroc_text(row, rows[row["task"], row["method"]]),
            f"{rows[row['task'], row['method']]:,}",
            f"{row['subjects']:,}",
            f"{row['positives']:,}",
        ]
        for row in _auroc(metrics).iter_rows(named=True)
    ]


def headline_metrics(metrics: pl.DataFrame) -> dict[str, Any]:
    """The same as figures: task -> method -> what it says."""
    from cehrxgpt.report.methods import telling

    figures: dict[str, Any] = {}
    rows = _rows_compared(metrics)
    for row in _auroc(metrics).iter_rows(named=True):
        entry = {name: rounded(row[column]) for name, column in (("auroc", "value"), ("lower", "lower"), ("upper", "upper"))}
        if not telling(row["positives"], rows[row["task"], row["method"]]):
            entry["too_few_outcomes"] = True
        entry |= {"rows": rows[row["task"], row["method"]], "subjects": row["subjects"], "positives": row["positives"]}
        figures.setdefault(row["task"], {})[row["method"]] = entry
    return figures


def _auroc(metrics: pl.DataFrame) -> pl.DataFrame:
    import polars as pl

    return metrics.filter(pl.col("metric") == "auroc")


def _rows_compared(metrics: pl.DataFrame) -> dict[tuple[str, str], int]:
    """(task, method) -> rows that were compared; a subject may have several."""
    import polars as pl

    compared = metrics.filter(pl.col("metric") == "rows").select("task", "method", "value")
    return {(task, method): int(value) for task, method, value in compared.iter_rows()}


def _auroc_text(row: dict[str, Any], rows: int) -> str:
    """The AUROC with its interval, where it rests on outcomes enough."""
    from cehrxgpt.report.methods import telling

    return f"{number(row['value'])} ({interval(row['lower'], row['upper'])})" if telling(row["positives"], rows) else "too few outcomes"


def _metric(name: str, value: float | None) -> str:
    """A metric's value as text; counts without decimals."""
    return f"{value:,.0f}" if name in ("rows", "censored", "refused", "unshared") and value is not None else number(value)


def rounded(value: float | None) -> float | None:
    """To four places; None where it is not defined."""
    return None if value is None or value != value else round(value, 4)
