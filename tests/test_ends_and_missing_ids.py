"""What a first hospital stumbles over: ends after a death, missing ids as data frames keep them, an ontology that is not there."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from cehrxgpt import stages
from cehrxgpt.errors import InputError
from cehrxgpt.events import EventDataset
from cehrxgpt.timeline import Timeline, TimelineConfig

PEOPLE = 40


def cdm(folder: Path, *, unit: int = 8840, visit: object = "nan", ancestors: bool = False) -> Path:
    """Forty people, each with a drug for 90 days, a measurement, and a death 10 days after the drug began."""
    folder.mkdir()
    people = range(1, PEOPLE + 1)

    def write(name: str, header: str, rows: list[str]) -> None:
        (folder / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")

    write("person", "person_id,gender_concept_id,year_of_birth,race_concept_id", [f"{i},8507,1950,0" for i in people])
    write("death", "person_id,death_date", [f"{i},2020-01-11" for i in people])
    write(
        "drug_exposure",
        "drug_exposure_id,person_id,drug_concept_id,drug_exposure_start_date,drug_exposure_end_date,visit_occurrence_id",
        [f"{i},{i},111,2020-01-01,2020-03-31,{visit}" for i in people],
    )
    write(
        "measurement",
        "measurement_id,person_id,measurement_concept_id,measurement_date,value_as_number,unit_concept_id",
        [f"{i},{i},222,2020-01-02,{i},{unit}" for i in people],
    )
    if ancestors:
        write("concept_ancestor", "ancestor_concept_id,descendant_concept_id,min_levels_of_separation,max_levels_of_separation", ["999,111,1,1"])
    return folder


def ingested(tmp_path: Path, name: str = "cdm", **kind: object) -> EventDataset:
    stages.ingest(cdm(tmp_path / name, **kind), tmp_path / f"{name}_events", {})  # type: ignore[arg-type]
    return EventDataset(tmp_path / f"{name}_events")


def test_a_prescription_keeps_its_end_though_the_patient_dies(tmp_path: Path) -> None:
    drugs = ingested(tmp_path).read().filter(pl.col("code") == "drug/111")
    assert drugs.height == PEOPLE
    assert drugs["end_time"].dt.date().unique().to_list() == [datetime(2020, 3, 31).date()]


@pytest.mark.parametrize("missing", ["nan", "NaN", "null", "NULL", ""])
def test_missing_ids_in_text(tmp_path: Path, missing: str) -> None:
    drugs = ingested(tmp_path, visit=missing).read().filter(pl.col("code") == "drug/111")
    assert drugs.height == PEOPLE
    assert drugs["visit_id"].null_count() == PEOPLE


def test_missing_ids_in_a_column_of_floats(tmp_path: Path) -> None:
    folder = cdm(tmp_path / "cdm")
    text = pl.read_csv(folder / "drug_exposure.csv", schema_overrides={"visit_occurrence_id": pl.Float64})
    assert text["visit_occurrence_id"].is_nan().all()
    (folder / "drug_exposure.csv").unlink()
    text.write_parquet(folder / "drug_exposure.parquet")
    stages.ingest(folder, tmp_path / "events", {})
    drugs = EventDataset(tmp_path / "events").read().filter(pl.col("code") == "drug/111")
    assert drugs.height == PEOPLE
    assert drugs["visit_id"].null_count() == PEOPLE


@pytest.mark.parametrize("asked", [{"back_off": True}, {"roll_up": ["drug/999"]}])
def test_no_ontology_no_ancestors(tmp_path: Path, asked: dict[str, object]) -> None:
    events = ingested(tmp_path)
    with pytest.raises(InputError, match="no code has an ancestor"):
        stages.tokenize(events.root, tmp_path / "timeline", asked)
    assert not (tmp_path / "timeline").exists()


def test_codes_that_are_ancestor_of_nothing_are_named(tmp_path: Path) -> None:
    events = ingested(tmp_path, ancestors=True)
    facts = stages.tokenize(events.root, tmp_path / "timeline", {"roll_up": ["drug/999", "drug/555"]})
    assert facts["events_rolled_up"] == PEOPLE
    assert facts["notes"] == ["--roll-up: 1 of 2 codes are ancestor of no code here (drug/555)"]


def test_results_in_unknown_units_are_not_said(tmp_path: Path) -> None:
    here, there = ingested(tmp_path, "here", unit=8840), ingested(tmp_path, "there", unit=8753)
    timeline = Timeline.fit(here, split=None, config=TimelineConfig(min_subjects=2))
    for events, said in ((here, PEOPLE), (there, 0)):
        frame = events.read()
        assert timeline.results(frame, timeline.encode_frame(frame)) == (PEOPLE, said)


def test_the_page_of_nobody(tmp_path: Path) -> None:
    stages.ingest(cdm(tmp_path / "cdm"), tmp_path / "run" / "events", {})
    with pytest.raises(InputError, match="no subject 4711"):
        stages.report(tmp_path / "run", None, patient="4711")
    assert not (tmp_path / "run" / "report.html").exists()
