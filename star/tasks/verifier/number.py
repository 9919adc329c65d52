"""Which number does a text arrive at? In one spelling: "1,234.50 dollars" and "\\boxed{1234.5}" are both "1234.5".

A statement is sides between "=", of which the last one counts: "48 + 24 = 72 clips". What stands there, quantity.py
reads, whole or not at all. None where nothing may be read: there are two numbers, an unknown in front ("2x = 10"), or
one that is hedged, bounded or made something of ("about 5", "5 or 6", "half of 12").
"""

import re
from functools import lru_cache

from star.tasks.verifier.own import phrases, plain
from star.tasks.verifier.quantity import spelt, value_of
from star.tasks.verifier.retraction import CALLED_WRONG
from star.tasks.verifier.sentence import CUT_OFF, MOST_STATED
from star.tasks.verifier.statement import (
    DIGIT,
    HEDGE_SIGNS,
    HEDGES,
    NO_CONCLUSION,
    RATHER,
    REASON,
    arrive,
    without_reason,
)
from star.tasks.verifier.words import WORDS, in_digits

SIMPLE = re.compile(r"\s*\$?([0-9]{1,15}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,4})\s*\Z")  # most answers are

PRICE = re.compile(r"(?<=[0-9])/-(?!\S)")  # Rs. 500/-
CODES = re.compile(  # US$500, USD 12, Rs. 12
    r"""\b(?=[A-Zkz])(?: (?:US|AU|CA|CDN|NZ|HK|NT|MX|[ACNRSZ])(?:\s?¤|(?<=¤US)\s)
      | (?: USD|EUR|GBP|INR|JPY|CNY|RMB|CHF|CAD|AUD|NZD|HKD|SGD|TWD|BRL|MXN|ARS|CLP|COP|KRW|SEK|NOK|DKK|PLN|CZK|HUF|RUB
        |TRY|ZAR|NGN|KES|EGP|AED|SAR|ILS|THB|MYR|IDR|PHP|VND|PKR|BDT|LKR|Rs\.?|Re\.?|kr\.?|Fr\.?|RM|Rp\.?|zł|Kč
        )\s?¤?(?=\s?[-+(]?\s?[0-9.]) )""", re.X)
EQUALS = re.compile(r"\b(?:equals|is equal to)\b|(?<=\b[b-hj-z]) is(?= [-¤0-9])")  # x is 5
COMPUTED = re.compile(  # 20 minus 5, which is 15
    r"((?:[-+*/]|\b(?:plus|minus|times|by)\b)\s?¤?[0-9][0-9.,]*?),? which (?:is|equals|makes|gives)(?= ¤?-?[0-9])")
TIMES = re.compile(r"(?<=[0-9])x(?=[0-9])|(?<=\s)x(?=\s[-(¤]?\s?[0-9])", re.I)  # 8 x 5
IN_TERMS = re.compile(  # 2x, x + 5, n; not the x of "x is 180 / 4"
    r"""(?<![A-Za-z'’\\.])(?:[b-zB-Z](?=\s?(?:[-+*/^(!|]|$)) | (?<=[0-9)+*/^-])[a-zA-Z] | (?<=[0-9)+*/^-]\s)[b-zB-Z]
          | [aA](?=\s?[-+*/^]))(?![A-Za-z'’.])""", re.X)
SOLVED = re.compile(  # in front of "=": x, the area A, so x_1, f(3)
    r"""(?:.*(?:\b(?:so|then|thus|hence|therefore|get|gets|gives?|us|giving|yields?|is|that|have|has|finds?|obtain|means|value\sof)
          |[0-9]\W?\sand|\bthe\s\w+|[:,;])\s)?
        [\s¤(\["“]*[A-Za-z](?:_?\w{1,3}|['’]|\([^()=]{0,20}\))?\s*""", re.I | re.X)
