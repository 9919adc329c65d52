"""Anybody's questions and answers, from a file that `--data` names: most people need no code.

    python train.py --task jsonl --data my.jsonl --question-field q --answer-field a --few-shot examples.jsonl

    prompt          Q: {question}                     hinted     Q: {question} (Answer: 72)
                    A:                                           A:
    rationale        She earns 9 * 8 = 72. The answer is 72.
    with choices    Q: {question}                     hinted     ...
                    Answer Choices:                              (b) park (CORRECT)
                    (a) ...                                      ...
                    A:

The few-shot text is such examples, one behind the other; the hinted form is derived from the same ones. Answers are
graded as a number, the letter of a choice, or words (star/verifier). It downloads nothing, and changes no file.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from star import data as files
from star import verifier
from star.problem import Problem, Shot
from star.tasks import Task

LETTERS = "abcdefghijklmnopqrstuvwxyz"
FORMS = {"number": "the number", "choice": "the letter in brackets", "text": "the answer in a few words"}
MARKS = {"number": "(Answer:", "text": "(Answer:", "choice": "(CORRECT)"}
FEW = 20  # different answers at most, for a text task to have a chance level
_LIST = "\nAnswer Choices:\n"
_STATED = re.compile(r"answer(?:\s+is\b|\s*:)|####|\\boxed", re.I)
_TOLD = re.compile(  # a rationale that speaks of an answer it was shown
    r"\bhint\b|\banswer key\b|\bmarked\b(?!\s+(?:up|down)\b)"
    r"|\b(?:given|provided|told|stated|shown)\b[^.]{0,30}(?<!\bto )\banswers?\b"
    r"|\banswer\b[^.]{0,20}\b(?:given|provided)\b", re.I)


class Questions(Task):
    """Questions with short answers, behind worked examples or, zero-shot, an instruction.

    grade: "number" | "choice" | "text". An answer is a number in the verifier's spelling, a letter, or words.
    Raises ValueError for a few-shot example that is held out, or that does not arrive at its answer.
    """

    stop = ("\nQ:",)

    def __init__(self, train: list[Problem], heldout: list[Problem], shots: Sequence[Shot], grade: str,
                 gold: dict[str, str] | None = None):
        self.grade, self.shots, self.heldout, self._gold = grade, list(shots), heldout, gold or {}
        self.train, self.notes = files.disjoint(train, heldout, self.shots)
        self.hint_mark, self.direct = MARKS[grade], False
        sizes = {p.id: len(choices(p.question)) if grade == "choice" else 0 for p in [*train, *heldout]}
        self.letters = LETTERS[: max(sizes.values(), default=0)]
        common = Counter(p.answer for p in heldout).most_common()
        if grade == "choice" and heldout:
            self.chance = fmean(1 / max(sizes[p.id], 1) for p in heldout)
        elif grade == "text" and 0 < len(common) <= FEW:
            self.chance = common[0][1] / len(heldout)
        for i, shot in enumerate(self.shots, 1):
            self._check(shot, f"few-shot example {i} ({shot.question[:40]!r})")
        mute = [p.id for p in [*self.train, *heldout] if not self._arrives(self.ending(p.answer), p.answer)]
        if mute:
            self.notes.append(f"{len(mute)} with an answer that no rationale could state: {files.named(mute)}")

    def _check(self, shot: Shot, name: str) -> None:
        """ValueError for an example that arrives at another answer, or whose hint would not show."""
        said = self.answered(shot)
        if not self._arrives(said, shot.answer):
            raise ValueError(f"{name} says {said[-60:]!r}, which does not arrive at its answer {shot.answer!r} as a "
                             f"{self.grade}: correct one of them")
        if self._hint(shot.question, shot.answer) == self._ask(shot.question):
            raise ValueError(f"{name} has no line '{self.stated(shot.answer)} ...' to mark as right: put {_LIST!r} and "
                             "a line for each choice behind its question")

    @property
    def prefix(self) -> str:
        return "".join(f"{self._ask(s.question)}{self.answered(s)}\n\n" for s in self.shots)

    @property
    def hint_prefix(self) -> str:
        return "".join(f"{self._hint(s.question, s.answer)}{self.answered(s)}\n\n" for s in self.shots)

    def turns(self, hinted: bool = False) -> list[tuple[str, str]]:
        asked = [self._hint(s.question, s.answer) if hinted else self._ask(s.question) for s in self.shots]
        return [(spoken(ask), self.answered(s).strip()) for ask, s in zip(asked, self.shots, strict=True)]

    def said(self, problem: Problem, hinted: bool = False) -> str:
        return spoken(self.hinted(problem) if hinted else self.question(problem))

    def question(self, problem: Problem) -> str:
        return self._ask(problem.question)

    def hinted(self, problem: Problem) -> str:
        return self._hint(problem.question, problem.answer)

    def extract(self, text: str) -> str | None:
        if self.grade == "choice":
            return verifier.letter(text, self.letters)
        return verifier.number(text) if self.grade == "number" else verifier.phrase(text)

    def right(self, problem: Problem, text: str) -> bool:
        return self._arrives(text, problem.answer) and not self._misnamed(problem, text)

    def leaks(self, problem: Problem, text: str) -> bool:
        """Does it quote its hint, speak of one, or give nothing but the answer that it was shown?"""
        own = verifier.own(text)
        words = re.findall(r"\w+", re.sub(r"(?i)\b(?:so|the|final|correct|answer|is)\b", "", own))
        bare = len(words) <= len(re.findall(r"\w+", self.stated(problem.answer))) + 1
        return self.hint_mark in text or bare or bool(_TOLD.search(own))

    def gold(self, problem: Problem) -> str | None:
        if not self.direct and problem.id not in self._gold:
            return None
        return self._closed(self._gold.get(problem.id, ""), problem.answer)

    def answers_only(self) -> "Questions":
        view = copy(self)
        view.direct = True
        return view

    def parse(self, text: str) -> Problem:
        if not text.strip():
            raise ValueError("the question is empty: type one")
        return Problem("typed", text.strip(), "")

    def answered(self, shot: Shot) -> str:
        """What stands behind "A:" in an example. One that states an answer in its own way ("#### 72") keeps to that."""
        said = shot.rationale.strip()
        own = _STATED.search(said) and self.extract(said) is not None
        return f" {said}" if own and not self.direct else self._closed(said, shot.answer)

    def ending(self, answer: str) -> str:
        return f" The answer is {self.stated(answer).rstrip('.')}."

    def stated(self, answer: str) -> str:
        """An answer as rationales state it: 72, (b), the Red Sea."""
        return f"({self.spelling(answer)})" if self.grade == "choice" else answer

    def spelling(self, answer: str) -> str | None:
        """An answer in the verifier's spelling, that rationales are compared in."""
        if self.grade == "choice":
            return answer.strip(" ().").lower()
        return verifier.one_number(answer) if self.grade == "number" else verifier.normal(answer)

    def _arrives(self, text: str, answer: str) -> bool:
        found = self.extract(text)
        return found is not None and found == self.spelling(answer)

    def _closed(self, rationale: str, answer: str) -> str:
        """A rationale and behind it "The answer is 72."; without reasoning that sentence alone."""
        end = self.ending(answer)
        if self.direct:
            return end
        stop = "" if rationale.endswith((".", "!", "?")) else "."
        return f" {rationale}" if rationale.endswith(end.strip()) else f" {rationale}{stop}{end}"

    def _ask(self, question: str) -> str:
        how = "" if self.shots else f"\nReason step by step, and end with: The answer is (...), {FORMS[self.grade]}."
        if self.direct and not self.shots:
            how = f"\nGive {FORMS[self.grade]} alone: The answer is (...)."
        return f"Q: {question}{how}\nA:"

    def _hint(self, question: str, answer: str) -> str:
        if self.grade != "choice":
            return self._ask(f"{question} (Answer: {answer})")
        stem, line, listed = question.rpartition(_LIST)
        right = re.compile(rf"^({re.escape(self.stated(answer))} .*)$", re.M)
        return self._ask(stem + line + right.sub(r"\1 (CORRECT)", listed, count=1))

    def _misnamed(self, problem: Problem, text: str) -> bool:
        """ "The answer is (a) park" where (b) is the park: the letter is right, but the words are another choice's."""
        letter = self.spelling(problem.answer)
        listed = {c: t.casefold() for c, t in choices(problem.question).items()} if self.grade == "choice" else {}
        if letter not in listed:
            return False
        names = sorted(listed.values(), key=len, reverse=True)  # "park bench" is tried before "park"
        behind = re.compile(rf"\b{letter}[).:]+\s*({'|'.join(map(re.escape, names))})(?!\w)")
        return any(m[1] != listed[letter] for m in behind.finditer(verifier.own(text).casefold()))


