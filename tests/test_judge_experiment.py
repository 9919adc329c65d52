"""The experiment of N answers and a judge: figures against ones by hand, what is measured again, what is refused."""

import functools
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SHIPPED

import checkpoints
from checkpoints.files import write_json
from star.config import StarConfig
from star.evaluate import Z, pass_at, wilson
from star.experiments import judge, judge_runs
from star.problem import Generation, Problem
from star.reward import RewardModel
from star.run import launch
from star.run.flags import read_flags
from star.run.folder import append, read_lines
from star.tasks.arithmetic import Arithmetic, split

pytestmark = pytest.mark.usefixtures("own_folder")
BEST_OF = ["--parts", "best-of", "--out", "made", "--samples", "2", "--problems", "4", "--reward", "judges/mine"]


def said(problem, sample, answer, reward, verdict=None, logprob=-1.0):
    """An answer to 1+1 with its reward; "2" is right, and None cannot be read."""
    verdict = verdict or {"2": "right", None: "unparsed"}.get(answer, "wrong")
    scores = None if reward is None else {"quality": reward}
    return Generation(3, "pass at k", problem, sample, 0, (1, 2), "", "stop", logprob, answer, verdict, None,
                      scores=scores, reward=reward)


@pytest.fixture
def judged(monkeypatch):
    """A judge that nobody asks, since answers are made up: of four sums the first two have one right answer of two, the
    judge sees which, and the likelihood does not. The seeds that were sampled."""
    sampled = []

    def answers(run, iteration, problems, task, judge_, samples):
        seed = run.config.seed
        sampled.append(seed)
        made = [said(p.id, k, "2" if k == 1 and i % 4 < 2 else "9", float(k), logprob=-2.0 * k)
                for i, p in enumerate(problems) for k in range(samples)]
        return [said(p.id, 0, "2" if i % 4 == 0 else "9", None) for i, p in enumerate(problems)], made

    monkeypatch.setattr(judge, "load_judge", lambda folder, task: SimpleNamespace(labels=["quality"]))
    monkeypatch.setattr(judge, "hashed", lambda folder: 7)
    monkeypatch.setattr(judge, "answers", answers)
    monkeypatch.setattr(judge.Run, "open", lambda folder: SimpleNamespace(
        config=StarConfig(seed=int(folder.name.rpartition("-")[2])), adapter=lambda n: folder))
    return sampled


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take half a second each."""
    monkeypatch.setattr(judge, "draw", lambda *_: None)
    monkeypatch.setattr(judge_runs, "draw_arms", lambda *_: None)


def faked_runs(monkeypatch, stops=()):
    """Runs of train.py that write down a result at once; those in `stops` are stopped the first time. What was started:
    (folder, settings), read by train.py's own flags, and None where a run goes on."""
    seen, stops = [], set(stops)

    def call(argv):
        flags, _ = read_flags(argv[1:], "")
        folder = flags.resume or flags.out
        seen.append((folder.name, None if flags.resume else flags.settings | flags.options))
        stopped = folder.name in stops
        stops.discard(folder.name)
        shares = [0.25, 0.5 + 0.1 * ("reward" in folder.name)]
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        if not stopped:
            append(folder / "metrics.jsonl", [
                {"iteration": i, "accuracy": {"mean": s}, "interval": {"mean": [s - 0.05, s + 0.05]}} |
                ({"new_tokens": 1500, "judge": {"auc": [0.9, 0.8, 0.95]}} if i else {})
                for i, s in enumerate(shares)])
            right = [("a", "student", "right"), ("b", "student", "wrong"), ("b", "tiny-adder", "right"),
                     ("a", "tiny-adder", "right"), ("c", "tiny-adder", "wrong")]
            append(folder / "samples" / "iter-001.jsonl", [
                {"phase": "generate", "problem": p, "source": source, "verdict": v} for p, source, v in right] + [
                {"phase": "rationalize", "problem": "c", "source": "student", "verdict": "right"}])
        write_json(folder / "state.json", {"iteration": 1, "finished": not stopped})
        return 130 if stopped else 0

    monkeypatch.setattr(launch, "call", call)
    return seen


# figures


