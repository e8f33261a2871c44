"""Several processes that train one model: who this one is, and what they tell each other.

Started by `torchrun` or `accelerate launch`; Accelerate joins them (NCCL between GPUs, gloo between processors) and says which device is
whose. What is told is numbers and JSON, never pickles. A process that was started alone loads none of this.
"""

from __future__ import annotations

import atexit
import gc
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from cehrxgpt import launch
from cehrxgpt.errors import CehrxgptError, ConfigError, ElsewhereError
from cehrxgpt.train.device import choose_device


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them.

    Attributes:
        device: this process's own.
        rank: number of this process, from 0.
        count: of processes.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and speaks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Element by element over the ranks; the same floats on all of them."""
        if self.count == 1:
            return list(values)
        told = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(told)
        return told.tolist()

    def gather(self, value: Any) -> list[Any]:
        """What every rank says, as plain JSON, in their order."""
        if self.count == 1:
            return [value]
        said = json.dumps(value).encode()
        lengths = self.sum([float(len(said)) if rank == self.rank else 0.0 for rank in range(self.count)])
        mine = torch.zeros(int(max(lengths)), dtype=torch.uint8, device=self.device)
        mine[: len(said)] = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        heard = [torch.empty_like(mine) for _ in range(self.count)]
        dist.all_gather(heard, mine)
        return [json.loads(bytes(one[: int(length)].tolist())) for one, length in zip(heard, lengths, strict=True)]

    def first_does(self, work: Callable[[], Any]) -> Any:
        """What `work` returns on the first rank (plain JSON), told to all; the others wait.

        Raises:
            ElsewhereError: on the others, where the first met an error of ours; it raises its own.
        """
        if self.count == 1:
            return work()
        error: CehrxgptError | None = None
        said: dict[str, Any] = {}
        if self.first:
            try:
                said = {"value": work()}
            except CehrxgptError as met:
                error, said = met, {"error": str(met), "status": met.exit_status}
        heard = self.gather(said)[0]
        if error is not None:
            raise error
        if "error" in heard:
            raise ElsewhereError(heard["error"], heard["status"])
        return heard["value"]


def connect(device: str) -> Ranks:
    """Join the other processes, where a launcher started several.

    Args:
        device: of the recipe; with several processes `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: an unknown device, or one that several processes would share.
    """
    chosen = choose_device(device)
    if launch.count() == 1:
        return Ranks(chosen)
    if chosen.index is not None:
        raise ConfigError(f"device '{device}': several processes cannot share it; use device: auto or {chosen.type}")
    from accelerate import PartialState

    # DDP and FSDP2 load it on their way. Its functions have the group of all as a default: loaded when there is one, they keep it for ever.
    from torch.distributed.nn import functional  # noqa: F401

    state = PartialState(cpu=chosen.type == "cpu")
    atexit.register(_leave)
    return Ranks(torch.device("cpu") if chosen.type == "cpu" else state.device, state.process_index, state.num_processes)


def _leave() -> None:
    """End the group and its threads while there is an interpreter.

    Only when nothing holds a group do its threads end with it. One that is still to let go of an exchange's tensors when the interpreter has gone
    ends the process with SIGABRT, now and then, although all is done.
    """
    for name in ("last_exc", "last_value", "last_traceback"):  # an error that nobody caught holds the trainer
        vars(sys).pop(name, None)
    gc.collect()
    if dist.is_initialized():
        dist.destroy_process_group()
