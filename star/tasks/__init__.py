"""A task is a file in this folder with a `load` function. What a task must say stands in `Task`; README has an example.

Nothing is registered: `load_task("parity")` imports star/tasks/parity.py and calls its `load`.
"""

import importlib
import inspect
import pkgutil
from collections import Counter

from star.problem import Problem


class Task:
    """What the loop asks of a task. A task sets `train` and `heldout` and writes the five methods without a default.

    `extract`, `right`, `leaks` and `check_steps` are total: any text in, no exception out.
    """

    name: str = ""  # of its file
    train: list[Problem]  # what the model learns from
    heldout: list[Problem]  # disjoint from train; only reported
    prefix: str = ""  # few-shot text in front of each question ("": none)
    hint_prefix: str = ""  # few-shot text of the hint pass, whose examples show their hints
    hint_mark: str = ""  # text that stands in hinted prompts only: a rationale that holds it quotes its hint
    max_new_tokens: int = 256  # length cap of a rationale, unless --max-new-tokens says otherwise
    stop: tuple[str, ...] = ()  # strings that end a rationale: what few-shot text has between its examples
    chance: float = 0.0  # accuracy of guessing
    notes: tuple[str, ...] | list[str] = ()  # what a user should know of the data, a line each

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

    def shown(self, problem: Problem, hinted: bool = False) -> str:
        """The few-shot text in front of this problem: the same for all, unless a task says otherwise."""
        return self.hint_prefix if hinted else self.prefix

    def turns(self, hinted: bool = False) -> list[tuple[str, str]]:
        """The few-shot examples as a conversation: (what is asked, what is answered)."""
        return []

    def said(self, problem: Problem, hinted: bool = False) -> str:
        """The prompt as a turn of a conversation."""
        return (self.hinted(problem) if hinted else self.question(problem)).strip()

    def answers_only(self) -> "Task":
        """This task without reasoning: `gold` is the answer alone, and so are the few-shot examples."""
        raise ValueError(f"{type(self).__name__} has no form without rationales: leave out --learn answers")

    def parse(self, text: str) -> Problem:
        """A question somebody typed. Where its answer can be told, sample.py says whether the model was right."""
        return Problem("typed", text, "")


def task_names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load_task(name: str, **options) -> Task:
    """The task `name` with its options (data=..., digits=...). None stands for a task's own default.

    Raises ValueError for a name or an option that is not known, a task without problems, or a train set that
    overlaps the held-out set.
    """
    if name not in task_names():
        raise ValueError(f"unknown task {name!r}; known are {', '.join(task_names())}")
    load = importlib.import_module(f"star.tasks.{name}").load
    given = {k: v for k, v in options.items() if v is not None and v is not False}
    unknown = set(given) - set(inspect.signature(load).parameters)
    if unknown:
        raise ValueError(f"task {name} has no setting "
                         f"{', '.join('--' + u.replace('_', '-') for u in sorted(unknown))}")
    task = load(**given)
    task.name = name
    if not task.train or not task.heldout:
        raise ValueError(f"task {name} has {len(task.train)} training and {len(task.heldout)} held-out problems; "
                         "it needs at least one of each")
    ids = [p.id for p in [*task.train, *task.heldout]]
    if len(set(ids)) != len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise ValueError(f"task {name}: problem {twice!r} stands twice in train and heldout; they must be disjoint")
    if any(p.group == "mean" for p in [*task.train, *task.heldout]):
        raise ValueError(f"task {name} has a group named 'mean', as the mean over groups is called: rename it")
    problem = task.train[0]
    if task.hint_mark and (task.hint_mark not in task.hinted(problem) or task.hint_mark in task.question(problem)):
        raise ValueError(f"task {name}: hint_mark {task.hint_mark!r} must stand in hinted prompts and in no question")
    return task
