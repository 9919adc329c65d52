"""A real model's folder in this project and in transformers: the same ids, logits and greedy tokens, and how fast.

    python -m checkpoints.fetch smollm2-135m
    python tests/bench/real_model.py [--model checkpoints/smollm2-135m] [--tokens 200] [--texts FILE ...] [--alone]

Needs the extra `bench`. In float32, on 20 prompts: the tokenizer's ids (also of README.md and of --texts, whole), the
largest difference of the logits, and greedy tokens behind each prompt, which no end-of-text stops. Both continue all
prompts at once, in turn (transformers pads them on the left); with --alone, transformers also one after the other.

Exit status 1 if ids differ, logits differ by more than 1e-3, or greedy tokens part where the winner leads by more than
that: below it, matrix products of another shape may decide. transformers may rebuild a tokenizer by its class and drop
steps of its file; where it does, the tokenizers library on tokenizer.json is what counts, and a line says so.
"""

import argparse
import sys
import time
from pathlib import Path

from peers import need

need("transformers")

import tokenizers
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

import checkpoints
from star.sampler import Sampler

ROOT = Path(__file__).parents[2]
LIMIT = 1e-3
ROUNDS = 2
PROMPTS = [
    "The capital of France is",
    "Water boils at 100 degrees Celsius, and it freezes at",
    "The planets of the solar system, from the sun outwards, are",
    "In 1969, two astronauts walked on the moon for the first time. Their names were",
    "Photosynthesis is the process by which plants",
    "Once upon a time, in a village by the sea, there lived an old fisherman who",
    "The letter had no stamp and no name on it. Anna turned it over twice before she",
    "“Don’t open that door,” said the captain — but it was already too late.",
    "It was raining when the train stopped between two stations, and nobody",
    "Q: What is 17 + 25?\nA: 17 + 25 =",
    "3 + 4 = 7\n12 + 9 = 21\n48 + 36 =",
    "Tom has 3 boxes with 12 apples each. He gives away 7 apples. How many apples does he have left? Let us think.",
    "1, 1, 2, 3, 5, 8, 13,",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
    "#include <stdio.h>\n\nint main(void) {\n    for (int i = 0; i < 10; i++) {\n",
    "SELECT name, COUNT(*) FROM orders WHERE year = 2023 GROUP BY",
    "Ingredients for a simple bread:\n- 500 g flour\n- 300 ml water\n-",
    "Dear Sir or Madam,\n\nI am writing to complain about",
    "Le chat est assis sur la table. In English this means:",
    "<|im_start|>user\nWhy is the sky blue? Answer in two sentences.<|im_end|>\n<|im_start|>assistant\n",
]


def ids_agree(folder, texts):
    """Print what the tokenizers make of the texts: name -> text. Do our ids follow the folder's own file?"""
    ours, theirs = checkpoints.load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    file = folder / "tokenizer.json"
    plain = tokenizers.Tokenizer.from_file(str(file)) if file.is_file() else theirs.backend_tokenizer
    total, unlike, odd = 0, [], []
    for name, text in texts.items():
        ids = ours.encode(text)
        total += len(ids)
        if ids != theirs(text)["input_ids"]:
            unlike.append(name)
            if ids != plain.encode(text).ids:
                odd.append(name)
    print(f"tokenizer: {len(texts)} texts, {total:,} ids; {len(texts) - len(unlike)} texts as in AutoTokenizer")
    if unlike:
        print(f"  not as in AutoTokenizer ({type(theirs).__name__}): {', '.join(unlike)}; " + (
            f"nor as in the file: {', '.join(odd)}" if odd else "but as in tokenizer.json, of which it drops steps"))
    return not odd


def logits_differ(ours, theirs, prompts):
    """Largest difference over all positions of the prompts."""
    worst = largest = 0.0
    with torch.no_grad():
        for prompt in prompts:
            tokens = torch.tensor([prompt])
            wanted = theirs(tokens).logits
            worst = max(worst, (ours(tokens) - wanted).abs().max().item())
            largest = max(largest, wanted.abs().max().item())
    print(f"logits: {sum(map(len, prompts))} positions, largest difference {worst:.1e} (limit {LIMIT:.0e}; the largest "
          f"logit is {largest:.1f})")
    return worst


