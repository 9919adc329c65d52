"""Stages of tests/bench/gpu.py that measure: decoding, a published workload, training, reading and writing weights."""

import random
import tempfile
import time
from pathlib import Path

import torch
from gpu_kit import GIB, Kit

import checkpoints
from checkpoints.families import decoder_config
from star.config import StarConfig
from star.decoder import Decoder, DecoderConfig
from star.device import free_memory
from star.finetune import finetune
from star.lora import add_lora, merged, reset
from star.problem import Example
from star.run.memory import Lengths, memory
from star.sampler import Sampler

LLAMA = {  # 2 GB in bfloat16
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32_000, "hidden_size": 2048,
    "intermediate_size": 5632, "num_hidden_layers": 17, "num_attention_heads": 16, "num_key_value_heads": 16,
    "hidden_act": "silu", "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16"}


def linear_parameters(c: DecoderConfig) -> tuple[int, int]:
    """Of all blocks, and of the head."""
    heads = (2 * c.n_heads + 2 * c.n_kv) * c.head_dim
    return c.n_layers * c.d_model * (heads + (3 if c.gated else 2) * c.d_ff), c.vocab * c.d_model


def step_cost(c: DecoderConfig, itemsize: int, rows: int, prefix: int, own: int) -> tuple[int, int]:
    """(bytes to read, operations) of a decode step: the weights and the prefix once, the rows' own keys and values."""
    blocks, head = linear_parameters(c)
    keys = 2 * c.n_layers * c.n_kv * c.head_dim * itemsize
    scores = 4 * c.n_layers * c.n_heads * c.head_dim * (prefix + own)
    return (blocks + head) * itemsize + keys * (prefix + rows * own), rows * (2 * (blocks + head) + scores)


def random_ids(c: DecoderConfig, lengths: list[int], seed: int = 0) -> list[list[int]]:
    ids = random.Random(seed)
    return [[ids.randrange(c.vocab) for _ in range(n)] for n in lengths]


def decode(kit: Kit) -> None:
    """A step at several widths behind a shared prefix, and where its time goes."""
    for name in ("SmolLM2-135M", "Mistral-7B"):
        model = kit.model(name)
        for rows in (1, 3) if kit.small else (1, 16, 64, 256):
            for temperature in (0.0, 0.8):
                what = f"{name}, {rows} rows, T {temperature:g}"
                kit.attempt(what, decode_steps, kit, model, rows, temperature)
                if rows == 1 or temperature:
                    kit.attempt(f"{what}: kernels", step_kernels, kit, model, rows, temperature)
        del model


