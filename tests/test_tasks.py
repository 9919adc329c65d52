"""Tasks that read files: official formats, anybody's own, prompts with and without hints, grading, and bad input."""

import importlib
import json
import random
import re
import string
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
from conftest import refused

import star.tasks
from star.problem import Problem, Shot
from star.tasks import Option, Task, ask, load_task, task_names, task_options
from star.tasks.jsonl import EXAMPLES, read_shots
from star.tasks.questions import Questions

SOLUTIONS = [
    ("Natalia sold 48 clips, and then half as many. How many in all?",
     "She sold 48/2 = <<48/2=24>>24 clips then.\nIn all 48+24 = <<48+24=72>>72 clips.\n#### 72"),
    ("A farm sells 1,000 eggs at $1.5. How many dollars is that?",
     "It is 1,000*1.5=$<<1000*1.5=1500>>1,500\n#### 1,500"),
]
CHOICES = ("bank", "river bank", "mall", "new york", "sofa")
SHOTS = [{"question": "2+2?", "rationale": "2+2 = 4.", "answer": "4"},
         {"question": "3*3?", "rationale": "3*3 = 9", "answer": 9}]
QA = [{"question": f"What is {i}+1?", "answer": i + 1} for i in range(20)]


def lines(path, records):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in records), encoding="utf-8")
    return path


def jsonl(tmp_path, records=QA, examples=None, **options):
    """A jsonl task of these records: behind these examples, else zero-shot."""
    shown = {"zero_shot": True} if examples is None else {"few_shot": str(lines(tmp_path / "shots.jsonl", examples))}
    return load_task("jsonl", data=str(lines(tmp_path / "toy.jsonl", records)), **(shown | options))


def problems(task):
    """All problems of a task in the order of their file."""
    return sorted([*task.train, *task.heldout], key=lambda p: int(p.id.rpartition("-")[2]))


def grade_school(folder, train=SOLUTIONS, test=(("How many legs has a cat?", "A cat has 2+2 legs.\n#### 4"),)):
    for name, part in (("train", train), ("test", test)):
        lines(folder / f"{name}.jsonl", [{"question": q, "answer": a} for q, a in part])
    return str(folder)


def common_sense(folder, keys=("B", "A"), **dev):
    def record(stem, key):
        listed = [{"label": c, "text": t} for c, t in zip("ABCDE", CHOICES, strict=True)]
        return {"answerKey": key, "id": "x", "question": {"question_concept": "c", "choices": listed, "stem": stem}}

    lines(folder / "train_rand_split.jsonl", [record(f"Where is it {i}?", key) for i, key in enumerate(keys)])
    lines(folder / "dev_rand_split.jsonl", [record("Where else?", "E") | dev])
    return str(folder)


# ---- the official files


def test_gsm8k(tmp_path):
    task = load_task("gsm8k", data=grade_school(tmp_path))
    assert task.train == [Problem("train-1", SOLUTIONS[0][0], "72"), Problem("train-2", SOLUTIONS[1][0], "1500")]
    assert task.heldout == [Problem("test-1", "How many legs has a cat?", "4")]
    assert (task.name, task.compares, task.chance, list(task.notes)) == ("gsm8k", "as numbers", 0.0, [])
    assert task.gold(task.train[0]) == (" She sold 48/2 = 24 clips then.\nIn all 48+24 = 72 clips. The answer is 72.")
    assert task.gold(task.train[1]) == " It is 1,000*1.5=$1,500. The answer is 1500."
    assert all(task.right(p, task.gold(p)) and not task.leaks(p, task.gold(p)) for p in [*task.train, *task.heldout])
    assert task.question(task.train[0]) == f"Q: {SOLUTIONS[0][0]}\nA:"
    assert task.hinted(task.train[0]) == f"Q: {SOLUTIONS[0][0]} (Answer: 72)\nA:"
    assert len(task.shots) == 6
    assert len(load_task("gsm8k", data=str(tmp_path), shots=8).shots) == 8
    own = lines(tmp_path / "own.jsonl", [SHOTS[0] | {"question": f"{i} times 2+2?"} for i in range(7)])
    assert len(load_task("gsm8k", data=str(tmp_path), few_shot=str(own)).shots) == 7
    zero = load_task("gsm8k", data=str(tmp_path), zero_shot=True)
    assert zero.prefix == zero.hint_prefix == ""


def test_commonsenseqa(tmp_path):
    task = load_task("commonsenseqa", data=common_sense(tmp_path))
    assert [(p.id, p.answer) for p in [*task.train, *task.heldout]] == [
        ("train-1", "b"), ("train-2", "a"), ("dev-1", "e")]
    plain = "Q: Where is it 0?\nAnswer Choices:\n(a) bank\n(b) river bank\n(c) mall\n(d) new york\n(e) sofa\nA:"
    assert task.question(task.train[0]) == plain
    assert task.hinted(task.train[0]) == plain.replace("(b) river bank", "(b) river bank (CORRECT)")
    assert task.train[0] == Problem("train-1", "Where is it 0?", "b", choices=CHOICES)
    assert (task.compares, task.gold(task.train[0])) == ("as letters of choices", None)
    assert task.chance == pytest.approx(0.2)
    assert task.prefix.count("Q: ") == len(task.shots) == 7
    assert "(CORRECT)" not in task.prefix
    assert task.hint_prefix.replace(" (CORRECT)", "") == task.prefix
    assert task.hint_prefix.count("(CORRECT)") == 7
    assert len(load_task("commonsenseqa", data=str(tmp_path), shots=3).shots) == 3


@pytest.mark.parametrize(("name", "write"), [("gsm8k", grade_school), ("commonsenseqa", common_sense)])
def test_official_files_in_a_subfolder(tmp_path, name, write):
    refused(lambda: load_task(name), words=(f"task {name} needs --data", "train"))
    refused(lambda: load_task(name, data=str(tmp_path)), words=("holds no train", ".jsonl of"), error=FileNotFoundError)
    write(tmp_path / name)
    assert [p.id for p in load_task(name, data=str(tmp_path)).train] == ["train-1", "train-2"]


def test_official_files_that_do_not_fit(tmp_path):
    def gsm(*record):
        return lambda: load_task("gsm8k", data=grade_school(tmp_path / "g", [*SOLUTIONS, record]))

    refused(gsm("Why?", "72"), words=("train.jsonl, line 3", "field 'answer' has no '####'"))
    refused(gsm("Why?", "#### 72"), words=("train.jsonl, line 3", "no solution in front"))
    refused(gsm("Why?", "<<1+1=2>>\n#### 72"), words=("train.jsonl, line 3", "no solution in front"))
    refused(gsm("Why?", "Many.\n#### many"), words=("train.jsonl, line 3", "many' is not one number", "--grade text"))
    refused(gsm(" ", "One.\n#### 1"), words=("train.jsonl, line 3", "field 'question' is"))
    lines(tmp_path / "g" / "train.jsonl", [{"q": "1+1?", "answer": "a\n#### 2"}])
    refused(lambda: load_task("gsm8k", data=str(tmp_path / "g")), words=(
        "train.jsonl, line 1 has no field 'question' (there is 'q', 'answer')", "--task jsonl"))

    def csqa(**options):
        return lambda: load_task("commonsenseqa", data=common_sense(tmp_path / "c", **options))

    refused(csqa(keys=["A", "F"]), words=("train_rand_split.jsonl, line 2", "'F' is neither a label (A, B, C, D, E)"))
    refused(csqa(answerKey=None), words=("dev_rand_split.jsonl, line 1: field 'answerKey' is null",))
    refused(csqa(question={"stem": "Where?"}), words=(
        "line 1 has no field 'question.choices' (there is 'answerKey', 'id', 'question.stem')",))


