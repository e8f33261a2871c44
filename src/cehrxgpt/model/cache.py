"""Keys and values of what each row has read: one preallocated tensor per layer and side, rows of different lengths side by side.

Rows are aligned left, so that row r owns places 0 .. lengths[r] - 1 and a new token is written at its own length; places beyond are
never seen. One layer costs rows x kv_heads x capacity x head_width numbers, twice.

Shapes come in steps (`prefix.PLACES`, `ROWS`), because kernels are prepared once for each shape. On a CPU the tensors are exactly as wide as
what is attended, for products of strided views would copy them first: they are laid out anew each time that a step is passed, each in the
memory of the one before, which costs one copy in `PLACES` readings. On a GPU room is doubled when it runs out and everything stays where it
is, so that a captured step can be replayed; `layout` counts the times that it could not stay. On a CPU in 16 bits values stand column by
column ([B, K, E, S] in memory, seen as [B, K, S, E]), for their products are quicker where what is summed over lies side by side; but not where the
processor multiplies tiles (AMX): there they are as quick by place, and nothing has to be written number by number.

A prompt is read once. `append` copies its row for a single sample; `share` gives many samples the same row to look at, as a *prefix* (`prefix.py`)
that stands once in memory and is attended for all its samples in one matrix product. When rows are done, `drop` moves live rows from
the end into the holes, so that leaving costs the rows that leave and not the whole cache.

How far each row has got is kept twice, here and on the device, so that nothing has to be fetched from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.prefix import PLACES, Prefix, join, round_up

ROWS = {"cpu": 16, "cuda": 128}  # batches of single tokens come in multiples of this,
PREFIXES = 16  # and prefixes of this, where tensors are to stay


@lru_cache
def _has_tiles() -> bool:
    """Does the processor multiply tiles of 16-bit numbers? The same on a machine every time, as the layout decides how sums round."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def _any_memory(like_BKSE: Tensor, rows: int, places: int, by_column: bool, flat: Tensor | None = None) -> Tensor:
    """Such a tensor of so many rows and places, of any content, by place or column by column; at the beginning of `flat`, if it is given."""
    _, K, _, E = like_BKSE.shape
    shape = (rows, K, E, places) if by_column else (rows, K, places, E)
    store = like_BKSE.new_empty(shape) if flat is None else flat[: math.prod(shape)].view(shape)
    return store.mT if by_column else store


def _kept_memory(used: Tensor | None, like_BKSE: Tensor, numbers: int) -> Tensor:
    """Memory for so many numbers, flat: all that of a store that is `used` no more, where that is large enough; else new, and twice as much.

    Memory asked for anew comes from the system page by page, which takes ten times as long as what is written to it; pages that are not written to
    cost nothing.
    """
    held = 0 if used is None else used.untyped_storage().nbytes() // used.element_size()
    return like_BKSE.new_empty(2 * numbers) if used is None or held < numbers else used.as_strided((held,), (1,), 0)


def _put(store_BKSE: Tensor, place: Tensor, new_BTKE: Tensor) -> None:
    """Write numbers of new tokens to their places, those of the store seen as [B * K * S, E]."""
    E = store_BKSE.shape[3]
    store_BKSE.view(-1, E).index_copy_(0, place, new_BTKE.reshape(-1, E).to(store_BKSE.dtype))


