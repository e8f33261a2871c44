"""The command line: thin verbs over the functions that do the work, a file for each group of them.

Names and files are a contract that scripts rely on. Nothing heavy is imported before a verb runs.
"""

from __future__ import annotations

import os
from typing import Any

import typer

from cehrxgpt import console as ui
from cehrxgpt.cli.root import app
from cehrxgpt.errors import InputError

# isort: off
from cehrxgpt.cli import runs, data, training, labelling, representing, generating, judging  # noqa: F401 - in the order of --help
# isort: on

__all__ = ["app", "main"]

# How long a thread spins before it sleeps, in turns: some tenths of a millisecond. For ever (the default) costs training nine tenths of its speed
# beside one other busy program, and not at all costs a quarter on a quiet machine (docs/training.md). Read when Torch loads.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")


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
    raise SystemExit(ui.run(_command))
