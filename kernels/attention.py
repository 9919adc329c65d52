"""Attention of T queries a row over keys that several rows share and over keys of the row's own.

The few-shot text is stored once for all rows, and a prompt once for all its samples. `attention` puts a prefix and the
own keys through ONE softmax. `own_attention` and `shared_attention` look at one block of keys each, and `join` puts
together what comes out: softmax over two blocks is the mean of two softmaxes, weighted by the sums of their
exponentials. That is exact too, and torch's own kernels, which keep no scores, can do most of it. Query groups are
folded into query rows: grouped-query attention without copying a key. `causal_attention` is the case that training and
most prefills are: no prefix, no cap, no window.

Dimensions: B rows, T queries, S own keys, P prefix keys, H query heads, K key heads, G = H / K, hd head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import nvidia


def attention_reference(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float = 0.0,
                        prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """`attention` by the formula: every query head gets its keys, prefix included, and its values."""
    if prefix is not None:
        k, v = (torch.cat([p.expand(len(t), *p.shape), t], dim=2) for p, t in zip(prefix, (k, v), strict=True))
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)  # (B, H, P+S, hd)
    scores = q @ k.transpose(-1, -2) * scale  # (B, H, T, P+S)
    if cap:
        scores = cap * torch.tanh(scores / cap)
    wide = torch.promote_types(scores.dtype, torch.float32)
    return torch.softmax((scores + mask).to(wide), dim=-1).to(v.dtype) @ v


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, cap: float = 0.0,
              prefix: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """softmax(scale * q k^T + mask) v, grouped, over prefix and own keys.

    q (B, H, T, hd); k, v (B, K, S, hd); prefix: two tensors (K, P, hd), before the own keys in position.
    mask (B or 1, H or 1, T, P + S), in q's dtype: -inf where the query must not look, else 0 or a bias (alibi); every
    query must see a key. cap > 0: scores become cap * tanh(score / cap) before the mask (Gemma 2).
    Returns (B, H, T, hd) in v's dtype; softmax in float32. Holds all scores at once. In bfloat16 it rounds after each
    operation, where the formula does: fused it would be nearer to the exact value, and further from other programs'.
    """
    B, H, T, hd = q.shape
    K, S = k.shape[1], k.shape[2]
    G, P = H // K, mask.shape[-1] - S  # query head h reads key head h // G, so heads reshape to (K, G)
    folded = q.reshape(B * K, G * T, hd)
    keys, values = k.reshape(B * K, S, hd), v.reshape(B * K, S, hd)
    mask = mask.expand(B, H, T, P + S).reshape(B * K, G * T, P + S)
    if prefix is None and not cap and q.dtype.itemsize >= 4:  # scale, mask and product in one pass
        scores = torch.baddbmm(mask, folded, keys.transpose(1, 2), alpha=scale)  # (B*K, G*T, S)
    else:
        scores = folded @ keys.transpose(1, 2)
        if prefix is not None:
            # the prefix is the same for all rows, so rows fold into queries: one matmul a key head
            rows = folded.view(B, K, G * T, hd).transpose(0, 1).reshape(K, B * G * T, hd)
            shared = (rows @ prefix[0].transpose(1, 2)).view(K, B, G * T, P).transpose(0, 1).reshape(B * K, G * T, P)
            scores = torch.cat([shared, scores], dim=-1)  # (B*K, G*T, P+S)
        scores = scores * scale
        if cap:
            scores = cap * torch.tanh(scores / cap)
        scores = scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(v.dtype)
    out = weights[..., P:] @ values  # (B*K, G*T, hd)
    if P:
        rows = weights[..., :P].view(B, K, G * T, P).transpose(0, 1).reshape(K, B * G * T, P)
        out = out + (rows @ prefix[1]).view(K, B, G * T, hd).transpose(0, 1).reshape(B * K, G * T, hd)
    return out.view(B, H, T, hd)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Rows that start at position 0 and see all that stands before: torch's own kernel, which keeps no scores.

    q (B, H, T, hd); k, v (B, K, T, hd) -> (B, H, T, hd).
    """
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def own_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention to the row's own keys, and how much they weigh: to be joined with what other keys give.

    q (B, H, T, hd); k, v (B, K, S, hd); mask (B or 1, 1, T, S) is added to the scores; None: query t sees keys 0..t.
    Returns (out (B, H, T, hd), log-sum-exp of the scaled scores (B, H, T), float32 or wider).
    """
    if mask is None and has_flash(q):
        return flash(q, k, v, scale, causal=True)
    if mask is None:
        mask = q.new_full((q.shape[2], q.shape[2]), float("-inf")).triu_(1)[None, None]
    return scored(q, k, v, scale, mask)  # few keys: faster than the kernel, and it takes a mask everywhere


def shared_attention(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None
                     ) -> tuple[Tensor, Tensor]:
    """`own_attention` to keys that n rows share: q (U * n, H, T, hd), rows of a prompt together, k, v (U, K, P, hd).

    mask (U, 1, 1, P): keys that are pads; None: all queries see all keys. The rows fold into queries: one matmul for
    each prompt and key head.
    """
    rows, H, T, hd = q.shape
    U, K = k.shape[:2]
    folded = q.reshape(U, -1, K, H // K * T, hd).transpose(1, 2).reshape(U, K, -1, hd)  # (U, K, n*G*T, hd)
    parts = flash(folded, k, v, scale, mask=mask) if has_flash(q, mask) else scored(folded, k, v, scale, mask)
    out, lse = (t.unflatten(2, (rows // U, -1)).transpose(1, 2) for t in parts)  # (U, n, K, G*T, ...)
    return out.reshape(rows, H, T, hd), lse.reshape(rows, H, T)


def join(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention to two blocks of keys from (out (..., hd), log-sum-exp (...)) of each: what one softmax would give."""
    share = torch.sigmoid(other[1] - one[1])  # e^b / (e^a + e^b)
    return torch.lerp(one[0], other[0], share[..., None].to(one[0].dtype)), torch.logaddexp(one[1], other[1])


