"""Settings of a training run, and the recipes that ship with the package.

A recipe is a YAML file of these keys, read strictly. `model` holds the keys of `ModelConfig` but for the vocabulary's size, which comes
from the store, as the care settings do where nothing is said of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from cehrxgpt.config import from_dict, read_config
from cehrxgpt.errors import ConfigError, did_you_mean
from cehrxgpt.model.config import LARGEST_INTEGER, ModelConfig, check_numbers
from cehrxgpt.train.sizes import DEFAULT_LEARNING_RATE, DEFAULT_TOKENS_PER_BATCH, SIZES, SizeName

RECIPES = ("tiny", "demo", "base", "large", "adapt")
# How a run is carried out and watched, not what it learns: these may differ when it is resumed.
UNDECISIVE = ("activation_checkpointing", "checkpoint_minutes", "compile", "parallel", "trackers")
MOST = {"tokens_per_batch": 1 << 30, "accumulate": 1 << 16}
_FOLDER = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How to train.

    Attributes:
        size: `tiny`, `small`, `base` or `large`: fills in what follows from it (`sizes.py`) where the recipe does not say so itself. It is read
            when the settings are made; what they hold afterwards is resolved.
        model: keys of `ModelConfig` without `vocabulary_size`. `care_settings` are the vocabulary's own where nothing is said; `[]`: none.
        objectives: name -> weight, or name -> {weight: ..., further settings}; the loss is the weighted sum of their means.
        seed: decides weights, order and windows.

        tokens_per_batch: real tokens of one micro-batch, about; 0 = the size's, or 4,096.
        accumulate: micro-batches per optimiser step, of all ranks together; a multiple of their number.
        packing: `rows` one window per row, `packed` several, `auto` packed on accelerators.

        optimizer: `adamw`, or `muon` for the matrices inside the blocks with AdamW for the rest.
        learning_rate: at its peak; 0 = the size's, or 1e-3.
        schedule: `cosine`, or `wsd`: warm up, stay level, decay at the end (see `schedule.py`).
        final_share: of the peak, at the end.
        warmup_share: of the planned steps.
        decay_share: of the planned steps, at the end of `wsd`; with the warm-up at most all of them.
        settle_share: of the whole run, at its end, in which the decoder rests and the heads of the objectives go on alone (see `schedule.py`);
            the other shares are of what comes before.
        decay: how `wsd` comes down, `1-sqrt` or `linear`.
        weight_decay: on matrices only; norms and other vectors have none.
        beta1, beta2: of AdamW (Muon's momentum is 0.95).
        clip: largest norm of the gradient; 0 = no clipping.

        epochs: passes over the training split.
        steps: optimiser steps, instead of `epochs`.
        max_minutes: of training, at most; the learning rate then follows whichever of steps and minutes is further gone, so that it is
            low when time is up. Such a run is as long as the machine is fast, and is not repeatable step for step.

        evaluate_every: steps between looks at the tuning split; None = twice per epoch, and at least every 500 steps.
        evaluation_batches: batches of the tuning split looked at, at most; None = all.
        patience: looks without an improvement of `minimum_improvement` before training stops; 0 = never stop early.
        minimum_improvement: relative, of the tuning loss.

        parallel: how several ranks share the work: `ddp`, all weights on each, or `fsdp`, a share of them on each, for models that one
            accelerator cannot hold with gradients and moments.
        activation_checkpointing: keep only what enters each block and compute the rest again in the backward pass: the same losses, less memory,
            about a third more work.
        compile: the blocks, by `torch.compile`: true, false, or `auto`, on CUDA.
        precision: `bfloat16` autocast, `float32`, or `auto`: bfloat16 where the hardware multiplies it faster.
        device: `cpu`, `cuda`, `cuda:1`, or `auto`.
        checkpoint_minutes: between checkpoints; 0 = after every step.
        skip_limit: steps with a loss or gradient that is not finite that are skipped before training gives up.
        log_every: steps between lines of `train.jsonl`.
        trackers: any of `tensorboard`, `wandb` and `mlflow`; None = TensorBoard where it is installed.
    """

    size: SizeName | None = None
    model: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, Any] = field(default_factory=lambda: {"next_token": 1.0})
    seed: int = 0

    tokens_per_batch: int = 0
    accumulate: int = 1
    packing: Literal["auto", "rows", "packed"] = "auto"

    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 0.0
    schedule: Literal["cosine", "wsd"] = "cosine"
    final_share: float = 0.1
    warmup_share: float = 0.01
    decay_share: float = 0.2
    decay: Literal["1-sqrt", "linear"] = "1-sqrt"
    settle_share: float = 0.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.95
    clip: float = 1.0

    epochs: int = 10
    steps: int | None = None
    max_minutes: float | None = None

    evaluate_every: int | None = None
    evaluation_batches: int | None = None
    patience: int = 5
    minimum_improvement: float = 1e-3

    parallel: Literal["ddp", "fsdp"] = "ddp"
    activation_checkpointing: bool = False
    compile: bool | Literal["auto"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    checkpoint_minutes: float = 2.0
    skip_limit: int = 20
    log_every: int = 10
    trackers: list[Literal["tensorboard", "wandb", "mlflow"]] | None = None

    def __post_init__(self) -> None:
        self._resolve_size()
        if math.isinf(self.clip):
            raise ValueError(f"clip is {self.clip}; it must be a finite number, or 0 for no clipping")
        check_numbers(self)
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at most {most}")
        for name in ("tokens_per_batch", "accumulate", "epochs", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("steps", "evaluate_every", "evaluation_batches"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1, or null")
        for name in ("seed", "weight_decay", "clip", "patience", "minimum_improvement", "checkpoint_minutes", "skip_limit"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        for name in ("final_share", "warmup_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1")
        if not 0 <= self.settle_share < 1:
            raise ValueError(f"settle_share is {self.settle_share}; it must be at least 0 and below 1")
        if self.schedule == "wsd" and not 0 < self.decay_share <= 1 - self.warmup_share + 1e-9:  # 0.8 and 0.2 are 1
            raise ValueError(
                f"decay_share is {self.decay_share} and warmup_share {self.warmup_share}; the first must be positive and both together at most 1"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be positive")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(f"max_minutes is {self.max_minutes}; it must be positive, or null")
        self.model_config(LARGEST_INTEGER)  # the vocabulary is not known here
        self.objective_settings()

    def objective_settings(self) -> dict[str, Any]:
        """Settings of every objective by name, its `weight` among them.

        Raises:
            ConfigError: an unknown objective or setting, or a value out of range.
        """
        from cehrxgpt.objectives import read_settings

        return read_settings(self.objectives)

    def _resolve_size(self) -> None:
        size = SIZES[self.size] if self.size is not None else None
        resolved = {
            "model": {**(size.model if size else {}), **self.model},
            "learning_rate": self.learning_rate or (size.learning_rate if size else DEFAULT_LEARNING_RATE),
            "tokens_per_batch": self.tokens_per_batch or (size.tokens_per_batch if size else DEFAULT_TOKENS_PER_BATCH),
        }
        for name, value in resolved.items():
            object.__setattr__(self, name, value)

    def model_config(self, vocabulary_size: int, care_settings: Sequence[int] = ()) -> ModelConfig:
        """The decoder's shape for a vocabulary of this size, in which these tokens are the care settings unless `model` names its own.

        Raises:
            ConfigError: `model` has an unknown key or a value out of range.
        """
        if "vocabulary_size" in self.model:
            raise ConfigError("model: 'vocabulary_size' comes from the token store; leave it out")
        of_vocabulary = {"vocabulary_size": vocabulary_size, "care_settings": list(care_settings)}
        return from_dict(ModelConfig, of_vocabulary | self.model, where="model")


def load_recipe(name_or_path: str | Path) -> TrainConfig:
    """A recipe by name (`tiny`, `demo`, `base`, `large`, `adapt`) or from a YAML file.

    Raises:
        ConfigError: no such recipe, or it has an unknown key or a wrong value.
    """
    text = str(name_or_path)
    if text in RECIPES:
        return read_config(TrainConfig, _FOLDER / f"{text}.yaml")
    if not Path(text).suffix and not Path(text).exists():
        hint = did_you_mean(text, RECIPES) or f"valid names: {', '.join(RECIPES)}; or give a YAML file"
        raise ConfigError(f"recipe '{text}': no such recipe; {hint}")
    return read_config(TrainConfig, text)
