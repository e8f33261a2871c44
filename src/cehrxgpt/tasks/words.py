"""Words that tasks are written in."""

from __future__ import annotations

from dataclasses import dataclass

from cehrxgpt import visits

TABLES = ("condition", "drug", "procedure", "measurement", "observation", "device")
"""Tables whose concepts a concept set may list; a concept becomes the code `<table>/<concept_id>`."""

BOUNDS = ("above", "at_least", "below", "at_most")
"""What may be asked of a number."""

INTENSIVE_CARE = "intensive_care"
"""Stays in intensive care, which lie inside visits, as a class of their own beside the classes of visits."""

CLASSES = (*visits.CLASSES, INTENSIVE_CARE)
"""What may be asked for as a visit."""

MOST_DAYS = 100_000.0
"""Longest window, and what else is counted in days: more than a lifetime."""


@dataclass(frozen=True)
class Range:
    """The numbers that may stand under a key: from `least` to `most`."""

    least: float
    most: float

    def __contains__(self, number: float) -> bool:
        return self.least <= number <= self.most

    def __str__(self) -> str:
        return f"at least {self.least:,.15g} and at most {self.most:,.15g}"


RANGES = {
    **dict.fromkeys(("horizon_days", "stay_over_days"), Range(0.001, MOST_DAYS)),  # futures count minutes, and this is one and a half
    **dict.fromkeys(("history_days", "gap_days", "grace_days", "days_after_first_event"), Range(0, MOST_DAYS)),
    "hours_after": Range(0, 24 * MOST_DAYS),
    "within_days": Range(1, MOST_DAYS),
    "count": Range(1, 1e9),
    **dict.fromkeys(("age_at_least", "age_at_most"), Range(0, 1000)),
    **dict.fromkeys(BOUNDS, Range(-1e38, 1e38)),  # of results, which are kept as float32
}
"""Every key of a task whose value is a number, and the numbers it may have."""
