"""One subject's record: eras, lanes, labs by hand; silences folded; a page that is safe, whole and bounded."""

from __future__ import annotations

import json
import re
import shutil
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.events import EVENT_DTYPES
from cehrxgpt.report import report
from cehrxgpt.report.folded import FoldedAxis, duration_words, stay_words
from cehrxgpt.report.history import bin_edges, eras, labs, lanes, read_history
from cehrxgpt.report.history_chart import lane_label
from cehrxgpt.report.history_tables import codes_table, visits_table
from cehrxgpt.report.patient_page import drawing, patient_page
from cehrxgpt.report.svg import days
from cehrxgpt.report.timeline_text import figures, subject_lines, summary_lines
from test_report_page import Page
from test_report_run import EVIL, make_run

DAY = datetime(2020, 3, 1)
DRUG, LAB, CONDITION = ({"origin": origin} for origin in ("drug_exposure", "measurement", "condition_occurrence"))


def _events(rows: list[dict[str, Any]]) -> pl.DataFrame:
    return pl.DataFrame([{"subject_id": 1} | row for row in rows], schema=EVENT_DTYPES)


def _drug(start: int, end: int | None, code: str = "drug/1") -> dict[str, Any]:
    return {"time": DAY + timedelta(days=start), "end_time": None if end is None else DAY + timedelta(days=end), "code": code, **DRUG}


@pytest.mark.parametrize(
    ("exposures", "expected"),
    [
        ([(0, 10), (40, 50)], [(0, 50)]),  # 30 days apart: one era
        ([(0, 10), (41, 50)], [(0, 10), (41, 50)]),
        ([(0, 100), (10, 20), (120, 130)], [(0, 130)]),  # a short one inside does not shorten what came before
        ([(0, None), (5, None), (60, None)], [(0, 5), (60, 60)]),
    ],
)
def test_drug_eras(exposures: list[tuple[int, int | None]], expected: list[tuple[int, int]]) -> None:
    history = read_history(_events([_drug(start, end) for start, end in exposures]), 1, {})
    found = [((start - DAY).days, (end - DAY).days) for start, end in eras(history).select("start", "end").iter_rows()]
    assert found == expected


def test_eras_of_one_drug_do_not_touch_anothers() -> None:
    history = read_history(_events([_drug(0, 100), _drug(10, 20, "drug/2"), _drug(200, 210)]), 1, {"drug/2": "B"})
    assert eras(history)["name"].to_list() == ["B", "drug/1", "drug/1"]


RECORD: list[dict[str, Any]] = [
    {"code": "gender/8532"},
    {"code": "MEDS_BIRTH", "time": datetime(1950, 1, 1)},
    {"code": "OBSERVATION//START", "time": datetime(2020, 1, 1)},
    {"code": "Visit/9201", "time": DAY, "end_time": DAY + timedelta(days=4), "visit_id": 7},
    {"code": "VisitDetail/32037", "time": DAY + timedelta(hours=6), "end_time": DAY + timedelta(days=2), "visit_id": 7},
    {"code": "condition/1", "time": DAY, "visit_id": 7, **CONDITION},
    {"code": "condition/1", "time": DAY + timedelta(days=1), "visit_id": 7, **CONDITION},
    {"code": "condition/2", "time": DAY + timedelta(days=1), **CONDITION},
    {"code": "measurement/1", "time": DAY, "numeric_value": 5.0, "unit": "8840", "visit_id": 7, **LAB},
    {"code": "measurement/1", "time": DAY + timedelta(days=1), "numeric_value": 9.0, "unit": "8840", "visit_id": 7, **LAB},
    {"code": "measurement/1", "time": DAY + timedelta(days=2), "numeric_value": 80.0, "unit": "8749", **LAB},
    {"code": "MEDS_DEATH", "time": DAY + timedelta(days=9)},
]
NAMES = {"condition/1": "Asthma", "measurement/1": "Creatinine", "VisitDetail/32037": "Intensive care", "Visit/9201": "Inpatient"}


def test_a_record_by_hand() -> None:
    history = read_history(_events(RECORD), 1, NAMES)
    assert (history.first, history.last, history.died) == (DAY, DAY + timedelta(days=4), DAY + timedelta(days=9))
    assert history.stays.select("class", "name", "events").rows() == [("inpatient", "Inpatient", 5)]
    assert history.units.select("name", "visit_id").rows() == [("Intensive care", 7)]
    assert lanes(history, "conditions").select("name", "days", "entries").rows() == [("Asthma", 2, 2), ("condition/2", 1, 1)]
    assert labs(history, NAMES).select("name", "shown", "n", "low", "high", "value").rows() == [
        ("Creatinine", "mg/dL", 2, 5.0, 9.0, 9.0),
        ("Creatinine", "µmol/L", 1, 80.0, 80.0, 80.0),
    ]


