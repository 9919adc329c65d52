"""Which number does a text arrive at? In one spelling: "1,234.50 dollars" and "\\boxed{1234.5}" are both "1234.5".

None where there is none, or not exactly one, or one that is hedged, bounded or unfinished ("about 5", "5 or 6",
"12 +"). It computes nothing and rounds nothing.
"""

import re
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache

from star.tasks.verifier.own import phrases, plain
from star.tasks.verifier.statement import (
    CUT_OFF,
    DIGIT,
    HEDGE_SIGNS,
    HEDGES,
    MOST_STATED,
    NO_CONCLUSION,
    RATHER,
    REASON,
    arrive,
    without_reason,
)

MOST_DIGITS = 60  # characters of a number that is read at all
DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"  # 1,234.5 or 1234.5 or .5
NUMBER = re.compile(
    rf"""(?P<sign> \b(?:minus|negative)\s+ | (?<![0-9A-Za-z)\]%])-(?:(?<![0-9A-Za-z)\]%:]\s-)\s|) )?  # no "total - 12"
         (?: (?P<whole>[0-9]+)\s+(?:and\s+)?(?P<above>[0-9]+)/(?P<below>[0-9]+)                       # 1 1/2
           | (?P<a>{DIGITS})(?:\s?/\s?(?P<b>{DIGITS}))? )                                             # 3/4
         (?: \s*[x*]\s*10\s*(?:\^|\*\*)\s*\{{?(?P<power>-?[0-9]{{1,3}})(?![0-9])\}}?                  # x 10^3
           | e(?P<e>[+-]?[0-9]{{1,3}})(?![0-9]) )?
         (?: \s+(?P<scale>hundred|thousand|million|billion|trillion)s?\b )?""", re.I | re.X)
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SIMPLE = re.compile(r"\s*\$?([0-9]{1,15}|[0-9]{1,3}(?:,[0-9]{3}){1,4})\s*\Z")  # most answers are
UNITS = re.compile(  # what may touch a number: 72cm, 5ft
    r"(?:[kcm]?m|mi|ft|in|yd|[km]?g|lbs?|oz|m?l|h|hrs?|mins?|s|secs?|mph|kmh|kph|kwh|cents?|c|f)(?:\b|[23])", re.I)
LARGE = re.compile(r"\s?[KMB](?![A-Za-z&])")  # $1.2M would be metres else
# The number is a bound or an estimate.
INEXACT = phrases("""approximately, approx, roughly, nearly, almost, at least, at most, at the least, at the most,
    at the very least, at the very most, more than, less than, greater than, fewer than, higher than, lower than,
    bigger than, smaller than, other than, rather than, up to, below, dozen, dozens, range, ranges, close to,
    as many as, as few as, upwards of, estimate*, give or take, ish, and over, and above, and up, and more, or more""")
ABOUT = phrases("about, around, over, under, above", before="(?<!left )", after="[^0-9]*[0-9]")  # not "12 books about"
# Something is made of the number: "half of 12", "12 squared". But "half of 24 = 12" is a computation.
MADE_OF = phrases("""half, third, quarter, twice, thrice, double, triple, squared, cubed, square of, cube of,
    square root, root, pi, factorial, times the, times as, times that, times more, times my, times his, times her,
    times its""",
    after=r"(?!\s+(?:of\s+)?[0-9.,]+\s*=)")
ELSEWHERE = phrases("given, found, see")  # "The answer is found by adding the 12": it says where or how, not what
# There is an unknown left to find: "x + 5", "2x = 10", "5 n". But "8 x 9" is a product, and "x = 5" is found.
UNKNOWN = r"(?<![A-Za-z'’\\])[jknpqruvwxyz](?![\w'’])"
ALGEBRA = re.compile(rf"""[0-9)jknpqruvwxyz](?:
        (?<=[0-9)])\s*(?:(?:[-+*/^]|minus|plus)\s*)?{UNKNOWN}(?!\s*[-(]?[0-9])  # 5 x, 2x = 10, 5 - n; not 5 x 3
      | (?<=[a-z])(?<![\w'’\\].)\s*[-+*/^]\s*\(?[0-9]                        # x + 5
      | (?<=[0-9])(?:[a-z]\s*=|[A-Z]\s*[-+*/^=]) )""", re.X)                  # 5a = 10, 2H + 2
TWO_UNKNOWNS = re.compile(r"\b[a-z]\s*=[^=]*,\s*[a-z]\s*=|\b[a-z]\s*=.*\band\b.*=", re.I)  # x = 1, y = 2
# Something is still done to the number.
UNFINISHED = phrases("but, plus, minus the, minus a, minus his, minus her, minus their")
FUNCTIONS = phrases("log, ln, sin, cos, tan, sqrt", after=r"\s*\(?[0-9]")
UNKNOWN_LATEX = re.compile(r"\\[A-Za-z]")  # `plain` takes out what it knows
# The number only names something: "on page 12". A computation may follow.
NAMED = phrases("page, step, question, problem, part, chapter, section, line, figure, equation, exercise, example")
NAMED_NUMBER = phrases("option, choice, number, no", after=r"\s*\.?\s*[0-9]")
# What stands after a number and is no other answer: what it is made of, what it holds for.
BREAKDOWN = re.compile(  # "72 (48 + 24)", but not "4(3)" and "72 (or 70)"
    r"\((?:(?<=[A-Za-z%]\()|(?<=[0-9A-Za-z%] \())(?!\s*(?:or|maybe|perhaps|possibly|probably|if)\b)[^()]*[0-9][^()]*\)")
