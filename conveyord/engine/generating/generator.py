"""Rows of a shape by their numbers, and the bytes of those that are to be bad."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import RecordError
from conveyord.engine.generating.columns import Column, made
from conveyord.engine.generating.draws import Draws, Numbers
from conveyord.engine.json import JsonLinesDecoder
from conveyord.engine.schema.text import to_text

SAMPLE_ROWS = 1024  # enough to tell how wide a row is


@dataclass(frozen=True, slots=True)
class Spoiled:
    """A record that is bad, as bytes, and what is wrong with it."""

    number: int
    raw: bytes
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Generated:
    """The good rows of a range with their numbers, and its bad records, both in order."""

    data: pa.RecordBatch
    numbers: Numbers
    spoiled: tuple[Spoiled, ...] = ()


@dataclass(frozen=True, slots=True)
class Generator:
    """Makes rows. All methods are blocking, thread-safe and free of side effects.

    Row `number` is the same whichever rows are made with it. About `broken_share` of them are bad: they have
    bytes, which are JSON of their row with one thing wrong, and no row.
    """

    columns: Mapping[str, Column]
    seed: int
    broken_share: float = 0.0
    _draws: Draws = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_draws", Draws(0).named(str(self.seed)))

    @property
    def schema(self) -> pa.Schema:
        """The schema of the rows."""
        return self.rows(np.zeros(0, np.uint64)).schema

    def row_bytes(self) -> int:
        """The bytes that a row takes in memory, on average and at least 1."""
        return max(1, int(self.rows(np.arange(SAMPLE_ROWS, dtype=np.uint64)).nbytes) // SAMPLE_ROWS)

    def rows(self, numbers: Numbers) -> pa.RecordBatch:
        """The rows `numbers`, as they would be if none were bad."""
        names, arrays = made(self.columns, self._draws.named("column"), numbers)
        return pa.RecordBatch.from_arrays(arrays, names=names)

    def generate(self, numbers: Numbers) -> Generated:
        """The rows `numbers`, the bad ones apart."""
        data = self.rows(numbers)
        if not self.broken_share:
            return Generated(data, numbers)
        broken = self._draws.named("broken").chosen(numbers, self.broken_share)
        if not broken.any():
            return Generated(data, numbers)
        spoiled = self._spoiled(data.filter(pa.array(broken)), numbers[broken])
        return Generated(data.filter(pa.array(~broken)), numbers[~broken], spoiled)

    def record(self, number: int) -> bytes:
        """Row `number` as JSON."""
        return _json_of(self.rows(np.array([number], np.uint64)))[0]

    def decode(self, raw: bytes) -> pa.RecordBatch:
        """The row of one record as JSON. Raises RecordError if it is bad."""
        schema = self.schema
        decoded = JsonLinesDecoder().decode(raw, _as_json_has_it(schema), None)
        if decoded.bad:
            raise RecordError("the record", decoded.bad[0].reason, code=decoded.bad[0].code)
        data = decoded.data
        for index, column in enumerate(schema):
            if pa.types.is_date(column.type):
                data = data.set_column(index, column, _dates(data.column(index), column))
        return data

    def _spoiled(self, rows: pa.RecordBatch, numbers: Numbers) -> tuple[Spoiled, ...]:
        kinds = self._draws.named("spoil").below(numbers, len(_SPOIL))
        raws = [_SPOIL[kind](text) for kind, text in zip(kinds.tolist(), _json_of(rows), strict=True)]
        bad = JsonLinesDecoder().decode(b"\n".join(raws), _as_json_has_it(rows.schema), None).bad
        assert len(bad) == len(raws), "a spoiled record can be read"
        found = zip(numbers.tolist(), raws, bad, strict=True)
        return tuple(Spoiled(number, raw, record.code, record.reason) for number, raw, record in found)


_SPOIL = (
    lambda text: text[: len(text) // 2],
    lambda text: b"[" + text + b"]",
    lambda text: b'{"\xff' + text[2:],
    lambda text: text[:-1] + b"," + text[1:],
)
"""Cut in half; not an object; not UTF-8; every key twice."""


def _json_of(rows: pa.RecordBatch) -> list[bytes]:
    texts = to_text(pa.StructArray.from_arrays(rows.columns, names=rows.schema.names))
    return [text.encode() for text in texts.to_pylist()]


def _as_json_has_it(schema: pa.Schema) -> pa.Schema:
    """`schema` with text for dates, which JSON does not have."""
    return pa.schema([one.with_type(pa.string()) if pa.types.is_date(one.type) else one for one in schema])


def _dates(texts: pa.StringArray, column: pa.Field) -> pa.Array:
    try:
        return texts.cast(column.type)
    except pa.ArrowInvalid as error:
        reason = f"column {column.name!r} is a date, which {pc.first(texts).as_py()!r} is not"
        raise RecordError("the record", reason, code="TYPE_MISMATCH") from error
