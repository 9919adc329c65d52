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
import sys
import warnings
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch
from tqdm import tqdm

import checkpoints
from checkpoints.chat import load_chat
from star import cost, prompts
from star.cache import KVCache, free_memory
from star.config import PRESETS, StarConfig
from star.cost import Forecast, Work, duration, size
from star.data import named
from star.decoder import Decoder
from star.evaluate import VERDICTS
from star.history import clip
from star.loop import Chunk, Event, Finished, Phase, State, Tick, star
from star.lora import add_lora, trainable
from star.problem import Generation
from star.run import Run, draw_curves, facts, read_lines
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
        flag, default = "--" + f.name.replace("_", "-"), "" if f.default is None else f" [{f.default}]"
        if f.type == "bool" or f.type is bool:
            parser.add_argument(flag, action="store_true", help=f.metadata["help"])
            continue
        kind = next(kind for name, kind in kinds.items() if name in str(f.type))
        parser.add_argument(flag, type=kind, choices=f.metadata["choices"] or None,
                            metavar=None if f.metadata["choices"] else kind.__name__, help=f.metadata["help"] + default)
    parser.add_argument("--out", type=Path, help="run folder, new or empty [runs/<task>-NNN]")
    parser.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    parser.add_argument("--check", action="store_true", default=False,
                        help="say what the model is, what it needs and what its first prompt is, and train nothing")
    parser.add_argument("--preset", choices=PRESETS, help="a table of settings (README); flags beside it go before it")
    parser.add_argument("--show", type=int, default=3, help="rationales shown an iteration, with their verdicts [3]")
    parser.add_argument("--price-per-hour", type=float, help="of the device: what the run cost is said at its end")
    given = vars(parser.parse_args(argv))
    own = ("out", "resume", "check", "preset", "show", "price_per_hour")
    flags = argparse.Namespace(**{name: given.pop(name, None) for name in own})
    if flags.preset and flags.resume:
        raise ValueError("--resume keeps the run's settings: leave out --preset")
    return preset(flags.preset, given), flags


def preset(name: str | None, given: dict) -> dict:
    """The preset's settings with the given ones before them; --epochs and a number of steps replace each other."""
    settings = dict(PRESETS[name]) if name else {}
    if "epochs" in given:
        settings.pop("first_steps", None), settings.pop("growth", None)
    if {"first_steps", "growth"} & set(given):
        settings.pop("epochs", None)
    if given.get("learn", "rationales") != "rationales" or given.get("temperature") == 0:
        for key in ("samples", "cap") if given.get("temperature") == 0 else ("samples", "temperature", "cap"):
            settings.pop(key, None)
    if "samples" in given:
        settings.pop("cap", None)
    if given.get("validation") == 0:
        settings.pop("heldout_when", None), settings.pop("patience", None)
    return settings | given


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


def load_tokenizer(config: StarConfig):
    """The base's tokenizer; with --chat it carries the folder's template."""
    folder = config.model or checkpoints.SHIPPED
    tokenizer = checkpoints.load_tokenizer(folder)
    if config.chat:
        tokenizer.chat = load_chat(folder)
    return tokenizer


def prepare(config: StarConfig) -> Task:
    """The task as this run learns it."""
    task = load_task(config.task, **config.task_options())
    if config.learn == "answers":
        task = task.answers_only()
    if config.learn == "gold" and any(task.gold(p) is None for p in task.train):
        raise ValueError(f"--learn gold needs human rationales, and task {config.task} has none here"
                         + (": name their field by --rationale-field" if config.task == "jsonl" else ""))
    for flag, given in ((f"--few-shot-sample {config.few_shot_sample}", config.few_shot_sample != "always"),
                        ("--few-shot-train on", config.few_shot_train == "on")):
        if given and not task.prefix:
            raise ValueError(f"{flag} is given, but task {config.task} shows no examples here: leave it out")
    if config.chat and task.prefix and not task.turns():
        raise ValueError(f"--chat: the few-shot text of task {config.task} has no form as a conversation")
    return task


