"""Training: the loss is what it says, the base does not move, and any cut into micro-batches gives the same step."""

import copy
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, random_decoder, stirred

from kernels.cross_entropy import linear_cross_entropy
from star.batch import batch_of_step, dealt, micro_batches, pack
from star.finetune import adamw_step, finetune, finetune_steps, fingerprint, lr_factor, step_gradients
from star.lora import add_lora, trainable
from star.problem import Example


def examples(n=12, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(n):
        length = int(torch.randint(4, 15, (1,), generator=g))
        tokens = torch.randint(0, 23, (length,), generator=g).tolist()
        made.append(Example(tuple(tokens), int(torch.randint(1, length, (1,), generator=g))))
    return made


def fresh(dtype=torch.float64):
    return add_lora(random_decoder(dtype=dtype), rank=3)


def test_loss_is_the_mean_over_rationale_and_end():
    """The first step's loss, before anything moved, against one forward an example."""
    data, model = examples(6), fresh()
    total = count = 0
    with torch.no_grad():
        for e in data:
            logp = model(torch.tensor([e.tokens]))[0].log_softmax(-1)
            for place in range(e.n_prompt, len(e.tokens)):
                total -= float(logp[place - 1, e.tokens[place]])
                count += 1
    stats = finetune(model, data, steps=1, batch_size=6)
    assert stats.losses[0] == pytest.approx(total / count, rel=1e-6)
    assert stats.target_tokens == count
    assert stats.tokens == sum(len(e.tokens) for e in data)


def test_packing_and_targets():
    """Whatever id a prompt ends in: it is read, never predicted. Sequences stand one behind the other, longest first.
    """
    data = [Example((6, 7), 1), Example((1, 2, 3, 4, 5, 8, 9), 5), Example((1, 2, 3, 4, 5, 9), 2)]
    (batch,) = micro_batches(data, 1000, torch.device("cpu"))
    assert batch.runs == [(2, 7), (1, 2)]
    assert batch.tokens.tolist() == [[1, 2, 3, 4, 5, 8, 9, 1, 2, 3, 4, 5, 9, 0, 6, 7]]
    assert batch.places.tolist() == [4, 5, 8, 9, 10, 11, 14]
    assert batch.targets.tolist() == [8, 9, 3, 4, 5, 9, 7]


def test_rows_keep_their_budget_and_lose_nothing():
    for n, budget in ((1, 5), (12, 30), (40, 64), (40, 10_000), (7, 1)):
        data = examples(n)
        rows = list(micro_batches(data, budget, torch.device("cpu")))
        assert sum(len(b.targets) for b in rows) == sum(len(e.tokens) - e.n_prompt for e in data)
        for b in rows:
            assert b.tokens.shape[1] == sum(count * length for count, length in b.runs)
            assert b.tokens.shape[1] <= budget or sum(count for count, _ in b.runs) == 1
    sizes = [b.tokens.shape[1] for b in micro_batches(examples(40), 200, torch.device("cpu"))]
    assert max(sizes) < 1.5 * min(sizes), "rows that are worked on side by side should be of about equal size"


@pytest.mark.parametrize(("n", "budget"), [(1, 5), (12, 30), (40, 64), (40, 10_000), (7, 1), (9, 100)])
def test_rows_are_dealt_evenly(n, budget):
    """For wide models: as equal as can be, within the budget, an even number of them; nothing lost, nothing twice."""
    data = [replace(e, tokens=(*e.tokens[:-1], i)) for i, e in enumerate(examples(n))]
    rows = dealt(data, budget, torch.device("cpu"))
    longest = max(len(e.tokens) for e in data)
    sizes = [b.tokens.shape[1] for b in rows]
    learned = sorted(t for b in rows for t in b.targets.tolist())
    assert learned == sorted(t for e in data for t in e.tokens[e.n_prompt :])
    assert all(size <= budget for size in sizes) or len(rows) == n
    assert max(sizes) - min(sizes) <= longest, "the shortest row got the last sequence"
    long = [*data, Example((1,) * (budget + 50), 1)]  # one that exceeds the budget takes a row of its own
    assert len(dealt(long, budget, torch.device("cpu"))) <= len(rows) + 2 + (budget + 50) // budget
    assert len(rows) in (1, n) or len(rows) % 2 == 0
    assert sum(sizes) == sum(len(e.tokens) for e in data), "nothing is padded"


@pytest.mark.parametrize(
    "fields",
    [{}, {"windows": (3, None)}, {"attn_cap": 2.0}, {"alibi": True, "ropes": ()}, {"n_kv": 1}, {"block": "parallel"}],
)
def test_packed_sequences_cannot_see_each_other(fields):
    """Change one sequence: the hidden states of all others stay, bit for bit. Each equals its own forward alone."""
    model, data = random_decoder(**fields), sorted(examples(9), key=lambda e: -len(e.tokens))
    with torch.no_grad():
        hidden = pack(data, torch.device("cpu")).hidden(model)
        rows = hidden.split([len(e.tokens) - e.n_prompt for e in data])
        for e, got in zip(data, rows, strict=True):
            alone = model.hidden(torch.tensor([e.tokens]))[0, e.n_prompt - 1 : -1]
            torch.testing.assert_close(got, alone, atol=1e-9, rtol=1e-9)
        for changed in range(len(data)):
            other = [Example(tuple((t + 1) % 23 for t in e.tokens), e.n_prompt) if i == changed else e
                     for i, e in enumerate(data)]  # fmt: skip
            again = pack(other, torch.device("cpu")).hidden(model).split([len(r) for r in rows])
            assert [torch.equal(x, y) for x, y in zip(rows, again, strict=True)] == [
                i != changed for i in range(len(data))]  # fmt: skip


@pytest.mark.parametrize("fields", [{}, {"windows": (3, None)}, {"attn_cap": 2.0, "logit_cap": 4.0}])
def test_gradients_are_those_of_a_plain_forward(fields):
    """Packed, kernels and all, against one plain forward an example and torch's own cross-entropy, in float64."""
    data, model = examples(7), add_lora(random_decoder(**fields), rank=3)
    with torch.no_grad():
        for p in trainable(model).values():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype)
    total = 0.0
    for e in data:
        logits = model(torch.tensor([e.tokens]))[0, e.n_prompt - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits, torch.tensor(e.tokens[e.n_prompt :]), reduction="sum")
    n = sum(len(e.tokens) - e.n_prompt for e in data)
    expected = torch.autograd.grad(total / n, trainable(model).values())
    original = torch.nn.utils.clip_grad_norm_
    for options in ({"micro_tokens": 10_000}, {"micro_tokens": 30}, {"recompute": True, "micro_tokens": 30}):
        copied, grads = copy.deepcopy(model), []

        def catch(params, clip, grads=grads):
            grads += [p.grad.clone() for p in params]
            return original(grads, clip)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.nn.utils, "clip_grad_norm_", catch)
            finetune(copied, data, steps=1, batch_size=7, **options)
        for got, wanted in zip(grads, expected, strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-7)


