"""Data sets as they are published, by flags alone: a small file of ours in the form of each. And every kind of file."""

import csv
import gzip
import io
import json
import sys
import time
from pathlib import Path

import pytest
from conftest import refused

import star.tasks
from star.problem import Problem
from star.tasks import files, load_task, records, tables


def write(path, value):
    """A file of a text, of bytes, of rows as JSON Lines (.jsonl), or of one JSON document."""
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif isinstance(value, str):
        path.write_text(value, encoding="utf-8", newline="")
    elif path.suffix in (".jsonl", ".txt"):
        path.write_text("".join(json.dumps(r) + "\n" for r in value), encoding="utf-8")
    else:
        path.write_text(json.dumps(value), encoding="utf-8")
    return path


def ask(tmp_path, name, value, shots=None, **flags):
    """A task of --task jsonl from one file, zero-shot unless there are examples."""
    shown = {"zero_shot": True} if shots is None else {"few_shot": write(tmp_path / "shots.jsonl", shots)}
    return load_task("jsonl", data=write(tmp_path / name, value), **(shown | flags))


def problems(task):
    return sorted([*task.train, *task.heldout], key=lambda p: int(p.id.rpartition("-")[2]))


def asked(task):
    """(question, answer) of all problems, in the order of the file."""
    return [(p.question, p.answer) for p in problems(task)]


# ---- published data sets: the form is theirs, the words are ours


def test_aqua(tmp_path):
    """JSON Lines under the name .json; the options carry their letters."""
    rows = [{"question": f"A train runs {n} km in 2 hours. How many km in one?", "correct": letter,
             "options": [f"A){n}", f"B){n / 2}", "C)x/4", f"D)Rs. {n}", "E)None of these"],
             "rationale": f"{n}/2 = {n / 2}. Answer is B."} for n, letter in ((43, "B"), (60, "B"), (7, "E"))]
    task = ask(tmp_path, "train.json", "".join(json.dumps(r) + "\n" for r in rows), shots=[rows[0]],
               fields="choices=options,answer=correct,rationale=rationale")
    p = problems(task)[-1]
    assert p.choices == ("7", "3.5", "x/4", "Rs. 7", "None of these")
    assert [p.answer for p in problems(task)] == ["b", "e"]  # the first is the example
    assert task.prefix == ("Q: A train runs 43 km in 2 hours. How many km in one?\nAnswer Choices:\n(a) 43\n(b) 21.5\n"
                           "(c) x/4\n(d) Rs. 43\n(e) None of these\nA: 43/2 = 21.5. Answer is B.\n\n")
    assert task.gold(problems(task)[0]) == " 60/2 = 30.0. Answer is B. The answer is (b)."


@pytest.mark.parametrize("listed", [[56.0], ["56.0"], [56], "56"])
def test_addsub_multiarith_and_singleeq(tmp_path, listed):
    rows = [{"iIndex": i, "sQuestion": f" Ann had {n} pens and gave 2 away. How many has she? ", "lSolutions": listed,
             "lEquations": [f"X={n}-2"], "lAlignments": [1, 2]} for i, n in enumerate((58, 59))]
    task = ask(tmp_path, "AddSub.json", rows, fields="question=sQuestion,answer=lSolutions")
    assert asked(task)[0] == ("Ann had 58 pens and gave 2 away. How many has she?", "56")
    assert task.compares == "as numbers"
    cell = ask(tmp_path, "AddSub.csv", f'q,a\n1?,"{listed}"\n2?,7\n', fields="question=q,answer=a")
    assert asked(cell)[0] == ("1?", "56")
    by_index = ask(tmp_path, "AddSub.json", rows, fields="question=sQuestion,answer=lSolutions.0") \
        if isinstance(listed, list) else task
    assert asked(by_index) == asked(task)


def test_svamp(tmp_path):
    rows = [{"ID": f"chal-{i}", "Body": "Ann has 3 pens", "Question": f"How many are {i} boxes?",
             "Equation": f"( 3.0 * {i}.0 )", "Answer": 3.0 * i, "Type": "Multiplication"} for i in (1, 2)]
    task = ask(tmp_path, "SVAMP.json", rows, fields="question=Body+Question,answer=Answer,group=Type")
    assert problems(task)[1] == Problem("SVAMP-2", "Ann has 3 pens. How many are 2 boxes?", "6", "Multiplication")


def date(tmp_path, **flags):
    """BIG-bench: an object with more than one list, of which one holds the examples."""
    rows = [{"input": f"Today is the {d}th of May 2021. What is tomorrow in MM/DD/YYYY?",
             "target_scores": {f"05/{d + 1:02}/2021": 1, f"05/{d:02}/2021": 0, f"06/{d:02}/2021": 0}}
            for d in range(10, 22)]
    whole = {"canary": "no training", "name": "dates", "keywords": ["common sense", "time"], "metrics": ["score"],
             "examples": rows, "preferred_score": "score"}
    return ask(tmp_path, "task.json", whole, **flags)


@pytest.mark.parametrize("flags", [
    {"fields": "question=input,choices=target_scores"},
    {"fields": "question=input,choices=target_scores,answer=target_scores"},
    {"fields": "question=input,choices=target_scores", "records": "examples", "grade": "choice"}])
def test_dates_of_big_bench(tmp_path, flags):
    task = date(tmp_path, **flags)
    assert problems(task)[0] == Problem("task-1", "Today is the 10th of May 2021. What is tomorrow in MM/DD/YYYY?", "a",
                                        choices=("05/11/2021", "05/10/2021", "06/10/2021"))
    assert "(a) is right in 12 of 12 problems" in task.notes[0]
    assert "--shuffle-choices" in task.notes[0]
    mixed = date(tmp_path, shuffle_choices=True, **flags)
    assert {p.answer for p in problems(mixed)} == set("abc")
    assert not mixed.notes
    assert asked(date(tmp_path, fields="question=input,answer=target_scores"))[0][1] == "05/11/2021"  # in words


def test_big_bench_as_rows(tmp_path):
    rows = [{"inputs": f"Q{i}?", "targets": ["blue"], "multiple_choice_targets": ["red", "blue"],
             "multiple_choice_scores": [0, 1]} for i in range(3)]
    for answer in ("targets", "multiple_choice_scores", "targets.0"):
        task = ask(tmp_path, "bb.jsonl", rows,
                   fields=f"question=inputs,choices=multiple_choice_targets,answer={answer}")
        assert {p.answer for p in problems(task)} == {"b"}
    assert asked(ask(tmp_path, "bb.jsonl", rows, fields="question=inputs,answer=targets"))[0][1] == "blue"
    for scores in ([1, 1], [0, 0], [0.5, 0.5], [0, 1, 0]):
        refused(lambda s=scores: ask(tmp_path, "bb.jsonl", [rows[0], rows[1] | {"multiple_choice_scores": s}], fields=
                "question=inputs,choices=multiple_choice_targets,answer=multiple_choice_scores"),
                words=("bb.jsonl, line 2: field 'multiple_choice_scores' is [", "1", "and 0 for the others"))


def test_choices_inside_the_question(tmp_path):
    """BIG-bench Hard: the options stand at the question's end, the answer is a letter in brackets."""
    rows = [{"input": f"Ann (A) was born {i}.\nWhen?\nOptions:\n(A) 01/11/1961 (early)\n(B) 01/12/1961\n"
             f"(C) 02/{i}/1961", "target": "(B)"} for i in range(10, 13)]
    task = ask(tmp_path, "bbh.json", {"canary": "", "examples": rows},
               fields="question=input,choices=input,answer=target")
    assert problems(task)[0] == Problem("bbh-1", "Ann (A) was born 10.\nWhen?", "b",
                                        choices=("01/11/1961 (early)", "01/12/1961", "02/10/1961"))
    assert task.question(problems(task)[0]).count("01/12/1961") == 1


COUNTDOWN = [{"target": 98, "nums": [44, 19, 35]}, {"target": 64, "nums": [63, 95, 96]},
             {"target": 28, "nums": [95, 11, 56]}]
ASKED = "Using the numbers {nums}, make an expression that equals {target}. Use each number at most once."


