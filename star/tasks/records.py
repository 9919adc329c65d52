"""What is in a record that somebody's file holds: its fields as text, and which problems are the same.

Fields are found by their paths, and what does not fit is named with its line. What a question or an answer is, the
tasks know; how files are read, star/tasks/files.
"""

import hashlib
import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from star.problem import Problem, Shot
from star.tasks.files import Record, each, find, follow, paths, read_records, shown
from star.tasks.tables import Row, no_names
from star.text import visible

__all__ = ["Record", "clip", "disjoint", "each", "field", "fill", "find", "hold_out", "key", "name", "named", "one",
           "read_records", "shown", "spelled", "text"]
SENTENCE = re.compile(r"[^\w\s]$")
MOST_TEXT, MOST_NAME = 400_000, 200  # characters of a text, more than any model reads, and of a name


def field(record: Record, name: str, advice: str) -> Any:
    """A record's field; "question.stem" looks inside an object, "options.0" into a list, and '"24"' is the text 24 of
    every record. ValueError that names the line, and the paths there are."""
    where, value = record
    if len(name) > 2 and name[0] == name[-1] == '"':
        return name[1:-1]
    try:
        return follow(value, [name] if isinstance(value, dict) and name in value else name.split("."))
    except KeyError:
        inside = itertools.islice(paths(value), 13) if isinstance(value, dict) else ()
        there = [repr(p) for p in inside] or [shown(value)]
        listed = ", ".join(there[:12]) + ", ..." * (len(there) > 12)
        has = "the first line, which names the columns, has" if isinstance(value, Row) else "there is"
        above = f"; {no_names(list(value))}" if isinstance(value, Row) and no_names(list(value)) else ""
        raise ValueError(f"{where} has no field {name!r} ({has} {listed[:400]}): {advice}{above}") from None


def one(value: Any) -> Any:
    """The element of a list of one; any other value as it is."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def text(record: Record, names: str, advice: str, lists: str = "") -> str:
    """Text of a field, or of several ("Body+Question"), one sentence after the other; of several, some may be empty.

    lists: "one": a list of one is what it holds; "all": any list is read out, [44, 19, 35] as "44, 19, 35"; else a list
    is no text. ValueError if there is none.
    """
    several, parts = [names] if names in record[1] else [n.strip() for n in names.split("+")], []
    for name in several:
        value = field(record, name, advice)
        spelling = (_all_spelled(value) if lists == "all" and isinstance(value, list) else
                    spelled(one(value) if lists else value))
        if spelling is not None:
            parts.append(spelling)
        elif len(several) == 1 or not (value is None or (isinstance(value, str) and not value.strip())):
            raise ValueError(f"{record[0]}: {_no_text(name, value)}")
    if not parts:
        raise ValueError(f"{record[0]}: fields {names!r} are all empty")
    ended = [p if SENTENCE.search(p) else p + "." for p in parts[:-1]]
    return " ".join([*ended, parts[-1]])


def fill(record: Record, template: str, advice: str) -> str:
    """A template with fields in braces, filled: "Make {target} of {nums}." Two braces stand for one."""
    def put(found: re.Match) -> str:
        return found[0][0] if found[1] is None else text(record, found[1], advice, "all")

    return re.sub(r"\{\{|\}\}|\{([^{}]*)\}", put, template)


def _no_text(name: str, value: Any) -> str:
    """Why a field's value is no text."""
    if isinstance(value, str) and len(value) > MOST_TEXT:
        return f"field {name!r} has {len(value):,} characters; a text has at most {MOST_TEXT:,}"
    if not isinstance(value, list):
        return f"field {name!r} is {shown(value)}; it must be text or a number"
    if any(isinstance(v, list) for v in value):
        return f"field {name!r} is a list of lists, {shown(value)}; it must be text or a number: {name}.0.0 is one"
    return f"field {name!r} is a list of {len(value)}, {shown(value)}; it must be text or a number" + (
        f": {name}.0 is its first" if value else "")


def _all_spelled(values: list) -> str | None:
    """A list read out, "44, 19, 35", or sentences; None where one of them is no text, or there is none."""
    every = [spelled(v) for v in values]
    if None in every or not every:
        return None
    return " ".join(every) if all(map(SENTENCE.search, every)) else ", ".join(every)


