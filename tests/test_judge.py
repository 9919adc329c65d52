"""Training a judge: the losses by hand, any cut gives the same step, it learns what it is shown, and the command."""

import json
import math
import random
import re

import pytest
import torch
from conftest import SHIPPED, random_decoder, refused

from checkpoints import load_reward_model, load_tokenizer
from star.experiments import train_judge as experiment
from star.judge import (
    Preferred,
    Rated,
    correlation,
    new_judge,
    pair_loss,
    pairs_right,
    portions,
    rating_loss,
    score_items,
)
from star.judge import train_judge as train
from star.lora import lora_modules
from star.reward import Judge

FIVE = ["helpfulness", "correctness", "coherence", "complexity", "verbosity"]


def judge_of(labels=("a", "b"), dtype=torch.float64, **kw):
    return new_judge(random_decoder(dtype=dtype, max_pos=64), list(labels), rank=3, **kw)


def rated(n=24, seed=0):
    """Rows of 4 to 14 ids; a: how many 7s are among the last three, b: is the first above 11? Some are not rated."""
    g, out = random.Random(seed), []
    for i in range(n):
        row = tuple(g.choice((7, g.randrange(23))) for _ in range(g.randrange(4, 15)))
        out.append(Rated(row, (float(row[-3:].count(7)), None if i % 5 == 0 else 2.0 * (row[0] > 11)), str(i % 8)))
    return out


def preferred(n=12):
    data = rated(2 * n)
    pairs = zip(data[::2], data[1::2], strict=True)
    return [Preferred(*(x.tokens for x in sorted(p, key=lambda x: -x.values[0])), margin=1.0 + i % 3)
            for i, p in enumerate(pairs)]


def test_losses_by_hand():
    scores = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    assert rating_loss(scores, [(2.0, None), (0.0, 1.0)]).item() == pytest.approx(1 + 0.25 + 4)
    assert rating_loss(scores, [(None, None), (None, 0.0)]).item() == pytest.approx(1)
    expected = 3 * math.log(1 + math.exp(-0.5)) + math.log(1 + math.exp(2))
    assert pair_loss(torch.tensor([1.0, 0.5, -1.0, 1.0]), [3.0, 1.0]).item() == pytest.approx(expected)


@pytest.mark.parametrize("data", [rated(), preferred()], ids=["ratings", "pairs"])
def test_the_first_loss_and_the_first_step(data):
    """One batch of all: the loss from scores that are computed row by row; any cut gives the same weights."""
    after = []
    for micro_tokens in (1000, 30):
        judge = judge_of()
        with torch.no_grad():
            judge.head += 0.01
        if not after:
            scores = torch.stack([judge.model.hidden(torch.tensor([row]))[0, -1] @ judge.head.T
                                  for item in data for row in item.rows])
            known = sum(v is not None for item in data for v in getattr(item, "values", ()))
            expected = (rating_loss(scores, [d.values for d in data]) / known if known else
                        pair_loss(scores[:, 1], [d.margin for d in data]) / len(data)).item()
        losses = list(train(judge, data, 2, 1e-2, len(data), label=1, micro_tokens=micro_tokens))
        assert losses[0] == pytest.approx(expected, rel=1e-9)
        assert losses[1] < losses[0]
        after.append([judge.head, *(m.A for _, m in lora_modules(judge.model))])
    for one, other in zip(*after, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=0)


def test_portions_keep_pairs_together():
    data = preferred()
    groups = portions(data, 40)
    assert sorted(map(id, data)) == sorted(id(p) for group in groups for p in group)
    assert len(groups) > 3
    assert all(len(g) == 1 or sum(len(row) for p in g for row in p.rows) <= 40 for g in groups)


def test_ratings_are_learned_and_saved():
    judge, data = judge_of(dtype=torch.float32), rated(96)
    losses = list(train(judge, data, 60, 2e-2, 16, warmup=5))
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    scores = score_items(judge, data)
    (r, n), (s, m) = (correlation(scores, data, j) for j in (0, 1))
    assert r > 0.5
    assert s > 0.5
    assert (n, m) == (96, 76)
    again = judge_of(dtype=torch.float32)
    assert list(train(again, data, 60, 2e-2, 16, warmup=5)) == losses  # a seed decides everything


def test_pairs_are_learned():
    judge, data = judge_of(["reward"], dtype=torch.float32), preferred(48)
    before, n = pairs_right(score_items(judge, data), data)
    assert (before, n) == (24.0, 48)  # a head of zeros: ties, each half right
    for _ in train(judge, data, 40, 2e-2, 16):
        pass
    assert pairs_right(score_items(judge, data), data)[0] > 36


