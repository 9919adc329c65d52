"""Every family, from its files to gradients and sampled tokens, against tests/plain.py: formulas in float64.

plain.py is judged first, by the reference's numbers. It then judges what these numbers do not reach: the gradient of a
training step, ragged batches, and models that no golden here covers.
"""

import json
import re

import plain
import pytest
import torch
from conftest import GOLDEN, refused
from safetensors.torch import load_file, save_file

import checkpoints
from checkpoints.families import decoder_config
from checkpoints.layout import Layout
from star.finetune import finetune
from star.lora import add_lora, lora_modules, trainable
from star.problem import Example
from star.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")

GOLDENS = sorted(p.parent.name for p in GOLDEN.glob("*/golden.safetensors")
                 if (p.parent / "config.json").exists() and "bf16" not in p.parent.name)  # fmt: skip
CLOSE = 1e-6  # between two float64 computations whose rope angles, cos and sin are float32


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).float() / 4


def falcon_rw(w):
    """Falcon-RW: a key and a value a head, biases, and a second norm of its own."""
    out = dict(w)
    for i, (name, t) in enumerate(w.items()):
        if "input_layernorm" in name:
            out[name.replace("input", "post_attention")] = t + noise(i, len(t))
        elif "query_key_value" in name:
            out[name] = noise(i, 3 * t.shape[1], t.shape[1])
        if ".h." in name and "layernorm" not in name:
            out[name.replace("weight", "bias")] = noise(i + 100, len(out[name]))
    return out


def falcon_11b(w):
    return {name.replace("ln_attn", "input_layernorm"): t for name, t in w.items() if "ln_mlp" not in name}


VARIANTS = {  # models without a golden: made from one by other keys and, where these ask for them, other tensors
    "falcon_rw": ("falcon7b", {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True,
                               "num_attention_heads": 16}, falcon_rw),  # 16: slopes that bfloat16 rounds
    "falcon_11b": ("falcon40b", {"num_ln_in_parallel_attn": 1}, falcon_11b),
    "falcon_alibi": ("falcon40b", {"alibi": True}, dict),
    "granite4_nope": ("granite4_dense", {"position_embedding_type": "nope"}, dict),
    "llama_linear": ("llama2", {"rope_parameters": {"rope_type": "linear", "factor": 4.0}}, dict),
    "llama_yarn": ("llama3", {"rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}}, dict),
    "llama_yarn_given": ("llama3", {"rope_parameters": {"rope_type": "yarn", "attention_factor": 1.3}}, dict),
    "ministral3": ("mistral_swa", {"model_type": "ministral3", "sliding_window": None, "rope_parameters": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8, "beta_slow": 0.1, "mscale": 1.0,
        "mscale_all_dim": 0.5, "llama_4_scaling_beta": 0.3}}, dict),
}  # fmt: skip
CHANGES = [  # keys of config.json that the logits depend on
    ("falcon7b", {"layer_norm_epsilon": 0.1}),
    ("gemma1", {"rope_parameters": {"rope_theta": 100.0}}),
    ("gemma2", {"sliding_window": 9}),
    ("gemma2", {"layer_types": ["full_attention", "sliding_attention"] * 2}),
    ("gemma2", {"attn_logit_softcapping": 4.0}),
    ("gemma2", {"attn_logit_softcapping": None}),
    ("gemma2", {"final_logit_softcapping": None}),
    ("gemma2", {"query_pre_attn_scalar": 16}),
    ("gemma3", {"sliding_window": 7}),
    ("gemma3", {"rope_parameters": {"sliding_attention": {"rope_theta": 1000.0}}}),
    ("gemma3", {"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}),
    ("gemma3", {"rope_parameters": {"full_attention": {"factor": 2.0}}}),
    ("granite", {"attention_multiplier": 0.25}),
    ("granite", {"embedding_multiplier": 10.0}),
    ("granite", {"logits_scaling": 0.5}),
    ("granite", {"residual_multiplier": 0.3}),
    ("granite4_dense", {"residual_multiplier": 0.3}),
    ("llama2", {"hidden_act": "gelu"}),
    ("llama2", {"rms_norm_eps": 0.1}),
    ("llama3", {"rope_parameters": {"factor": 4.0}}),
    ("llama3", {"rope_parameters": {"low_freq_factor": 2.0}}),
    ("llama3", {"rope_parameters": {"high_freq_factor": 8.0}}),
    ("llama3", {"rope_parameters": {"original_max_position_embeddings": 32}}),
    ("mistral_swa", {"sliding_window": 9}),
    ("mistral_swa", {"sliding_window": None}),
    ("nemotron4", {"norm_eps": 0.1}),
    ("nemotron4", {"rope_parameters": {"partial_rotary_factor": 0.25}}),
    ("gpt_neox", {"layer_norm_eps": 0.1}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 1.0}}),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.0}}),
    ("gptj", {"rotary_dim": 16}),
    ("gptj", {"layer_norm_epsilon": 0.1}),
    ("mistral3", {"text_config": {"sliding_window": 6}}),
    ("mistral3", {"text_config": {"rope_parameters": {"llama_4_scaling_beta": 0.5}}}),
    ("olmo2", {"rope_parameters": {"rope_theta": 100.0}}),
    ("olmo3", {"sliding_window": 9}),
    ("olmo3", {"layer_types": ["full_attention"] * 4}),
    ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_theta": 100.0}}}),
    ("phi3", {"original_max_position_embeddings": 16}),
    ("phi3", {"sliding_window": 7}),
    ("phi3_long", {"rope_parameters": {"factor": 64.0}}),
    ("phi3_long", {"max_position_embeddings": 16}),
    ("phi3_long", {"original_max_position_embeddings": 24}),
    ("qwen2", {"sliding_window": 7}),
    ("qwen2", {"layer_types": ["full_attention"] * 4}),
    ("qwen3", {"rope_parameters": {"rope_theta": 1e4}}),
    ("smollm3", {"no_rope_layers": [1, 1, 1, 0]}),
]


