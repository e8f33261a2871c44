"""Verbs whose models write: `forecast`, `synthesize`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cehrxgpt.cli.options import Events, Force, Json, Labels, Model, Out, Quiet, Seed, Threads, prepare
from cehrxgpt.cli.root import app
from cehrxgpt.errors import InputError


@app.command()
def forecast(
    model: Model,
    events: Events,
    labels: Labels,
    out: Out,
    samples: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--samples", min=1, help="Simulated futures per row; at most, with --target-std-error.", show_default="50"),
    ] = None,
    estimator: Annotated[str, typer.Option("--estimator", help="mc (Monte Carlo), scope, reach, or time_to_event (no futures).")] = "mc",
    target_std_error: Annotated[Optional[float], typer.Option("--target-std-error", help="Draw until each row's error is no larger.")] = None,  # noqa: UP045
    task: Annotated[Optional[list[str]], typer.Option("--task", help="YAML file of a task of your own that the labels name.")] = None,  # noqa: UP045
    split: Annotated[Optional[str], typer.Option("--split", help="Only rows of this split, e.g. held_out.")] = None,  # noqa: UP045
    max_rows: Annotated[Optional[int], typer.Option("--max-rows", min=1, help="At most this many rows of each task, drawn by seed.")] = None,  # noqa: UP045
    max_tokens: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option("--max-tokens", min=1, help="Token budget of one future.", show_default="256"),
    ] = None,
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
    """Risk of each label row's outcome, from simulated futures or the model's hazards; no training.

    Example: cehrxgpt forecast model events --labels t2dm_hf_1y.parquet --samples 50 --out risk.parquet
    """
    from cehrxgpt import stages

    console = prepare(threads, quiet=quiet, json_only=json_only)
    if estimator not in (known := ("mc", "scope", "reach", "time_to_event")):
        raise InputError(f"--estimator: no '{estimator}' here; valid: {', '.join(known)}")
    of_futures = {"--samples": samples, "--target-std-error": target_std_error, "--max-tokens": max_tokens, "--dtype": dtype}
    if estimator == "time_to_event" and any(value is not None for value in of_futures.values()):
        given = ", ".join(name for name, value in of_futures.items() if value is not None)
        raise InputError(f"{given}: time_to_event draws no futures; leave it out")
    if estimator != "time_to_event" and timeline is not None:
        raise InputError("--timeline: only time_to_event looks at it; leave it out")
    settings = {
        "dtype": dtype,
        "estimator": estimator,
        "samples": 50 if samples is None else samples,
        "target_std_error": target_std_error,
        "seed": seed,
    } | ({} if max_tokens is None else {"max_new_tokens": max_tokens})
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
            say=console.say,
        )
    if figures.get("futures") and (removed := figures.get("removed_by_grammar")) is not None:
        console.say(f"probability that the grammar removed: {removed['per_token']:.3%} a token, {removed['worst_future']:.3%} in the worst future")
    console.notes(figures["notes"])
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

    console = prepare(threads, quiet=quiet, json_only=json_only)
    with console.progress("synthesize") as progress:
        console.result(stages.synthesize(model, out, patients, {"seed": seed}, format=format, force=force, progress=progress))
