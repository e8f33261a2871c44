"""Two windows of one patient that share no event: what the contrastive objective is trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cehrxgpt.store.batch import PAIRS_PER_GROUP
from cehrxgpt.store.crop import REOPENING, SHORTEST_PART, choose_pair, unit_starts
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Loader
from cehrxgpt.store.packing import generator
from cehrxgpt.timeline.kinds import PROMPT_LENGTH, TIME_KINDS, Kind
from toy_store import toy_histories, toy_store, toy_vocabulary


@given(st.integers(0, 10_000), st.sampled_from([28, 40, 64, 300]))
@settings(deadline=None, max_examples=40)
def test_parts_are_units_apart_and_fit(seed: int, context: int) -> None:
    vocabulary = toy_vocabulary()
    kind = vocabulary.kind[toy_histories(vocabulary, 1, seed=seed, units=(1, 25)).token_id]
    pair = choose_pair(kind, context, generator(seed))
    if pair is None:
        starts = unit_starts(kind)
        assert not any(len(kind) - start >= SHORTEST_PART and start - 2 - PROMPT_LENGTH >= SHORTEST_PART for start in starts[1:])
        return
    before, after = pair
    assert before.start in (0, *range(PROMPT_LENGTH, before.stop))
    assert before.stop < after.start
    between = kind[before.stop : after.start]
    assert np.isin(between, [int(one) for one in TIME_KINDS]).all()
    assert after.start in unit_starts(kind)
    assert after.stop <= len(kind)
    for part in pair:
        assert 0 < part.stop - part.start <= context


@given(st.integers(0, 10_000), st.sampled_from([20, 24, 40, 64]))
@settings(deadline=None, max_examples=60)
def test_windows_fit_whatever_must_not_be_parted(seed: int, context: int) -> None:
    """Labs stand beside their bins, so the cut moves: to a place between, and never to where prompt and re-opened visit have no room."""
    vocabulary = toy_vocabulary(codes=1, labs=(2, 3, 5))
    kind = vocabulary.kind[toy_histories(vocabulary, 1, seed=seed, units=(2, 6), per_unit=40).token_id]
    pair = choose_pair(kind, context, generator(seed))
    for part in pair or ():
        assert kind[part.start] != Kind.BIN
        assert 0 < part.stop - part.start <= (context - PROMPT_LENGTH - REOPENING - 1 if part.start else context)


@pytest.mark.parametrize("packed", [False, True])
def test_pairs_are_numbered_within_their_batch(tmp_path: Path, packed: bool) -> None:
    store = TokenStore(toy_store(tmp_path / "store", train=60, units=(2, 9)))
    loader = Loader(store, "train", tokens_per_batch=512, context=96, seed=0, packed=packed, pair_share=0.5)
    plain = Loader(store, "train", tokens_per_batch=512, context=96, seed=0, packed=packed)
    share = []
    for step in range(2 * loader.batches_per_epoch):
        batch = loader.batch(step)
        numbers, times = batch.pair[batch.pair >= 0].unique(return_counts=True)
        assert (times == 2).all()
        assert (numbers // PAIRS_PER_GROUP == step).all()
        # Only at the last token of a window, and without a target there.
        assert (batch.target[batch.pair >= 0] < 0).all()
        share.append(len(numbers) / len(loader.subjects(step)))
        assert (plain.batch(step).pair < 0).all()
        assert (plain.subjects(step) == loader.subjects(step)).all()
    assert 0.2 < np.mean(share) < 0.55
    again = Loader(store, "train", tokens_per_batch=512, context=96, seed=0, packed=packed, pair_share=0.5).batch(1)
    assert (again.token_id == loader.batch(1).token_id).all()
