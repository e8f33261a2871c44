"""From concept sets to the codes of a data set: descendants by the data's own vocabulary, patterns by the codes that occur; and what a data
set lacks of what a task asks for."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from cehrxgpt import schema as s
from cehrxgpt import visits
from cehrxgpt.patterns import as_pattern, read_pattern
from cehrxgpt.tasks.definition import ConceptSet, Outcome, Task, Valued
from cehrxgpt.tasks.words import INTENSIVE_CARE

_NAMED = 5  # codes, at most, in a line about those that are absent


def _match(patterns: Iterable[str], codes: Collection[str]) -> frozenset[str]:
    named = list(map(read_pattern, patterns))
    exact = frozenset(text for text, begins in named if not begins)
    prefixes = tuple(text for text, begins in named if begins)
    found = exact.intersection(codes)
    return found.union(code for code in codes if code.startswith(prefixes)) if prefixes else found


def matching_codes(concepts: ConceptSet, codes: Collection[str]) -> frozenset[str]:
    """Those of `codes` that belong to the concept set, as it stands (widen it first with `resolve`)."""
    return _match(concepts.patterns, codes)


def resolve(task: Task, codes: pl.DataFrame | None) -> Task:
    """The task with each concept set widened by its descendants.

    Args:
        task: as loaded.
        codes: `EventDataset.codes` (columns `code`, `parent_codes`: ancestors at any distance or one step up, both are followed);
            None or without parents: the task is returned as it is. Widening twice changes nothing.
    """
    return resolve_all([task], codes)[0]


def resolve_all(tasks: Iterable[Task], codes: pl.DataFrame | None) -> list[Task]:
    """The same of many tasks, reading the ontology once."""
    pairs = _pairs(codes)
    return [replace(task, concept_sets=_widened(task.concept_sets, pairs)) for task in tasks]


def _pairs(codes: pl.DataFrame | None) -> pl.DataFrame:
    """`code`, `parent`: the ontology's distinct pairs."""
    if codes is None or codes.is_empty():
        return pl.DataFrame(schema={"code": pl.String(), "parent": pl.String()})
    pairs = codes.select("code", pl.col("parent_codes").alias("parent")).explode("parent", empty_as_null=True, keep_nulls=True)
    return pairs.drop_nulls().unique()


def _widened(concept_sets: Mapping[str, ConceptSet], pairs: pl.DataFrame) -> dict[str, ConceptSet]:
    """Each concept set with its descendants, where it asks for them."""
    if pairs.is_empty():
        return dict(concept_sets)
    parents = pairs["parent"].unique().to_list()
    return {name: _widen(concepts, pairs, parents) if concepts.descendants else concepts for name, concepts in concept_sets.items()}


def _widen(concepts: ConceptSet, pairs: pl.DataFrame, parents: list[str]) -> ConceptSet:
    below = map(as_pattern, _below([(concepts.patterns, "")], pairs, parents)["code"])
    return replace(concepts, codes=tuple(concepts.codes) + tuple(sorted(set(below) - set(concepts.patterns))))


def _below(roots: Iterable[tuple[Sequence[str], str]], pairs: pl.DataFrame, parents: Collection[str]) -> pl.DataFrame:
    """`root`, `code`: of each root (patterns, name) the codes that it names among `parents`, and all below them by the ontology `pairs`."""
    rows = [(root, code) for patterns, root in roots for code in sorted(_match(patterns, parents))]
    fresh = found = pl.DataFrame(rows, schema={"root": pl.String(), "code": pl.String()}, orient="row")
    while fresh.height:
        below = fresh.join(pairs, left_on="code", right_on="parent", how="inner").select("root", pl.col("code_right").alias("code"))
        fresh = below.unique().join(found, on=["root", "code"], how="anti")
        found = pl.concat([found, fresh])
    return found


