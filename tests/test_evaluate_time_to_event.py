"""Concordance and the integrated Brier score: by hand, against plain loops, under resampling, and against what censoring hides."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.evaluate.bootstrap import LARGEST_WEIGHT
from cehrxgpt.evaluate.discrimination import auroc
from cehrxgpt.evaluate.time_to_event import COMPETING, FREE, LOST, OUTCOME, Concordance, FollowUp, IntegratedBrier, concordance, ending


def chance(days, end, t):
    """Kaplan-Meier G(t-), one loop over times; whatever else is known at the time of a loss comes before it."""
    survival = 1.0
    for moment in sorted({d for d, e in zip(days, end, strict=True) if e == LOST and d < t}):
        at_risk = sum(d > moment or (d == moment and e == LOST) for d, e in zip(days, end, strict=True))
        survival *= 1 - sum(d == moment and e == LOST for d, e in zip(days, end, strict=True)) / at_risk
    return survival


def by_pairs(days, end, risk, drawn):
    """Every pair by itself; drawn: how often each row counts."""
    won = pairs = 0.0
    weight = [min(1 / max(chance(days, end, t), 1e-12), LARGEST_WEIGHT) for t in days]
    for i in range(len(days)):
        for j in range(len(days)):
            seen_free = days[j] > days[i] or (days[j] == days[i] and end[j] in (FREE, LOST))
            gone = (end[j] == COMPETING and days[j] <= days[i]) or (end[j] == FREE and days[j] < days[i])
            if i == j or end[i] != OUTCOME or not (seen_free or gone):
                continue
            mass = drawn[i] * drawn[j] * weight[i] * (weight[j] if gone else weight[i])
            pairs += mass
            won += mass * (1.0 if risk[i] > risk[j] else 0.5 if risk[i] == risk[j] else 0.0)
    return won / pairs if pairs else np.nan


ROWS = st.lists(
    st.tuples(st.integers(1, 6), st.sampled_from([OUTCOME, COMPETING, LOST, FREE]), st.integers(0, 4), st.integers(0, 3)), min_size=1, max_size=25
)


@settings(deadline=None, max_examples=200)
@given(ROWS, st.booleans())
def test_concordance_equals_every_pair(rows, closes):
    days, end, risk, drawn = (list(column) for column in zip(*rows, strict=True))
    if closes:  # the window closes at the last time
        end = [FREE if d == max(days) and e == LOST else e for d, e in zip(days, end, strict=True)]
    found = concordance(days, end, risk, np.array([drawn, [1] * len(rows)], dtype=float))
    assert found == pytest.approx([by_pairs(days, end, risk, drawn), by_pairs(days, end, risk, [1] * len(rows))], nan_ok=True)


def test_concordance_by_hand():
    # Outcomes at 1 and 3, a death at 2, one free at the close. Pairs: 1 beats all three; 3 meets the dead and the free.
    days, end = [1, 3, 2, 5], [OUTCOME, OUTCOME, COMPETING, FREE]
    assert concordance(days, end, [4, 3, 2, 1])[0] == 1.0
    assert concordance(days, end, [1, 2, 3, 4])[0] == 0.0
    assert concordance(days, end, [4, 2, 3, 1])[0] == pytest.approx(4 / 5)
    assert concordance(days, end, [1, 1, 1, 1])[0] == 0.5
    assert np.isnan(concordance([5, 5], [FREE, FREE], [0.1, 0.2])[0])
    assert np.isnan(concordance([], [], [])[0])


def test_of_the_length_of_stays_it_is_the_auroc():
    """A window closes with each discharge: who went home on the second day is compared with who was still there on the fourth."""
    rng = np.random.default_rng(1)
    days, risk = rng.exponential(3.0, 300), rng.integers(0, 20, 300)
    found = concordance(np.minimum(days, 4.0), np.where(days >= 4.0, OUTCOME, FREE), risk)
    assert found == pytest.approx(auroc(days >= 4.0, risk))


def test_of_outcomes_at_one_time_it_is_the_auroc():
    rng = np.random.default_rng(0)
    truth, risk = rng.random(300) < 0.3, rng.integers(0, 20, 300)
    found = concordance(np.where(truth, 1.0, 2.0), np.where(truth, OUTCOME, FREE), risk)
    assert found == pytest.approx(auroc(truth, risk))


def population(rng, rows, *, loss):
    """Outcome, death and loss at constant rates; the truth without losses beside what is seen with them. 365 days."""
    rate = rng.lognormal(-7.5, 1.0, rows)
    event, death = rng.exponential(1 / rate), rng.exponential(2000, rows)
    lost = rng.exponential(1 / loss, rows) if np.ndim(loss) == 0 else loss
    first = np.minimum(np.minimum(event, death), 365.0)
    whole = np.select([event <= np.minimum(death, 365), death <= 365], [OUTCOME, COMPETING], FREE)
    seen = np.where(lost < first, LOST, whole)
    return rate, first, whole, np.minimum(first, lost), seen


def incidence(rate, grid):
    total = rate + 1 / 2000
    return (rate / total)[:, None] * (1 - np.exp(-total[:, None] * grid))


def test_weights_undo_censoring():
    rng = np.random.default_rng(1)
    rate, first, whole, days, seen = population(rng, 30_000, loss=1 / 250)
    # Losses that come after half a year: naive pairs are the early ones, at which this risk is blind.
    risk = np.where(first > 180, rate, rng.random(rate.size) * rate.max())
    truth = concordance(first, whole, risk)[0]
    naive = Concordance(FollowUp.of(days, seen, weighted=False), risk)()[0]
    assert concordance(days, seen, risk)[0] == pytest.approx(truth, abs=0.02)
    assert abs(naive - truth) > 0.02
    grid = np.linspace(0, 365, 13)[1:]
    curves = incidence(rate, grid)
    whole_score = IntegratedBrier(FollowUp.of(first, whole), grid, curves)()[0]
    assert IntegratedBrier(FollowUp.of(days, seen), grid, curves)()[0] == pytest.approx(whole_score, rel=0.04)
    naive_score = IntegratedBrier(FollowUp.of(days, seen, weighted=False), grid, curves)()[0]
    assert abs(naive_score / whole_score - 1) > 0.06


def test_the_true_curve_has_the_least_score():
    rng = np.random.default_rng(2)
    rate, _, _, days, seen = population(rng, 8_000, loss=1 / 800)
    follow, grid = FollowUp.of(days, seen), np.linspace(0, 365, 13)[1:]
    curves = incidence(rate, grid)
    true = IntegratedBrier(follow, grid, curves)()[0]
    mean = np.broadcast_to(curves.mean(axis=0), curves.shape)
    death_forgotten = 1 - np.exp(-rate[:, None] * grid)
    for other in (curves * 0.5, np.minimum(curves * 1.5, 1), mean, death_forgotten):
        assert true < IntegratedBrier(follow, grid, other)()[0]


def test_integrated_brier_by_hand():
    # Outcome at 1, death at 2, free at 4, lost at 3; G is 1 until 3, and 1/2 after: of the two still seen one is lost.
    follow = FollowUp.of([1, 2, 4, 3], [OUTCOME, COMPETING, FREE, LOST])
    score = IntegratedBrier(follow, [2, 4], np.array([[0.8, 0.9], [0.1, 0.2], [0.1, 0.2], [0.1, 0.4]]))
    at_2 = (0.04 + 3 * 0.01) / 4
    at_4 = (0.01 + 0.04 + 2 * 0.04) / 4
    assert score.scores()[0] == pytest.approx([at_2, at_4])
    assert score()[0] == pytest.approx((2 * at_2 / 2 + 2 * (at_2 + at_4) / 2) / 4)


def test_weights_of_one_and_twos_and_orders():
    rng = np.random.default_rng(3)
    rate, _, _, days, seen = population(rng, 200, loss=1 / 400)
    grid = np.array([100.0, 365.0])
    follow = FollowUp.of(days, seen)
    drawn = rng.integers(0, 3, 200)
    twice, order = np.repeat(np.arange(200), drawn), rng.permutation(200)
    for make in (lambda f, r: Concordance(f, r), lambda f, r: IntegratedBrier(f, grid, incidence(r, grid))):
        one = make(follow, rate)
        assert one(np.ones(200)) == pytest.approx(one())
        assert one(drawn.astype(float)) == pytest.approx(make(follow.take(twice), rate[twice])(), rel=1e-9)
        assert make(FollowUp.of(days[order], seen[order]), rate[order])() == pytest.approx(one())


def test_endings():
    assert ending(["outcome", "death", "horizon", "censored", "competing"]).tolist() == [OUTCOME, COMPETING, FREE, LOST, COMPETING]
