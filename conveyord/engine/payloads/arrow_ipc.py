"""The format `arrow_ipc`: each value an Arrow IPC stream, with any number of rows.

Nothing in a value is believed: its size is known before memory is taken for it, all of it is validated (an offset that
points elsewhere would be read where it points), and what is wrong makes the value bad, not its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from conveyord.core.units import format_bytes
from conveyord.engine.payloads.assembling import DAMAGE, Piece, assembled, sentence
from conveyord.engine.payloads.contract import BadPayload, Payloads
from conveyord.engine.payloads.decoded_size import decoded_bytes
from conveyord.engine.payloads.framing import UNUSABLE_SCHEMA
from conveyord.engine.payloads.ipc_metadata import END, RECORD_BATCH, SCHEMA, Message, is_little_endian, messages
from conveyord.engine.schema.types import bare_type

DECODED_BYTES_MAX = 256 * 1024 * 1024
"""Of one value: twelve times the largest message that brokers are usually told to take."""
SCHEMAS_MAX = 1_000  # that are known at a time
FILE_MAGIC = b"ARROW1"
_ROW_BYTES = 8  # what a row takes at least, even without columns: the number of its value
_COLUMNS_MAX = 10_000  # of a value, nested ones included; a table with more cannot be worked with


class _Bad(Exception):
    """A value that cannot be used. Never leaves this module."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


@dataclass(frozen=True, slots=True)
class _Columns:
    """What the first message of a stream says. is_plain: no encoding makes a value larger than it is in the stream."""

    schema: pa.Schema
    is_plain: bool


class ArrowIpcPayloads:
    """`PayloadDecoder` for Arrow IPC streams. decoded_bytes_max: of one value, inflated and without encodings."""

    def __init__(self, *, decoded_bytes_max: int = DECODED_BYTES_MAX) -> None:
        self._decoded_bytes_max = decoded_bytes_max
        self._columns = lru_cache(SCHEMAS_MAX)(_columns)

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """See `PayloadDecoder.decode`. Streams of different schemas become rows of one that has room for all.

        Types are those that a table has: see `engine/schema`. A stream without rows is not bad.
        """
        alike: dict[bytes, list[tuple[int, pa.RecordBatch]]] = {}
        bad: list[BadPayload] = []
        for number, value in enumerate(values):
            try:
                head, batches = self._batches(value)
            except _Bad as error:
                bad.append(BadPayload(number, error.code, error.reason))
            else:
                alike.setdefault(head, []).extend((number, batch) for batch in batches)
        return assembled([_piece(found) for found in alike.values()], schema, bad, count=len(values))

    def _batches(self, value: bytes) -> tuple[bytes, list[pa.RecordBatch]]:
        """The message with the schema, and the record batches, valid and of a size that can be held. Raises _Bad."""
        if value.startswith(FILE_MAGIC):
            raise _Bad("MALFORMED_RECORD", "an Arrow file; write an Arrow stream (IPC streaming format)")
        try:
            parts = list(messages(value))
            if not parts or parts[0].kind != SCHEMA:
                raise _Bad("MALFORMED_RECORD", "not an Arrow stream: it does not begin with a schema")
            self._check_size(sum(max(part.size_bytes, part.rows * _ROW_BYTES) for part in parts))
            head = value[: parts[0].end]
            columns = self._columns(head)
            if columns.is_plain:
                batches = _plain_batches(value, parts[1:], columns.schema)
            else:
                batches = _encoded_batches(value)
            for batch in batches:
                batch.validate(full=True)
            if not columns.is_plain:
                self._check_size(sum(decoded_bytes(column) for batch in batches for column in batch.columns))
        except DAMAGE as error:
            is_text = "UTF8" in str(error) or isinstance(error, UnicodeDecodeError)
            code = "INVALID_UTF8" if is_text else "MALFORMED_RECORD"
            raise _Bad(code, f"not an Arrow stream that can be read ({sentence(error)})") from error
        rest = len(value) - parts[-1].end
        if rest:
            raise _Bad(
                "MULTIPLE_VALUES", f"{rest} bytes follow the end of the Arrow stream; write one stream a message"
            )
        schema = columns.schema
        return head, batches or [pa.RecordBatch.from_arrays([pa.nulls(0, one.type) for one in schema], schema=schema)]

    def _check_size(self, size: int) -> None:
        if size > self._decoded_bytes_max:
            raise _Bad(
                "RECORD_TOO_LARGE",
                f"the value has {format_bytes(size)} of rows once they are decoded, more than "
                f"{format_bytes(self._decoded_bytes_max)}; write fewer rows a message, or raise max_decoded",
            )


