"""The label stage and the task library."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cehrxgpt.atomic import atomic_path, refuse_existing
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.console import Progress
from cehrxgpt.stages.tables import Settings, refuse_other_format, silent


def list_tasks() -> list[dict[str, str]]:
    """Name and description of every library task."""
    from cehrxgpt.tasks import library

    return [{"name": name, "description": task.description} for name, task in library().items()]


def show_task(name: str, out: Path | None = None, *, force: bool = False) -> str:
    """A library task's file; written to `out` as well, to start a task of one's own from."""
    from cehrxgpt.tasks import task_text

    text = task_text(name)
    if out is not None:
        with atomic_path(out, force=force) as partial:
            partial.write_text(text, encoding="utf-8")
    return text


def label(events: Path, task: str | None, out: Path, settings: Settings | None = None, *, force: bool = False) -> dict[str, Any]:
    """Labels of one task, with `<out>.attrition.json` beside them; `settings` say where index and outcome come from, if not from the task."""
    from cehrxgpt.atomic import write_json
    from cehrxgpt.events import EventDataset
    from cehrxgpt.tasks import load_task
    from cehrxgpt.tasks.elsewhere import Elsewhere, label_elsewhere

    elsewhere = from_dict(Elsewhere, dict(settings or {}), where="label")
    asked = None if task is None else load_task(task)  # its mistakes come before those of the output
    refuse_other_format(out)
    attrition = out.with_suffix(".attrition.json")
    tables = [path for path in (elsewhere.cohort, elsewhere.outcome, elsewhere.labels) if path is not None]
    refuse_existing(out, force=force, inputs=[events, *tables])  # the attrition belongs to it, and is no output of its own
    labelled = label_elsewhere(EventDataset(events), asked, elsewhere)
    labelled.write(out, force=force)
    write_json(attrition, labelled.attrition)
    told = "; ".join(step["note"] for step in labelled.attrition if step["note"]) or None
    return {"task": labelled.task.name, **labelled.counts, "note": labelled.note or told, "attrition": labelled.attrition}


def label_all(events: Path, tasks: Sequence[str], out: Path, *, progress: Progress = silent) -> dict[str, Any]:
    """Labels of several tasks in one folder."""
    figures = {}
    with atomic_path(out, folder=True, force=True) as partial:
        for number, task in enumerate(tasks):
            progress(number, len(tasks), task)
            labelled = label(events, task, partial / f"{task_settings(task)['name']}.parquet")
            figures[labelled["task"]] = {key: value for key, value in labelled.items() if key not in ("task", "attrition")}
    return figures


def task_settings(task: str) -> Any:
    """What a task is, in plain JSON: part of what decides a stage's result."""
    from cehrxgpt.tasks import load_task

    return to_dict(load_task(task))
