"""Drawing tokens: random numbers that depend on nothing but who is asked, and the inverse of the cumulative distribution.

The number behind a draw is a pure function of (seed, subject_id, prediction_time, sample_id, step): a chain of 64-bit mixers
(SplitMix64's finaliser, a bijection, so that different arguments never meet before the state is full), of which the upper 53 bits are
taken; a future that is drawn anew adds which attempt it is, before the step. No generator is carried along, so a future is the same
whichever rows share its batch, and a run can be cut and resumed at will.

A token is drawn from the full distribution: no top-k, no top-p, temperature 1 unless asked otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.model.precision import wide_dtype

UInt = npt.NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SHIFTS = (np.uint64(30), np.uint64(27), np.uint64(31))
NO_TIME = np.datetime64("NaT", "us")
BLOCK = 64  # tokens that are summed before it is known in which of these sums a draw falls
LOWEST = -1e300  # stands for logits of -inf where there is no other
FAINT = 1e-20  # less allowed mass than this is not read off probabilities in float32


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


def anew(key: UInt, attempt: npt.NDArray[np.int64]) -> UInt:
    """The keys of futures that are drawn from their prompts for the `attempt`-th time more, 0 the first; steps are never below zero."""
    return np.where(attempt > 0, _absorb(key, _words(-attempt)), key)


def uniform(key: UInt, step: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The random number of each future at its step (0 = its first new token), float64[R] in [0, 1)."""
    return (_absorb(key, _words(step)) >> np.uint64(11)).astype(np.float64) * 2.0**-53


class Workspace:
    """Two numbers for each row and token, kept from step to step.

    Memory of that size, asked for anew, comes from the system page by page and goes back at once, which takes several times as long as
    what is computed in it.
    """

    def __init__(self) -> None:
        self._weights = self._allowed = torch.empty(0, 0)

    def __call__(self, logits_RV: Tensor) -> tuple[Tensor, Tensor]:
        """Room for the weights and for what is allowed, two [R, V] of any content; valid until the next call."""
        rows, tokens = logits_RV.shape
        if len(self._weights) < rows or self._weights.shape[1] != tokens:
            self._weights, self._allowed = (torch.empty(rows, tokens, dtype=wide_dtype(logits_RV), device=logits_RV.device) for _ in range(2))
        return self._weights[:rows], self._allowed[:rows]


def masked_weights(
    logits_RV: Tensor, allowed_PV: Tensor, phase_R: Tensor, temperature: float = 1.0, room: Workspace | None = None
) -> tuple[Tensor, Tensor]:
    """Probabilities of the allowed tokens, not renormalised, and zero elsewhere.

    Args:
        allowed_PV: 1 where a token may come in a phase, else 0; in `wide_dtype`.
        phase_R: int64, of each row.
        room: where the result is written; None: into memory of its own.

    Returns:
        weights: [R, V] in float32 (float64 for such logits) or, where float32 would lose them, unnormalised as float64.
        share: float64[R], what part of the model's own mass the allowed tokens hold.
    """
    weights, allowed_RV = (Workspace() if room is None else room)(logits_RV)
    weights.copy_(logits_RV)
    if temperature != 1.0:
        weights.div_(temperature)
    torch.softmax(weights, dim=-1, out=weights)
    weights.mul_(torch.index_select(allowed_PV, 0, phase_R, out=allowed_RV))
    share = weights.sum(-1).double().nan_to_num_(0.0)  # all logits -inf
    faint = share < FAINT
    if bool(faint.any()):
        # The model gives next to nothing to what may follow: take the largest allowed logit as the origin instead. Nothing at all: as good as any.
        weights = weights.double()
        masked = (logits_RV[faint].double() / temperature).clamp_(min=LOWEST).masked_fill_(allowed_RV[faint] == 0, float("-inf"))
        weights[faint] = (masked - masked.amax(-1, keepdim=True)).exp()
    return weights, share.clamp_(max=1.0)


def draw(weights_RV: Tensor, uniform_R: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row by inverse CDF, in two levels: the block of tokens in which it falls, then the token; sums of blocks are float64.

    Args:
        weights_RV: unnormalised probabilities, at least one of each row positive.
        uniform_R: float64 in [0, 1).

    Returns:
        token: int64[R], the first whose cumulative weight exceeds `uniform` of the total.
        log_probability: float64[R], of the drawn token within the weights.
    """
    rows, tokens = weights_RV.shape
    whole = tokens - tokens % BLOCK
    sums = weights_RV[:, :whole].view(rows, -1, BLOCK).sum(-1)  # of few numbers: in their own precision
    if whole < tokens:
        sums = torch.cat([sums, weights_RV[:, whole:].sum(-1, keepdim=True)], dim=1)
    sums = sums.double()
    cumulative = sums.cumsum(-1)
    total = cumulative[:, -1:]
    target = uniform_R[:, None] * total
    block = _first_above(cumulative, target)
    # The last block may be short: its last token is read again, without weight.
    place = block * BLOCK + torch.arange(BLOCK, device=weights_RV.device)
    inside = weights_RV.gather(1, place.clamp(max=tokens - 1)).double().masked_fill_(place >= tokens, 0.0)
    before = cumulative.gather(1, block) - sums.gather(1, block)
    column = _first_above(inside.cumsum(-1).add_(before), target)
    return (block * BLOCK + column)[:, 0], (inside.gather(1, column) / total).log_()[:, 0]


def _first_above(cumulative: Tensor, target: Tensor) -> Tensor:
    """The first column whose cumulative sum is above `target` [R, 1]; where rounding leaves none, the last that adds to it."""
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())
    return torch.minimum(torch.searchsorted(cumulative, target, right=True), last)
