"""What librdkafka's errors mean: who must mend something is told what, and what passes by itself is tried again."""

from __future__ import annotations

import logging
import socket
import time
from typing import NoReturn

import pytest
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from conveyord.core.errors import ConfigError, Refused, Retryable
from conveyord.core.flow.record_log import TopicPartition
from conveyord.storage.kafka import errors, producer, tail
from conveyord.storage.kafka.connection import AGAIN_SECONDS, Connection, Contact
from conveyord.storage.kafka.errors import as_conveyord_error, blames_record, is_fenced, refusal
from conveyord.storage.kafka.producer import Outgoing, ProducerOptions, RecordProducer
from conveyord.storage.kafka.tail import KafkaTail
from tests.kafka.mock import MockBroker

CODES = {name: code for name, code in vars(KafkaError).items() if isinstance(code, int)}
NAMES = {KafkaError(code).name(): code for code in CODES.values()}
TABLES = {
    "remedies": set(errors._REMEDIES),
    "silent": errors._SILENT,
    "fenced": errors._FENCED,
    "blaming": set(errors._BLAMING),
    "too large": errors._TOO_LARGE,
    "befell": set(tail._BEFELL),
}


def found(name: str, text: str = "it failed") -> Exception:
    return as_conveyord_error(KafkaError(NAMES[name], text), "host:9092")


@pytest.mark.parametrize("table", TABLES)
def test_every_name_that_is_looked_for_is_one_of_librdkafkas(table: str) -> None:
    assert TABLES[table] - NAMES.keys() == set()


@pytest.mark.parametrize("name", sorted(errors._REMEDIES))
def test_what_someone_must_mend_is_said_with_the_remedy_and_the_brokers(name: str) -> None:
    error = found(name)
    assert isinstance(error, ConfigError)
    assert "host:9092" in str(error)
    assert name in str(error)
    assert str(error).endswith(errors._REMEDIES[name])


@pytest.mark.parametrize("name", ["_TRANSPORT", "_ALL_BROKERS_DOWN", "_TIMED_OUT", "NOT_COORDINATOR", "_RESOLVE"])
def test_what_may_pass_is_tried_again(name: str) -> None:
    assert isinstance(found(name), Retryable)


@pytest.mark.parametrize(("name", "is_silent"), [("_TRANSPORT", True), ("ILLEGAL_GENERATION", False)])
def test_only_who_does_not_answer_is_asked_whether_he_is_up(name: str, is_silent: bool) -> None:
    assert ("is it up" in str(found(name))) is is_silent


@pytest.mark.parametrize("name", sorted(errors._FENCED & NAMES.keys()))
def test_who_is_fenced_stops(name: str) -> None:
    assert isinstance(found(name), Refused)
    assert is_fenced(KafkaError(NAMES[name]))


@pytest.mark.parametrize(
    "text", ["sasl_ssl://h:1/bootstrap: SSL handshake failed: certificate verify failed", "Ssl Handshake Failed"]
)
def test_a_certificate_that_is_not_trusted_is_no_broken_line(text: str) -> None:
    error = found("_TRANSPORT", text)
    assert isinstance(error, ConfigError)
    assert "security.ca_file" in str(error)


def test_a_sentence_is_told_without_the_name_of_a_thread() -> None:
    text = "[thrd:sasl_plaintext://h:1/bootstrap]: sasl_plaintext://h:1/bootstrap: SASL authentication error"
    assert str(found("_AUTHENTICATION", text)).startswith(
        "Kafka at host:9092: SASL authentication error (_AUTHENTICATION)"
    )


@pytest.mark.parametrize("name", sorted(errors._BLAMING))
def test_a_record_that_is_to_blame_says_what_it_is_guilty_of(name: str) -> None:
    error = KafkaError(NAMES[name])
    assert blames_record(error)
    assert refusal(error, "flights").place == "topic flights"
    assert refusal(error, "flights").code in {"RECORD_TOO_LARGE", "REFUSED_BY_TOPIC"}


def test_what_is_said_of_the_cluster_blames_no_record() -> None:
    assert not [name for name in errors._REMEDIES if blames_record(KafkaError(NAMES[name]))]


