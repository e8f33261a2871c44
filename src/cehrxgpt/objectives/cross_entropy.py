"""Cross-entropy of a linear layer's softmax, whose logits never stand there as a whole.

    loss = sum over places n of  log sum_v exp(z[n, v]) - z[n, y[n]],     z = h W' + b
    dloss/dz = softmax(z) - [v = y[n]],   dh = dz W,   dW = dz' h,   db = sum_n dz

Gradients follow from the logits alone, so each chunk's are made as soon as its logits are there, in the same memory, and the backward pass only
scales them (as Liger Kernel does, arXiv 2410.10989). Autograd's chain keeps the table of logits, fills others with zeros, and takes one and a half
times as long on a CPU; PyTorch's own `linear_cross_entropy` works alike, takes a quarter longer, and knows nothing of autocast.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cehrxgpt.model.lines import empty_rows
from cehrxgpt.model.precision import wide_dtype

CHUNK_ROWS = 1024  # places whose logits are there at once


def linear_cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor) -> Tensor:
    """Sum over places of -log p(target); float32, or float64 for such states. Products are in autocast's precision where it is on.

    Args:
        hidden_ND: states.
        weight_VD, bias_V: of the layer.
        target_N: int64 in 0 .. V-1.
    """
    device = hidden_ND.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight_VD.dtype
    with torch.autocast(device, enabled=False):
        found: Tensor = _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, target_N, dtype, torch.is_grad_enabled())
    return found


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, bias_V: Tensor | None, target_N: Tensor, dtype: torch.dtype, learns: bool) -> Tensor:
        V = len(weight_VD)
        hidden, weight = hidden_ND.to(dtype), weight_VD.to(dtype)
        wide = wide_dtype(weight)
        wanted = [learns and needed for needed in ctx.needs_input_grad[:3]]
        by_hidden = torch.empty_like(hidden) if wanted[0] else None
        by_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        by_bias = torch.zeros_like(bias_V, dtype=wide) if wanted[2] and bias_V is not None else None
        product = empty_rows(min(CHUNK_ROWS, len(hidden)), V, hidden)
        widened = product if dtype == wide else empty_rows(len(product), V, hidden, wide)
        total = hidden.new_zeros((), dtype=wide)
        for start in range(0, len(hidden), CHUNK_ROWS):
            h_CD, y_C1 = hidden[start : start + CHUNK_ROWS], target_N[start : start + CHUNK_ROWS, None]
            product_CV, z_CV = product[: len(h_CD)], widened[: len(h_CD)]
            torch.mm(h_CD, weight.t(), out=product_CV)
            if dtype != wide:
                z_CV.copy_(product_CV)
            if bias_V is not None:
                z_CV.add_(bias_V)
            z_CV.sub_(z_CV.amax(1, keepdim=True))
            of_target_C1 = z_CV.gather(1, y_C1)
            sum_C1 = z_CV.exp_().sum(1, keepdim=True)
            total += (sum_C1.log() - of_target_C1).sum()
            if not any(wanted):
                continue
            z_CV.mul_(sum_C1.reciprocal_())
            z_CV.scatter_add_(1, y_C1, z_CV.new_full((), -1.0).expand_as(y_C1))
            if by_bias is not None:
                by_bias += z_CV.sum(0)
            if dtype != wide:
                product_CV.copy_(z_CV)
            if by_hidden is not None:
                torch.mm(product_CV, weight, out=by_hidden[start : start + len(h_CD)])
            if by_weight is not None:
                by_weight += torch.mm(product_CV.t(), h_CD)
        ctx.save_for_backward(by_hidden, by_weight, by_bias)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return (*(None if one is None else one * gradient for one in ctx.saved_tensors), None, None, None)
