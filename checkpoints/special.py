"""A folder's special tokens, of whatever files name them: one reader for every kind of tokenizer.

    tokenizer.json, tokenizer_config.json, special_tokens_map.json, added_tokens.json    texts, ids and flags
    generation_config.json, config.json                                                  ids that end a sequence

Where files disagree, the reference's order holds (transformers 5), and a note says who wins: names and flags of
tokenizer_config.json where it lists tokens in `added_tokens_decoder`, else those of special_tokens_map.json; ids of
tokenizer.json, which the weights were trained with.
"""

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from checkpoints.files import read_json_if_there

TOKENIZER, SETTINGS, MAP, ADDED = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
ENDS = ("config.json", "generation_config.json")
FLAGS = ("lstrip", "rstrip", "normalized", "single_word", "special")


@dataclass(frozen=True)
class Special:
    """What the files of a folder name.

    named: bos_token, eos_token, image_token, ... -> text. entries: added tokens {"id", "content", flags}, one a text.
    nulls: names of tokens that there are none of. extra: texts that are special too. said: all texts that the settings
    call tokens. ends: ids that end a sequence, of the model's own files. rows: of the model's vocabulary, where its
    config tells: Gemma 3 1B's files name one token more. looked: the files that there are. notes: where they disagree.
    """

    folder: Path
    named: dict[str, str]
    nulls: set[str]
    entries: list[dict]
    extra: list[str]
    said: set[str]
    ends: list[int]
    rows: int | None
    looked: list[str]
    notes: list[str] = field(default_factory=list)

    def complete(self, id_of: Callable[[str], int | None], taken: Container[int] = ()) -> list[dict]:
        """The added tokens, and the named ones that stand only in the vocabulary, `id_of`: special, as all named are.

        taken: ids that the vocabulary has given to others, whatever the settings call them.
        """
        entries = {}
        for e in self.entries if self.rows is None else [e for e in self.entries if e["id"] < self.rows]:
            if e["file"] != TOKENIZER and e["id"] in taken and id_of(e["content"]) != e["id"]:
                self.notes.append(f"{self.folder.name}: {e['file']} calls token {e['id']} {e['content']!r}, which "
                                  f"{TOKENIZER} gives to another: that one is kept")
            else:
                entries[e["content"]] = e
        for text in [*self.named.values(), *self.extra]:
            i = entries[text]["id"] if text in entries else id_of(text)
            if i is not None:
                entries[text] = {"content": text, **entries.get(text, {}), "id": i, "special": True}
        return list(entries.values())

    def id_of(self, name: str, entries: Iterable[dict], own: int | None = None) -> int | None:
        """The id of a named token. own: where no file names one; null is a name too, of none."""
        if name in self.named:
            return next((e["id"] for e in entries if e["content"] == self.named[name]), None)
        return None if name in self.nulls else own

    def end(self, entries: Iterable[dict], own: int | None = None) -> tuple[int, ...]:
        """All ids that end a sequence, the tokenizer's own first: it ends training examples.

        own: where no file names one. ValueError for a named one that is no token.
        """
        text, own = self.named.get("eos_token"), self.id_of("eos_token", entries, own)
        if text is not None and own is None:
            beyond = next((e["id"] for e in self.entries if e["content"] == text), None)
            why = (f"no token of it has that text (looked in {', '.join(self.looked)})" if beyond is None else
                   f"its id is {beyond} and the model has {self.rows} rows")
            raise ValueError(f"{self.folder} names {text!r} as its eos_token, but {why}: fetch all its files again")
        if own is not None and self.ends and own not in self.ends:
            files = [name for name in ENDS if _ends(self.folder, name)]
            self.notes.append(
                f"{self.folder.name}: the tokenizer's end of sequence is {own}{f' ({text})' if text else ''}, that of "
                f"{' and '.join(files)} {', '.join(map(str, self.ends))}: all of them end a text, and training "
                f"examples end in {own}")
        return tuple(([] if own is None else [own]) + [i for i in self.ends if i != own])


def read_special(folder: Path, tokenizer: dict | None = None, file: str = TOKENIZER) -> Special:
    """tokenizer: the object in tokenizer.json, where there is one, or as of one in another file. ValueError names file
    and value of what is no id."""
    settings, names = read_json_if_there(folder / SETTINGS), read_json_if_there(folder / MAP)
    there = [name for name in (TOKENIZER, "tokenizer.model", "tekken.json", SETTINGS, MAP, ADDED, *ENDS)
             if (folder / name).is_file()]
    notes = []
    named = _named(folder, settings, names, notes)
    extra = [_text(t) for part in (settings, names) for t in
             _list(part.get("extra_special_tokens")) or _list(part.get("additional_special_tokens"))]
    entries = _added(folder, settings, {file: (tokenizer or {}).get("added_tokens") or []}, [*named.values(), *extra],
                     notes)
    ends = sorted({i for name in ENDS for i in _ends(folder, name)})
    nulls = {name for name in settings if settings[name] is None} - set(named)
    extra = [t for t in extra if isinstance(t, str)]
    listed = {_text(t) for t in _decoder(folder, settings).values()}
    return Special(folder, named, nulls, entries, extra, {*named.values(), *extra, *listed}, ends, _rows(folder), there,
                   notes)


def no_end(folder: Path) -> ValueError:
    """What to say where no file names an end of sequence."""
    files = ", ".join(read_special(folder).looked) or "no file: there is none"
    return ValueError(f"{folder} names no end-of-sequence token (looked in {files}): config.json needs eos_token_id, "
                      f"or {SETTINGS} eos_token")


