"""The measurements against transformers and PEFT: both sides owe the same work, and its floor is counted right.

What needs a peer is run by hand (tests/bench/README.md): here run our side, the trials and the refusals.
"""

import importlib.util
import json
import subprocess
import sys
import time
from argparse import Namespace

import pytest
import torch
from conftest import ROOT, SHIPPED
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import checkpoints
import train
from star.sampler import Sampler

sys.path.append(str(ROOT / "tests" / "bench"))  # behind all others: it has a kernels.py

import cycle
import finetune
import peers
import rollouts
import two_trees

SPEC = {"model": str(SHIPPED), "device": "cpu", "dtype": "float32", "small": True, "threads": None, "trial": False}


@pytest.fixture(autouse=True)
def fixed_rate(monkeypatch):
    """A matrix product's rate takes half a second to measure."""
    monkeypatch.setattr(peers, "matmul_rate", lambda device, dtype: 1e11)


def test_the_works_are_what_they_are_called():
    prefix, plain, samples = (rollouts.make(name, 1000, small=False) for name in rollouts.WORKS)
    assert prefix == rollouts.make("prefix", 1000, small=False)
    assert len(prefix.prefix) == 768
    assert len(prefix.prompts) == len(prefix.new) == 128
    assert {len(p) for p in prefix.prompts} <= set(range(20, 61))
    assert max(prefix.new) <= 256
    assert sum(prefix.new) / 128 == pytest.approx(78, rel=0.1)
    assert {len(p) for p in plain.prompts} <= set(range(100, 601))
    assert (len(plain.prompts), set(plain.new), plain.prefix) == (64, {64}, [])
    assert (len(samples.prompts), samples.samples, samples.tokens) == (16, 8, 16 * 8 * 64)
    assert {len(p) for p in samples.prompts} == {300}
    _, batches = finetune.make(1000, 10, small=False)
    assert [len(batch) for batch in batches] == [8] * 10
    lengths = [len(e.tokens) for batch in batches for e in batch]
    assert min(lengths) >= 60
    assert max(lengths) <= 260
    assert len(set(lengths)) > 40


@pytest.mark.parametrize("name", rollouts.WORKS)
def test_our_side_brings_every_token_that_is_owed(name):
    found = rollouts.here(SPEC | {"work": name, "temperatures": [0.8, 0.0]})
    work = rollouts.make(name, 21, small=True)
    assert len(found["greedy"]) == len(work.prompts) * work.samples
    for t in (0.8, 0.0):
        assert found[f"tokens/s at {t}"] * found[f"seconds at {t}"] == pytest.approx(work.tokens)
    assert found["floor"] > 0
    assert found["peak"] > 1e7


def test_the_floor_of_rollouts_counts_what_the_sampler_multiplies():
    """One prompt, three new tokens, by slots that nothing shares."""
    model = checkpoints.load_model(SHIPPED)
    work = rollouts.Work([], [list(range(20))], [3])
    with FlopCounterMode(display=False) as counter:
        Sampler(model, 1, 23).generate(work.prompts, max_new_tokens=3)
    attention = peers.attention_work(model, 20 * 20 / 2 + 2 * (20 + 3 / 2))
    counted = {str(op): n for op, n in counter.get_flop_counts()["Global"].items()}
    linears = sum(n for op, n in counted.items() if op in ("aten.mm", "aten.addmm"))
    assert rollouts.operations(model, work) == linears + attention
    twice = rollouts.Work([], work.prompts, [1], samples=2)
    once = rollouts.Work([], work.prompts, [1])
    last = sum(m.weight.numel() for m in rollouts.after_last_keys(model))
    assert rollouts.operations(model, twice) - rollouts.operations(model, once) == 2 * (last + 21 * 128)


def test_the_floor_of_a_step_is_every_linear_once():
    model = checkpoints.load_model(SHIPPED)
    blocks, head = peers.multiplied(model)
    with FlopCounterMode(display=False) as counter:
        rollouts.linears(model, 5, 1, "cpu")
    assert counter.get_total_flops() == 4 * 2 * 5 * (blocks + head)  # once to warm up, three times timed
    *_, o, up, down = (m.weight.numel() for m in peers.layer_linears(model))
    with FlopCounterMode(display=False) as counter:
        rollouts.linears(model, 5, 7, "cpu")
    assert counter.get_total_flops() == 2 * 2 * 5 * (7 * (blocks - o - up - down) + o + up + down + head)


def test_phases_stand_beside_their_floor():
    found = rollouts.phases(SPEC | {"rounds": 2})["phases"]
    assert [name.split(",")[0] for name in found] == ["prefill", *["decode"] * 4]
    assert all(len(pairs) == 2 and min(map(min, pairs)) > 0 for pairs in found.values())


