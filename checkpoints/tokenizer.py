"""Text to token ids and back, by a folder's own files and conventions.

`tokenizer.json` is read where it is byte-level (checkpoints/bytelevel), else `tokenizer.model` through sentencepiece,
else `tekken.json`, else a `tokenizer.json` in SentencePiece's style (checkpoints/pieces). Control pieces of a
`tokenizer.model` in a text ("<s>") are never parsed as such: user text cannot forge them; added tokens are, as in the
reference. Chat templates are checkpoints/chat.
"""

import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable
from pathlib import Path

import sentencepiece

from checkpoints.bytelevel import ByteLevelBPE
from checkpoints.files import read_json, read_json_if_there
from checkpoints.pieces import Pieces
from checkpoints.steps import SPACES, normalizer

SETTINGS = "tokenizer_config.json"


class SentencePiece:
    """A `tokenizer.model`. Later pieces of a text that added tokens cut may go without the dummy space in front."""

    def __init__(self, file: Path, space_each: bool):
        self._model = sentencepiece.SentencePieceProcessor()
        try:
            self._model.LoadFromSerializedProto(file.read_bytes())
        except RuntimeError as e:
            raise ValueError(f"{file} is no SentencePiece model ({e}): fetch tokenizer.json too") from None
        self._space_each = space_each
        self.size: int = self._model.vocab_size()
        self.unk_id: int | None = self._model.unk_id()
        self.bos_id, self.eos_id = (i if i >= 0 else None for i in (self._model.bos_id(), self._model.eos_id()))

    def encode(self, text: str, first: bool = True) -> list[int]:
        if first or self._space_each:
            return self._model.encode(text)
        start = self._model.encode("\n")  # its last piece is the line break: what follows begins no text
        return self._model.encode("\n" + text)[len(start) :]

    def __contains__(self, i: int) -> bool:
        return 0 <= i < self.size

    def decode(self, ids: list[int], first: bool = True) -> str:
        ids = [i for i in ids if 0 <= i < self.size]
        if first or self._space_each:
            return self._model.decode(ids)
        start = self._model.encode("\n")
        return self._model.decode(start + ids).removeprefix(self._model.decode(start))


class AddedTokens:
    """Tokens that are looked for in the text itself, before any model sees it: id -> text, and where they may stand."""

    def __init__(self, entries: list[dict], normalize: Callable[[str], str]):
        self.texts = {e["id"]: e["content"] for e in entries}
        self.read = {e["id"]: normalize(e["content"]) if e.get("normalized") else e["content"] for e in entries}
        self._normalize = normalize
        self._raw = {e["content"]: e for e in entries if not e.get("normalized")}
        self._normalized = {normalize(e["content"]): e for e in entries if e.get("normalized")}
        self._patterns = [_alternatives(tokens) for tokens in (self._raw, self._normalized)]

    def split(self, text: str) -> list[str | int]:
        """Ids of the added tokens, and the normalized texts between them."""
        out = []
        for part in _cut(text, self._raw, self._patterns[0]):
            out += [part] if isinstance(part, int) else _cut(
                self._normalize(part), self._normalized, self._patterns[1])
        return out