def choices(question: str) -> dict[str, str]:
    """letter -> text of the choices that stand in a question."""
    return dict(re.findall(r"^\(([a-z])\) (.*)$", question.rpartition(_LIST)[2], re.M))


def with_choices(stem: str, texts: Sequence[str]) -> str:
    """A question and its choices, a line each."""
    lines = [f"({letter}) {' '.join(t.split())}" for letter, t in zip(LETTERS, texts, strict=False)]
    return stem + _LIST + "\n".join(lines)


def spoken(prompt: str) -> str:
    """A prompt as a person would say it in a conversation: without the letters that mark question and answer."""
    return prompt.removeprefix("Q: ").removesuffix("\nA:")


@dataclass(frozen=True)
class Fields:
    """What a record calls its parts: "question.stem" looks inside an object, "Body,Question" joins two fields.

    rationale: of a human one; in the field of the answer it stands in front of "####".
    """

    question: str = "question"
    answer: str = "answer"
    rationale: str | None = None
    choices: str | None = None
    group: str | None = None

    def advice(self, part: str) -> str:
        return f"--task jsonl takes another by --{part}-field"

    def text(self, record: files.Record, part: str) -> str:
        return files.text(record, getattr(self, part), self.advice(part))


def read(path: str | Path, fields: Fields, grade: str, name: str) -> tuple[list[Problem], dict[str, str], str]:
    """(problems with ids "name-1", id -> human rationale, grade) of a file. Grade "auto" is found from all of it."""
    records = files.read_records(path)
    if grade == "auto" and fields.choices is None:
        answers = (fields.text(r, "answer").rpartition("####")[2] for r in records)
        grade = "text" if any(verifier.one_number(a) is None for a in answers) else "number"
    grade = "choice" if grade == "auto" else grade
    if (grade == "choice") != (fields.choices is not None):
        raise ValueError("--grade choice and --choices-field belong together: give both, or neither")
    problems, gold = [], {}
    for i, record in enumerate(records, 1):
        question, listed = fields.text(record, "question"), None
        if fields.choices is not None:
            listed = parse_choices(record, fields)
            question = with_choices(question, [str(t) for t in listed[1]])
        group = fields.text(record, "group") if fields.group is not None else ""
        problems.append(Problem(f"{name}-{i}", question, parse_answer(record, fields, grade, listed), group))
        if fields.rationale is not None:
            gold[problems[-1].id] = parse_rationale(record, fields)
    return problems, gold, grade


