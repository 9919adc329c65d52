"""The verifier against a table of what models write: nothing wrong passes, and next to nothing right is lost.

verifier_cases.jsonl was written by judges who did not see how the verifier treats a case; star/tasks/verifier was then
mended until the table held. One line a case: how it is graded, the right answer, whether the text arrives at it, and
why. Behind the table stand statements composed from a seed, with a known value or with something that spoils it.
"""

import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from star.tasks import verifier
from star.tasks.verifier.letter import one_letter
from star.tasks.verifier.own import phrases, plain
from star.tasks.verifier.phrase import one_phrase
from star.tasks.verifier.quantity import spelt
from star.tasks.verifier.sets import members, one_set
from star.tasks.verifier.statement import MOST_MARKS
from star.tasks.verifier.words import in_digits

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
    "in_digits": in_digits,
}


def accepts(case):
    found = READ[case["grade"]](case["text"])
    return found is not None and found == SPELT[case["grade"]](case["gold"])


def test_the_table_is_large_and_half_of_it_must_be_rejected():
    assert len(CASES) >= 1350
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
    ("It is 5.\n\nExample 2: And 6?", "It is 5."), ("It is 5. [INST] And 6?", "It is 5."),
    ("[INST] It is 5.", "[INST] It is 5."),
    ("It is 5.\n\nExample: 6", "It is 5.\n\nExample: 6"), ("It is 5.\n[Question] And 6?", "It is 5."),
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
    ("x = 1, y = 2", None), ("12 +", None), ("12 and", None), ("1,23", None), ("m2 is 72", "72"), ("72; 72.0", None),
    ("-(-5)", "5"), ("total - (-5)", None), ("2 5/4", None), ("2 3/4", "2.75"), ("-(1/2)", "-0.5"), ("(1,234)", None),
    ("1 000 000", "1000000"), ("3 500 ml", None), ("$5 m", None), ("5 m", "5"), ("5M", None), ("5 cups #", None),
    ("٣", None), ("x" * 10_000 + " 5", None),
])
def test_one_number(statement, value):
    assert verifier.one_number(statement) == value


@pytest.mark.parametrize(("text", "digits"), [
    ("twelve", "12"), ("twenty-one clips", "21 clips"), ("one hundred and five", "105"), ("a thousand and one", "1001"),
    ("twelve hundred", "1200"), ("two million three hundred thousand", "2300000"), ("two and a half", "2 and 1/2"),
    ("each one", "each one"), ("one of them", "one of them"), ("a five-year-old", "a five-year-old"), ("-five", "-5"),
    ("someone", "someone"), ("nineteen eighty", "?"), ("five and six", "?"), ("two thirds", "? thirds"),
    ("twenty ninth", "? ninth"), ("one hundred thousand million", "?"), ("4,two", "4,?"), ("x-five", "x-?"), ("", ""),
])
def test_numbers_in_words(text, digits):
    assert in_digits(text) == digits


@pytest.mark.parametrize(("statement", "value"), [
    ("x = -5", "-5"), ("|x| = 5", None), ("x is 180/4 = 45", "45"), ("so x = 5", "5"), ("x + y = 5", None),
    ("2 times x = 10", None), ("the sum of x and y = 5", None), ("f(2) = 5", "5"), ("the area A = 40", "40"),
    ("3x = 36 and x = 12", "12"), ("x = 5; y = 6", None), ("3A = 36", None), ("n! = 120", None), ("5! = 120", "120"),
])
def test_unknowns_in_front_of_an_equals_sign(statement, value):
    assert verifier.one_number(statement) == value


@pytest.mark.parametrize(("statement", "value"), [
    ("gave Denny 8", "8"), ("July 8", None), ("Room 8", None), ("page 8", None), ("So 8", "8"), ("8 July", None),
    ("8 (3 groups of 4)", "8"), ("8 (5)", None), ("8 (8 clips)", "8"), ("(8 clips)", "8"), ("and (8 clips)", "8"),
    ("8 clips in 2 days", "8"), ("1 in 4 people", None), ("8 for the 2 boys", "8"), ("8 and 8", None),
    ("7, so 8", None), ("log 8", None), ("some 8", None), ("i 8", None), ("8 x", None), ("8 of X", None), ("8 h", "8"),
])
def test_what_stands_beside_a_quantity(statement, value):
    assert verifier.one_number(statement) == value


