"""A checkpoint's tensors in pieces: each rank writes the rows it has, and any number of ranks reads the rows it needs.

    weights.safetensors                     all tensors whole: one process, or DDP
    weights-00000-of-00002.safetensors      the rows of rank 0 of two, and what is not distributed
    weights-00001-of-00002.safetensors      the rows of rank 1

`state.json` says of every file of the second kind which one it is `part_of` and, by tensor, its first row and the one after its last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from cehrxgpt.train.distributed import Ranks

Rows = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """Which rows of which tensors a rank has: they are dealt out in chunks of equal size, the last ones shorter or empty.

    Attributes:
        ranks: the processes, seen from this one.
        lengths: rows of each distributed parameter, by name; empty: every rank has everything.
    """

    ranks: Ranks
    lengths: Mapping[str, int] = field(default_factory=dict)

    def rows(self, key: str, dimensions: int) -> Rows | None:
        """Rows that this rank has of the tensor `key`, a parameter's name or `<entry>/<parameter>` of the optimiser; None: all of it."""
        length = self.lengths.get(key.rsplit("/", 1)[-1])
        if length is None or not dimensions:
            return None
        chunk = -(-length // self.ranks.count)
        start = min(self.ranks.rank * chunk, length)
        return start, min(start + chunk, length)

    def part(self, name: str, tensors: Mapping[str, Tensor]) -> tuple[str, dict[str, Tensor], dict[str, Any]]:
        """This rank's share of the logical file `name`: name of its own file, its tensors, and what `state.json` is to say of it."""
        if not self.lengths:
            return name, dict(tensors), {}
        rows = {key: self.rows(key, tensor.dim()) for key, tensor in tensors.items()}
        mine = {key: tensor for key, tensor in tensors.items() if self.ranks.first or rows[key] is not None}
        stem, suffix = name.rsplit(".", 1)
        file = f"{stem}-{self.ranks.rank:05d}-of-{self.ranks.count:05d}.{suffix}"
        return file, mine, {"part_of": name, "rows": {key: found for key, found in rows.items() if found is not None}}


def read(folder: Path, files: Mapping[str, Mapping[str, Any]], name: str, layout: Layout | None = None) -> dict[str, Tensor]:
    """The tensors of the logical file `name`, put together from its parts; empty where it was not written.

    Args:
        folder: of the checkpoint.
        files: from its `state.json`.
        layout: read only the rows this rank has; None: all.
    """
    pieces: dict[str, list[tuple[int, Tensor]]] = {}
    for file, facts in files.items():
        if facts.get("part_of", file) != name:
            continue
        with safe_open(folder / file, framework="pt") as opened:
            for key in opened.keys():  # noqa: SIM118 - no mapping
                first = facts.get("rows", {}).get(key, (0, 0))[0]
                pieces.setdefault(key, []).append((first, _cut(opened, key, first, layout)))
    return {key: _join(found) for key, found in pieces.items()}


def _cut(opened: Any, key: str, first: int, layout: Layout | None) -> Tensor:
    """Of a piece whose first row is number `first`, the rows that this rank has; no others are read."""
    piece = opened.get_slice(key)
    shape = piece.get_shape()
    wanted = layout.rows(key, len(shape)) if layout is not None else None
    if wanted is None:
        return opened.get_tensor(key)
    start, stop = (min(max(edge - first, 0), shape[0]) for edge in wanted)
    return piece[start:stop]


def _join(pieces: list[tuple[int, Tensor]]) -> Tensor:
    if len(pieces) == 1:
        return pieces[0][1]
    return torch.cat([tensor for _, tensor in sorted(pieces, key=lambda piece: piece[0])])
