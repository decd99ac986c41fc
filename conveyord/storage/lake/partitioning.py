"""Partitions of a table: how they are declared, and which rows of a batch go to which.

Values are computed by pyiceberg's own transforms (the compiled pyiceberg-core), never by a
reimplementation: a row in the wrong partition is found by a full scan and missed by a point look-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from conveyord.core.errors import BatchError, ConfigError
from conveyord.storage.calendar import YEARS, is_moment, numbers_of, outside, year_of

if TYPE_CHECKING:
    from pyiceberg.partitioning import PartitionField, PartitionSpec
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table
    from pyiceberg.transforms import Transform
    from pyiceberg.typedef import Record

TRANSFORMS = ("identity", "year", "month", "day", "hour", "bucket", "truncate")
_CALL = re.compile(r"\s*(?P<transform>\w+)\s*\(\s*(?P<arguments>.*?)\s*\)\s*\Z", re.DOTALL)
_TIMED = frozenset({"identity", "year", "month", "day", "hour"})
_SIZED = re.compile(r"(?P<size>-?\d+)\s*,\s*(?P<column>.+)\Z", re.DOTALL)
SIZE_MAX = 2**31 - 1  # Iceberg stores bucket counts and widths in 32 bits


# ------------------------------------------------------------------------------ declaring


def partition_spec(schema: pa.Schema | Schema, expressions: Sequence[str]) -> PartitionSpec:
    """The partitioning that `expressions` describe, in that order.

    expressions: a column name, or one of `year(c)`, `month(c)`, `day(c)`, `hour(c)`, `bucket(16, c)`,
        `truncate(4, c)`, `identity(c)`. A dotted name reaches into a struct. A column whose whole name
        looks like a call is taken as that column.
    schema: for an Arrow schema the ids are those of `schemas.iceberg_schema`.
    Raises ConfigError that names the expression and what would work.
    """
    from pyiceberg.partitioning import PARTITION_FIELD_ID_START, PartitionSpec
    from pyiceberg.schema import Schema

    from conveyord.storage.lake.schemas import iceberg_schema

    columns = schema if isinstance(schema, Schema) else iceberg_schema(schema)
    fields: list[PartitionField] = []
    for position, expression in enumerate(expressions):
        field = _partition_field(columns, expression, PARTITION_FIELD_ID_START + position)
        if any(field.name == other.name for other in fields):
            raise ConfigError(f"partition_by: {expression!r} appears twice; leave one out")
        fields.append(field)
    return PartitionSpec(*fields)


def _partition_field(schema: Schema, expression: str, field_id: int) -> PartitionField:
    from pyiceberg.exceptions import ValidationError
    from pyiceberg.partitioning import PartitionField, PartitionSpec, validate_partition_name

    word, size, column = _parsed(schema, expression)
    source = schema.find_field(_known_column(schema, column, expression))
    transform = _transform(word, size)
    suffix = "" if word == "identity" else f"_{'trunc' if word == 'truncate' else word}"
    name = f"{column}{suffix}" + (f"_{size}" if size else "")
    field = PartitionField(source_id=source.field_id, field_id=field_id, transform=transform, name=name)
    if word == "identity" and str(source.field_type) in {"float", "double"}:
        raise ConfigError(
            f"partition_by: {expression!r}: {column!r} is a {source.field_type}, and equality of such "
            "numbers makes no reliable partitions; use a whole number, a decimal or a string"
        )
    try:
        PartitionSpec(field).check_compatible(schema)
    except (ValidationError, ValueError) as error:
        raise ConfigError(
            f"partition_by: {expression!r} does not work on {column!r} of type {source.field_type}: {error}"
        ) from error
    try:
        validate_partition_name(name, transform, source.field_id, schema, set())
    except ValueError as error:
        raise ConfigError(
            f"partition_by: {expression!r} needs the name {name!r}, which is a column already; rename that column"
        ) from error
    return field


def _parsed(schema: Schema, expression: str) -> tuple[str, int, str]:
    """Transform word, size (0 if it takes none) and column."""
    call = _CALL.match(expression)
    if call is None or expression in {field.name for field in schema.fields}:
        return "identity", 0, expression
    word, column = call["transform"].lower(), call["arguments"]
    if word not in TRANSFORMS:
        near = get_close_matches(word, TRANSFORMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(TRANSFORMS)}"
        raise ConfigError(f"partition_by: unknown transform {word!r} in {expression!r}; {hint}")
    if word not in {"bucket", "truncate"}:
        return word, 0, column
    sized = _SIZED.match(column)
    if sized is None or not 1 <= int(sized["size"]) <= SIZE_MAX:
        raise ConfigError(
            f"partition_by: {expression!r} needs a whole number from 1 to {SIZE_MAX} and a column, "
            f"as in `{word}(16, id)`"
        )
    return word, int(sized["size"]), sized["column"]


def _known_column(schema: Schema, column: str, expression: str) -> str:
    known = schema.column_names
    if column in known:
        return column
    near = get_close_matches(column, known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known[:20])}"
    raise ConfigError(f"partition_by: no column {column!r} for {expression!r}; {hint}")


def _transform(word: str, size: int) -> Transform[Any, Any]:
    from pyiceberg.transforms import parse_transform

    return parse_transform(f"{word}[{size}]" if size else word)


# ------------------------------------------------------------------------------ checking


def timed_columns(expressions: Sequence[str]) -> list[str]:
    """The columns, by dotted name, whose dates and times, if they hold such, are told by partitions' values."""
    calls = [(_CALL.match(expression), expression) for expression in expressions]
    return [
        expression if call is None else call["arguments"]
        for call, expression in calls
        if call is None or call["transform"].lower() in _TIMED
    ]


