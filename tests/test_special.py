"""Special tokens of a folder, whatever files name them, and prompts: which tokens are found in them, where they end."""

import base64
import json
import shutil
from types import SimpleNamespace

import pytest
import sentencepiece
from conftest import GOLDEN, SHIPPED, refused
from styles import entry, style_folder

import checkpoints
from checkpoints.chat import load_chat
from checkpoints.sentences import as_control, kinds_of
from star import prompts
from star.problem import Problem
from star.text import Prompt

SETTINGS, MAP, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
END = entry("<|im_end|>")


@pytest.fixture
def byte_level(tmp_path):
    """443 pieces, and the tokens <|bos|> (443) and <|eot|> (444)."""
    return folder_of(tmp_path, "tok_llama3/tokenizer.json")


@pytest.fixture
def sp(tmp_path):
    """400 pieces; <s> is 1 and </s> 2."""
    return folder_of(tmp_path, "tok_sp_llama/tokenizer.model")


def folder_of(folder, file):
    shutil.copy(GOLDEN / file, folder)
    return folder


def put(folder, name, **data):
    (folder / name).write_text(json.dumps(data), encoding="utf-8")


def change(folder, **parts):
    data = json.loads((folder / "tokenizer.json").read_text())
    put(folder, "tokenizer.json", **data | parts)


# Who names what


def test_an_end_that_only_the_settings_know(sp):
    put(sp, SETTINGS, eos_token="<|im_end|>", added_tokens_decoder={"400": END})
    put(sp, "config.json", eos_token_id=2)
    tokenizer = checkpoints.load_tokenizer(sp)
    assert tokenizer.eos_ids == (400, 2)
    assert tokenizer.notes == [
        f"{sp.name}: the tokenizer's end of sequence is 400 (<|im_end|>), that of config.json 2: all of them end a "
        "text, and training examples end in 400"]
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>b")) == "a<|im_end|>b"


@pytest.mark.parametrize(("name", "data"), [(SETTINGS, {"added_tokens_decoder": {"445": END}}),
                                            (ADDED, {"<|im_end|>": 445})])
def test_a_token_that_tokenizer_json_lacks(byte_level, name, data):
    tokenizer = checkpoints.load_tokenizer(byte_level)
    a, b = (tokenizer.encode(c, special=False) for c in "ab")
    put(byte_level, name, **data)
    tokenizer = checkpoints.load_tokenizer(byte_level)
    assert tokenizer.encode("a<|im_end|>b", special=False) == [*a, 445, *b]
    assert (tokenizer.vocab_size, tokenizer.decode([445])) == (446, "<|im_end|>")


def test_names_in_the_special_tokens_map(byte_level):
    put(byte_level, MAP, eos_token={"content": "<|eot|>", "lstrip": False}, bos_token="<|bos|>", image_token="Q")
    put(byte_level, SETTINGS, chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token + image_token }}")
    tokenizer = checkpoints.load_tokenizer(byte_level)
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.notes) == (443, (444,), [])
    assert load_chat(byte_level).render([("user", "?")]) == "<|bos|>?<|eot|>Q"


@pytest.mark.parametrize("given", [
    {"extra_special_tokens": {"image_token": "<img>"}}, {"image_token": entry("<img>")}, {"image_token": "<img>"}])
def test_tokens_of_a_name_of_their_own(byte_level, given):
    put(byte_level, SETTINGS, chat_template="{{ image_token }}{{ messages[0].content }}", **given)
    assert load_chat(byte_level).render([("user", "?")]) == "<img>?"


def test_who_wins(byte_level):
    """transformers 5: the map, unless the settings list their tokens."""
    put(byte_level, SETTINGS, eos_token="<|bos|>")
    put(byte_level, MAP, eos_token="<|eot|>", additional_special_tokens=["the"])
    tokenizer = checkpoints.load_tokenizer(byte_level)
    assert tokenizer.eos_ids == (444,)
    assert tokenizer.notes == [f"{byte_level.name}: {SETTINGS} and {MAP} name different tokens as eos_token; that of "
                               f"{MAP} is taken, '<|eot|>', not '<|bos|>'"]
    put(byte_level, SETTINGS, eos_token="<|bos|>", added_tokens_decoder={"443": entry("<|bos|>")})
    tokenizer = checkpoints.load_tokenizer(byte_level)
    assert tokenizer.eos_ids == (443,)
    assert f"that of {SETTINGS} is taken, '<|bos|>'" in tokenizer.notes[0]
    put(byte_level, SETTINGS, eos_token=None, added_tokens_decoder={})
    assert checkpoints.load_tokenizer(byte_level).eos_ids == ()  # it says that there is none


