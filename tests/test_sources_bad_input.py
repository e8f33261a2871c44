"""Bad input: one clear line that names the file and the column, and nothing half-written."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from cehrxgpt import sources
from cehrxgpt.errors import CehrxgptError, ConfigError, InputError, OutputExistsError, StorageError
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.sources import run as ingest_run
from cehrxgpt.sources.ledger import Ledger
from sources_cdm import base, condition, measurement, run, write_cdm


def empty(folder: Path) -> None:
    folder.mkdir()


def not_omop(folder: Path) -> None:
    folder.mkdir()
    (folder / "letters.csv").write_text("a,b\n1,2\n")


def no_such_column(folder: Path) -> None:
    tables = base()
    for row in tables["condition_occurrence"]:
        del row["condition_start_date"], row["condition_start_datetime"]
    write_cdm(folder, tables)


def text_id(folder: Path) -> None:
    tables = base()
    tables["condition_occurrence"] = [{**row, "person_id": "A-17"} for row in tables["condition_occurrence"]]
    write_cdm(folder, tables, suffix=".parquet")


def fractional_id(folder: Path) -> None:
    tables = base()
    tables["condition_occurrence"] = [{**row, "person_id": "1.5.2"} for row in tables["condition_occurrence"]]
    write_cdm(folder, tables)


def american_dates(folder: Path) -> None:
    tables = base()
    tables["condition_occurrence"] = [
        {**row, "condition_start_datetime": None, "condition_start_date": "01/02/2010"} for row in tables["condition_occurrence"]
    ]
    write_cdm(folder, tables)


def words_for_numbers(folder: Path) -> None:
    tables = base()
    tables["measurement"] = [{**measurement(1, 1, "2010-01-01 09:00:00", None), "value_as_number": "high"}]
    write_cdm(folder, tables)


def truncated_parquet(folder: Path) -> None:
    write_cdm(folder, base(), suffix=".parquet")
    path = folder / "condition_occurrence.parquet"
    path.write_bytes(path.read_bytes()[:-50])


def damaged_parquet(folder: Path) -> None:
    write_cdm(folder, base(), suffix=".parquet")
    path = folder / "condition_occurrence.parquet"
    content = bytearray(path.read_bytes())
    content[4:400] = bytes(396)
    path.write_bytes(bytes(content))


def truncated_gzip(folder: Path) -> None:
    write_cdm(folder, base(), suffix=".csv.gz")
    path = folder / "condition_occurrence.csv.gz"
    path.write_bytes(path.read_bytes()[:-30])


def not_gzip(folder: Path) -> None:
    write_cdm(folder, base(), suffix=".csv.gz")
    (folder / "condition_occurrence.csv.gz").write_text("person_id\n1\n")


def ragged_csv(folder: Path) -> None:
    write_cdm(folder, base())
    path = folder / "condition_occurrence.csv"
    path.write_text(path.read_text() + "SECRET,1,2\n")


def latin_csv(folder: Path) -> None:
    tables = base()
    tables["condition_occurrence"].append(condition(1, 1, "2010-01-01 10:00:00", concept=0, condition_source_value="Ménière"))
    write_cdm(folder, tables)
    path = folder / "condition_occurrence.csv"
    path.write_bytes(path.read_text(encoding="utf-8").encode("latin-1"))


def empty_csv(folder: Path) -> None:
    write_cdm(folder, base())
    (folder / "condition_occurrence.csv").write_text("")


def twice(folder: Path) -> None:
    write_cdm(folder, base())
    write_cdm(folder, base(), suffix=".parquet")


def only_headers(folder: Path) -> None:
    write_cdm(folder, base())
    for path in folder.glob("*.csv"):
        path.write_text(path.read_text().splitlines()[0] + "\n")


def strangers(folder: Path) -> None:
    tables = base()
    tables["person"] = [{**row, "person_id": row["person_id"] + 100} for row in tables["person"]]
    write_cdm(folder, tables)


def two_people(folder: Path) -> None:
    write_cdm(folder, base((1, 2)))


BAD: list[tuple[Callable[[Path], Any], str]] = [
    (empty, r"source: empty; expected OMOP tables"),
    (not_omop, r"neither OMOP nor MEDS \(it holds letters\.csv\); expected person\.csv"),
    (no_such_column, r"condition_occurrence\.csv: column 'condition_start_date' is missing"),
    (text_id, r"condition_occurrence\.parquet: column 'person_id' has 36 of 36 values that are not a whole number"),
    (fractional_id, r"condition_occurrence\.csv: column 'person_id' has 36 of 36 values that are not a whole number"),
    (american_dates, r"condition_occurrence\.csv: column 'condition_start_date' has 36 of 36 values that are not a date or time such as 2011-05-17"),
    (words_for_numbers, r"measurement\.csv: column 'value_as_number' has 1 of 1 values that are not a number"),
    (truncated_parquet, r"condition_occurrence\.parquet: cannot be read .*; expected a Parquet file"),
    (damaged_parquet, r"condition_occurrence\.parquet: cannot be read"),
    (truncated_gzip, r"condition_occurrence\.csv\.gz: cannot be read"),
    (not_gzip, r"condition_occurrence\.csv\.gz: cannot be read"),
    (ragged_csv, r"condition_occurrence\.csv: cannot be read \(a row has too many or too few columns at line 38\)"),
    (latin_csv, r"condition_occurrence\.csv: cannot be read \(not UTF-8 text"),
    (empty_csv, r"condition_occurrence\.csv: the file is empty"),
    (twice, r"2 files could be the table person \(person\.csv, person\.parquet\); keep one"),
    (only_headers, r"hold no row"),
    (strangers, r"no clinical event could be kept \(subject_not_in_person 36\)"),
    (two_people, r"2 subjects cannot fill the splits train, tuning, held_out"),
]


@pytest.mark.parametrize(("make", "message"), BAD, ids=[make.__name__ for make, _ in BAD])
def test_one_line_and_nothing_left(tmp_path: Path, make: Callable[[Path], Any], message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(InputError) as caught:
        ingest(tmp_path / "source", tmp_path / "out")
    text = str(caught.value)
    assert re.search(message, text), text
    assert "\n" not in text
    assert "SECRET" not in text
    assert caught.value.exit_status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_single_unreadable_values_are_counted(tmp_path: Path) -> None:
    tables = base()
    tables["measurement"] = [
        measurement(1, 1, "2010-01-01 09:00:00", 1.0),
        {**measurement(2, 1, "2010-01-02 09:00:00", None), "value_as_number": "high"},
    ]
    tables["measurement"].append({**measurement(3, 1, "2010-01-03 09:00:00", 2.0), "measurement_datetime": "soon", "measurement_date": None})
    tables["measurement"] = [{name: None if value is None else str(value) for name, value in row.items()} for row in tables["measurement"]]
    _, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert report["unreadable_values"] == {"measurement": {"measurement_datetime": 1, "value_as_number": 1}}
    assert report["tables"]["measurement"] == {"read": 3, "kept": 2, "dropped": {"no_date": 1}}


@pytest.mark.parametrize(("bad", "noted"), [(2, False), (3, True)])
def test_many_unreadable_dates_are_noted(tmp_path: Path, bad: int, noted: bool) -> None:
    """More than a fifth of a column's; the other date of a row serves."""
    tables = base()
    dates = ["01.02.2010"] * bad + ["2010-02-01"] * (10 - bad)
    tables["measurement"] = [
        {**measurement(number, 1, "2010-02-01 09:00:00", 1.0 + number), "measurement_date": day} for number, day in enumerate(dates, 1)
    ]
    _, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert report["unreadable_values"] == {"measurement": {"measurement_date": bad}}
    assert report["unreadable_dates"] == ({"measurement": {"measurement_date": [3, 10]}} if noted else {})
    assert report["notes"] == (["measurement: 3 of 10 values of measurement_date are no dates; they were set to null"] if noted else [])
    assert report["tables"]["measurement"]["kept"] == 10


