"""How verbs answer: an aligned table for people, or the reply as the API has it, in JSON or YAML.

JSON and YAML are part of the interface: field names, units and values are those of `api/messages.py`. Tables are not.
"""

from __future__ import annotations

import shutil
import sys
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

import click

FORMATS = ("table", "wide", "json", "yaml")
CELL_CHARS_MAX = 60  # of columns but the last; wider values are cut in tables, never in wide ones, JSON or YAML
LAST_CHARS_MIN = 20  # of the last column, however narrow the terminal is
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

RowT = TypeVar("RowT")


@dataclass(frozen=True)  # no slots: Python 3.11 could not make a `Column[Row](...)` then
class Column(Generic[RowT]):
    """cell: its text for a row. is_wide: for `-o wide` alone. is_number: to the right."""

    head: str
    cell: Callable[[RowT], str]
    is_wide: bool = False
    is_number: bool = False


def show(document: Any, columns: Sequence[Column[RowT]], rows: Sequence[RowT], output: str) -> None:
    """Print `rows` as a table, or `document` (a reply, or what JSON knows) as JSON or YAML. No row: no table."""
    if output in ("json", "yaml"):
        write(_document(document, output))
        return
    if rows:
        is_wide = output == "wide"
        shown = [column for column in columns if is_wide or not column.is_wide]
        for line in lines_of(shown, rows, cell_chars_max=None if is_wide else CELL_CHARS_MAX, width=_terminal_width()):
            click.echo(line)


def show_facts(document: Any, facts: Mapping[str, str], output: str) -> None:
    """Print one thing: a line for each fact, or `document` as `show` does. Facts without a text are left out."""
    if output in ("json", "yaml"):
        write(_document(document, output))
        return
    longest = max(map(len, facts))
    for label, text in facts.items():
        if text:
            click.echo(f"{label:<{longest}}  {printable(text)}")


def show_done(document: Any, sentence: str, output: str) -> None:
    """Print what there is to say, line by line, or `document` as `show` does."""
    if output in ("json", "yaml"):
        write(_document(document, output))
    else:
        for line in sentence.splitlines():
            click.echo(printable(line))


def write(content: bytes) -> None:
    """Write to stdout, and all of it: where Python is told not to buffer, one write may take a part without a word."""
    left = memoryview(content)
    while left:
        left = left[sys.stdout.buffer.write(left) :]
    sys.stdout.buffer.flush()


def lines_of(
    columns: Sequence[Column[RowT]], rows: Sequence[RowT], *, cell_chars_max: int | None, width: int | None
) -> list[str]:
    """The lines of a table, heads first. width: of the terminal, at which the last column is cut; None for nowhere."""
    cells = [[cut(printable(column.cell(row)), cell_chars_max) for column in columns[:-1]] for row in rows]
    last = [printable(columns[-1].cell(row)) for row in rows]
    heads = [column.head.upper() for column in columns]
    widths = [max(width_of(text) for text in texts) for texts in zip(heads[:-1], *cells, strict=True)]
    room = None if width is None else max(width - sum(widths) - 2 * len(widths), LAST_CHARS_MIN)
    if columns[-1].is_number:
        widest = max(map(width_of, (heads[-1], *last)))
        last, heads[-1] = [" " * (widest - width_of(text)) + text for text in last], heads[-1].rjust(widest)
    lines = []
    for row, end in zip((heads[:-1], *cells), (heads[-1], *last), strict=True):
        padded = [_pad(text, wide, column) for text, wide, column in zip(row, widths, columns, strict=False)]
        lines.append("  ".join([*padded, cut(end, room)]).rstrip())
    return lines


def printable(text: str) -> str:
    """`text` on one line, with what would move a terminal's cursor replaced."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def width_of(text: str) -> int:
    """How many columns of a terminal `text` takes."""
    if text.isascii():
        return len(text)
    return sum(map(_char_width, text))


def cut(text: str, width_max: int | None) -> str:
    """`text`, or as much of it as fits, with an ellipsis."""
    if width_max is None or width_of(text) <= width_max:
        return text
    kept, taken = "", 0
    for char in text:
        taken += _char_width(char)
        if taken > width_max - 1:
            break
        kept += char
    return kept + "…"


def age(seconds: float) -> str:
    """A span of time in its largest unit: `45s`, `3m`, `2h`, `12d`. What lies ahead by differing clocks is `0s`."""
    whole = max(0, int(seconds))
    for unit, size, least in (("d", 86_400, 2 * 86_400), ("h", 3_600, 3_600), ("m", 60, 60)):
        if whole >= least:
            return f"{whole // size}{unit}"
    return f"{whole}s"


def moment(at_ms: int) -> str:
    """A time as ISO 8601 in UTC, to the second. The number itself if no calendar has it."""
    try:
        return (EPOCH + timedelta(milliseconds=at_ms)).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        return f"{at_ms} ms"


def _document(document: Any, output: str) -> bytes:
    import msgspec

    encoded = msgspec.json.encode(document)
    if output == "json":
        return encoded + b"\n"
    import yaml

    # From JSON, so that both say the same: bytes are base64 in either.
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    plain = msgspec.json.decode(encoded)
    return bytes(yaml.dump(plain, Dumper=dumper, sort_keys=False, allow_unicode=True, width=10_000, encoding="utf-8"))


def _terminal_width() -> int | None:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _pad(text: str, width: int, column: Column[RowT]) -> str:
    blank = " " * (width - width_of(text))
    return blank + text if column.is_number else text + blank


def _char_width(char: str) -> int:
    if unicodedata.combining(char):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1