def test_our_training_side_counts_tokens_behind_the_first_step():
    found = finetune.here(SPEC | {"steps": 3, "recompute": False})
    _, (_, *timed) = finetune.make(21, 3, small=True)
    tokens = sum(len(e.tokens) for batch in timed for e in batch)
    targets = sum(len(e.tokens) - e.n_prompt for batch in timed for e in batch)
    blocks, head = peers.multiplied(checkpoints.load_model(SHIPPED))
    assert found["operations/s"] / found["tokens/s"] == pytest.approx(4 * (blocks * tokens + head * targets) / tokens)
    assert len(found["losses"]) == 3


def test_a_padded_batch_learns_what_ours_learns():
    _, (batch,) = finetune.make(21, 1, small=True)
    rows = finetune.padded(batch, "cpu")
    width = max(len(e.tokens) for e in batch)
    assert {t.shape for t in rows.values()} == {(8, width)}
    for i, e in enumerate(batch):
        assert rows["input_ids"][i, rows["attention_mask"][i].bool()].tolist() == e.tokens
        assert rows["labels"][i][rows["labels"][i] != -100].tolist() == e.tokens[e.n_prompt :]
        assert rows["labels"][i, e.n_prompt :][: len(e.tokens) - e.n_prompt].min() >= 0


def test_first_losses_that_differ_are_told():
    sides = {"here": ("here", {"dtype": "float32"}), "best": ("peft", {"dtype": "float32"})}
    assert finetune.check_losses({"here": [{"losses": [9.0, 8]}], "best": [{"losses": [9.0005, 7]}]}, sides) is None
    said = finetune.check_losses({"here": [{"losses": [9.0]}], "best": [{"losses": [9.1]}]}, sides)
    assert said == "first losses differ: here 9.0000, best 9.1000"


def test_a_trial_finds_the_fastest_dtype_and_then_the_fastest_batch():
    rates = {("float32", 8): 5.0, ("bfloat16", 8): 7.0, ("bfloat16", 16): 9.0, ("float32", 16): 50.0}
    bench, asked = object.__new__(peers.Bench), []

    def measure(worker, dtype, batch, **spec):
        asked.append((dtype, batch))
        return {"tokens/s": rates[dtype, batch]} if (dtype, batch) in rates else {"error": "killed"}

    bench.args, bench.measure = Namespace(dtypes="auto"), measure
    assert bench.best("x", {"batch": [8, 16, 64]}, "tokens/s", work="w") == {
        "work": "w", "dtype": "bfloat16", "batch": 16}
    assert asked == [("float32", 8), ("bfloat16", 8), ("bfloat16", 16), ("bfloat16", 64)]  # one that fails is slow
    bench.args.dtypes = "float32"
    assert bench.best("x", {}, "tokens/s") == {"dtype": "float32"}


def test_ratios_are_against_the_faster_of_both():
    sides = {side: ("x", {"dtype": "float32"}) for side in ("here", "best", "as called")}
    found = {side: [{"tokens/s at 0.8": rate, "seconds at 0.8": 2.0, "rate": 1e9, "floor": 1.0, "peak": 1e9}] * 3
             for side, rate in (("here", 60.0), ("best", 20.0), ("as called", 30.0))}
    figures = rollouts.row(None, "plain", 0.8, sides, found)
    assert figures["ratio"] == {"best": 2.0, "as called": 2.0}
    assert figures["share"] == 0.5
    assert rollouts.line(figures).count("|") == 12


def test_kernels_are_counted_once():
    """aten::linear holds aten::addmm, and attention without a kernel two aten::bmm."""
    a, q = torch.randn(512, 512), torch.randn(1, 8, 256, 256)
    with profile(activities=[ProfilerActivity.CPU]) as profiler, sdpa_kernel(SDPBackend.MATH):
        began = time.perf_counter()
        for _ in range(10):
            torch.nn.functional.linear(a, a, a[0])
            torch.nn.functional.scaled_dot_product_attention(q, q, q)
        took = time.perf_counter() - began
        time.sleep(0.2)
    names = {e.name for e in profiler.events()}
    assert {"aten::_scaled_dot_product_attention_math", "aten::bmm", "aten::addmm"} <= names
    assert 0.5 * took < cycle.in_kernels(profiler) < took


def test_cycle_shows_where_time_went(capsys):
    found = {"here": {"train": [1.0, 2.0, 3.0], "rest": [2.0] * 3, "all": [4.0] * 3},
             "old": {"train": [4.0] * 3, "rest": [2.0] * 3, "all": [6.0] * 3}}
    rows = cycle.show("default", found, {"train": [2.0, 1.5]})
    assert rows[0] == {"work": "default", "phase": "train", "seconds": 2.0, "of the run": 0.5, "kernels": 0.75,
                       "old": 4.0, "ratio": 2.0}
    assert "| train | 2.00 | 50% | 75% | 4.00 | 2.00 |" in capsys.readouterr().out


