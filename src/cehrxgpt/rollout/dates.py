"""Dates on which a drawn token counts: the whole dates of a forecast's window, each prompt's on its own clock."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.timeline.time import MINUTES_PER_DAY

Int = npt.NDArray[np.int64]


def last_minute(clock_minutes: Int) -> Int:
    """Of the date on which each clock stands."""
    return (clock_minutes // MINUTES_PER_DAY + 1) * MINUTES_PER_DAY - 1


@dataclass(frozen=True)
class Dates:
    """From one date to another, of P prompts.

    Attributes:
        first, last: int64[P], whole days on each prompt's clock, both included; where the last is before the first, none.
    """

    first: Int
    last: Int

    def hold(self, prompt: Int, clock_minutes: Int) -> npt.NDArray[np.bool_]:
        """Whether each of these clocks, of these prompts, stands on one of the dates; bool[R]."""
        date = clock_minutes // MINUTES_PER_DAY
        return (date >= self.first[prompt]) & (date <= self.last[prompt])

    def shifted(self, prompt: Int, minutes: Int) -> Dates:
        """For further prompts, whose clocks start so many minutes (whole days) later than those of `prompt`."""
        later = minutes // MINUTES_PER_DAY
        return Dates(self.first[prompt] - later, self.last[prompt] - later)
