"""Data-quality findings: counted by hand on twelve people, graded as the thresholds say, silent where all is well."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.events import EVENT_DTYPES
from cehrxgpt.report.quality.evidence import Evidence, Finding, Task
from cehrxgpt.report.quality.facts import Part, gather
from cehrxgpt.report.quality.findings import judge
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections.quality import how_many, section

DAY = datetime(2020, 1, 1)


def _person(subject: int) -> list[dict[str, Any]]:
    """A whole, sound record: one admission with a lab in it, watched for a year after."""
    visit = {"subject_id": subject, "visit_id": subject, "time_precision": "minute"}
    return [
        {"subject_id": subject, "code": "gender/8532"},
        {"subject_id": subject, "code": "race/8527"},
        {"subject_id": subject, "time": datetime(1950, 1, 1), "code": s.BIRTH},
        {**visit, "time": DAY, "end_time": DAY + timedelta(days=3), "code": "Visit/9201", "origin": "visit_occurrence"},
        {**visit, "time": DAY + timedelta(hours=1), "code": "measurement/1", "numeric_value": 5.0, "unit": "8840", "origin": "measurement"},
        {**visit, "time": DAY + timedelta(days=2), "code": "condition/1", "origin": "condition_occurrence"},
        {"subject_id": subject, "time": DAY + timedelta(days=400), "code": s.OBSERVATION_END},
    ]


def _run(root: Path, rows: list[dict[str, Any]]) -> RunFolder:
    folder = root / "events" / "data" / "train"
    folder.mkdir(parents=True)
    pl.DataFrame(rows, schema=EVENT_DTYPES).sort("subject_id").write_parquet(folder / "0.parquet")
    (root / "events/metadata").mkdir()
    names = pl.DataFrame({"code": ["measurement/1", "condition/1", "condition/2000000001"], "description": ["Creatinine", "Asthma", "Ours"]})
    names.write_parquet(root / "events/metadata/codes.parquet")
    return RunFolder(root)


def test_a_sound_population_counts_nothing(tmp_path: Path) -> None:
    facts = gather(_run(tmp_path, [row for subject in range(12) for row in _person(subject)]))
    assert facts is not None
    assert (facts.subjects, facts.events, facts.clinical, facts.visits, facts.deaths) == (12, 84, 24, 12, 0)
    for name, value in vars(facts).items():
        if isinstance(value, Part):
            assert value.count == 0, name
    assert facts.outside_visits.of == facts.day_only.of == facts.unmapped.of == 24
    assert facts.mixed_units == Part(0, 1)


def test_what_is_wrong_is_counted_by_hand(tmp_path: Path) -> None:
    rows = [row for subject in range(12) for row in _person(subject)]
    later = {"time": DAY + timedelta(days=9), "origin": "condition_occurrence", "time_precision": "day"}
    rows += [{"subject_id": 0, "code": f"condition/0/I{n}", **later} for n in range(3)]
    rows += [{"subject_id": 1, "code": "condition/2000000001", **later}]
    lab = {"code": "measurement/1", "origin": "measurement", "time": DAY + timedelta(days=1), "visit_id": 1, "time_precision": "minute"}
    rows += [{"subject_id": n, **lab, "numeric_value": 80.0, "unit": "8749"} for n in range(12)]
    rows += [{"subject_id": 3, **lab, "numeric_value": 1.0, "unit": None}]
    rows += [{"subject_id": 4, "time": DAY + timedelta(days=30), "code": "Visit/9202", "visit_id": 99}]
    rows += [{"subject_id": 50, "time": DAY, "code": "condition/1", "origin": "condition_occurrence", "time_precision": "day"}]
    rows += [{"subject_id": 50, "time": DAY + timedelta(days=1), "code": s.OBSERVATION_END}]
    facts = gather(_run(tmp_path, rows))
    assert facts is not None
    assert facts.outside_visits == Part(5, 42, (("condition_occurrence", 5),))
    assert facts.day_only == Part(5, 42, (("condition_occurrence", 5),))
    assert facts.unmapped == Part(3, 42, (("condition_occurrence", 3),))
    assert (facts.local.count, facts.nameless.count) == (1, 3)
    assert facts.unitless == Part(1, 25, (("measurement", 1),))
    assert facts.open_visits == Part(1, 13)
    assert facts.mixed_units == Part(1, 1, (("Creatinine (2 units)", 24),))
    assert [getattr(facts, name).count for name in ("unknown_gender", "unknown_race", "no_birth", "one_day")] == [1, 1, 1, 1]
    assert facts.period_ends_with_record == Part(1, 13)


def test_stays_in_units_are_no_clinical_events(tmp_path: Path) -> None:
    unit = {"subject_id": 1, "time": DAY, "end_time": DAY + timedelta(days=1), "code": "VisitDetail/32037", "origin": "visit_detail"}
    facts = gather(_run(tmp_path, [*_person(1), unit]))
    assert facts is not None
    assert (facts.clinical, facts.visits, facts.outside_visits.count) == (2, 1, 0)


def test_a_death_ends_observation_rightly(tmp_path: Path) -> None:
    rows = _person(1)[:-1]
    rows += [{"subject_id": 1, "time": DAY + timedelta(days=3), "code": code} for code in (s.DEATH, s.OBSERVATION_END)]
    facts = gather(_run(tmp_path, rows))
    assert facts is not None
    assert (facts.deaths, facts.period_ends_with_record.count) == (1, 0)


def test_values_far_outside_their_bins(tmp_path: Path) -> None:
    rows = [row for subject in range(12) for row in _person(subject)]
    lab = {"code": "measurement/1", "origin": "measurement", "time": DAY, "unit": "8840"}
    rows += [{"subject_id": n, "numeric_value": value, **lab} for n in range(11) for value in (999.0, 19.9, -9.9)]
    run = _run(tmp_path, rows)
    (tmp_path / "timeline").mkdir()
    bins = {"code": ["measurement/1"] * 2, "unit": ["8840"] * 2, "bin_low": [0.0, 5.0], "bin_high": [5.0, 10.0]}
    pl.DataFrame(bins).write_parquet(tmp_path / "timeline/vocabulary.parquet")
    facts = gather(run)
    assert facts is not None
    assert facts.far_values == Part(11, 45, (("Creatinine", 11),))


@pytest.mark.parametrize(
    ("dropped", "severity"),
    [({}, None), ({"duplicate": 9}, None), ({"duplicate": 10}, "low"), ({"duplicate": 500}, "medium"), ({"duplicate": 3000}, "high")],
)
def test_duplicates_are_graded(dropped: dict[str, int], severity: str | None) -> None:
    verdict = judge(Evidence(ingest={"tables": {"drug_exposure": {"read": 10_000, "kept": 9000, "dropped": dropped}}}))
    found = [one for one in verdict.findings if one.title == "Duplicate rows"]
    assert [one.severity for one in found] == ([severity] if severity else [])
    assert ("Duplicate rows" in verdict.passed) == (severity is None)
    if found:
        assert found[0].where == (("drug_exposure", dropped["duplicate"]),)


@pytest.mark.parametrize(
    ("task", "severity", "title"),
    [
        (Task("t_1y", 0, 0, 0, 0, "none of the 3 codes"), "high", "t 1y: the data cannot answer it"),
        (Task("t_1y", 900, 0, 10, 0), "high", "t 1y: nobody has the outcome"),
        (Task("t_1y", 900, 890, 10, 80), "high", "t 1y: everybody has the outcome"),
        (Task("t_1y", 900, 90, 10, 19), "medium", "t 1y: few outcomes to judge by"),
        (Task("t_1y", 900, 90, 200, 20), "low", "t 1y: many outcomes are not known"),
        (Task("t_1y", 900, 90, 400, None), "medium", "t 1y: many outcomes are not known"),
        (Task("t_1y", 900, 90, 100, 20), None, ""),
    ],
)
def test_tasks_are_judged(task: Task, severity: str | None, title: str) -> None:
    verdict = judge(Evidence(tasks=(task,)))
    assert [(one.severity, one.title) for one in verdict.findings] == ([(severity, title)] if severity else [])


def test_the_ingests_account_is_judged() -> None:
    ingest = {
        "tables": {"person": {"read": 100, "kept": 100, "dropped": {}}},
        "calendar": "shifted",
        "observation_policy": "first_to_last_event",
        "visits_recovered": {"total": 500, "inpatient": 500, "outpatient": 0},
        "visits_of_unlisted_concepts": {"Visit/77": 200},
        "unreadable_values": {"measurement": {"value_as_number": 4}},
        "notes": ["ED_OUT: all 181 rows were dropped"],
        "unreadable_dates": {"drug_exposure": {"drug_exposure_end_date": [30, 100], "drug_exposure_start_date": [60, 100]}},
    }
    titles = {one.title: one.severity for one in judge(Evidence(ingest=ingest)).findings}
    assert titles == {
        "Visit concepts that are not listed": "high",
        "Values that could not be read": "medium",
        "The data has no observation periods": "medium",
        "Nearly every visit is inpatient": "medium",
        "Dates are shifted": "low",
        "A table was set aside whole": "low",
        "Many dates of a table cannot be read": "high",
    }
    one = next(one for one in judge(Evidence(ingest=ingest)).findings if one.title.startswith("Many dates"))
    assert (one.count, one.of) == (90, 200)
    assert one.where[0] == ("drug_exposure.drug_exposure_start_date", 60)


def test_other_notes_are_no_lost_table() -> None:
    zoned = {"tables": {"person": {"read": 1}}, "notes": ["visit_occurrence: 3 times have a zone; offsets were dropped, instants read in UTC"]}
    assert not [one for one in judge(Evidence(ingest=zoned)).findings if one.title == "A table was set aside whole"]


def test_the_worst_comes_first_and_small_counts_are_hidden(tmp_path: Path) -> None:
    rows = [row for subject in range(12) for row in _person(subject)]
    rows += [{"subject_id": 0, "code": "condition/0/<script>alert(1)</script>", "time": DAY, "origin": "<b>odd</b>"} for _ in range(30)]
    run = _run(tmp_path, rows)
    (tmp_path / "events/ingest.json").write_text(json.dumps({"calendar": "shifted"}), encoding="utf-8")
    page = section(run).body
    order = [page.index(f'class="severity {grade}"') for grade in ("high", "medium", "low")]
    assert order == sorted(order)
    assert "30 of 54 clinical events" in page
    assert "<script>" not in page
    assert "<b>odd" not in page
    assert "&lt;b&gt;odd" in page
    few = Finding("low", "plausibility", "x", "y", "z", 3, 1000, "rows")
    assert (how_many(few), how_many(Finding("low", "fitness", "x", "y", "z", 7, None, "subjects"))) == ("<11 of 1,000 rows", "<11 subjects")


@pytest.mark.parametrize("subjects", [0, 1])
def test_nobody_and_one_person(tmp_path: Path, subjects: int) -> None:
    run = _run(tmp_path, [row for subject in range(subjects) for row in _person(subject)])
    facts = gather(run)
    assert facts is not None
    assert facts.subjects == subjects
    assert section(run).body
