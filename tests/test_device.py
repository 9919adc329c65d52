"""Which device is taken, in which dtype, and what is said of one that is not there or fails."""


import pytest
import torch
from conftest import SHIPPED, refused
from pretended_cuda import Graph, pretended

import checkpoints
import checkpoints.weights
import star.run.plan
import train
from checkpoints.files import read_json
from star import proof
from star.config import StarConfig
from star.device import (
    choose_device,
    choose_dtype,
    device_name,
    failure,
    free_memory,
    let_go,
    out_of_memory,
    widest,
)
from star.draws import gumbel, truncate
from star.run.memory import Lengths, memory
from star.run.models import outline, recast
from star.run.others import plan_judge

SMALL = ["--iterations", "1", "--problems", "12", "--first-steps", "1", "--batch-size", "4", "--slots", "4",
         "--max-new-tokens", "40", "--heldout-problems", "4", "--show", "0", "--digits", "1-2"]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [
    ("abacus", ["is no device", "auto, cpu, cuda"]), ("cuda:x", ["is no device"]), ("", ["is no device"]),
    ("meta", ["is not supported"]), ("xpu:0", ["is not supported"]),
    ("hip", ["is not supported: give auto, cpu, cuda (an AMD card too)"]), ("rocm", ["is no device", "an AMD card"]),
    ("mps", ["this torch was built without MPS"]),
    ("cuda:2", ["cannot be used here: torch sees 2 CUDA devices, the last is cuda:1", "--device cpu can"]),
])
def test_devices_that_are_not_there(name, words):
    with pretended(devices=2):
        refused(choose_device, name, words=(f"--device is {name!r}", *words))


@pytest.mark.parametrize(("devices", "built", "words"), [
    (1, "13.0", "torch sees 1 CUDA device, the last is cuda:0;"), (0, "13.0", "torch sees no CUDA device"),
    (0, None, "this torch was built without CUDA")])
