"""Algorithm 1 of STaR (Zelikman et al. 2022, arXiv 2203.14465), as a generator without input or output.

    1  M_0 <- M                                              adapters at zero: the base
    2  for n in 1..N:
    3      (r, y^) <- M_{n-1}(x)               for all x     generate
    4      (r, y^) <- M_{n-1}(add_hint(x, y))  for failures  rationalize
    5      D_n      <- those of 3 with y^ = y                filter; the hint is not in what is kept
    6      D_n^rat  <- those of 4 with y^ = y
    7      M_n <- train(M, D_n + D_n^rat)                    always from the original M

Other models may answer in line 3 beside the student, and a judge may score all answers before one is chosen in lines 5
and 6 (star/pool); a plain run has neither.

`star` yields events; whoever runs it prints and saves them (train.py, star/run). It starts from a state, takes the
generations that a stopped run had already made, and makes only those that are missing. It knows no files, no clock
and no progress bar. How a rationale is sampled and judged is star/rollout, how adapters are trained star/finetune.
"""

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from star import lora, prompts
from star.config import StarConfig
from star.decoder import Decoder
from star.degenerate import degeneration, most_said
from star.draws import seed_of
from star.drift import habits
from star.evaluate import (
    VERDICTS,
    accuracy,
    accuracy_intervals,
    counts,
    mean_reward,
    one_sided,
    pass_and_maj,
    verdicts,
)
from star.finetune import FinetuneStats, finetune_steps
from star.pool import Pool, agreement, by_source
from star.problem import Event, Example, Finished, Generation, Note, Phase, Problem, Step, Tick
from star.ranks import ONE, Ranks
from star.rollout import Rollout
from star.sampler import Sampler
from star.select import choose_heldout, passes, select, set_aside, usable
from star.tasks import Task


class NothingSolved(ValueError):
    """An iteration had nothing to learn from; `tries` are what it tried."""

    def __init__(self, message: str, tries: Sequence[Generation]):
        super().__init__(message)
        self.tries = tries


@dataclass(frozen=True)
class Training:
    """A training that was stopped: what it had done; adapters and AdamW's moments by the names of star/lora.trainable.
    """

    stats: FinetuneStats  # without a state
    adapters: dict[str, Tensor]
    moments: list[dict[str, Tensor]]

    def check(self, model: Decoder) -> None:
        """ValueError if these are not this model's adapters."""
        shapes = {name: p.shape for name, p in lora.trainable(model).items()}
        if any({name: t.shape for name, t in part.items()} != shapes for part in (self.adapters, *self.moments)):
            raise ValueError("the training that was stopped had other adapters than this model: take the run's folder "
                             "training away, and it begins anew")

    def put(self, model: Decoder) -> dict:
        """Set the adapters of a model, which must be theirs; the state for finetune."""
        self.check(model)
        lora.put(model, self.adapters)
        names = lora.trainable(model)
        return {"step": len(self.stats.losses), "moments": [[part[name] for name in names] for part in self.moments]}


@dataclass(frozen=True)
class State:
    """Where a run stands: the last iteration that is finished. 0 is the base's evaluation, -1 is before it."""

    iteration: int = -1
    validation: dict[int, float] = field(default_factory=dict)  # iteration -> mean accuracy, of those that are finished
    training: Training | None = None  # of the next iteration, if it had begun

    @property
    def best(self) -> int | None:
        """The first iteration that none beats on validation; None without validation."""
        return max(self.validation, key=lambda n: (self.validation[n], -n)) if self.validation else None

    def done(self, config: StarConfig) -> bool:
        """Has it made all its iterations, or lost its patience?"""
        tired = config.patience is not None and self.best is not None and self.iteration - self.best >= config.patience
        return self.iteration >= config.iterations or tired


