"""A second opinion: the forward pass of every family as plain formulas in float64, one sequence, one head at a time.

Slow, and written from what the families are said to compute, not from star/decoder: nothing of the project is imported,
so the two agree where both are right. In go config.json, in the layout of transformers 5, and tensors under the names
they have in the files; out come logits, differentiable in the tensors. Linears have a bias where the file has one.

Dimensions: T tokens, D model, H heads, K key heads, hd head size, F feed-forward, V vocabulary.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

ACTIVATIONS = {
    "silu": lambda x: x * torch.sigmoid(x),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu2": lambda x: torch.clamp(x, min=0) ** 2,
}


def forward(c: dict, tensors: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
    """The ids of one sequence -> (T, V) logits."""
    w = {name: t.double() for name, t in tensors.items()}
    falcon, gemma = c["model_type"] == "falcon", c["model_type"].startswith("gemma")
    embedding = w["transformer.word_embeddings.weight" if falcon else "model.embed_tokens.weight"]
    x = embedding[torch.tensor(ids)] * (math.sqrt(c["hidden_size"]) if gemma else c.get("embedding_multiplier", 1))
    for layer in range(c["num_hidden_layers"]):
        x = block(c, w, layer, x)
    x = norm(c, w, "transformer.ln_f" if falcon else "model.norm", x)
    assert "lm_head.weight" in w or c["tie_word_embeddings"]
    logits = x @ w.get("lm_head.weight", embedding).T / c.get("logits_scaling", 1)
    return capped(logits, c.get("final_logit_softcapping"))


def block(c: dict, w: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    """One layer, (T, D) -> (T, D)."""
    falcon = c["model_type"] == "falcon"
    at = f"transformer.h.{layer}." if falcon else f"model.layers.{layer}."
    if falcon and c["new_decoder_architecture"] and c.get("num_ln_in_parallel_attn") in (None, 2):
        h = attention(c, w, layer, norm(c, w, at + "ln_attn", x))
        return x + h + mlp(c, w, at, norm(c, w, at + "ln_mlp", x))
    h = norm(c, w, at + "input_layernorm", x)
    if falcon and (c["new_decoder_architecture"] or c["parallel_attn"]):
        return x + attention(c, w, layer, h) + mlp(c, w, at, h)
    h = attention(c, w, layer, h)
    if c["model_type"] in ("gemma2", "gemma3_text"):
        x = x + norm(c, w, at + "post_attention_layernorm", h)
        h = mlp(c, w, at, norm(c, w, at + "pre_feedforward_layernorm", x))
        return x + norm(c, w, at + "post_feedforward_layernorm", h)
    x = x + c.get("residual_multiplier", 1) * h
    return x + c.get("residual_multiplier", 1) * mlp(c, w, at, norm(c, w, at + "post_attention_layernorm", x))


def norm(c: dict, w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Layer norm (Falcon, Nemotron) or RMS norm over the last dimension; some files hold the weight less one."""
    family, weight = c["model_type"], w[name + ".weight"]
    if family.startswith("gemma") or family == "nemotron":
        weight = 1 + weight
    if family in ("falcon", "nemotron"):
        x = x - x.mean(-1, keepdim=True)
    eps = c[{"falcon": "layer_norm_epsilon", "nemotron": "norm_eps"}.get(family, "rms_norm_eps")]
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight
    return x + w[name + ".bias"] if family in ("falcon", "nemotron") else x


def linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)


def mlp(c: dict, w: Mapping[str, Tensor], at: str, x: Tensor) -> Tensor:
    family = c["model_type"]
    if family == "falcon":
        act = ACTIVATIONS[c["activation"]]
        return linear(w, at + "mlp.dense_4h_to_h", act(linear(w, at + "mlp.dense_h_to_4h", x)))
    if family == "nemotron":
        return linear(w, at + "mlp.down_proj", ACTIVATIONS[c["hidden_act"]](linear(w, at + "mlp.up_proj", x)))
    act = ACTIVATIONS["gelu_pytorch_tanh" if family.startswith("gemma") else c["hidden_act"]]
    if family == "granitemoehybrid":
        size = c["shared_intermediate_size"]
        both = linear(w, at + "shared_mlp.input_linear", x)
        return linear(w, at + "shared_mlp.output_linear", act(both[:, :size]) * both[:, size:])
    return linear(w, at + "mlp.down_proj", act(linear(w, at + "mlp.gate_proj", x)) * linear(w, at + "mlp.up_proj", x))