def shipped(name):
    return read_shots(EXAMPLES / f"{name}.jsonl", "choice" if name == "commonsenseqa" else "number")


@pytest.mark.parametrize(("name", "grade"), [("gsm8k", "number"), ("commonsenseqa", "choice")])
def test_shipped_examples_arrive_at_their_answers(name, grade):
    shots = shipped(name)
    assert 6 <= len(shots) <= 10
    assert len({s.problem.question for s in shots}) == len(shots)
    task = Questions([Problem("t", "One?", "a", choices=CHOICES)], [Problem("h", "Two?", "a")], shots, grade)
    p = task.train[0]
    for (asked, answer), (hinted, again), shot in zip(task.turns(p), task.turns(p, hinted=True), shots, strict=True):
        assert (asked, hinted) == (task.turn(shot.problem), task.turn(shot.problem, hinted=True))
        assert answer == again
        assert hinted != asked
        assert task.hint_mark not in asked + answer
        assert answer.count("The answer is") == 1
        assert task.right(shot.problem, answer)
        assert not task.leaks(shot.problem, answer)


def test_shipped_examples_are_a_few_shot_file(tmp_path):
    """Whoever wants other examples copies the file and edits it."""
    for name, write, n in (("gsm8k", grade_school, 8), ("commonsenseqa", common_sense, 7)):
        data = write(tmp_path / name)
        theirs = load_task(name, data=data, few_shot=str(EXAMPLES / f"{name}.jsonl"))
        assert theirs.prefix == load_task(name, data=data, shots=n).prefix


def test_arithmetic_of_the_shipped_examples_is_true():
    for shot in shipped("gsm8k"):
        steps = re.findall(r"([0-9,.]+(?: [-+*/] [0-9,.]+)+) = ([0-9,]+)", shot.rationale)
        assert len(steps) == shot.rationale.count("=") >= 2, shot.rationale
        for left, right in steps:
            left = re.sub(r"[0-9.]+", lambda m: f"Fraction('{m[0]}')", left.replace(",", ""))
            assert eval(left, {"Fraction": Fraction}) == int(right.replace(",", "")), (left, right)
        assert steps[-1][1].replace(",", "") == shot.problem.answer


def test_right_choices_of_the_shipped_examples_vary():
    assert {s.problem.answer for s in shipped("commonsenseqa")} == set("abcde")
    assert all(len(s.problem.choices) == 5 for s in shipped("commonsenseqa"))


# ---- anybody's files


@pytest.mark.parametrize(
    ("answers", "compares", "read"),
    [
        ([7, "1,250", "So it is 7.\n#### 8", -0.5, "$3"], "as numbers", ["7", "1250", "8", "-0.5", "3"]),
        (["yes", "no", "Yes.", "no", "yes"], "as words", ["yes", "no", "Yes.", "no", "yes"]),
        (["Rome", "a  b\nc", "4", "x #### y", "no"], "as words", ["Rome", "a b c", "4", "y", "no"]),
    ],
)
def test_the_grade_is_found_from_the_answers(tmp_path, answers, compares, read):
    task = jsonl(tmp_path, [{"question": f"Why {i}?", "answer": a} for i, a in enumerate(answers)])
    assert (task.compares, [p.answer for p in problems(task)]) == (compares, read)
    assert list(task.notes) == []
    words = jsonl(tmp_path, QA, grade="text")
    assert (words.compares, list(words.notes)) == ("as words", [])


def test_a_few_answers_that_are_no_numbers_are_told(tmp_path):
    task = jsonl(tmp_path, [*QA, {"question": "And then?", "answer": "n/a"}])
    assert task.compares == "as words"
    assert task.notes == ["1 with an answer that is no number, so words are compared: toy-21"]
    refused(lambda: jsonl(tmp_path, [*QA, {"question": "And then?", "answer": "n/a"}], grade="number"),
            words=("toy.jsonl, line 21: the answer 'n/a' is not one number", "--grade text"))


def test_answers_that_no_rationale_could_state_are_told(tmp_path):
    records = [{"question": f"Who {i}?", "answer": a} for i, a in enumerate(["Ann", "Bob", "see p. 5. Or not?"])]
    assert jsonl(tmp_path, records).notes == ["1 with an answer that no rationale could state: toy-3"]


def test_fields_of_other_names(tmp_path):
    records = [{"Body": f"Ann has {i} pens", "Question": {"text": "How many?"}, "A": f"{i}.0", "Type": t, "why": "x"}
               for i, t in enumerate(["plus", "minus", 3])]
    task = jsonl(tmp_path, records, fields="question=Body+Question.text,answer=A,group=Type,rationale=why")
    assert problems(task) == [Problem(f"toy-{i + 1}", f"Ann has {i} pens. How many?", str(i), t)
                              for i, t in enumerate(["plus", "minus", "3"])]
    assert {task.gold(p) for p in problems(task)} == {f" x. The answer is {i}." for i in range(3)}


@pytest.mark.parametrize(
    ("listed", "answer", "letter"),
    [
        (["red", " blue ", "green"], "B", "b"),
        (["red", " blue ", "green"], "b", "b"),
        (["red", " blue ", "green"], "blue", "b"),
        (["red", "light\n blue", "green"], "light\n blue", "b"),
        (["red", "blue", "green"], 0, "a"),
        (["red", "blue", "green"], 2, "c"),
        (["4", "2", "1", "3"], 1, "b"),  # a number is an index where the choices are texts
        (["4", "2", "1", "3"], "1", "c"),
        ([4, 2, 1, 3], 1, "c"),
        ([4, 2, 1, 3], "1", "c"),
        ([{"label": "A", "text": "red"}, {"label": "B", "text": "blue"}], "B", "b"),
        ([{"label": "1", "text": "3"}, {"label": "2", "text": "1"}], "1", "a"),
        ([{"label": 1, "text": "red"}, {"label": 2, "text": "blue"}], 1, "a"),
        ([{"label": "A", "text": "b"}, {"label": "B", "text": "a"}], "A", "a"),
        ({"label": ["A", "B", "C"], "text": ["red", "blue", "green"]}, "C", "c"),
        ({"label": ["1", "2", "3", "4"], "text": ["red", "blue", "green", "grey"]}, "4", "d"),
        ({"label": ["1", "2", "3", "4"], "text": ["red", "blue", "green", "grey"]}, "grey", "d"),
        ({"text": ["red", "blue"]}, "blue", "b"),
    ],
)
def test_choices(tmp_path, listed, answer, letter):
    records = [{"q": f"Which {i}?", "c": {"is": listed}, "a": answer} for i in range(2)]
    task = jsonl(tmp_path, records, fields="question=q,answer=a,choices=c.is")
    texts = [str(c["text"]) if isinstance(c, dict) else str(c).strip() for c in listed] if isinstance(listed, list) \
        else listed["text"]
    assert (task.compares, task.chance) == ("as letters of choices", 1)  # it is the same letter twice
    for p in problems(task):
        assert p.answer == letter
        assert p.choices == tuple(" ".join(t.split()) for t in texts)
        assert task.right(p, f"It fits. The answer is ({letter}).")
        right = p.choices["abcd".index(letter)]
        marked = [line for line in task.hinted(p).split("\n") if "(CORRECT)" in line]
        assert marked == [f"({letter}) {right} (CORRECT)"]


