"""Lines of metrics and timings that no run writes are named; those that runs write are let through, new fields too."""

from pathlib import Path

import pytest
from conftest import refused
from test_history import made

from star.evaluate import counts
from star.run.measured import KEPT, measured

SHARES = {"a": 0.1, "mean": 0.1}
BASE = {"iteration": 0, "accuracy": SHARES, "interval": {"a": [0.0, 0.3], "mean": [0.0, 0.3]}, "said": {"right": 2}}
NEXT = BASE | {"iteration": 1, "examples": 3, "loss": 0.5, "best": 1, **counts([made(1, "generate", "p", "right")], [])}
TIMED = {"iteration": 0, "seconds": {"train": 1.5}, "tokens": {"sampled": 3}, "sampled_tokens_per_s": 2,
         "trained_tokens_per_s": 0, "use": {"sampling": {"matmul": 0.1}}, "rates": None}


def test_what_a_run_writes_passes():
    assert set(KEPT) <= NEXT.keys()
    for lines in ([], [BASE], [BASE, NEXT], [BASE, NEXT | {"iteration": 3, "new": [None]}], [TIMED],
                  [{"iteration": 0, "reward": {"mean": 1.5}}]):
        assert measured(lines, Path("m.jsonl")) == lines


@pytest.mark.parametrize(("second", "words"), [
    ([], "line 2 is []"), ({}, "line 2 is {}"), (NEXT | {"iteration": True}, "with an iteration"),
    (NEXT | {"iteration": -1}, "with an iteration"), (BASE, "is of iteration 0, which does not follow 0"),
    (NEXT | {"accuracy": 0.5}, '"accuracy" is 0.5'), (NEXT | {"accuracy": {"a": 0.1}}, '"accuracy" is'),
    (NEXT | {"accuracy": {"a": None, "mean": 0.1}}, '"accuracy" is'),
    (NEXT | {"accuracy": SHARES | {"b": 1}}, "other groups than the lines before"),
    (NEXT | {"interval": {"mean": [0, 1], "a": [0]}}, '"interval" is'), (NEXT | {"kept": 1.5}, '"kept" is 1.5'),
    (NEXT | {"dropped": {"wrong": "x"}}, '"dropped" is'), (NEXT | {"best": 10**30}, '"best" is 1000'),
    (NEXT | {"mean_tokens": float("nan")}, '"mean_tokens" is NaN'),
    ({k: v for k, v in NEXT.items() if k not in ("tries", "solved")}, "lacks tries, solved"),
    ({k: v for k, v in NEXT.items() if k != "interval"}, "lacks interval"),
    (NEXT | {"sources": {"x": {"tried": 1}}}, '"sources" is'), (NEXT | {"judge": None}, '"judge" is null'),
    (TIMED | {"iteration": 1, "seconds": {"train": "1"}}, '"seconds" is'),
    ({k: v for k, v in (TIMED | {"iteration": 1}).items() if k != "tokens"}, "lacks tokens")])
def test_what_no_run_writes_is_named(second, words):
    refused(measured, [BASE, second], Path("m.jsonl"), words=("m.jsonl, line 2", words))