def head_size(c: dict) -> int:
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def heads(c: dict, w: Mapping[str, Tensor], layer: int, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(T, D) -> H queries, K keys and K values, each (T, hd), before anything is done to them."""
    hd, H = head_size(c), c["num_attention_heads"]
    if c["model_type"] != "falcon":
        return tuple(list(linear(w, f"model.layers.{layer}.self_attn.{p}_proj", x).split(hd, dim=1)) for p in "qkv")
    K = c["num_kv_heads"] if c["new_decoder_architecture"] else 1 if c["multi_query"] else H
    blocks = linear(w, f"transformer.h.{layer}.self_attention.query_key_value", x).split(hd, dim=1)
    assert len(blocks) == H + 2 * K
    q, k, v = [], [], []
    for group in range(K):  # of H / K queries, their key and their value
        *queries, key, value = blocks[group * (H // K + 2) : (group + 1) * (H // K + 2)]
        q, k, v = q + queries, [*k, key], [*v, value]
    return q, k, v


def attention(c: dict, w: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    falcon, T, H = c["model_type"] == "falcon", len(x), c["num_attention_heads"]
    q, k, v = heads(c, w, layer, x)
    if c["model_type"] in ("qwen3", "gemma3_text"):
        q = [norm(c, w, f"model.layers.{layer}.self_attn.q_norm", t) for t in q]
        k = [norm(c, w, f"model.layers.{layer}.self_attn.k_norm", t) for t in k]
    rope = rope_of(c, layer)
    if rope is not None:
        q, k = ([rotated(c, rope, t) for t in ts] for ts in (q, k))
        if rope.get("llama_4_scaling_beta"):
            steps = torch.arange(T).double() / original_length(c, rope)
            q = [t * (1 + rope["llama_4_scaling_beta"] * torch.log(1 + steps.floor()))[:, None] for t in q]
    place = torch.arange(T)
    hidden = place[None, :] > place[:, None]  # (T queries, T keys)
    window = window_of(c, layer)
    if window is not None:
        hidden = hidden | (place[None, :] <= place[:, None] - window)
    out = []
    for head in range(H):
        scores = q[head] @ k[head // (H // len(k))].T  # (T, T)
        if c.get("alibi"):
            scores = scores + (slopes(H)[head].bfloat16() * place.bfloat16()).double()  # rounded as in the reference
        scores = scores * attention_scale(c)
        if c["model_type"] == "gemma2":
            scores = capped(scores, c["attn_logit_softcapping"])
        out.append(torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v[head // (H // len(v))])
    name = f"transformer.h.{layer}.self_attention.dense" if falcon else f"model.layers.{layer}.self_attn.o_proj"
    return linear(w, name, torch.cat(out, dim=1))


def attention_scale(c: dict) -> float:
    if c["model_type"] in ("gemma2", "gemma3_text"):
        return c["query_pre_attn_scalar"] ** -0.5
    return c["attention_multiplier"] if c["model_type"].startswith("granite") else head_size(c) ** -0.5


def capped(x: Tensor, cap: float | None) -> Tensor:
    return cap * torch.tanh(x / cap) if cap else x


def window_of(c: dict, layer: int) -> int | None:
    """How many keys a query sees, its own included; None: all before it."""
    if c["model_type"] in ("mistral", "ministral3"):
        return c["sliding_window"]
    return c["sliding_window"] if c.get("layer_types") and c["layer_types"][layer] == "sliding_attention" else None


def rope_of(c: dict, layer: int) -> dict | None:
    if c["model_type"] == "gemma3_text":
        return c["rope_parameters"][c["layer_types"][layer]]
    turned = not c.get("alibi") and c.get("position_embedding_type", "rope") == "rope"
    return c["rope_parameters"] if turned and c.get("no_rope_layers", [1] * (layer + 1))[layer] else None


def original_length(c: dict, rope: dict) -> int:
    return rope.get("original_max_position_embeddings") or c["max_position_embeddings"]


def rotated(c: dict, rope: dict, x: Tensor) -> Tensor:
    """Turn the pairs (i, i + rot / 2) of x (T, hd) by position * frequency i. Angles, cos and sin are float32."""
    rot = int(x.shape[1] * rope.get("partial_rotary_factor", 0.5)) if c["model_type"] == "nemotron" else x.shape[1]
    freq = 1.0 / rope["rope_theta"] ** (torch.arange(0, rot, 2).float() / rot)
    freq, amplitude = scaled(freq, rope, rot, original_length(c, rope))
    angle = torch.arange(len(x)).float()[:, None] * freq
    cos, sin = (angle.cos() * amplitude).double(), (angle.sin() * amplitude).double()
    a, b, rest = x[:, : rot // 2], x[:, rot // 2 : rot], x[:, rot:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=1)


def scaled(freq: Tensor, rope: dict, rot: int, original: int) -> tuple[Tensor, float]:
    """The frequencies of this kind of rope, and what cos and sin are multiplied by."""
    kind, factor = rope["rope_type"], rope.get("factor")
    if kind == "linear":
        return freq / factor, 1.0
    if kind == "llama3":
        low, high, new = rope["low_freq_factor"], rope["high_freq_factor"], []
        for f in freq:
            wave = 2 * math.pi / f
            t = (original / wave - low) / (high - low)
            slow, between = f / factor, (1 - t) * f / factor + t * f
            new.append(f if wave < original / high else slow if wave > original / low else between)
        return torch.stack(new), 1.0
    if kind == "yarn":
        turns = rope.get("beta_fast", 32), rope.get("beta_slow", 1)
        first, last = (rot * math.log(original / (2 * math.pi * n)) / (2 * math.log(rope["rope_theta"])) for n in turns)
        first, last = max(math.floor(first), 0), min(math.ceil(last), rot - 1)
        ramp = ((torch.arange(rot // 2).float() - first) / (last - first)).clamp(0, 1)
        return freq / factor * ramp + freq * (1 - ramp), yarn_amplitude(rope)
    assert kind == "default", kind
    return freq, 1.0


def yarn_amplitude(rope: dict) -> float:
    def m(k: float) -> float:
        return 0.1 * k * math.log(rope["factor"]) + 1

    if rope.get("attention_factor") is not None:
        return rope["attention_factor"]
    both = rope.get("mscale") and rope.get("mscale_all_dim")
    return m(rope["mscale"]) / m(rope["mscale_all_dim"]) if both else m(1)


def slopes(n: int) -> Tensor:
    """Alibi's slope of each of n heads."""
    p = 2 ** math.floor(math.log2(n))
    rest = [2 ** (-4 * (2 * k - 1) / p) for k in range(1, n - p + 1)]
    return torch.tensor([2 ** (-8 * k / p) for k in range(1, p + 1)] + rest)