def parse_choices(record: files.Record, fields: Fields) -> tuple[list[str], list]:
    """(labels, if it has any; choices) of a record: texts, {label, text} each, or {"label": [...], "text": [...]}."""
    value = files.field(record, fields.choices, fields.advice("choices"))
    labels, texts = [], value
    if isinstance(value, dict):
        labels, texts = value.get("label", []), value.get("text")
    elif isinstance(value, list) and all(isinstance(c, dict) for c in value):
        labels, texts = ([c.get(k) for c in value] for k in ("label", "text"))
    if isinstance(texts, list) and isinstance(labels, list) and len(labels) in (0, len(texts)):
        said, names = [files.spelled(t) for t in texts], [files.spelled(c) for c in labels]
        if 2 <= len(texts) <= len(LETTERS) and None not in [*said, *names]:
            return names, [s if isinstance(t, str) else t for s, t in zip(said, texts, strict=True)]
    raise ValueError(f"{record[0]}: field {fields.choices!r} is {json.dumps(value)[:60]}; it must be a list of 2 to "
                     f"{len(LETTERS)} choices, each a text or {{label, text}}")


def parse_answer(record: files.Record, fields: Fields, grade: str, listed: tuple[list[str], list] | None = None) -> str:
    """A number in the verifier's spelling, the letter of a choice, or words. ValueError where it is none of these."""
    raw = fields.text(record, "answer")
    if listed is not None:
        return parse_letter(record, fields, *listed)
    last = " ".join(raw.rpartition("####")[2].split())
    number = verifier.one_number(last)
    if grade == "number" and number is None:
        raise ValueError(f"{record[0]}: the answer {raw[-60:]!r} is not one number; --task jsonl compares words by "
                         "--grade text")
    if not verifier.normal(last):
        raise ValueError(f"{record[0]}: the answer {raw[-60:]!r} has no words to compare")
    return number if grade == "number" else last


