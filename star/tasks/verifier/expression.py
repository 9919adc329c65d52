"""Which arithmetic expression does a text arrive at, and what is it worth? "The answer is (44 - 19) * 35 = 875."

A statement is read whole or not at all: what is left over, two expressions of different value, a division by zero and
what is longer than anybody means make it none; so does another value in what follows it. It computes in fractions,
exactly; nothing is ever run as code.
"""

import re
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from star.tasks.verifier import one_number
from star.tasks.verifier.sentence import sentence_end
from star.tasks.verifier.statement import arrive, concluded, statements
from star.tasks.verifier.words import in_digits

MOST_CHARACTERS = 300  # of an expression that is read at all
MOST_BITS = 4096  # of a power: 9^9^9 is none
MOST_DEEP = 40  # brackets in brackets
CLOSES = {"(": ")", "[": "]", "{": "}"}
SIGNS = str.maketrans({
    **dict.fromkeys("×⋅·∙∗✕✖", "*"), **dict.fromkeys("÷∕⁄", "/"), **dict.fromkeys("−–—‒﹣－", "-"),
    "＋": "+", "＝": "=", "（": "(", "）": ")", "²": "^2", "³": "^3",
    **dict.fromkeys("\u00a0\u2009\u202f\u2062", " ")})
LATEX = [(re.compile(pattern), new) for pattern, new in (
    (r"\\[dtc]?frac(?![A-Za-z])\s*", "\\\\frac "), (r"\\(?:times|cdot|ast)(?![A-Za-z])", "*"),
    (r"\\div(?![A-Za-z])", "/"),
    (r"\\(?:left|right|[bB]igg?[lr]?|displaystyle|q?quad)(?![A-Za-z])|\\[,!;:() \[\]]|\$", " "), (r"\*\*", "^"))]
MARKED = re.compile(r"([*_`]{1,3})(?=[^\s*_`])(.*[^\s*_`])\1", re.S)  # **(1 + 2) * 8**
MARK_ENDS = re.compile(r"(?<=[^\s*_`])(?:\*\*|__|`)\Z")  # the statement began behind the first of them
EQUALS = re.compile(r"\s*,?\s*\b(?:which\s+)?(?:is\s+)?(?:equals?(?:\s+to)?|gives|makes)\b\s*|\s*=\s*", re.I)
TOKEN = re.compile(
    r"""\s*(?: (?P<number>(?!0x[0-9a-f])  # 0x18 is 24, or 0
                         (?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?(?![0-9.,]*[0-9])|\.[0-9]+)
         | (?P<frac>\\frac[ ]) | (?P<times>x(?=\s*[-(0-9.\[{])) | (?P<sign>[-+*/^()\[\]{}]) )""", re.I | re.X)

# What follows a statement, in pieces: "It uses 6 and 4. 5 * 5 = 25".
SENTENCES = re.compile(r"\n|(?<=[.!?;])\s+")
OPERAND = r"[-+(\[{$]*+(?:[0-9]|\.[0-9])(?:[0-9.]|,(?=[0-9]{3}(?![0-9])))*+[)\]}$]*+"
RUN = re.compile(rf"{OPERAND}(?:\s*(?:[-+*/^=x])\s*{OPERAND})*+|[-+(\[{{$]*\\frac.*", re.I)
BOLD = re.compile(r"(?<!\S)\*\*(?=\S)|(?<=\S)\*\*(?!\S)")
GOES_ON = re.compile(r"\s*(?:[-+*/^]|x\b)\s*[-(\[{$\\]*[0-9]", re.I)  # the sum of the line above does


class Expression(NamedTuple):
    """What a text of arithmetic is worth, and the numbers in it, each with the minus that stands right before it."""

    value: Fraction
    numbers: tuple[tuple[Fraction, bool], ...]
    text: str  # without LaTeX: "(44-19)*35"
    steps: int  # signs between numbers; 0: a number alone


@lru_cache(maxsize=8)  # a verdict asks about the same text twice, to extract and to compare: it is read once
def expression(text: str) -> str | None:
    """The expression that a text arrives at, in one spelling: "(44-19)*35"; without marker a last sentence of it."""
    found = arrive(text, _stated, lambda sentence, _: _calculation(sentence))
    return None if found is None or _differs(behind(text), found) else found


def behind(text: str) -> str:
    """What follows the last statement of a text: of "The answer is 5. And 6." the ". And 6."; "" without one."""
    text = concluded(text)
    last = next((s for s in reversed(statements(text)) if s.stated is not None), None)
    if last is None:
        return ""
    boxed = text.startswith(("boxed", "fbox"), last.start)  # read with the rest of its sentence
    return text[sentence_end(text, last.end, "number") if boxed else last.end :]


def _differs(rest: str, stated: str) -> bool:
    """Does what follows an expression have another value? "= 25" and "That is 25." do, "It uses 6 and 4." does not."""
    if len(rest) > 4 * MOST_CHARACTERS:
        return True  # no answer has so much behind it
    unread, rest = rest.count("?"), in_digits(rest)
    said = evaluate(stated)
    if said is None or rest.count("?") > unread:  # "That is two thirds."
        return True
    rest = _without_latex(BOLD.sub("", rest.translate(SIGNS)))
    used = {said.value, *(number for number, _ in said.numbers)}
    for sentence in SENTENCES.split(rest):
        runs = [evaluate(run[0].strip(" .,=")) for run in RUN.finditer(sentence)]
        values = {run and run.value for run in runs}
        if GOES_ON.match(sentence) or not values <= (used if len(runs) > 1 else {said.value}) or (
                any(map(str.isnumeric, RUN.sub("", sentence)))):
            return True
    return False


