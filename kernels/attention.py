"""Attention of T queries a row over a shared prefix and the row's own keys.

The prefix (the few-shot text) is stored once for all rows. Both blocks of scores go through ONE softmax, so sharing
is exact and not an approximation. Query groups are folded into query rows: grouped-query attention without copying a
key. `causal_attention` is the case that training and most prefills are: no prefix, no cap, no window.

Dimensions: B rows, T queries, S own keys, P prefix keys, H query heads, K key heads, G = H / K, hd head size.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


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
