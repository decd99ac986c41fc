"""What `produce` sends: the lines of a file as values, with a key taken out of them."""

from __future__ import annotations

import csv
import gzip
import io
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from conveyord.core.errors import ConfigError, RecordError

if TYPE_CHECKING:
    import _csv

Format = Literal["json", "csv"]

STDIN = "-"
READ_BYTES = 256 * 1024  # at most at a time: what comes down a pipe is sent as it comes
LINES_AT_A_TIME = 1_000
LINE_BYTES_MAX = 64 * 1024 * 1024  # more is no line, but a file without any


@dataclass(slots=True)
class Lines:
    """Neighbouring records of a file. numbers: of the lines on which they begin, from 1."""

    numbers: list[int] = field(default_factory=list)
    values: list[bytes] = field(default_factory=list)
    keys: list[bytes | None] | None = None

    @property
    def bytes(self) -> int:
        return sum(map(len, self.values))

    def cut(self, first: int, end: int) -> Lines:
        """Some of them."""
        keys = None if self.keys is None else self.keys[first:end]
        return Lines(self.numbers[first:end], self.values[first:end], keys)


@dataclass(frozen=True, slots=True)
class LineReader:
    """How a file is read. key: the field of every record whose value becomes its key; None: no keys."""

    path: str
    form: Format
    key: str | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return "standard input" if self.path == STDIN else self.path

    def records(self) -> Iterator[Lines]:
        """The records in order, some at a time. Blank lines are none.

        Raises ConfigError if the file cannot be read, RecordError for a record that is none.
        """
        with self._reading(), self._opened() as file:
            lines = _numbered(_cut(file, self.name))
            yield from self._of_csv(lines) if self.form == "csv" else self._of_json(lines)

    def _of_json(self, blocks: Iterable[list[tuple[int, bytes]]]) -> Iterator[Lines]:
        for block in blocks:
            kept = [(number, line) for number, line in block if line.strip()]
            for first in range(0, len(kept), LINES_AT_A_TIME):
                some = kept[first : first + LINES_AT_A_TIME]
                values = [line for _, line in some]
                keys = None if self.key is None else [self._key_in(number, line) for number, line in some]
                yield Lines([number for number, _ in some], values, keys)

    def _key_in(self, number: int, line: bytes) -> bytes | None:
        try:
            value = json.loads(line)
        except ValueError as error:
            raise self._bad(number, f"is not JSON, so no key can be taken out of it ({error})") from error
        if not isinstance(value, dict):
            raise self._bad(number, "is no JSON object, so no key can be taken out of it")
        return self._key(number, value)

    def _key(self, number: int, record: dict[str, Any]) -> bytes | None:
        assert self.key is not None
        found = record.get(self.key)
        if isinstance(found, dict | list):
            raise self._bad(number, f"has an object or a list as {self.key!r}, which cannot be a key")
        if found is None or isinstance(found, str):
            return None if found is None else found.encode()
        return json.dumps(found).encode()

    def _of_csv(self, blocks: Iterable[list[tuple[int, bytes]]]) -> Iterator[Lines]:
        line_number = 0

        def texts() -> Iterator[str]:
            nonlocal line_number
            for block in blocks:
                for number, line in block:
                    line_number = number
                    try:
                        yield line.decode("utf-8-sig" if number == 1 else "utf-8") + "\n"
                    except UnicodeDecodeError as error:
                        raise self._bad(number, "is not UTF-8") from error

        try:
            rows = csv.reader(texts(), strict=True)
            header = next(rows, None)
            if header is None:
                return
            if len(set(header)) < len(header) or "" in header:
                raise self._bad(1, "is a header with an empty or a repeated name")
            if self.key is not None and self.key not in header:
                raise ConfigError(f"{self.name} has no column {self.key!r}, but {', '.join(header)}; mend --key")
            while some := list(islice(self._of_rows(rows, header), LINES_AT_A_TIME)):
                keys = None if self.key is None else [self._key(0, record) for record in some]
                values = [json.dumps(record, ensure_ascii=False, separators=(",", ":")).encode() for record in some]
                yield Lines([line_number] * len(some), values, keys)
        except csv.Error as error:
            raise self._bad(line_number, f"cannot be read as CSV ({error})") from error

    def _of_rows(self, rows: _csv.Reader, header: list[str]) -> Iterator[dict[str, str]]:
        for row in rows:
            if row and len(row) != len(header):
                shown = ",".join(row)[:80]
                raise self._bad(
                    rows.line_num, f"ends a row of {len(row)} cells, the header has {len(header)}: {shown!r}"
                )
            if row:
                yield dict(zip(header, row, strict=True))

    def _bad(self, number: int, reason: str) -> RecordError:
        return RecordError(f"{self.name}:{number}", f"the line {reason}")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        import zstandard

        try:
            yield
        except (EOFError, gzip.BadGzipFile, zstandard.ZstdError) as error:
            raise ConfigError(f"{self.name} is damaged or cut off ({error})") from error
        except OSError as error:
            raise ConfigError(f"{self.name} cannot be read: {error.strerror or error}") from error

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if self.path == STDIN:
            yield sys.stdin.buffer
            return
        with Path(self.path).open("rb") as file:
            if self.path.endswith(".gz"):
                with gzip.open(file) as inflated:
                    yield io.BufferedReader(inflated)
            elif self.path.endswith(".zst"):
                import zstandard

                with zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) as inflated:
                    yield io.BufferedReader(inflated)
            else:
                yield file


def format_of(path: str) -> Format:
    """What the ending of a file's name says: CSV, or lines of JSON."""
    return "csv" if path.removesuffix(".gz").removesuffix(".zst").endswith(".csv") else "json"


def _cut(file: IO[bytes], name: str) -> Iterator[list[bytes]]:
    """The lines of a file without their ends, as many at a time as there are."""
    rest = b""
    read = getattr(file, "read1", file.read)
    while block := read(READ_BYTES):
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > LINE_BYTES_MAX:
            raise ConfigError(f"{name} has a line of more than {LINE_BYTES_MAX} bytes; are its records lines?")
        if lines:
            yield [line.removesuffix(b"\r") for line in lines]
    if rest:
        yield [rest.removesuffix(b"\r")]


def _numbered(blocks: Iterable[list[bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    number = 1
    for block in blocks:
        yield list(enumerate(block, number))
        number += len(block)
