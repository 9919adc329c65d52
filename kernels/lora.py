"""A linear map with low-rank adapters: y = x W^T + b + scale (x A^T) B^T (LoRA, arXiv 2106.09685, section 4.1).

Several maps that share the input (q, k, v; gate, up) go together: one base matmul, one A-product for all of them.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def lora_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor | Sequence[Tensor], scale: float
) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) or None, A (r, in), B (out, r) -> (..., out) in x's dtype.

    For a group, B is a list, one matrix (out_i, r_i) a part, and A holds the parts' A stacked: two parts with
    B (64, 4) and (32, 4) need weight (96, in) and A (8, in). A part without adapter has B (out_i, 0).
    A and B may be kept in float32 beside a bfloat16 base: they are cast at the matmul.
    """
    y = F.linear(x, weight, bias)
    parts = [B] if isinstance(B, Tensor) else B
    product = F.linear(x, A.to(x.dtype)) * scale  # (..., sum of r_i): small, so scaling it here is free
    pieces = product.split([b.shape[1] for b in parts], dim=-1)
    return y + torch.cat([F.linear(p, b.to(x.dtype)) for p, b in zip(pieces, parts, strict=True)], dim=-1)


lora_linear = lora_linear_reference  # one formula serves so far
