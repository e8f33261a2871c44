"""One batch of packed windows, as the model and the objectives see it.

B rows of T places; a row holds one or more segments (windows of histories), numbered from 1; 0 is padding. Attention never
leaves a segment. Targets are shifted once, here and nowhere else.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

IGNORE = -100
PAIRS_PER_GROUP = 1 << 20
"""`pair` counts pairs within a group from this number's multiples on."""


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class PackedBatch:
    """All tensors are [B, T], but for those of what lies ahead, [A].

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
        ahead_token: int64; what follows windows that were cut, window after window, where the loader shows it. For targets alone: the model reads
            none of it. The end of an open history is token 0.
        ahead_age_minutes: int64; on the window's clock.
        ahead_place: int64; row * T + column of the last token of the window that it follows.
    """

    token_id: Tensor
    segment_id: Tensor
    position: Tensor
    age_minutes: Tensor
    value: Tensor
    target: Tensor
    censor_gap_days: Tensor
    pair: Tensor
    ahead_token: Tensor = field(default_factory=_none)
    ahead_age_minutes: Tensor = field(default_factory=_none)
    ahead_place: Tensor = field(default_factory=_none)

    def to(self, device: torch.device | str) -> PackedBatch:
        """The same batch on another device."""
        return PackedBatch(**{one.name: getattr(self, one.name).to(device, non_blocking=True) for one in fields(self)})

    def pinned(self) -> PackedBatch:
        """The same batch in memory that an accelerator copies from by itself."""
        return PackedBatch(**{one.name: getattr(self, one.name).pin_memory() for one in fields(self)})

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int((self.segment_id > 0).sum())

    @property
    def single_segment(self) -> bool:
        """Every row holds at most one segment, so plain causal attention on right-padded rows is exact."""
        return bool((self.segment_id <= 1).all())
