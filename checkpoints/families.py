"""How each family's config.json and tensor names map onto the one decoder. A family is one short function.

Both generations of config.json are read: `rope_theta` + `rope_scaling` + `torch_dtype` (transformers 4), and
`rope_parameters` + `dtype` (5). A key that a file leaves out has the value of that family's reference class. What a
family needs and this file lacks is refused by name, never ignored.
"""

import re
from collections.abc import Callable
from dataclasses import fields, replace

from checkpoints.baseline import Mapped, act, baseline, windows
from checkpoints.keys import count, finite, need
from checkpoints.layout import Layout
from checkpoints.ropes import check_factors, read_rope, rope_keys, share_turned, turned
from star.decoder import DecoderConfig


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
    return config, layout.beside_a_tower()


def gemma3_with_vision(c: dict) -> Mapped:
    return text_of(c, gemma3)


def text_of(c: dict, family: Callable[[dict], Mapped]) -> Mapped:
    """The text model of one that sees too. It alone is read: its keys are nested, but for the one that ties its head.
    """
    config, layout = family(c | {k: v for k, v in need(c, "text_config").items() if k != "tie_word_embeddings"})
    return config, replace(layout, module_root="model.language_model.")


def mistral3(c: dict) -> Mapped:
    """Mistral Small 3.1 and later, Ministral 3: the text model is one of two kinds."""
    text = need(c, "text_config")
    kind = text.get("model_type", "mistral")
    if kind not in ("mistral", "ministral3"):
        raise ValueError(f"model_type 'mistral3' with a text model of type {str(kind)[:60]!r} is not supported: only "
                         "'mistral' and 'ministral3' are")
    family, defaults = FAMILIES[kind]
    sizes = MISTRAL | ({"vocab_size": 131_072, "num_hidden_layers": 34} if kind == "ministral3" else {})
    config, layout = text_of(c | {"text_config": sizes | defaults | text}, family)
    return config, layout.beside_a_tower()


FALCON_KEYS = {"n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
               "n_head_kv": "num_kv_heads", "ffn_hidden_size": "intermediate_size"}  # old and own spellings
FALCON_NAMES = {"embed_tokens": "word_embeddings", "layers": "h", "norm": "ln_f", "self_attn": "self_attention",
                "qkv_proj": "query_key_value", "o_proj": "dense", "up_proj": "dense_h_to_4h",
                "down_proj": "dense_4h_to_h"}


def falcon(c: dict) -> Mapped:
    c = c | {FALCON_KEYS[k]: v for k, v in c.items() if k in FALCON_KEYS}
    c["intermediate_size"] = c.get("intermediate_size") or 4 * count(c, "hidden_size")
    config, layout = baseline(c)
    new = c.get("new_decoder_architecture")
    two_norms = new and c.get("num_ln_in_parallel_attn") in (None, 2)
    shared = count(c, "num_kv_heads", config.n_heads)
    kv = shared if new else 1 if c.get("multi_query", True) else config.n_heads  # 7B: one, whatever num_kv_heads says
    biased = c.get("bias", False)
    config = replace(
        config, norm="layer", norm_eps=c.get("layer_norm_epsilon", 1e-5), act=act(c, "activation", "gelu"), gated=False,
        fused=("qkv_proj",), bias_qkv=biased, bias_o=biased, bias_mlp=biased, n_kv=kv, alibi=bool(c.get("alibi")),
        ropes=() if c.get("alibi") else config.ropes,
        block="parallel2" if two_norms else "parallel" if new or c.get("parallel_attn", True) else "pre")
    layout = replace(by_groups(layout, config), roots=(("transformer.", "lm_head"),))
    return config, layout.renamed(FALCON_NAMES | ({"attn_norm": "ln_attn", "mlp_norm": "ln_mlp"} if two_norms else {}))


