"""Files that somebody else wrote, seeded and by the hundred: data, few-shot examples, presets, answers of others, and
run folders. Each is read, or refused in one line that names it; nothing hangs, grows, or is read as something else."""

import functools
import gzip
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, SHIPPED
from hostile import VALUES, Faults, Raw, cases, commanded, damaged, dumped, mutated, paths

import checkpoints
import sample
import train
from star.config import StarConfig
from star.experiments import export, report
from star.run import plots, progress
from star.run.candidates import Reader
from star.run.flags import read_flags
from star.run.folder import Run
from star.run.inputs import inputs
from star.run.ledger import newest_finished
from star.tasks import load_task

SHOT = {"question": "What is 5 + 6?", "rationale": "5 and 6 are 11.", "answer": "11"}
WORDS = ["red", "blue", "green", "white", "black", "brown", "grey", "pink"]


def sums(n=12):
    return [{"question": f"What is {i} + {2 * i}?", "answer": str(3 * i), "kind": "even" if i % 2 else "odd"}
            for i in range(1, n + 1)]


def choices(n=12):
    return [{"question": f"Which of them has {i} legs?", "answer": "ABCD"[i % 4], "choices": [
        f"{WORDS[(i + k) % 8]} animal" for k in range(4)]} for i in range(1, n + 1)]


def labelled(n=12):
    return [{"question": {"stem": f"Who of them has {i} legs?", "choices": [
        {"label": "ABCDE"[k], "text": f"a {WORDS[(i + k) % 8]} one"} for k in range(5)]}, "answerKey": "ABCDE"[i % 5]}
        for i in range(1, n + 1)]


def solved(n=12):
    return [{"question": f"Ann has {i} eggs and buys {i} more. How many has she?",
             "answer": f"She has {i}+{i}=<<{i}+{i}={2 * i}>>{2 * i}.\n#### {2 * i}"} for i in range(1, n + 1)]


def flips(n=12):
    return [{"question": "A coin is heads up. " + "Ann flips the coin. " * i + "Is the coin still heads up?",
             "answer": "no" if i % 2 else "yes"} for i in range(1, n + 1)]


def games(n=12):
    return [{"target": str(24 + i), "nums": [i, 4, 6], "answer": f"4*6+{i}"} for i in range(1, n + 1)]


def sets(n=12):
    return [{"question": f"Name {i} and {i + 1}.", "answer": [i, i + 1]} for i in range(1, n + 1)]


ZERO = {"zero_shot": True}
TASKS = {  # name -> (records, options of --task jsonl)
    "number": (sums, {"grade": "number", "fields": "group=kind"} | ZERO), "auto": (sums, ZERO),
    "text": (sums, {"grade": "text"} | ZERO), "choice": (choices, {"fields": "choices=choices"} | ZERO),
    "nested": (labelled, {"fields": "question=question.stem,answer=answerKey,choices=question.choices"} | ZERO),
    "solved": (solved, {"fields": "rationale=answer"} | ZERO), "set": (sets, {"grade": "set"} | ZERO),
    "game": (games, {"fields": "numbers=nums", "template": "Make {target} of {nums}."} | ZERO),
    "none": (sums, {"grade": "none"} | ZERO),
}  # fmt: skip


def lines(records):
    return "".join(dumped(r) + "\n" for r in records)


def table(records, delimiter=","):
    names = list(records[0])
    rows = [names, *([r.get(n, "") if isinstance(r, dict) else r for n in names] for r in records)]
    cells = [[c if isinstance(c, str) else dumped(c) for c in row] for row in rows]
    return "".join(delimiter.join('"' + c.replace('"', '""') + '"' for c in row) + "\n" for row in cells)


FORMATS = {".jsonl": lines, ".json": dumped, ".csv": table, ".tsv": lambda r: table(r, "\t"),
           ".data.json": lambda r: dumped({"version": 1, "data": r})}


