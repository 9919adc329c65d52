"""What is said before a run against what a run then takes: tokens, rationales, steps, and bytes."""

import copy
import random
import re
import weakref

import pytest
import torch
from conftest import GOLDEN, SHIPPED, random_decoder, refused
from test_loop import Riddles, Scripted, answer, finished
from torch.utils._python_dispatch import TorchDispatchMode

import checkpoints
from kernels.cross_entropy import linear_cross_entropy
from star import cost, prompts, sampler
from star.batch import micro_batches
from star.cache import KVCache
from star.config import PRESETS, StarConfig
from star.cost import Fit, Forecast, Work, duration, fit, kept_bytes, memory, refuse, size
from star.loop import Chunk, star
from star.lora import add_lora, lora_modules
from star.problem import Example, Problem
from star.sampler import Sampler
from star.tasks import Task, load_task

CPU = torch.device("cpu")
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("fields", "length"),
    [(None, 90), (WIDE, 90), (WIDE | {"n_heads": 8, "qk_norm": True}, 20), (GEMMA, 20), (GEMMA, 90), (FALCON, 90),
     (WIDE | {"windows": (None, 40, None)}, 90)],
    ids=["tiny-adder", "wide", "qk norm", "gemma", "gemma long", "falcon", "windows"])  # fmt: skip
def test_what_training_keeps_is_what_autograd_saves(fields, length, dtype):
    model = random_decoder(dtype=dtype, **fields) if fields else checkpoints.load_model(SHIPPED, dtype=dtype)
    c = add_lora(model, rank=4).config
    whole, inputs = saved(model, length), saved(model, length, recompute=True)
    adapters = sum(m.A.shape[0] for _, m in lora_modules(model)) * dtype.itemsize  # products that are left out
    assert 0.95 < kept_bytes(c, dtype, False, length, cpu=True) / (whole - adapters) < 1.01
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


def parts(config, lengths=None, cap=68, rows=10**6, model=None):
    made = memory(model or checkpoints.outline(SHIPPED), config, lengths or Fit(24, 0), cap, rows, CPU)
    slots = next(int(m[1]) for m in (re.search(r"(\d+) slots", name) for name in made) if m)
    return *made.values(), slots


@pytest.mark.parametrize(("prefix", "own", "slots", "dtype", "vocab", "temperature"), [
    (0, 60, 6, torch.float32, 30, 0.0), (150, 40, 6, torch.float32, 30, 0.0), (150, 40, 6, torch.bfloat16, 30, 0.0),
    (0, 4, 16, torch.float32, 5000, 0.0), (0, 4, 16, torch.float32, 5000, 1.0)],
    ids=["prefill", "with few-shot text", "bfloat16", "logits", "noise"])  # fmt: skip
def test_what_sampling_holds(prefix, own, slots, dtype, vocab, temperature):
    model = random_decoder(dtype=dtype, **WIDE | {"vocab": vocab, "n_layers": 2})
    said = parts(StarConfig(slots=slots, temperature=temperature), Fit(own, prefix), 3, model=copy.deepcopy(model))[3]
    runner, rng = Sampler(model, slots, own + 3), random.Random(0)
    text = [[rng.randrange(2, vocab) for _ in range(own)] for _ in range(slots + 1)]
    with Peak() as peak:
        runner.generate(text, prefix=[rng.randrange(2, vocab) for _ in range(prefix)], max_new_tokens=3,
                        temperature=temperature)
    assert 0.6 < said / peak.most < 1.5


def test_weights_adapters_and_copy():
    weights, adapters, merged, _, _, _ = parts(StarConfig())
    model = add_lora(checkpoints.load_model(SHIPPED), rank=16)
    assert weights == 538_112 * 4
    assert adapters == 16 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # value, gradient, 2 moments
    assert merged == weights - 4 * sum(p.numel() for name, p in model.named_parameters() if "norm" in name or
                                       "embed" in name)
    assert parts(StarConfig(merge="off"))[:3] == (weights, adapters, 0)
    wide = checkpoints.outline(SHIPPED, "float64")  # adapters are then as wide
    assert parts(StarConfig(), model=wide)[:3] == (2 * weights, 2 * adapters, 2 * merged)
    assert parts(StarConfig(rank=4))[1] == adapters // 4


