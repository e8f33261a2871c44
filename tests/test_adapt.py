"""`adapt`: what stands is not touched, what is new is learnt, and the report compares like with like."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import cehrxgpt as cx
from cehrxgpt.adapt.expand import expand, meaning
from cehrxgpt.adapt.grow import NEW_MASS, grow
from cehrxgpt.adapt.run import mix
from cehrxgpt.adapt.scores import event_scores, histories_of, largest_change, looked_at
from cehrxgpt.adapt.transfer import value_drift
from cehrxgpt.errors import InputError, MismatchError, OutputExistsError
from cehrxgpt.events import EventDataset
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.hub import Loaded, load_model, save_model
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.rollout import Prompt, rollout
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.writer import write_store
from cehrxgpt.timeline import Timeline, TimelineConfig
from cehrxgpt.timeline.encoded import HISTORY_FIELDS, TOKEN_FIELDS, EncodedHistories
from cehrxgpt.timeline.fit import fit_vocabulary
from cehrxgpt.timeline.kinds import EVENT_KINDS, PROMPT_LENGTH, Kind
from cehrxgpt.timeline.vocabulary import Vocabulary
from cehrxgpt.train import TrainConfig, pretrain
from timeline_samples import histories, row, static, table, training_table
from two_hospitals import NEW_CODE, hospital, patients, write_events

SMALL = TrainConfig(
    model={"width": 32, "layers": 1, "heads": 2, "kv_heads": 2, "context": 128},
    tokens_per_batch=1024,
    learning_rate=1e-2,
    steps=40,
    precision="float32",
)


@dataclass(frozen=True)
class Hospitals:
    first: EventDataset
    second: EventDataset
    store: Path
    model: Path
    adapted: Path


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Hospitals:
    """A model of the first hospital, adapted to the second."""
    root = tmp_path_factory.mktemp("hospitals")
    first, second = hospital(root / "first"), hospital(root / "second", second=True)
    write_store(first, Timeline.fit(first), root / "store")
    pretrain(root / "store", root / "model", SMALL)
    cx.adapt(root / "model", second, root / "adapted", config=replace(SMALL, steps=60), old=root / "store")
    return Hospitals(first, second, root / "store", root / "model", root / "adapted")


def same(one: EncodedHistories, other: EncodedHistories) -> bool:
    names = (*TOKEN_FIELDS, *HISTORY_FIELDS, "offsets")
    return all(np.array_equal(getattr(one, name), getattr(other, name), equal_nan=getattr(one, name).dtype.kind == "f") for name in names)


# -- the vocabulary -------------------------------------------------------------------------------------------------------------------


@settings(max_examples=8, deadline=None)
@given(known=histories(), other=histories(subjects=6))
def test_an_expanded_vocabulary_encodes_what_was_known_as_before(known: pl.DataFrame, other: pl.DataFrame) -> None:
    """Any data may come; a table that the vocabulary knew altogether is encoded alike, token for token."""
    new = pl.concat([other, patients(5000, 1, second=True)])
    vocabulary = fit_vocabulary(pl.concat([known, training_table()]), split=None, config=TimelineConfig(min_subjects=1))
    bigger = expand(vocabulary, new, split=None)
    assert bigger.table.slice(0, len(vocabulary)).equals(vocabulary.table)
    assert same(Timeline(vocabulary).encode_frame(known), Timeline(bigger).encode_frame(known))
    assert expand(bigger, new, split=None) is bigger
    meanings = [meaning(entry) for entry in bigger.table.to_pylist() if entry["kind"] != Kind.VALUE]
    assert len(set(meanings)) == len(meanings)


def test_what_is_new_is_appended_and_what_is_known_keeps_its_bins(hospitals: Hospitals) -> None:
    old = fit_vocabulary(hospitals.first)
    new = expand(old, hospitals.second)
    added = range(len(old), len(new))
    assert new.table.slice(0, len(old)).equals(old.table)
    assert {new.code[i] for i in added} == {NEW_CODE, "measurement/4", "Visit/581477"}
    assert {new.unit[i] for i in added if new.kind[i] == Kind.VALUE} == {"mmol/L"}
    assert min(new.subjects[i] or 0 for i in added) >= 11
    assert new.settings["expansions"] == [{"first": len(old), "tokens": len(added), "train_subjects": 120}]
    # The known unit at other values: not a bin more.
    shifted = patients(7000, 50).with_columns(pl.col("numeric_value") * 3)
    assert expand(old, shifted, split=None) is old


def test_a_rare_code_stays_out_and_years_leave_no_hole(hospitals: Hospitals) -> None:
    old = fit_vocabulary(hospitals.first)
    few = [[*static(s), row(s, START_LATER, "condition/77"), row(s, START_LATER, "condition/1")] for s in range(10)]
    assert "condition/77" not in expand(old, table([one for rows in few for one in rows]), split=None)
    many = [[*static(s), row(s, START_LATER, "condition/77")] for s in range(11)]
    bigger = expand(old, table([one for rows in many for one in rows]), split=None)
    assert "condition/77" in bigger
    years = sorted(year for year in bigger.amount_to_id[Kind.YEAR] if year >= 0)
    assert years == list(range(2012, 2031))


START_LATER = patients(0, 1)["time"].max().replace(year=2030)  # type: ignore[union-attr]


def test_nothing_to_adapt_to(hospitals: Hospitals, tmp_path: Path) -> None:
    strange = write_events(tmp_path / "strange", {"train": table([*static(1), row(1, START_LATER, "LAB//50912")])})
    with pytest.raises(InputError, match="none of the data's 1 codes is in the model's vocabulary") as caught:
        cx.adapt(hospitals.model, strange, tmp_path / "out", config=SMALL)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]


# -- the model ------------------------------------------------------------------------------------------------------------------------


def test_old_weights_stay_bit_for_bit(hospitals: Hospitals) -> None:
    model = load_model(hospitals.model)
    bigger = expand(model.vocabulary, hospitals.second)
    grown = grow(model.decoder, model.vocabulary, bigger)
    for name, tensor in model.decoder.state_dict().items():
        assert torch.equal(grown.state_dict()[name][: len(tensor)], tensor), name
    assert torch.equal(grown.state_dict()["head_bias"][: len(model.vocabulary)], torch.zeros(len(model.vocabulary)))
    again = expand(bigger, hospitals.second)
    assert again is bigger
    assert grow(grown, bigger, again) is grown


def test_expanding_twice_is_equal_byte_for_byte(hospitals: Hospitals, tmp_path: Path) -> None:
    model = load_model(hospitals.model)
    bigger = expand(model.vocabulary, hospitals.second)
    for name in ("once", "twice"):
        (tmp_path / name).mkdir()
        save_model(tmp_path / name, grow(model.decoder, model.vocabulary, bigger), bigger)
        model = load_model(tmp_path / name)
        bigger = expand(model.vocabulary, hospitals.second)
    for path in (tmp_path / "once").iterdir():
        assert path.read_bytes() == (tmp_path / "twice" / path.name).read_bytes(), path.name


def test_expansion_alone_hardly_moves_old_log_probabilities(hospitals: Hospitals) -> None:
    model = load_model(hospitals.model)
    bigger = expand(model.vocabulary, hospitals.second)
    store = TokenStore(hospitals.store)

    def change(start: str) -> float:
        grown = grow(model.decoder, model.vocabulary, bigger, start=start)  # type: ignore[arg-type]
        return max(largest_change(model.decoder, grown, looked_at(store, split, 128)) for split in ("train", "tuning", "held_out"))

    assert 1e-6 < change("related") < NEW_MASS + 1e-5 < 0.01
    assert change("kind") < NEW_MASS + 1e-5
    # Without the bias the same rows would move them a lot: the test can fail.
    grown = grow(model.decoder, model.vocabulary, bigger)
    grown.head_bias.data.zero_()  # type: ignore[union-attr]
    assert largest_change(model.decoder, grown, looked_at(store, "tuning", 128)) > 0.05


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.1, 30), tie=st.booleans(), biased=st.booleans())
def test_the_bound_holds_for_any_state(seed: int, scale: float, tie: bool, biased: bool) -> None:
    """Whatever the weights and the hidden state: new tokens get at most NEW_MASS of the old ones' mass."""
    old = fit_vocabulary(training_table(), split=None)
    new = expand(old, patients(0, 30, second=True), split=None)
    torch.manual_seed(seed)
    decoder = Decoder(ModelConfig(vocabulary_size=len(old), width=8, layers=1, heads=2, kv_heads=2, tie=tie, head_bias=biased)).double()
    if biased:
        torch.nn.init.normal_(decoder.head_bias)  # type: ignore[arg-type]
    for weight in (decoder.embedding.weight, *([] if tie else [decoder.untied.weight])):  # type: ignore[union-attr]
        weight.data.normal_(std=scale)
    hidden = torch.randn(50, 8, dtype=torch.float64)
    logits = grow(decoder, old, new).head(hidden)
    assert torch.allclose(logits[:, : len(old)], decoder.head(hidden))
    assert (logits[:, len(old) :].logsumexp(1) - logits[:, : len(old)].logsumexp(1)).max() <= np.log(NEW_MASS) + 1e-9


