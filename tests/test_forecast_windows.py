"""Futures longer than the context go on through windows, and nothing but the context can tell."""

from __future__ import annotations

import itertools
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from cehrxgpt import schema as s
from cehrxgpt.events import validate_events
from cehrxgpt.forecast import ForecastConfig, forecast
from cehrxgpt.rollout.engine import rollout
from cehrxgpt.rollout.prompt import Prompt
from cehrxgpt.rollout.windows import rollout_through_windows
from cehrxgpt.synthesis import SynthesisConfig, synthesize
from cehrxgpt.timeline.clock import run_clock
from cehrxgpt.timeline.decode import decode
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.kinds import Kind
from test_forecast_truth import SHARES, at, task
from toy_capabilities import BENIGN, bare_chain, exact_risk, history, markov, vocabulary

LAST = datetime(2015, 6, 1)
STAYS = {
    "[VS]": {"Visit/9201": 1.0},
    "Visit/9201": {"i-H9": 1.0},
    "i-H9": {BENIGN: 1.0},
    BENIGN: {"i-D1": 0.9, "discharge/8536": 0.1},
    "i-D1": {"i-H5": 1.0},
    "i-H5": {BENIGN: 1.0},
    "stay:0": {BENIGN: 1.0},
    "discharge/8536": {"[VE]": 1.0},
    "[VE]": {"D30": 1.0},
    "D30": {"[VS]": 1.0},
}

INTENSIVE = STAYS | {
    "i-H9": {"[ICU]": 1.0},
    "[ICU]": {BENIGN: 1.0},
    BENIGN: {"i-D1": 0.9, "[/ICU]": 0.1},
    "[/ICU]": {"discharge/8536": 1.0},
}


def prompt(words, *tail: str, horizon_days: int) -> Prompt:
    said = ("[BOS]", "year:2010", "month:3", "age:40", "age_months:2", "gender:8532", "race:0", *tail)
    token_id = np.array([words.id_of(token) for token in said], dtype=np.int32)
    return Prompt(token_id=token_id, subject_id=3, start_date=14669, horizon_minutes=horizon_days * 1440)  # 1 March 2010


@pytest.mark.parametrize("stop", [True, False])
def test_risk_is_exact_far_beyond_the_context(stop: bool) -> None:
    subjects, samples = 5, 100
    model = markov(bare_chain(SHARES, 0.02, 0.01), context=48)
    rows = at(subjects, LAST + timedelta(days=3))
    config = ForecastConfig(samples=samples, max_new_tokens=1000, stop_at_outcome=stop)
    found = forecast(model, history(subjects), rows, [task(horizon=300)], config)
    truth = exact_risk(SHARES, 0.02, 0.01, elapsed=3, horizon=300)
    assert found.predictions["completion"].to_list() == [1.0] * subjects
    assert found.samples["tokens"].max() > 48
    assert abs(found.predictions["predicted_boolean_probability"].mean() - truth) < 3 * np.sqrt(truth * (1 - truth) / (subjects * samples))


def test_no_window_is_needed_where_the_context_suffices() -> None:
    words = vocabulary()
    model = markov(bare_chain(SHARES, 0.1, 0.05))
    asked = [prompt(words, BENIGN, horizon_days=100)]
    plain = rollout(model.decoder, words, asked, samples=20, seed=1, max_new_tokens=200)
    windowed = rollout_through_windows(model.decoder, words, asked, birth_date=[0], samples=20, seed=1, max_new_tokens=200)
    assert np.array_equal(plain.token_id, windowed.token_id)
    assert np.array_equal(plain.end_clock_minutes, windowed.end_clock_minutes)


def test_progress_counts_futures_that_have_really_ended() -> None:
    model, told = markov(bare_chain(SHARES, 0.02, 0.01), context=48), []
    forecast(
        model, history(3), at(3, LAST), [task(horizon=300)], ForecastConfig(samples=40, max_new_tokens=1000), progress=lambda *said: told.append(said)
    )
    done, total, _ = zip(*told, strict=True)
    assert set(total) == {120}
    assert done[-1] == 120
    assert any(later < before for before, later in itertools.pairwise(done)), "no future went on in a window of its own"
    assert 0 < min(done[done.index(120) :]) < 120


