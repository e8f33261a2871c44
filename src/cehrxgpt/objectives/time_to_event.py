"""Time to event: for many events at once, how soon each happens next, as hazards that are constant within pieces (as MOTOR, arXiv 2301.03150).

From every place p (`event_times`: the last token of each distinct time) and for every task c, with t days to the next occurrence or to the end of
observation, whichever is first, the term is the negative log-likelihood of a piecewise-exponential time:

    sum over pieces k of  lambda[p, k, c] * (days of (0, t] inside piece k)   -   log lambda[p, k(t), c]  if it occurred

    log lambda[p, k, c] = b[k, c] + h[p] . w[c] + u[p, k] . v[c]         u = a linear map of the state h, R numbers for each piece

b starts at the log rate of the training split, in events per day, h . w at 0 and u . v near it. w is an event's own reading of the state, the
same in all pieces; u, shared by all events, says how it changes with time. Without w what a rare event needs of the state has to
pass through u, which the common ones make. Time counts in days, never seconds, and what was not
watched adds nothing. Sums run over places and tasks, each task's terms weighted by its rate to the power of -`balance`; the count runs over places
and tasks. So losses, those of the tuning split too, compare between runs of one `balance` alone.

`survival` gives S(t) per task from the same hazards. The risk of an event when death competes needs both hazards (`incidence`); 1 - S alone
overstates it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import Objective, ObjectiveSettings, nothing, wide
from cehrxgpt.objectives.event_tasks import choose_tasks, fit_hazards
from cehrxgpt.objectives.event_times import EventReader
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.timeline.lasting import NUMBERS_PER_TOKEN
from cehrxgpt.timeline.vocabulary import Vocabulary

CHUNK_PLACES = 512
MOST_PIECES = 64
LOG_HAZARD_BOUNDS = (-30.0, 7.0)  # per day: once in thirty billion years, and about once a minute


@dataclass(frozen=True, kw_only=True)
class TimeToEventSettings(ObjectiveSettings):
    """Settings of `TimeToEvent`.

    Attributes:
        tasks: events it forecasts, at most.
        pieces: of the hazards, at most; 64 is the limit.
        rank: numbers a state says of each piece, R.
        balance: how much rare events count: each event's likelihood is weighted by its rate to the power of -balance. 0 = the plain
            likelihood, in which the few common events decide what states say; 1 = each event as much as any other.
    """

    tasks: int = 256
    pieces: int = 8
    rank: int = 32
    balance: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tasks", "pieces", "rank"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.pieces > MOST_PIECES:
            raise ValueError(f"pieces is {self.pieces}; it must be at most {MOST_PIECES}: every piece costs a hazard per task at every place")
        if not 0 <= self.balance <= 1:
            raise ValueError(f"balance is {self.balance}; it must lie between 0 and 1")


def check_facts(facts: dict[str, Any], tokens: int) -> None:
    """Raise `ValueError` where tasks name events that are none of the vocabulary's, edges do not rise, or rates are not one per task and piece."""
    for name, ids in facts["tasks"].items():
        for number in ids:
            if not isinstance(number, int) or not 0 <= number < NUMBERS_PER_TOKEN * tokens:
                raise ValueError(f"task '{name}' names event {number}, and the vocabulary has {tokens:,} tokens")
    edges, rates = facts["edges_days"], facts["log_rate"]
    if not all(low < high < float("inf") for low, high in pairwise([0.0, *edges])):
        raise ValueError("edges_days must rise from 0")
    if len(rates) != len(facts["tasks"]) or any(len(row) != len(edges) + 1 for row in rates):
        raise ValueError(f"log_rate must have {len(facts['tasks'])} rows, one per task, of {len(edges) + 1} numbers, one per piece")


