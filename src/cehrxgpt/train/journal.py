"""`train.jsonl`: one JSON object a line, NaN and infinity as null; its figures go on to the trackers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cehrxgpt.train.trackers import Trackers

LOG_FILE = "train.jsonl"
Say = Callable[[str], None]
"""Called with one line for the reader, seldom."""


def silent(line: str) -> None:
    """Say nothing."""


class Journal:
    """Where a run writes down how it goes.

    Args:
        path: of `train.jsonl`.
        say: see `Say`.
        trackers: told the figures of each line.
        active: whether this process writes and speaks; of several one does.
    """

    def __init__(self, path: Path, say: Say = silent, trackers: Trackers | None = None, *, active: bool = True):
        self.path, self.active = path, active
        self.say, self.trackers = (say, trackers) if active else (silent, None)

    def start(self, last_step: int) -> None:
        """Go on after `last_step`: what was written later is dropped."""
        if not self.active:
            return
        trim_log(self.path, last_step)
        if self.trackers is not None:
            self.trackers.start(last_step)

    def finish(self) -> None:
        """Nothing more will be written."""
        if self.trackers is not None:
            self.trackers.finish()

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; it has at least `kind` and `step`."""
        if not self.active:
            return
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(line)) + "\n")
        if self.trackers is not None:
            self.trackers.log(line)

    def flush(self) -> None:
        """Bring what is written to the device, so that no checkpoint is ahead of its log."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())


def trim_log(path: Path, last_step: int) -> None:
    """Drop the lines of `train.jsonl` that lie after a checkpoint, or were cut off in the middle; whole or not at all."""
    kept = []
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] <= last_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError, TypeError):
                break
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(kept), encoding="utf-8")
    os.replace(partial, path)


def _plain(value: Any) -> Any:
    """As JSON can say it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
