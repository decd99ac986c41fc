"""Avro values: against fastavro as the oracle, framed by Confluent's own serializers, damaged in every way."""

from __future__ import annotations

import io
import json
import uuid
import warnings
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Context, Decimal
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.engine.http.trust import trusting
from conveyord.engine.payloads.avro import nested
from conveyord.engine.payloads.avro.decoder import AvroPayloads, FramedAvroPayloads, schema_of_file
from conveyord.engine.payloads.avro.schema import UnusableSchema, node_of_schema
from conveyord.storage.schema_registry import RegistryAccess, SchemaRegistry
from tests.engine.payload_laws import check_damage, check_laws, check_shape, damaged, rows_of
from tests.storage.schema_registry_rig import Registry, running_registry

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@pytest.fixture
def server() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


def registry_at(server: Registry) -> SchemaRegistry:
    return SchemaRegistry(RegistryAccess(urls=(server.url,), trust=trusting(None, option="ca_file")))


def record(*fields: tuple[str, Any], name: str = "R") -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": key, "type": kind} for key, kind in fields]}


def encoded(schema: Any, *values: Any) -> list[bytes]:
    parsed = fastavro.parse_schema(schema)
    made = []
    for value in values:
        out = io.BytesIO()
        fastavro.schemaless_writer(out, parsed, value)
        made.append(out.getvalue())
    return made


def decoder_of(schema: Any) -> AvroPayloads:
    return AvroPayloads(node_of_schema(json.dumps(schema)))


def decoded(schema: Any, *values: Any) -> list[dict[str, Any]]:
    found = decoder_of(schema).decode(encoded(schema, *values), None)
    assert not found.bad
    rows: list[dict[str, Any]] = found.data.to_pylist()
    return rows


# ------------------------------------------------------------------------------ against fastavro


class Typed:
    """A type of Avro's, values that fastavro writes for it, and what they become."""

    def __init__(self, schema: Any, values: st.SearchStrategy[Any], become: Any = lambda value: value) -> None:
        self.schema = schema
        self.values = values
        self.become = become


def exact(number: int, scale: int) -> Decimal:
    return Decimal(number).scaleb(-scale, Context(prec=50))


LONGS = st.one_of(st.integers(-100, 100), st.integers(-(2**63), 2**63 - 1), st.integers(0, 62).map(lambda bit: 2**bit))
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = [
    Typed("long", LONGS),
    Typed("int", st.integers(-(2**31), 2**31 - 1)),
    Typed("boolean", st.booleans()),
    Typed("double", st.floats()),
    Typed("float", st.floats(width=32)),
    Typed("string", TEXTS),
    Typed("bytes", st.binary(max_size=20)),
    Typed({"type": "enum", "name": "E", "symbols": ["A", "B", "C"]}, st.sampled_from("ABC")),
    Typed({"type": "fixed", "name": "F", "size": 5}, st.binary(min_size=5, max_size=5)),
    Typed({"type": "int", "logicalType": "date"}, st.dates()),
    Typed({"type": "int", "logicalType": "time-millis"}, st.just(time(23, 59, 59, 999_000))),
    Typed({"type": "long", "logicalType": "time-micros"}, st.times()),
    Typed(
        {"type": "long", "logicalType": "timestamp-millis"},
        st.integers(-(10**13), 10**13).map(lambda millis: EPOCH + timedelta(milliseconds=millis)),
    ),
    Typed(
        {"type": "long", "logicalType": "timestamp-micros"},
        st.integers(-(10**16), 10**16).map(lambda micros: EPOCH + timedelta(microseconds=micros)),
    ),
    Typed({"type": "long", "logicalType": "local-timestamp-micros"}, st.datetimes()),
    Typed({"type": "string", "logicalType": "uuid"}, st.uuids(), str),
    *(
        Typed(
            {"type": "bytes", "logicalType": "decimal", "precision": precision, "scale": scale},
            st.integers(-(10**precision) + 1, 10**precision - 1).map(lambda n, s=scale: exact(n, s)),
        )
        for precision, scale in [(4, 2), (18, 0), (38, 10)]
    ),
    Typed(
        {"type": "fixed", "name": "D", "size": 9, "logicalType": "decimal", "precision": 20, "scale": 3},
        st.integers(-(10**20) + 1, 10**20 - 1).map(lambda n: exact(n, 3)),
    ),
]


