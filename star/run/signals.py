"""How a command is stopped: Ctrl-C and SIGTERM end it at once, but let a write that has begun come to its end.

The first one raises Stopped; a second one does not wait for whatever the first is held up by.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

STOPS = (signal.SIGINT, signal.SIGTERM)
_writing, _waiting = 0, 0  # writes under way, and the signal that came meanwhile
_patient = False


class Stopped(KeyboardInterrupt):
    """A signal ended the command; `code` is the exit code that shells and clusters expect: 130 or 143."""

    def __init__(self, number: int, where: str = ""):
        super().__init__(where)
        self.number, self.code = number, 128 + number


def catch(patient: bool = False) -> None:
    """Raise Stopped in the main thread when one of these signals comes. patient: a second one changes nothing, as where
    a launcher passes on what the terminal has sent already."""
    global _waiting, _patient
    _waiting, _patient = 0, patient
    for number in STOPS:
        signal.signal(number, _stop)


def _stop(number: int, frame: FrameType | None) -> None:
    global _waiting
    for other in STOPS:
        signal.signal(other, signal.SIG_IGN if _patient else lambda number, _: os._exit(128 + number))
    _waiting = number
    if not _writing:
        raise Stopped(number)


@contextlib.contextmanager
def at_once() -> Iterator[None]:
    """A signal ends the process, even in a call that Python does not look up from: where nothing can be lost yet."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def written_first() -> Iterator[None]:
    """A stop waits until what is inside is done: some milliseconds, in which a file is written."""
    global _writing
    _writing += 1
    try:
        yield
    finally:
        _writing -= 1
    if _waiting and not _writing:
        raise Stopped(_waiting)


def stop(e: BaseException) -> Stopped | None:
    """The stop that this error is; None for another. While torch imports parts of itself on first use, Python 3.11
    wraps it into a RuntimeError."""
    for cause in (e, e.__cause__):
        if isinstance(cause, Stopped):
            return cause
        if isinstance(cause, KeyboardInterrupt):
            return Stopped(signal.SIGINT, str(cause))
    return None
