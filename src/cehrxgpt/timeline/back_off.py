"""Codes written as one of their ancestors: rolled up to a listed one, or backed off because they are too rare.

    roll up     a descendant of a listed code is written as the nearest listed one, before anything is counted
    back off    a code outside the vocabulary is written as its nearest ancestor in it; an ancestor joins the vocabulary where rare codes
                of enough patients together are written as it

*Nearest* is an ancestor that is no ancestor of another candidate; of several (a data set tells the ancestors of its own codes, not of those
ancestors), the one that fewest training patients stand behind. An event that is written as an ancestor says only that: its number, unit
and text belong to another code and are set aside.

**The boundary.** Neither may cross the edge of a concept set that a task is defined by, or a label would depend on how rare its code is: a code goes
only to ancestors that are members of exactly the same sets. Sets come from outside as patterns (`ConceptSets`); a code is a member where a
pattern names it, or an ancestor of it where the set takes descendants.

**What a vocabulary keeps** (`settings["ontology"]`) is about its own codes alone: the sets, which of its codes are their members, and which are
ancestors of which. Which rare code becomes what is never stored. It is worked out from the data in hand, by the ontology that came with it
(`EventDataset.codes`): a table of aliases beside the model would name codes that fewer than `min_subjects` patients have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from cehrxgpt.patterns import read_pattern
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

Parents = Mapping[str, Iterable[str]]


@dataclass(frozen=True)
class ConceptSet:
    """A set as a task states it.

    Attributes:
        patterns: codes; a `*` at the end matches any ending (`cehrxgpt.patterns`).
        descendants: codes whose ancestor is named are members too.
    """

    patterns: tuple[str, ...]
    descendants: bool = True


ConceptSets = Mapping[str, ConceptSet]


def parents_of(codes: pl.DataFrame) -> dict[str, list[str]]:
    """code -> its parents or ancestors, of a data set's `codes` table."""
    return {code: list(parents) for code, parents in codes.select("code", "parent_codes").iter_rows() if parents}


def ancestors_of(known: Iterable[str], codes: pl.DataFrame) -> dict[str, list[str]]:
    """Code -> all codes that stand above it, of those of `known` that have any; ascending."""
    ontology = Ontology(parents_of(codes), {})
    above = {code: sorted(ontology.ancestors(code)) for code in sorted(known)}
    return {code: found for code, found in above.items() if found}


class Ontology:
    """Ancestors and memberships of codes.

    Args:
        parents: code -> parents, one step up or at any distance; both are followed.
        sets: whose boundaries are kept.
        members: code -> sets it was found to be a member of elsewhere, by an ontology that may know more.
    """

    def __init__(self, parents: Parents, sets: ConceptSets, members: Mapping[str, Iterable[str]] | None = None):
        self.parents, self.sets = parents, sets
        self._elsewhere = {code: frozenset(names) for code, names in (members or {}).items()}
        self._exact: dict[str, set[str]] = {}
        self._prefixes: list[tuple[str, str]] = []
        for name, one in sets.items():
            for pattern in one.patterns:
                text, begins = read_pattern(pattern)
                if begins:
                    self._prefixes.append((text, name))
                else:
                    self._exact.setdefault(text, set()).add(name)
        self._ancestors: dict[str, frozenset[str]] = {}
        self._members: dict[str, frozenset[str]] = {}

    def ancestors(self, code: str) -> frozenset[str]:
        """All of them, without the code itself."""
        if code not in self._ancestors:
            found: set[str] = set()
            waiting = list(self.parents.get(code, ()))
            while waiting:
                parent = waiting.pop()
                if parent not in found:
                    found.add(parent)
                    waiting += self.parents.get(parent, ())
            self._ancestors[code] = frozenset(found - {code})
        return self._ancestors[code]

    def members_of(self, code: str) -> frozenset[str]:
        """Names of the sets that the code is a member of."""
        if code in self._members:
            return self._members[code]
        inherited = {name for above in self.ancestors(code) for name in self._named(above) if self.sets[name].descendants}
        self._members[code] = frozenset(self._named(code) | inherited) | self._elsewhere.get(code, frozenset())
        return self._members[code]

    def _named(self, code: str) -> set[str]:
        """Sets of which a pattern names the code."""
        return self._exact.get(code, set()) | {name for prefix, name in self._prefixes if code.startswith(prefix)}

    def nearest(self, code: str, targets: Mapping[str, int]) -> str | None:
        """The ancestor among `targets` (code -> patients) that the code may be written as; None where there is none."""
        above = self.ancestors(code) & targets.keys()
        if not above:
            return None
        mine = self.members_of(code)
        allowed = {one for one in above if self.members_of(one) == mine}
        covered = {one for other in allowed for one in self.ancestors(other) & allowed if other not in self.ancestors(one)}
        lowest = allowed - covered
        return min(lowest, key=lambda one: (targets[one], one)) if lowest else None


@dataclass(frozen=True)
class Aliases:
    """code -> the ancestor that is written instead.

    Attributes:
        target: the map.
        backed_off: its codes that go to an ancestor for being outside the vocabulary; the others were rolled up.
    """

    target: Mapping[str, str] = field(default_factory=dict)
    backed_off: frozenset[str] = frozenset()

    def apply(self, events: pl.DataFrame) -> pl.DataFrame:
        """The same rows with ancestors for codes, and without the values of those that changed."""
        if not self.target:
            return events
        aliased = pl.col("code").is_in(list(self.target))
        bare = [pl.when(~aliased).then(pl.col(name)).alias(name) for name in ("numeric_value", "text_value", "unit") if name in events.columns]
        return events.with_columns(*bare, pl.col("code").replace(dict(self.target)))


