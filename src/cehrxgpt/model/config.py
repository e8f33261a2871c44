"""The shape of the decoder: one frozen, keyword-only dataclass that checks itself."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, Literal

from cehrxgpt.config import to_dict

LARGEST_INTEGER = 2**63 - 1


def check_numbers(settings: Any) -> None:
    """Raise `ValueError` where a field of a settings dataclass is infinite, no number, or an integer that no tensor could hold."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if value is None and isinstance(field.default, (int, float)):
            raise ValueError(f"{field.name} is None; it must be a number (as {field.default})")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{field.name} is {value}; it must be a finite number")
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise ValueError(f"{field.name} is {value:.3g}; it must be below 2^63")


Rotary = Literal["both", "order", "age", "none"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Settings of `Decoder`.

    Attributes:
        vocabulary_size: tokens, `[PAD]` included.
        width: of the residual stream.
        layers: blocks.
        heads: query heads; the head width is `width // heads` and must be even.
        kv_heads: key-value heads, each shared by `heads // kv_heads` query heads.
        context: tokens the model is trained on at once; generation never goes beyond.
        rotary: what attention turns by: `order` (places in the sequence), `age` (decoded time), `both` (the first half of the
            key-value heads by order, the second by age; needs two of them) or `none`.
        feedforward: inner width of SwiGLU; 0 = 8/3 of `width`, rounded up to a multiple of 32.
        norm_eps: added to the mean square in every RMSNorm.
        tie: the head is the embedding, transposed.
        head_bias: the head adds a number per token. Off as models begin; `adapt` switches it on, so that tokens it adds start out rare.
        care_settings: tokens that say where the patient is from there on (types of visit, `[ICU]`, `[/ICU]`, `[VE]`). Every token is read
            together with the last of them; none: the model has to find it in what it has read.
    """

    vocabulary_size: int
    width: int = 192
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    context: int = 512
    rotary: Rotary = "both"
    feedforward: int = 0
    norm_eps: float = 1e-6
    tie: bool = True
    head_bias: bool = False
    care_settings: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_numbers(self)
        for name in ("vocabulary_size", "width", "layers", "heads", "kv_heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.feedforward < 0:
            raise ValueError(f"feedforward is {self.feedforward}; it must be 0 (chosen from the width) or more")
        if self.width % self.heads or (self.width // self.heads) % 2:
            raise ValueError(f"width {self.width} does not give {self.heads} heads of equal, even width; choose width = heads x an even number")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads {self.heads} is not a multiple of kv_heads {self.kv_heads}")
        if self.rotary not in ("both", "order", "age", "none"):
            raise ValueError(f"rotary is '{self.rotary}'; valid: both, order, age, none")
        if self.rotary == "both" and self.kv_heads < 2:
            raise ValueError("rotary 'both' splits the key-value heads between order and age; kv_heads must be at least 2")
        object.__setattr__(self, "care_settings", tuple(self.care_settings))  # a list, where it was read from a file
        known = {one for one in self.care_settings if 0 < one < self.vocabulary_size}
        if len(known) < len(self.care_settings):
            raise ValueError(f"care_settings are {list(self.care_settings)}; they must be different tokens of {self.vocabulary_size:,}")
        if not self.norm_eps > 0:
            raise ValueError(f"norm_eps is {self.norm_eps}; it must be positive")

    @property
    def head_width(self) -> int:
        """Width of one head."""
        return self.width // self.heads

    @property
    def feedforward_width(self) -> int:
        """Inner width of SwiGLU, resolved."""
        return self.feedforward or -(-self.width * 8 // 3 // 32) * 32

    @property
    def matmul_parameters(self) -> int:
        """Weights that every token is multiplied with, the head included: two FLOP each forward, six in training."""
        block = self.width * (2 * self.width + 2 * self.kv_heads * self.head_width + 3 * self.feedforward_width)
        return self.layers * block + self.vocabulary_size * self.width

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; `ModelConfig(**d)` is the inverse."""
        return dict(to_dict(self))
