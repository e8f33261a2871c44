"""The value of a lab, where code and value are two tokens: how the result falls among that lab's own bins.

At every place whose token is a lab and whose target is its bin b the term is

    -log p(b | lab) = -log  exp(logit_b) / sum over the lab's bins 0 .. n-1 of  exp(logit)

on the logits of the decoder's own head. The state there has read the lab, so that the value depends on which lab was drawn, and a lab that stands
alone is trained like any other. No other token can follow a lab, and generation asks the grammar: masked by it, the full softmax is this
distribution. Beside this objective `next_token` leaves these places out, so that no target counts twice.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from cehrxgpt.errors import ConfigError
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import Objective, nothing, wide
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary


def lab_bins(vocabulary: Vocabulary) -> Tensor:
    """int64[V]: how many bins a lab has; 0 where the token is none."""
    return torch.from_numpy(vocabulary.bin_count).long()


def value_places(batch: PackedBatch, bins_V: Tensor) -> Tensor:
    """bool[B, T]: the token is a lab and has a target, which then is its bin."""
    return (bins_V.to(batch.token_id.device)[batch.token_id] > 0) & (batch.target != IGNORE)


def check_split(vocabulary: Vocabulary) -> None:
    """Raise `ConfigError` unless values are tokens of their own."""
    if vocabulary.split_values:
        return
    if vocabulary.settings.get("values") == "split":
        raise ConfigError("objectives: value finds nothing to learn: this data has no numeric values that enough patients have; leave it out")
    raise ConfigError("objectives: value needs values that are tokens of their own; tokenize with --values split, or leave it out")


class Value(Objective):
    """Cross-entropy of a lab's bin among the bins of that lab.

    Args:
        vocabulary: with split values.

    Raises:
        ConfigError: values are fused with their codes, or there are none.
    """

    name: ClassVar[str] = "value"
    bins: Tensor  # int64[V]; see `lab_bins`
    bin_id: Tensor  # int64[K], token of each shared bin
    place: Tensor  # int64[V], number of a bin; -1 elsewhere

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        check_split(vocabulary)
        ids = vocabulary.amount_to_id[Kind.BIN]
        bin_id = torch.tensor([ids[number] for number in range(len(ids))])
        place = torch.full((len(vocabulary),), -1)
        place[bin_id] = torch.arange(len(bin_id))
        for name, table in (("bins", lab_bins(vocabulary)), ("bin_id", bin_id), ("place", place)):
            self.register_buffer(name, table, persistent=False)

    @classmethod
    def prepare(cls, store: TokenStore, settings: Any, shape: ModelConfig) -> dict[str, Any]:
        """See `Objective.prepare`."""
        check_split(store.vocabulary)
        return {}

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> Value:
        """See `Objective.build`."""
        return cls(vocabulary)

    def count(self, batch: PackedBatch) -> Tensor:
        """Labs with a target."""
        return value_places(batch, self.bins).sum()

    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Sum and count of the terms; see `Objective.forward`."""
        places = value_places(batch, self.bins).flatten().nonzero().squeeze(1)
        if not len(places):
            return nothing(hidden), self.count(batch)
        logits_NK = self.logits(decoder, hidden.flatten(0, 1)[places], batch.token_id.flatten()[places])
        target_N = self.place[batch.target.flatten()[places]]
        return F.cross_entropy(logits_NK, target_N, reduction="sum"), self.count(batch)

    def logits(self, decoder: Decoder, hidden_ND: Tensor, lab_N: Tensor) -> Tensor:
        """Logits of the shared bins [N, K] behind these labs, minus infinity where the lab has no such bin."""
        logits_NK = wide(decoder.head(hidden_ND, self.bin_id))
        own_NK = torch.arange(len(self.bin_id), device=lab_N.device) < self.bins[lab_N][:, None]
        return logits_NK.masked_fill(~own_NK, float("-inf"))
