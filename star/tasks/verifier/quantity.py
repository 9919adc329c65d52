"""What quantity stands on one side of an equation? value_of("so she sold 72 clips (72 in all)") is 72, exactly.

    side        words, one quantity, words                      so she sold 72 clips altogether
    quantity    sign currency number scale unit                 -$1.5 million, 72 km/h, 2 1/2 cups
    number      grouped, decimal, fraction, mixed, scientific   1,234.5  .5  3/4  1 1/2  1.2 x 10^3

Read whole or not at all: what is left when quantities are taken out must be harmless words and punctuation, and what is
said twice must be the same ("seventy-two (72)"). So "5 dozen", "3:4", "2^5", "f(3)" and "July 4" are none. Currency
signs are written ¤ here (own.plain), numbers in words are digits already (words.in_digits). Nothing is computed but
what a fraction and its scale are worth; nothing is rounded.
"""

import re
from decimal import Context, Decimal
from fractions import Fraction

from star.tasks.verifier.own import phrases
from star.tasks.verifier.words import SCALES

MOST_DIGITS = 60  # characters of a number that is read at all

SIGN = r"""(?: (?<![^\s(\[:$¤"“])-(?=[¤0-9.])                                            # -5; not that of "total - 12"
             | (?:^|(?<=\bis\s)|(?<=\bbe\s)|(?<=\bwas\s)|(?<=\bexactly\s))(?:[-+]\s?|minus\s)(?=[¤0-9.])
             | \bnegative\s(?=[¤0-9.])
             | (?<![\w.,:/'’#^$¤%°)\]}+*=-])(?=[¤0-9.]) )"""
N = r"""(?: (?: [1-9][0-9]{0,2}(?:,[0-9]{3})+ | [1-9][0-9]?(?:,[0-9]{2})+,[0-9]{3} | [1-9][0-9]{0,2}(?:['’][0-9]{3})+
              | [0-9]+ )(?:\.[0-9]+)? | \.[0-9]+ )(?![0-9]|[.,'’][0-9])"""  # 1,234.5  1,00,000  70'000  1234.5  .5
POWER = r"""(?: \s?[x*]\s?10\s?(?:\^|\*\*)\s?\{?\s?(?P<power>[-+]?[0-9]{1,3})(?![0-9])\s?\}?
              | e(?P<e>[-+]?[0-9]{1,3})(?![0-9]) )"""
UNIT = r"""(?: \s?% | \s?°(?:\s?[CF]\b)? | \s?[ap]\.m\b | [ap]m\b                         # 72cm, 3 p.m.
  | (?-i:(?:[kcdm]?m|ft|in|yd|mi)(?:[23]\b|\s?\^\s?\{?[23]\}?)
      |(?:[kcdm]?m|mi|ft|in|yd|[km]?g|lbs?|oz|m?[lL]|h|hrs?|mins?|s|secs?|mph|km/?h|kph|k[Ww]h|cents?|[KMGT]B)\b) )"""
QUANTITY = re.compile(rf"""
    (?=[-+¤.0-9mn])(?P<sign>{SIGN}) (?P<money>¤\s?(?P<minus>-\s?)?)?
    (?: (?P<whole>[0-9]+)\s(?:and\s)?(?P<above>[0-9]+)\s?/\s?(?P<below>[0-9]+)(?![0-9]|[.,'’][0-9])     # 1 1/2
      | (?P<a>{N})(?:\s?/\s?(?P<b>{N}))? )                                                              # 3/4
    {POWER}? (?:[\s-](?P<scale>{'|'.join(SCALES)})s?\b)?
    (?P<unit>{UNIT})? (?=$|[\s)\]}}.,;"”]|/[A-Za-z])(?!\.[.\w]|,\w)""", re.I | re.X)
DECADE = re.compile(r"(?:\b(?:the|mid|early|late)[\s-][0-9]|[12][0-9]{2})0s\Z", re.I)
INSIDE = rf"-?\s?¤?(?:[0-9]+(?:\.[0-9]+)?|{N}\s?/\s?{N})"
BRACKETS = re.compile(  # -(12), (1/2); not f(3)
    rf"(^|[-+/¤]\s?|\b(?:is|was)\s)[(\[{{]\s?({INSIDE})\s?[)\]}}](?![\w(\[{{])", re.X)
NO_MONEY = re.compile(r"(?<=[0-9}])¤(?=\s)|¤(?!\s?[-+]?\s?[0-9.(\[{])")  # a sign of LaTeX, or "5 $"
SPACED = re.compile(r"^\W*[1-9][0-9]{0,2}(?:(?: [0-9]{3}){2,}(?![0-9.,/])| [0-9]{3}(?=\W*$))")  # 1 000 000
PAIR = re.compile(r"^\W*[(\[{]\W*[0-9]+,[0-9]+\s?[)\]}]")  # (1,234) may be two numbers
MILLIONS = re.compile(r"\s?(?:[kmbt]|[bmt]n|mi?l|mm)(?!\w)", re.I)  # $1.2M, $5 m: metres else

