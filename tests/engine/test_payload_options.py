"""How a format is written in a definition, and what is said of one that is written wrongly."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, ValidationError

from conveyord.core.errors import ConfigError
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.payloads.arrow_ipc import ArrowIpcPayloads
from conveyord.engine.payloads.avro.decoder import AvroPayloads, FramedAvroPayloads
from conveyord.engine.payloads.json import JsonPayloads
from conveyord.engine.payloads.json_schema import JsonSchemaPayloads
from conveyord.engine.payloads.options import Format, format_mistakes, payload_decoder
from conveyord.engine.payloads.protobuf.decoder import ProtobufPayloads
from conveyord.engine.payloads.raw import RawPayloads
from conveyord.engine.secrets import redacted
from tests.kafka.certificates import Authority
from tests.storage.schema_registry_rig import running_registry

URL = {"url": "http://localhost:8081"}


class Stage(OperatorConfig):
    """A stage that reads messages."""

    format: Format = Field(default="json")


def written(value: Any) -> Any:
    return Stage.model_validate({"format": value}).format


@pytest.mark.parametrize(
    ("value", "decoder"),
    [
        ("json", JsonPayloads),
        ("raw", RawPayloads),
        ({"type": "raw", "text": True}, RawPayloads),
        ("arrow_ipc", ArrowIpcPayloads),
        ({"type": "arrow_ipc", "max_decoded": "1MiB"}, ArrowIpcPayloads),
        ({"type": "avro", "registry": URL}, FramedAvroPayloads),
        ({"type": "json_schema", "registry": URL}, JsonSchemaPayloads),
        ({"type": "protobuf", "registry": URL}, ProtobufPayloads),
    ],
)
def test_a_format_is_a_name_or_a_mapping(value: Any, decoder: type) -> None:
    assert type(payload_decoder(written(value))) is decoder
    assert format_mistakes(written(value)) == {}
    assert type(payload_decoder(Stage().format)) is JsonPayloads


def test_avro_may_have_its_schema_in_a_file(tmp_path: Path) -> None:
    path = tmp_path / "x.avsc"
    path.write_text('"string"')
    assert type(payload_decoder(written({"type": "avro", "schema_file": str(path)}))) is AvroPayloads


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("jsn", "json"),
        ({"type": "xml"}, "avro"),
        ({}, "type"),
        (5, "json"),
        ({"type": "json", "text": True}, "the format json has no option 'text'; it has none"),
        ({"type": "raw", "registry": URL}, "its options are text"),
        ({"type": "avro", "registry": {"url": ""}}, "at least 1"),
        ({"type": "avro", "registry": {**URL, "pasword": "x"}}, "pasword"),
        ({"type": "arrow_ipc", "max_decoded": "lots"}, "not a size"),
    ],
)
def test_what_its_types_refuse(value: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        written(value)


@pytest.mark.parametrize(
    ("value", "where", "says"),
    [
        ("avro", (), "registry: {url: ...}} or {type: avro, schema_file: ...}"),
        ("protobuf", (), "registry: {url: ...}}"),
        ({"type": "avro", "registry": URL, "schema_file": "x"}, ("schema_file",), "registry or schema_file"),
        ({"type": "avro", "registry": {"url": "localhost:8081"}}, ("registry", "url"), "http://"),
        ({"type": "avro", "registry": {"url": "http://a, b"}}, ("registry", "url"), "http://"),
        ({"type": "avro", "registry": {"url": "http://u:p@a"}}, ("registry", "url"), "registry.username"),
        ({"type": "avro", "registry": {"url": "http://a/?x=1"}}, ("registry", "url"), "query"),
        ({"type": "avro", "registry": {**URL, "username": "u"}}, ("registry", "username"), "needs password"),
        ({"type": "avro", "registry": {**URL, "password": "p"}}, ("registry", "password"), "needs username"),
        ({"type": "avro", "registry": {**URL, "token": "t", "password": "p"}}, ("registry", "token"), "one of them"),
    ],
)
def test_what_its_types_do_not_tell(value: Any, where: tuple[str, ...], says: str) -> None:
    given = written(value)
    assert says in format_mistakes(given)[where]
    with pytest.raises(ConfigError, match="^format"):
        payload_decoder(given)


def test_secrets_are_not_shown() -> None:
    options = {"format": {"type": "avro", "registry": {**URL, "username": "ann", "password": "s3cret"}}}
    assert "s3cret" not in str(redacted(Stage, options)) and "ann" in str(redacted(Stage, options))
    assert "s3cret" not in repr(Stage.model_validate(options)) + Stage.model_validate(options).model_dump_json()


@pytest.mark.parametrize(
    ("options", "sent"),
    [
        ({"username": "ann", "password": "env:REGISTRY_SECRET"}, "Basic YW5uOnMzY3JldA=="),
        ({"token": "env:REGISTRY_SECRET"}, "Bearer s3cret"),
        ({}, None),
    ],
)
def test_credentials_reach_the_registry(
    options: dict[str, str], sent: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REGISTRY_SECRET", "s3cret")
    with running_registry() as server:
        schema_id = server.register("t", '"string"')
        decoder = payload_decoder(written({"type": "avro", "registry": {"url": f"{server.url}/", **options}}))
        found = decoder.decode([b"\0" + schema_id.to_bytes(4, "big") + b"\x02a"], None)
        assert found.data.to_pylist() == [{"value": "a"}]
        assert server.headers[0].get("authorization") == sent


def test_a_secret_that_cannot_be_had_or_sent_is_named_and_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REGISTRY_SECRET", "s3c\nret")
    with pytest.raises(ConfigError, match=r"format\.registry\.token") as raised:
        payload_decoder(written({"type": "avro", "registry": {**URL, "token": "env:REGISTRY_SECRET"}}))
    assert "s3c" not in str(raised.value)
    with pytest.raises(ConfigError, match=r"format\.registry\.password.*NOT_THERE"):
        options = {**URL, "username": "u", "password": "env:NOT_THERE"}
        payload_decoder(written({"type": "avro", "registry": options}))


def test_an_authority_of_ones_own_is_named_beside_the_registry(tmp_path: Path) -> None:
    authority, format_ = Authority(tmp_path), {"type": "avro"}
    with running_registry(authority.issue("registry")) as server:
        message = b"\0" + server.register("t", '"string"').to_bytes(4, "big") + b"\x02a"
        options = {"url": server.url, "ca_file": str(authority.path)}
        found = payload_decoder(written({**format_, "registry": options})).decode([message], None)
        assert found.data.to_pylist() == [{"value": "a"}]
    with pytest.raises(ConfigError, match=r"^format\.registry\.ca_file \S*none\.pem: cannot be read as certificates"):
        payload_decoder(written({**format_, "registry": {**URL, "ca_file": f"{tmp_path}/none.pem"}}))


def test_the_options_alone_load_nothing_heavy() -> None:
    code = (
        "import sys, conveyord.engine.payloads.options; "
        "print([name for name in ('httpx', 'google.protobuf', 'fastavro', 'grpc_tools') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout.strip() == b"[]"
