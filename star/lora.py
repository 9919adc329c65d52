"""Low-rank adapters on a frozen decoder: what "train from the original M" (Algorithm 1, line 7) costs us is a `reset`.

`add_lora` swaps the decoder's `Linear` modules for ones that share their weights and add A and B. `merged` builds a
second decoder for sampling whose adapted weights are W + scale B A; the base is never added to in place, since in
bfloat16 that rounding would stay. `make_int8` gives the frozen weights 8 bits (kernels/int8); adapters on these stay
live. Reading and writing adapters is checkpoints/adapters.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kernels.lora import lora_linear
from star.decoder import Decoder, Linear, Norm

NARROW = 512  # inputs this small are kept for the backward pass: to make them again would cost more than they take
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv_proj", "gate_up_proj")


class LoraLinear(Linear):
    """A `Linear` whose parts of rank > 0 have an adapter. The frozen weight is the base module's own tensor.

    A (sum of ranks, in): the parts' A stacked, so that one matmul serves all; B: one (out_i, r_i) a part. Both float32
    (float64 beside a float64 base), whatever the base is.
    """

    off = False  # does it compute as the base?

    def __init__(self, base: Linear, ranks: dict[str, int], scale: float):
        nn.Module.__init__(self)
        self.parts, self.weight, self.bias, self.rows = base.parts, base.weight, base.bias, base.rows
        self.ranks, self.scale = ranks, scale
        self.cast: tuple[list[tuple[int, int]], list[Tensor]] | None = None
        wide = torch.promote_types((base.weight if base.rows is None else base.rows).dtype, torch.float32)
        new = {"device": base.weight.device, "dtype": wide}
        self.A = nn.Parameter(torch.zeros(sum(ranks.values()), base.weight.shape[1], **new))
        self.B = nn.ParameterList(torch.zeros(rows, ranks[part], **new) for part, rows in self.parts.items())
        for B, rank in zip(self.B, ranks.values(), strict=True):
            B.requires_grad_(rank > 0)

    def forward(self, x: Tensor, make: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        if self.off:
            return super().forward(x, make)
        if make is not None and self.weight.shape[1] < NARROW:
            x, make = make(x), None
        cast = self.narrow(x.dtype)
        return lora_linear(x, self.weight, self.bias, self.A, list(self.B), self.scale, make, cast, self.rows)

    def narrow(self, dtype: torch.dtype) -> list[Tensor] | None:
        """A and B in the model's narrower dtype, cast once an optimizer step and not at each use.

        Only in training: a sampler's replayed graph would not see that they are to be cast anew.
        """
        if self.A.dtype == dtype or not torch.is_grad_enabled():
            return None
        written = [(p.data_ptr(), p._version) for p in (self.A, *self.B)]
        if self.cast is None or self.cast[0] != written:
            self.cast = written, [p.detach().to(dtype) for p in (self.A, *self.B)]
        return self.cast[1]

    def adapters(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """(part, A (r, in), B (out, r)) of each part that has one; views."""
        for (part, rank), a, b in zip(self.ranks.items(), self.A.split(list(self.ranks.values())), self.B, strict=True):
            if rank:
                yield part, a, b

    def merged_weight(self) -> Tensor:
        """W + scale B A in float32 or wider, rounded once to the base's dtype.

        ValueError for a weight in 8 bits: the sum rounded to them would lose most of what was learned.
        """
        if self.rows is not None:
            raise ValueError("weights in 8 bits are not merged into: sample from the live adapters (merge=False)")
        delta = [b @ a for a, b in zip(self.A.split(list(self.ranks.values())), self.B, strict=True)]
        return (self.weight.to(self.A.dtype) + self.scale * torch.cat(delta)).to(self.weight.dtype)


@torch.no_grad()
def merged_weight(linear: Linear) -> Tensor:
    """What this linear multiplies by, its adapters merged in: the weight itself if it has none."""
    return linear.merged_weight() if isinstance(linear, LoraLinear) else linear.weight.data


def lora_modules(model: Decoder) -> Iterator[tuple[str, LoraLinear]]:
    """(path, module) of every adapted module, in the model's order."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLinear))


def adapted(model: Decoder) -> dict[str, tuple[float, Tensor, Tensor]]:
    """(scale, A, B) of each adapted weight: "layers.0.self_attn.q_proj.weight", ..., as `Decoder.tensors` names them.
    """
    return {f"{path.rpartition('.')[0]}.{part}.weight": (module.scale, A, B)
            for path, module in lora_modules(model) for part, A, B in module.adapters()}


def trainable(model: Decoder) -> dict[str, nn.Parameter]:
    """Adapter parameters by name, in a fixed order."""
    return {f"{path}.{name}": p for path, module in lora_modules(model) for name, p in module.named_parameters()
            if p.requires_grad}


