"""One history in words: what each token says and when, for `inspect`. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cehrxgpt.timeline.encoded import EncodedHistories
from cehrxgpt.timeline.kinds import PROMPT_KINDS, TIME_KINDS, Kind
from cehrxgpt.timeline.time import datetime64_from_instant
from cehrxgpt.timeline.vocabulary import Vocabulary

_SAID = {
    Kind.VISIT_START: "visit begins",
    Kind.VISIT_RESUME: "visit goes on",
    Kind.VISIT_END: "visit ends",
    Kind.ICU_START: "intensive care begins",
    Kind.ICU_END: "intensive care ends",
    Kind.DEATH: "death",
    Kind.END: "end of the history",
    Kind.BOS: "beginning",
}


@dataclass(frozen=True)
class Line:
    """One token.

    Attributes:
        clock: "2011-03-05 14:00", decoded; empty in the prompt.
        token: as in the vocabulary.
        name: readable; empty where nothing more can be said.
        value: the number behind a value token or a lab's bin, None elsewhere.
        inside: it stands inside a visit.
    """

    clock: str
    token: str
    name: str
    value: float | None
    inside: bool


def _name(vocabulary: Vocabulary, index: int, kind: Kind) -> str:
    amount = int(vocabulary.amount[index])
    if kind in TIME_KINDS:
        unit = "year" if kind == Kind.YEAR_GAP else "hour" if kind == Kind.IN_VISIT_HOURS else "day"
        return f"{amount} {unit}{'' if amount == 1 else 's'}" + (" or more" if kind == Kind.LONG_GAP else "")
    if kind == Kind.DRUG_LENGTH:
        return f"taken for {vocabulary.token[index].removeprefix('days:').replace('>', 'over ')} days"
    if kind == Kind.STAY_DAY:
        return f"day {amount} of the stay"
    known = vocabulary.name[index]
    if known is not None and kind == Kind.CATEGORY:
        return f"{known} = {vocabulary.text_value[index]}"
    if known is not None and kind in (Kind.VALUE, Kind.LAB):
        return known + vocabulary.token[index].removeprefix(str(vocabulary.code[index]))
    return known or _SAID.get(kind, "")


def _bounds(vocabulary: Vocabulary, lab: int, place: int) -> str:
    """A lab's bin as an interval."""
    edges = vocabulary.bin_edges[lab]
    assert edges is not None
    return f"[{edges[place]:.6g}, {edges[place + 1]:.6g}{']' if place + 2 == len(edges) else ')'}"


def describe(histories: EncodedHistories, vocabulary: Vocabulary, index: int) -> list[Line]:
    """Every token of one history."""
    place = histories.history(index)
    token, age = histories.token_id[place], histories.age_minutes[place].astype(np.int64)
    if not len(token):
        return []
    clock = int(histories.start_date[index]) * 1440 + age - int(age[len(PROMPT_KINDS) - 1])
    shown = np.datetime_as_string(datetime64_from_instant(clock), unit="m")
    lines, inside = [], False
    for n, (identifier, value) in enumerate(zip(token.tolist(), histories.value[place].tolist(), strict=True)):
        kind = Kind(int(vocabulary.kind[identifier]))
        inside = inside and kind != Kind.VISIT_END
        said = "" if kind in PROMPT_KINDS else str(shown[n]).replace("T", " ")
        name = _bounds(vocabulary, int(token[n - 1]), int(vocabulary.amount[identifier])) if kind == Kind.BIN else _name(vocabulary, identifier, kind)
        lines.append(Line(said, vocabulary.token[identifier], name, None if np.isnan(value) else value, inside))
        inside = inside or kind in (Kind.VISIT_START, Kind.VISIT_RESUME)
    return lines


def render(lines: list[Line], *, limit: int | None = None) -> str:
    """Lines as text, events inside visits indented; `limit` keeps the first so many."""
    kept = lines if limit is None else lines[:limit]
    width = max((len(line.token) + 2 * line.inside for line in kept), default=0)
    text = []
    for line in kept:
        token = ("  " if line.inside else "") + line.token
        value = "" if line.value is None else f"  ({line.value:g})"
        text.append(f"{line.clock:16}  {token:{width}}  {line.name}{value}".rstrip())
    if len(kept) < len(lines):
        text.append(f"... {len(lines) - len(kept):,} more tokens")
    return "\n".join(text)
