"""Thirty iterations hold as much memory as five: nothing that an iteration made is kept behind it."""

import gc
import os
from collections import Counter
from pathlib import Path

import pytest
import torch
from conftest import SHIPPED

import checkpoints
from star.config import StarConfig
from star.loop import star
from star.lora import add_lora
from star.problem import Finished, Generation
from star.run.folder import Run
from star.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")
FIRST, LAST = 5, 30  # iterations
SHARE = 0.02


def held() -> tuple[int, Counter]:
    """(bytes in memory now, how many tensors and generations are alive)"""
    gc.collect()
    alive = Counter(kind.__name__ for o in gc.get_objects() for kind in (torch.Tensor, Generation)
                    if issubclass(type(o), kind))  # not isinstance: lazy modules would import themselves
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"), alive


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what a process holds")
def test_thirty_iterations_hold_no_more_than_five(tmp_path, tokenizer, arithmetic):
    """Sampled, trained, measured and written down; by what the process has, and by what is alive in it."""
    task = type(arithmetic)([1])
    model = add_lora(checkpoints.load_model(SHIPPED), rank=2)
    config = StarConfig(iterations=LAST, problems=4, heldout_problems=1, first_steps=1, growth=1.0, batch_size=2,
                        max_new_tokens=14, slots=4)
    run, found = Run.create(tmp_path / "run", config, {}, {}), {}
    for event in star(Sampler(model, 4, 32, tokenizer), tokenizer, task, config):
        run.record(event, model)
        if isinstance(event, Finished) and event.iteration in (FIRST, LAST):
            found[event.iteration] = held()
    run.close()
    (before, alive), (after, later) = found[FIRST], found[LAST]
    assert later == alive
    assert after < before * (1 + SHARE), f"{before:,} bytes after {FIRST} iterations, {after:,} after {LAST}"
