"""visit_detail, device_exposure and observation results: read, judged, accounted for."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl

from sources_cdm import base, run, visit, write_cdm


def detail(identifier: int, start: str, end: str | None, concept: int, visit_id: int | None = 7, **more: Any) -> dict[str, Any]:
    row = {"visit_detail_id": identifier, "person_id": 1, "visit_detail_concept_id": concept, "visit_occurrence_id": visit_id}
    row |= {"visit_detail_start_date": start[:10], "visit_detail_start_datetime": start}
    return {
        **row,
        "visit_detail_end_date": end and end[:10],
        "visit_detail_end_datetime": end,
        "visit_detail_source_value": f"key-{identifier}",
        **more,
    }


def read(tmp_path: Path, **tables: list[dict[str, Any]]) -> tuple[pl.DataFrame, dict[str, Any]]:
    visits = [visit(7, 1, "2010-01-01 08:00:00", "2010-01-09 12:00:00"), visit(8, 1, "2010-03-01 09:00:00", "2010-03-01 10:00:00", 9202)]
    events, report = run(write_cdm(tmp_path / "cdm", base() | {"visit_occurrence": visits} | tables), tmp_path / "out")
    return events.filter(pl.col("origin").is_in(list(tables))), report


def test_intensive_care_and_wards(tmp_path: Path) -> None:
    details = [
        detail(1, "2010-01-02 10:00:00", "2010-01-04 11:30:00", 32037),
        detail(2, "2010-01-04 11:30:00", "2010-01-05 09:00:00", 4150076),
        detail(3, "2010-01-05 09:00:00", "2010-01-11 00:00:00", 40481392),  # goes on beyond the visit
        detail(4, "2010-01-01 08:00:00", "2010-01-09 12:00:00", 9201),  # says what the visit says
        detail(5, "2010-01-02 10:00:00", "2010-01-04 11:30:00", 32037),  # the first one again, but for its keys
        detail(6, "2010-03-01 09:00:00", "2010-03-01 10:00:00", 32037, visit_id=8),  # no stay around it
        detail(9, "2010-05-01 09:00:00", "2010-05-02 10:00:00", 0, visit_id=None),
        detail(10, "2010-01-06 09:00:00", None, 32037, visit_id=None),  # lies inside the stay
    ]
    found, report = read(tmp_path, visit_detail=details)
    rows = found.select("code", "time", "end_time", "visit_id").rows()
    assert rows == [
        ("VisitDetail/32037", datetime(2010, 1, 2, 10), datetime(2010, 1, 4, 11, 30), 7),
        ("visit_detail/4150076", datetime(2010, 1, 4, 11, 30), datetime(2010, 1, 5, 9), 7),
        ("VisitDetail/40481392", datetime(2010, 1, 5, 9), datetime(2010, 1, 9, 12), 7),
        ("VisitDetail/32037", datetime(2010, 1, 6, 9), None, 7),
        ("visit_detail/32037", datetime(2010, 3, 1, 9), datetime(2010, 3, 1, 10), 8),
        ("visit_detail/0", datetime(2010, 5, 1, 9), datetime(2010, 5, 2, 10), None),
    ]
    assert found["available_time"].equals(found["time"]), "known when it begins"
    assert report["tables"]["visit_detail"] == {"read": 8, "kept": 6, "dropped": {"duplicate": 1, "repeats_its_visit": 1}}
    mended = report["mended"]["visit_detail"]
    assert mended == {"intensive_care_cut_to_its_visit": 1, "intensive_care_outside_every_stay": 1, "linked_inside_visit": 1}
    assert report["stays_in_intensive_care"] == 3


def test_devices_and_their_ends(tmp_path: Path) -> None:
    common = {"person_id": 1, "device_exposure_start_date": "2010-01-02", "device_exposure_start_datetime": "2010-01-02 10:00:00"}
    devices = [
        {**common, "device_exposure_id": 1, "device_concept_id": 45768171, "device_exposure_end_date": "2010-01-03", "visit_occurrence_id": 7},
        {**common, "device_exposure_id": 2, "device_concept_id": 0, "device_source_value": "224087"},
    ]
    found, report = read(tmp_path, device_exposure=devices)
    assert found.select("code", "end_time", "visit_id").rows() == [
        ("device/0/224087", None, 7),
        ("device/45768171", datetime(2010, 1, 3, 23, 59, 59, 999999), 7),
    ]
    assert report["tables"]["device_exposure"]["kept"] == 2


def test_results_of_observations_and_signs_of_measurements(tmp_path: Path) -> None:
    common = {"person_id": 1, "observation_date": "2010-02-02", "observation_datetime": "2010-02-02 10:00:00"}
    results = [{"value_as_number": 3.5, "unit_concept_id": 8554}, {"value_as_concept_id": 45884084}, {"value_as_string": "never"}]
    observations = [{**common, "observation_id": n, "observation_concept_id": 40 + n, **result} for n, result in enumerate(results)]
    common = {"person_id": 1, "measurement_date": "2010-02-03", "measurement_datetime": "2010-02-03 10:00:00", "value_as_number": 5.0}
    signs = (4171756, 4171754, 4171755, 4172704, 4172703, 0)
    measurements = [
        {**common, "measurement_id": n, "measurement_concept_id": 60 + n, "operator_concept_id": sign, "value_as_concept_id": n * 45884084}
        for n, sign in enumerate(signs)
    ]
    found, _ = read(tmp_path, observation=observations, measurement=measurements)
    seen = found.filter(origin="observation").select("code", "numeric_value", "unit", "text_value").rows()
    assert seen == [("observation/40", 3.5, "8554", None), ("observation/41", None, None, "45884084"), ("observation/42", None, None, "never")]
    labs = found.filter(origin="measurement")
    assert labs["operator"].to_list() == ["<", "<=", ">=", ">", None, None]
    assert labs["text_value"].to_list()[:2] == [None, "45884084"]
    assert labs["numeric_value"].to_list() == [5.0] * 6


def test_a_date_is_known_at_the_end_of_its_day(tmp_path: Path) -> None:
    """Intensive care by date alone on the day of the admission; an admission by date alone that takes up an emergency visit."""
    day = detail(1, "2010-01-01", "2010-01-04 11:30:00", 32037) | {"visit_detail_start_datetime": None}
    found, _ = read(tmp_path, visit_detail=[day])
    assert found.select("time", "available_time", "time_precision").row(0) == (
        datetime(2010, 1, 1, 8), datetime(2010, 1, 1, 23, 59, 59, 999999), "day",
    )  # fmt: skip
    day |= {"visit_detail_start_date": "2009-12-31"}
    dated = visit(7, 1, "2010-01-01", "2010-01-09") | {"visit_start_datetime": None, "visit_end_datetime": None}
    found, report = read(tmp_path / "before", visit_detail=[day], visit_occurrence=[dated])
    found = found.filter(origin="visit_detail")
    assert report["mended"]["visit_detail"] == {"intensive_care_cut_to_its_visit": 1}
    assert found.select("time", "available_time", "time_precision").row(0) == (
        datetime(2010, 1, 1), datetime(2010, 1, 1, 23, 59, 59, 999999), "day",
    )  # fmt: skip
    emergency = visit(7, 1, "2010-01-01 10:00:00", "2010-01-02 15:00:00", 9203)
    admitted = visit(8, 1, "2010-01-02", "2010-01-09 12:00:00") | {"visit_start_datetime": None}
    events, _ = run(write_cdm(tmp_path / "other", base() | {"visit_occurrence": [emergency, admitted]}), tmp_path / "events")
    row = events.filter(pl.col("code") == "Visit/9201")
    assert row.select("time", "available_time").row(0) == (datetime(2010, 1, 1, 10), datetime(2010, 1, 2, 23, 59, 59, 999999))


def test_a_supply_that_says_nothing_leaves_the_end_unknown(tmp_path: Path) -> None:
    drugs = [
        {"drug_exposure_id": number, "person_id": 1, "drug_concept_id": number, "drug_exposure_start_date": "2010-01-02", "days_supply": supply}
        for number, supply in enumerate(["1e30", "inf", "nan", "9223372036854775807", "-3", "7"], 1)
    ]
    found, report = read(tmp_path, drug_exposure=drugs)
    assert report["tables"]["drug_exposure"]["kept"] == 6
    assert found.sort("code")["end_time"].is_not_null().to_list() == [False] * 5 + [True]
