"""How each family's config.json and tensor names map onto the one decoder. A family is one short function.

Both generations of config.json are read: `rope_theta` + `rope_scaling` + `torch_dtype` (transformers 4), and
`rope_parameters` + `dtype` (5). What a family needs and this file lacks is refused by name, never ignored.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from star.decoder import DecoderConfig
from star.positions import ROPE_KINDS, Rope

LLAMA_NAMES = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}


@dataclass
class Draft:
    """A decoder config in the making, pre-filled with the Llama baseline, and the layer names of the files."""

    fields: dict[str, Any]
    names: dict[str, str] = field(default_factory=lambda: dict(LLAMA_NAMES))

    def __getattr__(self, key: str) -> Any:
        return self.fields[key]


def llama(c: dict, o: Draft) -> None:
    biased = c.get("attention_bias", False)
    o.fields |= {"bias_qkv": biased, "bias_o": biased, "bias_mlp": c.get("mlp_bias", False)}


def mistral(c: dict, o: Draft) -> None:
    o.fields["windows"] = (c.get("sliding_window", 4096),) * o.n_layers


def qwen2(c: dict, o: Draft) -> None:
    first = c.get("max_window_layers", 28) if c.get("use_sliding_window") else o.n_layers
    o.fields |= {"bias_qkv": True, "windows": windows(c, o, lambda i: i >= first)}


def qwen3(c: dict, o: Draft) -> None:
    qwen2(c, o)
    biased = c.get("attention_bias", False)
    o.fields |= {"bias_qkv": biased, "bias_o": biased, "qk_norm": True}


def smollm3(c: dict, o: Draft) -> None:
    llama(c, o)
    o.fields["rope_of"] = tuple(0 if rope else None for rope in need(c, "no_rope_layers"))  # 1 = rope, 0 = none


def granite(c: dict, o: Draft) -> None:
    llama(c, o)
    o.fields |= {"embed_scale": c.get("embedding_multiplier", 1.0), "residual_scale": c.get("residual_multiplier", 1.0),
                 "attn_scale": c.get("attention_multiplier", 1.0), "logit_scale": 1 / c.get("logits_scaling", 1.0)}


def gemma(c: dict, o: Draft) -> None:
    o.fields |= {"norm": "rms+1", "act": "gelu_tanh", "embed_scale": o.d_model**0.5}


def gemma2(c: dict, o: Draft) -> None:
    gemma(c, o)
    o.fields |= {"block": "sandwich", "attn_scale": c.get("query_pre_attn_scalar", 256) ** -0.5,
                 "attn_cap": c.get("attn_logit_softcapping") or 0.0,
                 "logit_cap": c.get("final_logit_softcapping") or 0.0,
                 "windows": windows(c, o, lambda i: i % 2 == 0)}
    o.names |= {"attn_out_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
                "mlp_out_norm": "post_feedforward_layernorm"}


def gemma3(c: dict, o: Draft) -> None:
    gemma2(c, o)
    pattern = windows(c, o, lambda i: (i + 1) % c.get("sliding_window_pattern", 6) != 0)
    full = {"rope_theta": c.get("rope_theta", 1e6), **(c.get("rope_scaling") or {})}
    local = {"rope_theta": c.get("rope_local_base_freq", 1e4)}
    if by_type := c.get("rope_parameters"):
        full, local = by_type["full_attention"], by_type["sliding_attention"]
    o.fields |= {"attn_cap": 0.0, "qk_norm": True, "windows": pattern, "ropes": (rope_of(full), rope_of(local)),
                 "rope_of": tuple(0 if w is None else 1 for w in pattern)}


def nemotron(c: dict, o: Draft) -> None:
    llama(c, o)
    partial = (c.get("rope_parameters") or {}).get("partial_rotary_factor", c.get("partial_rotary_factor", 0.5))
    o.fields |= {"norm": "layer+1", "norm_eps": c.get("norm_eps", 1e-5), "act": "relu2", "gated": False,
                 "rot_dim": int(o.head_dim * partial)}


FAMILIES: dict[str, Callable[[dict, Draft], None]] = {
    "llama": llama, "mistral": mistral, "qwen2": qwen2, "qwen3": qwen3, "smollm3": smollm3, "granite": granite,
    "gemma": gemma, "gemma2": gemma2, "gemma3_text": gemma3, "nemotron": nemotron,
}
TIED_BY_DEFAULT = {"gemma", "gemma2", "gemma3_text", "smollm3"}  # the old serializer dropped the key where it was True


def need(c: dict, key: str) -> Any:
    """c[key], or a ValueError that names the key."""
    if c.get(key) is None:
        raise ValueError(f"config.json lacks the key {key!r}")
    return c[key]


def count(c: dict, key: str) -> int:
    value = need(c, key)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"config.json has {key!r}: {value!r}; it must be a positive whole number")
    return value


def windows(c: dict, o: Draft, windowed: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer: by `layer_types` where the file has it, else by the family's own rule."""
    types = c.get("layer_types")
    local = [t == "sliding_attention" for t in types] if types else [windowed(i) for i in range(o.n_layers)]
    return tuple(need(c, "sliding_window") if w else None for w in local)


def rope_of(args: dict) -> Rope:
    args = {k: v for k, v in args.items() if k != "partial_rotary_factor"}
    theta, kind = args.pop("rope_theta", 10000.0), args.pop("rope_type", args.pop("type", "default"))
    args.pop("type", None)
    if kind not in ROPE_KINDS:
        raise ValueError(f"rope kind {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
    return Rope(float(theta), kind, args)


def decoder_config(c: dict) -> tuple[DecoderConfig, dict[str, str]]:
    """config.json -> (DecoderConfig, layer names of the files). ValueError on a missing key or unknown family."""
    family = need(c, "model_type")
    if family not in FAMILIES:
        raise ValueError(f"model_type {family!r} is not supported; supported are {', '.join(FAMILIES)}")
    heads, width = count(c, "num_attention_heads"), count(c, "hidden_size")
    scaling = {"original_max_position_embeddings": c.get("max_position_embeddings", 4096)}
    hub_era = {"rope_theta": c.get("rope_theta", 10000.0), **(c.get("rope_scaling") or {})}
    scaling |= c.get("rope_parameters") or hub_era
    kv = count(c, "num_key_value_heads") if c.get("num_key_value_heads") is not None else heads
    if heads % kv or (width % heads and not c.get("head_dim")):
        raise ValueError(f"config.json has {heads} heads, {kv} key heads and hidden_size {width}: they do not divide")
    o = Draft({
        "vocab": count(c, "vocab_size"), "d_model": width, "n_layers": count(c, "num_hidden_layers"),
        "n_heads": heads, "n_kv": kv, "head_dim": c.get("head_dim") or width // heads,
        "d_ff": count(c, "intermediate_size"),
        "norm_eps": c.get("rms_norm_eps", 1e-6), "max_pos": c.get("max_position_embeddings", 4096),
        "tied": bool(c.get("tie_word_embeddings", family in TIED_BY_DEFAULT)),
    })
    if "full_attention" not in scaling:  # Gemma 3 has two ropes and sets them itself
        o.fields["ropes"] = (rope_of(scaling),)
    FAMILIES[family](c, o)
    return DecoderConfig(**o.fields), o.names


def source_name(canonical: str, names: dict[str, str]) -> str:
    """The decoder's name -> the file's: layers.3.attn_norm.weight -> model.layers.3.input_layernorm.weight."""
    if canonical.startswith("lm_head"):
        return canonical
    return "model." + ".".join(names.get(word, word) for word in canonical.split("."))