def written(path, records):
    """The records in the format that the name's ending says."""
    form = next(form for ending, form in reversed(FORMATS.items()) if path.name.endswith(ending))
    path.write_text(form(records), encoding="utf-8", errors="surrogatepass")
    return path


def spoilt(records, rng):
    """(the records with one of them changed, its index)."""
    at = rng.randrange(len(records))
    return [*records[:at], mutated(records[at], rng), *records[at + 1 :]], at


def asked(problems):
    return [(p.id, p.question, p.answer, p.choices, p.numbers) for p in problems]


def use_task(task):
    """Everything that a run would ask of it; texts can be written down."""
    for p in [*task.train[:3], *task.heldout[:3]]:
        assert "".join([p.id, p.group, task.question(p), task.hinted(p), task.gold(p) or "", *p.choices]).encode()
        task.right(p, f"So it is {p.answer}. The answer is {p.answer}.")
    assert not {p.id for p in task.train} & {p.id for p in task.heldout}
    assert all(n.encode() for n in task.notes)
    return task


# ----------------------------------------------------------------------------------------------------------- data files


@pytest.mark.parametrize("name", TASKS)
def test_records_with_anything_in_them(tmp_path, name):
    """One record is changed: the others are read as they were, or the file is refused."""
    faults, (make, options) = Faults(), TASKS[name]
    sound = {}
    endings = [e for e in FORMATS if name != "nested" or "sv" not in e]  # a table has no objects in objects
    for ending in endings:
        path = written(tmp_path / f"s{ending}", make())
        task = use_task(load_task("jsonl", data=path, **options))
        sound[ending] = {p[1]: p[1:] for p in asked([*task.train, *task.heldout])}
    for case in range(20):
        rng = random.Random(f"{name} {case}")
        ending = rng.choice(endings)
        path = written(tmp_path / f"{name}-{case}{ending}", spoilt(make(), rng)[0])

        def use(path=path, ending=ending):
            task = use_task(load_task("jsonl", data=path, **options))
            found = {p[1]: p[1:] for p in asked([*task.train, *task.heldout])}
            if name not in ("auto", "text"):  # there one answer says how all are compared
                assert len([q for q, p in sound[ending].items() if found.get(q) != p]) <= 2, "read as something else"

        faults.judge(f"{name} {case} {ending}", path, use)
        path.unlink()
    assert not faults, faults.said()
    assert min(faults.ended["success"], faults.ended["refused"]) > 3


@pytest.mark.parametrize("ending", FORMATS)
def test_bytes_that_are_damaged(tmp_path, ending):
    faults, path = Faults(), tmp_path / f"a{ending}"
    for name in ("number", "choice", "game"):
        make, options = TASKS[name]
        sound = written(path, make()).read_bytes()
        for case in range(12):
            rng = random.Random(f"{ending} {name} {case}")
            path.write_bytes(damaged(sound, rng))
            faults.judge(f"{ending} {name} {case}", path, lambda options=options: use_task(
                load_task("jsonl", data=path, **options)))
    assert not faults, faults.said()
    assert min(faults.ended["success"], faults.ended["refused"]) > 0


