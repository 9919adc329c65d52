"""Folders from strangers: whatever stands in a model's, an adapter's or a tokenizer's files, it is read, or refused in
one line that names the file, within 2 s and 300 MB. Each generator here has found faults before they were mended."""

import base64
import json
import math
import os
import shutil
import struct
import warnings

import pytest
import torch
from conftest import GOLDEN, random_decoder, stirred
from hostile import Faults, Raw, cases, commanded, damaged, dumped, mutated, paths, seeded

import checkpoints
import train
from checkpoints import sandbox
from checkpoints.chat import load_chat
from checkpoints.files import INDEX, WHOLE
from checkpoints.sandbox import STEPS
from star.text import Prompt

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["2+3=5 and <|im_end|>\n", "caf\u00e9 \u4f60\u597d \U0001f600 </s><s>", "a" * 300 + "b" + " " * 40 + "1234", ""]
TURNS = [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "And <|im_end|> 3+3?")]
CONFIG = {"model_type": "llama", "vocab_size": 32, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
          "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "rms_norm_eps": 1e-5, "hidden_act": "silu",
          "max_position_embeddings": 64, "tie_word_embeddings": False, "rope_theta": 10000.0, "eos_token_id": 1,
          "torch_dtype": "float32"}


def use_model(folder, load=checkpoints.load_model):
    """Loads, and says numbers; where they are none, a warning has said so."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model = load(folder)
    with torch.no_grad():
        finite = bool(model(torch.tensor([[0, 1, 2]]) % model.config.vocab).isfinite().all())
    for w in warned:
        warnings.warn(str(w.message), stacklevel=2)
    assert finite or any("not finite" in str(w.message) for w in warned), "silent NaN"
    return model


def use_outline(folder):
    checkpoints.describe(checkpoints.outline(folder))


def use_tokenizer(folder):
    tokenizer = checkpoints.load_tokenizer(folder)
    for text in TEXTS:
        for kind in (str, Prompt):
            ids = tokenizer.encode(kind(text))
            assert all(type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids), ids[:20]
            assert isinstance(tokenizer.decode(ids), str)
    assert all(type(i) is int for i in tokenizer.eos_ids)
    return tokenizer


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model of two layers, whole and sharded, and its adapter."""
    folder = tmp_path_factory.mktemp("tiny")
    model = random_decoder(vocab=32, d_model=8, n_heads=2, n_kv=1, head_dim=4, d_ff=12, dtype=torch.float32)
    checkpoints.save_model(model, folder / "whole", CONFIG)
    model = checkpoints.load_model(folder / "whole")
    checkpoints.export_merged(model, folder / "shards", most_shard=1500)
    checkpoints.save_adapter(stirred(model), folder / "adapter")
    return folder


def copied(folder, to):
    shutil.copytree(folder, to)
    return to


def header_of(file):
    data = file.read_bytes()
    n = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + n]), data[8 + n :], 8 + n


def with_header(header, data):
    text = dumped(header).encode("utf-8", "surrogatepass") if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


