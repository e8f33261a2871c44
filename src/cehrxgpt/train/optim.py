"""AdamW and its learning rate: linear warm-up, then half a cosine."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from cehrxgpt.train.config import TrainConfig


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig) -> torch.optim.AdamW:
    """AdamW whose weight decay acts on matrices alone (norms' gains would only be pulled to zero)."""
    matrices: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for _, parameter in parameters:
        (matrices if parameter.dim() > 1 else vectors).append(parameter)
    groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def learning_rate(progress: float, config: TrainConfig) -> float:
    """The rate when `progress` (0..1) of the run is behind; never zero, so that the first step teaches too."""
    if progress < config.warmup_share:
        return config.learning_rate * max(progress / config.warmup_share, 0.01)
    share = (progress - config.warmup_share) / max(1 - config.warmup_share, 1e-9)
    cosine = 0.5 * (1 + math.cos(math.pi * min(share, 1.0)))
    return config.learning_rate * (config.final_share + (1 - config.final_share) * cosine)


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient down to norm `largest` (0 = leave it); returns its norm before."""
    return nn.utils.clip_grad_norm_(list(parameters), largest if largest > 0 else float("inf"))