def generate(model, prompts, n):
    """Greedy tokens of transformers for prompts padded on the left."""
    width = max(map(len, prompts))
    tokens = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    return model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=n)[:, width:].tolist()


def in_turn(*functions):
    """[(what it returns, seconds of the best round)] of each; a machine's slow minute hits all alike."""
    took = [[] for _ in functions]
    for _ in range(ROUNDS):
        outs = []
        for f, times in zip(functions, took, strict=True):
            began = time.perf_counter()
            outs.append(f())
            times.append(time.perf_counter() - began)
    return [(out, min(times)) for out, times in zip(outs, took, strict=True)]


def tokens_agree(model, prompts, mine, wanted, tokenizer):
    """Print where greedy tokens part, and by how much the winner leads there in transformers. Is it always a tie?"""
    parted, fine = 0, True
    for prompt, own, other in zip(prompts, mine, wanted, strict=True):
        at = next((i for i, (a, b) in enumerate(zip(own, other, strict=True)) if a != b), None)
        if at is None:
            continue
        with torch.no_grad():
            top = model(torch.tensor([prompt + other[:at]])).logits[0, -1].topk(2).values
        lead, parted = (top[0] - top[1]).item(), parted + 1
        fine &= lead <= LIMIT
        print(f"  {tokenizer.decode(prompt)[-40:]!r} parts at token {at}, where the winner leads by {lead:.1e}: "
              f"{tokenizer.decode([own[at]])!r}, not {tokenizer.decode([other[at]])!r}")
    beyond = sum(any(end in own for end in tokenizer.eos_ids) for own in mine)
    print(f"  the same {len(mine[0])} tokens behind {len(prompts) - parted} of {len(prompts)} prompts" + (
        f"; {parted} part in ties" if parted and fine else "") + f"; {beyond} run over an end of text")
    return fine


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "checkpoints" / "smollm2-135m")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--texts", type=Path, nargs="*", default=[])
    parser.add_argument("--alone", action="store_true", help="transformers also prompt by prompt: slow")
    args = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not (args.model / "config.json").is_file():
        sys.exit(f"no model in {args.model}; fetch one: python -m checkpoints.fetch smollm2-135m")
    print(f"{args.model.name}, {torch.get_num_threads()} threads, torch {torch.__version__}, transformers "
          f"{transformers.__version__}")
    files = {file.name: file.read_text(encoding="utf-8") for file in (ROOT / "README.md", *args.texts)}
    same_ids = ids_agree(args.model, {f"prompt {i}": p for i, p in enumerate(PROMPTS)} | files)

    tokenizer, n = checkpoints.load_tokenizer(args.model), args.tokens
    prompts = [tokenizer.encode(p) for p in PROMPTS]
    ours = checkpoints.load_model(args.model, dtype="float32")
    theirs = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    theirs.generation_config.eos_token_id, theirs.generation_config.pad_token_id = None, 0  # nothing stops it
    close = logits_differ(ours, theirs, prompts) <= LIMIT

    sampler = Sampler(ours, slots=len(prompts), max_len=max(map(len, prompts)) + n, tokenizer=tokenizer)
    (outs, here), (wanted, there) = in_turn(lambda: sampler.generate(prompts, max_new_tokens=n),
                                            lambda: generate(theirs, prompts, n))
    mine, total = [list(o.tokens) for o in outs], len(prompts) * n
    print(f"greedy, all prompts at once: {total / here:.0f} tokens/s here, {total / there:.0f} in transformers: "
          f"{there / here:.2f} x (best of {ROUNDS}, in turn)")
    same_tokens = tokens_agree(theirs, prompts, mine, wanted, tokenizer)
    if args.alone:
        began = time.perf_counter()
        wanted = [generate(theirs, [p], n)[0] for p in prompts]
        print(f"greedy, transformers prompt by prompt: {total / (time.perf_counter() - began):.0f} tokens/s")
        same_tokens &= tokens_agree(theirs, prompts, mine, wanted, tokenizer)
    good = same_ids and close and same_tokens
    print("all agree" if good else "they DISAGREE: see above")
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
