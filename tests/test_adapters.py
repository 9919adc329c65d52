"""Adapters in PEFT's layout: the reference's own, round trips, patterns, and what is refused by name."""

import json
import math
import shutil
import sys

import pytest
import torch
from conftest import GOLDEN, SHIPPED, stirred
from safetensors.torch import load_file, save_file

import checkpoints
from checkpoints.adapters import _targeted, adapters
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
    ("granite4_dense", "model.layers.0.shared_mlp.input_linear", (3, 112)),
    ("gpt_neox", "gpt_neox.layers.0.attention.query_key_value", (3, 96)),
    ("gptj", "transformer.h.0.attn.q_proj", (3, 32)),  # not fused, but in another order
    ("phi3", "model.layers.0.self_attn.qkv_proj", (3, 128)),
    ("mistral3", "model.language_model.layers.0.self_attn.k_proj", (3, 32))])
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
            path = key.removesuffix(".weight").replace("language_model.model.", "model.language_model.")
            stem = f"base_model.model.{path}"
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


@torch.no_grad()
def test_an_alpha_of_nothing(tmp_path):
    """All adapters but one say nothing then."""
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", lora_alpha=0)
    model, ids = checkpoints.load_model(SHIPPED), torch.arange(2, 15)[None]
    plain = model(ids)
    checkpoints.load_adapter(model, tmp_path / "a")
    assert torch.equal(model(ids), plain)
    edit(tmp_path / "a" / "adapter_config.json", alpha_pattern={"layers.1.self_attn.q_proj": 6})
    checkpoints.load_adapter(model, tmp_path / "a")
    assert not torch.equal(model(ids), plain)
    odd = {part: bool(B.any()) for part, _, B in adapters(model)}
    assert [part for part in odd if odd[part]] == ["layers.1.self_attn.q_proj"]
    checkpoints.save_adapter(model, tmp_path / "b")
    again = checkpoints.load_model(SHIPPED)
    checkpoints.load_adapter(again, tmp_path / "b")
    assert torch.equal(again(ids), model(ids))


