"""Supervised fine-tuning of the adapters on kept rationales: line 7 of Algorithm 1.

AdamW on A and B in float32; the base is frozen, and checked to be bit-equal after the run. Loss falls on rationale
and end only, and is normalised by the target tokens of the whole optimizer step, however it is cut into micro-batches.
It does not choose examples and does not reset adapters: star/loop does.
"""

import contextlib
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim.adamw import adamw

from kernels.cross_entropy import linear_cross_entropy
from star.batch import WIDE, Batch, batch_of_step, dealt, micro_batches
from star.decoder import Decoder
from star.device import let_go, out_of_memory
from star.lora import trainable
from star.problem import Example
from star.ranks import ONE, Ranks

SKIPS = 3  # steps in a row without a finite gradient that end a training


@dataclass
class FinetuneStats:
    """What a run of `finetune` did so far."""

    losses: list[float] = field(default_factory=list)  # one a step: nats a target token
    target_tokens: int = 0
    tokens: int = 0  # prompts included, padding not
    seconds: float = 0.0
    skipped: list[int] = field(default_factory=list)  # steps whose loss or gradient was not finite: nothing was learned
    lowered: int | None = None  # tokens that go through the model at a time since memory ran out
    state: dict[str, Any] = field(default_factory=dict)  # where to go on: {"step": steps done, "moments": AdamW's}

    def count(self, loss: float, batch: Sequence[Example], seconds: float) -> None:
        self.losses.append(loss)
        self.target_tokens += sum(len(e.tokens) - e.n_prompt for e in batch)
        self.tokens += sum(len(e.tokens) for e in batch)
        self.seconds = seconds


def finetune(
    model: Decoder,
    examples: Sequence[Example],
    steps: int = 40,
    lr: float = 1e-4,
    batch_size: int = 8,
    seed: int = 0,
    state: dict[str, Any] | None = None,
    on_step: Callable[[int, float], None] | None = None,
    **options,
) -> FinetuneStats:
    """Train the model's adapters for `steps` optimizer steps of batch_size examples, reshuffled when they run out.

    on_step(step, loss) after each; options as in `finetune_steps`. Raises ValueError for what cannot be trained, and
    for a loss or gradient that is not finite three times in a row; once, its step is left out.
    """
    stats = FinetuneStats(state=state or {})
    for stats in finetune_steps(model, examples, steps, lr, batch_size, seed, state, **options):
        if on_step is not None:
            on_step(stats.state["step"], stats.losses[-1])
    return stats


