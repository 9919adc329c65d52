"""Fine-tuning on what was written, human rationales or answers: what it trains on, that it goes on, what is refused."""

import copy
import json
import shutil
from pathlib import Path

import pytest
from conftest import SHIPPED, refused
from test_loop import Riddles, Scripted, finished, trained_on

import checkpoints
import sample
import train
from star import lora
from star.config import StarConfig
from star.experiments import baseline
from star.loop import State, star
from star.lora import add_lora
from star.problem import Finished, Phase, Problem, Shot
from star.run import plan
from star.run.folder import Run, read_lines
from star.select import choose_problems
from star.tasks import load_task
from star.tasks.arithmetic import Arithmetic

SETTINGS = {"iterations": 1, "first_steps": 1, "problems": 8, "slots": 3, "batch_size": 4}


@pytest.fixture
def setup(tokenizer):
    """(sampler, tokenizer, task, config) of a model that says "=0" to everything."""

    def make(task, **settings):
        model = add_lora(checkpoints.load_model(SHIPPED), rank=2, targets=("q_proj",))
        return (Scripted(model, tokenizer, lambda text: ("=0", "stop")), tokenizer, task,
                StarConfig(**SETTINGS | settings))

    return make


def sums(learn, digits="1-2"):
    task = load_task("arithmetic", digits=digits)
    task.train, task.heldout = task.train[:80], task.heldout[:6]
    return baseline.as_learned(task, learn)


@pytest.mark.parametrize("learn", ["gold", "answers"])
def test_it_trains_once_on_what_was_written_and_samples_only_to_measure(setup, monkeypatch, tokenizer, learn):
    task, examples = sums(learn), trained_on(monkeypatch)
    sampler, *rest = setup(task, problems=60, validation=5, eval_samples=2)
    events = list(baseline.learn(sampler, *rest, State(), []))
    assert [(e.iteration, e.name) for e in events if isinstance(e, Phase)] == [
        (0, "validate"), (0, "evaluate"), (0, "pass at k"), (1, "train"), (1, "validate"), (1, "evaluate"),
        (1, "pass at k")]
    assert not any("hint" in text for text in sampler.asked)
    assert sampler.released == 1
    (learned,) = examples
    by_question = {task.question(p): p for p in task.train}
    asked = [tokenizer.decode(list(e.tokens[: e.n_prompt])) for e in learned]
    assert len(set(asked)) == len(asked) == 60
    for question, e in zip(asked, learned, strict=True):
        problem = by_question[question]
        said = tokenizer.decode(list(e.tokens[e.n_prompt : -1]))
        assert e.tokens[-1] == tokenizer.eos_ids[0]
        assert task.right(problem, said)
        assert said == (task.gold(problem) if learn == "gold" else "=" + problem.answer)
        assert (said.count("\n") > 0) == (learn == "gold")
    base, first = finished(events)
    assert (first["problems"], first["examples"], first["steps"]) == (60, 60, 1)
    assert {"accuracy", "interval", "said", "validation", "best", "pass_at"} <= base.keys() & first.keys()
    assert not {"kept", "new_tokens"} & first.keys()
    assert [e.done for e in events if isinstance(e, Finished)] == [False, True]


def test_it_trains_on_the_problems_of_stars_first_iteration(setup, monkeypatch, tokenizer):
    """And from the same adapters, for as many steps."""
    examples = trained_on(monkeypatch)
    drawn, reset, resets = [], lora.reset, []

    def spy(train, n, seed):
        drawn.append([p.id for p in choose_problems(train, n, seed)])
        return choose_problems(train, n, seed)

    monkeypatch.setattr(lora, "reset", lambda model, seed: resets.append(seed) or reset(model, seed))
    monkeypatch.setattr(baseline, "choose_problems", spy)
    monkeypatch.setattr("star.pool.choose_problems", lambda train, n, seed: spy(train, n, seed) if train else [])
    settings = {"problems": 30, "validation": 7, "seed": 4, "epochs": 2.0, "first_steps": 28}
    metrics = finished(baseline.learn(*setup(sums("gold"), **settings), State(), []))
    assert metrics[1]["steps"] == 15  # 30 examples, 4 a step
    sampler, *rest = setup(sums("gold"), **settings)
    sampler.script = lambda text: ("=" + str(eval(text.rstrip().rpartition("\n")[2])), "stop")
    list(star(sampler, *rest))
    assert drawn[0] == drawn[1]
    assert resets[1::2] == [resets[1]] * 2  # 0 are those of the fixture
    prompts = [{e.tokens[: e.n_prompt] for e in step} for step in examples]
    assert prompts[0] == prompts[1]


