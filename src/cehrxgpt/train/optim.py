"""The optimisers: AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest (embedding, heads, norms)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cehrxgpt.train.config import TrainConfig
from cehrxgpt.train.spread import like, whole

NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)  # steepest at zero that still keeps singular values near 1 (Jordan et al., 2024)
NEWTON_SCHULZ_STEPS = 5
MOMENTUM = 0.95
ADAM_RMS = 0.2  # typical root mean square of AdamW's update; Muon's is scaled to it, so that one learning rate does for both (arXiv 2502.16982)


def orthogonalise(matrix: Tensor) -> Tensor:
    """About U V' where matrix = U S V': every singular value is brought to between 0.7 and 1.2 by a polynomial in the matrix; [m, n]."""
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = a * x + (b * square + c * square @ square) @ x
    return x.mT if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.AdamW):
    """AdamW, but the groups that say `orthogonal` step along their orthogonalised Nesterov momentum (Muon, Jordan et al., 2024).

    PyTorch's own Muon multiplies in bfloat16 whatever the hardware; this one keeps the parameters' precision.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every group."""
        every = self.param_groups
        self.param_groups = [group for group in every if not group["orthogonal"]]
        try:
            found = super().step(closure)
        finally:
            self.param_groups = every
        for group in every:
            if group["orthogonal"]:
                self._step_orthogonal(group)
        return found

    @torch.no_grad()
    def _step_orthogonal(self, group: dict[str, Any]) -> None:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
            # Of a distributed matrix every rank levels the whole: its singular values belong to no piece of it.
            update = like(orthogonalise(whole(parameter.grad.lerp(state["momentum"], MOMENTUM))), parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * ADAM_RMS * math.sqrt(max(parameter.shape)))


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig) -> torch.optim.AdamW:
    """The optimiser of `config` over named parameters. Decay acts on matrices alone (norms' gains would only be pulled to zero)."""
    inner: list[nn.Parameter] = []
    outer: list[nn.Parameter] = []
    vectors: list[nn.Parameter] = []
    for name, parameter in parameters:
        (vectors if parameter.dim() < 2 else inner if ".blocks." in f".{name}" else outer).append(parameter)
    groups = [
        {"params": inner, "weight_decay": config.weight_decay, "orthogonal": config.optimizer == "muon"},
        {"params": outer, "weight_decay": config.weight_decay, "orthogonal": False},
        {"params": vectors, "weight_decay": 0.0, "orthogonal": False},
    ]
    kind = Muon if config.optimizer == "muon" else torch.optim.AdamW
    return kind([group for group in groups if group["params"]], lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True)


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient down to norm `largest` (0 = leave it); returns its norm before."""
    return whole(nn.utils.clip_grad_norm_(list(parameters), largest if largest > 0 else float("inf")))
