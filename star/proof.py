"""Does a device compute what a CPU computes? Asked at the start of those that we have none of: Apple's and AMD's.

Some torch on some system got each of these parts wrong there, and said nothing. It takes a second, and no model.
"""

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from kernels.attention import causal_attention, join, own_attention, shared_attention
from kernels.cross_entropy import linear_cross_entropy
from kernels.gated import silu_gated
from kernels.lora import lora_linear
from kernels.norm import rms_norm
from star.draws import draw_tokens, gumbel

NEAR = {"rtol": 1e-3, "atol": 1e-4}  # of float32: other devices add up in another order


@functools.cache
def wrong(device: torch.device) -> list[str]:
    """The parts that this device computes otherwise than the CPU does; [] where all is well."""
    return [name for name, part in PARTS.items() if not same(part, device)]


def same(part: Callable[[torch.device], Iterator[Tensor]], device: torch.device) -> bool:
    pairs = zip(part(device), part(torch.device("cpu")), strict=True)
    return all(torch.allclose(a.cpu().double(), b.double(), **NEAR) for a, b in pairs)


def some(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from the normal distribution, the same each time, on the host."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


LOGITS = some(6, 300).mul_(2).round_()  # few values: cuts fall between them, and no draw is nearly another


def noise(device: torch.device) -> Iterator[Tensor]:
    """32-bit products that wrap around, shifts of 64-bit numbers, log1p near 0."""
    seeds = torch.tensor([[2**62 + 12345], [-(2**40) - 7], [3]]).to(device)
    yield gumbel(seeds, torch.tensor([[0], [5], [2**20]]).to(device), torch.arange(5000).to(device))


def draws(device: torch.device) -> Iterator[Tensor]:
    """Sorted, cut and drawn; of equal logits the first."""
    logits = LOGITS.to(device)
    seeds, index = torch.arange(6).to(device), torch.full((6,), 3).to(device)
    for how in ((0.0, 0, 1.0), (0.7, 0, 1.0), (0.7, 20, 1.0), (0.7, 20, 0.8)):
        yield from draw_tokens(logits, 290, *how, seeds, index)


def cache(device: torch.device) -> Iterator[Tensor]:
    """Whole 64-bit numbers and keys, put where an index says into a part of a larger tensor, and moved inside it."""
    at, keys = torch.tensor([2, 0]).to(device), torch.zeros(4, 3, 5, 2).to(device)
    seeds, stopped = torch.zeros(4, dtype=torch.int64).to(device), torch.tensor([True, False, True, False]).to(device)
    seeds[at] = torch.tensor([2**62 + 1, -(2**33) - 1]).to(device)
    keys[:3][at, :, torch.tensor([1, 4]).to(device)] = some(2, 3, 2).to(device)
    keys[at + 1, :, :3] = keys[at, :, :3]
    yield from (seeds >> 32, seeds & 0xFFFF, keys, torch.stack([seeds >> 32, at.repeat(2), stopped]))


def attention(device: torch.device) -> Iterator[Tensor]:
    q, k, v = (some(2, heads, 7, 8, seed=heads).to(device) for heads in (4, 2, 2))
    yield causal_attention(q, k, v, 0.3)
    own, prefix = own_attention(q, k, v, 0.3, None), shared_attention(q, k[:1], v[:1], 0.3)
    yield from (*own, *prefix, *join(own, prefix))


def training(device: torch.device) -> Iterator[Tensor]:
    """Our own backward passes, whose results are written into columns of larger tensors."""
    def leaf(*shape: int) -> Tensor:
        return some(*shape, seed=sum(shape)).to(device).requires_grad_()

    x, norm, A, *B = leaf(9, 12), leaf(12), leaf(6, 12), leaf(16, 4), leaf(24, 2)
    weight, head = (some(n, m, seed=n).to(device) for n, m in ((40, 12), (50, 20)))
    hidden = silu_gated(lora_linear(rms_norm(x, norm, 1e-5), weight, None, A, B, 0.5))  # (9, 20)
    loss = linear_cross_entropy(hidden, head, torch.arange(9).to(device), chunk=4)
    yield from (loss.detach(), *torch.autograd.grad(loss, [x, norm, A, *B]))


PARTS = {"the noise of a draw": noise, "a draw": draws, "the cache": cache, "attention": attention,
         "training": training}
