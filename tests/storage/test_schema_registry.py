"""The client of schema registries against a real HTTP server: what is asked, kept and forgotten; every way to fail."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from conveyord.core.errors import ConfigError, RecordError, Retryable
from conveyord.storage import schema_registry
from conveyord.storage.schema_registry import (
    MISS_SECONDS,
    SILENCE_SECONDS,
    RegistryAccess,
    SchemaRegistry,
    basic_authorization,
)
from tests.kafka.certificates import Authority
from tests.storage.schema_registry_rig import Answer, Registry, running_registry


class Clock:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def server() -> Iterator[Registry]:
    with running_registry() as registry:
        yield registry


def client(*urls: str, clock: Clock | None = None, ca_file: Path | None = None, **options: Any) -> SchemaRegistry:
    trust = ssl.create_default_context(cafile=ca_file)
    return SchemaRegistry(RegistryAccess(urls=urls, trust=trust, **options), clock=clock or Clock())


def unused_url() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


def test_a_schema_is_asked_for_once(server: Registry) -> None:
    schema_id = server.register("t-value", '"string"')
    registry = client(server.url)
    assert registry.schema(schema_id) == registry.schema(schema_id)
    assert registry.schema(schema_id).text == '"string"' and registry.schema(schema_id).kind == "AVRO"
    assert server.asked == [f"/schemas/ids/{schema_id}"]


def test_threads_that_want_the_same_schema_make_one_request(server: Registry) -> None:
    schema_id = server.register("t-value", "{}", "JSON")
    registry = client(server.url)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(registry.schema, [schema_id] * 32))
    assert {schema.kind for schema in found} == {"JSON"} and len(server.asked) == 1


def test_references_come_before_those_that_refer_to_them_and_once_each(server: Registry) -> None:
    server.register("low", '"long"')
    server.register("mid/1", '"int"', references=[{"name": "x.Low", "subject": "low", "version": 1}])
    top = server.register(
        "top",
        '"bytes"',
        references=[
            {"name": "x.Mid", "subject": "mid/1", "version": 1},
            {"name": "x.Low", "subject": "low", "version": 1},
        ],
    )
    found = client(server.url).schema(top)
    assert found.references == (("x.Low", '"long"'), ("x.Mid", '"int"'))
    assert "/subjects/mid%2F1/versions/1" in server.asked


def test_references_that_go_round_end(server: Registry) -> None:
    server.register("a", '"a"', references=[{"name": "b", "subject": "b", "version": 1}])
    top = server.register("b", '"b"', references=[{"name": "a", "subject": "a", "version": 1}])
    assert dict(client(server.url).schema(top).references) == {"a": '"a"', "b": '"b"'}


def test_an_unknown_id_is_the_records_fault_and_forgotten_soon(server: Registry) -> None:
    clock = Clock()
    registry = client(server.url, clock=clock)
    for _ in range(3):
        with pytest.raises(RecordError) as raised:
            registry.schema(1)
    assert raised.value.code == "UNKNOWN_SCHEMA" and server.url in raised.value.reason
    assert len(server.asked) == 1
    server.register("late", '"string"')
    clock.seconds = MISS_SECONDS + 0.1
    assert registry.schema(1).text == '"string"'


def test_a_reference_that_is_missing_is_the_records_fault(server: Registry) -> None:
    top = server.register("top", '"x"', references=[{"name": "x", "subject": "gone", "version": 1}])
    with pytest.raises(RecordError, match="'gone'"):
        client(server.url).schema(top)


def test_the_cache_forgets_what_was_not_used_for_longest(server: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema_registry, "SCHEMAS_MAX", 2)
    registry = client(server.url)
    ids = [server.register(f"s{number}", f'"{number}"') for number in range(3)]
    for schema_id in (ids[0], ids[1], ids[0], ids[2], ids[0], ids[1]):
        registry.schema(schema_id)
    assert server.asked == [f"/schemas/ids/{one}" for one in (ids[0], ids[1], ids[2], ids[1])]


def test_the_next_address_is_asked_if_one_does_not_answer(server: Registry) -> None:
    schema_id = server.register("t", '"string"')
    assert client(unused_url(), server.url).schema(schema_id).text == '"string"'


@pytest.mark.parametrize("status", [500, 502, 503, 429])
def test_a_registry_that_is_not_well_may_be_asked_again(server: Registry, status: int) -> None:
    schema_id = server.register("t", '"string"')
    server.faults = [Answer(status)]
    registry = client(server.url)
    with pytest.raises(Retryable, match=str(status)):
        registry.schema(schema_id)
    assert registry.schema(schema_id).text == '"string"'


def test_a_registry_that_cannot_be_reached_may_be_asked_again() -> None:
    with pytest.raises(Retryable, match="refused"):
        client(unused_url()).schema(1)


def test_an_answer_that_breaks_off_may_be_asked_for_again(server: Registry) -> None:
    server.faults = [Answer(200, b'{"sche', {"content-length": "100"})]
    with pytest.raises(Retryable):
        client(server.url, timeout_seconds=5.0).schema(1)


def test_a_registry_that_says_nothing_is_given_up_and_left_alone_for_a_while(server: Registry) -> None:
    schema_id, other_id = server.register("t", '"string"'), server.register("u", '"int"')
    clock = Clock()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        alone = client(url, timeout_seconds=0.2, clock=clock)
        beside = client(url, server.url, timeout_seconds=0.2, clock=clock)
        for _ in range(3):
            with pytest.raises(Retryable, match="no whole answer within 0.2 s"):
                alone.schema(1)
        assert connections(silent) == 1
        assert {beside.schema(one).text for one in (schema_id, other_id)} == {'"string"', '"int"'}
        assert connections(silent) == 1
        clock.seconds = SILENCE_SECONDS + 0.1
        with pytest.raises(Retryable):
            alone.schema(1)
        assert connections(silent) == 1


def connections(listener: socket.socket) -> int:
    """How many have connected since this was asked last."""
    listener.setblocking(False)
    count = 0
    while True:
        try:
            listener.accept()[0].close()
        except BlockingIOError:
            return count
        count += 1


@pytest.mark.parametrize("status", [401, 403])
def test_who_is_not_let_in_must_mend_the_definition(server: Registry, status: int) -> None:
    server.faults = [Answer(status)]
    with pytest.raises(ConfigError, match="does not let us in"):
        client(server.url).schema(1)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, b"<html>"),
        Answer(200, b"[]"),
        Answer(200, b'{"schema": 5}'),
        Answer(200, b'{"schema": "x", "schemaType": "XML"}'),
        Answer(200, b'{"schema": "x", "references": [{"name": "a"}]}'),
        Answer(404, b"<html>not here</html>"),
        Answer(418, b"{}"),
        Answer(200, b"[" * 100_000),
    ],
)
def test_what_is_no_registry_is_said_to_be_none(server: Registry, answer: Answer) -> None:
    server.faults = [answer]
    with pytest.raises(ConfigError, match="is there a schema registry"):
        client(server.url).schema(1)


def test_redirects_are_not_followed(server: Registry) -> None:
    server.faults = [Answer(302, headers={"location": "http://example.org/"})]
    with pytest.raises(ConfigError, match="redirect"):
        client(server.url).schema(1)
    assert len(server.asked) == 1


def test_an_answer_may_not_be_larger_than_the_limit(server: Registry) -> None:
    server.faults = [Answer(200, b" " * 5000)]
    with pytest.raises(ConfigError, match="max_schema"):
        client(server.url, answer_bytes_max=4096).schema(1)


@pytest.mark.parametrize("authorization", [basic_authorization("ann", "s3cret:ü"), "Bearer s3cret"])
def test_credentials_are_sent_and_never_shown(server: Registry, authorization: str) -> None:
    server.authorization = authorization
    schema_id = server.register("t", '"string"')
    access = RegistryAccess(urls=(server.url,), trust=ssl.create_default_context(), authorization=authorization)
    assert SchemaRegistry(access).schema(schema_id).text == '"string"'
    assert authorization not in repr(access)
    with pytest.raises(ConfigError) as raised:
        client(server.url, authorization="Bearer other5ecret").schema(schema_id)
    assert "5ecret" not in str(raised.value)


def test_proxies_of_the_environment_do_not_count(server: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, unused_url())
    schema_id = server.register("t", '"string"')
    assert client(server.url).schema(schema_id).text == '"string"'


def test_a_certificate_counts_only_if_its_authority_is_named(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    with running_registry(authority.issue("registry")) as server:
        schema_id = server.register("t", '"string"')
        with pytest.raises(ConfigError, match=r"not trusted.*registry\.ca_file"):
            client(server.url).schema(schema_id)
        assert client(server.url, ca_file=authority.path).schema(schema_id).text == '"string"'
