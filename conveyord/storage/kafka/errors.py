"""What librdkafka's errors mean: what may pass, what someone must mend, what a record is to blame for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from conveyord.core.errors import ConfigError, ConveyordError, RecordError, Refused, Retryable

if TYPE_CHECKING:
    from confluent_kafka import KafkaError

_REMEDIES = {
    "_AUTHENTICATION": "check username, password and mechanism of `security`",
    "SASL_AUTHENTICATION_FAILED": "check username, password and mechanism of `security`",
    "UNSUPPORTED_SASL_MECHANISM": "set security.mechanism to one that the broker offers",
    "ILLEGAL_SASL_STATE": "does the broker's listener speak the protocol of security.protocol?",
    "_SSL": "check security.ca_file, and that the brokers' certificate names the host that is written in `brokers`",
    "TOPIC_AUTHORIZATION_FAILED": "let this user read (or write) the topic",
    "GROUP_AUTHORIZATION_FAILED": "let this user use the group, or name another with `group_id`",
    "CLUSTER_AUTHORIZATION_FAILED": "let this user do that in the cluster",
    "TRANSACTIONAL_ID_AUTHORIZATION_FAILED": "let this user use the transactional id",
    "_INVALID_ARG": "mend the setting",
    "_CRIT_SYS_RESOURCE": "raise the limits of this machine",
    "UNKNOWN_TOPIC_OR_PART": "create the topic, or mend its name",
    "_UNKNOWN_TOPIC": "create the topic, or mend its name",
    "TOPIC_EXCEPTION": "mend the topic's name",
    "INCONSISTENT_GROUP_PROTOCOL": "the group has members with other settings; take another group_id",
}
"""By the name of a code: what a user can do. These are for ever until somebody does."""
_SILENT = {
    "_ALL_BROKERS_DOWN",
    "_MSG_TIMED_OUT",
    "_RESOLVE",
    "_TIMED_OUT",
    "_TIMED_OUT_QUEUE",
    "_TRANSPORT",
    "_WAIT_COORD",
    "BROKER_NOT_AVAILABLE",
    "COORDINATOR_NOT_AVAILABLE",
    "LEADER_NOT_AVAILABLE",
    "NETWORK_EXCEPTION",
    "REQUEST_TIMED_OUT",
}
"""By the name of a code: nobody answers, or not the one who is to."""
_UNREACHED = "is it up, and can it be reached from here?"
_PASSING = "that may pass; if it does not, the broker's log says more"
_FENCED = {"_FENCED", "PRODUCER_FENCED", "INVALID_PRODUCER_EPOCH", "FENCED_INSTANCE_ID"}

_BLAMING = {
    "MSG_SIZE_TOO_LARGE": "has more bytes than max_record_bytes, or than the topic's max.message.bytes, allows",
    "RECORD_LIST_TOO_LARGE": "has more bytes than a segment of the topic",
    "INVALID_MSG_SIZE": "has more bytes than the broker takes",
    "INVALID_MSG": "is refused by the topic; does it need a key (cleanup.policy=compact)?",
    "INVALID_RECORD": "is refused by the topic; does it need a key (cleanup.policy=compact)?",
    "INVALID_TIMESTAMP": "has a timestamp that the topic refuses (message.timestamp.before.max.ms and after.max.ms)",
    "_INVALID_DIFFERENT_RECORD": "was sent with one that the topic refuses",
    "_UNKNOWN_PARTITION": "is for a partition that the topic has not",
}
"""By the name of a code that lays the blame on records: what one of them is guilty of."""
_TOO_LARGE = {"MSG_SIZE_TOO_LARGE", "RECORD_LIST_TOO_LARGE", "INVALID_MSG_SIZE"}


def blames_record(error: KafkaError) -> bool:
    """Whether `error` says that a record, or one of a batch, can never be taken."""
    return error.name() in _BLAMING


def refusal(error: KafkaError, topic: str) -> RecordError:
    """What to say of a record that was refused with `error`, which `blames_record`."""
    name = error.name()
    code = "RECORD_TOO_LARGE" if name in _TOO_LARGE else "REFUSED_BY_TOPIC"
    return RecordError(f"topic {topic}", f"the record {_BLAMING[name]} ({name})", code=code)


def is_fenced(error: KafkaError) -> bool:
    """Whether `error` says that another goes by the same transactional or instance id."""
    return error.name() in _FENCED


def as_conveyord_error(error: KafkaError, brokers: str) -> ConveyordError:
    """The error of conveyord's that `error` of a client for `brokers` is: ConfigError, Refused or Retryable.

    What is said of single records is not for here.
    """
    name, text = error.name(), error.str()
    if "certificate verify failed" in text or "ssl handshake failed" in text.lower():
        name = "_SSL"  # it comes as _TRANSPORT as well
    what = f"Kafka at {brokers}: {_sentence(text, name)}"
    if name in _REMEDIES:
        return ConfigError(f"{what}; {_REMEDIES[name]}")
    if name in _FENCED:
        return Refused(f"{what}; another process goes by the same transactional or instance id, so this one stops")
    return Retryable(f"{what}; {_UNREACHED if name in _SILENT else _PASSING}")


def _sentence(text: str, name: str) -> str:
    """The text of an error without librdkafka's own prefix of thread and address."""
    _, found, rest = text.partition("/bootstrap: ")
    return f"{rest if found else text} ({name})"