def evaluate(text: str) -> Expression | None:
    """What a text is worth that is an arithmetic expression and nothing else, or several that are equal: of "2*3 = 6"
    the first that calculates. None for all other texts."""
    if len(text) > MOST_CHARACTERS:
        return None
    text = text.strip().rstrip(".").translate(SIGNS)
    marked = MARKED.fullmatch(text)
    text = (marked[2] if marked else MARK_ENDS.sub("", text)).rstrip(".")
    text = _without_latex(text)
    sides = [_whole(side) for side in EQUALS.split(text)]
    if None in sides or len({side.value for side in sides}) != 1:
        return None
    return next((side for side in sides if side.steps), sides[0])


def _without_latex(text: str) -> str:
    for pattern, new in LATEX:
        text = pattern.sub(new, text)
    return text


def _stated(statement: str) -> str | None:
    """The expression of a statement. A number alone may have a unit."""
    found = evaluate(statement)
    if found is None and not re.search(r"[=+*/^×÷−\\()\[\]{}]|[0-9]\s*-", statement):
        return one_number(statement)
    return found and found.text


def _calculation(sentence: str) -> str | None:
    """The expression of a last sentence that is nothing else: "So (44 - 19) * 35 = 875."."""
    found = evaluate(re.sub(r"^\W*(?:so|thus|hence|therefore)\b,?", "", sentence, flags=re.I))
    return found.text if found and found.steps else None


def _whole(text: str) -> Expression | None:
    """One expression that fills the text."""
    tokens, at = [], 0
    while text[at:].strip():
        token = TOKEN.match(text, at)
        if token is None:
            return None
        tokens.append("*" if token["times"] else token[0].strip().replace(",", ""))
        at = token.end()
    reader = _Reader(tokens)
    try:
        value, spelling = reader.sum()
    except (ValueError, ZeroDivisionError):
        return None
    large = max(value.numerator.bit_length(), value.denominator.bit_length()) > 2 * MOST_BITS
    if large or reader.at < len(tokens):
        return None
    return Expression(value, tuple(reader.numbers), spelling, reader.steps)


class _Reader:
    """Reads tokens from left to right; each method gives (value, spelling), or raises ValueError, ZeroDivisionError."""

    def __init__(self, tokens: list[str]):
        self.tokens, self.at, self.deep, self.steps = tokens, 0, 0, 0
        self.numbers: list[tuple[Fraction, bool]] = []

    def next(self, *wanted: str) -> str | None:
        """The token that is next, taken if it is one of these."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        if token not in wanted:
            return None
        self.at += 1
        return token

    def sum(self) -> tuple[Fraction, str]:
        value, text = self.product()
        while sign := self.next("+", "-"):
            more, spelling = self.product()
            value, text = value + (more if sign == "+" else -more), text + sign + spelling
            self.steps += 1
        return value, text

    def product(self) -> tuple[Fraction, str]:
        value, text = self.signed()
        divided = False
        while sign := self.next("*", "/") or self._beside(divided):
            more, spelling = self.signed()
            divided = divided or sign == "/"
            value, text = value * more if sign == "*" else value / more, text + sign + spelling
            self.steps += 1
        return value, text

    def _beside(self, divided: bool) -> str | None:
        """A product without a sign, 3(4 + 5); what 6/2(1 + 2) means nobody knows."""
        beside = self.at < len(self.tokens) and self.tokens[self.at] in CLOSES
        if beside and divided:
            raise ValueError
        return "*" if beside else None

    def signed(self) -> tuple[Fraction, str]:
        """-3, and -2^2, which is -4."""
        sign = self.next("-", "+")
        first = len(self.numbers)
        value, text = self.power()
        if sign == "-":
            if len(self.numbers) == first + 1 and text[0] not in CLOSES:
                self.numbers[first] = (self.numbers[first][0], True)
            return -value, f"-{text}"
        return value, text

    def power(self) -> tuple[Fraction, str]:
        value, text = self.atom()
        if not self.next("^"):
            return value, text
        exponent, spelling = self.signed()  # 2^3^2 is 2^9
        self.steps += 1
        size = max(value.numerator.bit_length(), value.denominator.bit_length())
        if exponent.denominator != 1 or size * abs(exponent) > MOST_BITS or (value == 0 and exponent <= 0):
            raise ValueError
        return value ** int(exponent), f"{text}^{spelling}"

    def atom(self) -> tuple[Fraction, str]:
        """A number, brackets, or a fraction of LaTeX."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        self.at += 1
        if token in CLOSES:
            self.deep += 1
            if self.deep > MOST_DEEP:
                raise ValueError
            value, text = self.sum()
            if not self.next(CLOSES[token]):
                raise ValueError
            self.deep -= 1
            return value, f"({text})"
        if token == "\\frac":
            (above, over), (below, under) = self._part(), self._part()
            self.steps += 1
            return above / below, f"({over}/{under})"
        value = Fraction(token)  # ValueError for a sign
        self.numbers.append((value, False))
        return value, token

    def _part(self) -> tuple[Fraction, str]:
        """A part of a fraction of LaTeX: what is in its braces, or one digit."""
        token = self.tokens[self.at] if self.at < len(self.tokens) else ""
        if token == "{":
            value, text = self.atom()
            return value, text[1:-1] if text[1:-1].isdecimal() else text
        if not (token.isdecimal() and len(token) in (1, 2)):
            raise ValueError
        if len(token) == 2:  # \frac12
            self.tokens[self.at : self.at + 1] = list(token)
        return self.atom()
