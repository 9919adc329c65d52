"""How near a run comes to what its device can do: rates measured at its start, and the work that its phases had.

    share of the matmul rate  numbers multiplied by weights in a phase, twice each (a product and a sum), over its
                              seconds, over what one large matrix product does a second in the model's dtype
    share of the bandwidth    bytes of weights and cached keys that sampling had to read, over its seconds, over what a
                              copy moves a second, read and written

Only work that a token needed is counted: no pads, no empty slots, no rows that have ended, no recomputed blocks; what a
run loses to these, or on the host, shows. Attention's products, adapters, norms and draws are left out: they take time
and count as nothing. (nanoGPT's MFU counts 6 operations a parameter, where all weights are trained, and attention's.)
Shares above 100 % are a machine that was busy when it was measured, or a model that lies in a cache.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from star.cache import KVCache
from star.decoder import Decoder, Linear
from star.device import let_go
from star.lora import is_int8
from star.sampler import Sampler

SIZES = (512, 1024, 2048, 4096, 8192)  # of a square matrix: the first whose product takes LONG, or the last
LONG = 0.002  # seconds: a launch and a wait for a device take 1 % of it
BUDGET = 0.06  # seconds of each measurement


@dataclass(frozen=True)
class Rates:
    """What a device does a second, measured."""

    matmul: float  # floating point operations of a matrix product in the model's dtype
    copy: float  # bytes that a copy reads and writes
    dtype: str
    seconds: float  # that measuring took

    def __str__(self) -> str:
        return (f"{metric(self.matmul)}FLOP/s in a {self.dtype} matrix product, {metric(self.copy)}B/s in a copy "
                f"(measured in {self.seconds:.1f} s)")


@cache
def measured(device: torch.device, dtype: torch.dtype) -> Rates | None:
    """The rates of a device, measured once a process; None where it could not be: no run ends for want of a figure."""
    began = time.perf_counter()
    try:
        matmul, copy = matmul_rate(device, dtype), copy_rate(device)
        if device.type != "cpu":  # the run's memory is not what measuring took
            let_go(device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    except (RuntimeError, TypeError):  # out of memory, or no such product in this dtype there
        return None
    return Rates(round(matmul), round(copy), str(dtype).removeprefix("torch."), round(time.perf_counter() - began, 2))


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating point operations a second of a matrix product as large as is quickly done."""
    for n in SIZES:
        # no random numbers: these belong to the run. Not zeros either: a GPU multiplies them faster than others
        a = torch.linspace(-1, 1, n * n, device=device).to(dtype).view(n, n)
        out = torch.empty_like(a)
        product = partial(torch.mm, a, a, out=out)
        if fastest(product, 0.0) > LONG:
            break
    return 2 * n**3 / fastest(product, BUDGET)


def copy_rate(device: torch.device) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.ones(2**24 if device.type == "cpu" else 2**26, device=device)  # 64 or 256 MiB: no cache holds it
    to = torch.zeros_like(source)
    return 2 * source.nbytes / fastest(partial(to.copy_, source), BUDGET)


def fastest(call: Callable[[], Tensor], budget: float) -> float:
    """Seconds of a call, in the best of some rounds: whatever else a machine does only adds to it.

    A round ends with a look at the result, for which any device has to be done; it is long enough not to notice that.
    """
    call().view(-1)[-1].item()  # libraries are loaded, pages are there
    best, calls, end = float("inf"), 1, time.perf_counter() + budget
    while True:
        began = time.perf_counter()
        for _ in range(calls):
            result = call()
        result.view(-1)[-1].item()
        now = time.perf_counter()
        best = min(best, (now - began) / calls)
        if now >= end:
            return best
        calls = max(1, min(64, int(LONG / best)))


class Meter:
    """What a run's own model does, iteration by iteration, as shares of what its device can do.

    Other models and the judge are not counted, and neither is their time. Of several ranks this one's device counts,
    and of what they train on together its share.
    """

    def __init__(self, sampler: Sampler, ranks: int = 1):
        self.sampler, self.ranks, self.rates = sampler, ranks, measured(sampler.model.device, sampler.model.dtype)
        self.body, self.head = sizes(sampler.model)
        self._before = Counter(sampler.work)

    def __str__(self) -> str:
        return str(self.rates) if self.rates else "could not be measured here: no shares of them are shown"

    def lap(self, sampling: float, training: float, trained: int, metrics: dict) -> dict:
        """Since the last lap: {"sampling": {"tokens": 210400, "matmul": 0.42, "bandwidth": 0.07, "seconds": 8.1},
        "training": the same without bandwidth}, without what did not happen; {} where rates could not be measured.

        sampling, training: the seconds of both. trained: tokens that were trained on in them, of all that the
        iteration's metrics count (a stopped training may have done some before).
        """
        did, self._before = Counter(self.sampler.work) - self._before, Counter(self.sampler.work)
        if self.rates is None:
            return {}
        found = {}
        if did["drawn"] and sampling:
            flops, read = self.sampling(did)
            found["sampling"] = {"tokens": did["drawn"], "matmul": flops / self.rates.matmul / sampling,
                                 "bandwidth": read / self.rates.copy / sampling, "seconds": sampling}
        if trained and training:
            targets = metrics["target_tokens"] * trained / metrics["trained_tokens"]
            flops = self.training(trained, targets) / self.ranks
            found["training"] = {"tokens": trained // self.ranks, "matmul": flops / self.rates.matmul / training,
                                 "seconds": training}
        return {phase: {name: round(value, 4) for name, value in use.items()} for phase, use in found.items()}

    def sampling(self, did: Counter) -> tuple[int, int]:
        """(floating point operations, bytes read) of what a sampler did: see Sampler.work."""
        model = self.sampler.model
        flops = 2 * (self.body * (did["prefilled"] + did["decoded"]) + self.head * did["drawn"])
        weights = self.body * (1 if is_int8(model) else model.dtype.itemsize) + self.head * model.dtype.itemsize
        return flops, did["passes"] * weights + did["keys"] * KVCache.bytes_a_token(model.config, model.dtype)

    def training(self, tokens: int, targets: float) -> float:
        """Floating point operations: forward, and gradients of inputs; frozen weights have none of their own."""
        return 4 * (self.body * tokens + self.head * targets)


def sizes(model: Decoder) -> tuple[int, int]:
    """Numbers in the weights that every token is multiplied by, and in those of the head."""
    return sum(m.weight.numel() for m in model.layers.modules() if isinstance(m, Linear)), model.head()[0].numel()


def mean_use(laps: list[dict]) -> dict[str, dict[str, float]]:
    """Several laps as one: seconds and tokens together, and shares by the seconds."""
    found: dict[str, dict[str, float]] = {}
    for phase in ("sampling", "training"):
        parts = [lap[phase] for lap in laps if phase in lap]
        if parts:
            seconds = sum(p["seconds"] for p in parts)
            shares = {kind: sum(p[kind] * p["seconds"] for p in parts) / seconds for kind in parts[0]}
            found[phase] = shares | {"seconds": seconds, "tokens": sum(p["tokens"] for p in parts)}
    return found


def metric(n: float) -> str:
    """161 G, 11.2 G, 1.98 T: three digits and a prefix, for a unit to follow."""
    n = float(f"{n:.3g}")
    power = min(int(math.log10(n)) // 3, 5)
    return f"{n / 1000**power:.3g} {' kMGTP'[power]}"
