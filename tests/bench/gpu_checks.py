"""Stages of tests/bench/gpu.py that check: does the device compute what the CPU does, and a graph what a step does?"""

import contextlib
import copy
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from gpu_kit import SAMPLINGS, Kit, off

import checkpoints
import train
from kernels.graph import Graphs
from star.decoder import Decoder
from star.finetune import finetune
from star.lora import add_lora
from star.problem import Completion, Example
from star.sampler import Sampler
from star.tasks import load_task


def equal_share(a: list, b: list) -> float:
    """Of two lists of rows of tokens: the share of places at which they agree."""
    same = sum(x == y for r, s in zip(a, b, strict=True) for x, y in zip(r, s, strict=False))
    return same / max(1, sum(max(len(r), len(s)) for r, s in zip(a, b, strict=True)))


def by_layer(model: Decoder, tokens: torch.Tensor) -> list[torch.Tensor]:
    """What comes out of each block, and the last hidden states."""
    seen, hooks = [], [m.register_forward_hook(lambda m, i, out: seen.append(out.double().cpu())) for m in model.layers]
    with torch.no_grad():
        seen.append(model.hidden(tokens.to(model.device)).double().cpu())
    for hook in hooks:
        hook.remove()
    return seen


def scored_apart(model: Decoder, prompts: list[list[int]], outs: list[Completion]) -> float:
    """The mean difference of log-probabilities between prefill and decode, and one whole forward pass."""
    apart = []
    for prompt, out in zip(prompts, outs, strict=True):
        ids = torch.tensor([[*prompt, *out.tokens]], device=model.device)
        with torch.no_grad():
            logp = model(ids)[0, len(prompt) - 1 : -1].log_softmax(-1).gather(1, ids[0, len(prompt) :, None])[:, 0]
        apart += (logp.cpu() - torch.tensor(out.logprobs)).abs().tolist()
    return sum(apart) / len(apart)


def check_model(kit: Kit) -> None:
    """The same model on the CPU and on the device: layer by layer, sampled, trained."""
    task, tokenizer = load_task("arithmetic"), checkpoints.load_tokenizer(checkpoints.SHIPPED)
    prompts = [tokenizer.encode(task.question(p)) for p in task.heldout[: 8 if kit.small else 64]]
    cpu, there = (checkpoints.load_model(checkpoints.SHIPPED, d, torch.float32) for d in ("cpu", kit.device))
    kit.attempt("shipped, float32", check_pair, kit, cpu, cpu, there, prompts, 1e-4)
    true = kit.model("SmolLM2-135M", torch.device("cpu"), torch.bfloat16)
    there = copy.deepcopy(true).to(kit.device)
    ids = random.Random(0)
    prompts = [[ids.randrange(true.config.vocab) for _ in range(ids.randint(5, 40))] for _ in range(8)]
    kit.attempt("SmolLM2's shape, bfloat16", check_pair, kit, copy.deepcopy(true).float(), true, there, prompts, None)


def check_pair(kit: Kit, true: Decoder, cpu: Decoder, there: Decoder, prompts: list, tolerance: float | None
               ) -> tuple[dict, bool]:
    """true: the same weights, exact. Without a tolerance the device may be twice as far off as the CPU in its dtype."""
    tokens = torch.randint(true.config.vocab, (4, 50), generator=torch.Generator().manual_seed(0))
    exact = by_layer(true, tokens)
    errors, yardstick = ([off(a, b) for a, b in zip(by_layer(m, tokens), exact, strict=True)] for m in (there, cpu))
    limits = [tolerance or 2 * y + 1e-3 for y in yardstick]
    wrong = [i for i, (e, limit) in enumerate(zip(errors, limits, strict=True)) if e > limit]
    new = 8 if kit.small else 48
    here, outs = (Sampler(m, slots=8, max_len=128).generate(prompts, max_new_tokens=new) for m in (cpu, there))
    share, apart = equal_share([o.tokens for o in here], [o.tokens for o in outs]), scored_apart(there, prompts, outs)
    examples = [Example((*p, *o.tokens), len(p)) for p, o in zip(prompts, here, strict=True)]
    losses = [finetune(add_lora(m, rank=4), examples, steps=3, lr=1e-3).losses for m in (cpu, there)]
    trained = max(abs(a - b) for a, b in zip(*losses, strict=True))
    figures = {"hidden off by": errors[-1], "CPU's off by": yardstick[-1],
               "first layer off": wrong[0] if wrong else None, "equal greedy tokens": share,
               "decode and whole forward apart": apart, "losses apart": trained}
    fine = not wrong and apart < (1e-3 if tolerance else 0.1) and trained < (1e-3 if tolerance else 0.1)
    return figures, fine and (share > 0.98 or not tolerance)


