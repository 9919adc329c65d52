"""Negative log-likelihood of target tokens from hidden states: only the rows that are given meet the vocabulary.

With a vocabulary of 128,000 the logits of 8,192 tokens are 4 GB, and their gradient again. Here they exist for a chunk
of rows at a time: its loss and its gradient are computed while they are there, and both are thrown away.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


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
    """The same sum, holding `chunk` rows of logits at a time or fewer (`most_rows`), in the backward pass too."""
    chunk = min(chunk, most_rows(len(weight), weight.device.type == "cpu"))
    if not torch.is_grad_enabled():
        pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        return sum(linear_cross_entropy_reference(h, weight, t, bias, scale, cap) for h, t in pieces)
    return _LinearCrossEntropy.apply(hidden, weight, targets, bias, scale, cap, chunk)


def most_rows(vocab: int, cpu: bool) -> int:
    """Rows of logits that are worked on at a time: 170 of 49,152 on a CPU, where fewer take as long in less memory."""
    return max(1, min(1024, 2**23 // vocab)) if cpu else 1024


class _LinearCrossEntropy(torch.autograd.Function):
    """The forward pass computes the gradients of hidden, weight and bias; the backward pass scales them.

    With z = scale * (h W^T + b) and y = cap * tanh(z / cap):   dy = softmax(y) - onehot(target),
    dz = dy (1 - (y / cap)^2),   dh = scale * dz W,   dW = scale * dz^T h,   db = scale * sum of dz's rows.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, bias, scale, cap, chunk):
        wide = torch.promote_types(hidden.dtype, torch.float32)
        wanted = ctx.needs_input_grad
        d_hidden = torch.empty_like(hidden) if wanted[0] else None
        d_weight = torch.zeros_like(weight, dtype=wide) if wanted[1] else None
        d_bias = torch.zeros_like(bias, dtype=wide) if bias is not None and wanted[3] else None
        total = torch.zeros((), dtype=wide, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            rows = slice(start, start + chunk)
            h, target = hidden[rows], targets[rows, None]
            y = F.linear(h, weight, bias).to(wide)  # (n, V); chunk rows of it at most, changed in place from here on
            if scale != 1:
                y.mul_(scale)
            if cap:
                y.div_(cap).tanh_().mul_(cap)
                slope = 1 - (y / cap).square_()
            log_total = y.logsumexp(dim=-1, keepdim=True)
            total += (log_total - y.gather(1, target)).sum()
            d = y.sub_(log_total).exp_()  # softmax
            d.scatter_add_(1, target, d.new_full(target.shape, -1.0))
            if cap:
                d.mul_(slope)
            if scale != 1:
                d.mul_(scale)
            d = d.to(hidden.dtype)
            if d_hidden is not None:
                torch.mm(d, weight, out=d_hidden[rows])
            if d_weight is not None:
                d_weight += d.t() @ h
            if d_bias is not None:
                d_bias += d.sum(0)
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = weight.dtype, None if bias is None else bias.dtype
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        d_hidden, d_weight, d_bias = ctx.saved_tensors
        return (
            None if d_hidden is None else d_hidden * grad.to(d_hidden.dtype),
            None if d_weight is None else (d_weight * grad).to(ctx.dtypes[0]), None,
            None if d_bias is None else (d_bias * grad).to(ctx.dtypes[1]), None, None, None,
        )
