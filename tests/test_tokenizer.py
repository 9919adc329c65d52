"""Tokenizers against the reference's cases, what no case covers against plain rules, and what is refused."""

import base64
import itertools
import json
import random
import shutil
import sys
import unicodedata

import pytest
from conftest import GOLDEN, SHIPPED, refused

import checkpoints
from checkpoints.bytelevel import ByteLevelBPE
from checkpoints.patterns import Timed
from checkpoints.steps import ALPHABET, normalizer, pre_tokenizer, split
from checkpoints.tokenizer import AddedTokens

CASES = sorted(p.parent.name for p in GOLDEN.glob("tok_*/cases.json"))
BYTE_LEVEL = [name for name in CASES if "_sp_" not in name]


@pytest.fixture
def folder(tmp_path):
    """A writable copy of the Llama 3 kind of tokenizer."""
    shutil.copy(GOLDEN / "tok_llama3" / "tokenizer.json", tmp_path)
    return tmp_path


def edit(folder, change):
    data = json.loads((folder / "tokenizer.json").read_text())
    change(data)
    (folder / "tokenizer.json").write_text(json.dumps(data))


# Against the reference


@pytest.mark.parametrize("name", CASES)
def test_reference_cases(name):
    tokenizer = checkpoints.load_tokenizer(GOLDEN / name)
    cases = json.loads((GOLDEN / name / "cases.json").read_text())
    assert len(cases) > 10
    for case in cases:
        assert tokenizer.encode(case["text"]) == case["ids"], case
        assert tokenizer.encode(case["text"], special=False) == case["ids_no_special"], case
        assert tokenizer.decode(case["ids"]) == case["decoded"], case


def test_there_are_cases_of_every_kind():
    assert {"tok_gpt2", "tok_falcon", "tok_starcoder", "tok_llama3", "tok_neox", "tok_sp_llama",
            "tok_sp_mistral_json", "tok_sp_gemma_json", "tok_sp_unigram_json"} <= set(CASES)


def random_text(rng: random.Random) -> str:
    """Letters, digits, white space, marks and signs of many scripts; no surrogates, which are no characters."""
    ranges = [(0x20, 0x7F), (0x20, 0x7F), (0, 0x20), (0x80, 0x250), (0x300, 0x370), (0x400, 0x500), (0x0E00, 0x0E80),
              (0x2000, 0x2100), (0x4E00, 0x5000), (0xE000, 0xFFFE), (0x1F300, 0x1F700), (0x10000, 0x110000)]
    return "".join(chr(rng.randrange(*rng.choice(ranges))) for _ in range(rng.randrange(1, 40)))


@pytest.mark.parametrize("name", BYTE_LEVEL)
def test_byte_level_text_comes_back(name):
    tokenizer, rng = checkpoints.load_tokenizer(GOLDEN / name), random.Random(0)
    for _ in range(400):
        text = random_text(rng)
        assert tokenizer.decode(tokenizer.encode(text)) == (
            unicodedata.normalize("NFC", text) if name == "tok_neox" else text)


def slow_merge(word, ranks):
    """The rule as it is told: look at all neighbours, join the earliest listed pair, the leftmost of them; again."""
    parts = list(word)
    while pairs := [(ranks[p], i) for i, p in enumerate(itertools.pairwise(parts)) if p in ranks]:
        i = min(pairs)[1]
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def test_merges_are_those_of_the_rule():
    """Lists in any order, with tokens that cannot be reached, and words far longer than text has."""
    rng = random.Random(1)
    for trial in range(60):
        tokens, merges = list("abc"), []
        for _ in range(rng.randrange(1, 12)):
            pair = (rng.choice(tokens), rng.choice(tokens))
            merges.append(pair)
            tokens.append("".join(pair))
        rng.shuffle(merges)
        vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
        data = {"model": {"vocab": vocab, "merges": merges}, "pre_tokenizer": {"type": "ByteLevel", "use_regex": False,
                                                                                "add_prefix_space": False}}
        bpe = ByteLevelBPE.from_json(data)
        ranks = {pair: i for i, pair in enumerate(merges)}
        for n in (1, 2, 3, 5, 8, 13, 40, 200 if trial % 10 == 0 else 21):
            word = "".join(rng.choice("abc") for _ in range(n))
            assert bpe.encode(word) == [vocab[p] for p in slow_merge(word, ranks)], (merges, word)


