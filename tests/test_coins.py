"""The coin flips' experiment, without its model: who sees which coins, errors that leave the answer, runs that share a
start, the table."""

import random
import re
from pathlib import Path

import pytest
from conftest import refused

from checkpoints.files import read_json
from star.config import StarConfig
from star.experiments import coins, judge
from star.problem import Finished
from star.run.folder import Run, append, read_lines
from star.tasks import load_task


@pytest.fixture
def data(tmp_path):
    """300 coins of four people."""
    rng, lines = random.Random(0), []
    for i in range(300):
        flips = [rng.random() < 0.5 for _ in range(4)]
        acts = ("flips" if flip else "does not flip" for flip in flips)
        people = " ".join(f"P{i}{c} {act} the coin." for c, act in zip("abcd", acts, strict=True))
        lines.append({"question": f"A coin is heads up. {people} Is the coin still heads up?",
                      "answer": "no" if sum(flips) % 2 else "yes"})
    append(tmp_path / "coin_flip.jsonl", lines)
    return tmp_path / "coin_flip.jsonl"


def test_the_judge_and_the_runs_see_different_coins(data, tmp_path):
    files = coins.split(data, tmp_path)
    asked = {name: {r["question"] for r in read_lines(file)} for name, file in files.items()}
    assert (len(asked["judge"]), len(asked["run"])) == (coins.JUDGED, 300 - coins.JUDGED)
    assert not asked["judge"] & asked["run"]
    assert coins.split(data, tmp_path) == files
    few = tmp_path / "few.jsonl"
    append(few, read_lines(data)[:200])
    refused(coins.split, few, tmp_path, words=("has 200 coins", "140"))


def test_an_error_leaves_the_answer(data):
    """And the checker sees it, whichever kind it is."""
    task, rng, kinds = load_task("coin_flip", data=data), random.Random(1), set()
    for p in task.train:
        gold, text = task.gold(p), coins.spoiled(task.gold(p), rng)
        assert task.check_steps(p, gold)
        assert task.check_steps(p, text) is False
        assert task.right(p, text)
        kinds.add(text.count(". ") - gold.count(". "))
    assert kinds == {0, -1}  # a state turned, a person missing


def test_a_run_begins_where_another_had_sampled_from_the_base(tmp_path):
    """Its settings are its own; what came behind the first iteration's tries is not taken over."""
    first = Run.create(tmp_path / "a", StarConfig(select="correct+steps", wanted=5), {"x": 1}, {"dtype": "float32"})
    first.record(Finished(0, {"iteration": 0}), type("Model", (), {"device": type("Device", (), {"type": "cpu"})})())
    lines = [{"phase": phase, "chunk": 1} for phase in ("generate", "generate", "evaluate")]
    append(first.samples(0), [{"phase": "evaluate", "chunk": 1}])
    append(first.samples(1), lines)
    coins.share(tmp_path / "a", tmp_path / "b", {"select": "correct+reward", "reward": "j", "reward_threshold": 0.5})
    run = Run.open(tmp_path / "b")
    assert (run.iteration, run.finished) == (0, False)
    assert (run.config.select, run.config.wanted, run.config.reward_threshold) == ("correct+reward", None, 0.5)
    assert read_lines(run.samples(1)) == lines[:2]
    assert len(read_lines(run.samples(0))) == len(run.metrics()) == 1
    before = read_json(tmp_path / "b" / "config.json")
    coins.share(tmp_path / "a", tmp_path / "b", {})  # what is there stays
    assert read_json(tmp_path / "b" / "config.json") == before


def test_what_the_table_says(tmp_path):
    (tmp_path / "correct-0" / "samples").mkdir(parents=True)
    answers = [("yes", True), ("yes", None), ("no", False), (None, None)]
    made = [{"iteration": 1, "phase": "evaluate", "problem": str(i), "sample": 0, "seed": 0, "tokens": [], "text": "",
             "finish": "stop", "logprob": 0.0, "answer": a, "verdict": "right", "steps_right": s, "chunk": 4}
            for i, (a, s) in enumerate(answers)]
    append(tmp_path / "correct-0" / "samples" / "iter-001.jsonl", made)
    metrics = [{"iteration": 1, "accuracy": {"mean": 0.5}, "interval": {"mean": [0.4, 0.6]}, "examples": 7}]
    row = coins.table(tmp_path, {("correct", 0): metrics})[-1]
    assert re.split(r" *\| *", row)[1:-1] == ["correct", "0", "1", "50.0 (40.0-60.0)", "25.0", "2, 1, 1", "7"]


def test_without_a_model_it_says_what_it_needs(capsys, own_folder):
    assert judge.main(["--task", "coin_flip"]) == 2
    said = capsys.readouterr().err
    assert "needs --model" in said
    assert "--data" in said
    assert not list(Path().iterdir())
    assert said.count("\n") == 1