def test_ids_are_those_of_tokenizer_json(byte_level):
    put(byte_level, SETTINGS, added_tokens_decoder={
        "444": entry("<|new|>"), "500": entry("<|bos|>"), "7": entry("<|x|>"), "445": entry("<|y|>")})
    tokenizer = checkpoints.load_tokenizer(byte_level)
    assert tokenizer.encode("<|bos|><|eot|><|y|>", special=False) == [443, 444, 445]
    assert not {444, 7} & set(tokenizer.encode("<|new|><|x|>", special=False))
    for words in ("token 444 '<|new|>'", "'<|bos|>' the id 500; 443 is taken", "token 7 '<|x|>'"):
        assert sum(words in note for note in tokenizer.notes) == 1, words
    assert len(tokenizer.notes) == 3


def test_flags_are_those_of_the_settings(byte_level):
    tokenizer = checkpoints.load_tokenizer(byte_level)
    b = tokenizer.encode("b", special=False)
    assert tokenizer.encode("<|eot|>  b", special=False)[1:] != b
    put(byte_level, SETTINGS, added_tokens_decoder={"444": entry(["<|eot|>", "special", "rstrip"])})
    assert checkpoints.load_tokenizer(byte_level).encode("<|eot|>  b", special=False) == [444, *b]


def test_a_piece_that_is_named_is_a_token(byte_level):
    """As in the reference: "the" is found in "cathedral" once it is special."""
    vocab = json.loads((byte_level / "tokenizer.json").read_text())["model"]["vocab"]
    put(byte_level, SETTINGS, extra_special_tokens=["the", "nowhere"])
    tokenizer = checkpoints.load_tokenizer(byte_level)
    assert vocab["the"] in tokenizer.encode("cathedral")
    assert vocab["the"] not in tokenizer.encode(Prompt("cathedral"))


def test_tokens_of_the_older_file_are_found_in_normalized_text(byte_level):
    change(byte_level, normalizer={"type": "NFC"})
    put(byte_level, ADDED, **{"<\u00e9>": 445})
    tokenizer = checkpoints.load_tokenizer(byte_level)
    assert tokenizer.encode("<e\u0301>", special=False) == [445]
    put(byte_level, SETTINGS, extra_special_tokens=["<\u00e9>"])
    assert 445 not in checkpoints.load_tokenizer(byte_level).encode("<e\u0301>")


def test_an_empty_name_names_nothing(sp):
    """The first conversion of Llama had them."""
    put(sp, SETTINGS, bos_token="", eos_token={"content": ""})
    tokenizer = checkpoints.load_tokenizer(sp)
    assert (tokenizer.bos_id, tokenizer.eos_ids) == (1, (2,))


def test_a_template_writes_control_pieces_that_nobody_names(sp):
    (sp / "chat_template.jinja").write_text("<s>[INST] {{ messages[0].content }}")
    tokenizer = checkpoints.load_tokenizer(sp)
    ids = tokenizer.encode(load_chat(sp).render([("user", "the <s>")]))
    assert ids[0] == 1
    assert ids.count(1) == 1
    assert tokenizer.decode(ids) == "[INST] the <s>"


@pytest.mark.parametrize(("settings", "begins"), [({}, [2, 6]), ({"bos_token": "<bos>"}, [2, 6]),
                                                  ({"bos_token": None}, [6]), ({"eos_token": "<bos>"}, [2, 6])])
def test_the_names_are_the_models_own_where_no_file_has_them(tmp_path, settings, begins):
    """A bare tokenizer.model of Gemma's with its template."""
    folder_of(tmp_path, "chat/gemma.model").joinpath("gemma.model").rename(tmp_path / "tokenizer.model")
    folder_of(tmp_path, "chat/gemma2.jinja").joinpath("gemma2.jinja").rename(tmp_path / "chat_template.jinja")
    put(tmp_path, SETTINGS, **settings)
    tokenizer, chat = checkpoints.load_tokenizer(tmp_path), load_chat(tmp_path)
    ids = tokenizer.encode(chat.render([("user", "a<bos><start_of_turn><end_of_turn>")]))
    assert ids[: len(begins)] == begins
    assert [i for i in ids if i in (1, 2, 6, 7)] == [*begins, 7, 6]
    (tmp_path / "tokenizer.model").write_bytes(b"not of that kind")
    assert load_chat(tmp_path).tokens == {k: v for k, v in settings.items() if v is not None}


