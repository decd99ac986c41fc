"""Rows as the bodies of requests, each of a bounded size and with a name of its own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from conveyord.core.flow.positions import Span
from conveyord.engine.json_lines import json_lines

Format = Literal["json_array", "json_lines", "json_each"]
KEY_CHARACTERS = 32  # 128 bits of a digest: no two requests of a lifetime share one


@dataclass(frozen=True, slots=True)
class Piece:
    """Neighbouring rows of a batch that go into one request. first: the number of the first in its batch."""

    first: int
    rows: Sequence[bytes]

    def halves(self) -> tuple[Piece, Piece]:
        """The same rows as two pieces. There must be at least two."""
        middle = len(self.rows) // 2
        return Piece(self.first, self.rows[:middle]), Piece(self.first + middle, self.rows[middle:])

    def body(self, form: Format) -> bytes:
        """The content of the request."""
        match form:
            case "json_array":
                return b"[" + b",".join(self.rows) + b"]"
            case "json_lines":
                return b"".join(row + b"\n" for row in self.rows)
            case "json_each":
                (row,) = self.rows
                return row


def pieces_of(data: pa.RecordBatch, *, rows_max: int, bytes_max: int) -> list[Piece]:
    """The rows of a batch in order, as pieces of so many rows and about so many bytes. Blocking.

    A row that is larger by itself has a piece to itself.
    """
    pieces: list[Piece] = []
    rows: list[bytes] = []
    size = 0
    for number, row in enumerate(json_rows(data)):
        if rows and (len(rows) >= rows_max or size + len(row) > bytes_max):
            pieces.append(Piece(number - len(rows), rows))
            rows, size = [], 0
        rows.append(row)
        size += len(row) + 1
    if rows:
        pieces.append(Piece(data.num_rows - len(rows), rows))
    return pieces


def json_rows(data: pa.RecordBatch) -> list[bytes]:
    """One compact JSON object per row, as `engine/json_lines.py` writes them. Blocking."""
    return bytes(json_lines(data).text).split(b"\n")[:-1]


def idempotency_key(pipeline: str, stage: str, spans: Sequence[Span], piece: Piece) -> str:
    """The same for the same rows of the same records, in this run and in one that repeats it."""
    records = [[*span.partition, span.first, span.end] for span in spans]
    content = hashlib.sha256(b"\n".join(piece.rows)).hexdigest()
    text = json.dumps([pipeline, stage, records, piece.first, content])
    return hashlib.sha256(text.encode()).hexdigest()[:KEY_CHARACTERS]
