"""What a device can do, measured; and which share of it a run used: work counted again by torch and by hand."""

import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SHIPPED, random_decoder, stirred

import train
from star.cache import KVCache
from star.config import StarConfig
from star.experiments import baseline
from star.problem import STUDENT, Finished, Phase, Tick
from star.run import folder, rates
from star.run.folder import Run, read_lines
from star.run.rates import Meter, Rates, fastest, mean_use, measured, metric, sizes
from star.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
HAND = Rates(matmul=1000, copy=100, dtype="float32", seconds=0.1)


@pytest.fixture
def known(monkeypatch):
    """A device that does what is easily reckoned with."""
    monkeypatch.setattr(rates, "measured", lambda device, dtype: HAND)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rates_are_measured_in_a_moment_and_once(dtype):
    measured.cache_clear()
    before, began = torch.get_rng_state(), time.process_time()
    found = measured(CPU, dtype)
    assert time.process_time() - began < 1
    assert torch.equal(before, torch.get_rng_state()), "draws of a run do not depend on it"
    assert measured(CPU, dtype) is found
    assert str(found).count("/s in a") == 2
    assert 1e8 < found.matmul < 1e16
    assert 1e8 < found.copy < 1e14


def test_the_fastest_round_counts_and_is_a_round_of_a_call(monkeypatch):
    """The first call, which loads libraries, does not."""
    now, costs, calls = [0.0], iter([9.0, 0.004, 0.003, 0.008] + [0.005] * 99), []
    monkeypatch.setattr(rates.time, "perf_counter", lambda: now[0])

    def call():
        calls.append(next(costs))
        now[0] += calls[-1]
        return torch.zeros(2, 2)

    assert fastest(call, 0.06) == pytest.approx(0.003)
    assert 0.059 < sum(calls[1:]) < 0.066
    calls.clear()
    assert fastest(call, 0.0) == pytest.approx(0.005)
    assert len(calls) == 2


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("none left"), TypeError("no float64 there"),
                                   NotImplementedError("no product")])
def test_no_run_ends_for_want_of_a_figure(own_folder, monkeypatch, capsys, error):
    def fail(*_):
        raise error

    measured.cache_clear()
    monkeypatch.setattr(rates, "copy_rate", fail)
    argv = ["--model", str(SHIPPED), "--digits", "1", "--iterations", "0", "--heldout-problems", "9", "--out", "run"]
    assert train.main(argv) == 0
    measured.cache_clear()  # of what failed
    out = capsys.readouterr().out
    assert "\nrates   could not be measured here: no shares of them are shown\n" in out
    assert "used    " not in out
    (timings,) = read_lines(Path("run/timings.jsonl"))
    assert (timings["rates"], timings["use"]) == (None, {})


def test_three_digits_and_a_prefix():
    said = {5: "5  ", 1234: "1.23 k", 13.7e9: "13.7 G", 161.4e9: "161 G", 999.6e9: "1 T", 1.979e15: "1.98 P"}
    assert {n: metric(n) for n in said} == said


@pytest.mark.parametrize(("fields", "mlp"), [({}, 3), ({"tied": True, "gated": False}, 2)])
def test_operations_are_a_product_and_a_sum_for_each_weight(known, fields, mlp):
    """Of the linears: q, k, v, o and the feed-forward part; and of the head where a token is drawn or learned."""
    model = random_decoder(**fields)
    meter = Meter(Sampler(model))
    body, head = 2 * (24 * 24 + 2 * 24 * 12 + 24 * 24 + mlp * 24 * 20), 23 * 24
    assert meter.sampling(Counter(prefilled=10, decoded=5, drawn=6))[0] == 2 * (15 * body + 6 * head)
    assert meter.training(15, 4) == 4 * (15 * body + 4 * head)
    assert sizes(stirred(model)) == (body, head), "adapters are not counted"


@pytest.mark.parametrize(("slots", "steps", "prefills", "prefilled"), [(1, 0 + 3 + 5 + 6, 4, 9), (4, 6, 1, 6)])
@pytest.mark.parametrize("prefix", [(), (9, 8, 9, 8, 9)])
def test_what_a_sampler_did(slots, steps, prefills, prefilled, prefix):
    """Equal prompts that come together are prefilled once; a prefix is prefilled once for all calls, and read once a
    step, whatever the rows."""
    prompts, most = [[5, 6, 7], [5, 6, 7], [1, 2], [3]], (1, 4, 6, 7)
    sampler = Sampler(random_decoder(), slots=slots, max_len=20)
    for call in range(2):
        before, first = Counter(sampler.work), len(prefix) > 0 and call == 0
        outs = sampler.generate(prompts, prefix=prefix, max_new_tokens=most)
        assert tuple(len(o.tokens) for o in outs) == most
        own = sum(len(p) + j for p, n in zip(prompts, most, strict=True) for j in range(1, n))
        assert sampler.work - before == Counter(
            drawn=18, decoded=14, prefilled=prefilled + first * len(prefix), keys=own + steps * len(prefix),
            passes=steps + prefills + first)
    assert sampler.row_steps == sampler.work["decoded"]


