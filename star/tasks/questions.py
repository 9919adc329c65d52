"""Questions with short answers: how they are asked, with and without a hint, and how rationales are graded.

    prompt          Q: {question}                     hinted     Q: {question} (Answer: 72)
                    A:                                           A:
    rationale        She earns 9 * 8 = 72. The answer is 72.
    with choices    Q: {question}                     hinted     ...
                    Answer Choices:                              (b) park (CORRECT)
                    (a) ...                                      ...
                    A:

A grader knows one kind of answer: numbers, letters of choices, or words. What a rationale arrives at, it asks the
verifier. Reading files is not done here (star/tasks/jsonl).
"""

import re
from collections import Counter
from collections.abc import Sequence
from copy import copy
from statistics import fmean

from star.problem import Problem, Shot
from star.tasks import Task, records, verifier

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FEW = 20  # different answers at most, for words to have a chance level
STATES_AN_ANSWER = re.compile(r"answer(?:\s+is\b|\s*:)|####|\\boxed", re.I)
TOLD = re.compile(  # a rationale that speaks of an answer it was shown
    r"\bhint\b|\banswer key\b|\bmarked\b(?!\s+(?:up|down)\b)"
    r"|\b(?:given|provided|told|stated|shown)\b[^.]{0,30}(?<!\bto )\banswers?\b"
    r"|\banswer\b[^.]{0,20}\b(?:given|provided)\b", re.I)


class Number:
    """Answers are numbers, in the verifier's spelling."""

    compares, form, hint_mark = "as numbers", "the number", "(Answer:"

    def extract(self, text: str) -> str | None:
        return verifier.number(text)

    def spelling(self, answer: str) -> str | None:
        """An answer as `extract` would give it."""
        return verifier.one_number(answer)

    def stated(self, answer: str) -> str:
        """An answer as rationales state it: 72, (b), the Red Sea."""
        return answer

    def with_hint(self, problem: Problem) -> str:
        return f"{listed(problem)} (Answer: {problem.answer})"

    def right(self, problem: Problem, text: str) -> bool:
        found = self.extract(text)
        return found is not None and found == self.spelling(problem.answer)

    def chance(self, problems: Sequence[Problem]) -> float:
        """Accuracy of guessing."""
        return 0.0


class Words(Number):
    """Answers are words: compared in lower case, without article and outer punctuation."""

    compares, form = "as words", "the answer in a few words"

    def extract(self, text: str) -> str | None:
        return verifier.phrase(text)

    def spelling(self, answer: str) -> str:
        return verifier.normal(answer)

    def chance(self, problems: Sequence[Problem]) -> float:
        """Of who always gives the most frequent answer, if there are few."""
        answers = Counter(p.answer for p in problems).most_common()
        return answers[0][1] / len(problems) if 0 < len(answers) <= FEW else 0.0


class Choice(Number):
    """Answers are letters of choices."""

    compares, form, hint_mark = "as letters of choices", "the letter in brackets", "(CORRECT)"

    def __init__(self, letters: str):
        self.letters = letters  # all that may be answered: "abcde"

    def extract(self, text: str) -> str | None:
        return verifier.letter(text, self.letters)

    def spelling(self, answer: str) -> str:
        return answer.strip(" ().").lower()

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
        named = re.compile(rf"\b{letter}[).:]+\s*({'|'.join(map(re.escape, longest))})(?!\w)")
        return any(m[1] != names[letter] for m in named.finditer(verifier.own(text).casefold()))

    def chance(self, problems: Sequence[Problem]) -> float:
        return fmean(1 / max(len(p.choices), 1) for p in problems) if problems else 0.0


class Nothing(Number):
    """There are no answers: what is said can only be rated (train.py --select reward)."""

    compares, form, hint_mark = "with nothing, for there are no answers", "", ""

    def extract(self, text: str) -> str | None:
        return None

    def stated(self, answer: str) -> str:
        return ""

    def with_hint(self, problem: Problem) -> str:
        return listed(problem)

    def right(self, problem: Problem, text: str) -> bool:
        return True  # as a few-shot example is; what a model says has the verdict "open" before this is asked


def listed(problem: Problem, marked: str = "") -> str:
    """A question and its choices, a line each; the one with the letter `marked` is marked as correct."""
    lines = [f"({letter}) {text}" + " (CORRECT)" * (letter == marked)
             for letter, text in zip(LETTERS, problem.choices, strict=False)]
    return "\n".join([problem.question, *(["Answer Choices:", *lines] if lines else [])])


