"""SentencePiece's models as a `tokenizer.json` holds them (transformers 5 saves Llama, Mistral and Gemma so): BPE or
Unigram on characters, spaces written as "▁", what has no token written in bytes, and the file's own way back to text.

Where the file cuts no words, the whole text is one: it is cut before each "▁" that no merge joins to what is before it,
which changes no id.
"""

import itertools
import re
from collections.abc import Callable, Iterable

from checkpoints.bpe import BPE, LONGEST, REMEMBERED, byte_tokens, checked
from checkpoints.steps import META, MOST_CONTENT, content_of, grown, metaspace, pre_tokenizer, replace

WORDS = re.compile(f"{META}*[^{META}]+|{META}+")
BEFORE = "."  # stands for the text before, in a decoder
MOST_SCORE = 1e30
UNKNOWN = -10.0  # score of an unknown character, beside the least of all pieces


class Unigram:
    """The pieces of the best total score. Their order in the file is their id."""

    def __init__(self, model: dict):
        scores = [(piece, score) for piece, score in model["vocab"]]
        odd = next((s for s in scores if type(s[1]) not in (int, float) or not abs(s[1]) < MOST_SCORE), None)
        if odd is not None:
            raise ValueError(f"its vocabulary gives {odd[0]!r} the score {odd[1]!r}; it must be a number")
        self.vocab = checked({piece: i for i, (piece, _) in enumerate(scores)})
        self.size = len(scores)
        self.unk_id: int | None = model.get("unk_id")
        if not (self.unk_id is None or (type(self.unk_id) is int and 0 <= self.unk_id < self.size)):
            raise ValueError(f"its unk_id is {self.unk_id!r} with {self.size} pieces")
        self._scores, self._byte_tokens = dict(scores), model.get("byte_fallback", False)
        self._least = min(self._scores.values(), default=0.0) + UNKNOWN
        self._longest: dict[str, int] = {}  # first character -> characters of the longest piece that begins so
        for piece in self.vocab:
            self._longest[piece[:1]] = max(len(piece), self._longest.get(piece[:1], 0))
        self._known: dict[str, list[int]] = {}

    def ids(self, word: str) -> list[int]:
        """Ids of a word. ValueError for a character without a piece where the file has no unknown piece."""
        if word not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            found = [i for piece in self._best(word) for i in self._of(piece)]
            if len(word) > LONGEST:
                return found
            self._known[word] = found
        return self._known[word]

    def _of(self, piece: str) -> list[int]:
        if piece in self.vocab:
            return [self.vocab[piece]]
        in_bytes = byte_tokens(piece, self.vocab) if self._byte_tokens else []
        return [self.vocab[t] for t in in_bytes] or [self.unk_id]

    def _best(self, word: str) -> list[str]:
        """Viterbi: for each place the best way there, (score, where its last piece begins). Ties: the later start's
        loses; unknown characters side by side are one piece."""
        best: list[tuple[float, int] | None] = [(0.0, 0)] + [None] * len(word)
        for at, c in enumerate(word):
            score = best[at][0]
            for end in range(at + 1, min(at + self._longest.get(c, 0), len(word)) + 1):
                own = self._scores.get(word[at:end])
                if own is not None and (best[end] is None or score + own > best[end][0]):
                    best[end] = (score + own, at)
            if c not in self._scores:
                if self.unk_id is None:
                    raise ValueError(f"the tokenizer has no piece for {c!r}, and none for what is unknown")
                if best[at + 1] is None or score + self._least > best[at + 1][0]:
                    best[at + 1] = (score + self._least, at)
        pieces, end = [], len(word)
        while end:
            pieces.append(word[best[end][1] : end])
            end = best[end][1]
        runs = itertools.groupby(reversed(pieces), lambda piece: self.vocab.get(piece, self.unk_id) == self.unk_id)
        return [piece for unknown, run in runs for piece in (["".join(run)] if unknown else run)]


