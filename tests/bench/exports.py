"""What this project writes, read by transformers and PEFT, and what PEFT writes, read here: a model of each layout.

    python tests/bench/exports.py

Needs the extra `bench`; nothing is downloaded. The models are tiny, random, and stored by transformers. Columns:

    merged       largest error of transformers' logits on a merged export in shards, as a share of the largest logit
    adapter      the same of PEFT on the adapter that is saved here
    PEFT's here  the same of this project on an adapter that PEFT saved (ranks, alphas and rslora vary by module)
    and back     the same of PEFT on that adapter once it is saved again here
    untouched    stored in float32 and bfloat16, loaded and exported: are all tensors and config.json the same bytes?

Exit status 1 if an error is above 1e-4, a key is missing or left over, an adapter does nothing, or a byte differs.
"""

import re
import sys
import tempfile
import warnings
from pathlib import Path

from peers import need

need("transformers", "peft")

import peft
import torch
import transformers
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    FalconConfig,
    Gemma2Config,
    Gemma3Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPTJConfig,
    GPTNeoXConfig,
    GraniteConfig,
    GraniteMoeHybridConfig,
    LlamaConfig,
    Mistral3Config,
    MistralConfig,
    NemotronConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    Qwen2Config,
    Qwen3Config,
)

import checkpoints
from star import lora

LIMIT = 1e-4  # of the largest logit
LEAST = 1e-2  # an adapter that moves the logits by less shows nothing
SHARD = 60_000  # bytes
SIZES = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
         "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
         "pad_token_id": 0}
KV = SIZES | {"num_key_value_heads": 2}
GEMMA = KV | {"head_dim": 32}
WINDOWS = GEMMA | {"sliding_window": 8, "query_pre_attn_scalar": 24,
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
ROPES = {"full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e6},
         "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 28, "patch_size": 14}
SCALES = {"embedding_multiplier": 6.0, "residual_multiplier": 0.4, "attention_multiplier": 0.1, "logits_scaling": 3.0}
MODELS = {
    "llama, tied": LlamaConfig(**KV, tie_word_embeddings=True),
    "llama, sharded": LlamaConfig(**KV, tie_word_embeddings=False, attention_bias=True, mlp_bias=True),
    "mistral": MistralConfig(**KV, sliding_window=8),
    "qwen2": Qwen2Config(**KV),
    "qwen3": Qwen3Config(**KV, head_dim=24),
    "gemma": GemmaConfig(**GEMMA | {"num_key_value_heads": 1}),
    "gemma2": Gemma2Config(**WINDOWS),
    "gemma3, text": Gemma3TextConfig(**WINDOWS, rope_parameters=ROPES),
    "gemma3, multimodal": Gemma3Config(text_config=WINDOWS | {"rope_parameters": ROPES}, vision_config=VISION,
                                       mm_tokens_per_image=4),
    "granite": GraniteConfig(**KV, **SCALES),
    "granite 4, dense": GraniteMoeHybridConfig(**KV, **SCALES, num_local_experts=0, layer_types=["attention"] * 3,
                                               shared_intermediate_size=80, position_embedding_type="rope"),
    "falcon 7b": FalconConfig(**SIZES, new_decoder_architecture=False, multi_query=True, parallel_attn=True),
    "falcon 40b": FalconConfig(**SIZES, new_decoder_architecture=True, num_kv_heads=2),
    "gpt-j": GPTJConfig(vocab_size=128, n_embd=64, n_layer=3, n_head=4, n_positions=64, rotary_dim=8, bos_token_id=1,
                        eos_token_id=2),
    "gpt-neox": GPTNeoXConfig(**SIZES),
    "mistral 3, multimodal": Mistral3Config(text_config=KV | {"model_type": "mistral", "sliding_window": None},
                                            vision_config=VISION | {"model_type": "pixtral", "head_dim": 16},
                                            tie_word_embeddings=False),
    "nemotron": NemotronConfig(**KV, attention_bias=True, mlp_bias=True),
    "olmo 2": Olmo2Config(**KV),
    "olmo 3": Olmo3Config(**KV, sliding_window=8),
    "phi 3, long": Phi3Config(**KV, original_max_position_embeddings=8, rope_parameters={
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 4 + [6.0] * 4}),
}
RANKS = {r".*\.1\.self_(attn|attention)\..*": 2, "down_proj|dense_4h_to_h|output_linear": 6}
ALPHAS = {r".*\.2\..*": 20}
# no module is matched by two ranks: PEFT sorts patterns when it saves them, and cannot load such an adapter itself
VARIANTS = (  # what PEFT's adapters set, in turn
    {}, {"use_rslora": True}, {"rank_pattern": RANKS, "alpha_pattern": ALPHAS},
    {"rank_pattern": RANKS, "alpha_pattern": ALPHAS, "use_rslora": True},
)  # fmt: skip


def class_of(config):
    sees = isinstance(config, (Gemma3Config, Mistral3Config))
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def reference(config, folder, **options):
    """transformers' model of a folder, as it is stored."""
    options |= {"dtype": "auto", "attn_implementation": "eager"}
    return class_of(config).from_pretrained(folder, **options)


def make(config, folder, sharded):
    """A random model, its norms and biases too, stored in float32 and in bfloat16."""
    torch.manual_seed(0)
    model = class_of(config).from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p)) if p.ndim == 1 else p.normal_(0, p.shape[-1] ** -0.5)
    options = {"max_shard_size": SHARD} if sharded else {}
    model.save_pretrained(folder / "float32", **options)
    model.bfloat16().save_pretrained(folder / "bfloat16", **options)


def logits(model, tokens):
    with torch.no_grad():
        out = model(tokens)
    return out if isinstance(out, torch.Tensor) else out.logits


