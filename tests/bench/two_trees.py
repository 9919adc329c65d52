"""Two checkouts of this project on the same work, in turn: wall seconds of `python train.py` and where it ended.

    python tests/bench/two_trees.py OLD NEW [--rounds 3] [flags of train.py ...]

Each round runs the old tree, then the new one, in this environment. Prints every run, and the ratio of the medians.
Machines are noisy: a figure from one tree today and another tomorrow says nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def run(tree: Path, flags: list[str]) -> tuple[float, float, dict]:
    """(wall seconds, last mean accuracy, seconds by phase) of one `python train.py` in this tree."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        began = time.perf_counter()
        subprocess.run([sys.executable, "train.py", "--out", str(out), *flags], cwd=tree, check=True,
                       capture_output=True)
        seconds = time.perf_counter() - began
        metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        phases: dict[str, float] = {}
        for line in (out / "timings.jsonl").read_text().splitlines():
            for phase, took in json.loads(line)["seconds"].items():
                phases[phase] = phases.get(phase, 0.0) + took
    return seconds, 100 * metrics[-1]["accuracy"]["mean"], phases


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    args, flags = parser.parse_known_args()
    took: dict[str, list[float]] = {"old": [], "new": []}
    for i in range(args.rounds):
        for name in took:
            seconds, accuracy, phases = run(getattr(args, name), flags)
            took[name].append(seconds)
            parts = ", ".join(f"{phase} {t:.1f}" for phase, t in phases.items())
            print(f"round {i + 1}, {name}: {seconds:6.1f} s, ends at {accuracy:.1f} %  ({parts})", flush=True)
    old, new = (statistics.median(t) for t in took.values())
    print(f"median {old:.1f} s -> {new:.1f} s: {old / new:.2f} x")


if __name__ == "__main__":
    main()
