"""Small settings, a small objective with a head, and how to read what a training left, for the tests of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import nn

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import load_model
from cehrxgpt.objectives import OBJECTIVES, Objective
from cehrxgpt.objectives.heads import HEAD_WEIGHTS_FILE
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.train import TrainConfig
from cehrxgpt.train import trainer as trainer_module

SMALL = TrainConfig(
    model={"width": 16, "layers": 1, "heads": 4, "kv_heads": 2, "context": 128},
    tokens_per_batch=512,
    learning_rate=3e-3,
    epochs=100,
    steps=10,
    patience=0,
    evaluate_every=3,
    precision="float32",
    checkpoint_minutes=0,
    log_every=1,
)


class Stop(Exception):
    """Raised by a progress callback: an interruption between two steps."""


def stop_at(step: int) -> trainer_module.Progress:
    def progress(done: int, total: int, what: str) -> None:
        if done == step:
            raise Stop

    return progress


class ToyAge(Objective):
    """An objective with a head that draws random numbers: the age in decades, from a state with noise on it."""

    name: ClassVar[str] = "toy_age"

    def __init__(self, width: int):
        super().__init__()
        self.head = nn.Linear(width, 1)

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> ToyAge:
        return cls(shape.width)

    def count(self, batch: trainer_module.PackedBatch) -> torch.Tensor:
        return (batch.segment_id > 0).sum()

    def forward(self, decoder: nn.Module, hidden: torch.Tensor, batch: trainer_module.PackedBatch) -> tuple[torch.Tensor, torch.Tensor]:
        decades = batch.age_minutes.float() / (60 * 24 * 3652.5)
        wrong = self.head(hidden + 0.1 * torch.randn_like(hidden)).squeeze(-1).float() - decades
        return (wrong.square() * (batch.segment_id > 0)).sum(), self.count(batch)


def register_toy_age() -> None:
    """Make `toy_age` known to recipes of this process; it needs to be asked for by name."""
    OBJECTIVES[ToyAge.name] = ToyAge


EVERY = {
    "next_token": 1.0,
    "time_decomposition": 1.0,
    "time_to_visit": 1.0,
    "time_to_event": {"tasks": 12, "pieces": 4, "rank": 8},
    "value": 1.0,
    "contrastive": {"share": 0.5},
    "entropy_penalty": 0.01,
    ToyAge.name: 0.5,
}
"""Objectives with heads and without, facts of their own, pairs of windows, and random numbers."""


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Of the decoder, and of the objectives' heads as `heads.<objective>.<parameter>`."""
    heads = load_file(folder / HEAD_WEIGHTS_FILE)
    return load_model(folder).decoder.state_dict() | {f"heads.{name}": tensor for name, tensor in heads.items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
