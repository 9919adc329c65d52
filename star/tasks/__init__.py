"""A task says what is asked and what counts as right: a file in this folder with a class and a function `load`.

Nothing is registered: `load_task("parity")` imports star/tasks/parity.py, and `load_task("mine/parity.py")` that file.
Its `load` is called and the task tried out, so that a mistake in it is one line before a run starts. README.md in this
folder lists what a task may have.
"""

import difflib
import functools
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from star.problem import Problem, Shot
from star.tasks.task import Task
from star.text import visible

__all__ = ["Option", "Task", "ask", "load_task", "task_names", "task_options"]


_given: set[str] = set()  # files outside this folder that tasks were read from


@dataclass(frozen=True)
class Option:
    """A parameter of a task's `load`; `--name` on the command line."""

    name: str
    type: type  # bool, int, float, str or Path
    default: Any  # Option.REQUIRED: there is none
    help: str  # its line in load's docstring

    REQUIRED: typing.ClassVar = inspect.Parameter.empty


def task_names() -> list[str]:
    """The tasks there are: files of this folder that define `load` at their left margin."""
    return sorted(name for name, file in _files().items() if re.search(r"^def load\(", _source(file), re.M))


def task_options(name: str) -> dict[str, Option]:
    """What a task can be told: the parameters of its `load`. Raises ValueError as load_task does."""
    file, load = _find(name)
    try:
        parameters = inspect.signature(load, eval_str=True).parameters
    except Exception as e:  # an annotation that is no expression
        raise ValueError(_complaint(e, file, "load's annotations")) from e
    texts = _help(load, parameters)
    return {n: _option(file, p, texts.get(n, "")) for n, p in parameters.items()
            if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def load_task(name: str, /, **options) -> Task:
    """The task `name`, or that of a .py file, with its options (data=..., digits=...). None stands for a task's own
    default.

    Raises ValueError for a name or an option that is not known, a task without problems, a train set that overlaps the
    held-out set, and a mistake in the task's file; it names file and line.
    """
    known = task_options(name)
    given = {k: v for k, v in options.items() if v is not None}
    for k in (k for k in given if k in known and known[k].type is Path):
        if not isinstance(given[k], str | Path):
            raise ValueError(f"task {name}: {_flag(k)} is {_clip(repr(given[k]))}; it must be a path")
        given[k] = Path(given[k])
    if unknown := sorted(given.keys() - known.keys()):
        raise ValueError(f"task {name} has no setting {', '.join(map(_flag, unknown))}")
    if missing := [o for o in known.values() if o.default is Option.REQUIRED and o.name not in given]:
        raise ValueError(f"task {name} needs {', '.join(f'{_flag(o.name)} ({o.help})' for o in missing)}")
    file, load = _find(name)
    name = short_name(name)
    try:
        task = load(**given)
    except (Exception, SystemExit) as e:
        if speaks(e) or isinstance(e, MemoryError):
            raise
        raise ValueError(_complaint(e, file, f"load({_listed(given.values())})")) from e
    if not isinstance(task, Task):
        raise ValueError(f"{_short(file)}: load gives {_clip(repr(task))}, which is no Task")
    task.name = name
    if type(task).right is not Task.right and task.compares == Task.compares:
        task.compares = "by the task's own `right`"
    _check_fields(task, name)
    _check_problems(task, name)
    _try_out(task)
    return task


def speaks(e: BaseException) -> bool:
    """Was this error raised on purpose, to tell the user of a value, a file, a package? By a `raise` in this project or
    in a task's file, that is; what a library raises about int("x") says nothing of where it came from."""
    if not isinstance(e, (ValueError, OSError, ImportError)):
        return False
    last = traceback.extract_tb(e.__traceback__)[-1]
    folders = [Path(__file__).parents[2], *map(Path, __path__)]
    ours = last.filename in _given or any(Path(last.filename).is_relative_to(folder) for folder in folders)
    return ours and (last.line or "").startswith("raise")


def _files() -> dict[str, Path]:
    """name -> file. Where two folders of __path__ have the same name, Python imports the first."""
    found = [file for folder in reversed(__path__) for file in Path(folder).glob("*.py")]
    return {file.stem: file for file in found if not file.stem.startswith("_")}


def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace")


def _find(name: str) -> tuple[Path, Callable[..., Task]]:
    """(file, load) of a task."""
    file = Path(name).absolute() if is_file(name) else _files().get(name)
    if file is None:
        near = difflib.get_close_matches(name, task_names(), 1, 0.7)
        raise ValueError(f"unknown task {name!r}{f': did you mean {near[0]}?' if near else ''}; known are "
                         f"{', '.join(task_names())}, or give a .py file")
    if not file.is_file():
        raise ValueError(f"--task {name}: there is no such file")
    try:
        module = _imported(file) if is_file(name) else importlib.import_module(f"star.tasks.{name}")
    except (Exception, SystemExit) as e:
        raise ValueError(_complaint(e, file, "import")) from e
    if not callable(getattr(module, "load", None)):
        raise ValueError(f"{_short(file)} has no function load(...), which gives the task")
    return file, module.load


def is_file(name: str) -> bool:
    """Is a task named by its file? By its .py, that is."""
    return name.endswith(".py")


def short_name(name: str) -> str:
    """What a run of a task is called after: the name itself, "parity" of "mine/parity.py"."""
    return Path(name).stem if is_file(name) else name


@functools.cache  # read once, so that a task's class is the same wherever it is asked for
def _imported(file: Path) -> ModuleType:
    """The module of a file that somebody named; it may import what lies beside it."""
    spec = importlib.util.spec_from_file_location(f"task_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    _given.add(str(file))
    sys.modules[spec.name] = module  # where inspect looks for a class's file
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))
    spec.loader.exec_module(module)
    return module


