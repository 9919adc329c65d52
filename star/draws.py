"""Which token comes next: temperature, top-k, top-p, and noise that belongs to the row and not to its batch.

A draw is a function of (seed of the row, index of the new token, token id). So a prompt gets the same tokens in
whatever batch, slot or order it is sampled. It knows no model and no cache.
"""

import hashlib

import torch
from torch import Tensor

SLICE = {False: 2**19, True: 2**23}  # numbers whose few copies stay in the cache of a CPU, of a GPU
TINY = 1e-30  # float32 rounds what is much smaller to 0, and logits over it to infinity


def seed_of(*parts: int | str) -> int:
    """One seed of 63 bits; any change in any part changes it.

    Of a row: (run seed, iteration, phase, problem, sample). The loop seeds everything else it draws so too: problems,
    fresh adapters, batches.
    """
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1


def draw_tokens(logits: Tensor, drawable: int, temperature: float, top_k: int, top_p: float, seeds: Tensor,
                index: Tensor) -> tuple[Tensor, Tensor]:
    """One token a row from logits (B, V) -> ids (B,), their log-probabilities (B,) in float32.

    Only ids below `drawable` are drawn. temperature 0, or one below TINY, takes the best, of equals the lowest id;
    otherwise from softmax(logits / temperature), truncated. seeds, index (B,) int64. The log-probability is the
    model's own: temperature 1, untruncated, all ids.
    """
    drawn, logprobs = [], []
    rows = max(1, SLICE[logits.device.type != "cpu"] // logits.shape[1])  # at a time: both stay in cache
    for some, seed, i in zip(*(t.split(rows) for t in (logits, seeds, index)), strict=True):
        scores = some[:, :drawable]
        if temperature >= TINY:
            scores = truncate(scores / temperature, top_k, top_p)
            if (0 < top_k < drawable or top_p < 1) and some.device.type == "cpu":  # there the count would be waited for
                at = row, ids = (scores > float("-inf")).nonzero(as_tuple=True)
                scores[at] += gumbel(seed[row], i[row], ids)
            else:
                scores += gumbel(seed[:, None], i[:, None], torch.arange(drawable, device=scores.device))
        best = scores.argmax(dim=-1)
        drawn.append(best)
        logprobs.append(torch.log_softmax(some, dim=-1).gather(1, best[:, None])[:, 0].float())
    return torch.cat(drawn), torch.cat(logprobs)


def truncate(scores: Tensor, top_k: int, top_p: float) -> Tensor:
    """Scores (B, V) with -inf for ids outside the top k (0: all), then outside the nucleus of mass top_p (1: all).

    The nucleus (Holtzman et al. 2020) is the smallest set of best ids whose probability reaches top_p, counted among
    what top-k left. Ids that tie with the last one kept are kept too, so that order never decides.
    top_p = 0.7 with probabilities [0.5 0.1 0.3 0.1] keeps [0.5 - 0.3 -]: 0.5 falls short of 0.7, 0.8 reaches it.
    """
    if 0 < top_k < scores.shape[1]:
        last = scores.topk(top_k, dim=-1).values[:, -1:]
        scores = scores.masked_fill(scores < last, float("-inf"))
    if top_p < 1:
        ordered = scores.sort(dim=-1, descending=True).values
        share = ordered.softmax(dim=-1)
        before = share.cumsum(dim=-1) - share  # mass of all better ids; below top_p: this one is still needed
        last = ordered.masked_fill(before >= max(top_p, TINY), float("inf")).amin(dim=-1, keepdim=True)
        scores = scores.masked_fill(scores < last, float("-inf"))
    return scores


def gumbel(seeds: Tensor, index: Tensor, ids: Tensor) -> Tensor:
    """float32 noise -log(-log u): argmax(logits / T + noise) draws from softmax(logits / T), exactly.

    This is the exponential race. u depends on (seed, index, id) alone, through a counter-based hash: the same on every
    device and in every batch. All three int64, and broadcast: (B, 1), (B, 1) and (V,) -> (B, V). Works in place, on
    32-bit numbers that wrap around.
    """
    row = _mix(seeds.int() ^ _mix((seeds >> 32).int() ^ _mix(index.int())))
    bits = _mix(_mix(row ^ _mix((ids + 0x9E3779B9).int())))
    # v = 1 - u: near 0, where the winners' noise comes from, floats are dense; below 1, where log1p(-v) is finite.
    # bits + 1/2 as float32, rounded once: both halves are exact, and so is 2^16 times the upper one
    upper = (bits >> 16).bitwise_and_(0xFFFF).float()
    v = bits.bitwise_and_(0xFFFF).float().add_(0.5).add_(upper, alpha=65536).mul_(2.0**-32).clamp_(max=1 - 2.0**-24)
    return v.neg_().log1p_().neg_().log_().neg_()


def signed(seed: int) -> int:
    """Any Python int as the 64-bit integer with the same low bits."""
    seed &= 2**64 - 1
    return seed - 2**64 if seed >= 2**63 else seed


def _mix(x: Tensor) -> Tensor:
    """A 32-bit integer hash, in place on int32: xor-shift-multiply rounds (C. Wellons). Shifts bring in zeros."""
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97), (15, 1)):
        x ^= (x >> shift).bitwise_and_((1 << 32 - shift) - 1)
        if factor > 1:
            x *= factor
    return x