def test_no_dummy_space_behind_a_control_token_unless_the_folder_is_of_the_old_kind(sp):
    put(sp, SETTINGS, bos_token="<s>")
    first = checkpoints.load_tokenizer(sp).encode("the", special=False)
    for legacy in (None, False, True):
        put(sp, SETTINGS, bos_token="<s>", **({} if legacy is None else {"legacy": legacy}))
        ids = checkpoints.load_tokenizer(sp).encode("<s>the")
        assert (ids == [1, *first]) == (legacy is True), legacy


def test_a_line_break_behind_a_control_token_stays_one(tmp_path):
    """Where two of them are a piece of their own, the one that holds the place of the text before must not join it."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b"] * 9), model_prefix=str(tmp_path / "tokenizer"), model_type="bpe", vocab_size=270,
        byte_fallback=True, user_defined_symbols=["\n", "\n\n"], minloglevel=2, hard_vocab_limit=False,
        normalization_rule_name="identity")
    put(tmp_path, SETTINGS, bos_token="<s>")
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    one, two = (tokenizer._pieces.id_of(text) for text in ("\n", "\n\n"))
    assert tokenizer.encode("<s>\na")[:2] == [1, one]
    assert tokenizer.encode("<s>\n\na")[:2] == [1, two]


def test_control_pieces_are_parsed_once_the_folder_names_them(sp):
    letters = checkpoints.load_tokenizer(sp).encode("<s>", special=False)
    assert len(letters) == 4
    put(sp, SETTINGS, bos_token="<s>")
    tokenizer = checkpoints.load_tokenizer(sp)
    assert tokenizer.encode("<s>", special=False) == [1]
    assert tokenizer.encode(Prompt("<s>"), special=False) == letters
    put(sp, SETTINGS, bos_token=None)
    assert checkpoints.load_tokenizer(sp).bos_id is None


def test_markers_among_the_pieces_are_not_found_in_a_prompt(tmp_path):
    """Gemma's "<start_of_turn>", which the library would find in any text."""
    tokenizer = checkpoints.load_tokenizer(style_folder("gemma2", tmp_path))
    assert tokenizer.encode("<start_of_turn>")[1:] == [6]
    letters = tokenizer.encode(Prompt("<start_of_turn>"), special=False)
    assert 6 not in letters
    assert len(letters) > 3
    assert tokenizer.decode(letters) == tokenizer.decode([6]) == "<start_of_turn>"
    assert tokenizer.encode(Prompt("\n\n  "), special=False) == [8, 9]  # line breaks and spaces are nobody's marker


def test_a_piece_of_a_new_name(sp):
    """Fine-tunes call an unused piece "<|im_start|>"; the settings win over the model, as in the reference."""
    put(sp, SETTINGS, added_tokens_decoder={"399": entry("<|im_start|>")})
    tokenizer = checkpoints.load_tokenizer(sp)
    assert tokenizer.encode("a<|im_start|>", special=False)[1:] == [399]
    assert tokenizer.decode(tokenizer.encode("a<|im_start|>a")) == "a<|im_start|>a"


@pytest.mark.parametrize("listed", [True, False])
def test_control_tokens_of_tekken(tmp_path, listed):
    """Older files do not list them; their first are known."""
    config = {"pattern": r" ?\w+|\s+|[^\w\s]", "default_vocab_size": 276, "default_num_special_tokens": 20}
    vocab = [{"rank": b, "token_bytes": base64.b64encode(bytes([b])).decode()} for b in range(256)]
    names = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]"]
    more = {"special_tokens": [{"rank": i, "token_str": t} for i, t in enumerate(names)]} if listed else {}
    put(tmp_path, "tekken.json", config=config, vocab=vocab, **more)
    shutil.copy(GOLDEN / "chat" / "mistral_tekken.jinja", tmp_path / "chat_template.jinja")
    tokenizer = checkpoints.load_tokenizer(tmp_path)
    ids = tokenizer.encode(load_chat(tmp_path).render([("user", "a[INST]</s>")]))
    assert [i for i in ids if i < 20] == [1, 3, 4]
    assert tokenizer.decode(ids) == "[INST]a[INST]</s>[/INST]"
    assert tokenizer.encode("[INST]") == [1, 3]
    assert tokenizer.decode([19]) == ("<SPECIAL_19>" if listed else "[TOOL_CONTENT]")


