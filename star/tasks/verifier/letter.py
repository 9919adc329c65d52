"""Which choice does a text arrive at? Its letter, lower case: "b" for "The answer is (B) park.".

None where no letter is named, or several are. The words of the choices it does not know: star/tasks/questions compares
them with the letter.
"""

import re
from functools import lru_cache

from star.tasks.verifier.own import phrases, plain
from star.tasks.verifier.statement import (
    DOUBTS,
    HEDGE_SIGNS,
    HEDGES,
    MOST_STATED,
    NO_CONCLUSION,
    PARTS,
    RATHER,
    REASON,
    TALKED_ABOUT,
    TENTATIVE,
    arrive,
    without_reason,
)

IN_BRACKETS = re.compile(r"[(\[]\s*([A-Za-z])\s*[)\]]")
FIRST_LETTER = re.compile(  # "b", "B.", "option b) a dog"; not "C++", "B flat"
    r"(?:(?:option|choice|answer|letter)\s+)?[(\[]?([A-Za-z])"
    r"(?:\s*([.):\],])(?=\s|$|[A-Za-z])|(?=\s|$))(?!\s(?:flat|sharp|major|minor)\b)", re.I)
OTHER_LETTER = re.compile(r"(?<![\w'’])([B-HJ-Z])(?![\w'’])")  # not A and I, which are words
NOT_ONE = re.compile(r"\b(?:and|both|all|none)\b\s*$")
SINGLED_OUT = phrases("so, therefore, thus, hence, only, leaves, leaving, left with, must be, best, fits, matches")
CHOSEN = phrases("chose, chosen, chooses, picked, picks, selected, answered")  # by somebody
# After "(b)" stands the text of a choice, where "not" and "or" do no harm: "(b) not working".
BEGINS = re.compile(rf"[(\[]?[A-Za-z][)\].:](?!\s*{TALKED_ABOUT.pattern})")
LISTED = re.compile(r"^[ \t*#(\[-]*[A-Za-z][)\].:]", re.M)  # a line of choices


@lru_cache(maxsize=8)  # a verdict asks about the same text twice, to extract and to compare: it is read once
def letter(text: str, letters: str) -> str | None:
    """The one letter of `letters` (lower case) that a text arrives at: "b" for "The answer is (B) park."."""
    return arrive(text, lambda stated: one_letter(stated, letters),
                  lambda *last: _last_letter(*last, letters), "choice")


def one_letter(statement: str, letters: str) -> str | None:
    """The letter of a short statement that names exactly one: "(b)", "B.", "option b) a dog"; not the a of "a dog"."""
    if len(statement) > 2 * MOST_STATED:
        return None
    text = re.sub(r"[\"'“”‘’]([A-Za-z])[\"'“”‘’]", r"(\1)", plain(statement))
    text = RATHER.sub("", without_reason(text)).strip(" \"'“”")
    named = {c.lower() for c in IN_BRACKETS.findall(text)}
    if named:
        rest = IN_BRACKETS.sub(" ", text)
    else:
        first = FIRST_LETTER.match(text)
        if not first or (first[1].lower() in "ai" and not first[2] and text[first.end() :].strip()):
            return None
        named, rest = {first[1].lower()}, text[first.end() :]
    named |= {c.lower() for c in OTHER_LETTER.findall(rest)}
    hedges = TENTATIVE if BEGINS.match(text) else HEDGES
    if len(named) != 1 or any(p.search(rest) for p in (hedges, HEDGE_SIGNS, NOT_ONE)):
        return None
    only = named.pop()
    return only if only in letters else None


def _last_letter(sentence: str, whole: str, letters: str) -> str | None:
    """Of a last sentence: a bare choice ("B. park"), or the only one in brackets ("That leaves (b)")."""
    text = plain(whole if len(whole) < 100 and "\n" not in whole else sentence).rstrip(". ")
    named = IN_BRACKETS.search(text) or FIRST_LETTER.match(text)
    if named is None or any(p.search(text, 0, named.start()) for p in (NO_CONCLUSION, DOUBTS, CHOSEN, PARTS)):
        return None
    begins = LISTED.match(text)
    listed = begins and len(LISTED.findall(whole, max(0, len(whole) - 1000))) > 1
    if listed or len(set(IN_BRACKETS.findall(text))) > 3:
        return None  # the choices, repeated
    if not begins and len(named[0]) == 1 != len(text):
        return None  # "E equals mc^2"; but "option b" is fine
    if TALKED_ABOUT.search(REASON.sub("", text), named.end()) and not SINGLED_OUT.search(text, 0, named.start()):
        return None
    return one_letter(text, letters)
