"""One subject's record: eras, lanes, labs by hand; silences folded; a page that is safe, whole and bounded."""

from __future__ import annotations

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
from cehrxgpt.report.folded import FoldedAxis, duration_words
from cehrxgpt.report.history import bin_edges, eras, labs, lanes, read_history
from cehrxgpt.report.patient_page import patient_page
from cehrxgpt.report.svg import days
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
    assert history.units.select("name", "intensive", "visit_id").rows() == [("Intensive care", True, 7)]
    assert lanes(history, "conditions").select("name", "days", "entries").rows() == [("Asthma", 2, 2), ("condition/2", 1, 1)]
    assert labs(history, NAMES).select("name", "shown", "n", "low", "high", "value").rows() == [
        ("Creatinine", "mg/dL", 2, 5.0, 9.0, 9.0),
        ("Creatinine", "µmol/L", 1, 80.0, 80.0, 80.0),
    ]


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
