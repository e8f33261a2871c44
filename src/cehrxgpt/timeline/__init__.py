"""Events to tokens and back: fitting a vocabulary, encoding, decoding, and the `quantise` that both are checked against.

Names are loaded on first use: `time`, `kinds`, `vocabulary`, `grammar`, `encoded` and `window` need NumPy and Arrow only and serve the
accelerator side; the rest brings Polars. Functions named like their module are imported from it: `from
cehrxgpt.timeline.quantise import quantise`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_PUBLIC: dict[str, str] = {
    "Timeline": "cehrxgpt.timeline.timeline",
    "TimelineConfig": "cehrxgpt.timeline.fit",
    "Vocabulary": "cehrxgpt.timeline.vocabulary",
    "Grammar": "cehrxgpt.timeline.grammar",
    "EncodedHistories": "cehrxgpt.timeline.encoded",
    "Kind": "cehrxgpt.timeline.kinds",
    "Population": "cehrxgpt.timeline.population",
    "Quantised": "cehrxgpt.timeline.quantise",
    "read_prompts": "cehrxgpt.timeline.people",
    "draw_dates": "cehrxgpt.timeline.people",
    "person_rows": "cehrxgpt.timeline.people",
    "decode_futures": "cehrxgpt.timeline.decode",
    "decode_histories": "cehrxgpt.timeline.decode",
    "last_window": "cehrxgpt.timeline.window",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'cehrxgpt.timeline' has no attribute '{name}'; it offers {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
