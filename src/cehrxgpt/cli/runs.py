"""Verbs of whole runs: `demo`, `run`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from cehrxgpt.cli.options import Json, Out, Quiet, Seed, Threads, prepare
from cehrxgpt.cli.root import app


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

    console = prepare(threads, quiet=quiet, json_only=json_only)
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

    console = prepare(threads, quiet=quiet, json_only=json_only)
    console.result(run_recipe(read_recipe(recipe), out or Path("runs") / recipe.stem, console=console))
