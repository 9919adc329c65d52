"""Coin flips on a real model: what a filter that reads answers lets through, and what a judge of steps catches.

    python -m star.experiments.judge --task coin_flip --model checkpoints/smollm2-135m --data DIR --seeds 0 1

With two answers half of all wrong rationales arrive at the right one. Three arms learn from the same base: `correct`
from all of these (STaR), `correct+steps` from those whose steps the task finds right, `correct+reward` from those that
a judge rates well. The judge is the base with a head: of other coins it has seen the right rationale beside the base's
own with the right answer and wrong steps, and beside two with a planted error. (Rated one by one it learns to tell by
the answer, since the base hardly ever says "yes".) Part of star/experiments/judge; what has ended is not run again.
"""

import json
import random
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from checkpoints.files import read_json, write_json
from star.config import DEFAULTS, StarConfig
from star.experiments.judge_runs import Metrics, percent, run_arms
from star.problem import Generation
from star.rollout import Rollout
from star.run.folder import append, generation, read_lines
from star.run.launch import call
from star.run.others import loaded, plan_judge
from star.run.plan import build, make_plan
from star.tasks import load_task

JUDGED, TRIES = 140, 2  # coins that the judge learns from, and rationales of each
RUN = {  # of each arm; few and short, since a real model takes its time on two cores
    "task": "coin_flip", "problems": 192, "samples": 4, "temperature": 0.5, "rationalize": False,
    "few_shot_sample": "base", "first_steps": 16, "growth": 1.25, "batch_size": 8, "warmup": 3, "lr": 1e-3,
    "max_per_problem": 1, "slots": 128,
}
ENOUGH = 100  # rationales to train on, after which an arm that needs no judge samples no more
JUDGE = ["--labels", "steps", "--steps", "64", "--batch-size", "8", "--lr", "1e-3", "--heldout", "0.15"]
TOLD = 40  # pairs that the judge's threshold is taken from
ARMS = {"correct+steps": {"wanted": ENOUGH}, "correct": {"wanted": ENOUGH}, "correct+reward": {
    "reward_threshold": None}}  # in this order: the first samples most from the base, which the others take over


def run(out: Path, model: Path | None, data: Path | None, seeds: Sequence[int], iterations: int) -> int:
    """The whole part; 0, or the exit code of a run that failed."""
    if model is None or data is None:
        raise ValueError("--task coin_flip needs --model, a real language model's folder (python -m checkpoints.fetch "
                         "smollm2-135m), and --data, the folder with coin_flip.json")
    out.mkdir(parents=True, exist_ok=True)
    coins = split(data, out)
    if code := train_judge(out, model, coins["judge"]):
        return code
    given = RUN | {"model": str(model), "data": str(coins["run"]), "iterations": iterations}
    metrics: Metrics = {}
    for seed in seeds:
        first = None
        for arm, more in ARMS.items():
            if arm == "correct+reward":
                more = {"reward": str(out / "judge"), "reward_threshold": threshold(out)}
            if first is not None:
                share(first, out / f"{arm}-{seed}", more | {"select": arm})
            code, found = run_arms(out, {arm: given | more | {"select": arm}}, [seed])
            metrics |= found
            if code:
                break
            first = first or out / f"{arm}-{seed}"
    print("\n" + "\n".join(table(out, metrics)), flush=True)
    return code


def share(first: Path, folder: Path, settings: dict) -> None:
    """Begin a run where another of the same seed stood when it had sampled from the base: both have that in common.

    A draw is a function of seed, problem and sample, so that the run would have made the same rationales itself.
    """
    if folder.exists():
        return
    (folder / "samples").mkdir(parents=True)
    (folder / "adapters").mkdir()
    config = read_json(first / "config.json")
    dropped = {name: DEFAULTS[name] for more in ARMS.values() for name in more}
    write_json(folder / "config.json", config | {"settings": config["settings"] | dropped | settings})
    for name in ("metrics.jsonl", "timings.jsonl"):
        append(folder / name, [r for r in read_lines(first / name) if r["iteration"] == 0])
    for n in (0, 1):
        lines = read_lines(first / "samples" / f"iter-{n:03d}.jsonl")
        append(folder / "samples" / f"iter-{n:03d}.jsonl", [r for r in lines if n == 0 or r["phase"] == "generate"])
    write_json(folder / "state.json", {"iteration": 0, "finished": False})


