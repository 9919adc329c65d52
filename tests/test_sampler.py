"""The sampler against naive decoding, which recomputes everything for every token and every prompt by itself."""

import math

import pytest
import torch
from conftest import random_decoder

import star.sampler
from star.finetune import finetune
from star.lora import add_lora, reset
from star.problem import Example
from star.draws import gumbel
from star.sampler import Sampler


@torch.no_grad()
def naive(model, prompt, n, stop_ids=(), temperature=0.0, seed=0):
    """(ids, log-probabilities, margins) by full forwards; the margin is how far the winner was ahead of the second."""
    ids, logps, margins = list(prompt), [], []
    for step in range(n):
        logits = model(torch.tensor([ids]))[0, -1]
        scores = logits
        if temperature:
            scores = logits / temperature + gumbel(torch.tensor([seed]), torch.tensor([step]), len(logits))[0]
        best = scores.topk(2).values
        ids.append(int(scores.argmax()))
        logps.append(float(logits.log_softmax(-1)[ids[-1]]))
        margins.append(float(best[0] - best[1]))
        if ids[-1] in stop_ids:
            break
    return ids[len(prompt) :], logps, margins


def ragged(n, seed, low=1, high=14):
    g = torch.Generator().manual_seed(seed)
    lengths = torch.randint(low, high, (n,), generator=g).tolist()
    return [torch.randint(0, 23, (length,), generator=g).tolist() for length in lengths]


PREFIX = [3, 1, 4, 1, 5, 9, 2, 6]
VARIANTS = {
    "plain": {},
    "windows": {"windows": (4, None)},
    "nope": {"rope_of": (0, None)},
    "one key head": {"n_kv": 1},
    "caps": {"attn_cap": 2.0, "logit_cap": 3.0, "block": "sandwich", "norm": "rms+1"},
    "alibi": {"alibi": True, "ropes": ()},
}


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("slots", [1, 3, 8, 64])
@pytest.mark.parametrize("prefix", [[], PREFIX[:1], PREFIX], ids=["no prefix", "prefix of 1", "prefix of 8"])
def test_equals_naive_in_float64(prefix, slots, variant, temperature):
    model = random_decoder(seed=5, **VARIANTS[variant])
    prompts, seeds = ragged(9, seed=2), list(range(100, 109))
    outs = Sampler(model, slots=slots, max_len=40).generate(
        prompts, prefix=prefix, max_new_tokens=12, temperature=temperature, stop_ids=[7], seeds=seeds
    )
    for prompt, seed, out in zip(prompts, seeds, outs, strict=True):
        ids, logps, _ = naive(model, prefix + prompt, 12, [7], temperature, seed)
        assert list(out.tokens) == ids
        assert out.finish == ("stop" if ids[-1] == 7 else "length")
        assert out.logprobs == pytest.approx(logps, abs=1e-6)  # log-probabilities are returned in float32


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equals_naive_in_float32_where_the_margin_is_clear(temperature, report):
    """Other batch shapes round otherwise: positions whose winner is less than 1e-3 ahead are excused, and counted."""
    model = random_decoder(seed=5, dtype=torch.float32)
    prompts, seeds = ragged(24, seed=3), list(range(24))
    reference = [naive(model, PREFIX + p, 20, [7], temperature, s) for p, s in zip(prompts, seeds, strict=True)]
    compared = excused = 0
    for slots in (1, 3, 8, 64):
        for prefix in ([], PREFIX):
            own = prompts if prefix else [PREFIX + p for p in prompts]
            outs = Sampler(model, slots=slots, max_len=60).generate(
                own, prefix=prefix, max_new_tokens=20, temperature=temperature, stop_ids=[7], seeds=seeds
            )
            for out, (ids, _, margins) in zip(outs, reference, strict=True):
                for got, wanted, margin in zip(out.tokens, ids, margins, strict=False):
                    compared += 1
                    if got != wanted:
                        assert margin <= 1e-3, f"{got} instead of {wanted}, which was {margin} ahead"
                        excused += 1
                        break  # what follows has another past
    assert compared > 2500
    report(f"sampler, float32, temperature {temperature}: {compared} positions, {excused} excused (margin <= 1e-3)")


