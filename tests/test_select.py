"""Which right rationales are trained on."""

from star.problem import Generation
from star.select import select


def made(*rationales):
    """(iteration, problem, text) as generations that the filter has passed."""
    return [Generation(n, "generate", p, k, 0, (), text, "stop", 0.0, None, "right", None)
            for k, (n, p, text) in enumerate(rationales)]  # fmt: skip


def texts(chosen):
    return [(g.iteration, g.problem, g.text) for g in chosen]


def test_nothing_asked_nothing_dropped():
    given = made((1, "a", "x"), (1, "a", "x"), (2, "b", "y"))
    assert select(given, dedup=False, cap=None) == given
    assert select([], dedup=True, cap=3) == []


def test_repeats_of_a_problem_go_and_the_newest_stays():
    given = made((1, "a", "x"), (1, "b", "x"), (1, "a", "y"), (2, "a", "x "), (2, "a", "x"))
    assert texts(select(given, dedup=True, cap=None)) == [(1, "b", "x"), (1, "a", "y"), (2, "a", "x ")]


def test_no_problem_takes_more_than_its_share():
    given = made((1, "a", "1"), (1, "a", "2"), (1, "b", "3"), (2, "a", "4"), (2, "a", "5"), (2, "a", "6"))
    assert texts(select(given, dedup=True, cap=1)) == [(1, "b", "3"), (2, "a", "4")]
    assert texts(select(given, dedup=True, cap=4)) == [(1, "a", "1"), *texts(given[2:])]
    assert select(given, dedup=False, cap=5) == given


def test_repeats_do_not_count_towards_the_cap():
    given = made((1, "a", "x"), (1, "a", "x"), (1, "a", "y"))
    assert texts(select(given, dedup=True, cap=2)) == [(1, "a", "x"), (1, "a", "y")]
    assert texts(select(given, dedup=False, cap=2)) == [(1, "a", "x"), (1, "a", "x")]
