"""Outputs that are there whole or not at all.

Everything is written beside its destination and renamed into place, so that a crash, a full disk or `kill -9` never leaves half
a result under the final name. What a killed run leaves is a sibling named `.<name>.partial-<pid>`; the next run removes it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cehrxgpt.errors import OutputExistsError, StorageError

_FAILED_WRITES = ("underlying IO error", "transport error", "os error")
_FULL_BYTES = 1 << 20


def refuse_existing(out: Path, *, force: bool, inputs: Iterable[Path] = (), closed: bool = True) -> None:
    """Raise `OutputExistsError` if `out` is there and `force` is not given, if one of the inputs is, or lies in, what it would replace, or if it
    would stand inside an input that is `closed`: a folder of our own making, which stays as it is."""
    if out.is_symlink() and not out.is_file():
        raise OutputExistsError(f"{out} is a symbolic link, which cannot be replaced by a folder; give the folder it points to, or another --out")
    if out.exists() and not force:
        raise OutputExistsError(f"{out} exists already; give --force to replace it, or another --out")
    for given in inputs:
        if given.exists() and given.resolve().is_relative_to(out.resolve()):
            raise OutputExistsError(f"{out}: the input {given} lies inside the output, which would replace it; give another --out")
        if closed and given.is_dir() and out.resolve().is_relative_to(given.resolve()):
            raise OutputExistsError(f"{out} lies inside the input {given}, which stays as it is; give another --out")


def _why_not_written(error: Exception, folder: Path) -> str | None:
    """What the machine says where it failed, or what Polars makes of it, which raises no `OSError` then; None where it did not fail."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    if not (type(error).__module__.startswith("polars") and any(word in str(error) for word in _FAILED_WRITES)):
        return None
    return os.strerror(errno.ENOSPC) if shutil.disk_usage(folder).free < _FULL_BYTES else "the disk does not take it"


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif path.exists() or path.is_symlink():
        path.unlink()


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _partial_beside(out: Path) -> Path:
    """A fresh path beside `out`; leftovers of processes that are gone are removed."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out.parent}: {error.strerror}") from error
    # A kill between the two renames of `_replace` leaves the former folder under another name: put it back, or drop it if it was replaced.
    for former in out.parent.glob(f".{out.name}.old-*"):
        if _alive(former.name.rsplit("-", 1)[-1]):
            continue
        if out.exists():
            _remove(former)
        else:
            os.rename(former, out)
    for old in out.parent.glob(f".{out.name}.partial-*"):
        if not _alive(old.name.rsplit("-", 1)[-1]) or old.name.endswith(f"-{os.getpid()}"):
            _remove(old)
    return out.parent / f".{out.name}.partial-{os.getpid()}"


def _replace(partial: Path, out: Path, *, force: bool) -> None:
    if out.exists() and not force:
        raise OutputExistsError(f"{out} was made by another run in the meantime; it stays as it is (--force would replace it)")
    if out.is_dir() and not out.is_symlink():
        # A non-empty folder cannot be replaced by one rename: move the old one aside first, drop it last.
        old = out.parent / f".{out.name}.old-{os.getpid()}"
        _remove(old)
        os.rename(out, old)
        os.rename(partial, out)
        _remove(old)
    else:
        os.replace(partial, out)


@contextmanager
def atomic_path(out: str | Path, *, force: bool = False, folder: bool = False) -> Iterator[Path]:
    """Yield a path to write to; rename it to `out` when the block ends well, remove it when it does not.

    Args:
        out: the final file or folder; its parents are made.
        force: replace what is there; otherwise an existing `out` raises `OutputExistsError` before anything is written.
        folder: make the yielded path a folder.

    Raises:
        OutputExistsError: `out` exists and `force` is false, before the block or at its end.
        StorageError: the machine failed (disk full, read-only, ...); nothing is left behind.
    """
    out = Path(out)
    partial = _partial_beside(out)
    refuse_existing(out, force=force)
    try:
        if folder:
            partial.mkdir()
        yield partial
        _replace(partial, out, force=force)
    except Exception as error:
        reason = _why_not_written(error, out.parent)
        if reason is None:
            raise
        raise StorageError(f"could not write {out}: {reason}; nothing was left behind") from error
    finally:
        _remove(partial)


def write_json(out: str | Path, value: Any, *, force: bool = True) -> None:
    """Write `value` as indented JSON, atomically. Keys keep their order; NaN and infinity are refused."""
    with atomic_path(out, force=force) as partial:
        partial.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
