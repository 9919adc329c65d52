"""The run folder: what a stop at any moment leaves is readable, and going on gives what an undisturbed run gives."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from conftest import SHIPPED

import checkpoints
import train
from star.config import StarConfig
from star.loop import Finished, State, star
from star.lora import add_lora
from star.run import Run, facts, generation, newest_finished, read_lines, whole_chunks, write_json
from star.sampler import Sampler
from star.tasks import load_task

SETTINGS = {
    "digits": "1-2", "problems": 40, "iterations": 3, "first_steps": 3, "batch_size": 8, "slots": 16, "rank": 4,
    "temperature": 0.7, "model": str(SHIPPED),
}  # fmt: skip
ADAPTERS = [f"adapters/iter-{i:03d}/adapter_{name}" for i in (1, 2, 3) for name in ("config.json", "model.safetensors")]
COMPARED = ["metrics.jsonl", *(f"samples/iter-{i:03d}.jsonl" for i in range(4)), *ADAPTERS]


class Killed(Exception):
    pass


def play(folder: Path, resume: bool, stop=lambda count, event: False):
    """What train.py does, on a task with 24 held-out problems; `stop` kills it before an event is recorded."""
    if resume:
        run, state, made = Run.resume(folder)
    else:
        run, state, made = Run.create(folder, StarConfig(**SETTINGS), {}), State(), []
    task = load_task("arithmetic", digits="1-2")
    task.heldout = task.heldout[:24]
    tokenizer, model = checkpoints.load_tokenizer(SHIPPED), add_lora(checkpoints.load_model(SHIPPED), rank=4, alpha=32)
    if state.iteration > 0:
        checkpoints.load_adapter(model, run.adapter(state.iteration))
    sampler = Sampler(model, run.config.slots, 128, tokenizer)
    for count, event in enumerate(star(sampler, tokenizer, task, run.config, state, made)):
        if stop(count, event):
            raise Killed
        run.record(event, model)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    play(folder, resume=False)
    return folder


def assert_equal_runs(a, b):
    for name in COMPARED:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_two_runs_of_a_seed_are_byte_equal(straight, tmp_path):
    play(tmp_path / "again", resume=False)
    assert_equal_runs(straight, tmp_path / "again")
    timings = read_lines(straight / "timings.jsonl")
    assert [t["iteration"] for t in timings] == [0, 1, 2, 3]
    assert {"generate", "rationalize", "train", "evaluate"} <= set(timings[1]["seconds"])
    assert json.loads((straight / "state.json").read_text()) == {"iteration": 3, "finished": True}


@pytest.mark.parametrize("moment", [0, 60, 100, 150, 200])
def test_killed_and_resumed_is_byte_equal(straight, tmp_path, moment):
    """Killed before the event of that number, once more half as far on, then left alone."""
    folder = tmp_path / "run"
    with pytest.raises(Killed):
        play(folder, resume=False, stop=lambda count, event: count == moment)
    with pytest.raises(Killed):
        play(folder, resume=True, stop=lambda count, event: count == 15 + moment // 8)
    play(folder, resume=True)
    assert_equal_runs(straight, folder)


def test_all_rounds_resume_byte_equal(tmp_path, monkeypatch):
    """--rounds all trains on what earlier iterations wrote: a resumed run reads it back from disk."""
    monkeypatch.setitem(SETTINGS, "rounds", "all")
    play(tmp_path / "straight", resume=False)
    finished = []

    def at(count, event):
        if isinstance(event, Finished):
            finished.append(event.iteration)
        return len(finished) == 3 and not isinstance(event, Finished)  # in iteration 3, its first event

    with pytest.raises(Killed):
        play(tmp_path / "run", resume=False, stop=at)
    play(tmp_path / "run", resume=True)
    assert_equal_runs(tmp_path / "straight", tmp_path / "run")
    examples = [m["examples"] for m in read_lines(tmp_path / "run" / "metrics.jsonl")[1:]]
    assert examples == sorted(examples)
    assert examples[2] > 45


def test_slots_that_were_chosen_stay(tmp_path):
    run = Run.create(tmp_path / "run", StarConfig(), {"slots": 77, "dtype": "float32"})
    again, _, _ = Run.resume(run.folder)
    assert (again.config.slots, again.config.dtype) == (77, "float32")
    assert Run.resume(run.folder, slots=5)[0].config.slots == 5


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples/iter-002.jsonl"])
def test_a_line_cut_short_is_made_again(straight, tmp_path, name):
    """Killed while a line was written, or between metrics and state: the files say more, or less, than the state."""
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    write_json(folder / "state.json", {"iteration": 1, "finished": False})
    path = folder / name
    path.write_bytes(path.read_bytes()[:-7])
    shutil.rmtree(folder / "adapters" / "iter-003")
    (folder / "samples" / "iter-003.jsonl").unlink()
    play(folder, resume=True)
    assert_equal_runs(straight, folder)


def test_reused_generations_are_not_made_again(straight, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    write_json(folder / "state.json", {"iteration": 2, "finished": False})
    _, state, made = Run.resume(folder)
    assert state == State(2)
    assert len(made) == len(read_lines(straight / "samples" / "iter-003.jsonl"))
    assert all(generation(r).iteration == 3 for r in read_lines(folder / "samples" / "iter-003.jsonl"))


def test_whole_chunks():
    lines = [{"chunk": 2, "n": 1}, {"chunk": 2, "n": 2}, {"chunk": 3, "n": 3}, {"chunk": 3, "n": 4}]
    assert whole_chunks(lines) == lines[:2]
    assert whole_chunks(lines[:1]) == []
    assert whole_chunks([*lines, {"chunk": 3, "n": 5}]) == [*lines, {"chunk": 3, "n": 5}]
    assert whole_chunks([]) == []


def test_every_generation_is_written_down(straight):
    records = read_lines(straight / "samples" / "iter-001.jsonl")
    metrics = read_lines(straight / "metrics.jsonl")[1]
    assert sum(r["phase"] == "generate" for r in records) == metrics["problems"] == 40
    assert sum(r["phase"] == "evaluate" for r in records) == 24
    assert {"problem", "phase", "sample", "text", "answer", "verdict", "seed", "logprob"} <= set(records[0])
    kept = sum(r["verdict"] == "right" for r in records if r["phase"] == "generate")
    assert kept == metrics["kept"]


def test_a_folder_in_use_is_refused(straight, tmp_path):
    with pytest.raises(FileExistsError, match=f"go on with it by --resume {straight}"):
        Run.create(straight, StarConfig(), {})
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", StarConfig(), {})
    with pytest.raises(FileNotFoundError, match="is no run"):
        Run.resume(tmp_path / "nowhere")


def test_folders_are_numbered_and_the_newest_finished_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert newest_finished() is None
    runs = [Run.create(None, StarConfig(), {}).folder for _ in range(3)]
    assert [r.name for r in runs] == ["arithmetic-001", "arithmetic-002", "arithmetic-003"]
    write_json(runs[1] / "state.json", {"iteration": 8, "finished": True})
    assert newest_finished() == runs[1]


@pytest.mark.parametrize("damage", ["{", "[]", '{"iteration": "x"}'])
def test_damaged_runs_say_so(straight, tmp_path, damage):
    folder = tmp_path / "run"
    shutil.copytree(straight, folder)
    (folder / "state.json").write_text(damage)
    with pytest.raises(ValueError, match="run"):
        Run.resume(folder)
    write_json(folder / "state.json", {"iteration": 1, "finished": False})
    (folder / "metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(ValueError, match=r"metrics\.jsonl is damaged"):
        Run.resume(folder)


def test_curves_are_drawn(straight):
    train.draw(Run(straight, StarConfig()))
    assert (straight / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_without_matplotlib_the_run_goes_on(straight, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    train.draw(Run(straight, StarConfig()))
    assert "pip install 'star-from-scratch[plot]'" in capsys.readouterr().err


def test_facts_name_the_machine():
    said = facts(checkpoints.load_model(SHIPPED), 4)
    assert said["device"] == "cpu"
    assert said["dtype"] == "float32"
