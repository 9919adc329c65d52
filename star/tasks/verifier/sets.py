"""Which set of answers does a text arrive at? "The answer is 3, 5 and 2." and "2, 3, 5" are the same set.

What stands between commas, semicolons and "and" is compared as a number or as words; order and repeats do not count.
A list is read whole or not at all: "2, 3 or 5", "2, 3 and more" and "2, 3. Also 5." are none.
"""

import re
from functools import lru_cache

from star.tasks.verifier import normal, one_number
from star.tasks.verifier.expression import behind
from star.tasks.verifier.own import own, phrases, plain
from star.tasks.verifier.statement import arrive
from star.tasks.verifier.words import in_digits

MOST_CHARACTERS = 600  # of a list that is read at all
SPLIT = "\ue000"  # stands for what certainly separates, ";" and a new line: a statement would end there
BULLETS = re.compile(r"(?:^|\n)[ \t]*(?:[-*•+]|[0-9]{1,3}[.)])[ \t]+(?=\S)")
LIST_BELOW = re.compile(r"(:[*_ \t]*)\n+(?=[ \t]*(?:[-*•+]|[0-9]{1,3}[.)])[ \t]+\S)")
SEPARATED = re.compile(rf"\s*(?:{SPLIT}|,)\s*(?:(?:and|plus)\s+|&\s*)?|\s+(?:and|&)\s+", re.I)
GROUPED = re.compile(r"(?<![0-9,.])[0-9]{1,3}(?:,[0-9]{3})+(?!,?[0-9])")  # 1,234, or the set of 1 and 234?
# Not all of it is named, or not for sure.
OPEN = phrases("""or, nor, not, never, except, but, maybe, perhaps, possibly, probably, might, either, neither, unless,
    if, because, since, which, where, so, etc, more, others, such as, for example, e.g., including, include, includes,
    among, unknown, cannot, can't, about, approximately, at least, at most, between, up to, to, through, rest""")
OPEN_SIGNS = re.compile(
    r"[?…≈~<>≤≥±]|\.\.\.|\\(?:ldots|dots|cdots|le|ge|leq|geq|neq|approx)\b|\([^()]*\b(?:too|also|as well)\b", re.I)
IN_BRACKETS = re.compile(r"\\?\{(.*?)\\?\}|\[(.*)\]", re.S)
PAIR = re.compile(r"\(.*,.*\)", re.S)  # (3, 4) is a point: there the order counts
BOTH = re.compile(r"\s*(?:both|all of|all|each of)\s+", re.I)

# Behind a list: it goes on. "And 5.", "There is also green.", or a short line right below it.
MORE = phrases("""also, too, as well, another, additionally, in addition, plus, furthermore, moreover, besides, forgot,
    missed""")
NEXT_MEMBER = re.compile(
    r"(?:^|[.!;\n])(?:(?!\n)[\s*_])*+(?:(?:and|or|nor|as well as|then)\b|&|,)"
    r"|\A[*_ ]*\n[ \t]*\S+(?:[ \t]+\S+){0,2}[ \t]*(?:\n|\Z)", re.I)
NUMBERS = re.compile(r"-?[0-9][0-9.,/]*")


@lru_cache(maxsize=8)  # a verdict asks about the same text twice, to extract and to compare: it is read once
def members(text: str) -> str | None:
    """The members of the set that a text arrives at, sorted, in one spelling: "2, 3, red sea"."""
    text = _in_one_line(own(text))
    found = arrive(text, one_set, _bare)
    return None if found is None or _goes_on(behind(text), found) else found


def _goes_on(rest: str, found: str) -> bool:
    """Does what follows a list name more members? Of a list with numbers another number is one."""
    if MORE.search(rest) or NEXT_MEMBER.search(rest):
        return True
    named = set(found.split(", "))
    counted = any(map(NUMBERS.fullmatch, named))
    return counted and any(one_number(n[0].rstrip(".,/")) not in named for n in NUMBERS.finditer(in_digits(rest)))


def _bare(_: str, whole: str) -> str | None:
    """Of a text without a marker, if it is nothing but its answer: "{2, 3, 5}"."""
    return one_set(whole) if whole[:1] in ("{", "[") else None


def one_set(stated: str) -> str | None:
    """The members of a short statement, as `members` spells them: of "{3, 5, 2}" the "2, 3, 5"."""
    if len(stated) > MOST_CHARACTERS:
        return None
    text = plain(stated.replace("\\{", "{").replace("\\}", "}").replace(";", SPLIT)).strip(f" .:!{SPLIT}")
    inside = IN_BRACKETS.fullmatch(text)
    text = BOTH.sub("", (inside[1] or inside[2] or "") if inside else text, count=1) if text else ""
    if OPEN.search(text) or OPEN_SIGNS.search(text) or PAIR.fullmatch(text):
        return None
    sure = SPLIT in text or re.search(r",\s", text)
    if GROUPED.search(text):
        if not sure:
            return None
        text = GROUPED.sub(lambda m: m[0].replace(",", ""), text)
    return together(SEPARATED.split(text))


def together(parts: list[str]) -> str | None:
    """One spelling of some members; None where one of them has no words, or half a pair of brackets."""
    if any(part.count(opening) != part.count(closing) for part in parts for opening, closing in ("()", "[]", "{}")):
        return None
    found = {one_number(part) or normal(part) for part in parts}
    return None if not found or "" in found else ", ".join(sorted(found))


def _in_one_line(text: str) -> str:
    """A list below "The answer is:" behind it, and semicolons as SPLIT, so that the statement goes on."""
    text = text.replace(SPLIT, " ").replace("İ", "I")
    for below in list(LIST_BELOW.finditer(text))[-1:]:  # the last one
        listed, *rest = re.split(r"\n(?![ \t]*(?:[-*•+]|[0-9]{1,3}[.)])[ \t])", text[below.end() :], maxsplit=1)
        joined = SPLIT.join(filter(None, map(str.strip, BULLETS.split(listed))))
        text = text[: below.start()] + below[1] + " " + "\n".join([joined, *rest])
    return re.sub(r";(?=\s*\S)", SPLIT, text)
