"""One function finds outcomes in records and in simulated futures; the compiled token set says the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from random import Random

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt import visits
from cehrxgpt.errors import SchemaError
from cehrxgpt.events import sort_events
from cehrxgpt.forecast import ForecastConfig, forecast
from cehrxgpt.tasks import Index, Outcome, Task, label, load_task, outcome_by_stay, outcome_in_window, outcome_tokens
from cehrxgpt.timeline.kinds import Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from task_samples import AB, START, random_people, row, simple, table, tasks
from test_forecast_truth import LAST, at
from toy_capabilities import OUTCOME, bare_chain, history, markov

FOUND = ("window_open", "window_close", "outcome_time", "death_time", "competing_time")


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), tasks())
def test_a_real_future_found_as_a_simulated_one(seed, task):
    """Each row's record, handed over as two samples of a trajectory, gives what the record itself gives."""
    events = table(random_people(Random(seed), 15))
    stays = events.filter(pl.col("code").str.starts_with("Visit/")).select("subject_id", "time", pl.col("end_time").alias("stay_end"))
    at = (
        events.filter(pl.col("code") == "condition/1")
        .select("subject_id", pl.col("available_time").alias("prediction_time"))
        .unique(maintain_order=True)
    )
    if task.in_stay:
        at = stays.rename({"time": "stay_start"}).with_columns(pl.col("stay_start").alias("prediction_time"))
    real = outcome_in_window(task, events, at)
    samples = pl.DataFrame({"sample_id": [0, 1]}, schema={"sample_id": pl.Int32})
    keyed = at.unique(["subject_id", "prediction_time"], keep="first", maintain_order=True)
    futures = events.join(keyed.select("subject_id", "prediction_time"), on="subject_id").join(samples, how="cross")
    simulated = outcome_in_window(task, futures, keyed.join(samples, how="cross", maintain_order="left"))
    expected = outcome_in_window(task, events, keyed)
    for sample in (0, 1):
        assert simulated.filter(pl.col("sample_id") == sample).select(expected.columns).equals(expected)
    assert real.select(at.columns).equals(at.select(real.select(at.columns).columns))  # same rows, same order


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32 - 1), tasks())
def test_labels_come_from_the_same_function(seed, task):
    events = table(random_people(Random(seed), 15))
    labels = label(events, task).labels
    if task.in_stay or labels.is_empty():
        return
    found = outcome_in_window(task, events, labels)
    assert found["outcome_time"].is_not_null().equals(labels["observed"].rename("outcome_time"))


CODES = [
    "condition/1",
    "condition/2",
    "condition/2",
    "condition/3",
    "Visit/9201",
    "Visit/262",
    "Visit/9202",
    "Visit/9203",
    "MEDS_DEATH",
    None,
    "drug/5",
]
KINDS = [Kind.CODE, Kind.CODE, Kind.VALUE, Kind.CODE, *[Kind.VISIT_TYPE] * 4, Kind.DEATH, Kind.DAY_GAP, Kind.CODE]


def vocabulary(codes=CODES, kinds=KINDS) -> Vocabulary:
    rows = [{"token": "[PAD]", "kind": int(Kind.PAD)}]
    rows += [{"token": f"t{number}", "kind": int(kind), "code": code} for number, (code, kind) in enumerate(zip(codes, kinds, strict=True))]
    return Vocabulary.from_rows(rows, {})


