"""Verbs from raw tables to tokens: `simulate`, `ingest`, `tokenize`; `inspect` looks at any artefact."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from cehrxgpt import console as ui
from cehrxgpt.cli.options import Events, Force, Json, Out, Quiet, Seed, Threads, prepare
from cehrxgpt.cli.root import app


@app.command()
def simulate(
    out: Out,
    patients: Annotated[int, typer.Option("--patients", min=1, help="How many people.")] = 10_000,
    population: Annotated[str, typer.Option("--population", help="core (a few diseases, fast) or full (adults of all ages, 100 entries).")] = "core",
    hospital: Annotated[str, typer.Option("--hospital", help="a or b (of full): other people, units, codes and habits.")] = "a",
    truth_samples: Annotated[int, typer.Option("--truth-samples", min=0, help="Futures per true risk; 0 = no true risks.")] = 2000,
    truth_rows: Annotated[int, typer.Option("--truth-rows", min=1, help="True risks per task, at most.")] = 300,
    seed: Seed = 1,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """A population with known hazards as OMOP CDM 5.4 tables, and the true risk of library tasks under truth/.

    Nearly all the time goes into the true risks: 10,000 people of full are written in less than a minute, the risks of their 13 tasks (300 rows of
    2,000 futures each) take minutes. Fewer rows or futures take less. --truth-samples 0 leaves the risks out; they can be asked for later
    (cehrxgpt.simulate.true_risk).

    Example: cehrxgpt simulate --population full --hospital b --patients 10000 --seed 1 --out cdm
    """
    from cehrxgpt import stages

    console = prepare(threads, quiet=quiet, json_only=json_only)
    settings = {"population": population, "hospital": hospital, "patients": patients, "seed": seed}
    settings |= {"truth_samples": truth_samples, "truth_rows": truth_rows}
    with console.progress("simulate") as progress:
        console.result(stages.simulate(out, settings, force=force, progress=progress))


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder of OMOP tables, a DuckDB file, a database URL, or a MEDS folder.")],
    out: Out,
    format: Annotated[str, typer.Option("--format", help="auto, omop or meds.")] = "auto",
    dialect: Annotated[Optional[str], typer.Option("--dialect", help="MEDS dialect: plain, mimic, or a YAML file.")] = None,  # noqa: UP045
    schema: Annotated[str, typer.Option("--schema", help="Of a database: where the OMOP tables are; several with commas.")] = "",
    time_zone: Annotated[str, typer.Option("--time-zone", help="Of the hospital (America/New_York): for times written with a zone.")] = "",
    seed: Seed = 0,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Raw tables to an event data set; ingest.json counts every row read, kept, dropped and mended.

    Example: cehrxgpt ingest cdm --out events
    """
    from cehrxgpt import stages

    console = prepare(threads, quiet=quiet, json_only=json_only)
    settings: dict[str, Any] = {"format": format, "schema": schema, "time_zone": time_zone, "seed": seed}
    if dialect is not None:
        settings["dialect"] = dialect
    if threads is not None:
        settings["threads"] = threads
    with console.progress("ingest") as progress:
        console.result(stages.ingest(source, out, settings, force=force, progress=progress))


@app.command()
def tokenize(
    events: Events,
    out: Out,
    vocabulary: Annotated[Optional[Path], typer.Option("--vocabulary", help="Use this vocabulary (a timeline or model folder).")] = None,  # noqa: UP045
    min_subjects: Annotated[int, typer.Option("--min-subjects", min=1, help="Codes and bins of fewer patients are left out.")] = 11,
    value_bins: Annotated[int, typer.Option("--value-bins", min=1, help="Quantile bins per code and unit.")] = 10,
    values: Annotated[str, typer.Option("--values", help="A lab and its value as one token (fused) or as two (split).")] = "fused",
    drug_lengths: Annotated[bool, typer.Option("--drug-lengths", help="Write how long each drug is taken, in bins of days.")] = False,
    back_off: Annotated[bool, typer.Option("--back-off", help="Write codes that are too rare as their nearest ancestor.")] = False,
    task: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option("--task", help="A task file of your own: its bounds become edges of bins, its outcome the time-to-event head's."),
    ] = None,
    roll_up: Annotated[Optional[Path], typer.Option("--roll-up", help="A file of codes, one a line: their descendants are written as them.")] = None,  # noqa: UP045
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Events to a token store; the vocabulary is fitted on the train split alone unless one is given.

    Example: cehrxgpt tokenize events --out timeline
    """
    from cehrxgpt import stages

    console = prepare(threads, quiet=quiet, json_only=json_only)
    settings: dict[str, Any] = {
        "min_subjects": min_subjects,
        "value_bins": value_bins,
        "values": values,
        "drug_lengths": drug_lengths,
        "back_off": back_off,
    }
    if roll_up is not None:
        settings["roll_up"] = stages.read_codes(roll_up)
    with console.progress("tokenize") as progress:
        console.result(stages.tokenize(events, out, settings, vocabulary=vocabulary, tasks=task or (), force=force, progress=progress))


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Any artefact: events, timeline, model, labels, risks, tables.")],
    subject: Annotated[Optional[int], typer.Option("--subject", help="Show this subject's record, visit by visit.")] = None,  # noqa: UP045
    visit: Annotated[Optional[int], typer.Option("--visit", min=1, help="All of this visit of the subject, counted from 1.")] = None,  # noqa: UP045
    full: Annotated[bool, typer.Option("--full", help="Every event of the subject.")] = False,
    html: Annotated[Optional[Path], typer.Option("--html", help="Write the subject's record as a page (not for sharing).")] = None,  # noqa: UP045
    force: Force = False,
    json_only: Json = False,
) -> None:
    """What an artefact is, made from what; or one subject's record, readably.

    Example: cehrxgpt inspect events --subject 17
    """
    from cehrxgpt import stages

    lines, figures = stages.inspect(path, subject=subject, full=full, visit=visit, html=html, force=force)
    console = ui.Console(json_only=json_only)
    console.pages(lines)
    console.result(figures if json_only or subject is not None else {"path": figures["path"], "kind": figures["kind"]})
