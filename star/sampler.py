"""Sampling with a KV cache and slots that are refilled: lines 3 and 4 of Algorithm 1.

    slots      a  b  c        a, b, c decode together, a token a step
    step 9     a  -  c        b has finished: its slot is free
    step 10    a  d  c        d is prefilled into it, and the three go on

A prefix that all prompts share is prefilled and stored once, equal prompts are prefilled once. Who waits and who runs
is decided in star/schedule, which token is drawn in star/draws; it knows no tasks and no hints.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from star import lora
from star.cache import KVCache, Prefill, choose_slots
from star.decoder import Decoder
from star.device import free_memory, let_go
from star.draws import signed
from star.problem import Completion
from star.schedule import BUCKET, Begun, Options, Schedule, Slots, rung
from star.text import Stops


class Sampler:
    """Draws completions from a model, many rows at a time.

    slots: rows that decode together; None: as many as fit into half of the free memory, at most 512. max_len: prompt +
    new tokens of a row, the shared prefix not counted. With a tokenizer, ids beyond its vocabulary (padded rows of the
    head) are never drawn. merge: True samples a model that has adapters from merged weights, a second buffer; False
    from the live adapters; None merges where that buffer fits, and never into weights of 8 bits. Raises ValueError for
    a cache that cannot fit.

    The cache, the slots' state, the prefix and a device's graphs stay between calls, since the chunks of a phase use
    them again: `release` gives their memory back.
    """

    def __init__(self, model: Decoder, slots: int | None = 64, max_len: int = 1024, tokenizer=None,
                 merge: bool | None = None):
        if (slots is not None and slots < 1) or max_len < 2:
            raise ValueError(f"slots is {slots} and max_len {max_len}; at least 1 and 2 are needed")
        vocab = model.config.vocab
        if tokenizer is not None and tokenizer.vocab_size > vocab:
            raise ValueError(f"the tokenizer has {tokenizer.vocab_size} ids, but the model's vocabulary only {vocab}: "
                             "they do not belong together")
        self.model, self.max_len, self.tokenizer, self.merge = model, max_len, tokenizer, merge
        self.slots = choose_slots(model.config, model.dtype, model.device, slots, max_len)
        self.stays = False  # does `release` leave everything as it is, since there is room for all that a run does?
        self.n_drawable = vocab if tokenizer is None else tokenizer.vocab_size
        self.slot_steps = self.row_steps = 0  # decode steps times slots so far, and those that brought a token
        # what needed doing so far: forward passes, tokens prefilled and decoded, tokens drawn, cached keys read (those
        # of the prefix once a step)
        self.work = Counter()
        self._twin: Decoder | None = None
        self._version: tuple | None = None
        self._prefix: tuple[object, KVCache] | None = None  # what the last prefix was made of, and its cache
        self._slots: Slots | None = None  # of the last call
        self._streams = 0  # that have begun and not ended

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
        model, most = self._weights(), max(options.max_new)
        length = max(len(p) + new for p, new in zip(prompts, options.max_new, strict=True))
        slots, switch = self._take_slots(self._rows(len(prompts)), length, most), model.config.switch
        # tokens of each row that are drawn behind no more than `switch` others; all, where ropes know no such length
        short = [min(new, max(0, switch + 1 - len(prefix) - len(p))) if switch else new
                 for p, new in zip(prompts, options.max_new, strict=True)]
        begun: dict[int, Begun] = {}
        try:
            for long, ends in ((False, short), (True, options.max_new)):
                waiting = [i for i, n in enumerate(short) if (n == 0 or i in begun) == long]
                if waiting:
                    grown = [[*p, *begun[i].tokens] if i in begun else p for i, p in enumerate(prompts)]
                    yield from self._pass(model, slots, prefix, grown, options, waiting, ends, begun, long)
        finally:
            self._slots = slots

    def _pass(self, model: Decoder, slots: Slots, prefix: list[int], prompts: list[list[int]], options: Options,
              waiting: list[int], ends: list[int], begun: dict[int, Begun], long: bool
              ) -> Iterator[tuple[int, Completion]]:
        """The rows that are short for the model's ropes, up to where they are long; or those that are long.

        All keys of a row that becomes long are computed anew: that is what makes it say what it says without a cache.
        """
        slots.leave_prefix()
        slots.start(model, self._prefill_prefix(model, prefix, long) if prefix else None, len(prefix), options, long)
        schedule = Schedule(model, slots, self._rows(len(waiting)), prompts, options, waiting, ends, begun)
        self._streams += 1
        try:
            yield from schedule.run()
        finally:
            self._streams -= 1
            self.slot_steps, self.row_steps = self.slot_steps + schedule.slot_steps, self.row_steps + schedule.row_steps
            self.work += schedule.work

    def _rows(self, n: int) -> int:
        """Slots that n prompts make use of."""
        return min(self.slots, n if self.model.device.type == "cpu" else rung(n))

    def merges(self) -> bool:
        """Does it sample from merged weights, now that the model has (or gets) adapters?"""
        if self.merge is not None or self.model.sharded or lora.is_int8(self.model):
            return bool(self.merge) and not self.model.sharded
        if self._twin is not None or self.model.device.type == "cpu":
            return True
        need = sum(module.weight.nbytes for _, module in lora.lora_modules(self.model))
        free = free_memory(self.model.device)
        return free is None or need < 0.5 * free  # leave room for the cache

    def release(self) -> None:
        """Let go of cache and prefix, where something else needs the memory; the next call makes its own."""
        if not self.stays:
            self._slots = self._prefix = None

    def halve(self) -> None:
        """Sample half as many rows at a time from now on, memory having run out."""
        self._slots = self._prefix = None
        self.slots = max(1, self.slots // 2)
        let_go(self.model.device)

    def _weights(self) -> Decoder:
        """The model to sample from, always with the present adapters."""
        if not any(lora.lora_modules(self.model)) or not self.merges():
            return self.model
        version = lora.version(self.model)
        if version != self._version:
            self._twin = lora.merged(self.model, self._twin)
            self._version = version
        return self._twin

    def _take_slots(self, *need: int) -> Slots:
        """Slots of at least this size, for one stream alone: a second one beside it gets slots of its own.

        Those of the last call if they are large enough, else new ones that are as large in everything.
        """
        slots, self._slots = self._slots, None
        if slots is None or any(n > has for n, has in zip(need, slots.size, strict=True)):
            rows, length, most = need if slots is None else map(max, need, slots.size)
            slots = None  # the old ones go before the new ones come
            slots = Slots(self.model, rows, -(-length // BUCKET) * BUCKET, most)
        return slots

    def _check(self, prompts, prefix, max_new_tokens, temperature, top_k, top_p, stop_ids, stop, seeds, on_token
               ) -> Options:
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
        stops = Stops(self.tokenizer, stop) if stop else None
        return Options(max_new, temperature, top_k, top_p, tuple(sorted(set(stop_ids))), stops, seeds, on_token,
                       self.n_drawable)

    def _prefill_prefix(self, model: Decoder, prefix: list[int], long: bool) -> KVCache:
        """A cache of one row that holds the prefix; kept until the prefix or the weights change, and then filled anew
        where it is long enough and no stream is looking at it. long: as KVCache.long."""
        key = (tuple(prefix), lora.version(self.model), long)
        if self._prefix is None or self._prefix[0] != key:
            cache = self._prefix[1] if self._prefix and not self._streams else None
            self._prefix = None  # the old one goes before the new one comes
            if cache is None or cache.length < len(prefix):
                cache = None
                cache = KVCache(model.config, 1, -(-len(prefix) // BUCKET) * BUCKET, model.device, model.dtype)
            cache.long, row = long, torch.zeros(1, dtype=torch.int64, device=model.device)
            self.work.update(passes=1, prefilled=len(prefix))
            model.hidden(torch.tensor([prefix], device=model.device), Prefill(cache, row, row, row + 1, len(prefix)))
            self._prefix = key, cache
        return self._prefix[1]
