"""`inspect` in words: artefacts are recognised by what they hold, and a timeline reads like one."""

from __future__ import annotations

import shutil
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from cehrxgpt.errors import InputError
from cehrxgpt.events import EVENT_DTYPES
from cehrxgpt.report import inspect_path, subject_lines
from test_report_run import TASKS, make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "demo", subjects=40)


@pytest.mark.parametrize(
    ("relative", "first", "within"),
    [
        (".", "a run, finished 2026-01-05 10:09", "zero-shot"),
        ("events", "an event data set", "condition_occurrence  41,210  41,000      210"),
        ("events", "an event data set", "condition_occurrence  exact duplicate   180"),
        ("timeline", "a token store", "vocabulary"),
        ("model", "a model", "96,000"),
        (f"labels/{TASKS[0]}.parquet", "labels", "positive"),
        (f"forecast/{TASKS[0]}.parquet", "predictions", "monte_carlo"),
        ("forecast/samples.parquet", "simulated futures, one row each", "horizon"),
        ("forecast/trajectories", "a folder of 1 Parquet table", "simulated futures as events"),
        ("evaluation/metrics.parquet", "metrics", "auroc"),
        (f"truth/{TASKS[0]}.parquet", "true risks", "subjects"),
        ("events/data/train/0.parquet", "a shard of events", "codes"),
        ("manifests/pretrain.json", "a JSON account", "00ff00ff00ff00ff"),
        ("synthetic", "OMOP tables", "cehrxgpt ingest"),
    ],
)
def test_artefacts_are_recognised(run_folder: Path, relative: str, first: str, within: str) -> None:
    lines = inspect_path(run_folder / relative)
    assert first in lines[0]
    assert any(within in line for line in lines)


def test_open_data_is_recognised(shared_data: Path) -> None:
    assert "OMOP tables (7 of the 7 main ones)" in inspect_path(shared_data / "synthea27nj_omop54")[0]
    meds = inspect_path(shared_data / "mimic_iv_demo_meds")
    assert "an event data set" in meds[0]
    assert any(line.split()[:3] == ["all", "100", "916,170"] for line in meds)


