"""Histories cut into units: span visits, day visits, bare days, death; vectorised over all histories of a frame at once.

A unit is what stands between two gap tokens. Hours are int64 counts since 1970-01-01 00:00 and already on the grid: inside a span
visit the hour, elsewhere the day. The rules, per history (docs/timeline.md has them in full):

    span visits   overlapping ones merge; the highest class names the whole, its end is the latest
    day visits    one date; one that begins inside a span visit merges with it, except on the date a longer span visit ends
    events        linked ones belong to their visit (clamped into its hours; over 24 h outside they come loose); loose ones inside
                  a span visit's hours join it; the others form bare days, split where a visit stands between them
    death         closes an open visit and is the last unit
    intensive care  goes with the span visit that it is linked to or lies in, by the rules for events, and makes no unit (see `icu`)
    clock         never runs back: a day-grid unit on the date the previous unit ended takes that unit's end as its time
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

HOURS_PER_DAY = 24
LINK_HOURS = 24  # a linked event this far outside its visit comes loose
OPEN = np.int64(1 << 26)  # hour of an end that is not known; beyond every date
_WIDTH = np.int64(1 << 28)  # room for one history's hours in a sort key
_LAST = np.int64(1 << 60)


class Unit(IntEnum):
    SPAN = 0
    DAY = 1
    BARE = 2
    DEATH = 3


@dataclass(frozen=True)
class Visits:
    """Visit rows, sorted by history, start, code, visit_id. All [v]."""

    history: Int
    start: Int  # hour
    end: Int  # hour, OPEN where unknown; not before start
    exact: Int  # start in microseconds: the order of day visits of one hour
    span: Bool
    rank: Int  # of the class, higher wins
    row: Int  # row of the frame


@dataclass(frozen=True)
class Loose:
    """Rows that become members of units (clinical rows in the vocabulary). All [m]."""

    history: Int
    hour: Int
    visit: Int  # index into Visits, -1 = unlinked
    row: Int


@dataclass(frozen=True)
class Units:
    """U units in order of history and time; members sorted by unit (not yet within)."""

    history: Int  # [U]
    kind: npt.NDArray[np.int8]  # [U]
    start: Int  # [U] hour of the clock when it begins
    end: Int  # [U] hour of the clock when it ends; OPEN where it has not ended
    row: Int  # [U] visit row or death row of the frame; -1 for bare days
    member: Int  # [M] index into Loose
    unit: Int  # [M] unit of each member, ascending
    hour: Int  # [M] on the grid
    unit_of_visit: Int  # [v] unit that each visit went into
    icu_unit: Int  # [k] span visit that each row of intensive care lies in, -1 = none
    icu_hour: Int  # [k] when it begins, on the grid and inside that visit


def _key(history: Int, hour: Int) -> Int:
    return history * _WIDTH + (hour + (_WIDTH >> 1))


def _last_before(keys: Int, key: Int) -> Int:
    """Index of the last of the sorted `keys` strictly below each key, -1 if none."""
    return np.searchsorted(keys, key, side="left") - 1


@dataclass(frozen=True)
class _Spans:
    """Merged span visits, G groups sorted by history and start."""

    history: Int
    start: Int
    end: Int
    row: Int
    key: Int

    def holding(self, history: Int, hour: Int) -> tuple[Int, Bool]:
        """Last group begun strictly before each hour (index, clipped to 0), and whether there is one of that history."""
        if not len(self.key):
            return np.zeros(len(hour), np.int64), np.zeros(len(hour), np.bool_)
        place = _last_before(self.key, _key(history, hour))
        there = (place >= 0) & (self.history[np.maximum(place, 0)] == history)
        return np.maximum(place, 0), there


def _merge_spans(visits: Visits) -> tuple[_Spans, Int]:
    """Merge overlapping span visits; also the group of each visit, -1 for day visits."""
    span = np.flatnonzero(visits.span)
    order = span[np.lexsort((visits.end[span], visits.start[span], visits.history[span]))]
    history, start, end = visits.history[order], visits.start[order], visits.end[order]
    reach = np.maximum.accumulate(_key(history, end)) if len(order) else end  # keys of a later history are larger: it restarts by itself
    fresh = np.ones(len(order), np.bool_)
    fresh[1:] = (history[1:] != history[:-1]) | (_key(history, start)[1:] >= reach[:-1])
    group = np.cumsum(fresh) - 1
    groups = int(group[-1]) + 1 if len(order) else 0
    last = np.full(groups, -_LAST)
    np.maximum.at(last, group, end)
    best = np.lexsort((np.arange(len(order)), -visits.rank[order], group))
    best = best[np.concatenate([[True], np.diff(group[best]) > 0])] if len(order) else best
    first = np.flatnonzero(fresh)
    of_visit = np.full(len(visits.history), -1, np.int64)
    of_visit[order] = group
    spans = _Spans(history[first], start[first], last, visits.row[order[best]], _key(history[first], start[first]))
    return spans, of_visit


def _place_days(visits: Visits, spans: _Spans) -> tuple[Int, Int]:
    """For each day visit: the group it merges with or -1, and the hour by which it is put in order. Both [v]; spans are ignored."""
    merged, order = np.full(len(visits.start), -1, np.int64), visits.start.copy()
    if not len(spans.key):
        return merged, order
    place, there = spans.holding(visits.history, visits.start)
    start, end = spans.start[place], spans.end[place]
    date = visits.start // HOURS_PER_DAY
    last_day = there & (date == end // HOURS_PER_DAY) & (date != start // HOURS_PER_DAY)
    merged = np.where(there & (visits.start < end) & ~last_day, place, -1)
    return merged, np.where(last_day, np.maximum(order, end), order)


def _attach(loose: Loose, visits: Visits, spans: _Spans, group: Int, lone: Bool) -> tuple[Int, Int, Int]:
    """Where each row goes: span group or -1, lone day visit or -1 (else bare), and its hour clamped to the group's."""
    linked = loose.visit >= 0
    visit = np.maximum(loose.visit, 0)
    in_group, in_day = np.full(len(loose.hour), -1, np.int64), np.full(len(loose.hour), -1, np.int64)
    if len(visits.start):
        own, alone = np.where(linked, group[visit], -1), linked & lone[visit]
        same_date = loose.hour // HOURS_PER_DAY == visits.start[visit] // HOURS_PER_DAY
        in_day = np.where(alone & same_date, visit, -1)
        own = np.where(visits.span[visit] | same_date, own, -1)
        if len(spans.key):
            at = np.maximum(own, 0)
            near = (loose.hour >= spans.start[at] - LINK_HOURS) & (loose.hour <= spans.end[at] + LINK_HOURS)
            in_group = np.where((own >= 0) & near, own, -1)
    if len(spans.key):
        place, there = spans.holding(loose.history, loose.hour)
        joins = (in_group < 0) & (in_day < 0) & there & (loose.hour < spans.end[place])
        in_group = np.where(joins, place, in_group)
        at = np.maximum(in_group, 0)
        clamped = np.clip(loose.hour, spans.start[at], spans.end[at])
        return in_group, in_day, np.where(in_group >= 0, clamped, loose.hour)
    return in_group, in_day, loose.hour


