"""A token store's arrays as the report reads them: memory-mapped, in chunks, summed; never held whole.

The report sees files and not the package that wrote them, so the names of the arrays and the numbers of the kinds stand here again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

# Twin of timeline.kinds.Kind; the numbers are part of the stored vocabulary.
KINDS = {
    "prompt": (1, 2, 3, 4, 5, 6, 7), "visit structure": (8, 9, 10, 11, 12, 13), "time between visits": (14, 15, 16), "time inside visits": (17, 18),
    "plain codes": (19,), "codes with a value bin": (20,), "labs": (27,), "bins of labs": (28,),
    "codes with a category": (21,), "death and end": (22, 23), "intensive care": (24, 25), "lengths of drugs": (26,),
}  # fmt: skip
TIME_KINDS = (*KINDS["time between visits"], *KINDS["time inside visits"])
VISIT_START = 8
SPLITS = ("train", "tuning", "held_out")

_PROMPT_TOKENS = 7
_CHUNK = 1 << 23
_MINUTES_PER_YEAR = 365.25 * 1440


@dataclass(frozen=True)
class Store:
    """One token store.

    Attributes:
        folder: where it is.
        offsets: int64[S+1]; history i is tokens `offsets[i]:offsets[i+1]`.
    """

    folder: Path
    offsets: npt.NDArray[np.int64]

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens per history, [S]."""
        return np.diff(self.offsets)

    def array(self, name: str, length: int | None = None) -> npt.NDArray[Any] | None:
        """A memory map, or None where it is missing, damaged or of another length."""
        try:
            found = np.load(self.folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return found if found.shape == (len(self.lengths) if length is None else length,) else None

    def in_split(self, name: str) -> npt.NDArray[np.bool_] | None:
        """Histories of a split, [S]; None where the store does not say."""
        found = self.array("split")
        return None if found is None else np.asarray(found == SPLITS.index(name))

    def counts(self, size: int) -> npt.NDArray[np.int64] | None:
        """How often each of `size` tokens stands in the store."""
        tokens = self.array("token_id", int(self.offsets[-1]))
        if tokens is None:
            return None
        total = np.zeros(size, dtype=np.int64)
        for start in range(0, len(tokens), _CHUNK):
            total += np.bincount(np.clip(tokens[start : start + _CHUNK], 0, size - 1), minlength=size)
        return total

    def visits(self, starts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
        """Visits per history, [S]: how often one of the tokens `starts` stands in it."""
        tokens = self.array("token_id", int(self.offsets[-1]))
        if tokens is None:
            return None
        total = np.zeros(len(self.lengths), dtype=np.int64)
        for start in range(0, len(tokens), _CHUNK):
            places = start + np.flatnonzero(np.isin(tokens[start : start + _CHUNK], starts))
            total += np.bincount(np.searchsorted(self.offsets, places, side="right") - 1, minlength=len(total))
        return total

    def years(self) -> npt.NDArray[np.float64] | None:
        """Years from the first event to the last, [S]; NaN of an empty history."""
        age = self.array("age_minutes", int(self.offsets[-1]))
        if age is None:
            return None
        found = np.full(len(self.lengths), np.nan)
        full = self.lengths > _PROMPT_TOKENS
        last, first = self.offsets[1:][full] - 1, self.offsets[:-1][full] + _PROMPT_TOKENS - 1
        found[full] = (np.asarray(age[last], dtype=np.int64) - np.asarray(age[first], dtype=np.int64)) / _MINUTES_PER_YEAR
        return found


def open_store(folder: Path) -> Store | None:
    """The store in a folder, or None where there is none that can be read."""
    try:
        offsets = np.asarray(np.load(folder / "offsets.npy", mmap_mode="r", allow_pickle=False), dtype=np.int64)
    except (OSError, ValueError, EOFError):
        return None
    return Store(folder, offsets) if offsets.ndim == 1 and len(offsets) else None
