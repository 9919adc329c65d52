"""The paper's experiment: STaR with and without rationalization on n-digit addition (figure 4), over several seeds.

    python -m star.experiments.addition --out runs/addition

Runs `python train.py` for each seed with and without hints, each in a folder of its own below --out; what is finished
is not run again, what was stopped goes on. Then it draws both curves with their range, prints the table, and asks the
final models 1,000 fresh sums a length, which nothing has ever seen, and 1,000 of one digit more than was trained on.
Flags that are not its own go to train.py.
"""

import random
import sys
from pathlib import Path

import checkpoints
from star.config import StarConfig
from star.evaluate import accuracy
from star.problem import Problem
from star.rollout import Rollout
from star.run.flags import Parser, command, read_flags, without
from star.run.folder import Run, read_lines
from star.run.launch import TRAIN, finish
from star.run.plots import arms as draw
from star.sampler import Sampler
from star.tasks.arithmetic import Arithmetic, make, split

ARMS = {"with": ["--rationalize"], "without": ["--no-rationalize"]}
FRESH = 1000  # sums a length in the final check


def table(metrics: dict[tuple[str, int], list[dict]], seeds: list[int]) -> list[str]:
    """Mean held-out accuracy by iteration, each seed of each arm, as lines of a markdown table."""
    rows = ["| iteration | " + " | ".join(f"{arm}, seed {s}" for arm in ARMS for s in seeds) + " |",
            "|---" * (1 + len(metrics)) + "|"]
    for records in zip(*(metrics[arm, s] for arm in ARMS for s in seeds), strict=True):
        cells = [f"{100 * r['accuracy']['mean']:.1f}" for r in records]
        rows.append(f"| {records[0]['iteration']} | " + " | ".join(cells) + " |")
    return rows


def fresh(n: int) -> list[Problem]:
    """Sums of two n-digit numbers outside the train and held-out sets of every run."""
    known = {p.id for part in split(n) for p in part}
    rng, drawn = random.Random(f"fresh-{n}"), {}
    while len(drawn) < FRESH:
        p = make(*(str(rng.randrange(10 ** (n - 1), 10**n)) for _ in "ab"))
        if p.id not in known:
            drawn[p.id] = p
    return list(drawn.values())


def check(folder: Path, iteration: int) -> dict[str, float]:
    """Accuracy of a run's model on fresh sums of 3 digits (there are none of 1 and 2) to one more than trained on."""
    run = Run.open(folder)
    model = checkpoints.load_model(run.config.model or checkpoints.SHIPPED)
    tokenizer = checkpoints.load_tokenizer(model.source.path)
    if iteration:
        checkpoints.load_adapter(model, run.adapter(iteration))
    task, problems = Arithmetic(range(1, 7)), [p for n in range(3, 7) for p in fresh(n)]
    sampler = Sampler(model, 256, 20 + task.max_new_tokens, tokenizer)
    judged = Rollout(sampler, tokenizer, task, StarConfig()).complete(iteration, "evaluate", problems)
    return accuracy(problems, judged)


@command
def main(argv: list[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/addition"), help="folder of the runs [runs/addition]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="loop seeds [0 1 2]")
    args, flags = parser.parse_known_args(argv)
    without(flags, "resume", "rationalize", "seed", "task", "digits", "heldout-when", "patience")
    flags = ["--task", "arithmetic", "--digits", "1-5", "--heldout-when", "each", *flags]  # before a preset's
    if "patience" in read_flags(flags, "")[0].settings:
        raise ValueError("the preset stops its runs by patience, but all of them must be as long: take another")
    metrics = {}
    for seed in args.seeds:
        for arm, switch in ARMS.items():
            folder = args.out / f"{arm}-{seed}"
            if code := finish(TRAIN, folder, [*switch, "--seed", str(seed), *flags]):
                return code  # it has said why
            metrics[arm, seed] = read_lines(folder / "metrics.jsonl")
    print("\nmean held-out accuracy, %\n" + "\n".join(table(metrics, args.seeds)))
    last = metrics["with", args.seeds[0]][-1]["iteration"]
    print(f"\n{FRESH} fresh sums a length, right, %")
    final = [(f"{arm}, seed {s}", f"{arm}-{s}", last) for arm in ARMS for s in args.seeds]
    for name, folder, iteration in (("base", f"with-{args.seeds[0]}", 0), *final):
        shares = check(args.out / folder, iteration)
        print(f"{name:16}" + "".join(f"  {g} {100 * v:5.1f}" for g, v in shares.items() if g != "mean"), flush=True)
    draw(args.out / "curves.png", metrics, args.seeds)
    print(f"\ncurves  {args.out / 'curves.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
