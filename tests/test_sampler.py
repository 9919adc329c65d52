"""The sampler against naive decoding, which recomputes everything for every token and every prompt by itself."""

import functools
import gc
import itertools
import math
import random
import weakref

import pytest
import torch
from conftest import SHIPPED, random_decoder

import checkpoints
import star.schedule
from star.batch import pack
from star.cache import KVCache
from star.device import free_memory
from star.draws import draw_tokens, gumbel, truncate
from star.finetune import finetune
from star.lora import add_lora, reset, trainable
from star.problem import Example
from star.sampler import Sampler
from star.text import Stops, TextStream

pytestmark = pytest.mark.usefixtures("one_thread")


@torch.no_grad()
def naive(model, prompt, n, stop_ids=(), temperature=0.0, seed=0):
    """(ids, log-probabilities, margins) by full forwards; the margin is how far the winner was ahead of the second."""
    return naive_samples(model, prompt, n, stop_ids, temperature, [seed])[0]


@torch.no_grad()
def naive_samples(model, prompt, n, stop_ids, temperature, seeds):
    """The same for several samples of a prompt, side by side: rows of one length, without cache, pad or mask."""
    ids, seeds = torch.tensor([prompt] * len(seeds)), torch.tensor(seeds)[:, None]
    logps, margins = [], []
    for step in range(n):
        logits = model(ids)[:, -1]
        scores = logits
        if temperature:
            scores = logits / temperature + gumbel(seeds, torch.tensor(step), torch.arange(logits.shape[1]))
        best, drawn = scores.topk(2).values, scores.argmax(-1, keepdim=True)
        ids = torch.cat([ids, drawn], 1)
        logps.append(logits.log_softmax(-1).gather(1, drawn)[:, 0])
        margins.append(best[:, 0] - best[:, 1])
        if all(any(t in stop_ids for t in row) for row in ids[:, len(prompt) :].tolist()):
            break
    out = []
    for row, said, ahead in zip(ids[:, len(prompt) :].tolist(), torch.stack(logps, 1), torch.stack(margins, 1),
                                strict=True):
        ends = next((i for i, t in enumerate(row) if t in stop_ids), n) + 1
        out.append((row[:ends], said[:ends].tolist(), ahead[:ends].tolist()))
    return out


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