def test_who_picks_what_by_hand():
    """The judge ranks 2, 0, 1 and an answer that it did not rate; only the right ones say 2."""
    tries = [said("p", 0, "2", 1.0, logprob=-9.0), said("p", 1, "5", 0.5, logprob=-1.0),
             said("p", 2, "2", 2.0, logprob=-8.0), said("p", 3, "5", None, "length", logprob=-0.1)]
    for k in (1, 2, 3, 4):
        found = judge.chances(tries, k)
        assert found["random"] == 0.5
        assert found["judge"] == found["oracle"] == pytest.approx(pass_at(k, 2, 4))
    assert judge.chances(tries, 1) == pytest.approx(dict.fromkeys(judge.METHODS, 0.5))
    assert judge.chances(tries, 4)["likely"] == 0.0
    assert judge.chances(tries, 3)["likely"] == 0.0  # sample 1 or 3 is always among them
    assert judge.chances(tries, 2)["likely"] == pytest.approx(1 / 6)
    assert judge.chances(tries, 2)["majority"] == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 + 1 + 0) / 6)
    flipped = [said("p", 0, "2", 1.5), said("p", 1, "5", 0.5), said("p", 2, "5", 0.6)]
    assert judge.chances(flipped, 3)["majority"] == 0.0
    assert judge.chances(flipped, 3)["weighted"] == 1.0  # e^1.5 > e^0.5 + e^0.6
    assert judge.chances([replace(flipped[0], reward=1.2), *flipped[1:]], 3)["weighted"] == 0.0


def test_an_answer_of_no_tokens_and_one_of_no_reward():
    tries = [replace(said("p", 0, None, None), tokens=()), said("p", 1, None, None)]
    assert set(judge.chances(tries, 2).values()) == {0.0}


def test_measured_by_group():
    problems = [Problem(name, "1+1", "2", group) for name, group in (("a", "x"), ("b", "x"), ("c", "y"))]
    tries = [said("a", 0, "2", 1.0), said("a", 1, "9", 0.0), said("b", 0, "9", 1.0), said("b", 1, "2", 1.0),
             said("c", 0, "2", 0.0), said("c", 1, "2", 3.0)]
    record = judge.measure(problems, [said(p, 0, "2" if p != "b" else "9", None) for p in "abc"], tries, ["quality"])
    assert record["greedy"]["x"] == (0.5, *wilson(0.5, 2))
    assert record["greedy"]["mean"][0] == 0.75
    assert list(record["methods"]["judge"]) == ["1", "2"]
    assert record["methods"]["judge"]["2"]["x"][0] == 0.5  # b's two are equal: the first, which is wrong
    assert record["methods"]["oracle"]["2"]["x"][0] == 1.0
    assert record["methods"]["judge"]["1"]["mean"][0] == 0.75
    x, y = record["agreement"]["x"], record["agreement"]["y"]
    assert x["auc"]["reward"] == x["auc"]["quality"] == (0.75, *wilson(0.75, 2))
    assert x["auc"]["likelihood"][0] == 0.5
    assert (x["problems"], x["ties"]) == (2, 0.5)
    assert y == {"auc": {}, "problems": 0, "ties": 0.0}
    json.dumps(record, allow_nan=False)


def test_answers_of_a_real_generator_and_judge(monkeypatch):
    """The shipped model, and a judge with a head of random numbers: its scores stand beside the answers, none changed.
    """
    folder = Path("judges/mine")
    folder.mkdir(parents=True)
    head = torch.randn(2, 128, generator=torch.Generator().manual_seed(0))
    model = checkpoints.load_model(SHIPPED)
    checkpoints.save_reward_model(RewardModel(model, head, ["a", "b"], weights=(1.0, -2.0), format="plain"), folder)
    shutil.copy(SHIPPED / "tokenizer.model", folder)
    monkeypatch.setattr(checkpoints, "load_adapter", lambda *_: None)
    task = Arithmetic(range(1, 3))
    mine = judge.load_judge(folder, task)
    problems = task.heldout[:3]
    run = SimpleNamespace(config=StarConfig(seed=3), adapter=lambda n: None)
    greedy, tries = judge.answers(run, 3, problems, task, mine, 4)
    assert [(g.problem, g.sample) for g in tries] == [(p.id, k) for p in problems for k in range(4)]
    assert [g.verdict for g in greedy] == ["right"] * 3
    for g in tries:
        (scores,) = mine.rate([(task.question(next(p for p in problems if p.id == g.problem)), g.text)])
        assert g.scores == pytest.approx({"a": scores[0], "b": scores[1]}, abs=1e-4)
        assert g.reward == pytest.approx(scores[0] - 2 * scores[1], abs=1e-4)
    before = judge.hashed(folder)
    checkpoints.save_reward_model(RewardModel(model, head + 1, ["a", "b"], format="plain"), folder)
    assert judge.hashed(folder) != before


