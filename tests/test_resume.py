"""Nothing is lost and nothing goes wrong unseen: locks, signals, full disks, replaced inputs, pieces that are gone."""

import contextlib
import json
import math
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHIPPED, refused, stirred
from test_folder import SETTINGS, Killed, assert_equal_runs, play

import checkpoints
import train
from checkpoints.files import TensorFile, read_json, write_json, write_tensors
from star import finetune as finetune_module
from star.config import StarConfig
from star.lora import add_lora, trainable
from star.problem import Phase, Step
from star.run import signals, unfinished
from star.run.folder import Run
from star.run.inputs import hashed
from star.run.ledger import never_began, next_folder, size_and_checksum
from star.run.lines import append, read_lines
from star.run.lock import lock
from star.sampler import Sampler

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = ["--digits", "1", "--problems", "8", "--iterations", "1", "--first-steps", "4", "--heldout-problems", "8",
         "--slots", "8", "--device", "cpu", "--show", "0"]


def killed_at(folder, wanted, resume=False):
    """Play until an event that `wanted` picks out, which is written down before the kill."""
    seen = [False]

    def stop(count, event):
        seen.append(wanted(event))  # now: what an event says of a training goes on changing
        return seen[-2]

    with pytest.raises(Killed):
        play(folder, resume, stop)


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "straight"
    play(folder, resume=False)
    return folder


# a training under way


def test_a_training_goes_on_where_it_was_written_down(straight, tmp_path, monkeypatch):
    """The steps before are not made again, the bytes are the same, and nothing of it is left behind."""
    folder, done = tmp_path / "run", []
    killed_at(folder, lambda e: isinstance(e, Step) and e.iteration == 2 and len(e.stats.losses) == 2)
    assert read_json(folder / "training" / "training.json")["step"] == 2
    original = finetune_module.step_gradients

    def counted(*args):
        done.append(1)
        return original(*args)

    monkeypatch.setattr(finetune_module, "step_gradients", counted)
    play(folder, resume=True)
    steps = [m["steps"] for m in read_lines(folder / "metrics.jsonl")[1:]]
    assert len(done) == steps[1] - 2 + steps[2]
    assert_equal_runs(straight, folder)
    assert (straight / "state.json").read_bytes() == (folder / "state.json").read_bytes()
    assert not (folder / "training").exists()


def test_a_training_that_is_over_is_not_made_again(straight, tmp_path, monkeypatch):
    """Killed in the evaluation behind it."""
    folder = tmp_path / "run"
    killed_at(folder, lambda e: isinstance(e, Phase) and (e.iteration, e.name) == (1, "evaluate"))
    with monkeypatch.context() as patch:
        patch.setattr(finetune_module, "step_gradients", lambda *args: pytest.fail("trained again"))
        killed_at(folder, lambda e: isinstance(e, Phase) and (e.iteration, e.name) == (2, "generate"), resume=True)
    play(folder, resume=True)
    assert_equal_runs(straight, folder)


@pytest.mark.parametrize("harm", [
    lambda w: w | {"names": w["names"][::-1], "file": [1, 2]}, lambda w: w | {"tokens": "x"},
    lambda w: w | {"lowered": -3}, lambda w: w | {"skipped": ["x"]}, lambda w: w | {"seconds": None},
    lambda w: w | {"losses": ["x"] * 2}, lambda w: w | {"step": 3}, lambda w: w | {"names": w["names"][1:]},
])
def test_what_is_written_of_a_training_must_fit(tmp_path, harm):
    """Optimizers write where they are told: shapes and names are looked at before."""
    killed_at(tmp_path / "run", lambda e: isinstance(e, Step) and len(e.stats.losses) == 2)
    path = tmp_path / "run" / "training" / "training.json"
    write_json(path, harm(read_json(path)))
    with pytest.raises(ValueError, match=r"is damaged|had other adapters"):
        play(tmp_path / "run", resume=True)


