"""Training a judge: a head on any decoder, adapters underneath, from ratings or from pairs of answers.

Ratings are learned by squared error, pairs by the Bradley-Terry loss, both as NVIDIA's HelpSteer judges are (HelpSteer,
arXiv 2311.09528; HelpSteer2-Preference, arXiv 2410.01257). What a judge is for: ranking several answers to one question
before line 7 of Algorithm 1 learns from them. It reads no file and makes no text into ids: star/experiments/train_judge
does, and star/reward's Judge.
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from star.batch import batch_of_step
from star.decoder import Decoder
from star.finetune import fingerprint, lr_factor, side_by_side
from star.lora import add_lora, trainable
from star.reward import RewardModel, check_rows, pack, read_at

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Rated:
    """An answer with its ratings, one a label of the judge; None: not rated. group: what is compared (its question)."""

    tokens: Ids
    values: tuple[float | None, ...]
    group: str = ""

    @property
    def rows(self) -> tuple[Ids, ...]:
        return (self.tokens,)


@dataclass(frozen=True)
class Preferred:
    """Two answers to one question. margin: how much better the chosen one is, > 0."""

    chosen: Ids
    rejected: Ids
    margin: float = 1.0

    @property
    def rows(self) -> tuple[Ids, ...]:
        return self.chosen, self.rejected


def new_judge(model: Decoder, labels: Sequence[str], rank: int = 16, alpha: float = 32, seed: int = 0, **recommended
              ) -> RewardModel:
    """A judge that rates everything 0: a head of zeros without bias, and adapters under it (rank 0: the head alone).

    recommended: pad_id, weights and format of the RewardModel. The decoder's own weights stay as they are.
    """
    if rank:
        add_lora(model, rank, alpha, seed=seed)
    else:
        model.requires_grad_(False)
    wide = torch.promote_types(model.dtype, torch.float32)
    head = nn.Parameter(torch.zeros(len(labels), model.config.d_model, device=model.device, dtype=wide))
    return RewardModel(model, head, list(labels), **recommended)


def train_judge(
    judge: RewardModel,
    data: Sequence[Rated] | Sequence[Preferred],
    steps: int,
    lr: float = 3e-4,
    batch_size: int = 16,
    seed: int = 0,
    *,
    label: int = 0,
    warmup: int = 0,
    clip: float = 1.0,
    micro_tokens: int | None = None,
    recompute: bool = False,
) -> Iterator[float]:
    """Train head and adapters for `steps` optimizer steps of batch_size ratings or pairs; yields each step's loss.

    Rated: mean squared error over the ratings there are. Preferred: mean of margin * -log sigmoid(chosen - rejected) on
    the scores of one `label`. AdamW, lr linear to zero after `warmup` steps. micro_tokens: tokens that go through the
    model at a time (default 1024 on a CPU, else 8192). Raises ValueError for what cannot be trained on.
    """
    check(judge, data, steps, batch_size, label)
    params = [judge.head, *trainable(judge.model).values()]
    micro_tokens = micro_tokens or (1024 if judge.model.device.type == "cpu" else 8192)
    optimizer = torch.optim.AdamW(params, lr=lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    frozen = fingerprint(judge.model)
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for step in range(steps):
            batch = [data[i] for i in batch_of_step(len(data), batch_size, step, seed)]
            loss = gradients(judge, params, batch, label, micro_tokens, recompute, pool)
            if not math.isfinite(loss):
                raise ValueError(f"the loss is {loss} at step {step + 1}: lower the learning rate (lr is {lr})")
            torch.nn.utils.clip_grad_norm_(params, clip)
            for group in optimizer.param_groups:
                group["lr"] = lr * lr_factor(step, steps, warmup, "linear")
            optimizer.step()
            torch.autograd.graph.increment_version(params)  # a fused step writes uncounted (star/lora)
            optimizer.zero_grad(set_to_none=True)
            yield loss
    assert torch.equal(frozen, fingerprint(judge.model)), "training changed a frozen weight"


def gradients(judge: RewardModel, params: Sequence[Tensor], batch: Sequence[Rated | Preferred], label: int,
              micro_tokens: int, recompute: bool, pool: ThreadPoolExecutor) -> float:
    """Set the gradients of the step's mean loss, over all micro-batches, and return the loss.

    They are added up in the order of the micro-batches, as in star/finetune: the same bits on any number of cores.
    """
    pairs = isinstance(batch[0], Preferred)
    n = len(batch) if pairs else max(1, sum(v is not None for item in batch for v in item.values))

    def work(items: list[Rated | Preferred]) -> tuple[Tensor, ...]:
        scores = read(judge, [row for item in items for row in item.rows], recompute)
        loss = (pair_loss(scores[:, label], [p.margin for p in items]) if pairs else
                rating_loss(scores, [item.values for item in items])) / n
        return loss.detach(), *torch.autograd.grad(loss, params)

    groups, total = portions(batch, micro_tokens), 0.0
    done = side_by_side(work, groups, pool) if judge.model.device.type == "cpu" else map(work, groups)
    for loss, *grads in done:
        total = total + loss
        for p, grad in zip(params, grads, strict=True):
            p.grad = grad if p.grad is None else p.grad.add_(grad)
    return total.item()


def rating_loss(scores: Tensor, values: Sequence[Sequence[float | None]]) -> Tensor:
    """Sum of squared errors of scores (n, L) over the ratings that are there."""
    known = [[v is not None for v in row] for row in values]
    wanted = torch.tensor([[v or 0.0 for v in row] for row in values], dtype=scores.dtype, device=scores.device)
    return ((scores - wanted).square() * torch.tensor(known, device=scores.device)).sum()


def pair_loss(scores: Tensor, margins: Sequence[float]) -> Tensor:
    """Sum of margin * -log sigmoid(chosen - rejected); scores (2n,): chosen, rejected, chosen, rejected, ..."""
    chosen, rejected = scores.unflatten(0, (-1, 2)).unbind(1)
    return -(F.logsigmoid(chosen - rejected) * torch.tensor(margins, dtype=scores.dtype, device=scores.device)).sum()


def read(judge: RewardModel, rows: Sequence[Ids], recompute: bool = False) -> Tensor:
    """(n, L) scores of these rows in one pack, differentiable, in their order."""
    cut = [row[: read_at(row, judge.pad_id) + 1] for row in rows]
    order = sorted(range(len(cut)), key=lambda i: -len(cut[i]))
    scores = judge.read(pack([cut[i] for i in order], judge.model.device), recompute)
    return scores[torch.tensor(order).argsort().to(scores.device)]


def portions(batch: Sequence[Rated | Preferred], budget: int) -> list[list[Rated | Preferred]]:
    """The batch in groups of at most `budget` tokens (or one item), the longest first: a pair is never torn apart."""
    def size(item: Rated | Preferred) -> int:
        return sum(map(len, item.rows))

    groups, room = [], 0
    for item in sorted(batch, key=size, reverse=True):
        if not groups or size(item) > room:
            groups.append([])
            room = budget
        groups[-1].append(item)
        room -= size(item)
    return groups


def check(judge: RewardModel, data: Sequence[Rated | Preferred], steps: int, batch_size: int, label: int) -> None:
    """ValueError for what cannot be trained on."""
    if not data:
        raise ValueError("no ratings and no pairs to train on")
    if steps < 1 or batch_size < 1:
        raise ValueError(f"steps is {steps} and batch_size {batch_size}; both must be at least 1")
    if not 0 <= label < len(judge.labels):
        raise ValueError(f"label is {label}; the judge has {len(judge.labels)}, counted from 0")
    check_rows(judge.model, [row for item in data for row in item.rows])
    for i, item in enumerate(data):
        if isinstance(item, Preferred):
            if not (math.isfinite(item.margin) and item.margin > 0):
                raise ValueError(f"pair {i} has the margin {item.margin}; it must be finite and above 0")
        elif len(item.values) != len(judge.labels) or not all(v is None or math.isfinite(v) for v in item.values):
            raise ValueError(f"row {i} has the ratings {item.values}; it needs a finite number or None for each of "
                             f"{', '.join(judge.labels)}")


def score_items(judge: RewardModel, data: Sequence[Rated] | Sequence[Preferred]) -> Tensor:
    """(rows, labels) scores of all rows: of pairs chosen, rejected, chosen, rejected, ..."""
    return judge.score([row for item in data for row in item.rows])


def correlation(scores: Tensor, data: Sequence[Rated], label: int) -> tuple[float | None, int]:
    """(Pearson's correlation of the scores and ratings of one label, number of ratings). None: one does not vary."""
    rated = [(s, item.values[label]) for s, item in zip(scores[:, label].tolist(), data, strict=True)
             if item.values[label] is not None]
    x, y = torch.tensor(rated, dtype=torch.float64).reshape(-1, 2).T
    x, y = x - x.mean(), y - y.mean()
    size = (x.norm() * y.norm()).item()
    return (x @ y).item() / size if size > 0 else None, len(rated)


def pairs_right(scores: Tensor, data: Sequence[Rated] | Sequence[Preferred], label: int = 0) -> tuple[float, int]:
    """(pairs that the scores of one label put in the right order, pairs). A tie of scores counts half.

    Of ratings, the pairs are two answers of one group whose ratings differ.
    """
    values = scores[:, label].tolist()
    if data and isinstance(data[0], Preferred):
        ordered = list(zip(values[::2], values[1::2], strict=True))
    else:
        groups = {}
        for s, item in zip(values, data, strict=True):
            if item.values[label] is not None:
                groups.setdefault(item.group, []).append((item.values[label], s))
        ordered = [(s, t) for group in groups.values() for v, s in group for w, t in group if v > w]
    return sum((better > worse) + 0.5 * (better == worse) for better, worse in ordered), len(ordered)
