"""What people are asked: answers that follow from who they are and drive nothing. They stand in the table `observation`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cehrxgpt.simulate.draws import uniform
from cehrxgpt.simulate.populations.full.visits import Ints, Mask, purpose
from cehrxgpt.simulate.state import Floats, State

NEVER_SMOKED, SMOKED_ONCE, SMOKES = 45879404, 45883458, 45881517
ANSWERS = {NEVER_SMOKED: "Never smoked", SMOKED_ONCE: "Smoked once", SMOKES: "Smokes every day"}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question of the history.

    Attributes:
        chance: that it is asked at a check-up, an unplanned clinic visit, in the emergency room, on admission.
        answer: concept that each state's person answers with, [n].
        number: number that they answer with, [n].
        holds: whether it is so, [n]: what is so is written, as a fact without an answer.
    """

    name: str
    label: str
    concept: int
    chance: tuple[float, float, float, float]
    answer: Callable[[State], Ints] | None = None
    number: Callable[[State], Floats] | None = None
    holds: Callable[[State], Mask] | None = None


def _own(s: State, *words: str) -> Floats:
    """A draw of each state's person, the same throughout life."""
    return uniform(s.key, 0, purpose("person", *words))


def _smoking(s: State) -> Ints:
    """Frail people and men smoke more; who smokes may stop at an age of their own."""
    ever = _own(s, "smoked") < 1 / (1 + np.exp(0.5 - 0.6 * s.frailty - 0.4 * s.male))
    stops = 25 + 60 * _own(s, "stopped")
    return np.where(ever, np.where(s.age < stops, SMOKES, SMOKED_ONCE), NEVER_SMOKED).astype(np.int64)


def _household(s: State) -> Floats:
    return np.floor(1 + 4 * _own(s, "household") ** np.where(s.age < 60, 1.0, 2.5))


def _works(s: State) -> Mask:
    return (s.age < 66) & (_own(s, "works") < 0.6)


QUESTIONS: tuple[Question, ...] = (
    Question(name="smoking", label="Smoking", concept=43054909, chance=(0.30, 0.08, 0.10, 0.40), answer=_smoking),
    Question(name="household", label="People who live in one household", concept=40766239, chance=(0.06, 0.0, 0.0, 0.15), number=_household),
    Question(name="works", label="Works full time", concept=4053118, chance=(0.06, 0.0, 0.0, 0.05), holds=_works),
)