TAILS = [
    ("[VS]", "Visit/9201", "i-H9", BENIGN),
    ("[VR]", "Visit/9201", "stay:0", BENIGN),
    ("[VS]", "Visit/9201", "i-H9", "[ICU]", BENIGN),
    ("[VR]", "Visit/9201", "[ICU]", "stay:3", "i-H5", BENIGN),
]


@pytest.mark.parametrize("tail", TAILS)
def test_the_joined_future_is_one_sentence(tail: tuple[str, ...]) -> None:
    """Its tokens obey the grammar from end to end, inside stays and intensive care too, and its clocks are those of the whole."""
    icu = "[ICU]" in tail
    words = vocabulary(icu=icu)
    model = markov(INTENSIVE if icu else STAYS, context=48, icu=icu)
    asked = [prompt(words, *tail, horizon_days=200)]
    drawn = rollout_through_windows(model.decoder, words, asked, birth_date=[3650], samples=6, seed=1, max_new_tokens=2000)
    assert (drawn.stop_reason == "horizon").all()
    assert drawn.tokens.min() > 48
    assert (drawn.end_clock_minutes == 200 * 1440).all()
    for row in range(len(drawn)):
        whole = np.concatenate([asked[0].token_id, drawn.tokens_of(row)])
        state, _ = Grammar(words).follow(whole[None].astype(np.int64))
        assert state.phase[0] >= 0
        clock = run_clock(words.kind[whole], words.amount[whole], np.array([0, len(whole)]), np.zeros(1, np.int64), np.zeros(1, np.int8))
        mine = drawn.clock_minutes[drawn.offsets[row] : drawn.offsets[row + 1]]
        assert np.array_equal(clock[len(asked[0].token_id) :], mine)
    repeated = rollout_through_windows(model.decoder, words, asked, birth_date=[3650], samples=6, seed=1, max_new_tokens=2000, batch_rows=4)
    assert np.array_equal(repeated.token_id, drawn.token_id)


@pytest.mark.parametrize("until", [None, Kind.VISIT_END])
def test_what_is_written_in_a_later_window_lies_after_the_prediction_time_too(until: Kind | None) -> None:
    """The context fills up within the hour of the prediction, half past nine; what comes then, ends of stays among it, comes after that."""
    words = vocabulary()
    table = {BENIGN: {BENIGN: 0.95, "discharge/8536": 0.04, "i-D1": 0.01}, "i-D1": {BENIGN: 1.0}, "discharge/8536": {"[VE]": 1.0}}
    table |= {"[VE]": {"D0": 0.2, "D30": 0.8}, "D0": {"MEDS_DEATH": 1.0}, "D30": {BENIGN: 1.0}}
    asked = replace(prompt(words, "[VS]", "Visit/9201", "i-H9", BENIGN, horizon_days=30), prediction_clock_minutes=570, until=until)
    drawn = rollout_through_windows(markov(table, context=40).decoder, words, [asked], birth_date=[0], samples=200, seed=1, max_new_tokens=2000)
    assert drawn.clock_minutes.min() == 571
    assert drawn.end_clock_minutes.min() == 571
    row = np.repeat(np.arange(len(drawn)), drawn.tokens)
    place = np.arange(len(row)) - drawn.offsets[row]
    late = (place > 40) & (drawn.clock_minutes == 571)
    assert late.any()
    assert (late & (words.kind[drawn.token_id] == Kind.VISIT_END)).any()


@pytest.mark.parametrize("written", [2, 3, 4, 100])
@pytest.mark.parametrize(("hour", "kept"), [(21, ["D10"]), (9, ["D10", "[VS]", "Visit/9201", "i-H9", "discharge/8536", "[VE]"])])
def test_a_visit_past_the_horizon_is_dropped_wherever_the_window_ends(written: int, hour: int, kept: list[str]) -> None:
    """The context is full behind [VS], behind the type, behind the hour, or never; a visit that begins past the horizon is dropped whole."""
    words = vocabulary()
    table = {BENIGN: {"D10": 1.0}, "D10": {"[VS]": 1.0}, "[VS]": {"Visit/9201": 1.0}, "Visit/9201": {f"i-H{hour}": 1.0}, "[VE]": {"D30": 1.0}}
    table |= {f"i-H{hour}": {"discharge/8536": 1.0}, "discharge/8536": {"[VE]": 1.0}}
    asked = prompt(words, *[BENIGN] * 25, horizon_days=10)
    asked = replace(asked, horizon_minutes=10 * 1440 + 720)
    model = markov(table, context=len(asked.token_id) + written)
    drawn = rollout_through_windows(model.decoder, words, [asked], birth_date=[0], samples=2, seed=1, max_new_tokens=90)
    assert [words.token[index] for index in drawn.tokens_of(1)] == kept
    assert drawn.stop_reason.tolist() == ["horizon"] * 2
    assert len(drawn.clock_minutes) == len(drawn.token_id) == 2 * len(kept)


