"""The token store on disk, and which histories share a batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.errors import ConfigError, InputError, MismatchError
from cehrxgpt.store.batch import IGNORE
from cehrxgpt.store.crop import choose_crop, unit_starts, window_lengths, window_targets
from cehrxgpt.store.format import DTYPES, ArrayAppender, TokenStore
from cehrxgpt.store.loader import Loader, Segment, assemble
from cehrxgpt.store.packing import batches_per_epoch, first_fit, plan_epoch
from cehrxgpt.timeline.encoded import HISTORY_FIELDS, TOKEN_FIELDS, concatenate
from cehrxgpt.timeline.grammar import Grammar
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, TIME_KINDS, Kind
from toy_store import save_store, toy_histories, toy_store, toy_vocabulary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("store") / "timeline", train=80, tuning=12)


# -- on disk ------------------------------------------------------------------------------------------------------------------------


def test_store_gives_back_what_was_written(folder: Path) -> None:
    vocabulary = toy_vocabulary()
    written = toy_histories(vocabulary, 80)
    store = TokenStore(folder)
    assert len(store) == 92
    chosen = store.histories.subset(store.indices("train"))
    for name in (*TOKEN_FIELDS, *HISTORY_FIELDS, "offsets"):
        np.testing.assert_array_equal(getattr(chosen, name), getattr(written, name))
    np.testing.assert_array_equal(store.token_id, store.histories.token_id)
    assert store.vocabulary.fingerprint == vocabulary.fingerprint
    assert len(store.indices("tuning")) == 12
    assert not len(store.indices("held_out"))
    assert not len(store.indices("elsewhere"))


def test_arrays_are_mapped_not_read(folder: Path) -> None:
    store = TokenStore(folder)
    for name in DTYPES:
        array = store.split if name == "split" else getattr(store, name)
        assert isinstance(array.base, np.memmap) or isinstance(array.base.base, np.memmap)
        assert not array.flags.writeable


@given(st.lists(st.integers(0, 40), max_size=6))
@settings(deadline=None, max_examples=20)
def test_appender_writes_a_plain_npy(sizes: list[int]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "a.npy"
        appender = ArrayAppender(path, np.int32)
        parts = [np.arange(size, dtype=np.int32) for size in sizes]
        for part in parts:
            appender.append(part)
        appender.close()
        np.testing.assert_array_equal(np.load(path), np.concatenate([*parts, np.zeros(0, np.int32)]))


def _copy(folder: Path, target: Path) -> Path:
    import shutil

    return Path(shutil.copytree(folder, target))


def test_damage_is_one_clear_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a token store"):
        TokenStore(tmp_path)
    cut = _copy(folder, tmp_path / "cut")
    data = (cut / "token_id.npy").read_bytes()
    (cut / "token_id.npy").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"token_id\.npy: missing, truncated or damaged"):
        TokenStore(cut)
    gone = _copy(folder, tmp_path / "gone")
    (gone / "value.npy").unlink()
    with pytest.raises(InputError, match=r"value\.npy"):
        TokenStore(gone)
    short = _copy(folder, tmp_path / "short")
    np.save(short / "split.npy", np.zeros(3, np.int8))
    with pytest.raises(InputError, match=r"holds int8\[3\]; expected int8\[92\]"):
        TokenStore(short)
    later = _copy(folder, tmp_path / "later")
    meta = json.loads((later / "meta.json").read_text()) | {"version": 99}
    (later / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(MismatchError, match="format 99"):
        TokenStore(later)


def test_vocabulary_that_does_not_belong_is_refused(folder: Path, tmp_path: Path) -> None:
    other = toy_vocabulary(codes=5)
    with pytest.raises(MismatchError, match="do not fit model m"):
        TokenStore(folder).check_vocabulary(other, whose="model m")
    swapped = _copy(folder, tmp_path / "swapped")
    other.save(swapped)
    with pytest.raises(MismatchError, match="tokenize again"):
        _ = TokenStore(swapped).vocabulary


def test_reading_needs_no_data_stack(folder: Path) -> None:
    code = f"""
import sys
sys.modules.update(dict.fromkeys(["polars", "duckdb", "ibis", "transformers", "sklearn", "rich"]))  # importing them fails
from cehrxgpt.store import Loader, TokenStore
store = TokenStore({str(folder)!r})
Loader(store, "train", tokens_per_batch=1024, context=512, seed=0).batch(0)
import cehrxgpt.train.loop
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# -- plans --------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 64), min_size=1, max_size=200), st.integers(64, 300), st.booleans(), st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_an_epoch_visits_each_history_once(lengths: list[int], tokens_per_batch: int, packed: bool, epoch: int) -> None:
    size = np.array(lengths, dtype=np.int64)
    count = batches_per_epoch(size, tokens_per_batch)
    plan = plan_epoch(size, batches=count, seed=3, epoch=epoch, packed=packed)
    assert sorted(plan.order.tolist()) == list(range(len(size)))
    assert len(plan) == count
    for index in range(count):
        batch = plan.batch(index)
        assert len(batch)
        assert size[batch].sum() < tokens_per_batch + 64