OUTCOMES = [Outcome(concepts="b"), Outcome(death=True), Outcome(visit=("inpatient",)), Outcome(visit=("emergency", "outpatient"))]


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(OUTCOMES), st.lists(st.tuples(st.integers(0, len(CODES) - 1), st.integers(-2, 14)), max_size=12), st.sampled_from([0, 3]))
def test_token_set_equals_labeler_on_decodable_events(outcome, drawn, gap):
    sets = AB if outcome.concepts else {"a": AB["a"]}
    task = simple(outcome=outcome, horizon_days=7, gap_days=gap, concept_sets=sets)
    wanted = outcome_tokens(task, vocabulary())
    drawn = [(token + 1, day) for token, day in drawn if CODES[token] is not None]
    events = table([row(1, CODES[token - 1], START + timedelta(days=day), end=START + timedelta(days=day, hours=30), visit=number)
                    if CODES[token - 1].startswith("Visit/") else row(1, CODES[token - 1], START + timedelta(days=day))
                    for number, (token, day) in enumerate(drawn)])  # fmt: skip
    at = pl.DataFrame({"subject_id": [1], "prediction_time": [START]})
    found = outcome_in_window(task, events, at)["outcome_time"].to_list()[0]
    dies = min((day for token, day in drawn if CODES[token - 1] == "MEDS_DEATH" and day > 0), default=99)  # a future ends there
    days = [day for token, day in drawn if wanted[token] and gap < day <= min(gap + 7, dies)]
    assert found == (START + timedelta(days=min(days)) if days else None)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([("inpatient",), ("emergency",), ("outpatient", "emergency")]), st.sampled_from(["9201", "8870", "9202"]), st.integers(1, 60))
def test_visits_told_apart_by_how_long_they_last_are_what_the_labeler_finds(classes, concept, hours):
    task = simple(outcome=Outcome(visit=classes), concept_sets={"a": AB["a"]})
    words = vocabulary(["Visit/9201", "Visit/8870", "Visit/9202"], [Kind.VISIT_TYPE] * 3)
    short, long = outcome_by_stay(task, words)
    visit = row(1, f"Visit/{concept}", START + timedelta(days=2), end=START + timedelta(days=2, hours=hours), visit=1)
    found = outcome_in_window(task, table([visit]), pl.DataFrame({"subject_id": [1], "prediction_time": [START]}))["outcome_time"].to_list()[0]
    token = words.code.index(f"Visit/{concept}")
    assert (long if hours * 60 > visits.stay_minutes() else short)[token] == (found is not None)


def test_no_token_set_where_tokens_do_not_decide():
    inpatient = simple(outcome=Outcome(visit=("inpatient",)), concept_sets={"a": AB["a"]})
    assert outcome_tokens(inpatient, vocabulary()).tolist() == [False, False, False, False, False, True, True, False, False, False, False, False]
    ambiguous = vocabulary([*CODES, "Visit/8870"], [*KINDS, Kind.VISIT_TYPE])
    assert outcome_tokens(inpatient, ambiguous) is None  # an emergency room keeps people for days
    outpatient = simple(outcome=Outcome(visit=("outpatient",)), concept_sets={"a": AB["a"]})
    assert outcome_tokens(outpatient, ambiguous).sum() == 1
    either = simple(outcome=Outcome(visit=("inpatient", "emergency")), concept_sets={"a": AB["a"]})
    assert outcome_tokens(either, ambiguous).sum() == 4
    assert outcome_tokens(load_task("long_stay_7d"), vocabulary()) is None
    assert outcome_by_stay(load_task("long_stay_7d"), vocabulary()) is None
    assert outcome_tokens(load_task("in_hospital_mortality_48h"), vocabulary()) is None
    assert outcome_tokens(load_task("cad_cabg_1y"), vocabulary()).sum() == 0  # the vocabulary lacks it
    assert outcome_tokens(simple(), vocabulary()).dtype == np.bool_


STAY = Task(name="t", description="", index=Index(visit=("inpatient",), at="start", hours_after=24), outcome=Outcome(death=True), horizon_days="stay")


