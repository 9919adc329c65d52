"""What the fields of a record say: --fields question=q,answer=a and --template. A record becomes a problem.

How answers and rationales may be written is known here; choices are read by star/tasks/choices, files by
star/tasks/files. What does not fit is named with its line.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from star.problem import Problem
from star.tasks import choices, records, verifier
from star.tasks.choices import Listed
from star.tasks.graders import TRUTHS
from star.tasks.records import Record
from star.tasks.tables import Row
from star.tasks.verifier.expression import evaluate

PARTS = ("question", "answer", "choices", "rationale", "group", "numbers")  # that Fields names
MOST_DIGITS = 60  # of an answer
BRACES = re.compile(r"(?<!\{)\{([^{}]+)\}(?!\})")  # a field in a template
DECIMAL_COMMA = re.compile(  # "9,5", "1.234,50 €", "0,125"; of "1,500" nobody knows
    r"[^\d,]{0,5}(?:(?:[0-9]{1,3}(?:[. ][0-9]{3})+|[0-9]+),(?:[0-9]{1,2}|[0-9]{4,})|0,[0-9]+)[^\d,]{0,12}")
BOXED = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")  # of MATH: an answer at a solution's end


@dataclass(frozen=True)
class Fields:
    """What a record calls its parts: "question.stem" looks inside an object, "Body+Question" joins two fields.

    rationale: of a human one; in the field of the answer it stands in front of "####". numbers: what an expression may
    be made of. template: the question, of fields in braces. truths: all answers of the file are true or false.
    """

    question: str = "question"
    answer: str = "answer"
    choices: str | None = None
    rationale: str | None = None
    group: str | None = None
    numbers: str | None = None
    template: str = ""
    truths: bool = False
    advice: str = "--task jsonl takes another by --fields {part}=..."  # where a record has no such field

    def value(self, record: Record, part: str) -> Any:
        return records.field(record, getattr(self, part), self.advice.format(part=part))

    def text(self, record: Record, part: str) -> str:
        lists = "all" if part == "question" else "one"
        return records.text(record, getattr(self, part), self.advice.format(part=part), lists)

    def has(self, record: Record, part: str) -> bool:
        """Does a record have the fields of this part, whatever stands in them?"""
        name = getattr(self, part)
        names = BRACES.findall(self.template) if part == "question" and self.template else [name] if name else []
        try:
            for one in (one for n in names for one in ([n] if n in record[1] else n.split("+"))):
                records.field(record, one.strip(), "")
        except ValueError:
            return False
        return bool(names)


def parse_fields(text: str, template: str = "") -> Fields:
    """Of "question=Body+Question,answer=Answer" the Fields; parts that are left out keep their defaults."""
    names: dict[str, str] = {}
    for pair in filter(None, map(str.strip, text.split(","))):
        part, _, name = map(str.strip, pair.partition("="))
        if part not in PARTS:
            raise ValueError(f"--fields has {pair!r}; it is PART=NAME,PART=NAME with the parts {', '.join(PARTS)}, "
                             "as in question=Body+Question,answer=Answer")
        if not all(map(str.strip, name.split("+"))):
            raise ValueError(f"--fields has {pair!r}, which names no field: write {part}=NAME, or leave it out")
        if part in names:
            raise ValueError(f"--fields has {part} twice; + joins several fields: {part}={names[part]}+{name}")
        names[part] = name
    if template and "question" in names:
        raise ValueError("--template and --fields question=... both say what is asked: leave one of them out")
    if template and not BRACES.search(template):
        raise ValueError(f"--template {template!r} names no field: write them in braces, as in "
                         "'Make {target} of {nums}.'")
    return Fields(**names, template=template)


class Read(NamedTuple):
    """What was read of one file or two."""

    parts: list[list[Problem]]
    gold: dict[str, str]  # Problem.id -> human rationale
    grade: str
    way: str | None  # in which answers name a choice (star/tasks/choices)
    names: Fields  # as they were read: with choices under their usual name
    notes: list[str]


def read(parts: Sequence[tuple[list[Record], str]], names: Fields, grade: str) -> Read:
    """The problems of (records, stem), with ids "stem-1". Grade "auto" is found from all answers of the first part;
    which choice an answer means, from all of them. ValueError that names the line."""
    everything, told = [record for part, _ in parts for record in part], names.choices
    names, notes = _with_usual_choices(everything, names, grade)
    grade = find_grade(parts[0][0], names) if grade == "auto" else grade
    if (grade == "choice") != (names.choices is not None):
        raise ValueError("--grade choice and --fields choices=... belong together: give both, or neither"
                         + "".join(f" ({note})" for note in notes))
    if names.numbers is not None and grade != "value":
        raise ValueError("--fields numbers=... says what an expression is made of: it belongs to --grade value")
    if grade == "text":
        names = replace(names, truths=all(names.has(r, "answer") and (isinstance(records.one(_given(
            r, names)), bool) or _truth(raw_answer(r, names, grade))) for r in everything))
    listed = parse_choices(everything, names) if grade == "choice" else [None] * len(everything)
    try:
        right, way = choices.right_ones(listed) if grade == "choice" else ([0] * len(everything), None)
    except ValueError as e:
        advice = f"; --grade text asks without the field {names.choices!r}" if told is None else ""
        raise ValueError(f"{e}{advice}") from None
    found, gold, rest = [], {}, zip(listed, right, strict=True)
    for part, stem in parts:
        found.append([])
        for i, (record, (row, at)) in enumerate(zip(part, rest, strict=False), 1):
            problem = parse_problem(record, names, grade, f"{stem}-{i}", row and row[1], at)
            if names.rationale is not None:
                gold[problem.id] = parse_rationale(record, names)
            found[-1].append(problem)
    if way == "from 0" and all(c.right is None and "from 1" in choices.ways(c, given) for _, c, given in listed):
        notes.append("answers are numbers of choices, and count from 0 here: none is 0, and none counts the last")
    if names.truths:
        notes.append("answers are true or false in the file, and asked for as yes or no")
    if grade == "value" and names.numbers is None:
        notes.append("no numbers are named, so that the target itself is a right answer: --fields numbers=...")
    return Read(found, gold, grade, way, names, notes)


def _with_usual_choices(lines: Sequence[Record], names: Fields, grade: str) -> tuple[Fields, list[str]]:
    """(the fields with `choices`, if --fields names none and every record has some there; else lines on what looks like
    choices and is not shown)."""
    if names.choices is not None:
        return names, []
    named = [getattr(names, part) for part in PARTS[names.template != "":]]
    told = [n.strip() for name in filter(None, named) for n in name.split("+")] + BRACES.findall(names.template)
    top = {n: v for _, record in lines for n, v in record.items()}
    paths = [*top, *(f"{name}.{inner}" for name, v in top.items() if isinstance(v, dict) for inner in v)]
    free = [n for n in paths if not any(t == n or t.startswith(f"{n}.") for t in told)]
    asked, without = grade in ("auto", "choice") and names.numbers is None, ""
    if asked and "choices" in free:
        without = next((where for where, record in lines if not choices.holds((where, record), "choices")), "")
        if not without:
            return replace(names, choices="choices"), []
    usual = [n for n in free if n.rpartition(".")[2].lower() in choices.USUAL and any(_filled(r, n) for r in lines)]
    found = usual[:1] or choices.apart(free)
    if not found:
        return names, []
    what = f"a field {found[0]!r}, which is" if len(found) == 1 else f"fields {', '.join(map(repr, found))}, which are"
    why = f", for {without} has none there" if without and found == ["choices"] else ""
    how = "" if asked else f" by --grade {'value' if grade == 'auto' else grade}"
    advice = "" if grade == "none" else f": --fields choices={'+'.join(found)}{'' if asked else ' in its place'}"
    return names, [f"the file has {what} not shown{how}{why}{advice}"]


def _filled(record: Record, name: str) -> bool:
    one = Fields(choices=name)
    return one.has(record, "choices") and bool(one.value(record, "choices"))


def _truth(answer: str) -> str | None:
    return TRUTHS.get(answer.strip(" .").casefold())


def find_grade(lines: list[Record], names: Fields) -> str:
    """What all answers can be compared as."""
    if names.choices is not None:
        return "choice"
    if names.numbers is not None:
        return "value"
    return "number" if all(_number(raw_answer(r, names, "text")) is not None for r in lines) else "text"


def _number(answer: str) -> str | None:
    """A number in the verifier's spelling, if a rationale could state it: not 1e400."""
    number = verifier.one_number(answer)
    return number if number is not None and len(number) <= MOST_DIGITS else None


