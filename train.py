"""python train.py: a model teaches itself to reason, by Algorithm 1 of STaR (arXiv 2203.14465).

The algorithm is star/loop.py; every setting is a field of star/config.py. This file reads flags, builds what the loop
runs on, hands each event to the run folder (star/run.py), and shows it: a bar for each phase, a line an iteration.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C while torch is imported; main() puts Python's own handler back
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import contextlib
import heapq
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoints
from star import prompts
from star.cache import KVCache, free_memory
from star.config import StarConfig
from star.decoder import Decoder
from star.evaluate import VERDICTS
from star.loop import Event, Finished, Phase, State, Tick, star
from star.lora import add_lora, lora_modules, trainable
from star.run import Run, draw_curves, facts
from star.sampler import Sampler
from star.tasks import Task, load_task

FREE_ON_RESUME = {"iterations", "device", "slots"}  # settings that a run may change half-way


def one_line(message: Warning | str, *_) -> None:
    """A warning as users of a command want it: without the line of code that it came from."""
    print(f"warning: {message}", file=sys.stderr)


class Parser(argparse.ArgumentParser):
    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the settings")


def read_flags(argv: list[str]) -> tuple[dict, argparse.Namespace]:
    """(settings given on the command line, the flags that are no settings). ValueError on what is not understood."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                    argument_default=argparse.SUPPRESS)
    kinds = {"int": int, "float": float, "str": str}
    for f in fields(StarConfig):
        default = "" if f.default is None else f" [{f.default}]"
        kind = next(kind for name, kind in kinds.items() if name in str(f.type))
        parser.add_argument("--" + f.name.replace("_", "-"), type=kind, choices=f.metadata["choices"] or None,
                            metavar=None if f.metadata["choices"] else kind.__name__, help=f.metadata["help"] + default)
    parser.add_argument("--out", type=Path, help="run folder, new or empty [runs/<task>-NNN]")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--check", action="store_true", default=False,
                        help="say what the model is, what it needs and what its first prompt is, and train nothing")
    given = vars(parser.parse_args(argv))
    return given, argparse.Namespace(**{name: given.pop(name, None) for name in ("out", "resume", "check")})


def choose_device(name: str) -> torch.device:
    """ "auto" is CUDA if there is one. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as e:
        raise ValueError(f"--device is {name!r}, which cannot be used here: {str(e).splitlines()[0]}") from None
    return torch.device(name)


def plan_base(config: StarConfig) -> tuple[Decoder, torch.device]:
    """The base model without its weights, and its device.

    dtype auto: float32, or bfloat16 where the checkpoint has it and the device multiplies it.
    """
    device, folder = choose_device(config.device), config.model or checkpoints.SHIPPED
    model = checkpoints.outline(folder, None if config.dtype == "auto" else config.dtype)
    if config.dtype == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        model = model.to(torch.bfloat16 if fast and model.dtype == torch.bfloat16 else torch.float32)
    return model, device


def load_base(config: StarConfig) -> Decoder:
    """The base model on its device, if it has room there."""
    model, device = plan_base(config)
    need, free = sum(t.nbytes for _, t in model.tensors()), free_memory(device)
    if free is not None and need > free:
        smaller = "" if model.dtype.itemsize < 4 else ", or take half as much: --dtype bfloat16"
        name = str(model.dtype).removeprefix("torch.")
        raise ValueError(f"the weights need {size(need)} in {name}, but {device} has {size(free)} free: take a smaller "
                         f"model{smaller}")
    return checkpoints.fill(model, device)


def memory(model: Decoder, config: StarConfig) -> dict[str, int]:
    """Bytes that a run needs beside the cache and the activations, by what for. `model` is a plan; it gets adapters."""
    weights = sum(t.nbytes for _, t in model.tensors())
    add_lora(model, config.rank, config.alpha)
    copy = sum(module.weight.nbytes for _, module in lora_modules(model))
    adapters = sum(p.numel() for p in trainable(model).values())
    return {"weights": weights, "adapters with gradient and moments": 4 * 4 * adapters,
            "merged copy": copy if config.merge != "off" else 0}


def size(n: int) -> str:
    """Bytes for people: 2.1 MiB, 13.5 GiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**28 else f"{n / 2**20:.1f} MiB"