def test_stays_keep_their_length_across_windows() -> None:
    """A stay goes on for another day with probability 0.9: ten days on average, windows or not."""
    words = vocabulary()
    model = markov(STAYS, context=48)
    asked = [prompt(words, "[VS]", "Visit/9201", "i-H9", BENIGN, horizon_days=1000)]
    drawn = rollout_through_windows(model.decoder, words, asked, birth_date=[3650], samples=20, seed=2, max_new_tokens=20000)
    tokens = np.concatenate([np.concatenate([asked[0].token_id, drawn.tokens_of(row)]) for row in range(20)])
    offsets = np.concatenate([[0], np.cumsum(drawn.tokens + len(asked[0].token_id))])
    events = decode(words, tokens, offsets, start_date=np.full(20, 14669), subject_id=np.arange(20))
    stays = events.filter(pl.col("code").str.starts_with("Visit/") & pl.col("end_time").is_not_null())
    days = (stays["end_time"].dt.date() - stays["time"].dt.date()).dt.total_days()
    assert abs(days.mean() - 9) < 3 * np.sqrt(0.9) / 0.1 / np.sqrt(len(days)) + 0.3  # 0.3: long stays are cut by the horizon
    assert days.max() > 20  # more tokens than a window holds


def test_futures_about_the_stay_alone_are_the_beginnings_of_whole_ones() -> None:
    """They end with the date of the stay's end, in whichever window that is written, and what they say until then is the same."""
    words = vocabulary(icu=True)
    chain = INTENSIVE | {"[VE]": {"D0": 0.5, "D30": 0.5}, "D0": {BENIGN: 0.9, "MEDS_DEATH": 0.1}}
    model = markov(chain, context=48, icu=True)
    whole = prompt(words, "[VR]", "Visit/9201", "[ICU]", "stay:3", "i-H5", BENIGN, horizon_days=400)
    settings = {"birth_date": [3650], "samples": 40, "seed": 4, "max_new_tokens": 4000}
    long, ended = (rollout_through_windows(model.decoder, words, [one], **settings) for one in (whole, replace(whole, until=Kind.VISIT_END)))
    windows = 0
    for row in range(40):
        tokens, clock = long.tokens_of(row), long.clock_minutes[long.offsets[row] : long.offsets[row + 1]]
        closes = np.flatnonzero(words.kind[tokens] == Kind.VISIT_END)[0]
        same_date = clock // 1440 <= clock[closes] // 1440
        assert np.array_equal(ended.tokens_of(row), tokens[same_date])
        assert ended.end_clock_minutes[row] == (clock[closes] // 1440 * 1440 + 1439 if ended.stop_reason[row] == "horizon" else clock[same_date][-1])
        windows += closes > 48
    assert windows > 3
    assert {"horizon", "death"} == set(ended.stop_reason)
    assert ended.tokens.sum() * 2 < long.tokens.sum()


def test_synthetic_patients_are_not_cut_by_the_context() -> None:
    days = {"version": 1, "by": "year", "bands": [{"upper": None, "subjects": 50, "days": [700.0, 700.0]}]}
    prompt_words = ["[BOS]", "year:2005", "month:2", "age:40", "age_months:5", "gender:8532", "race:0"]
    table = bare_chain({5: 1.0}, 0.0, 0.0) | {a: {b: 1.0} for a, b in zip(prompt_words, [*prompt_words[1:], BENIGN], strict=True)}
    events, summary = synthesize(markov(table, population=days, context=64), 12, SynthesisConfig())
    validate_events(events)
    assert summary["stopped"]["horizon"] == 12
    assert events.filter(pl.col("code") == BENIGN).height == 12 * 141  # day 0, 5, ..., 700
    assert events.filter(pl.col("code") == s.OBSERVATION_END).height == 12
