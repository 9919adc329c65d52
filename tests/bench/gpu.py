"""The kit for the first minutes on a GPU: does all that CUDA runs work, and how near is it to what the card can do?

    python -m tests.bench.gpu [--device cuda|cpu] [--small] [--only NAME,...] [--out FILE.json] [--diff OLD.json]

One command, nine minutes at most. Each stage is a process with a limit of its own, killed past it with what it started;
its figures are written to --out (runs/gpu.json) as they come, and one that fails leaves the others alone. At the end
come tables for a README: every share is of the rates of copies and of matrix products measured here, by `facts`.
--diff OLD.json: the figures beside those of an earlier run. Exit status 1 if a stage failed or a check does not hold.

    facts    what is here: card, versions, signature of varlen_attn; ceilings: copy, matrix product, a launch
    kernels  every function of kernels/ and star/draws against its formula in float64; attention at new shapes
    model    the same model on the CPU and here: layer by layer, sampled, scored, trained
    graph    replayed steps equal eager ones bit for bit; no wait inside a step; captures; memory after six streams
    cycle    python train.py --iterations 1 on the CPU, here, and here again
    decode   a step of two shapes at 1 to 256 rows, behind a prefix of 768: ms, shares, the kernels that take longest
    nano     nano-vllm's benchmark: 256 rows of Qwen3-0.6B's shape (there 8,670 tok/s on an A100, its issue 249)
    train    LoRA on two shapes, Mistral-7B's at 4096 tokens: TF/s, first steps against last, memory against the plan
    load     2 GB written, read, merged and exported

When a stage fails, its last lines stand in the JSON, under "error". Then, by stage:

    facts, kernels, model   stop: no figure behind them counts. model's "first layer off" says where the device leaves
             the CPU (0: the first block); kernels' rows say which function; compare its operations one by one.
    attention at new shapes takes more than 50 ms   a library plans for each shape: see star/device, which should have
             switched cuDNN's attention off; training is then many times too slow.
    graph    not equal: is `kernels` whole? Make Graphs.__call__ (kernels/graph) run its function, eager: if this is
             equal, the graph is at fault, what is recorded reads something that moved; go on with the other stages so,
             and say so. A wait inside a step names the line that waits. Memory grows: a cycle holds a cache.
    cycle    accuracies differ: run it again with --dtype float32 in both; tokens may differ where a draw was close.
    illegal memory access   CUDA_LAUNCH_BLOCKING=1 python -m tests.bench.gpu --only STAGE names the operation; then
             compute-sanitizer python -m tests.bench.gpu --small --only STAGE.
    out of memory           only its row is lost. Compare "peak GiB" and "planned GiB" of others (star/run/memory).
    at its limit            the JSON holds where every thread stood, shortly before.
"""

import datetime
import faulthandler
import json
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
sys.path[:0] = [str(ROOT)]  # first: beside this file lies another kernels
sys.path.append(str(HERE))

import gpu_checks
import gpu_kernels
import gpu_kit
import gpu_speed
import torch

from star.device import choose_device
from star.run.flags import Parser, command

MINUTES, NOTICE = 9, 3  # of all; seconds before its limit in which a stage says where it stands
STAGES: dict[str, tuple[Callable, int]] = {  # and seconds that it may take
    "facts": (gpu_kit.facts, 40),
    "kernels": (gpu_kernels.check_kernels, 45),
    "model": (gpu_checks.check_model, 45),
    "graph": (gpu_checks.check_graph, 70),
    "cycle": (gpu_checks.cycle, 90),
    "decode": (gpu_speed.decode, 120),
    "nano": (gpu_speed.nano, 100),
    "train": (gpu_speed.train, 120),
    "load": (gpu_speed.load, 45),
}


