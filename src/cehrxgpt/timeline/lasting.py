"""Events by number: a token, told apart by how long the visit lasts that it begins.

Some concepts name a visit of hours as well as a stay of days, and which it was is known when it ends (`visit_classes.yaml`). So what a task
asks for may be a token only where its visit lasts. Of a vocabulary of V tokens,

    n           is token n, whatever it begins
    V + n       is visit type n of a visit that lasts longer than `visits.stay_minutes()`
    2 V + n     is visit type n of one that does not

A visit whose end is not seen, as a window or the record ends before it, lasts where so much of it is seen; else it counts as one that does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt import visits
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

NUMBERS_PER_TOKEN = 3
STANDINGS_PER_TOKEN = 2  # of visit types; other tokens stand in one way only


def numbers(short: npt.NDArray[np.bool_], long: npt.NDArray[np.bool_]) -> list[int]:
    """Numbers of the tokens that count in visits that do not last, and in those that do; bool[V] each."""
    size = len(short)
    found = (np.flatnonzero(short & long), size + np.flatnonzero(long & ~short), 2 * size + np.flatnonzero(short & ~long))
    return [int(number) for part in found for number in part]


def tokens_of(events: Iterable[int], vocabulary_size: int) -> list[int]:
    """The tokens behind numbers, each once, in order."""
    return sorted({number % vocabulary_size for number in events})


def standings(events: Sequence[int], vocabulary: Vocabulary) -> list[int]:
    """What of `Standing` is one of these events: n for token n, V + n for visit type n where its visit lasts."""
    size = len(vocabulary)
    found = set()
    for number in events:
        which, token = divmod(number, size)
        if which != 1:
            found.add(token)
        if which == 1 or (which == 0 and vocabulary.kind[token] == Kind.VISIT_TYPE):
            found.add(size + token)
    return sorted(found)


class Standing:
    """Says of each token how it stands: its number, plus V where it is the type of a visit that lasts.

    Args:
        vocabulary: of the tokens.
    """

    def __init__(self, vocabulary: Vocabulary):
        self.size = len(vocabulary)
        self.types = torch.from_numpy(vocabulary.kind == Kind.VISIT_TYPE)
        self.ends = torch.from_numpy(vocabulary.kind == Kind.VISIT_END)

    def __call__(self, token: Tensor, age_minutes: Tensor, segment: Tensor) -> Tensor:
        """int64[N] from three of int64[N]; tokens of a segment, a number that grows, stand together and in order."""
        types = self.types.to(token.device)[token].nonzero().squeeze(1)
        ends = self.ends.to(token.device)[token].nonzero().squeeze(1)
        seen = torch.searchsorted(segment, segment[types], right=True) - 1  # the last token of each one's segment
        if len(ends):
            after = torch.searchsorted(ends, types)
            seen = torch.where(after < len(ends), seen.minimum(ends[after.clamp(max=len(ends) - 1)]), seen)
        stands = token.long().clone()
        stands[types[age_minutes[seen] - age_minutes[types] > visits.stay_minutes()]] += self.size
        return stands
