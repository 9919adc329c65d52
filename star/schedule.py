"""Which prompts wait, which rows run in which slot, which have finished: one call of the sampler, step by step.

    waiting -> refill: prefill into free slots -> running: decode, all slots at once -> poll -> finished, slot is free

The slots' state lies on the device, at addresses that stay between calls; the host knows only what it can count. It
does not check what is asked for and keeps nothing: star/sampler does.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.graph import Graphs
from star.cache import Decode, KVCache, Prefill, Shared, keys_can_be_shared
from star.decoder import Decoder
from star.draws import draw_tokens
from star.problem import Completion
from star.text import Stops

POLL_EVERY = 8  # decode steps between looks at the flags, where a look makes the host wait for a device
COMPACT = 0.95  # nothing waits and fewer rows than this share still run: they move together, the batch shrinks
KEEP_ONCE = 2048  # keys that need not be read each step if samples look at one copy of their prompt: then it pays
REFILL = 1 / 8  # wait until this share of the slots is free: prompts are prefilled a few at a time
PREFILL_TOKENS = 8192  # of one prefill, padding counted (one prompt may exceed it)
BUCKET = 64  # lengths of the cache are rounded up to this


@dataclass(frozen=True)
class Options:
    """What one call asks for, checked."""

    max_new: list[int]  # a prompt
    temperature: float
    top_k: int
    top_p: float
    stop_ids: tuple[int, ...]
    stops: Stops | None
    seeds: list[int]  # a prompt
    on_token: Callable[[int, int], None] | None
    drawable: int  # only ids below it are drawn


@dataclass(frozen=True)
class Begun:
    """What a row drew in a pass before this one: it goes on from there."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    shown: int  # as in _Row
    searched: int


class Slots:
    """The slots on the device: cache, state and graphs of the decode step, at addresses that stay between calls.

    Slot b's row has `count` new tokens; the last is drawn, but not yet in the cache, which holds `cached` of its
    tokens; `apart` tokens of its prompt are kept elsewhere, once for several rows (0: none). It ends when count reaches
    `ends`: its limit, or where a stop id came. Rows that have ended, and free slots, decode along, unseen.
    """

    def __init__(self, model: Decoder, rows: int, length: int, most: int):
        """rows: slots. length: of a row in the cache, its prompt included. most: new tokens of a row."""
        self.cache, self.most = KVCache(model.config, rows, length, model.device, model.dtype), most
        ints = {"dtype": torch.int64, "device": model.device}
        self.last, self.cached, self.apart, self.count, self.ends, self.seeds = (
            torch.zeros(rows, **ints) for _ in range(6))
        self.stopped = torch.zeros(rows, dtype=torch.bool, device=model.device)
        self.new = torch.zeros(rows, most + 1, **ints)  # the last column takes what ended rows draw
        self.logprobs = torch.zeros(rows, most + 1, device=model.device)
        self.state = (self.last, self.cached, self.apart, self.count, self.ends, self.seeds, self.stopped, self.new,
                      self.logprobs)
        self.stop_ids = torch.zeros(16, **ints)
        self.graphs = Graphs(model.device)
        self._recorded: tuple | None = None  # the other addresses that the graphs know

    @property
    def size(self) -> tuple[int, int, int]:
        return self.cache.slots, self.cache.length, self.most

    def start(self, model: Decoder, prefix: KVCache | None, n_prefix: int, o: Options, long: bool = False) -> None:
        """All slots are free, behind n_prefix tokens of this prefix. Graphs are dropped if anything has moved.

        long: as KVCache.long, of all rows to come.
        """
        self.cache.use_prefix(prefix, n_prefix)
        self.cache.long = long
        for t in self.state:
            t.zero_()
        if len(o.stop_ids) > len(self.stop_ids):
            self.stop_ids = self.stop_ids.new_zeros(len(o.stop_ids))
        self.stop_ids[: len(o.stop_ids)] = torch.tensor(o.stop_ids, dtype=torch.int64)
        if model.sharded:  # weights come and go, and others are waited for: nothing is recorded
            self.graphs = Graphs(torch.device("cpu"))
            return
        used = [*model.parameters(), self.stop_ids, *([] if prefix is None else prefix.keys)]
        recorded = tuple(t.data_ptr() for t in used)
        if recorded != self._recorded:
            self.graphs, self._recorded = Graphs(self.last.device), recorded

    def leave_prefix(self) -> None:
        """Let go of the prefix, before another one is made."""
        self.cache.use_prefix(None)

    def move(self, rows: list[int], slots: list[int], used: int) -> None:
        """Move these rows, with `used` keys of their own at most, to other slots, which are free."""
        at, to = torch.tensor([rows, slots], dtype=torch.int64, device=self.last.device)
        self.cache.move(at, to, used)
        for t in self.state:
            t[to] = t[at]


