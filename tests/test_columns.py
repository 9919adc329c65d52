"""Sums for a pretrained model (star/tasks/columns): format, examples of each length, leak guard."""

import pytest

from star.tasks import load_task
from star.tasks.arithmetic import make


@pytest.fixture(scope="module")
def task():
    return load_task("columns", digits="1-3", shots=4)


def test_the_format(task):
    p = make("59", "56")
    assert task.question(p) == "b5 a9 + B5 A6\n"
    assert task.hinted(p) == "Hint: 115\nb5 a9 + B5 A6\n"
    assert task.gold(p) == "a9 + A6 = 9 + 6 = 15\nb5 + B5 + 1 = 5 + 5 + 1 = 11\nAnswer: 115"


def test_a_sum_is_shown_behind_examples_of_its_own_length(task):
    for p in (make("5", "9"), make("59", "56"), make("591", "560")):
        shown, hinted = task.few_shot(p), task.few_shot(p, hinted=True)
        assert shown.count("Answer: ") == hinted.count("Answer: ") == hinted.count("Hint: ") == 4
        assert sum(line.count("=") == 2 for line in shown.splitlines()) == 4 * len(p.question.split("+")[0])
        assert [answer for _, answer in task.turns(p)] == [task.gold(s.problem) for s in task.shots_of(p)]
    assert task.few_shot(make("5917", "5600")) == shown  # no examples are longer


def test_examples_are_neither_trained_on_nor_held_out(task):
    shown = {shot.problem for shot in task.shots}
    assert len(shown) == 3 * 4
    assert not shown & {*task.train, *task.heldout}
    sums = load_task("arithmetic", digits="1-3")
    assert {*task.train, *shown} == set(sums.train)
    assert task.heldout == sums.heldout


def test_every_worked_sum_is_right_and_jumps_nowhere(task):
    for p in task.train[::97]:
        gold = task.gold(p)
        assert task.right(p, gold)
        assert task.check_steps(p, gold)
        assert not task.leaks(p, gold)


@pytest.mark.parametrize("text", [
    "a9 + A6 = 9 + 6 = 14\nb5 + B5 + 1 = 5 + 5 + 1 = 11\nAnswer: 115",  # a sum that is not true
    "a9 + A6 = 9 + 6 = 15\nAnswer: 115",  # the answer is not made of its digits
    "Answer: 115", "a9 + A6 = 15\nb5 + B5 = 11\nAnswer: 115", "Hint: 115\na9 + A6 = 9 + 6 = 15\nAnswer: 15",
])
def test_a_rationale_that_jumps_to_the_hint_is_a_leak(task, text):
    assert task.leaks(make("59", "56"), text)


@pytest.mark.parametrize(("text", "answer"), [
    ("a1 + A1 = 1 + 1 = 2\nAnswer: 2\n", "2"), ("Answer: 2 or 3", None), ("2", None), ("", None), ("Answer: -2", None)])
def test_only_the_last_line_is_read(task, text, answer):
    assert task.extract(text) == answer


def test_without_reasoning(task):
    direct = task.answers_only()
    assert direct.gold(make("59", "56")) == "Answer: 115"
    assert "=" not in direct.prefix
    assert "=" in task.prefix, "the task itself is as it was"
    assert load_task("arithmetic", digits="2").answers_only().gold(make("59", "56")) == "=115"


@pytest.mark.parametrize(("options", "words"), [
    ({"shots": 26}, "--shots is 26; task columns shows 1 to 25"), ({"shots": 0}, "--shots is 0; "),
    ({"digits": "27"}, "letters for 26 digits"), ({"digits": "x"}, "--digits is 'x'")])
def test_what_is_refused(options, words):
    with pytest.raises(ValueError, match=words):
        load_task("columns", **options)


def test_a_typed_sum_has_a_letter_for_each_column(task):
    assert task.question(task.parse("9" * 26 + "+1")).startswith("z9 y9")
    with pytest.raises(ValueError, match="more than 26 digits"):
        task.parse("9" * 27 + "+1")
