"""READMEs say what is true: links, settings, file lists, the task and the script are held against the code."""

import ast
import re
import subprocess
import sys
import tomllib
from dataclasses import fields

import pytest
from conftest import ROOT

import star.tasks
import train
from star.config import StarConfig, kind_of
from star.run.flags import PRESETS
from star.run.folder import read_lines
from star.tasks import load_task

PLACES = ("", "star", "star/tasks", "star/experiments", "kernels", "checkpoints", "checkpoints/tiny-adder",
          "tests/bench")
PAGES = {p: p.read_text(encoding="utf-8") for p in (ROOT / place / "README.md" for place in PLACES)}
README, STAR = PAGES[ROOT / "README.md"], PAGES[ROOT / "star" / "README.md"]
LINKS = re.findall(r"\[`([\w.]+)`\]\(([\w/.-]+)#L(\d+)\)", README)


def code_block(after: str, page: str = README) -> str:
    return page.partition(after)[2].partition("```")[2].partition("\n")[2].partition("```")[0]


def settings_table() -> str:
    """The table of star/README.md, from the settings themselves and three presets."""
    presets = [tomllib.loads((PRESETS / f"{name}.toml").read_text()) for name in ("paper", "modern", "quick")]

    def cell(value):
        return "" if value is None else "yes" if value is True else "no" if value is False else f"`{value}`"

    rows = ["| flag | default | `paper` | `modern` | `quick` | what it does |", "|---|---|---|---|---|---|"]
    for f in fields(StarConfig):
        name = f.name.replace("_", "-")
        flag = f"`--{name}`, `--no-{name}`" if kind_of(f) is bool else f"`--{name}`"
        choices = ", ".join(f"`{c}`" for c in f.metadata["choices"])
        cells = [flag, cell(f.default), *(cell(p.get(f.name)) for p in presets),
                 f.metadata["help"] + (f" ({choices})" if choices else "")]
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


@pytest.mark.parametrize(("name", "path", "line"), LINKS, ids=[f"{n} {p}:{i}" for n, p, i in LINKS])
def test_a_linked_line_holds_the_named_function(name, path, line):
    text = (ROOT / path).read_text().splitlines()[int(line) - 1]
    assert re.search(rf"\b(def|class) {name.rpartition('.')[2]}\b", text), text


def test_every_step_of_the_algorithm_has_a_link():
    section = README.partition("## The algorithm")[2].partition("\n## ")[0]
    steps = re.split(r"^\d\. ", section, flags=re.M)[1:]
    assert len(steps) == 7
    assert all("#L" in step for step in steps)


@pytest.mark.parametrize("page", PAGES, ids=[str(p.relative_to(ROOT)) for p in PAGES])
def test_linked_files_and_sections_exist(page):
    for path, _, section in re.findall(r"\]\((?!http)([\w/.-]*?)(#([\w-]+))?\)", PAGES[page]):
        target = (page.parent / path) if path else page
        assert target.exists(), path
        if section and not re.fullmatch(r"L\d+", section):
            heads = re.findall(r"^#+ (.*)$", (target if target.is_file() else target / "README.md").read_text(), re.M)
            assert section in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in heads}, section


def test_the_first_page_is_short():
    assert README.count("\n") <= 250


def test_every_source_file_is_named_on_the_page_of_its_folder():
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "*.py"], cwd=ROOT, capture_output=True,
                             text=True, check=False)
    for file in tracked.stdout.split():
        folder, _, name = file.rpartition("/")
        page = next(page for page in (ROOT / folder).joinpath("x").parents if page / "README.md" in PAGES)
        if name != "__init__.py" and not re.match(r"tests/\w+\.py", file) and (ROOT / file).exists():
            stem = name.removesuffix(".py")
            assert re.search(rf"\b{re.escape(name)}\b|`{stem}`", PAGES[page / "README.md"]), f"{file} on {page}'s page"
    there = {file.rpartition("/")[2] for file in tracked.stdout.split()} | {"doubling.py"}
    for page, text in PAGES.items():
        for name in re.findall(r"\b([\w-]+\.py)\b", text):
            assert name in there, f"{page} names {name}, which is not there"


def test_every_setting_stands_in_the_table_with_its_default():
    assert settings_table() in STAR, f"star/README.md needs this table:\n{settings_table()}"


def names_of(node) -> set[str]:
    """What a statement defines."""
    targets = [*getattr(node, "targets", ()), getattr(node, "target", None)]
    return {getattr(node, "name", None), *(t.id for t in targets if isinstance(t, ast.Name))}


def test_places_that_the_index_names_are_there():
    """ "Where is ...": every `file.function` of the index exists."""
    section = README.partition("Where is what")[2].partition("\nOther methods")[0]
    named = re.findall(r"`([\w/]+(?:\.[\w]+)+)(?:\(.*?\))?`", section)
    assert len(named) > 15
    for name in named:
        module, *parts = name.split(".")
        path = next(p for p in (ROOT / "star" / f"{module}.py", ROOT / f"{module}.py") if p.exists())
        body = ast.parse(path.read_text()).body
        for part in parts:
            node = next((n for n in body if part in names_of(n)), None)
            assert node is not None, f"{name}: no {part} in {path}"
            body = getattr(node, "body", [])


@pytest.fixture
def doubling(tmp_path, monkeypatch):
    """Somebody who saw only README puts its example into star/tasks."""
    code = code_block("## Your own task")
    assert len(code.splitlines()) <= 40
    (tmp_path / "doubling.py").write_text(code)
    monkeypatch.setattr(star.tasks, "__path__", [*star.tasks.__path__, str(tmp_path)])
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("star.tasks.doubling", None)


def test_the_task_example_runs(doubling, capsys):
    assert train.main(["--task", "doubling", "--iterations", "1", "--problems", "150", "--first-steps", "16",
                       "--heldout-problems", "60"]) == 0
    base, first = read_lines(doubling / "runs" / "doubling-001" / "metrics.jsonl")
    assert first["kept"] > 0
    assert first["rationalized"] > 0
    assert first["accuracy"]["mean"] > base["accuracy"]["mean"] + 0.1


def test_the_task_example_has_few_shot_text(doubling, capsys):
    assert train.main(["--task", "doubling", "--shots", "2", "--check"]) == 0
    task = load_task("doubling", shots=2)
    first, second = task.shots
    assert task.prefix == "".join(f"{s.problem.question}\n{s.rationale}\n\n" for s in (first, second))
    assert task.hint_prefix.startswith(f"hint {first.problem.answer}\n")
    assert {first.problem.id, second.problem.id}.isdisjoint(p.id for p in [*task.train, *task.heldout])
    assert "        hint" in capsys.readouterr().out


def test_the_script_runs(capsys):
    code = code_block("## Your own script", STAR)
    assert sum(bool(line.strip()) for line in code.splitlines()) <= 20
    less = code.replace("problems=300, heldout_problems=100", "problems=200, heldout_problems=100")
    assert less != code
    exec(compile(less, "script", "exec"), {})
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    shares = [float(line[1]) for line in lines if line[0].isdecimal()]
    assert len(shares) == 2
    assert shares[1] > shares[0]


def test_commands_are_those_that_ci_runs():
    for part in ("main job", "tests"):
        block = README.partition(f"<!-- {part} -->")[2].partition("```bash\n")[2].partition("```")[0]
        assert block.count("\n") == 1, "one line"
        assert "-r requirements.txt" in block
