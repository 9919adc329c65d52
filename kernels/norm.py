"""RMS norm (Zhang & Sennrich 2019): y = w x / sqrt(mean(x^2) + eps), over the last dimension."""

import torch
from torch import Tensor


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x (..., D), weight (D,) -> (..., D), in x's dtype."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """The same in fewer passes over memory, which is all that a norm costs."""
    return _RmsNorm.apply(x, weight, eps)


class _RmsNorm(torch.autograd.Function):
    """With r = 1 / sqrt(mean(x^2) + eps) and g the gradient of y:

        h = g w     dx = r h - x r^3 (h . x) / D     dw = sum over rows of g x r
    """

    @staticmethod
    def forward(ctx, x, weight, eps):
        r = torch.linalg.vecdot(x, x).div_(x.shape[-1]).add_(eps).rsqrt_()[..., None]  # (..., 1)
        ctx.save_for_backward(x, weight, r)
        return (x * r).mul_(weight)

    @staticmethod
    def backward(ctx, grad):
        x, weight, r = ctx.saved_tensors
        d_weight = (grad * x).mul_(r).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        h = grad * weight
        along = torch.linalg.vecdot(h, x)[..., None].mul_(r**3 / -x.shape[-1])  # (..., 1)
        return h.mul_(r).addcmul_(x, along), d_weight, None
