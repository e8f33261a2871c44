"""Arguments and options that several verbs share, and what is done with them first."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Optional

import typer

from cehrxgpt import console as ui
from cehrxgpt import launch

Out = Annotated[Path, typer.Option("--out", help="Where to write; never overwritten without --force.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is at --out.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=1 << 62, help="Seed of everything random.")]
Threads = Annotated[Optional[int], typer.Option("--threads", min=1, help="Processor threads to use (default: all).")]  # noqa: UP045 - Typer reads it
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress, no tables; only the last line.")]
Json = Annotated[bool, typer.Option("--json", help="Only the last line, a JSON object, on standard output.")]
Events = Annotated[Path, typer.Argument(metavar="EVENTS", help="A folder made by ingest.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A folder made by pretrain.")]
Labels = Annotated[list[Path], typer.Option("--labels", help="Labels made by label, or a MEDS label file (repeat it for several tasks).")]


def prepare(threads: int | None, *, quiet: bool, json_only: bool) -> ui.Console:
    """Settle the number of threads before any library reads it."""
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "POLARS_MAX_THREADS", "OPENBLAS_NUM_THREADS"):
            os.environ[name] = str(threads)
    other = launch.rank() > 0  # of several processes the first alone speaks
    return ui.Console(quiet=quiet or other, json_only=json_only, mute=other)