def build_units(visits: Visits, loose: Loose, icu: Loose, death_history: Int, death_hour: Int, death_row: Int) -> Units:
    """Cut every history into its units.

    Args:
        visits: Visit rows; ends are already clamped to the death.
        loose: clinical rows.
        icu: rows of intensive care; they make no units of their own.
        death_history, death_hour, death_row: one entry per history that ends in death, histories ascending.
    """
    spans, group = _merge_spans(visits)
    merged, order_hour = _place_days(visits, spans)
    group = np.where(visits.span, group, merged)
    lone = group < 0

    # Visit units: groups and lone day visits, in order; a day visit stands before a span visit of the same hour.
    days = np.flatnonzero(lone)
    history = np.concatenate([spans.history, visits.history[days]])
    order = np.concatenate([spans.start, order_hour[days]])
    is_day = np.concatenate([np.zeros(len(spans.key), np.int64), np.ones(len(days), np.int64)])
    exact = np.concatenate([np.zeros(len(spans.key), np.int64), visits.exact[days]])  # span visits are in order already
    tag = _key(history, order) * 4 + np.where(is_day == 1, 0, 2)
    sequence = np.lexsort((np.arange(len(tag)), exact, tag))
    place_of = np.empty(len(sequence), np.int64)
    place_of[sequence] = np.arange(len(sequence))

    in_group, in_day, hour = _attach(loose, visits, spans, group, lone)
    day_number = np.full(len(visits.start), -1, np.int64)
    day_number[days] = np.arange(len(days)) + len(spans.key)

    # Bare days: the loose rows left over, by date and by the visit units before them.
    bare = np.flatnonzero((in_group < 0) & (in_day < 0))
    before = np.searchsorted(tag[sequence], _key(loose.history[bare], hour[bare]) * 4 + 1)
    date = hour[bare] // HOURS_PER_DAY
    bare_order = np.lexsort((date, before, loose.history[bare]))
    bare, before, date = bare[bare_order], before[bare_order], date[bare_order]
    fresh = np.ones(len(bare), np.bool_)
    fresh[1:] = (np.diff(loose.history[bare]) != 0) | (np.diff(before) != 0) | (np.diff(date) != 0)
    first = np.flatnonzero(fresh)
    bare_number = len(sequence) + np.cumsum(fresh) - 1

    # All units in order: a bare day that has r visit units before it stands just before visit unit r.
    count_visit, count_bare, count_death = len(sequence), len(first), len(death_row)
    all_history = np.concatenate([history, loose.history[bare[first]], death_history])
    all_place = np.concatenate([place_of, before[first], np.full(count_death, _LAST)])
    all_tag = np.concatenate([np.ones(count_visit, np.int64), np.zeros(count_bare + count_death, np.int64)])
    all_date = np.concatenate([order // HOURS_PER_DAY, date[first], death_hour // HOURS_PER_DAY])
    final = np.lexsort((all_date, all_tag, all_place, all_history))
    number = np.empty(len(final), np.int64)
    number[final] = np.arange(len(final))

    kind = np.concatenate([np.where(is_day == 1, Unit.DAY, Unit.SPAN), np.full(count_bare, Unit.BARE), np.full(count_death, Unit.DEATH)])[final]
    begin = np.concatenate([np.where(is_day == 1, order // HOURS_PER_DAY * HOURS_PER_DAY, order), all_date[count_visit:] * HOURS_PER_DAY])[final]
    end = np.concatenate([spans.end, np.zeros(len(final) - len(spans.key), np.int64)])[final]
    rows = np.concatenate([spans.row, visits.row[days], np.full(count_bare, -1, np.int64), death_row])[final]
    start, end = _run_clock(all_history[final], kind, begin, end)

    # Members.
    member_unit = np.empty(len(loose.hour), np.int64)
    member_unit[in_group >= 0] = number[in_group[in_group >= 0]]
    member_unit[in_day >= 0] = number[day_number[in_day[in_day >= 0]]]
    member_unit[bare] = number[bare_number]
    grid = np.where(kind[member_unit] == Unit.SPAN, hour, start[member_unit]) if len(member_unit) else hour
    sorted_members = np.argsort(member_unit, kind="stable")
    of_visit = number[np.where(lone, day_number, group)] if len(visits.start) else group
    icu_group, _, icu_hour = _attach(icu, visits, spans, group, lone)
    icu_unit = np.where(icu_group >= 0, number[np.maximum(icu_group, 0)], -1) if len(number) else icu_group
    members = (sorted_members, member_unit[sorted_members], grid[sorted_members])
    return Units(all_history[final], kind.astype(np.int8), start, end, rows, *members, of_visit, icu_unit, icu_hour)


def _run_clock(history: Int, kind: Int, begin: Int, end: Int) -> tuple[Int, Int]:
    """Start and end hours of the units on a clock that never runs back: day-grid units wait for the last span visit's end."""
    span = kind == Unit.SPAN
    last = np.maximum.accumulate(np.where(span, np.arange(len(kind)), -1)) if len(kind) else begin
    there = (last >= 0) & (history[np.maximum(last, 0)] == history) if len(kind) else span
    waits = np.where(there & ~span, end[np.maximum(last, 0)], -_LAST)
    start = np.where(span, begin, np.maximum(begin, np.where(waits >= OPEN, -_LAST, waits)))
    return start, np.where(span, end, start)