@pytest.mark.parametrize(
    "listed",
    [["one"], [], "one, two", None, ["a", None], ["a", " "], ["a", ["b"]], list(range(27)),
     {"first": "x", "second": "y"}, {"A": ["x"], "B": "y"},
     "red or blue", "(A) red (C) blue", "(B) red", "['red' 'blue']", "[" * 5000, {"A": None, "B": "x"},
     {"label": ["A"], "text": ["x", "y"]}, {"label": 5, "text": ["x", "y"]}, {"text": "xy"},
     [{"label": "A"}, {"label": "B"}], [{"label": None, "text": "x"}, {"text": "y"}],
     [{"label": "A", "text": "x"}, "y"], [{"label": "A", "text": "x"}, {"key": "B", "text": "y"}]],
)
def test_what_is_no_list_of_choices(tmp_path, listed):
    records = [{"question": f"{i}?", "c": c, "answer": "x"} for i, c in enumerate([["x", "y"], listed])]
    refused(lambda: jsonl(tmp_path, records, fields="choices=c"),
            words=("toy.jsonl, line 2: field 'c' is", "a list of 2 to 26 choices", "{label, text}"))


@pytest.mark.parametrize(
    ("listed", "answer", "words"),
    [
        (["red", "blue"], "C", "'C' is neither a label (a, b)"),
        (["red", "blue"], 2, "'2' is neither a label"),
        (["red", "blue"], -1, "'-1' is neither a label"),
        (["red", "blue"], "1", "nor a number that counts them from 0"),
        (["red", "red", "blue"], "red", "nor the text of one choice"),
        (["red", "blue"], 0.5, "'0.5' is neither a label"),
        (["B", "A", "0"], "A", "one choice's letter and another's text"),
        (["red", "blue"], True, "field 'answer' is true"),
        (["red", "blue"], None, "field 'answer' is null"),
    ],
)
def test_answers_that_name_no_choice(tmp_path, listed, answer, words):
    records = [{"question": "Which?", "c": ["b", "a"] if "letter" in words else ["x", "y"], "answer": 0}]
    records[0]["answer"] = records[0]["c"][1]
    records += [{"question": "What?", "c": listed, "answer": answer}]
    refused(lambda: jsonl(tmp_path, records, fields="choices=c"), words=("toy.jsonl, line", words))


def test_a_stem_with_lines_of_its_own_is_not_marked(tmp_path):
    stem = "Which sentence is right?\n(a) this line is no choice\n(b) nor is this"
    records = [{"question": f"{i} {stem}", "c": ["x", "y"], "answer": "y"} for i in "12"]
    task = jsonl(tmp_path, records, fields="choices=c")
    assert task.hinted(task.train[0]).count("(CORRECT)") == 1
    assert "\n(b) y (CORRECT)\n" in task.hinted(task.train[0])


def test_json_that_is_one_document(tmp_path):
    for whole in (QA, {"examples": QA}):
        (tmp_path / "toy.json").write_text(json.dumps(whole, indent=2))
        task = load_task("jsonl", data=str(tmp_path / "toy.json"), zero_shot=True)
        assert [p.answer for p in problems(task)] == [str(i + 1) for i in range(20)]


def test_windows_files_and_line_separators(tmp_path):
    text = '\ufeff{"question": "one\u2028more?", "answer": "1"}\r\n\r\n{"question": "two?", "answer": "2"}\r\n'
    (tmp_path / "toy.jsonl").write_bytes(text.encode())
    task = load_task("jsonl", data=str(tmp_path / "toy.jsonl"), zero_shot=True)
    assert problems(task) == [Problem("toy-1", "one\u2028more?", "1"), Problem("toy-2", "two?", "2")]


def test_heldout_share(tmp_path):
    task = jsonl(tmp_path)
    assert [p.id for p in task.heldout] == ["toy-2"]  # about a tenth: by a hash of each question
    assert {p.id for p in task.train} | {p.id for p in task.heldout} == {f"toy-{i}" for i in range(1, 21)}
    again = jsonl(tmp_path, examples=SHOTS)
    assert (again.train, again.heldout) == (task.train, task.heldout)
    assert len(jsonl(tmp_path, heldout_share=0.5).heldout) == 10


def test_heldout_file(tmp_path):
    held = [{"question": "What is 5+1?", "answer": "6"}, {"question": "What is 5-1?", "answer": "So.\n#### 4"}]
    file = lines(tmp_path / "held" / "exam.jsonl", held)
    task = jsonl(tmp_path, heldout=str(file))
    assert task.heldout == [Problem("exam-1", "What is 5+1?", "6"), Problem("exam-2", "What is 5-1?", "4")]
    assert len(task.train) == 19
    assert task.notes == ["1 left out of training (held out): toy-6"]
    same = lines(tmp_path / "held" / "toy.jsonl", held)
    assert [p.id for p in jsonl(tmp_path, heldout=str(same)).heldout] == ["heldout-toy-1", "heldout-toy-2"]
    refused(lambda: jsonl(tmp_path, heldout=str(tmp_path / "toy.jsonl")), words=(
        "nothing is left to train on", "20 left out of training (held out): toy-1, toy-2, toy-3 and 17 more"))
    lines(file, [*held, {"question": "Why?", "answer": "because"}])  # the grade is that of --data
    refused(lambda: jsonl(tmp_path, heldout=str(file)), words=("exam.jsonl, line 3", "'because' is not one number"))


