"""Model folders: what is read exactly and written back, what is refused, and that each refusal is one line."""

import json
import shutil

import pytest
import torch
from conftest import GOLDEN, SHIPPED, refused, stirred
from safetensors.torch import load_file, save_file

import checkpoints
from checkpoints import files
from checkpoints.files import INDEX, TensorFile, tensor_files

DECODERS = sorted(p.parent.name for p in GOLDEN.glob("*/golden.safetensors") if (p.parent / "config.json").exists())


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


def test_a_tied_model_with_a_head_of_its_own_keeps_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 1000)  # compared piece by piece
    folder = tmp_path / "m"
    shutil.copytree(GOLDEN / "llama3", folder)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, folder / "model.safetensors")
    assert checkpoints.load_model(folder).config.tied
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"] + 1}, folder / "model.safetensors")
    model = checkpoints.load_model(folder)
    assert not model.config.tied
    assert torch.equal(model.head()[0], tensors["model.embed_tokens.weight"] + 1)
    head = tensors["model.embed_tokens.weight"].bfloat16()  # stored in another dtype
    save_file(tensors | {"lm_head.weight": head}, folder / "model.safetensors")
    assert torch.equal(checkpoints.load_model(folder).head()[0], head.float())


def test_missing_folder_and_files(tmp_path, llama):
    refused(checkpoints.load_model, tmp_path / "nowhere", words=("no model folder",), error=FileNotFoundError)
    (tmp_path / "empty").mkdir()
    refused(checkpoints.load_model, tmp_path / "empty", words=("no config.json",), error=FileNotFoundError)
    (llama / "model-00002-of-00003.safetensors").unlink()
    refused(checkpoints.load_model, llama,
            words=("shard model-00002-of-00003.safetensors is missing",), error=FileNotFoundError)
    (llama / "model.safetensors.index.json").unlink()
    refused(checkpoints.load_model, llama, words=("no model.safetensors",), error=FileNotFoundError)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "lacks the key 'hidden_size'"),
        ({"model_type": None}, "lacks the key 'model_type'"),
        ({"model_type": "mixtral", "num_local_experts": 8}, "'mixtral' is not supported (a mixture of experts: num_lo"),
        ({"model_type": "qwen2_vl", "vision_config": {}}, "'qwen2_vl' is not supported (it reads images or sound)"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 4}, "with 4 experts and layers mamba is not sup"),
        ({"model_type": "granitemoehybrid", "num_local_experts": 0, "layer_types": ["mamba", "attention"]}, "mamba"),
        ({"model_type": "granitemoehybrid", "layer_types": ["attention"] * 3}, "with 8 experts and layers attention"),
        ({"model_type": "blorp"}, "'blorp' is not supported; supported are llama"),
        ({"quantization_config": {"quant_method": "gptq"}}, "its weights are quantised (by gptq)"),
        ({"use_bidirectional_attention": True}, "an encoder for embeddings"),
        ({"hidden_act": "sinh"}, "'hidden_act': 'sinh'"),
        ({"hidden_size": 32.5}, "must be a positive whole number"),
        ({"head_dim": "8"}, "must be a positive whole number"),
        ({"rms_norm_eps": "tiny"}, "makes norm_eps 'tiny'; it must be a finite number"),
        ({"rope_parameters": [1]}, "does not make sense"),
        ({"model_type": "granite", "logits_scaling": 0}, "does not make sense"),
        ({"model_type": "smollm3", "no_rope_layers": [1]}, "makes rope_of for 1 layers"),
        ({"model_type": "mistral", "sliding_window": 0}, "'sliding_window': 0; it must be a positive"),
        ({"model_type": "falcon", "new_decoder_architecture": True, "num_kv_heads": 3}, "does not make sense"),
        ({"max_position_embeddings": "many"}, "'max_position_embeddings': 'many'"),
        ({"layer_types": ["full_attention"], "model_type": "qwen2"}, "1 layer_types for"),
        ({"layer_types": ["chunked"] * 3, "model_type": "qwen2"}, "layers of type chunked"),
        ({"model_type": "gemma2"}, "lacks model.layers.0.post_feedforward_layernorm.weight"),
        ({"model_type": "qwen2"}, "lacks model.layers.0.self_attn.k_proj.bias"),
        ({"model_type": "falcon"}, "lacks transformer."),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "lacks the key 'factor'"),
        ({"rope_parameters": {"rope_type": "linear", "factor": "2"}}, "makes factor '2'; it must be a finite number"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1}}, "does not make sense (float div"),
        ({"rope_parameters": {"rope_theta": 1e-300}}, "a model computes no numbers"),
        ({"model_type": "nemotron", "partial_rotary_factor": 5}, "rot_dim 40, which is no model"),
        ({"model_type": "nemotron", "partial_rotary_factor": -1}, "rot_dim -8, which is no model"),
        ({"rms_norm_eps": float("nan")}, "makes norm_eps nan; it must be a finite number"),
        ({"rms_norm_eps": -1e-5}, "makes norm_eps -1e-05"),
        ({"vocab_size": 10**30}, "up to 2,147,483,648"),
        ({"vocab_size": 10**9}, "asks for 3 layers and a matrix of 32,000,000,000 numbers, but the files hold"),
        ({"num_hidden_layers": 9999}, "asks for 9,999 layers"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "a rope_scaling that says otherwise"),
        ({"model_type": "mamba"}, "'mamba' is not supported (state-space layers); supported are llama"),
        ({"num_hidden_layers": 0}, "must be a positive whole number"),
        ({"num_attention_heads": "4"}, "must be a positive whole number"),
        ({"num_key_value_heads": 3}, "do not divide"),
        ({"dtype": "int4"}, "dtype 'int4' is not one of"),
        ({"dtype": {"": "float32"}}, "dtype {'': 'float32'} is not one of"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4}}, "rope kind 'dynamic' is not supported"),
    ],
)
def test_configs_that_are_refused(llama, changes, said):
    edit(llama / "config.json", **changes)
    refused(checkpoints.load_model, llama, words=(said,))