class Turns:
    """A template in the tiny adder's letters: h and t stand in front of what user and assistant say."""

    def render(self, turns):
        return "".join(f"{'h' if role == 'user' else 't'}{said}\n" for role, said in turns) + "t"


class Spoken(Riddles):
    shots, between = (Shot(Problem("shown", "1+1", "2"), "=2\n"),), "\n"

    def gold(self, problem):
        return f" ={problem.answer}\n"


@pytest.mark.parametrize(("few_shot", "plain", "turns"), [(False, "", ""), (True, "1+1\n=2\n\n", "h1+1\nt=2\n")])
def test_written_rationales_as_text_and_in_conversations(tokenizer, few_shot, plain, turns):
    """In a conversation without the space and line break around them: a turn's ends are the template's."""
    task, chatty = Spoken(), copy.copy(tokenizer)
    chatty.chat = Turns()
    for p in task.train:
        for known, said in ((tokenizer, f"{plain}{p.question}\n ={p.answer}\n"),
                            (chatty, f"{turns}h{p.question}\nt={p.answer}")):
            e = baseline.written(task, p, known, few_shot)
            assert tokenizer.decode(list(e.tokens[:-1])) == said
            assert tokenizer.decode(list(e.tokens[e.n_prompt : -1])).strip() == "=" + p.answer
            assert e.tokens[-1] == tokenizer.eos_ids[0]


# the command


ARGV = ["--model", str(SHIPPED), "--digits", "1-2", "--problems", "20", "--first-steps", "2", "--batch-size", "4",
        "--heldout-problems", "20", "--slots", "2", "--iterations", "5"]


def contents(folder):
    """Of all files but those that say how long it took, and by which command."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name not in ("timings.jsonl", "config.json"))
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """The command's runs as they go if nobody stops them."""
    folder = tmp_path_factory.mktemp("runs")
    for learn in ("gold", "answers"):
        assert baseline.main([*ARGV, "--learn", learn, "--out", str(folder / learn)]) == 0
    return folder


def test_a_run_in_a_folder(straight, tmp_path, capsys):
    metrics = {learn: read_lines(straight / learn / "metrics.jsonl") for learn in ("gold", "answers")}
    assert all([m["iteration"] for m in lines] == [0, 1] for lines in metrics.values())
    assert metrics["gold"][1]["target_tokens"] > metrics["answers"][1]["target_tokens"]
    assert metrics["gold"][0] == metrics["answers"][0]  # one base, the same problems
    run = Run.open(straight / "gold")
    assert (run.iteration, run.finished, run.config.iterations) == (1, True, 1)
    assert (run.learns, Run.open(straight / "answers").learns) == ("gold", "answers")
    assert run.adapter(1).is_dir()
    again = shutil.copytree(straight / "gold", tmp_path / "again")
    assert baseline.main(["--resume", str(again)]) == 2
    assert capsys.readouterr().err.endswith(f"error: {again} has finished\n")
    assert train.main(["--resume", str(again)]) == 2
    assert "is a baseline: go on with python -m star.experiments.baseline" in capsys.readouterr().err
    assert read_lines(again / "metrics.jsonl") == metrics["gold"]


@pytest.mark.parametrize(("learn", "event"), [("gold", 18), ("answers", 22), ("gold", 25), ("gold", 46)])
def test_a_stopped_run_goes_on_byte_equal(straight, tmp_path, monkeypatch, capsys, learn, event):
    """In the base's evaluation, after it, in training, in the last evaluation."""
    with monkeypatch.context() as patch:
        record, count = Run.record, iter(range(event, -1, -1))

        def stop(*args):
            if next(count) == 0:
                raise KeyboardInterrupt
            record(*args)

        patch.setattr(Run, "record", stop)
        assert baseline.main([*ARGV, "--learn", learn, "--out", str(tmp_path / "run")]) == 130
    assert json.loads((tmp_path / "run" / "state.json").read_text())["finished"] is False
    assert capsys.readouterr().err.endswith(f"; go on with --resume {tmp_path / 'run'}\n")
    assert baseline.main(["--resume", str(tmp_path / "run")]) == 0
    assert contents(tmp_path / "run") == contents(straight / learn)


