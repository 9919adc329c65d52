"""Which problems are tried and which are held back, and which right rationales are trained on."""

from star.problem import Generation, Problem
from star.select import choose_heldout, choose_problems, select, set_aside


def made(*rationales):
    """(iteration, problem, text) as generations that the filter has passed."""
    return [Generation(n, "generate", p, k, 0, (), text, "stop", 0.0, None, "right", None)
            for k, (n, p, text) in enumerate(rationales)]  # fmt: skip


def texts(chosen):
    return [(g.iteration, g.problem, g.text) for g in chosen]


def test_nothing_asked_nothing_dropped():
    given = made((1, "a", "x"), (1, "a", "x"), (2, "b", "y"))
    assert select(given, dedup=False, max_per_problem=None) == given
    assert select([], dedup=True, max_per_problem=3) == []


def test_repeats_of_a_problem_go_and_the_newest_stays():
    given = made((1, "a", "x"), (1, "b", "x"), (1, "a", "y"), (2, "a", "x "), (2, "a", "x"))
    assert texts(select(given, dedup=True, max_per_problem=None)) == [(1, "b", "x"), (1, "a", "y"), (2, "a", "x ")]


def test_no_problem_takes_more_than_its_share():
    given = made((1, "a", "1"), (1, "a", "2"), (1, "b", "3"), (2, "a", "4"), (2, "a", "5"), (2, "a", "6"))
    assert texts(select(given, dedup=True, max_per_problem=1)) == [(1, "b", "3"), (2, "a", "4")]
    assert texts(select(given, dedup=True, max_per_problem=4)) == [(1, "a", "1"), *texts(given[2:])]
    assert select(given, dedup=False, max_per_problem=5) == given


def test_repeats_do_not_count_towards_the_most():
    given = made((1, "a", "x"), (1, "a", "x"), (1, "a", "y"))
    assert texts(select(given, dedup=True, max_per_problem=2)) == [(1, "a", "x"), (1, "a", "y")]
    assert texts(select(given, dedup=False, max_per_problem=2)) == [(1, "a", "x"), (1, "a", "x")]


TRAIN = [Problem(f"a{i}", "", "", "a") for i in range(3)] + [Problem(f"b{i}", "", "", "b") for i in range(50)]


def test_problems_are_drawn_evenly_and_anew():
    for n, a in ((4, 2), (10, 3), (53, 3), (99, 3)):
        drawn = choose_problems(TRAIN, n, seed=1)
        assert len({p.id for p in drawn}) == len(drawn) == min(n, 53)
        assert sum(p.group == "a" for p in drawn) == a
    assert choose_problems(TRAIN, 9, 1) == choose_problems(TRAIN, 9, 1) != choose_problems(TRAIN, 9, 2)


def test_what_is_held_back_is_the_same_in_every_run_and_in_order():
    assert set_aside(TRAIN, 0) == ([], TRAIN)
    validation, others = set_aside(TRAIN, 4)
    assert sorted([*validation, *others], key=TRAIN.index) == TRAIN
    assert [p.group for p in validation] == ["a", "a", "b", "b"]
    assert set_aside(TRAIN, 4) == (validation, others)
    part = choose_heldout(TRAIN, 9)
    assert part == sorted(part, key=TRAIN.index)
    assert sum(p.group == "a" for p in part) == 3
    assert choose_heldout(TRAIN, None) == choose_heldout(TRAIN, 99) == TRAIN
