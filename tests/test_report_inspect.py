"""`inspect` from the command line: provenance, next commands, figures for programs, one subject by visit and as a page."""

from __future__ import annotations

import json
import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from typer.testing import CliRunner

from cehrxgpt.cli import app
from cehrxgpt.errors import InputError, OutputExistsError
from cehrxgpt.report.history import read_history
from cehrxgpt.report.text import View, inspect_artefact, inspect_path
from cehrxgpt.report.timeline_text import summary_lines
from cehrxgpt.stages import inspect
from test_report_history import NAMES, RECORD, _events
from test_report_page import Page
from test_report_run import TASKS, make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("inspected") / "demo", subjects=40)


def _json(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["inspect", *arguments, "--json"])
    assert done.exit_code == 0, done.output
    assert len(done.stdout.strip().splitlines()) == 1
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("relative", "kind", "following"),
    [
        (".", "a run", "cehrxgpt report"),
        ("events", "an event data set", "cehrxgpt tokenize"),
        ("timeline", "a token store", "cehrxgpt pretrain"),
        ("model", "a model", "cehrxgpt forecast"),
        ("labels", "a folder of 2 Parquet tables: labels", "cehrxgpt forecast"),
        (f"labels/{TASKS[0]}.parquet", "labels, ", "cehrxgpt forecast"),
        (f"labels/{TASKS[0]}.attrition.json", "the attrition of a task", ""),
        (f"forecast/{TASKS[0]}.parquet", "predictions, ", "cehrxgpt evaluate predictions"),
        (f"probe/{TASKS[0]}", "a folder of 3 Parquet tables", ""),
        ("synthetic", "OMOP tables", "cehrxgpt ingest"),
        ("run.json", "the account of a run", "cehrxgpt report"),
        ("model/train.jsonl", "a log of 160 lines", "cehrxgpt inspect"),
    ],
)
def test_json_says_what_it_is_and_what_comes_next(run_folder: Path, relative: str, kind: str, following: str) -> None:
    found = _json(str(run_folder / relative))
    assert found["kind"].startswith(kind)
    assert any(command.startswith(following) for command in found["next"]) == bool(following)
    assert found["path"] == str(run_folder / relative)


def test_what_it_was_made_from(run_folder: Path) -> None:
    manifest = {
        "stage": "label",
        "key": "0",
        "inputs": {"events": "00ff"},
        "versions": {"cehrxgpt": "9.9"},
        "outputs": {"labels": {}},
        "seconds": 3.0,
    }
    (run_folder / "manifests/label.json").write_text(json.dumps(manifest), encoding="utf-8")
    for relative in ("labels", f"labels/{TASKS[0]}.parquet"):
        made = inspect_artefact(run_folder / relative)[1]["made_from"]
        assert (made["stage"], made["inputs"], made["by"], made["in"]) == ("label", "events (00ff)", "cehrxgpt 9.9", "3.0 s")
    assert "stage" not in inspect_artefact(run_folder / "events")[1]["made_from"]


def test_small_counts_of_a_timeline_are_hidden(tmp_path: Path) -> None:
    """In its lines and for programs; and nothing beside them gives them away."""
    rows = [("train", 480, 90_000, 20_000, 57), ("tuning", 60, 9_000, 2_000, 3), ("held_out", 4, 900, 200, 13)]
    splits: list[dict[str, Any]] = [
        {"split": split, "patients": n, "tokens": tokens, "events": events, "events_dropped": dropped, "length_p50": 200.0, "length_p90": 400.0}
        for split, n, tokens, events, dropped in rows
    ]
    account = {"patients": 544, "patients_without_tokens": 2, "tokens": 99_900, "events": 22_200, "events_dropped": 73, "dropped_share": 73 / 22_200}
    account |= {"events_backed_off": 9, "backed_off_share": 9 / 22_200, "splits": splits, "codes_dropped": 5}
    (tmp_path / "tokenize.json").write_text(json.dumps(account), encoding="utf-8")
    found = _json(str(tmp_path))
    assert found["tables"][0]["rows"] == [
        ["train", 480, 90_000, 20_000, 57, 200.0, 400.0],
        ["tuning", "≥11", 9_000, 2_000, "<11", 200.0, 400.0],
        ["held_out", "<11", 900, 200, "≥11", None, None],
    ]
    told = {"patients": 544, "patients without tokens": "<11", "events dropped": 73, "events backed off": "<11"}
    assert told.items() <= found["facts"].items()
    assert found["facts"]["codes dropped"] == 5
    assert "backed off share" not in found["facts"]


