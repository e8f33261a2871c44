"""What `inspect` says of one artefact, as data; and the same as lines of text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cehrxgpt.report.markup import count, is_number, number

Pairs = list[tuple[str, Any]]


@dataclass
class Artefact:
    """One artefact, described.

    Attributes:
        name: of the folder or file.
        kind: what it is, in words.
        facts: (name, value); numbers stay numbers.
        tables: (title, heads, rows, how many leading columns are text); cells stay numbers.
        made: (name, value): from what, when, by which version.
        next: commands that a reader is likely to want.
    """

    name: str
    kind: str
    facts: Pairs = field(default_factory=list)
    tables: list[tuple[str, Sequence[str], list[list[Any]], int]] = field(default_factory=list)
    made: Pairs = field(default_factory=list)
    next: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the terminal."""
        found = [f"{self.name}: {self.kind}", *columns([[name, say(value)] for name, value in self.facts], left=2)]
        for title, heads, rows, left in self.tables:
            body = [list(heads), *([say(cell) for cell in row] for row in rows)]
            found += ["", *([f"  {title}"] if title else []), *columns(body, indent="    " if title else "  ", left=left)]
        if self.made:
            found += ["", "  made from", *columns([[name, say(value)] for name, value in self.made], indent="    ", left=2)]
        for place, command in enumerate(self.next):
            found += ["", f"  next: {command}"] if place == 0 else [f"    or: {command}"]
        return found

    def figures(self) -> dict[str, Any]:
        """For programs."""
        tables = [
            {"title": title, "columns": list(heads), "rows": [[plain(cell) for cell in row] for row in rows]} for title, heads, rows, _ in self.tables
        ]
        return {
            "kind": self.kind,
            "name": self.name,
            "facts": {name: plain(value) for name, value in self.facts},
            "tables": tables,
            "made_from": {name: plain(value) for name, value in self.made},
            "next": self.next,
        }


def plain(value: Any) -> Any:
    """A value that JSON has; a number that is not finite becomes null."""
    if isinstance(value, float) and not is_number(value):
        return None
    return value.isoformat() if isinstance(value, datetime) else value


def say(value: Any) -> str:
    """A fact or a cell as text."""
    if value is None or (isinstance(value, float) and not is_number(value)):
        return "–"
    if isinstance(value, datetime):
        return f"{value:%Y-%m-%d %H:%M}"
    if isinstance(value, bool) or not is_number(value):
        return str(value)
    return count(value) if isinstance(value, int) or float(value).is_integer() else number(value)


def interval(lower: Any, upper: Any) -> str:
    """0.612 to 0.734; one dash where there is none."""
    return f"{number(lower)} to {number(upper)}" if is_number(lower) and is_number(upper) else "–"


WIDEST = 90
"""Columns of text that a cell takes before it is wrapped: one long note does not push the figures off the screen."""


def columns(rows: Iterable[Sequence[str]], *, indent: str = "  ", left: int = 1) -> list[str]:
    """Rows of cells as aligned columns: the first `left`, and those with words in a cell, to the left; figures to the right."""
    listed = [[textwrap.wrap(cell, WIDEST, break_on_hyphens=False) or [""] if len(cell) > WIDEST else [cell] for cell in row] for row in rows]
    if not listed:
        return []
    places = range(len(listed[0]))
    widths = [max(len(line) for row in listed for line in row[place]) for place in places]
    words = {place for place in places if place < left or any(len(row[place]) > 1 or len(row[place][0]) > 24 for row in listed)}
    found = []
    for row in listed:
        for line in range(max(map(len, row))):
            cells = [row[place][line] if line < len(row[place]) else "" for place in places]
            told = [cell.ljust(w) if place in words else cell.rjust(w) for place, (cell, w) in enumerate(zip(cells, widths, strict=True))]
            found.append((indent + "  ".join(told)).rstrip())
    return found


def size(number_of_bytes: int) -> str:
    """12.3 kB, 4.5 MB."""
    return f"{number_of_bytes / 1e6:,.1f} MB" if number_of_bytes >= 1e5 else f"{number_of_bytes / 1e3:,.1f} kB"
