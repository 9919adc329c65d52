"""Statistics against published values, exact probabilities, simulation, and enumeration."""

import itertools
import math
import random
from dataclasses import replace

import pytest

from star import evaluate
from star.evaluate import (
    VERDICTS,
    accuracy,
    accuracy_intervals,
    by_group,
    counts,
    intervals,
    maj_at,
    one_sided,
    pass_and_maj,
    pass_at,
    verdict,
    verdicts,
    wilson,
)
from star.problem import Generation, Problem
from star.tasks import Task


def made(said, answer=None, problem="1", sample=0):
    return Generation(1, "pass at k", problem, sample, 0, (), "", "stop", 0.0, answer, said, None)


def votes(answers, right="A"):
    """Samples with these answers, one a letter; "-" has none, "x" was cut off behind the right answer."""
    said = {right: "right", "-": "unparsed", "x": "length"}
    return [made(said.get(a, "wrong"), {"-": None, "x": right}.get(a, a), sample=i) for i, a in enumerate(answers)]


def groups(**sizes):
    """Problems by group: groups(a=2, b=1) has a0, a1, b0."""
    return [Problem(f"{name}{i}", "", "", name) for name, n in sizes.items() for i in range(n)]


# Wilson


@pytest.mark.parametrize(("right", "n", "low", "high"), [  # Newcombe 1998, Stat. Med. 17:857, table I, method 3
    (81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)])  # fmt: skip
def test_wilson_is_the_published_interval(right, n, low, high):
    assert wilson(right / n, n) == pytest.approx((low, high), abs=6e-5)
    assert wilson(1 - right / n, n) == pytest.approx((1 - high, 1 - low), abs=6e-5)


def test_wilson_of_none_and_of_all():
    """The ends are 0 and 1 exactly, whatever is rounded on the way; the other end is Z^2 / (n + Z^2) away."""
    for n in range(1, 400):
        far = evaluate.Z**2 / (n + evaluate.Z**2)
        assert wilson(0.0, n) == (0.0, pytest.approx(far))
        assert wilson(1.0, n) == (pytest.approx(1 - far), 1.0)
    assert wilson(0.0, 10) == pytest.approx((0, 0.278), abs=1e-3)


def test_wilson_lies_around_the_share():
    for n in (1, 2, 7, 50):
        spans = [wilson(k / n, n) for k in range(n + 1)]
        assert all(0 <= low <= k / n <= high <= 1 for k, (low, high) in enumerate(spans))
        assert spans == sorted(spans)


