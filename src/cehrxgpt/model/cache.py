"""Keys and values of what each row has read: one preallocated tensor per layer and side, rows of different lengths side by side.

Rows are aligned left, so that row r owns places 0 .. lengths[r] - 1 and a new token is written at its own length; places beyond are
never seen. One layer costs rows x kv_heads x capacity x head_width numbers, twice; room is doubled when it runs out.

A prompt is read once. `append` copies its row for a single sample; `share` gives many samples the same row to look at, as a *prefix*
that stands once in memory and is attended for all its samples in one matrix product. When rows are done, `drop` moves live rows from
the end into the holes, so that leaving costs the rows that leave and not the whole cache.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from cehrxgpt.model.config import ModelConfig


@dataclass(frozen=True)
class Prefix:
    """What several rows have read together, P of them; never written to.

    Attributes:
        key_PKSE, value_PKSE: one tensor per layer.
        lengths: int64[P].
        owner: int64[rows], which prefix each row goes on from.
    """

    key_PKSE: list[Tensor]
    value_PKSE: list[Tensor]
    lengths: Tensor
    owner: Tensor

    @cached_property
    def arrangement(self) -> tuple[Tensor, Tensor, Tensor]:
        """The rows sorted by prefix.

        Returns:
            slot_PN: int64[P, N], the rows of each prefix, padded with row 0.
            back_B: int64[rows], where each row stands in the flattened slots.
            mask_PS: 0 within each prefix, -inf beyond its length.
        """
        key, device = self.key_PKSE[0], self.owner.device
        count = torch.bincount(self.owner, minlength=len(self.lengths))
        most = int(count.max())
        order = torch.argsort(self.owner, stable=True)
        place = torch.arange(len(order), device=device) - (count.cumsum(0) - count)[self.owner[order]]
        back_B = torch.empty_like(self.owner)
        back_B[order] = self.owner[order] * most + place
        slot = self.owner.new_zeros(len(self.lengths) * most)
        slot[back_B] = torch.arange(len(order), device=device)
        beyond_PS = torch.arange(key.shape[2], device=device) >= self.lengths[:, None]
        mask_PS = torch.zeros(beyond_PS.shape, dtype=key.dtype, device=device).masked_fill_(beyond_PS, float("-inf"))
        return slot.view(len(self.lengths), most), back_B, mask_PS


def _join(parts: list[Prefix]) -> Prefix:
    """The rows of one after those of the other; prefixes that no row goes on from are left out."""
    used: list[Tensor] = []
    owner: list[Tensor] = []
    before = 0
    for part in parts:
        kept, place = part.owner.unique(return_inverse=True)
        owner.append(place + before)
        used.append(kept)
        before += len(kept)
    lengths = torch.cat([part.lengths[kept] for part, kept in zip(parts, used, strict=True)])
    width = int(lengths.max()) if len(lengths) else 0

    def stack(stores: list[list[Tensor]]) -> list[Tensor]:
        layers = []
        for tensors in zip(*stores, strict=True):
            joined = tensors[0].new_zeros(len(lengths), tensors[0].shape[1], width, tensors[0].shape[3])
            at = 0
            for tensor, kept in zip(tensors, used, strict=True):
                room = min(width, tensor.shape[2])
                joined[at : at + len(kept), :, :room] = tensor[kept, :, :room]
                at += len(kept)
            layers.append(joined)
        return layers

    return Prefix(stack([part.key_PKSE for part in parts]), stack([part.value_PKSE for part in parts]), lengths, torch.cat(owner))


class KVCache:
    """The past of `rows` rows. Dimension letters as in `transformer`.

    Args:
        config: of the model.
        rows: how many there are at first, with nothing read.
        capacity: places to make room for at once.
        dtype, device: of keys and values.

    Attributes:
        rows: rows in use.
        longest: tokens read by the longest of them, those of a shared prefix apart.
        prefix: what rows share; None = nothing.
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
        self.rows = rows
        self.longest = 0
        self.prefix: Prefix | None = None
        # Zeros and not empty memory: a place that is not seen has weight 0, but 0 x NaN would still be NaN.
        shape = (rows, config.kv_heads, max(capacity, 1), config.head_width)
        self.key_BKSE = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self.value_BKSE = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.layers)]
        self._lengths = torch.zeros(rows, dtype=torch.int64, device=device)
        self.fresh = True  # during a forward pass: nothing had been read before it
        self.mask_BTS: Tensor | None = None  # during a forward pass: 0 where a new token may look, -inf elsewhere; None = everywhere
        self._new = 0
        self._added: Tensor | None = None
        self._places: Tensor | None = None  # where the new keys go, as rows of [rows * kv_heads * capacity, head_width]

    @property
    def lengths(self) -> Tensor:
        """Tokens read, int64[rows], a copy: the position of each row's next token."""
        own = self._lengths[: self.rows]
        return own.clone() if self.prefix is None else own + self.prefix.lengths[self.prefix.owner]

    @property
    def capacity(self) -> int:
        """Places there is room for."""
        return self.key_BKSE[0].shape[2]

    @property
    def bytes(self) -> int:
        """Memory held."""
        shared = [] if self.prefix is None else [*self.prefix.key_PKSE, *self.prefix.value_PKSE]
        return sum(store.numel() * store.element_size() for store in (*self.key_BKSE, *self.value_BKSE, *shared))

    # -- called by the model ------------------------------------------------------------------------------------------------------

    def begin(self, new: int, added: Tensor | None) -> None:
        """A forward pass over `new` places starts; `added` int64[rows] of them are real (None: all)."""
        self.fresh, self._new, self._added = self.longest == 0 and self.prefix is None, new, added
        self.reserve(self.rows, self.longest + new)
        self.mask_BTS, self._places = None, None
        if self.fresh:
            return
        lengths = self._lengths[: self.rows]
        place_BT = lengths[:, None] + torch.arange(new, device=lengths.device)
        _, heads, places, _ = self.key_BKSE[0].shape
        head_BK = torch.arange(self.rows * heads, device=lengths.device).view(self.rows, heads)
        self._places = (head_BK[:, None] * places + place_BT[:, :, None]).flatten()
        if new > 1 or bool((lengths < self.longest).any()):
            unseen_BTS = torch.arange(self.longest + new, device=lengths.device) > place_BT[..., None]
            mask_BTS = torch.zeros(unseen_BTS.shape, dtype=self.key_BKSE[0].dtype, device=lengths.device)
            self.mask_BTS = mask_BTS.masked_fill_(unseen_BTS, float("-inf"))

    def write(self, layer: int, key_BTKE: Tensor, value_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; returns all so far, two [B, K, S, E] views."""
        end = self.longest + self._new
        for store, new in ((self.key_BKSE[layer], key_BTKE), (self.value_BKSE[layer], value_BTKE)):
            if self._places is None:
                store[: self.rows, :, :end] = new.transpose(1, 2)
            else:
                store.view(-1, store.shape[3]).index_copy_(0, self._places, new.reshape(-1, store.shape[3]).to(store.dtype))
        return self.key_BKSE[layer][: self.rows, :, :end], self.value_BKSE[layer][: self.rows, :, :end]

    def end(self) -> None:
        """The forward pass is over: the rows have grown."""
        self._lengths[: self.rows] += self._new if self._added is None else self._added
        self._measure()
        self.mask_BTS, self._places, self._added = None, None, None

    def _measure(self) -> None:
        self.longest = int(self._lengths[: self.rows].max()) if self.rows else 0

    # -- called by the engine -----------------------------------------------------------------------------------------------------

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for at least so many rows and places; either is doubled when it is too small."""
        held, _, places, _ = self.key_BKSE[0].shape
        if rows <= held and capacity <= places:
            return
        to_rows = held if rows <= held else max(rows, 2 * held)
        to_places = places if capacity <= places else max(capacity, 2 * places)
        for stores in (self.key_BKSE, self.value_BKSE):
            for layer, old in enumerate(stores):
                stores[layer] = old.new_zeros(to_rows, old.shape[1], to_places, old.shape[3])
                stores[layer][: self.rows, :, : self.longest] = old[: self.rows, :, : self.longest]
        lengths = self._lengths.new_zeros(to_rows)
        lengths[: self.rows] = self._lengths[: self.rows]
        self._lengths = lengths

    def append(self, other: KVCache, rows: Tensor) -> None:
        """Add copies of the other cache's rows (int64, in this order; a row may stand several times) at the end."""
        assert self.prefix is None, "rows with a past of their own cannot join rows that share"
        start, stop = self.rows, self.rows + len(rows)
        self.reserve(stop, other.longest)
        for mine, theirs in ((self.key_BKSE, other.key_BKSE), (self.value_BKSE, other.value_BKSE)):
            for target, source in zip(mine, theirs, strict=True):
                target[start:stop, :, : other.longest] = source[rows, :, : other.longest]
        self._lengths[start:stop] = other._lengths[rows]
        self.rows = stop
        self._measure()

    def share(self, other: KVCache, rows: Tensor) -> None:
        """Add rows that go on from the other cache's `rows` (int64; a row may stand several times) without copying them for each.

        All rows of a cache share prefixes, or none does. Prefixes that no row goes on from any more are left out.
        """
        assert self.prefix is not None or self.rows == 0, "rows with a past of their own cannot join rows that share"
        start = self.rows
        read = Prefix(other.key_BKSE, other.value_BKSE, other._lengths, rows)
        self.prefix = _join([read] if self.prefix is None or not start else [self.prefix, read])
        self.reserve(start + len(rows), 1)
        self._lengths[start : start + len(rows)] = 0
        self.rows = start + len(rows)
        self._measure()

    def drop(self, gone: Tensor) -> tuple[Tensor, Tensor]:
        """Remove the rows where `gone` bool[rows] is true.

        Returns:
            source, target: int64; row source[i] now stands at target[i], all others where they stood. Whoever keeps things by row
            does the same: `x[target] = x[source]; x = x[:cache.rows]`.
        """
        kept = int((~gone).sum())
        target = torch.nonzero(gone[:kept])[:, 0]
        source = kept + torch.nonzero(~gone[kept:])[:, 0]
        for store in (*self.key_BKSE, *self.value_BKSE):
            store[target, :, : self.longest] = store[source, :, : self.longest]
        self._lengths[target] = self._lengths[source]
        if self.prefix is not None:
            owner = self.prefix.owner.clone()
            owner[target] = owner[source]
            self.prefix = replace(self.prefix, owner=owner[:kept])
        self.rows = kept
        self._measure()
        return source, target

    def take(self, rows: Tensor) -> KVCache:
        """A new cache of these rows (int64, in this order; a row may stand several times)."""
        store = self.key_BKSE[0]
        taken = KVCache(self.config, 0, 1, store.dtype, store.device)
        taken.reserve(len(rows), self.longest + 1)
        taken.append(self, rows)
        taken.prefix = None if self.prefix is None else replace(self.prefix, owner=self.prefix.owner[rows])
        return taken

    def keep(self, rows: Tensor) -> KVCache:
        """Only these rows, in this order."""
        return self.take(rows)

    def repeat(self, times: int) -> KVCache:
        """Each row `times` times over, neighbours."""
        return self.take(torch.arange(self.rows, device=self._lengths.device).repeat_interleave(times))
