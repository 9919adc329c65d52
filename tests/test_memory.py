"""The memory that is said before a run against what a run then takes, in bytes."""

import random
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import SHIPPED, random_decoder, refused
from pretended_cuda import pretended
from torch.utils._python_dispatch import TorchDispatchMode

import checkpoints
import star.cache
import star.lora
import star.run.memory
import star.sampler
from kernels.cross_entropy import linear_cross_entropy
from star.batch import micro_batches
from star.cache import KVCache, choose_slots
from star.config import StarConfig
from star.decoder import Decoder, DecoderConfig
from star.lora import add_lora, lora_modules, make_int8, trainable
from star.problem import Example
from star.run.memory import (
    MICRO_TOKENS,
    Lengths,
    Memory,
    fitted,
    kept_bytes,
    memory,
    passing,
    refuse,
    size,
    training,
    widened,
)
from star.sampler import Sampler

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
WIDE = {"d_model": 64, "n_layers": 3, "n_heads": 4, "n_kv": 2, "head_dim": 16, "d_ff": 160}
GEMMA = WIDE | {"norm": "rms+1", "block": "sandwich", "attn_cap": 9.0, "head_dim": 32}
FALCON = WIDE | {"norm": "layer", "block": "parallel", "gated": False, "ropes": (), "alibi": True}


# what training keeps


def saved(model, length, recompute=False):
    """Bytes a token that autograd holds between forward and backward, each storage once, without parameters."""
    example = Example(tuple(3 + i % 15 for i in range(length)), 1)  # all are targets: the last layer leaves none out
    batch = next(micro_batches([example] * 3, 10**6, model.device))
    parameters, held = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def pack(t):
        storage = t.untyped_storage()
        if storage.data_ptr() not in parameters:
            held[storage.data_ptr()] = storage.nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = batch.hidden(model, recompute)
        loss = linear_cross_entropy(hidden, *model.head()[:1], batch.targets)
    del loss
    return sum(held.values()) / batch.tokens.numel()


