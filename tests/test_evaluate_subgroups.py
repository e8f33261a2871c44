"""Who is in which subgroup; what of it may be shown; first onset and recurrence apart."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.evaluate import evaluate_predictions
from cehrxgpt.evaluate.predictions import GROUP_REPLICATES, WITHHELD
from cehrxgpt.evaluate.subgroups import GROUP_DTYPES, subgroup_levels
from cehrxgpt.events import EVENT_DTYPES, conform
from cehrxgpt.stages.subgroups import subgroups
from test_evaluate_predictions import T0, labels_frame, predictions_frame


def event(subject, code, time=None, *, late=0):
    return {"subject_id": subject, "time": time, "code": code, "available_time": None if time is None else time + timedelta(days=late)}


def events_frame(rows):
    return conform(pl.DataFrame(rows, schema_overrides={name: EVENT_DTYPES[name] for name in ("subject_id", "time", "code", "available_time")}))


PEOPLE = events_frame(
    [
        event(0, "gender/8532"), event(0, "race/8527"), event(0, s.BIRTH, datetime(1955, 1, 1)),
        event(0, "condition/1", T0 - timedelta(days=200)), event(0, "condition/1", T0), event(0, "condition/2", T0 + timedelta(days=1)),
        event(1, "gender/8507"), event(1, s.BIRTH, datetime(1955, 1, 2)),
        event(1, "condition/1", T0 - timedelta(days=900), late=1000), event(1, s.OBSERVATION_START, T0 - timedelta(days=2000)),
        event(2, "race/0"), *(event(2, "condition/3", T0 - timedelta(days=2000 - day)) for day in range(60)),
    ]
)  # fmt: skip


def test_levels_at_the_prediction_time():
    rows = labels_frame([True, False, False, True]).select("task", "subject_id", "prediction_time")  # of subject 3 there are no events
    levels = subgroup_levels(PEOPLE, rows, names={"race/8527": "Caucasian"})
    assert dict(levels.schema) == GROUP_DTYPES
    told = {(row["subject_id"], row["subgroup"]): row["level"] for row in levels.to_dicts()}
    assert (told[0, "age"], told[1, "age"], told[2, "age"]) == ("65 to 79", "40 to 64", "unknown")  # 65 on the day, and a day later
    assert (told[0, "sex"], told[1, "sex"], told[2, "sex"]) == ("female", "male", "unknown")
    assert (told[1, "race"], told[2, "race"]) == ("unknown", "unknown")
    assert told[0, "history_days"] == "2: 180 days to 2 years"
    assert told[1, "history_days"] == "1: under 180 days"  # the record knew of it later
    assert told[2, "history_days"] == "4: 5 years and more"
    assert (told[0, "history_events"], told[2, "history_events"]) == ("1: under 50", "2: 50 to 199")
    assert (3, "age") not in told


def test_later_events_change_nothing():
    rows = labels_frame([True, False, False]).select("task", "subject_id", "prediction_time")
    later = events_frame([event(subject, "condition/9", T0 + timedelta(days=day)) for subject in range(3) for day in range(1, 90)])
    assert subgroup_levels(pl.concat([PEOPLE, later]), rows).equals(subgroup_levels(PEOPLE, rows))


def test_history_is_what_was_known_by_then_event_by_event():
    """Of many rows a subject, against looking at each event for each row."""
    rng = np.random.default_rng(0)
    day = lambda count: [T0 + timedelta(days=int(one)) for one in rng.integers(0, 3000, count)]  # noqa: E731
    events = events_frame([event(int(rng.integers(4)), "condition/1", when, late=int(rng.integers(0, 400))) for when in day(700)])
    rows = pl.DataFrame({"task": "t", "subject_id": rng.integers(0, 4, 60), "prediction_time": day(60)}).unique()
    told = subgroup_levels(events, rows).pivot("subgroup", index=["subject_id", "prediction_time"], values="level")
    for row in told.to_dicts():
        known = events.filter((pl.col("subject_id") == row["subject_id"]) & (pl.col("available_time") <= row["prediction_time"]))
        days = (row["prediction_time"] - known["time"].min()).days if known.height else 0
        assert row["history_events"].startswith(str(1 + sum(known.height >= edge for edge in (50, 200, 1000)))), known.height
        assert row["history_days"].startswith(str(1 + sum(days >= edge for edge in (180, 730, 1826)))), days


def grouped(labels, levels, subgroup="g"):
    keys = labels.select("task", "subject_id", "prediction_time")
    return keys.with_columns(pl.lit(subgroup).alias("subgroup"), pl.Series("level", levels)).drop_nulls()


def test_metrics_of_a_level_are_those_of_its_rows_alone():
    rng = np.random.default_rng(0)
    p = rng.random(300)
    values = (rng.random(300) < p).tolist()
    values = [None if rng.random() < 0.2 else one for one in values]
    labels = labels_frame(values, days=[int(day) for day in rng.integers(1, 30, 300)])
    predictions = predictions_frame(labels, p)
    levels = ["a" if row % 3 else "b" for row in range(300)]
    metrics = evaluate_predictions(predictions, labels, groups=grouped(labels, levels), replicates=50)
    s.check_columns(metrics.to_arrow(), s.METRIC_SCHEMA, where="metrics")
    for level in ("a", "b"):
        keep = pl.Series([one == level for one in levels])
        alone = evaluate_predictions(predictions.filter(keep), labels, replicates=50).drop("subgroup", "level")
        assert metrics.filter(pl.col("level") == level).drop("subgroup", "level").equals(alone)
    everybody = evaluate_predictions(predictions, labels, replicates=50)
    assert metrics.filter(pl.col("subgroup").is_null()).equals(everybody)
    assert GROUP_REPLICATES <= 1000


@pytest.mark.parametrize(("people", "positives", "shown"), [(40, 11, True), (40, 10, False), (21, 11, False), (22, 11, True), (10, 5, False)])
def test_small_levels_are_counted_and_not_shown(people, positives, shown):
    values = [row < positives for row in range(people)] + [row % 2 == 0 for row in range(160)]
    labels = labels_frame(values)
    rng = np.random.default_rng(0)
    groups = grouped(labels, ["small"] * people + ["middle"] * 60 + ["large"] * 100)
    metrics = evaluate_predictions(predictions_frame(labels, rng.random(len(values))), labels, groups=groups, replicates=5)
    # Where the small level alone was withheld, everybody less the others would be it.
    assert set(metrics["level"].drop_nulls()) == ({"small", "middle", "large"} if shown else {"large"})
    withheld = metrics.filter(pl.col("metric") == WITHHELD).to_dicts()
    assert [(row["value"], row["subgroup"], row["level"], row["subjects"], row["positives"]) for row in withheld] == (
        [] if shown else [(2, "g", None, 0, 0)]
    )


def test_small_levels_together_are_not_small():
    labels = labels_frame([row % 2 == 0 for row in range(160)])
    levels = ["a"] * 2 + ["b"] * 2 + ["c"] * 56 + ["d"] * 100
    metrics = evaluate_predictions(predictions_frame(labels, [0.5] * 160), labels, groups=grouped(labels, levels), replicates=0)
    assert metrics["level"].drop_nulls().unique().to_list() == ["d"]
    assert metrics.filter(pl.col("metric") == WITHHELD)["value"].to_list() == [3]


def test_rows_left_out_are_counted_in_no_level_where_they_are_few_in_one():
    """Of 60 people in each of two levels, 3 and 20 are lost, 15 and 12 refused."""
    lost, refused = {*range(3), *range(60, 80)}, {*range(30, 45), *range(90, 102)}
    labels = labels_frame([None if one in lost else one % 2 == 0 for one in range(120)])
    predictions = predictions_frame(labels, [None if one in refused else 0.5 for one in range(120)])
    levels = ["a" if one < 60 else "b" for one in range(120)]
    metrics = evaluate_predictions(predictions, labels, groups=grouped(labels, levels), replicates=0).filter(pl.col("level").is_not_null())
    told = {(row["level"], row["metric"]): row["value"] for row in metrics.to_dicts()}
    assert [told[level, "censored"] for level in "ab"] == [None, None]
    assert [told[level, "refused"] for level in "ab"] == [15, 12]


def test_people_are_counted_and_not_rows():
    labels = labels_frame([row % 2 == 0 for row in range(100)]).with_columns(
        (pl.col("subject_id") % 5).alias("subject_id"), (pl.lit(T0) + pl.duration(days=pl.col("subject_id"))).alias("prediction_time")
    )
    labels = labels.unique(["subject_id", "prediction_time"], maintain_order=True)
    metrics = evaluate_predictions(
        predictions_frame(labels, [0.5] * labels.height), labels, groups=grouped(labels, ["x"] * labels.height), replicates=0
    )
    assert "x" not in metrics["level"].to_list()


class Events:
    """As much of an event data set as is asked for."""

    codes = pl.DataFrame(schema={"code": pl.String, "parent_codes": pl.List(pl.String)})

    def __init__(self, events):
        self._events = events

    def names(self):
        return {}

    def iter_shards(self):
        yield "train", self._events


TASK = """
name: t
description: Condition 1 within 30 days
concept_sets: {one: {condition: [1]}}
index: {days_after_first_event: 0}
outcome: {concepts: one}
horizon_days: 30
censoring: closed_world
"""


def test_first_onset_and_recurrence_by_the_task_own_concepts(tmp_path):
    task = tmp_path / "t.yaml"
    task.write_text(TASK)
    rows = labels_frame([True, False, False]).select("task", "subject_id", "prediction_time")
    groups, notes = subgroups(Events(PEOPLE), rows, [str(task)])
    onset = dict(groups.filter(pl.col("subgroup") == "onset").select("subject_id", "level").rows())
    # Subject 1 had it long ago, though the record knew it later: that is neither after the prediction time nor a first onset.
    assert onset == {0: "recurrence", 1: "recurrence", 2: "first"}
    assert notes == []
    groups, notes = subgroups(Events(PEOPLE), rows)
    assert "onset" not in groups["subgroup"].to_list()
    assert len(notes) == 1
    assert "--task" in notes[0]
