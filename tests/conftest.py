"""What several tests need: tiny random decoders, the model that ships, and lines that the summary prints.

The whole suite runs in two processes where pytest-xdist is there; some files, or `-n 0`, run in one.
"""

import copy
import functools
import gc
import os
import signal
import subprocess
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import checkpoints
import star.run.plan
import train
from star.decoder import Decoder, DecoderConfig, Linear, Norm
from star.lora import add_lora, lora_modules
from star.tasks import load_task

os.fsync = lambda fd: None  # tests end processes, not machines, and a disk takes milliseconds for each
gc.freeze()  # what torch and the others brought along need not be looked through at each collection
ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
SHIPPED = ROOT / "checkpoints" / "tiny-adder"
REPORT: list[str] = []


@functools.cache
def sums(**options):
    return load_task("arithmetic", **options)


def loaded(name: str, **options):
    """As load_task; the shipped task is made once: it has 38,800 problems, which are looked at one by one."""
    return copy.copy(sums(**options)) if name == "arithmetic" else load_task(name, **options)


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Commands write runs/ where they stand: they stand in a folder of their own. Their SIGINT handler is undone, and
    no curves are drawn, which takes a third of a second: test_plots does, and runs that are processes of their own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(train, "curves", lambda path, metrics: path.write_bytes(b"\x89PNG"))
    monkeypatch.setattr(star.run.plan, "load_task", loaded)
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def random_decoder(seed: int = 0, dtype: torch.dtype = torch.float64, **fields) -> Decoder:
    """A decoder with random weights, norms and biases included."""
    small = {"vocab": 23, "d_model": 24, "n_layers": 2, "n_heads": 4, "n_kv": 2, "head_dim": 6, "d_ff": 20}
    model = Decoder(DecoderConfig(**small | fields)).to(dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Linear | Norm):
                width = module.weight.shape[-1] ** 0.5 if isinstance(module, Linear) else 4.0
                for p in module.parameters(recurse=False):
                    p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / width)
                if isinstance(module, Norm) and not module.plus_one:
                    module.weight += 1
    return model


def stirred(model: Decoder, rank: int = 3, alpha: float = 6, **kw) -> Decoder:
    """The model with adapters that do something."""
    add_lora(model, rank=rank, alpha=alpha, **kw)
    with torch.no_grad():
        for i, (_, module) in enumerate(lora_modules(model)):
            for B in module.B:
                B.normal_(generator=torch.Generator().manual_seed(i))
    return model


def refused(call: Callable, *args, words: tuple[str, ...] = (), error=ValueError) -> str:
    """What a call says when it refuses: one line that holds these words."""
    with pytest.raises(error) as caught:
        call(*args)
    said = str(caught.value)
    assert "\n" not in said
    assert all(word in said for word in words), said
    return said


def stopped(argv: list[str], wait_for: str, stop: Callable[[subprocess.Popen], None], **how) -> tuple[int, str]:
    """Run a command whose stderr is a terminal, where progress bars are drawn, and stop it as soon as its output shows
    `wait_for`: (exit code, output)."""
    log, (ours, terminal) = bytearray(), os.openpty()
    termios.tcsetwinsize(terminal, (24, 120))  # a bar needs room
    with subprocess.Popen(argv, stdout=terminal, stderr=terminal, **how) as process:
        os.close(terminal)
        sent, deadline = None, time.monotonic() + 60
        while time.monotonic() < deadline:
            if sent is None and wait_for.encode() in log:
                stop(process)
                sent, deadline = time.monotonic(), time.monotonic() + 30
            try:
                log += os.read(ours, 1 << 16)
            except OSError:  # its end
                break
        code = process.wait(timeout=30)
    os.close(ours)
    text = log.decode(errors="replace").replace("\r\n", "\n")
    assert sent is not None, text
    assert time.monotonic() - sent < 5, text
    return code, text


@pytest.fixture(scope="module")
def one_thread():
    """For many small tensors: two threads wait for each other more than they help."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def shipped():
    return checkpoints.load_model(SHIPPED)


@pytest.fixture(scope="session")
def tokenizer():
    return checkpoints.load_tokenizer(SHIPPED)


@pytest.fixture(scope="session")
def arithmetic():
    return load_task("arithmetic")


@pytest.fixture(scope="session")
def report() -> Callable[[str], None]:
    """Say a line in the summary: measurements that are no pass or fail."""
    return REPORT.append


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    """Two processes of one thread each take half the time; who names files or tests, or wants a debugger, gets one."""
    here, o = config.pluginmanager.hasplugin("xdist") and not hasattr(config, "workerinput"), config.option
    whole = all(map(os.path.isdir, config.args)) and not (o.keyword or o.usepdb or o.collectonly)
    if here and whole and o.numprocesses is None and o.dist == "no":
        o.numprocesses, o.dist = 2, "worksteal"
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes inherit it, and what they start


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["report"] = REPORT


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    """One of the processes has ended: what it has to say belongs into the summary."""
    REPORT.extend(getattr(node, "workeroutput", {}).get("report", ()))


def pytest_terminal_summary(terminalreporter):
    for line in REPORT:
        terminalreporter.write_line(line)
