"""Anybody's questions and answers, from a file that `--data` names: most people need no code.

    python train.py --task jsonl --data my.jsonl --fields question=q,answer=a --few-shot examples.jsonl

It knows what records of such files look like: which field is what, and how choices, answers and rationales may be
written. How a question is asked and graded, star/tasks/questions knows. It downloads nothing, and changes no file.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from star.problem import Problem, Shot
from star.tasks import records, verifier
from star.tasks.questions import LETTERS, Questions

GRADES = ("number", "choice", "text", "none")
PARTS = ("question", "answer", "choices", "rationale", "group")  # that Fields names
EXAMPLES = Path(__file__).with_name("examples")  # of the tasks that bring their few-shot examples along


@dataclass(frozen=True)
class Fields:
    """What a record calls its parts: "question.stem" looks inside an object, "Body+Question" joins two fields.

    rationale: of a human one; in the field of the answer it stands in front of "####".
    """

    question: str = "question"
    answer: str = "answer"
    choices: str | None = None
    rationale: str | None = None
    group: str | None = None
    advice: str = "--task jsonl takes another by --fields {part}=..."  # where a record has no such field

    def value(self, record: records.Record, part: str) -> Any:
        return records.field(record, getattr(self, part), self.advice.format(part=part))

    def text(self, record: records.Record, part: str) -> str:
        return records.text(record, getattr(self, part), self.advice.format(part=part))


def parse_fields(text: str) -> Fields:
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
    return Fields(**names)


def read(path: str | Path, names: Fields, grade: str, stem: str) -> tuple[list[Problem], dict[str, str], str]:
    """(problems with ids "stem-1", id -> human rationale, grade) of a file. Grade "auto" is found from all of it."""
    lines = records.read_records(path)
    if grade == "auto" and names.choices is None:
        answers = (names.text(r, "answer").rpartition("####")[2] for r in lines)
        grade = "text" if any(verifier.one_number(a) is None for a in answers) else "number"
    grade = "choice" if grade == "auto" else grade
    if (grade == "choice") != (names.choices is not None):
        raise ValueError("--grade choice and --fields choices=... belong together: give both, or neither")
    problems, gold = [], {}
    for i, record in enumerate(lines, 1):
        question = names.text(record, "question")
        answer, choices = (("", ()) if grade == "none" else parse_letter(record, names) if grade == "choice" else
                           (parse_answer(record, names, grade), ()))
        group = names.text(record, "group") if names.group is not None else ""
        problems.append(Problem(f"{stem}-{i}", question, answer, group, choices))
        if names.rationale is not None:
            gold[problems[-1].id] = parse_rationale(record, names)
    return problems, gold, grade


def parse_choices(record: records.Record, names: Fields) -> tuple[list[str], list]:
    """(labels, if it has any; choices) of a record: texts, {label, text} each, or {"label": [...], "text": [...]}."""
    value = names.value(record, "choices")
    labels, texts = [], value
    if isinstance(value, dict):
        labels, texts = value.get("label", []), value.get("text")
    elif isinstance(value, list) and all(isinstance(c, dict) for c in value):
        labels, texts = ([c.get(k) for c in value] for k in ("label", "text"))
    if isinstance(texts, list) and isinstance(labels, list) and len(labels) in (0, len(texts)):
        labels, spelled = [records.spelled(c) for c in labels], [records.spelled(t) for t in texts]
        if 2 <= len(texts) <= len(LETTERS) and None not in [*labels, *spelled]:
            return labels, [s if isinstance(t, str) else t for s, t in zip(spelled, texts, strict=True)]
    raise ValueError(f"{record[0]}: field {names.choices!r} is {json.dumps(value)[:60]}; it must be a list of 2 to "
                     f"{len(LETTERS)} choices, each a text or {{label, text}}")


def parse_answer(record: records.Record, names: Fields, grade: str) -> str:
    """A number in the verifier's spelling, or words. ValueError where it is neither."""
    raw = names.text(record, "answer")
    last = " ".join(raw.rpartition("####")[2].split())
    number = verifier.one_number(last)
    if grade == "number" and number is None:
        raise ValueError(f"{record[0]}: the answer {raw[-60:]!r} is not one number; --task jsonl compares words by "
                         "--grade text")
    if not verifier.normal(last):
        raise ValueError(f"{record[0]}: the answer {raw[-60:]!r} has no words to compare")
    return number if grade == "number" else last


def parse_letter(record: records.Record, names: Fields) -> tuple[str, tuple[str, ...]]:
    """(letter of the right choice, all choices). An answer names a label, else a text, else an index from 0 (MMLU).

    Where the file has no labels, the letters are: an answer "a" is refused then if it is also another choice's text.
    """
    labels, texts = parse_choices(record, names)
    choices = tuple(" ".join(str(t).split()) for t in texts)
    names.text(record, "answer")  # refuses what is neither text nor a number
    given = names.value(record, "answer")
    if isinstance(given, str):
        given, texts = given.strip(), [str(t) for t in texts]  # but the number 1 is not the text "1"
    known = labels or list(LETTERS[: len(texts)])
    hits = [listed.index(wanted) for listed, wanted in (
        (known, str(given)), ([n.lower() for n in known], str(given).lower()), (texts, given),
    ) if listed.count(wanted) == 1]
    if not hits and isinstance(given, int) and 0 <= given < len(texts):
        hits = [given]
    if not hits:
        raise ValueError(f"{record[0]}: the answer {str(given)[:40]!r} is neither a label ({', '.join(known)}) nor the "
                         "text of one choice, nor a number that counts them from 0")
    if not labels and len(set(hits)) > 1:
        raise ValueError(f"{record[0]}: the answer {given!r} is one choice's letter and another's text: write the "
                         "choices as {label, text}")
    return LETTERS[hits[0]], choices


