"""Windows of long histories: a part of the tokens behind a prompt that is recomputed for the date at which the window starts.

NumPy only. A window that starts inside a visit re-opens it: `[VR] type [ICU]? day-of-stay (hour)? ...`, with [ICU] where it starts in intensive
care. Time tokens that lead to a window's first
event are not written, as the prompt says the date and `i-H` the hour; everything else of the history is kept as it is, so that the
window is a sentence of the grammar with its own `age_minutes`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import InputError
from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.kinds import FOLLOWERS, PROMPT_LENGTH, TIME_KINDS, Kind
from cehrxgpt.timeline.prompt import prompt_ages, prompt_tokens
from cehrxgpt.timeline.time import MINUTES_PER_DAY, MINUTES_PER_HOUR, age_minutes_at_start
from cehrxgpt.timeline.vocabulary import Vocabulary

SHORTEST = PROMPT_LENGTH + 6  # prompt, [VR], type, [ICU], day of stay, hour, one event

_TIME = np.isin(np.arange(len(Kind)), [int(kind) for kind in TIME_KINDS])
_FIRST = ~_TIME  # kinds with which a window may begin: not a token that only goes on from the one before it
_GOES_BACK = (Kind.VISIT_TYPE, Kind.END, *FOLLOWERS)  # part of what the token before says
_FIRST[[*_GOES_BACK, Kind.PAD]] = False


@dataclass(frozen=True)
class Window:
    """L tokens; unpacks as (token_id, age_minutes, value).

    Attributes:
        token_id: int32[L].  age_minutes: int32[L], of the window's own prompt and clock.  value: float32[L].
        start_date: days since 1970-01-01 of the midnight from which the window's clock counts.
        event_index: int32[L]; where the tokens came from, -1 for structural ones.
    """

    token_id: npt.NDArray[np.int32]
    age_minutes: npt.NDArray[np.int32]
    value: npt.NDArray[np.float32]
    start_date: int
    event_index: npt.NDArray[np.int32]

    def __iter__(self) -> Iterator[npt.NDArray[np.generic]]:
        return iter((self.token_id, self.age_minutes, self.value))


def _last_true(mask: npt.NDArray[np.bool_]) -> int:
    """Place of the last True, -1 if there is none."""
    found = np.flatnonzero(mask)
    return int(found[-1]) if len(found) else -1


def _as_is(histories: EncodedHistories, place: slice, start_date: int) -> Window:
    return Window(histories.token_id[place], histories.age_minutes[place], histories.value[place], start_date, histories.event_index[place])


def window(histories: EncodedHistories, vocabulary: Vocabulary, index: int, start: int, stop: int) -> Window:
    """Tokens `start` to `stop` of a history as a sentence of their own.

    Args:
        index: the history.
        start: counted from the history's first token; anything up to the end of the prompt means the beginning. A start at gaps or
            steps of time goes on to what they date; one at a visit's type, a lab's bin, a drug's length or [END] goes back to [VS], lab, drug or
            death.
        stop: end of the window (exclusive), counted likewise.
    """
    whole = histories.history(index)
    stop = min(stop, whole.stop - whole.start)
    if start <= PROMPT_LENGTH:
        return _as_is(histories, slice(whole.start, whole.start + stop), int(histories.start_date[index]))
    token = histories.token_id[whole]
    kind = vocabulary.kind[token]
    while start < len(kind) and kind[start] in _GOES_BACK:
        start -= 1
    fitting = np.flatnonzero(_FIRST[kind[start:stop]])
    first = start + int(fitting[0]) if len(fitting) else stop
    # Minutes from the full history's start midnight.
    clock = histories.age_minutes[whole].astype(np.int64) - int(histories.age_minutes[whole.start + PROMPT_LENGTH - 1])
    now = int(clock[min(first, stop - 1)])
    date = int(histories.start_date[index]) + now // MINUTES_PER_DAY
    shifted = vocabulary.amount[token[1]] < 0
    prompt, months = prompt_tokens(
        vocabulary,
        np.array([date]),
        histories.birth_date[index : index + 1],
        histories.gender_token[index : index + 1],
        histories.race_token[index : index + 1],
        calendar="shifted" if shifted else "true",
    )
    opened = _last_true(kind[:first] == Kind.VISIT_START)
    inside = first < stop and opened > _last_true(kind[:first] == Kind.VISIT_END)
    in_icu = _last_true(kind[:first] == Kind.ICU_START) > max(opened, _last_true(kind[:first] == Kind.ICU_END))
    opening = _reopen(vocabulary, int(token[opened + 1]), now, int(clock[opened]), in_icu=in_icu) if inside else []
    midnight = now // MINUTES_PER_DAY * MINUTES_PER_DAY
    minutes = clock[first:stop] - midnight
    if first < stop and not inside and now > midnight:
        minutes = _from_midnight(kind[first:stop], vocabulary.amount[token[first:stop]], minutes)
    at_start = int(age_minutes_at_start(months)[0])
    ages = [*prompt_ages(months)[0], *(at_start + clock_at - midnight for _, clock_at in opening), *(at_start + minutes)]
    said = [*prompt[0], *(identifier for identifier, _ in opening)]
    kept = slice(whole.start + first, whole.start + stop)
    return Window(
        np.concatenate([np.asarray(said, np.int32), token[first:stop]]),
        np.asarray(ages, np.int32),
        np.concatenate([np.full(len(said), np.nan, np.float32), histories.value[kept]]),
        date,
        np.concatenate([np.full(len(said), -1, np.int32), histories.event_index[kept]]),
    )


def _from_midnight(kind: npt.NDArray[np.int8], amount: npt.NDArray[np.int32], minutes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Clock of a window that starts outside visits on a date on which a stay had ended: nothing says that hour any more.

    The units of that date begin at midnight instead, up to the first token that names an hour or moves to another day.
    """
    after_type = np.concatenate([[False], kind[:-1] == Kind.VISIT_TYPE])
    moves = _TIME[kind] & (amount > 0) & ((kind != Kind.IN_VISIT_HOURS) | after_type)
    told = np.flatnonzero(moves)
    until = int(told[0]) if len(told) else len(kind)
    return np.concatenate([minutes[:until] - minutes[0], minutes[until:]])


