"""A stage of tests/bench/gpu.py: the functions of kernels/ and star/draws against formulas in float64 on the CPU."""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import torch
from gpu_kit import SAMPLINGS, Kit, off

import kernels
from kernels import attention, cross_entropy, gated, int8, lora, norm, packed
from star import draws


def each(f: Callable[[torch.Tensor], torch.Tensor], x: Any) -> Any:
    """f on all tensors of an argument: of lists and tuples too."""
    if isinstance(x, list | tuple):
        return type(x)(each(f, part) for part in x)
    return f(x) if isinstance(x, torch.Tensor) else x


def moved(args: tuple, device: torch.device | str, dtype: torch.dtype) -> tuple:
    """Arguments on this device, floating ones in this dtype."""
    return each(lambda t: t.to(device, dtype if t.is_floating_point() else t.dtype), args)


def kernel_cases() -> dict[str, tuple]:
    """name -> (fast, its reference, arguments in float64, indices of those that want a gradient)."""
    generator = torch.Generator().manual_seed(0)

    def r(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def ids(most: int, n: int) -> torch.Tensor:
        return torch.randint(most, (n,), generator=generator)

    q, k, v = r(5, 8, 7, 64), r(5, 2, 7, 64), r(5, 2, 7, 64)
    causal = torch.full((1, 1, 7, 7), float("-inf"), dtype=torch.float64).triu(1)
    behind = torch.cat([torch.zeros(1, 1, 7, 11, dtype=torch.float64), causal], dim=-1)
    prefix = r(2, 11, 64), r(2, 11, 64)
    whole, runs = attention.attention_reference, [(2, 2), (1, 3)]

    def joined(q, k, v, mask, scale, cap, prefix) -> torch.Tensor:
        shared = attention.shared_attention(q, *(t[None] for t in prefix), scale)
        return attention.join(shared, attention.own_attention(q, k, v, scale, None))[0]

    def packs(q, k, v, scale) -> torch.Tensor:
        if not packed.packs(q, k):  # no kernel here for this dtype: training goes run by run
            return packed.packed_attention_reference(q, k, v, runs, scale)
        starts = torch.tensor([0, 2, 4, 7], dtype=torch.int32, device=q.device)
        return packed.packed_attention(q, k, v, runs, scale, starts)

    cases = {
        "attention": (attention.attention, whole, (q, k, v, causal, 0.125), ()),
        "attention, a cap": (attention.attention, whole, (q, k, v, causal, 0.125, 2.0), ()),
        "attention, a prefix": (attention.attention, whole, (q, k, v, behind, 0.125, 0.0, prefix), ()),
        "attention, a prefix, in two joined blocks": (joined, whole, (q, k, v, behind, 0.125, 0.0, prefix), ()),
        "packed_attention": (packs, lambda q, k, v, scale: packed.packed_attention_reference(q, k, v, runs, scale),
                             (q[:1], k[:1], v[:1], 0.125), (0, 1, 2)),
        "silu_gated": (gated.silu_gated, gated.silu_gated_reference, (r(30, 96),), (0,)),
        "causal_attention": (attention.causal_attention, lambda q, k, v, scale: whole(q, k, v, causal, scale),
                             (q, k, v, 0.125), (0, 1, 2)),
        "rms_norm": (norm.rms_norm, norm.rms_norm_reference, (r(50, 96), r(96), 1e-5), (0, 1)),
        "lora_linear": (lora.lora_linear, lora.lora_linear_reference,
                        (r(30, 64), r(96, 64), r(96), r(8, 64), [r(64, 4), r(32, 4)], 2.0), (0, 3, 4)),
        "int8_linear": (int8.int8_linear, int8.int8_linear_reference, (r(30, 64), *int8.quantize(r(96, 64)), r(96)),
                        (0,)),
        "linear_cross_entropy": (cross_entropy.linear_cross_entropy, cross_entropy.linear_cross_entropy_reference,
                                 (r(40, 64), r(500, 64) / 8, ids(500, 40)), (0,)),
    }
    weight, bias, targets = r(500, 64) / 8, r(500), ids(500, 40)
    return cases | {"linear_cross_entropy, all options": (*cases["linear_cross_entropy"][:2],
                                                          (r(40, 64), weight, targets, bias, 0.5, 3.0), (0, 1, 3))}


def there_and_back(f: Callable, args: tuple, wanted: tuple[int, ...]) -> list[torch.Tensor]:
    """What f returns, and the gradients of the arguments with these indices for a fixed gradient of it."""
    leaves: list[torch.Tensor] = []

    def leaf(t: torch.Tensor) -> torch.Tensor:
        leaves.append(t.detach().requires_grad_())
        return leaves[-1]

    args = [each(leaf, a) if i in wanted else a for i, a in enumerate(args)]
    with torch.set_grad_enabled(bool(wanted)):
        out = f(*args)
        if wanted:
            slope = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape) + 0.5
            out.backward(slope.to(out))
    return [out.detach(), *(t.grad for t in leaves)]