def test_countdown(tmp_path):
    shot = {"nums": [3, 8, 2], "target": 24, "rationale": "3 times 8 is 24. The answer is 3 * 8."}
    task = ask(tmp_path, "countdown.jsonl", COUNTDOWN, shots=[shot], template=ASKED, grade="value",
               fields="answer=target,numbers=nums")
    p = problems(task)[0]
    assert task.question(p) == ("Q: Using the numbers 44, 19, 35, make an expression that equals 98. Use each number "
                                "at most once.\nA:")
    assert (p.answer, p.numbers) == ("98", ("44", "19", "35"))
    assert task.compares == "by their value, and that no given number is used twice"
    assert task.prefix.endswith("A: 3 times 8 is 24. The answer is 3 * 8.\n\n")
    for text in ("So 44 + 19 + 35 = 98. The answer is 44 + 19 + 35.", "The answer is (44+35) + 19 = 98.",
                 "<think>try</think>\n<answer>35 + 44 + 19</answer>", "\\boxed{44 + 19 + 35}"):
        assert task.right(p, text), text
        assert not task.leaks(p, text), text
    for said in ("98", "49 * 2", "44 + 44 + 10", "44 + 19 - 35", "44 + 19 + 35 = 99", "44 + 19 + 35 or 98",
                 "98 = 44 + 54", "44 + 19 + 35 + 0", "44 + 19 + 35 + x"):
        text = f"The answer is {said}."
        assert not task.right(p, text), text
    assert task.extract("The answer is 44 + 19 + 35 = 98.") == "44+19+35"
    assert task.notes == ["the hint is the target, which the question says too: --fields answer=... may name solved "
                          "expressions instead"]
    refused(task.answers_only, words=("3 problems have a target", "countdown-1", "--fields answer="))
    solved = [r | {"how": how} for r, how in zip(COUNTDOWN, ("The answer is 44 + 19 + 35", "No idea.", "56 / 2"),
                                                 strict=True)]
    gold = ask(tmp_path, "countdown.jsonl", solved, template=ASKED, fields="answer=target,numbers=nums,rationale=how")
    assert [gold.gold(p) for p in problems(gold)] == [" The answer is 44 + 19 + 35", None, None]  # of those that arrive
    same = ask(tmp_path, "countdown.jsonl", COUNTDOWN, shots=[shot],
               fields="question=nums+target,answer=target,numbers=nums")
    assert asked(same)[0] == ("44, 19, 35. 98", "98")
    assert same.compares == task.compares  # numbers alone say that it is of value
    refused(lambda: ask(tmp_path, "c.jsonl", COUNTDOWN, shots=[shot | {"rationale": "3 * 8 = 24"}], template=ASKED,
                        fields="answer=target,numbers=nums") and ask(
            tmp_path, "c.jsonl", COUNTDOWN, shots=[shot | {"rationale": "It can be done."}], template=ASKED,
            fields="answer=target,numbers=nums"), words=("It can be done.'", "end it with: The answer is EXPRESSION"))


def test_countdown_that_uses_all_numbers(tmp_path):
    flags = {"template": ASKED, "fields": "answer=target,numbers=nums"}
    rows = [{"nums": [6, 4, 1], "target": 24}, {"nums": "1, 2, 12", "target": "24"}]
    some, every = (ask(tmp_path, "c.jsonl", rows, all_numbers=a, **flags) for a in (False, True))
    first, second = problems(some)
    assert some.right(first, "The answer is 6 * 4.")
    assert not every.right(first, "The answer is 6 * 4.")
    assert every.right(first, "The answer is 6 * 4 * 1.")
    assert second.numbers == ("1", "2", "12")
    assert every.right(second, "The answer is 2 * 12 / 1.")
    assert every.compares.endswith("each given number is used once")
    rows[1] = {"nums": [4, 6, 5, 1], "target": 24}
    five = problems(ask(tmp_path, "c.jsonl", rows, **flags))[1]
    assert every.right(five, "The answer is (5 - 1) * (4 + 6) - 16.") is False
    assert every.right(five, "The answer is 4 * (5 + 1^6).") is False
    assert every.right(five, "The answer is 4 * (6 + 1 - 5 / 5).") is False
    assert every.right(five, "The answer is 4 / (1 - 5 / 6).")
    for power in ("6 * 4 * 1^5", "6 * 4 * 1**5", "6 * 4 * 1^{5}"):
        assert not every.right(five, f"The answer is {power}.")  # a power is no operation of the game
        assert not some.right(five, f"The answer is {power}.")
    assert not some.right(first, "The answer is 5² - 1.")


def test_countdown_with_solutions_and_games_of_24(tmp_path):
    """The hint and the gold rationale are the solved expression; a table has no target, a quoted text stands for it."""
    rows = [{"question": f"Calculate {t} using {n}.", "answer": e, "metadata": {"numbers": n, "target": t}}
            for t, n, e in ((6, [1, 2, 3], "1 + 2 + 3"), (7, [1, 2, 4], "1 + 2 + 4"), (7, [1, 8], "8 - 1 = 7"))]
    task = ask(tmp_path, "gym.jsonl", rows, fields="numbers=metadata.numbers,rationale=question")
    p = problems(task)[0]
    assert task.hinted(p).startswith("Q: Calculate 6 using [1, 2, 3]. (Answer: 1 + 2 + 3)")
    assert task.gold(p) == " Calculate 6 using [1, 2, 3]. The answer is 1 + 2 + 3."
    assert task.answers_only().gold(p) == " The answer is 1 + 2 + 3."
    assert task.leaks(p, "The answer is 1 + 2 + 3.")
    assert not task.leaks(p, "Adding all of the numbers gives six, so that works. The answer is 1 + 2 + 3.")
    assert task.right(p, "The answer is 3 * 2 / 1.")
    assert not task.notes
    table = "Rank,Puzzles,Solved rate\n1,1 1 4 6,99.20%\n2,1 1 11 11,96.41%\n"
    game = ask(tmp_path, "24.csv", table, fields='answer="24",numbers=Puzzles',
               template="Make 24 of {Puzzles}, each number once.")
    assert [(p.question, p.answer, p.numbers) for p in problems(game)] == [
        ("Make 24 of 1 1 4 6, each number once.", "24", ("1", "1", "4", "6")),
        ("Make 24 of 1 1 11 11, each number once.", "24", ("1", "1", "11", "11"))]
    assert game.right(problems(game)[0], "The answer is (1 + 1 - 1) * 4 * 6.") is False
    assert game.right(problems(game)[0], "The answer is 4 * 6 * 1 * 1.")


def test_last_letters_and_coin_flips(tmp_path):
    rows = [{"question": f'Take the last letters of the words in "{n}" and concatenate them.', "answer": a}
            for n, a in (("Ann Bo", "no"), ("Tim Lea", "ma"))]
    task = ask(tmp_path, "letters.json", {"examples": rows})
    assert (task.compares, asked(task)[1][1]) == ("as words", "ma")
    assert task.right(problems(task)[1], "m and a. The answer is MA.")
    coins = [{"Question": f"A coin is heads up. Ann flips it {i} times. Is it heads up?", "Answer": a}
             for i, a in enumerate(("yes", "no", "Yes", "no"))]
    task = ask(tmp_path, "coins.jsonl", coins, fields="question=Question,answer=Answer")
    assert task.right(problems(task)[2], "Two flips. The answer is yes.")


