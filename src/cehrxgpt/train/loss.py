"""Decoder and objectives as one module whose forward pass is the loss, so that what spreads a module over ranks sees all of it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from cehrxgpt.model.transformer import Decoder
from cehrxgpt.store.batch import PackedBatch


class WeightedLoss(nn.Module):
    """sum over objectives o of  weight_o * sum_o / count_o, where the counts are those of the whole step.

    Args:
        decoder: states of tokens.
        objectives: by name.
        weights: by name.
    """

    def __init__(self, decoder: Decoder, objectives: nn.ModuleDict, weights: Mapping[str, float]):
        super().__init__()
        self.decoder, self.objectives, self.weights = decoder, objectives, dict(weights)

    def forward(self, batch: PackedBatch, counts: Mapping[str, int]) -> tuple[Tensor, dict[str, Tensor]]:
        """A micro-batch's share of the loss, and each objective's sum of terms (detached)."""
        hidden = self.decoder(batch.token_id, position=batch.position, age_minutes=batch.age_minutes, segment_id=batch.segment_id)
        sums = {name: objective(self.decoder, hidden, batch)[0] for name, objective in self.objectives.items()}
        total = torch.stack([self.weights[name] / max(counts[name], 1) * value for name, value in sums.items()]).sum()
        return total + self._nothing(), {name: value.detach() for name, value in sums.items()}

    def _nothing(self) -> Tensor:
        """Zero, with a gradient of zero for every head: a head without a term in a micro-batch takes part all the same, so that ranks exchange
        the same gradients and the optimiser treats a head alike however the micro-batches are dealt out."""
        zero = torch.zeros((), device=self.decoder.embedding.weight.device)
        if not torch.is_grad_enabled():
            return zero
        heads: list[Tensor] = list(self.objectives.parameters())
        heads += [] if self.decoder.untied is None else [self.decoder.untied.weight]
        heads += [] if self.decoder.head_bias is None else [self.decoder.head_bias]
        return sum((0.0 * head.reshape(-1)[0] for head in heads), start=zero)
