"""Questions with short answers: how they are asked, with and without a hint, and how rationales are graded.

    prompt          Q: {question}                     hinted     Q: {question} (Answer: 72)
                    A:                                           A:
    rationale        She earns 9 * 8 = 72. The answer is 72.
    with choices    Q: {question}                     hinted     ...
                    Answer Choices:                              (b) park (CORRECT)
                    (a) ...                                      ...
                    A:

What counts as right, a grader knows (star/tasks/graders). Reading files is not done here (star/tasks/jsonl).
"""

import re
from collections.abc import Sequence
from copy import copy

from star.problem import Problem, Shot
from star.tasks import Task, records, verifier
from star.tasks.graders import few_answers, grader, listed

STATES_AN_ANSWER = re.compile(r"answer(?:\s+is\b|\s*:)|####|\\boxed", re.I)
TOLD = re.compile(  # a rationale that speaks of an answer it was shown
    r"\bhint\b|\banswer key\b|\bmarked\b(?!\s+(?:up|down)\b)"
    r"|\b(?:given|provided|told|stated|shown)\b[^.]{0,30}(?<!\bto )\banswers?\b"
    r"|\banswer\b[^.]{0,20}\b(?:given|provided)\b", re.I)


class Questions(Task):
    """Questions with short answers, behind worked examples or, zero-shot, an instruction.

    grade: "number" | "choice" | "text" | "set" | "value" | "none". An answer is a number in the verifier's spelling, a
    letter, words, members with commas between, or an expression or its value; "" where there are none.
    gold: Problem.id -> human rationale. all_numbers: an expression has to use every number that its problem gives.
    truths: the file says true and false where "yes" and "no" are asked for.
    Raises ValueError for a few-shot example that is held out, or that does not arrive at its answer.
    """

    stop = ("\nQ:",)
    direct = False  # answers without their rationales

    def __init__(self, train: list[Problem], heldout: list[Problem], shots: Sequence[Shot], grade: str,
                 gold: dict[str, str] | None = None, all_numbers: bool = False, truths: bool = False):
        self.grader = grader(grade, [*train, *heldout], all_numbers, truths)
        self.shots, self.heldout, self.rationales = list(shots), heldout, gold or {}
        self.train, self.notes = records.disjoint(train, heldout, self.shots, self.grader.meaning)
        self.compares, self.hint_mark = self.grader.compares, self.grader.hint_mark
        for i, shot in enumerate(self.shots, 1):
            self._check(shot, f"few-shot example {i} ({shot.problem.id}: {shot.problem.question[:40]!r})")
        everything = [*self.train, *heldout]
        self.chance = self.grader.chance(everything)  # of all: three held-out ones tell little
        self.notes += self.grader.notes(everything)
        if grade not in ("choice", "value"):
            self.notes += self._strangers(everything)
        kinds = {(p.answer, p.numbers): p for p in everything if self.ending(p.answer)}  # one of each: most are alike
        bad = {kind for kind, p in kinds.items() if not self.grader.right(p, self.ending(p.answer))}
        mute = [p.id for p in everything if (p.answer, p.numbers) in bad]
        if mute:
            self.notes.append(f"{len(mute)} with an answer that no rationale could state: {records.named(mute)}")

    def _check(self, shot: Shot, name: str) -> None:
        """ValueError for an example that arrives at another answer, or whose hint would not show."""
        text, answer = self.answered(shot), shot.problem.answer
        if not self.grader.right(shot.problem, text):
            advice = "correct one of them" if self.grader.closes(answer) else "end it with: The answer is EXPRESSION."
            raise ValueError(f"{name} ends in {text[-60:]!r}, which does not arrive at its answer {answer!r}, compared "
                             f"{self.compares}: {advice}")
        if self.hint_mark and self.hinted(shot.problem) == self.question(shot.problem):
            raise ValueError(f"{name} has no choice {self.grader.stated(answer)} to mark as right")

    def _strangers(self, problems: Sequence[Problem]) -> list[str]:
        """A line where the examples answer otherwise than the data does: "yes" where all of it says "Y"."""
        spelling = self.grader.spelling
        known, said = few_answers(problems, spelling, 5), list(dict.fromkeys(s.problem.answer for s in self.shots))
        if not known or not said or {*map(spelling, known)} & {*map(spelling, said)}:
            return []
        return [f"few-shot examples answer {', '.join(said[:5])}; the data answers {', '.join(known)}"]

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
        text = self._closed(self.rationales.get(problem.id, ""), problem.answer)
        return text if self.grader.closes(problem.answer) or self.right(problem, text) else None

    def answers_only(self) -> "Questions":
        mute = [p.id for p in [*self.train, *self.heldout] if not self.grader.closes(p.answer)]
        if mute:
            raise ValueError(f"{len(mute)} problems have a target, and no expression that reaches it could be learned "
                             f"({records.named(mute)}): name solved expressions by --fields answer=...")
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
        """The last sentence of a rationale; "" where the file does not say what it would be."""
        if not self.grader.form or not self.grader.closes(answer):
            return ""
        return f" The answer is {self.grader.stated(answer).rstrip('.')}."

    def _closed(self, rationale: str, answer: str) -> str:
        """A rationale that ends with "The answer is 72."; without reasoning that sentence alone."""
        end = self.ending(answer)
        if self.direct:
            return end
        stop = "" if rationale.endswith((".", "!", "?")) else "."
        return f" {rationale}" if rationale.endswith(end.strip()) else f" {rationale}{stop}{end}"
