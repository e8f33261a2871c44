"""States of many sequences at once: read in batches of like length, and those that begin with each other read once.

Attention is causal, so one reading of the longest of such sequences has the states of all. Cost: one forward pass, padding kept small.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.model.transformer import Decoder

Tokens = npt.NDArray[np.int32]
Weigh = Callable[[Tokens], npt.NDArray[np.bool_]]


def pooled_states(decoder: Decoder, sequences: Sequence[tuple[Tokens, Tokens]], *, batch_tokens: int = 16_384, places: Weigh | None = None) -> Tensor:
    """One state per sequence, [N, D] on the CPU in the decoder's precision.

    Args:
        decoder: in evaluation mode.
        sequences: (token ids, ages in minutes) of each; none is empty.
        batch_tokens: places read at once, padding included.
        places: of a sequence's tokens, those whose states are averaged; None, or where it names none: the last token's state.
    """
    pooled = torch.zeros(len(sequences), decoder.config.width, dtype=decoder.embedding.weight.dtype)
    readings = sorted(_readings(sequences), key=lambda reading: len(sequences[reading[0]][0]), reverse=True)
    start = 0
    while start < len(readings):
        stop = start + max(batch_tokens // len(sequences[readings[start][0]][0]), 1)
        _read_batch(decoder, sequences, readings[start:stop], places, pooled)
        start = stop
    return pooled


def _readings(sequences: Sequence[tuple[Tokens, Tokens]]) -> list[list[int]]:
    """Sequences that begin with each other, longest first.

    In the order of their bytes whatever begins with a sequence follows it directly, so each is compared with its successor alone.
    """
    written = [np.stack([token, age], axis=1, dtype=np.int32).tobytes() for token, age in sequences]
    readings: list[list[int]] = []
    successor = b""
    for index in sorted(range(len(sequences)), key=written.__getitem__, reverse=True):
        if not successor.startswith(written[index]):
            readings.append([])
        readings[-1].append(index)
        successor = written[index]
    return readings


def _read_batch(
    decoder: Decoder, sequences: Sequence[tuple[Tokens, Tokens]], readings: list[list[int]], places: Weigh | None, pooled: Tensor
) -> None:
    whole = [sequences[reading[0]] for reading in readings]
    length = np.array([len(token) for token, _ in whole])
    column = np.arange(length.max())
    real = column < length[:, None]
    token, age = np.zeros(real.shape, dtype=np.int64), np.zeros(real.shape, dtype=np.int64)
    token[real] = np.concatenate([one for one, _ in whole])
    age[real] = np.concatenate([one for _, one in whole])
    device = decoder.embedding.weight.device
    with torch.inference_mode():
        hidden_BTD = decoder(
            torch.from_numpy(token).to(device),
            position=torch.from_numpy(np.broadcast_to(column, real.shape).copy()).to(device),
            age_minutes=torch.from_numpy(age).to(device),
            segment_id=torch.from_numpy(real.astype(np.int64)).to(device),
        )
        for row, reading in enumerate(readings):
            last = np.array([len(sequences[index][0]) - 1 for index in reading])
            weight = column == last[:, None]
            if places is not None:
                chosen = places(token[row].astype(np.int32)) & (column <= last[:, None])
                weight = np.where(chosen.any(1, keepdims=True), chosen, weight)
            share = torch.from_numpy(weight / weight.sum(1, keepdims=True)).to(device, hidden_BTD.dtype)
            pooled[reading] = (share @ hidden_BTD[row]).cpu()