def check(config: StarConfig) -> None:
    """--check: would a run start? Says what it would run on, or raises what a run would raise."""
    plan, device = plan_base(config)
    print(f"model   {plan.source.path}: {checkpoints.describe(plan)}", flush=True)
    parts, free = memory(plan, config), free_memory(device)
    has = f"{device} has {size(free)} free" if free is not None else f"on {device}"
    print(f"memory  {', '.join(f'{what} {size(n)}' for what, n in parts.items())}: {size(sum(parts.values()))}; {has}",
          flush=True)
    sampler, tokenizer, task = build(config)
    row = sampler.max_len * KVCache.bytes_a_token(sampler.model.config, sampler.model.dtype)
    weights = "merged" if sampler.merges() else "live: no merged copy"
    print(f"cache   {sampler.slots} slots of {sampler.max_len} tokens: at most {size(sampler.slots * row)}; adapters "
          f"sampled {weights}")
    problem = task.train[0]
    print(f"prompt  {task.prefix + task.question(problem)!r}")
    print(f"ids     {prompts.encode(task, problem, tokenizer)}")


def build(config: StarConfig) -> tuple[Sampler, object, Task]:
    """What the loop runs on: a sampler around the base with fresh adapters, its tokenizer, and the task."""
    task = load_task(config.task, data=config.data, digits=config.digits)
    model = load_base(config)
    tokenizer = checkpoints.load_tokenizer(model.source.path)
    if not tokenizer.eos_ids:
        raise ValueError(f"{model.source.path} names no end-of-sequence token: config.json needs eos_token_id")
    for flag, given in (("--few-shot base", config.few_shot == "base"),
                        ("--few-shot-train on", config.few_shot_train == "on")):
        if given and not task.prefix:
            raise ValueError(f"{flag} is given, but task {config.task} has no few-shot text: leave it out")
    need = longest(task, tokenizer) + (config.max_new_tokens or task.max_new_tokens)
    if config.max_len is not None and config.max_len < need:
        raise ValueError(f"--max-len is {config.max_len}, but the longest prompt and its new tokens need {need}: "
                         "raise --max-len or lower --max-new-tokens")
    if need > model.config.max_pos:
        raise ValueError(f"the longest prompt and its new tokens need {need} positions, but the model has "
                         f"{model.config.max_pos}: lower --max-new-tokens")
    sampler = Sampler(model, config.slots, config.max_len or need, tokenizer, config.merge)
    add_lora(model, config.rank, config.alpha)
    return sampler, tokenizer, task


def longest(task: Task, tokenizer) -> int:
    """Tokens of the longest prompt, few-shot text included: the longest of the hundred with most characters."""
    problems = [*task.train, *task.heldout]
    texts = [task.prefix + task.question(p) for p in problems] + [task.hint_prefix + task.hinted(p) for p in problems]
    return max(len(tokenizer.encode(text)) for text in heapq.nlargest(100, texts, key=len))


