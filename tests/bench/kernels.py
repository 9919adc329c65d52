"""Each kernel against its plain twin, forward and backward, in one process, in turn (lora_linear.py has its own file).

    python tests/bench/kernels.py

Prints milliseconds (median of the rounds), the ratio, and the share of the floor: operations over the rate of a large
matrix product, or bytes that must be read and written over the rate of a large copy, whichever takes longer. What fits
into the processor's cache can be faster than that copy: more than 100 %.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from kernels.attention import (
    attention,
    attention_reference,
    causal_attention,
    join,
    own_attention,
    shared_attention,
)
from kernels.cross_entropy import linear_cross_entropy, linear_cross_entropy_reference
from kernels.gated import silu_gated, silu_gated_reference
from kernels.norm import rms_norm, rms_norm_reference
from kernels.packed import packed_attention, packed_attention_reference

ROUNDS = 11


def seconds(f, repeat):
    f()
    began = time.perf_counter()
    for _ in range(repeat):
        f()
    return (time.perf_counter() - began) / repeat


def there_and_back(f, *args):
    out = f(*args)
    out.backward(torch.ones_like(out))


def decode_case(rows, heads, kv, size, own):
    """(attention, its twin) of one decode step: rows with `own` keys each."""
    q, k, v = torch.randn(rows, heads, 1, size), torch.randn(rows, kv, own, size), torch.randn(rows, kv, own, size)
    args = (q, k, v, torch.zeros(rows, heads, 1, own), size**-0.5)
    keys = 2 * 4 * kv * size
    return lambda: attention_reference(*args), lambda: attention(*args), 0, keys * rows * own


def behind_case(rows, queries, heads, kv, size, own, prefix):
    """`queries` a row, over own keys and a shared prefix: one softmax over all scores, and two blocks joined.

    own: keys that each query sees beside the prefix; of a prompt (queries > 1) it sees those before it.
    """
    q, k, v = (torch.randn(rows, n, queries if queries > 1 else s, size)
               for n, s in ((heads, 1), (kv, own), (kv, own)))
    shared, scale = (torch.randn(kv, prefix, size), torch.randn(kv, prefix, size)), size**-0.5
    causal = torch.full((queries, k.shape[2]), -torch.inf).triu(1) if queries > 1 else torch.zeros(1, own)
    mask = torch.cat([torch.zeros(queries, prefix), causal], dim=-1).expand(1, heads, -1, -1).contiguous()
    whole = None if queries > 1 else causal.expand(rows, 1, 1, -1)

    def joined():
        return join(own_attention(q, k, v, scale, whole), shared_attention(q, *(t[None] for t in shared), scale))

    seen = k.shape[2] / 2 if queries > 1 else own
    return (lambda: attention(q, k, v, mask, scale, 0.0, shared), joined,
            4 * rows * heads * queries * (prefix + seen) * size, 0)  # fmt: skip


def causal_case(rows, heads, kv, length, size):
    q, k, v = (torch.randn(rows, h, length, size, requires_grad=True) for h in (heads, kv, kv))
    mask = torch.full((1, 1, length, length), -torch.inf).triu(1)
    scale, work = size**-0.5, rows * heads * length * length * size
    return (lambda: there_and_back(attention_reference, q, k, v, mask, scale),
            lambda: there_and_back(causal_attention, q, k, v, scale), 7 * work, 0)  # fmt: skip


def packed_case(lengths, heads, kv, size):
    """Sequences in one row: by the formula, with a mask for all of it, and by the kernel for packed rows."""
    q, k, v = (torch.randn(1, n, sum(lengths), size, requires_grad=True) for n in (heads, kv, kv))
    runs, starts, scale = [(1, n) for n in lengths], torch.zeros(0, dtype=torch.int32), size**-0.5
    return (lambda: there_and_back(packed_attention_reference, q, k, v, runs, scale),
            lambda: there_and_back(packed_attention, q, k, v, runs, scale, starts),
            7 * heads * size * sum(n * n for n in lengths), 0)  # fmt: skip


def gated_case(rows, width):
    h = torch.randn(rows, 2 * width, requires_grad=True)
    return (lambda: there_and_back(silu_gated_reference, h), lambda: there_and_back(silu_gated, h), 0,
            4 * 8 * rows * width)  # fmt: skip


def loss_case(rows, width, vocab):
    hidden, weight = torch.randn(rows, width, requires_grad=True), torch.randn(vocab, width)
    targets = torch.randint(0, vocab, (rows,))
    return (lambda: there_and_back(linear_cross_entropy_reference, hidden, weight, targets),
            lambda: there_and_back(linear_cross_entropy, hidden, weight, targets), 4 * rows * width * vocab, 0)


def norm_case(rows, width):
    x, weight = torch.randn(rows, width, requires_grad=True), torch.randn(width)
    return (lambda: there_and_back(rms_norm_reference, x, weight, 1e-5),
            lambda: there_and_back(rms_norm, x, weight, 1e-5), 0, 4 * 5 * rows * width)  # fmt: skip


CASES = {
    "decode attention, 512 x 60 keys": (decode_case, (512, 4, 2, 32, 60), 20),
    "decode attention, 64 x 60 keys behind 768": (behind_case, (64, 1, 9, 3, 64, 60, 768), 10),
    "decode attention, 128 x 60 keys behind 768": (behind_case, (128, 1, 9, 3, 64, 60, 768), 5),
    "prefill attention, 64 x 40 behind 768": (behind_case, (64, 40, 9, 3, 64, 40, 768), 1),
    "causal attention, 14 x 70, there and back": (causal_case, (14, 4, 2, 70, 32), 20),
    "causal attention, 2 x 1000, there and back": (causal_case, (2, 4, 2, 1000, 32), 3),
    "packed attention, 230 + 180 + 150 + 110, there and back": (packed_case, ((230, 180, 150, 110), 9, 3, 64), 5),
    "gated activation, 670 x 1,536, there and back": (gated_case, (670, 1536), 10),
    "cross-entropy, 1,100 x 21, there and back": (loss_case, (1100, 128, 21), 20),
    "cross-entropy, 2,048 x 49,152, there and back": (loss_case, (2048, 576, 49_152), 1),
    "RMS norm, 1,408 x 128, there and back": (norm_case, (1408, 128), 50),
}


def main():
    a, b, c = torch.randn(1024, 1024), torch.randn(2**25), torch.randn(2**25)
    rate = 2 * 1024**3 / min(seconds(lambda: torch.mm(a, a), 10) for _ in range(5))
    speed = 2 * b.nbytes / min(seconds(lambda: c.copy_(b), 3) for _ in range(5))
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}; {rate / 1e9:.0f} GFLOP/s in a product of "
          f"1024 x 1024 matrices, {speed / 1e9:.0f} GB/s in a copy")
    print(f"{'':56}{'plain ms':>10}{'fast ms':>10}{'ratio':>8}{'floor ms':>10}{'reached':>9}")
    for name, (case, args, repeat) in CASES.items():
        torch.manual_seed(0)
        plain, fast, operations, size = case(*args)
        took = [(seconds(plain, repeat), seconds(fast, repeat)) for _ in range(ROUNDS if repeat > 1 else 3)]
        slow, quick = (1e3 * statistics.median(t) for t in zip(*took, strict=True))
        floor = 1e3 * max(operations / rate, size / speed)
        print(f"{name:56}{slow:10.2f}{quick:10.2f}{slow / quick:8.2f}{floor:10.2f}{floor / quick:9.0%}", flush=True)


if __name__ == "__main__":
    main()
