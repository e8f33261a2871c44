"""Zero-shot risk against the exact risk of a Markov chain, and honest denominators from end to end."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.errors import InputError
from cehrxgpt.events import conform, sort_events
from cehrxgpt.forecast import ForecastConfig, forecast
from cehrxgpt.tasks import Task, outcome_in_window, parse_task
from toy_capabilities import BENIGN, OUTCOME, bare_chain, exact_risk, history, markov, vocabulary

LAST = datetime(2015, 6, 1)
SHARES = {1: 0.3, 4: 0.3, 10: 0.3, 40: 0.1}


def task(name: str = "toy", *, horizon: float = 30, gap: float = 0, outcome: str = "{concepts: outcome}", more: str = "") -> Task:
    concept = (
        "concept_sets: {index: {condition: [1]}, outcome: {condition: [2]}}" if "concepts" in outcome else "concept_sets: {index: {condition: [1]}}"
    )
    return parse_task(
        f"name: {name}\ndescription: toy\n{concept}\nindex: {{concepts: index, occurrence: last}}\noutcome: {outcome}\n"
        f"horizon_days: {horizon}\ngap_days: {gap}\n{more}",
        where="toy",
    )


def at(subjects: int, time: datetime) -> pl.DataFrame:
    return pl.DataFrame(
        {"subject_id": range(1, subjects + 1), "prediction_time": [time] * subjects}, schema_overrides={"prediction_time": pl.Datetime("us")}
    )


@pytest.mark.parametrize("elapsed", [1, 9, 11])
@pytest.mark.parametrize("stop", [True, False])
def test_risk_is_the_exact_risk(elapsed: int, stop: bool) -> None:
    """Within three standard errors, at several lengths of silence before the prediction."""
    subjects, samples = 10, 150
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    config = ForecastConfig(samples=samples, seed=elapsed, max_new_tokens=100, stop_at_outcome=stop)
    found = forecast(model, history(subjects), at(subjects, LAST + timedelta(days=elapsed, hours=12)), [task()], config)
    truth = exact_risk(SHARES, 0.1, 0.05, elapsed=elapsed, horizon=30, own_day=False)
    mean = found.predictions["predicted_boolean_probability"].mean()
    error = np.sqrt(truth * (1 - truth) / (subjects * samples))
    assert abs(mean - truth) < 3 * error
    assert found.predictions["completion"].to_list() == [1.0] * subjects
    assert found.summary["gap_not_conditioned"] == 0
    each = found.predictions["std_error"].to_numpy()
    assert each == pytest.approx(np.sqrt(truth * (1 - truth) / samples), rel=0.4)


@pytest.mark.parametrize(("hour", "counts"), [(0, True), (12, False)])
@pytest.mark.parametrize("estimator", ["mc", "scope", "reach"])
def test_an_event_of_the_day_itself_is_what_the_labeler_says_it_is(hour: int, counts: bool, estimator: str) -> None:
    """The outcome is sure to come on the day on which is asked, without an hour: after that day's midnight, but not after its noon."""
    model = markov({BENIGN: {"D1": 1.0}, "D1": {OUTCOME: 1.0}, OUTCOME: {"D40": 1.0}, "D40": {BENIGN: 1.0}})
    rows = at(1, LAST + timedelta(days=1, hours=hour))
    found = forecast(model, history(1), rows, [task()], ForecastConfig(samples=3, max_new_tokens=20, estimator=estimator)).predictions
    assert found["predicted_boolean_probability"].to_list() == [float(counts)]
    came = history(1, last=LAST + timedelta(days=1), code=OUTCOME).filter(pl.col("time") > LAST)
    labelled = outcome_in_window(task(), pl.concat([history(1), came]), rows)
    assert labelled["outcome_time"].is_not_null().to_list() == [counts]


def test_conditioning_on_silence_matters() -> None:
    """Without it the answer would be the risk from the last event: the test above can fail."""
    assert abs(exact_risk(SHARES, 0.1, 0.05, elapsed=11, horizon=30) - exact_risk(SHARES, 0.1, 0.05, elapsed=1, horizon=30)) > 0.05


