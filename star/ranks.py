"""Several processes that make one run: who does what, and what they tell each other. On torch's own engine, torchrun.

    problems    p0 p1 p2 p3 p4      dealt by index: rank 0 samples p0 p2 p4, rank 1 samples p1 p3; all hear of all
    a step      e0 e1 e2 e3         rank 0 works on e0 e2, rank 1 on e1 e3; gradients are added up, all step alike

Every rank runs the same loop on the same numbers and comes to the same decisions; a draw depends on its seed and never
on who draws. What is told is JSON, and tensors as they are: nothing is pickled. One process is rank 0 of 1, and tells
nobody. Serves all lines of Algorithm 1; how ranks meet and part is star/run/together.
"""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


class Ranks:
    """This process among `size`. All of them must call the same methods in the same order: each waits for the others.

    Raises ConnectionError when another process is gone.
    """

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    def deal(self, items: Sequence) -> list[Sequence]:
        """Each rank's part: every size-th, so that neighbours in an order by length go to different ranks."""
        return [items[rank :: self.size] for rank in range(self.size)]

    def mine(self, items: Sequence) -> Sequence:
        """This rank's part."""
        return self.deal(items)[self.rank]

    def gather(self, value) -> list:
        """What each rank gives, in the order of ranks; anything that JSON can say (a tuple becomes a list)."""
        if self.size == 1:
            return [value]
        said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        with all_there():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
            dist.all_gather(lengths, torch.tensor([len(said)]))
            longest = max(map(int, lengths))  # all give as much
            heard = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.size)]
            dist.all_gather(heard, torch.cat([said, said.new_zeros(longest - len(said))]))
        return [json.loads(h[: int(n)].numpy().tobytes()) for h, n in zip(heard, lengths, strict=True)]

    def share(self, value=None):
        """Rank 0's value, on every rank."""
        return self.gather(value if self.rank == 0 else None)[0]

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the sum over all ranks into each tensor, the same bits on every rank; all of one dtype and device."""
        if self.size > 1:
            self._together(tensors, dist.all_reduce)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Put rank 0's values into each tensor; all of one dtype and device."""
        if self.size > 1:
            self._together(tensors, lambda flat: dist.broadcast(flat, 0))

    @torch.no_grad()
    def _together(self, tensors: Sequence[Tensor], call) -> None:
        flat = torch.cat([t.reshape(-1) for t in tensors])  # one message for all
        flat = flat.cpu() if flat.device.type == "mps" else flat  # which no backend of torch's knows
        with all_there():
            call(flat)
        for t, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(values.view_as(t))


@contextmanager
def all_there() -> Iterator[None]:
    """Torch says in many words of its own that another process is gone."""
    try:
        yield
    except RuntimeError as e:
        raise ConnectionError((str(e).splitlines() or ["another rank is gone"])[0]) from None


ONE = Ranks()
