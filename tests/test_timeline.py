"""Fitting, encoding by hand, futures, observed lengths, prompts as people, and a history in words."""

from __future__ import annotations

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.errors import ConfigError, InputError, SchemaError
from cehrxgpt.events import EventDataset, cut_history, validate_events
from cehrxgpt.timeline import (
    Population,
    Timeline,
    TimelineConfig,
    decode_futures,
    decode_histories,
    draw_dates,
    person_rows,
    read_prompts,
)
from cehrxgpt.timeline.bins import value_bins
from cehrxgpt.timeline.clock import run_clock
from cehrxgpt.timeline.describe import describe, render
from cehrxgpt.timeline.encode import Encoder
from cehrxgpt.timeline.encoded import BIRTH_UNKNOWN, EncodedHistories, concatenate
from cehrxgpt.timeline.grammar import Grammar, Phase, State
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.population import observed_days
from cehrxgpt.timeline.quantise import quantise, table_head, table_row
from cehrxgpt.timeline.time import age_in_months
from cehrxgpt.timeline.vocabulary import Vocabulary
from timeline_samples import START, histories, row, static, table, training_table

DAY = 86_400_000_000


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return Timeline.fit(training_table())


def spell(timeline: Timeline, encoded: EncodedHistories, index: int = 0) -> list[str]:
    """Tokens after the prompt."""
    return [timeline.vocabulary.token[i] for i in encoded.token_id[encoded.history(index)][PROMPT_LENGTH:]]


def ids(timeline: Timeline, tokens: str) -> np.ndarray:
    return np.array([timeline.vocabulary.id_of(token) for token in tokens.split()])


@settings(deadline=None, max_examples=40)
@given(histories())
def test_results_said_are_those_of_the_lookup(timeline: Timeline, events: pl.DataFrame) -> None:
    """Counted in the sentences as row by row in the vocabulary."""
    token, _, value = Encoder(timeline.vocabulary).lookup.events(events)
    rows = zip(events.iter_rows(named=True), token.tolist(), value.tolist(), strict=True)
    said = [
        one["time"] is not None and (number == number or (index >= 0 and timeline.vocabulary.kind[index] == Kind.CATEGORY))
        for one, index, number in rows
    ]
    assert timeline.results(events, timeline.encode_frame(events))[1] == sum(said)


# -- encoding, by hand ------------------------------------------------------------------------------------------------------------


def test_a_history_token_by_token(timeline: Timeline) -> None:
    admitted = datetime(2011, 3, 5, 14, 35)
    rows = [
        *static(7, datetime(1939, 7, 20)),
        row(7, admitted, "Visit/9201", end_time=admitted + timedelta(days=34, hours=3), visit_id=1),
        row(7, admitted + timedelta(minutes=50), "drug/3", visit_id=1),
        row(7, admitted + timedelta(minutes=20), "condition/2", visit_id=1),
        row(7, admitted + timedelta(minutes=22), "condition/1", visit_id=1),
        row(7, admitted + timedelta(days=33, hours=-2), "procedure/6", visit_id=1),
        row(7, admitted + timedelta(days=34, hours=3), "discharge/8536", visit_id=1),
        row(7, admitted + timedelta(days=34), "condition/1", day=True),  # bare, on the date the stay ends: midnight lies within its hours
        row(7, datetime(2012, 4, 1, 9), "Visit/9202", end_time=datetime(2012, 4, 1, 10), visit_id=2),
        row(7, datetime(2012, 4, 1, 9, 30), "measurement/4", visit_id=2, numeric_value=5.0, unit="8840"),
        row(7, datetime(2012, 4, 1, 23), "unheard/1"),
        row(7, datetime(2012, 4, 1, 12), "condition/2"),
        row(7, datetime(2019, 4, 1), "drug/3", day=True),
        row(7, datetime(2019, 4, 1, 23, 59, 59, 999999), "MEDS_DEATH"),
    ]
    encoded = timeline.encode_frame(table(rows))
    prompt = [timeline.vocabulary.token[i] for i in encoded.token_id[:PROMPT_LENGTH]]
    assert prompt == ["[BOS]", "year:2010", "month:3", "age:71", "age_months:7", "gender:8532", "race:8527"]  # 2011 is not in training: clamped
    said = spell(timeline, encoded)
    value = next(token for token in said if token.startswith("measurement/4 ["))
    stay = ["[VS]", "Visit/9201", "i-H14", "condition/1", "condition/2", "i-H1", "drug/3", "i-D31", "i-D2", "i-H12", "procedure/6"]
    stay += ["i-D1", "condition/1", "i-H17", "discharge/8536", "[VE]"]
    day = ["D359", "[VS]", "Visit/9202", value, "[VE]", "D0", "condition/2"]
    assert said == [*stay, *day, "Y7", "D1", "drug/3", "D0", "MEDS_DEATH", "[END]"]
    assert encoded.events.tolist() == [13]
    assert encoded.unknown.tolist() == [1]
    assert encoded.censor_gap_days.tolist() == [-1]
    at = encoded.token_id.tolist().index(timeline.vocabulary.id_of(value))
    assert encoded.value[at] == 5.0
    assert np.isnan(np.delete(encoded.value, at)).all()
    moments = (encoded.clock * 60_000_000).astype("datetime64[us]")
    assert moments[at] == np.datetime64("2012-04-01T00:00")
    assert moments[-1] == np.datetime64("2019-04-01T00:00")
    codes = table(rows)["code"].to_list()
    assert [codes[i] for i in encoded.event_index if i >= 0 and codes[i].startswith(("proc", "disch"))] == ["procedure/6", "discharge/8536"]