def test_human_rationales(tmp_path):
    written = ["One and one <<1+1=2>>make 2", "Count: 1, 2, 3!", "It is 4. The answer is 4.", "Add them.\n#### 5",
               "The answer is 2 * 3 = 6."]
    records = [{"question": f"1+{i}?", "answer": i + 1, "why": why} for i, why in enumerate(written, 1)]
    held = lines(tmp_path / "held.jsonl", [{"question": "2+2?", "answer": 4, "why": "Twice 2."}])
    task = jsonl(tmp_path, records, fields="rationale=why", heldout=str(held))
    assert [task.gold(p) for p in task.train] == [
        " One and one make 2. The answer is 2.", " Count: 1, 2, 3! The answer is 3.", " It is 4. The answer is 4.",
        " Add them. The answer is 5.", " The answer is 2 * 3 = 6. The answer is 6."]
    assert [task.gold(p) for p in task.heldout] == [" Twice 2. The answer is 4."]
    assert all(task.right(p, task.gold(p)) for p in task.train)
    assert jsonl(tmp_path, records).gold(task.train[0]) is None
    refused(lambda: jsonl(tmp_path, [*records, {"question": "0?", "answer": 0}], fields="rationale=why"),
            words=("toy.jsonl, line 6 has no field 'why'", "--fields rationale=..."))


def test_repeats_and_groups(tmp_path):
    records = [{"question": q, "answer": 1, "kind": k} for q, k in (("One?", "x"), ("one ?", "y"), ("Two?", "x"))]
    held = lines(tmp_path / "held.jsonl", [{"question": "TWO?", "answer": 1, "kind": "z"}])
    task = jsonl(tmp_path, records, heldout=str(held), fields="group=kind")
    assert [(p.id, p.group) for p in [*task.train, *task.heldout]] == [("toy-1", "x"), ("held-1", "z")]
    assert task.notes == ["1 left out of training (held out): toy-3", "1 left out of training (repeats another): toy-2"]


def test_chance(tmp_path):
    records = [{"question": f"{i}?", "answer": a} for i, a in enumerate(["yes", "no", "no", "no"])]
    held = str(lines(tmp_path / "held.jsonl", [r | {"question": "h" + r["question"]} for r in records]))
    assert jsonl(tmp_path, records, heldout=held).chance == 0.75
    assert jsonl(tmp_path).chance == 0  # each answer stands there once
    def of_choices(*answers):
        rows = [{"question": f"{i}?", "answer": a, "c": "xy" if i % 2 else "xyzw"} for i, a in enumerate(answers)]
        rows = [r | {"c": list(r["c"])} for r in rows]
        held = str(lines(tmp_path / "held.jsonl", [r | {"question": "h" + r["question"]} for r in rows]))
        return jsonl(tmp_path, rows, heldout=held, fields="choices=c").chance

    assert of_choices("x", "y") == 0.5
    assert of_choices("x", "y", "z", "y", "w", "x") == 0.375  # of guessing any
    assert of_choices("x", "x", "x", "y") == 0.75  # of always giving the commonest
    numbers = [{"question": f"{i}?", "answer": a} for i, a in enumerate(["7", 7.0, "$7", 8])]
    held = str(lines(tmp_path / "held.jsonl", [r | {"question": "h" + r["question"]} for r in numbers]))
    assert jsonl(tmp_path, numbers, heldout=held).chance == 0.75
    few = [r | {"question": "h" + r["question"], "answer": "no"} for r in records[:2]]  # of all, not of a few held out
    assert jsonl(tmp_path, records, heldout=str(lines(tmp_path / "held.jsonl", few))).chance == pytest.approx(5 / 6)


# ---- prompts


def test_few_shot_text(tmp_path):
    task = jsonl(tmp_path, examples=SHOTS)
    assert task.prefix == ("Q: 2+2?\nA: 2+2 = 4. The answer is 4.\n\nQ: 3*3?\nA: 3*3 = 9. The answer is 9.\n\n")
    assert task.hint_prefix == task.prefix.replace("2?", "2? (Answer: 4)").replace("3?", "3? (Answer: 9)")
    p = problems(task)[0]
    assert (task.question(p), task.hinted(p)) == ("Q: What is 0+1?\nA:", "Q: What is 0+1? (Answer: 1)\nA:")
    assert (task.few_shot(p), task.few_shot(p, hinted=True)) == (task.prefix, task.hint_prefix)
    assert task.hint_mark in task.hinted(p)
    assert task.hint_mark not in task.prefix + task.question(p)
    assert any(("Q: " + s["question"]).startswith(end.strip()) for end in task.stop for s in SHOTS)
    assert jsonl(tmp_path, examples=SHOTS, shots=1).prefix == "Q: 2+2?\nA: 2+2 = 4. The answer is 4.\n\n"


@pytest.mark.parametrize(
    "rationale", ["So 2+2 = 4.\n#### 4", "It is \\boxed{4}", "2+2 = 4. Answer: 4", "So the answer is 4!"]
)
def test_an_example_that_states_its_answer_keeps_its_form(tmp_path, rationale):
    task = jsonl(tmp_path, examples=[SHOTS[0] | {"rationale": rationale}])
    assert task.prefix == f"Q: 2+2?\nA: {rationale}\n\n"
    assert task.answers_only().prefix == "Q: 2+2?\nA: The answer is 4.\n\n"


def test_an_example_that_only_speaks_of_an_answer_is_given_one(tmp_path):
    task = jsonl(tmp_path, examples=[SHOTS[0] | {"rationale": "The answer is found by adding 2 and 2."}])
    assert task.prefix == "Q: 2+2?\nA: The answer is found by adding 2 and 2. The answer is 4.\n\n"


def test_zero_shot_instruction(tmp_path):
    task = jsonl(tmp_path)
    p = problems(task)[0]
    how = "\nReason step by step, and end with: The answer is (...), the number.\nA:"
    assert task.prefix == task.hint_prefix == ""
    assert task.turns(p) == []
    assert task.question(p) == f"Q: What is 0+1?{how}"
    assert task.hinted(p) == f"Q: What is 0+1? (Answer: 1){how}"
    assert task.answers_only().question(p) == "Q: What is 0+1?\nGive the number alone: The answer is (...).\nA:"
    records = [{"question": f"{i}?", "c": ["x", "y"], "answer": "x"} for i in "12"]
    chosen = jsonl(tmp_path, records, fields="choices=c")
    how = how.replace("the number", "the letter in brackets")
    assert chosen.hinted(chosen.train[0])[5:] == f"\nAnswer Choices:\n(a) x (CORRECT)\n(b) y{how}"


def test_conversation(tmp_path):
    task = jsonl(tmp_path, examples=SHOTS)
    p, answers = problems(task)[0], ["2+2 = 4. The answer is 4.", "3*3 = 9. The answer is 9."]
    assert task.turns(p) == list(zip(["2+2?", "3*3?"], answers, strict=True))
    assert task.turns(p, hinted=True) == list(zip(["2+2? (Answer: 4)", "3*3? (Answer: 9)"], answers, strict=True))
    assert (task.turn(p), task.turn(p, hinted=True)) == ("What is 0+1?", "What is 0+1? (Answer: 1)")
    assert jsonl(tmp_path).turn(p).endswith("end with: The answer is (...), the number.")


def test_answers_only(tmp_path):
    task = jsonl(tmp_path, examples=SHOTS, fields="rationale=question")
    direct = task.answers_only()
    assert direct.prefix == "Q: 2+2?\nA: The answer is 4.\n\nQ: 3*3?\nA: The answer is 9.\n\n"
    p = problems(task)[0]
    assert [answer for _, answer in direct.turns(p)] == ["The answer is 4.", "The answer is 9."]
    assert direct.gold(p) == " The answer is 1."
    assert direct.right(p, direct.gold(p))
    assert "2+2 = 4" in task.prefix  # the task itself is as it was
    assert task.gold(p) == " What is 0+1? The answer is 1."