def spelled(value: Any) -> str | None:
    """Text or a number as text; None for all else: null, true, NaN, a list, blanks, half a surrogate pair, a book."""
    if isinstance(value, bool) or not isinstance(value, str | int | float | Decimal | date):
        return None
    if isinstance(value, float | Decimal) and not math.isfinite(value):
        return None
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python writes no number of thousands of digits
        return None
    spelling = str(value).strip()
    return spelling if 0 < len(spelling) <= MOST_TEXT and not re.search("[\ud800-\udfff]", spelling) else None


def name(record: Record, names: str, advice: str, lists: str = "one") -> str:
    """The text of a field that something is called by in tables: a group, who wrote an answer. ValueError if there is
    none, or if it is a text rather than a name."""
    found = text(record, names, advice, lists)
    if len(found) > MOST_NAME:
        raise ValueError(f"{record[0]}: field {names!r} is {shown(found)}..., of {len(found):,} characters; a name has "
                         f"at most {MOST_NAME}")
    return found


def key(problem: Problem) -> str:
    """What makes two problems the same: the words of their question, and what they choose or calculate from, in any
    order. Neither the answer nor the line counts."""
    words = " | ".join([problem.question, *sorted(problem.choices), *sorted(problem.numbers)])
    return " ".join(re.findall(r"\w+|[^\w\s]", unicodedata.normalize("NFKC", words).casefold()))


def disjoint(train: list[Problem], heldout: list[Problem], shots: Sequence[Shot],
             meaning: Callable[[Problem], str] = lambda p: p.answer) -> tuple[list[Problem], list[str]]:
    """(train without what is held out, without repeats and few-shot examples; a line on each reason).

    A question that stands there with different answers (`meaning`) is left out of training, with all of them.
    Raises ValueError if a few-shot example is held out, since every prompt would show it, or if nothing is left.
    """
    held_keys, train_keys = ([key(p) for p in part] for part in (heldout, train))
    held = {k: p.id for k, p in zip(held_keys, heldout, strict=True)}
    for i, shot in enumerate(shots, 1):
        if key(shot.problem) in held:
            raise ValueError(f"few-shot example {i} ({shot.problem.id}) is held-out problem {held[key(shot.problem)]}: "
                             "every prompt would show it; take another")
    asked: dict[str, dict[str, str]] = {}  # key -> what is answered -> the first problem that says so
    for k, p in zip([*held_keys, *train_keys], [*heldout, *train], strict=True):
        asked.setdefault(k, {}).setdefault(meaning(p), p.id)
    disputed = {k: list(ids.values()) for k, ids in asked.items() if len(ids) > 1}
    reasons = ("held out", "few-shot example", "different answers", "repeats another")
    gone: dict[str, list[str]] = {reason: [] for reason in reasons}
    seen, shown_there, kept = set(), {key(s.problem) for s in shots}, []
    for k, p in zip(train_keys, train, strict=True):
        why = ("held out" if k in held else "few-shot example" if k in shown_there else
               "different answers" if k in disputed else "repeats another" if k in seen else None)
        seen.add(k)
        if why:
            gone[why].append(p.id)
        else:
            kept.append(p)
    notes = [f"{len(ids)} left out of training ({why}): {named(ids)}" for why, ids in gone.items() if ids]
    if disputed:
        notes.append(f"{len(disputed)} asked more than once, with different answers: "
                     f"{named([' and '.join(ids[:3]) for ids in disputed.values()])}")
    if train and not kept:
        raise ValueError(f"nothing is left to train on; {'; '.join(notes)}")
    return kept, notes


def named(ids: Sequence[str]) -> str:
    """The first few of them: "a, b, c and 7 more"; what is long or no plain text is clipped and shown."""
    return ", ".join(clip(i, MOST_NAME) for i in ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def clip(text: str, most: int) -> str:
    """The beginning of a text, in one line, with nothing in it that a terminal obeys."""
    text = visible(text[: most + 1])
    return text if len(text) <= most else text[: most - 1] + "…"


def hold_out(problems: list[Problem], part: float) -> tuple[list[Problem], list[Problem]]:
    """(train, held-out): about this part is held out, by a hash of each question alone.

    A problem is on the same side in every run, wherever in the file it stands and whatever else does. Only where a file
    is so small that a side would be empty, the question next to the threshold changes sides.
    """
    drawn = [int.from_bytes(hashlib.sha256(key(p).encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
             for p in problems]
    least, most = (min(drawn), max(drawn)) if drawn else (0, 0)
    out = [d == least or (d < part and d < most) for d in drawn]
    return ([p for p, held in zip(problems, out, strict=True) if not held],
            [p for p, held in zip(problems, out, strict=True) if held])
