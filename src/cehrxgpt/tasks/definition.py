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
`first_onset`) and where (the window: it opens `gap_days` after the prediction time and lasts `horizon_days`, or until the stay's
end), and what silence means (`censoring`). Everything that reads a task reads these classes; nothing else knows the YAML.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Literal

from cehrxgpt import visits
from cehrxgpt.config import from_dict, parse_yaml
from cehrxgpt.errors import ConfigError, TaskError

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
        for pattern in self.codes:
            if "*" in pattern[:-1] or pattern in ("", "*"):
                raise ValueError(f"code pattern '{pattern}': '*' may stand only at the end, after something")

    @property
    def patterns(self) -> tuple[str, ...]:
        """All codes and patterns as strings."""
        return tuple(f"{table}/{concept}" for table in TABLES for concept in getattr(self, table)) + self.codes


@dataclass(frozen=True, kw_only=True)
class Index:
    """The event that makes a person eligible, and the moment of the prediction.

    Exactly one of:
        concepts: name of a concept set; the prediction time is when the record could know the event (`available_time`).
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

    concepts: str | None = None
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
        _check_classes(self.visit)
        if INTENSIVE_CARE in self.visit and len(self.visit) > 1:
            raise ValueError(f"index: {INTENSIVE_CARE} lies inside other visits; ask about it alone")
        if not self.visit and (self.contains or self.discharge or self.hours_after):
            raise ValueError("index: contains, discharge and hours_after belong to an index visit; give visit: [inpatient]")
        if self.hours_after < 0 or (self.hours_after and self.at != "start"):
            raise ValueError("index: hours_after counts from the visit's start; give at: start and a positive number")
        if self.discharge and self.at != "end":
            raise ValueError("index: the place of discharge is known at the visit's end; give at: end")
        if self.also and (self.concepts is None or self.occurrence != "first"):
            raise ValueError("index: also needs concepts and occurrence: first")
        if self.days_after_first_event is not None and self.days_after_first_event < 0:
            raise ValueError("index: days_after_first_event must not be negative")


@dataclass(frozen=True, kw_only=True)
class Criterion:
    """Something the history holds before the prediction time.

    Exactly one of:
        concepts: name of a concept set, at least `count` events of it, within the last `within_days` (any time if null).
        visit: a visit of one of these classes that started, likewise.
        age_at_least, age_at_most: completed years at the prediction time (either or both).
    """

    concepts: str | None = None
    visit: tuple[str, ...] = ()
    age_at_least: int | None = None
    age_at_most: int | None = None
    within_days: int | None = None
    count: int = 1

    def __post_init__(self) -> None:
        if sum((self.concepts is not None, bool(self.visit), self.by_age)) != 1:
            raise ValueError("a criterion needs exactly one of: concepts, visit, age_at_least/age_at_most")
        _check_classes(self.visit)
        if self.count < 1 or (self.within_days is not None and self.within_days < 1):
            raise ValueError("a criterion's count and within_days must be at least 1")

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
        what = self.concepts if self.concepts is not None else f"a visit ({', '.join(self.visit)})"
        when = f" in the last {self.within_days} days" if self.within_days is not None else " before"
        return f"{what}{when}" + (f", {self.count} times" if self.count > 1 else "")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What is predicted; exactly one of its parts.

    concepts: an event of this concept set.  visit: the start of a visit of one of these classes.  death: true.
    stay_over_days: the index visit lasts longer than this, counted from its start.
    """

    concepts: str | None = None
    visit: tuple[str, ...] = ()
    death: bool = False
    stay_over_days: float | None = None

    def __post_init__(self) -> None:
        if sum((self.concepts is not None, bool(self.visit), self.death, self.stay_over_days is not None)) != 1:
            raise ValueError("outcome needs exactly one of: concepts, visit, death: true, stay_over_days")
        _check_classes(self.visit)

    def describe(self) -> str:
        """In words."""
        if self.concepts is not None:
            return self.concepts
        if self.visit:
            return f"a visit ({', '.join(self.visit)})"
        return "death" if self.death else f"a stay of more than {self.stay_over_days:g} days"


def _check_classes(classes: tuple[str, ...]) -> None:
    for name in classes:
        if name not in (*visits.CLASSES, INTENSIVE_CARE):
            raise ValueError(f"unknown class of visit '{name}'; valid classes: {', '.join((*visits.CLASSES, INTENSIVE_CARE))}")


