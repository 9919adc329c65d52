"""What a run stands on, known before the weights are loaded; then the parts that the loop runs on.

    settings, task options  ->  plan: outline of the model, tokenizer, task, lengths, work, memory  ->  build: sampler

Whatever a run would refuse is refused here, in one line. It reads files and prints nothing; `describe` and `check` say
in words what a run would be.
"""

import contextlib
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import checkpoints
from checkpoints.chat import has_chat
from star import prompts
from star.cache import KVCache
from star.config import StarConfig
from star.decoder import Decoder
from star.device import choose_device, free_memory
from star.lora import add_lora, trainable
from star.ranks import ONE, Ranks
from star.run.memory import Lengths, Memory, fitted, refuse, size
from star.run.models import JOIN, load_base, load_shared, load_tokenizer, measure_prompts, outline, recast
from star.run.others import Others, plan_others
from star.run.screen import legible
from star.run.work import Work
from star.sampler import Sampler
from star.shard import Turns
from star.tasks import Task, ask, load_task
from star.tasks.records import named
from star.text import visible


@dataclass(frozen=True)
class Plan:
    """What a run stands on. `model` is an outline: shapes without weights."""

    config: StarConfig  # with what was chosen for the device
    device: torch.device
    model: Decoder
    tokenizer: object
    task: Task  # without problems that do not fit
    max_new: int  # tokens of a rationale
    lengths: Lengths
    work: Work
    memory: Memory
    notes: list[str]
    others: Others
    ranks: Ranks = ONE  # as the loop is to have them: Turns, where they share the frozen blocks

    @property
    def max_len(self) -> int:
        """Own tokens of a row; a few of the few-shot text may not be shared."""
        return self.lengths.question + self.max_new + JOIN * (self.lengths.examples > 0)


def make_plan(config: StarConfig, options: dict, of: Callable[[Task], Task] = lambda task: task,
              generates: bool = True, trains: bool = True, ranks: Ranks = ONE) -> Plan:
    """The plan of a run with these settings and task options. ValueError or OSError says what cannot be.

    of: what to make of the task before it is used. generates: False for a run that samples no training text. trains:
    False for one that only samples. ranks: the processes that plan and run it together.
    """
    folder, device = Path(config.model or checkpoints.SHIPPED), choose_device(config.device)
    model = outline(folder, config, device)
    with named_model(config):
        tokenizer = load_tokenizer(folder, config.chat, ends=True)
    task = of(load_task(config.task, **options))
    suits(task, config, trains)
    max_new = config.max_new_tokens or task.max_new_tokens
    with named_model(config):
        lengths, too_long = measure_prompts(task, tokenizer, max_new, model.config.max_pos)
    notes, marks = list(task.notes), markers(task, tokenizer)
    if not config.chat and has_chat(folder) and not marks:
        notes.append("the model has a chat template, and is asked without it here: --chat asks as it was trained")
    if too_long:
        task = copy(task)
        task.train, task.heldout = ([p for p in part if p.id not in too_long] for part in (task.train, task.heldout))
        notes.append(f"{len(too_long)} problems are left out: their prompt and {max_new} new tokens don't fit into the "
                     f"model's {model.config.max_pos} positions: {named(sorted(too_long))}")
    if config.validation >= len(task.train):
        raise ValueError(f"--validation is {config.validation}, but there are only {len(task.train)} training problems"
                         f"{' that fit into the context of the model' if too_long else ''}")
    others = plan_others(config, task, tokenizer, model, max_new, device)
    work = Work.of(config, len(task.train), len(task.heldout), generates, others.pool.answers_a_problem(config))
    chosen = fitted(model, config, lengths, max_new, max(work.sampled), device)
    ranks = shared(config, chosen[1], device, ranks)
    if isinstance(ranks, Turns):
        chosen = fitted(model, config, lengths, max_new, max(work.sampled), device, ranks.size)
        notes.append(f"the frozen blocks are shared out over {ranks.size} ranks, and adapters sampled live")
    config, needs, said = chosen
    notes += [*tokenizer.notes, *marks, *others.notes, *recast(folder, config, model), *said]
    return Plan(config, device, model, tokenizer, task, max_new, lengths, work, replace(needs, others=others.bytes),
                notes, others, ranks)


def shared(config: StarConfig, need: Memory, device: torch.device, ranks: Ranks) -> Ranks:
    """The ranks, as Turns where they are to share the frozen blocks: --shard, or one of them lacks room for all."""
    if config.shard and (ranks.size == 1 or device.type == "mps"):
        here = "this is one" if ranks.size == 1 else f"torch cannot on {device.type}"
        raise ValueError(f"--shard gives each of several processes a share of the weights, and {here}: start it by "
                         "torchrun on CPUs or CUDA, or say --no-shard")
    free = free_memory(device) if device.type != "mps" else None
    may = config.shard is None and not config.merge
    short = may and free is not None and need.most - need.copy > free
    shares = config.shard or (ranks.size > 1 and any(ranks.gather(short)))
    return Turns(ranks.rank, ranks.size) if shares else ranks


@contextlib.contextmanager
def named_model(config: StarConfig) -> Iterator[None]:
    """Around what a model's own files refuse: whoever named no model may have meant to."""
    try:
        yield
    except ValueError as e:
        if config.model is not None:
            raise
        raise ValueError(f"{e}; without --model it is the tiny adder that ships, which knows sums alone: name a "
                         "model's folder by --model") from None


