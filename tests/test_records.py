"""Reading files of questions: what is written in them arrives whole, and what does not fit is named with its line."""


import pytest
from conftest import refused

from star.problem import Problem, Shot
from star.tasks import records


def save(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def problems(*questions, name="p", choices=()):
    return [Problem(f"{name}-{i}", q, "1", choices=choices) for i, q in enumerate(questions, 1)]


def shot(question):
    return Shot(Problem("s", question, ""), "")


def test_json_lines(tmp_path):
    file = save(tmp_path / "a.jsonl", '{"q": 1}\n\n  \n{"q": "zwei"}')
    assert records.read_records(file) == [(f"{file}, line 1", {"q": 1}), (f"{file}, line 4", {"q": "zwei"})]
    assert records.read_records(str(file)) == records.read_records(file)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.JSON"])
def test_byte_order_mark_line_ends_and_odd_separators(tmp_path, name):
    text = '\ufeff{"q": "one\u2028two\u0085three"}\r\n\r\n{"q": "é\\r\\n"}\r\n'
    found = records.read_records(save(tmp_path / name, text))
    assert [r["q"] for _, r in found] == ["one\u2028two\u0085three", "é\r\n"]
    assert [where[-6:] for where, _ in found] == ["line 1", "line 3"]


@pytest.mark.parametrize("name", ["a.json", "a.JSON"])
@pytest.mark.parametrize("whole", ['[{"q": 1}, {"q": 2}]', '{"version": 3, "examples": [{"q": 1},\n {"q": 2}]}'])
def test_json_that_holds_one_list(tmp_path, whole, name):
    file = save(tmp_path / name, whole)
    assert records.read_records(file) == [(f"{file}, entry 1", {"q": 1}), (f"{file}, entry 2", {"q": 2})]


def test_a_file_that_is_not_there(tmp_path):
    for path, words in ((tmp_path / "no.jsonl", "no.jsonl is not there"), (tmp_path, "a folder, not a file")):
        refused(records.read_records, path, words=(words, "name a .jsonl, .json, .csv, .tsv or .parquet"),
                error=FileNotFoundError)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.jsonl", "", ["a.jsonl is empty", "JSON objects, one a line"]),
        ("a.jsonl", "\ufeff\n \r\n", ["is empty"]),
        ("a.json", " \n", ["is empty"]),
        ("a.json", "[]", ["is empty"]),
        ("a.jsonl", '{"q": 1}\n\n{"q": 2,}\n', ["a.jsonl, line 3 is not JSON", "column", "'{\"q\": 2,}'"]),
        ("a.jsonl", "question,answer\n1+1,2\n", ["a.jsonl, line 1 is not JSON", "question,answer"]),
        ("a.jsonl", '[\n{"q": 1},\n{"q" 2}]', ["a.jsonl, line 3 is not JSON", "column 6"]),
        ("a.jsonl", '{"q": ' + "[" * 200_000, ["a.jsonl, line 1 is not JSON"]),
        ("a.jsonl", '{"q": ' + "1" * 5000 + "}", ["a.jsonl, line 1 is not JSON", "too long"]),
        ("a.jsonl", '{"q": 1}\n[2]', ["a.jsonl, line 2: a JSON object is needed, this is [2]"]),
        ("a.jsonl", '{"q": 1}\n"two\\nlines"', ["a.jsonl, line 2: a JSON object is needed"]),
        ("a.json", '[\n{"q": 1},\n{"q" 2}]', ["a.json, line 3 is not JSON", "column 6"]),
        ("a.json", '[{"q": 1}]\n[2]', ["a.json, line 2 is not JSON"]),
        ("a.json", '{"q": 1}\n{"q" 2}', ["a.json, line 2 is not JSON"]),
        ("a.json", "[" * 200_000, ["a.json, line 1 is not JSON"]),
        ("a.json", "[" + "1" * 5000 + "]", ["a.json, line 1 is not JSON"]),
        ("a.json", '[{"q": 1}, 2]', ["a.json, entry 2: a JSON object is needed, this is 2"]),
        ("a.json", '{"train": [], "test": []}', ["holds 2 lists", "an object with one list"]),
        ("a.json", "5", ["holds 0 lists", "a list of objects"]),
        ("a.jsonl", b'{"q": 1}\n{"q": "\xe9"}', ["a.jsonl, line 2 is not UTF-8", "save the file as UTF-8"]),
        ("a.json", '[{"q": 1}]'.encode("utf-16"), ["a.json, line 1 is not UTF-8"]),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, name, text, words):
    assert "Traceback" not in refused(records.read_records, save(tmp_path / name, text), words=tuple(words))


