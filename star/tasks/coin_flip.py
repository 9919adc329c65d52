"""Coin flips (Wei et al. 2022, arXiv 2201.11903, section 5): is a coin still heads up, after some people flipped it?

    question    A coin is heads up. Finn flips the coin. Olaf does not flip the coin. Is the coin still heads up?
    rationale   The coin is heads up. Finn flips it: tails up. Olaf does not flip it: tails up. The coin is tails up.
                The answer is no.

Reads coin_flip.json, {"question", "answer"}, any number of people each. With two answers half of all wrong rationales
arrive at the right one, and the filter of Algorithm 1 keeps them; what is written above has one right form, so this
task can tell right steps from wrong ones. A rationale of any other wording counts as one with wrong steps. It has no
human rationales: what `gold` gives is that form. examples/coin_flip.jsonl holds the few-shot examples, of people that
are not in the data.
"""

import random
import re
from pathlib import Path

from star.problem import Problem
from star.tasks import records
from star.tasks.fields import Fields, read
from star.tasks.jsonl import EXAMPLES, examples
from star.tasks.questions import Questions

HELDOUT = 100  # problems, or half of a file that has fewer than 200
# Words of a name have no full stop, but for initials and titles: J. R., St. John, Mr. Li.
WORD = r"(?:[A-Z][a-z]{0,2}\.|[^\s.,;:?!]+)"
ACT = re.compile(rf"({WORD}(?: {WORD})*?) (flips|does not flip) the coin\. ")
QUESTION = re.compile(r"A coin is (heads|tails) up\. (.+ )Is the coin still (heads|tails) up\?(?: Note that [^.?]+\.)?")
FORM = "A coin is heads up. NAME flips the coin. NAME does not flip the coin. Is the coin still heads up?"


def steps(question: str) -> list[str] | None:
    """The sentences of the one right rationale, the answer's last; None for a question of another form.

    "A coin is heads up. Finn flips the coin. Is the coin still heads up?" -> ["The coin is heads up.",
    "Finn flips it: tails up.", "The coin is tails up.", "The answer is no."]
    """
    asked = QUESTION.fullmatch(" ".join(question.split()))
    if asked is None:
        return None
    state, acts, wanted = asked.groups()
    sentences, end = [f"The coin is {state} up."], 0
    while act := ACT.match(acts, end):
        name, verb = act.groups()
        if verb == "flips":
            state = "tails" if state == "heads" else "heads"
        sentences.append(f"{name} {verb} it: {state} up.")
        end = act.end()
    if end < len(acts):  # a sentence that is no act
        return None
    return [*sentences, f"The coin is {state} up.", f"The answer is {'yes' if state == wanted else 'no'}."]


def answer_of(question: str) -> str | None:
    """yes or no, by its people's acts; None for a question of another form."""
    sentences = steps(question)
    return sentences and sentences[-1].removeprefix("The answer is ").rstrip(".")


class CoinFlip(Questions):
    """Coins and the people who flip them."""

    def __init__(self, *args):
        super().__init__(*args)
        self.chance, self.grader.form = max(self.chance, 0.5), "yes or no"
        everything = [*self.train, *self.heldout]
        self.max_new_tokens = 32 + 16 * max(p.question.count(" the coin.") for p in everything)
        odd = [p.id for p in everything if p.answer.lower() != answer_of(p.question)]
        if odd:
            self.notes.append(f"{len(odd)} with another answer than their flips give: {records.named(odd)}")
        other = [s.problem.id for s in self.shots if not self.check_steps(s.problem, self.answered(s))]
        if other:
            self.notes.append("few-shot examples with wrong steps, or worded otherwise, so that rationales like them "
                              f"count as having wrong steps: {records.named(other)}")

    def check_steps(self, problem: Problem, text: str) -> bool | None:
        """Is it the right rationale: each person once, in order, with the right act and state, and what follows?

        None for a question of another form, which somebody typed.
        """
        sentences = steps(problem.question)
        return None if sentences is None else " ".join(text.split()) == " ".join(sentences)

    def gold(self, problem: Problem) -> str | None:
        sentences = steps(problem.question)
        if self.direct or sentences is None or not self.right(problem, sentences[-1]):
            return super().gold(problem)
        return " " + " ".join(sentences)

    def parse(self, text: str) -> Problem:
        typed = super().parse(text)
        return Problem(typed.id, typed.question, answer_of(typed.question) or "")


def load(data: Path, few_shot: Path | None = None, zero_shot: bool = False, shots: int | None = None) -> CoinFlip:
    """Raises FileNotFoundError or ValueError that names the file, the line and what to do.

    data: the folder with coin_flip.json (or .jsonl), or such a file
    few_shot: file of examples {question, rationale, answer} (default: our 6)
    zero_shot: no examples, an instruction instead
    shots: how many of the examples are shown (default: all)
    """
    what = "coin_flip.json: objects with question and answer"
    shown = examples(few_shot, zero_shot, shots, built_in=EXAMPLES / "coin_flip.jsonl")
    path = data if data.is_file() else records.find(data, ["coin_flip.json", "coin_flip.jsonl"], "coin_flip", what)
    fields = Fields(advice="a coin flip has question and answer")
    lines = records.read_records(path)
    problems, = read([(lines, "coin")], fields, "text").parts
    for p, (where, _) in zip(problems, lines, strict=True):
        if p.answer.lower() not in ("yes", "no"):
            raise ValueError(f"{where}: the answer is {p.answer[:40]!r}; it must be yes or no")
        if steps(p.question) is None:
            raise ValueError(f"{where}: the question is {p.question[:60]!r}...; it must have the form {FORM!r}; "
                             "--task jsonl takes others")
    n = max(1, min(HELDOUT, round(len(problems) / 2)))
    out = set(random.Random("held-out").sample(range(len(problems)), n))  # by place: the coins measured rest on it
    train, heldout = ([p for i, p in enumerate(problems) if (i in out) == held] for held in (False, True))
    return CoinFlip(train, heldout, shown, "text")
