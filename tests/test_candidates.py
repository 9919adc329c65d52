"""Answers written elsewhere, read strictly; questions and rollouts written for others; other models and judges refused
before anything is loaded."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, SHIPPED, refused

import checkpoints
import sample
import train
from star.config import StarConfig
from star.reward import ATTRIBUTES, RewardModel
from star.run.candidates import Reader
from star.run.exchange import questions
from star.run.others import plan_others
from star.run.plan import make_plan
from star.tasks import load_task

TRUE = {"0+0": "0+0+C0=00\n=0", "1+2": "1+2+C0=03\n=3"}


@pytest.fixture(scope="module")
def digit():
    """Sums of one digit, with two known problems to train on."""
    task = load_task("arithmetic", digits="1")
    task.train = [replace(task.train[0], id=q, question=q, answer=str(eval(q))) for q in TRUE] + task.train[2:]
    task.heldout = [p for p in task.heldout if p.id not in TRUE]
    return task


@pytest.fixture
def read(tmp_path, digit, tokenizer):
    def read(*lines, name="claude.jsonl", **settings):
        file = tmp_path / name
        encoded = (text if isinstance(text, bytes) else json.dumps(text).encode() for text in lines)
        file.write_bytes(b"".join(text + b"\n" for text in encoded))
        reader = Reader(digit, tokenizer, **settings)
        return reader.read(file), reader.notes

    return read


def line(**more):
    return {"problem": "1+2", "text": TRUE["1+2"], "source": "claude"} | more


def test_a_file_of_answers(read):
    found, notes = read(line(), b"", line(problem="0+0", text="<s>=0</s>", source="mistral"), line(text="=3", extra=1))
    assert [(c.problem, c.source, c.text, c.scores, c.reward) for c in found] == [
        ("1+2", "claude", TRUE["1+2"], None, None), ("0+0", "mistral", "=0", None, None),
        ("1+2", "claude", "=3", None, None)]
    assert notes == ["claude.jsonl: 3 answers to 2 problems, from claude, mistral; these problems are drawn first"]
    found, _ = read({"problem": "1+2", "text": "=3"}, name="gemini.jsonl")
    assert found[0].source == "gemini"  # the file's name
    assert read(line(prompt="Add:\n1+2\n"))[0][0].text == TRUE["1+2"]
    assert len(read(line(text="=3", scores="x"), line(text="=3", scores=1.0), skip_bad=True)[0]) == 1  # the good one
    listed = read(b'[{"problem": "1+2", "text": "=3"}, 5]', name="list.json", skip_bad=True)
    assert len(listed[0]) == 1
    assert "entry 2" in listed[1][1]


def test_scores_of_a_judge_elsewhere(read):
    five = {"helpfulness": 3, "correctness": 4.0, "coherence": 1, "complexity": 0, "verbosity": 1}
    found, _ = read(line(scores=five), line(text="=3", scores=None), weights="steerlm-70b")
    assert found[0].scores["correctness"] == 4.0
    assert found[0].reward == pytest.approx(0.65 * 3 + 0.8 * 4 + 0.45 - 0.4)
    assert found[1].reward is None
    assert read(line(scores=[1, 2, 3, 4, 5]))[0][0].scores == dict(zip(ATTRIBUTES, [1, 2, 3, 4, 5], strict=True))
    assert read(line(scores=2.5))[0][0].reward == 2.5
    assert read(line(scores=2.5), scores=False)[0][0].scores is None  # a judge here scores all


@pytest.mark.parametrize(("second", "words"), [
    (b"{oops", ["line 2 is not JSON", "'{oops'"]), (b"\xff", ["line 2 is not UTF-8"]), ([1], ["line 2", "JSON object"]),
    ({"problem": "1+2"}, ["line 2 has no field 'text'", "problem, text and source"]),
    (line(problem="77+1"), ["line 2: problem '77+1' is none of the", "--questions"]),
    (line(text=""), ["line 2: field 'text'"]), (line(text="<s></s>"), ["nothing is left of the text"]),
    (line(text=None), ["line 2: field 'text'"]), (line(text="\ud800"), ["line 2: field 'text'"]),
    (line(), ["line 2 repeats line 1", "'1+2'"]), (line(text=f" {TRUE['1+2']} "), ["line 2 repeats line 1"]),
    (line(source="student"), ["source 'student'", "the model that is trained"]),
    (line(source="mistral"), ["source 'mistral'", "a generator"]), (line(source=["a"]), ["field 'source'"]),
    (line(text="It is 3."), ["the student's tokenizer has no token for 'I'"]),
    (line(text="=3", prompt="1+2\n=3\n8+9\n"), ["its prompt does not hold"]),
    (line(text="=3", prompt="11+2"), ["its prompt does not hold"]),
    (b'{"problem": "1+2", "problem": "0+0", "text": "=0"}', ["line 2 is not JSON", "'problem' stands in it twice"]),
    (line(text="=3", scores={"reward": 10**400}), ["scores is", "finite"]),
    (line(text="=3", prompt="8+9\n"), ["its prompt does not hold what problem '1+2' asks here"]),
    (line(text="=3", scores=[1, 2]), ["scores is [1, 2]", "five"]), (line(text="=3", scores={}), ["scores is {}"]),
    (line(text="=3", scores={"a": float("nan")}), ["scores is", "finite"]),
    (line(text="=3", scores={"a": True}), ["scores is", "finite"]),
    (line(text="=3", scores={"a": 1}), ["scores for a, but", "line 1 for reward"]),
])
def test_a_line_that_cannot_be_used(read, second, words):
    """It is named and refused, or left out and counted; the rest stays."""
    lines = [line(scores=1.0), second, line(problem="0+0", text="=0", scores=2.0)]
    refused(lambda: read(*lines, taken=["mistral"]), words=["claude.jsonl, line 2", *words, "--skip-bad"])
    found, notes = read(*lines, taken=["mistral"], skip_bad=True)
    assert [c.problem for c in found] == ["1+2", "0+0"]
    assert "1 lines are left out" in notes[1]


def test_a_file_of_which_nothing_is_left(read, digit, tmp_path, tokenizer):
    refused(lambda: read(b"a", b"b", skip_bad=True), words=["line 1", "(and 1 more lines", "nothing is left"])
    refused(lambda: read(b"a", b"b"), words=["line 1", "(and 1 more lines cannot be used)", "--skip-bad"])
    refused(lambda: read(), words=["is empty"])
    held = digit.heldout[0]
    refused(lambda: read(line(problem=held.id)), words=["is held out"])
    refused(lambda: Reader(digit, tokenizer).read(tmp_path / "none.jsonl"), words=["not there"],
            error=FileNotFoundError)


def test_a_file_of_thousands_of_lines(read, digit):
    many = [line(problem=p.id, text=digit.gold(p) + "\n" * (k % 2), source=f"s{k}")
            for k in range(60) for p in digit.train[2:]]
    found, _ = read(*many)
    assert len(found) == len(many) == 60 * 48


# other models and a judge


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """A folder with a random head of five attributes on the model that ships."""
    folder = tmp_path_factory.mktemp("judges") / "judge"
    model = checkpoints.load_model(SHIPPED)
    head = torch.randn(5, model.config.d_model, generator=torch.Generator().manual_seed(0))
    checkpoints.save_reward_model(RewardModel(model, head, list(ATTRIBUTES), None, 0, None, "plain"), folder)
    return folder


@pytest.fixture
def planned(digit, tokenizer, shipped):
    def planned(task=digit, **settings):
        config = StarConfig(**settings)
        return plan_others(config, task, tokenizer, shipped, 30, torch.device("cpu"))

    return planned


def test_what_cannot_serve_is_refused(planned, judge, tmp_path, digit):
    twin = tmp_path / "a" / "tiny-adder"
    shutil.copytree(SHIPPED, twin)
    refused(lambda: planned(generators=f"{SHIPPED},{twin}"), words=["tiny-adder, tiny-adder", "a name of its own"])
    student = twin.rename(tmp_path / "student")
    refused(lambda: planned(generators=str(student)), words=["named student", "is trained"])
    refused(lambda: planned(generators=str(tmp_path / "none")), words=["no model folder"], error=FileNotFoundError)
    refused(lambda: planned(generators=str(SHIPPED), chat=True), words=["tiny-adder", "has no chat template"])
    refused(lambda: planned(candidates="a.jsonl,a.jsonl"), words=["a.jsonl is not there"], error=FileNotFoundError)
    (tmp_path / "a.jsonl").write_text(json.dumps(line(text="=3")) + "\n")
    twice = f"{tmp_path}/a.jsonl,{tmp_path}/../{tmp_path.name}/a.jsonl"
    refused(lambda: planned(candidates=twice), words=["twice: each answer counts once"])
    unscored = str(tmp_path / "a.jsonl")
    refused(lambda: planned(candidates=unscored, reward_weights="1"), words=["no line of --candidates"])
    refused(lambda: planned(generators=str(judge)), words=["is a judge", "--reward"])
    refused(lambda: planned(reward=str(SHIPPED)), words=["no score head", "--reward-by likelihood"])
    refused(lambda: planned(reward=str(judge), reward_weights="1,2"), words=["--reward-weights needs 5 numbers"])
    refused(lambda: planned(reward=str(judge), reward_format="chat"), words=["chat template"])
    small = json.loads((judge / "config.json").read_text()) | {"max_position_embeddings": 3}
    short = shutil.copytree(judge, tmp_path / "short")
    (short / "config.json").write_text(json.dumps(small))
    refused(lambda: planned(reward=str(short)), words=["the judge short reads 3 tokens", "longer context"])
    odd = replace(digit.train[0], id="odd", question="1 + two")
    other = load_task("arithmetic", digits="1")
    other.train = [odd]
    refused(lambda: planned(other, reward=str(judge)), words=["the judge judge has no token for 'w'"])
    unnamed = json.loads((judge / "config.json").read_text())
    unnamed["id2label"] = {str(i): f"LABEL_{i}" for i in range(5)}
    (short / "config.json").write_text(json.dumps(unnamed))
    assert "helpfulness" in planned(reward=str(short)).said[0]


def test_a_judge_and_a_model_are_loaded_when_they_are_needed(planned, judge):
    found = planned(generators=str(SHIPPED), reward=str(judge), reward_weights="steerlm-70b-v1")
    assert [line.split(":")[0] for line in found.said] == ["pool    tiny-adder", "judge   judge"]
    assert "+0.65 helpfulness +0.8 correctness +0.45 coherence" in found.said[1]
    assert not found.notes
    loaded = found.pool.judge()
    ((a, b),) = [loaded.rate([("1+2\n", TRUE["1+2"]), ("1+2\n", "=4")])]
    direct = checkpoints.load_reward_model(judge)
    ids = [*loaded.tokenizer.encode("1+2\n" + TRUE["1+2"]), 1]
    torch.testing.assert_close(torch.tensor(a), direct.score([ids])[0])
    assert a != b
    sampler, _ = found.pool.models[0].open()
    assert not sampler.model.embed_tokens.weight.is_meta


def test_likelihood_and_a_foreign_family_are_said(planned, judge, tmp_path):
    found = planned(reward=str(SHIPPED), reward_by="likelihood")
    assert "reward = +1 likelihood" in found.said[0]
    (score,), (other,) = found.pool.judge().rate([("1+2\n", TRUE["1+2"]), ("1+2\n", "9" * 20)])
    assert other < score < 0
    foreign = shutil.copytree(judge, tmp_path / "foreign")
    config = json.loads((judge / "config.json").read_text()) | {"model_type": "mistral"}
    (foreign / "config.json").write_text(json.dumps(config))
    assert any("family mistral, the student of llama" in note for note in planned(reward=str(foreign)).notes)


# commands


@pytest.fixture
def files(own_folder, tmp_path, monkeypatch):
    """Questions and rollouts of a small model, written once."""
    assert sample.main(["--task", "arithmetic", "--digits", "1-2", "--rollouts", "r.jsonl", "--limit", "20",
                        "--samples", "2", "--temperature", "1"]) == 0
    return tmp_path


def test_questions_go_out_and_answers_come_in(own_folder, tmp_path, capsys):
    assert sample.main(["--task", "arithmetic", "--digits", "1", "--questions", "q.jsonl", "--limit", "5"]) == 0
    assert "5 questions of task arithmetic" in capsys.readouterr().out
    asked = [json.loads(text) for text in (tmp_path / "q.jsonl").read_text().splitlines()]
    assert len({a["problem"] for a in asked}) == 5
    task = load_task("arithmetic", digits="1")
    by_id = {p.id: p for p in task.train}
    for a in asked:  # worked solutions stand in front, since the task shows no examples
        assert a["prompt"].endswith("\n\n" + task.question(by_id[a["problem"]]))
        assert a["prompt"].startswith(task.question(task.train[0]) + task.gold(task.train[0]) + "\n\n")
    first = task.train[0]  # one of those that stand in front: it must not be shown its own solution
    (own,) = questions(task, [first])
    assert own["prompt"].count(task.question(first)) == 1
    answers = [a | {"text": task.gold(by_id[a["problem"]]), "source": "claude"} for a in asked]
    (tmp_path / "claude.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    assert train.main(["--digits", "1", "--samples", "0", "--candidates", "claude.jsonl", "--iterations", "1",
                       "--first-steps", "1", "--out", "run"]) == 0
    said = capsys.readouterr().out
    assert "claude" in said
    assert "5 tried      5 right      5 let through      5 chosen" in said
    assert sample.main(["--task", "arithmetic", "--questions", "q.jsonl"]) == 2  # never over a file that is there
    assert "q.jsonl exists" in capsys.readouterr().err


def test_rollouts_are_candidates(files, capsys):
    lines = [json.loads(text) for text in (files / "r.jsonl").read_text().splitlines()]
    assert {line["source"] for line in lines} == {"tiny-adder"}
    assert len({(line["problem"], line["text"]) for line in lines}) == len(lines)
    assert train.main(["--digits", "1-2", "--samples", "0", "--candidates", "r.jsonl", "--iterations", "1",
                       "--first-steps", "1", "--out", "run", "--no-rationalize"]) == 0
    metrics = [json.loads(text) for text in (files / "run" / "metrics.jsonl").read_text().splitlines()]
    source = metrics[1]["sources"]["tiny-adder"]
    assert source["tried"] == len(lines)
    assert source["right"] == sum(line["verdict"] == "right" for line in lines)
    assert metrics[1]["new_tokens"] == 0
    assert sample.main(["--run", "run", "--source", "tiny-adder", "--limit", "1"]) == 0
    assert "sample 0 of tiny-adder: " in capsys.readouterr().out


def test_best_of_shows_bars_and_a_pick(own_folder, judge, capsys):
    argv = ["--best-of", "3", "--reward", str(judge), "--temperature", "1", "12+34"]
    assert sample.main(argv) == 0
    out = capsys.readouterr().out
    assert out.count("<- the pick") == 1
    assert all(out.count(f"     {name}") >= 1 for name in ATTRIBUTES)
    assert sample.main([*argv, "--generators", str(SHIPPED)]) == 0
    assert "  tiny-adder" in capsys.readouterr().out
    assert sample.main(["--best-of", "3", "1+2"]) == 2
    assert "--best-of picks by a judge" in capsys.readouterr().err
    assert sample.main(["--model", str(SHIPPED), "--best-of", "2", "--reward", str(SHIPPED), "--reward-by",
                        "likelihood", "--max-new-tokens", "9", "1+2\n"]) == 0
    assert "likelihood" in capsys.readouterr().out


@pytest.mark.parametrize(("argv", "words"), [
    (["--best-of", "0", "1+1"], "--best-of is 0"), (["--questions", "a", "1+1"], "leave out the question"),
    (["--rollouts", "a", "--reward", "b"], "leave out --reward"),
    (["--questions", "a", "--rollouts", "b"], "give one of them alone"), (["--chat", "1+1"], "--chat asks a --model"),
    (["--source", "a", "--task", "arithmetic"], "--source lists"), (["--task", "nope", "1"], "unknown task 'nope'"),
    (["--rollouts", "a", "--model", str(SHIPPED)], "name a --task"),
    (["--task", "gsm8k", "1"], "task gsm8k needs --data"),
    (["--run", "r", "--task", "arithmetic"], "--run is asked as it was trained")])
def test_flags_of_sample_that_do_not_go_together(own_folder, capsys, argv, words):
    assert sample.main(argv) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_what_suits_no_selection_is_refused(tmp_path, judge):
    (tmp_path / "open.jsonl").write_text("".join(json.dumps({"question": f"Is {n} odd?"}) + "\n" for n in range(20)))
    open_ = {"task": "jsonl"}
    options = {"data": tmp_path / "open.jsonl", "grade": "none", "zero_shot": True}
    refused(lambda: make_plan(StarConfig(**open_), options), words=["has no answers to compare", "--select reward"])
    refused(lambda: make_plan(StarConfig(reward=str(judge), select="reward"), {}), words=["tasks without answers"])
    refused(lambda: make_plan(StarConfig(candidates="a.jsonl", select="correct+reward"), {}), words=["a.jsonl"],
            error=FileNotFoundError)
    steps = {"data": ROOT / "nowhere"}
    refused(lambda: make_plan(StarConfig(task="gsm8k", select="correct+steps"), steps), words=["nowhere"],
            error=FileNotFoundError)
