"""Tables as text, CSV and TSV: a first line of names, and rows that have as many cells.

A row that does not fit is named, never skipped. Which file it is, and in which encoding, star/tasks/files knows.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

MOST_OF_CELL = 1 << 24  # characters, of which csv holds 4 bytes each; by itself it reads 131,072


class Swallowed(ValueError):
    """Quotes that open in one row of a table and close in another: where a row ends, nobody knows."""


class Row(dict):
    """A record of a table, whose first line named its fields. `records.field` says so where one is missing."""


def rows(path: Path, text: str, delimiters: str) -> list[tuple[str, Row]]:
    """Of a table with a line of names: the delimiter is the first with which every row has as many cells as there are
    names. Between tabs a quote may be text, if cells in quotes are not what the file has."""
    first = 1
    if told := re.match(r"sep=([^\w\s\"]|\t)\r?\n", text, re.I):  # Excel says so
        delimiters, text, first = told[1], text[told.end() :], 2
    head = text.lstrip().partition("\n")[0]
    usual = [d for d in delimiters if d in head] or [delimiters[0]]
    failed = {}
    for delimiter in usual:
        for quotes in (True, False) if delimiter == "\t" else (True,):
            try:
                return _rows(path, text, delimiter, quotes, first)
            except Swallowed:
                raise
            except ValueError as e:
                failed.setdefault(delimiter, e)
    raise failed[max(usual, key=head.count)] from None


def _rows(path: Path, text: str, delimiter: str, quotes: bool, first: int) -> list[tuple[str, Row]]:
    """ValueError for a row of another length than the first, which has the names; Swallowed."""
    quoting = csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE
    reader = csv.reader(_lines(text), delimiter=delimiter, quoting=quoting, strict=True,
                        skipinitialspace=delimiter != "\t")
    names, found, begins, before = None, [], first, csv.field_size_limit(MOST_OF_CELL)
    try:
        for cells in reader:
            where, begins = f"{path}, line {begins}", reader.line_num + first
            if not any(map(str.strip, cells)):
                continue
            if delimiter == "\t" and _swallows(cells):
                raise Swallowed(f"{where}: a quote opens here and closes in line {reader.line_num + first - 1}, but "
                                "each of these lines is a row too: leave out the quotes, or write them twice in quotes")
            if names is None:
                names = [name.strip() for name in cells]
                twice, times = Counter(filter(None, names)).most_common(1)[0]
                if times > 1:
                    raise ValueError(f"{where} names the column {twice[:40]!r} twice: the first line must name each "
                                     f"column, and no two alike; {no_names(names)}".rstrip("; "))
            elif len(cells) != len(names):
                advice = (f"one that holds {delimiter!r} must stand in quotes" if len(cells) > len(names) else
                          f"an empty one keeps its {delimiter!r}, and one that holds a line break stands in quotes")
                raise ValueError(f"{where} has {len(cells)} cell{'s' * (len(cells) != 1)}, and the first line names "
                                 f"{len(names)} columns: {advice}")
            else:
                found.append((where, Row((n, c) for n, c in zip(names, cells, strict=True) if n)))
    except csv.Error as e:
        raise ValueError(f"{path}, line {begins}: its quotes do not close where a cell ends ({e}); a quote inside a "
                         "cell is written twice") from None
    finally:
        csv.field_size_limit(before)
    return found


def _lines(text: str) -> Iterator[str]:
    """With their ends, as csv wants them. (io.StringIO takes four bytes a character.)"""
    return (line[0] for line in re.finditer(r"[^\r\n]*(?:\r\n?|\n)|[^\r\n]+", text))


def _swallows(cells: list[str]) -> bool:
    """Are the lines of a row between tabs rows themselves, each with as many cells? Then a quote began as text."""
    tabs = [line.count("\t") for line in "\t".join(cells).split("\n")]
    return len(tabs) > 1 and tabs[0] > 0 and len(set(tabs)) == 1


def no_names(cells: Sequence[str]) -> str:
    """What to do about a first line that looks like data: a number in it, a sentence, the letter of an answer; "" where
    it looks like names."""
    data = any(re.fullmatch(r"\W?[0-9][0-9.,:/ %-]*", c) or len(c) > 40 or c.count(" ") > 3 or "?" in c for c in cells)
    if not data and sum(len(c) == 1 for c in cells) != 1:  # A, B, C and D are names
        return ""
    inside = [chr(ord("A") + i) for i in range(len(cells) - 2)] if 4 <= len(cells) <= 28 else []
    return (f"if the first line is a question, put a line of names on top: {','.join(['question', *inside, 'answer'])}"
            + f", and --fields choices={'+'.join(inside)}" * bool(inside))
