"""One subject's record as one drawing: visits as spans with intensive care inside, lanes of codes, small plots of values, one time axis.

Aligned on one axis, as LifeLines is: a reader sees what stood beside what. Silences are folded (`folded`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import polars as pl

from cehrxgpt.report.folded import FoldedAxis, duration_words, stay_words
from cehrxgpt.report.history import History, eras, labs, lanes
from cehrxgpt.report.markup import number
from cehrxgpt.report.svg import Axis, Chart, days, fitted, text_width

VISIT_COLOURS = {"inpatient": "c6", "emergency": "c2", "observation": "c8", "outpatient": "c1", "other": "c5"}
INTENSIVE = "c7"
LANES = (("conditions", "Conditions", "c7", 10), ("drugs", "Drugs", "c3", 10), ("procedures", "Procedures", "c4", 6), ("other", "Other", "c5", 3))
"""Groups of lanes: title, colour, how many lanes at most."""

LABS = 8
_LAB_POINTS = 150  # more than these are drawn as a band and a line
_TOP, _FOOT = 46, 26


def history_chart(width: int, history: History, names: Mapping[str, str], edges: Mapping[tuple[str, str | None], Sequence[float]]) -> Chart:
    """The drawing at one width, pixels; of a record that was cut at a prediction time, the time is marked."""
    wide = width > 500
    left, lane, head = (204, 19, 26) if wide else (8, 31, 26)
    plot = 46 if wide else 62
    groups = [(title, colour, group, kept) for group, title, colour, limit in LANES if (kept := _kept(history, group, limit))]
    numbers = _plotted(history, names)
    height = (
        _TOP + 40 + (0 if wide else 14) + sum(head + lane * len(kept) for *_, kept in groups) + (head + plot * len(numbers) if numbers else 0) + _FOOT
    )
    axis = time_axis(history, target=7 if wide else 3)
    chart = Chart(width, height, axis, Axis.linear(0, 1), margin=(_TOP, 14 if wide else 8, _FOOT, left), show_y=False)
    _draw_folds(chart, axis, height)
    y = float(_TOP)
    chart.label(0, y + 15, "Visits", class_="strong")
    y += 2 if wide else 20
    _draw_stays(chart, history, y)
    y += 38
    covered = {name: part for (name,), part in eras(history).group_by("name")}
    for title, colour, group, kept in groups:
        chart.label(0, y + 16, title, class_="strong")
        y += head
        for name in kept:
            middle = y + (lane / 2 if wide else lane - 9)
            chart.label(
                0 if wide else 8, middle + 4 if wide else y + 13, fitted(lane_label(name), chart.left - 8 if wide else width - 16), class_="plain"
            )
            chart.raw(f"M{chart.left:.1f} {middle:.1f}H{chart.width - chart.right:.1f}", "grid")
            if group == "drugs":
                _draw_eras(chart, covered[name], middle, colour)
            _draw_entries(
                chart, history.rows.filter((pl.col("group") == group) & (pl.col("name") == name)), middle, colour, first=group == "conditions"
            )
            y += lane
    if numbers:
        chart.label(0, y + 16, "Values", class_="strong")
        y += head
        for row in numbers:
            _draw_lab(chart, history, row, edges.get((row["code"], row["unit"]), ()), y, plot, wide=wide)
            y += plot
    for when, what in ((history.died, "death"), (history.until, "prediction time")):
        if when is not None:
            _mark(chart, axis, when, what, height)
    return chart


def lane_label(name: str) -> str:
    """The name of a lane; of a code without a name what is its own (`LAB//51221//%`: its table stands above the lanes)."""
    return name.split("//", 1)[-1]


def time_axis(history: History, *, target: int = 7) -> FoldedAxis:
    """The axis of the drawing."""
    return FoldedAxis.of(_times(history, history.until), target=target)


def _plotted(history: History, names: Mapping[str, str]) -> list[dict[str, Any]]:
    return labs(history, names).filter(pl.col("n") > 1).head(LABS).to_dicts()


def drawn_edges(history: History, names: Mapping[str, str], edges: Mapping[tuple[str, str | None], Sequence[float]]) -> bool:
    """Whether an edge of a value bin lies inside one of the plots."""
    return any(row["low"] < value < row["high"] for row in _plotted(history, names) for value in edges.get((row["code"], row["unit"]), ()))


def _kept(history: History, group: str, limit: int) -> list[str]:
    """Names of the lanes, in the order in which they were first seen."""
    return lanes(history, group).head(limit).sort("first", "name")["name"].to_list()


def _times(history: History, until: datetime | None) -> list[datetime]:
    """Whatever the axis must hold, one instant per day at most."""
    columns = [history.rows["time"], history.stays["time"], history.stays["end_time"], history.units["end_time"]]
    found = pl.concat([column.rename("t") for column in columns]).drop_nulls().sort()
    daily = found.to_frame().group_by(pl.col("t").dt.date().alias("d"), maintain_order=True).agg(pl.col("t").min(), pl.col("t").max().alias("u"))
    return [*daily["t"].to_list(), *daily["u"].to_list(), *(time for time in (history.died, until) if time is not None)]


def _draw_folds(chart: Chart, axis: FoldedAxis, height: float) -> None:
    """Gridlines, the dates once more at the head (the drawing may be taller than the screen), and the folds with their length."""
    free = [0.0, 0.0]  # where the line of dates, and that of the folds, is not written on yet

    def say(line: int, px: float, value: str) -> None:
        half = text_width(value) / 2
        middle = min(max(px, half), chart.width - half)
        if middle - half >= free[line]:
            chart.label(middle, (12, _TOP - 9)[line], value, anchor="middle", class_="title")
            free[line] = middle + half + 6

    for value, label in axis.ticks:
        px = float(chart.at_x(value))
        chart.raw(f"M{px:.1f} {_TOP}V{height - _FOOT}", "grid")
        say(0, px, label)
    for fold in axis.folds:
        begin, end = float(chart.at_x(fold.start)), float(chart.at_x(fold.end))
        chart.box(begin, _TOP - 4, end - begin, height - _FOOT - _TOP + 4, "fold", title=f"{fold.label} without a record")
        say(1, (begin + end) / 2, fold.label)


def _span(row: Mapping[str, Any], until: datetime | None) -> tuple[float, float]:
    """Start and end, days since 1970; a stay without an end goes on until the record was cut, or is a moment."""
    end = row["end_time"] or until
    return days(row["time"]), days(end if end is not None else row["time"])


def _draw_stays(chart: Chart, history: History, y: float) -> None:
    for row in history.stays.to_dicts():
        start, end = _span(row, history.until)
        begin, stop = float(chart.at_x(start)), float(chart.at_x(end))
        length = f", {stay_words(row, cut=history.until is not None)}" if row["end_time"] is not None or history.until else ", end unknown"
        chart.box(
            begin,
            y,
            max(stop - begin, 3),
            18,
            f"fill {VISIT_COLOURS[row['class']]}",
            title=f"{row['class']}, {row['time']:%Y-%m-%d}{length}",
            radius=1,
        )
    for row in history.units.to_dicts():
        start, end = _span(row, history.until)
        begin, stop = float(chart.at_x(start)), float(chart.at_x(end))
        chart.box(
            begin,
            y + 20,
            max(stop - begin, 3),
            7,
            f"fill {INTENSIVE}",
            title=f"{row['name']}, {row['time']:%Y-%m-%d}, {duration_words(end - start)}",
            radius=1,
        )


def _draw_eras(chart: Chart, spans: pl.DataFrame, middle: float, colour: str) -> None:
    for start, end in spans.select("start", "end").iter_rows():
        begin, stop = float(chart.at_x(days(start))), float(chart.at_x(days(end)))
        if stop - begin > 3:
            chart.box(begin, middle - 4, stop - begin, 8, f"fill pale {colour}", title=f"{start:%Y-%m-%d} to {end:%Y-%m-%d}", radius=2)


def _draw_entries(chart: Chart, records: pl.DataFrame, middle: float, colour: str, *, first: bool) -> None:
    """Dots where it was recorded; the first of a condition is ringed. Dots that fall on one pixel are one."""
    spots = np.unique(np.round(chart.at_x(np.array([days(time) for time in records["time"].unique().to_list()])), 0))
    chart.raw("".join(f"M{px:.0f} {middle:.1f}h0" for px in spots.tolist()), f"dots full {colour}")
    if first and len(spots):
        chart.raw(f"M{spots[0] - 5:.1f} {middle:.1f}a5 5 0 1 0 10 0a5 5 0 1 0 -10 0", f"outline {colour}")


def _draw_lab(chart: Chart, history: History, row: Mapping[str, Any], edges: Sequence[float], y: float, plot: float, *, wide: bool) -> None:
    """One small plot: line and dots, or median and range by pixel where there are many; the model's bin edges as faint lines."""
    own = history.rows.filter(
        (pl.col("name") == row["name"]) & pl.col("unit").eq_missing(pl.lit(row["unit"], dtype=pl.String)) & pl.col("numeric_value").is_finite()
    ).sort("time")
    if own.is_empty():
        return
    top, floor = (y + 5 if wide else y + 20), y + plot - 5
    low, high = float(own["numeric_value"].min() or 0.0), float(own["numeric_value"].max() or 0.0)  # type: ignore[arg-type]
    spread = high - low or max(abs(high), 1.0) * 0.2
    low, high = low - 0.06 * spread, high + 0.06 * spread

    def at_y(value: Any) -> Any:
        return floor - (np.asarray(value, dtype=float) - low) / (high - low) * (floor - top)

    unit = fitted(f", {row['shown']}", 80) if row["shown"] else ""
    label = fitted(lane_label(row["name"]), (chart.left - 8 if wide else chart.width - 200) - text_width(unit)) + unit
    chart.label(0 if wide else 8, y + 17 if wide else y + 13, label, class_="plain")
    digits = 2 if abs(row["high"]) < 10 else 1
    figures = f"{number(row['low'], digits)} to {number(row['high'], digits)}; last {number(row['value'], digits)}"
    chart.label(0, y + 33, figures, class_="title") if wide else chart.label(chart.width - 8, y + 13, figures, anchor="end", class_="title")
    edge = chart.width - chart.right
    chart.raw("".join(f"M{chart.left:.1f} {float(at_y(value)):.1f}H{edge:.1f}" for value in edges if low < value < high), "grid edge")
    px = np.asarray(chart.at_x(np.array([days(time) for time in own["time"].to_list()])))
    values = own["numeric_value"].to_numpy().astype(float)
    if len(values) > _LAB_POINTS:
        _draw_many(chart, px, values, at_y)
        return
    py = at_y(values)
    assert isinstance(chart.x, FoldedAxis)
    part = np.searchsorted([fold.start for fold in chart.x.folds], [days(time) for time in own["time"].to_list()])
    for piece in np.split(np.arange(len(px)), np.flatnonzero(np.diff(part)) + 1):
        if len(piece) > 1:
            chart.raw("M" + "L".join(f"{px[i]:.1f} {py[i]:.1f}" for i in piece), "line thin ink")
    chart.raw("".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(px, py, strict=True)), "dots small full ink")


def _draw_many(chart: Chart, px: Any, values: Any, at_y: Any) -> None:
    """Range and median of the values in columns of three pixels."""
    frame = pl.DataFrame({"x": np.floor(px / 3) * 3 + 1.5, "v": values})
    columns = frame.group_by("x").agg(pl.col("v").min().alias("low"), pl.col("v").median().alias("middle"), pl.col("v").max().alias("high")).sort("x")
    x, low, middle, high = (columns[name].to_numpy() for name in ("x", "low", "middle", "high"))
    chart.raw("".join(f"M{a:.1f} {b:.1f}V{c:.1f}" for a, b, c in zip(x, at_y(low), at_y(high), strict=True)), "range ink")
    chart.raw("".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(x, at_y(middle), strict=True)), "dots small full ink")


def _mark(chart: Chart, axis: FoldedAxis, when: datetime, what: str, height: float) -> None:
    px = float(chart.at_x(days(when)))
    chart.raw(f"M{px:.1f} {_TOP - 2}V{height - _FOOT}", "rule")
    chart.label(min(px, chart.width - 2), _TOP - 9, what, anchor="end" if px > chart.width * 0.75 else "middle", class_="strong")