DEEP = "[" * 100_000 + "]" * 100_000
ODD = {  # name -> bytes that no editor writes by accident; {} stands for sound ones
    "nothing": b"", "blanks": b" \n\t\r\n" * 50, "line ends": b"\n" * 3_000_000, "zero bytes": b"\0" * 5000,
    "utf-8 mark": b"\xef\xbb\xbf{}", "utf-16": "\ufeffq\n".encode("utf-16"),
    "utf-16 le": "{\"q\": 1}".encode("utf-16-le"),
    "latin-1": b'{"question": "caf\xe9", "answer": "1"}\n', "a zero byte": b'{}{"question": "\0", "answer": "1"}\n',
    "cr alone": b'{}\r{}\r', "no last line end": b'{}{"question": "Last?", "answer": "9"}', "half a line": b'{}{"quest',
    "deep": b'{"question": ' + DEEP.encode() + b"}\n", "deep alone": DEEP.encode(), "deep open": b"[" * 1_000_000,
    "deep objects": b'{"a":' * 100_000, "one long line": b'{"question": "' + b"a" * 50_000_000 + b'", "answer": "1"}\n',
    "one long word": b"a" * 50_000_000, "one long cell": b'question,answer\n"' + b"a" * 20_000_000 + b'",1\n',
    "digits": b'{"question": "q?", "answer": ' + b"9" * 100_000 + b"}\n",
    "1e400": b'{"question": "q?", "answer": 1e400}\n',
    "nan": b'{"question": NaN, "answer": Infinity}\n',
    "doubled": b'{"question": "a?", "question": "b?", "answer": "1"}\n',
    "doubled often": b'{"answer": "1"' + b', "question": "a?"' * 100_000 + b"}\n",
    "many keys": ("{" + ", ".join(f'"k{i}": {i}' for i in range(100_000)) + "}\n").encode(),
    "many columns": (",".join(f"k{i}" for i in range(100_000)) + "\n").encode() * 2,
    "many lines": b'{"question": "same?", "answer": "1"}\n' * 5000, "a list of nothing": b"[]", "an object": b"{}",
    "a text": b'"question"', "null": b"null\n",
    "escapes": b'{}{"question": "\\u001b[2J\\u202e", "answer": "\\u0085"}\n',
    "quotes": b'question,answer\n"' * 1000, "an open quote": b'question,answer\n"a' + b",b\n" * 100_000,
    "sep=quote": b'sep="\nquestion,answer\nq,1\n', "sep=cr": b"sep=\r\r\nq\ra\r\n", "gzip": gzip.compress(b"{}" * 9),
    "half a gzip": gzip.compress(b"{}" * 99)[:-9], "a gzip of much": gzip.compress(b"\n" * 80_000_000, 1),
    "a gzip of a gzip": gzip.compress(gzip.compress(b"{}")), "zip": b"PK\x03\x04" + bytes(99),
    "parquet": b"PAR1" + bytes(99),
    "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x93\x94.",
}  # fmt: skip


def no_files(folder):
    """Names of what is no file to read, or none of the folder's own."""
    os.mkfifo(folder / "pipe.jsonl")
    (folder / "folder.jsonl").mkdir()
    for name, target in {"zero": "/dev/zero", "nowhere": "not-there", "circle": "circle.jsonl", "tty": "/dev/tty",
                         "null": "/dev/null"}.items():
        (folder / f"{name}.jsonl").symlink_to(target)
    return [*sorted(folder.iterdir()), Path("/dev/zero"), Path("/dev/stdin"), folder / ("x" * 300), folder / "a\0b",
            folder / "new\nline\x1b[31m.jsonl", folder / "\udcff.jsonl", Path()]


READERS = {  # what takes a file that somebody named -> sound records, how it is used beside sound data
    "data": (sums, lambda path, _: use_task(load_task("jsonl", data=path, zero_shot=True))),
    "held out": (lambda: sums(30)[12:], lambda path, sound: use_task(load_task(
        "jsonl", data=sound, heldout=path, zero_shot=True))),
    "few-shot": (lambda: [SHOT], lambda path, sound: use_task(load_task("jsonl", data=sound, few_shot=path))),
    "coins": (flips, lambda path, _: use_task(load_task("coin_flip", data=path))),
    "candidates": (lambda: written_elsewhere(), lambda path, _: answers(path)),
    "preset": (list, lambda path, _: preset(path)),
}


@functools.cache
def adder():
    return load_task("arithmetic", digits="1"), checkpoints.load_tokenizer(SHIPPED)


def written_elsewhere():
    task = adder()[0]
    return [{"problem": p.id, "text": task.gold(p), "source": "me", "scores": {"x": 1.5}} for p in task.train[:6]]


def answers(path):
    reader = Reader(*adder())
    found = reader.read(path)
    assert all(c.problem in reader.by_id and c.source.encode() and c.text.encode() for c in found)
    return reader


