"""One decode step as one launch: on a GPU a small model's step is hundreds of kernels, and launching them is the cost.

A CUDA graph records the kernels that a function launches and replays them all at once, on the same addresses. So the
function must read and write tensors that stay where they are, and must not look at a value.
"""

from collections.abc import Callable, Hashable

import torch


class Graphed:
    """Calls `function(*key)`; on a GPU, from the second call with the same key on, by replaying a graph of it.

    key: host values that shapes follow from (rows, keys in use); one graph each. Every call has the function's effect
    exactly once: the first runs it (libraries set themselves up then), the second records it, which does not run it,
    and replays. Graphs share one pool of memory. Make a new `Graphed` after anything moved that the function uses.
    """

    def __init__(self, function: Callable[..., None], device: torch.device):
        self.function, self.device = function, device
        self.graphs: dict[Hashable, torch.cuda.CUDAGraph | None] = {}
        self.pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    def __call__(self, *key: Hashable) -> None:
        if self.device.type != "cuda":
            self.function(*key)
        elif key not in self.graphs:
            self.function(*key)
            self.graphs[key] = None
        else:
            if self.graphs[key] is None:
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, pool=self.pool):
                    self.function(*key)
                self.graphs[key] = graph
            self.graphs[key].replay()