def read(folder):
    """(config.json, the tensors under the file's names)."""
    tensors = {}
    for file in sorted(folder.glob("model*.safetensors")):
        tensors |= load_file(file)
    return json.loads((folder / "config.json").read_text()), tensors


def overlaid(c, change):
    """c with these keys changed, those of a dictionary within it one by one."""
    return c | {k: overlaid(c.get(k) or {}, v) if isinstance(v, dict) else v for k, v in change.items()}


def changed_copy(folder, golden, change, edit=dict):
    config, tensors = read(GOLDEN / golden)
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(overlaid(config, change)))
    save_file(edit(tensors), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folder(request, tmp_path_factory):
    """Of a golden or a variant."""
    name = request.param
    return GOLDEN / name if name in GOLDENS else changed_copy(tmp_path_factory.mktemp(name), *VARIANTS[name])


every_model = pytest.mark.parametrize("folder", [*GOLDENS, *VARIANTS], indirect=True)


def test_there_are_goldens():
    assert len(GOLDENS) >= 15


@pytest.mark.parametrize("name", GOLDENS)
@torch.no_grad()
def test_plain_forward_gives_the_reference_logits(name):
    golden = load_file(GOLDEN / name / "golden.safetensors")
    for ids, logits in zip(golden["input_ids"].tolist(), golden["logits"], strict=True):
        got = plain.forward(*read(GOLDEN / name), ids)
        torch.testing.assert_close(got, logits.double(), atol=1e-4, rtol=0)


def check_moved(folder, golden):
    """The decoder agrees with plain.py on what this folder computes, and that is not what the golden computed."""
    config, tensors = read(folder)
    golden = load_file(GOLDEN / golden / "golden.safetensors")
    logits = checkpoints.load_model(folder, dtype=torch.float64)(golden["input_ids"])
    for ids, got in zip(golden["input_ids"].tolist(), logits, strict=True):
        torch.testing.assert_close(got, plain.forward(config, tensors, ids), atol=CLOSE, rtol=0)
    assert (logits - golden["logits"]).abs().max() > 1e-2


@pytest.mark.parametrize(("golden", "change"), CHANGES, ids=lambda x: x if isinstance(x, str) else json.dumps(x))
@torch.no_grad()
def test_a_changed_key_changes_the_logits_as_it_should(golden, change, tmp_path):
    check_moved(changed_copy(tmp_path, golden, change), golden)


@pytest.mark.parametrize(("folder", "golden"), [(name, v[0]) for name, v in VARIANTS.items()], indirect=["folder"])
@torch.no_grad()
def test_models_without_golden(folder, golden):
    check_moved(folder, golden)


def adapted(model, tensors):
    """The file's tensors with scale * B A on top, differentiable in A and B."""
    out, layout = {name: t.double() for name, t in tensors.items()}, model.source.layout
    for path, module in lora_modules(model):
        for part, a, b in module.adapters():
            canonical = f"{path.rpartition('.')[0]}.{part}.weight"
            name, order, delta = layout.name(canonical), layout.order(canonical), 2.0 * b @ a  # alpha 6 / rank 3
            out[name] = out[name] + (delta if order is None else delta[order.argsort()])  # row i: the file's order[i]
    return out


@every_model
def test_gradients_of_a_training_step(folder, monkeypatch):
    """What the trainer hands the optimizer, packed, kernels and all, against plain.py on one example at a time."""
    config, tensors = read(folder)
    model = add_lora(checkpoints.load_model(folder, dtype=torch.float64), rank=3, alpha=6)
    with torch.no_grad():
        for i, p in enumerate(trainable(model).values()):
            p += 0.3 * noise(i, *p.shape)  # B is zero, and A's gradient with it
    vocab = model.config.vocab
    rows = [torch.randint(vocab, (n,), generator=torch.Generator().manual_seed(n)) for n in (21, 19, 11)]
    data = [Example(tuple(row.tolist()), n_prompt) for row, n_prompt in zip(rows, (4, 12, 1), strict=True)]
    total, w = 0.0, adapted(model, tensors)
    for e in data:
        logp = plain.forward(config, w, e.tokens).log_softmax(-1)
        total = total - sum(logp[place - 1, e.tokens[place]] for place in range(e.n_prompt, len(e.tokens)))
    loss = total / sum(len(e.tokens) - e.n_prompt for e in data)
    expected = torch.autograd.grad(loss, list(trainable(model).values()))
    grads = []
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_",
                        lambda params, _: grads.append([p.grad for p in params]) or torch.ones(()))
    for options in ({"micro_tokens": 1000}, {"micro_tokens": 45, "recompute": True}):  # one row; two
        stats = finetune(model, data, steps=1, lr=0.0, batch_size=3, **options)
        assert stats.losses[0] == pytest.approx(loss.item(), rel=CLOSE)
        for name, got, wanted in zip(trainable(model), grads.pop(), expected, strict=True):
            size = 3 if name.endswith(".A") else len(wanted)  # parts that share a matrix: each by its own measure
            for g, x in zip(got.split(size), wanted.split(size), strict=True):
                assert x.abs().max() > 1e-6, name
                assert (g - x).abs().max() <= CLOSE * x.abs().max(), name


