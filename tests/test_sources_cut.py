"""What the record knew at a moment does not depend on what came later (RULES 1, 6, 23).

A hospital's tables are cut at a moment as they stood then: rows that were not written yet are not there, visits that go on have no end, and
no bill is written for them. Ingesting those gives the same sentence as ingesting everything and cutting the history at that moment.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from cehrxgpt.events import EventDataset
from cehrxgpt.simulate import SimulateConfig, simulate
from cehrxgpt.sources import IngestConfig, ingest
from cehrxgpt.sources.omop import BILLING_TYPES
from cehrxgpt.timeline import Timeline, TimelineConfig
from cehrxgpt.timeline.moments import encode_moments
from sources_cdm import base, condition, person, visit

Frames = dict[str, pl.DataFrame]
STEMS = {
    "visit_occurrence": "visit", "visit_detail": "visit_detail", "condition_occurrence": "condition", "drug_exposure": "drug_exposure",
    "procedure_occurrence": "procedure", "measurement": "measurement", "observation": "observation", "device_exposure": "device_exposure",
}  # fmt: skip
RULES = IngestConfig(threads=1, date_only_share=1.0, latest="2030-01-01")  # midnight means the same in the whole and in a part


def instant(frame: pl.DataFrame, stem: str) -> pl.Expr:
    """When something is known: the datetime, else the end of the date."""
    exact, date = (pl.col(f"{stem}_{kind}") if f"{stem}_{kind}" in frame.columns else pl.lit(None) for kind in ("datetime", "date"))
    last = date.cast(pl.Date).cast(pl.Datetime("us")) + timedelta(days=1) - timedelta(microseconds=1)
    return pl.coalesce(exact.cast(pl.Datetime("us")), last)


def cut_tables(tables: Frames, at: pl.DataFrame) -> Frames:
    """The tables as they stood at each person's moment."""
    found = {}
    ends = tables["visit_occurrence"].select("person_id", "visit_occurrence_id", instant(tables["visit_occurrence"], "visit_end").alias("_left"))
    for name, frame in tables.items():
        if name == "observation_period":
            continue
        if name not in STEMS and name != "death":
            found[name] = frame
            continue
        stem, now = STEMS.get(name, name), pl.col("prediction_time")
        start = f"{stem}_start" if f"{stem}_start_date" in frame.columns else stem
        mine = frame.join(at.rename({"subject_id": "person_id"}), on="person_id")
        mine = mine.filter(instant(mine, start) <= now)
        if f"{stem}_end_date" in mine.columns and name != "drug_exposure":  # a prescription says its end
            goes_on = (instant(mine, f"{stem}_end") > now).fill_null(True)
            later = [column for column in mine.columns if "_end_date" in column or column.startswith("discharge")]
            mine = mine.with_columns(pl.when(~goes_on).then(column).alias(column) for column in later)
        if name == "condition_occurrence":
            mine = mine.join(ends, on=["person_id", "visit_occurrence_id"], how="left")
            billed = pl.col("condition_type_concept_id").is_in(BILLING_TYPES) & ((pl.col("_left") > now) | pl.col("_left").is_null())
            mine = mine.filter(~billed.fill_null(False)).drop("_left")
        found[name] = mine.drop("prediction_time")
    return found


def read(tables: Frames, folder: Path) -> EventDataset:
    (folder / "cdm").mkdir(parents=True)
    for name, frame in tables.items():
        if name != "observation_period":
            frame.write_parquet(folder / "cdm" / f"{name}.parquet")
    return ingest(folder / "cdm", folder / "events", RULES)


def sentences(timeline: Timeline, events: EventDataset, at: pl.DataFrame) -> dict[int, list[str]]:
    """Subject -> its tokens at its moment."""
    found = {}
    for moments in encode_moments(timeline, events, at):
        histories = moments.histories
        for row, subject in enumerate(histories.subject_id.tolist()):
            tokens = histories.token_id[histories.offsets[row] : histories.offsets[row + 1]]
            found[subject] = [timeline.vocabulary.token[token] for token in tokens]
    return found


def check(tables: Frames, at: pl.DataFrame, folder: Path, timeline: Timeline, whole: EventDataset) -> dict[int, list[str]]:
    """One moment for each person."""
    expected = sentences(timeline, read(cut_tables(tables, at), folder), at)
    found = sentences(timeline, whole, at)
    assert set(found) == set(expected)
    assert len(found) == at.height
    assert {subject: (" ".join(tokens), " ".join(expected[subject])) for subject, tokens in found.items() if tokens != expected[subject]} == {}
    return found


def fit(events: EventDataset) -> Timeline:
    return Timeline.fit(events, split=None, config=TimelineConfig(min_subjects=1))


# -- a simulated population ------------------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> tuple[Frames, EventDataset, Timeline]:
    folder = tmp_path_factory.mktemp("hospital")
    simulate(folder / "cdm", SimulateConfig(population="full", hospital="b", patients=250, seed=7, truth_samples=0))
    tables = {path.stem: pl.read_parquet(path) for path in (folder / "cdm").glob("*.parquet") if "person_id" in pl.read_parquet_schema(path)}
    whole = read(tables, folder / "whole")
    return tables, whole, fit(whole)


