"""Sampling with a KV cache and slots that are refilled: lines 3 and 4 of Algorithm 1.

    slots      a  b  c        a, b, c decode together, a token a step
    step 9     a  -  c        b has ended: its slot is free
    step 10    a  d  c        d is prefilled into it, and the three go on

A prefix that all prompts share is prefilled and stored once, equal prompts are prefilled once. The host looks at the
device only every few steps. Which token is drawn is star/draws; it knows no tasks and no hints.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.graph import Graphed
from star import lora
from star.cache import Decode, KVCache, Prefill, free_memory
from star.decoder import Decoder
from star.draws import draw, signed
from star.problem import Completion
from star.text import Stops

SYNC_EVERY = 8  # decode steps between looks at the flags, where a look makes the host wait for a device
COMPACT = 0.75  # nothing waits and fewer rows than this share still go: they move together, the batch shrinks
REFILL = 1 / 8  # wait until this share of the slots is free: prompts are prefilled a few at a time
PREFILL_TOKENS = 8192  # of one prefill, padding counted (one prompt may exceed it)
BUCKET = 64  # on a device, key lengths are rounded up to this: one graph of a decode step each
MOST_SLOTS = 512  # when slots are chosen: past this a step takes longer in proportion, or nearly


@dataclass(frozen=True)
class _Options:
    """What one call asks for, checked."""

    max_new: list[int]  # a prompt
    temperature: float
    top_k: int
    top_p: float
    stop_ids: Tensor  # on the device
    stops: Stops | None
    seeds: list[int]  # a prompt
    on_token: Callable[[int, int], None] | None


class Sampler:
    """Draws completions from a model, many rows at a time.

    slots: rows that decode together; None: as many as fit into half of the free memory, at most 512. max_len: prompt +
    new tokens of a row, the shared prefix not counted. With a tokenizer, ids beyond its vocabulary (padded rows of the
    head) are never drawn. merge: "on" samples a model that has adapters from merged weights, a second buffer; "off"
    from the live adapters; "auto" merges where that buffer fits. Raises ValueError for a cache that cannot fit.
    """

    def __init__(self, model: Decoder, slots: int | None = 64, max_len: int = 1024, tokenizer=None,
                 merge: str = "auto"):
        if (slots is not None and slots < 1) or max_len < 2:
            raise ValueError(f"slots is {slots} and max_len {max_len}; at least 1 and 2 are needed")
        if merge not in ("auto", "on", "off"):
            raise ValueError(f"merge is {merge!r}; it must be auto, on or off")
        vocab = model.config.vocab
        if tokenizer is not None and tokenizer.vocab_size > vocab:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, but the model's vocabulary only {vocab}: "
                             "they do not belong together")
        self.model, self.max_len, self.tokenizer, self.merge = model, max_len, tokenizer, merge
        self.slots = plan_slots(model, slots, max_len)
        self.n_drawable = vocab if tokenizer is None else tokenizer.vocab_size
        self.slot_steps = self.row_steps = 0  # decode steps times slots so far, and those that brought a token
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
        top_k: int = 0,
        top_p: float = 1.0,
        stop_ids: Iterable[int] = (),
        stop: Iterable[str] | str = (),
        seeds: Sequence[int] | None = None,
        on_token: Callable[[int, int], None] | None = None,
    ) -> Iterator[tuple[int, Completion]]:
        """(index of the prompt, Completion) as rows finish. The same prompt k times, with k seeds, gives k samples.

        prefix: ids in front of every prompt, stored once. A row ends at a stop id, at a stop string (its tokens then
        are those wholly before it), or after max_new_tokens (an int, or one a prompt). temperature 0 is greedy;
        otherwise a token is a function of (the prompt's seed, index of the new token, id) and never of the batch it
        ran in. top_k (0: all) and top_p (1: all) truncate, in this order. seeds: one int a prompt; default its index.
        on_token(index, id) sees every token of a completion once it is certain to be one, in order.
        Raises ValueError for what cannot be sampled.
        """
        prompts, prefix = [list(p) for p in prompts], list(prefix)
        options = self._check(prompts, prefix, max_new_tokens, temperature, top_k, top_p, stop_ids, stop, seeds,
                              on_token)
        if not prompts:
            return
        if prefix and not all(prompts):  # a row needs a token of its own to continue from: lend it the prefix's last
            prompts, prefix = [[prefix[-1], *p] for p in prompts], prefix[:-1]
        model = self._weights()
        length = max(len(p) + new for p, new in zip(prompts, options.max_new, strict=True))
        cache = KVCache(model.config, min(self.slots, len(prompts)), length, model.device, model.dtype)
        if prefix:
            cache.share(self._prefill(model, prefix))
        yield from _Run(self, model, cache, prompts, options).rows()

    def merges(self) -> bool:
        """Does it sample from merged weights, now that the model has (or gets) adapters?"""
        if self.merge != "auto" or self._twin is not None or self.model.device.type == "cpu":
            return self.merge != "off"
        need = sum(module.weight.nbytes for _, module in lora.lora_modules(self.model))
        free = free_memory(self.model.device)
        return free is None or need < 0.5 * free  # leave room for the cache

    def _weights(self) -> Decoder:
        """The model to sample from, always with the present adapters."""
        if not any(lora.lora_modules(self.model)) or not self.merges():
            return self.model
        version = lora.version(self.model)
        if version != self._version:
            self._twin = lora.merged(self.model, self._twin)
            self._version = version
        return self._twin

    def _check(self, prompts, prefix, max_new_tokens, temperature, top_k, top_p, stop_ids, stop, seeds, on_token
               ) -> _Options:
        n, vocab = len(prompts), self.model.config.vocab
        max_new = [max_new_tokens] * n if isinstance(max_new_tokens, int) else list(max_new_tokens)
        seeds = list(range(n)) if seeds is None else [signed(int(s)) for s in seeds]
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if len(max_new) != n or len(seeds) != n:
            raise ValueError(f"{n} prompts, but {len(max_new)} max_new_tokens and {len(seeds)} seeds: one a prompt")
        if not 0.0 <= temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; it must be 0 (greedy) or a positive number")
        if top_k < 0 or not 0.0 < top_p <= 1.0:
            raise ValueError(f"top_k is {top_k} and top_p {top_p}; top_k must be at least 0 (all), top_p in (0, 1]")
        if stop and self.tokenizer is None:
            raise ValueError(f"stop strings such as {stop[0]!r} need a tokenizer: give the sampler one, or stop_ids")
        if not all(stop):
            raise ValueError("a stop string is empty: every text holds it")
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
        ids = torch.tensor(sorted(set(stop_ids)), dtype=torch.int64, device=self.model.device)
        stops = Stops(self.tokenizer, stop) if stop else None
        return _Options(max_new, temperature, top_k, top_p, ids, stops, seeds, on_token)

    def _prefill(self, model: Decoder, prefix: list[int]) -> KVCache:
        """A cache of one row that holds the prefix; kept until the prefix or the weights change."""
        key = (tuple(prefix), lora.version(self.model))
        if self._prefilled is None or self._prefilled[0] != key:
            cache = KVCache(model.config, 1, len(prefix), model.device, model.dtype)
            row = torch.zeros(1, dtype=torch.int64, device=model.device)
            model.hidden(torch.tensor([prefix], device=model.device), Prefill(cache, row, row, row + 1, len(prefix)))
            self._prefilled = key, cache
        return self._prefilled[1]


@dataclass
class _Row:
    """What the host knows of a slot without asking the device."""

    index: int  # of the prompt
    length: int  # own tokens in the cache once the tokens drawn so far are in
    shown: int = 0  # tokens given to on_token
    searched: int = 0  # tokens known to hold no stop string


class _Run:
    """One call of `stream`: a queue of prompts, and the slots' state on the device, at addresses that stay.

    A slot's row has `count` tokens; its last is drawn, but not yet in the cache. The row ends when count reaches
    `ends`: its limit, or where a stop id came. Rows that have ended, and free slots, decode along, unseen.
    """

    def __init__(self, sampler: Sampler, model: Decoder, cache: KVCache, prompts: list[list[int]], o: _Options):
        self.sampler, self.model, self.cache, self.prompts, self.o = sampler, model, cache, prompts, o
        self.most = max(o.max_new)
        # longest first: prompts of a prefill are alike, and the short ones are left for the end
        self.queue = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i])))
        self.slots: list[_Row | None] = [None] * cache.slots
        ints = {"dtype": torch.int64, "device": model.device}
        self.last, self.own, self.count, self.ends, self.seeds = (torch.zeros(cache.slots, **ints) for _ in range(5))
        self.stopped = torch.zeros(cache.slots, dtype=torch.bool, device=model.device)
        self.new = torch.zeros(cache.slots, self.most + 1, **ints)  # the last column takes what ended rows draw
        self.logprobs = torch.zeros(cache.slots, self.most + 1, device=model.device)
        self.step = Graphed(self._step, model.device)

    def rows(self) -> Iterator[tuple[int, Completion]]:
        """Fill, decode, look; until no prompt waits and no row goes."""
        free_looks = looks_are_free(self.model.device)
        every = 1 if free_looks or self.o.on_token else SYNC_EVERY
        while self.queue or any(self.slots):
            filled = self._fill()
            if not self.queue and sum(map(bool, self.slots)) < COMPACT * len(self.slots):
                self._compact()
            for _ in range(0 if filled and free_looks else every):  # a row may end at the token its prefill brought
                self.step(len(self.slots), self._used())
                self.sampler.slot_steps += len(self.slots)
                for row in filter(None, self.slots):
                    row.length = min(row.length + 1, self.cache.length)
            yield from self._look()

    def _fill(self) -> bool:
        """Prefill waiting prompts into free slots, and draw their first tokens."""
        free = [b for b, row in enumerate(self.slots) if row is None]
        if not self.queue or len(free) < REFILL * len(self.slots):
            return False
        while self.queue and free:
            width, sources, taken = len(self.prompts[self.queue[0]]), {}, []
            while self.queue and len(taken) < len(free):
                prompt = tuple(self.prompts[self.queue[0]])
                if prompt not in sources and sources and (len(sources) + 1) * width > PREFILL_TOKENS:
                    break
                taken.append((self.queue.popleft(), sources.setdefault(prompt, len(sources))))
            self._prefill(free[: len(taken)], list(sources), [i for i, _ in taken], [s for _, s in taken])
            free = free[len(taken) :]
        return True

    def _prefill(self, slots: list[int], prompts: list[tuple[int, ...]], indices: list[int], source: list[int]) -> None:
        """Put prompts[source[j]], which asks for completion indices[j], into slots[j]."""
        device, width = self.model.device, max(map(len, prompts))
        tokens = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts]).to(device)  # (unique prompts, width)
        lengths = [len(prompts[s]) for s in source]
        limits = [self.o.max_new[i] for i in indices]
        host = torch.tensor([slots, source, lengths, limits, [self.o.seeds[i] for i in indices]])
        at, source, own, limits, seeds = host.to(device)
        hidden = self.model.hidden(tokens, Prefill(self.cache, at, source, own, width))[:, 0]  # (n, D)
        zero = torch.zeros_like(at)
        drawn, logprobs = self._draw(hidden, seeds, zero)
        self.last[at], self.own[at], self.seeds[at] = drawn, own, seeds
        self.new[at, 0], self.logprobs[at, 0] = drawn, logprobs
        self.count[at], self.stopped[at] = zero + 1, self._stops(drawn)
        self.ends[at] = torch.where(self.stopped[at], 1, limits)
        for slot, index, length in zip(slots, indices, lengths, strict=True):
            self.slots[slot] = _Row(index, length + 1)

    def _step(self, B: int, used: int) -> None:
        """One token more for the slots 0..B-1. Reads and writes tensors in place and asks none for its value."""
        # a row that has ended stays within the keys in use: it must see one, and nobody looks at what it writes
        own = self.own[:B].clamp(max=used - 1)
        hidden = self.model.hidden(self.last[:B, None], Decode(self.cache, own, used))[:, 0]  # (B, D)
        count, ends = self.count[:B], self.ends[:B]
        drawn, logprobs = self._draw(hidden, self.seeds[:B], count)
        going = count < ends
        column = torch.where(going, count, self.most)[:, None]
        self.new[:B].scatter_(1, column, drawn[:, None])
        self.logprobs[:B].scatter_(1, column, logprobs[:, None])
        self.last[:B] = drawn
        self.own[:B] += 1
        self.count[:B] += going
        stops = self._stops(drawn) & going
        self.stopped[:B] |= stops
        self.ends[:B] = torch.where(stops, self.count[:B], ends)

    def _draw(self, hidden: Tensor, seeds: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        o = self.o
        return draw(self.model.logits(hidden), self.sampler.n_drawable, o.temperature, o.top_k, o.top_p, seeds, index)

    def _stops(self, drawn: Tensor) -> Tensor:
        return (drawn[:, None] == self.o.stop_ids).any(dim=1)

    def _used(self) -> int:
        """Own keys that a step looks at, known without asking."""
        used = max((row.length for row in self.slots if row), default=1)
        if self.model.device.type != "cpu":
            used = -(-used // BUCKET) * BUCKET
        return min(used, self.cache.length)

    def _look(self) -> Iterator[tuple[int, Completion]]:
        """Read the flags, hand out what has ended and free its slots. The only place that waits for the device."""
        B = len(self.slots)
        counts, ends, stopped = torch.stack([self.count[:B], self.ends[:B], self.stopped[:B]]).tolist()
        watched = self.o.stops is not None or self.o.on_token is not None
        ids = self.new[:B, : max(counts)].tolist() if watched else None
        done = []  # (slot, tokens kept, finish)
        for b, row in enumerate(self.slots):
            if row is None:
                continue
            kept, finish = counts[b], None
            if counts[b] == ends[b]:
                finish = "stop" if stopped[b] else "length"
            if watched:
                kept, finish = self._watch(row, ids[b][:kept], finish)
            if finish:
                done.append((b, kept, finish))
        yield from self._finish(done)

    def _watch(self, row: _Row, ids: list[int], finish: str | None) -> tuple[int, str | None]:
        """(tokens kept, finish) of a row in whose text stop strings are looked for; shows what is certain of it."""
        stops, sure = self.o.stops, len(ids)
        if stops is not None:
            text = ids[:-1] if finish == "stop" else ids  # a stop id is no text
            found = stops.find(text, row.searched)
            row.searched = len(text)
            if found is not None:
                sure, finish = found[0], "stop"
            elif finish is None:
                sure = stops.settled(text) if self.o.on_token else 0
        if self.o.on_token:
            for token in ids[row.shown : sure]:
                self.o.on_token(row.index, token)
            row.shown = max(row.shown, sure)
        return sure, finish

    def _finish(self, done: list[tuple[int, int, str]]) -> Iterator[tuple[int, Completion]]:
        if not done:
            return
        at = torch.tensor([b for b, _, _ in done], device=self.model.device)
        ids, logprobs = self.new[at].tolist(), self.logprobs[at].tolist()
        for (b, n, finish), tokens, logps in zip(done, ids, logprobs, strict=True):
            index, self.slots[b] = self.slots[b].index, None
            self.sampler.row_steps += max(n - 1, 0)  # the first token came with the prefill
            yield index, Completion(tuple(tokens[:n]), tuple(logps[:n]), finish)

    def _compact(self) -> None:
        """Move the rows that go to the first slots, and decode only these from now on."""
        going = [b for b, row in enumerate(self.slots) if row]
        at = torch.tensor(going, dtype=torch.int64, device=self.model.device)
        self.cache.keep(at)
        state = (self.last, self.own, self.count, self.ends, self.seeds, self.stopped, self.new, self.logprobs)
        for t in state:
            t[: len(going)] = t[at]
        self.slots = [self.slots[b] for b in going]


def looks_are_free(device: torch.device) -> bool:
    """The CPU has nothing to wait for, so rows are seen to end at once."""
    return device.type == "cpu"


def plan_slots(model: Decoder, slots: int | None, max_len: int) -> int:
    """The slots asked for, or as many as half of the free memory holds. Raises ValueError if they cannot fit."""
    row = max_len * KVCache.bytes_a_token(model.config, model.dtype)
    free = free_memory(model.device)
    if slots is None:
        return MOST_SLOTS if free is None else max(1, min(MOST_SLOTS, free // 2 // row))
    if free is not None and slots * row > free:
        fits = f"slots={free // row} fits" if free >= row else f"max_len={free // (row // max_len)} fits one slot"
        raise ValueError(f"slots={slots} of max_len={max_len} need {slots * row / 2**30:.1f} GiB of cache, but "
                         f"{model.device} has {free / 2**30:.1f} GiB free: {fits}")
    return slots
