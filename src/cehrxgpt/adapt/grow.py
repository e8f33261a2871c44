"""A decoder whose vocabulary has grown: old weights bit for bit, a new row per new token, and old predictions that hardly move.

A new token j starts as the mean of old tokens R(j) that it resembles, w_j = sum of a_ij w_i with weights a_ij that sum to one, and the head gains
a bias: what it was (zero) for old tokens, b_j for new ones. As exp is convex, for *any* hidden state h

    exp(h.w_j + b_j)  <=  exp(b_j) * sum over i of a_ij exp(h.w_i)

so with exp(b_j) = eps q_j / max over i in R(j) of c_i,  c_i = sum over j of a_ij q_j,  all new tokens together get at most eps of the old tokens'
mass, in every context, and no old token's log-probability falls by more than log(1 + eps) < eps. The bound needs no data; rounding adds about
1e-6 in float32. q_j are the patients who have token j, so that new tokens start in their own proportions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cehrxgpt.errors import MismatchError
from cehrxgpt.model.transformer import Decoder
from cehrxgpt.timeline.kinds import EVENT_KINDS, Kind
from cehrxgpt.timeline.vocabulary import Vocabulary

NEW_MASS = 0.005  # eps: old log-probabilities fall by less than this
CARE_SETTING = "care_setting.embedding.weight"
NUMBERED = (
    Kind.YEAR,
    Kind.MONTH,
    Kind.AGE,
    Kind.AGE_MONTHS,
    Kind.STAY_DAY,
    Kind.DAY_GAP,
    Kind.YEAR_GAP,
    Kind.IN_VISIT_DAYS,
    Kind.IN_VISIT_HOURS,
    Kind.BIN,
)

Start = Literal["related", "kind", "random"]
Ints = npt.NDArray[np.int64]


def check_extends(old: Vocabulary, new: Vocabulary) -> None:
    """Raise `MismatchError` unless every row of `old` stands in `new` as it was."""
    for one, other, said in ((old, new, "split"), (new, old, "fused")):
        if one.split_values and (other.kind == Kind.VALUE).any():
            raise MismatchError(f"the model's vocabulary has {said} values and the other has not (tokenize --values); expand the model's own")
    if len(new) < len(old) or not new.table.slice(0, len(old)).equals(old.table):
        raise MismatchError(f"a vocabulary of {len(new):,} tokens does not extend the model's {len(old):,}; expand the model's own")


def grow(
    decoder: Decoder,
    old: Vocabulary,
    new: Vocabulary,
    *,
    ancestors: Mapping[str, Sequence[str]] | None = None,
    start: Start = "related",
) -> Decoder:
    """The decoder for the larger vocabulary; the decoder itself where nothing is new.

    Args:
        decoder: of the vocabulary `old`; it is not changed.
        new: made by `expand`.
        ancestors: code -> all its ancestors' codes, where an ontology is at hand.
        start: where new rows begin: at tokens that they resemble, at the mean of their kind, or normal with deviation 0.02.

    Raises:
        MismatchError: `new` does not extend `old`, or the decoder has another vocabulary.
    """
    check_extends(old, new)
    if decoder.config.vocabulary_size != len(old):
        raise MismatchError(f"the model knows {decoder.config.vocabulary_size:,} tokens, its vocabulary has {len(old):,}")
    if len(new) == len(old):
        return decoder
    relatives = Relatives(old, new, ancestors or {}, start)
    parents = [relatives.of(index) for index in range(len(old), len(new))]
    state = dict(decoder.state_dict())
    for name in ("embedding.weight", "untied.weight"):
        if name in state:
            state[name] = torch.cat([state[name], _rows(state[name], parents, start)])
    bias = state.get("head_bias", torch.zeros(len(old), dtype=decoder.embedding.weight.dtype))
    weight = np.array([new.subjects[index] or 1 for index in range(len(old), len(new))], dtype=np.float64)
    state["head_bias"] = torch.cat([bias, _biases(bias, parents, weight)])
    settings = decoder.config.care_settings
    if settings:
        added = [index for index in new.care_settings if index >= len(old)]
        weight_SD = state[CARE_SETTING]
        state[CARE_SETTING] = torch.cat([weight_SD, *(_setting_row(weight_SD, settings, parents[index - len(old)]) for index in added)])
        settings = (*settings, *added)
    with torch.device("meta"):
        grown = Decoder(replace(decoder.config, vocabulary_size=len(new), head_bias=True, care_settings=settings))
    grown.load_state_dict(state, assign=True)
    return grown.train(decoder.training)


def release(grown: Decoder, first_new: int) -> Decoder:
    """A copy whose new tokens have no bias against them: where training begins.

    An optimiser that moves every number by about its learning rate per step would be busy for thousands of steps undoing the bias.
    """
    released = copy.deepcopy(grown)
    if released.head_bias is not None:
        released.head_bias.data[first_new:] = 0
    return released


def _rows(weight_VD: Tensor, parents: list[Ints], start: Start) -> Tensor:
    if start == "random":
        return torch.empty(len(parents), weight_VD.shape[1], dtype=weight_VD.dtype).normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    return torch.stack([weight_VD[torch.from_numpy(among)].mean(0) for among in parents])


def _setting_row(weight_SD: Tensor, settings: tuple[int, ...], among: Ints) -> Tensor:
    """Of a new care setting, [1, D]: the mean of those it resembles; of all where it resembles none."""
    alike = [number for number, token in enumerate(settings, start=1) if token in among]
    return weight_SD[alike or list(range(1, len(weight_SD)))].mean(0, keepdim=True)


def _biases(bias_V: Tensor, parents: list[Ints], weight: npt.NDArray[np.float64]) -> Tensor:
    """b_j; where old tokens have a bias of their own, the mean of the parents' goes on top."""
    claims = np.zeros(len(bias_V))  # c_i
    for among, one in zip(parents, weight, strict=True):
        claims[among] += one / len(among)
    crowd = np.array([claims[among].max() for among in parents])
    inherited = np.array([float(bias_V[torch.from_numpy(among)].double().mean()) for among in parents])
    return torch.from_numpy(inherited + math.log(NEW_MASS) + np.log(weight / crowd)).to(bias_V.dtype)


