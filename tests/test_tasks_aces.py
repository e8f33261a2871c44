"""ACES task files: what is translated labels as es-aces itself does; what cannot be said is refused with its line."""

from __future__ import annotations

import re
from datetime import datetime, timedelta
from pathlib import Path
from random import Random
from types import SimpleNamespace

import polars as pl
import pytest

from cehrxgpt import stages
from cehrxgpt.errors import TaskError
from cehrxgpt.events import EventDataset
from cehrxgpt.tasks import label, load_task

pytest.importorskip("aces", reason="es-aces is not installed: its translation is not checked (pip install 'cehrxgpt[aces]')")

START = datetime(2020, 1, 1, 7, 3)
PREDICATES = """
description: Does it
  come true?
predicates:
  diabetes: {code: "DX//E11"}
  stroke: {code: {any: ["DX//I63", "DX//I64"]}}
  drug: {code: {regex: "^RX//A10.*"}}
  lab: {code: {regex: "^LAB//4548\\\\-4$"}}
  event: {expr: "or(stroke, drug)"}
  death: {code: MEDS_DEATH}
  high: {code: "LAB//4548-4", value_min: 3, value_max: 6.1, value_max_inclusive: True}
  low: {code: {regex: "^LAB//4548.*"}, value_max: 2.5}
  either: {expr: "or(high, stroke)"}
trigger: diabetes
windows:
"""
INPUT = """  input: {start: null, end: trigger, start_inclusive: True, end_inclusive: True, index_timestamp: end HAS}
"""
TARGET = """  target: {start: input.end, end: start + 90d, start_inclusive: False, end_inclusive: True, label: stroke}
"""
GAP = """  gap: {start: input.end, end: start + 48h, start_inclusive: False, end_inclusive: True}
  target: {start: gap.end, end: start + 30d, start_inclusive: False, end_inclusive: True, label: event}
"""
CENSOR = """  after: {start: target.end, end: null, start_inclusive: False, end_inclusive: True, has: {_ANY_EVENT: "(1, None)"}}
"""
RECENT = """  recent: {start: end - 60d, end: trigger, start_inclusive: False, end_inclusive: True, has: {drug: "(1, 2)"}}
"""


def plain(more: str = "") -> str:
    return PREDICATES + INPUT.replace(" HAS", more)


TASKS = {
    "fixed_window": plain() + TARGET,
    "first_stroke": plain(', has: {stroke: "(None, 0)", lab: "(1, None)"}') + TARGET,
    "twice": plain(', has: {diabetes: "(2, 4)"}') + TARGET,
    "gap_and_union": plain() + GAP,
    "recent_drug": plain() + RECENT + TARGET,
    "death": plain() + TARGET.replace("label: stroke", "label: death"),
    "high_value": plain() + TARGET.replace("label: stroke", "label: high"),
    "a_value_in_a_union": plain() + TARGET.replace("label: stroke", "label: either"),
    "values_before": plain(', has: {low: "(1, 2)", high: "(None, 0)"}') + TARGET,
    "value_as_trigger": plain().replace("trigger: diabetes", "trigger: low") + TARGET,
    "followed": plain() + TARGET + CENSOR,
    "followed_after_a_gap": plain() + GAP + CENSOR,
}


