"""`conveyord produce`: what a file's lines become, and how it says what is wrong."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import zstandard

from conveyord.cli.main import invoke
from conveyord.cli.produce import produce
from conveyord.cli.produce_lines import LineReader, format_of
from conveyord.cli.produce_settings import given_settings
from conveyord.core.errors import ConfigError, RecordError
from conveyord.engine.kafka.sink_options import producer_options
from conveyord.storage.kafka.producer import ProducerOptions
from tests.kafka.broker import PASSWORD, ROOT, USER, Broker
from tests.kafka.certificates import Authority
from tests.kafka.cluster import Cluster, Record, eventually
from tests.kafka.mock import Beyond, MockBroker
from tests.kafka.sink_rig import by_key, numbers

CODE = "import sys; from conveyord.cli.main import invoke; from conveyord.cli.produce import produce; "
MOCKED = "import conveyord.storage.kafka.topics as topics; topics.max_message_bytes = lambda contact, name: None; "
ENDED_SECONDS_MAX = 60


def call(*arguments: str) -> int:
    return invoke(produce, "produce", arguments)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _what_the_mock_does_not_answer_is_not_waited_for(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """How large a record of its topics may be: five seconds for every command in this process."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("cluster") == "mock":
        monkeypatch.setattr("conveyord.storage.kafka.topics.max_message_bytes", lambda contact, name: None)


def lines(path: Path, count: int, **more: Any) -> Path:
    path.write_text("".join(json.dumps({"n": number, **more}) + "\n" for number in range(count)))
    return path


# ---------------------------------------------------------------------------- reading


def read(path: Path, **how: Any) -> list[tuple[bytes | None, bytes]]:
    found = []
    for some in LineReader(str(path), **{"form": format_of(str(path)), **how}).records():
        found += list(zip(some.keys or [None] * len(some.values), some.values, strict=True))
    return found


def test_lines_are_sent_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\r\n\n   \n{"n":2}\nnot JSON\n{"last":\xff}')
    assert [value for _, value in read(path)] == [b'{"n": 1}', b'{"n":2}', b"not JSON", b'{"last":\xff}']


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("count", [0, 1, 100_000])
def test_packed_files_are_unpacked(tmp_path: Path, ending: str, count: int) -> None:
    text = "".join(f'{{"n":{number}}}\n' for number in range(count)).encode()
    pack = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[ending]
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(text))
    assert b"".join(value + b"\n" for _, value in read(path)) == text


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_packed_file_that_is_cut_off_is_told(tmp_path: Path, ending: str) -> None:
    packed = (gzip.compress if ending == ".gz" else zstandard.compress)(os.urandom(100_000))
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(packed[:50_000] if ending == ".gz" else b"\x00" * 100)
    with pytest.raises(ConfigError, match="damaged or cut off"):
        read(path)


def test_a_key_is_the_value_of_a_field(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"k":"é"}\n{"k":7}\n{"k":1.50}\n{"k":true}\n{"k":null}\n{}\n')
    assert [key for key, _ in read(path, key="k")] == ["é".encode(), b"7", b"1.5", b"true", None, None]


@pytest.mark.parametrize("line", ["not JSON", "[1]", '{"k":{"a":1}}', '{"k":[1]}'])
def test_a_line_without_a_key_to_take_is_told_by_its_place(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"k":1}}\n\n{line}\n')
    with pytest.raises(RecordError, match=r"a\.jsonl:3"):
        read(path, key="k")


def test_rows_of_csv_become_objects_of_texts(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfid,text\r\n007,"a ""b"",\nc"\r\n\r\n2,\xc3\xa9\r\n')
    assert [(key, json.loads(value)) for key, value in read(path, key="id")] == [
        (b"007", {"id": "007", "text": 'a "b",\nc'}),
        (b"2", {"id": "2", "text": "é"}),
    ]


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (b"a,b\n1\n", RecordError),
        (b"a,b\n1,2,3\n", RecordError),
        (b"a,a\n1,2\n", RecordError),
        (b'a,b\n1,"2\n', RecordError),
        (b"a,b\n1,\xff\n", RecordError),
        (b"b\n1\n", ConfigError),
    ],
)
def test_csv_that_is_none_is_told(tmp_path: Path, content: bytes, error: type[Exception]) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(error, match=r"a\.csv:[12]" if error is RecordError else r"a\.csv"):
        read(path, key="a")


