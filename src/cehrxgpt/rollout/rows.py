"""The futures that are being written, as columns, and what a drawn token does to them.

A future ends, in this order of precedence, when

    horizon   the token would move the clock past the horizon (the end of the date on which the stay ended, where the prompt asks for no more): it
              is dropped. A visit whose hour, the token after its type, lies past
              the horizon is dropped with it ([VS], type), so that nothing kept decodes to a time past the horizon (a death on that date may).
    outcome   a stop token was drawn. A visit's type counts once the next token has said its hour.
    death     a death was drawn ([END], which must follow, is not written).
    end       [END] was drawn.
    budget    the new tokens, or the model's context, are used up.

Before all of these, a future is given up where it says what is known not to have been: on the prediction time's own date, a visit with hours that
begins before its hour. The gap is conditioned on in days (`constraints`), and when a visit begins is said two tokens later: an hour, or
anything else for the one that the clock shows (zero hours are not written). A visit that goes by the day has hours once it says one or
lasts into the next date. The engine draws such a future anew from its prompt, with a key of its own, which makes what is kept the
model's distribution given all that is known.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt

from cehrxgpt.errors import CehrxgptError
from cehrxgpt.rollout.constraints import Goal, waiting
from cehrxgpt.rollout.dates import Dates, last_minute
from cehrxgpt.rollout.prompt import NO_KIND
from cehrxgpt.rollout.result import Rollouts
from cehrxgpt.schema import STOP_REASONS
from cehrxgpt.timeline.grammar import ADMITTED_PHASES, Grammar, Phase, State
from cehrxgpt.timeline.kinds import TIME_KINDS, Kind
from cehrxgpt.timeline.time import MINUTES_PER_DAY, MINUTES_PER_HOUR
from cehrxgpt.timeline.vocabulary import Vocabulary

RUNNING, GIVEN_UP = -1, -2
END, DEATH, OUTCOME, HORIZON, BUDGET = (STOP_REASONS.index(reason) for reason in ("end", "death", "outcome", "horizon", "budget"))

Int = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


@dataclass
class Rows:
    """R futures. `token`, `when` and, where something is watched, `drawn_at` are [R, widest room], `chance` [R, widest room, K]; all else is [R]."""

    row: Int  # place in the result
    prompt: Int
    key: npt.NDArray[np.uint64]
    phase: npt.NDArray[np.int16]
    clock: Int
    age_months: Int
    count: Int  # new tokens kept
    drawn: Int
    room: Int  # tokens that may still be written when nothing has been
    horizon: Int  # clock
    until: npt.NDArray[np.int16]  # kind of the token with whose date the future ends; NO_KIND: none, or it has come
    earliest: Int  # clock before which nothing lies that is written
    waiting: Bool  # before the goal: the next token is conditioned
    weighted: Bool  # the last token was a boundary, whose mass already counted what is kept after it
    entered: Bool  # a visit was opened in the future
    unconfirmed: Bool  # a stop token was a visit's type, its hour is still to come
    conditioned: Bool
    log_probability: npt.NDArray[np.float64]
    removed_mass: npt.NDArray[np.float64]
    gap_log_mass: npt.NDArray[np.float64]
    reason: npt.NDArray[np.int8]
    token: npt.NDArray[np.int32]
    when: Int
    chance: npt.NDArray[np.float64]  # of each watched set, at every draw
    drawn_at: Int  # clock before every draw

    def __len__(self) -> int:
        return len(self.row)

    @property
    def state(self) -> State:
        """The grammar's state of every row."""
        return State(self.phase, self.clock, self.age_months)

    @property
    def last_token(self) -> npt.NDArray[np.int32]:
        """The token each row was given last (any, where it has no new token)."""
        return self.token[np.arange(len(self)), self.count - 1]

    def take(self, rows: npt.NDArray[np.integer] | Bool) -> Rows:
        """Copies of these rows."""
        return Rows(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})

    def move(self, source: Int, target: Int, rows: int) -> None:
        """Row source[i] goes to target[i]; the first `rows` stay."""
        for field in fields(self):
            values = getattr(self, field.name)
            values[target] = values[source]
            setattr(self, field.name, values[:rows])

    def append(self, other: Rows) -> Rows:
        """These rows, then the others."""
        merged = {}
        for field in fields(self):
            pair = [getattr(rows, field.name) for rows in (self, other)]
            if pair[0].ndim > 1:
                width = max(values.shape[1] for values in pair)
                pair = [np.pad(values, ((0, 0), (0, width - values.shape[1]), *[(0, 0)] * (values.ndim - 2))) for values in pair]
            merged[field.name] = np.concatenate(pair)
        return Rows(**merged)

    def narrowed(self) -> Rows:
        """As wide as is in use."""
        kept, drawn = int(self.count.max()), int(self.drawn.max())
        token, when = self.token[:, :kept].copy(), self.when[:, :kept].copy()
        return replace(self, token=token, when=when, chance=self.chance[:, :drawn].copy(), drawn_at=self.drawn_at[:, :drawn].copy())


