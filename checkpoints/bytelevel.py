"""Byte-level BPE as a `tokenizer.json` describes it: normalizer, pre-tokenizer sequence, vocabulary, merges.

The file is the authority, step by step: the text is cut into words by the file's own pre-tokenizers, each word is
written in the byte alphabet (a printable character a byte), and the pairs that the file lists merge, the earliest
listed first. What a file asks for and this reader lacks is refused by name. A folder's conventions are read by
checkpoints/tokenizer.
"""

import base64
import functools
import heapq
import itertools
import re
import unicodedata
from collections.abc import Callable

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
REMEMBERED = 1 << 16  # words whose ids are kept


def byte_alphabet() -> dict[int, str]:
    """byte -> character: itself where it prints, else the characters from U+0100 on (GPT-2). 32, the space, is "Ġ"."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in printing)
    return {b: chr(b) for b in printing} | {b: chr(0x100 + i) for i, b in enumerate(others)}


ALPHABET = byte_alphabet()
BYTES = {c: b for b, c in ALPHABET.items()}


def compiled(pattern: str):
    """A pattern of the `regex` package: the standard library's lacks character classes such as \\p{L}."""
    try:
        import regex
    except ImportError:
        raise ValueError("byte-level tokenizers need the package regex: pip install -e '.[models]'") from None
    try:
        return regex.compile(pattern)
    except regex.error as e:
        raise ValueError(f"the pattern {pattern!r} cannot be read: {e}") from None


def split(text: str, pattern, behavior: str, invert: bool = False) -> list[str]:
    """Cut a text at the matches of a pattern, as the reference's `Split` does.

    With pattern "-" and the text "a--b": Isolated a - - b; Removed a b; MergedWithPrevious a- - b; MergedWithNext
    a - -b; Contiguous a -- b. invert: what lies between the matches counts as the matches.
    """
    spans, at = [], 0
    for match in pattern.finditer(text):
        spans += [(text[at : match.start()], invert)] * (match.start() > at) + [(match[0], not invert)]
        at = match.end()
    spans += [(text[at:], invert)] * (at < len(text))
    if behavior == "Removed":
        spans = [(s, hit) for s, hit in spans if not hit]
    elif behavior == "Contiguous":
        runs = itertools.groupby(spans, key=lambda span: span[1])
        spans = [("".join(s for s, _ in run), hit) for hit, run in runs]
    elif behavior == "MergedWithPrevious":
        spans = _with_previous(spans)
    elif behavior == "MergedWithNext":  # the mirror image
        spans = [(s[::-1], hit) for s, hit in _with_previous([(s[::-1], hit) for s, hit in reversed(spans)])][::-1]
    return [s for s, _ in spans if s]


