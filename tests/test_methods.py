"""What surrounds Algorithm 1: choosing by validation, stopping, conversations, a run that goes on."""

import contextlib
import copy
import json
import re

import pytest
from conftest import SHIPPED
from test_loop import Riddles, Scripted, answer, finished, trained_on

import checkpoints
from star.config import StarConfig
from star.loop import State, star
from star.lora import add_lora
from star.problem import Chunk, Finished, Phase, Problem, Shot
from star.run.folder import Run, read_lines
from star.sampler import Sampler
from star.select import choose_heldout
from star.tasks import load_task

pytestmark = pytest.mark.usefixtures("one_thread")


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
    part = choose_heldout(task.heldout, 9)
    assert {p.id for p in part} == set(*picked)
    assert part == sorted(part, key=task.heldout.index)
    assert {sum(p.group == group for p in part) for group in ("odd", "even")} == {4, 5}
    assert choose_heldout(task.heldout, None) == choose_heldout(task.heldout, 99) == task.heldout


def test_several_samples_of_held_out_problems():
    def script(stage, text):  # of four samples of an odd problem, one is right
        n = len(stage.asked.get((stage.phase.iteration, "pass at k"), []))
        odd = int(answer(text)) % 4 == 2
        return "=1" if stage.phase.name == "pass at k" and odd and n % 4 else always(stage, text)

    stage = Stage(script, eval_samples=4, temperature=0.6, iterations=0)
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
    between, shots = "\n", (Shot(Problem("example", "1+1", "2"), "=2\n"),)


def asked(text):
    """The answer to the last turn."""
    return str(2 * int(re.search(r"\+(\d+)\nt$", text)[1]))


@pytest.fixture
def spoken(tokenizer):
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat = Turns()
    return tokenizer


@pytest.mark.parametrize("few_shot_train", [False, True])
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
    shown = "h1+1\nt=2\n" if few_shot_train else ""
    texts = {tokenizer.decode(list(e.tokens[: e.n_prompt])): tokenizer.decode(list(e.tokens[e.n_prompt : -1]))
             for e in examples[0]}
    assert texts == {f"{shown}h{i}+{i}\nt": f"={2 * i}" for i in range(8)}
    assert all(e.tokens[-1] == 1 for e in examples[0])


def test_conversations_behind_the_base_only(spoken):
    """--few-shot-sample base: from M_1 on the question is the only turn."""
    stage = Stage(lambda stage, text: "=" + asked(text), Spoken(), spoken, few_shot_sample="base", iterations=2)
    assert all(text.startswith("h1+1\nt=2\n") for text in stage.asked[1, "generate"])
    assert sorted(stage.asked[2, "generate"]) == [f"h{i}+{i}\nt" for i in range(8)]


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
        run, state, given = Run.resume(folder)
    else:
        run, state, given = Run.create(folder, StarConfig(**SETTINGS), {}, {}), State(), []
    with contextlib.closing(run):
        return go(run, state, given, stop)


def go(run, state, given, stop):
    now, count = [], 0

    def script(text):
        i, phase = int(answer(text)) // 2, now[-1]
        solved = i % 8 < RIGHT[phase.iteration] if phase.name == "validate" else i % 3 or "hint" in text
        return f"{i}{phase.iteration}=" + (answer(text) if solved else "1"), "stop"

    sampler = Scripted(add_lora(checkpoints.load_model(SHIPPED), rank=2), checkpoints.load_tokenizer(SHIPPED), script)
    if state.iteration > 0:
        checkpoints.load_adapter(sampler.model, run.adapter(state.iteration))
    for event in star(sampler, sampler.tokenizer, Riddles(60), run.config, state, given):
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
    state = json.loads((folder / "state.json").read_text())
    assert (state["iteration"], state["finished"], state["best"]) == (5, True, 3)
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
