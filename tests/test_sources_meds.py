"""MEDS by dialect, and our own data sets as they are."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cehrxgpt.errors import ConfigError, SchemaError, SourceError
from cehrxgpt.events import EMERGENCY_DTYPES, EVENT_DTYPES, EventDataset
from cehrxgpt.sources import IngestConfig, ingest, read_meds
from cehrxgpt.sources.dialect import load_dialect, shipped
from sources_cdm import base, rows_of, run, visit, write_cdm

COLUMNS = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32, "text_value": pl.String}
MIMIC = {**COLUMNS, "hadm_id": pl.Int64, "unit": pl.String, "race": pl.String, "emar_seq": pl.Int64}


def t(day: int, hour: int = 10, minute: int = 7) -> datetime:
    return datetime(2150, 1, day, hour, minute)


def write_meds(folder: Path, rows: list[dict[str, Any]], schema: dict[str, Any] = MIMIC, split: str = "train") -> Path:
    (folder / "data" / split).mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows, schema=schema).sort("subject_id", "time").write_parquet(folder / "data" / split / "0.parquet")
    return folder


def stay(subject: int = 1) -> list[dict[str, Any]]:
    """One admission through the emergency room, with what is odd in MIMIC."""
    rows = [
        {"time": None, "code": "GENDER//F"},
        {"time": datetime(2080, 1, 1), "code": "MEDS_BIRTH"},
        {"time": t(1, 8), "code": "ED_REGISTRATION"},
        {"time": t(1, 14), "code": "ED_OUT"},
        {"time": t(1, 9), "code": "LAB//50001//mg/dL", "numeric_value": 1.5},
        {"time": t(1, 12), "code": "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM", "hadm_id": 5, "race": "WHITE - RUSSIAN"},
        {"time": t(2), "code": "LAB//50002//UNK", "text_value": "___", "hadm_id": 5},
        {"time": t(2), "code": "LAB//50003//mg/dL", "text_value": " >300 ", "hadm_id": 5},
        {"time": t(2), "code": "LAB//50004//UNK", "text_value": "Yellow", "hadm_id": 5},
        {"time": t(2), "code": "Blood Pressure", "text_value": "120/80"},
        {"time": t(2, 0, 0), "code": "LAB//50005//UNK", "numeric_value": 3.0, "hadm_id": 5},
        {"time": t(3), "code": "MEDICATION//Insulin//Not Given per Sliding Scale", "hadm_id": 5},
        {"time": t(3), "code": "MEDICATION//Insulin//Administered", "hadm_id": 5, "emar_seq": 1},
        {"time": t(3), "code": "MEDICATION//Insulin//Administered", "hadm_id": 5, "emar_seq": 2},
        {"time": t(3), "code": "INFUSION_START//7", "numeric_value": 2.0, "unit": "mL/hour", "hadm_id": 5},
        {"time": t(4), "code": "DIAGNOSIS//ICD//10//I50", "hadm_id": 5},
        {"time": t(5), "code": "HOSPITAL_DISCHARGE//HOME", "hadm_id": 5},
        {"time": t(20), "code": "LAB//50001//mg/dL", "numeric_value": 2.5, "hadm_id": 5},
        {"time": t(21), "code": "ED_REGISTRATION"},
        {"time": t(22), "code": "ED_REGISTRATION"},
        {"time": t(22, 20), "code": "ED_OUT"},
        {"time": t(22, 23), "code": "ED_OUT"},
    ]
    hours = [{"time": t(6 + index // 20, index % 20), "code": "LAB//50009//UNK", "numeric_value": 1.0} for index in range(40)]
    return [{"subject_id": subject, **row} for row in rows + hours]


@pytest.fixture(scope="module")
def mimic(tmp_path_factory: pytest.TempPathFactory) -> tuple[pl.DataFrame, dict[str, Any], Path]:
    folder = tmp_path_factory.mktemp("meds")
    people = [*stay(1), *stay(2), {"subject_id": 3, "time": t(1), "code": "MEDS_DEATH"}, {"subject_id": 3, "time": t(1, 12), "code": "LAB//1//%"}]
    write_meds(folder / "in", people)
    events, report = run(folder / "in", folder / "out", seed=3, splits={"train": 0.4, "tuning": 0.3, "held_out": 0.3}, buckets=2)
    return events, report, folder


def test_visits_of_the_dialect(mimic: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    events, report, _ = mimic
    stays = (
        events.filter((pl.col("subject_id") == 1) & pl.col("code").str.starts_with("Visit/")).select("code", "visit_id", "time", "end_time").rows()
    )
    assert stays[0] == ("Visit/inpatient", 5, t(1, 8), t(5))  # the emergency visit ran into it
    assert [(code, start, end) for code, _, start, end in stays[1:]] == [("Visit/emergency", t(21), None), ("Visit/emergency", t(22), t(22, 20))]
    assert all(identifier < 0 for _, identifier, _, _ in stays[1:])
    assert report["dialect"] == "mimic"
    assert report["calendar"] == "shifted"
    discharge = rows_of(events, 1, "discharge/HOME")
    assert [(row["time"], row["available_time"], row["visit_id"]) for row in discharge] == [(t(5), t(5), 5)]
    assert len(rows_of(events, 1, "HOSPITAL_ADMISSION//EW EMER.//EMERGENCY ROOM")) == 1
    assert report["tables"]["ED_OUT"]["dropped"] == {"only_ends_a_visit": 6}
    assert report["tables"]["ED_REGISTRATION"] == {"read": 6, "kept": 4, "dropped": {"merged_into_admission": 2}}


def test_links_and_availability(mimic: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    events, _, _ = mimic
    first, late = rows_of(events, 1, "LAB//50001//mg/dL")
    assert (first["visit_id"], late["visit_id"]) == (5, None)
    diagnosis = rows_of(events, 1, "DIAGNOSIS//ICD//10//I50")[0]
    assert (diagnosis["time"], diagnosis["available_time"]) == (t(4), t(5))
    assert rows_of(events, 1, "LAB//50005//UNK")[0]["time_precision"] == "minute"  # charted on the hour, midnight among them


def test_a_bill_without_a_discharge_is_known_with_the_last_row(tmp_path: Path) -> None:
    """Also one that does not say which admission it is of."""
    people = []
    for subject, discharged in ((1, True), (2, False), (3, True)):
        rows: list[dict[str, Any]] = [{"time": t(1), "code": "HOSPITAL_ADMISSION//EW EMER.//ED", "hadm_id": 5}]
        rows += [{"time": t(5), "code": "HOSPITAL_DISCHARGE//HOME", "hadm_id": 5}] if discharged else []
        rows += [{"time": t(1), "code": "DIAGNOSIS//ICD//10//I50", "hadm_id": 5}, {"time": t(2), "code": "DRG//HCFA//1//X"}]
        rows += [{"time": t(day, hour), "code": f"LAB//{day}//%"} for day in (3, 9) for hour in range(1, 20)]
        people += [{"subject_id": subject, **row} for row in rows]
    events, _ = run(write_meds(tmp_path / "in", people), tmp_path / "out")
    for code in ("DIAGNOSIS//ICD//10//I50", "DRG//HCFA//1//X"):
        assert [rows_of(events, subject, code)[0]["available_time"] for subject in (1, 2)] == [t(5), t(9, 19)]


def test_values_and_units(mimic: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    events, report, _ = mimic
    picked = events.filter((pl.col("subject_id") == 1) & (pl.col("time") == t(2)) | ((pl.col("subject_id") == 1) & (pl.col("time") == t(3))))
    found = {row["code"]: (row["numeric_value"], row["text_value"], row["operator"], row["unit"], row["origin"]) for row in picked.to_dicts()}
    assert found == {
        "LAB//50002//UNK": (None, None, None, None, "measurement"),
        "LAB//50003//mg/dL": (300.0, None, ">", "mg/dL", "measurement"),
        "LAB//50004//UNK": (None, "Yellow", None, None, "measurement"),
        "Blood Pressure//systolic": (120.0, None, None, None, "measurement"),
        "Blood Pressure//diastolic": (80.0, None, None, None, "measurement"),
        "MEDICATION//Insulin//Administered": (None, None, None, None, "drug_exposure"),
        "INFUSION_START//7": (2.0, None, None, "mL/hour", "drug_exposure"),
    }
    assert report["tables"]["MEDICATION"] == {"read": 6, "kept": 2, "dropped": {"duplicate": 2, "not_an_exposure": 2}}


def test_what_only_ends_an_exposure_is_none(tmp_path: Path) -> None:
    """An order's stop and an infusion's end give their time to the row that began it, of the same order and drug, and are dropped."""
    orders: list[tuple[int, str, dict[str, Any]]] = [
        (2, "MEDICATION//START//Insulin", {"poe_id": "1-1"}),
        (2, "MEDICATION//START//Heparin", {"poe_id": "1-1"}),
        (3, "MEDICATION//STOP//Insulin", {"poe_id": "1-1"}),
        (4, "MEDICATION//STOP//Insulin", {"poe_id": "1-1"}),
        (5, "MEDICATION//STOP//Heparin", {"poe_id": "1-2"}),
        (2, "MEDICATION//START//Aspirin", {}),
        (4, "MEDICATION//STOP//Aspirin", {}),
        (1, "MEDICATION//STOP//Warfarin", {"poe_id": "1-3"}),
        (2, "MEDICATION//START//Warfarin", {"poe_id": "1-3"}),
        (2, "INFUSION_START//7", {"order_id": 9, "numeric_value": 2.0}),
        (4, "INFUSION_END//7", {"order_id": 9, "numeric_value": 200.0}),
        (2, "MEDICATION//UNK//Started", {}),
        (3, "MEDICATION//UNK//Stopped - Unscheduled", {}),
        (3, "MEDICATION//Nicotine Patch//Removed", {}),
        (3, "MEDICATION//Clonidine Patch//Removed Existing / Applied New", {}),
    ]
    rows = stay() + [{"subject_id": 1, "time": t(day), "code": code, "hadm_id": 5, **more} for day, code, more in orders]
    schema = {**MIMIC, "poe_id": pl.String, "order_id": pl.Int64}
    events, report = run(write_meds(tmp_path / "in", rows, schema), tmp_path / "out")
    drugs = events.filter((pl.col("origin") == "drug_exposure") & pl.col("code").str.contains("START|UNK|Patch"))
    assert {(row["code"], row["time"].day, row["end_time"] and row["end_time"].day) for row in drugs.to_dicts()} == {
        ("MEDICATION//START//Insulin", 2, 3),
        ("MEDICATION//START//Heparin", 2, None),
        ("MEDICATION//START//Aspirin", 2, None),
        ("MEDICATION//START//Warfarin", 2, None),
        ("INFUSION_START//7", 2, 4),
        ("INFUSION_START//7", 3, None),
        ("MEDICATION//UNK//Started", 2, None),
        ("MEDICATION//Clonidine Patch//Removed Existing / Applied New", 3, None),
    }
    assert report["tables"]["INFUSION_END"] == {"read": 1, "kept": 0, "dropped": {"only_ends_an_exposure": 1}}
    assert report["tables"]["MEDICATION"]["dropped"]["only_ends_an_exposure"] == 7
    assert {table: mends["end_from_a_row_of_its_own"] for table, mends in report["mended"].items() if "end_from_a_row_of_its_own" in mends} == {
        "INFUSION_START": 1,
        "MEDICATION": 1,
    }
    assert not report["notes"]


def test_demographics_and_periods(mimic: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    events, report, _ = mimic
    assert events.filter((pl.col("subject_id") == 1) & pl.col("time").is_null())["code"].to_list() == ["gender/8532", "race/8527"]
    assert report["observation_policy"] == "first_to_last_event"
    assert report["derived"]["first_to_last_event"] == {"OBSERVATION": 6}
    assert rows_of(events, 1, "OBSERVATION//START")[0]["time"] == t(1, 8)
    assert rows_of(events, 1, "OBSERVATION//END")[0]["time"] == t(22, 20)
    assert rows_of(events, 3, "LAB//1//%")[0]["time"] == t(1)  # two hours after the death


def test_the_commonest_race_wins_and_unknown_loses(tmp_path: Path) -> None:
    said = ["UNKNOWN", "UNKNOWN", "UNKNOWN", "WHITE", "BLACK/AFRICAN AMERICAN", "BLACK/AFRICAN AMERICAN"]
    rows = [{"subject_id": 1, "time": t(1 + i), "code": "HOSPITAL_ADMISSION//X//Y", "hadm_id": i, "race": race} for i, race in enumerate(said)]
    rows += [{"subject_id": 2, "time": t(1), "code": "HOSPITAL_ADMISSION//X//Y", "hadm_id": 9, "race": "UNABLE TO OBTAIN"}]
    rows += [{"subject_id": 3, "time": t(1), "code": "LAB//1//%"}]
    events, _ = run(write_meds(tmp_path / "in", rows), tmp_path / "out")
    race = events.filter(pl.col("code").str.starts_with("race/")).select("subject_id", "code").rows()
    assert race == [(1, "race/8516"), (2, "race/0")]


def test_our_own_data_come_back_as_they_were(tmp_path: Path) -> None:
    tables = base((1, 2, 3, 4))
    tables["visit_occurrence"] = [visit(1, 1, "2010-01-01 08:00:00", "2010-01-03 12:00:00")]
    tables["death"] = [{"person_id": 2, "death_date": "2012-01-01"}]
    events, report = run(write_cdm(tmp_path / "cdm", tables), tmp_path / "first")
    again, second = run(tmp_path / "first", tmp_path / "second", buckets=3)
    assert again.equals(events)
    assert second["dialect"] == "own"
    assert second["split_policy"] == "own"
    for name in ("calendar", "observation_policy", "subjects", "visits_recovered", "events"):
        assert second[name] == report[name], name
    one, two = EventDataset(tmp_path / "first"), EventDataset(tmp_path / "second")
    assert one.subject_splits.equals(two.subject_splits)
    assert one.codes.sort("code").equals(two.codes.sort("code"))


def test_our_own_data_must_be_valid(tmp_path: Path) -> None:
    run(write_cdm(tmp_path / "cdm", base()), tmp_path / "first")
    shard = EventDataset(tmp_path / "first").shards()[0]
    pl.read_parquet(shard).with_columns(pl.col("available_time") - timedelta(days=2)).write_parquet(shard)
    with pytest.raises(SchemaError, match="available_time before time"):
        ingest(tmp_path / "first", tmp_path / "second")
    assert not (tmp_path / "second").exists()


def test_plain_meds(tmp_path: Path) -> None:
    rows = [
        {"subject_id": subject, "time": time, "code": code, "text_value": text}
        for subject in (-1, 2, 3)
        for time, code, text in [
            (None, "GENDER//M", None),
            (None, "SITE//A", None),
            (datetime(1960, 5, 5, 3), "MEDS_BIRTH", None),
            (datetime(2001, 5, 5, 3, 4), "ANY//CODE", "words"),
            (datetime(2001, 5, 5, 3, 4), "ANY//CODE", "words"),
        ]
    ]
    write_meds(tmp_path / "in", rows[:5], COLUMNS, "train")
    write_meds(tmp_path / "in", rows[5:10], COLUMNS, "tuning")
    write_meds(tmp_path / "in", rows[10:], COLUMNS, "held_out")
    events, report = run(tmp_path / "in", tmp_path / "out")
    assert events.filter(pl.col("subject_id") == -1)["code"].to_list() == [
        "SITE//A",
        "gender/8507",
        "MEDS_BIRTH",
        "OBSERVATION//START",
        "ANY//CODE",
        "OBSERVATION//END",
    ]
    assert report["split_policy"] == "own"
    assert dict(EventDataset(tmp_path / "out").subject_splits.rows()) == {-1: "train", 2: "tuning", 3: "held_out"}
    assert report["tables"]["other"]["dropped"] == {"duplicate": 3}
    assert report["dialect"] == "plain"


def test_a_dialect_of_ones_own(tmp_path: Path) -> None:
    rows = [{"subject_id": s, "time": t(1 + n), "code": code} for s in (1, 2, 3) for n, code in enumerate(["IN", "X//a//mmol", "OUT//HOME"])]
    write_meds(tmp_path / "in", rows, COLUMNS)
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nvisits: [{visit_class: inpatient, opens: IN, closes: OUT, place_segment: 1}]\nunit_segments: {X: 2}\n")
    events, _ = run(tmp_path / "in", tmp_path / "out", dialect=str(path))
    one = events.filter((pl.col("subject_id") == 1) & pl.col("visit_id").is_not_null()).select("code", "unit").rows()
    assert one == [("Visit/inpatient", None), ("X//a//mmol", "mmol"), ("discharge/HOME", None)]
    path.write_text("name: mine\nvisits: [{visit_class: inpatient, opens: IN, closes: OUT, has_id: true}]\n")
    with pytest.raises(ConfigError, match="visit_id"):
        ingest(tmp_path / "in", tmp_path / "other", IngestConfig(dialect=str(path)))
    with pytest.raises(ConfigError, match="neither shipped"):
        load_dialect("epic")


def test_every_shipped_dialect_loads() -> None:
    assert shipped() == ["mimic", "plain"]
    assert all(load_dialect(name).name == name for name in shipped())


def test_not_meds(tmp_path: Path) -> None:
    (tmp_path / "in" / "data" / "train").mkdir(parents=True)
    path = tmp_path / "in" / "data" / "train" / "0.parquet"
    pl.DataFrame({"patient_id": [1], "time": [t(1)], "code": ["A"]}).write_parquet(path)
    with pytest.raises(SchemaError, match=r"0\.parquet: column 'subject_id' is missing .*patient_id"):
        read_meds(tmp_path / "in", out=tmp_path / "out")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SourceError, match=r"0\.parquet: cannot be read"):
        read_meds(tmp_path / "in", out=tmp_path / "out")
    path.unlink()
    with pytest.raises(SourceError, match="not a MEDS data set"):
        read_meds(tmp_path / "in", out=tmp_path / "out")
    pl.DataFrame({"subject_id": ["x"], "time": [t(1)], "code": ["A"]}).write_parquet(path)
    with pytest.raises(SchemaError, match="column 'subject_id' has 1 of 1 values that are not a whole number"):
        read_meds(tmp_path / "in", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_subject_in_two_splits_is_refused(tmp_path: Path) -> None:
    for split in ("train", "held_out"):
        write_meds(tmp_path / "in", [{"subject_id": 1, "time": t(1), "code": "A"}], COLUMNS, split)
    with pytest.raises(Exception, match="two splits"):
        read_meds(tmp_path / "in", out=tmp_path / "out")


def test_metadata_say_what_it_is(mimic: tuple[pl.DataFrame, dict[str, Any], Path]) -> None:
    folder = mimic[2] / "out"
    about = json.loads((folder / "metadata" / "dataset.json").read_text(encoding="utf-8"))
    assert about["cehrxgpt"] == {"format": "meds", "dialect": "mimic", "calendar": "shifted", "observation_policy": "first_to_last_event"}
    shard = EventDataset(folder).shards()[0]
    assert pl.read_parquet_schema(shard) == EVENT_DTYPES | EMERGENCY_DTYPES


def test_rows_without_a_code_or_a_time(tmp_path: Path) -> None:
    """No code: dropped and counted. No time: a fact is static, what ends or begins a stay is dropped."""
    rows = [
        *stay(1),
        {"subject_id": 1, "time": t(1), "code": None},
        {"subject_id": 1, "time": None, "code": "HOSPITAL_DISCHARGE//DIED", "hadm_id": 5},
    ]
    events, report = run(write_meds(tmp_path / "in", rows), tmp_path / "out")
    assert report["tables"]["other"]["dropped"] == {"no_code": 1}
    assert report["tables"]["HOSPITAL_DISCHARGE"]["dropped"]["no_date"] == 1
    assert "discharge/DIED" not in events["code"].to_list()


def test_intensive_care_moved_on_ends_as_the_next_begins(tmp_path: Path) -> None:
    rows = [*stay(1)] + [
        {"subject_id": 1, "time": t(day, hour), "code": code, "hadm_id": 5}
        for day, hour, code in [(1, 14, "ICU_ADMISSION//MICU"), (1, 20, "ICU_ADMISSION//SICU"), (2, 6, "ICU_DISCHARGE//SICU")]
    ]
    events, _ = run(write_meds(tmp_path / "in", rows), tmp_path / "out")
    stays = events.filter(pl.col("code") == "VisitDetail/icu").sort("time")
    assert stays["end_time"].to_list() == [t(1, 20), t(2, 6)]


def test_a_folder_with_brackets_is_a_folder(tmp_path: Path) -> None:
    events, _ = run(write_meds(tmp_path / "in", stay(1)), tmp_path / "out[2]")
    assert events.height