def test_wilson_covers_as_often_as_it_says():
    """By the binomial distribution, exactly: the interval holds the true share in about 95 % of all experiments."""
    n, covered = 20, []
    for p in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95):
        spans = [wilson(k / n, n) for k in range(n + 1)]
        chances = [math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
        covered.append(sum(chance for chance, (low, high) in zip(chances, spans, strict=True) if low <= p <= high))
    assert min(covered) >= 0.92
    assert 0.94 < sum(covered) / len(covered) < 0.97


# the mean over groups


def test_interval_of_the_mean_is_the_published_one():
    """Newcombe's (1998, Stat. Med. 17:873, method 10) interval of a difference, 56 of 70 less 48 of 80, is (0.0524,
    0.3339); a mean with the complement of the second is (difference + 1) / 2."""
    problems = groups(a=70, b=80)
    value = {p.id: float(int(p.id[1:]) < {"a": 56, "b": 32}[p.group]) for p in problems}
    assert by_group(problems, value)["mean"] == (pytest.approx((0.2 + 1) / 2), 150)
    assert intervals(problems, value)["mean"] == pytest.approx(((0.0524 + 1) / 2, (0.3339 + 1) / 2), abs=3e-5)


@pytest.mark.parametrize("truth", [{"a": 0.5, "b": 0.1, "c": 0.9}, {"a": 0.97, "b": 0.85, "c": 0.03}])
def test_interval_of_the_mean_covers_the_true_mean(truth):
    rng, problems, hits = random.Random(0), groups(a=50, b=20, c=80), 0
    for _ in range(1000):
        value = {p.id: float(rng.random() < truth[p.group]) for p in problems}
        low, high = intervals(problems, value)["mean"]
        hits += low <= sum(truth.values()) / 3 <= high
    assert 930 <= hits <= 985


def test_intervals_by_group():
    problems = groups(a=10, b=30)
    value = {p.id: float(p.id == "b7") for p in problems}
    spans = intervals(problems, value)
    assert list(spans) == ["a", "b", "mean"]
    assert spans["a"] == wilson(0, 10)
    assert spans["b"] == wilson(1 / 30, 30)
    assert spans["mean"][0] == 1 / 60 - (1 / 30 - spans["b"][0]) / 2  # a lies at its own lower end
    assert spans["mean"][1] < (spans["a"][1] + spans["b"][1]) / 2  # both ends at once are rarer
    alone = [Problem(str(i), "", "") for i in range(4)]
    one = intervals(alone, {"0": 1.0, "1": 0.0, "2": 1.0, "3": 1.0})
    assert one["all"] == wilson(0.75, 4)
    assert one["mean"] == pytest.approx(one["all"])


def test_accuracy_by_group():
    problems = [*groups(a=1, b=3), Problem("c", "", "")]
    said = {"a0": "right", "b0": "right", "b1": "wrong", "b2": "length", "c": "unparsed"}
    generations = [made(v, problem=p) for p, v in said.items()]
    random.Random(0).shuffle(generations)
    shares = accuracy(problems, generations)
    assert shares == {"a": 1.0, "b": 1 / 3, "all": 0.0, "mean": pytest.approx(4 / 9)}
    assert list(shares) == ["a", "b", "all", "mean"]  # groups weigh alike, whatever their size
    ends = accuracy_intervals(problems, generations)
    assert ends == {group: list(span) for group, span in intervals(
        problems, {p: float(v == "right") for p, v in said.items()}).items()}  # fmt: skip


# verdicts


class Sums(Task):
    hint_mark = "hint"

    def extract(self, text):
        return text.rpartition("=")[2] if "=" in text else None


@pytest.mark.parametrize(
    ("text", "finish", "hinted", "said"),
    [
        ("so =2", "stop", False, ("right", "2")),
        ("so =2", "stop", True, ("right", "2")),
        ("so =2", "length", False, ("length", "2")),
        ("2", "length", True, ("length", None)),
        ("2", "stop", False, ("unparsed", None)),
        ("hint", "stop", True, ("unparsed", None)),
        ("=3", "stop", False, ("wrong", "3")),
        ("hint =3", "stop", True, ("wrong", "3")),
        ("hint =2", "stop", True, ("leak", "2")),
        ("hint =2", "stop", False, ("right", "2")),  # nobody showed it a hint
    ],
)
def test_verdict(text, finish, hinted, said):
    assert verdict(Sums(), Problem("p", "1+1", "2"), text, finish, hinted) == said
    assert said[0] in VERDICTS


def test_verdicts_are_counted_one_by_one():
    said = [*["right"] * 3, "wrong", "length", "length"]
    assert verdicts(map(made, said)) == {"right": 3, "wrong": 1, "unparsed": 0, "length": 2, "leak": 0}
    assert list(verdicts([])) == [v for v in VERDICTS if v != "open"]
    assert verdicts([made("open")])["open"] == 1


def test_what_an_iteration_counts():
    """Problems, not rationales, are solved and dropped; a problem is dropped by what was said of its last try."""
    def tries(phase, **said):
        return [Generation(1, phase, p, k, 0, (7,) * (k + 1), f"{p} {v}", "length" if v == "length" else "stop", 0.0,
                           None, v, steps)
                for p, verdicts_ in said.items() for k, (v, steps) in enumerate(verdicts_)]

    right, odd, wrong, cut, leak = ("right", True), ("right", False), ("wrong", None), ("length", None), ("leak", None)
    tried = tries("generate", a=[right, odd], b=[wrong, cut], c=[wrong, wrong], d=[cut, wrong])
    retried = tries("rationalize", b=[odd, wrong], c=[wrong, leak], d=[leak, wrong])
    assert counts(tried, retried) == {
        "problems": 4, "kept": 2, "rationalized": 1, "solved": 2, "rationalized_problems": 1, "truncated": 2,
        "tries": 8, "distinct": 2, "mean_tokens": 1.5, "kept_wrong_steps": 1, "rationalized_wrong_steps": 1,
        "dropped": {"wrong": 1, "unparsed": 0, "length": 0, "leak": 1}, "new_tokens": 12 + 9}
    assert counts(tried, [])["dropped"] == {"wrong": 2, "unparsed": 0, "length": 1, "leak": 0}
    assert one_sided(tried) == {"always_right": 1, "never_right": 3}
    mixed = tries("generate", a=[right, wrong], b=[cut, odd], c=[right, right])
    assert one_sided([*mixed, *(replace(g, source="claude") for g in tried)]) == {"always_right": 1, "never_right": 0}
    assert one_sided([]) == {"always_right": 0, "never_right": 0}


# several samples


def test_pass_at_is_the_share_of_all_subsets():
    for n in range(1, 7):
        for right in range(n + 1):
            for k in range(1, n + 1):
                subsets = [any(i < right for i in s) for s in itertools.combinations(range(n), k)]
                assert pass_at(k, right, n) == pytest.approx(sum(subsets) / len(subsets))
    assert pass_at(1, 3, 10) == pytest.approx(0.3)
    assert pass_at(8, 1, 10_000) == pytest.approx(8 / 10_000)


@pytest.mark.parametrize(("answers", "share"), [
    ("AAB", 1), ("ABB", 0), ("AB", 1 / 2), ("AABBC", 1 / 2), ("ABC", 1 / 3), ("BCA-", 1 / 3), ("B", 0),
    ("A---", 1), ("----", 0), ("xxA", 1), ("xxB", 0), ("BBAx", 0), ("Bx", 0), ("xx-", 0)])  # fmt: skip
def test_majority_of_all_samples(answers, share):
    """Ties count in part; what has no answer, or was cut off, does not vote."""
    for order in set(itertools.permutations(answers)):
        assert maj_at(len(answers), votes(order)) == pytest.approx(share)


def test_majority_is_the_share_of_all_subsets():
    answers = "AABBBC-A"

    def majority(subset):
        counts = {a: subset.count(a) for a in set(subset) - {"-"}}
        best = [a for a in counts if counts[a] == max(counts.values())]
        return ("A" in best) / max(len(best), 1)

    for k in (1, 2, 3, 4, 7, 8):
        shares = [majority(s) for s in itertools.combinations(answers, k)]
        assert len(shares) <= evaluate.DRAWS
        assert maj_at(k, votes(answers)) == pytest.approx(sum(shares) / len(shares))


def test_majority_of_one_is_pass_at_one():
    for right, n in ((1, 4), (7, 30), (45, 200)):
        answers = "A" * right + "B" * (n - right)
        assert maj_at(1, votes(answers)) == pytest.approx(pass_at(1, right, n)) == pytest.approx(right / n)


def test_many_subsets_are_drawn_the_same_each_time():
    answers = list("A" * 12 + "B" * 8)
    exact = sum(math.comb(12, i) * math.comb(8, 9 - i) * (i > 4) for i in range(10)) / math.comb(20, 9)
    assert maj_at(9, votes(answers)) == maj_at(9, votes(answers)) == pytest.approx(exact, abs=0.1)
    assert 0 < maj_at(9, votes(answers)) < 1
    random.seed(3)  # the global state has no say
    assert maj_at(9, votes(answers)) == maj_at(9, votes(answers))


@pytest.mark.parametrize(("n", "ks"), [(1, "1"), (2, "12"), (4, "124"), (6, "1246")])
def test_pass_and_maj_over_samples(n, ks):
    problems = groups(a=1, b=2)
    said = {"a0": "A" * n, "b0": "B" * (n - 1) + "A", "b1": "-" * n}
    samples = [g for p, answers in said.items() for g in votes(answers)]
    samples = [made(g.verdict, g.answer, p, g.sample)
               for g, p in zip(samples, (p for p in said for _ in range(n)), strict=True)]
    result = pass_and_maj(problems, samples)
    assert list(result) == ["pass_at", "maj_at", "pass_at_interval", "maj_at_interval"]
    assert all("".join(result[name]) == ks for name in result)
    for k in map(int, ks):
        one = pass_at(k, 1, n)
        assert result["pass_at"][str(k)] == pytest.approx((1 + one / 2) / 2)  # the mean over a and b
        assert result["maj_at"][str(k)] == pytest.approx((1 + maj_at(k, votes(said["b0"])) / 2) / 2)
        assert result["pass_at_interval"][str(k)] == pytest.approx(
            intervals(problems, {"a0": 1.0, "b0": one, "b1": 0.0})["mean"])
    assert result["pass_at"]["1"] == pytest.approx(result["maj_at"]["1"])
    assert result["pass_at"][str(n)] == 0.75
