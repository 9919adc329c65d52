"""What a run says: a line an iteration, what there was to learn from, which iteration is the best, what it cost."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SHIPPED
from test_history import NASTY, made
from test_loop import Riddles

import star.run.plan
import train
from star.config import StarConfig
from star.evaluate import VERDICTS, counts
from star.experiments import baseline
from star.run.folder import Run, read_lines
from star.run.history import clip
from star.run.progress import examples, keep_rate, nearest, summary, used, weak
from star.run.rates import measured

pytestmark = pytest.mark.usefixtures("own_folder")
SMALL = ["--model", str(SHIPPED), "--digits", "3", "--problems", "40", "--first-steps", "2", "--slots", "32"]


def table(out):
    """(heading, a line for each iteration) of what a run printed, each cut at its bars."""
    lines = [re.split(r" ?\| ?", line) for line in out.splitlines() if re.match(r"(it| ?\d+)  .*\|", line)]
    return lines[0], lines[1:]


def aligned(out):
    lines = [line for line in out.splitlines() if re.match(r"(it| ?\d+)  .*\|", line)]
    return len({tuple(m.start() for m in re.finditer(r"\|", line)) for line in lines}) == 1


def test_a_run_says_what_it_did_and_cost(capsys):
    argv = [*SMALL, "--iterations", "3", "--validation", "50", "--patience", "1", "--heldout-when", "best",
            "--eval-samples", "2", "--heldout-problems", "30", "--price-per-hour", "3", "--lr", "0.1"]
    assert train.main(argv) == 0
    out = capsys.readouterr().out
    run = Path("runs/arithmetic-001")
    metrics, state = read_lines(run / "metrics.jsonl"), json.loads((run / "state.json").read_text())
    assert (state["iteration"], state["finished"], state["best"]) == (1, True, 0)  # what is left cannot add
    base, first = metrics
    low, high = base["interval"]["mean"]
    share = f"{base['accuracy']['mean']:.1%}"
    assert (f"\nresult  iteration 0 (best on validation): {share} of the held-out problems, 95 % interval {low:.1%} to "
            f"{high:.1%}; the base {share}\n") in out
    for name, key in (("pass", "pass_at"), ("maj", "maj_at")):
        shares = ", ".join(f"{base[key][k]:.1%} @{k}" for k in ("1", "2"))
        assert f"\n{name:7} {shares}\n" in out
    (timings, after) = read_lines(run / "timings.jsonl")
    tokens = [timings["tokens"][kind] + after["tokens"][kind] for kind in ("sampled", "trained")]
    sampled = [r for i in (0, 1) for r in read_lines(run / f"samples/iter-{i:03d}.jsonl")]
    assert tokens == [sum(len(r["tokens"]) for r in sampled), first["trained_tokens"]]
    spent = re.search(r"^spent   0\.00\d device-hours; ([\d,]+) tokens sampled, ([\d,]+) trained on; "
                      r"0\.0\d at 3 an hour$", out, re.M)
    assert spent
    assert list(spent.groups()) == [f"{n:,}" for n in tokens]
    hours = sum(sum(t["seconds"].values()) for t in (timings, after)) / 3600
    assert summary(Run.open(run), 36_000.5)[-1].endswith(f"; {hours * 36_000.5:.2f} at 36000.5 an hour")
    assert "paper's remark" not in out
    assert re.search(rf"^ +{first['solved']} of 40 problems solved \({first['solved'] / 40:.1%}\), "
                     rf"{first['rationalized_problems']} of them only with the hint; ", out, re.M)
    shown = re.findall(r"^ {6}(\w+|\w+, hinted) +(\d+\+\d+): (.*)$", out, re.M)
    assert len(shown) == len({kind for kind, _, _ in shown}) == 3  # of each kind one, where there are as many
    said = {(r["problem"], clip(" / ".join(r["text"].strip().split("\n")), 120)) for r in sampled
            if r["phase"] in ("generate", "rationalize")}
    assert {(problem, text) for _, problem, text in shown} <= said
    assert shown[0][0] == "kept"
    heading, (of_base, of_first) = table(out)
    assert heading[0].split() == ["it", "3-digit", "valid."]
    assert heading[3].split() == [v for v in VERDICTS if v not in ("right", "open")]
    assert of_base[0].split() == ["0", f"{100 * base['accuracy']['3-digit']:.1f}",
                                  f"{100 * base['validation']['mean']:.1f}"]
    assert of_first[0].split() == ["1", f"{100 * first['validation']['mean']:.1f}"]
    assert of_first[1].split() == [str(first["kept"]), str(first["rationalized"])]
    assert of_first[2].strip() == f"{first['kept_wrong_steps']} + {first['rationalized_wrong_steps']}"
    assert of_first[3].split() == [str(n) for n in first["dropped"].values()]
    assert heading[5].split() == ["sample", "train"]
    assert (of_base[5], of_first[5]) == (nearest(timings["use"]), nearest(after["use"]))
    assert [len(line[5].split()) for line in (of_base, of_first)] == [2, 3], "a letter says what limits sampling"
    assert {len(line[5]) for line in (heading, of_base, of_first)} == {13}
    assert aligned(out)
    assert f"\nrates   {measured(torch.device('cpu'), torch.float32)}\n" in out
    assert f"\n{used([timings, after])[0]}\nspent " in out

    assert train.main(["--resume", str(run)]) == 2
    assert "has finished its 1 iterations, out of --patience; to go on, start a run" in capsys.readouterr().err


def test_without_samples_and_price_and_once_more(capsys):
    """A run that goes on says what it had come to before."""
    assert train.main([*SMALL, "--iterations", "1", "--heldout-problems", "20", "--show", "0", "--out", "run"]) == 0
    out = capsys.readouterr().out
    assert "problems solved" not in out
    assert re.search(r"^result  iteration 1 \(the last\): ", out, re.M)
    assert re.search(r"^spent   .* trained on$", out, re.M)
    assert train.main(["--resume", "run", "--iterations", "2", "--show", "0"]) == 0
    again = table(capsys.readouterr().out)[1]
    assert [line[0].split()[0] for line in again] == ["0", "1", "2"]
    assert [line[:4] for line in again[:2]] == [line[:4] for line in table(out)[1]]
    assert [len(line) for line in again] == [4, 4, 8], "how fast the former ones were is not told again"


def test_a_task_that_cannot_check_steps_says_so(capsys, monkeypatch):
    """Not "0 + 0", which would read as if all steps were right."""
    monkeypatch.setattr(star.run.plan, "load_task", lambda *_, **__: Riddles(20))
    argv = ["--model", str(SHIPPED), "--iterations", "1", "--first-steps", "1", "--max-new-tokens", "30"]
    assert train.main([*argv, "--no-rationalize"]) == 0
    heading, (_, first) = table(capsys.readouterr().out)
    assert int(first[1].split()[0]) > 0
    assert (heading[2].strip(), first[2].strip()) == ("steps", "unchecked")


def test_what_was_cut_off_is_of_the_tries_without_a_hint():
    verdicts = {"a": "right", "b": "wrong", "c": "length", "d": "wrong"}
    tried = [made(1, "generate", p, v, tokens=8) for p, v in verdicts.items()]
    retried = [made(1, "rationalize", p, "length", tokens=50) for p in "bcd"]
    cut = [replace(g, finish="length" if g.verdict == "length" else "stop") for g in [*tried, *retried]]
    (line,) = keep_rate(counts(cut[:4], cut[4:]))
    assert line.strip() == ("1 of 4 problems solved (25.0%), 0 of them only with the hint; 1 different rationales to "
                            "keep; tries without a hint: 8.0 tokens, 25.0% cut off")


def test_examples_are_of_each_kind_and_safe_to_print():
    seen = [made(1, "generate", f"a{i}", "wrong", f"text {i}") for i in range(5)]
    seen += [made(1, "generate", "b", "right", "=1\n=2\n"), made(1, "rationalize", "c", "right"),
             made(1, "rationalize", "d\x1b", "leak", NASTY)]
    kinds = [line.split()[0] for line in examples(seen, 9)]
    assert kinds == ["kept", "rationalized", "wrong", "leak,", "wrong", "wrong", "wrong", "wrong"]
    assert examples(seen, 3)[0] == f"      {'kept':16} b: =1 / =2"
    assert examples(seen, 3)[2] == f"      {'wrong':16} a2: text 2"  # from the middle: the first are the shortest
    assert all(line.isprintable() for line in examples(seen, 9))
    assert examples([], 3) == []


def test_a_base_that_solves_nothing_is_told_the_papers_remark(capsys):
    """It is about STaR: fine-tuning on what was written needs no base that solves anything."""
    few = ["--model", str(SHIPPED), "--digits", "9", "--heldout-problems", "12"]
    assert train.main([*few, "--iterations", "0"]) == 0
    assert ("\nnote    the base solves 0.0% of the held-out problems: not surely more than chance. The paper's remark "
            "(section 6): STaR starts only where few-shot accuracy is above chance") in capsys.readouterr().out
    assert baseline.main([*few, "--learn", "gold", "--problems", "8", "--first-steps", "1"]) == 0
    out = capsys.readouterr().out
    assert "paper's remark" not in out
    assert table(out)[1][1][1].strip() == "(8 given)"
    assert aligned(out)


def test_chance_is_what_guessing_gives():
    task = Riddles()
    task.chance = 0.2
    source = SimpleNamespace(path=SHIPPED)
    plan = SimpleNamespace(task=task, config=StarConfig(), max_new=9, model=SimpleNamespace(source=source))
    said = dict.fromkeys(VERDICTS, 0) | {"wrong": 5, "length": 4}
    for low, told in ((0.19, True), (0.2, True), (0.21, False)):
        note = weak({"interval": {"mean": [low, 1]}, "accuracy": {"mean": 0.3}, "said": said}, plan)
        assert ("solves 30.0% of the held-out problems (20.0% by guessing)" in note) == told == bool(note)
        assert "likely" not in note
    note = weak({"interval": {"mean": [0, 1]}, "accuracy": {"mean": 0}, "said": said | {"length": 6}}, plan)
    assert "\nlikely  9 tokens are too few for an answer" in note
    assert weak({}, plan) == ""  # it was not measured


SHARES = {"sampling": {"matmul": 0.4141, "bandwidth": 0.07, "tokens": 300, "seconds": 2.0},
          "training": {"matmul": 0.555, "tokens": 1_234_000, "seconds": 100.0}}


@pytest.mark.parametrize(("use", "cells"), [
    (SHARES, "  41 c     56"), ({"sampling": SHARES["sampling"] | {"bandwidth": 1.204}}, " 120 m       "),
    ({"training": SHARES["training"]}, "           56"), ({}, " " * 13)])
def test_the_table_says_what_limits_sampling(use, cells):
    assert nearest(use) == cells


def test_what_was_used_stands_beside_tokens_a_second():
    (line,) = used([{"use": SHARES}, {"seconds": {}}])
    assert line == ("used    sampling 150 tokens/s: 41% of the device's matmul rate, 7% of its bandwidth; "
                    "training 12,340 tokens/s: 56% of the device's matmul rate")
    assert used([{"use": {"sampling": SHARES["sampling"]}}]) == [line.partition("; ")[0]]
    assert used([{"use": {}}, {"seconds": {}}]) == used([]) == [], "not measured, or written before it was"
