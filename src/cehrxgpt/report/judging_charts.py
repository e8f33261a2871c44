"""Calibration and decision curves of one task, as files of their own: what `evaluate predictions` draws."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from cehrxgpt.report.markup import percent, readable
from cehrxgpt.report.methods import Method, method, ordered
from cehrxgpt.report.svg import Axis, Chart

_STYLE = Path(__file__).with_name("style.css")
_SIZE, _LINE = 420, 18


def standalone(chart: Chart, description: str) -> str:
    """The chart as an SVG file: the page's style inside, on the page's ground."""
    drawn = str(chart.svg(description)).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    end = drawn.index(">") + 1
    style = f"<style>{_STYLE.read_text(encoding='utf-8')} svg.chart {{ background: var(--bg); }}</style>".replace("&", "&amp;")
    style = style.replace(" > ", " &gt; ")
    return f"{drawn[:end]}{style}{drawn[end:]}\n"


def _named(chart: Chart, entries: Sequence[tuple[str, Method]]) -> None:
    """The methods' lines and names, below one another at the top."""
    for place, (label, style) in enumerate(entries):
        y = 8 + _LINE * place
        chart.raw(f"M4 {y}h22", f"line {style.colour}{' dash' if style.dashed else ''}")
        chart.label(32, y + 4, label, class_="plain")


def _chart(x: Axis, y: Axis, lines: int, x_title: str, y_title: str) -> Chart:
    """With room for so many names above the plot."""
    top = 32 + _LINE * lines
    chart = Chart(_SIZE, _SIZE - 60 + top, x, y, margin=(top, 18, 40, 52), x_title=x_title)
    chart.label(2, top - 13, y_title, class_="title")
    return chart


def _share(value: float) -> str:
    return f"{100 * value:.10g}%"


def calibration_chart(curves: pl.DataFrame, task: str) -> str | None:
    """Observed by predicted risk, of the rows of `predictions.calibration_table` of one task; None where no method has two bins that may be shown.

    Returns:
        an SVG file's text.
    """
    curves = curves.filter(pl.col("observed").is_not_null())
    names = ordered(curves["method"].to_list())
    parts = {name: curves.filter(pl.col("method") == name).to_dicts() for name in names}
    parts = {name: bins for name, bins in parts.items() if len(bins) > 1}
    if not parts:
        return None
    top = min(1.0, max(0.02, 1.15 * max(max(one["predicted"], one["observed"]) for bins in parts.values() for one in bins)))
    axis = Axis.linear(0, top, label=_share, snap=True)
    chart = _chart(axis, axis, len(parts), "predicted risk", "observed share")
    _named(chart, [(method(name).label, method(name)) for name in parts])
    chart.line([0, axis.high], [0, axis.high], "soft thin dash")
    for name, bins in reversed(parts.items()):
        style = method(name)
        for one in bins:
            chart.whisker(one["predicted"], min(one["lower"], axis.high), min(one["upper"], axis.high), f"{style.colour} pale")
        chart.line([one["predicted"] for one in bins], [one["observed"] for one in bins], f"{style.colour} thin{' dash' if style.dashed else ''}")
        for one in bins:
            title = f"{style.label}: predicted {percent(one['predicted'])}, observed {percent(one['observed'])}"
            chart.dot(one["predicted"], one["observed"], f"{'hollow' if style.dashed else 'fill'} {style.colour}", title, radius=3.5)
    return standalone(chart, f"Calibration, {readable(task)}: observed share by predicted risk, with 95% intervals by patient")


def net_benefit_chart(curves: pl.DataFrame, task: str) -> str | None:
    """Net benefit by threshold, of the rows of `predictions.net_benefit_table` of one task; None without rows.

    Thresholds are shown as far as treating somebody is of use to any method, and at least to twice the prevalence.
    """
    if curves.is_empty():
        return None
    prevalence = float(curves["treat_all"].max() or 0.0)  # type: ignore[arg-type]
    of_use = curves.filter(pl.col("net_benefit") > 0.01 * prevalence)["threshold"].max()
    right = min(0.99, max(float(of_use or 0.0), 2 * prevalence, 0.02))  # type: ignore[arg-type]
    shown = curves.filter(pl.col("threshold") <= right)
    names = ordered(shown["method"].to_list())
    everybody = shown.filter(pl.col("method") == names[0])
    high = max(prevalence, 1e-3) * 1.1
    chart = _chart(
        Axis.linear(0, right, label=_share), Axis.linear(-0.35 * high, high), len(names) + 1, "risk at which one would treat", "net benefit per row"
    )
    all_style = Method("treating everybody", "soft", dashed=True)
    _named(chart, [*((method(name).label, method(name)) for name in names), (all_style.label, all_style)])
    inside = everybody.filter(pl.col("treat_all") >= chart.y.low)
    chart.line(inside["threshold"].to_numpy(), inside["treat_all"].to_numpy(), "soft thin dash")
    chart.line([0, right], [0, 0], "ink thin")
    for name in reversed(names):
        rows = shown.filter((pl.col("method") == name) & (pl.col("net_benefit") >= chart.y.low))
        style = method(name)
        x, low, high_end = (rows[column].to_numpy() for column in ("threshold", "lower", "upper"))
        if len(names) == 1 and rows["lower"].null_count() == 0:
            chart.band(x, low.clip(chart.y.low), high_end.clip(None, chart.y.high), style.colour)
        chart.line(x, rows["net_benefit"].to_numpy(), f"{style.colour}{' dash' if style.dashed else ''}")
    return standalone(chart, f"Decision curve, {readable(task)}: net benefit by threshold; treating nobody is 0")
