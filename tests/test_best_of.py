"""Expectations over subsets of the samples of a problem, against enumeration."""

import itertools
import math
import random

import pytest
from conftest import refused

from star import best_of as module
from star.best_of import auc_within, best_of, majority, tied, weighted_majority
from star.evaluate import maj_at, pass_at, wilson
from star.problem import Generation

INF = math.inf


def over_subsets(n, k, value):
    values = [value(s) for s in itertools.combinations(range(n), k)]
    return sum(values) / len(values)


def drawn(rng, n):
    """(scores with many ties, right, answers: one text for all that are right)"""
    answers = [rng.choice(["A", "B", "C", None]) for _ in range(n)]
    return [rng.choice([-INF, 0.0, 0.5, 2.0]) for _ in range(n)], [a == "A" for a in answers], answers


def test_best_of_is_the_share_of_all_subsets():
    """The first of those with the highest score is picked: min of (-score, place)."""
    rng = random.Random(0)
    for n in range(1, 8):
        for _ in range(5):
            scores, right, _ = drawn(rng, n)
            for k in range(1, n + 1):
                slow = over_subsets(n, k, lambda s: right[min(s, key=lambda i: (-scores[i], i))])  # noqa: B023
                assert best_of(scores, right, k) == pytest.approx(slow, abs=1e-12)


def test_best_of_by_hand():
    """V-STaR's sum with alpha = 1, 0, 1 in the order of the scores."""
    assert best_of([3, 2, 1], [True, False, True], 2) == pytest.approx(2 / 3)
    assert best_of([1, 2, 3], [True, False, True], 2) == pytest.approx(2 / 3)
    assert best_of([1, 1], [True, False], 2) == 1.0
    assert best_of([1, 1], [False, True], 2) == 0.0
    assert best_of([-INF, -INF], [True, False], 2) == 1.0


def test_one_is_a_random_pick_and_a_perfect_score_is_the_oracle():
    right = [i % 5 == 2 for i in range(16)]
    for k in range(1, 17):
        assert best_of([float(r) for r in right], right, k) == pytest.approx(pass_at(k, sum(right), 16))
    assert best_of(range(16), right, 1) == pytest.approx(sum(right) / 16)
    assert best_of(range(16), right, 16) == right[-1]


def voted(answers, weights, right, subset):
    """The slow twin: a dict of sums for one subset."""
    sums = {}
    for i in subset:
        if answers[i] is not None and weights[i] > 0:
            sums[answers[i]] = sums.get(answers[i], 0) + weights[i]
    best = [a for a in sums if sums[a] == max(sums.values())]
    return sum(a in {b for b, r in zip(answers, right, strict=True) if r} for a in best) / max(len(best), 1)


def test_weighted_majority_is_the_share_of_all_subsets():
    """Weights of quarters add up exactly, so that their ties are ties."""
    rng = random.Random(1)
    for n in range(1, 8):
        for _ in range(5):
            _, right, answers = drawn(rng, n)
            weights = [rng.choice([0.0, 0.25, 0.5, 1.0]) for _ in range(n)]
            for k in range(1, n + 1):
                slow = over_subsets(n, k, lambda s: voted(answers, weights, right, s))  # noqa: B023
                assert weighted_majority(answers, weights, right, k) == pytest.approx(slow, abs=1e-12)


def test_weights_decide_and_rounding_does_not():
    answers, right = ["A", "B", "B"], [True, False, False]
    assert weighted_majority(answers, [3, 1, 1], right, 3) == 1.0
    assert weighted_majority(answers, [1, 1, 1], right, 3) == 0.0
    assert weighted_majority(answers, [0.3, 0.1, 0.2], right, 3) == 0.5  # 0.1 + 0.2 > 0.3 in floating point
    assert weighted_majority([None, None], [1, 1], [False, False], 1) == 0.0
    assert weighted_majority(["A"], [0], [True], 1) == 0.0


def test_majority_is_that_of_evaluate():
    """Where that looks at all subsets too, and near it where it draws 100."""
    rng = random.Random(2)
    for n in (1, 4, 8, 16):
        _, right, answers = drawn(rng, n)
        said = {"A": "right", None: "unparsed"}
        samples = [Generation(1, "", "1", i, 0, (), "", "stop", 0.0, a, said.get(a, "wrong"), None)
                   for i, a in enumerate(answers)]
        for k in range(1, n + 1):
            near = 1e-12 if math.comb(n, k) <= 100 else 0.12
            assert majority(answers, right, k) == pytest.approx(maj_at(k, samples), abs=near)


def test_too_many_subsets_are_drawn_the_same_each_time(monkeypatch):
    rng = random.Random(3)
    _, right, answers = drawn(rng, 12)
    exact = majority(answers, right, 5)
    monkeypatch.setattr(module, "MOST", 100)
    module.subsets.cache_clear()
    drawn_once = majority(answers, right, 5)
    module.subsets.cache_clear()
    assert drawn_once == majority(answers, right, 5) == pytest.approx(exact, abs=0.08)
    assert drawn_once != exact
    module.subsets.cache_clear()


def test_ties():
    assert tied([1, 2, 2], ["A", "B", "A"])
    assert not tied([1, 2, 2], ["A", "B", "B"])  # whichever is picked, it says the same
    assert not tied([2, 1, 1], ["A", "B", "A"])
    assert tied([2, 2], ["A", None])


def test_auc_within_problems():
    """0.9 > 0.1 within each problem, though a wrong one of the second scores above a right one of the first."""
    assert auc_within([[(0.9, True), (0.1, False)], [(5.9, True), (5.1, False)]]) == (1.0, *wilson(1.0, 2))
    one = [(3, True), (1, False), (2, True), (2, False), (0, False)]  # in order: 3 pairs of 3, and 2 and a half of 3
    assert auc_within([one]) == pytest.approx((5.5 / 6, *wilson(5.5 / 6, 1)))
    silent = [[(1, True), (2, True)], [(1, False)]]
    assert auc_within([one, *silent, [(0, True), (1, False)]]) == pytest.approx((5.5 / 12, *wilson(5.5 / 12, 2)))
    mean, *interval = auc_within(silent)
    assert (math.isnan(mean), interval) == (True, [0.0, 1.0])


def test_what_is_refused():
    refused(best_of, [1, 2], [True], 1, words=("2 scores", "1 verdicts"))
    refused(best_of, [1, 2], [True, False], 3, words=("k = 3",))
    refused(best_of, [1], [True], 0, words=("k = 0",))
    refused(best_of, [1, math.nan], [True, False], 1, words=("sample 1",))
    refused(auc_within, [[(math.nan, True)]], words=("sample 0",))
    refused(weighted_majority, ["A"], [-1.0], [True], 1, words=("not below 0",))
    refused(weighted_majority, ["A"], [INF], [True], 1, words=("finite",))
    refused(weighted_majority, ["A", "B"], [1.0], [True], 1, words=("2 answers",))