@pytest.mark.parametrize("live", ["off", "on"])
def test_log_probabilities_are_those_of_the_trainer(shipped, tokenizer, arithmetic, live, report):
    """What the sampler says of a token is what a forward over the whole sequence says, adapters on."""
    add_lora(shipped, rank=4)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in shipped.named_parameters():
            if ".B." in name:
                p.copy_(0.05 * torch.randn_like(p))
    prompts = [tokenizer.encode(arithmetic.question(p)) for p in arithmetic.heldout[::20]]
    outs = Sampler(shipped, 16, 128, tokenizer, merge=live).generate(prompts, max_new_tokens=40, temperature=1.0)
    worst = 0.0
    for prompt, out in zip(prompts, outs, strict=True):
        with torch.no_grad():
            logits = shipped(torch.tensor([prompt + list(out.tokens)]))[0, len(prompt) - 1 : -1]
        scored = logits.log_softmax(-1).gather(1, torch.tensor(out.tokens)[:, None])[:, 0]
        worst = max(worst, float((scored - torch.tensor(out.logprobs)).abs().max()))
    report(f"log-probability, sampler against trainer, float32, merge {live}: largest difference {worst:.1e}")
    assert worst <= 1e-4


def test_a_row_does_not_depend_on_its_neighbours():
    model = random_decoder(seed=1)
    prompts = ragged(6, seed=8)
    alone = [
        Sampler(model, 4, 64).generate([p], max_new_tokens=9, temperature=1.0, seeds=[i])[0]
        for i, p in enumerate(prompts)
    ]
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 5, 1, 3, 4]):
        outs = Sampler(model, 4, 64).generate(
            [prompts[i] for i in order], max_new_tokens=9, temperature=1.0, seeds=order
        )
        assert [o.tokens for o in outs] == [alone[i].tokens for i in order]


def test_draws_follow_the_softmax():
    """Chi-square of 40,000 draws over 23 ids against the model's own probabilities, at two temperatures."""
    model = random_decoder(seed=4)
    for temperature in (1.0, 0.5):
        outs = Sampler(model, 5000, 8).generate([[1, 2]] * 40_000, max_new_tokens=1, temperature=temperature)
        counts = torch.bincount(torch.tensor([o.tokens[0] for o in outs]), minlength=23).double()
        with torch.no_grad():
            expected = (model(torch.tensor([[1, 2]]))[0, -1] / temperature).softmax(-1) * 40_000
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert chi2 < 48.3, chi2  # 22 degrees of freedom: exceeded once in 1,000 seeds


def test_noise_is_gumbel_and_never_infinite():
    noise = gumbel(torch.arange(-500, 500), 3, 1000).double()
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.005)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)
    shifted = gumbel(torch.arange(-500, 500), 4, 1000).double()
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), shifted.flatten()]))[0, 1])) < 0.005
    assert torch.equal(gumbel(torch.tensor([2**40 + 5]), 3, 7), gumbel(torch.tensor([1, 2**40 + 5]), 3, 9)[1:, :7])


def test_stop_limit_and_stream():
    model = random_decoder(seed=5)
    prompts = ragged(9, seed=4)
    free = Sampler(model, 4, 64).generate(prompts, max_new_tokens=10)
    stop = free[0].tokens[3]
    limits = [1 + i for i in range(9)]
    sampler = Sampler(model, 4, 64)
    streamed = dict(sampler.stream(prompts, max_new_tokens=limits, stop_ids=[stop]))
    assert sorted(streamed) == list(range(9))
    for i, out in streamed.items():
        whole = list(free[i].tokens[: limits[i]])
        ended = whole.index(stop) + 1 if stop in whole else limits[i]
        assert list(out.tokens) == whole[:ended]
        assert len(out.logprobs) == len(out.tokens)
        assert out.finish == ("stop" if stop in whole else "length")


