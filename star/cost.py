"""What a run will cost, said before it starts: tokens, memory, whether every prompt fits; then the time that is left.

Memory is a sum of shapes (weights, adapters, a merged copy, what sampling holds, what training keeps for the backward
pass), refused before anything is loaded, with the flag that helps. It loads nothing and prints nothing.
"""

import math
from dataclasses import dataclass

import torch

from star import prompts
from star.cache import KVCache, free_memory
from star.config import StarConfig
from star.data import named
from star.decoder import Decoder, DecoderConfig
from star.lora import add_lora, lora_modules, trainable
from star.problem import Problem
from star.sampler import MOST_SLOTS, PREFILL_TOKENS
from star.tasks import Task

SLACK = 16  # tokens that few-shot text and question may have more as one text than apart


@dataclass(frozen=True)
class Fit:
    """Tokens of prompts: `own` is the longest question, `prefix` the longest few-shot text in front of one."""

    own: int
    prefix: int

    @property
    def whole(self) -> int:
        return self.prefix + self.own


def fit(task: Task, tokenizer, cap: int, limit: int) -> tuple[Fit, list[str]]:
    """(lengths, ids of problems that do not fit into `limit` positions with `cap` new tokens). Those leave the task.

    Plain and hinted prompts count. Raises ValueError where the few-shot text leaves no room, or no problem fits.
    """
    def length(p: Problem, hinted: bool, few_shot: bool) -> int:
        return len(prompts.encode(task, p, tokenizer, hinted, few_shot))

    everything = [*task.train, *task.heldout]
    around = len(tokenizer.encode("\n")) - 1  # what a tokenizer puts around a text; inside, a token is a byte at least
    behind: dict[str, int] = {}  # few-shot text -> its tokens
    most = []  # (tokens that the question has at most, those of the text in front of it, problem, hinted)
    for p, hinted in ((p, hinted) for p in everything for hinted in (False, True)):
        shown = task.shown(p, hinted)
        if shown not in behind:
            behind[shown] = length(p, hinted, True) - length(p, hinted, False)
        own = len(prompts.render(task, p, tokenizer.chat, hinted, few_shot=False).encode()) + around
        most.append((own, behind[shown], p, hinted))
    prefix = max(behind.values())
    if prefix + cap + 2 > limit:
        raise ValueError(f"the few-shot text has {prefix} tokens, which with {cap} new ones do not fit into {limit} "
                         "positions: show fewer by --shots, or lower --max-new-tokens")
    out = {p.id for own, before, p, hinted in most
           if before + SLACK + own + cap > limit and length(p, hinted, True) + cap > limit}
    task.train, task.heldout = ([p for p in part if p.id not in out] for part in (task.train, task.heldout))
    if not task.train or not task.heldout:
        raise ValueError(f"{len(out)} of {len(everything)} prompts do not fit into {limit} positions with {cap} new "
                         f"tokens, such as {named(sorted(out))}: show fewer examples by --shots, or lower "
                         "--max-new-tokens")
    longest = 0
    for own, _, p, hinted in sorted(most, key=lambda entry: -entry[0]):
        if own <= longest:  # and so are all that follow: most need not be encoded
            break
        if p.id not in out:
            longest = max(longest, length(p, hinted, False))
    return Fit(longest, prefix), sorted(out)


def kept_bytes(c: DecoderConfig, dtype: torch.dtype, recompute: bool, length: int, cpu: bool) -> int:
    """Bytes that training keeps of one token for the backward pass; with recompute, block inputs and one whole block.

    length: of its sequence, which matters where attention has no kernel and keeps its scores (star/cache). The counts
    are of numbers that autograd was seen to save (tests/test_cost.py counts again), adapters' own products left out;
    with a single key head it saves up to a tenth more.
    """
    size, wide = dtype.itemsize, max(dtype.itemsize, 4)  # norms and softmax work in float32 at least
    q, kv = c.n_heads * c.head_dim, c.n_kv * c.head_dim
    norms = {"sandwich": 4, "parallel": 1}.get(c.block, 2)
    block = c.d_model * (norms * wide + min(norms, 2) * size) + (4 if c.gated else 2) * c.d_ff * size
    block += (q + kv) * wide if c.qk_norm and wide > size else 0
    scores = c.n_heads * length * (wide + (size if wide > size else 0) + (size if c.attn_cap else 0))
    blocks = [block + (2 * (q + kv) * size + scores if keeps_scores(c, dtype, length, cpu, window) else
                       (4 * q + 3 * kv) * size) for window in c.windows or [None] * c.n_layers]
    return c.n_layers * c.d_model * size + max(blocks) if recompute else sum(blocks)


def keeps_scores(c: DecoderConfig, dtype: torch.dtype, length: int, cpu: bool, window: int | None) -> bool:
    """Does attention to whole rows of this length hold all scores, having no kernel? As star/cache decides it."""
    return bool(c.attn_cap) or c.alibi or (window or length) < length or (cpu and dtype.itemsize < 4)