# ---------------------------------------------------------------------------- sending


def test_records_that_have_no_such_field_as_the_key_are_counted(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = cluster.fresh_topic(partitions=1)
    path = tmp_path / "a.jsonl"
    path.write_text('{"k": 1}\n{"l": 1}\n{"k": null}\n')
    assert call(str(path), topic, "--brokers", cluster.bootstrap, "--key", "k") == 0
    assert "2 records without a key (no such field, or null)" in capsys.readouterr().out


def test_a_file_becomes_records_in_order_by_key(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    topic = cluster.fresh_topic(partitions=3)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"n": number, "k": number % 5}) + "\n" for number in range(30_000)))
    assert call(str(path), topic, "--brokers", cluster.bootstrap, "--key", "k", "-o", "json") == 0
    told = json.loads(capsys.readouterr().out)
    assert {name: told[name] for name in ("topic", "partitions", "records", "bytes", "stopped")} == {
        "topic": topic,
        "partitions": 3,
        "records": 30_000,
        "bytes": path.stat().st_size - 30_000,
        "stopped": False,
    }
    found = by_key(cluster.read(topic))
    assert set(found) == {str(number).encode() for number in range(5)}
    for key, records in found.items():
        assert len({record.partition for record in records}) == 1
        sent = [json.loads(record.value or b"")["n"] for record in records]
        assert sent == list(range(int(key or b""), 30_000, 5))


def test_it_repeats_and_stops_where_that_is_said(cluster: Cluster, tmp_path: Path) -> None:
    topic = cluster.fresh_topic(partitions=1)
    path = lines(tmp_path / "a.jsonl", 3)
    sent_by = ("--brokers", cluster.bootstrap, "--set", "compression.type=zstd")
    assert call(str(path), topic, *sent_by, "--repeat", "--limit", "7") == 0
    assert numbers(cluster, topic) == [0, 1, 2, 0, 1, 2, 0]