class Pieces:
    """Text to ids and back."""

    def __init__(self, data: dict):
        """Of the object in a tokenizer.json. ValueError says what this reader lacks, or which part is damaged."""
        model = data["model"]
        kind = model.get("type") or ("Unigram" if isinstance(model["vocab"], list) else "BPE")
        self._model = Unigram(model) if kind == "Unigram" else BPE.from_json(model)
        self._words, self._text = pre_tokenizer(data.get("pre_tokenizer")), _decoder(data.get("decoder"))
        self.vocab, self.size, self.unk_id = self._model.vocab, self._model.size, self._model.unk_id
        self._apart = isinstance(self._model, BPE) and self._cuts_apart(model)
        self.texts = {i: token for token, i in self.vocab.items()}  # what the decoder begins with

    def _cuts_apart(self, model: dict) -> bool:
        """May a text be cut before each "▁" behind another character, without a change of ids? Not if a merge joins
        the two, if whole words are tokens, or if a character vanishes that stood between two of them."""
        in_bytes = model.get("byte_fallback") and all(f"<0x{b:02X}>" in self.vocab for b in range(256))
        kept = in_bytes or self.unk_id is not None
        return kept and META in self.vocab and not model.get("ignore_merges") and not any(
            right.startswith(META) and not left.endswith(META) for left, right in self._model.merges)

    def __contains__(self, i: int) -> bool:
        return i in self.texts

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Ids of a normalized text without added tokens; first: it begins the sequence."""
        words: Iterable[str] = self._words(text, first)
        if self._apart:
            words = itertools.chain.from_iterable(map(WORDS.findall, words))
        return [i for word in words for i in self._model.ids(word)]

    def decode(self, ids: list[int], first: bool = True) -> str:
        """The text of all ids together; unknown ids are silent. first: no text stands before it."""
        tokens = [self.texts[i] for i in ids if i in self.texts]
        if first:
            return "".join(self._text(tokens))
        return "".join(self._text([BEFORE, *tokens])).removeprefix(BEFORE)


def _decoder(part: dict | None) -> Callable[[list[str]], list[str]]:
    """One step of the file's decoder, from tokens to texts. ValueError names one that is not known."""
    kind = (part or {}).get("type")
    if kind == "Sequence":
        steps = [_decoder(p) for p in part["decoders"]]
        def all_steps(tokens: list[str]) -> list[str]:
            out = tokens
            for step in steps:
                out = step(out)
                grown(sum(map(len, out)), sum(map(len, tokens)))
            return out
        return all_steps
    if kind == "Replace":
        change = replace(part)
        return lambda tokens: [change(t) for t in tokens]
    if kind == "ByteFallback":
        return _from_bytes
    if kind == "Fuse":
        return lambda tokens: ["".join(tokens)]
    if kind == "Strip":
        if odd := [part[s] for s in ("start", "stop") if type(part[s]) is not int or not 0 <= part[s] <= MOST_CONTENT]:
            raise ValueError(f"a Strip takes {repr(odd[0])[:60]} away; it must be a number from 0 to {MOST_CONTENT}")
        left, right = (re.compile(f"(?:{re.escape(content_of(part))}){{0,{part[side]}}}") for side in ("start", "stop"))
        def strip(token: str) -> str:
            token = token[left.match(token).end() :]
            return token[: len(token) - right.match(token[::-1]).end()]
        return lambda tokens: [strip(t) for t in tokens]
    if kind == "Metaspace":
        mark, scheme = metaspace(part)
        ends = {True: "" if scheme != "never" else " ", False: " "}
        return lambda tokens: [t.replace(mark, ends[i == 0]) for i, t in enumerate(tokens)]
    raise ValueError(f"the decoder {kind!r} is not supported")


def _from_bytes(tokens: list[str]) -> list[str]:
    """Runs of <0x..> become the text of their bytes; of a run that is no text, each byte is one U+FFFD."""
    out = []
    for byte, run in itertools.groupby(tokens, lambda t: bool(re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", t))):
        if byte:
            data = bytes(int(t[3:5], 16) for t in run)
            try:
                out.append(data.decode())
            except UnicodeDecodeError:
                out += ["\ufffd"] * len(data)
        else:
            out += run
    return out
