"""Text of a row that is still growing: where a stop string ends it, and how much of it may be shown already.

Decodes ids as a list, always: a token may be half a character, and a stop string may begin and end inside tokens. Also
what of any text is safe to print, JSON in which nothing is passed over, and which part of a prompt people wrote.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

HALF = "\ufffd"  # what a tokenizer writes for bytes that are no whole character (yet)


@dataclass(frozen=True)
class Stops:
    """Strings that end a row as soon as its text holds one of them."""

    tokenizer: object
    strings: tuple[str, ...]

    def find(self, ids: Sequence[int], searched: int = 0) -> tuple[int, int] | None:
        """(tokens wholly before the first stop string, tokens up to the one that completes it), or None.

        The first `searched` tokens are known to hold none. With stop "##" and tokens "a" "b#" "#c" "d" it is (1, 3).
        """
        reach = 4 * max(map(len, self.strings)) + 1  # tokens that a stop string spans at most: a token may be a byte
        recent = self.tokenizer.decode(list(ids[max(0, searched - reach) :]))  # as quick in a long row as in a short
        if not any(s in recent for s in self.strings):
            return None
        for n in range(searched + 1, len(ids) + 1):
            text = self.tokenizer.decode(list(ids[:n]))
            starts = [text.find(s) for s in self.strings if s in text]
            if starts:
                return self.before(ids[:n], min(starts)), n
        return None

    def settled(self, ids: Sequence[int]) -> int:
        """How many tokens no stop string can reach any more, whatever comes next."""
        text = self.tokenizer.decode(list(ids)).rstrip(HALF)  # half a character may become a stop string's first
        open_ends = (n for s in self.strings for n in range(1, len(s)) if text.endswith(s[:n]))
        return self.before(ids, len(text) - max(open_ends, default=0))

    def before(self, ids: Sequence[int], end: int) -> int:
        """The most tokens whose text lies within the first `end` characters."""
        return next(m for m in range(len(ids), -1, -1) if len(self.tokenizer.decode(list(ids[:m]))) <= end)


@dataclass
class TextStream:
    """Turns tokens into text as they come; half a character waits for its other half."""

    tokenizer: object
    ids: list[int] = field(default_factory=list)
    shown: int = 0  # characters given out so far

    def push(self, token: int) -> str:
        """What this token adds to the text that is certain."""
        self.ids.append(token)
        return self._give(self.tokenizer.decode(self.ids).rstrip(HALF))

    def end(self) -> str:
        """What was held back, now that nothing follows."""
        return self._give(self.tokenizer.decode(self.ids))

    def _give(self, text: str) -> str:
        new = text[self.shown :]
        self.shown = max(self.shown, len(text))
        return new


def visible(text: str) -> str:
    """Text without what a terminal obeys or cannot show: escapes, control and format characters, lone surrogates."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def once(pairs: list[tuple[str, object]]) -> dict:
    """The JSON object of these pairs; ValueError if a key stands twice, which JSON readers pass over in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # counting each key would take hours of 10^6
        raise ValueError(f"{twice[:60]!r} stands in it twice")
    return found


class Prompt(str):
    """A text to go on from. In what people or models wrote of it no control token is parsed, so that nobody can forge
    one by typing it; and nothing is put behind it: a prompt does not end.

    typed: (start, end) of what they wrote. None: all of it, and the tokenizer says how a text begins; else the rest is
    a chat template's, which has said that itself. doubted: (start, end) of what either may have written; no special
    token is parsed that lies wholly in it. ended: it is no prompt, but a whole conversation.
    """

    def __new__(cls, text: str = "", typed: Iterable[tuple[int, int]] | None = None,
                doubted: Iterable[tuple[int, int]] = (), ended: bool = False):
        self = super().__new__(cls, text)
        self.rendered = typed is not None
        self.typed = tuple(typed) if self.rendered else ((0, len(self)),)
        self.doubted, self.ended = tuple(doubted), ended
        return self

    def __add__(self, other: str) -> "Prompt":
        """What is put behind a prompt is typed too."""
        text = super().__add__(other)
        if not self.rendered:
            return Prompt(text)
        return Prompt(text, (*self.typed, (len(self), len(text))), self.doubted, self.ended)