def finetune_steps(
    model: Decoder,
    examples: Sequence[Example],
    steps: int,
    lr: float,
    batch_size: int,
    seed: int = 0,
    state: dict[str, Any] | None = None,
    *,
    warmup: int = 0,
    schedule: str = "constant",
    beta2: float = 0.999,
    clip: float = 1.0,
    micro_tokens: int | None = None,
    recompute: bool = False,
    stats: FinetuneStats | None = None,
    ranks: Ranks = ONE,
) -> Iterator[FinetuneStats]:
    """`finetune` as a generator: the same stats object after every step, so that a caller can watch, save or stop.

    state: a former `stats.state`; with the adapters as they were then, training goes on as if it had never stopped.
    warmup: steps over which lr rises; then constant (the paper, App. H) or linear to zero. micro_tokens: tokens that go
    through the model at a time (default 1024 on a CPU, else 8192; a run's plan lowers it where memory is short, and
    where a step finds none it is halved from there on). recompute: less memory for a third more work. stats: those of
    the steps before, which go on counting. ranks: the processes that work on a step together, each on a part of its
    examples; all come to the same adapters.
    """
    params = trainable(model)
    stats = stats or FinetuneStats()
    micro_tokens = stats.lowered or micro_tokens or (1024 if model.device.type == "cpu" else 8192)
    _check(model, examples, params, steps, batch_size)
    first, frozen, began = state["step"] if state else 0, fingerprint(model), time.perf_counter() - stats.seconds
    moments = [[torch.zeros_like(p) for p in params.values()] for _ in range(2)] if not state else [
        [t.to(p) for t, p in zip(part, params.values(), strict=True)] for part in state["moments"]]

    def packed(step: int) -> tuple[list[Example], list[Batch]]:
        batch = [examples[i] for i in batch_of_step(len(examples), batch_size, step, seed)]
        mine = ranks.mine(sorted(batch, key=lambda e: -len(e.tokens)))
        rows = dealt if model.config.d_model >= WIDE else micro_batches
        return batch, list(rows(mine, micro_tokens, model.device))

    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        ahead = packed(first) if first < steps else None
        for step in range(first, steps):
            batch, rows = ahead
            n_targets = sum(len(e.tokens) - e.n_prompt for e in batch)
            while (loss := gradients_if_they_fit(model, params, rows, n_targets, recompute, pool)) is None:
                stats.lowered = micro_tokens = max(1, min(micro_tokens, max(b.tokens.numel() for b in rows)) // 2)
                rows = packed(step)[1]
            ahead = packed(step + 1) if step + 1 < steps else None  # while a GPU works: what follows waits for it
            loss = added_up(loss, params, ranks)
            rate = lr * lr_factor(step, steps, warmup, schedule)
            if not learned(params, moments, step, rate, beta2, clip, loss):
                leave_out(step, params, stats, f"loss {loss:g}, learning rate {rate:g}, {model.dtype}")
            stats.count(loss, batch, time.perf_counter() - began)
            stats.state = {"step": step + 1, "moments": moments}
            yield stats
    ranks.spread(list(params.values()))  # devices of several kinds may have rounded otherwise
    assert torch.equal(frozen, fingerprint(model)), "training changed a frozen weight"


def added_up(loss: torch.Tensor, params: dict, ranks: Ranks) -> float:
    """The loss of a step over all ranks, and in place its gradients."""
    for name, p in params.items():
        assert p.grad is not None, f"{name} got no gradient"
    ranks.add([loss, *(p.grad for p in params.values())])
    return loss.item()


def learned(params: dict, moments: Sequence[list[torch.Tensor]], step: int, lr: float, beta2: float, clip: float,
            loss: float) -> bool:
    """Step by the gradients, cut to the norm `clip`; not where they or the loss are not finite."""
    with one_thread():
        norm = torch.nn.utils.clip_grad_norm_(params.values(), clip)
        finite = math.isfinite(loss) and math.isfinite(norm.item())
        if finite:
            adamw_step(list(params.values()), moments, step, lr, beta2)
    return finite


def leave_out(step: int, params: dict, stats: FinetuneStats, what: str) -> None:
    """Learn nothing from a step. ValueError the third time in a row: it will not become better."""
    for p in params.values():
        p.grad = None
    stats.skipped.append(step)
    if stats.skipped[-SKIPS:] == list(range(step - SKIPS + 1, step + 1)):
        raise ValueError(f"loss or gradient was not finite in {SKIPS} steps in a row, the last of them step {step + 1} "
                         f"({what.replace('torch.', '')}): lower --lr, raise --warmup, or take --dtype float32")


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """For an optimizer's little work: cores that waited for each other in it took up to 0.3 s a step."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(cores)


@torch.no_grad()
def adamw_step(params: Sequence[torch.Tensor], moments: Sequence[list[torch.Tensor]], step: int, lr: float,
               beta2: float) -> None:
    """Step 0, 1, ... of AdamW on the gradients, which are gone then: what torch.optim.AdamW does, as a function.

    The object brings torch's compiler along, which takes a second to import.
    """
    steps = torch.full((len(params),), float(step), device=params[0].device).unbind()
    adamw(list(params), [p.grad for p in params], *moments, [], steps, fused=True, amsgrad=False, beta1=0.9,
          beta2=beta2, lr=lr, weight_decay=0.0, eps=1e-8, maximize=False)
    torch.autograd.graph.increment_version(params)  # a fused step writes uncounted (star/lora)
    for p in params:
        p.grad = None


def lr_factor(step: int, steps: int, warmup: int, schedule: str) -> float:
    """Share of the peak learning rate at step 0, 1, ...: warmup=2, steps=6, linear: 0.5, 1, 1, 0.75, 0.5, 0.25."""
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 if schedule == "constant" else (steps - step) / (steps - warmup)


def gradients_if_they_fit(model: Decoder, params: dict, rows: Sequence[Batch], n_targets: int, recompute: bool,
                          pool: ThreadPoolExecutor) -> torch.Tensor | None:
    """`step_gradients`; None where memory ran out and smaller rows can be made of these."""
    try:
        return step_gradients(model, params, rows, n_targets, recompute, pool)
    except (RuntimeError, MemoryError) as e:
        if not out_of_memory(e) or model.sharded or all(len(b.starts) == 2 for b in rows):  # each a single sequence
            raise
    for p in params.values():
        p.grad = None
    let_go(model.device)  # not in the handler, where the error still holds what it was raised in
    return None


def step_gradients(model: Decoder, params: dict, rows: Sequence[Batch], n_targets: int, recompute: bool,
                   pool: ThreadPoolExecutor) -> torch.Tensor:
    """Set the gradients of the step's mean loss (nats a target token, of all its n_targets) and return the loss; of
    these micro-batches, that is: those of several ranks add up to it.

    Gradients are added up in the order of the micro-batches, as they come: the same bits however many there are at
    once, and memory for few of them.
    """
    c = model.config
    weight, bias = model.head()

    def work(b: Batch) -> tuple[torch.Tensor, ...]:
        hidden = b.hidden(model, recompute)  # (N, D): only rows with a target meet the vocabulary
        nll = linear_cross_entropy(hidden, weight, b.targets, bias, c.logit_scale, c.logit_cap) / n_targets
        return nll.detach(), *torch.autograd.grad(nll, params.values())

    loss = torch.zeros((), device=model.device, dtype=torch.promote_types(model.dtype, torch.float32))
    for p in params.values():
        p.grad = None if rows else torch.zeros_like(p)  # a rank without an example
    aside = model.device.type == "cpu" and not model.sharded  # ranks gather one block after the other, all the same
    for nll, *grads in side_by_side(work, rows, pool) if aside else map(work, rows):
        loss = loss + nll
        for p, grad in zip(params.values(), grads, strict=True):
            p.grad = grad if p.grad is None else p.grad.add_(grad)
        del grads, grad  # not held while the next are waited for
    return loss


def side_by_side(work: Callable, rows: Sequence[Batch], pool: ThreadPoolExecutor) -> Iterator[tuple]:
    """The results of work(row) in the order of the rows, some rows at a time with a share of the cores each.

    So cores wait for each other once a step and not in every operation. At most one finished result waits beside the
    rows at work.
    """
    cores = torch.get_num_threads()
    workers = min(len(rows), cores)

    def one(row: Batch) -> tuple:
        torch.set_num_threads(cores // workers)
        return work(row)

    running = deque()
    try:
        for row in rows:
            running.append(pool.submit(one, row))
            if len(running) > workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        torch.set_num_threads(cores)


def _check(model: Decoder, examples: Sequence[Example], params: dict, steps: int, batch_size: int) -> None:
    if not params:
        raise ValueError("nothing to train: the model has no adapters; add_lora first")
    if not examples:
        raise ValueError("no examples to train on")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps is {steps} and batch_size {batch_size}; both must be at least 1")
    for i, e in enumerate(examples):
        if not 1 <= e.n_prompt < len(e.tokens):
            raise ValueError(f"example {i} has {len(e.tokens)} tokens, of them {e.n_prompt} prompt: it needs at least "
                             "one of the prompt and one to learn")
        if min(e.tokens) < 0 or max(e.tokens) >= model.config.vocab:
            raise ValueError(f"example {i} holds an id outside the vocabulary of {model.config.vocab}")


@torch.no_grad()
def fingerprint(model: Decoder) -> torch.Tensor:
    """Sums over the bits of every frozen tensor, or of this rank's share of it: one that changed shows."""
    integers = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    frozen = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters() if not p.requires_grad]
    return torch.stack([p.view(integers[p.element_size()]).sum() for p in frozen])
