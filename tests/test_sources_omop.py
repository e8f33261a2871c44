"""OMOP tables in whatever form, and every rule of the ingest on rows made for it."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from cehrxgpt.events import EventDataset
from cehrxgpt.report import inspect_path
from cehrxgpt.report.units import unit_name
from sources_cdm import base, condition, measurement, person, rows_of, run, visit, write_cdm

LAST = (23, 59, 59, 999999)


def at(*parts: int) -> datetime:
    return datetime(*parts)  # type: ignore[arg-type]


def everything() -> dict[str, Any]:
    tables = base()
    tables["visit_occurrence"] = [
        visit(7, 1, "2010-01-01 08:00:00", "2010-01-03 12:00:00"),
        visit(7, 2, "2010-01-01 08:00:00", "2010-01-03 12:00:00"),
    ]
    tables["measurement"] = [measurement(index, 3, f"2010-02-{index:02d} 07:15:00", 1.5 * index) for index in range(1, 6)]
    tables["observation_period"] = [
        {
            "observation_period_id": subject,
            "person_id": subject,
            "observation_period_start_date": "2009-01-01",
            "observation_period_end_date": "2011-01-01",
        }
        for subject in (1, 2)
    ]
    tables["concept"] = [{"concept_id": 316139, "concept_name": "Heart failure"}, {"concept_id": 0, "concept_name": "No matching concept"}]
    tables["concept_ancestor"] = [
        {"ancestor_concept_id": 321588, "descendant_concept_id": 316139},
        {"ancestor_concept_id": 134057, "descendant_concept_id": 316139},
        {"ancestor_concept_id": 316139, "descendant_concept_id": 316139},
    ]
    return tables


def test_every_form_of_the_same_tables_gives_the_same_events(tmp_path: Path) -> None:
    tables = everything()
    expected, report = run(write_cdm(tmp_path / "csv", tables), tmp_path / "out")
    assert report["visits_recovered"]["inpatient"] == 2
    forms = {
        "upper tsv": {"upper": True, "suffix": ".tsv"},
        "prefixed gzip": {"prefix": "2b_", "suffix": ".csv.gz"},
        "parquet": {"suffix": ".parquet"},
    }
    for name, form in forms.items():
        found, _ = run(write_cdm(tmp_path / name, tables, **form), tmp_path / f"out_{name}")  # type: ignore[arg-type]
        assert found.equals(expected), name
    with duckdb.connect(str(tmp_path / "cdm.duckdb")) as database:
        database.execute("CREATE SCHEMA hospital")
        for path in (tmp_path / "parquet").glob("*.parquet"):
            database.execute(f"CREATE TABLE hospital.{path.stem.upper()} AS SELECT * FROM '{path}'")
    found, _ = run(tmp_path / "cdm.duckdb", tmp_path / "out_duckdb")
    assert found.equals(expected)
    found, _ = run(tmp_path / "csv", tmp_path / "out_buckets", buckets=7, memory_limit_gib=0.2)
    assert found.equals(expected)


def test_units_have_the_names_of_the_data_s_own_vocabulary(tmp_path: Path) -> None:
    """`unit/<concept>`, used ones alone, without ancestors; and readers of the record see the name."""
    tables = everything()
    tables["measurement"] += [measurement(9, 3, "2010-03-01 07:15:00", 4.7, unit_concept_id=9017)]
    tables["concept"] += [{"concept_id": 9017, "concept_name": "beats per cycle"}, {"concept_id": 9018, "concept_name": "never used"}]
    tables["concept_ancestor"] += [{"ancestor_concept_id": 1, "descendant_concept_id": 9017}]
    run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    dataset = EventDataset(tmp_path / "out")
    units = dataset.codes.filter(pl.col("code").str.starts_with("unit/"))
    assert units.rows() == [("unit/9017", "beats per cycle", [], "unit")]
    assert any("4.7 beats per cycle" in line for line in inspect_path(tmp_path / "out", 3))
    assert unit_name(dataset.names(), "9017") == "beats per cycle"
    run(tmp_path / "out", tmp_path / "again")
    assert EventDataset(tmp_path / "again").codes.filter(pl.col("code") == "unit/9017").height == 1


def test_codes_have_names_and_all_ancestors(tmp_path: Path) -> None:
    write_cdm(tmp_path / "cdm", everything())
    run(tmp_path / "cdm", tmp_path / "out")
    codes = EventDataset(tmp_path / "out").codes
    row = codes.filter(pl.col("code") == "condition/316139").row(0, named=True)
    assert row == {
        "code": "condition/316139",
        "description": "Heart failure",
        "parent_codes": ["condition/134057", "condition/321588"],
        "origin": "condition_occurrence",
    }
    assert codes.filter(pl.col("code") == "gender/8507")["description"].to_list() == [None]


def test_people_and_their_ids(tmp_path: Path) -> None:
    low = -(2**63) + 1
    tables = base((low, -5, 2**62))
    tables["person"][0] |= {"year_of_birth": 1950, "month_of_birth": None, "day_of_birth": None, "race_concept_id": None}
    tables["condition_occurrence"].append(condition(1, 99, "2010-01-01 10:00:00"))
    tables["condition_occurrence"].append(condition(2, -5, "1949-12-31 10:00:00"))
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert events["subject_id"].unique().sort().to_list() == [low, -5, 2**62]
    assert rows_of(events, low, "MEDS_BIRTH")[0]["time"] == at(1950, 1, 1)
    assert rows_of(events, -5, "MEDS_BIRTH")[0]["time"] == at(1950, 3, 2)
    assert rows_of(events, low, "race/0")[0]["time"] is None
    assert report["tables"]["condition_occurrence"]["dropped"] == {"before_birth": 1, "subject_not_in_person": 1}


def test_without_a_person_table_whoever_has_rows_is_a_subject(tmp_path: Path) -> None:
    tables = base()
    del tables["person"]
    tables["visit_occurrence"] = [visit(1, 1, "2010-01-01 08:00:00", "2010-01-03 12:00:00")]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert report["subjects"]["total"] == 3
    assert not rows_of(events, 1, "MEDS_BIRTH")
    assert report["observation_policy"] == "first_to_last_event"
    assert rows_of(events, 2, "OBSERVATION//START")[0]["time"] == at(2010, 1, 1, 10, 30)
    assert rows_of(events, 2, "OBSERVATION//END")[0]["available_time"] == at(2010, 1, 12, 10, 30)


def test_observation_until_a_date_lasts_that_day(tmp_path: Path) -> None:
    """Without periods of their own people are observed until their last event: a date, until the end of that day."""
    tables = base()
    tables["drug_exposure"] = [{"person_id": 1, "drug_concept_id": 5, "drug_exposure_start_date": "2010-03-01"}]
    events, _ = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    ends = [rows_of(events, subject, "OBSERVATION//END")[0] for subject in (1, 2)]
    assert [(end["time"], end["available_time"], end["time_precision"]) for end in ends] == [
        (at(2010, 3, 1, *LAST), at(2010, 3, 1, *LAST), "day"), (at(2010, 1, 12, 10, 30), at(2010, 1, 12, 10, 30), "minute"),
    ]  # fmt: skip


def test_times_and_when_they_are_known(tmp_path: Path) -> None:
    tables = base()
    # 12 of 16 times are not midnight, and a null datetime falls back to the date.
    tables["condition_occurrence"] += [
        condition(1, 1, "2010-05-01 00:00:00", concept=11, condition_start_datetime=None),
        condition(2, 1, "2010-05-02 14:00:05", concept=12),
        condition(3, 1, "2010-05-03 23:30:00-05:00", concept=13),
        condition(4, 1, "2010-05-04T10:00:00Z", concept=14),
    ]
    tables["observation_period"] = [
        {"observation_period_id": 1, "person_id": 1, "observation_period_start_date": "2009-01-01", "observation_period_end_date": "2011-01-01"}
    ]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    found = {code: rows_of(events, 1, f"condition/{code}")[0] for code in (11, 12, 13, 14)}
    assert [(row["time"], row["time_precision"], row["available_time"]) for row in found.values()] == [
        (at(2010, 5, 1), "day", at(2010, 5, 1, *LAST)),
        (at(2010, 5, 2, 14, 0, 5), "second", at(2010, 5, 2, 14, 0, 5)),
        (at(2010, 5, 3, 23, 30), "minute", at(2010, 5, 3, 23, 30)),
        (at(2010, 5, 4, 10, 0), "minute", at(2010, 5, 4, 10, 0)),
    ]
    end = rows_of(events, 1, "OBSERVATION//END")[0]
    assert end["time"] == end["available_time"] == at(2011, 1, 1, *LAST)
    assert report["observation_policy"] == "observation_period, else first_to_last_event"
    assert report["midnight_is_a_date_only_in"] == []


def test_midnight_is_a_date_where_a_table_has_many(tmp_path: Path) -> None:
    tables = base()
    tables["condition_occurrence"] += [condition(index, 1, f"2010-06-{index:02d} 00:00:00", concept=50 + index) for index in range(1, 9)]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert report["midnight_is_a_date_only_in"] == ["condition_occurrence"]
    assert rows_of(events, 1, "condition/51")[0]["time_precision"] == "day"
    found, _ = run(tmp_path / "cdm", tmp_path / "other", date_only_share=0.5)
    row = rows_of(found, 1, "condition/51")[0]
    assert (row["time_precision"], row["available_time"]) == ("minute", at(2010, 6, 1))


def test_compact_dates_and_a_table_without_datetimes(tmp_path: Path) -> None:
    tables = base()
    tables["death"] = [{"person_id": 1, "death_date": "20110203"}]
    events, _ = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    row = rows_of(events, 1, "MEDS_DEATH")[0]
    assert row["time"] == row["available_time"] == at(2011, 2, 3, *LAST)
    assert row["time_precision"] == "day"


def test_values(tmp_path: Path) -> None:
    tables = base()
    tables["measurement"] = [
        measurement(1, 1, "2010-01-01 09:00:00", 7.5, operator_concept_id=4171756),
        measurement(2, 1, "2010-01-02 09:00:00", 0.0, unit_concept_id=0, unit_source_value="mg/dL", operator_concept_id=4172703),
        measurement(3, 1, "2010-01-03 09:00:00", None, value_as_concept_id=45884084, value_source_value="POS"),
        measurement(4, 1, "2010-01-04 09:00:00", None, value_as_concept_id=0, value_source_value="trace"),
        measurement(5, 1, "2010-01-05 09:00:00", 3.0, measurement_concept_id=0, measurement_source_value="LOCAL 7", value_source_value="3"),
        measurement(6, 1, "2010-01-06 09:00:00", float("nan")),
        measurement(7, 1, "2010-01-07 09:00:00", 1e50),  # more than 32 bits hold
    ]
    events, report = run(write_cdm(tmp_path / "cdm", tables, suffix=".parquet"), tmp_path / "out")
    assert report["unreadable_values"] == {"measurement": {"value_as_number": 1}}
    found = events.filter(pl.col("origin") == "measurement").select("code", "numeric_value", "text_value", "unit", "operator").rows()
    assert found == [
        ("measurement/3004410", 7.5, None, "8554", "<"),
        ("measurement/3004410", 0.0, None, "mg/dL", None),
        ("measurement/3004410", None, "45884084", "8554", None),
        ("measurement/3004410", None, "trace", "8554", None),
        ("measurement/0/LOCAL 7", 3.0, None, "8554", None),
        ("measurement/3004410", None, None, "8554", None),
        ("measurement/3004410", None, None, "8554", None),
    ]


def test_drug_lengths(tmp_path: Path) -> None:
    tables = base()
    row = {"person_id": 1, "drug_concept_id": 1, "drug_exposure_start_date": "2010-01-05", "drug_exposure_start_datetime": "2010-01-05 10:00:00"}
    tables["drug_exposure"] = [
        {"drug_exposure_id": 1, **row, "drug_exposure_end_date": None, "days_supply": 30},
        {"drug_exposure_id": 2, **row, "drug_concept_id": 2, "drug_exposure_end_date": "2010-01-07", "days_supply": None},
        {"drug_exposure_id": 3, **row, "drug_concept_id": 3, "drug_exposure_end_date": "2010-01-01", "days_supply": None},
        {"drug_exposure_id": 4, **row, "drug_concept_id": 4, "drug_exposure_end_date": None, "days_supply": None},
    ]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    ends = [rows_of(events, 1, f"drug/{concept}")[0]["end_time"] for concept in (1, 2, 3, 4)]
    assert ends == [at(2010, 2, 3, *LAST), at(2010, 1, 7, *LAST), at(2010, 1, 5, 10), None]
    assert report["mended"]["drug_exposure"] == {"end_before_start": 1}


def test_duplicates_are_equal_in_all_but_their_id(tmp_path: Path) -> None:
    tables = base()
    tables["condition_occurrence"] += [condition(1, 1, "2010-05-01 10:00:00"), condition(2, 1, "2010-05-01 10:00:00")]
    tables["condition_occurrence"] += [condition(1, 2, "2010-05-01 10:00:00"), condition(3, 1, "2010-05-01 10:00:00", condition_source_value="other")]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert report["tables"]["condition_occurrence"]["dropped"] == {"duplicate": 1}
    late = events.filter(pl.col("time") == at(2010, 5, 1, 10), pl.col("code").str.starts_with("condition"))
    assert late["subject_id"].to_list() == [1, 1, 2]


def test_visits_and_what_belongs_to_them(tmp_path: Path) -> None:
    tables = base()
    tables["visit_occurrence"] = [
        visit(1, 1, "2012-03-01 09:00:00", "2012-03-04 15:00:00"),
        visit(2, 1, "2012-06-01 09:00:00", "2012-05-31 08:00:00", 9203, discharged_to_concept_id=0),
        visit(3, 1, "2012-07-01 09:00:00", "2012-07-20 10:00:00", 9202, discharged_to_concept_id=None),
        visit(4, 1, "2012-08-01 09:00:00", None, 9201),
        visit(5, 1, "2012-09-01 09:00:00", "2012-09-03 09:00:00", 8870),
    ]
    tables["condition_occurrence"] += [
        condition(1, 1, "2012-03-02 10:00:00", None, concept=1),  # inside: linked
        condition(2, 1, "2012-02-28 10:00:00", 1, concept=2),  # over 24 h before: unlinked
        condition(3, 1, "2012-03-05 14:00:00", 1, concept=3),  # under 24 h after: stays
        condition(4, 1, "2012-07-05 10:00:00", 3, concept=4),  # a later day of a day visit
        condition(5, 1, "2012-07-01 10:00:00", 3, concept=5),
        condition(6, 1, "2012-03-02 10:00:00", 99, concept=6),  # no such visit, but inside one
        condition(7, 1, "2012-03-01 09:30:00", 1, concept=7, condition_type_concept_id=32821),  # on the bill
        condition(8, 2, "2012-03-02 10:00:00", 1, concept=8),  # another subject's visit
    ]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    linked = {concept: events.filter(pl.col("code") == f"condition/{concept}")["visit_id"].to_list()[0] for concept in range(1, 9)}
    assert linked == {1: 1, 2: None, 3: 1, 4: None, 5: 3, 6: 1, 7: 1, 8: None}
    billed = rows_of(events, 1, "condition/7")[0]
    assert (billed["time"], billed["available_time"]) == (at(2012, 3, 1, 9, 30), at(2012, 3, 4, 15))
    discharge = rows_of(events, 1, "discharge/8536")
    assert [(row["time"], row["available_time"], row["visit_id"]) for row in discharge] == [
        (at(2012, 3, 4, 15), at(2012, 3, 4, 15), 1),
        (at(2012, 9, 3, 9), at(2012, 9, 3, 9), 5),
    ]
    ends = dict(events.filter(pl.col("code").str.starts_with("Visit/")).select("visit_id", "end_time").rows())
    assert ends == {1: at(2012, 3, 4, 15), 2: at(2012, 6, 1, 9), 3: at(2012, 7, 1, *LAST), 4: None, 5: at(2012, 9, 3, 9)}
    assert report["visits_recovered"] == {"total": 5, "inpatient": 3, "emergency": 1, "observation": 0, "outpatient": 1, "other": 0}
    assert report["mended"]["visit_occurrence"] == {"day_visit_spanned_days": 1, "visit_end_unknown": 1, "visit_ends_before_start": 1}
    assert report["mended"]["condition_occurrence"] == {
        "linked_inside_visit": 2,
        "unlinked_other_day_of_day_visit": 1,
        "unlinked_over_24h_outside": 1,
        "unlinked_visit_absent": 2,
    }


def test_a_bill_is_not_known_before_its_visit_has_ended(tmp_path: Path) -> None:
    """However it is dated and linked; without a known end it is known with the record's last row, and without any visit by its own date."""
    tables = base()
    tables["visit_occurrence"] = [
        visit(1, 1, "2012-03-05 08:00:00", "2012-03-09 12:00:00"),
        visit(2, 2, "2012-03-05 08:00:00", None),
        visit(3, 3, "2012-03-05 08:00:00", "2012-03-09 12:00:00"),
        visit(4, 3, "2012-05-05 08:00:00", "2012-05-05 20:00:00", 9203),  # becomes the next
        visit(5, 3, "2012-05-05 19:00:00", "2012-05-09 12:00:00"),
        visit(6, 3, "2012-07-01 09:00:00", "2012-07-03 10:00:00", 9202),  # a day visit, until the third day
    ]
    bills = [
        (101, 1, "2012-03-05", None), (102, 1, "2012-03-05", 1), (103, 1, "2012-03-05 08:00:00", None), (104, 2, "2012-03-05 08:00:00", 2),
        (105, 3, "2012-03-03 08:00:00", 3), (106, 3, "2012-03-04 10:00:00", 3), (107, 3, "2012-03-11 10:00:00", 3),
        (108, 3, "2012-03-05 10:00:00", 999), (109, 3, "2012-05-05 10:00:00", 4), (110, 3, "2012-05-05 10:00:00", 5),
        (111, 3, "2012-07-01 09:30:00", 6), (112, 3, "2012-09-01 09:30:00", None), (113, 3, "2012-09-01", 999),
    ]  # fmt: skip
    for concept, subject, time, link in bills:
        row = condition(concept, subject, time, link, concept=concept, condition_type_concept_id=32821)
        tables["condition_occurrence"].append(row if len(time) > 10 else {**row, "condition_start_datetime": None})
    tables["condition_occurrence"].append(condition(1, 2, "2012-08-05 14:00:00"))
    events, _ = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    found = {concept: rows_of(events, subject, f"condition/{concept}")[0]["available_time"] for concept, subject, _, _ in bills}
    assert found == {
        101: at(2012, 3, 9, 12), 102: at(2012, 3, 9, 12), 103: at(2012, 3, 9, 12), 104: at(2012, 8, 5, 14),
        105: at(2012, 3, 9, 12), 106: at(2012, 3, 9, 12), 107: at(2012, 3, 11, 10), 108: at(2012, 3, 9, 12),
        109: at(2012, 5, 5, 20), 110: at(2012, 5, 9, 12), 111: at(2012, 7, 3, 10), 112: at(2012, 9, 1, 9, 30), 113: at(2012, 9, 1, *LAST),
    }  # fmt: skip