def test_slots_are_chosen_from_what_the_weights_leave(monkeypatch):
    """As the sampler does once they are loaded; so a large model is not refused for a cache nobody asked for."""
    model = checkpoints.load_model(SHIPPED)
    weights, row = 538_112 * 4, (24 + 68) * KVCache.bytes_a_token(model.config, model.dtype)
    for free in (weights - 5, weights + 5 * row, weights + 100 * row, 10**12, None):
        monkeypatch.setattr(cost, "free_memory", lambda _, free=free: free)
        monkeypatch.setattr(sampler, "free_memory", lambda _, free=free: free and max(free - weights, 0))
        assert parts(StarConfig())[-1] == sampler.plan_slots(model, None, 24 + 68)
        assert parts(StarConfig(slots=7))[-1] == 7
        assert parts(StarConfig(), rows=1)[-1] == 1


def test_the_cache_is_counted_whole():
    model, slots, own, prefix, cap = checkpoints.load_model(SHIPPED), 5, 24, 300, 68
    caches = [KVCache(model.config, *shape, CPU, model.dtype) for shape in ((slots, own + cap), (1, prefix))]
    held = sum(t.nbytes for cache in caches for t in [*cache.keys, *cache.values])
    config, lengths = StarConfig(slots=slots), Fit(own, prefix)
    assert parts(config, lengths, cap)[3] == held + cost.passing(model, config, lengths, slots, cpu=True)


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
        assert parts(StarConfig(**settings))[4] == tokens * each + rows * logits
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    with_text = [parts(StarConfig(batch_size=2, few_shot_train=on), Fit(24, 300))[4] for on in ("off", "on")]
    assert with_text == [2 * 92 * (each + logits), 2 * 392 * (each + logits)]
    assert parts(StarConfig(recompute="on"))[4] < parts(StarConfig())[4] / 2


@pytest.mark.parametrize(
    ("free", "settings", "words"),
    [
        (99, {}, ["smaller model, or half as much by --dtype bfloat16"]),
        (99, {"dtype": "bfloat16"}, ["smaller model"]),
        (109, {}, ["--rank"]),
        (139, {}, ["--merge off"]),
        (139, {"merge": "off"}, ["--slots", "--max-new-tokens"]),
        (439, {}, ["--slots", "--max-new-tokens"]),
        (540, {}, ["--recompute on"]),
        (540, {"recompute": "on"}, ["--micro-tokens"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_flag_that_helps(free, settings, words):
    config = StarConfig(**settings)
    sizes = {"weights": 100, "adapters": 10, "copy": 0 if config.merge == "off" else 30, "cache": 300, "training": 401}
    mega = {name: n * 2**20 for name, n in sizes.items()}
    has = f"cpu has {size(free * 2**20)} free"
    advice = refused(refuse, mega, free * 2**20, CPU, config, words=(has, "(weights 100.0 MiB, ")).rpartition(": ")[2]
    assert all(word in advice for word in words)
    assert ("bfloat16" in advice) == (free < 100 and config.dtype != "bfloat16")
    refuse(mega, 541 * 2**20, CPU, config)
    refuse(mega, None, CPU, config)


def test_a_copy_that_a_device_can_do_without_is_no_reason():
    """--merge auto makes the copy on a CPU, and elsewhere only where there is room."""
    sizes, cuda = {"weights": 100, "adapters": 10, "copy": 90, "cache": 50, "training": 60}, torch.device("cuda")
    refuse(sizes, 170, cuda, StarConfig())
    refused(refuse, sizes, 170, cuda, StarConfig(merge="on"), words=("--merge off",))
    refused(refuse, sizes, 170, CPU, StarConfig(), words=("--merge off",))
    refused(refuse, sizes, 249, CPU, StarConfig(), words=("--slots",))
    refused(refuse, sizes, 259, CPU, StarConfig(), words=("--recompute",))
    refuse(sizes, 260, CPU, StarConfig())


# work and time


def played(right, **settings):
    """(Work as foretold, rationales sampled and steps taken by iteration) of a run with a scripted model."""
    config = StarConfig(**{"iterations": 2, "problems": 10, "batch_size": 4, "temperature": 1.0} | settings)
    calls, task = [], Riddles(30)

    def script(text):  # no two rationales are equal
        calls.append(text)
        return f"{len(calls)}=" + (answer(text) if right(text) else "1"), "stop"

    runner = Scripted(add_lora(checkpoints.load_model(SHIPPED), rank=2, targets=("q_proj",)),
                      checkpoints.load_tokenizer(SHIPPED), script)
    events = list(star(runner, runner.tokenizer, task, config))
    made = [g.iteration for e in events if isinstance(e, Chunk) for g in e.generations]
    work = Work.of(config, len(task.train), len(task.heldout))
    return work, [made.count(n) for n in range(config.iterations + 1)], [m.get("steps", 0) for m in finished(events)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_steps": 3, "growth": 1.5},
        {"epochs": 1.5},
        {"epochs": 1.0, "samples": 2, "hint_samples": 5},
        {"epochs": 1.0, "samples": 2, "hint_samples": 5, "cap": 3},
        {"epochs": 1.0, "rounds": "all", "problems": 26},
        {"epochs": 1.0, "rounds": "all", "problems": 26, "samples": 3, "cap": 4},
        {"epochs": 1.0, "problems": 1000, "validation": 7, "eval_samples": 2, "heldout_problems": 3},
        {"heldout_problems": 1000, "validation": 5},
    ],
)
def test_a_run_that_needs_all_hints_does_the_work_foretold(settings):
    work, sampled, steps = played(lambda text: "hint" in text, **settings)
    assert sampled == work.sampled
    assert steps == work.steps


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2.0, "samples": 3},
        {"epochs": 2.0, "samples": 3, "cap": 2},
        {"epochs": 1.0, "samples": 2, "rounds": "all", "cap": 3},
        {"wanted": 4},
        {"validation": 5, "heldout_when": "best", "patience": 1},
        {"iterations": 0},
    ],
)
def test_no_run_does_more_than_foretold(settings):
    work, sampled, steps = played(lambda text: "hint" not in text, **settings)
    assert sampled[0] == work.sampled[0]
    for done, foretold in ((sampled, work.sampled), (steps, work.steps)):
        assert all(a <= b for a, b in zip(done, foretold, strict=False))


