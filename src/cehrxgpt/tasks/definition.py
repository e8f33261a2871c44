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

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from cehrxgpt import visits
from cehrxgpt.config import Refused, from_dict, line_of, parse_yaml
from cehrxgpt.errors import ConfigError, TaskError

MOST_DAYS = 100_000.0
"""Longest window."""

TABLES = ("condition", "drug", "procedure", "measurement", "observation", "device")
"""Tables whose concepts a concept set may list; a concept becomes the code `<table>/<concept_id>`."""

INTENSIVE_CARE = "intensive_care"
"""Stays in intensive care, which lie inside visits, as a class of their own beside the classes of visits."""


@dataclass(frozen=True, kw_only=True)
class ConceptSet:
    """An explicit list of codes; `labeler.resolve` widens it by the descendants that the data's vocabulary knows.

    Attributes:
        condition, drug, ...: OMOP concept ids by table.
        codes: codes verbatim, for MEDS data and for codes with a meaning of their own; a `*` at the end matches any ending.
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
        if not self.patterns:
            raise ValueError(f"a concept set needs at least one concept ({', '.join(TABLES)}) or one of codes")
        for place, pattern in enumerate(self.codes):
            if "*" in pattern[:-1] or pattern in ("", "*"):
                raise Refused(f"code pattern '{pattern}': '*' may stand only at the end, after something", "codes", place)

    @property
    def patterns(self) -> tuple[str, ...]:
        """All codes and patterns as strings."""
        return tuple(f"{table}/{concept}" for table in TABLES for concept in getattr(self, table)) + self.codes


_BOUNDS = ("above", "at_least", "below", "at_most")


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

    def _check_values(self, what: str) -> None:
        """Raises Refused where the bounds cannot be asked."""
        given = [name for name in _BOUNDS if getattr(self, name) is not None]
        for low, high in (("above", "at_least"), ("below", "at_most")):
            if low in given and high in given:
                raise Refused(f"{what}: {low} and {high} bound the same side; give one of them", high)
        if given and self.concepts is None:
            raise Refused(f"{what}: {given[0]} bounds the values of concepts; name a concept set", given[0])
        if self.unit is not None and not given:
            raise Refused(f"{what}: unit belongs to a bound; give one of {', '.join(_BOUNDS)}", "unit")
        if any(value != value for value in (self.above, self.at_least, self.below, self.at_most)):
            raise ValueError(f"{what}: a bound must be a number")
        lower = self.above if self.at_least is None else self.at_least
        upper = self.below if self.at_most is None else self.at_most
        if lower is not None and upper is not None and (lower > upper or (lower == upper and not {"at_least", "at_most"} <= set(given))):
            raise Refused(f"{what}: no number lies {' and '.join(f'{name} {getattr(self, name):g}' for name in given)}", given[-1])

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
        bounds = [f"{name.replace('_', ' ')} {getattr(self, name):g}" for name in _BOUNDS if getattr(self, name) is not None]
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
        if sum((self.concepts is not None, bool(self.visit), self.days_after_first_event is not None)) != 1:
            raise ValueError("index needs exactly one of: concepts, visit, days_after_first_event")
        self._check_values("index")
        _check_classes(self.visit)
        if INTENSIVE_CARE in self.visit and len(self.visit) > 1:
            raise Refused(f"index: {INTENSIVE_CARE} lies inside other visits; ask about it alone", "visit")
        of_visit = [name for name in ("contains", "discharge", "hours_after") if getattr(self, name)]
        if not self.visit and of_visit:
            raise Refused(f"index: {of_visit[0]} belongs to an index visit; give visit: [inpatient]", of_visit[0])
        if self.hours_after < 0 or (self.hours_after and self.at != "start"):
            raise Refused("index: hours_after counts from the visit's start; give at: start and a positive number", "hours_after")
        if self.discharge and self.at != "end":
            raise Refused("index: the place of discharge is known at the visit's end; give at: end", "discharge")
        if self.also and (self.concepts is None or self.occurrence != "first"):
            raise Refused("index: also needs concepts and occurrence: first", "also")
        if self.days_after_first_event is not None and self.days_after_first_event < 0:
            raise Refused("index: days_after_first_event must not be negative", "days_after_first_event")


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
        if sum((self.concepts is not None, bool(self.visit), self.by_age)) != 1:
            raise ValueError("a criterion needs exactly one of: concepts, visit, age_at_least/age_at_most")
        self._check_values("a criterion")
        _check_classes(self.visit)
        for name, number in (("count", self.count), ("within_days", self.within_days)):
            if number is not None and number < 1:
                raise Refused(f"a criterion's {name} must be at least 1", name)

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
        given = (self.concepts is not None, bool(self.visit), self.death, bool(self.any), bool(self.all), self.stay_over_days is not None)
        if sum(given) != 1:
            raise ValueError("outcome needs exactly one of: concepts, visit, death: true, any, all, stay_over_days")
        self._check_values("outcome")
        _check_classes(self.visit)
        if self.stay_over_days is not None and not 0 < self.stay_over_days < MOST_DAYS:
            raise Refused("stay_over_days must be positive", "stay_over_days")
        for name in ("any", "all"):
            for place, part in enumerate(getattr(self, name)):
                if part.stay_over_days is not None:
                    raise Refused("stay_over_days is a window of its own and no part of another outcome", name, place, "stay_over_days")
                if len(getattr(self, name)) == 1:
                    raise Refused(f"{name} needs at least two parts", name)

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


def _check_classes(classes: tuple[str, ...]) -> None:
    for place, name in enumerate(classes):
        if name not in (*visits.CLASSES, INTENSIVE_CARE):
            raise Refused(f"unknown class of visit '{name}'; valid classes: {', '.join((*visits.CLASSES, INTENSIVE_CARE))}", "visit", place)


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
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise Refused(f"name '{self.name}' may hold only letters, digits, '_', '-' and '.'", "name")
        for way, used in self._uses():
            if used not in self.concept_sets:
                defined = ", ".join(sorted(self.concept_sets)) or "none"
                raise Refused(f"concept set '{used}' is used but not defined; defined: {defined}", *way)
        unused = set(self.concept_sets) - set(self.used_sets)
        if unused:
            raise Refused(f"concept set '{sorted(unused)[0]}' is defined but not used; remove it or use it", "concept_sets", sorted(unused)[0])
        self._check_window()
        self._check_onset()
        if (self.censoring == "grace_days") != (self.grace_days > 0):
            belong = "censoring" if self.censoring == "grace_days" else "grace_days"
            raise Refused("grace_days (a positive number) and censoring: grace_days belong together", belong)
        for name in ("history_days", "gap_days"):
            if not 0 <= getattr(self, name) < MOST_DAYS:
                raise Refused(f"{name} must not be negative, nor more than a lifetime", name)
        for place, one in enumerate(self.competing):
            if one.stay_over_days is not None or any(leaf.death for _, leaf in one.leaves()):
                raise Refused("competing: give concepts or visits; death competes always, a stay's length never", "competing", place)

    def _check_onset(self) -> None:
        for name in ("first_onset", "recurrence"):
            if getattr(self, name) and (self.outcome.death or self.outcome.stay_over_days is not None):
                raise Refused(f"{name} needs an outcome of concepts or visits", name)
        if self.first_onset and self.recurrence:
            raise Refused("first_onset and recurrence exclude each other", "recurrence")
        if self.first_onset and self.gap_days:
            raise Refused("first_onset needs gap_days: 0 (an onset in the gap would be neither before nor in the window)", "first_onset")

    def _check_window(self) -> None:
        if self.outcome.stay_over_days is not None:
            for name in ("horizon_days", "gap_days"):
                if getattr(self, name):
                    raise Refused("stay_over_days is its own window; leave out horizon_days and gap_days", name)
        elif self.horizon_days is None:
            raise ValueError("horizon_days is required (days, or 'stay')")
        elif not isinstance(self.horizon_days, str) and not 0 < self.horizon_days < MOST_DAYS:
            raise Refused("horizon_days must be positive, and no more than a lifetime", "horizon_days")
        if self.in_stay and not (self.index.visit and self.index.at == "start"):
            raise Refused("a task about the stay itself needs an index visit with at: start", "index")
        if self.in_stay and self.gap_days:
            raise Refused("a task about the stay itself has no gap_days", "gap_days")

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

    def _uses(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
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
        return tuple(dict.fromkeys(name for _, name in self._uses()))


def parse_task(text: str, *, where: str) -> Task:
    """A task from YAML text; `where` names it in messages.

    Raises:
        TaskError: unknown key, wrong type, a set that is not defined, ...; the message has the line where it can be found.
    """
    try:
        return from_dict(Task, parse_yaml(text, where=where), where=where)
    except ConfigError as error:
        message = str(error).removeprefix(f"{where}: ").removeprefix(f"{where}:")
        line = "" if message.lstrip().startswith("line ") else f" line {line_of(text, error.at)}:" if text.strip() else ""
        raise TaskError(f"{where}:{line} {message.lstrip()}") from error


def library_tasks() -> tuple[str, ...]:
    """Names of the tasks that come with the package, sorted."""
    folder = resources.files("cehrxgpt.tasks") / "library"
    return tuple(sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml")))


def task_text(name: str) -> str:
    """The YAML of a library task.

    Raises:
        TaskError: there is none of that name; the message lists them.
    """
    if name not in library_tasks():
        raise TaskError(f"no library task '{name}'; there are {', '.join(library_tasks())} (or give a YAML file)")
    return (resources.files("cehrxgpt.tasks") / "library" / f"{name}.yaml").read_text(encoding="utf-8")


def load_task(name_or_path: str | Path | Task) -> Task:
    """A library task by name, or a task from a YAML file, ours or of ACES (anything with a slash or a `.yaml`/`.yml` ending is a path).

    Raises:
        TaskError: no such task or file, or it is malformed.
    """
    if isinstance(name_or_path, Task):
        return name_or_path
    path = Path(name_or_path)
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1:
        try:
            text = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise TaskError(f"{path}: no such file; give a task's YAML file or one of: {', '.join(library_tasks())}") from error
        except (IsADirectoryError, UnicodeDecodeError) as error:
            raise TaskError(f"{path}: not a YAML text file") from error
        from cehrxgpt.tasks.aces import is_aces, load_aces

        task = load_aces(path) if is_aces(text) else parse_task(text, where=str(path))
        if task.name in library_tasks() and task != load_task(task.name):
            # Labels carry a task's name alone: a forecast of them would look for the library's outcome.
            raise TaskError(f"{path}: name '{task.name}' is that of a library task that asks something else; give this one a name of its own")
        return task
    return parse_task(task_text(str(name_or_path)), where=f"task {name_or_path}")
