"""Two processes learn what one does: the same losses and the same weights, one log, one checkpoint."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from cehrxgpt import console, launch
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.errors import ConfigError, ElsewhereError, InputError, Interrupted, StorageError
from cehrxgpt.train import TrainConfig, checkpoint, pretrain
from cehrxgpt.train import trainer as trainer_module
from cehrxgpt.train.distributed import Ranks
from cehrxgpt.train.sharded import Layout
from cehrxgpt.train.sharded import read as read_pieces
from toy_store import toy_store, toy_vocabulary
from train_samples import EVERY, SMALL, lines, register_toy_age, weights

SETTINGS: dict[str, Any] = {**to_dict(SMALL), "objectives": EVERY, "accumulate": 4, "steps": 6, "trackers": []}
FSDP: dict[str, Any] = {"settings": {"parallel": "fsdp"}}
JOBS: dict[str, dict[str, Any]] = {
    "ddp": {},
    "undealt": {"settings": {"accumulate": 3}},
    "poison": {"poison": 9},
    "parts": {"signal_at": 2},
    "again": {"out": "parts", "resume": True},
    "there": {"out": "ddp"},
    "fsdp": FSDP,
    "pieces for two": {**FSDP, "stop_at": 3},
    "two again": {**FSDP, "out": "pieces for two", "resume": True},
    "pieces for one": {**FSDP, "stop_at": 3},
}
MORE: dict[str, dict[str, Any]] = {
    "muon": {"settings": {"optimizer": "muon"}},
    "fsdp muon": {"settings": {"parallel": "fsdp", "optimizer": "muon"}},
    "ddp twice": {"settings": {"activation_checkpointing": True}},
    "fsdp twice": {"settings": {"parallel": "fsdp", "activation_checkpointing": True}},
    "settling": {"settings": {"settle_share": 0.5}},
    "fsdp settling": {"settings": {"parallel": "fsdp", "settle_share": 0.5}},
    "fsdp": FSDP,
    "whole for one": {"stop_at": 3},
    "pieces with a hole": {**FSDP, "stop_at": 3},
    "whole then pieces": {"stop_at": 3},
    "pieces after all": {**FSDP, "out": "whole then pieces", "resume": True},
}


def start(store: Path, folder: Path, jobs: dict[str, dict[str, Any]], ranks: int = 2, returncode: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Do the jobs with so many processes; what each rank says of each job."""
    full = [{**job, "out": str(folder / job.get("out", name)), "settings": {**SETTINGS, **job.get("settings", {})}} for name, job in jobs.items()]
    (folder / "jobs.json").write_text(json.dumps(full))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {"PYTHONPATH": here, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks)}
    command = [sys.executable, str(Path(__file__).parent / "ranks_worker.py"), str(store), str(folder / "jobs.json"), str(folder / "results")]
    processes = [
        subprocess.Popen(command, env={**os.environ, **environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(ranks)
    ]
    errors = [process.communicate(timeout=240)[1] for process in processes]
    assert {process.returncode for process in processes} == {returncode}, "\n".join(errors)
    for told in sorted(folder.glob("results.*.threads")):
        threads = json.loads(told.read_text())
        assert threads["before"] or sys.platform != "linux"
        assert not threads["after"], "a thread of the group that outlives the interpreter may end the process with SIGABRT"
    if returncode:
        return {}
    said = [json.loads((folder / f"results.{rank}").read_text()) for rank in range(ranks)]
    return {name: [one[index] for one in said] for index, name in enumerate(jobs)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_store(tmp_path_factory.mktemp("ranks") / "timeline", train=50, tuning=12, vocabulary=toy_vocabulary(days=61, labs=(2, 3)))


@pytest.fixture(scope="module")
def together(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """What two ranks made of `JOBS`."""
    folder = tmp_path_factory.mktemp("together")
    return folder, start(store, folder, JOBS)


@pytest.fixture(scope="module")
def more(store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[dict[str, Any]]]]:
    """What two ranks made of `MORE`."""
    folder = tmp_path_factory.mktemp("more")
    return folder, start(store, folder, MORE)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    register_toy_age()
    monkeypatch.setattr(trainer_module, "matmul_rate", lambda *_: 1e11)


def alone(store: Path, out: Path, **settings: Any) -> Any:
    return pretrain(store, out, from_dict(TrainConfig, {**SETTINGS, **settings}, where="test"))


def assert_same_training(one: Path, other: Path) -> None:
    """The same losses by objective, line by line, and the same weights, as far as float32 tells."""
    for kind, name in (("train", "loss"), ("tuning", "tuning")):
        left, right = ([line[name] for line in lines(folder) if line["kind"] == kind] for folder in (one, other))
        assert len(left) == len(right) > 0
        for mine, theirs in zip(left, right, strict=True):
            assert mine == pytest.approx(theirs, rel=2e-5)
    left, right = weights(one), weights(other)
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=2e-5)


def test_two_ranks_learn_what_one_does(store: Path, tmp_path: Path) -> None:
    said = start(store, tmp_path, {"ddp": {}})
    assert_what_one_does(store, tmp_path, tmp_path / "ddp", said["ddp"])


@pytest.mark.slow
@pytest.mark.parametrize("job", ["ddp", "fsdp"])
def test_so_do_they_among_other_jobs_and_in_pieces(store: Path, tmp_path: Path, together: tuple[Path, Any], job: str) -> None:
    assert_what_one_does(store, tmp_path, together[0] / job, together[1][job])


def assert_what_one_does(store: Path, tmp_path: Path, out: Path, said: list[dict[str, Any]]) -> None:
    single = alone(store, tmp_path / "single")
    assert any(name.startswith("heads.time_to_event") for name in weights(out))
    assert_same_training(tmp_path / "single", out)
    first, second = (one["summary"] for one in said)
    assert (first["ranks"], first["device"], single.ranks) == (2, "cpu", 1)
    for name in ("steps", "tokens_seen", "best_step", "padding_share", "tuning_loss"):
        assert first[name] == second[name] == pytest.approx(getattr(single, name), rel=2e-5)
    assert not checkpoint.training_folder(out).exists(), "checkpoints go when the model is there"


@pytest.mark.slow
@pytest.mark.parametrize("job", ["muon", "fsdp muon", "ddp twice", "fsdp twice"])
def test_so_do_they_with_muon_and_with_blocks_computed_twice(store: Path, tmp_path: Path, more: tuple[Path, Any], job: str) -> None:
    optimizer = "muon" if "muon" in job else "adamw"
    alone(store, tmp_path / "single", optimizer=optimizer)
    assert_same_training(tmp_path / "single", more[0] / job)


@pytest.mark.slow
@pytest.mark.parametrize("job", ["settling", "fsdp settling"])
def test_so_do_they_while_the_decoder_rests(store: Path, tmp_path: Path, more: tuple[Path, Any], job: str) -> None:
    alone(store, tmp_path / "single", settle_share=0.5)
    assert_same_training(tmp_path / "single", more[0] / job)


@pytest.mark.slow
def test_micro_batches_that_cannot_be_dealt_out_are_refused(together: tuple[Path, Any]) -> None:
    for one in together[1]["undealt"]:
        assert one["raised"] == "ConfigError"
        assert "cannot be dealt out to 2 processes; set accumulate: 4 (with tokens_per_batch: 384 a step stays as large)" in one["message"]


@pytest.mark.slow
def test_a_loss_that_is_not_finite_on_one_rank_is_skipped_by_all(store: Path, together: tuple[Path, Any]) -> None:
    folder, said = together
    assert [one["summary"]["skipped_steps"] for one in said["poison"]] == [1, 1]
    (line,) = [line for line in lines(folder / "poison") if line["kind"] == "skipped"]
    trainer = trainer_module.Trainer(trainer_module.TokenStore(store), from_dict(TrainConfig, SETTINGS, where="test"), folder / "unused", "key")
    guilty = trainer.store.histories.subject_id[trainer.loader.subjects(9)]
    assert line == {"kind": "skipped", "step": 3, "what": "loss", "subjects": sorted(guilty.tolist())}
    assert len(said["poison"][0]["said"]) == 1
    assert not said["poison"][1]["said"]


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_and_they_go_on_together(together: tuple[Path, Any]) -> None:
    folder, said = together
    for one in said["parts"]:
        assert one["raised"] == "KeyboardInterrupt"
        assert "training stands at step 3 of 6, saved" in one["message"]
    assert said["again"][0]["summary"]["resumed_from"] == 3
    assert_same_losses_exactly(folder / "ddp", folder / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_fault_that_nobody_catches_ends_the_group_too(store: Path, tmp_path: Path, parallel: str) -> None:
    start(store, tmp_path, {"model": {"settings": {"parallel": parallel}, "fault_at": 2}}, returncode=1)


@pytest.mark.slow
def test_the_first_rank_speaks_for_all(together: tuple[Path, Any]) -> None:
    first, second = together[1]["there"]
    assert first["raised"] == "OutputExistsError"
    assert second["raised"] == "ElsewhereError"
    assert first["message"] == second["message"]


@pytest.mark.slow
def test_one_rank_goes_on_with_what_two_began(store: Path, more: tuple[Path, Any]) -> None:
    """A checkpoint of DDP is the same as one of a single process."""
    folder, _ = more
    summary = pretrain(store, folder / "whole for one", from_dict(TrainConfig, SETTINGS, where="test"), resume=True)
    assert (summary.resumed_from, summary.ranks) == (3, 1)
    assert_same_training(folder / "fsdp", folder / "whole for one")


# -- checkpoints in pieces ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_pieces_go_on_on_as_many_ranks_and_on_one(store: Path, together: tuple[Path, Any]) -> None:
    folder, said = together
    assert said["two again"][0]["summary"]["resumed_from"] == 3
    assert_same_losses_exactly(folder / "fsdp", folder / "pieces for two")
    left = checkpoint.training_folder(folder / "pieces for one") / "step-00000003"
    assert {path.suffix for path in left.iterdir()} == {".safetensors", ".json"}, "no pickles"
    assert {path.name for path in left.glob("weights*")} == {"weights-00000-of-00002.safetensors", "weights-00001-of-00002.safetensors"}
    config = from_dict(TrainConfig, {**SETTINGS, **FSDP["settings"]}, where="test")
    summary = pretrain(store, folder / "pieces for one", config, resume=True)
    assert (summary.resumed_from, summary.ranks) == (3, 1)
    assert_same_training(folder / "fsdp", folder / "pieces for one")


@pytest.mark.slow
def test_what_was_whole_goes_on_in_pieces(more: tuple[Path, Any]) -> None:
    folder, said = more
    assert said["pieces after all"][0]["summary"]["resumed_from"] == 3
    assert_same_training(folder / "fsdp", folder / "whole then pieces")


@pytest.mark.slow
def test_a_damaged_piece_falls_back_to_the_checkpoint_before(store: Path, more: tuple[Path, Any]) -> None:
    folder, _ = more
    piece = checkpoint.training_folder(folder / "pieces with a hole") / "step-00000003" / "optimizer-00001-of-00002.safetensors"
    piece.write_bytes(piece.read_bytes()[:-7])
    config = from_dict(TrainConfig, {**SETTINGS, **FSDP["settings"]}, where="test")
    summary = pretrain(store, folder / "pieces with a hole", config, resume=True)
    assert (summary.resumed_from, summary.damaged_checkpoints) == (2, [3])
    assert_same_training(folder / "fsdp", folder / "pieces with a hole")


def assert_same_losses_exactly(one: Path, other: Path) -> None:
    for kind, name in (("train", "loss"), ("tuning", "tuning")):
        left, right = ([line[name] for line in lines(folder) if line["kind"] == kind] for folder in (one, other))
        assert left == right


@pytest.mark.parametrize(("written", "read"), [(2, 3), (3, 2), (4, 1), (1, 4), (5, 2)])
def test_pieces_of_any_number_are_put_together_for_any_other(tmp_path: Path, written: int, read: int) -> None:
    """Also where there are fewer rows than ranks, so that some have none."""
    tensors = {"wide": torch.arange(21.0).reshape(7, 3), "short": torch.arange(2.0), "exp_avg/wide": -torch.arange(21.0).reshape(7, 3)}
    rest = {"step/wide": torch.tensor(5.0), "buffer": torch.arange(4.0)}
    lengths = {"wide": 7, "short": 2}
    cpu = torch.device("cpu")

    def rows(layout: Layout, key: str) -> slice:
        found = layout.rows(key, tensors[key].dim())
        return slice(*found) if found is not None else slice(None)

    facts: dict[str, Any] = {}
    for rank in range(written):
        layout = Layout(Ranks(cpu, rank, written), lengths if written > 1 else {})
        mine = {key: tensor[rows(layout, key)] for key, tensor in tensors.items()} | rest
        name, fact = checkpoint._write(tmp_path, *layout.part("x.safetensors", mine))
        facts[name] = fact
    for rank in range(read):
        layout = Layout(Ranks(cpu, rank, read), lengths if read > 1 else {})
        found = read_pieces(tmp_path, facts, "x.safetensors", layout)
        assert found.keys() == tensors.keys() | rest.keys()
        for key, tensor in tensors.items():
            assert torch.equal(found[key], tensor[rows(layout, key)])
        assert torch.equal(found["step/wide"], rest["step/wide"])
    assert read_pieces(tmp_path, facts, "best.safetensors") == {}


@pytest.mark.slow
def test_killed_while_the_pieces_are_written(store: Path, tmp_path: Path) -> None:
    start(store, tmp_path, {"model": {**FSDP, "kill_at_save": 3}}, returncode=-9)
    folder = checkpoint.training_folder(tmp_path / "model")
    assert list(folder.glob(".step-00000003.partial"))
    assert checkpoint.steps_there(folder) == [2, 1]
    start(store, tmp_path, {"model": {**FSDP, "resume": True}, "whole": FSDP})
    assert_same_losses_exactly(tmp_path / "whole", tmp_path / "model")


# -- the command line -----------------------------------------------------------------------------------------------------------------


def test_what_the_command_line_says_on_other_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    errors = [InputError("no such file"), StorageError("disk full"), ElsewhereError("met there", 1), Interrupted("stands at 3")]

    def raises(error: Exception) -> Any:
        raise error

    told = {}
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert [console.run(lambda error=error: raises(error)) for error in errors] == [2, 1, 1, 130]
        told[rank] = capsys.readouterr().err.splitlines()
    assert len(told["0"]) == 4
    assert told["1"] == ["error: disk full"], "a fault of one machine is told there; what all meet, once"
    monkeypatch.delenv("RANK")
    assert (launch.count(), launch.rank()) == (1, 0)


def test_other_verbs_and_devices_are_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from cehrxgpt.cli import app

    for name, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("LOCAL_RANK", "0")):
        monkeypatch.setenv(name, value)
    found = CliRunner().invoke(app, ["tasks"])
    assert isinstance(found.exception, InputError)
    assert "tasks runs as one process" in str(found.exception)
    monkeypatch.setattr("cehrxgpt.train.distributed.choose_device", lambda name: torch.device(name))
    with pytest.raises(ConfigError, match="several processes cannot share it; use device: auto or cuda"):
        from cehrxgpt.train.distributed import connect

        connect("cuda:1")


@pytest.mark.slow
def test_torchrun_of_the_command_line(store: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({**to_dict(SMALL), "accumulate": 2, "steps": 3}))
    verb = ["pretrain", str(store), "--recipe", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "model")]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "cehrxgpt.cli", *verb]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.strip().splitlines()
    assert json.loads(line)["ranks"] == 2
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode != 0
    assert again.stderr.count("exists already") == 1