def test_a_run_without_hints_does_the_work_foretold():
    work, sampled, steps = played(lambda text: True, hint="off", epochs=2.0, samples=3)
    assert (sampled, steps) == (work.sampled, work.steps)


def test_work_of_the_baselines_and_presets():
    assert Work.of(StarConfig(learn="gold", epochs=1.0, batch_size=8, iterations=1), 100, 20) == Work([20, 20], [0, 13])
    assert Work.of(StarConfig(hint_share=0.25, problems=10, iterations=1), 100, 20).sampled == [20, 33]
    paper = Work.of(StarConfig(**PRESETS["paper"]), 7473, 1319)
    assert paper.steps[:6] == [0, 40, 48, 57, 69, 82]
    assert set(paper.sampled[1:]) == {2 * (7473 - 200) + 200 + 1319}
    modern = Work.of(StarConfig(**PRESETS["modern"]), 7473, 1319)
    assert modern == Work([200 + 9 * 1319, *[4 * 2000 + 200 + 9 * 1319] * 10], [0, *[250] * 10])
    assert Work.of(StarConfig(validation=50, iterations=1), 30, 5) == Work([35, 35], [0, 28])  # nobody is left
    assert modern.left(8) == (2 * modern.sampled[1], 500)
    assert modern.left(10) == (0, 0)


def test_forecast():
    """From the pace so far: ten seconds for 100 of 400 rationales leave thirty."""
    forecast = Forecast(Work([100, 150, 150], [0, 10, 30]))
    assert forecast.left(-1) == (0, None)
    forecast.add({"evaluate": 6.0, "pass at k": 4.0, "save": 99.0}, 100, 0)
    assert forecast.left(0) == (pytest.approx(30.0), None)
    forecast.add({"generate": 10.0, "rationalize": 4.0, "evaluate": 6.0, "train": 5.0, "save": 99.0}, 150, 10)
    assert forecast.left(1) == (pytest.approx(150 * 30 / 250), pytest.approx(15.0))
    assert forecast.left(2) == (0.0, 0.0)


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (40.4, "40 s"), (99, "99 s"), (100, "2 min"),
    (720, "12 min"), (5999, "100 min"), (6000, "1.7 h"), (12_600, "3.5 h")])  # fmt: skip
def test_durations_for_people(seconds, said):
    assert duration(seconds) == said


def test_sizes_for_people():
    assert [size(n) for n in (0, 538_112 * 4, 2**28 - 2**20, 2**28, 27 * 2**29)] == [
        "0.0 MiB", "2.1 MiB", "255.0 MiB", "0.25 GiB", "13.50 GiB"]  # fmt: skip


# whether prompts fit


class Questions(Task):
    """Problems are texts; the hint stands in front."""

    prefix, hint_prefix = "1+1=2\n", "hint 2\n1+1=2\n"

    def __init__(self, train, heldout):
        self.train, self.heldout = ([Problem(f"{part}{i}", q, "7") for i, q in enumerate(questions)]
                                    for part, questions in (("t", train), ("h", heldout)))

    def question(self, problem):
        return problem.question + "\n"

    def hinted(self, problem):
        return f"hint {problem.answer}\n{problem.question}\n"

    def turns(self, hinted=False):
        return [("hint 2\n1+1" if hinted else "1+1", "2")]


