"""What surrounds Algorithm 1: choosing by validation, stopping, baselines, conversations, presets, and what is said."""

import copy
import json
import re
from pathlib import Path

import pytest
from conftest import SHIPPED
from test_loop import Riddles, Scripted, answer, finished, trained_on

import checkpoints
import train
from star.config import PRESETS, StarConfig
from star.history import clip
from star.loop import Chunk, Finished, Phase, State, chosen, star
from star.lora import add_lora
from star.run import Run, read_lines
from star.sampler import Sampler
from star.tasks import load_task


class Recorder(Scripted):
    """Also keeps the options of every call."""

    options: list[dict]

    def stream(self, prompts, **options):
        self.__dict__.setdefault("options", []).append(options)
        yield from super().stream(prompts, **options)


class Stage:
    """A run with a scripted model. `script(stage, text)` may look at the phase, and at how many texts came before in
    it; `events` and `asked` (phase -> texts) are kept."""

    def __init__(self, script, task=None, tokenizer=None, **settings):
        tokenizer = tokenizer or checkpoints.load_tokenizer(SHIPPED)
        model = add_lora(checkpoints.load_model(SHIPPED), rank=2, targets=("q_proj",))
        self.config = StarConfig(
            **{"iterations": 1, "first_steps": 1, "problems": 8, "slots": 3, "batch_size": 4} | settings)
        self.task, self.events, self.asked = task or Riddles(), [], {}
        self.sampler = Recorder(model, tokenizer, lambda text: self._say(script, text))
        for event in star(self.sampler, tokenizer, self.task, self.config):
            if isinstance(event, Phase):
                self.phase = event
            self.events.append(event)
        self.metrics = finished(self.events)
        self.made = [g for e in self.events if isinstance(e, Chunk) for g in e.generations]

    def _say(self, script, text):
        texts = self.asked.setdefault((self.phase.iteration, self.phase.name), [])
        said = script(self, text)
        texts.append(text)
        return said if isinstance(said, tuple) else (said, "stop")

    def problems(self, phase):
        """Ids of the problems of a phase, over all iterations."""
        return {g.problem for g in self.made if g.phase == phase}


def always(stage, text):
    return "=" + answer(text)


def scores(*right):
    """A script that solves so many validation problems in iteration 0, 1, ..., and all others."""

    def script(stage, text):
        if stage.phase.name != "validate":
            return always(stage, text)
        before = len(stage.asked.get((stage.phase.iteration, "validate"), []))
        return always(stage, text) if before < right[stage.phase.iteration] else "=1"

    return script


def phases(stage, name):
    """The iterations that have this phase."""
    return [e.iteration for e in stage.events if isinstance(e, Phase) and e.name == name]


# validation


def test_validation_problems_are_never_trained_on(monkeypatch, tokenizer):
    """They are taken from the training set, evenly over groups, and are the same for every seed."""
    examples, parts = trained_on(monkeypatch), set()
    for seed in (0, 1):
        task = Riddles(40)
        stage = Stage(always, task, validation=10, problems=1000, iterations=2, seed=seed)
        part = stage.problems("validate")
        parts.add(frozenset(part))
        assert len(part) == 10
        assert part <= {p.id for p in task.train}
        assert sum(int(i) % 2 for i in part) == 5
        assert stage.problems("generate") == {p.id for p in task.train} - part
        assert stage.problems("evaluate") == {p.id for p in task.heldout}
        assert phases(stage, "validate") == [0, 1, 2]
        assert stage.metrics[1]["problems"] == stage.metrics[1]["examples"] == 26
        assert stage.metrics[0]["validation"] == {"odd": 1.0, "even": 1.0, "mean": 1.0}
        assert set(stage.metrics[0]["validation_interval"]) == {"odd", "even", "mean"}
        learned = {tokenizer.decode(list(e.tokens[: e.n_prompt])) for step in examples for e in step}
        assert learned == {task.question(p) for p in task.train if p.id not in part}
    assert len(parts) == 1
    assert not any("validation" in m or "best" in m for m in Stage(always).metrics)


