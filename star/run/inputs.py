"""What a run stands on: hashes of the data, models and files that its settings name, so that a change is seen; and
the versions and the device that it ran with.

Of data and configurations every byte counts, of weights too while they are small. Of those of gigabytes: the header,
and the first numbers of every tensor: an adapter that was merged in, or another iteration's weights, change all of
those it touches.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import torch

from checkpoints import SHIPPED
from checkpoints.files import TensorFile
from star.config import StarConfig, several
from star.decoder import Decoder
from star.device import device_name
from star.tasks import is_file

READ = (".safetensors", ".json", ".jsonl", ".model", ".jinja", ".txt", ".csv", ".tsv", ".parquet", ".gz")  # of a folder
SMALL = 64 << 20  # bytes of weights, up to which each counts
FIRST = 4096  # bytes of each tensor
PIECE = 1 << 20  # bytes read at a time


def inputs(config: StarConfig, options: dict) -> dict[str, str]:
    """path -> hash of each file and folder that settings and task options name, and that is there.

    Of options whole paths alone: star/run/flags makes paths whole, and "1-3" is none where a folder is called so.
    """
    task = [config.task] * is_file(config.task)
    named = [*task, config.model or SHIPPED, config.reward, *several(config.generators), *several(config.candidates)]
    named += [p for p in options.values() if isinstance(p, str | Path) and os.path.isabs(p)]
    paths = {str(p) for p in named if p and os.path.exists(p)}
    return {p: hashed(Path(p)) for p in sorted(paths)}


def hashed(path: Path) -> str:
    """Of a file, or of what is read of a folder, names included."""
    code = hashlib.sha256()
    for file in [f for f in sorted(path.iterdir()) if f.suffix in READ] if path.is_dir() else [path]:
        if not file.is_file():
            continue
        code.update(f"{file.name} {file.stat().st_size}\n".encode(errors="surrogateescape"))
        with open(file, "rb", buffering=0) as f:
            for start, size in parts(file):
                f.seek(start)
                while size > 0 and (piece := f.read(min(size, PIECE))):
                    code.update(piece)
                    size -= len(piece)
    return code.hexdigest()[:32]


def parts(file: Path) -> list[tuple[int, int]]:
    """(first byte, bytes) of what is hashed of a file."""
    whole = file.stat().st_size
    if file.suffix != ".safetensors" or whole <= SMALL:
        return [(0, whole)]
    try:
        entries = TensorFile(file).entries.values()
    except ValueError:  # refused where it is read
        return [(0, whole)]
    header = min((e.start for e in entries), default=whole)
    return [(0, header), *((e.start, min(e.size, FIRST)) for e in entries)]


def replaced(before: dict, now: dict[str, str], folder: Path) -> str | None:
    """What to say of inputs that are not what a run in this folder began with; None: all are."""
    for path, code in before.items():
        if path not in now:
            return f"{path}, which {folder} began with, is not there: put it back, or start a new run"
        if code != now[path]:
            return f"{path} is not what {folder} began with: put the former one back, or start a new run"
    return None


def facts(model: Decoder, slots: int, ranks: int = 1) -> dict:
    """What a run should say about where it ran, and what "auto" settings came to there."""
    root = Path(__file__).parents[2]
    try:
        git = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        commit = git.stdout.strip() or None
    except FileNotFoundError:  # no git on this machine
        commit = None
    return {
        "command": sys.argv, "python": sys.version.split()[0], "torch": torch.__version__,
        "git_commit": commit, "device": str(model.device), "device_name": device_name(model.device),
        "dtype": str(model.dtype).removeprefix("torch."), "slots": slots, "threads": torch.get_num_threads(),
        "ranks": ranks,
    }