class Relatives:
    """Old tokens that each new one begins as the mean of.

    Args:
        ancestors, start: see `grow`.
    """

    def __init__(self, old: Vocabulary, new: Vocabulary, ancestors: Mapping[str, Sequence[str]], start: Start):
        self.old, self.new, self.ancestors, self.start = old, new, ancestors, start
        self._tokens: dict[str, dict[Kind, list[int]]] = {}  # code -> kind -> old ids
        for index, (code, kind) in enumerate(zip(old.code, old.kind, strict=True)):
            if code is not None:
                self._tokens.setdefault(code, {}).setdefault(Kind(int(kind)), []).append(index)
        self._bins: dict[tuple[str | None, str | None], list[int]] = {}  # (code, unit) -> new bins, ascending
        for index in range(len(old), len(new)):
            if new.kind[index] == Kind.VALUE:
                self._bins.setdefault((new.code[index], new.unit[index]), []).append(index)

    def of(self, index: int) -> Ints:
        """Old ids; never empty."""
        kind = Kind(int(self.new.kind[index]))
        if self.start != "related":
            return self._of_kind(kind, None)
        if kind in NUMBERED:
            return self._nearest_number(kind, int(self.new.amount[index]))
        related = self._of_code(index, kind)
        return self._of_kind(kind, self.new.origin[index]) if related is None else np.array(related)

    def _nearest_number(self, kind: Kind, amount: int) -> Ints:
        same = self.old.ids_of_kind(kind)
        return same[[int(np.abs(self.old.amount[same] - amount).argmin())]] if len(same) else self._of_kind(kind, None)

    def _of_code(self, index: int, kind: Kind) -> list[int] | None:
        """The same code, at the same place among its bins; else the nearest ancestor."""
        code = self.new.code[index] or ""
        own = self._tokens.get(code, {})
        if kind == Kind.VALUE and kind in own:
            bins = self._bins[self.new.code[index], self.new.unit[index]]
            place = (bins.index(index) + 0.5) / len(bins)
            units = dict.fromkeys(self.old.unit[i] for i in own[kind])
            runs = [[i for i in own[kind] if self.old.unit[i] == unit] for unit in units]
            return [run[int(place * len(run))] for run in runs]
        for same in (kind, Kind.CODE):
            if same in own:
                return own[same]
        # The list of ancestors has no levels: the one that fewest patients have is taken for the nearest.
        known = [i for ancestor in self.ancestors.get(code, ()) for i in self._tokens.get(ancestor, {}).get(Kind.CODE, ())]
        return [min(known, key=lambda i: (self.old.subjects[i] or 0, i))] if known else None

    @cache  # noqa: B019 - as short-lived as what it belongs to
    def _of_kind(self, kind: Kind, origin: str | None) -> Ints:
        """All of the kind, of one origin where it has any; rather those that some training patient had."""
        alike = self.old.ids_of_kind(kind)
        if not len(alike):
            alike = self.old.ids_of_kind(Kind.CODE) if kind in EVENT_KINDS else self.old.ids_of_kind(*EVENT_KINDS)
        for preferred in (lambda i: self.old.subjects[i] is not None, lambda i: origin is not None and self.old.origin[i] == origin):
            some = np.array([preferred(i) for i in alike], dtype=bool)
            alike = alike[some] if some.any() else alike
        return alike