def star(sampler: Sampler, tokenizer, task: Task, config: StarConfig, state: State | None = None,
         given: Iterable[Generation] = (), pool: Pool | None = None, ranks: Ranks = ONE
         ) -> Generator[Event, None, None]:
    """Run Algorithm 1 on the sampler's model, which must have adapters (those of state.iteration, when resumed).

    given: generations of the iteration after state.iteration that need not be made again; with --keep all, also those
    of the iterations before, whose rationales are trained on again. pool: other models and a judge. ranks: the
    processes that run this loop together; the events of each are the whole run's, and one of them writes them down.
    Raises NothingSolved when an iteration solves nothing, with or without hint: there is nothing to learn from then.
    """
    model, state, given, pool = sampler.model, state or State(), list(given), pool or Pool()
    validation, train = set_aside(task.train, config.validation)
    heldout = choose_heldout(task.heldout, config.heldout_problems)
    rollout = Rollout(sampler, tokenizer, task, config, given, ranks)
    by_id = {p.id: p for p in train}
    before = usable([g for g in given if 0 < g.iteration <= state.iteration], config)

    if state.iteration < 0:  # 1: M_0 is M, adapters at zero; how good is it?
        state, scores = yield from measure(rollout, pool, state, 0, validation, heldout)
        yield Finished(0, {"iteration": 0, **scores}, state.done(config))

    while not state.done(config):
        # 2: for n in 1..N
        n = state.iteration + 1
        problems = pool.draw(train, config, seed_of(config.seed, n, "draw"))
        if config.wanted is None:
            # 3: a rationale for each question, from M_{n-1}
            tried = yield from rollout.run(n, "generate", problems)
            tried += yield from pool.answers(rollout, n, problems)
            # 4: another for those that failed, with the answer as a hint in front
            failed = unsolved(problems, tried)
            retried = (yield from rollout.run(n, "rationalize", failed)) if config.rationalize else []
        else:
            tried, retried = yield from until_enough(rollout, n, problems)
        # 5 and 6: keep those that arrive at the right answer, or whatever else --select asks for
        made = yield from pool.score(rollout, n, tried + retried, problems)
        kept = usable(made, config)
        if not kept:
            raise nothing_to_learn(n, made[: len(tried)], made[len(tried) :], config)
        before = kept if config.keep == "last" else sorted(before, key=lambda g: g.key) + kept
        chosen = select(before, config.dedup, config.max_per_problem or (1 if config.ranks else None), config.ranks)
        # 7: M_n is the original M, trained on what was kept, behind the questions without hint
        examples = [prompts.example(task, by_id[g.problem], tokenizer, g.tokens, config.few_shot_train) for g in chosen]
        if config.start == "base":
            lora.reset(model, seed_of(config.seed, n, "adapters"))
        stats = yield from train_adapters(sampler, examples, config, n, state.training, ranks)

        state, scores = yield from measure(rollout, pool, state, n, validation, heldout)
        said = counts(tried, retried) | health(task, problems, tried, retried, made, kept, config)
        said |= pooled(pool, made[: len(tried)], made, kept, chosen)
        yield Finished(n, {"iteration": n, **scores, **said, **trained(examples, stats)}, state.done(config))


def unsolved(problems: Sequence[Problem], tried: Iterable[Generation]) -> list[Problem]:
    """The problems none of whose tries is right."""
    solved = {g.problem for g in tried if g.kept}
    return [p for p in problems if p.id not in solved]


def until_enough(rollout: Rollout, n: int, problems: Sequence[Problem]
                 ) -> Generator[Event, None, tuple[list[Generation], list[Generation]]]:
    """Lines 3 and 4, as many problems at a time as there are slots, until --wanted rationales can be trained on."""
    config, tried, retried = rollout.config, [], []
    for start in range(0, len(problems), rollout.size):
        part = problems[start : start + rollout.size]
        tries = yield from rollout.run(n, "generate", part)
        tried += tries
        if config.rationalize:
            retried += yield from rollout.run(n, "rationalize", unsolved(part, tries))
        if len(usable(tried + retried, config)) >= config.wanted:
            break
    return tried, retried


def train_adapters(sampler: Sampler, examples: list[Example], config: StarConfig, n: int,
                   begun: Training | None = None, ranks: Ranks = ONE) -> Generator[Event, None, FinetuneStats]:
    """Line 7: fine-tune the adapters on this iteration's examples, or go on with a training that was stopped."""
    steps, stats = config.steps(n, len(examples)), FinetuneStats()
    yield Phase(n, "train", steps)
    sampler.release()  # training may need the memory of the cache
    if begun is not None:
        stats = replace(begun.stats, state=begun.put(sampler.model))
    for _ in stats.losses:
        yield Tick(0)
    tokens, lowered = stats.tokens, stats.lowered
    going = finetune_steps(
        sampler.model, examples, steps, config.lr, config.batch_size, seed_of(config.seed, n, "batches"),
        stats.state or None, warmup=config.warmup, schedule=config.schedule, beta2=config.beta2,
        micro_tokens=config.micro_tokens, recompute=config.recompute, stats=stats, ranks=ranks)
    for _ in going:
        if stats.lowered != lowered:
            yield Note(f"iteration {n}, step {len(stats.losses)}: memory ran out; from here on {stats.lowered} tokens "
                       "are trained on at a time")
        yield Step(n, stats.tokens - tokens, stats, len(stats.losses) == steps)
        tokens, lowered = stats.tokens, stats.lowered
    for rank, fewer in enumerate(ranks.gather(stats.lowered)):
        if fewer and rank != ranks.rank:
            yield Note(f"iteration {n}: memory ran out on rank {rank}, which trained on {fewer} tokens at a time")
    return stats


