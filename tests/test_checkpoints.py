"""Files: what is read exactly, what is refused, and that each refusal is one line that names the trouble."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN, SHIPPED
from safetensors.torch import load_file, save_file

import checkpoints
from star.lora import add_lora, lora_modules, reset
from star.sampler import Sampler


@pytest.fixture
def llama(tmp_path):
    """A writable copy of the sharded golden."""
    folder = tmp_path / "llama"
    folder.mkdir()
    for file in (GOLDEN / "llama2").iterdir():
        if file.name.startswith("model") or file.name == "config.json":
            shutil.copy(file, folder / file.name)
    return folder


def edit(path, **changes):
    config = json.loads(path.read_text())
    for key, value in changes.items():
        config.pop(key, None) if value is None else config.__setitem__(key, value)
    path.write_text(json.dumps(config))


def refused(folder, *words, error=ValueError):
    with pytest.raises(error) as caught:
        checkpoints.load_model(folder)
    said = str(caught.value)
    assert all(word in said for word in words), said
    assert "\n" not in said


def test_shards_load_through_their_index(llama):
    (llama / "stray.safetensors").write_bytes(b"not looked at")
    model = checkpoints.load_model(llama)
    assert sum(t.numel() for _, t in model.tensors()) == sum(p.numel() for p in model.parameters())
    every = {k: v for file in sorted(llama.glob("model-*.safetensors")) for k, v in load_file(file).items()}
    q = dict(model.tensors())["layers.1.self_attn.q_proj.weight"]
    assert torch.equal(q, every["model.layers.1.self_attn.q_proj.weight"])


def test_saved_weights_are_byte_identical(tmp_path):
    model = checkpoints.load_model(SHIPPED)
    checkpoints.save_model(model, tmp_path / "a", model.source.config)
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (SHIPPED / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text()) == model.source.config


def test_dtype_is_the_checkpoints_unless_said(llama):
    assert checkpoints.load_model(llama).dtype == torch.float32
    assert checkpoints.load_model(llama, dtype=torch.float64).dtype == torch.float64
    assert checkpoints.load_model(llama, dtype="bfloat16").dtype == torch.bfloat16
    assert checkpoints.load_model(GOLDEN / "llama3_bf16").dtype == torch.bfloat16
    edit(llama / "config.json", dtype=None)
    assert checkpoints.load_model(llama).dtype == torch.float32  # what the tensors are
    ids = torch.arange(5)[None]
    wide = checkpoints.load_model(llama, dtype=torch.float64)(ids)
    assert wide.dtype == torch.float64
    torch.testing.assert_close(wide.float(), checkpoints.load_model(llama)(ids), atol=1e-4, rtol=1e-4)


def test_a_tied_model_with_a_head_of_its_own_keeps_it(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama3", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert checkpoints.load_model(folder).config.tied
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    model = checkpoints.load_model(folder)
    assert not model.config.tied
    assert torch.equal(model.head()[0], tensors["model.embed_tokens.weight"] + 1)


def test_missing_folder_and_files(tmp_path, llama):
    refused(tmp_path / "nowhere", "no model folder", error=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "no config.json", error=FileNotFoundError)
    (llama / "model-00002-of-00003.safetensors").unlink()
    refused(llama, "shard model-00002-of-00003.safetensors is missing", error=FileNotFoundError)
    (llama / "model.safetensors.index.json").unlink()
    refused(llama, "no model.safetensors", error=FileNotFoundError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "lacks the key 'hidden_size'"),
        ({"model_type": None}, "lacks the key 'model_type'"),
        ({"model_type": "mamba"}, "'mamba' is not supported (state-space layers); supported are llama"),
        ({"num_hidden_layers": 0}, "must be a positive whole number"),
        ({"num_attention_heads": "4"}, "must be a positive whole number"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"dtype": "int4"}, "dtype 'int4' is not one of"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope kind 'dynamic' is not supported"),
    ],
)
def test_configs_that_are_refused(llama, changes, said):
    edit(llama / "config.json", **changes)
    refused(llama, said)


def test_config_that_is_no_json(llama):
    (llama / "config.json").write_text("{")
    refused(llama, "config.json is not JSON")
    (llama / "config.json").write_text("[1]")
    refused(llama, "holds a list, not an object")


def test_tensors_must_fit(tmp_path):
    for name, change, said in (
        ("missing", lambda t: t.pop("model.norm.weight"), "lacks model.norm.weight"),
        ("left over", lambda t: t.update({"model.extra.weight": torch.zeros(1)}), "has unexpected model.extra.weight"),
        ("head", lambda t: t.pop("lm_head.weight"), "lacks lm_head.weight"),
        ("shape", lambda t: t.update({"model.norm.weight": torch.ones(3)}), "model.norm.weight has shape [3]"),
        ("dtype", lambda t: t.update({"model.norm.weight": torch.ones(32).int()}), "quantised"),
    ):
        folder = tmp_path / name
        shutil.copytree(GOLDEN / "llama_bias", folder)
        tensors = load_file(folder / "model.safetensors")
        if name == "head":
            edit(folder / "config.json", tie_word_embeddings=False)
            tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        change(tensors)
        save_file(tensors, folder / "model.safetensors")
        refused(folder, said)


def test_old_files_with_rope_buffers_load(tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama_bias", folder)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    save_file(load_file(folder / "model.safetensors") | buffer, folder / "model.safetensors")
    checkpoints.load_model(folder)


@pytest.mark.parametrize("keep", [0, 4, 100, 5000])
def test_truncated_weights(tmp_path, keep):
    folder = tmp_path / "m"
    shutil.copytree(SHIPPED, folder)
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:keep])
    refused(folder, "model.safetensors is damaged or cut short")
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + data[8:])
    refused(folder, "model.safetensors is damaged or cut short")


def test_an_index_may_not_lead_out_of_its_folder(llama):
    edit(llama / "model.safetensors.index.json", weight_map={"model.norm.weight": "../other.safetensors"})
    refused(llama, "not in its folder")
    edit(llama / "model.safetensors.index.json", weight_map=None)
    refused(llama, "no weight_map")


# Adapters


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


def with_adapters(rank=3, **kw):
    model = add_lora(checkpoints.load_model(SHIPPED), rank=rank, alpha=6, **kw)
    with torch.no_grad():
        for _, module in lora_modules(model):
            for B in module.B:
                B.normal_(generator=torch.Generator().manual_seed(1))
    return model


@pytest.mark.parametrize("targets", [("q_proj", "v_proj"), ("k_proj", "down_proj"), None])
def test_adapters_round_trip_bit_for_bit(tmp_path, targets):
    model = with_adapters(**({"targets": targets} if targets else {}))
    checkpoints.save_adapter(model, tmp_path / "a")
    again = checkpoints.load_model(SHIPPED)
    checkpoints.load_adapter(again, tmp_path / "a")
    ids = torch.arange(2, 15)[None]
    assert torch.equal(model(ids), again(ids))
    checkpoints.save_adapter(again, tmp_path / "b")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_merged_export_says_what_the_adapted_model_says(tmp_path):
    model = with_adapters()
    checkpoints.export_merged(model, tmp_path / "out")
    ids = torch.arange(2, 15)[None]
    expected = model(ids).detach()
    limit = 1e-4 * max(1.0, float(expected.abs().max()))  # adapters this wild make logits of some dozens
    torch.testing.assert_close(checkpoints.load_model(tmp_path / "out")(ids), expected, atol=limit, rtol=1e-4)
    assert checkpoints.load_tokenizer(tmp_path / "out").encode("1+2\n") == checkpoints.load_tokenizer(SHIPPED).encode(
        "1+2\n"
    )
    reset(model)
    checkpoints.export_merged(model, tmp_path / "untouched")
    data = (tmp_path / "untouched" / "model.safetensors").read_bytes()
    assert data == (SHIPPED / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"use_dora": True}, "only plain LoRA"),
        ({"modules_to_save": ["lm_head"]}, "only plain LoRA"),
        ({"peft_type": "IA3"}, "only plain LoRA"),
        ({"r": 5}, "another base"),
        ({"r": None}, "lacks a number"),
    ],
)
def test_adapters_that_are_refused(tmp_path, config, said):
    checkpoints.save_adapter(with_adapters(), tmp_path / "a")
    edit(tmp_path / "a" / "adapter_config.json", **config)
    model = checkpoints.load_model(SHIPPED)
    with pytest.raises(ValueError, match=said):
        checkpoints.load_adapter(model, tmp_path / "a")
    assert not list(lora_modules(model))


def test_an_adapter_for_another_base_is_refused(tmp_path):
    checkpoints.save_adapter(with_adapters(), tmp_path / "a")
    with pytest.raises(ValueError, match="another base"):
        checkpoints.load_adapter(checkpoints.load_model(GOLDEN / "llama2"), tmp_path / "a")
    with pytest.raises(FileNotFoundError, match="adapter_config"):
        checkpoints.load_adapter(checkpoints.load_model(GOLDEN / "llama2"), tmp_path)
