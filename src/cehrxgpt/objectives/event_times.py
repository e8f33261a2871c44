"""When each listed event happens next, read off a batch: the targets of time to event.

A *place* is the last token of each distinct time of a segment (not only visit ends: some patients have no visits), prompts, the inside of
a long gap and what follows a death apart. From each place every task has one number: days to its next occurrence, infinite where the
segment has none. Observation ends with the last token, or `censor_gap_days` after it in an open history.

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
_NO_PLACE = (*PROMPT_KINDS, Kind.YEAR_GAP, Kind.DEATH, Kind.END)


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
        # At the end of a segment nothing more is observed, unless the history is open there.
        watched = ~last | (batch.censor_gap_days > 0)
        return (moves & watched & (segment > 0) & ~self.no_place[batch.token_id]).flatten()

    def __call__(self, batch: PackedBatch) -> EventTimes:
        """The targets of a batch."""
        is_place = self.is_place(batch)
        place = is_place.nonzero().squeeze(1)
        segment = self._segments(batch)
        age = batch.age_minutes.flatten()
        end_age = self._ends(batch, segment)
        segment_P, age_P = segment[place], age[place]
        next_age = self._next_ages(batch, segment, is_place, len(place))
        here = (next_age >= segment_P * _APART) & (next_age < (segment_P + 1) * _APART)
        days = (next_age - (segment_P * _APART + age_P)).float() / MINUTES_PER_DAY
        event_days = days.masked_fill_(~here, float("inf")).T
        end_days = (end_age[segment_P] - age_P).float() / MINUTES_PER_DAY
        return EventTimes(place, end_days, event_days)

    @staticmethod
    def _segments(batch: PackedBatch) -> Tensor:
        """int64[B * T]: number of the segment over all rows; padding counts as one of its own."""
        begins = torch.ones_like(batch.segment_id)
        begins[:, 1:] = (batch.segment_id[:, 1:] != batch.segment_id[:, :-1]).long()
        return begins.flatten().cumsum(0) - 1

    @staticmethod
    def _ends(batch: PackedBatch, segment: Tensor) -> Tensor:
        """int64[segments]: age in minutes at which observation ends."""
        end = batch.age_minutes + batch.censor_gap_days.clamp(min=0) * MINUTES_PER_DAY
        ends = end.new_zeros(int(segment[-1]) + 1)
        return ends.scatter_reduce_(0, segment, end.flatten(), "amax")

    def _next_ages(self, batch: PackedBatch, segment: Tensor, is_place: Tensor, places: int) -> Tensor:
        """int64[C, P]: age at each task's next occurrence after each place, the segment's offset added; that of a later segment where
        the own one has none."""
        stands = self.standing(batch.token_id.flatten(), batch.age_minutes.flatten(), segment)
        # All places before a token are at earlier times, as a place is the last token of its time. One in the segment before does no harm:
        # what is written there is recognised by its offset.
        before = is_place.long().cumsum(0) - is_place.long() - 1
        times = self.task_count[stands] * (before >= 0)
        occurs = times.nonzero().squeeze(1)
        repeats = times[occurs]
        occurrence = torch.arange(len(occurs), device=stands.device).repeat_interleave(repeats)
        within = torch.arange(len(occurrence), device=stands.device) - (repeats.cumsum(0) - repeats)[occurrence]
        task = self.task[self.task_start[stands[occurs]][occurrence] + within]
        stamp = batch.age_minutes.flatten()[occurs] + segment[occurs] * _APART
        earliest = stamp.new_full((self.tasks * places,), torch.iinfo(torch.int64).max)
        earliest.scatter_reduce_(0, task * places + before[occurs][occurrence], stamp[occurrence], "amin")
        return earliest.view(self.tasks, places).flip(1).cummin(1).values.flip(1)
