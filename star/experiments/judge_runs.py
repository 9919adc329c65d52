"""The runs of train.py behind star/experiments/judge: a generator, a pool against one source, three ways to choose.

    generator   STaR from the model that ships, stopped half-way: it has something to learn, and answers to choose from
    pool_part   students of the base's own answers, and of the base's and a second model's, as many of both together
    star_part   students of a generator's answers that the verifier lets through ("correct"), of the best of these by
                the judge ("correct+reward"), of the best by the judge alone ("reward-blind")

Nobody is shown a hint in the last two: hints give away the answer, which "reward-blind" must not know, and without them
each arm samples as many answers. It is no command of its own.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import checkpoints
from star.config import StarConfig
from star.draws import seed_of
from star.problem import STUDENT
from star.rollout import Rollout
from star.run.flags import as_flags
from star.run.folder import Run, append, read_lines
from star.run.launch import TRAIN, finish
from star.run.plots import figure, save
from star.sampler import Sampler
from star.select import choose_problems
from star.tasks.arithmetic import Arithmetic

JUDGE, SECOND = checkpoints.SHIPPED.with_name("tiny-judge"), checkpoints.SHIPPED.with_name("tiny-adder-2")
ASKED, TRIES = 500, 4  # training problems that both models are asked, and how often
COMMON = {"rationalize": False, "temperature": 1.0, "max_per_problem": 1, "growth": 1.0}
POOLED = COMMON | {"problems": 300, "first_steps": 40}
CHOSEN = COMMON | {"problems": 400, "samples": TRIES, "first_steps": 60, "lr": 2e-3, "digits": "4-5"}
SELECTIONS = ("correct", "correct+reward", "reward-blind")

Metrics = dict[tuple[str, int], list[dict]]  # (arm, seed) -> a run's metrics.jsonl


def generator(out: Path, seed: int, iterations: int) -> tuple[int, Path]:
    """(exit code, folder) of a run that stops after a few iterations; not run again when it is finished."""
    folder = out / f"generator-{iterations}-{seed}"
    return finish(TRAIN, folder, ["--iterations", str(iterations), "--seed", str(seed)], ["--show", "0"]), folder


def merged(run: Run, iteration: int, folder: Path) -> Path:
    """A run's model as a folder that train.py --model takes."""
    if not (folder / "model.safetensors").is_file():
        model = checkpoints.load_model(run.config.model or checkpoints.SHIPPED)
        checkpoints.load_adapter(model, run.adapter(iteration))
        checkpoints.export_merged(model, folder)
    return folder


def run_arms(out: Path, arms: dict[str, dict], seeds: Sequence[int]) -> tuple[int, Metrics]:
    """(exit code, metrics) of a run of train.py for each arm and seed, in folders ARM-SEED; 0 if all have ended.

    arms: name -> its settings and its task's options, as read_flags names them.
    """
    metrics = {}
    for seed in seeds:
        for arm, settings in arms.items():
            folder = out / f"{arm}-{seed}"
            if code := finish(TRAIN, folder, as_flags(settings | {"seed": seed}), ["--show", "0"]):
                return code, metrics  # it has said why
            metrics[arm, seed] = read_lines(folder / "metrics.jsonl")
    return 0, metrics


def arms_table(metrics: Metrics) -> list[str]:
    """Markdown: held-out accuracy of each arm and seed by iteration, what was sampled, how far a judge agreed."""
    n = max(r["iteration"] for records in metrics.values() for r in records)
    columns = ["arm", "seed", "base", *(f"iteration {i}" for i in range(1, n + 1)), "tokens sampled"]
    aucs = {key: ", ".join(f"{r['judge']['auc'][0]:.3f}" for r in records if r.get("judge", {}).get("auc"))
            for key, records in metrics.items()}
    judged = any(aucs.values())
    columns += ["AUC of the judge"] * judged
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    arms = list(dict.fromkeys(arm for arm, _ in metrics))
    for arm, seed in sorted(metrics, key=lambda key: arms.index(key[0])):  # an arm's seeds stand together
        records = metrics[arm, seed]
        cells = [percent(r["accuracy"]["mean"], *r["interval"]["mean"]) for r in records]
        cells += [f"{sum(sampled(records)):,}", *[aucs[arm, seed]] * judged]
        lines.append(f"| {arm} | {seed} | {' | '.join(cells)} |")
    return lines


def percent(share: float, low: float, high: float) -> str:
    """ "84.0 (78.3-88.4)": a share and the ends of its interval."""
    return f"{100 * share:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def sampled(records: Sequence[dict]) -> list[int]:
    """Tokens sampled in each iteration; the base's evaluation samples none to learn from."""
    return [r.get("new_tokens", 0) for r in records]