def test_typed_questions(tmp_path):
    task = jsonl(tmp_path)
    assert task.parse(" 1+1? \n") == Problem("typed", "1+1?", "")
    assert not task.right(task.parse("1+1?"), "The answer is 2.")
    refused(task.parse, " ", words=("the question is empty",))


# ---- grading


def test_right(tmp_path):
    task = jsonl(tmp_path)
    p = Problem("x", "48+24?", "72")
    for text in ("48+24 = 72. The answer is 72.", "The answer is $72.00.\n", "#### 72", "The answer is 72.\n\nQ: 1?"):
        assert task.right(p, text)
        assert task.extract(text) == "72"
    for text in ("", "The answer is 27.", "The answer is 72 or 27.", "72 clips and 27 more. Who knows?"):
        assert not task.right(p, text)
    words = jsonl(tmp_path, [{"question": f"{i}?", "answer": "the Red Sea"} for i in "12"])
    assert words.extract("So. The answer is the Red Sea.") == "red sea"
    assert words.right(words.train[0], "So. The answer is the Red Sea.")
    assert not words.right(words.train[0], "So. The answer is the Dead Sea.")
    assert words.ending("Yes.") == words.ending("Yes") == " The answer is Yes."


def test_a_letter_with_the_words_of_another_choice_is_wrong():
    places = Problem("x", "Where?", "b", choices=("park", "Park bench", "bank", "bank"))
    task = Questions([places], [Problem("h", "Two?", "a")], [], "choice")
    for text in ("The answer is (b).", "The answer is (b) park bench.", "(b) PARK BENCH is best. The answer is b.",
                 "Not the (a) park. The answer is (b).", "The answer is (b), benches are for that.",
                 "The best is b. Parking is elsewhere. The answer is (b)."):
        assert task.right(places, text), text
    for text in ("The answer is (b) park.", "The answer is (b) bank.", "The best is b. bank. The answer is (b)."):
        assert task.extract(text) == "b"
        assert not task.right(places, text), text
    first, third = (replace(places, answer=c) for c in "ac")
    assert task.right(first, "The answer is (a) park.")
    assert not task.right(first, "The answer is (a) park bench.")
    assert task.right(third, "The answer is (c) bank.")  # the fourth is called so too
    assert not task.right(Problem("x", "No choices?", ""), "The answer is (b).")
    assert task.right(Problem("x", "No choices?", "b"), "The answer is (b) park.")
    assert task.right(Problem("x", "Two?", "d", choices=("park", "bank")), "The answer is (d) park.")


@pytest.mark.parametrize("letter", "abcdefghijklmnopqrstuvwxyz")
def test_every_letter_can_be_stated(letter):
    p = Problem("x", "Which?", letter, choices=tuple(f"thing {i}" for i in range(26)))
    task = Questions([p], [Problem("h", "Two?", "a")], [], "choice")
    assert task.right(p, "It fits." + task.ending(letter))
    assert f"({letter}) thing {ord(letter) - 97} (CORRECT)\n" in task.hinted(p)


LEAKS = ["2+3 = 5 (Answer: 5). The answer is 5.", "The answer is 5.", "5", "So the final answer is 5.",
         "As the hint says, 2 and 3 make 5.", "We were given the answer, it is 5.", "The answer provided above is 5.",
         "The answer key says 2+3 = 5. The answer is 5.", "It is marked as 5, so 2+3 is 5."]
CLEAN = ["2+3 = 5. The answer is 5.", "Ann was given 2 hours to answer 3 of them. So 2+3 = 5. The answer is 5.",
         "The pen was marked down by 3 to 5. The answer is 5.", "2+3=5", "She answered 2 and 3. The answer is 5.",
         "Shown 2 answering machines and 3 more, he saw 2+3 = 5. The answer is 5."]


@pytest.mark.parametrize("text", LEAKS + CLEAN)
def test_leaks(tmp_path, text):
    assert jsonl(tmp_path).leaks(Problem("x", "2+3?", "5"), text) == (text in LEAKS)


def test_leaks_of_choices_and_words(tmp_path):
    p = Problem("x", "Where?", "b", choices=CHOICES)
    task = Questions([p], [Problem("h", "Two?", "a")], [], "choice")
    for text in ("Rivers have banks. See (b) river bank (CORRECT). The answer is (b).", "(b)", "The answer is (b)."):
        assert task.leaks(p, text)
    assert not task.leaks(p, "Of the choices only a river bank is by water. The answer is (b).")
    words = jsonl(tmp_path, [{"question": f"{i}?", "answer": "the Red Sea"} for i in "12"])
    assert words.leaks(words.train[0], "The answer is the Red Sea.")
    assert not words.leaks(words.train[0], "Moses crossed it. The answer is the Red Sea.")


@pytest.mark.parametrize("grade", ["number", "choice", "text", "set", "value"])
def test_grading_is_total(grade):
    answer, given = ("1+1", ("1", "1")) if grade == "value" else ("b", ())
    rng, p = random.Random(2), Problem("x", "Which?", answer, choices=CHOICES, numbers=given)
    task = Questions([p], [Problem("h", "Two?", "a")], [], grade)
    pieces = [*string.printable, *"½²٣–×°√’“\u2028\x00\ud800é\ufeff", "The answer is ", "#### ", "\\boxed{", "(b)",
              "\\frac{1}{", "1e999", "9" * 80, "1/0", "-", "answer", "not ", "<<1=", ">>", "\nQ:", "is the answer",
              "(CORRECT)", "wait, ", "million", "x 10^-999", "**", "river bank", "\n1. ", "yes, ", "^{", "\\", "$",
              "9**9**9", "(", ")", "2/0", "1+1", ", ", "; ", " and ", "\n- "]
    for _ in range(3000):
        text = "".join(rng.choice(pieces) for _ in range(rng.randrange(25)))
        found = task.extract(text)
        assert found is None or (isinstance(found, str) and found)
        assert task.right(p, text) in (True, False)
        assert task.leaks(p, text) in (True, False)


# ---- what is refused


@pytest.mark.parametrize(
    ("shot", "words"),
    [
        ({"rationale": "The answer is 5."}, ["few-shot example 2 (", "shots.jsonl, line 2: '2+2?')",
                                             "The answer is 5.", "does not arrive at its answer '4'"]),
        ({"rationale": "So it is 5.\n#### 5"}, ["does not arrive at its answer '4', compared as numbers"]),
        ({"answer": "many"}, ["does not arrive at its answer 'many'", "correct one of them"]),
        ({"answer": "4 or 5"}, ["does not arrive at its answer"]),
        ({"answer": None}, ["shots.jsonl, line 2: field 'answer' is null"]),
        ({"rationale": ""}, ["shots.jsonl, line 2: field 'rationale' is"]),
        ({"question": "what is 1 + 1?"}, ["few-shot example 2 (", "shots.jsonl, line 2) is held-out problem toy-2",
                                             "take another"]),
    ],
)
def test_bad_examples(tmp_path, shot, words):
    assert "toy-2" in {p.id for p in jsonl(tmp_path).heldout}
    refused(lambda: jsonl(tmp_path, examples=[SHOTS[1], SHOTS[0] | shot]), words=tuple(words))


