"""What is sent to other models, and what the student samples for others to use: files of `sample.py`.

    --questions FILE   {"problem": "train-17", "prompt": "Q: ..."}                    for a model that lives elsewhere
    --rollouts FILE    {"problem": "train-17", "text": "...", "source": "run-iter-003"}   for `train.py --candidates`

So the two halves of the loop can run apart, on different days or machines. Reading is star/run/candidates.
"""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import checkpoints
from checkpoints.files import write_atomically
from star.config import DEFAULTS, OF_OTHERS, StarConfig
from star.draws import seed_of
from star.problem import Problem
from star.rollout import Rollout
from star.run.plan import build, make_plan
from star.select import choose_problems
from star.tasks import Task, load_task

SHOWN = 3  # worked solutions in a question, where the task shows no examples but has a form of its own


def drawn(task: Task, limit: int | None, seed: int) -> Sequence[Problem]:
    """All training problems, or the first of those that a run with this seed draws: the same for every model."""
    return task.train if limit is None else choose_problems(task.train, limit, seed_of(seed, 1, "draw"))


def write_questions(path: Path, config: StarConfig, options: dict, limit: int | None, seed: int) -> str:
    """Write what to ask another model; a line that says what to do with it."""
    task = load_task(config.task, **options)
    count = write(path, questions(task, drawn(task, limit, seed)))
    return (f"{path}: {count} questions of task {config.task}; put the answers into a file of lines "
            '{"problem": ..., "text": ..., "source": ...} for train.py --candidates')


def questions(task: Task, problems: Sequence[Problem]) -> Iterator[dict]:
    """A record a problem: examples in front where the task shows some, or where it checks steps, solutions it knows."""
    shots = []
    if not task.prefix and task.gold(task.train[0]) is not None and task.check_steps(task.train[0], "") is not None:
        shots = task.train[:: max(1, len(task.train) // (SHOWN + 1))][: SHOWN + 1]
    for p in problems:
        others = [s for s in shots if s.id != p.id][:SHOWN]  # not its own
        worked = "".join(task.question(s) + (task.gold(s) or "") + task.between for s in others)
        yield {"problem": p.id, "prompt": (task.few_shot(p) or worked) + task.question(p)}


def write_rollouts(path: Path, config: StarConfig, options: dict, limit: int | None, iteration: int,
                   adapter: Path | None, **draws) -> str:
    """Sample as the run's next iteration would, and write it down; a line that says how much was right.

    draws: samples, temperature and seed. What was cut off at the length cap is left out.
    """
    alone = {name: DEFAULTS[name] for name in (*OF_OTHERS, "hint_samples", "max_per_problem", "wanted")}
    config = replace(config, rationalize=False, **alone, **draws)
    plan = make_plan(config, options, trains=False)
    refuse_old(path)
    sampler = build(plan)
    if adapter is not None:
        checkpoints.load_adapter(sampler.model, adapter)
    problems = drawn(plan.task, limit, config.seed)
    made = Rollout(sampler, plan.tokenizer, plan.task, config).complete(iteration + 1, "generate", problems)
    source = plan.model.source.path.name if adapter is None else f"{adapter.parents[1].name}-{adapter.name}"
    whole = {(g.problem, g.text.strip()): g for g in made if g.finish == "stop"}  # of equal texts one
    write(path, ({"problem": g.problem, "text": g.text.strip(), "source": source, "verdict": g.verdict}
                 for g in whole.values()))
    cut, right = sum(g.finish != "stop" for g in made), sum(g.kept for g in made)
    return (f"{path}: {len(whole)} different answers to {len(problems)} problems; of {len(made)} tries {right} are "
            f"right, {cut} were cut off and are left out. To train on them: train.py --samples 0 --iterations 1 "
            f"--candidates {path}, with the same task")


def write(path: Path, lines: Iterable[dict]) -> int:
    """Lines of a new file, whole or not at all; how many. FileExistsError for one that is there: it may hold somebody's
    answers."""
    refuse_old(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = [json.dumps(line, ensure_ascii=False) for line in lines]
    write_atomically(path, "".join(line + "\n" for line in text).encode())
    return len(text)


def refuse_old(path: Path) -> None:
    if os.path.lexists(path):  # a link that leads nowhere too
        raise FileExistsError(f"{path} exists: give the name of a new file")
