"""Anybody's questions and answers, from a file that `--data` names: most people need no code.

    python train.py --task jsonl --data my.csv --fields question=q,answer=a --few-shot examples.jsonl

It puts together what is told of a file by flags, and reads few-shot examples. What records of such files look like,
star/tasks/fields knows; how a question is asked and graded, star/tasks/questions. It downloads nothing, and changes no
file.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from star.problem import Problem, Shot
from star.tasks import choices, files, verifier
from star.tasks.fields import (
    DECIMAL_COMMA,
    PARTS,
    Fields,
    parse_choices,
    parse_fields,
    parse_problem,
    parse_rationale,
    raw_answer,
    read,
)
from star.tasks.questions import Questions
from star.tasks.records import Record, hold_out, named

GRADES = ("number", "choice", "text", "set", "value", "none")
EXAMPLES = Path(__file__).with_name("examples")  # of the tasks that bring their few-shot examples along
PLAIN = Fields()
USUAL = Fields(choices="choices", rationale="rationale", numbers="numbers")  # what few-shot files call their fields


def read_shots(path: str | Path, grade: str = "text", names: Fields = PLAIN, way: str | None = None,
               inside: str = "") -> list[Shot]:
    """Worked examples, by the fields of the data; what a record does not have of these, it has as {question, rationale,
    answer}, and choices or numbers where the task has them. ValueError names the line."""
    parts = ["question", "rationale", *["answer"] * (grade != "none")]
    advice = f"a few-shot example has {', '.join(parts[:-1])} and {parts[-1]}" + (
        ", and choices" if grade == "choice" else ", and numbers" if names.numbers else "") + (
        ", or the fields that --fields names" if names != PLAIN else "")
    lines = [(r, _own_fields(r, names, grade, advice)) for r in files.read_records(path, inside=inside, wanted=False)]
    rationales = [(parse_rationale if own.rationale == own.answer else _rationale)(r, own) for r, own in lines]
    rows = [row for r, own in lines for row in parse_choices([r], own)] if grade == "choice" else []
    right, _ = choices.right_ones(rows, way)
    found = []
    for i, (r, own) in enumerate(lines):
        if grade == "choice":
            problem = parse_problem(r, own, grade, r[0], rows[i][1], right[i])
        else:  # the answer stays as it is written: `Questions` says whether the rationale arrives at it
            problem = parse_problem(r, own, "none", r[0])
            problem = replace(problem, answer=raw_answer(r, own, grade) if grade != "none" else "")
        found.append(Shot(problem, rationales[i]))
    return found


def _rationale(record: Record, names: Fields) -> str:
    return names.text(record, "rationale")


def _own_fields(line: Record, names: Fields, grade: str, advice: str) -> Fields:
    """Which of the data's fields, and which of the usual ones, an example has."""
    needed = {"question", "answer", "rationale", "choices" if grade == "choice" else ""}
    if names.has(line, "numbers") or (names.numbers and USUAL.has(line, "numbers")):
        needed.add("numbers")
    wanted = {part: getattr(USUAL, part) for part in PARTS if part in needed}
    for part in wanted:  # a rationale under its usual name was written for the example, whatever else it has
        if names.has(line, part) and not (part == "rationale" and USUAL.has(line, part)):
            wanted[part] = getattr(names, part)
    template = names.template if names.template and names.has(line, "question") else ""
    return Fields(**wanted, template=template, truths=names.truths, advice=advice)


def examples(few_shot: Path | None, zero_shot: bool, shots: int | None, grade: str = "text", names: Fields = PLAIN,
             built_in: Path | None = None, usual: int | None = None, way: str | None = None,
             inside: str = "") -> list[Shot]:
    """The examples to show: the user's, or those built in (the first `usual` of them); `shots` of them; or none."""
    if zero_shot:
        if few_shot or shots is not None:
            raise ValueError("--zero-shot shows no examples: leave out --few-shot and --shots")
        return []
    have = read_shots(few_shot or built_in, grade, names, way, inside)
    if shots is None:
        return have if few_shot else have[:usual]
    if not 1 <= shots <= len(have):
        raise ValueError(f"--shots is {shots}, but there are {len(have)} few-shot examples: give more by --few-shot")
    return have[:shots]


