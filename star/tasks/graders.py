"""What counts as right: one class a kind of answer. What a text arrives at, the verifier says; here it is compared.

    number   72                    "1,234.50 dollars" is 1234.5
    choice   b                     a letter, and not the words of another choice behind it
    text     the Red Sea           as words, without article and outer punctuation
    set      3, 5 and 2            in any order, each as a number or as words
    value    (44 - 19) * 35        what it is worth, and of which numbers it is made
    none                           nothing to compare with: what is said can only be rated
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from fractions import Fraction
from statistics import fmean

from star.problem import Problem
from star.tasks import verifier
from star.tasks.choices import LETTERS
from star.tasks.verifier.expression import evaluate, expression
from star.tasks.verifier.sets import members, one_set

IN_WORD = re.compile(r"\w").match
TRUTHS = {"true": "yes", "false": "no"}
FEW = 4  # different answers that an instruction names
DOMINATES = 1.25  # times its even share: a letter that is right more often than that is told


class Number:
    """Answers are numbers, in the verifier's spelling."""

    compares, form, hint_mark = "as numbers", "the number", "(Answer:"

    def extract(self, text: str) -> str | None:
        return verifier.number(text)

    def spelling(self, answer: str) -> str | None:
        """An answer as `extract` would give it."""
        return verifier.one_number(answer)

    def meaning(self, problem: Problem) -> str:
        """What two problems with one question must agree on."""
        return self.spelling(problem.answer) or problem.answer

    def stated(self, answer: str) -> str:
        """An answer as rationales state it: 72, (b), the Red Sea."""
        return answer

    def closes(self, answer: str) -> bool:
        """Is "The answer is ..." with what the file says a right end?"""
        return True

    def with_hint(self, problem: Problem) -> str:
        return f"{listed(problem)} (Answer: {problem.answer})"

    def right(self, problem: Problem, text: str) -> bool:
        found = self.extract(text)
        return found is not None and found == self.spelling(problem.answer)

    def chance(self, problems: Sequence[Problem]) -> float:
        """Accuracy of who always gives the commonest answer; an answer that stands there once is none to guess."""
        times = max(Counter(map(self.meaning, problems)).values(), default=0)
        return times / len(problems) if times > 1 else 0.0

    def notes(self, problems: Sequence[Problem]) -> list[str]:
        """What a user should know of the answers."""
        return []


class Words(Number):
    """Answers are words: compared in lower case, without article and outer punctuation.

    problems: where they have few different answers, these are named. truths: who says "true" means "yes".
    """

    compares, form = "as words", "the answer in a few words"

    def __init__(self, problems: Sequence[Problem] = (), truths: bool = False):
        self.truths = truths
        among = [a.rstrip(".") for a in few_answers(problems, self.spelling, FEW)]
        if len(among) > 1:
            self.form = f"{', '.join(among[:-1])} or {among[-1]}"

    def extract(self, text: str) -> str | None:
        found = verifier.phrase(text)
        return found if found is None else self.spelling(found)

    def spelling(self, answer: str) -> str:
        words = verifier.normal(answer)
        return TRUTHS.get(words, words) if self.truths else words


class Set(Number):
    """Answers are sets: "3, 5 and 2" in any order, each member compared as a number or as words."""

    compares, form = "as sets, in any order", "all of them, separated by commas"

    def extract(self, text: str) -> str | None:
        return members(text)

    def spelling(self, answer: str) -> str | None:
        return one_set(answer)


class Value(Number):
    """Answers are arithmetic: compared by what they are worth, and by the numbers they use where a problem gives any.

    made: problems give numbers, and what is extracted is the expression, not its value. all_numbers: none may be left.
    """

    form = "the arithmetic expression"

    def __init__(self, made: bool = False, all_numbers: bool = False):
        self.made, self.all_numbers = made, all_numbers
        self.compares = "by their value" + (", and that each given number is used once" if all_numbers else
                                            ", and that no given number is used twice" if made else "")

    def extract(self, text: str) -> str | None:
        found = expression(text)
        return found if found is None or self.made else self.spelling(found)

    def spelling(self, answer: str) -> str | None:
        found = evaluate(answer)
        return found and str(found.value)

    def closes(self, answer: str) -> bool:
        """A bare target is made of none of the numbers."""
        found = evaluate(answer)
        return not self.made or bool(found and found.steps)

    def right(self, problem: Problem, text: str) -> bool:
        said = self.extract(text)
        found = said and evaluate(said)
        if not found or str(found.value) != self.spelling(problem.answer):
            return False
        powers = "^" in found.text  # no operation of such games: 1^5 would hide the 5
        return not problem.numbers or (not powers and self.allowed(problem, found.numbers))

    def allowed(self, problem: Problem, used: Sequence[tuple[Fraction, bool]]) -> bool:
        """Is each number one that is given, and each of those taken once at most? A given -3 may be written as -3."""
        left = [found.value for found in map(evaluate, problem.numbers) if found]
        for number, minus in used:
            taken = next((n for n in (-number if minus else number, number) if n in left), None)
            if taken is None:
                return False
            left.remove(taken)
        return not left or not self.all_numbers

    def notes(self, problems: Sequence[Problem]) -> list[str]:
        if self.made and problems and not any(self.closes(p.answer) for p in problems):
            return ["the hint is the target, which the question says too: --fields answer=... may name solved "
                    "expressions instead"]
        return []


