"""Laws of growing schemas and fitting batches, over every type and nesting."""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime
from decimal import Context, Decimal, InvalidOperation
from typing import Any

import pyarrow as pa
import pyarrow.types as pt
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from conveyord.engine.schema import fit, grow, merge, plain_type
from conveyord.engine.schema.lists import Elements
from conveyord.engine.schema.text import to_text
from conveyord.engine.schema.values import convert_scalars

_EXACT = Context(prec=400)
NAMES = ("a", "b", "a__long", "a__json")

_TEXTS = st.sampled_from(
    ["", "x", "1", "2024-02-29T12:00:00Z", "2023-02-29T12:00:00Z", "2024-01-01 00:00:00.5",
     "2024-01-01T00:00:00.1234567",
     "2024-05-05", "2024-02-31", "2024-01-01T00:00:00+02:00", "9999-12-31T23:59:59", "ä\n", "2024-01-01T00:00:00Z\n"]
)  # fmt: skip
_LONGS = st.one_of(
    st.integers(-3, 3), st.sampled_from([2**53 + 1, -(2**63), 2**63 - 1, 2**31, -(2**31) - 1, 2**24 + 1])
)
_DOUBLES = st.sampled_from([0.0, 1.0, 2.5, -3.0, 1e300, 2.0**63, -(2.0**63), float("inf"), 0.1, 2.0**31, 2.0**53])
_MICROS = st.one_of(st.integers(0, 10**15), st.sampled_from([-(10**16), 0, 86_400_000_000]))
_DAYS = st.dates(date(1, 1, 1), date(9999, 12, 31))

SCALARS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.bool_(), st.booleans()),
    (pa.int32(), st.integers(-(2**31), 2**31 - 1)),
    (pa.int64(), _LONGS),
    (pa.uint64(), st.sampled_from([0, 1, 2**63 - 1, 2**63, 2**64 - 1])),
    (pa.float32(), st.sampled_from([0.0, 1.5, 2.0, 16777216.0, 0.10000000149011612])),
    (pa.float64(), _DOUBLES),
    (pa.decimal128(9, 2), st.sampled_from([Decimal("1.00"), Decimal("1234567.89"), Decimal("-0.10")])),
    (pa.decimal128(12, 4), st.sampled_from([Decimal("1.0000"), Decimal("12345678.1234"), Decimal("0.1000")])),
    (pa.string(), _TEXTS),
    (pa.large_string(), _TEXTS),
    (pa.string_view(), _TEXTS),
    (pa.dictionary(pa.int32(), pa.string()), _TEXTS),
    (pa.binary(), st.binary(max_size=3)),
    (pa.binary(2), st.binary(min_size=2, max_size=2)),
    (pa.date32(), _DAYS),
    (pa.time32("ms"), st.integers(0, 86_399_999)),
    (pa.time64("us"), st.integers(0, 86_399_999_999)),
    (pa.timestamp("s"), st.sampled_from([0, 10**9, 2**60])),
    (pa.timestamp("us"), _MICROS),
    (pa.timestamp("us", "UTC"), _MICROS),
    (pa.timestamp("ms", "Europe/Berlin"), st.sampled_from([0, 10**12])),
    (pa.timestamp("ns", "UTC"), st.sampled_from([0, 10**18, 10**18 + 1])),
    (pa.null(), st.none()),
]


def _columns(depth: int) -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    scalars = st.sampled_from(SCALARS)
    if depth == 0:
        return scalars
    inner = _columns(depth - 1)
    lists = inner.map(lambda column: (pa.list_(column[0]), st.lists(nullable(column[1]), max_size=3)))
    maps = inner.map(
        lambda column: (
            pa.map_(pa.string(), column[0]),
            st.lists(st.tuples(st.just("k"), nullable(column[1])), max_size=2),
        )
    )
    structs = st.dictionaries(st.sampled_from(NAMES), inner, max_size=3).map(
        lambda fields: (
            pa.struct([pa.field(name, column[0]) for name, column in fields.items()]),
            _objects({name: nullable(column[1]) for name, column in fields.items()}),
        )
    )
    return st.one_of(scalars, scalars, lists, structs, maps)