def test_moments_of_another_shape_are_refused(tmp_path):
    killed_at(tmp_path / "run", lambda e: isinstance(e, Step) and len(e.stats.losses) == 2)
    folder = tmp_path / "run" / "training"
    file, written = folder / "step-000002.safetensors", read_json(folder / "training.json")
    tensors = {name: TensorFile(file).read(name) for name in TensorFile(file).entries}
    name = f"moment2.{written['names'][0]}"
    for value, said in ((tensors[name].T, "had other adapters"), (tensors[name] - 1, "numbers that no training leaves"),
                        (tensors[name] * math.nan, "numbers that no training leaves")):
        write_tensors(file, tensors | {name: value})
        write_json(folder / "training.json", written | {"file": size_and_checksum(file)})
        with pytest.raises(ValueError, match=said):
            play(tmp_path / "run", resume=True)


@pytest.mark.parametrize("harm", [
    lambda lines: [lines[0].replace('"verdict": "right"', '"verdict": "wrong"'), *lines[1:]],
    lambda lines: [lines[1], lines[0], *lines[2:]],
    lambda lines: [re.sub(r'"tokens": \[\d+', '"tokens": [5', lines[0]), *lines[1:]]])
def test_a_changed_line_of_samples_is_seen(tmp_path, harm):
    """Of the iteration in hand, of which state.json knows nothing yet."""
    killed_at(tmp_path / "run", lambda e: isinstance(e, Phase) and e.name == "train")
    path = tmp_path / "run" / "samples" / "iter-001.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    changed = harm(lines)
    assert changed != lines
    path.write_text("".join(changed))
    refused(Run.resume, tmp_path / "run", words=(str(path), "is damaged", "they are made again"))


def test_a_resume_that_is_refused_later_changes_no_state(own_folder, capsys):
    assert train.main([*SMALL, "--out", "run"]) == 0
    before = Path("run/state.json").read_bytes()
    assert train.main(["--resume", "run", "--extend", "1", "--device", "cuda:9"]) == 2
    assert Path("run/state.json").read_bytes() == before


def test_problems_are_not_skipped_where_memory_runs_out(monkeypatch, own_folder):
    """--wanted looks at parts of as many problems as there were slots at the start."""
    assert train.main([*SMALL, "--out", "straight", "--problems", "24", "--wanted", "24"]) == 0
    original, calls = Sampler._take_slots, []

    def short(self, rows, length, most):
        calls.append(rows)
        if len(calls) > 2 and rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, rows, length, most)

    monkeypatch.setattr(Sampler, "_take_slots", short)
    assert train.main([*SMALL, "--out", "run", "--problems", "24", "--wanted", "24"]) == 0
    one, two = (read_lines(Path(name, "metrics.jsonl"))[1]["problems"] for name in ("straight", "run"))
    assert one == two == 24


@pytest.mark.parametrize(("name", "content", "words"), [
    ("config.json", {"resumed": 5}, "resumed is 5"), ("config.json", {"resumed": [5]}, "resumed is [5]"),
    ("state.json", {"iteration": 10**9}, "a line for each"), ("state.json", {"iteration": -2}, "no iteration"),
    ("state.json", {"files": {"a": [-1, 0]}}, "no iteration")])
def test_edited_files_are_refused_at_once(straight_command, own_folder, capsys, name, content, words):
    subprocess.run(["cp", "-r", straight_command, "run"], check=True)
    write_json(Path("run", name), read_json(Path("run", name)) | content)
    assert train.main(["--resume", "run", "--extend", "1"]) == 2
    assert words in capsys.readouterr().err


def test_a_folder_called_as_an_option_is_no_data(own_folder):
    Path("1-3").mkdir()
    argv = [a if a != "1" else "1-3" for a in SMALL[:2]] + SMALL[2:]
    assert train.main([*argv, "--out", "run", "--iterations", "0"]) == 0
    assert list(read_json(Path("run/config.json"))["inputs"]) == [str(SHIPPED)]


@pytest.mark.parametrize(("name", "content"), [
    ("training.json", "{"), ("training.json", '{"iteration": 1}'), ("step-000002.safetensors", "cut"),
    ("step-000002.safetensors", None)])
