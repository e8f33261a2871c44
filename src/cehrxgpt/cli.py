"""The command line: thin verbs over the functions that do the work.

Names and files are a contract that scripts rely on. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from cehrxgpt import console as ui
from cehrxgpt import launch
from cehrxgpt.errors import InputError, Interrupted

# How long a thread spins before it sleeps, in turns: some tenths of a millisecond. For ever (the default) costs training nine tenths of its speed
# beside one other busy program, and not at all costs a quarter on a quiet machine (docs/training.md). Read when Torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


class Verbs(typer.core.TyperGroup):
    """Commands listed with their whole first paragraph; by default it would be cut in the middle of a word's sentence."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """A command by name."""
        command = super().get_command(ctx, cmd_name)
        if command is not None and command.help and not command.short_help:
            command.short_help = " ".join(command.help.split("\n\n")[0].split())
        return command

    def invoke(self, ctx: Any) -> Any:
        """Run the verb; Typer would turn an interruption into a bare exit status."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interruption:
            raise Interrupted(str(interruption) or "the same command goes on where it stopped") from None


app = typer.Typer(
    cls=Verbs,
    name="cehrxgpt",
    help="Foundation model of patients' health records: represent patients, forecast outcomes, write synthetic OMOP tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)

Out = Annotated[Path, typer.Option("--out", help="Where to write; never overwritten without --force.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at --out.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of everything random.")]
Threads = Annotated[Optional[int], typer.Option("--threads", min=1, help="Processor threads to use (default: all).")]  # noqa: UP045 - Typer reads it
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables; only the last line.")]
Json = Annotated[bool, typer.Option("--json", help="Only the last line, a JSON object, on standard output.")]
Events = Annotated[Path, typer.Argument(metavar="EVENTS", help="A folder made by ingest.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder made by pretrain.")]
Labels = Annotated[list[Path], typer.Option("--labels", help="Labels made by label, or a MEDS label file (repeat it for several tasks).")]


def _prepare(threads: int | None, *, quiet: bool, json_only: bool) -> ui.Console:
    """Settle the number of threads before any library reads it."""
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
    other = launch.rank() > 0  # of several processes the first alone speaks
    return ui.Console(quiet=quiet or other, json_only=json_only, mute=other)


@app.command()
def demo(
    out: Out = Path("runs/demo"),
    seed: Seed = 7,
    threads: Threads = None,
    quick: Annotated[bool, typer.Option("--quick", help="A two-minute run on fewer patients, to see that all works.")] = False,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """A whole run on a simulated population, from OMOP tables to report.html; rerun it and what is done is skipped.

    Example: cehrxgpt demo --out runs/demo
    """
    from cehrxgpt.pipeline import demo_recipe, run_recipe

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    console.result(run_recipe(demo_recipe(quick=quick, seed=seed, threads=threads), out, console=console))


@app.command()
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.yaml", help="The stages and their settings; see docs/recipes.md.")],
    out: Annotated[Optional[Path], typer.Option("--out", help="Folder of the run (default: runs/<name of the recipe>).")] = None,  # noqa: UP045
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """The stages a recipe names, in order; finished ones are skipped, an interrupted one goes on.

    Example: cehrxgpt run my-hospital.yaml --out runs/mine
    """
    from cehrxgpt.pipeline import read_recipe, run_recipe

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    console.result(run_recipe(read_recipe(recipe), out or Path("runs") / recipe.stem, console=console))


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

    console = _prepare(threads, quiet=quiet, json_only=json_only)
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

    console = _prepare(threads, quiet=quiet, json_only=json_only)
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

    console = _prepare(threads, quiet=quiet, json_only=json_only)
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
        console.result(stages.tokenize(events, out, settings, vocabulary=vocabulary, force=force, progress=progress))


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


@app.command()
def pretrain(
    timeline: Annotated[Path, typer.Argument(metavar="TIMELINE", help="A folder made by tokenize.")],
    out: Out,
    recipe: Annotated[str, typer.Option("--recipe", help="tiny, demo, base, large, or a YAML file.")] = "demo",
    steps: Annotated[Optional[int], typer.Option("--steps", min=1, help="Optimiser steps, instead of the recipe's epochs.")] = None,  # noqa: UP045
    minutes: Annotated[Optional[float], typer.Option("--minutes", help="Stop after this much time.")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of an interrupted run.")] = False,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Seed of everything random (default: the recipe's).")] = None,  # noqa: UP045
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Train a model on a token store.

    Example: cehrxgpt pretrain timeline --recipe demo --out model
    """
    from cehrxgpt import stages

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    overrides = {"steps": steps, "max_minutes": minutes, "seed": seed}
    with console.progress("pretrain") as progress:
        figures = stages.pretrain(timeline, out, recipe, overrides=overrides, resume=resume, force=force, progress=progress, say=console.say)
    console.result(figures)


