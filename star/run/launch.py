"""A run in a process of its own, for commands that need several: start it, or go on with it; what is finished stays.

It knows no settings: flags go through as they are.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from checkpoints.files import read_json
from star.run.signals import Stopped

ROOT = Path(__file__).parents[2]  # of this project, installed or not
TRAIN = [str(ROOT / "train.py")]
BASELINE = ["-m", "star.experiments.baseline"]


def finish(program: list[str], folder: Path, flags: Sequence[str], more: Sequence[str] = ()) -> int:
    """Exit code of the run in this folder once it has ended; 0 at once if it is finished already.

    flags: what a new run is given. more: what it is given each time. KeyboardInterrupt if the user stopped it.
    """
    state = folder / "state.json"
    if state.is_file() and read_json(state).get("finished") is True:
        return 0
    argv = [*(["--resume", str(folder)] if state.is_file() else ["--out", str(folder), *flags]), *more]
    print(f"\n{folder.name}: python {' '.join([*program, *argv])}", flush=True)
    code = call([*program, *argv])
    if code in (130, 143, -2, -15):
        raise Stopped(code - 128 if code > 0 else -code, f"in {folder}; the same command goes on")
    return code


def call(argv: list[str]) -> int:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    with subprocess.Popen([sys.executable, *argv], env=os.environ | {"PYTHONPATH": path}) as run:
        try:
            return run.wait()
        except Stopped as e:
            if e.number == signal.SIGTERM:  # Ctrl-C a terminal tells the run too
                run.terminate()
            return run.wait()  # it stops by itself and says where it stood
