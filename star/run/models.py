"""A model's folder on the desk: its outline, weights and tokenizer, and how long a task's prompts are in its tokens.

What does not fit is refused before weights are read. The same for the student, for other models and for a judge.
"""

from pathlib import Path

import torch

import checkpoints
from checkpoints.chat import load_chat, notes_on
from checkpoints.special import no_end
from star import prompts
from star.config import StarConfig
from star.decoder import Decoder
from star.device import check_dtype, choose_dtype, free_memory
from star.lora import add_lora, is_int8, make_int8, reset
from star.problem import Problem
from star.run.memory import Lengths, size
from star.shard import Turns
from star.tasks import Task
from star.tasks.records import named

JOIN = 16  # tokens that few-shot text and question may have more as one text than apart


def outline(folder: Path, config: StarConfig, device: torch.device) -> Decoder:
    """The base model's shapes as it will be on the device."""
    model = checkpoints.outline(folder, None if config.dtype == "auto" else config.dtype)
    return placed(model, config, device)


def placed(model: Decoder, config: StarConfig, device: torch.device) -> Decoder:
    """An outline in the dtype that it will have on the device, and in 8 bits where they are wanted."""
    if config.dtype == "auto":
        model.to(choose_dtype(device, model.dtype))
    check_dtype(device, model.dtype)
    return make_int8(model) if config.base_bits else model


def recast(folder: Path, config: StarConfig, model: Decoder) -> list[str]:
    """A note on a float16 checkpoint that computes in bfloat16, which nobody asked for."""
    if config.dtype != "auto" or model.dtype != torch.bfloat16 or checkpoints.outline(folder).dtype != torch.float16:
        return []
    return [f"{folder.name} is stored in float16 and computes in bfloat16 here, as fast and as large, with 3 bits less "
            "of each number: --dtype float32 keeps them"]


def load_base(model: Decoder, device: torch.device) -> Decoder:
    """Weights for an outline, on its device, if there is room."""
    room(model, device)
    return checkpoints.fill(model, device)


def load_shared(model: Decoder, device: torch.device, config: StarConfig, turns: Turns) -> Decoder:
    """The same for ranks that share it: each reads block by block and keeps its share. With fresh adapters, which have
    to be there before."""
    add_lora(model, config.rank, config.alpha)  # an outline's
    checkpoints.fill(model, device, turns.split)
    turns.join(model)
    reset(model)
    return model


def room(model: Decoder, device: torch.device) -> None:
    """ValueError if the device has no room for an outline's weights."""
    need, free = sum(p.nbytes for p in model.parameters()), free_memory(device)
    if free is not None and need > free:
        ways = ["--dtype bfloat16"] * (model.dtype.itemsize >= 4) + ["--base-bits 8"] * (not is_int8(model))
        smaller = f", or take half as much: {' or '.join(ways)}" if ways else ""
        name = str(model.dtype).removeprefix("torch.")
        raise ValueError(f"the weights need {size(need)} in {name}, but {device} has {size(free)} free: take a smaller "
                         f"model{smaller}")


def load_tokenizer(folder: Path, chat: bool, ends: bool = False):
    """The folder's tokenizer; with chat it carries the folder's template. ends: it must know how a text ends.

    ValueError where no file says that, or where the template writes a control token that the tokenizer lacks.
    """
    tokenizer = checkpoints.load_tokenizer(folder)
    if ends and not tokenizer.eos_ids:
        raise no_end(folder)
    if chat:
        tokenizer.chat = load_chat(folder)
        tokenizer.notes += notes_on(tokenizer.chat, tokenizer)
    return tokenizer


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