def test_a_run_that_has_only_begun_is_a_run(run_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(run_folder / "events", tmp_path / "events")
    assert inspect_path(tmp_path) == [f"{tmp_path.name}: a run, not finished", "  holds  events", "", f"  next: cehrxgpt report {tmp_path}"]


def test_one_subject_of_a_folder_and_of_tables(run_folder: Path) -> None:
    lines = inspect_path(run_folder / "events", subject=8)
    assert lines[0] == "subject 8 of events, split held_out"
    assert any("Visit/" in line and "[" in line for line in lines)
    assert inspect_path(run_folder, subject=8) == lines
    labelled = pl.read_parquet(run_folder / f"labels/{TASKS[0]}.parquet")["subject_id"][0]
    assert "1 rows" in inspect_path(run_folder / f"labels/{TASKS[0]}.parquet", subject=labelled)[0]
    simulated = pl.read_parquet(run_folder / "forecast/trajectories/0.parquet")["subject_id"][0]
    assert any(", future 0" in line for line in inspect_path(run_folder / "forecast/trajectories/0.parquet", subject=simulated))


@pytest.mark.parametrize(
    ("relative", "subject", "said"),
    [
        ("nothing", None, "no such file or folder"),
        ("empty", None, "not an artefact of ours"),
        ("notes.txt", None, "not an artefact of ours"),
        ("bad.parquet", None, "not readable Parquet"),
        ("bad.json", None, "not readable JSON"),
        ("events", 10**9, "no subject 1000000000"),
        ("model", 1, "is read from an event data set"),
        ("evaluation/metrics.parquet", 1, "no column 'subject_id'"),
        ("broken", None, "not readable Parquet"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_line(run_folder: Path, tmp_path: Path, relative: str, subject: int | None, said: str) -> None:
    for name in ("empty", "broken/data/train"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("notes.txt", "bad.parquet", "bad.json", "broken/data/train/0.parquet"):
        (tmp_path / name).write_text("{", encoding="utf-8")
    path = tmp_path / relative if (tmp_path / relative).exists() else run_folder / relative
    with pytest.raises(InputError, match=said) as caught:
        inspect_path(path, subject)
    assert "\n" not in str(caught.value)


def _events(rows: list[dict[str, object]]) -> pl.DataFrame:
    return pl.DataFrame([{"subject_id": 1} | row for row in rows], schema=EVENT_DTYPES)


def test_a_timeline_in_full() -> None:
    day = datetime(2020, 3, 1)
    events = _events([
        {"code": "gender/8532"},
        {"code": "MEDS_BIRTH", "time": datetime(1950, 5, 4)},
        {"code": "condition/1", "time": datetime(2020, 2, 1)},
        {"code": "condition/2", "time": datetime(2020, 2, 1)},
        {"code": "Visit/9201", "time": day.replace(hour=8), "end_time": datetime(2020, 3, 4, 10), "visit_id": 5},
        {"code": "measurement/7", "time": day.replace(hour=9), "numeric_value": 7.25, "unit": "8554", "visit_id": 5},
        {"code": "drug/3", "time": datetime(2020, 3, 2, 7, 30), "end_time": datetime(2020, 4, 2), "visit_id": 5},
        {"code": "measurement/8", "time": datetime(2020, 3, 2, 8), "text_value": "high\x1b[2J", "visit_id": 99},
        {"code": "MEDS_DEATH", "time": datetime(2020, 6, 1, 23, 59, 59, 999999)},
    ])  # fmt: skip
    assert subject_lines(events, 1, {"condition/1": "Hypertension", "measurement/7": "HbA1c", "Visit/9201": "Inpatient"}) == [
        "  gender/8532",
        "",
        "  1950-05-04        birth",
        "  2020-02-01 00:00  Hypertension (condition/1)",
        "  2020-02-01 00:00  condition/2",
        "",
        "2020-03-01 08:00 to 2020-03-04 10:00  [inpatient] Inpatient (Visit/9201)",
        "               09:00  HbA1c (measurement/7) = 7.25 %",
        "    2020-03-02 07:30  drug/3 until 2020-04-02",
        "",
        "  2020-03-02 08:00  measurement/8 = high\x1b[2J",
        "  2020-06-01 23:59  DEATH",
    ]
    with pytest.raises(InputError, match="no subject 2"):
        subject_lines(events, 2, {})


def test_plain_meds_columns_are_enough() -> None:
    events = pl.DataFrame({"subject_id": [1], "time": [datetime(2020, 1, 1)], "code": ["LAB//1"], "numeric_value": [2.0]})
    assert subject_lines(events, 1, {}) == ["  2020-01-01 00:00  LAB//1 = 2"]


def test_terminal_control_characters_are_taken_out(tmp_path: Path) -> None:
    (tmp_path / "data/train").mkdir(parents=True)
    _events([{"code": "A\x1b[2J", "time": datetime(2020, 1, 1)}]).write_parquet(tmp_path / "data/train/0.parquet")
    assert not any("\x1b" in line for line in inspect_path(tmp_path, subject=1))


def test_intensive_care_and_signs_are_shown() -> None:
    rows = [
        (1, datetime(2020, 1, 1, 9), "Visit/9201", None, None, datetime(2020, 1, 5, 9), 7),
        (1, datetime(2020, 1, 1, 10), "VisitDetail/32037", None, None, datetime(2020, 1, 3, 9), 7),
        (1, datetime(2020, 1, 1, 11), "measurement/7", 5.0, "<", None, 7),
    ]
    columns = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32, "operator": pl.String}
    events = pl.DataFrame(rows, schema=columns | {"end_time": pl.Datetime("us"), "visit_id": pl.Int64}, orient="row")
    lines = subject_lines(events, 1, {})
    assert lines[2].strip() == "10:00  Intensive care (VisitDetail/32037) until 2020-01-03"
    assert lines[3].strip() == "11:00  measurement/7 < 5"
