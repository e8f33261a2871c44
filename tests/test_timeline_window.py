"""Windows: sentences with a recomputed prompt, from which nothing is lost."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.errors import InputError
from cehrxgpt.timeline import EncodedHistories, Timeline, last_window
from cehrxgpt.timeline.encoded import BIRTH_UNKNOWN
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.time import MINUTES_PER_DAY, MINUTES_PER_MONTH, age_in_months, year_month_of
from cehrxgpt.timeline.window import SHORTEST, Window, window
from timeline_samples import histories, row, static, table, training_table


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return Timeline.fit(training_table())


def assert_window(timeline: Timeline, encoded: EncodedHistories, index: int, made: Window) -> None:
    """A sentence that tells its own ages; prompt as recomputed from birth and date; ages less than a month from the full history's."""
    vocabulary = timeline.vocabulary
    state, age = timeline.grammar.follow(made.token_id[None, :].astype(np.int64))
    assert state.phase[0] >= 0
    assert np.array_equal(age[0], made.age_minutes)
    amount = vocabulary.amount[made.token_id[:PROMPT_LENGTH]]
    year, month = year_month_of(np.array([made.start_date]))
    years = [value for value in vocabulary.amount_to_id[Kind.YEAR] if value >= 0]
    assert amount[1] == min(max(int(year[0]), min(years)), max(years))
    assert amount[2] == month[0]
    birth = int(encoded.birth_date[index])
    if birth == BIRTH_UNKNOWN:
        assert amount[3] == amount[4] == -1
    else:
        months = int(age_in_months(np.array([birth]), np.array([made.start_date]))[0])
        assert (amount[3], amount[4]) == divmod(months, 12)
    assert made.token_id[5] == encoded.gender_token[index]
    assert made.token_id[6] == encoded.race_token[index]
    # Against the full history, event by event: the same token, value and (to a month) age.
    whole = encoded.history(index)
    place = {int(row): n for n, row in enumerate(encoded.event_index[whole]) if row >= 0}
    for n, index_of_event in enumerate(made.event_index):
        if index_of_event < 0:
            continue
        full = whole.start + place[int(index_of_event)]
        assert made.token_id[n] == encoded.token_id[full]
        assert made.value[n] == encoded.value[full] or np.isnan(made.value[n])
        if birth != BIRTH_UNKNOWN:
            assert abs(int(made.age_minutes[n]) - int(encoded.age_minutes[full])) < MINUTES_PER_MONTH + 2 * MINUTES_PER_DAY


@settings(max_examples=40, deadline=None)
@given(histories(subjects=1), st.data())
def test_windows(timeline: Timeline, events: pl.DataFrame, data: st.DataObject) -> None:
    encoded = timeline.encode_frame(events)
    length = len(encoded.token_id)
    if length <= PROMPT_LENGTH:
        return
    start = data.draw(st.integers(0, length - 1))
    stop = data.draw(st.integers(start + 1, length))
    made = window(encoded, timeline.vocabulary, 0, start, stop)
    if stop > PROMPT_LENGTH:
        assert_window(timeline, encoded, 0, made)
    # Cut in two at any place: every token but the time tokens that lead to the second part's first event is in one of them.
    left = window(encoded, timeline.vocabulary, 0, 0, start) if start > PROMPT_LENGTH else None
    right = window(encoded, timeline.vocabulary, 0, start, length)
    rows = set(encoded.event_index.tolist())
    there = set(right.event_index.tolist()) | (set(left.event_index.tolist()) if left else set())
    assert rows == there
    if left is not None:
        kept = len(left.token_id) + int((right.event_index >= 0).sum())
        assert kept <= length + 1  # at most [VS] or a death stands in both
        for kind in (Kind.VISIT_END, Kind.END):
            total = int((timeline.vocabulary.kind[encoded.token_id] == kind).sum())
            both = sum(int((timeline.vocabulary.kind[part.token_id] == kind).sum()) for part in (left, right))
            assert both >= total


@settings(max_examples=40, deadline=None)
@given(histories(subjects=1), st.integers(SHORTEST, 60))
def test_last_window(timeline: Timeline, events: pl.DataFrame, most: int) -> None:
    encoded = timeline.encode_frame(events)
    length = len(encoded.token_id)
    if length == 0:
        return
    made = last_window(encoded, timeline.vocabulary, 0, most)
    assert len(made.token_id) <= most
    assert_window(timeline, encoded, 0, made)
    assert made.token_id[-1] == encoded.token_id[-1]
    if length <= most:
        assert np.array_equal(made.token_id, encoded.token_id)
    else:
        # No longer tail fits: starting at any earlier place that a window may start at gives more than `most`.
        tail = length - len(made.token_id)
        for start in range(PROMPT_LENGTH + 1, max(tail - 12, 0)):
            assert len(window(encoded, timeline.vocabulary, 0, start, length).token_id) >= len(made.token_id)


def test_last_window_needs_room(timeline: Timeline) -> None:
    encoded = timeline.encode_frame(training_table())
    with pytest.raises(InputError, match="expected at least"):
        last_window(encoded, timeline.vocabulary, 0, 5)


def test_window_resumes_a_visit(timeline: Timeline) -> None:
    """A window from the middle of a stay says type, day of stay and hour."""
    start = datetime(2010, 3, 30, 14, 20)
    rows = [*static(1), row(1, start, "Visit/9201", end_time=start + timedelta(days=9), visit_id=5)]
    rows += [row(1, start + timedelta(days=day, hours=day), "drug/3", visit_id=5) for day in range(9)]
    encoded = timeline.encode_frame(table(rows))
    tokens = [timeline.vocabulary.token[i] for i in encoded.token_id]
    assert tokens[7:14] == ["[VS]", "Visit/9201", "i-H14", "drug/3", "i-D1", "i-H15", "drug/3"]
    made = window(encoded, timeline.vocabulary, 0, tokens.index("i-D1", 15), len(tokens))
    shown = [timeline.vocabulary.token[i] for i in made.token_id]
    assert shown[:7] == ["[BOS]", "year:2010", "month:4", "age:59", "age_months:10", "gender:8532", "race:8527"]
    assert shown[7:12] == ["[VR]", "Visit/9201", "stay:3", "i-H17", "drug/3"]
    assert_window(timeline, encoded, 0, made)
