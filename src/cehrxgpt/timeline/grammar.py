"""Which token may follow which, and what each does to the clock: tables, so that the rollout is table-driven.

NumPy only. The grammar constrains *generation*; encoding writes sentences of it by construction and a test checks that it does.
Every function is vectorised over R rows and free of Python loops over rows.

    prompt   BOS year month age age_months gender race
    history  unit (gap unit)*                      gap = D<n> | Y<n> D<0..364> | LT
    unit     visit | bare events of one day | death [END]
    visit    [VS] type (hours)? body discharge? [VE]       or, first in a window: [VR] type [ICU]? day-of-stay (hours)? body ...
    body     (code | [ICU] | [/ICU] | i-H<n> code | i-D<n>+ (i-H<n>)? code)*
    code     code, value, lab bin or category; a drug's length may follow it, where the vocabulary has lengths
    lab bin  a bin of the lab's own: as many as it has, of those that all labs share

The hours right after a visit's type say when it began; i-H0 stands there only where another step of hours follows at once.

`[ICU] ... [/ICU]` stands inside visits that have hours, nests once, and is closed before the discharge place and [VE]. In a window that starts
in intensive care [ICU] stands *before* the day of stay, so that it cannot be read as a stay that begins there, and so that the hour
of the day keeps its place right behind the day of stay. What is allowed inside a visit thus depends on one thing more, the *ward*: a
visit with hours, in intensive care, or a day visit; each has phases of its own, and all else is the same table three times over.

Which bins may follow a lab depends on how many it has. Each number of bins has phases of its own behind those of `Phase`, one for each
place that a lab may stand in; `settled` leads from them back to the place.
"""

from __future__ import annotations

from collections.abc import Mapping
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
    # The same again in intensive care, and in day visits, where none can begin.
    STAY_DAY_IN_ICU = 22  # after a resumed visit's [ICU]
    ADMITTED_IN_ICU = 23
    IN_ICU = 24
    IN_ICU_DAY = 25
    IN_ICU_HOUR = 26
    STAY_DAY_OF_DAY_VISIT = 27
    ADMITTED_FOR_DAY = 28
    IN_DAY_VISIT = 29
    IN_DAY_VISIT_DAY = 30
    IN_DAY_VISIT_HOUR = 31
    # After a drug: its length may follow.
    BARE_DRUG = 32
    IN_VISIT_DRUG = 33
    IN_ICU_DRUG = 34
    IN_DAY_VISIT_DRUG = 35


@dataclass(frozen=True)
class _Ward:
    """The phases inside one kind of place."""

    stay_day: Phase
    admitted: Phase
    within: Phase
    day: Phase
    hour: Phase
    drug: Phase
    may_leave: bool = True  # a visit may end here


_VISIT = _Ward(Phase.STAY_DAY, Phase.ADMITTED, Phase.IN_VISIT, Phase.IN_VISIT_DAY, Phase.IN_VISIT_HOUR, Phase.IN_VISIT_DRUG)
_ICU = _Ward(Phase.STAY_DAY_IN_ICU, Phase.ADMITTED_IN_ICU, Phase.IN_ICU, Phase.IN_ICU_DAY, Phase.IN_ICU_HOUR, Phase.IN_ICU_DRUG, may_leave=False)
_DAY_VISIT = _Ward(
    Phase.STAY_DAY_OF_DAY_VISIT,
    Phase.ADMITTED_FOR_DAY,
    Phase.IN_DAY_VISIT,
    Phase.IN_DAY_VISIT_DAY,
    Phase.IN_DAY_VISIT_HOUR,
    Phase.IN_DAY_VISIT_DRUG,
)
_WARDS = (_VISIT, _ICU, _DAY_VISIT)

_EVENT = (Kind.CODE, Kind.VALUE, Kind.LAB, Kind.CATEGORY)
_UNIT = (Kind.VISIT_START, *_EVENT, Kind.DEATH)
_GAP = (Kind.DAY_GAP, Kind.YEAR_GAP, Kind.LONG_GAP)
_CLOSE = (Kind.DISCHARGE, Kind.VISIT_END)


