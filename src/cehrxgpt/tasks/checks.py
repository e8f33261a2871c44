"""What a task may not say. A refusal names the key at fault, so that it is told with its line of the file.

Each function raises `config.Refused`, or `ValueError` where no single key is at fault; the definitions call them as they are made.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cehrxgpt.config import Refused
from cehrxgpt.tasks.words import BOUNDS, CLASSES, INTENSIVE_CARE, MOST_DAYS, TABLES

if TYPE_CHECKING:
    from cehrxgpt.tasks.definition import ConceptSet, Criterion, Index, Outcome, Task, Valued


def check_concept_set(concepts: ConceptSet) -> None:
    """A set lists something, and its patterns match by their beginning."""
    if not concepts.patterns:
        raise ValueError(f"a concept set needs at least one concept ({', '.join(TABLES)}) or one of codes")
    for place, pattern in enumerate(concepts.codes):
        if "*" in pattern[:-1] or pattern in ("", "*"):
            raise Refused(f"code pattern '{pattern}': '*' may stand only at the end, after something", "codes", place)


def check_values(asked: Valued, what: str) -> None:
    """The bounds can be asked; `what` asks for them."""
    given = [name for name in BOUNDS if getattr(asked, name) is not None]
    for low, high in (("above", "at_least"), ("below", "at_most")):
        if low in given and high in given:
            raise Refused(f"{what}: {low} and {high} bound the same side; give one of them", high)
    if given and asked.concepts is None:
        raise Refused(f"{what}: {given[0]} bounds the values of concepts; name a concept set", given[0])
    if asked.unit is not None and not given:
        raise Refused(f"{what}: unit belongs to a bound; give one of {', '.join(BOUNDS)}", "unit")
    if any(value != value for value in (asked.above, asked.at_least, asked.below, asked.at_most)):
        raise ValueError(f"{what}: a bound must be a number")
    lower = asked.above if asked.at_least is None else asked.at_least
    upper = asked.below if asked.at_most is None else asked.at_most
    if lower is not None and upper is not None and (lower > upper or (lower == upper and not {"at_least", "at_most"} <= set(given))):
        raise Refused(f"{what}: no number lies {' and '.join(f'{name} {getattr(asked, name):g}' for name in given)}", given[-1])


def check_index(index: Index) -> None:
    """One kind of index event, and only keys that belong to it."""
    if sum((index.concepts is not None, bool(index.visit), index.days_after_first_event is not None)) != 1:
        raise ValueError("index needs exactly one of: concepts, visit, days_after_first_event")
    check_values(index, "index")
    _check_classes(index.visit)
    if INTENSIVE_CARE in index.visit and len(index.visit) > 1:
        raise Refused(f"index: {INTENSIVE_CARE} lies inside other visits; ask about it alone", "visit")
    of_visit = [name for name in ("contains", "discharge", "hours_after") if getattr(index, name)]
    if not index.visit and of_visit:
        raise Refused(f"index: {of_visit[0]} belongs to an index visit; give visit: [inpatient]", of_visit[0])
    if index.hours_after < 0 or (index.hours_after and index.at != "start"):
        raise Refused("index: hours_after counts from the visit's start; give at: start and a positive number", "hours_after")
    if index.discharge and index.at != "end":
        raise Refused("index: the place of discharge is known at the visit's end; give at: end", "discharge")
    if index.also and (index.concepts is None or index.occurrence != "first"):
        raise Refused("index: also needs concepts and occurrence: first", "also")
    if index.days_after_first_event is not None and index.days_after_first_event < 0:
        raise Refused("index: days_after_first_event must not be negative", "days_after_first_event")


def check_criterion(criterion: Criterion) -> None:
    """One kind of criterion, counted from 1."""
    if sum((criterion.concepts is not None, bool(criterion.visit), criterion.by_age)) != 1:
        raise ValueError("a criterion needs exactly one of: concepts, visit, age_at_least/age_at_most")
    check_values(criterion, "a criterion")
    _check_classes(criterion.visit)
    for name, number in (("count", criterion.count), ("within_days", criterion.within_days)):
        if number is not None and number < 1:
            raise Refused(f"a criterion's {name} must be at least 1", name)


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
    check_values(outcome, "outcome")
    _check_classes(outcome.visit)
    if outcome.stay_over_days is not None and not 0 < outcome.stay_over_days < MOST_DAYS:
        raise Refused("stay_over_days must be positive", "stay_over_days")
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
    for name in ("history_days", "gap_days"):
        if not 0 <= getattr(task, name) < MOST_DAYS:
            raise Refused(f"{name} must not be negative, nor more than a lifetime", name)
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
    elif not isinstance(task.horizon_days, str) and not 0 < task.horizon_days < MOST_DAYS:
        raise Refused("horizon_days must be positive, and no more than a lifetime", "horizon_days")
    if task.in_stay and not (task.index.visit and task.index.at == "start"):
        raise Refused("a task about the stay itself needs an index visit with at: start", "index")
    if task.in_stay and task.gap_days:
        raise Refused("a task about the stay itself has no gap_days", "gap_days")


def _check_classes(classes: tuple[str, ...]) -> None:
    for place, name in enumerate(classes):
        if name not in CLASSES:
            raise Refused(f"unknown class of visit '{name}'; valid classes: {', '.join(CLASSES)}", "visit", place)
