"""What answer does a text arrive at? The filter of Algorithm 1 stands on this file: what it lets through is trained on.

    a text -> what is not the model's answer goes (a next question that it made up, calculator notes)
           -> the statement of the answer: "The answer is ...", "#### ...", "\\boxed{...}", "... is the answer"
              or, without any, the last sentence
           -> one number, one letter, or a phrase, in one spelling; None if there is none, or not exactly one

A hedged, negated, retracted or contradicted answer is none: a right rationale lost costs a sample, a wrong one kept
costs the model. Every function takes any text and raises nothing. It does not know the question, and checks no steps.
"""

import re
from collections import deque
from collections.abc import Callable, Iterator
from decimal import Context, Decimal
from fractions import Fraction

MOST_DIGITS = 60  # of a number that is read at all
MOST_SAID = 300  # characters of a statement
MOST_MARKS = 8  # statements that are looked at, the last ones
_NEXT = [re.compile(pattern, re.I) for pattern in (  # where the model goes on with another question or another's turn
    r"\n[ \t#*]*(?:Q|Question|Problem|Exercise|Instruction|Input|Human|User)(?:[ \t]*[0-9]+)?[ \t]*[:.]", r"\sQ:",
    r"<\|(?:im_end|im_start|endoftext|end_of_text|eot_id)\|>", r"</s>")]
_FAREWELL = re.compile(  # chatter behind an answer
    r"(?:\s|^)(?:I\s+hope\b|hope\s+(?:this|that|it)\b|let\s+me\s+know\b|feel\s+free\b|is\s+there\s+anything\b|"
    r"please\s+let\b|(?:if\s+)?you\s+have\s+any\b|good\s+luck\b)[^.!?]*[.!?]?\s*$", re.I)
_REFUSED = re.compile(
    r"\b(?:can't|cannot|can\s+not|unable|not\s+enough|insufficient|sorry|don't\s+know|do\s+not\s+know|not\s+sure|no\s+idea|"
    r"doesn't\s+say|does\s+not\s+say|impossible|unclear)\b", re.I)
_NOTES = re.compile(r"<<[^<>\n]{0,200}>>|[\u200b-\u200d\u2060\ufeff]")
_WORDS = (" is correct", " is right", "answer", "ans:", "ans =", "ans is", "choice", "option", "choose", "pick",
          "select", "go with", "####", "boxed", "fbox",
          "it is", "it must", "it should")  # one of them stands in every match of _MARK
_IS = r"(?:\s+(?:is|was|are|becomes|equals|would\s+be|should\s+be|must\s+be|will\s+be|comes\s+to)\b\s*[:=]?|\s*[:=]+)"
_MARK = re.compile(
    rf"(?P<answer>\b(?P<weight>final\s+|correct\s+|right\s+|best\s+)*(?:answers?|ans)\b"
    rf"(?P<to>\s+(?:to|for|of)\s[^.\n:=]{{1,80}}?)?"
    rf"(?:\*\*|__)?{_IS})"
    r"|(?P<heading>(?:^|\n)[#*_ \t]*(?:final\s+)?answers?[*_: \t]*\n(?!\s*(?:is|was)\b))"
    r"|(?P<pick>\b(?:(?:correct|right|best)\s+(?:choice|option)\s+(?:is|would\s+be)\b\s*:?"
    r"|(?:choose|pick|select|go\s+with)\s+(?=(?:option|choice|answer)?\s*[(\[]?[A-Za-z]\b)))"
    r"|(?P<hashes>\#{4,}[ \t]*(?=[^\s#]))|(?P<tag><answer>)"
    r"|(?P<it>\bit\s+(?:is|must\s+be|should\s+be)\s+(?=\(?[B-H]\b))"
    r"|(?P<boxed>\\(?:boxed|fbox)\s*\{)"
    r"|(?P<behind>\s+(?:is|was|must\s+be|should\s+be)\s+(?P<no>not\s+)?(?:the|our|my)\s+"
    r"(?:final\s+|correct\s+|right\s+|best\s+)*(?:answer|choice|option)\b"
    r"|\s+is\s+(?:correct|right)\b(?!\s+(?:that|to|about|in|on|for|or|next|there|after|before|now)))",
    re.I)
