"""Questions with choices, as files have them: how the choices are written down, and which of them an answer names.

    choices   ["red", "blue"]   ["A)21", "B)21.5"]   {"label": ["A", "B"], "text": ["red", "blue"]}   "(A) red (B) blue"
              [{"label": "A", "text": "red"}, ...]   {"A": "red", "B": "blue"}   {"red": 0, "blue": 1}   fields: A+B+C+D
    answer    a label ("B"), the name of a field, a text ("blue"), a number that counts them from 0 or from 1, scores
              ([0, 1])

Which of these an answer is, one record cannot tell: the 1 may be the first or the second choice. All answers of a file
are read in the one way that fits every one of them.
"""

import ast
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from star.problem import Problem
from star.tasks import records
from star.tasks.records import Record

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WAYS = ("label", "field", "text", "from 0", "from 1")  # in which an answer names a choice; an earlier one goes first
LABEL, TEXT = ("label", "key", "id"), ("text", "content", "value")  # what {label, text} are called
CARRIED = re.compile(r"[(\[]?\s*([A-Za-z])\s*[).:\]]\s*(?=\S)")  # "A)21", "(a) red", "B. blue", "c : 3"
IN_TEXT = r"(?:^|(?<=[\s,;]))[(\[]?{}\s?[).:\]]\s*"  # the same inside of one text
HEADING = re.compile(r"(?:answer\s+)?(?:options|choices)\s*:?\s*\Z", re.I)  # above choices in a question
SPEAKS_OF_OTHERS = re.compile(  # a choice: "all of the above", "both A and C", "none of these"
    r"\b(?:all|none|both|neither|either|any|some|two|more than one)\s+(?:of\s+)?(?:the\s+|these\s+|those\s+)?"
    r"(?:above|below|others?|options|choices|answers|these|those|them)\b"
    r"|(?-i:\(?\b[A-H]\)?(?:\s*,\s*|\s+(?:and|or|nor|&)\s+)\(?[A-H]\b)", re.I)
NAMES_LETTERS = re.compile(r"\([A-H]\)|\b(?:[Oo]ption|[Cc]hoice|[Aa]nswer)s?\s+\(?[A-H]\b")  # a question
SAYS_LETTER = re.compile(r"\([A-Za-z]\)|\b(?:options?|choices?|answer)\b", re.I)  # a rationale
USUAL = ("choices", "options", "endings", "target_scores", "mc1_targets", "multiple_choice_targets", "alternatives",
         "answer_choices")  # what files call them
APART = re.compile(r"(option|choice|answer|ending|alternative|sol|opt?|)[ _-]?([a-h]|(?<=[a-z _-])[0-9])", re.I)
MOST_LITERAL = 100_000  # characters of a list that is written as text


@dataclass(frozen=True)
class Listed:
    """The choices of one record."""

    texts: tuple[Any, ...]  # as they are spelled; numbers stay numbers, since the number 1 is not the text "1"
    labels: tuple[str, ...] = ()  # (): letters, by their place
    fields: tuple[str, ...] = ()  # where each is a field of its own
    right: int | None = None  # if the file says so in the choices themselves
    before: str | None = None  # what stands in front of choices that are part of the question


def listed(record: Record, name: str, answer: str, advice: str) -> Listed:
    """The choices at the path `name`. answer: the path of the answer, which may be the same: {"red": 0, "blue": 1}.

    ValueError that names the line.
    """
    several = [n.strip() for n in name.split("+")]
    if len(several) > 1 and name not in record[1]:
        return _fields(record, several, advice)
    value = records.field(record, name, advice)
    found = _of(unwritten(value), name == answer)
    if found and 2 <= len(found.texts) <= len(LETTERS) and len(found.labels) in (0, len(found.texts)):
        spelled = [records.spelled(t) for t in found.texts]
        if None not in spelled and all(found.labels):
            kept = tuple(s if isinstance(t, str) else t for s, t in zip(spelled, found.texts, strict=True))
            return replace(found, texts=kept, labels=() if list(found.labels) == spelled else found.labels)
    if name == answer and (why := mismarked(unwritten(value))):
        raise ValueError(f"{record[0]}: field {name!r} {why}")
    raise ValueError(f"{record[0]}: field {name!r} is {records.shown(value)}; it must be a list of 2 to {len(LETTERS)} "
                     "choices, each a text or {label, text}, or a text with letters, (A) ... (B) ...")


def holds(record: Record, name: str) -> bool:
    """Does a record have choices there, scores of them included?"""
    try:
        value = unwritten(records.field(record, name, ""))
        return (isinstance(value, dict) and scored(value)) or bool(listed(record, name, "", ""))
    except ValueError:
        return False


