"""Frozen linears in 8 bits (--base-bits 8) against the same model with whole weights: what is lost, saved, and slower.

    python -m checkpoints.fetch smollm2-135m
    python tests/bench/int8.py GSM8K [--model checkpoints/smollm2-135m] [--dtypes float32 bfloat16] [--tokens 8192]
        [--speed]

GSM8K: the folder with train.jsonl and test.jsonl. Perplexity is that of test.jsonl as a text, in windows of 512, and of
what the model with whole weights writes greedily behind few-shot prompts of its questions; on these also the share of
tokens that both would write next, and how many come before the first that differs. Then tokens decoded by 1, 16 and 64
rows, and tokens trained on, a second of the processor's (best of rounds in turn: others' work on the machine counts
less). Adapters are live on both sides; merged, which 8 bits cannot be, stands beside. Last one product: by the whole
weight, by the widened one, and torch's own. --speed: only these.
"""

import argparse
import math
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from peers import DTYPES, REAL

import checkpoints
from kernels.int8 import quantize
from star.decoder import Decoder
from star.finetune import finetune
from star.lora import add_lora, make_int8
from star.problem import Example
from star.sampler import Sampler
from star.tasks import load_task

WINDOW, QUESTIONS, NEW, STEPS, ROUNDS = 512, 16, 64, 16, 5


def loaded(folder: Path, dtype: str, bits: int | None) -> Decoder:
    outline = checkpoints.outline(folder, dtype)
    return checkpoints.fill(outline if bits is None else make_int8(outline), "cpu")


@torch.no_grad()
def read(model: Decoder, texts: list[tuple[list[int], int]]) -> torch.Tensor:
    """(places, 2): log-probability of each token behind a text's first ones, and the token that the model would write.
    """
    found = []
    for ids, start in texts:
        logp = model(torch.tensor([ids]))[0, start - 1 : -1].log_softmax(-1)
        found.append(torch.stack([logp.gather(1, torch.tensor(ids[start:])[:, None])[:, 0], logp.argmax(-1)], dim=1))
    return torch.cat(found).double()


def perplexity(found: torch.Tensor) -> float:
    return math.exp(-found[:, 0].mean().item())


def accuracy(wide: Decoder, narrow: Decoder, text: list[int], prefix: list[int], questions: list[list[int]]):
    """Lines on what both say of a text, and of what the first of them writes."""
    a, b = (perplexity(read(m, [(text[i : i + WINDOW], 1) for i in range(0, len(text) - 1, WINDOW)]))
            for m in (wide, narrow))
    yield f"perplexity of {len(text):,} tokens of test.jsonl: {a:.4f} -> {b:.4f} ({100 * (b / a - 1):+.2f} %)"
    said, other = ([c.tokens for c in Sampler(m, 32).generate(questions, prefix=prefix, max_new_tokens=NEW)]
                   for m in (wide, narrow))
    own = [([*prefix, *q, *s], len(prefix) + len(q)) for q, s in zip(questions, said, strict=True)]
    a, b = (read(m, own) for m in (wide, narrow))
    yield (f"perplexity of {len(a):,} tokens that the model writes itself: {perplexity(a):.4f} -> {perplexity(b):.4f}; "
           f"log-probabilities are {(a - b)[:, 0].abs().mean():.4f} apart")
    until = [next((i for i, (x, y) in enumerate(zip(s, o, strict=True)) if x != y), NEW)
             for s, o in zip(said, other, strict=True)]
    part = [n for n in until if n < NEW]
    yield (f"greedy: {100 * (a[:, 1] == b[:, 1]).double().mean():.1f} % of the next tokens are the same; "
           f"{len(until) - len(part)} of {len(until)} answers of {NEW} tokens are equal, the others for "
           f"{sum(part) / max(1, len(part)):.0f} tokens")


def in_turn(*functions) -> list[float]:
    """Seconds of the processor in the best round of each."""
    took = [[] for _ in functions]
    for _ in range(ROUNDS):
        for f, times in zip(functions, took, strict=True):
            began = time.process_time()
            f()
            times.append(time.process_time() - began)
    return [min(times) for times in took]


def decoding(model: Decoder, prompts: list[list[int]], rows: int, merge: bool):
    """A function that decodes, warm; its prompts are short."""
    sampler, prompts = Sampler(model, rows, 16 + STEPS, merge=merge), [p[:8] for p in prompts]

    def work():
        sampler.generate((prompts * rows)[:rows], max_new_tokens=STEPS)

    work()
    return work


def speeds(wide: Decoder, narrow: Decoder, prompts: list[list[int]]):
    """Lines on decoding and training; both models get adapters."""
    for model in (wide, narrow):
        add_lora(model)
    for rows in (1, 16, 64):
        merged, live, small = in_turn(*(decoding(m, prompts, rows, merge) for m, merge in (
            (wide, True), (wide, False), (narrow, False))))
        yield (f"decoding {rows} rows: {rows * STEPS / small:.0f} tokens/s, {live / small:.2f} of whole weights with "
               f"live adapters, {merged / small:.2f} of merged ones")
    examples = [Example(tuple(p[:100]), 20) for p in prompts[:8]]
    whole, small = in_turn(*(lambda m=m: finetune(m, examples, steps=1, lr=1e-5) for m in (wide, narrow)))
    tokens = sum(len(e.tokens) for e in examples)
    yield f"training: {tokens / small:.0f} tokens/s, {whole / small:.2f} of whole weights"


def products(model: Decoder):
    """Lines on one linear of a model: where torch's own product pays (kernels/int8.has_product)."""
    weight = model.layers[0].mlp.gate_up_proj.weight.data
    q, scale = quantize(weight)
    ways = {"whole": lambda x: F.linear(x, weight), "widened": lambda x: F.linear(x, q.to(x.dtype)).mul_(scale),
            "torch's own": lambda x: torch._weight_int8pack_mm(x, q, scale.to(x.dtype))}
    for rows in (1, 8, 32, 64):
        x = torch.randn(rows, weight.shape[1]).to(weight.dtype)
        took = in_turn(*(lambda f=f, x=x: [f(x) for _ in range(10)] for f in ways.values()))
        yield f"{rows} rows x {list(weight.shape)}: " + ", ".join(
            f"{name} {seconds * 1e5:.0f} us" for name, seconds in zip(ways, took, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gsm8k", type=Path)
    parser.add_argument("--model", type=Path, default=REAL)
    parser.add_argument("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--speed", action="store_true")
    args = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    tokenizer, task = checkpoints.load_tokenizer(args.model), load_task("gsm8k", data=args.gsm8k)
    text = tokenizer.encode((args.gsm8k / "test.jsonl").read_text()[: 8 * args.tokens])[: args.tokens]
    prefix = tokenizer.encode(task.prefix)
    questions = [tokenizer.encode(task.question(p), special=False) for p in task.heldout[:QUESTIONS]]
    for dtype in args.dtypes:
        wide, narrow = (loaded(args.model, dtype, bits) for bits in (None, 8))
        a, b = (sum(p.nbytes for p in m.parameters()) / 1e6 for m in (wide, narrow))
        print(f"\n{dtype}: weights {a:.0f} -> {b:.0f} MB")
        for line in accuracy(wide, narrow, text, prefix, questions) if not args.speed else ():
            print(line, flush=True)
        for line in speeds(wide, narrow, [text[i : i + WINDOW] for i in range(0, len(text) - WINDOW, WINDOW)]):
            print(line, flush=True)
        for line in products(wide):
            print(line, flush=True)


if __name__ == "__main__":
    main()