def test_a_wrong_path_says_what_is_there(run_folder: Path) -> None:
    with pytest.raises(InputError, match=r"demo/evnts: no such file or folder; .*demo holds evaluation, events"):
        inspect_path(run_folder / "evnts")
    with pytest.raises(InputError, match=r"no subject 999; there are 1, 2, 3, \.\.\.|no subject 999 in it; there are 1, 2, 3, \.\.\."):
        inspect_path(run_folder / "events", 999)


def test_recipes_and_tasks_are_recognised(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("tasks: [t2dm_hf_1y]\nsource: cdm\n", encoding="utf-8")
    (tmp_path / "task.yaml").write_text("name: x\noutcome: {death: true}\n", encoding="utf-8")
    assert inspect_path(tmp_path / "mine.yaml")[0] == "mine.yaml: the recipe of a run"
    assert inspect_path(tmp_path / "task.yaml")[0] == "task.yaml: a task"


# -- one subject ------------------------------------------------------------------------------------------------------------------


def test_a_record_visit_by_visit() -> None:
    later = datetime(2021, 6, 1)
    rows = [row for row in RECORD if row["code"] != "MEDS_DEATH"]
    rows += [{"code": "Visit/9202", "time": later, "end_time": later + timedelta(minutes=40), "visit_id": 8}]
    rows += [{"code": "drug/1", "time": later + timedelta(days=1), "origin": "drug_exposure"} for _ in range(3)]
    rows += [{"code": "MEDS_DEATH", "time": datetime(2021, 7, 1)}]
    assert summary_lines(read_history(_events(rows), 1, NAMES), NAMES) == [
        "  Aged 71; female.",
        "",
        "  conditions first seen (2)",
        "    2020-03-01  Asthma (condition/1), on 2 days",
        "    2020-03-02  condition/2",
        "",
        "#1   2020-03-01 00:00  [inpatient] Inpatient (Visit/9201), 4 d",
        "       unit        Intensive care from 2020-03-01 06:00, 42 h",
        "       conditions  Asthma (2 times)",
        "       values      Creatinine 5 to 9, last 9 mg/dL (2 values)",
        "",
        "     2020-03-02  outside visits",
        "       conditions  condition/2",
        "",
        "     2020-03-03  outside visits",
        "       values      Creatinine 80 µmol/L",
        "",
        "  ... 15 mo without a record ...",
        "",
        "#2   2021-06-01 00:00  [outpatient] Visit/9202, 40 min",
        "",
        "     2021-06-02  outside visits",
        "       drugs       drug/1 (3 times)",
        "",
        "     2021-07-01  DEATH",
    ]


def test_one_visit_and_every_event(run_folder: Path) -> None:
    events = pl.concat([pl.read_parquet(path) for path in (run_folder / "events/data").rglob("*.parquet")]).filter(pl.col("subject_id") == 8)
    stays = events.filter(pl.col("code").str.starts_with("Visit/")).sort("time")
    inside = events.filter(pl.col("visit_id") == stays["visit_id"][1]).height
    one = inspect_path(run_folder / "events", 8, View(visit=2))
    assert one[1] == f"visit 2 of {stays.height}"
    assert len([line for line in one[2:] if line]) == inside
    full = inspect_path(run_folder / "events", 8, View(full=True))
    static = events["time"].null_count()
    assert len([line for line in full if line]) == 2 + events.height - static  # a heading, one line of what has no time
    with pytest.raises(InputError, match=f"no visit 99; there are {stays.height}"):
        inspect_path(run_folder / "events", 8, View(visit=99))


def test_figures_of_a_subject(run_folder: Path) -> None:
    found = _json(str(run_folder), "--subject", "8")
    assert (found["subject"], found["split"]) == (8, "held_out")
    assert found["visits"] > 0
    assert found["conditions"] > 0


def test_the_page_is_written_once_and_needs_a_subject(run_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "subject.html"
    lines, figures = inspect(run_folder / "events", subject=8, html=out)
    assert figures == {"path": str(run_folder / "events"), "subject": 8, "html": str(out)}
    assert "not for sharing" in lines[0]
    page = Page(out)
    assert "Subject 8" in page.source
    assert not re.search(r"\bsubject 9\b", page.source, re.IGNORECASE)
    with pytest.raises(OutputExistsError):
        inspect(run_folder / "events", subject=8, html=out)
    for more in ({"html": tmp_path / "x.html"}, {"full": True}, {"visit": 1}):
        with pytest.raises(InputError, match="--subject ID"):
            inspect(run_folder / "events", **more)  # type: ignore[arg-type]
    assert not (tmp_path / "x.html").exists()
