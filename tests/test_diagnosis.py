"""Nothing solved: what is shown of the tries, which cause is named, and the command that shows why. Notes: what metrics
are the first to show, with the setting that helps; a healthy run has none."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import SHIPPED
from test_history import NASTY, made

import sample
import train
from star.config import StarConfig
from star.problem import Problem
from star.run.diagnosis import cause, looks, notes, nothing_solved
from star.run.folder import read_lines

pytestmark = pytest.mark.usefixtures("own_folder")


def plan(chat=False, prefix="", folder=SHIPPED):
    return SimpleNamespace(config=StarConfig(task="jsonl", chat=chat), max_new=40,
                           task=SimpleNamespace(prefix=prefix, train=[Problem("train-9", "2+2", "4")]),
                           model=SimpleNamespace(source=SimpleNamespace(path=folder)))


@pytest.fixture
def instruct(tmp_path):
    (tmp_path / "chat_template.jinja").write_text("{{ messages }}")
    return tmp_path


def test_most_tries_are_shown_with_the_cause_and_a_command():
    tries = [made(2, "generate", f"train-{i}", "unparsed", f"try {i}\nof it") for i in range(9)]
    tries += [made(2, "generate", "train-9", "wrong", "It is 5."), made(2, "rationalize", "train-9", "leak", "hint")]
    assert nothing_solved(tries, plan(), Path("runs/a")) == [
        "\n9 of 10 tries without a hint: no answer can be read from it. Such as",
        "  train-0: try 0 / of it", "  train-3: try 3 / of it", "  train-6: try 6 / of it",
        'likely  no answer stands there in a form that is read, such as "The answer is ...": show worked examples, by '
        "--few-shot FILE",
        "look    python sample.py --run runs/a --trace --problem train-0 --iteration 1"]


def test_what_others_wrote_is_not_the_models_fault():
    tries = [replace(made(1, "generate", "a", "wrong", "no"), source="claude") for _ in range(3)]
    tries += [made(1, "generate", "b", "length", "x")]
    lines = nothing_solved(tries, plan(), Path("r"))
    assert lines[0] == "\n1 of 1 tries without a hint: was cut off at the length cap, whatever it says. Such as"
    assert lines[-2:] == ["likely  40 tokens are too few for an answer: a longer --max-new-tokens",
                          "look    python sample.py --run r --trace --problem b"]
    assert nothing_solved(tries[:3], plan(), Path("r"))[0].startswith("\n3 of 3")
    spaced = nothing_solved([made(1, "generate", "my file-1", "wrong", "no")], plan(), Path("a run"))[-1]
    assert spaced.endswith("sample.py --run 'a run' --trace --problem 'my file-1'")


def test_where_training_has_spoilt_the_model_that_is_the_cause(tmp_path):
    tries = [made(3, "generate", "a", "length", "x")]
    for shares, words in (((0.44, 0.02), "training has spoilt the model: held-out accuracy fell from the base's 44.0% "
                                         "to 2.0%: look at --lr (now 0.005: try a third)"),
                          ((0.44, 0.3), "40 tokens are too few"), ((0.44,), "40 tokens are too few")):
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in history(*shares)))
        assert f"likely  {words}" in nothing_solved(tries, plan(), tmp_path)[-2]


def test_wrong_answers_stand_beside_the_right_ones():
    """Whoever wrote the data otherwise than the model writes sees it here."""
    lines = nothing_solved([made(1, "generate", "train-9", "wrong", "It is =5", "5")], plan(), Path("r"))
    assert lines[1] == "  train-9 (says 5; right is 4): It is =5"


def test_advice_names_no_flag_that_the_task_lacks():
    own = plan()
    own.config = StarConfig(task="arithmetic")
    for prefix in ("", "1+1\n=2"):
        own.task.prefix = prefix
        said = cause({"unparsed": 5}, own)
        assert "--few-shot" not in said
        assert "--zero-shot" not in said
        assert "The answer is" not in said


def test_texts_are_clipped_and_safe_to_print():
    long = "\n".join(f"{i} and" for i in range(200)) + "\nthe end" + NASTY
    lines = nothing_solved([made(1, "generate", "a" + NASTY, "wrong", long)], plan(), Path("r"))
    assert all(line.isprintable() for line in lines[1:])
    assert all(len(line) < 260 for line in lines[:-2])
    assert "0 and / 1 and" in lines[1]
    assert "the end" in lines[1]


@pytest.mark.parametrize(("verdict", "look", "chat", "prefix", "words"), [
    ("length", "", False, "", "40 tokens are too few for an answer: a longer --max-new-tokens"),
    ("length", "they repeat themselves", False, "", "they repeat themselves: show worked examples, by --few-shot FILE"),
    ("unparsed", "", False, "Q: 1", "others by --few-shot, or --zero-shot, which asks in words"),
    ("unparsed", "the model says nothing at all", False, "", "the model says nothing at all: show worked examples"),
    ("unparsed", "", True, "", "the model has a chat template, and was asked without it: --chat"),
    ("length", "", True, "", "a longer --max-new-tokens; or the model has a chat template"),
    ("wrong", "", False, "", "mend the data or take another --grade; else the problems are too hard for this model"),
    ("wrong", "", True, "", "--temperature 0.8); or the model has a chat template"),
    ("leak", "", False, "", "with a hint it says nothing but the hint"),
])
def test_the_cause_goes_by_what_is_seen(instruct, verdict, look, chat, prefix, words):
    """chat: the model has a template that is not used."""
    assert words in cause({"wrong": 1, verdict: 5}, plan(False, prefix, instruct if chat else SHIPPED), look)
    assert "--chat" not in cause({verdict: 5}, plan(True, prefix, instruct), look)


def test_what_tries_look_like():
    def look(*texts):
        return looks([replace(made(1, "generate", "a", "length", text), finish="length",
                              tokens=tuple(ord(c) for c in text)) for text in texts])

    assert look("", " \n", "It is 4.") == "the model says nothing at all"
    assert look("no no no no no", "yes yes yes yes", "It is 4.") == "they repeat themselves"
    assert look("", "It is 4.", "no no no no no") == ""


def test_a_run_that_solves_nothing_ends_with_the_command_that_shows_why(capsys):
    code = train.main(["--model", str(SHIPPED), "--digits", "9", "--problems", "20", "--iterations", "1"])
    out = capsys.readouterr().out.splitlines()
    assert code == 2
    said, *shown, likely, look = out[-6:]
    assert said.endswith("tries without a hint: arrives at another answer. Such as")
    tries = {r["problem"]: r for r in read_lines(Path("runs/arithmetic-001/samples/iter-001.jsonl"))}
    assert all(line.split()[0] in tries for line in shown)
    assert likely.startswith("likely  answers are given and are wrong")
    assert look.startswith("look    python sample.py --run runs/arithmetic-001 --trace --problem ")
    assert sample.main(look.split()[3:]) == 0
    assert "dropped: nothing of it is trained on" in capsys.readouterr().out


# notes: what metrics are the first to show

HEALTHY = {"kept": 60, "rationalized": 20, "problems": 100, "solved": 80, "tries": 100, "truncated": 1, "examples": 80,
           "dropped": {"wrong": 20}, "always_right": 60, "never_right": 40, "drift": 0.3, "entropy": 0.2,
           "kept_wrong_steps": 1, "rationalized_wrong_steps": 1,
           "degenerate": {"loops": 0, "outliers": 0, "kept_loops": 0, "kept_outliers": 0, "left_out": 0}}
ONE = {"answer": "c", "share": 0.9531, "right": 0.2031, "answers": 64, "one": True}


def history(*shares, key="accuracy", **last):
    """Metrics of a run with these mean accuracies, the base's first; `last` is of all its iterations but the base."""
    lines = [{"iteration": 0, key: {"mean": shares[0]}, "drift": 0.0, "entropy": 0.2}]
    return lines + [{"iteration": n, key: {"mean": s}, **HEALTHY, "solved": 40 + 10 * n, **last}
                    for n, s in enumerate(shares[1:], 1)]