def load(data: Path, few_shot: Path | None = None, zero_shot: bool = False, shots: int | None = None,
         grade: str = "auto", fields: str = "", template: str = "", records: str = "", heldout: Path | None = None,
         heldout_records: str = "", heldout_share: float | None = None, shuffle_choices: bool = False,
         all_numbers: bool = False) -> Questions:
    """Raises FileNotFoundError or ValueError that names the file, the line and what to do.

    data: a .jsonl, .json, .csv, .tsv or .parquet file of questions and answers
    few_shot: file of worked examples, with the fields of --data or {question, rationale, answer}
    zero_shot: no examples, an instruction instead
    shots: how many of the examples are shown (default: all)
    grade: answers are compared as number, choice, text, set (in any order) or value (of arithmetic), or there are none
        (default: as all of them can be read)
    fields: names in your file, as question=Body+Question,answer=Answer,choices=options,rationale=solution,group=Type;
        + joins several, dots look inside objects and lists; numbers=nums is what an expression may be made of, each
        once (default: question and answer, and choices where all have some)
    template: the question, of fields in braces, as 'Make {target} of {nums}.' (default: the field question)
    records: where the list of questions is in a JSON file, as data.train (default: its one list)
    heldout: file of held-out problems (default: a part of --data)
    heldout_records: where they are in a JSON file, --heldout or --data (default: as --records)
    heldout_share: that part (default: 0.1)
    shuffle_choices: choices in an order of each problem's own, the same in every run
    all_numbers: an expression must use every given number
    """
    _refuse(few_shot, zero_shot, heldout or heldout_records, heldout_share, grade)
    names, stem = parse_fields(fields, template), Path(data).stem
    lines = [(files.read_records(data, inside=records), stem)]
    if heldout or heldout_records:
        other = Path(heldout or data).stem
        held = files.read_records(heldout or data, inside=heldout_records or records, wanted=bool(heldout_records))
        lines.append((held, other if other != stem else f"heldout-{other}"))
    found = read(lines, names, grade)
    shown = examples(few_shot, zero_shot, shots, found.grade, found.names, way=found.way, inside=records)
    part = 0.1 if heldout_share is None else heldout_share
    train, held = found.parts if len(lines) > 1 else hold_out(found.parts[0], part)
    if not train:
        raise ValueError(f"{data} holds {len(held)} problem{'s, all of one question' * (len(held) > 1)}, which "
                         "--heldout-share holds out, so that nothing is left to train on: give more, or name held-out "
                         "problems by --heldout")
    notes = list(found.notes)
    if shuffle_choices:
        train, held, shown, told = _shuffled(found.grade, train, held, shown)
        notes += told
    if all_numbers and names.numbers is None:
        raise ValueError("--all-numbers asks for every given number: name them by --fields numbers=...")
    task = Questions(train, held, shown, found.grade, found.gold, all_numbers, found.names.truths)
    task.notes += notes + (_no_numbers([*task.train, *held]) if grade == "auto" and found.grade == "text" else [])
    return task


def _no_numbers(problems: list[Problem]) -> list[str]:
    """A line where answers are compared as words because some of them only nearly are numbers."""
    odd = [p for p in problems if verifier.one_number(p.answer) is None]
    commas = [p for p in odd if DECIMAL_COMMA.fullmatch(p.answer)]
    if len(commas) * 2 > len(odd):
        return [f"{len(commas)} with an answer like {commas[0].answer!r}, so words are compared: numbers are read with "
                f"a decimal point, not a comma: {named([p.id for p in commas])}"]
    if len(odd) * 2 < len(problems):
        return [f"{len(odd)} with an answer that is no number, so words are compared: {named([p.id for p in odd])}"]
    return []


def _refuse(few_shot: Path | None, zero_shot: bool, heldout: Path | str | None, share: float | None,
            grade: str) -> None:
    """ValueError for flags that do not go together."""
    if not few_shot and not zero_shot:
        raise ValueError("--task jsonl needs worked examples {question, rationale, answer}: name their file by "
                         "--few-shot, or show none by --zero-shot")
    if heldout and share is not None:
        raise ValueError("--heldout names the held-out problems, --heldout-share takes them from --data: leave one "
                         "of them out")
    if share is not None and not 1e-6 <= share <= 0.9:
        raise ValueError(f"--heldout-share is {share}; it must be a part of --data, from 1e-6 to 0.9")
    if grade not in ("auto", *GRADES):
        raise ValueError(f"--grade is {grade!r}; it must be one of {', '.join(GRADES)}")


def _shuffled(grade: str, train: list[Problem], heldout: list[Problem], shown: Sequence[Shot]) -> tuple[
        list[Problem], list[Problem], list[Shot], list[str]]:
    """(train, heldout, examples, lines for the user) with choices in another order."""
    if grade != "choice":
        raise ValueError("--shuffle-choices moves choices, and there are none: name them by --fields choices=...")
    kept = [p.id for p in [*train, *heldout] if choices.keeps_order(p)]
    notes = [f"{len(kept)} keep the order of their choices, for these speak of each other (\"all of the above\"), or "
             f"the question of their letters: {named(kept)}"] if kept else []
    moved = [Shot(choices.shuffled(s.problem), s.rationale) if not choices.SAYS_LETTER.search(s.rationale) else s
             for s in shown]
    return [choices.shuffled(p) for p in train], [choices.shuffled(p) for p in heldout], moved, notes
