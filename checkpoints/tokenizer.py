"""Text to token ids and back, by a folder's own files and conventions.

`tokenizer.json` is read where it is byte-level (checkpoints/bytelevel), else `tokenizer.model` through sentencepiece,
else `tekken.json`, else a `tokenizer.json` in SentencePiece's style (checkpoints/pieces). Which tokens are special
checkpoints/special reads; chat templates are checkpoints/chat.

A text of type str is parsed as the reference does: control tokens in it are tokens. In a Prompt (star/text) they are
only where a chat template wrote them: whoever types "<|im_end|>" types letters.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from checkpoints.bytelevel import ByteLevelBPE
from checkpoints.files import read_json, read_json_if_there
from checkpoints.pieces import Pieces
from checkpoints.sentences import META, SentencePiece, is_marker
from checkpoints.special import SETTINGS, read_special
from checkpoints.steps import SPACES, normalizer
from star.text import Prompt

# Tekken's first special tokens where the file, an old one, does not list them
TEKKEN = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
          "[/TOOL_RESULTS]", "[TOOL_CALLS]", "[IMG]", "<pad>", "[IMG_BREAK]", "[IMG_END]", "[PREFIX]", "[MIDDLE]",
          "[SUFFIX]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "[TOOL_CONTENT]"]


class AddedTokens:
    """Tokens that are looked for in the text itself, before any model sees it: id -> text, and where they may stand.

    Special ones, and those of a chat template (it writes them outside of what is typed), are not found in what is typed
    of a Prompt; "unnamed" ones only where a template writes them.
    """

    def __init__(self, entries: list[dict], normalize: Callable[[str], str]):
        self.texts = {e["id"]: e["content"] for e in entries}
        self.read = {e["id"]: normalize(e["content"]) if e.get("normalized") else e["content"] for e in entries}
        self._normalize = normalize
        self._raw = {e["content"]: e for e in entries if not e.get("normalized")}
        self._normalized = {normalize(e["content"]): e for e in entries if e.get("normalized")}
        self._patterns = [_alternatives(tokens) for tokens in (self._raw, self._normalized)]

    def split(self, text: str) -> list[str | int]:
        """Ids of the added tokens, and the normalized texts between them."""
        out, rendered = [], getattr(text, "rendered", False)
        spans = [getattr(text, kind, ()) for kind in ("typed", "doubted")]
        for at, part in _cut(str(text), self._raw, self._patterns[0], *spans, rendered):
            if isinstance(part, int):
                out.append(part)
                continue
            within = [self._normalized_places(part, at, these) if self._patterns[1] else [] for these in spans]
            inner = _cut(self._normalize(part), self._normalized, self._patterns[1], *within, rendered)
            out += [piece for _, piece in inner]
        return out

    def _normalized_places(self, part: str, at: int, spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """What of these spans lies in a part that begins at this place of the text. A place in the normalized text is
        where the text before it ends, normalized."""
        within = [(max(start - at, 0), end - at) for start, end in spans if start < at + len(part) and at < end]
        return [(len(self._normalize(part[:start])), len(self._normalize(part[:end]))) for start, end in within]

    def special_in(self, text: str) -> list[str]:
        """The texts of special tokens that stand in this one."""
        matches = self._patterns[0].findall(text) if self._patterns[0] else []
        return [t for t in dict.fromkeys(matches) if self._raw[t].get("special")]


def _alternatives(texts: Iterable[str]) -> re.Pattern | None:
    """Finds the longest of these texts at the leftmost place; None if there is none to find."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _found(text: str, tokens: dict[str, dict], pattern: re.Pattern | None, typed: Sequence[tuple[int, int]],
           doubted: Sequence[tuple[int, int]]) -> Iterator[tuple[re.Match, bool, bool]]:
    """What the pattern finds, whether it is special, and whether people wrote of it. A special token that begins or
    ends in what they wrote is none, but a shorter one before it, or one behind, may be the template's. Line breaks and
    runs of spaces, which some files call special, are for everybody."""
    at = 0
    while pattern and (match := pattern.search(text, at)):
        start, at = match.span()
        over = [(s, e) for s, e in typed if s < at and start < e]
        special = tokens[match[0]].get("special") and not match[0].replace(META, " ").isspace()
        if special and over:
            own = pattern.match(text, start, min(s for s, _ in over))
            match, over = (own, []) if own else (match, over)
            at = own.end() if own else min(at, max(e for _, e in over))
        by_people = bool(over) or (special and any(s <= start and match.end() <= e for s, e in doubted))
        yield match, special, by_people


