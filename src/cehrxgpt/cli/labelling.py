"""Verbs of tasks: `tasks`, `label`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cehrxgpt import console as ui
from cehrxgpt.cli.options import Events, Force, Json, Out, Quiet, Threads, prepare
from cehrxgpt.cli.root import app
from cehrxgpt.errors import InputError


@app.command()
def tasks(
    action: Annotated[Optional[str], typer.Argument(metavar="[show]", help="'show' prints one task's file.")] = None,  # noqa: UP045
    name: Annotated[Optional[str], typer.Argument(metavar="[NAME]")] = None,  # noqa: UP045
    out: Annotated[Optional[Path], typer.Option("--out", help="Write the task shown here, to start a task of your own from.")] = None,  # noqa: UP045
    force: Force = False,
    json_only: Json = False,
) -> None:
    """The task library; `tasks show NAME` prints one.

    Example: cehrxgpt tasks show t2dm_hf_1y --out mine.yaml
    """
    from cehrxgpt import stages

    console = ui.Console(json_only=json_only)
    if action is None:
        rows = stages.list_tasks()
        console.table("Task library", ["task", "what it asks"], [[row["name"], row["description"]] for row in rows])
        console.result({"tasks": [row["name"] for row in rows]})
        return
    if action != "show" or name is None:
        raise InputError("tasks: expected nothing, or 'show NAME'; list the names with: cehrxgpt tasks")
    text = stages.show_task(name, out, force=force)
    if out is None:
        console.say(text)
    console.result({"task": name})


@app.command()
def label(
    events: Events,
    out: Out,
    task: Annotated[Optional[list[str]], typer.Option("--task", help="A library task's name or a YAML file, ours or of ACES.")] = None,  # noqa: UP045
    cohort: Annotated[Optional[Path], typer.Option("--cohort", help="An OMOP cohort table: ask when somebody enters.")] = None,  # noqa: UP045
    cohort_id: Annotated[Optional[int], typer.Option("--cohort-id", help="Which cohort definition of --cohort.")] = None,  # noqa: UP045
    labels: Annotated[Optional[Path], typer.Option("--labels", help="A label file: ask at its prediction times.")] = None,  # noqa: UP045
    outcome: Annotated[Optional[Path], typer.Option("--outcome", help="An OMOP cohort table: entering it is the outcome.")] = None,  # noqa: UP045
    outcome_id: Annotated[Optional[int], typer.Option("--outcome-id", help="Which cohort definition of --outcome.")] = None,  # noqa: UP045
    horizon_days: Annotated[Optional[float], typer.Option("--horizon-days", help="Length of the window, without --task.")] = None,  # noqa: UP045
    gap_days: Annotated[Optional[float], typer.Option("--gap-days", help="The window opens so long after, without --task.")] = None,  # noqa: UP045
    history_days: Annotated[Optional[int], typer.Option("--history-days", help="Least history, without --task.")] = None,  # noqa: UP045
    first_onset: Annotated[bool, typer.Option("--first-onset", help="Leave out who had the outcome before, without --task.")] = False,
    censoring: Annotated[Optional[str], typer.Option("--censoring", help="observation_period, closed_world or grace_days.")] = None,  # noqa: UP045
    grace_days: Annotated[Optional[int], typer.Option("--grace-days", help="With --censoring grace_days: days that may be missing.")] = None,  # noqa: UP045
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Index times and outcomes of a task, with the count of subjects lost at each step.

    Example: cehrxgpt label events --task t2dm_hf_1y --out t2dm_hf_1y.parquet
    """
    from cehrxgpt import stages

    console = prepare(threads, quiet=quiet, json_only=json_only)
    if task is not None and len(task) > 1:
        raise InputError(f"--task is given {len(task)} times ({', '.join(task)}); a label file is of one task: call once for each")
    settings = {
        "cohort": cohort,
        "cohort_id": cohort_id,
        "labels": labels,
        "outcome": outcome,
        "outcome_id": outcome_id,
        "horizon_days": horizon_days,
        "gap_days": gap_days,
        "history_days": history_days,
        "first_onset": first_onset,
        "censoring": censoring,
        "grace_days": grace_days,
    }
    figures = stages.label(events, task[0] if task else None, out, settings, force=force)
    steps = figures.pop("attrition")
    rows = [[row["step"], f"{row['subjects']:,}", "" if row["rows"] is None else f"{row['rows']:,}", row["note"]] for row in steps]
    console.table(f"Attrition of {figures['task']}", ["step", "subjects", "rows", "note"], rows)
    console.result(figures)