def test_a_simulated_stay_ends_with_its_discharge():
    """A future that begins inside a stay holds no Visit row of it: the caller gives the start, the discharge closes the window."""
    now = START + timedelta(days=1)
    future = [
        row(1, "condition/1", now + timedelta(hours=5)),
        row(1, "discharge/8536", now + timedelta(days=2)),
        row(1, "MEDS_DEATH", now + timedelta(days=4)),
    ]
    dies = [row(1, "MEDS_DEATH", now + timedelta(days=1))]
    frames = [table(rows).with_columns(pl.lit(now).cast(pl.Datetime("us")).alias("prediction_time"), pl.lit(number, pl.Int32).alias("sample_id"))
              for number, rows in enumerate([future, [*dies, row(1, "discharge/4216643", now + timedelta(days=1))]])]  # fmt: skip
    at = pl.DataFrame(
        {"subject_id": [1, 1], "prediction_time": [now, now], "sample_id": [0, 1], "stay_start": [START, START]},
        schema_overrides={"sample_id": pl.Int32},
    )
    found = outcome_in_window(STAY, pl.concat(frames), at)
    assert found["outcome_time"].to_list() == [None, now + timedelta(days=1)]
    assert found["window_close"].to_list() == [now + timedelta(days=2), now + timedelta(days=1)]
    long = Task(name="t", description="", index=STAY.index, outcome=Outcome(stay_over_days=2))
    assert outcome_in_window(long, pl.concat(frames), at)["outcome_time"].to_list() == [START + timedelta(days=2), None]


def test_missing_key_is_told():
    at = pl.DataFrame({"subject_id": [1]})
    with pytest.raises(SchemaError, match="'prediction_time' is missing"):
        outcome_in_window(simple(), table([row(1, "condition/1", START)]), at)


def test_a_stay_that_began_in_the_emergency_room_happens_at_the_admission():
    arrived, asked, admitted = START, START + timedelta(hours=2), START + timedelta(hours=5)
    merged = row(1, "Visit/9201", arrived, end=START + timedelta(days=3), visit=1, known=admitted)
    task = Task(
        name="t", description="", index=Index(concepts="a"), outcome=Outcome(visit=("inpatient",)), concept_sets={"a": AB["a"]}, horizon_days=30
    )
    at = pl.DataFrame({"subject_id": [1, 1], "prediction_time": [asked, admitted]}, schema_overrides={"prediction_time": pl.Datetime("us")})
    found = outcome_in_window(task, table([merged]), at)
    assert found["outcome_time"].to_list() == [admitted, None]
    by_day = row(1, "Visit/9201", START, end=START + timedelta(days=3), visit=1, day=True)
    assert outcome_in_window(task, table([by_day]), at[:1])["outcome_time"].to_list() == [None]  # it may have begun before


def test_a_forecast_counts_what_competes_as_an_end():
    """Every benign event competes: the outcome must be the next event of all. The exact risk, and nothing is left unfinished."""
    shares = {1: 0.3, 4: 0.3, 10: 0.4}
    toy = Task(
        name="toy",
        description="",
        index=Index(concepts="a"),
        outcome=Outcome(concepts="b"),
        competing=(Outcome(concepts="a"),),
        concept_sets=AB,
        horizon_days=5,
    )
    model, rows = markov(bare_chain(shares, 0.4, 0.1)), at(10, LAST + timedelta(days=1, hours=12))
    found = forecast(model, history(10), rows, [toy], ForecastConfig(samples=100, max_new_tokens=4))
    # A gap of 10 days is longer than the window. One of 1 day leads to the day of the question, asked at noon: what is recorded then without
    # an hour is neither before nor after, unless it is death; what follows within the window counts.
    truth = 0.3 * 0.4 + 0.3 * 0.9 * 0.6 * 0.4
    assert abs(found.predictions["predicted_boolean_probability"].mean() - truth) < 3 * np.sqrt(truth * (1 - truth) / 1000)
    assert found.predictions["completion"].to_list() == [1.0] * 10
    again = replace(toy, recurrence=True)
    assert forecast(model, history(10), rows, [again], ForecastConfig(samples=2)).predictions["note"].null_count() == 0
    had = sort_events(pl.concat([history(10), history(1, code=OUTCOME, last=LAST - timedelta(days=30))]))
    notes = forecast(model, had, rows, [again], ForecastConfig(samples=2)).predictions["note"]
    assert notes.is_null().to_list() == [True] + [False] * 9
    assert "not in the history" in notes[1]