def parse_problem(record: Record, names: Fields, grade: str, name: str, listed: Listed | None = None,
                  right: int = 0) -> Problem:
    """The problem of a record. ValueError that names the line."""
    if listed and listed.before and names.choices == names.question and not names.template:
        question = listed.before
    elif names.template:
        question = records.fill(record, names.template, "--template must name fields that each record has").strip()
    else:
        question = names.text(record, "question")
    group = "" if names.group is None else records.name(record, names.group, names.advice.format(part="group"))
    texts = tuple(" ".join(str(t).split()) for t in listed.texts) if listed else ()
    answer = "" if grade == "none" else choices.LETTERS[right] if listed else parse_answer(record, names, grade)
    return Problem(name, question, answer, group, texts, parse_numbers(record, names) if names.numbers else ())


def parse_choices(lines: Sequence[Record], names: Fields) -> list[tuple[str, Listed, Any]]:
    """(where, choices, answer) of records; choices may say themselves which is right: {"red": 0, "blue": 1}, [0, 1]."""
    rows = []
    for record in lines:
        path = names.answer
        if path == Fields.answer and "+" not in names.choices and not names.has(record, "answer"):
            value = choices.unwritten(names.value(record, "choices"))
            if isinstance(value, dict) and choices.scored(value):
                path = names.choices
        listed, given = choices.listed(record, names.choices, path, names.advice.format(part="choices")), None
        if listed.right is None:
            given = _given(record, names)
        if isinstance(given, list) and len(given) > 1:
            listed = replace(listed, right=choices.scores(given) if len(given) == len(listed.texts) else None)
            if listed.right is None:
                why = len(given) == len(listed.texts) and choices.mismarked(given)
                raise ValueError(f"{record[0]}: field {path!r} is {records.shown(given)}"
                                 + (f", which {why}" if why else "; a list must hold a score for each choice, 1 for "
                                    "the right one and 0 for the others"))
        elif listed.right is None:
            text = names.text(record, "answer")  # refuses what is neither text nor a number
            given = text if given is None else records.one(given)
        rows.append((record[0], listed, given))
    return rows