class Choice(Number):
    """Answers are letters of choices."""

    compares, form, hint_mark = "as letters of choices", "the letter in brackets", "(CORRECT)"

    def __init__(self, letters: str):
        self.letters = letters  # all that may be answered: "abcde"

    def extract(self, text: str) -> str | None:
        return verifier.letter(text, self.letters)

    def spelling(self, answer: str) -> str:
        return answer.strip(" ().").lower()

    def meaning(self, problem: Problem) -> str:
        """The words of the right choice, wherever it stands."""
        return dict(zip(LETTERS, problem.choices, strict=False)).get(self.spelling(problem.answer), problem.answer)

    def stated(self, answer: str) -> str:
        return f"({self.spelling(answer)})"

    def with_hint(self, problem: Problem) -> str:
        return listed(problem, marked=self.spelling(problem.answer))

    def right(self, problem: Problem, text: str) -> bool:
        return super().right(problem, text) and not self.misnamed(problem, text)

    def misnamed(self, problem: Problem, text: str) -> bool:
        """ "The answer is (a) park" where (b) is the park: the letter is right, but the words are another choice's."""
        letter = self.spelling(problem.answer)
        names = dict(zip(LETTERS, map(str.casefold, problem.choices), strict=False))
        if letter not in names:
            return False
        longest = sorted(names.values(), key=len, reverse=True)  # "park bench" is tried before "park"
        own = verifier.own(text).casefold() + " "
        for label in re.finditer(rf"\b{letter}[).:]+\s*", own):
            named = (n for n in longest if own.startswith(n, label.end()) and not IN_WORD(own, label.end() + len(n)))
            if next(named, names[letter]) != names[letter]:
                return True
        return False

    def even(self, problems: Sequence[Problem]) -> float:
        """Accuracy of guessing any choice."""
        return fmean(1 / max(len(p.choices), 1) for p in problems) if problems else 0.0

    def commonest(self, problems: Sequence[Problem]) -> tuple[str, int]:
        return (Counter(self.spelling(p.answer) for p in problems).most_common(1) or [("", 0)])[0]

    def chance(self, problems: Sequence[Problem]) -> float:
        """Of any choice, or of who always gives the commonest letter."""
        _, times = self.commonest(problems)
        return max(self.even(problems), times / len(problems) if times > 1 else 0.0)

    def notes(self, problems: Sequence[Problem]) -> list[str]:
        """A letter that is right more often than luck explains: three standard deviations, and by a quarter."""
        even, (letter, times) = self.even(problems), self.commonest(problems)
        luck = 3 * (even * (1 - even) / max(len(problems), 1)) ** 0.5
        if not problems or times / len(problems) <= max(DOMINATES * even, even + luck):
            return []
        return [f"({letter}) is right in {times} of {len(problems)} problems, so that a model may learn the letter: "
                "--shuffle-choices gives each problem an order of its own"]


class Nothing(Number):
    """There are no answers: what is said can only be rated (train.py --select reward)."""

    compares, form, hint_mark = "with nothing, for there are no answers", "", ""

    def extract(self, text: str) -> str | None:
        return None

    def meaning(self, problem: Problem) -> str:
        return ""

    def stated(self, answer: str) -> str:
        return ""

    def with_hint(self, problem: Problem) -> str:
        return listed(problem)

    def right(self, problem: Problem, text: str) -> bool:
        return True  # as a few-shot example is; what a model says has the verdict "open" before this is asked

    def chance(self, problems: Sequence[Problem]) -> float:
        return 0.0


def listed(problem: Problem, marked: str = "") -> str:
    """A question and its choices, a line each; the one with the letter `marked` is marked as correct."""
    lines = [f"({letter}) {text}" + " (CORRECT)" * (letter == marked)
             for letter, text in zip(LETTERS, problem.choices, strict=False)]
    return "\n".join([problem.question, *(["Answer Choices:", *lines] if lines else [])])


def few_answers(problems: Sequence[Problem], spelling: Callable[[str], str | None], most: int) -> list[str]:
    """The different answers, each as it is mostly written, in an order that hangs on nothing else: yes before no. [] if
    there are more than `most`, or if they hardly repeat."""
    written, kinds = Counter(p.answer for p in problems), {}
    for answer in sorted(written, key=lambda a: (-written[a], a)):
        kinds.setdefault(spelling(answer) or answer, answer)
        if len(kinds) > most or len(problems) < 2 * len(kinds):
            return []
    first = ("yes", "y", "true", "t")
    return sorted(kinds.values(), key=lambda a: (a.casefold().rstrip(".") not in first, a.casefold()))


def grader(grade: str, problems: Sequence[Problem], all_numbers: bool = False, truths: bool = False) -> Number:
    """The grader of this name for these problems."""
    letters = LETTERS[: max((len(p.choices) for p in problems), default=0)]
    made = any(p.numbers for p in problems)
    return {"number": Number, "choice": lambda: Choice(letters), "text": lambda: Words(problems, truths), "set": Set,
            "value": lambda: Value(made, all_numbers), "none": Nothing}[grade]()
