"""Stays in intensive care as a task's index, its outcome and its window; forecasts of them against the exact risk."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt.errors import TaskError
from cehrxgpt.events import conform, sort_events
from cehrxgpt.forecast import ForecastConfig, forecast
from cehrxgpt.tasks import label, load_task, outcome_tokens, parse_task
from task_samples import row, table
from test_forecast_truth import LAST, at
from toy_capabilities import BENIGN, history, markov, vocabulary

START = datetime(2010, 1, 1, 8)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def stays(*details: tuple[float, float]) -> list[dict]:
    """A visit of forty days with intensive care from day to day."""
    rows = [row(1, "Visit/9201", START, end=START + 40 * DAY, visit=7), row(1, "discharge/8536", START + 40 * DAY, visit=7)]
    return rows + [row(1, "VisitDetail/32037", START + a * DAY, end=START + b * DAY, visit=7) for a, b in details]


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        (((1, 9),), [(1, True)]),
        (((1, 7.9),), [(1, False)]),
        (((1, 1.5),), []),  # over before it is asked about
        (((1, 5), (5, 9)), [(1, True)]),  # from unit to unit: one stay
        (((1, 5), (3, 9)), [(1, True)]),
        (((1, 9), (2, 4)), [(1, True)]),  # nested
        (((1, 5), (6, 9)), [(1, False), (6, False)]),
        (((1, 5), (20, 30)), [(1, False), (20, True)]),
    ],
)
def test_long_stays(details: tuple, expected: list) -> None:
    labels = label(table(stays(*details)), "long_icu_stay_7d").labels
    assert labels.select("prediction_time", "boolean_value").rows() == [(START + day * DAY + 24 * HOUR, long) for day, long in expected]


def test_its_end_is_known_before_the_discharge_is() -> None:
    task = parse_task(
        "name: t\ndescription: ''\nindex: {visit: [intensive_care], at: end}\noutcome: {visit: [intensive_care]}\nhorizon_days: 10\n", where="t"
    )
    labels = label(table(stays((1, 3), (9, 11))), task).labels
    found = dict(labels.select("prediction_time", "boolean_value").iter_rows())
    assert found == {START + 3 * DAY: True, START + 11 * DAY: False}


def test_its_tokens_are_the_outcome() -> None:
    task = parse_task(
        "name: t\ndescription: ''\nindex: {visit: [inpatient], at: start}\noutcome: {visit: [intensive_care]}\nhorizon_days: 10\n", where="t"
    )
    words = vocabulary(icu=True)
    assert np.flatnonzero(outcome_tokens(task, words)).tolist() == [words.id_of("[ICU]")]
    assert not outcome_tokens(task, vocabulary()).any()
    assert label(table(stays((1, 3))), task).labels["boolean_value"].to_list() == [True]


def test_it_is_asked_about_alone() -> None:
    with pytest.raises(TaskError, match="alone"):
        parse_task("name: t\ndescription: ''\nindex: {visit: [inpatient, intensive_care]}\noutcome: {death: true}\nhorizon_days: 10\n", where="t")


def test_data_without_it_say_so() -> None:
    assert label(table([row(1, "Visit/9201", START, end=START + DAY, visit=1)]), "long_icu_stay_7d").note


def test_forecasts_of_a_stay_that_goes_on() -> None:
    """Another day in intensive care with probability 0.8; the visit goes on after it, so that its own end would give another answer."""
    chain = {
        "[ICU]": {BENIGN: 1.0},
        BENIGN: {"i-D1": 0.8, "[/ICU]": 0.2},
        "i-D1": {BENIGN: 1.0},
        "[/ICU]": {"i-D9": 1.0},
        "i-D9": {"discharge/8536": 1.0},
        "discharge/8536": {"[VE]": 1.0},
        "[VE]": {"D30": 1.0},
        "D30": {BENIGN: 1.0},
    }
    admitted = LAST + timedelta(days=20)
    rows = []
    for subject in range(1, 6):
        for code, begins in (("Visit/9201", admitted), ("VisitDetail/32037", admitted), (BENIGN, admitted)):
            rows.append({"subject_id": subject, "time": begins, "code": code, "available_time": begins, "time_precision": "second", "visit_id": 1})
    stay = conform(pl.DataFrame(rows, schema_overrides={"time": pl.Datetime("us"), "available_time": pl.Datetime("us")}))
    events = sort_events(pl.concat([history(5), stay]))
    task = parse_task("name: long\ndescription: ''\nindex: {visit: [intensive_care], at: start}\noutcome: {stay_over_days: 3}\n", where="toy")
    found = forecast(markov(chain, icu=True), events, at(5, admitted), [task], ForecastConfig(samples=200, max_new_tokens=400))
    truth = 0.8**4  # over at the third midnight is not longer than three days
    mean = found.predictions["predicted_boolean_probability"].mean()
    assert found.predictions["note"].null_count() == 5
    assert abs(mean - truth) < 3 * np.sqrt(truth * (1 - truth) / 1000)
    before = sort_events(pl.concat([history(5), stay.filter(pl.col("code") != "VisitDetail/32037")]))
    refused = forecast(markov(chain, icu=True), before, at(5, admitted), [task], ForecastConfig(samples=2))
    assert "no stay" in refused.predictions["note"][0]
    assert load_task("long_icu_stay_7d").about_intensive_care