HOLDS_FOR = re.compile(  # "72 clips over the 2 months", "72 when n = 3"
    r" (?:(?:over|in|for|during|after|within|across) (?:the |all )?[0-9]+ [a-z]+\s*$|(?:for|when|with|at) [a-z] ?=.*)",
    re.I)
# "So 20 people did not go": the negation tells which people.
WHICH = re.compile(r"(?<=[0-9]) [a-z][a-z ]*? (?:do|does|did|are|were|was|is|will)(?: not|n['’]t) "
                   r"(?!right|correct|true|enough|the answer)[^,.;=]*$")
CONCLUDES = phrases("so, therefore, thus, hence, in total, altogether, finally, in all, overall, total")
# The word in front of a number that only names something, where no marker says that it is an answer.
LABEL = phrases("""step, page, question, problem, part, chapter, exercise, line, figure, equation, section, option,
    choice, example, no, number, day, year, grade, age, room, level, round, in, on, at""", after=r"\.?$")


@lru_cache(maxsize=8)  # a verdict asks about the same text twice, to extract and to compare: it is read once
def number(text: str) -> str | None:
    """The one number that a text arrives at: "1,234.50 dollars" and "\\boxed{1234.5}" are both "1234.5"."""
    return arrive(text, one_number, _last_number)


def one_number(statement: str) -> str | None:
    """The number of a short statement that holds exactly one, however often: "48 + 24 = $72 (72 clips)" is "72"."""
    if simple := SIMPLE.match(statement):
        return str(int(simple[1].replace(",", "")))
    text = _inside_quotes(plain(statement)) if len(statement) <= 2 * MOST_STATED else ""
    if not DIGIT.search(text) or CUT_OFF.search(text[-9:]):
        return None
    text = RATHER.sub("", without_reason(text))
    bare = HOLDS_FOR.sub("", BREAKDOWN.sub("", text))
    text = bare if DIGIT.search(bare) else text
    if any(p.search(text) for p in (HEDGES, HEDGE_SIGNS, INEXACT, ABOUT, MADE_OF, ELSEWHERE, ALGEBRA)):
        return None
    if text.count("=") > 1 and TWO_UNKNOWNS.search(text):
        return None
    text = text.rpartition("=")[2].strip()
    if any(p.search(text) for p in (NAMED, NAMED_NUMBER, UNFINISHED, FUNCTIONS, UNKNOWN_LATEX)):
        return None
    return _spelt(_only_value(text))


def _only_value(text: str) -> Fraction | None:
    """The value of all numbers in a text, if they are the same: 72 in "72 clips", none in "72, 70" and "72nd"."""
    values = set()
    for match in NUMBER.finditer(text):
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 2]
        if before and (before.isalpha() or before in "^_"):
            continue  # m2, CO2, Q7: no number
        if (before and (before.isdigit() or before in ".,:/#")) or LARGE.match(text, match.end()):
            return None
        if after[:1] and (after[0].isalnum() or after[0] in "^:/_'*!"):
            if not UNITS.match(text, match.end()) and not re.match(r"/[A-Za-z]", after):
                return None  # 72nd, 72x, 7:30; but 72cm and $5/hour are fine
        elif after[:1] in (",", ".") and after[1:].isdigit():
            return None  # 1,23
        values.add(_value(match))
    if len(values) != 1 or any(c.isdigit() and not "0" <= c <= "9" for c in text):
        return None
    return values.pop()


def _value(match: re.Match) -> Fraction | None:
    """What a match of NUMBER is worth; None if it divides by zero or is longer than anybody means."""
    if len(match[0]) > MOST_DIGITS:
        return None
    if match[0].isdigit():
        return Fraction(int(match[0]))  # as below, in less time
    a, b, whole, above, below = ((match[key] or "").replace(",", "") for key in ("a", "b", "whole", "above", "below"))
    over, under = (above, below) if whole else (a, b or "1")
    if not Fraction(under):
        return None
    value = Fraction(whole or 0) + Fraction(over) / Fraction(under)
    value *= Fraction(10) ** int(match["power"] or match["e"] or 0) * SCALES.get((match["scale"] or "").lower(), 1)
    return -value if match["sign"] else value


def _spelt(value: Fraction | None) -> str | None:
    """One spelling for each number: 72, -0.5, 1/3."""
    if value is None or value.denominator == 1:
        return None if value is None else str(value.numerator)
    exact = Context(prec=3 * MOST_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return format(exact.normalize(), "f") if Fraction(exact) == value else str(value)


def _last_number(sentence: str, _: str) -> str | None:
    """The number of a last sentence that concludes: "So she makes $18 a day.", "9 * 2 = 18"; not "Then add the 18"."""
    text = re.sub(r"^\W*step\s+[0-9]+\s*[:.)]\s*|^\s*[-*•]\s+", "", plain(sentence).rstrip(".! "), flags=re.I)
    digit = DIGIT.search(text)
    if digit is None:
        return None
    if not CONCLUDES.match(text):
        before = text[: digit.start()].rstrip("$- ")
        named = before.endswith("#") or LABEL.search(before)
        if NO_CONCLUSION.search(text) or ((named or ":" in before) and "=" not in text):
            return None
    value, reason = one_number(WHICH.sub("", text)), REASON.search(text)
    if reason and DIGIT.search(reason[0]) and one_number(re.split(r"=|\bequals\b|\bis\b", reason[0])[-1]) != value:
        return None  # "She has only 4 left, which means that she ate 10 - 4 = 6."
    return value


def _inside_quotes(text: str) -> str:
    """Of "'12'" the 12; but 5' and 5'10" are lengths."""
    quoted = len(text) > 2 and text[0] in "\"'“‘" and text[-1] in "\"'”’"
    return text[1:-1] if quoted else text
