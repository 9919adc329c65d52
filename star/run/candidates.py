"""Answers that were written elsewhere, as JSON Lines: --candidates.

    {"problem": "train-17", "text": "It is ...", "source": "claude"}

`source` may be left out: it is the file's name then. `scores` of a judge elsewhere may stand beside it, as
{"helpfulness": 3.1, ...}. A line that holds the `prompt` it answers is compared with the task's. Nothing here samples.
"""

import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from star import prompts
from star.pool import clean, fitted
from star.problem import STUDENT, Candidate, Problem
from star.reward import ATTRIBUTES, choose_weights, is_score
from star.run.history import clip
from star.tasks import Task, records
from star.tasks.records import Record, named


@dataclass
class Reader:
    """Reads answers to the training problems of a task. taken: names that generators have.

    scores: are those in the file used? weights: what their attributes count, as --reward-weights says it.
    """

    task: Task
    tokenizer: object
    taken: Collection[str] = ()
    skip_bad: bool = False
    scores: bool = True
    weights: str | None = None
    notes: list[str] = field(default_factory=list)

    def __post_init__(self):
        self.by_id = {p.id: p for p in self.task.train}
        self.heldout = {p.id for p in self.task.heldout}
        self.labels: tuple[str, list[str]] | None = None  # where scores stood first, and their names
        self.seen: dict[tuple[str, str, str], str] = {}  # (problem, source, text) -> where it stands
        self.files: set[str] = set()

    def read(self, path: str | Path) -> list[Candidate]:
        """The answers of a file. FileNotFoundError, or ValueError that names the first line that cannot be used and how
        many there are; with skip_bad they are left out, and counted in `notes`."""
        path, found, bad = Path(path), [], []
        where = os.path.realpath(path)
        if where in self.files:
            raise ValueError(f"--candidates names {path} twice: each answer counts once")
        self.files.add(where)
        for where, record in records.each(path):
            try:
                if isinstance(record, ValueError):
                    raise record
                found.append(self.candidate((where, record), path.stem))
            except ValueError as e:
                bad.append(str(e))
        more = f" (and {len(bad) - 1} more lines cannot be used)" if len(bad) > 1 else ""
        if bad and not self.skip_bad:
            raise ValueError(f"{bad[0]}{more}; correct them, or leave such lines out by --skip-bad")
        if not found:
            raise ValueError(f"{bad[0]}{more}: nothing is left of the file" if bad else
                             f"{path} is empty: it needs answers {{problem, text, source}}, one a line")
        found = self.weighed(found)
        sources = clip(named(list(dict.fromkeys(c.source for c in found))), 120)
        self.notes.append(f"{path.name}: {len(found)} answers to {len({c.problem for c in found})} problems, from "
                          f"{sources}; these problems are drawn first")
        if bad:
            self.notes.append(f"{path.name}: {len(bad)} lines are left out, such as {clip(bad[0], 300)}")
        return found

    def candidate(self, record: Record, stem: str) -> Candidate:
        """One line. ValueError says what is wrong with it."""
        where, values = record
        if not isinstance(values, dict):
            raise ValueError(f"{where}: a JSON object is needed, this is {records.shown(values)}")
        problem, text = (records.text(record, name, "an answer has problem, text and source")
                         for name in ("problem", "text"))
        source = records.name(record, "source", "", "") if "source" in values else stem
        asked = self.by_id.get(problem)
        if asked is None:
            why = ("is held out: what is learned from must not be measured on" if problem in self.heldout else
                   f"is none of the {len(self.by_id)} training problems ({named(list(self.by_id))})")
            raise ValueError(f"{where}: problem {clip(problem, 60)!r} {why}; sample.py --questions writes those that "
                             "there are")
        if source == STUDENT or source in self.taken:
            raise ValueError(f"{where}: source {source!r} is the name of "
                             f"{'the model that is trained' if source == STUDENT else 'a generator'}: give another")
        self.check_prompt(where, values, asked)
        text = clean(text)
        first = self.seen.get((problem, source, text))
        if first is not None:
            raise ValueError(f"{where} repeats {first.rpartition(', ')[2]}: the same answer of {source} to {problem!r}")
        self.check_text(where, asked, text)
        scores = self.read_scores(where, values["scores"]) if values.get("scores") is not None else None
        self.seen[problem, source, text] = where
        return Candidate(problem, source, text, scores)

    def check_prompt(self, where: str, values: dict, asked: Problem) -> None:
        """ValueError if the line answers another question: ids count the lines of a file that may have changed."""
        prompt, question = values.get("prompt"), self.task.question(asked).strip()
        if prompt is not None and not (isinstance(prompt, str) and f"\n{prompt.strip()}".endswith(f"\n{question}")):
            raise ValueError(f"{where}: its prompt does not hold what problem {asked.id!r} asks here "
                             f"({self.task.question(asked)[:60]!r}): the data or the task's options are others")

    def check_text(self, where: str, asked: Problem, text: str) -> None:
        if not text:
            raise ValueError(f"{where}: nothing is left of the text without its markup")
        chat = getattr(self.tokenizer, "chat", None) is not None
        written = fitted(self.task, asked, text, chat)
        ids = prompts.continued(self.task, asked, self.tokenizer, written) if self.tokenizer.unk_id is not None else []
        if (odd := prompts.unknown(self.tokenizer, written, ids)) is not None:
            raise ValueError(f"{where}: the student's tokenizer has no token for {odd!r}: it could never write that")

    def read_scores(self, where: str, given: object) -> dict[str, float] | None:
        """{label: score}; a list is of HelpSteer's five attributes, a number is a total. None if they are not used."""
        if isinstance(given, int | float) and not isinstance(given, bool):
            given = {"reward": given}
        if isinstance(given, list) and len(given) == len(ATTRIBUTES):
            given = dict(zip(ATTRIBUTES, given, strict=True))
        if not (isinstance(given, dict) and given and all(map(is_score, given.values()))):
            raise ValueError(f"{where}: scores is {records.shown(given)}; it must be {{attribute: number}}, the five "
                             "numbers of HelpSteer's attributes, or one number, all finite")
        first, labels = self.labels = self.labels or (where, list(given))
        if set(labels) != set(given):
            raise ValueError(f"{where} has scores for {clip(', '.join(given), 200)}, but {first} for "
                             f"{clip(', '.join(labels), 200)}: answers can only be compared by the same judge's")
        return {label: float(given[label]) for label in labels} if self.scores else None

    def weighed(self, found: list[Candidate]) -> list[Candidate]:
        """With the weighted sum of their scores, where they have some. ValueError for weights that do not fit."""
        if self.labels is None or not self.scores:
            return found
        weights = choose_weights(self.labels[1], self.weights)
        return [c if c.scores is None else replace(c, reward=round(
            sum(w * s for w, s in zip(weights, c.scores.values(), strict=True)), 6)) for c in found]
