"""The structure: who may import whom, what may be imported at all, how long functions are, how large the tree is."""

import ast
import io
import subprocess
import sys
import tokenize

import pytest
from conftest import ROOT

LAYERS = [
    {"kernels", "star.problem", "star.config", "star.draws", "star.text", "star.data", "star.verifier"},
    {"star.decoder", "star.positions", "star.cache", "star.lora", "star.tasks"},
    {"star.sampler", "star.batch", "star.prompts", "star.reward", "checkpoints"},
    {"star.finetune", "star.evaluate", "star.select", "star.pool", "star.judge", "star.cost"},
    {"star.loop"},
    {"star.run", "star.history"},
    {"train", "sample", "star.experiments"},
]
CORE = {
    "train",
    "sample",
    "star.loop",
    "star.finetune",
    "star.evaluate",
    "star.sampler",
    "star.draws",
    "star.text",
    "star.batch",
    "star.prompts",
    "star.decoder",
    "star.positions",
    "star.cache",
    "star.lora",
    "star.problem",
    "star.config",
    "star.tasks",
    "star.tasks.arithmetic",
    "kernels",
}
OPTIONAL = {"matplotlib", "regex", "gguf", "jinja2"}  # packages of the extras, imported where they are needed
FILES = sorted(
    [*ROOT.glob("*.py"), *(p for top in ("star", "kernels", "checkpoints") for p in (ROOT / top).rglob("*.py"))]
)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module):
    """Index into LAYERS; packages that stand there as a whole count with all their files. None: not ours."""
    for i, members in enumerate(LAYERS):
        if any(
            module == m
            or (m in {"kernels", "star.tasks", "checkpoints", "star.experiments"} and module.startswith(m + "."))
            for m in members
        ):
            return i
    return None


def imports(tree):
    """(line, module, at the top) of every import; `from star import lora` counts as star.lora."""
    top = set(tree.body)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / (whole.replace(".", "/") + ".py")).exists()
                yield node.lineno, whole if is_module else node.module, node in top


def violations(path):
    me, tree, found = module_name(path), ast.parse(path.read_text()), []
    mine = layer(me)
    if mine is None and me not in {"star"}:
        found.append(f"{me} is in no layer")
    for line, name, at_top in imports(tree):
        theirs = layer(name)
        if theirs is None:
            if name.split(".")[0] in {"transformers", "peft", "tokenizers", "huggingface_hub", "triton", "pickle"}:
                found.append(f"{path.name}:{line} imports {name}")
            elif not at_top and name.split(".")[0] not in OPTIONAL:
                found.append(f"{path.name}:{line} imports {name} inside a function")
        elif mine is not None and theirs > mine:
            found.append(f"{me} (layer {mine}) imports {name} (layer {theirs})")
        elif me.startswith("kernels") and not name.startswith("kernels"):
            found.append(f"{me} imports {name}")
        elif not at_top:
            found.append(f"{path.name}:{line} imports {name} inside a function")
    return found


def test_imports_go_down_only():
    found = [v for path in FILES for v in violations(path)]
    assert not found, "\n".join(found)


def test_no_two_files_import_each_other():
    graph = {module_name(p): {name for _, name, _ in imports(ast.parse(p.read_text()))} for p in FILES}
    pairs = [(a, b) for a in graph for b in graph[a] if b in graph and a in graph[b] and a != b]
    assert not pairs


def test_core_takes_from_around_only_loading_and_saving():
    allowed = {"load_model", "load_tokenizer", "load_adapter", "save_adapter", "describe"}
    for path in FILES:
        if module_name(path) not in CORE - {"train", "sample"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module.startswith("checkpoints"):
                assert {a.name for a in node.names} <= allowed, f"{path}:{node.lineno}"


@pytest.mark.parametrize("bad", ["from star.loop import star", "import transformers", "def f():\n    import torch"])
def test_the_layer_test_can_fail(tmp_path, monkeypatch, bad):
    monkeypatch.setattr(sys.modules[__name__], "module_name", lambda path: "star.decoder")
    path = tmp_path / "decoder.py"
    path.write_text(bad)
    assert violations(path)


def test_functions_are_short():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{path}: {node.name}"


def code_lines(path):
    """Lines of code: not blank, not comment, not docstring."""
    text = path.read_text()
    tree = ast.parse(text)
    skipped = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in skipped:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            doc = node.body[0]
            lines -= set(range(doc.lineno, doc.end_lineno + 1))
    return len(lines)


def test_line_report(report, tmp_path):
    example = tmp_path / "a.py"
    example.write_text(
        '"""doc\nstring"""\n\n# comment\nx = 1  # one\n\n\ndef f():\n    """doc"""\n    return (x,\n            2)\n'
    )
    assert code_lines(example) == 4
    counts = {module_name(p): code_lines(p) for p in FILES}
    core = sum(n for m, n in counts.items() if m in CORE or m.startswith("kernels."))
    report(f"lines of code: core {core}, all {sum(counts.values())} (blank lines, comments and docstrings not counted)")


def test_importing_the_package_needs_no_extra():
    """The core runs with its dependencies alone: the packages of the extras are imported where they are needed."""
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in OPTIONAL)
    code = f"import sys; {absent}import train, sample, checkpoints, star.experiments.tiny_adder"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
