"""Prediction tasks: declared in YAML, labelled on real events and on simulated futures by the same function.

task = load_task("hf_readmission_30d")
labelled = label(EventDataset("events/"), task)
labelled.labels, labelled.attrition, labelled.counts
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cehrxgpt.tasks.codes import DataFacts, resolve, resolve_all, value_edges
    from cehrxgpt.tasks.definition import Criterion, Index, Outcome, Task
    from cehrxgpt.tasks.files import library, library_tasks, load_task, parse_task, task_text
    from cehrxgpt.tasks.labeler import Labelled, label
    from cehrxgpt.tasks.outcome import attach_stay, had_before, outcome_in_window
    from cehrxgpt.tasks.tokens import can_be_said, outcome_by_stay, outcome_tokens

_PUBLIC = {
    "Criterion": "definition",
    "DataFacts": "codes",
    "Index": "definition",
    "Labelled": "labeler",
    "Outcome": "definition",
    "Task": "definition",
    "attach_stay": "outcome",
    "can_be_said": "tokens",
    "had_before": "outcome",
    "label": "labeler",
    "library": "files",
    "library_tasks": "files",
    "load_task": "files",
    "outcome_in_window": "outcome",
    "outcome_by_stay": "tokens",
    "outcome_tokens": "tokens",
    "parse_task": "files",
    "resolve": "codes",
    "resolve_all": "codes",
    "task_text": "files",
    "value_edges": "codes",
}

__all__ = [  # loaded on first use: the definitions alone need no data stack
    "Criterion",
    "DataFacts",
    "Index",
    "Labelled",
    "Outcome",
    "Task",
    "attach_stay",
    "can_be_said",
    "had_before",
    "label",
    "library",
    "library_tasks",
    "load_task",
    "outcome_by_stay",
    "outcome_in_window",
    "outcome_tokens",
    "parse_task",
    "resolve",
    "resolve_all",
    "task_text",
    "value_edges",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"cehrxgpt.tasks.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'cehrxgpt.tasks' has no attribute '{name}'")