def test_the_best_is_the_first_that_none_beats():
    stage = Stage(scores(3, 5, 5, 6, 4), Riddles(20), validation=8, iterations=4)
    assert [round(8 * m["validation"]["mean"]) for m in stage.metrics] == [3, 5, 5, 6, 4]
    assert [m["best"] for m in stage.metrics] == [0, 1, 1, 3, 3]
    assert State().best is None
    assert State(2, {0: 0.5, 1: 0.5, 2: 0.4}).best == 0
    assert State(2, {2: 0.5, 1: 0.5, 0: 0.4}).best == 1  # whatever order they came in


@pytest.mark.parametrize(("patience", "last"), [(1, 2), (2, 5), (3, 6), (None, 7)])
def test_patience_ends_a_run(patience, last):
    """Validation 3, 5, 5, 6, 5, 2, 6, 6: the best is 1, then 3; a tie is not better."""
    stage = Stage(scores(3, 5, 5, 6, 5, 2, 6, 6), Riddles(20), validation=8, iterations=7, patience=patience)
    assert stage.metrics[-1]["iteration"] == last
    assert [e.done for e in stage.events if isinstance(e, Finished)] == [False] * last + [True]


def test_when_a_run_is_done():
    patient = StarConfig(iterations=5, validation=8, patience=2)
    assert not State(2, {0: 0.1, 1: 0.2, 2: 0.1}).done(patient)
    assert State(3, {0: 0.1, 1: 0.2, 2: 0.1, 3: 0.2}).done(patient)
    assert not State(4, {0: 0.1, 1: 0.2, 2: 0.1, 3: 0.3, 4: 0.1}).done(patient)
    assert State(5, {4: 0.1, 5: 0.2}).done(patient)
    assert not State().done(patient)
    assert not State(4).done(StarConfig(iterations=5))
    assert State(0).done(StarConfig(iterations=0))


@pytest.mark.parametrize(("when", "iterations"), [("each", [0, 1, 2, 3, 4]), ("best", [0, 1, 3])])
def test_held_out_problems_wait_for_a_better_validation(when, iterations):
    stage = Stage(scores(3, 5, 5, 6, 2), Riddles(20), validation=8, iterations=4, heldout_when=when, eval_samples=1)
    assert phases(stage, "evaluate") == phases(stage, "pass at k") == iterations
    assert [m["iteration"] for m in stage.metrics if "accuracy" in m] == iterations
    assert all("interval" in m and "said" in m for m in stage.metrics if "accuracy" in m)


def test_held_out_problems_are_the_same_in_every_run():
    task = Riddles(60)
    task.train, task.heldout = task.train[:8], task.train[8:]
    picked = {tuple(sorted(Stage(always, task, heldout_problems=9, seed=s).problems("evaluate"))) for s in (0, 1, 2)}
    assert len(picked) == 1
    part = chosen(task.heldout, 9)
    assert {p.id for p in part} == set(*picked)
    assert part == sorted(part, key=task.heldout.index)
    assert {sum(p.group == group for p in part) for group in ("odd", "even")} == {4, 5}
    assert chosen(task.heldout, None) == chosen(task.heldout, 99) == task.heldout


