"""Do the probabilities mean what they say? Brier score, slope and intercept, expected calibration error, the calibration curve.

The expected calibration error alone flatters: predicting the prevalence for everybody scores 0. So slope and intercept stand beside
it. With lp = logit(p): `slope` is b in logit(y) = a + b lp (1 is right; below 1, too extreme), `intercept` is a in
logit(y) = a + lp (0 is right; below 0, risks too high).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.evaluate.bootstrap import bootstrap_curve
from cehrxgpt.evaluate.discrimination import Array, as_weights

CLIP = 1e-6
_STEPS = 30


def logit(probability: npt.ArrayLike, *, clip: float = CLIP) -> Array:
    """log p/(1-p), with p kept `clip` away from 0 and 1; by 0 those have no finite one."""
    bounded = np.clip(np.asarray(probability, dtype=np.float64), clip, 1 - clip)
    with np.errstate(divide="ignore"):
        return np.log(bounded) - np.log1p(-bounded)


def clip_for_samples(num_samples: npt.ArrayLike) -> float:
    """How far from 0 and 1 probabilities that are shares of so many futures are kept: half a future of the fewest; 1e-6 where none is a share.

    The same for all of them, so that logits rank as the probabilities do.
    """
    count = np.asarray(num_samples, dtype=np.float64)
    count = count[np.isfinite(count) & (count > 0)]
    return 0.5 / (float(count.min()) + 1.0) if count.size else CLIP


def brier(outcome: npt.ArrayLike, probability: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """Weighted mean of (p - y)^2, float64[B]."""
    truth, p = np.asarray(outcome, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    return _mean((p - truth) ** 2, as_weights(weights, truth.size))


def _mean(values: Array, weights: Array) -> Array:
    total = weights.sum(axis=1)
    return np.divide(weights @ values, total, out=np.full(total.shape, np.nan), where=total > 0)


def prevalence(outcome: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """Weighted share of positives, float64[B]."""
    truth = np.asarray(outcome, dtype=np.float64)
    return _mean(truth, as_weights(weights, truth.size))


def _two_classes(truth: Array, weights: Array) -> npt.NDArray[np.bool_]:
    return (weights @ truth > 0) & (weights @ (1 - truth) > 0)


def intercept(outcome: npt.ArrayLike, linear_predictor: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """Calibration in the large: a in logit(y) = a + lp, by Newton, float64[B].

    At a = 0 the mean of the risks is the outcome's share. A risk of 0 or 1 (lp infinite) stays what it is, whatever a: kept away from there, the many
    shares of 0 in so many futures of a rare outcome would count as risks. NaN where a weighting has one class only, or the other risks cannot make up
    the outcome's share.
    """
    truth, lp = np.asarray(outcome, dtype=np.float64), np.asarray(linear_predictor, dtype=np.float64)
    every = as_weights(weights, truth.size)
    share, least, most = every @ truth, every @ (lp == np.inf), every @ (lp > -np.inf)
    fine = _two_classes(truth, every) & (least < share) & (share < most)
    a = np.zeros(every.shape[0])
    for _ in range(_STEPS):
        p = _sigmoid(a[:, None] + lp)
        gradient, curvature = (every * (truth - p)).sum(axis=1), (every * p * (1 - p)).sum(axis=1)
        step = np.divide(gradient, curvature, out=np.zeros_like(a), where=fine & (curvature > 1e-12))
        a = a + np.clip(step, -2, 2)
        if np.abs(step).max(initial=0.0) < 1e-10:
            break
    # Of risks as near to 0 or 1 as numbers can be there is no slope to follow: what is not found is not told.
    missed = np.abs((every * (truth - _sigmoid(a[:, None] + lp))).sum(axis=1)) > 1e-6 * every.sum(axis=1)
    return np.where(fine & ~missed, a, np.nan)


def slope(outcome: npt.ArrayLike, linear_predictor: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """b in logit(y) = a + b lp, float64[B]; NaN where it is not defined, see `line`."""
    return line(outcome, linear_predictor, weights)[1]


def line(outcome: npt.ArrayLike, linear_predictor: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> tuple[Array, Array]:
    """a and b in logit(y) = a + b lp, by Newton, float64[B] each.

    NaN where they are not defined: one class only, one prediction only, or predictions that separate the classes perfectly.
    """
    truth, lp = np.asarray(outcome, dtype=np.float64), np.asarray(linear_predictor, dtype=np.float64)
    every = as_weights(weights, truth.size)
    if truth.size == 0 or np.ptp(lp) == 0:
        return np.full(every.shape[0], np.nan), np.full(every.shape[0], np.nan)
    centre, scale = lp.mean(), lp.std()
    x = (lp - centre) / scale
    # Replicates start from the solution of their mean, and are there after a few steps.
    a, b, _ = _newton(truth, x, every.mean(axis=0, keepdims=True), 0.0, 0.0)
    a, b, settled = _newton(truth, x, every, float(a[0]), float(b[0]))
    there = _two_classes(truth, every) & settled
    return np.where(there, a - b * centre / scale, np.nan), np.where(there, b / scale, np.nan)


def _newton(truth: Array, x: Array, weights: Array, a0: float, b0: float) -> tuple[Array, Array, npt.NDArray[np.bool_]]:
    """Weighted logistic regression on one standardised predictor, many weightings at once: a[B], b[B], settled[B]."""
    a, b = np.full(weights.shape[0], a0), np.full(weights.shape[0], b0)
    settled = np.zeros(weights.shape[0], dtype=bool)
    for _ in range(_STEPS):
        p = _sigmoid(a[:, None] + b[:, None] * x)
        residual, spread = weights * (truth - p), weights * p * (1 - p)
        ga, gb = residual.sum(axis=1), residual @ x
        haa, hab, hbb = spread.sum(axis=1), spread @ x, spread @ (x * x)
        determinant = haa * hbb - hab * hab
        fine = determinant > 1e-12 * np.maximum(haa * hbb, 1e-300)
        safe = np.where(fine, determinant, 1.0)
        da = np.where(fine, (hbb * ga - hab * gb) / safe, 0.0)
        db = np.where(fine, (haa * gb - hab * ga) / safe, 0.0)
        a, b = a + np.clip(da, -2, 2), b + np.clip(db, -2, 2)
        # A weighting whose classes are separated runs away: what has not settled is not defined.
        settled = fine & (np.abs(da) < 1e-6) & (np.abs(db) < 1e-6)
        if max(np.abs(da).max(initial=0.0), np.abs(db).max(initial=0.0)) < 1e-10:
            break
    return a, b, settled


def _sigmoid(x: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def bins_of(probability: npt.ArrayLike, *, bins: int = 10) -> npt.NDArray[np.int64]:
    """Bin of each row, bins of equal mass; rows with the same probability share a bin (so there may be fewer bins)."""
    p = np.asarray(probability, dtype=np.float64)
    if p.size == 0:
        return np.zeros(0, dtype=np.int64)
    last = -(-np.arange(1, bins) * p.size // bins) - 1  # place of each bin's last row among the sorted
    edges = np.unique(np.sort(p)[np.maximum(last, 0)])
    place = np.searchsorted(edges, p, side="left")
    return np.unique(place, return_inverse=True)[1].astype(np.int64)


def _by_bin(values: Array, weights: Array, place: npt.NDArray[np.int64]) -> Array:
    member = np.zeros((place.size, int(place.max()) + 1))
    member[np.arange(place.size), place] = values
    return weights @ member


def ece(outcome: npt.ArrayLike, probability: npt.ArrayLike, weights: npt.ArrayLike | None = None, *, bins: int = 10) -> Array:
    """Expected calibration error over bins of equal mass: mean over rows of |observed - predicted| of their bin, float64[B]."""
    truth, p = np.asarray(outcome, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    every = as_weights(weights, truth.size)
    if truth.size == 0:
        return np.full(every.shape[0], np.nan)
    place = bins_of(p, bins=bins)
    total = every.sum(axis=1)
    gap = np.abs(_by_bin(truth, every, place) - _by_bin(p, every, place)).sum(axis=1)
    return np.divide(gap, total, out=np.full(total.shape, np.nan), where=total > 0)


def calibration_curve(
    outcome: npt.ArrayLike,
    probability: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    bins: int = 10,
    subject_id: npt.ArrayLike | None = None,
    replicates: int = 1000,
    seed: int = 0,
) -> list[dict[str, float]]:
    """One mapping per bin of equal mass, in order.

    Args:
        outcome, probability, weights: float[n].
        bins: how many, where no risks tie.
        subject_id: int[n], the patient of each row; None: each row is another one.
        replicates, seed: of the bootstrap by patient.

    Returns:
        `predicted`, `observed` (weighted means), `rows`, `subjects`, and 95% limits of what was observed, `lower`, `upper`: by the bootstrap, or
        Wilson's on the number of patients where a bin has one class only (no resample of such a bin ever differs).
    """
    truth, p = np.asarray(outcome, dtype=np.float64), np.asarray(probability, dtype=np.float64)
    once = as_weights(weights, truth.size)[0]
    if truth.size == 0:
        return []
    patient = np.arange(truth.size) if subject_id is None else np.asarray(subject_id)
    place = bins_of(p, bins=bins)
    mass = _by_bin(np.ones_like(p), once[None, :], place)[0]

    def observed(every: Array) -> Array:
        total = _by_bin(np.ones_like(p), every, place)
        return np.divide(_by_bin(truth, every, place), total, out=np.full(total.shape, np.nan), where=total > 0)

    share, lower, upper = bootstrap_curve(observed, patient, weights=once, replicates=replicates, seed=seed)
    curve = []
    for index in np.flatnonzero(mass > 0):
        inside = place == index
        subjects = np.unique(patient[inside]).size
        low, high = (lower[index], upper[index]) if 0 < share[index] < 1 and replicates else _wilson(share[index], subjects)
        values = {
            "predicted": np.average(p[inside], weights=once[inside]),
            "observed": share[index],
            "rows": inside.sum(),
            "subjects": subjects,
            "lower": min(low, share[index]),
            "upper": max(high, share[index]),
        }
        curve.append({name: float(value) for name, value in values.items()})
    return curve


def _wilson(share: float, count: float) -> tuple[float, float]:
    """95% limits of a share of so many."""
    z = 1.959963984540054
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half