def parse_rationale(record: records.Record, names: Fields) -> str:
    """A human rationale without the answer after "####" and without calculator notes (<<48/2=24>>)."""
    raw = names.text(record, "rationale")
    if names.rationale == names.answer and "####" not in raw:
        raise ValueError(f"{record[0]}: field {names.answer!r} has no '####' between solution and answer")
    rationale = re.sub(r"<<[^<>\n]*>>", "", raw.rpartition("####")[0] or raw).strip()
    if not rationale or rationale.startswith("####"):
        raise ValueError(f"{record[0]}: field {names.rationale!r} has no solution in front of its answer")
    return rationale


def read_shots(path: str | Path, choices: bool = False, answers: bool = True) -> list[Shot]:
    """Worked examples {question, rationale, answer}, and choices where the task has them. ValueError names the line."""
    names = Fields(choices="choices", rationale="rationale", advice="a few-shot example has question"
                   f"{', rationale and answer' if answers else ' and rationale'}{', and choices' * choices}")
    shots = []
    for i, record in enumerate(records.read_records(path), 1):
        question, rationale = (names.text(record, part) for part in ("question", "rationale"))
        answer = names.text(record, "answer") if answers else ""
        answer, listed = parse_letter(record, names) if choices else (answer, ())
        shots.append(Shot(Problem(f"example-{i}", question, answer, choices=listed), rationale))
    return shots


def examples(few_shot: Path | None, zero_shot: bool, shots: int | None, choices: bool = False,
             built_in: Path | None = None, usual: int | None = None, answers: bool = True) -> list[Shot]:
    """The examples to show: the user's, or those built in (the first `usual` of them); `shots` of them; or none."""
    if zero_shot:
        if few_shot or shots is not None:
            raise ValueError("--zero-shot shows no examples: leave out --few-shot and --shots")
        return []
    have = read_shots(few_shot or built_in, choices, answers)
    if shots is None:
        return have if few_shot else have[:usual]
    if not 1 <= shots <= len(have):
        raise ValueError(f"--shots is {shots}, but there are {len(have)} few-shot examples: give more by --few-shot")
    return have[:shots]


def load(data: Path, few_shot: Path | None = None, zero_shot: bool = False, shots: int | None = None,
         grade: str = "auto", fields: str = "", heldout: Path | None = None,
         heldout_share: float | None = None) -> Questions:
    """Raises FileNotFoundError or ValueError that names the file, the line and what to do.

    data: a .jsonl or .json file of questions and answers
    few_shot: file of worked examples {question, rationale, answer}
    zero_shot: no examples, an instruction instead
    shots: how many of the examples are shown (default: all)
    grade: answers are compared as number, choice or text, or there are none (default: as all of them can be read)
    fields: names in your file, as question=Body+Question,answer=Answer,choices=options,rationale=solution,group=Type;
        + joins several, dots look inside objects (default: question and answer)
    heldout: file of held-out problems (default: a part of --data)
    heldout_share: that part (default: 0.1)
    """
    if not few_shot and not zero_shot:
        raise ValueError("--task jsonl needs worked examples {question, rationale, answer}: name their file by "
                         "--few-shot, or show none by --zero-shot")
    if heldout and heldout_share is not None:
        raise ValueError("--heldout names the held-out problems, --heldout-share takes them from --data: leave one "
                         "of them out")
    if heldout_share is not None and not 1e-6 <= heldout_share <= 0.9:
        raise ValueError(f"--heldout-share is {heldout_share}; it must be a part of --data, from 1e-6 to 0.9")
    if grade not in ("auto", *GRADES):
        raise ValueError(f"--grade is {grade!r}; it must be one of {', '.join(GRADES)}")
    names, stem = parse_fields(fields), Path(data).stem
    shown = examples(few_shot, zero_shot, shots, names.choices is not None, answers=grade != "none")
    train, gold, found = read(data, names, grade, stem)
    if heldout:
        other = Path(heldout).stem
        held, more, _ = read(heldout, names, found, other if other != stem else f"heldout-{other}")
        gold |= more
    else:
        train, held = records.hold_out(train, 0.1 if heldout_share is None else heldout_share)
    task = Questions(train, held, shown, found, gold)
    odd = [p.id for p in [*train, *held] if verifier.one_number(p.answer) is None]
    if grade == "auto" and found == "text" and len(odd) * 2 < len(train) + len(held):
        task.notes.append(f"{len(odd)} with an answer that is no number, so words are compared: {records.named(odd)}")
    return task