def lists_of(item: Typed) -> Typed:
    schema = {"type": "array", "items": item.schema}
    return Typed(schema, st.lists(item.values, max_size=4), lambda values: [item.become(value) for value in values])


def maps_of(item: Typed) -> Typed:
    schema = {"type": "map", "values": item.schema}
    return Typed(
        schema,
        st.dictionaries(st.text("abc", max_size=2), item.values, max_size=3),
        lambda value: [(key, item.become(inner)) for key, inner in value.items()],
    )


def optional(item: Typed) -> Typed:
    if isinstance(item.schema, list):
        return item
    return Typed(
        ["null", item.schema],
        st.one_of(st.none(), item.values),
        lambda value: None if value is None else item.become(value),
    )


def records_of(items: list[Typed]) -> Typed:
    named = {f"f{at}": item for at, item in enumerate(items)}
    return Typed(
        {
            "type": "record",
            "name": "X",
            "fields": [{"name": name, "type": item.schema} for name, item in named.items()],
        },
        st.fixed_dictionaries({name: item.values for name, item in named.items()}),
        lambda value: {name: item.become(value[name]) for name, item in named.items()},
    )


types = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        inner.map(lists_of),
        inner.map(maps_of),
        inner.map(optional),
        st.lists(inner, min_size=1, max_size=3).map(records_of),
    ),
    max_leaves=5,
)


def renamed(schema: Any, counter: Iterator[int]) -> Any:
    """`schema` with a name of its own for each type: Avro defines a name once."""
    if isinstance(schema, list):
        return [renamed(branch, counter) for branch in schema]
    if not isinstance(schema, dict):
        return schema
    made = {
        key: renamed(value, counter) if key in ("items", "values", "type") else value for key, value in schema.items()
    }
    if "fields" in made:
        made["fields"] = [{**field, "type": renamed(field["type"], counter)} for field in made["fields"]]
    if "name" in made:
        made["name"] = f"N{next(counter)}"
    return made


def same(one: Any, other: Any) -> bool:
    """Equal, NaN and itself included."""
    return repr(one) == repr(other) or one == other


@given(st.lists(types, min_size=1, max_size=4).map(records_of), st.data())
def test_values_are_what_fastavro_wrote(typed: Typed, data: st.DataObject) -> None:
    schema = renamed(typed.schema, iter(range(10_000)))
    values = data.draw(st.lists(typed.values, max_size=5)) * data.draw(st.sampled_from([1, 1, 20]))
    found = decoder_of(schema).decode(encoded(schema, *values), None)
    check_shape(found, [b""] * len(values))
    assert not found.bad
    for row, value in zip(found.data.to_pylist(), values, strict=True):
        wanted = typed.become(value)
        for name, field in wanted.items():
            got = row.get(name)
            assert same(_zoneless(got), _zoneless(field)), (name, schema)