def test_the_hour_of_admission_is_told_apart_from_the_first_event(timeline: Timeline) -> None:
    """Admitted at midnight with a first event at five, and admitted at five: i-H0 tells them apart."""
    midnight, five = datetime(2010, 5, 1), datetime(2010, 5, 1, 5)
    spelt = []
    for begin in (midnight, five):
        rows = [row(1, begin, "Visit/9201", end_time=midnight + timedelta(hours=9), visit_id=1), row(1, five, "drug/3", visit_id=1)]
        encoded = timeline.encode_frame(table(rows))
        spelt.append(spell(timeline, encoded))
        assert decode_histories(timeline.vocabulary, encoded)["time"].to_list() == [begin, five]
    assert spelt == [["[VS]", "Visit/9201", "i-H0", "i-H5", "drug/3", "i-H4", "[VE]"], ["[VS]", "Visit/9201", "i-H5", "drug/3", "i-H4", "[VE]"]]


def test_open_visits_stay_open(timeline: Timeline) -> None:
    begin = datetime(2010, 5, 1, 8)
    rows = [row(1, begin, "Visit/9201", end_time=begin + timedelta(days=3), visit_id=1), row(1, begin + timedelta(hours=2), "drug/3", visit_id=1)]
    rows.append(row(1, begin + timedelta(days=3), "discharge/8536", visit_id=1))
    at = pl.DataFrame({"subject_id": [1], "prediction_time": [begin + timedelta(days=1)]})
    encoded = timeline.encode_frame(cut_history(table(rows), at), key=("subject_id", "prediction_time"))
    assert spell(timeline, encoded) == ["[VS]", "Visit/9201", "i-H8", "i-H2", "drug/3"]
    assert encoded.censor_gap_days.tolist() == [-1]
    state, _ = timeline.grammar.follow(encoded.token_id[None, :].astype(np.int64))
    assert state.phase[0] == Phase.IN_VISIT


def test_order_within_a_day_is_kept_and_hours_do_not_add_up(timeline: Timeline) -> None:
    """METHOD, defect 3, and RULES 2: forty days of 25-hour steps decode to the hour, without drift."""
    begin = datetime(2010, 5, 1, 8, 59)
    rows = [row(1, begin, "Visit/9201", end_time=begin + timedelta(days=60), visit_id=1)]
    times = [begin + timedelta(hours=25 * n) for n in range(40)]
    rows += [row(1, time, "drug/3", visit_id=1) for time in times]
    decoded = decode_histories(timeline.vocabulary, timeline.encode_frame(table(rows)))
    assert decoded.filter(pl.col("code") == "drug/3")["time"].to_list() == [time.replace(minute=0) for time in times]


