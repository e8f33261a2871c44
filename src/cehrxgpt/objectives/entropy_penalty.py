"""A penalty on certainty: minus the entropy of the next token's distribution, at every place that has a target (Pereyra et al., 2017).

    sum over v of  p(v) log p(v)

Its weight says how many nats of loss a nat of entropy is worth. Optional; it costs a second pass through the head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import Objective, ObjectiveSettings, nothing, wide
from cehrxgpt.objectives.cross_entropy import CHUNK_ROWS
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.timeline.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class EntropyPenaltySettings(ObjectiveSettings):
    """Settings of `EntropyPenalty`."""

    weight: float = 0.01


def _negative_entropy(decoder: Decoder, hidden_ND: Tensor) -> Tensor:
    logp_NV = wide(decoder.head(hidden_ND)).log_softmax(-1)
    return (logp_NV.exp() * logp_NV).sum()


class EntropyPenalty(Objective):
    """See the module."""

    name: ClassVar[str] = "entropy_penalty"
    Settings: ClassVar[type[ObjectiveSettings]] = EntropyPenaltySettings

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> EntropyPenalty:
        """See `Objective.build`."""
        return cls()

    def count(self, batch: PackedBatch) -> Tensor:
        """Places with a target."""
        return (batch.target != IGNORE).sum()

    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Sum and count of the terms; see `Objective.forward`."""
        hidden_ND = hidden.flatten(0, 1)[(batch.target != IGNORE).flatten()]
        total = nothing(hidden)
        for rows in hidden_ND.split(CHUNK_ROWS):
            total = total + checkpoint(_negative_entropy, decoder, rows, use_reentrant=False)
        return total, torch.tensor(len(hidden_ND), device=hidden.device)
