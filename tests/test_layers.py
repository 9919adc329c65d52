"""The structure: who may import whom, what may be imported at all, how long functions and files are, how large the tree
is."""

import ast
import graphlib
import io
import subprocess
import sys
import tokenize

import pytest
from conftest import ROOT

LAYERS = [
    {"kernels", "star.problem", "star.config", "star.draws", "star.text", "star.device", "star.proof", "star.ranks"},
    {"star.decoder", "star.positions", "star.cache", "star.lora", "star.tasks"},
    {"star.sampler", "star.schedule", "star.batch", "star.prompts", "star.reward", "star.shard", "checkpoints"},
    {"star.rollout", "star.finetune", "star.evaluate", "star.select", "star.judge", "star.best_of",
     "star.degenerate", "star.drift"},
    {"star.pool"},
    {"star.loop"},
    {"star.run"},
    {"train", "sample", "star.experiments"},
]
WHOLE = ("kernels", "star.tasks", "checkpoints", "star.run", "star.experiments")  # packages with all their files
ENGINE = {"loop", "rollout", "finetune", "evaluate", "sampler", "schedule", "draws", "text", "batch", "prompts",
          "decoder", "positions", "cache", "lora", "problem", "config", "ranks"}  # fmt: skip
CORE = {"train", "sample", "star.tasks.arithmetic", "kernels", *(f"star.{name}" for name in ENGINE)}
OPTIONAL = {"fcntl", "matplotlib", "regex", "gguf", "jinja2", "pyarrow", "torch.utils.tensorboard",
            "torch.distributed.fsdp"}  # extras, systems; and what takes a second to import
FOREIGN = {"transformers", "peft", "tokenizers", "huggingface_hub", "triton", "pickle"}
FILES = sorted(
    [*ROOT.glob("*.py"), *(p for top in ("star", "kernels", "checkpoints") for p in (ROOT / top).rglob("*.py"))]
)


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def layer(module):
    """Index into LAYERS. None: not ours."""
    name = next((package for package in WHOLE if module.startswith(package + ".")), module)
    return next((i for i, members in enumerate(LAYERS) if name in members), None)


def is_module(name):
    file = ROOT / name.replace(".", "/")
    return file.with_suffix(".py").exists() or (file / "__init__.py").exists()


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
                yield node.lineno, whole if is_module(whole) else node.module, node in top


def violations(me, text):
    """What a module of this name and text imports and must not."""
    mine, found = layer(me), []
    if mine is None and me != "star":
        found.append(f"{me} is in no layer")
    for line, name, at_top in imports(ast.parse(text)):
        theirs, top = layer(name), name.split(".")[0]
        if top in FOREIGN or name in ("train", "sample") or (me.startswith("kernels") and theirs and top != "kernels"):
            found.append(f"{me}:{line} imports {name}")
        elif not at_top and (theirs is not None or OPTIONAL.isdisjoint((top, name))):
            found.append(f"{me}:{line} imports {name} inside a function")
        elif theirs is not None and mine is not None and theirs > mine:
            found.append(f"{me}:{line} (layer {mine}) imports {name} (layer {theirs})")
        elif name.startswith("checkpoints") and me in CORE - {"train", "sample"}:
            found.append(f"{me}:{line} imports {name}: what lies on disk is no business of the engine")
    return found


def test_imports_go_down_only():
    found = [v for path in FILES for v in violations(module_name(path), path.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(("me", "text", "said"), [
    ("star.decoder", "from star.loop import star", "(layer 1) imports star.loop (layer 5)"),
    ("star.sampler", "from star import rollout", "(layer 2) imports star.rollout (layer 3)"),
    ("star.tasks.gsm8k", "from star import prompts", "(layer 1) imports star.prompts (layer 2)"),
    ("star.loop", "from star.run.folder import Run", "(layer 5) imports star.run.folder (layer 6)"),
    ("star.run.flags", "from star.experiments import arms", "(layer 6) imports star.experiments.arms (layer 7)"),
    ("star.experiments.arms", "import train", "imports train"),
    ("train", "from sample import main", "imports sample"),
    ("kernels.norm", "from star.decoder import Norm", "imports star.decoder"),
    ("star.rollout", "import checkpoints", "no business"),
    ("star.decoder", "import transformers", "imports transformers"),
    ("star.decoder", "def f():\n    import torch", "inside a function"),
    ("star.decoder", "def f():\n    from star import cache", "inside a function"),
    ("star.utils", "import torch", "in no layer")])  # fmt: skip
def test_the_layer_test_can_fail(me, text, said):
    assert said in "".join(violations(me, text))


def circle(texts):
    """Modules that import each other in a ring, or None. texts: module name -> source."""
    graph = {me: {name for _, name, _ in imports(ast.parse(text))} - {me} for me, text in texts.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as e:
        return e.args[1]
    return None


def test_no_files_import_each_other_in_a_circle():
    """In a layer, and inside a package that counts whole."""
    assert circle({module_name(p): p.read_text() for p in FILES}) is None
    assert circle({"star.rollout": "import star.evaluate", "star.evaluate": "from star import select",
                   "star.select": "from star.rollout import Rollout"})  # fmt: skip
    assert circle({"star.run.plan": "from star.run import work", "star.run.work": "from star.run.plan import Plan"})


def too_long(name, text):
    """Files of more than 350 lines, functions of more than 60."""
    functions = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    found = [f"{name}: {n.name}" for n in functions if n.end_lineno - n.lineno >= 60]
    return found + [name] * (text.count("\n") > 350)


def test_files_and_functions_are_short():
    assert not [found for p in FILES for found in too_long(module_name(p), p.read_text())]
    assert too_long("a", "#\n" * 350) == []
    assert too_long("a", "#\n" * 351) == ["a"]
    body = "    x = 1\n"
    assert too_long("a", "def f():\n" + body * 59) == []
    assert too_long("a", "class A:\n    def f():\n" + f"    {body}" * 60) == ["a: f"]


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
    assert set(counts) >= CORE
    core = sum(n for m, n in counts.items() if m in CORE or m.startswith("kernels."))
    report(f"lines of code: core {core}, all {sum(counts.values())} (blank lines, comments and docstrings not counted)")


def test_importing_the_package_needs_no_extra():
    """All of it runs with its dependencies alone: the packages of the extras are imported where they are needed."""
    absent = "".join(f"sys.modules[{name!r}] = None; " for name in OPTIONAL)
    code = f"import sys; {absent}import {', '.join(map(module_name, FILES))}"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
