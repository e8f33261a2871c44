"""A task's outcome as a set of tokens, where it is one: what stops a simulated future, and what token-wise estimators sum over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.tasks.codes import matching_codes
from cehrxgpt.tasks.definition import Outcome, Task
from cehrxgpt.tasks.outcome import value_holds
from cehrxgpt.tasks.words import INTENSIVE_CARE

_ACROSS = "a bin of the vocabulary lies across a bound of"
_SHORT, _LONG = (0.0,), (10.0 * 365 * 1440,)  # minutes that a visit may last
Mask = npt.NDArray[np.bool_]


class HasCodes(Protocol):
    """A vocabulary, as far as tasks look at it: what each token decodes to."""

    code: Sequence[str | None]
    unit: Sequence[str | None]
    operator: Sequence[str | None]
    bin_low: npt.NDArray[np.float32]
    bin_high: npt.NDArray[np.float32]
    bin_quantiles: Sequence[Sequence[npt.NDArray[np.float32]] | None]

    @property
    def split_values(self) -> bool:
        """Are a code and its number two tokens?"""
        ...


def outcome_tokens(task: Task, vocabulary: HasCodes) -> Mask | None:
    """Tokens that are the outcome, bool[V]; None where the outcome is no set of tokens.

    It is none where one token alone does not decide: a stay's length, a window that ends with the stay, visits of a class that some visit
    concept of the vocabulary has only when it lasts long enough, `all` of several parts, and wherever something but death competes (a
    token is no outcome after that). `any` is the union of its parts, and none if one of them is none. An all-False array means that the
    vocabulary lacks the outcome's codes, or bins on the right side of the bound: the model cannot generate it.

    Values in a range are the bins that lie in it wholly (the outermost bins end at their winsorised bounds, beyond which nothing is
    decoded), and none where a bin lies across a bound, or where code and number are two tokens. What asks for no number is the
    lab's token there, never a bin's.

    Args:
        task: widened by `resolve` as for the labels.
        vocabulary: what token i decodes to: `code[i]`, and for one with a number `unit[i]`, `operator[i]`, `bin_low[i]`, `bin_high[i]`;
            for a lab whose number is another token `bin_quantiles[i]`.
    """
    found = _tokens(task, vocabulary, (*_SHORT, *_LONG))
    return None if isinstance(found, str) else found


def outcome_by_stay(task: Task, vocabulary: HasCodes) -> tuple[Mask, Mask] | None:
    """Tokens that are the outcome where the visit that they begin is short, and where it lasts; None where it is no set of tokens even so."""
    short, long = (_tokens(task, vocabulary, lasting) for lasting in (_SHORT, _LONG))
    return None if isinstance(short, str) or isinstance(long, str) else (short, long)


def why_no_tokens(task: Task, vocabulary: HasCodes, *, by_stay: bool = False) -> str | None:
    """In words, why the outcome is no set of tokens, or with `by_stay` not even of visits told apart by whether they last; None where it is one."""
    found = [_tokens(task, vocabulary, lasting) for lasting in ((_SHORT, _LONG) if by_stay else ((*_SHORT, *_LONG),))]
    return next((one for one in found if isinstance(one, str)), None)


def hangs_on_length(task: Task, vocabulary: HasCodes) -> bool:
    """Does how long a visit lasts decide whether it is the outcome, part of it, or competes?"""
    leaves = [leaf for one in (task.outcome, *task.competing) for _, leaf in one.leaves()]
    return any(isinstance(_visits(leaf, vocabulary, (*_SHORT, *_LONG)), str) for leaf in leaves if leaf.visit)


def across_bounds(task: Task, vocabulary: HasCodes) -> list[str]:
    """What is asked of values, in words, where a bin of the vocabulary lies across a bound: a future's value is the median of its bin there."""
    asked = [leaf for one in (task.outcome, *task.competing) for _, leaf in one.leaves() if leaf.by_value]
    found = [(leaf.describe_concepts(), _in_range(leaf, _concepts(task, leaf, vocabulary), vocabulary)) for leaf in asked]
    return list(dict.fromkeys(words for words, tokens in found if isinstance(tokens, str) and tokens.startswith(_ACROSS)))


def can_be_said(task: Task, vocabulary: HasCodes) -> bool:
    """Has the vocabulary tokens for the outcome, be they a set that decides it or not? Where not, no future can ever have it.

    Of `any` one part is enough, of `all` every one is needed. What competes, and when the window ends, does not matter here.
    """
    return task.outcome.stay_over_days is not None or _can_be_said(task, task.outcome, vocabulary)


def _can_be_said(task: Task, asked: Outcome, vocabulary: HasCodes) -> bool:
    if asked.parts:
        return (any if asked.any else all)(_can_be_said(task, part, vocabulary) for part in asked.parts)
    if asked.by_value and vocabulary.split_values:
        return _is_reached(asked, _concepts(task, asked, vocabulary), vocabulary)
    found = _tokens_of(task, asked, vocabulary, (*_SHORT, *_LONG))
    return isinstance(found, str) or bool(found.any())  # in words: there are tokens, but one alone does not decide


def _tokens(task: Task, vocabulary: HasCodes, lasting: tuple[float, ...]) -> Mask | str:
    """The set, or why there is none; `lasting`: minutes that visits may last."""
    if task.outcome.stay_over_days is not None:
        return "the outcome is the length of a stay"
    if task.in_stay:
        return "the window ends with the stay"
    if task.competing:
        return "something but death competes with the outcome"
    return _tokens_of(task, task.outcome, vocabulary, lasting)


