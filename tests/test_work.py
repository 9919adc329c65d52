"""The work that is said before a run against what a run then does, and how long the rest will take."""

import pytest
from conftest import SHIPPED
from test_loop import Riddles, Scripted, answer, finished

import checkpoints
from star.config import StarConfig
from star.loop import star
from star.lora import add_lora
from star.problem import Chunk
from star.run.flags import read_preset
from star.run.work import Forecast, Work, duration

pytestmark = pytest.mark.usefixtures("one_thread")


def played(right, **settings):
    """(Work as foretold, rationales sampled and steps taken by iteration) of a run with a scripted model."""
    config = StarConfig(**{"iterations": 2, "problems": 10, "batch_size": 4, "temperature": 1.0} | settings)
    calls, task = [], Riddles(30)

    def script(text):  # no two rationales are equal
        calls.append(text)
        return f"{len(calls)}=" + (answer(text) if right(text) else "1"), "stop"

    runner = Scripted(add_lora(checkpoints.load_model(SHIPPED), rank=2, targets=("q_proj",)),
                      checkpoints.load_tokenizer(SHIPPED), script)
    events = list(star(runner, runner.tokenizer, task, config))
    made = [g.iteration for e in events if isinstance(e, Chunk) for g in e.generations]
    work = Work.of(config, len(task.train), len(task.heldout))
    return work, [made.count(n) for n in range(config.iterations + 1)], [m.get("steps", 0) for m in finished(events)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"first_steps": 3, "growth": 1.5},
        {"epochs": 1.5},
        {"epochs": 1.0, "samples": 2, "hint_samples": 5},
        {"epochs": 1.0, "samples": 2, "hint_samples": 5, "max_per_problem": 3},
        {"epochs": 1.0, "keep": "all", "problems": 26},
        {"epochs": 1.0, "keep": "all", "problems": 26, "samples": 3, "max_per_problem": 4},
        {"epochs": 1.0, "problems": 1000, "validation": 7, "eval_samples": 2, "heldout_problems": 3},
        {"heldout_problems": 1000, "validation": 5},
    ],
)
def test_a_run_that_needs_all_hints_does_the_work_foretold(settings):
    work, sampled, steps = played(lambda text: "hint" in text, **settings)
    assert sampled == work.sampled
    assert steps == work.steps


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 2.0, "samples": 3},
        {"epochs": 2.0, "samples": 3, "max_per_problem": 2},
        {"epochs": 1.0, "samples": 2, "keep": "all", "max_per_problem": 3},
        {"wanted": 4},
        {"validation": 5, "heldout_when": "best", "patience": 1},
        {"iterations": 0},
    ],
)
def test_no_run_does_more_than_foretold(settings):
    work, sampled, steps = played(lambda text: "hint" not in text, **settings)
    assert sampled[0] == work.sampled[0]
    for done, foretold in ((sampled, work.sampled), (steps, work.steps)):
        assert all(a <= b for a, b in zip(done, foretold, strict=False))


def test_a_run_without_hints_does_the_work_foretold():
    work, sampled, steps = played(lambda text: True, rationalize=False, epochs=2.0, samples=3)
    assert (sampled, steps) == (work.sampled, work.steps)


def test_work_of_the_baselines_and_presets():
    once = StarConfig(epochs=1.0, batch_size=8, iterations=1)
    assert Work.of(once, 100, 20, generates=False) == Work([20, 20], [0, 13])
    paper = Work.of(StarConfig(**read_preset("paper")[1]), 7473, 1319)
    assert paper.steps[:6] == [0, 40, 48, 57, 69, 82]
    assert set(paper.sampled[1:]) == {2 * (7473 - 200) + 200 + 1319}
    modern = Work.of(StarConfig(**read_preset("modern")[1]), 7473, 1319)
    assert modern == Work([200 + 9 * 1319, *[4 * 2000 + 200 + 9 * 1319] * 10], [0, *[250] * 10])
    assert Work.of(StarConfig(validation=50, iterations=1), 30, 5) == Work([35, 35], [0, 28])  # nobody is left
    assert modern.left(8) == (2 * modern.sampled[1], 500)
    assert modern.left(10) == (0, 0)


def test_forecast():
    """From the pace so far: ten seconds for 100 of 400 rationales leave thirty."""
    forecast = Forecast(Work([100, 150, 150], [0, 10, 30]))
    assert forecast.left(-1) == (0, None)
    forecast.add({"evaluate": 6.0, "pass at k": 4.0, "save": 99.0}, 100, 0)
    assert forecast.left(0) == (pytest.approx(30.0), None)
    forecast.add({"generate": 10.0, "rationalize": 4.0, "evaluate": 6.0, "train": 5.0, "save": 99.0}, 150, 10)
    assert forecast.left(1) == (pytest.approx(150 * 30 / 250), pytest.approx(15.0))
    assert forecast.left(2) == (0.0, 0.0)


@pytest.mark.parametrize(("seconds", "said"), [(0, "0 s"), (40.4, "40 s"), (99, "99 s"), (100, "2 min"),
    (720, "12 min"), (5999, "100 min"), (6000, "1.7 h"), (12_600, "3.5 h")])  # fmt: skip
def test_durations_for_people(seconds, said):
    assert duration(seconds) == said