def test_weights(tiny, tmp_path):
    """Headers with other values, bits flipped, ends cut off, lengths of all sizes."""
    folder, faults = copied(tiny / "whole", tmp_path / "m"), Faults()
    file = folder / WHOLE
    sound = file.read_bytes()
    header, data, length = header_of(file)
    deep = [p for p in paths(header) if len(p) > 1]
    for n in cases(230):
        rng = seeded(f"weights {n}")
        if n < 80:
            broken = with_header(mutated(header, rng, deep), data)
        elif n < 100:
            broken = with_header(mutated(header, rng), data)
        elif n < 150:
            broken = damaged(sound, rng, length)
        elif n < 200:
            broken = damaged(sound, rng)
        else:
            size = rng.choice([0, 1, 7, 8, length - 9, length - 7, 2**20, 99_999_999, 2**31, 2**63, 2**64 - 1])
            broken = struct.pack("<Q", size) + sound[8 : rng.choice([8, 9, length, len(sound)])]
        file.write_bytes(broken)
        faults.judge(f"weights {n}", "m", use_model, folder)
    many = {f"t{i}": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]} for i in range(50_000)}
    file.write_bytes(with_header({**many, "last": Raw('1, "last": 1')}, b""))
    faults.judge("weights doubled", WHOLE, use_model, folder, must="refused")
    file.write_bytes(with_header(b"[" + b"[]," * 5_000_000 + b"1]", b""))
    faults.judge("weights large header", WHOLE, use_model, folder, must="refused")
    file.unlink()
    for n, make in enumerate([lambda: os.mkfifo(file), lambda: file.mkdir(), lambda: file.symlink_to(file),
                              lambda: file.symlink_to("/dev/zero"), lambda: file.symlink_to("/proc/self/mem")]):
        make()
        faults.judge(f"weights special {n}", "m", use_model, folder, must="refused")
        file.rmdir() if file.is_dir() and not file.is_symlink() else file.unlink()
    assert not faults, faults.said()


def test_numbers_that_no_trained_model_has(tiny, tmp_path):
    """One weight that is NaN, infinite, or so large that its square is: never silently."""
    folder, faults = copied(tiny / "whole", tmp_path / "m"), Faults()
    header, data, _ = header_of(folder / WHOLE)
    names = [name for name in header if name != "__metadata__"]
    for n in cases(60):
        rng = seeded(f"numbers {n}")
        start, end = header[rng.choice(names)]["data_offsets"]
        at = rng.randrange(start, end, 4)
        odd = struct.pack("<f", rng.choice([math.nan, math.inf, -math.inf, 3e38, -3e38, 1e36, 1e25, -1e30]))
        (folder / WHOLE).write_bytes(with_header(header, data[:at] + odd + data[at + 4 :]))
        faults.judge(f"numbers {n}", "m", use_model, folder)
    assert not faults, faults.said()


def test_indexes(tiny, tmp_path):
    """Names that lead out of the folder, shards that are missing, stale, doubled, links."""
    folder, faults = copied(tiny / "shards", tmp_path / "m"), Faults()
    sound = json.loads((folder / INDEX).read_text())
    odd = ["../m/" + WHOLE, "/etc/passwd", "/dev/zero", "a/../b", ".", "..", "", "\0", "x\0y", INDEX, "config.json",
           "x" * 5000, "C:\\x", "~", "\x1b[31m", "a\nb", *set(sound["weight_map"].values())]
    for n in cases(120):
        rng = seeded(f"index {n}")
        index = json.loads(json.dumps(sound))
        if n < 70:
            for _ in range(rng.choice([1, 1, 3])):
                index["weight_map"][rng.choice([*index["weight_map"], "another"])] = rng.choice(odd)
        else:
            index = mutated(sound, rng)
        (folder / INDEX).write_text(dumped(index))
        faults.judge(f"index {n}", "m", use_model, folder)
    (folder / INDEX).write_text(json.dumps(sound))
    shards = sorted(set(sound["weight_map"].values()))
    for n, name in enumerate(shards):
        (folder / name).rename(tmp_path / name)
        faults.judge(f"shard missing {n}", name, use_model, folder, must="refused")
        (folder / name).symlink_to(tmp_path / name)
        faults.judge(f"shard linked {n}", name, use_model, folder, must="success")
    (tmp_path / shards[0]).unlink()
    faults.judge("shard lost", shards[0], use_model, folder, must="refused")
    (folder / shards[0]).unlink()
    (folder / shards[0]).symlink_to(folder / shards[0])
    faults.judge("shard in a circle", shards[0], use_model, folder, must="refused")
    shutil.copy(tiny / "whole" / WHOLE, folder / WHOLE)
    faults.judge("stale index", "m", use_model, folder, must="success")
    assert not faults, faults.said()


def families():
    files = [f for f in sorted(GOLDEN.glob("*/config*.json")) if (f.parent / "golden.safetensors").exists()]
    return [(f, json.loads(f.read_text())) for f in files]


