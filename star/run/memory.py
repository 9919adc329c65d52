"""What memory a run needs, as a sum of shapes, and whether the device has it: refused before anything is loaded.

It sees the outline of a model and changes nothing in it.
"""

from dataclasses import dataclass, fields, replace

import torch

from kernels import nvidia
from kernels.cross_entropy import most_rows
from star.cache import MOST_SLOTS, KVCache, keys_can_be_shared
from star.config import StarConfig
from star.decoder import Decoder, DecoderConfig, Linear
from star.device import free_memory
from star.draws import SLICE
from star.lora import NARROW, is_int8, linear_parts
from star.schedule import PREFILL_TOKENS

MICRO_TOKENS = (8192, 4096, 2048, 1024)  # trained on at a time on a GPU: fewer no longer fill it, more bring nothing
SPARE = 1 / 16  # of a GPU's free memory, not to be counted on: workspaces, and holes between tensors


@dataclass(frozen=True)
class Lengths:
    """Tokens of prompts: `question` is the longest, `examples` the longest few-shot text in front of one."""

    question: int
    examples: int

    @property
    def whole(self) -> int:
        return self.examples + self.question


@dataclass(frozen=True)
class Memory:
    """Bytes by what for. Sampling, training and other models do not meet: the largest counts."""

    weights: int
    adapters: int  # with gradient and both moments
    copy: int  # merged weights
    sampling: int
    training: int
    slots: int
    others: int = 0  # the largest of the other models and the judge, at work: one is there at a time

    @property
    def most(self) -> int:
        """At one time."""
        return self.weights + self.adapters + self.copy + max(self.sampling, self.training, self.others)

    @property
    def together(self) -> int:
        """If all of it stayed."""
        return self.most + self.sampling + self.training + self.others - max(self.sampling, self.training, self.others)

    def __str__(self) -> str:
        names = {"adapters": "adapters with gradient and moments", "copy": "merged copy",
                 "sampling": f"sampling in {self.slots} slots", "others": "the largest other model"}
        parts = {names.get(f.name, f.name): getattr(self, f.name) for f in fields(self) if f.name != "slots"}
        return ", ".join(f"{name} {size(n)}" for name, n in parts.items() if n)