def test_a_damaged_training_is_named(tmp_path, name, content):
    killed_at(tmp_path / "run", lambda e: isinstance(e, Step) and len(e.stats.losses) == 2)
    path = tmp_path / "run" / "training" / name
    path.unlink() if content is None else path.write_text(content)
    refused(Run.resume, tmp_path / "run", words=(str(path.parent), "is damaged", "take the folder away"))


def test_how_often_a_training_is_written_down(tmp_path, monkeypatch):
    """Every so many steps if asked, and the last; else when it has taken fifty times as long as the last save."""
    model, now, saves = add_lora(checkpoints.load_model(SHIPPED), rank=2), [0.0], []
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def save(folder, iteration, stats, model):
        saves.append(len(stats.losses))
        now[0] += 1.0  # what a save takes

    monkeypatch.setattr(unfinished, "save", save)
    for every, expected in ((None, [11, 62, 113]), (40, [40, 80, 120])):
        run = Run.create(tmp_path / str(every), StarConfig(save_every=every), {}, {})
        run.record(Phase(1, "train", 120), model)
        saves.clear()
        for step in range(1, 121):
            now[0] += 1.0
            run.record(Step(1, 5, finetune_module.FinetuneStats(losses=[0.0] * step), step == 120), model)
        assert saves == expected, every


# one process at a time


def test_a_second_process_is_refused_and_a_dead_one_leaves_no_lock(tmp_path, own_folder, capsys):
    holds = "import sys, time; from pathlib import Path; from star.run.lock import lock\n"
    holds += "held = lock(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    assert train.main([*SMALL, "--iterations", "0", "--out", "run"]) == 0
    with subprocess.Popen([sys.executable, "-c", holds, "run"], stdout=subprocess.PIPE, env=os.environ | {
            "PYTHONPATH": str(ROOT)}) as other:
        assert other.stdout.readline() == b"held\n"
        capsys.readouterr()
        assert train.main(["--resume", "run", "--extend", "1"]) == 2
        assert capsys.readouterr().err.startswith(f"error: run is being written by process {other.pid} on ")
        other.send_signal(signal.SIGKILL)
    assert train.main(["--resume", "run", "--extend", "1"]) == 0
    assert [m["iteration"] for m in read_lines(Path("run/metrics.jsonl"))] == [0, 1]


def test_a_lock_is_no_way_out_of_the_folder(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".lock").symlink_to(tmp_path / "elsewhere")
    refused(lock, tmp_path / "run", words=(".lock is a link",))
    assert not (tmp_path / "elsewhere").exists()


def test_where_files_cannot_be_locked_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.warns(UserWarning, match="see to it that one process alone writes it"):
        lock(tmp_path).close()


def test_two_processes_get_two_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original, raced = Path.mkdir, []

    def mkdir(path, *args, **kw):
        if not raced:  # another process takes the name just before
            raced.append(original(path, *args, **kw))
        return original(path, *args, **kw)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert next_folder("sums").name == "sums-002"


# signals


@pytest.fixture
def own_signals():
    before = {number: signal.getsignal(number) for number in signals.STOPS}
    signals.catch()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
    signals.catch.__globals__["_waiting"] = 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_waits_for_a_write(own_signals, number, code):
    written = []

    def write():
        with signals.written_first():
            with signals.written_first():
                os.kill(os.getpid(), number)
                written.append(1)
            written.append(2)

    with pytest.raises(signals.Stopped) as caught:
        write()
    assert written == [1, 2]
    assert signals.stop(caught.value).code == code


def test_a_signal_elsewhere_stops_at_once(own_signals):
    with pytest.raises(signals.Stopped):
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_second_signal_does_not_wait(tmp_path):
    code = ("import os, signal, time; from star.run import signals; signals.catch()\n"
            "with signals.written_first():\n    os.kill(os.getpid(), signal.SIGTERM)\n"
            "    os.kill(os.getpid(), signal.SIGINT)\n    time.sleep(60)\n")
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (130, b"")


# a full disk


