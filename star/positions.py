"""How a token knows where it stands: rotary embeddings of several kinds, and alibi slopes.

Serves every forward pass. Does not know families: a `Rope` says which formula and which numbers. Tables are rebuilt
from the config for every forward and are no module buffers, so `.to(bfloat16)` cannot round a frequency.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rope:
    """One flavour of rotary embedding. A layer points at one, or at none (NoPE)."""

    theta: float = 10000.0
    kind: str = "default"  # a key of ROPE_KINDS
    args: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)  # of its kind: factor, ...

    @property
    def switch(self) -> int:
        """A sequence of more tokens than this turns by other frequencies, all of it; 0: none does."""
        return self.args["original_max_position_embeddings"] if self.kind == "longrope" else 0


def _linear(freq: Tensor, rope: Rope) -> Tensor:
    """Position interpolation (Chen et al. 2023): every wavelength grows by the same factor."""
    return freq / rope.args["factor"]


def _llama3(freq: Tensor, rope: Rope) -> Tensor:
    """Llama 3.1: short waves stay, long waves slow down by the factor, those between are blended."""
    wavelength = 2 * math.pi / freq
    low, high = rope.args["low_freq_factor"], rope.args["high_freq_factor"]
    turns = rope.args["original_max_position_embeddings"] / wavelength  # full turns within the original context
    blend = ((turns - low) / (high - low)).clamp(0, 1)  # 0: slow it down; 1: keep it
    return (1 - blend) * freq / rope.args["factor"] + blend * freq


def _yarn(freq: Tensor, rope: Rope) -> Tensor:
    """YaRN (Peng et al. 2023): as llama3, but the blend is linear in the index of the frequency."""

    def index(turns: float) -> float:  # of the frequency that makes so many turns within the original context
        return len(freq) * math.log(rope.args["original_max_position_embeddings"] / (turns * 2 * math.pi)) / math.log(
            rope.theta)

    first, last = index(rope.args.get("beta_fast", 32)), index(rope.args.get("beta_slow", 1))
    if rope.args.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, 2 * len(freq) - 1)
    steps = torch.arange(len(freq), device=freq.device, dtype=freq.dtype)
    blend = 1 - ((steps - first) / max(last - first, 1e-3)).clamp(0, 1)  # 0: slow it down; 1: keep it
    return (1 - blend) * freq / rope.args["factor"] + blend * freq


def amplitude(rope: Rope) -> float:
    """What cos and sin are multiplied by: 1, but for YaRN and LongRoPE, which sharpen attention for long contexts."""
    if rope.kind not in ("yarn", "longrope"):
        return 1.0
    given, m, m_all = (rope.args.get(k) for k in ("attention_factor", "mscale", "mscale_all_dim"))
    grown = math.log(max(rope.args["factor"], 1.0))
    if given is not None:
        return given
    if rope.kind == "longrope":
        return math.sqrt(1 + grown / math.log(rope.switch)) if grown else 1.0
    growth = 0.1 * grown
    return (m * growth + 1) / (m_all * growth + 1) if m and m_all else growth + 1


def _longrope(wave: Tensor, rope: Rope, long: bool | Tensor) -> Tensor:
    """LongRoPE (Ding et al. 2024): each wavelength grows by a factor of its own; long sequences have other factors."""
    def freq(key: str) -> Tensor:
        return 1.0 / (_on_device(rope.args[key], wave.device) * wave)

    if isinstance(long, Tensor):  # (B, T)
        return torch.where(long[:, :, None, None], freq("long_factor"), freq("short_factor"))
    return freq("long_factor" if long else "short_factor")


@functools.cache
def _on_device(factors: tuple[float, ...], device: torch.device) -> Tensor:
    """Made once, in a prefill: a graph of a decode step cannot record that numbers come from the host."""
    return torch.tensor(factors, device=device)


ROPE_KINDS = {"default": lambda freq, rope: freq, "linear": _linear, "llama3": _llama3, "yarn": _yarn,
              "longrope": _longrope}  # the last alone asks how long a sequence is


def rotary_table(rope: Rope, rot_dim: int, positions: Tensor, dtype: torch.dtype, long: bool | Tensor = False
                 ) -> tuple[Tensor, Tensor]:
    """[cos cos] and [-sin sin], each (B, T, 1, rot_dim), for positions (B, T). Angles are float32, cast to dtype.

    long: does a token stand in a sequence of more than `rope.switch` tokens? (B, T), or one answer for all.
    """
    steps = torch.arange(0, rot_dim, 2, device=positions.device, dtype=torch.float32)
    wave = rope.theta ** (steps / rot_dim)
    freq = _longrope(wave, rope, long) if rope.switch else ROPE_KINDS[rope.kind](1.0 / wave, rope)
    angle = positions[:, :, None, None].float() * freq  # (B, T, 1, rot_dim/2)
    cos, sin = angle.cos(), angle.sin()
    if (grown := amplitude(rope)) != 1:
        cos, sin = cos * grown, sin * grown
    cos, sin = cos.to(dtype), sin.to(dtype)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn the first rot_dim entries of each head of x (B, T, H, hd); the rest pass through.

    Half-split pairs, as in the files: entries i and i + rot_dim/2, (a, b) -> (a cos - b sin, b cos + a sin), computed
    as [a b] [cos cos] + [b a] [-sin sin]. With rot_dim = 4, x = [x0 x1 x2 x3] has the pairs (x0, x2) and (x1, x3).
    """
    cos, sin = table
    if cos.shape[-1] < x.shape[-1]:
        turned, rest = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], dim=-1)
        return torch.cat([rotate(turned, table), rest], dim=-1)
    a, b = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([b, a], dim=-1) * sin).to(x.dtype)


@functools.cache
def alibi_slopes(n_heads: int, device: torch.device) -> Tensor:
    """(H,): 2^(-8k/p), k = 1..p, p the largest power of two <= H; further heads interleave (Press 2022).

    bfloat16, and what they are multiplied with rounds to it too, whatever the model's dtype: so did the programs that
    the Falcon-RW models were trained and are run with.
    """
    p = 2 ** math.floor(math.log2(n_heads))
    slopes = [2 ** (-8 * k / p) for k in range(1, p + 1)]
    slopes += [2 ** (-4 * (2 * k - 1) / p) for k in range(1, n_heads - p + 1)]
    return torch.tensor(slopes, device=device).bfloat16()
