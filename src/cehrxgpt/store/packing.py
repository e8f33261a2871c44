"""Which windows share a batch, and where they stand in it. NumPy only; nothing here reads a token.

An epoch is a permutation of the windows, drawn from (seed, epoch), cut into batches of like real size:

    rows     (CPU) the permutation is cut into pools, each pool sorted by length, odd pools falling and even ones rising so that
             neighbours stay alike, and the line is cut every `tokens_per_batch` tokens or so. One window per row; rows of a batch are of
             like length, so padding is a few percent and plain causal attention is exact.
    packed   (accelerator) the permutation is cut as it stands and the windows of each batch are packed, longest first into the
             first row with room, into rows of `width` places. Padding is what first-fit leaves.

Either way the order of batches is drawn too, and their number is the same in every epoch, so that a step number says which epoch and batch it is
without replaying what came before; the line is cut into so many like parts. Cost: two sorts of the windows per epoch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

POOL_BATCHES = 64  # batches' worth of windows sorted together: larger pads less, smaller mixes lengths better
_ORDER, _BATCHES = 0, 1  # what a stream of random numbers is for


def generator(seed: int, *key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, *key])))


@dataclass(frozen=True)
class EpochPlan:
    """One epoch's batches.

    Attributes:
        order: int64[W]; windows, batch after batch.
        starts: int64[batches + 1]; batch b holds `order[starts[b] : starts[b + 1]]`.
    """

    order: npt.NDArray[np.int64]
    starts: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def batch(self, index: int) -> npt.NDArray[np.int64]:
        """The windows of one batch."""
        return self.order[self.starts[index] : self.starts[index + 1]]


def batches_per_epoch(lengths: npt.NDArray[np.int64], tokens_per_batch: int) -> int:
    """How many batches an epoch has: the same for every epoch."""
    return int(-(-int(lengths.sum()) // tokens_per_batch))


def _sorted_in_pools(order: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], pool_tokens: int) -> npt.NDArray[np.int64]:
    """The permutation with each pool sorted by length, by turns rising and falling."""
    pool = (np.cumsum(lengths[order]) - 1) // pool_tokens
    signed = np.where(pool % 2 == 0, lengths[order], -lengths[order])
    return order[np.lexsort((signed, pool))]


def plan_epoch(lengths: npt.NDArray[np.int64], *, batches: int, seed: int, epoch: int, packed: bool) -> EpochPlan:
    """Draw one epoch.

    Args:
        lengths: int64[W]; tokens that each window brings, W >= `batches`.
        batches: how many there are to be.
        packed: leave the order random instead of putting like lengths together.
    """
    order = generator(seed, epoch, _ORDER).permutation(len(lengths))
    total = int(lengths.sum())
    if not packed:
        order = _sorted_in_pools(order, lengths, max(POOL_BATCHES * total // batches, 1))
    # A window belongs to the batch its last token falls in. None is to be empty, however long the windows.
    begins = np.searchsorted(np.cumsum(lengths[order]), np.arange(batches + 1) * total / batches, side="right")
    least = np.arange(batches + 1)
    begins = np.minimum(np.maximum.accumulate(np.maximum(begins - least, 0)) + least, len(lengths) - batches + least)
    batch = np.repeat(np.arange(batches), np.diff(begins))
    shuffled = generator(seed, epoch, _BATCHES).permutation(batches)
    by_batch = np.argsort(shuffled[batch], kind="stable")
    starts = np.searchsorted(shuffled[batch][by_batch], np.arange(batches + 1))
    return EpochPlan(order[by_batch], starts.astype(np.int64))


def first_fit(lengths: npt.NDArray[np.int64], width: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Place segments in rows of `width`, longest first, each into the first row with room.

    Returns:
        row and first column of each segment, two int64[n]. Segments longer than `width` are the caller's mistake.
    """
    row = np.zeros(len(lengths), dtype=np.int64)
    column = np.zeros(len(lengths), dtype=np.int64)
    filled = np.zeros(len(lengths), dtype=np.int64)  # at most one row per segment
    for segment in np.argsort(-lengths, kind="stable"):
        target = int(np.argmax(filled + lengths[segment] <= width))
        row[segment], column[segment] = target, filled[target]
        filled[target] += lengths[segment]
    return row, column


def one_per_row(lengths: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The other layout: segment i in row i."""
    return np.arange(len(lengths), dtype=np.int64), np.zeros(len(lengths), dtype=np.int64)
