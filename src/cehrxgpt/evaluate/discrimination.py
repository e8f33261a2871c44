"""AUROC and average precision, weighted, for many weightings at once.

Why our own: the bootstrap wants a thousand weightings of the same scores. Scores are sorted once; a weighting is a row of numbers
(how often each row was drawn, times its censoring weight), and a statistic is a few cumulative sums along the rows: O(B n) for B
weightings of n rows, no Python loop over replicates. Ties count half (AUROC) or enter together (average precision), as in
scikit-learn.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]


def as_weights(weights: npt.ArrayLike | None, rows: int) -> Array:
    """Weightings as float64[B, n]; ones if None."""
    if weights is None:
        return np.ones((1, rows))
    array = np.asarray(weights, dtype=np.float64)
    return array[None, :] if array.ndim == 1 else array


def _tied_sums(outcome: npt.NDArray[np.bool_], score: Array, weights: Array, *, descending: bool) -> tuple[Array, Array]:
    """Weight of positives and of negatives at each distinct score, [B, G], in order of score."""
    order = np.argsort(-score if descending else score, kind="stable")
    ordered = score[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    sorted_weights, positive = weights[:, order], outcome[order]
    positives = np.add.reduceat(sorted_weights * positive, starts, axis=1)
    negatives = np.add.reduceat(sorted_weights * ~positive, starts, axis=1)
    return positives, negatives


def auroc(outcome: npt.ArrayLike, score: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """Probability that a positive scores higher than a negative, ties half.

    Args:
        outcome: bool[n].
        score: float[n], finite.
        weights: float[B, n], float[n] or None.

    Returns:
        float64[B]; NaN where a weighting has only one class.
    """
    truth, values = np.asarray(outcome, dtype=bool), np.asarray(score, dtype=np.float64)
    every = as_weights(weights, truth.size)
    if truth.size == 0:
        return np.full(every.shape[0], np.nan)
    positives, negatives = _tied_sums(truth, values, every, descending=False)
    below = np.cumsum(negatives, axis=1) - negatives
    pairs = positives.sum(axis=1) * negatives.sum(axis=1)
    wins = (positives * (below + 0.5 * negatives)).sum(axis=1)
    return np.divide(wins, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def auprc(outcome: npt.ArrayLike, score: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """Average precision: the mean, over positives, of the precision at their score. Shapes as for `auroc`; NaN without positives."""
    truth, values = np.asarray(outcome, dtype=bool), np.asarray(score, dtype=np.float64)
    every = as_weights(weights, truth.size)
    if truth.size == 0:
        return np.full(every.shape[0], np.nan)
    positives, negatives = _tied_sums(truth, values, every, descending=True)
    found = np.cumsum(positives, axis=1)
    named = found + np.cumsum(negatives, axis=1)
    precision = np.divide(found, named, out=np.zeros_like(found), where=named > 0)
    total = positives.sum(axis=1)
    return np.divide((positives * precision).sum(axis=1), total, out=np.full(total.shape, np.nan), where=total > 0)