_END = re.compile(r"[.!?;](?!(?<=\bno\.)\s[0-9])(?=[\s\"')*\]]|$|[A-Za-z])|\n|</answer>", re.I)
_BREAK = re.compile(r"[.!?;](?=[\s*\"')])|\n")
_DOUBTED = re.compile(  # before a marker, in its sentence: it is not the text's own answer
    r"\b(?:if|whether|suppos\w+|assum\w+|says?|said|thinks|thought|claims?|claimed|guess\w*|maybe|perhaps|possibly|"
    r"might|could|unless|until|not|n't|doubt|pretend\w*|imagine|hopefully)\b", re.I)
_HEDGE = re.compile(
    r"\b(?:or|either|neither|nor|between|maybe|perhaps|probably|possibly|likely|might|approximately|approx|about|around|"
    r"roughly|nearly|almost|at\s+least|at\s+most|(?:more|less|greater|fewer|higher|lower|bigger|smaller|other|rather)\s+than|"
    r"up\s+to|over|under|above|below|unknown|undetermined|undefined|unclear|uncertain|cannot|can't|unsure|depends|"
    r"impossible|not|isn't|wasn't|n't|no\s+longer|wrong|incorrect|except|dozens?|if|unless|"
    r"ranges?|(?:any|every)thing\s+but|all\s+but)\b"
    r"|[~≈?≤≥<>±≠√π]|!=|\\(?:neq?|approx|sim|geq?|leq?|pm|pi|sqrt)\b", re.I)
_OTHER = re.compile(  # a statement that holds a number, but not as its answer
    r"\b(?:half|third|quarter|twice|thrice|double|triple|squared?|cubed?|root|pi|"
    r"times\s+(?:the|as|that|more|my|his|her|its)|"
    r"page|step|question|problem|part|chapter|section|line|figure|equation|exercise|example|given|found|see|"
    r"(?:option|choice|number|no)\s*\.?\s*(?=[0-9]))\b|[0-9][a-z]\s*=|\b[a-z]\s*=[^=]*,\s*[a-z]\s*=|"
    r"\b[a-z]\s*=.*\band\b.*=", re.I)
_RETRACTED = re.compile(
    r"\b(?:wait|actually|hmm+|oops|sorry|correction|mistaken?|wrong|incorrect|"
    r"not\s+(?:right|correct|sure|true|certain|the\s+answer)|"
    r"unsure|kidding|joking|don't\s+know|do\s+not\s+know|can't\s+be|cannot\s+be|let\s+me\s+(?:re|check|double)|"
    r"on\s+second\s+thought|"
    r"isn't\s+(?:right|correct)|disregard|just\s+guess\w*|a\s+guess|never\s+mind|scratch\s+that)\b|(?:^|[.!?]\s+)"
    r"no\b[,.!]", re.I)
_REASON = re.compile(r"[\s,;(—–-]{1,4}(?:because|since|as|which|where|given\s+that|due\s+to)\b.*", re.I | re.S)
_RATHER = re.compile(
    r",?\s*(?:and|but|rather\s+than|instead\s+of|)\s*\bnot\s+[^,.;]*$|,?\s+(?:rather\s+than|instead\s+of)\s.*",
                     re.I)
