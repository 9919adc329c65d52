"""Several models, one judge: what can stand beside the student's own tries in lines 3 to 6 of Algorithm 1.

    the student's rollout ──┐
    other models' rollouts ─┼─ the same verifier ─ the same judge ─ star/select ─ line 7: the student learns
    answers from files ─────┘

Another model answers with its own tokenizer, chat template and few-shot text; only its text is carried over. One is
loaded at a time beside the student, the judge when all have answered. Hints are the student's alone (line 4). It reads
no files (star/run/candidates), and what is trained on star/select says.
"""

import re
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace

from star import prompts
from star.best_of import auc_within
from star.config import StarConfig
from star.problem import Candidate, Chunk, Completion, Event, Generation, Phase, Problem, Scored, Tick
from star.reward import Judge, is_score
from star.rollout import CHUNK, Rollout
from star.sampler import Sampler
from star.select import choose_problems
from star.tasks import Task

RATED = 256  # answers that a judge is given at a time, for the progress bar
OPENS = re.compile(  # what templates put in front of an answer
    r"\s*(?:<\|im_start\|>\s*assistant\b|<start_of_turn>\s*model\b|<\|start_header_id\|>\s*assistant\s*"
    r"<\|end_header_id\|>|<\|assistant\|>|<\|start_of_role\|>\s*assistant\s*<\|end_of_role\|>|<extra_id_1>\s*Assistant\b"
    r"|\[/INST\]|<s>|<bos>|<\|begin_of_text\|>)")
TAGS = re.compile(r"</?(?:think|answer)>")
CLOSES = re.compile(r"(?i)<\|(?:im_(?:start|end)|eo[tm]_id|end|endoftext|(?:begin|end)_of_text|(?:start|end)_of_role"
                    r"|user|system|assistant|start_header_id|(?:start|end)_of_turn(?:_token)?)\|>"
                    r"|<(?:start|end)_of_turn>|</s>|<eos>|\[INST\]|<extra_id_\d+>")


@dataclass(frozen=True)
class Model:
    """Another model that answers: `open` loads it. left_out: ids of problems that do not fit into its context."""

    name: str
    open: Callable[[], tuple[Sampler, object]]
    left_out: frozenset[str] = frozenset()


class Guest(Rollout):
    """The rollout of another model. It is never trained, so it is asked as a base is; the verdict is on its text."""

    def __init__(self, name: str, sampler: Sampler, tokenizer, home: Rollout):
        config = replace(home.config, samples=max(home.config.samples, 1))
        super().__init__(sampler, tokenizer, home.task, config, ranks=home.ranks)
        self.source, self.home, self.given = name, home, home.given

    def iteration_of(self, n: int, phase: str) -> int:
        return 0

    def verify(self, key: tuple[int, str, str, int, str], problem: Problem, completion: Completion, seed: int
               ) -> Generation:
        logprob = round(sum(completion.logprobs), 4)
        return carried(self.home, key, problem, self.text(completion), completion.finish, logprob, seed)