def test_rank_0_trains_the_head_alone():
    judge = new_judge(random_decoder(dtype=torch.float32, max_pos=64), ["a", "b"], rank=0)
    losses = list(train(judge, rated(), 10, 2e-2, 24))
    assert losses[-1] < losses[0]
    assert not list(lora_modules(judge.model))


def test_figures_by_hand():
    data = [Rated((1,), (1.0, 1.0), "x"), Rated((2,), (3.0, 2.0), "x"), Rated((2,), (1.0, None), "x"),
            Rated((5,), (0.0, 0.0), "y"), Rated((9,), (0.0, 3.0), "y")]
    x, y = [1, 2, 2, 5, 9], [1, 3, 1, 0, 0]
    n, mx, my = 5, sum(x) / 5, sum(y) / 5
    covariance = sum(a * b for a, b in zip(x, y, strict=True)) - n * mx * my
    sizes = math.sqrt((sum(a * a for a in x) - n * mx * mx) * (sum(b * b for b in y) - n * my * my))
    scores = torch.tensor([[float(v), 1.0] for v in x])
    assert correlation(scores, data, 0) == (pytest.approx(covariance / sizes), 5)
    assert correlation(scores, data, 1) == (None, 4)  # b's scores do not vary
    assert pairs_right(scores, data) == (1.5, 2)  # 2 over 1 right, 2 over 2 a tie; y's ratings are equal
    pairs = torch.tensor([[3.0], [1.0], [1.0], [3.0], [1.0], [1.0]])
    assert pairs_right(pairs, [Preferred((3,), (1,))] * 3) == (1.5, 3)


@pytest.mark.parametrize(("data", "options", "words"), [
    ([], {}, ("no ratings",)), (rated(2), {"steps": 0}, ("steps is 0",)), (rated(2), {"label": 2}, ("label is 2",)),
    (rated(2), {"batch_size": 0}, ("batch_size 0",)), ([Rated((), (1.0, 1.0))], {}, ("row 0", "empty")),
    ([Rated((1,), (1.0,))], {}, ("row 0", "a, b")), ([Rated((1,), (math.inf, 1.0))], {}, ("row 0", "inf")),
    ([Preferred((1,), (2,), 0.0)], {}, ("pair 0", "margin 0.0")),
    (rated(4), {"lr": 1e300, "steps": 5}, ("the loss is", "lower the learning rate"))])  # fmt: skip
def test_what_cannot_be_trained(data, options, words):
    judge = judge_of()
    refused(lambda: list(train(judge, data, **{"steps": 1} | options)), words=words)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def sums(n, seed=0):
    """Ratings of answers to sums: is it right, and how long is it? One rating in four is missing."""
    g, rows = random.Random(seed), []
    for i in range(n):
        a, b = g.randrange(10), g.randrange(10)
        rows += [{"prompt": f"{a}+{b}\n", "response": f"={a + b + wrong:02}", "helpfulness": 4 - 4 * wrong,
                  "correctness": 4.0 - 4 * wrong if i % 4 else -100, "note": "x"} for wrong in (0, 1)]
    return rows


def command(capsys, *argv):
    """(exit code, what it printed, what it complained of)"""
    code = experiment.main([str(a) for a in argv])
    out, err = capsys.readouterr()
    return code, out, err[err.rfind("error:") :]