def test_several_samples_of_held_out_problems():
    def script(stage, text):  # of four samples of an odd problem, one is right
        n = len(stage.asked.get((stage.phase.iteration, "pass at k"), []))
        odd = int(answer(text)) % 4 == 2
        return "=1" if stage.phase.name == "pass at k" and odd and n % 4 else always(stage, text)

    stage = Stage(script, eval_samples=4, eval_temperature=0.6, iterations=0)
    (base,) = stage.metrics
    assert base["accuracy"]["mean"] == 1
    assert base["pass_at"] == {"1": (1 + 1 / 4) / 2, "2": (1 + 1 / 2) / 2, "4": 1.0}
    assert base["maj_at"] == {"1": (1 + 1 / 4) / 2, "2": (1 + 1 / 4) / 2, "4": 0.5}
    assert all(low < base["maj_at"][k] < high for k, (low, high) in base["maj_at_interval"].items())
    assert [(e.name, e.total) for e in stage.events if isinstance(e, Phase)] == [("evaluate", 4), ("pass at k", 16)]
    assert {o["temperature"] for o in stage.sampler.options} == {0.0, 0.6}
    assert {o["temperature"] for o in stage.sampler.options if len(o["seeds"]) > 4} == {0.6}
    assert all((o["top_k"], o["top_p"]) == (0, 1.0) for o in stage.sampler.options)
    seeds = [s for o in stage.sampler.options for s in o["seeds"]]
    assert len(set(seeds)) == len(seeds) == 20
    assert not {"pass_at", "maj_at"} & set(Stage(always, iterations=0).metrics[0])


# baselines


@pytest.mark.parametrize("learn", ["gold", "answers"])
def test_baselines_train_on_what_was_written_and_sample_nothing(monkeypatch, tokenizer, learn):
    task, examples = load_task("arithmetic", digits="1-2"), trained_on(monkeypatch)
    task.train, task.heldout = task.train[:80], task.heldout[:6]
    task = task.answers_only() if learn == "answers" else task
    stage = Stage(lambda stage, text: "=0", task, learn=learn, problems=60, iterations=2, validation=5)
    assert {e.name for e in stage.events if isinstance(e, Phase)} == {"validate", "evaluate", "train"}
    assert not any("hint" in text for texts in stage.asked.values() for text in texts)
    by_question = {task.question(p): p for p in task.train}
    for step in examples:
        asked = [tokenizer.decode(list(e.tokens[: e.n_prompt])) for e in step]
        assert len(set(asked)) == len(asked) == 60
        for question, e in zip(asked, step, strict=True):
            problem = by_question[question]
            said = tokenizer.decode(list(e.tokens[e.n_prompt : -1]))
            assert e.tokens[-1] == tokenizer.eos_ids[0]
            assert task.right(problem, said)
            assert said == (task.gold(problem) if learn == "gold" else "=" + problem.answer)
            assert (said.count("\n") > 0) == (learn == "gold")
    assert {e.tokens for e in examples[0]} != {e.tokens for e in examples[1]}  # drawn anew
    assert [m["problems"] for m in stage.metrics[1:]] == [m["examples"] for m in stage.metrics[1:]] == [60, 60]
    assert not any("kept" in m or "new_tokens" in m for m in stage.metrics)


def test_baselines_start_from_the_base_each_time(monkeypatch):
    task, examples = load_task("arithmetic", digits="1"), trained_on(monkeypatch)
    stage = Stage(lambda stage, text: "=0", task, learn="gold", problems=10, epochs=2.0, first_steps=28, iterations=2)
    assert [m["steps"] for m in stage.metrics[1:]] == [5, 5]  # 10 examples, 4 a step
    alone = Stage(lambda stage, text: "=0", task, learn="gold", problems=10, epochs=2.0, first_steps=28)
    assert alone.metrics == stage.metrics[:2]
    assert examples[2] == examples[0]


# stop strings and conversations


def test_stop_strings_of_a_task_reach_the_sampler():
    task = Riddles()
    task.stop = ("\n\n", "Q:")
    stage = Stage(lambda stage, text: always(stage, text) if "hint" in text else "=1", task, validation=2,
                  eval_samples=1)
    assert len(stage.sampler.options) >= 7
    assert all(o["stop"] == task.stop for o in stage.sampler.options)


