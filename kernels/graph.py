"""One decode step as one launch: on a GPU a small model's step is hundreds of kernels, and launching them is the cost.

A CUDA graph records the kernels that a function launches and replays them all at once, on the same addresses. So the
function must read and write tensors that stay where they are, and must not look at a value.
"""

from collections.abc import Callable, Hashable

import torch


class Graphs:
    """Calls `function(*key)`; on a GPU, from the second call with the same key on, by replaying a graph of it.

    key: host values that shapes follow from (rows, keys in use); one graph each. Every call has the function's effect
    exactly once: the first runs it (libraries set themselves up then), the second records it, which does not run it,
    and replays. Graphs share one pool of memory. Make new `Graphs` after anything moved that the function uses.

    The function comes with each call and is not kept: a bound method kept by what its own object holds is a cycle,
    and its caches would live until Python looks for cycles.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.of_key: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, function: Callable[..., None], *key: Hashable) -> None:
        if self.device.type != "cuda":
            function(*key)
        elif key not in self.of_key:
            function(*key)
            self.of_key[key] = None
        else:
            if self.of_key[key] is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    function(*key)
                self.of_key[key] = graph
            self.of_key[key].replay()