@given(st.lists(st.integers(1, 64), min_size=1, max_size=40), st.data())
@settings(deadline=None, max_examples=60)
def test_no_batch_is_empty_however_many_there_are(lengths: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(lengths)))
    plan = plan_epoch(np.array(lengths), batches=count, seed=0, epoch=0, packed=True)
    assert sorted(plan.order.tolist()) == list(range(len(lengths)))
    assert min(len(plan.batch(index)) for index in range(count)) > 0


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60))
@settings(deadline=None, max_examples=60)
def test_first_fit_never_overlaps(lengths: list[int]) -> None:
    size = np.array(lengths, dtype=np.int64)
    row, column = first_fit(size, 50)
    used = np.zeros((int(row.max()) + 1, 50), dtype=int)
    for length, r, c in zip(size, row, column, strict=True):
        used[r, c : c + length] += 1
    assert used.max() == 1
    assert used.any(1).all()


def test_rows_are_of_like_length() -> None:
    random = np.random.default_rng(0)
    lengths = np.minimum(7 + random.gamma(1.5, 35, size=20_000).astype(np.int64), 512)
    count = batches_per_epoch(lengths, 4096)
    plan = plan_epoch(lengths, batches=count, seed=0, epoch=0, packed=False)
    places = sum(len(plan.batch(index)) * int(lengths[plan.batch(index)].max()) for index in range(len(plan)))
    assert 1 - lengths.sum() / places < 0.06
    other = plan_epoch(lengths, batches=count, seed=0, epoch=1, packed=False)
    assert set(plan.batch(0).tolist()) != set(other.batch(0).tolist())


# -- loader -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
def test_batch_is_a_function_of_seed_and_step(folder: Path, packed: bool) -> None:
    def loader(seed: int) -> Loader:
        return Loader(TokenStore(folder), "train", tokens_per_batch=512, context=256, seed=seed, packed=packed)

    one, other = loader(1), loader(1)
    steps = one.batches_per_epoch + 2
    forwards = [one.batch(step) for step in range(steps)]
    for step in reversed(range(steps)):
        again = other.batch(step)
        for name in ("token_id", "segment_id", "position", "age_minutes", "target", "censor_gap_days"):
            assert torch.equal(getattr(again, name), getattr(forwards[step], name)), name
    different = loader(2)
    assert any(not np.array_equal(one.subjects(step), different.subjects(step)) for step in range(one.batches_per_epoch))
    first, second = (np.concatenate([one.subjects(epoch * one.batches_per_epoch + i) for i in range(one.batches_per_epoch)]) for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(one.indices)
    assert first.tolist() != second.tolist()
    evaluations = [[batch.token_id for batch in one.evaluation(2)] for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*evaluations, strict=True))
    assert len(evaluations[0]) == 2


@pytest.mark.parametrize("packed", [False, True])
def test_segments_are_whole_patients_and_targets_stay_inside(folder: Path, packed: bool) -> None:
    store = TokenStore(folder)
    loader = Loader(store, "train", tokens_per_batch=600, context=256, seed=0, packed=packed)
    by_tokens = {tuple(store.token_id[store.histories.history(i)].tolist()): int(i) for i in loader.indices}
    seen = []
    for step in range(loader.batches_per_epoch):
        batch = loader.batch(step)
        assert batch.single_segment != packed or batch.segment_id.max() <= 1
        for row in range(batch.token_id.shape[0]):
            segments = batch.segment_id[row]
            assert (batch.token_id[row][segments == 0] == 0).all()
            assert (batch.target[row][segments == 0] == IGNORE).all()
            for number in range(1, int(segments.max()) + 1):
                places = (segments == number).nonzero().squeeze(1)
                assert torch.equal(places, torch.arange(places[0], places[-1] + 1)), "a segment is contiguous"
                tokens = batch.token_id[row, places]
                history = by_tokens[tuple(tokens.tolist())]
                seen.append(history)
                assert torch.equal(batch.position[row, places], torch.arange(len(places)))
                assert torch.equal(batch.target[row, places], torch.cat([tokens[1:], torch.tensor([IGNORE])]))
                censor = batch.censor_gap_days[row, places]
                assert (censor[:-1] == -1).all()
                assert int(censor[-1]) == int(store.censor_gap_days[history])
    assert sorted(seen) == list(loader.indices)


