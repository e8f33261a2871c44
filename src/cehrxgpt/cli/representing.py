"""Verbs of embeddings: `embed`, `probe`, `discover`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cehrxgpt.cli.options import Events, Force, Json, Labels, Model, Out, Quiet, Seed, Threads, prepare
from cehrxgpt.cli.root import app


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

    console = prepare(threads, quiet=quiet, json_only=json_only)
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

    console = prepare(threads, quiet=quiet, json_only=json_only)
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

    console = prepare(threads, quiet=quiet, json_only=json_only)
    with console.progress("discover") as progress:
        figures = stages.discover(model, events, out, like=like, count=count, force=force, progress=progress)
    console.table(f"Like subject {like}", ["subject", "cosine", "codes shared", "the rarest of them"], figures.pop("rows"))
    console.result(figures)
