"""The steps of a `tokenizer.json` before its model: normalizers (text to text) and pre-tokenizers (text to words).

Each is made from its entry in the file; one that this reader lacks is refused by name.
"""

import functools
import itertools
import re
import unicodedata
from collections.abc import Callable

from checkpoints.charsmap import charsmap
from checkpoints.patterns import Timed

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Unicode's white space; str.strip would take the separators U+001C to U+001F too
SPACES = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
META = "\u2581"  # what SentencePiece writes for a space
MOST_CONTENT = 1000  # characters that a step may write in one place
MOST_GROWN, A_LETTER = 100_000, 20  # characters that steps may make of a text: so many, and of each letter so many

Cut = Callable[[str, bool], list[str]]  # (text, does it begin the sequence?) -> its pieces


def byte_alphabet() -> dict[int, str]:
    """byte -> character: itself where it prints, else the characters from U+0100 on (GPT-2). 32, the space, is "Ġ"."""
    printing = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (b for b in range(256) if b not in printing)
    return {b: chr(b) for b in printing} | {b: chr(0x100 + i) for i, b in enumerate(others)}


ALPHABET = byte_alphabet()


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


def _byte_level(text: str, first: bool, spaced: bool, pattern) -> list[str]:
    """Words in the byte alphabet; spaced: a text that begins with no space gets one."""
    if spaced and not text.startswith(" "):
        text = " " + text
    words = split(text, pattern, "Isolated") if pattern else [text]
    return ["".join(ALPHABET[b] for b in word.encode("utf-8", "replace")) for word in words]


def metaspace(part: dict) -> tuple[str, str]:
    """(what stands for a space, where one is put in front: always | first | never) of a `Metaspace` of any age."""
    scheme = part.get("prepend_scheme") or ("never" if part.get("add_prefix_space") is False else "always")
    mark = part.get("replacement", META)
    if scheme not in ("always", "first", "never") or not isinstance(mark, str) or len(mark) != 1:
        raise ValueError(f"its Metaspace has prepend_scheme {scheme!r} and replacement {part.get('replacement')!r}")
    return mark, scheme


def _metaspace(text: str, first: bool, mark: str, scheme: str, words) -> list[str]:
    text = text.replace(" ", mark)
    if text and not text.startswith(mark) and (scheme == "always" or (scheme == "first" and first)):
        text = mark + text
    return words.findall(text) if words else [text]


def _in_turn(steps: list[Cut]) -> Cut:
    """Each step cuts what the one before it left."""
    def cut(text: str, first: bool) -> list[str]:
        pieces = [text]
        for step in steps:
            begun = first and text.startswith(pieces[0]) if pieces else False  # not where its beginning was removed
            pieces = [q for i, p in enumerate(pieces) for q in step(p, begun and i == 0)]
        return pieces
    return cut


def pre_tokenizer(part: dict | None) -> Cut:
    """The file's pre-tokenizer as a function. ValueError names one that is not known."""
    part = part or {"type": "Sequence", "pretokenizers": []}
    kind, behavior, invert = part.get("type"), part.get("behavior", "Isolated"), part.get("invert", False)
    if kind == "Sequence":
        return _in_turn([pre_tokenizer(p) for p in part["pretokenizers"]])
    if kind == "ByteLevel":
        pattern = Timed(GPT2) if part.get("use_regex", True) else None
        return functools.partial(_byte_level, spaced=part.get("add_prefix_space", True), pattern=pattern)
    if kind == "Metaspace":
        mark, scheme = metaspace(part)
        words = re.compile(f"{re.escape(mark)}[^{re.escape(mark)}]*|[^{re.escape(mark)}]+")
        return functools.partial(_metaspace, mark=mark, scheme=scheme,
                                 words=words if part.get("split") is not False else None)
    if kind == "Digits":
        pattern, behavior = r"\p{N}", "Isolated" if part.get("individual_digits") else "Contiguous"
    elif kind == "Punctuation":
        pattern = r"[\p{P}$+<=>^`|~]"
    elif kind == "Split":
        return _cut_by(_pattern(part["pattern"]), behavior, invert)
    elif kind == "Whitespace":
        pattern, behavior, invert = r"\w+|[^\w\s]+", "Removed", True
    elif kind == "WhitespaceSplit":
        pattern, behavior = r"\s", "Removed"
    else:
        raise ValueError(f"the pre-tokenizer {kind!r} is not supported")
    return _cut_by(Timed(pattern), behavior, invert)


def _cut_by(pattern, behavior: str, invert: bool) -> Cut:
    behaviors = ("Isolated", "Removed", "Contiguous", "MergedWithPrevious", "MergedWithNext")
    if behavior not in behaviors:
        raise ValueError(f"a pre-tokenizer has the behavior {behavior!r}; known are {', '.join(behaviors)}")
    return lambda text, first: split(text, pattern, behavior, invert)


def _pattern(given: dict):
    """Plain strings need no package."""
    return Timed(given["Regex"]) if "Regex" in given else re.compile(re.escape(given["String"]))


def content_of(part: dict, key: str = "content") -> str:
    """What a step writes. ValueError if it is no text, or a long one: many steps would make gigabytes of it."""
    if not isinstance(part[key], str) or len(part[key]) > MOST_CONTENT:
        raise ValueError(f"a {part.get('type')} writes {repr(part[key])[:60]}; it must be a text of at most "
                         f"{MOST_CONTENT} characters")
    return part[key]


def grown(letters: int, of: int) -> None:
    """ValueError if a text of so many letters became so many more."""
    if letters > MOST_GROWN + A_LETTER * of:
        raise ValueError(f"its steps make {letters:,} characters of {of:,}: fetch it again")


def replace(part: dict) -> Callable[[str], str]:
    """A `Replace` of a normalizer or a decoder."""
    pattern, content = part["pattern"], content_of(part)
    if "Regex" not in pattern:
        if not isinstance(pattern["String"], str):
            raise ValueError(f"a Replace looks for {repr(pattern['String'])[:60]}; it must be a text")
        return lambda text: text.replace(pattern["String"], content)
    regex = Timed(pattern["Regex"])
    return lambda text: regex.sub(lambda _: content, text)


def normalizer(part: dict | None) -> Callable[[str], str]:
    """The file's normalizer as a function. ValueError names one that is not known."""
    if part is None:
        return lambda text: text
    kind = part.get("type")
    if kind == "Sequence":
        steps = [normalizer(p) for p in part["normalizers"]]
        def all_steps(text: str) -> str:
            out = text
            for step in steps:
                grown(len(out := step(out)), len(text))
            return out
        return all_steps
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return functools.partial(unicodedata.normalize, kind)
    if kind == "Lowercase":
        return lambda text: "".join(map(str.lower, text))  # a sigma that ends a word is no other sigma here
    if kind == "Replace":
        return replace(part)
    if kind == "Prepend":
        content = content_of(part, "prepend")
        return lambda text: content + text if text else text
    if kind == "Strip":
        left, right = (SPACES if part.get(f"strip_{side}") else "" for side in ("left", "right"))
        return lambda text: text.lstrip(left).rstrip(right)
    if kind == "Precompiled":
        return charsmap(part["precompiled_charsmap"], Timed(r"\X"))
    raise ValueError(f"the normalizer {kind!r} is not supported")
