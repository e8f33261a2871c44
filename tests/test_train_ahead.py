"""Batches made ahead of time are those that would have been made in time."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cehrxgpt.store.batch import PackedBatch
from cehrxgpt.store.format import TokenStore
from cehrxgpt.store.loader import Loader
from cehrxgpt.train.ahead import Ahead
from toy_store import toy_store


@pytest.mark.parametrize("ahead_of_time", [False, True])
def test_batches_are_the_same_and_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead_of_time: bool) -> None:
    monkeypatch.setattr(PackedBatch, "pinned", lambda batch: replace(batch))  # there is no accelerator here
    store = TokenStore(toy_store(tmp_path / "store"))
    made_in: list[str] = []
    loader, other = (Loader(store, "train", tokens_per_batch=256, context=128, seed=0) for _ in range(2))

    def make(number: int) -> PackedBatch:
        made_in.append(threading.current_thread().name)
        return loader.batch(number)

    ahead = Ahead(make, pinned=ahead_of_time)
    for step in range(2 * loader.batches_per_epoch):
        numbers = range(2 * step, 2 * step + 2)
        for number, batch in zip(numbers, ahead(numbers, range(2 * step + 2, 2 * step + 4)), strict=True):
            assert (batch.token_id == other.batch(number).token_id).all()
    # A run that goes on elsewhere than expected is served all the same.
    assert (ahead([1], [2])[0].token_id == other.batch(1).token_id).all()
    ahead.close()
    meanwhile = sum(name.startswith("batches") for name in made_in)
    assert meanwhile > len(made_in) // 2 if ahead_of_time else meanwhile == 0


def test_what_goes_wrong_in_the_thread_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(number: int) -> PackedBatch:
        raise ValueError(f"batch {number}")

    ahead = Ahead(make, pinned=True)
    with pytest.raises(ValueError, match="batch 0"):
        ahead([0], [1])
    ahead.close()