def _plain_batches(value: bytes, parts: Sequence[Message], schema: pa.Schema) -> list[pa.RecordBatch]:
    """Batches read by themselves: their schema is known from another value, mostly, and need not be read again."""
    whole = pa.py_buffer(value)
    if any(part.kind not in (RECORD_BATCH, END) for part in parts):
        raise _Bad("MALFORMED_RECORD", "the Arrow stream has a message that its schema has no place for")
    found = (whole.slice(part.first, part.end - part.first) for part in parts if part.kind == RECORD_BATCH)
    return [pa.ipc.read_record_batch(buffer, schema) for buffer in found]


def _encoded_batches(value: bytes) -> list[pa.RecordBatch]:
    with pa.ipc.open_stream(pa.BufferReader(value)) as reader:
        return [batch.replace_schema_metadata(None) for batch in reader]


def _columns(head: bytes) -> _Columns:
    schema = pa.ipc.read_schema(pa.py_buffer(head))
    _check_columns(schema)
    return _Columns(schema.remove_metadata(), is_little_endian(head) and all(map(_is_plain, schema.types)))


def _is_plain(kind: pa.DataType) -> bool:
    """Whether each value takes bytes of its own in a stream: no encoding, and no type that takes none, as nulls do."""
    if pt.is_nested(kind):
        known = pt.is_struct(kind) or pt.is_list(kind) or pt.is_large_list(kind) or pt.is_map(kind)
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return known and bool(fields) and all(_is_plain(field.type) for field in fields)
    if pt.is_fixed_size_binary(kind):
        return bool(kind.byte_width)
    others = (pt.is_null, pt.is_dictionary, pt.is_run_end_encoded, pt.is_string_view, pt.is_binary_view)
    return not isinstance(kind, pa.BaseExtensionType) and not any(check(kind) for check in others)


def _piece(found: Sequence[tuple[int, pa.RecordBatch]]) -> Piece:
    """Batches of one schema, each with the number of its value, as one."""
    batches = [batch for _, batch in found]
    numbers = np.repeat(
        np.array([number for number, _ in found], np.int64), np.array([batch.num_rows for batch in batches], np.int64)
    )
    return Piece(batches[0] if len(batches) == 1 else pa.concat_batches(batches), numbers)


def _check_columns(schema: pa.Schema) -> None:
    """Raise _Bad for names that no column can have; UnicodeDecodeError for those that are no text."""
    count = 0
    groups: list[tuple[bool, list[pa.Field]]] = [(True, list(schema))]
    while groups:
        are_columns, fields = groups.pop()
        count += len(fields)
        if count > _COLUMNS_MAX:
            raise _Bad("TOO_DEEP", f"more than {_COLUMNS_MAX} columns, those within others included")
        names = [field.name for field in fields]
        if are_columns and len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise _Bad("DUPLICATE_KEY", f"two columns are named {twice!r}")
        if are_columns and any(not name or "\0" in name for name in names):
            raise _Bad("BAD_KEY", "the name of a column is empty or holds a NUL; rename it")
        for field in fields:
            kind = bare_type(field.type)
            if pt.is_union(kind):
                reason = (
                    f"the column {field.name!r} is a union, which no table has; write a column for each of its types"
                )
                raise _Bad(UNUSABLE_SCHEMA, reason)
            if pt.is_timestamp(kind):
                kind.tz  # noqa: B018 - asking shows whether it is text
            if pt.is_nested(kind):
                groups.append((pt.is_struct(kind), [kind.field(index) for index in range(kind.num_fields)]))