def test_examples_of_a_choice_need_their_choices(tmp_path):
    data, shots = common_sense(tmp_path), tmp_path / "s.jsonl"
    good = {"question": "Which is it?", "choices": CHOICES, "rationale": "It fits.", "answer": "C"}
    listed = "Answer Choices:\n(a) bank\n(b) river bank\n(c) mall\n(d) new york\n(e) sofa"
    for answer in ("C", "c", "mall", 2):
        task = load_task("commonsenseqa", data=data, few_shot=str(lines(shots, [good | {"answer": answer}])))
        assert task.prefix == f"Q: Which is it?\n{listed}\nA: It fits. The answer is (c).\n\n"
        assert task.hint_prefix == task.prefix.replace("(c) mall", "(c) mall (CORRECT)")
    for bad, words in (({k: v for k, v in good.items() if k != "choices"}, "no field 'choices'"),
                       (good | {"answer": "shop"}, "'shop' is neither a label"),
                       (good | {"choices": ["mall"]}, "a list of 2 to 26 choices")):
        lines(shots, [good, bad])
        refused(lambda: load_task("commonsenseqa", data=data, few_shot=str(shots)), words=("s.jsonl, line 2", words))
    for name in ("question", "rationale", "answer"):
        lines(shots, [{k: v for k, v in good.items() if k != name}])
        refused(lambda: load_task("commonsenseqa", data=data, few_shot=str(shots)), words=(
            f"line 1 has no field '{name}'", "a few-shot example has question, rationale and answer, and choices"))
    place = Problem("x", "Where?", "b")
    refused(lambda: Questions([replace(place, choices=CHOICES)], [], [Shot(place, "There.")], "choice"), words=(
        "few-shot example 1 (x: 'Where?') has no choice (b) to mark as right",))


def test_examples_in_training_are_left_out(tmp_path):
    task = jsonl(tmp_path, examples=[{"question": "What is 0+1?", "rationale": "0+1 = 1.", "answer": 1}])
    assert task.notes == ["1 left out of training (few-shot example): toy-1"]
    assert "toy-1" not in {p.id for p in [*task.train, *task.heldout]}


@pytest.mark.parametrize(
    ("records", "options", "words"),
    [
        ([{"q": "1?", "a": 1}], {}, ["no field 'answer' (there is 'q', 'a')", "--fields answer=..."]),
        ([{"q": 1, "answer": 1}], {}, ["no field 'question' (there is 'q', 'answer')", "--fields question=..."]),
        ([*QA, {"question": "?", "answer": ""}], {}, ["toy.jsonl, line 21: field 'answer' is"]),
        ([*QA, {"question": "", "answer": 1}], {}, ["toy.jsonl, line 21: field 'question' is"]),
        ([*QA, {"question": "?", "answer": "1 ####"}], {"grade": "number"}, ["line 21: the answer", "not one number"]),
        ([*QA, {"question": "?", "answer": "..."}], {}, ["toy.jsonl, line 21: the answer '...' has no words"]),
        (QA, {"fields": "group=kind"}, ["line 1 has no field 'kind'", "--fields group=..."]),
        (QA, {"fields": "choices=c"}, ["line 1 has no field 'c'", "--fields choices=..."]),
        (QA, {"grade": "choice"}, ["--grade choice and --fields choices=... belong together"]),
        (QA, {"grade": "number", "fields": "choices=c"}, ["--grade choice and --fields choices=... belong together"]),
        (QA, {"fields": "qestion=q"}, ["--fields has 'qestion=q'", "choices, rationale, group, numbers"]),
        (QA, {"fields": "question"}, ["--fields has 'question', which names no field: write question=NAME"]),
        (QA, {"fields": "answer=,question=q"}, ["--fields has 'answer=', which names no field"]),
        (QA, {"fields": "question=a+"}, ["--fields has 'question=a+', which names no field"]),
        (QA, {"fields": "answer=a, answer=b"}, ["--fields has answer twice", "answer=a+b"]),
        (QA, {"fields": "answer"}, ["--fields has 'answer'"]),
        (QA, {"heldout_share": 1.0}, ["--heldout-share is 1.0", "1e-6 to 0.9"]),
        (QA, {"grade": "words"}, ["--grade is 'words'", "number, choice, text, set, value, none"]),
        (QA, {"grade": "number", "fields": "numbers=n"}, ["--fields numbers=...", "belongs to --grade value"]),
        (QA, {"all_numbers": True}, ["--all-numbers", "--fields numbers=..."]),
        (QA, {"shuffle_choices": True}, ["--shuffle-choices", "there are none", "--fields choices=..."]),
        (QA, {"template": "{question}", "fields": "question=q"}, ["--template and --fields question", "leave one"]),
        (QA, {"template": "What is it?"}, ["--template 'What is it?' names no field", "in braces"]),
        (QA, {"template": "{question} {x.y}"}, ["line 1 has no field 'x.y' (there is 'question', 'answer')"]),
        (QA[:1], {}, ["toy.jsonl holds 1 problem, which --heldout-share holds out", "by --heldout"]),
        (QA[:1] * 3, {}, ["toy.jsonl holds 3 problems, all of one question, which --heldout-share holds out"]),
        (QA, {"heldout": "x.jsonl", "heldout_share": 0.5}, ["--heldout ", "--heldout-share", "leave one"]),
        (QA, {"shots": 2}, ["--zero-shot shows no examples", "leave out --few-shot and --shots"]),
        (QA, {"few_shot": "x.jsonl"}, ["--zero-shot shows no examples"]),
        (QA, {"digits": "3"}, ["task jsonl has no setting --digits"]),
    ],
)
def test_what_is_refused(tmp_path, records, options, words):
    refused(lambda: jsonl(tmp_path, records, **options), words=tuple(words))


def test_files_that_are_not_there(tmp_path):
    data, no = str(lines(tmp_path / "toy.jsonl", QA)), str(tmp_path / "no.jsonl")
    for options in ({"data": no, "zero_shot": True}, {"data": data, "heldout": no, "zero_shot": True},
                    {"data": data, "few_shot": no}):
        refused(lambda o=options: load_task("jsonl", **o), words=("no.jsonl is not there",), error=FileNotFoundError)
    folder = str(tmp_path)
    refused(lambda: load_task("jsonl", data=folder, zero_shot=True), words=("a folder",), error=FileNotFoundError)
    refused(lambda: load_task("jsonl", zero_shot=True), words=(
        "task jsonl needs --data (a .jsonl, .json, .csv, .tsv or .parquet file",))
    refused(lambda: load_task("jsonl", data=data), words=("--few-shot", "--zero-shot"))
    refused(lambda: load_task("gsm8k", data=data, grade="text"), words=("task gsm8k has no setting --grade",))