def parse_letter(record: files.Record, fields: Fields, labels: list[str], texts: list) -> str:
    """The letter of the choice that an answer names by its label, else by its text, else by its index from 0 (MMLU).

    Where the file has no labels, the letters are: an answer "a" is refused then if it is also another choice's text.
    """
    given = files.field(record, fields.answer, fields.advice("answer"))
    if isinstance(given, str):
        given, texts = given.strip(), [str(t) for t in texts]  # but the number 1 is not the text "1"
    names = labels or list(LETTERS[: len(texts)])
    hits = [listed.index(wanted) for listed, wanted in (
        (names, str(given)), ([n.lower() for n in names], str(given).lower()), (texts, given),
    ) if listed.count(wanted) == 1]
    if not hits and isinstance(given, int) and 0 <= given < len(texts):
        hits = [given]
    if not hits:
        raise ValueError(f"{record[0]}: the answer {str(given)[:40]!r} is neither a label ({', '.join(names)}) nor the "
                         "text of one choice, nor a number that counts them from 0")
    if not labels and len(set(hits)) > 1:
        raise ValueError(f"{record[0]}: the answer {given!r} is one choice's letter and another's text: write the "
                         "choices as {label, text}")
    return LETTERS[hits[0]]


def parse_rationale(record: files.Record, fields: Fields) -> str:
    """A human rationale without the answer behind "####" and without calculator notes (<<48/2=24>>)."""
    raw = fields.text(record, "rationale")
    if fields.rationale == fields.answer and "####" not in raw:
        raise ValueError(f"{record[0]}: field {fields.answer!r} has no '####' between solution and answer")
    rationale = re.sub(r"<<[^<>\n]*>>", "", raw.rpartition("####")[0] or raw).strip()
    if not rationale or rationale.startswith("####"):
        raise ValueError(f"{record[0]}: field {fields.rationale!r} has no solution in front of its answer")
    return rationale


def examples(few_shot: str | None, zero_shot: bool, shots: int | None, own: Sequence[Shot] = (),
             usual: int | None = None) -> list[Shot]:
    """The examples to show: the user's, or the task's own (the first `usual` of them); `shots` of them; or none."""
    if zero_shot:
        if few_shot or shots is not None:
            raise ValueError("--zero-shot shows no examples: leave out --few-shot and --shots")
        return []
    have = files.read_shots(few_shot) if few_shot else list(own)
    if shots is None:
        return have if few_shot else have[:usual]
    if not 1 <= shots <= len(have):
        raise ValueError(f"--shots is {shots}, but there are {len(have)} few-shot examples: give more by --few-shot")
    return have[:shots]


def load(data: str | None = None, heldout: str | None = None, heldout_share: float | None = None,
         few_shot: str | None = None, zero_shot: bool = False, shots: int | None = None, grade: str = "auto",
         question_field: str = "question", answer_field: str = "answer", rationale_field: str | None = None,
         choices_field: str | None = None, group_field: str | None = None) -> Questions:
    """Raises FileNotFoundError or ValueError that names the file, the line and what to do."""
    if data is None:
        raise ValueError("--data names no file: --task jsonl reads a .jsonl or .json file of questions and answers")
    if not few_shot and not zero_shot:
        raise ValueError("--task jsonl needs worked examples {question, rationale, answer}: name their file by "
                         "--few-shot, or show none by --zero-shot")
    if heldout and heldout_share is not None:
        raise ValueError("--heldout names the held-out problems, --heldout-share draws them: leave one of them out")
    if grade not in ("auto", *FORMS):
        raise ValueError(f"--grade is {grade!r}; it must be one of {', '.join(FORMS)}")
    shown = examples(few_shot, zero_shot, shots)
    fields, stem = Fields(question_field, answer_field, rationale_field, choices_field, group_field), Path(data).stem
    train, gold, found = read(data, fields, grade, stem)
    if heldout:
        name = Path(heldout).stem
        held, more, _ = read(heldout, fields, found, name if name != stem else f"heldout-{name}")
        gold |= more
    else:
        train, held = files.share(train, 0.1 if heldout_share is None else heldout_share)
    task = Questions(train, held, shown, found, gold)
    numbers = {p.id for p in [*train, *held] if verifier.one_number(p.answer) is not None}
    if grade == "auto" and found == "text" and len(numbers) * 2 > len(train) + len(held):
        odd = [p.id for p in [*train, *held] if p.id not in numbers]
        task.notes.append(f"{len(odd)} with an answer that is no number, so words are compared: {files.named(odd)}")
    return task
