"""The sums of star/tasks/arithmetic for a pretrained model, which learns the format from examples (the paper shows 10).

    prompt         b5 a9 + B5 A6\\n
    hinted prompt  Hint: 115\\nb5 a9 + B5 A6\\n
    rationale      a9 + A6 = 9 + 6 = 15\\nb5 + B5 + 1 = 5 + 5 + 1 = 11\\nAnswer: 115

Its tokens have no columns to look down, so each digit has a letter: the two digits of one column have the same one,
small and capital. A sum is asked behind examples of its length. Training and held-out sums are those of arithmetic,
without the examples.
"""

import re
from collections.abc import Sequence

from star.problem import Problem, Shot
from star.tasks.arithmetic import Arithmetic, lengths_of

LETTERS = "abcdefghijklmnopqrstuvwxyz"  # of the columns, ones first
MOST_SHOTS = 25  # half of the sums of one digit that are not held out


class Columns(Arithmetic):
    hint_mark = "Hint"
    stop = ("\n\n",)

    def __init__(self, lengths: range, shots: int):
        super().__init__(lengths)
        self.max_new_tokens = 32 * max(lengths) + 16
        self.shots_by_length = {}  # "2-digit" -> examples
        for group in (f"{n}-digit" for n in lengths):
            examples = [p for p in self.train if p.group == group][:shots]
            self.shots_by_length[group] = [Shot(p, self.worked(p)) for p in examples]
        self.shots = [shot for shots in self.shots_by_length.values() for shot in shots]
        shown = {shot.problem.id for shot in self.shots}
        self.train = [p for p in self.train if p.id not in shown]

    def shots_of(self, problem: Problem) -> Sequence[Shot]:
        """Those of the problem's length; of the greatest there is, for a longer one that somebody typed."""
        return self.shots_by_length.get(problem.group) or list(self.shots_by_length.values())[-1]

    def answered(self, shot: Shot) -> str:
        return self.gold(shot.problem)

    def question(self, problem: Problem) -> str:
        a, b = problem.question.split("+")
        columns = LETTERS[: len(a)][::-1]
        return " + ".join(" ".join(c + d for c, d in zip(letters, number, strict=True))
                          for letters, number in ((columns, a), (columns.upper(), b))) + "\n"

    def hinted(self, problem: Problem) -> str:
        return f"Hint: {problem.answer}\n{self.question(problem)}"

    def worked(self, problem: Problem) -> str:
        a, b = problem.question.split("+")
        carry, lines = "", []
        for letter, x, y in zip(LETTERS, reversed(a), reversed(b), strict=False):
            total = int(x) + int(y) + bool(carry)
            lines.append(f"{letter}{x} + {letter.upper()}{y}{carry} = {x} + {y}{carry} = {total}")
            carry = " + 1" if total > 9 else ""
        return "\n".join([*lines, f"Answer: {problem.answer}"])

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

    def parse(self, text: str) -> Problem:
        problem = super().parse(text)
        if len(problem.question) > 2 * len(LETTERS) + 1:
            raise ValueError(f"{text!r} has more than {len(LETTERS)} digits, which is as many columns as have a letter")
        return problem


def load(digits: str = "1-3", shots: int = 10) -> Columns:
    """Raises ValueError for more digits than letters, or more examples than there are.

    digits: lengths of the numbers, 3 or 1-3
    shots: examples in front of each sum, all of its length
    """
    lengths = lengths_of(digits)
    if lengths[-1] > len(LETTERS):
        raise ValueError(f"--digits is {digits}; task columns has letters for {len(LETTERS)} digits")
    if not 1 <= shots <= MOST_SHOTS:
        raise ValueError(f"--shots is {shots}; task columns shows 1 to {MOST_SHOTS} examples")
    return Columns(lengths, shots)
