"""Which of several processes this one is, as its launcher says; nothing is loaded for it."""

from __future__ import annotations

import os


def count() -> int:
    """Processes that `torchrun` or `accelerate launch` started together; 1 where none did."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def rank() -> int:
    """Number of this process among them, from 0."""
    return int(os.environ["RANK"]) if count() > 1 else 0
