"""What a run stands on, known before the weights are loaded; then the parts that the loop runs on.

    settings, task options  ->  plan: outline of the model, tokenizer, task, lengths, work, memory  ->  build: sampler

Whatever a run would refuse is refused here, in one line. It reads files and prints nothing; `describe` and `check` say
in words what a run would be.
"""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from pathlib import Path

import torch

import checkpoints
from checkpoints.chat import load_chat
from star import prompts
from star.cache import KVCache
from star.config import StarConfig
from star.decoder import Decoder
from star.device import choose_device, choose_dtype, free_memory
from star.lora import add_lora, trainable
from star.problem import Problem
from star.run.memory import Lengths, Memory, memory, refuse, size
from star.run.work import Work
from star.sampler import Sampler
from star.tasks import Task, load_task
from star.tasks.records import named

JOIN = 16  # tokens that few-shot text and question may have more as one text than apart


@dataclass(frozen=True)
class Plan:
    """What a run stands on. `model` is an outline: shapes without weights."""

    config: StarConfig
    device: torch.device
    model: Decoder
    tokenizer: object
    task: Task  # without problems that do not fit
    max_new: int  # tokens of a rationale
    lengths: Lengths
    work: Work
    memory: Memory
    notes: list[str]

    @property
    def max_len(self) -> int:
        """Own tokens of a row; a few of the few-shot text may not be shared."""
        return self.lengths.question + self.max_new + JOIN * (self.lengths.examples > 0)


def make_plan(config: StarConfig, options: dict, of: Callable[[Task], Task] = lambda task: task,
              generates: bool = True) -> Plan:
    """The plan of a run with these settings and task options. ValueError or OSError says what cannot be.

    of: what to make of the task before it is used. generates: False for a run that samples no training text.
    """
    folder, device = Path(config.model or checkpoints.SHIPPED), choose_device(config.device)
    model = outline(folder, config, device)
    tokenizer = load_tokenizer(folder, config.chat)
    if not tokenizer.eos_ids:
        raise ValueError(f"{folder} names no end-of-sequence token: config.json needs eos_token_id")
    task = of(load_task(config.task, **options))
    suits(task, config)
    max_new = config.max_new_tokens or task.max_new_tokens
    lengths, too_long = measure_prompts(task, tokenizer, max_new, model.config.max_pos)
    notes = list(task.notes)
    if too_long:
        task = copy(task)
        task.train, task.heldout = ([p for p in part if p.id not in too_long] for part in (task.train, task.heldout))
        notes.append(f"{len(too_long)} problems are left out: their prompt and {max_new} new tokens don't fit into the "
                     f"model's {model.config.max_pos} positions: {named(sorted(too_long))}")
    if config.validation >= len(task.train):
        raise ValueError(f"--validation is {config.validation}, but there are only {len(task.train)} training problems"
                         f"{' that fit into the context of the model' if too_long else ''}")
    work = Work.of(config, len(task.train), len(task.heldout), generates)
    needs = memory(model, config, lengths, max_new, max(work.sampled), device)
    return Plan(config, device, model, tokenizer, task, max_new, lengths, work, needs, notes)


def outline(folder: Path, config: StarConfig, device: torch.device) -> Decoder:
    """The base model's shapes in the dtype that it will have on the device."""
    if config.dtype != "auto":
        return checkpoints.outline(folder, config.dtype)
    model = checkpoints.outline(folder)
    return model.to(choose_dtype(device, model.dtype))


def load_base(model: Decoder, device: torch.device) -> Decoder:
    """Weights for an outline, on its device, if there is room."""
    need, free = sum(t.nbytes for _, t in model.tensors()), free_memory(device)
    if free is not None and need > free:
        smaller = "" if model.dtype.itemsize < 4 else ", or take half as much: --dtype bfloat16"
        name = str(model.dtype).removeprefix("torch.")
        raise ValueError(f"the weights need {size(need)} in {name}, but {device} has {size(free)} free: take a smaller "
                         f"model{smaller}")
    return checkpoints.fill(model, device)


def load_tokenizer(folder: Path, chat: bool):
    """The folder's tokenizer; with chat it carries the folder's template."""
    tokenizer = checkpoints.load_tokenizer(folder)
    if chat:
        tokenizer.chat = load_chat(folder)
    return tokenizer


def suits(task: Task, config: StarConfig) -> None:
    """ValueError for settings that speak of examples which the task does not show."""
    for flag, given in ((f"--few-shot-sample {config.few_shot_sample}", config.few_shot_sample != "always"),
                        ("--few-shot-train", config.few_shot_train)):
        if given and not task.prefix:
            raise ValueError(f"{flag} is given, but task {config.task} shows no examples here: leave it out")
    if config.chat and task.prefix and not task.turns(task.train[0]):
        raise ValueError(f"--chat: the few-shot text of task {config.task} has no form as a conversation")


