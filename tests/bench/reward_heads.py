"""Reward heads: transformers' classifiers read here, judges written here read by transformers, and what scoring costs.

    python tests/bench/reward_heads.py [MODEL]

Needs the extra `bench`; nothing is downloaded. The models are tiny, random, and stored by transformers. Columns:

    read      largest difference to transformers' scores on its own file: rows of 1 to 40 tokens, one by one
    together  the same with all rows in one batch, which it pads on the right (not where there is no pad id)
    4.x       the same as `read` with the config.json that transformers 4 wrote
    written   largest difference of its scores on a judge saved here (a head on the causal model, adapters merged in)
    ends      is the token that is read another where a row ends in the pad id? (where that is the end token)

Last, scoring against one forward pass of the same decoder over the same packed tokens, on MODEL (a folder; default: a
random Llama of 22 million parameters). Exit status 1 if a difference is above 1e-4, or scores do not depend on rows.
"""

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from peers import need

need("transformers")

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GemmaConfig,
    GraniteConfig,
    LlamaConfig,
    Ministral3Config,
    MistralConfig,
    NemotronConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

import checkpoints
from star import lora
from star.reward import ATTRIBUTES, RewardModel, pack

LIMIT = 1e-4
SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
KV = SIZES | {"num_key_value_heads": 2}
GEMMA = KV | {"head_dim": 32}
WINDOWS = GEMMA | {"sliding_window": 8, "query_pre_attn_scalar": 24,
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ROPES = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}
NAMES = {"id2label": dict(enumerate(ATTRIBUTES))}
MODELS = {  # width of the head; the pad id is 0, eos or none
    "llama, 1": LlamaConfig(**KV, num_labels=1, pad_token_id=0),
    "llama, 5 named, eos": LlamaConfig(**KV, **NAMES, pad_token_id=2, attention_bias=True, mlp_bias=True),
    "llama, 9, sharded": LlamaConfig(**KV, num_labels=9, pad_token_id=0, tie_word_embeddings=True),
    "llama, 1, no pad": LlamaConfig(**KV, num_labels=1),
    "mistral, 10": MistralConfig(**KV, num_labels=10, pad_token_id=2, sliding_window=8),
    "ministral3, 1": Ministral3Config(**KV, head_dim=16, num_labels=1),
    "qwen2, 1": Qwen2Config(**KV, num_labels=1, pad_token_id=0),
    "qwen3, 5": Qwen3Config(**KV, head_dim=24, num_labels=5, pad_token_id=2),
    "smollm3, 1": SmolLM3Config(**KV, num_labels=1, pad_token_id=0),
    "gemma, 1": GemmaConfig(**GEMMA | {"num_key_value_heads": 1}, num_labels=1),
    "gemma2, 5 named": Gemma2Config(**WINDOWS, **NAMES),
    "gemma3, text, 2": Gemma3TextConfig(**WINDOWS, rope_parameters=ROPES, num_labels=2),
    "gemma3, multimodal, 1": Gemma3Config(text_config=WINDOWS | {"rope_parameters": ROPES}, vision_config=VISION,
                                          mm_tokens_per_image=4, num_labels=1, image_token_id=126,
                                          boi_token_id=124, eoi_token_id=125),
    "falcon 7b, 1": FalconConfig(**SIZES, new_decoder_architecture=False, multi_query=True, parallel_attn=True,
                                 num_labels=1, pad_token_id=2),
    "falcon 40b, 9": FalconConfig(**SIZES, new_decoder_architecture=True, num_kv_heads=2, num_labels=9,
                                  pad_token_id=0),
    "falcon rw, 1": FalconConfig(**SIZES, alibi=True, multi_query=False, parallel_attn=False, bias=True,
                                 num_labels=1, pad_token_id=2),
    "granite": GraniteConfig(**KV, pad_token_id=0, embedding_multiplier=6.0, residual_multiplier=0.4,
                             attention_multiplier=0.1, logits_scaling=3.0, attention_bias=True, mlp_bias=True),
    "nemotron, 9": NemotronConfig(**KV, num_labels=9, pad_token_id=0),
}


def make(kind, config, folder, sharded=False):
    """A random model, its norms and biases too."""
    torch.manual_seed(0)
    model = kind(config) if kind is Gemma3ForConditionalGeneration else kind.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p)) if p.ndim == 1 else p.normal_(0, p.shape[-1] ** -0.5)
    model.save_pretrained(folder, **({"max_shard_size": 60_000} if sharded else {}))


def rows():
    """Ids of rows of several lengths; some end in 2, which is the pad id of some models."""
    generator = torch.Generator().manual_seed(3)
    out = [torch.randint(3, 120, (n,), generator=generator).tolist() for n in (40, 1, 17, 18, 9, 33, 2, 40)]
    return [*out, [*out[2], 2], [*out[4], 2, 2], [2, 2], [5, 2, 7]]


@torch.no_grad()
def theirs(folder, data, together=False):
    """transformers' scores (N, labels) of these rows."""
    alibi = json.loads((folder / "config.json").read_text()).get("alibi")  # its eager attention adds that twice
    kind = "sdpa" if alibi else "eager"  # and sdpa leaves out Gemma 2's caps
    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation=kind).eval()
    if not together:
        return torch.cat([model(torch.tensor([row])).logits for row in data])
    pad, width = model.config.get_text_config().pad_token_id, max(map(len, data))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in data])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in data])
    return model(ids, attention_mask=mask).logits