def test_wrong_paths(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        ingest(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "one.csv").write_text("a\n")
    with pytest.raises(InputError, match="a single file; expected a folder, or a DuckDB file"):
        ingest(tmp_path / "one.csv", tmp_path / "out")
    (tmp_path / "fake.duckdb").write_text("not a database")
    with pytest.raises(InputError, match=r"fake\.duckdb: cannot be read"):
        ingest(tmp_path / "fake.duckdb", tmp_path / "out")


def test_an_output_is_never_replaced_unasked(tmp_path: Path) -> None:
    write_cdm(tmp_path / "cdm", base())
    run(tmp_path / "cdm", tmp_path / "out")
    with pytest.raises(OutputExistsError):
        ingest(tmp_path / "cdm", tmp_path / "out")
    ingest(tmp_path / "cdm", tmp_path / "out", force=True)
    with pytest.raises(InputError, match="lies inside the output, which would replace it"):
        ingest(tmp_path / "out", tmp_path / "out", force=True)


def test_a_failing_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cdm(tmp_path / "cdm", base())

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(StorageError, match="No space left on device"):
        ingest(tmp_path / "cdm", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["cdm"]


def test_a_lost_row_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_cdm(tmp_path / "cdm", base())
    real = ingest_run.canonicalise

    def forgetful(bucket: Any, rules: Any, ledger: Ledger) -> pl.DataFrame:
        bucket.events = bucket.events.head(-1)
        return real(bucket, rules, ledger)

    monkeypatch.setattr(ingest_run, "canonicalise", forgetful)
    with pytest.raises(CehrxgptError, match="lost count of table condition_occurrence: read 36, kept 35") as caught:
        ingest(tmp_path / "cdm", tmp_path / "out")
    assert caught.value.exit_status == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "wrong",
    [{"splits": {"train": 0.5}}, {"splits": {"dev": 1.0}}, {"threads": 0}, {"buckets": -1}, {"memory_limit_gib": 0.01}, {"date_only_share": 0.0}],
)
def test_settings_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IngestConfig(**wrong)


def test_latest_must_be_a_date(tmp_path: Path) -> None:
    write_cdm(tmp_path / "cdm", base())
    with pytest.raises(ConfigError, match="latest: 'soon' is not a date"):
        ingest(tmp_path / "cdm", tmp_path / "out", IngestConfig(latest="soon"))


def test_names_are_loaded_on_first_use() -> None:
    assert callable(sources.read_omop)
    with pytest.raises(AttributeError, match="it offers IngestConfig, ingest, read_meds, read_omop"):
        _ = sources.read_fhir


def test_progress_runs_to_its_end(tmp_path: Path) -> None:
    write_cdm(tmp_path / "cdm", base())
    seen: list[tuple[int, int, str]] = []
    ingest(tmp_path / "cdm", tmp_path / "out", progress=lambda done, total, what: seen.append((done, total, what)))
    done = [step for step, _, _ in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1]
    assert "staging condition_occurrence" in {what for _, _, what in seen}


def test_gzip_is_recognised_by_name(tmp_path: Path) -> None:
    write_cdm(tmp_path / "cdm", base(), suffix=".csv.gz")
    assert gzip.decompress((tmp_path / "cdm" / "person.csv.gz").read_bytes()).startswith(b"person_id")
    assert run(tmp_path / "cdm", tmp_path / "out")[1]["files"]["person"] == "person.csv.gz"


def test_schemas_of_a_duckdb_file(tmp_path: Path) -> None:
    """The same tables in two schemas are read from the one that is named; a folder has none."""
    path = tmp_path / "two.duckdb"
    with duckdb.connect(str(path)) as database:
        for schema in ("cdm_old", "cdm_new"):
            database.execute(f"CREATE SCHEMA {schema}")
            database.execute(
                f"CREATE TABLE {schema}.person AS SELECT unnest([1, 2, 3]) AS person_id, 8532 AS gender_concept_id, 1950 AS year_of_birth"
            )
            database.execute(
                f"CREATE TABLE {schema}.condition_occurrence AS SELECT 1 AS condition_occurrence_id, 1 AS person_id, 320128 AS condition_concept_id, "
                "DATE '2010-01-01' AS condition_start_date"
            )
    with pytest.raises(InputError, match="in the schemas cdm_new and cdm_old"):
        ingest(path, tmp_path / "out")
    with pytest.raises(InputError, match="no schema cmd with tables; there is cdm_new, cdm_old"):
        ingest(path, tmp_path / "out", IngestConfig(schema="cmd"))
    assert len(ingest(path, tmp_path / "out", IngestConfig(schema="cdm_new")).subject_splits) == 3
    with pytest.raises(InputError, match="a folder has no schemas"):
        ingest(tmp_path, tmp_path / "other", IngestConfig(schema="cdm_new"))
