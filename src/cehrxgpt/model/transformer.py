"""The whole model: a pre-norm decoder with grouped key-value heads that turns by order and by age.

Dimension letters; tensors carry them as suffixes:

    B  rows of a batch           H  query heads                  D  width of the residual stream
    T  places in a row           K  key-value heads              E  width of a head
    S  places in the cache       G  query heads per K, H = K*G   F  inner width of the feed-forward
    N  documents of like length  P  rotary pairs, P = E/2        V  tokens of the vocabulary

Time enters through attention alone (`rotary`), and attention never crosses a segment (`attention`). Where the patient is stands with every
token (`care_setting`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cehrxgpt.model.attention import cached_attention, causal_attention, packed_attention, varlen_attention
from cehrxgpt.model.cache import KVCache
from cehrxgpt.model.care_setting import CareSetting
from cehrxgpt.model.config import ModelConfig
from cehrxgpt.model.documents import DocumentEnds, Documents, documents_of
from cehrxgpt.model.precision import wide_dtype
from cehrxgpt.model.rotary import Rotation, rotary_frequencies


class _Normalise(torch.autograd.Function):
    """RMSNorm with its gradient written down, in two thirds of the passes over memory that autograd's chain of small steps takes:

    r = 1 / sqrt(mean(x^2) + eps),  y = x r,  dx = r (w g - y mean(w g y)),  dw = sum g y
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        r = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        y = x * r
        ctx.save_for_backward(y, r, weight)
        return y * weight

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        y, r, weight = ctx.saved_tensors
        by_y = gradient * weight
        along = (by_y * y).mean(-1, keepdim=True)
        by_weight = (gradient * y).flatten(0, -2).sum(0)
        return torch.addcmul(by_y, y, along, value=-1).mul_(r), by_weight, None


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x^2) + eps) * w, computed in float32 or wider; 16 bits come out where the weights have 16."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
        if self.weight.dtype.itemsize == 2:
            return F.rms_norm(wide, self.weight.shape, self.weight.float(), self.eps).to(self.weight.dtype)
        if wide.device.type == "cpu" and torch.is_grad_enabled():
            return _Normalise.apply(wide, self.weight, self.eps)
        return F.rms_norm(wide, self.weight.shape, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.heads, self.kv_heads, self.head_width = config.heads, config.kv_heads, config.head_width
        self.query_key_value = nn.Linear(config.width, (config.heads + 2 * config.kv_heads) * config.head_width, bias=False)
        self.query_norm = RMSNorm(config.head_width, config.norm_eps)
        self.key_norm = RMSNorm(config.head_width, config.norm_eps)
        self.output = nn.Linear(config.heads * config.head_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, groups: Documents, cache: KVCache | None, layer: int) -> Tensor:
        B, T, _ = x_BTD.shape
        H, K, E = self.heads, self.kv_heads, self.head_width
        qk, v_BTKE = self.query_key_value(x_BTD).view(B, T, H + 2 * K, E).split((H + K, K), dim=2)
        if torch.is_grad_enabled():
            q, k = qk.split((H, K), dim=2)
            q_BTHE, k_BTKE = self.query_norm(q), self.key_norm(k)
            if rotation is not None:
                q_BTHE = rotation(q_BTHE.view(B, T, K, H // K, E)).view(B, T, H, E)
                k_BTKE = rotation(k_BTKE.view(B, T, K, 1, E)).view(B, T, K, E)
            q_BTHE, k_BTKE = q_BTHE.to(v_BTKE.dtype), k_BTKE.to(v_BTKE.dtype)
        else:  # the same with queries and keys as one, where the number of operations counts
            weight_HE = torch.cat([self.query_norm.weight.expand(H, E), self.key_norm.weight.expand(K, E)]).to(wide_dtype(qk))
            qk = F.rms_norm(qk.to(weight_HE.dtype), (E,), None, self.query_norm.eps) * weight_HE
            qk = qk if rotation is None else rotation.turn_all(qk, H // K)
            q_BTHE, k_BTKE = qk.to(v_BTKE.dtype).split((H, K), dim=2)
        if cache is not None:
            k_BKSE, v_BKSE = cache.write(layer, k_BTKE, v_BTKE)
        if cache is not None and not cache.fresh:
            out_BTHE = cached_attention(q_BTHE, k_BKSE, v_BKSE, cache.mask_NQS, cache.prefix, layer)
        elif isinstance(groups, DocumentEnds):
            out_BTHE = varlen_attention(q_BTHE, k_BTKE, v_BTKE, groups)
        elif groups is not None:
            out_BTHE = packed_attention(q_BTHE, k_BTKE, v_BTKE, groups)
        else:
            out_BTHE = causal_attention(q_BTHE, k_BTKE, v_BTKE)
        return self.output(out_BTHE.reshape(B, T, H * E))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.gate_up = nn.Linear(config.width, 2 * config.feedforward_width, bias=False)
        self.down = nn.Linear(config.feedforward_width, config.width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        gate_BTF, up_BTF = self.gate_up(x_BTD).chunk(2, dim=-1)
        return self.down(F.silu(gate_BTF) * up_BTF)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feedforward(norm(x))."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.feedforward_norm = RMSNorm(config.width, config.norm_eps)
        self.feedforward = FeedForward(config)

    def forward(self, x_BTD: Tensor, rotation: Rotation | None, groups: Documents, cache: KVCache | None, layer: int) -> Tensor:
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rotation, groups, cache, layer)
        return x_BTD + self.feedforward(self.feedforward_norm(x_BTD))


class Decoder(nn.Module):
    """Tokens with their places and ages in, hidden states out; `head` turns states into logits.

    Weights start normal with deviation 0.02; those that write into the residual stream are scaled by 1/sqrt(2 * layers), so that
    its variance does not grow with depth.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocabulary_size, config.width)
        self.care_setting = CareSetting(config) if config.care_settings else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.untied = None if config.tie else nn.Linear(config.width, config.vocabulary_size, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(config.vocabulary_size)) if config.head_bias else None
        self._frequencies = rotary_frequencies(config)  # NumPy, so that casting the model leaves them in float64
        self._sent: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._initialise()

    def _initialise(self) -> None:
        for name, weight in self.named_parameters():
            if weight.dim() > 1:
                residual = name.endswith(("attention.output.weight", "feedforward.down.weight"))
                nn.init.normal_(weight, std=0.02 / math.sqrt(2 * self.config.layers) if residual else 0.02)

    def forward(
        self,
        token_id: Tensor,
        *,
        position: Tensor,
        age_minutes: Tensor,
        segment_id: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> Tensor:
        """Hidden states after the last norm.

        Args:
            token_id: int[B, T].
            position: int[B, T], 0, 1, ... within the segment; with a cache it goes on from the row's past.
            age_minutes: int[B, T], decoded age.
            segment_id: int[B, T], 0 = padding. None: every row is one full segment. With a cache: padding at the right only, and the
                other numbers are not looked at.
            cache: keys and values of the rows' past; the new ones are added to it.

        Returns:
            [B, T, D]. What stands at padding is arbitrary and finite.
        """
        groups: Documents = None
        if cache is not None:
            cache.begin(token_id.shape[1], None if segment_id is None else (segment_id > 0).sum(1), token_id.shape[0])
        elif segment_id is not None:
            groups = documents_of(segment_id, self.embedding.weight.dtype)
        x_BTD = self.embedding(token_id)
        if x_BTD.dtype.itemsize == 2:
            x_BTD = x_BTD.float()  # weights of 16 bits: products in 16, what they are added to in 32, as in training
        if self.care_setting is not None:
            x_BTD = self.care_setting(x_BTD, token_id, position, cache)
        rotation = None
        if self.config.rotary != "none":
            rotation = Rotation(position, age_minutes, *self.frequencies_on(token_id.device), x_BTD.dtype)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rotation, groups, cache, layer)
        if cache is not None:
            cache.end()
        return self.norm(x_BTD)

    def frequencies_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rotary tables there; sent once, since nothing can be sent while a step is captured."""
        if device not in self._sent:
            with torch.inference_mode(False):
                per_place, per_day = (torch.from_numpy(table).to(device) for table in self._frequencies)
            self._sent[device] = per_place, per_day
        return self._sent[device]

    def head_weights(self) -> tuple[Tensor, Tensor | None]:
        """W [V, D] and b [V], where there is one: logits are h W' + b."""
        return self.embedding.weight if self.untied is None else self.untied.weight, self.head_bias

    def head(self, hidden: Tensor, token_id: Tensor | None = None) -> Tensor:
        """Logits [..., V] of hidden states [..., D]; of these tokens alone [..., K] where some are given."""
        weight, bias = self.head_weights()
        if token_id is None:
            return F.linear(hidden, weight, bias)
        return F.linear(hidden, weight[token_id], None if bias is None else bias[token_id])