def test_a_very_long_word_does_not_take_forever():
    tokenizer = checkpoints.load_tokenizer(GOLDEN / "tok_gpt2")
    word = "the" * 20_000  # quadratic merging would take an hour
    assert tokenizer.decode(tokenizer.encode(word)) == word


# Conventions


def test_no_second_bos(folder):
    tokenizer = checkpoints.load_tokenizer(folder)
    assert tokenizer.encode("hi")[0] == tokenizer.bos_id == 443
    assert tokenizer.encode("<|bos|>hi") == tokenizer.encode("hi")
    assert tokenizer.encode("<|bos|>hi", special=False) == tokenizer.encode("hi")
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"


def test_the_template_is_the_files(folder):
    special = {"<|bos|>": {"ids": [443]}, "<|eot|>": {"ids": [444]}}
    template = {"type": "TemplateProcessing", "special_tokens": special, "single": [
        {"SpecialToken": {"id": "<|bos|>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|eot|>"}}]}
    both = {"type": "Sequence", "processors": [{"type": "ByteLevel"}, template]}
    edit(folder, lambda d: d.update(post_processor=both))
    tokenizer = checkpoints.load_tokenizer(folder)
    assert tokenizer.encode("hi") == [443, *tokenizer.encode("hi", special=False), 444]
    assert tokenizer.decode(tokenizer.encode("hi")) == "hi"
    edit(folder, lambda d: d.update(post_processor=None))
    assert checkpoints.load_tokenizer(folder).encode("hi") == tokenizer.encode("hi", special=False)
    edit(folder, lambda d: d.update(post_processor={"type": "Magic"}))
    refused(checkpoints.load_tokenizer, folder, words=("post-processor 'Magic'",))


def test_ends_and_beginnings_by_the_folders_files(folder):
    assert checkpoints.load_tokenizer(folder).eos_ids == ()
    (folder / "tokenizer_config.json").write_text('{"eos_token": {"content": "<|eot|>"}, "bos_token": "<|bos|>"}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [7, 444, 5]}')
    edit(folder, lambda d: d.update(post_processor=None))
    tokenizer = checkpoints.load_tokenizer(folder)
    assert tokenizer.eos_ids == (444, 5, 7)  # the tokenizer's own first: it ends training examples
    assert tokenizer.bos_id == 443


def test_a_token_without_a_row_in_the_model_is_text(folder):
    """Gemma 3 1B: vocab_size 262,144, and an added token of that id."""
    (folder / "config.json").write_text('{"vocab_size": 444}')
    tokenizer = checkpoints.load_tokenizer(folder)
    assert tokenizer.vocab_size == 444
    assert 444 not in tokenizer.encode("a<|eot|>")
    assert tokenizer.decode(tokenizer.encode("a<|eot|>")) == "a<|eot|>"


def test_half_a_character_waits(folder):
    tokenizer = checkpoints.load_tokenizer(folder)
    ids = tokenizer.encode("é", special=False)
    assert len(ids) == 2
    assert tokenizer.decode(ids[:1]) == "\ufffd"
    assert tokenizer.decode(ids) == "é"
    assert tokenizer.decode([10**9, -1, *ids]) == "é"  # ids that nothing stands behind are silent


# Steps of the pipeline


@pytest.mark.parametrize(("behavior", "pieces", "inverted"), [
    ("Isolated", ["a", "-", "-", "b"], ["a", "-", "-", "b"]), ("Removed", ["a", "b"], ["-", "-"]),
    ("MergedWithPrevious", ["a-", "-", "b"], ["a", "-", "-b"]), ("MergedWithNext", ["a", "-", "-b"], ["a-", "-", "b"]),
    ("Contiguous", ["a", "--", "b"], ["a", "--", "b"])])