class Plan:
    """All that is known before the weights are loaded: task, lengths, work, memory. Raises what a run would raise."""

    def __init__(self, config: StarConfig):
        self.config, (model, self.device) = config, plan_base(config)
        self.describes, path = checkpoints.describe(model), model.source.path
        self.tokenizer = load_tokenizer(config)
        if not self.tokenizer.eos_ids:
            raise ValueError(f"{path} names no end-of-sequence token: config.json needs eos_token_id")
        self.task = prepare(config)
        self.cap = config.max_new_tokens or self.task.max_new_tokens
        self.fit, skipped = cost.fit(self.task, self.tokenizer, self.cap, model.config.max_pos)
        need = self.fit.whole + self.cap
        if config.max_len is not None and config.max_len < need:
            raise ValueError(f"--max-len is {config.max_len}, but the longest prompt and its new tokens need {need}: "
                             "raise --max-len or lower --max-new-tokens")
        if config.validation >= len(self.task.train):
            raise ValueError(f"--validation is {config.validation}, but there are only {len(self.task.train)} training "
                             f"problems{' that fit into the context of the model' if skipped else ''}")
        self.notes = list(self.task.notes)
        if skipped:
            self.notes.append(f"{len(skipped)} problems are left out: their prompt and {self.cap} new tokens don't fit "
                              f"into the model's {model.config.max_pos} positions: {named(skipped)}")
        self.own = config.max_len or self.fit.own + self.cap + 16 * (self.fit.prefix > 0)  # a few may not be shared
        self.work, self.free = Work.of(config, len(self.task.train), len(self.task.heldout)), free_memory(self.device)
        self.memory = cost.memory(model, config, self.fit, self.cap, max(self.work.sampled), self.device)

    def lines(self) -> list[str]:
        """What it will cost, for people."""
        rationales, steps = sum(self.work.sampled), sum(self.work.steps)
        parts = {what: n for what, n in self.memory.items() if n}
        least = sum(self.memory.values()) - min(list(self.memory.values())[-2:])
        has = f"{self.device} has {size(self.free)} free" if self.free is not None else f"on {self.device}"
        shown = f"few-shot text of {self.fit.prefix} tokens, stored once; " if self.fit.prefix else ""
        needs = ", ".join(f"{what} {size(n)}" for what, n in parts.items())
        most = f"{rationales:,} rationales x {self.cap} new tokens = {rationales * self.cap:,}"
        return [f"cost    {shown}at most {most}; "
                f"{steps:,} steps x {self.config.batch_size} examples",
                f"memory  {needs}: {size(least)} at a time; {has}",
                *(f"note    {note}" for note in self.notes)]


def check(config: StarConfig) -> None:
    """--check: would a run start? Says what it would run on, or raises what a run would raise."""
    plan = Plan(config)
    print(f"model   {config.model or checkpoints.SHIPPED}: {plan.describes}\n" + "\n".join(plan.lines()), flush=True)
    sampler, tokenizer, task = build(plan)
    row = sampler.max_len * KVCache.bytes_a_token(sampler.model.config, sampler.model.dtype)
    weights = "merged" if sampler.merges() else "live: no merged copy"
    print(f"cache   {sampler.slots} slots of {sampler.max_len} tokens: at most {size(sampler.slots * row)}; adapters "
          f"sampled {weights}")
    problem = task.train[0]
    print(f"prompt  {prompts.render(task, problem, tokenizer.chat)!r}")
    print(f"ids     {prompts.encode(task, problem, tokenizer)}")


def build(plan: Plan) -> tuple[Sampler, object, Task]:
    """What the loop runs on: a sampler around the base with fresh adapters, its tokenizer, and the task."""
    config = plan.config
    cost.refuse(plan.memory, plan.free, plan.device, config)
    model = load_base(config)
    sampler = Sampler(model, config.slots, plan.own, plan.tokenizer, config.merge)
    add_lora(model, config.rank, config.alpha)
    return sampler, plan.tokenizer, plan.task


