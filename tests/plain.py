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
ACTIVATIONS["gelu_new"] = ACTIVATIONS["gelu_pytorch_tanh"]


# where the files of a family have what Llama's call model., embed_tokens, layers, norm, input_layernorm,
# post_attention_layernorm, self_attn, o_proj, mlp.up_proj, mlp.down_proj, lm_head
LLAMA = ("model.", "embed_tokens", "layers", "norm", "input_layernorm", "post_attention_layernorm", "self_attn",
         "o_proj", "mlp.up_proj", "mlp.down_proj", "lm_head")
FALCON = ("transformer.", "word_embeddings", "h", "ln_f", "input_layernorm", "post_attention_layernorm",
          "self_attention", "dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h", "lm_head")
NAMES = {
    "falcon": FALCON,
    "gpt_neox": ("gpt_neox.", "embed_in", "layers", "final_layer_norm", *FALCON[4:6], "attention", *FALCON[7:10],
                 "embed_out"),
    "gptj": ("transformer.", "wte", "h", "ln_f", "ln_1", "", "attn", "out_proj", "mlp.fc_in", "mlp.fc_out", "lm_head"),
    "mistral3": ("language_model.model.", *LLAMA[1:-1], "language_model.lm_head"),
}


def called(c: dict, word: str, layer: int | None = None) -> str:
    """What the file calls a thing of Llama's; with a layer, one within it."""
    names = NAMES.get(c["model_type"], LLAMA)
    name = names[LLAMA.index(word)]
    if word == "lm_head":
        return name
    return names[0] + name if layer is None else f"{names[0]}{names[2]}.{layer}.{name}"