@functools.cache
def expected_of(variant, temperature):
    """(model, prompts behind PREFIX, their seeds, what naive decoding says)."""
    model = random_decoder(seed=5, **VARIANTS[variant])
    prompts, seeds = ragged(9, seed=2), list(range(100, 109))
    said = [naive(model, PREFIX + p, 12, [7], temperature, s) for p, s in zip(prompts, seeds, strict=True)]
    return model, prompts, seeds, said


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("shared", "temperature"), [(0, 0.0), (0, 0.8), (1, 0.8), (8, 0.0), (8, 0.8)])
def test_equals_naive_in_float64(shared, variant, temperature):
    """Behind none, one or eight ids that all prompts share."""
    model, prompts, seeds, expected = expected_of(variant, temperature)
    for slots, n in ((1, 3), (3, 9), (64, 9)):
        outs = Sampler(model, slots=slots, max_len=40).generate(
            [PREFIX[shared:] + p for p in prompts[:n]], prefix=PREFIX[:shared], max_new_tokens=12,
            temperature=temperature, stop_ids=[7], seeds=seeds[:n]
        )
        for (ids, logps, _), out in zip(expected[:n], outs, strict=True):
            assert list(out.tokens) == ids
            assert out.finish == ("stop" if ids[-1] == 7 else "length")
            assert out.logprobs == pytest.approx(logps, abs=1e-6)  # log-probabilities are returned in float32


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_equals_naive_in_float32_where_the_margin_is_clear(temperature, report):
    """Other batch shapes round otherwise: positions whose winner is less than 1e-3 ahead are excused, and counted."""
    model = random_decoder(seed=5, dtype=torch.float32)
    prompts, seeds = ragged(10, seed=3), list(range(10))
    reference = [naive(model, PREFIX + p, 20, [7], temperature, s) for p, s in zip(prompts, seeds, strict=True)]
    compared = excused = 0
    for slots in (1, 3, 64):
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
    assert compared > 600
    report(f"sampler, float32, temperature {temperature}: {compared} positions, {excused} excused (margin <= 1e-3)")


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_probabilities_are_those_of_the_trainer(tokenizer, arithmetic, merge, dtype, report):
    """What the sampler says of a token is what the trainer's packed forward says, adapters on.

    In float32 to rounding. bfloat16 keeps three digits: there the drift is reported, and must stay as small as that.
    """
    model = add_lora(checkpoints.load_model(SHIPPED, dtype=dtype), rank=4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, p in trainable(model).items():
            if ".B." in name:
                p.copy_(0.05 * torch.randn(p.shape, generator=generator))
    prompts = [tokenizer.encode(arithmetic.question(p)) for p in arithmetic.heldout[::20]]
    outs = Sampler(model, 16, 128, tokenizer, merge=merge).generate(prompts, max_new_tokens=40, temperature=1.0)
    drift = []
    for prompt, out in zip(prompts, outs, strict=True):
        packed = pack([Example((*prompt, *out.tokens), len(prompt))], model.device)
        with torch.no_grad():
            scored = model.logits(packed.hidden(model)).log_softmax(-1).gather(1, packed.targets[:, None])[:, 0]
        drift += (scored - torch.tensor(out.logprobs)).abs().tolist()
    mean, worst = sum(drift) / len(drift), max(drift)
    report(f"log-probability, sampler against trainer, {dtype}, merge {merge}: mean {mean:.1e}, largest {worst:.1e}")
    most_mean, most = (1e-5, 1e-4) if dtype == "float32" else (0.05, 2.0)
    assert mean <= most_mean
    assert worst <= most


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
    """Chi-square of 20,000 draws over 23 ids against the model's own probabilities, at two temperatures."""
    model = random_decoder(seed=4)
    for temperature in (1.0, 0.5):
        outs = Sampler(model, 5000, 8).generate([[1, 2]] * 20_000, max_new_tokens=1, temperature=temperature)
        counts = torch.bincount(torch.tensor([o.tokens[0] for o in outs]), minlength=23).double()
        with torch.no_grad():
            expected = (model(torch.tensor([[1, 2]]))[0, -1] / temperature).softmax(-1) * 20_000
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert chi2 < 48.3, chi2  # 22 degrees of freedom: exceeded once in 1,000 seeds


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("prefix", [[], PREFIX], ids=["no prefix", "prefix"])
def test_samples_look_at_one_copy_of_their_prompt(monkeypatch, prefix, variant):
    """Three samples of each of seven prompts, some of them in slots that others leave: as each sampled by itself."""
    monkeypatch.setattr(star.schedule, "KEEP_ONCE", 1)
    kept, original = [], star.schedule.Shared.seat

    def seat(self, slots):
        kept.append([len(s) for s in slots])
        original(self, slots)

    monkeypatch.setattr(star.schedule.Shared, "seat", seat)
    model, prompts, seeds = random_decoder(seed=5, **VARIANTS[variant]), ragged(7, seed=2) * 3, list(range(21))
    options = {"temperature": 0.9, "stop_ids": [7]}
    by_prompt = [naive_samples(model, prefix + p, 12, [7], 0.9, seeds[i::7]) for i, p in enumerate(prompts[:7])]
    expected = [by_prompt[i % 7][i // 7] for i in seeds]
    for slots in (5, 64):
        outs = Sampler(model, slots, 40).generate(prompts, prefix=prefix, max_new_tokens=12, seeds=seeds, **options)
        for (ids, logps, _), out in zip(expected, outs, strict=True):
            assert list(out.tokens) == ids
            assert out.logprobs == pytest.approx(logps, abs=1e-6)
    if variant in ("windows", "caps", "alibi"):
        assert not kept, "there a score depends on where a key stands"
    else:
        assert max(map(max, kept)) == 3, "all samples of a prompt look at it"
        assert len({len(k) for k in kept}) > 1, "prompts of several prefills are looked at side by side"


def noise_by_formula(seed, index, i):
    """The noise of one id with Python's integers, in float64: what the draw of a token is defined by."""

    def mix(x):
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            x = (x ^ x >> shift) * factor % 2**32
        return x ^ x >> 15

    row = mix(seed % 2**32 ^ mix((seed >> 32) % 2**32 ^ mix(index)))
    v = (mix(mix(row ^ mix((i + 0x9E3779B9) % 2**32))) + 0.5) / 2**32
    return -math.log(-math.log1p(-min(v, 1 - 2**-24)))


def test_noise_is_what_the_hash_says():
    seeds = [0, 1, -1, 2**31, 2**32 - 1, 2**40 + 5, -(2**63), 2**63 - 1]
    ids = torch.tensor([0, 1, 49_151, 2**17])
    noise = gumbel(torch.tensor(seeds)[:, None], torch.tensor(range(8))[:, None], ids)
    assert noise.dtype == torch.float32
    wanted = [[noise_by_formula(seed, index, i) for i in ids.tolist()] for index, seed in enumerate(seeds)]
    torch.testing.assert_close(noise.double(), torch.tensor(wanted, dtype=torch.float64), rtol=2e-6, atol=1e-6)


@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (3, 1.0), (0, 0.7), (5, 0.6)])
def test_a_draw_is_the_best_of_score_and_noise(top_k, top_p):
    """In slices of rows, with noise for those ids alone that truncation left: as with all noise at once. With ties."""
    logits = torch.randn(300, 1000).mul_(4).bfloat16().float()  # so many are equal: more than top_k may be kept
    seeds, index = torch.arange(300) * 2**33 - 7, torch.arange(300) % 11
    scores = truncate(logits[:, :990] / 0.8, top_k, top_p) + gumbel(seeds[:, None], index[:, None], torch.arange(990))
    drawn, logprobs = draw_tokens(logits, 990, 0.8, top_k, top_p, seeds, index)
    assert torch.equal(drawn, scores.argmax(-1))
    assert torch.equal(logprobs, logits.log_softmax(-1).gather(1, drawn[:, None])[:, 0])


def test_noise_is_gumbel_and_never_infinite():
    noise = gumbel(torch.arange(-500, 500)[:, None], torch.tensor(3), torch.arange(1000)).double()
    assert torch.isfinite(noise).all()
    assert float(noise.mean()) == pytest.approx(0.5772, abs=0.005)
    assert float(noise.var()) == pytest.approx(math.pi**2 / 6, abs=0.02)
    shifted = gumbel(torch.arange(-500, 500)[:, None], torch.tensor(4), torch.arange(1000)).double()
    assert abs(float(torch.corrcoef(torch.stack([noise.flatten(), shifted.flatten()]))[0, 1])) < 0.005


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


@pytest.mark.parametrize("prefix", [[], PREFIX], ids=["no prefix", "prefix"])
def test_flags_read_every_few_steps_change_nothing(monkeypatch, prefix):
    """On a GPU the host looks at the flags now and then; rows that ended in between must not show what came after."""
    model, prompts = random_decoder(seed=5), ragged(19, seed=4)
    options = {"max_new_tokens": [1 + i % 12 for i in range(19)], "temperature": 1.0, "stop_ids": range(5)}
    options |= {"prefix": prefix}  # many rows would stop twice, some at their first token
    expected = Sampler(model, 4, 64).generate(prompts, **options)
    for i, out in enumerate(expected):
        ids = naive(model, [*prefix, *prompts[i]], options["max_new_tokens"][i], range(5), 1.0, i)[0]
        assert list(out.tokens) == ids
    monkeypatch.setattr(star.schedule, "polls_are_free", lambda device: False)
    for every, many in ((2, (1, 3)), (8, (3, 64)), (30, (3, 64))):  # a single slot would wait for each of its rows
        monkeypatch.setattr(star.schedule, "POLL_EVERY", every)
        for slots in many:
            got = Sampler(model, slots, 64).generate(prompts, **options)
            assert [(o.tokens, o.finish) for o in got] == [(o.tokens, o.finish) for o in expected]


def test_slots_are_refilled(report):
    """800 rationales of mixed length on 64 slots: what share of slot-steps brings a token; padded batches beside."""
    model = random_decoder(dtype=torch.float32, n_layers=1)
    generator = torch.Generator().manual_seed(0)
    lengths = (torch.empty(800).exponential_(1 / 40, generator=generator) + 2).clamp(max=160).long().tolist()
    shares = {}
    for name, every in (("flags read each step", 1), ("flags read every 8 steps", 8)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(star.schedule, "POLL_EVERY", every)
            patch.setattr(star.schedule, "polls_are_free", lambda device, every=every: every == 1)
            sampler = Sampler(model, 64, 200)
            outs = sampler.generate(ragged(800, seed=1), max_new_tokens=lengths)
        assert [len(o.tokens) for o in outs] == lengths
        assert sampler.row_steps == sum(lengths) - 800
        shares[name] = sampler.row_steps / sampler.slot_steps
    batches = [lengths[i : i + 64] for i in range(0, 800, 64)]
    padded = sum(lengths) / sum(len(b) * max(b) for b in batches)
    said = ", ".join(f"{100 * share:.0f} % with {name}" for name, share in shares.items())
    report(f"slot-steps that bring a token: {said}; padded batches: {100 * padded:.0f} %")
    assert min(shares.values()) >= 0.8 > 2 * padded


def test_all_rows_end_at_their_first_token():
    model = random_decoder(seed=5)
    for slots in (1, 4, 64):
        sampler = Sampler(model, slots, 64)
        outs = sampler.generate(ragged(9, seed=4), max_new_tokens=50, stop_ids=range(23))
        assert [len(o.tokens) for o in outs] == [1] * 9
        assert {o.finish for o in outs} == {"stop"}
        assert sampler.slot_steps == 0, "the first token comes with the prefill: nothing is left to decode"


def test_a_prompt_longer_than_the_others_answers():
    """The cache is as long as the longest row; short rows beside it must not notice."""
    model = random_decoder(seed=5)
    prompts = [ragged(1, 9, low=60, high=61)[0], [1], [2, 3], ragged(1, 8, low=40, high=41)[0], [4]]
    for slots in (1, 2, 5):
        outs = Sampler(model, slots, 128).generate(prompts, max_new_tokens=[3, 7, 5, 2, 60])
        for prompt, n, out in zip(prompts, [3, 7, 5, 2, 60], outs, strict=True):
            assert list(out.tokens) == naive(model, prompt, n)[0]


def test_a_slot_that_waits_does_not_spoil_its_next_row():
    """Long rows end early; their slots idle beside short rows, far beyond the keys these use, and are then refilled."""
    model = random_decoder(seed=5, windows=(3, 2))
    prompts = ragged(7, 1, low=40, high=41) + ragged(57, 2, low=2, high=3) + ragged(20, 3, low=1, high=2)
    limits = [2] * 7 + [60] + [10 + i % 9 for i in range(56)] + [45] * 20
    outs = Sampler(model, 64, 80).generate(prompts, max_new_tokens=limits)
    for prompt, n, out in list(zip(prompts, limits, outs, strict=True))[::3]:
        assert list(out.tokens) == naive(model, prompt, n)[0]


def test_several_samples_of_a_prompt_take_one_prefill(monkeypatch):
    """The same prompt with other seeds: each sample is its own, but the prompt goes through the model once."""
    model, prompts = random_decoder(seed=5), [p for p in ragged(5, seed=4, low=3) for _ in range(4)]
    alone = [Sampler(model, 1, 64).generate([p], max_new_tokens=6, temperature=1.0, seeds=[i])[0].tokens
             for i, p in enumerate(prompts)]  # fmt: skip
    seen, hidden = [], model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, *rest: seen.append(tokens.shape) or hidden(tokens, *rest))
    outs = Sampler(model, 64, 64).generate(prompts, max_new_tokens=6, temperature=1.0)
    assert [o.tokens for o in outs] == alone
    assert seen[0][0] == 5
    assert len(set(alone[:4])) > 1


@pytest.mark.parametrize(("top_k", "top_p"), [(1, 1.0), (3, 1.0), (0, 0.5), (5, 0.6), (0, 1e-9), (100, 1.0)])
def test_truncated_draws_follow_the_definition(top_k, top_p):
    """Chi-square of 10,000 draws against the truncated and renormalised softmax, computed id by id."""
    model = random_decoder(seed=4)
    outs = Sampler(model, 5000, 8).generate([[1, 2]] * 10_000, max_new_tokens=1, temperature=1.3, top_k=top_k,
                                            top_p=top_p)  # fmt: skip
    with torch.no_grad():
        p = (model(torch.tensor([[1, 2]]))[0, -1] / 1.3).softmax(-1)
    best = sorted(range(23), key=lambda i: -p[i])[: top_k or None]
    total, mass, kept = sum(p[i] for i in best), 0.0, []
    for i in best:
        if mass >= top_p:
            break
        kept.append(i)
        mass += float(p[i] / total)
    counts = torch.bincount(torch.tensor([o.tokens[0] for o in outs]), minlength=23)
    assert set(counts.nonzero()[:, 0].tolist()) == set(kept)
    expected = p[kept] / p[kept].sum() * 10_000
    chi2 = float(((counts[kept] - expected) ** 2 / expected).sum())
    assert chi2 < 3 * len(kept) + 12, chi2
    with torch.no_grad():
        full = model(torch.tensor([[1, 2]]))[0, -1].log_softmax(-1)
    assert outs[0].logprobs[0] == pytest.approx(float(full[outs[0].tokens[0]]), abs=1e-6)


def test_truncation_keeps_ties():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0, 3.0]])
    assert torch.isfinite(truncate(scores, 2, 1.0)).tolist() == [[False, True, True, False, True]]
    assert torch.isfinite(truncate(scores, 0, 0.1)).tolist() == [[False, True, True, False, True]]
    uneven = torch.tensor([[0.5, 0.1, 0.3, 0.1]]).log()
    assert torch.isfinite(truncate(uneven, 0, 0.7)).tolist() == [[True, False, True, False]]


