"""What a rationale is worth, and how a model does on many problems. The same judgement for generation, rationalization
and held-out problems, for every arm. It draws nothing itself.

    accuracy    share of right greedy answers by group, and the mean over groups, with 95 % intervals
    pass_at     probability that one of k samples is right (unbiased; Chen et al. 2021, arXiv 2107.03374, equation 1)
    maj_at      probability that the most frequent answer of k samples is right
"""

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

from star.problem import STUDENT, Generation, Problem
from star.tasks import Task, ask

Z = 1.959964  # of a 95 % interval
DRAWS = 100  # subsets of samples that maj_at averages over, where there are more

VERDICTS = {
    "right": "arrives at the right answer",
    "wrong": "arrives at another answer",
    "unparsed": "no answer can be read from it",
    "length": "was cut off at the length cap, whatever it says",
    "leak": "right, but it quotes the hint",
    "open": "has no answer to be compared with",
}


def verdict(task: Task, problem: Problem, text: str, finish: str, hinted: bool) -> tuple[str, str | None]:
    """(one of VERDICTS, the answer that was read). A rationale is kept if and only if it is "right" (the filter, lines
    5 and 6 of Algorithm 1). ValueError, one line that names file and method, where the task's own code fails."""
    answer = ask(task, "extract", text)
    if finish == "length":
        return "length", answer
    if not problem.answer:
        return "open", answer
    if answer is None:
        return "unparsed", None
    if not ask(task, "right", problem, text):
        return "wrong", answer
    return "leak" if hinted and ask(task, "leaks", problem, text) else "right", answer


def verdicts(generations: Iterable[Generation]) -> dict[str, int]:
    """How many of each: unparsed, wrong and truncated are different things."""
    return tally(g.verdict for g in generations)


def tally(seen: Iterable[str], *without: str) -> dict[str, int]:
    """Verdict -> how often; "open" only where there is one, for tasks that have no answers."""
    count = Counter(seen)
    return {v: count[v] for v in VERDICTS if v not in without and (v != "open" or count[v])}


def counts(tried: Sequence[Generation], retried: Sequence[Generation]) -> dict:
    """Of an iteration: how many rationales were kept and rationalized; how many problems were dropped, by the verdict
    on their last try. "truncated", "tries" and "mean_tokens" are of the student's own tries without a hint."""
    last = {g.problem: g.verdict for g in [*tried, *retried]}
    own = [g for g in tried if g.source == STUDENT]
    unaided, solved = {g.problem for g in tried if g.kept}, {g.problem for g in [*tried, *retried] if g.kept}
    right = {"kept": tried, "rationalized": retried}
    return {
        "problems": len(last),
        **{name: sum(g.kept for g in tries) for name, tries in right.items()},
        "solved": len(solved), "rationalized_problems": len(solved - unaided),
        "truncated": sum(g.finish == "length" for g in own), "tries": len(own),
        "distinct": len({(g.problem, g.text.strip()) for g in [*tried, *retried] if g.kept}),
        "mean_tokens": round(sum(len(g.tokens) for g in own) / max(len(own), 1), 1),
        **{f"{name}_wrong_steps": sum(g.kept and g.steps_right is False for g in tries)
           for name, tries in right.items()},
        "dropped": tally((last[p] for p in last.keys() - solved), "right"),
        "new_tokens": sum(len(g.tokens) for g in [*tried, *retried] if g.logprob is not None),
    }


def accuracy(problems: Sequence[Problem], generations: Iterable[Generation]) -> dict[str, float]:
    """Share of right answers by group, in the order of the problems, and "mean": the mean over groups.

    Groups count alike, whatever their size: 50 one-digit sums weigh as much as 200 of five digits.
    """
    right = {g.problem: float(g.verdict == "right") for g in generations}
    return {group: value for group, (value, _) in by_group(problems, right).items()}


def accuracy_intervals(problems: Sequence[Problem], generations: Iterable[Generation]) -> dict[str, list[float]]:
    """95 % interval of `accuracy` by group."""
    right = {g.problem: float(g.verdict == "right") for g in generations}
    return {group: list(ends) for group, ends in intervals(problems, right).items()}


def one_sided(tried: Iterable[Generation]) -> dict[str, int]:
    """How many problems the student always solves, and how many never, in its own tries without a hint."""
    of: dict[str, list[bool]] = {}
    for g in tried:
        if g.source == STUDENT:
            of.setdefault(g.problem, []).append(g.verdict == "right")
    return {"always_right": sum(map(all, of.values())), "never_right": sum(not any(tries) for tries in of.values())}