def plain_draws(folder, prompt, tokens):
    """What plain.py says of these tokens after the prompt: (each one's log-probability, that of the likeliest).

    With LongRoPE what stands before depends on what comes behind: a pass for each token.
    """
    (config, w), ids, n = read(folder), [*prompt, *tokens[:-1]], len(prompt)
    longrope = (config.get("rope_parameters") or {}).get("rope_type") == "longrope"
    rows = [plain.forward(config, w, ids[: n + i])[-1] for i in range(len(tokens))] if longrope else ()
    logp = (torch.stack(rows) if longrope else plain.forward(config, w, ids)[n - 1 :]).log_softmax(-1)
    return logp.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist(), logp.amax(1).tolist()


@pytest.mark.parametrize("name", GOLDENS)
@torch.no_grad()
def test_a_prefix_may_end_anywhere(name):
    """The golden's 16 tokens with the prompt cut anywhere, in two rows: its first 8, and the 8 after those."""
    golden = load_file(GOLDEN / name / "golden.safetensors")
    ids, greedy = golden["input_ids"][0].tolist(), golden["greedy"][0].tolist()
    logprobs, _ = plain_draws(GOLDEN / name, ids, greedy)
    sampler = Sampler(checkpoints.load_model(GOLDEN / name), slots=3, max_len=64)
    first_cut = GOLDENS.index(name) % 4  # every fourth place, other ones for the next family; at 24 the prompt is empty
    for cut in sorted({0, *range(first_cut, len(ids), 4), len(ids)}):
        prompts = [ids[cut:], ids[cut:] + greedy[:8]]
        first, second = sampler.generate(prompts, prefix=ids[:cut], max_new_tokens=8)
        assert [*first.tokens, *second.tokens] == greedy, f"{cut=}"
        assert [*first.logprobs, *second.logprobs] == pytest.approx(logprobs, abs=1e-3), f"{cut=}"


