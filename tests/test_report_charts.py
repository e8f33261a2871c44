"""Curves, axes and escaping: the small parts of the page that can be wrong in a way nobody sees."""

from __future__ import annotations

from datetime import date, timedelta
from html.parser import HTMLParser

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.report.markup import Markup, count, duration, number, percent, short_count, table, tag, text
from cehrxgpt.report.methods import calibration, canonical, method, ordered, roc, wilson
from cehrxgpt.report.sections.tasks import _few_shot, _sizes_axis
from cehrxgpt.report.svg import Axis, Chart, nice_ticks

EXAMPLES = settings(deadline=None, max_examples=60)


def rank_auroc(outcome: np.ndarray, risk: np.ndarray) -> float:
    """The definition: pairs ranked rightly, ties counting half."""
    positive, negative = risk[outcome], risk[~outcome]
    difference = positive[:, None] - negative[None, :]
    return float((difference > 0).mean() + 0.5 * (difference == 0).mean())


@EXAMPLES
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 6)), min_size=2, max_size=80))
def test_area_under_the_roc_is_the_auroc_with_ties(rows: list[tuple[bool, int]]) -> None:
    outcome = np.array([row[0] for row in rows])
    risk = np.array([row[1] / 6 for row in rows])
    curve = roc(outcome, risk, points=1000)
    if outcome.all() or not outcome.any():
        assert curve is None
        return
    assert curve is not None
    false_rate, true_rate = curve
    assert (false_rate[0], true_rate[0], false_rate[-1], true_rate[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(true_rate, false_rate) == pytest.approx(rank_auroc(outcome, risk))


def test_a_thinned_roc_keeps_its_area() -> None:
    rng = np.random.default_rng(0)
    outcome = rng.random(4_000) < 0.1
    risk = rng.normal(outcome * 1.2, 1)
    curve = roc(outcome, risk, points=160)
    assert curve is not None
    assert len(curve[0]) <= 160
    assert (curve[0][-1], curve[1][-1]) == (1, 1)
    assert np.trapezoid(curve[1], curve[0]) == pytest.approx(rank_auroc(outcome, risk), abs=0.002)


@EXAMPLES
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 16)), min_size=0, max_size=300))
def test_calibration_bins_hold_every_row_once_and_never_part_ties(rows: list[tuple[bool, int]]) -> None:
    outcome = np.array([row[0] for row in rows], dtype=bool)
    risk = np.array([row[1] / 16 for row in rows])
    bins = calibration(outcome, risk)
    if len(rows) < 20:
        assert bins == []
        return
    assert sum(b.rows for b in bins) == len(rows)
    assert min(b.rows for b in bins) >= 20
    assert sum(b.rows * b.observed for b in bins) == pytest.approx(outcome.sum())
    assert sum(b.rows * b.predicted for b in bins) == pytest.approx(risk.sum())
    edges = np.cumsum([b.rows for b in bins])[:-1]
    ranked = np.sort(risk)
    assert all(ranked[edge - 1] < ranked[edge] for edge in edges)
    assert all(b.lower <= b.observed <= b.upper for b in bins)


def test_calibration_makes_ten_bins_of_plain_data() -> None:
    rng = np.random.default_rng(1)
    risk = rng.random(1000)
    bins = calibration(rng.random(1000) < risk, risk)
    assert [b.rows for b in bins] == [100] * 10
    assert all(abs(b.predicted - b.observed) < 0.15 for b in bins)


def test_wilson_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20)[0] == 0
    assert np.isnan(wilson(0, 0)[0])


def test_methods_have_one_spelling_and_a_fixed_order() -> None:
    assert canonical("Monte Carlo") == canonical("monte_carlo") == "monte_carlo"
    assert canonical("true_risk") == "true risk"
    assert ordered(["true risk", "zebra", "age+sex", "probe", "monte_carlo"]) == ["monte_carlo", "probe", "age+sex", "true risk", "zebra"]
    assert method("zebra").label == "zebra"


@EXAMPLES
@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(2, 8))
def test_ticks_are_round_ordered_and_inside(low: float, span: float, target: int) -> None:
    ticks = nice_ticks(low, low + span, target)
    assert ticks == sorted(set(ticks))
    assert len(ticks) <= target + 2
    assert all(low - 1e-6 * span <= tick <= low + span * (1 + 1e-6) for tick in ticks)


@EXAMPLES
@given(st.dates(date(1900, 1, 1), date(2200, 1, 1)), st.integers(0, 40_000))
def test_date_axes_have_ticks_in_range(start: date, length: int) -> None:
    axis = Axis.dates(start, start + timedelta(days=length))
    assert all(axis.low <= value <= axis.high for value, _ in axis.ticks)
    assert len(axis.ticks) <= 9
    assert length < 400 or len(axis.ticks) >= 2


@pytest.mark.parametrize("axis", [Axis.linear(0, 0), Axis.linear(3, 3, snap=True), Axis.logarithmic(0, 0), Axis.linear(0, 7, snap=True)])
def test_degenerate_ranges_still_draw(axis: Axis) -> None:
    chart = Chart(200, 100, axis, axis)
    chart.line([axis.low, float("nan"), axis.high], [axis.low, 1.0, axis.high], "c1")
    drawn = chart.svg("nothing much")
    assert "nan" not in drawn
    assert "inf" not in drawn


class Collector(HTMLParser):
    """What a browser would see: the tags and the text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.data: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.data.append(data)


@EXAMPLES
@given(st.text(max_size=60))
def test_text_from_data_is_only_ever_text(value: str) -> None:
    page = Collector()
    page.feed(tag("p", value, title=value))
    page.close()
    assert page.tags == ["p"]
    assert "".join(page.data) == "".join(c for c in value if ord(c) >= 32 or c in "\t\n\r")


def test_markup_is_not_escaped_twice_and_cells_are_escaped() -> None:
    assert text(Markup("<b>x</b>")) == "<b>x</b>"
    made = table(["<i>"], [["<script>"]], caption='"quoted"')
    assert "<script>" not in made
    assert "<i>" not in made
    assert 'aria-label="&quot;quoted&quot;"' in made


def test_numbers_for_people() -> None:
    assert (count(12345.4), count(None), percent(0.1234), percent(None)) == ("12,345", "–", "12.3%", "–")
    assert (number(0.78149), number(12345.6), number(1e-7), number(float("nan"))) == ("0.781", "12,346", "1.0e−07", "–")
    assert (short_count(950), short_count(118_258), short_count(3_400_000)) == ("950", "118 k", "3.4 M")
    assert (duration(4.21), duration(59.9), duration(125), duration(3700), duration(None)) == ("4.2 s", "60 s", "2 min 05 s", "1 h 01 min", "–")


def test_few_shot_sizes_are_told_apart() -> None:
    """The sizes themselves are the ticks, and of two that would stand on each other the larger; the axis holds the values there are."""
    axis = _sizes_axis([100.0, 1000.0, 1060.0])
    assert [label for _, label in axis.ticks] == ["100", "1,060"]
    assert [label for _, label in _sizes_axis([30.0, 100.0, 1000.0]).ticks] == ["30", "100", "1,000"]
    frame = pl.DataFrame({"method": "probe", "labels": [100, 1000, 1060], "auroc": [0.82, 0.86, 0.85], "lowest": 0.81, "highest": 0.87})
    drawn = str(_few_shot(frame))
    assert ">0.5<" not in drawn
    assert drawn.count("<circle") == 3
    below = str(_few_shot(frame.with_columns(pl.col("auroc") - 0.4)))
    assert "dash" in below  # chance, where values are on both sides of it