def test_new_rows_begin_at_what_they_resemble(hospitals: Hospitals) -> None:
    model = load_model(hospitals.model)
    old, new = model.vocabulary, expand(model.vocabulary, hospitals.second)
    grown = grow(model.decoder, old, new, ancestors={NEW_CODE: ["condition/4242", "condition/2"]})
    rows = grown.embedding.weight
    assert torch.equal(rows[new.id_of(NEW_CODE)], rows[old.id_of("condition/2")])
    ids = {unit: [i for i in new.ids_of_kind(Kind.VALUE) if new.unit[i] == unit] for unit in ("mg/dL", "mmol/L")}
    assert torch.equal(rows[ids["mmol/L"][0]], rows[ids["mg/dL"][0]])
    assert torch.equal(rows[ids["mmol/L"][-1]], rows[ids["mg/dL"][-1]])
    conditions = [i for i in old.ids_of_kind(Kind.CODE) if old.origin[i] == "condition_occurrence"]
    plain = grow(model.decoder, old, new).embedding.weight[new.id_of(NEW_CODE)]
    assert torch.allclose(plain, rows[conditions].mean(0))


def test_new_care_settings_stand_behind_the_old_and_begin_at_those_they_resemble() -> None:
    """Types of visit and intensive care that the first hospital has not; without care settings none are made."""
    settings = [{"token": "[VE]", "kind": int(Kind.VISIT_END)}, *({"token": f"Visit/{c}", "kind": int(Kind.VISIT_TYPE)} for c in (9201, 9202))]
    rows = [{"token": "[PAD]", "kind": int(Kind.PAD)}, {"token": "condition/1", "kind": int(Kind.CODE), "code": "condition/1"}, *settings]
    more = [{"token": "[ICU]", "kind": int(Kind.ICU_START)}, {"token": "Visit/9203", "kind": int(Kind.VISIT_TYPE)}]
    old, new = (Vocabulary.from_rows(some, {}) for some in (rows, rows + more))
    assert old.care_settings == (2, 3, 4)
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig(vocabulary_size=5, width=8, layers=1, heads=2, kv_heads=2, care_settings=old.care_settings))
    grown = grow(decoder, old, new)
    before, after = decoder.care_setting.embedding.weight, grown.care_setting.embedding.weight  # type: ignore[union-attr]
    assert grown.config.care_settings == new.care_settings == (2, 3, 4, 5, 6)
    assert torch.equal(after[:4], before)
    assert torch.allclose(after[4], before[1:].mean(0)), "nothing of its kind"
    assert torch.allclose(after[5], before[2:].mean(0)), "the other types of visit"
    token, place = torch.tensor([[3, 1, 2, 1, 4, 1]]), torch.arange(6)[None]
    assert torch.equal(*(one(token, position=place, age_minutes=place) for one in (decoder, grown)))
    none = grow(Decoder(replace(decoder.config, care_settings=())), old, new)
    assert none.care_setting is None
    assert none.config.care_settings == ()