def said(metrics, **settings):
    own = plan()
    own.config = StarConfig(**{"task": "jsonl", "validation": 5} | settings)
    return notes(metrics, own)


FLAT = (0.5, 0.6, 0.6, 0.6)


@pytest.mark.parametrize(("metrics", "settings", "words"), [
    (history(0.5, 0.4, 0.45), {"lr": 0.003}, ["held-out accuracy is below the base's 50.0% for two iterations (40.0%, "
                                             "45.0%)", "--lr (now 0.003: try a third)", "--first-steps (now 28)",
                                             "25% of what is right was made with a hint: --no-rationalize"]),
    (history(0.5, 0.4, 0.45, key="validation", rationalized=0, kept_wrong_steps=9),
     {"start": "previous", "epochs": 2.0},
     ["validation is below", "--start base", "--epochs (now 2)", "17% of what is right has wrong steps: --select "
      "correct+steps"]),
    (history(0.5, 0.4, 0.45, sources={"a": {"chosen_wrong": 30}, "b": {"chosen_wrong": 2}}), {},
     ["32 of 80 examples are not right: another --select"]),
    (history(0.5, 0.6, answers=ONE), {}, ["95.3% of 64 held-out answers say 'c'", "right for 20.3%", "--few-shot"]),
    (history(0.5, 0.6, tried_answers=ONE), {"task": "arithmetic"}, ["95.3% of 64 tries say", "the task's `shots`"]),
    ([history(0.5)[0] | {"answers": ONE | {"share": 0.4, "one": False}}, *history(0.5, 0.6, answers=ONE)[1:]],
     {"lr": 0.03}, ["the answers fall onto one value", "training did it: lower --lr (now 0.03)"]),
    ([history(0.5)[0] | {"answers": ONE | {"share": 1.0, "answers": 6, "one": False}},
      *history(0.5, 0.6, answers=ONE)[1:]], {}, ["the answers fall onto one value", "Show examples with each answer"]),
    ([history(0.5)[0] | {"answers": ONE | {"share": 0.4, "one": False}}, *history(0.5, 0.6, tried_answers=ONE)[1:]], {},
     ["64 tries say", "Show examples with each answer"]),  # the first tries are the base's own
    ([history(0.5)[0] | {"answers": ONE}], {}, ["the answers fall onto one value", "--few-shot"]),
    (history(0.5, 0.4, 0.45, always_right=0, never_right=100), {}, ["below the base's"]),
    (history(0.5, 0.6, degenerate={"loops": 30, "kept_loops": 0, "kept_outliers": 0}), {},
     ["30% of the tries repeat themselves", "--temperature 0.7"]),
    (history(0.5, 0.6, degenerate={"loops": 0, "kept_loops": 3, "kept_outliers": 2}), {},
     ["5 of the rationales let through", "--drop-degenerate"]),
    (history(0.5, 0.6, truncated=60), {}, ["60% of the tries are cut off at 40 tokens", "--max-new-tokens"]),
    (history(*FLAT, truncated=25), {}, ["25% of the tries are cut off"]),
    (history(*FLAT, tries=400, always_right=70, never_right=28), {"samples": 4, "temperature": 0.5},
     ["of 100 problems 70 are always solved and 28 never", "Harder problems", "--samples (now 4)"]),
    (history(*FLAT, always_right=1, never_right=99), {}, ["Easier problems", "--temperature (now 0)"]),
    (history(*FLAT, solved=52), {"rationalize": False}, ["solved stays at 52.0%", "--rationalize, more tries",
                                                        "--samples 4 --temperature 0.7"]),
    (history(0.5, 0.5, drift=0.0), {}, ["the adapters are without effect", "0.0000 nats", "--lr", "--first-steps"]),
    (history(0.5, 0.505, drift=-0.002), {"epochs": 1.0}, ["-0.0020 nats", "--epochs (now 1)"]),
    (history(0.5, 0.7, 0.7), {}, []),
    (history(0.5, 0.7, 0.7, 0.69), {}, ["has not improved for two", "best 70.0%", "--patience"]),
])  # fmt: skip
def test_what_is_noted(metrics, settings, words):
    """One line for one thing, and only when it is new."""
    lines = said(metrics, **settings)
    assert len(lines) == bool(words), lines
    for word in words:
        assert word in lines[0]
    assert all(line.startswith("note    ") and "\n" not in line for line in lines)
    assert not set(lines) & set(said([*metrics, metrics[-1] | {"iteration": len(metrics)}], **settings))