def text_of(c: dict) -> dict:
    """The keys of the text model, wherever they stand; its kind is `kind`."""
    text = c | c.get("text_config", {})
    text |= {"model_type": c["model_type"], "kind": text["model_type"]}
    if c["model_type"] == "gptj":
        text |= {"hidden_size": c["n_embd"], "num_hidden_layers": c["n_layer"], "num_attention_heads": c["n_head"],
                 "hidden_act": c["activation_function"], "max_position_embeddings": c["n_positions"],
                 "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}}
    return text


def forward(c: dict, tensors: Mapping[str, Tensor], ids: Sequence[int]) -> Tensor:
    """The ids of one sequence -> (T, V) logits."""
    w, c = {name: t.double() for name, t in tensors.items()}, text_of(c)
    embedding, head = w[called(c, "embed_tokens") + ".weight"], called(c, "lm_head")
    scale = math.sqrt(c["hidden_size"]) if c["kind"].startswith("gemma") else c.get("embedding_multiplier", 1)
    x = embedding[torch.tensor(ids)] * scale
    for layer in range(c["num_hidden_layers"]):
        x = block(c, w, layer, x)
    x = norm(c, w, called(c, "norm"), x)
    assert head + ".weight" in w or c["tie_word_embeddings"]
    logits = (x @ w.get(head + ".weight", embedding).T + w.get(head + ".bias", 0)) / c.get("logits_scaling", 1)
    return capped(logits, c.get("final_logit_softcapping"))


def block(c: dict, w: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    """One layer, (T, D) -> (T, D)."""
    falcon = c["kind"] == "falcon"
    first, second = (called(c, f"{word}_layernorm", layer) for word in ("input", "post_attention"))
    if c["kind"] in ("olmo2", "olmo3"):
        x = x + norm(c, w, second, attention(c, w, layer, x))
        return x + norm(c, w, second.replace("attention", "feedforward"), mlp(c, w, layer, x))
    if falcon and c["new_decoder_architecture"] and c.get("num_ln_in_parallel_attn") in (None, 2):
        at = f"transformer.h.{layer}."
        h = attention(c, w, layer, norm(c, w, at + "ln_attn", x))
        return x + h + mlp(c, w, layer, norm(c, w, at + "ln_mlp", x))
    h = norm(c, w, first, x)
    if c["kind"] == "gptj" or (falcon and (c["new_decoder_architecture"] or c["parallel_attn"])):
        return x + attention(c, w, layer, h) + mlp(c, w, layer, h)
    h = attention(c, w, layer, h)
    if c.get("use_parallel_residual"):
        return x + h + mlp(c, w, layer, norm(c, w, second, x))
    if c["kind"] in ("gemma2", "gemma3_text"):
        x = x + norm(c, w, second, h)
        h = mlp(c, w, layer, norm(c, w, second.replace("post_attention", "pre_feedforward"), x))
        return x + norm(c, w, second.replace("attention", "feedforward"), h)
    x = x + c.get("residual_multiplier", 1) * h
    return x + c.get("residual_multiplier", 1) * mlp(c, w, layer, norm(c, w, second, x))


def norm(c: dict, w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    """Layer norm where the file has a bias, or RMS norm over the last dimension; some hold the weight less one."""
    weight, bias = w[name + ".weight"], w.get(name + ".bias")
    if c["kind"].startswith("gemma") or c["kind"] == "nemotron":
        weight = 1 + weight
    if bias is not None:
        x = x - x.mean(-1, keepdim=True)
    eps = next(c[k] for k in ("layer_norm_epsilon", "layer_norm_eps", "norm_eps", "rms_norm_eps") if k in c)
    x = x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight
    return x if bias is None else x + bias


def linear(w: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0)


def mlp(c: dict, w: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    up, down = called(c, "mlp.up_proj", layer), called(c, "mlp.down_proj", layer)
    gemma = c["kind"].startswith("gemma")
    act = ACTIVATIONS["gelu_pytorch_tanh" if gemma else c["activation" if c["kind"] == "falcon" else "hidden_act"]]
    if c["kind"] in ("falcon", "gptj", "gpt_neox", "nemotron"):
        return linear(w, down, act(linear(w, up, x)))
    if c["kind"] == "granitemoehybrid":
        up, down = (t.replace("mlp", "shared_mlp").replace(old, new) for t, old, new in (
            (up, "up_proj", "input_linear"), (down, "down_proj", "output_linear")))
    elif c["kind"] == "phi3":
        up = up.replace("up_proj", "gate_up_proj")
    else:
        return linear(w, down, act(linear(w, up.replace("up_proj", "gate_proj"), x)) * linear(w, up, x))
    gate, up = linear(w, up, x).chunk(2, dim=1)
    return linear(w, down, act(gate) * up)


def head_size(c: dict) -> int:
    return c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]


def heads(c: dict, w: Mapping[str, Tensor], layer: int, x: Tensor) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """(T, D) -> H queries, K keys and K values, each (T, hd), before anything is done to their order."""
    hd, H, at = head_size(c), c["num_attention_heads"], called(c, "self_attn", layer)
    if c["kind"] == "phi3":
        blocks, K = linear(w, f"{at}.qkv_proj", x).split(hd, dim=1), c["num_key_value_heads"]
        return list(blocks[:H]), list(blocks[H : H + K]), list(blocks[H + K :])
    if c["kind"] not in ("falcon", "gpt_neox"):
        q, k, v = (linear(w, f"{at}.{p}_proj", x) for p in "qkv")
        if c["kind"] in ("olmo2", "olmo3"):
            q, k = norm(c, w, f"{at}.q_norm", q), norm(c, w, f"{at}.k_norm", k)
        return tuple(list(t.split(hd, dim=1)) for t in (q, k, v))
    K = H if c["kind"] == "gpt_neox" else c["num_kv_heads"] if c["new_decoder_architecture"] else (
        1 if c["multi_query"] else H)
    blocks = linear(w, f"{at}.query_key_value", x).split(hd, dim=1)
    assert len(blocks) == H + 2 * K
    q, k, v = [], [], []
    for group in range(K):  # of H / K queries, their key and their value
        *queries, key, value = blocks[group * (H // K + 2) : (group + 1) * (H // K + 2)]
        q, k, v = q + queries, [*k, key], [*v, value]
    return q, k, v


def attention(c: dict, w: Mapping[str, Tensor], layer: int, x: Tensor) -> Tensor:
    T, H = len(x), c["num_attention_heads"]
    q, k, v = heads(c, w, layer, x)
    if c["kind"] in ("qwen3", "gemma3_text"):
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
        if c["kind"] == "gemma2":
            scores = capped(scores, c["attn_logit_softcapping"])
        out.append(torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v[head // (H // len(v))])
    at = called(c, "self_attn", layer)
    return linear(w, f"{at}.{called(c, 'o_proj').rpartition('.')[2]}", torch.cat(out, dim=1))


def attention_scale(c: dict) -> float:
    if c["kind"] in ("gemma2", "gemma3_text"):
        return c["query_pre_attn_scalar"] ** -0.5
    return c["attention_multiplier"] if c["kind"].startswith("granite") else head_size(c) ** -0.5


def capped(x: Tensor, cap: float | None) -> Tensor:
    return cap * torch.tanh(x / cap) if cap else x


def window_of(c: dict, layer: int) -> int | None:
    """How many keys a query sees, its own included; None: all before it."""
    if c["kind"] in ("mistral", "ministral3", "phi3"):
        return c["sliding_window"]
    return c["sliding_window"] if c.get("layer_types") and c["layer_types"][layer] == "sliding_attention" else None


def rope_of(c: dict, layer: int) -> dict | None:
    if c["kind"] in ("gemma3_text", "olmo3"):
        return c["rope_parameters"][c["layer_types"][layer]]
    turned = not c.get("alibi") and c.get("position_embedding_type", "rope") == "rope"
    return c["rope_parameters"] if turned and c.get("no_rope_layers", [1] * (layer + 1))[layer] else None


def original_length(c: dict, rope: dict) -> int:
    """The file's own word wins: one beside the rope's."""
    origin = "original_max_position_embeddings"
    return c.get(origin) or rope.get(origin) or c["max_position_embeddings"]


def rotated(c: dict, rope: dict, x: Tensor) -> Tensor:
    """Turn the pairs (i, i + rot / 2) of x (T, hd), those of GPT-J (2i, 2i + 1), by position * frequency i.

    Angles, cos and sin are float32.
    """
    partial = {"nemotron": 0.5, "gpt_neox": 0.25}.get(c["kind"], 1.0)
    rot = c["rotary_dim"] if c["kind"] == "gptj" else int(x.shape[1] * rope.get("partial_rotary_factor", partial))
    freq = 1.0 / rope["rope_theta"] ** (torch.arange(0, rot, 2).float() / rot)
    if rope["rope_type"] == "longrope":
        original = original_length(c, rope)
        freq = freq / torch.tensor(rope["long_factor" if len(x) > original else "short_factor"])
        grown = rope.get("factor") or c["max_position_embeddings"] / original
        amplitude = rope.get("attention_factor") or math.sqrt(1 + math.log(max(grown, 1)) / math.log(original))
    else:
        freq, amplitude = scaled(freq, rope, rot, original_length(c, rope))
    angle = torch.arange(len(x)).float()[:, None] * freq
    cos, sin = (angle.cos() * amplitude).double(), (angle.sin() * amplitude).double()
    if c["kind"] == "gptj":
        a, b = x[:, 0:rot:2], x[:, 1:rot:2]
        return torch.cat([torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(1), x[:, rot:]], dim=1)
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