def _cut(text: str, tokens: dict[str, dict], pattern: re.Pattern | None, typed: Sequence[tuple[int, int]] = (),
         doubted: Sequence[tuple[int, int]] = (), rendered: bool = False) -> Iterator[tuple[int, str | int]]:
    """Ids of the tokens that the pattern finds, and the texts between, each with its place; lstrip and rstrip take the
    white space beside.

    With the token "<x>" (id 7, lstrip) and the text "a <x> b": (0, "a"), (1, 7), (5, " b").
    """
    matches = list(_found(text, tokens, pattern, typed, doubted))
    written = {match[0] for match, _, by_people in matches if rendered and not by_people and is_marker(match[0])}
    at = 0
    for match, special, by_people in matches:
        token, (start, end) = tokens[match[0]], match.span()
        if by_people and (special or match[0] in written):
            continue
        if token.get("unnamed") and not rendered:
            continue
        if token.get("single_word") and any(_of_word(c) for c in text[max(start - 1, 0) : start] + text[end : end + 1]):
            continue
        if token.get("lstrip"):
            start = max(len(text[:start].rstrip(SPACES)), at)
        if token.get("rstrip"):
            end = len(text) - len(text[end:].lstrip(SPACES))
        if at < start:
            yield at, text[at:start]
        yield start, token["id"]
        at = end
    if at < len(text):
        yield at, text[at:]


def _of_word(c: str) -> bool:
    """Letters, marks, digits, connectors and the two joiners, as in the reference."""
    kind = unicodedata.category(c)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or c in "\u200c\u200d"


