"""Where a batch says how long the next gap is: what the two objectives of elapsed time share.

A gap stands between units (visits, bare days, a death). It is known at the last token before it:

    D<n>                    exactly n days (0: another unit on the same day)
    Y<y> D<n>               exactly 365 y + n days; nothing is asked between the two
    Y<y>, the rest cut off  at least max(1080, 365 y) days
    LT                      at least 1,080 days
    the end of an open      at least g + 1 days, when it was watched for g more days in which nothing happened
    history

The days and hours inside a visit are tokens too, but not gaps: they are written to the hour, and next-token prediction has them all.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cehrxgpt.objectives.base import Objective
from cehrxgpt.store.batch import IGNORE, PackedBatch
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.time import DAYS_PER_YEAR, LONG_GAP_DAYS
from cehrxgpt.timeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class Gaps:
    """The gaps of a batch, N of them.

    Attributes:
        place: int64[N]; row * T + column of the last token before the gap.
        days: int64[N].
        open: bool[N]; the gap is `days` or longer, and not exactly `days`.
    """

    place: Tensor
    days: Tensor
    open: Tensor


def gap_tables(vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """kind int64[V] and amount int64[V] of every token."""
    return torch.from_numpy(vocabulary.kind).long(), torch.from_numpy(vocabulary.amount).long()


def starts_gap(batch: PackedBatch, kind_V: Tensor) -> Tensor:
    """bool[B, T]: the next token begins a gap, or the history is open and ends here."""
    target_kind = kind_V[batch.target.clamp(min=0)]
    begins = (target_kind == Kind.DAY_GAP) | (target_kind == Kind.YEAR_GAP) | (target_kind == Kind.LONG_GAP)
    begins &= (batch.target != IGNORE) & (kind_V[batch.token_id] != Kind.YEAR_GAP)
    return begins | (batch.censor_gap_days >= 0)


def find_gaps(batch: PackedBatch, kind_V: Tensor, amount_V: Tensor) -> Gaps:
    """The gaps of a batch, in order of place."""
    place = starts_gap(batch, kind_V).flatten().nonzero().squeeze(1)
    target = batch.target.flatten()
    next_token = target[place].clamp(min=0)  # PAD where the history ends: no gap's kind
    width = batch.target.shape[1]
    # The token after next, where it is still in the row; at the row's last place there is none, and the remainder counts as cut off.
    after = torch.where((place + 1) % width == 0, IGNORE, target[(place + 1).clamp(max=len(target) - 1)])
    kind, amount = kind_V[next_token], amount_V[next_token]
    has_rest = (after != IGNORE) & (kind_V[after.clamp(min=0)] == Kind.DAY_GAP)
    rest = amount_V[after.clamp(min=0)]
    years = DAYS_PER_YEAR * amount
    watched = batch.censor_gap_days.flatten()[place]
    days = torch.where(kind == Kind.DAY_GAP, amount, torch.where(has_rest, years + rest, years.clamp(min=LONG_GAP_DAYS)))
    days = torch.where(watched >= 0, watched + 1, torch.where(kind == Kind.LONG_GAP, LONG_GAP_DAYS, days))
    exact = (watched < 0) & ((kind == Kind.DAY_GAP) | ((kind == Kind.YEAR_GAP) & has_rest))
    return Gaps(place, days, ~exact)


class GapObjective(Objective):
    """An objective whose terms are the gaps of a batch, seen and censored.

    Args:
        vocabulary: for its gap tokens.
    """

    kind: Tensor
    amount: Tensor

    def __init__(self, vocabulary: Vocabulary):
        super().__init__()
        kind, amount = gap_tables(vocabulary)
        self.register_buffer("kind", kind, persistent=False)
        self.register_buffer("amount", amount, persistent=False)

    def count(self, batch: PackedBatch) -> Tensor:
        """Gaps, seen and censored."""
        return starts_gap(batch, self.kind).sum()
