"""JSON Schema and Protobuf values, as Confluent's serializers write them."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.engine.http.trust import trusting
from conveyord.engine.payloads.json_schema import JsonSchemaPayloads, schema_of_document
from conveyord.engine.payloads.protobuf import descriptors
from conveyord.engine.payloads.protobuf.decoder import ProtobufPayloads
from conveyord.storage.schema_registry import RegistryAccess, SchemaRegistry
from tests.engine.payload_laws import check_damage, check_laws, check_shape, damaged
from tests.engine.payload_protos import FLIGHT, OTHER, file_descriptor, message_class
from tests.storage.schema_registry_rig import Registry, running_registry


@pytest.fixture(scope="module")
def server() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


def registry_at(server: Registry) -> SchemaRegistry:
    return SchemaRegistry(RegistryAccess(urls=(server.url,), trust=trusting(None, option="ca_file")))


def framed(schema_id: int, body: bytes) -> bytes:
    return b"\0" + schema_id.to_bytes(4, "big") + body


def client_of(server: Registry) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that it imports
        from confluent_kafka.schema_registry import SchemaRegistryClient
    client = SchemaRegistryClient({"url": server.url})
    server.on_end.callback(client.__exit__, None, None, None)
    return client


# ------------------------------------------------------------------------------ JSON Schema

PERSON = {
    "$id": "person",
    "title": "Person",
    "type": "object",
    "properties": {
        "id": {"type": "integer"},
        "score": {"type": "number"},
        "born": {"type": "string", "format": "date-time"},
        "name": {"type": ["string", "null"]},
        "code": {"oneOf": [{"type": "null"}, {"type": "string"}]},
        "tags": {"type": "array", "items": {"type": "string"}},
        "home": {"$ref": "#/definitions/place"},
        "boss": {"$ref": "#"},
        "open": {},
    },
    "definitions": {"place": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_json_is_typed_by_its_schema(server: Registry) -> None:
    from confluent_kafka.schema_registry.json_schema import JSONSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    serialize = JSONSerializer(json.dumps(PERSON), client_of(server))
    context = SerializationContext("people", MessageField.VALUE)
    values = [
        serialize({"id": 1, "score": 1, "code": "2024-01-01T00:00:00Z", "home": {"city": "x", "zip": 5}}, context),
        serialize({"id": 2, "born": "2024-05-01T10:00:00Z", "boss": {"id": 1}, "open": True}, context),
    ]
    found = check_laws(JsonSchemaPayloads(registry_at(server)), values, values[:1])
    assert [(name, str(found.schema.field(name).type)) for name in ("score", "born", "code", "tags", "open")] == [
        ("score", "double"),
        ("born", "timestamp[us, tz=UTC]"),
        ("code", "string"),
        ("tags", "list<item: string>"),
        ("open", "bool"),
    ]
    first, second = found.data.to_pylist()
    assert first["score"] == 1.0 and first["home"] == {"city": "x", "zip": 5}
    assert second["born"] == datetime(2024, 5, 1, 10, tzinfo=UTC) and second["boss"]["id"] == 1


def test_json_that_is_not_what_its_schema_says_is_kept_beside_its_column(server: Registry) -> None:
    schema_id = server.register("p", json.dumps(PERSON), "JSON")
    found = JsonSchemaPayloads(registry_at(server)).decode([framed(schema_id, b'{"id": "x", "born": "soon"}')], None)
    (row,) = found.data.to_pylist()
    assert row["id"] is None and row["id__string"] == "x" and row["born__string"] == "soon"


def test_bad_json_is_bad_by_its_number_among_all_values(server: Registry) -> None:
    schema_id = server.register("p", json.dumps(PERSON), "JSON")
    avro = server.register("a", '"string"')
    values = [b"{}", framed(schema_id, b"{"), framed(schema_id, b'{\n"id": 1}'), framed(99, b"{}"), framed(avro, b"{}")]
    values.append(framed(schema_id, b""))
    found = check_laws(JsonSchemaPayloads(registry_at(server)), values)
    assert [(one.number, one.code) for one in found.bad] == [
        (0, "MALFORMED_RECORD"),
        (1, "MALFORMED_RECORD"),
        (3, "UNKNOWN_SCHEMA"),
        (4, "UNUSABLE_SCHEMA"),
        (5, "MALFORMED_RECORD"),
    ]
    assert found.numbers is not None and found.numbers.tolist() == [2]


def test_references_to_other_documents_are_followed() -> None:
    place = {"type": "object", "properties": {"city": {"type": "string"}}}
    document = {"properties": {"home": {"$ref": "place.json"}, "gone": {"$ref": "none.json"}, "d": {"$ref": "#/d~1x"}}}
    document["d/x"] = {"allOf": [{"properties": {"a": {"type": "integer"}}}, {"$ref": "place.json"}]}
    found = schema_of_document(document, {"place.json": place})
    assert str(found.field("home").type) == "struct<city: string>" and "gone" not in found.names
    assert str(found.field("d").type) == "struct<a: int64, city: string>"


json_texts = st.recursive(
    st.one_of(st.sampled_from(["object", "array", "string", "integer", "null", "#", "#/a", 1, None, True])),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(["type", "properties", "items", "$ref", "anyOf", "allOf", "a", "", "format"]),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=15,
)


@given(json_texts)
def test_no_document_breaks_the_typing(document: Any) -> None:
    found = schema_of_document(document, {"x": document})
    assert len(set(found.names)) == len(found.names)


# ------------------------------------------------------------------------------ Protobuf

Flight, Second = (message_class(0), message_class(1)) if descriptors.check_installed() is None else (None, None)


def text_id(server: Registry) -> int:
    """The id of the schema as a registry keeps it: as text."""
    server.register("other", OTHER, "PROTOBUF")
    return server.register("f", FLIGHT, "PROTOBUF", [{"name": "other.proto", "subject": "other", "version": 1}])


def flight(**fields: Any) -> Any:
    made = Flight(**fields)
    made.at.FromJsonString("2024-05-01T10:00:00.5Z")
    return made


def test_values_of_confluents_serializer_are_read(server: Registry) -> None:
    """It registers serialised descriptors, and leaves their reading to the registry."""
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext

    schema_id = text_id(server)
    serialize = ProtobufSerializer(
        Second, client_of(server), {"use.deprecated.format": False, "skip.known.types": True}
    )
    serialize._schema_id = None
    context = SerializationContext("seconds", MessageField.VALUE)
    value = serialize(Second(s="x"), context)
    assert value[5:7] == b"\x02\x02"
    found = ProtobufPayloads(registry_at(server)).decode([value, framed(schema_id, value[5:])], None)
    assert found.data.to_pylist() == [{"s": "x"}] * 2 and not found.bad


def test_protobuf_types(server: Registry) -> None:
    made = flight(
        id=5, carrier="UA", tags=["x", "y"], counts={"a": 1, "B": 2}, b=7, kind=1, seats=4_000_000_000, load=0.5
    )
    made.note.value = "n"
    made.more.update({"k": [1, "x"]})
    made.legs.add(**{"from": "SFO", "miles": 3})
    made.other.x = -3
    made.done.SetInParent()
    made.day.year = 2024
    unknown = Flight(kind=9)
    schema_id = text_id(server)
    values = [framed(schema_id, b"\0" + one.SerializeToString()) for one in (made, Flight(), unknown)]
    found = check_laws(ProtobufPayloads(registry_at(server)), values, values[1:])
    first, empty, other = found.data.to_pylist()
    assert first == {
        "id": 5,
        "carrier": "UA",
        "delay": None,
        "at": datetime(2024, 5, 1, 10, 0, 0, 500_000, tzinfo=UTC),
        "tags": ["x", "y"],
        "counts": [("B", 2), ("a", 1)],
        "a": None,
        "b": 7,
        "kind": "PASSENGER",
        "note": "n",
        "more": '{"k": [1.0, "x"]}',
        "legs": [{"from": "SFO", "miles": 3}],
        "other": {"x": -3},
        "raw": b"",
        "seats": 4_000_000_000,
        "done": True,
        "load": 0.5,
        "day": {"year": 2024, "month": 0, "day": 0},
    }
    absent = {"delay", "at", "a", "b", "note", "more", "other", "done", "day"}
    assert {name for name, value in empty.items() if value is None} == absent
    assert empty["id"] == 0 and empty["tags"] == [] and empty["kind"] == "UNKNOWN" and other["kind"] == "9"


def test_a_message_within_a_message_is_named_by_its_place(server: Registry) -> None:
    schema_id = text_id(server)
    inner = message_class(1, 0)(s="deep").SerializeToString()
    decoder = ProtobufPayloads(registry_at(server))
    found = decoder.decode(
        [framed(schema_id, b"\x04\x02\x00" + inner), framed(schema_id, b"\x04\x02\x02" + inner)], None
    )
    assert found.data.to_pylist() == [{"s": "deep"}]
    assert [(one.number, one.code) for one in found.bad] == [(1, "UNUSABLE_SCHEMA")]


def test_times_finer_than_a_table_has_are_kept_beside_and_too_far_ones_are_bad_with_them(server: Registry) -> None:
    schema_id = text_id(server)

    def value(seconds: int, nanos: int) -> bytes:
        made = Flight()
        made.at.seconds, made.at.nanos = seconds, nanos
        return framed(schema_id, b"\0" + made.SerializeToString())

    far = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())
    values = [value(1, 1_000), value(1, 1), value(far, 0), value(far, 1), value(2**62, 0)]
    found = check_laws(ProtobufPayloads(registry_at(server)), values)
    assert [(one.number, one.code) for one in found.bad] == [(3, "TYPE_MISMATCH"), (4, "TYPE_MISMATCH")]
    assert found.data.column("at").is_valid().to_pylist() == [True, False, True]
    assert found.data.column("at__json").to_pylist() == [None, "1970-01-01T00:00:01.000000001Z", None]


def test_protobuf_that_is_not_of_its_schema_is_bad(server: Registry) -> None:
    schema_id = text_id(server)
    good = b"\0" + flight(id=1).SerializeToString()
    values = [
        framed(schema_id, body)
        for body in (good, b"", b"\x80", b"\x41", b"\0\xff", b"\0\x12\x01\xff", good[:-2], good + b"\xf8\x07\x01", good)
    ]
    found = check_laws(ProtobufPayloads(registry_at(server)), values)
    assert [one.number for one in found.bad] == [1, 2, 3, 4, 5, 6, 7]
    assert {one.code for one in found.bad} == {"MALFORMED_RECORD"}
    assert "does not have" in found.bad[-1].reason


@pytest.fixture(scope="module")
def protobuf(server: Registry) -> ProtobufPayloads:
    return ProtobufPayloads(registry_at(server))


@given(data=st.data())
def test_damaged_protobuf_harms_nothing_else(server: Registry, protobuf: ProtobufPayloads, data: st.DataObject) -> None:
    schema_id = text_id(server)
    made = [flight(id=number, tags=["a"] * number, counts={"k": number}) for number in range(3)]
    values = [framed(schema_id, b"\0" + one.SerializeToString()) for one in made]
    check_damage(protobuf, values, *data.draw(damaged(values)))


@pytest.mark.parametrize(
    ("schema", "says"),
    [
        ("not a proto", "no .proto file"),
        ('syntax = "proto3"; import "none.proto"; message M {}', "no .proto file"),
        ('syntax = "proto3"; message M { M m = 1; }', "contains itself"),
        ('syntax = "proto3";', "no message number 0"),
        (base64.b64encode(b"\x0a\x01x\x1a\x06a.prot").decode(), "imports"),
    ],
)
def test_a_schema_that_cannot_be_rows_makes_its_values_bad(server: Registry, schema: str, says: str) -> None:
    schema_id = server.register("bad", schema, "PROTOBUF")
    found = ProtobufPayloads(registry_at(server)).decode([framed(schema_id, b"\0")], None)
    check_shape(found, [b""])
    assert [one.code for one in found.bad] == ["UNUSABLE_SCHEMA"] and says in found.bad[0].reason
    assert "/tmp" not in found.bad[0].reason


@pytest.mark.parametrize("name", ["../x.proto", "/etc/x.proto", "a/../../x.proto", "x.txt", "a//b.proto"])
def test_a_reference_cannot_name_a_file_elsewhere(server: Registry, name: str) -> None:
    server.register("other", OTHER, "PROTOBUF")
    references = [{"name": name, "subject": "other", "version": 1}]
    schema_id = server.register("evil", FLIGHT, "PROTOBUF", references)
    found = ProtobufPayloads(registry_at(server)).decode([framed(schema_id, b"\0")], None)
    assert [one.code for one in found.bad] == ["UNUSABLE_SCHEMA"] and name in found.bad[0].reason


def test_a_serialised_descriptor_needs_no_compiler(server: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def serialised(file: Any) -> str:
        return base64.b64encode(file.SerializeToString()).decode("ascii")

    other = message_class(0).DESCRIPTOR.fields_by_name["other"].message_type.file
    server.register("other64", base64.b64encode(other.serialized_pb).decode("ascii"), "PROTOBUF")
    references = [{"name": "other.proto", "subject": "other64", "version": 1}]
    schema_id = server.register("flight64", serialised(file_descriptor()), "PROTOBUF", references)
    text = text_id(server)
    monkeypatch.setattr(descriptors.importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr("conveyord.engine.payloads.protobuf.decoder.check_installed", lambda: None)
    decoder = ProtobufPayloads(registry_at(server))
    body = b"\0" + flight(id=3).SerializeToString()
    assert decoder.decode([framed(schema_id, body)], None).data.to_pylist()[0]["id"] == 3
    with pytest.raises(ConfigError, match=r"conveyord\[kafka-protobuf\]"):
        decoder.decode([framed(text, body)], None)