def _tokens_of(task: Task, asked: Outcome, vocabulary: HasCodes, lasting: tuple[float, ...]) -> Mask | str:
    if asked.all:
        return "the outcome is all of several things"
    if asked.any:
        parts = [_tokens_of(task, part, vocabulary, lasting) for part in asked.any]
        known = [part for part in parts if not isinstance(part, str)]
        return np.logical_or.reduce(known) if len(known) == len(parts) else next(part for part in parts if isinstance(part, str))
    if asked.death:
        return _with_codes(vocabulary, {s.DEATH})
    if asked.visit:
        return _visits(asked, vocabulary, lasting)
    tokens = _concepts(task, asked, vocabulary)
    return _in_range(asked, tokens, vocabulary) if asked.by_value else tokens


def _concepts(task: Task, asked: Outcome, vocabulary: HasCodes) -> Mask:
    """Tokens of the outcome's concepts, whatever their numbers."""
    codes = {code for code in vocabulary.code if code}
    return _with_codes(vocabulary, matching_codes(task.concept_sets[asked.concepts or ""], codes))


def _with_codes(vocabulary: HasCodes, wanted: frozenset[str] | set[str]) -> Mask:
    return np.fromiter((code in wanted for code in vocabulary.code), dtype=np.bool_, count=len(vocabulary.code))


def _visits(asked: Outcome, vocabulary: HasCodes, lasting: tuple[float, ...]) -> Mask | str:
    present = {code for code in vocabulary.code if code and code.startswith(s.VISIT_PREFIX)}
    found = [{code for code in present if visits.class_of(code, minutes) in asked.visit} for minutes in lasting]
    if found[0] != found[-1]:
        return f"how long a visit lasts decides whether it is of class {' or '.join(asked.visit)}"
    icu = {code for code in vocabulary.code if code and code.startswith(s.ICU_PREFIX)} if INTENSIVE_CARE in asked.visit else set()
    return _with_codes(vocabulary, found[0] | icu)


def _in_range(asked: Outcome, tokens: Mask, vocabulary: HasCodes) -> Mask | str:
    """Those of `tokens` whose bins lie in the range; a word where one lies across a bound. Tokens without a number are out."""
    if vocabulary.split_values and tokens.any():
        return f"the vocabulary writes '{asked.concepts}' and its number as two tokens"
    binned = np.flatnonzero(tokens & np.isfinite(vocabulary.bin_low))
    keys = [(vocabulary.code[token], vocabulary.unit[token], vocabulary.operator[token]) for token in binned.tolist()]
    low, high = vocabulary.bin_low[binned].astype(np.float32), vocabulary.bin_high[binned].astype(np.float32)
    last = {key: (a, b) for a, b, key in sorted(zip(low.tolist(), high.tolist(), keys, strict=True), key=lambda one: one[:2])}
    # A bin holds its lower bound, and its upper one only as the last of its run.
    closed = np.array([last[key] == ends for key, ends in zip(keys, zip(low.tolist(), high.tolist(), strict=True), strict=True)], dtype=np.bool_)
    top = np.where(closed, high, np.maximum(np.nextafter(high, np.float32(-np.inf)), low))
    answers = _answers(asked, [(unit, operator) for _, unit, operator in keys], low, top)
    if (answers.any(axis=0) != answers.all(axis=0)).any():
        return f"{_ACROSS} '{asked.describe_concepts()}' (tokenize --task FILE puts bounds between bins)"
    inside = np.zeros(len(tokens), dtype=np.bool_)
    inside[binned[answers[0]]] = True
    return inside


def _is_reached(asked: Outcome, tokens: Mask, vocabulary: HasCodes) -> bool:
    """Has one of the labs among `tokens` a bin with a number in the range?"""
    labs = [(token, inside) for token in np.flatnonzero(tokens).tolist() for inside in vocabulary.bin_quantiles[token] or ()]
    signs = [(vocabulary.unit[token], vocabulary.operator[token]) for token, _ in labs]
    low, high = (np.array([inside[end] for _, inside in labs], dtype=np.float32) for end in (0, -1))
    return bool(_answers(asked, signs, low, high).any())


def _answers(
    asked: Outcome, signs: list[tuple[str | None, str | None]], low: npt.NDArray[np.float32], high: npt.NDArray[np.float32]
) -> npt.NDArray[np.bool_]:
    """Every answer that numbers from `low` to `high` (float32[B]) of these units and operators have to the range, bool[points, B].

    Whether the range holds changes at its bounds alone: beside them and at the ends, every answer is there that a bin has.
    """
    columns = pl.DataFrame(signs, schema={"unit": pl.String, "operator": pl.String}, orient="row")
    points = [low, high, *(np.asarray(np.clip(point, low, high)) for bound in asked.bounds for point in _around(bound))]
    return np.stack([columns.select(value_holds(asked, pl.lit(pl.Series(point, dtype=pl.Float32))))[:, 0].to_numpy() for point in points])


def _around(bound: float) -> tuple[np.float32, np.float32, np.float32]:
    """The bound and its neighbours, as float32."""
    middle = np.float32(bound)
    return np.nextafter(middle, np.float32(-np.inf)), middle, np.nextafter(middle, np.float32(np.inf))