def _inside(ward: _Ward) -> dict[Phase, tuple[Kind, ...]]:
    """Kinds that may follow in one ward."""
    turn = {_VISIT: (Kind.ICU_START,), _ICU: (Kind.ICU_END,), _DAY_VISIT: ()}[ward]
    body = (*_EVENT, *turn, Kind.IN_VISIT_DAYS, *(_CLOSE if ward.may_leave else ()))
    return {
        ward.stay_day: (Kind.STAY_DAY, *((Kind.ICU_START,) if ward is _VISIT else ())),
        ward.admitted: (*body, Kind.IN_VISIT_HOURS),
        ward.within: (*body, Kind.IN_VISIT_HOURS),
        ward.day: (*body, Kind.IN_VISIT_HOURS),
        ward.hour: body,
        ward.drug: (*body, Kind.IN_VISIT_HOURS, Kind.DRUG_LENGTH),
    }


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
    Phase.BARE_DRUG: (*_EVENT, *_GAP, Kind.DRUG_LENGTH),
    **_inside(_VISIT),
    **_inside(_ICU),
    **_inside(_DAY_VISIT),
    Phase.DISCHARGED: (Kind.VISIT_END,),
    Phase.DEAD: (Kind.END,),
    Phase.ENDED: (),
}
"""Kinds that may follow in each phase."""

IN_VISIT_PHASES = (*(phase for ward in _WARDS for phase in (ward.admitted, ward.within, ward.day, ward.hour, ward.drug)), Phase.DISCHARGED)
IN_ICU_PHASES = (_ICU.admitted, _ICU.within, _ICU.day, _ICU.hour, _ICU.drug)
ADMITTED_PHASES = tuple(ward.admitted for ward in _WARDS)
HOUR_OF_DAY_PHASES = tuple(phase for ward in _WARDS for phase in (ward.admitted, ward.day))
"""Where i-H sets the hour of the day; elsewhere it adds hours."""


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
        Kind.DISCHARGE: Phase.DISCHARGED,
        Kind.VISIT_END: Phase.GAP,
        Kind.DEATH: Phase.DEAD,
        Kind.END: Phase.ENDED,
        **after_prompt,
    }
    ward_of = {phase: ward for ward in _WARDS for phase in _inside(ward)}
    for phase, kinds in ALLOWED.items():
        ward = ward_of.get(phase)
        for kind in kinds:
            if kind == Kind.VISIT_TYPE:
                table[phase, kind] = Phase.STAY_DAY if phase == Phase.RESUME_TYPE else Phase.ADMITTED
            elif ward is not None and kind not in _CLOSE:
                table[phase, kind] = _within(ward, phase, kind)
            else:
                table[phase, kind] = Phase.BARE if kind in (*_EVENT, Kind.DRUG_LENGTH) else plain[kind]
    return table


def _within(ward: _Ward, phase: Phase, kind: Kind) -> Phase:
    """The phase after a token inside a visit that does not end it."""
    if kind == Kind.STAY_DAY:
        return ward.admitted
    if kind == Kind.ICU_START:
        return _ICU.stay_day if phase == ward.stay_day else _ICU.within
    if kind == Kind.ICU_END:
        return _VISIT.within
    if kind == Kind.IN_VISIT_DAYS:
        return ward.day
    # The hour of admission: a step of hours to the first event may follow.
    return ward.hour if kind == Kind.IN_VISIT_HOURS and phase != ward.admitted else ward.within


NEXT_PHASE = _transitions()
"""int8[phases, kinds]: the phase after a token of that kind; -1 = not a sentence. `Grammar` refines it for single tokens: the types of day
visits lead to a ward of their own where the vocabulary has intensive care, drugs to a phase of their own where it has lengths, labs to
phases in which only their own bins may follow."""

_OF_DAY_VISIT = {Phase.ADMITTED: Phase.ADMITTED_FOR_DAY, Phase.STAY_DAY: Phase.STAY_DAY_OF_DAY_VISIT}
_AFTER_DRUG = {Phase.BARE: Phase.BARE_DRUG} | {ward.within: ward.drug for ward in _WARDS}
_LAB_PLACES = (Phase.BARE, *(ward.within for ward in _WARDS))  # what a lab and its bin lead to, by where they stand


def settled(phase: npt.NDArray[np.integer]) -> npt.NDArray[np.integer]:
    """Phases, with those in which a lab waits for its bin as the place in which it stands: every one is a `Phase` (or -1)."""
    waits = phase >= len(Phase)
    return np.where(waits, np.asarray(_LAB_PLACES, phase.dtype)[(phase - len(Phase)) % len(_LAB_PLACES)], phase)


@dataclass(frozen=True)
class State:
    """Where R rows stand. `clock_minutes` counts from the start instant, the midnight that begins the first unit's date."""

    phase: npt.NDArray[np.int16]  # [R] a `Phase`, or a lab's; see `settled`
    clock_minutes: npt.NDArray[np.int64]  # [R]
    age_months: npt.NDArray[np.int64]  # [R] as the prompt says; 0 until it has been said

    @property
    def age_minutes(self) -> npt.NDArray[np.int64]:
        """Decoded age at the clock, int64[R]: what the model is given beside the last token."""
        return age_minutes_at_start(self.age_months) + self.clock_minutes


