"""Attention in its forms. Dimension letters as in `transformer`.

It never crosses a segment, and its cost is linear in the tokens of a batch:

    one segment a row, padded right   plain causal attention (what stands behind cannot be seen, so padding needs no mask)
    packed rows, CPU                  documents are gathered into rows of like length (at most a quarter of padding), attended
                                      causally, and put back; rows hardly wider than their documents are attended whole, under a
                                      mask. No T x T mask over a long pack is ever built
    packed rows, CUDA in 16 bits      the kernel for documents of any length (FlashAttention's "varlen") reads the rows as they stand
    with a cache                      explicit: new queries against the row's own past
    with a cache, bounded scores      one query a head: exponentials summed part by part, without a maximum taken away (`model.steps`)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from cehrxgpt.model.documents import DocumentEnds, DocumentGroups
from cehrxgpt.model.prefix import Prefix

EXPLICIT_SCORES = 1 << 25  # more scores than this (64 MiB in bfloat16) are never written out


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


def bounded_attention(q_NGE: Tensor, k_NSE: Tensor, v_NSE: Tensor, mask_N1S: Tensor, prefix: Prefix | None, layer: int) -> Tensor:
    """softmax(q k) v of one new token a row over its own places and those of its prefix, [N, G, E]; N = B*K.

    Scores come scaled, in units of log 2, and are bounded so that their powers of two neither overflow nor vanish: no maximum needs to be taken
    away, so the parts of a row are summed where they stand, and only their sums are brought together. (PyTorch's `exp` takes three to five
    times as long as `exp2` on CPUs without AVX-512 where places are masked.)
    """
    out_NGE, sum_NG1 = _summed(q_NGE, k_NSE, v_NSE, mask_N1S)
    if prefix is not None:
        slot, back, mask_M1S = prefix.arrangement
        key_MSE, value_MSE = prefix.key_PKSE[layer].flatten(0, 1), prefix.value_PKSE[layer].flatten(0, 1)  # M = prefixes * K
        q_MQE = q_NGE.flatten(1).index_select(0, slot).view(len(key_MSE), -1, q_NGE.shape[2])
        for whole, part in zip((out_NGE, sum_NG1), _summed(q_MQE, key_MSE, value_MSE, mask_M1S), strict=True):
            whole.add_(part.view(len(slot), -1).index_select(0, back[: len(q_NGE)]).view_as(whole))
    return out_NGE.div_(sum_NG1)


def _summed(q_NQE: Tensor, k_NSE: Tensor, v_NSE: Tensor, mask_N1S: Tensor) -> tuple[Tensor, Tensor]:
    """2^(q k) v [N, Q, E] and the sums of 2^(q k) [N, Q, 1]."""
    weight_NQS = torch.baddbmm(mask_N1S, q_NQE, k_NSE.mT).exp2_()
    return torch.bmm(weight_NQS, v_NSE), weight_NQS.sum(-1, keepdim=True)
