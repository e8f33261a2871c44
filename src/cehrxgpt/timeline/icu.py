"""Stays in intensive care as `[ICU] ... [/ICU]`: each belongs to a span visit, lies inside its hours, and overlaps no other. NumPy only.

Rows outside every span visit are set aside and counted (the ingest has turned them into plain events before). Stays that overlap, or of
which one ends in the hour in which the next begins, are one: a transfer from unit to unit is no discharge, and the sentence nests once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.timeline.units import OPEN, Int, Loose, Units

_WIDTH = np.int64(1 << 28)  # room for one unit's hours in a sort key


@dataclass(frozen=True)
class IcuRows:
    """Rows of stays: where and when they begin (`begun`), and the hour they end, OPEN where that is not known."""

    begun: Loose
    end: Int


@dataclass(frozen=True)
class IcuStays:
    """Stays as they are written, in order of unit and start. All [k]."""

    unit: Int
    start: Int  # hour
    end: Int  # hour; OPEN where it has not ended
    row: Int  # the row that begins it

    @classmethod
    def build(cls, rows: IcuRows, units: Units) -> IcuStays:
        """Those inside span visits, clamped to their visit and merged."""
        inside = units.icu_unit >= 0
        unit, start, row = units.icu_unit[inside], units.icu_hour[inside], rows.begun.row[inside]
        end = np.minimum(np.maximum(rows.end[inside], start), units.end[unit])
        order = np.lexsort((row, end, start, unit))
        unit, start, end, row = unit[order], start[order], end[order], row[order]
        reach = np.maximum.accumulate(unit * _WIDTH + end) if len(unit) else unit
        fresh = np.ones(len(unit), np.bool_)
        fresh[1:] = (unit * _WIDTH + start)[1:] > reach[:-1]
        first = np.flatnonzero(fresh)
        last = reach[np.append(first[1:], len(unit)) - 1] - unit[first] * _WIDTH if len(first) else first
        return cls(unit[first], start[first], last, row[first])

    def earlier(self, shift: Int) -> IcuStays:
        """Moved with their units: `shift` hours of each unit."""
        own = shift[self.unit]
        return IcuStays(self.unit, self.start - own, np.where(self.end < OPEN, self.end - own, self.end), self.row)


def members(stays: IcuStays, start: int, end: int) -> tuple[Int, Int, Int, Int, npt.NDArray[np.int32]]:
    """What is written for them: unit, hour, turn within the hour (0 = before all events, 2 = after them), row (-1 = none) and token."""
    closed = stays.end < OPEN
    unit = np.concatenate([stays.unit, stays.unit[closed]])
    hour = np.concatenate([stays.start, stays.end[closed]])
    count, ends = len(stays.unit), int(closed.sum())
    turn = np.repeat(np.array([0, 2], np.int64), (count, ends))
    row = np.concatenate([stays.row, np.full(ends, -1, np.int64)])
    return unit, hour, turn, row, np.repeat(np.array([start, end], np.int32), (count, ends))
