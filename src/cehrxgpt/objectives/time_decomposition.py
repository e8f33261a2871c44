"""Time decomposition: the next gap's years, months and days, each by a small head of its own.

    years = gap // 365        months = gap % 365 // 30   (0..12)        days = gap % 365 % 30   (0..29)

A year's twelfth month has five days here; what the heads give to more is never a target and fades. Given the state the three are taken
as independent, so an exact gap costs the sum of three cross-entropies. A gap that is only known to last g days or longer costs
-log P(gap >= g). The triples are ordered as the gaps are, so with (Y, M, D) of g, and exactly,

    P(gap >= g) = P(y > Y) + P(y = Y) [ P(m > M) + P(m = M) P(d >= D) ]

The heads split one number that the gap tokens say as a whole: close gaps share years and months, and learn from each other.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import wide
from cehrxgpt.objectives.gaps import GapObjective, find_gaps
from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.time import DAYS_PER_YEAR, LONG_GAP_DAYS
from cehrxgpt.timeline.vocabulary import Vocabulary

DAYS_PER_MONTH = 30
NEVER = -1e4
MONTHS = -(-DAYS_PER_YEAR // DAYS_PER_MONTH)


def parts_of(days: Tensor, years: int) -> tuple[Tensor, Tensor, Tensor]:
    """Years (at most `years` - 1), months and days of int64[N] gaps."""
    rest = days % DAYS_PER_YEAR
    return (days // DAYS_PER_YEAR).clamp(max=years - 1), rest // DAYS_PER_MONTH, rest % DAYS_PER_MONTH


def log_at_least(logp_NC: Tensor, least_N: Tensor) -> Tensor:
    """log P(class >= least), [N]; beyond the last class a number so small that its exponential is 0 (the gradient of -inf would be NaN)."""
    below = torch.arange(logp_NC.shape[1], device=logp_NC.device) < least_N[:, None]
    return logp_NC.masked_fill(below, NEVER).logsumexp(-1)


class TimeDecomposition(GapObjective):
    """See the module.

    Args:
        vocabulary: for its gap tokens; the longest decides how many years there are.
        width: of the hidden states.
    """

    name: ClassVar[str] = "time_decomposition"

    def __init__(self, vocabulary: Vocabulary, width: int):
        super().__init__(vocabulary)
        longest = self.amount[self.kind == Kind.YEAR_GAP]
        # One class more than years that are said: whatever lasts longer. The last years' months and days mean nothing there, and cost little.
        self.sizes = (max(int(longest.max()) if len(longest) else 0, LONG_GAP_DAYS // DAYS_PER_YEAR) + 2, MONTHS, DAYS_PER_MONTH)
        self.heads = nn.Linear(width, sum(self.sizes))
        nn.init.normal_(self.heads.weight, std=0.02)
        nn.init.zeros_(self.heads.bias)

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> TimeDecomposition:
        """See `Objective.build`."""
        return cls(vocabulary, shape.width)

    def log_probabilities(self, hidden_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log P of years, months and days, float32 [N, classes] each."""
        years, months, days = wide(self.heads(hidden_ND)).split(self.sizes, dim=-1)
        return years.log_softmax(-1), months.log_softmax(-1), days.log_softmax(-1)

    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Sum and count of the terms; see `Objective.forward`."""
        gaps = find_gaps(batch, self.kind, self.amount)
        logp = self.log_probabilities(hidden.flatten(0, 1).index_select(0, gaps.place))
        parts = parts_of(gaps.days, self.sizes[0])
        at_years, at_months, at_days = (one.gather(1, part[:, None])[:, 0] for one, part in zip(logp, parts, strict=True))
        exactly = at_years + at_months + at_days
        later_days = log_at_least(logp[2], parts[2])
        later_months = torch.logaddexp(log_at_least(logp[1], parts[1] + 1), at_months + later_days)
        at_least = torch.logaddexp(log_at_least(logp[0], parts[0] + 1), at_years + later_months)
        return -torch.where(gaps.open, at_least, exactly).sum(), torch.tensor(len(gaps.place), device=hidden.device)
