"""Where a history that is longer than the context is cut into windows.

A long history brings as many windows as it takes for its tokens to be read as often as those of short ones, spread evenly from a random
beginning (systematic sampling). One window a patient would do for one who is seldom ill what it does for one who is always in hospital: of
two people with the same record so far, whoever has less to come would be seen more, and all risks learned too low.

Only places are chosen here; `timeline.window` writes the window with its recomputed prompt, and opens a visit again where a window starts inside.
Windows begin and end with whole events and not with whole visits: to wait for a visit's end would be to read long stays less often than short ones,
by half where a stay takes half a context.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.timeline.kinds import EVENT_KINDS, FOLLOWERS, PROMPT_LENGTH, Kind

SHORTEST_PART = 6  # tokens of a window of a pair beyond its prompt, at least
REOPENING = 3  # [VR], type, day of stay: what a window that starts inside a visit says after the prompt

_GAP = np.isin(np.arange(len(Kind)), [Kind.DAY_GAP, Kind.YEAR_GAP, Kind.LONG_GAP])
_EVENT = np.isin(np.arange(len(Kind)), [int(kind) for kind in EVENT_KINDS])


@dataclass(frozen=True)
class Crop:
    """Tokens `start` to `stop` of a history, counted from its first token; `start` 0 = from the beginning, prompt included."""

    start: int
    stop: int


def unit_starts(kind: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Places at which a unit (visit, bare day, death) begins: after the prompt, and after each gap."""
    gap = _GAP[kind]
    begins = np.flatnonzero(gap[:-1] & ~gap[1:]) + 1
    return np.concatenate([[PROMPT_LENGTH], begins]) if len(kind) > PROMPT_LENGTH else begins


def _unit_ends(kind: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Places just behind a unit: its gap stands there, or the history ends."""
    gap = _GAP[kind]
    return np.concatenate([np.flatnonzero(gap[1:] & ~gap[:-1]) + 1, [len(kind)]])


def _event_ends(kind: npt.NDArray[np.int8]) -> npt.NDArray[np.int64]:
    """Places just behind an event or a visit's end: no time token is parted from what it dates, no bin from its lab, no length from its
    drug."""
    follows = np.isin(kind, FOLLOWERS)
    whole = (_EVENT[kind] | np.isin(kind, (Kind.VISIT_END, Kind.ICU_END)) | follows) & ~np.append(follows[1:], False)
    return np.flatnonzero(whole) + 1


def _last_at_most(places: npt.NDArray[np.int64], limit: int) -> int:
    found = int(np.searchsorted(places, limit, side="right")) - 1
    return int(places[found]) if found >= 0 else -1


def _stop(ends: npt.NDArray[np.int64], start: int, room: int, length: int) -> int:
    """End of a window from `start` with `room` tokens: the history's, or an event's."""
    if start + room >= length:
        return length
    stop = _last_at_most(ends, start + room)
    return stop if stop > start else start + room


def _room(context: int) -> int:
    """Tokens of a history that a window from its middle has place for, beside what it says first; to spare: the hour, and intensive care."""
    return context - PROMPT_LENGTH - REOPENING - 2


def windows_wanted(lengths: npt.NDArray[np.int64], context: int) -> npt.NDArray[np.float64]:
    """How many windows each history is to bring on average: one where it fits, else as many as read its tokens once.

    Args:
        lengths: int64[S]; tokens of each history.
        context: most tokens of a window.
    """
    room = _room(context)
    return np.where(lengths <= context, 1.0, (lengths - PROMPT_LENGTH + room - 1) / room)


def tokens_wanted(lengths: npt.NDArray[np.int64], context: int) -> npt.NDArray[np.int64]:
    """Tokens that the windows of each history have on average, what they say first included; int64[S]."""
    said = (PROMPT_LENGTH + REOPENING) * (windows_wanted(lengths, context) - 1)
    return lengths + said.astype(np.int64)


def window_targets(lengths: npt.NDArray[np.int64], context: int, share: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Where windows are to start, `share` of the way from the first such place to the last. Windows hang over either end, so that first and last
    tokens are seen as often as those between: deaths and censored gaps stand at the end, and windows that seldom reach it would teach
    that they are rare."""
    first = PROMPT_LENGTH - _room(context) + 1
    return first + (share * (lengths - first)).astype(np.int64)


def window_lengths(lengths: npt.NDArray[np.int64], context: int, target: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Tokens of the windows that `choose_crop` cuts there, nearly: events are not looked at."""
    room = _room(context)
    at_start = np.maximum(target + room, PROMPT_LENGTH + room // 4)
    inside = PROMPT_LENGTH + REOPENING + np.minimum(room, lengths - target)
    return np.where(lengths <= context, lengths, np.where(target <= PROMPT_LENGTH, at_start, inside))


def choose_crop(kind: npt.NDArray[np.int8], context: int, target: int) -> Crop:
    """Cut one window from a history of more than `context` tokens.

    Args:
        kind: int8[L]; kinds of its tokens.
        context: most tokens of the window, its recomputed prompt included.
        target: where it is to start (`window_targets`).
    """
    room = _room(context)
    begin = max(target - room, 0)  # looked at is what is near: a history may be a hundred contexts long
    ends = begin + _event_ends(kind[begin : target + 2 * room + 1])
    start = _last_at_most(ends[ends < len(kind)], target) if target > PROMPT_LENGTH else 0
    if start <= PROMPT_LENGTH:
        limit = min(max(target + room, PROMPT_LENGTH + room // 4), context)
        return Crop(0, _stop(ends, 0, limit, len(kind)))
    return Crop(start, _stop(ends, start, room, len(kind)))


def choose_pair(kind: npt.NDArray[np.int8], context: int, random: np.random.Generator) -> tuple[Crop, Crop] | None:
    """Cut one history, of any length, into two windows of at most `context` tokens that share no event: what stands before one of its
    gaps and what stands behind. None where neither part would have `SHORTEST_PART` tokens."""
    ends, starts = _unit_ends(kind)[:-1], unit_starts(kind)[1:]
    fits = (ends - PROMPT_LENGTH >= SHORTEST_PART) & (len(kind) - starts >= SHORTEST_PART)
    if not fits.any():
        return None
    chosen = int(random.choice(np.flatnonzero(fits)))
    end, start = int(ends[chosen]), int(starts[chosen])
    room = _room(context)
    before = Crop(0, end) if end <= context else Crop(_begin(kind[:end], room), end)
    return before, Crop(start, _stop(_event_ends(kind), start, room, len(kind)))


def _begin(kind: npt.NDArray[np.int8], room: int) -> int:
    """Where a window of at most `room` tokens begins that goes to the end: with a unit, or behind an event where that would waste half of it."""
    least = len(kind) - room
    units, ends = (places[np.searchsorted(places, least) :] for places in (unit_starts(kind), _event_ends(kind[:-1])))
    if len(units) and units[0] - least <= room // 2:
        return int(units[0])
    return int(ends[0]) if len(ends) else least
