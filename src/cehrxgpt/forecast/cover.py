"""An outcome as events of the time-to-event head: those that are it, or what they hold of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from cehrxgpt.tasks import Task, outcome_by_stay
from cehrxgpt.tasks.tokens import HasCodes
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.lasting import numbers, standings, tokens_of
from cehrxgpt.timeline.vocabulary import Vocabulary


@dataclass(frozen=True)
class Cover:
    """An outcome in terms of the head's events, by their numbers.

    Attributes:
        inside: events within the outcome that together hold what the head's events can hold of it.
        parts: of each of them, the share that those before it do not hold, by training patients; more than 0.
        above: events that hold the whole outcome and more.
        share: of the outcome that `inside` holds.
        death: the event that competes; None where the head does not forecast it, or where it is in the outcome.
    """

    inside: tuple[int, ...]
    parts: tuple[float, ...]
    above: tuple[int, ...]
    share: float
    death: int | None


def events_of(task: Task, vocabulary: Vocabulary) -> list[int] | None:
    """A task's outcome by the numbers of `timeline.lasting`: none where the vocabulary lacks it, None where it is no set of tokens."""
    masks = outcome_by_stay(task, cast(HasCodes, vocabulary))
    return None if masks is None else numbers(*masks)


def find_cover(outcome: Sequence[int], events: Sequence[Sequence[int]], vocabulary: Vocabulary) -> Cover:
    """Events that are the outcome, or as much of it as there is: of those within it, ever the one that adds the most patients.

    Args:
        outcome: numbers of `timeline.lasting`.
        events: those of each event of the head.
        vocabulary: says how many training patients have each token.
    """
    patients = np.array([subjects or 0 for subjects in vocabulary.subjects])
    wanted = frozenset(standings(outcome, vocabulary))
    spread = [frozenset(standings(one, vocabulary)) for one in events]
    within = {index: one for index, one in enumerate(spread) if one and wanted.issuperset(one)}
    missing, parts = set(wanted), dict[int, float]()

    def held(stands: Iterable[int]) -> int:
        return int(patients[tokens_of(stands, len(vocabulary))].sum())

    def added(index: int) -> tuple[int, int]:
        new = within[index] & missing
        return held(new), len(new)

    while within and (most := added(best := max(within, key=added)))[1]:
        event = within.pop(best)
        missing -= event
        if most[0] or not held(event):  # what no training patient has adds nothing to an event that some have
            parts[best] = most[0] / held(event) if held(event) else 1.0
    above = tuple(index for index, one in enumerate(spread) if wanted < one)
    deaths = [index for index, one in enumerate(events) if one and all(vocabulary.kind[number % len(vocabulary)] == Kind.DEATH for number in one)]
    death = deaths[0] if deaths and deaths[0] not in parts else None
    # A token that no training patient has takes nothing from the outcome.
    lost, whole = held(missing), held(wanted)
    return Cover(tuple(parts), tuple(parts.values()), above, 1 - lost / whole if whole else float(not missing), death)