def test_a_model_of_another_vocabulary_is_refused(hospitals: Hospitals) -> None:
    model = load_model(hospitals.model)
    other = fit_vocabulary(hospitals.second)
    with pytest.raises(MismatchError, match="does not extend the model's"):
        grow(model.decoder, model.vocabulary, other)


def test_folders_of_earlier_releases_load_as_ever(hospitals: Hospitals, tmp_path: Path) -> None:
    """Models saved before the head had a bias and tokens a care setting: their config says nothing of either, and their states are the same."""
    vocabulary = load_model(hospitals.model).vocabulary
    decoder = Decoder(ModelConfig(vocabulary_size=len(vocabulary), width=16, layers=1, heads=2, kv_heads=2)).eval()
    save_model(tmp_path, decoder, vocabulary)
    config = json.loads((tmp_path / "config.json").read_text())
    assert {name: config.pop(name) for name in ("head_bias", "care_settings")} == {"head_bias": False, "care_settings": []}
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = load_model(tmp_path).decoder
    assert (old.head_bias, old.care_setting) == (None, None)
    token, place = torch.arange(1, 9)[None], torch.arange(8)[None]
    assert torch.equal(*(one(token, position=place, age_minutes=place) for one in (decoder, old)))


# -- training -------------------------------------------------------------------------------------------------------------------------