def test_an_expression_that_needs_a_limit_needs_a_package(tmp_path, monkeypatch):
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", target_modules=r"(?:.*?\.)*layers\.\d+\..*(?:_proj)+")
    model = checkpoints.load_model(SHIPPED)
    checkpoints.load_adapter(model, tmp_path / "a")
    monkeypatch.setitem(sys.modules, "regex", None)
    with pytest.raises(ValueError, match=r"config.json: the expression .* needs the package regex: pip install"):
        checkpoints.load_adapter(model, tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", target_modules=r".*layers\.\d+\..*_proj")
    checkpoints.load_adapter(model, tmp_path / "a")


def test_part_of_the_layers_is_named_by_whole_paths(tmp_path):
    model = adapted(targets=("q_proj",))
    checkpoints.save_adapter(model, tmp_path / "a")
    assert json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"] == ["q_proj"]
    tensors = load_file(tmp_path / "a" / "adapter_model.safetensors")
    save_file({k: t for k, t in tensors.items() if ".layers.0." in k}, tmp_path / "a" / "adapter_model.safetensors")
    edit(tmp_path / "a" / "adapter_config.json", layers_to_transform=[0])
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
    ({"r": 5}, "q_proj has ranks 3 and 3 where adapter_config.json says 5"),
    ({"rank_pattern": {"q_proj": 9}}, "q_proj has ranks 3 and 3 where adapter_config.json says 9"),
    ({"r": None}, "lacks a number"),
    ({"r": 0}, "lacks a number"),
    ({"rank_pattern": {"q_proj": "2"}}, "rank_pattern has 'q_proj': '2'; it must be a positive number"),
    ({"rank_pattern": {"q_proj": 0}}, "rank_pattern has 'q_proj': 0; it must be a positive number"),
    ({"rank_pattern": [1]}, r"rank_pattern is \[1\]; it must be an object"),
    ({"alpha_pattern": {"q_proj": math.nan}}, "'q_proj': nan; it must be a positive number"),
    ({"lora_alpha": math.nan}, "lora_alpha: nan; it must be a number that float32 holds"),
    ({"lora_alpha": 10**400}, "lora_alpha: 1000.*; it must be a number that float32 holds"),
    ({"alpha_pattern": {"(": 2}}, r"has '\(': 2, and that is no regular expression"),
    ({"rank_pattern": {"(?i)q_proj": 2}}, "that is no regular expression .global flags not at the start"),
    ({"exclude_modules": r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)\7\6\5\4\3\2\1[^\w.]"},
     "adapter_config.json: the expression .* was tried on model.* for 0.5 s without an end"),
    ({"target_modules": "a{1000000000}"}, "more than 5000 characters, or counts whose"),
    ({"alpha_pattern": {"(?:(?:a{99}){0,99}){999,}": 2}}, "more than 5000 characters, or counts whose product"),
    ({"rank_pattern": {"a" * 6000: 2}}, "more than 5000 characters, or counts whose"),
    ({"layers_pattern": "(" * 2000 + ")" * 2000}, "layers_pattern is no regular expression"),
    ({"target_modules": []}, r"has target_modules: \[\], which adapts nothing"),
    ({"target_modules": ""}, "has target_modules: '', which adapts nothing"),
    ({"use_rslora": "false"}, "has use_rslora: 'false'; it must be true or false"),
    ({"lora_alpha": 1e-300, "alpha_pattern": {"layers.0.self_attn.q_proj": 12}}, "float32 does not hold B times"),
    ({"target_modules": "("}, "target_modules is no regular expression"),
    ({"layers_pattern": ["("]}, "layers_pattern is no regular expression"),
    ({"target_modules": {"q_proj": 1}}, "has target_modules: {'q_proj': 1}; it must be a name"),
    ({"exclude_modules": [1]}, r"has exclude_modules: \[1\]; it must be a name"),
    ({"layers_to_transform": "0"}, "has layers_to_transform: '0'; it must be a number"),
    ({"target_modules": ["q_proj"]}, "holds adapters of .*k_proj, which .*adapter_config.json leaves out"),
    ({"exclude_modules": ["q_proj"]}, "holds adapters of .*q_proj, which .* leaves out"),
    ({"layers_to_transform": [1]}, "holds adapters of model.layers.0.self_attn.q_proj, which"),
    ({"target_modules": ["q_proj", "lm_head"]}, r"adapter_config.json adapts the embedding or the head \(lm_head\)"),
    ({"target_modules": ["embed_tokens"]}, r"adapts the embedding or the head \(model.embed_tokens\)"),
])
def test_adapters_that_are_refused(tmp_path, config, said):
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", **config)
    model = checkpoints.load_model(SHIPPED)
    with pytest.raises(ValueError, match=said):
        checkpoints.load_adapter(model, tmp_path / "a")
    assert not list(lora_modules(model))


@pytest.mark.parametrize(("config", "loads"), [
    ({"rank_pattern": {"(.*)*x": 2}}, True), ({"alpha_pattern": {"(a|.|.)+!": 2}}, True),
    ({"target_modules": "(.*)*x"}, False), ({"target_modules": ".*.*.*.*.*.*.*.*.*!"}, False),
    ({"exclude_modules": "(?:.?){60}x"}, True), ({"alpha_pattern": {"(?:a|aa?)+(.+)+!": 2}}, True),
    ({"layers_pattern": ["(.+)+x"], "layers_to_transform": [0]}, False)])
def test_expressions_that_python_would_try_for_ever_fit_nothing(tmp_path, config, loads):
    checkpoints.save_adapter(adapted(targets=("q_proj",)), tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", **config)
    model = checkpoints.load_model(SHIPPED)
    if loads:
        checkpoints.load_adapter(model, tmp_path / "a")
    else:
        with pytest.raises(ValueError, match=r"holds adapters of .*q_proj, which .* leaves out"):
            checkpoints.load_adapter(model, tmp_path / "a")


def changed(folder, change):
    """The adapter's tensors, changed in place."""
    file = folder / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)


def pop(*words):
    """Takes away the tensors whose names hold one of these words."""
    def change(tensors):
        for key in [k for k in tensors if any(w in k for w in words)]:
            del tensors[key]
    return change


FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(("change", "config", "said"), [
    (pop("layers.1.mlp.up_proj"), {}, r"lacks model.layers.1.mlp.up_proj, adapted by target_modules in .*_config.json"),
    (pop("layers.1.", "layers.2."), {}, "lacks model.layers.1.self_attn.q_proj and 13 more, adapted by target_modules"),
    (pop("k_proj"), {}, "lacks model.layers.0.self_attn.k_proj and 2 more"),
    (pop("layers.1.mlp.up_proj"), {"target_modules": None}, "lacks model.layers.1.mlp.up_proj"),
    (pop("layers.1.mlp.up_proj"), {"target_modules": "All-Linear"}, "lacks model.layers.1.mlp.up_proj"),
    (pop("layers.1.mlp.up_proj"), {"target_modules": r".*layers\.\d+\.(self_attn|mlp)\.\w+"}, "lacks .*1.mlp.up_proj"),
    (pop("layers.1.mlp.up_proj"), {"layers_to_transform": [0, 1, 2]}, "lacks model.layers.1.mlp.up_proj"),
    (pop("layers.0.self_attn.q_proj.lora_B"), {}, "lacks .*layers.0.self_attn.q_proj.lora_B.weight:"),
    (pop("layers.0.self_attn.q_proj.lora_A"), {}, "lacks .*layers.0.self_attn.q_proj.lora_A.weight:"),
    (pop("."), {}, "holds no adapter: fetch it again"),
    (lambda t: t.update({FIRST + "B.weight": t[FIRST + "B.weight"][:, :2].clone()}), {}, "has ranks 3 and 2 where"),
    (lambda t: t.update({FIRST + "B.weight": t[FIRST + "B.weight"][:-1].clone()}), {}, "do not fit a linear of shape"),
    (lambda t: t.update({FIRST + "A.weight": t[FIRST + "A.weight"].flatten()}), {}, "do not fit a linear of shape"),
    (lambda t: t.update({FIRST + "B.weight": t[FIRST + "B.weight"][:, 0].clone()}), {}, "do not fit a linear of shape"),
    (lambda t: t[FIRST + "A.weight"].fill_(math.nan), {}, "q_proj.lora_A.weight holds numbers that are not finite"),
    (lambda t: t.update({FIRST + "B.weight": t[FIRST + "B.weight"].double() * 1e200}), {}, "not finite in float32"),
    (lambda t: t.update({FIRST + "magnitude_vector": torch.ones(2)}), {}, "is DoRA"),
    (lambda t: t.update({FIRST + "A.default.weight": torch.ones(2, 2)}), {}, "has the adapter's own name in its keys"),
    (lambda t: t.update({FIRST.replace("0", "7") + "A.weight": torch.ones(2)}), {}, "layers.7.* has no place in this"),
])
def test_files_that_do_not_hold_what_the_config_says(tmp_path, change, config, said):
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    changed(tmp_path / "a", change)
    edit(tmp_path / "a" / "adapter_config.json", **config)
    model = adapted(rank=2)
    with pytest.raises(ValueError, match=said) as caught:
        checkpoints.load_adapter(model, tmp_path / "a")
    assert "\n" not in str(caught.value)
    assert {A.shape[0] for _, A, _ in adapters(model)} == {2}  # those from before


@pytest.mark.parametrize(("lost", "config"), [
    ("layers.1.", {"layers_to_transform": [0, 2]}),
    ("layers.1.", {"layers_to_transform": [0, 2], "layers_pattern": "layers"}),
    ("up_proj", {"exclude_modules": ["up_proj"]}),
    ("layers.1.mlp.up_proj", {"exclude_modules": r".*\.1\.mlp\.up_proj"}),
    ("v_proj", {"target_modules": r".*\.([qko]|gate|up|down)_proj"}), ("nothing", {"target_modules": "all-linear"}),
    ("nothing", {"target_modules": None}), ("up_proj", {"target_modules": None})])