def test_eight_prompts_give_eight_rows_in_order() -> None:
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    rows = at(8, LAST + timedelta(days=1))[::-1]
    found = forecast(model, history(8), rows, [task()], ForecastConfig(samples=3, batch_rows=5, moments=3))
    assert found.predictions["subject_id"].to_list() == rows["subject_id"].to_list()
    assert found.predictions["predicted_boolean_probability"].null_count() == 0
    assert found.samples.height == 24 == found.summary["futures"]
    s.check_columns(found.predictions.to_arrow(), s.PREDICTION_SCHEMA, where="predictions")
    s.check_columns(found.samples.to_arrow(), s.SAMPLE_SCHEMA, where="samples")


def test_futures_out_of_budget_stay_in_the_denominator() -> None:
    subjects, samples = 10, 100
    model = markov(bare_chain({1: 1.0}, 0.02, 0.0))
    rows = at(subjects, LAST + timedelta(days=1))
    truth = exact_risk({1: 1.0}, 0.02, 0.0, elapsed=1, horizon=60)
    found = forecast(model, history(subjects), rows, [task(horizon=60)], ForecastConfig(samples=samples, max_new_tokens=40))
    predictions = found.predictions
    assert found.summary["stopped"]["budget"] > 0.4 * subjects * samples  # 20 events, 60 days
    assert (predictions["lower_bound"] < truth).all()
    assert (predictions["upper_bound"] > truth).all()
    assert (predictions["completion"] < 0.6).all()
    decided_only = predictions["lower_bound"] / predictions["completion"]
    assert (decided_only > 0.99).all()  # what dropping them would have said: every finished future had the outcome
    assert (predictions["lower_bound"] <= predictions["predicted_boolean_probability"]).all()
    assert (predictions["predicted_boolean_probability"] <= predictions["upper_bound"]).all()
    assert abs(predictions["predicted_boolean_probability"].mean() - truth) < 0.05


@pytest.mark.parametrize("estimator", ["mc", "reach"])
def test_the_date_on_which_the_budget_ends_is_not_known_whole(estimator: str) -> None:
    """A window that closes at a midnight, and futures that stand on it: what they would have said next of that date may be the outcome."""
    chain = {BENIGN: {"D30": 0.7, "D60": 0.3}, "D30": {OUTCOME: 0.9, BENIGN: 0.1}, "D60": {BENIGN: 1.0}, OUTCOME: {"D60": 1.0}}
    asked = history(1), at(1, LAST + timedelta(days=1)), [task(horizon=29)]
    told = {}
    for budget in (1, 2, 3, 10):
        config = ForecastConfig(samples=300, max_new_tokens=budget, estimator=estimator)
        told[budget] = forecast(markov(chain), *asked, config).predictions.row(0, named=True)
    assert told[10]["completion"] == 1
    assert told[10]["predicted_boolean_probability"] == pytest.approx(0.57, abs=0.03)  # of these very futures
    assert told[1]["completion"] < 0.5
    assert told[2]["predicted_boolean_probability"] > 0.6  # 24 are not known whole, of the other 276 171 have it
    for row in told.values():
        assert row["lower_bound"] <= told[10]["predicted_boolean_probability"] <= row["upper_bound"]


def test_the_last_date_of_a_stay_is_not_known_whole_either() -> None:
    """A death of that date is one in the stay, and is said after its end; the budget ends in between."""
    chain = {"Visit/9201": {"i-D1": 1.0}, "i-D1": {BENIGN: 1.0}, BENIGN: {"i-D1": 0.5, "[VE]": 0.5}, "[VE]": {"D0": 0.6, "D30": 0.4}}
    chain |= {"D0": {"MEDS_DEATH": 1.0}, "D30": {BENIGN: 1.0}}
    index = "index: {visit: [inpatient], at: start}\n"
    dies = parse_task(f"name: dies\ndescription: toy\n{index}outcome: {{death: true}}\nhorizon_days: stay\n", where="toy")
    admitted, told = LAST + timedelta(days=20), {}
    for budget in (*range(1, 9), 200):
        config = ForecastConfig(samples=200, max_new_tokens=budget)
        told[budget] = forecast(markov(chain), in_hospital(1, admitted), at(1, admitted), [dies], config).predictions.row(0, named=True)
    assert told[200]["completion"] == 1
    assert told[200]["predicted_boolean_probability"] == pytest.approx(0.6, abs=0.12)
    for row in told.values():
        assert row["lower_bound"] - 1e-9 <= told[200]["predicted_boolean_probability"] <= row["upper_bound"] + 1e-9
    assert told[3]["completion"] == 0  # every stay that has ended stands on its last date