def test_the_gap_to_the_end_of_observation(timeline: Timeline) -> None:
    rows = [row(1, datetime(2010, 5, 1, 22), "drug/3"), row(1, datetime(2010, 6, 1), "OBSERVATION//END")]
    rows += [
        row(2, datetime(2010, 5, 1, 22), "drug/3"),
        row(2, datetime(2010, 5, 9, 1), "unheard/1"),
        row(2, datetime(2010, 5, 4), "OBSERVATION//END"),
    ]
    assert timeline.encode_frame(table(rows)).censor_gap_days.tolist() == [31, 8]


def test_histories_without_a_known_event_have_no_tokens(timeline: Timeline) -> None:
    rows = [row(1, datetime(2010, 5, 1), "unheard/1"), *static(1), row(2, datetime(2010, 5, 1), "drug/3"), *static(3)]
    encoded = timeline.encode_frame(table(rows))
    assert encoded.lengths.tolist() == [0, 8, 0]
    assert encoded.unknown_share.tolist() == [1.0, 0.0, 0.0]
    assert encoded.start_date[0] == BIRTH_UNKNOWN
    assert len(encoded.clock) == 8
    assert timeline.encode_frame(table(rows).clear()).offsets.tolist() == [0]


def test_encode_refuses_scattered_rows(timeline: Timeline) -> None:
    rows = table([row(1, START, "drug/3"), row(2, START, "drug/3"), row(1, START, "drug/3")])
    with pytest.raises(SchemaError, match="do not stand together"):
        timeline.encode_frame(rows[[0, 2, 1]])
    with pytest.raises(SchemaError, match="prediction_time"):
        timeline.encode_frame(rows, key=("subject_id", "prediction_time"))


def test_shifted_calendars_have_no_years() -> None:
    events = training_table().with_columns(pl.col("time", "end_time", "available_time").dt.offset_by("130y"))
    shifted = Timeline.fit(events, calendar="shifted")
    encoded = shifted.encode_frame(events)
    assert shifted.vocabulary.token[int(encoded.token_id[1])] == "year:unknown"
    assert [token for token in shifted.vocabulary.token if token.startswith("year:")] == ["year:unknown"]


@settings(max_examples=20, deadline=None)
@given(histories())
def test_elapsed_time_is_conserved(timeline: Timeline, events: pl.DataFrame) -> None:
    """From the first to the last token: at most a day's grid away from the first and last event that is written."""
    encoded = timeline.encode_frame(events)
    clock = encoded.clock * 60_000_000
    for index in range(len(encoded)):
        own = encoded.history(index)
        if own.start == own.stop:
            continue
        rows = events.filter(pl.col("subject_id") == encoded.subject_id[index])
        written = encoded.event_index[own]
        times = rows["time"].to_physical().to_numpy()[written[written >= 0]]
        clocks = clock[own][written >= 0]
        first = rows["time"].to_physical().min()  # an emergency visit is not written where an admission takes its place from its start on
        assert clocks.min() // DAY >= first // DAY
        linked = rows["visit_id"].is_not_null().to_numpy()[written[written >= 0]]  # linked events are clamped into their visit
        assert (np.abs(clocks - times)[~linked] < DAY).all()
        assert (np.diff(clock[own][PROMPT_LENGTH:]) >= 0).all()


def test_subset_and_concatenate(timeline: Timeline) -> None:
    encoded = timeline.encode_frame(training_table())
    both = concatenate([encoded.subset([3]), encoded.subset(np.arange(40) == 7)])
    assert both.subject_id.tolist() == [3, 7]
    assert np.array_equal(both.token_id[both.history(1)], encoded.token_id[encoded.history(7)])
    assert np.array_equal(both.clock[both.history(1)], encoded.clock[encoded.history(7)])


# -- fitting ----------------------------------------------------------------------------------------------------------------------