@contextlib.contextmanager
def files_of_at_most(size):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_no_part_of_a_line_is_added(tmp_path):
    path = tmp_path / "lines.jsonl"
    append(path, [{"a": 1}])
    with files_of_at_most(50), pytest.raises(OSError, match="File too large"):
        append(path, [{"a": "x" * 100}])
    assert path.read_text() == '{"a": 1}\n'
    with pytest.raises(ValueError, match="JSON compliant"):
        append(path, [{"loss": math.nan}])


@pytest.mark.parametrize("size", [200, 3_000, 20_000])
def test_a_full_disk_is_one_line_and_the_run_goes_on(straight_command, own_folder, capsys, size):
    """Full before the first state, while samples are written, while adapters are; then there is room again."""
    with files_of_at_most(size):
        assert train.main([*SMALL, "--out", "run"]) == 2
    err = capsys.readouterr().err.replace("\r", "\n").rstrip().splitlines()[-1]
    assert err.startswith("error: ")
    assert "File too large" in err or "too large" in err
    again = ["--resume", "run"] if Path("run/state.json").exists() else [*SMALL, "--out", "run"]
    assert train.main(again) == 0
    for name in ("metrics.jsonl", "state.json", "samples/iter-001.jsonl"):  # state.json has the adapter's checksum
        assert Path("run", name).read_bytes() == (straight_command / name).read_bytes(), name


@pytest.fixture(scope="module")
def straight_command(tmp_path_factory):
    folder = tmp_path_factory.mktemp("command") / "run"
    assert train.main([*SMALL, "--out", str(folder)]) == 0
    return folder


# a run that never began, or is not what it was


@pytest.mark.parametrize("left", [[], ["samples"], ["samples", "adapters", "config.json"]])
def test_a_run_stopped_before_its_first_state_can_be_begun_again(tmp_path, left):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in left:
        (folder / name).mkdir() if "." not in name else write_json(folder / name, {"settings": SETTINGS})
    (folder / ".lock").touch()
    assert never_began(folder)
    Run.create(folder, StarConfig(**SETTINGS), {}, {}).close()
    assert Run.open(folder).iteration == -1
    (folder / "state.json").unlink()
    assert Run.resume(folder)[1].iteration == -1