@pytest.mark.parametrize(("kind", "risk"), [(None, 0.0), ("Visit/9202", 0.0), ("Visit/9201", 1.0)])
def test_a_visit_that_goes_by_the_day_says_no_hours(kind: str | None, risk: float) -> None:
    """Asked at noon, what the date surely brings is after noon in a stay, where things have hours, and neither before nor after elsewhere."""
    ten = LAST + timedelta(days=20, hours=10)
    rows = [{"time": ten, "code": BENIGN}] + ([{"time": ten - timedelta(hours=1), "code": kind}] if kind else [])
    shared = {"subject_id": 1, "time_precision": "minute", "visit_id": 1 if kind else None}
    events = pl.DataFrame([row | shared | {"available_time": row["time"]} for row in rows])
    events = sort_events(pl.concat([history(1), conform(events.with_columns(pl.col("time", "available_time").cast(pl.Datetime("us"))))]))
    chain = {
        BENIGN: {"i-H3": 1.0} if risk else {OUTCOME: 1.0},
        "i-H3": {OUTCOME: 1.0},
        OUTCOME: {"[VE]": 0.5, "D40": 0.5},
        "[VE]": {"D40": 1.0},
        "D40": {"D40": 1.0},
    }
    asked = at(1, ten + timedelta(hours=2))
    told = forecast(markov(chain), events, asked, [task(horizon=30)], ForecastConfig(samples=20, max_new_tokens=20)).predictions
    assert told["predicted_boolean_probability"][0] == pytest.approx(risk, abs=1e-9), told["note"]


def test_what_a_stay_has_brought_so_far_counts() -> None:
    """Of a stay that goes on when the budget ends, an outcome that was seen is one; long stays have more of them and use more tokens."""
    chain = {"Visit/9201": {"i-D1": 1.0}, "i-D1": {BENIGN: 0.9, OUTCOME: 0.1}, "discharge/8536": {"[VE]": 1.0}, "[VE]": {"D30": 1.0}}
    chain |= {"D30": {BENIGN: 1.0}, BENIGN: {"i-D1": 0.9, "discharge/8536": 0.1}, OUTCOME: {"i-D1": 0.9, "discharge/8536": 0.1}}
    stays = parse_task(
        "name: stays\ndescription: toy\nconcept_sets: {outcome: {condition: [2]}}\nindex: {visit: [inpatient], at: start}\n"
        "outcome: {concepts: outcome}\nhorizon_days: stay\n",
        where="toy",
    )
    truth, admitted, told = 0.1 / (1 - 0.9 * 0.9), LAST + timedelta(days=20), {}
    for budget in (12, 16, 24, 400):
        config = ForecastConfig(samples=200, max_new_tokens=budget, trajectories=True)
        found = forecast(markov(chain), in_hospital(3, admitted), at(3, admitted), [stays], config)
        row = told[budget] = (
            found.predictions.select("predicted_boolean_probability", "completion", "lower_bound", "upper_bound").mean().row(0, named=True)
        )
        assert found.trajectories is not None
        seen = found.trajectories.filter(pl.col("code") == OUTCOME).select("subject_id", "sample_id").n_unique() / 600
        assert row["lower_bound"] == pytest.approx(seen)
        assert row["predicted_boolean_probability"] == pytest.approx(truth, abs=0.08)
    assert told[12]["completion"] < told[24]["completion"] < told[400]["completion"] == 1
    for row in told.values():
        assert row["lower_bound"] <= told[400]["predicted_boolean_probability"] <= row["upper_bound"]


