"""Rows that cannot be forecast say why, and by what method they would have been."""

from __future__ import annotations

from datetime import timedelta

import polars as pl
import pytest

from cehrxgpt.errors import InputError, SchemaError
from cehrxgpt.forecast import ForecastConfig, forecast
from cehrxgpt.tasks import label, parse_task
from test_forecast_truth import LAST, SHARES, at, task
from toy_capabilities import bare_chain, history, markov

TOMORROW = LAST + timedelta(days=1)


def asked(events: pl.DataFrame, rows: pl.DataFrame, tasks, estimator: str = "mc") -> pl.DataFrame:
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    return forecast(model, events, rows, tasks, ForecastConfig(samples=4, max_new_tokens=64, estimator=estimator)).predictions


@pytest.mark.parametrize("estimator", ["scope", "reach"])
def test_a_task_has_one_method_in_all_its_rows(estimator: str) -> None:
    stays = parse_task("name: stays\ndescription: toy\nindex: {visit: [inpatient], at: start}\noutcome: {stay_over_days: 3}\n", where="toy")
    found = asked(history(1), at(2, TOMORROW), [task(), stays], estimator)
    assert found["method"].to_list() == [estimator, estimator, "monte_carlo", "monte_carlo"]
    assert found["note"].is_null().to_list()[:2] == [True, False]


def test_the_dead_have_no_future() -> None:
    dead = history(1, code="MEDS_DEATH").filter((pl.col("code") != "MEDS_DEATH") | (pl.col("time") == LAST))
    events = pl.concat([dead, history(1).with_columns(pl.lit(2, dtype=pl.Int64).alias("subject_id"))])
    found = asked(events, at(2, TOMORROW), [task(), task("far", horizon=60)])
    assert found["note"].to_list() == ["the history ends in death", None] * 2
    assert found["predicted_boolean_probability"].is_null().to_list() == [True, False] * 2


def test_rows_that_ask_for_nothing_or_for_nobody_are_errors() -> None:
    rows = at(2, TOMORROW)
    with pytest.raises(InputError, match="1 of 2 rows name no task"):
        asked(history(2), rows.with_columns(pl.Series("task", ["toy", None])), [task()])
    with pytest.raises(SchemaError, match="2 of 2 values are no whole number"):
        asked(history(2), rows.with_columns(pl.col("subject_id") + 0.5), [task()])
    with pytest.raises(SchemaError, match="time zone America/New_York"):
        asked(history(2), rows.with_columns(pl.col("prediction_time").dt.replace_time_zone("America/New_York")), [task()])
    assert asked(history(2), rows.with_columns(pl.col("subject_id").cast(pl.Float64)), [task()])["note"].null_count() == 2


def test_what_is_no_model_no_events_and_no_rows_is_one_line_and_one_task_is_enough() -> None:
    model, events, rows = markov(bare_chain(SHARES, 0.1, 0.05)), history(2), at(2, LAST + timedelta(days=1))
    one, few = task(), ForecastConfig(samples=2)
    assert forecast(model, events, rows, one, few).predictions.equals(forecast(model, events, rows, [one], few).predictions)
    with pytest.raises(InputError, match=r"model is a str; give load_model\('model'\)"):
        forecast("model", events, rows, one, few)  # type: ignore[arg-type]
    for ask in (lambda given: forecast(model, given, rows, one, few), lambda given: label(given, one)):
        with pytest.raises(InputError, match=r"events are a str; give EventDataset\('events'\)"):
            ask("events")
    with pytest.raises(SchemaError, match=r"rows to forecast: a list; give a Polars frame"):
        forecast(model, events, rows.to_dicts(), one, few)  # type: ignore[arg-type]
