"""A training that was cut off anywhere goes on as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.errors import MismatchError, OutputExistsError, StorageError
from cehrxgpt.train import TrainConfig, checkpoint, journal, loop, pretrain
from cehrxgpt.train import trainer as trainer_module
from cehrxgpt.train.signals import Interruption
from toy_store import toy_store, toy_vocabulary
from train_samples import EVERY, SMALL, Stop, lines, register_toy_age, same, stop_at, weights


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("train") / "timeline", train=50, tuning=12, vocabulary=toy_vocabulary(days=61, labs=(2, 3)))


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    register_toy_age()
    monkeypatch.setattr(trainer_module, "matmul_rate", lambda *_: 1e11)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resumed_run_equals_the_whole_one_bit_for_bit(store: Path, tmp_path: Path, optimizer: str) -> None:
    settings = from_dict(TrainConfig, {**to_dict(SMALL), "optimizer": optimizer, "objectives": EVERY}, where="test")
    whole = pretrain(store, tmp_path / "whole", settings)
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "parts", settings, progress=stop_at(5))
    assert not (tmp_path / "parts").exists(), "a model appears when it is finished"
    with pytest.raises(OutputExistsError, match=r"interrupted training stands at step 5.*--resume"):
        pretrain(store, tmp_path / "parts", settings)
    parts = pretrain(store, tmp_path / "parts", settings, resume=True)
    assert parts.resumed_from == 5
    assert parts.tokens_seen == whole.tokens_seen
    assert parts.tuning_loss == whole.tuning_loss
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    steady = [
        [{k: line[k] for k in line if "seconds" not in k and k not in ("mfu", "tokens_per_second")} for line in lines(tmp_path / name)]
        for name in ("whole", "parts")
    ]
    assert steady[0] == steady[1]


def test_kill_is_survived(store: Path, tmp_path: Path) -> None:
    code = f"""
import time, torch
torch.set_num_threads({torch.get_num_threads()})
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.train import TrainConfig, loop, trainer
trainer.matmul_rate = lambda *_: 1e11
def slow(done, total, what):
    print(done, flush=True)
    time.sleep(0.2)
loop.pretrain({str(store)!r}, {str(tmp_path / "killed")!r}, from_dict(TrainConfig, {to_dict(SMALL)!r}, where="test"), progress=slow)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "4":
            assert process.poll() is None
        os.kill(process.pid, signal.SIGKILL)
    summary = pretrain(store, tmp_path / "killed", SMALL, resume=True)
    assert summary.resumed_from is not None
    assert summary.resumed_from >= 4
    pretrain(store, tmp_path / "whole", SMALL)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "no state", "no counters", "another step"])
def test_damaged_newest_checkpoint_falls_back_to_the_one_before(store: Path, tmp_path: Path, damage: str) -> None:
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "model", SMALL, progress=stop_at(6))
    folder = checkpoint.training_folder(tmp_path / "model")
    assert checkpoint.steps_there(folder) == [6, 5]
    newest = folder / "step-00000006"
    data = bytearray((newest / checkpoint.OPTIMIZER).read_bytes())
    if damage == "truncate":
        (newest / checkpoint.OPTIMIZER).write_bytes(data[: len(data) // 2])
    elif damage == "flip":
        data[-1] ^= 1
        (newest / checkpoint.OPTIMIZER).write_bytes(data)
    elif damage == "no state":
        (newest / checkpoint.STATE_FILE).write_text('{"step": 6')
    else:
        state = json.loads((newest / checkpoint.STATE_FILE).read_text())
        changed = {name: value for name, value in state.items() if name != "counters"} if damage == "no counters" else {**state, "step": 7}
        (newest / checkpoint.STATE_FILE).write_text(json.dumps(changed))
    said: list[str] = []
    summary = pretrain(store, tmp_path / "model", SMALL, resume=True, say=said.append)
    assert said == ["the checkpoint of step 6 is damaged; going on from step 5"]
    assert (summary.resumed_from, summary.damaged_checkpoints) == (5, [6])
    assert [line["damaged_checkpoints"] for line in lines(tmp_path / "model") if line["kind"] == "resumed"] == [[6]]
    pretrain(store, tmp_path / "whole", SMALL)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "model"))


