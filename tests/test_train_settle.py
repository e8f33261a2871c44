"""The last part of a training, in which the decoder rests and the heads of the objectives go on."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.errors import ConfigError
from cehrxgpt.train import TrainConfig, pretrain
from cehrxgpt.train import trainer as trainer_module
from cehrxgpt.train.schedule import learning_rate, settles
from toy_store import toy_store, toy_vocabulary
from train_samples import EVERY, SMALL, Stop, lines, register_toy_age, same, stop_at, weights

register_toy_age()
SETTLING = from_dict(TrainConfig, {**to_dict(SMALL), "objectives": EVERY, "settle_share": 0.4, "weight_decay": 0.1, "trackers": []}, where="test")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("settle") / "timeline", train=50, tuning=12, vocabulary=toy_vocabulary(days=61, labs=(2, 3)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "matmul_rate", lambda *_: 1e11)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_before_is_that_of_a_shorter_run(schedule: str) -> None:
    values = {"schedule": schedule, "learning_rate": 3.0, "warmup_share": 0.1, "final_share": 0.1}
    short = from_dict(TrainConfig, values, where="test")
    config = replace(short, settle_share=0.2)
    for step in range(800):
        assert not settles(step / 1000, config)
        assert learning_rate(step / 1000, config) == pytest.approx(learning_rate(step / 800, short))
    assert all(settles(step / 1000, config) for step in range(800, 1001))
    rates = [learning_rate(step / 1000, config) for step in range(800, 1001)]
    assert (rates[0], rates[100], rates[-1]) == (pytest.approx(1.0), pytest.approx(0.5), 0)
    assert all(later < earlier for earlier, later in itertools.pairwise(rates))


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_decoder_rests_and_the_heads_go_on(store: Path, tmp_path: Path, optimizer: str) -> None:
    """Not even weight decay or momentum moves it."""
    trainer = trainer_module.Trainer(trainer_module.TokenStore(store), replace(SETTLING, optimizer=optimizer), tmp_path / "t", "key")
    seen = [{name: tensor.clone() for name, tensor in trainer.module.state_dict().items()}]
    trainer.progress = lambda *_: seen.append({name: tensor.clone() for name, tensor in trainer.module.state_dict().items()})
    trainer.run()
    assert len(seen) == 11
    for step, (before, after) in enumerate(itertools.pairwise(seen)):
        moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
        assert moved == ({"decoder", "objectives"} if step < 6 else {"objectives"}), step
    assert 0 < trainer.counters.settling_tokens < trainer.counters.tokens_seen


def test_the_best_weights_settle_and_patience_waits(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuning loss is made to rise after the third step: its weights are those whose heads go on, to the last step."""
    original = trainer_module.Trainer._judge

    def judge(self: trainer_module.Trainer, loss: float) -> None:
        original(self, loss if self.counters.step <= 3 else loss + self.counters.step)

    monkeypatch.setattr(trainer_module.Trainer, "_judge", judge)
    trainer = trainer_module.Trainer(trainer_module.TokenStore(store), replace(SETTLING, evaluate_every=1, patience=5), tmp_path / "t", "key")
    seen = []
    trainer.progress = lambda *_: seen.append(trainer.decoder.embedding.weight.detach().clone())
    summary = trainer.run()
    assert (summary.stop_reason, summary.steps, trainer.counters.settling_from) == ("steps", 10, 6)
    assert not torch.equal(seen[2], seen[5])
    assert all(torch.equal(seen[2], later) for later in seen[6:])
    assert all(parameter.requires_grad for parameter in trainer.decoder.parameters())


def test_what_comes_before_is_a_shorter_run(store: Path, tmp_path: Path) -> None:
    everything = replace(SETTLING, evaluate_every=100)  # the last look alone, and so the last weights
    pretrain(store, tmp_path / "settled", everything)
    pretrain(store, tmp_path / "short", replace(everything, settle_share=0.0), steps=6)
    settled, short = weights(tmp_path / "settled"), weights(tmp_path / "short")
    for name, tensor in settled.items():
        if not name.startswith("heads."):
            torch.testing.assert_close(tensor, short[name], rtol=1e-4, atol=1e-6)
    assert not same(settled, short)
    left, right = ([line["loss"] for line in lines(tmp_path / name) if line["kind"] == "train"] for name in ("settled", "short"))
    assert len(left) == 10
    for mine, theirs in zip(left[:6], right, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)


@pytest.mark.parametrize("step", [4, 6, 8])
def test_resumed_before_at_and_after_its_beginning(store: Path, tmp_path: Path, step: int) -> None:
    whole = pretrain(store, tmp_path / "whole", SETTLING)
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "parts", SETTLING, progress=stop_at(step))
    parts = pretrain(store, tmp_path / "parts", SETTLING, resume=True)
    assert (parts.resumed_from, parts.tuning_loss, parts.tokens_seen) == (step, whole.tuning_loss, whole.tokens_seen)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))


def test_heads_must_be_there(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"settle_share is 0.4, and next_token has no head that could settle: leave it out"):
        pretrain(store, tmp_path / "model", replace(SETTLING, objectives={"next_token": 1.0}))
    assert not (tmp_path / "model").exists()
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match="settle_share"):
            TrainConfig(settle_share=share)
