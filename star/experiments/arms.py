"""The paper's table (its tables 1 and 2): STaR beside the baselines it must beat, on the same problems and grading.

    python -m star.experiments.arms --task gsm8k --data DIR --model checkpoints/smollm2-135m --preset quick

    direct      few-shot, answers only            answers   fine-tuned on the answers alone
    few-shot    few-shot with rationales          gold      fine-tuned on human rationales, where the data has some
    without     STaR without rationalization      with      STaR

Each arm is a run of train.py or star.experiments.baseline in a folder below --out; what is finished is not run again,
what was stopped goes on. The fine-tuned arms train for as many steps as STaR's last iteration. Both shares in the table
are of the problems drawn. All other flags are train.py's.
"""

import sys
from pathlib import Path

from star.config import OF_OTHERS, StarConfig
from star.run.flags import as_flags, command, read_flags, without
from star.run.folder import read_lines
from star.run.launch import BASELINE, TRAIN, finish
from star.tasks import short_name

ARMS = {  # arm -> (the run that it is read from, is it that run's base, its name in the table)
    "direct": ("answers", True, "few-shot, direct"), "few-shot": ("with", True, "few-shot, rationales"),
    "answers": ("answers", False, "fine-tuned on answers"), "gold": ("gold", False, "fine-tuned on human rationales"),
    "without": ("without", False, "STaR without rationalization"), "with": ("with", False, "STaR"),
}
SAMPLED = ("samples", "top_k", "top_p", "wanted", "keep", "max_per_problem", "dedup", "hint_samples", "rationalize",
           *OF_OTHERS)  # settings of rationales that were not given


def settings(run: str, given: dict) -> dict:
    """The settings of a run, from those that all arms share."""
    if run == "with":
        return given | {"rationalize": True}
    if run == "without":
        given = {k: v for k, v in given.items() if k != "hint_samples"} | {"rationalize": False}
        most = given.get("max_per_problem")
        if most and given.get("keep", "last") == "last" and most > given.get("samples", 1):
            given.pop("max_per_problem")  # it was meant for the hinted ones
        return given
    config = StarConfig(**given)
    once = {k: v for k, v in given.items() if k not in SAMPLED} | {"iterations": 1}
    if config.epochs:
        return once
    return once | {"first_steps": max(1, config.steps(max(1, config.iterations), 0)), "growth": 1.0}


def run_one(run: str, folder: Path, flags: list[str], more: list[str]) -> str | None:
    """Run or finish a run; None, or why it has no result (nothing solved: its base's line still stands)."""
    baseline = run in ("answers", "gold")
    code = finish(BASELINE if baseline else TRAIN, folder, ["--learn", run, *flags] if baseline else flags, more)
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
    verdicts = " ".join(f"{m['said'][v]} {v}," for v in ("wrong", "unparsed", "length")).rstrip(",")
    used, hinted = ("0", "") if best == 0 else ("100", "")
    if "solved" in m:
        used, hinted = (f"{100 * m[key] / m['problems']:.1f}" for key in ("solved", "rationalized_problems"))
    accuracy = f"{100 * m['accuracy']['mean']:.1f} ({100 * low:.1f}-{100 * high:.1f}), {verdicts}"
    return f"| {name}{f', iteration {best}' if 'solved' in m else ''} | {accuracy} | {used} | {hinted} |"


@command
def main(argv: list[str]) -> None:
    without(argv, "learn", "rationalize", "resume", "check")
    flags, own = read_flags(argv, __doc__, lambda parser: parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), metavar="ARM", help=f"of {', '.join(ARMS)} [all]"))
    config = StarConfig(**flags.settings)
    out = flags.out or Path("runs") / f"arms-{short_name(config.task)}"
    more = ["--show", str(flags.show), *as_flags({"price_per_hour": flags.price_per_hour})]
    outcome, folders = {}, {}
    for run in dict.fromkeys(ARMS[arm][0] for arm in own.arms):
        only_base = all(ARMS[arm][1] for arm in own.arms if ARMS[arm][0] == run)
        chosen, folders[run] = settings(run, flags.settings), out / run
        if only_base and not (out / run / "metrics.jsonl").is_file():
            chosen = {k: v for k, v in chosen.items() if k not in ("validation", "patience", "heldout_when")}
            chosen, folders[run] = chosen | {"iterations": 0}, out / f"{run}-base"
        outcome[run] = run_one(run, folders[run], as_flags(chosen | flags.options), more)
    print("\n| arm | held-out accuracy, % (95 %) | problems trained on, % | only with the hint, % |")
    print("|---|---|---|---|")
    print("\n".join(row(arm, folders[ARMS[arm][0]], outcome[ARMS[arm][0]]) for arm in own.arms))


if __name__ == "__main__":
    sys.exit(main())
