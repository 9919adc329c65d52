"""Parquet files, as data sets are downloaded: each row an object, each value as it was written.

Needs the extra `parquet` (pyarrow). A value that Python cannot hold is named with its row.
"""

import struct
from collections import Counter
from pathlib import Path
from typing import Any

NO_VALUE = (ValueError, OverflowError, OSError)  # of a date of the year 20000, of bytes that are no text
MOST_EXACT = 1 << 24  # whole numbers up to here are exact in 32 bits
FLOATS = {"float": "f", "halffloat": "e"}  # what pyarrow calls 32 and 16 bits -> what struct does


def rows(path: Path, data: bytes) -> list[tuple[str, dict[str, Any]]]:
    """(where, row) of all rows. ValueError with the file, and the row where it is one."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError(f"{path}: parquet files need the package pyarrow: pip install -e '.[parquet]'") from None
    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(data))
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        raise ValueError(f"{path} is no parquet file that can be read ({str(e).partition(chr(10))[0][:120]})") from None
    names = table.column_names
    twice, times = Counter(names).most_common(1)[0] if names else ("", 1)
    if times > 1:
        raise ValueError(f"{path} names the column {twice[:40]!r} twice")
    columns = [_column(path, name, table.column(name)) for name in names]
    return [(f"{path}, row {number}", dict(zip(names, row, strict=True)))
            for number, row in enumerate(zip(*columns, strict=True), 1)]


def _column(path: Path, name: str, column: Any) -> list:
    try:
        values = column.to_pylist()
    except NO_VALUE:
        if str(column.type).startswith(("timestamp[ns", "time64[ns")):  # Python's own have no nanoseconds
            return column.cast("string").to_pylist()
        for number, value in enumerate(column, 1):  # one by one, to find it
            try:
                value.as_py()
            except NO_VALUE as e:
                raise ValueError(f"{path}, row {number}: field {name!r} is a {str(value.type)[:40]} that cannot be "
                                 f"read ({str(e)[:80]}): save it as text") from None
        raise
    return [_as_written(v, column.type) for v in values] if "float" in str(column.type) else values


def _as_written(value: Any, kind: Any) -> Any:
    """A value with its floats of 32 and 16 bits as they were written: 1.1, and not 1.100000023841858."""
    if isinstance(value, float) and str(kind) in FLOATS:
        return value if value.is_integer() and abs(value) <= MOST_EXACT else _shortest(value, FLOATS[str(kind)])
    inner = [kind.field(i) for i in range(kind.num_fields)]
    if isinstance(value, dict):
        return {f.name: _as_written(value[f.name], f.type) for f in inner}
    if isinstance(value, tuple):  # of a map
        return tuple(_as_written(v, f.type) for v, f in zip(value, inner, strict=True))
    if isinstance(value, list) and len(inner) == 1:
        return [_as_written(v, inner[0].type) for v in value]
    return value


def _shortest(value: float, form: str) -> float:
    """The number of fewest digits that is this one in so few bits."""
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        try:
            if struct.pack(form, short) == struct.pack(form, value):
                return short
        except OverflowError:  # rounded up, beyond the largest
            continue
    return value
