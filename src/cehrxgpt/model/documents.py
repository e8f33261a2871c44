"""Where the documents of packed rows stand, for attention that never crosses from one to another. Dimension letters as in `transformer`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LIKE_LENGTH = 1.25  # documents share an attention call while the longest is at most this much longer than the shortest ...
SLACK = 8  # ... or at most this many places longer
NARROW = 3  # times as many scores as the documents have; up to here packed rows are attended whole on CPUs in bfloat16


class DocumentGroups:
    """Where the documents of packed rows stand, grouped by like length; made once per forward pass.

    Attributes:
        places: one int64[N, longest] per group: flat place (row * T + column) of each token; beyond a document's end its last token.
        kept: one int64 per group: which of the group's N * longest places are real.
        back: int64[B*T]: for each place, where its result stands in the concatenated results; 0 = the zero row, for padding.
        unseen_BTT: where the rows are narrow, -1e4 at places that are later or of another document, else 0; None in wide rows, where writing
            it out would cost more than the documents do.
    """

    def __init__(self, segment_id_BT: Tensor):
        device = segment_id_BT.device
        segment = segment_id_BT.detach().cpu().numpy()
        rows, width = segment.shape
        change = np.ones((rows, width), dtype=bool)
        change[:, 1:] = segment[:, 1:] != segment[:, :-1]
        first = np.flatnonzero(change)
        length = np.diff(np.append(first, rows * width))
        first, length = first[segment.ravel()[first] > 0], length[segment.ravel()[first] > 0]
        order = np.argsort(length, kind="stable")
        first, length = first[order], length[order]
        self.places: list[Tensor] = []
        self.kept: list[Tensor] = []
        back = np.zeros(rows * width, dtype=np.int64)
        done, low = 1, 0
        while low < len(length):
            limit = max(length[low] * LIKE_LENGTH, length[low] + SLACK)
            high = int(np.searchsorted(length, limit, side="right"))
            column = np.arange(length[high - 1])
            place = first[low:high, None] + np.minimum(column, length[low:high, None] - 1)
            kept = np.flatnonzero((column < length[low:high, None]).ravel())
            back[place.ravel()[kept]] = done + np.arange(len(kept))
            self.places.append(torch.from_numpy(place).to(device))
            self.kept.append(torch.from_numpy(kept).to(device))
            done, low = done + len(kept), high
        self.back = torch.from_numpy(back).to(device)
        self.unseen_BTT: Tensor | None = None
        # Rows about as wide as their documents are long lose little by looking at all of a row.
        if rows * width**2 <= NARROW * int((length**2).sum()):
            place = np.arange(width)
            other = (segment[:, :, None] != segment[:, None, :]) | (place > place[:, None])
            self.unseen_BTT = torch.from_numpy(np.where(other, np.float32(-1e4), np.float32(0))).to(device)


@dataclass(frozen=True)
class DocumentEnds:
    """Where documents begin and end in the flattened rows, for kernels that take them of any length. Padding counts as documents, too.

    Attributes:
        bounds: int32[documents + 1]; flat place (row * T + column) at which each begins; the last is B * T.
        longest: no document has more tokens.
    """

    bounds: Tensor
    longest: int

    @classmethod
    def of(cls, segment_id_BT: Tensor) -> DocumentEnds:
        """Those of packed rows; no document goes on into another row."""
        begins = torch.ones_like(segment_id_BT, dtype=torch.bool)
        begins[:, 1:] = segment_id_BT[:, 1:] != segment_id_BT[:, :-1]
        first = begins.flatten().nonzero().squeeze(1)
        return cls(F.pad(first, (0, 1), value=segment_id_BT.numel()).to(torch.int32), segment_id_BT.shape[1])


Documents = DocumentGroups | DocumentEnds | None


def documents_of(segment_id_BT: Tensor, dtype: torch.dtype) -> Documents:
    """What attention must know of the documents in a batch whose weights have this type; None = plain causal attention does."""
    if segment_id_BT.is_cuda:
        dtype = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else dtype
        if dtype.itemsize == 2:
            return DocumentEnds.of(segment_id_BT)
    return None if right_padded(segment_id_BT) else DocumentGroups(segment_id_BT)


def right_padded(segment_id_BT: Tensor) -> bool:
    """Every row is one segment, then padding: plain causal attention is exact."""
    real = segment_id_BT > 0
    one_segment = (segment_id_BT == segment_id_BT[:, :1]) | ~real
    return bool((one_segment.all() & (real[:, 1:] <= real[:, :-1]).all()).item())
