"""Checkpoints of a running training: tensors in safetensors, everything else in JSON; nothing is ever unpickled.

    .<model>.training/              beside the model folder that will be
        train.jsonl                 the log so far
        damaged-00000600/           one that was found damaged when the training was resumed, set aside until the model is there
        step-00000400/              the newest two are kept
            weights.safetensors     decoder and objectives
            optimizer.safetensors   the optimiser's moments, by parameter name
            best.safetensors        the weights with the lowest tuning loss so far, where there is one
            state.json              step, counters, fingerprints, length and checksum of each file above and of itself

With FSDP each of the three is several files, one per rank (see `sharded.py`).

A checkpoint is written under another name, flushed to the device and renamed, so that one with its final name is whole; should the newest
be damaged nevertheless, the one before is used, and the run says so. The damaged one is set aside, so that it is not counted among those kept.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from cehrxgpt.errors import StorageError
from cehrxgpt.train.distributed import Ranks
from cehrxgpt.train.sharded import Layout, read
from cehrxgpt.train.spread import local

STATE_FILE = "state.json"
WEIGHTS, OPTIMIZER, BEST = "weights.safetensors", "optimizer.safetensors", "best.safetensors"
KEEP = 2
_CHUNK_BYTES = 1 << 20
WHOLE = Layout(Ranks(torch.device("cpu")))


@contextmanager
def storage(work: str) -> Iterator[None]:
    """Let what the machine refuses to write or remove be an error of one line: `could not <work>: <why>`.

    Raises:
        StorageError: the disk is full, read-only, gone, ...
    """
    try:
        yield
    except OSError as error:
        raise StorageError(f"could not {work}: {error.strerror or error}; once that is mended, --resume goes on from the last checkpoint") from error


def training_folder(out: Path) -> Path:
    """Where the checkpoints of a model that will stand at `out` are kept until it does."""
    return out.parent / f".{out.name}.training"


def optimizer_tensors(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> dict[str, Tensor]:
    """What this rank has of the optimiser's state, as `<entry>/<parameter name>` -> tensor."""
    tensors = {}
    for parameter, entries in optimizer.state.items():
        for entry, tensor in entries.items():
            tensors[f"{entry}/{names[parameter]}"] = local(tensor)
    return tensors


@torch.no_grad()
def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter]) -> None:
    """Put back what `optimizer_tensors` took, on the parameters' devices."""
    for key, tensor in tensors.items():
        entry, name = key.split("/", 1)
        parameter = parameters[name]
        state = torch.zeros_like(parameter) if tensor.dim() else torch.zeros_like(tensor, device=parameter.device)
        local(state).copy_(tensor)
        optimizer.state[parameter][entry] = state


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _aside(step: int) -> str:
    return f"damaged-{step:08d}"


def steps_there(folder: Path, kind: str = "step") -> list[int]:
    """Steps that have a checkpoint, newest first; with `kind` "damaged" those whose checkpoint was set aside."""
    names = (path.name.removeprefix(f"{kind}-") for path in folder.glob(f"{kind}-*"))
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def save(folder: Path, step: int, files: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], layout: Layout = WHOLE) -> None:
    """Write the checkpoint of `step` and drop all but the newest two.

    Args:
        folder: the training folder; is made. All ranks see the same one.
        files: file name -> what this rank has of the tensors.
        state: plain JSON; the first rank's is kept.
        layout: whose rows the tensors are. Where they are distributed all ranks must save, else one does.

    Raises:
        StorageError: the machine failed; earlier checkpoints are untouched.
    """
    partial = folder / f".{_name(step)}.partial"
    ranks = layout.ranks
    try:
        if ranks.first:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        ranks.gather(None)  # the folder is there
        facts = dict(_write(partial, *layout.part(name, tensors)) for name, tensors in files.items())
        every = ranks.gather(facts)  # and so is every file
        if ranks.first:
            _publish(folder, step, {**state, "step": step, "files": {name: fact for one in every for name, fact in one.items()}})
        ranks.gather(None)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = "the one before is kept" if steps_there(folder) else "there is none before it"
        raise StorageError(f"could not write the checkpoint of step {step} under {folder}: {error}; {before}") from error


def _write(folder: Path, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Write one file; its name, and what `state.json` says of it."""
    path = folder / name
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, path)
    _flush(path)
    return name, {"bytes": path.stat().st_size, "crc32": _checksum(path), **facts}


def _state_checksum(state: Mapping[str, Any]) -> int:
    said = {name: value for name, value in state.items() if name != "crc32"}
    return zlib.crc32(json.dumps(said, sort_keys=True).encode())


def _publish(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Give the checkpoint its state and its name, and drop old ones."""
    final, partial = folder / _name(step), folder / f".{_name(step)}.partial"
    (partial / STATE_FILE).write_text(json.dumps({**state, "crc32": _state_checksum(state)}) + "\n", encoding="utf-8")
    _flush(partial / STATE_FILE)
    shutil.rmtree(final, ignore_errors=True)
    os.rename(partial, final)
    _flush(folder)
    for old in [one for one in steps_there(folder) if one < step][KEEP - 1 :]:
        shutil.rmtree(folder / _name(old))


@dataclass(frozen=True)
class Found:
    """A checkpoint that is whole.

    Attributes:
        path: its folder.
        state: what `save` was given, with `step` and `files`.
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps that were done."""
        return int(self.state["step"])

    def tensors(self, name: str, layout: Layout | None = None) -> dict[str, Tensor]:
        """The tensors of one of its files, of distributed ones the rows that `layout` gives this rank; none where it was not written."""
        return read(self.path, self.state["files"], name, layout)


def _check(path: Path) -> Found | None:
    """One checkpoint, or None where it is damaged."""
    try:
        state = json.loads((path / STATE_FILE).read_text(encoding="utf-8"))
        if state["crc32"] != _state_checksum(state):
            return None
        for name, facts in state["files"].items():
            if (path / name).stat().st_size != facts["bytes"] or _checksum(path / name) != facts["crc32"]:
                return None
        return Found(path, {**state, "step": int(state["step"])})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def newest(folder: Path) -> tuple[Found | None, list[int]]:
    """The newest checkpoint that is whole (None where there is none), and the steps of those that are damaged: after it, or set aside."""
    damaged = steps_there(folder, "damaged")
    for step in steps_there(folder):
        found = _check(folder / _name(step))
        if found is not None:
            return found, sorted(set(damaged), reverse=True)
        damaged.append(step)
    return None, sorted(set(damaged), reverse=True)


def opened(folder: Path, step: int) -> Found:
    """The checkpoint of `step`, known to be whole."""
    path = folder / _name(step)
    return Found(path, json.loads((path / STATE_FILE).read_text(encoding="utf-8")))


def prepare(folder: Path) -> tuple[int | None, list[int]]:
    """Make the folder, remove what a killed run left half written, set damaged checkpoints aside, and say where to go on: step (None: at the
    beginning), damaged ones.

    Raises:
        StorageError: the machine does not let us.
    """
    with storage(f"prepare the folder of checkpoints {folder}"):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(".*.partial"):
            _remove(path)
        found, damaged = newest(folder)
        for step in steps_there(folder):
            if found is None or step > found.step:
                _remove(folder / _aside(step))
                os.rename(folder / _name(step), folder / _aside(step))
        return None if found is None else found.step, damaged


def discard(folder: Path) -> None:
    """Remove a training folder, whole.

    Raises:
        StorageError: the machine does not let us; what is left must not be gone on from.
    """
    with storage(f"remove the former checkpoints {folder}"):
        _remove(folder)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
