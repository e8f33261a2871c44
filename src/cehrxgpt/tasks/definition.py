"""What a prediction task is: a small YAML file, read strictly into frozen dataclasses.

    name: hf_readmission_30d
    description: Back in hospital within 30 days of a discharge with heart failure
    concept_sets:
      heart_failure: {condition: [316139, 319835], codes: ["DIAGNOSIS//ICD//10//I50*"]}
    index: {visit: [inpatient], at: end, contains: heart_failure}
    history_days: 360
    outcome: {visit: [inpatient]}
    horizon_days: 30
    censoring: observation_period

A task says who is asked about and when (`index`, `history_days`, `inclusion`, `exclusion`), what is looked for (`outcome`,
`competing`, `first_onset`, `recurrence`) and where (the window: it opens `gap_days` after the prediction time and lasts
`horizon_days`, or until the stay's end), and what silence means (`censoring`). Everything that reads a task reads these classes;
nothing else knows the YAML.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from cehrxgpt.tasks import checks
from cehrxgpt.tasks.words import BOUNDS, INTENSIVE_CARE, TABLES


@dataclass(frozen=True, kw_only=True)
class ConceptSet:
    """An explicit list of codes; `labeler.resolve` widens it by the descendants that the data's vocabulary knows.

    Attributes:
        condition, drug, ...: OMOP concept ids by table.
        codes: codes verbatim, for MEDS data and for codes with a meaning of their own; a `*` at the end matches any ending (`cehrxgpt.patterns`).
        descendants: widen by `parent_codes`, where the data has them.
    """

    condition: tuple[int, ...] = ()
    drug: tuple[int, ...] = ()
    procedure: tuple[int, ...] = ()
    measurement: tuple[int, ...] = ()
    observation: tuple[int, ...] = ()
    device: tuple[int, ...] = ()
    codes: tuple[str, ...] = ()
    descendants: bool = True

    def __post_init__(self) -> None:
        checks.check_concept_set(self)

    @property
    def patterns(self) -> tuple[str, ...]:
        """All codes and patterns as strings."""
        return tuple(f"{table}/{concept}" for table in TABLES for concept in getattr(self, table)) + self.codes


@dataclass(frozen=True, kw_only=True)
class Valued:
    """An event of `concepts` whose number lies in a range. Nothing is asked of the number where none of the bounds is given.

    A result with a comparison sign counts only where it proves as much: "> 9" is above 9, "< 9" is not known to be.

    Attributes:
        concepts: name of a concept set.
        above, at_least: lower bound, without and with the bound itself.
        below, at_most: upper bound, likewise.
        unit: the record's unit, one or several (OMOP concept id, or verbatim); without it the unit is not looked at.
    """

    concepts: str | None = None
    above: float | None = None
    at_least: float | None = None
    below: float | None = None
    at_most: float | None = None
    unit: int | str | tuple[int | str, ...] | None = None

    @property
    def bounds(self) -> tuple[float, ...]:
        """The bounds that are given."""
        return tuple(bound for bound in (self.above, self.at_least, self.below, self.at_most) if bound is not None)

    @property
    def by_value(self) -> bool:
        """Is anything asked of the number?"""
        return bool(self.bounds)

    @property
    def units(self) -> tuple[str, ...]:
        """The units that count, as they stand in the events; any if empty."""
        given = self.unit if isinstance(self.unit, tuple) else () if self.unit is None else (self.unit,)
        return tuple(str(one) for one in given)

    def describe_concepts(self) -> str:
        """The concept set and its range in words."""
        bounds = [f"{name.replace('_', ' ')} {getattr(self, name):g}" for name in BOUNDS if getattr(self, name) is not None]
        unit = f" (unit {' or '.join(self.units)})" if self.units else ""
        return " ".join([self.concepts or "", " and ".join(bounds)]).strip() + unit


@dataclass(frozen=True, kw_only=True)
class Index(Valued):
    """The event that makes a person eligible, and the moment of the prediction.

    Exactly one of:
        concepts: name of a concept set, with a range of values if any; the prediction time is when the record could know the event
            (`available_time`).
        visit: classes of visit (`inpatient`, ...); `at` start or end of it.
        days_after_first_event: a fixed time after the person's first visit or clinical event.

    Attributes:
        also: further concept sets, all of which must be known; the prediction time is the moment the last of them is (with
            `concepts` and occurrence `first` only: "diabetes *and* a drug for it").
        at: `start` or `end` of the visit.
        hours_after: added to the visit's start; the stay must still be going on then.
        contains: concept set, one event of which must belong to the visit and be known at the prediction time.
        discharge: places of discharge (`discharge/<place>`) that count; any if empty. Needs `at: end`.
        occurrence: `each` index event, the `first`, or the `last` (which looks ahead: it says that no further one came).
    """

    also: tuple[str, ...] = ()
    visit: tuple[str, ...] = ()
    at: Literal["start", "end"] = "end"
    hours_after: int = 0
    contains: str | None = None
    discharge: tuple[int | str, ...] = ()
    days_after_first_event: int | None = None
    occurrence: Literal["each", "first", "last"] = "each"

    def __post_init__(self) -> None:
        checks.check_index(self)


@dataclass(frozen=True, kw_only=True)
class Criterion(Valued):
    """Something the history holds before the prediction time.

    Exactly one of:
        concepts: name of a concept set, with a range of values if any; at least `count` events of it, within the last `within_days`
            (any time if null).
        visit: a visit of one of these classes that started, likewise.
        age_at_least, age_at_most: completed years at the prediction time (either or both).
    """

    visit: tuple[str, ...] = ()
    age_at_least: int | None = None
    age_at_most: int | None = None
    within_days: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        checks.check_criterion(self)

    @property
    def by_age(self) -> bool:
        """Is it a criterion of age?"""
        return self.age_at_least is not None or self.age_at_most is not None

    def describe(self) -> str:
        """In words, for the attrition."""
        if self.by_age:
            low = f"age >= {self.age_at_least}" if self.age_at_least is not None else ""
            high = f"age <= {self.age_at_most}" if self.age_at_most is not None else ""
            return " and ".join(part for part in (low, high) if part)
        what = self.describe_concepts() if self.concepts is not None else f"a visit ({', '.join(self.visit)})"
        when = f" in the last {self.within_days} days" if self.within_days is not None else " before"
        return f"{what}{when}" + (f", {self.count} times" if self.count > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Outcome(Valued):
    """What is predicted, or a part of it; exactly one of its keys.

    Attributes:
        concepts: an event of this concept set, with a range of values if any.
        visit: the start of a visit of one of these classes.
        death: true.
        any: several parts, of which the first to happen counts.
        all: several parts, each of which must happen in the window; the time is when the last of them first has.
        stay_over_days: the index visit lasts longer than this, counted from its start; never a part.
    """

    visit: tuple[str, ...] = ()
    death: bool = False
    any: tuple[Outcome, ...] = ()
    all: tuple[Outcome, ...] = ()
    stay_over_days: float | None = None

    def __post_init__(self) -> None:
        checks.check_outcome(self)

    @property
    def parts(self) -> tuple[Outcome, ...]:
        """The parts of `any` or `all`; none for a plain outcome."""
        return self.any or self.all

    def leaves(self) -> Iterator[tuple[tuple[str | int, ...], Outcome]]:
        """Plain outcomes in it, each with the keys that lead to it."""
        if not self.parts:
            yield (), self
        for place, part in enumerate(self.parts):
            for way, leaf in part.leaves():
                yield ("any" if self.any else "all", place, *way), leaf

    def describe(self) -> str:
        """In words."""
        if self.parts:
            return (" or " if self.any else " and ").join(f"({part.describe()})" if part.parts else part.describe() for part in self.parts)
        if self.concepts is not None:
            return self.describe_concepts()
        if self.visit:
            return f"a visit ({', '.join(self.visit)})"
        return "death" if self.death else f"a stay of more than {self.stay_over_days:g} days"


@dataclass(frozen=True, kw_only=True)
class Task:
    """A whole task; see the module's docstring and `docs/tasks.md`.

    Attributes:
        history_days: least history before the prediction time, from the earlier of the observation's start and the first event.
        gap_days: hold-off; the window opens this long after the prediction time.
        horizon_days: length of the window after it has opened; `stay` = until the index visit's end.
        competing: what else ends the follow-up, as death always does: the label of who meets one of these before the outcome is False.
        first_onset: who had the outcome before the prediction time is not asked about.
        recurrence: only who had it before is asked about.
        censoring: `observation_period` = no outcome and observation ends inside the window: null; `grace_days` = the same, but an
            observation that lacks at most `grace_days` of the window counts as complete; `closed_world` = silence means no.
    """

    name: str
    description: str
    index: Index
    outcome: Outcome
    horizon_days: float | Literal["stay"] | None = None
    concept_sets: dict[str, ConceptSet] = field(default_factory=dict)
    inclusion: tuple[Criterion, ...] = ()
    exclusion: tuple[Criterion, ...] = ()
    history_days: int = 0
    gap_days: float = 0
    competing: tuple[Outcome, ...] = ()
    first_onset: bool = False
    recurrence: bool = False
    censoring: Literal["observation_period", "closed_world", "grace_days"] = "observation_period"
    grace_days: int = 0

    def __post_init__(self) -> None:
        checks.check_task(self)

    @property
    def in_stay(self) -> bool:
        """Does the window end with the index visit?"""
        return self.horizon_days == "stay" or self.outcome.stay_over_days is not None

    @property
    def about_intensive_care(self) -> bool:
        """Is the index a stay in intensive care?"""
        return self.index.visit == (INTENSIVE_CARE,)

    @property
    def follow_days(self) -> float | None:
        """Days from the prediction time to the window's close; None where the stay's end decides."""
        return None if self.in_stay or self.horizon_days is None else self.gap_days + float(self.horizon_days)

    def uses(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        """Names of concept sets with the keys that lead to them, in order of use."""
        names: list[tuple[tuple[str | int, ...], str | None]] = [(("index", "concepts"), self.index.concepts)]
        names += [(("index", "also", place), name) for place, name in enumerate(self.index.also)]
        names += [(("index", "contains"), self.index.contains)]
        for key, criteria in (("inclusion", self.inclusion), ("exclusion", self.exclusion)):
            names += [((key, place, "concepts"), one.concepts) for place, one in enumerate(criteria)]
        names += [(("outcome", *way, "concepts"), leaf.concepts) for way, leaf in self.outcome.leaves()]
        for place, one in enumerate(self.competing):
            names += [(("competing", place, *way, "concepts"), leaf.concepts) for way, leaf in one.leaves()]
        return ((way, name) for way, name in names if name is not None)

    def valued(self) -> Iterator[Valued]:
        """Everything in it that asks for numbers in a range."""
        leaves = (leaf for one in (self.outcome, *self.competing) for _, leaf in one.leaves())
        return (one for one in (self.index, *self.inclusion, *self.exclusion, *leaves) if one.by_value)

    @property
    def used_sets(self) -> tuple[str, ...]:
        """Names of the concept sets in use, in order of use."""
        return tuple(dict.fromkeys(name for _, name in self.uses()))