def test_fields():
    record = ("f, line 3", {"question": {"stem": "Where?", "n": 0}, "a.b": 5, "none": None,
                             "listed": [{"x": 7}, {"x": 8}], "alone": [{"x": 9}], "words": ["a", "b"]})
    assert records.field(record, "question.stem", "") == "Where?"
    assert records.field(record, "question.n", "") == 0
    assert records.field(record, "a.b", "") == 5  # a name with a dot in it
    assert records.field(record, "none", "") is None
    assert records.field(record, "listed.1.x", "") == 8
    assert records.field(record, "alone.x", "") == 9  # of a list of one
    assert records.field(record, '"24"', "") == "24"  # the same text for every record
    there = "'question.stem', 'question.n', 'a.b', 'none', 'listed.0.x', 'alone.0.x', 'words'"
    for name in ("answer", "question.steam", "none.x", "question.stem.x", "listed.2.x", "listed.x", "listed.-1",
                 "words.7", "listed.²"):
        words = ("f, line 3", repr(name), f"(there is {there})", ": do this")
        refused(records.field, record, name, "do this", words=words)
    refused(records.field, ("f, line 1", {}), "q", "do this", words=("no field 'q'", "there is {}"))
    refused(records.field, ("f, line 1", {"two\nlines": 1}), "q", "do this")


def test_text_of_fields():
    record = ("f, line 3", {"a": " Ann has 3 pens ", "b": "How many?", "n": 51.0, "i": 7, "e": "Look!"})
    assert records.text(record, "a", "") == "Ann has 3 pens"
    assert records.text(record, "a+b", "") == "Ann has 3 pens. How many?"
    assert records.text(record, "e + b", "") == "Look! How many?"
    assert records.text(record, "a+i", "") == "Ann has 3 pens. 7"
    assert (records.text(record, "n", ""), records.text(record, "i", "")) == ("51.0", "7")
    refused(records.text, record, "a+c", "do this", words=("f, line 3", "no field 'c'", "do this"))
    record[1].update({"none": None, "blank": " ", "nums": [44, 1.5, "x"], "one": ["so"], "deep": [[1], [2]]})
    record[1]["a+b"] = "it"
    assert records.text(record, "none+a+blank", "") == "Ann has 3 pens"  # of several, some may be empty
    assert records.text(record, "a+b", "") == "it"  # a field of that name goes first
    assert records.text(record, "nums", "", "all") == "44, 1.5, x"
    assert records.text(("f", {"facts": ["A is b.", "Is it?"]}), "facts", "", "all") == "A is b. Is it?"
    assert records.text(record, "one", "", "one") == records.text(record, "one", "", "all") == "so"
    assert records.fill(record, "{{{i}}} of {nums}: {one}?", "") == "{7} of 44, 1.5, x: so?"
    for names, lists, words in (("none+blank", "", ["'none+blank' are all empty"]),
                                ("nums", "one", ["is a list of 3, [44, 1.5, \"x\"]", "nums.0 is its first"]),
                                ("deep", "all", ["is a list of lists, [[1], [2]]", "deep.0.0"]),
                                ("a+none+one", "", ["field 'one' is a list of 1"])):
        refused(records.text, record, names, "", lists, words=("f, line 3", *words))
    refused(records.fill, record, "{i} {j}", "do this", words=("no field 'j'", "do this"))


@pytest.mark.parametrize("value", ["", " \n", None, True, [], ["a"], [[5]], {}, float("nan"), float("inf"), "\ud800"])
def test_what_is_no_text(value):
    refused(records.text, ("f, line 3", {"a": value}), "a", "", words=("f, line 3: field 'a' is", "text or a number"))


def test_official_files_lie_in_the_folder_or_in_their_subfolder(tmp_path):
    def find(folder):
        return records.find(folder, ["b.jsonl", "a.jsonl"], "inside", "the files")

    refused(find, tmp_path / "no", words=("no is not there", "the files"), error=FileNotFoundError)
    refused(find, str(tmp_path), words=("holds no b.jsonl or a.jsonl", "the files"), error=FileNotFoundError)
    (tmp_path / "inside").mkdir()
    within = save(tmp_path / "inside" / "a.jsonl", "{}")
    assert find(str(tmp_path)) == find(tmp_path / "inside") == within
    refused(find, within, words=("a file, not a folder",), error=FileNotFoundError)
    direct = save(tmp_path / "a.jsonl", "{}")
    assert find(tmp_path) == direct  # the folder itself comes first
    assert find(tmp_path / "inside") == within


def test_train_and_heldout_are_made_disjoint():
    train = problems("What is 1 + 1?", "Who  IS\nthere?", "what is 1+1 ?", "What is 1 - 1?", "An example?",
                     "Who is there!")
    kept, notes = records.disjoint(train, problems("who is there?", name="h"), [shot("an example?")])
    assert [p.id for p in kept] == ["p-1", "p-4", "p-6"]
    assert notes == ["1 left out of training (held out): p-2", "1 left out of training (few-shot example): p-5",
                     "1 left out of training (repeats another): p-3"]
    assert records.disjoint(train[:1], [], []) == (train[:1], [])