def decode_steps(kit: Kit, model: Decoder, rows: int, temperature: float) -> tuple[dict, None]:
    """The difference of two streams that differ in new tokens alone; the least of two, after one that warms."""
    prefix, own, steps = (12, 4, 24) if kit.small else (768, 64, 64)
    c = model.config
    options = {"prefix": random_ids(c, [prefix])[0], "temperature": temperature}
    prompts = random_ids(c, [own] * rows, 1)
    sampler = Sampler(model, slots=rows, max_len=own + steps + 1)

    def stream(new: int) -> tuple[float, int]:
        """Seconds, and steps: a device is looked at every few, so that there are more than tokens."""
        kit.wait()
        began, before = time.perf_counter(), sampler.slot_steps
        sampler.generate(prompts, max_new_tokens=new, **options)
        kit.wait()
        return time.perf_counter() - began, (sampler.slot_steps - before) // rows

    stream(steps + 1)
    kit.peak()
    (whole, all_steps), (first, few) = (min(stream(new) for _ in range(2)) for new in (steps + 1, 1))
    step = max(whole - first, 1e-9) / (all_steps - few)
    size, work = step_cost(c, model.dtype.itemsize, rows, prefix, own + steps // 2)
    figures = {"ms a step": 1e3 * step, "tok/s": rows / step, "of copy": kit.share("copy", size / step),
               "of matmul": kit.share("matmul", work / step), "prefill ms": 1e3 * (first - few * step),
               "tok/s, whole stream": rows * (steps + 1) / whole, "GiB": kit.peak()}
    return figures, None


def step_kernels(kit: Kit, model: Decoder, rows: int, temperature: float) -> tuple[dict, None]:
    """What a step consists of. Prompts of one token: their prefill is no more than another step."""
    prefix, steps = (12, 8) if kit.small else (768, 16)
    options = {"prefix": random_ids(model.config, [prefix])[0], "temperature": temperature, "max_new_tokens": steps + 1}
    prompts, sampler = random_ids(model.config, [1] * rows, 1), Sampler(model, slots=rows, max_len=steps + 2)

    def stream() -> None:
        sampler.generate(prompts, **options)

    stream()
    took = kit.top(stream, steps + 1)
    return {"ms": sum(ms for _, ms, _ in took), "launches": sum(n for *_, n in took),
            "longest": took[0][0] if took else None, "top": took[:15]}, None


def nano(kit: Kit) -> None:
    """The benchmark of GeeeekExplorer/nano-vllm (bench.py), number by number: 256 rows, 133,966 new tokens."""
    random.seed(0)
    rows, most = (5, 12) if kit.small else (256, 1024)
    least = most // 10 if kit.small else 100
    model = kit.model("Qwen3-0.6B")
    vocab = min(10_000, model.config.vocab - 1)
    prompts = [[random.randint(0, vocab) for _ in range(random.randint(least, most))] for _ in range(rows)]
    new = [random.randint(least, most) for _ in range(rows)]
    max_len = max(len(p) + n for p, n in zip(prompts, new, strict=True))
    c, free = model.config, free_memory(kit.device)
    row = 2 * c.n_layers * c.n_kv * c.head_dim * model.dtype.itemsize * max_len
    sampler = Sampler(model, slots=rows if free is None or rows * row < 0.8 * free else None, max_len=max_len)

    def stream() -> tuple[dict, None]:
        kit.peak()
        kit.wait()
        began = time.perf_counter()
        outs = sampler.generate(prompts, max_new_tokens=new, temperature=0.6)
        seconds, tokens = time.perf_counter() - began, sum(len(o.tokens) for o in outs)
        assert tokens == sum(new), f"{tokens} new tokens, {sum(new)} were asked for"
        return {"tok/s": tokens / seconds, "tokens": tokens, "s": seconds, "slots": sampler.slots,
                "of slot-steps used": sampler.row_steps / sampler.slot_steps, "GiB": kit.peak()}, None

    kit.attempt("first run", stream)  # it makes the cache, and records what it replays
    kit.attempt("second run", stream)


def train(kit: Kit) -> None:
    """LoRA on all linears: speed, whether it stays, and memory against what the plan says of it."""
    lengths = random.Random(0)
    work = {"SmolLM2-135M": ([lengths.randint(60, 260) for _ in range(64)], None),
            "Mistral-7B": ([4096] * 2, 8192)}
    if kit.small:
        work = {name: ([20, 12, 9], 32) for name in work}
    for name, (sizes, micro) in work.items():
        model = add_lora(kit.model(name), rank=16)
        for recompute in (False, True):
            kit.attempt(f"{name}, {len(sizes)} x {max(sizes)}{', recompute' * recompute}", train_steps, kit, model,
                        sizes, micro, recompute)
        if name == "Mistral-7B":
            kit.attempt(f"{name}, a cycle in little memory", small_cycle, kit, model)
        del model


def train_steps(kit: Kit, model: Decoder, sizes: list[int], micro: int | None, recompute: bool) -> tuple[dict, bool]:
    steps, c = 4 if kit.small else 20, model.config
    examples = [Example(tuple(ids), 1) for ids in random_ids(c, sizes)]
    reset(model)
    kit.peak()
    times = [time.perf_counter()]
    stats = finetune(model, examples, steps=steps, lr=1e-4, batch_size=len(sizes), micro_tokens=micro,
                     recompute=recompute, on_step=lambda step, loss: times.append(time.perf_counter()))
    half, peak = steps // 2, kit.peak()
    first, last = (times[half] - times[0]) / half, (times[-1] - times[half]) / (steps - half)
    blocks, head = linear_parameters(c)
    tokens, targets = stats.tokens / steps, stats.target_tokens / steps
    rate = 4 * (blocks * tokens + head * targets) / last
    config = StarConfig(batch_size=len(sizes), micro_tokens=micro, recompute=recompute, rank=16)
    need = memory(model, config, Lengths(max(sizes) - 1, 0), 1, 1, kit.device)
    planned = (need.weights + need.adapters + need.training) / GIB
    figures = {"tok/s": tokens / last, "tok/s at first": tokens / first, "TF/s": rate / 1e12,
               "of matmul": kit.share("matmul", rate), "peak GiB": peak, "planned GiB": planned,
               "loss": stats.losses[-1]}
    return figures, stats.losses[-1] < stats.losses[0] and (peak is None or peak < 1.05 * planned + 0.5)


def small_cycle(kit: Kit, model: Decoder) -> tuple[dict, None]:
    """Sampling from live adapters, then training with recomputation: what a 24 GiB card has to hold."""
    n, own, new, micro = (3, 6, 6, 16) if kit.small else (16, 200, 200, 2048)
    prompts = random_ids(model.config, [own] * n)
    kit.peak()
    sampler = Sampler(model, slots=n, max_len=own + new, merge=False)
    outs = sampler.generate(prompts, max_new_tokens=new, temperature=0.8)
    sampled = kit.peak()
    sampler.release()
    examples = [Example((*p, *o.tokens), len(p)) for p, o in zip(prompts, outs, strict=True)]
    finetune(model, examples, steps=3, batch_size=8, micro_tokens=micro, recompute=True)
    return {"sampling GiB": sampled, "training GiB": kit.peak()}, None


def load(kit: Kit) -> None:
    """A folder of 2 GB (its files lie in memory by then): written, read to the device, merged, exported."""
    raw = LLAMA | ({"vocab_size": 100, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "num_key_value_heads": 4} if kit.small else {})
    made = kit.random(decoder_config(raw)[0], kit.device, torch.bfloat16)
    size = sum(p.nbytes for p in made.parameters()) / 1e9

    def timed(what: str, f, *args):
        kit.wait()
        began = time.perf_counter()
        out = f(*args)
        kit.wait()
        seconds = time.perf_counter() - began
        kit.note(what, {"GB": size, "s": seconds, "GB/s": size / seconds})
        return out

    with tempfile.TemporaryDirectory() as folder:
        base, exported = Path(folder) / "base", Path(folder) / "exported"
        timed("save", checkpoints.save_model, made, base, raw)
        model = timed("load", checkpoints.load_model, base, kit.device)
        same = all(torch.equal(a, b.to(a.device)) for a, b in zip(made.parameters(), model.parameters(), strict=True))
        add_lora(model, rank=16)
        twin = timed("merge", merged, model)
        timed("merge again", merged, model, twin)
        timed("export", checkpoints.export_merged, model, exported)
        again = timed("load the export", checkpoints.load_model, exported, kit.device)
        same &= all(torch.equal(a, b.to(a.device)) for a, b in zip(made.parameters(), again.parameters(), strict=True))
        began = time.perf_counter()
        checkpoints.save_adapter(model, Path(folder) / "adapter")
        kit.note("same weights", {"saving adapters s": time.perf_counter() - began}, same)
