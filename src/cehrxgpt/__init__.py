"""CEHR-XGPT: a foundation model of patients' health records that a hospital trains on its own data.

    import cehrxgpt as cx
    events = cx.read_omop("cdm", out="events")
    labels = cx.label(events, "t2dm_hf_1y").labels

The names below are loaded on first use, so that `import cehrxgpt` stays instant.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# public name -> module that holds it
_PUBLIC: dict[str, str] = {
    "EventDataset": "cehrxgpt.events",
    "Timeline": "cehrxgpt.timeline",
    "adapt": "cehrxgpt.adapt",
    "discover": "cehrxgpt.features.neighbours",
    "embed": "cehrxgpt.features.embed",
    "label": "cehrxgpt.tasks",
    "load_model": "cehrxgpt.model.hub",
    "pretrain": "cehrxgpt.train",
    "read_meds": "cehrxgpt.sources",
    "read_omop": "cehrxgpt.sources",
    "synthesize": "cehrxgpt.synthesis",
    "write_store": "cehrxgpt.store.writer",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        module = import_module(_PUBLIC[name])
        return module if name == "adapt" else getattr(module, name)  # that package is its function
    raise AttributeError(f"module 'cehrxgpt' has no attribute '{name}'; it offers {', '.join(sorted(__all__))}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