def _objects(fields: dict[str, st.SearchStrategy[Any]]) -> st.SearchStrategy[dict[str, Any]]:
    """As `fixed_dictionaries`, several times faster."""
    return st.tuples(*fields.values()).map(lambda values: dict(zip(fields, values, strict=True)))


def nullable(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), values, values)


@st.composite
def batches(draw: st.DrawFn, rows_max: int = 4) -> pa.RecordBatch:
    """A batch of up to four columns out of few names, nested up to two levels; sometimes a slice."""
    fields = draw(st.dictionaries(st.sampled_from(NAMES), _columns(2), min_size=1, max_size=4))
    rows = draw(st.integers(0, rows_max))
    arrays = [
        pa.array(draw(st.lists(nullable(values), min_size=rows, max_size=rows)), kind)
        for kind, values in fields.values()
    ]
    batch = pa.RecordBatch.from_arrays(arrays, names=list(fields))
    return batch.slice(draw(st.integers(0, rows)))


_ISO = re.compile(r"(\d{4}-\d\d-\d\d)(?:[T ](\d\d:\d\d:\d\d)(\.\d{1,6})?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)


def atoms_by_row(batch: pa.RecordBatch) -> list[list[str]]:
    """Per row every scalar it holds at any depth, as canonical text, sorted: the same wherever it stands."""
    columns = [_atoms(column) for column in batch.columns]
    return [sorted(atom for column in columns for atom in column[row]) for row in range(batch.num_rows)]


def _atoms(array: pa.Array) -> list[list[str]]:
    kind = array.type
    if pt.is_dictionary(kind):
        array = array.dictionary_decode()
    if pt.is_struct(kind):
        children = [_atoms(child) for child in array.flatten()] if kind.num_fields else []
        return [[atom for child in children for atom in child[row]] for row in range(len(array))]
    if pt.is_list(kind) or pt.is_map(kind):
        elements = Elements.of(array)
        flat, first, rows = _atoms(elements.values), 0, []
        for length in elements.lengths.to_pylist():
            rows.append([atom for element in flat[first : first + (length or 0)] for atom in element])
            first += length or 0
        return rows
    return [[] if text is None else _of_text(text) for text in to_text(array).to_pylist()]


def _of_text(text: str) -> list[str]:
    """A nested value is kept in a text column as JSON, and counts as what it says."""
    if text[:1] not in ("[", "{"):
        return [_canonical(text)]
    found: list[str] = []
    waiting = [json.loads(text, parse_float=str, parse_int=str)]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict | list):
            waiting += value.values() if isinstance(value, dict) else value
        elif value is not None:
            found.append(_canonical(json.dumps(value) if isinstance(value, bool | float) else value))
    return found


def _canonical(text: str) -> str:
    match = _ISO.fullmatch(text)
    if match is None:
        try:
            number = Decimal(text)
        except InvalidOperation:
            return text
        return str(number.normalize(_EXACT)) if number.is_finite() else str(number)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:  # no such day
        return text
    if moment.tzinfo is not None:
        return moment.astimezone(UTC).isoformat()
    return moment.isoformat()  # a date counts as its midnight


def assert_extends(large: pa.DataType | pa.Schema, small: pa.DataType | pa.Schema) -> None:
    """`large` has every field of `small`, in the same order and first, at every depth."""
    names = [field.name for field in small]
    assert [field.name for field in large][: len(names)] == names
    for field in small:
        new = large.field(field.name).type
        if pa.types.is_struct(field.type):
            assert_extends(new, field.type)
        elif pa.types.is_nested(field.type):
            assert type(new) is type(field.type)


def table_schema(batch: pa.RecordBatch) -> pa.Schema:
    return merge(pa.schema([]), batch.schema)


@given(batches(), batches())
def test_merge_is_idempotent_and_only_adds(one: pa.RecordBatch, other: pa.RecordBatch) -> None:
    target = table_schema(one)
    merged = merge(target, other.schema)
    assert merge(merged, other.schema).equals(merged)
    assert merge(target, target).equals(target)
    assert merge(one.schema, one.schema).equals(one.schema)
    assert_extends(merged, target)


