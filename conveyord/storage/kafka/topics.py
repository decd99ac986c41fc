"""Topics as a writer needs them: whether they are there, how much they take, and making them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field

from conveyord.core.errors import ConfigError
from conveyord.storage.kafka.connection import Connection, Contact

AUTO_CREATE_SECONDS = 3.0  # in which a broker that makes topics when they are named has made one
POLL_SECONDS = 0.1
BROKER_DEFAULT = -1
MISSING = {"UNKNOWN_TOPIC_OR_PART", "LEADER_NOT_AVAILABLE", "_UNKNOWN_TOPIC"}


@dataclass(frozen=True, slots=True)
class TopicPlan:
    """How a missing topic is made. replication: BROKER_DEFAULT leaves it to the cluster."""

    partitions: int = 1
    replication: int = BROKER_DEFAULT
    config: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class FoundTopic:
    """A topic that is there. cluster: the id of its cluster, if that says."""

    name: str
    partitions: int
    cluster: str | None


def find_topic(contact: Contact, name: str, *, wait_seconds: float = 0.0) -> FoundTopic | None:
    """The topic, or None if there is none even after `wait_seconds`. Blocking.

    Raises ConfigError if the cluster does not let us in or see it, Retryable if nobody answers.
    """
    deadline = time.monotonic() + wait_seconds
    while True:
        cluster = contact.metadata(name)
        topic = cluster.topics[name]
        if topic.error is None and topic.partitions:
            return FoundTopic(name, len(topic.partitions), cluster.cluster_id)
        if topic.error is not None and topic.error.name() not in MISSING:
            raise contact.failure(topic.error)
        if time.monotonic() >= deadline:
            return None
        time.sleep(POLL_SECONDS)


def find_or_await_topic(connection: Connection, contact: Contact, name: str) -> FoundTopic | None:
    """The topic, or the one that a broker makes now, if it makes topics by itself. Blocking; raises as above."""
    found = find_topic(contact, name)
    return found or find_topic(Contact(connection, may_make_topics=True), name, wait_seconds=AUTO_CREATE_SECONDS)


def make_topic(contact: Contact, name: str, plan: TopicPlan) -> FoundTopic:
    """Make the topic, unless it is there by now. Blocking. Raises ConfigError if that is not allowed."""
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka.admin import NewTopic

    wanted = NewTopic(name, plan.partitions, plan.replication, config=dict(plan.config))
    (answer,) = contact.admin.create_topics([wanted], request_timeout=contact.connect_seconds).values()
    try:
        answer.result()
    except KafkaException as error:
        if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
            raise _not_made(contact, name, error) from error
    found = find_topic(contact, name, wait_seconds=contact.connect_seconds)
    if found is None:
        raise ConfigError(f"topic {name} was made, but the cluster does not show it; may this user describe it?")
    return found


def max_message_bytes(contact: Contact, name: str) -> int | None:
    """How large a batch of the topic may be; None if this user may not ask. Blocking."""
    value = _configured(contact, name, "max.message.bytes")
    return None if value is None else int(value)


def is_compacted(contact: Contact, name: str) -> bool | None:
    """Whether the newest record of a key stays in the topic for ever; None if this user may not ask. Blocking."""
    value = _configured(contact, name, "cleanup.policy")
    return None if value is None else value.split(",") == ["compact"]


def _configured(contact: Contact, name: str, key: str) -> str | None:
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import ConfigResource, ResourceType

    asked = ConfigResource(ResourceType.TOPIC, name)
    (answer,) = contact.admin.describe_configs([asked], request_timeout=contact.connect_seconds).values()
    try:
        entry = answer.result().get(key)
    except KafkaException:  # what cannot be asked is found out by what the broker refuses
        return None
    return None if entry is None else str(entry.value)


def _not_made(contact: Contact, name: str, error: Exception) -> Exception:
    reason = error.args[0]
    if reason.retriable() or reason.name() in {"_TIMED_OUT", "_TRANSPORT"}:
        return contact.failure(reason)
    return ConfigError(
        f"topic {name} cannot be made: {reason.str()} ({reason.name()}); make it, or mend `create_topic`"
    )
