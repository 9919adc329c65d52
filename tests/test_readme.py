"""README says what is true: its links, its settings, its task and its file tree are checked against the code."""

import re
import subprocess
from dataclasses import fields

import pytest
from conftest import ROOT

import star.tasks
import train
from star.config import PRESETS, StarConfig
from star.run import read_lines

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINKS = re.findall(r"\[`([\w.]+)`\]\(([\w/.-]+)#L(\d+)\)", README)


NO_SETTINGS = ("out", "resume", "preset", "show", "price-per-hour", "check")


def code_block(after: str) -> str:
    return README.partition(after)[2].partition("```")[2].partition("\n")[2].partition("```")[0]


@pytest.mark.parametrize(("name", "path", "line"), LINKS, ids=[f"{n} {p}:{i}" for n, p, i in LINKS])
def test_a_linked_line_holds_the_named_function(name, path, line):
    text = (ROOT / path).read_text().splitlines()[int(line) - 1]
    assert re.search(rf"\b(def|class) {name.rpartition('.')[2]}\b", text), text


def test_every_step_of_the_algorithm_has_a_link():
    section = README.partition("## The algorithm")[2].partition("\n## ")[0]
    steps = re.split(r"^\d\. ", section, flags=re.M)[1:]
    assert len(steps) == 7
    assert all("#L" in step for step in steps)


def test_linked_files_exist():
    for path in re.findall(r"\]\((?!http)([\w/.-]+?)(?:#[\w-]+)?\)", README):
        assert (ROOT / path).exists(), path


def test_the_file_tree_names_every_source_file():
    tree = code_block("## The files")
    tracked = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False)
    for file in tracked.stdout.split():
        name = file.rpartition("/")[2]
        if not file.startswith("tests/") and name != "__init__.py":
            assert re.search(rf"\b{re.escape(name)}\b", tree), f"{file} is not in README's file tree"
    for name in re.findall(r"\b([\w-]+\.py)\b", tree):
        assert list(ROOT.rglob(name)), f"README's file tree names {name}, which is not there"


def test_every_setting_stands_in_the_table_with_its_default():
    section = README.partition("## Settings")[2]
    rows = re.findall(r"^\| `--([\w-]+)` \| (.*?) \| (.*?) \| (.*?) \| (.*?) \|", section, re.M)
    table = {name: cells for name, *cells in rows if name not in NO_SETTINGS}
    assert table == {
        f.name.replace("_", "-"): ["" if f.default is None or f.default is False else f"`{f.default}`",
                                   *(f"`{p[f.name]}`" if f.name in p else "" for p in PRESETS.values())]
        for f in fields(StarConfig)}


def test_the_task_example_runs(tmp_path, monkeypatch, capsys):
    """Somebody who saw only README puts this file into star/tasks and trains on it."""
    code = code_block("## Add a task of your own")
    assert len(code.splitlines()) <= 40
    name = re.search(r"star/tasks/(\w+)\.py", code)[1]
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.setattr(star.tasks, "__path__", [*star.tasks.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    assert train.main(["--task", name, "--iterations", "1", "--problems", "300", "--first-steps", "25"]) == 0
    capsys.readouterr()
    base, first = read_lines(tmp_path / "runs" / f"{name}-001" / "metrics.jsonl")
    assert first["kept"] > 0
    assert first["rationalized"] > 0
    assert first["accuracy"]["mean"] > base["accuracy"]["mean"] + 0.1


def test_commands_are_those_that_ci_runs():
    for part in ("main job", "tests"):
        block = README.partition(f"<!-- {part} -->")[2].partition("```bash\n")[2].partition("```")[0]
        assert block.count("\n") == 1, "one line"
        assert "-r requirements.txt" in block
