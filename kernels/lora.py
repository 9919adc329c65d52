"""A linear map with low-rank adapters: y = x W^T + b + scale (x A^T) B^T (LoRA, arXiv 2106.09685, section 4.1).

Several maps that share the input (q, k, v; gate, up) go together: one base matmul, one A-product for all of them.
"""

from collections.abc import Iterator, Sequence

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


def lora_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor | Sequence[Tensor], scale: float
) -> Tensor:
    """The same in fewer passes: each part is added into the base output in place. weight and bias must be frozen."""
    return _LoraLinear.apply(x, weight, bias, scale, A, *([B] if isinstance(B, Tensor) else B))


class _LoraLinear(torch.autograd.Function):
    """With p = x A^T and g the gradient of y, part by part on its own columns of y and p:

        y_i += s p_i B_i^T     dp_i = s g_i B_i     dB_i = s g_i^T p_i     dA = dp^T x     dx = g W + dp A
    """

    @staticmethod
    def forward(ctx, x, weight, bias, scale, A, *B):
        flat = x.reshape(-1, x.shape[-1])  # (N, in)
        y = F.linear(flat, weight, bias)  # (N, out)
        product = F.linear(flat, A.to(x.dtype))  # (N, sum of r_i)
        for columns, p, b in _parts(y, product, B):
            columns.addmm_(p, b.t().to(x.dtype), alpha=scale)
        ctx.scale = scale
        ctx.save_for_backward(flat, weight, A, product, *B)
        return y.view(*x.shape[:-1], y.shape[1])

    @staticmethod
    def backward(ctx, grad):
        assert not any(ctx.needs_input_grad[1:4]), "the base weight and bias of a LoRA linear are frozen"
        flat, weight, A, product, *B = ctx.saved_tensors
        g = grad.reshape(-1, grad.shape[-1])  # (N, out)
        d_product, d_B = [], []
        for columns, p, b in _parts(g, product, B):
            d_product.append(columns @ b.to(g.dtype))  # (N, r_i)
            d_B.append((columns.t() @ p * ctx.scale).to(b.dtype))  # (out_i, r_i)
        d_product = torch.cat(d_product, dim=-1) * ctx.scale
        d_A = (d_product.t() @ flat).to(A.dtype)
        d_x = None
        if ctx.needs_input_grad[0]:
            d_x = (g @ weight).addmm_(d_product, A.to(g.dtype)).view(*grad.shape[:-1], weight.shape[1])
        return d_x, None, None, None, d_A, *d_B


def _parts(y: Tensor, product: Tensor, B: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(columns of y, columns of the product, B_i) of each part; views."""
    if len(B) == 1:
        return iter([(y, product, B[0])])
    columns = y.split_with_sizes([b.shape[0] for b in B], dim=-1)
    return zip(columns, product.split_with_sizes([b.shape[1] for b in B], dim=-1), B, strict=True)