TWO_UNKNOWNS = re.compile(r"\b[a-z]\s*=[^=]*(?:[,;]|\\\\)\s*[a-z]\s*=|\b[a-z]\s*=.*\band\b.*=", re.I)  # x = 1, y = 2

# The number is a bound, an estimate or a part of something, or stands in a place where it says how and not what.
INEXACT = phrases("""approximately, approx, roughly, nearly, almost, at least, at most, at the least, at the most,
    at the very least, at the very most, more than, less than, greater than, fewer than, higher than, lower than,
    bigger than, smaller than, other than, rather than, below, range, ranges, close to, circa,
    as many as, as few as, upwards of, estimate*, give or take, ish, and over, and above, and up, and more, or more,
    and counting, and change, and a few, and some, and several, and many, beyond, under, exceed*, minimum of,
    maximum of, given, found, see, onward*, upward*, at the latest, at the earliest, at the outside,
    with some, tentative*, supposed to be""")
ABOUT = phrases("about, around, over, under, above, past, within, up to",
                before="(?<!left )(?<!add )(?<!adds )", after="[^0-9]*[0-9]")  # not "12 books about"
# "The answer is near 20": a bound of the last number, not "After 20 trips, 5 * 20 = 100".
RIGHT_BEFORE = phrases("""near, nearing, nearest, closest to, barely, hardly, scarcely, pushing, approaching,
    bordering on, exceeding, shy of, divisible by, before, after, since, through, from, next to, ballpark,
    approximate, rough, a good, min, max, at minimum, at maximum, tenfold""", after="[ ][-¤]?[0-9.,]+[^0-9=]*$")
# Something is made of the number: "half of 12", "12 squared". But "half of 24 = 12" is a computation.
MADE_OF = phrases("""half, third, quarter, twice, thrice, double, triple, squared, cubed, square of, cube of,
    square root, root, pi, factorial, times the, times as, times that, times more, times my, times his, times her,
    times its, quadruple, quintuple, reciprocal, inverse""",
    after=r"(?!\s+(?:of\s+)?[¤0-9.,]+\s*=)")
UNCERTAIN = re.compile("|".join(p.pattern for p in (HEDGES, HEDGE_SIGNS, INEXACT, ABOUT, RIGHT_BEFORE, MADE_OF)))
# What stands after a number and is no other answer: what it is made of, what it holds for.
BREAKDOWN = re.compile(  # "72 (48 in April)", but not "4(3)", "5 (6)" and "72 (or 70)"
    r"(?<=[0-9A-Za-z%])(?<!\band)(?<!\bor)(?<!\bof)(?<!\btimes)(?<!\bplus)(?<!\bby)(?<!\bto)"
    r" \((?!\s*(?:should|make|edit|not|no|was|rather|actually|oops|sorry|wait|correct\w*)\b)"
    r"(?!\s*(?:or|maybe|perhaps|possibly|probably|if|mod|base|times|of|out)\b)(?=[^()]*[A-Za-z]{2})"
    r"[^()]*[0-9][^()]*\)")
HOLDS_FOR = re.compile(  # "72 clips over the 2 months", "72 when n = 3"
    r"""\s(?=[adfiow])(?: (?:over|for|during|after|within|across|(?<=[a-z]\s)in)\s[0-9]+\s
             (?:second|minute|hour|day|night|week|weekend|month|year|decade|lap|round|trip|game|class|people)[a-z]*\s*$
           | (?:over|for|during|after|within|across|in|on|from)\s(?:(?:the|all|these|those|both)\s)+
             [0-9]+(?:\s[a-z]+){1,4}\s*$
           | (?:for|when|with|at)\s[a-z]\s?=.* )""", re.I | re.X)
# "So 20 people did not go": the negation tells which people.
WHICH = re.compile(r"(?<=[0-9]) [a-z][a-z ]*? (?:do|does|did|are|were|was|is|will)(?: not|n['’]t) "
                   r"(?!right|correct|true|enough|the answer)[^,.;=]*$")
