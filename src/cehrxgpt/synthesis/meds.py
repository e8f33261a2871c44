"""EventTables -> a MEDS event data set, as `ingest` makes them: shards, metadata, splits. All subjects are in one split, `train`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

import cehrxgpt
from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path


def write_meds(
    events: Iterable[pl.DataFrame],
    out: str | Path,
    *,
    names: Mapping[str, str] | None = None,
    description: str = "Written by cehrxgpt",
    calendar: str = "true",
    force: bool = False,
) -> dict[str, Any]:
    """Write chunks of an EventTable, one shard each, as a folder that is there whole or not at all.

    Args:
        events: chunks; a subject lives in one.
        out: the folder to make.
        names: code -> readable name.
        description: for `metadata/dataset.json`.
        calendar: `true` | `shifted`.
        force: replace an existing folder.

    Returns:
        `subjects`, `events`, `shards`, and `events_by_origin`.

    Raises:
        OutputExistsError, StorageError: see `atomic.atomic_path`.
    """
    counts: Counter[str] = Counter()
    origins: Counter[str] = Counter()
    codes: dict[str, str | None] = {}
    subjects: list[pl.Series] = []
    with atomic_path(out, force=force, folder=True) as folder:
        shards = folder / "data" / s.TRAIN
        shards.mkdir(parents=True)
        (folder / "metadata").mkdir()
        for number, frame in enumerate(events):
            frame.write_parquet(shards / f"{number}.parquet")
            counts.update({"events": frame.height, "shards": 1})
            origins.update({origin or "none": count for origin, count in frame.group_by("origin").len().iter_rows()})
            subjects.append(frame["subject_id"].unique(maintain_order=True))
            codes.update(frame.select("code", "origin").unique(maintain_order=True).iter_rows())
        ids = pl.concat(subjects).sort()
        split = pl.DataFrame({"subject_id": ids, "split": [s.TRAIN] * len(ids)}, schema={"subject_id": pl.Int64, "split": pl.String})
        split.write_parquet(folder / "metadata" / "subject_splits.parquet")
        _code_table(codes, names or {}).write_parquet(folder / "metadata" / "codes.parquet")
        facts = {
            "dataset_name": "cehrxgpt synthetic",
            "description": description,
            "etl_name": "cehrxgpt",
            "etl_version": cehrxgpt.__version__,
            "cehrxgpt": {"format": "synthetic", "calendar": calendar, "observation_policy": "drawn"},
        }
        (folder / "metadata" / "dataset.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return {"subjects": len(ids), "events": counts["events"], "shards": counts["shards"], "events_by_origin": dict(sorted(origins.items()))}


def _code_table(codes: Mapping[str, str | None], names: Mapping[str, str]) -> pl.DataFrame:
    rows = [(code, names.get(code), None, codes[code]) for code in sorted(codes)]
    schema: dict[str, Any] = {"code": pl.String, "description": pl.String, "parent_codes": pl.List(pl.String), "origin": pl.String}
    return pl.DataFrame(rows, schema=schema, orient="row")
