"""One of two processes that train together, for `test_train_ranks.py`: does the jobs it is given in order and writes down how each ended.

    python ranks_worker.py STORE JOBS.json RESULTS.json

A job has `out` and `settings`, and may have `resume`, `stop_at` (raise on all ranks after that step), `signal_at` (this step's progress sends
the second rank SIGTERM), `poison` (a micro-batch whose loss is not finite), `kill_at_save` (this save kills every rank between two files) and
`fault_at` (raise what nobody catches after that step). RESULTS.json.<rank>.threads says what threads of the process group there were before it was
left and after.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from cehrxgpt import launch
from cehrxgpt.config import from_dict, to_dict
from cehrxgpt.errors import CehrxgptError
from cehrxgpt.train import TrainConfig, checkpoint, pretrain
from cehrxgpt.train import trainer as trainer_module
from train_samples import Stop, register_toy_age


def poison(number: int) -> Any:
    """Make the loss of a micro-batch infinite; how it was before."""
    before = trainer_module.Trainer._loss
    seed = trainer_module.Trainer._seed
    under_way = [-1]

    def watch(self: trainer_module.Trainer, batch: int) -> None:
        under_way[0] = batch
        seed(self, batch)

    def loss(self: trainer_module.Trainer, batch: Any, counts: Any) -> Any:
        total, parts = before(self, batch, counts)
        bad = math.inf if under_way[0] == number and torch.is_grad_enabled() else 1.0
        return total * bad, {name: part * bad for name, part in parts.items()}

    trainer_module.Trainer._loss, trainer_module.Trainer._seed = loss, watch  # type: ignore[method-assign]
    return before, seed


def die_at(save: int) -> None:
    """Kill this process while it writes the second file of that checkpoint."""
    write = checkpoint._write

    def dying(*arguments: Any) -> Any:
        if arguments[0].name == f".step-{save:08d}.partial" and arguments[1].startswith("optimizer"):
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*arguments)

    checkpoint._write = dying


def group_threads() -> list[str]:
    """Names of the threads that serve a process group, where the system tells; Python knows nothing of them."""
    names = [file.read_text().strip() for file in Path("/proc/self/task").glob("*/comm")]
    return sorted(name for name in names if name.startswith(("gloo", "pt_gloo", "pt_tcpstore")))


def tell_threads(path: Path, before: list[str]) -> None:
    path.write_text(json.dumps({"before": before, "after": group_threads()}))


def do(store: str, job: dict[str, Any]) -> dict[str, Any]:
    """One job; what a reader was told and how it ended."""
    said: list[str] = []

    def progress(done: int, total: int, what: str) -> None:
        if done == job.get("stop_at"):
            raise Stop
        if done == job.get("fault_at"):
            raise SystemError("meant")
        if done == job.get("signal_at") and launch.rank() == 1:
            signal.raise_signal(signal.SIGTERM)

    if "kill_at_save" in job:
        die_at(job["kill_at_save"])
    before = poison(job["poison"]) if "poison" in job else None
    try:
        config = from_dict(TrainConfig, job["settings"], where="job")
        summary = pretrain(store, job["out"], config, resume=job.get("resume", False), progress=progress, say=said.append)
        return {"summary": to_dict(summary), "said": said}
    except (CehrxgptError, KeyboardInterrupt, Stop) as error:
        return {"raised": type(error).__name__, "message": str(error), "said": said}
    finally:
        if before is not None:
            trainer_module.Trainer._loss, trainer_module.Trainer._seed = before  # type: ignore[method-assign]


if __name__ == "__main__":
    register_toy_age()
    trainer_module.matmul_rate = lambda *_: 1e11
    threads: list[str] = []
    atexit.register(tell_threads, Path(f"{sys.argv[3]}.{launch.rank()}.threads"), threads)  # the first of all, and so after the group is left
    jobs = json.loads(Path(sys.argv[2]).read_text())
    try:
        results = [do(sys.argv[1], job) for job in jobs]
    finally:
        threads += group_threads()
    Path(f"{sys.argv[3]}.{launch.rank()}").write_text(json.dumps(results))