def test_the_folder_of_somebody_else_is_not_written(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    refused(Run.create, tmp_path, StarConfig(), {}, {}, words=("is not empty",), error=FileExistsError)


@pytest.mark.parametrize("name", ["metrics.jsonl.tmp", "samples", "samples/iter-009.jsonl", "adapters/iter-002",
                                  "curves.png", "config.json"])
def test_links_in_a_run_are_not_followed(straight, tmp_path, name):
    folder, outside = tmp_path / "run", tmp_path / "outside"
    subprocess.run(["cp", "-r", straight, folder], check=True)
    path = folder / name
    if path.exists():
        path.rename(outside)
    else:
        outside.write_text("precious")
    path.symlink_to(outside)
    refused(Run.resume, folder, words=(f"{path} is a link",))


def test_a_pipe_in_a_run_is_refused(straight, tmp_path):
    subprocess.run(["cp", "-r", straight, tmp_path / "run"], check=True)
    os.mkfifo(tmp_path / "run" / "timings.jsonl.tmp")
    refused(Run.resume, tmp_path / "run", words=("no plain file",))


@pytest.mark.parametrize(("name", "harm", "words"), [
    ("metrics.jsonl", lambda text: text.replace(b"0.", b"1.", 1), "is not as this run left it"),
    ("adapters/iter-003/adapter_config.json", lambda text: text.replace(b"32", b"64"), "is not as this run left it"),
    ("adapters/iter-003/adapter_model.safetensors", lambda text: text[:-1] + b"\1", "is not as this run left it"),
    ("adapters/iter-003/adapter_model.safetensors", None, "is gone"),
    ("samples/iter-001.jsonl", None, "is gone"),
    ("samples/iter-001.jsonl", lambda text: text.partition(b"\n")[2], "is not as this run left it"),
])
def test_lost_pieces_are_named(straight, tmp_path, name, harm, words):
    subprocess.run(["cp", "-r", straight, tmp_path / "run"], check=True)
    path = tmp_path / "run" / name
    path.unlink() if harm is None else path.write_bytes(harm(path.read_bytes()))
    changed = {"keep": "all"} if "samples" in name else {}
    refused(lambda: Run.resume(tmp_path / "run", **changed), words=(f"{path} {words}", "put the former file back"))


def test_metrics_without_a_ledger_must_be_whole(straight, tmp_path):
    """Of a run whose state.json says nothing of its files."""
    subprocess.run(["cp", "-r", straight, tmp_path / "run"], check=True)
    write_json(tmp_path / "run" / "state.json", {"iteration": 3, "finished": True})
    path = tmp_path / "run" / "metrics.jsonl"
    path.write_bytes(path.read_bytes().partition(b"\n")[2])
    refused(Run.resume, tmp_path / "run", words=("a line for each of the iterations 0 to 3",))


@pytest.mark.parametrize("chunk", [0, -1, 2.5, "8", None, True])
def test_a_chunk_of_no_size_is_named(straight, tmp_path, chunk):
    subprocess.run(["cp", "-r", straight, tmp_path / "run"], check=True)
    path = tmp_path / "run" / "samples" / "iter-004.jsonl"
    path.write_text(json.dumps({"chunk": chunk}) + "\n")
    refused(Run.resume, tmp_path / "run", words=(str(path), "line 1", '"chunk" is'))


# what a run stands on


def test_weights_that_were_merged_are_seen(tmp_path):
    """The embedding and the last norm, which stand at the file's ends, are the base's: only what is between changed."""
    model = stirred(checkpoints.load_model(SHIPPED))
    for name, save in (("base", checkpoints.load_model(SHIPPED)), ("merged", model)):
        checkpoints.export_merged(save, tmp_path / name)
    base, merged = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("base", "merged"))
    assert len(base) == len(merged)
    assert hashed(tmp_path / "base") != hashed(tmp_path / "merged")
    (tmp_path / "base" / "README.md").write_text("it may be described")
    assert hashed(tmp_path / "base") == hashed(tmp_path / "base")


def test_a_number_in_the_middle_of_the_data_is_seen(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"x" * 9_000_000)
    before = hashed(path)
    with open(path, "r+b") as f:
        f.seek(4_500_000)
        f.write(b"y")
    assert hashed(path) != before


def test_an_older_run_is_opened_and_what_it_lacks_is_said(straight, tmp_path):
    subprocess.run(["cp", "-r", straight, tmp_path / "run"], check=True)
    written = read_json(tmp_path / "run" / "config.json")
    del written["settings"]["keep"]
    write_json(tmp_path / "run" / "config.json", written)
    with pytest.warns(UserWarning, match="another version: keep are not in its config.json"):
        assert Run.open(tmp_path / "run").config.keep == "last"


# memory that runs out


def test_sampling_goes_on_with_half_the_rows(monkeypatch, own_folder, capsys):
    """Twice in a run: the same samples as with memory, said each time, and written down."""
    assert train.main([*SMALL, "--out", "straight"]) == 0
    capsys.readouterr()
    original, calls = Sampler._take_slots, []

    def short(self, rows, length, most):
        calls.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, rows, length, most)

    monkeypatch.setattr(Sampler, "_take_slots", short)
    assert train.main([*SMALL, "--out", "run"]) == 0
    assert calls[:3] == [8, 4, 2]
    assert "iteration 0, evaluate: memory ran out; from here on 2 rows are sampled at a time" in capsys.readouterr().err
    assert "memory ran out" in read_lines(Path("run/timings.jsonl"))[0]["notes"][0]
    for n in (0, 1):
        one, two = ({(r["phase"], r["problem"]): (r["tokens"], r["verdict"])
                     for r in read_lines(Path(name, f"samples/iter-00{n}.jsonl"))} for name in ("straight", "run"))
        assert one == two