def kernel(kit: Kit, dtype: torch.dtype, fast: Callable, slow: Callable, args: tuple, wanted: tuple
           ) -> tuple[dict, bool]:
    here = moved(args, kit.device, dtype)
    rounded = moved(here, "cpu", torch.float64)  # what is compared is how it computes, not how inputs are rounded
    pairs = zip(there_and_back(fast, here, wanted), there_and_back(slow, rounded, wanted), strict=True)
    worst = max(off(mine, true) for mine, true in pairs)
    return {"off by": worst}, worst < (4e-2 if dtype == torch.bfloat16 else 1e-4)


def check_kernels(kit: Kit) -> None:
    """Every kernel against its formula in float64 on the CPU; the draws; which attention runs; what new shapes cost."""
    cases = kernel_cases()
    for dtype in (torch.float32, torch.bfloat16):
        for name, case in cases.items():
            kit.attempt(f"{name}, {str(dtype).removeprefix('torch.')}", kernel, kit, dtype, *case)
    modules = [importlib.import_module(f"kernels.{m.name}") for m in pkgutil.iter_modules(kernels.__path__)]
    twins = {name for m in modules for name in vars(m) if f"{name}_reference" in vars(m)}
    missing = sorted(twins - {name.partition(",")[0] for name in cases})
    kit.note("kernels without a case here", {"n": len(missing), "names": missing}, not missing)
    kit.attempt("draws", check_draws, kit)
    for dtype in (torch.bfloat16, torch.float32):
        for heads, kv in ((8, 8), (8, 2)):
            q, k, v = (torch.randn(3, h, 200, 64, device=kit.device, dtype=dtype) for h in (heads, kv, kv))
            kit.attempt(f"causal attention, {dtype}, {heads} heads on {kv}", lambda q=q, k=k, v=v: (
                {"kernels": " ".join(name for name, *_ in kit.top(
                    lambda: attention.causal_attention(q, k, v, 0.125))[:2])}, None))
    kit.attempt("attention at new shapes", new_shapes, kit)


def check_draws(kit: Kit) -> tuple[dict, bool]:
    B, V = (16, 500) if kit.small else (256, 32_000)
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(B, V, generator=generator)
    seeds, index = torch.arange(B) * 2**40 + 7, torch.arange(B) % 100
    figures = {}
    for name, options in SAMPLINGS.items():
        how = V, options.get("temperature", 0.0), options.get("top_k", 0), options.get("top_p", 1.0)
        true, true_logp = draws.draw_tokens(logits.double(), *how, seeds, index)
        there = (t.to(kit.device) for t in (seeds, index))
        drawn, logp = draws.draw_tokens(logits.to(kit.device), *how, *there)
        figures[f"equal, {name}"] = (drawn.cpu() == true).double().mean().item()
        same = drawn.cpu() == true
        figures["log-probability off by"] = max(figures.get("log-probability off by", 0.0),
                                                (logp.cpu() - true_logp)[same].abs().max().item())
    least = min(share for name, share in figures.items() if name.startswith("equal"))
    return figures, least >= 0.99 and figures["log-probability off by"] < 1e-4


def new_shapes(kit: Kit) -> tuple[dict, bool | None]:
    """Some libraries plan for every new shape, for half a second each: training has new ones in every step."""
    took = []
    for n, T in ((2, 64), (3, 77), (5, 131), (7, 93), (11, 59), (6, 201), (4, 170)):
        qkv = [torch.randn(n, h, T, 64, device=kit.device, dtype=kit.dtype, requires_grad=True) for h in (8, 2, 2)]
        took.append([1e3 * kit.seconds(lambda qkv=qkv: attention.causal_attention(*qkv, 0.125).sum().backward())
                     for _ in range(2)])
    first, second = (max(t) for t in zip(*took[1:], strict=True))  # of the first shape of all, libraries are loaded
    return {"first call ms": first, "second ms": second}, first < 50 if kit.cuda else None
