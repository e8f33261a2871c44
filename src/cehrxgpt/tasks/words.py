"""Words that tasks are written in."""

from __future__ import annotations

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
"""Longest window."""
