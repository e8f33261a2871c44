"""The OMOP writer: every event is a row or is counted, keys hold, nothing follows death."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import schema as s
from cehrxgpt.errors import OutputExistsError, SourceError
from cehrxgpt.events import conform, sort_events, validate_events
from cehrxgpt.synthesis.cdm import TABLES
from cehrxgpt.synthesis.check import check_omop
from cehrxgpt.synthesis.omop import write_omop

DAY = timedelta(days=1)
LAST = timedelta(days=1, microseconds=-1)


def event(subject: int, time: datetime | None, code: str, **extra: Any) -> dict[str, Any]:
    precision = extra.pop("time_precision", "minute")
    known = None if time is None else (datetime(time.year, time.month, time.day) + LAST if precision == "day" and code != s.DEATH else time)
    return {"subject_id": subject, "time": time, "code": code, "available_time": known, "time_precision": precision if time else None} | extra


def table(rows: list[dict[str, Any]]) -> pl.DataFrame:
    frame = sort_events(conform(pl.DataFrame(rows, infer_schema_length=None)))
    validate_events(frame)
    return frame


def person(subject: int, *, died: datetime | None = None) -> list[dict[str, Any]]:
    at = datetime(2010, 3, 4)
    rows = [
        event(subject, None, "gender/8532"),
        event(subject, None, "race/8527"),
        event(subject, datetime(1950, 2, 3), s.BIRTH, time_precision="day"),
        event(subject, at - DAY, s.OBSERVATION_START, time_precision="day", origin="observation_period"),
        event(subject, at.replace(hour=9), "Visit/9201", end_time=at + timedelta(days=2, hours=15), visit_id=7, origin="visit_occurrence"),
        event(subject, at.replace(hour=10), "condition/316139", visit_id=7, origin="condition_occurrence"),
        event(subject, at.replace(hour=11), "condition/0/I50", visit_id=7, origin="condition_occurrence"),
        event(subject, at.replace(hour=12), "measurement/3004410", numeric_value=7.5, unit="8554", operator=">", visit_id=7, origin="measurement"),
        event(subject, at.replace(hour=12), "measurement/3016723", numeric_value=0.0, unit="8840", visit_id=7, origin="measurement"),
        event(subject, at.replace(hour=12), "measurement/3009542", text_value="45884084", visit_id=7, origin="measurement"),
        event(subject, at + timedelta(days=2, hours=15), "discharge/8536", visit_id=7, origin="visit_occurrence"),
        event(subject, at + 30 * DAY, "drug/1545958", end_time=at + 60 * DAY, time_precision="day", origin="drug_exposure"),
        event(subject, at + 2000 * DAY, "procedure/4336464", time_precision="day", origin="procedure_occurrence"),
        event(subject, at + 2000 * DAY, "LAB//50853//ng/mL", numeric_value=1.5, unit="ng/mL", time_precision="day", origin="measurement"),
        event(subject, at + 2001 * DAY, "SOMETHING//ELSE", time_precision="day"),
    ]
    end = died or at + 2100 * DAY
    if died:
        rows.append(event(subject, died, s.DEATH, time_precision="day", origin="death"))
    return [*rows, event(subject, end, s.OBSERVATION_END, time_precision="day", origin="observation_period")]


@pytest.fixture
def written(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    dead = datetime(2020, 1, 1) + LAST
    chunks = [table(person(1) + person(-5, died=dead)), table(person(3))]
    out = tmp_path / "cdm"
    return out, write_omop(chunks, out, names={"condition/316139": "heart failure"})


def read(folder: Path, name: str) -> pl.DataFrame:
    return pl.read_parquet(folder / f"{name}.parquet")


def test_tables_are_sound_and_complete(written: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = written
    assert check_omop(folder) == {}
    assert {path.stem for path in folder.iterdir()} == set(TABLES)
    for name, columns in TABLES.items():
        assert dict(read(folder, name).schema) == columns
        assert summary["rows"][name] == read(folder, name).height
    assert summary["rows"] | {"person": 3, "visit_occurrence": 3, "death": 1, "device_exposure": 0} == summary["rows"]


def test_rows_carry_what_the_events_said(written: tuple[Path, dict[str, Any]]) -> None:
    folder, summary = written
    visit = read(folder, "visit_occurrence").row(0, named=True)
    assert (visit["visit_concept_id"], visit["discharged_to_concept_id"], visit["visit_end_datetime"]) == (9201, 8536, datetime(2010, 3, 6, 15))
    labs = read(folder, "measurement").filter(pl.col("person_id") == 1)
    units = dict(labs.filter(pl.col("measurement_concept_id") > 0).select("measurement_concept_id", "unit_concept_id").iter_rows())
    assert units == {3004410: 8554, 3016723: 8840, 3009542: None}  # each lab has its own unit
    assert labs.filter(measurement_concept_id=3016723)["value_as_number"].to_list() == [0.0]  # zero is a value
    assert labs.filter(measurement_concept_id=3009542)["value_as_concept_id"].to_list() == [45884084]
    assert labs.filter(measurement_concept_id=3004410)["operator_concept_id"].to_list() == [4172704]
    foreign = labs.filter(measurement_concept_id=0).row(0, named=True)
    assert (foreign["measurement_source_value"], foreign["unit_concept_id"], foreign["unit_source_value"]) == ("LAB//50853//ng/mL", 0, "ng/mL")
    conditions = read(folder, "condition_occurrence").filter(pl.col("person_id") == 1)
    assert set(conditions.select("condition_concept_id", "condition_source_value").iter_rows()) == {(316139, None), (0, "I50")}
    drug = read(folder, "drug_exposure").row(0, named=True)
    assert drug["drug_exposure_start_datetime"] is None  # only the date is known
    assert drug["drug_exposure_end_date"] == drug["verbatim_end_date"]
    assert read(folder, "observation")["observation_source_value"].to_list() == ["SOMETHING//ELSE"] * 3
    assert read(folder, "concept").select("concept_id", "concept_name").rows() == [(316139, "heart failure")]
    assert summary["changed"]["unmapped"] == 3
    assert summary["concept_zero"] == {"condition_occurrence": 3, "measurement": 3, "observation": 3}
    assert read(folder, "person")["person_id"].to_list() == [-5, 1, 3]
    assert read(folder, "person")["gender_concept_id"].to_list() == [8532] * 3


def test_a_billing_diagnosis_is_written_as_one(tmp_path: Path) -> None:
    rows = person(1)
    rows[5]["available_time"] = datetime(2010, 3, 6, 15)
    write_omop(table(rows), tmp_path / "cdm")
    types = dict(read(tmp_path / "cdm", "condition_occurrence").select("condition_concept_id", "condition_type_concept_id").iter_rows())
    assert types == {316139: 32821, 0: 32817}


def test_nothing_after_death(tmp_path: Path) -> None:
    """The writer holds even when its input does not: late rows go, ends are clipped, and it says so."""
    death = datetime(2010, 3, 5, 8)
    rows = [row for row in person(1) if row["code"] != s.OBSERVATION_END] + [event(1, death, s.DEATH)]
    summary = write_omop(sort_events(conform(pl.DataFrame(rows, infer_schema_length=None))), tmp_path / "cdm")
    assert check_omop(tmp_path / "cdm") == {}
    assert summary["dropped"]["after_death"] == 5  # discharge, drug, procedure, lab, foreign code
    assert summary["changed"]["end_moved_to_death"] == 1
    assert read(tmp_path / "cdm", "visit_occurrence")["visit_end_datetime"].to_list() == [death]


def test_a_long_gap_rejects_nobody(tmp_path: Path) -> None:
    rows = [event(1, datetime(1960, 1, 1), "condition/1", origin="condition_occurrence"), event(1, datetime(2020, 1, 1), "drug/2")]
    summary = write_omop(table(rows), tmp_path / "cdm")
    assert summary["rows"]["condition_occurrence"] == summary["rows"]["drug_exposure"] == summary["rows"]["person"] == 1
    period = read(tmp_path / "cdm", "observation_period").row(0, named=True)
    assert (period["observation_period_start_date"].year, period["observation_period_end_date"].year) == (1960, 2020)


def test_periods_are_widened_to_cover_events(tmp_path: Path) -> None:
    at = datetime(2010, 1, 1)
    rows = [event(1, at + offset * DAY, "condition/1", time_precision="day") for offset in (-5, 15, 35)]
    for start, end in ((0, 10), (20, 30)):
        rows += [event(1, at + start * DAY, s.OBSERVATION_START, time_precision="day"), event(1, at + end * DAY, s.OBSERVATION_END)]
    summary = write_omop(table(rows), tmp_path / "cdm")
    assert check_omop(tmp_path / "cdm") == {}
    spans = read(tmp_path / "cdm", "observation_period").select("observation_period_start_date", "observation_period_end_date").rows()
    assert spans == [((at - 5 * DAY).date(), (at + 15 * DAY).date()), ((at + 20 * DAY).date(), (at + 35 * DAY).date())]
    assert summary["changed"]["observation_period_widened"] == 2


def test_the_check_sees_what_is_wrong(written: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = written
    conditions = read(folder, "condition_occurrence")
    broken = conditions.with_columns(pl.lit(1).alias("condition_occurrence_id"), pl.lit(99).alias("visit_occurrence_id"))
    broken = broken.with_columns(pl.col("condition_start_date") + timedelta(days=9999))
    broken.write_parquet(folder / "condition_occurrence.parquet")
    problems = check_omop(folder)
    assert problems["condition_occurrence: repeated or null condition_occurrence_id"] == conditions.height - 1
    assert problems["condition_occurrence: visit of nobody or of another person"] == conditions.height
    assert problems["condition_occurrence: after death"] == 2
    assert problems["condition_occurrence: outside every observation period"] == conditions.height
    with pytest.raises(SourceError, match=r"no person\.parquet"):
        check_omop(folder.parent)


def test_an_existing_folder_is_not_overwritten(written: tuple[Path, dict[str, Any]]) -> None:
    with pytest.raises(OutputExistsError):
        write_omop(table(person(1)), written[0])


_CODES = ["condition/1", "drug/2", "procedure/0/x", "measurement/4", "observation/5", "device/6", "Foo//7", "discharge/8536", s.DEATH]


@settings(deadline=None, max_examples=8)
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 4000), st.sampled_from(_CODES), st.sampled_from(["day", "minute"])), min_size=1, max_size=40)
)
def test_every_event_is_placed_or_counted(rows: list[tuple[int, int, str, str]]) -> None:
    """Read = placed + dropped, whatever comes in, and the tables stay sound."""
    import tempfile

    at = datetime(2000, 1, 1)
    events = []
    for subject, days, code, precision in rows:
        moment = at + days * DAY + (LAST if code == s.DEATH and precision == "day" else timedelta())
        events.append(event(subject, moment, code, time_precision=precision))
    frame = sort_events(conform(pl.DataFrame(events, infer_schema_length=None)))
    with tempfile.TemporaryDirectory() as folder:
        summary = write_omop(frame, Path(folder) / "cdm")
        assert check_omop(Path(folder) / "cdm") == {}
    clinical = ("condition_occurrence", "drug_exposure", "procedure_occurrence", "measurement", "observation", "device_exposure", "death")
    assert sum(summary["rows"][name] for name in clinical) + sum(summary["dropped"].values()) == summary["events"] == len(rows)