def test_memory_that_never_suffices_is_one_line(monkeypatch, own_folder, capsys):
    def full(self, *need):
        raise RuntimeError("[enforce fail at alloc_cpu.cpp:118] DefaultCPUAllocator: can't allocate memory: 9 bytes")

    monkeypatch.setattr(Sampler, "_take_slots", full)
    assert train.main([*SMALL, "--out", "run"]) == 2
    err = capsys.readouterr().err.replace("\r", "\n").rstrip().splitlines()[-1]
    assert err.startswith("error: the device's memory is full: lower --slots")
    assert "--resume run" in err


def test_training_goes_on_with_smaller_rows(monkeypatch, own_folder, capsys):
    original = finetune_module.step_gradients

    def short(model, params, rows, *more):
        if max(row.tokens.numel() for row in rows) > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(model, params, rows, *more)

    monkeypatch.setattr(finetune_module, "step_gradients", short)
    assert train.main([*SMALL, "--out", "run", "--problems", "60", "--batch-size", "8"]) == 0
    said = capsys.readouterr().err
    assert re.search(r"iteration 1, step 1: memory ran out; from here on \d\d tokens are trained on at a time", said)
    assert said.count("memory ran out") <= 3
    assert read_lines(Path("run/metrics.jsonl"))[1]["steps"] == 4


# numbers that are none


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out(monkeypatch, what):
    """Counted, nothing is learned from it, and training goes on."""
    from test_finetune import examples, fresh

    original, calls = finetune_module.step_gradients, []

    def odd(model, params, *more):
        loss = original(model, params, *more)
        calls.append(1)
        if len(calls) in (2, 4, 5):
            if what == "loss":
                return loss * math.nan
            next(iter(params.values())).grad[0, 0] = math.inf
        return loss

    monkeypatch.setattr(finetune_module, "step_gradients", odd)
    model, before = fresh(), {}
    for stats in finetune_module.finetune_steps(model, examples(), 6, 1e-2, 4):
        after = {name: p.detach().clone() for name, p in trainable(model).items()}
        moved = not before or any(not torch.equal(after[name], before[name]) for name in after)
        assert moved == (len(stats.losses) not in (2, 4, 5))
        assert all(torch.isfinite(p).all() for p in after.values())
        before = after
    assert stats.skipped == [1, 3, 4]
    assert len(stats.losses) == 6


def test_three_in_a_row_end_it_and_the_last_adapters_stay(monkeypatch, own_folder, capsys):
    original, iteration = finetune_module.step_gradients, []

    def odd(*args):
        iteration.append(1)
        return original(*args) * (math.nan if len(iteration) > 5 else 1)

    monkeypatch.setattr(finetune_module, "step_gradients", odd)
    assert train.main([*SMALL, "--out", "run", "--iterations", "3", "--growth", "1", "--save-every", "1"]) == 2
    err = capsys.readouterr().err.replace("\r", "\n").rstrip().splitlines()[-1]
    assert "was not finite in 3 steps in a row, the last of them step 4" in err
    assert "lower --lr" in err
    assert read_json(Path("run/state.json"))["iteration"] == 1
    checkpoints.load_adapter(checkpoints.load_model(SHIPPED), Path("run/adapters/iter-001"))
    assert read_lines(Path("run/metrics.jsonl"))[1]["skipped_steps"] == 0
    monkeypatch.undo()


# going further


def test_extend_and_what_may_not_change(own_folder, capsys):
    assert train.main([*SMALL, "--out", "run"]) == 0
    for argv, words in ((["--resume", "run", "--extend", "0"], "--extend is 0"),
                        (["--resume", "run", "--extend", "1", "--iterations", "5"], "give it, or --iterations"),
                        (["--extend", "1"], "name it by --resume"), (["--resume", "run"], "--resume run --extend N"),
                        (["--resume", "run", "--lr", "1"], "--lr is 1.0, and the run was begun with 0.005;")):
        assert train.main(argv) == 2
        assert words in capsys.readouterr().err
    assert train.main(["--resume", "run", "--extend", "1", "--lr", "0.005"]) == 0
    assert [m["iteration"] for m in read_lines(Path("run/metrics.jsonl"))] == [0, 1, 2]
    written = read_json(Path("run/config.json"))
    assert written["settings"]["iterations"] == 2
    assert len(written["resumed"]) == 1
