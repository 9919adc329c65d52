"""The paper's experiment in one command: both arms, several seeds, what is run again, and what is said at the end."""

import functools
import json
import re
from pathlib import Path

import pytest
from conftest import SHIPPED
from test_arms import in_this_process

import star.run.plan
import train
from checkpoints.files import write_json
from star.experiments import addition
from star.run import launch
from star.run.flags import read_flags
from star.run.folder import read_lines
from star.tasks import load_task
from star.tasks.arithmetic import split

pytestmark = pytest.mark.usefixtures("own_folder")
SMALL = ["--iterations", "1", "--problems", "24", "--first-steps", "2", "--model", str(SHIPPED)]


def test_both_arms_over_seeds(capsys, monkeypatch):
    """A second call runs nothing again, and goes on with what was stopped."""
    task = load_task("arithmetic")
    task.train, task.heldout = task.train[::20], task.heldout[::80]
    monkeypatch.setattr(star.run.plan, "load_task", lambda *_, **__: task)
    monkeypatch.setattr(addition, "FRESH", 8)
    for name in ("Arithmetic", "fresh"):  # the same for each model that is asked, and slow to make
        monkeypatch.setattr(addition, name, functools.cache(getattr(addition, name)))
    started = in_this_process(monkeypatch)
    argv = ["--out", "made", "--seeds", "3", "4", *SMALL]
    assert addition.main(argv) == 0
    out = capsys.readouterr().out
    folders = ["made/with-3", "made/without-3", "made/with-4", "made/without-4"]
    assert [(command, argv[1]) for command, argv in started] == [(train, folder) for folder in folders]
    accuracy = [[f"{100 * m['accuracy']['mean']:.1f}" for m in read_lines(Path(folder, "metrics.jsonl"))]
                for folder in (folders[i] for i in (0, 2, 1, 3))]
    assert "| iteration | with, seed 3 | with, seed 4 | without, seed 3 | without, seed 4 |" in out
    assert re.findall(r"^\| (?:0|1) \| .* \|$", out, re.M) == [
        f"| {i} | {' | '.join(column[i] for column in accuracy)} |" for i in (0, 1)]
    assert len(re.findall(r"^(base|with.*|without.*) +3-digit +[\d.]+ .* 6-digit +0.0$", out, re.M)) == 5
    assert Path("made/curves.png").read_bytes()[:4] == b"\x89PNG"
    settings = [json.loads(Path(folder, "config.json").read_text())["settings"] for folder in folders]
    assert [(s["rationalize"], s["seed"]) for s in settings] == [(True, 3), (False, 3), (True, 4), (False, 4)]

    write_json(Path("made/with-4/state.json"), {"iteration": 0, "finished": False})
    started.clear()
    monkeypatch.setattr(addition, "check", lambda folder, iteration: {})  # asked and drawn above
    monkeypatch.setattr(addition, "draw", lambda *_: None)
    assert addition.main(argv) == 0
    assert started == [(train, ["--resume", "made/with-4"])]
    assert re.findall(r"^\| 1 \| .*", capsys.readouterr().out, re.M) == [re.findall(r"^\| 1 \| .*", out, re.M)[0]]


@pytest.mark.filterwarnings("ignore:.*since the flags contradict it")
@pytest.mark.parametrize(("argv", "words"), [
    (["--no-rationalize"], ["--rationalize: this experiment sets it itself"]), (["--seed", "3"], ["--seed: this"]),
    (["--resume", "x", "--task=columns", "--digits", "3"], ["--digits, --resume, --task: this"]),
    (["--seeds", "x"], ["--seeds", "'x'"]), (["--seeds"], ["--seeds"]),
    (["--heldout-when", "best"], ["--heldout-when: this"]),
    (["--no-such-flag"], ["unrecognized arguments: --no-such-flag"]), (["--preset", "modern"], ["patience"]),
])
def test_what_the_experiment_refuses(capsys, monkeypatch, argv, words):
    monkeypatch.setattr(launch, "call", lambda argv: pytest.fail("it was started"))
    assert addition.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert all(word in err for word in words), err


def test_what_a_run_refuses_ends_it(capsys, monkeypatch):
    started = in_this_process(monkeypatch)
    assert addition.main(["--model", "nowhere"]) == 2
    assert "error: no model folder" in capsys.readouterr().err
    assert len(started) == 1


@pytest.mark.filterwarnings("ignore:.*since the flags contradict it")
def test_a_preset_is_measured_after_each_iteration(monkeypatch):
    """The curves need it; what else stands in the file holds, but for the task."""
    seen = []
    monkeypatch.setattr(launch, "call", lambda argv: seen.append(read_flags(argv[1:], "")[0]) or 3)
    assert addition.main(["--preset", "paper", "--seeds", "5"]) == 3
    assert seen[0].settings["heldout_when"] == "each"
    assert (seen[0].settings["growth"], seen[0].settings["seed"]) == (1.2, 5)
    assert addition.main(["--preset", "smollm2-addition", "--model", "m"]) == 3
    assert (seen[1].settings["task"], seen[1].options) == ("arithmetic", {"digits": "1-5"})


def test_the_table_has_a_column_for_each_arm_and_seed():
    """All seeds of an arm stand beside each other, whatever order they ran in."""
    shares = {("with", 3): 0.5, ("without", 3): 0.1, ("with", 4): 0.6, ("without", 4): 0.2}
    metrics = {key: [{"iteration": i, "accuracy": {"mean": s + i / 100}} for i in (0, 1)] for key, s in shares.items()}
    assert addition.table(metrics, [3, 4]) == [
        "| iteration | with, seed 3 | with, seed 4 | without, seed 3 | without, seed 4 |", "|---|---|---|---|---|",
        "| 0 | 50.0 | 60.0 | 10.0 | 20.0 |", "| 1 | 51.0 | 61.0 | 11.0 | 21.0 |"]


def test_fresh_sums_are_fresh():
    for n in (3, 5):
        known = {p.id for part in split(n) for p in part}
        made = addition.fresh(n)
        assert len({p.id for p in made}) == 1000
        assert not known & {p.id for p in made}
        assert {p.group for p in made} == {f"{n}-digit"}