def test_an_emergency_visit_that_runs_into_an_admission_merges(tmp_path: Path) -> None:
    tables = base()
    tables["visit_occurrence"] = [
        visit(1, 1, "2012-03-01 09:00:00", "2012-03-01 20:00:00", 9203, discharged_to_concept_id=8717),
        visit(2, 1, "2012-03-01 19:00:00", "2012-03-05 12:00:00", 9201),
        visit(3, 1, "2012-05-01 09:00:00", "2012-05-01 20:00:00", 9203, discharged_to_concept_id=0),  # ends before the next begins
        visit(4, 1, "2012-05-01 21:00:00", "2012-05-05 12:00:00", 9201),
        visit(5, 1, "2012-05-02 21:00:00", "2012-05-03 12:00:00", 9203, discharged_to_concept_id=0),  # inside: left to the timeline
    ]
    tables["condition_occurrence"].append(condition(1, 1, "2012-03-01 10:00:00", 1, concept=1))
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    stays = events.filter(pl.col("code").str.starts_with("Visit/")).select("visit_id", "code", "time", "end_time").rows()
    assert stays == [
        (2, "Visit/9201", at(2012, 3, 1, 9), at(2012, 3, 5, 12)),
        (3, "Visit/9203", at(2012, 5, 1, 9), at(2012, 5, 1, 20)),
        (4, "Visit/9201", at(2012, 5, 1, 21), at(2012, 5, 5, 12)),
        (5, "Visit/9203", at(2012, 5, 2, 21), at(2012, 5, 3, 12)),
    ]
    assert rows_of(events, 1, "condition/1")[0]["visit_id"] == 2
    assert not rows_of(events, 1, "discharge/8717")
    assert report["tables"]["visit_occurrence"]["dropped"] == {"merged_into_admission": 1}
    assert report["mended"]["visit_occurrence"]["admission_start_moved_to_emergency"] == 1


