"""Time to event, censored, death competing: concordance and the integrated Brier score, for many weightings at once.

Each row has the time at which something was known of it and how it ended: with the outcome, with an event that competes (death: the
outcome cannot come any more), free of both at the end of its window, or lost before. Rows that are lost are stood for by others like
them: everything is weighted by the inverse of the Kaplan-Meier chance G of being still observed. Where windows differ in length, as those of
stays do, one that has closed is like a competing event: the outcome cannot come any more.

- `concordance` is Uno's C (Uno et al. 2011, Statistics in Medicine 30:1105) with competing risks as in Wolbers et al. 2014
  (Biostatistics 15:526): of a subject with the outcome at t and one who is free of it then, or who has died without it before, how
  often has the first the higher risk? Pairs are truncated at the horizon, as labels are.
- `integrated_brier` is the mean over the horizon of the Brier score of cumulative incidences (Graf et al. 1999, Statistics in Medicine
  18:2529), a competing event being a lasting "no" (Schoop et al. 2011, Biometrical Journal 53:88).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.evaluate.bootstrap import LARGEST_WEIGHT, censoring_survival
from cehrxgpt.evaluate.discrimination import Array, as_weights

Int = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]

_BREATH = 1e-6  # relative: float32 labels of one window differ by as much
OUTCOME, COMPETING, FREE, LOST = range(4)
"""How a row ends: FREE at its window's close, LOST from sight before; no other value."""


def ending(end_reason: npt.ArrayLike) -> Int:
    """`end_reason` of labels as OUTCOME, COMPETING (death, or another event after which the outcome does not count), FREE or LOST."""
    known = {"outcome": OUTCOME, "horizon": FREE, "censored": LOST}
    return np.array([known.get(str(reason), COMPETING) for reason in np.asarray(end_reason)], dtype=np.int64)


@dataclass(frozen=True)
class FollowUp:
    """What became of n rows.

    Attributes:
        days: float64[n], from the prediction time to the outcome, the competing event, the window's close or the loss.
        end: int64[n], OUTCOME, COMPETING, FREE or LOST; COMPETING too where a window closed before the longest time of all.
        weight: float64[n], 1 / G(days-), at most LARGEST_WEIGHT; 1 where nobody is lost.
        survival: G(t-) as a function float[m] -> float64[m].
    """

    days: Array
    end: Int
    weight: Array
    survival: Callable[[npt.ArrayLike], Array]

    @classmethod
    def of(cls, days: npt.ArrayLike, end: npt.ArrayLike, *, weighted: bool = True) -> FollowUp:
        """Estimate G on these rows; `weighted=False` takes G as 1."""
        time, how = np.asarray(days, dtype=np.float64), np.asarray(end, dtype=np.int64)
        how = np.where((how == FREE) & (time < time.max(initial=0) * (1 - _BREATH)), COMPETING, how)
        lost = how == LOST if weighted else np.zeros(time.size, dtype=bool)
        before = censoring_survival(time, lost)
        return cls(time, how, _inverse(before(time)), before)

    def take(self, rows: npt.ArrayLike) -> FollowUp:
        """Some of the rows, with the weights that they have among all."""
        chosen = np.asarray(rows)
        return FollowUp(self.days[chosen], self.end[chosen], self.weight[chosen], self.survival)


