"""LoRA fine-tuning: tokens a second and peak memory, here and in PEFT, and the share of what the machine can do.

    python tests/bench/finetune.py [--steps 10] [--recompute] [--device cuda] [--out FILE]

Ten optimizer steps on 8 sequences of 60-260 tokens each, a third of them prompt; adapters of rank 16 on all linears of
the blocks, in float32 beside a base in either dtype; AdamW, gradients clipped, no dropout. Both sides see the same
sequences in the same order, and their first losses have to be equal. The first step is not timed. Pads are not counted.

PEFT runs twice. As users call it: a batch of 8 padded on the right, labels -100 on prompts and pads, the model's own
loss. At its best: sequences sorted by length into micro-batches of the size that a trial finds fastest, AdamW fused.
Gradient checkpointing is off (--recompute switches ours on, and theirs), attention is sdpa.

share: 4 operations a weight of the blocks and token (forward, and gradients of inputs; the base is frozen) and 4 a
weight of the head and target, over seconds and the rate of a large matrix product. Attention and adapters not counted.
GB: of a process of its own, at its peak while it trains, weights and interpreter included.
"""

import random
import sys
import time

import peers
import torch
from peers import Bench, middle, multiplied

from star.batch import batch_of_step
from star.finetune import finetune
from star.lora import add_lora
from star.problem import Example

BATCH, RANK, ALPHA, LR = 8, 16, 32, 1e-4
MICRO = (8, 4, 2, 1)  # sequences of a micro-batch of PEFT


def make(vocab: int, steps: int, small: bool) -> tuple[list[Example], list[list[Example]]]:
    """(the sequences, those of each step): the same for all sides, on every machine."""
    rng = random.Random(0)
    shortest, longest = (10, 40) if small else (60, 260)
    lengths = [rng.randint(shortest, longest) for _ in range(BATCH * steps)]
    examples = [Example([rng.randrange(vocab) for _ in range(n)], n // 3) for n in lengths]
    return examples, [[examples[i] for i in batch_of_step(len(examples), BATCH, step, 0)] for step in range(steps)]


def figures(spec: dict, batches: list[list[Example]], sizes: tuple[int, int], ends: list[float], losses: list[float]
            ) -> dict:
    """ends: when each step ended. sizes: weights of the blocks and of the head."""
    took, timed = ends[-1] - ends[0], [e for batch in batches[1:] for e in batch]
    tokens, targets = sum(len(e.tokens) for e in timed), sum(len(e.tokens) - e.n_prompt for e in timed)
    return {"tokens/s": tokens / took, "operations/s": 4 * (sizes[0] * tokens + sizes[1] * targets) / took,
            "losses": losses, "peak": peers.peak(spec["device"])}


def steps_of(spec: dict) -> int:
    return 3 if spec["trial"] else spec["steps"]


def here(spec: dict) -> dict:
    """The steps by star/finetune."""
    model = peers.ours(spec)
    sizes, (examples, batches) = multiplied(model), make(model.config.vocab, spec["steps"], spec["small"])
    rate = peers.matmul_rate(spec["device"], spec["dtype"])
    add_lora(model, RANK, ALPHA)
    n = steps_of(spec)
    ends: list[float] = []

    def ended(*_: object) -> None:
        peers.wait(spec["device"])
        ends.append(time.perf_counter())

    peers.forget_peak(spec["device"])
    stats = finetune(model, examples, n, LR, BATCH, on_step=ended, recompute=spec["recompute"])
    return {"rate": rate} | figures(spec, batches[:n], sizes, ends, stats.losses)


def padded(examples: list[Example], device: str) -> dict[str, torch.Tensor]:
    """A batch as transformers wants it."""
    width = max(len(e.tokens) for e in examples)

    def rows(of) -> torch.Tensor:
        return torch.tensor([of(e, width - len(e.tokens)) for e in examples], device=device)

    return {"input_ids": rows(lambda e, pads: [*e.tokens, *[0] * pads]),
            "attention_mask": rows(lambda e, pads: [1] * len(e.tokens) + [0] * pads),
            "labels": rows(lambda e, pads: [*[-100] * e.n_prompt, *e.tokens[e.n_prompt :], *[-100] * pads])}


def peft(spec: dict) -> dict:
    """The steps by PEFT and a plain loop."""
    from peft import LoraConfig, get_peft_model

    model = peers.theirs(spec)
    head = model.get_output_embeddings().weight.numel()
    linears = {n.rpartition(".")[2]: 0 for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    linears.pop("lm_head", None)
    blocks = sum(m.weight.numel() for n, m in model.named_modules() if n.rpartition(".")[2] in linears)
    batches = make(model.config.vocab_size, spec["steps"], spec["small"])[1][: steps_of(spec)]
    rate = peers.matmul_rate(spec["device"], spec["dtype"])
    if spec["recompute"]:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=[*linears],
                                             task_type="CAUSAL_LM")).train()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=LR, weight_decay=0.0, fused=True if spec["best"] else None)
    losses, ends = [], []
    peers.forget_peak(spec["device"])
    for batch in batches:
        ordered = sorted(batch, key=lambda e: -len(e.tokens)) if spec["best"] else batch
        targets, loss = sum(len(e.tokens) - e.n_prompt for e in batch), 0.0
        for i in range(0, BATCH, spec["micro"]):
            part = model(**padded(ordered[i : i + spec["micro"]], spec["device"]), num_items_in_batch=targets).loss
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        peers.wait(spec["device"])
        losses.append(loss)
        ends.append(time.perf_counter())
    return {"rate": rate} | figures(spec, batches, (blocks, head), ends, losses)


