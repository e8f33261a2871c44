"""Training: `pretrain` and its settings. Loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "RECIPES": "cehrxgpt.train.config",
    "TrainConfig": "cehrxgpt.train.config",
    "TrainSummary": "cehrxgpt.train.summary",
    "load_recipe": "cehrxgpt.train.config",
    "pretrain": "cehrxgpt.train.loop",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}")
