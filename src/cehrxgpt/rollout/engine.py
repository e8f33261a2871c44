"""Many futures at once: every prompt read once, rows that join and leave, one token a step for all.

Prompts are read in groups of like length; the samples of a prompt share what was read (or copy it, where they are few). Up to `batch_rows`
futures are written side by side. A future that ends leaves the batch at once (live rows move into its place), and when a quarter of
the places are free new futures join. So the matrices stay large, no step is spent on a finished row, and memory is bounded by
`batch_rows` and the longest row.

What a future says depends on (seed, subject, prediction time, sample) and the model alone, not on its companions: random numbers are
hashed from those (`sampler`), and nothing else is shared. In float64 results are equal token for token whatever the batch; in float32
sums round differently with the shape of the batch, and now and then a future parts ways (docs/rollout.md has figures).

Per step and row the cost is two FLOP for each matrix weight, one read of the row's keys and values, and one pass over the
vocabulary; the bookkeeping is NumPy over whole columns. On a CPU each thread writes a batch of its own; on a GPU steps are captured (`model.graphs`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.errors import ConfigError, MismatchError
from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.documents import LIKE_LENGTH
from cehrxgpt.model.graphs import StepGraphs
from cehrxgpt.model.precision import wide_dtype
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import sampler
from cehrxgpt.rollout.constraints import BOUNDARY, KEPT, GapTable, Goal, allowed_table, take_state, waiting
from cehrxgpt.rollout.dates import Dates
from cehrxgpt.rollout.prompt import Prompt, read_prompts
from cehrxgpt.rollout.result import Rollouts
from cehrxgpt.rollout.rows import RUNNING, Int, Rows, Writer, assemble
from cehrxgpt.timeline.grammar import Grammar, State
from cehrxgpt.timeline.vocabulary import Vocabulary

PREFILL_TOKENS = 16_384  # at most so many places, padding included, are read at once
JOIN_BELOW = 0.75  # new futures join when fewer than this share of `batch_rows` are being written
SHARE_FROM = 4  # so many samples look at one copy of their prompt; fewer get one each, which is quicker to attend
FEWEST_ROWS = 32  # futures that are worth a thread of their own
SMALLEST_MASS = 1e-280  # conditioning on less than this is conditioning on nothing


@dataclass
class Next:
    """The distribution of the next token of R rows, and what was taken away to get it."""

    weights: Tensor  # [R, V], unnormalised
    removed: npt.NDArray[np.float64]  # [R] mass the grammar took away
    gap_log_mass: npt.NDArray[np.float64]  # [R] log of the mass that conditioning on the gap kept; 0 where it was not asked for
    boundary: npt.NDArray[np.int64]  # [R] token whose weight already counts what is kept after it; -1 = none
    released: npt.NDArray[np.bool_]  # [R] nothing was kept: the row goes on unconditioned

    def take(self, rows: Int) -> Next:
        """Of these rows; one may stand several times."""
        weights = self.weights[torch.from_numpy(rows).to(self.weights.device)]
        return Next(weights, self.removed[rows], self.gap_log_mass[rows], self.boundary[rows], self.released[rows])


@dataclass
class Group:
    """Prompts that were read together."""

    prompts: npt.NDArray[np.int64]  # [P]
    cache: KVCache
    next: Next


def rollout(
    decoder: Decoder,
    vocabulary: Vocabulary,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    seed: int,
    max_new_tokens: int | None = None,
    batch_rows: int = 256,
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
    if dtype is not None and dtype != decoder.embedding.weight.dtype:
        decoder = copy.deepcopy(decoder).to(dtype)
    engine = _Engine(decoder, vocabulary, prompts, samples, seed, max_new_tokens, batch_rows, stop_tokens, temperature, first_sample)
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
        decoder: Decoder,
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
        self.decoder, self.config = decoder, decoder.config
        self.device, self.dtype = decoder.embedding.weight.device, decoder.embedding.weight.dtype
        self.samples, self.batch_rows, self.temperature = samples, batch_rows, temperature
        self.grammar = Grammar(vocabulary)
        self.allowed = allowed_table(vocabulary, self.grammar, self.device).to(wide_dtype(decoder.embedding.weight))
        self.graphs = StepGraphs(decoder) if self.device.type == "cuda" else None
        self.gap = GapTable(vocabulary, self.grammar)
        self.table = read_prompts(prompts, vocabulary, self.grammar, self.config.context)
        self.goals = Goal.after(self.table.prediction_clock, self.table.hourly)
        self.writer = Writer(vocabulary, self.grammar, self.goals, stop_tokens)
        self.room = np.minimum(max_new_tokens or self.config.context, self.config.context - self.table.length)
        self.subject_id = np.array([prompt.subject_id for prompt in prompts], dtype=np.int64)
        self.sample_id = (first_sample + np.arange(samples)).astype(np.int32)
        times = [prompt.prediction_time for prompt in prompts for _ in range(samples)]
        self.keys = sampler.keys(seed, np.repeat(self.subject_id, samples), times, np.tile(self.sample_id, len(prompts)))
        self.finished: list[Rows] = []
        self.watched: list[Tensor] = []
        self.masked: npt.NDArray[np.bool_] | None = None
        self.dates: Dates | None = None

    def watch(self, watched: npt.NDArray[np.bool_] | None, masked: npt.NDArray[np.bool_] | None, dates: Dates | None) -> None:
        """Keep the probability of these sets of tokens at every draw; do not draw what is masked."""
        self.watched = [] if watched is None else [self._tensor(np.flatnonzero(tokens)) for tokens in watched]
        self.masked, self.dates = masked, dates
        self.writer.dates = dates

    # -- the loop -----------------------------------------------------------------------------------------------------------------

    def run(self, progress: Callable[[int, int], None] | None) -> Rollouts:
        """Write every future."""
        order = self._start()
        writers = self._writers(len(order) * self.samples)
        # Batches of equal size, rather than full ones and a rest.
        each = -(-len(order) * self.samples // writers)
        self.batch_rows = -(-each // -(-each // self.batch_rows)) if each else self.batch_rows
        groups, lock = self._groups(order), Lock()

        def next_group() -> Int | None:
            with lock:
                return next(groups, None)

        def report() -> None:
            if progress is not None:
                with lock:
                    progress(sum(len(rows) for rows in self.finished), len(self.keys))

        if writers == 1:
            self._write(next_group, report)
        else:
            with _one_thread_each(), ThreadPoolExecutor(writers) as pool:
                for written in [pool.submit(self._write, next_group, report) for _ in range(writers)]:
                    written.result()
        return self._result()

    def _writers(self, futures: int) -> int:
        """How many threads write futures, each a batch of its own.

        On a CPU that costs a third of what it costs to divide every product among the threads: a step is made of some hundred small
        operations, and none has to wait for the slowest thread of the one before.
        """
        return max(min(torch.get_num_threads(), futures // FEWEST_ROWS), 1) if self.device.type == "cpu" else 1

    @torch.inference_mode()
    def _write(self, next_group: Callable[[], Int | None], report: Callable[[], None]) -> None:
        """Write futures of one group after the other until there are no more."""
        cache = KVCache(self.config, 0, 1, self.dtype, self.device)
        live, room = self._new_rows(np.zeros(0, dtype=np.int64)), sampler.Workspace()
        group, cursor, reported = self._read_next(next_group), 0, 0
        while group is not None or len(live):
            joining = len(live) <= self.batch_rows * JOIN_BELOW
            while joining and group is not None and len(live) < self.batch_rows:
                futures = np.arange(cursor, min(cursor + self.batch_rows - len(live), len(group.prompts) * self.samples))
                live, cursor = self._join(cache, live, group, futures), cursor + len(futures)
                if cursor == len(group.prompts) * self.samples:
                    group, cursor = self._read_next(next_group), 0
            if len(live):
                self._step(cache, live, room)
                self._leave(cache, live)
            if len(self.finished) > reported:
                reported = len(self.finished)
                report()

    def _read_next(self, next_group: Callable[[], Int | None]) -> Group | None:
        prompts = next_group()
        return None if prompts is None else self._read(prompts)

    def _start(self) -> Int:
        """Set aside the futures that have nothing to do; returns the prompts of the others, longest first."""
        rows = self._new_rows(np.arange(len(self.keys)), width=0)
        self.writer.start(rows)
        self._finish(rows.take(rows.reason != RUNNING))
        open_prompts = np.unique(rows.prompt[rows.reason == RUNNING])
        return open_prompts[np.argsort(-self.table.length[open_prompts], kind="stable")]

    def _groups(self, order: Int) -> Iterator[Int]:
        """The prompts, group by group of like length."""
        start, most = 0, -(-self.batch_rows // self.samples)
        while start < len(order):
            longest = int(self.table.length[order[start]])
            stop = start + min(most, max(PREFILL_TOKENS // longest, 1))
            like = self.table.length[order[start:stop]] * LIKE_LENGTH >= longest
            stop = start + int(like.sum())
            yield order[start:stop]
            start = stop

    def _read(self, prompts: Int) -> Group:
        length = self.table.length[prompts]
        column = np.arange(length.max())
        real = column < length[:, None]
        token, age = np.zeros(real.shape, dtype=np.int64), np.zeros(real.shape, dtype=np.int64)
        token[real] = np.concatenate([self.table.prompts[index].token_id for index in prompts])
        age[real] = np.concatenate([self.table.age_minutes[index] for index in prompts])
        cache = KVCache(self.config, len(prompts), len(column), self.dtype, self.device)
        hidden = self.decoder(
            self._tensor(token),
            position=self._tensor(np.broadcast_to(column, real.shape).copy()),
            age_minutes=self._tensor(age),
            segment_id=self._tensor(real.astype(np.int64)),
            cache=cache,
        )
        last = hidden[torch.arange(len(prompts), device=self.device), self._tensor(length - 1)]
        state, goal = self.table.state(prompts), self.goals.take(prompts)
        return Group(prompts, cache, self._next(last, cache, state, goal, waiting(state, goal)))

    def _join(self, cache: KVCache, live: Rows, group: Group, futures: Int) -> Rows:
        """Begin futures of a group (prompt by prompt, sample by sample): their first token is drawn from what the prompt gave."""
        place = futures // self.samples
        rows = self._new_rows(group.prompts[place] * self.samples + futures % self.samples)
        self._draw(rows, group.next.take(place))
        running = rows.reason == RUNNING
        self._finish(rows.take(~running))
        (cache.append if self.samples < SHARE_FROM else cache.share)(group.cache, torch.from_numpy(place[running]))
        return live.append(rows.take(running))

    def _step(self, cache: KVCache, live: Rows, room: sampler.Workspace) -> None:
        """One token for every live row."""
        hidden = self._forward(cache, live.last_token, live.state)
        goal = self.goals.take(live.prompt) if live.waiting.any() else None
        self._draw(live, self._next(hidden, cache, live.state, goal, live.waiting, room))

    def _leave(self, cache: KVCache, live: Rows) -> None:
        """Rows that have ended go out of the batch."""
        gone = live.reason != RUNNING
        if gone.any():
            self._finish(live.take(gone))
            source, target = cache.drop(torch.from_numpy(gone))
            live.move(source.numpy(), target.numpy(), cache.rows)

    # -- one token ----------------------------------------------------------------------------------------------------------------

    def _forward(self, cache: KVCache, token: npt.NDArray[np.integer], state: State) -> Tensor:
        """Read one token a row; the states [R, D] behind them. The batch is filled up to one of few shapes."""
        rows, places = len(token), cache.batch_rows()
        padded = np.zeros((2, places, 1), dtype=np.int64)
        padded[0, :rows, 0], padded[1, :rows, 0] = token, state.age_minutes
        token_B1, age_B1 = self._tensor(padded)
        if self.graphs is not None:
            return self.graphs(cache, token_B1, age_B1)[:rows, 0]
        cache.prepare(places, 1)
        return self.decoder(token_B1, position=cache.positions(places)[:, None], age_minutes=age_B1, cache=cache)[:rows, 0]

    def _next(
        self, hidden: Tensor, cache: KVCache, state: State, goal: Goal | None, wait: npt.NDArray[np.bool_], room: sampler.Workspace | None = None
    ) -> Next:
        """The next token's distribution, by the grammar and, where rows are waiting, conditioned on the gap; in `room` if it is given."""
        weights, share = self._weights(hidden, state, room)
        rows = len(state.phase)
        following = Next(weights, 1.0 - share.cpu().numpy(), np.zeros(rows), np.full(rows, -1), np.zeros(rows, dtype=bool))
        if goal is not None and wait.any():
            self._condition(following, np.flatnonzero(wait), cache, state, goal)
        return following

    def _weights(self, hidden: Tensor, state: State, room: sampler.Workspace | None = None) -> tuple[Tensor, Tensor]:
        phase = self._tensor(state.phase.astype(np.int64))
        return sampler.masked_weights(self.decoder.head(hidden), self.allowed, phase, self.temperature, room)

    def _condition(self, following: Next, rows: Int, cache: KVCache, state: State, goal: Goal) -> None:
        """Condition these rows on the gap to the prediction time, in place; `constraints` says how."""
        state, goal = take_state(state, rows), goal.take(rows)
        place = self._tensor(rows)
        code = self._tensor(self.gap.classify(state, goal))
        weights = following.weights[place].double()
        kept = weights * (code == KEPT)
        undecided = (code == BOUNDARY) & (weights > 0)
        which = undecided.any(-1)
        if bool(which.any()):
            token = undecided[which].to(torch.uint8).argmax(-1)
            inside = which.cpu().numpy()
            share = self._share_kept_after(cache.take(place[which]), token.cpu().numpy(), take_state(state, inside), goal.take(inside))
            kept[which, token] = weights[which, token] * share
            following.boundary[rows[inside]] = token.cpu().numpy()
        mass = kept.sum(-1) / weights.sum(-1)
        lost = ~(mass > SMALLEST_MASS)
        kept = torch.where(lost[:, None], weights, kept)
        following.weights[place] = (kept / kept.amax(-1, keepdim=True)).to(following.weights.dtype)
        following.gap_log_mass[rows] = torch.where(lost, 1.0, mass).log().cpu().numpy()
        following.released[rows] = lost.cpu().numpy()

    def _share_kept_after(self, cache: KVCache, token: Int, state: State, goal: Goal) -> Tensor:
        """What share of the continuations of a boundary token is kept, float64[R]; `cache` is a copy and is read on."""
        after = self.grammar.advance(state, token)
        weights, _ = self._weights(self._forward(cache, token, after), after)
        kept = weights * (self._tensor(self.gap.classify(after, goal)) == KEPT)
        return kept.sum(-1, dtype=torch.float64) / weights.sum(-1, dtype=torch.float64)

    def _draw(self, rows: Rows, following: Next) -> None:
        """Draw one token for each row and write it."""
        weights = following.weights
        if self.watched:
            rows.chance[np.arange(len(rows)), rows.drawn] = self._chances(weights)
            rows.drawn_at[np.arange(len(rows)), rows.drawn] = rows.clock
        if self.masked is not None:
            where = np.ones(len(rows), dtype=bool) if self.dates is None else self.dates.hold(rows.prompt, rows.clock)
            weights = self._without(weights, where, self.masked)
        uniform = self._tensor(sampler.uniform(rows.key, rows.drawn))
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
        rest = weights.masked_fill(self._tensor(where)[:, None] & self._tensor(tokens), 0.0)
        nothing = rest.amax(-1, keepdim=True) <= 0
        return torch.where(nothing, weights, rest)

    # -- rows ---------------------------------------------------------------------------------------------------------------------

    def _tensor(self, values: npt.NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    def _new_rows(self, row: Int, width: int | None = None) -> Rows:
        """Futures with nothing written yet; `row` = prompt * samples + sample."""
        prompt, count = row // self.samples, len(row)
        state = self.table.state(prompt)
        room = self.room[prompt]
        width = (int(room.max()) if count else 0) if width is None else width
        return Rows(
            row=row,
            prompt=prompt,
            key=self.keys[row],
            phase=state.phase,
            clock=state.clock_minutes,
            age_months=state.age_months,
            count=np.zeros(count, dtype=np.int64),
            drawn=np.zeros(count, dtype=np.int64),
            room=room,
            horizon=self.table.horizon_clock[prompt],
            prediction_clock=self.table.prediction_clock[prompt],
            waiting=waiting(state, self.goals.take(prompt)),
            weighted=np.zeros(count, dtype=bool),
            unconfirmed=np.zeros(count, dtype=bool),
            conditioned=np.ones(count, dtype=bool),
            log_probability=np.zeros(count),
            removed_mass=np.zeros(count),
            gap_log_mass=np.zeros(count),
            reason=np.full(count, RUNNING, dtype=np.int8),
            token=np.zeros((count, width), dtype=np.int32),
            when=np.zeros((count, width), dtype=np.int64),
            chance=np.zeros((count, width if self.watched else 0, len(self.watched))),
            drawn_at=np.zeros((count, width if self.watched else 0), dtype=np.int64),
        )

    def _finish(self, rows: Rows) -> None:
        if len(rows):
            self.finished.append(rows.narrowed())

    def _result(self) -> Rollouts:
        return assemble(self.finished, self.samples, self.subject_id, self.sample_id)
