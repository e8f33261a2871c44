"""What a future starts from: one patient's tokens up to the prediction time, and how far to go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import InputError
from cehrxgpt.timeline.grammar import IN_ICU_PHASES, IN_VISIT_PHASES, Grammar, State, settled
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

CHUNK = 1024  # prompts that are read by the grammar at once


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One history, cut at its prediction time and encoded; or just [BOS], to have a patient written from nothing.

    Attributes:
        token_id: int[L], the demographic prompt first.
        subject_id: whose; part of the key of every random number.
        prediction_time: part of the key as well; None in synthesis.
        age_minutes: int[L] as encoded; None: as the grammar reads it from the tokens (the same numbers).
        start_date: days since 1970-01-01 of the midnight from which the clock counts; carried for decoding, not used here.
        prediction_clock_minutes: the prediction time on that clock. Nothing is known to have happened between the last event and
            then, and generation is conditioned on it. None: no conditioning.
        horizon_minutes: how long after the prediction time (or after clock 0) the future ends; None: at death or out of budget.
        until: the future ends earlier where a token of this kind comes, with the date on which the first one does: `VISIT_END` for no more
            than the stay in which the prompt ends, `ICU_END` for no more than its time in intensive care. None: it does not.
        earliest_minutes: nothing that is written lies before this clock, though the slot that the prompt ends in may have begun earlier; None:
            the first minute after the prediction time, where there is one. It conditions nothing: for a future that goes on (`windows`).
    """

    token_id: npt.NDArray[np.integer]
    subject_id: int
    prediction_time: np.datetime64 | None = None
    age_minutes: npt.NDArray[np.integer] | None = None
    start_date: int = 0
    prediction_clock_minutes: int | None = None
    horizon_minutes: int | None = None
    until: Kind | None = None
    earliest_minutes: int | None = None

    @property
    def horizon_clock_minutes(self) -> int | None:
        """The horizon on the prompt's clock; None: there is none."""
        return None if self.horizon_minutes is None else (self.prediction_clock_minutes or 0) + int(self.horizon_minutes)

    @property
    def earliest_clock_minutes(self) -> int | None:
        """The first clock on which something that is written may lie; None: any."""
        if self.earliest_minutes is not None or self.prediction_clock_minutes is None:
            return self.earliest_minutes
        return self.prediction_clock_minutes + 1


NEVER = int(np.iinfo(np.int64).max)
NOT_GIVEN = int(np.iinfo(np.int64).min)
NO_KIND = -1


@dataclass(frozen=True)
class PromptTable:
    """P prompts as columns, in the order they were given.

    Attributes:
        length: int64[P].
        phase, clock, age_months: the grammar's state after the last token.
        prediction_clock: int64[P], minutes; NOT_GIVEN = none.
        horizon_clock: int64[P], minutes on the prompt's clock; NEVER = none.
        earliest: int64[P], minutes, before which nothing that is written lies; 0 = no bound.
        until: int16[P], kind of the token with whose date a future ends; NO_KIND = none.
        hourly: bool[P], the prompt ends inside a visit that has hours (else everything goes by days).
        age_minutes: of each prompt's tokens.
    """

    prompts: Sequence[Prompt]
    length: npt.NDArray[np.int64]
    phase: npt.NDArray[np.int16]
    clock: npt.NDArray[np.int64]
    age_months: npt.NDArray[np.int64]
    prediction_clock: npt.NDArray[np.int64]
    horizon_clock: npt.NDArray[np.int64]
    earliest: npt.NDArray[np.int64]
    until: npt.NDArray[np.int16]
    hourly: npt.NDArray[np.bool_]
    age_minutes: list[npt.NDArray[np.int64]]

    def state(self, index: npt.NDArray[np.int64]) -> State:
        """The grammar's state after these prompts."""
        return State(self.phase[index], self.clock[index], self.age_months[index])