@pytest.mark.parametrize("narrow", [0, 10**9], ids=["made again", "kept"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("fields", "length"),
    [(None, 90), (WIDE, 90), (WIDE | {"n_heads": 8, "qk_norm": True}, 20), (GEMMA, 20), (GEMMA, 90), (FALCON, 90),
     (WIDE | {"windows": (None, 40, None)}, 90)],
    ids=["tiny-adder", "wide", "qk norm", "gemma", "gemma long", "falcon", "windows"])  # fmt: skip
def test_what_training_keeps_is_what_autograd_saves(fields, length, dtype, narrow, monkeypatch):
    for module in (star.lora, star.run.memory):
        monkeypatch.setattr(module, "NARROW", narrow)
    model = random_decoder(dtype=dtype, **fields) if fields else checkpoints.load_model(SHIPPED, dtype=dtype)
    c = add_lora(model, rank=4).config
    whole, inputs = saved(model, length), saved(model, length, recompute=True)
    adapters = sum(m.A.shape[0] for _, m in lora_modules(model)) * dtype.itemsize  # products that are left out
    assert 0.95 < kept_bytes(c, dtype, False, length, cpu=True) / (whole - adapters) < 1.05
    if not c.windows:  # then all blocks are alike, and the backward pass holds one of them
        assert 0.85 < kept_bytes(c, dtype, True, length, cpu=True) / (inputs + whole / c.n_layers) < 1.1
    assert kept_bytes(c, dtype, True, length, cpu=True) < kept_bytes(c, dtype, False, length, cpu=True)


def test_a_device_with_a_kernel_keeps_no_scores():
    c = random_decoder(**WIDE).config
    for dtype, cpu in ((torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)):
        short, long = (kept_bytes(c, dtype, False, n, cpu) for n in (100, 1000))
        assert (long > 2 * short) if (dtype, cpu) == (torch.bfloat16, True) else (long == short)


# memory


class Peak(TorchDispatchMode):
    """Most bytes of tensors made inside that were alive together; what an operation uses inside itself is not seen."""

    def __init__(self):
        super().__init__()
        self.seen, self.now, self.most = set(), 0, 0

    def free(self, key, n):
        self.seen.discard(key)
        self.now -= n

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        given = {t.untyped_storage().data_ptr() for t in torch.utils._pytree.tree_leaves((args, kwargs))
                 if isinstance(t, torch.Tensor)}
        for t in torch.utils._pytree.tree_leaves(out):
            if isinstance(t, torch.Tensor):
                storage = t.untyped_storage()
                key, n = storage.data_ptr(), storage.nbytes()
                if key not in given | self.seen:
                    self.seen.add(key)
                    self.now += n
                    weakref.finalize(storage, self.free, key, n)
        self.most = max(self.most, self.now)
        return out


def parts(config, lengths=None, max_new=68, rows=10**6, model=None, device=CPU):
    return memory(model or checkpoints.outline(SHIPPED), config, lengths or Lengths(24, 0), max_new, rows, device)


@pytest.mark.parametrize(("prefix", "own", "slots", "dtype", "vocab", "temperature"), [
    (0, 60, 6, torch.float32, 30, 0.0), (150, 40, 6, torch.float32, 30, 0.0), (150, 40, 6, torch.bfloat16, 30, 0.0),
    (0, 4, 16, torch.float32, 5000, 0.0), (0, 4, 16, torch.float32, 5000, 1.0)],
    ids=["prefill", "with few-shot text", "bfloat16", "logits", "noise"])  # fmt: skip
def test_what_sampling_holds(prefix, own, slots, dtype, vocab, temperature):
    model = random_decoder(dtype=dtype, **WIDE | {"vocab": vocab, "n_layers": 2})
    said = parts(StarConfig(slots=slots, temperature=temperature), Lengths(own, prefix), 3, model=model).sampling
    runner, rng = Sampler(model, slots, own + 3), random.Random(0)
    text = [[rng.randrange(2, vocab) for _ in range(own)] for _ in range(slots + 1)]
    with Peak() as peak:
        runner.generate(text, prefix=[rng.randrange(2, vocab) for _ in range(prefix)], max_new_tokens=3,
                        temperature=temperature)
    assert 0.6 < said / peak.most < 1.5


def test_weights_adapters_and_copy():
    need = parts(StarConfig())
    model = add_lora(checkpoints.load_model(SHIPPED), rank=16)
    assert need.weights == 538_112 * 4
    assert need.adapters == 16 * sum(p.numel() for p in trainable(model).values())  # value, gradient, 2 moments
    assert need.copy == sum(module.weight.nbytes for _, module in lora_modules(model))
    live = parts(StarConfig(merge=False))
    assert (live.weights, live.adapters, live.copy) == (need.weights, need.adapters, 0)
    wide = parts(StarConfig(), model=checkpoints.outline(SHIPPED, "float64"))  # adapters are then as wide
    assert (wide.weights, wide.adapters, wide.copy) == (2 * need.weights, 2 * need.adapters, 2 * need.copy)
    assert parts(StarConfig(rank=4)).adapters == need.adapters // 4


@pytest.mark.parametrize("fields", [{}, {"gated": False, "block": "parallel"}, {"n_kv": 1, "bias_qkv": True}])
def test_adapters_and_copy_of_any_model(fields):
    """Counted from names and shapes alone; here against the adapters as they are made."""
    need = parts(StarConfig(rank=3), model=random_decoder(dtype=torch.bfloat16, **fields))
    model = add_lora(random_decoder(dtype=torch.bfloat16, **fields), rank=3)
    assert need.adapters == 4 * sum(p.nbytes for p in trainable(model).values())
    assert need.copy == sum(module.weight.nbytes for _, module in lora_modules(model))


def test_what_is_held_at_a_time():
    """Sampling and training do not meet."""
    need = Memory(weights=100, adapters=10, copy=30, sampling=300, training=401, slots=7)
    assert need.most == 541
    assert replace(need, sampling=500).most == 640
    assert str(Memory(2**28, 2**20, 0, 2**21, 2**22, 7)) == (
        "weights 0.25 GiB, adapters with gradient and moments 1.0 MiB, sampling in 7 slots 2.0 MiB, training 4.0 MiB")


def test_counting_changes_neither_model_nor_settings():
    """The outline is what the weights are loaded into later."""
    model, config = checkpoints.outline(SHIPPED), StarConfig()
    parameters = list(model.named_parameters())

    def state():
        return ([(name, id(p), p._version, p.requires_grad, p.device) for name, p in model.named_parameters()],
                list(map(id, model.modules())), sorted(vars(model)), str(vars(config)))  # fmt: skip

    before = state()
    parts(config, model=model)
    assert state() == before
    assert len(parameters) == len(before[0])


def test_slots_are_chosen_from_what_the_weights_leave(monkeypatch):
    """As the sampler does once they are loaded; so a large model is not refused for a cache nobody asked for."""
    model = checkpoints.load_model(SHIPPED)
    weights, row = 538_112 * 4, (24 + 68) * KVCache.bytes_a_token(model.config, model.dtype)
    for free in (weights - 5, weights + 5 * row, weights + 100 * row, 10**12, None):
        monkeypatch.setattr(star.run.memory, "free_memory", lambda _, free=free: free)
        monkeypatch.setattr(star.cache, "free_memory", lambda _, free=free: free and max(free - weights, 0))
        assert parts(StarConfig()).slots == choose_slots(model.config, model.dtype, CPU, None, 24 + 68)
        assert parts(StarConfig(slots=7)).slots == 7
        assert parts(StarConfig(), rows=1).slots == 1


def test_the_cache_is_counted_whole():
    model, slots, own, prefix, new = checkpoints.load_model(SHIPPED), 5, 24, 300, 68
    caches = [KVCache(model.config, *shape, CPU, model.dtype) for shape in ((slots, own + new), (1, prefix))]
    held = sum(t.nbytes for cache in caches for t in [*cache.keys, *cache.values])
    config, lengths = StarConfig(slots=slots), Lengths(own, prefix)
    assert parts(config, lengths, new).sampling == held + passing(model, config, lengths, slots, cpu=True)


def test_a_gpus_graphs_hold_a_step_of_their_own():
    model, lengths = random_decoder(**WIDE | {"vocab": 5000}), Lengths(4, 0)
    cpu, gpu = (passing(model, StarConfig(temperature=1.0), lengths, 16, cpu) for cpu in (True, False))
    assert gpu == 2 * cpu == 2 * 16 * 5000 * 40


def test_training_is_bounded_by_the_batch(monkeypatch):
    """Several micro-batches at once on a CPU with cores, but never more than a step has."""
    each = kept_bytes(checkpoints.outline(SHIPPED).config, torch.float32, False, 92, True)
    logits = 3 * 4 * 21
    for threads, settings, tokens, rows in (
        (1, {"batch_size": 64}, 1024, 1024), (2, {"batch_size": 64}, 2048, 2048),
        (64, {"batch_size": 64}, 64 * 92, 64 * 92), (1, {"batch_size": 4}, 4 * 92, 4 * 92),
        (1, {"batch_size": 64, "micro_tokens": 5000}, 5000, 1024), (1, {"batch_size": 64, "micro_tokens": 5}, 92, 92),
    ):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert parts(StarConfig(**settings)).training == tokens * each + rows * logits
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with_text = [parts(StarConfig(batch_size=2, few_shot_train=on), Lengths(24, 300)).training for on in (False, True)]
    assert with_text == [2 * 92 * (each + logits), 2 * 392 * (each + logits)]
    assert parts(StarConfig(recompute=True)).training < parts(StarConfig()).training / 2


@pytest.mark.parametrize(
    ("free", "settings", "words"),
    [
        (99, {}, ["smaller model, or half as much by --dtype bfloat16 or --base-bits 8"]),
        (99, {"dtype": "bfloat16"}, ["smaller model, or half as much by --base-bits 8"]),
        (99, {"dtype": "bfloat16", "base_bits": 8}, ["smaller model"]),
        (109, {}, ["--rank"]),
        (139, {}, ["--no-merge"]),
        (139, {"merge": False}, ["--slots", "--max-new-tokens"]),
        (439, {}, ["--slots", "--max-new-tokens"]),
        (540, {}, ["--recompute"]),
        (540, {"recompute": True}, ["--micro-tokens"]),
        (540, {"micro_tokens": 2048}, ["--micro-tokens"]),
        (540, {"micro_tokens": 1024}, ["--recompute"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_flag_that_helps(free, settings, words):
    config = StarConfig(**settings)
    mega = Memory(*(n * 2**20 for n in (100, 10, 0 if config.merge is False else 30, 300, 401)), slots=7)
    has = f"cpu has {size(free * 2**20)} free"
    advice = refused(refuse, mega, free * 2**20, CPU, config, words=(has, "(weights 100.0 MiB, ")).rpartition(": ")[2]
    assert all(word in advice for word in words)
    assert ("bfloat16" in advice) == (free < 100 and config.dtype != "bfloat16")
    refuse(mega, 541 * 2**20, CPU, config)
    refuse(mega, None, CPU, config)


def free_of(monkeypatch, n):
    for module in (star.run.memory, star.sampler):
        monkeypatch.setattr(module, "free_memory", lambda _: n)


@pytest.mark.parametrize("merge", [None, True, False])
def test_the_copy_is_counted_where_the_sampler_makes_one(monkeypatch, merge):
    """On a GPU it asks what is free once weights and adapters are there."""
    config, copy = StarConfig(merge=merge), parts(StarConfig()).copy
    with pretended():
        runner = Sampler(add_lora(checkpoints.load_model(SHIPPED, "cuda")), 1, 92, merge=merge)
        adapters = sum(p.nbytes for p in trainable(runner.model).values())
        made = set()
        for left in (copy, 2 * copy, 2 * copy + 1, 10 * copy, None):
            free_of(monkeypatch, left)
            merges = runner.merges()
            free_of(monkeypatch, left and left + weights_of(runner.model) + adapters)
            assert parts(config, device=CUDA).copy == (copy if merges else 0)
            made.add(merges)
    assert made == ({True, False} if merge is None else {merge})


def weights_of(model):
    return sum(t.nbytes for _, t in model.tensors())


MISTRAL = {"vocab": 32000, "d_model": 4096, "n_layers": 32, "n_heads": 32, "n_kv": 8, "head_dim": 128, "d_ff": 14336,
           "max_pos": 32768}


def test_a_7b_on_a_gpu(monkeypatch):
    """Mistral-7B in bfloat16, with rank 16: every part written out; and what a GPU holds of it, large or small."""
    with torch.device("meta"):
        model = Decoder(DecoderConfig(**MISTRAL)).to(torch.bfloat16)
    linears = 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 4096 * 14336 * 3)
    weights = 2 * (linears + 2 * 32000 * 4096 + (2 * 32 + 1) * 4096)
    ins_and_outs = 32 * ((4096 + 4096) * 2 + (4096 + 1024) * 2 + (4096 + 14336) * 3)
    lengths, new, row = Lengths(200, 800), 256, (200 + 256) * 2 * 32 * 8 * 128 * 2

    def fit(gib, **settings):
        free_of(monkeypatch, int(gib * 2**30))
        return fitted(model, StarConfig(batch_size=64, **settings), lengths, new, 10**6, CUDA)

    config, need, notes = fit(79)
    assert (need.weights, need.copy, need.adapters) == (weights, 2 * linears, 16 * 16 * ins_and_outs)
    assert need.slots == min(512, (79 * 2**30 - weights) // 2 // row)  # half of what the weights leave
    sampling = need.slots * row + 800 * row // 456 + passing(model, config, lengths, need.slots, cpu=False)
    assert need.sampling == sampling
    assert need.most < 79 * 2**30 * 15 / 16  # consistent with what happens: not refused, and not full
    assert config.slots is None
    refuse(need, 79 * 2**30, CUDA, config)
    held = need.weights + need.copy + need.adapters

    trains = {n: training(model, StarConfig(batch_size=64, micro_tokens=n), lengths, new, cpu=False)
              for n in MICRO_TOKENS}
    for tokens, larger in zip(MICRO_TOKENS, (None, *MICRO_TOKENS), strict=False):
        config, need, notes = fit(((held + trains[tokens]) / 2**30 + 0.01) * 16 / 15, merge=True)
        assert config.micro_tokens == tokens
        assert need.training == trains[tokens]
        said = [note for note in notes if "trained on at a time" in note]
        assert len(said) == (larger is not None)
        assert all(f"{tokens} tokens" in note and size(trains[larger]) in note for note in said)
        again = fitted(model, config, lengths, new, 10**6, CUDA)  # resumed: what was chosen is obeyed, and not said
        assert (again[0].micro_tokens, [n for n in again[2] if "trained" in n]) == (tokens, [])
    assert fit(79, micro_tokens=5000)[0].micro_tokens == 5000

    config, need, notes = fit(23.5)  # weights, and no room for a copy
    assert need.copy == 0
    assert config.micro_tokens < 8192
    refuse(need, int(23.5 * 2**30), CUDA, config)
    config, need, notes = fit(40)  # a copy, and not half of the rest for the cache beside it
    assert need.copy
    assert (40 * 2**30 - weights) // 2 // row > need.slots == config.slots
    assert replace(need, training=0).most < 40 * 2**30 * 15 / 16
    assert f"{config.slots} rows are sampled at a time" in notes[0]
    refused(refuse, fit(13)[1], 13 * 2**30, CUDA, StarConfig(), words=("smaller model",))


@torch.no_grad()
def test_a_7b_in_8_bits_trains_on_a_card_of_12_gb(monkeypatch):
    """Of 12 GiB a driver leaves 11.6; with a few-shot text of 800 tokens, tries drawn, and no flag but --recompute."""
    with torch.device("meta"):
        model = make_int8(Decoder(DecoderConfig(**MISTRAL)).to(torch.bfloat16))
    free = int(11.6 * 2**30)
    free_of(monkeypatch, free)
    asked = StarConfig(base_bits=8, recompute=True, samples=4, temperature=0.8)
    config, need, _ = fitted(model, asked, Lengths(200, 800), 256, 10**6, CUDA)
    rows = 32 * (4096 * 2 + 1024 * 2 + 14336 * 2 + 4096)
    linears = 32 * (4096 * 4096 * 2 + 4096 * 1024 * 2 + 4096 * 14336 * 3)
    assert need.weights == linears + 4 * rows + 2 * (2 * 32000 * 4096 + (2 * 32 + 1) * 4096)
    assert (need.copy, widened(model)) == (0, 2 * 2 * 14336 * 4096)
    refuse(need, free, CUDA, config)
    assert need.most < 10 * 2**30
    assert config.slots >= 16
    assert config.micro_tokens >= 4096
    with torch.device("meta"):
        whole = Decoder(DecoderConfig(**MISTRAL)).to(torch.bfloat16)
    refused(refuse, fitted(whole, StarConfig(recompute=True), Lengths(200, 800), 256, 10**6, CUDA)[1], free, CUDA,
            StarConfig(dtype="bfloat16"), words=("smaller model, or half as much by --base-bits 8",))


@pytest.mark.parametrize("device", [CPU, CUDA])
def test_a_weight_of_8_bits_is_counted_while_it_is_wide(monkeypatch, device):
    """Once where it is sampled, and again in a GPU's graphs; once for each that trains at the same time."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    free_of(monkeypatch, None)
    outlines = [change(checkpoints.outline(SHIPPED)) for change in (make_int8, lambda model: model)]
    narrow, whole = (parts(StarConfig(merge=False, slots=8), model=model, device=device) for model in outlines)
    wide, cpu = 4 * 2 * 336 * 128, device is CPU  # gate and up of the tiny adder
    assert narrow.sampling - whole.sampling == wide * (1 if cpu else 2)
    assert narrow.training - whole.training == wide * (3 if cpu else 1)
    assert narrow.weights < whole.weights / 3.5
    assert narrow.adapters == whole.adapters
    assert parts(StarConfig(), model=outlines[0], device=device).copy == 0


def test_a_cpu_with_room_chooses_nothing(monkeypatch):
    model = checkpoints.outline(SHIPPED)
    free_of(monkeypatch, 10**9)
    assert fitted(model, StarConfig(), Lengths(24, 0), 68, 100, CPU)[::2] == (StarConfig(), [])


def test_a_cpu_with_little_memory_takes_fewer_slots(monkeypatch):
    """Half of what is free would be slots, and a prefill does not stand beside them."""
    monkeypatch.setattr(star.run.memory, "free_memory", lambda _: 95 * 2**20)
    model, lengths = checkpoints.outline(SHIPPED), Lengths(24, 0)
    config, need, notes = fitted(model, StarConfig(), lengths, 68, 10**6, CPU)
    assert config.slots == need.slots < memory(model, StarConfig(), lengths, 68, 10**6, CPU).slots
    assert need.weights + need.adapters + need.copy + need.sampling <= 95 * 2**20
    assert notes == [f"{config.slots} rows are sampled at a time: more do not fit into 95.0 MiB beside weights and "
                     "copy"]
    assert fitted(model, replace(config, slots=400), lengths, 68, 10**6, CPU)[0].slots == 400, "what was set stays"


def test_ranks_that_share_the_blocks_have_a_part_each_and_some_on_their_way():
    model = random_decoder(n_layers=8, tied=True)
    blocks, ends = (sum(p.nbytes for p in m.parameters()) for m in (model.layers, model.embed_tokens))
    ends += model.norm.weight.nbytes
    config = StarConfig(slots=2)
    alone, half, tenth = (memory(model, config, Lengths(24, 0), 68, 9, CPU, shares) for shares in (1, 2, 10))
    assert alone.weights == ends + blocks
    assert half.weights == ends + blocks // 2 + 3 * blocks // 8
    assert tenth.weights == ends + -(-blocks // 10) + 3 * blocks // 8
    assert (alone.copy > 0, half.copy) == (True, 0)
    assert replace(half, weights=0, copy=0) == replace(alone, weights=0, copy=0)
    assert fitted(model, config, Lengths(24, 0), 68, 9, CPU, 10)[1] == tenth


def test_sizes_for_people():
    assert [size(n) for n in (0, 538_112 * 4, 2**28 - 2**20, 2**28, 27 * 2**29)] == [
        "0.0 MiB", "2.1 MiB", "255.0 MiB", "0.25 GiB", "13.50 GiB"]  # fmt: skip