def test_bytes_are_weights_once_a_pass_and_keys_once(known):
    model = random_decoder(dtype=torch.bfloat16)
    meter = Meter(Sampler(model))
    weights = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    _, read = meter.sampling(Counter(passes=3, keys=10))
    assert read == 3 * 2 * weights + 10 * KVCache.bytes_a_token(model.config, torch.bfloat16)
    assert KVCache.bytes_a_token(model.config, torch.bfloat16) == 2 * 2 * 2 * 6 * 2  # k, v; layers; heads; size; bytes


def test_a_lap_is_what_was_done_since_the_last(known):
    sampler = SimpleNamespace(model=random_decoder(dtype=torch.float32), work=Counter(drawn=7, decoded=7, passes=7))
    meter = Meter(sampler)
    body, head = meter.body, meter.head
    assert meter.lap(1.0, 0.0, 0, {}) == {}, "what was done before is not its own"
    sampler.work.update(prefilled=10, decoded=4, drawn=6, passes=5, keys=50)
    metrics = {"trained_tokens": 20, "target_tokens": 5}
    token = KVCache.bytes_a_token(sampler.model.config, torch.float32)
    use = meter.lap(2.0, 4.0, metrics["trained_tokens"], metrics)
    assert use["sampling"] == pytest.approx({
        "tokens": 6, "seconds": 2.0, "matmul": 2 * (14 * body + 6 * head) / 1000 / 2,
        "bandwidth": (5 * 4 * (body + head) + 50 * token) / 100 / 2}, rel=1e-4)
    assert use["training"] == pytest.approx(
        {"tokens": 20, "seconds": 4.0, "matmul": 4 * (20 * body + 5 * head) / 1000 / 4}, rel=1e-4)
    assert meter.lap(2.0, 4.0, 0, {}) == {}
    assert meter.lap(0.0, 4.0, metrics["trained_tokens"], metrics).keys() == {"training"}


def test_several_laps_are_one_by_their_seconds():
    laps = [{"sampling": {"tokens": 10, "seconds": 1.0, "matmul": 0.1, "bandwidth": 0.5}}, {},
            {"sampling": {"tokens": 50, "seconds": 3.0, "matmul": 0.3, "bandwidth": 0.1},
             "training": {"tokens": 8, "seconds": 2.0, "matmul": 0.7}}]
    assert mean_use(laps) == {
        "sampling": pytest.approx({"tokens": 60, "seconds": 4.0, "matmul": 0.25, "bandwidth": 0.2}),
        "training": pytest.approx({"tokens": 8, "seconds": 2.0, "matmul": 0.7})}
    assert mean_use([{}, {}]) == {}


def test_time_of_other_models_is_not_the_students(known, tmp_path, monkeypatch):
    now, model = [0.0], random_decoder(dtype=torch.float32)
    monkeypatch.setattr(folder.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(folder, "save_adapter", lambda model, path: None)
    run = Run.create(tmp_path / "run", StarConfig(), {}, {})
    sampler = SimpleNamespace(model=model, work=Counter())
    run.meter = Meter(sampler)
    for phase, seconds in (("generate", 2), ("generate other", 100), ("rationalize", 3), ("judge", 50), ("train", 4),
                           ("evaluate", 1)):
        name, _, source = phase.partition(" ")
        run.record(Phase(1, name, 1, source or STUDENT), model)
        now[0] += seconds
        run.record(Tick(5), model)
    sampler.work.update(drawn=15, decoded=12, passes=12)
    run.record(Finished(1, {"iteration": 1, "trained_tokens": 5, "target_tokens": 2}), model)
    use = run.timings["use"]
    assert (use["sampling"]["seconds"], use["sampling"]["tokens"], use["training"]["seconds"]) == (6, 15, 4)
    assert run.timings["seconds"]["generate"] == 102
    assert run.timings["rates"] == {"matmul": 1000, "copy": 100, "dtype": "float32", "seconds": 0.1}
    assert read_lines(tmp_path / "run" / "timings.jsonl") == [run.timings]
    assert "use" not in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_baseline_says_them_too(own_folder, capsys):
    argv = ["--model", str(SHIPPED), "--digits", "1", "--learn", "gold", "--problems", "8", "--first-steps", "1",
            "--heldout-problems", "9", "--out", "run"]
    assert baseline.main(argv) == 0
    out = capsys.readouterr().out
    assert f"\nrates   {measured(CPU, torch.float32)}\n" in out
    assert "\nused    sampling " in out
    base, first = read_lines(Path("run/timings.jsonl"))
    assert (base["use"].keys(), first["use"].keys()) == ({"sampling"}, {"sampling", "training"})