def test_the_same_question_with_other_choices_is_another_problem():
    train = problems("Which?", "which ?", choices=("a b", "c")) + problems("Which?", name="q", choices=("a", "b c"))
    kept, notes = records.disjoint(train, problems("Which?", name="h", choices=("A", "b", "c")), [])
    assert [p.id for p in kept] == ["p-1", "q-1"]
    assert notes == ["1 left out of training (repeats another): p-2"]


def test_a_held_out_few_shot_example_is_refused():
    shots = [shot("fine?"), shot("Who is there ?")]
    refused(records.disjoint, problems("a?"), problems("b?", "who is there?", name="h"), shots,
            words=("few-shot example 2", "held-out problem h-2", "take another"))


def test_nothing_left_to_train_on():
    refused(records.disjoint, problems("a?", "b?"), problems("a?", "b?", name="h"), [],
            words=("nothing is left to train on", "2 left out of training (held out): p-1, p-2"))


def test_the_same_part_is_held_out_in_every_call():
    everything = problems(*(f"{i}?" for i in range(40)))
    train, held = records.hold_out(everything, 0.25)
    assert len(held) == 13  # about a quarter
    assert sorted([*train, *held], key=everything.index) == everything
    assert train == [p for p in everything if p in train]  # in the file's order
    assert [p.id for p in held] != [p.id for p in everything[:10]]
    assert records.hold_out(everything, 0.25) == (train, held)
    assert [p.id for p in held[:4]] == ["p-3", "p-5", "p-10", "p-11"]  # in every version of the program
    assert len(records.hold_out(everything, 0.001)[1]) == 1
    assert records.hold_out(everything[:1], 0.1) == records.hold_out(everything[:1], 3) == ([], everything[:1])


def sides(everything, part=0.3):
    train, held = records.hold_out(everything, part)
    return {p.question for p in train}, {p.question for p in held}


def test_no_problem_changes_sides_when_lines_come_go_or_move():
    """Only its own words count: what was trained on before is never held out later."""
    everything = problems(*(f"What is {i} + {i * i}?" for i in range(300)))
    train, held = sides(everything)
    assert 60 <= len(held) <= 120
    assert sides(everything[::-1]) == (train, held)
    assert sides(problems(*(p.question for p in everything), name="other")) == (train, held)
    more_train, more_held = sides(problems("A new one?", *(f"New {i}?" for i in range(50))) + everything)
    assert train < more_train
    assert held < more_held
    fewer_train, fewer_held = sides(everything[:250])
    assert fewer_train < train
    assert fewer_held < held
    assert sides(everything, 0.2)[1] < held < sides(everything, 0.4)[1]  # a larger share only adds to it
    other = [Problem(p.id, p.question.upper().replace("+", " + ") + " ", "9", "group") for p in everything]
    assert {q.casefold().replace("  ", " ").strip() for q in sides(other)[1]} == {q.casefold() for q in held}


def test_the_order_of_choices_and_numbers_makes_no_other_problem():
    p = Problem("p", "Café?", "a", choices=("x", "y"), numbers=("1", "2"))
    assert records.key(p) == records.key(Problem("q", "Cafe\u0301 ?", "b", choices=("y", "X"), numbers=("2", "1")))
    for other in (Problem("p", "Café?", "a", choices=("x", "z"), numbers=("1", "2")),
                  Problem("p", "Café?", "a", choices=("x", "y"), numbers=("1", "3"))):
        assert records.key(other) != records.key(p)


@pytest.mark.parametrize("part", [1e-6, 0.1, 0.9])
def test_tiny_files_have_both_sides(part):
    for n in range(2, 12):
        train, held = records.hold_out(problems(*(f"{i}?" for i in range(n))), part)
        assert train
        assert held
        assert len(train) + len(held) == n
    assert records.hold_out([], part) == ([], [])


def test_one_question_with_different_answers():
    def asked(question, answer, name):
        return Problem(name, question, answer)

    train = [asked("One?", "7", "a"), asked("one ?", "7.0", "b"), asked("Two?", "7", "c"), asked("two?", "8", "d"),
             asked("Three?", "1", "e"), asked("Four?", "1", "f")]
    held = [asked("Three?", "2", "g"), asked("Five?", "1", "h"), asked("FIVE?", "2", "i")]
    kept, notes = records.disjoint(train, held, [], lambda p: str(float(p.answer)))
    assert [p.id for p in kept] == ["a", "f"]
    assert notes == ["1 left out of training (held out): e", "2 left out of training (different answers): c, d",
                     "1 left out of training (repeats another): b",
                     "3 asked more than once, with different answers: g and e, h and i, c and d"]
    _, notes = records.disjoint([*train[:2], train[5]], [], [])  # as they are spelled
    assert not [n for n in notes if "repeats" in n]


def test_named():
    assert records.named(["a"]) == "a"
    assert records.named(["a", "b", "c"]) == "a, b, c"
    assert records.named(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