def test_what_unfinished_futures_of_reach_would_have_added() -> None:
    """All run out of budget at once, after two thirds of the window: the rest goes on at their rate, behind what is left of each."""
    model, rows = markov(bare_chain({1: 1.0}, 0.05, 0.0)), at(3, LAST + timedelta(days=1, hours=12))
    config = ForecastConfig(samples=100, max_new_tokens=40, estimator="reach")
    found = forecast(model, history(3), rows, [task(horizon=60)], config).predictions
    truth = exact_risk({1: 1.0}, 0.05, 0.0, elapsed=1, horizon=60, own_day=False)
    assert found["predicted_boolean_probability"].mean() == pytest.approx(truth, abs=0.02)
    assert found["std_error"].max() < 0.2


def test_one_pool_serves_all_tasks_of_a_prediction_time() -> None:
    """The short horizon's risk from a pool that ran to the long one is still the exact risk."""
    subjects, samples = 10, 150
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    tasks = [
        task("short", horizon=7),
        task("long", horizon=40),
        task("later", horizon=20, gap=20),
        task("death", horizon=40, outcome="{death: true}"),
    ]
    found = forecast(model, history(subjects), at(subjects, LAST + timedelta(days=3)), tasks, ForecastConfig(samples=samples, max_new_tokens=120))
    assert found.summary["futures"] == subjects * samples
    assert found.summary["stopped"]["outcome"] == 0
    assert found.predictions["task"].to_list() == [one.name for one in tasks for _ in range(subjects)]
    means = dict(found.predictions.group_by("task").agg(pl.col("predicted_boolean_probability").mean()).iter_rows())
    for name, horizon, outcome, death in (("short", 7, 0.1, 0.05), ("long", 40, 0.1, 0.05)):
        truth = exact_risk(SHARES, outcome, death, elapsed=3, horizon=horizon)
        assert abs(means[name] - truth) < 3 * np.sqrt(truth * (1 - truth) / (subjects * samples))
    # Death ends everything; the outcome does not, and may come more than once: exact by letting the outcome be benign. A death
    # known by its date stands at the end of its day, so the fortieth day's is past the horizon.
    truth = exact_risk(SHARES, 0.05, 0.0, elapsed=3, horizon=39)
    assert abs(means["death"] - truth) < 3 * np.sqrt(truth * (1 - truth) / (subjects * samples))
    assert 0 < means["later"] < means["long"]


def test_each_label_row_asks_for_its_own_task() -> None:
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    rows = pl.concat(
        [at(2, LAST + timedelta(days=1)).with_columns(pl.lit(name).alias("task"), pl.lit(True).alias("boolean_value")) for name in ("a", "b")]
    )
    found = forecast(model, history(2), rows[[0, 3]], [task("a"), task("b", horizon=60)], ForecastConfig(samples=4))
    assert found.predictions.select("task", "subject_id", "boolean_value").rows() == [("a", 1, True), ("b", 2, True)]
    assert found.summary["futures"] == 8
    with pytest.raises(InputError, match="'b'"):
        forecast(model, history(2), rows, [task("a")], ForecastConfig(samples=4))


@pytest.mark.parametrize(
    "outcome", ["{concepts: gone}", "{all: [{concepts: gone}, {concepts: index}]}", "{concepts: gone}\ncompeting: [{concepts: index}]"]
)
def test_refused_rows_say_why(outcome: str) -> None:
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    time = LAST + timedelta(days=1)
    strange = history(1, code="condition/999").with_columns(pl.lit(2, dtype=pl.Int64).alias("subject_id"))
    had = history(1, code=OUTCOME).with_columns(pl.lit(3, dtype=pl.Int64).alias("subject_id"))
    events = pl.concat([history(1), strange, had])
    rows = pl.concat([at(4, time), at(1, datetime(1990, 1, 1))])
    absent = parse_task(
        "name: absent\ndescription: toy\nconcept_sets: {index: {condition: [1]}, gone: {condition: [77]}}\n"
        "index: {concepts: index, occurrence: last}\n"
        f"outcome: {outcome}\nhorizon_days: 30\n",
        where="absent",
    )
    found = forecast(model, events, rows, [task(more="first_onset: true"), absent], ForecastConfig(samples=4)).predictions
    notes = found["note"].to_list()
    assert notes[0] is None
    assert "100%" in notes[1]
    assert "first onset" in notes[2]
    assert notes[3] == "the subject is not in the events"
    assert notes[4] == "nothing is known before the prediction time"
    assert "no token of the outcome" in notes[5]
    assert found["predicted_boolean_probability"].is_null().to_list() == [note is not None for note in notes]


