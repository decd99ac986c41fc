"""The format `protobuf`: messages framed for a registry, each with the place of its type in the schema's file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from conveyord.core.errors import RecordError
from conveyord.engine.payloads.assembling import Piece, assembled, sentence
from conveyord.engine.payloads.contract import BadPayload, Payloads
from conveyord.engine.payloads.framing import FRAME_BYTES, UNUSABLE_SCHEMA, unframed
from conveyord.engine.payloads.protobuf.columns import BeyondRange, MessageColumns, columns_of
from conveyord.engine.payloads.protobuf.descriptors import Descriptors, UnusableSchema, check_installed
from conveyord.storage.schema_registry import SchemaRegistry

TYPES_MAX = 1_000  # of messages, kept at a time
INDEXES_MAX = 32  # levels of messages within messages; a file with more is none
_FIRST = b"\0"  # how the first message of a file is named
Indexes = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Type:
    """One message type: its class, and what its messages become."""

    message: Any
    columns: MessageColumns


class ProtobufPayloads:
    """`PayloadDecoder` for Protobuf messages that begin with the id of their schema in a registry.

    A field that is not set is null if it can be told from one that holds nothing; a message with fields that its schema
    does not have is bad, because they would be lost.
    """

    def __init__(self, registry: SchemaRegistry) -> None:
        """Raises ConfigError if the packages that are needed are not installed."""
        check_installed()
        self._registry = registry
        self._descriptors = lru_cache(TYPES_MAX)(self._compiled)
        self._type = lru_cache(TYPES_MAX)(self._made)

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """See `PayloadDecoder.decode`. A schema that is new may have to be compiled, which takes a moment."""
        by_id, bad = unframed(values)
        pieces: list[Piece] = []
        for schema_id, stretch in by_id:
            for indexes, numbers, messages in _by_type(values, stretch.numbers.tolist(), bad):
                try:
                    made = self._type(schema_id, indexes)
                except RecordError as error:
                    bad += [BadPayload(number, error.code, error.reason) for number in numbers]
                else:
                    pieces += _pieces(made, numbers, messages, bad)
        return assembled(pieces, schema, bad, count=len(values))

    def _made(self, schema_id: int, indexes: Indexes) -> _Type:
        from google.protobuf.message_factory import GetMessageClass

        try:
            descriptor = self._descriptors(schema_id).message(indexes)
            return _Type(GetMessageClass(descriptor), columns_of(descriptor))
        except UnusableSchema as error:
            place = f"schema {schema_id}"
            raise RecordError(place, f"{place}: {error}", code=UNUSABLE_SCHEMA) from error

    def _compiled(self, schema_id: int) -> Descriptors:
        found = self._registry.schema(schema_id)
        if found.kind != "PROTOBUF":
            place = f"schema {schema_id}"
            raise RecordError(place, f"{place} is of the type {found.kind}, not Protobuf", code=UNUSABLE_SCHEMA)
        return Descriptors(found.text, found.references)


def _by_type(
    values: Sequence[bytes], of: Sequence[int], bad: list[BadPayload]
) -> Iterator[tuple[Indexes, list[int], list[bytes]]]:
    """The messages and the numbers of their values, those given as `of`, by the place of their message type."""
    found: dict[Indexes, tuple[list[int], list[bytes]]] = {}
    for number in of:
        value = values[number]
        indexes: Indexes = (0,)
        end = FRAME_BYTES + 1
        if not value.startswith(_FIRST, FRAME_BYTES):
            try:
                indexes, end = _indexes(value)
            except ValueError:
                reason = "the place of its message type is not readable; is it Protobuf, as a registry frames it?"
                bad.append(BadPayload(number, "MALFORMED_RECORD", reason))
                continue
        numbers, messages = found.setdefault(indexes, ([], []))
        numbers.append(number)
        messages.append(value[end:])
    for indexes, (numbers, messages) in found.items():
        yield indexes, numbers, messages


def _indexes(value: bytes) -> tuple[Indexes, int]:
    """The numbers before the message, and where it begins. Raises ValueError."""
    count, at = _varint(value, FRAME_BYTES)
    if not 0 < count <= INDEXES_MAX:
        raise ValueError
    found = []
    for _ in range(count):
        index, at = _varint(value, at)
        found.append(index)
    return tuple(found), at


def _varint(value: bytes, at: int) -> tuple[int, int]:
    found = 0
    for place, byte in enumerate(value[at : at + 5]):
        found |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return (found >> 1) ^ -(found & 1), at + place + 1
    raise ValueError


def _pieces(made: _Type, numbers: Sequence[int], payloads: Sequence[bytes], bad: list[BadPayload]) -> list[Piece]:
    """The rows of messages of one type. What cannot be read goes to `bad`."""
    from google.protobuf.message import DecodeError
    from google.protobuf.unknown_fields import UnknownFieldSet

    messages: list[Any] = []
    good: list[int] = []
    for number, payload in zip(numbers, payloads, strict=True):
        try:
            message = made.message.FromString(payload)
        except DecodeError:
            bad.append(BadPayload(number, "MALFORMED_RECORD", "not a message of its schema, or cut short"))
            continue
        if len(UnknownFieldSet(message)):
            bad.append(BadPayload(number, "MALFORMED_RECORD", "it has fields that its schema does not have"))
            continue
        messages.append(message)
        good.append(number)
    try:
        return [_piece(made, good, messages)]
    except _UNREADABLE:
        return list(_one_by_one(made, good, messages, bad))


def _one_by_one(made: _Type, numbers: Sequence[int], messages: Sequence[Any], bad: list[BadPayload]) -> Iterator[Piece]:
    for number, message in zip(numbers, messages, strict=True):
        try:
            piece = _piece(made, [number], [message])
        except BeyondRange as error:
            bad.append(BadPayload(number, "TYPE_MISMATCH", str(error)))
        except _UNREADABLE as error:
            code = "INVALID_UTF8" if isinstance(error, UnicodeDecodeError) else "MALFORMED_RECORD"
            bad.append(BadPayload(number, code, sentence(error)))
        else:
            yield piece


_UNREADABLE = (BeyondRange, UnicodeDecodeError, pa.ArrowException, OverflowError, ValueError)


def _piece(made: _Type, numbers: list[int], messages: list[Any]) -> Piece:
    try:
        rows = made.columns.rows(messages, "us")
    except BeyondRange as error:
        if not error.finer:
            raise
        rows = made.columns.rows(messages, "ns")
    return Piece(pa.RecordBatch.from_struct_array(rows), np.array(numbers, np.int64))
