"""Many futures at once: prompts read for all their samples, rows that join and leave, one token a step for all.

Prompts are read in groups of like length, once for each batch that their futures go into; the samples of a prompt share what was read (or
copy it, where they are few). Up to `batch_rows` futures are written side by side. A future that ends leaves the batch at once (live rows
move into its place), and when a quarter of the places are free new futures join. So the matrices stay large, no step is spent on a finished
row, and memory is bounded by `batch_rows` and the longest row.

What a future says depends on (seed, subject, prediction time, sample) and the model alone, not on its companions: random numbers are
hashed from those (`sampler`), and nothing else is shared. In float64 results are equal token for token whatever the batch; in float32
sums round differently with the shape of the batch, and now and then a future parts ways (docs/rollout.md has figures).

Per step and row the cost is two FLOP for each matrix weight, one read of the row's keys and values, and one pass over the
vocabulary; the bookkeeping is NumPy over whole columns. On a CPU each thread writes a batch of its own; on a GPU steps are captured (`model.graphs`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event, Lock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.errors import ConfigError, MismatchError
from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.documents import LIKE_LENGTH
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import sampler
from cehrxgpt.rollout.constraints import Goal, waiting
from cehrxgpt.rollout.dates import Dates
from cehrxgpt.rollout.next_token import Next, NextToken
from cehrxgpt.rollout.prompt import Prompt, read_prompts
from cehrxgpt.rollout.reader import Reader
from cehrxgpt.rollout.result import Rollouts
from cehrxgpt.rollout.rows import GIVEN_UP, RUNNING, Int, Rows, Writer, assemble
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.vocabulary import Vocabulary

PREFILL_TOKENS = 16_384  # at most so many places, padding included, are read at once
JOIN_BELOW = 0.75  # new futures join when fewer than this share of `batch_rows` are being written
MOST_PLACES_AT_ONCE = 512
SHARE_FROM = 4  # so many samples look at one copy of their prompt; fewer get one each, which is quicker to attend
FEWEST_ROWS = 32  # futures that are worth a thread of their own
ATTEMPTS = 1_000  # so many futures that say what is known not to have been, and the next is kept as it is


@dataclass
class Group:
    """Futures whose prompts were read together."""

    rows: Int  # [F], places in the result
    place: Int  # [F], which of the prompts
    cache: KVCache
    next: Next


@dataclass
class Share:
    """The futures that one thread writes: those it has not begun, and those that were given up since, to be drawn anew."""

    untaken: Int
    again: list[Int] = field(default_factory=list)


def rollout(
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    max_new_tokens: int | None = None,
    batch_rows: int = 512,
    stop_tokens: npt.NDArray[np.bool_] | None = None,
    temperature: float = 1.0,
    dtype: torch.dtype | None = None,
    first_sample: int = 0,
    watched: npt.NDArray[np.bool_] | None = None,
    masked_tokens: npt.NDArray[np.bool_] | None = None,
    dates: Dates | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Rollouts:
    """Draw `samples` futures of every prompt.

    Args:
        decoder: the model; it is not changed.
        vocabulary: its own.
        prompts: histories cut at their prediction time; any order, any mix of lengths.
        samples: futures of each.
        seed: futures are a function of it, of the subject and prediction time, and of the sample's number.
        max_new_tokens: budget of each future; None: what the model's context leaves.
        batch_rows: futures written side by side; on a CPU, by each of torch's threads.
        stop_tokens: bool[V]; a future ends with the first of these (an outcome).
        temperature: 1 draws from the model's own distribution.
        dtype: precision to compute in; None: the decoder's.
        first_sample: number of the first sample, to draw more later.
        watched: bool[K, V]; the probability of each of these sets of tokens is kept at every draw (`Rollouts.chance`).
        masked_tokens: bool[V]; these are not drawn and the rest is renormalised. What is watched is their probability before that.
        dates: stop tokens stop, and masked tokens are masked, on these dates alone; None: always.
        progress: called with (futures done, futures asked for).

    Returns:
        Every (prompt, sample) exactly once, in order.

    Raises:
        ConfigError: an argument is out of range.  MismatchError: decoder and vocabulary, or stop tokens, differ in size.
        InputError: a prompt cannot be used; see `read_prompts`.
    """
    for name, value in (("samples", samples), ("batch_rows", batch_rows), ("max_new_tokens", 1 if max_new_tokens is None else max_new_tokens)):
        if value < 1:
            raise ConfigError(f"rollout: {name} is {value}; it must be at least 1")
    if not temperature > 0:
        raise ConfigError(f"rollout: temperature is {temperature}; it must be above 0")
    sets = {"stop_tokens": stop_tokens, "watched": watched, "masked_tokens": masked_tokens}
    sizes = {"the vocabulary": len(vocabulary)} | {name: tokens.shape[-1] for name, tokens in sets.items() if tokens is not None}
    for name, size in sizes.items():
        if size != decoder.config.vocabulary_size:
            raise MismatchError(f"rollout: the model knows {decoder.config.vocabulary_size:,} tokens, {name} has {size:,}; they must match")
    engine = _Engine(Reader(decoder, dtype), vocabulary, prompts, samples, seed, max_new_tokens, batch_rows, stop_tokens, temperature, first_sample)
    engine.watch(watched, masked_tokens, dates)
    return engine.run(progress)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Operations of threads that are begun meanwhile are not divided among further threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Engine:
    """One call of `rollout`."""

    def __init__(
        self,
        reader: Reader,
        vocabulary: Vocabulary,
        prompts: Sequence[Prompt],
        samples: int,
        seed: int,
        max_new_tokens: int | None,
        batch_rows: int,
        stop_tokens: npt.NDArray[np.bool_] | None,
        temperature: float,
        first_sample: int,
    ):
        self.reader, self.samples, self.batch_rows = reader, samples, batch_rows
        grammar, context = Grammar(vocabulary), reader.config.context
        self.next_token = NextToken(reader, vocabulary, grammar, temperature)
        self.table = read_prompts(prompts, vocabulary, grammar, context)
        self.goals = Goal.after(self.table.prediction_clock, self.table.hourly)
        self.writer = Writer(vocabulary, grammar, self.goals, stop_tokens)
        self.room = np.minimum(max_new_tokens or context, context - self.table.length)
        self.subject_id = np.array([prompt.subject_id for prompt in prompts], dtype=np.int64)
        self.sample_id = (first_sample + np.arange(samples)).astype(np.int32)
        times = [prompt.prediction_time for prompt in prompts for _ in range(samples)]
        self.keys = sampler.keys(seed, np.repeat(self.subject_id, samples), times, np.tile(self.sample_id, len(prompts)))
        self.attempt, self.given_up = np.zeros(len(self.keys), dtype=np.int64), np.zeros(len(self.keys), dtype=np.int64)
        self.finished: list[Rows] = []
        self.lock, self.stopped = Lock(), Event()
        self.watched: list[Tensor] = []
        self.masked: npt.NDArray[np.bool_] | None = None
        self.dates: Dates | None = None

    def watch(self, watched: npt.NDArray[np.bool_] | None, masked: npt.NDArray[np.bool_] | None, dates: Dates | None) -> None:
        """Keep the probability of these sets of tokens at every draw; do not draw what is masked."""
        self.watched = [] if watched is None else [self.reader.tensor(np.flatnonzero(tokens)) for tokens in watched]
        self.masked, self.dates = masked, dates
        self.writer.dates = dates

    # -- the loop -----------------------------------------------------------------------------------------------------------------

    def run(self, progress: Callable[[int, int], None] | None) -> Rollouts:
        """Write every future."""
        futures = self._start()
        shares = self._shares(futures, self._writers(len(futures)))
        # Batches of equal size, rather than full ones and a rest.
        each = len(shares[0].untaken)
        self.batch_rows = -(-each // -(-each // self.batch_rows)) if each else self.batch_rows

        def report() -> None:
            if progress is not None:
                with self.lock:
                    progress(sum(len(rows) for rows in self.finished), len(self.keys))

        if len(shares) == 1:
            self._write(shares[0], report)
        else:
            with _one_thread_each(), ThreadPoolExecutor(len(shares)) as pool:
                try:
                    for written in as_completed([pool.submit(self._write, share, report) for share in shares]):
                        written.result()
                except BaseException:  # Ctrl-C too: the others end with the step they are at, not with their share
                    self.stopped.set()
                    raise
        return self._result()

    def _writers(self, futures: int) -> int:
        """How many threads write futures, each a batch of its own.

        On a CPU that costs a third of what it costs to divide every product among the threads: a step is made of some hundred small
        operations, and none has to wait for the slowest thread of the one before.
        """
        return max(min(torch.get_num_threads(), futures // FEWEST_ROWS), 1) if self.reader.device.type == "cpu" else 1

    def _shares(self, futures: Int, writers: int) -> list[Share]:
        """These futures in as many equal parts, each of prompts of all lengths. Who writes what is settled here and not by which thread is free
        first, so that the same call on the same machine gives the same bits: sums round differently with what else is in a batch.
        """
        futures = self._in_order(futures)
        prompt = futures // self.samples
        run = np.cumsum(np.diff(prompt, prepend=prompt[:1]) != 0)  # of each future's prompt, the longest is 0
        dealt = futures[np.argsort(run % writers, kind="stable")]
        return [Share(self._in_order(part)) for part in np.array_split(dealt, writers)]

    @torch.inference_mode()
    def _write(self, share: Share, report: Callable[[], None]) -> None:
        """Write the futures of a share."""
        cache = self.reader.cache(capacity=self._places_at_once())
        live, room, reported = self._fill(cache, self._new_rows(np.zeros(0, dtype=np.int64)), share), sampler.Workspace(), 0
        while True:
            if len(self.finished) > reported:
                reported = len(self.finished)
                report()
            if not len(live) or self.stopped.is_set():
                return
            self._step(cache, live, room)
            self._leave(cache, live, share)
            if len(live) <= self.batch_rows * JOIN_BELOW:
                live = self._fill(cache, live, share)

    def _fill(self, cache: KVCache, live: Rows, share: Share) -> Rows:
        """New futures join until the batch is full, or until the places that are left are too few for a prompt and too few to matter."""
        while (free := self.batch_rows - len(live)) > 0 and not self.stopped.is_set():
            futures = self._take(share, free, divide=len(live) <= self.batch_rows * JOIN_BELOW)
            if not len(futures):
                break
            live = self._join(cache, live, self._read(futures), share)
        return live

    def _places_at_once(self) -> int:
        """Places to make room for at the start: on a GPU every doubling throws captured steps away. Prompts that are not shared make their own."""
        if self.reader.device.type == "cpu" or self.samples < SHARE_FROM:
            return 1
        return min(int(self.room.max(initial=1)), MOST_PLACES_AT_ONCE)

    def _start(self) -> Int:
        """Set aside the futures that have nothing to do; returns the others."""
        rows = self._new_rows(np.arange(len(self.keys)), width=0)
        self.writer.start(rows)
        done = rows.take(rows.reason != RUNNING)
        if len(done):
            self.finished.append(done.narrowed())
        return rows.row[rows.reason == RUNNING]

    def _in_order(self, futures: Int) -> Int:
        """Prompt by prompt, the longest first; sample by sample."""
        prompt = futures // self.samples
        return futures[np.lexsort((futures, prompt, -self.table.length[prompt]))]

    def _take(self, share: Share, free: int, *, divide: bool) -> Int:
        """The futures of the next prompts, of like length: whole prompts, or (`divide`) what there is room for of one, to be read again for the rest.

        Futures that were given up since are the last.
        """
        if not len(share.untaken) and share.again:
            share.untaken, share.again = self._in_order(np.concatenate(share.again)), []
        prompt = share.untaken[: free + 1] // self.samples  # one more shows whether the last prompt ends there
        ends = np.flatnonzero(np.diff(prompt)) + 1
        if 0 < len(share.untaken) <= free:
            ends = np.append(ends, len(share.untaken))
        stop = min(free, len(share.untaken)) if divide else 0
        if len(ends):
            length = self.table.length[prompt[ends - 1]]
            most = max(PREFILL_TOKENS // int(length[0]), 1)
            stop = int(ends[:most][length[:most] * LIKE_LENGTH >= length[0]][-1])
        taken, share.untaken = share.untaken[:stop], share.untaken[stop:]
        return taken

    def _read(self, rows: Int) -> Group:
        table = self.table
        prompts, place = np.unique(rows // self.samples, return_inverse=True)
        hidden, cache = self.reader.read([table.prompts[index].token_id for index in prompts], [table.age_minutes[index] for index in prompts])
        state, goal = table.state(prompts), self.goals.take(prompts)
        return Group(rows, place, cache, self.next_token(hidden, cache, state, goal, waiting(state, goal)))

    def _join(self, cache: KVCache, live: Rows, group: Group, share: Share) -> Rows:
        """Begin the futures of a group: their first token is drawn from what the prompt gave."""
        place, rows = group.place, self._new_rows(group.rows)
        self._draw(rows, group.next.take(place))
        running = rows.reason == RUNNING
        self._finish(rows.take(~running), share)
        if not running.any():
            return live
        (cache.append if self.samples < SHARE_FROM else cache.share)(group.cache, torch.from_numpy(place[running]))
        return live.append(rows.take(running))

    def _step(self, cache: KVCache, live: Rows, room: sampler.Workspace) -> None:
        """One token for every live row."""
        state = live.state
        hidden = self.reader.read_one(cache, live.last_token, state.age_minutes)
        goal = self.goals.take(live.prompt) if live.waiting.any() else None
        self._draw(live, self.next_token(hidden, cache, state, goal, live.waiting, room))

    def _leave(self, cache: KVCache, live: Rows, share: Share) -> None:
        """Rows that have ended go out of the batch."""
        gone = live.reason != RUNNING
        if gone.any():
            self._finish(live.take(gone), share)
            source, target = cache.drop(torch.from_numpy(gone))
            live.move(source.numpy(), target.numpy(), cache.rows)

    def _draw(self, rows: Rows, following: Next) -> None:
        """Draw one token for each row and write it."""
        weights = following.weights
        if self.watched:
            rows.chance[np.arange(len(rows)), rows.drawn] = self._chances(weights)
            rows.drawn_at[np.arange(len(rows)), rows.drawn] = rows.clock
        if self.masked is not None:
            where = np.ones(len(rows), dtype=bool) if self.dates is None else self.dates.hold(rows.prompt, rows.clock)
            weights = self._without(weights, where, self.masked)
        uniform = self.reader.tensor(sampler.uniform(rows.key, rows.drawn))
        drawn, log_probability = sampler.draw(weights, uniform)
        token = drawn.cpu().numpy()
        rows.removed_mass += following.removed
        rows.gap_log_mass += np.where(rows.weighted, 0.0, following.gap_log_mass)
        rows.conditioned &= ~following.released
        rows.waiting &= ~following.released
        rows.weighted = following.boundary == token
        self.writer.add(rows, token, log_probability.cpu().numpy())

    def _chances(self, weights: Tensor) -> npt.NDArray[np.float64]:
        """Probability of each watched set, float64[R, K]."""
        total = weights.sum(-1, dtype=torch.float64)
        return torch.stack([weights[:, tokens].sum(-1, dtype=torch.float64) / total for tokens in self.watched], dim=-1).cpu().numpy()

    def _without(self, weights: Tensor, where: npt.NDArray[np.bool_], tokens: npt.NDArray[np.bool_]) -> Tensor:
        """The weights without these tokens in the rows `where`; a row that would have nothing left stays as it is."""
        rest = weights.masked_fill(self.reader.tensor(where)[:, None] & self.reader.tensor(tokens), 0.0)
        nothing = rest.amax(-1, keepdim=True) <= 0
        return torch.where(nothing, weights, rest)

    # -- rows ---------------------------------------------------------------------------------------------------------------------

    def _new_rows(self, row: Int, width: int | None = None) -> Rows:
        """Futures with nothing written yet; `row` = prompt * samples + sample."""
        prompt, count = row // self.samples, len(row)
        state = self.table.state(prompt)
        room = self.room[prompt]
        width = (int(room.max()) if count else 0) if width is None else width
        return Rows(
            row=row,
            prompt=prompt,
            key=sampler.anew(self.keys[row], self.attempt[row]),
            phase=state.phase,
            clock=state.clock_minutes,
            age_months=state.age_months,
            count=np.zeros(count, dtype=np.int64),
            drawn=np.zeros(count, dtype=np.int64),
            room=room,
            horizon=self.table.horizon_clock[prompt],
            until=self.table.until[prompt],
            earliest=self.table.earliest[prompt],
            waiting=waiting(state, self.goals.take(prompt)),
            weighted=np.zeros(count, dtype=bool),
            entered=np.zeros(count, dtype=bool),
            unconfirmed=np.zeros(count, dtype=bool),
            conditioned=self.attempt[row] < ATTEMPTS,
            log_probability=np.zeros(count),
            removed_mass=np.zeros(count),
            gap_log_mass=np.zeros(count),
            reason=np.full(count, RUNNING, dtype=np.int8),
            token=np.zeros((count, width), dtype=np.int32),
            when=np.zeros((count, width), dtype=np.int64),
            chance=np.zeros((count, width if self.watched else 0, len(self.watched))),
            drawn_at=np.zeros((count, width if self.watched else 0), dtype=np.int64),
        )

    def _finish(self, rows: Rows, share: Share) -> None:
        """Set aside those that have ended, and put those that were given up back to be drawn anew."""
        given_up = rows.reason == GIVEN_UP
        if given_up.any():
            again = rows.row[given_up]
            self.given_up[again] += rows.drawn[given_up]
            self.attempt[again] += 1
            share.again.append(again)
            rows = rows.take(~given_up)
        if len(rows):
            self.finished.append(rows.narrowed())

    def _result(self) -> Rollouts:
        return assemble(self.finished, self.samples, self.subject_id, self.sample_id, self.given_up)