def _text(token: object) -> object:
    """The text of a token, which stands there plain or with flags around it."""
    return token.get("content") if isinstance(token, dict) else token


def _list(given: object) -> list:
    return given if isinstance(given, list) else []


def _decoder(folder: Path, settings: dict) -> dict:
    """The settings' list of tokens, by their ids as texts."""
    given = settings.get("added_tokens_decoder") or {}
    if not isinstance(given, dict):
        raise ValueError(f"{folder / SETTINGS}: added_tokens_decoder is of type {type(given).__name__}; it must be an "
                         "object, from ids to tokens")
    return given


def _named(folder: Path, settings: dict, names: dict, notes: list[str]) -> dict[str, str]:
    """name -> text; tokens of a name of their own ({"image_token": }) stand among the others or in a dict beside."""
    def of(part: dict) -> dict[str, object]:
        extra = part.get("extra_special_tokens")
        both = part | (extra if isinstance(extra, dict) else {})
        return {k: _text(v) for k, v in both.items() if k.endswith("_token") and _text(v) != ""}

    for file, part in ((SETTINGS, of(settings)), (MAP, of(names))):
        odd = next((k for k in ("bos_token", "eos_token") if not isinstance(part.get(k), str | None)), None)
        if odd:
            raise ValueError(f"{folder / file}: {odd} is {part[odd]!r}; it must be a text")
    first, then, winner = of(settings), of(names), SETTINGS  # null in the first: there is none
    if "added_tokens_decoder" not in settings:
        first, then, winner = {k: v for k, v in then.items() if v is not None}, first, MAP
    notes += [f"{folder.name}: {SETTINGS} and {MAP} name different tokens as {name}; that of {winner} is taken, "
              f"{first[name]!r}, not {then[name]!r}"
              for name in first if isinstance(then.get(name), str) and then[name] != first[name]]
    return {k: v for k, v in (then | first).items() if isinstance(v, str)}


def _added(folder: Path, settings: dict, listed: dict[str, list], special: list, notes: list[str]) -> list[dict]:
    """The added tokens of all files; flags by the later of them, ids by tokenizer.json, which listed them."""
    older = [{"content": text, "id": i, "special": text in special}
             for text, i in read_json_if_there(folder / ADDED).items()]
    newer = [(token if isinstance(token, dict) else {"content": token}) | {"id": int(i) if i.isdecimal() else i}
             for i, token in _decoder(folder, settings).items()]
    found: dict[str, dict] = {}
    taken: dict[int, str] = {}
    for name, part in {**listed, SETTINGS: newer, ADDED: older}.items():
        _check(folder / name, part)
        for entry in part:
            text, i = entry["content"], entry["id"]
            if taken.get(i, text) != text:
                notes.append(f"{folder.name}: {name} calls token {i} {text!r}, which is {taken[i]!r} before it; "
                             "that one is kept")
                continue
            if text in found and found[text]["id"] != i:
                notes.append(f"{folder.name}: {name} gives {text!r} the id {i}; {found[text]['id']} is taken, that of "
                             f"{found[text]['file']}")
            flags = {k: v for k, v in entry.items() if k in FLAGS and v is not None}
            known = found.get(text, {"content": text, "id": i, "file": name})
            found[text] = known | flags if name != ADDED else flags | known
            taken[found[text]["id"]] = text
    for entry in found.values():
        entry.setdefault("normalized", not entry.get("special"))
    return list(found.values())


def _check(file: Path, entries: list[dict]) -> None:
    """ValueError for an id that is none, a text that is none, or an id or a text that stands twice."""
    seen: dict[int | str, int | str] = {}
    for entry in entries:
        i, text = entry.get("id"), entry.get("content")
        if type(i) is not int or i < 0:
            raise ValueError(f"{file}: the added token {text!r} has the id {i!r}; it must be a number from 0 on")
        if not isinstance(text, str):
            raise ValueError(f"{file}: the added token of id {i} is {text!r}; it must be a text")
        if seen.setdefault(i, text) != text:
            raise ValueError(f"{file}: two added tokens have the id {i}, {seen[i]!r} and {text!r}: fetch it again")
        if seen.setdefault(text, i) != i:  # the reference would count on from the first: every id behind is another
            raise ValueError(f"{file}: the added token {text!r} has two ids, {seen[text]} and {i}: fetch it again")


def _rows(folder: Path) -> int | None:
    """Rows of the model's vocabulary, if its config tells; a multimodal one's stand with its text part."""
    config = read_json_if_there(folder / ENDS[0])
    text = config.get("text_config")
    rows = config.get("vocab_size", text.get("vocab_size") if isinstance(text, dict) else None)
    return rows if type(rows) is int else None


def _ends(folder: Path, name: str) -> list[int]:
    """The ids that one of the model's own files says end a sequence. ValueError for what is no id of its vocabulary."""
    data = read_json_if_there(folder / name)
    text = data.get("text_config")
    given = data.get("eos_token_id", text.get("eos_token_id") if isinstance(text, dict) else None)
    ids = given if isinstance(given, list) else [] if given is None else [given]
    rows = _rows(folder)
    for i in ids:
        if type(i) is not int or i < 0:
            raise ValueError(f"{folder / name}: eos_token_id is {given!r}; it must be an id, or a list of ids")
        if rows is not None and i >= rows:
            raise ValueError(f"{folder / name}: eos_token_id is {given!r}, but the model's vocabulary has the ids 0 to "
                             f"{rows - 1}")
    return ids
