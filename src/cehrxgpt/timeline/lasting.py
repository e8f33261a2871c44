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
    """What of `objectives.standing` is one of these events: n for token n, V + n for visit type n where its visit lasts."""
    size = len(vocabulary)
    found = set()
    for number in events:
        which, token = divmod(number, size)
        if which != 1:
            found.add(token)
        if which == 1 or (which == 0 and vocabulary.kind[token] == Kind.VISIT_TYPE):
            found.add(size + token)
    return sorted(found)