@command
def main(argv: list[str]) -> int:
    began, date = time.monotonic(), f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC"
    args = read_arguments(argv)
    old = read_json(args.diff) if args.diff else None
    args.out.parent.mkdir(parents=True, exist_ok=True)
    record = {"date": date, "device": args.device, "small": args.small, "stages": {}}
    for name in STAGES:
        if name not in args.only:
            continue
        _, limit = STAGES[name]
        left = 60 * MINUTES - (time.monotonic() - began)
        print(f"{name}  ({min(limit, left):.0f} s at most)", flush=True)
        stage = {"rows": [], "seconds": 0.0, "error": ["not run: the time was up"]}
        if left > 10:
            stage = run_stage(name, min(limit, left), args, ceilings(record))
        refused = [r["refused"] for r in stage["rows"] if "refused" in r]
        if refused and name == "facts":
            raise ValueError(refused[0])
        record["stages"][name] = stage
        args.out.write_text(json.dumps(record, indent=1) + "\n")
        if stage["error"]:
            print("  FAILED\n    " + "\n    ".join(stage["error"]), flush=True)
    print("\n" + tables(record))
    if old:
        print("\n" + difference(old, record))
    bad = failures(record)
    print(f"\n{time.monotonic() - began:.0f} s, figures in {args.out}; " + (f"FAILED: {'; '.join(bad)}" if bad else
                                                                            "all checks hold"))
    return int(bool(bad))


def read_arguments(argv: list[str]):
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cuda", help="cuda, cuda:N or cpu")
    parser.add_argument("--small", action="store_true", help="a fraction of every size: does the kit itself run?")
    parser.add_argument("--only", metavar="NAME,...", help=f"of {', '.join(STAGES)}; facts always runs")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--diff", type=Path, metavar="OLD.json")
    args = parser.parse_args(argv)
    if args.device.partition(":")[0] not in ("cuda", "cpu"):
        raise ValueError(f"--device is {args.device!r}; it must be cuda, cuda:N or cpu")
    args.only = list(STAGES) if args.only is None else ["facts", *(name.strip() for name in args.only.split(","))]
    if unknown := [name for name in args.only if name not in STAGES]:
        raise ValueError(f"--only names {unknown[0]!r}; the stages are {', '.join(STAGES)}")
    return args


def read_json(path: Path) -> dict:
    """A record that this command wrote. ValueError for what is none."""
    try:
        record = json.loads(path.read_text())
        if all(isinstance(stage["rows"], list) for stage in record["stages"].values()):
            return record
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    raise ValueError(f"{path} is not there or no record of this command: --diff takes what --out wrote")


def run_stage(name: str, limit: float, args, known: dict[str, float]) -> dict:
    """The record of a stage: its rows, its seconds, the last lines of what it said if it failed."""
    with tempfile.TemporaryDirectory() as folder:
        rows, log = Path(folder) / "rows.jsonl", Path(folder) / "log.txt"
        rows.touch(), log.touch()
        # a fork has what was imported here; nothing here has touched the device, which a fork could not use then
        process = multiprocessing.get_context("fork").Process(target=child, args=(name, limit, args, known, rows, log))
        began = time.monotonic()
        process.start()
        try:
            process.join(limit)
            late = process.is_alive()
        finally:
            if process.is_alive():
                os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            process.join()
        error = None
        if late or process.exitcode:
            how = f"killed after {limit:.0f} s" if late else f"exit code {process.exitcode}"
            error = [how, *last_words(log.read_text(errors="replace").splitlines())]
        lines = rows.read_text().splitlines(keepends=True)
        found = [json.loads(line) for line in lines if line.endswith("\n")]  # a killed stage may leave half a line
        return {"rows": found, "seconds": time.monotonic() - began, "error": error}


def last_words(said: list[str], most: int = 25) -> list[str]:
    """The end of a log. Where faulthandler spoke, which begins with the innermost line: from there."""
    spoke = [i for i, line in enumerate(said) if line.startswith(("Timeout (", "Fatal Python error"))]
    return [line[:300] for line in (said[spoke[0] :][:most] if spoke else said[-most:])]


