"""The constant, and age with sex, beside a model: on its rows, fitted on other people's labels."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.evaluate import evaluate_predictions
from cehrxgpt.events import conform, sort_events
from cehrxgpt.stages.references import references
from test_evaluate_predictions import T0, followed, labels_frame, predictions_frame

PEOPLE = 300
SPLITS = [s.TRAIN if subject < 200 else s.HELD_OUT for subject in range(PEOPLE)]


class Events:
    """As much of an event data set as is asked for."""

    def __init__(self, births: list[datetime], splits: list[str]):
        rows = [row for subject, birth in enumerate(births) for row in ((subject, None, "gender/8532"), (subject, birth, s.BIRTH))]
        frame = pl.DataFrame(rows, schema={"subject_id": pl.Int64, "time": pl.Datetime("us"), "code": pl.String}, orient="row")
        self._events = sort_events(conform(frame.with_columns(pl.col("time").alias("available_time"))))
        self.subject_splits = pl.DataFrame({"subject_id": range(len(births)), "split": splits})

    def iter_shards(self):
        yield "0", self._events


@pytest.fixture
def old_and_young():
    """The old have the outcome; the model knows nothing."""
    old = np.random.default_rng(1).random(PEOPLE) < 0.3
    data = Events([datetime(1930 if one else 1980, 1, 1) for one in old], SPLITS)
    labels = labels_frame([None if subject == 7 else bool(one) for subject, one in enumerate(old)])
    judged = predictions_frame(labels.filter(pl.col("subject_id") >= 200), [0.5] * 99 + [None])
    return data, labels, judged, old


def test_references_are_fitted_on_other_people(old_and_young) -> None:
    data, labels, judged, old = old_and_young
    found, notes = references(judged, labels, dataset=data, tuning=None)
    assert notes == ["t: constant and age+sex fitted on 199 training rows"]
    assert found.group_by("method", maintain_order=True).len().rows() == [
        ("constant", 99),
        ("age+sex", 99),
    ]  # where the model has no answer neither has it
    others = np.delete(old[:200], 7)
    assert found.filter(pl.col("method") == "constant")["predicted_boolean_probability"].unique().to_list() == [pytest.approx(others.mean())]
    s.check_columns(found.to_arrow(), s.PREDICTION_SCHEMA, where="references")
    metrics = evaluate_predictions(found, labels, replicates=0)
    assert dict(metrics.filter(pl.col("metric") == "auroc").select("method", "value").rows()) == {"constant": 0.5, "age+sex": 1.0}
    turned = labels.with_columns(
        pl.when(pl.col("subject_id") >= 200).then(~pl.col("boolean_value")).otherwise("boolean_value").alias("boolean_value")
    )
    again, _ = references(judged, turned, dataset=data, tuning=None)
    assert again.drop("boolean_value").equals(found.drop("boolean_value"))  # the judged people's own labels decide nothing
    assert references(pl.concat([judged, found.select(judged.columns)]), labels, dataset=data, tuning=None)[0].is_empty()


def test_judged_people_of_the_training_split_are_told(old_and_young) -> None:
    data, labels, _, _ = old_and_young
    judged = predictions_frame(labels, [0.5] * PEOPLE)
    _, notes = references(judged, labels, dataset=data, tuning=None)
    assert notes == [
        "t: constant fitted on 299 of the very rows that are judged (no age+sex: there are no labels of others)",
        "t: 199 of 299 judged rows are of the training split; of a model that was trained on it they are no test",
    ]


def test_without_events_the_constant_alone(old_and_young) -> None:
    _, labels, judged, old = old_and_young
    found, notes = references(judged, labels, dataset=None, tuning=None)
    told = "t: constant fitted on 99 of the very rows that are judged"
    assert notes == [f"{told}; with --events, whose splits tell who is of the training data, it is fitted on others"]
    assert references(judged, labels.filter(pl.col("subject_id").is_between(200, 298)), dataset=None, tuning=None)[1] == [told]  # there are no others
    assert found["predicted_boolean_probability"].unique().to_list() == [pytest.approx(old[200:299].mean())]
    tuning = predictions_frame(labels.filter(pl.col("subject_id") < 50), [0.5] * 50)
    found, notes = references(judged, labels, dataset=None, tuning=tuning)
    assert notes == ["t: constant fitted on 49 rows of the tuning predictions"]
    assert found["predicted_boolean_probability"].unique().to_list() == [pytest.approx(np.delete(old[:50], 7).mean())]
    assert found["prediction_time"].unique().to_list() == [T0]


def test_the_constant_of_the_judged_rows_is_their_weighted_share() -> None:
    """Half of them are lost within the year: what is seen has too many positives, for the constant as for every metric."""
    rng = np.random.default_rng(2)
    event, lost = rng.exponential(600, 400), rng.exponential(400, 400)
    labels = followed(event, lost)
    found, _ = references(predictions_frame(labels, [0.5] * 400), labels, dataset=None, tuning=None)
    metrics = dict(evaluate_predictions(found, labels, replicates=0).select("metric", "value").rows())
    assert metrics["mean_predicted"] == pytest.approx(metrics["prevalence"])
    assert metrics["prevalence"] < labels["boolean_value"].mean()
    assert metrics["ece"] == pytest.approx(0, abs=1e-9)
    assert metrics["calibration_intercept"] == pytest.approx(0, abs=1e-6)


def test_age_and_sex_are_fitted_on_weighted_rows() -> None:
    """The same, of people who train: unweighted, both would promise too much to those who are judged."""
    rng = np.random.default_rng(3)
    count = 3_000
    event, lost = rng.exponential(600, count), rng.exponential(400, count)
    old = rng.random(count) < 0.5
    data = Events([datetime(1930 if one else 1980, 1, 1) for one in old], [s.TRAIN if subject < 2_000 else s.HELD_OUT for subject in range(count)])
    labels = followed(event, lost)
    judged = labels.filter(pl.col("subject_id") >= 2_000)
    found, _ = references(predictions_frame(judged, [0.5] * judged.height), labels, dataset=data, tuning=None)
    truth = 1 - np.exp(-365 / 600)
    assert judged["boolean_value"].mean() > truth + 0.05  # what is seen has too many positives
    for method in ("constant", "age+sex"):
        assert found.filter(pl.col("method") == method)["predicted_boolean_probability"].mean() == pytest.approx(truth, abs=0.035)
