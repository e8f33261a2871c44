"""What an objective is: something that turns hidden states and a batch into a sum and a count.

    loss = sum over objectives o of  weight_o * sum_o / count_o

Sums and counts are added up over micro-batches (and, one day, over ranks) and divided once, so that the loss does not depend on
padding, on packing or on how a batch was cut. A new objective is one file with one class, entered in `OBJECTIVES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from cehrxgpt.model.transformer import Decoder
from cehrxgpt.store.batch import PackedBatch


class Objective(nn.Module, ABC):
    """One term of the loss; its heads, where it has any, are its parameters.

    Attributes:
        name: as in recipes and in `train.jsonl`.
    """

    name: ClassVar[str]

    @abstractmethod
    def count(self, batch: PackedBatch) -> Tensor:
        """Terms that `forward` will sum for this batch, an int64 scalar: known before the model has run, so that gradients of
        micro-batches can be divided by the whole count."""

    @abstractmethod
    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """The sum of the terms (a float32 scalar) and their `count`.

        Args:
            decoder: for its head.
            hidden: [B, T, D]; the decoder's states for this batch.
        """
