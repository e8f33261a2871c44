"""Intensive care, drugs' lengths and comparison signs as tokens: by hand, in windows, in prompts, in futures, and nothing of them too early."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.events import cut_history
from cehrxgpt.forecast.futures import make_cases
from cehrxgpt.timeline import EncodedHistories, Timeline, TimelineConfig, Vocabulary, decode_futures, decode_histories, last_window
from cehrxgpt.timeline.decode import decode
from cehrxgpt.timeline.grammar import ALLOWED, IN_ICU_PHASES, IN_VISIT_PHASES, NEXT_PHASE, Phase
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, Kind
from cehrxgpt.timeline.moments import encode_moments
from cehrxgpt.timeline.vocabulary import LATER
from cehrxgpt.timeline.window import window
from timeline_samples import START, row, static, table, training_table

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
ADMITTED = datetime(2011, 3, 5, 14, 35)


@pytest.fixture(scope="module")
def timeline() -> Timeline:
    return Timeline.fit(training_table(), config=TimelineConfig(drug_lengths=True))


def stay(*details: tuple[float, float | None], ends: float | None = 240, code: str = "VisitDetail/32037") -> list[dict]:
    """An admission of `ends` hours with intensive care from hour to hour, and an event every day."""
    end = None if ends is None else ADMITTED + ends * HOUR
    rows = [*static(1), row(1, ADMITTED, "Visit/9201", end_time=end, visit_id=5)]
    for begin, until in details:
        left = None if until is None else ADMITTED + until * HOUR
        rows.append(row(1, ADMITTED + begin * HOUR, code, end_time=left, visit_id=5, origin="visit_detail"))
    return rows + [row(1, ADMITTED + day * DAY, "condition/1", visit_id=5) for day in range(10) if ends is None or day * 24 <= ends]


def words(timeline: Timeline, encoded: EncodedHistories) -> str:
    return " ".join(timeline.vocabulary.token[index] for index in encoded.token_id[PROMPT_LENGTH:])


def sentence(timeline: Timeline, rows: list[dict]) -> str:
    return words(timeline, timeline.encode_frame(table(rows)))


def test_a_stay_token_by_token(timeline: Timeline) -> None:
    assert sentence(timeline, stay((1, 30), ends=50)) == (
        "[VS] Visit/9201 i-H14 condition/1 i-H1 [ICU] i-D1 i-H14 condition/1 i-H6 [/ICU] i-D1 i-H14 condition/1 i-H2 [VE]"
    )


def test_events_of_its_hours_stand_inside(timeline: Timeline) -> None:
    """In the hour of admission to the ward before the first event, in the hour of leaving after the last one."""
    assert sentence(timeline, stay((0, 24), ends=24)) == "[VS] Visit/9201 i-H14 [ICU] condition/1 i-D1 i-H14 condition/1 [/ICU] [VE]"


@pytest.mark.parametrize(
    ("details", "kept"),
    [
        (((1, 5), (3, 9)), ((1, 9),)),  # overlap
        (((1, 9), (3, 5)), ((1, 9),)),  # nested
        (((1, 5), (5, 9)), ((1, 9),)),  # from unit to unit
        (((1, 5), (6, 9)), ((1, 5), (6, 9))),  # back after an hour
        (((1, None), (6, 9)), ((1, 24),)),  # an end that is not known is the visit's
        (((-3, 4),), ((0, 4),)),
        (((20, 40),), ((20, 24),)),
    ],
)
def test_stays_are_cut_to_their_visit_and_merged(timeline: Timeline, details: tuple, kept: tuple) -> None:
    decoded = decode_histories(timeline.vocabulary, timeline.encode_frame(table(stay(*details, ends=24))))
    found = decoded.filter(pl.col("code") == "VisitDetail/32037")
    on_the_hour = ADMITTED.replace(minute=0)
    assert found.select("time", "end_time").rows() == [(on_the_hour + a * HOUR, on_the_hour + b * HOUR) for a, b in kept]
    assert found["visit_id"].n_unique() == 1
    assert set(found["origin"]) == {"visit_detail"}


def test_outside_of_visits_with_hours_it_is_set_aside_and_counted(timeline: Timeline) -> None:
    rows = [*static(1), row(1, START, "Visit/9202", end_time=START + HOUR, visit_id=1), row(1, START, "condition/1")]
    for visit, begin in ((1, START), (None, START + 9 * DAY)):
        rows.append(row(1, begin, "VisitDetail/32037", end_time=begin + HOUR, visit_id=visit))
    encoded = timeline.encode_frame(table(rows))
    assert "[ICU]" not in words(timeline, encoded)
    assert (int(encoded.events[0]), int(encoded.unknown[0])) == (4, 2)


def test_death_ends_it_with_the_visit(timeline: Timeline) -> None:
    rows = [*stay((1, 200), ends=240)[:5], row(1, ADMITTED + 5 * HOUR, "MEDS_DEATH", origin="death")]
    assert sentence(timeline, rows).endswith("[ICU] i-H4 [/ICU] [VE] D0 MEDS_DEATH [END]")


# -- the grammar ------------------------------------------------------------------------------------------------------------------


def test_it_nests_once_and_closes_before_the_visit_does() -> None:
    for phase in Phase:
        inside = phase in IN_ICU_PHASES
        allowed = set(ALLOWED[phase])
        assert (Kind.ICU_END in allowed) == inside
        if inside:
            assert not allowed & {Kind.ICU_START, Kind.DISCHARGE, Kind.VISIT_END, Kind.DEATH, Kind.DAY_GAP}
        if phase not in (*IN_VISIT_PHASES, Phase.STAY_DAY):
            assert Kind.ICU_START not in allowed
        for kind in allowed:
            after = Phase(int(NEXT_PHASE[phase, kind]))
            if after in IN_ICU_PHASES:
                assert inside or kind == Kind.ICU_START or phase == Phase.STAY_DAY_IN_ICU


def test_day_visits_have_none(timeline: Timeline) -> None:
    for visit, may in (("Visit/9201", True), ("Visit/9203", True), ("Visit/8883", True), ("Visit/9202", False), ("Visit/other", False)):
        for prompt in ("[VS] {}", "[VR] {} stay:0"):
            tokens = prompt.format(visit).split()
            head = timeline.encode_frame(table([*static(1), row(1, START, "condition/1")])).token_id[:PROMPT_LENGTH]
            ids = np.concatenate([head, [timeline.vocabulary.id_of(token) for token in tokens]])
            state, _ = timeline.grammar.follow(ids[None].astype(np.int64))
            assert state.phase[0] >= 0
            assert timeline.grammar.allowed[state.phase[0], timeline.vocabulary.id_of("[ICU]")] == may


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_the_grammar_says_is_read_back(timeline: Timeline, seed: int) -> None:
    """Random sentences: stays never overlap, lie inside their visit, and a length stands behind drugs alone."""
    rng, vocabulary, grammar = np.random.default_rng(seed), timeline.vocabulary, timeline.grammar
    kind = vocabulary.kind
    weight = np.where(np.isin(kind, [Kind.ICU_START, Kind.ICU_END, Kind.VISIT_START, Kind.DRUG_LENGTH, Kind.IN_VISIT_HOURS]), 30.0, 1.0)
    weight[[vocabulary.id_of("Visit/9201"), vocabulary.id_of("drug/3"), vocabulary.id_of("D1")]] = 300.0
    head = timeline.encode_frame(table([*static(1), row(1, START, "condition/1")])).token_id[:PROMPT_LENGTH].astype(np.int64)
    state, _ = grammar.follow(head[None])
    tokens = []
    for _ in range(120):
        chances = grammar.allowed[state.phase[0]] * weight * (kind != Kind.VISIT_RESUME)
        if not chances.any():
            break
        tokens.append(int(rng.choice(len(kind), p=chances / chances.sum())))
        state = grammar.advance(state, np.array(tokens[-1:]))
    said = np.concatenate([head, tokens])
    drugs = {int(index) for index in vocabulary.drugs}
    assert all(int(said[place - 1]) in drugs for place in np.flatnonzero(kind[said] == Kind.DRUG_LENGTH))
    events = decode(vocabulary, said, np.array([0, len(said)]), start_date=np.array([14610]), subject_id=np.array([1]))
    icu = events.filter(pl.col("code") == "VisitDetail/32037")
    assert icu.height == int((kind[said] == Kind.ICU_START).sum())
    visits = events.filter(pl.col("code").str.starts_with("Visit/")).select(
        "visit_id", pl.col("time").alias("begins"), pl.col("end_time").alias("ends")
    )
    both = icu.join(visits, on="visit_id", how="inner")
    assert both.height == icu.height
    assert both.filter((pl.col("time") < pl.col("begins")) | (pl.col("end_time") > pl.col("ends"))).is_empty()
    assert both.filter(pl.col("end_time").is_null() & pl.col("ends").is_not_null()).is_empty(), "a visit that has ended holds no open stay"
    following = icu.sort("time", "end_time").with_columns(pl.col("time").shift(-1).alias("next"))
    assert following.filter(pl.col("end_time") > pl.col("next")).is_empty()
    lengths = events.filter(pl.col("origin") == "drug_exposure")["end_time"].count()
    assert lengths == int((kind[said] == Kind.DRUG_LENGTH).sum())


# -- windows, prompts, futures ----------------------------------------------------------------------------------------------------


def test_a_window_says_that_it_starts_in_intensive_care(timeline: Timeline) -> None:
    encoded = timeline.encode_frame(table(stay((1, 100))))
    said = [timeline.vocabulary.token[index] for index in encoded.token_id]
    places = [place for place, token in enumerate(said) if token == "condition/1"]
    for place, ward in ((places[2], "[VR] Visit/9201 [ICU] stay:2 i-H14 condition/1"), (places[6], "[VR] Visit/9201 stay:6 i-H14 condition/1")):
        made = window(encoded, timeline.vocabulary, 0, place, len(said))
        shown = " ".join(timeline.vocabulary.token[index] for index in made.token_id[PROMPT_LENGTH:])
        assert shown.startswith(ward)
        state, age = timeline.grammar.follow(made.token_id[None].astype(np.int64))
        assert state.phase[0] >= 0
        assert np.array_equal(age[0], made.age_minutes)
    begins, ends = said.index("[ICU]"), said.index("[/ICU]")
    for place, ward in ((begins, "[VR] Visit/9201 stay:0 i-H15 [ICU] i-D1"), (ends, "[VR] Visit/9201 [ICU] stay:4 i-H18 [/ICU] i-D1")):
        made = window(encoded, timeline.vocabulary, 0, place, len(said))
        assert " ".join(timeline.vocabulary.token[index] for index in made.token_id[PROMPT_LENGTH:]).startswith(ward)


def test_a_window_decodes_to_what_begins_in_it(timeline: Timeline) -> None:
    """[ICU] that only says where a window starts is no event; one at midnight, right behind the day of stay, is."""
    encoded = timeline.encode_frame(table(stay((9.5, 100))))  # begins at midnight
    said = [timeline.vocabulary.token[index] for index in encoded.token_id]
    for place, events in ((said.index("[ICU]"), 1), (said.index("[ICU]") + 3, 0)):
        made = window(encoded, timeline.vocabulary, 0, place, len(said))
        assert ("[ICU]" in [timeline.vocabulary.token[index] for index in made.token_id]) is True
        frame = decode(
            timeline.vocabulary, made.token_id, np.array([0, len(made.token_id)]), start_date=np.array([made.start_date]), subject_id=np.array([1])
        )
        assert frame.filter(pl.col("code") == "VisitDetail/32037").height == events


def test_a_forecast_from_inside_says_so_and_does_not_know_the_end(timeline: Timeline) -> None:
    """The same prompt whether the stay ends an hour after the prediction or a month; and it ends in intensive care, windows or not."""
    at = pl.DataFrame({"subject_id": [1], "prediction_time": [ADMITTED + 60 * HOUR]})
    prompts = []
    for until, ends in ((61, 62), (100, 240), (None, None)):
        moments = next(encode_moments(timeline, table(stay((1, until), ends=ends)), at))
        assert moments.events.filter(pl.col("code") == "VisitDetail/32037")["end_time"].to_list() == [None]
        for most in (200, 17):
            (case,) = make_cases(moments, [0], timeline.vocabulary, timeline.grammar, most)
            assert case.phase in IN_ICU_PHASES
            assert case.in_visit
            prompts.append((most, case.prompt.token_id.tolist()))
    assert len({tuple(tokens) for _, tokens in prompts}) == 2
    short = [timeline.vocabulary.token[index] for index in prompts[1][1]]
    assert short[PROMPT_LENGTH : PROMPT_LENGTH + 4] == ["[VR]", "Visit/9201", "[ICU]", "stay:1"]


def test_after_leaving_the_prompt_is_outside(timeline: Timeline) -> None:
    events = table(stay((1, 40)))
    cut = cut_history(events, pl.DataFrame({"subject_id": [1], "prediction_time": [ADMITTED + 60 * HOUR]}))
    encoded = timeline.encode_frame(cut, key=("subject_id", "prediction_time"))
    made = last_window(encoded, timeline.vocabulary, 0, 15)
    state, _ = timeline.grammar.follow(made.token_id[None].astype(np.int64))
    assert state.phase[0] == Phase.IN_VISIT


def test_futures_close_what_was_open_and_open_their_own(timeline: Timeline) -> None:
    vocabulary = timeline.vocabulary
    tokens = np.array(
        [vocabulary.id_of(token) for token in ["i-H2", "[/ICU]", "i-D1", "i-H3", "[ICU]", "i-H4", "drug/3", "days:8-14", "i-H1", "[/ICU]", "[VE]"]]
    )
    frame = decode_futures(
        vocabulary,
        tokens,
        np.array([0, len(tokens)]),
        phase=np.array([Phase.IN_ICU]),
        clock_minutes=np.array([10 * 60]),
        start_date=np.array([14610]),
        subject_id=np.array([1]),
        prediction_time=np.array([np.datetime64("2010-01-01T10:30", "us")]),
        sample_id=np.array([0]),
        open_visit_id=np.array([77]),
    )
    icu = frame.filter(pl.col("code") == "VisitDetail/32037")
    assert icu.select("time", "end_time", "visit_id").rows() == [(datetime(2010, 1, 2, 3), datetime(2010, 1, 2, 8), 77)]
    assert frame.filter(pl.col("code") == "drug/3")["end_time"].to_list() == [datetime(2010, 1, 13) - timedelta(microseconds=1)]


# -- lengths and signs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "token", "middle"),
    [
        (1, "days:1-3", 2),
        (3, "days:1-3", 2),
        (4, "days:4-7", 5),
        (14, "days:8-14", 11),
        (30, "days:15-30", 22),
        (90, "days:31-90", 60),
        (91, "days:>90", 135),
        (4000, "days:>90", 135),
    ],
)
def test_lengths(timeline: Timeline, days: int, token: str, middle: int) -> None:
    drug = row(1, START + 5 * HOUR, "drug/3", end_time=START + (days - 1) * DAY + 9 * HOUR, origin="drug_exposure")
    encoded = timeline.encode_frame(table([*static(1), drug, row(1, START + 6 * HOUR, "drug/3", origin="drug_exposure")]))
    assert words(timeline, encoded) == f"drug/3 {token} drug/3"
    assert decode_histories(timeline.vocabulary, encoded)["end_time"].to_list() == [START + middle * DAY - timedelta(microseconds=1), None]
    drawn = [
        decode_histories(timeline.vocabulary, encoded, rng=np.random.default_rng(seed))["end_time"][0].date() - START.date() for seed in range(40)
    ]
    lower, upper = min(drawn).days + 1, max(drawn).days + 1
    again = timeline.encode_frame(table([*static(1), *(row(1, START, "drug/3", end_time=START + (n - 1) * DAY) for n in (lower, upper))]))
    assert words(timeline, again) == f"drug/3 {token} drug/3 {token}"


def test_a_length_that_is_not_over_is_not_said(timeline: Timeline) -> None:
    drug = row(1, START, "drug/3", end_time=START + 9 * DAY, origin="drug_exposure")
    cut = cut_history(table([*static(1), drug]), pl.DataFrame({"subject_id": [1], "prediction_time": [START + 3 * DAY]}))
    assert words(timeline, timeline.encode_frame(cut, key=("subject_id", "prediction_time"))) == "drug/3"


def test_usual_lengths_are_medians_of_enough_patients() -> None:
    rows = []
    for subject in range(30):
        rows.append(row(subject, START, "drug/3", end_time=START + (subject % 3 + 5) * DAY, origin="drug_exposure"))
        rows.append(row(subject, START, "drug/9", end_time=START + 5 * DAY if subject < 10 else None, origin="drug_exposure"))
        rows.append(row(subject, START, "device/7", end_time=START + 5 * DAY, origin="device_exposure"))
    vocabulary = Timeline.fit(table(rows)).vocabulary
    assert vocabulary.drug_days == {"drug/3": 7}, "ten patients with an end are too few to keep"


def test_a_sign_has_bins_of_its_own(timeline: Timeline) -> None:
    lab = {"unit": "8840", "numeric_value": 2.2, "origin": "measurement"}
    rows = [row(1, START + n * DAY, "measurement/4", operator=sign, **lab) for n, sign in enumerate((None, "<", ">="))]
    encoded = timeline.encode_frame(table([*static(1), *rows]))
    plain, signed, unknown = (timeline.vocabulary.token[index] for index in encoded.token_id[PROMPT_LENGTH::2])  # gaps between
    assert signed.startswith("measurement/4 <[")
    assert plain == unknown != signed, "a sign too rare for bins leaves the number in those without one"
    assert decode_histories(timeline.vocabulary, encoded)["operator"].to_list() == [None, "<", None]


# -- vocabularies with and without ------------------------------------------------------------------------------------------------


def test_a_vocabulary_has_it_only_where_the_data_does() -> None:
    assert "[ICU]" not in Timeline.fit(training_table(icu=False)).vocabulary
    few = training_table().filter(~pl.col("code").str.starts_with("VisitDetail/") | (pl.col("subject_id") < 10))
    assert "[ICU]" not in Timeline.fit(few).vocabulary
    vocabulary = Timeline.fit(training_table()).vocabulary
    index = vocabulary.id_of("[ICU]")
    assert (vocabulary.code[index], vocabulary.subjects[index]) == ("VisitDetail/32037", 40)
    assert not len(vocabulary.ids_of_kind(Kind.DRUG_LENGTH))


def test_vocabularies_of_earlier_releases_load(tmp_path: Path) -> None:
    """Without the columns that came later: the same tokens, the same fingerprint, the same sentences."""
    fitted = Timeline.fit(training_table(icu=False).with_columns(pl.lit(None, pl.String).alias("operator")))
    old = Vocabulary(fitted.vocabulary.table.drop_columns(list(LATER)), fitted.vocabulary.settings)
    digest = hashlib.sha256()
    for fields in fitted.vocabulary.table.drop_columns(["name", *LATER]).to_pylist():
        digest.update(repr(tuple(fields.values())).encode())
    assert old.fingerprint == fitted.vocabulary.fingerprint == digest.hexdigest()[:16]
    old.save(tmp_path)
    loaded = Timeline.load(tmp_path)
    assert loaded.vocabulary.fingerprint == old.fingerprint
    assert loaded.vocabulary.drug_days == {}
    events = training_table()
    assert np.array_equal(loaded.encode_frame(events).token_id, fitted.encode_frame(events).token_id)