@pytest.mark.parametrize(("argv", "words"), [
    ([], "--learn"), (["--learn", "both"], "'both'"),
    (["--learn", "gold", "--digits", "0"], "--digits is '0'"), (["--learn", "gold", "--shots", "1"], "--shots"),
    (["--learn", "gold", "--task", "jsonl", "--data", "sums.jsonl", "--zero-shot"],
     "--learn gold needs human rationales, and task jsonl has none here: name their field by --fields rationale=..."),
    (["--learn", "gold", "--candidates", "a.jsonl"], "learns from the data alone: leave out --candidates"),
    (["--resume", "star"], "star is a run of train.py: go on with that"),
    (["--learn", "gold", "--resume", "nowhere"], "nowhere is no run"),
    (["--learn", "gold", "--resume", "run", "--lr", "1"], "--resume keeps the run's settings"),
    (["--learn", "gold", "--resume", "run", "--digits", "1"], "--resume keeps the run's settings"),
])
def test_what_is_refused(own_folder, capsys, argv, words):
    Path("sums.jsonl").write_text("".join(json.dumps({"question": f"{i}+{i}", "answer": str(2 * i)}) + "\n"
                                          for i in range(20)))
    Run.create(Path("run"), StarConfig(iterations=0), {"digits": "1"}, {}, "gold")
    Run.create(Path("star"), StarConfig(iterations=0), {"digits": "1"}, {})
    assert baseline.main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert words in err
    assert not Path("runs").exists()


@pytest.mark.parametrize(("learn", "words"), [
    ("gold", "--learn gold needs human rationales, and task riddles has none here"),
    ("answers", "Riddles has no form without rationales: leave out --learn answers")])
def test_a_task_without_what_is_to_be_learned_is_refused(own_folder, capsys, monkeypatch, learn, words):
    task = Riddles()
    task.name = "riddles"
    monkeypatch.setattr(plan, "load_task", lambda *_, **__: task)
    assert baseline.main(["--learn", learn]) == 2
    assert capsys.readouterr().err == f"error: {words}\n"
    assert not Path("runs").exists()


def test_rationales_of_a_file_are_learned(own_folder):
    """A field that --fields names; all problems need one, those held out too are only measured on."""
    Path("sums.jsonl").write_text("".join(
        json.dumps({"question": f"{i}+{i}", "answer": str(2 * i), "why": f"={i}+{i}=\n"}) + "\n" for i in range(20)))
    task = load_task("jsonl", data=Path("sums.jsonl"), zero_shot=True, fields="rationale=why")
    assert baseline.as_learned(task, "gold") is task
    assert {task.gold(p) for p in task.train} == {
        f" ={p.question}=. The answer is {p.answer}." for p in task.train}
    task.stop = ("+17=",)  # sampling would end there
    refused(baseline.as_learned, task, "gold", words=("--learn gold: the rationale of problem ", "holds '+17='"))
    bare = baseline.as_learned(task, "answers")
    assert {bare.gold(p) for p in bare.train} == {f" The answer is {p.answer}." for p in task.train}
    assert task.gold(task.train[0]) != bare.gold(task.train[0])


def test_check_says_what_it_would_stand_on(own_folder, capsys):
    assert baseline.main([*ARGV, "--learn", "gold", "--check"]) == 0
    out = capsys.readouterr().out
    assert "cost    at most 40 rationales x 35 new tokens = 1,400; 2 steps x 4 examples\n" in out
    assert not Path("runs").exists()


def test_a_run_that_learned_answers_is_asked_for_answers(straight, monkeypatch, capsys):
    asked, view = [], Arithmetic.answers_only
    monkeypatch.setattr(Arithmetic, "answers_only", lambda task: asked.append(1) or view(task))
    for learn, times in (("gold", 0), ("answers", 1)):
        assert sample.main(["12+34", "--run", str(straight / learn)]) == 0
        assert len(asked) == times


def test_a_base_alone_is_measured(own_folder, capsys):
    assert baseline.main([*ARGV, "--learn", "answers", "--iterations", "0", "--out", "run"]) == 0
    assert [m["iteration"] for m in read_lines(Path("run/metrics.jsonl"))] == [0]
    state = json.loads(Path("run/state.json").read_text())
    assert (state["iteration"], state["finished"]) == (0, True)
