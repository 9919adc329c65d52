"""One decode step as one launch: on a GPU a small model's step is hundreds of kernels, and launching them is the cost.

A CUDA graph records the kernels that a function launches and replays them all at once, on the same addresses. So the
function must read and write tensors that stay where they are, and must not look at a value.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Hashable

import torch

from kernels import nvidia

EAGER = 8  # calls of a key before it is recorded: recording costs as much as several, and many keys live for few steps
MOST = 40  # graphs that one object records: each takes tens of milliseconds, and memory of the driver's
STREAMS: dict[torch.device, torch.cuda.Stream] = {}  # to record on: cuBLAS keeps memory for each stream it ever saw


class Graphs:
    """Calls `function(*key)`; on a GPU of NVIDIA's, once a key has come `EAGER` times, by replaying a graph of it.

    key: host values that shapes follow from (rows, keys in use); one graph each. Every call has the function's effect
    exactly once: at first it is run (libraries set themselves up then), then recorded, which does not run it, and
    replayed. A key that cannot be recorded, for want of memory say, is run for good, and so is any past `MOST`. Graphs
    share one pool of memory. Make new `Graphs` after anything moved that the function uses.

    The function comes with each call and is not kept: a bound method kept by what its own object holds is a cycle,
    and its caches would live until Python looks for cycles.
    """

    def __init__(self, device: torch.device):
        self.device, self.calls = device, Counter()
        self.of_key: dict[Hashable, torch.cuda.CUDAGraph | None] = {}  # None: cannot be recorded
        if nvidia(device):
            with torch.cuda.device(device):
                self.pool = torch.cuda.graph_pool_handle()
                self.stream = STREAMS.setdefault(device, torch.cuda.Stream())

    def __call__(self, function: Callable[..., None], *key: Hashable) -> None:
        if not nvidia(self.device):
            function(*key)
            return
        with torch.cuda.device(self.device):  # a graph records, and replays on, the current device
            if key not in self.of_key and self.calls[key] >= EAGER and len(self.of_key) < MOST:
                self.of_key[key] = self._record(function, *key)
            graph = self.of_key.get(key)
            if graph is None:
                function(*key)
                self.calls[key] += 1
            else:
                graph.replay()

    def _record(self, function: Callable[..., None], *key: Hashable) -> torch.cuda.CUDAGraph | None:
        """A graph of this call, or None if it cannot be had. (`torch.cuda.graph` would wait for the device each time,
        and would leave its stream the current one where the end of a recording fails.)"""
        torch.cuda.empty_cache()  # what lies ready outside the pool cannot serve inside it, nor be freed meanwhile
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(self.stream):
                graph.capture_begin(pool=self.pool)
                try:
                    function(*key)
                finally:
                    graph.capture_end()
        except RuntimeError as e:  # out of memory, or what came of it; nothing has run yet
            why = str(e).partition("\n")[0]
            warnings.warn(f"a decode step is not recorded, and so slower: {why}", stacklevel=3)
            return None
        return graph