def by_groups(layout: Layout, config: DecoderConfig) -> Layout:
    """The file's rows of q, k and v: for each key head its query heads, the key, the value. Here: all queries, all
    keys, all values."""
    group = config.n_heads // config.n_kv + 2
    queries = [h // (group - 2) * group + h % (group - 2) for h in range(config.n_heads)]
    keys = [g * group + group - 2 for g in range(config.n_kv)]
    return replace(layout, reordered=("qkv_proj",), heads=(*queries, *keys, *(k + 1 for k in keys)),
                   head_dim=config.head_dim)


NEOX_NAMES = FALCON_NAMES | {"embed_tokens": "embed_in", "layers": "layers", "norm": "final_layer_norm",
                             "self_attn": "attention"}


def gpt_neox(c: dict) -> Mapped:
    """Pythia, GPT-NeoX-20B."""
    config, layout = baseline(c | {"num_key_value_heads": None, "head_dim": None,
                                   "rope_theta": c.get("rotary_emb_base", 1e4)})
    biased = c.get("attention_bias", True)
    config = turned(replace(
        config, norm="layer", norm_eps=c.get("layer_norm_eps", 1e-5), act=act(c, "hidden_act", "gelu"), gated=False,
        fused=("qkv_proj",), bias_qkv=biased, bias_o=biased, bias_mlp=True,
        block="parallel2" if c.get("use_parallel_residual", True) else "pre"),
        share_turned(c, "rotary_pct", default=0.25))
    layout = replace(by_groups(layout, config), roots=(("gpt_neox.", "embed_out"), ("gpt_neox.", "lm_head")),
                     buffers=layout.buffers + r"|\.attention\.(masked_)?bias$")
    return config, layout.renamed(NEOX_NAMES)


GPTJ_KEYS = {"n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
             "n_inner": "intermediate_size", "n_positions": "max_position_embeddings"}
GPTJ_NAMES = {"embed_tokens": "wte", "layers": "h", "norm": "ln_f", "attn_norm": "ln_1", "self_attn": "attn",
              "o_proj": "out_proj", "up_proj": "fc_in", "down_proj": "fc_out"}


def gptj(c: dict) -> Mapped:
    """GPT-J-6B, the paper's model. Its rope turns the neighbours 2i and 2i + 1: rows of q and k are put in our order.
    """
    c = {GPTJ_KEYS.get(k, k): v for k, v in c.items()}
    c["intermediate_size"] = c.get("intermediate_size") or 4 * count(c, "hidden_size")
    config, layout = baseline(c | {"rope_parameters": None, "rope_scaling": None, "rope_theta": 1e4,
                                   "num_key_value_heads": None, "head_dim": None})
    rot_dim = count(c, "rotary_dim")
    if rot_dim % 2 or rot_dim > config.head_dim:
        raise ValueError(f"config.json has 'rotary_dim': {rot_dim}; it must be even, and at most the {config.head_dim} "
                         "entries of a head")
    config = replace(
        config, norm="layer", norm_eps=c.get("layer_norm_epsilon", 1e-5), act=act(c, "activation_function", "gelu_new"),
        block="parallel", gated=False, bias_mlp=True, bias_head=True, rot_dim=rot_dim)
    layout = replace(layout, roots=(("transformer.", "lm_head"),), reordered=("q_proj", "k_proj"),
                     heads=tuple(range(config.n_heads)), head_dim=config.head_dim, pairs=rot_dim,
                     buffers=layout.buffers + r"|\.attn\.(masked_)?bias$")
    return config, layout.renamed(GPTJ_NAMES)


def phi3(c: dict) -> Mapped:
    """Phi-3 and Phi-4, their mini models too. Long contexts by LongRoPE, which older files call otherwise."""
    given = rope_keys(c)
    if given.get("rope_type", given.get("type")) in ("su", "yarn"):
        c = c | {"rope_parameters": given | {"rope_type": "longrope"}, "rope_scaling": None}
    config, layout = mistral(c)
    return turned(replace(config, fused=("qkv_proj", "gate_up_proj")), share_turned(c, "partial_rotary_factor")), layout


def olmo2(c: dict) -> Mapped:
    """Norms behind the sublayers and none before; q and k are normed whole, before they are heads."""
    config, layout = llama(c | {"mlp_bias": False})
    names = {"attn_out_norm": "post_attention_layernorm", "mlp_out_norm": "post_feedforward_layernorm"}
    return replace(config, norm="rms+0", block="post", qk_norm=True, qk_norm_whole=True, rope_wide=True
                   ), layout.renamed(names)


def olmo3(c: dict) -> Mapped:
    """Three layers of four have a window, and a rope of their own, which nothing stretches."""
    theta, given = {"rope_theta": c["rope_theta"]}, c.get("rope_parameters") or {}
    if set(given) - {"full_attention", "sliding_attention"}:
        raise ValueError(f"config.json has {', '.join(sorted(given))} in 'rope_parameters'; an Olmo 3 has a dictionary "
                         "for 'full_attention' there, and one for 'sliding_attention'")
    full = theta | (given.get("full_attention") or {}) | (c.get("rope_scaling") or {})
    config, layout = olmo2(c | {"rope_parameters": full, "rope_scaling": None})
    local = read_rope(c, theta | (given.get("sliding_attention") or {}))
    pattern = windows(c, config.n_layers, lambda i: (i + 1) % 4 != 0)
    return replace(config, windows=pattern, ropes=(*config.ropes, local),
                   rope_of=tuple(0 if w is None else 1 for w in pattern)), layout


def nemotron(c: dict) -> Mapped:
    """Nemotron-4, Minitron. Early files call head_dim and the share that turns otherwise."""
    config, layout = llama(c | {"head_dim": c.get("head_dim") or c.get("kv_channels")})
    config = replace(config, norm="layer+1", norm_eps=c.get("norm_eps", 1e-5), act=act(c, "hidden_act", "relu2"),
                     gated=False)
    share = share_turned(c, "partial_rotary_factor", "rope_percent", "rope_percentage", default=0.5)
    return turned(config, share), layout


TIED = {"tie_word_embeddings": True}
MISTRAL = {"vocab_size": 32_000, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 32,
           "num_attention_heads": 32}  # of a text model inside another, whose file may leave out what is usual
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
    "RefinedWeb": (falcon, TIED | {"new_decoder_architecture": True}),
    "RefinedWebModel": (falcon, TIED),
    "nemotron": (nemotron, {"max_position_embeddings": 4096}),
    "mistral3": (mistral3, TIED),
    "phi3": (phi3, {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096}),
    "olmo2": (olmo2, {"rms_norm_eps": 1e-5}),
    "olmo3": (olmo3, {"rms_norm_eps": 1e-5, "sliding_window": 4096, "rope_theta": 5e5}),
    "gptj": (gptj, {"n_positions": 2048, "rotary_dim": 64}),
    "gpt_neox": (gpt_neox, {}),
}


