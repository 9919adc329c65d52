"""How far a model is from its base and how sure it is: against a slow computation, and without a trace left behind."""

import json
import math

import pytest
import torch
from conftest import random_decoder, stirred
from test_history import made
from test_loop import Riddles, answer, finished
from test_loop import setup as setup  # the fixture

from star import loop
from star.drift import FEWEST, MOST, drift, habits
from star.loop import star
from star.lora import add_lora, lora_modules, off, trainable, version
from star.problem import Example
from star.sampler import Sampler

DRAWS = torch.Generator().manual_seed(0)
EXAMPLES = [Example(tuple(torch.randint(0, 23, (n,), generator=DRAWS).tolist()), prompt)
            for n, prompt in ((9, 4), (40, 7), (3, 2), (17, 1))]  # fmt: skip


def slow(model, plain):
    """Token by token, each from its own whole prefix."""
    found = []
    for e in EXAMPLES:
        for i in range(e.n_prompt, len(e.tokens)):
            seen = torch.tensor([e.tokens[:i]])
            now, before = (torch.log_softmax(m(seen)[0, -1].double(), dim=0) for m in (model, plain))
            found.append((-(now.exp() * now).sum().item(), (now - before)[e.tokens[i]].item()))
    return [sum(column) / len(found) for column in zip(*found, strict=True)]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("fields", [{}, {"tied": False, "logit_scale": 2.0}, {"n_layers": 1, "bias_qkv": True}])
@torch.no_grad()
def test_as_a_slow_computation_says(dtype, near, fields):
    model = stirred(random_decoder(dtype=dtype, **fields))
    entropy, far = slow(model, random_decoder(dtype=dtype, **fields))
    found = drift(model, EXAMPLES)
    assert found == {"entropy": pytest.approx(entropy, abs=near), "drift": pytest.approx(far, abs=near)}
    assert abs(far) > 0.01
    assert 0 < entropy < math.log(23)


@torch.no_grad()
def test_the_base_is_what_it_was_and_the_model_what_it_is():
    """Even of adapters that are no numbers any more."""
    plain, model = random_decoder(bias_mlp=True), stirred(random_decoder(bias_mlp=True))
    ids = torch.arange(12)[None]
    before, at, params = model(ids), version(model), list(model.parameters())
    with off(model):
        assert torch.equal(model(ids), plain(ids))
    assert torch.equal(model(ids), before)
    assert not torch.equal(before, plain(ids))
    assert version(model) == at
    assert all(p is q for p, q in zip(model.parameters(), params, strict=True))
    next(iter(trainable(model).values())).fill_(math.nan)
    with off(model), off(plain):  # without adapters it is the model itself
        assert torch.equal(model(ids), plain(ids))
    with pytest.raises(KeyError), off(model):
        raise KeyError
    assert model(ids).isnan().any()


def test_a_sampler_merges_nothing_anew():
    model = stirred(random_decoder())
    sampler = Sampler(model, slots=2, max_len=30)
    first = sampler.generate([[1, 2, 3]], prefix=[4, 5], max_new_tokens=9)
    twin, prefix = sampler._twin, sampler._prefix
    drift(model, EXAMPLES)
    assert sampler.generate([[1, 2, 3]], prefix=[4, 5], max_new_tokens=9) == first
    assert sampler._twin is twin
    assert sampler._prefix is prefix


def test_some_rationales_spread_evenly_stand_for_all(tokenizer, monkeypatch):
    task, seen = Riddles(1004), []
    monkeypatch.setattr("star.drift.drift", lambda model, examples, ranks: seen.append(examples) or {"drift": -1e-9})
    gs = [made(1, "evaluate", p.id, "right", tokens=i % 5 + 1) for i, p in enumerate(task.train)]
    for n in (400, 200, 1000, 100, 3, 1):
        assert habits(None, tokenizer, task, task.train[:n], gs[:n], False) == {"drift": 0.0}
        assert "-" not in str(habits(None, tokenizer, task, task.train[:n], gs[:n], False))  # no -0.0
    sizes = [len(examples) for examples in seen[::2]]
    assert sizes == [12, 6, MOST, FEWEST, 3, 1]
    for i, e in zip([400 * k // 12 for k in range(12)], seen[0], strict=True):
        assert tokenizer.decode(e.tokens[: e.n_prompt]) == f"{i}+{i}\n"  # no hint, no examples in front
        assert e.tokens[e.n_prompt :] == gs[i].tokens  # as it was written: no end is added


def test_what_is_no_number_is_none(tokenizer):
    """JSON has no NaN."""
    model = stirred(random_decoder(vocab=tokenizer.vocab_size, dtype=torch.float32))
    task = Riddles()
    gs = [made(1, "evaluate", p.id, "right") for p in task.train]
    assert all(type(v) is float for v in habits(model, tokenizer, task, task.train, gs, False).values())
    with torch.no_grad():
        for _, module in lora_modules(model):
            module.A.fill_(math.inf)
    said = habits(model, tokenizer, task, task.train, gs, False)
    assert said == {"entropy": None, "drift": None}
    assert json.dumps(said, allow_nan=False)


def test_zero_adapters_are_no_drift():
    model = add_lora(random_decoder(dtype=torch.float32))
    assert drift(model, EXAMPLES)["drift"] == 0.0


def test_they_are_of_the_same_problems_each_iteration(setup, monkeypatch):
    """Of validation, where held-out problems are not looked at each time."""
    seen = []
    monkeypatch.setattr(loop, "habits", lambda *args: seen.append([p.id for p in args[3]]) or {})
    for settings in ({}, {"validation": 4}, {"validation": 4, "heldout_when": "best"}):
        list(star(*setup(lambda text: ("=" + answer(text), "stop"), **settings)))
    heldout, validation = seen[0], seen[-1]
    assert seen == [heldout] * 4 + [validation] * 2
    assert not set(heldout) & set(validation)


def test_metrics_of_each_iteration_have_both(setup):
    """Of held-out problems, or of validation where these are not looked at each time; equal runs say the same."""
    def script(text):
        return "=" + answer(text), "stop"

    each = finished(star(*setup(script, iterations=2, first_steps=3, lr=0.05)))
    best = finished(star(*setup(script, iterations=2, first_steps=3, lr=0.05, validation=4, heldout_when="best")))
    for metrics in (each, best):
        assert metrics[0]["drift"] == 0.0
        assert all(abs(m["drift"]) > 0.001 for m in metrics[1:])
        assert all(m["entropy"] > 0 for m in metrics)
    assert finished(star(*setup(script, iterations=2, first_steps=3, lr=0.05))) == each
