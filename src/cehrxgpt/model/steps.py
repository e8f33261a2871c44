"""A decoder arranged for reading one token a row on a CPU, where a step is made of many small operations and each of them counts.

The numbers are those of `Decoder.forward` with a cache, but for rounding. What differs is the order of the work:

    weights    what norms multiply by stands in the matrices behind them; the factors 1/sqrt(E) and log2(e) in the norm of the queries
    rotation   one table of complex numbers a step, for the heads of queries and keys at once
    attention  normalised queries and keys bound every score, so that exponentials need no maximum (`attention.bounded_attention`)

Dimension letters as in `transformer`; N = B*K.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cehrxgpt.model.attention import bounded_attention
from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.care_setting import CareSetting
from cehrxgpt.model.lines import empty_rows
from cehrxgpt.model.precision import wide_dtype
from cehrxgpt.model.rotary import Rotation
from cehrxgpt.model.transformer import Attention, Block, Decoder, FeedForward, RMSNorm

LOG2_E = math.log2(math.e)  # e^x is 2^(x log2(e))
LARGEST_SCORE = 60.0  # e to this, times the longest context, is far from overflow, and its inverse from underflow
PRECISIONS = (torch.bfloat16, torch.float32, torch.float64)  # float16 ends at e^11
OWN_MODULES = {Decoder, CareSetting, Block, Attention, FeedForward, RMSNorm, nn.Embedding, nn.Linear, nn.ModuleList}


def arranged(decoder: nn.Module, dtype: torch.dtype) -> Steps | None:
    """The decoder arranged for single tokens, or None where its own `forward` must be called.

    That is off CPUs, in float16, where scores have no bound, and where the decoder does more than its weights say: another kind of
    model, a layer replaced (adapters that are not merged, quantised or parametrised weights), hooks.
    """
    if type(decoder) is not Decoder or decoder.embedding.weight.device.type != "cpu" or dtype not in PRECISIONS:
        return None
    plain = all(_is_plain(module) for module in decoder.modules())
    return Steps(decoder, dtype) if plain and largest_score(decoder) <= LARGEST_SCORE else None


def _is_plain(module: nn.Module) -> bool:
    """Whether a module computes what its class says and nothing else."""
    hooked = module._forward_hooks or module._forward_pre_hooks
    return type(module) in OWN_MODULES and not hooked and not {"forward", "head"} & set(vars(module))


@torch.no_grad()
def largest_score(decoder: Decoder) -> float:
    """No score of attention can be larger: normalised queries and keys are sqrt(E) long before they are multiplied by their weights."""
    norms = [(block.attention.query_norm.weight, block.attention.key_norm.weight) for block in _blocks(decoder)]
    bounds = torch.stack([query.abs().amax() * key.abs().amax() for query, key in norms])
    return float(bounds.amax()) * float(decoder.config.head_width) ** 0.5  # what is no number stays none


def _blocks(decoder: Decoder) -> list[Block]:
    return cast(list[Block], list(decoder.blocks))


@dataclass(frozen=True)
class _Layer:
    """Matrices as [in, out]; `qk_norm_HE` [H + K, E] is what normalised queries and keys are multiplied by."""

    query_key_value: Tensor
    qk_norm_HE: Tensor
    output: Tensor
    gate: Tensor
    up: Tensor
    down: Tensor

    @classmethod
    def of(cls, block: Block, dtype: torch.dtype) -> _Layer:
        attention, feedforward = block.attention, block.feedforward
        E = attention.head_width
        query, key = attention.query_norm.weight.expand(attention.heads, E), attention.key_norm.weight.expand(attention.kv_heads, E)
        output = attention.output.weight.to(dtype).t()
        wide = wide_dtype(output)
        # Two products: of one, the gate would be half of each row, and on such SiLU takes twice as long.
        gate, up = _folded(feedforward.gate_up.weight, block.feedforward_norm, dtype).chunk(2, dim=1)
        return cls(
            query_key_value=_folded(attention.query_key_value.weight, block.attention_norm, dtype),
            qk_norm_HE=torch.cat([query.to(wide) * (E**-0.5 * LOG2_E), key.to(wide)]),
            output=output,
            gate=gate,
            up=up,
            down=feedforward.down.weight.to(dtype).t(),
        )


def _folded(weight: Tensor, norm: RMSNorm, dtype: torch.dtype) -> Tensor:
    """A matrix behind a norm, [in, out], with what the norm multiplies by; rounded once."""
    return (weight.to(wide_dtype(weight)) * norm.weight).to(dtype).t()


class Steps:
    """Reads one token a row, without gradients. It is of the decoder's weights as they were: when they change, arrange anew.

    Args:
        decoder: one that `arranged` admits.
        dtype: precision to compute in: bfloat16, float32 or float64.
    """

    def __init__(self, decoder: Decoder, dtype: torch.dtype):
        self.config = decoder.config
        with torch.no_grad():
            self.layers = [_Layer.of(block, dtype) for block in _blocks(decoder)]
            self.embedding = decoder.embedding.weight.to(dtype)
            self.care_setting = None if decoder.care_setting is None else copy.deepcopy(decoder.care_setting).to(dtype)
            self.norm_D = decoder.norm.weight.to(wide_dtype(self.embedding))
            weight, bias = decoder.head_weights()
            self.head_VD = self.embedding if decoder.untied is None else weight.to(dtype)
            self.head_bias_V = None if bias is None else bias.to(dtype)
        self.frequencies = decoder.frequencies_on(self.embedding.device)

    def __call__(self, token_B: Tensor, age_minutes_B: Tensor, cache: KVCache) -> Tensor:
        """Hidden states [B, D] behind one more token in each row; keys and values are added to the cache, which must hold something."""
        assert not torch.is_grad_enabled(), "single tokens are read without gradients"
        config, dtype, wide = self.config, self.embedding.dtype, self.norm_D.dtype
        B, H, K, E = len(token_B), config.heads, config.kv_heads, config.head_width
        cache.prepare(B, 1)
        position_B = cache.positions(B)
        cache.begin(1, None, B)
        mask_N1S = cache.mask_NQS
        assert mask_N1S is not None, "nothing has been read"
        x_BD = self.embedding.index_select(0, token_B).to(wide)
        if self.care_setting is not None:
            x_BD = self.care_setting(x_BD[:, None], token_B[:, None], position_B[:, None], cache)[:, 0]
        turn_BHP = None
        if config.rotary != "none":
            turn_BHP = Rotation(position_B[:, None], age_minutes_B[:, None], *self.frequencies, wide).of_all_heads(H // K)[0][:, 0]
        for index, layer in enumerate(self.layers):
            qkv = torch.mm(_normalised(x_BD, config.norm_eps).to(dtype), layer.query_key_value).view(B, H + 2 * K, E)
            qk, v_BKE = qkv.split((H + K, K), dim=1)
            qk = _normalised(qk.to(wide), config.norm_eps).mul_(layer.qk_norm_HE)
            if turn_BHP is not None:
                torch.view_as_complex(qk.unflatten(-1, (-1, 2))).mul_(turn_BHP)
            q, k_BKE = qk.to(dtype).split((H, K), dim=1)
            key_BKSE, value_BKSE = cache.write(index, k_BKE[:, None], v_BKE[:, None])
            q_NGE = q.reshape(B * K, H // K, E)
            seen_NGE = bounded_attention(q_NGE, key_BKSE.flatten(0, 1), value_BKSE.flatten(0, 1), mask_N1S, cache.prefix, index)
            x_BD.add_(torch.mm(seen_NGE.view(B, H * E), layer.output))
            normal_BD = _normalised(x_BD, config.norm_eps).to(dtype)
            gate_BF = F.silu(torch.mm(normal_BD, layer.gate), inplace=True)
            x_BD.add_(torch.mm(gate_BF.mul_(torch.mm(normal_BD, layer.up)), layer.down))
        cache.end()
        return _normalised(x_BD, config.norm_eps).mul_(self.norm_D).to(dtype)

    def logits(self, hidden_RD: Tensor) -> Tensor:
        """Of the next token, [R, V]."""
        assert not torch.is_grad_enabled(), "single tokens are read without gradients"
        if hidden_RD.dtype.itemsize == 2:
            return F.linear(hidden_RD, self.head_VD, self.head_bias_V)
        logits_RV = empty_rows(len(hidden_RD), len(self.head_VD), hidden_RD)
        torch.mm(hidden_RD, self.head_VD.t(), out=logits_RV)
        return logits_RV if self.head_bias_V is None else logits_RV.add_(self.head_bias_V)


def _normalised(x: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) over the last dimension."""
    root = x.shape[-1] ** 0.5
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.hypot(length, length.new_full((), root * eps**0.5)).div_(root)
