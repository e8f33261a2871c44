"""What several rows of a cache have read together: it stands once, and each row's queries find it sorted by prefix and head.

Dimension letters as in `transformer`; M = P*K.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

PLACES = {"cpu": 16, "cuda": 32}  # attended places come in multiples of this,
SIBLINGS = 4  # and rows that share a prefix of this


def round_up(number: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-number // step) * step


@dataclass
class Prefix:
    """What several rows have read together, P of them; not written to while they are read.

    Attributes:
        key_PKSE, value_PKSE: one tensor per layer.
        lengths: int64[P], on the CPU; 0 = nobody's, there to keep the shape.
        owner: int64[rows], on the CPU: which prefix each row goes on from.
        slot: int64[P * K * R], which row and key-value head (row * K + head) stands in each place when they are sorted by prefix and head,
            R places for the rows of each prefix, padded with row 0.
        back: int64[B * K], in which of these places each row's heads stand (rows that are nobody's: in the first).
        past_B: int64[B], how long each row's prefix is.
        mask_M1S: [P * K, 1, S], 0 within each prefix, -inf beyond its length; a prefix that is nobody's is seen whole.
        stays: the four tensors stay where they are as long as their shapes allow.
    """

    key_PKSE: list[Tensor]
    value_PKSE: list[Tensor]
    lengths: Tensor
    owner: Tensor
    slot: Tensor | None = None
    back: Tensor | None = None
    past_B: Tensor | None = None
    mask_M1S: Tensor | None = None
    stays: bool = False

    @property
    def arrangement(self) -> tuple[Tensor, Tensor, Tensor]:
        """slot, back, mask_M1S, once they are arranged."""
        assert self.slot is not None, "arrange first"
        assert self.back is not None
        assert self.mask_M1S is not None
        return self.slot, self.back, self.mask_M1S

    def arrange(self, batch_rows: int) -> bool:
        """Sort the rows by prefix, for a batch of B >= rows; the same tensors are filled anew where they still fit. True: they do not."""
        key = self.key_PKSE[0]
        prefixes, heads = key.shape[:2]
        count = torch.bincount(self.owner, minlength=prefixes)
        most = round_up(max(int(count.max()) if prefixes else 0, 1), SIBLINGS)
        if self.slot is not None and self.stays:
            most = max(most, len(self.slot) // (prefixes * heads))
        order = torch.argsort(self.owner, stable=True)
        place = torch.arange(len(order)) - (count.cumsum(0) - count)[self.owner[order]]
        head = torch.arange(heads)
        back = head.repeat(batch_rows, 1) * most
        back[order] += (self.owner[order] * heads * most + place)[:, None]
        slot = head.repeat_interleave(most).repeat(prefixes)
        slot[back[: len(order)].flatten()] = torch.arange(len(order) * heads)
        past = torch.zeros(batch_rows, dtype=torch.int64)
        past[: len(order)] = self.lengths[self.owner]
        beyond = (torch.arange(key.shape[2]) >= self.lengths[:, None]) & (self.lengths[:, None] > 0)
        mask = torch.zeros(beyond.shape, dtype=key.dtype).masked_fill_(beyond, float("-inf"))
        moved = False
        mask = mask.repeat_interleave(heads, dim=0)[:, None]
        for name, values in (("slot", slot), ("back", back.flatten()), ("past_B", past), ("mask_M1S", mask)):
            held = getattr(self, name)
            if held is not None and held.shape == values.shape and self.stays:
                held.copy_(values)
            else:
                setattr(self, name, values.to(key.device))
                moved = True
        return moved


def join(parts: list[Prefix], least: int, least_width: int, step: int) -> Prefix:
    """The rows of one after those of the other; prefixes that no row goes on from are left out.

    There are at least `least` of them and a multiple of `step`, empty ones added, with room for at least `least_width` places.
    """
    used: list[Tensor] = []
    owner: list[Tensor] = []
    before = 0
    for part in parts:
        kept, place = part.owner.unique(return_inverse=True)
        owner.append(place + before)
        used.append(kept)
        before += len(kept)
    lengths = torch.cat([part.lengths[kept] for part, kept in zip(parts, used, strict=True)])
    lengths = torch.nn.functional.pad(lengths, (0, max(least, round_up(len(lengths), step)) - len(lengths)))
    step_width = PLACES[parts[0].key_PKSE[0].device.type]
    width = max(round_up(int(lengths.max()), step_width) if len(lengths) else 0, least_width)

    def stack(stores: Iterable[list[Tensor]]) -> list[Tensor]:
        layers = []
        for tensors in zip(*stores, strict=True):
            joined = tensors[0].new_zeros(len(lengths), tensors[0].shape[1], width, tensors[0].shape[3])
            at = 0
            for tensor, kept in zip(tensors, used, strict=True):
                room = min(width, tensor.shape[2])
                joined[at : at + len(kept), :, :room] = tensor[kept.to(tensor.device), :, :room]
                at += len(kept)
            layers.append(joined)
        return layers

    return Prefix(stack([part.key_PKSE for part in parts]), stack([part.value_PKSE for part in parts]), lengths, torch.cat(owner))
