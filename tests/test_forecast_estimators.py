"""Monte Carlo risk: the denominators are honest, the standard error is never zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cehrxgpt.errors import InputError
from cehrxgpt.forecast import estimators
from cehrxgpt.forecast.estimators import Evidence, curves, estimate


def monte_carlo(outcome, unfinished, end_minutes, *, died=None, close_minutes=None):
    """The risk by Monte Carlo."""
    return estimate(estimators.monte_carlo(outcome, unfinished, end_minutes, died=died), close_minutes=close_minutes)


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


@pytest.mark.parametrize(("rate", "death"), [(0.05, 0.05), (0.05, 0.01), (0.1, 0.05)])
def test_deaths_of_futures_without_the_outcome_count_for_what_was_left_of_them(rate: float, death: float) -> None:
    """REACH at constant hazards, all budgets spent after a fifth of the window: that tells nothing of the sick, so nothing is biased."""
    shape, budget, window = (8, 2000), 20, 100
    died_at = np.random.default_rng(0).exponential(1 / death, shape)
    died = died_at < budget
    days = np.where(died, died_at, budget)
    rest = np.exp(-rate * days)  # what of 1 the chances along the way have left
    minutes = (days * 1440).astype(np.int64)
    evidence = Evidence(
        future=np.arange(days.size), minutes=minutes.ravel(), amount=(1 - rest).ravel(), outcome=np.zeros(shape, bool), unfinished=~died,
        died=died, end_minutes=minutes, chance_span=np.tile([0, window * 1440], (8, 1)), rest=rest,
    )  # fmt: skip
    risk = estimate(evidence, close_minutes=window * 1440)
    truth = rate / (rate + death) * (1 - np.exp(-(rate + death) * window))
    assert abs(risk.probability.mean() - truth) < 3 * risk.probability.std(ddof=1) / np.sqrt(8) + 0.001


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


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 8))
def test_the_curve_ends_at_the_estimate_and_is_the_aalen_johansen_curve(data: st.DataObject, samples: int) -> None:
    outcome = data.draw(hnp.arrays(bool, (2, samples)))
    end = data.draw(hnp.arrays(np.int64, (2, samples), elements=st.integers(1, 5)))
    died = data.draw(hnp.arrays(bool, (2, samples))) & ~outcome
    evidence = estimators.monte_carlo(outcome, np.zeros_like(outcome), end, died=died)
    found = curves(evidence, np.arange(1, 6))
    assert found.incidence[:, -1] == pytest.approx(estimate(evidence).probability)
    for row in range(2):
        for day in range(1, 6):
            assert found.incidence[row, day - 1] == pytest.approx((outcome[row] & (end[row] <= day)).mean())
            assert found.death[row, day - 1] == pytest.approx((died[row] & (end[row] <= day)).mean())
    assert (np.diff(found.incidence, axis=1) >= 0).all()
    assert (found.incidence + found.death <= 1 + 1e-12).all()


def test_before_the_window_opens_nothing_counts_and_nothing_is_unsure() -> None:
    outcome, end = np.array([[True, False, False]]), np.array([[70, 90, 90]])
    evidence = estimators.monte_carlo(outcome, np.zeros_like(outcome), end)
    found = curves(evidence, np.array([30, 60, 75, 90]), open_minutes=60)
    assert found.incidence[0].tolist() == pytest.approx([0, 0, 1 / 3, 1 / 3])
    assert (found.std_error[0] > 0).tolist() == [False, False, True, True]


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(2, 6))
def test_curves_end_at_the_risk_whatever_was_left_unfinished(data: st.DataObject, samples: int) -> None:
    """Of REACH, whose unfinished futures have little of 1 left and hand on a whole future's mass."""
    count = data.draw(st.integers(0, 3 * samples))
    future = np.array(data.draw(st.lists(st.integers(0, samples - 1), min_size=count, max_size=count)), dtype=np.int64)
    end = data.draw(hnp.arrays(np.int64, (1, samples), elements=st.integers(1, 10)))
    rest, amount = np.ones(samples), np.zeros(count)
    for place, one in enumerate(future):
        amount[place] = 0.7 * rest[one]
        rest[one] -= amount[place]
    minutes = np.array([data.draw(st.integers(1, int(end[0, one]))) for one in future], dtype=np.int64)
    nothing = np.zeros((1, samples), bool)
    unfinished = data.draw(hnp.arrays(bool, (1, samples)))
    evidence = Evidence(
        future=future, minutes=minutes, amount=amount, outcome=nothing, unfinished=unfinished, died=nothing, end_minutes=end,
        chance_span=np.array([[0, 11]]), rest=rest[None],
    )  # fmt: skip
    risk = estimate(evidence, close_minutes=10)
    found = curves(evidence, np.arange(2, 11, 2), risk)
    assert found.incidence[:, -1] == pytest.approx(risk.probability)
    assert found.std_error[:, -1] == pytest.approx(risk.std_error)
    assert (np.diff(found.incidence, axis=1) >= -1e-12).all()
    assert (risk.lower_bound - 1e-12 <= found.incidence[:, -1]).all()
    assert (found.incidence <= risk.upper_bound[:, None] + 1e-12).all()
    before = np.arange(2, 11, 2) < (end[unfinished].min() if unfinished.any() else 99)  # what was found by then is not taken back
    plain = np.array([amount[minutes <= day].sum() / samples for day in range(2, 11, 2)])
    assert found.incidence[0][before][:-1] == pytest.approx(plain[before][:-1])


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(1, 6), st.integers(1, 6))
def test_more_futures_are_as_if_drawn_at_once(data: st.DataObject, first: int, second: int) -> None:
    def drawn(samples: int) -> Evidence:
        outcome = data.draw(hnp.arrays(bool, (3, samples)))
        unfinished = data.draw(hnp.arrays(bool, (3, samples)))
        return estimators.monte_carlo(outcome, unfinished, data.draw(hnp.arrays(np.int64, (3, samples), elements=st.integers(0, 5))))

    parts = [drawn(first), drawn(second)]
    whole = [np.concatenate([getattr(part, name) for part in parts], axis=1) for name in ("outcome", "unfinished", "end_minutes")]
    for rows in (np.arange(3), np.array([2, 0])):
        grown, once = parts[0].take(rows).beside(parts[1].take(rows)), estimators.monte_carlo(*(values[rows] for values in whole))
        assert estimate(grown).probability == pytest.approx(estimate(once).probability)
        assert curves(grown, np.array([2, 5])).incidence == pytest.approx(curves(once, np.array([2, 5])).incidence)