@pytest.mark.parametrize("code", ["VisitDetail/32037", "VisitDetail/4149943", "VisitDetail/Neuro Stepdown"])
def test_every_unit_of_intensive_care_is_one(code: str) -> None:
    """The ingest writes stays in intensive care so and no others, whichever of the listed concepts or units they are in."""
    history = read_history(_events([RECORD[3], {**RECORD[4], "code": code}]), 1, {})
    assert history.units["name"].to_list() == ["Intensive care"]
    assert figures(history)["intensive_care_stays"] == 1


def test_a_name_stands_with_the_code_of_its_first_record() -> None:
    """Several codes share a name: on the day when it was first seen the patient had one of them."""
    rows = [{"code": f"condition/{n}", "time": DAY + timedelta(days=day), **CONDITION} for n, day in ((9, 0), (1, 5), (9, 7), (5, 9))]
    rows += [{"code": f"measurement/{n}", "time": DAY + timedelta(days=n), "numeric_value": 1.0, **LAB} for n in (3, 2)]
    names = {f"condition/{n}": "Asthma" for n in (1, 5, 9)} | {f"measurement/{n}": "Creatinine" for n in (2, 3)}
    history = read_history(_events(rows), 1, names)
    assert lanes(history, "conditions").select("code", "codes", "first").rows() == [
        ("condition/9", ["condition/9", "condition/1", "condition/5"], DAY)
    ]
    assert labs(history, names)["code"].to_list() == ["measurement/2"]
    assert "Asthma (condition/9), on 4 days" in "\n".join(summary_lines(history, names))
    page = str(codes_table(history, "conditions", "Conditions"))
    assert page.index("condition/9") < page.index("condition/1") < page.index("condition/5")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"end_time": datetime(2020, 3, 1, 23, 59, 59, 999999), "dated": True}, "1 day"),
        ({"end_time": datetime(2020, 3, 3, 23, 59, 59, 999999), "dated": True}, "3 days"),
        ({"end_time": datetime(2020, 3, 1, 5), "dated": False}, "5 h"),
        ({"end_time": None, "dated": False}, "not known"),
    ],
)
def test_how_long_a_stay_was(row: dict[str, Any], words: str) -> None:
    assert stay_words({"time": DAY, **row}) == words
    assert stay_words({"time": DAY, "end_time": None, "dated": False}, cut=True) == "still going on"


def test_what_is_known_by_its_day_has_no_clock() -> None:
    ends = datetime(2020, 3, 2, 23, 59, 59, 999999)
    rows: list[dict[str, Any]] = [
        {"code": "Visit/9201", "time": DAY, "end_time": ends, "visit_id": 7, "time_precision": "day"},
        {"code": "condition/1", "time": DAY, "visit_id": 7, "time_precision": "day", **CONDITION},
    ]
    history = read_history(_events(rows), 1, NAMES)
    lines = [*summary_lines(history, NAMES), *subject_lines(_events(rows), 1, NAMES)]
    assert not [line for line in lines if "00:00" in line or "23:59" in line or " h" in line]
    assert "#1   2020-03-01  [inpatient] Inpatient (Visit/9201), 2 days" in lines
    assert "2020-03-01 to 2020-03-02  [inpatient] Inpatient (Visit/9201)" in lines
    assert "2 days" in visits_table(history)
    assert "23:59" not in visits_table(history)


def test_the_caption_tells_of_what_is_drawn() -> None:
    def said(rows: list[dict[str, Any]], edges: dict[tuple[str, str | None], list[float]], until: datetime | None = None) -> str:
        return str(drawing(read_history(_events(rows), 1, NAMES, until=until), NAMES, edges)).split("<figcaption>")[1]

    bare = said(RECORD, {})
    assert "edges of the bins" not in bare
    assert "grey band" not in bare
    assert "drug eras" not in bare
    assert "edges of the bins" in said(RECORD, {("measurement/1", "8840"): [7.0]})
    assert "edges of the bins" not in said(RECORD, {("measurement/1", "8840"): [99.0]})
    far = [*RECORD[:-1], *({"code": "drug/1", "time": DAY + timedelta(days=3000 + n), **DRUG} for n in range(3))]
    assert "grey band" in said(far, {})
    assert "drug eras" in said(far, {})


def test_lanes_of_codes_without_a_name_show_what_is_their_own() -> None:
    assert lane_label("LAB//51221//%") == "51221//%"
    assert lane_label("Creatinine") == "Creatinine"