def _zoneless(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    if isinstance(value, dict):
        return {key: _zoneless(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_zoneless(item) for item in value]
    return value


@given(st.lists(types, min_size=1, max_size=3).map(records_of), st.data())
def test_lists_read_side_by_side_and_one_by_one_are_the_same(typed: Typed, data: st.DataObject) -> None:
    schema = renamed(typed.schema, iter(range(10_000)))
    values = encoded(schema, *data.draw(st.lists(typed.values, min_size=1, max_size=5)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nested, "SIDE_BY_SIDE_MIN", 1)
        side_by_side = decoder_of(schema).decode(values, None)
        patch.setattr(nested, "SIDE_BY_SIDE_MIN", 10**9)
        one_by_one = decoder_of(schema).decode(values, None)
    assert side_by_side.schema.equals(one_by_one.schema)
    assert rows_of(side_by_side) == rows_of(one_by_one) and side_by_side.bad == one_by_one.bad


@given(st.lists(types, min_size=1, max_size=3).map(records_of), st.data())
def test_avro_keeps_the_laws(typed: Typed, data: st.DataObject) -> None:
    schema = renamed(typed.schema, iter(range(10_000)))
    values = encoded(schema, *data.draw(st.lists(typed.values, min_size=1, max_size=3)))
    check_laws(decoder_of(schema), values, values[:1])


@given(st.lists(types, min_size=1, max_size=3).map(records_of), st.booleans(), st.data())
def test_damaged_avro_harms_nothing_else(typed: Typed, is_alone: bool, data: st.DataObject) -> None:
    schema = renamed(typed.schema, iter(range(10_000)))
    values = encoded(schema, *data.draw(st.lists(typed.values, min_size=1, max_size=3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nested, "SIDE_BY_SIDE_MIN", 10**9 if is_alone else 1)
        check_damage(decoder_of(schema), values, *data.draw(damaged(values)))


@given(st.lists(types, min_size=1, max_size=3).map(records_of), st.binary(max_size=60), st.data())
def test_what_is_bad_does_not_depend_on_how_it_is_read(typed: Typed, value: bytes, data: st.DataObject) -> None:
    schema = renamed(typed.schema, iter(range(10_000)))
    good = encoded(schema, data.draw(typed.values))[0]
    values = [value, data.draw(damaged([good]))[1], good]
    found = []
    for least in (1, 10**9):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(nested, "SIDE_BY_SIDE_MIN", least)
            found.append(decoder_of(schema).decode(values, None))
    assert rows_of(found[0]) == rows_of(found[1])
    assert [one.number for one in found[0].bad] == [one.number for one in found[1].bad]


# ------------------------------------------------------------------------------ types


def test_a_union_of_several_types_is_columns_side_by_side() -> None:
    inner = record(("z", "int"), name="I")
    schema = record(("u", ["null", "long", "string", inner]), ("u__string", "boolean"))
    rows = decoded(schema, *({"u": value, "u__string": True} for value in (None, 5, "x", {"z": 1})))
    nothing = {"u": None, "u__string_2": None, "u__struct": None, "u__string": True}
    assert [{key: value for key, value in row.items() if not key.endswith("_2")} for row in rows] == [
        {"u": None, "u__string": True, "u__struct": None},
        {"u": 5, "u__string": True, "u__struct": None},
        {"u": None, "u__string": True, "u__struct": None},
        {"u": None, "u__string": True, "u__struct": {"z": 1}},
    ]
    assert len(rows[2]) == len(nothing) and "x" in rows[2].values()


def test_types_of_a_union_that_share_a_word_are_told_apart_by_their_names() -> None:
    one, other = record(("a", "int"), name="One"), record(("b", "int"), name="ns.Other")
    schema = record(("u", ["int", one, other, "long"]))
    rows = decoded(schema, {"u": {"a": 1}}, {"u": {"b": 2}}, {"u": 2**40}, {"u": 7})
    assert [{key: value for key, value in row.items() if value is not None} for row in rows] == [
        {"u__struct": {"a": 1}},
        {"u__Other": {"b": 2}},
        {"u__long": 2**40},
        {"u": 7},
    ]


def test_a_union_within_a_list_is_a_struct_with_a_field_for_each_type() -> None:
    schema = record(("l", {"type": "array", "items": ["null", "int", "string"]}))
    assert decoded(schema, {"l": [1, "x", None]}) == [
        {"l": [{"long": 1, "string": None}, {"long": None, "string": "x"}, None]}
    ]


def test_a_union_of_records_is_rows_of_each() -> None:
    schema = ["null", record(("a", "int"), name="A"), record(("b", "string"), name="B")]
    found = decoder_of(schema).decode(encoded(schema, {"b": "x"}, None, ("A", {"a": 1})), None)
    assert not found.bad and found.numbers is not None and found.numbers.tolist() == [0, 2]
    assert found.data.to_pylist() == [{"a": None, "b": "x"}, {"a": 1, "b": None}]


def test_a_schema_that_is_no_record_is_one_column() -> None:
    assert decoded("string", "x") == [{"value": "x"}]
    assert decoded({"type": "array", "items": "int"}, [1, 2]) == [{"value": [1, 2]}]
    assert decoded(["null", "long"], 5, None) == [{"value": 5}]


def test_logical_types() -> None:
    fixed_uuid = {"type": "fixed", "name": "U", "size": 16, "logicalType": "uuid"}
    duration = {"type": "fixed", "name": "D", "size": 12, "logicalType": "duration"}
    nanos = {"type": "long", "logicalType": "timestamp-nanos"}
    long_decimal = {"type": "bytes", "logicalType": "decimal", "precision": 50, "scale": 2}
    schema = record(("u", fixed_uuid), ("d", duration), ("n", nanos), ("n2", nanos), ("b", long_decimal))
    some = uuid.UUID("0123456789abcdef0123456789abcdef")
    parts = b"".join(number.to_bytes(4, "little") for number in (1, 2, 4_000_000_000))
    raw = (12345).to_bytes(3, "big", signed=True)
    plain = record(
        ("u", {"type": "fixed", "name": "U", "size": 16}),
        ("d", {"type": "fixed", "name": "D", "size": 12}),
        ("n", "long"),
        ("n2", "long"),
        ("b", "bytes"),
    )
    (value,) = encoded(plain, {"u": some.bytes, "d": parts, "n": 1_000_000_000, "n2": 1_000_000_001, "b": raw})
    found = decoder_of(schema).decode([value], None)
    (row,) = found.data.to_pylist()
    assert row["u"] == str(some) and row["d"] == {"months": 1, "days": 2, "millis": 4_000_000_000}
    assert row["n"] == EPOCH + timedelta(seconds=1) and row["b"] == "123.45"
    assert row["n2"] is None and row["n2__json"] == "1970-01-01T00:00:01.000000001Z"


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "int", "logicalType": "date"}, b"\x02" * 9 + b"\x00"),
        ({"type": "int", "logicalType": "time-millis"}, b"\x01"),
        ({"type": "long", "logicalType": "time-micros"}, b"\x80\xe0\xd4\xbb\xd7\x28"),
        ({"type": "long", "logicalType": "timestamp-millis"}, b"\xfe" + b"\xff" * 8 + b"\x01"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 2}, b"\x02\x64"),
        ({"type": "bytes", "logicalType": "decimal", "precision": 2}, b"\x28" + b"\x01" * 20),
        ({"type": "bytes", "logicalType": "decimal", "precision": 60}, b"\x80\x02" + b"\x01" * 128),
        ("int", b"\xfe\xff\xff\xff\x7f"),
        ("boolean", b"\x02"),
        ("string", b"\x02\xff"),
        ("string", b"\x01"),
        ("long", b"\xff" * 10),
        ("long", b"\xff" * 9 + b"\x02"),
        ({"type": "enum", "name": "E", "symbols": ["A"]}, b"\x02"),
        (["null", "int"], b"\x04"),
    ],
)
def test_a_value_beyond_its_type_is_bad_alone(schema: Any, value: bytes) -> None:
    for inner in (schema, {"type": "array", "items": schema}):
        framed = record(("before", "int"), ("x", inner), ("after", "string"))
        body = value if inner is schema else b"\x02" + value + b"\x00"
        node = decoder_of(framed)
        found = node.decode([b"\x02" + body + b"\x02a"], None)
        assert [one.number for one in found.bad] == [0] and found.data.num_rows == 0


