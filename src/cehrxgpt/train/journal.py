"""`train.jsonl`: one JSON object a line, NaN and infinity as null; its figures go on to the trackers."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cehrxgpt.train.checkpoint import storage
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

    def start(self, last_step: int, length_bytes: int | None = None) -> None:
        """Go on after the checkpoint of `last_step`, when the log was so long: what was written later is dropped.

        Raises:
            StorageError: the log cannot be written; so do `write` and `flush`.
        """
        if not self.active:
            return
        with self._storage():
            trim_log(self.path, last_step, length_bytes)
        if self.trackers is not None:
            with storage(f"begin {self.trackers}"):
                self.trackers.start(last_step)

    def finish(self) -> None:
        """Nothing more will be written."""
        if self.trackers is not None:
            with storage(f"finish {self.trackers}"):
                self.trackers.finish()

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; it has at least `kind` and `step`."""
        if not self.active:
            return
        with self._storage(), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(_plain(line)) + "\n")
        if self.trackers is not None:
            with storage(f"write to {self.trackers}"):
                self.trackers.log(line)

    def flush(self) -> int:
        """Bring what is written to the device, so that no checkpoint is ahead of its log; its length in bytes."""
        if not self.active or not self.path.exists():
            return 0
        with self._storage(), self.path.open("rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def _storage(self) -> AbstractContextManager[None]:
        return storage(f"write {self.path}")


def trim_log(path: Path, last_step: int, length_bytes: int | None = None) -> None:
    """Drop what was written to `train.jsonl` after a checkpoint, or was cut off or damaged; whole or not at all.

    Args:
        last_step: of the checkpoint.
        length_bytes: how long the log was then; None: not known, so that lines of the very step are kept.
    """
    kept = []
    for line in path.read_bytes()[:length_bytes].splitlines() if path.exists() else ():
        try:
            if json.loads(line.decode("utf-8"))["step"] <= last_step:
                kept.append(line + b"\n")
        except (ValueError, KeyError, TypeError):
            break
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(b"".join(kept))
    os.replace(partial, path)


def _plain(value: Any) -> Any:
    """As JSON can say it: NaN and infinity become null."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
