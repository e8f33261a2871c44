"""The rest of OMOP on its way out: intensive care, wards, devices, results, signs, lengths of drugs; and in again."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

from cehrxgpt import schema as s
from cehrxgpt.synthesis.check import check_omop
from cehrxgpt.synthesis.omop import write_omop
from test_synthesis_omop import LAST, event, read, table
from test_synthesis_roundtrip import back, same

AT = datetime(2010, 3, 4, 9)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def patient(subject: int) -> list[dict[str, Any]]:
    """One stay with every kind of row that the first export did not have."""
    inside = {"visit_id": 7}
    lab = {"origin": "measurement", **inside}
    return [
        event(subject, datetime(1950, 2, 3), s.BIRTH, time_precision="day"),
        event(subject, None, "gender/8532"),
        event(subject, AT - AT.hour * HOUR, s.OBSERVATION_START, time_precision="day", origin="observation_period"),
        event(subject, AT, "Visit/9201", end_time=AT + 9 * DAY, origin="visit_occurrence", **inside),
        event(subject, AT + HOUR, "VisitDetail/32037", end_time=AT + 2 * DAY, origin="visit_detail", **inside),
        event(subject, AT + 2 * DAY, "VisitDetail/4305366", end_time=AT + 3 * DAY, origin="visit_detail", **inside),
        event(subject, AT + 3 * DAY, "visit_detail/4150076", end_time=AT + 5 * DAY, origin="visit_detail", **inside),
        event(subject, AT + 2 * HOUR, "device/45768171", end_time=AT + 2 * DAY, origin="device_exposure", **inside),
        event(subject, AT + 4 * HOUR, "device/0/224087", origin="device_exposure", **inside),
        event(subject, AT + 2 * HOUR, "drug/1", end_time=AT + 6 * DAY, origin="drug_exposure", **inside),
        event(subject, AT + 3 * HOUR, "measurement/1", numeric_value=5.0, unit="8840", operator="<", **lab),
        event(subject, AT + 3 * HOUR, "measurement/2", numeric_value=5.0, unit="mg", operator=">=", text_value="45884084", **lab),
        event(subject, AT + 3 * HOUR, "measurement/3", text_value="positive", **lab),
        event(subject, AT + 5 * HOUR, "observation/1", numeric_value=2.0, unit="8554", origin="observation", **inside),
        event(subject, AT + 5 * HOUR, "observation/2", text_value="45884084", origin="observation", **inside),
        event(subject, AT + 5 * HOUR, "observation/3", text_value="never", origin="observation", **inside),
        event(subject, AT + 9 * DAY, "discharge/8536", origin="visit_occurrence", **inside),
        event(subject, AT + 90 * DAY, "condition/1", origin="condition_occurrence"),
        event(subject, datetime(2010, 12, 1) + LAST, s.OBSERVATION_END, time_precision="day", origin="observation_period"),
    ]


def test_all_kinds_come_back(tmp_path: Path) -> None:
    events = table(patient(1) + patient(2) + patient(3))
    again = back(events, tmp_path)
    same(events, again)
    assert again.filter(pl.col("code").str.starts_with(s.ICU_PREFIX))["visit_id"].null_count() == 0
    (tmp_path / "twice").mkdir()
    same(again, back(again, tmp_path / "twice"))


def test_what_the_tables_say(tmp_path: Path) -> None:
    summary = write_omop(table(patient(1)), tmp_path / "cdm")
    assert check_omop(tmp_path / "cdm") == {}
    details = read(tmp_path / "cdm", "visit_detail")
    assert details.select("visit_detail_id", "visit_detail_concept_id", "visit_occurrence_id").rows() == [
        (1, 32037, 1),
        (2, 4305366, 1),
        (3, 4150076, 1),
    ]
    assert details["visit_detail_end_datetime"].to_list() == [AT + 2 * DAY, AT + 3 * DAY, AT + 5 * DAY]
    assert read(tmp_path / "cdm", "device_exposure")["device_exposure_end_datetime"].to_list() == [AT + 2 * DAY, None]
    labs = read(tmp_path / "cdm", "measurement")
    assert labs["operator_concept_id"].to_list() == [4171756, 4171755, None]
    assert labs["value_as_concept_id"].to_list() == [None, 45884084, None]
    assert labs["value_source_value"].to_list() == [None, None, "positive"]
    seen = read(tmp_path / "cdm", "observation").select("value_as_number", "value_as_concept_id", "value_as_string").rows()
    assert seen == [(2.0, None, None), (None, 45884084, None), (None, None, "never")]
    assert "visit_detail_without_visit" not in summary["changed"]
    assert summary["concept_zero"] == {"device_exposure": 1}


def test_a_detail_needs_a_visit_and_an_end(tmp_path: Path) -> None:
    """Without a visit it is an observation, counted; without an end it ends with its visit, or where it begins; MEDS units have a concept."""
    rows = patient(1)[:4]
    rows += [
        event(1, AT + HOUR, "VisitDetail/icu", origin="visit_detail", visit_id=7),
        event(1, AT + HOUR, "visit_detail/4150076", origin="visit_detail", visit_id=7),
        event(1, AT + 30 * DAY, "visit_detail/32037", origin="visit_detail", end_time=AT + 31 * DAY),
    ]
    summary = write_omop(table(rows), tmp_path / "cdm")
    assert check_omop(tmp_path / "cdm") == {}
    details = read(tmp_path / "cdm", "visit_detail").select("visit_detail_concept_id", "visit_detail_end_datetime").rows()
    assert sorted(details) == [(32037, AT + 9 * DAY), (4150076, AT + HOUR)]
    assert read(tmp_path / "cdm", "observation")["observation_source_value"].to_list() == ["visit_detail/32037"]
    assert summary["changed"]["visit_detail_without_visit"] == 1
    assert summary["changed"]["visit_detail_without_end"] == 2
    assert summary["rows"]["visit_detail"] == 2


def test_drugs_get_their_usual_length(tmp_path: Path) -> None:
    """Not beyond death, and `verbatim_end_date` tells what was said from what was made up."""
    death = AT + 15 * DAY
    rows = patient(1)[:4]
    rows += [event(1, AT + n * DAY, code, origin="drug_exposure") for n, code in enumerate(("drug/1", "drug/1", "drug/2", "drug/1"))]
    rows[-1] |= {"end_time": AT + 5 * DAY}
    rows[5] |= {"time": AT + 10 * DAY, "available_time": AT + 10 * DAY}
    rows.append(event(1, death, s.DEATH, origin="death"))
    summary = write_omop(table(rows), tmp_path / "cdm", drug_days={"drug/1": 7})
    assert check_omop(tmp_path / "cdm") == {}
    drugs = read(tmp_path / "cdm", "drug_exposure").sort("drug_exposure_start_date")
    days = [date.day for date in drugs["drug_exposure_end_date"].to_list()]
    assert days == [10, 6, 9, 19]  # of seven days; of one day, as it is not known; its own; seven days, but for death
    assert [date and date.day for date in drugs["verbatim_end_date"].to_list()] == [None, None, 9, None]
    assert summary["changed"] | {"drug_end_of_usual_length": 2, "drug_end_on_its_first_day": 1} == summary["changed"]
