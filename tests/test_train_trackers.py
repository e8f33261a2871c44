"""What is shown elsewhere while a model trains: losses, rates and speeds, and never a subject."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cehrxgpt.config import from_dict
from cehrxgpt.errors import ConfigError
from cehrxgpt.train import TrainConfig, pretrain, trackers
from cehrxgpt.train import trainer as trainer_module
from toy_store import toy_store
from train_samples import SMALL, Stop, lines, stop_at


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("trackers") / "timeline", train=50, tuning=12, days=61)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer_module, "matmul_rate", lambda *_: 1e11)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator").EventAccumulator(str(folder))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def test_tensorboard_has_the_figures_of_the_log_also_after_an_interruption(store: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "model", replace(SMALL, checkpoint_minutes=1e-9, steps=8), progress=stop_at(6))
    (tmp_path / ".model.training" / "step-00000006" / "state.json").unlink()
    pretrain(store, tmp_path / "model", replace(SMALL, steps=8), resume=True)
    log = lines(tmp_path / "model")
    found = curves(tmp_path / "tensorboard" / "model")
    for kind, name, value in (
        ("train", "train/loss/next_token", lambda line: line["loss"]["next_token"]),
        ("train", "train/learning_rate", lambda line: line["learning_rate"]),
        ("tuning", "tuning/tuning_loss", lambda line: line["tuning_loss"]),
    ):
        expected = [(line["step"], pytest.approx(value(line), rel=1e-6)) for line in log if line["kind"] == kind]
        assert found[name] == expected, "each step once, whatever was done twice"
    assert {"train/tokens_per_second", "train/gradient_norm", "train/mfu", "train/skipped_steps"} <= set(found)
    assert not list((tmp_path / "model").glob("*tfevents*")), "a model folder is for sharing"


def test_figures_are_numbers_of_measurements_alone() -> None:
    line = {"kind": "train", "step": 3, "loss": {"a": 1.5, "b": None}, "rate": 2, "best": True, "bad": float("nan"), "word": "x"}
    assert trackers.figures(line) == {"train/loss/a": 1.5, "train/rate": 2.0}
    assert trackers.figures({"kind": "skipped", "step": 3, "subjects": [17], "count": 1}) == {}


def test_no_tracker_where_none_is_wanted_or_there(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrain(store, tmp_path / "none", replace(SMALL, trackers=[], steps=1))
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    pretrain(store, tmp_path / "absent", replace(SMALL, steps=1))
    assert not (tmp_path / "tensorboard").exists()
    with pytest.raises(
        ConfigError, match=r"trackers: tensorboard is not installed; install it \(pip install tensorboard\) or leave it out"
    ) as caught:
        pretrain(store, tmp_path / "asked", replace(SMALL, trackers=["tensorboard"], steps=1))
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"expected 'tensorboard' \| 'wandb' \| 'mlflow', found 'weights'"):
        from_dict(TrainConfig, {"trackers": ["weights"]}, where="recipe.yaml")


class _Run:
    """A stand-in for a run of W&B or MLflow."""

    def __init__(self) -> None:
        self.logged: list[tuple[dict[str, float], int]] = []
        self.finished = 0

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((values, step))

    def finish(self) -> None:
        self.finished += 1


def test_wandb_and_mlflow_by_name(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("accelerate").PartialState._reset_state()  # as in a fresh process
    run, asked = _Run(), {}
    wandb, mlflow = ModuleType("wandb"), ModuleType("mlflow")
    for module in (wandb, mlflow):
        module.__spec__ = trackers.importlib.machinery.ModuleSpec(module.__name__, None)
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def init(**options: Any) -> _Run:
        asked.update(options)
        return run

    wandb.init = init  # type: ignore[attr-defined]
    metrics: list[tuple[dict[str, float], int]] = []
    mlflow.search_experiments = lambda filter_string: []  # type: ignore[attr-defined]
    mlflow.create_experiment = lambda **options: "1"  # type: ignore[attr-defined]
    mlflow.start_run = lambda **options: run  # type: ignore[attr-defined]
    mlflow.log_metrics = lambda values, step: metrics.append((values, step))  # type: ignore[attr-defined]
    mlflow.end_run = run.finish  # type: ignore[attr-defined]
    pretrain(store, tmp_path / "model", replace(SMALL, trackers=["wandb", "mlflow", "wandb"], steps=2))
    assert run.logged == metrics
    assert [step for values, step in run.logged if "train/loss/next_token" in values] == [1, 2]
    assert run.finished == 2
    assert asked["project"] == "cehrxgpt"
    assert asked["name"] == "model"
    assert asked["settings"]["console"] == "off", "what is printed stays here"