def markers(task: Task, tokenizer) -> list[str]:
    """A note on prompts that hold control tokens by name: whoever wrote them may have meant the tokens."""
    few = {task.few_shot(p, hinted) for p in task.train[:1] for hinted in (False, True)}
    held = {t: None for text in [*few, *map(task.question, task.train)] for t in tokenizer.special_in(text)}
    if not held:
        return []
    instead = "" if tokenizer.chat else "; --chat renders the model's own template"
    return [f"prompts hold {named(list(held))} as text, not as a token{instead}"]


def suits(task: Task, config: StarConfig, trains: bool = True) -> None:
    """ValueError for settings that speak of what the task does not have: examples, answers, steps to check."""
    unanswered = [p.id for p in [*task.train, *task.heldout] if not p.answer]
    if unanswered and len(unanswered) < len(task.train) + len(task.heldout):
        raise ValueError(f"{len(unanswered)} problems of task {config.task} have no answer, such as "
                         f"{named(unanswered)}: give all of them one, or none")
    if unanswered and trains and (config.select != "reward" or not config.reward):
        raise ValueError(f"task {config.task} has no answers to compare with: choose by a reward model alone, with "
                         "--select reward --reward DIR")
    if unanswered and config.eval_samples:
        raise ValueError("--eval-samples counts right answers, and the task has none: leave it out")
    if config.select == "reward" and not unanswered:
        raise ValueError(f"--select reward is for tasks without answers, and task {config.task} has them: take "
                         "correct+reward, or reward-blind to ignore them on purpose")
    if config.select == "correct+steps" and ask(task, "check_steps", task.train[0], "") is None:
        raise ValueError(f"--select correct+steps: task {config.task} cannot check steps; it has no check_steps")
    for flag, given in ((f"--few-shot-sample {config.few_shot_sample}", config.few_shot_sample != "always"),
                        ("--few-shot-train", config.few_shot_train)):
        if given and not task.prefix:
            raise ValueError(f"{flag} is given, but task {config.task} shows no examples here: leave it out")
    if config.chat and task.prefix and not task.turns(task.train[0]):
        raise ValueError(f"--chat: the few-shot text of task {config.task} has no form as a conversation")


def build(plan: Plan) -> Sampler:
    """A sampler around the base with fresh adapters, if the device has room for all of it."""
    config, shares = plan.config, isinstance(plan.ranks, Turns)
    refuse(plan.memory, free_memory(plan.device), plan.device, config)
    model = load_shared(plan.model, plan.device, config, plan.ranks) if shares else load_base(plan.model, plan.device)
    sampler = Sampler(model, config.slots, plan.max_len, plan.tokenizer, config.merge)
    # on a GPU with room for all, graphs outlast training: they are recorded once a run
    sampler.stays = plan.device.type == "cuda" and plan.memory.together <= (free_memory(plan.device) or 0)
    if not shares:
        add_lora(model, config.rank, config.alpha)
    return sampler


def describe(plan: Plan) -> list[str]:
    """What a run will cost, for people."""
    rationales, steps, free = sum(plan.work.sampled), sum(plan.work.steps), free_memory(plan.device)
    has = f"{plan.device} has {size(free)} free" if free is not None else f"on {plan.device}"
    shown = f"few-shot text of {plan.lengths.examples} tokens, stored once; " if plan.lengths.examples else ""
    most = f"{rationales:,} rationales x {plan.max_new} new tokens = {rationales * plan.max_new:,}"
    return [*map(visible, plan.others.said),
            f"cost    {shown}at most {most}; {steps:,} steps x {plan.config.batch_size} examples",
            f"memory  {plan.memory}: {size(plan.memory.most)} at a time; {has}{ranked(plan.ranks)}",
            *(visible(f"note    {note}") for note in plan.notes)]


def ranked(ranks: Ranks) -> str:
    """", for each of 2 ranks": what a device, its memory and slots are counted for, where there are several."""
    return f", for each of {ranks.size} ranks" if ranks.size > 1 else ""


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
        visible(f"model   {path.relative_to(here) if path.is_relative_to(here) else path}: "
                f"{checkpoints.describe(plan.model)}"),
        *describe(plan),
        f"cache   {plan.memory.slots} slots of {plan.max_len} tokens: at most {size(plan.memory.slots * row)}",
        *tasked(plan),
        f"ends    a rationale ends at {ends}, or after {plan.max_new} tokens",
        f"prompt  {visible(problem.id)}: {len(ids)} ids, first {ids[0]}, last {ids[-1]}", *indented(plain),
        *(["hinted  the same problem", *indented(hinted)] if config.rationalize else []),
    ]


def opening(plan: Plan, sampler: Sampler, learns: str = "rationales") -> list[str]:
    """What a run says first. learns: what it trains on, as in Run.learns."""
    config, model = plan.config, sampler.model
    numbers = sum(p.numel() for p in trainable(model).values())
    hints = config.rationalize and config.sampling("rationalize")[0]
    how = f"{'' if hints else 'no '}rationalization" if learns == "rationales" else f"on {learns}"
    return [
        visible(f"model   {model.source.path.name}: {checkpoints.describe(model)}"),
        f"train   {numbers:,} numbers in adapters of rank {config.rank}, learning rate {config.lr:g}; start from "
        f"{config.start}, {how}, seed {config.seed}",
        *tasked(plan),
        f"device  {model.device} (--device {config.device}){ranked(plan.ranks)}; {plan.memory.slots} slots, adapters "
        f"sampled {'merged' if sampler.merges() else 'live'}",
        *describe(plan),
    ]


def tasked(plan: Plan) -> list[str]:
    task = plan.task
    return [visible(f"task    {plan.config.task}: {len(task.train):,} training problems, {len(task.heldout):,} held "
                    f"out; answers are compared {task.compares}")]


def indented(text: str) -> list[str]:
    return ["        " + line for line in legible(text).rstrip("\n").split("\n")]
