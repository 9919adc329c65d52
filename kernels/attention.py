"""Attention of T queries a row over a shared prefix and the row's own keys.

The prefix (the few-shot text) is stored once for all rows. Both blocks of scores go through ONE softmax, so sharing
is exact and not an approximation. Query groups are folded into query rows (grouped-query attention without copying
a key). Plain formula; it holds all scores at once.

Dimensions: B rows, T queries, S own keys, P prefix keys, H query heads, K key heads, G = H / K, hd head size.
"""

import torch
from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor,
    scale: float,
    cap: float = 0.0,
    prefix: tuple[Tensor, Tensor] | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale * q k^T) v, grouped, masked, over prefix and own keys.

    q (B, H, T, hd); k, v (B, K, S, hd); prefix: two tensors (K, P, hd), before the own keys in position.
    mask (B or 1, T, P + S) bool, True where the query sees the key; every query must see at least one.
    cap > 0: scores become cap * tanh(score / cap) before the mask (Gemma 2).
    bias (H, P + S), added to q k^T before scaling (alibi). Returns (B, H, T, hd) in v's dtype; softmax in float32.
    """
    B, H, T, hd = q.shape
    K, S = k.shape[1], k.shape[2]
    G = H // K  # query head h reads key head h // G, so heads reshape to (K, G)
    q = q.reshape(B, K, G * T, hd)
    scores = q @ k.transpose(-1, -2)  # (B, K, G*T, S)
    if prefix is not None:
        # the prefix is the same for all rows, so rows fold into queries: one matmul a key head
        shared = q.transpose(0, 1).reshape(K, B * G * T, hd) @ prefix[0].transpose(-1, -2)  # (K, B*G*T, P)
        scores = torch.cat([shared.view(K, B, G * T, -1).transpose(0, 1), scores], dim=-1)  # (B, K, G*T, P+S)
    scores = scores.view(B, K, G, T, -1)
    if bias is not None:
        scores = scores + bias.view(K, G, 1, -1)
    scores = scores * scale
    if cap:
        scores = cap * torch.tanh(scores / cap)
    scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights = torch.softmax(scores, dim=-1, dtype=wide).to(v.dtype).view(B, K, G * T, -1)
    if prefix is None:
        return (weights @ v).view(B, H, T, hd)
    shared, own = weights.split([weights.shape[-1] - S, S], dim=-1)
    out = own @ v  # (B, K, G*T, hd)
    flat = shared.transpose(0, 1).reshape(K, B * G * T, -1) @ prefix[1]  # (K, B*G*T, hd)
    return (out + flat.view(K, B, G * T, hd).transpose(0, 1)).view(B, H, T, hd)
