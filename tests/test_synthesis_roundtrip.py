"""Events written as OMOP tables and ingested again are the same events, up to ids."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.events import EventDataset
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.synthesis.check import check_omop
from cehrxgpt.synthesis.omop import write_omop
from test_synthesis_omop import event, person, table

DAY = timedelta(days=1)
LAST = timedelta(days=1, microseconds=-1)


def comparable(events: pl.DataFrame) -> pl.DataFrame:
    """Without ids and without what OMOP has no place for: each event carries its visit's start in place of the visit's id."""
    visits = events.filter(pl.col("code").str.starts_with(s.VISIT_PREFIX)).select("subject_id", "visit_id", pl.col("time").alias("visit_start"))
    events = events.join(visits, on=["subject_id", "visit_id"], how="left")
    precise = pl.col("time_precision").replace({"hour": "minute", "second": "minute"})  # OMOP says only whether there is a time of day
    events = events.with_columns(precise.alias("time_precision")).filter(~pl.col("code").is_in(["race/0", "ethnicity/0", "gender/0"]))
    day = pl.col("code").is_in([s.OBSERVATION_START, s.OBSERVATION_END])
    moment = [pl.when(day).then(pl.col(name).dt.truncate("1d")).otherwise(pl.col(name)).alias(name) for name in ("time", "available_time")]
    events = events.with_columns(
        *moment, pl.when(day).then(pl.lit("day")).otherwise("time_precision").alias("time_precision"),
        # The standard wants an end of every drug: an unknown one is written as the day it starts.
        pl.when(pl.col("end_time").is_null() & (pl.col("origin") == "drug_exposure")).then(
            pl.when(pl.col("time_precision") == "day").then(pl.col("time") + LAST).otherwise("time")).otherwise("end_time").alias("end_time"),
    )  # fmt: skip
    columns = ["subject_id", "time", "code", "numeric_value", "text_value", "unit", "operator", "end_time", "available_time", "time_precision"]
    return events.select(*columns, "visit_start").sort(columns, nulls_last=False)


def back(events: pl.DataFrame | EventDataset, folder: Path) -> pl.DataFrame:
    write_omop(events, folder / "cdm")
    assert check_omop(folder / "cdm") == {}
    return ingest(folder / "cdm", folder / "events", IngestConfig()).read()


def same(left: pl.DataFrame, right: pl.DataFrame) -> None:
    left, right = comparable(left), comparable(right)
    assert left.columns == right.columns
    missing, extra = left.join(right, on=left.columns, how="anti", nulls_equal=True), right.join(left, on=left.columns, how="anti", nulls_equal=True)
    assert missing.is_empty(), f"lost:\n{missing}"
    assert extra.is_empty(), f"new:\n{extra}"
    # Rows that differ only in columns an event does not have are equal once written, and equal rows are read as one.
    assert left.n_unique() == right.n_unique() <= right.height <= left.height


def test_round_trip_of_written_patients(tmp_path: Path) -> None:
    rows = []
    for subject in (1, 2, 3):
        died = datetime(2020, 1, 1) + LAST if subject == 2 else None
        rows += [
            row | {"end_time": row["end_time"] + LAST} if row["code"].startswith("drug/") else row
            for row in person(subject, died=died)
            if row.get("origin") != "measurement" or not row["code"].startswith("LAB")
            if row["code"] != "SOMETHING//ELSE"
        ]
        rows.append(event(subject, datetime(2011, 1, 1), "drug/2", time_precision="day", origin="drug_exposure"))
    events = table(rows)
    same(events, back(events, tmp_path))


def test_foreign_codes_come_back_as_concept_zero(tmp_path: Path) -> None:
    found = back(table(person(1) + person(2) + person(3)), tmp_path)
    assert {"measurement/0/LAB//50853//ng/mL", "observation/0/SOMETHING//ELSE", "condition/0/I50"} <= set(found["code"])


@pytest.mark.slow
def test_round_trip_of_real_tables(shared_data: Path, tmp_path: Path) -> None:
    """All but observation periods that leave events out: those are widened, each to an event's date."""
    first = ingest(shared_data / "synthea27nj_omop54", tmp_path / "first", IngestConfig())
    (tmp_path / "again").mkdir()
    before, after = first.read(), back(first, tmp_path / "again")
    period = pl.col("code").is_in([s.OBSERVATION_START, s.OBSERVATION_END])
    same(before.filter(~period), after.filter(~period))
    dated = before.filter(pl.col("time").is_not_null() & ~period).select("subject_id", pl.col("time").dt.date().alias("day"))
    for code, wider in ((s.OBSERVATION_START, pl.col("day_after") < pl.col("day")), (s.OBSERVATION_END, pl.col("day_after") > pl.col("day"))):
        days = [frame.filter(code=code).select("subject_id", pl.col("time").dt.date().alias("day")) for frame in (before, after)]
        both = days[0].join(days[1], on="subject_id", suffix="_after")
        assert both.height == days[0].height == days[1].height
        moved = both.filter(pl.col("day") != pl.col("day_after"))
        assert moved.filter(wider).height == moved.height < 6
        assert moved.join(dated, left_on=["subject_id", "day_after"], right_on=["subject_id", "day"], how="anti").is_empty()


@pytest.mark.slow
def test_round_trip_of_hospital_tables(shared_data: Path, tmp_path: Path) -> None:
    """Intensive care, wards and devices of real admissions. What was recorded after a death stands at it and comes back as known then; in tables
    nothing ends after it, so a prescription that reaches further comes back cut.
    """
    first = ingest(shared_data / "mimic_iv_demo_omop53", tmp_path / "first", IngestConfig())
    (tmp_path / "again").mkdir()
    frames = [comparable(frame) for frame in (first.read(), back(first, tmp_path / "again"))]
    before, after = (frame.filter(~pl.col("code").is_in([s.OBSERVATION_START, s.OBSERVATION_END])) for frame in frames)
    deaths = first.read().filter(code=s.DEATH).select("subject_id", pl.col("time").alias("death"))
    past = pl.col("end_time") > pl.col("death")
    before = before.join(deaths, on="subject_id", how="left", maintain_order="left")
    assert before.filter(past)["code"].str.starts_with("drug/").all()
    before = before.with_columns(pl.when(past).then("death").otherwise("end_time").alias("end_time")).drop("death")
    lost = before.join(after, on=before.columns, how="anti", nulls_equal=True)
    late = lost.join(deaths, on="subject_id").filter(pl.col("available_time") > pl.col("death"))
    assert late.height == lost.height < 100
    facts = [name for name in before.columns if name != "available_time"]
    assert before.select(facts).unique().sort(facts).equals(after.select(facts).unique().sort(facts))
    assert before.filter(pl.col("code").str.starts_with(s.ICU_PREFIX)).height == 172
