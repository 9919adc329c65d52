"""Byte-pair encoding: a word's characters, and the pairs of neighbours that merge into tokens.

The model of byte-level files (checkpoints/bytelevel), whose characters are bytes, and of SentencePiece's (checkpoints/
pieces), whose characters may fall back to the tokens <0x00> to <0xFF> of their bytes.
"""

import heapq
from collections.abc import Callable

REMEMBERED = 1 << 16  # words whose ids are kept,
LONGEST = 64  # if they have no more characters than this


def checked(vocab: dict[str, int]) -> dict[str, int]:
    """The vocabulary. ValueError names a token whose id is no whole number from 0 on, or another's; or it is empty."""
    if not vocab:
        raise ValueError("its vocabulary is empty")
    odd = next((token for token, i in vocab.items() if type(i) is not int or i < 0), None)
    if odd is not None:
        raise ValueError(f"its vocabulary has {odd!r}: {vocab[odd]!r}; an id must be a whole number from 0 on")
    if len(owners := {i: token for token, i in vocab.items()}) < len(vocab):
        token = next(token for token, i in vocab.items() if owners[i] != token)
        raise ValueError(f"its vocabulary gives {token!r} and {owners[vocab[token]]!r} the same id, {vocab[token]}")
    return vocab


def byte_tokens(text: str, vocab: dict[str, int]) -> list[str]:
    """The tokens <0x..> of a text's bytes; none if the vocabulary lacks one of them."""
    tokens = [f"<0x{b:02X}>" for b in text.encode("utf-8", "replace")]
    return tokens if all(t in vocab for t in tokens) else []


class BPE:
    """Words to ids. `rank(left, right)` says how early a pair merges (None: never); model: the settings of the file."""

    def __init__(self, vocab: dict[str, int], rank: Callable[[str, str], int | None], model: dict):
        self.vocab, self._rank = checked(vocab), rank
        self._whole_words = model.get("ignore_merges", False)  # a word that is a token is taken before any merge
        self._unk, self._fuse_unk = model.get("unk_token"), model.get("fuse_unk", False)
        self._byte_tokens = model.get("byte_fallback", False)
        self._known: dict[str, list[int]] = {}
        self.size = max(vocab.values()) + 1
        self.unk_id: int | None = vocab.get(self._unk)
        self.merges: dict[tuple[str, str], int] = {}  # pair -> rank, where the file lists them

    @classmethod
    def from_json(cls, model: dict) -> "BPE":
        """Of the model in a tokenizer.json. ValueError says what this reader lacks, or which part is damaged."""
        if model.get("type", "BPE") != "BPE":
            raise ValueError(f"its model is {model['type']}; only BPE and Unigram are supported")
        odd = [k for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix") if model.get(k)]
        if odd:
            raise ValueError(f"its model sets {', '.join(odd)}, which is not supported")
        lines = (m for m in model["merges"] if not str(m).startswith("#version"))
        pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in lines]
        odd = next((pair for pair in pairs if len(pair) != 2), None)
        if odd is not None:
            raise ValueError(f"its merges have {odd!r}, which is no pair")
        ranks = {pair: i for i, pair in enumerate(pairs)}
        lost = next((left + right for left, right in ranks if left + right not in model["vocab"]), None)
        if lost is not None:
            raise ValueError(f"its merges make {lost!r}, which is not in its vocabulary")
        bpe = cls(model["vocab"], lambda left, right: ranks.get((left, right)), model)
        bpe.merges = ranks
        return bpe

    def ids(self, word: str) -> list[int]:
        """Ids of a word. A character without a token is unk, or nothing if there is none."""
        if len(word) > LONGEST:
            return self._merge(word)
        if word not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[word] = self._merge(word)
        return self._known[word]

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
        """The word's characters that have a token, and the bytes of others; unk, or nothing, for the rest.

        As in the reference, an unk waits for the next character with a token: bytes between come before it.
        """
        out, waiting = [], []
        for c in word:
            if c in self.vocab:
                out += [*waiting, c]
                waiting = []
            elif as_bytes := byte_tokens(c, self.vocab) if self._byte_tokens else []:
                out += as_bytes
            elif self._unk in self.vocab:
                out += waiting * (not self._fuse_unk)
                waiting = [self._unk]
        return out + waiting