@dataclass(frozen=True)
class DataFacts:
    """What a data set holds, as far as tasks ask: all distinct codes, the classes of its visits, and the units of its numbers by code."""

    codes: frozenset[str]
    visit_classes: frozenset[str]
    numbers: frozenset[tuple[str, str | None]] = frozenset()

    @classmethod
    def of(cls, frames: Iterable[pl.DataFrame | pl.LazyFrame]) -> DataFacts:
        """Collect over frames with columns `code`, `time`, `end_time`, `numeric_value`, `unit` (one pass, one frame at a time)."""
        codes: set[str] = set()
        classes: set[str] = set()
        numbers: set[tuple[str, str | None]] = set()
        for frame in frames:
            lazy = frame.lazy()
            found = lazy.select(pl.col("code").unique()).collect()["code"].to_list()
            codes.update(found)
            numbers.update(lazy.filter(pl.col("numeric_value").is_finite()).select("code", "unit").unique().collect().iter_rows())
            if any(code.startswith((s.VISIT_PREFIX, s.ICU_PREFIX)) for code in found):
                visits_or_icu = pl.col("code").str.starts_with(s.VISIT_PREFIX) | pl.col("code").str.starts_with(s.ICU_PREFIX)
                stays = lazy.filter(visits_or_icu)
                classes.update(stays.select(visit_class().unique().alias("class")).collect()["class"].to_list())
                # What has no end of its own may have lasted.
                if stays.select((visits.is_ambiguous(pl.col("code")) & pl.col("end_time").is_null()).any()).collect().item():
                    classes.add("inpatient")
        return cls(frozenset(codes), frozenset(classes), frozenset(numbers))

    def missing(self, task: Task) -> list[str]:
        """What the task needs and the data lacks, in words; empty if it can be asked. What is excluded, or competes, may be absent."""
        index, included = task.index, task.inclusion
        asked: list[Outcome | Valued] = [index, *(Valued(concepts=name) for name in (*index.also, index.contains) if name is not None), *included]
        lacking = [text for one in (*asked, task.outcome) for text in self._lacking(task, one)]
        for classes in (index.visit, *(one.visit for one in included)):
            lacking.extend(self._lacking_visit(classes))
        places = discharge_codes(task)
        if places and not self.codes & set(places):
            lacking.append(f"no discharge of {', '.join(places)} is in the data")
        return list(dict.fromkeys(lacking))

    def idle(self, task: Task) -> list[str]:
        """What competes and is nowhere in the data, in words: it ends nobody's follow-up, which is right or a misspelt concept."""
        return list(dict.fromkeys(f"competing: {text}" for one in task.competing for text in self._lacking(task, one)))

    def partly_absent(self, written: Mapping[str, ConceptSet], codes: pl.DataFrame | None) -> list[str]:
        """Which codes of sets that are in the data are not, in words, with their descendants by the ontology `codes` (as in `resolve`): rightly so,
        or misspelt. `written`: sets as they were before they were widened."""
        pairs, told = _pairs(codes), []
        parents = frozenset(pairs["parent"].unique().to_list())
        for name, concepts in written.items():
            bare = [code for code in concepts.patterns if not _match([code], self.codes)]
            below = _below([([code], code) for code in bare], pairs, parents).iter_rows() if concepts.descendants else ()
            by_descendants = {root for root, code in below if code in self.codes}
            absent = [code for code in bare if code not in by_descendants]
            if 0 < len(absent) < len(concepts.patterns):
                more = ", ..." if len(absent) > _NAMED else ""
                told.append(
                    f"{len(absent)} of the {len(concepts.patterns)} codes of '{name}' are not in the data ({', '.join(absent[:_NAMED])}{more})"
                )
        return told

    def _lacking(self, task: Task, asked: Outcome | Valued) -> Iterator[str]:
        """What is missing for one thing asked: of `any` nothing while one part can be had, of `all` whatever one of them lacks."""
        if isinstance(asked, Outcome):
            parts = [list(self._lacking(task, part)) for part in asked.parts]
            if parts and (asked.all or all(parts)):
                yield from (text for part in parts for text in part)
            if asked.death and s.DEATH not in self.codes:
                yield f"no {s.DEATH} is in the data"
            yield from self._lacking_visit(asked.visit)
        if asked.concepts is not None:
            yield from self._lacking_concepts(task.concept_sets[asked.concepts], asked)

    def _lacking_visit(self, classes: tuple[str, ...]) -> Iterator[str]:
        if classes and not self.visit_classes & set(classes):
            yield f"no visit of class {' or '.join(classes)} is in the data"

    def _lacking_concepts(self, concepts: ConceptSet, asked: Valued) -> Iterator[str]:
        here = matching_codes(concepts, self.codes)
        if not here and len(concepts.patterns) > 1:
            yield f"none of the {len(concepts.patterns)} codes of '{asked.concepts}' ({concepts.patterns[0]}, ...) is in the data"
        elif not here:
            yield f"the one code of '{asked.concepts}' ({concepts.patterns[0]}) is not in the data"
        elif asked.by_value and not any(code in here and (not asked.units or unit in asked.units) for code, unit in self.numbers):
            there = sorted({unit or "none" for code, unit in self.numbers if code in here})
            said = f" in unit {' or '.join(asked.units)}" if asked.units else ""
            yield f"no number of '{asked.concepts}'{said} is in the data" + (f" (units there: {', '.join(there)})" if there else "")