def preset(path):
    flags, _ = read_flags(["--preset", str(path)], "")
    return StarConfig(**flags.settings)


@pytest.mark.parametrize("name", READERS)
def test_files_that_no_editor_writes(tmp_path, name):
    faults, (make, use) = Faults(), READERS[name]
    rest = written(tmp_path / "sound.jsonl", sums())
    sound = written(tmp_path / "one.jsonl", make()).read_bytes() if make() else b"iterations = 3\n"
    for case, data in ODD.items():
        kind = ".toml" if name == "preset" else ".csv" if "cell" in case or "quote" in case else ".jsonl"
        path = tmp_path / f"odd{kind}"
        path.write_bytes(data.replace(b"{}", sound) if case not in ("an object", "gzip") else data)
        faults.judge(f"{name}: {case}", path, lambda path=path: use(path, rest))
    (tmp_path / "none").mkdir()
    for path in no_files(tmp_path / "none"):
        faults.judge(f"{name}: {path!r}", "", lambda path=path: use(path, rest), must="refused")
    assert not faults, faults.said()


FOLDERS = {  # task -> file -> sound records
    "gsm8k": {"train.jsonl": solved, "test.jsonl": lambda: solved(24)[12:]},
    "commonsenseqa": {"train_rand_split.jsonl": labelled, "dev_rand_split.jsonl": lambda: labelled(24)[12:]},
    "coin_flip": {"coin_flip.json": flips},
}


@pytest.mark.parametrize("task", FOLDERS)
def test_folders_of_data_sets(tmp_path, task):
    faults, files = Faults(), FOLDERS[task]
    for name, make in files.items():
        written(tmp_path / name, make())
    use_task(load_task(task, data=tmp_path))
    for case in range(24):
        rng = random.Random(f"{task} {case}")
        name = rng.choice(list(files))
        sound = (tmp_path / name).read_bytes()
        if case % 3:
            written(tmp_path / name, spoilt(files[name](), rng)[0])
        else:
            (tmp_path / name).write_bytes(damaged(sound, rng))
        faults.judge(f"{task} {case}", name, lambda: use_task(load_task(task, data=tmp_path)))
        (tmp_path / name).write_bytes(sound)
    for name in files:  # a pipe, a folder, a file in place of the folder
        (tmp_path / name).rename(tmp_path / "away")
        for make in (os.mkfifo, os.mkdir):
            make(tmp_path / name)
            faults.judge(f"{task} {name} {make}", "", lambda: use_task(load_task(task, data=tmp_path)), must="refused")
            (tmp_path / name).unlink() if make is os.mkfifo else (tmp_path / name).rmdir()
        (tmp_path / "away").rename(tmp_path / name)
    use_task(load_task(task, data=tmp_path))
    faults.judge(task, "", lambda: load_task(task, data=Path("/dev/zero")), must="refused")
    assert not faults, faults.said()
    assert min(faults.ended["success"], faults.ended["refused"]) > 0


def test_few_shot_examples_with_anything_in_them(tmp_path):
    faults, data = Faults(), written(tmp_path / "data.jsonl", sums())
    for case in cases(40):
        rng = random.Random(f"few-shot {case}")
        path = tmp_path / f"shots-{case}{rng.choice(['.jsonl', '.json', '.csv'])}"
        shots = [SHOT, SHOT | {"question": "What is 6 + 6?", "rationale": "It is 12.", "answer": "12"}]
        written(path, spoilt(shots, rng)[0])
        faults.judge(f"few-shot {case}", "", lambda path=path: use_task(
            load_task("jsonl", data=data, few_shot=path)))
    assert not faults, faults.said()
    assert min(faults.ended["success"], faults.ended["refused"]) > 3