@pytest.mark.parametrize(("temperature", "top_p"), [
    *((t, 1.0) for t in (5e-324, 1e-46, 1e-39, 1.2e-38, 9e-31, 1e-30, 1e-20, 1e-9)),
    *((1.0, p) for p in (5e-324, 1e-46, 1e-40, 1e-38, 1e-30, 1e-9)), (1e-46, 1e-46), (1e9, 1e-46)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_that_float32_cannot_hold_leave_the_best_token(temperature, top_p, dtype):
    """1e-39 is no normal float32 number, 1e-46 rounds to 0: logits over them are infinite, no mass is below them."""
    logits = 30 * torch.randn(64, 23, generator=torch.Generator().manual_seed(0)).to(dtype)
    drawn, logprobs = draw_tokens(logits, 20, temperature, 0, top_p, torch.arange(64), torch.arange(64))
    assert torch.equal(drawn, logits[:, :20].argmax(-1))
    assert torch.isfinite(logprobs).all()


def test_hot_and_cold_extremes_of_a_sampler():
    sampler = Sampler(random_decoder(dtype=torch.float32), 8, 64)
    greedy, cold, narrow = (sampler.generate(ragged(3, 1), max_new_tokens=4, **options) for options in (
        {}, {"temperature": 1e-39}, {"temperature": 1.0, "top_p": 1e-46}))
    assert [o.tokens for o in cold] == [o.tokens for o in narrow] == [o.tokens for o in greedy]
    hot = sampler.generate([[1, 2]] * 8, max_new_tokens=9, temperature=1e300)
    assert len({o.tokens for o in hot}) == 8  # every token as likely as any


class Bytes:
    """A tokenizer whose ids are pieces of UTF-8: some are half a character, some several characters."""

    pieces = (*(bytes([b]) for b in b"abc#\n "), b"\xc3", b"\xa9", b"##", b"a#", b"#b", b"", b"bc",
              b"\xe2\x82", b"\xac")  # fmt: skip
    vocab_size = len(pieces)

    def decode(self, ids):
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize("every", [1, 8])
@pytest.mark.parametrize("stop", [("##",), ("a#", "c"), ("é", "€"), ("€", "#\n", "b c"), ("zz",)])
def test_stop_strings_that_span_tokens(monkeypatch, stop, every):
    """Against free completions, cut where the text first holds a stop string."""
    model, tokenizer = random_decoder(seed=5, vocab=Bytes.vocab_size), Bytes()
    prompts = [[i % Bytes.vocab_size] for i in range(60)]
    options = {"max_new_tokens": 25, "temperature": 5.0, "stop_ids": [5]}
    free = Sampler(model, 60, 64, tokenizer).generate(prompts, **options)
    monkeypatch.setattr(star.schedule, "POLL_EVERY", every)
    monkeypatch.setattr(star.schedule, "polls_are_free", lambda device: False)
    outs = Sampler(model, 7, 64, tokenizer).generate(prompts, stop=stop, **options)
    cut = 0
    for whole, out in zip(free, outs, strict=True):
        body = whole.tokens[:-1] if whole.finish == "stop" else whole.tokens
        for n in range(1, len(body) + 1):
            text = tokenizer.decode(body[:n])
            starts = [text.find(s) for s in stop if s in text]
            if starts:
                kept = max(m for m in range(n + 1) if len(tokenizer.decode(body[:m])) <= min(starts))
                assert (out.tokens, out.finish) == (body[:kept], "stop")
                assert out.logprobs == pytest.approx(whole.logprobs[:kept], abs=1e-6)
                cut += 1
                break
        else:
            assert (out.tokens, out.finish) == (whole.tokens, whole.finish)
    assert cut > 1 or stop == ("zz",)


@pytest.mark.parametrize("stop", [(), ("##",), ("a#", "c"), ("é",)])
def test_on_token_and_text_show_only_what_stays(stop):
    """Tokens that may yet become part of a stop string, and halves of characters, wait."""
    model, tokenizer = random_decoder(seed=5, vocab=Bytes.vocab_size), Bytes()
    seen, shown, streams = {}, {}, {}

    def on_token(i, token):
        seen.setdefault(i, []).append(token)
        piece = streams.setdefault(i, TextStream(tokenizer)).push(token)
        assert not piece.endswith("\ufffd")
        shown[i] = shown.get(i, "") + piece

    outs = Sampler(model, 7, 64, tokenizer).generate(
        [[i % Bytes.vocab_size] for i in range(30)], max_new_tokens=20, temperature=5.0, stop_ids=[5], stop=stop,
        on_token=on_token)  # fmt: skip
    for i, out in enumerate(outs):
        assert seen.get(i, []) == list(out.tokens)
        assert shown.get(i, "") + (streams[i].end() if i in streams else "") == tokenizer.decode(out.tokens)


def test_memory_is_planned():
    model = random_decoder(dtype=torch.float32)
    free = free_memory(torch.device("cpu"))
    assert free > 2**28
    row = 1000 * 2 * 2 * 2 * 6 * 4  # tokens, keys and values, layers, key heads, head size, bytes
    assert KVCache.bytes_a_token(model.config, torch.float32) * 1000 == row
    with pytest.raises(ValueError, match=r"slots=\d+ of max_len=1000 need .* GiB .* slots=\d+ fits") as e:
        Sampler(model, slots=2 * free // row, max_len=1000)
    fits = int(str(e.value).rpartition("slots=")[2].split()[0])
    assert Sampler(model, slots=fits // 2, max_len=1000).slots == fits // 2
    with pytest.raises(ValueError, match="fits one slot"):
        Sampler(model, slots=2, max_len=free)
    assert Sampler(model, slots=None, max_len=1000).slots == 512
    assert 1 <= Sampler(model, slots=None, max_len=free // 2000).slots < 512


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_merged_and_live_adapters_sample_alike(temperature):
    model, prompts = add_lora(random_decoder(seed=5), rank=3), ragged(9, seed=4)
    finetune(model, [Example((1, 2, 3, 4), 1)], steps=5, lr=0.1)
    outs = {merge: Sampler(model, 4, 64, merge=merge).generate(prompts, prefix=PREFIX, max_new_tokens=9,
                                                               temperature=temperature)
            for merge in (True, False, None)}  # fmt: skip
    assert [o.tokens for o in outs[True]] == [o.tokens for o in outs[False]] == [o.tokens for o in outs[None]]
    assert outs[True][0].tokens == tuple(naive(model, PREFIX + prompts[0], 9, (), temperature, 0)[0])


def test_samples_with_an_adapter_loaded_later(tmp_path, shipped):
    model, prompts = add_lora(shipped, rank=2), [[4, 3, 5, 2], [9, 9, 3, 8, 8, 2], [5, 3, 5, 2]]
    finetune(model, [Example((4, 5, 6, 7), 1)], steps=5, lr=0.1)
    checkpoints.save_adapter(model, tmp_path / "adapter")
    trained = Sampler(model, 4, 64).generate(prompts, max_new_tokens=6)
    for merge in (True, False):
        sampler = Sampler(model, 4, 64, merge=merge)
        reset(model)
        assert sampler.generate(prompts, max_new_tokens=6) != trained
        checkpoints.load_adapter(model, tmp_path / "adapter")
        assert [o.tokens for o in sampler.generate(prompts, max_new_tokens=6)] == [o.tokens for o in trained]


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


@pytest.mark.parametrize("merge", [True, False])
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
        ({"top_k": -1}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": ["x"]}, "need a tokenizer"),
    ],
)
def test_bad_input_is_refused(options, said):
    options = {"prompts": [[1, 2]], "max_new_tokens": 8} | options
    with pytest.raises(ValueError, match=said):
        Sampler(random_decoder(), 4, 12).generate(options.pop("prompts"), **options)
    with pytest.raises(ValueError, match="slots"):
        Sampler(random_decoder(), slots=0)


def test_looking_for_stop_strings_does_not_read_a_row_again_and_again():
    """A token is a byte here, the longest span that a stop string can have; all cuts of what was searched before."""
    read = []

    class Bytes:
        def decode(self, ids):
            read.append(len(ids))
            return bytes(ids).decode(errors="replace")

    stops = Stops(Bytes(), ("\u20acnd", "\nQ:"))
    text = [*("a\u20ac\u00e9" * 40).encode(), *"\u20acnd".encode(), *b"xyz"]
    end = len(text) - 3
    for searched in range(end):
        assert stops.find(text[:end], searched) == (end - 5, end)
        assert stops.find(text[: end - 1], searched) is None
    read.clear()
    assert all(stops.find(text[: n + 1], n) is None for n in range(end - 1))
    assert max(read) < 20


# one sampler, many calls


def asked_for(seed):
    """A call of any kind: (prompts, options)."""
    rng = random.Random(seed)
    prompts = ragged(rng.choice([1, 2, 5, 9]), seed=seed, high=rng.choice([3, 14, 40]))
    options = {"max_new_tokens": [rng.randrange(1, rng.choice([3, 25])) for _ in prompts],
               "temperature": rng.choice([0.0, 0.0, 0.8, 2.0]), "stop_ids": rng.choice([(), (7,), (1, 2), range(15)]),
               "prefix": rng.choice([(), PREFIX, PREFIX, PREFIX[:3], PREFIX[::-1] * 5])}  # fmt: skip
    if options["temperature"]:
        options |= {"top_k": rng.choice([0, 3]), "top_p": rng.choice([1.0, 0.7]),
                    "seeds": rng.sample(range(99), len(prompts))}  # fmt: skip
    return prompts, options


@pytest.fixture(params=[True, False], ids=["flags read each step", "flags read every 8 steps"])
def polls(request, monkeypatch):
    monkeypatch.setattr(star.schedule, "polls_are_free", lambda device: request.param)


@pytest.fixture(scope="module")
def fresh(one_thread):
    """(model, what a fresh sampler answers to each `asked_for`)"""
    model = random_decoder(seed=5)
    return model, [Sampler(model, 4, 80).generate(p, **options) for p, options in map(asked_for, range(16))]


def test_what_was_asked_before_changes_nothing(polls, fresh):
    """Longer or shorter, more or fewer rows, other stop ids, another prefix or none: as a fresh sampler answers."""
    model, fresh = fresh
    for order in (range(16), reversed(range(16))):
        used = Sampler(model, 4, 80)
        for i in order:
            prompts, options = asked_for(i)
            assert used.generate(prompts, **options) == fresh[i], f"call {i}"
            if i % 11 == 0:
                used.release()


@pytest.mark.parametrize("first", range(0, 16, 8))
def test_streams_side_by_side_and_half_a_stream(polls, fresh, first):
    """Streams of one sampler, a row of each in turn, give what each gives alone; one that is left half-way, closed or
    forgotten, spoils nothing for what comes after.
    """
    (model, said), calls = fresh, [asked_for(i) for i in range(first, first + 3)]
    alone = [dict(enumerate(said[i])) for i in range(first, first + 3)]
    sampler = Sampler(model, 4, 80)
    sampler.generate([[1] * 40] * 4, max_new_tokens=25)  # slots that any of the streams could take
    streams, got = [sampler.stream(p, **options) for p, options in calls], [{}, {}, {}]
    for rows in itertools.zip_longest(*streams):
        for out, row in zip(got, rows, strict=True):
            out.update([row] if row else [])
    assert got == alone
    for leave in (lambda stream: stream.close(), lambda stream: None):
        for i, (prompts, options) in enumerate(calls):
            started = sampler.stream(prompts, **options)
            assert next(started)[1] in alone[i].values()
            leave(started)
            other, more = calls[i - 1]
            assert dict(enumerate(sampler.generate(other, **more))) == alone[i - 1]
            assert dict(enumerate(sampler.generate(prompts, **options))) == alone[i]


def test_a_prefix_is_not_overwritten_while_a_stream_looks_at_it():
    """The last stream gave its slots back, but an earlier one still runs."""
    model, prompts = random_decoder(seed=5), ragged(3, seed=4)
    options = {"prefix": PREFIX, "max_new_tokens": [2, 20, 20]}
    alone = Sampler(model, 2, 64).generate(prompts, **options)
    sampler = Sampler(model, 2, 64)
    stream = sampler.stream(prompts, **options)
    found = dict([next(stream)])
    sampler.generate([[1]], max_new_tokens=3)
    sampler.generate([[1]], prefix=PREFIX[::-1], max_new_tokens=3)
    assert found | dict(stream) == dict(enumerate(alone))


@pytest.fixture
def caches(monkeypatch):
    """Weak references to all caches that are made, without a garbage collector; and how many there were at most."""
    made, original = [], KVCache.__init__

    class Made(list):
        most = 0

        def alive(self):
            return sum(ref() is not None for ref in self)

    made = Made()

    def init(self, *args):
        original(self, *args)
        made.append(weakref.ref(self))
        made.most = max(made.most, made.alive())

    monkeypatch.setattr(KVCache, "__init__", init)
    gc.disable()
    yield made
    gc.enable()


@pytest.mark.parametrize("adapters", [False, True], ids=["base", "adapters"])
def test_a_sampler_holds_two_caches_and_lets_go_of_them(caches, polls, adapters):
    """One of the slots, one of the prefix, whatever was asked; none after release, nor with the sampler gone. Nothing
    here may wait for Python to look for circles: by then a device is full.
    """
    model = random_decoder(seed=5)
    sampler = Sampler(add_lora(model, rank=2) if adapters else model, 4, 80)
    for i in range(8):
        prompts, options = asked_for(i)
        sampler.generate(prompts, **options)
        assert caches.alive() <= 2
        next(sampler.stream(prompts, **options))  # one that nobody finishes
        assert caches.alive() <= 2
        if adapters:
            reset(model, seed=i)
    assert len(caches) > 2, "lengths and prefixes differed, so there were more than two"
    sampler.release()
    assert caches.alive() == 0
    sampler.generate([[1, 2], [3]], prefix=PREFIX, max_new_tokens=3)
    assert caches.alive() == 2
    del sampler
    assert caches.alive() == 0


def test_the_old_cache_goes_before_the_new_one_comes(caches):
    """Longer slots, another prefix: what a run needs at most is counted with one of each (star/run/memory)."""
    sampler = Sampler(random_decoder(seed=5), 4, 128)
    for n in (2, 9, 20, 40):
        sampler.generate([[1] * n] * 2, max_new_tokens=2 * n)
    assert (len(caches), caches.most) == (4, 1)
    for n in (8, 70, 3, 140):  # a buffer that is long enough is filled anew
        sampler.generate([[1, 2], [3]], prefix=PREFIX[:1] * n, max_new_tokens=3)
    assert (len(caches), caches.most) == (7, 2)