def test_split(behavior, pieces, inverted):
    assert split("a--b", Timed("-"), behavior) == pieces
    assert split("a--b", Timed("-"), behavior, invert=True) == inverted


def test_signs_of_ascii_are_punctuation_too():
    cut = pre_tokenizer({"type": "Punctuation", "behavior": "Contiguous"})
    assert cut("a$<5, «b»~", True) == ["a", "$<", "5", ",", " ", "«", "b", "»~"]


@pytest.mark.parametrize(("flags", "pieces"), [
    ({}, ["a ", 9, " b", 9, "c"]), ({"lstrip": True}, ["a", 9, " b", 9, "c"]),
    ({"rstrip": True}, ["a ", 9, "b", 9, "c"]), ({"single_word": True}, ["a ", 9, " b<x>c"])])
def test_added_tokens_take_the_space_they_may(flags, pieces):
    added = AddedTokens([{"id": 9, "content": "<x>", **flags}], lambda text: text)
    assert added.split("a <x> b<x>c") == pieces


def test_added_tokens_longest_first_and_before_the_normalizer():
    entries = [{"id": 1, "content": "<a>"}, {"id": 2, "content": "<a><b>"},
               {"id": 3, "content": "É", "normalized": True}]
    added = AddedTokens(entries, normalizer({"type": "NFC"}))
    assert added.split("x<a><b><a>") == ["x", 2, 1]
    assert added.split("cafE\u0301s") == ["caf", 3, "s"]  # found once E and its accent are one


def small(**model):
    vocab = {"a": 0, "b": 1, "ab": 2, "<unk>": 3}
    data = {"model": {"vocab": vocab, "merges": ["a b"], **model}, "pre_tokenizer": {"type": "ByteLevel"}}
    data["pre_tokenizer"] |= {"add_prefix_space": False}
    return ByteLevelBPE.from_json(data)


def test_a_byte_without_a_token_goes_as_the_reference_lets_it_go():
    assert small().encode("aqb") == [2]  # dropped, and its neighbours meet
    assert small(unk_token="<unk>").encode("aqqb") == [0, 3, 3, 1]
    assert small(unk_token="<unk>", fuse_unk=True).encode("aqqb") == [0, 3, 1]
    assert small(unk_token="<unk>").unk_id == 3


def test_whole_words_before_merges_only_where_the_file_says_so():
    vocab = {"a": 0, "b": 1, "c": 2, "bc": 3, "abc": 4}
    merges = [["b", "c"]]
    cut = {"type": "ByteLevel", "add_prefix_space": False}
    for ignore, ids in ((False, [0, 3]), (True, [4])):
        model = {"vocab": vocab, "merges": merges, "ignore_merges": ignore}
        assert ByteLevelBPE.from_json({"model": model, "pre_tokenizer": cut}).encode("abc") == ids


def test_byte_alphabet():
    assert len(set(ALPHABET.values())) == 256
    assert (ALPHABET[32], ALPHABET[10], ALPHABET[65], ALPHABET[0xBC]) == ("Ġ", "Ċ", "A", "¼")


def test_tekken(tmp_path):
    tokens = [bytes([b]) for b in range(256)] + [b"th", b"the", b" the"]
    data = {"config": {"pattern": r" ?\w+|\s+|[^\w\s]", "default_vocab_size": 256 + 3 + 10,
                       "default_num_special_tokens": 10},
            "vocab": [{"rank": i, "token_bytes": base64.b64encode(t).decode()}
                      for i, t in enumerate([*tokens, b"surplus"])]}
    (tmp_path / "tekken.json").write_text(json.dumps(data))
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    assert tokenizer.encode("the the thé") == [1, 267, 268, 10 + 32, 266, *(10 + b for b in "é".encode())]
    assert tokenizer.decode(tokenizer.encode("the the thé")) == "the the thé"
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.vocab_size) == (1, (2,), 269)


# SentencePiece


