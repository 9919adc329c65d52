"""Negative log-likelihood of target tokens from hidden states: only the rows that are given meet the vocabulary."""

import torch
import torch.nn.functional as F
from torch import Tensor


def linear_cross_entropy_reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, bias: Tensor | None = None, scale: float = 1.0, cap: float = 0.0
) -> Tensor:
    """Sum over N rows of -log softmax(cap * tanh(scale * (h W^T + b) / cap))[target], nats; cap 0: no cap.

    hidden (N, D), weight (V, D), targets (N,) int64. Logits and loss in float32 (float64 for float64 input).
    """
    logits = F.linear(hidden, weight, bias)  # (N, V)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) * scale
    if cap:
        logits = cap * torch.tanh(logits / cap)
    return F.cross_entropy(logits, targets, reduction="sum")


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    bias: Tensor | None = None,
    scale: float = 1.0,
    cap: float = 0.0,
    chunk: int = 1024,
) -> Tensor:
    """The same sum, `chunk` rows at a time. Autograd still keeps every chunk's logits for the backward pass."""
    pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
    return sum(linear_cross_entropy_reference(h, weight, t, bias, scale, cap) for h, t in pieces)
