"""LongRoPE: a sequence longer than the original length turns by other frequencies, from its first token on.

So a row whose keys are cached changes under way. All is compared with passes that cache nothing.
"""

import itertools
import math

import pytest
import torch
from conftest import random_decoder
from test_sampler import Bytes, naive

import star.schedule
from star.batch import Packed, pack
from star.positions import Rope, amplitude
from star.problem import Example
from star.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")
ORIGINAL = 12
ROPE = Rope(100.0, "longrope", {"original_max_position_embeddings": ORIGINAL, "factor": 4.0,
                                "short_factor": (1.0, 1.2, 1.5), "long_factor": (2.0, 5.0, 9.0)})
LENGTHS = [1, 5, 8, 11, 12, 13, 20]  # below, at, above
WAYS = [{}, {"temperature": 1.5}]


def ids_of(n, seed=1):
    return torch.randint(23, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def model():
    return random_decoder(ropes=(ROPE,))


@pytest.mark.parametrize(("way", "n_prefix"), list(itertools.product(WAYS, [0, 4, 11, 13])))
def test_rows_are_as_without_a_cache(model, way, n_prefix):
    """Rows that stay short, cross at every place, or begin long; behind a prefix that is short, or long itself."""
    prefix, prompts = ids_of(n_prefix, 5), [ids_of(n, n) for n in LENGTHS]
    new = [9, 8, 4, 1, 2, 6, 7]
    sampler = Sampler(model, slots=3, max_len=32)
    for _ in range(2):  # what the sampler keeps between calls is not taken for the other kind
        outs = sampler.generate(prompts, prefix=prefix, max_new_tokens=new, **way)
        for seed, (prompt, n, out) in enumerate(zip(prompts, new, outs, strict=True)):
            tokens, logprobs, _ = naive(model, prefix + prompt, n, seed=seed, **way)
            assert (list(out.tokens), out.finish) == (tokens, "length")
            assert out.logprobs == pytest.approx(logprobs, abs=1e-5)  # angles are float32


@pytest.mark.parametrize("every", [1, 8])
def test_samples_of_one_prompt_cross_together(model, monkeypatch, every):
    """With keys of a prompt that are kept once, flags that are read late, and stop ids on either side."""
    monkeypatch.setattr(star.schedule, "KEEP_ONCE", 1)
    monkeypatch.setattr(star.schedule, "polls_are_free", lambda device: False)
    monkeypatch.setattr(star.schedule, "POLL_EVERY", every)
    prompt = ids_of(9)
    outs = Sampler(model, slots=7, max_len=32).generate([prompt] * 20, max_new_tokens=12, temperature=1.5, stop_ids=[3])
    ends = set()
    for seed, out in enumerate(outs):
        tokens, logprobs, _ = naive(model, prompt, 12, stop_ids=[3], temperature=1.5, seed=seed)
        assert list(out.tokens) == tokens
        assert out.logprobs == pytest.approx(logprobs, abs=1e-5)
        ends.add((out.finish, len(tokens) > ORIGINAL + 1 - 9))
    assert ends == {("stop", False), ("stop", True), ("length", True)}


@pytest.mark.parametrize("stop", [(), ("##",), ("a#", "c"), ("#b", "é")])
def test_texts_go_on_across_the_switch(stop):
    """A stop string may begin on one side and end on the other; a token is shown once, when it is sure to stay."""
    model, words, seen = random_decoder(seed=5, vocab=Bytes.vocab_size, ropes=(ROPE,)), Bytes(), {}
    prompts = [[i % Bytes.vocab_size] * (4 + i % 6) for i in range(60)]
    options = {"max_new_tokens": 15, "temperature": 5.0}
    free = Sampler(model, 60, 64, words).generate(prompts, **options)
    outs = Sampler(model, 7, 64, words).generate(
        prompts, stop=stop, on_token=lambda i, token: seen.setdefault(i, []).append(token), **options)
    across = 0
    for i, (whole, out, prompt) in enumerate(zip(free, outs, prompts, strict=True)):
        assert seen.get(i, []) == list(out.tokens)
        text, n = words.decode(out.tokens), len(out.tokens)
        assert out.tokens == whole.tokens[:n]
        assert not any(s in text for s in stop)
        assert (out.finish == "stop") == any(s in words.decode(whole.tokens) for s in stop)
        across += out.finish == "stop" and n <= ORIGINAL - len(prompt) + 1 < n + 2
    assert across or not stop


@torch.no_grad()
def test_a_packs_sequences_turn_each_by_its_own_length(model):
    """Side by side in a run whose pads reach beyond the original length, too."""
    examples = [Example(tuple(ids_of(n, n)), 1) for n in (20, 14, 13, 12, 11, 4)]
    batch = pack(examples, torch.device("cpu"))
    assert (3, 14) in batch.runs
    got = batch.hidden(model).split([len(e.tokens) - 1 for e in examples])
    for e, hidden in zip(examples, got, strict=True):
        torch.testing.assert_close(hidden, model.hidden(torch.tensor([e.tokens]))[0, :-1], atol=1e-6, rtol=0)
    for some, said in ((examples[:3], True), (examples[3:], False)):
        assert Packed(pack(some, torch.device("cpu")), 1).longer(ORIGINAL) is said


def test_a_model_without_it_takes_one_pass(monkeypatch):
    taken, run = [], star.schedule.Schedule.run
    monkeypatch.setattr(star.schedule.Schedule, "run", lambda self: taken.append(self) or run(self))
    prompts = [ids_of(n, n) for n in LENGTHS]
    Sampler(random_decoder(), 3, 64).generate(prompts, max_new_tokens=30)
    assert len(taken) == 1
    Sampler(random_decoder(ropes=(ROPE,)), 3, 64).generate([ids_of(3)], max_new_tokens=ORIGINAL - 2)
    assert len(taken) == 2
    sampler = Sampler(random_decoder(ropes=(ROPE,)), 3, 64)
    sampler.generate(prompts, max_new_tokens=9)
    assert len(taken) == 4
    assert taken[2].how != taken[3].how  # a graph of one is none of the other
    crossed = [n for n in LENGTHS if n <= ORIGINAL < n + 8]
    assert sampler.work["prefilled"] == sum(LENGTHS) + len(crossed) * (ORIGINAL + 1)
    assert sampler.work["drawn"] == 9 * len(LENGTHS)


def test_a_decode_step_takes_no_numbers_from_the_host(model, monkeypatch):
    """A graph could not record it."""
    sampler, made = Sampler(model, 2, 32), []
    sampler.generate([ids_of(14), ids_of(3)], max_new_tokens=4)
    decode = star.schedule.Schedule._decode

    def watched(self, *args):
        with monkeypatch.context() as patch:
            patch.setattr(torch, "tensor", lambda *args, **kw: made.append(args))
            return decode(self, *args)

    monkeypatch.setattr(star.schedule.Schedule, "_decode", watched)
    sampler.generate([ids_of(14), ids_of(3)], max_new_tokens=4)
    assert not made


def test_what_attention_is_sharpened_by():
    def of(**args):
        return amplitude(Rope(100.0, "longrope", {**ROPE.args, **args}))

    assert of() == pytest.approx(math.sqrt(1 + math.log(4) / math.log(ORIGINAL)))
    assert (of(factor=0.5), of(attention_factor=1.3)) == (1.0, 1.3)