def test_what_follows_a_value_makes_it_bad() -> None:
    (value,) = encoded(record(("a", "int")), {"a": 1})
    found = decoder_of(record(("a", "int"))).decode([value, value + b"\x00", value], None)
    assert [(one.number, one.code) for one in found.bad] == [(1, "MALFORMED_RECORD")]


@pytest.mark.parametrize(
    "item", ["null", record(name="Empty"), {"type": "fixed", "name": "Z", "size": 0}, "int", "double"]
)
def test_a_list_that_claims_to_be_endless_is_bad(item: Any) -> None:
    node = decoder_of(record(("l", {"type": "array", "items": item})))
    claims = [b"\xfe" + b"\xff" * 8 + b"\x01", b"\xff" * 9 + b"\x01", b"\x80\x80\x80\x80\x10", b"\xfe\xff\x7f" * 20]
    for count in (1, 40):
        values = [claim + bytes(30) for claim in claims] * count
        found = node.decode([*values, b"\x00"], None)
        assert len(found.bad) == len(values)
        assert found.data.to_pylist() == [{"l": []} if len(found.schema) else {}]  # a list of nulls says nothing


def test_long_lists_of_few_values_are_read() -> None:
    schema = record(("l", {"type": "array", "items": ["null", "long"]}))
    long = [None, 1, 2**40] * 20_000
    assert decoded(schema, {"l": long}, {"l": []}, {"l": [1]}) == [{"l": long}, {"l": []}, {"l": [1]}]