def test_answers_of_others_with_anything_in_them(tmp_path):
    """One line is changed: it is refused, or the others are read as they were."""
    faults, sound = Faults(), written_elsewhere()
    for case in cases(60):
        rng = random.Random(f"candidates {case}")
        path = tmp_path / f"c{rng.choice(['.jsonl', '.json', '.csv']) if case % 2 else '.jsonl'}"
        records, at = spoilt(sound, rng)
        written(path, records)
        if case % 5 == 0:
            path.write_bytes(damaged(path.read_bytes(), rng))

        def use(path=path, at=at, whole=case % 5 != 0):
            reader = Reader(*adder(), skip_bad=True)
            found = {(c.problem, c.text) for c in reader.read(path)}
            lost = [r for i, r in enumerate(sound) if i != at and (r["problem"], r["text"]) not in found]
            if whole and at and path.suffix == ".jsonl":  # the first line says which scores there are
                assert not lost
            assert all(n.encode() for n in reader.notes)
            answers(path)

        faults.judge(f"candidates {case}", path, use)
    assert not faults, faults.said()
    assert min(faults.ended["success"], faults.ended["refused"]) > 3


SETTINGS = {"task": "arithmetic", "digits": "1-2", "iterations": 2, "temperature": 0.5, "samples": 1,
            "rationalize": True, "problems": 40, "model": "tiny", "rank": 4, "dtype": "float32"}  # fmt: skip
TOML = ["true", "-1", "0", "0x7fffffffffffffff", "9" * 5000, "1e400", "-inf", "nan", '""', '"x"', '"\\u001b[31m"',
        "''''''", "[]", "[1]", "{}", "{a = 1}", "1979-05-27", "07:32:00", "[" * 500 + "]" * 500,
        '"' + "n" * 900_000 + '"', "1 2", '"a\nb"', "\x1b", '"../../etc/passwd"', '"/dev/zero"',
        '"mine.py"', "'\udcff'"]  # fmt: skip


def test_presets_with_anything_in_them(tmp_path):
    """A preset is refused, or gives settings that a run may have; nothing of it is loaded yet."""
    faults, path = Faults(), tmp_path / "preset.toml"
    for case in cases(90):
        rng = random.Random(f"preset {case}")
        chosen = {k: json.dumps(v) for k, v in rng.sample(list(SETTINGS.items()), 4)}
        key, kind = rng.choice(list(chosen)), rng.random()
        strange = rng.choice(["nonsense", '"a b"', '"\\u001b"', "a.b", "Digits"])
        if case % 5:
            chosen[key if kind < 0.7 else strange] = rng.choice(TOML)
        text = "".join(f"{k} = {v}\n" for k, v in chosen.items()) + f"{key} = 1\n" * (kind > 0.95)
        data = text.encode(errors="surrogateescape")
        path.write_bytes(damaged(data, rng) if case % 4 == 0 else data)
        faults.judge(f"preset {case}", "", lambda: preset(path))
    assert not faults, faults.said()
    assert min(faults.ended["success"], faults.ended["refused"]) > 3


def test_options_of_a_task_that_are_anything():
    """From a command line they are texts; in the config.json of a run, whatever stands there."""
    faults = Faults()
    for case in cases(60):
        rng = random.Random(f"options {case}")
        option, task = rng.choice([
            ("digits", "arithmetic"), ("digits", "columns"), ("shots", "columns"), ("data", "jsonl"),
            ("fields", "jsonl"), ("zero_shot", "gsm8k"), ("few_shot", "jsonl"), ("grade", "jsonl"),
            ("template", "jsonl"),
            ("heldout_share", "jsonl"), ("records", "jsonl")])
        more = [float("nan"), float("inf"), 10**5000, "\0", "0-0", "1-" + "9" * 5000, "\udcff", "a" * 5000]
        value = rng.choice([v for v in VALUES if not isinstance(v, Raw)] + more)
        given = {"data": "sound.jsonl"} if task == "jsonl" else {"data": "."} if task == "gsm8k" else {}
        faults.judge(f"{task} {option}", "", lambda task=task, given=given | {option: value}: use_task(
            load_task(task, **given)))
    assert not faults, faults.said()