def error(found, wanted):
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


def moved(found, base):
    """The logits, if the adapter changed enough for a comparison to mean something."""
    assert error(found, base) > LEAST, f"the adapter moves the logits by {error(found, base):.1e} only"
    return found


def adapted(model, seed=1):
    """The model with random adapters of rank 4."""
    lora.add_lora(model, rank=4, alpha=8, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, module in lora.lora_modules(model):
            for B in module.B:
                B.copy_(0.1 * torch.randn(B.shape, generator=generator))
    return model


def merged_export(config, source, out, tokens):
    """(error of transformers' logits on our merged export, number of its files, what it said of keys)"""
    model = checkpoints.load_model(source)
    base = logits(model, tokens)
    wanted = moved(logits(adapted(model), tokens), base)
    checkpoints.export_merged(model, out, most_shard=SHARD)
    theirs, info = reference(config, out, output_loading_info=True)
    said = [f"{kind}: {sorted(map(str, keys))[:3]}" for kind, keys in info.items() if keys]
    return error(logits(theirs, tokens), wanted), len(list(out.glob("*.safetensors"))), said


def with_peft(config, source, adapter, tokens):
    """(PEFT's logits with an adapter folder, what it warned of)"""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(reference(config, source), adapter).eval()
    return logits(model, tokens), [str(w.message) for w in caught if "keys" in str(w.message)]


def adapter_export(config, source, out, tokens):
    """(error of PEFT's logits on the adapter we save, what it warned of)"""
    model = adapted(checkpoints.load_model(source))
    checkpoints.save_adapter(model, out)
    found, said = with_peft(config, source, out, tokens)
    return error(found, logits(model, tokens)), said


def peft_adapter(config, source, out, tokens, variant):
    """(error of our logits on an adapter that PEFT saved, error of PEFT's once we save it again, warnings)"""
    base = reference(config, source)
    plain = logits(base, tokens)
    linears = {name.rpartition(".")[2] for name, m in base.named_modules()
               if isinstance(m, torch.nn.Linear) and re.search(r"(layers|h)\.\d", name) and "vision" not in name}
    targets = sorted(linears) if class_of(config) is AutoModelForCausalLM else (
        rf".*language_model.*\.({'|'.join(sorted(linears))})")  # a vision tower's are called the same
    theirs = peft.get_peft_model(base, peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False, task_type="CAUSAL_LM", **variant)).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_" in name:
                scale = 0.1 if "lora_B" in name else p.shape[1] ** -0.5
                p.copy_(scale * torch.randn(p.shape, generator=generator))
    theirs.save_pretrained(out / "theirs")
    wanted = moved(logits(theirs, tokens), plain)
    model = checkpoints.load_model(source)
    checkpoints.load_adapter(model, out / "theirs")
    checkpoints.save_adapter(model, out / "ours")
    again, said = with_peft(config, source, out / "ours", tokens)
    return error(logits(model, tokens), wanted), error(again, wanted), said


def contents(folder):
    """(tensor name -> dtype, shape and bytes, over all files; the bytes of config.json)"""
    tensors = {}
    for file in folder.glob("*.safetensors"):
        for name, t in load_file(file).items():
            tensors[name] = t.dtype, t.shape, t.reshape(-1).view(torch.uint8).numpy().tobytes()
    return tensors, (folder / "config.json").read_bytes()


def untouched(source, out):
    """What differs between a folder and its export; in shards of another size than the source's."""
    checkpoints.export_merged(checkpoints.load_model(source), out, most_shard=2 * SHARD)
    (tensors, config), (others, other_config) = contents(source), contents(out)
    differ = sorted(n for n in tensors.keys() | others.keys() if tensors.get(n) != others.get(n))
    return [f"{source.name} {n}" for n in differ] + [f"{source.name} config.json"] * (config != other_config)


def row(name, config, variant, folder):
    """(a line of the table, what is wrong)"""
    tokens = torch.randint(3, SIZES["vocab_size"], (2, 24), generator=torch.Generator().manual_seed(3))
    make(config, folder, sharded="sharded" in name)
    source = folder / "float32"
    merged, files, wrong = merged_export(config, source, folder / "merged", tokens)
    adapter, said = adapter_export(config, source, folder / "adapter", tokens)
    here, back, said_back = peft_adapter(config, source, folder / "peft", tokens, variant)
    differ = [d for kind in ("float32", "bfloat16") for d in untouched(folder / kind, folder / f"again-{kind}")]
    wrong += said + said_back + differ
    wrong += [f"an error of {e:.1e}" for e in (merged, adapter, here, back) if not e <= LIMIT]
    cells = f"{merged:.1e}, {files} files", f"{adapter:.1e}", f"{here:.1e}", f"{back:.1e}"
    return f"| {' | '.join((name, *cells, 'no' if differ else 'yes'))} |", [f"{name}: {w}" for w in wrong]


def main():
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about PEFT
    print(f"transformers {transformers.__version__}, PEFT {peft.__version__}, torch {torch.__version__}\n")
    print("| model | merged | adapter | PEFT's here | and back | untouched |\n|---|---|---|---|---|---|")
    wrong = []
    for i, (name, config) in enumerate(MODELS.items()):
        with tempfile.TemporaryDirectory() as folder:
            try:
                line, found = row(name, config, VARIANTS[i % len(VARIANTS)], Path(folder))
            except Exception as e:  # one model that fails must not hide the others
                line, found = f"| {name} | failed | | | | |", [f"{name}: {type(e).__name__}: {e}"]
        print(line, flush=True)
        wrong += found
    print("\n" + ("\n".join(wrong) or f"all {len(MODELS)} agree: errors at most {LIMIT:.0e}, no key missing or left "
                                      "over, bytes equal"))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