@every_model
@torch.no_grad()
def test_ragged_batches(folder):
    """Seven prompts of 1 to 24 tokens on 3 slots, which end at different times: each goes on as in plain.py."""
    known = folder.name in GOLDENS
    golden = load_file(GOLDEN / (folder.name if known else "llama2") / "golden.safetensors")  # of a variant: just ids
    g = torch.Generator().manual_seed(1)
    a, b, c, d, e = (torch.randint(128, (n,), generator=g).tolist() for n in (1, 20, 7, 13, 4))
    first, second = golden["input_ids"].tolist()
    prompts, new = [a, first, b, c, second, d, e], [3, 16, 9, 14, 16, 5, 12]
    sampler = Sampler(checkpoints.load_model(folder), slots=3, max_len=64)
    outs = sampler.generate(prompts, max_new_tokens=new)
    for prompt, out, n in zip(prompts, outs, new, strict=True):
        assert len(out.tokens) == n
        drawn, likeliest = plain_draws(folder, prompt, out.tokens)
        assert drawn == pytest.approx(likeliest, abs=1e-3), "not the likeliest tokens"
        assert out.logprobs == pytest.approx(drawn, abs=1e-3)
    if known:
        assert [list(outs[1].tokens), list(outs[4].tokens)] == golden["greedy"].tolist()


def long(**changes):
    return {"rope_parameters": changes}


@pytest.mark.parametrize(("golden", "change", "words"), [
    ("phi3", long(short_factor=[1.0] * 3), ("3 numbers in 'short_factor'; it must have 4", "8 entries of a head")),
    ("phi3", long(long_factor=[1.0] * 5), ("5 numbers in 'long_factor'",)),
    ("phi3", long(long_factor=None), ("lacks the key 'long_factor'",)),
    ("phi3", long(long_factor=2.0), ("'long_factor': 2.0; it must be a list",)),
    ("phi3", long(short_factor=[1.0, "a", 1, 1]), ("a number of short_factor 'a'; it must be a finite number",)),
    ("phi3", long(short_factor=[1.0, 0, 1, 1]), ("has 0 in 'short_factor'; it must be positive",)),
    ("phi3", long(partial_rotary_factor=1.0), ("4 numbers in 'short_factor'; it must have 8",)),
    ("phi3", {"partial_rotary_factor": "x", **long(partial_rotary_factor=None)}, ("partial_rotary_factor 'x'",)),
    ("phi3", {"original_max_position_embeddings": 2.5}, ("'original_max_position_embeddings': 2.5",)),
    ("phi3", {"original_max_position_embeddings": 1}, ("does not make sense",)),
    ("llama3", long(rope_type="longrope", short_factor=[1.0], long_factor=[1.0]), ("1 numbers in 'short_factor'",)),
    ("phi3", long(attention_factor=2**62), ("queries and keys 4.61e+18 times as long",)),
    ("gptj", {"rotary_dim": 7}, ("'rotary_dim': 7; it must be even, and at most the 16 entries",)),
    ("gptj", {"rotary_dim": 18}, ("'rotary_dim': 18",)),
    ("gptj", {"rotary_dim": None}, ("lacks the key 'rotary_dim'",)),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 2.0}}, ("rot_dim 16, which is no model",)),
    ("mistral3", {"text_config": {"model_type": "qwen2"}}, ("text model of type 'qwen2'", "'ministral3'")),
    ("mistral3", {"text_config": {"quantization_config": {"quant_method": "fp8"}}}, ("quantised (by fp8)",)),
    ("mistral3", {"model_type": "llava"}, ("'llava' is not supported (it reads images or sound)",)),
    ("olmo3", {"rope_parameters": {"rope_type": "default"}}, ("rope_type", "a dictionary for 'full_attention'")),
])
def test_what_the_new_families_refuse(golden, change, words, tmp_path):
    changed_copy(tmp_path, golden, change)
    refused(checkpoints.load_model, tmp_path, words=(str(tmp_path), *words))


