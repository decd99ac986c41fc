"""Rows as records of Kafka: value, key, partition, headers and time of each, column by column."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from conveyord.core.errors import BatchError, ConfigError
from conveyord.engine.expressions import RowExpressions
from conveyord.engine.http.requests import json_rows
from conveyord.engine.kafka.sink_options import KafkaSinkConfig
from conveyord.engine.schema.merge import fields_by_name
from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.types import is_bytes, is_text
from conveyord.storage.kafka.producer import ANY_PARTITION, Headers, Outgoing

T = TypeVar("T")

HEADER = "headers."
PARTITION_MAX = 2**31 - 1


class RecordEncoder:
    """Makes records of rows under one configuration. Blocking; one thread at a time."""

    def __init__(self, config: KafkaSinkConfig) -> None:
        """Raises ConfigError if an expression is none."""
        self._config = config
        self._excluded = frozenset(config.exclude)
        named = {".".join(path): text for path, text in config.expressions.items()}
        self._expressions = RowExpressions(named, setting="kafka") if named else None

    def records(self, data: pa.RecordBatch) -> Outgoing:
        """The records of the rows of `data`, by their numbers.

        Raises BatchError if a value is at fault, ConfigError if an expression does not fit the columns.
        """
        config = self._config
        fields_by_name(data.schema)  # an object has each key once
        given = self._expressions.values(data) if self._expressions is not None and data.num_rows else None

        def column(name: str) -> pa.Array | None:
            return None if given is None or name not in given.schema.names else given.column(name)

        key, partition, time = column("key"), column("partition"), column("timestamp")
        return Outgoing(
            topic=config.topic,
            values=self._values(data, column("tombstone_when")),
            keys=None if key is None else _bytes_of(key, what="key"),
            partitions=None if partition is None else _partitions(partition),
            times_ms=None if time is None else _times_ms(time),
            headers=None if given is None or not config.headers else self._headers(given),
        )

    def _values(self, data: pa.RecordBatch, deleted: pa.Array | None) -> Sequence[bytes | None]:
        values: Sequence[bytes | None]
        if self._config.format == "raw":
            values = self._raw(data)
        else:
            kept = [name for name in data.schema.names if name not in self._excluded]
            values = json_rows(data.select(kept))
        if deleted is None:
            return values
        if not pt.is_boolean(deleted.type):
            raise ConfigError(f"kafka.tombstone_when must give true or false, not {deleted.type}")
        flags = pc.fill_null(deleted, False).to_pylist()
        return [None if gone else value for value, gone in zip(values, flags, strict=True)]

    def _raw(self, data: pa.RecordBatch) -> Sequence[bytes | None]:
        name = self._config.value_column
        if name not in data.schema.names:
            if not data.num_rows:
                return []
            raise ConfigError(f"kafka.value_column: rows have no column {name!r}, but {', '.join(data.schema.names)}")
        column = data.column(name)
        if not (is_text(column.type) or is_bytes(column.type) or pt.is_null(column.type)):
            raise ConfigError(f"kafka.value_column: {name!r} is {column.type}; text or bytes can be sent as they are")
        return _bytes_of(column, what="value_column")

    def _headers(self, given: pa.RecordBatch) -> list[Headers]:
        columns = {
            name: _bytes_of(given.column(f"{HEADER}{name}"), what=f"headers.{name}") for name in self._config.headers
        }
        found: list[Headers] = [[] for _ in range(given.num_rows)]
        for name, values in columns.items():
            for headers, value in zip(found, values, strict=True):
                if value is not None:
                    headers.append((name, value))
        return found


def together(pieces: Sequence[Outgoing]) -> Outgoing:
    """The records of one encoder for neighbouring rows, at least one piece of them, as one. Numbered from 0."""
    if len(pieces) == 1:
        return pieces[0]

    def all_of(columns: Iterable[Sequence[T] | None]) -> list[T] | None:
        parts = [column for column in columns if column is not None]  # all have it, or none
        return [value for part in parts for value in part] if parts else None

    return Outgoing(
        topic=pieces[0].topic,
        values=all_of(piece.values for piece in pieces) or [],
        keys=all_of(piece.keys for piece in pieces),
        partitions=all_of(piece.partitions for piece in pieces),
        times_ms=all_of(piece.times_ms for piece in pieces),
        headers=all_of(piece.headers for piece in pieces),
    )


def _bytes_of(array: pa.Array, *, what: str) -> list[bytes | None]:
    """Text as UTF-8, bytes as they are, anything else as its text in JSON, null as None."""
    if pt.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pt.is_nested(array.type):
        raise ConfigError(f"kafka.{what} gives {array.type}; take one value of it, or make a text")
    if not is_bytes(array.type):
        array = to_text(array)
    found: list[bytes | None] = array.cast(pa.large_binary()).to_pylist()
    return found


def _partitions(array: pa.Array) -> list[int]:
    if not (pt.is_integer(array.type) or pt.is_null(array.type)):
        raise ConfigError(f"kafka.partition must give a whole number, not {array.type}; CAST it")
    numbers = array.cast(pa.int64()) if not pt.is_uint64(array.type) else _capped(array)
    outside = pc.fill_null(pc.or_(pc.less(numbers, 0), pc.greater(numbers, PARTITION_MAX)), False)
    if pc.any(outside).as_py():
        worst = numbers.filter(outside)[0].as_py()
        raise BatchError(f"kafka.partition gives {worst}, which is no number of a partition; they begin at 0")
    found: list[int] = pc.fill_null(numbers, ANY_PARTITION).to_pylist()
    return found


def _capped(array: pa.Array) -> pa.Array:
    limit = pa.scalar(PARTITION_MAX + 1, array.type)
    return pc.if_else(pc.greater(array, limit), limit, array).cast(pa.int64())


def _times_ms(array: pa.Array) -> list[int]:
    """Milliseconds since the epoch; 0 where there is none: that is what stands for now."""
    kind = array.type
    if pt.is_date(kind):
        array = array.cast(pa.timestamp("ms"))
    elif not (pt.is_timestamp(kind) or pt.is_null(kind)):
        raise ConfigError(f"kafka.timestamp must give a time, not {kind}; use to_timestamp_millis or CAST")
    if pt.is_null(kind):
        return [0] * len(array)
    numbers = array.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
    early = pc.fill_null(pc.less_equal(numbers, 0), False)
    if pc.any(early).as_py():
        raise BatchError("kafka.timestamp gives a time that is not after 1970-01-01T00:00:00Z; Kafka has no such times")
    found: list[int] = pc.fill_null(numbers, 0).to_pylist()
    return found
