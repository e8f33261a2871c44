"""Flow diagrams: their counts by hand, their words inside their boxes, small counts hidden throughout."""

from __future__ import annotations

import json
import re
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from cehrxgpt.events import empty_events
from cehrxgpt.report.flow import End, Step, flow_chart
from cehrxgpt.report.run import RunFolder
from cehrxgpt.report.sections.attrition import data_steps, left_out, section, task_counts, task_flow
from cehrxgpt.report.suppress import Teller
from cehrxgpt.tasks import library_tasks, load_task
from cehrxgpt.tasks.index import index_steps

EXACT = Teller(exact=True)
INGEST = {
    "tables": {
        "condition_occurrence": {"read": 1000, "kept": 900, "dropped": {"duplicate": 60, "before_birth": 40}},
        "measurement": {"read": 500, "kept": 496, "dropped": {"duplicate": 4}},
    },
    "derived": {"person": {"race": 30}},
    "events": {"total": 1426},
    "subjects": {"total": 30},
}


def test_rows_to_events_by_hand() -> None:
    steps = data_steps(INGEST, {"events": 1300, "events_dropped": 130, "tokens": 2600}, EXACT)
    assert steps[0] == Step("Rows of the source", ("1,500 in 2 tables",), "Left out: 6.9% of rows", ("64 duplicate", "40 before birth"))
    assert steps[1] == Step("Rows kept", ("1,396", "and 30 rows derived from them"))
    assert (steps[2].title, steps[2].lines, steps[2].side_title) == ("Events", ("1,426 of 30 subjects",), "Not tokens of their own")
    assert [one.split()[0] for one in steps[2].side] == ["126:"]
    assert steps[3] == Step("To be written as tokens", ("1,300",), "Codes outside the vocabulary", ("130 (10.0%)",))
    assert steps[4] == Step("Events the model reads", ("1,170", "2,600 tokens"))
    assert data_steps({}, None, EXACT) == data_steps({"tables": {}}, None, EXACT) == []


def test_few_rows_left_out_cannot_be_had_by_subtraction() -> None:
    tables = {"condition_occurrence": {"read": 1000, "kept": 993, "dropped": {"duplicate": 7}}}
    first, second = data_steps({"tables": tables}, None, Teller())[:2]
    assert (first.lines, first.side_title, first.side) == (("1,000 in 1 table",), "Left out", ("<11 duplicate",))
    assert second.lines == ("990",)


def _labels(root: Path, positive: int, negative: int, unknown: int, steps: list[dict[str, object]], *, simulated: bool = False) -> RunFolder:
    values = [True] * positive + [False] * negative + [None] * unknown
    frame = pl.DataFrame({"subject_id": range(len(values)), "boolean_value": pl.Series(values, dtype=pl.Boolean)})
    (root / "labels").mkdir(parents=True)
    frame.with_columns(pl.lit(datetime(2020, 1, 1)).alias("prediction_time")).write_parquet(root / "labels/t.parquet")
    (root / "labels/t.attrition.json").write_text(json.dumps(steps), encoding="utf-8")
    recipe = {"simulate": {"seed": 1}} if simulated else {"source": "cdm"}
    (root / "run.json").write_text(json.dumps({"recipe": recipe}), encoding="utf-8")
    return RunFolder(root)


STEPS: list[dict[str, object]] = [
    {"step": "subjects in the data", "subjects": 200, "rows": None},
    {"step": "index: some_disease, first", "subjects": 150, "rows": 150},
    {"step": "alive at the prediction time", "subjects": 138, "rows": 138},
    {"step": "history of 360 days", "subjects": 100, "rows": 100},
]


def test_a_task_by_hand(tmp_path: Path) -> None:
    found = task_counts(_labels(tmp_path, 20, 50, 30, STEPS, simulated=True), "t")
    assert found is not None
    steps, ends = task_flow(found)
    assert [step.lines for step in steps] == [("200",), ("some disease, first", "150 events of 150 subjects"), ("100 of 100 subjects",)]
    lost = ("12 dead by the prediction time", "38 with a history of under 360 days")
    assert [step.side for step in steps] == [("50 without an index event",), lost, ()]
    assert [end.lines[0] for end in ends] == ["20 (20.0%)", "50 (50.0%)", "30 (30.0%)"]


def test_a_task_with_few(tmp_path: Path) -> None:
    """Seven outcomes: neither the box, nor the others beside it, nor their shares tell."""
    found = task_counts(_labels(tmp_path, 7, 63, 30, STEPS), "t")
    assert found is not None
    ends = task_flow(found)[1]
    assert [end.lines[0] for end in ends] == ["<11", "60 (60.0%)", "30 (30.0%)"]
    page = section(RunFolder(tmp_path)).body
    assert not re.search(r">7<|>7 |>63<|7\.0%", page)


def test_a_task_that_the_data_cannot_answer(tmp_path: Path) -> None:
    steps = [STEPS[0], {"step": "asked of this data", "subjects": 0, "rows": 0, "note": "none of the 3 codes of 'x' is in the data"}]
    found = task_counts(_labels(tmp_path, 0, 0, 0, steps), "t")
    assert found is not None
    boxes, ends = task_flow(found)
    assert boxes[0].side == ("none of the 3 codes of 'x' is in the data",)
    assert boxes[-1].lines == ("0 of 0 subjects",)
    assert ends == []


def test_who_had_an_index_event_is_not_said_to_have_had_none(tmp_path: Path) -> None:
    steps = [
        {"step": "subjects in the data", "subjects": 200, "rows": None},
        {"step": "index: visit (inpatient)", "subjects": 150, "rows": 300},
        {"step": "still going on 24 hours after its start", "subjects": 120, "rows": 180},
        {"step": "alive at the prediction time", "subjects": 100, "rows": 100},
    ]
    found = task_counts(_labels(tmp_path, 20, 50, 30, steps), "t")
    assert found is not None
    boxes = task_flow(found)[0]
    assert [box.side for box in boxes[:2]] == [
        ("50 without an index event",),
        ("120 in a stay that was over within 24 hours", "80 dead by the prediction time"),
    ]


@pytest.mark.parametrize("task", library_tasks())
def test_every_step_of_the_library_has_words_for_those_left_out(task: str) -> None:
    for step in index_steps(load_task(task), empty_events())[1:]:
        assert not left_out(step[0]).startswith("at: "), step[0]


@pytest.mark.parametrize("width", [344, 760])
def test_words_stay_inside_and_boxes_apart(width: int) -> None:
    words = "a reason that is told at some length, as reasons are when they come from a vocabulary"
    steps = [Step("A title", (words,), "Left out", (words, words)), Step("B", ("1",)), Step("C", ("2",), "Left out", ("x",)), Step("D", ("3",))]
    drawn = str(flow_chart(width, steps, [End("yes", (words,)), End("no", ("4",)), End("not known", ("5",))]).svg("x"))
    boxes = [
        tuple(map(float, found)) for found in re.findall(r'class="node[^"]*" x="([\d.]+)" y="([\d.]+)" width="([\d.]+)" height="([\d.]+)"', drawn)
    ]
    assert len(boxes) == 9
    for index, (x, y, w, h) in enumerate(boxes):
        assert x + w <= width
        assert y >= 0
        for a, b, c, d in boxes[index + 1 :]:
            assert x + w <= a or a + c <= x or y + h <= b or b + d <= y
    texts = re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)<', drawn)
    for left, top, said in texts:
        inside = [
            box
            for box in boxes
            if box[0] <= float(left) and box[1] <= float(top) <= box[1] + box[3] and float(left) + 6 * len(said) <= box[0] + box[2]
        ]
        assert inside, said
