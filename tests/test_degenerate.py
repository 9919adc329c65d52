"""What goes bad unseen: rationales that loop or stand out, answers that are all one; what does not count as that."""

import json
import math
import random
from dataclasses import replace

import pytest
from conftest import refused
from test_history import made
from test_loop import Riddles, answer, finished, setup, trained_on  # noqa: F401 a fixture

from star.config import StarConfig
from star.degenerate import REPEATED, degenerate, degeneration, goes_round, loops, most_said, outliers
from star.loop import State, star
from star.problem import Chunk, Finished, Problem
from star.select import usable
from star.tasks import load_task
from star.tasks.arithmetic import scratchpad


def ids(text):
    """A character a token."""
    return [ord(c) for c in text]


def words(text):
    known = {}
    return [known.setdefault(word, len(known) + 300) for word in text.split()]


COUNTED = " ".join(f"Step {i} : now we add one more ." for i in range(40))


@pytest.mark.parametrize(("tokens", "ended", "cut"), [
    # what a model says when it has lost itself
    (words("It is 4 . " * 20), True, True),
    (words("We know the rest . " + "so it is " * 20 + "The answer is 4 ."), True, True),  # and comes back
    (ids("因为所以" * 20), True, True),  # no blanks
    (words(" ".join(map(str, range(60)))) * 3, True, True),  # a long passage, three times
    ([7] * 60, True, True),
    (words("I do not " * 5), False, True),  # short, but cut off in the middle of it
    (words("The sum is 12 . " + "no " * 12), False, True),
    (words(COUNTED), True, True),  # a counter changes in it
    (words(COUNTED)[:120], False, True),
    # what people write too
    (ids("0 + 0 + 0 + 0 + 0 = 0"), False, False),
    (words("2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 * 2 = 1024 . The answer is 1024 ."), False, False),
    (ids(scratchpad("11111", "11111")), False, False),
    (ids(scratchpad("99999", "00001")), False, False),
    (ids("| a | b |\n|-------|-------|\n| 1 | 2 |\n| 3 | 4 |\n| 5 | 6 |\n| 1 | 2 |\n"), False, False),
    (ids("First, 3 apples.\n\n\n\n\n\nThen 4 more.\n\n\n\n\n\nThe answer is 7."), False, False),
    (words(" ".join(map(str, range(60)))) * 2, False, False),  # a passage, said again once
    (words(" ".join(f"{name} flips the coin . It is heads ." for name in ("Ann", "Bob", "Cid", "Dee"))), False, False),
    (ids(" ".join(map(str, range(60)))), False, False),
    (ids("".join(f"| {i} | {i * i} | {i * 37 % 101} |\n" for i in range(30))), False, False),
    ([5] * 11, False, False), ([], False, False),
])  # fmt: skip
def test_what_loops(tokens, ended, cut):
    """ended: as a text that ended by itself; cut: as one that was cut off."""
    assert (loops(tokens), loops(tokens, cut=True)) == (ended, cut)


