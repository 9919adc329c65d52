"""The normalizer `Precompiled`: SentencePiece's table of replacements, as it stands in its models (NFKC and the like).

The table is a double-array trie over UTF-8 (Darts-clone) from what is replaced to a place among the replacements.
"""

import array
import base64
import binascii
import sys
from collections.abc import Callable

MOST_TEXT = 200  # bytes that stand for a character: in NFKC 33


def charsmap(table: str | None, graphemes) -> Callable[[str], str]:
    """A function that replaces by the table, base64 in the file (None: of nothing). ValueError if it is damaged.

    graphemes: a pattern for what a reader takes for one character. As in the reference, a short one is looked up whole,
    and its shortest beginning in the table stands for all of it; else its code points one by one.
    """
    try:
        data = base64.b64decode(table or "", validate=True)
    except (binascii.Error, TypeError, ValueError) as e:
        raise ValueError(f"its precompiled_charsmap is no base64 ({e})") from None
    if not data:
        return lambda text: text
    n = int.from_bytes(data[:4], "little")
    if n % 4 or not 0 < n <= len(data) - 4:
        raise ValueError(f"its precompiled_charsmap is damaged: {len(data)} bytes with a trie of {n}")
    units, texts = array.array("I", data[4 : 4 + n]), data[4 + n :]
    if sys.byteorder == "big":
        units.byteswap()

    def found(text: str) -> str | None:
        at = _shortest(units, text.encode("utf-8", "replace"))
        end = None if at is None else texts.find(b"\0", at, at + MOST_TEXT)
        if end == -1:
            raise ValueError(f"its precompiled_charsmap has no text of less than {MOST_TEXT} bytes for {text!r}")
        return None if at is None else texts[at:end].decode("utf-8", "replace")

    def whole(cluster: str) -> str:
        short = found(cluster) if len(cluster.encode("utf-8", "replace")) < 6 else None
        return short if short is not None else "".join(c if (to := found(c)) is None else to for c in cluster)

    return lambda text: graphemes.sub(lambda match: whole(match[0]), text)


def _shortest(units: array.array, key: bytes) -> int | None:
    """The value of the shortest beginning of the key that is in the trie.

    A unit holds a label (low byte, or the top bit if it is a value), whether a value follows (bit 8), and how far its
    children are (from bit 10; bit 9: in steps of 256).
    """
    at = _children(units, 0)
    for byte in key:
        at ^= byte
        if at >= len(units) or units[at] & (1 << 31 | 0xFF) != byte:
            return None
        leaf = units[at] >> 8 & 1
        at = _children(units, at)
        if leaf:
            return units[at] & ((1 << 31) - 1) if at < len(units) else None
    return None


def _children(units: array.array, at: int) -> int:
    return at ^ (units[at] >> 10) << ((units[at] & 1 << 9) >> 6)
