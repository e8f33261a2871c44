"""What benchmarks share: a file of what is done, a line of JSON each, tables between the markers of a page, and the precision for the machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cehrxgpt.atomic import atomic_path
from cehrxgpt.train.device import fast_bfloat16


class Results:
    """Lines of JSON with a `key` each; a line that a kill cut short counts as not there.

    Attributes:
        lines: as read, and added.
    """

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        whole = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole]
        if text and not text.endswith("\n"):
            with atomic_path(path, force=True) as partial:
                partial.write_text("".join(whole), encoding="utf-8")

    def add(self, line: dict[str, Any]) -> None:
        """One more thing is done."""
        self.lines.append(line)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def has(self, key: str) -> bool:
        """Whether this very thing is."""
        return any(line["key"] == key for line in self.lines)


def write_between(page: Path, begin: str, end: str, text: str) -> None:
    """Put a text between two markers of a page, in place of what is there; make the page where there is none."""
    old = page.read_text(encoding="utf-8") if page.exists() else f"{begin}\n{end}\n"
    before, _, rest = old.partition(begin)
    with atomic_path(page, force=True) as partial:
        partial.write_text(f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def said_when(lines: list[dict[str, Any]]) -> str:
    """The date of the lines, or the first and the last."""
    dates = sorted({line["date"] for line in lines})
    return dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"


def quick_dtype() -> str:
    """The precision in which futures are written fastest here: bfloat16 where the processor was measured to multiply it faster."""
    return "bfloat16" if fast_bfloat16(torch.device("cpu")) else "float32"
