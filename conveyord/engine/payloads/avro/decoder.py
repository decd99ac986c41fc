"""The format `avro`: values of schemas in a registry, or of one schema in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from conveyord.core.errors import ConfigError, RecordError
from conveyord.core.units import format_bytes
from conveyord.engine.payloads.assembling import Numbers, Piece, assembled
from conveyord.engine.payloads.avro.cursor import Cursor
from conveyord.engine.payloads.avro.nested import RecordNode, UnionNode
from conveyord.engine.payloads.avro.nodes import Node, NullNode
from conveyord.engine.payloads.avro.schema import UnusableSchema, node_of_schema
from conveyord.engine.payloads.contract import BadPayload, Payloads
from conveyord.engine.payloads.framing import UNUSABLE_SCHEMA, Stretch, unframed
from conveyord.engine.payloads.raw import COLUMN
from conveyord.storage.schema_registry import SchemaRegistry

SCHEMAS_MAX = 1_000  # readers that are kept; the text of a schema is kept by the registry's client
SCHEMA_FILE_BYTES_MAX = 4 * 1024 * 1024


class AvroPayloads:
    """`PayloadDecoder` for values of one schema, each Avro's binary encoding and nothing else."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """See `PayloadDecoder.decode`."""
        bad: list[BadPayload] = []
        pieces = list(pieces_of(self._node, Stretch.of(values), bad))
        return assembled(pieces, schema, bad, count=len(values))


class FramedAvroPayloads:
    """`PayloadDecoder` for values that begin with the id of their schema in a registry.

    Each value is read by the schema that it was written with; schemas that differ become rows of one that has room for
    all, as everything does whose columns change. A schema that is not known, or cannot be rows, makes its values bad.
    """

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._node = lru_cache(SCHEMAS_MAX)(self._made)

    def decode(self, values: Sequence[bytes], schema: pa.Schema | None) -> Payloads:
        """See `PayloadDecoder.decode`."""
        by_id, bad = unframed(values)
        pieces: list[Piece] = []
        for schema_id, stretch in by_id:
            try:
                node = self._node(schema_id)
            except RecordError as error:
                bad += [BadPayload(int(number), error.code, error.reason) for number in stretch.numbers]
            else:
                pieces += pieces_of(node, stretch, bad)
        return assembled(pieces, schema, bad, count=len(values))

    def _made(self, schema_id: int) -> Node:
        found = self._registry.schema(schema_id)
        if found.kind != "AVRO":
            reason = f"schema {schema_id} is of the type {found.kind}, not Avro"
            raise RecordError(f"schema {schema_id}", reason, code=UNUSABLE_SCHEMA)
        try:
            return node_of_schema(found.text, found.references)
        except UnusableSchema as error:
            reason = f"schema {schema_id}: {error}"
            raise RecordError(f"schema {schema_id}", reason, code=UNUSABLE_SCHEMA) from error


def pieces_of(node: Node, stretch: Stretch, bad: list[BadPayload]) -> Iterator[Piece]:
    """The rows of values of one schema: one piece, or one for each type of a union. Damaged values go to `bad`."""
    cursor = Cursor(stretch)
    rows = np.arange(len(stretch.numbers), dtype=np.int64)
    if isinstance(node, UnionNode):
        found = list(_branches(node, cursor, rows))
    else:
        found = [(_batch(node, cursor, rows), rows)]
    over = (cursor.at < cursor.ends) & cursor.are_good(rows)
    if over.any():
        cursor.fail(rows[over], "MALFORMED_RECORD", "bytes follow the end of the value; is it of this schema?")
    for row, damage in cursor.bad.items():
        bad.append(BadPayload(int(stretch.numbers[row]), damage.code, damage.reason))
    for data, own in found:
        good = cursor.are_good(own)
        if not good.all():
            data, own = data.filter(pa.array(good)), own[good]
        yield Piece(data, stretch.numbers[own])


def _branches(node: UnionNode, cursor: Cursor, rows: Numbers) -> Iterator[tuple[pa.RecordBatch, Numbers]]:
    """The values of a union as rows by their type. A null has no row."""
    chosen = node.choices(cursor, rows)
    for index, branch in enumerate(node.branches):
        own = rows[chosen == index]
        if len(own) and not isinstance(branch, NullNode):
            yield _batch(branch, cursor, own), own


def _batch(node: Node, cursor: Cursor, rows: Numbers) -> pa.RecordBatch:
    found = node.read(cursor, rows)
    if isinstance(node, RecordNode):
        return pa.RecordBatch.from_struct_array(found)
    return pa.RecordBatch.from_arrays([found], names=[COLUMN])


def schema_of_file(name: str) -> Node:
    """The reader of the schema in a file. Blocking. Raises ConfigError if there is none that can be used."""
    try:
        with Path(name).expanduser().open("rb") as file:
            content = file.read(SCHEMA_FILE_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"format.schema_file {name}: cannot be read ({reason})") from error
    if len(content) > SCHEMA_FILE_BYTES_MAX:
        limit = format_bytes(SCHEMA_FILE_BYTES_MAX)
        raise ConfigError(f"format.schema_file {name}: has more than {limit}; is it the right file?")
    try:
        return node_of_schema(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"format.schema_file {name}: is not UTF-8 text") from error
    except UnusableSchema as error:
        raise ConfigError(f"format.schema_file {name}: {error}") from error