class Tokenizer:
    """A model of pieces, the tokens added to it, and the folder's conventions on where a sequence begins and ends.

    chat: a template (checkpoints/chat), set by who wants prompts to be conversations. file: what its pieces stand in.
    notes: what the folder's files disagree on, and who wins.
    """

    chat = None
    file: Path | str = "the tokenizer"

    def __init__(self, pieces: SentencePiece | ByteLevelBPE | Pieces, added: AddedTokens, before: list[int],
                 after: list[int], bos_id: int | None, eos_ids: tuple[int, ...], notes: Iterable[str] = ()):
        self._pieces, self._added, self._before, self._after = pieces, added, before, after
        self.bos_id, self.eos_ids, self.unk_id, self.notes = bos_id, eos_ids, pieces.unk_id, list(notes)
        self._beyond = {i for i in added.texts if i not in pieces}  # some stand in the vocabulary too
        self.vocab_size: int = max([pieces.size, *(i + 1 for i in added.texts)])

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of the text; special: with what the folder's convention puts in front (BOS) and behind, unless the text
        begins with it already.

        Behind a Prompt (star/text) stands nothing, so that it ends in no EOS, which its template's own loses; in front
        of a rendered one only what its template wrote. What is typed of it holds no control tokens. ValueError, which
        names the file: a pattern of it never ends on this text, its steps make gigabytes of it, or it has no piece.
        """
        try:
            return self._encode(text, special)
        except ValueError as e:
            raise ValueError(f"{self.file}: {e}") from None

    def _encode(self, text: str, special: bool) -> list[int]:
        ids, rendered = [], getattr(text, "rendered", False)
        how = {"spaced": True} if rendered and isinstance(self._pieces, SentencePiece) else {}
        for i, part in enumerate(self._added.split(text)):
            ids += [part] if isinstance(part, int) else self._pieces.encode(part, first=i == 0, **how)
        if rendered:
            while ids and ids[-1] in self.eos_ids and not text.ended:
                del ids[-1]
            return ids
        if not special:
            return ids
        before = self._before if ids[: len(self._before)] != self._before else []
        return [*before, *ids, *([] if isinstance(text, Prompt) else self._after)]

    def special_in(self, text: str) -> list[str]:
        """Texts of control tokens that stand in this one, each once: in a Prompt they are text."""
        return self._added.special_in(text)

    def has(self, text: str) -> bool:
        """Is this text a token that may stand in a text?"""
        return text in self._added.texts.values()

    def decode(self, ids: list[int]) -> str:
        """Text of all ids together, the inverse of `encode`: what it puts around the text is silent.

        Decode a list at once: a token may be half a character, and a piece alone loses its leading space.
        """
        ids = list(ids)
        start = len(self._before) if ids[: len(self._before)] == self._before else 0
        end = len(ids) - len(self._after) if self._after and ids[-len(self._after) :] == self._after else len(ids)
        ids = ids[start:end]
        out = []
        for beyond, run in itertools.groupby(ids, self._beyond.__contains__):
            if beyond:
                out += [self._added.texts[i] for i in run]
            else:
                try:
                    out.append(self._pieces.decode(list(run), first=not out))
                except ValueError as e:
                    raise ValueError(f"{self.file}: {e}") from None
        return "".join(out)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises FileNotFoundError or ValueError that names the file and what to do."""
    folder = Path(path)
    file = folder / "tokenizer.json"
    data = read_json(file) if file.is_file() else None
    try:
        if data is not None and _byte_level(data.get("pre_tokenizer")):
            tokenizer = _from_json(folder, data)
        elif (folder / "tokenizer.model").is_file():
            tokenizer = _from_sentencepiece(folder, data or {})
        elif (folder / "tekken.json").is_file():
            file = folder / "tekken.json"
            tokenizer = _from_tekken(folder, read_json(file))
        elif data is not None:
            tokenizer = _from_json(folder, data)
        else:
            raise FileNotFoundError(f"no tokenizer.json and no tokenizer.model in {folder}: fetch them from where the "
                                    "model is")
        tokenizer.file = file if file.is_file() else folder / "tokenizer.model"
        if odd := [i for i in (*tokenizer._before, *tokenizer._after) if i >= tokenizer.vocab_size]:
            raise ValueError(f"{tokenizer.file}: its post-processor has the id {odd[0]}, which is no token")
        return tokenizer
    except (LookupError, TypeError, AttributeError, RecursionError, ArithmeticError) as e:  # not what it should be
        raise ValueError(f"{file} is damaged ({type(e).__name__}: {e}): fetch it again") from None


def _byte_level(part: dict | None) -> bool:
    part = part or {}
    return part.get("type") == "ByteLevel" or any(_byte_level(p) for p in part.get("pretokenizers", ()))


def _from_json(folder: Path, data: dict) -> Tokenizer:
    try:
        pieces = ByteLevelBPE.from_json(data) if _byte_level(data.get("pre_tokenizer")) else Pieces(data)
        normalize = normalizer(data.get("normalizer"))
        before, after = _template(data.get("post_processor"))
    except ValueError as e:
        raise ValueError(f"{folder / 'tokenizer.json'}: {e}") from None
    special = read_special(folder, data)
    entries = special.complete(pieces.vocab.get, pieces)
    added, bos = AddedTokens(entries, normalize), special.id_of("bos_token", entries)
    if isinstance(pieces, Pieces):
        pieces.texts |= added.read  # the file's decoder has them too
    return Tokenizer(pieces, added, before, after, before[0] if before else bos, special.end(entries), special.notes)


