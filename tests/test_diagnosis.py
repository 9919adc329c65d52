"""Nothing solved: what is shown of the tries, which cause is named, and the command that shows why."""

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
from star.run.diagnosis import cause, goes_round, looks, nothing_solved
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


@pytest.mark.parametrize(("text", "round_"), [
    ("so it is so it is so it is so it is", True), ("no no no no", True), ("no no no", False), ("", False),
    ("1 2 3 4 5 6 7 8", False), ("It is 4. " * 30, True), ("a b a b a b c a b", False), ("word " * 9999, True),
])
def test_what_goes_round(text, round_):
    assert goes_round(made(1, "generate", "a", "length", text)) is round_


def test_what_tries_look_like():
    def look(*texts):
        return looks([made(1, "generate", "a", "length", text) for text in texts])

    assert look("", " \n", "It is 4.") == "the model says nothing at all"
    assert look("no no no no", "yes yes yes yes", "It is 4.") == "they repeat themselves"
    assert look("", "It is 4.", "no no no no") == ""


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