def test_nothing_after_the_prediction_time_is_used() -> None:
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    rows = at(3, LAST + timedelta(days=1))
    future = history(3, last=LAST + timedelta(days=40), code=OUTCOME).filter(pl.col("time") > LAST + timedelta(days=2))
    config = ForecastConfig(samples=20, trajectories=True)
    plain = forecast(model, history(3), rows, [task()], config)
    leaked = forecast(model, pl.concat([history(3), future]), rows, [task()], config)
    assert plain.predictions.equals(leaked.predictions)
    assert plain.samples.equals(leaked.samples)
    assert plain.trajectories is not None
    s.check_columns(plain.trajectories.to_arrow(), s.TRAJECTORY_SCHEMA, where="trajectories")
    assert (plain.trajectories["time"] > plain.trajectories["prediction_time"]).all()


def test_long_histories_are_cut_to_a_window() -> None:
    """The prompt leaves room for the budget; what is cut does not change this chain's risk."""
    days = [LAST - timedelta(days=day) for day in range(300)]
    long = pl.concat([history(1), *(history(1, last=day).filter(pl.col("time") == day) for day in days[1:9] + days[11:])]).sort(
        "time", nulls_last=False
    )
    model = markov(bare_chain(SHARES, 0.1, 0.05), context=128)
    found = forecast(model, long, at(1, LAST + timedelta(days=3)), [task()], ForecastConfig(samples=800, max_new_tokens=64))
    truth = exact_risk(SHARES, 0.1, 0.05, elapsed=3, horizon=30)
    assert found.predictions["completion"][0] > 0.95
    assert abs(found.predictions["predicted_boolean_probability"][0] - truth) < 3 * np.sqrt(truth * (1 - truth) / 800) + 0.02


def in_hospital(subjects: int, admitted: datetime) -> pl.DataFrame:
    """People of `history`, each in a stay that is going on."""
    rows = [
        {"subject_id": subject, "time": admitted, "code": "Visit/9201", "available_time": admitted, "time_precision": "second", "visit_id": 1}
        for subject in range(1, subjects + 1)
    ]
    stay = conform(pl.DataFrame(rows, schema_overrides={"time": pl.Datetime("us"), "available_time": pl.Datetime("us")}))
    return sort_events(pl.concat([history(subjects), stay]))