def people(seed: int) -> pl.DataFrame:
    """Records of 60 people as MEDS; events by the minute, some at the very distance of a window's bound."""
    random, values, rows = Random(seed), Random(seed + 1), []
    codes = ["DX//E11", "DX//I63", "DX//I64", "RX//A10BA02", "RX//A10BJ", "RX//B01", "LAB//4548-4", "LAB//4548X4", "DX//Z00"]
    for subject in range(1, 61):
        times = [START + timedelta(minutes=random.randrange(200 * 1440)) for _ in range(random.randrange(1, 12))]
        times += [random.choice(times) + timedelta(days=random.choice([0, 2, 30, 32, 60, 90])) for _ in range(random.randrange(6))]
        chosen = {(time, random.choice(codes)) for time in times}
        numbers = {"LAB//4548-4": (2.5, 3.0, 3.5, 6.1, 6.2), "LAB//4548X4": (1.0, None)}
        for time, code in sorted(chosen):
            rows.append({"subject_id": subject, "time": time, "code": code, "numeric_value": values.choice(numbers.get(code, (None,)))})
        if random.random() < 0.3:
            end = max(times) + timedelta(minutes=random.randrange(1, 40 * 1440))
            rows.append({"subject_id": subject, "time": end, "code": "MEDS_DEATH"})
    schema = {"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String, "numeric_value": pl.Float32}
    return pl.DataFrame(rows, schema=schema).sort("subject_id", "time")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aces")
    shard = folder / "meds" / "data" / "train" / "0.parquet"
    shard.parent.mkdir(parents=True)
    people(seed=4).write_parquet(shard)
    stages.ingest(str(folder / "meds"), folder / "events", {"format": "meds", "dialect": "plain"})
    return folder


def by_aces(task: Path, shard: Path) -> dict[tuple[int, datetime], bool]:
    """What es-aces itself says of every row that it keeps."""
    from aces.config import TaskExtractorConfig
    from aces.predicates import get_predicates_df
    from aces.query import query

    config = TaskExtractorConfig.load(task)
    frame = get_predicates_df(config, SimpleNamespace(standard="meds", path=str(shard)))
    result = query(config, frame)
    return {(row["subject_id"], row["index_timestamp"]): row["label"] > 0 for row in result.iter_rows(named=True)}


def write(folder: Path, text: str, name: str = "a task.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", TASKS)
def test_labels_are_those_of_es_aces(name: str, data: Path, tmp_path: Path) -> None:
    file = write(tmp_path, TASKS[name], f"{name}.yaml")
    theirs = by_aces(file, data / "meds" / "data" / "train" / "0.parquet")
    labels = label(EventDataset(data / "events"), file).labels
    ours = {(subject, time): value for subject, time, value in labels.select("subject_id", "prediction_time", "boolean_value").iter_rows()}
    assert len(set(theirs.values())) == 2, "the data shows nothing"
    if "followed" not in name:
        assert ours == theirs
        return
    # es-aces leaves out whom it cannot see to the end; here they are null, unless the outcome was seen, or death.
    assert {key: ours[key] for key in theirs} == theirs
    further = labels.filter(~pl.struct("subject_id", "prediction_time").is_in([{"subject_id": a, "prediction_time": b} for a, b in theirs]))
    assert set(further["end_reason"]) >= {"outcome", "censored"}
    last = people(seed=4).group_by("subject_id").agg(pl.col("time").max().alias("last"))
    whole = further.filter(pl.col("end_reason") == "horizon").join(last, on="subject_id")
    at_the_bound = whole["last"] - whole["prediction_time"] == timedelta(days=load_task(file).follow_days or 0)
    assert at_the_bound.all(), "seen to the end, and left out"


def test_the_translation_reads_like_a_task(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, TASKS["recent_drug"]))
    assert (task.name, task.description) == ("a_task", "Does it come true?")
    assert task.concept_sets["drug"].codes == ("RX//A10*",)
    assert not task.concept_sets["drug"].descendants
    assert task.concept_sets["stroke"].codes == ("DX//I63", "DX//I64")
    assert (task.inclusion[0].concepts, task.inclusion[0].within_days, task.inclusion[0].count) == ("drug", 60, 1)
    assert (task.exclusion[0].concepts, task.exclusion[0].within_days, task.exclusion[0].count) == ("drug", 60, 3)
    assert (task.horizon_days, task.gap_days, task.censoring) == (90, 0, "closed_world")
    high = load_task(write(tmp_path, TASKS["a_value_in_a_union"])).outcome
    assert [(one.concepts, one.above, one.at_most, one.bounds) for one in high.any] == [("high", 3, 6.1, (3, 6.1)), ("stroke", None, None, ())]
    gap = load_task(write(tmp_path, TASKS["followed_after_a_gap"]))
    assert (gap.horizon_days, gap.gap_days, gap.censoring) == (30, 2, "observation_period")
    assert load_task(write(tmp_path, TASKS["first_stroke"])).concept_sets["lab"].codes == ("LAB//4548-4",)


