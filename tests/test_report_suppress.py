"""Small counts: hidden, and not to be had back from what stands beside them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.report import suppress
from cehrxgpt.report.suppress import HIDDEN, UNDER, Counts, Pooled, hidden_keys


@pytest.mark.parametrize(
    ("counts", "said"),
    [
        ([5, 20, 300], [UNDER, HIDDEN, "300"]),
        ([5, 6, 300], [UNDER, UNDER, "300"]),
        ([0, 5, 300], ["0", UNDER, HIDDEN]),
        ([0, 11, 1300], ["0", "11", "1,300"]),
        ([0, 0, 5], ["0", "0", UNDER]),
        ([7], [UNDER]),
    ],
)
def test_parts_of_a_total(counts: list[int], said: list[str]) -> None:
    assert suppress.parts(counts) == said
    total = sum(counts)
    assert suppress.figures(counts)[-1] == (UNDER if suppress.is_small(total) else total)


def test_a_share_never_gives_a_small_count_away() -> None:
    assert suppress.share(50, 200) == "25.0%"
    assert suppress.share(1, 200) == suppress.share(195, 200) == suppress.share(5, 9) == suppress.share(0, 0) == ""
    assert suppress.share(12, 1_000_000) == "<0.1%"


def test_reasons_that_are_few_are_told_together() -> None:
    assert suppress.pool([("a", 500), ("b", 30), ("c", 3), ("d", 0)]) == [Pooled(("a",), 500), Pooled(("b", "c"), 33)]
    assert suppress.pool([("a", 500), ("b", 8), ("c", 4)]) == [Pooled(("a",), 500), Pooled(("b", "c"), 12)]
    assert suppress.pool([("c", 3)]) == [Pooled(("c",), 3)]
    assert suppress.pool([]) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(0, 30), min_size=2, max_size=3), min_size=2, max_size=3).filter(lambda rows: len({len(r) for r in rows}) == 1))
def test_no_sum_of_a_table_has_one_unknown(rows: list[list[int]]) -> None:
    """One unknown in a sum is known. So there is none, or there are two, or all beside it are zero."""
    across, down = range(len(rows[0])), range(len(rows))
    counts = {f"{i},{j}": rows[i][j] for i in down for j in across}
    counts |= {f"{i},all": sum(rows[i]) for i in down} | {f"all,{j}": sum(row[j] for row in rows) for j in across}
    lines = [[f"{i},{j}" for j in (*across, "all")] for i in down] + [[f"{i},{j}" for i in (*down, "all")] for j in across]
    hidden = hidden_keys(counts, lines)
    assert {key for key, value in counts.items() if 0 < value < 11} <= hidden
    for line in lines:
        shown_or_zero = [key for key in line if key not in hidden]
        assert len(set(line) & hidden) != 1 or all(counts[key] == 0 for key in shown_or_zero)


def test_counts_bound_by_two_sums() -> None:
    said = Counts({"a": 3, "b": 40, "ab": 43, "c": 50, "all": 93}, [["a", "b", "ab"], ["ab", "c", "all"]])
    assert [said[key] for key in ("a", "b", "ab", "c", "all")] == [UNDER, HIDDEN, "43", "50", "93"]
    assert (said.share("c", "all"), said.share("a", "all")) == ("53.8%", "")
    assert [n for n in range(13) if suppress.is_small(n)] == list(range(1, 11))