def memory(model: Decoder, config: StarConfig, lengths: Lengths, max_new: int, rows: int, device: torch.device,
           shares: int = 1) -> Memory:
    """What a run on this outline of a model needs. max_new: tokens of a rationale. rows: the most a phase samples.
    shares: ranks that share the blocks; of one of them then."""
    weights, c = held(model, shares), model.config
    cpu, free = device.type == "cpu", free_memory(device)
    scores = not cpu and not nvidia(device)  # of attention are held: there is a kernel on some of AMD's at most
    token = KVCache.bytes_a_token(c, model.dtype)
    row = (lengths.question + max_new) * token
    half = max(free - weights, 0) // 2 if free is not None else MOST_SLOTS * row  # as the sampler chooses
    slots = min(rows, config.slots or max(1, min(MOST_SLOTS, half // row)))
    cache = slots * row + lengths.examples * token
    if cpu and max(config.samples, config.eval_samples) > 1:  # prompts that several rows look at lie beside the slots
        cache += slots // 2 * lengths.question * token
    adapted = dict(model.tensors())
    shapes = [adapted[f"{part}.weight"].shape for part in linear_parts(model)]
    copy = sum(out * n_in for out, n_in in shapes) * model.dtype.itemsize
    adapters = 4 * max(model.dtype.itemsize, 4) * config.rank * sum(out + n_in for out, n_in in shapes)
    left = None if cpu or free is None else free - weights - adapters // 4  # when the sampler decides; no moments yet
    merges = left is None or copy < 0.5 * left if config.merge is None else config.merge  # as Sampler.merges does
    merges &= shares == 1 and not is_int8(model)
    return Memory(
        weights=weights,
        adapters=adapters,
        copy=copy if merges else 0,
        sampling=cache + passing(model, config, lengths, slots, cpu, scores),
        training=training(model, config, lengths, max_new, cpu, scores),
        slots=slots,
    )


def held(model: Decoder, shares: int) -> int:
    """Bytes of weights: all; or a share of the blocks, and three whole ones: at work, on its way, and ahead."""
    whole, blocks = (sum(p.nbytes for p in part.parameters()) for part in (model, model.layers))
    return whole if shares == 1 else whole - blocks + -(-blocks // shares) + 3 * -(-blocks // model.config.n_layers)


def passing(model: Decoder, config: StarConfig, lengths: Lengths, slots: int, cpu: bool, scores: bool = False
            ) -> int:
    """Bytes that sampling needs besides the cache, for a moment: a layer of a prefill, or logits and their noise."""
    c = model.config
    size, windows = model.dtype.itemsize, c.windows or [None]
    dense, scored = (4 * c.d_ff + 4 * c.d_model) * size, c.n_heads * (3 * size + 4)  # a token; a score, with copies
    alone = scores or any(keeps_scores(c, model.dtype, lengths.examples or lengths.question, cpu, w) for w in windows)
    behind = lengths.examples > 0 and (not keys_can_be_shared(c, lengths.whole) or scores or not (cpu or size == 2))
    questions = min(PREFILL_TOKENS, slots * lengths.question)
    prefill = max(questions * (dense + scored * lengths.whole * (behind if lengths.examples else alone)),
                  lengths.examples * (dense + scored * lengths.examples * alone))
    step = slots * c.vocab * 12
    if config.temperature or config.eval_samples:
        step += 28 * max(c.vocab, min(slots * c.vocab, SLICE[not cpu]))  # noise, some rows at a time
    prefill, step = prefill + widened(model), step + widened(model)
    return max(prefill, step) + (0 if cpu else step)  # a GPU's graphs hold what they need beside what is held at ease


def training(model: Decoder, config: StarConfig, lengths: Lengths, max_new: int, cpu: bool, scores: bool = False
             ) -> int:
    """Bytes that a step needs: what is kept of the tokens in work for the backward pass, and a chunk of logits."""
    sequence = lengths.question + max_new + (lengths.examples if config.few_shot_train else 0)
    micro = max(config.micro_tokens or (1024 if cpu else 8192), sequence)
    workers = torch.get_num_threads() if cpu else 1  # a CPU works on several micro-batches side by side
    tokens = min(workers * micro, config.batch_size * sequence)
    logits = 3 * 4 * model.config.vocab * min(workers * most_rows(model.config.vocab, cpu), tokens)
    kept = tokens * kept_bytes(model.config, model.dtype, config.recompute, sequence, cpu, scores)
    return kept + logits + min(workers, config.batch_size) * widened(model)


def widened(model: Decoder) -> int:
    """Bytes of the largest weight of 8 bits while it is multiplied by, in the model's dtype (kernels/int8)."""
    sizes = [m.weight.numel() for m in model.layers.modules() if isinstance(m, Linear) and m.rows is not None]
    return max(sizes, default=0) * model.dtype.itemsize


def kept_bytes(c: DecoderConfig, dtype: torch.dtype, recompute: bool, length: int, cpu: bool, scored: bool = False
               ) -> int:
    """Bytes that training keeps of one token for the backward pass; with recompute, block inputs and one whole block.

    length: of its sequence, which matters where attention has no kernel and keeps its scores (star/cache); scored: as
    on this device it never has. The counts are of numbers that autograd was seen to save (tests/test_memory.py counts
    again), adapters' own products left out; with a single key head it saves up to a tenth more. (A trial step on
    torch's "meta" device would need no formula, but has no attention kernel: in float32 it counts scores that no real
    device keeps.)
    """
    size, wide = dtype.itemsize, max(dtype.itemsize, 4)  # norms and softmax work in float32 at least
    q, kv = c.n_heads * c.head_dim, c.n_kv * c.head_dim
    block = c.d_model * (size if c.block.startswith("parallel") else 2 * size) + (1 + c.gated) * c.d_ff * size
    block += 2 * c.d_model * wide if c.block == "sandwich" else 0
    if c.d_model < NARROW:  # what norms give, or in 16 bits that and what they read in float32 (star/lora)
        block += 2 * c.d_model * wide
    if c.d_ff < NARROW:
        block += (1 + c.gated) * c.d_ff * size
    block += (q + kv) * wide if c.qk_norm and wide > size else 0
    scores = c.n_heads * length * (wide + (size if wide > size else 0) + (size if c.attn_cap else 0))
    packed = c.n_heads * wide + ((q + 2 * kv) * size if c.qk_norm else 0)  # log-sum-exp; norms read the heads
    packed += 0 if cpu or wide > size else (2 * q + kv) * size  # a GPU takes float32 run by run (kernels/packed)
    blocks = [block + 2 * (q + kv) * size
              + (scores if scored or keeps_scores(c, dtype, length, cpu, window) else packed)
              for window in c.windows or [None] * c.n_layers]
    ends = c.d_model * (wide + size) + (q + 2 * c.head_dim) * size  # last norm, its gradient, rows read, rope's tables
    return ends + (c.n_layers * c.d_model * size + max(blocks) if recompute else sum(blocks))


def keeps_scores(c: DecoderConfig, dtype: torch.dtype, length: int, cpu: bool, window: int | None) -> bool:
    """Does attention to whole rows of this length hold all scores, having no kernel? As star/cache decides it."""
    return bool(c.attn_cap) or c.alibi or (window or length) < length or (cpu and dtype.itemsize < 4)


def fitted(model: Decoder, config: StarConfig, lengths: Lengths, max_new: int, rows: int, device: torch.device,
           shares: int = 1) -> tuple[StarConfig, Memory, list[str]]:
    """(settings, what a run needs with them, notes): what nobody set is chosen so that it fits.

    Slots, where half of the memory that weights leave does not stand beside the merged copy and a prefill; on a GPU
    also the tokens trained on at a time, so that a resumed run takes as many. What was set stays as it is.
    """
    def needs(**changed) -> Memory:
        return memory(model, replace(config, **changed), lengths, max_new, rows, device, shares)

    free, need, notes = free_memory(device), needs(), []
    if free is None:
        return config, need, notes
    room, slots, rungs = (1 - SPARE) * free, need.slots, MICRO_TOKENS
    while config.slots is None and slots > 1 and replace(need, training=0).most > room:
        slots //= 2
        need = needs(slots=slots)
    if slots < needs().slots:
        config = replace(config, slots=slots)
        notes.append(f"{slots} rows are sampled at a time: more do not fit into {size(free)} beside weights and copy")
    if config.micro_tokens is None and device.type != "cpu":
        tokens = next((n for n in rungs if replace(needs(micro_tokens=n), sampling=0).most <= room), rungs[-1])
        config = replace(config, micro_tokens=tokens)
        if tokens < rungs[0]:
            notes.append(f"{tokens} tokens are trained on at a time: {2 * tokens} need "
                         f"{size(needs(micro_tokens=2 * tokens).training)}, which do not fit")
        need = needs()
    return config, need, notes


def refuse(need: Memory, free: int | None, device: torch.device, config: StarConfig) -> None:
    """Raise ValueError, with the flag that helps, if the device has no room."""
    if free is None:
        return
    held = need.weights + need.adapters + need.copy
    large = (config.micro_tokens or 0) > MICRO_TOKENS[-1]
    ways = ["--dtype bfloat16"] * (config.dtype != "bfloat16") + ["--base-bits 8"] * (config.base_bits is None)
    half = f", or half as much by {' or '.join(ways)}" if ways else ""
    for bytes_, advice in (
        (need.weights, f"take a smaller model{half}"),
        (need.weights + need.adapters, "lower --rank"),
        (held, "take --no-merge"),
        (held + need.sampling, "lower --slots, or --max-new-tokens" if need.slots > 1 else "lower --max-new-tokens"),
        (held + need.training, "lower --micro-tokens" if config.recompute or large else "take --recompute"),
        (held + need.others, "take smaller --generators or a smaller --reward"),
    ):
        if bytes_ > free:
            raise ValueError(f"the run needs {size(bytes_)} and {device} has {size(free)} free ({need}): {advice}")


def size(n: int) -> str:
    """Bytes for people: 2.1 MiB, 13.50 GiB."""
    return f"{n / 2**30:.2f} GiB" if n >= 2**28 else f"{n / 2**20:.1f} MiB"
