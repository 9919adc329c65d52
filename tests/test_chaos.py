"""Runs that are killed, for good, while they write: whatever moment it is, going on ends in the same bytes.

Each attempt is a process of its own, forked from this one, and SIGKILL is sent by itself at a call that makes a write
last. tests/bench/chaos.py kills the real command at any moment.
"""

import os
import signal
from pathlib import Path

import pytest
import torch
from conftest import loaded

import star.run.plan
import train
from star.run.folder import Run
from star.run.rates import measured

pytestmark = pytest.mark.usefixtures("one_thread")
ARGV = ["--digits", "1-2", "--problems", "24", "--iterations", "2", "--first-steps", "5", "--save-every", "2",
        "--heldout-problems", "8", "--validation", "8", "--slots", "24", "--temperature", "0.8", "--rank", "2",
        "--device", "cpu", "--show", "0"]
LASTING = ("fsync", "replace")  # calls after which a write is there, whatever happens


def attempt(folder: Path, kill_at: int | None, before: bool = True) -> int:
    """Begin or go on with the run in a process of its own, which is killed at its write of this number, before or
    after that. The number of its writes, or the signal that ended it, negative."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        calls, originals = [], {name: getattr(os, name) for name in LASTING}

        def counted(name):
            def call(*args, **kw):
                calls.append(name)
                if len(calls) == kill_at and before:
                    os.kill(os.getpid(), signal.SIGKILL)
                result = originals[name](*args, **kw)
                if len(calls) == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return result

            return call

        code = 99
        try:
            torch.set_num_threads(1)
            train.curves, star.run.plan.load_task = lambda path, metrics: None, loaded  # slow
            for name in LASTING:
                setattr(os, name, counted(name))
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            begun = (folder / "config.json").exists()
            code = train.main(["--resume", str(folder)] if begun else [*ARGV, "--out", str(folder)])
        finally:
            os.write(write, str(len(calls)).encode())
            os._exit(code)
    os.close(write)
    _, status = os.waitpid(child, 0)
    with os.fdopen(read) as said:
        writes = said.read()
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, writes
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else int(writes)


def contents(folder):
    """All but what says how long it took and what was typed, and the pages for people."""
    exempt = ("timings.jsonl", "config.json", ".lock", "report.html", "curves.png")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in
            exempt}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chaos") / "run"
    measured(torch.device("cpu"), torch.float32)  # once, and not in every process that is forked from here
    loaded("arithmetic", digits="1-2")
    return folder, attempt(folder, None)


@pytest.mark.parametrize("kills", [
    [0.05, 0.1, 0.3, 0.5, 0.7], [0.2, 0.35, 0.6, 0.65, 0.9], [0.02, 0.8, 0.85, 0.95, 0.99]], ids=["a", "b", "c"])
def test_five_kills_while_it_writes(straight, tmp_path, kills):
    """At these shares of its writes, counted over all attempts; every second one just after the write."""
    folder, writes = straight
    again, done = tmp_path / "run", 0
    for i, share in enumerate(kills):
        at = max(1, int(share * writes) - done)
        assert attempt(again, at, before=i % 2 == 0) == -signal.SIGKILL
        done = int(share * writes)
    attempt(again, None)
    assert contents(again) == contents(folder)
    assert Run.open(again).finished
