"""Intervals by resampling patients, and weights for labels that were censored.

Rows of one patient are not independent, so patients are drawn, with replacement, and all of a patient's rows come along: a replicate
is a row of multiplicities. The interval is the percentile interval of the statistic over replicates (Efron and Tibshirani 1993, An
Introduction to the Bootstrap, chapter 13).

Statistics that grow with noise (a divergence, a mean of absolute differences) are larger in nearly every replicate than in the sample:
drawing adds noise to noise, and the percentile interval can lie beside its own estimate. Theirs is `centred`: the replicates are moved by
the bootstrap's estimate of that bias (ibid., chapter 10), so that their median is the estimate.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Statistic = Callable[[Array], Array]
"""float64[B, n] weightings -> float64[B] values."""

LARGEST_WEIGHT = 20.0
"""The most that one row may stand for because of censoring."""

CHUNK_VALUES = 100_000  # weights held at once: small enough that a chunk and its temporaries stay in the cache (three times faster)


def replicate_weights(subject_id: npt.ArrayLike, *, replicates: int, seed: int) -> Iterator[Array]:
    """Chunks float64[b, n] that add up to `replicates` rows; entry = how often that row's patient was drawn."""
    _, patient = np.unique(np.asarray(subject_id), return_inverse=True)
    rows, patients = patient.size, int(patient.max()) + 1 if patient.size else 0
    generator = np.random.default_rng(seed)
    per_chunk = max(1, CHUNK_VALUES // max(rows, patients, 1))
    left = replicates
    while left > 0 and patients:
        size = min(per_chunk, left)
        drawn = generator.integers(0, patients, size=(size, patients))
        flat = (drawn + np.arange(size)[:, None] * patients).ravel()
        counts = np.bincount(flat, minlength=size * patients).reshape(size, patients)
        yield counts[:, patient].astype(np.float64)
        left -= size


def centred(value: npt.ArrayLike, replicates: npt.ArrayLike, *, least: npt.ArrayLike = -np.inf, most: npt.ArrayLike = np.inf) -> tuple[Array, Array]:
    """95% limits of statistics that are biased by noise: percentiles of the replicates, moved so that their median is the value.

    They say how far the value would move with other samples as large as these. They do not take off what noise adds to the value
    itself: two samples of one population are that far apart too.

    Args:
        value: float[m], of the sample.
        replicates: float[B, m].
        least, most: of what the statistic can be.

    Returns:
        lower and upper, float64[m]; `lower <= value <= upper`.
    """
    centre = np.asarray(value, dtype=np.float64)
    low, middle, high = np.nanquantile(np.asarray(replicates, dtype=np.float64), [0.025, 0.5, 0.975], axis=0)
    return np.maximum(centre + low - middle, least), np.minimum(centre + high - middle, most)


def bootstrap(
    statistics: dict[str, Statistic],
    subject_id: npt.ArrayLike,
    *,
    weights: Array | None = None,
    replicates: int = 1000,
    seed: int = 0,
    level: float = 0.95,
    noisy: Collection[str] = (),
) -> dict[str, tuple[float, float, float]]:
    """Value, lower and upper limit of each statistic.

    Args:
        statistics: name -> function of weightings.
        subject_id: int[n], the patient of each row.
        weights: float64[n], multiplied into every replicate (censoring weights, held fixed).
        replicates, seed, level: of the bootstrap; 0 replicates give no limits.
        noisy: names of the statistics that grow with noise and are at least 0; their limits are `centred` (at 95%).

    Returns:
        name -> (value, lower, upper). Limits are NaN where fewer than half of the replicates have a value.
    """
    rows = np.asarray(subject_id).size
    base = np.ones(rows) if weights is None else np.asarray(weights, dtype=np.float64)
    drawn: dict[str, list[Array]] = {name: [] for name in statistics}
    for chunk in replicate_weights(subject_id, replicates=replicates, seed=seed):
        for name, statistic in statistics.items():
            drawn[name].append(statistic(chunk * base))
    result = {}
    tail = (1 - level) / 2
    for name, statistic in statistics.items():
        value = float(statistic(base[None, :])[0])
        lower = upper = np.nan
        if drawn[name]:
            values = np.concatenate(drawn[name])
            values = values[np.isfinite(values)]
            if np.isfinite(value) and 2 * values.size >= replicates and name in noisy:
                lower, upper = (float(limit) for limit in centred(value, values, least=0.0))
            elif np.isfinite(value) and 2 * values.size >= replicates:
                lower, upper = (float(limit) for limit in np.quantile(values, [tail, 1 - tail]))
        result[name] = (value, lower, upper)
    return result


def bootstrap_curve(
    statistic: Statistic, subject_id: npt.ArrayLike, *, weights: Array, replicates: int = 1000, seed: int = 0
) -> tuple[Array, Array, Array]:
    """Value, lower and upper limit (95%) of a statistic with m values, float64[m] each; NaN limits as in `bootstrap`.

    Args:
        statistic: float64[B, n] weightings -> float64[B, m].
        subject_id, weights, replicates, seed: as there.
    """
    value = statistic(weights[None, :])[0]
    drawn = [statistic(chunk * weights) for chunk in replicate_weights(subject_id, replicates=replicates, seed=seed)]
    if not drawn:
        return value, np.full(value.shape, np.nan), np.full(value.shape, np.nan)
    values = np.concatenate(drawn)
    known = np.isfinite(value) & (2 * np.isfinite(values).sum(axis=0) >= replicates)
    limits = np.full((2, value.size), np.nan)
    limits[:, known] = np.nanquantile(values[:, known], [0.025, 0.975], axis=0)
    return value, limits[0], limits[1]


def censoring_survival(days: npt.ArrayLike, censored: npt.ArrayLike) -> Callable[[npt.ArrayLike], Array]:
    """Kaplan-Meier estimate G(t-) of the chance of being still observed just before t.

    Args:
        days: follow-up of each row, float[n].
        censored: bool[n]; True where follow-up ended without the label being known.

    Returns:
        a function float[m] -> float64[m].
    """
    time, lost = np.asarray(days, dtype=np.float64), np.asarray(censored, dtype=bool)
    at, leaving = np.unique(time[lost], return_counts=True)
    # At one instant labels become known first: who knows theirs is not at risk of a censoring any more, as G(t-) has it too.
    at_risk = leaving + time.size - np.searchsorted(np.sort(time), at, side="right")
    survival = np.cumprod(1.0 - leaving / np.maximum(at_risk, 1))

    def before(moment: npt.ArrayLike) -> Array:
        place = np.searchsorted(at, np.asarray(moment, dtype=np.float64), side="left")
        return np.concatenate([[1.0], survival])[place]

    return before


def censoring_weights(days: npt.ArrayLike, censored: npt.ArrayLike, *, largest: float = LARGEST_WEIGHT) -> Array:
    """Inverse-probability-of-censoring weights, float64[n]: 0 for censored rows, 1 / G(t-) for the others, at most `largest`.

    t is the time at which the label became known: the outcome, the death, or the window's close.
    """
    lost = np.asarray(censored, dtype=bool)
    chance = censoring_survival(days, lost)(days)
    return np.where(lost, 0.0, np.minimum(1.0 / np.maximum(chance, 1e-12), largest))