# the command


def test_a_stopped_experiment_goes_on(judged, undrawn, monkeypatch, capsys):
    """The table of one that was stopped is that of one that was not; nothing is measured twice."""
    started = faked_runs(monkeypatch, stops=["generator-3-2"])
    argv = [*BEST_OF, "--seeds", "1", "2"]
    assert judge.main(argv) == 130
    assert "the same command goes on" in capsys.readouterr().err
    assert ([r["seed"] for r in read_lines(Path("made/results.jsonl"))], judged) == ([1], [1])
    assert judge.main(argv) == 0
    out = capsys.readouterr().out
    assert judged == [1, 2]
    assert started == [("generator-3-1", {"iterations": 3, "seed": 1}), ("generator-3-2", {"iterations": 3, "seed": 2}),
                       ("generator-3-2", None)]
    assert len(read_lines(Path("made/answers-1.jsonl"))) == 2 * 4 * (1 + 2)
    assert judge.main(argv) == 0
    assert judged == [1, 2]
    again = capsys.readouterr().out
    assert again == out[out.index("\n| 4-digit"):]

    half, quarter = ("{:.1f} ({:.1f}-{:.1f})".format(*(100 * v for v in (s, *wilson(s, 4)))) for s in (0.5, 0.25))
    for group in ("4-digit", "5-digit"):
        part = again[again.index(f"| {group}: right, % (95 %) | seed | N = 1 | N = 2 |"):]
        for line in (f"| greedy | 2 | {quarter} | |", f"| random | 2 | {quarter} | {quarter} |",
                     f"| best by the judge | 1 | {quarter} | {half} |",
                     f"| oracle: any of N right | 2 | {quarter} | {half} |"):
            assert line in part
        assert re.search(
            rf"seed 2, {group}: the judge's best of 2 is 50\.0 .*, above greedy \(25\.0\) by \+25\.0 \(-17\.4 to "
            r"\+67\.4\), majority \(25\.0\) by \+25\.0 .*, likely \(0\.0\) by \+50\.0 .*; intervals apart from none; "
            r"100% of the way from greedy to any of 2 right \(50\.0\); AUC within a problem 1\.000 .* of the "
            r"likelihood 0\.000 .* over 2 that have .*; ties 0\.0%", again)


def test_what_beats_the_others_is_said():
    at = {"judge": [0.9, 0.85, 0.95], "majority": [0.6, 0.5, 0.7], "likely": [0.8, 0.75, 0.86], "random": [0.1, 0, 0.2],
          "weighted": [0.5, 0.4, 0.6], "oracle": [1.0, 0.9, 1.0]}
    record = {"greedy": {"x": [0.7, 0.6, 0.84]}, "methods": {name: {"1": {"x": v}} for name, v in at.items()},
              "above": {name: {"1": {"x": [0.125, 0.0, 0.25]}} for name in judge.RIVALS},
              "agreement": {"x": {"auc": {"reward": [0.99, 0.9, 1.0]}, "problems": 5, "ties": 0.0}}}
    (line,) = judge.said({4: record})
    assert "above greedy (70.0) by +12.5 (+0.0 to +25.0), majority" in line
    assert "intervals apart from greedy, majority; 67% of the way" in line


def test_sums_that_nobody_was_trained_on():
    for n, most in ((1, 50), (2, 200), (3, 1200)):
        train, heldout = split(n)
        sums = judge.unseen(n)
        assert sums[: len(heldout)] == heldout
        assert len({p.id for p in sums}) == most
        assert not {p.id for p in sums} & {p.id for p in train}