def test_a_rate_is_kept(cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    topic = cluster.fresh_topic(partitions=1)
    path = lines(tmp_path / "a.jsonl", 100)
    assert call(str(path), topic, "--brokers", cluster.bootstrap, "--rate", "100/s", "-o", "json") == 0
    assert json.loads(capsys.readouterr().out)["seconds"] >= 0.9
    assert numbers(cluster, topic) == list(range(100))


@pytest.mark.beyond_mock(Beyond.MISSING)
def test_a_topic_is_made_if_that_is_wished(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVEYORD_KAFKA", cluster.bootstrap)
    topic = f"{cluster.fresh_topic()}-made"
    path = lines(tmp_path / "a.jsonl", 2)
    for _ in range(2):
        assert call(str(path), topic, "--create", "4") == 0
    assert len(cluster.extents(topic)) == 4
    assert len(cluster.read(topic)) == 4


def test_standard_input_is_sent_as_it_comes(cluster: Cluster) -> None:
    topic = cluster.fresh_topic(partitions=1)
    with started(cluster, "-", topic, stdin=subprocess.PIPE) as child:
        assert child.stdin is not None
        child.stdin.write('{"n":1}\n{"n":2')
        child.stdin.flush()
        eventually(lambda: numbers(cluster, topic) == [1], "the line has not come")
        child.stdin.write("}\n")
        child.stdin.close()
        assert child.wait(ENDED_SECONDS_MAX) == 0
    assert numbers(cluster, topic) == [1, 2]


@contextmanager
def started(cluster: Cluster, *arguments: str, **streams: Any) -> Iterator[subprocess.Popen[str]]:
    code = (
        f"{CODE}{MOCKED if isinstance(cluster, MockBroker) else ''}sys.exit(invoke(produce, 'produce', sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, *arguments, "--brokers", cluster.bootstrap]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as child:
        try:
            yield child
        finally:
            child.kill()


def test_ctrl_c_finishes_what_is_under_way(cluster: Cluster, tmp_path: Path) -> None:
    topic = cluster.fresh_topic(partitions=1)
    path = lines(tmp_path / "a.jsonl", 10)
    with started(cluster, str(path), topic, "--repeat", "--rate", "200/s", "-o", "json") as child:
        eventually(lambda: cluster.extents(topic)[0].end > 20, "nothing has come")
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=ENDED_SECONDS_MAX)
    assert (child.returncode, err) == (0, "")
    told = json.loads(out)
    assert told["stopped"]
    assert told["records"] == len(cluster.read(topic))


# ---------------------------------------------------------------------------- what is wrong


def failing(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """The exit code, and the one sentence on stderr, where no library says anything either."""
    code = call(*arguments)
    told = capfd.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert told.err.count("\n") == 1
    return code, told.err


def test_a_file_that_is_not_there_is_told(cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    topic = cluster.fresh_topic()
    code, told = failing(capfd, str(tmp_path / "no.jsonl"), topic, "--brokers", cluster.bootstrap)
    assert (code, "no.jsonl cannot be read: No such file" in told) == (2, True)


def test_a_broker_that_is_not_there_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, told = failing(capfd, str(lines(tmp_path / "a.jsonl", 1)), "t", "--brokers", "127.0.0.1:9")
    assert (code, "127.0.0.1:9" in told) == (1, True)


def test_a_host_that_connects_and_says_nothing_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyord.cli.produce.CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        address = f"127.0.0.1:{deaf.getsockname()[1]}"
        code, told = failing(capfd, str(lines(tmp_path / "a.jsonl", 1)), "t", "--brokers", address)
    assert (code, address in told) == (1, True)


def test_an_authority_that_is_not_trusted_is_told(
    broker: Broker, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = Authority(tmp_path, "another").path
    known = ("--set", "security.protocol=ssl", "--set", f"ssl.ca.location={other}")
    path = str(lines(tmp_path / "a.jsonl", 1))
    code, told = failing(capfd, path, "t", "--brokers", broker.address("SSL"), *known)
    assert (code, "security.ca_file" in told) == (2, True)


@pytest.mark.beyond_mock(Beyond.MISSING)
def test_a_topic_that_is_not_there_is_told(cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = lines(tmp_path / "a.jsonl", 1)
    code, told = failing(capfd, str(path), "nobody-made-it", "--brokers", cluster.bootstrap)
    assert (code, "has no topic nobody-made-it" in told, "--create" in told) == (2, True, True)


def test_a_record_that_is_too_large_is_told_by_its_line(
    kafka: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    topic = kafka.fresh_topic(partitions=1)
    path = tmp_path / "a.jsonl"
    path.write_text('{"n":1}\n\n"' + "x" * 2_000_000 + '"\n{"n":2}\n')
    code, told = failing(capfd, str(path), topic, "--brokers", kafka.bootstrap)
    assert (code, "a.jsonl:3" in told, "max.message.bytes" in told) == (1, True, True)


def test_what_stands_before_a_bad_line_is_sent(
    cluster: Cluster, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    topic = cluster.fresh_topic(partitions=1)
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"n":{number}}}\n' for number in range(40_000)) + "no JSON\n")
    code, told = failing(capfd, str(path), topic, "--brokers", cluster.bootstrap, "--key", "n")
    assert (code, "a.jsonl:40001" in told) == (1, True)
    assert len(numbers(cluster, topic)) >= 30_000


@pytest.mark.parametrize("wrong", [("--rate", "fast"), ("--rate", "0/s"), ("--limit", "0"), ("--create", "0")])
def test_options_that_cannot_be_are_refused(wrong: tuple[str, ...]) -> None:
    assert call("a.jsonl", "t", *wrong) == 2


def test_standard_input_cannot_be_repeated(capfd: pytest.CaptureFixture[str]) -> None:
    assert failing(capfd, "-", "t", "--repeat")[0] == 2


def test_secrets_come_by_reference_and_are_never_shown(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    topic, path = broker.fresh_topic(partitions=1), lines(tmp_path / "a.jsonl", 2)
    known = [
        *("--brokers", broker.address("SASL_SSL"), "--set", "security.protocol=SASL_SSL"),
        *("--set", f"ssl.ca.location={broker.authority.path}", "--set", "sasl.mechanism=SCRAM-SHA-512"),
        *("--set", f"sasl.username={USER}", "--set", "sasl.password=env:KAFKA_PASSWORD"),
    ]
    code, told = failing(capfd, str(path), topic, *known)
    assert (code, "KAFKA_PASSWORD" in told) == (2, True)
    monkeypatch.setenv("KAFKA_PASSWORD", "guessed-wrong")
    code, told = failing(capfd, str(path), topic, *known)
    assert (code, "check username, password" in told, "guessed-wrong" in told) == (2, True, False)
    monkeypatch.setenv("KAFKA_PASSWORD", PASSWORD)
    assert call(str(path), topic, *known) == 0
    assert [record.value for record in broker.read(topic)] == [b'{"n": 0}', b'{"n": 1}']


def test_a_setting_that_is_none_is_told_without_its_value(capfd: pytest.CaptureFixture[str]) -> None:
    assert "secret" not in failing(capfd, "a.jsonl", "t", "--set", "secret")[1]
    assert "no.such" in failing(capfd, "a.jsonl", "t", "--set", "no.such=1")[1]
    assert "stats_cb" in failing(capfd, "a.jsonl", "t", "--set", "stats_cb=1")[1]


@pytest.mark.parametrize(
    ("setting", "why"),
    [
        ("enable.idempotence=false", "enable.idempotence is set by conveyord itself"),
        ("transactional.id=x", "transactional.id is set by conveyord itself"),
        ("acks=0", "acks is set by conveyord itself"),
        ("bootstrap.servers=h:1", "--set bootstrap.servers: use --brokers"),
        ("linger.ms=soon", "not a duration: 'soonms'"),
        ("linger.ms=11000", "--set linger.ms must be less than or equal to 10"),
        ("message.timeout.ms=1", "--set message.timeout.ms must be greater than or equal to 1"),
        ("compression.type=zstdd", "--set compression.type must be none or gzip or snappy or lz4 or zstd"),
    ],
)
def test_settings_that_promises_rest_on_are_refused_and_others_have_the_limits_of_the_sinks_options(
    capfd: pytest.CaptureFixture[str], setting: str, why: str
) -> None:
    code, told = failing(capfd, "a.jsonl", "t", "--brokers", "127.0.0.1:9", "--set", setting)
    assert (code, why in told) == (2, True), told


def test_settings_that_are_options_of_the_sink_say_how_records_are_sent() -> None:
    given = ("compression.codec=zstd", "linger.ms=50", "delivery.timeout.ms=5000", "message.max.bytes=5000", "a=b=c")
    client, config = given_settings(given)
    assert client == {"a": "b=c"}
    assert producer_options(config, topic_bytes_max=None) == ProducerOptions(
        compression="zstd", linger_seconds=0.05, delivery_seconds=5.0, record_bytes_max=5000
    )
    assert producer_options(given_settings(())[1], topic_bytes_max=None) == ProducerOptions(delivery_seconds=20.0)


def test_the_whole_record_stands_in_a_topic(cluster: Cluster, tmp_path: Path) -> None:
    topic = cluster.fresh_topic(partitions=1)
    path = tmp_path / "a.csv"
    path.write_text("id,text\n1,x\n")
    assert call(str(path), topic, "--brokers", cluster.bootstrap, "--key", "id") == 0
    (found,) = cluster.read(topic)
    assert (found.key, found.value, found.headers) == (b"1", b'{"id":"1","text":"x"}', Record(value=b"").headers)