def test_rare_things_leave_no_trace() -> None:
    events = training_table()
    rare = [row(900 + n, START, "condition/rare", numeric_value=float(n)) for n in range(10)]
    rare += [row(900 + n, None, "gender/1") for n in range(10)]
    rare += [row(subject, START + timedelta(days=400), "measurement/4", numeric_value=1e6, unit="8840") for subject in range(4)]
    rare += [row(subject, START, "condition/1", text_value="unique") for subject in range(10)]
    rare += [row(subject, datetime(1999, 1, 1), "condition/1") for subject in range(10)]
    timeline = Timeline.fit(pl.concat([events, table(rare)]).sort("subject_id", maintain_order=True))
    text = " ".join(timeline.vocabulary.token)
    assert "rare" not in text
    assert "unique" not in text
    assert "gender:1 " not in text
    assert "year:1999" not in text
    assert max(float(q.max()) for q in timeline.vocabulary.quantiles if q is not None) < 1e6
    assert min(n for n in timeline.vocabulary.subjects if n is not None) >= 11
    eleven = Timeline.fit(pl.concat([events, table([*rare, row(950, START, "condition/rare")])]).sort("subject_id", maintain_order=True))
    assert "condition/rare" in eleven.vocabulary


def write_dataset(folder, splits: dict[str, pl.DataFrame]) -> EventDataset:
    for name, frame in splits.items():
        (folder / "data" / name).mkdir(parents=True)
        for shard in (0, 1):
            frame.filter(pl.col("subject_id") % 2 == shard).write_parquet(folder / "data" / name / f"{shard}.parquet")
    return EventDataset(folder)


def test_fit_reads_the_training_split_alone(tmp_path) -> None:
    """RULES 14 and METHOD, defect 9: other splits may be anything at all."""
    other = table([row(n, START, "condition/held_out", numeric_value=9.0) for n in range(100, 150)])
    first = write_dataset(tmp_path / "a", {"train": training_table(), "held_out": other})
    second = write_dataset(tmp_path / "b", {"train": training_table(), "tuning": other.with_columns(pl.lit("drug/x").alias("code"))})
    assert Timeline.fit(first).vocabulary.fingerprint == Timeline.fit(second).vocabulary.fingerprint
    whole = Timeline.fit(training_table())  # and shards add up to the whole
    assert Timeline.fit(first).vocabulary.token == whole.vocabulary.token
    with pytest.raises(InputError, match="no split"):
        Timeline.fit(first, split="nowhere")


def test_fit_says_why_nothing_is_left() -> None:
    with pytest.raises(InputError, match=r"3 training patients.*most common code has 3, min_subjects is 11; lower min_subjects"):
        Timeline.fit(table([row(n, START, "condition/1") for n in range(3)]))


def test_many_numbers_are_thinned_by_patient() -> None:
    """Beyond max_values the hash chooses patients; the order of the shards does not matter."""
    rng = np.random.default_rng(5)
    rows = [row(n, START, "measurement/1", numeric_value=float(v)) for n in range(300) for v in rng.normal(n % 7, 1, 12)]
    events = table(rows)
    config = TimelineConfig(max_values=1000)
    thin = Timeline.fit(events, config=config).vocabulary
    full = Timeline.fit(events).vocabulary
    again = Timeline.fit(pl.concat([events.filter(pl.col("subject_id") >= 150), events.filter(pl.col("subject_id") < 150)]), config=config)
    assert again.vocabulary.fingerprint == thin.fingerprint
    lows, others = thin.bin_low[thin.kind == Kind.VALUE], full.bin_low[full.kind == Kind.VALUE]
    assert len(lows) == len(others) == 10
    assert np.abs(lows - others).max() < 0.6
    assert not np.array_equal(lows, others)


@pytest.mark.parametrize(
    "bad",
    [{"min_subjects": 0}, {"value_bins": -1}, {"long_gap": "weeks"}, {"max_categories": -1}, {"max_values": 1}],
    ids=lambda bad: next(iter(bad)),
)
def test_bad_settings_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        TimelineConfig(**bad)


def test_save_and_load(timeline: Timeline, tmp_path) -> None:
    timeline.save(tmp_path)
    loaded = Timeline.load(tmp_path)
    assert loaded.vocabulary.fingerprint == timeline.vocabulary.fingerprint
    events = training_table()
    assert np.array_equal(loaded.encode_frame(events).token_id, timeline.encode_frame(events).token_id)
    (tmp_path / "timeline.json").write_text("{")
    with pytest.raises(InputError, match="damaged"):
        Timeline.load(tmp_path)