def test_the_command_learns_ratings(tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", [*sums(30), {"prompt": "1+1\n", "response": "=" * 600, "helpfulness": 1}])
    code, out, _ = command(capsys, "--base", SHIPPED, "--data", data, "--out", tmp_path / "judge", "--steps", 12,
                           "--batch-size", 32, "--reward-weights", "1,0.5", "--heldout", 0.2)
    assert code == 0
    assert "1 longer than 512 tokens left out" in out
    first, last = map(float, re.search(r"loss +([\d.]+) in the first 1 steps, ([\d.]+) in the last", out).groups())
    assert last < first
    assert re.search(r"held out +label .*\n +helpfulness +-?[\d.]+ +(\d+) +[\d.]+ +\d+\n +correctness ", out)
    judge = load_reward_model(tmp_path / "judge")
    assert (judge.labels, judge.weights, judge.format) == (["helpfulness", "correctness"], (1.0, 0.5), "plain")
    assert judge.pad_id == 0  # the unknown token, so that rows are read at their end
    rate = Judge("j", judge, load_tokenizer(tmp_path / "judge"), judge.format, judge.weights).rate
    assert len(rate([("1+1\n", "=02")])[0]) == 2


@pytest.mark.parametrize("strength", [False, True])
def test_the_command_learns_pairs(strength, tmp_path, capsys):
    rows = [{"prompt": p["prompt"]} | (
        {"response_1": q["response"], "response_2": p["response"], "preference_strength": 2} if strength else
        {"chosen": p["response"], "rejected": q["response"]})
        for p, q in zip(sums(20)[::2], sums(20)[1::2], strict=True)]
    rows.append(rows[0] | {"preference_strength" if strength else "margin": 0})
    data = write(tmp_path / "data.jsonl", rows)
    held = write(tmp_path / "held.jsonl", rows[:5])
    code, out, _ = command(capsys, "--base", SHIPPED, "--data", data, "--heldout", held, "--out", tmp_path / "judge",
                           "--steps", 2, "--batch-size", 4, "--labels", "better")
    assert code == 0
    assert "20 rows; 1 that say nothing left out; held out 5;" in out
    assert re.search(r"[\d.]+ % of 5 pairs in right order", out)
    assert load_reward_model(tmp_path / "judge").labels == ["better"]


def test_which_answer_is_preferred(tokenizer):
    judge = Judge("j", judge_of(["reward"]), tokenizer, "plain", (1.0,))

    def item(**fields):
        pair = experiment.item_of(("line 1", {"prompt": "1+1=", **fields}), next(iter(fields)), judge)
        return *(tokenizer.decode(row[:-1])[4:] for row in pair.rows), pair.margin

    assert item(response_1="2", response_2="3", preference_strength=-2) == ("2", "3", 2.0)
    assert item(response_1="2", response_2="3", preference_strength=1) == ("3", "2", 1.0)
    assert item(chosen="2", rejected="3") == ("2", "3", 1.0)
    assert item(chosen="2", rejected="3", margin=3) == ("2", "3", 3.0)


GOOD = {"prompt": "1+1\n", "response": "=02", "helpfulness": 4}
PAIR = {"prompt": "1+1\n", "chosen": "=02", "rejected": "=03"}


@pytest.mark.parametrize(("rows", "flags", "words"), [
    ([GOOD, {"prompt": "a", "helpfulness": 1}], {}, ("data.jsonl, line 2", "no field 'response'")),
    ([GOOD, PAIR], {}, ("line 2", "another form")), ([GOOD | {"response": 5}], {}, ("line 1", "'response'", "int")),
    ([GOOD | {"helpfulness": "4"}, GOOD], {}, ("line 1", "'helpfulness' is '4'")),
    ([GOOD | {"prompt": "1\n<extra_id_1>User\n2"}], {"--format": "steerlm"}, ("line 1", "alternate")),
    ([GOOD], {"--labels": "correctness"}, ("--labels correctness", "there is helpfulness")),
    ([GOOD], {"--labels": "helpfulness,helpfulness"}, ("twice",)),
    ([{"prompt": "1", "response": "2"}], {}, ("line 1", "no ratings")),
    ([PAIR], {"--labels": "a,b"}, ("one label",)), ([PAIR | {"margin": -1}], {}, ("line 1", "margin is -1")),
    ([PAIR | {"margin": "x"}], {}, ("line 1", "'margin' is 'x'")),
    ([PAIR | {"margin": 0}], {}, ("--data", "no row", "1 that")),
    ([{"prompt": "1", "response_1": "2", "response_2": "3"}], {}, ("line 1", "preference_strength")),
    ([GOOD], {"--heldout": "0.5"}, ("one prompt",)), ([GOOD], {"--heldout": "1.5"}, ("1.5", "between 0 and 1")),
    ([GOOD], {"--heldout": "none.jsonl"}, ("none.jsonl is not there",)), ([GOOD], {"--steps": 0}, ("--steps is 0",)),
    ([GOOD], {"--lr": -1}, ("--lr is -1",)), ([GOOD], {"--format": "chat"}, ("no chat template",)),
    ([GOOD], {"--max-tokens": 3}, ("--data", "no row", "1 longer than 3")),
    ([GOOD], {"--reward-weights": "1,2"}, ("needs 1 number",)), ([GOOD], {"--base": "nowhere"}, ("no model folder",)),
    ([GOOD], {"--out": "."}, ("not empty",))])  # fmt: skip
def test_bad_input_is_one_line(rows, flags, words, own_folder, tmp_path, capsys):
    data = write(tmp_path / "data.jsonl", rows)
    given = {"--base": SHIPPED, "--data": data, "--out": tmp_path / "judge", "--heldout": data} | flags
    code, _, said = command(capsys, *(x for pair in given.items() for x in pair))
    assert code == 2
    assert all(word in said for word in words), said
    assert said.count("\n") == 1
