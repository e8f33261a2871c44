"""A module over several ranks: whole on each of them (DDP), or cut in pieces (FSDP2).

    ddp    every rank has all weights; gradients are averaged in the backward pass of a step's last micro-batch
    fsdp   every rank keeps a share of the rows of each weight, of its gradient and of its moments; a block's weights are brought together
           when it is computed, and gradients are averaged and cut up again after each micro-batch

Averaged, so a loss that is already divided by the whole count is multiplied by the number of ranks first.
"""

from __future__ import annotations

import atexit
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cehrxgpt.train.distributed import Ranks
from cehrxgpt.train.loss import WeightedLoss
from cehrxgpt.train.sharded import Layout

Parallel = Literal["ddp", "fsdp"]


def spread(loss: WeightedLoss, ranks: Ranks, parallel: Parallel) -> nn.Module:
    """What is called in training in place of `loss`; `fsdp` replaces its parameters by distributed ones."""
    if ranks.count == 1:
        return loss
    if parallel == "ddp":
        return DistributedDataParallel(loss, forward_sync_buffers=False, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    # Caches of distributed tensors keep a mesh for ever, and it the process group, whose threads must end before the interpreter does. This runs
    # before the group is left.
    atexit.register(vars(mesh).get("_pg_registry", {}).clear)
    for block in loss.decoder.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(loss, mesh=mesh)
    return loss


def without_exchange(module: nn.Module) -> AbstractContextManager[object]:
    """A context in which gradients stay on their rank, for all but a step's last micro-batch; pieces are always exchanged."""
    return module.no_sync() if isinstance(module, DistributedDataParallel) else nullcontext()


def layout_of(module: nn.Module, ranks: Ranks) -> Layout:
    """Which rows of which parameters this rank has."""
    return Layout(ranks, {name: len(parameter) for name, parameter in module.named_parameters() if _distributed(parameter)})


def local(tensor: Tensor) -> Tensor:
    """The rows of a tensor that this rank has; all of it where it is not distributed."""
    found: Any = tensor
    return found.to_local() if _distributed(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, brought together from the ranks, each of which must ask."""
    found: Any = tensor
    return found.full_tensor() if _distributed(tensor) else tensor


def like(tensor: Tensor, pattern: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, cut up as `pattern` is."""
    if not _distributed(pattern):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    cut: Any = pattern
    return distribute_tensor(tensor, cut.device_mesh, cut.placements, src_data_rank=None)


def load_local(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Fill a module's state with what each rank has of it.

    Raises:
        KeyError: a tensor is missing.
    """
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            local(tensor).copy_(tensors[name])


def _distributed(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # a DTensor, whose module takes its time to load