def test_structural_tokens_are_always_there(timeline: Timeline) -> None:
    names = ["D0", "D1079", "Y2", "Y120", "i-D1", "i-D31", "i-H0", "i-H23", "month:1", "month:12", "age:0", "age:119", "age:unknown", "age_months:11"]
    names += ["age_months:unknown", "year:unknown", "gender:0", "race:0", "[VR]", "stay:0", "MEDS_DEATH", "[END]", "Visit/inpatient", "Visit/other"]
    assert all(name in timeline.vocabulary for name in names)
    assert "D1080" not in timeline.vocabulary
    assert "LT" not in timeline.vocabulary
    assert "LT" in Timeline.fit(training_table(), config=TimelineConfig(long_gap="lt")).vocabulary


# -- value bins -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 60), st.one_of(st.integers(0, 12).map(float), st.floats(-1e3, 1e3, width=32))), min_size=1, max_size=300),
    st.integers(1, 15),
    st.integers(1, 12),
)
def test_bins(pairs: list[tuple[int, float]], minimum: int, bins: int) -> None:
    subjects, values = np.array([s for s, _ in pairs]), np.array([v for _, v in pairs], np.float32)
    made = value_bins(values, subjects, bins=bins, min_subjects=minimum, fixed_edges=(3.0,))
    if len(set(subjects.tolist())) < minimum:
        assert made == []
        return
    edges = np.array([one.low for one in made[1:]], np.float32)
    which = np.searchsorted(edges, values, side="right")
    for place, one in enumerate(made):
        inside = which == place
        assert len(set(subjects[inside].tolist())) == one.subjects >= minimum
        assert len(one.quantiles) % 2 == 1
        assert (np.diff(one.quantiles) >= 0).all()
        # A draw from inside the bin is encoded to the same bin again.
        assert one.low <= one.quantiles[0]
        assert one.quantiles[-1] < one.high or (place == len(made) - 1 and one.quantiles[-1] <= one.high)
    assert [one.high for one in made[:-1]] == [one.low for one in made[1:]]


def test_bins_by_hand() -> None:
    subjects = np.arange(1000)
    values = np.where(subjects % 2 == 0, 7.0, subjects / 100).astype(np.float32)  # half of them heaped at 7
    made = value_bins(values, subjects, bins=10, min_subjects=11, fixed_edges=(9.0, 50.0))
    heap = next(one for one in made if one.low == 7.0)
    assert heap.quantiles[0] == heap.quantiles[-1] == 7.0
    assert heap.subjects >= 500
    assert any(one.low == 9.0 for one in made)
    assert not any(one.low == 50.0 for one in made)
    assert made[0].low > values.min()
    assert made[-1].high < values.max()


def test_units_keep_their_own_bins() -> None:
    """METHOD, defect 8: a number is decoded with the unit of its own (code, unit) pair; zero is a number."""
    rows = []
    for n in range(60):
        rows.append(row(n, START, "measurement/1", numeric_value=float(n % 5), unit="small"))
        rows.append(row(n, START + timedelta(days=1), "measurement/1", numeric_value=1000.0 + n, unit="large"))
    timeline = Timeline.fit(table(rows))
    decoded = decode_histories(timeline.vocabulary, timeline.encode_frame(table(rows)), rng=np.random.default_rng(1))
    assert decoded.filter(pl.col("unit") == "small")["numeric_value"].max() < 5
    assert decoded.filter(pl.col("unit") == "large")["numeric_value"].min() >= 1000
    assert decoded.filter((pl.col("unit") == "small") & (pl.col("numeric_value") == 0)).height == 12
    odd = timeline.encode_frame(table([row(1, START, "measurement/1", numeric_value=3.0, unit="unseen")]))
    assert spell(timeline, odd) == ["measurement/1"]


