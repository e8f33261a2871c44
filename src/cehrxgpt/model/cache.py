"""Keys and values of what each row has read: one preallocated tensor per layer and side, rows of different lengths side by side.

Rows are aligned left, so that row r owns places 0 .. lengths[r] - 1 and a new token is written at its own length; places beyond are
never seen. One layer costs rows x kv_heads x capacity x head_width numbers, twice. A prompt is read once and `take` copies its row
for each of its samples; rows that are done are left out by the same call; `extend` adds the rows of new prompts. Room is
doubled when it runs out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cehrxgpt.model.config import ModelConfig


class KVCache:
    """The past of `rows` rows. Dimension letters as in `transformer`.

    Args:
        config: of the model.
        rows: how many.
        capacity: places to make room for at once; more are made when needed.
        dtype, device: of keys and values.

    Attributes:
        lengths: int64[rows], on the cache's device: tokens read.
        longest: the greatest of them.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        self.config = config
        self.capacity = max(capacity, 1)
        shape = (rows, config.kv_heads, self.capacity, config.head_width)
        # Zeros and not empty memory: a place that is not seen has weight 0, but 0 x NaN would still be NaN.
        self.key_BKSE = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.value_BKSE = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.longest = 0
        self.fresh = True  # during a forward pass: nothing had been read before it
        self.seen_BTS: Tensor | None = None  # during a forward pass: bool, which places each new token may see
        self._new = 0
        self._added: Tensor | None = None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.lengths.shape[0]

    # -- called by the model ------------------------------------------------------------------------------------------------------

    def begin(self, new: int, added: Tensor | None) -> None:
        """A forward pass over `new` places starts; `added` int64[rows] of them are real (None: all)."""
        self.fresh, self._new, self._added = self.longest == 0, new, added
        self.reserve(self.longest + new)
        if self.fresh:
            self.seen_BTS = None
            return
        self._place_BT = self.lengths[:, None] + torch.arange(new, device=self.lengths.device)
        self._row_B1 = torch.arange(self.rows, device=self.lengths.device)[:, None]
        uniform = new == 1 and bool((self.lengths == self.longest).all())
        place_S = torch.arange(self.longest + new, device=self.lengths.device)
        self.seen_BTS = None if uniform else place_S <= self._place_BT[..., None]

    def write(self, layer: int, key_BTKE: Tensor, value_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; returns all so far, two [B, K, S, E] views."""
        for store, new in ((self.key_BKSE[layer], key_BTKE), (self.value_BKSE[layer], value_BTKE)):
            if self.fresh:
                store[:, :, : self._new] = new.transpose(1, 2)
            else:
                store[self._row_B1, :, self._place_BT] = new.to(store.dtype)
        return self.key_BKSE[layer][:, :, : self.longest + self._new], self.value_BKSE[layer][:, :, : self.longest + self._new]

    def end(self) -> None:
        """The forward pass is over: the rows have grown."""
        self.lengths = self.lengths + (self._new if self._added is None else self._added)
        self.longest = int(self.lengths.max()) if self.rows else 0
        self.seen_BTS = None

    # -- called by the engine -----------------------------------------------------------------------------------------------------

    def reserve(self, capacity: int) -> None:
        """Make room for at least `capacity` places (doubling)."""
        if capacity <= self.capacity:
            return
        capacity = max(capacity, 2 * self.capacity)
        for store in (self.key_BKSE, self.value_BKSE):
            for layer, old in enumerate(store):
                store[layer] = old.new_zeros(old.shape[0], old.shape[1], capacity, old.shape[3])
                store[layer][:, :, : self.longest] = old[:, :, : self.longest]
        self.capacity = capacity

    def take(self, rows: Tensor, capacity: int | None = None) -> KVCache:
        """A cache of these rows (int64, in this order; a row may stand several times), with room for `capacity` places."""
        taken = KVCache.__new__(KVCache)
        taken.__dict__.update(self.__dict__)
        taken.lengths = self.lengths[rows]
        taken.longest = int(taken.lengths.max()) if len(rows) else 0
        taken.capacity = max(capacity or self.capacity, taken.longest, 1)
        taken.key_BKSE, taken.value_BKSE = [], []
        for source, target in ((self.key_BKSE, taken.key_BKSE), (self.value_BKSE, taken.value_BKSE)):
            for old in source:
                new = old.new_zeros(len(rows), old.shape[1], taken.capacity, old.shape[3])
                new[:, :, : taken.longest] = old[rows, :, : taken.longest]
                target.append(new)
        return taken

    def keep(self, rows: Tensor) -> KVCache:
        """Only these rows: what is left when others are done."""
        return self.take(rows)

    def repeat(self, times: int) -> KVCache:
        """Each row `times` times over, neighbours: a prompt that was read once, for each of its samples."""
        return self.take(torch.arange(self.rows, device=self.lengths.device).repeat_interleave(times))

    def extend(self, other: KVCache) -> KVCache:
        """This cache's rows, then the other's."""
        capacity = max(self.capacity, other.capacity)
        both = KVCache.__new__(KVCache)
        both.__dict__.update(self.__dict__)
        both.capacity, both.longest = capacity, max(self.longest, other.longest)
        both.lengths = torch.cat((self.lengths, other.lengths))
        both.key_BKSE, both.value_BKSE = [], []
        for name, target in (("key_BKSE", both.key_BKSE), ("value_BKSE", both.value_BKSE)):
            for mine, theirs in zip(getattr(self, name), getattr(other, name), strict=True):
                new = mine.new_zeros(both.rows, mine.shape[1], capacity, mine.shape[3])
                new[: self.rows, :, : self.longest] = mine[:, :, : self.longest]
                new[self.rows :, :, : other.longest] = theirs[:, :, : other.longest]
                target.append(new)
        return both