CONCLUDES = phrases("so, therefore, thus, hence, in total, altogether, finally, in all, overall, total, final, result")
HEAD = re.compile(r"^\W*step\s+[0-9]+\s*[:.)]\s*"
                  r"|^\s*(?:[-*•]\s+(?=(?-i:(?!Rs|Fr)[A-Z][a-z])|\*)|A:\s*|(?:->|=>|[→⇒∴])\s*)", re.I)
ANSWERS = re.compile(r"(?<!\bto )\banswer(?:s (?:is|are|was|were))?\b", re.I)
ITEM = re.compile(r"\W*[-*•]\s")  # "- 12" alone may be an item of a list
ENDS = re.compile(r"(?<!\.)[.!]?\s*$")  # but "0.333..." goes on
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
    text = _inside_quotes(PRICE.sub("", plain(statement, "¤"))) if len(statement) <= 2 * MOST_STATED else ""
    if not (DIGIT.search(text) or WORDS.search(text)):
        return None
    if CUT_OFF.search(text[-9:]) or CALLED_WRONG.search(text):
        return None
    text = text.replace("U.S.", "US")
    text = COMPUTED.sub(r"\1 =", text) if " which " in text else text
    text = CODES.sub("¤", in_digits(RATHER.sub("", without_reason(text)))).replace("¤¤", "¤")
    text = EQUALS.sub("=", text) if " is " in text or "equals" in text else text
    text = TIMES.sub("*", text) if "x" in text or "X" in text else text
    bare = HOLDS_FOR.sub("", BREAKDOWN.sub(_unless_first, text) if "(" in text else text)
    text = bare if DIGIT.search(bare) else text
    if UNCERTAIN.search(text):
        return None
    *before, side = text.split("=")
    if before and (_unsolved(before[-1]) or (len(before) > 1 and TWO_UNKNOWNS.search(text))):
        return None
    return spelt(value_of(side))


def _unsolved(side: str) -> bool:
    """Is there an unknown left to find in front of "="? In "2x" and "x + 5" there is; "x" and "8 * 5" are done."""
    return bool(IN_TERMS.search(side)) and not SOLVED.fullmatch(side)


def _unless_first(match: re.Match) -> str:
    """Nothing, where a number stands in front that the bracket may be a breakdown of."""
    return "" if DIGIT.search(match.string[: match.start()].rpartition("=")[2]) else match[0]


def _last_number(sentence: str, _: str) -> str | None:
    """The number of a last sentence that concludes: "So she makes $18 a day.", "9 * 2 = 18"; not "Then add the 18"."""
    text = HEAD.sub("", ENDS.sub("", plain(sentence, "$")))
    if "nswer" in text and ANSWERS.search(text):
        return None  # "The answer used to be 5", "72 is Tom's answer": what no marker is, states nothing
    digit = DIGIT.search(text)
    if digit is None and CONCLUDES.match(text):  # "So she has twelve apples."
        text = in_digits(text)
        digit = None if " 1 " in text else DIGIT.search(text)
    if digit is None or ITEM.match(text):
        return None
    before, concludes = text[: digit.start()].rstrip("$- "), CONCLUDES.match(text)
    named = before.endswith("#") or (LABEL.search(before) and not (concludes and before.endswith("at")))
    if named and "=" not in text:
        return None
    if not concludes and (NO_CONCLUSION.search(text) or (":" in before and "=" not in text)):
        return None
    value, reason = one_number(WHICH.sub("", text)), REASON.search(text)
    if reason and DIGIT.search(reason[0]) and one_number(re.split(r"=|\bequals\b|\bis\b", reason[0])[-1]) != value:
        return None  # "She has only 4 left, which means that she ate 10 - 4 = 6."
    return value


def _inside_quotes(text: str) -> str:
    """Of "'12'" the 12; but 5' and 5'10" are lengths."""
    quoted = len(text) > 2 and text[0] in "\"'“‘" and text[-1] in "\"'”’"
    return text[1:-1] if quoted else text