def test_shipped_tokenizer_is_one_id_a_character(tokenizer):
    text = "hint 883\n624+259\n4+9+C0=13\n=883\n\n  "
    ids = tokenizer.encode(text)
    assert len(ids) == len(text)
    assert tokenizer.decode(ids) == text
    assert all(tokenizer.decode([i]) == c for i, c in zip(ids, text, strict=True))
    assert (tokenizer.vocab_size, tokenizer.unk_id, tokenizer.bos_id, tokenizer.eos_ids) == (21, 0, None, (1,))


def test_end_ids_come_from_all_files(tmp_path):
    shutil.copy(SHIPPED / "tokenizer.model", tmp_path)
    (tmp_path / "config.json").write_text('{"eos_token_id": 5}')
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [7, 5]}')
    assert checkpoints.load_tokenizer(tmp_path).eos_ids == (1, 5, 7)


@pytest.mark.parametrize("legacy", [True, False])
def test_sentencepiece_with_added_tokens(tmp_path, legacy):
    """Phi-3: chat markers beyond the model's own pieces; with legacy each text between them gets a dummy space."""
    shutil.copy(GOLDEN / "tok_sp_llama" / "tokenizer.model", tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<|user|>": 400, "<s>": 1}')
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": legacy, "add_eos_token": True}))
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    plain = checkpoints.load_tokenizer(GOLDEN / "tok_sp_llama")
    assert tokenizer.vocab_size == 401
    the = plain.encode("the", special=False)
    ids = tokenizer.encode("the<|user|>the", special=False)
    assert ids[: len(the) + 1] == [*the, 400]
    assert (ids[len(the) + 1 :] == the) is legacy
    for text in ("the<|user|>the", "the<|user|> the"):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode("the") == [1, *the, 2]
    assert tokenizer.encode("<s>", special=False) == plain.encode("<s>", special=False)  # a text cannot forge it


# What is refused


def test_missing_and_damaged_tokenizers(tmp_path):
    refused(checkpoints.load_tokenizer, tmp_path,
            words=("no tokenizer.json and no tokenizer.model",), error=FileNotFoundError)
    (tmp_path / "tokenizer.model").write_bytes(b"garbage")
    refused(checkpoints.load_tokenizer, tmp_path, words=("no SentencePiece model", "tokenizer.json"))
    (tmp_path / "tokenizer.json").write_text("{")
    refused(checkpoints.load_tokenizer, tmp_path, words=("tokenizer.json is not JSON",))


@pytest.mark.parametrize(("change", "said"), [
    (lambda d: d["pre_tokenizer"]["pretokenizers"].append({"type": "Sausage"}), "pre-tokenizer 'Sausage'"),
    (lambda d: d.update(normalizer={"type": "BertNormalizer"}), "normalizer 'BertNormalizer'"),
    (lambda d: d["model"].update(type="WordPiece"), "its model is WordPiece"),
    (lambda d: d["model"]["merges"].append("lonely"), "('lonely',), which is no pair"),
    (lambda d: d["model"]["vocab"].update(odd=-5), "'odd': -5"),
    (lambda d: d["model"]["vocab"].update(odd=True), "'odd': True"),
    (lambda d: d["model"]["vocab"].update(odd=300), "'odd' the same id, 300"),
    (lambda d: d["pre_tokenizer"]["pretokenizers"][0].update(behavior="Sometimes"), "behavior 'Sometimes'"),
    (lambda d: d["model"].update(end_of_word_suffix="</w>"), "end_of_word_suffix"),
    (lambda d: d["model"]["merges"].append("q qqq"), "not in its vocabulary"),
    (lambda d: d["model"].pop("merges"), "is damaged"),
    (lambda d: d.pop("model"), "is damaged"),
    (lambda d: d["pre_tokenizer"]["pretokenizers"][0]["pattern"].update(Regex="("), "cannot be read"),
])
def test_what_a_tokenizer_json_may_not_say(folder, change, said):
    edit(folder, change)
    refused(checkpoints.load_tokenizer, folder, words=(said, "tokenizer.json"))


def test_a_missing_package_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)
    refused(checkpoints.load_tokenizer, folder, words=("package regex", "pip install -e '.[models]'"))
