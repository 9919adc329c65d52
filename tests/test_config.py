"""Settings: what each phase samples with, how long training lasts, and what cannot be met together."""

import pytest

from star.config import StarConfig


def test_each_pass_has_its_own_sampling():
    config = StarConfig(samples=4, temperature=0.7, top_k=9, top_p=0.9)
    assert config.sampling("generate") == config.sampling("rationalize") == (4, 0.7, 9, 0.9)
    assert config.sampling("evaluate") == (1, 0.0, 0, 1.0)
    config = StarConfig(samples=4, temperature=0.7, top_k=9, hint_samples=1, hint_temperature=0.0, hint_top_k=0)
    assert config.sampling("rationalize") == (1, 0.0, 0, 1.0)
    assert config.sampling("generate") == (4, 0.7, 9, 1.0)


def test_steps():
    paper = StarConfig(first_steps=40, growth=1.2)
    assert [paper.steps(n, 1) for n in range(1, 6)] == [40, 48, 57, 69, 82]
    epochs = StarConfig(epochs=1.5, batch_size=8)
    assert [epochs.steps(n, 100) for n in (1, 2)] == [19, 19]
    assert epochs.steps(1, 1) == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"samples": 2}, ["--samples is 2", "--temperature 0"]),
        ({"hint_samples": 3}, ["--hint-samples is 3", "--hint-temperature 0"]),
        ({"samples": 2, "temperature": 1.0, "hint_temperature": 0.0}, ["--hint-samples is 2", "--hint-temperature 0"]),
        ({"top_k": 5}, ["--top-k", "--temperature 0"]),
        ({"top_p": 0.9}, ["--top-p", "--temperature 0"]),
        ({"temperature": 1.0, "hint_temperature": 0.0, "hint_top_p": 0.5}, ["--hint-top-p", "--hint-temperature 0"]),
        ({"hint": "off", "hint_temperature": 1.0}, ["--hint-temperature given", "--hint off"]),
        ({"hint": "off", "hint_samples": 1, "hint_top_k": 4}, ["--hint-samples, --hint-top-k given", "--hint off"]),
        ({"hint": "off", "hint_share": 0.5}, ["--hint-share is 0.5", "--hint off"]),
        ({"hint_share": 1.5}, ["--hint-share is 1.5", "at most 1"]),
        ({"cap": 2}, ["--cap is 2", "at most 1", "--rounds all"]),
        ({"wanted": 3000}, ["--wanted is 3000", "2000 problems"]),
        ({"epochs": 2.0, "growth": 1.2}, ["--epochs", "--growth", "leave one"]),
        ({"epochs": 2.0, "first_steps": 40}, ["--epochs", "--first-steps"]),
        ({"rounds": "some"}, ["--rounds is 'some'", "last, all"]),
        ({"top_p": 0.0}, ["--top-p is 0.0"]),
    ],
)
def test_what_cannot_be_met_together_is_named(settings, words):
    with pytest.raises(ValueError, match="--") as e:
        StarConfig(**settings)
    assert all(word in str(e.value) for word in words), e.value
    assert "\n" not in str(e.value)


def test_what_looks_odd_but_makes_sense():
    StarConfig(cap=1)
    StarConfig(cap=3, rounds="all")
    StarConfig(samples=4, temperature=1.0, cap=4)
    StarConfig(wanted=2000)
    StarConfig(hint="off", samples=4, temperature=0.5)
    StarConfig(epochs=1.0)
