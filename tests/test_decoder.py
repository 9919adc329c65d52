"""The decoder against the reference's numbers, and what no golden covers against plain formulas in float64."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from conftest import GOLDEN, random_decoder
from safetensors.torch import load_file

import checkpoints
from star.decoder import Norm
from star.positions import Rope, alibi_slopes, rotary_table, rotate
from star.sampler import Sampler

CPU = torch.device("cpu")
DECODERS = sorted(p.parent.name for p in GOLDEN.glob("*/golden.safetensors") if (p.parent / "config.json").exists())


def golden_model(name, config, tmp_path):
    for file in (GOLDEN / name).iterdir():
        if file.name.startswith("model"):
            shutil.copy(file, tmp_path / file.name)
    shutil.copy(GOLDEN / name / config, tmp_path / "config.json")
    return checkpoints.load_model(tmp_path), load_file(GOLDEN / name / "golden.safetensors")


@pytest.mark.parametrize("config", ["config.json", "config_hub.json"])
@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_reference_logits_and_greedy_tokens(name, config, tmp_path):
    model, golden = golden_model(name, config, tmp_path)
    ids = golden["input_ids"]
    limit = (
        {"atol": 0.02 * golden["logits"].std().item(), "rtol": 0} if "bf16" in name else {"atol": 1e-4, "rtol": 1e-4}
    )
    torch.testing.assert_close(model(ids), golden["logits"].float(), **limit)
    torch.testing.assert_close(model.hidden(ids).float(), golden["last_hidden"].float(), **limit)
    rows = [row[mask.bool()].tolist() for row, mask in zip(golden["pad_input_ids"], golden["pad_mask"], strict=True)]
    for row, expected in zip(rows, golden["pad_last_logits"], strict=True):
        torch.testing.assert_close(model(torch.tensor([row]))[0, -1], expected.float(), **limit)
    if "bf16" not in name:
        outs = Sampler(model, slots=2, max_len=64).generate(ids.tolist(), max_new_tokens=16)
        assert [list(o.tokens) for o in outs] == golden["greedy"].tolist()
        naive = ids.clone()  # and without a cache
        for _ in range(16 if config == "config.json" else 0):
            naive = torch.cat([naive, model(naive)[:, -1:].argmax(-1)], dim=1)
        assert config != "config.json" or torch.equal(naive[:, 24:], golden["greedy"])


def test_there_are_goldens():
    assert {"llama2", "llama3", "llama3_bf16", "llama_bias", "smollm3"} <= set(DECODERS)


@torch.no_grad()
def test_a_token_sees_only_what_stands_before_it():
    model = random_decoder()
    ids = torch.randint(0, 23, (1, 12), generator=torch.Generator().manual_seed(1))
    changed = ids.clone()
    changed[0, 7:] = (changed[0, 7:] + 1) % 23
    a, b = model(ids), model(changed)
    assert torch.equal(a[:, :7], b[:, :7])
    assert not torch.equal(a[:, 7], b[:, 7])


@pytest.mark.parametrize(("block", "act"), [("parallel", "gelu"), ("parallel2", "relu2"), ("pre", "gelu_tanh")])
@torch.no_grad()
def test_blocks_without_golden(block, act):
    """Parallel blocks, ungated MLPs, biases and layer norms, written out a second time."""
    c = {
        "block": block,
        "act": act,
        "gated": False,
        "norm": "layer",
        "bias_qkv": True,
        "bias_o": True,
        "bias_mlp": True,
    }
    model = random_decoder(n_layers=1, bias_head=True, **c)
    ids = torch.arange(9)[None]
    w = dict(model.tensors())
    lin = lambda x, name: F.linear(x, w[f"layers.0.{name}.weight"], w[f"layers.0.{name}.bias"])  # noqa: E731
    norm = lambda x, name: F.layer_norm(x, (24,), w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)  # noqa: E731
    x = w["embed_tokens.weight"][ids]
    h = norm(x, "layers.0.attn_norm")
    q, k, v = (lin(h, f"self_attn.{p}_proj").unflatten(-1, (-1, 6)).transpose(1, 2) for p in "qkv")
    q, k = (_rope(t) for t in (q, k))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    out = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    attended = lin(out, "self_attn.o_proj")
    seen = {
        "parallel": lambda: h,
        "parallel2": lambda: norm(x, "layers.0.mlp_norm"),
        "pre": lambda: norm(x + attended, "layers.0.mlp_norm"),
    }[block]()
    act = {"gelu": F.gelu, "relu2": lambda t: F.relu(t) ** 2, "gelu_tanh": lambda t: F.gelu(t, approximate="tanh")}[act]
    x = x + attended + lin(act(lin(seen, "mlp.up_proj")), "mlp.down_proj")
    expected = F.linear(norm(x, "norm"), w["lm_head.weight"], w["lm_head.bias"])
    torch.testing.assert_close(model(ids), expected, atol=1e-6, rtol=1e-6)  # rope's angles are float32


def _rope(x):
    out = torch.empty_like(x)
    for pos in range(x.shape[2]):
        for i in range(3):
            angle = pos * 10000.0 ** (-2 * i / 6)
            a, b = x[:, :, pos, i], x[:, :, pos, i + 3]
            out[:, :, pos, i] = a * math.cos(angle) - b * math.sin(angle)
            out[:, :, pos, i + 3] = b * math.cos(angle) + a * math.sin(angle)
    return out


def test_rope_turns_the_first_entries_only():
    x = torch.randn(1, 3, 1, 8, dtype=torch.float64)
    turned = rotate(x, rotary_table(Rope(), 4, torch.arange(3)[None], torch.float64))
    assert torch.equal(turned[..., 4:], x[..., 4:])
    assert torch.equal(turned[:, 0], x[:, 0])  # position 0 stays
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))


def test_alibi_slopes_and_bias():
    assert alibi_slopes(8, CPU).tolist() == [2.0**-k for k in range(1, 9)]
    assert alibi_slopes(6, CPU).tolist() == [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]
    model = random_decoder(n_layers=1, alibi=True, ropes=())
    x = model.embed_tokens.weight[torch.arange(7)[None]]
    w, h = dict(model.tensors()), model.layers[0].attn_norm(x)
    q, k, v = (
        F.linear(h, w[f"layers.0.self_attn.{p}_proj.weight"]).unflatten(-1, (-1, 6)).transpose(1, 2) for p in "qkv"
    )
    scores = q @ k.repeat_interleave(2, 1).transpose(-1, -2)
    scores = (scores + alibi_slopes(4, CPU).double()[:, None, None] * torch.arange(7)) * 6**-0.5
    weights = scores.masked_fill(torch.ones(7, 7, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
    expected = (weights @ v.repeat_interleave(2, 1)).transpose(1, 2).flatten(2)
    hooked = []
    model.layers[0].self_attn.o_proj.register_forward_pre_hook(lambda _, args: hooked.append(args[0]))
    model(torch.arange(7)[None])
    torch.testing.assert_close(hooked[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("rounds", [True, False])
def test_embedding_scale_in_bfloat16(rounds):
    """Gemma's sqrt(3072) is 55.5 in bfloat16, not 55.43; Granite's multiplier keeps its digits."""
    model = random_decoder(dtype=torch.bfloat16, n_layers=1, embed_scale=3072**0.5, embed_scale_rounds=rounds)
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(torch.arange(9)[None])
    scale = 55.5 if rounds else 3072**0.5
    assert torch.equal(seen[0][0], (model.embed_tokens.weight[:9].float() * scale).bfloat16())


@torch.no_grad()
def test_query_scale_grows_with_position():
    ids = torch.arange(8)[None]
    plain, scaled = random_decoder(n_layers=1), random_decoder(n_layers=1, q_len_scale=(0.7, 4))
    assert torch.equal(plain(ids)[:, :4], scaled(ids)[:, :4])  # log(1 + floor(pos / 4)) is 0 there
    rows = slice(0, 24)  # q's rows of the shared matrix
    plain.layers[0].self_attn.qkv_proj.weight[rows] *= 1 + 0.7 * math.log(2)
    torch.testing.assert_close(plain(ids)[:, 4:], scaled(ids)[:, 4:], atol=1e-7, rtol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["rms", "rms+0", "rms+1", "layer+1"])
def test_where_a_norm_rounds_in_bfloat16(kind):
    g = torch.Generator().manual_seed(1)
    x, weight = torch.randn(50, 16, generator=g).bfloat16(), torch.randn(16, generator=g).bfloat16()
    norm = Norm(16, kind, 1e-5).bfloat16()
    norm.weight.copy_(weight)
    plain = F.rms_norm(x.float(), (16,), None, 1e-5)
    expected = {
        "rms": lambda: plain.bfloat16() * weight,
        "rms+0": lambda: (plain * weight.float()).bfloat16(),
        "rms+1": lambda: (plain * (weight.float() + 1)).bfloat16(),
        "layer+1": lambda: F.layer_norm(x.float(), (16,), (weight + 1).float(), None, 1e-5).bfloat16(),
    }
    assert torch.equal(norm(x), expected[kind]())
    assert not any(torch.equal(norm(x), other()) for name, other in expected.items() if name != kind)


@torch.no_grad()
@pytest.mark.parametrize("wide", [True, False])
def test_ropes_of_narrow_models(wide):
    """Olmo turns heads in float32 and rounds once; others round cos and sin before."""
    model, seen = random_decoder(dtype=torch.bfloat16, n_layers=1, rope_wide=wide), []
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[2][0]))
    model(torch.arange(9)[None])
    table, x = seen[0], torch.randn(1, 9, 2, 6).bfloat16()
    assert table[0].dtype == (torch.float32 if wide else torch.bfloat16)
    exact = rotate(x.float(), rotary_table(Rope(), 6, torch.arange(9)[None], torch.float32)).bfloat16()
    assert rotate(x, table).dtype == torch.bfloat16
    assert torch.equal(rotate(x, table), exact) is wide


@torch.no_grad()
def test_a_head_that_is_the_embedding_may_have_a_bias():
    model = random_decoder(tied=True, bias_head=True)
    bias, ids = dict(model.tensors())["embed_tokens.bias"], torch.arange(9)[None]
    expected = F.linear(model.hidden(ids), model.embed_tokens.weight, bias)
    assert torch.equal(model(ids), expected)
    assert not torch.equal(expected, F.linear(model.hidden(ids), model.embed_tokens.weight))
