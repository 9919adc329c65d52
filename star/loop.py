"""Algorithm 1 of STaR (Zelikman et al. 2022, arXiv 2203.14465), as a generator without input or output.

    1  M_0 <- M                                              adapters at zero: the base
    2  for n in 1..N:
    3      (r, y^) <- M_{n-1}(x)               for all x     generate
    4      (r, y^) <- M_{n-1}(add_hint(x, y))  for failures  rationalize
    5      D_n      <- those of 3 with y^ = y                filter; the hint is not in what is kept
    6      D_n^rat  <- those of 4 with y^ = y
    7      M_n <- train(M, D_n + D_n^rat)                    always from the original M

`star` yields events; whoever runs it prints and saves them (train.py, star/run). It starts from a state, takes the
generations that a stopped run had already made, and makes only those that are missing. It knows no files, no clock
and no progress bar.
"""

import hashlib
import itertools
import random
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

from star import lora, prompts
from star.config import StarConfig
from star.evaluate import VERDICTS, accuracy, verdict
from star.finetune import FinetuneStats, finetune_steps
from star.problem import Completion, Example, Generation, Problem
from star.sampler import Sampler
from star.tasks import Task


@dataclass(frozen=True)
class State:
    """Where a run stands: the last iteration that is finished. 0 is the base's evaluation, -1 is before it."""

    iteration: int = -1


@dataclass(frozen=True)
class Phase:
    """A phase begins: `total` problems or optimizer steps lie ahead."""

    iteration: int
    name: str  # "generate" | "rationalize" | "train" | "evaluate"
    total: int


@dataclass(frozen=True)
class Tick:
    """One more problem or step of the phase is done; `tokens` were sampled or trained on for it."""

    tokens: int


@dataclass(frozen=True)
class Chunk:
    """Generations just made, whole: what a resumed run may rely on. Those that were given are not repeated."""

    generations: list[Generation]


@dataclass(frozen=True)
class Finished:
    """An iteration is over; the model holds its adapters. Metrics hold nothing that depends on the machine's speed."""

    iteration: int
    metrics: dict


Event = Phase | Tick | Chunk | Finished


def star(
    sampler: Sampler,
    tokenizer,
    task: Task,
    config: StarConfig,
    state: State | None = None,
    made: Iterable[Generation] = (),
) -> Generator[Event, None, None]:
    """Run Algorithm 1 on the sampler's model, which must have adapters (those of state.iteration, when resumed).

    made: generations of the iteration after state.iteration that need not be made again.
    Raises ValueError when an iteration solves nothing, with or without hint: there is nothing to learn from then.
    """
    model = sampler.model
    state = state or State()
    rollout = _Rollout(sampler, tokenizer, task, config, {g.key: g for g in made})
    if state.iteration < 0:
        scores = yield from rollout.run(0, "evaluate", task.heldout)
        yield Finished(0, {"iteration": 0, "accuracy": accuracy(task.heldout, scores)})

    for n in range(max(state.iteration, 0) + 1, config.iterations + 1):  # line 2
        problems = draw(task.train, config.problems, fold(config.seed, n, "draw"))

        attempts = yield from rollout.run(n, "generate", problems)  # line 3
        failed = [p for p, g in zip(problems, attempts, strict=True) if g.verdict != "right"]
        retries = []
        if config.hint == "failure":
            retries = yield from rollout.run(n, "rationalize", failed)  # line 4

        kept = [g for g in attempts if g.verdict == "right"]  # line 5
        rationalized = [g for g in retries if g.verdict == "right"]  # line 6
        if not kept and not rationalized:
            raise ValueError(nothing_solved(n, attempts, retries))
        by_id = {p.id: p for p in problems}
        examples = [prompts.example(task, by_id[g.problem], tokenizer, g.tokens) for g in [*kept, *rationalized]]

        if config.start == "base":
            lora.reset(model, fold(config.seed, n, "adapters"))
        stats = yield from train(sampler, examples, config, n)  # line 7

        scores = yield from rollout.run(n, "evaluate", task.heldout)
        yield Finished(n, {
            "iteration": n, "accuracy": accuracy(task.heldout, scores), "problems": len(problems),
            **counts(attempts, retries, config.hint == "failure"), "examples": len(examples),
            "steps": config.steps(n), "loss": stats.losses[-1], "target_tokens": stats.target_tokens,
        })


def draw(train: Sequence[Problem], n: int, seed: int) -> list[Problem]:
    """n problems of the training set without repetition (all, if it has no more), as even over groups as these allow.

    Groups of 2 a's and 9 b's give, for n = 6, both a's and 4 b's.
    """
    groups: dict[str, list[Problem]] = {}
    for p in random.Random(seed).sample(train, len(train)):
        groups.setdefault(p.group, []).append(p)
    rounds = itertools.zip_longest(*groups.values())  # one of each group, round after round
    return [p for p in itertools.chain.from_iterable(rounds) if p is not None][:n]


