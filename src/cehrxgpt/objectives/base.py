"""What an objective is: something that turns hidden states and a batch into a sum and a count.

    loss = sum over objectives o of  weight_o * sum_o / count_o

Sums and counts are added up over micro-batches and ranks and divided once, so that the loss does not depend on padding, on packing or on
how a batch was cut. A new objective is one file with one class, entered in `OBJECTIVES`.

An objective has settings (a frozen dataclass; its `weight` among them) and, where it must know the training split (which codes, which
hazard pieces), *facts*: plain JSON that `prepare` reads off the store once. Settings, facts, vocabulary and the decoder's shape are all
that is needed to build it, so that a model folder can give its heads back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig, check_numbers
from cehrxgpt.model.precision import wide_dtype
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.timeline.vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class ObjectiveSettings:
    """What a recipe says of an objective.

    Attributes:
        weight: of its mean in the loss.
        where_possible: leave it out, and say so, where the training split cannot serve it; otherwise that is an error.
    """

    weight: float = 1.0
    where_possible: bool = False

    def __post_init__(self) -> None:
        check_numbers(self)
        if not self.weight > 0:
            raise ValueError(f"weight is {self.weight}; it must be positive (leave the objective out instead)")


class Objective(nn.Module, ABC):
    """One term of the loss; its heads, where it has any, are its parameters.

    Attributes:
        name: as in recipes and in `train.jsonl`.
        Settings: what a recipe may say of it.
        looks_ahead: it wants to be shown what comes after windows that were cut (`PackedBatch.ahead_token`).
    """

    name: ClassVar[str]
    looks_ahead: ClassVar[bool] = False
    Settings: ClassVar[type[ObjectiveSettings]] = ObjectiveSettings

    @classmethod
    def prepare(cls, store: TokenStore, settings: Any, shape: ModelConfig) -> dict[str, Any]:
        """What it needs to know of the training split, as plain JSON.

        Raises:
            ConfigError: the store cannot serve this objective.
        """
        return {}

    @classmethod
    @abstractmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> Objective:
        """Make it, with new heads."""

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


def nothing(hidden: Tensor) -> Tensor:
    """The sum of no terms, which still is a function of the states."""
    return wide(hidden[:0]).sum()


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 where it is that already: what losses are computed in."""
    return x.to(wide_dtype(x))
