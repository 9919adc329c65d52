"""The files that a user names: JSON, JSON Lines, CSV, TSV and parquet, each of them gzipped too, read strictly.

The name's ending says what a file is, unless what stands in it says otherwise. A record is an object and where it
stands: ("train.csv, line 12", {"question": ..., "answer": ...}). A line that cannot be read is named, never skipped.
What the fields of a record mean, this file does not know (star/tasks/records). It downloads nothing.
"""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from star.tasks import parquet, tables
from star.text import once

Text = TypeVar("Text", str, bytes)
Record = tuple[str, dict[str, Any]]  # where it stands ("train.jsonl, line 12"), and what stands there
KINDS = ".jsonl, .json, .csv, .tsv or .parquet"
TABLES = {".csv": ",;\t", ".tsv": "\t,;", ".tab": "\t,;"}  # ending -> delimiters, the likely one first
BLANKS = re.compile(r"\s*")
BY_LINES = {".jsonl", ".ndjson", ".txt", ""}  # endings of files whose lines are read one by one
MOST_UNPACKED, MOST_TIMES = 64 << 20, 50  # bytes of a gzipped file that may become more, but no more than so often


def find(data: Path, names: Sequence[str], inside: str, what: str) -> Path:
    """The file of one of these names in the folder `data`, or in its subfolder `inside`; `what` describes them.

    Raises FileNotFoundError where there is no such file.
    """
    folder = Path(data)
    if not folder.is_dir():
        is_what = "a file, not a folder" if folder.exists() else "not there"
        raise FileNotFoundError(f"--data {data} is {is_what}: give the folder with {what}")
    for file in (base / name for base in (folder, folder / inside) for name in names):
        if file.is_file():
            return file
    raise FileNotFoundError(f"--data {data} holds no {' or '.join(names)}: give the folder with {what}")


def read_records(path: str | Path, objects: bool = True, inside: str = "", wanted: bool = True) -> list[Record]:
    """All records of a file: of JSON Lines one a line; of JSON a list, or an object that holds one; of a table a row.

    objects: refuse what is no object. inside: where the list is in a JSON file ("data.train"); wanted: it must be so.
    Raises FileNotFoundError, or ValueError with the file and the line.
    """
    path = Path(path)
    if not path.is_file():
        is_what = ("a folder, not a file" if path.is_dir() else "a pipe or a device, not a file" if path.exists() else
                   "not there")
        raise FileNotFoundError(f"{path} is {is_what}: name a {KINDS} file")
    data, ending = _unpacked(path)
    if data[:4] == b"PAR1" or ending == ".parquet":
        records = parquet.rows(path, data)
    else:
        text = _decoded(path, data)
        del data  # one copy of a large file is enough
        top = re.match(r"\s*(.{0,9999})", text)[1]  # the first line, as far as it matters
        begins = top[:1]
        if ending in TABLES and begins not in ("{", "["):
            records = tables.rows(path, text, TABLES[ending])
        elif begins not in ("{", "[") and ending == ".txt" and "\t" in top:
            records = tables.rows(path, text, "\t")
        else:
            spread = begins == "[" or top.strip() == "{"
            whole = _document(path, text, ending) if ending == ".json" or spread or inside else None
            apart = _lines if not spread else _objects
            records = apart(path, text) if whole is None else _listed(path, whole[0], inside, wanted)
            inside = inside if whole is None else ""
    if inside and wanted:
        raise ValueError(f"{path} has no list {inside!r} inside, for it is a record a line: leave out --records")
    if not records:
        raise ValueError(f"{path} is empty: it needs JSON objects, one a line, or a table with a line of names")
    for where, record in records:
        if objects and not isinstance(record, dict):
            raise ValueError(f"{where}: a JSON object is needed, this is {shown(record)}")
    return records


def each(path: str | Path) -> Iterator[tuple[str, Any]]:
    """(where, value) of each line of a .jsonl file; a ValueError in place of what cannot be read. For files of which
    some lines may be left out; a file of another kind is read as a whole. FileNotFoundError."""
    path = Path(path)
    if path.suffix.lower() not in BY_LINES or not path.is_file():
        yield from read_records(path, objects=False)
        return
    for number, line in _numbered(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), rb"[^\n]+", b"\n"):
        where = f"{path}, line {number}"
        try:
            yield where, _parsed(where, line.decode())
        except UnicodeDecodeError:
            yield where, ValueError(f"{where} is not UTF-8 text: save the file as UTF-8")
        except ValueError as e:
            yield where, e


