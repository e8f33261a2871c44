"""From concept sets to the codes of a data set: descendants by the data's own vocabulary, patterns by the codes that occur."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.tasks.definition import INTENSIVE_CARE, ConceptSet, Task


def _match(patterns: Iterable[str], codes: Iterable[str]) -> frozenset[str]:
    exact = {pattern for pattern in patterns if not pattern.endswith("*")}
    prefixes = tuple(pattern[:-1] for pattern in patterns if pattern.endswith("*"))
    return frozenset(code for code in codes if code in exact or (prefixes and code.startswith(prefixes)))


def matching_codes(concepts: ConceptSet, codes: Iterable[str]) -> frozenset[str]:
    """Those of `codes` that belong to the concept set, as it stands (widen it first with `resolve`)."""
    return _match(concepts.patterns, codes)


def resolve(task: Task, codes: pl.DataFrame | None) -> Task:
    """The task with each concept set widened by its descendants.

    Args:
        task: as loaded.
        codes: `EventDataset.codes` (columns `code`, `parent_codes`: ancestors at any distance or one step up, both are followed);
            None or without parents: the task is returned as it is. Widening twice changes nothing.
    """
    if codes is None or codes.is_empty():
        return task
    pairs = codes.select("code", pl.col("parent_codes").alias("parent")).explode("parent", empty_as_null=True, keep_nulls=True)
    pairs = pairs.drop_nulls().unique()
    if pairs.is_empty():
        return task
    widened = {name: _widen(concepts, pairs) if concepts.descendants else concepts for name, concepts in task.concept_sets.items()}
    return replace(task, concept_sets=widened)


def _widen(concepts: ConceptSet, pairs: pl.DataFrame) -> ConceptSet:
    known = set(concepts.patterns)
    parents = pairs["parent"].unique().to_list()
    fresh = set(_match(concepts.patterns, parents)) | known
    while fresh:
        below = pairs.filter(pl.col("parent").is_in(sorted(fresh)))["code"].unique().to_list()
        fresh = set(below) - known
        known |= fresh
    return replace(concepts, codes=tuple(concepts.codes) + tuple(sorted(known - set(concepts.patterns))))


@dataclass(frozen=True)
class DataFacts:
    """What a data set holds, as far as tasks ask: all distinct codes, and the classes of its visits."""

    codes: frozenset[str]
    visit_classes: frozenset[str]

    @classmethod
    def of(cls, frames: Iterable[pl.DataFrame | pl.LazyFrame]) -> DataFacts:
        """Collect over frames with columns `code`, `time`, `end_time` (one pass, one frame at a time)."""
        codes: set[str] = set()
        classes: set[str] = set()
        for frame in frames:
            lazy = frame.lazy()
            found = lazy.select(pl.col("code").unique()).collect()["code"].to_list()
            codes.update(found)
            if any(code.startswith((s.VISIT_PREFIX, s.ICU_PREFIX)) for code in found):
                visits_or_icu = pl.col("code").str.starts_with(s.VISIT_PREFIX) | pl.col("code").str.starts_with(s.ICU_PREFIX)
                stays = lazy.filter(visits_or_icu).select(visit_class().unique().alias("class")).collect()
                classes.update(stays["class"].to_list())
        return cls(frozenset(codes), frozenset(classes))

    def missing(self, task: Task) -> list[str]:
        """What the task needs and the data lacks, in words; empty if it can be asked."""
        lacking = []
        for name in task.required_sets:
            concepts = task.concept_sets[name]
            if not matching_codes(concepts, self.codes):
                many = len(concepts.patterns) > 1
                which = f"none of the {len(concepts.patterns)} codes of '{name}' ({concepts.patterns[0]}, ...)"
                lacking.append(f"{which} is in the data" if many else f"the one code of '{name}' ({concepts.patterns[0]}) is not in the data")
        if task.outcome.death and s.DEATH not in self.codes:
            lacking.append(f"no {s.DEATH} is in the data")
        needed = [task.index.visit, task.outcome.visit, *(one.visit for one in task.inclusion)]
        absent = [classes for classes in dict.fromkeys(needed) if classes and not self.visit_classes & set(classes)]
        lacking.extend(f"no visit of class {' or '.join(classes)} is in the data" for classes in absent)
        places = discharge_codes(task)
        if places and not self.codes & set(places):
            lacking.append(f"no discharge of {', '.join(places)} is in the data")
        return lacking


def discharge_codes(task: Task) -> tuple[str, ...]:
    """The index's places of discharge, as codes."""
    return tuple(f"{s.DISCHARGE_PREFIX}{place}" for place in task.index.discharge)


def visit_class(until: pl.Expr | None = None) -> pl.Expr:
    """Class of Visit rows and rows of intensive care (columns `code`, `time`, `end_time`), by what is known at `until` (an instant;
    default: everything).

    A stay that is still open then has lasted *longer* than the time elapsed, hence the minute on top.
    """
    minutes = (pl.col("end_time") - pl.col("time")).dt.total_minutes()
    if until is not None:
        open_still = pl.col("end_time").is_null() | (pl.col("end_time") > until)
        minutes = pl.when(open_still).then((until - pl.col("time")).dt.total_minutes() + 1).otherwise(minutes)
    icu = pl.col("code").str.starts_with(s.ICU_PREFIX)
    return pl.when(icu).then(pl.lit(INTENSIVE_CARE)).otherwise(visits.classify(pl.col("code"), minutes))
