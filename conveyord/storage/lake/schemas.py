"""Table schemas: between Arrow and Iceberg, creating a table, and adding what it lacks.

Iceberg knows a column by its number, so a schema only ever grows here: columns and nested fields are
added and types widened. Nothing is renamed, narrowed, reordered or dropped.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from conveyord.core.errors import ConfigError, Retryable
from conveyord.storage.lake.schema_history import mark

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.schema import Schema
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.types import IcebergType, NestedField, StructType

EVOLVE_ATTEMPTS_MAX = 10  # each lost attempt means that another writer changed the table in between
DECIMAL_DIGITS_MAX = 38  # Iceberg's limit
TABLE_DEPTH_MAX = 60  # of structs, lists and maps; of structs beyond 64 PyIceberg cannot read the table again
PARQUET_FIELD_ID = b"PARQUET:field_id"

_UINT64_WORD = "decimal(20, 0)"  # no Iceberg integer holds 2^64 - 1
_INTEGER_WORDS = {"int8": "int", "int16": "int", "int32": "int", "uint8": "int", "uint16": "int"} | {
    "int64": "long",
    "uint32": "long",
    "uint64": _UINT64_WORD,
}
_CHECKED_WORDS: tuple[tuple[Callable[[pa.DataType], bool], str], ...] = (
    (pa.types.is_boolean, "boolean"),
    (pa.types.is_float16, "float"),
    (pa.types.is_float32, "float"),
    (pa.types.is_float64, "double"),
    (pa.types.is_date, "date"),
    (pa.types.is_time, "time"),
    (pa.types.is_string, "string"),
    (pa.types.is_large_string, "string"),
    (pa.types.is_string_view, "string"),
    (pa.types.is_binary, "binary"),
    (pa.types.is_large_binary, "binary"),
    (pa.types.is_binary_view, "binary"),
)
_ARROW_TYPES: dict[str, pa.DataType] = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", "UTC"),
    "timestamp_ns": pa.timestamp("ns"),
    "timestamptz_ns": pa.timestamp("ns", "UTC"),
    "string": pa.string(),
    "uuid": pa.uuid(),
    "binary": pa.binary(),
}


class TableAppeared(Retryable):
    """Somebody else created the table first. `table` is theirs; its columns may be others than ours."""

    def __init__(self, identifier: str, table: Table) -> None:
        super().__init__(f"table {identifier}: created by someone else at this moment; look at it before writing")
        self.table = table


# ------------------------------------------------------------------------------ Arrow to Iceberg


def iceberg_schema(schema: pa.Schema) -> Schema:
    """The Iceberg schema for `schema`: numbered afresh from 1, every column optional.

    Columns and nested fields of type null are left out, as are structs and lists that hold nothing else:
    Iceberg has no such type and they carry no value. Nanoseconds become microseconds; it is the
    caller's cast that must refuse to lose digits. Unsigned 64-bit integers become decimal(20, 0).
    Raises ConfigError for a type or a name that an Iceberg table cannot have.
    """
    from pyiceberg.schema import assign_fresh_schema_ids

    return assign_fresh_schema_ids(_checked_schema(_nested_fields(list(schema), "", itertools.count(1))))


def _nested_fields(fields: Sequence[pa.Field], place: str, ids: itertools.count[int]) -> list[NestedField]:
    from pyiceberg.types import NestedField

    nested = []
    for field in fields:
        field_type = _iceberg_type(field.type, f"{place}{field.name}", ids)
        if field_type is not None:
            nested.append(NestedField(next(ids), field.name, field_type, required=False))
    return nested


def _checked_schema(
    fields: Sequence[NestedField], schema_id: int = 0, identifier_field_ids: Sequence[int] = ()
) -> Schema:
    """Raises ConfigError for names that a table, or a Parquet file of it, cannot have."""
    from pyiceberg.schema import Schema

    _check_field_names(fields, "")
    try:
        return Schema(*fields, schema_id=schema_id, identifier_field_ids=list(identifier_field_ids))
    except ValueError as error:
        raise ConfigError(f"two columns have the same dotted name ({error}); rename the one with the dot") from error


def _check_field_names(fields: Sequence[NestedField], place: str) -> None:
    from pyiceberg.schema import make_compatible_name

    within = f"in {place!r}" if place else "in the table"
    stored: dict[str, str] = {}
    for field in fields:
        name = field.name
        if not name:
            raise ConfigError(f"a column {within} has an empty name; name it, for example with `SELECT ... AS name`")
        if "\0" in name:
            raise ConfigError(f"a column {within} has a NUL in its name {name!r}; rename it")
        if name in stored.values():
            raise ConfigError(f"column {name!r} appears twice {within}; rename one of them")
        # Parquet files carry names with special characters escaped, "a b" as "a_x20b".
        other = stored.setdefault(make_compatible_name(name), name)
        if other != name:
            raise ConfigError(f"columns {other!r} and {name!r} {within} get the same name in Parquet; rename one")
        _check_nested_names(field.field_type, f"{place}.{name}" if place else name)


def _check_nested_names(field_type: IcebergType, place: str) -> None:
    from pyiceberg.types import ListType, MapType, StructType

    match field_type:
        case StructType():
            _check_field_names(field_type.fields, place)
        case ListType():
            _check_nested_names(field_type.element_type, place)
        case MapType():
            _check_nested_names(field_type.key_type, place)
            _check_nested_names(field_type.value_type, place)


def _check_depth(columns: StructType) -> None:
    for column in columns.fields:
        if _levels(column.field_type) > TABLE_DEPTH_MAX:
            raise ConfigError(
                f"column {column.name!r}: structs, lists and maps are nested deeper than {TABLE_DEPTH_MAX} levels, and "
                "tables of such columns may not be read again; flatten it, or cast it to a string"
            )


def _levels(field_type: IcebergType) -> int:
    """How many structs, lists and maps there are around the innermost value."""
    from pyiceberg.types import ListType, MapType, StructType

    match field_type:
        case StructType():
            return 1 + max((_levels(field.field_type) for field in field_type.fields), default=0)
        case ListType():
            return 1 + _levels(field_type.element_type)
        case MapType():
            return 1 + max(_levels(field_type.key_type), _levels(field_type.value_type))
    return 0


def _iceberg_type(arrow_type: pa.DataType, place: str, ids: itertools.count[int]) -> IcebergType | None:
    """None for a type that carries no value."""
    from pyiceberg.types import ListType, MapType, StructType

    if pa.types.is_dictionary(arrow_type) or pa.types.is_run_end_encoded(arrow_type):
        return _iceberg_type(arrow_type.value_type, place, ids)
    if pa.types.is_null(arrow_type):
        return None
    if pa.types.is_struct(arrow_type):
        fields = _nested_fields(list(arrow_type), f"{place}.", ids)
        return StructType(*fields) if fields else None
    if _is_list(arrow_type):
        element = _iceberg_type(arrow_type.value_type, f"{place}.element", ids)
        return None if element is None else ListType(next(ids), element, element_required=False)
    if pa.types.is_map(arrow_type):
        key = _iceberg_type(arrow_type.key_type, f"{place}.key", ids)
        value = _iceberg_type(arrow_type.item_type, f"{place}.value", ids)
        if key is None or value is None:
            return None
        return MapType(next(ids), key, next(ids), value, value_required=False)
    return _primitive(arrow_type, place)


def _is_list(arrow_type: pa.DataType) -> bool:
    checks = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view)
    return any(check(arrow_type) for check in checks + views)


def _primitive(arrow_type: pa.DataType, place: str) -> IcebergType:
    from pyiceberg.types import DecimalType, FixedType, TimestampType, TimestamptzType, UUIDType

    if pa.types.is_timestamp(arrow_type):
        return TimestampType() if arrow_type.tz is None else TimestamptzType()
    if pa.types.is_decimal(arrow_type):
        if arrow_type.precision > DECIMAL_DIGITS_MAX or not 0 <= arrow_type.scale <= arrow_type.precision:
            raise ConfigError(
                f"column {place!r}: {arrow_type} exceeds Iceberg's {DECIMAL_DIGITS_MAX} digits or has an "
                "unusable scale; cast it, for example to DECIMAL(38, 10)"
            )
        return DecimalType(arrow_type.precision, arrow_type.scale)
    if isinstance(arrow_type, pa.UuidType):
        return UUIDType()
    if isinstance(arrow_type, pa.BaseExtensionType):
        return _primitive(arrow_type.storage_type, place)
    if pa.types.is_fixed_size_binary(arrow_type):
        return FixedType(arrow_type.byte_width)
    word = _INTEGER_WORDS.get(str(arrow_type))
    if word is None:
        word = next((word for check, word in _CHECKED_WORDS if check(arrow_type)), None)
    if word is None:
        raise ConfigError(f"column {place!r}: Iceberg has no type for {arrow_type}; cast it, for example to a string")
    return _plain_type(word)


def _plain_type(word: str) -> IcebergType:
    from pyiceberg import types

    if word == _UINT64_WORD:
        return types.DecimalType(20, 0)
    plain: dict[str, type[types.PrimitiveType]] = {
        "boolean": types.BooleanType,
        "int": types.IntegerType,
        "long": types.LongType,
        "float": types.FloatType,
        "double": types.DoubleType,
        "date": types.DateType,
        "time": types.TimeType,
        "string": types.StringType,
        "binary": types.BinaryType,
    }
    return plain[word]()


# ------------------------------------------------------------------------------ Iceberg to Arrow


def arrow_schema(table: Table) -> pa.Schema:
    """What the table's writer takes: current columns in table order, plain types, no metadata.

    Strings, binaries and lists have 32-bit offsets, as every decoder makes them. A column that the table
    requires is not nullable.
    """
    return pa.schema(_arrow_fields(table.schema().fields, with_ids=False))


def file_schema(schema: Schema) -> pa.Schema:
    """The Arrow schema of a Parquet file of `schema`: names made safe, Iceberg ids on every field."""
    from pyiceberg.schema import sanitize_column_names

    return pa.schema(_arrow_fields(sanitize_column_names(schema).fields, with_ids=True))


def _arrow_fields(fields: Sequence[NestedField], *, with_ids: bool) -> list[pa.Field]:
    return [_arrow_field(field, with_ids=with_ids) for field in fields]


def _arrow_field(field: NestedField, *, with_ids: bool) -> pa.Field:
    metadata = {PARQUET_FIELD_ID: str(field.field_id).encode()} if with_ids else None
    return pa.field(
        field.name,
        _arrow_type(field.field_type, with_ids=with_ids),
        nullable=field.optional,
        metadata=metadata,
    )


def _arrow_type(iceberg_type: IcebergType, *, with_ids: bool) -> pa.DataType:
    from pyiceberg.types import DecimalType, FixedType, ListType, MapType, StructType

    match iceberg_type:
        case StructType():
            return pa.struct(_arrow_fields(iceberg_type.fields, with_ids=with_ids))
        case ListType():
            element = _arrow_field(iceberg_type.element_field, with_ids=with_ids)
            return pa.list_(element if with_ids else element.with_name("item"))  # the name `pa.list_` gives
        case MapType():
            key = _arrow_field(iceberg_type.key_field, with_ids=with_ids)
            return pa.map_(key, _arrow_field(iceberg_type.value_field, with_ids=with_ids))
        case DecimalType():
            return pa.decimal128(iceberg_type.precision, iceberg_type.scale)
        case FixedType():
            return pa.binary(len(iceberg_type))
        case _ if (arrow_type := _ARROW_TYPES.get(str(iceberg_type))) is not None:
            return arrow_type
        case _:
            raise ConfigError(f"tables with a column of Iceberg type {iceberg_type} cannot be written")


# ------------------------------------------------------------------------------ creating and growing


def fitting_schemas(metadata: TableMetadata) -> frozenset[int]:
    """Ids of the schemas whose files can be committed under the current one: no column of them is lost, and none
    that is required now can be null in them.
    """
    current = metadata.schema()
    required = _required_ids(current)
    return frozenset(
        schema.schema_id
        for schema in metadata.schemas
        if schema.field_ids <= current.field_ids and required <= _required_ids(schema)
    )


def _required_ids(schema: Schema) -> set[int]:
    fields = (schema.find_field(field_id) for field_id in schema.field_ids)
    return {field.field_id for field in fields if field.required}


def create_table(
    catalog: Catalog,
    identifier: str,
    schema: pa.Schema,
    partition_by: Sequence[str],
    properties: Mapping[str, str],
) -> Table:
    """Blocking. Create the table, and its namespace if that is missing.

    Raises TableAppeared, which carries the table, if somebody else created it first; ConfigError for
    a schema or a partitioning that Iceberg cannot have.
    """
    from pyiceberg.exceptions import TableAlreadyExistsError

    from conveyord.storage.lake.partitioning import partition_spec

    columns = iceberg_schema(schema)
    _check_depth(columns.as_struct())
    spec = partition_spec(columns, partition_by)
    namespace = catalog.namespace_from(identifier)
    for depth in range(1, len(namespace) + 1):
        _ensure_namespace(catalog, namespace[:depth])
    try:
        return catalog.create_table(identifier, columns, partition_spec=spec, properties=dict(properties))
    except TableAlreadyExistsError as error:
        raise TableAppeared(identifier, catalog.load_table(identifier)) from error


def _ensure_namespace(catalog: Catalog, namespace: tuple[str, ...]) -> None:
    """Create it if it is missing. Another sink, or another program, may be doing the same."""
    try:
        catalog.create_namespace_if_not_exists(namespace)
    except Exception:  # each catalog has its own word for coming second, the SQL one its driver's
        if not catalog.namespace_exists(namespace):
            raise


def evolve(table: Table, target: pa.Schema, *, pipeline: str | None = None) -> Table:
    """Blocking. Add what `target` has and the table lacks, and widen where Iceberg can.

    Added are columns and nested fields; widened are int to long, float to double and decimal to more
    digits of the same scale, at any depth but not in map keys. Whatever else differs stays as the table
    has it: what to do with such values is decided before they come here. One commit at most, none if
    nothing is missing; repeating it is harmless. Returns `table` itself, refreshed if it changed.
    pipeline: on whose behalf, for the history of the schema.
    Raises Retryable if other writers kept changing the table, ConfigError for what `target` has and it cannot have.
    """
    from pyiceberg.exceptions import CommitFailedException

    wanted = iceberg_schema(target).as_struct()
    _check_depth(wanted)
    last_error: CommitFailedException | None = None
    for _ in range(EVOLVE_ATTEMPTS_MAX):
        current = table.schema()
        ids = itertools.count(table.metadata.last_column_id + 1)
        merged = _merged(current.as_struct(), wanted, ids)
        if merged == current.as_struct():
            return table
        try:
            _commit_schema(table, merged, pipeline)
        except CommitFailedException as error:
            last_error = error
            table.refresh()
            continue
        return table.refresh()
    raise Retryable(
        f"table {'.'.join(table.name())}: its metadata was changed {EVOLVE_ATTEMPTS_MAX} times "
        "while columns were being added; run again when other writers are done"
    ) from last_error


def _merged(current: Any, wanted: Any, ids: itertools.count[int]) -> Any:
    """`current` with what it lacks of `wanted`: two Iceberg types in, one out. New fields number from `ids`."""
    from pyiceberg.types import ListType, MapType, StructType

    match current, wanted:
        case StructType(), StructType():
            theirs = {field.name: field for field in wanted.fields}
            fields = []
            for field in current.fields:
                other = theirs.pop(field.name, None)
                if other is not None:
                    field_type = _merged(field.field_type, other.field_type, ids)
                    field = field.model_copy(update={"field_type": field_type})
                fields.append(field)
            return StructType(*fields, *(_numbered(field, ids) for field in theirs.values()))
        case ListType(), ListType():
            element = _merged(current.element_type, wanted.element_type, ids)
            return ListType(current.element_id, element, current.element_required)
        case MapType(), MapType():
            value = _merged(current.value_type, wanted.value_type, ids)
            return MapType(
                current.key_id,
                current.key_type,
                current.value_id,
                value,
                value_required=current.value_required,
            )
        case _:
            return wanted if _widens(current, wanted) else current


def _numbered(field: NestedField, ids: itertools.count[int]) -> NestedField:
    from pyiceberg.schema import assign_fresh_schema_ids
    from pyiceberg.types import NestedField

    field_id = next(ids)
    field_type: Any = assign_fresh_schema_ids(field.field_type, ids.__next__)
    return NestedField(field_id, field.name, field_type, required=False)


def _widens(current: IcebergType, wanted: IcebergType) -> bool:
    from pyiceberg.types import DecimalType

    if isinstance(current, DecimalType) and isinstance(wanted, DecimalType):
        return wanted.scale == current.scale and wanted.precision > current.precision
    return (str(current), str(wanted)) in {("int", "long"), ("float", "double")}


def _commit_schema(table: Table, struct: Any, pipeline: str | None) -> None:
    from pyiceberg.table.update import (
        AddSchemaUpdate,
        AssertCurrentSchemaId,
        AssertLastAssignedFieldId,
        AssertTableUUID,
        SetCurrentSchemaUpdate,
        SetPropertiesUpdate,
        TableUpdate,
    )

    metadata = table.metadata
    schema = _checked_schema(
        struct.fields,
        1 + max(known.schema_id for known in metadata.schemas),
        table.schema().identifier_field_ids,
    )
    _check_partition_names(table, schema)
    requirements = (
        AssertTableUUID(uuid=metadata.table_uuid),
        AssertCurrentSchemaId(current_schema_id=metadata.current_schema_id),
        AssertLastAssignedFieldId(last_assigned_field_id=metadata.last_column_id),
    )
    # Somebody may have set an older schema as the current one; what it takes now may be one that exists.
    known = next((known.schema_id for known in metadata.schemas if known == schema), None)
    updates: tuple[TableUpdate, ...] = (SetCurrentSchemaUpdate(schema_id=-1 if known is None else known),)
    if known is None:
        updates = (AddSchemaUpdate(schema_=schema), *updates)
        if pipeline is not None:
            updates += (SetPropertiesUpdate(updates=mark(schema.schema_id, pipeline)),)
    table.catalog.commit_table(table, requirements, updates)


def _check_partition_names(table: Table, schema: Schema) -> None:
    from pyiceberg.partitioning import validate_partition_name

    try:
        for spec in table.metadata.partition_specs:
            for field in spec.fields:
                validate_partition_name(field.name, field.transform, field.source_id, schema, set())
    except ValueError as error:
        raise ConfigError(
            f"table {'.'.join(table.name())}: a new column cannot be added ({error}); rename that column"
        ) from error
