"""A vocabulary that grows: what another data set has and the vocabulary lacks is appended, and nothing that stands is touched.

Old ids, strings, codes, bins and edges stay byte for byte, so a history whose events the old vocabulary all knew is encoded alike by both, and
a token store of the old one can be read with the new one. Growing twice by the same data adds nothing the second time: whether a token is
there already is asked by what it means (kind and code, unit, text or amount), never by how it reads.

    codes, visit types, places, genders, races    by kind and code
    value bins, labs                              by (code, unit): a known pair keeps its bins, an unknown one brings all of its own
    bins that labs share                          by number: as many more as the new lab with the most needs
    categories                                    by code and text
    years                                         from the first to the last of either, without holes
    everything structural                         what this release writes and an older vocabulary lacks

Counting is `timeline.fit`'s, with the settings the vocabulary was fitted with: on the training split alone, and nothing of fewer than
`min_subjects` patients. `subjects` of an old token is the count it came with, of a new token the new data's.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import fields
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.timeline.back_off import joined_facts, ontology_facts, sets_of
from cehrxgpt.timeline.fit import Counts, TimelineConfig, codes_of, count_events, event_rows, shared_bins, unique_tokens, year_range
from cehrxgpt.timeline.kinds import EVENT_KINDS, Kind
from cehrxgpt.timeline.structure import Row, structural_rows
from cehrxgpt.timeline.vocabulary import Vocabulary

_ALONE = (Kind.PAD, Kind.BOS, Kind.VISIT_START, Kind.VISIT_RESUME, Kind.VISIT_END, Kind.LONG_GAP, Kind.DEATH, Kind.END)  # one token per kind


def settings_of(vocabulary: Vocabulary) -> TimelineConfig:
    """How the vocabulary was fitted."""
    known = {field.name for field in fields(TimelineConfig)}
    given = {name: value for name, value in vocabulary.settings.items() if name in known}
    given["fixed_edges"] = {code: tuple(values) for code, values in given.get("fixed_edges", {}).items()}
    given["roll_up"] = tuple(given.get("roll_up", ()))
    return TimelineConfig(**given)


def meaning(row: Row) -> Hashable:
    """What a token stands for; two rows with the same meaning are the same token. The bins of one (code, unit) mean one thing together."""
    kind = Kind(row["kind"])
    if kind in _ALONE:
        return kind
    if kind in (Kind.VALUE, Kind.LAB):
        return kind, row["code"], row.get("unit")
    if kind == Kind.CATEGORY:
        return kind, row["code"], row["text_value"]
    return (kind, row["code"]) if row.get("code") is not None else (kind, row.get("amount", -1))


def expand(vocabulary: Vocabulary, events: EventDataset | pl.DataFrame, *, split: str | None = s.TRAIN, calendar: str | None = None) -> Vocabulary:
    """The vocabulary with what the data brings appended; the vocabulary itself where it brings nothing.

    Args:
        events: a data set, of which only `split` is read; or an EventTable, all of which counts.
        calendar: `true` or `shifted`; by default what the data set says (the vocabulary's for a bare table).

    Raises:
        InputError: not one code of the data is known, and none has enough patients to be added; or there is no such split.
    """
    config = settings_of(vocabulary)
    calendar = calendar or (events.calendar if isinstance(events, EventDataset) else str(vocabulary.settings.get("calendar", "true")))
    counts = count_events(events, split, config, sets_of(vocabulary))
    old = vocabulary.table.to_pylist()
    there = {meaning(row) for row in old}
    found = [*structural_rows(_years(vocabulary, counts, calendar), config.long_gap), *event_rows(counts)]
    new = [row for row in found if meaning(row) not in there]
    new += [row for row in shared_bins(new) if meaning(row) not in there]
    _check(vocabulary, counts, new)
    if not new:
        return vocabulary
    names = events.names() if isinstance(events, EventDataset) else {}
    for row in new:
        if row.get("code") in names:
            row["name"] = names[row["code"]]
    expansions = [*vocabulary.settings.get("expansions", []), {"first": len(old), "tokens": len(new), "train_subjects": counts.subjects}]
    settings = {**vocabulary.settings, "expansions": expansions}
    if "ontology" in settings:
        kept = [row["code"] for row in (*old, *new) if row["kind"] == Kind.CODE]
        settings["ontology"] = joined_facts(settings["ontology"], ontology_facts(kept, codes_of(events), sets_of(vocabulary)))
    return Vocabulary.from_rows(unique_tokens([*old, *new]), settings)


def _years(vocabulary: Vocabulary, counts: Counts, calendar: str) -> range:
    """Years of the data, and those between them and the vocabulary's: the amounts of a kind are consecutive."""
    found = year_range(counts, calendar)
    known = [amount for amount in vocabulary.amount_to_id.get(Kind.YEAR, {}) if amount >= 0]
    if not len(found) or not known:
        return found
    return range(min(found[0], *known), max(found[-1], *known) + 1)


def _check(vocabulary: Vocabulary, counts: Counts, new: list[dict[str, Any]]) -> None:
    """Raise `InputError` where the expanded vocabulary could say nothing of what happens in the data."""
    clinical = counts.codes.filter(~pl.col("code").str.contains(r"^(gender|race|Visit|discharge)/") & (pl.col("code") != s.DEATH))
    known = {code for code, kind in zip(vocabulary.code, vocabulary.kind, strict=True) if kind in EVENT_KINDS}
    if any(row["kind"] == Kind.CODE for row in new) or clinical["code"].is_in(list(known)).any():
        return
    raise InputError(
        f"nothing to adapt to: none of the data's {clinical['code'].n_unique():,} codes is in the model's vocabulary, and none has the "
        f"{counts.config.min_subjects} training patients of {counts.subjects:,} that a new code needs"
    )
