"""Batches of patients' windows as a pure function of (seed, step).

Every epoch reads each history of the split once: whole, or where it is longer than the context in several windows, drawn from (seed, epoch): see
`crop`. Nothing is kept between steps, so that a resumed run reads exactly what the uninterrupted one would have.
Making a batch of 4,096 tokens takes about two milliseconds; the pages of the store are read when touched.

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
from cehrxgpt.store.crop import REOPENING, Crop, choose_crop, choose_pair, tokens_wanted, window_lengths, window_targets, windows_wanted
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.packing import EpochPlan, batches_per_epoch, first_fit, generator, one_per_row, plan_epoch
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.time import MINUTES_PER_DAY
from cehrxgpt.timeline.window import window

_WINDOWS, _PAIR = 2, 3  # keys of the windows' random numbers, beside packing's
READING = 2  # of the rules by which batches are made: a run that was begun by others does not go on with these
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


@dataclass(frozen=True)
class _Epoch:
    """One epoch's W windows: the batches, the history of each window, where it starts (a wish), and whether a pair stands in its place; [W] each."""

    plan: EpochPlan
    history: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    paired: npt.NDArray[np.bool_]


class Loader:
    """Batches of one split.

    Args:
        store: where the tokens are.
        split: name of the split.
        tokens_per_batch: real tokens per batch, about (a batch may exceed it by less than one context).
        context: most tokens of a window.
        seed: decides order and windows together with the step.
        packed: several segments per row of `context` places (accelerators), else one per row.
        pair_share: of the histories, drawn anew each epoch, of which one window makes way for two without a common event.
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
        self.lengths = store.lengths[self.indices].astype(np.int64)
        self.tokens_per_epoch = int(self.lengths.sum())
        self.batches_per_epoch = batches_per_epoch(tokens_wanted(self.lengths, context), tokens_per_batch)
        self._kind = store.vocabulary.kind
        self._epoch: tuple[int, _Epoch] | None = None

    @property
    def pairs_per_batch(self) -> float:
        """Histories of a batch that are to be cut into pairs, on average (some are too short to be cut)."""
        return self.pair_share * len(self.indices) / self.batches_per_epoch

    def _of(self, epoch: int) -> _Epoch:
        kept = self._epoch  # looked at once: another thread may ask for another epoch meanwhile
        if kept is None or kept[0] != epoch:
            self._epoch = kept = (epoch, self._draw(epoch))
        return kept[1]

    def _draw(self, epoch: int) -> _Epoch:
        random = generator(self.seed, epoch, _WINDOWS)
        wanted = windows_wanted(self.lengths, self.context)
        times = (wanted + random.random(len(wanted))).astype(np.int64)  # fractions rounded at random, so that they are right on average
        number = np.repeat(np.arange(len(times)), times)
        turn = np.arange(len(number)) - np.repeat(np.cumsum(times) - times, times)
        begin = random.random(len(times))
        target = window_targets(self.lengths[number], self.context, (turn + begin[number]) / times[number])
        paired = np.zeros(len(number), dtype=np.bool_)
        if self.pair_share:
            # One window of the history makes way; which one is drawn, so that none is read less.
            pairing = generator(self.seed, epoch, _PAIR)
            wants = pairing.random(len(times)) < self.pair_share
            paired = wants[number] & (turn == (pairing.random(len(times)) * times).astype(np.int64)[number])
        lengths = window_lengths(self.lengths[number], self.context, target)
        plan = plan_epoch(lengths, batches=self.batches_per_epoch, seed=self.seed, epoch=epoch, packed=self.packed)
        return _Epoch(plan, self.indices[number], target, paired)

    def subjects(self, step: int) -> npt.NDArray[np.int64]:
        """Histories (indices into the store) that batch `step` is made of, window by window."""
        return self._subjects(*divmod(step, self.batches_per_epoch))

    def _subjects(self, epoch: int, index: int) -> npt.NDArray[np.int64]:
        drawn = self._of(epoch)
        return drawn.history[drawn.plan.batch(index)]

    def batch(self, step: int) -> PackedBatch:
        """Batch number `step`, counted from 0 over all epochs."""
        return self._make(*divmod(step, self.batches_per_epoch))

    def evaluation(self, limit: int | None = None) -> Iterator[PackedBatch]:
        """One epoch that is the same every time; at most `limit` batches of it."""
        for index in range(min(self.batches_per_epoch, limit or self.batches_per_epoch)):
            yield self._make(EVALUATION_EPOCH, index)

    def evaluation_subjects(self) -> npt.NDArray[np.int64]:
        """Histories that the batches of `evaluation` are made of, window by window."""
        return np.concatenate([self._subjects(EVALUATION_EPOCH, index) for index in range(self.batches_per_epoch)])

    def _make(self, epoch: int, index: int) -> PackedBatch:
        group = (epoch * self.batches_per_epoch + index) % PAIRS_PER_GROUP
        segments: list[Segment] = []
        pairs = 0
        drawn = self._of(epoch)
        for one in drawn.plan.batch(index):
            history = int(drawn.history[one])
            crops = self._crops(history, int(drawn.target[one]), epoch if drawn.paired[one] else None)
            pair = group * PAIRS_PER_GROUP + pairs if len(crops) == 2 else -1
            segments += [self._segment(history, crop, pair) for crop in crops]
            pairs += len(crops) == 2
        # The windows of pairs are shorter than the histories they come from: they share rows.
        longest = max(len(segment) for segment in segments) if pairs else None
        return assemble(segments, width=self.context if self.packed else longest)

    def _crops(self, history: int, target: int, pair_of: int | None) -> tuple[Crop, ...]:
        """What is taken of a history: all of it, a window, or two that make a pair of this epoch."""
        place = self.store.histories.history(history)
        length = place.stop - place.start
        if pair_of is not None:
            random = generator(self.seed, pair_of, _PAIR, history)
            if (both := choose_pair(self._kind[self.store.token_id[place]], self.context, random)) is not None:
                return both
        if length <= self.context:
            return (Crop(0, length),)
        return (choose_crop(self._kind[self.store.token_id[place]], self.context, target),)

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
