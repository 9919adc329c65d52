"""STaR beside its baselines: what each arm is run with, that nothing is run twice, and what the table says."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHIPPED, stopped
from test_loop import Riddles

import star.run.plan
import train
from checkpoints.files import write_json
from star.config import StarConfig
from star.experiments import arms, baseline
from star.experiments.arms import settings
from star.run import launch
from star.run.flags import as_flags, preset_names, read_flags, read_preset
from star.run.folder import append, read_lines

RUNS = ("with", "without", "answers", "gold")
pytestmark = pytest.mark.usefixtures("own_folder")
SMALL = ["--model", str(SHIPPED), "--problems", "30", "--iterations", "2", "--first-steps", "4", "--batch-size", "8",
         "--heldout-problems", "12"]  # fmt: skip
GIVEN = [
    {},
    {"model": "/m", "seed": 3, "lr": 1e-4, "chat": True, "heldout_problems": 9, "few_shot_train": True, "merge": False},
    {"samples": 4, "temperature": 0.7, "top_k": 9, "top_p": 0.9, "max_per_problem": 3, "keep": "all", "wanted": 50},
    {"temperature": 0.5, "hint_samples": 2, "max_per_problem": 2},
    {"validation": 20, "patience": 2, "heldout_when": "best", "eval_samples": 4, "temperature": 0.9},
    {"epochs": 1.5, "iterations": 3},
    {"rationalize": False, "dedup": False},
    *(read_preset(name)[1] for name in preset_names()),
]
OPTIONS = ("digits", "shots")


def read(argv, more=lambda parser: parser.add_argument("--learn")):
    return read_flags(argv, "", more)


def in_this_process(monkeypatch):
    """Runs are not processes of their own, for a while. The command lines that were started: (command, arguments)."""
    seen = []

    def call(argv):
        command, argv = (baseline, argv[2:]) if argv[:2] == launch.BASELINE else (train, argv[1:])
        seen.append((command, argv))
        return command.main(argv)

    monkeypatch.setattr(launch, "call", call)
    return seen


@pytest.fixture
def started(monkeypatch):
    return in_this_process(monkeypatch)


def faked(monkeypatch, outcome):
    """Runs that only write down what outcome(settings) says: (exit code, metrics). Their command lines."""
    seen = []

    def call(argv):
        argv = argv[2:] if argv[:2] == launch.BASELINE else argv[1:]
        seen.append(argv)
        flags, _ = read(argv)
        folder = flags.resume or flags.out
        code, metrics = outcome(flags.settings)
        if metrics:
            (folder / "samples").mkdir(parents=True, exist_ok=True)
            append(folder / "metrics.jsonl", metrics)
            write_json(folder / "state.json", {"iteration": metrics[-1]["iteration"], "finished": code == 0})
        return code

    monkeypatch.setattr(launch, "call", call)
    return seen


def measured(iteration, share, **more):
    said = {"right": 7, "wrong": 5, "unparsed": 3, "length": 1, "leak": 0}
    return {"iteration": iteration, "accuracy": {"mean": share}, "interval": {"mean": [share - 0.05, share + 0.05]},
            "said": said, **more}


def table(out):
    """The table's lines by the name of their arm."""
    lines = out.partition("|---|---|---|---|\n")[2].splitlines()
    return {line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[2:-1]] for line in lines}


# what an arm is


@pytest.mark.parametrize("given", GIVEN)
@pytest.mark.parametrize("run", RUNS)
def test_each_arm_can_be_run(run, given):
    """Whatever the arms share, each is valid, and as flags it is the same again."""
    given = {k: v for k, v in given.items() if k not in OPTIONS}
    chosen = settings(run, given)
    StarConfig(**chosen)
    argv = as_flags(chosen)
    assert read(argv)[0].settings == {k: str(Path(v).absolute()) if k == "model" else v for k, v in chosen.items()}
    kept = {"task", "model", "seed", "lr", "chat", "heldout_problems", "few_shot_sample", "few_shot_train",
            "validation", "eval_samples", "epochs", "dtype", "merge"}  # what all are measured by, and trained with
    assert all(chosen[name] == given[name] for name in kept & set(given))
    if "eval_samples" in given:
        assert StarConfig(**chosen).sampling("pass at k") == StarConfig(**given).sampling("pass at k")


@pytest.mark.parametrize("given", GIVEN)
def test_star_with_and_without_differ_in_the_hint(given):
    given = {k: v for k, v in given.items() if k not in OPTIONS}
    assert settings("with", given) == given | {"rationalize": True}
    without = settings("without", given)
    meant_for_hints = {"hint_samples"} | ({"max_per_problem"} if "hint_samples" in given else set())
    assert without == {k: v for k, v in given.items() if k not in meant_for_hints} | {"rationalize": False}


