"""Sampling with a KV cache: lines 3 and 4 of Algorithm 1.

A batch of prompts is prefilled at once, right-padded, and decoded until every row has ended; rows that have ended are
dropped now and then. A prefix that all prompts share is prefilled and stored once. It knows no tasks and no hints.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from star import lora
from star.cache import KVCache
from star.decoder import Decoder
from star.problem import Completion

SYNC_EVERY = 8  # decode steps between looks at the flags, where a look makes the host wait for a device

COMPACT = 0.75  # once fewer rows than this share still go, the others are dropped from the batch


@dataclass(frozen=True)
class _Options:
    """What one call asks for, checked."""

    max_new: list[int]  # a prompt
    temperature: float
    stop_ids: Tensor  # on the device
    seeds: list[int]  # a prompt
    on_token: Callable[[int, int], None] | None


class Sampler:
    """Draws completions from a model, many rows at a time.

    slots: rows of a batch. max_len: prompt + new tokens of a row, the shared prefix not counted. With a tokenizer,
    ids beyond its vocabulary (padded rows of the head) are never drawn. merge: "on" samples a model that has adapters
    from merged weights, a second buffer; "off" from the live adapters; "auto" merges where that buffer fits.
    """

    def __init__(self, model: Decoder, slots: int = 64, max_len: int = 1024, tokenizer=None, merge: str = "auto"):
        if slots < 1 or max_len < 2:
            raise ValueError(f"slots is {slots} and max_len {max_len}; at least 1 and 2 are needed")
        if merge not in ("auto", "on", "off"):
            raise ValueError(f"merge is {merge!r}; it must be auto, on or off")
        self.model, self.slots, self.max_len, self.merge = model, slots, max_len, merge
        vocab = model.config.vocab
        if tokenizer is not None and tokenizer.vocab_size > vocab:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, but the model's vocabulary only {vocab}: "
                             "they do not belong together")
        self.n_drawable = vocab if tokenizer is None else tokenizer.vocab_size
        self._twin: Decoder | None = None
        self._version: tuple | None = None
        self._prefilled: tuple[object, KVCache] | None = None  # the last prefix: the chunks of a phase have the same

    def generate(self, prompts: Sequence[Sequence[int]], **options) -> list[Completion]:
        """Completions in the order of the prompts. Options are those of `stream`."""
        out = dict(self.stream(prompts, **options))
        return [out[i] for i in range(len(prompts))]

    @torch.no_grad()
    def stream(
        self,
        prompts: Sequence[Sequence[int]],
        prefix: Sequence[int] = (),
        max_new_tokens: int | Sequence[int] = 256,
        temperature: float = 0.0,
        stop_ids: Iterable[int] = (),
        seeds: Sequence[int] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """(index of the prompt, Completion) as rows finish.

        prefix: ids in front of every prompt, stored once. A row ends at a stop id or after max_new_tokens (an int, or
        one a prompt). temperature 0 is greedy; otherwise a token is a function of (the prompt's seed, index of the
        new token, id) and never of the batch it ran in. seeds: one int a prompt; default its index.
        on_token(index, id) sees every new token as it is drawn. Raises ValueError for what cannot be sampled.
        """
        prompts, prefix = [list(p) for p in prompts], list(prefix)
        options = self._check(prompts, prefix, max_new_tokens, temperature, stop_ids, seeds, on_token)
        if not prompts:
            return
        if prefix and not all(prompts):  # a row needs a token of its own to continue from: lend it the prefix's last
            prompts, prefix = [[prefix[-1], *p] for p in prompts], prefix[:-1]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # rows of a batch as even as can be
        model = self._weights()
        shared = self._prefill(model, prefix) if prefix else None
        for start in range(0, len(order), self.slots):
            rows = order[start : start + self.slots]
            longest = max(len(prompts[i]) + options.max_new[i] for i in rows)
            cache = KVCache(model.config, len(rows), longest, model.device, model.dtype)
            if shared is not None:
                cache.share(shared, len(prefix))
            yield from self._batch(model, cache, rows, prompts, options)

    def _weights(self) -> Decoder:
        """The model to sample from, always with the present adapters."""
        adapted = list(lora.lora_modules(self.model))
        if not adapted or self.merge == "off":
            return self.model
        if self.merge == "auto" and self._twin is None and self.model.device.type == "cuda":
            need = sum(module.weight.nbytes for _, module in adapted)
            if need > 0.5 * torch.cuda.mem_get_info(self.model.device)[0]:  # leave room for the cache
                return self.model
        version = lora.version(self.model)
        if version != self._version:
            self._twin = lora.merged(self.model, self._twin)
            self._version = version
        return self._twin

    def _check(self, prompts, prefix, max_new_tokens, temperature, stop_ids, seeds, on_token) -> _Options:
        n, vocab = len(prompts), self.model.config.vocab
        max_new = [max_new_tokens] * n if isinstance(max_new_tokens, int) else list(max_new_tokens)
        seeds = list(range(n)) if seeds is None else [int(s) for s in seeds]
        if len(max_new) != n or len(seeds) != n:
            raise ValueError(f"{n} prompts, but {len(max_new)} max_new_tokens and {len(seeds)} seeds: one a prompt")
        if not 0.0 <= temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number")
        for i, (prompt, new) in enumerate(zip(prompts, max_new, strict=True)):
            if not prompt and not prefix:
                raise ValueError(f"prompt {i} is empty: there is nothing to continue")
            if new < 1:
                raise ValueError(f"max_new_tokens of prompt {i} is {new}; it must be at least 1")
            if len(prompt) + new > self.max_len:
                raise ValueError(f"prompt {i} has {len(prompt)} tokens and may grow by {new}: that is more than "
                                 f"max_len={self.max_len}; raise max_len or lower max_new_tokens")
        worst = [t for p in [*prompts, prefix] for t in p if not 0 <= t < vocab]
        if worst:
            raise ValueError(f"token id {worst[0]} is not in the model's vocabulary of {vocab}")
        stop = torch.tensor(sorted(set(stop_ids)), dtype=torch.int64, device=self.model.device)
        return _Options(max_new, temperature, stop, seeds, on_token)

    def _prefill(self, model: Decoder, prefix: list[int]) -> KVCache:
        """A cache of one row that holds the prefix; kept until the prefix or the weights change."""
        key = (tuple(prefix), lora.version(self.model))
        if self._prefilled is None or self._prefilled[0] != key:
            cache = KVCache(model.config, 1, len(prefix), model.device, model.dtype)
            cache.expect(torch.zeros(1, dtype=torch.int64, device=model.device), len(prefix), len(prefix))
            model.hidden(torch.tensor([prefix], device=model.device), cache)
            self._prefilled = key, cache
        return self._prefilled[1]

    def _batch(
        self, model: Decoder, cache: KVCache, rows: list[int], prompts: list[list[int]], o: _Options
    ) -> Iterator[tuple[int, Completion]]:
        """Prefill these prompts together and decode until the last of them has ended."""
        device, B = model.device, len(rows)
        host_lengths, limits = [len(prompts[i]) for i in rows], [o.max_new[i] for i in rows]
        width, most = max(host_lengths), max(limits)
        tokens = torch.tensor([prompts[i] + [0] * (width - len(prompts[i])) for i in rows], device=device)  # (B, width)
        lengths = torch.tensor(host_lengths, device=device)  # own tokens of a row that the cache holds
        seeds = torch.tensor([_signed(o.seeds[i]) for i in rows], device=device)
        new = torch.zeros(B, most, dtype=torch.int64, device=device)
        logprobs = torch.zeros(B, most, device=device)
        stopped = torch.zeros(B, dtype=torch.bool, device=device)
        ends = torch.tensor(limits, device=device)  # how many new tokens a row has when it ends, as far as is known

        cache.expect(torch.zeros_like(lengths), width, width)
        hidden = model.hidden(tokens, cache)[torch.arange(B, device=device), lengths - 1]  # (B, D): each row's last
        going, every = list(range(B)), 1 if looks_are_free(device) or o.on_token else SYNC_EVERY
        for step in range(most):
            drawn, logprobs[:, step] = self._draw(model.logits(hidden), o.temperature, seeds, step)
            new[:, step] = drawn
            stops = torch.isin(drawn, o.stop_ids) & (ends > step)
            ends, stopped = torch.where(stops, step + 1, ends), stopped | stops
            if (step + 1) % every == 0 or step + 1 == most:
                ended, by_stop = ends.tolist(), stopped.tolist()  # the only wait for the device in this loop
                if o.on_token:
                    for b in (b for b in going if ended[b] > step):
                        o.on_token(rows[b], int(new[b, step]))
                for b in (b for b in going if ended[b] <= step + 1):
                    ids, logps = new[b, : ended[b]].tolist(), logprobs[b, : ended[b]].tolist()
                    yield rows[b], Completion(tuple(ids), tuple(logps), "stop" if by_stop[b] else "length")
                going = [b for b in going if ended[b] > step + 1]
                if not going:
                    return
                if len(going) < COMPACT * len(rows):
                    keep = torch.tensor(going, device=device)
                    cache.keep(keep)
                    new, logprobs, drawn, lengths, seeds, ends, stopped = (
                        t[keep] for t in (new, logprobs, drawn, lengths, seeds, ends, stopped))
                    rows, going = [rows[b] for b in going], list(range(len(going)))
            # a row that has ended may be at the cache's end: it writes over its own last key, and nobody looks
            cache.expect(lengths.clamp(max=cache.length - 1), 1, min(width + step + 1, cache.length))
            hidden = model.hidden(drawn[:, None], cache)[:, 0]  # (B, D)
            lengths = lengths + 1

    def _draw(self, logits: Tensor, temperature: float, seeds: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """One token a row from logits (B, V) -> ids (B,), their log-probabilities (B,) in float32."""
        scores = logits[:, : self.n_drawable]
        if temperature > 0:
            scores = scores / temperature + gumbel(seeds, step, scores.shape[1])
        drawn = scores.argmax(dim=-1)
        return drawn, torch.log_softmax(logits, dim=-1).gather(1, drawn[:, None])[:, 0].float()


def looks_are_free(device: torch.device) -> bool:
    """The CPU has nothing to wait for, so rows are seen to end at once."""
    return device.type == "cpu"


def _signed(seed: int) -> int:
    """Any Python int as the 64-bit integer with the same low bits."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash of int64 tensors that hold values in [0, 2^32): xor-shift-multiply rounds (C. Wellons)."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 15)


def gumbel(seeds: Tensor, step: int, n: int) -> Tensor:
    """(B, n) float32 noise -log(-log u): argmax(logits / T + noise) draws from softmax(logits / T), exactly.

    This is the exponential race. u depends on (seed, step, id) alone, through a counter-based hash: the same on every
    device and in every batch. seeds (B,) int64.
    """
    ids = torch.arange(n, device=seeds.device)
    row = _mix((seeds & 0xFFFFFFFF) ^ _mix(((seeds >> 32) & 0xFFFFFFFF) ^ _mix(torch.full_like(seeds, step))))
    bits = _mix(_mix(row[:, None] ^ _mix(ids + 0x9E3779B9 & 0xFFFFFFFF)))  # (B, n)
    # v = 1 - u: near 0, where the winners' noise comes from, floats are dense; below 1, where log1p(-v) is finite
    v = ((bits.double() + 0.5) * 2.0**-32).float().clamp(max=1 - 2.0**-24)
    return -torch.log(-torch.log1p(-v))