def shown(value: Any, most: int = 60) -> str:
    """The beginning of a value as JSON writes it, in one line; of dates and other things of parquet their text."""
    text = ""
    for piece in json.JSONEncoder(default=str).iterencode(value[:most] if isinstance(value, str) else value):
        text += piece[:most]
        if len(text) >= most:  # no megabytes for 60 characters
            break
    return text[:most]


def follow(value: Any, parts: Sequence[str]) -> Any:
    """What stands at the end of a path: names lead into objects, numbers into lists; a list of one need not be counted.
    KeyError if it leads nowhere."""
    for part in parts:
        if isinstance(value, list) and len(value) == 1 and not part.isdecimal():
            value = value[0]
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
            value = value[int(part)]
        else:
            raise KeyError(part)
    return value


def paths(value: Any, before: str = "", deep: int = 4) -> Iterator[str]:
    """The paths of what stands in a value: "question.stem", "choices.0.text"; of lists only what is first."""
    inner = value.items() if isinstance(value, dict) else [("0", value[0])] if isinstance(value, list) and value else []
    if before and (not inner or not deep or (isinstance(value, list) and not isinstance(value[0], dict | list))):
        yield before.removesuffix(".")
        return
    for name, one in inner:
        yield from paths(one, f"{before}{name}.", deep - 1)


# ------------------------------------------------------------------------------------------------------- bytes and text


def _unpacked(path: Path) -> tuple[bytes, str]:
    """(what a file holds, the ending of its name), without gzip's."""
    data, ending = path.read_bytes(), path.suffix.lower()
    if data[:2] == b"\x1f\x8b":
        ending = Path(path.stem).suffix.lower() if ending == ".gz" else ending
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                most = max(MOST_UNPACKED, MOST_TIMES * len(data))
                data = packed.read(most + 1)
        except (OSError, EOFError, zlib.error):
            raise ValueError(f"{path} is no whole gzip file: copy or download it again") from None
        if len(data) > most:
            raise ValueError(f"{path} holds more than {most:,} bytes, packed smaller than text can be: unpack it if "
                             "you trust it")
    if data[:4] == b"PK\x03\x04":
        raise ValueError(f"{path} is a zip archive or an Excel workbook: unpack it, or save the sheet as CSV (UTF-8)")
    if b"\0" in data and data[:4] != b"PAR1" and ending != ".parquet" and data[:2] not in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path}, line {data[: data.index(0)].count(10) + 1} holds a zero byte, so it is no text: "
                         f"name a {KINDS} file")
    return data, ending