@pytest.mark.parametrize("n", [0, -1, 3])
def test_more_examples_than_there_are(tmp_path, n):
    refused(lambda: jsonl(tmp_path, examples=SHOTS, shots=n), words=(f"--shots is {n}", "are 2 few-shot examples"))


def test_a_task_of_one_s_own_may_use_the_class():
    shot = Shot(Problem("s", "1+1?", "2"), "1+1 = 2")
    task = Questions([Problem("t", "2+2?", "4")], [Problem("h", "3+3?", "6")], [shot], "number", {"t": "Twice 2 is 4"})
    assert task.gold(task.train[0]) == " Twice 2 is 4. The answer is 4."
    assert task.gold(task.heldout[0]) is None
    assert Questions([], [], [], "text").chance == Questions([], [], [], "choice").chance == 0


# ---- anybody's task: a file of code

PARITY = """
from star.problem import Problem, Shot
from star.tasks import Task


class Parity(Task):
    hint_mark = "hint"

    def __init__(self, digits):
        problems = [Problem(str(n), str(n), "odd" if n % 2 else "even") for n in range(10**digits)]
        self.train, self.heldout = problems[1:], problems[:1]
        self.shots = [Shot(p, f"It ends in {p.question}.\\n{p.answer}") for p in problems[:2]]

    def question(self, problem):
        return problem.question + "?\\n"

    def hinted(self, problem):
        return f"hint {problem.answer}\\n" + self.question(problem)

    def extract(self, text):
        return text.rpartition("\\n")[2] or None


def load(digits: int = 1):
    return Parity(digits)
"""