@dataclass
class _Row:
    """What the host knows of a running row without asking the device."""

    index: int  # of the prompt
    length: int  # own tokens in the cache, as `cached`, once the tokens drawn so far are in
    source: tuple[Shared, int] | None = None  # prompts that are kept once, and which of them is this row's
    shown: int = 0  # tokens given to on_token
    searched: int = 0  # tokens known to hold no stop string
    before: int = 0  # tokens drawn in a pass before this one


class Schedule:
    """One pass of `stream`: which prompts are waiting, which rows are running in which slot.

    waiting: indices of the prompts. ends: new tokens at which each row's pass ends. A row that may have more is put
    into `begun`; what stands there of a row that waits it has drawn already, and its prompt includes it.
    """

    def __init__(self, model: Decoder, slots: Slots, rows: int, prompts: list[list[int]], o: Options,
                 waiting: Sequence[int], ends: list[int], begun: dict[int, Begun]):
        self.model, self.slots, self.prompts, self.o, self.ends, self.begun = model, slots, prompts, o, ends, begun
        # longest first: prompts of a prefill are alike, and the short ones are left for the end
        self.waiting = deque(sorted(waiting, key=lambda i: -len(prompts[i])))
        self.running: list[_Row | None] = [None] * rows  # by slot; None: free
        self.shared: list[Shared] = []  # prompts that are kept once for several running rows
        self.moved = False  # have rows come, gone or moved since they were seated?
        c, s = model.config, slots.cache
        self.keeps = model.device.type == "cpu" and keys_can_be_shared(c, s.n_prefix + s.length)
        # what a step depends on
        self.how = (s.n_prefix, s.long, o.temperature, o.top_k, o.top_p, o.drawable, len(o.stop_ids))
        self.slot_steps = self.row_steps = 0  # decode steps times slots, and those that brought a token
        self.work = Counter()  # as Sampler.work

    def run(self) -> Iterator[tuple[int, Completion]]:
        """Refill, decode, poll; until no prompt waits and no row runs."""
        free_polls = polls_are_free(self.model.device)
        every = 1 if free_polls or self.o.on_token else POLL_EVERY
        while self.waiting or any(self.running):
            refilled = self._refill()
            if not self.waiting:
                self._compact()
            if self.moved:
                self._seat()
            # a row may have ended at the token that its prefill drew: where a look costs nothing, look before decoding
            for _ in range(0 if refilled and free_polls else every):
                self.slots.graphs(self._decode, len(self.running), self._keys_in_use(), self.how)
                self.slot_steps += len(self.running)
                self.work.update(passes=1, keys=self.slots.cache.n_prefix + sum(s.n_keys for s in self.shared))
                for row in filter(None, self.running):
                    row.length = min(row.length + 1, self.slots.cache.length)
            yield from self._poll()

    def _refill(self) -> bool:
        """Prefill waiting prompts into free slots, and draw their first tokens."""
        free = [b for b, row in enumerate(self.running) if row is None]
        if not self.waiting or len(free) < REFILL * len(self.running):
            return False
        while self.waiting and free:
            width, sources, taken = len(self.prompts[self.waiting[0]]), {}, []
            while self.waiting and len(taken) < len(free):
                prompt = tuple(self.prompts[self.waiting[0]])
                if prompt not in sources and sources and (len(sources) + 1) * width > PREFILL_TOKENS:
                    break
                taken.append((self.waiting.popleft(), sources.setdefault(prompt, len(sources))))
            self._prefill(free[: len(taken)], list(sources), [i for i, _ in taken], [s for _, s in taken])
            free = free[len(taken) :]
        return True

    def _prefill(self, free: list[int], prompts: list[tuple[int, ...]], indices: list[int], source: list[int]) -> None:
        """Put prompts[source[j]], which asks for completion indices[j], into the slot free[j]."""
        s, device, width = self.slots, self.model.device, max(map(len, prompts))
        self.work.update(passes=1, prefilled=sum(map(len, prompts)))
        tokens = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts]).to(device)  # (unique prompts, width)
        lengths = [len(prompts[i]) for i in source]
        limits, seeds = [self.ends[i] for i in indices], [self.o.seeds[i] for i in indices]
        begun = [self.begun.pop(i, Begun((), (), 0, 0)) for i in indices]
        host = torch.tensor([free, source, lengths, limits, seeds, [len(b.tokens) for b in begun]])
        at, rows, n_prompt, ends, seeds, first = host.to(device)
        once = self.keeps and sum(lengths) - sum(map(len, prompts)) >= KEEP_ONCE
        prefill = Prefill(s.cache, at, rows, n_prompt, width, once)
        hidden = self.model.hidden(tokens, prefill)[:, 0]  # (n, D)
        zero = torch.zeros_like(at)
        drawn, logprobs = self._draw(hidden, seeds, first)
        s.last[at], s.seeds[at] = drawn, seeds
        s.cached[at], s.apart[at] = (zero, n_prompt) if once else (n_prompt, zero)
        s.new[at, first], s.logprobs[at, first] = drawn, logprobs
        s.count[at], s.stopped[at] = first + 1, self._stops(drawn)
        s.ends[at] = torch.where(s.stopped[at], first + 1, ends)
        for slot, b in zip(free, begun, strict=True):
            for all_, its in ((s.new, b.tokens), (s.logprobs, b.logprobs)):
                if its:
                    all_[slot, : len(its)] = torch.tensor(its, dtype=all_.dtype)
        if once:
            self.shared.append(Shared(*prefill.kept, [len(p) for p in prompts]))
        for slot, index, length, i, b in zip(free, indices, lengths, source, begun, strict=True):
            self.running[slot] = _Row(index, 1 if once else length + 1, (self.shared[-1], i) if once else None, b.shown,
                                      b.searched, len(b.tokens))
        self.moved = True

    def _seat(self) -> None:
        """Tell prompts that are kept once which slots look at them; drop those that nobody looks at any more."""
        rows = [(*row.source, b) for b, row in enumerate(self.running) if row and row.source]
        self.shared = [s for s in self.shared if any(of is s for of, _, _ in rows)]
        for s in self.shared:
            s.seat([[b for of, i, b in rows if of is s and i == u] for u in range(len(s.keys[0]))])
        self.moved = False

    def _decode(self, B: int, used: int, how: tuple) -> None:
        """One token more for the slots 0..B-1. Reads and writes tensors in place and asks none for its value.

        how: what else a graph of this step depends on.
        """
        s = self.slots
        # a row that has ended stays within the keys in use: it must see one, and nobody looks at what it writes
        index = s.cached[:B].clamp(max=used - 1)
        context = Decode(s.cache, index, used, s.apart[:B], self.shared)
        hidden = self.model.hidden(s.last[:B, None], context)[:, 0]  # (B, D)
        count, ends = s.count[:B], s.ends[:B]
        drawn, logprobs = self._draw(hidden, s.seeds[:B], count)
        going = count < ends
        column = torch.where(going, count, s.most)[:, None]
        s.new[:B].scatter_(1, column, drawn[:, None])
        s.logprobs[:B].scatter_(1, column, logprobs[:, None])
        s.last[:B] = drawn
        s.cached[:B] += 1
        s.count[:B] += going
        stops = self._stops(drawn) & going
        s.stopped[:B] |= stops
        s.ends[:B] = torch.where(stops, s.count[:B], ends)

    def _draw(self, hidden: Tensor, seeds: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        o, logits = self.o, self.model.logits(hidden)
        return draw_tokens(logits, o.drawable, o.temperature, o.top_k, o.top_p, seeds, index)

    def _stops(self, drawn: Tensor) -> Tensor:
        return (drawn[:, None] == self.slots.stop_ids[: len(self.o.stop_ids)]).any(dim=1)

    def _keys_in_use(self) -> int:
        """Own keys that a step looks at, known without asking."""
        used = max((row.length for row in self.running if row), default=1)
        if self.model.device.type != "cpu":
            used = rung(max(used, BUCKET))
        return min(used, self.slots.cache.length)

    def _poll(self) -> Iterator[tuple[int, Completion]]:
        """Read the flags, hand out what has finished and free its slots. The only place that waits for the device."""
        s, B = self.slots, len(self.running)
        counts, ends, stopped = torch.stack([s.count[:B], s.ends[:B], s.stopped[:B]]).tolist()
        watched = self.o.stops is not None or self.o.on_token is not None
        ids = s.new[:B, : max(counts)].tolist() if watched else None
        finished = []  # (slot, tokens kept, how it finished)
        for b, row in enumerate(self.running):
            if row is None:
                continue
            kept, finish = counts[b], None
            if counts[b] == ends[b]:
                finish = "stop" if stopped[b] else "length" if ends[b] == self.o.max_new[row.index] else "pass"
            if watched:
                kept, finish = self._watch(row, ids[b][:kept], finish)
            if finish:
                finished.append((b, kept, finish))
        yield from self._finish(finished)

    def _watch(self, row: _Row, ids: list[int], finish: str | None) -> tuple[int, str | None]:
        """(tokens kept, finish) of a row in whose text stop strings are looked for; shows what is certain of it."""
        stops, sure = self.o.stops, len(ids)
        if stops is not None:
            text = ids[:-1] if finish == "stop" else ids  # a stop id is no text
            found = stops.find(text, row.searched)
            row.searched = len(text)
            if found is not None:
                sure, finish = found[0], "stop"
            elif finish in (None, "pass"):
                sure = stops.settled(text) if self.o.on_token else 0
        if self.o.on_token:
            for token in ids[row.shown : sure]:
                self.o.on_token(row.index, token)
            row.shown = max(row.shown, sure)
        return len(ids) if finish == "pass" else sure, finish

    def _finish(self, finished: list[tuple[int, int, str]]) -> Iterator[tuple[int, Completion]]:
        if not finished:
            return
        at = torch.tensor([b for b, _, _ in finished], device=self.model.device)
        ids, logprobs = self.slots.new[at].tolist(), self.slots.logprobs[at].tolist()
        for (b, n, finish), tokens, logps in zip(finished, ids, logprobs, strict=True):
            row, self.running[b], self.moved = self.running[b], None, True
            steps = max(n - 1 - row.before, 0)  # the first token came with the prefill
            self.row_steps += steps
            before = 0 if row.source else len(self.prompts[row.index])  # keys of its own that were there already
            self.work.update(drawn=steps + 1, decoded=steps, keys=steps * before + steps * (steps + 1) // 2)
            if finish == "pass":
                self.begun[row.index] = Begun(tuple(tokens[:n]), tuple(logps[:n]), row.shown, row.searched)
            else:
                yield row.index, Completion(tuple(tokens[:n]), tuple(logps[:n]), finish)

    def _compact(self) -> None:
        """Where fewer rows still run, move the last of them to free slots among the first, and decode only these from
        now on: of slots a - c d - - g, with four rows, g goes to the second.
        """
        n = sum(map(bool, self.running))
        B = n if self.model.device.type == "cpu" else rung(n)
        if n and len(self.running) * COMPACT > B:
            rows = [b for b in range(B, len(self.running)) if self.running[b]]
            free = [b for b in range(B) if not self.running[b]][: len(rows)]
            if rows:
                self.slots.move(rows, free, self._keys_in_use())
            for b, slot in zip(rows, free, strict=True):
                self.running[slot] = self.running[b]
            del self.running[B:]
            self.moved = True


def rung(n: int) -> int:
    """The next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ...: on a device few sizes come, so that few graphs serve."""
    power = 1 << max(n - 1, 0).bit_length()
    return power * 3 // 4 if 3 * power >= 4 * n and power > 2 else power


def polls_are_free(device: torch.device) -> bool:
    """The CPU has nothing to wait for, so rows are seen to end at once."""
    return device.type == "cpu"