def draw_arms(path: Path, metrics: Metrics) -> None:
    """Held-out accuracy over the tokens sampled: the mean of each arm's seeds, and their range."""
    drawing = figure(7)
    axes = drawing.subplots()
    for i, arm in enumerate(dict.fromkeys(arm for arm, _ in metrics)):
        runs = [records for (name, _), records in metrics.items() if name == arm]
        tokens = [[sum(sampled(r)[: n + 1]) / 1000 for n in range(len(r))] for r in runs]
        values = [[100 * r["accuracy"]["mean"] for r in records] for records in runs]
        places, mean = ([sum(v) / len(v) for v in zip(*rows, strict=True)] for rows in (tokens, values))
        axes.plot(places, mean, marker="o", markersize=4, color=f"C{i}", label=arm)
        low, high = ([f(v) for v in zip(*values, strict=True)] for f in (min, max))
        axes.fill_between(places, low, high, color=f"C{i}", alpha=0.15, linewidth=0)
    axes.set(title=f"mean and range of {len(runs)} seeds", xlabel="thousand tokens sampled to learn from",
             ylabel="held-out accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    save(drawing, path)


def report(out: Path, part: str, metrics: Metrics, more: Sequence[str] = ()) -> None:
    """Print an experiment's table, keep its figures, draw its picture."""
    print("\nheld-out accuracy, % (95 %)\n" + "\n".join([*arms_table(metrics), *more]), flush=True)
    known = read_lines(out / "results.jsonl")
    lines = [{"part": part, "arm": arm, "seed": seed, "metrics": records} for (arm, seed), records in metrics.items()]
    append(out / "results.jsonl", [line for line in lines if line not in known])
    try:
        draw_arms(out / f"{part}.png", metrics)
    except ImportError as e:
        print(f"note: {e}", file=sys.stderr)


def solved(folder: Path, samples: int, seed: int, tries: Sequence[int]) -> list[set[str]]:
    """Which of ASKED training problems this model solves in its first 1, 2, ... `tries` of `samples` answers."""
    model, tokenizer = checkpoints.load_model(folder), checkpoints.load_tokenizer(folder)
    task = Arithmetic(range(1, 6))
    problems = choose_problems(task.train, ASKED, seed_of("asked"))
    config = StarConfig(samples=samples, temperature=1.0, seed=seed)
    rollout = Rollout(Sampler(model, 512, 20 + task.max_new_tokens, tokenizer), tokenizer, task, config)
    made = rollout.complete(1, "generate", problems)
    return [{g.problem for g in made if g.kept and g.sample < n} for n in tries]


def coverage(out: Path, seed: int) -> list[str]:
    """How many training problems each model solves alone and both together, measured once."""
    key = {"part": "coverage", "seed": seed, "problems": ASKED, "tries": TRIES}
    done = [r for r in read_lines(out / "results.jsonl") if key.items() <= r.items()]
    if not done:
        (one, one_twice), (other, other_twice) = (
            solved(folder, 2 * TRIES, seed + i, (TRIES, 2 * TRIES)) for i, folder in
            enumerate((checkpoints.SHIPPED, SECOND)))
        done = [key | {"solved": {
            f"{checkpoints.SHIPPED.name}, {TRIES} tries": len(one), f"{SECOND.name}, {TRIES} tries": len(other),
            f"either, {TRIES} tries each": len(one | other), f"{checkpoints.SHIPPED.name}, {2 * TRIES} tries":
            len(one_twice), f"{SECOND.name}, {2 * TRIES} tries": len(other_twice)}}]
        append(out / "results.jsonl", done)
    return [f"of {ASKED} training problems are solved by {who}: {n} ({n / ASKED:.1%})"
            for who, n in done[-1]["solved"].items()]


def solved_by_source(run: Path, iteration: int) -> dict[str, set[str]]:
    """source -> problems that it had right in this iteration, without a hint."""
    found: dict[str, set[str]] = {}
    for r in read_lines(run / "samples" / f"iter-{iteration:03d}.jsonl"):
        if r["phase"] == "generate":
            found.setdefault(r.get("source", STUDENT), set()).update([r["problem"]] * (r["verdict"] == "right"))
    return found


def pool_part(out: Path, seeds: Sequence[int], iterations: int) -> int:
    """One source against the pool. Exit code of a run that failed, else 0."""
    print("\n" + "\n".join(coverage(out, seeds[0])), flush=True)
    given = POOLED | {"iterations": iterations}
    code, metrics = run_arms(out / "pool", {
        "own": given | {"samples": 2 * TRIES},
        "pool": given | {"samples": TRIES, "generators": str(SECOND)}}, seeds)
    if code:
        return code
    lines = ["", "| solved of the training problems | seed | " + " | ".join(
        f"iteration {n}" for n in range(1, iterations + 1)) + " |", "|---" * (2 + iterations) + "|"]
    for seed in seeds:
        by = [solved_by_source(out / "pool" / f"pool-{seed}", n) for n in range(1, iterations + 1)]
        rows = {f"{source} alone": [len(b[source]) for b in by] for source in by[0]}
        rows |= {"the pool": [len(set().union(*b.values())) for b in by]}
        lines += [f"| {who} | {seed} | {' | '.join(map(str, counts))} |" for who, counts in rows.items()]
    report(out, "pool", metrics, lines)
    return 0


def star_part(out: Path, seeds: Sequence[int], iterations: int, judge: Path) -> int:
    """STaR by verifier, by both, by the judge alone, each seed from its own generator. Exit code as above."""
    metrics: Metrics = {}
    for seed in seeds:
        code, folder = generator(out, seed, iterations)
        if code:
            return code
        base = merged(Run.open(folder), iterations, out / f"generator-{iterations}-{seed}-merged")
        given = CHOSEN | {"iterations": iterations, "model": str(base)}
        code, found = run_arms(out / "star", {
            name: given | {"select": name} | ({} if name == "correct" else {"reward": str(judge)})
            for name in SELECTIONS}, [seed])
        if code:
            return code
        metrics |= found
    report(out, "star", metrics)
    return 0
