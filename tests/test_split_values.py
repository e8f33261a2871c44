"""Code and value as two tokens: the same events, the same numbers, bins that every lab shares and none leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.adapt.expand import expand
from cehrxgpt.adapt.grow import NEW_MASS, check_extends, grow
from cehrxgpt.adapt.run import adapt
from cehrxgpt.adapt.transfer import value_drift
from cehrxgpt.errors import ConfigError, InputError, MismatchError, SchemaError
from cehrxgpt.forecast import ForecastConfig, forecast
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import load_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.report.history import bin_edges
from cehrxgpt.rollout import Prompt, rollout
from cehrxgpt.rollout.windows import rollout_through_windows
from cehrxgpt.store.crop import choose_crop
from cehrxgpt.store.writer import write_store
from cehrxgpt.synthesis import synthesize
from cehrxgpt.tasks import Index, Outcome, Task, outcome_in_window, outcome_tokens
from cehrxgpt.tasks.definition import ConceptSet
from cehrxgpt.timeline import Timeline, TimelineConfig, decode_futures, decode_histories, last_window
from cehrxgpt.timeline.describe import describe
from cehrxgpt.timeline.encoded import BIRTH_UNKNOWN
from cehrxgpt.timeline.grammar import Phase, settled
from cehrxgpt.timeline.kinds import FOLLOWERS, PROMPT_LENGTH, Kind
from cehrxgpt.timeline.vocabulary import LATER, Vocabulary
from cehrxgpt.timeline.window import shortest, window
from cehrxgpt.train import TrainConfig, pretrain
from timeline_samples import START, histories, row, static, table, training_table
from two_hospitals import hospital, patients


@pytest.fixture(scope="module")
def fused() -> Timeline:
    return Timeline.fit(training_table(), config=TimelineConfig(min_subjects=8))


@pytest.fixture(scope="module")
def split() -> Timeline:
    return Timeline.fit(training_table(), config=TimelineConfig(values="split", min_subjects=8))  # labs of different numbers of bins


def kinds(vocabulary: Vocabulary, *names: Kind) -> np.ndarray:
    return np.isin(vocabulary.kind, [int(kind) for kind in names])


# -- the vocabulary -----------------------------------------------------------------------------------------------------------------


def test_one_token_per_lab_and_bins_for_all(fused: Timeline, split: Timeline) -> None:
    """Labs hold exactly the bins that the fused vocabulary has a token for each of."""
    one, two = fused.vocabulary, split.vocabulary
    runs: dict[tuple[str | None, ...], list[int]] = {}
    for index in one.ids_of_kind(Kind.VALUE).tolist():
        runs.setdefault((one.code[index], one.unit[index], one.operator[index]), []).append(index)
    labs = {(two.code[i], two.unit[i], two.operator[i]): i for i in two.ids_of_kind(Kind.LAB).tolist()}
    assert labs.keys() == runs.keys()
    for key, lab in labs.items():
        own = runs[key]
        assert two.bin_count[lab] == len(own)
        edges, inside = two.bin_edges[lab], two.bin_quantiles[lab]
        assert edges is not None
        assert inside is not None
        np.testing.assert_array_equal(edges, [*one.bin_low[own], one.bin_high[own[-1]]])
        for points, index in zip(inside, own, strict=True):
            np.testing.assert_array_equal(points, one.quantiles[index])
        assert (two.bin_low[lab], two.bin_high[lab]) == (edges[0], edges[-1])
        assert (two.subjects[lab] or 0) >= max(one.subjects[index] or 0 for index in own)
    assert [two.token[i] for i in two.ids_of_kind(Kind.BIN)] == [f"bin:{place}" for place in range(two.bin_count.max())]
    assert (two.bin_count[two.kind != Kind.LAB] == 0).all()
    others = [name for name, kind in zip(one.token, one.kind, strict=True) if kind != Kind.VALUE]
    assert others == [name for name, is_new in zip(two.token, kinds(two, Kind.LAB, Kind.BIN), strict=True) if not is_new]
    assert two.settings["values"] == "split"


def test_save_and_load(split: Timeline, tmp_path: Path) -> None:
    split.save(tmp_path)
    again = Timeline.load(tmp_path).vocabulary
    assert again.fingerprint == split.vocabulary.fingerprint
    np.testing.assert_array_equal(again.bin_count, split.vocabulary.bin_count)
    assert again.split_values


def test_vocabularies_of_earlier_releases_are_what_they_were(fused: Timeline) -> None:
    old = fused.vocabulary
    earlier = Vocabulary(old.table.drop_columns([name for name in LATER if name.startswith("bin_")]), old.settings)
    assert earlier.fingerprint == old.fingerprint
    assert not earlier.split_values
    assert not earlier.bin_count.any()


def test_bins_decide_the_fingerprint(split: Timeline) -> None:
    rows = split.vocabulary.table.to_pylist()
    lab = int(split.vocabulary.ids_of_kind(Kind.LAB)[0])
    rows[lab]["bin_edges"] = [rows[lab]["bin_edges"][0] - 1, *rows[lab]["bin_edges"][1:]]
    assert Vocabulary.from_rows(rows, {}).fingerprint != split.vocabulary.fingerprint


def test_broken_vocabularies_are_refused(fused: Timeline, split: Timeline) -> None:
    rows = split.vocabulary.table.to_pylist()
    value = fused.vocabulary.table.to_pylist()[int(fused.vocabulary.ids_of_kind(Kind.VALUE)[0])]
    with pytest.raises(SchemaError, match="some values are fused with their code and others split"):
        Vocabulary.from_rows([*rows, value], {})
    with pytest.raises(SchemaError, match=f"{split.vocabulary.bin_count.max() - 1} shared bins; they must be numbered from 0"):
        Vocabulary.from_rows([one for one in rows if one["token"] != "bin:1"], {})
    with pytest.raises(SchemaError, match="bin_quantiles must be there for labs"):
        Vocabulary.from_rows([one | {"bin_quantiles": None} for one in rows], {})


def test_a_wrong_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match="values: 'both' is not known; valid values: fused, split"):
        TimelineConfig(values="both")


# -- there and back -----------------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(histories(), st.one_of(st.none(), st.integers(0, 99)))
def test_both_ways_of_writing_decode_to_the_same_events(fused: Timeline, split: Timeline, events: pl.DataFrame, seed: int | None) -> None:
    """Numbers drawn inside their bins included, and counted alike."""
    decoded = []
    for timeline in (fused, split):
        encoded = timeline.encode_frame(events)
        rng = None if seed is None else np.random.default_rng(seed)
        decoded.append((decode_histories(timeline.vocabulary, encoded, rng=rng), encoded.unknown.tolist(), timeline.results(events, encoded)))
    assert decoded[0][0].equals(decoded[1][0])
    assert decoded[0][1:] == decoded[1][1:]


@settings(max_examples=25, deadline=None)
@given(histories())
def test_a_bin_stands_behind_every_lab_and_nowhere_else(split: Timeline, events: pl.DataFrame) -> None:
    encoded, words = split.encode_frame(events), split.vocabulary
    token = encoded.token_id
    lab = np.flatnonzero(words.kind[token] == Kind.LAB)
    assert np.array_equal(np.flatnonzero(words.kind[token] == Kind.BIN), lab + 1)
    assert (words.amount[token[lab + 1]] < words.bin_count[token[lab]]).all()
    # The number is known once the bin has been read, and the event is counted once.
    assert np.array_equal(np.flatnonzero(~np.isnan(encoded.value)), lab + 1)
    assert (encoded.event_index[lab] >= 0).all()
    assert (encoded.event_index[lab + 1] == -1).all()
    assert (encoded.age_minutes[lab + 1] == encoded.age_minutes[lab]).all()


def test_a_history_in_words(split: Timeline) -> None:
    rows = [*static(1), row(1, START, "measurement/4", numeric_value=4.5, unit="8840")]
    encoded = split.encode_frame(table(rows))
    last = describe(encoded, split.vocabulary, 0)[-2:]
    assert last[0].token == "measurement/4 [..] 8840"
    low, high = (float(edge) for edge in last[1].name.strip("[)]").split(","))
    assert low <= 4.5 < high
    assert [line.value for line in last] == [None, 4.5]


def test_a_sentence_that_ends_at_a_lab_has_no_number(split: Timeline) -> None:
    encoded = split.encode_frame(table([*static(1), row(1, START, "measurement/4", numeric_value=4.5, unit="8840")]))
    keys = {"start_date": encoded.start_date, "subject_id": encoded.subject_id}
    whole = decode_futures(
        split.vocabulary, encoded.token_id[PROMPT_LENGTH:-1], np.array([0, 1]), phase=np.array([Phase.UNIT]), clock_minutes=np.zeros(1, np.int64),
        prediction_time=np.array([START], dtype="datetime64[us]"), sample_id=np.zeros(1, np.int64), **keys,
    )  # fmt: skip
    assert whole["code"].to_list() == ["measurement/4"]
    assert whole["numeric_value"].to_list() == [None]


# -- windows and crops --------------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(histories(subjects=1), st.data())
def test_no_window_parts_a_lab_from_its_bin(events: pl.DataFrame, data: st.DataObject) -> None:
    timeline = Timeline.fit(training_table(), config=TimelineConfig(values="split", drug_lengths=True))
    words, encoded = timeline.vocabulary, timeline.encode_frame(events)
    length = len(encoded.token_id)
    if length <= PROMPT_LENGTH + 1:
        return
    start = data.draw(st.integers(PROMPT_LENGTH + 1, length - 1))
    made = window(encoded, words, 0, start, length)
    tail = last_window(encoded, words, 0, data.draw(st.integers(shortest(words), 40)))
    for part in (made, tail):
        state, _ = timeline.grammar.follow(part.token_id[None].astype(np.int64))
        assert state.phase[0] >= 0
        assert words.kind[part.token_id[min(PROMPT_LENGTH, len(part.token_id) - 1)]] not in FOLLOWERS


@pytest.mark.parametrize("context", [40, 41, 64])
def test_no_crop_parts_a_lab_from_its_bin(context: int) -> None:
    stay = [Kind.VISIT_START, Kind.VISIT_TYPE, *[Kind.LAB, Kind.BIN, Kind.CODE, Kind.IN_VISIT_DAYS, Kind.LAB, Kind.BIN, Kind.DRUG_LENGTH] * 60]
    for body in ([*stay, Kind.VISIT_END], [*([Kind.LAB, Kind.BIN, Kind.DAY_GAP] * 150), Kind.LAB, Kind.BIN]):
        kind = np.array([0] * PROMPT_LENGTH + [int(one) for one in body], dtype=np.int8)
        for target in range(PROMPT_LENGTH - context + 13, len(kind), 3):
            crop = choose_crop(kind, context, target)
            assert crop.stop == len(kind) or kind[crop.stop] not in FOLLOWERS
            assert crop.start == 0 or kind[crop.start] not in FOLLOWERS


# -- generation ---------------------------------------------------------------------------------------------------------------------


def test_only_its_own_bins_follow_a_lab(split: Timeline) -> None:
    """By token, in every place where a lab may stand."""
    words, grammar = split.vocabulary, split.grammar
    bins = words.kind == Kind.BIN
    assert len(set(words.bin_count[words.kind == Kind.LAB].tolist())) > 1
    before = {place for place in Phase if grammar.allowed[place][words.kind == Kind.LAB].any()}
    assert {Phase.BARE, Phase.UNIT_FIRST, Phase.IN_VISIT, Phase.IN_ICU_HOUR, Phase.IN_DAY_VISIT} <= before
    assert not grammar.allowed[: len(Phase), bins].any()
    for place in before:
        for lab in words.ids_of_kind(Kind.LAB).tolist():
            phase = grammar.next_phase[place, lab]
            own = bins & (words.amount < words.bin_count[lab])
            assert np.array_equal(grammar.allowed[phase], own)
            assert set(grammar.next_phase[phase, own].tolist()) == {int(settled(phase[None])[0])}
            plain = words.id_of("condition/1")
            assert settled(phase[None])[0] == grammar.next_phase[place, plain], "as after any other event"


def random_decoder(words: Vocabulary, context: int) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(vocabulary_size=len(words), width=16, layers=1, heads=2, kv_heads=2, context=context)).eval()
    with torch.no_grad():
        decoder.embedding.weight[words.kind == Kind.LAB] *= 30  # labs all the time
    return decoder.double()


@pytest.mark.parametrize("window_by_window", [False, True])
def test_futures_are_sentences_and_decode(split: Timeline, window_by_window: bool) -> None:
    words, grammar = split.vocabulary, split.grammar
    encoded = split.encode_frame(table([*static(1), row(1, START, "measurement/4", numeric_value=4.5)]))
    prompt = Prompt(token_id=encoded.token_id, subject_id=1, start_date=int(encoded.start_date[0]))
    if window_by_window:
        decoder = random_decoder(words, 41)
        drawn = rollout_through_windows(decoder, words, [prompt], birth_date=[BIRTH_UNKNOWN], samples=20, seed=0, max_new_tokens=90)
    else:
        drawn = rollout(random_decoder(words, 120), words, [prompt], samples=20, seed=0, max_new_tokens=60)
    labs = 0
    for number in range(len(drawn)):
        tokens = np.concatenate([prompt.token_id, drawn.tokens_of(number)])
        state, _ = grammar.follow(tokens[None].astype(np.int64))
        assert state.phase[0] >= 0
        assert drawn.phase[number] == state.phase[0]
        labs += int((words.kind[drawn.tokens_of(number)] == Kind.LAB).sum())
    assert labs > 100
    events = decode_futures(
        words, drawn.token_id, drawn.offsets, phase=np.full(20, Phase.BARE), clock_minutes=np.zeros(20, np.int64),
        start_date=np.full(20, encoded.start_date[0]), subject_id=np.ones(20, np.int64),
        prediction_time=np.full(20, np.datetime64(START, "us")), sample_id=drawn.sample_id, rng=np.random.default_rng(0),
    )  # fmt: skip
    numbers = events.filter(pl.col("numeric_value").is_not_null())
    cut = int((words.kind[drawn.token_id[drawn.offsets[1:] - 1]] == Kind.LAB).sum())  # the budget ended between lab and bin
    assert numbers.height == labs - cut
    bounds = {(words.code[i], words.unit[i], words.operator[i]): (words.bin_low[i], words.bin_high[i]) for i in words.ids_of_kind(Kind.LAB)}
    for code, unit, operator, number in numbers.select("code", "unit", "operator", "numeric_value").iter_rows():
        low, high = bounds[code, unit, operator]
        assert low <= number <= high


# -- tasks --------------------------------------------------------------------------------------------------------------------------


def test_a_lab_is_an_outcome_by_its_code_and_a_bin_never(split: Timeline) -> None:
    words = split.vocabulary
    sets = {"index": ConceptSet(condition=(1,)), "lab": ConceptSet(measurement=(4,))}
    task = Task(name="lab", description="a lab", index=Index(concepts="index"), outcome=Outcome(concepts="lab"), horizon_days=30, concept_sets=sets)
    wanted = outcome_tokens(task, words)
    assert wanted is not None
    assert {words.token[i] for i in np.flatnonzero(wanted)} == {name for name in words.token if name.startswith("measurement/4")}
    # What the token says, the labeler finds in the decoded event.
    frame = table([*static(1), row(1, START, "condition/1"), row(1, START.replace(day=5), "measurement/4", numeric_value=4.5)])
    decoded = decode_histories(words, split.encode_frame(frame))
    at = pl.DataFrame({"subject_id": [1], "prediction_time": [START.replace(day=2)]})
    assert outcome_in_window(task, decoded, at)["outcome_time"].item() == START.replace(day=5)


# -- adapt --------------------------------------------------------------------------------------------------------------------------


def test_labs_and_bins_grow(tmp_path: Path) -> None:
    first, second = hospital(tmp_path / "first"), hospital(tmp_path / "second", second=True)
    old = Timeline.fit(first, config=TimelineConfig(values="split", value_bins=2)).vocabulary
    richer = Vocabulary(old.table, old.settings | {"value_bins": 6})
    new = expand(richer, second)
    added = [index for index in range(len(old), len(new)) if new.kind[index] in (Kind.LAB, Kind.BIN)]
    labs, bins = ([index for index in added if new.kind[index] == kind] for kind in (Kind.LAB, Kind.BIN))
    assert {new.unit[index] for index in labs} == {"mmol/L"}
    assert int(new.bin_count.max()) == old.bin_count.max() + len(bins) > old.bin_count.max()
    assert expand(new, second) is new
    shifted = patients(7000, 50).with_columns(pl.col("numeric_value") * 3)
    assert expand(richer, shifted, split=None) is richer, "a known lab keeps its bins"
    decoder = random_decoder(old, 64)
    grown = grow(decoder, old, new)
    weight = grown.embedding.weight
    assert torch.equal(weight[: len(old)], decoder.embedding.weight)
    highest = int(old.amount_to_id[Kind.BIN][int(old.bin_count.max()) - 1])
    assert torch.equal(weight[bins[0]], weight[highest]), "a new bin begins as the one below it"
    own = [i for i in old.ids_of_kind(Kind.LAB) if old.code[i] == new.code[labs[0]]]
    assert torch.allclose(weight[labs[0]], weight[own].mean(0))
    hidden = torch.randn(50, 16, dtype=torch.float64)
    with torch.no_grad():
        before, after = (model.head(hidden).log_softmax(-1)[:, : len(old)] for model in (decoder, grown))
    assert float((before - after).max()) < NEW_MASS


def test_fused_and_split_do_not_mix(fused: Timeline, split: Timeline) -> None:
    for one, other, said in ((fused, split, "fused"), (split, fused, "split")):
        with pytest.raises(MismatchError, match=f"the model's vocabulary has {said} values and the other has not"):
            check_extends(one.vocabulary, other.vocabulary)


def test_drift_is_told_by_lab_either_way(tmp_path: Path) -> None:
    first = hospital(tmp_path / "first")
    told = [value_drift(Timeline.fit(first, config=TimelineConfig(values=values)).vocabulary, first, 1) for values in ("fused", "split")]
    assert told[0].height
    assert told[0].equals(told[1])


# -- what else reads a vocabulary -----------------------------------------------------------------------------------------------------


def test_the_report_knows_the_edges_either_way(fused: Timeline, split: Timeline, tmp_path: Path) -> None:
    edges = []
    for name, timeline in (("fused", fused), ("split", split)):
        (tmp_path / name).mkdir()
        timeline.save(tmp_path / name)
        edges.append(bin_edges(pl.read_parquet(tmp_path / name / "vocabulary.parquet")))
    assert edges[0]
    unsigned = {key: lows for key, lows in edges[0].items() if key[1] is None}
    assert unsigned == {key: lows for key, lows in edges[1].items() if key[1] is None}


def test_tokenize_takes_the_option(tmp_path: Path) -> None:
    from cehrxgpt import stages

    events = hospital(tmp_path / "events")
    facts = stages.tokenize(events.root, tmp_path / "timeline", {"values": "split"})
    assert Vocabulary.load(tmp_path / "timeline").split_values
    assert "notes" not in facts
    assert json.loads((tmp_path / "timeline/timeline.json").read_text())["settings"]["values"] == "split"
    stages.tokenize(events.root, tmp_path / "again", {}, vocabulary=tmp_path / "timeline")
    assert Vocabulary.load(tmp_path / "again").split_values
    with pytest.raises(InputError, match=r"--values: .* was fitted already"):
        stages.tokenize(events.root, tmp_path / "third", {"values": "split"}, vocabulary=tmp_path / "timeline")
    facts = stages.tokenize(events.root, tmp_path / "none", {"values": "split", "value_bins": 0})
    assert facts["notes"] == ["--values split: no code has bins of numeric values from 11 training patients, so that nothing was split"]


# -- a whole model ------------------------------------------------------------------------------------------------------------------


@pytest.mark.e2e
def test_a_model_of_split_values_does_everything(tmp_path: Path) -> None:
    """Trained with the value objective, it forecasts, writes patients and carries over; numbers stay inside their labs' bounds."""
    events = hospital(tmp_path / "events")
    split = Timeline.fit(events, config=TimelineConfig(values="split"))
    shape = {"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "context": 128}
    config = TrainConfig(
        model=shape, tokens_per_batch=1024, learning_rate=1e-2, steps=50, precision="float32", objectives={"next_token": 1.0, "value": 1.0}
    )
    write_store(events, split, tmp_path / "store")
    pretrain(tmp_path / "store", tmp_path / "model", config)
    lines = [json.loads(line) for line in (tmp_path / "model/train.jsonl").read_text().splitlines()]
    tuning = [line["tuning"]["value"] for line in lines if line["kind"] == "tuning"]
    assert 0 < tuning[-1] < np.log(split.vocabulary.bin_count.max()) + 0.1

    loaded = load_model(tmp_path / "model")
    made, _ = synthesize(loaded, 60)
    numbers = made.filter(pl.col("code") == "measurement/4")["numeric_value"]
    real = events.read("train").filter(pl.col("code") == "measurement/4")["numeric_value"]
    assert numbers.len() > 30
    assert numbers.null_count() <= 1
    assert float(numbers.mean()) == pytest.approx(float(real.mean()), abs=0.6)  # type: ignore[arg-type]
    lab = int(loaded.vocabulary.ids_of_kind(Kind.LAB)[0])
    assert numbers.drop_nulls().is_between(float(loaded.vocabulary.bin_low[lab]), float(loaded.vocabulary.bin_high[lab])).all()

    at = events.read("held_out").group_by("subject_id").agg(pl.col("time").max().alias("prediction_time")).head(5)
    sets = {"index": ConceptSet(condition=(1,)), "lab": ConceptSet(measurement=(4,))}
    task = Task(name="lab", description="a lab", index=Index(concepts="index"), outcome=Outcome(concepts="lab"), horizon_days=30, concept_sets=sets)
    told = forecast(loaded, events, at, [task], ForecastConfig(samples=8, max_new_tokens=40))
    assert told.predictions["predicted_boolean_probability"].is_not_null().all()

    second = hospital(tmp_path / "second", second=True)
    adapted = adapt(tmp_path / "model", second, tmp_path / "adapted", config=replace(config, steps=10), old=tmp_path / "store", replay=True)
    assert adapted.vocabulary.split_values
    assert {adapted.vocabulary.unit[i] for i in adapted.vocabulary.ids_of_kind(Kind.LAB)} == {"mg/dL", "mmol/L"}