@pytest.mark.parametrize(("metrics", "settings"), [
    (history(0.5, 0.6, 0.7, 0.8), {}), (history(0.5, 0.49, 0.6), {}), (history(0.5, 0.6, 0.49, 0.61), {}),
    (history(0.97, 0.98, 0.97, 0.975, drift=0.0), {}),  # little is left to learn
    (history(0.5, 0.6, drift=0.0), {}),  # it has an effect after all
    (history(0.5, 0.5, drift=-0.0016, entropy=0.01), {}),  # of a model that is sure of nearly every token
    (history(0.5, 0.5, drift=0.0021), {}), (history(0.5, 0.5, drift=0.0, entropy=None), {}),
    ([m | {"accuracy": {"a": 0.4 + 0.2 * i, "b": 0.6 - 0.2 * i, "mean": 0.5}}
      for i, m in enumerate(history(0.5, 0.5, drift=0.0))], {}),  # groups that change places
    (history(0.5, 0.6, degenerate={"loops": 0, "kept_loops": 30, "kept_outliers": 0}), {"drop_degenerate": True}),
    (history(0.5), {}), ([], {}),
    (history(*FLAT[:3], tries=400, always_right=40, never_right=40), {"samples": 4, "temperature": 1.0}),
])  # fmt: skip
def test_a_healthy_run_has_no_notes(metrics, settings):
    assert not any(said(metrics[:n], **settings) for n in range(len(metrics) + 1))