def test_sums_of_chances_are_averaged_and_their_spread_is_the_error() -> None:
    """Two futures of one prediction time, by hand: 0.1 + 0.3 and 0.2; the unfinished one could still have had all of 1."""
    shape = (1, 2)
    nothing = np.zeros(shape, bool)
    evidence = Evidence(
        future=np.array([0, 0, 1]),
        minutes=np.array([10, 20, 15]),
        amount=np.array([0.1, 0.3, 0.2]),
        outcome=nothing,
        unfinished=nothing,
        died=nothing,
        end_minutes=np.full(shape, 100),
        chance_span=np.array([[0, 101]]),
        rest=np.ones(shape),
    )
    risk = estimate(evidence)
    assert (risk.probability[0], risk.std_error[0]) == (pytest.approx(0.3), pytest.approx(0.1))
    assert risk.lower_bound[0] == risk.upper_bound[0] == pytest.approx(0.3)
    assert curves(evidence, np.array([12, 18, 100])).incidence[0] == pytest.approx([0.05, 0.15, 0.3])


@pytest.mark.parametrize(("budget", "samples"), [(5, 60), (8, 60), (5, 200)])
def test_the_error_holds_where_futures_stop_after_so_many_events(budget: int, samples: int) -> None:
    """As a budget of tokens stops them, all at about one time: what one of them would have said moves what all others count for."""
    rng, rows = np.random.default_rng(budget), 800
    day = np.where(rng.random((rows, samples, 30)) < 0.5, 5, 9).cumsum(axis=2)
    event = rng.random((rows, samples, 30))
    outcome, died, unfinished = (np.zeros((rows, samples), dtype=bool) for _ in range(3))
    end = np.full((rows, samples), 60.0)
    for step in range(budget):
        running = ~(outcome | died) & (day[:, :, step] <= 60)
        had, dead = running & (event[:, :, step] < 0.15), running & (event[:, :, step] >= 0.15) & (event[:, :, step] < 0.2)
        outcome, died = outcome | had, died | dead
        end = np.where(had | dead, day[:, :, step], end)
    unfinished = ~(outcome | died) & (day[:, :, budget - 1] <= 60)
    end = np.where(unfinished, day[:, :, budget - 1], end)
    found = estimate(estimators.monte_carlo(outcome, unfinished, (end * 1440).astype(np.int64), died=died), close_minutes=60 * 1440)
    assert found.completion.mean() < 0.9
    spread = found.probability.std()
    assert 0.95 * spread < np.sqrt((found.std_error**2).mean()) < 1.2 * spread
    assert (np.abs(found.probability - found.probability.mean()) < 1.96 * found.std_error).mean() > 0.91
