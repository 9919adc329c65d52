"""Settings: what each phase samples with, how long training lasts, what a value may be and what cannot be met together.
"""

import math
from dataclasses import fields

import pytest
from conftest import refused

from star.config import CONFLICTS, DEFAULTS, StarConfig


def test_each_phase_has_its_own_sampling():
    config = StarConfig(samples=4, temperature=0.9, top_k=9, top_p=0.9, eval_samples=8)
    assert config.sampling("generate") == config.sampling("rationalize") == (4, 0.9, 9, 0.9)
    assert config.sampling("evaluate") == config.sampling("validate") == (1, 0.0, 0, 1.0)
    assert config.sampling("pass at k") == (8, 0.9, 0, 1.0)  # whole: what is measured is the model
    assert StarConfig(eval_samples=8).sampling("pass at k") == (8, 0.7, 0, 1.0)
    config = StarConfig(samples=4, temperature=0.7, top_k=9, hint_samples=1)
    assert config.sampling("rationalize") == (1, 0.7, 9, 1.0)
    assert config.sampling("generate") == (4, 0.7, 9, 1.0)


@pytest.mark.parametrize(("when", "iteration", "plain", "hinted"), [
    ("always", 0, True, True), ("always", 1, True, True), ("base", 0, True, True), ("base", 1, False, False),
    ("hint", 0, True, True), ("hint", 1, False, True)])  # fmt: skip
def test_which_model_is_asked_behind_examples(when, iteration, plain, hinted):
    config = StarConfig(few_shot_sample=when)
    assert (config.shows_examples(iteration, False), config.shows_examples(iteration, True)) == (plain, hinted)


def test_steps():
    paper = StarConfig(first_steps=40, growth=1.2)
    assert [paper.steps(n, 1) for n in range(1, 6)] == [40, 48, 57, 69, 82]
    epochs = StarConfig(epochs=1.5, batch_size=8)
    assert [epochs.steps(n, 100) for n in (1, 2)] == [19, 19]
    assert epochs.steps(1, 1) == 1


def test_the_learning_rate_follows_the_model():
    assert StarConfig().lr == 5e-3
    assert StarConfig(model="folder").lr == 2e-4
    assert StarConfig(lr=1e-3).lr == StarConfig(lr=1e-3, model="folder").lr == 1e-3
    assert StarConfig(**vars(StarConfig())) == StarConfig()  # as config.json gives it back


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": -1}, ["--samples is -1", "at least 0"]),
        ({"samples": 10_001}, ["--samples is 10001", "at most 10000"]),
        ({"samples": 2.0}, ["--samples is 2.0", "type int"]),
        ({"samples": True}, ["--samples is True", "type int"]),
        ({"samples": None}, ["--samples is None", "type int"]),
        ({"temperature": math.nan}, ["--temperature is nan", "a number"]),
        ({"temperature": math.inf}, ["--temperature is inf", "at most"]),
        ({"temperature": 1e-39, "samples": 2}, ["--temperature 1e-39", "give 0 (greedy)"]),
        ({"temperature": 9e-7}, ["--temperature 9e-07", "at least 1e-6"]),
        ({"temperature": "warm"}, ["--temperature is 'warm'", "type float"]),
        ({"rationalize": "off"}, ["--rationalize is 'off'", "type bool"]),
        ({"merge": "auto"}, ["--merge is 'auto'", "type bool"]),
        ({"max_new_tokens": 0}, ["--max-new-tokens is 0"]),
        ({"keep": "some"}, ["--keep is 'some'", "one of last, all"]),
        ({"base_bits": 4}, ["--base-bits is 4", "it must be 8"]),
        ({"base_bits": "8"}, ["--base-bits is '8'", "type int"]),
        ({"top_p": 0.0}, ["--top-p is 0.0"]),
    ],
)
def test_a_value_that_a_setting_cannot_have(settings, words):
    refused(lambda: StarConfig(**settings), words=words)