def rolled_up(codes: pl.DataFrame, listed: Iterable[str], sets: ConceptSets) -> Aliases:
    """Aliases of the data's codes that have a listed ancestor and are not listed themselves."""
    targets = dict.fromkeys(listed, 0)
    parents = parents_of(codes)
    ontology = Ontology(parents, sets)
    found = ((code, ontology.nearest(code, targets)) for code in parents if code not in targets)
    return Aliases({code: target for code, target in found if target is not None})


def common_ancestors(rare: pl.DataFrame, known: Mapping[str, int], codes: pl.DataFrame, sets: ConceptSets, minimum: int) -> dict[str, int]:
    """Ancestors to add to a vocabulary, so that rare codes can be written as them.

    Args:
        rare: `subject_id`, `code`, distinct: who has which code outside the vocabulary.
        known: code -> patients, of the vocabulary.
        minimum: patients whose rare codes must be written as an added ancestor (distinct people, after the nearest has been chosen).

    Returns:
        ancestor -> patients who have any rare code below it: at least as many as those whose codes are written as it.
    """
    ontology = Ontology(parents_of(codes), sets)
    people = {code: frozenset(subjects) for code, subjects in rare.group_by("code").agg("subject_id").iter_rows()}
    below: dict[str, set[str]] = {}
    for code in people:
        above = {one for one in ontology.ancestors(code) - known.keys() if ontology.members_of(one) == ontology.members_of(code)}
        for one in above | {code}:
            below.setdefault(one, set()).add(code)
    subjects = {one: len(frozenset().union(*(people[code] for code in under))) for one, under in below.items()}
    # From the narrowest up, each takes what none before it took; where it gets too few, they are left to a broader one.
    own = {code: ontology.nearest(code, known) for code in people}
    added: dict[str, int] = {}
    waiting = set(people)
    for one in sorted((one for one, count in subjects.items() if count >= minimum), key=lambda one: (subjects[one], one)):
        taken = {code for code in below[one] & waiting if _goes(ontology, code, one, subjects[one], own[code], known)}
        if len(frozenset().union(*(people[code] for code in taken))) >= minimum:
            added[one] = subjects[one]
            waiting -= taken
    # What encoding will choose, by the same rule as ever: should one come out too small after all, it goes, the narrowest first.
    while True:
        written: dict[str, set[int]] = {}
        for code, having in people.items():
            target = code if code in added else ontology.nearest(code, {**known, **added})
            if target is not None:
                written.setdefault(target, set()).update(having)
        small = [one for one in added if len(written.get(one, ())) < minimum]
        if not small:
            return added
        del added[min(small, key=lambda one: (subjects[one], one))]


def _goes(ontology: Ontology, code: str, one: str, subjects: int, own: str | None, known: Mapping[str, int]) -> bool:
    """Whether a code would be written as the ancestor `one` rather than as its own nearest in the vocabulary."""
    return code == one or own is None or ontology.nearest(code, {own: known[own], one: subjects}) == one


def ontology_facts(vocabulary_codes: Iterable[str], codes: pl.DataFrame, sets: ConceptSets) -> dict[str, Any]:
    """What a vocabulary keeps, as plain JSON; see the module's docstring."""
    known = set(vocabulary_codes)
    ontology = Ontology(parents_of(codes), sets)
    ancestors = {code: sorted(ontology.ancestors(code) & known) for code in sorted(known)}
    members = {code: sorted(ontology.members_of(code)) for code in sorted(known)}
    return {
        "sets": {name: {"patterns": list(one.patterns), "descendants": one.descendants} for name, one in sets.items()},
        "ancestors": {code: above for code, above in ancestors.items() if above},
        "members": {code: names for code, names in members.items() if names},
    }


def joined_facts(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of a vocabulary that has grown: what either ontology knows of its codes. The sets are the old ones."""

    def both(name: str) -> dict[str, list[str]]:
        codes = sorted({*old[name], *new[name]})
        return {code: sorted({*old[name].get(code, ()), *new[name].get(code, ())}) for code in codes}

    return {"sets": old["sets"], "ancestors": both("ancestors"), "members": both("members")}


def sets_of(vocabulary: Vocabulary) -> dict[str, ConceptSet]:
    """The concept sets whose boundaries the vocabulary keeps."""
    facts = vocabulary.settings.get("ontology", {})
    return {name: ConceptSet(tuple(one["patterns"]), one["descendants"]) for name, one in facts.get("sets", {}).items()}


def aliases(vocabulary: Vocabulary, codes: pl.DataFrame) -> Aliases:
    """What the data's codes are written as, by its own ontology and the vocabulary's settings; empty where neither is asked for."""
    listed, back_off = vocabulary.settings.get("roll_up", []), bool(vocabulary.settings.get("back_off", False))
    if not (listed or back_off) or codes.is_empty():
        return Aliases()
    facts, sets = vocabulary.settings.get("ontology", {}), sets_of(vocabulary)
    known = {str(vocabulary.code[i]): int(vocabulary.subjects[i] or 0) for i in vocabulary.ids_of_kind(Kind.CODE) if vocabulary.code[i] is not None}
    own = parents_of(codes)
    target = {code: above for code, above in rolled_up(codes, listed, sets).target.items() if above in known}
    if not back_off:
        return Aliases(target)
    parents = {code: {*own.get(code, ()), *facts.get("ancestors", {}).get(code, ())} for code in {*own, *facts.get("ancestors", {})}}
    ontology = Ontology(parents, sets, facts.get("members"))
    said = known.keys() | target.keys() | {code for code in vocabulary.code if code is not None}
    found = {code: ontology.nearest(code, known) for code in own if code not in said}
    backed_off = {code: above for code, above in found.items() if above is not None}
    return Aliases(target | backed_off, frozenset(backed_off))
