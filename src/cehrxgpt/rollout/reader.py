"""The model as a rollout uses it: prompts are read whole, then one token a row, in the quickest form there is.

On a CPU single tokens are read by an arrangement of the decoder (`model.steps`), on a GPU as captured steps (`model.graphs`), and by the
decoder itself where neither can be. A reader is of the weights as they were when it was made.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.graphs import StepGraphs
from cehrxgpt.model.steps import arranged
from cehrxgpt.model.transformer import Decoder

Int = npt.NDArray[np.int64]


class Reader:
    """A decoder in the precision to compute in (None: its own); the decoder itself is not changed."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype | None = None):
        weight = decoder.embedding.weight
        self.config, self.device, self.dtype = decoder.config, weight.device, weight.dtype if dtype is None else dtype
        self._steps = arranged(decoder, self.dtype)  # from the weights as they are given: rounded once
        self._decoder = decoder if self.dtype == weight.dtype else copy.deepcopy(decoder).to(self.dtype)
        self._graphs = StepGraphs(self._decoder) if self.device.type == "cuda" else None

    def tensor(self, values: npt.NDArray[np.generic]) -> Tensor:
        """The numbers, where the model is."""
        return torch.from_numpy(values).to(self.device)

    def cache(self, rows: int = 0, capacity: int = 1) -> KVCache:
        """Room for so many rows and tokens."""
        return KVCache(self.config, rows, capacity, self.dtype, self.device)

    def read(self, token_id: Sequence[npt.NDArray[np.integer]], age_minutes: Sequence[Int]) -> tuple[Tensor, KVCache]:
        """The states [R, D] behind whole sequences, padded to the longest, and what was read, one row each."""
        length = np.array([len(tokens) for tokens in token_id])
        column = np.arange(length.max())
        real = column < length[:, None]
        token, age = np.zeros(real.shape, dtype=np.int64), np.zeros(real.shape, dtype=np.int64)
        token[real], age[real] = np.concatenate(token_id), np.concatenate(age_minutes)
        cache = self.cache(len(length), len(column))
        hidden = self._decoder(
            self.tensor(token),
            position=self.tensor(np.broadcast_to(column, real.shape).copy()),
            age_minutes=self.tensor(age),
            segment_id=self.tensor(real.astype(np.int64)),
            cache=cache,
        )
        return hidden[torch.arange(len(length), device=self.device), self.tensor(length - 1)], cache

    def read_one(self, cache: KVCache, token_id: npt.NDArray[np.integer], age_minutes: Int) -> Tensor:
        """The states [R, D] behind one more token in each row. The batch is filled up to one of few shapes."""
        rows, places = len(token_id), cache.batch_rows()
        padded = np.zeros((2, places, 1), dtype=np.int64)
        padded[0, :rows, 0], padded[1, :rows, 0] = token_id, age_minutes
        token_B1, age_B1 = self.tensor(padded)
        if self._graphs is not None and cache.stays:
            return self._graphs(cache, token_B1, age_B1)[:rows, 0]
        if self._steps is not None:
            return self._steps(token_B1[:, 0], age_B1[:, 0], cache)[:rows]
        cache.prepare(places, 1)
        return self._decoder(token_B1, position=cache.positions(places)[:, None], age_minutes=age_B1, cache=cache)[:rows, 0]

    def logits(self, hidden: Tensor) -> Tensor:
        """Of the next token, [R, V]."""
        return self._decoder.head(hidden) if self._steps is None else self._steps.logits(hidden)