def _given(record: Record, names: Fields) -> Any:
    """The answer as it stands in a record, or as a cell of a table spells it, "[56.0]"; None where several fields make
    one."""
    value = names.value(record, "answer") if names.answer in record[1] or "+" not in names.answer else None
    spelt = choices.unwritten(value) if isinstance(record[1], Row) else value
    return spelt if isinstance(spelt, list) else value


def raw_answer(record: Record, names: Fields, grade: str) -> str:
    """An answer as it is written, without the solution in front of "####" or around "\\boxed{}"; of a list its one
    element, for a set all of them."""
    value = _given(record, names)
    if isinstance(records.one(value), bool) and grade == "text":
        return "yes" if records.one(value) else "no"
    if isinstance(value, dict) and choices.scores(value) is not None:
        return next(text for text, score in value.items() if score == 1)  # {"red": 0, "blue": 1}
    if isinstance(value, dict) and (why := choices.mismarked(value)):
        raise ValueError(f"{record[0]}: field {names.answer!r} {why}")
    if isinstance(value, list) and len(value) > 1 and grade != "set" and all(records.spelled(v) for v in value):
        raise ValueError(f"{record[0]}: field {names.answer!r} holds {len(value)} answers, {records.shown(value)}: "
                         f"--grade set compares them in any order, --fields answer={names.answer}.0 takes the first")
    text = records.text((record[0], {names.answer: value}) if isinstance(value, list) else record, names.answer,
                        names.advice.format(part="answer"), "all" if grade == "set" else "one")
    boxed = BOXED.findall(text) if "####" not in text else []
    raw = " ".join((boxed or [text.rpartition("####")[2]])[-1].split())
    return (names.truths and grade == "text" and _truth(raw)) or raw


def parse_answer(record: Record, names: Fields, grade: str) -> str:
    """A number in the verifier's spelling, an expression, members or words. ValueError where it is none."""
    raw = raw_answer(record, names, grade)
    number = _number(raw) if grade == "number" else None
    if grade == "number" and number is None:
        comma = "numbers are read with a decimal point, not a comma; " * bool(DECIMAL_COMMA.fullmatch(raw))
        raise ValueError(f"{record[0]}: the answer {raw[-60:]!r} is not one number; {comma}--task jsonl compares words "
                         "by --grade text")
    if grade == "value" and evaluate(raw) is None:
        raise ValueError(f"{record[0]}: the answer {raw[:60]!r} is no arithmetic expression with a value, in at most "
                         "300 characters; --task jsonl compares words by --grade text")
    if grade != "value" and not verifier.normal(raw):
        raise ValueError(f"{record[0]}: the answer {raw[-60:]!r} has no words to compare")
    return number if grade == "number" else raw


def parse_numbers(record: Record, names: Fields) -> tuple[str, ...]:
    """The numbers an expression may be made of: [44, 19, 35], or "44 19 35"."""
    value = names.value(record, "numbers")
    given = re.split(r"[\s,;]+", value.strip(" []()")) if isinstance(value, str) else value
    spelled = [records.spelled(v) for v in given] if isinstance(given, list) else []
    found = [s and evaluate(s) for s in spelled]
    if not found or any(one is None or one.steps for one in found):
        raise ValueError(f"{record[0]}: field {names.numbers!r} is {records.shown(value)}; it must be a list of "
                         "numbers")
    return tuple(spelled)


def parse_rationale(record: Record, names: Fields) -> str:
    """A human rationale without the answer after "####" and without calculator notes (<<48/2=24>>)."""
    raw = names.text(record, "rationale")
    if names.rationale == names.answer and "####" not in raw and not BOXED.search(raw):
        raise ValueError(f"{record[0]}: field {names.answer!r} has no '####' between solution and answer")
    rationale = re.sub(r"<<[^<>\n]*>>", "", raw.rpartition("####")[0] or raw).strip()
    if not rationale or rationale.startswith("####"):
        raise ValueError(f"{record[0]}: field {names.rationale!r} has no solution in front of its answer")
    return rationale
