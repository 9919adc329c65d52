"""What a command line says: settings, the task's options, presets; and how a command ends.

There is a flag for each field of StarConfig and for each option of the task's `load`. A preset is a TOML file of both.
Flags override it; a setting of the preset that contradicts a flag is left out, by star/config's table of conflicts.
"""

import argparse
import difflib
import functools
import math
import os
import re
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import torch

from star.config import CONFLICTS, DEFAULTS, StarConfig, kind_of, several
from star.device import failure
from star.run.screen import screens
from star.run.signals import catch, stop
from star.run.together import several as several_ranks
from star.run.together import speaks
from star.tasks import is_file, task_names, task_options
from star.text import visible

MOST_PRESET = 1 << 20  # bytes
PRESETS = Path(__file__).parent / "presets"
SEVERAL = ("generators", "candidates")  # settings that are paths, separated by commas
PATHS = ("model", "reward", *SEVERAL)
FULL = "the device's memory is full: lower --slots where it sampled, --micro-tokens where it trained"


@dataclass(frozen=True)
class Flags:
    """A command line, understood."""

    settings: dict  # fields of StarConfig, those of the preset included
    options: dict  # what the task's `load` takes
    out: Path | None = None
    resume: Path | None = None
    check: bool = False
    preset: str | None = None
    show: int = 3
    price_per_hour: float | None = None
    tensorboard: bool = False
    extend: int | None = None


class Parser(argparse.ArgumentParser):
    """Without abbreviations; an error is a ValueError. default: of flags that name none; SUPPRESS leaves them out."""

    def __init__(self, doc: str, default: str | None = None):
        super().__init__(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
                         argument_default=default)

    def error(self, message: str):
        raise ValueError(f"{message}; --help lists the settings")

    def parse_args(self, args=None, namespace=None):
        found, left = self.parse_known_args(args, namespace)
        if left:
            self.error(self.unrecognized(left))
        return found

    def unrecognized(self, left: list[str]) -> str:
        """What to say of arguments that are none of the flags: which flag may be meant."""
        name = left[0].partition("=")[0]
        if not name.startswith("--"):
            return f"unrecognized arguments: {' '.join(left)}"
        words = " ".join(re.split("[-_]", name[2:]))  # --learning-rate: the flag whose help speaks of it
        near = difflib.get_close_matches(name, self._option_string_actions, 1, 0.75) or [
            action.option_strings[0] for action in self._actions if words in (action.help or "")]
        return f"unrecognized arguments: {' '.join(left)}" + (f": did you mean {near[0]}?" if near else "")