# The same number once more: "72 (72 clips)", "48 + 24 = 72, so she sold 72"; not "5 apples and 5 pears".
AGAIN = re.compile(r"\([^()]*\)|,?\s(?:so|thus|therefore|hence|then|that is)\b.*", re.I)

# What may stand around quantities, which are written # here: words, brackets that hold words, units with powers.
HARMLESS = re.compile(
    r"""(?: [\s\#,.;:!"“”()\[\]%] | /(?=[A-Za-z]) | [—–]\s | ['‘’](?!\w)
          | (?:units?|in|ft|yd|mi|s|sec|inch(?:es)?|feet|foot|yards?|miles?|[a-z]*met(?:er|re)s?|[kcdm]?m)
            \s?(?:\^|\*\*)\s?\{?-?[1-3]\}?(?![\w^])
          | [kcdm]?m[23]\b | (?<=\bof\s)(?-i:[A-Z]{1,2}[0-9]\w*)
          | [^\W\d_]+(?:[-'’][^\W\d_]+)*+(?!\w) )*+""", re.I | re.X)
# Words in front of a number that they only name: page 12. So does a capital letter ("July 4"), but for these.
NAMED = phrases("""page, step, question, problem, part, chapter, section, line, figure, equation, exercise, example,
    option, choice, number, no, room, version, item, row, column, table, route, flight, bus, channel, size, type, phase,
    case, base, mod, log, ln, sin, cos, tan, sqrt""")
OPENERS = phrases("""so, thus, hence, therefore, then, exactly, only, just, total, sum, altogether, overall, finally,
    yes, and, also, answer, result""")
GIVERS = phrases("gave, give, gives, paid, pay, pays, owe, owes, cost, costs, left, leaves")  # "He gave Denny 8."
OPENED = str.maketrans(dict.fromkeys("([{\"“'‘", " "))
# What no number stands right beside: f(3), 4(3), 7 2, 4 July, some 4.
BEHIND = r"""(?:first|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|January|February|March|April|May|June|July
    |August|September|October|November|December)\b"""
# Words made of numbers: 5 sixteenths, 5 fives, 5 quadrillion, 10 to the sixth.
NUMERALS = r"""(?: \w*(?:four|fif|six|seven|eigh|nin|ten|eleven|twelf|teen|tie|hundred|thousand|illion)ths?
    | [a-z]+illions? | [a-z]+ty-seconds? | twos|threes|fours|fives|sixes|sevens|eights|nines|tens|elevens|twelves
    | (?:twen|thir|four?|fif|six|seven|eigh|nine)(?:ties|teens) )"""
# Adverbs right in front of a number that leave it as it is; not "reportedly 5".
SURE = """on|exact|precise|simp|actual|real|final|current|clear|dai|week|month|year|hour|total|additional|consequent
    |ultimate|definite|certain|indeed|original|initial|equal|correct|full|direct|fami|f|supp|app|rep|multip|re"""
BESIDE = re.compile(rf"""\w[(\[][^()\[\]]*\# | \w["“'‘]\# | \b(?:some|i)\s\# | \#['’(] | \#[\s,:/&-]*\#
                       | \#\s(?:and\b | (?:of\s)?{BEHIND})
                       | \#\s(?:\w+\s)?(?:max|maximum|minimum|tops|grand|odd|something|ballpark|tenfold|bps
                           |(?:doubl|tripl|quadrupl|halv)ed)\b(?!-)
                       | \#[\s-](?:to\sthe\s|[a-z]+\s)?{NUMERALS}\b | \#\sto\sthe\s(?:second|third)\b
                       """, re.X | re.I)
ADVERB = re.compile(rf"\b(?!(?:{SURE})ly\s)[a-z]+ly[ ]\#", re.X)
# What a number may be the amount of. Of others it is made: the reciprocal of 4, north of 4, a multiple of 4.
HEAD = re.compile(r"([^\W\d_]+) of #")
MEASURES = phrases("""total, totals, sum, amount, number, profit*, loss*, average, mean, median, cost*, price*, speed,
    rate, length, width, height, depth, area, volume, weight, mass, distance, balance, salary, income, age, score,
    perimeter, rest, change, value, count, tip, discount, bill, fee, budget, rent, combination, group*, team*, row*,
    set, size, result, temperature, angle, capacity, lifespan, revenue, debt, tax, time, duration, level*, portion""")