@dataclass(frozen=True, kw_only=True)
class Task:
    """A whole task; see the module's docstring and `docs/tasks.md`.

    Attributes:
        history_days: least history before the prediction time, from the earlier of the observation's start and the first event.
        gap_days: hold-off; the window opens this long after the prediction time.
        horizon_days: length of the window after it has opened; `stay` = until the index visit's end.
        first_onset: who had the outcome before the prediction time is not asked about.
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
    first_onset: bool = False
    censoring: Literal["observation_period", "closed_world", "grace_days"] = "observation_period"
    grace_days: int = 0

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise ValueError(f"name '{self.name}' may hold only letters, digits, '_', '-' and '.'")
        for used in self.used_sets:
            if used not in self.concept_sets:
                raise ValueError(f"concept set '{used}' is used but not defined; defined: {', '.join(sorted(self.concept_sets)) or 'none'}")
        unused = set(self.concept_sets) - set(self.used_sets)
        if unused:
            raise ValueError(f"concept set '{sorted(unused)[0]}' is defined but not used; remove it or use it")
        self._check_window()
        if (self.censoring == "grace_days") != (self.grace_days > 0):
            raise ValueError("grace_days (a positive number) and censoring: grace_days belong together")
        if self.history_days < 0 or self.gap_days < 0:
            raise ValueError("history_days and gap_days must not be negative")
        if self.first_onset and self.gap_days:
            raise ValueError("first_onset needs gap_days: 0 (an onset in the gap would be neither before nor in the window)")
        if self.first_onset and self.outcome.concepts is None:
            raise ValueError("first_onset needs an outcome of concepts")

    def _check_window(self) -> None:
        if self.outcome.stay_over_days is not None:
            if self.horizon_days is not None or self.gap_days:
                raise ValueError("stay_over_days is its own window; leave out horizon_days and gap_days")
        elif self.horizon_days is None:
            raise ValueError("horizon_days is required (days, or 'stay')")
        elif not isinstance(self.horizon_days, str) and self.horizon_days <= 0:
            raise ValueError("horizon_days must be positive")
        if self.in_stay and not (self.index.visit and self.index.at == "start"):
            raise ValueError("a task about the stay itself needs an index visit with at: start")
        if self.in_stay and self.gap_days:
            raise ValueError("a task about the stay itself has no gap_days")

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

    @property
    def used_sets(self) -> tuple[str, ...]:
        """Names of the concept sets in use, in order of use."""
        criteria = (*self.inclusion, *self.exclusion)
        names = (self.index.concepts, *self.index.also, self.index.contains, *(one.concepts for one in criteria), self.outcome.concepts)
        return tuple(dict.fromkeys(name for name in names if name is not None))

    @property
    def required_sets(self) -> tuple[str, ...]:
        """Concept sets without which nobody is eligible or nothing can be found; what is excluded may be absent."""
        names = (self.index.concepts, *self.index.also, self.index.contains, *(one.concepts for one in self.inclusion), self.outcome.concepts)
        return tuple(dict.fromkeys(name for name in names if name is not None))


def _line_of(text: str, message: str) -> str:
    """` line N:` of the last key that the message names and the text holds; empty where there is none."""
    named = re.findall(r"'([\w./*-]+)'", message.split(";")[0]) + re.findall(r"[\w-]+", message.split(": expected")[0])[::-1]
    known = {entry.name for cls in (Task, Index, Outcome, Criterion, ConceptSet) for entry in fields(cls)}
    for name in named:
        if name in known or f"'{name}'" in message:
            for number, line in enumerate(text.splitlines(), start=1):
                if re.search(rf"(^|[\s{{,\[]){re.escape(name)}($|[\s:,\]}}])", line.split("#")[0]):
                    return f" line {number}:"
    return ""


def parse_task(text: str, *, where: str) -> Task:
    """A task from YAML text; `where` names it in messages.

    Raises:
        TaskError: unknown key, wrong type, a set that is not defined, ...; the message has the line where it can be found.
    """
    try:
        return from_dict(Task, parse_yaml(text, where=where), where=where)
    except ConfigError as error:
        message = str(error).removeprefix(f"{where}: ").removeprefix(f"{where}:")
        line = "" if message.lstrip().startswith("line ") else _line_of(text, message)
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

        return load_aces(path) if is_aces(text) else parse_task(text, where=str(path))
    return parse_task(task_text(str(name_or_path)), where=f"task {name_or_path}")