# ---------------------------------------------------------------------------------------------------------- run folders


@pytest.fixture(scope="module")
def sound_run(tmp_path_factory):
    """A small run that has finished, by train.py."""
    folder = tmp_path_factory.mktemp("runs") / "sound"
    commanded(train.main, [
        "--out", str(folder), "--model", str(SHIPPED), "--digits", "1-2", "--problems", "30", "--first-steps", "1",
        "--iterations", "2", "--heldout-problems", "20", "--rank", "1", "--samples", "2", "--temperature", "1",
        "--validation", "20"])
    return folder


def look(folder, rng):
    """What people do with a run that they have been given, as commands of a session."""
    return rng.choice([
        lambda: commanded(sample.main, ["--run", str(folder)]),
        lambda: commanded(sample.main, ["--run", str(folder), "--verdict", "wrong", "--iteration", "1"]),
        lambda: commanded(sample.main, ["--run", str(folder), "--phase", "rationalize", "--limit", "3"]),
        lambda: commanded(report.main, [str(folder)]),
        lambda: commanded(report.main, [str(folder)]),
        lambda: drawn(folder), lambda: drawn(folder), lambda: resume(folder), lambda: resume(folder),
        lambda: commanded(train.main, ["--resume", str(folder), "--check"]),
        lambda: commanded(train.main, ["--resume", str(folder)]),
    ])


def drawn(folder):
    run = Run.open(folder)
    progress.summary(run, None)
    (folder / "curves.png").unlink(missing_ok=True)
    plots.curves(folder / "curves.png", run.metrics())


def resume(folder):
    run, state, _ = Run.resume(folder)
    run.close()
    assert state.iteration == run.iteration


JSON = ("config.json", "state.json")
LINES = ("metrics.jsonl", "timings.jsonl", "samples/iter-000.jsonl", "samples/iter-001.jsonl", "samples/iter-002.jsonl")


def change(folder, rng):
    """Spoil one file of a run, as another version, a full disk or a stranger would."""
    name = rng.choice(JSON + LINES + LINES)
    path, kind = folder / name, rng.random()
    if kind < 0.15:
        path.write_bytes(damaged(path.read_bytes(), rng))
    elif kind < 0.25:
        path.write_bytes(rng.choice([data for case, data in ODD.items() if len(data) < 5_000_000]))
    elif kind < 0.35:
        path.unlink()
        rng.choice([path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("/dev/zero"), lambda: None,
                    lambda: path.symlink_to(path), lambda: path.symlink_to("/etc/passwd")])()
    elif name in JSON:
        sound = json.loads(path.read_text())
        within = [at for at in paths(sound) if rng.random() < 0.5 or at[0] != "settings"]
        path.write_text(dumped(mutated(sound, rng, within)), encoding="utf-8", errors="surrogatepass")
    else:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        some = spoilt(records, rng)[0]
        if kind > 0.9:
            some = rng.choice([records[1:], records + records, records[::-1], [*records, []], [[], *records]])
        path.write_text(lines(some), encoding="utf-8", errors="surrogatepass")
    return name


