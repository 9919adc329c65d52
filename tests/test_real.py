"""A real pretrained model, if it is there: python -m checkpoints.fetch smollm2-135m. tests/bench has its peers."""

import math
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import checkpoints
import sample
import train
from checkpoints.chat import load_chat
from star.finetune import finetune
from star.lora import add_lora
from star.problem import Example
from star.sampler import Sampler

FOLDER = ROOT / "checkpoints" / "smollm2-135m"
pytestmark = pytest.mark.skipif(not (FOLDER / "config.json").is_file(),
                                reason="the real model is not there: python -m checkpoints.fetch smollm2-135m")


@pytest.fixture(scope="module")
def model():
    return checkpoints.load_model(FOLDER)


@pytest.fixture(scope="module")
def tokens():
    return checkpoints.load_tokenizer(FOLDER)


def test_its_chat_template():
    assert load_chat(FOLDER).render([("system", "Be brief."), ("user", "2+2?")]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n")


def test_it_is_what_it_should_be(model, tokens):
    assert checkpoints.describe(model) == "llama, 134,515,008 parameters, float32"
    assert (tokens.vocab_size, tokens.bos_id, tokens.eos_ids) == (49152, 1, (2,))


@torch.no_grad()
def test_it_goes_on_sensibly_and_as_without_a_cache(model, tokens):
    prompt = tokens.encode("The capital of France is")
    out = Sampler(model, slots=2, max_len=64, tokenizer=tokens).generate([prompt], max_new_tokens=6)[0]
    assert tokens.decode(out.tokens).startswith(" Paris")
    ids = list(prompt)
    for token, logprob in zip(out.tokens, out.logprobs, strict=True):
        logits = model(torch.tensor([ids]))[0, -1]
        assert int(logits.argmax()) == token
        assert math.isclose(float(logits.log_softmax(-1)[token]), logprob, abs_tol=1e-3)
        ids.append(token)


def test_text_comes_back(tokens):
    for path in (ROOT / "README.md", Path(__file__), ROOT / "star" / "loop.py"):
        text = path.read_text()
        ids = tokens.encode(text)
        assert tokens.decode(ids) == text
        assert len(ids) < len(text) / 2  # words and not letters
    assert tokens.encode("<|im_start|>user")[0] == 1
    assert tokens.decode(tokens.encode("a\x04b")) == "ab"  # this vocabulary lacks 21 bytes, and so does the reference


def test_it_learns(model, tokens):
    """Six steps on two sentences that it cannot know; the base stays as it is."""
    before = model.embed_tokens.weight.clone(), model.layers[3].mlp.down_proj.weight.clone()
    prompts = ["The secret word of the lighthouse is", "The keeper's cat is called"]
    ids = [(tokens.encode(p), tokens.encode(a)) for p, a in zip(prompts, (" marzipan.", " Vladimir."), strict=True)]
    add_lora(model, rank=4, alpha=8)
    stats = finetune(model, [Example((*p, *a), len(p)) for p, a in ids], steps=6, lr=3e-3, batch_size=2)
    assert stats.losses[-1] < 0.3 * stats.losses[0]
    out = Sampler(model, slots=2, max_len=64, tokenizer=tokens).generate([p for p, _ in ids], max_new_tokens=8)
    assert [tokens.decode(o.tokens)[:10] for o in out] == [" marzipan.", " Vladimir."]
    assert torch.equal(before[0], model.embed_tokens.weight)
    assert torch.equal(before[1], model.layers[3].mlp.down_proj.weight)


def test_commands(capsys):
    assert train.main(["--model", str(FOLDER), "--check"]) == 0
    said = capsys.readouterr().out
    assert "llama, 134,515,008 parameters, float32" in said
    assert "prompt  5+0: 4 ids, first 37, last 198" in said
    assert sample.main(["--model", str(FOLDER), "The capital of France is", "--max-new-tokens", "2"]) == 0
    assert "The capital of France is Paris" in capsys.readouterr().out
