"""The arithmetic task: its scratchpad, its split, and grading that no text can break."""

import random
import string

import pytest

from star.problem import Problem
from star.tasks import load_task, task_names
from star.tasks.arithmetic import make, scratchpad


def test_scratchpad_against_the_recipe():
    assert scratchpad("624", "259") == "4+9+C0=13\n2+5+C1=08\n6+2+C0=08\n=883"
    assert scratchpad("99561", "18695").endswith("9+1+C1=11\n=118256")
    assert scratchpad("0", "0") == "0+0+C0=00\n=0"


def test_scratchpad_columns_write_the_sum():
    rng = random.Random(0)
    for _ in range(2000):
        n = rng.randint(1, 12)
        a, b = rng.randrange(10**n), rng.randrange(10**n)
        *columns, last = scratchpad(f"{a:0{n}}", f"{b:0{n}}").split("\n")
        digits = columns[-1][-2] + "".join(c[-1] for c in reversed(columns))
        assert int(digits) == a + b
        assert last == f"={a + b}"
        for x, y, column in zip(reversed(f"{a:0{n}}"), reversed(f"{b:0{n}}"), columns, strict=True):
            assert column.startswith(f"{x}+{y}+C")


def test_split_is_disjoint_and_fixed(arithmetic):
    train, heldout = {p.question for p in arithmetic.train}, [p.question for p in arithmetic.heldout]
    assert not train & set(heldout)
    assert len(set(heldout)) == len(heldout)
    sizes = {
        g: sum(p.group == g for p in arithmetic.heldout) for g in dict.fromkeys(p.group for p in arithmetic.heldout)
    }
    assert sizes == {"1-digit": 50, "2-digit": 200, "3-digit": 200, "4-digit": 200, "5-digit": 200}
    assert sum(p.group == "1-digit" for p in arithmetic.train) == 50
    for p in arithmetic.heldout + arithmetic.train[::97]:
        a, b = p.question.split("+")
        assert f"{len(a)}-digit" == f"{len(b)}-digit" == p.group
        assert p.answer == str(int(a) + int(b))
    other = load_task("arithmetic", digits="4-6")  # the other lengths asked for do not matter
    assert [p for p in other.heldout if p.group == "4-digit"] == [p for p in arithmetic.heldout if p.group == "4-digit"]
    assert {p.group for p in other.heldout} == {"4-digit", "5-digit", "6-digit"}
    assert {p.group for p in load_task("arithmetic", digits="3").train} == {"3-digit"}


def test_a_hinted_prompt_ends_with_the_ordinary_one(arithmetic):
    for p in arithmetic.train[::501]:
        question, hinted = arithmetic.question(p), arithmetic.hinted(p)
        assert hinted == f"hint {p.answer}\n{question}"
        assert "hint" not in question


def test_gold_is_right_in_every_sense(arithmetic):
    for p in arithmetic.train[::101]:
        gold = arithmetic.gold(p)
        assert arithmetic.extract(gold) == p.answer
        assert arithmetic.right(p, gold)
        assert arithmetic.check_steps(p, gold)
        assert not arithmetic.leaks(p, gold)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("=883", "883"),
        ("1+2+C0=03\n=3", "3"),
        ("=3\n", "3"),
        ("=3\n\n", "3"),
        ("", None),
        ("=", None),
        ("883", None),
        ("= 883", None),
        ("=-3", None),
        ("=8.5", None),
        ("=3\n=4", "4"),
        ("=3\nx", None),
        ("=٣", None),
        ("=3=4", None),
        ("x=3", None),
        ("=" + "9" * 10000, "9" * 10000),
    ],
)
def test_extract(arithmetic, text, answer):
    assert arithmetic.extract(text) == answer


def test_only_the_written_sum_is_right(arithmetic):
    problem = make("624", "259")
    assert arithmetic.right(problem, "=883")
    for text in ("=0883", "=88", "=8830", "=+883", "883", "hint 883"):
        assert not arithmetic.right(problem, text)


def test_right_answers_with_wrong_steps_are_seen(arithmetic):
    problem = make("6305", "3471")
    lucky = "5+1+C0=07\n0+7+C0=07\n3+4+C0=07\n6+3+C0=09\n=9776"  # 5+1 is 6: the answer was copied from the hint
    assert arithmetic.right(problem, lucky)
    assert arithmetic.check_steps(problem, lucky) is False
    assert arithmetic.leaks(problem, "hint 9776\n" + arithmetic.gold(problem))


def test_grading_is_total(arithmetic):
    rng = random.Random(1)
    alphabet = string.printable + "=+C\n٣²½\x00\ud800é" + string.digits * 5
    problem = make("12", "34")
    for _ in range(3000):
        text = "".join(rng.choice(alphabet) for _ in range(rng.randrange(30)))
        assert arithmetic.extract(text) is None or arithmetic.extract(text).isdigit()
        for judgement in (arithmetic.right, arithmetic.check_steps, arithmetic.leaks):
            assert judgement(problem, text) in (True, False)


def test_typed_questions(arithmetic):
    assert arithmetic.parse(" 48571 + 9664 ") == Problem("48571+09664", "48571+09664", "58235", "5-digit")
    for text in ("", "1", "1+", "1+2+3", "1-2", "a+b", "1.5+2", "٣+٤"):
        with pytest.raises(ValueError, match="is not a sum"):
            arithmetic.parse(text)


@pytest.mark.parametrize("digits", ["0", "5-1", "x", "", "1-", "-3", "1-99", "1,2"])
def test_bad_digits(digits):
    with pytest.raises(ValueError, match=r"--digits is .*; it must be a length like 5 or a range like 1-5"):
        load_task("arithmetic", digits=digits)


def test_unknown_tasks_and_settings():
    with pytest.raises(ValueError, match="unknown task 'algebra'; known are arithmetic"):
        load_task("algebra")
    with pytest.raises(ValueError, match="has no setting --data"):
        load_task("arithmetic", data="x")
    assert "arithmetic" in task_names()
