"""Counts of a page that may leave the house: one mechanism for all of them, whichever table they stand in.

Of real people no count of one to ten is told ("<11"), and every other count is rounded to tens (OpenSAFELY does so, by fives). A hidden
count could else be had back by subtraction: from the total and the other parts, in the same table or in another one. To know which figures
of a page are bound by which sums is beyond any list; rounding needs none. A rounded figure stands for ten counts, so what is left when
others are taken from it is known to nineteen or more, and a sum of rounded figures does not give a hidden count exactly. Shares are of the rounded
counts, since a share times its whole would undo them.

Nobody stands behind a simulated population: its counts are told as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cehrxgpt import schema as s

SMALL_CELL = s.SMALL_CELL
"""Codes of fewer subjects are never named, and cells of fewer are not told apart."""

UNDER = f"<{SMALL_CELL}"
BASE = 10
_COUNT = re.compile(r"\b\d[\d,]*(?= (?:rows|subjects|patients|events|visits|times)\b)")
_FIRST = f"{SMALL_CELL}–14"  # what rounds to ten and is not small

HOW = f"Counts of one to ten are written {UNDER} and all others are rounded to tens, so that no difference gives a small one away"
"""In words, for the page."""


def is_small(value: Any) -> bool:
    """1 to 10: nobody is no secret."""
    return isinstance(value, (int, float, np.number)) and bool(0 < value < SMALL_CELL)


def rounded(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """To tens, halves up; what is small becomes 0: for the heights of bars and the like."""
    given = np.asarray(values, dtype=np.float64)
    return np.where(given < SMALL_CELL, 0.0, np.floor((given + BASE / 2) / BASE) * BASE)


@dataclass(frozen=True)
class Teller:
    """Says counts.

    Attributes:
        exact: nobody real is counted, and nothing is hidden.
    """

    exact: bool = False

    def __call__(self, value: Any) -> str:
        """12,340; "<11" for 1 to 10, "11–14"; an en dash for what is no number."""
        said = self.figure(value)
        return f"{said:,}" if isinstance(said, int) else said

    def figure(self, value: Any) -> int | str:
        """The same for programs: a number where it is one."""
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
            return "–"
        whole = round(float(value))
        if self.exact or not whole:
            return whole
        return UNDER if is_small(whole) else _FIRST if whole < SMALL_CELL + 4 else int(rounded(whole))

    def text(self, sentence: str) -> str:
        """A sentence of an account ("all 181 rows were dropped") with its counts of rows and people told likewise."""
        return _COUNT.sub(lambda found: self(int(found[0].replace(",", ""))), sentence)

    def many(self, values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Counts to draw."""
        return np.asarray(values, dtype=np.float64) if self.exact else rounded(values)

    def ratio(self, part: Any, whole: Any) -> float | None:
        """Part of a whole; None where either is small, or what is left of the whole: the share would give it away."""
        if not whole or (not self.exact and (is_small(part) or is_small(whole) or is_small(whole - part))):
            return None
        return float(part / whole) if self.exact else min(1.0, float(rounded(part)) / float(rounded(whole)))

    def share(self, part: Any, whole: Any, digits: int = 1) -> str:
        """`ratio` as a percentage; empty where there is none."""
        found = self.ratio(part, whole)
        least = 10.0**-digits
        return "" if found is None else f"<{least:g}%" if 0 < 100 * found < least / 2 else f"{100 * found:.{digits}f}%"