@pytest.fixture
def task_file(tmp_path, monkeypatch):
    """Writes a file into a second folder of tasks, which is the current one, and gives its name."""
    monkeypatch.setattr(star.tasks, "__path__", [*star.tasks.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)

    def write(code, name="parity"):
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        sys.modules.pop(f"star.tasks.{name}", None)
        sys.dont_write_bytecode = True  # two versions in one second would be taken for one
        return name

    written = sys.dont_write_bytecode
    yield write
    sys.dont_write_bytecode = written
    for module in [m for m in sys.modules if m.startswith("star.tasks.parity")]:
        del sys.modules[module]


def test_a_file_with_a_load_is_a_task(task_file):
    task_file(PARITY)
    task_file("from star.tasks.parity import load\n", "parity_other")  # it has one, but does not define it
    assert task_names() == ["arithmetic", "coin_flip", "columns", "commonsenseqa", "gsm8k", "jsonl", "parity"]
    assert load_task("parity").name == "parity"
    assert len(load_task("parity", digits=2).train) == 99
    for name in ("algebra", "__init__", "../gsm8k", "verifier"):
        refused(lambda n=name: load_task(n), words=(f"unknown task {name!r}", "known are arithmetic, coin_flip,"))
    refused(lambda: load_task("records"), words=("star/tasks/records.py has no function load(...)",))


def test_any_file_is_a_task(tmp_path, monkeypatch):
    """--task mine/odd.py: as a file of star/tasks, with what lies beside it, and its mistakes are named alike."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "beside.py").write_text("EVEN = 'even'\n")
    (folder / "odd.py").write_text(PARITY.replace("from star.problem", "from beside import EVEN\nfrom star.problem")
                                   .replace('"even"', "EVEN"))
    task = load_task("mine/odd.py", digits=2)
    assert (task.name, len(task.train), task.train[1].answer) == ("odd", 99, "even")
    assert task_options("mine/odd.py") == {"digits": Option("digits", int, 1, "")}
    assert type(load_task(str(folder / "odd.py"))) is type(task)
    refused(lambda: load_task("mine/even.py"), words=("--task mine/even.py: there is no such file",))
    refused(lambda: load_task("parity"), words=("unknown task 'parity'", "or give a .py file"))
    refused(lambda: load_task("gsm8"), words=("unknown task 'gsm8': did you mean gsm8k?",))
    broken = PARITY.replace("return Parity(digits)", "raise ValueError('digits are out')")
    (folder / "spoken.py").write_text(broken)
    refused(lambda: load_task("mine/spoken.py"), words=("digits are out",))
    (folder / "broken.py").write_text(PARITY.replace("return Parity(digits)", "return Parity"))
    refused(lambda: load_task("mine/broken.py"), words=("mine/broken.py: load gives <class 'task_broken.Parity'>",))


def test_shots_are_all_that_few_shot_text_and_conversations_need(task_file):
    task = load_task(task_file(PARITY))
    p = task.train[4]
    assert task.few_shot(p) == task.prefix == "0?\nIt ends in 0.\neven\n\n1?\nIt ends in 1.\nodd\n\n"
    assert task.few_shot(p, hinted=True) == task.hint_prefix == task.prefix.replace("0?", "hint even\n0?").replace(
        "1?", "hint odd\n1?")
    assert task.turns(p, hinted=True) == [("hint even\n0?", "It ends in 0.\neven"),
                                          ("hint odd\n1?", "It ends in 1.\nodd")]
    assert task.turn(p) == "5?"
    task.between = "\n--\n"
    assert task.prefix == "0?\nIt ends in 0.\neven\n--\n1?\nIt ends in 1.\nodd\n--\n"
    task.shots = ()
    assert (task.prefix, task.hint_prefix, task.turns(p)) == ("", "", [])


def test_options_are_the_parameters_of_load(task_file):
    code = PARITY.replace("def load(digits: int = 1):", '''def load(width, digits: int | None = 1, rate: "float" = None,
         big=False, file: Path | None = None, more=2, other=None, **rest):
    """What it is.

    width: how wide,
        in digits: or not
    rate: a part

    Raises: nothing. big: no help.
    """''').replace("from star.problem", "from pathlib import Path\n\nfrom star.problem")
    name = task_file(code)
    assert task_options(name) == {o.name: o for o in (
        Option("width", str, Option.REQUIRED, "how wide, in digits: or not"),
        Option("digits", int, 1, ""), Option("rate", float, None, "a part"),
        Option("big", bool, False, ""), Option("file", Path, None, ""), Option("more", int, 2, ""),
        Option("other", str, None, ""))}
    refused(lambda: load_task(name), words=("task parity needs --width (how wide, in digits: or not)",))
    refused(lambda: load_task(name, width=1, size=2), words=("task parity has no setting --size",))
    assert load_task(name, width=1, digits=None, big=False).name == name
    for task in task_names():
        assert all(o.help for o in task_options(task).values()) or task == "parity"


BROKEN = [  # what is put in place of what, the beginning of the line that names it, and what happened
    ("return text.rpartition", "return text.split()[3] + text.rpartition",
     "parity.py:21: extract('') raises IndexError: list index out of range"),
    ("return text.rpartition", "return 5 or text.rpartition",
     "parity.py:20: extract('') gives 5; it must give str | None"),
    ("def extract", "def extrakt", "parity.py: extract('') raises TypeError: Parity has no extract(text)"),
    ("def hinted", "def hintet", "parity.py: hinted(Problem(id='1'"),
    ('return problem.question + "?\\n"', "return '?'[int(problem.question) // 9]",
     "parity.py:15: question(Problem(id='9', question='9', answer='odd', group='', choice...) raises IndexError: "),
    ('return f"hint {problem.answer}', 'return "?"[int(problem.id) // 9] + f"hint {problem.answer}',
     "parity.py:18: hinted(Problem(id='9'"),
    ('return f"hint', 'return None and f"hint', "gives None; it must give str"),
    ("(digits: int = 1):", "(digits: int = 1):\n    None.x", "parity.py:25: load() raises AttributeError"),
    ("(digits: int = 1):", "(digits: 'no' = 1):", "parity.py: load's annotations raises NameError"),
    ("return Parity(digits)", "return Parity", "parity.py: load gives <class 'star.tasks.parity.Parity'>, which is no"),
    ("def load(", "def loat(", "parity.py has no function load(...)"),
    ("def question(self", "def question(self))", "parity.py:14: import raises SyntaxError"),
    ("class Parity", "1 / 0\nclass Parity", "parity.py:6: import raises ZeroDivisionError: division by zero"),
    ("problems[1:], problems[:1]", "tuple(problems[1:]), problems[:1]", "task parity: train is (Problem(id='1'"),
    ("problems[1:], problems[:1]", "problems[1:], [None]", "task parity: heldout holds None"),
    ("self.train, ", "self.trian, ", "task parity: train is None; it must be a list of Problem"),
    ("Problem(str(n), ", "Problem(n, ", "must be texts; they are not in Problem(id=1,"),
    ("problems[1:], problems[:1]", "problems, problems[:1]", "problem '0' stands twice"),
    ("problems[1:], problems[:1]", "problems, []", "task parity has 10 training and 0 held-out problems"),
    ('"even")', '"even", "mean")', "a group named 'mean'"),
    ('hint_mark = "hint"', 'hint_mark = "Hint"', "hint_mark 'Hint' must stand in hinted prompts"),
    ("Shot(p, ", "(p, ", "task parity: shots holds (Problem(id='0'"),
    ("    def extract", "    def right(self, problem, text):\n        return None\n\n    def extract",
     "parity.py:20: right(Problem(id='1', question='1', answer='odd', group='', choice..., '') gives None; it must"),
    ("    def extract", "    def gold(self, problem):\n        return 3\n\n    def extract", "gives 3; it must give"),
    ("    def extract", "    def leaks(self, problem, text):\n        raise OSError('a\\nb\\x1b')\n\n    def extract",
     "raises OSError: a\\nb\\x1b"),
    ("    def extract", "    def check_steps(self, problem, text):\n        return text[0]\n\n    def extract",
     "parity.py:21: check_steps(Problem("),
    ("return Parity(digits)", 'return Parity(int("x"))', "parity.py:25: load() raises ValueError: invalid literal"),
    ("return Parity(digits)", 'return Parity(open("no.txt"))', "parity.py:25: load() raises FileNotFoundError"),
    ("return Parity(digits)", 'raise SystemExit("bye")', "parity.py:25: load() raises SystemExit: bye"),
    ("(digits: int = 1):", "(digits: tuple = (1, 2)):", "parity.py: load's option digits is annotated <class 'tuple'>"),
    ("(digits: int = 1):", "(digits: int | str = 1):", "parity.py: load's option digits is annotated int | str"),
    ('hint_mark = "hint"', 'hint_mark = "hint"\n    stop = "\\n"', "task parity: stop is '\\n'; it must be of type"),
    ('hint_mark = "hint"', 'hint_mark = "hint"\n    stop = ("",)', "task parity: stop holds ''; it must hold texts"),
    ('hint_mark = "hint"', 'hint_mark = "hint"\n    max_new_tokens = "9"', "max_new_tokens is '9'; it must be of type"),
    ('hint_mark = "hint"', 'hint_mark = "hint"\n    max_new_tokens = 0', "max_new_tokens is 0; it must be at least 1"),
    ("{p.question}.\\n{p.answer}", "{p.question}.\\nodd", "few-shot example 1 (0) does not arrive at its answer"),
    ('hint_mark = "hint"', 'hint_mark = "hint"\n    stop = ("\\n",)',
     "few-shot example 1 (0) holds '\\n', at which a rationale ends (`stop`)"),
]


@pytest.mark.parametrize(("part", "broken", "words"), BROKEN)
def test_a_mistake_in_a_task_is_one_line(task_file, part, broken, words):
    assert PARITY.count(part) == 1
    name = task_file(PARITY.replace(part, broken))
    line = refused(lambda: load_task(name), words=(words,))
    assert len(line) < 450
    assert line.startswith(words) or not words.startswith("parity.py")
    assert line.isprintable()


def test_what_load_says_of_its_own_is_left_as_it_is(task_file):
    for error in (ValueError, FileNotFoundError, ImportError):
        name = task_file(PARITY.replace("return Parity", f"raise {error.__name__}('give --x')\n    return Parity"))
        assert refused(load_task, name, error=error) == "give --x"


def test_paths_arrive_as_paths_and_an_own_grader_is_named(task_file):
    code = PARITY.replace("def load(digits: int = 1):", "def load(file: Path, digits: int = 1):\n    file.read_text()")
    code = code.replace("from star.problem", "from pathlib import Path\n\nfrom star.problem")
    right = "    def right(self, problem, text):\n        return problem.answer in text\n\n"
    name = task_file(code.replace("    def extract", right + "    def extract"))
    assert load_task(name, file=str(Path(star.__file__))).compares == "by the task's own `right`"
    assert load_task("arithmetic").compares == "as they are written"


def test_what_parse_raises(task_file):
    """Said on purpose it is for the user; anything else names the file."""
    task = load_task(task_file(PARITY + """

def parse(self, text):
    if not text:
        raise ValueError("type a number")
    return Problem(text, text, str(int(text) % 2))

Parity.parse = parse
"""))
    assert ask(task, "parse", "7").answer == "1"
    assert refused(ask, task, "parse", "") == "type a number"
    refused(ask, task, "parse", "x", words=("parity.py:31: parse('x') raises ValueError: invalid literal",))


def test_ask():
    class Mine(Task):
        def extract(self, text):
            return text[1]

    assert ask(Mine(), "extract", "ab") == "b"
    words = ("tests/test_tasks.py:", "extract('\\x1b') raises IndexError: string index out of range")
    refused(ask, Mine(), "extract", "\x1b", words=words)
    refused(ask, Mine(), "extrakt", words=("extrakt() raises AttributeError",))


def test_trying_out_takes_no_time():
    task = load_task("arithmetic")  # 38,800 problems
    began = time.process_time()
    star.tasks._check_problems(task, "arithmetic")
    star.tasks._try_out(task)
    assert time.process_time() - began < 0.5