class KVCache:
    """The past of `rows` rows. Dimension letters as in `transformer`.

    Args:
        config: of the model.
        rows: how many there are at first, with nothing read.
        capacity: places to make room for at once.
        dtype, device: of keys and values.
        stays: tensors stay where they are as long as they can (for captured steps); None: on all but CPUs.
        by_column: values stand column by column; None: on CPUs in 16 bits without tiles.

    Attributes:
        rows: rows in use.
        longest: tokens read by the longest of them, those of a shared prefix apart.
        prefix: what rows share; None = nothing.
        layout: changes whenever a tensor that a step reads or writes has been replaced.
    """

    def __init__(
        self,
        config: ModelConfig,
        rows: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        stays: bool | None = None,
        by_column: bool | None = None,
    ):
        self.config = config
        self.rows = rows
        self.longest = 0
        self.layout = 0
        self.prefix: Prefix | None = None
        self.device = torch.device(device)
        self.stays = self.device.type != "cpu" if stays is None else stays
        self._step = PLACES[self.device.type]
        # Zeros and not any memory, here and in `reserve`: a place that is not seen has weight 0, but 0 x NaN would still be NaN.
        B, K, S, E = rows, config.kv_heads, round_up(max(capacity, 1), self._step), config.head_width
        self._by_column = self.device.type == "cpu" and dtype.itemsize == 2 and not _has_tiles() if by_column is None else by_column
        self.key_BKSE = [torch.zeros(B, K, S, E, dtype=dtype, device=device) for _ in range(config.layers)]
        self.value_BKSE = [_any_memory(key, B, S, self._by_column).zero_() for key in self.key_BKSE]
        self._read = torch.zeros(rows, dtype=torch.int64)  # tokens read, on the CPU
        self._lengths = torch.zeros(rows, dtype=torch.int64, device=device)  # the same on the device, ...
        self._alive = torch.ones(rows, dtype=torch.int64, device=device)  # ... where rows that are nobody's do not grow
        self._setting = torch.zeros(rows, dtype=torch.int64, device=device)
        self.fresh = True  # during a forward pass: nothing had been read before it
        self.mask_NQS: Tensor | None = None  # during a forward pass: 0 where a query may look, -inf elsewhere; N = rows * kv_heads
        self._new = 0
        self._batch = 0
        self._used: Tensor | None = None  # a store that was laid out anew: the next is laid out in its memory
        self._added: Tensor | None = None
        self._places: Tensor | None = None  # where the new keys go, as rows of [rows * kv_heads * capacity, head_width]
        self._cells: Tensor | None = None  # where the new values go, as numbers of the store, where these stand by column

    @property
    def lengths(self) -> Tensor:
        """Tokens read, int64[rows], a copy: the position of each row's next token."""
        return self.positions(self.rows)

    def positions(self, batch_rows: int) -> Tensor:
        """Of a batch of so many rows (at least `rows`), int64[batch_rows]: the position of each row's next token."""
        own = self._lengths[:batch_rows]
        past = None if self.prefix is None else self.prefix.past_B
        return own.clone() if past is None else own + past[:batch_rows]

    @property
    def capacity(self) -> int:
        """Places there is room for."""
        return self.key_BKSE[0].shape[2]

    @property
    def bytes(self) -> int:
        """Memory held."""
        shared = [] if self.prefix is None else [*self.prefix.key_PKSE, *self.prefix.value_PKSE]
        return sum(store.numel() * store.element_size() for store in (*self.key_BKSE, *self.value_BKSE, *shared))

    def batch_rows(self) -> int:
        """Rows of a batch of single tokens, filled up with rows that are nobody's (one token each, whose results mean nothing)."""
        return round_up(self.rows, ROWS[self.device.type])

    # -- called by the model ------------------------------------------------------------------------------------------------------

    def prepare(self, batch_rows: int, new: int) -> tuple[int, int, int]:
        """Make room for `new` places in each of the rows; returns what a captured step depends on: layout, rows, attended places."""
        self._batch, self._new = batch_rows, new
        self.fresh = self.longest == 0 and self.prefix is None
        self.reserve(batch_rows, self.longest + new)
        if self.prefix is not None and (self.prefix.past_B is None or len(self.prefix.past_B) < batch_rows):
            self.layout += self.prefix.arrange(max(batch_rows, len(self._lengths)))
        return self.layout, batch_rows, self._attended

    @property
    def _attended(self) -> int:
        return min(round_up(self.longest + self._new, self._step), self.capacity)

    def begin(self, new: int, added: Tensor | None, batch_rows: int | None = None) -> None:
        """A forward pass over `new` places starts; `added` int64[batch_rows] of them are real (None: all). `batch_rows`: None = `rows`."""
        batch_rows = self.rows if batch_rows is None else batch_rows
        self.prepare(batch_rows, new)
        self._added, self.mask_NQS, self._places, self._cells = added, None, None, None
        if self.fresh:
            return
        lengths, device = self._lengths[:batch_rows], self.device
        place_BT = lengths[:, None] + torch.arange(new, device=device)
        _, heads, places, width = self.key_BKSE[0].shape
        head_BK = torch.arange(batch_rows * heads, device=device).view(batch_rows, heads)
        self._places = (head_BK[:, None] * places + place_BT[:, :, None]).flatten()
        if self._by_column:
            column_BKE = (head_BK[:, :, None] * width + torch.arange(width, device=device)) * places
            self._cells = (column_BKE[:, None] + place_BT[:, :, None, None]).flatten()
        unseen_BTS = torch.arange(self._attended, device=device) > place_BT[..., None]
        mask_BTS = torch.zeros(unseen_BTS.shape, dtype=self.key_BKSE[0].dtype, device=device).masked_fill_(unseen_BTS, float("-inf"))
        groups = self.config.heads // heads
        self.mask_NQS = mask_BTS.repeat_interleave(heads, dim=0) if new == 1 else mask_BTS.repeat_interleave(heads, 0).repeat_interleave(groups, 1)

    def write(self, layer: int, key_BTKE: Tensor, value_BTKE: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new keys and values of a layer; returns all so far, two [B, K, S, E] views."""
        key, value = self.key_BKSE[layer], self.value_BKSE[layer]
        if self._places is None:
            for store, new in ((key, key_BTKE), (value, value_BTKE)):
                store[: self._batch, :, : self._new] = new.transpose(1, 2)
        else:
            _put(key, self._places, key_BTKE)
            if self._cells is None:
                _put(value, self._places, value_BTKE)
            else:
                value.mT.view(-1).index_copy_(0, self._cells, value_BTKE.reshape(-1).to(value.dtype))
        seen = self._attended
        return key[: self._batch, :, :seen], value[: self._batch, :, :seen]

    @property
    def setting(self) -> Tensor:
        """During a forward pass: the care setting in which each row of the batch stood before it, int64[batch_rows]."""
        return self._setting[: self._batch]

    def stand(self, setting_BT: Tensor) -> None:
        """The care settings at the new tokens, int64[B, T]; the last real one of each row is kept."""
        if self._added is None:
            self.setting.copy_(setting_BT[:, -1])
        else:
            last_B = setting_BT.gather(1, (self._added - 1).clamp(min=0)[:, None])[:, 0]
            self.setting.copy_(torch.where(self._added > 0, last_B, self.setting))

    def end(self) -> None:
        """The forward pass is over: the rows have grown."""
        grown = self._new if self._added is None else self._added
        self._lengths[: self._batch] += self._alive[: self._batch] * grown
        self.grew(self._new if self._added is None else self._added[: self.rows].cpu())
        self.mask_NQS, self._places, self._cells, self._added = None, None, None, None

    def grew(self, tokens: int | Tensor) -> None:
        """The rows have grown on the device already."""
        self._read[: self.rows] += tokens
        self._measure()

    @contextmanager
    def undone(self, *, captured: bool = False) -> Iterator[None]:
        """What is read inside is forgotten afterwards (its places are written over); with `captured` the device has done nothing of it."""
        read, lengths, setting = self._read.clone(), self._lengths.clone(), self._setting.clone()
        try:
            yield
        finally:
            self._read.copy_(read)
            if not captured:
                self._lengths.copy_(lengths)
                self._setting.copy_(setting)
            self._measure()

    def _measure(self) -> None:
        self.longest = int(self._read[: self.rows].max()) if self.rows else 0

    # -- called by the engine -----------------------------------------------------------------------------------------------------

    def reserve(self, rows: int, capacity: int) -> None:
        """Make room for at least so many rows and places."""
        held, heads, places, width = self.key_BKSE[0].shape
        wanted = round_up(max(capacity, 1), self._step)
        if not self.stays:
            to_rows, to_places = max(rows, held), wanted
        else:
            to_rows = held if rows <= held else max(rows, 2 * held)
            to_places = places if wanted <= places else max(wanted, 2 * places)
        if (to_rows, to_places) == (held, places):
            return
        self.layout += 1
        kept = min(self.longest, to_places)
        for stores in (self.key_BKSE, self.value_BKSE):
            for layer, old in enumerate(stores):
                flat = None if self.stays else _kept_memory(self._used, old, to_rows * heads * to_places * width)
                new = _any_memory(old, to_rows, to_places, self._by_column and stores is self.value_BKSE, flat)
                stores[layer], self._used = new, None if self.stays else old
                new[: self.rows, :, :kept] = old[: self.rows, :, :kept]
                new[: self.rows, :, kept:] = 0.0
                new[self.rows :] = 0.0
        for name in ("_read", "_lengths", "_alive", "_setting"):
            old = getattr(self, name)
            new = old.new_zeros(to_rows)
            new[: self.rows] = old[: self.rows]
            setattr(self, name, new)

    def append(self, other: KVCache, rows: Tensor) -> None:
        """Add copies of the other cache's rows (int64, in this order; a row may stand several times) at the end."""
        assert self.prefix is None, "rows with a past of their own cannot join rows that share"
        start, stop = self.rows, self.rows + len(rows)
        self.reserve(stop, max(self.longest, other.longest))
        there = rows.to(self.device)
        for mine, theirs in ((self.key_BKSE, other.key_BKSE), (self.value_BKSE, other.value_BKSE)):
            for target, source in zip(mine, theirs, strict=True):
                target[start:stop, :, : other.longest] = source[there, :, : other.longest]
        self._begin_rows(start, other._read[rows.cpu()], other._setting[there])

    def share(self, other: KVCache, rows: Tensor) -> None:
        """Add rows that go on from the other cache's `rows` (int64; a row may stand several times) without copying them for each.

        All rows of a cache share prefixes, or none does. Prefixes that no row goes on from any more are left out.
        """
        assert self.prefix is not None or self.rows == 0, "rows with a past of their own cannot join rows that share"
        start, held = self.rows, self.prefix
        read = Prefix(other.key_BKSE, other.value_BKSE, other._read[: other.rows], rows.cpu())
        # Neither the number of prefixes nor their width shrinks where their tensors are to stay.
        least, width = (len(held.lengths), held.key_PKSE[0].shape[2]) if held is not None and self.stays else (0, 0)
        step = PREFIXES if self.stays else 1
        self.prefix = join([read] if held is None or not start else [held, read], least, width, step)
        self.prefix.stays = self.stays
        if held is not None and self.stays and self.prefix.key_PKSE[0].shape == held.key_PKSE[0].shape:
            for old, new in zip((*held.key_PKSE, *held.value_PKSE), (*self.prefix.key_PKSE, *self.prefix.value_PKSE), strict=True):
                old.copy_(new)
            self.prefix = replace(held, lengths=self.prefix.lengths, owner=self.prefix.owner)
        else:
            self.layout += 1
        self.reserve(start + len(rows), max(self.longest, 1))
        self._begin_rows(start, torch.zeros(len(rows), dtype=torch.int64), other._setting[rows.to(self.device)])

    def _begin_rows(self, start: int, lengths: Tensor, setting: Tensor) -> None:
        self.rows = start + len(lengths)
        self._read[start : self.rows] = lengths
        self._setting[start : self.rows] = setting
        self._settle()

    def _settle(self) -> None:
        """Rows have come or gone: the device is told."""
        self._read[self.rows :] = 0
        self._lengths.copy_(self._read)
        self._alive.copy_(torch.arange(len(self._read)) < self.rows)
        if self.prefix is not None:
            self.layout += self.prefix.arrange(len(self._read))
        self._measure()

    def drop(self, gone: Tensor) -> tuple[Tensor, Tensor]:
        """Remove the rows where `gone` bool[rows] is true.

        Returns:
            source, target: int64, on the CPU; row source[i] now stands at target[i], all others where they stood. Whoever keeps things by
            row does the same: `x[target] = x[source]; x = x[:cache.rows]`.
        """
        gone = gone.cpu()
        kept = int((~gone).sum())
        target = torch.nonzero(gone[:kept])[:, 0]
        source = kept + torch.nonzero(~gone[kept:])[:, 0]
        to, of = target.to(self.device), source.to(self.device)
        for store in (*self.key_BKSE, *self.value_BKSE):
            store[to, :, : self.longest] = store[of, :, : self.longest]
        self._read[target] = self._read[source]
        self._setting[to] = self._setting[of]
        if self.prefix is not None:
            owner = self.prefix.owner.clone()
            owner[target] = owner[source]
            self.prefix = replace(self.prefix, owner=owner[:kept])
        self.rows = kept
        self._settle()
        return source, target

    def take(self, rows: Tensor) -> KVCache:
        """A new cache of these rows (int64, in this order; a row may stand several times), to look ahead with: no step of it is captured."""
        store = self.key_BKSE[0]
        taken = KVCache(self.config, 0, 1, store.dtype, store.device, stays=False, by_column=self._by_column)
        taken.reserve(len(rows), self.longest + 1)
        taken.append(self, rows)
        if self.prefix is not None:
            shared = self.prefix
            taken.prefix = Prefix(shared.key_PKSE, shared.value_PKSE, shared.lengths, shared.owner[rows.cpu()])
            taken._settle()
        return taken