def longest(task, tokenizer, few_shot):
    return max(len(prompts.encode(task, p, tokenizer, hinted, few_shot))
               for p in [*task.train, *task.heldout] for hinted in (False, True))


def test_problems_that_do_not_fit_leave_the_task(tokenizer):
    """Of the hinted prompt too: hint prefix 13, hint 7, question and line break."""
    task = Questions(["1" * n for n in (5, 79, 80, 90)], ["2" * n for n in (4, 79, 99)])
    lengths, out = fit(task, tokenizer, cap=10, limit=110)
    assert out == ["h2", "t2", "t3"]
    assert ([p.id for p in task.train], [p.id for p in task.heldout]) == (["t0", "t1"], ["h0", "h1"])
    assert lengths == Fit(own=87, prefix=13)
    assert lengths.whole == longest(task, tokenizer, True) == 100
    assert lengths.own == longest(task, tokenizer, False)
    assert fit(task, tokenizer, 10, 110) == (lengths, [])


def test_few_shot_text_that_leaves_no_room_is_refused(tokenizer):
    task = Questions(["1"], ["2"])
    refused(fit, task, tokenizer, 10, 24, words=("few-shot text has 13 tokens", "24 positions", "--shots"))
    refused(fit, Questions(["1" * 99] * 5, ["1"]), tokenizer, 10, 60,
            words=("5 of 6 prompts", "60 positions", "t0, t1, t2 and 2 more", "--shots", "--max-new-tokens"))
    refused(fit, Questions(["1"], ["1" * 99]), tokenizer, 10, 60, words=("1 of 2 prompts", "such as h0"))


@pytest.mark.parametrize("name", ["tok_llama3", "tok_sp_llama", "tok_gpt2"])
def test_the_longest_is_found_among_texts_of_any_kind(name):
    """Tokens are no simple matter of bytes: rare signs take several, common words one. None may be overlooked."""
    words, rng = checkpoints.load_tokenizer(GOLDEN / name), random.Random(0)
    kinds = ["the ", "and then ", "7 ", "1934 ", "é", "中", "\n\n", "🙂", " " * 9]
    texts = ["".join(rng.choices(kinds[i % 9 :][:2], k=rng.randrange(1, 40))) for i in range(300)]
    task = Questions(texts[:250], texts[250:])
    lengths, out = fit(task, words, 10, 10**6)
    assert out == []
    assert lengths.own == longest(task, words, False)
    assert abs(lengths.whole - longest(task, words, True)) <= cost.SLACK
    limit = lengths.whole - 20
    _, out = fit(task, words, 10, limit)
    assert 0 < len(out) < 150
    assert longest(task, words, True) + 10 <= limit
    assert all(max(len(prompts.encode(task, p, words, hinted)) for hinted in (False, True)) + 10 > limit
               for p in Questions(texts[:250], texts[250:]).train if p.id in out)


def test_each_few_shot_text_counts_for_its_own_problems(tokenizer):
    class Two(Questions):
        def shown(self, problem, hinted=False):
            return "+" * (60 if len(problem.question) > 9 else 3)

    task = Two(["1" * n for n in (9, 10, 24, 25)], ["2"])
    lengths, out = fit(task, tokenizer, cap=10, limit=60 + 7 + 24 + 1 + 10)
    assert out == ["t3"]
    assert lengths == Fit(own=7 + 24 + 1, prefix=60)


def test_few_prompts_are_encoded(tokenizer):
    """A training set of ten thousands is looked through in no time."""
    class Counted:
        chat, unk_id, calls = None, 0, 0

        def encode(self, text, special=True):
            Counted.calls += 1
            return tokenizer.encode(text, special)

    task = load_task("arithmetic", digits="4-5")
    lengths, _ = fit(task, Counted(), 68, 512)
    assert lengths == Fit(24, 0)
    assert Counted.calls < 100


def test_a_conversation_counts_with_its_template(tokenizer):
    class Long:
        """A template that says much itself."""

        def render(self, turns):
            return "n" * 40 + "".join(f"{'h' if role == 'user' else 't'}{said}\n" for role, said in turns) + "t"

    spoken = copy.copy(tokenizer)
    spoken.chat = Long()
    task = Questions(["1" * n for n in (5, 30, 31)], ["2"])
    lengths, out = fit(task, spoken, 10, 40 + 15 + 1 + 7 + 30 + 2 + 10)
    assert out == ["t2"]
    assert lengths == Fit(own=longest(task, spoken, False), prefix=15)
    assert lengths.whole == longest(task, spoken, True)