@pytest.mark.parametrize("seed", range(3))
def test_a_population_cut_at_a_moment(hospital: tuple[Frames, EventDataset, Timeline], tmp_path: Path, seed: int) -> None:
    """Most moments lie inside a visit, many of them in its first hour."""
    tables, whole, timeline = hospital
    rng = np.random.default_rng(seed)
    visits = tables["visit_occurrence"]
    begin, end = instant(visits, "visit_start").alias("begin"), instant(visits, "visit_end").alias("end")
    hours = visits.filter(pl.col("visit_concept_id").is_in([9201, 262, 9203, 8883, 581385])).select("person_id", begin, end)
    chosen = hours.sample(fraction=1, shuffle=True, seed=seed).unique("person_id", keep="first", maintain_order=True)
    share = pl.Series("share", rng.random(chosen.height) ** 3)
    moment = (pl.col("begin") + (pl.col("end") - pl.col("begin")) * share).dt.truncate("1m").dt.cast_time_unit("us")
    at = chosen.select(pl.col("person_id").alias("subject_id"), moment.alias("prediction_time"))
    assert at.height > 150
    found = check(tables, at, tmp_path, timeline, whole)
    assert sum("[VE]" not in tokens[-1:] for tokens in found.values()) > 100, "most visits go on"


# -- crafted stays ---------------------------------------------------------------------------------------------------------------------------
DATED = {"visit_start_datetime": None, "visit_end_datetime": None}
Stay = tuple[str, str | None, int]


def at(day: int, hour: int = 0, minute: int = 0) -> str:
    return f"2010-03-{day:02d} {hour:02d}:{minute:02d}:00"


STAYS: dict[str, list[dict[str, Any]]] = {
    "an emergency visit that becomes an admission": [visit(1, 0, at(5, 8), at(5, 20), 9203), visit(2, 0, at(5, 19), at(9, 10))],
    "one that does not": [visit(1, 0, at(5, 8), at(5, 20), 9203)],
    "two that become one": [visit(1, 0, at(5, 8), at(5, 20), 9203), visit(3, 0, at(5, 10), at(5, 22), 8870), visit(2, 0, at(5, 19), at(9, 10))],
    "an admission known by its date": [visit(1, 0, at(5, 8), at(5, 15), 9203, discharged_to_concept_id=8717), visit(2, 0, at(5), at(9), **DATED)],
    "into which two went": [
        visit(1, 0, at(5, 8), at(5, 9), 9203), visit(3, 0, at(5, 14), at(5, 15), 9203), visit(2, 0, at(5), at(9, 10), visit_start_datetime=None),
    ],
    "an emergency visit over midnight into it": [visit(1, 0, at(5, 20), at(6, 3), 9203), visit(2, 0, at(5), at(9), **DATED)],
    "days in an emergency room": [visit(1, 0, at(5, 8), at(8, 20), 8870)],
    "hours in an emergency room": [visit(1, 0, at(5, 8), at(5, 20), 8870)],
    "an admission on the first of many days there": [visit(1, 0, at(5, 8), at(8, 20), 8870), visit(2, 0, at(5, 19), at(9, 10))],
    "an admission on a later one": [visit(1, 0, at(5, 8), at(8, 20), 8870), visit(2, 0, at(7, 19), at(9, 10))],
    "an emergency visit into days under observation": [visit(1, 0, at(5, 8), at(5, 20), 9203), visit(2, 0, at(5, 19), at(9, 10), 581385)],
    "surgery for a day": [visit(1, 0, at(5, 8), at(5, 20), 8883)],
    "surgery for days": [visit(1, 0, at(5, 8), at(9, 20), 8883)],
    "surgery over midnight": [visit(1, 0, at(5, 20), at(6, 6), 8883)],
    "an outpatient visit for days": [visit(1, 0, at(5, 8), at(8, 20), 9202)],
    "an outpatient visit without an end": [visit(1, 0, at(5, 8), None, 9202)],
    "a stay without an end": [visit(1, 0, at(5, 8), None, 9201)],
    "an emergency visit without an end": [visit(1, 0, at(5, 8), None, 9203), visit(2, 0, at(5, 19), at(9, 10))],
}  # fmt: skip


def intensive(identifier: int, subject: int, start: str, end: str | None, visit_id: int | None, concept: int = 32037) -> dict[str, Any]:
    row = {"visit_detail_id": identifier, "person_id": subject, "visit_detail_concept_id": concept, "visit_occurrence_id": visit_id}
    row |= {"visit_detail_start_date": start[:10], "visit_detail_start_datetime": start}
    return {**row, "visit_detail_end_date": end and end[:10], "visit_detail_end_datetime": end}


