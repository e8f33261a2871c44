"""Manifests: what a stage was made from, so that a rerun knows whether it still holds.

A manifest names the fingerprints of the inputs' contents, the resolved settings, the versions and the outputs with their sizes. A
stage is skipped only when all of that is unchanged; an output that was edited, truncated or removed makes it run again.
"""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime
from functools import cache
from glob import escape, glob
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cehrxgpt.atomic import write_json
from cehrxgpt.config import fingerprint, to_dict

_CHUNK_BYTES = 1 << 20
_PACKAGES = ("cehrxgpt", "torch", "numpy", "polars", "duckdb", "pyarrow", "scikit-learn", "lightgbm")


def versions() -> dict[str, str]:
    """Versions of ourselves and of the libraries that can change a result."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_fingerprint() -> str:
    """Sixteen hex digits of our own source: what is half done under one version of it is not gone on with under another."""
    digest, root = hashlib.blake2b(digest_size=8), Path(__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(str(file.relative_to(root)).encode() + file.read_bytes())
    return digest.hexdigest()


def files_of(path: Path) -> list[Path]:
    """A file, or all files of a folder in order, behind links too (which `Path.rglob` does not enter) and but for hidden ones."""
    if path.is_file():
        return [path]
    return sorted(file for file in map(Path, glob(f"{escape(str(path))}/**", recursive=True)) if file.is_file())


def content_fingerprint(path: Path) -> str:
    """Sixteen hex digits of names and contents of a file or of a folder's files; "absent" where there is nothing."""
    if not path.exists():
        return "absent"
    digest = hashlib.blake2b(digest_size=8)
    for file in files_of(path):
        digest.update(str(file.relative_to(path)).encode())
        with file.open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _sizes(path: Path) -> dict[str, int] | None:
    if not path.exists():
        return None
    return {str(file.relative_to(path)): file.stat().st_size for file in files_of(path)}


def describe(name: str, *, inputs: list[Path], settings: Any) -> dict[str, Any]:
    """What decides a stage's result: its name, settings, inputs' contents and our version."""
    facts = {
        "stage": name,
        "settings": to_dict(settings),
        "inputs": {path.name: content_fingerprint(path) for path in inputs},
        "versions": versions(),
    }
    return {**facts, "key": fingerprint(facts)}


def write(path: Path, facts: dict[str, Any], *, outputs: list[Path], figures: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Write a finished stage's manifest, atomically; returns it."""
    sizes = {output.name: _sizes(output) for output in outputs}
    finished = datetime.now(UTC).isoformat(timespec="seconds")
    manifest = {**facts, "outputs": sizes, "figures": figures, "seconds": round(seconds, 2), "finished": finished}
    write_json(path, manifest)
    return manifest


def still_holds(path: Path, facts: dict[str, Any], *, outputs: list[Path]) -> dict[str, Any] | None:
    """The manifest at `path` if it is of the same making and its outputs are as they were left; otherwise None."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    same_outputs = manifest.get("outputs") == {output.name: _sizes(output) for output in outputs}
    return manifest if manifest.get("key") == facts["key"] and same_outputs else None