def test_run_folders_that_somebody_spoilt(tmp_path, sound_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    faults = Faults()
    for case in cases(150):
        rng = random.Random(f"run {case}")
        folder = tmp_path / f"run-{case}"
        shutil.copytree(sound_run, folder)
        name = change(folder, rng)
        faults.judge(f"run {case} {name}", "", look(folder, rng))
        shutil.rmtree(folder)
    assert not faults, faults.said()
    assert min(faults.ended["success"], faults.ended["refused"]) > 10


FORKING = """
import contextlib, io, json, os, runpy, sys
import train, sample
with contextlib.redirect_stdout(io.StringIO()):
    train.main(["--check"])  # imports what is imported on first use
for line in sys.stdin:
    argv = json.loads(line)
    if (child := os.fork()) == 0:
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.argv = argv
        try:
            runpy.run_path(argv[0], run_name="__main__")
        except SystemExit as e:
            os._exit(e.code)  # its end takes half a second, and is the same for all
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, open("out", errors="replace").read(), open("err", errors="replace").read()]), flush=True)
"""


def test_commands_refuse_in_one_line(tmp_path):
    """As processes of their own, each a copy of one that has imported torch: exit code 2, one line, no traceback."""
    written(tmp_path / "sound.jsonl", sums())
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    argvs = []
    for case in ("deep", "utf-16", "a gzip of much"):
        (tmp_path / f"{case}.jsonl").write_bytes(ODD[case])
        argvs.append(["train.py", "--task", "jsonl", "--zero-shot", "--check", "--data", f"{case}.jsonl"])
    (tmp_path / "deep.toml").write_bytes(ODD["deep"])
    jsonl = ["train.py", "--task", "jsonl", "--check", "--data", "sound.jsonl"]
    argvs += [
        ["train.py", "--task", "jsonl", "--zero-shot", "--check", "--data", "pipe.jsonl"],
        [*jsonl, "--few-shot", "/dev/zero"], [*jsonl, "--few-shot", "deep.jsonl"],
        ["train.py", "--preset", "deep.toml"], [*jsonl, "--zero-shot", "--heldout", "utf-16.jsonl"],
        ["train.py", "--check", "--candidates", "deep.jsonl"],
        ["train.py", "--check", "--candidates", "pipe.jsonl"], ["train.py", "--resume", "run"],
        ["train.py", "--show", "-5"], ["train.py", "--resume", "/dev/zero"], ["sample.py", "--run", "run"],
        ["sample.py", "--run", "sound.jsonl"], ["sample.py", "\x1b[31m"],
    ]
    asked = [json.dumps([str(ROOT / script), *argv]) + "\n" for script, *argv in argvs]
    done = subprocess.run([sys.executable, "-c", FORKING], input="".join(asked), cwd=tmp_path, capture_output=True,
                          text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    ended = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ended) == len(argvs) == 16
    for argv, (code, _, err) in zip(argvs, ended, strict=True):
        assert code == 2, (argv, err)
        assert err.startswith("error: "), (argv, err)
        assert err.removesuffix("\n").isprintable(), (argv, err)
        assert len(err) < 2010, argv


@pytest.mark.parametrize("where", ["inside", "relative"])
def test_a_run_brings_no_program_along(tmp_path, sound_run, monkeypatch, where):
    """config.json may name a task by its file: one that came with the folder, or is looked for here, is not started."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound_run, "given")
    program = Path("given/samples/task.py").absolute() if where == "inside" else Path("given.py")
    program.write_text("open('owned', 'w')\n")
    written_by = json.loads(Path("given/config.json").read_text())
    written_by["settings"]["task"] = str(program)
    Path("given/config.json").write_text(json.dumps(written_by))
    for main, argv in ((sample.main, ["--run", "given", "1+1"]), (train.main, ["--resume", "given", "--extend", "1"]),
                       (export.main, ["--run", "given", "out"]), (report.main, ["given"])):
        with pytest.raises(ValueError, match="it is not started"):
            commanded(main, argv)
    assert not Path("owned").exists()


def test_a_damaged_run_beside_others_is_passed_over(tmp_path, sound_run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound_run, "runs/sound")
    for name, data in (("a", b"{"), ("b", b"[]"), ("c", DEEP.encode()), ("d", b"\xff")):
        Path("runs", name).mkdir()
        Path("runs", name, "state.json").write_bytes(data)
    Path("runs/e/state.json").mkdir(parents=True)
    assert newest_finished() == Path("runs/sound")


def test_a_long_template_is_no_file_name(tmp_path):
    options = {"data": written(tmp_path / "d.jsonl", sums()), "template": "{question} " + "Think well. " * 99}
    assert str(options["data"]) in inputs(StarConfig(model=str(SHIPPED)), options)