def test_on_token_sees_every_token_once():
    model, seen = random_decoder(seed=5), {}
    outs = Sampler(model, 2, 64).generate(
        ragged(5, seed=4), max_new_tokens=7, stop_ids=[7], on_token=lambda i, t: seen.setdefault(i, []).append(t)
    )
    assert seen == {i: list(o.tokens) for i, o in enumerate(outs)}


def test_flags_read_every_few_steps_change_nothing(monkeypatch):
    """On a GPU the host looks at the flags now and then; rows that ended in between must not show what came after."""
    model, prompts = random_decoder(seed=5), ragged(9, seed=4)
    options = {"max_new_tokens": list(range(3, 12)), "temperature": 1.0, "stop_ids": range(8)}  # many stop twice
    expected = Sampler(model, 4, 64).generate(prompts, **options)
    for every in (2, 3, 8, 100):
        monkeypatch.setattr(star.sampler, "SYNC_EVERY", every)
        monkeypatch.setattr(star.sampler, "looks_are_free", lambda device: False)
        assert Sampler(model, 4, 64).generate(prompts, **options) == expected


def test_prompt_inside_the_prefix():
    model = random_decoder(seed=5)
    whole = Sampler(model, 2, 64).generate([PREFIX, [*PREFIX, 7]], max_new_tokens=5)
    cut = Sampler(model, 2, 64).generate([[], [7]], prefix=PREFIX, max_new_tokens=5)
    assert [o.tokens for o in whole] == [o.tokens for o in cut]
    assert Sampler(model).generate([]) == []


def test_padded_vocabulary_rows_are_never_drawn():
    class Small:
        vocab_size = 5

    model = random_decoder(seed=5)
    for temperature in (0.0, 3.0):
        outs = Sampler(model, 8, 64, tokenizer=Small()).generate(
            ragged(8, 1), max_new_tokens=20, temperature=temperature
        )
        assert max(t for o in outs for t in o.tokens) < 5
    with pytest.raises(ValueError, match="do not belong together"):
        Sampler(random_decoder(vocab=4), tokenizer=Small())


@pytest.mark.parametrize("merge", ["on", "off"])
def test_samples_with_the_present_adapters(merge):
    """A sampler made before the adapters changed must not use the old weights or the old prefix."""
    model = add_lora(random_decoder(seed=5), rank=2)
    sampler, prompts, seen = Sampler(model, 4, 64, merge=merge), ragged(5, seed=4), []

    def train():
        finetune(model, [Example((1, 2, 3, 4), 1)], steps=3, lr=0.1)

    for change in (lambda: None, train, train, lambda: reset(model), train):
        change()
        outs = [list(o.tokens) for o in sampler.generate(prompts, prefix=PREFIX, max_new_tokens=6)]
        assert outs == [naive(model, PREFIX + p, 6)[0] for p in prompts]
        seen.append(outs)
    assert seen[0] == seen[3]
    assert seen[0] != seen[1] != seen[2]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompts": [[]]}, "empty"),
        ({"prompts": [[1] * 10]}, "max_len"),
        ({"prompts": [[23]]}, "vocabulary"),
        ({"prompts": [[-1]]}, "vocabulary"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"max_new_tokens": [1, 2]}, "one a prompt"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"seeds": [1, 2, 3]}, "seeds"),
    ],
)
def test_bad_input_is_refused(options, said):
    options = {"prompts": [[1, 2]], "max_new_tokens": 8} | options
    with pytest.raises(ValueError, match=said):
        Sampler(random_decoder(), 4, 12).generate(options.pop("prompts"), **options)
    with pytest.raises(ValueError, match="slots"):
        Sampler(random_decoder(), slots=0)