class Grammar:
    """The tables above, spread over the ids of one vocabulary.

    Attributes:
        allowed: bool[phases, V]; `[PAD]` is allowed nowhere. The phases are those of `Phase` and, behind them, those of the vocabulary's labs.
        next_phase: int16[phases, V]; -1 where the token may not follow by its kind.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.kind = vocabulary.kind
        self.amount = vocabulary.amount
        self.next_phase: npt.NDArray[np.int16] = NEXT_PHASE[:, vocabulary.kind].astype(np.int16)
        if (vocabulary.kind == Kind.ICU_START).any():
            types = vocabulary.ids_of_kind(Kind.VISIT_TYPE)
            self._redirect(types[~vocabulary.hourly_visits[types]], _OF_DAY_VISIT)
        drugs = vocabulary.drugs if (vocabulary.kind == Kind.DRUG_LENGTH).any() else vocabulary.drugs[:0]
        self._redirect(drugs[vocabulary.kind[drugs] != Kind.LAB], _AFTER_DRUG)
        self._add_labs(vocabulary, np.isin(np.arange(len(vocabulary)), drugs))
        allowed = self.next_phase >= 0
        remainder = (vocabulary.kind == Kind.DAY_GAP) & (vocabulary.amount < DAYS_PER_YEAR)
        allowed[Phase.YEAR_REMAINDER] &= remainder
        allowed[:, vocabulary.kind == Kind.PAD] = False
        self.allowed: npt.NDArray[np.bool_] = allowed

    def _add_labs(self, vocabulary: Vocabulary, drug: npt.NDArray[np.bool_]) -> None:
        """Phases after labs, one set for each number of bins (and for those that are a drug's, as a length may follow the bin)."""
        labs = vocabulary.ids_of_kind(Kind.LAB)
        group_of = np.stack([vocabulary.bin_count[labs], drug[labs]], axis=1).astype(np.int64)
        added = []
        for number, (count, is_drug) in enumerate(np.unique(group_of, axis=0).tolist()):
            first = len(Phase) + number * len(_LAB_PLACES)
            alike = labs[(group_of == (count, is_drug)).all(axis=1)]
            self._redirect(alike, {place: first + turn for turn, place in enumerate(_LAB_PLACES)})
            own = (vocabulary.kind == Kind.BIN) & (vocabulary.amount < count)
            after = [_AFTER_DRUG[place] if is_drug else place for place in _LAB_PLACES]
            added.append(np.where(own, np.asarray(after, np.int16)[:, None], np.int16(-1)))
        self.next_phase = np.concatenate([self.next_phase, *added])

    def _redirect(self, tokens: npt.NDArray[np.int64], phases: Mapping[Phase, int]) -> None:
        """After these tokens, other phases than after the rest of their kind."""
        mapped = np.arange(-1, len(Phase), dtype=np.int16)  # [phase + 1]
        for phase, other in phases.items():
            mapped[phase + 1] = other
        self.next_phase[:, tokens] = mapped[self.next_phase[:, tokens] + 1]

    def start(self, rows: int) -> State:
        """`rows` empty sentences."""
        return State(np.full(rows, Phase.PROMPT_BOS, np.int16), np.zeros(rows, np.int64), np.zeros(rows, np.int64))

    def advance(self, state: State, token_id: npt.NDArray[np.integer]) -> State:
        """The state after each row's next token (int[R]). A token that is no sentence leaves the phase at -1."""
        kind, amount = self.kind[token_id], self.amount[token_id].astype(np.int64)
        phase = np.where(state.phase >= 0, self.next_phase[state.phase, token_id], -1).astype(np.int16)
        midnight = state.clock_minutes // MINUTES_PER_DAY * MINUTES_PER_DAY
        days = np.select(
            [(kind == Kind.DAY_GAP) | (kind == Kind.IN_VISIT_DAYS), kind == Kind.YEAR_GAP, kind == Kind.LONG_GAP],
            [amount, amount * DAYS_PER_YEAR, np.int64(LONG_GAP_DAYS)],
            np.int64(0),
        )
        clock = np.where(days > 0, midnight + days * MINUTES_PER_DAY, state.clock_minutes)
        from_midnight = np.isin(state.phase, HOUR_OF_DAY_PHASES)
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
                np.where(there, after.phase, state.phase).astype(np.int16),
                np.where(there, after.clock_minutes, state.clock_minutes),
                np.where(there, after.age_months, state.age_months),
            )
            age[:, step] = np.where(there, state.age_minutes, 0)
        return state, age
