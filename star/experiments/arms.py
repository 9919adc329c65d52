"""The paper's table (its tables 1 and 2): STaR beside the baselines it must beat, on the same problems and grading.

    python -m star.experiments.arms --task gsm8k --data DIR --model checkpoints/smollm2-135m --preset quick

    direct      few-shot, answers only            answers   fine-tuned on the answers alone
    few-shot    few-shot with rationales          gold      fine-tuned on human rationales, where the data has some
    without     STaR without rationalization      with      STaR

Each arm is a run of train.py in a folder below --out; what is finished is not run again, what was stopped goes on. The
fine-tuned arms train once, on the problems of one iteration, for as many steps as STaR's last. Both shares in the table
are of the problems drawn. All other flags are train.py's.
"""

import sys
from dataclasses import fields
from pathlib import Path

import train
from checkpoints.files import read_json
from star.config import StarConfig
from star.run import read_lines

ARMS = {  # arm -> (the run that it is read from, is it that run's base, its name in the table)
    "direct": ("answers", True, "few-shot, direct"), "few-shot": ("with", True, "few-shot, rationales"),
    "answers": ("answers", False, "fine-tuned on answers"), "gold": ("gold", False, "fine-tuned on human rationales"),
    "without": ("without", False, "STaR without rationalization"), "with": ("with", False, "STaR"),
}
SAMPLED = ("samples", "temperature", "top_k", "top_p", "wanted", "rounds", "cap", "dedup")  # settings of own rationales
HINTED = ("hint_share", "hint_samples", "hint_temperature", "hint_top_k", "hint_top_p")


def settings(run: str, given: dict) -> dict:
    """The settings of a run of train.py, from those that all arms share."""
    if run == "with":
        return given | {"hint": "failure"}
    given = {k: v for k, v in given.items() if k not in HINTED}
    if run == "without":
        if given.get("cap", 0) > given.get("samples", 1) and given.get("rounds", "last") == "last":
            given.pop("cap")  # it was meant for the hinted ones
        return given | {"hint": "off"}
    config = StarConfig(**given)
    once = {k: v for k, v in given.items() if k not in SAMPLED} | {"learn": run, "iterations": 1}
    if config.epochs:
        return once
    return once | {"first_steps": max(1, config.steps(max(1, config.iterations), 0)), "growth": 1.0}


def command(given: dict) -> list[str]:
    """Settings as flags."""
    flags = {f.name: "--" + f.name.replace("_", "-") for f in fields(StarConfig)}
    return [part for k, v in given.items() if v is not None and v is not False
            for part in ([flags[k]] if v is True else [flags[k], str(v)])]


def run_one(folder: Path, given: dict, extra: list[str]) -> str | None:
    """Run or finish a run; None, or why it has no result (nothing solved: its base's line still stands)."""
    state = folder / "state.json"
    if state.is_file() and read_json(state).get("finished") is True:
        return None
    started = ["--resume", str(folder)] if state.is_file() else ["--out", str(folder), *command(given)]
    print(f"\n{folder.name}: python train.py {' '.join([*started, *extra])}", flush=True)
    code = train.main([*started, *extra])
    if code == 130:
        raise KeyboardInterrupt
    if code == 0:
        return None
    return "nothing to train on" if (folder / "metrics.jsonl").is_file() else "refused, see above"


def row(arm: str, folder: Path, why: str | None) -> str:
    """A line of the table, or why there is none."""
    _, base, name = ARMS[arm]
    metrics = read_lines(folder / "metrics.jsonl")
    if not metrics or (why and not base):
        return f"| {name} | {why or 'no result'} | | |"
    best = 0 if base else metrics[-1].get("best", metrics[-1]["iteration"])
    m = metrics[best]
    low, high = m["interval"]["mean"]
    said = " ".join(f"{m['said'][v]} {v}," for v in ("wrong", "unparsed", "length")).rstrip(",")
    used, hinted = ("0", "") if best == 0 else ("100", "")
    if "solved" in m:
        used, hinted = (f"{100 * m[key] / m['problems']:.1f}" for key in ("solved", "rationalized_problems"))
    accuracy = f"{100 * m['accuracy']['mean']:.1f} ({100 * low:.1f}-{100 * high:.1f}), {said}"
    return f"| {name}{f', iteration {best}' if 'solved' in m else ''} | {accuracy} | {used} | {hinted} |"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        own = train.Parser(description=__doc__, add_help=False, allow_abbrev=False)
        own.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM")
        own.add_argument("-h", "--help", action="store_true")
        args, rest = own.parse_known_args(argv)
        if args.help:
            print(f"{__doc__}\n--arms {' '.join(ARMS)}: those to run [all]")
            return 0
        given, flags = train.read_flags(rest)
        if flags.resume or flags.check or {"--learn", "--hint"} & {flag.partition("=")[0] for flag in rest}:
            raise ValueError("--resume, --check, --learn and --hint are the arms' own: leave them out")
        StarConfig(**given)
        out = flags.out or Path("runs") / f"arms-{given.get('task', 'arithmetic')}"
        runs = [*dict.fromkeys(ARMS[arm][0] for arm in args.arms)]
        extra = ["--show", str(flags.show)]
        extra += [] if flags.price_per_hour is None else ["--price-per-hour", str(flags.price_per_hour)]
        outcome, folders = {}, {}
        for run in runs:
            only_base = all(ARMS[arm][1] for arm in args.arms if ARMS[arm][0] == run)
            chosen, folders[run] = settings(run, given), out / run
            if only_base and not (out / run / "metrics.jsonl").is_file():
                chosen = {k: v for k, v in chosen.items() if k not in ("validation", "patience", "heldout_when")}
                chosen, folders[run] = chosen | {"iterations": 0}, out / f"{run}-base"
            outcome[run] = run_one(folders[run], chosen, extra)
        lines = [row(arm, folders[ARMS[arm][0]], outcome[ARMS[arm][0]]) for arm in args.arms]
        print("\n| arm | held-out accuracy, % (95 %) | problems trained on, % | only with the hint, % |")
        print("|---|---|---|---|")
        print("\n".join(lines))
        return 0
    except KeyboardInterrupt:
        print("stopped; the same command goes on", file=sys.stderr)
        return 130
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
