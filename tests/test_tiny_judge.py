"""The judge that ships: what its attributes mean, what it is taught, and that it knows right from wrong."""

import random

import pytest
from conftest import ROOT

import checkpoints
from star.best_of import auc_within
from star.experiments.tiny_judge import ATTRIBUTES, IGNORE, KINDS, LABELS, Writer, attributes, coherence, row
from star.reward import Judge
from star.tasks.arithmetic import make, scratchpad, split

SUM = make("57", "68")  # 7+8+C0=15, 5+6+C1=12, =125
GOLD = "7+8+C0=15\n5+6+C1=12\n=125"
SHIPPED_JUDGE = ROOT / "checkpoints" / "tiny-judge"


@pytest.mark.parametrize(("text", "five"), [
    (GOLD, (4, 4, 4, 4, 2)),
    ("7+8+C0=15\n5+6+C0=11\n=115", (0, 0, 4 * 2 / 3, 2, 2)),  # the carry is dropped: the second line does not follow
    ("7+6+C0=13\n5+6+C1=12\n=123", (0, 0, 4, 2, 2)),  # misread, then right: coherent all the same
    ("7+8+C0=15\n5+6+C1=12\n=1125", (0, 0, 4 * 2 / 3, 4, 2 * 25 / 24)),
    ("=125", (4, 0, 0, 0, 2 * 4 / 24)),  # the answer alone
    ("", (0, 0, 0, 0, 0)), ("\n" * 99, (0, 0, 0, 0, 4)),
])
def test_attributes(text, five):
    assert scratchpad("57", "68") == GOLD
    assert attributes(SUM, text) == pytest.approx(five)
    assert len(ATTRIBUTES) == len(five)


def test_coherence_reads_any_text():
    assert coherence(["=0"]) == 0
    assert coherence(["4+5+C0=09", "=9"]) == 1
    assert coherence(["9+9+C0=18", "=18"]) == 1
    assert coherence(["9+9+C0=17", "=17"]) == 0.5
    for text in ("x", "1+1", "1+1+C0=2", "+C=", "9+9+C0=18\n\n=8"):
        assert 0 <= coherence(text.split("\n")) <= 1


def test_errors_are_planted_in_fresh_sums():
    """Each kind spoils the scratchpad nearly always; no sum is one of those held out."""
    writer, held = Writer(3), {p.id for n in range(1, 6) for p in split(n)[1]}
    sums = [writer.sum((1, 3, 5)) for _ in range(200)]
    assert not held & {p.id for p in sums}
    assert {len(p.question) for p in sums} == {3, 7, 11}
    assert all(writer.write(p, []) == scratchpad(*p.question.split("+")) for p in sums)
    for kind in KINDS:
        spoiled = sum(writer.write(p, [kind]) != scratchpad(*p.question.split("+")) for p in sums)
        assert spoiled > 100, kind
    again = Writer(3)
    assert [again.sum((1, 3, 5)) for _ in range(200)] == sums


def test_what_is_taught_at_each_place(tokenizer):
    """57+68 with a first line that ends in 13 for 15: the first error is the text's place 9."""
    text = GOLD.replace("=15", "=13")
    r = row(SUM, text, tokenizer)
    gold, n = [*tokenizer.encode(GOLD), 1], len(text) + 2
    assert all(len(getattr(r, name)) == n for name in LABELS)
    assert r.next == gold[:9] + [IGNORE] * (n - 9)
    assert r.here == [IGNORE, *gold[:9], *[IGNORE] * (n - 10)]
    assert r.same == [IGNORE, *[1] * 8, 0, *[IGNORE] * (n - 10)]
    assert r.right == [IGNORE, *[1] * 8, *[0] * (n - 9)]
    assert len(r.example.tokens) - r.example.n_prompt == n  # a token that nothing looks at stands behind the end
    perfect = row(SUM, GOLD, tokenizer)
    assert perfect.right == [IGNORE, *[1] * (len(GOLD) + 1)] == perfect.same
    short = row(SUM, GOLD[:-1], tokenizer)
    assert short.same[-1] == 0  # it ended too early
    assert short.here[-1] == gold[len(GOLD) - 1]


def test_it_rates_right_scratchpads_above_wrong_ones():
    """Of held-out sums it has never seen, four errors each; measured 0.99 and more when it was made."""
    model = checkpoints.load_reward_model(SHIPPED_JUDGE)
    judge = Judge("tiny-judge", model, checkpoints.load_tokenizer(SHIPPED_JUDGE), "plain", model.weights)
    writer, rng = Writer(5), random.Random(0)
    problems = [p for n in (3, 4, 5) for p in rng.sample(split(n)[1], 12)]
    rated = []
    for p in problems:
        gold = scratchpad(*p.question.split("+"))
        texts = [gold, *{writer.write(p, [kind]) for kind in rng.sample(list(KINDS), 4)} - {gold}]
        scores = judge.rate([(p.question + "\n", text) for text in texts])
        rated.append([(judge.total(s), text == gold) for s, text in zip(scores, texts, strict=True)])
    assert auc_within(rated)[0] > 0.95
    assert model.labels == list(ATTRIBUTES)
    assert (model.format, model.pad_id) == ("plain", 0)
    assert sum(f.stat().st_size for f in SHIPPED_JUDGE.iterdir()) < 3_000_000