def test_doubles_and_repeated_ids_of_visits(tmp_path: Path) -> None:
    tables = base()
    tables["visit_occurrence"] = [
        visit(1, 1, "2012-03-01 09:00:00", "2012-03-01 10:00:00", 9202),
        visit(2, 1, "2012-03-01 09:00:00", "2012-03-01 10:00:00", 9202),  # the same but for its id
        visit(3, 1, "2012-04-01 09:00:00", "2012-04-01 10:00:00", 9202),
        visit(3, 1, "2012-04-02 09:00:00", "2012-04-02 10:00:00", 9202),  # another with the same id
        visit(1, 2, "2012-03-01 09:00:00", "2012-03-01 10:00:00", 9202),  # another subject's
    ]
    tables["condition_occurrence"].append(condition(1, 1, "2012-03-01 09:30:00", 2, concept=1))
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert report["tables"]["visit_occurrence"]["dropped"] == {"duplicate": 1, "visit_id_repeated": 1}
    assert rows_of(events, 1, "condition/1")[0]["visit_id"] == 1


def test_death_is_the_end(tmp_path: Path) -> None:
    tables = base()
    tables["death"] = [{"person_id": 1, "death_date": "2012-03-02", "death_datetime": "2012-03-02 08:00:00"}]
    tables["death"] += [{"person_id": 1, "death_date": "2012-03-04", "death_datetime": "2012-03-04 08:00:00"}]
    tables["death"] += [{"person_id": 2, "death_date": "2013-03-02", "death_datetime": None}]
    tables["visit_occurrence"] = [
        visit(1, 1, "2012-03-01 09:00:00", "2012-03-02 09:00:00"),
        visit(2, 1, "2012-03-03 09:00:00", "2012-03-04 09:00:00"),
    ]
    tables["condition_occurrence"] += [
        condition(1, 1, "2012-03-03 07:00:00", 1, concept=1),
        condition(2, 1, "2012-03-03 09:00:00", 1, concept=2),
        condition(3, 2, "2013-03-02 22:00:00", concept=3),
    ]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    death = at(2012, 3, 2, 8)
    assert events.filter(pl.col("subject_id") == 1)["code"].to_list()[-4:] == ["condition/1", "discharge/8536", "MEDS_DEATH", "OBSERVATION//END"]
    moved = rows_of(events, 1, "condition/1")[0]
    assert (moved["time"], moved["available_time"]) == (death, at(2012, 3, 3, 7))
    assert rows_of(events, 1, "Visit/9201")[0]["end_time"] == death
    assert rows_of(events, 2, "MEDS_DEATH")[0]["time"] == at(2013, 3, 2, *LAST)
    assert report["tables"]["condition_occurrence"]["dropped"] == {"after_death": 1}
    assert report["tables"]["visit_occurrence"]["dropped"] == {"after_death": 1}
    assert report["tables"]["death"]["dropped"] == {"death_repeated": 1}
    assert report["mended"]["condition_occurrence"] == {"moved_to_death": 1}