NUMBERS = ["num_hidden_layers", "hidden_size", "vocab_size", "intermediate_size", "num_attention_heads", "head_dim",
           "num_key_value_heads", "rms_norm_eps", "layer_norm_epsilon", "norm_eps", "rope_theta", "logits_scaling",
           "attention_multiplier", "embedding_multiplier", "residual_multiplier", "partial_rotary_factor",
           "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping", "sliding_window",
           "sliding_window_pattern", "max_position_embeddings", "no_rope_layer_interval", "num_kv_heads",
           "max_window_layers", "layer_types", "rope_scaling", "rope_parameters", "n_embd", "n_layer", "n_head",
           "n_inner", "rotary_dim", "n_positions", "rotary_pct", "rotary_emb_base", "layer_norm_eps", "text_config",
           "original_max_position_embeddings"]
ROPES = [{"rope_type": kind, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_theta": 10000.0,
          "original_max_position_embeddings": 16, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 0.5,
          "attention_factor": 1.2, "short_factor": [1.0, 1.5, 2.0, 3.0], "long_factor": [1.0, 2.0, 4.0, 8.0],
          "partial_rotary_factor": 0.5} for kind in ("linear", "llama3", "yarn", "longrope")]


def test_configs(tmp_path):
    """Every key of every family's config.json: other types, other sizes, gone, doubled, nested too deep."""
    known, faults = families(), Faults()
    for n in cases(450):
        rng = seeded(f"config {n}")
        file, sound = known[n % len(known)]
        folder = tmp_path / file.parent.name
        if not folder.exists():
            folder.mkdir()
            for weights in file.parent.glob("model*"):
                (folder / weights.name).symlink_to(weights)
        places = [(key,) for key in NUMBERS if key in sound] * 3 + paths(sound)
        if n % 4 == 0:
            sound = sound | {"rope_parameters": dict(rng.choice(ROPES)), "rope_scaling": None}
            places = [("rope_parameters", key) for key in sound["rope_parameters"]]
        (folder / "config.json").write_text(dumped(mutated(sound, rng, places)))
        faults.judge(f"config {n} {file.parent.name}", folder, use_model, folder)
        if n % 10 == 0:
            faults.judge(f"outline {n}", folder, use_outline, folder)
    assert not faults, faults.said()


BEYOND = [
    ("num_hidden_layers", 10**6), ("num_hidden_layers", 10**30), ("hidden_size", 2**62), ("vocab_size", 10**30),
    ("intermediate_size", 2**62), ("num_attention_heads", 2**40), ("head_dim", 2**50), ("rms_norm_eps", Raw("NaN")),
    ("rope_theta", Raw("Infinity")), ("rms_norm_eps", -1.0), ("rope_theta", 0), ("max_position_embeddings", 0),
    ("max_position_embeddings", -5), ("eos_token_id", "x"), ("eos_token_id", [2.5]), ("eos_token_id", True),
    ("eos_token_id", 32), ("eos_token_id", -1), ("eos_token_id", {"a": 1})]


@pytest.mark.parametrize("check", [True, False])
def test_what_cannot_be_is_refused_before_a_run_begins(tiny, tmp_path, own_folder, check):
    folder, faults = copied(tiny / "whole", tmp_path / "m"), Faults()
    shutil.copy(GOLDEN / "tok_gpt2" / "tokenizer.json", folder)
    for key, value in BEYOND if check else BEYOND[-6:]:
        (folder / "config.json").write_text(dumped(CONFIG | {key: value}))
        faults.judge(f"{key} {value}", "m", commanded, train.main,
                     ["--model", str(folder), *["--check"] * check], must="refused")
    for value in ("x", [2.5], True, 999, -1, {"a": 1}, [[1]], Raw("9" * 401)):
        (folder / "config.json").write_text(dumped(CONFIG))
        (folder / "generation_config.json").write_text(dumped({"eos_token_id": value}))
        faults.judge(f"generation {value}", "generation_config.json", commanded, train.main,
                     ["--model", str(folder), *["--check"] * check], must="refused")
    assert not (tmp_path / "runs").exists()
    assert not faults, faults.said()