def in_this_process(monkeypatch, module, *workers, flags):
    """main() of a script, its workers called instead of started."""
    known = {worker.__name__: worker for worker in workers}

    def measure(self, worker, **spec):
        return known[worker](self.common | spec)

    monkeypatch.setattr(peers.Bench, "measure", measure)
    monkeypatch.setattr(sys, "argv", ["x.py", "--small", "--rounds", "1", *map(str, flags)])
    return module.main()


@pytest.mark.parametrize(("module", "flags", "said"), [
    (finetune, ["--alone", "--steps", 2, "--dtypes", "float32"], "| here (float32) | "),
    (rollouts, ["--alone", "--dtypes", "float32"], "| samples, T 0.8 | "),
    (rollouts, ["--phases"], "| decode, 128 rows behind 24, temperature 0.8 | ")])  # fmt: skip
def test_whole_measurements_alone(module, flags, said, monkeypatch, tmp_path, capsys):
    out = tmp_path / "figures.json"
    workers = [module.here, *([rollouts.phases] if module is rollouts else [])]
    assert not in_this_process(monkeypatch, module, *workers, flags=[*flags, "--out", out])
    assert said in capsys.readouterr().out
    figures = json.loads(out.read_text())
    assert {"processor", "threads", "torch", "date", "load"} <= figures["facts"].keys()
    assert len(figures) == 3 + (flags == ["--phases"])


@pytest.mark.usefixtures("own_folder")
def test_a_cycle_is_looked_at_by_phase(monkeypatch, capsys):
    monkeypatch.setattr(train.Run, "record", train.Run.record)  # which the profiled run replaces
    phases = dict.fromkeys(("generate", "rationalize", "train", "evaluate"), 1.0)
    monkeypatch.setattr(two_trees, "run", lambda *_: (5.0, "ends", dict(phases)))
    in_this_process(monkeypatch, cycle, cycle.profiled, flags=[])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    shares = {row[0].strip("| "): row[3].strip("| %") for row in rows[1:]}
    assert {name for name, share in shares.items() if share} == set(phases)
    assert all(0 < int(shares[name]) <= 100 for name in phases)


def test_a_process_says_one_thing(tmp_path):
    """What it found, as its last line; or why it failed."""
    script = tmp_path / "x.py"
    bench = object.__new__(peers.Bench)
    bench.file, bench.common, bench.runs, bench.args = str(script), {"device": "cpu"}, [], Namespace(threads=3)
    script.write_text("import json, os, sys\nprint('noise')\n"
                      "print(json.dumps(json.loads(sys.argv[2]) | {'n': int(os.environ['OMP_NUM_THREADS'])}))")
    assert bench.measure("w", trial=True) == {"device": "cpu", "worker": "w", "trial": True, "n": 3}
    script.write_text("raise ValueError('no\\nmodel in nowhere')")
    assert bench.measure("w") == {"error": "model in nowhere"}
    script.write_text("import os\nos.kill(os.getpid(), 9)")
    assert bench.measure("w") == {"error": "killed: out of memory?"}
    assert ["error" in run["found"] for run in bench.runs] == [False, True, True]


def test_greedy_samples_are_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit) as e:
        in_this_process(monkeypatch, rollouts, flags=["--work", "samples", "--temperatures", "0"])
    assert e.value.code == 2
    assert "[0.0]: greedy samples of a prompt are all alike" in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("transformers") is not None, reason="it has the peer")
def test_a_missing_peer_is_one_line():
    done = subprocess.run([sys.executable, "tests/bench/reward_heads.py"], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("transformers is not installed: pip install -e '.[bench]'")
    assert done.stderr.count("\n") == 1


def test_a_worker_of_a_process(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: asked.append(n))
    asked = []
    with pytest.raises(SystemExit) as e:
        peers.Bench("x.py", Namespace(one={"worker": "w", "threads": 5}), w=lambda spec: {"found": spec["threads"]})
    assert (e.value.code, asked) == (0, [5])
    assert json.loads(capsys.readouterr().out) == {"found": 5}


@pytest.mark.parametrize(("flags", "said"), [
    ({}, "no_such_peer is not installed: pip install -e '.[bench]'; --alone measures this project only"),
    ({"packages": (), "model": ROOT}, f"no model in {ROOT}; fetch one: python -m checkpoints.fetch smollm2-135m"),
    ({"packages": (), "rounds": 0}, "--rounds is 0 and --threads None: both must be at least 1"),
    ({"packages": (), "threads": 0}, "--rounds is 3 and --threads 0: both must be at least 1"),
    ({"packages": (), "device": "cuda:99"}, "--device is 'cuda:99', which cannot be used here")])  # fmt: skip
def test_what_cannot_be_measured_is_one_line(flags, said, capsys):
    args = Namespace(**{"one": None, "model": None, "small": True, "rounds": 3, "threads": None, "device": "cpu"} | {
        k: v for k, v in flags.items() if k != "packages"})
    with pytest.raises(SystemExit) as e:
        peers.Bench("x.py", args, flags.get("packages", ("torch", "no_such_peer")))
    assert e.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(said)
    assert err.count("\n") == 1
