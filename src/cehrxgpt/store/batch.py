"""One batch of packed windows, as the model and the objectives see it.

B rows of T places; a row holds one or more segments (windows of different patients), numbered from 1; 0 is padding. Attention never
leaves a segment. Targets are shifted once, here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

IGNORE = -100
PAIRS_PER_GROUP = 1 << 20
"""`pair` counts pairs within a group from this number's multiples on."""


@dataclass(frozen=True)
class PackedBatch:
    """All tensors are [B, T].

    Attributes:
        token_id: int64; 0 = padding.
        segment_id: int64; 0 = padding, else 1, 2, ... along the row.
        position: int64; 0, 1, ... within the segment.
        age_minutes: int64; decoded age at the token.
        value: float32; NaN where the token has none.
        target: int64; the next token of the segment, IGNORE at its end and at padding.
        censor_gap_days: int64; at the last token of an open history, the whole days it was observed beyond its last clock date with
            nothing happening; -1 everywhere else. A window that was cut there has -1.
        pair: int64; at the last token of a window that has a partner (another window of the same patient), the pair's number: group *
            PAIRS_PER_GROUP + 0, 1, ...; -1 everywhere else.
    """

    token_id: Tensor
    segment_id: Tensor
    position: Tensor
    age_minutes: Tensor
    value: Tensor
    target: Tensor
    censor_gap_days: Tensor
    pair: Tensor

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(**{field.name: getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)})

    def pinned(self) -> PackedBatch:
        """The same batch in memory that an accelerator copies from by itself."""
        return PackedBatch(**{field.name: getattr(self, field.name).pin_memory() for field in fields(self)})

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int((self.segment_id > 0).sum())

    @property
    def single_segment(self) -> bool:
        """Every row holds at most one segment, so plain causal attention on right-padded rows is exact."""
        return bool((self.segment_id <= 1).all())
