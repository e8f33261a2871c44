"""decode(encode(events)) == quantise(events), on generated histories and on every real set."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings

from cehrxgpt.timeline import Timeline, TimelineConfig, decode_histories
from cehrxgpt.timeline.quantise import quantise
from timeline_samples import histories, training_table

COMPARED = ["subject_id", "time", "code", "numeric_value", "text_value", "unit", "origin", "end_time", "_visit"]


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return Timeline.fit(training_table())


@pytest.fixture(scope="module")
def timeline_lt() -> Timeline:
    return Timeline.fit(training_table(), config=TimelineConfig(long_gap="lt"))


def canonical(events: pl.DataFrame, *key: str) -> pl.DataFrame:
    """Rows to compare: visits are named by their start, end, code and, among equals, by what they hold."""
    by = [*key, "subject_id", "visit_id"]
    held = events.filter(pl.col("visit_id").is_not_null()).sort("time", "code", "numeric_value", "text_value", "unit")
    whole = held.group_by(by).agg(
        pl.struct("time", "code", "end_time", "numeric_value", "text_value", "unit").hash(seed=1).sort().hash(seed=2).sum().alias("_visit")
    )
    named = events.join(whole, on=by, how="left", nulls_equal=True)
    return named.select(*key, *COMPARED).sort(pl.all(), nulls_last=True)


def assert_round_trip(timeline: Timeline, events: pl.DataFrame, *key: str) -> None:
    encoded = timeline.encode_frame(events, key=("subject_id", *key))
    decoded = decode_histories(timeline.vocabulary, encoded)
    expected = quantise(events, timeline, key=("subject_id", *key))
    left, right = canonical(decoded, *key), canonical(expected.events, *key)
    assert left.equals(right), f"decoded {left}\nexpected {right}"
    assert int(encoded.events.sum()) == expected.counts["events"]


def assert_sentences(timeline: Timeline, events: pl.DataFrame, key: tuple[str, ...] = ("subject_id",)) -> None:
    """Every sentence is accepted by the grammar, which tells the same ages."""
    encoded = timeline.encode_frame(events, key=key)
    for index in range(len(encoded)):
        own = encoded.history(index)
        if own.start == own.stop:
            continue
        state, age = timeline.grammar.follow(encoded.token_id[own][None, :].astype(np.int64))
        assert state.phase[0] >= 0
        assert np.array_equal(age[0], encoded.age_minutes[own])


@settings(max_examples=150, deadline=None)
@given(histories())
def test_round_trip(timeline: Timeline, events: pl.DataFrame) -> None:
    assert_round_trip(timeline, events)


@settings(max_examples=60, deadline=None)
@given(histories())
def test_round_trip_with_lt(timeline_lt: Timeline, events: pl.DataFrame) -> None:
    assert_round_trip(timeline_lt, events)


@settings(max_examples=60, deadline=None)
@given(histories())
def test_sentences(timeline: Timeline, events: pl.DataFrame) -> None:
    assert_sentences(timeline, events)
