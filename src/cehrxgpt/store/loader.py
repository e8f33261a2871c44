"""Batches of patients' windows as a pure function of (seed, step).

Every epoch reads each history of the split once: whole, or where it is longer than the context in several windows, drawn from (seed, epoch,
history): see `crop`. Nothing is kept between steps, so that a resumed run reads exactly what the uninterrupted one would have.
Making a batch of 4,096 tokens takes about a millisecond; the pages of the store are read when touched.

What comes after a window that was cut can come with the batch, for objectives that look ahead: the model reads none of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from cehrxgpt.errors import ConfigError, InputError
from cehrxgpt.store.batch import IGNORE, PAIRS_PER_GROUP, PackedBatch
from cehrxgpt.store.crop import REOPENING, Crop, choose_crop, choose_pair, window_lengths, windows_per_epoch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.packing import EpochPlan, batches_per_epoch, first_fit, generator, one_per_row, plan_epoch
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.window import window

_CROP, _PAIR, _WINDOWS = 2, 3, 4  # keys of the windows' random numbers, beside packing's
AHEAD_CONTEXTS = 8  # of what comes after a window, contexts' worth that objectives are shown, at most


def _none() -> npt.NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


EVALUATION_EPOCH = 2**31 - 1  # the windows and batches that evaluation always uses


@dataclass(frozen=True)
class Segment:
    """One history or window of it, ready to be placed.

    Attributes:
        token_id, age_minutes: int[n].  value: float32[n].
        given: leading tokens that nobody predicts: a window's recomputed prompt and the visit it re-opens; 0 for a whole history.
        censor_gap_days: of the history if the segment reaches its end, else -1.
        pair: number of the pair that the segment belongs to, else -1.
        ahead_token, ahead_age_minutes: int64[a]; what comes after the segment's end, on its clock; none where nothing does or nobody asks.
    """

    token_id: npt.NDArray[np.integer]
    age_minutes: npt.NDArray[np.integer]
    value: npt.NDArray[np.float32]
    given: int
    censor_gap_days: int
    pair: int = -1
    ahead_token: npt.NDArray[np.integer] = field(default_factory=_none)
    ahead_age_minutes: npt.NDArray[np.integer] = field(default_factory=_none)

    def __len__(self) -> int:
        return len(self.token_id)


def assemble(segments: list[Segment], *, width: int | None = None) -> PackedBatch:
    """Lay segments out as one batch; targets are shifted here.

    Args:
        segments: none is empty.
        width: pack them into rows of this many places; None: one per row, as wide as the longest.
    """
    lengths = np.array([len(segment) for segment in segments], dtype=np.int64)
    row, column = one_per_row(lengths) if width is None else first_fit(lengths, width)
    shape = (int(row.max()) + 1, int(lengths.max()) if width is None else width)
    token_id, segment_id, position, age = (np.zeros(shape, dtype=np.int64) for _ in range(4))
    value = np.full(shape, np.nan, dtype=np.float32)
    target = np.full(shape, IGNORE, dtype=np.int64)
    censor, pair = (np.full(shape, -1, dtype=np.int64) for _ in range(2))
    number = np.zeros(shape[0], dtype=np.int64)
    for segment, r, c in zip(segments, row, column, strict=True):
        n = len(segment)
        number[r] += 1
        token_id[r, c : c + n] = segment.token_id
        segment_id[r, c : c + n] = number[r]
        position[r, c : c + n] = np.arange(n)
        age[r, c : c + n] = segment.age_minutes
        value[r, c : c + n] = segment.value
        first = max(segment.given - 1, 0)
        target[r, c + first : c + n - 1] = segment.token_id[first + 1 :]
        censor[r, c + n - 1] = segment.censor_gap_days
        pair[r, c + n - 1] = segment.pair
    last = row * shape[1] + column + lengths - 1
    ahead = (
        np.concatenate([segment.ahead_token for segment in segments]).astype(np.int64),
        np.concatenate([segment.ahead_age_minutes for segment in segments]).astype(np.int64),
        np.repeat(last, [len(segment.ahead_token) for segment in segments]),
    )
    arrays = (token_id, segment_id, position, age, value, target, censor, pair, *ahead)
    return PackedBatch(*(torch.from_numpy(array) for array in arrays))


class Loader:
    """Batches of one split.

    Args:
        store: where the tokens are.
        split: name of the split.
        tokens_per_batch: real tokens per batch, about (a batch may exceed it by less than one context).
        context: most tokens of a window.
        seed: decides order and windows together with the step.
        packed: several segments per row of `context` places (accelerators), else one per row.
        pair_share: of the windows of each batch, drawn anew each epoch, that are cut into two without a common event instead.
        ahead: show what comes after each window.
        histories: of the split, those to read (indices into the store); None: all.

    Raises:
        InputError: the split has no histories.
        ConfigError: `tokens_per_batch` is below `context`.
    """

    def __init__(
        self,
        store: TokenStore,
        split: str,
        *,
        tokens_per_batch: int,
        context: int,
        seed: int,
        packed: bool = False,
        pair_share: float = 0.0,
        ahead: bool = False,
        histories: npt.NDArray[np.integer] | None = None,
    ):
        if tokens_per_batch < context:
            raise ConfigError(f"tokens_per_batch {tokens_per_batch} is below the context {context}; it must hold at least one window")
        if context < 2 * (PROMPT_LENGTH + REOPENING):
            raise ConfigError(f"context {context} has no room behind a prompt; it must be at least {2 * (PROMPT_LENGTH + REOPENING)}")
        self.store, self.split = store, split
        self.tokens_per_batch, self.context, self.seed, self.packed = tokens_per_batch, context, seed, packed
        self.pair_share, self.ahead = pair_share, ahead
        self.indices = store.indices(split) if histories is None else histories.astype(np.int64)
        if not len(self.indices):
            raise InputError(f"{store.folder}: split '{split}' has no histories with tokens; splits there: {', '.join(store.splits) or 'none'}")
        lengths = store.lengths[self.indices].astype(np.int64)
        self.windows = windows_per_epoch(lengths, context, generator(seed, _WINDOWS))
        self._number = np.repeat(np.arange(len(lengths)), self.windows)  # of the history that each window is of
        self._turn = np.arange(len(self._number)) - np.repeat(np.cumsum(self.windows) - self.windows, self.windows)
        self.tokens_per_epoch = int(lengths.sum())
        self.batches_per_epoch = batches_per_epoch(lengths, tokens_per_batch)
        self._kind = store.vocabulary.kind
        self._plan: tuple[int, EpochPlan, npt.NDArray[np.float64]] | None = None

    @property
    def pairs_per_batch(self) -> float:
        """Windows of a batch that are to be cut into pairs, on average (some histories are too short to be cut)."""
        return self.pair_share * len(self._number) / self.batches_per_epoch

    def _plan_of(self, epoch: int) -> tuple[EpochPlan, npt.NDArray[np.float64]]:
        """The epoch's batches, and where each of its windows is cut."""
        kept = self._plan  # looked at once: another thread may ask for another epoch meanwhile
        if kept is None or kept[0] != epoch:
            share = self._share(epoch)
            lengths = window_lengths(self.store.lengths[self.indices[self._number]].astype(np.int64), self.context, share)
            plan = plan_epoch(lengths, batches=self.batches_per_epoch, seed=self.seed, epoch=epoch, packed=self.packed)
            self._plan = kept = (epoch, plan, share)
        return kept[1], kept[2]

    def _share(self, epoch: int) -> npt.NDArray[np.float64]:
        """Where each window of the epoch is cut, from 0 to 1 along its history: evenly from a random beginning."""
        begin = generator(self.seed, epoch, _CROP).random(len(self.indices))
        return (self._turn + begin[self._number]) / self.windows[self._number]

    def subjects(self, step: int) -> npt.NDArray[np.int64]:
        """Histories (indices into the store) that batch `step` is made of, window by window."""
        epoch, index = divmod(step, self.batches_per_epoch)
        return self.indices[self._number[self._plan_of(epoch)[0].batch(index)]]

    def batch(self, step: int) -> PackedBatch:
        """Batch number `step`, counted from 0 over all epochs."""
        return self._make(*divmod(step, self.batches_per_epoch))

    def evaluation(self, limit: int | None = None) -> Iterator[PackedBatch]:
        """One epoch that is the same every time; at most `limit` batches of it."""
        for index in range(min(self.batches_per_epoch, limit or self.batches_per_epoch)):
            yield self._make(EVALUATION_EPOCH, index)

    def evaluation_subjects(self, index: int) -> npt.NDArray[np.int64]:
        """Histories that batch `index` of `evaluation` is made of."""
        return self.indices[self._number[self._plan_of(EVALUATION_EPOCH)[0].batch(index)]]

    def _make(self, epoch: int, index: int) -> PackedBatch:
        group = (epoch * self.batches_per_epoch + index) % PAIRS_PER_GROUP
        segments: list[Segment] = []
        pairs = 0
        plan, share = self._plan_of(epoch)
        for one in plan.batch(index):
            history = int(self.indices[self._number[one]])
            crops = self._crops(history, int(one), float(share[one]), epoch)
            pair = group * PAIRS_PER_GROUP + pairs if len(crops) == 2 else -1
            segments += [self._segment(history, crop, pair) for crop in crops]
            pairs += len(crops) == 2
        # The windows of pairs are shorter than the histories they come from: they share rows.
        longest = max(len(segment) for segment in segments) if pairs else None
        return assemble(segments, width=self.context if self.packed else longest)

    def _crops(self, history: int, one: int, share: float, epoch: int) -> tuple[Crop, ...]:
        """What is taken of a history: all of it, a window, or two that make a pair."""
        place = self.store.histories.history(history)
        length = place.stop - place.start
        if self.pair_share:
            random = generator(self.seed, epoch, _PAIR, one)
            wanted = random.random() < self.pair_share
            if wanted and (both := choose_pair(self._kind[self.store.token_id[place]], self.context, random)) is not None:
                return both
        if length <= self.context:
            return (Crop(0, length),)
        return (choose_crop(self._kind[self.store.token_id[place]], self.context, share),)

    def _segment(self, history: int, crop: Crop, pair: int) -> Segment:
        histories = self.store.histories
        place = histories.history(history)
        whole = crop.stop == place.stop - place.start
        censor = int(histories.censor_gap_days[history]) if whole else -1
        if whole and crop.start == 0:
            return Segment(histories.token_id[place], histories.age_minutes[place], histories.value[place], 0, censor, pair)
        cut = window(histories, self.store.vocabulary, history, crop.start, crop.stop)
        given = 0 if crop.start == 0 else self._given(cut.token_id)
        ahead = self._after(history, crop.stop, int(cut.age_minutes[-1])) if self.ahead and not whole else (_none(), _none())
        return Segment(cut.token_id, cut.age_minutes, cut.value, given, censor, pair, *ahead)

    def _after(self, history: int, stop: int, age: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Tokens and ages after a window that ends before token `stop`, at an age of its own clock; the end of an open history, where it is
        reached, is a padding token."""
        histories = self.store.histories
        place = histories.history(history)
        last = min(place.start + stop + AHEAD_CONTEXTS * self.context, place.stop)
        token = histories.token_id[place.start + stop : last].astype(np.int64)
        ages = histories.age_minutes[place.start + stop : last].astype(np.int64)
        if last == place.stop:
            open_days = max(int(histories.censor_gap_days[history]), 0)
            token, ages = np.append(token, 0), np.append(ages, ages[-1] + open_days * MINUTES_PER_DAY)
        return token, ages - int(histories.age_minutes[place.start + stop - 1]) + age

    def _given(self, token_id: npt.NDArray[np.int32]) -> int:
        """Leading tokens of a window from the middle of a history that say where it starts: they are recomputed, not predicted.

        The prompt, and the visit that is re-opened with its ward, day and hour; where no visit is, the first token too, as it stands there
        by the choice of the window and not by what a prompt implies.
        """
        kind = self._kind[token_id[PROMPT_LENGTH : PROMPT_LENGTH + REOPENING + 2]]
        if len(kind) <= REOPENING or kind[0] != Kind.VISIT_RESUME:
            return PROMPT_LENGTH + 1
        said = REOPENING + int(kind[2] == Kind.ICU_START)
        return PROMPT_LENGTH + said + int(len(kind) > said and kind[said] == Kind.IN_VISIT_HOURS)