def test_differences_are_of_the_same_problems():
    """1, 0, 1, 1 less 0, 0, 1, 0 is 1, 0, 0, 1: mean and deviation are a half."""
    problems = [Problem(name, "1+1", "2", "x" if name in "abcd" else "y") for name in "abcde"]
    a, b = (dict(zip("abcde", v, strict=True)) for v in ((1.0, 0.0, 1.0, 1.0, 0.2), (0.0, 0.0, 1.0, 0.0, 0.1)))
    found = judge.differences(problems, a, b)
    assert found["x"] == pytest.approx((0.5, 0.5 - Z / 4, 0.5 + Z / 4))
    assert found["y"] == pytest.approx((0.1, 0.1, 0.1))


def test_the_picture(tmp_path, monkeypatch):
    """Means over seeds, for two lengths; the bands reach from the lowest to the highest end."""
    ends = {"judge": 0.3, "majority": 0.2}
    records = {}
    for seed, share in ((1, 0.4), (2, 0.6)):
        spans = {m: [share, share - ends.get(m, 0), share + ends.get(m, 0)] for m in judge.METHODS}
        records[seed] = {"methods": {m: {k: {"x": spans[m], "y": spans[m]} for k in "124"} for m in judge.METHODS},
                         "greedy": {"x": [share, 0, 1], "y": [0.1, 0, 1]}, "agreement": {"x": {}, "y": {}}}
    drawn, save = [], judge.save
    monkeypatch.setattr(judge, "save", lambda drawing, path: drawn.append(drawing) or save(drawing, path))
    judge.draw(tmp_path / "best-of.png", records)
    assert (tmp_path / "best-of.png").read_bytes()[:4] == b"\x89PNG"
    left, right = drawn[0].axes
    assert {line.get_label(): line.get_ydata()[0] for line in left.lines} == pytest.approx(
        dict.fromkeys([*judge.METHODS.values(), "greedy"], 50))
    assert list(right.lines[-1].get_ydata()) == [10, 10]
    bands = [[y for _, y in band.get_paths()[0].vertices] for band in left.collections]
    assert [(min(b), max(b)) for b in bands] == [pytest.approx((20, 80)), pytest.approx((10, 90))]
    assert [text.get_text() for text in left.get_xticklabels()] == ["1", "2", "4"]


def test_figures_made_otherwise_are_not_mixed(judged, undrawn, monkeypatch, capsys):
    faked_runs(monkeypatch)
    assert judge.main([*BEST_OF, "--seeds", "1"]) == 0
    for argv, words in ((["--iterations", "2"], "--iterations 3, now it is 2"),
                        (["--samples", "4"], "--samples 2, now it is 4"), (["--digits", "3"], "--digits 4-5")):
        assert judge.main([*BEST_OF, *argv]) == 2
        assert words in capsys.readouterr().err
    monkeypatch.setattr(judge, "hashed", lambda folder: 8)
    assert judge.main(BEST_OF) == 2
    assert "with a judge of hash 7, now it is 8: give another --out" in capsys.readouterr().err
    assert judged == [1]