@app.command()
def adapt(
    model: Model,
    events: Events,
    out: Out,
    recipe: Annotated[str, typer.Option("--recipe", help="How to train on: adapt, another recipe, or a YAML file.")] = "adapt",
    steps: Annotated[Optional[int], typer.Option("--steps", min=1, help="Optimiser steps, instead of the recipe's epochs.")] = None,  # noqa: UP045
    minutes: Annotated[Optional[float], typer.Option("--minutes", help="Stop training after this much time.")] = None,  # noqa: UP045
    old: Annotated[Optional[Path], typer.Option("--old", help="What the model was trained on (a timeline): measures what is forgotten.")] = None,  # noqa: UP045
    replay: Annotated[bool, typer.Option("--replay", help="Train on histories of --old as well, so that less is forgotten.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    seed: Annotated[Optional[int], typer.Option("--seed", help="Seed of everything random (default: the recipe's).")] = None,  # noqa: UP045
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Another data set: the vocabulary grows, training goes on, adapt.json reports what was carried over.

    Example: cehrxgpt adapt model other_events --out adapted
    """
    from cehrxgpt import stages

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    overrides = {"steps": steps, "max_minutes": minutes, "seed": seed}
    with console.progress("adapt") as progress:
        figures = stages.adapt(model, events, out, recipe, overrides=overrides, old=old, replay=replay, resume=resume, force=force, progress=progress)
    console.table("Transfer", ["what", "figure"], figures.pop("rows"))
    for note in figures["notes"]:
        console.say(f"note: {note}")
    console.result(figures)


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
    task: Annotated[Optional[str], typer.Option("--task", help="A library task's name or a YAML file, ours or of ACES.")] = None,  # noqa: UP045
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

    console = _prepare(threads, quiet=quiet, json_only=json_only)
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
    figures = stages.label(events, task, out, settings, force=force)
    steps = figures.pop("attrition")
    rows = [[row["step"], f"{row['subjects']:,}", "" if row["rows"] is None else f"{row['rows']:,}", row["note"]] for row in steps]
    console.table(f"Attrition of {figures['task']}", ["step", "subjects", "rows", "note"], rows)
    console.result(figures)


@app.command()
def embed(
    model: Model,
    events: Events,
    labels: Labels,
    out: Out,
    pooling: Annotated[str, typer.Option("--pooling", help="last (token) or visit_ends (mean).")] = "last",
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """One vector per label row, from what the record knew at its prediction time.

    Example: cehrxgpt embed model events --labels t2dm_hf_1y.parquet --out emb.parquet
    """
    from cehrxgpt import stages

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    with console.progress("embed") as progress:
        console.result(stages.embed(model, events, labels, out, {"pooling": pooling}, force=force, progress=progress))


@app.command()
def probe(
    embeddings: Annotated[Path, typer.Argument(metavar="EMB.parquet", help="Made by embed.")],
    labels: Annotated[Path, typer.Option("--labels", help="The labels to learn and to judge by.")],
    events: Annotated[Path, typer.Option("--events", help="The event data set: splits, and what the baselines count.")],
    out: Out,
    seed: Seed = 0,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Logistic regression on the vectors, beside counts + LightGBM, counts + logistic regression, and age and sex.

    Example: cehrxgpt probe emb.parquet --labels t2dm_hf_1y.parquet --events events --out probe
    """
    from cehrxgpt import stages

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    figures = stages.probe(embeddings, labels, events, out, {"seed": seed}, force=force)
    console.table("Held-out patients", ["method", "AUROC", "95% interval"], figures.pop("rows"))
    console.result(figures)


@app.command()
def discover(
    model: Model,
    events: Events,
    out: Out,
    like: Annotated[int, typer.Option("--like", help="The subject to find others like.")],
    count: Annotated[int, typer.Option("--count", min=1, help="How many neighbours.")] = 10,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """The patients most like one, by the whole of their records, with the codes that they share (rarest first).

    Example: cehrxgpt discover model events --like 17 --out like-17
    """
    from cehrxgpt import stages

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    with console.progress("discover") as progress:
        figures = stages.discover(model, events, out, like=like, count=count, force=force, progress=progress)
    console.table(f"Like subject {like}", ["subject", "cosine", "codes shared", "the rarest of them"], figures.pop("rows"))
    console.result(figures)


@app.command()
def forecast(
    model: Model,
    events: Events,
    labels: Labels,
    out: Out,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Simulated futures per row; at most, with --target-std-error.")] = 50,
    estimator: Annotated[str, typer.Option("--estimator", help="mc (Monte Carlo), scope, reach, or time_to_event (no futures).")] = "mc",
    target_std_error: Annotated[Optional[float], typer.Option("--target-std-error", help="Draw until each row's error is no larger.")] = None,  # noqa: UP045
    task: Annotated[Optional[list[str]], typer.Option("--task", help="YAML file of a task of your own that the labels name.")] = None,  # noqa: UP045
    split: Annotated[Optional[str], typer.Option("--split", help="Only rows of this split, e.g. held_out.")] = None,  # noqa: UP045
    max_rows: Annotated[Optional[int], typer.Option("--max-rows", min=1, help="At most this many rows of each task, drawn by seed.")] = None,  # noqa: UP045
    max_tokens: Annotated[int, typer.Option("--max-tokens", min=1, help="Token budget of one future.")] = 256,
    trajectories: Annotated[Optional[Path], typer.Option("--trajectories", help="Keep the futures in this folder.")] = None,  # noqa: UP045
    curves: Annotated[bool, typer.Option("--curves", help="Cumulative incidence over the window as well: RISK.curves.parquet.")] = False,
    timeline: Annotated[Optional[Path], typer.Option("--timeline", help="With time_to_event: the token store it was trained on, for errors.")] = None,  # noqa: UP045
    dtype: Annotated[Optional[str], typer.Option("--dtype", help="float32, float64 or bfloat16 (quicker where the processor has it).")] = None,  # noqa: UP045
    share: Annotated[Optional[str], typer.Option("--share", help="2/4: draw the second of four parts; then run without it.")] = None,  # noqa: UP045
    seed: Seed = 0,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Risk of each label row's outcome by simulating futures; no training.

    Example: cehrxgpt forecast model events --labels t2dm_hf_1y.parquet --samples 50 --out risk.parquet
    """
    from cehrxgpt import stages

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    if estimator not in (known := ("mc", "scope", "reach", "time_to_event")):
        raise InputError(f"--estimator: no '{estimator}' here; valid: {', '.join(known)}")
    if estimator == "time_to_event" and target_std_error is not None:
        raise InputError("--target-std-error: time_to_event draws no futures; leave it out")
    if estimator != "time_to_event" and timeline is not None:
        raise InputError("--timeline: only time_to_event looks at it; leave it out")
    settings = {
        "dtype": dtype,
        "estimator": estimator,
        "samples": samples,
        "target_std_error": target_std_error,
        "seed": seed,
        "max_new_tokens": max_tokens,
    }
    with console.progress("forecast") as progress:
        figures = stages.forecast(
            model,
            events,
            labels,
            out,
            settings,
            split=split,
            max_rows=max_rows,
            trajectories=trajectories,
            curves=curves,
            timeline=timeline,
            tasks=task or (),
            share=None if share is None else _share(share),
            force=force,
            progress=progress,
        )
    for note in figures["notes"]:
        console.say(f"note: {note}")
    console.result(figures)


def _share(text: str) -> tuple[int, int]:
    """`2/4` as (1, 4)."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise InputError(f"--share: '{text}' is no part of a whole; give for example 2/4, the second of four")
    return int(part) - 1, int(parts)


@app.command()
def synthesize(
    model: Model,
    out: Out,
    patients: Annotated[int, typer.Option("--patients", min=1, help="How many people to write.")] = 1000,
    format: Annotated[str, typer.Option("--format", help="omop (CDM 5.4 tables) or meds (an event data set).")] = "omop",
    seed: Seed = 0,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Synthetic patients as OMOP CDM 5.4 tables or as a MEDS data set.

    Example: cehrxgpt synthesize model --patients 1000 --out synthetic
    """
    from cehrxgpt import stages

    console = _prepare(threads, quiet=quiet, json_only=json_only)
    with console.progress("synthesize") as progress:
        console.result(stages.synthesize(model, out, patients, {"seed": seed}, format=format, force=force, progress=progress))


evaluate = typer.Typer(
    cls=Verbs, help="Judge predictions against labels, or synthetic patients against real ones.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(evaluate, name="evaluate")


@evaluate.command("predictions")
def evaluate_predictions(
    risk: Annotated[Path, typer.Argument(metavar="RISK.parquet", help="Predictions made by forecast or probe.")],
    labels: Labels,
    events: Annotated[Optional[Path], typer.Option("--events", help="The event data set: metrics by age, sex, race, history, onset.")] = None,  # noqa: UP045
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

    console = _prepare(None, quiet=quiet, json_only=json_only)
    figures = stages.evaluate_predictions(risk, labels, out, events=events, tasks=task or (), recalibrate=recalibrate, seed=seed, force=force)
    console.table("Metrics", ["metric", "value", "95% interval"], figures.pop("rows"))
    levels = figures.pop("subgroups")
    if levels:
        console.table("By subgroup", ["method", "group", "rows", "AUROC", "95% interval", "slope", "observed", "predicted"], levels)
    for note in figures["notes"]:
        console.say(f"note: {note}")
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

    console = _prepare(None, quiet=quiet, json_only=json_only)
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


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if launch.count() > 1 and ctx.invoked_subcommand not in (None, "pretrain"):
        raise InputError(f"{ctx.invoked_subcommand} runs as one process; torchrun and accelerate launch are for pretrain")
    if version:
        from cehrxgpt import __version__

        typer.echo(__version__)
        raise typer.Exit


def _command() -> Any:
    """The whole command line; a wrong option is one clear line, as any other bad input is."""
    usage: Any = typer.BadParameter.__base__  # its UsageError, which Typer does not export
    try:
        return typer.main.get_command(app).main(standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except usage as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            return error.exit_code
        hint = f"; try: {error.ctx.command_path} --help" if error.ctx is not None else ""
        raise InputError(error.format_message().rstrip(".") + hint) from None


def main() -> None:
    """Entry point of the `cehrxgpt` command."""
    status = ui.run(_command)
    if launch.count() > 1:
        # The threads of a process group outlive it where DDP was used, and now and then end a process that is done with SIGABRT when they find the
        # interpreter gone. So: what is to be done at the exit, and out.
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    raise SystemExit(status)


if __name__ == "__main__":
    main()
