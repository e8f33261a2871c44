"""Tokens on disk and in batches: `TokenStore` (memory maps), `Loader` (batches as a function of seed and step), `write_store` (tokenize).

Reading needs NumPy, Arrow and Torch only; writing brings the data stack. Names are loaded on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC = {
    "Loader": "cehrxgpt.store.loader",
    "PackedBatch": "cehrxgpt.store.batch",
    "TokenStore": "cehrxgpt.store.format",
    "write_store": "cehrxgpt.store.writer",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}")