def _from_sentencepiece(folder: Path, data: dict) -> Tokenizer:
    settings, file = read_json_if_there(folder / SETTINGS), folder / "tokenizer.model"
    first = (data.get("pre_tokenizer") or {}).get("prepend_scheme") == "first" or not settings.get("legacy")
    try:
        pieces = SentencePiece(file, space_each=not first)
    except ValueError:
        if not data:
            raise
        return _from_json(folder, data)
    if data and len(data["model"]["vocab"]) != pieces.size:
        return _from_json(folder, data)  # its vocabulary grew, and tokenizer.model is that of before
    special = read_special(folder, data)
    entries = {e["id"]: {"normalized": False} | e for e in special.complete(pieces.id_of)}
    own = {i: {"id": i, "content": text, "special": i in pieces.control, "normalized": False}
           for i, text in (pieces.control | pieces.markers).items()}
    entries = own | {i: e for i, e in entries.items() if i in own or e.get("special") or i not in pieces}
    renamed = {i: e["content"] for i, e in entries.items() if pieces.id_of(e["content"]) != i}
    pieces.markers |= renamed
    for i, text in pieces.control.items():
        if text not in special.said:
            entries[i]["special"] = True
        if not special.said and i in pieces.around:  # nobody names a token: as the library has it, no text holds BOS
            entries[i]["unnamed"] = True
    entries = list(entries.values())
    bos = special.id_of("bos_token", entries, pieces.bos_id)
    before, after = _template(data.get("post_processor"))
    end = special.end(entries, pieces.eos_id)
    if not data.get("post_processor"):
        before = [bos] if settings.get("add_bos_token", True) and bos is not None else []
        after = [end[0]] if settings.get("add_eos_token") and end else []
    return Tokenizer(pieces, AddedTokens(entries, lambda text: text), before, after, bos, end, special.notes)


def _from_tekken(folder: Path, data: dict) -> Tokenizer:
    """The first ids are control tokens; 1 is BOS and 2 EOS."""
    try:
        pieces, n = ByteLevelBPE.from_tekken(data), data["config"]["default_num_special_tokens"]
    except ValueError as e:
        raise ValueError(f"{folder / 'tekken.json'}: {e}") from None
    listed = {e["rank"]: e["token_str"] for e in data.get("special_tokens") or []} or dict(enumerate(TEKKEN))
    listed = [{"id": i, "content": listed.get(i, f"<SPECIAL_{i}>"), "special": True} for i in range(n)]
    special = read_special(folder, {"added_tokens": listed}, "tekken.json")
    entries = special.complete(pieces.vocab.get)
    added, end = AddedTokens(entries, lambda text: text), special.end(entries, 2)
    return Tokenizer(pieces, added, [1], [], 1, end, special.notes)


def _template(part: dict | None) -> tuple[list[int], list[int]]:
    """(ids before, ids behind) a text, of the file's post-processor. ValueError for one that is not known, or no id."""
    kind, before, after = (part or {}).get("type"), [], []
    if kind == "Sequence":
        around = [_template(p) for p in part["processors"]]
        before, after = [i for b, _ in reversed(around) for i in b], [i for _, a in around for i in a]
    elif kind == "TemplateProcessing":
        text = next((i for i, piece in enumerate(part["single"]) if "Sequence" in piece), None)
        if text is None:
            raise ValueError("its post-processor leaves the text out: fetch it again")
        ids = [part["special_tokens"][p["SpecialToken"]["id"]]["ids"] if "SpecialToken" in p else []
               for p in part["single"]]
        before, after = [i for these in ids[:text] for i in these], [i for these in ids[text:] for i in these]
    elif kind in ("RobertaProcessing", "BertProcessing"):
        before, after = [part["cls"][1]], [part["sep"][1]]
    elif kind not in (None, "ByteLevel"):
        raise ValueError(f"the post-processor {kind!r} is not supported")
    if odd := [i for i in [*before, *after] if type(i) is not int or i < 0]:
        raise ValueError(f"its post-processor has the id {odd[0]!r}; it must be a number from 0 on")
    return before, after
