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
from dataclasses import dataclass, field

from star import lora, prompts
from star.config import StarConfig
from star.evaluate import VERDICTS, accuracy, intervals, spread, verdict, verdicts
from star.finetune import FinetuneStats, finetune_steps
from star.problem import Completion, Example, Generation, Problem
from star.sampler import Sampler
from star.select import select
from star.tasks import Task

CHUNK = 8  # generations of a chunk for each slot: what a stop may lose, against slots that run empty at its end


@dataclass(frozen=True)
class State:
    """Where a run stands: the last iteration that is finished. 0 is the base's evaluation, -1 is before it."""

    iteration: int = -1
    validation: dict[int, float] = field(default_factory=dict)  # iteration -> mean accuracy, of those that are finished

    @property
    def best(self) -> int | None:
        """The first iteration that none beats on validation; None without validation."""
        return max(self.validation, key=lambda n: (self.validation[n], -n)) if self.validation else None

    def done(self, config: StarConfig) -> bool:
        """Has it made all its iterations, or lost its patience?"""
        tired = config.patience is not None and self.best is not None and self.iteration - self.best >= config.patience
        return self.iteration >= config.iterations or tired


@dataclass(frozen=True)
class Phase:
    """A phase begins: `total` problems or optimizer steps lie ahead."""

    iteration: int
    name: str  # "generate" | "rationalize" | "train" | "validate" | "evaluate" | "pass at k"
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
    done: bool = False  # nothing follows


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

    made: generations of the iteration after state.iteration that need not be made again; with --rounds all, also those
    of the iterations before, whose rationales are trained on again.
    Raises ValueError when an iteration solves nothing, with or without hint: there is nothing to learn from then.
    """
    model, state = sampler.model, state or State()
    apart = {p.id for p in draw(task.train, config.validation, fold("validation"))} if config.validation else set()
    validation, pupils = ([p for p in task.train if (p.id in apart) is aside] for aside in (True, False))
    heldout = chosen(task.heldout, config.heldout_problems)
    rollout = _Rollout(sampler, tokenizer, task, config, {g.key: g for g in made})
    by_id = {p.id: p for p in pupils}
    pool = [g for g in rollout.made.values() if 0 < g.iteration <= state.iteration and is_kept(g)]
    if state.iteration < 0:
        state, scores = yield from rollout.measure(state, 0, validation, heldout)
        yield Finished(0, {"iteration": 0, **scores}, state.done(config))

    while not state.done(config):
        n = state.iteration + 1  # line 2
        problems = draw(pupils, config.problems, fold(config.seed, n, "draw"))
        if config.learn == "rationales":
            attempts, retries = yield from rollout.collect(n, problems)  # lines 3 and 4
            right = [g for g in [*attempts, *retries] if is_kept(g)]  # lines 5 and 6
            if not right:
                raise ValueError(nothing_solved(n, attempts, retries))
            pool = right if config.rounds == "last" else [*sorted(pool, key=lambda g: g.key), *right]
            examples = [prompts.example(task, by_id[g.problem], tokenizer, g.tokens, config.few_shot_train == "on")
                        for g in select(pool, config.dedup == "on", config.cap)]
            report = counts(attempts, retries)
        else:
            examples = [prompts.written(task, p, tokenizer, task.gold(p), config.few_shot_train == "on")
                        for p in problems]
            report = {"problems": len(problems)}

        if config.start == "base":
            lora.reset(model, fold(config.seed, n, "adapters"))
        stats = yield from train(sampler, examples, config, n)  # line 7

        state, scores = yield from rollout.measure(state, n, validation, heldout)
        yield Finished(n, {
            "iteration": n, **scores, **report, "examples": len(examples), "steps": len(stats.losses),
            "loss": stats.losses[-1], "target_tokens": stats.target_tokens, "trained_tokens": stats.tokens,
        }, state.done(config))


def chosen(heldout: Sequence[Problem], n: int | None) -> list[Problem]:
    """The held-out problems to evaluate on: the same n in every run, in the task's order."""
    ids = {p.id for p in draw(heldout, n or len(heldout), fold("held-out"))}
    return [p for p in heldout if p.id in ids]


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
    steps, before = config.steps(n, len(examples)), 0
    yield Phase(n, "train", steps)
    for stats in finetune_steps(
        sampler.model, examples, steps, config.lr, config.batch_size, fold(config.seed, n, "batches"),
        warmup=config.warmup, schedule=config.schedule, beta2=config.beta2, clip=config.clip,
        micro_tokens=config.micro_tokens, recompute=config.recompute == "on",
    ):
        yield Tick(stats.tokens - before)
        before = stats.tokens
    return stats


