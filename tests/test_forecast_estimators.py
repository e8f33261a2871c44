"""Monte Carlo risk: the denominators are honest, the standard error is never zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cehrxgpt.errors import InputError
from cehrxgpt.forecast.estimators import monte_carlo


def aalen_johansen(outcome: np.ndarray, unfinished: np.ndarray, end: np.ndarray) -> float:
    """Cumulative incidence at the end of the window, the textbook way: product of survival and cause-specific hazard."""
    survival, incidence = 1.0, 0.0
    for time in np.unique(end):
        at_risk = (end >= time).sum()
        decided = (end == time) & ~unfinished
        incidence += survival * (decided & outcome).sum() / at_risk
        survival *= 1 - decided.sum() / at_risk
    return incidence


def test_complete_futures_give_the_plain_share() -> None:
    risk = monte_carlo(np.array([[True, True, False, False], [False] * 4]), np.zeros((2, 4), bool), np.full((2, 4), 100))
    assert risk.probability.tolist() == [0.5, 0.0]
    assert risk.lower_bound.tolist() == risk.upper_bound.tolist() == [0.5, 0.0]
    assert risk.completion.tolist() == [1.0, 1.0]
    assert (risk.std_error > 0).all()  # also where no future had the outcome


def test_unfinished_futures_are_neither_dropped_nor_negative() -> None:
    outcome = np.array([[True, False, False, False]])
    unfinished = np.array([[False, False, True, True]])
    risk = monte_carlo(outcome, unfinished, np.array([[50, 100, 10, 10]]))
    assert risk.probability[0] == pytest.approx(0.5)  # both stopped before the outcome's day: their mass goes to the other two
    assert (risk.lower_bound[0], risk.upper_bound[0], risk.completion[0]) == (0.25, 0.75, 0.5)
    late = monte_carlo(outcome, unfinished, np.array([[50, 100, 60, 60]]))
    assert late.probability[0] == pytest.approx(0.25)  # both outlived it
    assert late.std_error[0] > monte_carlo(outcome, np.zeros_like(unfinished), np.array([[50, 100, 60, 60]])).std_error[0]


def test_nothing_known_is_not_a_negative() -> None:
    risk = monte_carlo(np.zeros((1, 8), bool), np.ones((1, 8), bool), np.arange(8)[None])
    assert risk.probability[0] == pytest.approx(0.5)
    assert (risk.lower_bound[0], risk.upper_bound[0], risk.completion[0]) == (0.0, 1.0, 0.0)


def test_eight_prompts_give_eight_rows() -> None:
    risk = monte_carlo(np.zeros((8, 3), bool), np.zeros((8, 3), bool), np.zeros((8, 3), int))
    assert len(risk.probability) == 8
    with pytest.raises(InputError, match="samples >= 1"):
        monte_carlo(np.zeros((8, 0), bool), np.zeros((8, 0), bool), np.zeros((8, 0), int))


def test_what_is_left_over_goes_on_at_the_rate_of_all() -> None:
    """All unfinished stop at the same time, after every outcome: dropping them would say 1."""
    rng = np.random.default_rng(0)
    days = rng.exponential(50, size=(200, 400))  # rate 0.02 a day, window 60 days, budget ends after 20
    outcome = days < 20
    end = (np.minimum(days, 20) * 1440).astype(np.int64)
    risk = monte_carlo(outcome, ~outcome, end, close_minutes=60 * 1440)
    assert risk.probability.mean() == pytest.approx(1 - np.exp(-60 / 50), abs=0.01)
    assert monte_carlo(outcome, ~outcome, end, died=~outcome, close_minutes=60 * 1440).probability.mean() < 0.6


@settings(deadline=None, max_examples=100)
@given(st.data(), st.integers(1, 12))
def test_equals_the_textbook_estimator(data: st.DataObject, samples: int) -> None:
    outcome = data.draw(hnp.arrays(bool, (3, samples)))
    unfinished = data.draw(hnp.arrays(bool, (3, samples))) & ~outcome
    end = data.draw(hnp.arrays(np.int64, (3, samples), elements=st.integers(0, 5)))
    risk = monte_carlo(outcome, unfinished, end)
    assert ((risk.lower_bound <= risk.probability) & (risk.probability <= risk.upper_bound)).all()
    for row in range(3):
        last = end[row].max()
        decided_last = (~unfinished[row] & (end[row] == last)).any()
        if not unfinished[row][end[row] == last].any() or not decided_last:
            expected = aalen_johansen(outcome[row], unfinished[row], end[row])
            if not unfinished[row][end[row] == last].any():  # no mass left over
                assert risk.probability[row] == pytest.approx(expected)
            else:
                assert risk.probability[row] >= expected - 1e-12
