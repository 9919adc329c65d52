"""The run folder: what a stop at any moment leaves is readable, and going on gives what an undisturbed run gives."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from conftest import SHIPPED, refused

import checkpoints
import sample
import train
from checkpoints.files import write_json
from star.config import StarConfig
from star.experiments import addition, export
from star.loop import State, star
from star.lora import add_lora
from star.problem import Finished
from star.run.folder import Run, generation, read_lines, whole_chunks
from star.run.inputs import facts
from star.run.ledger import newest_finished, none_finished
from star.sampler import Sampler
from star.tasks import load_task

pytestmark = pytest.mark.usefixtures("one_thread")

SETTINGS = {
    "problems": 40, "iterations": 3, "first_steps": 3, "batch_size": 8, "slots": 64, "rank": 4, "temperature": 0.7,
    "model": str(SHIPPED), "save_every": 2,
}  # fmt: skip
OPTIONS = {"digits": "1-2"}
ADAPTERS = [f"adapters/iter-{i:03d}/adapter_{name}" for i in (1, 2, 3) for name in ("config.json", "model.safetensors")]
COMPARED = ["metrics.jsonl", *(f"samples/iter-{i:03d}.jsonl" for i in range(4)), *ADAPTERS]


class Killed(Exception):
    pass


def play(folder: Path, resume: bool, stop=lambda count, event: False):
    """What train.py does, on a task with 24 held-out problems; `stop` kills it before an event is recorded."""
    if resume:
        run, state, given = Run.resume(folder)
    else:
        run, state, given = Run.create(folder, StarConfig(**SETTINGS), OPTIONS, {}), State(), []
    with contextlib.closing(run):
        go(run, state, given, stop)


def go(run, state, given, stop):
    task = load_task(run.config.task, **run.options)
    task.heldout = task.heldout[:24]
    tokenizer, model = checkpoints.load_tokenizer(SHIPPED), add_lora(checkpoints.load_model(SHIPPED), rank=4, alpha=32)
    if state.iteration > 0:
        checkpoints.load_adapter(model, run.adapter(state.iteration))
    sampler = Sampler(model, run.config.slots, 128, tokenizer)
    for count, event in enumerate(star(sampler, tokenizer, task, run.config, state, given)):
        if stop(count, event):
            raise Killed
        run.record(event, model)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    play(folder, resume=False)
    return folder


@pytest.fixture
def copied(straight, tmp_path):
    return Path(shutil.copytree(straight, tmp_path / "run"))


def assert_equal_runs(a, b):
    for name in COMPARED:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_two_runs_of_a_seed_are_byte_equal(straight, tmp_path):
    play(tmp_path / "again", resume=False)
    assert_equal_runs(straight, tmp_path / "again")
    timings = read_lines(straight / "timings.jsonl")
    assert [t["iteration"] for t in timings] == [0, 1, 2, 3]
    assert {"generate", "rationalize", "train", "evaluate"} <= set(timings[1]["seconds"])
    state = json.loads((straight / "state.json").read_text())
    assert (state["iteration"], state["finished"]) == (3, True)
    assert set(state["files"]) == set(COMPARED)


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


def test_keep_all_resumes_byte_equal(tmp_path, monkeypatch):
    """--keep all trains on what earlier iterations wrote: a resumed run reads it back from disk."""
    monkeypatch.setitem(SETTINGS, "keep", "all")
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


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples/iter-002.jsonl"])
def test_a_line_cut_short_is_made_again(straight, copied, name):
    """Killed while a line was written, or between metrics and state: the files say more, or less, than the state."""
    write_json(copied / "state.json", {"iteration": 1, "finished": False})
    path = copied / name
    path.write_bytes(path.read_bytes()[:-7])
    shutil.rmtree(copied / "adapters" / "iter-003")
    (copied / "samples" / "iter-003.jsonl").unlink()
    play(copied, resume=True)
    assert_equal_runs(straight, copied)


def test_reused_generations_are_not_made_again(straight, copied):
    write_json(copied / "state.json", {"iteration": 2, "finished": False})
    _, state, given = Run.resume(copied)
    assert state == State(2)
    assert len(given) == len(read_lines(straight / "samples" / "iter-003.jsonl"))
    assert all(generation(r).iteration == 3 for r in read_lines(copied / "samples" / "iter-003.jsonl"))


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


# what a folder says of itself


def test_a_run_is_opened_as_it_was_left(straight, tmp_path):
    run = Run.open(straight)
    assert run.config == StarConfig(**SETTINGS)
    assert run.options == OPTIONS
    assert (run.iteration, run.best, run.finished) == (3, None, True)
    assert Run.open(straight, slots=5).config == StarConfig(**SETTINGS | {"slots": 5})
    new = Run.create(tmp_path / "new", StarConfig(), {}, {"slots": 77, "dtype": "float32"})
    assert (new.iteration, new.finished) == (-1, False)
    new.close()
    again, _, _ = Run.resume(new.folder)  # what was chosen stays
    assert (again.config.slots, again.config.dtype) == (77, "float32")
    again.close()
    assert Run.resume(new.folder, slots=5)[0].config.slots == 5


def test_which_iteration_is_meant(copied):
    run = Run.open(copied)
    assert [run.choose(n) for n in (None, 0, 3)] == [3, 0, 3]
    assert run.choose(None, base=True) == 0
    for n in (-1, 4):
        refused(run.choose, n, words=(f"--iteration is {n}", f"{copied} has iterations 0 (the base) to 3"))
    write_json(copied / "state.json", {"iteration": 3, "finished": True, "best": 1})
    assert Run.open(copied).choose(None) == 1
    write_json(copied / "state.json", {"iteration": -1, "finished": False})
    assert Run.open(copied).choose(None) == 0


def test_a_folder_in_use_is_refused(straight, tmp_path):
    refused(Run.create, straight, StarConfig(), {}, {}, words=(f"go on with it by --resume {straight}",),
            error=FileExistsError)
    (tmp_path / "empty").mkdir()
    Run.create(tmp_path / "empty", StarConfig(), {}, {})


def test_folders_are_numbered_and_the_newest_finished_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert newest_finished() is None
    assert none_finished() == "runs/ has no finished run; train one: python train.py"
    runs = [Run.create(None, StarConfig(), {}, {}).folder for _ in range(3)]
    assert [r.name for r in runs] == ["arithmetic-001", "arithmetic-002", "arithmetic-003"]
    assert "arithmetic-003 was stopped: name it by --run runs/arithmetic-003, or go on with it" in none_finished()
    write_json(runs[1] / "state.json", {"iteration": 8, "finished": True})
    assert newest_finished() == runs[1]


# folders that cannot be read


def settings(change):
    """Damage: config.json with its settings changed, and the git commit that it was written by."""

    def damage(folder):
        written = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", written | {"settings": change(written["settings"]), "git_commit": "2c74dbd"})

    return damage


def text(name, content):
    return lambda folder: (folder / name).write_text(content)


GONE = ("rationalize", "max_per_problem", "keep")  # what commit 2c74dbd does not have, and what only it has
THEN = {
    "data": None, "digits": "1-2", "few_shot": None, "zero_shot": False, "shots": None, "grade": None,
    "question_field": None, "answer_field": None, "choices_field": None, "rationale_field": None, "group_field": None,
    "heldout": None, "heldout_share": None, "eval_temperature": 0.7, "learn": "rationales", "hint": "failure",
    "hint_share": 1.0, "hint_temperature": None, "hint_top_k": None, "hint_top_p": None, "max_len": None, "cap": None,
    "rounds": "last", "clip": 1.0, "dedup": "on", "few_shot_train": "off", "recompute": "off", "merge": "auto",
}  # fmt: skip
VERSION = ("another version", "git commit 2c74dbd")
DAMAGES = {
    "no state.json": (lambda folder: (folder / "state.json").unlink(), ["has lost its state.json", "put it back"]),
    "a ledger of another kind": (text("state.json", '{"iteration": 1, "files": [1]}'), ["state.json no iteration"]),
    "no config.json": (lambda folder: (folder / "config.json").unlink(), ["has lost its config.json", "put it back"]),
    "no folder": (shutil.rmtree, ["is no run"]),
    "cut short": (text("config.json", '{"settings": {'), ["config.json is not JSON"]),
    "a list": (text("config.json", "[]"), ["config.json holds a list, not an object"]),
    "nothing in it": (text("config.json", "{}"), ["config.json has no settings"]),
    "settings of another kind": (text("config.json", '{"settings": [1]}'), ["config.json has no settings"]),
    "no settings": (settings(lambda s: {}), ["config.json has no settings"]),
    "one more": (settings(lambda s: s | {"nucleus": 1}), [*VERSION, "config.json has nucleus;"]),
    "2c74dbd": (settings(lambda s: {k: v for k, v in s.items() if k not in GONE} | THEN),
                [*VERSION, "has answer_field, cap, "]),
    "a value of another kind": (settings(lambda s: s | {"problems": "40"}), ["--problems is '40'", "of type int"]),
    "a value out of range": (settings(lambda s: s | {"problems": 0}), ["config.json", "--problems is 0", "at least 1"]),
    "state cut short": (text("state.json", "{"), ["state.json is not JSON"]),
    "state a list": (text("state.json", "[]"), ["state.json holds a list"]),
    "state without iteration": (text("state.json", '{"iteration": "x"}'), ["state.json", "no iteration"]),
    "state of a truth": (text("state.json", '{"iteration": true}'), ["state.json", "no iteration"]),
}
READERS = {
    "sample": lambda folder: sample.main(["1+1", "--run", str(folder)]),
    "export": lambda folder: export.main(["out", "--run", str(folder)]),
    "resume": lambda folder: train.main(["--resume", str(folder)]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_read_is_one_line_for_every_command(copied, own_folder, capsys, damage):
    harm, words = DAMAGES[damage]
    harm(copied)
    words = [str(copied), *words]
    for name, read in READERS.items():
        assert read(copied) == 2, name
        err = capsys.readouterr().err
        assert err.startswith("error: "), (name, err)
        assert err.count("\n") == 1, (name, err)
        assert all(word in err for word in words), (name, err)
    refused(addition.check, copied, 1, words=words, error=(ValueError, OSError))
    assert not Path("out").exists()


def test_lines_that_are_damaged_are_named(copied):
    write_json(copied / "state.json", {"iteration": 1, "finished": False})
    (copied / "metrics.jsonl").write_text("{\n{}\n")
    refused(Run.resume, copied, words=(str(copied), "metrics.jsonl is damaged"))


def test_facts_name_the_machine():
    said = facts(checkpoints.load_model(SHIPPED), 4)
    assert said["device"] == "cpu"
    assert said["dtype"] == "float32"


@pytest.mark.parametrize("what", ["candidates", "model", "data"])
def test_what_a_run_stands_on_may_not_change_before_it_goes_on(tmp_path, what):
    """Files and folders that settings and options name; what is not there is refused elsewhere."""
    (tmp_path / "model").mkdir()
    files = {"candidates": tmp_path / "a.jsonl", "model": tmp_path / "model" / "a.safetensors",
             "data": tmp_path / "d.jsonl"}
    for file in files.values():
        file.write_bytes(b"x" * 3_000_000)
    config = StarConfig(model=str(tmp_path / "model"), candidates=str(files["candidates"]))
    options = {"data": str(files["data"]), "shots": 3, "few_shot": "nowhere"}
    Run.create(tmp_path / "run", config, options, {}).close()
    (tmp_path / "model" / "README.md").write_text("it may be described")
    Run.resume(tmp_path / "run")[0].close()
    files[what].write_bytes(b"x" * 2_999_999 + b"y")
    named = files[what] if what != "model" else tmp_path / "model"
    refused(Run.resume, tmp_path / "run", words=(f"{named} is not what", "put the former one back"))
    files[what].unlink()
    said = "is not what" if what == "model" else "is not there: put it back"
    refused(Run.resume, tmp_path / "run", words=(str(named), said))