def written_for(model: Loaded, events: EventDataset) -> np.ndarray:
    """What the model writes for people of the data set, from their prompts alone."""
    encoded = Timeline(model.vocabulary).encode_frame(events.read("held_out"))
    heads = [encoded.token_id[start : start + PROMPT_LENGTH] for start in encoded.offsets[:-1]]
    prompts = [Prompt(token_id=head, subject_id=index, horizon_minutes=90 * 1440) for index, head in enumerate(heads)]
    return rollout(model.decoder, model.vocabulary, prompts, samples=4, seed=0, max_new_tokens=40).token_id


def check_new_codes_are_sampled(model: Loaded, first_new: int, events: EventDataset) -> None:
    """New tokens together, and the new condition by itself, are as common among generated events as among real ones."""
    real = Timeline(model.vocabulary).encode_frame(events.read("held_out")).token_id
    written = written_for(model, events)
    for what, chosen, factor in (
        ("new tokens", np.arange(first_new, len(model.vocabulary)), 1.4),
        (NEW_CODE, [model.vocabulary.id_of(NEW_CODE)], 2.0),
    ):
        shares = []
        for token_id in (real, written):
            is_event = np.isin(model.vocabulary.kind[token_id], [int(one) for one in EVENT_KINDS])
            shares.append(np.isin(token_id[is_event], chosen).mean())
        assert shares[0] / factor < shares[1] < shares[0] * factor, f"{what}: {shares[1]:.1%} of generated events, {shares[0]:.1%} of real ones"


def test_new_codes_are_sampled_at_their_real_rate(hospitals: Hospitals) -> None:
    """And a model whose new rows were not trained does not pass."""
    adapted, before = load_model(hospitals.adapted), load_model(hospitals.model)
    check_new_codes_are_sampled(adapted, len(before.vocabulary), hospitals.second)
    untrained = replace(adapted, decoder=grow(before.decoder, before.vocabulary, adapted.vocabulary))
    with pytest.raises(AssertionError, match="new tokens: "):
        check_new_codes_are_sampled(untrained, len(before.vocabulary), hospitals.second)