def discharge_codes(task: Task) -> tuple[str, ...]:
    """The index's places of discharge, as codes."""
    return tuple(f"{s.DISCHARGE_PREFIX}{place}" for place in task.index.discharge)


SIGNS = ("<", "<=", ">=", ">")


def value_edges(tasks: Iterable[Task], codes: Iterable[str]) -> dict[str, tuple[float, ...]]:
    """Bounds that the tasks name for values, as edges between bins (float32, ascending), so that no bin lies across one.

    A bin holds its lower edge and not its upper one. So a bound that belongs to what lies above it (`at_least`, `below`) is an edge itself, and
    one that belongs to what lies below (`above`, `at_most`) has its edge at the next number. Of results with a sign it is the sign that
    says to which side a number at the bound belongs ("> 9" is above 9), and only those on the range's side are asked about.

    Args:
        tasks: widened by `resolve` as for the labels.
        codes: those that the data has.

    Returns:
        `code` -> edges for its plain numbers, and `code sign` -> edges for those with this sign, as `TimelineConfig.fixed_edges` takes them.
    """
    codes = tuple(codes)
    edges: dict[str, set[float]] = {}
    for task in tasks:
        for asked in task.valued():
            named = {sign: _edges(asked, sign) for sign in (None, *SIGNS)}
            for code in matching_codes(task.concept_sets[asked.concepts or ""], codes):
                for sign, values in named.items():
                    edges.setdefault(f"{code} {sign}" if sign else code, set()).update(values)
    return {code: tuple(sorted(values)) for code, values in sorted(edges.items())}


def _edges(asked: Valued, sign: str | None) -> set[float]:
    """Edges for the numbers with one sign."""
    here = {float(np.float32(bound)) for bound in (asked.at_least, asked.below) if bound is not None}
    lower = {float(np.float32(bound)) for bound in (asked.above, asked.at_least) if bound is not None}
    upper = {_next(bound) for bound in (asked.below, asked.at_most) if bound is not None}
    if sign in (">", ">="):
        return lower if sign == ">" else {_next(asked.above)} if asked.above is not None else lower
    if sign in ("<", "<="):
        return upper if sign == "<" else {float(np.float32(asked.below))} if asked.below is not None else upper
    return here | {_next(bound) for bound in (asked.above, asked.at_most) if bound is not None}


def _next(bound: float) -> float:
    """The next float32."""
    return float(np.nextafter(np.float32(bound), np.float32(np.inf)))


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
