"""What reaches a terminal: whatever files are called, say, or make a model write, none of it is obeyed there."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SHIPPED
from safetensors.torch import load_file, save_file
from test_commands import parrot, verified

import checkpoints
import sample
import train
from star.experiments import export, report
from star.run.screen import Screen, legible

SIGNS = "\x1b[2J\x1b]0;title\x07\r\x08\x9b5m\u202e\u2028\x85\x7f\ufeff"  # what terminals obey, or write right to left
pytestmark = pytest.mark.usefixtures("own_folder")


def calm(text, also=""):
    """Nothing in it but what can be seen, and line ends."""
    odd = {c for c in text if not (c.isprintable() or c in "\n\t" or c in also)}
    assert not odd, (odd, text[-2000:])
    return text


def test_legible_keeps_what_can_be_seen():
    assert legible("a\tb\n漢字\u3000é 10\xa0% 👩\u200d🚀") == "a\tb\n漢字\u3000é 10\xa0% 👩\u200d🚀"
    calm(legible(SIGNS + "\ud800").replace("\n", ""))
    assert legible("\x1b[31m\r\n") == "\\x1b[31m\\r\n"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_screen_lets_its_own_colours_pass_on_a_terminal_alone():
    for stream, shown in ((Terminal(), "\x1b[32mgood\x1b[0m"), (io.StringIO(), "\\x1b[32mgood\\x1b[0m")):
        Screen(stream).write("\x1b[32mgood\x1b[0m\x1b[2J\x1b[8m")
        assert stream.getvalue() == shown + "\\x1b[2J\\x1b[8m"
    bar = io.StringIO()
    Screen(bar, kept="\r").write("\r 5%\x1b[A\r10%")
    assert bar.getvalue() == "\r 5%\\x1b[A\r10%"


FULL = "error: not all that was said could be written: [Errno 28] No space left on device\n"
CHATTY = """
import sys
from star.run.flags import command

@command
def chatty(argv):
    for n in range(50_000):
        print(f"line {n} \xe9")
    open("done", "w").close()

