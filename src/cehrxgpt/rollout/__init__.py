"""Futures drawn from the model: `rollout(decoder, vocabulary, prompts, ...)`. Loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Prompt": "cehrxgpt.rollout.prompt",
    "Rollouts": "cehrxgpt.rollout.result",
    "rollout": "cehrxgpt.rollout.engine",
}

__all__ = ["Prompt", "Rollouts", "rollout"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}")
