"""Scores of gap forecasts against a process that is known: geometric gaps, some of them cut short."""

from __future__ import annotations

import math

import numpy as np
import pytest

from cehrxgpt.errors import InputError
from cehrxgpt.evaluate.gaps import coverage, crps, log_score, pit

LEVELS = np.arange(1, 10) / 10
DAYS = 400


def geometric_mass(chance: np.ndarray) -> np.ndarray:
    return chance[:, None] * (1 - chance[:, None]) ** np.arange(DAYS)


def geometric(people: int, *, seed: int, follow_up_days: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forecasts that are right, gaps in days, and which are open: each of its own rate, observed for its own length of time."""
    random = np.random.default_rng(seed)
    chance = random.uniform(0.02, 0.2, size=people)
    gap = random.geometric(chance) - 1
    watched = random.exponential(follow_up_days, size=people).astype(np.int64)
    return geometric_mass(chance), np.minimum(gap, watched), gap > watched


def covered(mass: np.ndarray, days: np.ndarray, is_open: np.ndarray) -> np.ndarray:
    # A gap that is open after w watched days is one of w + 1 days or longer.
    value, lost = pit(mass, days + is_open, is_open, np.random.default_rng(1).random(len(days)))
    return coverage(value, lost, LEVELS)[0]


@pytest.mark.parametrize("follow_up_days", [1e9, 20.0, 5.0])
def test_right_forecasts_are_calibrated_however_short_the_follow_up(follow_up_days: float) -> None:
    mass, days, is_open = geometric(10_000, seed=0, follow_up_days=follow_up_days)
    assert (is_open.mean() > 0.3) == (follow_up_days < 30)
    assert np.abs(covered(mass, days, is_open) - LEVELS).max() < 0.02


def test_open_gaps_left_out_would_deceive_and_wrong_forecasts_are_seen() -> None:
    mass, days, is_open = geometric(10_000, seed=0, follow_up_days=5.0)
    ended = ~is_open
    assert np.abs(covered(mass[ended], days[ended], is_open[ended]) - LEVELS).max() > 0.1
    assert np.abs(covered(geometric_mass(1.5 * mass[:, 0]), days, is_open) - LEVELS).max() > 0.05


def test_weights_are_repetitions() -> None:
    random = np.random.default_rng(0)
    value, lost, times = random.random(200), random.random(200) < 0.4, random.integers(0, 4, size=200)
    weighted = coverage(value, lost, LEVELS, times.astype(np.float64))
    assert np.allclose(weighted, coverage(np.repeat(value, times), np.repeat(lost, times), LEVELS))
    assert coverage(value, np.zeros(200, dtype=bool), LEVELS)[0] == pytest.approx([(value <= level).mean() for level in LEVELS])


def test_the_log_score_is_the_likelihood() -> None:
    mass = np.array([[0.5, 0.25, 0.125]] * 5)
    days, is_open = np.array([0, 2, 0, 2, 7]), np.array([False, False, True, True, False])
    expected = [0.5, 0.125, 1.0, 0.25, 0.125]  # the last lies beyond the forecast: three days or longer
    assert log_score(mass, days, is_open) == pytest.approx(np.log(expected))
    assert math.isfinite(log_score(np.array([[1.0, 0.0]]), np.array([1]), np.array([False]))[0])


def test_crps_is_the_mean_distance_less_half_the_spread() -> None:
    """CRPS = E|X - x| - E|X - X'| / 2 (Gneiting and Raftery 2007), summed over whole days."""
    random = np.random.default_rng(0)
    mass = random.dirichlet(np.ones(30), size=20)
    days, support = random.integers(0, 30, size=20), np.arange(30)
    found = crps(mass, days, np.zeros(20, dtype=bool), horizon_days=30)
    spread = np.abs(support[:, None] - support)
    for row in range(20):
        assert found[row] == pytest.approx(mass[row] @ np.abs(support - days[row]) - 0.5 * mass[row] @ spread @ mass[row])
    # Beyond the horizon nothing is asked, so it does not matter how a gap goes on there.
    cut = [crps(mass[:1], np.array([gap]), np.array([lost]), horizon_days=12) for gap, lost in ((12, True), (20, False), (29, False))]
    assert cut[0] == cut[1] == cut[2]


def test_right_forecasts_have_the_best_scores() -> None:
    mass, days, _ = geometric(10_000, seed=3, follow_up_days=1e9)
    whole, none = mass.mean(axis=0, keepdims=True).repeat(len(mass), axis=0), np.zeros(len(mass), dtype=bool)
    assert log_score(mass, days, none).mean() > log_score(whole, days, none).mean() + 0.1
    assert crps(mass, days, none, horizon_days=365).mean() < crps(whole, days, none, horizon_days=365).mean() - 0.3


def test_crps_refuses_what_is_not_known() -> None:
    mass = np.full((2, 20), 0.05)
    with pytest.raises(InputError, match="1 gaps are open before the horizon"):
        crps(mass, np.array([3, 4]), np.array([True, False]), horizon_days=10)
    with pytest.raises(InputError, match="beyond the 20 days"):
        crps(mass, np.array([3, 4]), np.zeros(2, dtype=bool), horizon_days=21)
