"""Where the time of `python train.py` goes: seconds by phase, and how much of it lies in products and attention.

    python tests/bench/cycle.py [--work default smollm2] [--iterations 2] [--against OLD_TREE] [--out FILE]

default: the run that needs no flags, with fewer iterations. smollm2: one iteration of SmolLM2-135M (--model) on sums of
two digits, asked behind four worked examples. No peer is needed. Each run is a process of its own; --against runs the
same in another checkout, in turn, as two_trees.py does, and prints the ratio of the medians by phase.

rest: start, plan, loading, report and curves. kernels: what torch's profiler sees in matrix products and attention, as
a share of a phase, in one more run with fewer problems; of all threads that multiply, and on a GPU of its kernels. A
profiler makes small operations slower: the share of a small model is a lower bound.
"""

import json
import random
import re
import statistics
import tempfile
import time
from pathlib import Path

import peers
import torch
import two_trees
from peers import REAL, ROOT, Bench
from torch.profiler import ProfilerActivity, profile

import train
from checkpoints import SHIPPED
from star.problem import Finished, Phase

WORKS = ("default", "smollm2")
CPU = re.compile(r"aten::(_?add)?(mm|bmm|mv|baddbmm|mm_|_addmm_activation|mkldnn_linear)$|aten::baddbmm|"
                 r"aten::_scaled_dot_product_.*attention|aten::_flash_attention")
CARD = re.compile(r"gemm|gemv|cutlass|xmma|nvjet|splitk|flash|fmha|attention", re.IGNORECASE)


def flags(name: str, args, folder: Path, profiled: bool) -> list[str]:
    """What train.py is given for this work; data are written into the folder."""
    device = ["--device", args.device, "--seed", "0"]
    few = args.small or profiled
    if name == "default":
        less = ["--problems", "512", "--heldout-problems", "40", "--first-steps", "4"]
        if args.small:
            less = ["--problems", "16", "--heldout-problems", "10", "--first-steps", "1", "--batch-size", "8"]
        return [*device, "--iterations", str(1 if few else args.iterations), *less * few]
    pairs = [(a, b) for a in range(1, 10) for b in range(1, 10)]
    random.Random(0).shuffle(pairs)
    records = [{"question": f"What is {a} + {b}?", "rationale": f"We add {b} to {a}. {a} + {b} = {a + b}.",
                "answer": str(a + b)} for a, b in pairs]
    shots, data = folder / "shots.jsonl", folder / "sums.jsonl"
    shots.write_text("".join(json.dumps(r) + "\n" for r in records[:4]))
    data.write_text("".join(json.dumps({k: r[k] for k in ("question", "answer")}) + "\n" for r in records[4:]))
    return [*device, "--task", "jsonl", "--data", str(data), "--few-shot", str(shots), "--max-new-tokens", "48",
            "--model", str(args.model or REAL), "--iterations", "1", "--first-steps", "2" if few else "8",
            "--problems", "16" if few else "64"]


def profiled(spec: dict) -> dict:
    """{phase: [seconds, seconds in kernels]} of one run in this process."""
    found: dict[str, list[float]] = {}
    running: list = []  # name of the phase, its profiler, when it began
    record = train.Run.record
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (spec["device"] != "cpu")

    def stop() -> None:
        if running:
            name, profiler, began = running
            took = time.perf_counter() - began
            profiler.__exit__(None, None, None)
            so_far = found.setdefault(name, [0.0, 0.0])
            so_far[0], so_far[1] = so_far[0] + took, so_far[1] + in_kernels(profiler)
            running.clear()

    def recorded(self, event, model) -> None:
        record(self, event, model)
        if isinstance(event, Phase | Finished):
            stop()
        if isinstance(event, Phase):
            every = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)  # training's workers too
            profiler = profile(activities=activities, experimental_config=every)
            profiler.__enter__()
            running.extend((event.name, profiler, time.perf_counter()))

    train.Run.record = recorded
    code = train.main(spec["flags"])
    assert not code, f"train.py ended with {code}"
    return {"phases": found}


