"""Is a folder of OMOP tables sound? Plain SQL over the Parquet files, sharing no code with the writer that it checks."""

from __future__ import annotations

from pathlib import Path

import duckdb

from cehrxgpt.errors import SourceError

_KEYS = {
    "person": "person_id",
    "observation_period": "observation_period_id",
    "visit_occurrence": "visit_occurrence_id",
    "visit_detail": "visit_detail_id",
    "condition_occurrence": "condition_occurrence_id",
    "drug_exposure": "drug_exposure_id",
    "procedure_occurrence": "procedure_occurrence_id",
    "device_exposure": "device_exposure_id",
    "measurement": "measurement_id",
    "observation": "observation_id",
    "death": "person_id",
    "concept": "concept_id",
}
# table -> (start date, end date or None)
_DATES: dict[str, tuple[str, str | None]] = {
    "visit_occurrence": ("visit_start_date", "visit_end_date"),
    "visit_detail": ("visit_detail_start_date", "visit_detail_end_date"),
    "condition_occurrence": ("condition_start_date", "condition_end_date"),
    "drug_exposure": ("drug_exposure_start_date", "drug_exposure_end_date"),
    "procedure_occurrence": ("procedure_date", "procedure_end_date"),
    "device_exposure": ("device_exposure_start_date", "device_exposure_end_date"),
    "measurement": ("measurement_date", None),
    "observation": ("observation_date", None),
}


def _queries(tables: set[str]) -> dict[str, str]:
    """name of the problem -> a query that counts its rows."""
    queries: dict[str, str] = {}
    for table in sorted(tables & set(_KEYS)):
        key = _KEYS[table]
        queries[f"{table}: repeated or null {key}"] = f"select count(*) - count(distinct {key}) from {table}"
        if table not in ("person", "concept"):
            queries[f"{table}: person_id not in person"] = (
                f"select count(*) from {table} t where not exists (select 1 from person p where p.person_id = t.person_id)"
            )
    for table in sorted(tables & set(_DATES)):
        start, end = _DATES[table]
        last = f"coalesce({end}, {start})" if end else start
        queries[f"{table}: no {start}"] = f"select count(*) from {table} where {start} is null"
        if end:
            queries[f"{table}: {end} before {start}"] = f"select count(*) from {table} where {end} < {start}"
        if table != "visit_occurrence":
            queries[f"{table}: visit of nobody or of another person"] = (
                f"select count(*) from {table} t where visit_occurrence_id is not null and not exists (select 1 from visit_occurrence v "
                "where v.visit_occurrence_id = t.visit_occurrence_id and v.person_id = t.person_id)"
            )
        queries[f"{table}: after death"] = f"select count(*) from {table} t join death d using (person_id) where {last} > d.death_date"
        moment = f"{start}time"
        queries[f"{table}: after the minute of death"] = (
            f"select count(*) from {table} t join death d using (person_id) where t.{moment} > d.death_datetime"
        )
        queries[f"{table}: outside every observation period"] = (
            f"select count(*) from {table} t where not exists (select 1 from observation_period o where o.person_id = t.person_id "
            f"and t.{start} between o.observation_period_start_date and o.observation_period_end_date)"
        )
        queries[f"{table}: before birth"] = (
            f"select count(*) from {table} t join person p using (person_id) where p.year_of_birth is not null "
            f"and t.{start} < make_date(p.year_of_birth, coalesce(p.month_of_birth, 1), coalesce(p.day_of_birth, 1))"
        )
    if "visit_detail" in tables:
        queries["visit_detail: without a visit"] = "select count(*) from visit_detail where visit_occurrence_id is null"
    if "observation_period" in tables:
        queries["observation_period: ends before it starts"] = (
            "select count(*) from observation_period where observation_period_end_date < observation_period_start_date "
            "or observation_period_end_date is null or observation_period_start_date is null"
        )
    return queries


def check_omop(folder: str | Path) -> dict[str, int]:
    """Count what is wrong in a folder of OMOP Parquet tables: keys, foreign keys, order in time, events after death.

    Returns:
        problem -> rows; empty if the tables are sound.

    Raises:
        SourceError: no `person.parquet` in the folder.
    """
    folder = Path(folder)
    paths = {path.stem: path for path in folder.glob("*.parquet")}
    if "person" not in paths:
        raise SourceError(f"{folder}: no person.parquet; expected OMOP tables as written by synthesize")
    with duckdb.connect() as database:
        for table, path in paths.items():
            database.from_parquet(str(path)).create_view(table)
        counts = {name: database.execute(query).fetchone() for name, query in _queries(set(paths)).items()}
    return {name: int(row[0]) for name, row in counts.items() if row and row[0]}
