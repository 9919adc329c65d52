"""Regular expressions that stand in files: looked at before they are compiled, and stopped where they never end."""

import math
import re
from collections.abc import Iterator

MOST_LETTERS, MOST_COUNT = 5000, 1000  # of an expression, and of the product of its counts: gigabytes otherwise
CALLS = re.compile(r"\(\?(?:R\)|[+-]?\d+\)|&|P>)")  # an expression within itself: memory without a limit
MOST_SECONDS, A_LETTER = 0.3, 2e-5  # that one is tried on a text, and as much more for each of its letters


def check(expression: str, around: str | None = None) -> None:
    """ValueError says why this is no expression to be tried. around: Python's own, alone and with that around it."""
    plain = re.sub(r"\\[pPxuN]\{[^}]*\}", "", expression)  # \p{L}: no count
    counts = [int(n[:9]) for n in re.findall(r"\{[^}]*?(\d+),?\}", plain)]
    if len(expression) > MOST_LETTERS or math.prod(max(n, 1) for n in counts) > MOST_COUNT:
        raise ValueError(f"more than {MOST_LETTERS} characters, or counts whose product is above {MOST_COUNT}")
    if CALLS.search(expression):
        raise ValueError("it calls itself")
    if around is not None:
        compiled_by(re, expression)
        compiled_by(re, around.format(expression))


def compiled_by(package, expression: str):
    """The expression of `re` or `regex`. ValueError says why there is none."""
    try:
        return package.compile(expression)
    except (package.error, OverflowError, RecursionError) as e:
        raise ValueError(str(e) or type(e).__name__) from None


class Timed:
    """An expression of a tokenizer.json. ValueError ends it on a text that takes it too long."""

    def __init__(self, expression: str):
        try:
            import regex
        except ImportError:
            raise ValueError("this tokenizer needs the package regex: pip install -e '.[models]'") from None
        try:
            check(expression)
            self._pattern, self._expression = compiled_by(regex, expression), expression
        except ValueError as e:
            raise ValueError(f"the pattern {expression[:60]!r} cannot be read: {e}") from None

    def finditer(self, text: str) -> Iterator[re.Match]:
        try:
            yield from self._pattern.finditer(text, timeout=self._time(text))
        except (TimeoutError, MemoryError):
            raise self._endless(text) from None

    def sub(self, change, text: str) -> str:
        try:
            return self._pattern.sub(change, text, timeout=self._time(text))
        except (TimeoutError, MemoryError):
            raise self._endless(text) from None

    def _time(self, text: str) -> float:
        return MOST_SECONDS + A_LETTER * len(text)

    def _endless(self, text: str) -> ValueError:
        return ValueError(f"the pattern {self._expression[:60]!r} was tried on {len(text):,} letters "
                          f"for {self._time(text):.1f} s without an end: fetch it again")
