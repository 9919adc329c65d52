"""Adapters in PEFT's layout: the reference's own, round trips, patterns, and what is refused by name."""

import json
import math
import shutil

import pytest
import torch
from conftest import GOLDEN, SHIPPED, stirred
from safetensors.torch import load_file, save_file

import checkpoints
from star.lora import lora_modules, merged
from star.sampler import Sampler


def edit(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def adapted(**kw):
    return stirred(checkpoints.load_model(SHIPPED), **kw)


@torch.no_grad()
@pytest.mark.parametrize("merge", ["on", "off"])
def test_reference_adapter_live_and_merged(merge):
    golden = load_file(GOLDEN / "lora_llama" / "golden.safetensors")
    model = checkpoints.load_model(GOLDEN / "lora_llama" / "base")
    checkpoints.load_adapter(model, GOLDEN / "lora_llama" / "adapter")
    sampler = Sampler(model, 4, 64, merge=merge)
    torch.testing.assert_close(sampler._weights()(golden["input_ids"]), golden["logits"], atol=1e-4, rtol=1e-4)
    if "greedy" in golden:
        outs = sampler.generate(golden["input_ids"].tolist(), max_new_tokens=golden["greedy"].shape[1])
        assert [list(o.tokens) for o in outs] == golden["greedy"].tolist()


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "down_proj"), None])
def test_adapters_round_trip_bit_for_bit(tmp_path, targets):
    model = adapted(**({"targets": targets} if targets else {}))
    checkpoints.save_adapter(model, tmp_path / "a")
    again = checkpoints.load_model(SHIPPED)
    checkpoints.load_adapter(again, tmp_path / "a")
    ids = torch.arange(2, 15)[None]
    assert torch.equal(model(ids), again(ids))
    checkpoints.save_adapter(again, tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@torch.no_grad()
@pytest.mark.parametrize(("name", "fused", "shape"), [
    ("falcon7b", "transformer.h.0.self_attention.query_key_value", (3, 48)),
    ("falcon40b", "transformer.h.0.self_attention.query_key_value", (3, 64)),
    ("granite4_dense", "model.layers.0.shared_mlp.input_linear", (3, 112))])
def test_a_fused_linear_has_one_adapter_in_the_files_rows(tmp_path, name, fused, shape):
    """W' = W + s B A on the file's own matrix must say what the live adapter says."""
    model = stirred(checkpoints.load_model(GOLDEN / name))
    checkpoints.save_adapter(model, tmp_path / "a")
    files = load_file(tmp_path / "a" / "adapter_model.safetensors")
    B = files[f"base_model.model.{fused}.lora_B.weight"]
    assert (B.shape[1], B.shape[0]) == shape
    folder = tmp_path / "merged"
    shutil.copytree(GOLDEN / name, folder)
    for file in folder.glob("model*.safetensors"):
        tensors = load_file(file)
        for key in tensors:
            stem = f"base_model.model.{key.removesuffix('.weight')}"
            if f"{stem}.lora_A.weight" in files:
                tensors[key] += 2.0 * files[f"{stem}.lora_B.weight"] @ files[f"{stem}.lora_A.weight"]
        save_file(tensors, file)
    ids = torch.arange(2, 20)[None]
    expected = model(ids)
    limit = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(checkpoints.load_model(folder)(ids), expected, atol=limit, rtol=1e-4)
    again = checkpoints.load_model(GOLDEN / name)
    checkpoints.load_adapter(again, tmp_path / "a")
    assert torch.equal(again(ids), expected)


def test_part_of_a_fused_linear_is_no_target():
    with pytest.raises(ValueError, match=r"no linear named \['q_proj'\]; this model has .*'qkv_proj'"):
        stirred(checkpoints.load_model(GOLDEN / "falcon7b"), targets=("q_proj", "o_proj"))


@torch.no_grad()
@pytest.mark.parametrize("rslora", [False, True])
def test_ranks_and_alphas_by_pattern(tmp_path, rslora):
    """Keys are regular expressions for the end of a path, the first that fits counts; r and alpha are the rest's."""
    base = checkpoints.load_model(SHIPPED)
    shapes = {name.removesuffix(".weight"): view.shape for name, view in base.tensors()}
    generator, tensors, plain = torch.Generator().manual_seed(0), {}, dict(base.tensors())
    ranks = {"q_proj": 2, "v_proj": 4, "down_proj": 5}
    alphas = {"q_proj": 8.0, "v_proj": 3.0, "down_proj": 8.0}
    special = "layers.1.self_attn.q_proj"
    for part, shape in shapes.items():
        word = part.rpartition(".")[2]
        if word not in ranks:
            continue
        rank, alpha = (7, 1.0) if part == special else (ranks[word], alphas[word])
        A, B = (torch.randn(s, generator=generator) for s in ((rank, shape[1]), (shape[0], rank)))
        tensors |= {f"base_model.model.model.{part}.lora_A.weight": A,
                    f"base_model.model.model.{part}.lora_B.weight": B}
        plain[f"{part}.weight"] = plain[f"{part}.weight"] + alpha / (math.sqrt(rank) if rslora else rank) * B @ A
    (tmp_path / "a").mkdir()
    save_file(tensors, tmp_path / "a" / "adapter_model.safetensors")
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({
        "peft_type": "LORA", "r": 2, "lora_alpha": 8, "target_modules": list(ranks), "use_rslora": rslora,
        "rank_pattern": {r"layers\.1\.self_attn.q_proj": 7, "v_proj": 4, "down_proj": 5},
        "alpha_pattern": {"model.layers.1.self_attn.q_proj": 1, "v_proj": 3}}))
    checkpoints.load_adapter(base, tmp_path / "a")
    ids, twin = torch.arange(2, 15)[None], checkpoints.load_model(SHIPPED)
    for name, view in twin.tensors():
        view.copy_(plain[name])
    expected = twin(ids)
    limit = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(merged(base)(ids), expected, atol=limit, rtol=1e-4)
    checkpoints.save_adapter(base, tmp_path / "b")  # and as we write it: the same function, in our words
    again = checkpoints.load_model(SHIPPED)
    checkpoints.load_adapter(again, tmp_path / "b")
    torch.testing.assert_close(again(ids), base(ids), atol=limit, rtol=1e-4)