def test_drawn_values_stay_in_their_bins(timeline: Timeline) -> None:
    events = training_table()
    encoded = timeline.encode_frame(events)
    drawn = decode_histories(timeline.vocabulary, encoded, rng=np.random.default_rng(3))
    assert not drawn.equals(decode_histories(timeline.vocabulary, encoded))
    again = timeline.encode_frame(pl.concat([events.filter(pl.col("time").is_null() | (pl.col("code") == "MEDS_BIRTH")), drawn]).sort("subject_id"))
    value = timeline.vocabulary.kind[encoded.token_id] == Kind.VALUE
    assert np.array_equal(np.sort(encoded.token_id[value]), np.sort(again.token_id[timeline.vocabulary.kind[again.token_id] == Kind.VALUE]))


# -- decoding ---------------------------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_the_clock_is_the_grammars(timeline: Timeline, seed: int) -> None:
    """Random walks through the grammar from random states: the ragged clock equals `advance`, token by token."""
    rng = np.random.default_rng(seed)
    grammar, rows, steps = timeline.grammar, 6, 25
    phase = rng.choice([Phase.UNIT_FIRST, Phase.UNIT, Phase.BARE, Phase.GAP, Phase.ADMITTED, Phase.IN_VISIT, Phase.IN_VISIT_DAY], rows).astype(
        np.int8
    )
    state = State(phase, rng.integers(0, 100, rows) * 60, np.zeros(rows, np.int64))
    tokens, clocks = np.zeros((rows, steps), np.int64), np.zeros((rows, steps), np.int64)
    began = state
    weight = np.where(np.isin(grammar.kind, [Kind.IN_VISIT_HOURS, Kind.VISIT_START, Kind.VISIT_END]), 40.0, 1.0)
    weight[timeline.vocabulary.id_of("D0")] = 400.0
    for step in range(steps):
        allowed = grammar.allowed[state.phase] * weight
        allowed[:, 0] += allowed.sum(axis=1) == 0
        tokens[:, step] = [rng.choice(len(weight), p=one / one.sum()) for one in allowed]
        after = grammar.advance(state, tokens[:, step])
        ended = tokens[:, step] == 0
        keep = State(
            np.where(ended, state.phase, after.phase).astype(np.int8), np.where(ended, state.clock_minutes, after.clock_minutes), state.age_months
        )
        state = keep
        clocks[:, step] = state.clock_minutes
    lengths = (tokens > 0).sum(axis=1)
    flat = np.concatenate([tokens[n, : lengths[n]] for n in range(rows)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    vocabulary = timeline.vocabulary
    found = run_clock(vocabulary.kind[flat], vocabulary.amount[flat], offsets, began.clock_minutes, began.phase)
    assert np.array_equal(found, np.concatenate([clocks[n, : lengths[n]] for n in range(rows)]))
    # And whatever was walked decodes to a valid table.
    at = np.full(rows, np.datetime64("2010-02-01T00:00", "us"))
    keys = {"subject_id": np.arange(rows), "prediction_time": at, "sample_id": np.zeros(rows, np.int64), "start_date": np.full(rows, 14610)}
    frame = decode_futures(vocabulary, flat, offsets, phase=began.phase, clock_minutes=began.clock_minutes, **keys)
    validate_events(frame)
    kind = vocabulary.kind[flat]
    happening = [Kind.CODE, Kind.VALUE, Kind.CATEGORY, Kind.DISCHARGE, Kind.DEATH, Kind.ICU_START]
    assert frame.height == int(np.isin(kind, happening).sum()) + int(((kind[1:] == Kind.VISIT_TYPE) & (kind[:-1] == Kind.VISIT_START)).sum())


def futures(timeline: Timeline, *sentences: str, phase: Phase, hours: int, visit: int = -1) -> pl.DataFrame:
    """Futures of one prompt that began on 2010-01-01 and stands `hours` later; predicted at 10:30 of 2010-01-02."""
    tokens = [ids(timeline, sentence) for sentence in sentences]
    count = len(tokens)
    return decode_futures(
        timeline.vocabulary,
        np.concatenate(tokens),
        np.concatenate([[0], np.cumsum([len(one) for one in tokens])]),
        phase=np.full(count, phase),
        clock_minutes=np.full(count, hours * 60),
        start_date=np.full(count, 14610),
        subject_id=np.full(count, 5),
        prediction_time=np.full(count, np.datetime64("2010-01-02T10:30", "us")),
        sample_id=np.arange(count),
        open_visit_id=np.full(count, visit),
    )


def test_futures_go_on_from_a_visit(timeline: Timeline) -> None:
    """An open visit's later events keep its id, it has no row of its own; what the grid puts before the prediction is just after it."""
    frame = futures(timeline, "drug/3 i-H2 condition/1 i-D1 discharge/8536 [VE] D3 condition/2", "i-H5", phase=Phase.IN_VISIT, hours=34, visit=-77)
    assert frame["sample_id"].unique().to_list() == [0]
    assert frame["code"].to_list() == ["drug/3", "condition/1", "discharge/8536", "condition/2"]
    assert frame["visit_id"].to_list() == [-77, -77, -77, None]
    just_after = datetime(2010, 1, 2, 10, 30, 0, 1)
    assert frame["time"].to_list() == [just_after, datetime(2010, 1, 2, 12), datetime(2010, 1, 3), datetime(2010, 1, 6)]
    assert frame["time_precision"].to_list() == ["hour", "hour", "hour", "day"]
    assert frame["available_time"].to_list()[-1] == datetime(2010, 1, 6, 23, 59, 59, 999999)
    assert (frame["time"] > frame["prediction_time"]).all()


def test_futures_open_their_own_visits(timeline: Timeline) -> None:
    frame = futures(timeline, "D0 [VS] Visit/9201 i-H20 drug/3 i-D1 [VE] D40 [VS] Visit/9201 i-H3 i-H1 drug/3", phase=Phase.GAP, hours=34)
    visits = frame.filter(pl.col("code") == "Visit/9201")
    assert visits["time"].to_list() == [datetime(2010, 1, 2, 20), datetime(2010, 2, 12, 3)]
    assert visits["end_time"].to_list() == [datetime(2010, 1, 3), None]  # the second has not ended
    assert visits["visit_id"].n_unique() == 2
    assert frame.filter(pl.col("code") == "drug/3")["visit_id"].to_list() == visits["visit_id"].to_list()
    assert (visits["visit_id"] >= 1 << 62).all()
    validate_events(frame)


def test_a_death_is_the_last_of_its_day(timeline: Timeline) -> None:
    frame = futures(timeline, "D0 condition/1 D0 MEDS_DEATH [END]", "D9 MEDS_DEATH [END]", phase=Phase.GAP, hours=34)
    assert frame.filter(pl.col("code") == "MEDS_DEATH")["time"].to_list() == [
        datetime(2010, 1, 2, 23, 59, 59, 999999),
        datetime(2010, 1, 11, 23, 59, 59, 999999),
    ]
    assert frame["time"].is_sorted()


def test_futures_without_events_are_an_empty_frame(timeline: Timeline) -> None:
    frame = futures(timeline, "D5", "D9", phase=Phase.GAP, hours=34)
    assert frame.height == 0
    assert frame.schema["sample_id"] == pl.Int32


# -- what is lost -----------------------------------------------------------------------------------------------------------------


def test_quantise_counts(timeline: Timeline) -> None:
    begin = datetime(2010, 5, 1, 8)
    rows = [
        row(1, begin, "Visit/9203", end_time=begin + timedelta(hours=20), visit_id=1),
        row(
            1, begin + timedelta(hours=5), "Visit/9201", end_time=begin + timedelta(hours=40), visit_id=2
        ),  # merges: inpatient names it, from the start
        row(1, begin + timedelta(hours=1), "drug/3", visit_id=1),
        row(1, begin + timedelta(hours=30, minutes=5), "drug/3"),  # moves to the hour, and is linked
        row(1, begin + timedelta(hours=31), "measurement/4", numeric_value=5.1, unit="8840", visit_id=2),
        row(1, begin + timedelta(hours=31), "measurement/4", numeric_value=5.1, unit="unseen", visit_id=2),
        row(1, begin + timedelta(hours=32), "unheard/1"),
        row(1, begin + timedelta(days=30), "Visit/424242", end_time=begin + timedelta(days=30), visit_id=3),
    ]
    made = quantise(table(rows), timeline)
    expected = {"events": 8, "unmapped": 1, "time_moved": 3, "value_binned": 1, "value_set_aside": 1, "visit_type_mapped": 1}
    assert {name: count for name, count in made.counts.items() if count} == expected | {"visits_merged": 1, "links_changed": 1}
    assert made.events.filter(pl.col("code").str.starts_with("Visit/"))["code"].to_list() == ["Visit/9201", "Visit/other"]
    assert table_row("x", made).count("|") == table_head().split("\n")[0].count("|")


# -- observed lengths, people, words ----------------------------------------------------------------------------------------------


def test_observed_lengths_are_not_shortened_by_deaths(timeline: Timeline) -> None:
    """Everyone is observed for 200 to 1,000 days; half die early. The lengths drawn are those of observation."""
    rng = np.random.default_rng(11)
    rows = []
    for n in range(600):
        length, death = int(rng.integers(200, 1000)), int(rng.exponential(700)) + 1
        rows += [*static(n), row(n, START, "drug/3")]
        rows.append(
            row(n, START + timedelta(days=death), "MEDS_DEATH") if death < length else row(n, START + timedelta(days=length), "OBSERVATION//END")
        )
    encoded = timeline.encode_frame(table(rows))
    days, ended = observed_days(encoded, timeline.vocabulary)
    assert 0.2 < ended.mean() < 0.8
    population = Population.fit(encoded, timeline.vocabulary)
    again = Population.from_dict(population.to_dict())
    assert again == population
    assert all(band.subjects >= 11 for band in population.bands)
    drawn = population.draw(year=np.full(4000, 2010), age=np.full(4000, 59), rng=np.random.default_rng(2))
    assert abs(drawn.mean() - 600) < 40
    assert days.mean() < 480
    assert drawn.max() <= 1000


def test_observed_lengths_refuse_few_patients(timeline: Timeline) -> None:
    encoded = timeline.encode_frame(training_table()).subset(np.arange(5))
    with pytest.raises(InputError, match="at least 11"):
        Population.fit(encoded, timeline.vocabulary)
    with pytest.raises(InputError, match="damaged"):
        Population.from_dict({"by": "year"})


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 119), st.integers(0, 11), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_drawn_dates_give_the_prompts_age(timeline: Timeline, age: int, months: int, month: int, seed: int) -> None:
    prompt = ids(timeline, f"[BOS] year:2010 month:{month} age:{age} age_months:{months} gender:8532 race:0")
    prompts = read_prompts(timeline.vocabulary, np.tile(prompt, (5, 1)))
    start, birth = draw_dates(prompts, np.random.default_rng(seed))
    assert (age_in_months(birth, start) == age * 12 + months).all()
    assert (start.astype("datetime64[D]").astype("datetime64[M]") == np.datetime64(f"2010-{month:02d}")).all()
    rows = person_rows(prompts, np.arange(5), birth)
    validate_events(rows)
    assert sorted(rows["code"].unique()) == ["MEDS_BIRTH", "gender/8532"]


def test_prompts_must_be_prompts(timeline: Timeline) -> None:
    with pytest.raises(SchemaError, match="one each of BOS"):
        read_prompts(timeline.vocabulary, np.ones((1, 7), np.int64))


def test_a_history_in_words(timeline: Timeline) -> None:
    encoded = timeline.encode_frame(training_table())
    lines = describe(encoded, timeline.vocabulary, 0)
    assert len(lines) == encoded.lengths[0]
    text = render(lines)
    assert "2010-01-01 00:00  [VS]" in text
    assert "40 days" in text or "39 days" in text or "day" in text
    assert render(lines, limit=3).endswith("more tokens")


def test_the_vocabulary_knows_names() -> None:
    """Names are there to be read and never needed: the fingerprint does not depend on them."""
    plain = Timeline.fit(training_table()).vocabulary
    named = Vocabulary.from_rows([row | {"name": "x"} for row in plain.table.to_pylist()], plain.settings)
    assert named.fingerprint == plain.fingerprint
    assert Grammar(named).allowed.shape == Grammar(plain).allowed.shape