_PLAIN = [(re.compile(pattern), new) for pattern, new in (
    (r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r" (\1)/(\2)"), (r"\\[dtc]?frac\s*([0-9])\s*([0-9])", r" \1/\2"),
    (r"\s*\^\s*\{?\s*\\circ\s*\}?", " degrees"), (r"\\[,!;:]", ""), (r"[²³]", "^2"),
    (r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\(?:left|right|displaystyle|quad|qquad)(?![A-Za-z])|\\[()\[\]]", " "), (r"\\times|\\cdot|×", " x "),
    (r"~(?=\\)|(?<=[0-9}])~(?=[\sA-Za-z\\])", " "), (r"\\%", "%"), (r"\\\$|[$€£¥₹]", ""), (r"\{,\}", ","),
    (r"\(([0-9]+)\)/\(([0-9]+)\)", r"\1/\2"),
    (r"[*_`]{1,3}(?=\S)|(?<=\S)[*_`]{1,3}", ""), (r"[−‒–—](?=\s?[0-9.])", "-"), (r"[\u00a0\u2009\u202f]", " "),
    (r"°", " degrees "),
)]
_MARKUP = re.compile(r"[^\w\s.,!?;:%'\"/=+-]|[_²³]")
_HALVES = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅛": "1/8", "⅜": "3/8"}
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    r"(?P<sign>(?:\b(?:minus|negative)\s+|(?<![0-9A-Za-z)\]%])-\s?))?"
    rf"(?:(?P<whole>[0-9]+)\s+(?:and\s+)?(?P<above>[0-9]+)/(?P<below>[0-9]+)|(?P<a>{_DIGITS})(?:\s?/\s?(?P<b>{_DIGITS}))?)"
    r"(?:\s*[x*]\s*10\s*(?:\^|\*\*)\s*\{?(?P<power>-?[0-9]{1,3})(?![0-9])\}?|[eE](?P<e>[+-]?[0-9]{1,3})(?![0-9]))?"
    r"(?:\s+(?P<scale>thousand|million|billion|trillion)s?\b)?", re.I)
_SIMPLE = re.compile(r"\s*\$?([0-9]{1,15}|[0-9]{1,3}(?:,[0-9]{3}){1,4})\s*\Z")  # most answers are
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ASIDE = re.compile(  # behind a number: what it is made of, or what it is for
    r"(?<=[0-9A-Za-z%])\s*\([^()]*[0-9][^()]*\)|(?<=[0-9A-Za-z%])\s+(?:over|in|for|during|after|within|across)\s+"
    r"(?:the\s+|all\s+)?"
    r"[0-9]+\s+[a-z]+\s*$", re.I)
_UNITS = re.compile(r"(?:[kcm]?m|mi|ft|in|yd|[km]?g|lbs?|oz|m?l|h|hrs?|mins?|s|secs?|mph|kmh|kph|"
    r"kwh|cents?|c|f)(?:\b|[23])", re.I)
_CONCLUDES = re.compile(
    r"[\s*]*(?:so|therefore|thus|hence|in\s+total|altogether|finally|in\s+all|overall|total)\b", re.I)
_LABEL = re.compile(  # in front of a number that only names something, in a sentence without a marker
    r"(?:\b(?:step|page|question|problem|part|chapter|exercise|line|figure|equation|section|option|choice|example|no|"
    r"number|day|year|grade|age|room|level|round|in|on|at)\.?\s*|#)$", re.I)
_NO_CONCLUSION = re.compile(
    r"\b(?:let'?s|let|think|suppose|assume|if|first|firstly|next|need|needs|must|find|how|what|start(?:s|ed)?|begin|began|given|"
    r"originally|initially|would|should|try|consider|know|remember|note|recall|guess|don't|question|problem|original|"
    r"divide|multiply|subtract|add|calculate|compute|each|per|every\s+one|wait|hmm+|"
    r"rule|ruled|eliminate|exclude)\b", re.I)


def own(text: str) -> str:
    """The part of a text that answers the question asked: up to a next question that the model made up."""
    text = text.strip()
    for pattern, sign in zip(_NEXT, "\n:<<", strict=True):
        cut = pattern.search(text) if sign in text else None
        text = text[: cut.start()].rstrip() if cut else text
    for _ in range(3):
        farewell = _FAREWELL.search(text, max(0, len(text) - 200))
        if farewell is None or not text[: farewell.start()].strip():
            break
        text = text[: farewell.start()].rstrip()
    return _NOTES.sub("", text) if "<<" in text or not text.isascii() else text


