"""Which token may follow which, and what each does to the clock: tables, so that the rollout is table-driven.

NumPy only. The grammar constrains *generation*; encoding writes sentences of it by construction and a test checks that it does.
Every function is vectorised over R rows and free of Python loops over rows.

    prompt   BOS year month age age_months gender race
    history  unit (gap unit)*                      gap = D<n> | Y<n> D<0..364> | LT
    unit     visit | bare events of one day | death [END]
    visit    [VS] type (hours)? body discharge? [VE]       or, first in a window: [VR] type day-of-stay (hours)? body ...
    body     (code | i-H<n> code | i-D<n>+ (i-H<n>)? code)*

The hours right after a visit's type say when it began; i-H0 stands there only where another step of hours follows at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from cehrxgpt.timeline.kinds import PROMPT_KINDS, Kind
from cehrxgpt.timeline.time import DAYS_PER_YEAR, LONG_GAP_DAYS, MINUTES_PER_DAY, MINUTES_PER_HOUR, age_minutes_at_start
from cehrxgpt.timeline.vocabulary import Vocabulary


class Phase(IntEnum):
    """Where in a sentence a row stands; decides what may come next and how hours are read."""

    PROMPT_BOS = 0  # nothing yet
    PROMPT_YEAR = 1
    PROMPT_MONTH = 2
    PROMPT_AGE = 3
    PROMPT_AGE_MONTHS = 4
    PROMPT_GENDER = 5
    PROMPT_RACE = 6
    UNIT = 7  # a unit begins: after the prompt, or after a gap
    UNIT_FIRST = 8  # after the prompt only: a unit, or a resumed visit
    YEAR_REMAINDER = 9  # after Y<n>
    BARE = 10  # after a bare code
    GAP = 11  # after [VE]: only a gap may come
    VISIT_TYPE = 12  # after [VS]
    RESUME_TYPE = 13  # after [VR]
    STAY_DAY = 14  # after a resumed visit's type
    ADMITTED = 15  # after a visit's type (or day of stay): hours count from midnight
    IN_VISIT = 16  # after an event inside a visit: hours add
    IN_VISIT_DAY = 17  # after i-D: hours count from midnight
    IN_VISIT_HOUR = 18  # after i-H
    DISCHARGED = 19  # after the discharge place
    DEAD = 20  # after death
    ENDED = 21  # after [END]


_EVENT = (Kind.CODE, Kind.VALUE, Kind.CATEGORY)
_UNIT = (Kind.VISIT_START, *_EVENT, Kind.DEATH)
_GAP = (Kind.DAY_GAP, Kind.YEAR_GAP, Kind.LONG_GAP)
_CLOSE = (Kind.DISCHARGE, Kind.VISIT_END)

ALLOWED: dict[Phase, tuple[Kind, ...]] = {
    Phase.PROMPT_BOS: (Kind.BOS,),
    Phase.PROMPT_YEAR: (Kind.YEAR,),
    Phase.PROMPT_MONTH: (Kind.MONTH,),
    Phase.PROMPT_AGE: (Kind.AGE,),
    Phase.PROMPT_AGE_MONTHS: (Kind.AGE_MONTHS,),
    Phase.PROMPT_GENDER: (Kind.GENDER,),
    Phase.PROMPT_RACE: (Kind.RACE,),
    Phase.UNIT: _UNIT,
    Phase.UNIT_FIRST: (*_UNIT, Kind.VISIT_RESUME),
    Phase.YEAR_REMAINDER: (Kind.DAY_GAP,),
    Phase.BARE: (*_EVENT, *_GAP),
    Phase.GAP: _GAP,
    Phase.VISIT_TYPE: (Kind.VISIT_TYPE,),
    Phase.RESUME_TYPE: (Kind.VISIT_TYPE,),
    Phase.STAY_DAY: (Kind.STAY_DAY,),
    Phase.ADMITTED: (*_EVENT, Kind.IN_VISIT_HOURS, Kind.IN_VISIT_DAYS, *_CLOSE),
    Phase.IN_VISIT: (*_EVENT, Kind.IN_VISIT_HOURS, Kind.IN_VISIT_DAYS, *_CLOSE),
    Phase.IN_VISIT_DAY: (*_EVENT, Kind.IN_VISIT_HOURS, Kind.IN_VISIT_DAYS, *_CLOSE),
    Phase.IN_VISIT_HOUR: (*_EVENT, Kind.IN_VISIT_DAYS, *_CLOSE),
    Phase.DISCHARGED: (Kind.VISIT_END,),
    Phase.DEAD: (Kind.END,),
    Phase.ENDED: (),
}
"""Kinds that may follow in each phase."""

IN_VISIT_PHASES = (Phase.ADMITTED, Phase.IN_VISIT, Phase.IN_VISIT_DAY, Phase.IN_VISIT_HOUR, Phase.DISCHARGED)


def _transitions() -> npt.NDArray[np.int8]:
    """next_phase[phase, kind]; -1 where the kind may not follow."""
    table = np.full((len(Phase), len(Kind)), -1, dtype=np.int8)
    after_prompt = dict(zip(PROMPT_KINDS, (*list(Phase)[1:7], Phase.UNIT_FIRST), strict=True))
    plain = {
        Kind.DAY_GAP: Phase.UNIT,
        Kind.YEAR_GAP: Phase.YEAR_REMAINDER,
        Kind.LONG_GAP: Phase.UNIT,
        Kind.VISIT_START: Phase.VISIT_TYPE,
        Kind.VISIT_RESUME: Phase.RESUME_TYPE,
        Kind.STAY_DAY: Phase.ADMITTED,
        Kind.IN_VISIT_DAYS: Phase.IN_VISIT_DAY,
        Kind.IN_VISIT_HOURS: Phase.IN_VISIT_HOUR,
        Kind.DISCHARGE: Phase.DISCHARGED,
        Kind.VISIT_END: Phase.GAP,
        Kind.DEATH: Phase.DEAD,
        Kind.END: Phase.ENDED,
        **after_prompt,
    }
    for phase, kinds in ALLOWED.items():
        for kind in kinds:
            if kind in _EVENT:
                table[phase, kind] = Phase.IN_VISIT if phase in IN_VISIT_PHASES else Phase.BARE
            elif kind == Kind.VISIT_TYPE:
                table[phase, kind] = Phase.STAY_DAY if phase == Phase.RESUME_TYPE else Phase.ADMITTED
            elif kind == Kind.IN_VISIT_HOURS and phase == Phase.ADMITTED:
                table[phase, kind] = Phase.IN_VISIT  # the hour of admission: a step of hours to the first event may follow
            else:
                table[phase, kind] = plain[kind]
    return table


NEXT_PHASE = _transitions()
"""int8[phases, kinds]: the phase after a token of that kind; -1 = not a sentence."""


@dataclass(frozen=True)
class State:
    """Where R rows stand. `clock_minutes` counts from the start instant, the midnight that begins the first unit's date."""

    phase: npt.NDArray[np.int8]  # [R]
    clock_minutes: npt.NDArray[np.int64]  # [R]
    age_months: npt.NDArray[np.int64]  # [R] as the prompt says; 0 until it has been said

    @property
    def age_minutes(self) -> npt.NDArray[np.int64]:
        """Decoded age at the clock, int64[R]: what the model is given beside the last token."""
        return age_minutes_at_start(self.age_months) + self.clock_minutes


