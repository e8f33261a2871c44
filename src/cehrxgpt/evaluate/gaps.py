"""Is a forecast of the next gap any good? Log score, CRPS, and calibration, with gaps that observation cut short.

A forecast is a distribution over whole days: `mass` float64[N, D] holds P(gap = d) for d = 0 .. D-1, and what it lacks to 1 is P(gap >= D). A gap
is `days`, exactly, or `open`: `days` or longer. From D days on, every gap counts as open at D.

    log score   log P(gap = days), or log P(gap >= days): the likelihood of what was seen, proper whatever ended observation
    CRPS        sum over d < H of (P(gap <= d) - [days <= d])^2, in days; only of gaps that were watched for H days, so that all is known. Whether
                a gap is one of them must depend on when it began and on when observation was planned to end, and never on how long it turned out
    PIT         U = P(gap < days) + V P(gap = days), V uniform: uniform on (0, 1) if forecasts are right (Czado, Gneiting and Held, Biometrics 2009)

An open gap says U > P(gap < days) and no more. Where forecasts are right, U depends neither on what the forecast knew nor on when observation ends,
so the open ones are censored independently, and Kaplan-Meier over the values of U gives the share of gaps that lie below each quantile of their
forecasts: `coverage`, which then is the quantile's level.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import InputError
from cehrxgpt.evaluate.discrimination import Array, as_weights

FLOOR = 1e-12  # a probability counts as this much at least: one impossible gap must not decide a mean

Days = npt.NDArray[np.integer]
Mask = npt.NDArray[np.bool_]


def _within(mass: Array, days: Days, is_open: Mask) -> tuple[npt.NDArray[np.int64], Mask]:
    """`days` and `open` with gaps of D days or more as open at D."""
    most = mass.shape[1]
    return np.minimum(days, most).astype(np.int64), is_open | (days >= most)


def _below(mass: Array, days: npt.NDArray[np.int64]) -> Array:
    """P(gap < days), float64[N]."""
    cumulative = np.cumsum(mass, axis=1)
    return np.where(days > 0, cumulative[np.arange(len(days)), np.maximum(days - 1, 0)], 0.0)


def _exactly(mass: Array, days: npt.NDArray[np.int64]) -> Array:
    """P(gap = days), float64[N]; 0 for D."""
    most = mass.shape[1]
    return np.where(days < most, mass[np.arange(len(days)), np.minimum(days, most - 1)], 0.0)


def log_score(mass: Array, days: Days, is_open: Mask) -> Array:
    """Log-likelihood of each gap, nats, float64[N]."""
    days, is_open = _within(mass, days, is_open)
    return np.log(np.maximum(np.where(is_open, 1.0 - _below(mass, days), _exactly(mass, days)), FLOOR))


def crps(mass: Array, days: Days, is_open: Mask, *, horizon_days: int) -> Array:
    """CRPS up to the horizon, days, float64[N].

    Raises:
        InputError: a gap is open before the horizon, or the forecast ends before it.
    """
    if horizon_days > mass.shape[1]:
        raise InputError(f"crps: the horizon of {horizon_days} days lies beyond the {mass.shape[1]} days of the forecasts")
    unknown = int((is_open & (days < horizon_days)).sum())
    if unknown:
        raise InputError(f"crps: {unknown} gaps are open before the horizon of {horizon_days} days; give only gaps that were watched for so long")
    over = np.asarray(days)[:, None] <= np.arange(horizon_days)
    return ((np.cumsum(mass[:, :horizon_days], axis=1) - over) ** 2).sum(axis=1)


def pit(mass: Array, days: Days, is_open: Mask, uniform: Array) -> tuple[Array, Mask]:
    """Randomised PIT values.

    Args:
        uniform: float64[N], V; drawn on (0, 1).

    Returns:
        value float64[N] in [0, 1], and whether it is censored bool[N] (the gap's own lies above it).
    """
    days, is_open = _within(mass, days, is_open)
    return np.clip(_below(mass, days) + np.where(is_open, 0.0, uniform * _exactly(mass, days)), 0.0, 1.0), is_open


def coverage(value: npt.ArrayLike, censored: npt.ArrayLike, levels: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """Share of PIT values up to each level, by Kaplan-Meier, float64[B, L] for weightings float64[B, N] (None: one, of ones).

    Of right forecasts it is the level itself.
    """
    values, lost = np.asarray(value, dtype=np.float64), np.asarray(censored, dtype=bool)
    order = np.argsort(values, kind="stable")
    weighting = as_weights(weights, values.size)[:, order]
    at_risk = np.cumsum(weighting[:, ::-1], axis=1)[:, ::-1]
    ends = np.where(lost[order], 0.0, weighting)
    survival = np.cumprod(1.0 - np.divide(ends, at_risk, out=np.zeros_like(ends), where=at_risk > 0), axis=1)
    place = np.searchsorted(values[order], np.asarray(levels, dtype=np.float64), side="right")
    return 1.0 - np.concatenate([np.ones((len(survival), 1)), survival], axis=1)[:, place]
