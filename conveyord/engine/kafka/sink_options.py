"""The options of the `kafka` sink, and what is wrong with them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from conveyord.core.units import Bytes, Seconds
from conveyord.engine.contracts import OperatorConfig
from conveyord.engine.expressions import expression_problem
from conveyord.engine.kafka.options import KafkaConfig, kafka_mistakes
from conveyord.storage.kafka.producer import (
    BATCH_OVERHEAD_BYTES,
    RECORD_BYTES_DEFAULT,
    RECORD_BYTES_MIN,
    Compression,
    ProducerOptions,
)

POSITIONS_PREFIX = "conveyord-positions."

SET_BY_OPTIONS = {
    "acks": None,
    "request.required.acks": None,
    "compression.codec": "compression",
    "compression.type": "compression",
    "delivery.report.only.error": None,
    "delivery.timeout.ms": "delivery_timeout",
    "linger.ms": "linger",
    "message.max.bytes": "max_record_bytes",
    "message.timeout.ms": "delivery_timeout",
    "queue.buffering.max.ms": "linger",
    "transaction.timeout.ms": "delivery_timeout",
}
"""Settings of librdkafka that the sink sets, and the option to use in their place, if there is one."""


class KafkaCommitPolicy(OperatorConfig):
    """When it is made sure that the brokers have everything, and how far that is is stored: at whichever comes first.

    With `transactional_id` each is a transaction, and readers see the records then.
    """

    rows: int = Field(default=100_000, ge=1, description="When this many rows are waiting.")
    bytes: Bytes = Field(default=64 * 1024 * 1024, ge=1024, description="When rows wait that make so many bytes.")
    every: Seconds = Field(default=1.0, ge=0.01, description="When the oldest waiting row is this old.")


class CreateTopic(OperatorConfig):
    """How the topic is made if it is missing."""

    partitions: int = Field(default=3, ge=1, le=100_000, description="Of the new topic.")
    replication: int | None = Field(default=None, ge=1, le=100, description="Copies of each. None: the cluster's own.")
    config: dict[str, str | int | float | bool] = Field(
        default={}, description="Of the topic.", examples=[{"cleanup.policy": "compact"}]
    )


class KafkaSinkConfig(KafkaConfig):
    """Writes each row as one record of a topic, at least once or, with `transactional_id`, exactly once.

    Without `transactional_id`: what was sent and not yet committed when a run was killed is sent again. Positions are
    kept in the data directory, by the sink's name, the topic and the cluster. Idempotence keeps the repeats of a
    connection out, not those of a run. Records of a partition stay in order; a stretch may come twice.

    With it: each commit is one transaction of Kafka, with the positions in it, so that those who read with
    `isolation.level=read_committed` see each row once, whatever happened. A run shuts out whoever else writes with the
    same id: two pipelines, or two sinks, must not share one.

    A row that cannot be sent (an expression fails on it, it is too large, the topic refuses it) becomes a dead letter
    if the pipeline has `dlq`, else it stops the run.
    """

    topic: str = Field(min_length=1, max_length=249, pattern=r"^[a-zA-Z0-9._-]+$", description="Where records go.")
    format: Literal["json", "raw"] = Field(
        default="json",
        description="The value: `json` is the row as an object, as `file_jsonl` has it; `raw` is one column.",
    )
    value_column: str | None = Field(default=None, description="With `raw`: text or bytes. Null becomes a tombstone.")
    exclude: list[str] = Field(
        default=[], description="With `json`: columns to leave out of the value, such as those in key or headers."
    )
    key: str | None = Field(
        default=None,
        description="SQL on the row. Text as UTF-8, bytes as they are, anything else as the text that JSON would have. "
        "Null: no key.",
        examples=["user_id"],
    )
    partition: str | None = Field(
        default=None,
        description="SQL on the row that gives the partition's number. Null, or without this: by key, as clients "
        "in Java do it; without a key some partition, which changes now and then.",
    )
    headers: dict[str, str] = Field(
        default={}, description="SQL on the row by header; written as `key` is. A null leaves the header out."
    )
    timestamp: str | None = Field(
        default=None, description="SQL on the row that gives a time. Null, or without this: when it is sent."
    )
    tombstone_when: str | None = Field(
        default=None, description="SQL condition on the row: true sends the key with no value, which deletes it."
    )
    compression: Compression = Field(default="lz4", description="Of the batches that are sent.")
    linger: Seconds = Field(
        default=0.005, ge=0, le=10, description="How long a record waits for others to be sent with."
    )
    idempotent: bool = Field(
        default=True, description="Let brokers drop what a connection that broke made us repeat. Needs Kafka 0.11."
    )
    transactional_id: str | None = Field(
        default=None, min_length=1, max_length=200, description="Turns transactions on. Of this sink alone, for ever."
    )
    positions_topic: str | None = Field(
        default=None,
        pattern=r"^[a-zA-Z0-9._-]{1,249}$",
        description=f"With `transactional_id`, where positions are. None: `{POSITIONS_PREFIX}` and the id. Made if "
        "missing, with cleanup.policy=compact; it must be compacted.",
    )
    delivery_timeout: Seconds = Field(
        default=60.0, ge=1, le=300, description="How long to go on with a record that no broker takes, each time."
    )
    max_record_bytes: Bytes | None = Field(
        default=None, ge=1000, le=1_000_000_000, description="Of key, value and headers. None: as the topic takes."
    )
    create_topic: CreateTopic | Literal[False] = Field(
        default=False, description="Make the topic if it is missing. `false`: that is an error."
    )
    commit: KafkaCommitPolicy = Field(default_factory=KafkaCommitPolicy)

    @property
    def expressions(self) -> dict[tuple[str, ...], str]:
        """All SQL, by the way to it."""
        single = {("key",): self.key, ("partition",): self.partition, ("timestamp",): self.timestamp}
        single["tombstone_when",] = self.tombstone_when
        given = {path: text for path, text in single.items() if text is not None}
        return given | {("headers", name): text for name, text in self.headers.items()}

    @property
    def positions_in(self) -> str:
        """The topic of positions."""
        return self.positions_topic or f"{POSITIONS_PREFIX}{self.transactional_id}"


def sink_mistakes(config: KafkaSinkConfig) -> dict[Any, str]:
    """What is wrong with the options. See `Operator.mistakes`."""
    found = kafka_mistakes(config)
    for name in config.client:
        if name in SET_BY_OPTIONS:
            option = SET_BY_OPTIONS[name]
            found["client", name] = f"use the option `{option}`" if option else f"{name} is set by conveyord itself"
    for path, text in config.expressions.items():
        problem = expression_problem(text, setting=f"kafka.{'.'.join(path)}")
        if problem is not None:
            found[path if len(path) > 1 else path[0]] = problem
    if (config.format == "raw") != (config.value_column is not None):
        found["value_column"] = "belongs to `format: raw`, which needs it"
    if config.exclude and config.format == "raw":
        found["exclude"] = "has no meaning with `format: raw`, whose value is one column"
    if config.tombstone_when is not None and config.key is None:
        found["tombstone_when"] = "a tombstone deletes what its key named before; give `key`"
    if config.transactional_id is None:
        if config.positions_topic is not None:
            found["positions_topic"] = "has no meaning without transactional_id"
    elif not config.idempotent:
        found["idempotent"] = "transactions are idempotent; leave this out"
    elif len(config.positions_in) > 249 or not set(config.positions_in) <= _TOPIC_CHARACTERS:
        found["transactional_id"] = "cannot be part of a topic's name; give positions_topic"
    if config.positions_topic == config.topic:
        found["positions_topic"] = "must be another topic than the one with the records"
    return found


_TOPIC_CHARACTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")


def producer_options(config: KafkaSinkConfig, *, topic_bytes_max: int | None) -> ProducerOptions:
    """How records are sent under `config`. topic_bytes_max: of a batch, as the topic has it, if that is known."""
    room = RECORD_BYTES_DEFAULT
    if config.max_record_bytes is not None:
        room = config.max_record_bytes
    elif topic_bytes_max is not None:
        room = max(RECORD_BYTES_MIN, topic_bytes_max - BATCH_OVERHEAD_BYTES)
    return ProducerOptions(
        compression=config.compression,
        linger_seconds=config.linger,
        idempotent=config.idempotent,
        delivery_seconds=config.delivery_timeout,
        record_bytes_max=room,
        transactional_id=config.transactional_id,
    )
