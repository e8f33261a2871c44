"""Units to tokens: elements, the runs of optional tokens they write, and the place of every token. NumPy only.

Each unit gives an opening element, one element per member and a closing element. An element writes, in this order, whichever of
these it has: prompt, year gap, day gap, [VS], visit type, i-D31 ..., i-D, i-H, event, bin, length, [VE] or [END]. The begin and the end of
intensive care are members like events.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.timeline.kinds import PROMPT_LENGTH
from cehrxgpt.timeline.time import DAYS_PER_YEAR, LONG_GAP_DAYS, MAX_IN_VISIT_DAYS
from cehrxgpt.timeline.units import HOURS_PER_DAY, Bool, Int, Unit, Units

Ids = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Alphabet:
    """Ids of the structural tokens, by amount where they count something."""

    gap: Ids
    years: Ids
    long: int  # -1 where long gaps are exact
    steps: Ids  # i-D
    hours: Ids  # i-H
    visit_start: int
    visit_end: int
    death: int
    end: int


@dataclass(frozen=True)
class Written:
    """N tokens in order, and how many each unit has."""

    token: Ids  # [N]
    clock: Int  # [N] hours since 1970-01-01 once the token has been read
    value: Floats  # [N]
    row: Int  # [N] row of the frame, -1 = structural
    unit: Int  # [N]


@dataclass
class _Slot:
    """One optional token of some elements."""

    element: Int
    token: Ids
    clock: Int
    row: Int | None = None
    value: Floats | None = None
    repeat: Int | None = None  # how often (all but i-D31: once)


def _elements(units: Units) -> tuple[Int, Int, Int, Int]:
    """Numbers of the opening [U], member [M] and closing [U] elements, and the unit of every element [M + 2U]."""
    count = np.bincount(units.unit, minlength=len(units.history)).astype(np.int64)
    opening = np.concatenate([[0], np.cumsum(count + 2)[:-1]]).astype(np.int64) if len(count) else count
    member = np.arange(len(units.unit)) + 2 * units.unit + 1
    return opening, member, opening + count + 1, np.repeat(np.arange(len(count)), count + 2)


def _openings(units: Units, first: Bool, opening: Int, visit_token: Ids, alphabet: Alphabet) -> tuple[list[_Slot], Int]:
    """Gap, [VS] and type; also the clock when the visit opens, int64[U]."""
    date = units.start // HOURS_PER_DAY
    previous = np.concatenate([[0], units.end[:-1]])
    clock = np.where(first, date * HOURS_PER_DAY, np.maximum(date * HOURS_PER_DAY, previous))
    gap = np.where(first, -1, date - previous // HOURS_PER_DAY)
    if alphabet.long >= 0:
        long, years = np.flatnonzero(gap >= LONG_GAP_DAYS), np.zeros(0, np.int64)
    else:
        long, years = np.zeros(0, np.int64), np.flatnonzero(gap >= LONG_GAP_DAYS)
    days = np.flatnonzero((gap >= 0) & ((alphabet.long < 0) | (gap < LONG_GAP_DAYS)))
    remainder = np.where(gap >= LONG_GAP_DAYS, gap % DAYS_PER_YEAR, gap)
    whole = np.minimum(gap[years] // DAYS_PER_YEAR, len(alphabet.years) - 1)
    at_year = (previous[years] // HOURS_PER_DAY + gap[years] // DAYS_PER_YEAR * DAYS_PER_YEAR) * HOURS_PER_DAY
    visit = np.flatnonzero((units.kind == Unit.SPAN) | (units.kind == Unit.DAY))
    start = np.full(len(visit), alphabet.visit_start, np.int32)
    slots = [
        _Slot(opening[years], alphabet.years[whole], at_year),
        _Slot(opening[long], np.full(len(long), alphabet.long, np.int32), clock[long]),
        _Slot(opening[days], alphabet.gap[remainder[days]], clock[days]),
        _Slot(opening[visit], start, clock[visit]),
        _Slot(opening[visit], visit_token[visit], clock[visit], units.row[visit]),
    ]
    return slots, clock


def _steps(time: Int, previous: Int, inside: Bool, opens: Bool, spoken: Bool, alphabet: Alphabet) -> list[_Slot]:
    """Day and hour tokens of every element: `time` [E] after it, `previous` [E] before it; `inside`: it may step at all.

    `opens` [E]: an opening, whose hours count from midnight. `spoken` [E]: one that must say its hour although the clock stands there
    already (i-H0).
    """
    date, before = time // HOURS_PER_DAY, previous // HOURS_PER_DAY
    days = np.where(inside, date - before, 0)
    many = np.flatnonzero(days >= MAX_IN_VISIT_DAYS)
    repeat = days[many] // MAX_IN_VISIT_DAYS
    rest = np.flatnonzero(days % MAX_IN_VISIT_DAYS)
    amount = np.where((days > 0) | (opens & (time > previous)), time % HOURS_PER_DAY, time - previous)
    hour = np.flatnonzero((inside & (amount > 0)) | spoken)
    return [
        _Slot(many, np.full(len(many), alphabet.steps[MAX_IN_VISIT_DAYS], np.int32), before[many] * HOURS_PER_DAY, repeat=repeat),
        _Slot(rest, alphabet.steps[days[rest] % MAX_IN_VISIT_DAYS], date[rest] * HOURS_PER_DAY),
        _Slot(hour, alphabet.hours[amount[hour]], time[hour]),
    ]


def lay_out(
    units: Units,
    *,
    first: Bool,
    left_open: Bool,
    prompt: Ids,
    visit_token: Ids,
    discharge_row: Int,
    token: Ids,
    member_token: Ids,
    member_value: Floats,
    member_bin: Ids,
    member_length: Ids,
    member_row: Int,
    alphabet: Alphabet,
) -> Written:
    """Write the tokens of all units.

    Args:
        units: members are in order of writing.
        first: bool[U]; the first unit of its history, before which the prompt stands.
        left_open: bool[U]; a visit whose end is not known: no [VE].
        prompt: int32[P, PROMPT_LENGTH], one row per `first` unit.
        visit_token: int32[U]; the visit's type.
        discharge_row: int64[U]; row of the discharge place, -1 where there is none.
        token: of the frame's rows.
        member_token: int32[M]; the members' tokens.
        member_value: float32[M]; the members' numbers, NaN where there is none. It stands at the token that says it: the bin, where there is one.
        member_bin: int32[M]; token of a lab's bin, -1 where there is none.
        member_length: int32[M]; token of a drug's length, -1 where there is none.
        member_row: int64[M]; the members' rows, -1 where a member has none.
    """
    opening, member, closing, unit = _elements(units)
    total = len(unit)
    slots, opened_at = _openings(units, first, opening, visit_token, alphabet)
    kind = units.kind[unit]
    time = np.empty(total, np.int64)
    time[opening], time[member] = units.start, units.hour
    time[closing] = np.where(left_open, time[closing - 1], units.end) if total else units.end
    previous = np.concatenate([time[:1], time[:-1]])
    previous[opening] = opened_at
    inside = kind == Unit.SPAN
    # An opening whose clock is there already must still say so where hours follow at once, or they would be read as its own.
    spoken = np.zeros(total, np.bool_)
    after = opening + 1
    spoken[opening] = (
        (units.kind == Unit.SPAN)
        & (units.start == opened_at)
        & (time[after] > units.start)
        & (time[after] // HOURS_PER_DAY == units.start // HOURS_PER_DAY)
    )
    opens = np.zeros(total, np.bool_)
    opens[opening] = True
    slots += _steps(time, previous, inside, opens, spoken, alphabet)
    said_later = member_bin >= 0
    slots.append(_Slot(member, member_token, units.hour, member_row, np.where(said_later, np.float32(np.nan), member_value)))
    lab = np.flatnonzero(said_later)
    slots.append(_Slot(member[lab], member_bin[lab], units.hour[lab], value=member_value[lab]))
    long = np.flatnonzero(member_length >= 0)
    slots.append(_Slot(member[long], member_length[long], units.hour[long]))
    visit = (units.kind == Unit.SPAN) | (units.kind == Unit.DAY)
    left = np.flatnonzero(visit & ~left_open & (discharge_row >= 0))
    shut = np.flatnonzero(visit & ~left_open)
    dead = np.flatnonzero(units.kind == Unit.DEATH)
    slots += [
        _Slot(closing[left], token[discharge_row[left]], units.end[left], discharge_row[left]),
        _Slot(closing[shut], np.full(len(shut), alphabet.visit_end, np.int32), units.end[shut]),
        _Slot(closing[dead], np.full(len(dead), alphabet.death, np.int32), units.start[dead], units.row[dead]),
        _Slot(closing[dead], np.full(len(dead), alphabet.end, np.int32), units.start[dead]),
    ]
    return _write(slots, unit, opening[first], prompt, units.start[first] // HOURS_PER_DAY * HOURS_PER_DAY)


def _write(slots: list[_Slot], unit: Int, prompted: Int, prompt: Ids, midnight: Int) -> Written:
    """Give every token its place and write it there."""
    length = np.zeros(len(unit), np.int64)
    length[prompted] += PROMPT_LENGTH
    for slot in slots:
        length[slot.element] += 1 if slot.repeat is None else slot.repeat
    end = np.cumsum(length)
    cursor = end - length
    size = int(end[-1]) if len(end) else 0
    token, clock = np.empty(size, np.int32), np.empty(size, np.int64)
    row, number = np.full(size, -1, np.int64), np.full(size, np.nan, np.float32)
    places = cursor[prompted][:, None] + np.arange(PROMPT_LENGTH)
    token[places], clock[places] = prompt, midnight[:, None]
    cursor[prompted] += PROMPT_LENGTH
    for slot in slots:
        place = cursor[slot.element]
        if slot.repeat is None:
            token[place], clock[place] = slot.token, slot.clock
            if slot.row is not None:
                row[place] = slot.row
            if slot.value is not None:
                number[place] = slot.value
            cursor[slot.element] += 1
            continue
        starts = np.cumsum(slot.repeat) - slot.repeat
        step = np.arange(int(slot.repeat.sum())) - np.repeat(starts, slot.repeat)
        place = np.repeat(place, slot.repeat) + step
        token[place] = np.repeat(slot.token, slot.repeat)
        clock[place] = np.repeat(slot.clock, slot.repeat) + (step + 1) * MAX_IN_VISIT_DAYS * HOURS_PER_DAY
        cursor[slot.element] += slot.repeat
    return Written(token, clock, number, row, np.repeat(unit, length))