@pytest.mark.parametrize("years", [0, 60])
def test_length_of_stay_and_death_in_the_stay(years: int) -> None:
    """A stay of k days: each day another with probability 0.8, else home (0.9) or death; `years` ago, before 1970 as well."""
    words = vocabulary()
    assert BENIGN in words
    table = {
        "[VS]": {"Visit/9201": 1.0},
        "Visit/9201": {"i-D1": 1.0},
        "i-D1": {BENIGN: 1.0},
        BENIGN: {"i-D1": 0.8, "discharge/8536": 0.18, "[VE]": 0.02},
        "discharge/8536": {"[VE]": 1.0},
        "[VE]": {"D0": 0.2, "D30": 0.8},
        "D0": {"MEDS_DEATH": 1.0},
        "D30": {BENIGN: 1.0},
    }
    model = markov(table)
    ago = timedelta(days=round(365.25 * years))
    admitted = LAST + timedelta(days=20) - ago
    events = in_hospital(5, LAST + timedelta(days=20)).with_columns(pl.col("time", "end_time", "available_time") - ago)
    index = "index: {visit: [inpatient], at: start}\n"
    longer = parse_task(f"name: long_stay\ndescription: toy\n{index}outcome: {{stay_over_days: 3}}\n", where="toy")
    dies = parse_task(f"name: dies\ndescription: toy\n{index}outcome: {{death: true}}\nhorizon_days: stay\n", where="toy")
    found = forecast(model, events, at(5, admitted), [longer, dies], ForecastConfig(samples=200, max_new_tokens=400))
    means = dict(found.predictions.group_by("task").agg(pl.col("predicted_boolean_probability").mean()).iter_rows())
    assert abs(means["long_stay"] - 0.8**3) < 3 * np.sqrt(0.8**3 * (1 - 0.8**3) / 1000)  # longer than three days: a fourth day
    assert abs(means["dies"] - 0.2) < 3 * np.sqrt(0.2 * 0.8 / 1000)
    later = parse_task(f"name: later\ndescription: toy\n{index}outcome: {{death: true}}\nhorizon_days: 90\n", where="toy")
    beside = forecast(model, events, at(5, admitted), [longer, dies, later], ForecastConfig(samples=200, max_new_tokens=400))
    same = ("task", "predicted_boolean_probability", "std_error", "completion", "lower_bound", "upper_bound")
    # Beside a task that looks beyond the stay futures go on, and say the same of the stay.
    assert beside.predictions.filter(pl.col("task") != "later").select(same).equals(found.predictions.select(same))
    assert found.summary["tokens"] < 0.9 * beside.summary["tokens"]
    outside = forecast(model, events, at(1, LAST + timedelta(days=3) - ago), [longer], ForecastConfig(samples=2))
    assert "no stay" in outside.predictions["note"][0]


@pytest.mark.parametrize(("visit", "risk"), [("inpatient", 0.5), ("emergency", 0.5), ("[inpatient, emergency]", 1.0)])
@pytest.mark.parametrize("beside", [False, True])
def test_how_long_a_visit_lasts_is_looked_up_behind_the_window(visit: str, risk: float, beside: bool) -> None:
    """The emergency room keeps every other patient for ten days. Half of the visits begin when the window closes: whether they last is seen
    in the day after it, and is the same beside a task with a longer window."""
    chain = {BENIGN: {"D10": 0.5, "D20": 0.5}, "D10": {"[VS]": 1.0}, "D20": {"[VS]": 1.0}, "[VS]": {"Visit/8870": 1.0}}
    chain |= {"Visit/8870": {"i-D10": 0.5, "[VE]": 0.5}, "i-D10": {"[VE]": 1.0}, "[VE]": {"D60": 1.0}, "D60": {"[VS]": 1.0}}
    visit = visit if visit.startswith("[") else f"[{visit}]"
    asked = [
        task("short", horizon=19, outcome=f"{{visit: {visit}}}"),
        *([task("long", horizon=60, outcome="{visit: [inpatient]}")] if beside else []),
    ]
    found = forecast(
        markov(chain, visits=[8870]), history(4), at(4, LAST + timedelta(days=1)), asked, ForecastConfig(samples=250, max_new_tokens=100)
    ).predictions
    short = found.filter(pl.col("task") == "short")
    assert short["completion"].to_list() == [1.0] * 4
    assert short["predicted_boolean_probability"].mean() == pytest.approx(risk, abs=3 * 0.5 / np.sqrt(1000) if risk < 1 else 1e-9)


@pytest.mark.parametrize("visit", ["inpatient", "emergency"])
def test_a_visit_too_young_to_be_classed_when_the_budget_ends_leaves_the_future_unfinished(visit: str) -> None:
    chain = {BENIGN: {"D10": 1.0}, "D10": {"[VS]": 1.0}, "[VS]": {"Visit/8870": 1.0}, "Visit/8870": {"i-H3": 1.0}, "i-H3": {BENIGN: 1.0}}
    asked = task(horizon=25, outcome=f"{{visit: [{visit}]}}")
    found = forecast(markov(chain, visits=[8870]), history(1), at(1, LAST), [asked], ForecastConfig(samples=10, max_new_tokens=5)).predictions
    assert found.select("completion", "lower_bound", "upper_bound").row(0) == (0.0, 0.0, 1.0)
    either = task(horizon=25, outcome="{visit: [inpatient, emergency]}")
    found = forecast(markov(chain, visits=[8870]), history(1), at(1, LAST), [either], ForecastConfig(samples=10, max_new_tokens=5)).predictions
    assert found.select("completion", "predicted_boolean_probability").row(0) == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize("estimator", ["scope", "reach"])
