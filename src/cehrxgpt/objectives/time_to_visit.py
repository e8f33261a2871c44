"""Time to visit: the next gap as a Gamma distribution over days.

Two numbers are read off the hidden state in float32, both bounded so that no state can make the loss infinite:

    k    = 0.05 .. 20          shape; below 1 short gaps pile up, above 1 there is a rhythm
    mean = 0.05 .. 20,000      days; the rate is k / mean

A gap of d whole days is the interval [d, d + 1), one known to last d days or longer the survival beyond d: the last gap of an open history
is censored, not absent, and estimated rates do not rise as follow-up shortens.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import wide
from cehrxgpt.objectives.gamma import log_interval
from cehrxgpt.objectives.gaps import GapObjective, find_gaps
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.timeline.vocabulary import Vocabulary

K_BOUNDS = (0.05, 20.0)
MEAN_BOUNDS_DAYS = (0.05, 20_000.0)


def _between(x: Tensor, bounds: tuple[float, float]) -> Tensor:
    """The logarithm of a number between the bounds; their geometric mean at x = 0."""
    low, high = math.log(bounds[0]), math.log(bounds[1])
    return low + (high - low) * torch.sigmoid(x)


class TimeToVisit(GapObjective):
    """See the module.

    Args:
        vocabulary: for its gap tokens.
        width: of the hidden states.
    """

    name: ClassVar[str] = "time_to_visit"

    def __init__(self, vocabulary: Vocabulary, width: int):
        super().__init__(vocabulary)
        self.head = nn.Linear(width, 2)
        nn.init.normal_(self.head.weight, std=0.02)
        nn.init.zeros_(self.head.bias)

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> TimeToVisit:
        """See `Objective.build`."""
        return cls(vocabulary, shape.width)

    def parameters_of(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor]:
        """log k and log rate (per day), float32 [N] each."""
        with torch.autocast(hidden_ND.device.type, enabled=False):
            raw = self.head(hidden_ND.to(self.head.weight.dtype))
        log_k, log_mean = _between(raw[:, 0], K_BOUNDS), _between(raw[:, 1], MEAN_BOUNDS_DAYS)
        return log_k, log_k - log_mean

    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Sum and count of the terms; see `Objective.forward`."""
        gaps = find_gaps(batch, self.kind, self.amount)
        log_k, log_rate = self.parameters_of(hidden.flatten(0, 1).index_select(0, gaps.place))
        low = gaps.days.to(log_k.dtype)
        high = torch.where(gaps.open, float("inf"), low + 1)
        return -wide(log_interval(log_k, log_rate, low, high)).sum(), torch.tensor(len(gaps.place), device=hidden.device)