TOKENIZERS = ["tok_gpt2", "tok_llama3", "tok_sp_mistral_json", "tok_sp_gemma_json", "tok_sp_unigram_json",
              "tok_sp_llama"]
NORMALIZERS = [{"type": "Sequence", "normalizers": [
    {"type": "Replace", "pattern": {"String": " "}, "content": "_"}, {"type": "Prepend", "prepend": "x"},
    {"type": "Strip", "strip_left": True, "strip_right": False}, {"type": "Lowercase"}, {"type": "NFC"}]}]
CUTS = [{"type": "Sequence", "pretokenizers": [
    {"type": "Split", "pattern": {"Regex": "\\s+"}, "behavior": "Isolated", "invert": False},
    {"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"},
    {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}]}]
AROUND = [{"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a", "type_id": 0}},
                                                   {"Sequence": {"id": "A", "type_id": 0}}],
           "special_tokens": {"a": {"id": "a", "ids": [3], "tokens": ["a"]}}},
          {"type": "RobertaProcessing", "sep": ["b", 2], "cls": ["a", 1]}]
ENDLESS = ["(a|aa)+$", "(a+)+$", "(.*)*x", "(?:a?){300}a{300}", "a{1000000000}", "(a{1000}){1000}", "(?<=(a+)+)b",
           "(a{1,1000}){1,1000}", "((a*)*)*c", "(x+x+)+y", "(?R)", "(a(?1)?)+$", "[", "(?P<a", "\\p{Nonsense}",
           "\\g<1>", "(?i)" * 9999, "(" * 5000 + ")" * 5000, "|".join("a" * 2000), "a" * 200_000, "(a|b|ab)*c",
           "(?:(?:a{9}){9}){9}", "^(([a-z])+.)+$", "(?P<n>a(?&n)?)+$", "(?:a{99}){99}{99}"]


def with_pattern(data, where, pattern):
    """The tokenizer.json with this expression: cutting words, cutting the rest, as a normalizer, in its decoder."""
    piece = {"pattern": {"Regex": pattern}, "content": "b"}
    if where == "normalizer":
        return data | {"normalizer": {"type": "Replace", **piece}}
    if where == "decoder":
        return data | {"decoder": {"type": "Sequence", "decoders": [{"type": "Replace", **piece}, {"type": "Fuse"}]}}
    cut = {"type": "Split", "pattern": piece["pattern"], "behavior": "Removed", "invert": where == "inverted"}
    return data | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        cut, {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]}}