def mean_reward(generations: Iterable[Generation]) -> dict[str, float]:
    """{"mean": mean reward of those that a judge scored, "scored": how many}. ValueError if it could score none."""
    rewards = [g.reward for g in generations if g.reward is not None]
    if not rewards:
        raise ValueError("every answer is too long for the judge: lower --max-new-tokens, or take another judge")
    return {"mean": round(sum(rewards) / len(rewards), 6), "scored": len(rewards)}


def by_group(problems: Sequence[Problem], value: dict[str, float]) -> dict[str, tuple[float, int]]:
    """group -> (mean value, problems), and "mean" over groups (with the number of all problems)."""
    groups: dict[str, list[float]] = {}
    for p in problems:
        groups.setdefault(p.group or "all", []).append(value[p.id])
    means = {group: (sum(values) / len(values), len(values)) for group, values in groups.items()}
    return means | {"mean": (sum(m for m, _ in means.values()) / len(means), len(problems))}


def wilson(share: float, n: int) -> tuple[float, float]:
    """95 % interval of a share of n (Wilson 1927): 0 of 10 is (0, 0.28). For a mean of values in between: cautious."""
    center = (share + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z / (1 + Z * Z / n) * math.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    return center - half if share > 0 else 0.0, center + half if share < 1 else 1.0  # no rounding at the ends


def intervals(problems: Sequence[Problem], value: dict[str, float]) -> dict[str, tuple[float, float]]:
    """95 % interval by group; that of the mean puts the groups' distances together (square-and-add, Newcombe 1998)."""
    groups = by_group(problems, value)
    mean, _ = groups.pop("mean")
    ends = {group: wilson(share, n) for group, (share, n) in groups.items()}
    below = math.sqrt(sum((share - ends[g][0]) ** 2 for g, (share, _) in groups.items())) / len(groups)
    above = math.sqrt(sum((ends[g][1] - share) ** 2 for g, (share, _) in groups.items())) / len(groups)
    return ends | {"mean": (max(mean - below, 0.0), min(mean + above, 1.0))}


def pass_at(k: int, right: int, n: int) -> float:
    """Probability that k of n samples, drawn without repetition, hold a right one, when `right` of the n are."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def maj_at(k: int, samples: Sequence[Generation]) -> float:
    """Share of subsets of k samples whose most frequent answer is right; answers that tie count in part.

    Samples without an answer do not vote. All subsets, or DRAWS of them, the same for every model and problem.
    """
    votes = [(g.answer if g.verdict in ("right", "wrong") else None, g.verdict == "right") for g in samples]
    if math.comb(len(votes), k) <= max(DRAWS, len(votes)):
        subsets = [list(subset) for subset in itertools.combinations(votes, k)]
    else:
        rng = random.Random(0)
        subsets = [rng.sample(votes, k) for _ in range(DRAWS)]
    return sum(map(_majority, subsets)) / len(subsets)


def _majority(votes: list[tuple[str | None, bool]]) -> float:
    counts = Counter(answer for answer, _ in votes if answer is not None)
    most = max(counts.values(), default=0)
    best = {answer for answer, n in counts.items() if n == most}
    return len(best & {answer for answer, right in votes if right}) / len(best) if best else 0.0


def pass_and_maj(problems: Sequence[Problem], samples: Iterable[Generation]) -> dict[str, dict]:
    """{"pass_at": {"1": mean, "2": ...}, "maj_at": ..., "pass_at_interval": {"1": (low, high), ...}, ...}: means over
    the groups, for k = 1, 2, 4, ... and all samples, of which every problem has as many."""
    of: dict[str, list[Generation]] = {p.id: [] for p in problems}
    for g in samples:
        of[g.problem].append(g)
    n = len(of[problems[0].id])
    right = {p: sum(g.verdict == "right" for g in tries) for p, tries in of.items()}
    out: dict[str, dict] = {"pass_at": {}, "maj_at": {}, "pass_at_interval": {}, "maj_at_interval": {}}
    for k in sorted({*(2**i for i in range(n.bit_length())), n}):
        values = {"pass_at": {p: pass_at(k, right[p], n) for p in of},
                  "maj_at": {p: maj_at(k, tries) for p, tries in of.items()}}
        for name, value in values.items():
            out[name][str(k)] = by_group(problems, value)["mean"][0]
            out[f"{name}_interval"][str(k)] = intervals(problems, value)["mean"]
    return out
