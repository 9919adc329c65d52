"""The verifier against a table of what models write: nothing wrong passes, and next to nothing right is lost.

verifier_cases.jsonl was written by judges who did not see how the verifier treats a case; star/tasks/verifier was then
mended until the table held. One line a case: how it is graded, the right answer, whether the text arrives at it, and
why.
"""

import json
import random
import time
from pathlib import Path

import pytest

from star.tasks import verifier
from star.tasks.verifier.letter import one_letter
from star.tasks.verifier.own import phrases, plain
from star.tasks.verifier.phrase import one_phrase
from star.tasks.verifier.statement import MOST_MARKS

CASES = [json.loads(line) for line in (Path(__file__).parent / "verifier_cases.jsonl").read_text("utf-8").splitlines()]
READ = {"number": verifier.number, "choice": lambda text: verifier.letter(text, "abcde"), "text": verifier.phrase}
SPELT = {"number": verifier.one_number, "choice": str.lower, "text": verifier.normal}
PARTS = {  # what is called from elsewhere with any text, besides READ
    "own": verifier.own,
    "plain": plain,
    "normal": verifier.normal,
    "one_number": verifier.one_number,
    "one_letter": lambda text: one_letter(text, "abcde"),
    "one_phrase": one_phrase,
}


def accepts(case):
    found = READ[case["grade"]](case["text"])
    return found is not None and found == SPELT[case["grade"]](case["gold"])


def test_the_table_is_large_and_half_of_it_must_be_rejected():
    assert len(CASES) >= 900
    assert sum(not c["accept"] for c in CASES) >= len(CASES) / 2
    assert all(SPELT[c["grade"]](c["gold"]) for c in CASES)


def test_nothing_wrong_is_accepted():
    wrong = [c for c in CASES if not c["accept"] and accepts(c)]
    assert not wrong, wrong


def test_at_most_two_in_a_hundred_right_ones_are_lost(report):
    right = [c for c in CASES if c["accept"]]
    lost = [c for c in right if not accepts(c)]
    assert len(lost) <= 0.02 * len(right), lost
    report(f"verifier: {len(CASES)} cases, no false accept, {len(lost)} of {len(right)} right ones lost")


@pytest.mark.parametrize(("text", "found"), [
    ("5 or 6", "or"), ("for a pen", None), ("at  most 5", None), ("AT  LEAST 5", "AT  LEAST"), ("guessing", "guessing"),
    ("it isn't", "isn't"), ("it isn’t", "isn’t"), ("is not", None), ("or", "or"), ("door", None), ("or\nso", "or"),
])
def test_phrases_are_whole_words_in_either_case(text, found):
    match = phrases("or, at least, guess*, isn't").search(text)
    assert (match and match[0]) == found


def test_phrases_with_what_stands_beside_them():
    about = phrases("about, left over", before="(?<!so )", after=r"\s*[0-9]")
    assert about.search("about 5")[0] == "about 5"
    assert about.search("Left over 5")
    assert not about.search("about whales")
    assert not about.search("so about 5")


@pytest.mark.parametrize(("text", "kept"), [
    (" It is 5.\n", "It is 5."), ("It is 5.\n\nQ: And 6?\nA: 7", "It is 5."), ("It is 5. Q: And 6?", "It is 5."),
    ("It is 5.\n\n### Question 2\nAnd 6?", "It is 5."), ("It is 5.\n**Next question:** and 6?", "It is 5."),
    ("It is 5.\nHuman: thanks", "It is 5."), ("It is 5.<|im_end|>\n6", "It is 5."), ("It is 5.</s>6", "It is 5."),
    ("It is 5. I hope this helps! Let me know if you have any questions.", "It is 5."),
    ("Hope it is 5.", "Hope it is 5."), ("2 + 3 = <<2+3=5>>5", "2 + 3 = 5"), ("5\u200b", "5"),
    ("The question: what is 5?", "The question: what is 5?"), ("A problem\nof 5", "A problem\nof 5"), ("", ""),
])
def test_what_is_the_texts_own(text, kept):
    assert verifier.own(text) == kept