@pytest.mark.parametrize(("text", "value"), [
    ("It is \\boxed{5} clips. The rest is 6.", "5"), ("2 + 3 = \\boxed{5}", "5"), ("2 + \\boxed{3}", None),
    ("So x = 4, \\boxed{5}", None), ("So x = 5, \\boxed{5}", "5"), ("The answer is 4 or \\boxed{5}.", None),
    ("\\boxed{4}. The final answer is \\boxed{5}.", "5"), ("\\boxed{4}. So \\boxed{5}.", None),
    ("\\boxed{4}\n#### 5", "5"), ("The final answer is 5. \\boxed{4}", None), ("Ann's answer is \\boxed{5}.", None),
    ("The answer is 4 apples, \\boxed{5}.", None),
])
def test_a_box_is_read_within_its_sentence(text, value):
    assert verifier.number(text) == value


@pytest.mark.parametrize(("text", "value"), [
    ("The answer is Mr. Gray.", "mr. gray"), ("The answer is Mr.\nGray", "mr"),
    ("The answer is 9 a.m. So go.", "9 a.m"),
    ("The answer is 9 a.m. on Friday.", "9 a.m. on friday"), ("The answer is J. K. Rowling.", "j. k. rowling"),
    ("The answer is Paris. It is big.", "paris"), ("The answer is Paris.It is big.", "paris"),
    ("The answer is asp.net.", "asp.net"), ("The answer is the U.S. It is big.", "u.s"),
    ("The answer is Dr. No.", "dr. no"), ("\\boxed{\\text{Rome}} or Paris.", None),
    ("The answer is No. It is.", "no"), ("The answer is yes! It is.", "yes"),
])
def test_where_a_sentence_ends(text, value):
    assert verifier.phrase(text) == value


def test_letters_of_choices_are_no_initials():
    assert verifier.letter("The answer is B. Water in C is cold.", "abcde") == "b"
    assert verifier.phrase("The answer is B. Gray.") == "b. gray"


def test_accents_are_composed_before_they_are_compared():
    assert verifier.phrase("The answer is cafe\u0301.") == verifier.normal("caf\u00e9") == "caf\u00e9"


@pytest.mark.parametrize("gold", ["72", "-5", "0.75", "1/3", "1234567"])
@pytest.mark.parametrize("form", ["{}", "The answer is {}.", "#### {}", "\\boxed{{{}}}", "So she has {} left.",
                                  "**Answer:** {}", "Final answer: {} dollars", "x = {}"])
def test_forms_of_a_right_answer(gold, form):
    assert verifier.number(form.format(gold)) == verifier.one_number(gold)


@pytest.mark.parametrize("form", [
    "The answer is not {}.", "It is {} or 3.", "The answer is between {} and 9.", "Step {}.",
    "I do not know; {} is a guess.", "Is the answer {}?", "The answer is {}. No, that is wrong.",
    "The answer is {}, which is wrong.", "- {}", "So in {} she left.", "So it is number {}.",
    "Each answer is {} points.",
    "If the answer is {}, then we are done.", "{}nd", "{}:30", "half of {}",
])
def test_forms_that_state_nothing(form):
    assert verifier.number(form.format(72)) is None


@pytest.mark.parametrize(("text", "value"), [
    ("The answer is 5. Wait, the answer is 6.", "6"), ("The answer is 5.\nThe answer is 6.", None),
    ("The answer is 5.\nThe final answer is 6.", "6"), ("The final answer is 5.\nThe answer is 6.", None),
    ("The answer is \\boxed{6}.", "6"), ("\\boxed{5} and \\boxed{6}", None), ("Tom's answer is 5. It is 6.", "6"),
    ("The correct answer to each question is 5 points. The answer is 20.", "20"), ("Tom's answer is 5.", None),
    ("Correct answers: 4\nThe answer is 20.", "20"), ("<think>The answer is 4. </think>\nThe answer is 5.", "5"),
    ("The answer is 5. However, there are more.", None), ("\\boxed{5", None),
    ("Answer: 2 + 3 = 5 pens. So 5 + 1 = 6 pens.", "6"), ("The answer is:\n1. 5 pens\n2. 6 pens", None),
])
def test_which_of_several_statements_counts(text, value):
    assert verifier.number(text) == value