def test_what_stands_behind_a_stop_string_is_not_learned(monkeypatch, tokenizer):
    """The tiny adder writes a line a column; stopped at the second line break, the first two are left."""
    task, examples = load_task("arithmetic", digits="2"), trained_on(monkeypatch)
    task.train, task.heldout, task.stop = task.train[:12], task.heldout[:3], ("\n=",)
    monkeypatch.setattr(task, "extract", lambda text: "=" if text.count("\n") == 1 else None)
    monkeypatch.setattr(task, "right", lambda problem, text: True)
    model = add_lora(checkpoints.load_model(SHIPPED), rank=2)
    config = StarConfig(problems=12, iterations=1, first_steps=1)
    events = list(star(Sampler(model, 4, 128, tokenizer), tokenizer, task, config))
    assert {g.finish for e in events if isinstance(e, Chunk) for g in e.generations} == {"stop"}
    assert len(examples[0]) == 12
    for e in examples[0]:
        text = tokenizer.decode(list(e.tokens[:-1]))
        assert re.fullmatch(r"\d\d\+\d\d\n\d\+\d\+C0=\d\d\n\d\+\d\+C\d=\d\d", text), text
        assert e.tokens[-1] == 1


class Turns:
    """A template in the tiny adder's letters: h and t stand in front of what user and assistant say."""

    def render(self, turns):
        assert turns[-1][0] == "user"
        return "".join(f"{'h' if role == 'user' else 't'}{said}\n" for role, said in turns) + "t"


class Spoken(Riddles):
    prefix, hint_prefix = "1+1\n=2\n\n", "hint 2\n1+1\n=2\n\n"

    def turns(self, hinted=False):
        return [("hint 2\n1+1" if hinted else "1+1", "=2")]

    def gold(self, problem):
        return f" ={problem.answer}\n"


def asked(text):
    """The answer to the last turn."""
    return str(2 * int(re.search(r"\+(\d+)\nt$", text)[1]))


@pytest.fixture
def spoken(tokenizer):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat = Turns()
    return tokenizer


@pytest.mark.parametrize("few_shot_train", ["off", "on"])
def test_conversations(monkeypatch, tokenizer, spoken, few_shot_train):
    """Few-shot examples are turns, hinted ones behind their hints; what is learned follows the plain turns."""

    def script(stage, text):
        return "=" + asked(text) if stage.phase.name == "rationalize" else "=1"

    examples = trained_on(monkeypatch)
    stage = Stage(script, Spoken(), spoken, few_shot_train=few_shot_train)
    hinted = {f"hhint 2\n1+1\nt=2\nhhint {2 * i}\n{i}+{i}\nt" for i in range(8)}
    assert set(stage.asked[1, "generate"]) == {f"h1+1\nt=2\nh{i}+{i}\nt" for i in range(8)}
    assert set(stage.asked[1, "rationalize"]) == hinted
    assert set(stage.asked[1, "evaluate"]) == {f"h1+1\nt=2\nh{i}+{i}\nt" for i in range(8, 12)}
    shown = "h1+1\nt=2\n" if few_shot_train == "on" else ""
    texts = {tokenizer.decode(list(e.tokens[: e.n_prompt])): tokenizer.decode(list(e.tokens[e.n_prompt : -1]))
             for e in examples[0]}
    assert texts == {f"{shown}h{i}+{i}\nt": f"={2 * i}" for i in range(8)}
    assert all(e.tokens[-1] == 1 for e in examples[0])


def test_conversations_behind_the_base_only(spoken):
    """--few-shot-sample base: from M_1 on the question is the only turn."""
    stage = Stage(lambda stage, text: "=" + asked(text), Spoken(), spoken, few_shot_sample="base", iterations=2)
    assert all(text.startswith("h1+1\nt=2\n") for text in stage.asked[1, "generate"])
    assert sorted(stage.asked[2, "generate"]) == [f"h{i}+{i}\nt" for i in range(8)]