class Grammar:
    """The tables above, spread over the ids of one vocabulary.

    Attributes:
        allowed: bool[phases, V]; `[PAD]` is allowed nowhere.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.kind = vocabulary.kind
        self.amount = vocabulary.amount
        by_kind = NEXT_PHASE[:, vocabulary.kind] >= 0  # [phases, V]
        remainder = (vocabulary.kind == Kind.DAY_GAP) & (vocabulary.amount < DAYS_PER_YEAR)
        by_kind[Phase.YEAR_REMAINDER] &= remainder
        by_kind[:, vocabulary.kind == Kind.PAD] = False
        self.allowed: npt.NDArray[np.bool_] = by_kind

    def start(self, rows: int) -> State:
        """`rows` empty sentences."""
        return State(np.full(rows, Phase.PROMPT_BOS, np.int8), np.zeros(rows, np.int64), np.zeros(rows, np.int64))

    def advance(self, state: State, token_id: npt.NDArray[np.integer]) -> State:
        """The state after each row's next token (int[R]). A token that is no sentence leaves the phase at -1."""
        kind, amount = self.kind[token_id], self.amount[token_id].astype(np.int64)
        phase = np.where(state.phase >= 0, NEXT_PHASE[state.phase, kind], -1).astype(np.int8)
        midnight = state.clock_minutes // MINUTES_PER_DAY * MINUTES_PER_DAY
        days = np.select(
            [(kind == Kind.DAY_GAP) | (kind == Kind.IN_VISIT_DAYS), kind == Kind.YEAR_GAP, kind == Kind.LONG_GAP],
            [amount, amount * DAYS_PER_YEAR, np.int64(LONG_GAP_DAYS)],
            np.int64(0),
        )
        clock = np.where(days > 0, midnight + days * MINUTES_PER_DAY, state.clock_minutes)
        from_midnight = np.isin(state.phase, (Phase.ADMITTED, Phase.IN_VISIT_DAY))
        hours = amount * MINUTES_PER_HOUR
        at_hour = np.where(from_midnight, np.maximum(state.clock_minutes, midnight + hours), state.clock_minutes + hours)
        clock = np.where(kind == Kind.IN_VISIT_HOURS, at_hour, clock)
        months = np.where(kind == Kind.AGE, np.maximum(amount, 0) * 12, state.age_months)
        months = np.where(kind == Kind.AGE_MONTHS, months + np.maximum(amount, 0), months)
        return State(phase, clock, months)

    def follow(self, token_id: npt.NDArray[np.integer]) -> tuple[State, npt.NDArray[np.int64]]:
        """Read whole sentences int[R, T] (0 = padding at the right) from the start.

        Returns:
            the final state, and `age_minutes` int64[R, T] of every token (0 at padding).
        """
        state = self.start(token_id.shape[0])
        age = np.zeros(token_id.shape, dtype=np.int64)
        for step in range(token_id.shape[1]):
            there = token_id[:, step] != 0
            after = self.advance(state, token_id[:, step])
            state = State(
                np.where(there, after.phase, state.phase).astype(np.int8),
                np.where(there, after.clock_minutes, state.clock_minutes),
                np.where(there, after.age_months, state.age_months),
            )
            age[:, step] = np.where(there, state.age_minutes, 0)
        return state, age