class Pool:
    """Who answers beside the student, and who scores all answers. With neither, a run is plain STaR.

    judge: loads the judge; called when all have answered, and its weights go when all are scored.
    """

    def __init__(self, models: Sequence[Model] = (), candidates: Iterable[Candidate] = (),
                 judge: Callable[[], Judge] | None = None):
        self.models, self.judge = list(models), judge
        self.candidates: dict[str, list[Candidate]] = {}
        for candidate in candidates:
            self.candidates.setdefault(candidate.problem, []).append(candidate)

    @property
    def empty(self) -> bool:
        return not self.models and not self.candidates and self.judge is None

    def answers_a_problem(self, config: StarConfig) -> tuple[int, int]:
        """(answers that other models sample for a problem, those that files hold at most)."""
        return len(self.models) * max(config.samples, 1), max(map(len, self.candidates.values()), default=0)

    def draw(self, problems: Sequence[Problem], config: StarConfig, seed: int) -> list[Problem]:
        """The problems of an iteration: those that a file answers, then others, unless nobody would answer these."""
        drawn = choose_problems([p for p in problems if p.id in self.candidates], config.problems, seed)
        if (config.samples or self.models) and len(drawn) < config.problems:
            others = [p for p in problems if p.id not in self.candidates] if self.candidates else problems
            drawn += choose_problems(others, config.problems - len(drawn), seed)
        return drawn

    def answers(self, home: Rollout, n: int, problems: Sequence[Problem]
                ) -> Generator[Event, None, list[Generation]]:
        """What others say to these problems: model by model, then the files'. home: the student's rollout."""
        tried = []
        for model in self.models:
            tried += yield from self._ask(model, home, n, [p for p in problems if p.id not in model.left_out])
        return tried + (yield from self._read(home, n, problems))

    def _ask(self, model: Model, home: Rollout, n: int, problems: Sequence[Problem]
             ) -> Generator[Event, None, list[Generation]]:
        samples = max(home.config.samples, 1)
        keys = [(n, "generate", p.id, k, model.name) for p in problems for k in range(samples)]
        if all(key in home.given for key in keys):  # a resumed run has them all: nothing to load
            return [home.given[key] for key in keys]
        home.sampler.release()
        sampler, tokenizer = model.open()
        return (yield from Guest(model.name, sampler, tokenizer, home).run(n, "generate", problems))

    def _read(self, home: Rollout, n: int, problems: Sequence[Problem]) -> Generator[Event, None, list[Generation]]:
        made, new, counted, size = [], [], {}, CHUNK * home.sampler.slots
        for problem in problems:
            for candidate in self.candidates.get(problem.id, []):
                sample = counted[problem.id, candidate.source] = counted.get((problem.id, candidate.source), -1) + 1
                key = (n, "generate", problem.id, sample, candidate.source)
                g = home.given.get(key) or replace(carried(home, key, problem, candidate.text),
                                                   scores=candidate.scores, reward=candidate.reward)
                made.append(g)
                new += [(g, problem)] * (key not in home.given)
        if made:
            yield Phase(n, "generate", len(made), "files")
        for _ in made:
            yield Tick(0)
        for start in range(0, len(new), size):
            yield Chunk(*map(list, zip(*new[start : start + size], strict=True)))
        return made

    def score(self, home: Rollout, n: int, generations: Sequence[Generation], problems: Iterable[Problem],
              cut_too: bool = False) -> Generator[Event, None, list[Generation]]:
        """The same generations with the judge's scores, but for those too long for it, or cut off unless `cut_too`.

        problems: theirs, at least. Those that have scores keep them.
        ValueError for a score that is not finite: which problem, which source.
        """
        waiting = [g for g in generations if g.scores is None and (g.finish == "stop" or cut_too)]
        if self.judge is None or not waiting:
            return list(generations)
        yield Phase(n, "judge", len(waiting))
        home.sampler.release()
        judge, by_id = self.judge(), {p.id: p for p in problems}
        pairs = {g.key: judge_pair(judge, home.task, by_id[g.problem], g.text) for g in waiting}
        rated: dict[tuple[str, str], tuple[float, ...] | None] = {}
        done: dict[tuple, Generation] = {}
        for start in range(0, len(waiting), RATED):  # equal texts are rated once
            part = waiting[start : start + RATED]
            new = [pair for pair in dict.fromkeys(pairs[g.key] for g in part) if pair not in rated]
            told = home.ranks.gather(judge.rate(home.ranks.mine(new)))
            for pairs_of_rank, scores in zip(home.ranks.deal(new), told, strict=True):
                rated |= zip(pairs_of_rank, scores, strict=True)
            for _ in part:
                yield Tick(0)
            named = {g.key: scored(g, judge, rated[pairs[g.key]]) for g in part}
            done |= named
            if changed := [g for g in named.values() if g.scores is not None]:
                yield Scored(changed)
        return [done.get(g.key, g) for g in generations]


def judge_pair(judge: Judge, task: Task, problem: Problem, text: str) -> tuple[str, str]:
    """(question, answer) as the judge is asked: in the task's own words, or as a turn of a conversation.

    Without the blanks at its end, which say who wrote it (a stop string leaves some) and not how good it is.
    """
    if judge.format == "plain":
        return task.question(problem), text.rstrip()
    return task.turn(problem), text.strip()


def scored(g: Generation, judge: Judge, scores: tuple[float, ...] | None) -> Generation:
    if scores is None:
        return g
    for label, score in zip(judge.labels, scores, strict=True):
        if not is_score(score):
            raise ValueError(f"the judge {judge.name} gives {label} {score} to the answer of {g.source} to problem "
                             f"{g.problem}, sample {g.sample}: its weights are unsound, or too large for this dtype")
    named = {label: round(score, 6) for label, score in zip(judge.labels, scores, strict=True)}
    return replace(g, scores=named, reward=round(judge.total(scores), 6))