def command(body: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """Makes a command's `main` of a function of its arguments: one line and exit code 2 for what cannot be done.

    Of several ranks the first of each host speaks. `main.ranks` True: the command knows what to do with several.
    """

    @functools.wraps(body)
    def main(argv: list[str] | None = None) -> int:
        catch(patient=several_ranks())
        if several_ranks() and not main.ranks:
            if speaks():
                print("error: this command runs in one process; of all commands train.py alone is for torchrun",
                      file=sys.stderr)
            return 2
        warnings.showwarning = lambda message, *_: speaks() and print(f"warning: {one_line(str(message))}",
                                                                      file=sys.stderr)
        with screens() as (out, _):
            code = ended(lambda: body(sys.argv[1:] if argv is None else argv))
            out.flush()
            if out.lost and not isinstance(out.lost, BrokenPipeError):  # whoever reads a pipe has seen enough
                print(f"error: not all that was said could be written: {one_line(str(out.lost))}", file=sys.stderr)
                code = code or 2
        if code and several_ranks():  # without the ends of torch's threads, which wait for other ranks or abort
            os._exit(code)
        return code

    main.ranks = False
    return main


def ended(body: Callable[[], int | None]) -> int:
    """A command's exit code; what it raises becomes a line on stderr."""
    said, code = "error", 2
    try:
        return body() or 0
    except KeyboardInterrupt as e:
        said, code = f"stopped {one_line(str(e))}".rstrip(), stop(e).code
    except torch.OutOfMemoryError:
        said = f"error: {FULL}"
    except RuntimeError as e:
        if stopped := stop(e):
            said, code = "stopped", stopped.code
        elif (failed := failure(e)) is None:
            raise
        else:
            said = f"error: {one_line(failed)}"
    except MemoryError:
        said = "error: this machine's memory is full: give a smaller file, or a smaller model"
    except (ValueError, OSError, ImportError) as e:
        said = f"error: {one_line(str(e) or type(e).__name__)}"
    if speaks():
        print(said, file=sys.stderr)
    return code


def one_line(text: str, most: int = 2000) -> str:
    """A message as one line without anything that a terminal obeys, whatever names it quotes."""
    return visible(" ".join(text[:most].split()))[:most]


def read_flags(argv: list[str], doc: str, more: Callable[[Parser], None] = lambda parser: None
               ) -> tuple[Flags, argparse.Namespace]:
    """(what train.py understands, what `more` added). ValueError on what is not understood or cannot be together."""
    first = Parser("", argparse.SUPPRESS)  # which task it is decides which flags there are
    first.add_argument("--task")
    first.add_argument("--preset")
    first.add_argument("--resume")
    known, _ = first.parse_known_args([a for a in argv if a not in ("-h", "--help")])
    preset_file, preset = read_preset(known.preset) if "preset" in known else (None, {})
    task = getattr(known, "task", preset.get("task", DEFAULTS["task"]))
    try:
        options = {} if "resume" in known else task_options(task)
    except ValueError as e:
        raise ValueError(f"{preset_file}: {e}" if task is preset.get("task") else str(e)) from None
    if task != preset.get("task", task):  # the preset's own task, and with it that task's options, was replaced
        leave_out(preset_file, preset, [k for k in task_options(preset["task"]) if k in preset and k not in options])

    parser = Parser(doc, argparse.SUPPRESS)
    add_settings(parser)
    add_command(parser)
    more(parser)
    add_options(parser, task, options)  # last: it refuses an option that is one of the flags above
    given, left = parser.parse_known_args(argv)
    if left:
        keeps = f"--resume keeps the run's settings: leave out {left[0]}"
        raise ValueError(keeps if "resume" in known else unknown(parser, left, task))
    given = vars(given)
    for name, low in (("show", 0), ("price_per_hour", 0.0)):
        if not low <= given.get(name, low) < math.inf:
            raise ValueError(f"--{name.replace('_', '-')} is {given[name]}; it must be a number from {low:g} on")
    settings = {k: given.pop(k) for k in list(given) if k in DEFAULTS}
    chosen = {k: given.pop(k) for k in list(given) if k in options}
    others = {f.name: given.pop(f.name) for f in fields(Flags) if f.name in given}
    if "preset" in others and "resume" in others:
        raise ValueError("--resume keeps the run's settings: leave out --preset")
    if preset_file is not None:
        settings, chosen = under_flags(preset_file, preset, settings, chosen, options)
    named = [*PATHS, *(["task"] if is_file(settings.get("task", "")) else [])]
    paths = [(settings, k) for k in named] + [(chosen, k) for k, option in options.items() if option.type is Path]
    for values, k in paths:
        if values.get(k):  # absolute, so that the run can be opened from any folder
            parts = several(values[k]) if k in SEVERAL else [values[k]]
            values[k] = ",".join(str(Path(p).absolute()) for p in parts)
    return Flags(settings, chosen, **others), argparse.Namespace(**given)


def add_settings(parser: Parser) -> None:
    """A flag for each field of StarConfig, with its help; --x and --no-x for a switch."""
    group = parser.add_argument_group("settings")
    for f in fields(StarConfig):
        flag, kind = "--" + f.name.replace("_", "-"), kind_of(f)
        if kind is bool:
            words = "" if f.default is None else f" [{'--' if f.default else '--no-'}{flag[2:]}]"
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=f.metadata["help"] + words)
            continue
        default = "" if f.default is None else f" [{f.default}]"
        group.add_argument(flag, type=kind, choices=f.metadata["choices"] or None, help=f.metadata["help"] + default,
                           metavar=None if f.metadata["choices"] else kind.__name__)


def add_options(parser: Parser, task: str, options: dict) -> None:
    """A flag for each option of the task."""
    group = parser.add_argument_group(f"options of --task {task}")
    for name, option in options.items():
        flag = "--" + name.replace("_", "-")
        if name in DEFAULTS or flag in parser._option_string_actions:
            raise ValueError(f"task {task}: its option {name!r} is a setting of every run already: rename it")
        if option.type is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, help=option.help.replace("%", "%%"))
        else:
            default = "" if option.default in (None, "") else f" [{option.default}]"
            default = " (required)" if option.default is option.REQUIRED else default
            group.add_argument(flag, type=option.type, metavar=option.type.__name__.lower(),
                               help=(option.help + default).replace("%", "%%"))