class Table:
    """A progress bar for each phase on stderr, a line an iteration on stdout."""

    def __init__(self, groups: list[str]):
        self.groups, self.bar = groups, None
        accuracy = "".join(f" {g:>7}" for g in groups)
        held = "held-out accuracy, %"
        print(f"{'':4}{held:{8 * len(groups)}} | {'examples from':20} | {'wrong':>9} | dropped problems")
        reasons = " ".join(f"{v:>8}" for v in VERDICTS if v != "right")
        print(f"{'it':>2}  {accuracy} | {'kept':>5} {'rationalized':>14} | {'steps':>9} | {reasons} | "
              f"{'tok/s':>7} | {'s':>6}", flush=True)

    def show(self, event: Event, run: Run) -> None:
        if isinstance(event, Tick):
            self.bar.update()
        elif isinstance(event, Phase):
            self.close()
            unit = "step" if event.name == "train" else "problem"
            self.bar = tqdm(total=event.total, desc=f"{event.iteration}: {event.name}", unit=unit, leave=False)
        elif isinstance(event, Finished):
            self.close()
            self.row(event.metrics, run.timings)

    def row(self, m: dict, timings: dict | None) -> None:
        line = f"{m['iteration']:>2}  " + "".join(f" {100 * m['accuracy'][g]:7.1f}" for g in self.groups)
        if m["iteration"]:
            wrong = f"{m['kept_wrong_steps']} + {m['rationalized_wrong_steps']}"
            line += f" | {m['kept']:5} {m['rationalized']:14} | {wrong:>9} | "
            line += " ".join(f"{n:8}" for n in m["dropped"].values())
        else:
            line += f" | {'(base)':20} | {'':9} | {'':35}"
        if timings:
            line += f" | {timings['sampled_tokens_per_s']:7,} | {sum(timings['seconds'].values()):6.1f}"
        print(line, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def start(given: dict, out: Path | None, resume: Path | None) -> tuple[Run, Iterator[Event], Decoder, Table]:
    """A new run, or one to go on with: its folder, its events to come, its model, and the table so far."""
    state, made = State(), []
    if resume is not None:
        fixed = ["--" + name.replace("_", "-") for name in sorted(set(given) - FREE_ON_RESUME)] + ["--out"] * bool(out)
        if fixed:
            free = ", ".join("--" + name for name in sorted(FREE_ON_RESUME))
            raise ValueError(f"--resume keeps the run's settings: leave out {', '.join(fixed)}; only {free} may change")
        run, state, made = Run.resume(resume, **given)
        if state.iteration >= run.config.iterations:
            raise ValueError(f"{resume} has finished its {state.iteration} iterations; to go on, raise --iterations")
        sampler, tokenizer, task = build(run.config)
        if state.iteration > 0:
            checkpoints.load_adapter(sampler.model, run.adapter(state.iteration))
    else:
        config = StarConfig(**given)
        sampler, tokenizer, task = build(config)  # before the folder: what cannot start leaves nothing behind
        run = Run.create(out, config, facts(sampler.model, sampler.slots))
    model = sampler.model
    trained = sum(p.numel() for p in trainable(model).values())
    print(f"model   {model.source.path.name}: {checkpoints.describe(model)}")
    print(f"train   {trained:,} numbers in adapters of rank {run.config.rank}; start from {run.config.start}, hint "
          f"{run.config.hint}, seed {run.config.seed}")
    print(f"task    {run.config.task}: {len(task.train):,} training problems, {len(task.heldout):,} held out")
    weights = "merged" if sampler.merges() else "live"
    print(f"device  {model.device} (--device {run.config.device}); {sampler.slots} slots, adapters sampled {weights}")
    print(f"run     {run.folder}\n", flush=True)
    table = Table([*dict.fromkeys(p.group or "all" for p in task.heldout), "mean"])
    for metrics in run.metrics():
        table.row(metrics, None)
    return run, star(sampler, tokenizer, task, run.config, state, made), model, table


def draw(run: Run) -> None:
    """The curves so far; without matplotlib the run goes on and says what to install."""
    try:
        draw_curves(run.folder, run.metrics())
    except ImportError as e:
        print(f"note: {e}", file=sys.stderr)


def main(argv: list[str] | None = None) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.showwarning = one_line
    run = None
    try:
        given, flags = read_flags(sys.argv[1:] if argv is None else argv)
        if flags.check and (flags.out or flags.resume):
            raise ValueError("--check starts no run: leave out --out and --resume")
        if flags.check:
            check(StarConfig(**given))
            return 0
        run, events, model, table = start(given, flags.out, flags.resume)
        with contextlib.closing(table):
            for event in events:
                run.record(event, model)
                table.show(event, run)
                if isinstance(event, Finished) and sum(run.timings["seconds"].values()) > 30:
                    draw(run)  # half a second: not for iterations that take little more
        draw(run)
        print(f"\ncurves  {run.folder / 'curves.png'}\nask it  python sample.py --run {run.folder}")
        return 0
    except KeyboardInterrupt:
        go_on = f"in {run.where}; go on with: python train.py --resume {run.folder}" if run else "before the start"
        print(f"stopped {go_on}", file=sys.stderr)
        return 130
    except torch.OutOfMemoryError:
        print("error: the device's memory is full: lower --slots or --batch-size", file=sys.stderr)
    except (ValueError, OSError) as e:
        print(f"error: {e}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
