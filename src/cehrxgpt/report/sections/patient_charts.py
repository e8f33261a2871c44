"""The drawings of one subject's futures: values with a fan of simulated ones, futures as rows, first events by day."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.report.history_chart import VISIT_COLOURS
from cehrxgpt.report.markup import number, percent
from cehrxgpt.report.svg import Axis, Chart, days

if TYPE_CHECKING:
    from cehrxgpt.report.sections.patient import Case


def lab_chart(title: str, at: datetime, horizon_days: float, past: pl.DataFrame, simulated: pl.DataFrame, actual: pl.DataFrame) -> Chart:
    """Recorded values up to the prediction time, the simulated ones' middle and 10-90% band after it, and what happened as dots.

    The past shown is at most three horizons or two years long, whichever is longer, so that the future is not a sliver.
    """
    now = days(at)
    earliest = now - max(3 * horizon_days, 730)
    shown = past.filter(pl.col("time") >= at - timedelta(days=now - earliest)).sort("time")
    shown = past.sort("time").tail(5) if shown.height < 2 else shown
    if shown.height > 80:  # a stay with values every few minutes: one point per day
        shown = shown.group_by(pl.col("time").dt.truncate("1d")).agg(pl.col("numeric_value").median()).sort("time") if _long(shown) else shown
    times = np.array([days(time) for time in shown["time"].to_list()])
    values = shown["numeric_value"].to_numpy().astype(float)
    fan = _fan(at, horizon_days, simulated)
    later = actual.sort("time")
    later_values = later["numeric_value"].to_numpy().astype(float)
    everything = np.concatenate([values, later_values, *(np.array(column) for column in fan[1:])])
    low, high = float(everything.min()), float(everything.max())
    spread = high - low or max(abs(high), 1.0) * 0.1
    y = Axis.linear(
        low - 0.08 * spread,
        high + 0.08 * spread,
        target=3,
        label=lambda value: number(value, 3).rstrip("0").rstrip(".") if abs(value) < 10 else number(value, 0),
    )
    end = now + horizon_days if fan[0] or later.height else float(times.max())
    x = Axis.dates(at - timedelta(days=now - times.min()), at + timedelta(days=end - now), target=4)
    chart = Chart(340, 170, x, y, margin=(28, 12, 24, 44), y_title=title)
    if fan[0]:
        chart.band(fan[0], fan[1], fan[3], "c1")
        chart.line(fan[0], fan[2], "c1")
    chart.line(times, values, "ink thin")
    if len(times) <= 60:
        chart.dots(times, values, "ink small full")
    chart.dots([days(time) for time in later["time"].to_list()], later_values, "ink full")
    if end > now:
        chart.vertical(now)
    return chart


def _long(rows: pl.DataFrame) -> bool:
    first, last = rows["time"].min(), rows["time"].max()
    return isinstance(first, datetime) and isinstance(last, datetime) and last - first > timedelta(days=10)


def _fan(
    at: datetime, horizon_days: float, simulated: pl.DataFrame, bins: int = 6, least: int = 5
) -> tuple[list[float], list[float], list[float], list[float]]:
    """(middle of bin, 10%, 50%, 90%) of simulated values in equal spans of time; spans with fewer than `least` values are skipped."""
    centres: list[float] = []
    quantiles: tuple[list[float], list[float], list[float]] = ([], [], [])
    if simulated.is_empty():
        return centres, *quantiles
    offset = np.array([(time - at) / timedelta(days=1) for time in simulated["time"].to_list()])
    values = simulated["numeric_value"].to_numpy().astype(float)
    width = horizon_days / bins
    for index in range(bins):
        inside = values[(offset >= index * width) & (offset <= (index + 1) * width)]
        if len(inside) >= least:
            centres.append(days(at) + (index + 0.5) * width)
            for store, q in zip(quantiles, (0.1, 0.5, 0.9), strict=True):
                store.append(float(np.quantile(inside, q)))
    return centres, *quantiles


def raster_chart(width: int, case: Case, simulated: pl.DataFrame, actual: pl.DataFrame, limit: int = 40) -> Chart:
    """What happened in the first row, then one row per future: its length, visits, other events, death."""
    samples = case.samples.sort("sample_id").head(limit)
    left, step, top = (126 if width > 500 else 8), 13, 24
    head = 30 if width > 500 else 46
    height = top + head + samples.height * step + 42
    x = Axis.linear(0, case.horizon_days, target=6 if width > 500 else 4)
    chart = Chart(width, height, x, Axis.linear(0, 1), margin=(top, 14, 40, left), x_title="days after the prediction time", show_y=False)
    for value, _ in x.ticks:
        chart.raw(f"M{float(chart.at_x(value)):.1f} {top}V{height - 40}", "grid")
    y = top + head - 22
    chart.box(0 if width > 500 else chart.left, y - 11, width - 8 if width > 500 else width - 8 - chart.left, 22, "back", radius=3)
    if width > 500:
        chart.label(6, y + 4, "what happened", class_="strong")
        chart.label(6, top + head + 9, "futures", class_="strong")
    else:
        chart.label(8, top + 8, "what happened, then the futures", class_="strong")
    _future_row(chart, case, y, case.observed_days, case.actual, actual, died=_death_day(case, case.actual))
    for index, (sample, end, reason) in enumerate(samples.select("sample_id", "end_time", "stop_reason").iter_rows()):
        own = case.futures.filter(pl.col("sample_id") == sample)
        died = _death_day(case, own)
        length = (end - case.at) / timedelta(days=1)
        died = length if died is None and reason == "death" else died
        _future_row(chart, case, top + head + 5 + index * step, length, own, simulated.filter(pl.col("sample_id") == sample), died=died)
    return chart


def _death_day(case: Case, events: pl.DataFrame) -> float | None:
    time = events.filter(pl.col("code") == s.DEATH)["time"].min()
    return (time - case.at) / timedelta(days=1) if isinstance(time, datetime) else None


def _future_row(chart: Chart, case: Case, y: float, length: float, events: pl.DataFrame, stays: pl.DataFrame, *, died: float | None) -> None:
    def at_day(value: float) -> float:
        return float(chart.at_x(min(max(value, 0.0), case.horizon_days)))

    chart.raw(f"M{at_day(0):.1f} {y:.1f}H{at_day(length):.1f}", "life")
    other = events.filter(~pl.col("code").str.starts_with(s.VISIT_PREFIX) & ~pl.col("code").is_in([s.DEATH, s.OBSERVATION_END, s.OBSERVATION_START]))
    spots = sorted({round(at_day((time - case.at) / timedelta(days=1)), 1) for time in other["time"].drop_nulls().to_list()})
    if spots:
        chart.raw("".join(f"M{px:.1f} {y:.1f}h0" for px in spots), "dots small soft")
    for row in stays.to_dicts():
        begin = at_day((row["time"] - case.at) / timedelta(days=1))
        end = at_day((row["end_time"] - case.at) / timedelta(days=1)) if row["end_time"] is not None else begin
        chart.box(begin - 1, y - 4.5, max(end - begin, 3), 9, f"fill {VISIT_COLOURS[row['class']]}", title=f"{row['class']} visit", radius=1)
    if died is not None:
        px = at_day(died)
        chart.raw(f"M{px - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", "cross ink")


def incidence_chart(width: int, horizon_days: float, total: int, curves: list[tuple[str, str, list[float]]]) -> Chart:
    """Steps: share of futures whose first such event lies within so many days."""
    top = max(len(found) for _, _, found in curves) / max(total, 1)
    y = Axis.linear(0, min(1.0, max(top * 1.1, 0.1)), target=4, label=lambda value: percent(value, 0), snap=True)
    chart = Chart(
        width,
        240,
        Axis.linear(0, horizon_days, target=6 if width > 500 else 4),
        y,
        x_title="days after the prediction time",
        y_title="share of futures",
    )
    for _, colour, found in curves:
        steps: list[Any] = [0.0, *(min(max(value, 0.0), horizon_days) for value in found), horizon_days]
        shares: list[Any] = [0.0, *((index + 1) / total for index in range(len(found))), len(found) / total]
        chart.steps(steps, shares, colour)
    return chart
