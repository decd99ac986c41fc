"""A schema that remembers far more fields than records have costs neither time nor memory, and changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.engine.json import JsonLinesDecoder, narrow
from conveyord.engine.json.shape import Shape
from tests.engine.test_json_properties import (
    REGULAR_SCHEMA,
    assert_bulk_is_exact,
    edits,
    lines,
    records,
    regular,
)

DECODER = JsonLinesDecoder()
WIDE = {f"f{number}": number if number % 3 else f"t{number}" for number in range(2_500)}


def ordinary(number: int) -> dict[str, Any]:
    return {"id": number, "at": "2026-01-01T00:00:00Z", "price": number / 8, "in": {"x": number, "l": [{"y": "z"}]}}


def padded(kind: pa.DataType) -> pa.DataType:
    """`kind` with many fields more at every level, some before its own."""
    if pa.types.is_struct(kind):
        own = [field.with_type(padded(field.type)) for field in kind]
        before = [pa.field(f"_before{number}", pa.int64()) for number in range(70)]
        return pa.struct([*before, *own, pa.field("_behind", pa.struct([("deep", pa.string())]))])
    return pa.list_(padded(kind.value_type)) if pa.types.is_list(kind) else kind


def with_more(schema: pa.Schema) -> pa.Schema:
    return pa.schema(list(padded(pa.struct(list(schema)))))


class Widest:
    """How many fields the strict reader was given at most, at all depths."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.fields = 0
        self._read = narrow.decode_strict
        for module in ("narrow", "decoder"):
            patch.setattr(f"conveyord.engine.json.{module}.decode_strict", self)

    def __call__(self, block: bytes, shape: Shape) -> pa.StructArray | None:
        self.fields = max(self.fields, self._count(shape))
        return self._read(block, shape)

    def _count(self, shape: Shape) -> int:
        inner = list(shape.fields.values()) + ([shape.element] if shape.element is not None else [])
        return len(shape.fields) + sum(map(self._count, inner))


@given(records, records)
def test_what_is_read_under_few_fields_is_what_the_exact_path_reads(sample: list[Any], rows: list[Any]) -> None:
    schema = with_more(DECODER.infer(lines(sample), None))
    assert_bulk_is_exact(lines(sample), schema)
    assert_bulk_is_exact(lines(rows), schema)
    assert_bulk_is_exact(lines([*sample, *rows]), schema)


@settings(max_examples=200)
@given(st.lists(regular, min_size=1, max_size=4), edits)
def test_damage_is_found_under_few_fields_too(rows: list[Any], changes: list[tuple[int, int, bytes]]) -> None:
    block = bytearray(lines(rows))
    for place, removed, added in changes:
        place %= len(block) + 1
        block[place : place + removed] = added
    assert_bulk_is_exact(bytes(block), with_more(REGULAR_SCHEMA))


@pytest.mark.parametrize("home", ["top", "nested", "in a list"])
def test_blocks_behind_a_record_of_2500_fields_are_read_as_if_it_had_not_been(
    home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They took a hundred times as long, and a block of eight megabytes took 640 of memory."""
    one = {"top": WIDE, "nested": {"in": WIDE}, "in a list": {"in": {"l": [WIDE]}}}[home]
    block = lines([ordinary(number) for number in range(5_000)])
    before = DECODER.infer(block, None)
    schema = DECODER.decode(lines([one]), before, None).schema
    widest = Widest(monkeypatch)
    allocated = pa.total_allocated_bytes()
    decoded = DECODER.decode(block, schema, None)
    assert pa.total_allocated_bytes() - allocated < 8 * 1024**2
    assert widest.fields < 10
    assert decoded.schema is schema
    assert decoded.data.schema == schema
    decoded.data.validate(full=True)
    own = DECODER.decode(block, before, None).data
    for name in before.names:
        column = decoded.data.column(name)
        assert column.equals(own.column(name)) if home == "top" or name != "in" else column.null_count == 0
    assert decoded.data["in"].to_pylist()[7]["x"] == 7


def test_the_types_of_a_sample_that_holds_such_a_record_are_found_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.dumps(WIDE | ordinary(0)), *(json.dumps(ordinary(number)) for number in range(40_000))]
    widest = Widest(monkeypatch)
    schema = DECODER.infer("\n".join([*rows, ""]).encode(), None)
    assert len(schema) == 2_504
    assert widest.fields < 10


def test_a_field_that_only_the_middle_of_a_block_has_is_not_lost() -> None:
    block = lines([ordinary(n) | ({"f7": "here"} if n == 1_000 else {}) for n in range(2_000)])
    schema = DECODER.decode(lines([WIDE]), DECODER.infer(lines([ordinary(0)]), None), None).schema
    assert DECODER.decode(block, schema, None).data["f7__string"].to_pylist()[1_000] == "here"


def test_few_columns_are_read_without_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(block: bytes) -> None:
        raise AssertionError(block)

    monkeypatch.setattr(narrow, "_at_the_ends", looked)
    DECODER.decode(lines([ordinary(1)]), DECODER.infer(lines([ordinary(1)]), None), None)


def test_lines_too_long_to_look_at_are_read_in_bulk_under_all_fields() -> None:
    long = {**WIDE, "text": "x" * narrow.LOOK_BYTES}
    block = b"".join(json.dumps(long).encode() + b"\n" for _ in range(3))
    assert narrow.narrowed(block, DECODER.infer(block, None)) is None
