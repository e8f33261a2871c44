"""One dial: a name that stands for width, depth, heads, context, learning rate and batch that fit each other.

A key that a recipe gives itself wins over the dial. `base` is the published model (768 wide, 14 layers, 2e-4, batches of 16,384 tokens); `large`
follows it up, at a rate that falls about as the width grows; `small` is for processors and small cards, `tiny` for first tries.
Heads are 64 wide, but for `tiny`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

SizeName = Literal["tiny", "small", "base", "large"]
DEFAULT_LEARNING_RATE = 1e-3
DEFAULT_TOKENS_PER_BATCH = 4096


@dataclass(frozen=True)
class Size:
    """What a name stands for; the first five are keys of `ModelConfig`, the last two of `TrainConfig`."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    context: int
    learning_rate: float
    tokens_per_batch: int

    @property
    def model(self) -> dict[str, Any]:
        """The keys of `ModelConfig`."""
        return {name: getattr(self, name) for name in ("width", "layers", "heads", "kv_heads", "context")}


SIZES: dict[str, Size] = {
    "tiny": Size(width=48, layers=2, heads=4, kv_heads=2, context=256, learning_rate=3e-3, tokens_per_batch=2048),
    "small": Size(width=256, layers=6, heads=4, kv_heads=2, context=1024, learning_rate=1e-3, tokens_per_batch=4096),
    "base": Size(width=768, layers=14, heads=12, kv_heads=4, context=4096, learning_rate=2e-4, tokens_per_batch=16384),
    "large": Size(width=1280, layers=22, heads=20, kv_heads=4, context=8192, learning_rate=1.5e-4, tokens_per_batch=32768),
}