def test_tokenizer_files(tmp_path):
    """tokenizer.json: every part of it, its added tokens, its steps, its post-processor."""
    faults, file = Faults(), tmp_path / "tokenizer.json"
    sound = {name: json.loads((GOLDEN / name / "tokenizer.json").read_text()) for name in TOKENIZERS}
    for data in sound.values():  # small ones, so that a case takes milliseconds
        vocab = data["model"]["vocab"]
        data["added_tokens"] = data["added_tokens"][:4]
        if isinstance(vocab, dict):
            data["model"]["vocab"] = kept = dict(list(vocab.items())[:400])
            data["model"]["merges"] = [m for m in data["model"]["merges"] if "".join(
                m.split(" ") if isinstance(m, str) else m) in kept]
    for n in cases(240):
        rng = seeded(f"tokenizer {n}")
        name = TOKENIZERS[n % len(TOKENIZERS)]
        data = dict(sound[name])
        if n % 3 == 0:
            data |= rng.choice([{"normalizer": rng.choice(NORMALIZERS)}, {"pre_tokenizer": rng.choice(CUTS)},
                                {"post_processor": rng.choice(AROUND)}])
        places = [p for p in paths(data) if p[0] != "model" or len(p) == 2 or rng.random() < 0.1]
        file.write_text(dumped(mutated(data, rng, places)))
        faults.judge(f"tokenizer {n} {name}", "tokenizer.json", use_tokenizer, tmp_path)
    for n, pattern in enumerate(ENDLESS):
        for where in ("cut", "inverted", "normalizer", "decoder"):
            file.write_text(dumped(with_pattern(sound["tok_gpt2" if where in ("cut", "inverted") else
                                                      "tok_sp_gemma_json"], where, pattern)))
            faults.judge(f"pattern {n} {where} {pattern[:20]}", "tokenizer.json", use_tokenizer, tmp_path)
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}
    for n, steps in enumerate([[grow] * 5, [{"type": "Prepend", "prepend": "a" * 999}] * 400,
                               [{"type": "Replace", "pattern": {"String": ""}, "content": "a" * 1000}] * 3,
                               [grow | {"pattern": {"Regex": ""}}] * 5]):
        file.write_text(dumped(sound["tok_sp_gemma_json"] | {"normalizer": {"type": "Sequence", "normalizers": steps}}))
        faults.judge(f"growing {n}", "tokenizer.json", use_tokenizer, tmp_path)
        file.write_text(dumped(sound["tok_sp_gemma_json"] | {"decoder": {"type": "Sequence", "decoders": steps}}))
        faults.judge(f"growing back {n}", "tokenizer.json", use_tokenizer, tmp_path)
    for name in TOKENIZERS:
        data = (GOLDEN / name / "tokenizer.json").read_bytes()
        for n in range(8):
            file.write_bytes(damaged(data, seeded(f"bytes {name} {n}")))
            faults.judge(f"bytes {name} {n}", "tokenizer.json", use_tokenizer, tmp_path)
    assert not faults, faults.said()


def test_tekken_files(tmp_path):
    """tekken.json: its counts, ranks, bytes and pattern."""
    faults, file = Faults(), tmp_path / "tekken.json"
    vocab = [{"rank": i, "token_bytes": base64.b64encode(bytes([i])).decode(), "token_str": None} for i in range(256)]
    vocab += [{"rank": 256, "token_bytes": "YWE=", "token_str": "aa"}]
    sound = {"config": {"pattern": "[a-z]+|\\\\s+|.", "num_vocab_tokens": 257, "default_vocab_size": 267,
                        "default_num_special_tokens": 10, "version": "v3"}, "vocab": vocab,
             "special_tokens": [{"rank": 0, "token_str": "<unk>", "is_control": True},
                                {"rank": 2, "token_str": "</s>", "is_control": True}]}
    for n in cases(80):
        rng = seeded(f"tekken {n}")
        file.write_text(dumped(mutated(sound, rng, [p for p in paths(sound) if p[0] != "vocab" or rng.random() < 0.2])))
        faults.judge(f"tekken {n}", "tekken.json", use_tokenizer, tmp_path)
    for n, pattern in enumerate(ENDLESS):
        file.write_text(dumped(sound | {"config": sound["config"] | {"pattern": pattern}}))
        faults.judge(f"tekken pattern {n}", "tekken.json", use_tokenizer, tmp_path)
    assert not faults, faults.said()