UNKNOWN = re.compile(  # of algebra: x, 5 n, times X; "a" and "I" are words, and some letters units
    r"""(?<![\w'’./])(?<!\#\s)[b-hj-z](?![\w'’.]) | \#\s(?![mgshlLaΩΩÅ]\b)[^\W\d_](?![\w'’])
      | \b(?:times|of|by|per)\s[B-HJ-Z]\b | /(?![hsmgl]\b)[A-Za-z]\b | \b[xyz]{2,}\b | [α-λν-ω]""", re.X)
# A word that changes the value, wherever it stands; or something that is still to be done to it.
CHANGED = phrases("""hundred*, thousand*, million*, billion*, trillion*, dozen*, score, gross, lakh*, crore*, mil, mill,
    mio, mn, bn, tn, halves, thirds, fourths, fifths, sixths, sevenths, eighths, ninths, tenths, twelfths, mod, modulo,
    remainder, repeating, recurring, infinity, infinite, but, plus, minus, negative, times a, and a, and an,
    lac, lacs, cr, mrd, thou, doz, myriad*, bil, noon, midnight, absolute value, in debt, in the red,
    in the hole, BC, BCE, hex, hexadecimal, binary, octal, to the power, divided by,
    multiplied by, over the, past, till, until""")


def value_of(side: str) -> Fraction | None:
    """The value of the quantities on one side, if they are the same and all the rest is harmless."""
    side = NO_MONEY.sub("", SPACED.sub(lambda run: run[0].replace(" ", ","), side.strip()))
    if "#" in side or PAIR.match(side):
        return None
    side = " ".join((BRACKETS.sub(_unwrapped, side) if "(" in side or "[" in side or "{" in side else side).split())
    values = []
    rest = QUANTITY.sub(lambda match: values.append(_value(match)) or "#", side)
    if not values or len({*values}) > 1 or not HARMLESS.fullmatch(rest) or _only_names(rest):
        return None
    if any(rest.count(a) != rest.count(b) for a, b in ("()", "[]")) or ('#"' in rest and rest.count('"') % 2):
        return None  # "(5" goes on, and 5" is a length
    if any(p.search(rest) for p in (BESIDE, UNKNOWN, CHANGED)):
        return None
    if "ly #" in rest and ADVERB.search(rest):
        return None
    if " of #" in rest and not all(MEASURES.fullmatch(word) for word in HEAD.findall(rest)):
        return None
    return values[0] if len(values) == 1 or AGAIN.sub("", rest).count("#") == 1 else None


def _only_names(rest: str) -> bool:
    """Does the first quantity (#) only name something? "page #", "on July #"; not "So #", "gave Denny #"."""
    words = rest.partition("#")[0].translate(OPENED).split()
    last = words[-1].rstrip(".") if words else ""
    named = last[:1].isupper() and not (OPENERS.fullmatch(last) or (len(words) > 1 and GIVERS.fullmatch(words[-2])))
    return bool(NAMED.fullmatch(last)) or (named and words[-1][-1] not in ",:;")


def _unwrapped(match: re.Match) -> str:
    """Of "-(-5)" the "+5", of "-(5)" the "-5"."""
    sign, inside = match[1].strip(), match[2].strip()
    return "+" + inside[1:].strip() if sign == inside[0] == "-" else match[1] + inside


def _value(match: re.Match) -> Fraction | None:
    """What a match of QUANTITY is worth; None if it divides by zero or is longer than anybody means."""
    if len(match[0]) > MOST_DIGITS or (match["money"] and not match["scale"] and MILLIONS.match(
            match.string, match.start("unit") if match["unit"] else match.end())):
        return None
    if match[0].isdigit():
        return Fraction(int(match[0]))  # as below, in less time
    a, b, whole, above, below = (re.sub("[,'’]", "", match[key] or "") for key in ("a", "b", "whole", "above", "below"))
    over, under = (above, below) if whole else (a, b or "1")
    if not Fraction(under) or (whole and int(above) >= int(below)):
        return None
    if match["unit"] in ("s", "S") and DECADE.search(match.string[: match.end()]):
        return None
    value = Fraction(whole or 0) + Fraction(over) / Fraction(under)
    value *= Fraction(10) ** int(match["power"] or match["e"] or 0) * SCALES.get((match["scale"] or "").lower(), 1)
    negative = match["sign"].strip().lower() in ("-", "minus", "negative")
    return -value if negative != bool(match["minus"]) else value


def spelt(value: Fraction | None) -> str | None:
    """One spelling for each number: 72, -0.5, 1/3."""
    if value is None or value.denominator == 1:
        return None if value is None else str(value.numerator)
    exact = Context(prec=3 * MOST_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return format(exact.normalize(), "f") if Fraction(exact) == value else str(value)
