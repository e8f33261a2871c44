"""Training as a whole: ten steps whose losses are written down, and eight patients learnt by heart."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cehrxgpt.train import TrainConfig, pretrain
from toy_store import save_store, toy_histories, toy_store, toy_vocabulary

GOLDEN = Path(__file__).parent / "golden" / "ten_steps.txt"
ALL = {
    "next_token": 1.0,
    "time_decomposition": 1.0,
    "time_to_visit": 1.0,
    "time_to_event": {"tasks": 12, "pieces": 4, "rank": 8},
    "value": 1.0,
    "contrastive": {"share": 1.0},
    "entropy_penalty": 0.01,
}


def losses(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "train.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def small(**changes: object) -> TrainConfig:
    settings = {
        "model": {"width": 32, "layers": 2, "heads": 4, "kv_heads": 2, "context": 128},
        "tokens_per_batch": 512,
        "precision": "float32",
        "device": "cpu",
        "log_every": 1,
        "learning_rate": 3e-3,
        "seed": 7,
    }
    return TrainConfig(**{**settings, **changes})


def test_ten_steps_have_the_losses_that_were_written_down(tmp_path: Path) -> None:
    """A refactoring must reproduce them. Meant to change? `CEHRXGPT_WRITE_GOLDEN=1 pytest tests/test_train_golden.py` writes them anew."""
    store = toy_store(tmp_path / "store", train=60, units=(2, 8), vocabulary=toy_vocabulary(labs=(2, 3, 5)))
    pretrain(store, tmp_path / "model", small(objectives=ALL), steps=10)
    found = losses(tmp_path / "model")
    assert len(found) == 10
    if os.environ.get("CEHRXGPT_WRITE_GOLDEN"):
        lines = ["  ".join(f"{name} {row[name]:.6f}" for name in ALL) for row in found]
        GOLDEN.write_text("\n".join(lines) + "\n")
    written = [line.split() for line in GOLDEN.read_text().splitlines()]
    expected = [dict(zip(words[::2], map(float, words[1::2]), strict=True)) for words in written]
    for step, (row, golden) in enumerate(zip(found, expected, strict=True), start=1):
        assert row == pytest.approx(golden, rel=1e-3, abs=1e-4), step


def test_eight_patients_are_learnt_by_heart(tmp_path: Path) -> None:
    vocabulary = toy_vocabulary()
    store = save_store(tmp_path / "store", vocabulary, {"train": toy_histories(vocabulary, 8, seed=5, units=(3, 6))})
    shape = {"width": 64, "layers": 2, "heads": 4, "kv_heads": 2, "context": 128}
    pretrain(store, tmp_path / "model", small(model=shape, weight_decay=0.0, log_every=10), steps=150)
    found = [row["next_token"] for row in losses(tmp_path / "model")]
    # What cannot be known stays: which of the eight it is, and how long after the last event an open history was watched.
    assert found[0] > 4
    assert found[-1] < 0.35
