"""The model as the stages use it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cehrxgpt.model.hub import Loaded


def load(model: Path) -> Loaded:
    """What a model folder holds, on the GPU where there is one, as in training; `CUDA_VISIBLE_DEVICES=` (nothing) hides it."""
    from cehrxgpt.model.hub import load_model
    from cehrxgpt.train.device import choose_device

    return load_model(model, device=choose_device("auto"))