@pytest.mark.parametrize(("rows", "fields", "right"), [
    # ARC, OpenBookQA: labels may be numbers in some rows
    ([{"q": f"{i}?", "c": {"text": ["x", "y", "z"], "label": lab}, "k": k} for i, (lab, k) in enumerate(
        ((["A", "B", "C"], "B"), (["1", "2", "3"], "2")))], "question=q,choices=c,answer=k", "b"),
    # Winogrande: the label is the end of the field's name
    ([{"s": f"{i} _?", "option1": "x", "option2": "y", "answer": "2"} for i in "ab"],
     "question=s,choices=option1+option2", "b"),
    # PIQA: numbers from 0, whatever the fields are called
    ([{"goal": g, "sol1": "x", "sol2": "y", "label": k} for g, k in (("a", 1), ("b", 1), ("c", 0))],
     "question=goal,choices=sol1+sol2,answer=label", "b"),
    # Social IQa: numbers from 1, and fields with letters
    ([{"context": "c", "question": q, "answerA": "x", "answerB": "y", "answerC": "z", "label": k}
      for q, k in (("a", "2"), ("b", "3"), ("c", "1"))],
     "question=context+question,choices=answerA+answerB+answerC,answer=label", "b"),
    # SWAG, HellaSwag
    ([{"ctx": q, "endings": ["x", "y", "z", "w"], "label": k} for q, k in (("a", "1"), ("b", "3"), ("c", "0"))],
     "question=ctx,choices=endings,answer=label", "b"),
    ([{"ctx": q, "ending0": "x", "ending1": "y", "ending2": "z", "label": k}
      for q, k in (("a", 1), ("b", 2), ("c", 1))],
     "question=ctx,choices=ending0+ending1+ending2,answer=label", "b"),
    # MedMCQA, MMLU: numbers; from 1 where one counts the last choice and none is 0
    ([{"question": q, "opa": "x", "opb": "y", "opc": "z", "opd": "w", "cop": k} for q, k in (("a", 2), ("b", 4))],
     "choices=opa+opb+opc+opd,answer=cop", "b"),
    # MedQA: labels to texts; MathQA: one text; SciQ: the answer is a field too; AGIEval: letters in brackets
    ([{"question": q, "options": {"A": "x", "B": "y"}, "answer_idx": "B", "answer": "y"} for q in "ab"],
     "choices=options,answer=answer_idx", "b"),
    ([{"question": q, "options": {"A": "x", "B": "y"}, "answer": "y"} for q in "ab"], "choices=options", "b"),
    ([{"Problem": q, "options": "a ) 3 , 4 rs . , b ) 4 , c ) none of these", "correct": "b"} for q in "ab"],
     "question=Problem,choices=options,answer=correct", "b"),
    ([{"question": q, "d1": "x", "correct_answer": "y", "d2": "z"} for q in "ab"],
     "choices=d1+correct_answer+d2,answer=correct_answer", "b"),
    ([{"question": q, "options": ["(A)x", "(B)y", "(C) z"], "label": "B"} for q in "ab"],
     "choices=options,answer=label", "b"),
    ([{"question": q, "options": ["x", "y"], "answer": "B. y"} for q in "ab"], "choices=options", "b"),
    ([{"question": q, "options": ["A)x", "y", "C)z"], "answer": "B"} for q in "ab"], "choices=options", "b"),
    ([{"question": q, "options": [{"key": "A", "value": "x"}, {"key": "B", "value": "y"}], "answer": "B"}
      for q in "ab"],
     "choices=options", "b"),
    # TruthfulQA: scores beside the choices, or as their values
    ([{"question": q, "mc1": {"choices": ["x", "y", "z"], "labels": [0, 1, 0]}} for q in "ab"],
     "choices=mc1.choices,answer=mc1.labels", "b"),
    ([{"question": q, "mc1_targets": {"x": 0, "y": 1, "z": 0}} for q in "ab"], "choices=mc1_targets", "b"),
    # parquet writes every key of every record; labels that repeat the texts (once a bug of a data set) are none
    ([{"question": q, "t": {"w": None, "x": 0, "y": 1, "z": None}} for q in "ab"], "choices=t", "b"),
    ([{"question": q, "data": {"Options": {"A": "x", "B": "y", "E": None}, "Correct Option": "B"}} for q in "ab"],
     "choices=data.Options,answer=data.Correct Option", "b"),
    ([{"question": q, "c": {"text": ["x", "y"], "label": ["x", "y"]}, "answer": "B"} for q in "ab"], "choices=c", "b"),
    # an answer that names its field; choices as a table's cell spells them; an empty cell is no choice
    ([{"question": q, "first": "x", "second": "y", "answer": "second"} for q in "ab"], "choices=first+second", "b"),
    ([{"question": q, "choices": "['x', \"y's\"]", "answer": "1"} for q in "ab"] + [
        {"question": "c", "choices": '["x", "y"]', "answer": "0"}], "choices=choices", "b"),
    ([{"question": q, "A": "x", "B": "y", "C": None, "D": "", "answer": "B"} for q in "ab"], "choices=A+B+C+D", "b"),
    ([{"question": q, "c": ["1", "2", "3"], "answer": 2.0} for q in "ab"] + [
        {"question": "c", "c": ["1", "2", "3"], "answer": 3.0}], "choices=c", "b"),
])
def test_choices_of_many_data_sets(tmp_path, rows, fields, right):
    task = ask(tmp_path, "set.jsonl", rows, fields=fields)
    assert problems(task)[0].answer == right
    assert len(problems(task)) == len(rows)
    assert all(2 <= len(p.choices) <= 4 for p in problems(task))
    assert not [c for p in problems(task) for c in p.choices if c[:1] in "([{AB" or "A)" in c]
    shown = ask(tmp_path, "set.jsonl", rows[1:], shots=[rows[0] | {"rationale": "It fits."}], fields=fields) \
        if len(rows) > 2 else None
    assert shown is None or shown.prefix.endswith(f"A: It fits. The answer is ({right}).\n\n")


def test_numbers_of_choices_that_may_count_from_0_or_1(tmp_path):
    rows = [{"question": q, "c": ["x", "y", "z"], "answer": 1} for q in "abc"]
    task = ask(tmp_path, "n.jsonl", rows, fields="choices=c")
    assert {p.answer for p in problems(task)} == {"b"}
    assert any("count from 0 here" in note for note in task.notes)
    for seen, letter in ((0, "b"), (3, "a")):  # one more row says how the others count
        task = ask(tmp_path, "n.jsonl", [*rows, rows[0] | {"question": "d", "answer": seen}], fields="choices=c")
        assert problems(task)[0].answer == letter
        assert not [n for n in task.notes if "count from" in n]
    held = write(tmp_path / "held.jsonl", [rows[0] | {"question": "e", "answer": 3}])  # held-out rows are asked too
    assert problems(ask(tmp_path, "n.jsonl", rows, heldout=held, fields="choices=c"))[0].answer == "a"
    both = [*rows, rows[0] | {"question": "d", "answer": 0}, rows[0] | {"question": "e", "answer": 3}]
    refused(lambda: ask(tmp_path, "n.jsonl", both, fields="choices=c"), words=("n.jsonl, line 1", "'1' is neither"))
    refused(lambda: ask(tmp_path, "n.jsonl", [*rows, rows[0] | {"answer": "D"}], fields="choices=c"),
            words=("n.jsonl, line", "is neither a label (a, b, c)"))
    shots = [rows[0] | {"question": "s", "answer": 2, "rationale": "So."}]  # examples count as the data does
    task = ask(tmp_path, "n.jsonl", [*rows, rows[0] | {"question": "d", "answer": 3}], shots=shots, fields="choices=c")
    assert task.shots[0].problem.answer == "b"


def test_letters_that_are_initials_stay(tmp_path):
    rows = [{"question": q, "c": ["A. Smith", "Bob", "C. Lee"], "answer": "Bob"} for q in "ab"]
    assert problems(ask(tmp_path, "i.jsonl", rows, fields="choices=c"))[0].choices == ("A. Smith", "Bob", "C. Lee")


def test_choices_in_an_order_of_their_own(tmp_path):
    """A problem has the same order in every run, wherever it stands, and the same side; and its answer goes along."""
    rows = [{"question": f"Which of {i}?", "c": [f"x{i}", "y", "z", "w"], "answer": 0} for i in range(40)]
    given, mixed = (ask(tmp_path, "m.jsonl", rows, fields="choices=c", shuffle_choices=s) for s in (False, True))
    assert {p.id for p in given.heldout} == {p.id for p in mixed.heldout}
    assert {p.answer for p in problems(mixed)} == set("abcd")
    for p, q in zip(problems(given), problems(mixed), strict=True):
        assert sorted(q.choices) == sorted(p.choices)
        assert q.choices["abcd".index(q.answer)] == p.choices[0]
    turned = [r | {"c": r["c"][::-1], "answer": 3} for r in reversed(rows)]
    again = ask(tmp_path, "m.jsonl", turned, fields="choices=c", shuffle_choices=True)
    assert [(p.question, p.choices, p.answer) for p in problems(again)[::-1]] == [
        (p.question, p.choices, p.answer) for p in problems(mixed)]
    assert any("(a) is right in 40 of 40" in n for n in given.notes)
    assert not mixed.notes