def test_discharge_places_of_cdm_5_3(tmp_path: Path) -> None:
    tables = base()
    row = visit(1, 1, "2012-03-01 09:00:00", "2012-03-02 09:00:00")
    del row["discharged_to_concept_id"]
    tables["visit_occurrence"] = [{**row, "discharge_to_concept_id": 0, "discharge_to_source_value": "HOSPICE"}]
    events, _ = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert len(rows_of(events, 1, "discharge/0/HOSPICE")) == 1


def test_calendars(tmp_path: Path) -> None:
    tables = base()
    tables["condition_occurrence"].append(condition(1, 1, "2999-12-31 10:00:00"))
    tables["visit_occurrence"] = [visit(1, 2, "2010-03-01 09:00:00", "9999-12-31 00:00:00")]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out", latest="2015-01-01")
    assert report["calendar"] == "true"
    assert report["tables"]["condition_occurrence"]["dropped"] == {"in_the_future": 1}
    assert rows_of(events, 2, "Visit/9201")[0]["end_time"] is None
    for row in tables["condition_occurrence"][:-1]:
        row["condition_start_date"] = row["condition_start_date"].replace("2010", "2110")
        row["condition_start_datetime"] = row["condition_start_datetime"].replace("2010", "2110")
    run(write_cdm(tmp_path / "cdm", tables), tmp_path / "shifted")
    assert EventDataset(tmp_path / "shifted").calendar == "shifted"