def test_the_report(hospitals: Hospitals) -> None:
    facts = json.loads((hospitals.adapted / "adapt.json").read_text())
    loss = facts["held_out"]["loss"]
    assert loss["adapted"]["plain"] < loss["unexpanded"]["plain"]
    assert loss["adapted"]["renormalised"] < loss["unexpanded"]["renormalised"]
    assert loss["adapted"]["renormalised"] < loss["adapted"]["plain"]
    assert facts["held_out"]["largest_change_by_expansion"] < 0.01
    assert facts["old_data"]["largest_change_by_expansion"] < 0.01
    assert facts["old_data"]["loss"]["expanded"] == pytest.approx(facts["old_data"]["loss"]["unexpanded"], abs=0.01)
    assert facts["codes"]["new"] == 2  # a condition and a visit type
    assert facts["codes"]["events"]["train"]["known_before"] < facts["codes"]["events"]["train"]["known_after"] == 1
    codes = pl.read_parquet(hospitals.adapted / "adapt_codes.parquet")
    fresh = codes.filter(pl.col("status") == "new")
    assert set(fresh["code"]) == {NEW_CODE, "Visit/581477"}
    assert fresh["subjects_before"].null_count() == 2
    unseen = codes.filter(pl.col("code") == "Visit/9202")
    assert unseen.row(0)[2:] == ("known", unseen["subjects_before"][0], None)


def test_adapting_again_adds_nothing(hospitals: Hospitals) -> None:
    again = cx.adapt(hospitals.adapted, hospitals.second, config=replace(SMALL, steps=1, learning_rate=0.5))
    assert json.loads((again.folder / "manifest.json").read_text())["settings"]["learning_rate"] == 0.01  # never above the model's own
    adapted = load_model(hospitals.adapted)
    assert again.vocabulary.table.equals(adapted.vocabulary.table)
    assert again.vocabulary.settings == adapted.vocabulary.settings
    assert again.config == adapted.config


