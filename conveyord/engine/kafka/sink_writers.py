"""The two ways in which the `kafka` sink keeps its promise: positions in the data directory, or in the transaction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.planning.fence import Fence
from conveyord.engine.kafka.options import connection_of
from conveyord.engine.kafka.sink_options import KafkaSinkConfig, producer_options
from conveyord.storage.kafka.connection import Contact
from conveyord.storage.kafka.delivery import Delivery
from conveyord.storage.kafka.delivery import Refused as RefusedRecords
from conveyord.storage.kafka.positions_topic import PLAN, PositionsTopic, WriterKey
from conveyord.storage.kafka.producer import Outgoing, ProducerOptions
from conveyord.storage.kafka.topics import (
    BROKER_DEFAULT,
    TopicPlan,
    find_or_await_topic,
    find_topic,
    is_compacted,
    make_topic,
    max_message_bytes,
)
from conveyord.storage.kafka.transactions import Transactions
from conveyord.storage.run_positions import RunPositions, SinkKey


@dataclass(frozen=True, slots=True)
class WriterOf:
    """Whose writer it is. adopt_from: the pipeline's former name, whose positions are to be taken over.

    token: no other run has it. check: called while a writer waits; what it raises ends the wait.
    """

    pipeline: str
    stage: str
    data_dir: Path
    adopt_from: str | None
    token: str
    check: Callable[[], None]


class SinkWriter(ABC):
    """Blocking; calls must not overlap. `open`, `start`, then `add` what there is and `deliver` and `commit` it.

    After Retryable from `start`, `deliver` or `commit`: `start`, or both of the others, again.
    """

    def __init__(self, config: KafkaSinkConfig, owner: WriterOf) -> None:
        self.config = config
        self.owner = owner
        self.connection = connection_of(config)
        self.contact = Contact(self.connection)
        self.is_missing = False
        self.took_over = False
        """Whether `open` found positions under the pipeline's former name, and goes on from them."""

    @abstractmethod
    def open(self) -> Positions:
        """How far the records of the sources were sent. Makes nothing, and disturbs nobody.

        Raises ConfigError if the cluster does not let us in or has no such topic, Retryable if nobody answers.
        """

    @abstractmethod
    def start(self) -> None:
        """Make what is missing, and become the one who writes."""

    @abstractmethod
    def add(self, records: Outgoing) -> None:
        """Take records. Waits while too many are under way."""

    @abstractmethod
    def deliver(self) -> list[RefusedRecords]:
        """See to it that the brokers have all that was added since the last commit, but what is returned, by `add`."""

    @abstractmethod
    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> None:
        """Make that, and the positions, hold for good."""

    @abstractmethod
    def close(self) -> None:
        """Let go of everything; what was not committed comes again."""

    def find(self) -> str:
        """The id of the cluster, after a look for the topic. Raises ConfigError if it is missing and stays so."""
        config = self.config
        if config.create_topic is False:
            self.is_missing = find_or_await_topic(self.connection, self.contact, config.topic) is None
        else:
            self.is_missing = find_topic(self.contact, config.topic) is None
        if self.is_missing and config.create_topic is False:
            raise ConfigError(
                f"Kafka at {config.brokers} has no topic {config.topic}, or hides it from this user; mend the name, "
                "make it, or let it be made by `create_topic: {partitions: 3}`"
            )
        return self.contact.metadata(config.topic).cluster_id or config.brokers

    def options(self) -> ProducerOptions:
        """How to send, after making the topic if it is missing."""
        config = self.config
        if self.is_missing and config.create_topic is not False:
            wanted = config.create_topic
            texts = {key: _text(value) for key, value in wanted.config.items()}
            make_topic(
                self.contact, config.topic, TopicPlan(wanted.partitions, wanted.replication or BROKER_DEFAULT, texts)
            )
            self.is_missing = False
        limit = max_message_bytes(self.contact, config.topic) if config.max_record_bytes is None else None
        return producer_options(config, topic_bytes_max=limit)