def test_choices_that_speak_of_each_other_keep_their_order(tmp_path):
    kept = [["x", "y", "All of the above"], ["x", "y", "none of these"], ["x", "y", "Both A and B"],
            ["x", "y", "(B), (C)"], ["x", "y", "A and B"]]
    rows = [{"question": f"{i}?", "c": c, "answer": "x"} for i, c in enumerate(kept)]
    rows += [{"question": "Is option B or (C) it?", "c": ["x", "y", "z"], "answer": "x"}]
    free = ["x", "a bee and a fly", "above"]
    rows += [{"question": f"What is free {i}?", "c": free, "answer": "x"} for i in range(9)]
    task = ask(tmp_path, "k.jsonl", rows, fields="choices=c", shuffle_choices=True)
    assert [p.choices for p in problems(task)[:5]] == [tuple(c) for c in kept]
    assert len({p.choices for p in problems(task)[6:]}) > 1
    assert any(n.startswith("6 keep the order") and "k-1, k-2, k-3 and 3 more" in n for n in task.notes)


def test_examples_are_shuffled_unless_they_speak_of_letters(tmp_path):
    rows = [{"question": f"{i}?", "c": ["x", "y", "z", "w"], "answer": "x"} for i in range(9)]
    shots = [{"question": f"s{i}?", "c": ["x", "y", "z", "w"], "rationale": r, "answer": "x"}
             for i, r in enumerate(("It fits.", "It fits.", "So (a) it is.", "The answer is a."))]
    task = ask(tmp_path, "e.jsonl", rows, shots=shots, fields="choices=c", shuffle_choices=True)
    assert [s.problem.answer for s in task.shots[2:]] == ["a", "a"]
    assert all(s.problem.choices["abcd".index(s.problem.answer)] == "x" for s in task.shots)
    assert "".join(s.problem.answer for s in task.shots[:2]) != "aa"


def test_a_field_may_have_a_plus_in_its_name(tmp_path):
    rows = [{"question": q, "right+wrong": ["x", "y"], "answer": "y"} for q in "ab"]
    task = ask(tmp_path, "p.jsonl", rows, fields="choices=right+wrong")
    assert {p.choices for p in problems(task)} == {("x", "y")}


def test_true_and_false(tmp_path):
    """StrategyQA, BoolQ: a question that can be answered by yes or no."""
    rows = [{"question": f"Is {i} odd?", "answer": bool(i % 2)} for i in range(4)]
    shot = {"question": "Is 9 odd?", "rationale": "9 = 2 * 4 + 1.", "answer": True}
    task = ask(tmp_path, "s.json", rows, shots=[shot])
    assert asked(task)[:2] == [("Is 0 odd?", "no"), ("Is 1 odd?", "yes")]
    assert task.prefix.endswith("The answer is yes.\n\n")
    assert task.notes == ["answers are true or false in the file, and asked for as yes or no"]


def test_math_boxes_its_answer(tmp_path):
    rows = [{"problem": f"{i}/2?", "solution": f"Half of it is $\\boxed{{\\frac{{{i}}}{{2}}}}$.", "level": "Level 1"}
            for i in (1, 3)]
    task = ask(tmp_path, "math.jsonl", rows, fields="question=problem,answer=solution,rationale=solution,group=level")
    assert (task.compares, asked(task)) == ("as numbers", [("1/2?", "0.5"), ("3/2?", "1.5")])
    assert task.right(problems(task)[0], "The answer is $\\frac12$.")


def test_sets(tmp_path):
    rows = [{"question": "Primes below 6?", "answer": [2, 3, "5"]},
            {"question": "Primes below 4?", "answer": "2 and 3"},
            {"question": "Seas?", "answer": ["the Red Sea", "Black Sea"]}]
    shot = {"question": "Primes below 8?", "rationale": "4 and 6 are even.", "answer": [2, 3, 5, 7]}
    task = ask(tmp_path, "sets.jsonl", rows, shots=[shot], grade="set")
    p, q, r = problems(task)
    assert task.prefix == "Q: Primes below 8?\nA: 4 and 6 are even. The answer is 2, 3, 5, 7.\n\n"
    assert task.hinted(p) == "Q: Primes below 6? (Answer: 2, 3, 5)\nA:"
    assert task.right(p, "2, then 3. The answer is 5, 3 and 2.")
    assert task.right(q, "The answer is {3, 2}")
    assert task.right(r, "The answer is black sea and the Red Sea.")
    for text in ("The answer is 2 and 3.", "The answer is 2, 3, 5 and 7.", "The answer is 2, 3 or 5.", "2"):
        assert not task.right(p, text)
    assert task.leaks(p, "The answer is 2, 3 and 5.")
    assert not task.leaks(p, "Both 4 and 6 are even, and 1 is none. The answer is 2, 3 and 5.")
    assert task.compares == "as sets, in any order"
    refused(lambda: ask(tmp_path, "sets.jsonl", rows), words=(
        "line 1: field 'answer' holds 3 answers, [2, 3, \"5\"]", "--grade set", "--fields answer=answer.0"))
    refused(lambda: ask(tmp_path, "sets.jsonl", [*rows, {"question": "?", "answer": []}], grade="set"),
            words=("line 4: field 'answer' is a list of 0",))


def test_few_shot_rows_have_the_fields_of_the_data(tmp_path):
    rows = [{"Body": "Ann has 3 pens", "Question": f"And {i} more?", "Answer": 3.0 + i, "Why": "x"} for i in range(4)]
    fields = "question=Body+Question,answer=Answer,rationale=Why"
    for shot in (rows[3] | {"Why": "3 + 3 = 6"}, rows[3] | {"rationale": "3 + 3 = 6"},
                 {"question": "Ann has 3 pens. And 3 more?", "rationale": "3 + 3 = 6", "answer": 6}):
        task = ask(tmp_path, "t.jsonl", rows, shots=[shot], fields=fields)
        assert task.prefix == "Q: Ann has 3 pens. And 3 more?\nA: 3 + 3 = 6. The answer is 6" + (
            ".0.\n\n" if "Body" in shot else ".\n\n")
        assert task.notes == ["1 left out of training (few-shot example): t-4"]
    gsm = [{"question": f"1+{i}?", "answer": f"Sum <<1+{i}={1 + i}>>it.\n#### {1 + i}"} for i in range(4)]
    task = ask(tmp_path, "g.jsonl", gsm[:3], shots=gsm[3:], fields="rationale=answer")
    assert task.prefix == "Q: 1+3?\nA: Sum it. The answer is 4.\n\n"
    refused(lambda: ask(tmp_path, "t.jsonl", rows, shots=[{"Body": "x", "Question": "?", "Answer": 1}], fields=fields),
            words=("shots.jsonl, line 1 has no field 'rationale'", "or the fields that --fields names"))
    table = write(tmp_path / "shots.csv", "question,rationale,answer\n1+3?,\"One, three\",4\n")
    assert load_task("jsonl", data=tmp_path / "g.jsonl", few_shot=table).shots[0].rationale == "One, three"


# ---- kinds of files

ROWS = [{"question": f"What is {i}, or \"{i}\"?\nSay it: é\u2028", "answer": str(i)} for i in range(6)]


def table(delimiter=",", newline="\r\n", rows=ROWS, quoting=csv.QUOTE_MINIMAL):
    file = io.StringIO()
    writer = csv.DictWriter(file, ["question", "answer"], delimiter=delimiter, lineterminator=newline, quoting=quoting)
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


KINDS = {
    "a.csv": table(), "b.csv": "\ufeff" + table(";"), "c.csv": table(newline="\n", quoting=csv.QUOTE_ALL),
    "d.csv": "sep=;\r\n" + table(";"), "e.tsv": table("\t"), "f.CSV": table("\t") + "\r\n\t\r\n\r\n",
    "g.csv": table().replace('","', '", "').replace("question,answer", "question, answer"), "h.tab": table("\t"),
    "i.jsonl": "\ufeff" + "".join(json.dumps(r) + "\r\n" for r in ROWS), "j.json": ROWS,
    "k.json": {"v": 1, "rows": ROWS}, "aa.json": {"tags": ["x"], "all": {"rows": ROWS, "by": ["y", "z"]}},
    "l.txt": "".join(json.dumps(r) + "\n" for r in ROWS), "m.json": "".join(json.dumps(r) + "\n" for r in ROWS),
    "n.jsonl": json.dumps(ROWS, indent=1), "o.jsonl": json.dumps({"rows": ROWS}, indent=1),
    "p.json": {"question": [r["question"] for r in ROWS], "answer": [r["answer"] for r in ROWS]},
    "q.json": {name: {str(i): r[name] for i, r in enumerate(ROWS)} for name in ROWS[0]},
    "r.json": {f"id-{i}": r for i, r in enumerate(ROWS)}, "s.txt": table("\t"), "t.csv": json.dumps(ROWS),
    "u.jsonl.gz": gzip.compress("".join(json.dumps(r) + "\n" for r in ROWS).encode()),
    "v.csv.gz": gzip.compress(table().encode()), "w.csv": gzip.compress(table().encode()),
    "x": "".join(json.dumps(r) + "\n" for r in ROWS), "y.ndjson": "".join(json.dumps(r) + "\n" for r in ROWS),
    "bb.jsonl": "\n\n".join(json.dumps(r, indent=2) for r in ROWS) + "\n", "cc.json": "".join(
        json.dumps(r, indent=2) + "\n" for r in ROWS), "z.csv": table(rows=ROWS).replace("\r\nWhat", "\r\n\r\nWhat"),
}


