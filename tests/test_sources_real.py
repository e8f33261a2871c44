"""The open data sets: what the ingest says against independent SQL and against the counts of their README."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from cehrxgpt.events import EventDataset
from sources_cdm import run


def sql(query: str) -> Any:
    """First value of a query."""
    with duckdb.connect() as database:
        row = database.execute(query).fetchone()
    assert row is not None
    return row[0] if len(row) == 1 else row


def all_but_id(path: Path, identifier: str) -> int:
    """Distinct rows of a CSV apart from one column."""
    return sql(f"SELECT count(*) FROM (SELECT DISTINCT * EXCLUDE ({identifier}) FROM read_csv('{path}', all_varchar=true))")


CLINICAL = ("condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement", "observation")


def check_against_sql(folder: Path, report: dict[str, Any], pattern: str, upper: bool = False) -> None:
    """Rows read, and duplicates, of every clinical table."""
    for table in CLINICAL:
        path = folder / pattern.format(table.upper() if upper else table)
        if not path.exists():
            assert table not in report["tables"]
            continue
        row = report["tables"][table]
        assert row["read"] == sql(f"SELECT count(*) FROM read_csv('{path}', all_varchar=true)")
        assert row["read"] - row["dropped"].get("duplicate", 0) == all_but_id(path, f"{table}_id"), table


def test_synthea(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "synthea27nj_omop54"
    events, report = run(folder, tmp_path / "out")
    check_against_sql(folder, report, "{}.csv", upper=True)
    assert (report["subjects"]["total"], report["calendar"]) == (28, "true")
    assert (report["tables"]["visit_occurrence"]["read"], report["tables"]["measurement"]["read"]) == (1791, 10040)
    assert report["mended"]["visit_occurrence"]["day_visit_spanned_days"] == 12
    assert "visit_occurrence" in report["midnight_is_a_date_only_in"]
    assert events.filter(pl.col("numeric_value").is_not_null()).height == sql(
        f"SELECT count(*) FROM (SELECT DISTINCT * EXCLUDE (measurement_id) FROM read_csv('{folder}/MEASUREMENT.csv', all_varchar=true)) "
        "WHERE value_as_number <> ''"
    )
    assert set(events.filter(pl.col("code") == "MEDS_DEATH")["time"].dt.time().cast(pl.String).str.slice(0, 8)) == {"23:59:59"}
    assert EventDataset(tmp_path / "out").codes["description"].null_count() < 40


@pytest.mark.e2e
def test_mimic_omop(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "mimic_iv_demo_omop53"
    events, report = run(folder, tmp_path / "out")
    check_against_sql(folder, report, "{}.csv")
    assert (report["subjects"]["total"], report["calendar"]) == (100, "shifted")
    assert report["tables"]["procedure_occurrence"] == {"read": 18447, "kept": 7047, "dropped": {"duplicate": 11400}}
    assert events["subject_id"].min() < 0 < events["subject_id"].max()
    stays = sql(
        f"SELECT count(*) FROM read_csv('{folder}/visit_occurrence.csv') "
        "WHERE visit_concept_id IN (9201, 262) OR (visit_concept_id IN (8870, 581385, 8883) "
        "AND epoch(visit_end_datetime::TIMESTAMP) - epoch(visit_start_datetime::TIMESTAMP) > 86400)"
    )
    assert report["visits_recovered"]["inpatient"] == stays
    assert report["visits_recovered"]["total"] == 852
    later = events.filter((pl.col("origin") == "condition_occurrence") & (pl.col("available_time") > pl.col("time"))).height
    assert later - report["mended"]["condition_occurrence"]["moved_to_death"] == 3833  # the billing diagnoses
    assert report["tables_absent"] == ["measurement", "observation", "concept_ancestor"]
    assert report["files"]["concept"] == "2b_concept.csv"


@pytest.mark.slow
def test_gibleed(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "gibleed_omop53"
    _, report = run(folder, tmp_path / "out", buckets=3)
    check_against_sql(folder, report, "{}.csv.gz")
    assert report["subjects"]["total"] == 2694
    assert report["tables"]["observation_period"] == {"read": 5343, "kept": 2694, "dropped": {"subject_not_in_person": 2649}}
    # Links to visits that are not there, of all clinical rows but the duplicates.
    assert 213_000 < sum(row.get("unlinked_visit_absent", 0) for row in report["mended"].values()) <= 213_828
    assert report["visits_recovered"]["total"] == 1037
    codes = EventDataset(tmp_path / "out").codes
    assert codes.filter(pl.col("code") == "condition/192671")["parent_codes"][0].len() > 0


@pytest.mark.slow
def test_mimic_meds(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "mimic_iv_demo_meds"
    events, report = run(folder, tmp_path / "out", threads=2)
    assert (report["dialect"], report["split_policy"], report["calendar"]) == ("mimic", "own", "shifted")
    assert {name: report["subjects"][name] for name in ("train", "tuning", "held_out")} == {"train": 80, "tuning": 10, "held_out": 10}
    source = f"'{folder}/data/**/*.parquet'"
    for table, row in report["tables"].items():
        prefix = table.replace("'", "''")
        assert row["read"] == sql(f"SELECT count(*) FROM {source} WHERE split_part(code, '//', 1) = '{prefix}'"), table
    assert sum(row["read"] for row in report["tables"].values()) == 916_166
    assert report["visits_recovered"]["inpatient"] == 275
    assert report["tables"]["ED_REGISTRATION"]["dropped"] == {"merged_into_admission": 172}
    not_given = r"^MEDICATION//.*//(Not .*|Hold Dose|Delayed|Infusion Reconciliation Not Done)\s*$"
    assert report["tables"]["MEDICATION"]["dropped"]["not_an_exposure"] == sql(
        f"SELECT count(*) FROM {source} WHERE regexp_matches(code, '{not_given}')"
    )
    assert events.filter(pl.col("code").str.ends_with("//Not Given")).is_empty()
    lab = events.filter(pl.col("code") == "LAB//50912//mg/dL")
    assert set(lab["unit"]) == {"mg/dL"}
    again, _ = run(tmp_path / "out", tmp_path / "again", threads=2)
    assert again.equals(events)
