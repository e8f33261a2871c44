"""One-token steps on a GPU as CUDA graphs: launched as a whole, where some hundred launches one by one would take longer than the work.

A graph is captured for each layout of the cache, number of rows and number of attended places (`KVCache.prepare`), and replayed while
these stay as they are. What changes from step to step (tokens, ages, how far each row has got, what is nobody's) lies in tensors that keep
their places. Where a driver or a library refuses a capture, steps are taken one operation after the other, with the same numbers, and a warning
says so once.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.transformer import Decoder

WARM_UP = 2  # passes before a capture: libraries set themselves up in the first


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    token_B1: Tensor
    age_minutes_B1: Tensor
    hidden_B1D: Tensor


class StepGraphs:
    """The decoder for one new token a row, captured; of one cache at a time, one whose tensors stay (`KVCache.stays`). CUDA only."""

    def __init__(self, decoder: Decoder):
        self.decoder = decoder
        self._cache: Callable[[], KVCache | None] = lambda: None  # a weak reference: the graphs keep no cache alive
        self._layout = -1
        self._device = decoder.embedding.weight.device
        self._stream: torch.cuda.Stream | None = None  # one for all captures: libraries keep memory for each stream they meet
        self._pool: Any = None  # what graphs compute in, shared: one at a time is replayed, and its result is read before the next
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._refused = False

    def __call__(self, cache: KVCache, token_B1: Tensor, age_minutes_B1: Tensor) -> Tensor:
        """Read one token a row (`cache.batch_rows()` of them); hidden states [B, 1, D], valid until the next call."""
        if self._refused:
            return self._step(cache, token_B1, age_minutes_B1)
        layout, rows, attended = cache.prepare(len(token_B1), 1)
        if layout != self._layout or self._cache() is not cache:  # the graphs point at tensors of another layout or cache
            self._captured.clear()
            self._pool = torch.cuda.graph_pool_handle()  # another one: a pool whose graphs are gone cannot be captured into again
            self._cache, self._layout = weakref.ref(cache), layout
        held = self._captured.get((rows, attended))
        if held is None:
            with torch.cuda.device(self._device):
                held = self._capture(cache, token_B1, age_minutes_B1)
            if held is None:
                return self._step(cache, token_B1, age_minutes_B1)
            self._captured[rows, attended] = held
        held.token_B1.copy_(token_B1)
        held.age_minutes_B1.copy_(age_minutes_B1)
        held.graph.replay()
        cache.grew(1)
        return held.hidden_B1D

    def _capture(self, cache: KVCache, token_B1: Tensor, age_minutes_B1: Tensor) -> _Captured | None:
        """None: it was refused, and no other is tried. What fails in the passes before is no matter of captures, and is raised."""
        token_B1, age_minutes_B1 = token_B1.clone(), age_minutes_B1.clone()
        stream = self._stream = self._stream or torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                with cache.undone():
                    self._step(cache, token_B1, age_minutes_B1)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            with cache.undone(captured=True), torch.cuda.graph(graph, pool=self._pool, stream=stream):
                hidden_B1D = self._step(cache, token_B1, age_minutes_B1)
        except RuntimeError as error:
            self._refused = True
            self._captured.clear()
            cause = str(error).splitlines()[0] if str(error) else type(error).__name__
            warnings.warn(f"steps on this GPU are not captured, which makes futures slower and no others: {cause}", RuntimeWarning, stacklevel=2)
            return None
        return _Captured(graph, token_B1, age_minutes_B1, hidden_B1D)

    def _step(self, cache: KVCache, token_B1: Tensor, age_minutes_B1: Tensor) -> Tensor:
        position = cache.positions(len(token_B1))[:, None]
        return self.decoder(token_B1, position=position, age_minutes=age_minutes_B1, cache=cache)