@pytest.mark.parametrize(("behind", "value"), [
    ("So she has 6.", None), ("So she has 5.", "5"), ("That makes 6 pens.", None), ("The rest is 6.", "5"),
    ("Check: 6 - 1 = 5.", "5"), ("Check: 5 + 1 = 6.", "5"), ("6", None), ("6 are left for Tom.", "5"), ("", "5"),
    ("It should be 6.", None), ("It should be noted.", "5"), ("Tom should be glad.", "5"), ("Rather, six.", None),
    ("He would rather go.", "5"), ("Ignore that.", None), ("She ignores that noise.", "5"), ("He forgets that.", "5"),
])
def test_what_stands_behind_a_statement_may_take_it_back(behind, value):
    assert verifier.number(f"The answer is 5. {behind}") == value


@pytest.mark.parametrize(("statement", "value"), [
    ("5 sixteenths", None), ("5 months", "5"), ("5 thirty-seconds", None), ("5 seconds", "5"), ("5 twenties", None),
    ("5 teens", "5"), ("5 zillions", None), ("5 pavilions", "5"), ("5 to the sixth", None), ("5 on the sixth day", "5"),
    ("a total of 5", "5"), ("a divisor of 5", None), ("exactly 5", "5"), ("allegedly 5", None),
    ("They fly 5", "5"),
    ("the 20s", None), ("20s", "20"), ("1990s", None), ("5 at max", None), ("5 halved", None),
    ("9 - 4, which is 5", "5"),
    ("5, which is 2 + 3", "5"), ("a million and a half", None), ("two and a half", "2.5"), ("<b>5</b>", "5"),
    ("<b>5", None),
])
def test_what_is_made_of_a_number(statement, value):
    assert verifier.one_number(statement) == value


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
    ("It flips twice. It is up again.", None), ("The answer is Paris, not London.", "paris"), ("Yes. No.", None),
    ("Yes. It was flipped twice.", "yes"), ("The answer is No. 5.", "no. 5"),
])
def test_phrase(text, value):
    assert verifier.phrase(text) == value