def _inverse(chance: Array) -> Array:
    return np.minimum(1.0 / np.maximum(chance, 1e-12), LARGEST_WEIGHT)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of rows (a, b) that share a node, where each a looks for the b of lower risk.

    Attributes:
        a: int64[A], rows.
        b: int64[M], rows, by node and risk.
        start, low, high, end: int64[A]; in `b`, a's node begins at `start` and ends before `end`, those of lower risk end before `low`, those of
            equal risk before `high`.
    """

    a: Int
    b: Int
    start: Int
    low: Int
    high: Int
    end: Int

    @classmethod
    def of(cls, a: Int, b: Int, node: Int, risk: Int) -> _Pairs:
        """Of rows a and b; node and risk (a rank from 0 on) are of all rows."""
        ranks = int(risk.max(initial=0)) + 1
        ordered = b[np.argsort(node[b] * ranks + risk[b], kind="stable")]
        key = node[ordered] * ranks + risk[ordered]
        first = node[a] * ranks
        start, end = np.searchsorted(key, first), np.searchsorted(key, first + ranks)
        low, high = np.searchsorted(key, first + risk[a], side="left"), np.searchsorted(key, first + risk[a], side="right")
        some = end > start
        return cls(a[some], ordered, start[some], low[some], high[some], end[some])

    def sums(self, of: Array, over: Array) -> tuple[Array, Array]:
        """Sums of of_a * over_b, float64[B] each: of the pairs that a wins, ties half, and of all. `of`, `over`: float64[B, n]."""
        total = np.zeros((over.shape[0], self.b.size + 1))
        np.cumsum(np.take(over, self.b, axis=1), axis=1, out=total[:, 1:])
        start, low, high, end = (np.take(total, place, axis=1) for place in (self.start, self.low, self.high, self.end))
        mine = np.take(of, self.a, axis=1)
        return (mine * (0.5 * (low + high) - start)).sum(axis=1), (mine * (end - start)).sum(axis=1)


class Concordance:
    """C of one vector of risks; the order of rows is prepared once, a weighting then costs O(n log n).

    Two rows are comparable if the one has the outcome at t, and the other is seen free of it at t, or has had a competing event by t.
    At one instant competing events come first, then outcomes, then losses and closes; two outcomes at one instant are not compared.

    How: times are ranked, and two different ranks part at exactly one bit, the highest in which they differ. So each pair is counted once,
    at that bit, between the rows that share all higher bits; there, cumulative sums along the order of risks count it with all others.

    Args:
        follow: of the rows.
        risk: float[n], finite; the higher, the sooner or the likelier.
    """

    def __init__(self, follow: FollowUp, risk: npt.ArrayLike):
        self._size, self._weight = follow.days.size, follow.weight
        self._outcome, self._competing = follow.end == OUTCOME, follow.end == COMPETING
        _, score = np.unique(np.asarray(risk, dtype=np.float64), return_inverse=True)
        kind = np.select([self._competing, self._outcome], [0, 1], 2)
        _, rank = np.unique(np.stack([follow.days, kind.astype(np.float64)]), axis=1, return_inverse=True)
        rank, score = rank.reshape(-1).astype(np.int64), score.astype(np.int64)
        last = rank == rank.max(initial=0)  # mostly the many who are free at the close: one step of their own
        self._later = [_Pairs.of(np.flatnonzero(self._outcome & ~last), np.flatnonzero(last), np.zeros_like(rank), score)]
        self._gone = []
        for bit in range(int(rank.max(initial=0)).bit_length()):
            node, late = rank >> (bit + 1), (rank >> bit & 1).astype(bool)
            self._later.append(_Pairs.of(np.flatnonzero(self._outcome & ~late), np.flatnonzero(late & ~last), node, score))
            self._gone.append(_Pairs.of(np.flatnonzero(self._outcome & late), np.flatnonzero(self._competing & ~late), node, score))
        self._later, self._gone = ([pairs for pairs in some if pairs.a.size] for some in (self._later, self._gone))

    def __call__(self, weights: npt.ArrayLike | None = None) -> Array:
        """float64[B]; weights: float64[B, n] (how often each row was drawn; those for censoring are inside). NaN without a pair."""
        every = as_weights(weights, self._size)
        once = every * self._weight  # the outcome at t, or the competing event: 1 / G(t-)
        twice = once * self._weight  # the outcome at t, beside somebody seen at t: 1 / G(t-) squared
        sums = [pairs.sums(twice, every) for pairs in self._later] + [pairs.sums(once, once) for pairs in self._gone]
        won, pairs = (np.sum([one[place] for one in sums], axis=0) + np.zeros(every.shape[0]) for place in (0, 1))
        return np.divide(won, pairs, out=np.full(pairs.shape, np.nan), where=pairs > 0)


def concordance(days: npt.ArrayLike, end: npt.ArrayLike, risk: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> Array:
    """C-index of n rows, float64[B]; see `Concordance`. Arguments: float[n], int[n], float[n], float64[B, n] or None."""
    return Concordance(FollowUp.of(days, end), risk)(weights)


class IntegratedBrier:
    """Mean over (0, tau] of the Brier score of cumulative incidences.

    BS(t) = sum_i W_i(t) (1[outcome by t] - F_i(t))^2 / sum_i W_i(t); W is 1 / G(T_i-) for who had an outcome or a competing event by t,
    1 / G(t-) for who is seen free at t, 0 for who was lost before. The integral is by trapezia, from BS(0) = 0 on.

    Args:
        follow: of the rows.
        grid: float[m], days, increasing, above 0; the last is tau.
        incidence: float[n, m], the chance of the outcome by each of them.
    """

    def __init__(self, follow: FollowUp, grid: npt.ArrayLike, incidence: npt.ArrayLike):
        at = np.asarray(grid, dtype=np.float64)
        happened = (follow.days[:, None] <= at) & np.isin(follow.end, (OUTCOME, COMPETING))[:, None]
        # Seen free at the very end counts, as for G(t-); the ends of float32 labels lie a breath beside their window's close.
        free = ~happened & (follow.days[:, None] >= at * (1 - _BREATH))
        self._mass = np.where(happened, follow.weight[:, None], np.where(free, _inverse(follow.survival(at))[None, :], 0.0))
        truth = happened & (follow.end == OUTCOME)[:, None]
        self._error = self._mass * (truth - np.asarray(incidence, dtype=np.float64)) ** 2
        self._grid = at

    def scores(self, weights: npt.ArrayLike | None = None) -> Array:
        """BS at each time of the grid, float64[B, m]; NaN where nobody is seen."""
        every = as_weights(weights, self._mass.shape[0])
        mass = every @ self._mass
        return np.divide(every @ self._error, mass, out=np.full(mass.shape, np.nan), where=mass > 0)

    def __call__(self, weights: npt.ArrayLike | None = None) -> Array:
        """float64[B]."""
        scores = self.scores(weights)
        wide = np.concatenate([np.zeros((scores.shape[0], 1)), scores], axis=1)
        steps = np.diff(self._grid, prepend=0.0)
        return (0.5 * (wide[:, 1:] + wide[:, :-1]) * steps).sum(axis=1) / self._grid[-1]