def test_written_rationales_in_conversations(monkeypatch, tokenizer, spoken):
    """Without the space and line break that plain text has around them: a turn's ends are the template's."""
    examples = trained_on(monkeypatch)
    for few_shot_train, shown in (("off", ""), ("on", "h1+1\nt=2\n")):
        Stage(lambda *_: "=1", Spoken(), spoken, learn="gold", few_shot_train=few_shot_train)
        assert sorted(tokenizer.decode(list(e.tokens)) for e in examples[-1]) == [
            f"{shown}h{i}+{i}\nt={2 * i}" for i in range(8)]
    Stage(lambda *_: "=1", Spoken(), learn="gold", few_shot_train="on")
    assert sorted(tokenizer.decode(list(e.tokens)) for e in examples[-1]) == [
        f"1+1\n=2\n\n{i}+{i}\n ={2 * i}\n" for i in range(8)]


# a run that stops and goes on


SETTINGS = {
    "problems": 14, "iterations": 9, "first_steps": 2, "batch_size": 8, "slots": 3, "rank": 2, "validation": 16,
    "patience": 2, "heldout_when": "best", "eval_samples": 2, "heldout_problems": 3,
}  # fmt: skip
RIGHT = [3, 5, 5, 6, 2, 2]  # of 8 validation problems, in iteration 0, 1, ...


class Killed(Exception):
    pass


def play(folder, resume, stop=None):
    """What train.py does, with a scripted model; before the event of number `stop` is recorded, it is killed."""
    if resume:
        run, state, made = Run.resume(folder)
    else:
        run, state, made = Run.create(folder, StarConfig(**SETTINGS), {}), State(), []
    now, count = [], 0

    def script(text):
        i, phase = int(answer(text)) // 2, now[-1]
        solved = i % 8 < RIGHT[phase.iteration] if phase.name == "validate" else i % 3 or "hint" in text
        return f"{i}{phase.iteration}=" + (answer(text) if solved else "1"), "stop"

    sampler = Scripted(add_lora(checkpoints.load_model(SHIPPED), rank=2), checkpoints.load_tokenizer(SHIPPED), script)
    if state.iteration > 0:
        checkpoints.load_adapter(sampler.model, run.adapter(state.iteration))
    for event in star(sampler, sampler.tokenizer, Riddles(60), run.config, state, made):
        if count == stop:
            raise Killed
        now += [event] if isinstance(event, Phase) else []
        run.record(event, sampler.model)
        count += 1
    return count


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    return folder, play(folder, resume=False)


def contents(folder):
    """Of all files but the one that says how long it took."""
    files = (p for p in folder.rglob("*") if p.is_file() and p.name != "timings.jsonl")
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


@pytest.mark.parametrize("share", [0.02, 0.1, 0.25, 0.35, 0.5, 0.6, 0.75, 0.9, 0.999])
def test_a_run_with_validation_resumes_byte_equal(straight, tmp_path, share):
    folder, events = straight
    again = tmp_path / "again"
    with pytest.raises(Killed):
        play(again, resume=False, stop=int(share * events))
    play(again, resume=True)
    assert contents(again) == contents(folder)


def test_the_state_of_a_run_says_which_is_best(straight, tmp_path):
    folder, _ = straight
    assert json.loads((folder / "state.json").read_text()) == {"iteration": 5, "finished": True, "best": 3}
    metrics = read_lines(folder / "metrics.jsonl")
    assert [m["iteration"] for m in metrics if "accuracy" in m] == [0, 1, 3]
    resumed = Run.resume(folder)[1]
    assert resumed == State(5, {n: m["validation"]["mean"] for n, m in enumerate(metrics)})
    assert resumed.best == 3
    with pytest.raises(Killed):
        play(tmp_path / "run", resume=False, stop=200)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["finished"] is False
    assert state["best"] == [0, 1, 1, 3, 3][state["iteration"]]


