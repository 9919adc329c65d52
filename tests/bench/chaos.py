"""Runs killed with SIGKILL at random moments: do they end with the bytes of one that nothing disturbed?

    python tests/bench/chaos.py [--kills 40] [--chaos-seed 0] [flags of train.py: --task, --model, --iterations, ...]

First the run alone, watched: which phases it goes through, how long each lasts. Then the same run killed and resumed
until all kills are spent; one that ends before is followed by another. Moments are drawn in every kind of phase alike,
the short ones and the start of a process too, and within each from all iterations. Half the kills come from outside,
at a random share of the phase's time; the others come before one of the process's operations on the run's files (an
open to write, a rename, a removal: so before, in and after each save), the k-th from where the phase begins. A phase
that had its kill already may be over sooner: the kill then hits what follows, and is counted there. Without flags it
is the default run, smaller: FLAGS.

    lost    seconds between a kill and the run's last write before it: what must be made again
    start   seconds from the start of the process to its first phase, resumed beside undisturbed
    saving  the undisturbed run's time in writing down what happens, in all phases, as a share of all its time

Exit status 1 if a file of state.json, metrics.jsonl, samples/ or adapters/ differs, or a resumed run fails.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from peers import ROOT

FLAGS = ["--iterations", "3", "--problems", "600", "--heldout-problems", "200", "--first-steps", "20", "--slots", "64",
         "--save-every", "5"]
ALIKE = ("state.json", "metrics.jsonl", "samples/*", "adapters/*/*")  # times and command lines stand elsewhere
OPERATIONS = ("os.rename", "os.remove", "os.mkdir", "os.truncate", "open")
START, SAVE = "start", "save"  # before a process's first phase, and what an iteration ends with
WRITES = os.O_WRONLY | os.O_RDWR


@dataclass(frozen=True)
class Death:
    """When a process is to die: so far into a phase, or at so many file operations from its beginning."""

    iteration: int
    phase: str
    share: float | None = None
    operation: int | None = None


def child(folder: Path, argv: list[str], pipe: int, death: dict | None) -> int:
    """train.py in this process: phases go into the pipe, and a death by file operation is died here."""
    import train
    from star.problem import Finished, Phase

    record, writing = train.Run.record, 0.0  # seconds
    since = 0 if death and death["phase"] == START else None  # file operations from where the phase of the death begins

    def reached(iteration: int, phase: str) -> None:
        nonlocal since
        os.write(pipe, f"{iteration} {phase}\n".encode())
        if death and death["operation"] is not None and since is None and (
                iteration > death["iteration"] or (iteration, phase) == (death["iteration"], death["phase"])):
            since = 0

    def recorded(self, event, *more):
        nonlocal writing
        if isinstance(event, Phase):
            reached(event.iteration, event.name)
        elif isinstance(event, Finished):
            reached(event.iteration, SAVE)
        began = time.perf_counter()
        try:
            return record(self, event, *more)
        finally:
            writing += time.perf_counter() - began

    def hook(event: str, args: tuple) -> None:
        nonlocal since
        if since is None or event not in OPERATIONS or not str(args[0]).startswith(str(folder)):
            return
        since += event != "open" or bool(args[2] & WRITES)
        if since == death["operation"]:
            os.kill(os.getpid(), signal.SIGKILL)

    train.Run.record = recorded
    sys.addaudithook(hook)
    code = train.main(argv)
    os.write(pipe, f"-1 {writing}\n".encode())
    return code


class Life:
    """One process of the run: started, watched phase by phase, and killed if it is to die."""

    def __init__(self, folder: Path, flags: list[str], log: Path, death: Death | None = None,
                 lasts: dict[tuple[int, str], float] | None = None):
        argv = ["--resume", str(folder)] if (folder / "state.json").exists() else ["--out", str(folder), *flags]
        read, write = os.pipe()
        spec = {"folder": str(folder), "argv": argv, "pipe": write, "death": death and vars(death)}
        self.began, self.phases, self.writing = time.time(), [], 0.0  # phases: (when, iteration, phase)
        with open(log, "ab") as out:
            process = subprocess.Popen([sys.executable, __file__, "--child", json.dumps(spec)], stdout=out, stderr=out,
                                       pass_fds=[write], cwd=folder.parent)
        os.close(write)
        timer = threading.Timer(death.share * lasts[0, START] if death and death.share is not None and
                                death.phase == START else 1e6, process.kill)
        timer.start()
        with open(read) as told:
            for line in told:
                n, phase = line.rstrip("\n").split(" ", 1)
                if n == "-1":
                    self.writing = float(phase)
                    break
                self.phases.append((time.time(), int(n), phase))
                if death and death.share is not None and death.phase != START and (
                        int(n) > death.iteration or (int(n), phase) == (death.iteration, death.phase)):
                    time.sleep(death.share * (lasts or {}).get((int(n), phase), 0.0))
                    process.send_signal(signal.SIGKILL)
                    break
        self.code, self.ended = process.wait(), time.time()
        timer.cancel()
        wrote = [f.stat().st_mtime for f in folder.rglob("*") if f.is_file()] if folder.exists() else []
        self.lost = self.ended - max([self.began, *wrote])

    @property
    def start(self) -> float | None:
        return self.phases[0][0] - self.began if self.phases else None

    @property
    def died_in(self) -> str:
        return self.phases[-1][2] if self.phases else START


def plan(alone: Life, kills: int, rng: random.Random, operations: int) -> tuple[list[Death], dict]:
    """Moments of death in the order in which the run reaches them, and how long each phase lasts undisturbed."""
    ends = [*(when for when, *_ in alone.phases[1:]), alone.ended]
    spans = {(n, phase): end - when for (when, n, phase), end in zip(alone.phases, ends, strict=True)}
    order = list(spans)
    for n in dict.fromkeys(n for n, _ in spans):  # a process may start in any iteration
        order.insert(next(i for i, key in enumerate(order) if key[0] == n), (n, START))
    kinds, deaths = list(dict.fromkeys(phase for _, phase in order)), []
    for i in range(kills):
        n, phase = rng.choice([key for key in order if key[1] == kinds[i % len(kinds)]])
        share = rng.random() if rng.random() < 1 / 2 else None
        deaths.append(Death(n, phase, share, None if share is not None else rng.randint(1, operations)))
    return sorted(deaths, key=lambda d: order.index((d.iteration, d.phase))), spans | {(0, START): alone.start}


def differing(one: Path, other: Path) -> list[str]:
    """What is not the same bytes in two run folders."""
    def content(run: Path) -> dict[str, bytes]:
        return {str(f.relative_to(run)): f.read_bytes() for glob in ALIKE for f in run.glob(glob)}

    ours, theirs = content(one), content(other)
    return sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))


def finished(run: Path) -> bool:
    """A kill may come between the last state.json and the end of the process: nothing is left to resume then."""
    state = run / "state.json"
    return state.is_file() and json.loads(state.read_text())["finished"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=40, help="[40]")
    parser.add_argument("--chaos-seed", type=int, default=0, help="of the moments [0]")
    parser.add_argument("--operations", type=int, default=4, help="into a phase, at most [4]")
    parser.add_argument("--folder", type=Path, help="where both runs are kept [a temporary one]")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.child:
        spec = args.child
        return child(Path(spec["folder"]), spec["argv"], spec["pipe"], spec["death"])
    with tempfile.TemporaryDirectory() as made:
        return chaos((args.folder or Path(made)).absolute(), args, flags or FLAGS)


def chaos(folder: Path, args: argparse.Namespace, flags: list[str]) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    log, alone = folder / "log", folder / "alone"
    first = Life(alone, flags, log)
    if first.code:
        print(f"the undisturbed run ends with {first.code}: {log.read_text(errors='replace')[-500:]}", file=sys.stderr)
        return 1
    deaths, spans = plan(first, args.kills, random.Random(args.chaos_seed), args.operations)
    whole = first.ended - first.began
    print(f"{' '.join(flags)}\nundisturbed: {whole:.1f} s, {len(first.phases)} phases\n", flush=True)
    lives, found, runs = [], [], 0
    while deaths:
        runs += 1
        killed = folder / f"killed-{runs}"
        while not finished(killed):
            lives.append(Life(killed, flags, log, deaths.pop(0) if deaths else None, spans))
            if lives[-1].code not in (0, -signal.SIGKILL):
                said = log.read_text(errors="replace")[-500:]
                print(f"process {len(lives)} ends with {lives[-1].code}: {said}", file=sys.stderr)
                return 1
        found += [f"{killed.name}/{name}" for name in differing(alone, killed)]
    return table(first, lives, found, runs)


def table(first: Life, lives: list[Life], found: list[str], runs: int) -> int:
    died = [life for life in lives if life.code]
    print("| killed in | kills | lost, mean s | lost, most s |\n|---|---|---|---|")
    for phase in dict.fromkeys([START, *(phase for _, _, phase in first.phases)]):
        lost = [life.lost for life in died if life.died_in == phase]
        if lost:
            print(f"| {phase} | {len(lost)} | {statistics.mean(lost):.2f} | {max(lost):.2f} |")
    lost = [life.lost for life in died] or [0.0]
    print(f"| all | {len(died)} | {statistics.mean(lost):.2f} | {max(lost):.2f} |\n")
    starts = [life.start for life in lives[1:] if life.start is not None] or [first.start]
    print(f"start: {first.start:.1f} s undisturbed, {statistics.median(starts):.1f} s resumed (most {max(starts):.1f})")
    print(f"saving: {first.writing / (first.ended - first.began):.2%} of the undisturbed run's time")
    said = f"NOT the undisturbed run's bytes: {', '.join(found)}" if found else (
        f"the undisturbed run's bytes in {', '.join(ALIKE)}")
    print(f"{len(died)} kills in {runs} run{'s' * (runs > 1)}: {said}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