def add_lora(
    model: Decoder, rank: int = 16, alpha: float = 32, targets: tuple[str, ...] = ALL_LINEAR, seed: int = 0
) -> Decoder:
    """Freeze the model and put adapters of scale alpha / rank on the named linears of every block. Returns the model.

    A ~ N(0, 1 / in) and B = 0, so the output does not change yet. Raises ValueError on an unknown target, a rank that
    is not positive, or adapters already there.
    """
    known = {part for module in model.layers.modules() if isinstance(module, Linear) for part in module.parts}
    unknown = set(targets) - known if tuple(targets) != ALL_LINEAR else set()  # all: those that this model has
    if unknown or not targets:
        raise ValueError(f"no linear named {sorted(unknown)}; this model has {sorted(known)}")
    if rank < 1:
        raise ValueError(f"rank is {rank}, but an adapter needs a rank of at least 1")
    attach(model, {name: rank for name in linear_parts(model) if name.rpartition(".")[2] in targets}, alpha / rank)
    reset(model, seed)
    return model


def linear_parts(model: Decoder) -> dict[str, tuple[int, int]]:
    """All linears that can be adapted, "layers.0.self_attn.q_proj", ..., and their shapes (out, in)."""
    linears = [(path.rpartition(".")[0], module) for path, module in model.named_modules()
               if path.startswith("layers.") and isinstance(module, Linear)]
    return {f"{parent}.{part}": (rows, m.weight.shape[1]) for parent, m in linears for part, rows in m.parts.items()}


def attach(model: Decoder, ranks: dict[str, int], scale: float) -> None:
    """Swap in zero adapters of these ranks, by part name; all other weights freeze."""
    if any(lora_modules(model)):
        raise ValueError("the model has adapters already: reset them, or remove_lora first")
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if path.startswith("layers.") and isinstance(module, Linear):
            parent, _, name = path.rpartition(".")
            of_part = {part: ranks.get(f"{parent}.{part}", 0) for part in module.parts}
            if any(of_part.values()):
                setattr(model.get_submodule(parent), name, LoraLinear(module, of_part, scale))


def remove_lora(model: Decoder) -> None:
    """Put plain linears back. The weights are the same tensors, so nothing is computed."""
    for path, module in list(lora_modules(model)):
        with torch.device("meta"):
            plain = Linear(module.weight.shape[1], module.parts, module.bias is not None)
        plain.weight, plain.bias, plain.rows = module.weight, module.bias, module.rows
        parent, _, name = path.rpartition(".")
        setattr(model.get_submodule(parent), name, plain)


@torch.no_grad()
def reset(model: Decoder, seed: int = 0) -> None:
    """Back to the base, bit for bit: B = 0, and A drawn anew from `seed` (on the CPU: the same on every device)."""
    generator = torch.Generator().manual_seed(seed)
    for _, module in lora_modules(model):
        noise = torch.randn(module.A.shape, generator=generator) * module.A.shape[1] ** -0.5
        module.A.copy_(noise)
        for B in module.B:
            B.zero_()


@torch.no_grad()
def put(model: Decoder, values: dict[str, Tensor]) -> None:
    """Set the adapters to these values, by the names of `trainable`."""
    for name, p in trainable(model).items():
        p.copy_(values[name])


def make_int8(model: Decoder) -> Decoder:
    """Give the linears of an outline's blocks int8 weights with a scale a row (kernels/int8), which `fill` of
    checkpoints/ rounds as it reads; norms, embedding and head stay as they are. Returns the outline.
    """
    assert model.device.type == "meta", model.device
    wide = torch.promote_types(model.dtype, torch.float32)
    for linear in (m for m in model.layers.modules() if isinstance(m, Linear)):
        linear.weight = nn.Parameter(torch.empty(linear.weight.shape, dtype=torch.int8, device="meta"), False)
        linear.rows = nn.Parameter(torch.empty(len(linear.weight), dtype=wide, device="meta"), False)
    return model


def is_int8(model: Decoder) -> bool:
    return any(isinstance(m, Linear) and m.rows is not None for m in model.layers.modules())


def row_scales(linear: Linear) -> Tensor:
    """What `Decoder.tensors` is given to show the scales of int8 weights, under the weights' names."""
    return (linear.weight if linear.rows is None else linear.rows).data


def version(model: Decoder) -> tuple[tuple[int, int], ...]:
    """Changes whenever an adapter tensor is written in place or replaced: torch counts the writes.

    All but those of fused optimizers, whose user must call torch.autograd.graph.increment_version (star/finetune does).
    """
    return tuple((id(p), p._version) for _, module in lora_modules(model) for p in module.parameters())


@contextmanager
def off(model: Decoder) -> Iterator[None]:
    """Inside, the model computes what its base computes. Nothing is copied or written, and its version stays."""
    adapted = [module for _, module in lora_modules(model)]
    for module in adapted:
        module.off = True
    try:
        yield
    finally:
        for module in adapted:
            module.off = False


@torch.no_grad()
def merged(model: Decoder, twin: Decoder | None = None) -> Decoder:
    """A plain decoder that computes what `model` computes now, its adapted weights in a second buffer.

    All other tensors are shared. Give the former twin to refill its buffers in place (same addresses).
    """
    if twin is None:
        with torch.device("meta"):
            twin = Decoder(model.config)
    for path, module in model.named_modules():
        if not isinstance(module, Linear | Norm):
            continue
        mine = twin.get_submodule(path)
        mine.bias = module.bias
        if isinstance(module, LoraLinear):
            if mine.weight.is_meta or mine.weight is module.weight:  # no buffer of its own yet
                mine.weight = nn.Parameter(torch.empty_like(module.weight), requires_grad=False)
            mine.weight.copy_(module.merged_weight())
        else:
            mine.weight = module.weight
    return twin