def test_futures_that_agree_on_dates_that_are_counted_are_not_sure_of_them(estimator: str) -> None:
    """Two days from a noon: one whole date, on which every future has the same chance, and two halves, on which a quarter of the rows count
    nothing."""
    model, rows = markov(bare_chain({1: 1.0}, 0.05, 0.0)), at(150, LAST + timedelta(days=1, hours=12))
    config = ForecastConfig(samples=20, max_new_tokens=40, estimator=estimator, curve_points=4)
    found = forecast(model, history(150), rows, [task(horizon=2)], config)
    risk, error = (found.predictions[name].to_numpy() for name in ("predicted_boolean_probability", "std_error"))
    assert 0.9 < np.sqrt((error**2).mean()) / risk.std(ddof=1) < 1.33
    assert error.min() > 0.005
    assert found.curves is not None
    assert found.curves.filter(pl.col("cumulative_incidence") > 0)["std_error"].min() > 0.005


@pytest.mark.parametrize("estimator", ["mc", "scope", "reach"])
def test_a_visit_without_an_hour_yet_is_no_outcome(estimator: str) -> None:
    """The budget ends between its type and its hour, on the date of the close: it may begin behind the close, as it does here."""
    chain = {BENIGN: {"D3": 1.0}, "D3": {"[VS]": 1.0}, "[VS]": {"Visit/9201": 1.0}, "Visit/9201": {"i-H14": 1.0}, "i-H14": {"discharge/8536": 1.0}}
    asked, told = task(horizon=3, outcome="{visit: [inpatient]}"), {}
    for budget in (3, 4, 50):
        config = ForecastConfig(samples=10, max_new_tokens=budget, estimator=estimator)
        rows = at(1, LAST + timedelta(days=0, hours=5, minutes=20) + timedelta(days=1))
        found = forecast(markov(chain | {"discharge/8536": {"[VE]": 1.0}, "[VE]": {"D60": 1.0}, "D60": {BENIGN: 1.0}}), history(1), rows,
                         [replace(asked, horizon_days=2)], config).predictions  # fmt: skip
        told[budget] = found.select("completion", "lower_bound").row(0)
    assert told == {3: (0.0, 0.0), 4: (1.0, 0.0), 50: (1.0, 0.0)}


@pytest.mark.parametrize("estimator", ["scope", "reach"])
def test_drawing_until_the_error_is_small_does_not_stop_where_chance_has_shown_nothing_yet(estimator: str) -> None:
    """Of two days, one date and two ends of dates on which outcomes are counted: rows that have seen none there are not the surest."""
    shares = {1: 0.3, 2: 0.2, 4: 0.2, 10: 0.2, 40: 0.1}
    model, rows = markov(bare_chain(shares, 0.1, 0.05)), at(200, LAST + timedelta(days=1))
    truth = exact_risk(shares, 0.1, 0.05, elapsed=1, horizon=2)
    config = ForecastConfig(samples=400, max_new_tokens=60, estimator=estimator, target_std_error=0.02)
    found = forecast(model, history(200), rows, [task(horizon=2)], config).predictions
    assert found["num_samples"].min() > 20
    assert found["predicted_boolean_probability"].mean() / truth == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("estimator", ["mc", "scope", "reach"])
def test_how_many_futures_are_drawn_does_not_move_the_risk(estimator: str) -> None:
    """Of a rare outcome, with a target that is larger than the risk: most first futures show nothing, and what they show is not kept."""
    people = 800
    model, rows = markov(bare_chain({5: 1.0}, 0.01, 0.005)), at(people, LAST + timedelta(days=1))
    truth = exact_risk({5: 1.0}, 0.01, 0.005, elapsed=1, horizon=12)
    config = ForecastConfig(samples=400, max_new_tokens=60, estimator=estimator, target_std_error=0.03)
    found = forecast(model, history(people), rows, [task(horizon=12)], config).predictions
    told = found["predicted_boolean_probability"]
    assert truth < 0.03
    assert found["num_samples"].n_unique() > 1 or estimator != "mc"
    assert abs(told.mean() - truth) < 3 * told.std() / np.sqrt(people)
    assert told.std() < 0.03