def _reopen(vocabulary: Vocabulary, visit_type: int, now: int, admitted: int, *, in_icu: bool) -> list[tuple[int, int]]:
    """[VR] type, [ICU] in intensive care, day-of-stay and, past midnight, the hour: (token id, clock in minutes) each."""
    day = now // MINUTES_PER_DAY
    stay = max(day - admitted // MINUTES_PER_DAY, 0)
    edges = vocabulary.amount_to_id[Kind.STAY_DAY]
    edge = max(amount for amount in edges if amount <= stay)
    midnight = day * MINUTES_PER_DAY
    ward = [(int(vocabulary.ids_of_kind(Kind.ICU_START)[0]), midnight)] if in_icu else []
    tokens = [(int(vocabulary.ids_of_kind(Kind.VISIT_RESUME)[0]), midnight), (visit_type, midnight), *ward, (edges[edge], midnight)]
    hour = (now - midnight) // MINUTES_PER_HOUR
    return [*tokens, (vocabulary.amount_to_id[Kind.IN_VISIT_HOURS][hour], now)] if hour else tokens


def _opened_before(kind: npt.NDArray[np.int8], opens: Kind, closes: Kind) -> npt.NDArray[np.bool_]:
    """Whether strictly before each place more has been opened than closed."""
    depth = np.cumsum((kind == opens).astype(np.int64) - (kind == closes).astype(np.int64))
    return np.concatenate([[0], depth[:-1]]) > 0


def shortest(vocabulary: Vocabulary) -> int:
    """Tokens that a window must have room for: `SHORTEST`, and what may follow the one event (a lab's bin, a drug's length)."""
    return SHORTEST + sum(bool((vocabulary.kind == kind).any()) for kind in FOLLOWERS)


def last_window(histories: EncodedHistories, vocabulary: Vocabulary, index: int, max_tokens: int) -> Window:
    """The longest tail of a history that fits into `max_tokens`, prompt included; it starts at a unit, an event or a visit's end.

    Raises:
        InputError: `max_tokens` is too small for a prompt and one event.
    """
    if max_tokens < shortest(vocabulary):
        raise InputError(f"a window of {max_tokens} tokens cannot hold a prompt and an event; expected at least {shortest(vocabulary)}")
    whole = histories.history(index)
    length = whole.stop - whole.start
    if length <= max_tokens:
        return _as_is(histories, whole, int(histories.start_date[index]))
    kind = vocabulary.kind[histories.token_id[whole]]
    clock = histories.age_minutes[whole].astype(np.int64) - int(histories.age_minutes[whole.start + PROMPT_LENGTH - 1])
    inside = _opened_before(kind, Kind.VISIT_START, Kind.VISIT_END)
    in_icu = _opened_before(kind, Kind.ICU_START, Kind.ICU_END)
    overhead = PROMPT_LENGTH + np.where(inside, 3 + in_icu + (clock % MINUTES_PER_DAY >= MINUTES_PER_HOUR), 0)
    fits = _FIRST[kind] & (overhead + length - np.arange(length) <= max_tokens)
    fits[: PROMPT_LENGTH + 1] = False
    first = np.flatnonzero(fits)
    # A tail that is nothing but a trailing gap cannot be: encoding never ends in one.
    return window(histories, vocabulary, index, int(first[0]) if len(first) else length - 1, length)