REFUSED = {
    "a window that ends at an event": (plain() + TARGET.replace("start + 90d", "start -> death"), "end: start -> death", "ends at an event"),
    "a prediction later than the trigger": (plain().replace("end: trigger,", "end: trigger + 24h,") + TARGET, "input:", "not made at the trigger"),
    "two values at once": (
        plain(', has: {both: "(1, None)"}').replace("trigger: diabetes", '  both: {expr: "and(high, low)"}\ntrigger: diabetes') + TARGET,
        "both:",
        "same instant",
    ),
    "a union of values in the history": (plain(', has: {either: "(1, None)"}') + TARGET, "input:", "only an outcome may be"),
    "a union of values as the trigger": (plain().replace("trigger: diabetes", "trigger: either") + TARGET, "trigger:", "only an outcome may be"),
    "another column": (plain().replace('"DX//E11"', '"DX//E11", unit: mg') + TARGET, "diabetes:", "column 'unit'"),
    "two things at once": (plain().replace("or(stroke", "and(stroke") + GAP, "event:", "same instant"),
    "a regular expression": (plain(', has: {drug: "(1, None)"}').replace("^RX//A10.*", "A1[01]") + TARGET, "drug:", "regular expressions"),
    "any event counted": (plain(', has: {_ANY_EVENT: "(5, None)"}') + TARGET, "input:", "no set of codes"),
    "a condition in the gap": (
        plain() + GAP.replace("end_inclusive: True}\n  target", 'end_inclusive: True, has: {death: "(None, 0)"}}\n  target'),
        "gap:",
        "looks ahead",
    ),
    "an outcome at the prediction": (plain() + TARGET.replace("start_inclusive: False", "start_inclusive: True"), "target:", "at its start"),
    "an open end": (plain() + TARGET.replace("end_inclusive: True", "end_inclusive: False"), "target:", "at its end"),
    "input without the prediction": (plain().replace("end_inclusive: True", "end_inclusive: False") + TARGET, "input:", "is input here"),
    "no index": (plain().replace(", index_timestamp: end", "") + TARGET, "windows:", "index_timestamp"),
    "no label": (plain() + TARGET.replace(", label: stroke", ""), "windows:", "no window has a label"),
    "hours of history": (plain() + RECENT.replace("60d", "36h") + TARGET, "recent:", "whole days"),
    "death as the trigger": (plain().replace("trigger: diabetes", "trigger: death") + TARGET, "trigger: death", "after which nobody"),
    "demographics": (
        plain().replace("trigger: diabetes", "patient_demographics:\n  male: {code: SEX//M}\ntrigger: diabetes") + TARGET,
        "male:",
        "is static",
    ),
    "a bound that is no number": (TASKS["high_value"].replace("value_min: 3", "value_min: hi"), "high:", "value_min must be a number"),
    "a bound beyond all": (TASKS["values_before"].replace("value_max: 2.5", f"value_max: 1{'0' * 400}"), "low:", "value_max must be a number"),
    "a window longer than a life": (plain() + TARGET.replace("90d", "300000000d"), "target:", "at most 100,000"),
    "no code": (plain().replace('"DX//E11"', '""') + TARGET, "diabetes:", "code pattern ''"),
    "windows in a circle": (plain() + TARGET.replace("input.end", "target.end"), "windows:", "in a circle"),
    "a predicate of itself": (plain().replace("or(stroke", "or(event") + GAP, "event:", "'event' asks for itself"),
    "union counted twice": (plain(', has: {event: "(2, None)"}') + TARGET, "input:", "by the instant"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_said_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    text, at, why = REFUSED[name]
    with pytest.raises(TaskError) as told:
        load_task(write(tmp_path, text))
    message = str(told.value)
    assert why in message
    assert "\n" not in message
    line = re.search(r"line (\d+):", message)
    assert line is not None
    assert at in text.splitlines()[int(line[1]) - 1]


@pytest.mark.parametrize(
    "text",
    [
        plain() + TARGET.replace("label: stroke", "label: strok"),
        plain() + TARGET.replace("input.end", "inputs.end"),
        "trigger: diabetes\n",
        plain() + "  target: {start: [\n",
        plain() + TARGET.replace("90d", f"9{'0' * 30}d"),
        PREDICATES.replace("code: MEDS_DEATH", "kode: MEDS_DEATH") + "  target: 3\n",
    ],
)
def test_what_es_aces_cannot_read_is_one_clear_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="es-aces cannot read it") as told:
        load_task(write(tmp_path, text))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("part", ["&a {b: *a}", f"{'[' * 1500}{']' * 1500}"])
def test_what_has_no_end_is_one_clear_line(part: str, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="nested too deeply, or without end") as told:
        load_task(write(tmp_path, f"{plain()}{TARGET}metadata: {part}\n"))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("code", "pattern"),
    [('"LAB//dynes*sec"', r"LAB//dynes\*sec"), ('{regex: "^K\\\\*$"}', r"K\*"), ('{regex: "^K\\\\*.*"}', r"K\**"), ('"K*"', r"K\*")],
)
def test_stars_of_codes_are_stars(code: str, pattern: str, tmp_path: Path) -> None:
    task = load_task(write(tmp_path, (plain() + TARGET).replace('"DX//E11"', code)))
    assert task.concept_sets["diabetes"].codes == (pattern,)


def test_the_file_that_the_documentation_shows_is_translated(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "tasks.md").read_text(encoding="utf-8")
    (shown,) = [block for block in page.split("```yaml\n")[1:] if block.startswith("predicates:")]
    task = load_task(write(tmp_path, shown.split("```")[0]))
    assert (task.index.at_least, task.horizon_days, task.exclusion[0].count) == (2.0, 30.0, 1)


def test_codes_that_the_data_lacks_are_said(data: Path, tmp_path: Path) -> None:
    labelled = label(EventDataset(data / "events"), write(tmp_path, (plain() + TARGET).replace("DX//E11", "ICD10//E11")))
    assert labelled.labels.is_empty()
    assert "ICD10//E11" in (labelled.note or "")
