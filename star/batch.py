"""Which examples make up an optimizer step, and how they become rectangles of tokens. Serves line 7 of Algorithm 1.

Rows are padded on the right with id 0, which means nothing: what counts is told by lengths.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from star.problem import Example


@dataclass(frozen=True)
class Batch:
    """A rectangle of rows, and where its targets are: token (row, column + 1) is predicted from (row, column)."""

    tokens: Tensor  # (B, T) int64
    rows: Tensor  # (N,) int64
    columns: Tensor  # (N,) int64
    targets: Tensor  # (N,) int64


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


def micro_batches(examples: Sequence[Example], budget: int, device: torch.device) -> Iterator[Batch]:
    """Rectangles of at most `budget` tokens, padding counted (one row may exceed it), longest rows first.

    Sorted by length, rows of one rectangle need little padding.
    """
    ordered = sorted(examples, key=lambda e: -len(e.tokens))
    while ordered:
        n = max(1, budget // len(ordered[0].tokens))
        rows, ordered = ordered[:n], ordered[n:]
        width = len(rows[0].tokens)
        tokens = torch.tensor([[*e.tokens, *[0] * (width - len(e.tokens))] for e in rows])
        places = [(r, c) for r, e in enumerate(rows) for c in range(e.n_prompt - 1, len(e.tokens) - 1)]
        row, column = torch.tensor(places).T
        targets = tokens[row, column + 1]
        yield Batch(tokens.to(device), row.to(device), column.to(device), targets.to(device))
