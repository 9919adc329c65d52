"""Files of records, a line of JSON each: appended so that a stop loses no line before the last, and read strictly."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

from star.evaluate import VERDICTS
from star.problem import SAMPLED, Generation

BESIDE = ("chunk", "check", "question", "right_answer")  # in a line of samples, beside its generation


def append(path: Path, records: list[dict]) -> None:
    """Add lines to a file; they are on the disk when this returns. OSError where it is full: then none is added."""
    data = "".join(json.dumps(r, allow_nan=False) + "\n" for r in records).encode()
    with open(path, "ab", buffering=0) as f:
        start = f.tell()
        try:
            while data:
                data = data[f.write(data) :]
            os.fsync(f.fileno())
        except OSError as e:
            f.truncate(start)
            raise OSError(e.errno, e.strerror, str(path)) from None


def read_lines(path: Path) -> list[dict]:
    """Records of a JSONL file; a last line that a stop cut short is left out. [] where there is no file.

    ValueError names the line that is no JSON object.
    """
    if not path.is_file():
        return []
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):  # behind the last newline is no whole line
        try:
            record = json.loads(line.decode(), parse_constant=_no_number)
            if not isinstance(record, dict):
                raise ValueError(f"it holds a {type(record).__name__}, not an object")
        except (ValueError, RecursionError) as e:
            why = e.msg if isinstance(e, json.JSONDecodeError) else e
            raise ValueError(f"{path} is damaged: line {number}: {why}; put the former file back") from None
        records.append(record)
    return records


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number in JSON")


def generation(record: dict) -> Generation:
    fields = {k: v for k, v in record.items() if k not in BESIDE}
    return Generation(**fields | {"tokens": tuple(fields["tokens"])})


def sealed(chunk: list[dict]) -> list[dict]:
    """The lines of a chunk with their number and a checksum over all of them, so that one that is lost or changed is
    seen."""
    told = [{k: v for k, v in r.items() if k not in ("chunk", "check")} for r in chunk]
    code = zlib.crc32(json.dumps(told).encode())
    return [r | {"chunk": len(chunk), "check": code} for r in told]


def chunks(records: list[dict], path: Path, fresh: bool = False) -> Iterator[list[dict]]:
    """The chunks of a samples file, but a last one that is cut short. ValueError names lines that are none, or are not
    as they were written. fresh: they are not yet, and sealed anew."""
    start = 0
    while start < len(records):
        size = records[start].get("chunk")
        if type(size) is not int or size < 1:
            raise ValueError(f"{path} is damaged: line {start + 1}: \"chunk\" is {size!r}, and must be at least 1")
        chunk = records[start : start + size]
        if len(chunk) < size:
            break
        if fresh:
            chunk = sealed(chunk)
        elif "check" in chunk[0] and sealed(chunk) != chunk:  # older versions wrote none
            raise ValueError(f"{path} is damaged: lines {start + 1} to {start + size} are not as they were written: "
                             "put the former file back, or take these and all behind them away: they are made again")
        yield chunk
        start += size


def whole_chunks(records: list[dict], path: Path = Path("samples")) -> list[dict]:
    """Leave out a last chunk that a stop cut short: made again with its former neighbours, it comes out the same.
    ValueError as in `chunks`."""
    return [r for chunk in chunks(records, path) for r in chunk]


def checked(record: dict, path: Path, number: int) -> Generation:
    """The generation of a line. ValueError names file and line where it is none that this version knows."""
    try:
        g = generation(record)
        named = g.phase in SAMPLED and g.verdict in VERDICTS
        numbers, texts = (g.iteration, g.sample, g.seed), (g.problem, g.text, g.answer or "", g.source, g.finish)
        scores = [x for x in (*(g.scores or {}).values(), g.reward, g.logprob) if x is not None]
        if not (named and all(type(n) is int for n in (*numbers, *g.tokens)) and all(isinstance(t, str) for t in texts)
                and all(type(s) in (int, float) and abs(s) < 1e300 for s in scores)
                and g.steps_right in (None, True, False)):
            raise TypeError("a field has a value that it cannot have")
    except (AttributeError, KeyError, TypeError) as e:
        raise ValueError(f"{path}, line {number}, is no generation that this version knows: {e}") from None
    return g