@pytest.mark.parametrize("run", ["answers", "gold"])
def test_fine_tuned_arms_train_once_as_long_as_the_last_iteration(run):
    given = {"first_steps": 40, "growth": 1.2, "iterations": 5, "samples": 4, "temperature": 1.0, "hint_samples": 2}
    chosen = settings(run, given)
    assert chosen == {"first_steps": 82, "growth": 1.0, "iterations": 1, "temperature": 1.0}  # that of pass@k
    assert settings(run, {"epochs": 3.0, "iterations": 5}) == {"epochs": 3.0, "iterations": 1}
    assert StarConfig(**settings(run, {})).steps(1, 99) == StarConfig().steps(StarConfig().iterations, 99)


# the table


def test_table_of_the_tiny_adder(started, capsys):
    names = ["few-shot", "gold", "without", "with", "answers", "direct"]
    argv = ["--arms", *names, "--digits", "3", *SMALL, "--out", "made", "--show", "0"]
    assert arms.main(argv) == 0
    out = capsys.readouterr().out
    assert [(command, argv[1]) for command, argv in started] == [
        (train, "made/with"), (baseline, "made/gold"), (train, "made/without"), (baseline, "made/answers")]
    assert all(argv[-2:] == ["--show", "0"] for _, argv in started)
    lines = table(out)
    assert list(lines) == ["few-shot, rationales", "fine-tuned on human rationales",
                           "STaR without rationalization, iteration 2", "STaR, iteration 2", "fine-tuned on answers",
                           "few-shot, direct"]
    metrics = {run: read_lines(Path("made", run, "metrics.jsonl")) for run in RUNS}
    of = {"few-shot, rationales": ("with", 0), "fine-tuned on human rationales": ("gold", 1),
          "STaR without rationalization, iteration 2": ("without", 2), "STaR, iteration 2": ("with", 2),
          "fine-tuned on answers": ("answers", 1), "few-shot, direct": ("answers", 0)}
    for name, (accuracy, used, hinted) in lines.items():
        run, i = of[name]
        m = metrics[run][i]
        share, low, high = (f"{100 * v:.1f}" for v in (m["accuracy"]["mean"], *m["interval"]["mean"]))
        said = ", ".join(f"{m['said'][verdict]} {verdict}" for verdict in ("wrong", "unparsed", "length"))
        assert accuracy == f"{share} ({low}-{high}), {said}"
        if i == 0:
            assert (used, hinted) == ("0", "")
        elif run in ("gold", "answers"):
            assert (used, hinted) == ("100", "")
            assert m["steps"] == metrics["with"][2]["steps"] == 5
        else:
            assert used == f"{100 * m['solved'] / 30:.1f}"
            assert hinted == f"{100 * m['rationalized_problems'] / 30:.1f}"
    assert float(lines["STaR, iteration 2"][2]) > 0 == float(lines["STaR without rationalization, iteration 2"][2])
    assert metrics["with"][0]["accuracy"] == metrics["gold"][0]["accuracy"]  # one base, the same problems

    write_json(Path("made/gold/state.json"), {"iteration": 0, "finished": False})
    started.clear()
    capsys.readouterr()
    assert arms.main(argv) == 0
    assert started == [(baseline, ["--resume", "made/gold", "--show", "0"])]
    assert table(capsys.readouterr().out) == lines


def test_an_arm_that_cannot_be_run_leaves_its_reason(started, capsys, monkeypatch):
    """A task without human rationales and without a form for answers alone; the others go on."""
    task = Riddles(20)
    monkeypatch.setattr(star.run.plan, "load_task", lambda *_, **__: task)
    argv = [*SMALL, "--out", "made", "--show", "0", "--max-new-tokens", "30"]
    assert arms.main(["--arms", "gold", "answers", "direct", "without", *argv]) == 0
    said = capsys.readouterr()
    lines = table(said.out)
    assert lines["fine-tuned on human rationales"] == ["refused, see above", "", ""]
    assert lines["fine-tuned on answers"] == lines["few-shot, direct"] == ["refused, see above", "", ""]
    assert lines["STaR without rationalization, iteration 2"][1] != "0"
    assert "error: --learn gold needs human rationales" in said.err
    assert not Path("made/gold").exists()


def test_an_arm_that_solves_nothing_keeps_its_base(started, capsys, monkeypatch):
    task = Riddles(20)
    monkeypatch.setattr(task, "right", lambda problem, text: False)
    monkeypatch.setattr(star.run.plan, "load_task", lambda *_, **__: task)
    assert arms.main(["--arms", "few-shot", "with", *SMALL, "--out", "made", "--max-new-tokens", "30"]) == 0
    said = capsys.readouterr()
    lines = table(said.out)
    assert lines["STaR"] == ["nothing to train on", "", ""]
    assert re.fullmatch(r"0\.0 \(0\.0-\d+\.\d\), 4 wrong, 0 unparsed, 0 length", lines["few-shot, rationales"][0])
    assert "there is nothing to learn from" in said.err
    assert len(started) == 1


def test_the_iteration_that_validation_chose_is_shown(capsys, monkeypatch):
    counts = {"problems": 50, "solved": 20, "rationalized_problems": 5}
    faked(monkeypatch, lambda given: (0, [
        measured(0, 0.3, best=0), measured(1, 0.5, best=1, **counts), {"iteration": 2, "best": 1, **counts}]))
    assert arms.main(["--arms", "with", "few-shot", "--out", "made"]) == 0
    assert table(capsys.readouterr().out) == {
        "STaR, iteration 1": ["50.0 (45.0-55.0), 5 wrong, 3 unparsed, 1 length", "40.0", "10.0"],
        "few-shot, rationales": ["30.0 (25.0-35.0), 5 wrong, 3 unparsed, 1 length", "0", ""]}