def test_bin_edges_are_the_inner_ones() -> None:
    vocabulary = pl.DataFrame({"code": ["m", "m", "m", None], "unit": ["u", "u", "u", None], "bin_low": [1.0, 3.0, 5.0, float("nan")]})
    assert bin_edges(vocabulary) == {("m", "u"): [3.0, 5.0]}
    assert bin_edges(None) == {}


# -- the axis ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 12_000), min_size=1, max_size=40))
def test_a_folded_axis_keeps_the_order_of_time(offsets: list[int]) -> None:
    times = [DAY + timedelta(days=offset) for offset in offsets]
    axis = FoldedAxis.of(times)
    spots = np.array(sorted({days(time) for time in times}))
    fractions = axis.fraction(spots)
    assert np.all(np.diff(fractions) > 0)
    assert 0 <= fractions[0] <= fractions[-1] <= 1
    assert sum(float(axis.fraction(fold.end) - axis.fraction(fold.start)) for fold in axis.folds) <= 0.4 + 1e-9
    assert not any(fold.start < spot < fold.end for fold in axis.folds for spot in spots)


def test_silences_are_folded_and_rhythms_are_not() -> None:
    stays = [DAY + timedelta(days=start + day) for start in (0, 1000, 3000) for day in range(5)]
    assert [fold.label for fold in FoldedAxis.of(stays).folds] == ["2.7 y", "5.5 y"]
    yearly = [DAY + timedelta(days=365 * year) for year in range(5)]
    assert FoldedAxis.of(yearly).folds == ()
    assert FoldedAxis.of([DAY]).folds == ()


@pytest.mark.parametrize("years", [1.2, 2.1, 3.1, 5.5, 11])
def test_a_narrow_axis_has_two_dates_at_least(years: float) -> None:
    """One date alone gives no scale."""
    times = [datetime(2154, 8, 12) + timedelta(days=years * 365.25 * part / 40) for part in range(41)]
    assert len(FoldedAxis.of(times, target=3).ticks) >= 2


@pytest.mark.parametrize(("length", "words"), [(0.2, "5 h"), (12, "12 d"), (210, "7 mo"), (1200, "3.3 y")])
def test_durations_in_words(length: float, words: str) -> None:
    assert duration_words(length) == words


# -- the page ---------------------------------------------------------------------------------------------------------------------


def _page(tmp_path: Path, events: pl.DataFrame, names: dict[str, str], **more: Any) -> Page:
    target = tmp_path / "page.html"
    target.write_text(patient_page(events, 1, names, {}, source="events", **more), encoding="utf-8")
    return Page(target)


def test_the_page_of_one_patient(tmp_path: Path) -> None:
    page = _page(tmp_path, _events(RECORD), {**NAMES, "condition/1": EVIL})
    assert "Aged 70; female; observed" not in page.source  # no end of observation
    assert "Aged 70; female" in page.source
    assert "not for sharing" in page.source
    assert EVIL not in page.source
    assert "&lt;script&gt;" in page.source
    assert not page.tags & {"script", "link", "img", "iframe"}
    assert re.search(r"(https?:)?//[\w.]+", page.source) is None
    for words in ("intensive care", "Creatinine", "5.00 to 9.00", "2020-03-01", "4 d"):
        assert words in page.source
    assert "not for sharing" not in _page(tmp_path, _events(RECORD), NAMES, simulated=True).source


