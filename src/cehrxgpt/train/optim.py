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
HEAD_BETA2 = 0.999  # heads of objectives: see `make_optimizer`
ADAM_RMS = 0.2  # typical root mean square of AdamW's update; Muon's is scaled to it, so that one learning rate does for both (arXiv 2502.16982)


def orthogonalise(matrix: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """About U V' where matrix = U S V': every singular value is brought to between 0.7 and 1.2 by a polynomial in the matrix; [m, n].

    Multiplied in `dtype` (None: the matrix's own): the polynomial leaves values a fifth apart, so bfloat16 takes nothing from it.
    """
    x = matrix.mT if matrix.shape[0] > matrix.shape[1] else matrix
    x = (x / (x.norm() + 1e-7)).to(dtype or matrix.dtype)
    a, b, c = NEWTON_SCHULZ
    for _ in range(NEWTON_SCHULZ_STEPS):
        square = x @ x.mT
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if matrix.shape[0] > matrix.shape[1] else x).to(matrix.dtype)


class Muon(torch.optim.AdamW):
    """AdamW, but the groups that say `orthogonal` step along their orthogonalised Nesterov momentum (Muon, Jordan et al., 2024).

    PyTorch's own Muon multiplies in bfloat16 whatever the hardware; this one in `multiply_in`, or where that is None in the parameters' precision.
    """

    multiply_in: torch.dtype | None = None

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
            update = like(orthogonalise(whole(parameter.grad.lerp(state["momentum"], MOMENTUM)), self.multiply_in), parameter)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update, alpha=-group["lr"] * ADAM_RMS * math.sqrt(max(parameter.shape)))


def make_optimizer(parameters: Iterable[tuple[str, nn.Parameter]], config: TrainConfig, multiply_in: torch.dtype | None = None) -> torch.optim.AdamW:
    """The optimiser of `config` over named parameters; Muon's products in the precision `multiply_in` (None: the parameters' own).

    Decay acts on matrices alone: norms' gains and biases would only be pulled to zero. Heads of objectives remember squared gradients for a
    thousand steps. An event that comes in one batch of thirty gives a large gradient then and small ones the other way in between; AdamW that
    remembers twenty steps takes the small ones for the usual size, follows them, and ends a fifth and more below the rate
    (`test_rare_events_are_learned_at_their_own_rate`).
    """
    groups: dict[tuple[float, bool, float], list[nn.Parameter]] = {}
    for name, parameter in parameters:
        is_matrix = parameter.dim() > 1 and not name.endswith("bias")
        beta2 = max(config.beta2, HEAD_BETA2) if name.startswith("objectives.") else config.beta2
        orthogonal = is_matrix and config.optimizer == "muon" and ".blocks." in f".{name}"
        groups.setdefault((config.weight_decay if is_matrix else 0.0, orthogonal, beta2), []).append(parameter)
    made = [
        {"params": some, "weight_decay": decay, "orthogonal": orthogonal, "betas": (config.beta1, beta2)}
        for (decay, orthogonal, beta2), some in groups.items()
    ]
    if config.optimizer != "muon":
        return torch.optim.AdamW(made, lr=config.learning_rate, fused=True)
    muon = Muon(made, lr=config.learning_rate, fused=True)
    muon.multiply_in = multiply_in
    return muon


def clip_gradient(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale the gradient down to norm `largest` (0 = leave it); returns its norm before."""
    return whole(nn.utils.clip_grad_norm_(list(parameters), largest if largest > 0 else float("inf")))
