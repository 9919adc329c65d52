"""Weights in 8 bits: rounded as they should be, multiplied as if widened, and nothing else of a model or a run changes.

Every model here has a twin: whole weights that were rounded and widened by hand.
"""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import GOLDEN, SHIPPED, refused, stirred
from pretended_cuda import pretended
from safetensors.torch import load_file
from test_families import GOLDENS
from test_memory import Peak

import checkpoints
import checkpoints.files
import sample
import train
from checkpoints.files import TensorFile
from kernels import int8
from kernels.lora import lora_linear, lora_linear_reference
from star import lora
from star.config import StarConfig
from star.decoder import Linear
from star.drift import drift
from star.experiments import export
from star.finetune import finetune, fingerprint
from star.problem import Example
from star.run import models, others
from star.run.rates import Meter
from star.sampler import Sampler

CPU, IDS = torch.device("cpu"), torch.arange(1, 13)[None]
EXAMPLES = [Example(tuple(1 + (i * k) % 19 for i in range(1, 9 + k)), 3) for k in range(1, 7)]


def narrow(folder, dtype="float64"):
    return checkpoints.fill(lora.make_int8(checkpoints.outline(folder, dtype)), "cpu")


@torch.no_grad()
def widened(folder, dtype="float64"):
    """The twin: each row of a block's linears rounded by its own largest number."""
    model = checkpoints.load_model(folder, dtype=dtype)
    for linear in (m for m in model.layers.modules() if isinstance(m, Linear)):
        for row in linear.weight:
            step = float((row.abs().max().float() / 127).bfloat16()) or 1.0
            row.copy_((row.double() / step).round().clamp(-127, 127) * step)
    return model


@pytest.fixture
def products(monkeypatch):
    """How often torch's own product was taken."""
    calls, own = [], torch._weight_int8pack_mm
    monkeypatch.setattr(torch, "_weight_int8pack_mm", lambda *args: calls.append(args[0].shape) or own(*args))
    return calls


# the kernel


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_row_is_rounded_by_its_own_largest_number(dtype):
    weight = (torch.randn(50, 33, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 3, 50)[:, None])
    weight = weight.to(dtype)
    before = weight.clone()
    q, scale = int8.quantize(weight)
    assert (q.dtype, q.shape, scale.dtype, scale.shape) == (torch.int8, (50, 33), torch.float32, (50,))
    assert torch.equal(weight, before)
    assert torch.equal(scale, scale.bfloat16().float()), "the same number in every dtype"
    off = (int8.dequantized(q, scale, torch.float64) - weight.double()).abs()
    assert (off <= 0.501 * scale.double()[:, None]).all()
    assert (q.abs().amax(dim=1) >= 126).all()
    assert (q.amin(), q.amax()) == (-127, 127)


def test_rows_that_have_no_scale():
    """Zeros, numbers at the end of float32's range, and no numbers: the last must show, not look like weights."""
    rows = [0.0, 0.0], [1e-44, 0.0], [1.65e-38, -1.65e-38], [1.0, torch.nan], [1.0, torch.inf]
    q, scale = int8.quantize(torch.tensor(rows))
    assert (q[:3].tolist(), scale[:2].tolist()) == ([[0, 0], [0, 0], [127, -127]], [1, 1])
    assert not int8.dequantized(q, scale, torch.float32)[3:].isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "out", "n_in"), [
    ((1,), 32, 64), ((4, 8), 48, 32), ((33,), 32, 64), ((2, 3), 7, 13), ((5,), 3, 24), ((0,), 4, 16), ((), 6, 16)])
@pytest.mark.parametrize("biased", [False, True])
def test_int8_linear(dtype, rows, out, n_in, biased):
    """Any shape, also those that torch's own product would crash on; forward and backward."""
    torch.manual_seed(0)
    q, scale = int8.quantize(torch.randn(out, n_in))
    x = torch.randn(*rows, n_in, dtype=dtype, requires_grad=True)
    bias = torch.randn(out, dtype=dtype) if biased else None
    found = [f(x, q, scale, bias) for f in (int8.int8_linear, int8.int8_linear_reference)]
    near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.25}[dtype]
    assert found[0].dtype == dtype
    torch.testing.assert_close(*found, rtol=0, atol=near)
    grad = torch.randn_like(found[0])
    torch.testing.assert_close(*(torch.autograd.grad(y, x, grad)[0] for y in found), rtol=0, atol=near)


