"""Byte-level BPE as a `tokenizer.json` or a `tekken.json` describes it.

The file is the authority, step by step: the text is cut into words by the file's own pre-tokenizers (checkpoints/
steps), each word is written in the byte alphabet (a printable character a byte), and the pairs that the file lists
merge (checkpoints/bpe). A folder's conventions are read by checkpoints/tokenizer.
"""

import base64

from checkpoints.bpe import BPE
from checkpoints.steps import ALPHABET, Cut, pre_tokenizer

BYTES = {c: b for b, c in ALPHABET.items()}


def _bytes(token: str) -> bytes:
    """What a token of the vocabulary stands for; one that holds a foreign character stands for itself."""
    try:
        return bytes([BYTES[c] for c in token])
    except KeyError:
        return token.encode()


class ByteLevelBPE:
    """Text to ids and back."""

    def __init__(self, model: BPE, words: Cut):
        self._model, self._words = model, words
        self.vocab, self.size, self.unk_id = model.vocab, model.size, model.unk_id
        self._texts = {i: _bytes(token) for token, i in model.vocab.items()}

    @classmethod
    def from_json(cls, data: dict) -> "ByteLevelBPE":
        """Of the object in a tokenizer.json. ValueError says what this reader lacks, or which part is damaged."""
        return cls(BPE.from_json(data["model"]), pre_tokenizer(data["pre_tokenizer"]))

    @classmethod
    def from_tekken(cls, data: dict) -> "ByteLevelBPE":
        """Of the object in a tekken.json: an id is rank + specials; any pair that makes a token merges, by its rank."""
        config = data["config"]
        specials = config["default_num_special_tokens"]
        ranks = {"".join(ALPHABET[b] for b in base64.b64decode(entry["token_bytes"])): entry["rank"]
                 for entry in data["vocab"][: config["default_vocab_size"] - specials]}
        cut = [{"type": "Split", "pattern": {"Regex": config["pattern"]}, "behavior": "Isolated"},
               {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}]
        model = BPE({token: rank + specials for token, rank in ranks.items()}, lambda a, b: ranks.get(a + b),
                    {"ignore_merges": True})
        return cls(model, pre_tokenizer({"type": "Sequence", "pretokenizers": cut}))

    def __contains__(self, i: int) -> bool:
        return i in self._texts

    def encode(self, text: str, first: bool = True) -> list[int]:
        """Ids of a normalized text without added tokens. A byte without a token is unk, or nothing if there is none."""
        return [i for word in self._words(text, first) for i in self._model.ids(word)]

    def decode(self, ids: list[int], first: bool = True) -> str:
        """The text of all ids together; bytes that are no whole character become U+FFFD, unknown ids nothing."""
        return b"".join(self._texts.get(i, b"") for i in ids).decode("utf-8", "replace")