@given(batches(), batches())
def test_fit_after_merge_loses_no_value(one: pa.RecordBatch, other: pa.RecordBatch) -> None:
    merged = merge(table_schema(one), other.schema)
    fitted = fit(other, merged)
    fitted.validate(full=True)
    assert fitted.schema.equals(merged, check_metadata=True)
    assert atoms_by_row(fitted) == atoms_by_row(other)


@given(batches(), batches())
def test_grow_adds_less_than_merge_and_loses_no_value(one: pa.RecordBatch, other: pa.RecordBatch) -> None:
    target = table_schema(one)
    schema, fitted = grow(target, other)
    fitted.validate(full=True)
    assert fitted.schema.equals(schema, check_metadata=True)
    assert_extends(schema, target)
    assert set(schema.names) <= set(merge(target, other.schema).names)
    assert atoms_by_row(fitted) == atoms_by_row(other)
    again, same = grow(schema, other)
    assert again.equals(schema)
    assert same.equals(fitted)


@given(batches(), batches(rows_max=6), st.integers(0, 6))
def test_where_a_value_lands_does_not_depend_on_how_rows_are_batched(
    one: pa.RecordBatch, other: pa.RecordBatch, cut: int
) -> None:
    merged = merge(table_schema(one), other.schema)
    whole = fit(other, merged)
    parts = [fit(part, merged) for part in (other.slice(0, cut), other.slice(cut))]
    assert pa.Table.from_batches(parts).equals(pa.Table.from_batches([whole]))
    target, columns = table_schema(one), grow(table_schema(one), other)[0]
    for part in (other.slice(0, cut), other.slice(cut)):
        target = grow(target, part)[0]
    assert set(target.names) == set(columns.names)


@settings(suppress_health_check=[HealthCheck.filter_too_much])
@given(batches())
def test_a_fitted_batch_fits_as_it_is(batch: pa.RecordBatch) -> None:
    schema = table_schema(batch)
    assume(len(schema) > 0)
    fitted = fit(batch, schema)
    assert merge(schema, fitted.schema).equals(schema)
    for new, old in zip(fit(fitted, schema).columns, fitted.columns, strict=True):
        assert [b and b.address for b in new.buffers()] == [b and b.address for b in old.buffers()]


@given(batches())
def test_plain_types_are_their_own_plain_types(batch: pa.RecordBatch) -> None:
    for kind in batch.schema.types:
        assert plain_type(plain_type(kind)).equals(plain_type(kind))


_DIGITS = st.sampled_from([1, 5, 18, 37, 38, 39, 60, 76])


@st.composite
def decimal_types(draw: st.DrawFn) -> pa.DataType:
    precision = draw(_DIGITS)
    scale = draw(st.sampled_from([0, 1, precision // 2, precision - 1, precision]))
    return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, scale)


@given(decimal_types(), decimal_types(), st.data())
def test_a_decimal_fits_another_type_exactly_or_not_at_all(kind: pa.DataType, target: pa.DataType, data: Any) -> None:
    assume(kind != target)
    largest = 10**kind.precision - 1
    digits = st.one_of(st.sampled_from([0, 1, largest, -largest]), st.integers(-largest, largest))
    values = [Decimal(each).scaleb(-kind.scale, _EXACT) for each in data.draw(st.lists(digits, min_size=1, max_size=4))]
    found, misfit = convert_scalars(pa.array([*values, None], kind), target)

    def fitting(value: Decimal) -> Decimal | None:
        moved = value.scaleb(target.scale, _EXACT)
        is_whole = moved == moved.to_integral_value(context=_EXACT)
        return value if is_whole and abs(moved) < 10**target.precision else None

    wanted = [fitting(value) for value in values]
    assert found.type == target
    assert found.to_pylist() == [*wanted, None]
    assert (misfit is None) == (None not in wanted)
    if misfit is not None:
        assert misfit.to_pylist() == [each is None for each in wanted] + [False]
