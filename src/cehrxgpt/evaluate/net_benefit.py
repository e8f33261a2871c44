"""What a decision by the predicted risk is worth: net benefit and decision curves.

At a threshold t somebody is treated whose risk is at least t, and a false alarm is thought to cost t / (1 - t) of what a case found is
worth. The net benefit (Vickers and Elkin 2006, Medical Decision Making 26:565) is true positives less false positives at that price, per
row. It is compared with treating everybody, and nobody (0).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.evaluate.discrimination import Array, as_weights

THRESHOLDS = tuple(round(step / 1000, 3) for step in [*range(1, 10), *range(10, 1000, 10)])
"""0.001 to 0.009 (rare outcomes), then 0.01 to 0.99."""


def net_benefit(
    outcome: npt.ArrayLike, probability: npt.ArrayLike, thresholds: npt.ArrayLike = THRESHOLDS, weights: npt.ArrayLike | None = None
) -> Array:
    """Net benefit of treating those with `probability >= threshold`, float64[B, m].

    Args:
        outcome: bool[n].
        probability: float[n].
        thresholds: float[m], in (0, 1).
        weights: float64[B, n], float64[n] or None.
    """
    truth, p = np.asarray(outcome, dtype=bool), np.asarray(probability, dtype=np.float64)
    at = np.asarray(thresholds, dtype=np.float64)
    every = as_weights(weights, truth.size)
    order = np.argsort(-p, kind="stable")
    treated = np.searchsorted(-p[order], -at, side="right")
    ordered, cases = every[:, order], truth[order]
    nobody = np.zeros((every.shape[0], 1))
    true_positives = np.concatenate([nobody, np.cumsum(ordered * cases, axis=1)], axis=1)[:, treated]
    false_positives = np.concatenate([nobody, np.cumsum(ordered * ~cases, axis=1)], axis=1)[:, treated]
    total = every.sum(axis=1, keepdims=True)
    return np.divide(true_positives - false_positives * (at / (1 - at)), total, out=np.full(true_positives.shape, np.nan), where=total > 0)


def treat_all(outcome: npt.ArrayLike, thresholds: npt.ArrayLike = THRESHOLDS, weights: npt.ArrayLike | None = None) -> Array:
    """Net benefit of treating everybody, float64[B, m]."""
    return net_benefit(outcome, np.ones(np.asarray(outcome).size), thresholds, weights)
