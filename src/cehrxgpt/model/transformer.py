"""The whole model: a pre-norm decoder with grouped key-value heads that turns by order and by age.

Dimension letters; tensors carry them as suffixes:

    B  rows of a batch           H  query heads                  D  width of the residual stream
    T  places in a row           K  key-value heads              E  width of a head
    S  places in the cache       G  query heads per K, H = K*G   F  inner width of the feed-forward
    N  documents of like length  P  rotary pairs, P = E/2        V  tokens of the vocabulary

Time enters through attention alone. Half of the key-value heads turn by the token's place, half by its decoded age in days, with
wavelengths from one day to 160 years: only differences matter, so a window needs no absolute time. Angles are computed in float64,
where a century in minutes loses nothing, and only their sine and cosine are rounded to the model's precision.

Attention never crosses a segment, and its cost is linear in the tokens of a batch:

    one segment a row, padded right   plain causal attention (what stands behind cannot be seen, so padding needs no mask)
    packed rows, CPU                  documents are gathered into rows of like length (at most a quarter of padding), attended
                                      causally, and put back; rows hardly wider than their documents are attended whole, under a
                                      mask. No T x T mask over a long pack is ever built
    packed rows, CUDA in 16 bits      the kernel for documents of any length (FlashAttention's "varlen") reads the rows as they stand
    with a cache                      explicit: new queries against the row's own past
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from cehrxgpt.model.cache import KVCache, Prefix
from cehrxgpt.model.config import ModelConfig

ORDER_BASE = 10_000.0  # the longest wavelength over order is 2 pi times this many places
AGE_WAVELENGTH_DAYS = (1.0, 160 * 365.25)  # a quarter of the longest is four decades, so decades stay in order
MINUTES_PER_DAY = 1440.0
LIKE_LENGTH = 1.25  # documents share an attention call while the longest is at most this much longer than the shortest ...
SLACK = 8  # ... or at most this many places longer
NARROW = 3  # times as many scores as the documents have; up to here packed rows are attended whole on CPUs in bfloat16
EXPLICIT_SCORES = 1 << 25  # more scores than this (64 MiB in bfloat16) are never written out


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


def rotary_frequencies(config: ModelConfig) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Radians per place and radians per day of every rotary pair: two float64[K, P]; zero where a head does not turn."""
    pairs = config.head_width // 2
    step = np.arange(pairs) / max(pairs - 1, 1)
    shortest, longest = AGE_WAVELENGTH_DAYS
    by_order = ORDER_BASE ** -(np.arange(pairs) / pairs)
    by_age = 2 * math.pi / shortest * (shortest / longest) ** step
    first_age_head = {"both": (config.kv_heads + 1) // 2, "order": config.kv_heads, "age": 0, "none": 0}[config.rotary]
    turns_by_order = np.arange(config.kv_heads)[:, None] < first_age_head
    turns_by_age = ~turns_by_order & (config.rotary != "none")
    return turns_by_order * by_order, turns_by_age * by_age


def rotation_dtype(x: Tensor) -> torch.dtype:
    """What queries and keys are normalised and turned in: float32 or wider."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class Rotation:
    """Sine and cosine of every place, computed once per forward pass and shared by all layers.

    A head's numbers are turned in neighbouring pairs, (x[2p], x[2p + 1]): complex numbers times e^(i angle), which on a CPU is one pass
    over memory where sines and cosines take seven. Compilers for accelerators know no complex numbers, and fuse the seven.
    """

    def __init__(self, position_BT: Tensor, age_minutes_BT: Tensor, per_place_KP: Tensor, per_day_KP: Tensor, dtype: torch.dtype):
        days_BT = age_minutes_BT.double() / MINUTES_PER_DAY
        angle_BTKP = position_BT.double()[..., None, None] * per_place_KP + days_BT[..., None, None] * per_day_KP
        self.cos_BTKP = angle_BTKP.cos().to(dtype)
        self.sin_BTKP = angle_BTKP.sin().to(dtype)
        self.turn_BTKP = torch.complex(self.cos_BTKP, self.sin_BTKP) if angle_BTKP.device.type == "cpu" else None
        self._all: list[Tensor] | None = None

    def __call__(self, x_BTKGE: Tensor) -> Tensor:
        """Turn every head's pairs."""
        x_BTKGP2 = x_BTKGE.to(self.cos_BTKP.dtype).unflatten(-1, (-1, 2))
        if self.turn_BTKP is not None:
            return torch.view_as_real(torch.view_as_complex(x_BTKGP2) * self.turn_BTKP[:, :, :, None]).flatten(-2)
        return self.turn_real(x_BTKGP2).flatten(-2)

    def turn_all(self, x_BTHE: Tensor, groups: int) -> Tensor:
        """Turn the heads of queries, `groups` for each key-value head, and those of keys behind them."""
        if self._all is None:
            tables = (self.cos_BTKP, self.sin_BTKP) if self.turn_BTKP is None else (self.turn_BTKP,)
            self._all = [torch.cat([table.repeat_interleave(groups, dim=2), table], dim=2) for table in tables]
        x_BTHP2 = x_BTHE.unflatten(-1, (-1, 2))
        if self.turn_BTKP is not None:
            return torch.view_as_real(torch.view_as_complex(x_BTHP2) * self._all[0]).flatten(-2)
        (cos, sin), (first, second) = self._all, x_BTHP2.unbind(-1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1).flatten(-2)

    def turn_real(self, x_BTKGP2: Tensor) -> Tensor:
        """The same without complex numbers."""
        cos, sin = self.cos_BTKP[:, :, :, None], self.sin_BTKP[:, :, :, None]
        first, second = x_BTKGP2.unbind(-1)
        return torch.stack((first * cos - second * sin, second * cos + first * sin), dim=-1)


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


def causal_attention(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor) -> Tensor:
    """softmax(q k / sqrt(E)) v over each place and those before it; [B, T, H, E]."""
    if few_scores(q_BTHE):
        return explicit_attention(q_BTHE, k_BTKE, v_BTKE)
    groups = q_BTHE.shape[2] // k_BTKE.shape[2]
    k_BTHE, v_BTHE = (x.repeat_interleave(groups, dim=2) if groups > 1 else x for x in (k_BTKE, v_BTKE))
    q_BHTE, k_BHTE, v_BHTE = (x.transpose(1, 2) for x in (q_BTHE, k_BTHE, v_BTHE))
    return F.scaled_dot_product_attention(q_BHTE, k_BHTE, v_BHTE, is_causal=True).transpose(1, 2)


def explicit_attention(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, unseen_BTT: Tensor | None = None) -> Tensor:
    """The same as two products with the scores between them written out; [B, T, H, E].

    `unseen_BTT` is 0 where a place may look and very low elsewhere; None: at itself and what stands before it. PyTorch's fused attention
    has no bfloat16 products in its backward pass on CPUs: for rows of 60 tokens it takes four times as long. The query heads that share a
    key-value head stand as further queries, so that keys are never repeated.
    """
    B, T, H, E = q_BTHE.shape
    K, G = k_BTKE.shape[2], H // k_BTKE.shape[2]
    q_NQE = q_BTHE.view(B, T, K, G, E).permute(0, 2, 3, 1, 4).reshape(B * K, G * T, E)
    k_NTE, v_NTE = (x.transpose(1, 2).reshape(B * K, T, E) for x in (k_BTKE, v_BTKE))
    if unseen_BTT is None:
        unseen = torch.full((T, T), float("-inf"), dtype=q_BTHE.dtype, device=q_BTHE.device).triu_(1).repeat(G, 1)
    else:
        unseen = unseen_BTT[:, None, None].expand(B, K, G, T, T).reshape(B * K, G * T, T).to(q_BTHE.dtype)
    weight_NQT = torch.softmax(torch.baddbmm(unseen, q_NQE, k_NTE.mT, alpha=E**-0.5), dim=-1)
    return torch.bmm(weight_NQT, v_NTE).view(B, K, G, T, E).permute(0, 3, 1, 2, 4).reshape(B, T, H, E)


def few_scores(q_BTHE: Tensor) -> bool:
    """On a CPU in bfloat16, where scores written out are faster, and not so many that they would fill the memory."""
    B, T, H, _ = q_BTHE.shape
    return q_BTHE.device.type == "cpu" and q_BTHE.dtype == torch.bfloat16 and B * H * T * T <= EXPLICIT_SCORES


def packed_attention(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, groups: DocumentGroups) -> Tensor:
    """Causal attention inside each document of packed rows; [B, T, H, E], arbitrary at padding."""
    if groups.unseen_BTT is not None and few_scores(q_BTHE):
        return explicit_attention(q_BTHE, k_BTKE, v_BTKE, groups.unseen_BTT)
    q, k, v = (x.flatten(0, 1) for x in (q_BTHE, k_BTKE, v_BTKE))
    done = [q.new_zeros(1, *q.shape[1:])]
    for place, kept in zip(groups.places, groups.kept, strict=True):
        done.append(causal_attention(q[place], k[place], v[place]).flatten(0, 1)[kept])
    return torch.cat(done)[groups.back].view_as(q_BTHE)


def varlen_attention(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, ends: DocumentEnds) -> Tensor:
    """The same by one kernel over all documents; CUDA, 16 bits; [B, T, H, E], arbitrary at padding."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = (x.flatten(0, 1).contiguous() for x in (q_BTHE, k_BTKE, v_BTKE))
    most = ends.longest
    out = varlen_attn(q, k, v, ends.bounds, ends.bounds, most, most, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1])
    return out.view_as(q_BTHE)  # type: ignore[union-attr]


def cached_attention(q_BTHE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask_NQS: Tensor | None, prefix: Prefix | None = None, layer: int = 0) -> Tensor:
    """New queries against the cache, `mask_NQS` added to the scores (N = B*K; Q = T*G, or 1 for all); [B, T, H, E].

    The query heads that share a key-value head stand as further queries, so that keys are never repeated. Scores are written out: with few
    queries a row, two products over all rows are several times faster on a CPU than fused attention.
    """
    B, T, H, E = q_BTHE.shape
    K, G = k_BKSE.shape[1], H // k_BKSE.shape[1]
    q_NQE = q_BTHE.view(B, T, K, G, E).transpose(1, 2).reshape(B * K, T * G, E)
    k_NSE, v_NSE = k_BKSE.flatten(0, 1), v_BKSE.flatten(0, 1)
    assert mask_NQS is not None
    score_NQS = torch.baddbmm(mask_NQS, q_NQE, k_NSE.mT, alpha=E**-0.5)
    out_NQE = torch.bmm(score_NQS.softmax(-1), v_NSE) if prefix is None else shared_attention(q_NQE, score_NQS, v_NSE, prefix, layer)
    return out_NQE.view(B, K, T, G, E).transpose(1, 2).reshape(B, T, H, E)


def shared_attention(q_NQE: Tensor, score_NQS: Tensor, v_NSE: Tensor, prefix: Prefix, layer: int) -> Tensor:
    """Attention over a prefix that many rows share and over each row's own places (`score_NQS`), as one softmax; [N, Q, E].

    All rows of a prefix stand as queries of one product, so that its keys and values are read once for all of them. Between its two
    products the scores go back to their rows, for the softmax.
    """
    slot, back, mask_M1S = prefix.arrangement
    key_MSE, value_MSE = prefix.key_PKSE[layer].flatten(0, 1), prefix.value_PKSE[layer].flatten(0, 1)  # M = prefixes * K
    M, (N, Q, _) = len(key_MSE), q_NQE.shape

    def by_prefix(x_NQX: Tensor) -> Tensor:
        return x_NQX.flatten(1).index_select(0, slot).view(M, -1, x_NQX.shape[-1])

    def by_row(x_MXX: Tensor) -> Tensor:
        return x_MXX.view(len(slot), -1).index_select(0, back[:N]).view(N, Q, -1)

    shared_NQS = by_row(torch.baddbmm(mask_M1S, by_prefix(q_NQE), key_MSE.mT, alpha=q_NQE.shape[-1] ** -0.5))
    weight_NQS = torch.softmax(torch.cat([shared_NQS, score_NQS], dim=-1), dim=-1)
    of_shared, own = weight_NQS.split([shared_NQS.shape[-1], score_NQS.shape[-1]], dim=-1)
    return by_row(torch.bmm(by_prefix(of_shared), value_MSE)).add_(torch.bmm(own, v_NSE))


Documents = DocumentGroups | DocumentEnds | None


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
            weight_HE = torch.cat([self.query_norm.weight.expand(H, E), self.key_norm.weight.expand(K, E)]).to(rotation_dtype(qk))
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
        rotation = None
        if self.config.rotary != "none":
            rotation = Rotation(position, age_minutes, *self._frequencies_on(token_id.device), x_BTD.dtype)
        for layer, block in enumerate(self.blocks):
            x_BTD = block(x_BTD, rotation, groups, cache, layer)
        if cache is not None:
            cache.end()
        return self.norm(x_BTD)

    def _frequencies_on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The rotary tables there; sent once, since nothing can be sent while a step is captured."""
        if device not in self._sent:
            with torch.inference_mode(False):
                per_place, per_day = (torch.from_numpy(table).to(device) for table in self._frequencies)
            self._sent[device] = per_place, per_day
        return self._sent[device]

    def head(self, hidden: Tensor, token_id: Tensor | None = None) -> Tensor:
        """Logits [..., V] of hidden states [..., D]; of these tokens alone [..., K] where some are given."""
        weight = self.embedding.weight if self.untied is None else self.untied.weight
        if token_id is None:
            return F.linear(hidden, weight, self.head_bias)
        return F.linear(hidden, weight[token_id], None if self.head_bias is None else self.head_bias[token_id])


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
