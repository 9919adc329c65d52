"""Coin flips: what is read, what is asked, which steps count as right, and what is refused."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
from conftest import refused

from star.problem import Problem
from star.tasks import load_task
from star.tasks.coin_flip import answer_of, steps

DATA = Path(__file__).parents[2] / "shared" / "data" / "coin_flip"
NOTE = ' Note that "flip" here means "reverse".'
PEOPLE = (("Anne-Marie", True), ("O'Neil", False), ("Tj", False), ("Jose A", True))
RIGHT = ("The coin is heads up. Anne-Marie flips it: tails up. O'Neil does not flip it: tails up. "
         "Tj does not flip it: tails up. Jose A flips it: heads up. The coin is heads up. The answer is yes.")


def question(*people, start="heads", wanted="heads", note=NOTE):
    acts = " ".join(f"{name} {'flips' if flips else 'does not flip'} the coin." for name, flips in people)
    return f"A coin is {start} up. {acts} Is the coin still {wanted} up?{note}"


def file(folder, n=250, people=4, **answers):
    """A file of n questions as the data has them; answers: id -> what it says instead."""
    draw, records = random.Random(0), []
    for i in range(n):
        q = question(*((f"Person{i} {k}th", draw.random() < 0.5) for k in range(people)))
        records.append({"question": q, "answer": answers.get(f"coin_{i + 1}", answer_of(q))})
    path = folder / "coin_flip.json"
    path.write_text(json.dumps({"examples": records}), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    return load_task("coin_flip", data=file(tmp_path_factory.mktemp("coins")).parent)


P = Problem("p", question(*PEOPLE), "yes")


def test_the_right_steps_are_told_from_all_others(task):
    assert task.check_steps(P, RIGHT) is True
    assert task.check_steps(P, f"\n {RIGHT.replace('. ', '.  ')}\n") is True  # blanks say nothing
    assert task.gold(P) == " " + RIGHT
    wrong = {
        "missing person": RIGHT.replace("Tj does not flip it: tails up. ", ""),
        "swapped order": RIGHT.replace("O'Neil", "?").replace("Tj", "O'Neil").replace("?", "Tj"),
        "a person twice": RIGHT.replace("Tj does", "Tj does not flip it: tails up. Tj does"),
        "extra person": RIGHT.replace("The coin is heads up. The answer", "Kim does not flip it: heads up. The coin is "
                                      "heads up. The answer"),
        "another person": RIGHT.replace("Tj", "Kim"),
        "right act, wrong state": RIGHT.replace("O'Neil does not flip it: tails", "O'Neil does not flip it: heads"),
        "wrong act, right state": RIGHT.replace("Tj does not flip", "Tj flips"),
        "two wrongs": RIGHT.replace("Anne-Marie flips it: tails", "Anne-Marie does not flip it: heads").replace(
            "Jose A flips it: heads", "Jose A does not flip it: heads").replace("tails", "heads"),
        "two wrong states": RIGHT.replace("O'Neil does not flip it: tails up. Tj does not flip it: tails",
                                          "O'Neil does not flip it: heads up. Tj does not flip it: tails"),
        "conclusion of another state": RIGHT.replace("up. The answer", "up. The coin is tails up. The answer"),
        "wrong conclusion": RIGHT.replace("The coin is heads up. The answer", "The coin is tails up. The answer"),
        "wrong answer": RIGHT.replace("yes", "no"),
        "no answer": RIGHT.removesuffix(" The answer is yes."),
        "no start": RIGHT.removeprefix("The coin is heads up. "),
        "case": RIGHT.replace("Tj", "tj"),
        "part of a name": RIGHT.replace("Anne-Marie", "Marie"),
        "no apostrophe": RIGHT.replace("O'Neil", "ONeil"),
        "curly apostrophe": RIGHT.replace("'", "’"),
        "other wording": RIGHT.replace("does not flip it", "doesn't flip it"),
        "turned in between": RIGHT.replace(" Tj", " It turns over: heads up. Tj"),
        "more behind it": f"{RIGHT} Or is it?",
        "twice": f"{RIGHT} {RIGHT}",
        "of another question": " ".join(steps(question(("Ann", True), ("Ben", True)))),
    }
    assert all(text != RIGHT for text in wrong.values())
    assert [name for name, text in wrong.items() if task.check_steps(P, text) is not False] == []
    assert task.right(P, wrong["two wrongs"])
    assert task.right(P, wrong["missing person"])


def test_no_text_breaks_the_check(task):
    for text in ("", "\0", "\ud800", "{" * 10_000, RIGHT * 300, "flips the coin. " * 5_000, "The answer is yes."):
        assert task.check_steps(P, text) is False
    for asked in ("", "Who flips the coin?", question(*PEOPLE).replace("Tj does", "Tj sits. He does"),
                  question(*PEOPLE) + " Why?", "A coin is heads up. Is the coin still heads up?",
                  question(*PEOPLE).replace("A coin is heads", "A coin is up"), "A coin is heads up. " + "a " * 20_000):
        assert steps(asked) is None
        assert task.check_steps(Problem("typed", asked, "yes"), RIGHT) is None


def test_people_and_sides_are_read_from_the_question():
    assert steps(question(("J. R.", True), ("St. John", False), ("Ángel", True), ("flips", True), note="")) == [
        "The coin is heads up.", "J. R. flips it: tails up.", "St. John does not flip it: tails up.",
        "Ángel flips it: heads up.", "flips flips it: tails up.", "The coin is tails up.", "The answer is no."]
    for flips, start, wanted, answer in ((True, "tails", "heads", "yes"), (False, "tails", "heads", "no"),
                                         (False, "tails", "tails", "yes"), (True, "heads", "heads", "no")):
        assert answer_of(question(("Ann", flips), start=start, wanted=wanted)) == answer
    many = [("Ann", i % 3 == 0) for i in range(30)]  # ten flips, of one person
    assert len(steps(question(*many))) == 33
    assert answer_of(question(*many)) == "yes"


def test_what_is_asked_and_shown(task, tmp_path):
    assert (len(task.train), len(task.heldout), task.notes) == (150, 100, [])
    assert task.chance == max(Counter(p.answer for p in [*task.train, *task.heldout]).values()) / 250
    again = load_task("coin_flip", data=file(tmp_path))  # the file itself
    assert [p.id for p in again.heldout] == [p.id for p in task.heldout]
    p = task.train[0]
    assert task.question(p) == f"Q: {p.question}\nA:"
    assert task.hinted(p) == f"Q: {p.question} (Answer: {p.answer})\nA:"
    assert len(task.shots) == 6
    assert {s.problem.answer for s in task.shots} == {"yes", "no"}
    assert all(task.check_steps(s.problem, task.answered(s)) for s in task.shots)
    assert task.answered(task.shots[0]).endswith(" The coin is heads up. The answer is yes.")
    assert task.leaks(p, f" (Answer: {p.answer}) {task.gold(p)}")
    assert not task.leaks(p, task.gold(p))
    assert len(task.turns(p)) == 6
    assert task.answers_only().gold(p) == f" The answer is {p.answer}."
    assert all(task.right(q, task.gold(q)) and task.check_steps(q, task.gold(q)) for q in task.heldout)
    typed = task.parse(question(("Ann", True), ("Ben", True)))
    assert typed.answer == "yes"
    assert task.parse("Is it heads?").answer == ""
    assert "yes or no" in load_task("coin_flip", data=file(tmp_path), zero_shot=True).question(p)


def test_other_files_of_this_form(tmp_path):
    few, many = (load_task("coin_flip", data=file(tmp_path, n=20, people=n)) for n in (1, 12))
    assert (len(few.train), len(few.heldout)) == (10, 10)
    assert few.max_new_tokens < many.max_new_tokens == 224
    odd = load_task("coin_flip", data=file(tmp_path, coin_1="yes", coin_2="yes", coin_3="yes", coin_4="yes"))
    wrong = [p for p in [*odd.train, *odd.heldout] if p.answer != answer_of(p.question)]
    assert wrong
    assert odd.notes == [
        f"{len(wrong)} with another answer than their flips give: " + ", ".join(p.id for p in wrong)]
    assert all(odd.gold(p) is None for p in wrong)
    shots = [{"question": question(("Ann", True)), "rationale": "Ann turns it.", "answer": "no"}]
    (tmp_path / "shots.json").write_text(json.dumps(shots))
    task = load_task("coin_flip", data=file(tmp_path), few_shot=tmp_path / "shots.json")
    assert "worded otherwise" in task.notes[0]
    assert task.notes[0].endswith("shots.json, entry 1")


def test_what_does_not_fit_is_refused_by_its_place(tmp_path):
    path = file(tmp_path, coin_3="heads")
    refused(lambda: load_task("coin_flip", data=path),
            words=("coin_flip.json, entry 3: the answer is 'heads'; it must be yes or no",))
    path.write_text(json.dumps([{"question": "Is the coin still heads up?", "answer": "yes"}]))
    refused(lambda: load_task("coin_flip", data=tmp_path),
            words=("coin_flip.json, entry 1: the question is 'Is the coin", "NAME flips the coin", "--task jsonl"))
    path.write_text(json.dumps([{"inputs": "?", "targets": "yes"}]))
    refused(lambda: load_task("coin_flip", data=tmp_path), words=("entry 1 has no field 'question' (there is",))
    refused(lambda: load_task("coin_flip", data=tmp_path / "no"), error=FileNotFoundError, words=("not there",))


@pytest.mark.skipif(not DATA.is_dir(), reason="the coin flips of ../shared are not here")
def test_the_data_as_it_stands():
    task = load_task("coin_flip", data=DATA)
    everything = [*task.train, *task.heldout]
    assert (len(task.train), len(task.heldout), task.notes, task.max_new_tokens) == (400, 100, [], 96)
    assert all(len(steps(p.question)) == 7 for p in everything)
    people = {line.split(" flips it")[0].split(" does not")[0] for p in everything for line in steps(p.question)[1:-2]}
    shown = {line.split(" flips it")[0].split(" does not")[0] for s in task.shots
             for line in steps(s.problem.question)[1:-2]}
    assert len(people) > 1000
    assert len(shown) == 24
    assert not shown & people
