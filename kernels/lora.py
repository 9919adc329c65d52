"""A linear map with low-rank adapters: y = x W^T + b + scale (x A^T) B^T (LoRA, arXiv 2106.09685, section 4.1).

Several maps that share the input (q, k, v; gate, up) go together: one base matmul, one A-product for all of them.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import int8


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


def lora_linear(x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor | Sequence[Tensor], scale: float,
                make: Callable[[Tensor], Tensor] | None = None, cast: Sequence[Tensor] | None = None,
                rows: Tensor | None = None) -> Tensor:
    """The same in fewer passes: each part is added into the base output in place. weight and bias must be frozen.

    make: the map reads make(x), a norm or an activation: cheap, of x's dtype, and with nothing to train inside. The
    backward pass makes it again from x, which is kept instead: often something before needs x too, or x is smaller.
    cast: A and all B in x's dtype, where the caller has them, or they are cast here. rows (out,): the scale of each row
    of an int8 weight (kernels/int8), which is widened for the moment of a product and never kept so.
    """
    return _LoraLinear.apply(x, make, weight, bias, scale, cast, rows, A, *([B] if isinstance(B, Tensor) else B))


class _LoraLinear(torch.autograd.Function):
    """With h = make(x), p = h A^T and g the gradient of y, part by part on its own columns of y and p:

        y_i += s p_i B_i^T     dp_i = s g_i B_i     dB_i = s g_i^T p_i     dA = dp^T h     dh = g W + dp A
    """

    @staticmethod
    def forward(ctx, x, make, weight, bias, scale, cast, rows, *adapters):
        A, *B = cast or [t.to(x.dtype) for t in adapters]
        h = x if make is None else make(x)
        flat = h.reshape(-1, h.shape[-1])  # (N, in)
        y = F.linear(flat, weight, bias) if rows is None else int8.product(flat, weight, rows, bias)  # (N, out)
        product = F.linear(flat, A)  # (N, sum of r_i)
        for columns, p, b in _parts(y, product, B):
            columns.addmm_(p, b.t(), alpha=scale)
        ctx.make, ctx.scale, ctx.dtype = make, scale, adapters[0].dtype
        ctx.save_for_backward(x, weight, rows, product, A, *B)
        return y.view(*h.shape[:-1], y.shape[1])

    @staticmethod
    def backward(ctx, grad):
        assert not any(ctx.needs_input_grad[1:7]), "the base weight and bias of a LoRA linear are frozen"
        x, weight, rows, product, A, *B = ctx.saved_tensors
        h = x = x.detach().requires_grad_(ctx.needs_input_grad[0])
        if ctx.make is not None:
            with torch.enable_grad():
                h = ctx.make(x)
        flat, g = h.detach().reshape(-1, h.shape[-1]), grad.reshape(-1, grad.shape[-1])  # (N, in), (N, out)
        d_product = torch.empty_like(product)
        for columns, d_p, b in _parts(g, d_product, B):
            torch.mm(columns, b, out=d_p)  # (N, r_i)
        d_product.mul_(ctx.scale)
        d_A = (d_product.t() @ flat).to(ctx.dtype)
        d_B = [(columns.t() @ p).mul_(ctx.scale).to(ctx.dtype) for columns, p, _ in _parts(g, product, B)]
        if not ctx.needs_input_grad[0]:
            return None, None, None, None, None, None, None, d_A, *d_B
        wide = weight if rows is None else int8.dequantized(weight, rows, g.dtype)
        d_h = (g @ wide).addmm_(d_product, A).view(h.shape)
        d_x = d_h if ctx.make is None else torch.autograd.grad(h, x, d_h)[0]
        return d_x, None, None, None, None, None, None, d_A, *d_B


def _parts(y: Tensor, product: Tensor, B: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(columns of y, columns of the product, B_i) of each part; views."""
    if len(B) == 1:
        return iter([(y, product, B[0])])
    columns = y.split_with_sizes([b.shape[0] for b in B], dim=-1)
    return zip(columns, product.split_with_sizes([b.shape[1] for b in B], dim=-1), B, strict=True)