def test_files_beside_a_tokenizer(tmp_path):
    """tokenizer_config.json, special_tokens_map.json, added_tokens.json, generation_config.json: any value anywhere."""
    faults = Faults()
    shutil.copy(GOLDEN / "tok_gpt2" / "tokenizer.json", tmp_path)
    token = {"content": "<|end|>", "lstrip": False, "rstrip": False, "normalized": False, "single_word": False,
             "special": True}
    sound = {
        "tokenizer_config.json": {
            "bos_token": "<|endoftext|>", "eos_token": token, "pad_token": None, "add_bos_token": True, "legacy": True,
            "add_eos_token": False, "added_tokens_decoder": {"444": token, "445": "<|x|>"}, "tokenizer_class": "X",
            "additional_special_tokens": ["<|y|>"], "extra_special_tokens": {"image_token": "<|z|>"},
            "chat_template": "{{ messages[0].content }}", "model_max_length": 1e30},
        "special_tokens_map.json": {"bos_token": token, "eos_token": "<|endoftext|>",
                                    "additional_special_tokens": ["a"]},
        "added_tokens.json": {"<|im_end|>": 446, "<|im_start|>": 447},
        "generation_config.json": {"eos_token_id": [0, 1], "bos_token_id": 0},
        "config.json": {"vocab_size": 512, "eos_token_id": 0, "text_config": {"vocab_size": 512, "eos_token_id": [1]}}}
    for n in cases(100):
        rng = seeded(f"beside {n}")
        name = list(sound)[n % len(sound)]
        for file, data in sound.items():
            (tmp_path / file).write_text(dumped(mutated(data, rng) if file == name else data))
        faults.judge(f"beside {n}", tmp_path, use_tokenizer, tmp_path)
        faults.judge(f"beside {n} chat", tmp_path, use_chat, tmp_path)
    assert not faults, faults.said()


def test_sentencepiece_models(tmp_path):
    """tokenizer.model: a protocol buffer that a library in C++ reads."""
    faults, file = Faults(), tmp_path / "tokenizer.model"
    for name in ("tok_sp_llama/tokenizer.model", "chat/gemma.model"):
        sound = (GOLDEN / name).read_bytes()
        for n in cases(60):
            file.write_bytes(damaged(sound, seeded(f"{name} {n}"), 40 if n % 3 == 0 else None))
            faults.judge(f"{name} {n}", "tokenizer.model", use_tokenizer, tmp_path)
    for n, data in enumerate([b"", b"\n", b"\n\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x80" * 100_000, bytes(1000),
                              b"\n\x00" * 200_000, b"version https://git-lfs.github.com/spec/v1\n"]):
        file.write_bytes(data)
        faults.judge(f"odd model {n}", "tokenizer.model", use_tokenizer, tmp_path, must="refused")
    assert not faults, faults.said()


def use_adapter(folder, load=lambda folder: checkpoints.load_model(folder / "whole")):
    model = load(folder)
    checkpoints.load_adapter(model, folder / "a")
    with torch.no_grad():
        assert model(torch.tensor([[0, 1, 2]])).isfinite().all(), "silent NaN"


def test_adapters(tiny, tmp_path):
    """adapter_config.json and its tensors: other values, lost layers, no numbers, expressions without end."""
    folder, faults = copied(tiny, tmp_path / "t"), Faults()
    adapter = copied(tiny / "adapter", folder / "a")
    sound = json.loads((GOLDEN / "lora_llama" / "adapter" / "adapter_config.json").read_text()) | json.loads(
        (adapter / "adapter_config.json").read_text())
    sound |= {"rank_pattern": {"layers.0.self_attn.q_proj": 3}, "alpha_pattern": {"q_proj": 6}, "exclude_modules": None,
              "layers_to_transform": [0, 1], "layers_pattern": "layers"}
    file, config = adapter / "adapter_model.safetensors", adapter / "adapter_config.json"
    for n in cases(120):
        rng = seeded(f"adapter {n}")
        config.write_text(dumped(mutated(sound, rng)))
        faults.judge(f"adapter {n}", "a", use_adapter, folder)
    for n, pattern in enumerate(ENDLESS):
        for key, value in (("rank_pattern", {pattern: 3}), ("alpha_pattern", {pattern: 6}), ("target_modules", pattern),
                           ("exclude_modules", pattern), ("layers_pattern", [pattern])):
            config.write_text(dumped(sound | {key: value}))
            faults.judge(f"adapter {key} {n}", "a", use_adapter, folder)
    config.write_text(dumped(sound))
    header, data, length = header_of(file)
    whole, names = file.read_bytes(), [name for name in header if name != "__metadata__"]
    for n in cases(80):
        rng = seeded(f"adapter tensors {n}")
        name = rng.choice(names)
        if n < 20:
            lost = {k: v for k, v in header.items() if k != name}
            start, end = header[name]["data_offsets"]
            for v in lost.values():
                if "data_offsets" in v and v["data_offsets"][0] >= end:
                    v["data_offsets"] = [i - (end - start) for i in v["data_offsets"]]
            file.write_bytes(with_header(lost, data[:start] + data[end:]))
            header, data, length = header_of(adapter.parent / "adapter" / file.name)
        elif n < 40:
            start = rng.randrange(*header[name]["data_offsets"], 4)
            odd = struct.pack("<f", rng.choice([math.nan, math.inf, -math.inf]))
            file.write_bytes(with_header(header, data[:start] + odd + data[start + 4 :]))
        else:
            file.write_bytes(damaged(whole, rng, length))
        faults.judge(f"adapter tensors {n}", "a", use_adapter, folder, must="refused" if n < 40 else None)
    assert not faults, faults.said()