def crafted() -> Frames:
    """Every stay of STAYS by a person of its own: intensive care in it, rows linked and loose in its first hour and later, and bills."""
    people = list(range(1, len(STAYS) + 1))
    tables = base(tuple(people)) | {"visit_occurrence": [], "visit_detail": []}
    tables["person"] = [person(subject) for subject in people]
    for subject, visits in zip(people, STAYS.values(), strict=True):
        tables["visit_occurrence"] += [{**row, "person_id": subject} for row in visits]
        first = visits[0]
        concept = first["visit_concept_id"]
        tables["visit_detail"] += [
            intensive(10 * subject, subject, at(5, 22), at(6, 4), 1), intensive(10 * subject + 1, subject, at(5, 8, 50), at(5, 13), None),
            intensive(10 * subject + 2, subject, first["visit_start_datetime"], first["visit_end_datetime"], 1, concept),
        ]  # fmt: skip
        rows = [(at(5, 7, 50), 1), (at(5, 8, 20), None), (at(5, 8, 20), 1), (at(5, 11), 1), (at(5, 14, 30), 3), (at(5, 21), None), (at(6, 2), 1)]
        rows += [(at(7, 9), 1), (at(7, 23), None), (at(8, 8), 2), (at(12, 9), None)]
        tables["condition_occurrence"] += [
            condition(1000 * subject + number, subject, time, link, concept=number + 1) for number, (time, link) in enumerate(rows)
        ]
        tables["condition_occurrence"] += [
            condition(1000 * subject + 100 + link, subject, at(5, 8), link, concept=90 + link, condition_type_concept_id=32821)
            for link in sorted(row["visit_occurrence_id"] for row in visits if row["visit_end_date"])
        ]
    return {name: typed(pl.DataFrame(rows, infer_schema_length=None)) for name, rows in tables.items()}


def typed(frame: pl.DataFrame) -> pl.DataFrame:
    times = [pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S") for name in frame.columns if name.endswith("_datetime")]
    return frame.with_columns(times).with_columns(pl.col(name).str.slice(0, 10).str.to_date() for name in frame.columns if name.endswith("_date"))


Crafted = tuple[Frames, EventDataset, Timeline]


@pytest.fixture(scope="module")
def stays(tmp_path_factory: pytest.TempPathFactory) -> Crafted:
    tables, folder = crafted(), tmp_path_factory.mktemp("stays")
    whole = read(tables, folder)
    return tables, whole, fit(whole)


def moments_of(tables: Frames, *parts: int) -> pl.DataFrame:
    return tables["person"].select(
        pl.col("person_id").alias("subject_id"), pl.lit(datetime(2010, 3, *parts)).cast(pl.Datetime("us")).alias("prediction_time")
    )


MOMENTS = [
    *((5, *clock) for clock in ((8, 0), (8, 30), (9, 30), (12, 0), (14, 45), (18, 0), (19, 30), (20, 30), (23, 0))),
    *((6, *clock) for clock in ((0, 30), (2, 30), (5, 0), (8, 0), (8, 1), (12, 0))),
    *((7, 12), (7, 20), (8, 12), (9, 9), (9, 12), (20, 0)),
]


@pytest.mark.parametrize("parts", MOMENTS, ids=str)
def test_crafted_stays_cut_at_a_moment(stays: Crafted, tmp_path: Path, parts: tuple[int, ...]) -> None:
    tables, whole, timeline = stays
    check(tables, moments_of(tables, *parts), tmp_path, timeline, whole)


ALIKE: list[tuple[str, str, tuple[int, ...]]] = [
    ("an emergency visit that becomes an admission", "one that does not", (5, 18)),
    ("hours in an emergency room", "days in an emergency room", (5, 18)),
    ("an admission on the first of many days there", "days in an emergency room", (5, 18)),
    ("surgery for a day", "surgery for days", (5, 18)),
    ("an emergency visit into days under observation", "one that does not", (5, 18)),
    ("an outpatient visit for days", "an outpatient visit without an end", (7, 12)),
]


@pytest.mark.parametrize(("one", "other", "parts"), ALIKE, ids=[one for one, _, _ in ALIKE])
def test_what_will_come_does_not_show(stays: Crafted, one: str, other: str, parts: tuple[int, ...]) -> None:
    """Two people with the same past have the same sentence."""
    tables, whole, timeline = stays
    found = sentences(timeline, whole, moments_of(tables, *parts))
    first, second = (found[1 + list(STAYS).index(name)] for name in (one, other))
    assert first == second
    assert "[VS]" in first


def test_what_stood_before_an_admission_comes_back_with_the_events(stays: Crafted, tmp_path: Path) -> None:
    """A data set of ours that is read again keeps it."""
    tables, whole, timeline = stays
    again = ingest(whole.root, tmp_path / "again", RULES)
    assert again.read().equals(whole.read())
    assert whole.read()["emergencies"].drop_nulls().len() == 7
    moments = moments_of(tables, 5, 12)
    assert sentences(timeline, again, moments) == sentences(timeline, whole, moments)