def read_prompts(prompts: Sequence[Prompt], vocabulary: Vocabulary, grammar: Grammar, context: int) -> PromptTable:
    """Check the prompts and read them by the grammar.

    Raises:
        InputError: a prompt is empty, is longer than the context, has tokens the vocabulary lacks, or is no sentence; its ages do not
            follow from its tokens; two prompts share subject and prediction time. The subject is named.
    """
    length = np.array([len(prompt.token_id) for prompt in prompts], dtype=np.int64)
    for prompt, tokens in zip(prompts, length, strict=True):
        if not 1 <= tokens <= context:
            raise InputError(f"subject {prompt.subject_id}: a prompt of {tokens:,} tokens; the model reads 1 to {context:,} (cut with last_window)")
        if np.min(prompt.token_id) < 1 or np.max(prompt.token_id) >= len(vocabulary):
            raise InputError(f"subject {prompt.subject_id}: the prompt has tokens outside the model's vocabulary; encode with the model's own")
    keys = {(prompt.subject_id, prompt.prediction_time) for prompt in prompts}
    if len(keys) != len(prompts):
        raise InputError(f"{len(prompts) - len(keys)} prompts repeat a subject and prediction time; ask for more samples instead")
    states, ages = [], []
    for start in range(0, len(prompts), CHUNK):
        chunk = prompts[start : start + CHUNK]
        padded = np.zeros((len(chunk), int(length[start : start + CHUNK].max())), dtype=np.int64)
        for row, prompt in enumerate(chunk):
            padded[row, : len(prompt.token_id)] = prompt.token_id
        state, age = grammar.follow(padded)
        states.append(state)
        ages += [age[row, : len(prompt.token_id)] for row, prompt in enumerate(chunk)]
    table = PromptTable(
        prompts=prompts,
        length=length,
        phase=np.concatenate([state.phase for state in states]),
        clock=np.concatenate([state.clock_minutes for state in states]),
        age_months=np.concatenate([state.age_months for state in states]),
        prediction_clock=np.array([NOT_GIVEN if p.prediction_clock_minutes is None else p.prediction_clock_minutes for p in prompts], dtype=np.int64),
        horizon_clock=np.array([NEVER if p.horizon_minutes is None else p.horizon_clock_minutes for p in prompts], dtype=np.int64),
        earliest=np.array([p.earliest_clock_minutes or 0 for p in prompts], dtype=np.int64),
        until=np.array([NO_KIND if p.until is None else p.until for p in prompts], dtype=np.int16),
        hourly=by_the_hour(prompts, vocabulary) | np.isin(settled(np.concatenate([state.phase for state in states])), IN_ICU_PHASES),
        age_minutes=ages,
    )
    _check_sentences(table)
    return table


def _check_sentences(table: PromptTable) -> None:
    for row in np.flatnonzero(table.phase < 0).tolist():
        raise InputError(f"subject {table.prompts[row].subject_id}: the prompt is no sentence of the timeline's grammar; encode with Timeline")
    for prompt, age in zip(table.prompts, table.age_minutes, strict=True):
        if prompt.age_minutes is not None and not np.array_equal(prompt.age_minutes, age):
            raise InputError(f"subject {prompt.subject_id}: age_minutes do not follow from the prompt's tokens; encode with Timeline")


def by_the_hour(prompts: Sequence[Prompt], vocabulary: Vocabulary) -> npt.NDArray[np.bool_]:
    """Whether the last visit that each prompt opened is of a class that has hours inside."""
    is_type = vocabulary.kind == Kind.VISIT_TYPE
    hourly = np.zeros(len(prompts), dtype=bool)
    for row, prompt in enumerate(prompts):
        opened = np.flatnonzero(is_type[prompt.token_id])
        hourly[row] = len(opened) > 0 and vocabulary.hourly_visits[prompt.token_id[opened[-1]]]
    return hourly


def inside_visit(phase: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Whether each row stands inside a visit."""
    return np.isin(settled(phase), [int(one) for one in IN_VISIT_PHASES])
