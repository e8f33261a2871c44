"""What an interrupted forecast has done already: a folder with one file for each pool of futures.

A pool's number says what it holds, as pools are gathered in one order whatever happens; `key` says of what forecast it is. A file is
written whole or not at all, and one of another forecast, or that cannot be read, counts as not there. Several processes may work at one
folder, each at pools of its own: futures depend on nothing but who is asked, so nobody can tell afterwards.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from cehrxgpt.atomic import atomic_path

_FRAMES = ("risks", "curves", "samples", "trajectories")


@dataclass
class Found:
    """What pools have told.

    Attributes:
        risks: `task`, `_moment`, and the numbers of a prediction.
        curves: CURVE_SCHEMA, with `_moment` in place of the key.
        samples, trajectories: SAMPLE_SCHEMA, TRAJECTORY_SCHEMA.
        counts: of futures and tokens.
    """

    risks: list[pl.DataFrame] = field(default_factory=list)
    curves: list[pl.DataFrame] = field(default_factory=list)
    samples: list[pl.DataFrame] = field(default_factory=list)
    trajectories: list[pl.DataFrame] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Found) -> None:
        """What others have told as well."""
        for name in _FRAMES:
            getattr(self, name).extend(getattr(other, name))
        self.counts.update(other.counts)


@dataclass(frozen=True)
class Journal:
    """The folder.

    Attributes:
        folder: made when the first pool is done.
        key: fingerprint of all that decides the forecast.
        share: (i, n): of pools not done yet draw those with number = i modulo n; the others are somebody else's.
    """

    folder: Path
    key: str
    share: tuple[int, int] = (0, 1)

    def mine(self, number: int) -> bool:
        """Is it this process that draws the pool?"""
        return number % self.share[1] == self.share[0]

    def read(self, number: int) -> Found | None:
        """What a pool told, if it is done."""
        try:
            with zipfile.ZipFile(self._path(number)) as archive:
                facts = json.loads(archive.read("facts.json"))
                if facts["key"] != self.key:
                    return None
                there = set(archive.namelist())
                frames = {name: [pl.read_parquet(io.BytesIO(archive.read(name)))] if name in there else [] for name in _FRAMES}
        except (FileNotFoundError, zipfile.BadZipFile, json.JSONDecodeError, KeyError):
            return None
        return Found(**frames, counts=Counter(facts["counts"]))

    def write(self, number: int, found: Found) -> None:
        """Keep what a pool told."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path(number), force=True) as partial, zipfile.ZipFile(partial, "w") as archive:
            archive.writestr("facts.json", json.dumps({"key": self.key, "counts": dict(found.counts)}))
            for name in _FRAMES:
                if getattr(found, name):
                    bytes_out = io.BytesIO()
                    pl.concat(getattr(found, name)).write_parquet(bytes_out)
                    archive.writestr(name, bytes_out.getvalue())

    def _path(self, number: int) -> Path:
        return self.folder / f"pool-{number:06}.zip"
