"""What a rationale is worth, and how a model does on many problems. The same judgement for generation, rationalization
and held-out problems. It draws nothing itself."""

from collections.abc import Iterable, Sequence

from star.problem import Generation, Problem
from star.tasks import Task

VERDICTS = {
    "right": "arrives at the right answer",
    "wrong": "arrives at another answer",
    "unparsed": "no answer can be read from it",
    "length": "was cut off at the length cap, whatever it says",
    "leak": "right, but it quotes the hint",
}


def verdict(task: Task, problem: Problem, text: str, finish: str, hinted: bool) -> str:
    """One of VERDICTS. A rationale is kept if and only if it is "right" (the filter, lines 5 and 6 of Algorithm 1)."""
    if finish == "length":
        return "length"
    if task.extract(text) is None:
        return "unparsed"
    if not task.right(problem, text):
        return "wrong"
    return "leak" if hinted and task.leaks(problem, text) else "right"


def accuracy(problems: Sequence[Problem], generations: Iterable[Generation]) -> dict[str, float]:
    """Share of right answers by group, in the order of the problems, and "mean": the mean over groups.

    Groups count alike, whatever their size: 50 one-digit sums weigh as much as 200 of five digits.
    """
    right = {g.problem: g.verdict == "right" for g in generations}
    groups: dict[str, list[bool]] = {}
    for p in problems:
        groups.setdefault(p.group or "all", []).append(right[p.id])
    shares = {group: sum(hits) / len(hits) for group, hits in groups.items()}
    return shares | {"mean": sum(shares.values()) / len(shares)}
