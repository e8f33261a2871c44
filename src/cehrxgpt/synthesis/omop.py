"""EventTable -> OMOP CDM 5.4 tables as Parquet: the only writer that knows OMOP's columns.

It takes any valid EventTable, generated or real, chunk by chunk (each chunk holds whole subjects), so memory is bounded by the
largest chunk. Every row that comes in is either a row (or a column) of a table or is counted under `dropped`: nothing vanishes.

    where a row goes     `origin` (the table it came from), else the code's prefix; else `observation`, counted as `unmapped`
    stays                visits, and in them visit details: intensive care and moves to wards; a detail without a visit is an observation, counted
    concept              `<table>/<concept_id>`; everything else is concept 0 with the code as source value, counted as `concept_zero`
    keys                 numbered through in each table; `person_id` is the subject id
    dates without times  `time_precision` day leaves the `_datetime` column null, so that a reader sees what was known
    death                ends everything: later rows are dropped, ends that reach past it are moved to it; both counted
    observation periods  START/END rows in pairs; widened where an event lies outside of them; from first to last event if there are none

`docs/synthesis.md` says what a round trip through `ingest` gives back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow.parquet as pq

from cehrxgpt import schema as s
from cehrxgpt.atomic import atomic_path
from cehrxgpt.events import EventDataset, conform, rank_expression
from cehrxgpt.synthesis import cdm
from cehrxgpt.synthesis.account import Account
from cehrxgpt.synthesis.clinical import clinical
from cehrxgpt.synthesis.columns import dated, fill
from cehrxgpt.synthesis.persons import end_at_death, observation_period, person
from cehrxgpt.synthesis.stays import visit_detail, visit_occurrence


def _convert(events: pl.DataFrame, account: Account, drug_days: Mapping[str, int]) -> dict[str, pl.DataFrame]:
    """One chunk of whole subjects to tables."""
    account.counts["events/read"] += events.height
    events = end_at_death(events, account)
    rank = rank_expression()
    fixed = pl.any_horizontal(pl.col("code").str.starts_with(p) for p in (s.GENDER_PREFIX, s.RACE_PREFIX, s.ETHNICITY_PREFIX))
    events = account.drop(events, pl.col("time").is_not_null() | fixed, "static_without_place")
    deaths = events.filter(pl.col("code") == s.DEATH)
    first = deaths.unique("subject_id", keep="first", maintain_order=True)
    account.counts["dropped/repeated_death"] += deaths.height - first.height
    died = first.select(pl.col("subject_id").alias("person_id"), *dated("death"), pl.lit(cdm.EHR_TYPE).alias("death_type_concept_id"))
    visits, index = visit_occurrence(events, account)
    details, others = visit_detail(events.filter(rank == s.RANK_CLINICAL), index, account)
    return {
        "person": person(events, account),
        "observation_period": observation_period(events, account),
        "visit_occurrence": visits,
        "visit_detail": details,
        "death": fill(died, "death"),
        **clinical(others, index, drug_days, account),
    }


def _concept_table(account: Account, names: Mapping[str, str]) -> pl.DataFrame:
    """The concepts used whose name is known."""
    known = [(concept, names[code], domain) for concept, (code, domain) in sorted(account.concepts.items()) if names.get(code)]
    frame = pl.DataFrame(known, schema={"concept_id": pl.Int64, "concept_name": pl.String, "domain_id": pl.String}, orient="row")
    frame = frame.with_columns(
        pl.lit("S").alias("standard_concept"),
        pl.col("concept_id").cast(pl.String).alias("concept_code"),
        pl.lit("None").alias("vocabulary_id"),
        pl.lit("Undefined").alias("concept_class_id"),
        pl.lit(date(1970, 1, 1)).alias("valid_start_date"),
        pl.lit(date(2099, 12, 31)).alias("valid_end_date"),
    )
    return fill(frame, "concept")


def _chunks(events: EventDataset | pl.DataFrame | Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    if isinstance(events, EventDataset):
        yield from (frame for _, frame in events.iter_shards())
    elif isinstance(events, pl.DataFrame):
        yield conform(events)
    else:
        yield from (conform(frame) for frame in events)


def write_omop(
    events: EventDataset | pl.DataFrame | Iterable[pl.DataFrame],
    out: str | Path,
    *,
    names: Mapping[str, str] | None = None,
    drug_days: Mapping[str, int] | None = None,
    source_name: str = "cehrxgpt",
    description: str = "Written by cehrxgpt",
    force: bool = False,
) -> dict[str, Any]:
    """Write OMOP CDM 5.4 tables, one Parquet file each, as a folder that is there whole or not at all.

    Args:
        events: EventTable, or chunks of it; a subject lives in one chunk.
        out: the folder to make.
        names: code -> readable name, for the `concept` table (a data set's own are taken if it is given).
        drug_days: drug code -> days it is usually taken, first and last counted: the standard wants an end of every drug, and one without
            an end of its own gets this (one day where the code is not here); `verbatim_end_date` stays null then.
        source_name, description: for `cdm_source`.
        force: replace an existing folder.

    Returns:
        Counts as plain JSON: `rows` per table; `events` read; `dropped` and `changed` by reason; `concept_zero` per table.
        `events.read` = rows placed + the sum of `dropped`.

    Raises:
        OutputExistsError, StorageError: see `atomic.atomic_path`.
    """
    if names is None:
        names = events.names() if isinstance(events, EventDataset) else {}
    account = Account()
    rows: Counter[str] = Counter()
    with atomic_path(out, force=force, folder=True) as folder:
        writers: dict[str, pq.ParquetWriter] = {}
        try:

            def write(table: str, frame: pl.DataFrame) -> None:
                arrow = frame.to_arrow()
                if table not in writers:
                    writers[table] = pq.ParquetWriter(folder / f"{table}.parquet", arrow.schema, compression="zstd")
                writers[table].write_table(arrow)
                rows[table] += frame.height

            for table, columns in cdm.TABLES.items():
                if table not in ("concept", "cdm_source"):
                    write(table, pl.DataFrame(schema=columns))  # a table without rows is still a table
            for chunk in _chunks(events):
                for table, frame in _convert(chunk, account, drug_days or {}).items():
                    write(table, frame)
            write("concept", _concept_table(account, names))
            write("cdm_source", _cdm_source(source_name, description))
        finally:
            for writer in writers.values():
                writer.close()
    return _summary(rows, account.counts)


def _cdm_source(name: str, description: str) -> pl.DataFrame:
    # The release dates are fixed: a run with the same seed gives the same bytes.
    facts = {
        "cdm_source_name": name,
        "cdm_source_abbreviation": name[:25],
        "cdm_holder": "cehrxgpt",
        "source_description": description,
        "source_release_date": date(1970, 1, 1),
        "cdm_release_date": date(1970, 1, 1),
        "cdm_version": cdm.CDM_VERSION,
        "cdm_version_concept_id": cdm.CDM_VERSION_CONCEPT,
        "vocabulary_version": "none",
    }
    return fill(pl.DataFrame([facts]), "cdm_source")


def _summary(rows: Counter[str], counts: Counter[str]) -> dict[str, Any]:
    summary: dict[str, Any] = {"rows": dict(rows), "events": counts["events/read"], "dropped": {}, "changed": {}, "concept_zero": {}}
    for key, count in sorted(counts.items()):
        group, _, reason = key.partition("/")
        if group in summary and group != "events" and count:
            summary[group][reason] = count
    return summary
