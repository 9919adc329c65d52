"""The paper's experiment: STaR with and without rationalization on n-digit addition (figure 4), over several seeds.

    python -m star.experiments.addition --out runs/addition

Runs `python train.py` for each seed with and without hints, each in a folder of its own below --out; what is finished
is not run again, what was stopped goes on. Then it draws both curves with their spread, prints the table, and asks the
final models 1,000 fresh sums a length, which nothing has ever seen, and 1,000 of one digit more than was trained on.
Flags that are not its own go to train.py.
"""

import argparse
import random
import sys
from pathlib import Path

import checkpoints
import train
from checkpoints.files import read_json
from star.config import StarConfig
from star.evaluate import accuracy, verdict
from star.problem import Generation, Problem
from star.run import Run, read_lines
from star.sampler import Sampler
from star.tasks.arithmetic import Arithmetic, make, split

ARMS = {"with": "failure", "without": "off"}  # rationalization -> --hint
FRESH = 1000  # sums a length in the final check


def run_all(out: Path, seeds: list[int], flags: list[str]) -> tuple[int, dict[tuple[str, int], list[dict]]]:
    """(exit code, (arm, seed) -> metrics, a record an iteration). A run that fails has said why."""
    metrics = {}
    for seed in seeds:
        for arm, hint in ARMS.items():
            folder = out / f"{arm}-{seed}"
            state = folder / "state.json"
            if not (state.is_file() and read_json(state).get("finished") is True):
                started = ["--resume", str(folder)] if state.is_file() else [
                    "--out", str(folder), "--hint", hint, "--seed", str(seed), *flags]
                print(f"\n{arm} rationalization, seed {seed}: python train.py {' '.join(started)}", flush=True)
                code = train.main(started)
                if code:
                    return code, metrics
            metrics[arm, seed] = read_lines(folder / "metrics.jsonl")
    return 0, metrics


def table(metrics: dict[tuple[str, int], list[dict]], seeds: list[int]) -> list[str]:
    """Mean held-out accuracy by iteration, each seed of each arm, as lines of a markdown table."""
    rows = ["| iteration | " + " | ".join(f"{arm}, seed {s}" for arm in ARMS for s in seeds) + " |",
            "|---" * (1 + len(metrics)) + "|"]
    for records in zip(*(metrics[arm, s] for arm in ARMS for s in seeds), strict=True):
        cells = [f"{100 * r['accuracy']['mean']:.1f}" for r in records]
        rows.append(f"| {records[0]['iteration']} | " + " | ".join(cells) + " |")
    return rows


def draw(path: Path, metrics: dict[tuple[str, int], list[dict]], seeds: list[int]) -> None:
    """Three panels: both arms' mean with the spread over seeds, and each arm by length. Raises ImportError."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ImportError("the picture needs matplotlib: pip install 'star-from-scratch[plot]'") from None
    figure = Figure(figsize=(15, 4), layout="constrained")
    whole, *by_length = figure.subplots(1, 3)
    iterations = [r["iteration"] for r in metrics["with", seeds[0]]]

    def curve(axes, arm: str, group: str, label: str, **style) -> None:
        values = [[100 * r["accuracy"][group] for r in metrics[arm, s]] for s in seeds]
        low, high = [min(v) for v in zip(*values, strict=True)], [max(v) for v in zip(*values, strict=True)]
        (line,) = axes.plot(iterations, [sum(v) / len(v) for v in zip(*values, strict=True)], label=label, **style)
        axes.fill_between(iterations, low, high, alpha=0.2, color=line.get_color(), linewidth=0)

    for arm, style in zip(ARMS, ({"color": "C0"}, {"color": "C3", "linestyle": "--"}), strict=True):
        curve(whole, arm, "mean", f"{arm} rationalization", linewidth=2.5, **style)
    whole.set_title("mean over all lengths")
    for axes, arm in zip(by_length, ARMS, strict=True):
        for group in (g for g in metrics[arm, seeds[0]][0]["accuracy"] if g != "mean"):
            curve(axes, arm, group, group, marker="o", markersize=3)
        axes.set_title(f"{arm} rationalization, by length")
    for axes in (whole, *by_length):
        axes.set(xlabel="iteration", ylabel="held-out accuracy, %", ylim=(-3, 103), xticks=iterations)
        axes.legend(fontsize="small", loc="lower right")
    figure.savefig(path, dpi=110)


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
    settings = read_json(folder / "config.json")["settings"]
    config = StarConfig(**settings)
    model = checkpoints.load_model(config.model or checkpoints.SHIPPED)
    tokenizer = checkpoints.load_tokenizer(model.source.path)
    if iteration:
        checkpoints.load_adapter(model, Run(folder, config).adapter(iteration))
    task, problems = Arithmetic(range(1, 7)), [p for n in range(3, 7) for p in fresh(n)]
    cap = task.max_new_tokens
    outs = Sampler(model, 256, 20 + cap, tokenizer).generate(
        [tokenizer.encode(task.question(p)) for p in problems], max_new_tokens=cap, stop_ids=tokenizer.eos_ids)
    judged = []
    for p, out in zip(problems, outs, strict=True):
        text = tokenizer.decode(list(out.tokens))
        said = verdict(task, p, text, out.finish, hinted=False)
        judged.append(Generation(iteration, "check", p.id, 0, 0, out.tokens, text, out.finish, 0.0, None, said, None))
    return accuracy(problems, judged)


def main(argv: list[str] | None = None) -> int:
    parser = train.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("runs/addition"), help="folder of the runs [runs/addition]")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="loop seeds [0 1 2]")
    try:
        args, flags = parser.parse_known_args(argv)
        taken = {"--resume", "--hint", "--seed", "--task", "--digits"} & {f.partition("=")[0] for f in flags}
        if taken:
            raise ValueError(f"{', '.join(sorted(taken))}: this experiment sets it itself")
        code, metrics = run_all(args.out, args.seeds, flags)
        if code:
            return code
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
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