def measure_prompts(task: Task, tokenizer, max_new: int, limit: int) -> tuple[Lengths, set[str]]:
    """(lengths, ids of problems that do not fit into `limit` positions with `max_new` new tokens).

    Plain and hinted prompts count. Raises ValueError where the few-shot text leaves no room, or no problem fits.
    """
    def length(p: Problem, hinted: bool, few_shot: bool) -> int:
        return len(prompts.encode(task, p, tokenizer, hinted, few_shot))

    everything = [*task.train, *task.heldout]
    around = len(tokenizer.encode("\n")) - 1  # what a tokenizer puts around a text; inside, a token is a byte at least
    of_text: dict[str, int] = {}  # few-shot text -> its tokens
    most = []  # (tokens that the question has at most, those of the text in front of it, problem, hinted)
    for p, hinted in ((p, hinted) for p in everything for hinted in (False, True)):
        text = task.few_shot(p, hinted)
        if text not in of_text:
            of_text[text] = length(p, hinted, True) - length(p, hinted, False)
        alone = len(prompts.render(task, p, tokenizer.chat, hinted, few_shot=False).encode()) + around
        most.append((alone, of_text[text], p, hinted))
    examples = max(of_text.values())
    if examples + max_new + 2 > limit:
        raise ValueError(f"the few-shot text has {examples} tokens, which with {max_new} new ones do not fit into "
                         f"{limit} positions: show fewer examples, or lower --max-new-tokens")
    out = {p.id for alone, before, p, hinted in most
           if before + JOIN + alone + max_new > limit and length(p, hinted, True) + max_new > limit}
    if any(all(p.id in out for p in part) for part in (task.train, task.heldout)):
        raise ValueError(f"{len(out)} of {len(everything)} prompts do not fit into {limit} positions with {max_new} "
                         f"new tokens, such as {named(sorted(out))}: show fewer examples, or lower "
                         "--max-new-tokens")
    longest = 0
    for alone, _, p, hinted in sorted(most, key=lambda entry: -entry[0]):
        if alone <= longest:  # and so are all that follow: most need not be encoded
            break
        if p.id not in out:
            longest = max(longest, length(p, hinted, False))
    return Lengths(longest, examples), out


def build(plan: Plan) -> Sampler:
    """A sampler around the base with fresh adapters, if the device has room for all of it."""
    config = plan.config
    refuse(plan.memory, free_memory(plan.device), plan.device, config)
    model = load_base(plan.model, plan.device)
    sampler = Sampler(model, config.slots, plan.max_len, plan.tokenizer, config.merge)
    add_lora(model, config.rank, config.alpha)
    return sampler


def describe(plan: Plan) -> list[str]:
    """What a run will cost, for people."""
    rationales, steps, free = sum(plan.work.sampled), sum(plan.work.steps), free_memory(plan.device)
    has = f"{plan.device} has {size(free)} free" if free is not None else f"on {plan.device}"
    shown = f"few-shot text of {plan.lengths.examples} tokens, stored once; " if plan.lengths.examples else ""
    most = f"{rationales:,} rationales x {plan.max_new} new tokens = {rationales * plan.max_new:,}"
    return [f"cost    {shown}at most {most}; {steps:,} steps x {plan.config.batch_size} examples",
            f"memory  {plan.memory}: {size(plan.memory.most)} at a time; {has}",
            *(f"note    {note}" for note in plan.notes)]


def check(plan: Plan) -> list[str]:
    """--check: what a run would stand on. Weights are not read; what else a run would refuse, is refused."""
    config, task, chat = plan.config, plan.task, plan.tokenizer.chat
    refuse(plan.memory, free_memory(plan.device), plan.device, config)
    Sampler(plan.model, 1, plan.max_len, plan.tokenizer)  # does the tokenizer fit the model?
    row = plan.max_len * KVCache.bytes_a_token(plan.model.config, plan.model.dtype)
    path, here = plan.model.source.path, Path.cwd()
    problem, ends = task.train[0], " or ".join(map(repr, task.stop)) or "its end token"
    plain, hinted = (prompts.render(task, problem, chat, hint) for hint in (False, True))
    ids = prompts.encode(task, problem, plan.tokenizer)
    return [
        f"model   {path.relative_to(here) if path.is_relative_to(here) else path}: {checkpoints.describe(plan.model)}",
        *describe(plan),
        f"cache   {plan.memory.slots} slots of {plan.max_len} tokens: at most {size(plan.memory.slots * row)}",
        f"task    {config.task}: {len(task.train):,} training problems, {len(task.heldout):,} held out; answers are "
        f"compared {task.compares}",
        f"ends    a rationale ends at {ends}, or after {plan.max_new} tokens",
        f"prompt  {problem.id}: {len(ids)} ids, first {ids[0]}, last {ids[-1]}", *indented(plain),
        "hinted  the same problem", *indented(hinted),
    ]


def opening(plan: Plan, sampler: Sampler, learns: str = "rationales") -> list[str]:
    """What a run says first. learns: what it trains on, as in Run.learns."""
    config, model, task = plan.config, sampler.model, plan.task
    numbers = sum(p.numel() for p in trainable(model).values())
    how = f"{'' if config.rationalize else 'no '}rationalization" if learns == "rationales" else f"on {learns}"
    return [
        f"model   {model.source.path.name}: {checkpoints.describe(model)}",
        f"train   {numbers:,} numbers in adapters of rank {config.rank}, learning rate {config.lr:g}; start from "
        f"{config.start}, {how}, seed {config.seed}",
        f"task    {config.task}: {len(task.train):,} training problems, {len(task.heldout):,} held out",
        f"device  {model.device} (--device {config.device}); {sampler.slots} slots, adapters sampled "
        f"{'merged' if sampler.merges() else 'live'}",
        *describe(plan),
    ]


def indented(text: str) -> list[str]:
    return ["        " + line for line in text.rstrip("\n").split("\n")]
