"""What may come next: the grammar's table, and the gap to the prediction time.

**Grammar.** `Grammar.allowed[phase]` says which tokens may follow; one thing more is never generated, a resumed visit ([VR]), which
only a window that was cut there begins with. What mass the model gave to the rest is reported.

**The gap to the prediction time.** A forecast is made at T from a history whose last token stands at clock c <= T. That nothing
happened in between is known, so the first new event is drawn given that it comes after T. Clocks are quantised: a *slot* is an hour
inside a visit that has hours, and a day elsewhere. An event of slot s may lie after T unless the slot's last minute is T or earlier,
so the first slot in question, the *goal*, is the one that holds the minute T + 1. While a row's clock stands before its goal, it is
*waiting*, and a next token is

    removed    where it puts the first event into a slot before the goal,
    kept       where it puts it into the goal's slot or later,
    boundary   where that is decided by the token after it.

    | state                | token               | removed             | boundary          | kept                       |
    |----------------------|---------------------|---------------------|-------------------|----------------------------|
    | outside a visit      | no time token       | always              |                   |                            |
    |                      | D n                 | date < goal         |                   | date >= goal               |
    |                      | Y n, then D 0..364  | date + 364 < goal   | goal among them   | date >= goal               |
    |                      | LT ("or more")      |                     |                   | always                     |
    | inside, with hours   | no time token       | always              |                   |                            |
    |                      | i-H n               | hour < goal's       |                   | hour >= goal's             |
    |  ... just admitted   | i-H n               | n > 0, or the goal  | i-H0, if the goal |                            |
    |                      |                     | is another day      | is today          |                            |
    |                      | i-D n               | date < goal's date  | on the goal's     | later, or the goal's hour  |
    |                      |                     |                     | date              | is 0                       |
    |                      | the longest i-D     |                     |                   | too short to arrive        |
    | inside, by the day   | [VE]                |                     |                   | always; the gap follows    |
    |                      | anything else       | always              |                   |                            |

There is at most one boundary token in a state. Its probability is multiplied by the share S of its continuations that are kept, found
by reading it on a copy of the row's cache; if it is drawn, the same table applies to the state after it. So the tokens have exactly
the model's probabilities given that the first event comes in the goal's slot or later.

Just admitted means that the prompt ends with a visit's type: the visit began at midnight, or its hour would have been written, and a
first event later that day is written i-H0 i-H n.

Where a single i-D cannot arrive (more than 31 days inside a visit) the longest one is the only token kept, which needs no S. Where
nothing is kept, or the vocabulary cannot say such a gap, the row is released: it goes on unconditioned and is counted.

What only a later token says, the hour of a visit on the goal's date, is not in the table: futures that contradict it are drawn anew (`rows`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cehrxgpt.rollout.prompt import NOT_GIVEN, inside_visit
from cehrxgpt.timeline.grammar import ADMITTED_PHASES, Grammar, State
from cehrxgpt.timeline.kinds import TIME_KINDS, Kind
from cehrxgpt.timeline.time import DAYS_PER_YEAR, MINUTES_PER_DAY, MINUTES_PER_HOUR
from cehrxgpt.timeline.vocabulary import Vocabulary

REMOVED, KEPT, BOUNDARY = 0, 1, 2
HOURS_PER_DAY = 24


@dataclass(frozen=True)
class Goal:
    """The first slot that may lie after the prediction time, of R rows.

    Attributes:
        date: int64[R], whole days on the prompt's clock.
        hour: int64[R], whole hours on it.
        hourly: bool[R], the visit the row stands in, if any, has hours.
        given: bool[R], there is a prediction time.
    """

    date: npt.NDArray[np.int64]
    hour: npt.NDArray[np.int64]
    hourly: npt.NDArray[np.bool_]
    given: npt.NDArray[np.bool_]

    @classmethod
    def after(cls, prediction_clock: npt.NDArray[np.int64], hourly: npt.NDArray[np.bool_]) -> Goal:
        """From the prediction times, minutes on the prompts' clocks (NOT_GIVEN: none)."""
        given = prediction_clock != NOT_GIVEN
        first_minute = np.where(given, prediction_clock, 0) + 1
        return cls(first_minute // MINUTES_PER_DAY, first_minute // MINUTES_PER_HOUR, hourly, given)

    def take(self, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Goal:
        """Of these rows."""
        return Goal(self.date[rows], self.hour[rows], self.hourly[rows], self.given[rows])


def allowed_table(vocabulary: Vocabulary, grammar: Grammar, device: torch.device | str = "cpu") -> torch.Tensor:
    """bool[phases, V]: the grammar, without the resumed visits that only windows begin with."""
    allowed = grammar.allowed & (vocabulary.kind != Kind.VISIT_RESUME)
    return torch.from_numpy(np.ascontiguousarray(allowed)).to(device)  # rows are what is read of it; the grammar's stand column by column


def waiting(state: State, goal: Goal) -> npt.NDArray[np.bool_]:
    """Which rows' clocks stand before the goal, bool[R]."""
    by_hour = inside_visit(state.phase) & goal.hourly
    early_date = state.clock_minutes // MINUTES_PER_DAY < goal.date
    early_hour = state.clock_minutes // MINUTES_PER_HOUR < goal.hour
    return goal.given & np.where(by_hour, early_hour, early_date)


class GapTable:
    """The table above for one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar):
        self.grammar = grammar
        self.size = len(vocabulary)
        self.time_ids = vocabulary.ids_of_kind(*TIME_KINDS)
        self.kind, self.amount = vocabulary.kind[self.time_ids], vocabulary.amount[self.time_ids]
        self.visit_end = vocabulary.kind == Kind.VISIT_END
        in_days = vocabulary.amount[vocabulary.kind == Kind.IN_VISIT_DAYS]
        self.longest_step = int(in_days.max()) if len(in_days) else 0
        self.is_longest = (self.kind == Kind.IN_VISIT_DAYS) & (self.amount == self.longest_step)

    def classify(self, state: State, goal: Goal) -> npt.NDArray[np.int8]:
        """REMOVED, KEPT or BOUNDARY of every token in every waiting row, int8[R, V]."""
        code = np.full((len(state.phase), self.size), REMOVED, dtype=np.int8)
        inside = inside_visit(state.phase)
        by_day_inside = inside & ~goal.hourly
        code[np.ix_(by_day_inside, self.visit_end)] = KEPT
        outside = np.flatnonzero(~inside)
        code[np.ix_(outside, self.time_ids)] = self._outside(take_state(state, outside), goal.take(outside))
        hours = np.flatnonzero(inside & goal.hourly)
        code[np.ix_(hours, self.time_ids)] = self._inside(take_state(state, hours), goal.take(hours))
        return code

    def _clock_after(self, state: State) -> npt.NDArray[np.int64]:
        """Clock after each time token, int64[R, time tokens], by the grammar's own arithmetic."""
        rows, tokens = len(state.phase), len(self.time_ids)
        repeated = take_state(state, np.repeat(np.arange(rows), tokens))
        return self.grammar.advance(repeated, np.tile(self.time_ids, rows)).clock_minutes.reshape(rows, tokens)

    def _outside(self, state: State, goal: Goal) -> npt.NDArray[np.int8]:
        date = self._clock_after(state) // MINUTES_PER_DAY
        code = np.where(date >= goal.date[:, None], KEPT, REMOVED).astype(np.int8)
        in_reach = date + DAYS_PER_YEAR - 1 >= goal.date[:, None]
        code[(self.kind == Kind.YEAR_GAP) & (code == REMOVED) & in_reach] = BOUNDARY
        code[:, self.kind == Kind.LONG_GAP] = KEPT
        return code

    def _inside(self, state: State, goal: Goal) -> npt.NDArray[np.int8]:
        clock = self._clock_after(state)
        date, hour = clock // MINUTES_PER_DAY, clock // MINUTES_PER_HOUR
        code = np.where(hour >= goal.hour[:, None], KEPT, REMOVED).astype(np.int8)
        code[(self.kind == Kind.IN_VISIT_DAYS) & (code == REMOVED) & (date == goal.date[:, None])] = BOUNDARY
        hours, today = self.kind == Kind.IN_VISIT_HOURS, state.clock_minutes // MINUTES_PER_DAY == goal.date
        admitted = np.isin(state.phase, ADMITTED_PHASES)[:, None]
        code[admitted & hours] = REMOVED
        code[admitted & hours & today[:, None] & (self.amount == 0)] = BOUNDARY
        too_far = state.clock_minutes // MINUTES_PER_DAY + self.longest_step < goal.date
        code[too_far[:, None] & self.is_longest] = KEPT
        return code


def take_state(state: State, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> State:
    """The state of these rows."""
    return State(state.phase[rows], state.clock_minutes[rows], state.age_months[rows])
