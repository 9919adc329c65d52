"""N samples of a problem, and who picks one: what is to be expected of k of them, from one set of N, exactly.

    best_of            the sample with the highest score: of a judge, or of its own log-probability
    weighted_majority  the answer whose samples weigh most together
    majority           the most frequent answer: all samples weigh alike
    auc_within         does a score tell right from wrong among the samples of one problem?

Every expectation is over all subsets of k that the N samples hold, so that one generation gives the curve over k and
nothing is drawn again (V-STaR, arXiv 2402.06457, equation 2). For a random pick the expectation is the share of right
samples, for one who knows the answer it is star/evaluate.pass_at. It serves no step of Algorithm 1: it measures what a
choice among the rationales of line 3 is worth. It samples nothing and scores nothing.
"""

import itertools
import math
import random
from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from star.evaluate import wilson

MOST = 20_000  # subsets that are all looked at; 8 of 16 are 12,870
DRAWS = 1000  # subsets looked at where there are more


def best_of(scores: Sequence[float], right: Sequence[bool], k: int) -> float:
    """Probability that the best-scored of k samples is right; of equal scores the first sample's counts as the best.

    In the order of their scores, sample i (0: the best) is picked if it is drawn and none of the i before it is: with
    the other k - 1 from the N - i - 1 behind it. Of 3 samples and k = 2 those are 2, 1 and 0 of the 3 subsets. A score
    may be -inf (picked last), not NaN. ValueError for that, for a k outside 1..N, and for lists of unequal length.
    """
    _check(scores, right, k)
    n = len(scores)
    order = sorted(range(n), key=lambda i: -scores[i])  # stable: ties stay in the order of the samples
    return sum(math.comb(n - i - 1, k - 1) for i, sample in enumerate(order) if right[sample]) / math.comb(n, k)


def weighted_majority(answers: Sequence[str | None], weights: Sequence[float], right: Sequence[bool], k: int) -> float:
    """Probability that the answer whose samples among k weigh most is right; answers that tie count in part.

    Weights are at least 0. A sample without an answer, or of weight 0, does not vote; where nobody votes, nothing is
    right. Of up to MOST subsets all are looked at, else DRAWS, the same each time. ValueError as in `best_of`.
    """
    _check(weights, right, k)
    if len(answers) != len(weights) or any(not 0 <= w < math.inf for w in weights):
        raise ValueError(f"{len(answers)} answers with weights {list(weights)}: one each is needed, finite and not "
                         "below 0")
    voices = {a: None for a in answers if a is not None}
    if not voices:
        return 0.0
    weight = torch.tensor([[w * (a == voice) for voice in voices] for a, w in zip(answers, weights, strict=True)],
                          dtype=torch.float64)  # (N, answers)
    sums = subsets(len(answers), k) @ weight  # (subsets, answers)
    most = sums.amax(1, keepdim=True)
    top = (sums >= most * (1 - 1e-12)) & (sums > 0)  # equal sums may be rounded apart
    found = {a for a, r in zip(answers, right, strict=True) if r}
    hits = top[:, [voice in found for voice in voices]].sum(1)
    return (hits.double() / top.sum(1).clamp(min=1)).mean().item()


def majority(answers: Sequence[str | None], right: Sequence[bool], k: int) -> float:
    """Probability that the most frequent answer of k samples is right: star/evaluate.maj_at, with all the subsets."""
    return weighted_majority(answers, [1.0] * len(answers), right, k)


def tied(scores: Sequence[float], answers: Sequence[str | None]) -> bool:
    """Is the highest score that of samples with different answers, so that their order decides which is picked?"""
    best = max(scores)
    return len({a for s, a in zip(scores, answers, strict=True) if s == best}) > 1


def auc_within(problems: Iterable[Sequence[tuple[float, bool]]]) -> tuple[float, float, float]:
    """(share of the pairs of a right and a wrong sample in which the right one has the higher score: the mean over
    problems; low and high of its 95 % interval over problems). problems: (score, is it right) of the samples of each.

    Equal scores are half in order. A problem without a right or without a wrong sample does not count: (nan, 0, 1)
    where there is no other. ValueError for NaN.
    """
    shares = []
    for samples in problems:
        _check([s for s, _ in samples], samples, 1)
        good, bad = ([s for s, right in samples if right == kind] for kind in (True, False))
        if good and bad:
            shares.append(sum((g > b) + (g == b) / 2 for g in good for b in bad) / (len(good) * len(bad)))
    if not shares:
        return math.nan, 0.0, 1.0
    mean = sum(shares) / len(shares)
    return mean, *wilson(mean, len(shares))


@lru_cache(maxsize=64)  # the same for every problem
def subsets(n: int, k: int) -> Tensor:
    """(subsets, n): a row of zeros and k ones for each subset of k of n samples."""
    if math.comb(n, k) <= MOST:
        chosen = list(itertools.combinations(range(n), k))
    else:
        rng = random.Random(0)
        chosen = [rng.sample(range(n), k) for _ in range(DRAWS)]
    return torch.zeros(len(chosen), n, dtype=torch.float64).scatter_(1, torch.tensor(chosen), 1.0)


def _check(scores: Sequence[float], right: Sequence[bool], k: int) -> None:
    if len(scores) != len(right) or not 1 <= k <= len(scores):
        raise ValueError(f"{len(scores)} scores, {len(right)} verdicts and k = {k}: as many of both, and a k of "
                         "1 to that number, are needed")
    if any(math.isnan(s) for s in scores):
        raise ValueError(f"the score of sample {[math.isnan(s) for s in scores].index(True)} is not a number")