@pytest.mark.parametrize(("text", "value"), [
    ("The answer is -1,234.50.", "-1234.5"), ("\\boxed{\\frac{1}{3}}", "1/3"), ("#### 5e2", "500"), ("0.10", "0.1"),
    ("The answer is 1 1/2 cups.", "1.5"), ("9" * 5000, None), ("1e999999999", None), ("3/0", None), ("", None),
    ("The answer is 2 million.", "2000000"), ("-0", "0"),
    ("The answer is 72.\n\nQ: 1 + 1?\nA: The answer is 2.", "72"),
])
def test_numbers_have_one_spelling(text, value):
    assert verifier.number(text) == value


@pytest.mark.parametrize(("statement", "value"), [
    ("48 + 24 = $72 (72 clips)", "72"), ("72, because 48 + 24 = 72", "72"), ("not 72 but 70", "70"),
    ("72, not 70", "72"), ("72 over the 2 months", "72"), ("72 when n = 3", "72"), ("'72'", "72"), ("5'10\"", None),
    ("1½", "1.5"), ("\\$1\\frac{1}{2}", "1.5"), ("72\\,\\text{cm}^2", "72"), ("\\sqrt{72}", None), ("\\log 72", None),
    ("$1.2M", None), ("3*4", None), ("3 * 4", None), ("x_1 = 5", "5"), ("2x = 10", None), ("8 x 9 = 72", "72"),
    ("x = 1, y = 2", None), ("12 +", None), ("12 and", None), ("1,23", None), ("m2 is 72", "72"), ("72; 72.0", "72"),
    ("٣", None), ("x" * 10_000 + " 5", None),
])
def test_one_number(statement, value):
    assert verifier.one_number(statement) == value


@pytest.mark.parametrize("gold", ["72", "-5", "0.75", "1/3", "1234567"])
@pytest.mark.parametrize("form", ["{}", "The answer is {}.", "#### {}", "\\boxed{{{}}}", "So she has {} left.",
                                  "**Answer:** {}", "Final answer: {} dollars", "x = {}"])
def test_forms_of_a_right_answer(gold, form):
    assert verifier.number(form.format(gold)) == verifier.one_number(gold)


@pytest.mark.parametrize("form", [
    "The answer is not {}.", "It is {} or 3.", "The answer is between {} and 9.", "Step {}.",
    "I do not know; {} is a guess.", "Is the answer {}?", "The answer is {}. No, that is wrong.",
    "If the answer is {}, then we are done.", "{}nd", "{}:30", "half of {}",
])
def test_forms_that_state_nothing(form):
    assert verifier.number(form.format(72)) is None


@pytest.mark.parametrize(("text", "value"), [
    ("The answer is 5. Wait, the answer is 6.", "6"), ("The answer is 5.\nThe answer is 6.", None),
    ("The answer is 5.\nThe final answer is 6.", "6"), ("The final answer is 5.\nThe answer is 6.", None),
    ("The answer is \\boxed{6}.", "6"), ("\\boxed{5} and \\boxed{6}", None), ("Tom's answer is 5. It is 6.", "6"),
    ("Tom's answer is 5.", None), ("The answer is 5. However, there are more.", None), ("\\boxed{5", None),
    ("Answer: 2 + 3 = 5 pens. So 5 + 1 = 6 pens.", "6"), ("The answer is:\n1. 5 pens\n2. 6 pens", None),
])
def test_which_of_several_statements_counts(text, value):
    assert verifier.number(text) == value


def test_only_the_last_statements_are_looked_at():
    """With more than MOST_MARKS of them the first can contradict no more."""
    many = "The answer is 5. " + "The answer is 6. " * MOST_MARKS
    assert verifier.number(many) == "6"
    assert verifier.number(many.removesuffix("The answer is 6. ")) is None