def trained(examples: list[Example], stats: FinetuneStats) -> dict:
    """What an iteration's metrics say of its training."""
    finite = [loss for loss in stats.losses if math.isfinite(loss)]
    return {"examples": len(examples), "steps": len(stats.losses), "loss": finite[-1] if finite else None,
            "skipped_steps": len(stats.skipped), "target_tokens": stats.target_tokens, "trained_tokens": stats.tokens}


def health(task: Task, problems: Sequence[Problem], tried: Sequence[Generation], retried: Sequence[Generation],
           made: Sequence[Generation], kept: Sequence[Generation], config: StarConfig) -> dict:
    """What an iteration's metrics say of rationales and answers that go bad (star/degenerate)."""
    through = [g for g in made if passes(g, config)]
    return {**one_sided(tried), **degeneration(tried, retried, through, len(through) - len(kept)),
            "tried_answers": most_said(task, problems, tried)}


def pooled(pool: Pool, tried: Sequence[Generation], made: Sequence[Generation], kept: Sequence[Generation],
           chosen: Sequence[Generation]) -> dict:
    """What an iteration's metrics say of other sources and of the judge. {}: a plain run."""
    if pool.empty:
        return {}
    scored = any(g.reward is not None for g in made)
    new = [g for g in chosen if g.iteration == made[0].iteration]  # --keep all trains on older ones too
    return {"sources": by_source(made, kept, new), **({"judge": agreement(tried)} if scored else {})}


def measure(rollout: Rollout, pool: Pool, state: State, n: int, validation: Sequence[Problem],
            heldout: Sequence[Problem]) -> Generator[Event, None, tuple[State, dict]]:
    """(state after iteration n, what is known of its model): validation chooses, held-out is only reported.

    What a problem without an answer is answered, the judge rates: its mean reward stands for accuracy.
    """
    config, scores, before, known, open_ = rollout.config, {}, state.best, {}, not heldout[0].answer
    if validation:
        judged = yield from rollout.run(n, "validate", validation)
        if open_:
            scores["validation"] = mean_reward((yield from pool.score(rollout, n, judged, validation, cut_too=True)))
        else:
            scores["validation"] = accuracy(validation, judged)
            scores["validation_interval"] = accuracy_intervals(validation, judged)
        known = state.validation | {n: scores["validation"]["mean"]}
        watched = validation, judged
    state = State(n, known)
    if validation:
        scores["best"] = state.best
    if config.heldout_when == "each" or before is None or state.best == n:
        judged = yield from rollout.run(n, "evaluate", heldout)
        rated = (yield from pool.score(rollout, n, judged, heldout, cut_too=True)) if open_ else []
        scores |= ({"reward": mean_reward(rated)} if open_ else
                   {"accuracy": accuracy(heldout, judged), "interval": accuracy_intervals(heldout, judged)})
        scores["said"] = verdicts(judged)
        watched = (heldout, judged) if config.heldout_when == "each" else watched  # the same problems each iteration
        if config.eval_samples:
            scores |= pass_and_maj(heldout, (yield from rollout.run(n, "pass at k", heldout)))
    scores |= {"answers": most_said(rollout.task, *watched),
               **habits(rollout.sampler.model, rollout.tokenizer, rollout.task, *watched, config.few_shot_train,
                      rollout.ranks)}
    return state, scores


def nothing_to_learn(n: int, tried: Sequence[Generation], retried: Sequence[Generation], config: StarConfig
                     ) -> ValueError:
    """For a model too weak to start, or a choice that lets nothing through: one line."""
    seen = {v: sum(g.verdict == v for g in [*tried, *retried]) for v in VERDICTS}
    how = ", ".join(f"{count} {v}" for v, count in seen.items() if count)
    right = sum(g.kept for g in [*tried, *retried])
    if bad := sum(passes(g, config) for g in [*tried, *retried]):
        return ValueError(
            f"iteration {n}: --drop-degenerate leaves out all of the {bad} answers that --select {config.select} lets "
            "through: they go round in circles, or are far less or more likely than the others; try other few-shot "
            "examples or another --temperature, or leave it out")
    if right or config.select in ("reward", "reward-blind"):
        why = "none of these has right steps throughout" if config.select == "correct+steps" else (
            "none of these has a reward" + ("" if config.reward_threshold is None else
                                            f" of at least {config.reward_threshold}")
            + " (what is cut off, or too long for the judge, has none: raise --max-new-tokens, or take another judge)")
        return ValueError(
            f"iteration {n}: of {len(tried) + len(retried)} answers {right} are right ({how}), but --select "
            f"{config.select} lets none through: {why}; take another --select, or more --samples")
    hint = "" if retried else "hints (leave out --no-rationalize), "
    return NothingSolved(
        f"iteration {n}: none of {len({g.problem for g in tried})} problems was solved, with {len(retried)} hinted "
        f"retries ({how}): there is nothing to learn from; try easier problems, a model that solves some of them, "
        f"other few-shot examples, {hint}or a longer --max-new-tokens if many end by length", [*tried, *retried])
