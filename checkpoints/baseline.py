"""What the families of checkpoints/families have in common: Llama's keys and names, activations, windows."""

from collections.abc import Callable, Sequence

from checkpoints.keys import count, switch
from checkpoints.layout import Layout
from checkpoints.ropes import read_rope, rope_keys
from star.decoder import DecoderConfig

LLAMA_NAMES = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
ACTS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "relu2": "relu2", "gelu_python": "gelu",
        "gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}



Mapped = tuple[DecoderConfig, Layout]  # what a config.json means, and how the files beside it are laid out


def baseline(c: dict) -> Mapped:
    """What the families have in common, by Llama's keys and names. Each family's function changes what differs."""
    if c.get("use_bidirectional_attention"):
        raise ValueError("use_bidirectional_attention is set: this is an encoder for embeddings, not a language model")
    heads, width = count(c, "num_attention_heads"), count(c, "hidden_size")
    kv = count(c, "num_key_value_heads", heads)
    if heads % kv or (width % heads and not c.get("head_dim")):
        raise ValueError(f"config.json has {heads} heads, {kv} key heads and hidden_size {width}: they do not divide")
    config = DecoderConfig(
        vocab=count(c, "vocab_size"), d_model=width, n_layers=count(c, "num_hidden_layers"), n_heads=heads, n_kv=kv,
        head_dim=count(c, "head_dim", width // heads), d_ff=count(c, "intermediate_size"),
        act=act(c, "hidden_act", "silu"), norm_eps=c.get("rms_norm_eps", 1e-6),
        max_pos=count(c, "max_position_embeddings", 2048), tied=switch(c, "tie_word_embeddings"),
        ropes=(read_rope(c, {"rope_theta": c.get("rope_theta"), **rope_keys(c)}),))
    return config, Layout(LLAMA_NAMES)


def act(c: dict, key: str, default: str) -> str:
    """The decoder's word for the activation that the file names."""
    name = c.get(key) or default
    if name not in ACTS:
        raise ValueError(f"config.json has {key!r}: {name!r}; supported are {', '.join(ACTS)}")
    return ACTS[name]


def windows(c: dict, n_layers: int, windowed: Callable[[int], bool]) -> tuple[int | None, ...]:
    """The window of each layer: by `layer_types` where the file has it, else by the family's own rule."""
    types: Sequence[str] = c.get("layer_types") or ()
    if types and len(types) != n_layers:
        raise ValueError(f"config.json has {len(types)} layer_types for {n_layers} layers")
    if odd := set(types) - {"sliding_attention", "full_attention"}:
        raise ValueError(f"config.json has layers of type {', '.join(sorted(odd))}, which are not supported")
    local = [t == "sliding_attention" for t in types] if types else [windowed(i) for i in range(n_layers)]
    return tuple(count(c, "sliding_window") if w else None for w in local)