# presets and flags


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_with_flags_beside_them(name):
    StarConfig(**PRESETS[name])
    for beside in ([], ["--learn", "gold"], ["--learn", "answers"], ["--epochs", "2"], ["--first-steps", "7"],
                   ["--growth", "1.5"], ["--temperature", "0"], ["--hint", "failure"], ["--iterations", "0"],
                   ["--heldout-problems", "5", "--seed", "3", "--chat"]):
        given, flags = train.read_flags(["--preset", name, *beside])
        assert flags.preset == name
        StarConfig(**given)
    given, _ = train.read_flags(["--preset", name, "--iterations", "3", "--batch-size", "5"])
    assert given == PRESETS[name] | {"iterations": 3, "batch_size": 5}


def test_flags_go_before_a_preset():
    assert train.preset("modern", {"first_steps": 9}) == {
        k: v for k, v in PRESETS["modern"].items() if k != "epochs"} | {"first_steps": 9}
    assert train.preset("paper", {"epochs": 2.0}) == {
        k: v for k, v in PRESETS["paper"].items() if k not in ("first_steps", "growth")} | {"epochs": 2.0}
    assert train.preset("modern", {"samples": 9, "temperature": 0.3})["samples"] == 9
    gold = StarConfig(**train.preset("modern", {"learn": "gold"}))
    assert (gold.samples, gold.temperature, gold.cap, gold.validation) == (1, 0.0, None, 200)
    greedy = StarConfig(**train.preset("modern", {"temperature": 0.0}))
    assert (greedy.samples, greedy.temperature, greedy.cap) == (1, 0.0, None)
    assert train.preset(None, {"seed": 3}) == {"seed": 3}
    assert {"samples", "temperature", "cap", "epochs"} < set(PRESETS["modern"])  # the tables themselves are unchanged


def test_switches_and_what_is_no_setting():
    assert train.read_flags(["--chat", "--zero-shot"])[0] == {"chat": True, "zero_shot": True}
    given, flags = train.read_flags([])
    assert given == {}
    assert (flags.out, flags.resume, flags.check, flags.preset, flags.show, flags.price_per_hour) == (
        None, None, False, None, 3, None)
    assert train.read_flags(["--show", "0", "--price-per-hour", "2.5"])[1].price_per_hour == 2.5
    for argv, words in ((["--chat", "yes"], "yes"), (["--preset", "best"], "--preset"),
                        (["--preset", "paper", "--resume", "x"], "leave out --preset"), (["--show", "x"], "--show")):
        with pytest.raises(ValueError, match=words):
            train.read_flags(argv)


# the command


SMALL = ["--model", str(SHIPPED), "--digits", "3", "--problems", "40", "--first-steps", "2", "--slots", "32"]


