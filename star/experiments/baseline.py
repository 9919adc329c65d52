"""What STaR must beat: fine-tuning on the data's human rationales, or on its answers alone.

    python -m star.experiments.baseline --learn gold --task gsm8k --data DIR --model checkpoints/smollm2-135m

Trains once, on the problems of STaR's first iteration, and is measured as STaR is. All other flags are train.py's.
"""

import contextlib
import sys
from collections.abc import Generator, Iterable
from dataclasses import replace

from star import lora, prompts
from star.config import DEFAULTS, OF_OTHERS, StarConfig
from star.draws import seed_of
from star.loop import State, measure, train_adapters, trained
from star.pool import Pool
from star.problem import Event, Example, Finished, Generation, Problem
from star.rollout import Rollout
from star.run.flags import command, read_flags
from star.run.folder import Run
from star.run.inputs import facts
from star.run.plan import build, check, make_plan, opening
from star.run.progress import Progress, summary
from star.run.rates import Meter
from star.run.report import Report
from star.run.signals import Stopped, stop
from star.sampler import Sampler
from star.select import choose_heldout, choose_problems, set_aside
from star.tasks import Task


def learn(sampler: Sampler, tokenizer, task: Task, config: StarConfig, state: State, given: Iterable[Generation]
          ) -> Generator[Event, None, None]:
    """Evaluate the base, train on `task.gold` of the first iteration's problems, evaluate."""
    validation, train = set_aside(task.train, config.validation)
    heldout, rollout = choose_heldout(task.heldout, config.heldout_problems), Rollout(sampler, tokenizer, task, config,
                                                                                      given)
    if state.iteration < 0:
        state, scores = yield from measure(rollout, Pool(), state, 0, validation, heldout)
        yield Finished(0, {"iteration": 0, **scores}, state.done(config))
    if state.done(config):
        return
    problems = choose_problems(train, config.problems, seed_of(config.seed, 1, "draw"))
    examples = [written(task, p, tokenizer, config.few_shot_train) for p in problems]
    lora.reset(sampler.model, seed_of(config.seed, 1, "adapters"))
    stats = yield from train_adapters(sampler, examples, config, 1, state.training)
    state, scores = yield from measure(rollout, Pool(), state, 1, validation, heldout)
    yield Finished(1, {"iteration": 1, **scores, "problems": len(problems), **trained(examples, stats)}, True)


def written(task: Task, problem: Problem, tokenizer, few_shot: bool) -> Example:
    """The training sequence of a rationale that somebody wrote: encoded as one text with its prompt."""
    text = task.gold(problem).strip() if getattr(tokenizer, "chat", None) is not None else task.gold(problem)
    ids = prompts.continued(task, problem, tokenizer, text, few_shot)
    return prompts.example(task, problem, tokenizer, ids, few_shot)


def as_learned(task: Task, what: str) -> Task:
    """The task whose `gold` is trained on. ValueError where it has none."""
    task = task.answers_only() if what == "answers" else task
    if any(task.gold(p) is None for p in task.train):
        raise ValueError(f"--learn gold needs human rationales, and task {task.name} has none here"
                         + (": name their field by --fields rationale=..." if task.name == "jsonl" else ""))
    for p in task.train:
        if found := [s for s in task.stop if s in task.gold(p)]:
            raise ValueError(f"--learn {what}: the rationale of problem {p.id} holds {found[0]!r}, at which sampling "
                             "ends: what is learned could not be written; take it out there")
    return task


@command
def main(argv: list[str]) -> None:
    flags, more = read_flags(argv, __doc__, lambda parser: parser.add_argument(
        "--learn", choices=("gold", "answers"), help="human rationales, or answers alone; --resume knows it"))
    if flags.resume and (flags.settings or flags.out):
        raise ValueError("--resume keeps the run's settings: leave them out")
    run, state, given = Run.resume(flags.resume) if flags.resume else (None, State(), [])
    learns = run.learns if run else getattr(more, "learn", None)
    if learns not in ("gold", "answers"):
        raise ValueError(f"{flags.resume} is a run of train.py: go on with that" if run else
                         "--learn says what to fine-tune on: gold (human rationales) or answers")
    if run and (flags.settings or getattr(more, "learn", learns) != learns):
        raise ValueError(f"--resume keeps the run's settings, and that it learns {learns}: leave out all others")
    if run and state.done(run.config):
        raise ValueError(f"{flags.resume} has finished")
    config, options = (run.config, run.options) if run else (StarConfig(**flags.settings), flags.options)
    if other := [f"--{name.replace('_', '-')}" for name in OF_OTHERS if getattr(config, name) != DEFAULTS[name]]:
        raise ValueError(f"a baseline learns from the data alone: leave out {', '.join(other)}")
    config = replace(config, iterations=min(config.iterations, 1))
    plan = make_plan(config, options, lambda task: as_learned(task, learns), generates=False)
    if flags.check:
        print("\n".join(check(plan)))
        return
    config, sampler = plan.config, build(plan)
    here = facts(sampler.model, sampler.slots)
    if run is None:
        run = Run.create(flags.out, config, options, here, learns)
    else:
        run.goes_on(here)
    run.meter = Meter(sampler)
    print("\n".join([*opening(plan, sampler, learns), f"rates   {run.meter}", f"run     {run.folder}\n"]), flush=True)
    with contextlib.closing(run), contextlib.closing(Progress(plan, 0)) as progress:
        try:
            for event in learn(sampler, plan.tokenizer, plan.task, config, state, given):
                run.record(event, sampler.model)
                progress.show(event, run)
        except (KeyboardInterrupt, RuntimeError, OSError) as e:
            on = f"in {run.where}; go on with --resume {run.folder}"
            if stopped := stop(e):
                raise Stopped(stopped.number, on) from None
            if not isinstance(e, OSError):
                raise
            raise OSError(f"{e} ({on})") from None
    print("\n" + "\n".join(summary(run, flags.price_per_hour)))
    print(f"report  {Report(run, plan.task, plan.tokenizer).write()}")


if __name__ == "__main__":
    sys.exit(main())