@contextlib.contextmanager
def steps_by(call: Callable):
    """Decode steps run as call(graphs, function, *key) says."""
    before, Graphs.__call__ = Graphs.__call__, call
    try:
        yield
    finally:
        Graphs.__call__ = before


def eager(graphs: Graphs, function: Callable, *key) -> None:
    function(*key)


def watched(graphs: Graphs, function: Callable, *key) -> None:
    """Eager, and whatever waits for the device raises."""
    if graphs.device.type != "cuda":
        return function(*key)
    torch.cuda.set_sync_debug_mode("error")
    try:
        return function(*key)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextlib.contextmanager
def recorded():
    """{"captures", "capture s", "replays"} of what happens inside."""
    found, graph = {"captures": 0, "capture s": 0.0, "replays": 0}, torch.cuda.CUDAGraph
    before = {name: getattr(graph, name) for name in ("capture_begin", "capture_end", "replay")}

    def begin(self, *args, **options):
        found["captures"] += 1
        found["capture s"] -= time.perf_counter()
        return before["capture_begin"](self, *args, **options)

    def end(self):
        try:
            return before["capture_end"](self)
        finally:
            found["capture s"] += time.perf_counter()

    def replay(self):
        found["replays"] += 1
        return before["replay"](self)

    graph.capture_begin, graph.capture_end, graph.replay = begin, end, replay
    try:
        yield found
    finally:
        for name, method in before.items():
            setattr(graph, name, method)


def workload(model: Decoder, n: int, longest: int) -> tuple[list[list[int]], dict]:
    """Prompts and limits of mixed length behind a prefix: slots are refilled, and rows move together at the end."""
    ids = random.Random(0)
    prompts = [[ids.randrange(model.config.vocab) for _ in range(ids.randint(3, 20))] for _ in range(n)]
    prefix = [ids.randrange(model.config.vocab) for _ in range(30)]
    return prompts, {"prefix": prefix, "max_new_tokens": [ids.randint(2, longest) for _ in range(n)]}


def check_graph(kit: Kit) -> None:
    """Replayed steps against eager ones, bit for bit; no wait inside a step; memory that stays; a device by number."""
    slots, longest = (4, 8) if kit.small else (16, 70)
    models = {"shipped": checkpoints.load_model(checkpoints.SHIPPED, kit.device, torch.float32),
              "SmolLM2's shape": kit.model("SmolLM2-135M")}
    for name, model in models.items():
        prompts, options = workload(model, 3 * slots, longest)
        for how, sampling in SAMPLINGS.items():
            kit.attempt(f"{name}, {how}", replayed, model, slots, longest + 30, prompts, options | sampling)
    kit.attempt("six streams", flat_memory, kit, models["SmolLM2's shape"], slots, longest)
    if kit.cuda:
        def numbered() -> tuple[dict, bool]:
            last = f"cuda:{torch.cuda.device_count() - 1}"
            there = checkpoints.load_model(checkpoints.SHIPPED, last, torch.float32)
            prompts, options = workload(there, 8, 40)
            outs = [Sampler(m, slots=4, max_len=70).generate(prompts, **options) for m in (models["shipped"], there)]
            return {"device": last}, outs[0] == outs[1]

        kit.attempt("the last device, by its number", numbered)