class Questions(Task):
    """Questions with short answers, behind worked examples or, zero-shot, an instruction.

    grade: "number" | "choice" | "text" | "none". An answer is a number in the verifier's spelling, a letter, or words;
    "" where there are none.
    Raises ValueError for a few-shot example that is held out, or that does not arrive at its answer.
    """

    stop = ("\nQ:",)
    direct = False  # answers without their rationales

    def __init__(self, train: list[Problem], heldout: list[Problem], shots: Sequence[Shot], grade: str,
                 gold: dict[str, str] | None = None):
        everything = [*train, *heldout]
        letters = LETTERS[: max((len(p.choices) for p in everything), default=0)]
        self.grader = {"number": Number, "choice": lambda: Choice(letters), "text": Words, "none": Nothing}[grade]()
        self.shots, self.heldout, self.rationales = list(shots), heldout, gold or {}
        self.train, self.notes = records.disjoint(train, heldout, self.shots)
        self.compares, self.hint_mark = self.grader.compares, self.grader.hint_mark
        self.chance = self.grader.chance(heldout)
        for i, shot in enumerate(self.shots, 1):
            self._check(shot, f"few-shot example {i} ({shot.problem.question[:40]!r})")
        mute = [p.id for p in [*self.train, *heldout] if not self.grader.right(p, self.ending(p.answer))]
        if mute:
            self.notes.append(f"{len(mute)} with an answer that no rationale could state: {records.named(mute)}")

    def _check(self, shot: Shot, name: str) -> None:
        """ValueError for an example that arrives at another answer, or whose hint would not show."""
        text, answer = self.answered(shot), shot.problem.answer
        if not self.grader.right(shot.problem, text):
            raise ValueError(f"{name} ends in {text[-60:]!r}, which does not arrive at its answer {answer!r}, compared "
                             f"{self.compares}: correct one of them")
        if self.hint_mark and self.hinted(shot.problem) == self.question(shot.problem):
            raise ValueError(f"{name} has no choice {self.grader.stated(answer)} to mark as right")

    def question(self, problem: Problem) -> str:
        return self._prompt(listed(problem))

    def hinted(self, problem: Problem) -> str:
        return self._prompt(self.grader.with_hint(problem))

    def _prompt(self, asked: str) -> str:
        """The instruction stands in the place of examples, where there are none."""
        form, how = self.grader.form, ""
        if not self.shots and form:
            how = f"\nReason step by step, and end with: The answer is (...), {form}."
        if not self.shots and form and self.direct:
            how = f"\nGive {form} alone: The answer is (...)."
        return f"Q: {asked}{how}\nA:"

    def turn(self, problem: Problem, hinted: bool = False) -> str:
        """A prompt as a person would ask: without the letters that mark question and answer."""
        prompt = self.hinted(problem) if hinted else self.question(problem)
        return prompt.removeprefix("Q: ").removesuffix("\nA:")

    def extract(self, text: str) -> str | None:
        return self.grader.extract(text)

    def right(self, problem: Problem, text: str) -> bool:
        return self.grader.right(problem, text)

    def leaks(self, problem: Problem, text: str) -> bool:
        """Does it quote its hint, speak of one, or give nothing but the answer that it was shown?"""
        text_of_its_own = verifier.own(text)
        words = re.findall(r"\w+", re.sub(r"(?i)\b(?:so|the|final|correct|answer|is)\b", "", text_of_its_own))
        bare = len(words) <= len(re.findall(r"\w+", self.grader.stated(problem.answer))) + 1
        return self.hint_mark in text or bare or bool(TOLD.search(text_of_its_own))

    def gold(self, problem: Problem) -> str | None:
        if not self.direct and problem.id not in self.rationales:
            return None
        return self._closed(self.rationales.get(problem.id, ""), problem.answer)

    def answers_only(self) -> "Questions":
        view = copy(self)
        view.direct = True
        return view

    def parse(self, text: str) -> Problem:
        if not text.strip():
            raise ValueError("the question is empty: type one")
        return Problem("typed", text.strip(), "")

    def answered(self, shot: Shot) -> str:
        """What follows "A:" in an example. One that states its answer in another form ("#### 72") keeps that form."""
        rationale = shot.rationale.strip()
        states = STATES_AN_ANSWER.search(rationale) and self.extract(rationale) is not None
        return f" {rationale}" if states and not self.direct else self._closed(rationale, shot.problem.answer)

    def ending(self, answer: str) -> str:
        return f" The answer is {self.grader.stated(answer).rstrip('.')}." if self.grader.form else ""

    def _closed(self, rationale: str, answer: str) -> str:
        """A rationale that ends with "The answer is 72."; without reasoning that sentence alone."""
        end = self.ending(answer)
        if self.direct:
            return end
        stop = "" if rationale.endswith((".", "!", "?")) else "."
        return f" {rationale}" if rationale.endswith(end.strip()) else f" {rationale}{stop}{end}"
