"""Addition of two numbers with a written scratchpad (STaR, section 4.1; the format is our own).

    prompt         624+259\\n
    hinted prompt  hint 883\\n624+259\\n
    rationale      4+9+C0=13\\n2+5+C1=08\\n6+2+C0=08\\n=883

One line a column, least significant first: digit + digit + carry in = carry out and digit. The last line is the
answer, and the only thing the filter reads. The hint is a line of its own IN FRONT, so that a hinted prompt ends with
the ordinary one: written into the prompt ("624+259=883\\n"), it kills rationalization after one iteration, because
fine-tuning on unhinted text makes that form unknown to the model (star/README.md, exercise 1).

"n digits" means that both numbers have exactly n digits. The train and held-out sets depend on nothing but n, so that
every run of every seed is measured on the same problems. For a pretrained model there is star/tasks/columns.
"""

import functools
import random
import re
from copy import copy

from star.problem import Problem
from star.tasks import Task

HELD_OUT, POOL = 200, 10_000  # problems a length


def make(a: str, b: str) -> Problem:
    """A sum as a problem: make("17", "25") asks "17+25" and knows "42"."""
    return Problem(f"{a}+{b}", f"{a}+{b}", str(int(a) + int(b)), f"{len(a)}-digit")


def scratchpad(a: str, b: str) -> str:
    """The one right rationale: scratchpad("17", "25") is "7+5+C0=12\\n1+2+C1=04\\n=42"."""
    carry, lines = 0, []
    for x, y in zip(reversed(a), reversed(b), strict=True):
        total = int(x) + int(y) + carry
        lines.append(f"{x}+{y}+C{carry}={total:02d}")
        carry = total // 10
    return "\n".join([*lines, f"={int(a) + int(b)}"])


@functools.lru_cache(maxsize=16)  # whoever trains several models in one process asks again
def split(n: int) -> tuple[list[Problem], list[Problem]]:
    """(train, held-out) sums of two n-digit numbers, disjoint. There are only 100 of one digit: half of them each."""
    low, high = (10 ** (n - 1) if n > 1 else 0), 10**n
    rng = random.Random(f"addition-{n}")
    if (high - low) ** 2 <= HELD_OUT + POOL:
        pairs = [(a, b) for a in range(low, high) for b in range(low, high)]
        rng.shuffle(pairs)
    else:
        different: dict[tuple[int, int], None] = {}  # a dict keeps their order
        while len(different) < HELD_OUT + POOL:
            different[rng.randrange(low, high), rng.randrange(low, high)] = None
        pairs = list(different)
    cut = min(HELD_OUT, len(pairs) // 2)
    problems = [make(str(a), str(b)) for a, b in pairs]
    return problems[cut:], problems[:cut]


class Arithmetic(Task):
    hint_mark = "hint"
    direct = False  # answers without their scratchpad

    def __init__(self, lengths: range):
        both = [split(n) for n in lengths]
        self.train = [p for train, _ in both for p in train]
        self.heldout = [p for _, heldout in both for p in heldout]
        self.max_new_tokens = 11 * max(lengths) + 13  # a scratchpad and its end take at most 11n + 3; room to stray

    def question(self, problem: Problem) -> str:
        return problem.question + "\n"

    def hinted(self, problem: Problem) -> str:
        return f"hint {problem.answer}\n{self.question(problem)}"

    def extract(self, text: str) -> str | None:
        answer = re.fullmatch(r"=([0-9]+)", text.rstrip("\n").rpartition("\n")[2])
        return answer[1] if answer else None

    def worked(self, problem: Problem) -> str:
        """The one right rationale."""
        return scratchpad(*problem.question.split("+"))

    def gold(self, problem: Problem) -> str:
        return self.worked(problem).rpartition("\n")[2] if self.direct else self.worked(problem)

    def check_steps(self, problem: Problem, text: str) -> bool:
        return text.strip() == self.worked(problem)

    def answers_only(self) -> "Arithmetic":
        view = copy(self)
        view.direct = True
        return view

    def parse(self, text: str) -> Problem:
        """ "48571+9664": the shorter number is padded with zeros on the left, as one would on paper."""
        match = re.fullmatch(r"\s*([0-9]{1,100})\s*\+\s*([0-9]{1,100})\s*", text)
        if not match:
            raise ValueError(f"{text!r} is not a sum; type one like 48571+9664")
        width = max(map(len, match.groups()))
        return make(*(number.zfill(width) for number in match.groups()))


def lengths_of(digits: str) -> range:
    """Of "1-5" the lengths 1 to 5, of "3" only 3. ValueError for anything else."""
    match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", digits.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= 50:
        raise ValueError(f"--digits is {digits!r}; it must be a length like 5 or a range like 1-5, from 1 to 50")
    return range(low, high + 1)


def load(digits: str = "1-5") -> Arithmetic:
    """The default run's task.

    digits: lengths of the numbers, 5 or 1-5
    """
    return Arithmetic(lengths_of(digits))