def family_of(c: dict) -> str:
    """The model_type, if this file's mappings hold for it. ValueError says why not."""
    family, text = need(c, "model_type"), c | (c["text_config"] if isinstance(c.get("text_config"), dict) else {})
    if quantised := text.get("quantization_config") or text.get("compression_config"):
        method = quantised.get("quant_method", "some method")
        raise ValueError(f"its weights are quantised (by {method}); fetch the repository of the unquantised model")
    if family in FAMILIES:
        return family
    named = (k for k in text if re.search(r"num_(local_|routed_)?experts$|n_routed_experts", k) and text[k])
    experts = next(named, None)
    why = (f" (a mixture of experts: {experts} is {text[experts]})" if experts
           else " (state-space layers)" if re.search(r"mamba|ssm|rwkv|_h1|recurrent", f"{family} {' '.join(text)}")
           else " (it reads images or sound)" if {"vision_config", "audio_config"} & set(c) else "")
    raise ValueError(f"model_type {str(family)[:60]!r} is not supported{why}; supported are {', '.join(FAMILIES)}")


def decoder_config(raw: dict) -> Mapped:
    """config.json -> the decoder's config and the files' layout. ValueError on a missing key or unknown family."""
    family, defaults = FAMILIES[family_of(raw)]
    config, layout = family(defaults | raw)
    check_factors(config)
    for f in fields(config):
        value = getattr(config, f.name)
        if f.type in (int, float):
            finite(f.name, value, (int, f.type))
        if f.name in ("rope_of", "windows") and len(value) not in (0, config.n_layers):
            raise ValueError(f"config.json makes {f.name} for {len(value)} layers, but there are {config.n_layers}")
    return config, layout
