"""A run folder seen from outside: which name is free, whose files these are, and whether they are whole."""

import contextlib
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from checkpoints.files import read_json
from star.tasks import is_file


def next_folder(task: str) -> Path:
    """A new folder runs/<task>-NNN, made at once: two processes get two."""
    taken = [p.name.rpartition("-")[2] for p in Path("runs").glob(f"{task}-*")]
    number = max((int(n) for n in taken if n.isdecimal() and len(n) < 10), default=0) + 1
    while True:
        folder = Path("runs") / f"{task}-{number:03d}"
        try:
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1


def never_began(folder: Path) -> bool:
    """Is a folder empty, or does it hold only what a run leaves that was stopped before its first state.json?"""
    if not folder.is_dir():
        return False
    ours = {".lock", "samples", "adapters", "config.json", "config.json.tmp", "state.json.tmp"}
    inside = {p.name for p in folder.iterdir() if p.suffix != ".jsonl" or p.is_symlink() or p.stat().st_size}
    config = folder / "config.json"
    return inside <= ours and not any(any((folder / name).iterdir()) for name in inside & {"samples", "adapters"}) and (
        not config.is_file() or "settings" in read_json(config))


def refuse_links(folder: Path) -> None:
    """ValueError for a link, pipe or device inside a run: what is written would go where somebody else chose."""
    for where, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = Path(where, name)
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise ValueError(f"{path} is a link, or no plain file: a run is written only where it stands; put a "
                                 "copy in its place")


def refuse_program(folder: Path, task: str) -> None:
    """ValueError for a task whose file came with the run, or is looked for wherever one stands: nobody here chose it.
    """
    inside = os.path.realpath(folder) in map(str, Path(os.path.realpath(task)).parents)
    if is_file(task) and (inside or not Path(task).is_absolute()):
        raise ValueError(f"{folder}/config.json: the task {task} is a program inside the run, or is named from some "
                         "other folder; it is not started")


def is_ledger(files: object) -> bool:
    return isinstance(files, dict) and all(
        isinstance(v, list) and len(v) == 2 and all(type(n) is int and n >= 0 for n in v) for v in files.values())


def size_and_checksum(path: Path, most: int | None = None) -> list[int]:
    """[bytes, CRC-32] of a file, or of its first `most` bytes; [-1, 0] where there is none."""
    if not path.is_file():
        return [-1, 0]
    size, code = 0, 0
    with open(path, "rb") as f:
        while piece := f.read(1 << 20 if most is None else min(1 << 20, most - size)):
            size, code = size + len(piece), zlib.crc32(piece, code)
    return [size, code]


def clipped(names: list[str], most: int = 20) -> str:
    return ", ".join(name[:40] for name in names[:most]) + (", ..." if len(names) > most else "")


def newest_finished(runs: Path = Path("runs")) -> Path | None:
    """The finished run that was written last, or None."""
    return next((run for run, finished in by_time(runs) if finished), None)


def none_finished(runs: Path = Path("runs")) -> str:
    """What to say where there is none: which run has only been stopped, or how to make one."""
    begun = next((run for run, _ in by_time(runs)), None)
    return f"{runs}/ has no finished run" + ("; train one: python train.py" if begun is None else
                                             f"; {begun} was stopped: name it by --run {begun}, or go on with it")


def by_time(runs: Path) -> Iterator[tuple[Path, bool]]:
    """(run, has it finished?), the one that was written last first. Damaged ones are passed over: whoever names such a
    one will be told."""
    states = [p for p in runs.glob("*/state.json") if p.is_file()]
    for path in sorted(states, key=lambda p: p.stat().st_mtime, reverse=True):
        with contextlib.suppress(ValueError, OSError):
            yield path.parent, read_json(path).get("finished") is True