@pytest.mark.parametrize(("golden", "change", "gone"), [
    ("phi3", {"rope_scaling": {"type": "yarn"}}, ()),
    ("phi3", {"rope_scaling": {"type": "su"}, "partial_rotary_factor": 0.5}, ("partial_rotary_factor",)),
    ("phi3", {"rope_scaling": {"type": "longrope", "original_max_position_embeddings": 3}}, ()),  # the other one wins
    ("nemotron_bias", {"rope_percent": 0.25, "kv_channels": 8}, ("partial_rotary_factor", "head_dim")),
    ("nemotron_bias", {"rope_percentage": 0.25}, ("partial_rotary_factor",)),
    ("nemotron4", {"kv_channels": 16}, ("partial_rotary_factor", "head_dim")),
    ("gpt_neox", {"rotary_pct": 0.5, "rotary_emb_base": 5000.0}, ("partial_rotary_factor", "rope_theta")),
    ("gptj", {"n_inner": None, "scale_attn_weights": True, "rotary": True}, ()),
    ("gptj", {"rope_theta": 500.0}, ()),  # as in its class, which has one base
])
@torch.no_grad()
def test_older_words_for_the_same(golden, change, gone, tmp_path):
    config, tensors = read(GOLDEN / golden)
    rope = config.pop("rope_parameters", {})
    config, rope = ({k: v for k, v in d.items() if k not in gone} for d in (config, rope))
    if "rope_scaling" in change:
        kept = {k: v for k, v in rope.items() if k not in ("rope_type", "rope_theta")}
        config |= {"rope_theta": rope["rope_theta"], **change, "rope_scaling": kept | change["rope_scaling"]}
    else:
        config |= {"rope_parameters": rope} | change
    if "n_inner" in change:  # four times the width
        wide = {k: t.repeat(2, 1) if "fc_in.weight" in k else t.repeat(2) if "fc_in.bias" in k else t.repeat(1, 2)
                for k, t in tensors.items() if "fc_in" in k or "fc_out.weight" in k}
        tensors |= {k: t / 2 if "fc_out" in k else t for k, t in wide.items()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(tensors, tmp_path / "model.safetensors")
    wanted = load_file(GOLDEN / golden / "golden.safetensors")
    torch.testing.assert_close(checkpoints.load_model(tmp_path)(wanted["input_ids"]), wanted["logits"], atol=1e-4,
                               rtol=1e-4)


def swapped(old, new):
    return lambda w: {name.replace(old, new): t for name, t in w.items()}


def with_buffers(word):
    def edit(w):
        at = sorted({name.split(f".{word}.")[0] for name in w if f".{word}." in name})
        assert at
        return w | {f"{a}.{word}.bias": torch.ones(1, 1, 8, 8).bool() for a in at} | {
            f"{a}.{word}.masked_bias": torch.tensor(-1e9) for a in at} | {
            f"{a}.{word}.rotary_emb.inv_freq": torch.ones(4) for a in at}
    return edit


@pytest.mark.parametrize(("golden", "edit"), [
    ("gptj", with_buffers("attn")),
    ("gpt_neox", with_buffers("attention")),
    ("gpt_neox", swapped("embed_out", "lm_head")),
    ("mistral3", swapped("language_model.model.", "model.language_model.")),
    ("mistral3", lambda w: {n.replace("language_model.model.", "model.language_model.").replace(
        "language_model.lm_head", "lm_head").replace("vision_tower", "model.vision_tower").replace(
        "multi_modal_projector", "model.multi_modal_projector"): t for n, t in w.items()}),
], ids=["gptj", "neox", "neox head", "mixed", "mistral3 of 4.52"])
@torch.no_grad()
def test_other_names_and_what_no_model_needs(golden, edit, tmp_path, request):
    """Read, and written back as it was: a tower too, but for constants that are no weights."""
    changed_copy(tmp_path / "in", golden, {}, edit)
    if request.node.callspec.id == "mixed":
        with pytest.raises(ValueError, match=r"lacks lm_head.weight and has unexpected language_model.lm_head"):
            checkpoints.load_model(tmp_path / "in")
        return
    model, wanted = checkpoints.load_model(tmp_path / "in"), load_file(GOLDEN / golden / "golden.safetensors")
    torch.testing.assert_close(model(wanted["input_ids"]), wanted["logits"], atol=1e-4, rtol=1e-4)
    checkpoints.export_merged(model, tmp_path / "out")
    before, after = read(tmp_path / "in")[1], read(tmp_path / "out")[1]
    constant = re.compile(r"(inv_freq|(attn|attention)\.(masked_)?bias)$")
    assert after.keys() == {name for name in before if not constant.search(name)}
    assert all(torch.equal(t, before[name]) for name, t in after.items())


@torch.no_grad()
def test_gptj_with_one_matrix_for_both_ends_keeps_its_bias(tmp_path):
    config, tensors = read(GOLDEN / "gptj")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))
    head = tensors.pop("lm_head.weight")
    tensors["transformer.wte.weight"] = head
    save_file(tensors, tmp_path / "in" / "model.safetensors")
    model, ids = checkpoints.load_model(tmp_path / "in", dtype=torch.float64), list(range(3, 20))
    expected = plain.forward(config, tensors | {"lm_head.weight": head}, ids)
    torch.testing.assert_close(model(torch.tensor([ids]))[0], expected, atol=CLOSE, rtol=0)
    checkpoints.export_merged(checkpoints.load_model(tmp_path / "in"), tmp_path / "out")
    after = read(tmp_path / "out")[1]
    assert after.keys() == tensors.keys()
    assert all(torch.equal(t, after[name]) for name, t in tensors.items())
    sampled = Sampler(model, 1, 64).generate([ids], max_new_tokens=9)[0].tokens
    drawn, likeliest = plain_draws(tmp_path / "in", ids, list(sampled))
    assert drawn == pytest.approx(likeliest, abs=1e-3)
    finetune(add_lora(model, rank=2), [Example(tuple(ids), 3)] * 2, steps=1, batch_size=2)


