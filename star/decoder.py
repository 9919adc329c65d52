"""One decoder for every family, driven by a frozen config: the M of Algorithm 1.

Training, prefill and decode take the same path; what differs is the context (star/cache), which answers the queries.
The forward has no branch on a family's name and no hidden state. It does not load, sample or adapt: checkpoints/,
star/sampler and star/lora do; star/lora swaps the `Linear` modules.

Dimensions, here and everywhere: B rows, T queries, S keys, P prefix, D model, H heads, K key heads, hd head size,
F feed-forward, V vocabulary, r rank.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kernels.gated import silu_gated
from kernels.int8 import int8_linear
from kernels.norm import rms_norm
from star.cache import Causal, Context
from star.positions import Rope, alibi_slopes, rotary_table, rotate

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


@dataclass(frozen=True)
class DecoderConfig:
    """All that the forward depends on. Wide enough for Llama, Mistral, Gemma, Granite, Falcon, Qwen, GPT-J and more."""

    vocab: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv: int
    head_dim: int
    d_ff: int
    norm: str = "rms"  # rms | rms+1 (weight is stored as w - 1) | rms+0 (multiplied in float32) | layer | layer+1
    norm_eps: float = 1e-5
    block: str = "pre"  # pre | post (norms after sublayers) | sandwich (both) | parallel (one norm) | parallel2 (two)
    act: str = "silu"
    gated: bool = True
    bias_qkv: bool = False
    bias_o: bool = False
    bias_mlp: bool = False
    bias_head: bool = False
    fused: tuple[str, ...] = ()  # qkv_proj, gate_up_proj: files hold it as one linear, so adapters take it as one
    qk_norm: bool = False  # RMS norm over each head of q and k before rope
    qk_norm_whole: bool = False  # over all heads together
    tied: bool = False  # the embedding is the head
    max_pos: int = 4096
    rot_dim: int = 0  # rotated entries of a head; 0: all
    rope_wide: bool = False  # cos and sin stay float32 in narrower models (OLMo)
    ropes: tuple[Rope, ...] = (Rope(),)
    rope_of: tuple[int | None, ...] = ()  # layer -> index into ropes, None = no rope; (): all layers use the first
    windows: tuple[int | None, ...] = ()  # layer -> keys seen, itself included; (): no layer has a window
    alibi: bool = False
    attn_scale: float = 0.0  # 0: head_dim ** -0.5
    attn_cap: float = 0.0
    logit_cap: float = 0.0
    embed_scale: float = 1.0
    embed_scale_rounds: bool = False  # to the compute dtype, before it multiplies (Gemma)
    residual_scale: float = 1.0
    logit_scale: float = 1.0  # multiplies
    q_len_scale: tuple[float, int] | None = None  # (beta, original): q grows with log(position / original)

    @property
    def switch(self) -> int:
        """A sequence of more tokens than this is another to some rope, from its first token on; 0: to none."""
        return max((rope.switch for rope in self.ropes), default=0)

    def __post_init__(self):
        assert self.n_heads % self.n_kv == 0, f"{self.n_heads=} {self.n_kv=}"
        assert self.act in ACTIVATIONS, self.act
        assert self.block in {"pre", "post", "sandwich", "parallel", "parallel2"}, self.block
        assert self.norm in {"rms", "rms+1", "rms+0", "layer", "layer+1"}, self.norm


class Norm(nn.Module):
    """RMS or layer norm, statistics in float32; "+1" kinds add one to the stored weight, RMS in float32."""

    def __init__(self, size: int, kind: str, eps: float):
        super().__init__()
        self.size, self.eps, self.plus_one, self.rms = size, eps, kind.endswith("+1"), kind.startswith("rms")
        self.wide = "+" in kind  # the weight multiplies in float32
        self.weight = nn.Parameter(torch.zeros(size) if self.plus_one else torch.ones(size))
        self.bias = None if self.rms else nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if not self.rms:
            weight = self.weight + 1 if self.plus_one else self.weight  # rounded, as Nemotron is run
            return F.layer_norm(wide, (self.size,), weight.to(wide), self.bias.to(wide), self.eps).to(x.dtype)
        if wide.dtype == x.dtype and not self.plus_one:
            return rms_norm(x, self.weight, self.eps)
        if self.wide:
            return F.rms_norm(wide, (self.size,), self.weight.to(wide) + self.plus_one, self.eps).to(x.dtype)
        return F.rms_norm(wide, (self.size,), None, self.eps).to(x.dtype) * self.weight  # cast first, as Llama does


class Linear(nn.Module):
    """One or several linear maps that share an input, stored as the rows of one matrix: one matmul for q, k and v.

    parts {"q_proj": 4, "k_proj": 2, "v_proj": 2} and 8 inputs: weight (8, 8), rows 0-3 are q_proj's, 4-5 k_proj's,
    6-7 v_proj's; `forward` returns all 8 outputs side by side and the caller splits them.

    make: the cheap function that makes the input from x, a norm or an activation. Adapters (star/lora) then keep x for
    the backward pass, and make the input again. rows: the scale of each row where the weight is int8 (star/lora).
    """

    def __init__(self, n_in: int, parts: dict[str, int], bias: bool = False):
        super().__init__()
        self.parts = parts
        self.weight = nn.Parameter(torch.empty(sum(parts.values()), n_in))
        self.bias = nn.Parameter(torch.zeros(sum(parts.values()))) if bias else None
        self.rows: Tensor | None = None

    def forward(self, x: Tensor, make: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        x = x if make is None else make(x)
        if self.rows is not None:
            return int8_linear(x, self.weight, self.rows, self.bias)
        return F.linear(x, self.weight, self.bias)


class Attention(nn.Module):
    def __init__(self, c: DecoderConfig, layer: int):
        super().__init__()
        self.layer, self.c = layer, c
        q, kv = c.n_heads * c.head_dim, c.n_kv * c.head_dim
        parts = {"qkv_proj": q + 2 * kv} if "qkv_proj" in c.fused else {"q_proj": q, "k_proj": kv, "v_proj": kv}
        self.qkv_proj = Linear(c.d_model, parts, c.bias_qkv)
        self.o_proj = Linear(q, {"o_proj": c.d_model}, c.bias_o)
        kind, sizes = c.norm if c.norm.startswith("rms") else "rms", (q, kv) if c.qk_norm_whole else (c.head_dim,) * 2
        self.q_norm, self.k_norm = (Norm(n, kind, c.norm_eps) if c.qk_norm else nn.Identity() for n in sizes)
        self.scale = c.attn_scale or c.head_dim**-0.5
        self.window = c.windows[layer] if c.windows else None
        self.rope = (c.rope_of[layer] if c.rope_of else 0) if c.ropes else None

    def forward(self, x: Tensor, norm: nn.Module, context: Context, tables: list[tuple[Tensor, Tensor]]) -> Tensor:
        c = self.c
        heads = self.qkv_proj(x, norm).unflatten(-1, (-1, c.head_dim))  # (B, T, (H+2K)*hd) -> (B, T, H+2K, hd)
        qk, v = heads.split([c.n_heads + c.n_kv, c.n_kv], dim=2)
        if c.qk_norm:
            q, k = qk.split([c.n_heads, c.n_kv], dim=2)
            if c.qk_norm_whole:
                q, k = q.flatten(2), k.flatten(2)
            qk = torch.cat([self.q_norm(q), self.k_norm(k)], dim=2)
            if c.qk_norm_whole:
                qk = qk.unflatten(2, (-1, c.head_dim))
        if self.rope is not None:
            qk = rotate(qk, tables[self.rope])  # q and k together
        q, k = qk.split([c.n_heads, c.n_kv], dim=2)
        if c.q_len_scale is not None:
            beta, original = c.q_len_scale
            q = q * (1 + beta * torch.log1p(context.positions // original)).to(q)[:, :, None, None]
        slopes = alibi_slopes(c.n_heads, x.device) if c.alibi else None
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))  # (B, T, heads, hd) -> (B, heads, T, hd)
        out = context.attend(self.layer, q, k, v, self.scale, c.attn_cap, self.window, slopes)
        out = context.read(self.layer, out.transpose(1, 2))
        return self.o_proj(out.flatten(2))  # (B, T, H, hd) -> (B, T, H*hd) -> (B, T, D)


class MLP(nn.Module):
    def __init__(self, c: DecoderConfig):
        super().__init__()
        self.act, self.gated = ACTIVATIONS[c.act], c.gated
        parts = {"gate_proj": c.d_ff, "up_proj": c.d_ff} if c.gated else {"up_proj": c.d_ff}
        if "gate_up_proj" in c.fused:
            parts = {"gate_up_proj": sum(parts.values())}
        self.gate_up_proj = Linear(c.d_model, parts, c.bias_mlp)
        self.down_proj = Linear(c.d_ff, {"down_proj": c.d_model}, c.bias_mlp)

    def forward(self, x: Tensor, norm: nn.Module) -> Tensor:
        return self.down_proj(self.gate_up_proj(x, norm), self.activate)  # (B, T, 2F), or (B, T, F) ungated

    def activate(self, h: Tensor) -> Tensor:
        if not self.gated:
            return self.act(h)
        if self.act is F.silu:
            return silu_gated(h)
        gate, up = h.chunk(2, dim=-1)
        return self.act(gate) * up  # (B, T, F)


class Block(nn.Module):
    def __init__(self, c: DecoderConfig, layer: int):
        super().__init__()

        def norm(wanted: bool) -> nn.Module:
            return Norm(c.d_model, c.norm, c.norm_eps) if wanted else nn.Identity()

        after = c.block in ("post", "sandwich")
        self.attn_norm, self.attn_out_norm = norm(c.block != "post"), norm(after)
        self.mlp_norm, self.mlp_out_norm = norm(c.block not in ("post", "parallel")), norm(after)
        self.self_attn, self.mlp = Attention(c, layer), MLP(c)
        self.parallel, self.scale = c.block.startswith("parallel"), c.residual_scale

    def forward(self, x: Tensor, context: Context, tables: list[tuple[Tensor, Tensor]]) -> Tensor:
        attended = self.scaled(self.attn_out_norm(self.self_attn(x, self.attn_norm, context, tables)))
        x = context.read(self.self_attn.layer, x)
        if self.parallel:  # both sublayers read x; with one norm, the same normed x
            norm = self.attn_norm if isinstance(self.mlp_norm, nn.Identity) else self.mlp_norm
            return x + (self.scaled(self.mlp(x, norm)) + attended)
        x = x + attended
        return x + self.scaled(self.mlp_out_norm(self.mlp(x, self.mlp_norm)))

    def scaled(self, x: Tensor) -> Tensor:
        return x if self.scale == 1 else x * self.scale


class Decoder(nn.Module):
    """Token ids in, hidden states or logits out. Build it under torch.device("meta") to fill it from a checkpoint."""

    def __init__(self, config: DecoderConfig):
        super().__init__()
        self.config = c = config
        self.embed_tokens = Linear(c.d_model, {"embed_tokens": c.vocab}, c.tied and c.bias_head)  # as the head
        self.layers = nn.ModuleList(Block(c, i) for i in range(c.n_layers))
        self.norm = Norm(c.d_model, c.norm, c.norm_eps)
        self.lm_head = None if c.tied else Linear(c.d_model, {"lm_head": c.vocab}, c.bias_head)
        self.sharded = False  # has each of several processes a share of the blocks (star/shard)?

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embed_tokens.weight.dtype

    def hidden(self, tokens: Tensor, context: Context | None = None, recompute: bool = False) -> Tensor:
        """(B, T) int64 ids -> (B, T, D) after the final norm, in the model's dtype.

        Without a context each row is one sequence from position 0, padded (with any id) on the right; pads count where
        a rope takes long sequences otherwise. A context may ask for some of the rows only. recompute: the backward pass
        computes each block again instead of keeping what is inside it (Chen et al. 2016).
        """
        if context is None:
            context = Causal(tokens.shape[1], tokens.device)
        c = self.config
        x = F.embedding(tokens, self.embed_tokens.weight)  # (B, T, D)
        if c.embed_scale != 1.0:
            x = x * (torch.tensor(c.embed_scale, dtype=x.dtype) if c.embed_scale_rounds else c.embed_scale)
        dtype = torch.promote_types(x.dtype, torch.float32) if c.rope_wide else x.dtype
        tables = [rotary_table(rope, c.rot_dim or c.head_dim, context.positions, dtype,
                               rope.switch and context.longer(rope.switch)) for rope in c.ropes]
        for block in self.layers:
            if recompute:  # nothing in a block is random
                x = checkpoint(block, x, context, tables, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x, context, tables)
        return self.norm(x)

    def head(self) -> tuple[Tensor, Tensor | None]:
        """Weight (V, D) and bias (V,) or None of the vocabulary projection."""
        linear = self.lm_head or self.embed_tokens
        return linear.weight, linear.bias

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) hidden states -> (..., V) logits, float32 (float64 if the model is)."""
        out = F.linear(hidden, *self.head())
        out = out.to(torch.promote_types(out.dtype, torch.float32))
        if self.config.logit_scale != 1:
            out = out * self.config.logit_scale
        cap = self.config.logit_cap
        return cap * torch.tanh(out / cap) if cap else out

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, T) int64 ids -> (B, T, V) logits, causal, no cache."""
        return self.logits(self.hidden(tokens))

    def tensors(self, weight: Callable[[Linear], Tensor] = lambda m: m.weight.data, inside: str = ""
                ) -> Iterator[tuple[str, Tensor]]:
        """(canonical name, view) of every weight, the parts of a shared matrix apart: what files hold.

        "layers.0.self_attn.k_proj.weight" is some rows of qkv_proj's matrix. weight: which matrix a linear shows.
        inside: those of one module, by its path.
        """
        assert not self.sharded, "no process has all weights"
        for path, module in self.named_modules():
            if inside and not f"{path}.".startswith(f"{inside}."):
                continue
            if isinstance(module, Linear):
                parent = path.rpartition(".")[0]
                start, matrix = 0, weight(module)
                for part, rows in module.parts.items():
                    name = f"{parent}.{part}" if parent else part
                    yield f"{name}.weight", matrix[start : start + rows]
                    if module.bias is not None:
                        yield f"{name}.bias", module.bias.data[start : start + rows]
                    start += rows
            elif isinstance(module, Norm):
                yield f"{path}.weight", module.weight.data
                if module.bias is not None:
                    yield f"{path}.bias", module.bias.data