def test_why_there_is_no_cuda(devices, built, words, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", built)
    with pretended(devices=devices):
        refused(choose_device, "cuda:1" if devices else "cuda", words=(words,))


def test_ranks_of_a_host_take_a_device_each(monkeypatch):
    """And a share of the host's memory, if that is all they have."""
    alone = free_memory(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    assert free_memory(torch.device("cpu")) == pytest.approx(alone, rel=0.1)  # of no ranks at all
    monkeypatch.setenv("WORLD_SIZE", "6")
    assert free_memory(torch.device("cpu")) == pytest.approx(alone / 3, rel=0.1)
    with pretended(devices=2):
        for rank, name in (("0", "auto"), ("1", "cuda"), ("1", "auto")):
            monkeypatch.setenv("LOCAL_RANK", rank)
            assert choose_device(name) == torch.device("cuda", int(rank))
        refused(choose_device, "cuda:1", words=("it is one device, for 3 ranks of this host: give cuda",))
        monkeypatch.setenv("LOCAL_RANK", "2")
        refused(choose_device, "cuda", words=("torch sees 2 CUDA devices, the last is cuda:1, and 3 ranks of this host "
                                              "want one each: lower --nproc-per-node",))


def test_a_device_that_is_there_becomes_the_current_one(monkeypatch):
    said = []
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp", said.append)
    for name, index in (("auto", 0), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1)):
        with pretended(devices=2) as cuda:
            assert choose_device(name) == torch.device("cuda", index)
            assert cuda.current == index
    assert said == [False] * 4  # its attention plans for every new shape
    with pretended(devices=0):
        assert choose_device("auto") == torch.device("cpu")
    assert choose_device("cpu") == choose_device("cpu:0") == torch.device("cpu")


def test_an_apple_gpu_is_taken_where_there_is_no_cuda(monkeypatch):
    with pretended(kind="mps"):
        assert choose_device("auto") == choose_device("mps") == choose_device("mps:0") == torch.device("mps", 0)
        assert choose_device("cpu") == torch.device("cpu")
        refused(choose_device, "mps:1", words=("there is one MPS device, mps;", "--device cpu can"))
        refused(choose_device, "cuda", words=("'cuda', which cannot be used here: ", "--device cpu can"))
    with pretended(kind="mps", devices=0):
        assert choose_device("auto") == torch.device("cpu")
        refused(choose_device, "mps", words=("torch sees no Apple GPU that it can use; --device cpu can",))


@pytest.mark.parametrize("kind", ["hip", "mps"])
@pytest.mark.parametrize("part", proof.PARTS)
def test_a_device_of_a_kind_that_we_have_not_proves_itself(kind, part, monkeypatch):
    """It is refused for any part that it computes otherwise; NVIDIA's are measured by tests/bench/gpu.py instead."""
    def spoilt(device, right=proof.PARTS[part]):
        yield from (t if device.type == "cpu" else t + (torch.arange(t.numel(), device=t.device).view(t.shape) == 1)
                    for t in right(device))

    with pretended(kind=kind):
        assert choose_device("auto").type == ("cuda" if kind == "hip" else "mps")
        proof.wrong.cache_clear()
        monkeypatch.setitem(proof.PARTS, part, spoilt)
        refused(choose_device, "auto", words=(f"with torch {torch.__version__} {part} ", "what a CPU computes; --dev"))
    with pretended():
        choose_device("cuda")


def test_what_a_device_lacks_is_said(monkeypatch):
    def lacks(device):
        raise NotImplementedError("The operator 'aten::foo' is not currently implemented for the MPS device. If")

    with pretended(kind="mps"):
        monkeypatch.setitem(proof.PARTS, "a draw", lacks)
        refused(choose_device, "mps", words=("aten::foo", "--device cpu can"))


def test_no_draw_of_the_proof_is_a_near_tie():
    """Another order of additions must not fail a device: winners lead by a margin, and so do cuts by top-p."""
    logits, seeds = proof.LOGITS, torch.arange(6)[:, None]
    noise = gumbel(seeds, torch.full((6, 1), 3), torch.arange(290))
    for kept in (truncate(logits[:, :290] / 0.7, k, p) for k, p in ((0, 1.0), (20, 1.0), (20, 0.8))):
        best, second = (kept + noise).topk(2).values.unbind(1)
        assert (best - second).min() > 1e-2
    share = truncate(logits[:, :290] / 0.7, 20, 1.0).sort(descending=True).values.softmax(-1)
    assert (share.cumsum(-1) - share - 0.8).abs().min() > 1e-4


@pytest.mark.parametrize("says", ["CUDA error: CUDA-capable device(s) is/are busy or unavailable\nmore",
                                  "CUDA error: no kernel image is available for execution on the device\nmore"])
def test_a_device_that_cannot_be_used(says, monkeypatch):
    def fails(*_):
        raise torch.AcceleratorError(says)

    with pretended():
        monkeypatch.setattr(torch.cuda, "set_device", fails)
        refused(choose_device, "auto", words=(says.split("\n")[0], "--device cpu can"))


@pytest.mark.parametrize(("version", "old"), [
    ("2.10.1+cpu", True), ("1.13.0", True), ("2.9.0a0+git", True), ("2.11.0a0+nv26.3", False), ("2.11.0", False),
    ("2.13.0+cpu", False), ("3.0.0", False)])
def test_an_old_torch_is_named(version, old, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    if old:
        refused(choose_device, "cpu", words=(f"torch is {version}", "2.11 is needed", "pip install 'torch>=2.11'"))
    else:
        choose_device("cpu")


@pytest.mark.parametrize(("has", "stored", "computed"), [
    (True, torch.bfloat16, torch.bfloat16), (True, torch.float16, torch.bfloat16), (True, torch.float32, torch.float32),
    (False, torch.bfloat16, torch.float32), (False, torch.float16, torch.float32)])
def test_dtypes(has, stored, computed, monkeypatch):
    with pretended():
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: has)
        assert choose_dtype(torch.device("cuda:0"), stored) == computed
    assert choose_dtype(torch.device("cpu"), stored) == torch.float32


def test_what_an_apple_gpu_computes_in(monkeypatch):
    mps = torch.device("mps", 0)
    with pretended(kind="mps"):
        for new in (True, False):  # bfloat16 came with macOS 14
            monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *version, new=new: new)
            assert choose_dtype(mps, torch.float16) == (torch.bfloat16 if new else torch.float32)
            assert choose_dtype(mps, torch.float64) == torch.float32
        words = ("an Apple GPU (mps) has no float64: take --dtype float32, or --device cpu",)
        refused(star.run.plan.make_plan, StarConfig(device="mps", dtype="float64"), {}, words=words)
        refused(checkpoints.load_model, SHIPPED, mps, "float64", words=words)
        judge = checkpoints.SHIPPED.parent / "tiny-judge"
        refused(plan_judge, judge, StarConfig(reward=str(judge), dtype="float64"), mps, words=words)
    assert (widest(mps), widest(torch.device("cpu"))) == (torch.float32, torch.float64)