@pytest.mark.parametrize(("x", "taken"), [
    (torch.ones(32, 64), True), (torch.ones(1, 16), True), (torch.ones(33, 64), False), (torch.ones(2, 24), False),
    (torch.ones(3, 13), False), (torch.ones(5, 16)[1:], False), (torch.ones(6, 128)[:, :64], False)],
    ids=["most rows", "one row", "more rows", "half a register", "odd", "not aligned", "not contiguous"])  # fmt: skip
def test_torchs_own_product_is_taken_where_it_is_safe_and_fast(products, x, taken):
    q, scale = int8.quantize(torch.randn(12, x.shape[1]))
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        x = torch.empty_strided(x.shape, x.stride(), dtype=dtype).copy_(x) if x.storage_offset() == 0 else (
            torch.ones(5, 16, dtype=dtype)[1:])
        y = int8.int8_linear(x, q, scale)
        exact = x.double() @ int8.dequantized(q, scale, torch.float64).T
        torch.testing.assert_close(y.double(), exact, rtol=2**-7, atol=0.02 if dtype == torch.bfloat16 else 1e-4)
        assert len(products) == taken, dtype
    assert not int8.has_product(x.to("meta").bfloat16(), q.to("meta"))


def test_scales_are_read_by_fours():
    x = torch.ones(1, 16).bfloat16()
    assert [int8.has_product(x, torch.ones(n, 16, dtype=torch.int8)) for n in (8, 10, 12)] == [True, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_lora_linear_on_such_a_weight(dtype):
    torch.manual_seed(0)
    q, scale = int8.quantize(torch.randn(12, 16))
    x, bias = torch.randn(2, 20, 16, dtype=dtype, requires_grad=True), torch.randn(12, dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    adapters = [torch.randn(*s, dtype=wide, requires_grad=True) for s in ((5, 16), (8, 2), (4, 3))]
    A, *B = adapters
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        y = lora_linear(x, q, bias, A, B, 0.5, rows=scale)
    assert not [t for t in saved if t.shape == q.shape and t.dtype != torch.int8], "a wide weight is kept"
    other = lora_linear_reference(x, int8.dequantized(q, scale, dtype), bias, A, B, 0.5)
    near = {"rtol": 0, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 0.02, "atol": 0.4}
    torch.testing.assert_close(y, other, **near)
    grad = torch.randn_like(y)
    for mine, wanted in zip(*(torch.autograd.grad(t, (x, *adapters), grad) for t in (y, other)), strict=True):
        assert mine.dtype == wanted.dtype
        torch.testing.assert_close(mine, wanted, **near if dtype == torch.float64 else {"rtol": 0.02, "atol": 1.0})


# a model


@pytest.mark.parametrize("name", GOLDENS)
@torch.no_grad()
def test_every_family_is_its_widened_twin(name):
    """Whatever order its files have; what is no linear of a block stays as it is."""
    model, twin, whole = (load(GOLDEN / name, dtype="float64") for load in (narrow, widened, checkpoints.load_model))
    torch.testing.assert_close(model(IDS), twin(IDS), rtol=0, atol=1e-9)
    assert (model(IDS) - whole(IDS)).abs().max() > 1e-5
    narrowed = {n for n, t in model.tensors() if t.dtype == torch.int8}
    assert narrowed == {f"{part}.weight" for part in lora.linear_parts(model)}
    for (n, mine), (_, wanted) in zip(model.tensors(), whole.tensors(), strict=True):
        assert n in narrowed or torch.equal(mine, wanted)


def test_a_tensor_is_never_read_whole(monkeypatch):
    """Nor widened: pieces of a file are rounded one by one, on the CPU."""
    monkeypatch.setattr(checkpoints.files, "CHUNK", 4096)
    file = TensorFile(SHIPPED / "model.safetensors")
    name = max(file.entries, key=lambda n: file.entries[n].size)
    out, scale = torch.empty(file.entries[name].shape, dtype=torch.int8), torch.empty(file.entries[name].shape[0])
    with Peak() as peak:
        file.read_into(name, out, scale=scale)
    assert peak.most < 5 * 4096 < file.entries[name].size
    assert torch.equal(out, int8.quantize(file.read(name))[0])


@pytest.mark.filterwarnings("default:.*not finite")
def test_a_weight_that_is_no_number_is_warned_of_and_shows(tmp_path):
    tensors = load_file(SHIPPED / "model.safetensors")
    tensors["model.layers.0.mlp.down_proj.weight"][3, 5] = torch.nan
    (tmp_path / "config.json").write_bytes((SHIPPED / "config.json").read_bytes())
    checkpoints.files.write_tensors(tmp_path / "model.safetensors", tensors)
    with pytest.warns(UserWarning, match="down_proj.weight holds numbers that are not finite"):
        model = narrow(tmp_path)
    with torch.no_grad():
        assert model(IDS).isnan().any()


def test_training_is_that_of_the_twin():
    models = narrow(SHIPPED), widened(SHIPPED)
    losses = [finetune(stirred(m), EXAMPLES, steps=4, lr=1e-3, batch_size=3).losses for m in models]
    assert losses[0] == pytest.approx(losses[1], abs=1e-9)
    assert losses[0][0] != losses[0][1]
    for (name, mine), wanted in zip(lora.trainable(models[0]).items(), lora.trainable(models[1]).values(), strict=True):
        assert mine.dtype == torch.float64
        torch.testing.assert_close(mine, wanted, rtol=0, atol=1e-7, msg=name)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_in_the_dtypes_of_runs(dtype):
    """With some linears left alone too, through which gradients go all the same."""
    for targets in (lora.ALL_LINEAR, ("q_proj",)):
        found = [finetune(stirred(m, targets=targets), EXAMPLES, steps=3, lr=1e-3, recompute=True).losses
                 for m in (narrow(SHIPPED, dtype), widened(SHIPPED, dtype))]
        assert found[0] == pytest.approx(found[1], rel=1e-4 if dtype == "float32" else 0.03)


def test_a_frozen_number_that_changes_is_seen():
    model = stirred(narrow(SHIPPED))
    module = next(m for _, m in lora.lora_modules(model))
    before = fingerprint(model)
    with torch.no_grad():
        for tensor, one in ((module.weight, 1), (module.rows, 1e-9)):
            tensor.view(-1)[0] += one
            assert not torch.equal(fingerprint(model), before)
            before = fingerprint(model)


@torch.no_grad()
def test_base_reset_and_removal_give_the_base_back():
    model, plain = narrow(SHIPPED), narrow(SHIPPED)(IDS)
    stirred(model)
    assert not torch.equal(model(IDS), plain)
    with lora.off(model):
        assert torch.equal(model(IDS), plain)
    assert drift(model, EXAMPLES) == pytest.approx(drift(stirred(widened(SHIPPED)), EXAMPLES))
    lora.reset(model)
    assert torch.equal(model(IDS), plain)
    lora.remove_lora(stirred_again(model))
    assert torch.equal(model(IDS), plain)
    assert lora.is_int8(model)


def stirred_again(model):
    for _, module in lora.lora_modules(model):
        for B in module.B:
            B.fill_(0.3)
    return model


def test_it_is_sampled_from_live_adapters_only():
    model, prompts = stirred(narrow(SHIPPED)), [[1, 2, 3 + i] for i in range(5)]
    sampler = Sampler(model, 3, 40)
    assert not sampler.merges()
    said = sampler.generate(prompts, prefix=[4, 5], max_new_tokens=20)
    twin = Sampler(stirred(widened(SHIPPED)), 3, 40, merge=False).generate(prompts, prefix=[4, 5], max_new_tokens=20)
    assert [c.tokens for c in said] == [c.tokens for c in twin]
    refused(Sampler(model, 3, 300, merge=True).generate, prompts, words=("8 bits", "live adapters"))


@pytest.mark.parametrize(("dtype", "most", "taken"), [("float32", 1e-4, False), ("bfloat16", 0.5, True)])
@torch.no_grad()
def test_what_the_sampler_calls_a_log_probability_the_trainer_does(products, report, dtype, most, taken):
    """In bfloat16 within rounding: torch's own product decodes, and the widened one reads whole texts."""
    model, prompts = stirred(narrow(SHIPPED, dtype)), [[1, 2, 3 + i] for i in range(5)]
    off = []
    for p, c in zip(prompts, Sampler(model, 5, 60).generate(prompts, max_new_tokens=40, temperature=1.0), strict=True):
        logp = model(torch.tensor([[*p, *c.tokens]]))[0, len(p) - 1 : -1].log_softmax(-1)
        off.append((logp.gather(1, torch.tensor(c.tokens)[:, None])[:, 0] - torch.tensor(c.logprobs)).abs())
    off = torch.cat(off)
    assert off.max() < most
    assert bool(products) == taken
    report(f"sampler and trainer on weights of 8 bits in {dtype}: log-probabilities {off.mean():.1e} apart, "
           f"{off.max():.1e} at most")


def test_a_recorded_step_draws_what_a_cpu_draws():
    """And waits for nothing; adapters that are written are followed."""
    options = {"max_new_tokens": 12, "temperature": 0.9}
    prompts = [[1, 2, 3 + i] for i in range(5)]
    cpu = stirred(narrow(SHIPPED, "float32"))
    expected = [c.tokens for c in Sampler(cpu, 3, 40).generate(prompts, **options)]
    with pretended() as cuda:
        model = stirred(narrow(SHIPPED, "float32").to("cuda"))
        sampler = Sampler(model, 3, 40)
        assert not sampler.merges()
        assert [c.tokens for c in sampler.generate(prompts, **options)] == expected
        assert cuda.replays > 5


@pytest.mark.parametrize("name", ["llama2", "falcon40b", "granite4_dense", "gemma3"])
def test_an_export_is_that_of_the_whole_weights(tmp_path, name):
    """Adapters are added to what the files hold, byte for byte as without 8 bits."""
    targets = ("o_proj", "up_proj") if name == "llama2" else lora.ALL_LINEAR
    for folder, load in (("a", narrow), ("b", checkpoints.load_model)):
        model = stirred(load(GOLDEN / name, dtype="float32"), alpha=7, targets=targets)
        checkpoints.export_merged(model, tmp_path / folder, most_shard=100_000)
    files = sorted(p.name for p in (tmp_path / "b").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "a").iterdir())
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_what_a_pass_reads():
    model = narrow(SHIPPED, "float32")
    meter = Meter(Sampler(model))
    assert meter.sampling(Counter(passes=1))[1] == sum(t.nbytes for n, t in model.tensors() if t.ndim == 2)


# a run


def test_what_has_no_room_whole_is_told_to_take_8_bits(monkeypatch):
    monkeypatch.setattr(models, "free_memory", lambda _: 10**6)
    for settings, words in (({}, ("--dtype bfloat16 or --base-bits 8",)),
                            ({"dtype": "bfloat16"}, ("half as much: --base-bits 8",))):
        refused(models.load_base, models.outline(SHIPPED, StarConfig(**settings), CPU), CPU, words=words)
    models.load_base(models.outline(SHIPPED, StarConfig(base_bits=8), CPU), CPU)


def test_judges_follow(monkeypatch):
    """Other models come by the same outline as the student (star/run/models)."""
    monkeypatch.setattr(others, "load_tokenizer", lambda *_: None)
    for bits in (None, 8):
        config = StarConfig(base_bits=bits, reward="a", reward_format="plain")
        judge = others.plan_judge(GOLDEN / "rewards" / "rm_llama_5", config, CPU)
        assert lora.is_int8(judge.scorer.model) == (bits == 8)
        assert others.loaded(judge, config, CPU).scorer.score([[1, 2, 3]]).isfinite().all()


@pytest.mark.usefixtures("own_folder")
def test_a_run_in_8_bits(capsys):
    """It says so, goes on in them, is asked in them, and is exported without."""
    quick = ["--iterations", "1", "--first-steps", "2", "--digits", "1-2", "--problems", "4", "--heldout-problems", "3"]
    assert train.main([*quick, "--base-bits", "8"]) == 0
    said = capsys.readouterr().out
    assert "float32, linears in 8 bits" in said
    assert "adapters sampled live" in said
    run = Path("runs/arithmetic-001")
    assert json.loads((run / "config.json").read_text())["settings"]["base_bits"] == 8
    assert train.main(["--resume", str(run), "--iterations", "2"]) == 0
    assert "linears in 8 bits" in capsys.readouterr().out
    assert sample.main(["--run", str(run), "12+34"]) == 0
    assert export.main(["out"]) == 0
    told = re.search(r"says the same .* differ by (\S+) at most", capsys.readouterr().out)
    assert float(told[1]) < 1e-5, "both sides have whole weights"
    assert checkpoints.load_model("out").dtype == torch.float32
    assert train.main(["--resume", str(run), "--iterations", "3", "--no-merge"]) == 2
