"""The records that travel through the program. Data only: nothing here computes, reads or writes.

Problem -> (prompt ids) -> Completion -> Generation (with a verdict) -> Example -> gradient step.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One question x_i with its answer y_i (STaR, section 3). The answer is kept apart: only a hint may show it."""

    id: str  # unique within a task; generations are keyed by it
    question: str
    answer: str
    group: str = ""  # class that accuracy is reported by ("3-digit"); "" where there is only one


@dataclass(frozen=True)
class Shot:
    """One worked example of the few-shot text; its hinted form is derived from it."""

    question: str
    rationale: str  # without the sentence that states the answer
    answer: str


@dataclass(frozen=True)
class Example:
    """One training sequence. Loss falls on tokens[n_prompt:] only: the rationale and the token that ends it."""

    tokens: tuple[int, ...]
    n_prompt: int


@dataclass(frozen=True)
class Completion:
    """What the sampler returns for one prompt."""

    tokens: tuple[int, ...]  # new ids, the stop id included
    logprobs: tuple[float, ...]  # of each new id under the model: temperature 1, untruncated, full softmax (nats)
    finish: str  # "stop" | "length"


@dataclass(frozen=True)
class Generation:
    """A completion as the loop judged it; one line of samples/iter-NNN.jsonl.

    (iteration, phase, problem, sample) is its key: a resumed run makes only the keys that are missing.
    """

    iteration: int
    phase: str  # "generate" | "rationalize" | "evaluate"
    problem: str  # Problem.id
    sample: int
    seed: int
    tokens: tuple[int, ...]
    text: str
    finish: str
    logprob: float  # sum over tokens (nats)
    answer: str | None  # what the task extracted
    verdict: str  # one of star.evaluate.VERDICTS
    steps_right: bool | None  # None: the task cannot check steps

    @property
    def key(self) -> tuple[int, str, str, int]:
        return self.iteration, self.phase, self.problem, self.sample