def number(text: str) -> str | None:
    """The one number that a text arrives at: "1,234.50 dollars" and "\\boxed{1234.5}" are both "1234.5"."""
    return _arrive(text, one_number, _last_number)


def letter(text: str, letters: str) -> str | None:
    """The one letter of `letters` (lower case) that a text arrives at, in or out of brackets."""
    return _arrive(text, lambda statement: one_letter(statement, letters), lambda *last: _last_letter(*last, letters))


def phrase(text: str) -> str | None:
    """The words that a text arrives at, normalised (`normal`); a bare text of a line counts as such."""
    return _arrive(text, one_phrase, lambda *_: None) or _bare_phrase(own(text))


def _arrive(text: str, read: Callable[[str], str | None], read_last: Callable[[str, str], str | None]) -> str | None:
    """The answer in the last statement of one, if nothing takes it back or contradicts it; else the last sentence's."""
    text = own(text)
    last_marks = deque(_marks(text), maxlen=MOST_MARKS)
    found = [s for s in (_statement(text, mark) for mark in last_marks) if s is not None]
    if not found:
        last = _last_sentence(text)
        refused = _REFUSED.search(text, max(0, len(text) - 400)) or next(_marks(last), None)
        return None if refused else read_last(last, text)
    inner = [*found[1:], (len(text) + 1, 0, False, "")]  # a statement that holds the next one says nothing itself
    found = [s for s, after in zip(found, inner, strict=True) if after[0] >= s[1]]
    start, end, final, said = found[-1]
    value = read(said)
    if value is None or _RETRACTED.search(text, end):
        return None
    for before, _, strong, other in found[:-1]:
        if strong >= final and read(other) not in (None, value) and not _RETRACTED.search(text, before, start + 1):
            return None  # two answers, and no word on which of them holds
    return value


def _marks(text: str) -> Iterator[re.Match]:
    """Where answers are stated; looks only from a little before the first word that could state one."""
    lower = text.lower()
    places = [at for at in map(lower.find, _WORDS) if at >= 0]
    return _MARK.finditer(text, max(0, min(places) - 60)) if places else iter(())


def _statement(text: str, mark: re.Match) -> tuple[int, int, bool, str] | None:
    """(where it starts, where it ends, is it called final, what it says) behind or before a marker of an answer."""
    near = max(0, mark.start() - MOST_SAID)
    begin = max(near - 1, *(text.rfind(e, near, mark.start()) for e in ("\n", ". ", "! ", "? "))) + 1
    if mark["boxed"]:
        depth, at = 1, mark.end()
        while at < min(len(text), mark.end() + MOST_SAID) and depth:
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
        return None if depth else (mark.start(), at, True, text[mark.end() : at - 1])
    if mark["behind"]:
        said = "" if mark["no"] or _DOUBTED.search(text, begin, mark.start()) else text[begin : mark.start()]
        said = re.sub(r"^\W*(?:so|thus|hence|therefore|then|and)\b,?|^[^0-9]*,\s", "", said, flags=re.I)
        return mark.start(), mark.end(), False, said
    if mark["hashes"]:
        end = text.find("\n", mark.end(), mark.end() + MOST_SAID)
        end = min(len(text), mark.end() + MOST_SAID) if end < 0 else end
        return mark.start(), end, True, text[mark.end() : end].rstrip("# ")
    if _DOUBTED.search(text, begin, mark.start()):
        return None
    rest = text[mark.end() : mark.end() + MOST_SAID]
    if re.match(r"[\s*]*1[.)]\s[^\n]*\n\s*2[.)]\s", rest):
        return mark.start(), mark.end(), True, ""  # a list of answers
    start = mark.end() + len(re.match(r"[\s*_]*", rest)[0])  # it may stand a line below
    end = _END.search(text, start, start + MOST_SAID)
    stop = end.start() + (end[0] in "?") if end else min(len(text), start + MOST_SAID)
    return mark.start(), stop, bool(mark["weight"]), text[start:stop]