def test_star_by_verifier_and_judge(judged, monkeypatch, capsys):
    """What each arm is run with, by train.py's own flags; a stopped one goes on, and equal figures stand once."""
    monkeypatch.setattr(judge_runs, "merged", lambda run, n, folder: folder)
    seen = faked_runs(monkeypatch, stops=["reward-blind-5"])
    argv = ["--parts", "star", "--seeds", "5", "--out", "made", "--reward", "judges/mine", "--iterations", "1"]
    assert judge.main(argv) == 130
    assert judge.main(argv) == 0
    names = ["generator-1-5", "correct-5", "correct+reward-5", "reward-blind-5", "reward-blind-5"]
    assert [name for name, _ in seen] == names
    arms = {settings["select"]: settings for _, settings in seen[1:-1]}
    assert {name: Path(s["reward"]).name for name, s in arms.items() if name != "correct"} == {
        "correct+reward": "mine", "reward-blind": "mine"}
    same = [{k: v for k, v in s.items() if k not in ("select", "reward")} for s in arms.values()]
    assert same[0] == same[1] == same[2]
    assert (same[0]["rationalize"], same[0]["samples"], same[0]["seed"]) == (False, judge_runs.TRIES, 5)
    for settings in arms.values():
        StarConfig(**{k: v for k, v in settings.items() if k != "digits"})
    assert judge.main(argv) == 0
    out = capsys.readouterr().out
    assert out.endswith("| arm | seed | base | iteration 1 | tokens sampled | AUC of the judge |\n"
                        "|---|---|---|---|---|---|\n"
                        "| correct | 5 | 25.0 (20.0-30.0) | 50.0 (45.0-55.0) | 1,500 | 0.900 |\n"
                        "| correct+reward | 5 | 25.0 (20.0-30.0) | 60.0 (55.0-65.0) | 1,500 | 0.900 |\n"
                        "| reward-blind | 5 | 25.0 (20.0-30.0) | 60.0 (55.0-65.0) | 1,500 | 0.900 |\n")
    assert [r["arm"] for r in read_lines(Path("made/results.jsonl"))] == list(judge_runs.SELECTIONS)
    assert Path("made/star.png").read_bytes()[:4] == b"\x89PNG"


def test_the_pool_against_one_source(undrawn, monkeypatch, capsys):
    seen = faked_runs(monkeypatch)
    monkeypatch.setattr(judge, "SECOND", SHIPPED)
    monkeypatch.setattr(judge_runs, "SECOND", SHIPPED)
    asked = []

    def solved(folder, samples, seed, tries):
        asked.append((folder, samples, tries))
        return [{"a"}, {"a", "b"}] if len(asked) == 1 else [{"c"}, {"c"}]

    monkeypatch.setattr(judge_runs, "solved", solved)
    argv = ["--parts", "pool", "--seeds", "5", "--out", "made", "--iterations", "1"]
    for _ in range(2):
        assert judge.main(argv) == 0
    assert asked == [(SHIPPED, 8, (4, 8))] * 2  # once for each model
    own, both = (settings for _, settings in seen)
    assert own.pop("samples") == 2 * both.pop("samples") == 8
    assert both.pop("generators") == str(SHIPPED)
    assert own == both
    out = capsys.readouterr().out
    assert "are solved by either, 4 tries each: 2 (0.4%)" in out
    assert out.endswith("| student alone | 5 | 1 |\n| tiny-adder alone | 5 | 2 |\n| the pool | 5 | 2 |\n")


def test_problems_that_a_model_solves(monkeypatch):
    """Of sums of 3 digits, which it gets right now and then; the first tries are those of a shorter run."""
    monkeypatch.setattr(judge_runs, "Arithmetic", functools.cache(Arithmetic))  # slow to make
    monkeypatch.setattr(judge_runs, "choose_problems", lambda train, n, seed: [p for p in train if len(p.id) == 7][:20])
    first, more = judge_runs.solved(SHIPPED, 8, 1, (1, 8))
    assert set() < first < more
    assert judge_runs.solved(SHIPPED, 2, 1, (1, 2))[0] == first


@pytest.mark.parametrize(("argv", "words"), [
    (["--parts", "best"], "--parts names 'best'; the parts are best-of, pool, star"),
    (["--samples", "0"], "--samples is 0; it must be from 1 to 1024"), (["--iterations", "0"], "--iterations is 0"),
    (["--problems", "1201"], "--problems is 1201; it must be from 1 to 1200"),
    (["--digits", "x"], "--digits is 'x'"), (["--seeds", "a"], "'a'"),
    (["--model", "m"], "--data belong to --task coin_flip"), (["--task", "gsm8k"], "'gsm8k'"),
    (["--reward", "nowhere"], "nowhere"), (["--no-such-flag"], "--no-such-flag"),
    (["--parts", "pool"], "no second model in nowhere: leave out its part"),
])
def test_what_is_refused(capsys, monkeypatch, argv, words):
    monkeypatch.setattr(launch, "call", lambda argv: pytest.fail("it was started"))
    monkeypatch.setattr(judge, "SECOND", Path("nowhere"))
    assert judge.main([*argv, "--out", "made"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not Path("made").exists()
