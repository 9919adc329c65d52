"""Numbers in words: in_digits("one hundred and five, twice") is "105, twice". Up to 999 million.

What it takes for a number but cannot read ("nineteen eighty", "two thirds") becomes a "?", which nobody reads.
"""

import re

SMALLEST = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
            "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen")
ONES = {word: value for value, word in enumerate(SMALLEST)}
TENS = {"twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "seventy": 70, "eighty": 80, "ninety": 90}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NAMES = rf"(?:{'|'.join([*ONES, *TENS])})"
SMALL = rf"{NAMES}\b"
GREAT = r"(?:hundred|thousand|million)\b"
WORDS = re.compile(
    rf"(?<![\w'’])(?=[aefnostzAEFNOSTZ])(?:{SMALL}|an?\s+{GREAT})(?:(?:-|\s+(?:and\s+)?)(?:{SMALL}|{GREAT}))*+", re.I)
FRACTION = re.compile(  # "two thirds", "three and five eighths"
    r"[\s-]+(?:hal(?:f|ves)|quarters?|(?:thir|four|fif|six|seven|eigh|nin|ten|eleven|twelf|hundred|thousand)(?:d|th)s?)\b",
    re.I)
AND_A_HALF = re.compile(r"(?<=[0-9]) and (?:a|one|1) (half|quarter)\b", re.I)
HALF = re.compile(r"\s+and\s+(?:a|one|1)\s+(?:half|quarter)\b", re.I)
PARTS = {"half": 2, "quarter": 4}
ADJACENT = re.compile(r"[0-9.,]\Z|\w-\Z")
GOES_ON = re.compile(rf"[.,]?[0-9]|(?:-|\s+(?:and\s+)?){NAMES}\w", re.I)
# The "one" that is no number: "each one", "in one day", "one of them".
BEFORE_ONE = re.compile(r"\b(?:in|per|each|every|the|this|that|any|no|than|for|only|another|which)\s+$", re.I)
BEHIND_ONE = re.compile(r"\s+(?:of|who|that|another|day)\b", re.I)


def in_digits(text: str) -> str:
    """A text with its numbers in words as digits."""
    text = WORDS.sub(_digits, text)
    return AND_A_HALF.sub(lambda half: f" and 1/{PARTS[half[1].lower()]}", text) if " and " in text else text


def _digits(match: re.Match) -> str:
    text, start, end = match.string, match.start(), match.end()
    if ADJACENT.search(text, max(0, start - 2), start) or GOES_ON.match(text, end):
        return "?"  # "4,two", "x-five", "two.5", "twenty ninth"
    words = re.findall(r"[a-z]+", match[0].lower())
    if words[-1] in SCALES and HALF.match(text, end):
        return "?"  # "a million and a half": of what?
    if words == ["one"] and (BEHIND_ONE.match(text, end)
                             or BEFORE_ONE.search(text, max(0, start - 9), start)):
        return match[0]
    if text[end : end + 1] == "-" and not FRACTION.match(text, end):
        return match[0]  # "a five-year-old"
    value = None if FRACTION.match(text, end) else value_of(words)
    return "?" if value is None else str(value)


def value_of(words: list[str]) -> int | None:
    """105 of ["one", "hundred", "and", "five"]; None of ["nineteen", "eighty"], which is two numbers."""
    total, part, least, last = 0, 0, 10**9, ""  # part: what the next scale multiplies; least: the scale before it
    for word in words:
        if word in ("hundred", "thousand", "million"):
            scale = SCALES[word]
            if not 0 < part < min(scale, 100 if word == "hundred" else 1000) or scale >= least:
                return None
            if word == "hundred":
                part *= scale
            else:
                total, part, least = total + part * scale, 0, scale
        elif word in ("a", "an"):
            part = 1
        elif word != "and":
            value = ONES.get(word) or TENS.get(word, 0)
            room = 10 if last in TENS else 100  # twenty-one, one hundred and five
            if part % room or (last in ONES and last) or (last in TENS and value > 9) or (last and not value):
                return None
            part += value
        elif last not in SCALES:
            return None
        last = word
    return total + part