def test_a_connection_tells_no_secret() -> None:
    connection = Connection("host:9092", {"sasl.password": "hunter2"}, 1.0)
    assert "hunter2" not in f"{connection!r} {connection}"


# ---------------------------------------------------------------------------- what librdkafka prints by itself

NOBODY = "127.0.0.1:9"
SECONDS_MAX = 30.0  # for a connection to be refused, which takes no time at all on a machine that is not busy
OURS = "told"


def printed(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """What librdkafka wrote by itself, `%3|TIME|FAIL|NAME#producer-1| ...`, of the clients named `OURS`: it prints for
    those of other tests until they are collected. What a logger writes, as another test set it up, is no matter."""
    out, err = capfd.readouterr()
    return [line for line in f"{out}\n{err}".splitlines() if line.startswith("%") and f"|{OURS}#" in line]


def test_a_broker_that_refuses_is_told_by_our_errors_alone(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(producer, "METADATA_SECONDS", 0.1)
    connection = Connection(NOBODY, {"client.id": OURS}, 1.0)
    with pytest.raises(Retryable, match=NOBODY):
        Contact(connection).metadata()
    reading, deadline = KafkaTail(connection, group=None), time.monotonic() + SECONDS_MAX
    reading.assign({TopicPartition("t", 0): 0})
    while not (told := reading.errors()) and time.monotonic() < deadline:
        reading.poll(0.05)
    reading.close()
    assert NOBODY in str(told[0])
    writing = RecordProducer(connection, ProducerOptions(delivery_seconds=1), check=lambda: None)
    writing.queue(Outgoing("t", [b"x"]))
    writing.flush()
    (failed,) = writing.failures()
    assert NOBODY in str(writing.failure(failed.error))
    assert printed(capfd) == []


def test_what_librdkafka_logs_is_for_those_who_debug(
    capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    connection = Connection(NOBODY, {"debug": "broker", "client.id": OURS}, 0.5)

    def lines() -> list[str]:
        with pytest.raises(Retryable):
            Contact(connection).metadata()
        return [record.getMessage() for record in caplog.records if f"[{OURS}#" in record.getMessage()]

    with caplog.at_level(logging.INFO):
        assert lines() == []
        logging.getLogger("librdkafka").critical("as loud as what is fatal")
        assert "as loud as what is fatal" not in caplog.messages
    with caplog.at_level(logging.DEBUG):
        assert any("Connection refused" in line for line in lines())
    assert printed(capfd) == []


def test_a_client_that_is_none_of_ours_would_be_seen_to_print(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KafkaException):
        AdminClient({"bootstrap.servers": NOBODY, "client.id": OURS}).list_topics(timeout=0.5)
    assert any("Connection refused" in line for line in printed(capfd))


def test_a_setting_that_the_binding_refuses_is_a_mistake_of_the_settings() -> None:
    for kind in (Contact, lambda connection: RecordProducer(connection, ProducerOptions(), check=lambda: None)):
        with pytest.raises(ConfigError, match="mend the setting"):
            kind(Connection(NOBODY, {"stats_cb": "x"}, 1.0))


# ---------------------------------------------------------------------------- trying again


def test_who_tries_again_after_a_silence_is_not_silent_for_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []

    def unanswered(_: AdminClient, timeout: float) -> NoReturn:
        waits.append(timeout)
        raise KafkaException(KafkaError(KafkaError._TRANSPORT, "nobody answers"))

    # It listens, so that librdkafka does not hear a refusal meanwhile, which would end the waiting.
    with socket.create_server(("127.0.0.1", 0)) as listener, monkeypatch.context() as patched:
        connection = Connection(f"127.0.0.1:{listener.getsockname()[1]}", {}, 5.0)
        patched.setattr(AdminClient, "list_topics", unanswered)
        for _ in range(2):
            with pytest.raises(Retryable):
                Contact(connection).metadata()
    assert waits == [1.0, 2.0, 2.0, AGAIN_SECONDS]
    mock = MockBroker()
    again = Contact(Connection(mock.bootstrap, {}, 30.0, connection.silence))
    assert connection.silence.is_known
    again.metadata()
    assert not connection.silence.is_known
    mock.close()
