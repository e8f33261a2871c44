"""CUDA graphs on a CPU: a step is recorded operation by operation, and replayed on the very tensors that it was recorded with.

What a graph does not see is not seen here either. A tensor that has been replaced since, instead of being written to, is read as it was; what
was computed outside of the device (how far rows have got, kept on the CPU as well) is done once, at the capture, and never again. So a rollout
by these graphs writes other futures where a rollout by CUDA's would.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.graphs import StepGraphs
from cehrxgpt.rollout.engine import _Engine
from cehrxgpt.rollout.reader import Reader


def tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


class RecordedGraph:
    """In place of `torch.cuda.CUDAGraph`."""

    made = 0  # since the fixture began
    replays = 0

    def __init__(self) -> None:
        self.steps: list[tuple[Any, tuple, dict, Any]] = []
        RecordedGraph.made += 1

    def replay(self) -> None:
        RecordedGraph.replays += 1
        for operation, args, options, found in self.steps:
            again = operation(*args, **options)
            for old, new in zip(tensors(found), tensors(again), strict=True):
                if storage(old) != storage(new):  # neither a view nor written in place
                    old.copy_(new)


class Recording(TorchDispatchMode):
    """Operations of a step, but those on the tensors that a device would not have; what they wrote is taken back at the end."""

    def __init__(self, graph: RecordedGraph, elsewhere: Callable[[], set[int]]):
        super().__init__()
        self.graph, self.elsewhere = graph, elsewhere
        self.before: dict[int, tuple[Tensor, Tensor]] = {}
        self.others: list[Tensor] = []  # results of what was done elsewhere

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        away = self.elsewhere() | {storage(other) for other in self.others}
        given = tensors([args, options])
        if any(storage(one) in away for one in given):
            found = operation(*args, **options)
            self.others += tensors(found)
            return found
        if operation._schema.is_mutable:
            for one in given:
                whole = torch.empty(0, dtype=one.dtype).set_(one.untyped_storage())
                self.before.setdefault(storage(one), (whole, whole.clone()))
        found = operation(*args, **options)
        if operation is torch.ops.aten._local_scalar_dense.default:
            raise AssertionError("a captured step fetches a number from the device")
        self.graph.steps.append((operation, args, options, found))
        return found

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for whole, before in self.before.values():  # a capture runs nothing
            whole.copy_(before)


@pytest.fixture
def graphs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> type[RecordedGraph]:
    """Rollouts read single tokens as they do on a GPU: by captured steps, from caches whose tensors stay where they are."""
    caches: list[KVCache] = []
    begin, capture, read = KVCache.__init__, StepGraphs._capture, Reader.__init__

    def cache(self: KVCache, *args: Any, **options: Any) -> None:
        begin(self, *args, **{"stays": True, "by_column": False} | options)

    def of_cache(self: StepGraphs, cache: KVCache, *rest: Any) -> Any:
        caches[:] = [cache]
        return capture(self, cache, *rest)

    def reader(self: Reader, *args: Any) -> None:
        read(self, *args)
        self._steps, self._graphs = None, StepGraphs(self._decoder)

    @contextmanager
    def recording(graph: RecordedGraph, pool: Any, stream: Any) -> Iterator[None]:
        with Recording(graph, lambda: {storage(one._read) for one in caches}):
            yield

    class Stream:
        def wait_stream(self, other: Any) -> None:
            pass

    for name, value in (
        ("Stream", Stream), ("current_stream", Stream), ("stream", lambda stream: nullcontext()), ("CUDAGraph", RecordedGraph), ("graph", recording),
        ("device", lambda device: nullcontext()), ("graph_pool_handle", object),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(KVCache, "__init__", cache)
    monkeypatch.setattr(StepGraphs, "_capture", of_cache)
    monkeypatch.setattr(Reader, "__init__", reader)
    monkeypatch.setattr(_Engine, "_writers", lambda self, futures: 1)  # one batch after the other, as off CPUs
    RecordedGraph.made = RecordedGraph.replays = 0
    return RecordedGraph