def test_what_a_window_was_given_is_not_a_target() -> None:
    whole = Segment(np.arange(1, 31), np.zeros(30, int), np.full(30, np.nan, np.float32), 0, 5)
    cut = Segment(np.arange(1, 21), np.zeros(20, int), np.full(20, np.nan, np.float32), 10, -1)
    batch = assemble([whole, cut])
    assert (batch.target[0, :29] != IGNORE).all()
    assert batch.censor_gap_days[0, 29] == 5
    assert (batch.target[1, :9] == IGNORE).all()
    assert batch.target[1, 9] == 11
    assert (batch.censor_gap_days[1] == -1).all()


def test_settings_that_cannot_work_are_refused(folder: Path, tmp_path: Path) -> None:
    store = TokenStore(folder)
    with pytest.raises(ConfigError, match="below the context"):
        Loader(store, "train", tokens_per_batch=100, context=256, seed=0)
    with pytest.raises(ConfigError, match="no room behind a prompt"):
        Loader(store, "train", tokens_per_batch=100, context=12, seed=0)
    with pytest.raises(InputError, match="split 'held_out' has no histories"):
        Loader(store, "held_out", tokens_per_batch=1024, context=256, seed=0)


# -- long histories -------------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.floats(0, 1), st.sampled_from([24, 40, 64, 200]), st.booleans())
@settings(deadline=None, max_examples=60)
def test_crops_fit_and_part_no_time_from_its_event(seed: int, share: float, context: int, one_long_visit: bool) -> None:
    vocabulary = toy_vocabulary()
    histories = toy_histories(vocabulary, 1, seed=seed, units=(1, 2) if one_long_visit else (60, 80))
    kind = vocabulary.kind[histories.token_id]
    if one_long_visit:
        stay = [Kind.VISIT_START, Kind.VISIT_TYPE, *[Kind.CODE, Kind.CODE, Kind.IN_VISIT_DAYS, Kind.CODE] * 100, Kind.VISIT_END]
        kind = np.array([*kind[:PROMPT_LENGTH], *(int(k) for k in stay)], dtype=np.int8)
    length = np.array([len(kind)])
    target = window_targets(length, context, np.array([share]))
    crop = choose_crop(kind, context, min(int(target[0]), len(kind) - 1))
    planned = int(window_lengths(length, context, target)[0])
    assert planned - context // 2 <= crop.stop - crop.start <= planned, "what batches are planned with"
    assert 0 <= crop.start < crop.stop <= len(kind)
    assert crop.stop - crop.start + (0 if crop.start == 0 else PROMPT_LENGTH + 4) <= context
    assert crop.start == 0 or crop.start > PROMPT_LENGTH
    loose = (*TIME_KINDS, Kind.VISIT_START)
    assert kind[crop.stop - 1] not in loose, "a window never ends between a time token and what it dates"
    assert crop.start == 0 or kind[crop.start - 1] not in (Kind.IN_VISIT_DAYS, Kind.IN_VISIT_HOURS, Kind.VISIT_START, Kind.YEAR_GAP)


def test_an_epoch_reads_tokens_of_long_histories_as_often_as_those_of_short_ones(tmp_path: Path) -> None:
    """At the beginning, in the middle and at the end, where deaths and censored gaps stand."""
    vocabulary = toy_vocabulary()
    groups = [toy_histories(vocabulary, 40, seed=seed, units=units) for seed, units in enumerate([(2, 4), (16, 20), (40, 60), (200, 201)])]
    stays = toy_histories(vocabulary, 40, seed=9, units=(16, 20), per_unit=60)
    groups.append(stays)
    store = TokenStore(save_store(tmp_path / "timeline", vocabulary, {"train": concatenate(groups)}))
    loader = Loader(store, "train", tokens_per_batch=512, context=128, seed=0)
    kinds = [vocabulary.kind[store.token_id[store.histories.history(index)]] for index in range(200)]
    seen = [np.zeros(len(kind)) for kind in kinds]
    epochs, real = 20, []
    for epoch in range(epochs):
        drawn = loader._of(epoch)
        assert sorted(drawn.plan.order.tolist()) == list(range(len(drawn.target)))
        for one in drawn.plan.order.tolist():
            history = int(drawn.history[one])
            (crop,) = loader._crops(history, int(drawn.target[one]), None)
            seen[history][crop.start : crop.stop] += 1 / epochs
        real += [loader.batch(epoch * loader.batches_per_epoch + step).tokens for step in range(3)]
    np.testing.assert_allclose(np.concatenate(seen[:40]), 1)
    for begin in (40, 80, 120, 160):
        for part in (slice(PROMPT_LENGTH, 40), slice(40, -40), slice(-8, None)):
            assert 0.9 < np.concatenate([one[part] for one in seen[begin : begin + 40]]).mean() < 1.15
    # Stays of half a context and of two tokens, and what stands in them: a stay is not read less often because it will be long.
    size = [np.diff(np.append(unit_starts(kind), len(kind))) for kind in kinds[160:]]
    first = [one[unit_starts(kind)] for kind, one in zip(kinds[160:], seen[160:], strict=True)]
    sizes, firsts = np.concatenate(size), np.concatenate(first)
    assert 0.9 < firsts[sizes > 50].mean() / firsts[sizes < 20].mean() < 1.1
    assert 512 - 128 < np.mean(real) < 512 + 64