@pytest.mark.parametrize(("text", "value"), [
    ("(b)", "b"), ("B) park", "b"), ("The answer is a.", "a"), ("The answer is a dog.", None), ("(f)", None),
    ("The answer is (a) or (b).", None), ("So the correct choice is **c**.", "c"), ("Option D is correct.", "d"),
    ("(a) bank\n(b) park\n(c) mall", None), ("So only (b) is dry.", "b"), ("Then (b) is too dry.", None),
    ("The answer is (b) not working.", "b"), ("The answer is (b), not (c).", "b"), ("E equals mc^2", None),
])
def test_letters(text, value):
    assert verifier.letter(text, "abcde") == value


@pytest.mark.parametrize(("text", "value"), [
    ("So the answer is: Yes.", "yes"), ("The answer is yes, the coin is heads up.", "yes"), ("New  York", "new york"),
    ("The answer is yes, but no.", None), ('The answer is "yajo".', "yajo"), ("The answer is the Nile.", "nile"),
    ("It flips twice. It is up again.", None), ("The answer is Paris, not London.", "paris"), ("Yes. No.", "yes. no"),
])
def test_phrase(text, value):
    assert verifier.phrase(text) == value


@pytest.mark.parametrize(("text", "shown"), [
    ("**12**", "12"), ("3*4", "3*4"), ("3 * 4", "3 * 4"), ("2**3", "2**3"), ("x_1", "x_1"), ("`12`", "12"),
    ("\\text{12 \\textbf{cm}}", "12 cm"), ("$\\dfrac{3}{4}$", "3/4"), ("12\\%", "12%"), ("€5", "5"),
    ("1{,}234", "1,234"), ("−5", "-5"), ("5 – 6", "5 - 6"), ("a – b", "a – b"), ("72^\\circ", "72 degrees"),
    ("a  b\n c", "a b c"),
])
def test_plain(text, shown):
    assert plain(text) == shown


def test_a_text_is_read_once(monkeypatch):
    """A verdict asks twice, to extract and to compare."""
    reads = []
    monkeypatch.setattr("star.tasks.verifier.statement.own", lambda text: reads.append(text) or text)
    for text in ("One. The answer is 15.", "Two. The answer is 15."):
        assert verifier.number(text) == verifier.number(text) == "15"
    assert reads == ["One. The answer is 15.", "Two. The answer is 15."]


def test_any_text_in_no_exception_out():
    rng = random.Random(0)
    pieces = ["The answer is ", "answer", "\\boxed{", "}", "####", "\n", " ", "7", "-", "/", ".", ",", "(b)", "Q:", "$",
              "\\frac", "{", "\u00bd", "\u0663", "\x00", "\ud800", "e9", "99999999999999999999", "not ", "or ",
              "is the answer", "*", "<<", ">>", "%", "İ", "’", "(", "x = ", "because ", "choice", "is correct",
              "<answer>"]
    for _ in range(4000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        for read in READ.values():
            assert isinstance(read(text), str | None)
        for part in PARTS.values():
            assert isinstance(part(text), str | None)


REPEATED = [
    "The answer is ", "\\boxed{", "1,", "(", "is the answer ", "answer to ", "I hope ", "*", "not a ", "x = ", "1 is ",
    "\\frac{", "Answer:\n", "#### ", "so ", "that is ", "wait ", "\n(a) ", "5 x ", "\u00bd", "at ", "- ", "1.\n",
]


@pytest.mark.parametrize(("before", "piece", "behind"), [
    *(("", piece, "") for piece in REPEATED), ("", " ", "7"), ("", "\n", "Q:"), ("7", "\n", "7"), ("7. ", " ", "No."),
    ("The answer is 7.", "\n", "So."), ("The answer is", " ", "7"), ("is", " ", "the answer"),
    ("7", "* ", "is correct"),
])
def test_long_texts_take_no_long_time(before, piece, behind):
    """No pattern may go quadratic on what a model repeats until its cap: 50,000 characters would take minutes then."""
    text = before + piece * (50_000 // len(piece)) + behind
    for name, read in (READ | PARTS).items():
        began = time.process_time()
        read(text)
        assert time.process_time() - began < 0.5, name
