"""How each token of a batch stands: which visits last is seen where their ends are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cehrxgpt import visits
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary


class Standing(nn.Module):
    """Says of each token how it stands: its number, plus V where it is the type of a visit that lasts (`timeline.lasting`).

    Args:
        vocabulary: of the tokens.
    """

    types: Tensor
    ends: Tensor

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        self.size = len(vocabulary)
        self.register_buffer("types", torch.from_numpy(vocabulary.kind == Kind.VISIT_TYPE), persistent=False)
        self.register_buffer("ends", torch.from_numpy(vocabulary.kind == Kind.VISIT_END), persistent=False)

    def forward(self, token: Tensor, age_minutes: Tensor, segment: Tensor) -> Tensor:
        """int64[N] from three of int64[N]; tokens of a segment, a number that grows, stand together and in order."""
        types, ends = self.types[token].nonzero().squeeze(1), self.ends[token].nonzero().squeeze(1)
        seen = torch.searchsorted(segment, segment[types], right=True) - 1  # the last token of each one's segment
        if len(ends):
            after = torch.searchsorted(ends, types)
            seen = torch.where(after < len(ends), seen.minimum(ends[after.clamp(max=len(ends) - 1)]), seen)
        stands = token.long().clone()
        stands[types[age_minutes[seen] - age_minutes[types] > visits.stay_minutes()]] += self.size
        return stands