def test_config_that_is_no_json(llama):
    (llama / "config.json").write_text("{")
    refused(checkpoints.load_model, llama, words=("config.json is not JSON",))
    (llama / "config.json").write_text("[1]")
    refused(checkpoints.load_model, llama, words=("holds a list, not an object",))


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
        refused(checkpoints.load_model, folder, words=(said,))


def test_only_gemma_rounds_its_embedding_scale():
    assert checkpoints.outline(GOLDEN / "gemma2").config.embed_scale_rounds
    assert not checkpoints.outline(GOLDEN / "granite").config.embed_scale_rounds


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
    refused(checkpoints.load_model, folder, words=("model.safetensors is damaged or cut short",))
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + data[8:])
    refused(checkpoints.load_model, folder, words=("model.safetensors is damaged or cut short",))


def test_numbers_that_are_not_finite_are_warned_of(llama):
    path = llama / "model-00002-of-00003.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name].view(-1)[3] = float("nan")
    save_file(tensors, path)
    with pytest.warns(UserWarning, match=rf"model-00002-of-00003.safetensors: {name} holds numbers that are not fin"):
        checkpoints.load_model(llama)


def test_an_outline_needs_no_weights_and_refuses_the_same(llama):
    model = checkpoints.outline(llama)
    assert all(p.is_meta for p in model.parameters())
    assert checkpoints.describe(model) == checkpoints.describe(checkpoints.load_model(llama))
    edit(llama / "config.json", hidden_size=64)
    with pytest.raises(ValueError, match=r"has shape \[\d+, 32\], but config.json asks for"):
        checkpoints.outline(llama)


