"""Two checkouts of this project on the same work, in turn: seconds of `python train.py`, and if both wrote the same.

    python tests/bench/two_trees.py OLD NEW [--rounds 3] [--same] [flags of train.py ...]

Each round runs the old tree, then the new one, in this environment, and compares metrics, generations and adapters:
"equal", or the first file that differs. Prints every run, and the ratio of the medians. Exit status 1 if files differ
and --same was given. What the trees call differently goes to one of them: --only-old="--rounds all"
--only-new="--keep all". Machines are noisy: a figure from one tree today and another tomorrow says nothing.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMPARED = ("metrics.jsonl", "samples/*.jsonl", "adapters/*/adapter_model.safetensors")


def run(tree: Path, flags: list[str], out: Path) -> tuple[float, str, dict]:
    """(wall seconds, where it ended, seconds by phase) of one `python train.py` in this tree."""
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "train.py", "--out", str(out), *flags], cwd=tree, check=False,
                          capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{tree}: exit code {done.returncode}: {done.stderr.strip().rpartition(chr(10))[2]}")
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [m for m in metrics if "accuracy" in m][-1]
    phases: dict[str, float] = {}
    for line in (out / "timings.jsonl").read_text().splitlines():
        for phase, took in json.loads(line)["seconds"].items():
            phases[phase] = phases.get(phase, 0.0) + took
    return seconds, f"{100 * measured['accuracy']['mean']:.1f} % in iteration {measured['iteration']}", phases


def difference(old: Path, new: Path) -> str | None:
    """The first file, of those that two equal runs write alike, that is not the same in both; None if all are."""
    for pattern in COMPARED:
        for name in sorted({str(p.relative_to(folder)) for folder in (old, new) for p in folder.glob(pattern)}):
            here, there = old / name, new / name
            if not (here.is_file() and there.is_file()):
                return f"{name} is in the {'old' if here.is_file() else 'new'} run only"
            if here.read_bytes() != there.read_bytes():
                return f"{name} differs"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--same", action="store_true", help="exit status 1 if the runs are not equal")
    parser.add_argument("--only-old", type=shlex.split, default=[], metavar="FLAGS")
    parser.add_argument("--only-new", type=shlex.split, default=[], metavar="FLAGS")
    args, flags = parser.parse_known_args()
    trees = {"old": (args.old, flags + args.only_old), "new": (args.new, flags + args.only_new)}
    took: dict[str, list[float]] = {"old": [], "new": []}
    differ = False
    for i in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, all_seconds in took.items():
                seconds, end, phases = run(*trees[name], Path(folder) / name)
                all_seconds.append(seconds)
                parts = ", ".join(f"{phase} {t:.1f}" for phase, t in phases.items())
                print(f"round {i + 1}, {name}: {seconds:6.1f} s, ends at {end}  ({parts})", flush=True)
            found = difference(Path(folder) / "old", Path(folder) / "new")
            differ |= found is not None
            print(f"round {i + 1}: {found or 'equal'}", flush=True)
    old, new = (statistics.median(t) for t in took.values())
    print(f"median {old:.1f} s -> {new:.1f} s: {old / new:.2f} x")
    return int(differ and args.same)


if __name__ == "__main__":
    sys.exit(main())