def test_where_rows_stand():
    layout = Layout({}, reordered=("q_proj",), heads=(0, 1), head_dim=5, pairs=4)
    assert layout.order("layers.0.self_attn.q_proj").tolist() == [0, 2, 1, 3, 4, 5, 7, 6, 8, 9]
    assert layout.order("layers.0.self_attn.v_proj.weight") is None
    layout = Layout({}, reordered=("qkv_proj",), heads=(0, 2, 1), head_dim=2)
    assert layout.order("layers.0.self_attn.qkv_proj.bias").tolist() == [0, 1, 4, 5, 2, 3]
    rows = torch.arange(6)
    assert torch.equal(layout.rows_for_file("qkv_proj", rows[layout.order("qkv_proj")]), rows)


SIZES = {"vocab_size": 64, "hidden_size": 512, "intermediate_size": 96, "num_hidden_layers": 4,
         "num_attention_heads": 4}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 64, "long_factor": [2.0] * 64}


@pytest.mark.parametrize(("family", "given", "default"), [
    ("mistral3", {"text_config": {"vocab_size": 64}}, {
        "d_model": 4096, "d_ff": 14_336, "n_layers": 32, "n_heads": 32, "n_kv": 8, "head_dim": 128, "norm_eps": 1e-6,
        "windows": (4096,) * 32, "max_pos": 131_072, "tied": True, "ropes": 10_000.0}),
    ("mistral3", {"text_config": {"model_type": "ministral3", "rope_parameters": {"rope_theta": 1e6}}}, {
        "vocab": 131_072, "d_model": 4096, "n_layers": 34, "n_kv": 8, "head_dim": 128, "norm_eps": 1e-5,
        "windows": (None,) * 34, "max_pos": 262_144, "ropes": 1e6}),
    ("phi3", SIZES | {"rope_scaling": LONGROPE, "max_position_embeddings": 131_072}, {
        "norm_eps": 1e-5, "n_kv": 4, "windows": (None,) * 4, "switch": 4096, "rot_dim": 128, "tied": False}),
    ("phi3", SIZES, {"max_pos": 4096, "switch": 0}),
    ("gptj", {"vocab_size": 64, "n_embd": 512, "n_layer": 2, "n_head": 4}, {
        "max_pos": 2048, "rot_dim": 64, "d_ff": 2048, "norm_eps": 1e-5, "act": "gelu_tanh", "tied": False}),
    ("gpt_neox", SIZES, {"max_pos": 2048, "rot_dim": 32, "norm_eps": 1e-5, "act": "gelu", "block": "parallel2",
                         "bias_qkv": True, "bias_o": True, "bias_mlp": True, "bias_head": False, "ropes": 10_000.0}),
    ("olmo2", SIZES, {"max_pos": 2048, "norm_eps": 1e-5, "n_kv": 4, "ropes": 10_000.0, "bias_qkv": False}),
    ("olmo3", SIZES, {"norm_eps": 1e-5, "windows": (4096, 4096, 4096, None), "ropes": 5e5}),
    ("RefinedWeb", SIZES, {"block": "parallel2", "n_kv": 4}),
    ("nemotron", SIZES, {"max_pos": 4096, "norm_eps": 1e-5, "rot_dim": 64, "act": "relu2", "ropes": 10_000.0}),
])
def test_keys_left_out_have_the_defaults_of_their_class(family, given, default):
    config, _ = decoder_config({"model_type": family} | given)
    found = {key: config.ropes[-1].theta if key == "ropes" else getattr(config, key) for key in default}
    assert found == default
