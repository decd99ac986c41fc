"""Sink `stdout_pretty`: rows on standard output, as aligned tables or JSON lines, for people and pipes.

It keeps no positions, so every run starts from the beginning and a row may be shown again.
"""

from __future__ import annotations

import json
import sys
from typing import Literal

import orjson
import pyarrow as pa
from pydantic import Field
from rich.cells import cell_len, set_cell_size

from conveyord.engine.contracts import Inbound, OperatorConfig, OperatorContext, Sink, SinkReport
from conveyord.engine.messages import Batch, Eos
from conveyord.engine.schema.text import to_text

CELL_WIDTH_MAX = 60  # terminal cells; what is longer is cut, in tables only
ROWS_AT_A_TIME = 1_000  # rendered and written together, so that `limit: null` stays small in memory
# Control characters would let a record move the cursor or hide text, so they are shown escaped.
_ESCAPES = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0))}
_ESCAPES |= {ord("\n"): "\\n", ord("\t"): "\\t", ord("\r"): "\\r"}
_ABSENT = "-"


class StdoutPrettyConfig(OperatorConfig):
    """Prints rows. A file to keep is the business of another sink."""

    format: Literal["table", "json"] = Field(
        default="table", description="An aligned table per batch, or one JSON object a line."
    )
    limit: int | None = Field(default=20, ge=0, description="Rows shown in a run; null shows all.")


class StdoutPrettySink(Sink):
    """See docs/operators.md. Ends quietly when nobody reads its output any more (`| head`)."""

    Config = StdoutPrettyConfig
    delivery = "at-least-once"

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        self._rows = 0
        self._shown = 0

    async def open(self) -> None:
        """See `Sink.open`. There is nothing to open, and no position is ever held."""

    async def run(self, inbound: Inbound) -> None:
        """See `Sink.run`. Returning early, at a closed pipe, stops the stages before this one."""
        async for message in inbound:
            match message:
                case Batch():
                    if not await self.context.in_thread(self._show, message.data):
                        return
                    self.taken += message.tally
                    message.ack.settle()
                case Eos():
                    await self.context.in_thread(self._close)
                    return

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows beyond the limit count: they were taken, and said to be more."""
        return SinkReport(name=self.context.stage, rows=self._rows, files=0, commits=0)

    def _show(self, data: pa.RecordBatch) -> bool:
        """Print what the limit leaves of a batch; False if nobody reads. Blocking."""
        limit = self.config.limit
        room = data.num_rows if limit is None else max(0, min(data.num_rows, limit - self._shown))
        render = _json_lines if self.config.format == "json" else _table
        for first in range(0, room, ROWS_AT_A_TIME):
            part = data.slice(first, min(ROWS_AT_A_TIME, room - first))
            if not _write(render(part)):
                return False
            self._shown += part.num_rows
        self._rows += data.num_rows
        return True

    def _close(self) -> None:
        """Say how many rows were not shown. Blocking."""
        more = self._rows - self._shown
        if more == 0:
            return
        noun = "row" if more == 1 else "rows"
        note = f"... and {more:,} more {noun} (limit: {self.config.limit}; null shows all)"
        if self.config.format == "json":  # standard output stays JSON lines and nothing else
            sys.stderr.write(f"{note}\n")
        else:
            _write(f"{note}\n")


def _write(text: str) -> bool:
    """Write and flush, so that an acknowledged row has left the process. False if the pipe is closed."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        return False
    return True


def _texts(data: pa.RecordBatch) -> list[list[str | None]]:
    """Every column as one string per row: numbers as in JSON, times as ISO 8601, nested values as JSON."""
    return [to_text(_plain(column)).to_pylist() for column in data.columns]


def _plain(column: pa.Array) -> pa.Array:
    return column.dictionary_decode() if pa.types.is_dictionary(column.type) else column


def _table(data: pa.RecordBatch) -> str:
    """An aligned table with a header; numbers to the right."""
    columns = []
    for field, cells in zip(data.schema, _texts(data), strict=True):
        kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
        right = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
        shown = [_cell(field.name), *(_ABSENT if cell is None else _cell(cell) for cell in cells)]
        width = max(cell_len(cell) for cell in shown)
        padded = [_padded(cell, width, right=right) for cell in shown]
        columns.append([padded[0], "-" * width, *padded[1:]])
    return "".join("  ".join(row).rstrip() + "\n" for row in zip(*columns, strict=True))


def _cell(text: str) -> str:
    shown = text.translate(_ESCAPES)
    return shown if cell_len(shown) <= CELL_WIDTH_MAX else set_cell_size(shown, CELL_WIDTH_MAX - 3) + "..."


def _padded(cell: str, width: int, *, right: bool) -> str:
    space = " " * (width - cell_len(cell))
    return space + cell if right else cell + space


def _json_lines(data: pa.RecordBatch) -> str:
    """One object a line. NaN and the infinities, which JSON lacks, are null."""
    columns = [_plain(column) for column in data.columns]
    if not columns:
        return "{}\n" * int(data.num_rows)
    rows = to_text(pa.StructArray.from_arrays(columns, names=data.schema.names)).to_pylist()
    return "".join(_finite(row) + "\n" for row in rows)


def _finite(row: str) -> str:
    """`row` as JSON that every reader takes: Python's own writer lets NaN through."""
    if "NaN" in row or "Infinity" in row:
        return orjson.dumps(json.loads(row)).decode()
    return row
