"""The decoder: `ModelConfig`, `Decoder`, `KVCache`, and how a model is kept in a folder (`hub`). Loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "ModelConfig": "cehrxgpt.model.config",
    "Decoder": "cehrxgpt.model.transformer",
    "KVCache": "cehrxgpt.model.cache",
    "Loaded": "cehrxgpt.model.hub",
    "load_model": "cehrxgpt.model.hub",
    "save_model": "cehrxgpt.model.hub",
}

__all__ = ["Decoder", "KVCache", "Loaded", "ModelConfig", "load_model", "save_model"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}")