def timed_sources(table: Table) -> list[str]:
    """`timed_columns` of a table, whatever it was once declared with."""
    schema = table.schema()
    fields = [field for field in table.spec().fields if str(field.transform) in _TIMED]
    return [str(schema.find_column_name(field.source_id)) for field in fields]


def check_times(rows: pa.RecordBatch, columns: Sequence[str]) -> None:
    """Raises BatchError if `rows` hold, in one of `columns`, a date or time whose year no partition can tell.

    Beyond these years pyiceberg-core gives null for a year or a month and wraps hours around, and Python, in which
    pyiceberg plans, has no dates.
    """
    for name in columns:
        for array in _values_at(rows, name):
            _check_times(array, name)


def _values_at(rows: pa.RecordBatch, name: str) -> Iterator[pa.Array]:
    """The column of that name, which may be a dotted one within structs; none if it is not there."""
    if name in rows.schema.names:
        yield rows.column(name)
        return
    for top, array in zip(rows.schema.names, rows.columns, strict=True):
        if name.startswith(f"{top}.") and pa.types.is_struct(array.type):
            inner = pa.RecordBatch.from_arrays(array.flatten(), names=[field.name for field in array.type])
            yield from _values_at(inner, name.removeprefix(f"{top}."))


def _check_times(array: pa.Array, name: str) -> None:
    far = outside(array) if is_moment(array.type) else None
    if far is not None:
        value = array.filter(far)[:1]
        number = numbers_of(value)[0].as_py()
        raise BatchError(
            f"partition_by: {name!r} has a {value.type} in the year {year_of(number, value.type)}, and partitions can "
            f"tell {YEARS} only; mend or filter such rows before, or partition by bucket"
        )


# ------------------------------------------------------------------------------ splitting