def test_a_whole_number_is_a_float_where_one_is_meant():
    assert type(StarConfig(temperature=1).temperature) is float
    assert all(DEFAULTS[f.name] is f.default for f in fields(StarConfig))


TOGETHER = [
    ({"samples": 2}, ["--samples is 2", "--temperature 0"]),
    ({"hint_samples": 3}, ["--hint-samples is 3", "--temperature 0"]),
    ({"top_k": 5}, ["--top-k", "--temperature 0"]),
    ({"top_p": 0.9}, ["--top-p", "--temperature 0"]),
    ({"rationalize": False, "hint_samples": 1}, ["--hint-samples is 1", "--no-rationalize"]),
    ({"max_per_problem": 2}, ["--max-per-problem is 2", "--samples", "--keep all"]),
    ({"wanted": 2001}, ["--wanted is 2001", "2000 problems"]),
    ({"epochs": 2.0, "growth": 1.2}, ["--epochs", "--growth", "leave one"]),
    ({"epochs": 2.0, "first_steps": 40}, ["--epochs", "--first-steps"]),
    ({"growth": 10.0, "iterations": 99}, ["--growth 10.0", "99 iterations", "10^9"]),
    ({"patience": 2}, ["--patience 2", "--validation is 0"]),
    ({"heldout_when": "best"}, ["--heldout-when best", "--validation is 0"]),
    ({"samples": 0}, ["--samples 0", "--generators", "--candidates"]),
    ({"wanted": 9, "candidates": "a.jsonl"}, ["--wanted", "--candidates", "leave one"]),
    ({"wanted": 9, "select": "correct+reward", "reward": "a"}, ["--wanted", "--select correct+reward", "leave one"]),
    ({"select": "correct+reward"}, ["--select correct+reward", "--reward", "--candidates"]),
    ({"reward_threshold": 1.0}, ["--reward-threshold 1.0", "it is correct"]),
    ({"reward_by": "likelihood"}, ["--reward-by", "name one by --reward"]),
    ({"reward_weights": "1,2"}, ["--reward-weights 1,2", "--reward"]),
    ({"skip_bad": True}, ["--skip-bad", "--candidates"]),
    ({"shard": True, "merge": True}, ["--merge", "--shard", "leave one"]),
    ({"merge": True, "base_bits": 8}, ["--merge", "--base-bits 8", "leave one"]),
]


@pytest.mark.parametrize(("settings", "words"), TOGETHER)
def test_what_cannot_be_met_together_is_named(settings, words):
    refused(lambda: StarConfig(**settings), words=words)


def test_every_conflict_has_such_a_case():
    """And names only settings that there are, of which one at least was changed: star/run/flags goes by them."""
    seen = set()
    for settings, words in TOGETHER:
        said = refused(lambda: StarConfig(**settings), words=words)  # noqa: B023
        (conflict,) = [c for c in CONFLICTS if said == c.why.format(**DEFAULTS | settings)]
        assert set(conflict.settings) <= set(DEFAULTS)
        assert set(conflict.settings) & set(settings)
        seen.add(conflict)
    assert seen == set(CONFLICTS)


def test_what_looks_odd_but_makes_sense():
    StarConfig(max_per_problem=1)
    StarConfig(max_per_problem=9, generators="a")
    StarConfig(samples=0, candidates="a.jsonl", select="correct+reward")
    assert not StarConfig(select="reward-blind", reward="a").rationalize  # the hint is the answer
    StarConfig(max_per_problem=3, keep="all")
    StarConfig(samples=4, temperature=1.0, max_per_problem=4)
    StarConfig(samples=1, hint_samples=3, temperature=1.0, max_per_problem=3, wanted=6000)
    StarConfig(wanted=2000)
    StarConfig(rationalize=False, samples=4, temperature=0.5)
    StarConfig(epochs=1.0)
    StarConfig(base_bits=8, merge=False)