def is_kept(g: Generation) -> bool:
    """Does the filter of Algorithm 1 keep this generation, hinted or not?"""
    return g.verdict == "right" and g.phase in ("generate", "rationalize")


def counts(attempts: list[Generation], retries: list[Generation]) -> dict:
    """How many rationales were kept and rationalized; how many problems were dropped, by their last try's verdict."""
    last = {g.problem: g.verdict for g in [*attempts, *retries]}
    solved = {g.problem for g in [*attempts, *retries] if is_kept(g)}
    right = {"kept": attempts, "rationalized": retries}
    return {
        "problems": len(last),
        **{name: sum(is_kept(g) for g in tries) for name, tries in right.items()},
        "solved": len(solved), "rationalized_problems": len(solved - {g.problem for g in attempts if is_kept(g)}),
        "truncated": sum(g.finish == "length" for g in attempts), "tries": len(attempts),
        "distinct": len({(g.problem, g.text.strip()) for g in [*attempts, *retries] if is_kept(g)}),
        "mean_tokens": round(sum(len(g.tokens) for g in attempts) / len(attempts), 1),
        **{f"{name}_wrong_steps": sum(is_kept(g) and g.steps_right is False for g in tries)
           for name, tries in right.items()},
        "dropped": {v: sum(said == v for p, said in last.items() if p not in solved) for v in VERDICTS if v != "right"},
        "new_tokens": sum(len(g.tokens) for g in [*attempts, *retries]),
    }


def nothing_solved(n: int, attempts: list[Generation], retries: list[Generation]) -> str:
    """One line for a model too weak to start."""
    seen = {v: sum(g.verdict == v for g in [*attempts, *retries]) for v in VERDICTS}
    how = ", ".join(f"{count} {v}" for v, count in seen.items() if count)
    hint = "" if retries else "--hint failure, "
    problems = len({g.problem for g in attempts})
    return (f"iteration {n}: none of {problems} problems was solved, with {len(retries)} hinted retries ({how}): "
            "there is nothing to learn from. The paper's limit (section 6): few-shot accuracy must be above chance; "
            "GPT-2 could not start on arithmetic; try easier problems, a model that solves some of them, other "
            f"examples (--few-shot), {hint}or a longer --max-new-tokens if many end by length")