def clean(text: str) -> str:
    """An answer without its template's markup: what stands behind its end is not the answer's.

    "<|im_start|>assistant\\nIt is 4.<|im_end|>\\n<|im_start|>user" -> "It is 4."
    """
    while opening := OPENS.match(text):
        text = text[opening.end() :]
    return TAGS.sub("\n", CLOSES.split(text, maxsplit=1)[0]).strip()  # a line each: words must not grow together


def fitted(task: Task, problem: Problem, text: str, chat: bool) -> str:
    """A clean text as the student would write it behind this question: nothing in it ends a rationale before its end.
    """
    question = task.question(problem)
    cue = question.rpartition("\n")[2].strip()  # "A:", which stands there already
    text = text.removeprefix(cue).lstrip() if cue else text
    for stop in task.stop:
        if stop.isspace():
            text = "\n".join(line.rstrip() for line in text.split("\n") if line.strip())  # paragraphs become lines
        text = text.partition(stop)[0].rstrip()
    return text if chat or question[-1:].isspace() else f" {text}"


def carried(home: Rollout, key: tuple[int, str, str, int, str], problem: Problem, text: str, finish: str = "stop",
            logprob: float | None = None, seed: int = 0) -> Generation:
    """Another's answer as a generation of the student's run: verified by its text, in the student's ids."""
    tokenizer, task = home.tokenizer, home.task
    text = fitted(task, problem, clean(text), getattr(tokenizer, "chat", None) is not None)
    ids = prompts.continued(task, problem, tokenizer, text)
    if len(ids) >= (home.config.max_new_tokens or task.max_new_tokens):
        finish = "length"  # the student could not write it to its end
    end = [tokenizer.eos_ids[0]] if finish == "stop" else []
    g = home.verify_text(key, problem, text, [*ids, *end], finish, logprob, seed)
    if prompts.unknown(tokenizer, text, ids) is not None:  # the student could never write it
        return replace(g, verdict="unparsed", answer=None, steps_right=None, tokens=())
    return g


def by_source(generations: Sequence[Generation], kept: Sequence[Generation], chosen: Sequence[Generation]
              ) -> dict[str, dict]:
    """source -> how many it tried and had right, with their mean reward, all without a hint; how many were let through
    and are trained on, how many of these were made with a hint or are not right."""
    lines = {}
    for source in dict.fromkeys(g.source for g in generations):
        made, k, c = ([g for g in part if g.source == source] for part in (generations, kept, chosen))
        tried = [g for g in made if g.phase == "generate"]
        rewards = [g.reward for g in tried if g.reward is not None]
        lines[source] = {
            "tried": len(tried), "right": sum(g.kept for g in tried), "kept": len(k), "chosen": len(c),
            "chosen_hinted": sum(g.phase == "rationalize" for g in c), "chosen_wrong": sum(not g.kept for g in c),
            "reward": round(sum(rewards) / len(rewards), 4) if rewards else None}
    return lines


def agreement(tried: Sequence[Generation]) -> dict:
    """How well a judge tells right from wrong answers to the same problem: of unhinted tries.

    {"problems": those that have both, "auc": [AUC, low, high] of the total reward, "by_attribute": {name: the same},
    "ties": share of problems whose best reward stands on several texts, "unscored": answers without a score}. AUC 0.5:
    it knows nothing.
    """
    of: dict[str, list[Generation]] = {}
    for g in tried:
        if g.reward is not None and g.verdict in ("right", "wrong", "unparsed"):
            of.setdefault(g.problem, []).append(g)
    names = dict.fromkeys(name for rated in of.values() for g in rated for name in g.scores or {})

    def auc(score: Callable[[Generation], float]) -> list[float]:
        return [round(x, 4) for x in auc_within([(score(g), g.kept) for g in rated] for rated in of.values())]

    both = sum(len({g.kept for g in rated}) == 2 for rated in of.values())
    by = {name: auc(lambda g, name=name: g.scores[name]) for name in names} if both else {}
    return {"problems": both, "auc": auc(lambda g: g.reward) if both else None, "by_attribute": by,
            "ties": ties(of.values()), "unscored": sum(g.finish == "stop" and g.reward is None for g in tried)}


def ties(problems: Iterable[Sequence[Generation]]) -> float:
    """Share of problems whose best reward stands on several different texts, of those that have several."""
    rewards = [list({g.text.strip(): g.reward for g in rated}.values()) for rated in problems]
    several = [r for r in rewards if len(r) > 1]
    return round(sum(r.count(max(r)) > 1 for r in several) / max(len(several), 1), 4)