def test_the_protocol_buffer_is_written_as_it_was_read():
    for name in ("tok_sp_llama/tokenizer", "chat/gemma", "chat/mistral"):
        proto = (GOLDEN / f"{name}.model").read_bytes()
        assert as_control(proto, set()) == proto
    proto = (GOLDEN / "chat" / "gemma.model").read_bytes()
    before, after = list(kinds_of(proto)), list(kinds_of(as_control(proto, {6})))
    assert before[6] == (4, "<start_of_turn>")
    assert after == [*before[:6], (3, "<start_of_turn>"), *before[7:]]


# Where a sequence ends


@pytest.mark.parametrize("kind", ["sp", "byte_level"])
def test_a_prompt_never_ends_in_an_end(kind, request):
    folder = request.getfixturevalue(kind)
    if kind == "sp":
        put(folder, SETTINGS, add_eos_token=True)
    else:
        special = {"<|bos|>": {"ids": [443]}, "<|eot|>": {"ids": [444]}}
        change(folder, post_processor={"type": "TemplateProcessing", "special_tokens": special, "single": [
            {"SpecialToken": {"id": "<|bos|>"}}, {"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "<|eot|>"}}]})
        put(folder, SETTINGS, eos_token="<|eot|>")
    tokenizer = checkpoints.load_tokenizer(folder)
    assert tokenizer.encode("a")[-1] == tokenizer.eos_ids[0]  # a text of its own has an end, as in the reference
    task = SimpleNamespace(stop=(), few_shot=lambda *_: "", question=lambda p: p.question, hinted=lambda p: p.question)
    problem = Problem("1", "a the", "b")
    prompt = prompts.encode(task, problem, tokenizer)
    assert prompt == [tokenizer.bos_id, *tokenizer.encode("a the", special=False)]
    rationale = prompts.continued(task, problem, tokenizer, " cat")
    assert [*prompt, *rationale] == [tokenizer.bos_id, *tokenizer.encode("a the cat", special=False)]
    example = prompts.example(task, problem, tokenizer, rationale)
    assert example.tokens.count(tokenizer.eos_ids[0]) == 1
    assert example.tokens[-1] == tokenizer.eos_ids[0]


def test_nobody_forges_a_token_in_a_plain_prompt(byte_level):
    put(byte_level, SETTINGS, eos_token="<|eot|>", added_tokens_decoder={"445": entry(["  "])})
    tokenizer = checkpoints.load_tokenizer(byte_level)
    text = "<|bos|>a<|eot|>  b"
    assert {443, 444, 445} <= set(tokenizer.encode(text, special=False))
    ids = tokenizer.encode(Prompt(text), special=False)
    assert not {443, 444} & set(ids)
    assert 445 in ids  # no control token: spaces
    assert tokenizer.decode(ids) == text
    assert tokenizer.encode(Prompt(text)) == [443, *ids]
    assert tokenizer.special_in(text) == ["<|bos|>", "<|eot|>"]


def test_markers_of_a_template_are_hidden_even_if_no_file_calls_them_special(byte_level):
    """OpenHermes' "<|im_start|>" is not special; nor are line breaks, which templates write and everybody may."""
    put(byte_level, ADDED, **{"<|im_start|>": 445, "\n": 446, "user": 447, "<|other|>": 448,
                             "\n\n": 449, "\u2581": 450})
    put(byte_level, SETTINGS, extra_special_tokens=["\n\n", "\u2581"])  # as transformers 5 saves Gemma's
    (byte_level / "chat_template.jinja").write_text("<|im_start|>user\n{{ messages[0].content }}\n")
    tokenizer = checkpoints.load_tokenizer(byte_level)
    ids = tokenizer.encode(load_chat(byte_level).render([("user", "<|im_start|>user\n<|other|>\n\n\u2581")]))
    assert [i for i in ids if i > 444] == [445, 447, 446, 447, 446, 448, 449, 450]


def test_what_is_put_behind_a_prompt_is_typed():
    assert (Prompt("ab") + "cd").typed == ((0, 4),)
    mixed = Prompt("<u>ab", [(3, 5)]) + "<u>"
    assert (mixed, mixed.typed, mixed.rendered) == ("<u>ab<u>", ((3, 5), (5, 8)), True)


def test_normalized_tokens_are_hidden_at_their_place(byte_level):
    """Places in a text move when it is normalized: here letters and their accents become one."""
    change(byte_level, normalizer={"type": "NFC"}, added_tokens=[
        entry("<|bos|>") | {"id": 443}, entry(["<é>", "special", "normalized"]) | {"id": 444}])
    tokenizer = checkpoints.load_tokenizer(byte_level)
    own, typed = "e\u0301<e\u0301>", "e\u0301e\u0301<e\u0301>"
    ids = tokenizer.encode(Prompt(f"{own}{typed}{own}", [(len(own), len(own + typed))]))
    assert ids.count(444) == 2
    assert tokenizer.encode(f"{own}{typed}{own}").count(444) == 3


# What is refused


@pytest.mark.parametrize("value", ["x", [2.5], True, -1, 999, [2, [3]], {"a": 1}, 2.0])
@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_ends_that_are_no_ids(sp, name, value):
    put(sp, "config.json", vocab_size=512, eos_token_id=2)
    put(sp, name, **{"eos_token_id": value} | ({"vocab_size": 512} if name == "config.json" else {}))
    said = refused(checkpoints.load_tokenizer, sp, words=(f"{sp}/{name}", f"eos_token_id is {value!r}"))
    assert ("0 to 511" in said) == (value == 999)


def test_ends_of_a_multimodal_model(sp):
    put(sp, "config.json", text_config={"vocab_size": 512, "eos_token_id": [5, 2]})
    assert checkpoints.load_tokenizer(sp).eos_ids == (2, 5)
    put(sp, "config.json", text_config={"vocab_size": 512, "eos_token_id": 512})
    refused(checkpoints.load_tokenizer, sp, words=("config.json", "eos_token_id is 512", "0 to 511"))


def test_an_end_that_is_no_token(byte_level):
    put(byte_level, SETTINGS, eos_token="<|gone|>")
    refused(checkpoints.load_tokenizer, byte_level, words=(
        str(byte_level), "'<|gone|>' as its eos_token", "no token of it", f"tokenizer.json, {SETTINGS})"))
    put(byte_level, SETTINGS, eos_token="<|eot|>")
    put(byte_level, "config.json", vocab_size=444)
    refused(checkpoints.load_tokenizer, byte_level, words=("'<|eot|>'", "its id is 444 and the model has 444 rows"))


@pytest.mark.parametrize(("parts", "words"), [
    ({"added_tokens": [{"id": -5, "content": "<x>"}]}, ("'<x>' has the id -5",)),
    ({"added_tokens": [{"id": 3.5, "content": "<x>"}]}, ("'<x>' has the id 3.5",)),
    ({"added_tokens": [{"id": True, "content": "<x>"}]}, ("'<x>' has the id True",)),
    ({"added_tokens": [{"id": 450, "content": 7}]}, ("id 450 is 7",)),
    ({"added_tokens": [{"id": 450, "content": "<x>"}, {"id": 450, "content": "<y>"}]}, ("id 450, '<x>' and '<y>'",)),
    ({"added_tokens": [{"content": "<x>"}]}, ("'<x>' has the id None",)),
    ({"added_tokens": [{"id": 450}]}, ("id 450 is None",)),
    ({"added_tokens": [7]}, ("damaged",)),
    ({"post_processor": {"type": "BertProcessing", "cls": ["a", -7], "sep": ["b", 5]}}, ("the id -7",)),
    ({"post_processor": {"type": "BertProcessing", "cls": ["a", None], "sep": ["b", 5]}}, ("the id None",)),
    ({"post_processor": {"type": "BertProcessing", "cls": ["a", 2**62], "sep": ["b", 5]}}, ("which is no token",)),
    ({"post_processor": {"type": "BertProcessing", "cls": ["a"], "sep": ["b", 5]}}, ("damaged",)),
    ({"post_processor": {"type": "TemplateProcessing", "single": []}}, ("leaves the text out",)),
])
def test_ids_that_are_none(byte_level, parts, words):
    change(byte_level, **parts)
    refused(checkpoints.load_tokenizer, byte_level, words=(f"{byte_level}/tokenizer.json", *words))


def test_ids_that_are_none_in_other_files(byte_level):
    put(byte_level, SETTINGS, added_tokens_decoder={"x": END})
    refused(checkpoints.load_tokenizer, byte_level, words=(f"{byte_level}/{SETTINGS}", "the id 'x'"))
    put(byte_level, SETTINGS)
    put(byte_level, ADDED, **{"<|im_end|>": "7"})
    refused(checkpoints.load_tokenizer, byte_level, words=(f"{byte_level}/{ADDED}", "the id '7'"))


@pytest.mark.parametrize(("data", "words"), [
    ({"added_tokens_decoder": ["<x>"]}, ("added_tokens_decoder is of type list", "an object")),
    ({"added_tokens_decoder": {"445": {"special": True}}}, ("id 445 is None",)),
    ({"added_tokens_decoder": {"445": 7}}, ("id 445 is 7",)),
    ({"added_tokens_decoder": {"445": END, "0445": entry("<y>")}}, ("id 445, '<|im_end|>' and '<y>'",)),
    ({"eos_token": 7}, ("eos_token is 7; it must be a text",)), ({"bos_token": ["<s>"]}, ("bos_token is ['<s>']",)),
    ({"eos_token": {"content": 7}}, ("eos_token is 7",)), ({"eos_token": True}, ("eos_token is True",))])
def test_settings_of_another_kind_than_they_should_be(byte_level, data, words):
    put(byte_level, SETTINGS, chat_template="{{ messages[0].content }}", **data)
    for load in (checkpoints.load_tokenizer, load_chat):
        refused(load, byte_level, words=(f"{byte_level}/{SETTINGS}: ", *words))


def test_a_post_processor_without_an_end(byte_level):
    deep = {"type": "ByteLevel"}
    for _ in range(400):
        deep = {"type": "Sequence", "processors": [deep]}
    change(byte_level, post_processor=deep)
    checkpoints.load_tokenizer(byte_level)


def test_a_model_file_that_ends_too_early(tmp_path):
    proto = (SHIPPED / "tokenizer.model").read_bytes()
    for n in (1, 7, len(proto) // 2, len(proto) - 3):
        (tmp_path / "tokenizer.model").write_bytes(proto[:n])
        refused(checkpoints.load_tokenizer, tmp_path, words=("tokenizer.model is no SentencePiece model",))


@pytest.mark.parametrize(("typed", "ids"), [("x y", [443]), ("y", [443]), ("xx", [443])])
def test_a_token_that_goes_on_in_what_is_typed(byte_level, typed, ids):
    """"<s>x" begins in the template's part and ends in a turn: what is the template's alone is a token."""
    tokens = ["<s>", "<s>x", "?<s>"]
    change(byte_level, added_tokens=[entry(text) | {"id": 443 + i} for i, text in enumerate(tokens)])
    tokenizer = checkpoints.load_tokenizer(byte_level)
    found = tokenizer.encode(Prompt(f"<s>{typed}", [(3, 3 + len(typed))]))
    assert [i for i in found if i > 442] == ids
    found = tokenizer.encode(Prompt("?<s>x", [(0, 1)]))
    assert [i for i in found if i > 442] == [444]


def test_what_is_doubted_holds_no_special_token(byte_level):
    change(byte_level, added_tokens=[entry("<s>") | {"id": 443}, entry(["<t>"]) | {"id": 444}])
    tokenizer = checkpoints.load_tokenizer(byte_level)
    ids = tokenizer.encode(Prompt("<s><t><s><t>", [], [(0, 8)]) + "<s>")
    assert [i for i in ids if i > 442] == [444, 443, 444]


def test_a_text_with_two_ids(byte_level):
    change(byte_level, added_tokens=[entry("<s>") | {"id": 443}, entry("<s>") | {"id": 444}])
    refused(checkpoints.load_tokenizer, byte_level, words=(
        "tokenizer.json: the added token '<s>' has two ids, 443 and 444",))
