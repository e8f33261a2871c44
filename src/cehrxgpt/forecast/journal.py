"""What an interrupted forecast has done already: a folder of its own with one file for each pool of futures.

A pool's size and number say what it holds, as pools are gathered in one order whatever happens; the folder's name, the forecast's `key`, says
of what forecast it is, so that forecasts with the same output never touch each other's. A file is written whole or not at all, and one that is
damaged counts as not there: `facts.json` has a checksum of each frame, and of itself. Several processes may work at one folder, each at pools of
its own: futures depend on nothing but who is asked, so nobody can tell afterwards.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from cehrxgpt.atomic import atomic_path
from cehrxgpt.errors import StorageError

_FRAMES = ("risks", "notes", "curves", "samples", "trajectories")
_FACTS, _SUM = "facts.json", "facts.sum"
_BILLION = 1_000_000_000
_NOTE_TYPES = {"task": pl.String, "_moment": pl.Int64, "note": pl.String}
_FILE = re.compile(r"pool-([1-9]\d*)-\d+\.zip")
_DAMAGE = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,  # seeking where nothing is
    ValueError,  # checksums, JSON and its encoding
    TypeError,
    KeyError,
    OverflowError,
    NotImplementedError,  # a flag or a kind of compression that does not exist
    RuntimeError,  # a file that says it is encrypted
    pl.exceptions.PolarsError,
)
"""What opening and reading an archive raises where a byte of it is wrong; it is read from memory, so the disk has no part in it."""


@dataclass
class Removed:
    """Probability that the grammar took away, in billionths: whole numbers come to the same in whatever order futures are added up.

    Attributes:
        in_all: summed over the tokens drawn.
        most: per token drawn, of the future that lost most.
    """

    in_all: int = 0
    most: int = 0

    @classmethod
    def of(cls, mass: npt.NDArray[np.float64], drawn: npt.NDArray[np.integer]) -> Removed:
        """From the sum over each future's tokens, and how many these were; [N] both."""
        each = np.rint(mass * _BILLION).astype(np.int64)
        return cls(int(each.sum()), int((each // np.maximum(drawn, 1)).max(initial=0)))

    def add(self, other: Removed) -> None:
        """From others as well."""
        self.in_all += other.in_all
        self.most = max(self.most, other.most)

    def summary(self, tokens: int) -> dict[str, float]:
        """`per_token`, the mean over the tokens drawn, and `worst_future`, the same of the future that lost most."""
        return {"per_token": self.in_all / max(tokens, 1) / _BILLION, "worst_future": self.most / _BILLION}


@dataclass
class Found:
    """What pools have told.

    Attributes:
        risks: `task`, `_moment`, and the numbers of a prediction.
        notes: `task`, `_moment`, `note`: why there is no prediction, or what there is to say of it.
        curves: CURVE_SCHEMA, with `_moment` in place of the key.
        samples, trajectories: SAMPLE_SCHEMA, TRAJECTORY_SCHEMA.
        counts: of futures and tokens.
        removed: by the grammar.
    """

    risks: list[pl.DataFrame] = field(default_factory=list)
    notes: list[pl.DataFrame] = field(default_factory=list)
    curves: list[pl.DataFrame] = field(default_factory=list)
    samples: list[pl.DataFrame] = field(default_factory=list)
    trajectories: list[pl.DataFrame] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    removed: Removed = field(default_factory=Removed)

    def note(self, task: str, moments: Sequence[int], note: str) -> None:
        """Say the same of these prediction times."""
        self.notes.append(pl.DataFrame({"task": [task] * len(moments), "_moment": moments, "note": [note] * len(moments)}, schema=_NOTE_TYPES))

    def add(self, other: Found) -> None:
        """What others have told as well."""
        for name in _FRAMES:
            getattr(self, name).extend(getattr(other, name))
        self.counts.update(other.counts)
        self.removed.add(other.removed)


@dataclass
class Journal:
    """The folder.

    Attributes:
        folder: of all forecasts that have this output; this one's is inside, made when the first pool is done.
        key: fingerprint of all that decides the forecast.
        share: (i, n): of pools not done yet draw those with number = i modulo n; the others are somebody else's.
        pools_read: pools that were there already, from an earlier try or other shares.
    """

    folder: Path
    key: str
    share: tuple[int, int] = (0, 1)
    pools_read: int = field(default=0, init=False)

    def pool_size(self, moments: int, most: int) -> int:
        """Prediction times per pool: `most`, or fewer, so that each share has a pool; as before where pools are kept that do.

        Args:
            moments: prediction times in all.
            most: of a pool.
        """
        parts = self.share[1]
        kept = Counter(self._sizes())
        fitting = [size for size in kept if -(-moments // size) >= min(parts, moments)]
        return max(fitting, key=lambda size: (kept[size] * size, size), default=min(most, max(moments // parts, 1)))

    def kept(self) -> int:
        """Pools of this forecast that are there, whoever drew them."""
        return len(self._sizes())

    def mine(self, number: int) -> bool:
        """Is it this process that draws the pool?"""
        return number % self.share[1] == self.share[0]

    def read(self, size: int, number: int) -> Found | None:
        """What a pool told, if it is done.

        Raises:
            StorageError: the disk cannot be read, or the folder is none.
        """
        path = self._path(size, number)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"could not read {path}: {error.strerror or error}") from error
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                found = _told(archive)
        except _DAMAGE:
            return None
        self.pools_read += 1
        return found

    def write(self, size: int, number: int, found: Found) -> None:
        """Keep what a pool told.

        Raises:
            StorageError: the disk is full, or the folder cannot be made.
        """
        members = {name: _parquet(pl.concat(getattr(found, name))) for name in _FRAMES if getattr(found, name)}
        sums = {name: _checksum(content) for name, content in members.items()}
        facts = json.dumps({"counts": dict(found.counts), "removed": asdict(found.removed), "frames": sums}).encode()
        with atomic_path(self._path(size, number), force=True) as partial, zipfile.ZipFile(partial, "w") as archive:
            for name, content in {_FACTS: facts, _SUM: _checksum(facts).encode(), **members}.items():
                archive.writestr(name, content)

    def clear(self) -> None:
        """The forecast is whole: take its pools away, and nobody else's."""
        shutil.rmtree(self._own, ignore_errors=True)
        with suppress(OSError):  # pools of others are in it, or it is gone
            self.folder.rmdir()

    def others(self) -> int:
        """Bytes that pools of other forecasts with the same output take; they are never used here."""
        found = 0
        for folder, _, names in os.walk(self.folder):
            for name in names if Path(folder) != self._own else ():
                with suppress(FileNotFoundError):  # they may be at work, and finish
                    found += Path(folder, name).stat().st_size
        return found

    def _sizes(self) -> list[int]:
        """Prediction times of each pool that is there."""
        return [int(found[1]) for file in self._own.glob("pool-*") if (found := _FILE.fullmatch(file.name)) is not None]

    @property
    def _own(self) -> Path:
        return self.folder / self.key

    def _path(self, size: int, number: int) -> Path:
        return self._own / f"pool-{size}-{number:06}.zip"


def _told(archive: zipfile.ZipFile) -> Found:
    """What a pool's archive holds. Raises one of `_DAMAGE` where it does not hold what was written."""
    content = archive.read(_FACTS)
    _check(_FACTS, content, archive.read(_SUM).decode("ascii"))
    facts = json.loads(content)
    frames: dict[str, list[pl.DataFrame]] = {name: [] for name in _FRAMES}
    for name, checksum in facts["frames"].items():
        content = archive.read(name)
        _check(name, content, checksum)
        frames[name] = [pl.read_parquet(io.BytesIO(content))]
    return Found(**frames, counts=Counter(facts["counts"]), removed=Removed(**facts["removed"]))


def _check(name: str, content: bytes, checksum: str) -> None:
    if _checksum(content) != checksum:
        raise ValueError(f"{name} is not what was written")


def _checksum(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _parquet(frame: pl.DataFrame) -> bytes:
    written = io.BytesIO()
    frame.write_parquet(written)
    return written.getvalue()