def check_losses(found: dict[str, list[dict]], sides: dict) -> str | None:
    """What is wrong if the sides did not begin with the same loss: then they did not do the same work."""
    firsts = {side: results[0]["losses"][0] for side, results in found.items()}
    limit = 1e-3 if all(spec["dtype"] == "float32" for _, spec in sides.values()) else 0.05
    if max(firsts.values()) - min(firsts.values()) > limit:
        return "first losses differ: " + ", ".join(f"{side} {loss:.4f}" for side, loss in firsts.items())
    return None


def main() -> int:
    parser = peers.parser(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="[10]")
    parser.add_argument("--recompute", action="store_true", help="activations again instead of kept, on both sides")
    args = parser.parse_args()
    if args.steps < 2:
        peers.fail(f"--steps is {args.steps}: at least 2 are needed, for the first is not timed")
    bench = Bench(__file__, args, () if args.alone else ("transformers", "peft"), here=here, peft=peft)
    given = {"steps": args.steps, "recompute": args.recompute}
    sides = {"here": ("here", bench.best("here", {}, "tokens/s", **given))}
    if not args.alone:
        best = bench.best("peft", {"micro": list(MICRO)}, "tokens/s", best=True, **given)
        sides |= {"best": ("peft", best), "as called": ("peft", best | {"best": False, "micro": BATCH})}
    found = bench.in_turn(sides, "tokens/s")
    rates = {side: middle(results, "tokens/s") for side, results in found.items()}
    peaks = {side: middle(results, "peak") for side, results in found.items()}
    print("\nmedians; /: how many times ours is faster, and its memory over theirs\n")
    print("| side | tokens/s | / | share | GFLOP/s of a product | GB | / | loss |\n" + "|---" * 8 + "|")
    table = {}
    for side, results in found.items():
        spec, rate = sides[side][1], middle(results, "rate")
        share = middle(results, "operations/s") / rate
        faster, less = rates["here"] / rates[side], peaks["here"] / peaks[side]
        table[side] = {"dtype": spec["dtype"], "micro": spec.get("micro"), "tokens/s": rates[side], "share": share,
                       "matmul GFLOP/s": rate / 1e9, "peak": peaks[side], "faster": faster, "memory": less}
        name = f"{side} ({spec['dtype']}{', batch ' + str(spec['micro']) if 'micro' in spec else ''})"
        first, *_, last = results[0]["losses"]
        print(f"| {name} | {rates[side]:,.1f} | {faster:.2f} | {share:.0%} | {rate / 1e9:,.0f} | "
              f"{peaks[side] / 1e9:.2f} | {less:.2f} | {first:.4f} to {last:.4f} |")
    wrong = check_losses(found, sides)
    bench.write(finetune=table)
    print(wrong or "", end="\n" if wrong else "")
    return int(wrong is not None)


if __name__ == "__main__":
    sys.exit(main())