class Partitioner:
    """Splits batches of one table by its current partitioning. Not thread-safe."""

    def __init__(self, table: Table) -> None:
        schema, spec = table.schema(), table.spec()
        self._columns = [_PartitionColumn(schema, field) for field in spec.fields]

    def split(self, batch: pa.RecordBatch) -> Iterator[tuple[Record, pa.RecordBatch]]:
        """Yield (partition values, their rows) for every partition that occurs, each exactly once.

        batch: exactly `arrow_schema(table)`, any length. Rows keep their order within a partition. Null is
        a value of its own. Values are as manifests hold them: dates in days, timestamps in microseconds.
        If all rows belong together the batch itself is yielded; otherwise each part owns its memory, so
        that holding on to a small part does not keep the whole batch alive.
        Raises BatchError for what `check_times` refuses, and a decimal that truncates to too many digits.
        """
        from pyiceberg.typedef import Record

        if not batch.num_rows:
            return
        if not self._columns:
            yield Record(), batch
            return
        encoded = [column.values(batch).dictionary_encode(null_encoding="encode") for column in self._columns]
        groups, count = _group(encoded)
        values = [codes.dictionary.to_pylist() for codes in encoded]

        def record(row: int) -> Record:
            numbers = (codes.indices[row].as_py() for codes in encoded)
            return Record(*(known[number] for known, number in zip(values, numbers, strict=True)))

        if count == 1:
            yield record(0), batch
            return
        # Arrow's sort of integers is stable, which keeps the order of rows within a group.
        order = pc.array_sort_indices(groups)
        lengths = pc.value_counts(groups.take(order)).field(1).to_pylist()
        start = 0
        for length in lengths:
            yield record(order[start].as_py()), batch.take(order.slice(start, length))
            start += length


def _group(encoded: Sequence[pa.DictionaryArray]) -> tuple[pa.Array, int]:
    """Number the distinct combinations: one number per row, and how many there are."""
    groups, count = encoded[0].indices, len(encoded[0].dictionary)
    for codes in encoded[1:]:
        # Renumbered at each step, so that the product stays below rows squared and fits 64 bits.
        scaled = pc.multiply(groups.cast(pa.int64()), len(codes.dictionary))
        pairs = pc.add(scaled, codes.indices.cast(pa.int64()))
        renumbered = pairs.dictionary_encode()
        groups, count = renumbered.indices, len(renumbered.dictionary)
    return groups, count


class _PartitionColumn:
    """Computes one partition field's value for every row, as the plain type that manifests hold."""

    def __init__(self, schema: Schema, field: PartitionField) -> None:
        source_type = schema.find_type(field.source_id)
        self._name = schema.find_column_name(field.source_id)
        self._path = source_path(schema, field.source_id)
        self._is_timed = str(field.transform) in _TIMED
        self._apply: Callable[[pa.Array], pa.Array] = field.transform.pyarrow_transform(source_type)

    def values(self, batch: pa.RecordBatch) -> pa.Array:
        column = batch.column(self._path[0])
        for position in self._path[1:]:
            column = pc.struct_field(column, [position])  # null where the struct around it is null
        if self._is_timed:
            _check_times(column, str(self._name))
        applied = self._apply(column)
        if pa.types.is_decimal(applied.type):
            self._check_digits(applied)
        return _physical(applied)

    def _check_digits(self, applied: pa.Array) -> None:
        """Refuse a truncated decimal that has one digit more than its column: no manifest can hold it."""
        largest = pc.max(pc.abs(applied)).as_py()
        digits = applied.type.precision - applied.type.scale
        if largest is not None and largest >= Decimal(10) ** digits:
            raise BatchError(
                f"partition_by: a value of {self._name!r} truncates to -{largest}, which has more than the "
                f"{applied.type.precision} digits of {applied.type}; widen the column, or partition by bucket"
            )


def source_path(schema: Schema, field_id: int) -> list[int]:
    """Positions that lead from the top level of `schema` to a field within structs."""
    parents = schema._lazy_id_to_parent  # noqa: SLF001 - the public way is a dotted name, and names may hold dots
    ids = [field_id]
    while (parent := parents.get(ids[0])) is not None:
        ids.insert(0, parent)
    fields = schema.fields
    path = []
    for step in ids:
        position = next(index for index, field in enumerate(fields) if field.field_id == step)
        path.append(position)
        fields = getattr(fields[position].field_type, "fields", ())
    return path


def _physical(values: pa.Array) -> pa.Array:
    # Not through Python's dates: they end with the year 9999, Arrow's do not.
    if isinstance(values.type, pa.BaseExtensionType):
        return values.storage
    if pa.types.is_date32(values.type):
        return values.cast(pa.int32())
    if pa.types.is_timestamp(values.type) or pa.types.is_time64(values.type):
        return values.cast(pa.int64())
    return values
