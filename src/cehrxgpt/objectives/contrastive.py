"""Contrastive: two windows of one patient should resemble each other more than windows of others (InfoNCE, arXiv 1807.03748).

The loader cuts some histories into two windows that share no event and numbers them as a pair (`PackedBatch.pair`). The last state of
each window goes through a small head onto the unit sphere, z; with temperature tau the term of window i, whose partner is i', is

    -log  exp(z_i . z_i' / tau) / sum over windows j of the group, j != i, of  exp(z_i . z_j / tau)        (as SimCLR, arXiv 2002.05709)

A group is one batch of the loader, so that the others a window is held against do not depend on how batches are joined into rows,
micro-batches or ranks. A pair that is alone in its group has no others and gives no term. Windows of one patient also share birth, sex and
race, which the prompt says: part of what is learned is that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import Objective, ObjectiveSettings, wide
from cehrxgpt.store.batch import PAIRS_PER_GROUP, PackedBatch
from cehrxgpt.timeline.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class ContrastiveSettings(ObjectiveSettings):
    """Settings of `Contrastive`.

    Attributes:
        weight: a tenth of the others': its loss falls by itself as groups get smaller.
        share: of the histories that are cut into two windows, each epoch anew.
        width: of the space in which windows are compared.
        temperature: tau.
    """

    weight: float = 0.1
    share: float = 0.25
    width: int = 64
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and at most 1")
        if self.width < 1 or not self.temperature > 0:
            raise ValueError(f"width {self.width} and temperature {self.temperature} must be positive")


def in_company(pair: Tensor) -> Tensor:
    """bool, as `PackedBatch.pair`: windows whose group has a second pair."""
    found = pair >= 0
    _, group, windows = (pair[found] // PAIRS_PER_GROUP).unique(return_inverse=True, return_counts=True)
    return found.masked_scatter(found, windows[group] > 2)


class Contrastive(Objective):
    """See the module."""

    name: ClassVar[str] = "contrastive"
    Settings: ClassVar[type[ObjectiveSettings]] = ContrastiveSettings

    def __init__(self, width: int, settings: ContrastiveSettings):
        super().__init__()
        self.temperature = settings.temperature
        self.head = nn.Linear(width, settings.width, bias=False)

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> Contrastive:
        """See `Objective.build`."""
        return cls(shape.width, settings)

    def count(self, batch: PackedBatch) -> Tensor:
        """Windows that have a partner and others to be held against."""
        return in_company(batch.pair).sum()

    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Sum and count of the terms; see `Objective.forward`."""
        pair = batch.pair.flatten()
        place = in_company(pair).nonzero().squeeze(1)
        place = place[torch.argsort(pair[place], stable=True)]  # partners become neighbours
        z = F.normalize(wide(self.head(hidden.flatten(0, 1).index_select(0, place))), dim=-1)
        group, itself = pair[place] // PAIRS_PER_GROUP, torch.arange(len(place), device=hidden.device)
        apart = (group[:, None] != group) | (itself[:, None] == itself)
        score = (z @ z.T / self.temperature).masked_fill(apart, float("-inf"))
        partner = itself ^ 1
        return F.cross_entropy(score, partner, reduction="sum"), torch.tensor(len(place), device=hidden.device)