def slow(tokens, cut=False):
    """The definition, for stretches: every period, every place."""
    n = len(tokens)
    least = min(REPEATED, n // 2) if cut else REPEATED
    for period in range(1, n // 2 + 1):
        row = 0
        for i in range(period, n):
            row = row + 1 if tokens[i] == tokens[i - period] else 0
            if n >= 12 and row >= max(least if i == n - 1 else REPEATED, 2 * period):
                return True
    return False


def test_as_by_its_definition():
    """On texts put together from few letters, repeated passages and noise, round the limits."""
    rng, found = random.Random(0), 0
    for _ in range(600):
        period, times = rng.randint(1, 40), rng.choice([2, 3, 4, 50])
        passage = [rng.randrange(rng.choice([2, 5, 200])) for _ in range(period)]
        text = [rng.randrange(200) for _ in range(rng.randrange(30))]
        text += (passage * times)[: rng.randint(20, 150)] + [rng.randrange(200) for _ in range(rng.randrange(30))]
        assert loops(text) == slow(text)
        found += slow(text)
        if slow(text, cut=True):
            assert loops(text, cut=True)
    assert 100 < found < 500


def test_steps_that_a_task_has_checked_are_no_loop():
    """However alike they are: 10 equal columns."""
    tokens = tuple(ids(scratchpad("1" * 10, "1" * 10)))
    g = replace(made(1, "generate", "a", "right"), tokens=tokens, steps_right=True)
    assert not goes_round(g)
    assert goes_round(replace(g, steps_right=None))
    assert goes_round(replace(g, steps_right=False))
    assert not goes_round(replace(g, tokens=()))  # another's text that cannot be written here


def test_gold_rationales_of_the_shipped_tasks_do_not_loop():
    for task in (load_task("arithmetic", digits="1-3"), load_task("columns", digits="5")):
        assert not any(loops(ids(task.gold(p))) for p in task.train[::99])


def tries(*means, tokens=20, phase="generate", **fields):
    """Generations with these mean log-probabilities a token."""
    return [replace(made(1, phase, f"p{i}", "right", f"text {i}"), tokens=tuple(range(tokens)), logprob=mean * tokens,
                    **fields) for i, mean in enumerate(means)]


USUAL = [-0.5 - 0.01 * i for i in range(11)]


@pytest.mark.parametrize(("means", "far"), [
    ([*USUAL, -1.2], ["p11"]), ([*USUAL, -0.0], ["p11"]), ([*USUAL, -0.8], []), ([*USUAL, -0.3], []),
    ([-1e-9] * 9 + [-0.29, -2.0], ["p10"]),  # greedy: they hardly differ, and what hardly differs is no outlier
    ([-1e-9] * 6 + [-2.0], []),  # too few for a range
    ([-1.0, -1.4, -0.6, -1.8, -0.2, -1.2, -0.8, -2.4, -3.0], []),  # sampled: they differ much
    ([*USUAL, math.nan], ["p11"]), ([*USUAL, -math.inf], ["p11"]), ([math.nan], ["p0"]), ([], []),
])  # fmt: skip
def test_which_are_far_from_the_others(means, far):
    assert {key[2] for key in outliers(tries(*means))} == set(far)


def test_a_range_is_of_one_phase_of_one_source_and_of_sound_rationales():
    hinted = tries(*[-3.0] * 9, phase="rationalize")
    assert outliers(tries(*USUAL) + hinted) == set()
    others = tries(*[-3.0] * 9, source="claude")
    assert outliers(tries(*USUAL) + others) == set()
    unknown = [replace(g, source="student", logprob=None, problem=f"q{i}") for i, g in enumerate(others)]
    assert outliers(tries(*USUAL) + unknown) == set()
    cut = [replace(g, finish="length", problem=f"c{i}") for i, g in enumerate(tries(*[-3.0] * 20))]
    assert outliers(tries(*USUAL) + cut) == {g.key for g in cut}  # though they are the most


def test_a_mean_of_few_tokens_may_be_farther_away():
    short = replace(tries(-1.0, tokens=2)[0], problem="short")
    assert outliers([*tries(*USUAL), short]) == set()
    assert outliers([*tries(*USUAL), replace(short, logprob=-6.0)]) == {short.key}


def test_both_are_counted_and_a_loop_counts_once():
    looping = replace(tries(-3.0)[0], problem="loop", tokens=tuple([4] * 60), logprob=-180.0)
    wrong = replace(tries(-4.0)[0], problem="wrong", verdict="wrong")
    hinted = replace(looping, phase="rationalize", iteration=1)
    tried = [*tries(*USUAL), looping, wrong]
    assert degenerate([*tried, hinted]) == {looping.key: "loop", wrong.key: "outlier", hinted.key: "loop"}
    said = degeneration(tried, [hinted], [g for g in [*tried, hinted] if g.kept], 2)
    n, total = sum(len(g.tokens) for g in tried), sum(g.logprob for g in tried)
    assert said == {"degenerate": {"loops": 1, "outliers": 1, "kept_loops": 2, "kept_outliers": 0, "left_out": 2},
                    "nats": round(-total / n, 4)}
    assert degeneration([], [], [], 0)["nats"] is None
    assert json.dumps(degeneration(tries(math.nan, -1.0), [], [], 0), allow_nan=False)


class Choices(Riddles):
    """Any text is its own answer."""

    def __init__(self, answers):
        self.train = self.heldout = [Problem(str(i), f"{i}?", a) for i, a in enumerate(answers)]

    def extract(self, text):
        return text or None


def said(answers, given, samples=1):
    task = Choices(answers)
    texts = [(p, k) for p in task.train for k in range(samples)]
    return most_said(task, task.train, [made(0, "evaluate", p.id, "wrong", given[i], given[i] or None, sample=k)
                                        for i, (p, k) in enumerate(texts)])


FIVE = list("abcde") * 13


@pytest.mark.parametrize(("answers", "given", "one"), [
    (FIVE[:64], ["c"] * 61 + list("abd"), True),  # CommonsenseQA, as it was seen
    (FIVE[:64], FIVE[:64], False), (FIVE[:64], random.Random(0).sample(FIVE[:64], 64), False),
    (FIVE[:64], ["c"] * 24 + FIVE[:40], False),
    (["yes", "no"] * 50, ["yes"] * 100, True), (["yes", "no"] * 50, ["yes"] * 60 + ["no"] * 40, False),
    (["yes", "no"] * 5, ["yes"] * 10, False),  # ten coins may fall so
    (["yes", "no"] * 10, ["yes"] * 20, True),
    (["no"] * 90 + ["yes"] * 10, ["no"] * 100, True), (["no"] * 90 + ["yes"] * 10, ["no"] * 91 + ["yes"] * 9, False),
    (["no"] * 100, ["no"] * 100, False),  # what else
    ([str(i) for i in range(100)], ["7"] * 50 + [str(i) for i in range(50)], True),  # all answers differ
    ([str(i) for i in range(100)], [str(i + 1) for i in range(100)], False),
    ([str(i) for i in range(2)], ["7", "7"], False), (["4"], ["4"], False),
    (FIVE[:64], [" C"] * 21 + ["c "] * 20 + ["c"] * 20 + list("abd"), True),  # however it is written
])  # fmt: skip
def test_when_answers_fall_onto_one_value(answers, given, one):
    found = said(answers, given)
    assert found["one"] is one
    assert found["answers"] == len(given)


def test_what_is_said_of_the_most_frequent_answer():
    assert said(FIVE[:64], ["c"] * 61 + list("abd")) == {"answer": "c", "share": 0.9531, "right": round(13 / 64, 4),
                                                        "answers": 64, "one": True}
    few = said(["a", "b", "a", "b"], ["a"] * 32, samples=8)
    assert few == {"answer": "a", "share": 1.0, "right": 0.5, "answers": 32, "one": False}  # four problems, not 32
    assert not said(["a", "b"] * 5, ["a"] * 80, samples=8)["one"]  # nor are ten problems 80
    assert said(["a", "b"], ["", ""]) == {}  # no answers
    assert said(["", ""], ["x", "x"]) == {}  # none is right or wrong
    assert len(said(["a"] * 3, ["x" * 999] * 3)["answer"]) == 60
    task = Choices(FIVE)
    others = [replace(made(1, "generate", p.id, "wrong", "c", "c"), source="claude") for p in task.train]
    assert most_said(task, task.train, others) == {}


LONG = "so it is " * 9  # 81 characters, a token each to the model that ships


def looping(text):
    """Even ones are right at once, the problems 0 and 4 in a loop; odd ones only with the hint."""
    n = int(answer(text)) // 2
    if n % 2 and "hint" not in text:
        return "=x", "stop"
    return ("1+1+C0=02\n" * 9 if n in (0, 4) else "") + "=" + answer(text), "stop"


def test_loops_are_counted_and_one_flag_leaves_them_out(setup, monkeypatch):  # noqa: F811
    examples = trained_on(monkeypatch)
    (_, plain), (_, dropped) = (finished(star(*setup(looping, drop_degenerate=flag))) for flag in (False, True))
    n = {"loops": 2, "outliers": 0, "kept_loops": 2, "kept_outliers": 0}
    assert plain["degenerate"] == n | {"left_out": 0}
    assert dropped["degenerate"] == n | {"left_out": 2}
    assert (plain["examples"], dropped["examples"]) == (8, 6) == tuple(map(len, examples))
    assert plain["kept"] == dropped["kept"] == 4  # the verdict stays
    assert (plain["always_right"], plain["never_right"]) == (4, 4)
    assert max(len(e.tokens) for e in examples[0]) > 90 > max(len(e.tokens) for e in examples[1])


def test_sampling_goes_on_until_enough_can_be_trained_on(setup):  # noqa: F811
    """Loops do not count towards --wanted: here they would have been enough after three problems."""
    def script(text):
        n = int(answer(text)) // 2
        return ("1+1+C0=02\n" * 9 if n % 2 else "") + "=" + answer(text), "stop"

    _, plain = finished(star(*setup(script, wanted=3)))
    _, strict = finished(star(*setup(script, wanted=3, drop_degenerate=True)))
    assert (plain["problems"], plain["examples"]) == (3, 3)
    assert (strict["problems"], strict["examples"]) == (6, 3)


def test_nothing_but_loops_is_said(setup):  # noqa: F811
    def script(text):
        return "1+1+C0=02\n" * 9 + "=" + answer(text), "stop"

    refused(lambda: list(star(*setup(script, drop_degenerate=True))),
            words=["--drop-degenerate leaves out all of the 8 answers", "--temperature"])
    assert finished(star(*setup(script)))[1]["examples"] == 8


def test_a_resumed_run_leaves_out_the_same(setup, monkeypatch):  # noqa: F811
    """With --keep all: what earlier iterations left out stays out."""
    settings = {"iterations": 2, "keep": "all", "drop_degenerate": True}
    examples = trained_on(monkeypatch)
    events = list(star(*setup(looping, **settings)))
    given = [g for e in events if isinstance(e, Chunk) for g in e.generations]
    first = next(i for i, e in enumerate(events) if isinstance(e, Finished) and e.iteration == 1)
    kept = [g for e in events[:first] if isinstance(e, Chunk) for g in e.generations]
    assert len(kept) < len(given)
    again = finished(star(*setup(looping, **settings), state=State(1), given=kept))
    assert again[0]["examples"] == finished(events)[2]["examples"] == 6
    assert examples[-1] == examples[-2]


def test_usable_is_what_passes_without_the_flag():
    gs = [*tries(*USUAL, -9.0), replace(made(1, "generate", "w", "wrong"), logprob=-1.0)]
    assert usable(gs, StarConfig()) == gs[:-1]
    assert usable(gs, StarConfig(drop_degenerate=True)) == gs[:-2]