class AtLeastOnce(SinkWriter):
    """Records are under way as soon as they are added; positions are stored when the brokers have them."""

    def __init__(self, config: KafkaSinkConfig, owner: WriterOf) -> None:
        super().__init__(config, owner)
        self._positions: RunPositions | None = None
        self._key: SinkKey | None = None
        self._delivery: Delivery | None = None

    def open(self) -> Positions:
        """See `SinkWriter`."""
        owner = self.owner
        self._key = SinkKey(owner.pipeline, owner.stage, f"topic {self.config.topic} of cluster {self.find()}")
        self._positions = RunPositions(owner.data_dir)
        held = self._positions.load(self._key)
        if owner.adopt_from is not None:
            self.took_over = held is None
            return self._positions.take_over(self._key, owner.adopt_from)
        return held or Positions()

    def start(self) -> None:
        """See `SinkWriter`."""
        self._delivery = Delivery(self.connection, self.options(), check=self.owner.check)

    def add(self, records: Outgoing) -> None:
        """See `SinkWriter`."""
        self._sending.add(records)

    def deliver(self) -> list[RefusedRecords]:
        """See `SinkWriter`."""
        return self._sending.settle()

    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> None:  # noqa: ARG002 - as above
        """See `SinkWriter`."""
        assert self._positions is not None
        assert self._key is not None
        self._positions.store(self._key, spans, states)
        self._sending.clear()

    def close(self) -> None:
        """See `SinkWriter`."""
        if self._delivery is not None:
            self._delivery.close()
        if self._positions is not None:
            self._positions.close()

    @property
    def _sending(self) -> Delivery:
        assert self._delivery is not None, "sent before it was started"
        return self._delivery


class ExactlyOnce(SinkWriter):
    """Records are sent when they are committed: while a transaction is open, readers wait."""

    def __init__(self, config: KafkaSinkConfig, owner: WriterOf) -> None:
        super().__init__(config, owner)
        self._topic = PositionsTopic(self.connection, config.positions_in, check=owner.check)
        self._key = WriterKey(owner.pipeline, owner.stage, config.topic)
        self._former: WriterKey | None = None
        self._seen: Fence | None = None
        self._has_topic = False
        self._transactions: Transactions | None = None
        self._parts: list[Outgoing] = []

    def open(self) -> Positions:
        """See `SinkWriter`."""
        self.find()
        self._has_topic = find_topic(self.contact, self.config.positions_in) is not None
        self._seen = self._topic.peek(self._key) if self._has_topic else None
        if self.owner.adopt_from is not None:
            self._adopt(self.owner.adopt_from)
        return Positions() if self._seen is None else self._seen.positions

    def start(self) -> None:
        """See `SinkWriter`."""
        options = self.options()
        if not self._has_topic:
            make_topic(self.contact, self.config.positions_in, PLAN)
            self._has_topic = True
        elif is_compacted(self.contact, self.config.positions_in) is False:
            raise ConfigError(
                f"topic {self.config.positions_in}: cleanup.policy must be compact, or positions are deleted when "
                "they are old; alter it, or name another by positions_topic"
            )
        self._transactions = Transactions(
            self.connection,
            options,
            positions=self._topic,
            key=self._key,
            token=self.owner.token,
            check=self.owner.check,
        )
        self._transactions.start(self._seen, former=self._former)

    def add(self, records: Outgoing) -> None:
        """See `SinkWriter`."""
        self._parts.append(records)

    def deliver(self) -> list[RefusedRecords]:
        """See `SinkWriter`."""
        return self._writing.deliver(self._parts)

    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> None:
        """See `SinkWriter`."""
        writing = self._writing
        if not writing.has_landed:
            writing.commit(writing.fence.advanced(spans, tally, tally.rows, states))
        self._parts = []

    def close(self) -> None:
        """See `SinkWriter`."""
        if self._transactions is not None:
            self._transactions.close()

    @property
    def _writing(self) -> Transactions:
        assert self._transactions is not None, "sent before it was started"
        return self._transactions

    def _adopt(self, former: str) -> None:
        key = WriterKey(former, self._key.stage, self._key.topic)
        theirs = self._topic.peek(key) if self._has_topic else None
        what = f"sink {self._key.stage!r} to topic {self._key.topic}"
        if theirs is not None and self._seen is not None:
            raise Refused(f"{what}: both {former} and {self._key.pipeline} have positions; run without --adopt")
        if theirs is None and self._seen is None:
            raise Refused(f"{what}: {former} has no positions to take over; run without --adopt to start anew")
        if theirs is not None:
            self._seen, self._former, self.took_over = theirs, key, True


def _text(value: str | float) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
