"""tests/bench/gpu.py without a GPU: what becomes of a stage that fails or hangs, and the lines for CUDA alone."""

import contextlib
import copy
import io
import json
import subprocess
import time
from types import SimpleNamespace

import pytest
import torch

from tests.bench import gpu

gpu_checks, gpu_kernels, gpu_kit, gpu_speed = gpu.gpu_checks, gpu.gpu_kernels, gpu.gpu_kit, gpu.gpu_speed


def noted(text):
    return [json.loads(line) for line in text.getvalue().splitlines()]


def measured(kit):
    kit.note("versions", {"card": "a card"})
    kit.note("copy", {"GB/s": 50.0})
    kit.note("matmul", {"TF/s": 2.0})


def shares(kit):
    kit.note("two", {"of copy": kit.share("copy", 25e9), "of matmul": kit.share("matmul", 1e12), "top": [1, 2]}, True)


def broken(kit):
    kit.note("before", {"ms": 1.0})
    raise RuntimeError("an illegal memory access was encountered")


def unequal(kit):
    kit.note("equal tokens", {"share": 0.5}, ok=False)


def hanging(kit):
    child = subprocess.Popen(["sleep", "60"])
    kit.note("started", {"pid": child.pid})
    time.sleep(60)


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Runs these stages, each with a limit in seconds; (exit code, the record)."""
    def run(wanted, *flags):
        monkeypatch.setattr(gpu, "STAGES", {"facts": (measured, 30)} | wanted)
        code = gpu.main(["--device", "cpu", "--out", str(tmp_path / "deep" / "gpu.json"), *flags])
        return code, json.loads((tmp_path / "deep" / "gpu.json").read_text())
    return run


def test_shares_are_of_what_facts_measured(stages, capsys):
    code, record = stages({"shares": (shares, 30)})
    assert code == 0
    assert record["stages"]["shares"]["rows"] == [{"what": "two", "of copy": 0.5, "of matmul": 0.5, "top": [1, 2],
                                                   "ok": True}]
    said = capsys.readouterr().out
    assert "| shares | of copy | of matmul | ok |\n|---|---|---|---|\n| two | 50% | 50% | yes |" in said
    assert said.endswith("all checks hold\n")


def test_a_stage_that_fails_leaves_the_others_alone(stages, capsys):
    code, record = stages({"broken": (broken, 30), "unequal": (unequal, 30), "shares": (shares, 30)})
    assert code == 1
    stage = record["stages"]["broken"]
    assert stage["rows"] == [{"what": "before", "ms": 1.0}]
    assert stage["error"][0] == "exit code 1"
    assert stage["error"][-1] == "RuntimeError: an illegal memory access was encountered"
    assert record["stages"]["shares"]["error"] is None
    assert capsys.readouterr().out.endswith("FAILED: broken: exit code 1; unequal: equal tokens\n")


def alive(pid):
    """Does it run? What was killed may wait as a zombie for whoever started it."""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_stage_past_its_limit_is_killed_with_its_children_and_says_where_it_stood(stages):
    began = time.monotonic()
    code, record = stages({"hanging": (hanging, 2), "shares": (shares, 30)})
    assert time.monotonic() - began < 20
    assert code == 1
    stage = record["stages"]["hanging"]
    assert stage["error"][0] == "killed after 2 s"
    assert any("in hanging" in line for line in stage["error"])
    deadline = time.monotonic() + 5
    while alive(stage["rows"][0]["pid"]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(stage["rows"][0]["pid"])
    assert record["stages"]["shares"]["error"] is None


def test_when_the_time_is_up_the_rest_is_not_run(stages, monkeypatch):
    monkeypatch.setattr(gpu, "MINUTES", 0)
    code, record = stages({"shares": (shares, 30)})
    assert code == 1
    assert record["stages"]["shares"] == {"rows": [], "seconds": 0.0, "error": ["not run: the time was up"]}


def test_two_records_side_by_side(stages, tmp_path, capsys):
    _, record = stages({"shares": (shares, 30)})
    record["stages"]["facts"]["rows"][1]["GB/s"] = 25.0
    (tmp_path / "old.json").write_text(json.dumps(record))
    stages({"shares": (shares, 30)}, "--diff", str(tmp_path / "old.json"))
    table = capsys.readouterr().out.partition("then: a card")[2]
    assert "| facts: copy | GB/s | 25 | 50 | 2.00 |" in table
    assert "matmul" not in table  # what has not changed


@pytest.mark.parametrize(("flags", "said"), [
    (["--device", "cuda"], "--device is 'cuda', which cannot be used here"),
    (["--device", "mps"], "--device is 'mps'; it must be cuda, cuda:N or cpu"),
    (["--only", "decode,speed"], "--only names 'speed'; the stages are facts, kernels"),
    (["--only", ""], "--only names ''"),
    (["--diff", "nothing.json"], "nothing.json is not there or no record of this command"),
    (["--diff", "list.json"], "list.json is not there or no record of this command"),
    (["--minutes", "3"], "unrecognized arguments: --minutes 3")])  # fmt: skip
def test_what_cannot_be_is_one_line_and_exit_code_2(flags, said, tmp_path, monkeypatch, capsys):
    if torch.cuda.is_available() and "cuda" in flags:
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "list.json").write_text("[1]")
    assert gpu.main(["--out", "gpu.json", *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {said}")
    assert error.count("\n") == 1
    assert not (tmp_path / "gpu.json").exists()


class Stub:
    """As much of torch.cuda as a stage touches, on a CPU: no rules, no graph, only names and signatures."""

    def __init__(self, **options):
        assert set(options) <= {"enable_timing"}

    def record(self):
        self.at = time.perf_counter()

    def elapsed_time(self, other):
        return 1e3 * (other.at - self.at)

    def synchronize(self):
        pass

    def replay(self):
        pass

    capture_begin = capture_end = replay


class Here(gpu_kit.Kit):
    cuda, dtype = True, torch.float32


@pytest.fixture
def pretended(monkeypatch):
    """A kit that takes the CPU for a GPU, and its rows."""
    nothing = SimpleNamespace(name="a card", major=9, minor=0, total_memory=2**36, multi_processor_count=132)

    @contextlib.contextmanager
    def graph(graph):
        yield

    for name, stub in {
        "Event": Stub, "CUDAGraph": Stub, "graph": graph, "get_device_properties": lambda device: nothing,
        "mem_get_info": lambda device: (2**35, 2**36), "memory_allocated": lambda device: 2**20,
        "max_memory_allocated": lambda device: 2**30, "reset_peak_memory_stats": lambda device: None,
        "synchronize": lambda device: None, "empty_cache": lambda: None, "set_sync_debug_mode": lambda mode: None,
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, stub)
    rows = io.StringIO()
    return Here(torch.device("cpu"), True, rows, {"copy": 1e10, "matmul": 1e11}), rows


def test_lines_for_cuda_alone(pretended):
    """Of the stages' own code; what the project does there is tests/test_cuda_rules.py's."""
    kit, rows = pretended
    gpu_kit.facts(kit)
    kit.attempt("six streams", gpu_checks.flat_memory, kit, kit.model("SmolLM2-135M"), 2, 4)
    kit.attempt("train", gpu_speed.train_steps, kit, gpu_speed.add_lora(kit.model("SmolLM2-135M")), [9, 7], 32, False)
    found = {row["what"]: row for row in noted(rows)}
    assert not [row for row in found.values() if "error" in row]
    assert found["versions"]["card"] == "a card"
    assert found["launch"].keys() == {"what", "eager us", "in a graph us"}
    assert found["six streams"]["ok"]
    assert found["train"]["peak GiB"] == 1.0


def test_a_row_that_fails_is_noted_and_the_next_comes(pretended):
    kit, rows = pretended

    def full():
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    kit.attempt("too large", full)
    kit.attempt("small", lambda: ({"ms": 1.0}, None))
    first, second = noted(rows)
    assert first["error"].startswith("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB. (test_gpu_kit.py:")
    assert first["ok"] is False
    assert second == {"what": "small", "ms": 1.0}


def test_a_wrong_kernel_a_wrong_model_and_a_wrong_replay_are_found(pretended, monkeypatch):
    """The checks of the kit can fail."""
    kit, rows = pretended
    case = gpu_kernels.kernel_cases()["rms_norm"]
    kit.attempt("right", gpu_kernels.kernel, kit, torch.float32, *case)
    nan = [t.clone() if isinstance(t, torch.Tensor) else t for t in case[2]]
    nan[1][0] = float("nan")
    kit.attempt("no number", gpu_kernels.kernel, kit, torch.float32, *case[:2], tuple(nan), case[3])
    kit.attempt("wrong", gpu_kernels.kernel, kit, torch.float32, lambda x, *more: 1.001 * case[0](x, *more), *case[1:])
    true = kit.model("SmolLM2-135M")
    for layer, name in ((None, "equal"), (1, "second block")):
        there = copy.deepcopy(true)
        if layer is not None:
            there.layers[layer].mlp_norm.weight.data.mul_(1.0005)
        kit.attempt(name, gpu_checks.check_pair, kit, true, copy.deepcopy(true), there, [[1, 2, 3]], 1e-4)
    prompts, options = gpu_checks.workload(true, 3, 5)
    kit.attempt("replayed", gpu_checks.replayed, true, 2, 40, prompts, options)

    def spoiled(graphs, step, *key):
        true.norm.weight.data.neg_()
        step(*key)
        true.norm.weight.data.neg_()

    monkeypatch.setattr(gpu_checks.Graphs, "__call__", spoiled)
    kit.attempt("otherwise", gpu_checks.replayed, true, 2, 40, prompts, options)
    found = {row["what"]: row for row in noted(rows)}
    assert {name: row["ok"] for name, row in found.items()} == {
        "right": True, "no number": False, "wrong": False, "equal": True, "second block": False, "replayed": True,
        "otherwise": False}
    assert found["second block"]["first layer off"] == 1


def test_every_stage_has_room_in_the_time_there_is():
    limits = [limit for _, limit in gpu.STAGES.values()]
    assert max(limits) <= 120
    assert sum(limits) <= 60 * gpu.MINUTES + 150  # what earlier stages leave over is there for the last
