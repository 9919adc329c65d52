"""What measurements against transformers and PEFT share: a process for each side in turn, the machine, the figures.

A script has workers, functions of a `spec` (a dict) that return figures. `Bench.measure` runs one in a process of its
own, where nothing but it has filled memory and caches; `Bench.in_turn` several, round by round, so that a machine's
slow minute hits all sides alike. Scripts that import a peer import this first: it finds this tree, keeps transformers
from its hub, and `need` says in one line what is missing. It imports neither peer.
"""

import argparse
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]
os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(ROOT))  # first: there is a kernels.py here, and transformers looks for a package kernels

import torch

import checkpoints
from star.decoder import Decoder, Linear
from star.device import choose_device

REAL = ROOT / "checkpoints" / "smollm2-135m"
DTYPES = ("float32", "bfloat16")
FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "bf16")  # what products are made with


def parser(doc: str, peer: bool = True) -> argparse.ArgumentParser:
    """The flags that all of these scripts have. peer: False for one that compares with nothing."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--model", type=Path, help=f"its folder [{REAL.relative_to(ROOT)}; --small: the one that ships]")
    made.add_argument("--small", action="store_true", help="a tiny model and little work: does it run?")
    made.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1 [cpu]")
    made.add_argument("--threads", type=int, help="of a CPU [all that torch takes]")
    made.add_argument("--rounds", type=int, default=3, help="[3]")
    if peer:
        made.add_argument("--dtypes", choices=("auto", *DTYPES), default="auto", help="auto: each side's faster one")
        made.add_argument("--alone", action="store_true", help="this project only: no peer is needed")
    made.add_argument("--out", type=Path, help="a JSON file for all figures")
    made.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)  # a single worker, for the processes started
    return made


def need(*packages: str, advice: str = "") -> None:
    """Exit with status 2 and one line if a peer is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        are = "is" if len(missing) == 1 else "are"
        fail(f"{' and '.join(missing)} {are} not installed: pip install -e '.[bench]'{advice}")


def fail(line: str) -> None:
    """Say what was wrong, and exit with status 2."""
    print(line, file=sys.stderr)
    sys.exit(2)


class Bench:
    """A script's processes and what they found. packages: of the peer. workers: name -> function of a spec."""

    def __init__(self, file: str, args: argparse.Namespace, packages: tuple[str, ...] = (), model: Path | None = None,
                 **workers: Callable[[dict], dict]):
        self.file, self.args = file, args
        if args.one:
            if args.one["threads"]:
                torch.set_num_threads(args.one["threads"])
            print(json.dumps(workers[args.one["worker"]](args.one)))
            sys.exit(0)
        try:
            choose_device(args.device)
        except ValueError as e:
            fail(str(e))
        need(*packages, advice="; --alone measures this project only")
        folder = model or args.model or (checkpoints.SHIPPED if args.small else REAL)
        if not (folder / "config.json").is_file():
            fail(f"no model in {folder}; fetch one: python -m checkpoints.fetch smollm2-135m")
        if args.rounds < 1 or (args.threads is not None and args.threads < 1):
            fail(f"--rounds is {args.rounds} and --threads {args.threads}: both must be at least 1")
        self.common = {"model": str(folder), "device": args.device, "threads": args.threads, "small": args.small}
        self.facts = facts(args, packages)
        self.runs: list[dict] = []
        print(f"{folder.name}; " + "; ".join(f"{k} {v}" for k, v in self.facts.items()) + "\n", flush=True)

    def measure(self, worker: str, **spec: object) -> dict:
        """What this worker returns for the spec; {"error": line} if its process failed."""
        spec = self.common | {"worker": worker} | spec
        env = dict(os.environ)
        if self.args.threads:
            env |= {"OMP_NUM_THREADS": str(self.args.threads), "MKL_NUM_THREADS": str(self.args.threads)}
        done = subprocess.run([sys.executable, self.file, "--one", json.dumps(spec)], env=env, check=False,
                              capture_output=True, text=True)
        if done.returncode:
            said = done.stderr.strip().rpartition("\n")[2]
            found = {"error": "killed: out of memory?" if done.returncode == -9 else said}
        else:
            found = json.loads(done.stdout.splitlines()[-1])
        self.runs.append({"spec": spec, "found": found})
        return found

    def best(self, worker: str, choices: dict[str, list], rate: str, **spec: object) -> dict:
        """The spec with the faster dtype and then the fastest of each choice; a trial each, the highest rate wins.

        choices: name -> values, the likeliest first. rate: what the worker calls its rate.
        """
        options = {"dtype": list(DTYPES) if self.args.dtypes == "auto" else [self.args.dtypes]} | choices
        chosen = {name: values[0] for name, values in options.items()}
        found: dict[tuple, float] = {}
        for name, values in options.items():
            for value in values if len(values) > 1 else []:
                tried = chosen | {name: value}
                if tuple(tried.values()) in found:
                    continue
                result = self.measure(worker, trial=True, **spec, **tried)
                found[tuple(tried.values())] = result.get(rate, 0.0)
                said = result.get("error") or f"{result[rate]:,.1f} {rate}"
                print(f"trial, {label(worker, tried)}: {said}", flush=True)
            chosen[name] = max(values, key=lambda v: found.get(tuple((chosen | {name: v}).values()), 0.0))
        return spec | chosen

    def in_turn(self, sides: dict[str, tuple[str, dict]], rate: str) -> dict[str, list[dict]]:
        """{side: [what it found, a round each]}; sides: name -> (worker, spec). Exit status 1 if one fails."""
        found: dict[str, list[dict]] = {name: [] for name in sides}
        for i in range(self.args.rounds):
            for name, (worker, spec) in sides.items():
                result = self.measure(worker, trial=False, **spec)
                if "error" in result:
                    sys.exit(f"{name}: {result['error']}")
                found[name].append(result)
                print(f"round {i + 1}, {name}: {result[rate]:,.1f} {rate}, {result['peak'] / 1e9:.2f} GB", flush=True)
        return found

    def write(self, **figures: object) -> None:
        """All of it as JSON, where --out says so."""
        if self.args.out:
            self.args.out.write_text(json.dumps({"facts": self.facts, **figures, "runs": self.runs}, indent=1) + "\n")
            print(f"\nwritten: {self.args.out}")


