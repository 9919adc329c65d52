"""Which problems are tried and which are held back, and which rationales are trained on (lines 5 and 6 of Algorithm 1).

It changes no rationale, and asks no judge: verdict and reward stand on each. Every draw follows from a seed alone.
"""

import itertools
import random
from collections.abc import Sequence

from star.config import StarConfig
from star.degenerate import degenerate
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


def passes(g: Generation, config: StarConfig) -> bool:
    """Does --select let this rationale through? What comes of several for one problem, `select` decides."""
    if config.select == "correct":
        return g.kept
    if config.select == "correct+steps":
        return g.kept and g.steps_right is True
    if g.reward is None or (config.reward_threshold is not None and g.reward < config.reward_threshold):
        return False
    if config.select == "correct+reward":
        return g.kept
    return g.phase == "generate" and g.finish == "stop" and bool(g.tokens)


def usable(generations: Sequence[Generation], config: StarConfig) -> list[Generation]:
    """Those that --select lets through, without loops and outliers under --drop-degenerate.

    Of each iteration all must be there: what is an outlier, the others say.
    """
    bad = degenerate(generations) if config.drop_degenerate else {}
    return [g for g in generations if passes(g, config) and g.key not in bad]


def select(kept: Sequence[Generation], dedup: bool, max_per_problem: int | None, by_reward: bool = False
           ) -> list[Generation]:
    """A part of these rationales, in their order.

    dedup: of equal texts for one problem one is kept. max_per_problem: at most so many each. The newest are kept, and
    of one iteration the first: rationales of iterations [1 1 2 2] are asked for in the order [2 2 1 1]. by_reward: the
    best are, and of equal ones the first: rewards [0.5 2.0 0.5 2.0] are asked for in the order [2.0 2.0 0.5 0.5].
    """
    order = sorted(range(len(kept)), key=lambda i: -(kept[i].reward if by_reward else kept[i].iteration))  # stable
    chosen, seen, taken = set(), set(), {}
    for i in order:
        g = kept[i]
        text = (g.problem, g.text.strip())
        full = max_per_problem is not None and taken.get(g.problem, 0) >= max_per_problem
        if full or (dedup and text in seen):
            continue
        seen.add(text)
        taken[g.problem] = taken.get(g.problem, 0) + 1
        chosen.add(i)
    return [kept[i] for i in sorted(chosen)]
