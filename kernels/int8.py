"""Weights as whole numbers of 8 bits and a scale a row: W = s q, of a frozen linear map y = x W^T + b.

Half the memory of bfloat16, a quarter of float32. torch has a product of floats and such weights, but it pays (and is
safe) on some shapes alone: see `has_product`. Elsewhere the weight is widened for the moment of the product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROWS = 32  # of x, for torch's own product: 5 times as fast as widening at 1, 1.1 times at 32, not from 64 on
ALIGNED = 64  # bytes: torch's own product reads whole registers, without looking where a tensor begins


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight (out, in) of any float dtype -> (q (out, in) int8 from -127 to 127, scale (out,) float32): W = scale q to
    half a scale.

    A scale is the row's largest number / 127, rounded to bfloat16: then it is the same number in every dtype that
    somebody computes in. A row of zeros has scale 1; one that is not finite becomes NaN or infinite as a whole.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32), copy=True)
    scale = (wide.abs().amax(dim=1) / 127).bfloat16().float()  # (out,)
    scale.masked_fill_(scale == 0, 1.0)
    return wide.div_(scale[:, None]).round_().clamp_(-127, 127).to(torch.int8), scale


def dequantized(weight: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """scale q in this dtype: exact in float32, rounded once in bfloat16."""
    return weight.to(dtype).mul_(scale[:, None])


def int8_linear_reference(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in) int8, scale (out,), bias (out,) or None -> (..., out) in x's dtype."""
    return F.linear(x, dequantized(weight, scale, x.dtype), bias)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same; for a backward pass it keeps neither x nor a wide weight. Weight, scale and bias must be frozen."""
    return _Int8Linear.apply(x, weight, scale, bias)


class _Int8Linear(torch.autograd.Function):
    """dx = g W, of g the gradient of y."""

    @staticmethod
    def forward(ctx, x, weight, scale, bias):
        ctx.save_for_backward(weight, scale)
        return product(x.reshape(-1, x.shape[-1]), weight, scale, bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx, grad):
        assert not any(ctx.needs_input_grad[1:]), "the weight and bias of an int8 linear are frozen"
        weight, scale = ctx.saved_tensors
        return grad @ dequantized(weight, scale, grad.dtype), None, None, None


def product(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, in) -> (N, out), without a gradient. The scale meets the small side, which is the exact one too."""
    if has_product(x, weight):
        y = torch._weight_int8pack_mm(x, weight, scale.to(x.dtype))
    else:
        y = F.linear(x, weight.to(x.dtype)).mul_(scale)  # whole numbers to 127 are exact in any float
    return y if bias is None else y.add_(bias)


def has_product(x: Tensor, weight: Tensor) -> bool:
    """Is torch's own product of x (N, in) and int8 weights right and fast here?

    On a CPU in bfloat16, with few rows. In float32 it has no vector code on x86 and takes up to 40 times as long as
    widening. It reads 16 inputs at a time, aligned, and on ARM 4 scales, without looking where they end: other shapes
    crash it (torch 2.13). CUDA's makes each number by itself and reads all weights again for each row; it and that of
    mps could not be measured, and are not used.
    """
    return (x.device.type == "cpu" and x.dtype == torch.bfloat16 and 0 < len(x) <= MOST_ROWS
            and x.is_contiguous() and weight.is_contiguous() and not (x.shape[1] % 16 or len(weight) % 4)
            and not (x.data_ptr() | weight.data_ptr()) % ALIGNED)