def in_kernels(profiler: profile) -> float:
    """Seconds in matrix products and attention: of a card's kernels if there are any, else a thread that multiplies."""
    ends: dict[int, int] = {}  # a thread, and where the last kernel on it ended: what lies inside is not counted again
    total, card = 0, 0
    for e in sorted(profiler.profiler.kineto_results.events(), key=lambda e: e.start_ns()):
        if e.device_type() != torch.autograd.DeviceType.CPU:
            card += e.duration_ns() if CARD.search(e.name()) else 0
        elif CPU.match(e.name()) and e.start_ns() >= ends.get(e.start_thread_id(), 0):
            ends[e.start_thread_id()] = e.start_ns() + e.duration_ns()
            total += e.duration_ns()
    return card / 1e9 if card else total / 1e9 / max(len(ends), 1)


def timed(trees: dict[str, Path], given: list[str], rounds: int, folder: Path) -> dict[str, dict[str, list[float]]]:
    """{tree: {phase: [seconds, a round each]}}, with "rest" and "all"."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in trees}
    for i in range(rounds):
        for name, tree in trees.items():
            seconds, end, phases = two_trees.run(tree, given, folder / f"{name}-{i}")
            phases |= {"rest": seconds - sum(phases.values()), "all": seconds}
            for phase, took in phases.items():
                found[name].setdefault(phase, []).append(took)
            print(f"round {i + 1}, {name}: {seconds:.1f} s, {end}", flush=True)
    return found


def show(name: str, found: dict[str, dict[str, list[float]]], kernels: dict[str, list[float]]) -> list[dict]:
    """The table of one work."""
    medians = {tree: {phase: statistics.median(took) for phase, took in phases.items()}
               for tree, phases in found.items()}
    here, old, rows = medians["here"], medians.get("old"), []
    print(f"\n| {name} | s | of the run | kernels |{' old, s | old / here |' if old else ''}")
    print("|---" * (6 if old else 4) + "|")
    for phase, took in here.items():
        share = kernels[phase][1] / kernels[phase][0] if phase in kernels else None
        row = {"work": name, "phase": phase, "seconds": took, "of the run": took / here["all"], "kernels": share}
        cells = [phase, f"{took:.2f}", f"{took / here['all']:.0%}", "" if share is None else f"{share:.0%}"]
        if old:
            before = old.get(phase, 0.0)
            row |= {"old": before, "ratio": before / took}
            cells += [f"{before:.2f}", f"{before / took:.2f}"]
        rows.append(row)
        print(f"| {' | '.join(cells)} |", flush=True)
    return rows


def main() -> None:
    parser = peers.parser(__doc__, peer=False)
    parser.add_argument("--work", nargs="+", choices=WORKS, help="[both; --small: default]")
    parser.add_argument("--iterations", type=int, default=2, help="of the default run [2]")
    parser.add_argument("--against", type=Path, metavar="TREE", help="another checkout, before this one in turn")
    args = parser.parse_args()
    args.work = args.work or list(WORKS[: 1 if args.small else 2])
    bench = Bench(__file__, args, model=args.model or (SHIPPED if args.work == ["default"] else REAL),
                  profiled=profiled)
    trees = {"here": ROOT}
    if args.against:
        if not (args.against / "train.py").is_file():
            peers.fail(f"--against is {args.against}, which has no train.py: name a checkout of this project")
        trees = {"old": args.against, "here": ROOT}
    rows = []
    for name in args.work:
        with tempfile.TemporaryDirectory() as made:
            folder = Path(made)
            kernels = bench.measure("profiled", flags=[*flags(name, args, folder, True), "--out", made + "/profiled"])
            if "error" in kernels:
                raise SystemExit(kernels["error"])
            found = timed(trees, flags(name, args, folder, False), args.rounds, folder)
        rows += show(name, found, kernels["phases"])
    bench.write(cycle=rows)


if __name__ == "__main__":
    main()