class Writer:
    """What a drawn token does to its row: state, clock, stops."""

    def __init__(self, vocabulary: Vocabulary, grammar: Grammar, goals: Goal, stop_tokens: Bool | None):
        self.grammar, self.goals = grammar, goals
        self.dates: Dates | None = None  # where stop tokens stop; None: everywhere
        self.kind, self.hourly_visits = vocabulary.kind, vocabulary.hourly_visits
        self.stops = np.zeros(len(vocabulary), dtype=bool) if stop_tokens is None else np.asarray(stop_tokens, dtype=bool)

    def start(self, rows: Rows) -> None:
        """Mark rows that have nothing to do: the prompt ends in death, or leaves no room, or stands past the horizon."""
        rows.reason[:] = np.select(
            [rows.clock > rows.horizon, rows.phase == Phase.DEAD, rows.phase == Phase.ENDED, rows.room <= 0],
            [HORIZON, DEATH, END, BUDGET],
            RUNNING,
        )

    def add(self, rows: Rows, token: Int, log_probability: npt.NDArray[np.float64]) -> None:
        """One drawn token for each of the rows, in place; sets `reason` where a future ends or is given up."""
        kind = self.kind[token]
        after = self.grammar.advance(rows.state, token)
        crossed = after.clock_minutes > rows.horizon
        kept = ~crossed
        admitted = np.isin(rows.phase, ADMITTED_PHASES)
        given_up = self._known_not(rows, kind, after.clock_minutes, admitted)
        place = np.flatnonzero(kept)
        rows.drawn += 1
        rows.log_probability += log_probability
        rows.token[place, rows.count[place]] = token[place]
        told = np.maximum(after.clock_minutes, rows.earliest)
        rows.when[place, rows.count[place]] = told[place]
        rows.count += kept
        stop = self.stops[token] & kept
        if self.dates is not None:
            stop &= self.dates.hold(rows.prompt, rows.clock)
        hour_crossed = crossed & admitted & (kind == Kind.IN_VISIT_HOURS)
        is_type = kind == Kind.VISIT_TYPE
        out_of_room = rows.count >= rows.room
        outcome = (stop & ~is_type) | (rows.unconfirmed & ~hour_crossed) | (stop & out_of_room)
        rows.unconfirmed = stop & is_type
        rows.entered = rows.entered | is_type
        rows.reason[:] = np.select(
            [given_up, hour_crossed, outcome, crossed, kind == Kind.DEATH, kind == Kind.END, out_of_room],
            [GIVEN_UP, HORIZON, OUTCOME, HORIZON, DEATH, END, BUDGET],
            RUNNING,
        )
        rows.count -= np.where(hour_crossed, np.minimum(2, rows.count), 0)
        rows.phase = np.select([hour_crossed, kept], [np.int16(Phase.UNIT), after.phase], rows.phase).astype(np.int16)
        rows.clock = np.where(kept, after.clock_minutes, rows.clock)
        rows.age_months = after.age_months
        last = kept & (kind == rows.until)
        if last.any():
            rows.horizon = np.where(last, np.minimum(rows.horizon, last_minute(told)), rows.horizon)
            rows.until = np.where(last, np.int16(NO_KIND), rows.until)
        if rows.waiting.any():
            rows.waiting = rows.waiting & waiting(rows.state, self.goals.take(rows.prompt)) & self._no_event_yet(kind, rows)

    def _known_not(self, rows: Rows, kind: npt.NDArray[np.int8], clock: Int, admitted: Bool) -> Bool:
        """Where this token, at this clock, says that a visit of the future has begun on the first date that may be written and before its hour.
        Rows that were released are conditioned on nothing."""
        step = np.isin(kind, (Kind.IN_VISIT_HOURS, Kind.IN_VISIT_DAYS))
        has_hours = step | (admitted & self.hourly_visits[rows.last_token])
        at = np.where(admitted & (kind == Kind.IN_VISIT_HOURS), clock, rows.clock)
        today = at // MINUTES_PER_DAY == rows.earliest // MINUTES_PER_DAY
        return rows.entered & rows.conditioned & has_hours & today & (at // MINUTES_PER_HOUR < rows.earliest // MINUTES_PER_HOUR)

    def _no_event_yet(self, kind: npt.NDArray[np.int8], rows: Rows) -> Bool:
        time_token = np.isin(kind, TIME_KINDS)
        closes_day_visit = (kind == Kind.VISIT_END) & ~self.goals.hourly[rows.prompt]
        return time_token | closes_day_visit


def assemble(finished: list[Rows], samples: int, subject_id: Int, sample_id: npt.NDArray[np.int32], given_up: Int) -> Rollouts:
    """Finished futures in any order, as a result in the order they were asked for: each exactly once."""

    def column(name: str) -> npt.NDArray:
        return np.concatenate([getattr(rows, name) for rows in finished])

    order = np.argsort(column("row"), kind="stable")
    count, drawn = column("count"), column("drawn")
    if not np.array_equal(column("row")[order], np.arange(len(subject_id) * samples)):
        raise CehrxgptError(f"rollout: {len(order):,} futures written, {len(subject_id) * samples:,} asked for; this is a fault of the engine")
    offsets = np.concatenate([[0], np.cumsum(count[order])])

    def ragged(name: str, lengths: Int) -> npt.NDArray:
        """The first `lengths` entries of each row, in the order asked for."""
        started, ends = np.cumsum(lengths) - lengths, np.cumsum(lengths[order])
        place = np.repeat(started[order] - (ends - lengths[order]), lengths[order]) + np.arange(int(lengths.sum()))
        parts, done = [], 0
        for rows in finished:
            values, mine = getattr(rows, name), lengths[done : done + len(rows)]
            parts.append(values[np.arange(values.shape[1]) < mine[:, None]])
            done += len(rows)
        return np.concatenate(parts)[place]

    watched = drawn if finished[0].chance.shape[2] else np.zeros_like(drawn)
    age_minutes = State(column("phase"), column("clock"), column("age_months")).age_minutes
    reached = column("reason") == HORIZON
    known = np.maximum(column("clock"), column("earliest") - (count == 0))  # with nothing written, up to the prediction time
    prompt = column("prompt")[order]
    return Rollouts(
        prompt_index=prompt,
        subject_id=subject_id[prompt],
        sample_id=np.tile(sample_id, len(subject_id)),
        token_id=ragged("token", count),
        clock_minutes=ragged("when", count),
        offsets=offsets,
        stop_reason=np.array(STOP_REASONS)[column("reason")[order]],
        end_clock_minutes=np.where(reached, column("horizon"), known)[order],
        log_probability=column("log_probability")[order],
        removed_mass=column("removed_mass")[order],
        drawn=drawn[order].astype(np.int32),
        given_up=given_up.astype(np.int32),
        gap_log_mass=column("gap_log_mass")[order],
        conditioned=column("conditioned")[order],
        phase=column("phase")[order],
        state_clock_minutes=column("clock")[order],
        age_minutes=age_minutes[order],
        chance=ragged("chance", watched),
        drawn_at=ragged("drawn_at", watched),
    )
