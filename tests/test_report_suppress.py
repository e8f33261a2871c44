"""Small counts: hidden, and not to be had back from whatever else is told."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.report.suppress import UNDER, Teller, is_small, rounded

REAL, SIMULATED = Teller(), Teller(exact=True)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, "0"), (1, UNDER), (10, UNDER), (11, "11–14"), (14, "11–14"), (15, "20"), (24, "20"), (25, "30"), (12_345, "12,350"), (None, "–")],
)
def test_counts_of_real_people(value: int | None, said: str) -> None:
    assert REAL(value) == said
    assert SIMULATED(value) == ("–" if value is None else f"{value:,}")


def test_for_programs_and_drawings() -> None:
    assert [REAL.figure(n) for n in (0, 7, 12, 57)] == [0, UNDER, "11–14", 60]
    assert REAL.many([0, 7, 12, 57]).tolist() == [0, 0, 10, 60]
    assert SIMULATED.many([0, 7, 12, 57]).tolist() == [0, 7, 12, 57]
    assert [n for n in range(13) if is_small(n)] == list(range(1, 11))


def test_a_share_never_gives_a_small_count_away() -> None:
    assert REAL.share(52, 201) == "25.0%"  # of the rounded counts: times the whole it gives no more than they do
    assert REAL.share(1, 200) == REAL.share(195, 200) == REAL.share(29, 30) == REAL.share(5, 9) == REAL.share(0, 0) == ""
    assert REAL.share(12, 1_000_000) == "<0.1%"
    assert REAL.share(1_000, 1_000) == "100.0%"
    assert (SIMULATED.share(1, 200), SIMULATED.share(29, 30)) == ("0.5%", "96.7%")


def _could_be(said: int | str) -> tuple[int, int]:
    """The counts that a figure may stand for, lowest and highest."""
    if said == 0:
        return 0, 0
    return (1, 10) if said == UNDER else (11, 14) if isinstance(said, str) else (said - 5, said + 4)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(15, 400), min_size=1, max_size=12), st.integers(1, 10))
def test_no_sum_of_rounded_figures_gives_a_hidden_count(others: list[int], small: int) -> None:
    """Whatever the parts and their total are told as, two counts at least could be the hidden one."""
    low, high = _could_be(REAL.figure(sum(others) + small))
    for value in map(REAL.figure, others):
        part = _could_be(value)
        low, high = low - part[1], high - part[0]
    found = range(max(low, 1), min(high, 10) + 1)
    assert small in found
    assert len(found) > 1


def test_nor_do_two_tables_that_share_a_total() -> None:
    """852 visits as 248 + 1 + 21 + 582, and as 840 + 12: every count from 1 to 9 fits what both say."""
    told = [REAL.figure(n) for n in (852, 248, 21, 582, 840, 12)]
    total, *spans = (range(a, b + 1) for a, b in map(_could_be, told))
    fits = {t - a - b - c for t, a, b, c in product(total, *(spans[:3])) if any(t - d in spans[4] for d in spans[3])}
    assert set(range(1, 10)) <= fits


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=9))
def test_rounding_is_half_up_and_keeps_nothing_small(values: list[int]) -> None:
    found = rounded(values)
    assert np.all((found == 0) | (found >= 10))
    assert all(abs(f - n) <= 5 for f, n in zip(found, values, strict=True) if n > 10)
    assert all(re.fullmatch(r"0|<11|11–14|[\d,]*0", REAL(n)) for n in values)