# ------------------------------------------------------------------------------ schemas


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        (record(("next", ["null", "R"])), "contains itself"),
        (record(("x", {"type": "array", "items": "R"})), "contains itself"),
        (record(("x", "unknown")), "does not define"),
        (record(("x", "int"), ("x", "long")), "two fields"),
        ({"type": "record", "name": "R"}, "'fields'"),
        ({"type": "array"}, "'items'"),
        ({"type": "fixed", "name": "F", "size": -1}, "size"),
        ({"type": "fixed", "name": "F", "size": 2**40}, "size"),
        ({"type": "enum", "name": "E", "symbols": [1]}, "symbols"),
        ([["int"]], "union within a union"),
        (5, "none"),
        ({}, "none"),
    ],
)
def test_a_schema_that_cannot_be_rows_is_refused_with_a_sentence(schema: Any, says: str) -> None:
    with pytest.raises(UnusableSchema, match=says):
        node_of_schema(json.dumps(schema))


def test_schemas_that_blow_up_are_refused() -> None:
    levels = [record(("x", "int"), name="L0")]
    levels += [record(("a", f"L{at}"), ("b", f"L{at}"), name=f"L{at + 1}") for at in range(30)]
    with pytest.raises(UnusableSchema, match="types"):
        node_of_schema(json.dumps(levels))
    for text in ("[" * 100_000, '{"type":' * 200 + '"int"' + "}" * 200, "", "nonsense"):
        with pytest.raises(UnusableSchema):
            node_of_schema(text)


def test_a_type_is_known_by_its_name_with_and_without_its_namespace() -> None:
    inner = {"type": "record", "name": "I", "fields": [{"name": "z", "type": "int"}]}
    schema = {"type": "record", "name": "R", "namespace": "a.b", "fields": []}
    schema["fields"] = [{"name": name, "type": kind} for name, kind in (("x", inner), ("y", "I"), ("w", "a.b.I"))]
    value = {"x": {"z": 1}, "y": {"z": 2}, "w": {"z": 3}}
    assert decoded(schema, value) == [value]