# Exports


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("most", [10**9, 40_000])
def test_an_untouched_export_is_the_source_byte_for_byte(tmp_path, name, most):
    source = GOLDEN / name
    checkpoints.export_merged(checkpoints.load_model(source), tmp_path / "out", most_shard=most)
    assert (tmp_path / "out" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    before, after = ({n: f.read(n) for n, f in tensor_files(folder).items()} for folder in (source, tmp_path / "out"))
    assert before.keys() == after.keys()
    for tensor, value in before.items():
        assert value.dtype == after[tensor].dtype
        assert torch.equal(value.view(torch.uint8), after[tensor].view(torch.uint8)), tensor
    shards = list((tmp_path / "out").glob("model*.safetensors"))
    assert (tmp_path / "out" / INDEX).exists() == (len(shards) > 1)
    assert (len(shards) == 1) == (most == 10**9)
    for shard in shards:
        found = TensorFile(shard).entries
        assert sum(e.size for e in found.values()) <= most or len(found) == 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama2", "falcon40b", "granite4_dense", "gemma3"])
def test_a_merged_export_says_what_the_adapted_model_says(tmp_path, name):
    model = stirred(checkpoints.load_model(GOLDEN / name))
    checkpoints.export_merged(model, tmp_path / "out", most_shard=60_000)
    ids = torch.arange(2, 15)[None]
    expected = model(ids)
    limit = 1e-4 * max(1.0, float(expected.abs().max()))  # adapters this wild make logits of some dozens
    torch.testing.assert_close(checkpoints.load_model(tmp_path / "out")(ids), expected, atol=limit, rtol=1e-4)
    assert not torch.allclose(checkpoints.load_model(GOLDEN / name)(ids), expected, atol=limit)


def test_an_export_takes_the_tokenizer_along_and_leaves_no_old_shards(tmp_path, shipped):
    folder = tmp_path / "out"
    checkpoints.export_merged(checkpoints.load_model(GOLDEN / "llama2"), folder, most_shard=40_000)
    checkpoints.export_merged(shipped, folder)
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.model"]
    assert checkpoints.load_tokenizer(folder).encode("1+2\n") == checkpoints.load_tokenizer(SHIPPED).encode("1+2\n")
    assert (folder / "model.safetensors").read_bytes() == (SHIPPED / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="is the folder that the model was loaded from"):
        checkpoints.export_merged(checkpoints.load_model(folder), folder)


def test_an_export_takes_all_chat_templates_along(llama, tmp_path):
    (llama / "additional_chat_templates").mkdir()
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        (llama / name).write_text(name)
    checkpoints.export_merged(checkpoints.load_model(llama), tmp_path / "out")
    for name in ("chat_template.jinja", "additional_chat_templates/tool_use.jinja"):
        assert (tmp_path / "out" / name).read_text() == name


def test_an_export_writes_nothing_where_a_link_leads(llama, tmp_path):
    (llama / "additional_chat_templates").mkdir()
    (llama / "additional_chat_templates/tool_use.jinja").write_text("x")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "additional_chat_templates").symlink_to(tmp_path / "elsewhere")
    refused(checkpoints.export_merged, checkpoints.load_model(llama), tmp_path / "out", words=("is a link",))
    assert not list((tmp_path / "elsewhere").iterdir())


def test_an_export_keeps_the_configs_own_words(llama, tmp_path):
    edit(llama / "config.json", somebodys_key=[1, None])
    text = (llama / "config.json").read_bytes().replace(b" ", b"  ")
    (llama / "config.json").write_bytes(text)
    checkpoints.export_merged(checkpoints.load_model(llama), tmp_path / "out")
    assert (tmp_path / "out" / "config.json").read_bytes() == text


def test_an_export_says_its_dtype_and_its_own_head(tmp_path):
    checkpoints.export_merged(checkpoints.load_model(GOLDEN / "llama2", dtype="bfloat16"), tmp_path / "a")
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    assert checkpoints.load_model(tmp_path / "a").dtype == torch.bfloat16
    shutil.copytree(GOLDEN / "llama3", tmp_path / "own")  # tied, it says, and yet there is another head
    tensors = load_file(tmp_path / "own" / "model.safetensors")
    head = tensors["model.embed_tokens.weight"] + 1
    save_file(tensors | {"lm_head.weight": head}, tmp_path / "own" / "model.safetensors")
    checkpoints.export_merged(checkpoints.load_model(tmp_path / "own"), tmp_path / "b")
    assert json.loads((tmp_path / "b" / "config.json").read_text())["tie_word_embeddings"] is False
    assert torch.equal(checkpoints.load_model(tmp_path / "b").head()[0], head)


@torch.no_grad()
@pytest.mark.parametrize("root", ["language_model.model.", "model.language_model."])
def test_a_model_that_also_sees_is_read_as_text_and_exported_whole(tmp_path, root):
    """Gemma 3 4B and up: the text model's config is nested, its tensors have a prefix, a vision tower lies beside."""
    source = GOLDEN / "gemma3"
    text = json.loads((source / "config.json").read_text())
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps({
        "model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}, "dtype": "float32"}))
    tensors = {k.replace("model.", root, 1): t for k, t in load_file(source / "model.safetensors").items()}
    tower = {f"{'model.' if root.startswith('model.') else ''}vision_tower.x.weight": torch.randn(3, 3)}
    save_file(tensors | tower, tmp_path / "in" / "model.safetensors")
    model, ids = checkpoints.load_model(tmp_path / "in"), torch.arange(2, 20)[None]
    assert torch.equal(model(ids), checkpoints.load_model(source)(ids))
    checkpoints.export_merged(model, tmp_path / "out")
    again = load_file(tmp_path / "out" / "model.safetensors")
    assert again.keys() == (tensors | tower).keys()
    assert all(torch.equal(again[k], t) for k, t in (tensors | tower).items())
    checkpoints.save_adapter(stirred(model), tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert "model.language_model.layers.0.self_attn.q_proj" in config["target_modules"]  # never a tower's q_proj
    checkpoints.load_adapter(checkpoints.load_model(tmp_path / "in"), tmp_path / "a")
