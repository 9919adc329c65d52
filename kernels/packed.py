"""Causal attention of sequences that stand one behind the other in one row, none of which sees another.

Torch's own kernels do the work: on a CPU sequence by sequence, out of the packed row and into it; on a GPU in one call
for all. For the backward pass they keep the inputs, and the output once: the very tensor that the next linear keeps.

Dimensions: T tokens of the row, n sequences of a run, H query heads, K key heads, hd head size.
"""

import functools
import importlib
import inspect
from collections.abc import Iterator, Sequence
from types import ModuleType

import torch
from torch import Tensor

from kernels import nvidia
from kernels.attention import attention_reference

Runs = Sequence[tuple[int, int]]


def rectangles(t: Tensor, runs: Runs) -> Iterator[Tensor]:
    """The row t (1, heads, T, hd) as (n, heads, length, hd) of each run; views. runs: (n, length) one after the other.
    """
    pieces = t[0].split([n * length for n, length in runs], dim=1)
    return (p.unflatten(1, run).transpose(0, 1) for p, run in zip(pieces, runs, strict=True))


def packed_attention_reference(q: Tensor, k: Tensor, v: Tensor, runs: Runs, scale: float) -> Tensor:
    """`packed_attention` by the formula, one mask for the whole row."""
    of = torch.arange(sum(n for n, _ in runs)).repeat_interleave(
        torch.tensor([length for n, length in runs for _ in range(n)])).to(q.device)  # (T,): each token's sequence
    seen = (of[:, None] == of) & torch.ones(len(of), len(of), dtype=torch.bool, device=q.device).tril()
    return attention_reference(q, k, v, torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -torch.inf), scale)


def packed_attention(q: Tensor, k: Tensor, v: Tensor, runs: Runs, scale: float, starts: Tensor) -> Tensor:
    """q (1, H, T, hd), k, v (1, K, T, hd) -> (1, H, T, hd), stored as (1, T, H, hd).

    runs: (sequences, length) of the rectangles that the row consists of, the longest first; starts (sequences + 1,)
    int32, on q's device: where each sequence begins, and T. Only for what `packs` says yes to.
    """
    if v.untyped_storage().data_ptr() != k.untyped_storage().data_ptr():
        v = v.clone()  # v alone is kept then, and not all that it is a part of
    if q.device.type == "cpu":
        return _Packed.apply(q, k, v, runs, scale)
    longest, known = runs[0][1], options()
    how = {"is_causal": True} if "is_causal" in known else {"window_size": (-1, 0)}
    if q.shape[1] != k.shape[1]:
        how["enable_gqa"] = True
    q, k, v = (t[0].transpose(0, 1) for t in (q, k, v))  # (T, heads, hd)
    out = varlen().varlen_attn(q, k, v, starts, starts, longest, longest, scale=scale, **how)  # (T, H, hd)
    return out.transpose(0, 1)[None]


def packs(q: Tensor, k: Tensor) -> bool:
    """Is there a kernel for packed rows? On a CPU in float32 and wider; on NVIDIA's GPUs in 16 bits, as far as this
    torch goes. (In bfloat16 on a CPU the formula stays, which rounds as other programs do.)
    """
    if q.device.type == "cpu":
        return q.dtype.itemsize >= 4
    wanted = {"scale", "enable_gqa"} if q.shape[1] != k.shape[1] else {"scale"}
    return nvidia(q.device) and q.dtype.itemsize == 2 and q.shape[-1] <= 256 and wanted <= options()


@functools.cache
def varlen() -> ModuleType:
    """Imported where it is needed first: it brings torch's compiler along, which takes a second."""
    return importlib.import_module("torch.nn.attention.varlen")


@functools.cache
def options() -> frozenset[str]:
    """What varlen_attn can be asked for: torch 2.11 knows less than 2.13."""
    return frozenset(inspect.signature(varlen().varlen_attn).parameters)


class _Packed(torch.autograd.Function):
    """Torch's CPU kernel, which returns the log-sum-exp of the scores and takes it back; it groups heads itself."""

    @staticmethod
    def forward(ctx, q, k, v, runs, scale):
        out, sums = _like(q), []
        for q_, k_, v_, o_ in zip(*(rectangles(t, runs) for t in (q, k, v, out)), strict=True):
            o, total = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q_, k_, v_, 0.0, True, scale=scale)
            o_.copy_(o)
            sums.append(total)
        ctx.save_for_backward(q, k, v, out, *sums)
        ctx.runs, ctx.scale = runs, scale
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, out, *sums = ctx.saved_tensors
        grads = [_like(t) for t in (q, k, v)]
        rows = zip(*(rectangles(t, ctx.runs) for t in (grad, q, k, v, out)), sums,
                   *(rectangles(t, ctx.runs) for t in grads), strict=True)
        for g_, q_, k_, v_, o_, total, *places in rows:
            found = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                g_, q_, k_, v_, o_, total, 0.0, True, scale=ctx.scale)
            for place, d in zip(places, found, strict=True):
                place.copy_(d)
        return *grads, None, None


def _like(t: Tensor) -> Tensor:
    """An empty (1, heads, T, hd), stored token by token."""
    _, heads, T, hd = t.shape
    return t.new_empty(1, T, heads, hd).transpose(1, 2)