def test_a_schema_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.avsc"
    path.write_text(json.dumps(record(("a", "int"))))
    found = AvroPayloads(schema_of_file(str(path))).decode(encoded(record(("a", "int")), {"a": 4}), None)
    assert found.data.to_pylist() == [{"a": 4}]
    for content in (b"{}", b"\xff", b" " * (4 * 1024 * 1024 + 1)):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"schema_file .*a\.avsc"):
            schema_of_file(str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        schema_of_file(str(tmp_path / "none"))


# ------------------------------------------------------------------------------ with a registry


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + body


def confluent(server: Registry, schema: Any, **named: Any) -> Any:
    """Confluent's serializer for values of topic `t`. named: schemas that it refers to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that it imports
        from confluent_kafka.schema_registry import Schema, SchemaReference, SchemaRegistryClient
        from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    client = SchemaRegistryClient({"url": server.url})
    server.on_end.callback(client.__exit__, None, None, None)
    references = []
    for name, inner in named.items():
        client.register_schema(name, Schema(json.dumps(inner), "AVRO"))
        references.append(SchemaReference(inner["name"], name, 1))
    serialize = AvroSerializer(client, Schema(json.dumps(schema), "AVRO", references))
    return lambda value: serialize(value, SerializationContext("t", MessageField.VALUE))


def test_values_of_confluents_serializer_are_read(server: Registry) -> None:
    inner = {"type": "record", "name": "Inner", "fields": [{"name": "z", "type": "long"}]}
    serialize = confluent(server, record(("a", "int"), ("i", "Inner")), inner=inner)
    found = FramedAvroPayloads(registry_at(server)).decode([serialize({"a": 1, "i": {"z": 5}})], None)
    assert found.data.to_pylist() == [{"a": 1, "i": {"z": 5}}] and not found.bad


def test_schemas_of_one_topic_become_rows_of_one(server: Registry) -> None:
    first = confluent(server, record(("a", "int")))
    second = confluent(server, record(("a", "long"), ("b", ["null", "string"])))
    third = confluent(server, record(("a", "string")))
    values = [first({"a": 1}), third({"a": "x"}), second({"a": 2**40, "b": "y"}), first({"a": 2})]
    asked = len(server.asked)
    decoder = FramedAvroPayloads(registry_at(server))
    found = check_laws(decoder, values, [second({"a": 3, "b": None})])
    assert [{key: value for key, value in row.items() if value is not None} for row in found.data.to_pylist()] == [
        {"a": 1},
        {"a__string": "x"},
        {"a": 2**40, "b": "y"},
        {"a": 2},
    ]
    assert len(server.asked) == asked + 3


def test_an_id_that_the_registry_does_not_know_makes_its_values_bad(server: Registry) -> None:
    schema_id = server.register("t", json.dumps(record(("a", "int"))))
    (body,) = encoded(record(("a", "int")), {"a": 1})
    values = [
        framed(schema_id, body),
        framed(77, body),
        b"\x01" + bytes(9),
        b"",
        framed(schema_id, body),
        framed(77, b""),
    ]
    found = FramedAvroPayloads(registry_at(server)).decode(values, None)
    check_shape(found, values)
    assert [(one.number, one.code) for one in found.bad] == [
        (1, "UNKNOWN_SCHEMA"),
        (2, "MALFORMED_RECORD"),
        (3, "MALFORMED_RECORD"),
        (5, "UNKNOWN_SCHEMA"),
    ]
    assert found.data.to_pylist() == [{"a": 1}] * 2


def test_a_schema_that_cannot_be_rows_makes_its_values_bad(server: Registry) -> None:
    ids = [
        server.register("t", json.dumps(record(("next", ["null", "R"])))),
        server.register("t", "{}", "JSON"),
        server.register("t", "nonsense"),
    ]
    found = FramedAvroPayloads(registry_at(server)).decode([framed(one, b"\0") for one in ids], None)
    assert [one.code for one in found.bad] == ["UNUSABLE_SCHEMA"] * 3
    assert "contains itself" in found.bad[0].reason and "JSON" in found.bad[1].reason


@given(st.lists(st.binary(max_size=12), max_size=6))
def test_random_values_are_bad_one_by_one(values: list[bytes]) -> None:
    decoder = decoder_of(record(("a", "int"), ("l", {"type": "array", "items": "string"})))
    check_laws(decoder, values, [b"\x02\x00"])


def test_dates_that_python_does_not_know_are_kept() -> None:
    """The calendar of a table reaches further than Python's."""
    value = decoder_of(record(("d", {"type": "int", "logicalType": "date"}))).decode([b"\xfe\xff\xff\xff\x0f"], None)
    assert value.data.column(0).cast(pa.int32()).to_pylist() == [2**31 - 1] and date.max.year == 9999
