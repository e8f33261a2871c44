"""Compiled blocks and blocks that compute twice learn what plain ones learn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cehrxgpt.config import from_dict
from cehrxgpt.errors import ConfigError
from cehrxgpt.train import TrainConfig, blocks, pretrain
from cehrxgpt.train import trainer as trainer_module
from toy_store import toy_store, toy_vocabulary
from train_samples import EVERY, SMALL, lines, register_toy_age, same, weights


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("blocks") / "timeline", train=50, tuning=12, vocabulary=toy_vocabulary(days=61, labs=(2, 3)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    register_toy_age()
    monkeypatch.setattr(trainer_module, "matmul_rate", lambda *_: 1e11)


def train(store: Path, out: Path, **settings: Any) -> list[Any]:
    """The losses of a short training of two blocks."""
    config = replace(SMALL, model={**SMALL.model, "layers": 2}, objectives=EVERY, trackers=[], steps=4, **settings)
    pretrain(store, out, config)
    return [line.get("loss") or line["tuning"] for line in lines(out) if line["kind"] in ("train", "tuning")]


@pytest.mark.parametrize("packing", ["rows", "packed"])
def test_activation_checkpointing_changes_nothing(store: Path, tmp_path: Path, packing: str) -> None:
    plain = train(store, tmp_path / "plain", packing=packing)
    assert train(store, tmp_path / "twice", packing=packing, activation_checkpointing=True) == plain
    assert same(weights(tmp_path / "plain"), weights(tmp_path / "twice"))


def test_activation_checkpointing_keeps_less(store: Path, tmp_path: Path) -> None:
    kept = {}
    for checkpointed in (False, True):
        config = replace(SMALL, model={**SMALL.model, "layers": 6}, activation_checkpointing=checkpointed)
        trainer = trainer_module.Trainer(trainer_module.TokenStore(store), config, tmp_path / str(checkpointed), "key")
        found: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor, found=found: found.append(tensor.numel()) or tensor, lambda tensor: tensor):
            trainer._loss(trainer.loader.batch(0), {"next_token": 1})
        kept[checkpointed] = sum(found)
    assert kept[True] < 0.5 * kept[False]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler warns of itself
@pytest.mark.parametrize(("packing", "checkpointed"), [("rows", False), ("rows", True), ("packed", False)])
def test_compiled_blocks_learn_the_same(store: Path, tmp_path: Path, packing: str, checkpointed: bool) -> None:
    plain = train(store, tmp_path / "plain", packing=packing)
    compiled = train(store, tmp_path / "compiled", packing=packing, compile=True, activation_checkpointing=checkpointed)
    for mine, theirs in zip(compiled, plain, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-5)
    left, right = weights(tmp_path / "plain"), weights(tmp_path / "compiled")
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=2e-5)


def test_when_blocks_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(blocks.shutil, "which", lambda name: "/usr/bin/g++")
    monkeypatch.setattr(blocks.importlib.util, "find_spec", lambda name: object())
    assert [blocks.should_compile(setting, device) for setting in ("auto", True, False) for device in (cpu, cuda)] == [False, True, True, True] + [
        False
    ] * 2
    monkeypatch.setattr(blocks.shutil, "which", lambda name: None)
    assert not blocks.should_compile("auto", cuda)
    with pytest.raises(ConfigError, match="needs a C\\+\\+ compiler"):
        blocks.should_compile(True, cpu)


def test_how_a_recipe_says_it() -> None:
    for given in (True, False, "auto"):
        assert from_dict(TrainConfig, {"compile": given}, where="recipe.yaml").compile == given
    with pytest.raises(ConfigError, match="expected true or false"):
        from_dict(TrainConfig, {"compile": "always"}, where="recipe.yaml")