def test_what_comes_after_a_window_is_shown_on_its_clock(tmp_path: Path) -> None:
    vocabulary = toy_vocabulary()
    long = toy_histories(vocabulary, 12, units=(20, 260))
    store = TokenStore(save_store(tmp_path / "timeline", vocabulary, {"train": long}))
    loader, blind = (Loader(store, "train", tokens_per_batch=256, context=64, seed=0, ahead=ahead) for ahead in (True, False))
    ended, cut = 0, 0
    for step in range(loader.batches_per_epoch):
        batch, width = loader.batch(step), loader.batch(step).token_id.shape[1]
        other = blind.batch(step)
        assert torch.equal(batch.token_id, other.token_id)
        assert not len(other.ahead_token)
        for row, history in enumerate(loader.subjects(step)):
            length = int((batch.segment_id[row] > 0).sum())
            after = batch.ahead_place == row * width + length - 1
            token, age = batch.ahead_token[after].numpy(), batch.ahead_age_minutes[after].numpy()
            whole = long.history(int(history))
            tail, ages = long.token_id[whole], long.age_minutes[whole].astype(np.int64)
            if not len(token):
                assert batch.censor_gap_days[row, length - 1] == long.censor_gap_days[history]
                continue
            assert batch.censor_gap_days[row, length - 1] == -1
            reached = token[-1] == 0
            real = len(token) - int(reached)
            if reached:
                ended, stop = ended + 1, len(tail) - real  # where the window was cut
                np.testing.assert_array_equal(token[:real], tail[stop:])
                shift = int(batch.age_minutes[row, length - 1]) - int(ages[stop - 1])
                np.testing.assert_array_equal(age[:real], ages[stop:] + shift)
                assert age[-1] == age[-2] + max(int(long.censor_gap_days[history]), 0) * 1440
            else:
                cut += 1
                assert real == 8 * 64
    assert min(ended, cut) > 0


@pytest.mark.parametrize(("units", "per_unit"), [((40, 60), 4), ((2, 4), 120)])
def test_windows_of_long_histories_are_sentences_with_their_own_prompt(tmp_path: Path, units: tuple[int, int], per_unit: int) -> None:
    vocabulary = toy_vocabulary()
    long = toy_histories(vocabulary, 12, units=units, per_unit=per_unit)
    store = TokenStore(save_store(tmp_path / "timeline", vocabulary, {"train": long}))
    loader = Loader(store, "train", tokens_per_batch=256, context=64, seed=0)
    grammar, at_start, resumed = Grammar(vocabulary), 0, 0
    for step in range(6 * loader.batches_per_epoch):
        batch = loader.batch(step)
        assert batch.token_id.shape[1] <= 64
        state, age = grammar.follow(batch.token_id.numpy())
        assert (state.phase >= 0).all(), "a sentence of the grammar"
        np.testing.assert_array_equal(age, batch.age_minutes.numpy())
        for row, history in enumerate(loader.subjects(step)):
            tokens = batch.token_id[row][batch.segment_id[row] > 0].numpy()
            whole = long.token_id[long.history(int(history))]
            kind = vocabulary.kind[tokens]
            targets = (batch.target[row] != IGNORE).nonzero()
            first = int(targets[0]) if len(targets) else len(tokens) - 1  # a last unit of one event: the censored gap alone
            from_start = np.array_equal(tokens, whole[: len(tokens)])
            if from_start:
                assert first == 0
            elif kind[7] == Kind.VISIT_RESUME:
                resumed += 1
                assert first == 9 + (kind[10] == Kind.IN_VISIT_HOURS)
            else:
                assert first == 7
            at_start += from_start
            censor = int(batch.censor_gap_days[row].max())
            ends = len(whole) - len(tokens) if from_start else 0
            assert censor == -1 or (censor == long.censor_gap_days[history] and ends == 0 and tokens[-1] == whole[-1])
    assert at_start > 10
    assert resumed > 10


def test_store_of_nothing_can_be_opened(tmp_path: Path) -> None:
    vocabulary = toy_vocabulary()
    empty = toy_histories(vocabulary, 1).subset(np.zeros(0, dtype=np.int64))
    store = TokenStore(save_store(tmp_path / "empty", vocabulary, {"train": empty}))
    assert len(store) == 0
    assert not len(store.indices("train"))
