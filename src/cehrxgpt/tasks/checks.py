"""What a task may not say. A refusal names the key at fault, so that it is told with its line of the file.

Each function raises `config.Refused`, or `ValueError` where no single key is at fault; the definitions call them as they are made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cehrxgpt.config import Refused
from cehrxgpt.patterns import read_pattern
from cehrxgpt.tasks.words import BOUNDS, CLASSES, INTENSIVE_CARE, RANGES, TABLES

if TYPE_CHECKING:
    from cehrxgpt.tasks.definition import ConceptSet, Criterion, Index, Outcome, Task, Valued


def check_concept_set(concepts: ConceptSet) -> None:
    """A set lists something, and its patterns match by their beginning."""
    if not concepts.patterns:
        raise ValueError(f"a concept set needs at least one concept ({', '.join(TABLES)}) or one of codes")
    for place, pattern in enumerate(concepts.codes):
        try:
            read_pattern(pattern)
        except ValueError as error:
            raise Refused(str(error), "codes", place) from error


def check_numbers(part: object) -> None:
    """Every number that it has lies where it can mean something."""
    for name, allowed in RANGES.items():
        number = getattr(part, name, None)
        if isinstance(number, (int, float)) and number not in allowed:
            raise Refused(f"{name} must be {allowed}", name)


def check_values(asked: Valued) -> None:
    """The bounds can be asked."""
    check_numbers(asked)
    given = [name for name in BOUNDS if getattr(asked, name) is not None]
    for low, high in (("above", "at_least"), ("below", "at_most")):
        if low in given and high in given:
            raise Refused(f"{low} and {high} bound the same side; give one of them", high)
    if given and asked.concepts is None:
        raise Refused(f"{given[0]} bounds the values of concepts; name a concept set", given[0])
    if asked.unit is not None and not given:
        raise Refused(f"unit belongs to a bound; give one of {', '.join(BOUNDS)}", "unit")
    lower = asked.above if asked.at_least is None else asked.at_least
    upper = asked.below if asked.at_most is None else asked.at_most
    if lower is not None and upper is not None and (lower > upper or (lower == upper and not {"at_least", "at_most"} <= set(given))):
        raise Refused(f"no number lies {' and '.join(f'{name} {getattr(asked, name):g}' for name in given)}", given[-1])


def check_index(index: Index) -> None:
    """One kind of index event, and only keys that belong to it."""
    if sum((index.concepts is not None, bool(index.visit), index.days_after_first_event is not None)) != 1:
        raise ValueError("index needs exactly one of: concepts, visit, days_after_first_event")
    check_values(index)
    _check_classes(index.visit)
    if INTENSIVE_CARE in index.visit and len(index.visit) > 1:
        raise Refused(f"index: {INTENSIVE_CARE} lies inside other visits; ask about it alone", "visit")
    of_visit = [name for name in ("contains", "discharge", "hours_after") if getattr(index, name)]
    if not index.visit and of_visit:
        raise Refused(f"index: {of_visit[0]} belongs to an index visit; give visit: [inpatient]", of_visit[0])
    if index.hours_after and index.at != "start":
        raise Refused("index: hours_after counts from the visit's start; give at: start", "hours_after")
    if index.discharge and index.at != "end":
        raise Refused("index: the place of discharge is known at the visit's end; give at: end", "discharge")
    if index.also and (index.concepts is None or index.occurrence != "first"):
        raise Refused("index: also needs concepts and occurrence: first", "also")


def check_criterion(criterion: Criterion) -> None:
    """One kind of criterion."""
    if sum((criterion.concepts is not None, bool(criterion.visit), criterion.by_age)) != 1:
        raise ValueError("a criterion needs exactly one of: concepts, visit, age_at_least/age_at_most")
    check_values(criterion)
    _check_classes(criterion.visit)
    low, high = criterion.age_at_least, criterion.age_at_most
    if low is not None and high is not None and low > high:
        raise Refused(f"nobody's age is at least {low} and at most {high}", "age_at_most")


def check_outcome(outcome: Outcome) -> None:
    """One kind of outcome; parts that can be parts."""
    given = (
        outcome.concepts is not None,
        bool(outcome.visit),
        outcome.death,
        bool(outcome.any),
        bool(outcome.all),
        outcome.stay_over_days is not None,
    )
    if sum(given) != 1:
        raise ValueError("outcome needs exactly one of: concepts, visit, death: true, any, all, stay_over_days")
    check_values(outcome)
    _check_classes(outcome.visit)
    for name in ("any", "all"):
        for place, part in enumerate(getattr(outcome, name)):
            if part.stay_over_days is not None:
                raise Refused("stay_over_days is a window of its own and no part of another outcome", name, place, "stay_over_days")
            if len(getattr(outcome, name)) == 1:
                raise Refused(f"{name} needs at least two parts", name)


def check_task(task: Task) -> None:
    """What the parts of a task say about each other."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", task.name):
        raise Refused(f"name '{task.name}' may hold only letters, digits, '_', '-' and '.'", "name")
    check_numbers(task)
    for way, used in task.uses():
        if used not in task.concept_sets:
            defined = ", ".join(sorted(task.concept_sets)) or "none"
            raise Refused(f"concept set '{used}' is used but not defined; defined: {defined}", *way)
    unused = set(task.concept_sets) - set(task.used_sets)
    if unused:
        raise Refused(f"concept set '{sorted(unused)[0]}' is defined but not used; remove it or use it", "concept_sets", sorted(unused)[0])
    _check_window(task)
    _check_onset(task)
    if (task.censoring == "grace_days") != (task.grace_days > 0):
        belong = "censoring" if task.censoring == "grace_days" else "grace_days"
        raise Refused("grace_days (a positive number) and censoring: grace_days belong together", belong)
    for place, one in enumerate(task.competing):
        if one.stay_over_days is not None or any(leaf.death for _, leaf in one.leaves()):
            raise Refused("competing: give concepts or visits; death competes always, a stay's length never", "competing", place)


def _check_onset(task: Task) -> None:
    for name in ("first_onset", "recurrence"):
        if getattr(task, name) and (task.outcome.death or task.outcome.stay_over_days is not None):
            raise Refused(f"{name} needs an outcome of concepts or visits", name)
    if task.first_onset and task.recurrence:
        raise Refused("first_onset and recurrence exclude each other", "recurrence")
    if task.first_onset and task.gap_days:
        raise Refused("first_onset needs gap_days: 0 (an onset in the gap would be neither before nor in the window)", "first_onset")


def _check_window(task: Task) -> None:
    if task.outcome.stay_over_days is not None:
        for name in ("horizon_days", "gap_days"):
            if getattr(task, name):
                raise Refused("stay_over_days is its own window; leave out horizon_days and gap_days", name)
        if task.outcome.stay_over_days * 24 <= task.index.hours_after:
            raise Refused("stay_over_days must be longer than hours_after: by then it is known", "outcome", "stay_over_days")
    elif task.horizon_days is None:
        raise ValueError("horizon_days is required (days, or 'stay')")
    if task.in_stay and not (task.index.visit and task.index.at == "start"):
        raise Refused("a task about the stay itself needs an index visit with at: start", "index")
    if task.in_stay and task.gap_days:
        raise Refused("a task about the stay itself has no gap_days", "gap_days")


def _check_classes(classes: tuple[str, ...]) -> None:
    for place, name in enumerate(classes):
        if name not in CLASSES:
            raise Refused(f"unknown class of visit '{name}'; valid classes: {', '.join(CLASSES)}", "visit", place)