def _last_sentence(text: str) -> str:
    text = text.rstrip(" \t\r\n*_`$")
    ends = [m.end() for m in _BREAK.finditer(text, max(0, len(text) - 400), len(text) - 1)]
    return text[ends[-1] :] if ends else text[-400:]


def plain(text: str) -> str:
    """A statement without markdown, LaTeX and currency signs."""
    for half, spelt in _HALVES.items():
        if half in text:
            text = text.replace(half, " " + spelt)
    if _MARKUP.search(text):
        for pattern, new in _PLAIN:
            text = pattern.sub(new, text)
    return " ".join(text.split())


def one_number(statement: str) -> str | None:
    """The number of a short statement that holds exactly one, however often: "48 + 24 = $72 (72 clips)" is "72"."""
    simple = _SIMPLE.match(statement)
    if simple:
        return str(int(simple[1].replace(",", "")))
    text = _RATHER.sub("", _instead(_REASON.sub("", plain(statement))))
    outside = _ASIDE.sub("", text)
    text = outside if _NUMBER.search(outside) else text
    if _HEDGE.search(text) or _OTHER.search(text):
        return None
    text = text.rpartition("=")[2]
    values = set()
    for match in _NUMBER.finditer(text):
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 2]
        if before and (before.isalpha() or before in "^_"):
            continue  # m2, CO2, Q7: no number
        if before and (before.isdigit() or before in ".,:/#"):
            return None
        if after[:1] and (after[0].isalnum() or after[0] in "^:/_'"):
            if not _UNITS.match(text, match.end()) and not re.match(r"/[A-Za-z]", after):
                return None  # 72nd, 72x, 7:30
        elif after[:1] in (",", ".") and after[1:].isdigit():
            return None  # 1,23
        values.add(_value(match))
    if len(values) != 1 or any(c.isdigit() and not "0" <= c <= "9" for c in text):
        return None
    return _spelt(values.pop())


def _instead(text: str) -> str:
    """Of "not 72 but 70" the 70."""
    return re.sub(r"^not\s.*?\bbut\s+(?:rather\s+)?", "", text, flags=re.I)


def _value(match: re.Match) -> Fraction | None:
    """What a match of _NUMBER is worth; None if it divides by zero or is longer than anybody means."""
    if len(match[0]) > MOST_DIGITS:
        return None
    names = ("a", "b", "whole", "above", "below")
    a, b, whole, above, below = (match[k].replace(",", "") if match[k] else None for k in names)
    parts = (above, below) if whole else (a, b or "1")
    if not Fraction(parts[1]):
        return None
    value = Fraction(whole or 0) + Fraction(parts[0]) / Fraction(parts[1])
    value *= Fraction(10) ** int(match["power"] or match["e"] or 0) * _SCALES.get((match["scale"] or "").lower(), 1)
    return -value if match["sign"] else value


def _spelt(value: Fraction | None) -> str | None:
    """One spelling for each number: 72, -0.5, 1/3."""
    if value is None or value.denominator == 1:
        return None if value is None else str(value.numerator)
    exact = Context(prec=3 * MOST_DIGITS).divide(Decimal(value.numerator), Decimal(value.denominator))
    return format(exact.normalize(), "f") if Fraction(exact) == value else str(value)


def _last_number(sentence: str, _: str) -> str | None:
    """The number of a last sentence that concludes: "So she makes $18 a day.", "9 * 2 = 18"."""
    text = plain(sentence).rstrip(".! ")
    text = re.sub(r"^\W*step\s+[0-9]+\s*[:.)]\s*", "", text, flags=re.I)
    match, concludes = _NUMBER.search(text), _CONCLUDES.match(text)
    if match is None or (_LABEL.search(text[: match.start()]) and "=" not in text and not concludes):
        return None
    if not concludes and (_NO_CONCLUSION.search(text) or (":" in text[: match.start()] and "=" not in text)):
        return None
    return one_number(text)


