"""SentencePiece-style `tokenizer.json`: against the reference's cases, against slow twins, and what is refused."""

import base64
import itertools
import json
import random
import shutil
import sys
import time

import pytest
from conftest import GOLDEN, refused

import checkpoints
from checkpoints.bpe import LONGEST, REMEMBERED
from checkpoints.pieces import Pieces, Unigram
from checkpoints.steps import META, normalizer, pre_tokenizer

FOLDERS = ("tok_sp_mistral_json", "tok_sp_gemma_json", "tok_sp_unigram_json")
SPACED = {"type": "Replace", "pattern": {"String": META}, "content": " "}
LLAMA = {"type": "Sequence", "decoders": [SPACED, {"type": "ByteFallback"}, {"type": "Fuse"},
                                          {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
BYTES = [f"<0x{b:02X}>" for b in range(256)]


def read(name, file="tokenizer.json"):
    return json.loads((GOLDEN / name / file).read_text())


def bpe(tokens, merges=(), decoder=LLAMA, pre=None, **model):
    vocab = {t: i for i, t in enumerate(tokens)}
    return Pieces({"model": {"type": "BPE", "vocab": vocab, "merges": list(merges), **model}, "pre_tokenizer": pre,
                   "decoder": decoder})


def tokens_of(pieces, text, first=True):
    return [pieces.texts[i] for i in pieces.encode(text, first)]


# Against the reference


@pytest.mark.parametrize("name", FOLDERS)
def test_any_ids_decode_as_the_reference_decodes_them(name):
    """Half characters, spaces first and last, added tokens between: ids as a model may draw them."""
    tokenizer, cases = checkpoints.load_tokenizer(GOLDEN / name), read(name, "decoded.json")
    assert len(cases) > 30
    for case in cases:
        assert tokenizer.decode(case["ids"]) == case["decoded"], case


def test_llamas_published_form_equals_its_model(tmp_path):
    """The two files of a Llama 2 folder, each alone: but for "<s>", which sentencepiece takes for letters."""
    for name in ("tokenizer.json", "tokenizer.model"):
        (tmp_path / name[-4:]).mkdir()
        shutil.copy(GOLDEN / "tok_sp_llama" / name, tmp_path / name[-4:])
    alone, model = (checkpoints.load_tokenizer(tmp_path / kind) for kind in ("json", "odel"))
    for case in read("tok_sp_llama", "cases.json"):
        ids = alone.encode(case["text"], special=False)
        assert ids == case["tokenizer_json_ids_no_special"]
        assert "<s>" in case["text"] or ids == model.encode(case["text"], special=False)
        assert alone.decode(ids) == case["decoded"] or "<s>" in case["text"]
    assert (alone.bos_id, alone.unk_id, alone.vocab_size) == (model.bos_id, model.unk_id, model.vocab_size)


# Encoding


@pytest.mark.parametrize(("given", "at_first", "later"), [
    ({"prepend_scheme": "always"}, ["▁a", "▁b"], ["▁a", "▁b"]),
    ({"prepend_scheme": "first"}, ["▁a", "▁b"], ["a", "▁b"]),
    ({"prepend_scheme": "never"}, ["a", "▁b"], ["a", "▁b"]), ({"add_prefix_space": False}, ["a", "▁b"], ["a", "▁b"]),
    ({"add_prefix_space": True}, ["▁a", "▁b"], ["▁a", "▁b"]),
    ({"prepend_scheme": "always", "split": False}, ["▁a▁b"], ["▁a▁b"]), ({}, ["▁a", "▁b"], ["▁a", "▁b"])])
def test_metaspace_of_any_age(given, at_first, later):
    cut = pre_tokenizer({"type": "Metaspace", "replacement": META, **given})
    assert cut("a b", True) == at_first
    assert cut("a b", False) == later
    assert "".join(cut(" a b", True)) == "▁a▁b"  # a space that is there is not doubled


def test_only_what_begins_the_text_is_first_in_a_sequence_of_steps():
    steps = [{"type": "Split", "pattern": {"String": "-"}, "behavior": "Removed"},
             {"type": "Metaspace", "replacement": META, "prepend_scheme": "first"}]
    cut = pre_tokenizer({"type": "Sequence", "pretokenizers": steps})
    assert cut("a-b", True) == ["▁a", "b"]
    assert cut("-b", True) == ["b"]
    assert cut("--", True) == []


def test_a_text_is_cut_where_no_merge_reaches_across():
    """The same ids as of the whole text, for merges in any order; a merge across a border ends the cutting."""
    rng, cuts = random.Random(0), 0
    for trial in range(150):
        tokens, merges = [META, *"abc"], []
        for _ in range(rng.randrange(1, 14)):
            pair = (rng.choice(tokens), rng.choice(tokens))
            if trial % 3 or not (pair[1].startswith(META) and not pair[0].endswith(META)):
                merges.append(pair)
                tokens.append("".join(pair))
        pieces = bpe(dict.fromkeys([*tokens, "<unk>"]), merges, unk_token="<unk>", fuse_unk=trial % 2 == 0)
        cuts += pieces._apart
        for _ in range(20):
            text = "".join(rng.choice("aabbccq" + 3 * META) for _ in range(rng.randrange(1, 30)))
            assert pieces.encode(text) == pieces._model.ids(text), (merges, text)
    assert 40 < cuts < 150


def test_a_character_that_vanishes_joins_its_neighbours():
    """No unk and no bytes: then two "▁" meet where it stood, so that the text may not be cut there."""
    assert tokens_of(bpe([META, META * 2, "a"], [(META, META)]), f"a{META}q{META}a") == ["a", META * 2, "a"]


@pytest.mark.parametrize("name", FOLDERS[:2])
def test_the_folders_of_the_reference_are_cut(name):
    assert checkpoints.load_tokenizer(GOLDEN / name)._pieces._apart


def test_a_text_stays_whole_where_cutting_it_would_show():
    assert tokens_of(bpe(["<unk>", "a"], unk_token="<unk>", fuse_unk=True), f"q{META}qa") == ["<unk>", "a"]
    assert tokens_of(bpe([META, "a", "b", "<unk>", "a▁b"], ignore_merges=True, unk_token="<unk>"), "a▁b") == ["a▁b"]


def test_bytes_where_a_character_has_no_token():
    pieces = bpe([*BYTES, META, "a", "é"], byte_fallback=True)
    assert tokens_of(pieces, "aéñ\n") == ["a", "é", "<0xC3>", "<0xB1>", "<0x0A>"]
    assert tokens_of(bpe(["<unk>", "<0xC3>", "a"], byte_fallback=True, unk_token="<unk>"), "añña") == [
        "a", "<unk>", "<unk>", "a"]  # one of its bytes is missing
    assert tokens_of(bpe(["<unk>", "a"], unk_token="<unk>", fuse_unk=True), "añña") == ["a", "<unk>", "a"]


def test_an_unknown_waits_behind_bytes_as_in_the_reference():
    pieces = bpe(["<unk>", "<0xC3>", "<0xB1>", "a"], byte_fallback=True, unk_token="<unk>")
    assert tokens_of(pieces, "éña") == ["<0xC3>", "<0xB1>", "<unk>", "a"]


def test_merges_as_lines_or_lists():
    tokens = [META, "a", "b", "ab", "▁ab"]
    as_lists = bpe(tokens, [["a", "b"], [META, "ab"]])
    as_lines = bpe(tokens, ["a b", "▁ ab"])
    assert as_lists.encode("▁ab▁b") == as_lines.encode("▁ab▁b") == [4, 0, 2]


def test_long_texts_take_no_square_of_time_and_caches_stay_small():
    tokenizer = checkpoints.load_tokenizer(GOLDEN / "tok_sp_mistral_json")
    unigram = checkpoints.load_tokenizer(GOLDEN / "tok_sp_unigram_json")
    began = time.process_time()
    for text in ("the" * 13_000, "a" + " " * 40_000, "\U0001f6f3" * 12_000):
        assert tokenizer.decode(tokenizer.encode(text)) == text
        unigram.encode(text)
    assert time.process_time() - began < 10  # under 1 s; quadratic merging would take ten minutes
    for pieces in (tokenizer._pieces, unigram._pieces):
        assert all(len(word) <= LONGEST for word in pieces._model._known)
        pieces._model._known |= {key: [] for key in range(REMEMBERED)}
        pieces.encode("something new")
        assert len(pieces._model._known) < 20


# Unigram


def best_sum(word, scores):
    """The rule as it is told: of all ways to cut the word into pieces, the highest sum."""
    sums = []
    for cuts in itertools.product((False, True), repeat=len(word) - 1):
        borders = [0, *(i for i, cut in enumerate(cuts, 1) if cut), len(word)]
        parts = [word[i:j] for i, j in itertools.pairwise(borders)]
        sums += [sum(scores[p] for p in parts)] if all(p in scores for p in parts) else []
    return max(sums)


def test_unigram_takes_the_best_way_of_all():
    rng = random.Random(0)
    for _ in range(60):
        words = ["<unk>", *"abc", *("".join(rng.choice("abc") for _ in range(rng.randrange(2, 5))) for _ in range(12))]
        scores = {w: -rng.random() * 9 for w in words}
        model = Unigram({"vocab": list(scores.items()), "unk_id": 0})
        for _ in range(10):
            word = "".join(rng.choice("abc") for _ in range(rng.randrange(1, 10)))
            parts = [list(scores)[i] for i in model.ids(word)]
            assert "".join(parts) == word
            assert sum(scores[p] for p in parts) == pytest.approx(best_sum(word, scores)), (scores, word)


def test_unigram_unknown_characters():
    vocab = [["<unk>", 0.0], ["a", -1.0], *([t, -5.0] for t in BYTES)]
    assert Unigram({"vocab": vocab, "unk_id": 0}).ids("aññaa") == [1, 0, 1, 1]
    in_bytes = Unigram({"vocab": vocab, "unk_id": 0, "byte_fallback": True})
    assert in_bytes.ids("aña") == [1, 2 + 0xC3, 2 + 0xB1, 1]
    refused(Unigram({"vocab": vocab}).ids, "añ", words=("no piece for 'ñ'",))


@pytest.mark.parametrize(("pieces", "word", "ids"), [
    ({"añ": -9.0}, "añ", [1]),  # the piece that ends there is better than an unknown character
    ({"ñó": 0.0}, "ñó", [1]),
    ({"ñó": -3.0, "óx": 0.0, "x": -1.0}, "ñóx", [1, 3])])  # unknown + óx is -13: the least score and another -10
def test_what_an_unknown_character_costs(pieces, word, ids):
    vocab = {"<unk>": 0.0, **pieces}
    assert Unigram({"vocab": list(vocab.items()), "unk_id": 0}).ids(word) == ids


# Normalizers


def test_normalizers_of_sentencepiece():
    llama = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": META},
                                                 {"type": "Replace", "pattern": {"String": " "}, "content": META}]}
    assert normalizer(llama)(" a b") == "▁▁a▁b"
    assert normalizer(llama)("") == ""
    strip = {"type": "Strip", "strip_left": False, "strip_right": True}
    assert normalizer(strip)(" a\n\x1c\u2003 ") == " a\n\x1c"
    assert normalizer(strip | {"strip_left": True})("\u3000\t a ") == "a"
    assert normalizer({"type": "Lowercase"})("ΑΣ É") == "ασ é"


def test_the_table_of_replacements():
    """Made from the rules ﬁ -> fi, ① -> 1, Ａ -> A, A + U+030A -> Å, U+3000 and tab -> a space."""
    change = normalizer(read("tok_sp_unigram_json")["normalizer"]["normalizers"][0])
    assert change("ﬁne ①\u3000Ａ\tx") == "fine 1 A x"
    assert change("A\u030aB A\u0301") == "ÅB A\u0301"
    assert change("Ａ\u0301x") == "Ax"  # the shortest beginning stands for the whole of a short character
    assert change("Ａ\u0301\u0301") == "A\u0301\u0301"  # a longer one is looked up code point by code point
    assert change("") == ""
    assert change("a\0b") == "a\0b"
    assert normalizer({"type": "Precompiled", "precompiled_charsmap": None})("Ａ") == "Ａ"


@pytest.mark.parametrize("units", [[0x7FFFFFFF], [0] * 97 + [97 | 1 << 8 | 1000 << 10]])
def test_a_table_that_points_beyond_itself_replaces_nothing(units):
    data = b"".join(u.to_bytes(4, "little") for u in (4 * len(units), *units)) + b"x\0"
    table = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
    assert normalizer(table)("abc") == "abc"


# Decoding


@pytest.mark.parametrize(("decoder", "first", "later"), [
    (LLAMA, "a b", " a b"),
    ({"type": "Sequence", "decoders": [SPACED, {"type": "Fuse"}]}, " a b", " a b"),
    ({"type": "Metaspace", "replacement": META, "prepend_scheme": "always"}, "a b", " a b"),
    ({"type": "Metaspace", "replacement": META, "prepend_scheme": "never"}, " a b", " a b"),
    ({"type": "Sequence", "decoders": [SPACED, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}, "ab", "ab")])
def test_the_space_in_front(decoder, first, later):
    pieces = bpe(["▁a", "▁b"], decoder=decoder)
    assert pieces.decode([0, 1]) == first
    assert pieces.decode([0, 1], first=False) == later


def test_bytes_that_are_no_text_are_one_sign_each():
    pieces = bpe([*BYTES, "a", "<0xZZ>"])
    assert pieces.decode([0xC3, 0xB1, 256]) == "ña"
    assert pieces.decode([0xC3, 0xB1, 0xC3, 256, 0x0A]) == "\ufffd\ufffd\ufffda\n"  # the whole run, as in the reference
    assert pieces.decode([257, 10**9, -1, 256]) == "<0xZZ>a"


def test_added_tokens_pass_through_the_decoder(tmp_path):
    data = read("tok_sp_mistral_json")
    data["added_tokens"].append({"id": 600, "content": f"{META}{META}", "normalized": False})
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    assert tokenizer.encode(f"a{META}{META}a", special=False)[1:-1] == [600]
    assert tokenizer.decode(tokenizer.encode(f"a{META}{META}a")) == "a  a"


def test_a_normalized_token_has_its_space_as_in_the_reference(tmp_path):
    """Llama 2's published form writes "▁" in front of the token too: it is found behind a space only."""
    data = read("tok_sp_llama")
    data["added_tokens"].append({"id": 400, "content": "<tok>", "normalized": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    assert tokenizer.encode("a <tok>", special=False) == [262, 400]
    assert tokenizer.decode([262, 400]) == "a <tok>"
    assert 400 not in tokenizer.encode("a<tok>")


# Which file, and what is refused


def test_a_model_file_that_fell_behind_gives_way(tmp_path):
    """tokenizer.model first; but not where it is only a pointer to itself, or has other pieces than tokenizer.json."""
    for name in ("tokenizer.json", "tokenizer.model"):
        shutil.copy(GOLDEN / "tok_sp_llama" / name, tmp_path)
    assert 1 not in checkpoints.load_tokenizer(tmp_path).encode("a <s>", special=False)  # sentencepiece's way
    data = json.loads((tmp_path / "tokenizer.json").read_text())
    data["model"]["vocab"]["☃"] = 400
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    assert checkpoints.load_tokenizer(tmp_path).encode("☃", special=False)[-1] == 400
    shutil.copy(GOLDEN / "tok_sp_llama" / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert checkpoints.load_tokenizer(tmp_path).encode("the") == [1, 263]


def no_regex(monkeypatch):
    monkeypatch.setitem(sys.modules, "regex", None)


def test_plain_strings_need_no_package(monkeypatch):
    no_regex(monkeypatch)
    for name in ("tok_sp_mistral_json", "tok_sp_gemma_json"):
        assert checkpoints.load_tokenizer(GOLDEN / name).encode("the cat")
    refused(checkpoints.load_tokenizer, GOLDEN / "tok_sp_unigram_json", words=("package regex", "tokenizer.json"))


@pytest.mark.parametrize(("name", "change", "said"), [
    ("mistral", lambda d: d.update(decoder=None), "the decoder None is not supported"),
    ("mistral", lambda d: d["decoder"]["decoders"].append({"type": "CTC"}), "the decoder 'CTC' is not supported"),
    ("mistral", lambda d: d.update(normalizer={"type": "Nmt"}), "the normalizer 'Nmt' is not supported"),
    ("mistral", lambda d: d["pre_tokenizer"].update(prepend_scheme="sometimes"), "prepend_scheme 'sometimes'"),
    ("mistral", lambda d: d["pre_tokenizer"].update(replacement="__"), "replacement '__'"),
    ("mistral", lambda d: d["model"].update(type="WordPiece"), "its model is WordPiece; only BPE and Unigram"),
    ("mistral", lambda d: d["model"].pop("vocab"), "is damaged"),
    ("unigram", lambda d: d["model"].update(unk_id=420), "its unk_id is 420 with 420 pieces"),
    ("unigram", lambda d: d["model"]["vocab"].append(["x", None]), "gives 'x' the score None"),
    ("unigram", lambda d: d["model"]["vocab"].append(["x", float("nan")]), "gives 'x' the score nan"),
    ("unigram", lambda d: d["model"]["vocab"].append(["x", 10**400]), "gives 'x' the score 1000"),
    ("mistral", lambda d: d["decoder"]["decoders"][-1].update(start=2**64), "a Strip takes 18446744073709551616 away"),
    ("mistral", lambda d: d["decoder"]["decoders"][-1].update(stop="2"), "a Strip takes '2' away"),
    ("mistral", lambda d: d["decoder"]["decoders"][0].update(content=5), "a Replace writes 5; it must be a text"),
    ("mistral", lambda d: d["decoder"]["decoders"][0].update(content="a" * 1001), "of at most 1000 characters"),
    ("mistral", lambda d: d["decoder"]["decoders"][0].update(pattern={"Regex": "a{99}{99}"}), "counts whose product"),
    ("mistral", lambda d: d["decoder"]["decoders"][0].update(pattern={"Regex": "(a(?R)?)"}), "it calls itself"),
    ("unigram", lambda d: d["model"].update(vocab=[]), "its vocabulary is empty"),
    ("unigram", lambda d: d["normalizer"]["normalizers"][0].update(precompiled_charsmap="$"), "is no base64"),
    ("unigram", lambda d: d["normalizer"]["normalizers"][0].update(precompiled_charsmap="AAAAAAAA"), "is damaged"),
    ("unigram", lambda d: d["normalizer"]["normalizers"][0].update(precompiled_charsmap="AwAAAAAAAAA="), "is damaged"),
])
def test_what_such_a_file_may_not_say(tmp_path, name, change, said):
    data = read(f"tok_sp_{name}_json")
    change(data)
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    refused(checkpoints.load_tokenizer, tmp_path, words=(said, "tokenizer.json"))


def test_steps_end(tmp_path):
    """A pattern that never ends, and steps that make gigabytes of a line, are refused when they meet the text."""
    data = read("tok_sp_gemma_json")
    grow = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 30}
    for steps, said in (
            ({"type": "Replace", "pattern": {"Regex": "(a|aa)+$"}, "content": ""}, "'(a|aa)+$' was tried on 61 lett"),
            ({"type": "Sequence", "normalizers": [grow] * 5}, "its steps make 1,620,001 characters of 61")):
        (tmp_path / "tokenizer.json").write_text(json.dumps(data | {"normalizer": steps}))
        tokenizer = checkpoints.load_tokenizer(tmp_path)
        assert tokenizer.encode("b")
        refused(tokenizer.encode, "a" * 60 + "b", words=(f"{tmp_path}/tokenizer.json: ", said))