def test_metrics_of_an_older_version_and_of_a_baseline_are_read():
    """They lack what is new; a baseline has no tries at all."""
    old = ("always_right", "never_right", "drift", "entropy", "degenerate")
    lines = [{k: v for k, v in m.items() if k not in old} for m in history(0.5, 0.4, 0.45)]
    assert len(said(lines)) == 1
    few = [{"iteration": n, "accuracy": {"mean": s}, "drift": None} for n, s in enumerate((0.5, 0.4, 0.3))]
    assert "below the base's" in said(few)[0]
    seldom = [m if i != 1 else {k: v for k, v in m.items() if k != "accuracy"}
              for i, m in enumerate(history(0.5, 0.9, 0.4, 0.3))]  # --heldout-when best
    assert "(40.0%, 30.0%)" in said(seldom)[0]
    assert said([{"iteration": 0}]) == []


def test_a_judge_rates_where_there_are_no_answers():
    """No share of right ones is spoken of."""
    of = {"dropped": {"open": 100}, "solved": 0, "always_right": 0, "never_right": 100, "truncated": 30}
    lines = said(history(1.5, 1.2, 1.3, key="reward", **of))
    assert "reward is below the base's 1.500 for two iterations (1.200, 1.300)" in lines[0]
    assert len(lines) == 1
    (line,) = said(history(1.5, 1.6, 1.6, 1.6, key="reward", **of))
    assert "cut off" in line
    rated = [m | {"validation": m["reward"] | {"scored": 9}} for m in history(1.5, 1.2, 1.3, key="reward", **of)]
    assert said(rated)[0] == lines[0]


TINY = ["--model", str(SHIPPED), "--digits", "3", "--problems", "40", "--first-steps", "2", "--slots", "32",
        "--heldout-problems", "40", "--show", "0"]  # fmt: skip


def printed(capsys):
    return [line for line in capsys.readouterr().out.splitlines()
            if line.startswith("note    ") and "paper's remark" not in line]


def test_a_run_says_what_is_wrong_once(capsys):
    assert train.main([*TINY, "--lr", "1e-9", "--iterations", "1", "--out", "r"]) == 0
    (line,) = printed(capsys)
    assert "without effect" in line
    assert "--lr (now 1e-09)" in line
    assert train.main(["--resume", "r", "--iterations", "2"]) == 0
    assert not printed(capsys)


def test_a_sound_run_says_nothing(capsys):
    assert train.main([*TINY, "--iterations", "1", "--lr", "0.01", "--first-steps", "8"]) == 0
    assert not printed(capsys)
