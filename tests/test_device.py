"""Which device is taken, in which dtype, and what is said of one that is not there or fails."""


import pytest
import torch
from conftest import SHIPPED, refused
from pretended_cuda import Graph, pretended

import checkpoints
import star.run.plan
import train
from checkpoints.files import read_json
from star.config import StarConfig
from star.device import choose_device, choose_dtype
from star.run.models import outline, recast

SMALL = ["--iterations", "1", "--problems", "12", "--first-steps", "1", "--batch-size", "4", "--slots", "4",
         "--max-new-tokens", "40", "--heldout-problems", "4", "--show", "0", "--digits", "1-2"]  # fmt: skip


@pytest.mark.parametrize(("name", "words"), [
    ("abacus", ["is no device", "auto, cpu, cuda"]), ("cuda:x", ["is no device"]), ("", ["is no device"]),
    ("mps", ["is not supported"]), ("meta", ["is not supported"]), ("xpu:0", ["is not supported"]),
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
