"""How each family's config.json and tensor names map onto the one decoder. A family is one short function.

Both generations of config.json are read: `rope_theta` + `rope_scaling` + `torch_dtype` (transformers 4), and
`rope_parameters` + `dtype` (5). A key that a file leaves out has the value of that family's reference class. What a
family needs and this file lacks is refused by name, never ignored.
"""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from checkpoints.keys import count, finite, need, switch
from star.decoder import DecoderConfig
from star.positions import ROPE_KINDS, Rope

LLAMA_NAMES = {"attn_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
ROPE_NUMBERS = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings", "beta_fast",
                "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "llama_4_scaling_beta")
ACTS = {"silu": "silu", "swish": "silu", "gelu": "gelu", "relu": "relu", "relu2": "relu2", "gelu_new": "gelu_tanh",
        "gelu_pytorch_tanh": "gelu_tanh"}


@dataclass(frozen=True)
class Layout:
    """How a family's files name and order what the decoder holds."""

    names: dict[str, str]  # the decoder's word -> the file's word
    roots: tuple[str, ...] = ("model.",)  # what may stand before all names but the head's; the first is what does
    module_root: str = ""  # what stands there in the reference's memory, and in adapters, where it differs
    ignored: str = r"\.rotary_emb\.inv_freq$"  # tensors that no text model needs
    heads: tuple[int, ...] = ()  # fused qkv: block i of head_dim rows here is block heads[i] in the file; (): as it is
    head_dim: int = 0

    def name(self, canonical: str) -> str:
        """The decoder's name -> the file's: layers.3.attn_norm.weight -> model.layers.3.input_layernorm.weight."""
        words = ".".join(self.names.get(word, word) for word in canonical.split("."))
        if canonical.startswith("lm_head"):
            return "language_model." * self.roots[0].startswith("language_model.") + words
        return self.roots[0] + words

    def renamed(self, names: dict[str, str]) -> "Layout":
        return replace(self, names=self.names | names)

    def rooted(self, tensors: Collection[str]) -> "Layout":
        """This layout with the root that these names have."""
        def absent(root: str) -> bool:
            return replace(self, roots=(root,)).name("embed_tokens.weight") not in tensors

        return replace(self, roots=tuple(sorted(self.roots, key=absent)))

    def order(self, canonical: str) -> Tensor | None:
        """(rows,) int64: row i of this tensor is the file's row order[i]. None: the rows stand as they are.

        heads (0, 2, 1) with head_dim 2: rows 0 1 4 5 2 3.
        """
        if not self.heads or "qkv_proj" not in canonical:
            return None
        blocks = torch.tensor(self.heads)[:, None] * self.head_dim
        return (blocks + torch.arange(self.head_dim)).flatten()

    def rows_for_file(self, canonical: str, rows: Tensor) -> Tensor:
        """The rows of this tensor, or of its adapter's B, in the file's order."""
        order = self.order(canonical)
        return rows if order is None else rows[torch.argsort(order)]

    def module_names(self, part: str) -> list[str]:
        """A module's possible paths in adapters: layers.0.self_attn.q_proj -> model.layers.0.self_attn.q_proj, ...

        The first is that in the reference's memory, which PEFT writes. It changed between versions for some families.
        """
        tail = self.name(part).removeprefix(self.roots[0])
        return [root + tail for root in (self.module_root, *self.roots) if root]


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


def llama(c: dict) -> Mapped:
    config, layout = baseline(c)
    biased = c.get("attention_bias", False)
    return replace(config, bias_qkv=biased, bias_o=biased, bias_mlp=c.get("mlp_bias", False)), layout


def mistral(c: dict) -> Mapped:
    config, layout = baseline(c)
    window = None if c.get("sliding_window") is None else count(c, "sliding_window")
    return replace(config, windows=(window,) * config.n_layers), layout


def ministral3(c: dict) -> Mapped:
    config, layout = mistral(c)
    need(c, "rope_parameters" if "rope_scaling" not in c else "rope_scaling")
    args = config.ropes[0].args
    if beta := args.get("llama_4_scaling_beta"):
        config = replace(config, q_len_scale=(beta, args["original_max_position_embeddings"]))
    return config, layout


def qwen2(c: dict) -> Mapped:
    config, layout = baseline(c)
    windowed = c.get("use_sliding_window") and c.get("sliding_window") is not None
    first = c.get("max_window_layers", 28) if windowed else config.n_layers
    return replace(config, bias_qkv=True, windows=windows(c, config.n_layers, lambda i: i >= first)), layout


def qwen3(c: dict) -> Mapped:
    config, layout = qwen2(c)
    biased = c.get("attention_bias", False)
    return replace(config, bias_qkv=biased, bias_o=biased, qk_norm=True), layout


def smollm3(c: dict) -> Mapped:
    config, layout = llama(c)
    n, each = config.n_layers, c.get("no_rope_layer_interval", 4)
    roped = c.get("no_rope_layers") or [(i + 1) % each != 0 for i in range(n)]  # 1 = rope, 0 = none
    return replace(config, rope_of=tuple(0 if rope else None for rope in roped[:n]),
                   windows=windows(c, n, lambda i: bool(c.get("use_sliding_window")) and not roped[i])), layout


def granite(c: dict) -> Mapped:
    config, layout = llama(c)
    return replace(
        config, embed_scale=c.get("embedding_multiplier", 1.0), residual_scale=c.get("residual_multiplier", 1.0),
        attn_scale=c.get("attention_multiplier", 1.0), logit_scale=1 / c.get("logits_scaling", 1.0)), layout


def granite4(c: dict) -> Mapped:
    config, layout = granite(c)
    types = set(c.get("layer_types") or c.get("layers_block_type") or {"mamba"})
    experts = c.get("num_local_experts", 8)
    if experts or types - {"attention", "full_attention"}:
        raise ValueError(f"model_type 'granitemoehybrid' with {experts} experts and layers {', '.join(sorted(types))} "
                         "is not supported: only the dense ones, with attention in every layer, are")
    names = {"mlp": "shared_mlp", "gate_up_proj": "input_linear", "down_proj": "output_linear"}
    return replace(
        config, d_ff=c.get("shared_intermediate_size", 1024), fused=("gate_up_proj",), bias_mlp=False,
        ropes=config.ropes if c.get("position_embedding_type") == "rope" else ()), layout.renamed(names)


def gemma(c: dict) -> Mapped:
    config, layout = baseline(c)
    biased = c.get("attention_bias", False)
    return replace(
        config, norm="rms+1", act="gelu_tanh" if config.act in ("silu", "gelu") else config.act,  # "gelu" meant tanh
        embed_scale=config.d_model**0.5, embed_scale_rounds=True, bias_qkv=biased, bias_o=biased), layout


def gemma2(c: dict) -> Mapped:
    config, layout = gemma(c)
    names = {"attn_out_norm": "post_attention_layernorm", "mlp_norm": "pre_feedforward_layernorm",
             "mlp_out_norm": "post_feedforward_layernorm"}
    return replace(
        config, block="sandwich", act=act(c, "hidden_activation", "gelu_pytorch_tanh"),
        attn_scale=c.get("query_pre_attn_scalar", 256) ** -0.5, attn_cap=c.get("attn_logit_softcapping", 50.0) or 0.0,
        logit_cap=c.get("final_logit_softcapping", 30.0) or 0.0,
        windows=windows(c, config.n_layers, lambda i: i % 2 == 0)), layout.renamed(names)


def gemma3(c: dict) -> Mapped:
    """The text model. Layers with a window have a rope of their own, the second."""
    given = rope_keys(c)  # of the layers without one, or of each kind under its name
    full = {"rope_theta": c.get("rope_theta", 1e6), **given, **(given.get("full_attention") or {})}
    local = {"rope_theta": c.get("rope_local_base_freq", 1e4), **(given.get("sliding_attention") or {})}
    config, layout = gemma2({"final_logit_softcapping": None, **c, "rope_parameters": full, "rope_scaling": None})
    each = c.get("sliding_window_pattern") or 6
    pattern = windows(c, config.n_layers, lambda i: (i + 1) % each != 0)
    config = replace(config, attn_cap=0.0, qk_norm=True, windows=pattern, ropes=(*config.ropes, read_rope(c, local)),
                     rope_of=tuple(0 if w is None else 1 for w in pattern))
    return config, replace(layout, roots=("model.", "language_model.model.", "model.language_model."),
                           ignored=layout.ignored + r"|^(model\.)?(vision_tower|multi_modal_projector)\.")


def gemma3_with_vision(c: dict) -> Mapped:
    """Only the text model is read: its keys are nested, but for the one that ties its head."""
    config, layout = gemma3(c | {k: v for k, v in need(c, "text_config").items() if k != "tie_word_embeddings"})
    return config, replace(layout, module_root="model.language_model.")


FALCON_KEYS = {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
               "n_head_kv": "num_kv_heads", "ffn_hidden_size": "intermediate_size"}  # old and own spellings
FALCON_NAMES = {"embed_tokens": "word_embeddings", "layers": "h", "norm": "ln_f", "self_attn": "self_attention",
                "qkv_proj": "query_key_value", "o_proj": "dense", "up_proj": "dense_h_to_4h",
                "down_proj": "dense_4h_to_h"}


def falcon(c: dict) -> Mapped:
    c = c | {FALCON_KEYS[k]: v for k, v in c.items() if k in FALCON_KEYS}
    c["intermediate_size"] = c.get("intermediate_size") or 4 * count(c, "hidden_size")
    config, layout = baseline(c)
    new = c.get("new_decoder_architecture") or c["model_type"] == "RefinedWeb"
    two_norms = new and c.get("num_ln_in_parallel_attn") in (None, 2)
    shared = count(c, "num_kv_heads", config.n_heads)
    kv = shared if new else 1 if c.get("multi_query", True) else config.n_heads  # 7B: one, whatever num_kv_heads says
    biased = c.get("bias", False)
    config = replace(
        config, norm="layer", norm_eps=c.get("layer_norm_epsilon", 1e-5), act=act(c, "activation", "gelu"), gated=False,
        fused=("qkv_proj",), bias_qkv=biased, bias_o=biased, bias_mlp=biased, n_kv=kv, alibi=bool(c.get("alibi")),
        ropes=() if c.get("alibi") else config.ropes,
        block="parallel2" if two_norms else "parallel" if new or c.get("parallel_attn", True) else "pre")
    # the file's rows: for each key head its query heads, the key, the value; here: all queries, all keys, all values
    group = config.n_heads // kv + 2
    queries = [h // (group - 2) * group + h % (group - 2) for h in range(config.n_heads)]
    keys = [g * group + group - 2 for g in range(kv)]
    layout = replace(layout, roots=("transformer.",), heads=(*queries, *keys, *(k + 1 for k in keys)),
                     head_dim=config.head_dim)
    return config, layout.renamed(FALCON_NAMES | ({"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"} if two_norms else {}))


def nemotron(c: dict) -> Mapped:
    config, layout = llama(c)
    partial = (c.get("rope_parameters") or {}).get("partial_rotary_factor", c.get("partial_rotary_factor", 0.5))
    return replace(config, norm="layer+1", norm_eps=c.get("norm_eps", 1e-5), act=act(c, "hidden_act", "relu2"),
                   gated=False, rot_dim=int(config.head_dim * partial)), layout


TIED = {"tie_word_embeddings": True}
QWEN = {"num_key_value_heads": 32, "sliding_window": 4096, "max_position_embeddings": 32_768}
GEMMA2 = TIED | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
GEMMA3 = GEMMA2 | {"max_position_embeddings": 131_072, "vocab_size": 262_208, "hidden_size": 2304,
                   "intermediate_size": 9216, "num_hidden_layers": 26}
# model_type: (its function, what the reference's class takes where a file has no such key)
FAMILIES: dict[str, tuple[Callable[[dict], Mapped], dict]] = {
    "llama": (llama, {}),
    "mistral": (mistral, {"num_key_value_heads": 8, "sliding_window": 4096, "max_position_embeddings": 131_072}),
    "ministral3": (ministral3, {"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 1e-5,
                                "max_position_embeddings": 262_144}),
    "qwen2": (qwen2, QWEN),
    "qwen3": (qwen3, QWEN | {"head_dim": 128}),
    "smollm3": (smollm3, TIED | {"num_key_value_heads": 4, "rope_theta": 2e6, "max_position_embeddings": 32_768}),
    "granite": (granite, {}),
    "granitemoehybrid": (granite4, {}),
    "gemma": (gemma, TIED | {"num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256,
                             "max_position_embeddings": 8192}),
    "gemma2": (gemma2, GEMMA2 | {"max_position_embeddings": 8192}),
    "gemma3_text": (gemma3, GEMMA3),
    "gemma3": (gemma3_with_vision, GEMMA3),
    "falcon": (falcon, TIED),
    "RefinedWeb": (falcon, TIED),
    "RefinedWebModel": (falcon, TIED),
    "nemotron": (nemotron, {"max_position_embeddings": 4096}),
}


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


def rope_keys(c: dict) -> dict:
    """The file's rope dictionary, of either generation; {}: it has none. ValueError if it has two that disagree."""
    new, old = c.get("rope_parameters") or {}, c.get("rope_scaling") or {}
    if new and any(new.get("rope_type" if k == "type" else k) != v for k, v in old.items()):
        raise ValueError("config.json has rope_parameters and a rope_scaling that says otherwise: leave one out")
    return new or old


def read_rope(c: dict, given: dict) -> Rope:
    """A rope dictionary of either generation -> Rope. ValueError on a kind that is not known or lacks a number."""
    args = {k: v for k, v in given.items() if v is not None}
    theta, old = args.pop("rope_theta", 10000.0), args.pop("type", "default")
    kind = args.pop("rope_type", old)
    if kind not in ROPE_KINDS:
        raise ValueError(f"rope kind {kind!r} is not supported; supported are {', '.join(ROPE_KINDS)}")
    longest = c.get("max_position_embeddings", 2048)
    origin = "original_max_position_embeddings"
    args[origin] = c.get(origin) or args.get(origin, longest)
    if kind == "yarn" and "factor" not in args:
        args["factor"] = longest / count(args, origin)
    for key in {"linear": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}.get(kind, ()):
        need(args, key)
    numbers = {"rope_theta": theta} | {k: v for k, v in args.items() if k in ROPE_NUMBERS}
    for key, value in numbers.items():
        finite(key, value)
    if args[origin] <= 0:
        raise ValueError(f"config.json has {origin!r}: {args[origin]}; it must be positive")
    return Rope(float(theta), kind, numbers | {"truncate": bool(args.get("truncate", True))})


def family_of(c: dict) -> str:
    """The model_type, if this file's mappings hold for it. ValueError says why not."""
    family = need(c, "model_type")
    if quantised := c.get("quantization_config") or c.get("compression_config"):
        method = quantised.get("quant_method", "some method")
        raise ValueError(f"its weights are quantised (by {method}); fetch the repository of the unquantised model")
    if family in FAMILIES:
        return family
    text = c | (c["text_config"] if isinstance(c.get("text_config"), dict) else {})
    named = (k for k in text if re.search(r"num_(local_|routed_)?experts$|n_routed_experts", k) and text[k])
    experts = next(named, None)
    why = (f" (a mixture of experts: {experts} is {text[experts]})" if experts
           else " (state-space layers)" if re.search(r"mamba|ssm|rwkv|_h1|recurrent", f"{family} {' '.join(text)}")
           else " (it reads images or sound)" if {"vision_config", "audio_config"} & set(c) else "")
    raise ValueError(f"model_type {family!r} is not supported{why}; supported are {', '.join(FAMILIES)}")


def decoder_config(raw: dict) -> Mapped:
    """config.json -> the decoder's config and the files' layout. ValueError on a missing key or unknown family."""
    family, defaults = FAMILIES[family_of(raw)]
    config, layout = family(defaults | raw)
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type in (int, float):
            finite(f.name, value, (int, f.type))
        if f.name in ("rope_of", "windows") and len(value) not in (0, config.n_layers):
            raise ValueError(f"config.json makes {f.name} for {len(value)} layers, but there are {config.n_layers}")
    return config, layout