def test_free_memory_is_asked_of_each_kind(monkeypatch):
    with pretended(free=5000, kind="mps"):
        monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2000)
        assert free_memory(torch.device("mps", 0)) == 3000
        monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 9000)  # may be more than Apple recommends
        assert free_memory(torch.device("mps", 0)) == 0
        assert device_name(torch.device("mps", 0)) == "pretended"
    for kind in ("cuda", "hip"):
        with pretended(free=5000, kind=kind):
            monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 700)
            assert free_memory(torch.device("cuda", 0)) == 5700
    assert device_name(torch.device("cpu")) is None


def test_emptied_caches_are_those_of_the_device(monkeypatch):
    freed = []
    for kind in ("cuda", "hip", "mps"):
        with pretended(kind=kind):
            of = torch.mps if kind == "mps" else torch.cuda
            monkeypatch.setattr(of, "empty_cache", lambda kind=kind: freed.append(kind))
            let_go(choose_device("auto"))
    let_go(torch.device("cpu"))
    assert freed == ["cuda", "hip", "mps"]


@pytest.mark.parametrize(("error", "full"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), True), (MemoryError(), True),
    (torch.OutOfMemoryError("HIP out of memory. Tried to allocate 2 GiB"), True),
    (RuntimeError("MPS backend out of memory (MPS allocated: 9.06 GiB, other allocations: 1 GiB)"), True),
    (RuntimeError("Invalid buffer size: 19.38 GiB"), True),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
    (torch.AcceleratorError("CUDA error: out of memory\nCompile with"), True),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
    (RuntimeError("CUDA error: HIPBLAS_STATUS_ALLOC_FAILED when calling `hipblasCreate(handle)`"), True),
    (RuntimeError("The size of tensor a (3) must match"), False), (ValueError("out of memory"), False)])
def test_memory_that_runs_out_has_many_words(error, full):
    assert out_of_memory(error) == full


@pytest.mark.parametrize(("kind", "error", "says"), [
    ("cuda", torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile"),
     "the device failed (CUDA error: unspecified launch failure): look at it with nvidia-smi"),
    ("hip", torch.AcceleratorError("HIP error: invalid device function\nHIP kernel errors might be"),
     "the device failed (HIP error: invalid device function): look at it with rocm-smi"),
    ("hip", RuntimeError("HIP error: the operation cannot be performed"), "the device failed (HIP error: the operation "
     "cannot be performed): look at it with rocm-smi"),
    ("mps", torch.AcceleratorError("index 9 is out of bounds"), "the device failed (index 9 is out of bounds)"),
    ("mps", NotImplementedError("The operator 'aten::foo' is not currently implemented for the MPS device."),
     "this torch lacks an operation (The operator 'aten::foo' is not currently implemented for the MPS device.): take "
     "--device cpu, or set PYTORCH_ENABLE_MPS_FALLBACK=1"),
    ("mps", NotImplementedError("a method"), None), ("cuda", RuntimeError("shapes"), None)])
def test_what_is_said_of_a_device_that_failed(kind, error, says):
    with pretended(kind=kind):
        assert failure(error) == says