def fold(*parts: int | str) -> int:
    """One seed of 63 bits from run seed, iteration, phase, problem, sample: any change in any of them changes it."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def train(
    sampler: Sampler, examples: list[Example], config: StarConfig, n: int
) -> Generator[Event, None, FinetuneStats]:
    """Line 7: fine-tune the adapters on this iteration's examples."""
    steps, before = config.steps(n), 0
    yield Phase(n, "train", steps)
    for stats in finetune_steps(
        sampler.model, examples, steps, config.lr, config.batch_size, fold(config.seed, n, "batches"),
        warmup=config.warmup, schedule=config.schedule, beta2=config.beta2, clip=config.clip,
    ):
        yield Tick(stats.tokens - before)
        before = stats.tokens
    return stats


def counts(attempts: list[Generation], retries: list[Generation], hints: bool) -> dict:
    """How many problems were kept, rationalized and dropped, and by which verdict of their last try."""
    last = retries if hints else attempts
    right = {"kept": attempts, "rationalized": retries}
    return {
        **{name: sum(g.verdict == "right" for g in tries) for name, tries in right.items()},
        **{f"{name}_wrong_steps": sum(g.verdict == "right" and g.steps_right is False for g in tries)
           for name, tries in right.items()},
        "dropped": {v: sum(g.verdict == v for g in last) for v in VERDICTS if v != "right"},
        "new_tokens": sum(len(g.tokens) for g in [*attempts, *retries]),
    }


def nothing_solved(n: int, attempts: list[Generation], retries: list[Generation]) -> str:
    """One line for a model too weak to start (the paper, section 6: few-shot accuracy must be above chance)."""
    seen = {v: sum(g.verdict == v for g in [*attempts, *retries]) for v in VERDICTS}
    how = ", ".join(f"{count} {v}" for v, count in seen.items() if count)
    hint = "" if retries else "--hint failure, "
    return (f"iteration {n}: none of {len(attempts)} problems was solved, with {len(retries)} hinted retries ({how}): "
            f"there is nothing to learn from; try easier problems, a model that solves some of them, {hint}"
            "or a longer --max-new-tokens if many end by length")


@dataclass
class _Rollout:
    """Samples one rationale for each of many problems and judges it: what three of the four phases do."""

    sampler: Sampler
    tokenizer: object
    task: Task
    config: StarConfig
    made: dict[tuple, Generation]

    def run(self, n: int, phase: str, problems: Sequence[Problem]) -> Generator[Event, None, list[Generation]]:
        """One judged generation a problem, in their order. Evaluation is greedy, whatever the temperature."""
        yield Phase(n, phase, len(problems))
        hinted = phase == "rationalize"
        cap = self.config.max_new_tokens or self.task.max_new_tokens
        ids = [prompts.encode(self.task, p, self.tokenizer, hinted) for p in problems]
        prefix, own = prompts.share(ids)
        done: dict[int, Generation] = {}
        order = sorted(range(len(problems)), key=lambda i: len(own[i]))
        for start in range(0, len(order), self.config.slots):  # chunks do not depend on what is made already
            chunk = order[start : start + self.config.slots]
            keys = {i: (n, phase, problems[i].id, 0) for i in chunk}
            for i in chunk:
                if keys[i] in self.made:
                    done[i] = self.made[keys[i]]
                    yield Tick(0)
            missing = [i for i in chunk if i not in done]
            seeds = [fold(self.config.seed, *keys[i]) for i in missing]
            for j, completion in self.sampler.stream(
                [own[i] for i in missing], prefix=prefix, max_new_tokens=cap, seeds=seeds,
                temperature=0.0 if phase == "evaluate" else self.config.temperature, stop_ids=self.tokenizer.eos_ids,
            ):
                i = missing[j]
                done[i] = self.judge(keys[i], problems[i], completion, seeds[j], hinted)
                yield Tick(len(completion.tokens))
            if missing:
                yield Chunk([done[i] for i in missing])
        return [done[i] for i in range(len(problems))]

    def judge(self, key: tuple, problem: Problem, completion: Completion, seed: int, hinted: bool) -> Generation:
        ended = completion.finish == "stop"
        text = self.tokenizer.decode(list(completion.tokens[:-1] if ended else completion.tokens))
        said = verdict(self.task, problem, text, completion.finish, hinted)
        steps = self.task.check_steps(problem, text) if said == "right" else None
        return Generation(*key, seed, completion.tokens, text, completion.finish, round(sum(completion.logprobs), 4),
                          self.task.extract(text), said, steps)