def test_what_the_config_leaves_out_may_be_absent(tmp_path, lost, config):
    checkpoints.save_adapter(adapted(), tmp_path / "a")
    changed(tmp_path / "a", pop(lost))
    edit(tmp_path / "a" / "adapter_config.json", **config)
    checkpoints.load_adapter(checkpoints.load_model(SHIPPED), tmp_path / "a")


@pytest.mark.parametrize(("config", "name", "meant"), [
    ({"target_modules": ["dense"]}, "transformer.h.0.mlp.dense", True),
    ({"target_modules": ["dense"]}, "transformer.h.0.mlp.xdense", False),
    ({"target_modules": "q_proj"}, "model.layers.0.self_attn.q_proj", False),  # a string is a whole path's expression
    ({"target_modules": ["model.layers.3.q_proj"], "layers_to_transform": [0]}, "model.layers.3.q_proj", True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0]}, "model.layers.10.q_proj", False),
    ({"target_modules": ["q_proj"], "layers_to_transform": [10]}, "model.layers.10.q_proj", True),
    ({"target_modules": ["q_proj"], "layers_to_transform": [0], "layers_pattern": ["h", "blocks"]}, "a.layers.0.q_proj",
     False),
    ({"target_modules": ["q_proj"], "layers_to_transform": 3}, "transformer.h.3.q_proj", True),
    ({"target_modules": ["q_proj"], "layers_to_transform": []}, "model.layers.3.q_proj", True)])
def test_pefts_rule(config, name, meant):
    assert _targeted(config, name) is meant


@torch.no_grad()
def test_an_adapter_of_gemmas_vision_too(tmp_path):
    """PEFT's all-linear adapts the vision tower with the text model: the text part is taken, and that is said."""
    text, folder = GOLDEN / "gemma3", tmp_path / "mm"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(
        {"model_type": "gemma3", "text_config": json.loads((text / "config.json").read_text())}))
    tensors = load_file(text / "model.safetensors")
    save_file({f"language_model.{k}": t for k, t in tensors.items()}, folder / "model.safetensors")
    adapted_text = stirred(checkpoints.load_model(folder))
    checkpoints.save_adapter(adapted_text, tmp_path / "a")
    vision = "base_model.model.model.vision_tower.encoder.layers.0.self_attn.q_proj.lora_"
    changed(tmp_path / "a", lambda t: t.update({f"{vision}{letter}.weight": torch.ones(3, 3) for letter in "AB"}))
    edit(tmp_path / "a" / "adapter_config.json", target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "out_proj", "fc1", "fc2"])
    model, ids = checkpoints.load_model(folder), torch.arange(2, 15)[None]
    with pytest.warns(UserWarning, match=r"2 tensors adapt what is not read here \(.*vision_tower.*text model alone"):
        checkpoints.load_adapter(model, tmp_path / "a")
    assert torch.equal(model(ids), adapted_text(ids))
    new, old = "base_model.model.model.language_model.", "base_model.model.language_model.model."
    changed(tmp_path / "a", lambda t: [t.update({k.replace(new, old): t.pop(k)}) for k in list(t)])
    again = checkpoints.load_model(folder)  # as transformers 4.50 called its modules
    with pytest.warns(UserWarning, match="left out"):
        checkpoints.load_adapter(again, tmp_path / "a")
    assert torch.equal(again(ids), adapted_text(ids))
    changed(tmp_path / "a", pop("language_model"))
    with pytest.raises(ValueError, match=r"holds no adapter of the text model, which alone is read: .*vision_tower"):
        checkpoints.load_adapter(model, tmp_path / "a")


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
        with pytest.raises(ValueError, match="was made for another base model"):
            checkpoints.load_adapter(checkpoints.load_model(GOLDEN / other), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        checkpoints.load_adapter(checkpoints.load_model(GOLDEN / "llama2"), tmp_path)
    (tmp_path / "a" / "adapter_model.safetensors").rename(tmp_path / "a" / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"adapter_model\.bin can run code"):
        checkpoints.load_adapter(checkpoints.load_model(SHIPPED), tmp_path / "a")
    with pytest.raises(ValueError, match="holds adapters, not a model"):
        checkpoints.load_model(tmp_path / "a")