@pytest.mark.parametrize("name", sorted(KINDS))
def test_every_kind_of_file_holds_the_same(tmp_path, name):
    found = files.read_records(write(tmp_path / name, KINDS[name]) if not isinstance(KINDS[name], dict | list) else
                               write(tmp_path / name, json.dumps(KINDS[name])))
    assert [dict(record) for _, record in found] == ROWS
    assert len({where for where, _ in found}) == len(ROWS)
    task = load_task("jsonl", data=tmp_path / name, zero_shot=True)
    assert len(problems(task)) == 6


def test_objects_named_by_their_ids_may_differ(tmp_path):
    rows = {"1": {"question": "a?", "answer": 1, "choices": None}, "2": {"question": "b?", "answer": 2, "unit": "m"}}
    assert asked(ask(tmp_path, "a.json", rows)) == [("a?", "1"), ("b?", "2")]
    deep = {f"e{i}": {"test": {"q": f"{i}?", "a": "x"}, "steps": {"s": ["1", "2"]}} for i in range(3)}
    assert asked(ask(tmp_path, "a.json", deep, fields="question=test.q,answer=test.a"))[2] == ("2?", "x")
    parts = {"train": {"rows": [{"q": 1}]}, "test": {"rows": [{"q": 2}]}}
    refused(files.read_records, write(tmp_path / "a.json", parts), words=("holds 2 lists", "(train.rows, test.rows)"))


def test_lines_of_a_table_are_counted_where_they_begin(tmp_path):
    found = files.read_records(write(tmp_path / "a.csv", 'q,a\r\n"one\r\ntwo",1\r\n\r\nx,2\r\n'))
    assert [where.rpartition(", ")[2] for where, _ in found] == ["line 2", "line 5"]
    found = files.read_records(write(tmp_path / "a.csv", 'sep=;\nq;a\nx;"1;2"\n'))
    assert found == [(f"{tmp_path / 'a.csv'}, line 3", {"q": "x", "a": "1;2"})]


def test_a_quote_between_tabs_may_be_text(tmp_path):
    rows = files.read_records(write(tmp_path / "a.tsv", 'q\ta\n"Hi" she said\t1\n5" or 6"?\t2\n"open\t3\n'))
    assert [r["q"] for _, r in rows] == ['"Hi" she said', '5" or 6"?', '"open']
    rows = files.read_records(write(tmp_path / "a.tsv", 'q\ta\n"a\tb"\t1\n"say ""x"""\t2\n'))
    assert [r["q"] for _, r in rows] == ["a\tb", 'say "x"']


def test_columns_without_names_are_left_out(tmp_path):
    rows = files.read_records(write(tmp_path / "a.csv", ",q,a,,\n0,x,1,,\n1,y,2,,\n,,,,\n"))
    assert [dict(r) for _, r in rows] == [{"q": "x", "a": "1"}, {"q": "y", "a": "2"}]


def test_a_list_inside(tmp_path):
    whole = {"version": 2, "data": {"train": ROWS[:4], "test": ROWS[4:]}, "authors": [{"name": "x"}]}
    task = ask(tmp_path, "all.json", whole, records="data.train")
    assert len(problems(task)) == 4
    task = ask(tmp_path, "all.json", whole, records="data.train", heldout_records="data.test")
    assert [p.id for p in task.heldout] == ["heldout-all-1", "heldout-all-2"]
    assert len(task.train) == 4
    task = ask(tmp_path, "all.json", whole, records="data.train", heldout=write(tmp_path / "h.jsonl", ROWS[4:]))
    assert [p.id for p in task.heldout] == ["h-1", "h-2"]  # a file without such a list is read as it is
    asked_twice = {"a": [{"question": f"{i}?", "c": ["x", "y"], "answer": "A"} for i in range(3)],
                   "b": [{"question": f"h{i}?", "c": ["x", "y"], "answer": "B"} for i in range(3)]}
    task = ask(tmp_path, "two.json", asked_twice, records="a", heldout_records="b", fields="choices=c")
    assert ([p.answer for p in task.train], [p.answer for p in task.heldout]) == (list("aaa"), list("bbb"))
    asked_twice["b"][1]["answer"] = "C"
    refused(lambda: ask(tmp_path, "two.json", asked_twice, records="a", heldout_records="b", fields="choices=c"),
            words=("two.json, b, entry 2: the answer 'C'",))
    shots = write(tmp_path / "shots.json", {"examples": [{"question": "2?", "rationale": "2 is 2.", "answer": 2}]})
    task = load_task("jsonl", data=tmp_path / "all.json", records="data.train", few_shot=shots)
    assert task.prefix == "Q: 2?\nA: 2 is 2. The answer is 2.\n\n"  # and so is one of examples
    nested = {"rows": [{"row_idx": i, "row": r} for i, r in enumerate(ROWS)], "features": [{"name": "question"}]}
    assert asked(ask(tmp_path, "api.json", nested, records="rows", fields="question=row.question,answer=row.answer"))
    assert len(files.read_records(write(tmp_path / "l.json", [[1], [{"q": 1}, {"q": 2}]]), inside="1")) == 2
    names = "data.train, data.test, authors"
    for path, words in (("data.dev", ["nothing at --records data.dev", names]),
                        ("version", ["--records version holds 0 lists", names]),
                        ("data", ["--records data holds 2 lists"]), ("data.train.9", ["nothing at --records"])):
        refused(lambda p=path: ask(tmp_path, "all.json", whole, records=p), words=("all.json", *words))
    refused(lambda: ask(tmp_path, "all.json", whole), words=("all.json holds 3 lists", "--records names", names))
    for name, value in (("a.csv", table()), ("a.jsonl", ROWS)):
        refused(lambda n=name, v=value: ask(tmp_path, n, v, records="data"),
                words=(name, "no list 'data' inside", "leave out --records"))


# ---- parquet


def parquet(path, rows):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_parquet(tmp_path):
    """As data sets are downloaded: structs, lists and numbers of their own kinds."""
    import decimal

    rows = [{"question": f"{i}?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B", "n": i,
             "gold": decimal.Decimal("1.50")} for i in range(3)]
    file = parquet(tmp_path / "arc.parquet", rows)
    task = load_task("jsonl", data=file, zero_shot=True, fields="choices=choices,answer=answerKey")
    assert problems(task)[0] == Problem("arc-1", "0?", "b", choices=("x", "y"))
    assert files.read_records(file)[2][0] == f"{file}, row 3"
    task = load_task("jsonl", data=file, zero_shot=True, fields="answer=gold,group=n", grade="number")
    assert [p.answer for p in problems(task)] == ["1.5"] * 3
    countdown = parquet(tmp_path / "c.parquet", COUNTDOWN)
    countdown = countdown.rename(tmp_path / "countdown.bin")  # what stands in it says what it is
    task = load_task("jsonl", data=countdown, zero_shot=True, template=ASKED, fields="answer=target,numbers=nums")
    assert problems(task)[0].numbers == ("44", "19", "35")
    null = parquet(tmp_path / "n.parquet", [{"question": "a?", "answer": 1}, {"question": "b?", "answer": None}])
    refused(lambda: load_task("jsonl", data=null, zero_shot=True), words=("n.parquet, row 2: field 'answer' is null",))
    odd = parquet(tmp_path / "o.parquet", [{"question": b"\xff", "answer": 1}])
    refused(lambda: load_task("jsonl", data=odd, zero_shot=True), words=("row 1: field 'question' is",))
    broken = write(tmp_path / "b.parquet", b"PAR1" + b"x" * 50)
    refused(files.read_records, broken, words=("b.parquet is no parquet file that can be read",))
    refused(files.read_records, write(tmp_path / "e.parquet", b""), words=("e.parquet is no parquet file",))


