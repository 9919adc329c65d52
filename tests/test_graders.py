"""Graders: what answers are compared by, which numbers an expression may use, and what guessing gives."""

import pytest

from star.problem import Problem
from star.tasks.graders import Choice, Number, Set, Value


def made(said, target, numbers, **options):
    grader = Value(made=True, **options)
    return grader.right(Problem("p", "?", target, numbers=tuple(map(str, numbers))), f"The answer is {said}.")


def test_numbers_are_used_as_they_are_given():
    assert made("4 * 6 * 1 * 1", "24", (1, 1, 4, 6))
    assert made("4 * 6", "24", (1, 1, 4, 6))
    assert not made("4 * 6", "24", (1, 1, 4, 6), all_numbers=True)
    assert not made("4 * 6 * 1 * 1 * 1", "24", (1, 1, 4, 6))
    assert not made("46 - 11 * 2", "24", (1, 1, 4, 6))
    assert not made("24", "24", (1, 1, 4, 6))
    assert made("24", "24", (24, 1))
    assert made("-3 + 8", "5", (-3, 8))
    assert made("8 - 3", "5", (3, 8))
    assert made("-3 + 8", "5", (3, 8))
    assert not made("3 + 8", "11", (-3, 8))
    assert made("0.5 * 8", "4", ("0.50", "8.0"))
    assert not made("2^3", "8", (2, 3))  # such games have no powers
    assert not made("2^3", "8", (2, 4))
    assert not made("2²", "4", (2,))
    assert not made("2²", "4", (2, 2))
    assert made("\\frac{6}{3}", "2", (6, 3))
    assert made("(8 - 4) * (7 - 1) = 24", "4 * 6", (1, 4, 7, 8))  # a solved expression in the file: its value counts


def test_values_without_given_numbers():
    grader = Value()
    assert grader.extract("The answer is 6/8.") == grader.extract("The answer is 3/4.") == "3/4"
    assert grader.spelling("0.75") == "3/4"
    p = Problem("p", "?", "3/4")
    assert grader.right(p, "The answer is $\\frac{3}{4}$.")
    assert grader.right(p, "The answer is 1 - 1/4 = 0.75.")
    assert not grader.right(p, "The answer is 1 - 1/4 = 0.7.")
    assert grader.compares == "by their value"


def test_a_letter_that_is_right_too_often_is_told():
    def notes(letters, n=4):
        return Choice("abcd").notes([Problem(str(i), "?", c, choices=("x",) * n) for i, c in enumerate(letters)])

    assert notes("a" * 12)[0].startswith("(a) is right in 12 of 12 problems")
    assert notes("b" * 60 + "abcd" * 10)[0].startswith("(b) is right in 70 of 100")
    assert notes("abcd" * 25) == notes("a" * 29 + "bcd" * 24) == notes("aab") == notes("") == []
    assert notes("a" * 60 + "b" * 40, 2) == []  # nor is this more than luck
    assert notes("a" * 2800 + "bcd" * 2400) == []  # more than luck, but not by a quarter
    assert notes("a" * 80 + "b" * 20, 2)


def test_chance_is_what_the_commonest_answer_gives():
    def of(grader, *answers, choices=()):
        return grader.chance([Problem(str(i), "?", a, choices=choices) for i, a in enumerate(answers)])

    assert of(Number(), "7", "7.0", "$7", "8") == 0.75
    assert of(Number(), "7", "8") == of(Number()) == 0
    assert of(Set(), "1, 2", "2 and 1", "3") == pytest.approx(2 / 3)
    assert of(Value(), "1/2", "0.5", "3", "4") == 0.5
    assert of(Choice("ab"), "a", "a", "a", "b", choices=("x", "y")) == 0.75
    assert of(Choice("abcd"), "a", "b", "c", choices=("x", "y", "z", "w")) == 0.25


def test_a_set_with_more_or_less_is_wrong():
    p = Problem("p", "?", "2, the Red Sea and 3")
    assert Set().right(p, "The answer is 3, 2.0 and red sea.")
    for said in ("2 and the Red Sea", "2, 3, 4 and the Red Sea", "2, 3 and the Dead Sea", "2, 3, the Red Sea or 4"):
        assert not Set().right(p, f"The answer is {said}.")
    assert Set().meaning(p) == Set().meaning(Problem("q", "?", "Red Sea; 3; 2"))
