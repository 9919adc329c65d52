"""Data files that a user names: JSON Lines or JSON, read strictly. A line that does not fit is named, never skipped.

It knows fields and lines; what a question or an answer is, the tasks know. It downloads nothing.
"""

import json
import math
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from star.problem import Problem, Shot
from star.text import once

Record = tuple[str, dict[str, Any]]  # where it stands ("train.jsonl, line 12"), and what stands there


def find(data: Path, names: Sequence[str], inside: str, what: str) -> Path:
    """The file of one of these names in the folder `data`, or in its subfolder `inside`; `what` describes them.

    Raises FileNotFoundError where there is no such file.
    """
    folder = Path(data)
    if not folder.is_dir():
        is_what = "a file, not a folder" if folder.is_file() else "not there"
        raise FileNotFoundError(f"--data {data} is {is_what}: give the folder with {what}")
    for file in (base / name for base in (folder, folder / inside) for name in names):
        if file.is_file():
            return file
    raise FileNotFoundError(f"--data {data} holds no {' or '.join(names)}: give the folder with {what}")


def read_records(path: str | Path, objects: bool = True) -> list[Record]:
    """Objects of a .jsonl file (one a line), or of a .json file: a list, or an object that holds one list.

    Raises FileNotFoundError, or ValueError with the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        is_what = "a folder, not a file" if path.is_dir() else "not there"
        raise FileNotFoundError(f"{path} is {is_what}: name a .jsonl or .json file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 text: save the file as UTF-8") from None
    records = _whole(path, text) if path.suffix.lower() == ".json" else _lines(path, text)
    if not records:
        raise ValueError(f"{path} is empty: it needs JSON objects, one a line")
    for where, record in records:
        if objects and not isinstance(record, dict):
            raise ValueError(f"{where}: a JSON object is needed, this is {json.dumps(record)[:60]}")
    return records


def each(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line of a .jsonl file; a ValueError in place of what cannot be read. For files of which
    some lines may be left out; a .json file is read as a whole. FileNotFoundError."""
    path = Path(path)
    if path.suffix.lower() == ".json" or not path.is_file():
        yield from read_records(path, objects=False)
        return
    for number, line in enumerate(path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield where, _parsed(where, line.decode())
            except UnicodeDecodeError:
                yield where, ValueError(f"{where} is not UTF-8 text: save the file as UTF-8")
            except ValueError as e:
                yield where, e


def _lines(path: Path, text: str) -> list[Record]:
    lines = enumerate(text.split("\n"), 1)  # not splitlines: U+2028 may stand in a JSON string
    return [(f"{path}, line {n}", _parsed(f"{path}, line {n}", line)) for n, line in lines if line.strip()]


def _parsed(where: str, line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where} is not JSON ({_why(e)}): {line.strip()[:60]!r}") from None


def _whole(path: Path, text: str) -> list[Record]:
    try:
        data = json.loads(text) if text.strip() else []
    except (ValueError, RecursionError) as e:
        if isinstance(e, json.JSONDecodeError) and e.msg == "Extra data" and text.lstrip().startswith("{"):
            return _lines(path, text)  # JSON Lines under another name
        raise ValueError(f"{path}, line {getattr(e, 'lineno', 1)} is not JSON ({_why(e)})") from None
    inside = data.values() if isinstance(data, dict) else [data]
    lists = [value for value in inside if isinstance(value, list)]
    if len(lists) != 1:
        raise ValueError(f"{path} holds {len(lists)} lists; it must be a list of objects, or an object with one list")
    return [(f"{path}, entry {number}", record) for number, record in enumerate(lists[0], 1)]


def _why(e: Exception) -> str:
    """What json complains of, without its line number, which is 1 for every line that is read alone."""
    if isinstance(e, json.JSONDecodeError):
        return f"{e.msg}, column {e.colno}"
    return str(e) if "stands in it twice" in str(e) else "too deep, or a number too long"


def field(record: Record, name: str, advice: str) -> Any:
    """A record's field; "question.stem" looks inside an object. ValueError that names the line, and what there is."""
    where, value = record
    for part in [name] if name in value else name.split("."):
        if not isinstance(value, dict) or part not in value:
            there = ", ".join(map(repr, value)) if isinstance(value, dict) and value else json.dumps(value)
            raise ValueError(f"{where} has no field {name!r} (there is {there[:200]}): {advice}")
        value = value[part]
    return value


def text(record: Record, names: str, advice: str) -> str:
    """Text of a field, or of several ("Body+Question"), one sentence after the other. ValueError if it has none."""
    parts = []
    for name in map(str.strip, names.split("+")):
        value = field(record, name, advice)
        spelling = spelled(value)
        if spelling is None:
            raise ValueError(f"{record[0]}: field {name!r} is {json.dumps(value)[:60]}; it must be text or a number")
        parts.append(spelling)
    ended = [p if re.search(r"[^\w\s]$", p) else p + "." for p in parts[:-1]]
    return " ".join([*ended, parts[-1]])


def spelled(value: Any) -> str | None:
    """Text or a number as text; None for all else: null, true, NaN, a list, blanks, half a surrogate pair."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    spelling = str(value).strip()
    return spelling if spelling and not re.search("[\ud800-\udfff]", spelling) else None


def key(problem: Problem) -> str:
    """What makes two problems the same: the words of their question and of their choices."""
    return " ".join(re.findall(r"\w+|[^\w\s]", " | ".join([problem.question, *problem.choices]).casefold()))


def disjoint(train: list[Problem], heldout: list[Problem], shots: Sequence[Shot]) -> tuple[list[Problem], list[str]]:
    """(train without what is held out, without repeats and few-shot examples; a line on each reason).

    Raises ValueError if a few-shot example is held out, since every prompt would show it, or if nothing is left.
    """
    held = {key(p): p.id for p in heldout}
    for i, shot in enumerate(shots, 1):
        if key(shot.problem) in held:
            raise ValueError(f"few-shot example {i} is held-out problem {held[key(shot.problem)]}: every prompt would "
                             "show it; take another")
    gone: dict[str, list[str]] = {"held out": [], "few-shot example": [], "repeats another": []}
    seen, shown, kept = set(), {key(s.problem) for s in shots}, []
    for p in train:
        k = key(p)
        why = ("held out" if k in held else "few-shot example" if k in shown else
               "repeats another" if k in seen else None)
        seen.add(k)
        if why:
            gone[why].append(p.id)
        else:
            kept.append(p)
    notes = [f"{len(ids)} left out of training ({why}): {named(ids)}" for why, ids in gone.items() if ids]
    if train and not kept:
        raise ValueError(f"nothing is left to train on; {'; '.join(notes)}")
    return kept, notes


def named(ids: Sequence[str]) -> str:
    """The first few of them: "a, b, c and 7 more"."""
    return ", ".join(ids[:3]) + (f" and {len(ids) - 3} more" if len(ids) > 3 else "")


def hold_out(problems: list[Problem], part: float) -> tuple[list[Problem], list[Problem]]:
    """(train, held-out): a random part is held out, the same in every run of every seed."""
    n = max(1, round(part * len(problems)))
    chosen = set(random.Random("held-out").sample(range(len(problems)), min(n, len(problems))))
    return ([p for i, p in enumerate(problems) if i not in chosen], [p for i, p in enumerate(problems) if i in chosen])