class Table:
    """A progress bar for each phase on stderr; on stdout a line an iteration, and what it looked like."""

    def __init__(self, plan: Plan, show: int = 3):
        self.plan, self.show_most, self.bar, self.seen = plan, show, None, []
        self.groups = [*dict.fromkeys(p.group or "all" for p in plan.task.heldout)]
        self.groups += ["mean"] if len(self.groups) > 1 else []
        self.forecast, self.paced, self.shares = Forecast(plan.work), False, plan.config.validation > 0
        accuracy = "".join(f" {g[:7]:>7}" for g in self.groups) + (f" {'valid.':>7}" if self.shares else "")
        width = 8 * (len(self.groups) + self.shares)
        held = "held-out accuracy, %" if width >= 20 else "right, %"
        print(f"{'':4}{held:{width}} | {'examples from':20} | {'wrong':>9} | dropped problems")
        reasons = " ".join(f"{v:>8}" for v in VERDICTS if v != "right")
        print(f"{'it':>2}  {accuracy} | {'kept':>5} {'rationalized':>14} | {'steps':>9} | {reasons} | "
              f"{'tok/s':>7} | {'s':>6} | {'left':>7}", flush=True)

    def show(self, event: Event, run: Run) -> None:
        if isinstance(event, Tick):
            self.bar.update()
        elif isinstance(event, Phase):
            self.pace(run)
            self.close()
            unit = "step" if event.name == "train" else "problem"
            self.bar = tqdm(total=event.total, desc=f"{event.iteration}: {event.name}", unit=unit, leave=False)
        elif isinstance(event, Chunk):
            self.seen += [g for g in event.generations if g.phase in ("generate", "rationalize")]
            self.pace(run)
        elif isinstance(event, Finished):
            self.close()
            self.row(event.metrics, run.timings)
            self.samples(event.metrics)

    def pace(self, run: Run) -> None:
        """After the first chunk: how fast it goes, and what that makes of the whole."""
        tokens, rows, seconds = run.clock.sampled()
        if self.paced or not rows:
            return
        self.paced = True
        rest = (sum(self.plan.work.sampled) - rows) * seconds / rows
        tqdm.write(f"pace    {tokens / seconds:,.0f} tokens/s, {tokens / rows:.1f} tokens a rationale: at most "
                   f"{duration(rest)} of sampling ahead, training not counted yet", file=sys.stderr)

    def row(self, m: dict, timings: dict | None) -> None:
        cells = [m.get("accuracy", {}).get(g) for g in self.groups]
        cells += [m.get("validation", {}).get("mean")] if self.shares else []
        line = f"{m['iteration']:>2}  " + "".join(f" {'':>7}" if c is None else f" {100 * c:7.1f}" for c in cells)
        if "kept" in m:
            wrong = f"{m['kept_wrong_steps']} + {m['rationalized_wrong_steps']}"
            line += f" | {m['kept']:5} {m['rationalized']:14} | {wrong:>9} | "
            line += " ".join(f"{n:8}" for n in m["dropped"].values())
        else:
            what = f"({m['examples']} {self.plan.config.learn})" if m["iteration"] else "(base)"
            line += f" | {what:20} | {'':9} | {'':35}"
        if timings:
            rationales = self.plan.work.sampled[m["iteration"]]
            self.forecast.add(timings["seconds"], rationales, m.get("steps", 0))
            sampling, training = self.forecast.left(m["iteration"])
            left = "" if training is None else duration(sampling + training)
            line += f" | {timings['sampled_tokens_per_s']:7,} | {sum(timings['seconds'].values()):6.1f} | {left:>7}"
        print(line, flush=True)

    def samples(self, m: dict) -> None:
        """How much was learned from, and some of the rationales with their verdicts: each kind once, if it came."""
        kinds: dict[str, list[Generation]] = {}
        for g in self.seen:
            kinds.setdefault(("rationalized" if g.phase == "rationalize" else "kept") if g.verdict == "right"
                             else f"{g.verdict}, hinted" if g.phase == "rationalize" else g.verdict, []).append(g)
        self.seen = []
        if not self.show_most or "kept" not in m:
            return
        print(f"      {m['solved']} of {m['problems']} problems solved ({m['solved'] / m['problems']:.1%}), "
              f"{m['rationalized_problems']} of them only with the hint; {m['truncated'] / m['tries']:.1%} of the "
              f"tries cut off; {m['distinct']} different rationales to keep; {m['mean_tokens']} tokens a try")
        order = sorted(kinds, key=lambda k: (k != "kept", k != "rationalized", -len(kinds[k])))
        spread = {kind: made[len(made) // 2 :] + made[: len(made) // 2] for kind, made in kinds.items()}
        picked = [(kind, spread[kind][i]) for i in range(self.show_most) for kind in order if i < len(spread[kind])]
        for kind, g in picked[: self.show_most]:
            print(f"      {kind:16} {g.problem}: {clip(' / '.join(g.text.strip().split(chr(10))), 120)}")
        print(flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()


def warn_if_weak(metrics: dict, task: Task) -> None:
    """The paper's condition for a start (section 6), on the base's few-shot accuracy."""
    if "interval" in metrics and metrics["interval"]["mean"][0] <= task.chance:
        share, chance = metrics["accuracy"]["mean"], f" ({task.chance:.1%} by guessing)" if task.chance else ""
        print(f"note    the base solves {share:.1%} of the held-out problems{chance}: not surely more than chance. The "
              "paper's remark (section 6): STaR starts only where few-shot accuracy is above chance; GPT-2 could not "
              "learn arithmetic so", flush=True)


def summary(run: Run, price: float | None) -> list[str]:
    """At the end: which iteration is the best, and what all of them took."""
    metrics, timings = run.metrics(), read_lines(run.folder / "timings.jsonl")
    lines, best = [], metrics[-1].get("best", metrics[-1]["iteration"])
    chosen = next(m for m in metrics if m["iteration"] == best)
    if "accuracy" in chosen:
        low, high = chosen["interval"]["mean"]
        why = "best on validation" if "best" in chosen else "the last"
        lines.append(f"result  iteration {best} ({why}): {chosen['accuracy']['mean']:.1%} of the held-out problems, "
                     f"95 % interval {low:.1%} to {high:.1%}; the base {metrics[0]['accuracy']['mean']:.1%}")
        for name in (name for name in ("pass_at", "maj_at") if name in chosen):
            shares = ", ".join(f"{v:.1%} @{k}" for k, v in chosen[name].items())
            lines.append(f"{name.removesuffix('_at'):7} {shares}")
    hours = sum(sum(t["seconds"].values()) for t in timings) / 3600
    sampled, trained = (sum(t["tokens"].get(kind, 0) for t in timings) for kind in ("sampled", "trained"))
    money = f"; {hours * price:.2f} at {price:g} an hour" if price is not None else ""
    return [*lines, f"spent   {hours:.3f} device-hours; {sampled:,} tokens sampled, {trained:,} trained on{money}"]


def start(
    given: dict, out: Path | None, resume: Path | None, show: int
) -> tuple[Run, Iterator[Event], Decoder, Table]:
    """A new run, or one to go on with: its folder, its events to come, its model, and the table so far."""
    state, made = State(), []
    if resume is not None:
        fixed = ["--" + name.replace("_", "-") for name in sorted(set(given) - FREE_ON_RESUME)] + ["--out"] * bool(out)
        if fixed:
            free = ", ".join("--" + name for name in sorted(FREE_ON_RESUME))
            raise ValueError(f"--resume keeps the run's settings: leave out {', '.join(fixed)}; only {free} may change")
        run, state, made = Run.resume(resume, **given)
        if state.done(run.config):
            early = "" if state.iteration >= run.config.iterations else ", out of --patience"
            raise ValueError(f"{resume} has finished its {state.iteration} iterations{early}; to go on, "
                             + ("start a run with more --patience" if early else "raise --iterations"))
        plan = Plan(run.config)
        sampler, tokenizer, task = build(plan)
        if state.iteration > 0:
            checkpoints.load_adapter(sampler.model, run.adapter(state.iteration))
    else:
        config = StarConfig(**given)
        plan = Plan(config)
        sampler, tokenizer, task = build(plan)  # before the folder: what cannot start leaves nothing behind
        run = Run.create(out, config, facts(sampler.model, sampler.slots))
    model = sampler.model
    trained = sum(p.numel() for p in trainable(model).values())
    print(f"model   {model.source.path.name}: {checkpoints.describe(model)}")
    print(f"train   {trained:,} numbers in adapters of rank {run.config.rank}, learning rate {run.config.lr:g}; start "
          f"from {run.config.start}, hint {run.config.hint}, seed {run.config.seed}")
    print(f"task    {run.config.task}: {len(task.train):,} training problems, {len(task.heldout):,} held out")
    weights = "merged" if sampler.merges() else "live"
    print(f"device  {model.device} (--device {run.config.device}); {sampler.slots} slots, adapters sampled {weights}")
    print("\n".join(plan.lines()))
    print(f"run     {run.folder}\n", flush=True)
    table = Table(plan, show)
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
        run, events, model, table = start(given, flags.out, flags.resume, flags.show)
        with contextlib.closing(table):
            for event in events:
                run.record(event, model)
                table.show(event, run)
                if isinstance(event, Finished) and sum(run.timings["seconds"].values()) > 30:
                    draw(run)  # half a second: not for iterations that take little more
                if isinstance(event, Finished) and event.iteration == 0 and run.config.learn == "rationales":
                    warn_if_weak(event.metrics, table.plan.task)
        draw(run)
        print("\n" + "\n".join(summary(run, flags.price_per_hour)))
        print(f"curves  {run.folder / 'curves.png'}\nlook    python sample.py --run {run.folder}")
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