def test_no_checkpoint_is_whole(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "model", SMALL, progress=stop_at(2))
    for path in checkpoint.training_folder(tmp_path / "model").glob("step-*"):
        (path / checkpoint.WEIGHTS).write_bytes(b"")
    said: list[str] = []
    summary = pretrain(store, tmp_path / "model", SMALL, steps=3, resume=True, say=said.append)
    assert said == ["the checkpoint of step 2, 1 is damaged; none is whole, beginning anew"]
    assert (summary.steps, summary.resumed_from, summary.damaged_checkpoints) == (3, None, [2, 1])


def test_damaged_checkpoints_are_set_aside_and_not_counted_among_those_kept(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "model", SMALL, progress=stop_at(3))
    folder = checkpoint.training_folder(tmp_path / "model")
    for step in (8, 9):
        shutil.copytree(folder / "step-00000003", folder / f"step-{step:08d}")
        (folder / f"step-{step:08d}" / checkpoint.WEIGHTS).write_bytes(b"")
    said: list[str] = []
    for last in (3, 5):  # the first is cut off before it saves
        with pytest.raises(Stop):
            pretrain(store, tmp_path / "model", SMALL, resume=True, progress=stop_at(last + 1), say=said.append)
        assert checkpoint.steps_there(folder) == [last + 1, last]
        assert checkpoint.steps_there(folder, "damaged") == [9, 8]
    assert said == ["the checkpoint of step 9, 8 is damaged; going on from step 3"], "it is said once"
    assert pretrain(store, tmp_path / "model", SMALL, resume=True).damaged_checkpoints == [9, 8]
    assert not folder.exists()


def test_what_is_damaged_is_said_again_until_a_checkpoint_remembers_it(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "model", SMALL, progress=stop_at(2))
    folder = checkpoint.training_folder(tmp_path / "model")
    for step in (1, 2):
        (folder / f"step-{step:08d}" / checkpoint.WEIGHTS).write_bytes(b"")
    said: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_step", lambda self: _stop())
        for _ in range(2):
            with pytest.raises(Stop):
                pretrain(store, tmp_path / "model", SMALL, resume=True, say=said.append)
    summary = pretrain(store, tmp_path / "model", SMALL, steps=3, resume=True, say=said.append)
    assert said == ["the checkpoint of step 2, 1 is damaged; none is whole, beginning anew"] * 3
    assert summary.damaged_checkpoints == [2, 1]
    assert [line["kind"] for line in lines(tmp_path / "model")].count("resumed") == 1


def _stop() -> None:
    raise Stop


KILLED_WHILE_SAVING = """
import os, signal, sys
from cehrxgpt.config import from_dict
from cehrxgpt.train import TrainConfig, checkpoint, loop, trainer
from train_samples import register_toy_age
register_toy_age()
trainer.matmul_rate = lambda *_: 1e11
store, folder, settings, points = {arguments!r}
config = from_dict(TrainConfig, settings, where="test")

def dies_at(name, call, module):
    original = getattr(module, name)
    calls = [0]
    def dying(*arguments, **options):
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)
    setattr(module, name, dying)

for index, (name, call) in enumerate(points):
    child = os.fork()
    if child == 0:  # this process has computed nothing yet, so that a copy of it can
        dies_at(name, call, os if name == "rename" else checkpoint.shutil if name == "rmtree" else checkpoint)
        loop.pretrain(store, f"{{folder}}/{{index}}", config)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), status
"""


def test_kill_during_the_save_itself(store: Path, tmp_path: Path) -> None:
    """Between any two files of a checkpoint, before and after its renaming, and while the old ones are removed."""
    config = from_dict(TrainConfig, {**to_dict(SMALL), "objectives": EVERY, "steps": 5}, where="test")
    points = [("save_file", 2), ("_flush", 9), ("rename", 4), ("rmtree", 8)]
    code = KILLED_WHILE_SAVING.format(arguments=(str(store), str(tmp_path), to_dict(config), points))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    pretrain(store, tmp_path / "whole", config)
    for index, point in enumerate(points):
        left = list(checkpoint.training_folder(tmp_path / str(index)).glob(".*.partial"))
        assert bool(left) == (point[0] != "rmtree"), point
        said: list[str] = []
        pretrain(store, tmp_path / str(index), config, resume=True, say=said.append)
        assert same(weights(tmp_path / "whole"), weights(tmp_path / str(index))), point
        assert _losses(tmp_path / "whole") == _losses(tmp_path / str(index)), point
        assert not said, "a checkpoint that never got its name is no damaged one"