def one_letter(statement: str, letters: str) -> str | None:
    """The letter of a short statement that names exactly one: "(b)", "B.", "option b) a dog"; not that of "a dog"."""
    text = re.sub(r"[\"'“”‘’]([A-Za-z])[\"'“”‘’]", r"\1", plain(statement))
    text = _RATHER.sub("", _REASON.sub("", text)).strip(" \"'“”")
    any_bracket = re.findall(r"[(\[]\s*([A-Za-z])\s*[)\]]", text)
    if any_bracket:
        found = {c.lower() for c in any_bracket}
        rest = re.sub(r"[(\[]\s*[A-Za-z]\s*[)\]]", " ", text)
    else:
        first = re.match(r"(?:(?:option|choice|answer|letter)\s+)?[(\[]?"
                         r"([A-Za-z])(?:\s*([.):\],])(?=\s|$|[A-Za-z])|(?=\s|$))", text, re.I)
        if not first or (first[1].lower() in "ai" and not first[2] and text[first.end() :].strip()):
            return None
        found, rest = {first[1].lower()}, text[first.end() :]
    others = re.findall(r"(?<![\w'])([B-HJ-Z])(?![\w'])", rest)
    more = len(found | {c.lower() for c in others}) != 1 or re.search(r"\b(?:and|both|all|none)\b\s*$", rest)
    if more or _HEDGE.search(rest):
        return None
    only = found.pop()
    return only if only in letters else None


def _last_letter(sentence: str, whole: str, letters: str) -> str | None:
    """Of a last sentence: a bare choice, or the only one in brackets; one that merely begins a sentence is none."""
    text = plain(whole if len(whole) < 100 and "\n" not in whole else sentence).rstrip(". ")
    bare = re.match(r"(?:(?:option|choice)\s+)?[(\[]?[A-Za-z][)\].:]?(?:\s|$)", text, re.I)
    bracket = re.search(r"[(\[][A-Za-z][)\]]", text)
    marked = re.match(r"[(\[]?[A-Za-z][)\].:]\s|(?:option|choice)\s", text, re.I)
    if not bracket and not (bare and (len(text) <= 3 or marked)):
        return None
    return None if _NO_CONCLUSION.search(text) or _HEDGE.search(text) else one_letter(text, letters)


def normal(text: str) -> str:
    """A phrase as it is compared: lower case, without outer quotes, punctuation and article, words one space apart."""
    text = plain(text).casefold().replace("’", "'").strip(" .,:;!\"'“”‘’()[]")
    return re.sub(r"^(?:the|an?)\s+(?=\S)", "", text)


def one_phrase(statement: str) -> str | None:
    """The normalised words of a statement; of "yes, the coin is ..." only the yes, unless the rest disagrees."""
    text = plain(statement)
    if "?" in text:
        return None
    text = normal(_instead(_REASON.sub("", text)))
    clear = re.match(r"(yes|no|true|false)\s*[,;:—-]\s*(.*)", text)
    if clear:
        opposite = {"yes": "no", "no": "yes", "true": "false", "false": "true"}[clear[1]]
        return None if re.search(rf"\b(?:{opposite}|but|however|or|maybe)\b", clear[2]) else clear[1]
    return text or None


def _bare_phrase(text: str) -> str | None:
    """A text that is nothing but its answer: one line of a few words, with no marker."""
    text = plain(text) if len(text) < MOST_SAID and "\n" not in text.strip() else ""
    if re.match(r"(?:yes|no|true|false)[,.;:]\s", text, re.I) and not re.search(r"[.!?]\s", text[5:]):
        return None if _RETRACTED.search(text, 4) or _REFUSED.search(text) else one_phrase(text)
    return one_phrase(text) if 0 < len(text.split()) <= 4 and not _MARK.search(text) else None