def memory(
    model: Decoder, config: StarConfig, lengths: Fit, cap: int, rows: int, device: torch.device
) -> dict[str, int]:
    """Bytes by what for. `model` is a plan; it gets adapters. rows: the most that a phase samples.

    Sampling and training do not meet: the larger one counts.
    """
    weights = sum(t.nbytes for _, t in model.tensors())
    add_lora(model, config.rank, config.alpha)
    copy = sum(module.weight.nbytes for _, module in lora_modules(model)) if config.merge != "off" else 0
    cpu, free = device.type == "cpu", free_memory(device)
    token = KVCache.bytes_a_token(model.config, model.dtype)
    row = (lengths.own + cap) * token
    half = max(free - weights, 0) // 2 if free is not None else MOST_SLOTS * row  # as the sampler chooses
    slots = min(rows, config.slots or max(1, min(MOST_SLOTS, half // row)))
    cache = slots * row + lengths.prefix * token
    return {"weights": weights,
            "adapters with gradient and moments": 4 * sum(p.nbytes for p in trainable(model).values()),
            "merged copy": copy,
            f"sampling in {slots} slots": cache + passing(model, config, lengths, slots, cpu),
            "training": training(model, config, lengths, cap, cpu)}


def passing(model: Decoder, config: StarConfig, lengths: Fit, slots: int, cpu: bool) -> int:
    """Bytes that sampling needs besides the cache, for a moment: a layer of a prefill, or logits and their noise."""
    c = model.config
    tokens = max(lengths.prefix, min(PREFILL_TOKENS, slots * lengths.own))
    scores = lengths.prefix > 0 or any(keeps_scores(c, model.dtype, lengths.own, cpu, w) for w in c.windows or [None])
    scored = c.n_heads * lengths.whole * (3 * model.dtype.itemsize + 4) if scores else 0  # with mask and copies
    prefill = tokens * (scored + (4 * c.d_ff + 4 * c.d_model) * model.dtype.itemsize)
    noisy = config.temperature or config.hint_temperature or config.eval_samples
    return max(prefill, slots * c.vocab * (40 if noisy else 12))


def training(model: Decoder, config: StarConfig, lengths: Fit, cap: int, cpu: bool) -> int:
    """Bytes that a step needs: what is kept of the tokens in work for the backward pass, and a chunk of logits."""
    sequence = lengths.own + cap + (lengths.prefix if config.few_shot_train == "on" else 0)
    micro = max(config.micro_tokens or (1024 if cpu else 8192), sequence)
    workers = torch.get_num_threads() if cpu else 1  # a CPU works on several micro-batches side by side
    tokens = min(workers * micro, config.batch_size * sequence)
    logits = 3 * 4 * model.config.vocab * min(workers * 1024, tokens)
    return tokens * kept_bytes(model.config, model.dtype, config.recompute == "on", sequence, cpu) + logits


def refuse(parts: dict[str, int], free: int | None, device: torch.device, config: StarConfig) -> None:
    """Raise ValueError, with the flag that helps, if the device has no room for these parts."""
    if free is None:
        return
    weights, adapters, copy, sampling, training = parts.values()
    if config.merge == "auto" and device.type != "cpu":  # then a copy is made only where there is room
        copy = 0
    held = weights + adapters + copy
    half = "" if config.dtype == "bfloat16" else ", or half as much by --dtype bfloat16"
    for need, advice in (
        (weights, f"take a smaller model{half}"),
        (weights + adapters, "lower --rank"),
        (held, "take --merge off"),
        (held + sampling, "lower --slots, or --max-new-tokens"),
        (held + training, "take --recompute on" if config.recompute == "off" else "lower --micro-tokens"),
    ):
        if need > free:
            what = ", ".join(f"{name} {size(n)}" for name, n in parts.items() if n)
            raise ValueError(f"the run needs {size(need)} and {device} has {size(free)} free ({what}): {advice}")


def size(n: int) -> str:
    """Bytes for people: 2.1 MiB, 13.50 GiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**28 else f"{n / 2**20:.1f} MiB"


def duration(seconds: float) -> str:
    """Time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Work:
    """Rationales to sample and optimizer steps, by iteration, at most; iteration 0 evaluates the base.

    Of a --hint-share, its mean is counted.
    """

    sampled: list[int]
    steps: list[int]

    @classmethod
    def of(cls, config: StarConfig, n_train: int, n_heldout: int) -> "Work":
        validation = min(config.validation, n_train)
        pupils, heldout = n_train - validation, min(config.heldout_problems or n_heldout, n_heldout)
        problems, tries, kept = min(config.problems, pupils), 0, 1
        if config.learn == "rationales":
            hints = config.sampling("rationalize")[0] if config.hint == "failure" else 0
            tries = math.ceil(problems * (config.samples + hints * config.hint_share))
            kept = max(config.samples, hints)  # of a problem: it is either solved, or rationalized
        looks = validation + heldout * (1 + config.eval_samples)
        steps = [0]
        for n in range(1, config.iterations + 1):
            tried = problems * (n if config.rounds == "all" else 1)
            most = kept * tried if config.cap is None else min(kept * tried, config.cap * min(tried, pupils))
            steps.append(config.steps(n, most))
        return cls([looks, *[tries + looks] * config.iterations], steps)

    def left(self, iteration: int) -> tuple[int, int]:
        """(rationales, steps) of the iterations after this one."""
        return sum(self.sampled[iteration + 1 :]), sum(self.steps[iteration + 1 :])


@dataclass
class Forecast:
    """Seconds that are left, from what the run has shown of itself so far."""

    work: Work
    sampling: float = 0.0  # seconds
    rationales: int = 0
    training: float = 0.0
    steps: int = 0

    def add(self, seconds: dict[str, float], rationales: int, steps: int) -> None:
        """What an iteration took."""
        self.training += seconds.get("train", 0.0)
        self.sampling += sum(s for phase, s in seconds.items() if phase not in ("train", "save"))
        self.rationales, self.steps = self.rationales + rationales, self.steps + steps

    def left(self, iteration: int) -> tuple[float, float | None]:
        """(seconds of sampling, of training or None as long as nothing was trained) after this iteration; at most."""
        rationales, steps = self.work.left(iteration)
        train = steps * self.training / self.steps if self.steps else None
        return rationales * self.sampling / max(self.rationales, 1), train