def _losses(folder: Path) -> list[object]:
    return [line.get("loss") or line["tuning_loss"] for line in lines(folder) if line["kind"] in ("train", "tuning")]


# -- being told to stop ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_saves_and_says_where_it_stands(store: Path, tmp_path: Path, number: signal.Signals) -> None:
    config = from_dict(TrainConfig, {**to_dict(SMALL), "objectives": EVERY, "checkpoint_minutes": 60.0}, where="test")
    before = signal.getsignal(number)

    def progress(done: int, total: int, what: str) -> None:
        if done == 4:
            signal.raise_signal(number)

    with pytest.raises(KeyboardInterrupt, match=r"training stands at step 5 of 10, saved; --resume goes on there"):
        pretrain(store, tmp_path / "parts", config, progress=progress)
    assert signal.getsignal(number) is before
    assert checkpoint.steps_there(checkpoint.training_folder(tmp_path / "parts")) == [5]
    summary = pretrain(store, tmp_path / "parts", config, resume=True)
    assert summary.resumed_from == 5
    pretrain(store, tmp_path / "whole", config)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    assert _losses(tmp_path / "whole") == _losses(tmp_path / "parts")


def test_a_signal_while_the_tuning_split_is_looked_at_for_the_last_time(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = replace(SMALL, steps=7, evaluate_every=4, log_every=5, checkpoint_minutes=60.0)
    pretrain(store, tmp_path / "whole", config)
    look = trainer_module.Trainer._evaluate

    def interrupted(self: trainer_module.Trainer) -> None:
        if self.counters.step == 7:
            signal.raise_signal(signal.SIGTERM)
        look(self)

    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.Trainer, "_evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt, match=r"training stands at step 7 of 7, saved; --resume goes on there"):
            pretrain(store, tmp_path / "parts", config)
    assert checkpoint.steps_there(checkpoint.training_folder(tmp_path / "parts")) == [7]
    assert_goes_on_as(tmp_path / "whole", store, tmp_path / "parts", config)


@pytest.mark.parametrize("signal_first", [True, False])
def test_nothing_is_lost_while_the_model_is_written(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signal_first: bool) -> None:
    config = replace(SMALL, steps=7, evaluate_every=4, log_every=5, checkpoint_minutes=60.0)
    pretrain(store, tmp_path / "whole", config)

    def cut(*_: object) -> None:
        raise KeyboardInterrupt if signal_first else Stop

    for _ in range(2):  # and again, by a run that only writes
        with monkeypatch.context() as patch:
            patch.setattr(loop, "save_heads", cut)
            with pytest.raises(KeyboardInterrupt if signal_first else Stop) as caught:
                pretrain(store, tmp_path / "parts", config, resume=True)
        assert not signal_first or str(caught.value) == "training is done, all 7 steps, and saved; --resume writes the model"
        assert not (tmp_path / "parts").exists()
    assert_goes_on_as(tmp_path / "whole", store, tmp_path / "parts", config)


def assert_goes_on_as(whole: Path, store: Path, parts: Path, config: TrainConfig) -> None:
    summary = pretrain(store, parts, config, resume=True)
    assert summary.resumed_from == 7
    assert same(weights(whole), weights(parts))
    assert [(line["kind"], line["step"]) for line in lines(parts)] == [(line["kind"], line["step"]) for line in lines(whole)]
    assert _losses(whole) == _losses(parts)


def test_a_second_control_c_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cehrxgpt.train.signals.PATIENCE_SECONDS", 0.02)
    with Interruption() as interruption:
        assert not interruption.asked
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # a launcher repeats what the terminal sent
        signal.raise_signal(signal.SIGTERM)
        assert interruption.asked
        time.sleep(0.03)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_signals_are_left_alone_outside_of_the_main_thread() -> None:
    found = []

    def enter() -> None:
        with Interruption() as interruption:
            found.append((signal.getsignal(signal.SIGTERM), interruption.asked))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [(signal.getsignal(signal.SIGTERM), False)]


def test_the_verb_exits_with_130_and_goes_on_with_resume(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({**to_dict(SMALL), "steps": 100_000, "checkpoint_minutes": 60.0}))
    verb = [sys.executable, "-m", "cehrxgpt.cli", "pretrain", str(store), "--recipe", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "model")]
    log = checkpoint.training_folder(tmp_path / "model") / "train.jsonl"
    with subprocess.Popen(verb, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not log.exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    last = errors.strip().splitlines()[-1]
    assert last.startswith("interrupted; training stands at step ")
    assert last.endswith("of 100,000, saved; --resume goes on there")
    step = int(last.split("step ")[1].split(" of")[0].replace(",", ""))
    assert checkpoint.steps_there(log.parent) == [step]
    refused = subprocess.run(verb, capture_output=True, text=True, check=False)
    assert refused.returncode == 2
    assert "--resume" in refused.stderr


def test_resume_refuses_other_settings_and_leaves_a_finished_model_alone(store: Path, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        pretrain(store, tmp_path / "model", SMALL, progress=stop_at(2))
    other = replace(SMALL, learning_rate=1e-4)
    with pytest.raises(MismatchError, match="other settings"):
        pretrain(store, tmp_path / "model", other, resume=True)
    finished = pretrain(store, tmp_path / "model", other, resume=True, force=True)
    assert finished.resumed_from is None
    written = (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns
    assert pretrain(store, tmp_path / "model", other, resume=True) == finished
    assert (tmp_path / "model" / "model.safetensors").stat().st_mtime_ns == written
    with pytest.raises(OutputExistsError, match="--force"):
        pretrain(store, tmp_path / "model", SMALL, resume=True)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"")
    assert pretrain(store, tmp_path / "model", other, resume=True, force=True).steps == 10, "a model that was damaged is made again"
    assert len(weights(tmp_path / "model"))


def test_full_disk_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = {"weights.safetensors": {"w": torch.ones(3)}}
    checkpoint.save(tmp_path, 1, tensors, {"key": "k"})

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(StorageError, match=r"checkpoint of step 2.*No space left.*before is kept"):
        checkpoint.save(tmp_path, 2, tensors, {"key": "k"})
    found, damaged = checkpoint.newest(tmp_path)
    assert found is not None
    assert (found.step, damaged) == (1, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001"]
    with pytest.raises(StorageError, match="there is none before it"):
        checkpoint.save(tmp_path / "other", 1, tensors, {"key": "k"})


def test_a_disk_that_is_full_or_read_only_is_one_line_wherever_it_shows(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    def full_tensors(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    places = [
        (journal, "_plain", full, r"could not write .*train\.jsonl: No space left on device"),
        (journal.os, "replace", full, r"could not write .*train\.jsonl: No space left"),
        (journal.os, "fsync", full, "No space left"),
        (Path, "mkdir", full, r"could not prepare the folder of checkpoints .*: No space left.*--resume goes on"),
        (loop, "save_model", full_tensors, "could not write .*model: .*No space left.*nothing was left behind"),
    ]
    for module, name, broken, message in places:
        with monkeypatch.context() as patch:
            patch.setattr(module, name, broken)
            with pytest.raises(StorageError, match=message) as caught:
                pretrain(store, tmp_path / "model", replace(SMALL, trackers=[]), steps=2, force=True)
        assert "\n" not in str(caught.value)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.shutil, "rmtree", full)
        with pytest.raises(StorageError, match="could not remove the former checkpoints"):
            pretrain(store, tmp_path / "model", replace(SMALL, seed=1), steps=2, force=True)


def test_the_log_is_as_long_as_it_was_at_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    written = b'{"step": 1}\n{"step": 2, "kind": "train"}\n'
    path.write_bytes(written + b'{"step": 2, "kind": "tuning"}\n{"step": 3}\n')
    journal.trim_log(path, 2, len(written))
    assert path.read_bytes() == written
    path.write_bytes(written + b"\xff\xfe no text\n\0\0")
    journal.trim_log(path, 2)
    assert path.read_bytes() == written


def test_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    journal.trim_log(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