def test_the_order_of_the_input_does_not_show(tmp_path: Path) -> None:
    tables = everything()
    first, _ = run(write_cdm(tmp_path / "a", tables), tmp_path / "out_a")
    second, _ = run(write_cdm(tmp_path / "b", {name: rows[::-1] for name, rows in tables.items()}), tmp_path / "out_b", threads=2)
    assert first.equals(second)


def test_a_person_without_events_is_still_a_subject(tmp_path: Path) -> None:
    tables = base()
    tables["person"].append(person(77))
    tables["person"].append(person(77, race_concept_id=8516))
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    assert report["subjects"]["total"] == 4
    assert [row["code"] for row in events.filter(pl.col("subject_id") == 77).to_dicts()] == ["ethnicity/0", "gender/8507", "race/8516", "MEDS_BIRTH"]
    assert report["tables"]["person"]["dropped"] == {"demographic_repeated": 1}


def test_the_barest_tables(tmp_path: Path) -> None:
    """Nothing but the columns that a table cannot be read without."""
    tables = {
        "person": [{"person_id": number} for number in (1, 2, 3)],
        "visit_occurrence": [{"visit_occurrence_id": 1, "person_id": 1, "visit_concept_id": 9202, "visit_start_date": "2010-01-01"}],
        "condition_occurrence": [{"person_id": 1, "condition_source_value": "I10", "condition_start_date": "2010-01-01"}],
        "drug_exposure": [{"person_id": 2, "drug_concept_id": 5, "drug_exposure_start_date": "2010-01-01"}],
        "procedure_occurrence": [{"person_id": 2, "procedure_concept_id": 5, "procedure_date": "2010-01-01"}],
        "measurement": [{"person_id": 3, "measurement_concept_id": 5, "measurement_date": "2010-01-01"}],
        "observation": [{"person_id": 3, "observation_concept_id": 5, "observation_date": "2010-01-01"}],
        "death": [{"person_id": 3, "death_date": "2010-01-02"}],
    }
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "out")
    clinical = events.filter(pl.col("time").is_not_null() & ~pl.col("code").str.starts_with("OBSERVATION"))
    codes = ["Visit/9202", "condition/0/I10", "drug/5", "procedure/5", "measurement/5", "observation/5", "MEDS_DEATH"]
    assert clinical["code"].to_list() == codes
    assert report["tables_absent"] == ["observation_period", "device_exposure", "visit_detail", "concept", "concept_ancestor"]


