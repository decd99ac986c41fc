"""Query results as text: an aligned table, JSON or CSV, with values that mean one thing."""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, TextIO

import pyarrow as pa

CELL_CHARS_MAX = 60  # wider values are cut in tables, never in JSON or CSV


def rows_of(batch: pa.RecordBatch) -> Iterator[list[Any]]:
    """The rows of a batch as values that JSON knows.

    Timestamps, dates and times are ISO 8601 text to their full precision, decimals are text because a
    JSON number would lose digits, binary is base64, and floats that JSON lacks are `NaN`, `Infinity`
    and `-Infinity` as text.
    """
    columns = [_column_values(column) for column in batch.columns]
    for row in zip(*columns, strict=True):
        yield [plain(value) for value in row]


def plain(value: Any) -> Any:
    """One value as JSON knows it; see `rows_of`."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(value, "NaN")
        case datetime():
            return value.isoformat().replace("+00:00", "Z")
        case date() | time():
            return value.isoformat()
        case bytes():
            return base64.b64encode(value).decode("ascii")
        case dict():
            return {str(key): plain(item) for key, item in value.items()}
        case tuple() if len(value) == 2:  # an entry of a map: pairs, because keys need not be text
            return [plain(item) for item in value]
        case list() | tuple():
            return [plain(item) for item in value]
        case Decimal() | timedelta():
            return str(value)
        case _:
            return str(value)


def write_json(file: TextIO, columns: Sequence[str], rows: Iterator[list[Any]]) -> int:
    """Write a list of objects, one per line, as rows arrive. Returns their number."""
    count = 0
    for row in rows:
        file.write(
            ("[" if count == 0 else ",\n ") + json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False)
        )
        count += 1
    file.write("]\n" if count else "[]\n")
    return count


def write_csv(file: TextIO, columns: Sequence[str], rows: Iterator[list[Any]]) -> int:
    """Write a header and rows; null is empty, nested values are JSON. Returns the number of rows."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(columns)
    count = 0
    for row in rows:
        writer.writerow(["" if value is None else _text(value) for value in row])
        count += 1
    return count


def write_table(file: TextIO, schema: pa.Schema, rows: Sequence[list[Any]]) -> None:
    """Write rows aligned under their column names, numbers to the right."""
    right = [pa.types.is_integer(f.type) or pa.types.is_floating(f.type) or pa.types.is_decimal(f.type) for f in schema]
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max([len(name), *(len(row[index]) for row in cells)]) for index, name in enumerate(schema.names)]
    for row in ([_cell(name) for name in schema.names], ["-" * width for width in widths], *cells):
        padded = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        file.write("  ".join(padded).rstrip() + "\n")


def _cell(value: Any) -> str:
    text = "" if value is None else _text(value)
    text = "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
    return text if len(text) <= CELL_CHARS_MAX else text[: CELL_CHARS_MAX - 1] + "…"


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)


def _column_values(column: pa.Array) -> list[Any]:
    if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
        # Python's datetime ends at microseconds and pyarrow would refuse the rest.
        texts = column.cast(pa.string()).to_pylist()
        return [None if text is None else text.replace(" ", "T", 1) for text in texts]
    try:
        return list(column.to_pylist())
    except (OverflowError, ValueError):  # a time beyond the year 9999, which Python's datetime cannot hold
        return list(column.cast(pa.string()).to_pylist())
