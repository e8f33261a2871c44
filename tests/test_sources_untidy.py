"""What untidy tables become: the events themselves, where counts alone would not tell (the counts are in test_sources_recount)."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pytest

from cehrxgpt.errors import SchemaError
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.timeline import Timeline, TimelineConfig, decode_histories
from sources_cdm import base, condition, rows_of, run, visit, write_cdm
from sources_untidy import UNTIDY


def times(events: pl.DataFrame, *concepts: int) -> list[str]:
    return [str(rows_of(events, 1, f"condition/{concept}")[0]["time"]) for concept in concepts]


def test_text_survives_every_form(tmp_path: Path) -> None:
    expected = {"condition/0/left\tside, two\nlines", 'condition/0/5" tube', "condition/0/Ménière; bilateral | old"}
    for name in ("tabs", "compressed_na"):
        events, _ = run(UNTIDY[name].write(tmp_path / name), tmp_path / f"out_{name}")
        assert set(events.filter(pl.col("code").str.starts_with("condition/0"))["code"]) == expected, name


def test_bare_quotes_of_vocabulary_downloads_stay(tmp_path: Path) -> None:
    write_cdm(tmp_path / "cdm", base())
    lines = ["concept_id\tconcept_name", '1\tthe "old" one', '2\t"Quoted" first', '316139\tHeart "failure']
    (tmp_path / "cdm" / "CONCEPT.tsv").write_text("\n".join(lines) + "\n")
    ingest(tmp_path / "cdm", tmp_path / "out", IngestConfig(threads=1))
    codes = pl.read_parquet(tmp_path / "out" / "metadata" / "codes.parquet")
    assert codes.filter(pl.col("code") == "condition/316139")["description"].to_list() == ['Heart "failure']


def test_time_zones(tmp_path: Path) -> None:
    """An offset is dropped, an instant read in UTC; with the hospital's zone both come to its clock. All are counted."""
    folder = UNTIDY["offsets"].write(tmp_path / "offsets")
    events, report = run(folder, tmp_path / "one")
    assert times(events, 1, 2, 3) == ["2010-05-03 23:30:00", "2010-05-04 10:00:00", "2010-05-04 10:00:00"]
    assert report["times_with_a_zone"] == {"condition_occurrence": {"condition_start_datetime": 3}}
    assert report["notes"] == [
        "condition_occurrence: 3 times have a zone; offsets were dropped, instants read in UTC; --time-zone names the hospital's clock"
    ]
    events, report = run(folder, tmp_path / "two", time_zone="America/New_York")
    assert (report["time_zone"], report["notes"]) == ("America/New_York", [])
    assert times(events, 1, 2, 3, 316139) == ["2010-05-04 00:30:00", "2010-05-04 06:00:00", "2010-05-04 00:30:00", "2010-01-01 10:30:00"]
    folder = UNTIDY["instants"].write(tmp_path / "instants")
    events, report = run(folder, tmp_path / "three")
    assert times(events, 316139) == ["2010-01-01 15:30:00"]
    assert report["times_with_a_zone"] == {"condition_occurrence": {"condition_start_datetime": 36}}
    events, _ = run(folder, tmp_path / "four", time_zone="America/New_York")
    assert times(events, 316139) == ["2010-01-01 10:30:00"]
    with pytest.raises(ValueError, match="time_zone: 'Mars' is not known"):
        IngestConfig(time_zone="Mars")


def test_a_fraction_is_no_id(tmp_path: Path) -> None:
    """201826.0 and 2.01826e5 are whole numbers; 1.5 is none, although a database would round it."""
    tables = base()
    for row, text in zip(tables["condition_occurrence"], ["201826.0", "2.01826e5", "201826", "0201826"], strict=False):
        row["condition_concept_id"] = text
    for row in tables["condition_occurrence"]:
        row["condition_concept_id"] = str(row["condition_concept_id"])
    events, _ = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert len(rows_of(events, 1, "condition/201826")) == 4
    for name, form in (("text", str), ("number", float)):
        tables["condition_occurrence"] = [{**row, "visit_occurrence_id": form(1.5)} for row in tables["condition_occurrence"]]
        write_cdm(tmp_path / name, tables, suffix=".parquet")
        with pytest.raises(SchemaError, match="column 'visit_occurrence_id' has 36 of 36 values that are not a whole number"):
            ingest(tmp_path / name, tmp_path / "none")


