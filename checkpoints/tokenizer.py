"""Text to token ids and back: `tokenizer.model` through sentencepiece.

Control pieces in text ("<s>") are never parsed as such: user text cannot forge them. It renders no chat templates.
"""

from pathlib import Path

import sentencepiece

from checkpoints.files import read_json


class Tokenizer:
    """A SentencePiece model and its folder's conventions on where a sequence begins and ends."""

    def __init__(self, path: str | Path):
        folder = Path(path)
        file = folder / "tokenizer.model"
        if not file.is_file():
            raise FileNotFoundError(f"no tokenizer.model in {folder}: only SentencePiece tokenizers are read so far")
        self._pieces = sentencepiece.SentencePieceProcessor()
        try:
            self._pieces.LoadFromSerializedProto(file.read_bytes())
        except RuntimeError as e:
            raise ValueError(f"{file} is no SentencePiece model: {e}") from None
        self.vocab_size: int = self._pieces.vocab_size()
        self.bos_id: int | None = self._pieces.bos_id() if self._pieces.bos_id() >= 0 else None
        self.unk_id: int = self._pieces.unk_id()
        self.eos_ids: tuple[int, ...] = _eos_ids(folder, self._pieces.eos_id())
        settings = folder / "tokenizer_config.json"
        self._add_bos = (read_json(settings) if settings.is_file() else {}).get("add_bos_token", True)

    def encode(self, text: str, special: bool = True) -> list[int]:
        """Ids of the text; special: with the BOS in front that the folder's convention asks for."""
        ids = self._pieces.encode(text)
        return [self.bos_id, *ids] if special and self._add_bos and self.bos_id is not None else ids

    def decode(self, ids: list[int]) -> str:
        """Text of all ids together; BOS, EOS and other control ids are silent.

        Decode a list at once: a token may be half a character, and a piece alone loses its leading space.
        """
        return self._pieces.decode([i for i in ids if i < self.vocab_size])


def _eos_ids(folder: Path, default: int) -> tuple[int, ...]:
    """All ids that end a sequence: generation_config.json often has more than config.json; both may hold a list."""
    ids = {default} if default >= 0 else set()
    for name in ("config.json", "generation_config.json"):
        if (folder / name).is_file():
            value = read_json(folder / name).get("eos_token_id")
            ids |= set(value) if isinstance(value, list) else set() if value is None else {value}
    return tuple(sorted(ids))


def load_tokenizer(path: str | Path) -> Tokenizer:
    """The tokenizer of a model folder. Raises FileNotFoundError or ValueError that names the file."""
    return Tokenizer(path)