def _decoded(path: Path, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        line = e.object[: e.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line} is not UTF-8 text: save the file as UTF-8") from None


# ----------------------------------------------------------------------------------------------------------------- JSON


def _lines(path: Path, text: str) -> list[Record]:
    lines = _numbered(text, r"[^\n]+", "\n")  # not splitlines: U+2028 may stand in a JSON string
    return [(f"{path}, line {n}", _parsed(f"{path}, line {n}", line)) for n, line in lines]


def _numbered(text: Text, line: Text, end: Text) -> Iterator[tuple[int, Text]]:
    """(number, line) of the lines that are not blank: a file of line breaks alone makes no list of them."""
    number, at = 1, 0
    for found in re.finditer(line, text):
        number, at = number + text.count(end, at, found.start()), found.start()
        if not found[0].isspace():
            yield number, found[0]


def _parsed(where: str, line: str) -> Any:
    try:
        return json.loads(line, object_pairs_hook=once)
    except (ValueError, RecursionError) as e:
        raise ValueError(f"{where} is not JSON ({_why(e)}): {line.strip()[:60]!r}") from None


def _objects(path: Path, text: str) -> list[Record]:
    """JSON objects of several lines each, one behind the other, as jq writes them."""
    reader, at, found = json.JSONDecoder(object_pairs_hook=once), 0, []
    line, counted = 1, 0
    while at < len(text):
        at = BLANKS.match(text, at).end()
        if at == len(text):
            break
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = reader.raw_decode(text, at)
        except (ValueError, RecursionError) as e:
            raise ValueError(f"{path}, line {getattr(e, 'lineno', line)} is not JSON ({_why(e)})") from None
        found.append((f"{path}, line {line}", value))
    return found


def _document(path: Path, text: str, ending: str) -> tuple[Any] | None:
    """(what a file holds that is one JSON value,), or None where it is JSON Lines, whatever its name says."""
    try:
        return (json.loads(text, object_pairs_hook=once) if text.strip() else [],)
    except (ValueError, RecursionError) as e:
        more = isinstance(e, json.JSONDecodeError) and e.msg == "Extra data"
        if more and (text.lstrip().startswith("{") or ending != ".json"):
            return None
        line = "" if "stands in it twice" in str(e) else f", line {getattr(e, 'lineno', 1)}"
        raise ValueError(f"{path}{line} is not JSON ({_why(e)})") from None


def _listed(path: Path, data: Any, inside: str, wanted: bool) -> list[Record]:
    """The records of a JSON document: of the list, or the object that holds them, at the path `inside`."""
    whole, at = data, f" at --records {inside}" if inside else ""
    if inside:
        try:
            data = follow(data, [inside] if isinstance(data, dict) and inside in data else inside.split("."))
        except KeyError:
            if not wanted:
                return _listed(path, data, "", wanted)
            raise ValueError(f"{path} has nothing{at}: {_where_lists_are(whole)}") from None
    rows = data if isinstance(data, list) else _rows(data) if isinstance(data, dict) else None
    if rows is None:
        raise ValueError(f"{path}{at} holds {len(list(_lists(data)))} lists; it must be a list of objects, or an "
                         f"object with one list: {_where_lists_are(whole)}")
    place = f"{path}, {inside}" if inside else path
    return [(f"{place}, entry {number}", record) for number, record in enumerate(rows, 1)]


def _rows(data: dict[str, Any]) -> list | None:
    """The records of an object: its values, its columns, or the only list of objects in it; None if it may be several.

    {"id-1": {"q": 1}, "id-2": {"q": 2}}   {"q": [1, 2], "a": [3, 4]}   {"name": "sums", "data": {"train": [{"q": 1}]}}
    """
    values = list(data.values())
    lists = [v for _, v in _lists(data)]
    of_objects = [v for v in lists if v and all(isinstance(one, dict) for one in v)]
    if len(values) > 1 and all(isinstance(v, dict) for v in values):
        common = set(values[0]).intersection(*values)
        if common and all(len(v) == len(common) for v in values) and all(map(str.isdecimal, common)):
            return [{name: column[row] for name, column in data.items()} for row in values[0]]  # columns, of pandas
        if common and (not of_objects or any(not isinstance(values[0][name], list | dict) for name in common)):
            return values
    if len(of_objects) == 1 or len(lists) == 1:
        return (of_objects or lists)[0]
    lengths = {len(v) if isinstance(v, list) else 0 for v in values}
    if len(lengths) == 1 and 0 not in lengths and not of_objects:
        return [dict(zip(data, row, strict=True)) for row in zip(*values, strict=True)]
    return None


def _lists(data: Any, before: str = "", deep: int = 4) -> Iterator[tuple[str, list]]:
    """(path, list) of the lists in an object, and in the objects in it."""
    for name, value in data.items() if isinstance(data, dict) and deep else ():
        if isinstance(value, list):
            yield f"{before}{name}", value
        yield from _lists(value, f"{before}{name}.", deep - 1)


def _where_lists_are(data: Any, most: int = 5) -> str:
    """For people: what --records could name."""
    found = [path for path, _ in _lists(data)]
    if not found:
        return "there is no list in it"
    return f"--records names a list inside ({', '.join(found[:most])}{', ...' * (len(found) > most)})"


def _why(e: Exception) -> str:
    """What json complains of, without its line number, which is 1 for every line that is read alone."""
    if isinstance(e, json.JSONDecodeError):
        return f"{e.msg}, column {e.colno}"
    return str(e) if "stands in it twice" in str(e) else "too deep, or a number too long"
