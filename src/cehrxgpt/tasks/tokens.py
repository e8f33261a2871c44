"""A task's outcome as a set of tokens, where it is one: what stops a simulated future, and what token-wise estimators sum over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.tasks.codes import matching_codes
from cehrxgpt.tasks.definition import INTENSIVE_CARE, Task

_LONGEST_MINUTES = 10.0 * 365 * 1440


class HasCodes(Protocol):
    """A vocabulary, as far as tasks look at it: the event code that each token decodes to, or None."""

    code: Sequence[str | None]


def outcome_tokens(task: Task, vocabulary: HasCodes) -> npt.NDArray[np.bool_] | None:
    """Tokens that are the outcome, bool[V]; None where the outcome is no set of tokens.

    It is none where the tokens' codes alone do not decide: a stay's length, a window that ends with the stay, or visits of a class
    that some visit concept of the vocabulary has only when it lasts long enough. An all-False array means that the vocabulary
    lacks the outcome's codes: the model cannot generate it. An outcome asks for codes and not for their numbers; where code and value are two
    tokens it is the lab's, never a bin's. (Numbers would be no set of single tokens there, and for the labeler to find in decoded events.)

    Args:
        task: widened by `resolve` as for the labels.
        vocabulary: `code[i]` is the event code that token i decodes to.
    """
    if task.in_stay:
        return None
    codes = [code or "" for code in vocabulary.code]
    if task.outcome.death:
        wanted: frozenset[str] | set[str] = {s.DEATH}
    elif task.outcome.concepts is not None:
        wanted = matching_codes(task.concept_sets[task.outcome.concepts], set(codes) - {""})
    else:
        present = {code for code in codes if code.startswith(s.VISIT_PREFIX)}
        short = {code for code in present if visits.class_of(code, 0.0) in task.outcome.visit}
        long = {code for code in present if visits.class_of(code, _LONGEST_MINUTES) in task.outcome.visit}
        if short != long:
            return None
        wanted = short
        if INTENSIVE_CARE in task.outcome.visit:
            wanted = wanted | {code for code in codes if code.startswith(s.ICU_PREFIX)}
    return np.fromiter((code in wanted for code in codes), dtype=np.bool_, count=len(codes))
