"""What a next token is drawn from: the model's distribution, by the grammar and, before the first event, conditioned on the gap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.precision import wide_dtype
from cehrxgpt.rollout import sampler
from cehrxgpt.rollout.constraints import BOUNDARY, KEPT, GapTable, Goal, allowed_table, take_state
from cehrxgpt.rollout.reader import Reader
from cehrxgpt.timeline.grammar import Grammar, State
from cehrxgpt.timeline.vocabulary import Vocabulary

Int = npt.NDArray[np.int64]

SMALLEST_MASS = 1e-280  # conditioning on less than this is conditioning on nothing


@dataclass
class Next:
    """The distribution of the next token of R rows, and what was taken away to get it."""

    weights: Tensor  # [R, V], unnormalised
    removed: npt.NDArray[np.float64]  # [R] mass the grammar took away
    gap_log_mass: npt.NDArray[np.float64]  # [R] log of the mass that conditioning on the gap kept; 0 where it was not asked for
    boundary: Int  # [R] token whose weight already counts what is kept after it; -1 = none
    released: npt.NDArray[np.bool_]  # [R] nothing was kept: the row goes on unconditioned

    def take(self, rows: Int) -> Next:
        """Of these rows; one may stand several times."""
        weights = self.weights[torch.from_numpy(rows).to(self.weights.device)]
        return Next(weights, self.removed[rows], self.gap_log_mass[rows], self.boundary[rows], self.released[rows])


class NextToken:
    """Distributions of next tokens under one vocabulary's grammar; a temperature of 1 keeps the model's own."""

    def __init__(self, reader: Reader, vocabulary: Vocabulary, grammar: Grammar, temperature: float):
        self.reader, self.grammar, self.temperature = reader, grammar, temperature
        self.allowed = allowed_table(vocabulary, grammar, reader.device).to(wide_dtype(torch.empty(0, dtype=reader.dtype)))
        self.gap = GapTable(vocabulary, grammar)

    def __call__(
        self, hidden: Tensor, cache: KVCache, state: State, goal: Goal | None, wait: npt.NDArray[np.bool_], room: sampler.Workspace | None = None
    ) -> Next:
        """Behind these states [R, D]; conditioned where rows `wait` for their goals; in `room` if it is given. The cache is not changed."""
        weights, share = self._weights(hidden, state, room)
        rows = len(state.phase)
        following = Next(weights, 1.0 - share.cpu().numpy(), np.zeros(rows), np.full(rows, -1), np.zeros(rows, dtype=bool))
        if goal is not None and wait.any():
            self._condition(following, np.flatnonzero(wait), cache, state, goal)
        return following

    def _weights(self, hidden: Tensor, state: State, room: sampler.Workspace | None = None) -> tuple[Tensor, Tensor]:
        phase = self.reader.tensor(state.phase.astype(np.int64))
        return sampler.masked_weights(self.reader.logits(hidden), self.allowed, phase, self.temperature, room)

    def _condition(self, following: Next, rows: Int, cache: KVCache, state: State, goal: Goal) -> None:
        """Condition these rows on the gap to the prediction time, in place; `constraints` says how."""
        state, goal = take_state(state, rows), goal.take(rows)
        place = self.reader.tensor(rows)
        code = self.reader.tensor(self.gap.classify(state, goal))
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
        weights, _ = self._weights(self.reader.read_one(cache, token, after.age_minutes), after)
        kept = weights * (self.reader.tensor(self.gap.classify(after, goal)) == KEPT)
        return kept.sum(-1, dtype=torch.float64) / weights.sum(-1, dtype=torch.float64)
