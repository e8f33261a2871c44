"""Drawing tokens: random numbers that depend on nothing but who is asked, and the inverse of the cumulative distribution.

The number behind a draw is a pure function of (seed, subject_id, prediction_time, sample_id, step): a chain of 64-bit mixers
(SplitMix64's finaliser, a bijection, so that different arguments never meet before the state is full), of which the upper 53 bits are
taken. No generator is carried along, so a future is the same whichever rows share its batch, and a run can be cut and resumed at will.

A token is drawn from the full distribution: no top-k, no top-p, temperature 1 unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

UInt = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
NO_TIME = np.datetime64("NaT", "us")


def _mix(x: UInt) -> UInt:
    """SplitMix64's finaliser; arithmetic is modulo 2^64."""
    x = (x ^ (x >> _SHIFTS[0])) * _MIX_1
    x = (x ^ (x >> _SHIFTS[1])) * _MIX_2
    return x ^ (x >> _SHIFTS[2])


def _absorb(state: UInt, word: UInt) -> UInt:
    return _mix(state ^ _mix(word + _GOLDEN))


def _words(values: npt.ArrayLike) -> UInt:
    return np.atleast_1d(np.asarray(values, dtype=np.int64)).view(np.uint64)


def keys(
    seed: int, subject_id: npt.ArrayLike, prediction_time: Sequence[np.datetime64 | None] | npt.NDArray[np.datetime64], sample_id: npt.ArrayLike
) -> UInt:
    """The key of each future, uint64[R]: (seed, subject, prediction time or None, sample)."""
    times = np.array([NO_TIME if time is None else time for time in prediction_time], dtype="datetime64[us]")
    state = _mix(np.array([seed % 2**64], dtype=np.uint64) + _GOLDEN)
    for word in (_words(subject_id), times.view(np.int64).view(np.uint64), _words(sample_id)):
        state = _absorb(state, word)
    return state


def uniform(key: UInt, step: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The random number of each future at its step (0 = its first new token), float64[R] in [0, 1)."""
    return (_absorb(key, _words(step)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def masked_weights(logits_RV: Tensor, allowed_RV: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """Unnormalised probabilities of the allowed tokens, zero elsewhere.

    Returns:
        weights: [R, V], in the logits' precision or, where float32 would lose them, as float64.
        share: float64[R], what part of the model's own mass the allowed tokens hold.
    """
    logits_RV = logits_RV if logits_RV.dtype == torch.float64 else logits_RV.float()
    if temperature != 1.0:
        logits_RV = logits_RV / temperature
    weights = (logits_RV - logits_RV.amax(-1, keepdim=True)).exp_()
    everything = weights.sum(-1).double()
    weights.mul_(allowed_RV)
    share = weights.sum(-1).double() / everything
    faint = share < 1e-20
    if bool(faint.any()):
        # The model gives next to nothing to what may follow: take the largest allowed logit as the origin instead.
        weights = weights.double()
        masked = logits_RV[faint].double().masked_fill(~allowed_RV[faint], float("-inf"))
        weights[faint] = (masked - masked.amax(-1, keepdim=True)).exp()
    return weights, share


def draw(weights_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverse CDF.

    Args:
        weights_RV: unnormalised probabilities, at least one of each row positive.
        uniform_R: float64 in [0, 1).

    Returns:
        token: int64[R], the first whose cumulative weight exceeds `uniform` of the total.
        log_probability: float64[R], of the drawn token within the weights.
    """
    cumulative = weights_RV.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1]
    token = torch.searchsorted(cumulative, (uniform_R * total)[:, None], right=True)[:, 0]
    beyond = token >= weights_RV.shape[1]
    if bool(beyond.any()):  # uniform * total was rounded up to the total: the last token that has weight
        last = weights_RV.shape[1] - 1 - (weights_RV.flip(-1) > 0).to(torch.uint8).argmax(-1)
        token = torch.where(beyond, last, token)
    chosen = weights_RV.gather(1, token[:, None])[:, 0].double()
    return token, (chosen / total).log()