def test_parts_may_have_other_columns(tmp_path: Path) -> None:
    """A column that only some parts of a table have is null in the others, whichever part comes first."""
    tables = base()
    rows = tables.pop("condition_occurrence")
    write_cdm(tmp_path / "cdm", tables, suffix=".parquet")
    (tmp_path / "cdm" / "condition_occurrence").mkdir()
    bare = pl.DataFrame(rows[:20]).select("person_id", "condition_concept_id", "condition_start_date")
    coded = pl.DataFrame(rows[20:]).with_columns(pl.lit(0).alias("condition_concept_id"), pl.lit("I50.9").alias("condition_source_value"))
    for first, second in ((bare, coded), (coded, bare)):
        for number, frame in enumerate((first, second)):
            frame.write_parquet(tmp_path / "cdm" / "condition_occurrence" / f"{number}.parquet")
        events, report = run(tmp_path / "cdm", tmp_path / "out")
        counted = dict(events.filter(pl.col("code").str.starts_with("condition")).group_by("code").len().rows())
        assert counted == {"condition/316139": 20, "condition/0/I50.9": 16}
        assert report["tables"]["condition_occurrence"] == {"read": 36, "kept": 36, "dropped": {}}
        shutil.rmtree(tmp_path / "out")


def test_a_long_text_is_read(tmp_path: Path) -> None:
    tables = base()
    tables["observation"] = [{"person_id": 1, "observation_concept_id": 5, "observation_date": "2010-01-01", "value_as_string": "word " * 900_000}]
    for suffix in (".csv", ".csv.gz"):
        events, _ = run(write_cdm(tmp_path / suffix, tables, suffix=suffix), tmp_path / f"out{suffix}")
        assert rows_of(events, 1, "observation/5")[0]["text_value"] == ("word " * 900_000).strip()


