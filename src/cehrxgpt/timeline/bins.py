"""Value bins of one (code, unit): quantile edges, a bin for each heaped value, fixed edges, and no bin of too few patients.

1. bounds: the 1st and 99th percentile, pulled in until `TAIL_SUBJECTS` patients stand at or beyond them, so that nobody's
   extreme is stored; a fixed edge beyond them pushes them out to that patient's value, where `min_subjects` patients stand beyond it;
2. a value that makes up at least 1/`bins` of all gets an edge at itself and one at the next value above;
3. the rest is cut at quantiles into the bins that are left; fixed edges are added;
4. a bin with fewer than `min_subjects` patients merges with the smaller neighbour, across a fixed edge only when there is no
   other way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

TAIL_SUBJECTS = 5
FINE_SUBJECTS = 50  # bins of so many patients keep 11 quantiles, others 5


@dataclass(frozen=True)
class Bin:
    """low <= value < high (the last bin: <= high); the outer bins take everything beyond their bounds as well."""

    low: float
    high: float
    quantiles: Floats  # odd length, ends included; the middle one is the median
    subjects: int


def _bounds(values: Floats, subjects: npt.NDArray[np.int64], fixed: set[np.float32], min_subjects: int) -> tuple[np.float32, np.float32]:
    """Winsorised bounds of sorted `values`."""
    low, high = np.quantile(values, [0.01, 0.99], method="inverted_cdf")
    _, first = np.unique(subjects, return_index=True)  # each patient's smallest, as the values are sorted
    _, last = np.unique(subjects[::-1], return_index=True)
    smallest, largest = np.sort(values[first]), np.sort(values[::-1][last])[::-1]
    tail = min(TAIL_SUBJECTS, (len(first) + 1) // 2) - 1
    enough = min(max(min_subjects, 1), len(first)) - 1
    if any(smallest[enough] < edge <= low for edge in fixed):
        low = smallest[tail]
    if any(high < edge <= largest[enough] for edge in fixed):
        high = largest[tail]
    low, high = max(low, smallest[tail]), min(high, largest[tail])
    if low > high:
        low = high = np.quantile(values, 0.5, method="inverted_cdf")
    return np.float32(low), np.float32(high)


def _edges(values: Floats, bins: int) -> set[np.float32]:
    """Inner edges of sorted `values`: around heaps, and at quantiles of what is not heaped."""
    distinct, counts = np.unique(values, return_counts=True)
    heaped = counts * bins >= len(values)
    edges: set[np.float32] = set()
    for place in np.flatnonzero(heaped):
        edges.add(distinct[place])
        if place + 1 < len(distinct):
            edges.add(distinct[place + 1])
    rest = values[~np.isin(values, distinct[heaped])]
    parts = max(bins - int(heaped.sum()), 1)
    if len(rest) and parts > 1:
        edges.update(np.quantile(rest, np.arange(1, parts) / parts, method="inverted_cdf"))
    return edges


def _merge_small(edges: list[np.float32], values: Floats, subjects: npt.NDArray[np.int64], minimum: int, fixed: set[np.float32]) -> list[np.float32]:
    """Drop inner edges until every bin has `minimum` patients."""
    while edges:
        which = np.searchsorted(np.asarray(edges, dtype=np.float32), values, side="right")
        pairs = np.unique(np.stack([which, subjects]), axis=1)[0]
        sizes = np.bincount(pairs, minlength=len(edges) + 1)
        smallest = int(np.argmin(sizes))
        if sizes[smallest] >= minimum:
            break
        sides = [side for side in (smallest - 1, smallest) if 0 <= side < len(edges)]  # the edges below and above it
        sides.sort(key=lambda side: (edges[side] in fixed, sizes[side if side < smallest else side + 1]))
        del edges[sides[0]]
    return edges


def value_bins(values: Floats, subjects: npt.NDArray[np.int64], *, bins: int, min_subjects: int, fixed_edges: Sequence[float] = ()) -> list[Bin]:
    """Bins of one (code, unit), ascending.

    Args:
        values: float32[n], finite.
        subjects: int64[n], whose value it is.
        bins: quantile bins at most (heaps and fixed edges may add a few).
        min_subjects: patients that every bin must have.
        fixed_edges: values that should be edges.

    Returns:
        no bin at all where fewer than `min_subjects` patients have a value.
    """
    order = np.lexsort((subjects, values))
    values, subjects = values[order].astype(np.float32), subjects[order]
    if len(np.unique(subjects)) < max(min_subjects, 1):
        return []
    fixed = {np.float32(edge) for edge in fixed_edges}
    low, high = _bounds(values, subjects, fixed, min_subjects)
    edges = sorted(edge for edge in _edges(values, bins) | fixed if low < edge <= high)
    edges = _merge_small(edges, values, subjects, min_subjects, fixed)
    which = np.searchsorted(np.asarray(edges, dtype=np.float32), values, side="right")
    clipped = np.clip(values, low, high)
    made = []
    for place, (bottom, top) in enumerate(zip([low, *edges], [*edges, high], strict=True)):
        inside = clipped[which == place]
        count = len(np.unique(subjects[which == place]))
        points = np.quantile(inside.astype(np.float64), np.linspace(0, 1, 11 if count >= FINE_SUBJECTS else 5)).astype(np.float32)
        points[0] = bottom
        made.append(Bin(float(bottom), float(top), np.clip(points, bottom, inside.max()), count))
    return made