def hub_config(folder):
    """Rewrite config.json as transformers 4 had it."""
    raw = json.loads((folder / "config.json").read_text())
    rope = raw.pop("rope_parameters", None)
    if rope and "full_attention" not in rope:
        raw["rope_theta"] = rope.pop("rope_theta", 10000.0)
        if "partial_rotary_factor" in rope:
            raw["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
        raw["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    elif rope:
        raw["rope_parameters"] = rope
    raw["torch_dtype"] = raw.pop("dtype")
    (folder / "config.json").write_text(json.dumps(raw))


def written(config, folder, data):
    """(transformers' scores, ours) of a judge made here on the causal model of this config."""
    kind = Gemma3ForConditionalGeneration if isinstance(config, Gemma3Config) else AutoModelForCausalLM
    make(kind, config, folder / "base")
    model = lora.add_lora(checkpoints.load_model(folder / "base"), rank=3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in lora.trainable(model).values():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    head = torch.randn(5, model.config.d_model, generator=generator) / 4
    pad = config.get_text_config().pad_token_id
    judge = RewardModel(model, head, list(ATTRIBUTES), pad_id=pad, format="plain")
    checkpoints.save_reward_model(judge, folder / "judge")
    again = checkpoints.load_reward_model(folder / "judge").score(data)
    assert (again - judge.score(data)).abs().max() <= LIMIT, "read back with other scores"
    return theirs(folder / "judge", data), judge.score(data)


def row_of_table(name, config, folder):
    """(a line of the table, what is wrong)"""
    data, source = rows(), folder / "theirs"
    if isinstance(config, GraniteConfig):  # transformers has none: saved as a Llama
        scores, ours = written(config, folder, data)
        differ = (scores - ours).abs().max().item()
        return f"| {name} | - | - | - | {differ:.1e} | - |", [f"{name}: written differs"] * (not differ <= LIMIT)
    make(AutoModelForSequenceClassification, config, source, "sharded" in name)
    judge, wanted = checkpoints.load_reward_model(source), theirs(source, data)
    found = {"read": judge.score(data) - wanted}
    if judge.pad_id is not None:
        found["together"] = judge.score(data) - theirs(source, data, together=True)
    hub_config(source)
    found["4.x"] = checkpoints.load_reward_model(source).score(data) - wanted
    scores, ours = written(config, folder, data)
    found["written"] = scores - ours
    errors = {k: d.abs().max().item() for k, d in found.items()}
    ends = bool((wanted[2] == wanted[8]).all())
    wrong = [f"{name}: {k} differs by {e:.1e}" for k, e in errors.items() if not e <= LIMIT]
    if wanted.std(0).min() < 0.05:
        wrong.append(f"{name}: its scores hardly depend on the rows")
    cells = (f"{errors[k]:.1e}" if k in errors else "-" for k in ("read", "together", "4.x", "written"))
    return f"| {' | '.join((name, *cells, 'earlier' if ends else 'no'))} |", wrong


def with_bias(folder):
    """Largest difference with a score.bias added to the file, which transformers has no place for."""
    make(AutoModelForSequenceClassification, MODELS["llama, 9, sharded"], folder)
    plain = checkpoints.load_reward_model(folder).score(rows())
    tensors = load_file(folder / "model.safetensors")
    bias = torch.linspace(-1, 1, 9)
    save_file(tensors | {"score.bias": bias}, folder / "model.safetensors")
    return (checkpoints.load_reward_model(folder).score(rows()) - plain - bias).abs().max().item()


@torch.no_grad()
def cost(path):
    """Scoring against one forward pass over the same packed tokens, in turn: a line."""
    if path is None:
        big = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 8, "num_attention_heads": 8}
        with tempfile.TemporaryDirectory() as folder:
            make(AutoModelForCausalLM, LlamaConfig(**KV | big | {"max_position_embeddings": 512}), folder)
            model = checkpoints.load_model(folder)
    else:
        model = checkpoints.load_model(path)
    judge = RewardModel(model, torch.randn(5, model.config.d_model), list(ATTRIBUTES))
    generator = torch.Generator().manual_seed(1)
    lengths = torch.randint(60, 200, (96,), generator=generator).tolist()
    data = [torch.randint(model.config.vocab, (n,), generator=generator).tolist() for n in lengths]
    batches = [batch for _, batch in judge.batches(data)]
    whole = [pack([data[i] for i in places], model.device) for places, _ in judge.batches(data)]
    tokens = sum(b.tokens.numel() for b in whole)

    def forward():
        for b in batches:  # all rows of the last layer too, no head
            everything = torch.arange(b.tokens.shape[1], device=model.device)
            type(b)(b.tokens, everything, b.targets, b.runs).hidden(model)

    seconds = {"score": [], "forward": []}
    for _ in range(5):
        for name, work in (("score", lambda: judge.score(data)), ("forward", forward)):
            began = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - began)
    score, plain = (statistics.median(s) for s in seconds.values())
    return (f"scoring {len(data)} rows, {tokens:,} packed tokens, {checkpoints.describe(model)}: {score:.2f} s; one "
            f"forward pass over them {plain:.2f} s; ratio {score / plain:.2f}")


def main():
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}\n")
    print("| model | read | together | 4.x | written | ends |\n|---|---|---|---|---|---|")
    wrong = []
    for name, config in MODELS.items():
        with tempfile.TemporaryDirectory() as folder:
            try:
                line, found = row_of_table(name, config, Path(folder))
            except Exception as e:  # one model that fails must not hide the others
                line, found = f"| {name} | failed | | | | |", [f"{name}: {type(e).__name__}: {e}"]
        print(line, flush=True)
        wrong += found
    with tempfile.TemporaryDirectory() as folder:
        print(f"\nwith a bias: largest difference {with_bias(Path(folder)):.1e}")
    print("\n" + cost(sys.argv[1] if len(sys.argv) > 1 else None))
    print("\n" + ("\n".join(wrong) or f"all {len(MODELS)} agree: differences at most {LIMIT:.0e}"))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