def add_command(parser: Parser) -> None:
    """What is no setting of a run."""
    group = parser.add_argument_group("the command")
    group.add_argument("--preset", help=f"{', '.join(preset_names())}, or a TOML file of settings; flags override "
                       "it")
    group.add_argument("--out", type=Path, help="run folder, new or empty [runs/<task>-NNN]")
    group.add_argument("--resume", type=Path, metavar="RUN", help="go on with the run in this folder")
    group.add_argument("--extend", type=int, metavar="N", help="with --resume: N iterations more than it has")
    group.add_argument("--check", action="store_true", help="say what a run would stand on and cost, and train nothing")
    group.add_argument("--show", type=int, help="rationales shown an iteration, with their verdicts [3]")
    group.add_argument("--tensorboard", action="store_true", help="write metrics and rationales for TensorBoard too, "
                       "into the run folder (extra tensorboard)")
    group.add_argument("--price-per-hour", type=float, help="of the device: what the run cost is said at its end")


def unknown(parser: Parser, left: list[str], task: str) -> str:
    """What to say of arguments that nobody takes."""
    name = left[0].partition("=")[0]
    option = name[2:].replace("-", "_")
    owners = [t for t in task_names() if name.startswith("--") and option in task_options(t)]
    whose = f"task {task} has no setting {name}; it belongs to task {', '.join(owners)}" if owners else (
        parser.unrecognized(left))
    return f"{whose}; --help lists the settings"


def preset_names() -> list[str]:
    return sorted(p.stem for p in PRESETS.glob("*.toml"))


def read_preset(name: str) -> tuple[Path, dict]:
    """(file, what stands in it) of a preset's name or of a TOML file."""
    file = Path(name) if name.endswith(".toml") else PRESETS / f"{name}.toml"
    if not file.is_file():
        raise ValueError(f"--preset {name}: no such preset; known are {', '.join(preset_names())}, or give a TOML file")
    if (size := file.stat().st_size) > MOST_PRESET:
        raise ValueError(f"{file} has {size:,} bytes; a preset of so many settings is none")
    try:
        preset = tomllib.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{file} is not TOML: {e}") from None
    if not isinstance(preset.get("task", ""), str):
        raise ValueError(f"{file}: task is {preset['task']!r}; it must be the name of a task")
    return file, preset


def leave_out(file: Path, preset: dict, names: Iterable[str]) -> None:
    """Take these settings out of a preset, and say so."""
    for name in names:
        del preset[name]
        warnings.warn(f"{file.name}: {name} is left out, since the flags contradict it", stacklevel=3)


def under_flags(file: Path, preset: dict, settings: dict, options: dict, known: dict) -> tuple[dict, dict]:
    """(settings, options) of a preset, overridden by those given as flags.

    A setting of the preset that contradicts a flag is left out, with a warning: --first-steps replaces `epochs` in the
    file. ValueError names file and key where the preset itself is wrong.
    """
    for key, value in preset.items():
        if key not in DEFAULTS and key not in known:
            near = difflib.get_close_matches(key.replace("-", "_"), [*DEFAULTS, *known], 1, 0.75)
            raise ValueError(f"{file}: {key!r} is no setting{f', {near[0]!r} is' if near else ''}; known are "
                             f"{', '.join(DEFAULTS)}" + (f"; and of its task {', '.join(known)}" if known else ""))
        kind = known[key].type if key in known else type(value)
        if type(value) not in {Path: (str,), float: (int, float)}.get(kind, (kind,)):
            raise ValueError(f"{file}: {key} is {value!r}; it must be of type {kind.__name__.lower()}")
    mine = {k: v for k, v in preset.items() if k in DEFAULTS}
    try:
        StarConfig(**mine)
    except ValueError as e:
        raise ValueError(f"{file}: {e}") from None
    for conflict in CONFLICTS:
        def holds(rest: dict, conflict=conflict) -> bool:
            return conflict.holds(SimpleNamespace(**DEFAULTS | rest | settings), {*rest, *settings})

        rest = dict(mine)
        for name in conflict.settings:  # the first that helps gives way
            if holds(rest) and name not in settings:
                rest.pop(name, None)
        if not holds(rest):  # else nothing in the preset is to blame
            leave_out(file, mine, sorted(mine.keys() - rest.keys()))
    return mine | settings, {k: v for k, v in preset.items() if k in known} | options


def as_flags(settings: dict) -> list[str]:
    """Settings and options as a command line."""
    argv = []
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            argv.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            argv += [f"--{flag}", str(value)]
    return argv


def without(argv: Iterable[str], *names: str) -> None:
    """ValueError if one of these flags was given: the caller sets it itself."""
    taken = {f"--{n}" for n in names} & {a.partition("=")[0].replace("--no-", "--") for a in argv}
    if taken:
        raise ValueError(f"{', '.join(sorted(taken))}: this experiment sets it itself, leave it out")
