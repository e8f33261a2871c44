"""Verbs that train: `pretrain`, `adapt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cehrxgpt.cli.options import Events, Force, Json, Model, Out, Quiet, Threads, prepare
from cehrxgpt.cli.root import app

Steps = Annotated[Optional[int], typer.Option("--steps", min=1, help="Optimiser steps, instead of the recipe's epochs.")]  # noqa: UP045
RecipeSeed = Annotated[Optional[int], typer.Option("--seed", help="Seed of everything random (default: the recipe's).")]  # noqa: UP045


@app.command()
def pretrain(
    timeline: Annotated[Path, typer.Argument(metavar="TIMELINE", help="A folder made by tokenize.")],
    out: Out,
    recipe: Annotated[str, typer.Option("--recipe", help="tiny, demo, base, large, or a YAML file.")] = "demo",
    steps: Steps = None,
    minutes: Annotated[Optional[float], typer.Option("--minutes", help="Stop after this much time.")] = None,  # noqa: UP045
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of an interrupted run.")] = False,
    seed: RecipeSeed = None,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Train a model on a token store.

    Example: cehrxgpt pretrain timeline --recipe demo --out model
    """
    from cehrxgpt import stages

    console = prepare(threads, quiet=quiet, json_only=json_only)
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
    steps: Steps = None,
    minutes: Annotated[Optional[float], typer.Option("--minutes", help="Stop training after this much time.")] = None,  # noqa: UP045
    old: Annotated[Optional[Path], typer.Option("--old", help="What the model was trained on (a timeline): measures what is forgotten.")] = None,  # noqa: UP045
    replay: Annotated[bool, typer.Option("--replay", help="Train on histories of --old as well, so that less is forgotten.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    seed: RecipeSeed = None,
    force: Force = False,
    threads: Threads = None,
    quiet: Quiet = False,
    json_only: Json = False,
) -> None:
    """Another data set: the vocabulary grows, training goes on, adapt.json reports what was carried over.

    Example: cehrxgpt adapt model other_events --out adapted
    """
    from cehrxgpt import stages

    console = prepare(threads, quiet=quiet, json_only=json_only)
    overrides = {"steps": steps, "max_minutes": minutes, "seed": seed}
    with console.progress("adapt") as progress:
        figures = stages.adapt(model, events, out, recipe, overrides=overrides, old=old, replay=replay, resume=resume, force=force, progress=progress)
    console.table("Transfer", ["what", "figure"], figures.pop("rows"))
    console.notes(figures["notes"])
    console.result(figures)