@pytest.mark.parametrize(("text", "shown"), [
    ("**12**", "12"), ("3*4", "3*4"), ("3 * 4", "3 * 4"), ("2**3", "2**3"), ("x_1", "x_1"), ("`12`", "12"),
    ("\\text{12 \\textbf{cm}}", "12 cm"), ("$\\dfrac{3}{4}$", "3/4"), ("12\\%", "12%"), ("€5", "5"),
    ("1{,}234", "1,234"), ("−5", "-5"), ("5 – 6", "5 - 6"), ("a – b", "a – b"), ("72^\\circ", "72°"),
    ("a  b\n c", "a b c"), ("10⁻³", "10^-3"), ("-\\frac{-1}{2}", "-(-1/2)"), ("1½", "1 1/2"), ("–€5", "-5"),
    ("７２", "72"),
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
              "<answer>", "¤", "⁵", "\\frac{1}{", "twenty ", " hundred", "Rs. ", "- ", "Mr. ", "…", "#", "\\boxed{-",
              " and a half", "\\[", "```", "```\n", "</think>", "+", "^{", "°", "\\over ", "'", "|", "1,0", " million"]
    for _ in range(4000):
        text = "".join(rng.choices(pieces, k=rng.randrange(12)))
        for read in READ.values():
            assert isinstance(read(text), str | None)
        for part in PARTS.values():
            assert isinstance(part(text), str | None)


REPEATED = [
    "The answer is ", "\\boxed{", "1,", "(", "is the answer ", "answer to ", "I hope ", "*", "not a ", "x = ", "1 is ",
    "\\frac{", "\\frac12", "Mr. ", "! a", "twenty ", "one hundred and ", "12 ", "1 000 ", "\\text{", "US$",
    "\\boxed{1} ", "the answer, ", "-", "- ", "(1) ", "\"", "#### 1 ", "for the 2 ", "…", "a.m. ", "½", "¤", "Rs. ",
    "The answer is 5 The ", "total of ", "highly ", "[INST] ", "<b>", "\\boxed{\\boxed{", "should be ", "it is 5. ",
    "5 to the ", "12 minus 4, which is ", "not a but ", "x = 1, ",
    "Answer:\n", "#### ", "so ", "that is ", "wait ", "\n(a) ", "5 x ", "\u00bd", "at ", "- ", "1.\n"
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


# Statements made of the grammar's parts: what is read must be the value that was put in, or nothing; never another one.
SIGNS = ["-", "−", "﹣", "－", "–", "‑", "- ", "minus ", "negative "]
CURRENCIES = ["$", "\\$", "€", "£", "₹", "US$", "A$", "R$", "HK$", "USD ", "EUR ", "Rs. ", "Rs ", "CHF ", "kr "]
SEPARATORS = [",", "\u202f", "\u00a0", "\u2009", "{,}", "\\,", ",\\!", "'", "’"]
UNITS = [
    "", "", "", " clips", " dollars", "%", "\\%", " percent", " km/h", " cm^2", " m²", " sq ft", "°C", "/hour", " EUR",
    " €", " years old", " clips in total", "\\text{ cm}", "\\,\\mathrm{kg}", "^\\circ", " m/s^2", " p.m."
]
WRAPS = [
    "{}", "{}", "{}", "**{}**", "*{}*", "`{}`", "${}$", "\\({}\\)", "\\[{}\\]", "({})", '"{}"', "\\boxed{{{}}}",
    "$\\boxed{{{}}}$", "\\text{{{}}}", "\\mathbf{{{}}}", "**\\boxed{{{}}}**", "\\fbox{{{}}}", "[{}]"
]
MARKERS = [
    "The answer is {}.", "So the answer is {}", "**Answer:** {}", "#### {}", "Final answer: {}", "So x = {}.",
    "<answer>{}</answer>", "The answer is:\n\\[\n{}\n\\]", "The answer is:\n```\n{}\n```", "{} is the answer.",
    "Therefore, the total is {}.", "She has 5 + 2 = {}.", "## Answer\n{}", "The correct answer is {}.", "{}"
]
BEFORE = ["", "", "", "exactly ", "a total of ", "x = ", "2 + 3 = ", "she has ", "f(2) = ", "√9 = ", "half of 6 = "]
BEHIND = [
    "", "", "", ", because 2 + 3 = 5", " (in all)", ", not 4", ", so she is glad", " rather than 4", " when n = 3"
]
SPOILS_BEFORE = [
    "about ", "not ", "at least ", "2 + ", "3 × ", "x + ", "half of ", "f(", "|", "≈ ", "≥ ", "± ", "x > ", "either ",
    "maybe ", "between 4 and ", "4 to ", "4-", "4–", "4:", "page ", "Room ", "July ", "√", "\\sqrt ", "\\pi ", "2^",
    "10^{", "\\log ", "twice ", "4 or ", "4; ", "#", "@", "up to ", "3 times ", "x - ", "total - ", "1/2 of ", "(4, ",
    "[4, ", "2(", "<b>", "i("
]
SPOILS_BEHIND = [
    " or 9", " x", " dozen", " + 3", " - 3", " and a pear", " to 9", " of 9", " hundredths", " mod 7", " (mod 7)",
    " or so", " squared", " in 9", "?", " & 9", " | 9", " thousand million", " lakh",
    " plus tax", ", maybe", " at most", " ± 1", " < 9", " base 2", " ≈ 9", " feet 9 inches", " (9)", " \\times 3",
    " \\pm 1", " R2", " times 9", " and a bit", " less than x", " bn", " : 9", " half", "\\%\\pi"
]
SPOILS_DIGITS = [
    "x", "^2", ":30", "th", "k", "K", "M", "...", "π", "\\pi", "\\sqrt{2}", "h30", "+", "/x", "/0", "²", "⁴", "{,}5",
    "_2", "e", "×3", ",9", "'9\"", "′", "(9)", "\\cdot 3", "-ish", "‒9", "—9", "@9", "//2", "<9", "₂", "..", "!!"
]


SMALL = ["ten", "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"]
TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
DIGITS = ["", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


def spelt_out(number):
    """12345 in words."""
    if number < 20:
        return (DIGITS + SMALL)[number]
    if number < 100:
        return f"{TENS[number // 10 - 2]}-{DIGITS[number % 10]}".strip("-")
    power, name = (1000, "thousand") if number >= 1000 else (100, "hundred")
    rest = number % power
    return f"{spelt_out(number // power)} {name}" + (f" {'and ' * (rest < 100)}{spelt_out(rest)}" if rest else "")


def quantity(rng):
    """A number in one of the spellings that are read, and its value."""
    n, a, b = rng.randrange(10, 10**rng.randrange(2, 7)), *sorted(rng.sample(range(1, 10), 2))
    over, tenths, power = rng.randrange(11, 99), rng.randrange(11, 99) / 10, rng.randrange(-5, 7)
    fraction = rng.choice([f"{over}/{b}", f"\\frac{{{over}}}{{{b}}}", f"{{{over} \\over {b}}}", f"{over} / {b}"])
    mixed = rng.choice([f"{n} {a}/{b}", f"{n}\\frac{{{a}}}{{{b}}}", f"{n} \\dfrac{a}{b}"])
    scientific = rng.choice([f"{tenths}e{power}", f"{tenths} \\times 10^{{{power}}}", f"{tenths} × 10^{power}"])
    text, value = rng.choice([
        (str(n), n), (f"{n:,}", n), (f"{n:,}".replace(",", rng.choice(SEPARATORS)), n),
        (f"{n}.{a}0", n + Fraction(a, 10)), (f".{over}", Fraction(over, 100)), (f"{a} million", a * 10**6),
        (spelt_out(n % 100_000 + 2), n % 100_000 + 2), (f"{n}½", n + Fraction(1, 2)), (fraction, Fraction(over, b)),
        (mixed, n + Fraction(a, b)), (scientific, Fraction(str(tenths)) * Fraction(10) ** power),
        (str(n).translate({ord(d): chr(ord(d) + 0xFEE0) for d in "0123456789"}), n)])
    if rng.random() < 0.2:
        text = rng.choice(CURRENCIES) + text
    return (rng.choice(SIGNS) + text, -Fraction(value)) if rng.random() < 0.3 else (text, Fraction(value))


def composed(rng):
    """(text, the value that stands in it, is it spoiled so that nothing may be read?)"""
    text, value = quantity(rng)
    before, behind, unit, spoiled = rng.choice(BEFORE), rng.choice(BEHIND), rng.choice(UNITS), rng.random() < 0.5
    if spoiled and rng.random() < 0.5:
        before += rng.choice(SPOILS_BEFORE)
    elif spoiled and text[-1] in "0123456789":
        unit = rng.choice(SPOILS_DIGITS)
    elif spoiled:
        behind = rng.choice(SPOILS_BEHIND) + behind
    wrap, how = rng.choice(WRAPS), rng.randrange(3)
    stated = before + wrap.format(text + unit) + behind
    if how:
        stated = wrap.format(before + text + unit + behind) if how == 1 else before + wrap.format(text + unit + behind)
    return rng.choice(MARKERS).replace("{}", stated), value, spoiled


@pytest.mark.parametrize("spoiler", ["dozen", "squared", "lakh", "bn"])
def test_what_stands_behind_display_math_is_a_word_of_its_own(spoiler):
    assert verifier.number(f"The answer is \\[56 years old\\] {spoiler}") is None
    assert verifier.number("The answer is \\[56 years old\\] today.") == "56"


def test_composed_statements_are_read_whole_or_not_at_all(report):
    """A million of them were tried; a few thousand stay. Some of the plain ones say too much, and may be lost."""
    rng, read, spoiled_ones, count = random.Random(13), 0, 0, 3000
    for _ in range(count):
        text, value, spoiled = composed(rng)
        found = verifier.number(text)
        assert found is None or not spoiled, (text, found)
        assert found in (None, spelt(value)), (text, found, value)
        spoiled_ones += spoiled
        read += found is not None
    assert read > 0.75 * (count - spoiled_ones)
    report(f"verifier: {read} of {count - spoiled_ones} composed statements read, each with its value; "
           f"none of {spoiled_ones} that something spoils")


@pytest.mark.parametrize("sign", ["*", "_", "`", "×", "\n", " ", "a) ", "{", "1,"])
def test_time_in_proportion_to_the_text(sign):
    """A model that goes round in circles writes one sign thousands of times; a file may hold it as an answer."""
    text = "x" + sign * (20_000 // len(sign)) + "x"
    begun = time.process_time()
    for read in (verifier.normal, verifier.one_number, one_set, members, verifier.phrase, verifier.number):
        for told in (text, f"The answer is 5{text}"):
            read(told)
    assert time.process_time() - begun < 0.5