def test_forms_that_other_programs_write(tmp_path: Path) -> None:
    expected, _ = run(write_cdm(tmp_path / "plain", base()), tmp_path / "out")
    for path in write_cdm(tmp_path / "windows", base()).glob("*.csv"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    for path in write_cdm(tmp_path / "quoted", base()).glob("*.csv"):
        path.write_text(pl.read_csv(path).write_csv(separator="\t", quote_style="always"))
        path.rename(path.with_suffix(".txt"))
    write_cdm(tmp_path / "pandas", base(), suffix=".parquet")
    path = tmp_path / "pandas" / "condition_occurrence.parquet"
    frame = pl.read_parquet(path).with_columns(pl.col("condition_start_datetime").str.to_datetime("%Y-%m-%d %H:%M:%S", time_unit="ns"))
    frame = frame.with_columns(pl.col("condition_start_date").str.to_date(), pl.col("person_id").cast(pl.Float64))
    path.unlink()
    parts = path.with_name("CONDITION_OCCURRENCE")
    parts.mkdir()
    frame.head(10).write_parquet(parts / "part-0.parquet")
    frame.tail(-10).write_parquet(parts / "part-1.parquet")
    for name in ("windows", "quoted", "pandas"):
        found, _ = run(tmp_path / name, tmp_path / f"out_{name}")
        assert found.equals(expected), name
    zoned = frame.with_columns(pl.col("condition_start_datetime").dt.replace_time_zone("America/New_York"))
    zoned.write_parquet(parts / "part-0.parquet")
    (parts / "part-1.parquet").unlink()
    found, _ = run(tmp_path / "pandas", tmp_path / "out_zoned")
    assert rows_of(found, 1, "condition/316139")[0]["time"] == at(2010, 1, 1, 15, 30)