def test_parquet_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(files.read_records, write(tmp_path / "a.parquet", b"PAR1"), words=("a.parquet", "pyarrow", "'.[parquet]'"))


# ---- what looks like something else

RED = [{"question": f"What is red {i}?", "choices": ["a rose", "a lime"], "answer": "ba"[i % 2]} for i in range(8)]


def test_choices_under_their_usual_name_are_shown(tmp_path):
    shot = RED[0] | {"question": "s?", "rationale": "Limes are green."}
    for grade in ("auto", "choice"):
        task = ask(tmp_path, "red.jsonl", RED, shots=[shot], grade=grade)
        assert problems(task)[1] == Problem("red-2", "What is red 1?", "a", choices=("a rose", "a lime"))
        assert task.prefix.startswith("Q: s?\nAnswer Choices:\n(a) a rose\n(b) a lime\nA:")
        assert not task.notes
    spelt = "question,choices,answer\n" + "".join(f"{i}?,\"['x', 'y']\",B\n" for i in range(3))
    assert problems(ask(tmp_path, "red.csv", spelt))[0].choices == ("x", "y")
    given = [{"question": f"{i}?", "choices": ["x", "y"], "answer": i, "nums": [i, 0]} for i in range(3)]
    assert problems(ask(tmp_path, "red.jsonl", given, fields="numbers=nums"))[0].choices == ()
    scores = [{"question": f"{i}?", "choices": {"a rose": 0, "a lime": 1}} for i in range(3)]
    assert problems(ask(tmp_path, "red.jsonl", scores))[0].answer == "b"
    said = ask(tmp_path, "red.jsonl", RED, fields="question=question+choices")  # whoever asks for them by hand
    assert (said.compares, said.notes, problems(said)[0].choices) == ("as words", [], ())
    refused(lambda: ask(tmp_path, "red.jsonl", [*RED, RED[0] | {"answer": "a leaf"}]),
            words=("line 9: the answer 'a leaf' is neither", "--grade text asks without the field 'choices'"))
    refused(lambda: ask(tmp_path, "red.jsonl", RED, fields="answer=key"),
            words=("no field 'key' (there is 'question', 'choices', 'answer'): --task jsonl takes another by --field",))
    refused(lambda: ask(tmp_path, "red.jsonl", RED, shots=[{k: v for k, v in shot.items() if k != "choices"}]),
            words=("shots.jsonl, line 1 has no field 'choices'",))


def test_the_examples_of_the_readme_are_read_as_it_says(tmp_path):
    readme = (Path(star.tasks.__file__).parent / "README.md").read_text(encoding="utf-8")
    number, choice = (json.loads(line) for line in readme.splitlines() if line.startswith('{"question"'))
    for row, compares in ((number, "as numbers"), (choice, "as letters of choices")):
        rows = [row, row | {"question": "And if it rains?"}]
        assert ask(tmp_path, "r.jsonl", rows).compares == compares


@pytest.mark.parametrize(("name", "field"), [
    ("options", "options"), ("Endings", "Endings"), ("in", "in.choices"), ("choices", "choices")])
def test_choices_that_are_not_shown_are_told(tmp_path, name, field):
    def record(r):
        listed = r["choices"] if name != "in" else {"choices": r["choices"], "n": 1}
        return {"question": r["question"], name: listed, "answer": r["answer"]}

    rows = [*map(record, RED), {"question": "none?", "answer": "b"}]
    task = ask(tmp_path, "red.jsonl", rows)
    why = f", for {tmp_path / 'red.jsonl'}, line 9 has none there" if name == "choices" else ""
    assert task.notes[0] == f"the file has a field '{field}', which is not shown{why}: --fields choices={field}"
    assert not ask(tmp_path, "red.jsonl", rows[:-1], fields=f"choices={field}").notes
    told = ask(tmp_path, "red.jsonl", rows[:-1], grade="text").notes[0]
    assert told == (f"the file has a field '{field}', which is not shown by --grade text: --fields choices={field} in "
                    "its place")
    assert "by --grade none" in ask(tmp_path, "red.jsonl", rows[:-1], grade="none").notes[0]
    refused(lambda: ask(tmp_path, "red.jsonl", rows, grade="choice"),
            words=("belong together", told.partition(" by ")[0]))
    assert not ask(tmp_path, "red.jsonl", [r | {name: None} for r in rows]).notes  # a column that is empty
    if name != "in":
        assert "not shown" in ask(tmp_path, "red.jsonl", [r | {name: "a rose | a lime"} for r in rows]).notes[0]


@pytest.mark.parametrize(("columns", "told"), [
    ("A,B,C", "A+B+C"), ("option1,option2", "option1+option2"), ("Choice_a,Choice_b", "Choice_a+Choice_b"),
    ("x,y", ""), ("1,2", ""), ("B,C", ""), ("A,x", ""), ("level,b", "")])
def test_choices_in_columns_that_are_not_shown_are_told(tmp_path, columns, told):
    cells = ["rose", "lime", "lily"][: columns.count(",") + 1]
    table = f"question,{columns},answer\n" + "".join(f"{i}?,{','.join(cells)},{cells[i % 2]}\n" for i in range(6))
    task = ask(tmp_path, "a.csv", table)
    assert [n for n in task.notes if "not shown" in n] == [
        f"the file has fields {', '.join(map(repr, told.split('+')))}, which are not shown: --fields choices={told}"
    ] * bool(told)
    assert not told or not ask(tmp_path, "a.csv", table, fields=f"choices={told}").notes


@pytest.mark.parametrize("words", [("TRUE", "FALSE"), ("true", "False"), ("True.", " false"), (True, "false"),
                                   ([True], [False])])
def test_truths_in_words(tmp_path, words):
    """A table writes TRUE where JSON writes true; whoever says one means the other."""
    rows = [{"question": f"Is {i} odd?", "answer": words[1 - i % 2]} for i in range(6)]
    shots = [{"question": "Is 9 odd?", "rationale": "9 = 2 * 4 + 1.", "answer": words[0]},
             {"question": "Is 8 odd?", "rationale": "8 = 2 * 4. The answer is false.", "answer": "no"}]
    task = ask(tmp_path, "t.jsonl", rows, shots=shots)
    assert [a for _, a in asked(task)] == ["no", "yes"] * 3
    assert task.prefix.endswith("1. The answer is yes.\n\nQ: Is 8 odd?\nA: 8 = 2 * 4. The answer is false.\n\n")
    assert task.notes == ["answers are true or false in the file, and asked for as yes or no"]
    assert task.right(problems(task)[1], "It is. The answer is True.")
    assert not task.right(problems(task)[1], "It is. The answer is false.")
    other = ask(tmp_path, "t.jsonl", [*rows, {"question": "Rome?", "answer": "Rome"}])  # as before: not all are truths
    assert [a for _, a in asked(other)][1] == (words[0] if isinstance(words[0], str) else "yes")
    assert not [n for n in other.notes if "true" in n]


def test_examples_that_answer_in_other_words_are_told(tmp_path):
    rows = [{"question": f"Is {i} odd?", "answer": "NY"[i % 2]} for i in range(6)]
    shots = [{"question": f"Is 1{i} odd?", "rationale": "It is.", "answer": a} for i, a in enumerate(("yes", "no"))]
    told = ["few-shot examples answer yes, no; the data answers Y, N"]
    assert ask(tmp_path, "y.jsonl", rows, shots=shots).notes == told
    for other in ([*shots, shots[0] | {"question": "?", "answer": "y"}], None):
        assert not ask(tmp_path, "y.jsonl", rows, shots=other).notes
    assert not ask(tmp_path, "y.jsonl", rows[:3], shots=shots).notes  # too few to say