@dataclass
class _Rollout:
    """Samples rationales for many problems and judges them: what three of the four phases do."""

    sampler: Sampler
    tokenizer: object
    task: Task
    config: StarConfig
    made: dict[tuple, Generation]

    def collect(
        self, n: int, problems: Sequence[Problem]
    ) -> Generator[Event, None, tuple[list[Generation], list[Generation]]]:
        """Lines 3 and 4: (attempts, hinted retries of failures), of all problems or until enough of them are right."""
        config, attempts, retries = self.config, [], []
        part = len(problems) if config.wanted is None else self.sampler.slots
        for start in range(0, len(problems), part):
            tries = yield from self.run(n, "generate", problems[start : start + part])
            solved = {g.problem for g in tries if g.verdict == "right"}
            failed = [p for p in problems[start : start + part] if p.id not in solved]
            attempts += tries
            if config.hint == "failure":
                share = config.hint_share * 2**63
                hinted = [p for p in failed if share >= 2**63 or fold(config.seed, n, "share", p.id) < share]
                retries += yield from self.run(n, "rationalize", hinted)
            if config.wanted is not None and sum(map(is_kept, [*attempts, *retries])) >= config.wanted:
                break
        return attempts, retries

    def measure(
        self, state: State, n: int, validation: Sequence[Problem], heldout: Sequence[Problem]
    ) -> Generator[Event, None, tuple[State, dict]]:
        """(state after iteration n, what is known of its model): validation chooses, held-out is only reported."""
        scores, before = {}, state.best
        if validation:
            judged = yield from self.run(n, "validate", validation)
            scores["validation"] = accuracy(validation, judged)
            scores["validation_interval"] = spans(validation, judged)
        seen = {"validation": state.validation | {n: scores["validation"]["mean"]}} if validation else {}
        state = State(n, **seen)
        if validation:
            scores["best"] = state.best
        if self.config.heldout_when == "each" or before is None or state.best == n:
            judged = yield from self.run(n, "evaluate", heldout)
            scores |= {"accuracy": accuracy(heldout, judged), "interval": spans(heldout, judged),
                       "said": verdicts(judged)}
            if self.config.eval_samples:
                scores |= spread(heldout, (yield from self.run(n, "pass at k", heldout)))
        return state, scores

    def run(self, n: int, phase: str, problems: Sequence[Problem]) -> Generator[Event, None, list[Generation]]:
        """Judged generations, problem by problem, in their order; as many of each as the phase has samples."""
        samples, *_ = self.config.sampling(phase)
        yield Phase(n, phase, len(problems) * samples)
        hinted = phase == "rationalize"
        sampled_by = n - 1 if phase in ("generate", "rationalize") else n  # M_0 is the base
        shown = self.config.few_shot_sample  # a model trained on bare questions may know hints from the examples only
        few_shot = shown == "always" or sampled_by == 0 or (shown == "hint" and hinted)
        done: dict[tuple, Generation] = {}
        behind: dict[str, list[Problem]] = {}  # few-shot text -> problems: those that share it share its cache
        for p in problems:
            behind.setdefault(self.task.shown(p, hinted) if few_shot else "", []).append(p)
        for part in behind.values():
            done |= yield from self._sample(n, phase, part, hinted, few_shot)
        return [done[n, phase, p.id, k] for p in problems for k in range(samples)]

    def _sample(
        self, n: int, phase: str, problems: Sequence[Problem], hinted: bool, few_shot: bool
    ) -> Generator[Event, None, dict[tuple, Generation]]:
        """The generations of a phase for problems behind one few-shot text, by key; what is made is not again."""
        samples, temperature, top_k, top_p = self.config.sampling(phase)
        cap = self.config.max_new_tokens or self.task.max_new_tokens
        ids = [prompts.encode(self.task, p, self.tokenizer, hinted, few_shot) for p in problems]
        prefix, own = prompts.share(ids)
        keys = [(n, phase, p.id, k) for p in problems for k in range(samples)]  # keys[i]: of problem i // samples
        order = sorted(range(len(keys)), key=lambda i: len(own[i // samples]))
        done: dict[int, Generation] = {}
        size = CHUNK * self.sampler.slots
        for start in range(0, len(order), size):  # chunks do not depend on what is made already
            chunk = order[start : start + size]
            for i in chunk:
                if keys[i] in self.made:
                    done[i] = self.made[keys[i]]
                    yield Tick(0)
            missing = [i for i in chunk if i not in done]
            seeds = [fold(self.config.seed, *keys[i]) for i in missing]
            for j, completion in self.sampler.stream(
                [own[i // samples] for i in missing], prefix=prefix, max_new_tokens=cap, temperature=temperature,
                top_k=top_k, top_p=top_p, seeds=seeds, stop_ids=self.tokenizer.eos_ids,
                stop=self.task.stop,
            ):
                i = missing[j]
                done[i] = self.judge(keys[i], problems[i // samples], completion, seeds[j], hinted)
                yield Tick(len(completion.tokens))
            if missing:
                yield Chunk([done[i] for i in missing])
        return {keys[i]: g for i, g in done.items()}

    def judge(self, key: tuple, problem: Problem, completion: Completion, seed: int, hinted: bool) -> Generation:
        ids = [i for i in completion.tokens if i not in self.tokenizer.eos_ids]
        text = self.tokenizer.decode(ids)
        said = verdict(self.task, problem, text, completion.finish, hinted)
        steps = self.task.check_steps(problem, text) if said == "right" else None
        return Generation(*key, seed, completion.tokens, text, completion.finish, round(sum(completion.logprobs), 4),
                          self.task.extract(text), said, steps)


def spans(problems: Sequence[Problem], judged: Iterable[Generation]) -> dict[str, list[float]]:
    """95 % interval of the accuracy by group."""
    right = {g.problem: float(g.verdict == "right") for g in judged}
    return {group: list(span) for group, span in intervals(problems, right).items()}