def _alternatives(texts: Iterable[str]) -> re.Pattern | None:
    """Finds the longest of these texts at the leftmost place; None if there is none to find."""
    longest_first = sorted(filter(None, texts), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _cut(text: str, tokens: dict[str, dict], pattern: re.Pattern | None) -> list[str | int]:
    """Ids of the tokens that the pattern finds, and the texts between; lstrip and rstrip take the white space beside.

    With the token "<x>" (id 7, lstrip) and the text "a <x> b": ["a", 7, " b"].
    """
    out, at = [], 0
    for match in pattern.finditer(text) if pattern else ():
        token, (start, end) = tokens[match[0]], match.span()
        if token.get("single_word") and any(_of_word(c) for c in text[max(start - 1, 0) : start] + text[end : end + 1]):
            continue
        if token.get("lstrip"):
            start = max(len(text[:start].rstrip(SPACES)), at)
        if token.get("rstrip"):
            end = len(text) - len(text[end:].lstrip(SPACES))
        out += [text[at:start]] * (start > at) + [token["id"]]
        at = end
    return out + [text[at:]] * (at < len(text))


def _of_word(c: str) -> bool:
    """Letters, marks, digits, connectors and the two joiners, as in the reference."""
    kind = unicodedata.category(c)
    return kind[0] in "LM" or kind in ("Nd", "Nl", "Pc") or c in "\u200c\u200d"


class Tokenizer:
    """A model of pieces, the tokens added to it, and the folder's conventions on where a sequence begins and ends.

    chat: a template (checkpoints/chat), set by who wants prompts to be conversations.
    """

    chat = None

    def __init__(self, pieces: SentencePiece | ByteLevelBPE | Pieces, added: AddedTokens, before: list[int],
                 after: list[int], bos_id: int | None, eos_ids: tuple[int, ...]):
        self._pieces, self._added, self._before, self._after = pieces, added, before, after
        self.bos_id, self.eos_ids, self.unk_id = bos_id, eos_ids, pieces.unk_id
        self._beyond = {i for i in added.texts if i not in pieces}  # some stand in the vocabulary too
        self.vocab_size: int = max([pieces.size, *(i + 1 for i in added.texts)])

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of the text; special: with what the folder's convention puts in front (BOS) and behind, unless the text
        begins with it already, as that of a chat template does."""
        ids = []
        for i, part in enumerate(self._added.split(text)):
            ids += [part] if isinstance(part, int) else self._pieces.encode(part, first=i == 0)
        if not special:
            return ids
        return [*(self._before if ids[: len(self._before)] != self._before else []), *ids, *self._after]

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
                out.append(self._pieces.decode(list(run), first=not out))
        return "".join(out)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises FileNotFoundError or ValueError that names the file and what to do."""
    folder = Path(path)
    file = folder / "tokenizer.json"
    data = read_json(file) if file.is_file() else None
    try:
        if data is not None and _byte_level(data.get("pre_tokenizer")):
            return _from_json(folder, data)
        if (folder / "tokenizer.model").is_file():
            return _from_sentencepiece(folder, data or {})
        if (folder / "tekken.json").is_file():
            file = folder / "tekken.json"
            return _from_tekken(folder, read_json(file))
        if data is not None:
            return _from_json(folder, data)
    except (KeyError, TypeError, AttributeError) as e:  # a part that is missing or of another kind than it should be
        raise ValueError(f"{file} is damaged ({type(e).__name__}: {e}): fetch it again") from None
    raise FileNotFoundError(f"no tokenizer.json and no tokenizer.model in {folder}: fetch them from where the model is")


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
    added = AddedTokens(_fitting(folder, data.get("added_tokens") or []), normalize)
    if isinstance(pieces, Pieces):
        pieces.texts |= added.read  # the file's decoder has them too
    ids = pieces.vocab | {text: i for i, text in added.texts.items()}
    settings = read_json_if_there(folder / SETTINGS)
    bos, eos = (ids.get(content(settings.get(f"{end}_token"))) for end in ("bos", "eos"))
    return Tokenizer(pieces, added, before, after, before[0] if before else bos, _eos_ids(folder, eos))


def _from_sentencepiece(folder: Path, data: dict) -> Tokenizer:
    settings, file = read_json_if_there(folder / SETTINGS), folder / "tokenizer.model"
    only_first = (data.get("pre_tokenizer") or {}).get("prepend_scheme") == "first" or settings.get("legacy") is False
    try:
        pieces = SentencePiece(file, space_each=not only_first)
    except ValueError:
        if not data:
            raise
        return _from_json(folder, data)
    if data and len(data["model"]["vocab"]) != pieces.size:
        return _from_json(folder, data)  # its vocabulary grew, and tokenizer.model is that of before
    entries = data.get("added_tokens") or [
        {**e, "id": int(i)} for i, e in (settings.get("added_tokens_decoder") or {}).items()]
    entries = entries or [
        {"content": t, "id": i} for t, i in read_json_if_there(folder / "added_tokens.json").items()]
    beyond = [e | {"normalized": False} for e in _fitting(folder, entries) if e["id"] >= pieces.size]
    before = [pieces.bos_id] if settings.get("add_bos_token", True) and pieces.bos_id is not None else []
    after = [pieces.eos_id] if settings.get("add_eos_token") and pieces.eos_id is not None else []
    added = AddedTokens(beyond, lambda text: text)
    return Tokenizer(pieces, added, before, after, pieces.bos_id, _eos_ids(folder, pieces.eos_id))


def _from_tekken(folder: Path, data: dict) -> Tokenizer:
    """Control tokens 0 to n - 1 stand in no text; 1 is BOS and 2 EOS."""
    pieces = ByteLevelBPE.from_tekken(data)
    return Tokenizer(pieces, AddedTokens([], lambda text: text), [1], [], 1, _eos_ids(folder, 2))


def _template(part: dict | None) -> tuple[list[int], list[int]]:
    """(ids before, ids behind) a text, of the file's post-processor."""
    kind = (part or {}).get("type")
    if kind == "Sequence":
        around = [_template(p) for p in part["processors"]]
        return [i for b, _ in reversed(around) for i in b], [i for _, a in around for i in a]
    if kind == "TemplateProcessing":
        text = next(i for i, piece in enumerate(part["single"]) if "Sequence" in piece)
        ids = [part["special_tokens"][p["SpecialToken"]["id"]]["ids"] if "SpecialToken" in p else []
               for p in part["single"]]
        return [i for these in ids[:text] for i in these], [i for these in ids[text:] for i in these]
    if kind in ("RobertaProcessing", "BertProcessing"):
        return [part["cls"][1]], [part["sep"][1]]
    if kind in (None, "ByteLevel"):
        return [], []
    raise ValueError(f"the post-processor {kind!r} is not supported")


def content(token: object) -> object:
    """The text of a special token in tokenizer_config.json, which stands there plain or with flags around it."""
    return token.get("content") if isinstance(token, dict) else token


def _fitting(folder: Path, entries: list[dict]) -> list[dict]:
    """The added tokens that the model has a row for: Gemma 3 1B's files name one more."""
    rows = read_json_if_there(folder / "config.json").get("vocab_size")
    return [e for e in entries if not isinstance(rows, int) or e["id"] < rows]


def _eos_ids(folder: Path, own: int | None) -> tuple[int, ...]:
    """All ids that end a sequence, the tokenizer's own first: config.json or generation_config.json may have more."""
    ids = set()
    for name in ("config.json", "generation_config.json"):
        value = read_json_if_there(folder / name).get("eos_token_id")
        ids |= set(value) if isinstance(value, list) else set() if value is None else {value}
    return tuple(([] if own is None else [own]) + sorted(ids - {own}))
