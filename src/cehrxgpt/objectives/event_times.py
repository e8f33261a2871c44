"""When each listed event happens next, read off a batch: the targets of time to event.

A *place* is the last token of each distinct time of a segment (not only visit ends: some patients have no visits), prompts, the day of a stay that
a window opens again, the inside of a long gap and what follows a death apart; and the end of each visit that has hours, as people ask there,
whatever the same day brings. (To be a place only where nothing more comes on the day would be to know the future: whoever is admitted again at
once would be left out.) From each place every task has one number: days to its next occurrence in what follows it, infinite where there is
none. Observation ends with the last token, or `censor_gap_days` after it in an open history.

Where a window was cut, what comes after it counts as well, as far as the batch shows it (`PackedBatch.ahead_token`). A window ends after so many
tokens, which come fast where much happens: whoever falls ill would be lost from sight first, and later risks be learned too low.

The next occurrences of all places are one scan: each occurrence is written at the last place before it (a minimum, should there be
several), and a running minimum from the end carries it back to all earlier places. Ages of different segments are kept apart by an
offset that grows with the segment, so that whatever is carried over from a later segment is recognised. Cost: places x tasks, twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cehrxgpt.objectives.standing import Standing
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.timeline.kinds import PROMPT_KINDS, Kind
from cehrxgpt.timeline.lasting import STANDINGS_PER_TOKEN, standings
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.vocabulary import Vocabulary

_APART = 1 << 40  # minutes between segments: longer than any age
# A day of stay is said by windows that open a visit again, at the midnight before their first event: what came between was cut away.
_NO_PLACE = (*PROMPT_KINDS, Kind.STAY_DAY, Kind.YEAR_GAP, Kind.DEATH, Kind.END)


@dataclass(frozen=True)
class EventTimes:
    """The targets of a batch: P places, C tasks.

    Attributes:
        place: int64[P]; row * T + column.
        end_days: float32[P]; how long each place is observed.
        event_days: float32[P, C]; to the next occurrence, infinite = not while observed.
    """

    place: Tensor
    end_days: Tensor
    event_days: Tensor


@dataclass(frozen=True)
class _Line:
    """All tokens, segment after segment, what lies ahead of a window behind its own tokens; int64[N] each, and bool[N]."""

    token: Tensor
    age: Tensor
    end: Tensor  # until when is observed, as far as this token says
    segment: Tensor
    is_place: Tensor


class EventReader(nn.Module):
    """Reads `EventTimes` off batches.

    Args:
        vocabulary: of the batches.
        tasks: the numbers (`timeline.lasting`) of the tokens that count for each task; a token may count for several.
    """

    task: Tensor
    task_start: Tensor
    task_count: Tensor
    no_place: Tensor
    visit_type: Tensor
    visit_end: Tensor
    has_hours: Tensor

    def __init__(self, vocabulary: Vocabulary, tasks: Sequence[Sequence[int]]):
        super().__init__()
        self.tasks = len(tasks)
        wanted = [standings(one, vocabulary) for one in tasks]
        self.standing = Standing(vocabulary)
        stands = np.concatenate([np.asarray(one, dtype=np.int64) for one in wanted]) if tasks else np.zeros(0, dtype=np.int64)
        task = np.repeat(np.arange(len(tasks)), [len(one) for one in wanted])
        order = np.argsort(stands, kind="stable")
        count = np.bincount(stands, minlength=STANDINGS_PER_TOKEN * len(vocabulary))
        tables = {
            "task": task[order],  # tasks of each standing, one after the other
            "task_start": np.cumsum(count) - count,
            "task_count": count,
            "no_place": np.isin(vocabulary.kind, [int(kind) for kind in _NO_PLACE]),
            "visit_type": vocabulary.kind == Kind.VISIT_TYPE,
            "visit_end": vocabulary.kind == Kind.VISIT_END,
            "has_hours": vocabulary.hourly_visits,
        }
        for name, table in tables.items():
            self.register_buffer(name, torch.from_numpy(table), persistent=False)

    def is_place(self, batch: PackedBatch) -> Tensor:
        """bool[B * T]."""
        segment, age = batch.segment_id, batch.age_minutes
        last = torch.ones_like(segment, dtype=torch.bool)
        last[:, :-1] = segment[:, 1:] != segment[:, :-1]
        moves = last.clone()
        moves[:, :-1] |= age[:, 1:] > age[:, :-1]
        # At the end of a segment nothing more is observed, unless the history is open there or goes on behind the window.
        moves, watched = moves.flatten(), (~last | (batch.censor_gap_days > 0)).flatten()
        begins = torch.ones_like(batch.ahead_place, dtype=torch.bool)
        begins[1:] = batch.ahead_place[1:] != batch.ahead_place[:-1]
        ended = batch.ahead_place[begins]
        watched[ended] = True
        moves[ended] = batch.ahead_age_minutes[begins] > age.flatten()[ended]
        return (moves | self._ends_of_stays(batch.token_id.flatten())) & watched & (segment > 0).flatten() & ~self.no_place[batch.token_id].flatten()

    def _ends_of_stays(self, token: Tensor) -> Tensor:
        """bool[N]: [VE] of visits that have hours. The type of each stands before it, in its own segment."""
        numbers = torch.arange(len(token), device=token.device)
        begun = torch.where(self.visit_type[token], numbers, 0).cummax(0).values
        return self.visit_end[token] & self.has_hours[token[begun]]

    def __call__(self, batch: PackedBatch) -> EventTimes:
        """The targets of a batch."""
        is_place = self.is_place(batch)
        place = is_place.nonzero().squeeze(1)
        segment = self._segments(batch)
        age = batch.age_minutes.flatten()
        line = self._line(batch, segment, is_place)
        ends = age.new_zeros(int(segment[-1]) + 1).scatter_reduce_(0, line.segment, line.end, "amax")
        segment_P, age_P = segment[place], age[place]
        next_age = self._next_ages(line, len(place))
        here = (next_age >= segment_P * _APART) & (next_age < (segment_P + 1) * _APART)
        days = (next_age - (segment_P * _APART + age_P)).float() / MINUTES_PER_DAY
        event_days = days.masked_fill_(~here, float("inf")).T
        end_days = (ends[segment_P] - age_P).float() / MINUTES_PER_DAY
        return EventTimes(place, end_days, event_days)

    @staticmethod
    def _segments(batch: PackedBatch) -> Tensor:
        """int64[B * T]: number of the segment over all rows; padding counts as one of its own."""
        begins = torch.ones_like(batch.segment_id)
        begins[:, 1:] = (batch.segment_id[:, 1:] != batch.segment_id[:, :-1]).long()
        return begins.flatten().cumsum(0) - 1

    @staticmethod
    def _line(batch: PackedBatch, segment: Tensor, is_place: Tensor) -> _Line:
        token, age = batch.token_id.flatten(), batch.age_minutes.flatten()
        end = age + batch.censor_gap_days.flatten().clamp(min=0) * MINUTES_PER_DAY
        if not len(batch.ahead_token):
            return _Line(token, age, end, segment, is_place)
        ages = batch.ahead_age_minutes
        segment = torch.cat([segment, segment[batch.ahead_place]])
        order = segment.argsort(stable=True)
        token, age, end = (torch.cat(both)[order] for both in ((token, batch.ahead_token), (age, ages), (end, ages)))
        is_place = torch.cat([is_place, torch.zeros_like(batch.ahead_token, dtype=torch.bool)])[order]
        return _Line(token, age, end, segment[order], is_place)

    def _next_ages(self, line: _Line, places: int) -> Tensor:
        """int64[C, P]: age at each task's next occurrence after each place, the segment's offset added; that of a later segment where
        the own one has none."""
        stands = self.standing(line.token, line.age, line.segment)
        # All places before a token are at earlier times or ends of visits. One in the segment before does no harm: what is written there is
        # recognised by its offset.
        before = line.is_place.long().cumsum(0) - line.is_place.long() - 1
        times = self.task_count[stands] * (before >= 0)
        occurs = times.nonzero().squeeze(1)
        repeats = times[occurs]
        occurrence = torch.arange(len(occurs), device=stands.device).repeat_interleave(repeats)
        within = torch.arange(len(occurrence), device=stands.device) - (repeats.cumsum(0) - repeats)[occurrence]
        task = self.task[self.task_start[stands[occurs]][occurrence] + within]
        stamp = line.age[occurs] + line.segment[occurs] * _APART
        earliest = stamp.new_full((self.tasks * places,), torch.iinfo(torch.int64).max)
        earliest.scatter_reduce_(0, task * places + before[occurs][occurrence], stamp[occurrence], "amin")
        return earliest.view(self.tasks, places).flip(1).cummin(1).values.flip(1)
