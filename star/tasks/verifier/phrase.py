"""Which words does a text arrive at? Normalised: "the Red Sea." and "red sea" are the same answer, "seas" is another.

Synonyms and spelling mistakes it does not know. Of "yes, the coin is heads up" only the "yes" counts.
"""

import re
import unicodedata
from functools import lru_cache

from star.tasks.verifier.own import plain
from star.tasks.verifier.retraction import retracted
from star.tasks.verifier.statement import MOST_STATED, REFUSED, arrive, concluded, statements, without_reason

OPPOSITE = {"yes": "no", "no": "yes", "true": "false", "false": "true"}
CLEAR = re.compile(r"(yes|no|true|false)(?:\s*[,;:—-]|\.(?=\s+[a-z'’]{2}))\s*(.*)")  # "no. 7" is a number
BARE_CLEAR = re.compile(r"(?:yes|no|true|false)[,.;:]\s(?!.*[.!?]\s)", re.I)
RATHER_WORDS = re.compile(r",\s*(?:and\s+)?not\s.*|,?\s+(?:rather\s+than|instead\s+of)\s.*", re.I)  # "Rome, not Paris"


@lru_cache(maxsize=8)  # a verdict asks about the same text twice, to extract and to compare: it is read once
def phrase(text: str) -> str | None:
    """The words that a text arrives at, normalised (`normal`); a bare text of one line counts as such."""
    return arrive(text, one_phrase, lambda *_: None, "text") or _bare_phrase(concluded(text))


def normal(text: str) -> str:
    """A phrase as it is compared: lower case, no outer quotes, punctuation and article, one space between words."""
    text = plain(unicodedata.normalize("NFC", text)).casefold().replace("’", "'").strip(" .,:;!\"'“”‘’()[]")
    return re.sub(r"^(?:the|an?)\s+(?=\S)", "", text)


def one_phrase(statement: str) -> str | None:
    """The normalised words of a statement; of "yes, the coin is ..." only the yes, unless the rest disagrees."""
    text = plain(statement)
    if "?" in text or len(statement) > 2 * MOST_STATED:
        return None
    text = normal(RATHER_WORDS.sub("", without_reason(text)))
    clear = CLEAR.match(text)
    if clear:
        disagrees = re.search(rf"\b(?:{OPPOSITE[clear[1]]}|but|however|or|maybe)\b", clear[2])
        return None if disagrees else clear[1]
    return None if ";" in text else text or None  # "A; B" is two


def _bare_phrase(text: str) -> str | None:
    """A text that is nothing but its answer: one line of a few words without a marker, or "Yes, as it is heads up."."""
    text = plain(text) if len(text) < MOST_STATED and "\n" not in text.strip() else ""
    if BARE_CLEAR.match(text):
        return None if retracted(text, 4) or REFUSED.search(text) else one_phrase(text)
    return one_phrase(text) if 0 < len(text.split()) <= 4 and not statements(text, "text") else None