def child(name: str, limit: float, args, known: dict[str, float], rows: Path, log: Path) -> None:
    """A stage, in a process of its own."""
    os.setsid()  # a group of its own, to be killed together
    with rows.open("a") as out, log.open("a") as said:
        os.dup2(said.fileno(), 2)
        faulthandler.enable(said)
        faulthandler.dump_traceback_later(max(1.0, limit - NOTICE), file=said)
        try:
            try:
                device = choose_device(args.device)
            except ValueError as e:
                out.write(json.dumps({"what": name, "refused": str(e)}) + "\n")
                raise
            if args.small and device.type == "cpu":
                torch.set_num_threads(1)  # for work this small, threads wait for each other, on a busy machine for long
            STAGES[name][0](gpu_kit.Kit(device, args.small, out, known))
        except BaseException:
            traceback.print_exc(file=said)
            said.flush(), out.flush()
            os._exit(1)  # without another word: a broken CUDA context may hang on the way out


def ceilings(record: dict) -> dict[str, float]:
    """Of the device, in bytes and operations a second, where `facts` has measured them."""
    rows = {r["what"]: r for r in record["stages"].get("facts", {"rows": []})["rows"]}
    units = {"copy": ("GB/s", 1e9), "matmul": ("TF/s", 1e12)}
    return {what: rows[what][key] * unit for what, (key, unit) in units.items() if key in rows.get(what, {})}


def failures(record: dict) -> list[str]:
    return [f"{name}: {said}" for name, stage in record["stages"].items()
            for said in [*(stage["error"] or [])[:1], *[r["what"] for r in stage["rows"] if r.get("ok") is False]]]


def shown(key: str, value) -> str:
    """A figure in a table: what is "of" something is a share."""
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float) and key.startswith("of "):
        return f"{value:.0%}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return "" if value is None else str(value).replace("|", "\\|")


def tables(record: dict) -> str:
    """Each stage's rows in Markdown; those with the same figures share a table, lists stay in the JSON."""
    facts = {r["what"]: r for r in record["stages"].get("facts", {"rows": []})["rows"]}
    card = facts.get("versions", {})
    small = ", a fraction of every size: no figures" * record["small"]
    out = [f"{card.get('card', record['device'])}, torch {card.get('torch')}, CUDA {card.get('CUDA')}, "
           f"{record['date']}{small}"]
    for name, stage in record["stages"].items():
        alike: dict[tuple, list[str]] = {}  # what figures a row has -> those rows
        for row in stage["rows"]:
            row = {k: v for k, v in row.items() if not isinstance(v, list)}
            cells = " | ".join(shown(k, v) for k, v in row.items())
            alike.setdefault(tuple(row), []).append(f"| {cells} |")
        for keys, rows in alike.items():
            out += ["", f"| {name} | {' | '.join(keys[1:])} |", "|---" * len(keys) + "|", *rows]
        if stage["error"]:
            out += ["", f"{name}: {stage['error'][0]}"]
    return "\n".join(out)


def difference(old: dict, new: dict) -> str:
    """Each number of a row that both records have, and their ratio, where it is 5 % or more."""
    cards = [next((r.get("card") for r in record["stages"].get("facts", {"rows": []})["rows"]), None)
             for record in (old, new)]
    out = [f"then: {cards[0]}, {old.get('date')}; now: {cards[1]}", "",
           "| what | figure | then | now | ratio |", "|---|---|---|---|---|"]
    for name, stage in new["stages"].items():
        then = {r["what"]: r for r in old["stages"].get(name, {"rows": []})["rows"]}
        for row in stage["rows"]:
            for key, value in row.items():
                was = then.get(row["what"], {}).get(key)
                numbers = all(isinstance(x, int | float) for x in (was, value))
                if numbers and abs(value - was) >= 0.05 * abs(was) and value != was:
                    ratio = f"{value / was:.2f}" if was else ""
                    out.append(f"| {name}: {row['what']} | {key} | {shown(key, was)} | {shown(key, value)} | {ratio} |")
    return "\n".join(out)


if __name__ == "__main__":
    sys.exit(main())
