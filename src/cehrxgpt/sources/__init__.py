"""Raw data to EventTables: the only readers that know OMOP columns and MEDS dialects.

Loaded on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.sources.config import IngestConfig
    from cehrxgpt.sources.run import ingest, read_meds, read_omop

_PUBLIC = {"ingest": "run", "read_omop": "run", "read_meds": "run", "IngestConfig": "config"}

__all__ = ["IngestConfig", "ingest", "read_meds", "read_omop"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"cehrxgpt.sources.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'cehrxgpt.sources' has no attribute '{name}'; it offers {', '.join(__all__)}")
