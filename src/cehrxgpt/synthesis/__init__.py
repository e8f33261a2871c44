"""Synthetic data: `synthesize`, `write_synthetic`, and the one writer of OMOP tables. Loaded on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.synthesis.check import check_omop
    from cehrxgpt.synthesis.generate import SynthesisConfig, synthesize, write_synthetic
    from cehrxgpt.synthesis.omop import write_omop

_PUBLIC = {
    "SynthesisConfig": "cehrxgpt.synthesis.generate",
    "check_omop": "cehrxgpt.synthesis.check",
    "synthesize": "cehrxgpt.synthesis.generate",
    "write_omop": "cehrxgpt.synthesis.omop",
    "write_synthetic": "cehrxgpt.synthesis.generate",
}

__all__ = ["SynthesisConfig", "check_omop", "synthesize", "write_omop", "write_synthetic"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'; it offers {', '.join(__all__)}")