def test_zero_shot_names_a_few_answers(tmp_path):
    def how(*answers, **flags):
        rows = [{"question": f"Is {i} odd?", "answer": a} for i, a in enumerate(answers)]
        task = ask(tmp_path, "z.jsonl", rows, **flags)
        return task.question(task.train[0]).partition("The answer is ")[2].removesuffix(".\nA:")

    assert how("no", "Yes", "no", "yes", "yes.", "yes") == how("yes", "yes", "no", "no") == "(...), yes or no"
    assert how(False, True, False, False) == "(...), yes or no"
    assert how(*["red", "Green", "blue", "grey"] * 3) == "(...), blue, Green, grey or red"
    for many in (["a", "b", "c", "d", "e"] * 9, ["yes", "no", "yes"], ["yes"] * 4):  # or it would give them away
        assert how(*many) == "(...), the answer in a few words"
    assert how("1", "2", "1", "2") == "(...), the number"


@pytest.mark.parametrize(("answers", "told"), [
    (["9,5", "10", "1,50 €", "7"], "2 with an answer like '9,5'"), (["1.234,56", "0,125"], "2 with an answer like '"),
    (["-9,5", "$3,2"], "2 with"), (["red", "blue", "9,5"], ""), (["1,500", "2,000"], ""), (["1, 2, 3", "Rome"], "")])
def test_decimal_commas_are_told(tmp_path, answers, told):
    rows = [{"question": f"{i}?", "answer": a} for i, a in enumerate(answers)]
    notes = [n for n in ask(tmp_path, "c.jsonl", rows).notes if "comma" in n]
    assert len(notes) == bool(told)
    if told:
        assert notes[0].startswith(told)
        assert "a decimal point, not a comma" in notes[0]
        refused(lambda: ask(tmp_path, "c.jsonl", rows, grade="number"),
                words=("is not one number; numbers are read with a decimal point, not a comma; ", "--grade text"))


def test_values_without_numbers_are_told(tmp_path):
    note = "no numbers are named, so that the target itself is a right answer: --fields numbers=..."
    rows = [{"question": f"{i}?", "answer": f"{i}/7", "nums": [i, 7]} for i in range(1, 5)]
    assert ask(tmp_path, "v.jsonl", rows, grade="value").notes == [note]
    assert note not in ask(tmp_path, "v.jsonl", rows, grade="value", fields="numbers=nums").notes


@pytest.mark.parametrize(("scores", "words"), [
    ({"x": 1, "y": 1, "z": 0}, "marks 2 choices as right; one is needed"),
    ({"x": 0, "y": 0}, "marks no choice as right"),
    ({"x": 0.5, "y": 0.5}, "marks no choice as right"), ({"x": 1, "y": 0.5}, "must hold 1 for the right choice and 0")])
def test_scores_that_mark_no_choice_or_two(tmp_path, scores, words):
    rows = [{"question": f"{i}?", "t": {"x": 1, "y": 0}} for i in range(3)] + [{"question": "d?", "t": scores}]
    for fields in ("choices=t", "choices=t,answer=t", "answer=t"):
        refused(lambda f=fields: ask(tmp_path, "a.json", rows, fields=f), words=("a.json, entry 4: field 't' ", words))
    listed = [{"question": r["question"], "c": list(r["t"]), "s": list(r["t"].values())} for r in rows]
    refused(lambda: ask(tmp_path, "a.json", listed, fields="choices=c,answer=s"),
            words=("entry 4: field 's' is [", words))


# ---- what does not fit


@pytest.mark.parametrize(("name", "value", "flags", "words"), [
    ("a.csv", "What is 1+1?,2\nWhat is 2+2?,4\n", {}, ["a.csv, line 2 has no field 'answer'", "'What is 1+1?', '2'",
                                                      "the first line, which names the columns",
                                                      "put a line of names on top: question,answer"]),
    ("a.csv", "What is 1+1?,2,3,B\nWhat is 2+2?,4,5,A\n", {}, ["a.csv, line 2 has no field 'answer'", "on top: "
                                                              "question,A,B,answer, and --fields choices=A+B"]),
    ("a.csv", "Name a sea,Red,Red,B\n", {}, ["names the column 'Red' twice", "on top: question,A,B,answer"]),
    ("a.csv", "Name a sea,Red,B\nName a lake,Como,A\n", {}, ["on top: question,answer"]),
    ("a.csv", "question,answer\n1+1?,2\n2,000+1?,2001\n", {}, ["a.csv, line 3 has 3 cells", "2 columns",
                                                               "one that holds ',' must stand in quotes"]),
    ("a.csv", "question;answer;note, if any\n1;2\n", {}, ["a.csv, line 2 has 2 cells", "names 3 columns"]),
    ("a.csv", "question,answer\n1+1?\n", {},
     ["a.csv, line 2 has 1 cell, ", "names 2 columns", "an empty one keeps its ','", "line break stands in quotes"]),
    ("a.csv", "question,answer,answer\n1?,2,3\n", {}, ["a.csv, line 1 names the column 'answer' twice"]),
    ("a.csv", 'question,answer\n"1+1?,2\n2+2?,4\n', {}, ["a.csv, line 2: its quotes do not close"]),
    ("a.csv", 'question,answer\n"1" or 2?,2\n', {}, ["a.csv, line 2: its quotes do not close", "written twice"]),
    ("a.csv", "question,answer\n", {}, ["a.csv is empty"]), ("a.csv", "", {}, ["a.csv is empty"]),
    ("a.csv", "question;answer\n1?;2\n2;3\n4\n", {}, ["a.csv, line 4 has 1 cell, ", "keeps its ';'"]),
    ("a.csv", "question,answer\n1?,\n", {}, ["a.csv, line 2: field 'answer' is \"\""]),
    ("a.csv", "question,answer\né?,1\n".encode("latin-1"), {}, ["a.csv, line 2 is not UTF-8", "as UTF-8"]),
    ("a.csv", "question,answer\n1?,1\n".encode("utf-16"), {}, ["a.csv, line 1 is not UTF-8"]),
    ("a.tsv", "question\tanswer\n1?\t1\t1\n", {}, ["a.tsv, line 2 has 3 cells"]),
    ("a.csv", b"PK\x03\x04" + b"x" * 99, {}, ["a.csv is a zip archive or an Excel workbook", "as CSV"]),
    ("a.xlsx", b"PK\x03\x04" + b"x" * 99, {}, ["Excel workbook"]),
    ("a.jsonl.gz", gzip.compress(b'{"question": 1}', mtime=0)[:-9], {}, ["no whole gzip file"]),
    ("a.jsonl", b'{"question": "\x00"}', {}, ["a.jsonl, line 1 holds a zero byte"]),
    ("a.arrow", b"ARROW1\0\0" + b"\xff" * 99, {}, ["a.arrow, line 1 holds a zero byte", ".csv, .tsv or .parquet"]),
    ("a.jsonl", '{\n "q": 1\n}\n\n{\n "q" 2\n}', {}, ["a.jsonl, line 6 is not JSON"]),
    ("a.jsonl", '{"question": "1?", "answer": 1}\nquestion,answer\n', {}, ["a.jsonl, line 2 is not JSON"]),
    ("a.csv", 'question,answer\n{"question": "1?", "answer": 1}\n', {}, ["a.csv, line 2"]),
    ("a.jsonl", "question,answer\n1?,2\n", {}, ["a.jsonl, line 1 is not JSON", "'question,answer'"]),
    ("a.json", '{"question": ["1?"], "answer": [1, 2]}', {}, ["holds 2 lists", "--records names a list"]),
    ("a.json", '{"a": 1}', {}, ["holds 0 lists", "there is no list in it"]),
    ("a.json", '{"a": [{"q": 1}], "a": []}', {}, ["'a' stands in it twice"]),
    ("a.jsonl", '{"question": "1?", "answer": NaN}', {}, ["line 1: field 'answer' is NaN"]),
    ("a.jsonl", '{"question": "1?", "answer": 1e400}', {}, ["line 1: field 'answer' is Infinity"]),
    ("a.csv", "question,answer\n1?,1e400\n", {"grade": "number"}, ["line 2: the answer '1e400' is not one number"]),
    ("a.csv", "question,answer\n1?,NaN\n", {"grade": "number"}, ["line 2: the answer 'NaN' is not one number"]),
    ("a.jsonl", '{"question": "1?", "answer": null}', {}, ["line 1: field 'answer' is null"]),
    ("a.jsonl", '{"question": "1?", "answer": [[1, 2], [3]]}', {}, ["field 'answer' is a list of lists"]),
    ("a.jsonl", '{"question": [["a"]], "answer": 1}', {}, ["field 'question' is a list of lists", "question.0.0"]),
    ("a.jsonl", '{"question": "1?", "answer": {"a": {"b": [1]}}}', {"fields": "answer=answer.a.c"},
     ["no field 'answer.a.c' (there is 'question', 'answer.a.b')"]),
    ("a.jsonl", '{"question": "1?", "answer": "1/0"}', {"grade": "value"}, ["'1/0' is no arithmetic expression"]),
    ("a.jsonl", json.dumps({"question": "1?", "answer": "1+" * 190_000 + "1"}), {"grade": "value"},
     ["is no arithmetic expression with a value, in at most 300 characters"]),
    ("a.jsonl", '{"question": "1?", "answer": "9**9**9"}', {"grade": "value"}, ["is no arithmetic expression"]),
    ("a.jsonl", json.dumps({"question": "1?", "answer": "(" * 100 + "1" + ")" * 100}), {"grade": "value"},
     ["is no arithmetic expression"]),
    ("a.jsonl", '{"question": "1?", "answer": 1, "n": [1, "x"]}', {"fields": "numbers=n"}, ["field 'n' is [1, \"x\"]",
                                                                                       "a list of numbers"]),
    ("a.jsonl", '{"question": "1?", "answer": 1, "n": [1, "1+1"]}', {"fields": "numbers=n"}, ["a list of numbers"]),
    ("a.jsonl", '{"question": "1?", "answer": 1, "n": []}', {"fields": "numbers=n"}, ["a list of numbers"]),
    ("a.jsonl", '{"question": "1?", "answer": 1, "n": [[1, 2]]}', {"fields": "numbers=n"}, ["a list of numbers"]),
    ("a.jsonl", '{"question": "1?", "answer": "B", "c": "red or blue"}', {"fields": "choices=c"},
     ["field 'c' is \"red or blue\"", "a text with letters, (A) ... (B)"]),
    ("a.jsonl", '{"question": "1?", "answer": "C", "A": "x", "B": "y"}', {"fields": "choices=A+B"},
     ["the answer 'C' is neither a label (A, B)"]),
    ("a.jsonl", '{"question": "1?", "answer": "A", "A": "x", "B": ""}', {"fields": "choices=A+B"},
     ["A+B hold 1 choices; there must be 2 to 26"]),
    ("a.jsonl", '{"question": "1?", "answer": "A", "A": ["x"], "B": {}}', {"fields": "choices=A+B"},
     ["line 1: field 'B' is {}"]),
])
def test_what_does_not_fit_is_one_line(tmp_path, name, value, flags, words):
    refused(lambda: ask(tmp_path, name, value, **flags), words=tuple(words))