def test_a_run_says_what_it_did_and_cost(own_folder, capsys):
    argv = [*SMALL, "--iterations", "3", "--validation", "50", "--patience", "1", "--heldout-when", "best",
            "--eval-samples", "2", "--heldout-problems", "30", "--price-per-hour", "3", "--lr", "0.1"]
    assert train.main(argv) == 0
    out = capsys.readouterr().out
    run = Path("runs/arithmetic-001")
    metrics, state = read_lines(run / "metrics.jsonl"), json.loads((run / "state.json").read_text())
    assert state["best"] == 0  # what such a learning rate leaves cannot add
    assert state["iteration"] == 1
    assert state["finished"] is True
    base = metrics[0]
    low, high = base["interval"]["mean"]
    share = f"{base['accuracy']['mean']:.1%}"
    assert (f"\nresult  iteration 0 (best on validation): {share} of the held-out problems, 95 % interval {low:.1%} to "
            f"{high:.1%}; the base {share}\n") in out
    for name, key in (("pass", "pass_at"), ("maj", "maj_at")):
        shares = ", ".join(f"{base[key][k]:.1%} @{k}" for k in ("1", "2"))
        assert f"\n{name:7} {shares}\n" in out
    (timings, after) = read_lines(run / "timings.jsonl")
    tokens = [timings["tokens"][kind] + after["tokens"][kind] for kind in ("sampled", "trained")]
    sampled = [r for i in (0, 1) for r in read_lines(run / f"samples/iter-{i:03d}.jsonl")]
    assert tokens == [sum(len(r["tokens"]) for r in sampled), metrics[1]["trained_tokens"]]
    spent = re.search(r"^spent   0\.00\d device-hours; ([\d,]+) tokens sampled, ([\d,]+) trained on; "
                      r"0\.0\d at 3 an hour$", out, re.M)
    assert spent
    assert list(spent.groups()) == [f"{n:,}" for n in tokens]
    hours = sum(sum(t["seconds"].values()) for t in (timings, after)) / 3600
    dear = train.summary(Run(run, StarConfig()), 36_000.5)
    assert dear[-1].endswith(f"; {hours * 36_000.5:.2f} at 36000.5 an hour")
    assert "paper's remark" not in out
    first = metrics[1]
    assert re.search(rf"^ +{first['solved']} of 40 problems solved \({first['solved'] / 40:.1%}\), "
                     rf"{first['rationalized_problems']} of them only with the hint; ", out, re.M)
    shown = re.findall(r"^ {6}(kept|rationalized|wrong|unparsed|length|leak|\w+, hinted) +(\d+\+\d+): (.*)$", out, re.M)
    assert len(shown) == len({kind for kind, _, _ in shown}) == 3  # of each kind one, where there are as many
    said = {(r["problem"], clip(" / ".join(r["text"].strip().split("\n")), 120)) for r in sampled}
    assert {(problem, text) for _, problem, text in shown} <= said
    assert shown[0][0] == "kept"

    assert train.main(["--resume", str(run)]) == 2
    assert "has finished its 1 iterations, out of --patience; to go on, start a run" in capsys.readouterr().err


def test_without_samples_and_price(own_folder, capsys):
    assert train.main([*SMALL, "--iterations", "1", "--heldout-problems", "20", "--show", "0"]) == 0
    out = capsys.readouterr().out
    assert "problems solved" not in out
    assert re.search(r"^result  iteration 1 \(the last\): ", out, re.M)
    assert re.search(r"^spent   .* trained on$", out, re.M)


def test_a_base_that_solves_nothing_is_told_the_papers_remark(own_folder, capsys):
    weak = ["--model", str(SHIPPED), "--digits", "9", "--heldout-problems", "12", "--iterations", "0"]
    assert train.main(weak) == 0
    out = capsys.readouterr().out
    assert ("\nnote    the base solves 0.0% of the held-out problems: not surely more than chance. The paper's remark "
            "(section 6): STaR starts only where few-shot accuracy is above chance") in out
    gold = ["--iterations", "1", "--learn", "gold", "--problems", "8", "--first-steps", "1"]
    assert train.main([*weak[:-2], *gold]) == 0
    assert "paper's remark" not in capsys.readouterr().out


def test_chance_is_what_guessing_gives(capsys):
    task = Riddles()
    task.chance = 0.2
    for low, told in ((0.19, True), (0.2, True), (0.21, False)):
        train.warn_if_weak({"interval": {"mean": [low, 1]}, "accuracy": {"mean": 0.3}}, task)
        assert ("solves 30.0% of the held-out problems (20.0% by guessing)" in capsys.readouterr().out) == told
    train.warn_if_weak({}, task)
    assert capsys.readouterr().out == ""


def test_what_a_task_cannot_give_is_refused(own_folder, capsys, monkeypatch):
    task = Riddles()
    monkeypatch.setattr(train, "load_task", lambda *_, **__: task)
    for argv, words in ((["--learn", "gold"], "needs human rationales"), (["--learn", "answers"], "--learn answers"),
                        (["--validation", "8"], "--validation is 8, but there are only 8 training problems"),
                        (["--few-shot-train", "on"], "--few-shot-train on is given"), (["--chat"], "leave out --chat")):
        assert train.main(["--model", str(SHIPPED), *argv]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert words in err
        assert err.count("\n") == 1
    assert not Path("runs").exists()