def label(worker: str, spec: dict) -> str:
    return f"{worker} ({', '.join(f'{v}' if k == 'dtype' else f'{k} {v}' for k, v in spec.items())})"


def facts(args: argparse.Namespace, packages: tuple[str, ...]) -> dict[str, object]:
    """The machine, versions and the day."""
    found: dict[str, object] = {"processor": platform.machine(), "threads": args.threads or torch.get_num_threads()}
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = dict(line.split(":", 1) for line in info.read_text().split("\n\n")[0].splitlines() if ":" in line)
        lines = {key.strip().lower(): value.strip() for key, value in lines.items()}
        has = (lines.get("flags") or lines.get("features") or "").split()
        found |= {"processor": lines.get("model name", found["processor"]),
                  "instructions": " ".join(flag for flag in FLAGS if flag in has)}
    if args.device != "cpu":
        found["card"] = torch.cuda.get_device_name(args.device)
    versions = {name: importlib.metadata.version(name) for name in packages}
    load = f"{os.getloadavg()[0]:.1f}"  # of others: figures of a busy machine are worth less
    return found | {"load": load, "torch": torch.__version__} | versions | {"date": str(datetime.date.today())}


def ours(spec: dict) -> Decoder:
    return checkpoints.load_model(spec["model"], spec["device"], spec["dtype"])


def theirs(spec: dict, **options: object):
    """transformers' model of the folder, as it is called by default."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(spec["model"], dtype=getattr(torch, spec["dtype"]),
                                                              **options)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0  # nothing ends a row
    return model.to(spec["device"])


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], object], device: str = "cpu") -> float:
    wait(device)
    began = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - began


def matmul_rate(device: str, dtype: str) -> float:
    """Operations a second of a large matrix product: the best of five."""
    n = 2048 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=getattr(torch, dtype)) for _ in range(2))
    out = a @ b
    return 2 * n**3 / min(seconds(lambda: torch.mm(a, b, out=out), device) for _ in range(5))


def forget_peak(device: str) -> None:
    """What loading a model took at its peak is not what is measured."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak(device: str) -> int:
    """Bytes this process held at its peak, weights included: of the card, or resident."""
    if device != "cpu":
        return torch.cuda.max_memory_reserved(device)
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss would begin at the peak of who started this process
        return next(1024 * int(s.split()[1]) for s in status.read_text().splitlines() if s.startswith("VmHWM"))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def layer_linears(model: Decoder) -> list[Linear]:
    """The linears of all blocks, in the order of the forward pass."""
    return [module for module in model.layers.modules() if isinstance(module, Linear)]


def multiplied(model: Decoder) -> tuple[int, int]:
    """Numbers that a token is multiplied by: in the blocks, and in the head."""
    return sum(module.weight.numel() for module in layer_linears(model)), model.head()[0].numel()


def attention_work(model: Decoder, seen: float) -> float:
    """Operations of attention in all layers, where queries see `seen` keys altogether."""
    c = model.config
    return 4 * c.n_layers * c.n_heads * c.head_dim * seen


def middle(results: list[dict], key: str) -> float:
    return statistics.median(result[key] for result in results)