def test_part_of_the_layers_is_named_by_whole_paths(tmp_path):
    model = adapted(targets=("q_proj",))
    checkpoints.save_adapter(model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file({k: t for k, t in tensors.items() if ".layers.0." in k}, tmp_path / "a" / "adapter_model.safetensors")
    checkpoints.load_adapter(model, tmp_path / "a")
    checkpoints.save_adapter(model, tmp_path / "b")
    config = json.loads((tmp_path / "b" / "adapter_config.json").read_text())
    assert config["target_modules"] == ["model.layers.0.self_attn.q_proj"]


@pytest.mark.parametrize(("config", "said"), [
    ({"use_dora": True}, "only plain LoRA is supported, this is LoRA with use_dora"),
    ({"modules_to_save": ["lm_head"]}, "LoRA with modules_to_save"),
    ({"bias": "all"}, "LoRA with bias"),
    ({"peft_type": "IA3"}, "this is IA3"),
    ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4 changes the base"),
    ({"r": 5}, "another base"),
    ({"rank_pattern": {"q_proj": 9}}, "another base"),
    ({"r": None}, "lacks a number"),
    ({"r": 0}, "lacks a number"),
    ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern has 'q_proj': '2'; it must be a positive number"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern has 'q_proj': 0; it must be a positive number"),
    ({"alpha_pattern": {"(": 2}}, "'\\(' is no regular expression"),
])
def test_adapters_that_are_refused(tmp_path, config, said):
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", **config)
    model = checkpoints.load_model(SHIPPED)
    with pytest.raises(ValueError, match=said):
        checkpoints.load_adapter(model, tmp_path / "a")
    assert not list(lora_modules(model))


@pytest.mark.parametrize("name", ["model.embed_tokens.lora_embedding_A", "lm_head.lora_A.weight"])
def test_adapters_outside_the_blocks_are_refused_by_name(tmp_path, name):
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file(tensors | {f"base_model.model.{name}": torch.zeros(3, 2)}, tmp_path / "a" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match=f"adapts the embedding or the head.*{name}"):
        checkpoints.load_adapter(checkpoints.load_model(SHIPPED), tmp_path / "a")


def test_an_adapter_for_another_base_is_refused(tmp_path):
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    for other in ("llama2", "falcon7b"):
        with pytest.raises(ValueError, match="another base"):
            checkpoints.load_adapter(checkpoints.load_model(GOLDEN / other), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        checkpoints.load_adapter(checkpoints.load_model(GOLDEN / "llama2"), tmp_path)
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin can run code"):
        checkpoints.load_adapter(checkpoints.load_model(SHIPPED), tmp_path / "a")
    with pytest.raises(ValueError, match="holds adapters, not a model"):
        checkpoints.load_model(tmp_path / "a")
