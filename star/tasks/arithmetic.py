"""Addition of two numbers with a written scratchpad (STaR, section 4.1; the format is our own).

    prompt         624+259\\n
    hinted prompt  hint 883\\n624+259\\n
    rationale      4+9+C0=13\\n2+5+C1=08\\n6+2+C0=08\\n=883

One line a column, least significant first: digit + digit + carry in = carry out and digit. The last line is the
answer, and the only thing the filter reads. The hint is a line of its own IN FRONT, so that a hinted prompt ends with
the ordinary one: written into the prompt ("624+259=883\\n"), it kills rationalization after one iteration, because
fine-tuning on unhinted text makes that form unknown to the model (README, exercise 1).

A pretrained model learns the format from examples instead: `shots` of each length (the paper has 10); a sum is asked
behind those of its own length. Its tokens have no columns to look down, so each digit has a letter: two numbers'
digits of one column have the same one, small and capital.

    prompt         b5 a9 + B5 A6\n              hinted  Hint: 115\nb5 a9 + B5 A6\n
    rationale      a9 + A6 = 9 + 6 = 15\nb5 + B5 + 1 = 5 + 5 + 1 = 11\nAnswer: 115

"n digits" means that both numbers have exactly n digits. The train and held-out sets depend on nothing but n: the
loop's seed draws from them, so that every run of every seed is measured on the same problems.
"""

import random
import re
from copy import copy

from star.problem import Problem
from star.tasks import Task

HELD_OUT, POOL = 200, 10_000  # problems a length
LETTERS = "abcdefghijklmnopqrstuvwxyz"  # of the columns, ones first


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


def split(n: int) -> tuple[list[Problem], list[Problem]]:
    """(train, held-out) sums of two n-digit numbers, disjoint. There are only 100 of one digit: half of them each."""
    low, high = (10 ** (n - 1) if n > 1 else 0), 10**n
    rng = random.Random(f"addition-{n}")
    if (high - low) ** 2 <= HELD_OUT + POOL:
        pairs = [(a, b) for a in range(low, high) for b in range(low, high)]
        rng.shuffle(pairs)
    else:
        drawn: dict[tuple[int, int], None] = {}  # a dict keeps the order of the draws
        while len(drawn) < HELD_OUT + POOL:
            drawn[rng.randrange(low, high), rng.randrange(low, high)] = None
        pairs = list(drawn)
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

    def gold(self, problem: Problem) -> str:
        whole = self.worked(*problem.question.split("+"))
        return whole.rpartition("\n")[2] if self.direct else whole

    def worked(self, a: str, b: str) -> str:
        return scratchpad(a, b)

    def answers_only(self) -> "Arithmetic":
        view = copy(self)
        view.direct = True
        return view

    def check_steps(self, problem: Problem, text: str) -> bool:
        return text.strip() == self.worked(*problem.question.split("+"))

    def parse(self, text: str) -> Problem:
        """ "48571+9664": the shorter number is padded with zeros on the left, as one would on paper."""
        match = re.fullmatch(r"\s*([0-9]{1,100})\s*\+\s*([0-9]{1,100})\s*", text)
        if not match:
            raise ValueError(f"{text!r} is not a sum; type one like 48571+9664")
        width = max(map(len, match.groups()))
        return make(*(number.zfill(width) for number in match.groups()))


class Lettered(Arithmetic):
    """The same sums for a model that learns from its context: few-shot text, and a letter for each column."""

    hint_mark = "Hint"
    stop = ("\n\n",)

    def __init__(self, lengths: range, shots: int):
        super().__init__(lengths)
        self.max_new_tokens = 32 * max(lengths) + 16
        self._examples, self._texts = {}, {}
        for n in lengths:
            self._examples[f"{n}-digit"] = [p for p in self.train if p.group == f"{n}-digit"][:shots]
        shown = {p.id for examples in self._examples.values() for p in examples}
        self.train = [p for p in self.train if p.id not in shown]

    @property
    def prefix(self) -> str:
        return "".join(self._text(examples, hinted=False) for examples in self._examples.values())

    @property
    def hint_prefix(self) -> str:
        return "".join(self._text(examples, hinted=True) for examples in self._examples.values())

    def shown(self, problem: Problem, hinted: bool = False) -> str:
        """The examples of the problem's own length; of the greatest there is, for a longer one that somebody typed."""
        group = problem.group if problem.group in self._examples else list(self._examples)[-1]
        key = (group, hinted, self.direct)
        if key not in self._texts:  # asked for once a problem
            self._texts[key] = self._text(self._examples[group], hinted)
        return self._texts[key]

    def _text(self, examples: list[Problem], hinted: bool) -> str:
        ask = self.hinted if hinted else self.question
        return "".join(f"{ask(p)}{self.gold(p)}\n\n" for p in examples)

    def question(self, problem: Problem) -> str:
        a, b = problem.question.split("+")
        columns = LETTERS[: len(a)][::-1]
        return " + ".join(" ".join(c + d for c, d in zip(letters, number, strict=True))
                          for letters, number in ((columns, a), (columns.upper(), b))) + "\n"

    def hinted(self, problem: Problem) -> str:
        return f"Hint: {problem.answer}\n{self.question(problem)}"

    def worked(self, a: str, b: str) -> str:
        carry, lines = "", []
        for letter, x, y in zip(LETTERS, reversed(a), reversed(b), strict=False):
            total = int(x) + int(y) + bool(carry)
            lines.append(f"{letter}{x} + {letter.upper()}{y}{carry} = {x} + {y}{carry} = {total}")
            carry = " + 1" if total > 9 else ""
        return "\n".join([*lines, f"Answer: {int(a) + int(b)}"])

    def extract(self, text: str) -> str | None:
        answer = re.fullmatch(r"Answer: ([0-9]{1,100})", text.strip().rpartition("\n")[2])
        return answer[1] if answer else None

    def leaks(self, problem: Problem, text: str) -> bool:
        """Does it quote its hint, or jump to the answer? Its sums must be true, and the answer made of their digits."""
        digits, lines = "", text.strip().split("\n")[:-1]
        for line in reversed(lines):
            sums = re.fullmatch(r".*= ([0-9]) \+ ([0-9])( \+ 1)? = ([0-9]{1,2})", line)
            if sums is None or int(sums[1]) + int(sums[2]) + bool(sums[3]) != int(sums[4]):
                return True
            digits += sums[4][-1] if digits else sums[4]
        return super().leaks(problem, text) or digits != self.extract(text)


def load(digits: str = "1-5", shots: int | None = None) -> Arithmetic:
    """digits "1-5": numbers of 1 to 5 digits; "3": of 3 digits only. shots: examples in front, for a pretrained model.

    Raises ValueError on anything else.
    """
    match = re.fullmatch(r"([0-9]{1,3})(?:-([0-9]{1,3}))?", digits.strip())
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high <= 50:
        raise ValueError(f"--digits is {digits!r}; it must be a length like 5 or a range like 1-5, from 1 to 50")
    lengths = range(low, high + 1)
    if shots and (high > len(LETTERS) or shots > 25):
        raise ValueError(f"--shots {shots} and --digits {digits}: at most 25 examples, {len(LETTERS)} digits at most")
    return Lettered(lengths, shots) if shots else Arithmetic(lengths)