def test_a_first_line_that_looks_like_data():
    for line in ("Who is it?,Ann", "Name a sea,Red,Dead,A", "Take a pen and write,x", "one,$1.50", "a,b,3", "x" * 41):
        said = tables.no_names(line.split(","))
        assert said.startswith("if the first line is a question, put a line of names on top")
    for line in ("q,A,B,C,D,solution", "prompt,right answer", "q,a", "sentence,option1,option2", ""):
        assert tables.no_names(line.split(",")) == "", line


def test_large_files_take_no_minutes(tmp_path):
    """In proportion to their size: Some 7 MB here in a few seconds."""
    rows = [{"question": f"{i} " + "word " * 150, "answer": i} for i in range(8_000)]
    for name, value in (("a.jsonl", rows), ("a.csv", table(rows=rows))):
        file = write(tmp_path / name, value)
        began = time.process_time()
        assert len(files.read_records(file)) == 8_000
        assert time.process_time() - began < 5
    began = time.process_time()
    refused(files.read_records, write(tmp_path / "b.csv", 'q,a\n"' + "x,y\n" * 10**5), words=("line 2: its quotes",))
    refused(files.read_records, write(tmp_path / "c.json", '{"a": ' + "[" * 100_000), words=("is not JSON",))
    assert time.process_time() - began < 5


def test_what_is_shown_of_a_value_is_short():
    began = time.process_time()
    assert records.shown("x" * 10**7) == '"' + "x" * 59
    assert records.shown([["y" * 10**6] * 100] * 100)[:5] == '[["yy'
    assert len(records.shown([["y" * 10**6] * 100] * 100)) == 60
    assert time.process_time() - began < 2


def test_floats_of_parquet_are_as_they_were_written(tmp_path):
    """1.1 in 32 bits is 1.100000023841858 in 64, which no text says."""
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    small, half = pa.float32(), pa.float16()
    columns = {"answer": pa.array([1.1, 16777213, 3.4028235e38, None], small), "double": [1.1, 0.1, 1 / 3, None],
               "half": pa.array([1.1, 65504, 0.33, None], half),
               "list": pa.array([[1.1, 2.2], [], [None], None], pa.list_(small)),
               "large": pa.array([[0.7], [], None, None], pa.large_list(small)),
               "in": pa.array([{"x": 0.3, "y": [0.7]}, *[None] * 3], pa.struct([("x", small), ("y", pa.list_(small))])),
               "map": pa.array([[("k", 1.1)], *[None] * 3], pa.map_(pa.string(), small))}
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    rows = [row for _, row in files.read_records(tmp_path / "a.parquet")]
    assert rows[0] == {"answer": 1.1, "double": 1.1, "half": 1.1, "list": [1.1, 2.2], "large": [0.7],
                       "in": {"x": 0.3, "y": [0.7]}, "map": [("k", 1.1)]}
    assert [row["answer"] for row in rows] == [1.1, 16777213, 3.4028235e38, None]
    assert [row["half"] for row in rows] == [1.1, 65504, 0.33, None]
    assert [row["double"] for row in rows] == [1.1, 0.1, 1 / 3, None]
    assert rows[2]["list"] == [None]


@pytest.mark.parametrize(("kind", "value"), [("timestamp[us]", 2**62), ("timestamp[ms]", -(2**50)),
                                             ("date32[day]", 10**7), ("duration[ms]", 2**62)])
def test_dates_that_python_cannot_hold_are_named_with_their_row(tmp_path, kind, value):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    unit = kind.partition("[")[2][:2]
    made = {"t": lambda: pa.timestamp(unit), "d": pa.date32, "u": lambda: pa.duration(unit)}[
        "u" if kind.startswith("du") else kind[0]]()
    file = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pa.table({"q": ["a", "b"], "when": pa.array([0, value], made)}), file)
    refused(files.read_records, file, words=(f"a.parquet, row 2: field 'when' is a {kind}", "as text"))


def test_nanoseconds_are_text(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    when = pa.array([0, 123456789], pa.timestamp("ns"))
    pyarrow.parquet.write_table(pa.table({"q": ["a", "b"], "when": when}), tmp_path / "a.parquet")
    assert files.read_records(tmp_path / "a.parquet")[1][1] == {"q": "b", "when": "1970-01-01 00:00:00.123456789"}


def test_a_quote_that_swallows_rows_is_refused(tmp_path):
    swallowed = 'q\ta\nq0\t0\n"Who said it?\t1\nWhat?\t2\nIs it so?"\t3\nq4\t4\n'
    words = ("line 3: a quote opens here and closes in line 5", "is a row too", "leave out the quotes")
    for name, text in (("a.tsv", swallowed), ("a.txt", swallowed), ("b.tsv", swallowed.replace("\n", "\r\n"))):
        refused(files.read_records, write(tmp_path / name, text), words=(name, *words))
    refused(files.read_records, write(tmp_path / "a.tsv", 'q\ta\nx\t"1\ny\t2"\n'), words=("line 2: a quote opens",))
    refused(files.read_records, write(tmp_path / "a.tsv", '"q\ta\nx"\t1\n'), words=("line 1: a quote opens",))
    rows = files.read_records(write(tmp_path / "a.tsv", 'q\ta\n"if x:\n\tx = 1"\t1\n"two\nlines"\t2\n'))
    assert [r["q"] for _, r in rows] == ["if x:\n\tx = 1", "two\nlines"]


def test_a_cell_may_be_long(tmp_path):
    before = csv.field_size_limit()
    for cell in ("x" * 200_000, '"' + "x, " * 100_000 + '"'):
        rows = files.read_records(write(tmp_path / "a.csv", f"q,a\n{cell},1\n"))
        assert rows[0][1] == {"q": cell.strip('"'), "a": "1"}
    assert csv.field_size_limit() == before  # of others in this process
