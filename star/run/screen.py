"""What a command prints, as a terminal may have it: what files and models say is shown, and nothing of it is obeyed.

A Screen stands in front of stdout and stderr while a command runs (star/run/flags): whoever prints a text that nobody
looked at cannot move the cursor, forge a line's end, or write right to left. And a run whose output nobody takes any
more, since `| head` has seen enough or the disk is full, goes on: what counts is in its folder.
"""

import contextlib
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO

COLOURS = re.compile(r"\x1b\[(?:[012]|3[12])m")  # those that sample.py's `paint` writes, on a terminal
JOINERS = "\u200c\u200d"  # inside words of Persian and Hindi, and inside emoji: they order nothing


def legible(text: str) -> str:
    """Text of several lines without what a terminal obeys: escapes and control characters, of either direction of
    writing, line ends other than "\\n". They stand there as Python writes them."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" or c in JOINERS or unicodedata.category(c) == "Zs" else
                   repr(c)[1:-1] for c in text)


class Screen:
    """A stream of text in front of another; what is no matter of writing, that one answers.

    kept: a character that passes beside line ends: the "\\r" of progress bars. lost: why nothing can be written any
    more, or None; the rest goes nowhere then.
    """

    def __init__(self, stream: TextIO, kept: str = ""):
        self.stream, self.kept, self.lost = stream, kept, None
        self.colours = COLOURS if stream.isatty() else None

    def write(self, text: str) -> int:
        parts = re.split(f"([{self.kept}])", text) if self.kept and self.kept in text else [text]
        with self._losing():
            self.stream.write("".join(part if part == self.kept else self._shown(part) for part in parts))
        return len(text)

    def flush(self) -> None:
        with self._losing():
            self.stream.flush()

    def _shown(self, text: str) -> str:
        if self.colours is None or "\x1b" not in text:
            return legible(text)
        ours = [*self.colours.findall(text), ""]
        return "".join(legible(part) + code for part, code in zip(self.colours.split(text), ours, strict=True))

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        try:
            yield
        except OSError as e:
            self.lost = e
            with contextlib.suppress(OSError):  # no file at all: of a test
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self.stream.fileno())  # so that what still waits in its buffer can go, too
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def screens() -> Iterator[tuple[Screen, Screen]]:
    """(stdout, stderr) behind a Screen each. Characters that a terminal's encoding lacks are escaped, where print would
    raise an error; a stream that was closed before the start swallows all."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as opened:
        out, err = (opened.enter_context(open(os.devnull, "w", encoding="utf-8")) if s is None else s for s in before)
        for stream in (out, err):
            if hasattr(stream, "reconfigure"):
                opened.callback(stream.reconfigure, errors=stream.errors)
                stream.reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = Screen(out), Screen(err, kept="\r")
        try:
            yield sys.stdout, sys.stderr
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            sys.stdout, sys.stderr = before
