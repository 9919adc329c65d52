"""The fused LoRA linear against its plain twin, forward and backward, both in one process, in turn.

    python tests/bench/lora_linear.py

Prints milliseconds (median of the rounds) and the ratio for the four kinds of linears of the model that ships, and the
share of the floor: operations that any version must do over the rate of a large matrix product on this machine.
"""

import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
from kernels.lora import lora_linear, lora_linear_reference

TOKENS, RANK, ROUNDS = 2048, 16, 15
SHAPES = {"q, k, v": ([128, 64, 64], 128), "o": ([128], 128), "gate, up": ([336, 336], 128), "down": ([128], 336)}


def seconds(f, *args, repeat=10):
    f(*args)
    began = time.perf_counter()
    for _ in range(repeat):
        f(*args)
    return (time.perf_counter() - began) / repeat


def there_and_back(f, grad, *args):
    f(*args).backward(grad)


def main():
    a = torch.randn(1024, 1024)
    rate = 2 * 1024**3 / min(seconds(torch.mm, a, a) for _ in range(5))
    print(f"{torch.get_num_threads()} threads, {rate / 1e9:.0f} GFLOP/s in a product of 1024 x 1024 matrices")
    print(f"{'':10}{'plain ms':>10}{'fused ms':>10}{'ratio':>8}{'floor ms':>10}{'reached':>9}")
    for name, (outs, n_in) in SHAPES.items():
        weight = torch.randn(sum(outs), n_in)
        x, A = torch.randn(TOKENS, n_in, requires_grad=True), torch.randn(RANK * len(outs), n_in, requires_grad=True)
        B = [torch.randn(out, RANK, requires_grad=True) for out in outs]
        grad = torch.randn(TOKENS, sum(outs))
        took = {lora_linear_reference: [], lora_linear: []}
        for _ in range(ROUNDS):
            for f, times in took.items():
                times.append(seconds(there_and_back, f, grad, x, weight, None, A, B, 2.0))
        plain, fused = (1e3 * statistics.median(times) for times in took.values())
        # base: y and dx; adapters: product, its gradient, dA, dx, and for B the same three ways
        operations = 4 * weight.numel() * TOKENS + 6 * TOKENS * (A.numel() + sum(b.numel() for b in B))
        floor = 1e3 * operations / rate
        print(f"{name:10}{plain:10.2f}{fused:10.2f}{plain / fused:8.2f}{floor:10.2f}{floor / fused:9.0%}")


if __name__ == "__main__":
    main()