def _with_previous(spans: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    """Each match behind the text before it; of matches in a row only the first."""
    out, before = [], False
    for s, hit in spans:
        if hit and not before and out:
            out[-1] = (out[-1][0] + s, False)
        else:
            out.append((s, hit))
        before = hit
    return out


def _byte_level(text: str, spaced: bool, pattern) -> list[str]:
    """Words in the byte alphabet; spaced: a text that begins with no space gets one."""
    if spaced and not text.startswith(" "):
        text = " " + text
    words = split(text, pattern, "Isolated") if pattern else [text]
    return ["".join(ALPHABET[b] for b in word.encode("utf-8", "replace")) for word in words]


def pre_tokenizer(part: dict) -> Callable[[str], list[str]]:
    """One step of the file's pre-tokenizer as a function from a text to its pieces. ValueError names an unknown one."""
    kind, behavior, invert = part.get("type"), part.get("behavior", "Isolated"), part.get("invert", False)
    if kind == "Sequence":
        steps = [pre_tokenizer(p) for p in part["pretokenizers"]]
        return lambda text: functools.reduce(lambda pieces, step: [q for p in pieces for q in step(p)], steps, [text])
    if kind == "ByteLevel":
        pattern = compiled(GPT2) if part.get("use_regex", True) else None
        return functools.partial(_byte_level, spaced=part.get("add_prefix_space", True), pattern=pattern)
    if kind == "Digits":
        pattern, behavior = r"\p{N}", "Isolated" if part.get("individual_digits") else "Contiguous"
    elif kind == "Punctuation":
        pattern = r"[\p{P}$+<=>^`|~]"
    elif kind == "Split":
        pattern = _pattern(part["pattern"])
    elif kind == "Whitespace":
        pattern, behavior, invert = r"\w+|[^\w\s]+", "Removed", True
    elif kind == "WhitespaceSplit":
        pattern, behavior = r"\s", "Removed"
    else:
        raise ValueError(f"the pre-tokenizer {kind!r} is not supported")
    return functools.partial(split, pattern=compiled(pattern), behavior=behavior, invert=invert)


def _pattern(given: dict) -> str:
    return given["Regex"] if "Regex" in given else re.escape(given["String"])


def normalizer(part: dict | None) -> Callable[[str], str]:
    """The file's normalizer as a function. ValueError names one that is not known."""
    if part is None:
        return lambda text: text
    kind = part.get("type")
    if kind == "Sequence":
        steps = [normalizer(p) for p in part["normalizers"]]
        return lambda text: functools.reduce(lambda t, step: step(t), steps, text)
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return functools.partial(unicodedata.normalize, kind)
    if kind == "Lowercase":
        return str.lower
    if kind == "Replace":
        pattern, content = compiled(_pattern(part["pattern"])), part["content"]
        return lambda text: pattern.sub(lambda _: content, text)
    raise ValueError(f"the normalizer {kind!r} is not supported")


def _bytes(token: str) -> bytes:
    """What a token of the vocabulary stands for; one that holds a foreign character stands for itself."""
    try:
        return bytes([BYTES[c] for c in token])
    except KeyError:
        return token.encode()


class ByteLevelBPE:
    """Words to ids and back. `rank(left, right)` says how early a pair merges (None: never)."""

    def __init__(self, vocab: dict[str, int], rank: Callable[[str, str], int | None],
                 words: Callable[[str], list[str]], model: dict):
        self.vocab, self._rank, self._words = vocab, rank, words
        self._whole_words = model.get("ignore_merges", False)  # a word that is a token is taken before any merge
        self._unk, self._fuse_unk = model.get("unk_token"), model.get("fuse_unk", False)
        self._byte_tokens = model.get("byte_fallback", False)
        self._texts = {i: _bytes(token) for token, i in vocab.items()}
        self._known: dict[str, list[int]] = {}
        self.size = max(vocab.values()) + 1
        self.unk_id: int | None = vocab.get(self._unk)

    @classmethod
    def from_json(cls, data: dict) -> "ByteLevelBPE":
        """Of the object in a tokenizer.json. ValueError says what this reader lacks, or which part is damaged."""
        model = data["model"]
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"its model is {model['type']}; only BPE is supported")
        odd = [k for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(k)]
        if odd:
            raise ValueError(f"its model sets {', '.join(odd)}, which is not supported")
        lines = (m for m in model["merges"] if not str(m).startswith("#version"))
        pairs = (m.split(" ") if isinstance(m, str) else m for m in lines)
        ranks = {(left, right): i for i, (left, right) in enumerate(pairs)}
        lost = next((left + right for left, right in ranks if left + right not in model["vocab"]), None)
        if lost is not None:
            raise ValueError(f"its merges make {lost!r}, which is not in its vocabulary")
        return cls(model["vocab"], lambda left, right: ranks.get((left, right)), pre_tokenizer(data["pre_tokenizer"]),
                   model)

    @classmethod
    def from_tekken(cls, data: dict) -> "ByteLevelBPE":
        """Of the object in a tekken.json: an id is rank + specials; any pair that makes a token merges, by its rank."""
        config = data["config"]
        specials = config["default_num_special_tokens"]
        ranks = {"".join(ALPHABET[b] for b in base64.b64decode(entry["token_bytes"])): entry["rank"]
                 for entry in data["vocab"][: config["default_vocab_size"] - specials]}
        cut = [{"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated"},
               {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
        return cls({token: rank + specials for token, rank in ranks.items()}, lambda a, b: ranks.get(a + b),
                   pre_tokenizer({"type": "Sequence", "pretokenizers": cut}), {"ignore_merges": True})

    def __contains__(self, i: int) -> bool:
        return i in self._texts

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Ids of a normalized text without added tokens. A byte without a token is unk, or nothing if there is none."""
        ids = []
        for word in self._words(text):
            if word not in self._known:
                if len(self._known) >= REMEMBERED:
                    self._known.clear()
                self._known[word] = self._merge(word)
            ids += self._known[word]
        return ids

    def decode(self, ids: list[int], first: bool = True) -> str:
        """The text of all ids together; bytes that are no whole character become U+FFFD, unknown ids nothing."""
        return b"".join(self._texts.get(i, b"") for i in ids).decode("utf-8", "replace")

    def _merge(self, word: str) -> list[int]:
        """Of all neighbours that may merge, those of the lowest rank do first, and of these the leftmost.

        Ranks a b: 0, ab b: 1, b b: 2; the word a b b b: ab b b -> abb b, and nothing merges any more.
        """
        if self._whole_words and word in self.vocab:
            return [self.vocab[word]]
        parts = self._symbols(word)
        n = len(parts)
        after, before, waiting = list(range(1, n + 1)), list(range(-1, n - 1)), []

        def meet(i: int, j: int) -> None:
            rank = self._rank(parts[i], parts[j]) if i >= 0 and j < n else None
            if rank is not None:
                heapq.heappush(waiting, (rank, i, parts[i], parts[j]))

        for i in range(n - 1):
            meet(i, i + 1)
        while waiting:
            _, i, left, right = heapq.heappop(waiting)
            j = after[i]
            if parts[i] != left or j >= n or parts[j] != right:
                continue  # one of them has merged since
            parts[i], parts[j], after[i] = left + right, "", after[j]
            if after[i] < n:
                before[after[i]] = i
            meet(before[i], i)
            meet(i, after[i])
        return [self.vocab[p] for p in parts if p]

    def _symbols(self, word: str) -> list[str]:
        """The word's characters that have a token; unk, or nothing, for the others."""
        out, fusing = [], False
        for c in word:
            if c in self.vocab:
                out.append(c)
            elif as_bytes := self._as_bytes(c):
                out += as_bytes
            elif self._unk in self.vocab:
                out += [self._unk] * (not fusing)
                fusing = self._fuse_unk
                continue
            fusing = False
        return out

    def _as_bytes(self, c: str) -> list[str]:
        """The tokens <0x..> of a character that has none itself; none where the file has no such fallback."""
        tokens = [f"<0x{b:02X}>" for b in c.encode()]
        return tokens if self._byte_tokens and all(t in self.vocab for t in tokens) else []