def _help(load: Callable, names: typing.Container[str]) -> dict[str, str]:
    """name -> text of the lines "name: text" in a docstring; lines that are indented more go on with it."""
    texts, last = {}, None
    for line in (inspect.getdoc(load) or "").splitlines():
        name, colon, text = line.partition(":")
        if colon and name in names:
            texts[name], last = text.strip(), name
        elif last and line.startswith(" "):
            texts[last] += " " + line.strip()
        else:
            last = None
    return texts


def _option(file: Path, parameter: inspect.Parameter, text: str) -> Option:
    """The type that is annotated, None aside; else that of the default, else str."""
    kinds, stated = (bool, int, float, str, Path), parameter.annotation
    if stated is parameter.empty:
        kind = type(parameter.default) if type(parameter.default) in kinds else str
        return Option(parameter.name, kind, parameter.default, text)
    kind, *more = [t for t in typing.get_args(stated) or (stated,) if t is not type(None)]
    if more or kind not in kinds:
        raise ValueError(f"{_short(file)}: load's option {parameter.name} is annotated {stated}; it must be bool, int, "
                         "float, str or Path")
    return Option(parameter.name, kind, parameter.default, text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


# ---------------------------------------------------------------------------------------------------- trying a task out

GIVES = {"question": str, "hinted": str, "few_shot": str, "extract": str | None, "right": bool, "leaks": bool,
         "check_steps": bool | None, "gold": str | None, "parse": Problem}
FIELDS = {"hint_mark": str, "between": str, "compares": str, "max_new_tokens": int, "stop": (tuple, list),
          "shots": (tuple, list), "notes": (tuple, list), "chance": (int, float)}


def ask(task: Task, method: str, *args) -> Any:
    """task.method(*args). What it raises, and a result of another kind than GIVES, becomes a ValueError of one line:

    star/tasks/parity.py:12: extract('...') raises IndexError: list index out of range
    """
    try:
        result = getattr(task, method)(*args)
    except (Exception, SystemExit) as e:
        if method == "parse" and speaks(e):  # of what somebody typed
            raise
        raise ValueError(_complaint(e, _file_of(task), f"{method}({_listed(args)})")) from e
    kind = GIVES.get(method, object)
    if not isinstance(result, kind):
        code = getattr(getattr(task, method), "__code__", None)
        where = f"{_short(code.co_filename)}:{code.co_firstlineno}" if code else _short(_file_of(task))
        raise ValueError(f"{where}: {method}({_listed(args)}) gives {_clip(repr(result))}; it must give "
                         f"{getattr(kind, '__name__', kind)}")
    return result


def _check_fields(task: Task, name: str) -> None:
    """ValueError for an attribute of another kind: stop = "\\n" would be taken apart letter by letter."""
    for field, kind in FIELDS.items():
        value = getattr(task, field)
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        if not isinstance(value, kind):
            raise ValueError(f"task {name}: {field} is {_clip(repr(value))}; it must be of type {names}")
    if task.max_new_tokens < 1:
        raise ValueError(f"task {name}: max_new_tokens is {task.max_new_tokens}; it must be at least 1")
    if odd := [s for s in task.stop if not isinstance(s, str) or not s]:
        raise ValueError(f"task {name}: stop holds {_clip(repr(odd[0]))}; it must hold texts that are not empty")
    if odd := [s for s in task.shots if not isinstance(s, Shot)]:
        raise ValueError(f"task {name}: shots holds {_clip(repr(odd[0]))}; it must hold Shot(problem, rationale)")


def _check_problems(task: Task, name: str) -> None:
    """ValueError for train or heldout that are no lists of problems, or overlap."""
    for part in ("train", "heldout"):
        problems = getattr(task, part, None)
        if not isinstance(problems, list):
            raise ValueError(f"task {name}: {part} is {_clip(repr(problems))}; it must be a list of Problem")
        for p in problems:
            if not isinstance(p, Problem):
                raise ValueError(f"task {name}: {part} holds {_clip(repr(p))}; it must be a list of Problem")
            if not all(isinstance(field, str) for field in (p.id, p.question, p.answer, p.group)) or not (
                    _is_text(p.id) and _is_text(p.group or "all")):
                raise ValueError(f"task {name}: id, question, answer and group of a problem must be texts; "
                                 f"they are not in {_clip(repr(p))}")
    everything = [*task.train, *task.heldout]
    if not task.train or not task.heldout:
        raise ValueError(f"task {name} has {len(task.train)} training and {len(task.heldout)} held-out problems; "
                         "it needs at least one of each")
    twice, times = Counter(p.id for p in everything).most_common(1)[0]
    if times > 1:
        raise ValueError(f"task {name}: problem {twice!r} stands twice in train and heldout; they must be disjoint")
    if any(p.group == "mean" for p in everything):
        raise ValueError(f"task {name} has a group named 'mean', as the mean over groups is called: rename it")


def _try_out(task: Task) -> None:
    """Asks for every prompt, and has the first problem graded with texts that models do write."""
    for p in [*task.train, *task.heldout]:
        for method in ("question", "hinted"):
            if not _is_text(ask(task, method, p)):
                raise ValueError(f"{_short(_file_of(task))}: {method}({_clip(repr(p))}) gives no sound text")
    problem = task.train[0]
    question, hinted, gold = (ask(task, method, problem) for method in ("question", "hinted", "gold"))
    if task.hint_mark and (task.hint_mark not in hinted or task.hint_mark in question):
        raise ValueError(f"task {task.name}: hint_mark {task.hint_mark!r} must stand in hinted prompts and in no "
                         "question")
    for with_hint in (False, True):
        ask(task, "few_shot", problem, with_hint)
    for text in ("", "\n", question, *([gold] if gold is not None else [])):
        ask(task, "extract", text)
        for method in ("right", "leaks", "check_steps"):
            ask(task, method, problem, text)
    for i, shot in enumerate(task.shots, 1):
        if not ask(task, "right", shot.problem, task.answered(shot)):
            raise ValueError(f"task {task.name}: few-shot example {i} ({_clip(shot.problem.question, 40)}) does not "
                             f"arrive at its answer {_clip(repr(shot.problem.answer))}: correct one of them")
        if found := [s for s in task.stop if s in task.answered(shot)]:
            raise ValueError(f"task {task.name}: few-shot example {i} ({_clip(shot.problem.question, 40)}) holds "
                             f"{found[0]!r}, at which a rationale ends (`stop`): no model could write it so")


def _is_text(text: str) -> bool:
    """Is there anything, and can it be written to a file? Half a surrogate pair cannot."""
    try:
        return bool(text.encode())
    except UnicodeEncodeError:
        return False


def _complaint(error: Exception, file: str | Path, call: str) -> str:
    """One line: the last line of `file` that the error went through, what was called, what happened."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if Path(f.filename) == Path(file)]
    if isinstance(error, SyntaxError) and error.filename == str(file):
        lines.append(error.lineno)
    where = f"{_short(file)}:{lines[-1]}" if lines else _short(file)
    return f"{where}: {call} raises {type(error).__name__}: {_clip(str(error), 200)}"


def _file_of(task: Task) -> str:
    try:
        return inspect.getfile(type(task))
    except (TypeError, OSError):  # typed into a prompt
        return type(task).__module__


def _short(file: str | Path) -> str:
    """A path as people type it: from the current folder, where it lies below it."""
    path = Path(file)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def _listed(values: typing.Iterable) -> str:
    return ", ".join(_clip(repr(v)) for v in values)


def _clip(text: str, most: int = 60) -> str:
    """The beginning of a text, in one line: what is no printable character is an escape."""
    return visible(text[:most]) + ("..." if len(text) > most else "")
