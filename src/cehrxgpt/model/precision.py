"""What is computed wider than the weights are."""

from __future__ import annotations

import torch
from torch import Tensor


def wide_dtype(x: Tensor) -> torch.dtype:
    """What queries and keys are normalised and turned in, and probabilities are told in: float32, or float64 for such numbers."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