def test_births_and_far_dates(tmp_path: Path) -> None:
    events, _ = run(UNTIDY["births"].write(tmp_path / "births"), tmp_path / "one")
    assert rows_of(events, 4, "MEDS_BIRTH")[0]["time"] == datetime(1950, 3, 2)
    assert not rows_of(events, 5, "MEDS_BIRTH")
    assert [row["time"].year for row in events.filter(pl.col("subject_id") == 5, pl.col("code").str.starts_with("condition")).to_dicts()] == [1985]
    events, _ = run(UNTIDY["far_dates"].write(tmp_path / "far"), tmp_path / "two")
    assert rows_of(events, 1, "OBSERVATION//START")[0]["time"] == datetime(1950, 3, 2)
    assert rows_of(events, 1, "OBSERVATION//END")[0]["time"].date() == datetime.today().date()
    assert rows_of(events, 2, "Visit/9201")[0]["end_time"] is None
    events, report = run(UNTIDY["far_dates_shifted"].write(tmp_path / "shifted"), tmp_path / "three")
    assert report["calendar"] == "shifted"
    assert rows_of(events, 1, "OBSERVATION//END")[0]["time"].year == 2160  # the last event's, by policy
    assert rows_of(events, 2, "OBSERVATION//END")[0]["time"].year == 2161


def test_an_admission_without_hours_begins_with_the_emergency_visit_of_its_day(tmp_path: Path) -> None:
    events, _ = run(UNTIDY["admissions_without_hours"].write(tmp_path / "cdm"), tmp_path / "out")
    stays = events.filter(pl.col("code").str.starts_with("Visit/"))
    assert {subject: stays.filter(subject_id=subject)["visit_id"].to_list() for subject in (1, 2, 3)} == {
        1: [2, 3], 2: [5, 7, 8, 9], 3: [1, 2, 4, 5, 7, 6],
    }  # fmt: skip
    moved = stays.filter(subject_id=1, visit_id=2).select("time", "available_time", "time_precision").row(0)
    assert moved == (datetime(2012, 3, 1, 10), datetime(2012, 3, 1, 23, 59, 59, 999999), "minute")  # known as an admission by the end of its day
    dated = stays.filter(subject_id=2, visit_id=5).select("time", "time_precision").row(0)
    assert dated == (datetime(2012, 3, 1), "day")
    assert stays.filter(subject_id=3, visit_id=5)["time"].item() == datetime(2012, 5, 1, 10)


def test_a_gap_of_decades_comes_back_to_the_day(tmp_path: Path) -> None:
    tables = base()
    for subject in (1, 2, 3):
        tables["condition_occurrence"] += [condition(1, subject, "1951-02-28 10:00:00"), condition(2, subject, "1990-12-31 10:00:00")]
    events, _ = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    timeline = Timeline.fit(events, split=None, config=TimelineConfig(min_subjects=1))
    back = decode_histories(timeline.vocabulary, timeline.encode_frame(events))
    days = [frame.filter(pl.col("code") == "condition/316139")["time"].dt.date().to_list() for frame in (events, back)]
    assert days[0] == days[1]


def test_infinite_times_of_a_database(tmp_path: Path) -> None:
    write_cdm(tmp_path / "cdm", {**base(), "visit_occurrence": [visit(1, 1, "2010-06-01 08:00:00", "2010-06-03 12:00:00")]}, suffix=".parquet")
    with duckdb.connect(str(tmp_path / "cdm.duckdb")) as database:
        for path in (tmp_path / "cdm").glob("*.parquet"):
            database.execute(f"CREATE TABLE {path.stem} AS SELECT * FROM '{path}'")
        for column, kind in (("visit_end_date", "DATE"), ("visit_end_datetime", "TIMESTAMP")):
            database.execute(f"ALTER TABLE visit_occurrence ALTER {column} TYPE {kind}")
            database.execute(f"UPDATE visit_occurrence SET {column} = 'infinity'")
        database.execute("UPDATE condition_occurrence SET condition_start_datetime = '-infinity' WHERE person_id = 3")
    events, report = run(tmp_path / "cdm.duckdb", tmp_path / "out")
    assert rows_of(events, 1, "Visit/9201")[0]["end_time"] is None
    mended: dict[str, Any] = report["mended"]
    assert mended["visit_occurrence"] == {"visit_end_in_the_future_unknown": 1, "visit_end_unknown": 1}
    assert report["tables"]["condition_occurrence"]["dropped"] == {"placeholder_date": 12}