@pytest.mark.parametrize("micro_tokens", [1, 20, 64])
def test_micro_batches_do_not_change_the_step(micro_tokens):
    whole, cut = fresh(), fresh()
    a = finetune(whole, examples(), steps=3, lr=1e-2, micro_tokens=10_000)
    b = finetune(cut, examples(), steps=3, lr=1e-2, micro_tokens=micro_tokens)
    assert a.losses == pytest.approx(b.losses, rel=1e-6)
    for p, q in zip(trainable(whole).values(), trainable(cut).values(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)  # the loss is summed in float32


CORES = 3


@pytest.fixture
def cores(monkeypatch):
    """A CPU of three cores, as finetune sees it; torch itself keeps to one thread, so that bits are bits."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: CORES)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    with ThreadPoolExecutor(CORES) as pool:
        yield pool


def one_by_one(model, rows):
    """(loss, gradients) of a step, a micro-batch after the other: what finetune does side by side."""
    params, loss, total = list(trainable(model).values()), 0.0, sum(len(b.targets) for b in rows)
    grads = [torch.zeros_like(p) for p in params]
    for b in rows:
        nll = linear_cross_entropy(b.hidden(model), model.head()[0], b.targets) / total
        grads = [a + g for a, g in zip(grads, torch.autograd.grad(nll, params), strict=True)]
        loss = loss + nll.detach()
    return loss.item(), grads


@pytest.mark.parametrize("micro_tokens", [1, 40, 90, 10_000], ids=["24 rows", "some rows", "few rows", "one row"])
def test_gradients_are_added_up_in_order_bit_for_bit(cores, micro_tokens):
    """Whichever row is done first: the second waits for the first, and the sum is rounded as if they had come in turn.
    """
    model, data = stirred(random_decoder(dtype=torch.float32)), examples(24)
    rows = list(micro_batches(data, micro_tokens, model.device))
    loss, expected = one_by_one(model, rows)
    n_targets = sum(len(row.targets) for row in rows)
    for slow in (None, 0, 5):  # that row takes its time
        params, calls, original = trainable(model), [], torch.autograd.grad

        def grad(*args, calls=calls, original=original, slow=slow):
            if args[0].dim():
                return original(*args)  # inside a kernel
            calls.append(None)
            if len(calls) - 1 == slow:
                time.sleep(0.05)
            return original(*args)

        for p in params.values():
            p.grad = None
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch.autograd, "grad", grad)
            assert step_gradients(model, params, rows, n_targets, False, cores).item() == loss
        for p, wanted in zip(params.values(), expected, strict=True):
            assert torch.equal(p.grad, wanted)


def test_few_gradients_are_held_at_a_time(monkeypatch, cores):
    """Of 60 micro-batches: the sum, one a core, and one more; even where all wait for a slow one."""
    model, data, lock = stirred(random_decoder(dtype=torch.float32)), examples(60), threading.Lock()
    original, made, alive = torch.autograd.grad, [], []

    def grad(*args):
        if args[0].dim():
            return original(*args)  # inside a kernel
        with lock:
            n = len(made)
            made.append(None)
        if n in (10, 31):
            time.sleep(0.2)
        out = original(*args)
        with lock:
            made[n] = weakref.ref(out[0])
            alive.append(sum(ref is not None and ref() is not None for ref in made))
        return out

    monkeypatch.setattr(torch.autograd, "grad", grad)
    step_gradients(model, trainable(model), list(micro_batches(data, 1, model.device)), 1, False, cores)
    assert len(made) == 60
    assert CORES < max(alive) <= CORES + 2


def test_steps_are_those_of_torchs_adamw():
    """Bit for bit; and what a fused step writes is counted (star/lora)."""
    torch.manual_seed(0)
    start, grads = torch.randn(3, 4), torch.randn(5, 3, 4)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    optimizer = torch.optim.AdamW([theirs], betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    moments = [[torch.zeros(3, 4)] for _ in range(2)]
    for step, grad in enumerate(grads):
        ours.grad, theirs.grad, before = grad.clone(), grad.clone(), ours._version
        optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        optimizer.step()
        adamw_step([ours], moments, step, 0.1 / (step + 1), 0.99)
        assert torch.equal(ours, theirs)
        assert ours._version > before
        assert ours.grad is None


def test_training_on_a_cpu_imports_no_compiler():
    """It takes a second, more than the first steps of a small model."""
    code = ("import sys, torch; sys.path[:0] = ['.', 'tests']\n"
            "from conftest import stirred, random_decoder; from star.finetune import finetune\n"
            "from star.problem import Example\n"
            "finetune(stirred(random_decoder()), [Example((1, 2, 3), 1)], steps=2)\n"
            "sys.exit('torch._dynamo' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=60).returncode == 0


def test_every_example_is_used_before_any_comes_again():
    for n, size in ((5, 2), (7, 3), (4, 4), (3, 8)):
        order = [i for step in range(5 * n) for i in batch_of_step(n, size, step, seed=1)]
        assert len(order) == 5 * n * size
        for start in range(0, len(order), n):
            assert sorted(order[start : start + n]) == list(range(n))
    assert batch_of_step(50, 50, 0, 1) != batch_of_step(50, 50, 1, 1)
    assert batch_of_step(50, 50, 0, 1) != batch_of_step(50, 50, 0, 2)


def test_the_base_does_not_move_and_the_adapters_learn():
    model = fresh()
    before = {name: t.clone() for name, t in model.tensors()}
    bits = fingerprint(model)
    stats = finetune(model, examples(), steps=60, lr=2e-2, batch_size=12)
    assert stats.losses[-1] < 0.5 * stats.losses[0]
    assert all(torch.equal(t, before[name]) for name, t in model.tensors())
    assert torch.equal(bits, fingerprint(model))
    model.norm.weight.data[3] += 1e-9
    assert not torch.equal(bits, fingerprint(model)), "a changed bit must show"


def test_a_parameter_without_gradient_is_noticed(monkeypatch):
    model = fresh()
    monkeypatch.setattr("star.finetune.step_gradients", lambda *args: torch.tensor(1.0))
    with pytest.raises(AssertionError, match="got no gradient"):
        finetune(model, examples(), steps=1)


def test_a_moved_base_is_noticed():
    model = fresh()
    steps = finetune_steps(model, examples(), 2, 1e-3, 4)
    next(steps)
    model.norm.weight.data += 1
    with pytest.raises(AssertionError, match="frozen"):
        list(steps)


def test_going_on_from_a_state_is_as_if_it_had_never_stopped():
    options = {"lr": 1e-2, "batch_size": 4, "seed": 3, "warmup": 4, "schedule": "linear"}
    straight = fresh()
    losses = finetune(straight, examples(), steps=11, **options).losses
    stopped = fresh()
    for stats in finetune_steps(stopped, examples(), 11, **options):
        if stats.state["step"] == 5:
            break
    state = copy.deepcopy(stats.state)
    again = fresh()
    with torch.no_grad():
        for p, q in zip(trainable(again).values(), trainable(stopped).values(), strict=True):
            p.copy_(q)
    rest = finetune(again, examples(), steps=11, state=state, **options)
    assert losses == stats.losses[:5] + rest.losses
    for p, q in zip(trainable(straight).values(), trainable(again).values(), strict=True):
        assert torch.equal(p, q)


def test_schedules():
    assert [lr_factor(s, 6, 2, "linear") for s in range(6)] == [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    assert [lr_factor(s, 5, 4, "constant") for s in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert lr_factor(0, 1, 0, "linear") == 1.0
    assert [lr_factor(s, 3, 100, "linear") for s in range(3)] == [0.01, 0.02, 0.03]


def test_on_step_and_seeds():
    seen = []
    finetune(fresh(), examples(), steps=4, on_step=lambda step, loss: seen.append((step, loss)))
    assert [s for s, _ in seen] == [1, 2, 3, 4]
    a, b, c = (finetune(fresh(), examples(), steps=4, seed=s).losses for s in (1, 1, 2))
    assert a == b != c


@pytest.mark.parametrize(
    ("model", "data", "options", "said"),
    [
        (random_decoder, examples(), {}, "no adapters"),
        (fresh, [], {}, "no examples"),
        (fresh, examples(), {"steps": 0}, "at least 1"),
        (fresh, examples(), {"batch_size": 0}, "at least 1"),
        (fresh, [Example((1, 2), 2)], {}, "one to learn"),
        (fresh, [Example((1, 2), 0)], {}, "of the prompt"),
        (fresh, [Example((1, 99), 1)], {}, "vocabulary"),
        (lambda: fresh(torch.float32), examples(), {"lr": 1e30, "steps": 20}, "lower --lr"),
    ],
)
def test_bad_input(model, data, options, said):
    with pytest.raises(ValueError, match=said):
        finetune(model(), data, **options)
