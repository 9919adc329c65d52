"""What several ranks bring: the same run on one core by one process, and on N cores by N ranks, in turn.

    python tests/bench/ranks.py [--work default smollm2] [--ranks 2] [--samples 1] [--out FILE]

Each process is pinned to a core of its own and computes on it alone, so N cores are all that is more. Prints seconds
by phase, of rounds in turn the medians, and the ratios: of sampling (generate, rationalize, evaluate), of training, and
of whole iterations behind the base's evaluation. Both sides owe the same tokens. No peer is needed: a ratio of N is all
there is to win. With few rows it cannot be had: each rank reads all weights for its part of them.
"""

import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import cycle
import peers
from peers import REAL, ROOT, Bench

from checkpoints import SHIPPED
from star.problem import SAMPLED


def run(n: int, argv: list[str], folder: Path) -> list[dict]:
    """The timings of a run by n ranks, an iteration each."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    processes = []
    for rank in range(n):
        env = os.environ | {"OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(n),
                            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes.append(subprocess.Popen(
            [sys.executable, "train.py", *argv, "--out", str(folder), "--show", "0"], cwd=ROOT, env=env,
            stdout=subprocess.DEVNULL, preexec_fn=lambda rank=rank: os.sched_setaffinity(0, {rank})))
    if codes := [p.returncode for p in processes if p.wait()]:
        raise RuntimeError(f"ranks ended with {codes}")
    return [json.loads(line) for line in (folder / "timings.jsonl").read_text().splitlines()]


def seconds(timings: list[dict]) -> dict[str, float]:
    """By kind: sampling and training, and all of the iterations behind the base's evaluation."""
    laps = [t["seconds"] for t in timings]
    return {"sampling": sum(lap.get(p, 0.0) for lap in laps for p in SAMPLED),
            "training": sum(lap.get("train", 0.0) for lap in laps),
            "iterations": sum(sum(lap.values()) for lap in laps[1:])}


def compare(name: str, args) -> list[dict]:
    """The table of one work."""
    found: dict[int, list[dict[str, float]]] = {1: [], args.ranks: []}
    tokens = {}
    with tempfile.TemporaryDirectory() as folder:
        argv = cycle.flags(name, args, Path(folder), False)
        argv += ["--samples", str(args.samples), "--temperature", "0.8"] if args.samples > 1 else []
        for i in range(args.rounds):
            for n, laps in found.items():
                timings = run(n, argv, Path(folder) / f"{name}-{n}-{i}")
                laps.append(seconds(timings))
                tokens[n] = sum(t["tokens"]["sampled"] for t in timings)
                print(f"round {i + 1}, {n} rank{'s' * (n > 1)}: {laps[-1]['iterations']:.1f} s", flush=True)
    print(f"\n{name}: {tokens[1]:,} tokens sampled by one process, {tokens[args.ranks]:,} by {args.ranks}\n\n"
          f"| {name} | 1 rank, s | {args.ranks} ranks, s | times | from, to |\n|---|---|---|---|---|")
    rows = []
    for kind in found[1][0]:
        one, several = (statistics.median(lap[kind] for lap in found[n]) for n in (1, args.ranks))
        ratios = [a[kind] / b[kind] for a, b in zip(found[1], found[args.ranks], strict=True)]
        rows.append({"work": name, "kind": kind, "one": one, "several": several, "ratios": ratios})
        print(f"| {kind} | {one:.2f} | {several:.2f} | {one / several:.2f} | {min(ratios):.2f}, {max(ratios):.2f} |",
              flush=True)
    return rows


def main() -> None:
    parser = peers.parser(__doc__, peer=False)
    parser.add_argument("--work", nargs="+", choices=cycle.WORKS, help="[both; --small: default]")
    parser.add_argument("--iterations", type=int, default=2, help="of the default run [2]")
    parser.add_argument("--samples", type=int, default=1, help="of a problem: more rows at a time [1, greedy]")
    parser.add_argument("--ranks", type=int, default=2, help="and as many cores [2]")
    args = parser.parse_args()
    args.work = args.work or list(cycle.WORKS[: 1 if args.small else 2])
    if not 1 < args.ranks <= (os.cpu_count() or 1) or args.device != "cpu":
        peers.fail(f"--ranks is {args.ranks} and --device {args.device}: each rank takes a core of its own, of which "
                   f"this machine has {os.cpu_count()}")
    bench = Bench(__file__, args, model=args.model or (SHIPPED if args.work == ["default"] else REAL))
    bench.write(ranks=[row for name in args.work for row in compare(name, args)])


if __name__ == "__main__":
    main()