def replayed(model: Decoder, slots: int, max_len: int, prompts: list, options: dict) -> tuple[dict, bool]:
    """Twice by graphs, eager, and eager while waits raise: the same bits. (Row by row, products round otherwise.)"""
    sampler = Sampler(model, slots=slots, max_len=max_len)
    with recorded() as found:
        runs = [sampler.generate(prompts, **options) for _ in range(2)]
    with steps_by(eager):
        plain = Sampler(model, slots=slots, max_len=max_len).generate(prompts, **options)
    with steps_by(watched):
        strict = Sampler(model, slots=slots, max_len=max_len).generate(prompts, **options)
    few = options | {"max_new_tokens": options["max_new_tokens"][:6]}
    alone = Sampler(model, slots=1, max_len=max_len).generate(prompts[:6], **few)
    tokens, eager_tokens, alone_tokens = ([o.tokens for o in outs] for outs in (runs[0], plain, alone))
    shares = {"equal tokens": equal_share(tokens, eager_tokens), "row by row": equal_share(tokens[:6], alone_tokens)}
    return shares | found, runs[0] == runs[1] == plain == strict


def flat_memory(kit: Kit, model: Decoder, slots: int, longest: int) -> tuple[dict, bool]:
    """Six streams of one sampler, then six samplers, each thrown away: what a later one takes must come back."""
    def held() -> float:
        return torch.cuda.memory_allocated(kit.device) / 2**20 if kit.cuda else 0.0

    def streams(n: int) -> list[float]:
        sampler, after = Sampler(model, slots=slots, max_len=longest + 30), []
        for _ in range(n):
            sampler.generate(prompts, temperature=0.9, **options)
            after.append(held())
        return after

    prompts, options = workload(model, 2 * slots, longest)
    with recorded() as found:
        one = streams(6)
    left = []
    for _ in range(6):
        streams(2)
        left.append(held())
    grown, leaked = one[-1] - one[1], left[-1] - left[1]
    figures = {"MiB after each stream": one, "MiB after each sampler": left, "grown MiB": grown, "leaked MiB": leaked}
    return figures | found, grown < 0.05 * one[1] + 8 and leaked < 8


def run_train(kit: Kit, folder: Path, name: str, device: str) -> tuple[float, dict[tuple, list[int]], bytes]:
    """(accuracy, tokens of every generation, metrics) of one `python train.py` of one iteration."""
    flags = ["--iterations", "1", "--show", "0", "--device", device, "--out", str(folder / name)]
    if kit.small:
        flags += ["--problems", "12", "--heldout-problems", "10", "--first-steps", "2", "--max-new-tokens", "40"]
    began = time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):
        code = train.main(flags)
    if code:
        raise RuntimeError(f"train.py on {device} ends with {code}: see above")
    lines, timings, *samples = ([json.loads(line) for line in path.read_text().splitlines()] for path in (
        folder / name / "metrics.jsonl", folder / name / "timings.jsonl", *folder.glob(f"{name}/samples/*.jsonl")))
    spent: dict[str, float] = {}
    for phase, took in (item for line in timings for item in line["seconds"].items()):
        spent[f"{phase} s"] = spent.get(f"{phase} s", 0.0) + took
    tokens = {(r["iteration"], r["phase"], r["problem"], r["sample"]): r["tokens"] for rows in samples for r in rows}
    accuracy = lines[-1]["accuracy"]["mean"]
    kit.note(name, {"accuracy": accuracy, "generations": len(tokens), "s": time.perf_counter() - began, **spent})
    return accuracy, tokens, (folder / name / "metrics.jsonl").read_bytes()


def cycle(kit: Kit) -> None:
    """`python train.py --iterations 1` on the CPU, on the device, and on the device again."""
    with tempfile.TemporaryDirectory() as folder:
        runs = [run_train(kit, Path(folder), *of) for of in (
            ("CPU", "cpu"), ("device", str(kit.device)), ("device again", str(kit.device)))]
    for what, (a, rows_a, metrics_a), (b, rows_b, metrics_b), most in (
            ("CPU and device", *runs[:2], 0.02), ("device and device again", *runs[1:], 1.0)):
        both = sorted(rows_a.keys() & rows_b.keys())
        share = equal_share([rows_a[key] for key in both], [rows_b[key] for key in both])
        kit.note(what, {"accuracies apart": abs(a - b), "equal tokens": share, "same metrics": metrics_a == metrics_b},
                 abs(a - b) <= most)
