"""Next token with the censored last gap.

At every place that has a target y the term is -log p(y), the full softmax over the vocabulary. At the last token of an open history,
which was watched for g more days in which nothing was recorded, the term is

    -log P(next gap > g) = -log  sum over gap tokens a with reach(a) > g  of  p(a)

    reach(D_n) = n                        the gap ends n days on
    reach(Y_y) = max(1080, 365 (y + 1))   y years and a remainder that is not yet drawn: for g >= 1080 this is y >= g // 365, so the
                                          history counts as censored on its last full 365 days: a little earlier than it was, and valid
    reach(LT)  = 1080                     where long gaps are one token

and g is brought down to what the vocabulary can tell apart (1,079 with `LT`). The sum is over gap tokens alone and p keeps its full
denominator: after a bare event the same day might still have brought another code, but that day is over, so this mass belongs to what
did not happen. Without the term a model never sees the gaps that outlast the records, and its rates are too high.

Both kinds of term are summed and counted together: they are factors of one likelihood, and dividing them apart would weigh a
censored gap differently from a seen one. The head runs on places with a term only, in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.objectives.base import Objective, ObjectiveSettings, nothing, wide
from cehrxgpt.objectives.cross_entropy import linear_cross_entropy
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.timeline.kinds import PROMPT_KINDS, Kind
from cehrxgpt.timeline.time import DAYS_PER_YEAR, LONG_GAP_DAYS
from cehrxgpt.timeline.vocabulary import Vocabulary


def gap_reach(vocabulary: Vocabulary) -> Tensor:
    """int64[V]: token v says "nothing for more than g days" exactly for g < reach[v]; 0 where it is no gap."""
    kind, amount = vocabulary.kind, vocabulary.amount.astype(np.int64)
    reach = np.select(
        [kind == Kind.DAY_GAP, kind == Kind.YEAR_GAP, kind == Kind.LONG_GAP],
        [amount, np.maximum(LONG_GAP_DAYS, DAYS_PER_YEAR * (amount + 1)), np.int64(LONG_GAP_DAYS)],
        np.int64(0),
    )
    return torch.from_numpy(reach)


def _censored(decoder: Decoder, hidden_ND: Tensor, gap_days_N: Tensor, reach_V: Tensor) -> Tensor:
    """Sum of -log P(next gap > gap_days), float32."""
    logits_NV = wide(decoder.head(hidden_ND))
    outlasts_NV = reach_V > gap_days_N[:, None].clamp(max=int(reach_V.max()) - 1)
    return (logits_NV.logsumexp(-1) - logits_NV.masked_fill(~outlasts_NV, float("-inf")).logsumexp(-1)).sum()


@dataclass(frozen=True, kw_only=True)
class NextTokenSettings(ObjectiveSettings):
    """Settings of `NextToken`.

    Attributes:
        demographics: predict the demographic prompt. Without, the model says what follows for whom, and not who there is: it cannot
            write people of its own accord.
    """

    demographics: bool = True


class NextToken(Objective):
    """Cross-entropy of the next token, and of the gap that the end of observation cut off.

    Args:
        vocabulary: for its gap tokens.
        censoring: add the censored last gap. Off only to show what its absence does.
        demographics: see `NextTokenSettings`.
        values: count the bins of labs as well, where they are tokens of their own; off beside the objective `value`.
    """

    name: ClassVar[str] = "next_token"
    Settings: ClassVar[type[ObjectiveSettings]] = NextTokenSettings
    reach: Tensor
    unasked: Tensor

    def __init__(self, vocabulary: Vocabulary, *, censoring: bool = True, demographics: bool = True, values: bool = True):
        super().__init__()
        reach = gap_reach(vocabulary)
        self.censoring = censoring and bool((reach > 0).any())
        self.register_buffer("reach", reach, persistent=False)
        kinds = (*(() if demographics else PROMPT_KINDS), *(() if values else (Kind.BIN,)))
        unasked = np.isin(vocabulary.kind, [int(kind) for kind in kinds])
        self.register_buffer("unasked", torch.from_numpy(unasked), persistent=False)

    @classmethod
    def build(cls, vocabulary: Vocabulary, shape: ModelConfig, settings: Any, facts: dict[str, Any]) -> NextToken:
        """See `Objective.build`."""
        return cls(vocabulary, demographics=settings.demographics)

    def _asked(self, batch: PackedBatch) -> Tensor:
        """bool[B, T]: places whose next token is predicted."""
        return (batch.target != IGNORE) & ~self.unasked[batch.target.clamp(min=0)]

    def count(self, batch: PackedBatch) -> Tensor:
        """Places with a target that is asked for, and open histories that end in the batch."""
        terms = self._asked(batch).sum()
        if self.censoring:
            terms = terms + (batch.censor_gap_days >= 0).sum()
        return terms

    def forward(self, decoder: Decoder, hidden: Tensor, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """Sum and count of the terms; see `Objective.forward`."""
        hidden_ND, target_N = hidden.flatten(0, 1), batch.target.flatten()
        total = nothing(hidden)
        places = self._asked(batch).flatten().nonzero().squeeze(1)
        if len(places):
            total = total + linear_cross_entropy(hidden_ND.index_select(0, places), *decoder.head_weights(), target_N[places])
        gap_days_N = batch.censor_gap_days.flatten()
        open_ends = (gap_days_N >= 0).nonzero().squeeze(1)
        if self.censoring and len(open_ends):
            total = total + _censored(decoder, hidden_ND.index_select(0, open_ends), gap_days_N[open_ends], self.reach)
        return total, self.count(batch)