def test_an_interrupted_run_goes_on(hospitals: Hospitals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that dies before the report: nothing at `out`, a refusal, and with `resume` the same model without training anew."""
    config, out = replace(SMALL, steps=2), tmp_path / "out"
    whole = cx.adapt(hospitals.model, hospitals.second, tmp_path / "whole", config=config)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr("cehrxgpt.adapt.run.report", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        cx.adapt(hospitals.model, hospitals.second, out, config=config)
    assert not out.exists()
    with pytest.raises(OutputExistsError, match="an interrupted run stands in"):
        cx.adapt(hospitals.model, hospitals.second, out, config=config)
    with pytest.raises(MismatchError, match="of other settings or inputs"):
        cx.adapt(hospitals.model, hospitals.second, out, config=replace(config, steps=4), resume=True)
    monkeypatch.setattr("cehrxgpt.adapt.run.write_store", lambda *_, **__: pytest.fail("tokenized again"))
    resumed = cx.adapt(hospitals.model, hospitals.second, out, config=config, resume=True)
    assert torch.equal(resumed.decoder.embedding.weight, whole.decoder.embedding.weight)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]
    stamp = (out / "manifest.json").stat().st_mtime_ns
    cx.adapt(hospitals.model, hospitals.second, out, config=config, resume=True)
    assert (out / "manifest.json").stat().st_mtime_ns == stamp
    with pytest.raises(OutputExistsError, match="exists already"):
        cx.adapt(hospitals.model, hospitals.second, out, config=config)


def test_the_input_model_is_no_place_for_the_output(hospitals: Hospitals) -> None:
    before = sorted(path.name for path in hospitals.model.iterdir())
    with pytest.raises(OutputExistsError, match="lies inside the input"):
        cx.adapt(hospitals.model, hospitals.second, hospitals.model / "sub", config=replace(SMALL, steps=1))
    assert sorted(path.name for path in hospitals.model.iterdir()) == before


def test_replay_mixes_old_training_histories_in(hospitals: Hospitals, tmp_path: Path) -> None:
    old = TokenStore(hospitals.store)
    bigger = expand(old.vocabulary, hospitals.second)
    write_store(hospitals.second, Timeline(bigger), tmp_path / "new")
    new = TokenStore(tmp_path / "new")
    mix(new, old, tmp_path / "mixed", seed=0)
    mixed = TokenStore(tmp_path / "mixed")
    came = np.isin(mixed.subject_id, old.subject_id)
    assert set(np.asarray(mixed.subject_id)[came]) <= set(np.asarray(old.subject_id)[old.indices("train")])
    assert (mixed.split[came] == 0).all()
    assert int(came.sum()) > 50
    assert mixed.lengths[came].sum() <= new.lengths[new.indices("train")].sum()
    subject = int(mixed.subject_id[came][0])
    texts = [[s.vocabulary.token[t] for t in s.token_id[s.histories.history(int(np.flatnonzero(s.subject_id == subject)[0]))]] for s in (mixed, old)]
    assert texts[0] == texts[1]
    with pytest.raises(InputError, match="no old data to replay"):
        cx.adapt(hospitals.model, hospitals.second, tmp_path / "out", config=SMALL, replay=True)
    with pytest.raises(MismatchError, match="do not fit the model"):
        cx.adapt(hospitals.model, hospitals.second, tmp_path / "out", config=SMALL, old=tmp_path / "new")


# -- what the report counts -----------------------------------------------------------------------------------------------------------


def test_event_scores_are_those_of_a_slow_reading(hospitals: Hospitals) -> None:
    """One history at a time, one place at a time; and in windows every event is scored once."""
    model = load_model(hospitals.adapted)
    shared = len(load_model(hospitals.model).vocabulary)
    encoded = Timeline(model.vocabulary).encode_frame(hospitals.second.read("held_out")).subset(np.arange(6))
    found = event_scores(model.decoder, model.vocabulary, encoded, shared=shared)
    expected = []
    for index in range(len(encoded)):
        place = encoded.history(index)
        token, age = (torch.from_numpy(array[place].astype(np.int64))[None] for array in (encoded.token_id, encoded.age_minutes))
        with torch.no_grad():
            hidden = model.decoder(token, position=torch.arange(token.shape[1])[None], age_minutes=age)
            logits = model.decoder.head(hidden)[0].double()
        for where in np.flatnonzero(encoded.event_index[place] >= 0):
            target = int(token[0, where])
            plain = float(logits[where - 1].log_softmax(0)[target])
            among = float(logits[where - 1, :shared].log_softmax(0)[target]) if target < shared else -np.inf
            expected.append((index, int(encoded.event_index[place][where]), target, plain, among))
    expected.sort()
    columns = [np.array(column) for column in zip(*expected, strict=True)]
    for name, column in zip(("history", "row", "token", "plain", "renormalised"), columns, strict=True):
        assert np.allclose(getattr(found, name), column, atol=1e-4), name
    short = Loaded(model.decoder, model.vocabulary, replace(model.config, context=40), model.folder)
    short.decoder.config = short.config
    windowed = event_scores(short.decoder, model.vocabulary, encoded, shared=shared)
    short.decoder.config = model.config
    assert np.array_equal(windowed.row, found.row)
    assert np.array_equal(windowed.token, found.token)
    assert len(list(histories_of(model.vocabulary, encoded, 40))) > 0


def test_drift_is_told_by_lab(hospitals: Hospitals, tmp_path: Path) -> None:
    vocabulary = fit_vocabulary(hospitals.first)
    alike = value_drift(vocabulary, hospitals.first, 11).row(0, named=True)
    assert alike["share_beyond"] < 0.03
    values = hospitals.first.read("train").filter(pl.col("numeric_value").is_not_null())["numeric_value"]
    assert (alike["values"], alike["unit"]) == (len(values), "mg/dL")
    moved = patients(0, 60).with_columns(pl.col("numeric_value") + 2)
    drifted = value_drift(vocabulary, write_events(tmp_path / "moved", {"train": moved}), 11).row(0, named=True)
    ids = [i for i in vocabulary.ids_of_kind(Kind.VALUE) if vocabulary.code[i] == "measurement/4"]
    numbers = moved["numeric_value"].drop_nulls()
    assert drifted["share_beyond"] == pytest.approx(float((numbers > float(vocabulary.bin_high[ids[-1]])).mean()), abs=0.02)  # type: ignore[arg-type]
    assert drifted["share_beyond"] > 0.2
    assert drifted["share_highest"] > 0.5
    few = write_events(tmp_path / "few", {"train": patients(0, 10)})
    assert value_drift(vocabulary, few, 11).is_empty()
