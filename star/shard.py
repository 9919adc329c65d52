"""Frozen weights that one device has no room for: each rank keeps a share of every block. On torch's own fully_shard.

    rank 0   turn  block 0 whole  block 1 whole  ...   on its tokens
    rank 1   turn  block 0 whole  block 1 whole  ...   on its tokens, or idle: on one token that nobody reads

A block is whole only while it computes, and all ranks put it together at once. So all go forward equally often: a rank
that waits for the others (star/ranks) goes on idle as long as one of them needs the blocks. Embedding, last norm and
head are read outside of any block, and adapters are trained: every rank has them whole.

It costs, a forward, the bytes of all blocks between the ranks (a backward, them again), however few rows it has, and a
number told before it; a phase takes as many forwards as its slowest rank. Graphs, merged weights and a second try where
memory ran out are left out. It does not read weights from a disk: checkpoints does.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from star.cache import Context
from star.decoder import Decoder
from star.device import out_of_memory
from star.lora import LoraLinear, trainable
from star.ranks import Ranks, all_there

WAITS, READS, LEARNS = range(3)  # what a rank needs: nothing, a forward, a backward behind it
FORGET = 1000  # forwards after which torch's record of their order, which only a backward pass ends, is ended
ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13


class Turns(Ranks):
    """Ranks that share the blocks of one model. What waits for the other ranks lets them have the blocks meanwhile.

        turns = Turns(rank, size)
        turns.split(block)      each block, filled, its adapters on; by all ranks in the same order
        turns.join(model)       from here on a forward is a turn of all ranks

    A forward with gradients must be followed by its backward, before anything else. Memory that runs out on one rank
    ends the run: what the others wait for cannot be said twice.
    """

    model: Decoder | None = None

    def split(self, block: nn.Module) -> None:
        """Keep this rank's share of a block's frozen weights, rows of each; the adapters stay whole."""
        from torch.distributed.fsdp import fully_shard  # takes a second

        adapters = {p for m in block.modules() if isinstance(m, LoraLinear) for p in (m.A, *m.B)}
        fully_shard(block, mesh=_mesh(block), reshard_after_forward=True, ignored_params=adapters)
        block.set_custom_all_gather(_Gather())

    def join(self, model: Decoder) -> None:
        """The blocks are split; each forward of the model is a turn now."""
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        assert trainable(model), "adapters come first: star/lora swaps modules, which torch knows from here on"
        fully_shard(model, mesh=_mesh(model), ignored_params={p for p in model.parameters() if not _is_share(p)})
        register_fsdp_forward_method(model, "hidden")
        self._hidden, self._forwards = model.hidden, 0
        self.model, model.hidden, model.sharded = model, self.hidden, True

    def hidden(self, tokens: Tensor, context: Context | None = None, recompute: bool = False) -> Tensor:
        """Decoder.hidden, together with all other ranks. Raises ConnectionError when one of them is gone, ValueError
        when memory runs out."""
        need = LEARNS if torch.is_grad_enabled() else READS
        if (asked := self._ask(need)) != need:
            raise ValueError(f"rank {self.rank} needs the weights for something else ({need}) than another rank "
                             f"({asked}): ranks that share weights must run the same program")
        return self._forward(tokens, context, recompute)

    def gather(self, value) -> list:
        self._wait()
        return super().gather(value)

    def _together(self, tensors, call) -> None:
        self._wait()
        super()._together(tensors, call)

    def _wait(self) -> None:
        """Go forward idle as long as another rank needs the blocks."""
        if self.model is None:
            return
        while (need := self._ask(WAITS)) != WAITS:
            self._idle(need)
        if self._forwards >= FORGET:  # as many on every rank
            self._idle(LEARNS)
            self._forwards = 0

    def _ask(self, need: int) -> int:
        """The most that any rank needs."""
        most = torch.tensor([need])
        with all_there():
            dist.all_reduce(most, dist.ReduceOp.MAX)
        return int(most)

    def _idle(self, need: int) -> None:
        params = list(trainable(self.model).values())
        with torch.set_grad_enabled(need != READS):
            x = self._forward(torch.zeros(1, 1, dtype=torch.int64, device=self.model.device))
            if need != READS:
                torch.autograd.grad(x.sum(), params)

    def _forward(self, tokens: Tensor, *how) -> Tensor:
        self._forwards += 1
        with _no_second_try(self.rank):
            return self._hidden(tokens, *how)


@contextmanager
def _no_second_try(rank: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if out_of_memory(e):
            raise ValueError(f"memory ran out on rank {rank}, in a forward pass of all ranks together: lower --slots "
                             "where it sampled, --micro-tokens where it trained") from None
        raise


class _Gather:
    """How ranks put a tensor together: bytes, whatever the dtype. (torch's AllGather protocol)"""

    def allocate(self, size, *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group, async_op: bool = False):
        whole, share = (t.view(torch.uint8) for t in (output_tensor, input_tensor))
        with all_there():
            return ALL_GATHER(whole, share, group=group, async_op=async_op)


def _mesh(module: nn.Module) -> DeviceMesh:
    return DeviceMesh.from_group(dist.group.WORLD, next(module.parameters()).device.type)


def _is_share(p: Tensor) -> bool:
    return hasattr(p, "to_local")