def test_a_stopped_arm_goes_on_and_settings_reach_the_runs(capsys, monkeypatch):
    codes = iter([0, 130, 0])
    seen = faked(monkeypatch, lambda given: (next(codes), [
        measured(0, 0.3), measured(1, 0.4, problems=9, solved=9, rationalized_problems=0)]))
    argv = ["--arms", "without", "with", "--out", "made", "--seed", "5", "--task", "jsonl", "--data", "d.jsonl",
            "--zero-shot", "--show", "7"]
    assert arms.main(argv) == 130
    assert "stopped in made/with; the same command goes on" in capsys.readouterr().err
    assert [a[:2] for a in seen] == [["--out", "made/without"], ["--out", "made/with"]]
    for given, hint in zip(seen, (False, True), strict=True):
        flags, _ = read(given[2:])
        assert flags.settings == {"task": "jsonl", "seed": 5, "rationalize": hint}
        assert flags.options == {"zero_shot": True, "data": str(Path("d.jsonl").absolute())}
        assert given[-2:] == ["--show", "7"]
    seen.clear()
    assert arms.main(argv) == 0
    assert seen == [["--resume", "made/with", "--show", "7"]]


def test_a_base_alone_is_not_trained(started, capsys):
    assert arms.main(["--arms", "few-shot", "--digits", "2", *SMALL, "--out", "made"]) == 0
    ((command, argv),) = started
    assert command is train
    assert read(argv)[0].settings["iterations"] == 0
    assert list(table(capsys.readouterr().out)) == ["few-shot, rationales"]


def test_a_folder_is_found_by_itself(monkeypatch):
    seen = faked(monkeypatch, lambda given: (0, [measured(0, 0.3), measured(1, 0.4)]))
    assert arms.main(["--arms", "gold", "--task", "gsm8k", "--data", "d", "--preset", "quick"]) == 0
    assert seen[0][:2] == ["--out", str(Path("runs/arms-gsm8k/gold"))]
    assert json.loads(Path("runs/arms-gsm8k/gold/state.json").read_text())["finished"]


# what is refused


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--learn", "gold"], "--learn: this experiment sets it itself, leave it out"),
        (["--no-rationalize"], "--rationalize: this experiment sets it itself"),
        (["--resume", "x", "--check"], "--check, --resume: this experiment"),
        (["--arms", "best"], "'best'"),
        (["--arms"], "--arms"),
        (["--problems", "0"], "--problems is 0"),
        (["--arms", "with", "--problems", "0"], "--problems is 0"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--samples", "2"], "--samples is 2"),
    ],
)
def test_bad_flags(capsys, monkeypatch, argv, words):
    seen = faked(monkeypatch, lambda given: (0, []))
    assert arms.main([*argv, "--out", "made"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert seen == []
    assert not Path("made").exists()


# runs are processes


def test_a_run_is_a_process_of_this_project(tmp_path):
    """From any folder; what it says of itself is shown, its exit code comes back."""
    assert launch.finish(launch.BASELINE, tmp_path / "run", ["--learn", "gold", "--digits", "0"]) == 2
    assert not (tmp_path / "run").exists()


def test_what_is_finished_is_not_started_and_a_stop_is_passed_on(monkeypatch, tmp_path):
    codes = iter([130, -2, 3, 0])
    seen = []
    monkeypatch.setattr(launch, "call", lambda argv: seen.append(argv) or next(codes))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
            launch.finish(["p"], tmp_path, ["--a"], ["--b"])
    write_json(tmp_path / "state.json", {"iteration": 1, "finished": False})
    assert [launch.finish(["p"], tmp_path, ["--a"], ["--b"]) for _ in range(2)] == [3, 0]
    write_json(tmp_path / "state.json", {"iteration": 2, "finished": True})
    assert launch.finish(["p"], tmp_path, ["--a"], ["--b"]) == 0
    new, resumed = ["p", "--out", str(tmp_path), "--a", "--b"], ["p", "--resume", str(tmp_path), "--b"]
    assert seen == [new, new, resumed, resumed]


def test_ctrl_c_stops_the_run_and_says_how_to_go_on(tmp_path):
    """In a terminal both processes are told."""
    argv = [sys.executable, "-m", "star.experiments.arms", "--arms", "with", "--digits", "2-3", *SMALL, "--out", "made",
            "--problems", "2000", "--slots", "16"]
    code, log = stopped(argv, "1: generate", lambda process: os.killpg(process.pid, signal.SIGINT),
                        start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert code == 130
    said = log.replace("\r", "\n").rstrip().splitlines()
    assert said[-1] == "stopped in made/with; the same command goes on"
    assert said[-2].endswith("stopped in iteration 1, generate; go on with: python train.py --resume made/with")
    assert "Traceback" not in "".join(said)