def apart(names: Sequence[str]) -> list[str]:
    """Those of a table's names that look like choices in columns of their own: A, B, C, D; option1, option2."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name in names:
        if column := APART.fullmatch(name):
            found.setdefault(column[1].lower(), []).append((column[2].lower(), name))
    for columns in found.values():
        ends = "".join(end for end, _ in columns)
        if len(ends) > 1 and any(run.startswith(ends) for run in (LETTERS, "0123456789", "123456789")):
            return [name for _, name in columns]
    return []


def _of(value: Any, scored: bool) -> Listed | None:
    value = without_nulls(value)
    if isinstance(value, dict) and isinstance(value.get("text"), list):
        labels = value.get("label", [])
        return Listed(tuple(value["text"]), _labels(labels)) if isinstance(labels, list) else None
    if isinstance(value, dict) and scored:
        right = scores(value)
        return None if right is None else Listed(tuple(value), right=right)
    if isinstance(value, dict) and all(len(k) < 3 for k in value):
        return Listed(tuple(value.values()), _labels(value))
    if isinstance(value, list) and value and all(isinstance(c, dict) for c in value):
        keys = [next((k for k in names if all(k in c for c in value)), None) for names in (LABEL, TEXT)]
        return Listed(tuple(c[keys[1]] for c in value), _labels([c[keys[0]] for c in value])) if all(keys) else None
    if isinstance(value, list):
        return _carrying(value)
    return _in_text(value) if isinstance(value, str) else None


def without_nulls(value: Any) -> Any:
    """An object without what is null in it: a parquet file writes every key of every record there is."""
    return {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else value


def _labels(values: Any) -> tuple[str, ...]:
    return tuple(records.spelled(v) or "" for v in values)


def unwritten(value: Any) -> Any:
    """The list or object that a text spells, as a cell of a table does: "['red', 'blue']"; else the value itself."""
    if not isinstance(value, str) or value.strip()[:1] not in ("[", "{") or len(value) > MOST_LITERAL:
        return value
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue
    return value


def _carrying(values: list) -> Listed:
    """Choices that carry their letters, all of them and none twice: "A)21" is the choice 21 with the label A. Where
    some have lost theirs, the others are taken off, too, if they stand at their places."""
    values = [v.lstrip() if isinstance(v, str) else v for v in values]
    found = [CARRIED.match(v) if isinstance(v, str) else None for v in values]
    if all(found) and sorted(m[1].lower() for m in found) == list(LETTERS[: len(values)]):
        return Listed(tuple(v[m.end() :] for v, m in zip(values, found, strict=True)), tuple(m[1] for m in found))
    some = [(m, letter) for m, letter in zip(found, LETTERS, strict=False) if m]
    if len(some) > 1 and all(")" in m[0] and m[1].lower() == letter for m, letter in some):  # not "A. Smith"
        return Listed(tuple(v[m.end() :] if m else v for v, m in zip(values, found, strict=True)))
    return Listed(tuple(values))


def _in_text(text: str) -> Listed | None:
    """Of "Which? (A) red (B) blue" the choices, from the last A on, and what stands before them."""
    later = {b[0].isupper(): b.start() for b in re.finditer(IN_TEXT.format("[Bb]"), text)}  # the last ones
    starts = [a for a in re.finditer(IN_TEXT.format("[Aa]"), text) if a.start() < later.get("A" in a[0], 0)]
    if not starts:
        return None
    cuts, letters = starts[-1:], LETTERS.upper() if "A" in starts[-1][0] else LETTERS
    for letter in letters[1:]:
        mark = re.compile(IN_TEXT.format(letter)).search(text, cuts[-1].end())
        if mark is None:
            break
        cuts.append(mark)
    ends = [*(m.start() for m in cuts[1:]), len(text)]
    texts = tuple(text[m.end() : end].strip(" ,;\n\t\r") for m, end in zip(cuts, ends, strict=True))
    before = text[: cuts[0].start()].strip()
    heading = HEADING.search(before[-40:])  # no further back: where blanks are many, the search for it would not end
    return Listed(texts, tuple(letters[: len(cuts)]), before=before[: -len(heading[0])].rstrip() if heading else before)


def _fields(record: Record, several: list[str], advice: str) -> Listed:
    """Choices in fields of their own; one that is empty is no choice. What their names differ in, are the labels."""
    values = [records.one(records.field(record, n, advice)) for n in several]
    given = [(n, v) for n, v in zip(several, values, strict=True) if not (v is None or v == "")]
    start = next((i for i, letters in enumerate(zip(*several, strict=False)) if len(set(letters)) > 1), 0)
    labels = [n[start:] for n, _ in given]
    for name, value in given:
        if records.spelled(value) is None:
            raise ValueError(f"{record[0]}: field {name!r} is {records.shown(value)}; it must be text or a number")
    if not 2 <= len(given) <= len(LETTERS):
        raise ValueError(f"{record[0]}: {'+'.join(several)} hold {len(given)} choices; there must be 2 to "
                         f"{len(LETTERS)}")
    alone = all(len(label) == 1 and label.isalnum() for label in labels)
    texts = tuple(v.strip() if isinstance(v, str) else v for _, v in given)
    return Listed(texts, tuple(labels) if alone else (), tuple(n for n, _ in given))


def scores(values: Any) -> int | None:
    """Which of some scores, of a list or an object, is the 1 among zeros; None where they are something else."""
    values = list(without_nulls(values).values()) if isinstance(values, dict) else values
    whole = scored(values) and all(v in (0, 1) for v in values)
    return values.index(1) if whole and values.count(1) == 1 else None


def scored(values: Any) -> bool:
    """Are these scores, whichever they name as right?"""
    values = list(without_nulls(values).values()) if isinstance(values, dict) else values
    return bool(values) and all(isinstance(v, int | float) and 0 <= v <= 1 for v in values)


def mismarked(values: Any) -> str:
    """Why scores name no choice, {"red": 1, "blue": 1}; "" where they do, or are no scores."""
    if not isinstance(values, dict | list) or not scored(values) or scores(values) is not None:
        return ""
    times = list(values.values() if isinstance(values, dict) else values).count(1)
    if times == 1:
        return f"is {records.shown(values)}; it must hold 1 for the right choice and 0 for the others"
    return f"marks {times or 'no'} choice{'s' * (times > 1)} as right; one is needed, with 1, and 0 for the others"


def _count(given: Any) -> int | None:
    """A number that counts choices: 2, 2.0, "2"."""
    if isinstance(given, str) and re.fullmatch(r"\s*[0-9]{1,2}(\.0)?\s*", given):
        return int(float(given))
    return int(given) if isinstance(given, int | float) and given in range(len(LETTERS) + 1) else None


def ways(choices: Listed, given: Any) -> dict[str, int]:
    """Way -> the choice that an answer names in that way."""
    texts = [" ".join(t.split()) if isinstance(t, str) else t for t in choices.texts]
    labels = [label.lower() for label in choices.labels or LETTERS[: len(texts)]]
    listings = [("label", list(choices.labels), str(given)), ("label", labels, str(given).lower()),
                ("text", texts, given)]  # the number 1 is not the text "1", nor a label of letters
    if isinstance(given, str):
        given = " ".join(given.rpartition("####")[2].split())
        spelt, bare = [str(t) for t in texts], given.strip(" ()[].:").lower()
        listings = [("label", list(choices.labels), given), ("label", labels, bare),
                    ("field", list(choices.fields), given), ("text", spelt, given),
                    ("text", [t.casefold() for t in spelt], given.casefold())]
        for i, text in enumerate(spelt):  # "B) blue": a label and its text
            carried = CARRIED.match(given)
            if carried and carried[1].lower() == labels[i] and given[carried.end() :].casefold() == text.casefold():
                listings.append(("label", labels, labels[i]))
    found: dict[str, int] = {}
    for way, among, wanted in listings:
        if among.count(wanted) == 1:
            found.setdefault(way, among.index(wanted))
    count = _count(given)
    if count is not None:
        found |= {way: count - start for start, way in enumerate(WAYS[3:]) if 0 <= count - start < len(texts)}
    return found


def right_ones(rows: Sequence[tuple[str, Listed, Any]], usual: str | None = None) -> tuple[list[int], str | None]:
    """(the choice that each answer names, in which way) for (where, choices, answer) of each record of a file.

    usual: the way to take if it fits. ValueError for the first answer that names none, or may name two.
    """
    read = [None if choices.right is not None else ways(choices, given) for _, choices, given in rows]
    asked = [found for found in read if found is not None]
    fitting = [way for way in WAYS if asked and all(way in found for found in asked)]
    way = usual if usual in fitting else fitting[0] if fitting else None
    chosen = []
    for (where, choices, given), found in zip(rows, read, strict=True):
        if found is None:
            chosen.append(choices.right)
            continue
        both = {"label", "text"} <= (found.keys() if way is None else set(fitting))
        if both and not choices.labels and found["label"] != found["text"]:
            raise ValueError(f"{where}: the answer {given!r} is one choice's letter and another's text: write the "
                             "choices as {label, text}")
        hits = [found[w] for w in WAYS[:3] if w in found] if way is None else [found[way]]
        if not hits:
            known = ", ".join(choices.labels or LETTERS[: len(choices.texts)])
            raise ValueError(f"{where}: the answer {str(given)[:40]!r} is neither a label ({known}) nor the text of "
                             "one choice, nor a number that counts them from 0 (or, in all of the file, from 1)")
        chosen.append(hits[0])
    return chosen, way


def keeps_order(problem: Problem) -> bool:
    """Do its choices speak of each other, or the question of their letters? Then they are not to be moved."""
    return bool(NAMES_LETTERS.search(problem.question) or any(map(SPEAKS_OF_OTHERS.search, problem.choices)))


def shuffled(problem: Problem) -> Problem:
    """The problem with its choices in another order, which hangs on nothing but its words."""
    if not problem.choices or keeps_order(problem):
        return problem
    asked = records.key(problem)
    order = sorted(range(len(problem.choices)), key=lambda i: hashlib.sha256(
        f"{asked} -> {problem.choices[i]}".encode("utf-8", "surrogatepass")).digest())
    right = order.index(LETTERS.index(problem.answer))
    return replace(problem, answer=LETTERS[right], choices=tuple(problem.choices[i] for i in order))
