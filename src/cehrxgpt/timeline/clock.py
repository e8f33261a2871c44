"""The clock of many sentences at once: what `Grammar.advance` does token by token, in as many steps as one row has time tokens.

NumPy only. Rows are ragged (flat arrays and offsets) and may go on from any state; anything but a time token leaves the clock alone.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cehrxgpt.timeline.grammar import HOUR_OF_DAY_PHASES
from cehrxgpt.timeline.kinds import TIME_KINDS, Kind
from cehrxgpt.timeline.time import DAYS_PER_YEAR, LONG_GAP_DAYS, MINUTES_PER_DAY, MINUTES_PER_HOUR

Int = npt.NDArray[np.int64]

_HOURS_OF_DAY_AFTER = (Kind.VISIT_TYPE, Kind.STAY_DAY, Kind.IN_VISIT_DAYS)  # i-H sets the hour of the day after these, else adds


def _days(kind: npt.NDArray[np.int8], amount: Int) -> Int:
    """Whole days that each time token moves the clock by (0: hours, or D0)."""
    days = np.where((kind == Kind.DAY_GAP) | (kind == Kind.IN_VISIT_DAYS), amount, 0)
    days = np.where(kind == Kind.YEAR_GAP, amount * DAYS_PER_YEAR, days)
    return np.where(kind == Kind.LONG_GAP, LONG_GAP_DAYS, days)


def run_clock(
    kind: npt.NDArray[np.int8], amount: npt.NDArray[np.integer], offsets: Int, start_clock: Int, start_phase: npt.NDArray[np.integer]
) -> Int:
    """Minutes on the clock once each token has been read, int64[N].

    Args:
        kind, amount: [N], of every token.
        offsets: int64[R + 1].
        start_clock: int64[R]; minutes before each row's first token.
        start_phase: [R]; `Phase` before each row's first token.
    """
    rows = len(offsets) - 1
    row = np.repeat(np.arange(rows), np.diff(offsets))
    timed = np.flatnonzero(np.isin(kind, [int(k) for k in TIME_KINDS]))
    before = np.concatenate([[-1], kind[:-1]])[timed] if len(kind) else timed
    of_day = np.isin(before, [int(k) for k in _HOURS_OF_DAY_AFTER])
    first = timed == offsets[row[timed]] if len(timed) else np.zeros(0, np.bool_)
    of_day = np.where(first, np.isin(start_phase[row[timed]], [int(phase) for phase in HOUR_OF_DAY_PHASES]), of_day)
    days = _days(kind[timed], amount[timed].astype(np.int64))
    minutes = np.where(kind[timed] == Kind.IN_VISIT_HOURS, amount[timed].astype(np.int64) * MINUTES_PER_HOUR, 0)

    count = np.bincount(row[timed], minlength=rows)
    begin = np.cumsum(count) - count
    longest_first = np.argsort(-count, kind="stable")
    ascending = np.sort(count)
    clock, at = start_clock.astype(np.int64).copy(), np.empty(len(timed), np.int64)
    for step in range(int(count.max()) if rows else 0):
        active = longest_first[: rows - int(np.searchsorted(ascending, step, side="right"))]
        place = begin[active] + step
        now = clock[active]
        midnight = now // MINUTES_PER_DAY * MINUTES_PER_DAY
        hours = np.where(of_day[place], np.maximum(now, midnight + minutes[place]), now + minutes[place])
        now = np.where(days[place] > 0, midnight + days[place] * MINUTES_PER_DAY, hours)
        clock[active], at[place] = now, now

    last = np.full(len(kind), -1, np.int64)
    last[timed] = np.arange(len(timed))
    last = np.maximum.accumulate(last) if len(last) else last
    mine = last >= begin[row] if len(row) else np.zeros(0, np.bool_)
    if not len(timed):
        return start_clock[row].astype(np.int64)
    return np.where(mine, at[np.maximum(last, 0)], start_clock[row])
