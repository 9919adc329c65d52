"""Which problems are tried and which are held back, and which of the right rationales are trained on.

It sees rationales that the filter of Algorithm 1 has passed (star/loop), and changes none. Every choice follows from a
seed alone.
"""

import itertools
import random
from collections.abc import Sequence

from star.draws import seed_of
from star.problem import Generation, Problem


def set_aside(train: Sequence[Problem], n: int) -> tuple[list[Problem], list[Problem]]:
    """(n validation problems, the others): the same in every run, each in the task's order."""
    chosen = {p.id for p in choose_problems(train, n, seed_of("validation"))} if n else set()
    return [p for p in train if p.id in chosen], [p for p in train if p.id not in chosen]


def choose_heldout(heldout: Sequence[Problem], n: int | None) -> list[Problem]:
    """The held-out problems to evaluate on: the same n in every run, in the task's order."""
    ids = {p.id for p in choose_problems(heldout, n or len(heldout), seed_of("held-out"))}
    return [p for p in heldout if p.id in ids]


def choose_problems(train: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """n problems drawn without repetition (all, if there are no more), as even over groups as these allow.

    Groups of 2 a's and 9 b's give, for n = 6, both a's and 4 b's.
    """
    groups: dict[str, list[Problem]] = {}
    for p in random.Random(seed).sample(train, len(train)):
        groups.setdefault(p.group, []).append(p)
    rows = itertools.zip_longest(*groups.values())  # one of each group, row after row
    return [p for p in itertools.chain.from_iterable(rows) if p is not None][:n]


def select(kept: Sequence[Generation], dedup: bool, max_per_problem: int | None) -> list[Generation]:
    """A part of these rationales, in their order.

    dedup: of equal texts for one problem one is kept. max_per_problem: at most so many each. The newest are kept, and
    of one iteration the first: rationales of iterations [1 1 2 2] are asked for in the order [2 2 1 1].
    """
    newest_first = sorted(range(len(kept)), key=lambda i: -kept[i].iteration)  # stable: within an iteration as given
    chosen, seen, taken = set(), set(), {}
    for i in newest_first:
        g = kept[i]
        text = (g.problem, g.text.strip())
        full = max_per_problem is not None and taken.get(g.problem, 0) >= max_per_problem
        if full or (dedup and text in seen):
            continue
        seen.add(text)
        taken[g.problem] = taken.get(g.problem, 0) + 1
        chosen.add(i)
    return [kept[i] for i in sorted(chosen)]