@pytest.mark.parametrize(
    "rows", [RECORD[:2], RECORD[:1], RECORD[:4], [RECORD[4]], [RECORD[5]], [{"code": "LAB//1", "time": DAY, "numeric_value": 1.0}]]
)
def test_short_records_make_pages(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    assert _page(tmp_path, _events(rows), NAMES).headings == []


def test_fifty_thousand_events_stay_small(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 50_000
    minutes = np.sort(rng.integers(0, 900_000, n))
    events = pl.DataFrame(
        {
            "subject_id": np.ones(n, dtype=np.int64),
            "time": np.datetime64("2120-01-01T00:00", "us") + minutes * np.timedelta64(60_000_000, "us"),
            "code": [f"LAB//{code}" for code in rng.integers(0, 900, n)],
            "numeric_value": rng.normal(100, 10, n).astype(np.float32),
            "origin": ["measurement"] * n,
        }
    )
    page = _page(tmp_path, events, {})
    assert len(page.source) < 600_000
    assert "50,000" in page.source


# -- who is shown in the report ---------------------------------------------------------------------------------------------------

FIRST = 700_000_000


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("real") / "run", subjects=40, first=FIRST)


def _real(made: Path, root: Path, *, synthetic: bool) -> Path:
    run = shutil.copytree(made, root / "run")
    (run / "run.json").write_text('{"recipe": {"source": "cdm"}, "stages": []}', encoding="utf-8")
    if not synthetic:
        (run / "synthetic_events").rename(run / "elsewhere")
    return run


@pytest.mark.parametrize("synthetic", [True, False])
def test_nobody_real_is_on_a_page_that_was_not_asked_for_them(made: Path, tmp_path: Path, *, synthetic: bool) -> None:
    run = _real(made, tmp_path, synthetic=synthetic)
    page = Page(report(run))
    real = {str(subject) for subject in range(FIRST, FIRST + 40)}
    assert not real & set(re.findall(r"\d{9}", page.source))
    assert ("One synthetic patient" in page.source) == synthetic
    assert ("nobody real is shown unless asked for" in page.source) == (not synthetic)
    assert "not for sharing" not in page.source


def test_a_real_person_who_is_asked_for_is_announced_at_the_head(made: Path, tmp_path: Path) -> None:
    page = Page(report(_real(made, tmp_path, synthetic=True), patient=FIRST + 8))
    assert f"Subject {FIRST + 8}" in page.source
    assert page.source.index("not for sharing") < page.source.index('id="data"')


# -- the record as it stood ---------------------------------------------------------------------------------------------------------


def test_the_record_so_far_knows_nothing_of_the_future(tmp_path: Path) -> None:
    """One day into a stay: neither its end, nor a diagnosis coded at discharge, nor the place of discharge, nor anything of later days."""
    at, end, birth = DAY + timedelta(days=1), DAY + timedelta(days=6), datetime(1950, 1, 1)
    stay = {"visit_id": 7, "available_time": DAY}
    rows: list[dict[str, Any]] = [
        {"code": "MEDS_BIRTH", "time": birth, "available_time": birth},
        {"code": "condition/old", "time": DAY - timedelta(days=900), "available_time": DAY - timedelta(days=900), **CONDITION},
        {"code": "Visit/9201", "time": DAY, "end_time": end, **stay},
        {"code": "drug/known", "time": DAY + timedelta(hours=2), "end_time": end, **stay, **DRUG},
        {"code": "condition/billed", "time": DAY, "visit_id": 7, "available_time": end, **CONDITION},
        {"code": "discharge/8536", "time": end, "visit_id": 7, "available_time": end},
        {"code": "condition/later", "time": DAY + timedelta(days=3), "visit_id": 7, "available_time": DAY + timedelta(days=3), **CONDITION},
    ]
    (tmp_path / "events/data/held_out").mkdir(parents=True)
    _events(rows).write_parquet(tmp_path / "events/data/held_out/0.parquet")
    (tmp_path / "forecast").mkdir()
    key = {"subject_id": 1, "prediction_time": at}
    pl.DataFrame([{**key, "sample_id": n, "end_time": at + timedelta(days=30), "stop_reason": "horizon"} for n in range(2)]).write_parquet(
        tmp_path / "forecast/samples.parquet"
    )
    pl.DataFrame([{**key, "predicted_boolean_probability": 0.5, "method": "monte_carlo"}]).write_parquet(tmp_path / "forecast/t.parquet")
    (tmp_path / "run.json").write_text(json.dumps({"recipe": {"simulate": {}}}), encoding="utf-8")
    page = Page(report(tmp_path)).source
    chapter = page[page.index('id="patient"') :]
    so_far = chapter[chapter.index('id="patient-record"') : chapter.index('id="patient-futures"')]
    assert "drug/known" in so_far
    assert "condition/old" in so_far
    assert "still going on" in so_far
    for secret in ("condition/billed", "condition/later", "discharge/8536", f"{end:%Y-%m-%d}", "6 d", "144 h"):
        assert secret not in so_far, secret
    assert "2 events and 1 visit so far" in chapter
    whole = Page(report(tmp_path, tmp_path / "page.html", patient=1)).source
    assert "condition/billed" not in whole[whole.index('id="patient-record"') : whole.index('id="patient-futures"')]


def test_a_record_that_nothing_is_asked_of_is_shown_whole(tmp_path: Path) -> None:
    end = DAY + timedelta(days=6)
    rows: list[dict[str, Any]] = [
        {"code": "Visit/9201", "time": DAY, "end_time": end, "visit_id": 7, "available_time": DAY},
        {"code": "condition/billed", "time": DAY, "visit_id": 7, "available_time": end, **CONDITION},
    ]
    (tmp_path / "events/data/train").mkdir(parents=True)
    _events(rows).write_parquet(tmp_path / "events/data/train/0.parquet")
    page = Page(report(tmp_path, patient=1)).source
    assert "condition/billed" in page[page.index('id="patient-record"') :]
    assert "6 d" in page[page.index('id="patient-record"') :]
