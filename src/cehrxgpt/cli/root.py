"""The command that all verbs belong to."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cehrxgpt import launch
from cehrxgpt.console import AGAIN
from cehrxgpt.errors import InputError, Interrupted


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
            raise Interrupted(str(interruption) or AGAIN) from None


app = typer.Typer(
    cls=Verbs,
    name="cehrxgpt",
    help="Foundation model of patients' health records: represent patients, forecast outcomes, write synthetic OMOP tables.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(ctx: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if launch.count() > 1 and ctx.invoked_subcommand not in (None, "pretrain"):
        raise InputError(f"{ctx.invoked_subcommand} runs as one process; torchrun and accelerate launch are for pretrain")
    if version:
        from cehrxgpt import __version__

        typer.echo(__version__)
        raise typer.Exit
