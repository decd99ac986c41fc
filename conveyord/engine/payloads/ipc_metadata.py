"""The messages of an Arrow IPC stream, and what they say of their size, read before Arrow acts on it.

Compressed buffers begin with the length that they claim to have once inflated, and Arrow takes so much memory first.
The metadata of a message is a flatbuffer; of it only what leads to the buffers is read here, and nothing is believed: a
place that lies elsewhere is at worst another number. Layout: the Arrow format's Message.fbs.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

END: Final = 0
SCHEMA: Final = 1
DICTIONARY_BATCH: Final = 2
RECORD_BATCH: Final = 3
OTHER: Final = -1
"""Kinds of messages: those of MessageHeader, the mark of the end, and what has none."""
_HEADER_TYPE, _HEADER, _BODY_LENGTH = 1, 2, 3  # fields of Message
_ROWS, _BUFFERS, _COMPRESSION = 0, 2, 3  # fields of RecordBatch
_ENDIANNESS = 0  # field of Schema
_DICTIONARY_DATA = 1  # field of DictionaryBatch
_CONTINUES = -1  # what a message begins with, but those of Arrow before 0.15
_INT, _SHORT, _UINT, _LONG = struct.Struct("<i"), struct.Struct("<H"), struct.Struct("<I"), struct.Struct("<q")
_BUFFER = struct.Struct("<qq")
DAMAGED = "a message of the stream is damaged or cut"


@dataclass(frozen=True, slots=True)
class Message:
    """One message: bytes `[first, end)` of the stream. size_bytes: of its buffers once inflated, as it claims."""

    kind: int
    first: int
    end: int
    rows: int = 0
    size_bytes: int = 0


def messages(value: bytes) -> Iterator[Message]:
    """The messages of a stream, as far as its end; its mark of the end is one too.

    Raises ValueError where they lead nowhere.
    """
    at = 0
    try:
        while at < len(value):
            first = at
            (length,) = _INT.unpack_from(value, at)
            at += _INT.size
            if length == _CONTINUES:
                (length,) = _INT.unpack_from(value, at)
                at += _INT.size
            if length == 0:
                yield Message(END, first, at)
                return
            body = at + length
            if length < 0 or body > len(value):
                raise ValueError(DAMAGED)
            found = _message(value, first, _table(value, at), body)
            yield found
            at = found.end
    except (struct.error, IndexError) as error:
        raise ValueError(DAMAGED) from error


def is_little_endian(head: bytes) -> bool:
    """Whether the numbers of a stream are as they are here. head: a message with a schema that Arrow could read."""
    at = 2 * _INT.size if _INT.unpack_from(head)[0] == _CONTINUES else _INT.size
    place = _place(head, _table(head, at), _HEADER)
    endianness = None if place is None else _place(head, _table(head, place), _ENDIANNESS)
    return endianness is None or _SHORT.unpack_from(head, endianness)[0] == 0


def _message(value: bytes, first: int, table: int, body: int) -> Message:
    """table: where the message's table stands. body: where its metadata ends."""
    end = body + _long(value, table, _BODY_LENGTH)
    if not body <= end <= len(value):
        raise ValueError(DAMAGED)
    place = _place(value, table, _HEADER_TYPE)
    kind = 0 if place is None else value[place]
    place = _place(value, table, _HEADER)
    if kind == DICTIONARY_BATCH and place is not None:
        place = _place(value, _table(value, place), _DICTIONARY_DATA)
    elif kind != RECORD_BATCH:
        return Message(kind or OTHER, first, end)
    if place is None:
        raise ValueError(DAMAGED)
    batch = _table(value, place)
    rows, size = _long(value, batch, _ROWS), end - body
    if _place(value, batch, _COMPRESSION) is not None:
        size = _inflated(value, batch, body, end)
    if rows < 0 or size < 0:
        raise ValueError(DAMAGED)
    return Message(kind, first, end, rows, size)


def _inflated(value: bytes, batch: int, body: int, end: int) -> int:
    """What all buffers of a batch claim to have once they are inflated."""
    place = _place(value, batch, _BUFFERS)
    if place is None:
        return 0
    vector = place + _UINT.unpack_from(value, place)[0]
    (count,) = _UINT.unpack_from(value, vector)
    if vector + _UINT.size + count * _BUFFER.size > body:
        raise ValueError(DAMAGED)
    total = 0
    for index in range(count):
        offset, length = _BUFFER.unpack_from(value, vector + _UINT.size + index * _BUFFER.size)
        if offset < 0 or length < 0 or body + offset + length > end:
            raise ValueError(DAMAGED)
        if length >= _LONG.size:
            (size,) = _LONG.unpack_from(value, body + offset)
            if size < -1:
                raise ValueError(DAMAGED)
            total += length if size == -1 else size  # -1: not compressed after all
    return total


def _table(value: bytes, at: int) -> int:
    """Where the table stands that the offset at `at` points to."""
    return int(at + _UINT.unpack_from(value, at)[0])


def _place(value: bytes, table: int, field: int) -> int | None:
    """Where the value of a table's field stands; None if it has its default."""
    fields = table - _INT.unpack_from(value, table)[0]
    entry = 4 + 2 * field
    if fields < 0 or entry + 2 > _SHORT.unpack_from(value, fields)[0]:
        return None
    offset = int(_SHORT.unpack_from(value, fields + entry)[0])
    return table + offset if offset else None


def _long(value: bytes, table: int, field: int) -> int:
    place = _place(value, table, field)
    return 0 if place is None else int(_LONG.unpack_from(value, place)[0])
