"""Verbs that judge and show: `evaluate predictions`, `evaluate synthetic`, `report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cehrxgpt import console as ui
from cehrxgpt.cli.options import Force, Json, Labels, Quiet, Seed, prepare
from cehrxgpt.cli.root import Verbs, app

evaluate = typer.Typer(
    cls=Verbs, help="Judge predictions against labels, or synthetic patients against real ones.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(evaluate, name="evaluate")


@evaluate.command("predictions")
def evaluate_predictions(
    risk: Annotated[Path, typer.Argument(metavar="RISK.parquet", help="Predictions made by forecast or probe.")],
    labels: Labels,
    events: Annotated[Optional[Path], typer.Option("--events", help="The event data set: subgroups (age, sex, onset ...), age+sex.")] = None,  # noqa: UP045
    task: Annotated[
        list[str] | None, typer.Option("--task", help="Task (name or file) of predictions whose labels name another, or none; or of your own.")
    ] = None,
    recalibrate: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--recalibrate", metavar="TUNING.parquet[:platt|isotonic]", help="Map the risks by these tuning predictions, and judge both."),
    ] = None,
    out: Annotated[Optional[Path], typer.Option("--out", help="Keep tables and charts in this folder.")] = None,  # noqa: UP045
    seed: Seed = 0,
    force: Force = False,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Discrimination, calibration, time to event and net benefit, weighted for censoring, with intervals by patient.

    Example: cehrxgpt evaluate predictions risk.parquet --labels t2dm_hf_1y.parquet --events events --out judged
    """
    from cehrxgpt import stages

    console = prepare(None, quiet=quiet, json_only=json_only)
    figures = stages.evaluate_predictions(risk, labels, out, events=events, tasks=task or (), recalibrate=recalibrate, seed=seed, force=force)
    for title, columns, rows in (*figures.pop("subgroups"), *figures.pop("tables")):  # what concerns everybody is left on the screen
        console.table(title, columns, rows)
    console.notes(figures["notes"])
    console.result(figures)


@evaluate.command("synthetic")
def evaluate_synthetic(
    synthetic: Annotated[Path, typer.Argument(metavar="EVENTS", help="Synthetic patients, as ingest or synthesize --format meds wrote them.")],
    real: Annotated[Path, typer.Option("--real", help="The real event data set.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="Keep the metric rows here (Parquet).")] = None,  # noqa: UP045
    force: Force = False,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """How often each concept occurs, synthetic against real.

    Example: cehrxgpt evaluate synthetic synthetic_events --real events
    """
    from cehrxgpt import stages

    console = prepare(None, quiet=quiet, json_only=json_only)
    figures = stages.evaluate_synthetic(synthetic, real, out, force=force)
    console.table("Fidelity", ["figure", "value"], figures.pop("rows"))
    console.result(figures)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder of a run.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="The page (default: DIR/report.html).")] = None,  # noqa: UP045
    patient: Annotated[str, typer.Option("--patient", help="Whose record to show: auto (nobody real), none, or a subject id.")] = "auto",
    force: Force = False,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """One self-contained HTML page of a run.

    Example: cehrxgpt report runs/demo --force
    """
    from cehrxgpt import stages

    ui.Console(quiet=quiet, json_only=json_only).result(stages.report(folder, out, patient=patient, force=force))
