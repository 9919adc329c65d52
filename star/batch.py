"""Which examples make up an optimizer step, and how they are packed for the model. Serves line 7 of Algorithm 1.

    examples            a a a a a   b b b   c c c   d d
    one row of tokens   a a a a a b b b c c c d d _          nothing but a few pads
    runs                (1 of 5)  (2 of 3)  (1 of 2) ...     attention sees rectangles; no sequence sees another

Linears, norms and the loss do not care where a sequence ends, so they work on the row as it is.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.packed import packed_attention, packs, rectangles
from star.cache import Causal, Context
from star.decoder import Decoder
from star.problem import Example

EVEN = 0.85  # sequences share a run, padded to its longest, if they have at least this share of its length
WIDE = 512  # in models of this width on, a pad costs more than one more call of the attention kernel


class Packed(Context):
    """Sequences one behind the other in one row, each of which starts at position 0 and sees only itself.

    Of the last layer only the hidden states at the batch's `places` (N,) come out, (1, N, D): those that a target is
    predicted from.
    """

    def __init__(self, batch: "Batch", last_layer: int):
        super().__init__(batch.positions, 0)
        self.batch, self.last_layer = batch, last_layer
        self.inner = [Causal(length, batch.places.device) for _, length in batch.runs]

    def longer(self, than: int) -> bool | Tensor:
        long = [n > than for n in self.batch.lengths]
        if len(set(long)) < 2:
            return long[0]
        starts, T = self.batch.starts, self.batch.tokens.shape[1]
        return torch.tensor(long, device=starts.device).repeat_interleave(starts.diff(), output_size=T)[None]  # (1, T)

    def read(self, layer: int, x: Tensor) -> Tensor:
        return x[:, self.batch.places] if layer == self.last_layer else x

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, cap: float, window: int | None,
               slopes: Tensor | None) -> Tensor:
        """q (1, H, T, hd), k, v (1, K, T, hd) -> (1, H, T, hd): by the kernel for packed rows, or run by run."""
        runs = self.batch.runs
        if not cap and slopes is None and (window or math.inf) >= runs[0][1] and packs(q, k):
            return packed_attention(q, k, v, runs, scale, self.batch.starts)
        outs = [context.attend(layer, *parts, scale, cap, window, slopes)  # (n, H, length, hd)
                for context, *parts in zip(self.inner, *(rectangles(t, runs) for t in (q, k, v)), strict=True)]
        return torch.cat([out.transpose(1, 2).flatten(0, 1) for out in outs])[None].transpose(1, 2)


@dataclass(frozen=True)
class Batch:
    """A row of packed sequences and its targets: targets[i] is predicted from tokens[0, places[i]].

    runs: (sequences, padded length) of the consecutive rectangles that the row consists of, the longest first.
    """

    tokens: Tensor  # (1, T) int64
    positions: Tensor  # (1, T) int64: of each token in its sequence
    places: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64
    starts: Tensor  # (sequences + 1,) int32: where each begins, and T
    runs: list[tuple[int, int]]
    lengths: list[int]  # of the sequences, without pads

    def hidden(self, model: Decoder, recompute: bool = False) -> Tensor:
        """(N, D) last hidden states that the targets are predicted from."""
        return model.hidden(self.tokens, Packed(self, model.config.n_layers - 1), recompute)[0]


def batch_of_step(n: int, batch_size: int, step: int, seed: int) -> list[int]:
    """Indices of the examples of step 0, 1, ...: every example once, in a new order each time they run out.

    With n = 5 and batch_size = 2, steps 0-4 walk through two permutations: [p0 p1] [p2 p3] [p4 q0] [q1 q2] [q3 q4].
    A function of the step alone, so that training can go on from any step.
    """
    out = []
    for place in range(step * batch_size, (step + 1) * batch_size):
        epoch, i = divmod(place, n)
        if not out or i == 0:
            generator = torch.Generator().manual_seed((seed * 1_000_003 + epoch) % 2**63)
            order = torch.randperm(n, generator=generator).tolist()
        out.append(order[i])
    return out


def runs_of(lengths: Sequence[int], even: float = EVEN) -> list[tuple[int, int]]:
    """Lengths, longest first, as (how many, padded length): [70, 69, 57, 57, 18] -> [(2, 70), (2, 57), (1, 18)]."""
    runs: list[tuple[int, int]] = []
    for length in lengths:
        if runs and length >= even * runs[-1][1]:
            runs[-1] = runs[-1][0] + 1, runs[-1][1]
        else:
            runs.append((1, length))
    return runs


def micro_batches(examples: Sequence[Example], budget: int, device: torch.device) -> Iterator[Batch]:
    """As few rows of at most `budget` tokens as will do, of about equal size, the longest sequences in the first.

    Pads count; one sequence may exceed the budget.
    """
    ordered = sorted(examples, key=lambda e: -len(e.tokens))
    widths = [length for n, length in runs_of([len(e.tokens) for e in ordered]) for _ in range(n)]
    rows = -(-sum(widths) // budget)
    while ordered:
        even, n, size = sum(widths) / max(rows, 1), 0, 0
        while n < len(ordered) and (n == 0 or (size + widths[n] <= budget and size + widths[n] / 2 <= even)):
            size, n = size + widths[n], n + 1
        yield pack(ordered[:n], device)
        ordered, widths, rows = ordered[n:], widths[n:], rows - 1


def dealt(examples: Sequence[Example], budget: int, device: torch.device) -> list[Batch]:
    """Rows of at most `budget` tokens without pads, as equal as can be, and an even number of them if several.

    For wide models: rows are worked on side by side, and the longest sequence that is left goes to the shortest row.
    """
    ordered = sorted(examples, key=lambda e: -len(e.tokens))
    n = -(-sum(len(e.tokens) for e in examples) // budget)
    while True:
        n = min(n + n % 2 * (n > 1), len(ordered))
        rows, sizes = [[] for _ in range(n)], [0] * n
        for e in ordered:
            i = sizes.index(min(sizes))
            rows[i].append(e)
            sizes[i] += len(e.tokens)
        if n == len(ordered) or max(sizes) <= max(budget, len(ordered[0].tokens)):
            return [pack(row, device, even=1.0) for row in rows]
        n += 1


def pack(examples: Sequence[Example], device: torch.device, even: float = EVEN) -> Batch:
    """One row of these sequences, which must come longest first."""
    read = [range(e.n_prompt - 1, len(e.tokens) - 1) for e in examples]
    targets = [t for e in examples for t in e.tokens[e.n_prompt :]]
    return row_of([e.tokens for e in examples], read, targets, device, even)


def row_of(sequences: Sequence[Sequence[int]], read: Sequence[Sequence[int]], targets: list[int],
           device: torch.device, even: float = EVEN) -> Batch:
    """Sequences of ids, the longest first, in one row. read: the places in each whose hidden states come out.

    The host does not wait until a GPU has the row.
    """
    runs = runs_of([len(ids) for ids in sequences], even)
    tokens, positions, places, starts = [], [], [], [0]
    for ids, where, width in zip(sequences, read, (length for n, length in runs for _ in range(n)), strict=True):
        places += (starts[-1] + i for i in where)
        tokens += [*ids, *[0] * (width - len(ids))]  # pads stand behind: nothing looks at them
        positions += range(width)
        starts.append(len(tokens))
    host = [torch.tensor([tokens]), torch.tensor([positions]), *(torch.tensor(t).long() for t in (places, targets)),
            torch.tensor(starts, dtype=torch.int32)]
    fast = device.type == "cuda"  # elsewhere a copy that is not waited for may read what was freed meanwhile
    tensors = (t.pin_memory().to(device, non_blocking=True) if fast else t.to(device) for t in host)
    return Batch(*tensors, runs, [len(ids) for ids in sequences])
