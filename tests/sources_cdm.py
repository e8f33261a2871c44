"""Small OMOP tables for the tests of `sources`: what a test does not say takes a plain default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt.events import EventDataset, validate_events
from cehrxgpt.sources import IngestConfig, ingest

Rows = list[dict[str, Any]]


def person(identifier: int, **more: Any) -> dict[str, Any]:
    row = {"person_id": identifier, "gender_concept_id": 8507, "year_of_birth": 1950, "month_of_birth": 3, "day_of_birth": 2, "race_concept_id": 8527}
    return {**row, "ethnicity_concept_id": 0, **more}


def visit(identifier: int, subject: int, start: str, end: str | None, concept: int = 9201, **more: Any) -> dict[str, Any]:
    row = {"visit_occurrence_id": identifier, "person_id": subject, "visit_concept_id": concept}
    row |= {"visit_start_date": start[:10], "visit_start_datetime": start, "visit_end_date": end and end[:10], "visit_end_datetime": end}
    return {**row, "discharged_to_concept_id": 8536, **more}


def condition(identifier: int, subject: int, time: str, visit_id: int | None = None, concept: int = 316139, **more: Any) -> dict[str, Any]:
    row = {"condition_occurrence_id": identifier, "person_id": subject, "condition_concept_id": concept, "condition_start_date": time[:10]}
    row |= {"condition_start_datetime": time, "condition_type_concept_id": 32817, "visit_occurrence_id": visit_id, "condition_source_value": "HF"}
    return {**row, **more}


def measurement(identifier: int, subject: int, time: str, value: float | None, **more: Any) -> dict[str, Any]:
    row = {"measurement_id": identifier, "person_id": subject, "measurement_concept_id": 3004410, "measurement_date": time[:10]}
    row |= {"measurement_datetime": time, "value_as_number": value, "unit_concept_id": 8554, "visit_occurrence_id": None}
    return {**row, **more}


def base(subjects: tuple[int, ...] = (1, 2, 3)) -> dict[str, Rows]:
    """Three people with one precise event each, so that splits can be filled and midnight is a time."""
    times = [f"2010-01-{day:02d} 10:30:00" for day in range(1, 13)]
    events = [condition(100 * number + 1000 + index, subject, time) for number, subject in enumerate(subjects) for index, time in enumerate(times)]
    return {"person": [person(subject) for subject in subjects], "condition_occurrence": events}


def write_cdm(folder: Path, tables: dict[str, Rows], *, suffix: str = ".csv", upper: bool = False, prefix: str = "") -> Path:
    """Write the tables as .csv, .csv.gz, .tsv or .parquet; `upper` writes names of files and columns in upper case."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        frame = pl.DataFrame(rows, infer_schema_length=None)
        if upper:
            frame = frame.rename(str.upper)
        path = folder / ((prefix + (name.upper() if upper else name)) + suffix)
        if suffix == ".parquet":
            frame.write_parquet(path)
        else:
            text = frame.write_csv(separator="\t" if "tsv" in suffix else ",")
            if suffix.endswith(".gz"):
                import gzip

                path.write_bytes(gzip.compress(text.encode()))
            else:
                path.write_text(text, encoding="utf-8")
    return folder


def run(source: str | Path, out: Path, **config: Any) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Ingest; validate every shard and the book; return all events and ingest.json."""
    dataset = ingest(source, out, IngestConfig(**{"threads": 1, **config}))
    check_dataset(dataset)
    return dataset.read().sort("subject_id", maintain_order=True), json.loads((out / "ingest.json").read_text(encoding="utf-8"))


def check_dataset(dataset: EventDataset) -> None:
    """Every shard keeps the invariants, no subject is in two shards, and the book adds up with what was written."""
    seen: set[int] = set()
    total = 0
    for split, shard in dataset.iter_shards():
        validate_events(shard, where=split)
        subjects = set(shard["subject_id"].unique().to_list())
        assert not subjects & seen
        seen |= subjects
        total += shard.height
    report = json.loads((dataset.root / "ingest.json").read_text(encoding="utf-8"))
    assert report["events"]["total"] == total
    assert report["subjects"]["total"] == len(seen) == dataset.subject_splits.height
    for name, row in report["tables"].items():
        assert row["read"] == row["kept"] + sum(row["dropped"].values()), name
    derived = sum(number for kinds in report["derived"].values() for number in kinds.values())
    assert sum(row["kept"] for row in report["tables"].values()) + derived == total
    assert not (dataset.root / ".work").exists()


def rows_of(events: pl.DataFrame, subject: int, code: str) -> list[dict[str, Any]]:
    """The subject's rows with that code."""
    return events.filter((pl.col("subject_id") == subject) & (pl.col("code") == code)).to_dicts()