def split(data: Path, out: Path) -> dict[str, Path]:
    """ "judge" and "run" -> a file of coins each; none is in both, and in the second are those held out."""
    task = load_task("coin_flip", data=data)
    problems = [*task.train, *task.heldout]
    if len(problems) < 2 * JUDGED:
        raise ValueError(f"{data} has {len(problems)} coins; the judge takes {JUDGED}, and the runs need as many more")
    random.Random("judge").shuffle(problems)
    files = {}
    for name, part in (("judge", problems[:JUDGED]), ("run", problems[JUDGED:])):
        files[name] = out / name / "coin_flip.jsonl" if name == "run" else out / "coins-of-the-judge.jsonl"
        files[name].parent.mkdir(exist_ok=True)
        files[name].write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in part))
    return files


def train_judge(out: Path, model: Path, coins: Path) -> int:
    """A judge that learned from pairs: the right rationale of each coin, and wrong ones of the same coin."""
    pairs = out / "pairs.jsonl"
    if not pairs.is_file():
        print(f"\n{TRIES} rationales for each of the judge's {JUDGED} coins", flush=True)
        config = StarConfig(**{k: v for k, v in RUN.items() if k in ("task", "temperature", "rationalize", "slots")},
                            model=str(model), samples=TRIES, heldout_problems=1)
        plan = make_plan(config, {"data": coins})
        task, problems = plan.task, [*plan.task.train, *plan.task.heldout]
        made = Rollout(build(plan), plan.tokenizer, task, config).complete(1, "generate", problems)
        print(f"of {len(made)} rationales {sum(g.kept for g in made)} have the right answer, "
              f"{sum(g.steps_right is True for g in made)} right steps", flush=True)
        rng, lines = random.Random("errors"), []
        for p in problems:
            wrong = [spoiled(task.gold(p), rng) for _ in range(2)]
            wrong += sorted({g.text.rstrip() for g in made if g.problem == p.id and g.kept and not g.steps_right})
            lines += [{"prompt": task.question(p), "chosen": task.gold(p), "rejected": text} for text in wrong]
        append(pairs, lines)
    if (out / "judge" / "config.json").is_file():
        return 0
    return call(["-m", "star.experiments.train_judge", "--base", str(model), "--data", str(pairs), "--out",
                 str(out / "judge"), *JUDGE])


def threshold(out: Path) -> float:
    """What nine of ten right rationales get from the judge, of some of its own coins."""
    config, device = StarConfig(reward=str(out / "judge")), torch.device("cpu")
    judge = loaded(plan_judge(out / "judge", config, device), config, device)
    pairs = random.Random("threshold").sample(read_lines(out / "pairs.jsonl"), TOLD)
    scores = sorted(judge.total(scores) for scores in judge.rate([(p["prompt"], p["chosen"]) for p in pairs]))
    return round(scores[len(scores) // 10], 4)


def spoiled(text: str, rng: random.Random) -> str:
    """A right rationale with an error that leaves its answer: a person left out, or a state turned."""
    sentences = text.strip().removesuffix(".").split(". ")
    at = rng.randrange(1, len(sentences) - 2)  # one of the people; the first and the last two are not
    if rng.random() < 0.5:
        del sentences[at]
    else:
        sentences[at] = re.sub("heads|tails", lambda m: "tails" if m[0] == "heads" else "heads", sentences[at])
    return f" {'. '.join(sentences)}."


def heldout(folder: Path, iteration: int) -> list[Generation]:
    lines = read_lines(folder / "samples" / f"iter-{iteration:03d}.jsonl")
    return [generation(r) for r in lines if r["phase"] == "evaluate"]


def table(out: Path, metrics: Metrics) -> list[str]:
    """Markdown, a line an arm, seed and iteration: how many held-out answers are right, with right steps, which are
    said, and how many rationales were trained on."""
    lines = ["| arm | seed | iteration | right, % (95 %) | right steps, % | says yes, no, else | trained on |",
             "|---|---|---|---|---|---|---|"]
    for (arm, seed), rows in metrics.items():
        for m in rows:
            judged = heldout(out / f"{arm}-{seed}", m["iteration"])
            said = [sum((g.answer or "").lower() == word for g in judged) for word in ("yes", "no")]
            steps = sum(g.steps_right is True for g in judged) / max(len(judged), 1)
            source = m.get("sources", {}).get("student", {})
            learned = f"{m['examples']}" if m["iteration"] else ""
            learned += f" of {source['kept']} let through" if source else ""
            share = percent(m["accuracy"]["mean"], *m["interval"]["mean"])
            lines.append(f"| {arm} | {seed} | {m['iteration']} | {share} | {100 * steps:.1f} | {said[0]}, {said[1]}, "
                         f"{len(judged) - sum(said)} | {learned} |")
    return lines