def use_chat(folder):
    chat = load_chat(folder)
    for turns in (TURNS, TURNS[1:2], [("user", "x" * 3000)]):
        prompt = chat.render(turns)
        assert all(0 <= s <= e <= len(prompt) for s, e in (*prompt.typed, *prompt.doubted))
    return chat


LOOP = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
BAD_TEMPLATES = [json.loads(line) for line in (GOLDEN.parent / "hostile_templates.jsonl").read_text().splitlines()] + [
    "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "{{ " + "1+" * 30_000 + "1 }}", "{{ " + "not " * 9999 + "1 }}",
    "{% if 1 %}" * 300 + "{% endif %}" * 300, "{{ [" * 999, "{{ 9" + "9" * 9999 + " }}", "x" * 3_000_000,
    "{{ 'a'|" + "upper|" * 9999 + "lower }}", "{% for i in range(99999) %}" + "x" * 9999 + "{% endfor %}"]


def test_chat_templates(tmp_path, monkeypatch):
    """Programs of strangers: endless, hungry, curious, broken; one in five with as many steps as users have."""
    faults, file = Faults(), tmp_path / "chat_template.jinja"
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    for n, template in enumerate(BAD_TEMPLATES):
        file.write_text(template + LOOP * (n % 2), encoding="utf-8")
        monkeypatch.setattr(sandbox, "STEPS", STEPS // (10 if n % 5 else 1))
        faults.judge(f"template {n} {template[:80]}", "chat_template.jinja", use_chat, tmp_path)
    monkeypatch.undo()
    sound = {f.name: f.read_bytes() for f in sorted((GOLDEN / "chat").glob("*.jinja"))}
    for n in cases(80):
        rng = seeded(f"template {n}")
        file.write_bytes(damaged(sound[list(sound)[n % len(sound)]], rng))
        faults.judge(f"damaged template {n}", "chat_template.jinja", use_chat, tmp_path)
    assert not faults, faults.said()


def test_judges(tmp_path):
    """config.json of reward models: labels, pad ids, the project's own words."""
    faults = Faults()
    folders = sorted((GOLDEN / "rewards").iterdir())
    for n in cases(80):
        rng = seeded(f"judge {n}")
        source = folders[n % len(folders)]
        folder = tmp_path / f"{n}"
        folder.mkdir()
        (folder / WHOLE).symlink_to(source / WHOLE)
        sound = json.loads((source / "config.json").read_text()) | {
            "id2label": {"0": "reward"}, "star_judge": {"weights": [1.0], "format": "chat"}}
        places = [(key,) for key in ("id2label", "star_judge", "architectures", "pad_token_id")] * 5 + paths(sound)
        (folder / "config.json").write_text(dumped(mutated(sound, rng, places)))
        faults.judge(f"judge {n} {source.name}", folder, use_judge, folder)
    assert not faults, faults.said()


def use_judge(folder):
    judge = checkpoints.load_reward_model(folder)
    assert judge.score([[0, 1, 2]]).isfinite().all(), "silent NaN"
    assert all(label.isprintable() for label in judge.labels)
