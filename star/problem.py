"""The records that travel through the program. Data only: nothing here computes, reads or writes.

Problem -> (prompt ids) -> Completion -> Generation (with a verdict) -> Example -> gradient step. What the loop tells
whoever watches it are events.
"""

from dataclasses import dataclass
from typing import Any

# In the order of an iteration. "rationalize" alone sees the answer as a hint; "judge" scores what was generated.
PHASES = ("generate", "rationalize", "judge", "train", "validate", "evaluate", "pass at k")
SAMPLED = tuple(phase for phase in PHASES if phase not in ("judge", "train"))
STUDENT = "student"  # the source of what the model that is trained wrote itself


@dataclass(frozen=True)
class Problem:
    """One question x_i with its answer y_i (STaR, section 3). The answer is kept apart: only a hint may show it."""

    id: str  # unique within a task; generations are keyed by it
    question: str
    answer: str
    group: str = ""  # class that accuracy is reported by ("3-digit"); "" where there is only one
    choices: tuple[str, ...] = ()  # texts of the choices, where there are any; the answer is then a letter, "a" first
    numbers: tuple[str, ...] = ()  # what an arithmetic expression may be made of, each once, where the task says so


@dataclass(frozen=True)
class Shot:
    """One worked example of the few-shot text. Its hinted form is derived from it: the task asks `problem` either way.
    """

    problem: Problem
    rationale: str  # what stands behind the question


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
class Candidate:
    """An answer to a problem that was written elsewhere, by hand or by another model; a line of --candidates."""

    problem: str  # Problem.id
    source: str
    text: str
    scores: dict[str, float] | None = None  # of a judge elsewhere
    reward: float | None = None  # their weighted sum


@dataclass(frozen=True)
class Generation:
    """A completion as it was judged; one line of samples/iter-NNN.jsonl.

    (iteration, phase, problem, sample, source) is its key: a resumed run makes only the keys that are missing.
    """

    iteration: int
    phase: str  # one of SAMPLED
    problem: str  # Problem.id
    sample: int
    seed: int
    tokens: tuple[int, ...]  # in the student's ids, whoever wrote it; (): it has none for some character
    text: str
    finish: str
    logprob: float | None  # sum over tokens (nats), of the model that wrote it; None: it came from a file
    answer: str | None  # what the task extracted
    verdict: str  # one of star.evaluate.VERDICTS
    steps_right: bool | None  # None: the task cannot check steps
    source: str = STUDENT  # which model wrote it
    scores: dict[str, float] | None = None  # a judge's, by attribute
    reward: float | None = None  # their weighted sum; None: not scored

    @property
    def key(self) -> tuple[int, str, str, int, str]:
        return self.iteration, self.phase, self.problem, self.sample, self.source

    @property
    def kept(self) -> bool:
        """Does the filter of Algorithm 1 (lines 5 and 6) let it through to training?"""
        return self.verdict == "right" and self.phase in ("generate", "rationalize")


@dataclass(frozen=True)
class Phase:
    """Event: a phase begins; `total` problems or optimizer steps lie ahead."""

    iteration: int
    name: str  # one of PHASES
    total: int
    source: str = STUDENT


@dataclass(frozen=True)
class Tick:
    """Event: one more problem of the phase is done; `tokens` were sampled for it."""

    tokens: int


@dataclass(frozen=True)
class Step:
    """Event: an optimizer step is done; `tokens` were trained on for it. `stats` (star/finetune) and the model's
    adapters are what training goes on from: both live, and to be written down before the next event, or not at all.
    """

    iteration: int
    tokens: int
    stats: Any
    last: bool  # training is over


@dataclass(frozen=True)
class Note:
    """Event: the machine made a difference that its user should know of, in one line; the run goes on."""

    text: str


@dataclass(frozen=True)
class Chunk:
    """Event: generations just made, whole: what a resumed run may rely on. Those that were given are not repeated.

    problems: whose they are, one each, so that what is written down can be read alone.
    """

    generations: list[Generation]
    problems: list[Problem]


@dataclass(frozen=True)
class Scored:
    """Event: generations of chunks before, now with a judge's scores: they take the place of what was written down.
    Those of a phase may come in several parts."""

    generations: list[Generation]


@dataclass(frozen=True)
class Finished:
    """Event: an iteration is over; the model holds its adapters. Nothing in metrics depends on the machine's speed."""

    iteration: int
    metrics: dict
    done: bool = False  # nothing follows


Event = Phase | Tick | Step | Note | Chunk | Scored | Finished
