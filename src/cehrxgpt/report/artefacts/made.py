"""Where an artefact came from: the manifest that names it, else when it was last written and how large it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cehrxgpt.report.artefacts.artefact import Pairs, size
from cehrxgpt.report.markup import duration, is_number
from cehrxgpt.report.sections.data import flatten

_SETTINGS = 8


def made_from(path: Path) -> Pairs:
    """(name, value) pairs: stage, inputs, settings, version, when, size."""
    manifest = _manifest(path) or {}
    found: Pairs = []
    if manifest.get("stage"):
        found.append(("stage", manifest["stage"]))
    inputs = manifest.get("inputs")
    if isinstance(inputs, dict) and inputs:
        found.append(("inputs", ", ".join(f"{name} ({key})" for name, key in inputs.items())))
    settings = [f"{name} {value}" for name, value in flatten(manifest.get("settings"), depth=2) if not isinstance(value, str) or len(value) < 40]
    if settings:
        rest = len(settings) - _SETTINGS
        found.append(("settings", ", ".join(settings[:_SETTINGS]) + (f", and {rest} more" if rest > 0 else "")))
    versions = manifest.get("versions")
    version = versions.get("cehrxgpt") if isinstance(versions, dict) else _etl_version(path)
    if version:
        found.append(("by", f"cehrxgpt {version}"))
    if is_number(manifest.get("seconds")):
        found.append(("in", duration(manifest["seconds"])))
    written, total = _on_disk(path)
    if written is not None:
        found.append(("last written", written))
        found.append(("on disk", size(total)))
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _manifest(path: Path) -> dict[str, Any] | None:
    """The artefact's own manifest, else the one of the run around it that names it among its outputs."""
    if path.is_dir() and (own := _read(path / "manifest.json")) is not None:
        return own
    top = path.resolve()
    for _ in range(3):
        for candidate in sorted((top.parent / "manifests").glob("*.json")):
            manifest = _read(candidate)
            if manifest is not None and top.name in (manifest.get("outputs") or {}):
                return manifest
        top = top.parent
    return None


def _etl_version(path: Path) -> str | None:
    about = _read(path / "metadata" / "dataset.json") or {}
    return str(about["etl_version"]) if about.get("etl_name") == "cehrxgpt" and about.get("etl_version") else None


def _on_disk(path: Path) -> tuple[datetime | None, int]:
    """When its newest file was written, and the bytes of all its files."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
    stats = [file.stat() for file in files]
    if not stats:
        return None, 0
    newest = datetime.fromtimestamp(max(one.st_mtime for one in stats), tz=UTC)
    return newest.replace(tzinfo=None), sum(one.st_size for one in stats)