def test_one_thread_reads_weights_onto_an_apple_gpu(monkeypatch):
    threads = []
    pool = checkpoints.weights.ThreadPoolExecutor
    monkeypatch.setattr(checkpoints.weights, "ThreadPoolExecutor", lambda n: threads.append(n) or pool(n))
    for kind in ("mps", "cuda"):
        with pretended(kind=kind):
            assert checkpoints.load_model(SHIPPED, choose_device("auto")).device.type == kind
    assert threads[0] == 1 < threads[1]


def test_scores_are_counted_where_attention_has_no_kernel():
    """On an Apple GPU and on an AMD card, which may have one, training holds them all."""
    model = checkpoints.outline(SHIPPED, "bfloat16")
    config, found = StarConfig(batch_size=8, micro_tokens=1024, slots=8), {}
    for kind in ("cuda", "hip", "mps"):
        with pretended(kind=kind):
            found[kind] = memory(model, config, Lengths(500, 100), 500, 8, choose_device("auto"))
    scores = (2 + 4) * model.config.n_heads * model.config.n_layers * 1024 * 1000  # in both dtypes
    assert found["hip"] == found["mps"]
    assert 0.8 * scores < found["mps"].training - found["cuda"].training < scores
    assert found["mps"].sampling > found["cuda"].sampling


def test_a_float16_checkpoint_on_a_gpu_is_told(tmp_path):
    for dtype in ("float16", "bfloat16"):
        model = checkpoints.load_model(SHIPPED, dtype=dtype)
        checkpoints.export_merged(model, tmp_path / dtype)
    with pretended():
        cuda = torch.device("cuda:0")
        for dtype, settings, notes in (("float16", {}, 1), ("bfloat16", {}, 0), ("float16", {"dtype": "float32"}, 0),
                                       ("float16", {"dtype": "bfloat16"}, 0)):
            config, folder = StarConfig(model=str(tmp_path / dtype), **settings), tmp_path / dtype
            model = outline(folder, config, cuda)
            assert model.dtype == (torch.float32 if settings.get("dtype") == "float32" else torch.bfloat16)
            said = recast(folder, config, model)
            assert len(said) == notes
            assert all("float16 is stored in float16 and computes in bfloat16" in note for note in said)
        config = StarConfig(model=str(tmp_path / "float16"), device="cuda")
        for asked in (config, StarConfig(device="cuda", generators=str(tmp_path / "float16"))):
            assert sum("computes in bfloat16" in note for note in star.run.plan.make_plan(asked, {}).notes) == 1
    folder, config = tmp_path / "float16", StarConfig(model=str(tmp_path / "float16"))
    assert recast(folder, config, outline(folder, config, torch.device("cpu"))) == []


@pytest.mark.parametrize(("error", "words"), [
    (torch.AcceleratorError("CUDA error: unspecified launch failure\nCompile with ..."),
     "the device failed (CUDA error: unspecified launch failure)"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when ..."), "the device failed (CUDA error: CUBLAS"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "memory is full: lower --slots where it sampled"),
])  # fmt: skip
def test_a_device_that_vanishes_in_the_middle(error, words, tmp_path, own_folder, capsys, monkeypatch):
    def fails(_):
        raise error

    with pretended():
        monkeypatch.setattr(Graph, "replay", fails)
        code = train.main([*SMALL, "--device", "cuda", "--out", "run"])
    err = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert code == 2
    assert len(err) == 1
    assert words in err[0]
    assert err[0].endswith("(in iteration 0, evaluate; go on with: python train.py --resume run)")


def test_what_was_chosen_for_a_gpu_is_written_down_and_obeyed(tmp_path, own_folder, capsys, monkeypatch):
    with pretended():
        assert train.main([*SMALL, "--device", "cuda", "--out", "run", "--iterations", "0"]) == 0
        assert read_json(tmp_path / "run" / "config.json")["settings"]["micro_tokens"] == 8192
        seen = []
        monkeypatch.setattr(train, "build", lambda plan: seen.append(plan.config.micro_tokens) or 1 / 0)
        for more, tokens in (([], 8192), (["--micro-tokens", "2048"], 2048)):
            with pytest.raises(ZeroDivisionError):
                train.main(["--resume", "run", "--iterations", "1", *more])
            assert seen.pop() == tokens