sys.exit(chatty())
"""


def test_a_command_goes_on_when_nobody_reads_it(tmp_path):
    """`| head` has seen enough: that is no failure. A full disk is one, but the work is done all the same."""
    (tmp_path / "chatty.py").write_text(CHATTY, encoding="utf-8")
    for to, ended, said, seen in (
            ("2>&- | head -2", 0, "", "line 0 \\xe9\nline 1 \\xe9\n"),
            ("> /dev/full", 2, FULL, "")):
        (tmp_path / "done").unlink(missing_ok=True)
        shell = f"set -o pipefail; {sys.executable} chatty.py {to}"
        done = subprocess.run(["bash", "-c", shell], cwd=tmp_path, capture_output=True, text=True, check=False,
                              env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"})
        assert (done.returncode, done.stderr, done.stdout) == (ended, said, seen)
        assert (tmp_path / "done").exists()


def test_a_command_whose_streams_were_closed_before_it_began(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert train.main(["--show", "-5"]) == 2
    assert train.main(["--check"]) == 0
    assert sys.stdout is None


@pytest.fixture
def babbler(tmp_path):
    """A model that writes nothing but the character that begins escape sequences."""
    parrot("babbler")
    tensors, words = load_file("babbler/model.safetensors"), checkpoints.load_tokenizer("babbler")
    tensors["lm_head.weight"] = torch.zeros_like(tensors["lm_head.weight"])
    tensors["lm_head.weight"][words.encode("\x1b", special=False)[-1], 0] = 1.0
    save_file(tensors, "babbler/model.safetensors")
    return tmp_path / "babbler"


def hostile_data():
    """A data file with such signs in its name and in each of its fields; its flags."""
    path = Path(f"d{SIGNS}\nnote    all is well.jsonl".replace("/", ""))
    path.write_text("".join(json.dumps({
        "q": f"{SIGNS} {i}?\n\x1b[31mred\nerror: forged", "a": "ABC"[i % 3], "g": f"{SIGNS}\n{i % 2}",
        "choices": [f"{i}{SIGNS}", f"x\r{i}", f"y\n{i}"]}) + "\n" for i in range(30)))
    return ["--task", "jsonl", "--data", str(path), "--zero-shot", "--fields",
            "question=q,answer=a,group=g,choices=choices", "--max-new-tokens", "3"]


@pytest.fixture
def said(capsys):
    """Runs a command: what it says, on both streams, all of it calm; with its exit code."""
    def run(main, argv, code=0, **also):
        ended = main(argv)
        out = capsys.readouterr()
        assert ended == code, out
        return calm(out.out, **also) + calm(out.err, **also)
    return run


def test_a_run_of_hostile_names_on_a_model_that_babbles(babbler, said, monkeypatch):
    run = ["--model", str(babbler), *hostile_data()]
    assert "forged" in said(train.main, [*run, "--check"])
    assert "likely" in said(train.main, [*run, "--iterations", "1", "--problems", "9", "--out", "failed\x1b[31m"], 2)
    assert "\\x1b" in said(sample.main, ["--run", "failed\x1b[31m"])
    verified(monkeypatch, "right")
    small = ["--iterations", "1", "--problems", "9", "--first-steps", "1", "--validation", "3", "--out", "run"]
    table = said(train.main, [*run, *small])
    assert "\\x1b" in table
    assert not [line for line in table.splitlines() if line.startswith(("error: forged", "note    all is well"))]
    for argv in (["--run", "run"], ["--run", "run", "--verdict", "right"], ["--run", "run", "--problem", "\x1b"],
                 ["--run", "run", "--trace", "--problem", "1"], ["--run", "run", "--trace", f"{SIGNS}\n?"]):
        said(sample.main, argv, 2 if argv[-1] in ("\x1b", f"{SIGNS}\n?") else 0)
    assert "\\x1b\\x1b\\x1b" in said(sample.main, ["--model", str(babbler), f"Say {SIGNS}", "--max-new-tokens", "3"])
    assert "\\x1b\\x1b\\x1b" in said(sample.main, ["--model", str(babbler), *run[2:], f"Say {SIGNS}"])
    said(report.main, ["run"])
    page = Path("run/report.html").read_text()
    calm(page)
    assert "\\u001b" in page
    said(export.main, ["--run", "run", "--iteration", "1", "out\x1b[31m"])
    typed = iter([f"Say {SIGNS}", ""])
    monkeypatch.setattr("builtins.input", lambda _: next(typed, None) or (_ for _ in ()).throw(EOFError))
    said(sample.main, ["--run", "run", "--ask"])
    said(sample.main, ["--run", "run", "--questions", f"asked{SIGNS}"])


def test_the_help_of_a_task_file_and_its_mistakes(said):
    Path("mine.py").write_text(f'def load(words: str = {SIGNS!r}):\n    """T\n\n    words: {SIGNS}\n    """\n'
                               f"    raise ValueError({SIGNS!r} + '\\nerror: forged')\n".replace("\r", "\\r"))
    with pytest.raises(SystemExit):
        train.main(["--task", "mine.py", "--help"])
    said(lambda _: 0, [])  # what the help printed
    assert said(train.main, ["--task", "mine.py"], 2).count("\n") == 1
    assert said(train.main, [f"--{SIGNS}\n", "x"], 2).count("\n") == 1
    assert said(train.main, ["--task", f"{SIGNS}\n.py"], 2).count("\n") == 1
    assert said(train.main, ["--model", f"{SIGNS}\n"], 2).count("\n") == 1
    assert said(sample.main, [f"{SIGNS}\n"], 2).count("\n") == 2  # the model's line, and one error


@pytest.mark.parametrize(("main", "argv", "words"), [
    (train.main, ["--show", "-5"], "--show is -5"), (train.main, ["--price-per-hour", "nan"], "is nan"),
    (train.main, ["--price-per-hour", "-1"], "is -1.0"), (sample.main, ["1+1", "--temperature", "nan"], "is nan"),
    (sample.main, ["1+1", "--temperature", "-1"], "is -1.0"), (sample.main, ["1+1", "--seed", "-1"], "--seed is -1"),
    (sample.main, ["1+1", "--max-new-tokens", "0"], "--max-new-tokens is 0"),
    (sample.main, ["1+1", "--seed", str(10**30)], "--seed is 1000"),
    (sample.main, ["--rollouts", "f", "--samples", "-2"], "--samples is -2"),
    (sample.main, ["--run", str(SHIPPED), "--limit", "0"], "--limit is 0")])
def test_numbers_that_no_flag_takes(said, main, argv, words):
    line = said(main, argv, 2)
    assert words in line
    assert line.count("\n") == 1
