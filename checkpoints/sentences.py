"""A `tokenizer.model`: SentencePiece's own library, less what it would find in a text that nobody may forge.

Of the file's format (a protocol buffer) only this is read here: pieces stand one after the other, each with its text
and its kind.
"""

from collections.abc import Iterator
from pathlib import Path

import sentencepiece

MOST_BYTES = 64 << 20
NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # kinds of pieces
META = "\u2581"  # what stands for a space


class SentencePiece:
    """Pieces of a text. Later parts of a text that added tokens cut may go without the dummy space in front.

    control: id -> text of the pieces that the library finds in no text. markers: the same of those that the file tells
    it to find in any (Gemma's "<start_of_turn>"), and that it is told here to leave alone: they are looked for where
    they may stand. Line breaks and runs of spaces, which are the same to it, stay its own.
    """

    def __init__(self, file: Path, space_each: bool):
        if (size := file.stat().st_size) > MOST_BYTES:
            raise ValueError(f"{file} has {size:,} bytes, more than any SentencePiece model: fetch it again")
        self._model, proto = sentencepiece.SentencePieceProcessor(), file.read_bytes()
        try:
            self._model.LoadFromSerializedProto(proto)
            kinds = dict(enumerate(kinds_of(proto)))
            self.markers = {i: text for i, (kind, text) in kinds.items() if kind == USER_DEFINED and is_marker(text)}
            self.control = {i: text for i, (kind, text) in kinds.items() if kind in (UNKNOWN, CONTROL)}
            if self.markers:
                self._model.LoadFromSerializedProto(as_control(proto, set(self.markers)))
        except (RuntimeError, IndexError, UnicodeDecodeError) as e:
            raise ValueError(f"{file} is no SentencePiece model ({e}): fetch tokenizer.json too") from None
        self._space_each = space_each
        self._dummy = "".join(self._model.id_to_piece(self._model.encode("a"))).startswith(META)
        self.size: int = self._model.vocab_size()
        self.unk_id: int | None = self._model.unk_id()
        self.bos_id, self.eos_id = (i if i >= 0 else None for i in (self._model.bos_id(), self._model.eos_id()))
        self.around = {self.unk_id, self.bos_id, self.eos_id, self._model.pad_id()}  # what stands in no text

    def encode(self, text: str, first: bool = True, spaced: bool = False) -> list[int]:
        """spaced: a part that begins with a space gets no dummy space beside it (the reference's newer rule, by which
        " a" and "a" are the same)."""
        if not self._dummy or ((first or self._space_each) and not (spaced and text.startswith(" "))):
            return self._model.encode(text)
        for lead in ("\n", "\x01"):  # behind it nothing begins a text; the second joins no other character
            start, ids = self._model.encode(lead), self._model.encode(lead + text)
            if ids[: len(start)] == start:
                break
        return ids[len(start) :]

    def __contains__(self, i: int) -> bool:
        return 0 <= i < self.size and i not in self.markers

    def decode(self, ids: list[int], first: bool = True) -> str:
        ids = [i for i in ids if 0 <= i < self.size]
        if first or self._space_each or not self._dummy:
            return self._model.decode(ids)
        start = self._model.encode("\n")
        return self._model.decode(start + ids).removeprefix(self._model.decode(start))

    def id_of(self, text: str) -> int | None:
        i = self._model.piece_to_id(text)
        return i if self._model.id_to_piece(i) == text else None


def is_marker(text: str) -> bool:
    """Does this look like a control token: neither white space nor a word?"""
    return META not in text and not text.isspace() and not text.isalnum()


def _parts(proto: bytes) -> Iterator[tuple[int, bytes]]:
    """(field number, what it holds) of a message. IndexError where it ends too early."""
    at = 0
    while at < len(proto):
        tag, at = _number(proto, at)
        if tag & 7 == 2:  # so many bytes
            n, at = _number(proto, at)
            if at + n > len(proto):
                raise IndexError("it ends too early")
            yield tag >> 3, proto[at : at + n]
            at += n
        elif tag & 7 == 0:
            n, at = _number(proto, at)
            yield tag >> 3, bytes([n & 127])  # a kind is a small number
        else:
            at += 8 if tag & 7 == 1 else 4


def _number(proto: bytes, at: int) -> tuple[int, int]:
    """(a number of seven bits a byte, where it ends)."""
    n = shift = 0
    while True:
        n, shift, at = n | (proto[at] & 127) << shift, shift + 7, at + 1
        if proto[at - 1] < 128:
            return n, at


def _written(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def kinds_of(proto: bytes) -> Iterator[tuple[int, str]]:
    """(kind, text) of all pieces, in the order of their ids."""
    for number, piece in _parts(proto):
        if number != 1:
            continue
        end = 2 + piece[1] if piece[:1] == b"\n" and piece[1] < 128 else 0
        if end and piece[end : end + 1] == b"\x15" and len(piece) == end + 5:  # text and score: most are like this
            yield NORMAL, piece[2:end].decode()
        else:
            fields = dict(_parts(piece))
            yield fields.get(3, b"\1")[0], fields.get(1, b"").decode()


def as_control(proto: bytes, ids: set[int]) -> bytes:
    """The same file, these pieces being control pieces: of a field that stands twice the last counts."""
    out, i = [], 0
    for number, held in _parts(proto):
        if number == 1:
            held, i = held + (bytes([3 << 3, CONTROL]) if i in ids else b""), i + 1
        out.append(_written(number << 3 | 2) + _written(len(held)) + held)
    return b"".join(out)
