"""What a verb prints: progress on standard error, and a last line of JSON on standard output.

Rich is imported only when something is drawn, so that `--help` stays instant.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from cehrxgpt import launch
from cehrxgpt.errors import CehrxgptError, ElsewhereError, Interrupted

Progress = Callable[[int, int, str], None]
"""`progress(done, total, what)`: how far a stage has come; `total` 0 means not known yet."""

DEBUG_VARIABLE = "CEHRXGPT_DEBUG"
AGAIN = "the same command goes on from what was kept, if anything was; else it begins anew"


@dataclass(frozen=True)
class Console:
    """How much one command says. `json_only` leaves nothing but the last line on standard output, `mute` nothing at all."""

    quiet: bool = False
    json_only: bool = False
    mute: bool = False

    def say(self, text: str) -> None:
        """One line for the reader."""
        if not self.quiet and not self.json_only:
            print(text, flush=True)

    def notes(self, notes: list[str]) -> None:
        """What the reader ought to know, a line each."""
        for note in notes:
            self.say(f"note: {note}")

    def pages(self, lines: list[str]) -> None:
        """Lines for the reader; on a terminal with headings in bold, through the pager where they are longer than the screen."""
        if self.quiet or self.json_only:
            return
        if not sys.stdout.isatty():
            print("\n".join(lines), flush=True)
            return
        from contextlib import nullcontext

        from rich.console import Console as RichConsole
        from rich.text import Text

        screen = RichConsole(highlight=False)
        with screen.pager(styles=True) if len(lines) > screen.height else nullcontext():
            for line in lines:
                # Headings stand at the margin; what is only a code is quiet.
                text = Text(line, style="" if line.startswith(" ") else "bold")
                text.highlight_regex(r"\([^()\s]*[/_][^()\s]*\)", "dim")
                text.highlight_regex(r"DEATH|\[[a-z]+\]", "cyan")
                screen.print(text, soft_wrap=True)

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """A table for the reader."""
        if self.quiet or self.json_only or not rows:
            return
        from rich.console import Console as RichConsole
        from rich.table import Table

        table = Table(title=title, title_justify="left")
        for index, column in enumerate(columns):
            words = index == 0 or any(map(_is_prose, (row[index] for row in rows)))
            table.add_column(column, justify="left" if words else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        width = None if sys.stdout.isatty() else 110
        RichConsole(width=width, highlight=False).print(table)

    def result(self, figures: dict[str, Any]) -> None:
        """The last line: the figures that matter, as one JSON object."""
        if self.mute:
            return
        print(json.dumps(_rounded(figures), ensure_ascii=False, allow_nan=False, default=str), flush=True)

    @contextmanager
    def progress(self, title: str) -> Iterator[Progress]:
        """Yield a `Progress` that draws a bar with rate and time left; a plain line every tenth where there is no terminal."""
        if self.quiet or self.json_only:
            yield lambda done, total, what: None
            return
        if not sys.stderr.isatty():
            yield _plain_progress(title)
            return
        from rich import progress as bars
        from rich.console import Console as RichConsole

        columns = (
            bars.TextColumn("[bold]{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            _rate_column(),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[what]}"),
        )
        with bars.Progress(*columns, console=RichConsole(stderr=True), transient=True) as bar:
            task = bar.add_task(title, total=None, what="")

            def update(done: int, total: int, what: str) -> None:
                bar.update(task, completed=done, total=total or None, what=what)

            yield update


def _is_prose(cell: str) -> bool:
    """Words, and no figure with its unit or interval: they are read from the left."""
    return len(cell) > 24 or (any(letter.isalpha() for letter in cell) and not any(letter.isdigit() for letter in cell))


def _rounded(value: Any) -> Any:
    """Floats at six significant digits, at any depth: a figure to read, not a measurement to the last bit."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(item) for item in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _rate_column() -> Any:
    from rich.progress import ProgressColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        """Units per second."""

        def render(self, task: Any) -> Text:
            return Text(f"{task.speed:,.1f}/s" if task.speed else "")

    return Rate()


def _plain_progress(title: str) -> Progress:
    last = {"what": "", "tenth": -1}

    def update(done: int, total: int, what: str) -> None:
        tenth = 10 * done // total if total else -1
        if tenth != last["tenth"] or (not total and what != last["what"]):
            last.update(what=what, tenth=tenth)
            share = f"{done:,}/{total:,}" if total else f"{done:,}"
            print(f"{title}: {share} {what}".rstrip(), file=sys.stderr, flush=True)

    return update


def _is_told_here(error: CehrxgptError) -> bool:
    """Of several processes, the first tells what all of them meet; a fault of the machine is told where it happened."""
    return launch.rank() == 0 or (error.exit_status == 1 and not isinstance(error, ElsewhereError))


def _one_line(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
    print(f"error: a fault in cehrxgpt ({kind.__name__}); set {DEBUG_VARIABLE}=1 to see where", file=sys.stderr)


def run(command: Callable[[], Any]) -> int:
    """Run a command and turn what it raises into an exit status: 0, 1 (a fault), 2 (bad input), 130 (interrupted).

    SIGTERM counts as Ctrl-C: both unwind, so that nothing half-written stays.
    """
    interrupted = False

    def interrupt(signum: int, frame: Any) -> None:
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    if not os.environ.get(DEBUG_VARIABLE):
        # Anything we did not foresee ends with status 1 and one line; a traceback could show a patient's values.
        sys.excepthook = _one_line
    try:
        status = command()
        return status if isinstance(status, int) else 0
    except CehrxgptError as error:
        if _is_told_here(error):
            print(f"{'interrupted;' if isinstance(error, Interrupted) else 'error:'} {error}", file=sys.stderr)
        return error.exit_status
    except (KeyboardInterrupt, SystemExit) as error:
        if interrupted or isinstance(error, KeyboardInterrupt):
            print(f"interrupted; {AGAIN}", file=sys.stderr)
            return 130
        return error.code if isinstance(error.code, int) else 0
    except MemoryError:
        print("error: out of memory; try fewer --threads or a smaller batch", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone; that is no fault.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0