def has_flash(q: Tensor, mask: Tensor | None = None) -> bool:
    """Has torch a kernel for queries like these that returns the log-sum-exp?"""
    return q.device.type == "cpu" or (nvidia(q.device) and q.dtype.itemsize == 2 and q.shape[-1] <= 256
                                      and q.shape[-1] % 8 == 0 and mask is None)


def flash(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool = False, mask: Tensor | None = None
          ) -> tuple[Tensor, Tensor]:
    """q (B, H, T, hd), k, v (B, K, S, hd) -> out (B, H, T, hd), log-sum-exp (B, H, T).

    FlashAttention (Dao et al. 2022), which `has_flash` must have said; by name, since F.scaled_dot_product_attention
    drops the log-sum-exp.
    """
    if q.device.type == "cpu":
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, attn_mask=mask,
                                                                          scale=scale)
    if q.shape[1] != k.shape[1]:  # this one wants a key head for each query head
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, False, scale=scale)[:2]


def scored(q: Tensor, k: Tensor, v: Tensor, scale: float, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """What `flash` returns, by holding all scores; mask (B or 1, 1, T, S) is added. For few keys, or no kernel."""
    B, H, T, hd = q.shape
    K, S = k.shape[1], k.shape[2]
    folded, keys = q.reshape(B * K, -1, hd), k.reshape(B * K, S, hd).transpose(1, 2)  # (B*K, G*T, hd), (B*K, hd, S)
    if mask is None:
        scores = torch.bmm(folded, keys).mul_(scale)
    else:
        mask = mask.expand(B, H, T, S).reshape(B * K, -1, S)
        scores = torch.baddbmm(mask, folded, keys, alpha=scale)  # (B*K, G*T, S)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    most = scores.amax(dim=-1, keepdim=True)
    weights = scores.sub_(most).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    out = torch.bmm(weights.div_(total).to(v.dtype), v.reshape(B * K, S, hd))
    return out.view(B, H, T, hd), most.add_(total.log_()).view(B, H, T)