class TimeToEvent(Objective):
    """See the module. Dimension letters: P places, K pieces, R rank, C tasks, D width.

    Args:
        vocabulary: of the batches.
        width: of the hidden states.
        rank: R.
        facts: what `prepare` found: tasks, edges, rates.
        balance: see `TimeToEventSettings`.
    """

    name: ClassVar[str] = "time_to_event"
    looks_ahead: ClassVar[bool] = True
    Settings: ClassVar[type[ObjectiveSettings]] = TimeToEventSettings
    edges: Tensor
    weight: Tensor

    def __init__(self, vocabulary: Vocabulary, width: int, rank: int, facts: dict[str, Any], *, balance: float = 0.0):
        super().__init__()
        self.tasks: dict[str, list[int]] = facts["tasks"]
        self.reader = EventReader(vocabulary, list(self.tasks.values()))
        self.register_buffer("edges", torch.tensor([0.0, *facts["edges_days"], float("inf")]), persistent=False)
        rate = torch.tensor(facts["log_rate"]).exp().mean(1)
        weight = rate**-balance
        # Of the same size together as without.
        self.register_buffer("weight", weight * (rate.sum() / (weight * rate).sum()), persistent=False)
        self.pieces, self.rank = len(facts["edges_days"]) + 1, rank
        self.state = nn.Linear(width, self.pieces * rank)
        self.direct = nn.Linear(width, len(self.tasks), bias=False)
        self.task = nn.Parameter(torch.randn(rank, len(self.tasks)) * rank**-0.5)
        self.bias = nn.Parameter(torch.tensor(facts["log_rate"]).T.contiguous())
        nn.init.normal_(self.state.weight, std=0.02)
        nn.init.zeros_(self.direct.weight)
        nn.init.zeros_(self.state.bias)

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        """As modules do; weights from before there was w, which then was 0, are taken as they are."""
        if f"{prefix}bias" in state_dict:
            state_dict.setdefault(f"{prefix}direct.weight", torch.zeros_like(self.direct.weight))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @classmethod
    def prepare(cls, store: TokenStore, settings: Any, shape: ModelConfig) -> dict[str, Any]:
        """See `Objective.prepare`."""
        return fit_hazards(store, choose_tasks(store, settings.tasks), settings.pieces, shape.context)

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> TimeToEvent:
        """See `Objective.build`.

        Raises:
            ValueError: facts that `prepare` cannot have found.
        """
        check_facts(facts, len(vocabulary))
        return cls(vocabulary, shape.width, settings.rank, facts, balance=settings.balance)

    def count(self, batch: PackedBatch) -> Tensor:
        """Places times tasks."""
        return self.reader.is_place(batch).sum() * len(self.tasks)

    def features(self, hidden_PD: Tensor) -> Tensor:
        """What multiplies each event's own weights, v and w: u and h; [P, K, R + D]."""
        return torch.cat([self._by_piece(hidden_PD), hidden_PD[:, None].expand(-1, self.pieces, -1)], dim=2)

    def _by_piece(self, hidden_PD: Tensor) -> Tensor:
        return self.state(hidden_PD).view(len(hidden_PD), self.pieces, self.rank)

    def log_hazards(self, hidden_PD: Tensor) -> Tensor:
        """log lambda, events per day, float32 [P, K, C]."""
        state_PKR = self._by_piece(hidden_PD)
        by_piece_PKC, direct_PC = state_PKR @ self.task.to(state_PKR.dtype), self.direct(hidden_PD)
        # The bias is added in float32: in bfloat16 a log hazard of -9 would be off by two percent of the hazard.
        return (wide(by_piece_PKC) + wide(direct_PC)[:, None] + self.bias).clamp(*LOG_HAZARD_BOUNDS)

    def survival(self, hidden_PD: Tensor, days: Tensor) -> Tensor:
        """Probability that nothing of each task has happened after `days` float[H], competing events apart; float32 [P, H, C]."""
        width = (days[:, None] - self.edges[:-1]).clamp(min=0).minimum(self.edges.diff())
        return torch.exp(-torch.einsum("hk,pkc->phc", width, self.log_hazards(hidden_PD).exp()))

    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Sum and count of the terms; see `Objective.forward`."""
        targets = self.reader(batch)
        hidden_PD = hidden.flatten(0, 1).index_select(0, targets.place)
        until_PC = torch.minimum(targets.event_days, targets.end_days[:, None])
        occurs_PC = torch.isfinite(targets.event_days)
        total = nothing(hidden)
        for chunk in torch.arange(len(hidden_PD), device=hidden.device).split(CHUNK_PLACES):
            total = total + self._loss(hidden_PD[chunk], until_PC[chunk], occurs_PC[chunk])
        return total, torch.tensor(until_PC.numel(), device=hidden.device)

    def _loss(self, hidden_PD: Tensor, until_PC: Tensor, occurs_PC: Tensor) -> Tensor:
        log_hazard_PKC = self.log_hazards(hidden_PD)
        expected = until_PC.new_zeros(())
        for k in range(self.pieces):
            low, high = self.edges[k], self.edges[k + 1]
            expected = expected + (self.weight * log_hazard_PKC[:, k].exp() * (until_PC - low).clamp(min=0).minimum(high - low)).sum()
        place, task = occurs_PC.nonzero().unbind(1)
        piece = torch.bucketize(until_PC[place, task], self.edges[1:-1].to(until_PC.dtype))
        return expected - (self.weight[task] * log_hazard_PKC[place, piece, task]).sum()
