"""What the loop asks of a task. README.md in this folder lists it; star/tasks/arithmetic is one to read first."""

from collections.abc import Callable, Sequence
from functools import lru_cache

from star.problem import Problem, Shot


class Task:
    """What the loop asks of a task. A task sets `train` and `heldout` and writes `question`, `hinted` and `extract`.

    `extract`, `right`, `leaks` and `check_steps` are total: any text in, no exception out.
    """

    name: str = ""  # of its file
    train: list[Problem]  # what the model learns from
    heldout: list[Problem]  # disjoint from train; only reported
    shots: Sequence[Shot] = ()  # worked examples, shown in front of each question
    between: str = "\n\n"  # ends each example of the few-shot text
    hint_mark: str = ""  # text that stands in hinted prompts only: a rationale that holds it quotes its hint
    max_new_tokens: int = 256  # length cap of a rationale, unless --max-new-tokens says otherwise
    stop: tuple[str, ...] = ()  # strings that end a rationale: what few-shot text has between its examples
    chance: float = 0.0  # accuracy of guessing
    notes: tuple[str, ...] | list[str] = ()  # what a user should know of the data, a line each
    compares: str = "as they are written"  # how answers are compared, for people

    def question(self, problem: Problem) -> str:
        """The prompt: ends where the rationale begins."""
        raise TypeError(f"{type(self).__name__} has no question(problem)")

    def hinted(self, problem: Problem) -> str:
        """The prompt that shows the answer; used for rationalization, never for training."""
        raise TypeError(f"{type(self).__name__} has no hinted(problem)")

    def extract(self, text: str) -> str | None:
        """The answer that a rationale arrives at, or None if it arrives at none."""
        raise TypeError(f"{type(self).__name__} has no extract(text)")

    def right(self, problem: Problem, text: str) -> bool:
        """Does the rationale arrive at the right answer? The only thing the filter of Algorithm 1 looks at."""
        return self.extract(text) == problem.answer

    def leaks(self, problem: Problem, text: str) -> bool:
        """Does the rationale quote its hint? Such a rationale is dropped, right or not."""
        return bool(self.hint_mark) and self.hint_mark in text

    def gold(self, problem: Problem) -> str | None:
        """A rationale known to be right, or None."""
        return None

    def check_steps(self, problem: Problem, text: str) -> bool | None:
        """Is every step right? None: this task cannot tell. Only reported; the filter never uses it."""
        return None

    def answers_only(self) -> "Task":
        """This task without reasoning: `gold` is the answer alone, and so are the few-shot examples."""
        raise ValueError(f"{type(self).__name__} has no form without rationales: leave out --learn answers")

    def parse(self, text: str) -> Problem:
        """A question somebody typed. Where its answer can be told, sample.py says whether the model was right."""
        return Problem("typed", text, "")

    def shots_of(self, problem: Problem) -> Sequence[Shot]:
        """The examples for this problem. Text and conversations are made of these, with hints and without."""
        return self.shots

    def answered(self, shot: Shot) -> str:
        """What follows an example's question."""
        return shot.rationale

    def few_shot(self, problem: Problem, hinted: bool = False) -> str:
        """The text in front of this problem's prompt. hinted: the same examples, asked with their hints."""
        ask_for = self.hinted if hinted else self.question
        return _few_shot_text(tuple(self.shots_of(problem)), ask_for, self.answered, self.between)

    @property
    def prefix(self) -> str:
        """The few-shot text of the first problem ("": none)."""
        return self.few_shot(self.train[0]) if self.train else ""

    @property
    def hint_prefix(self) -> str:
        return self.few_shot(self.train[0], hinted=True) if self.train else ""

    def turn(self, problem: Problem, hinted: bool = False) -> str:
        """The prompt as a turn of a conversation."""
        return (self.hinted(problem) if hinted else self.question(problem)).strip()

    def turns(self, problem: Problem, hinted: bool = False) -> list[tuple[str, str]]:
        """The few-shot examples as a conversation: (user, assistant) each."""
        return [(self.turn(s.problem, hinted), self.answered(s).strip()) for s in self.shots_of(problem)]


@lru_cache(maxsize=64)  # asked for once a problem, and nearly always the same
def _few_shot_text(shots: tuple[Shot, ...], ask_for: Callable, answered: Callable, between: str) -> str:
    return "".join(ask_for(shot.problem) + answered(shot) + between for shot in shots)