MORNINGS = {BENIGN: {"D1": 0.5, "D20": 0.5}, "D1": {"[VS]": 1.0}, "D20": {"[VS]": 1.0}, "[VS]": {"Visit/9201": 1.0}}
MORNINGS |= {"i-H9": {OUTCOME: 1.0}, "i-H18": {OUTCOME: 1.0}, OUTCOME: {"[VE]": 1.0}, "[VE]": {"D60": 1.0}, "D60": {BENIGN: 1.0}}


@pytest.mark.parametrize("estimator", ["mc", "scope", "reach"])
@pytest.mark.parametrize("outcome", ["{visit: [inpatient]}", "{concepts: outcome}"])
def test_the_morning_of_the_prediction_s_own_date_is_over(estimator: str, outcome: str) -> None:
    """Half have a visit on that date, nine in ten of these at nine: of who has had none at noon, 0.05 of 0.55 come in the evening."""
    model, rows = markov(MORNINGS | {"Visit/9201": {"i-H9": 0.9, "i-H18": 0.1}}), at(40, LAST + timedelta(days=1, hours=12))
    found = forecast(
        model, history(40), rows, [task(horizon=3, outcome=outcome)], ForecastConfig(samples=100, max_new_tokens=60, estimator=estimator)
    )
    assert found.predictions["predicted_boolean_probability"].mean() == pytest.approx(1 / 11, abs=3 * np.sqrt(1 / 11 * 10 / 11 / 4000))
    assert found.trajectories is None or (found.trajectories["time"] > rows["prediction_time"][0]).all()
    drawn_anew, futures = found.summary["drawn_anew"], found.summary["futures"]
    assert drawn_anew / futures == pytest.approx(0.45, abs=0.04)
    assert found.summary["tokens"] > 4 * drawn_anew


@pytest.mark.parametrize(
    ("chain", "truth"),
    [
        ({"Visit/9201": {OUTCOME: 0.5, "i-H18": 0.5}}, 1 / 3),  # zero hours are not written: one in two begins at midnight
        (
            {"[VS]": {"Visit/9202": 1.0}, "Visit/9202": {OUTCOME: 0.8, "i-H18": 0.2}, OUTCOME: {"i-D1": 0.5, "[VE]": 0.5}, "i-D1": {"[VE]": 1.0}},
            1 / 8,
        ),
    ],
    ids=["a stay without an hour", "a visit by the day that lasts"],
)
def test_a_visit_that_says_no_hour_began_at_midnight(chain: dict, truth: float) -> None:
    """Of visits by the day those that last into the next date have hours (0.5 of 0.8), and others are neither before noon nor after."""
    model, rows = markov(MORNINGS | chain, visits=[9201, 9202]), at(40, LAST + timedelta(days=1, hours=12))
    found = forecast(model, history(40), rows, [task(horizon=3)], ForecastConfig(samples=100, max_new_tokens=60))
    risk, drawn_anew = found.predictions["predicted_boolean_probability"].mean(), found.summary["drawn_anew"] / found.summary["futures"]
    assert risk == pytest.approx(truth, abs=3 * np.sqrt(truth * (1 - truth) / 4000))
    assert drawn_anew > 0.15


def test_a_model_that_is_sure_of_what_was_not_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time it says a visit at nine, and at noon there was none."""
    monkeypatch.setattr("cehrxgpt.rollout.engine.ATTEMPTS", 20)
    model, rows = markov(MORNINGS | {BENIGN: {"D1": 1.0}, "Visit/9201": {"i-H9": 1.0}}), at(2, LAST + timedelta(days=1, hours=12))
    found = forecast(model, history(2), rows, [task(horizon=3)], ForecastConfig(samples=2, max_new_tokens=60))
    assert found.predictions["predicted_boolean_probability"].null_count() == 2
    assert found.summary["gap_not_conditioned"] == 4
    assert found.summary["drawn_anew"] == 4
