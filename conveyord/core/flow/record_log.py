"""Logs of records in partitions, as Kafka has them: the ports by which they are read, and what goes through those.

`PartitionReader` looks at a log and reads ranges of it: what builders need. `Tail` follows many partitions at once:
what streams need. Both block and belong to one thread at a time. Offsets rise within a partition, but not every offset
need have a record: compaction, aborted transactions and the markers of committed ones leave holes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, Protocol

from conveyord.core.errors import ConveyordError
from conveyord.core.flow.positions import Position

LOG_START: Final = -2
LOG_END: Final = -1
"""Times to ask `offsets_at` for the start and the end of a partition."""


class TopicPartition(NamedTuple):
    """One partition of one topic. Written as `topic[3]`."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class Extent(NamedTuple):
    """first: the oldest offset that is still there. end: where reading ends for now, the last stable offset."""

    first: int
    end: int


@dataclass(frozen=True, slots=True)
class Topic:
    """A topic that is there. incarnation: tells it from others of its name, in this cluster and in others, before and
    after; a broker that knows no ids of topics can only tell clusters.
    """

    name: str
    incarnation: str
    partitions: tuple[int, ...]


Headers = Sequence[tuple[str, bytes | None]]
Meta = Literal["key", "headers", "timestamp"]
"""What a record has beside its value and its offset, and what is fetched on request only."""


@dataclass(frozen=True, slots=True)
class Records:
    """Records of one partition, one after the other, without anything between them that was left out.

    offsets, values: by record; no value: a tombstone. end: the offset to go on at, beyond the last record and the holes
    that are known to follow it. value_bytes: of all values together. keys, headers, times_ms: None if they were not
    asked for; a time is milliseconds since the epoch, or -1. newest_ms: the time of the last record, -1 if it has none.
    """

    partition: TopicPartition
    offsets: Sequence[int]
    values: Sequence[bytes | None]
    end: int
    value_bytes: int = 0
    newest_ms: int = -1
    keys: Sequence[bytes | None] | None = None
    headers: Sequence[Headers] | None = None
    times_ms: Sequence[int] | None = None

    def split(self, offset: int) -> tuple[Records, Records]:
        """These records up to `offset`, where the first part ends, and those from there on."""
        assert offset < self.end, (offset, self.end)
        count = bisect_left(self.offsets, offset)
        return self._part(0, count, offset), self._part(count, len(self.offsets), self.end)

    def _part(self, first: int, stop: int, end: int) -> Records:
        part = slice(first, stop)
        values = self.values[part]
        return Records(
            self.partition,
            self.offsets[part],
            values,
            end,
            total_bytes(values),
            self.newest_ms,
            None if self.keys is None else self.keys[part],
            None if self.headers is None else self.headers[part],
            None if self.times_ms is None else self.times_ms[part],
        )


@dataclass(frozen=True, slots=True)
class OutOfRange:
    """Nothing is at the offset where a partition was to be read on: it is before the log's start, or beyond its end."""

    partition: TopicPartition


@dataclass(frozen=True, slots=True)
class Vanished:
    """A partition that was read is not there any more."""

    partition: TopicPartition


Event = Records | OutOfRange | Vanished


def total_bytes(values: Sequence[bytes | None]) -> int:
    """Of all `values` together."""
    return sum(map(len, values if None not in values else filter(None, values)))  # type: ignore[arg-type]


class PartitionReader(Protocol):
    """Looks at topics, and reads ranges of their partitions. Methods raise Retryable if nobody answers in time, and
    ConfigError if they are not allowed.
    """

    def topics(self, names: Collection[str] | None = None) -> Mapping[str, Topic]:
        """Those of `names` that are there, or all that are not the cluster's own."""

    def extents(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Extent]:
        """From where to where each can be read now. Those that are not there are left out."""

    def offsets_at(self, partitions: Collection[TopicPartition], time_ms: int) -> Mapping[TopicPartition, int]:
        """The first offset whose record is not older than `time_ms` since the epoch, or the end if there is none.

        Those that are not there are left out.
        """

    def committed(self, group: str, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """Where a group goes on; partitions without such an offset are left out.

        mark: the incarnation of the topic that the offset is of, as `Tail.commit` was told; empty if another program
        committed it. Brokers keep offsets by a topic's name: one that was made anew may be given those of the old.
        """

    def read(
        self, partition: TopicPartition, first: int, end: int, *, wants: Collection[Meta] = ()
    ) -> Iterator[Records]:
        """Everything in `[first, end)`, in pieces; the last one ends at `end`. Afterwards nothing is held.

        Raises Refused if a part of that range is gone, or was never there.
        """

    def close(self) -> None:
        """Let go of all connections."""


class Listener(Protocol):
    """Is told which partitions of a group this member has. Called within `Tail.poll`, by its thread."""

    def assigned(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, int]:
        """These are ours from now on. Returns where to begin in each."""

    def revoked(self, partitions: Collection[TopicPartition]) -> Mapping[TopicPartition, Position]:
        """These are to be given up. May wait; afterwards another member reads them from the group's offsets.

        Returns what to commit for the group before. Of what the tail is closed with it is asked first, while it is
        still ours.
        """

    def untold(self, told: Mapping[TopicPartition, int | None], why: str) -> None:
        """The group could not be told what `revoked` returned of these. told: what it has taken since they were ours.

        Within `Tail.poll` or `Tail.close`, once that is certain.
        """

    def lost(self, told: Mapping[TopicPartition, int | None]) -> None:
        """These may be another's already. told: as for `untold`."""


class Tail(Protocol):
    """Follows partitions. `poll` must be called all the time, also while everything is paused: a group takes who does
    not for dead.
    """

    def assign(self, starts: Mapping[TopicPartition, int]) -> None:
        """Follow these as well, each from an offset on."""

    def unassign(self, partitions: Collection[TopicPartition]) -> None:
        """Follow these no longer. Nothing of them comes after this."""

    def follows(self, partition: TopicPartition) -> bool:
        """Whether a partition is followed now: not before it is given to this member, nor once it was given up."""

    def subscribe(self, topics: Sequence[str], listener: Listener) -> None:
        """Follow what the group gives us of `topics`: names, and regular expressions that begin with `^`."""

    def poll(self, seconds: float) -> Sequence[Event]:
        """What has come, after `seconds` at most. Records of a partition come in order.

        Raises ConfigError for what someone must mend. What passes by itself is not raised, but counted by `errors`.
        """

    def pause(self) -> None:
        """Let nothing come of what is followed, and of what will be, until `resume`."""

    def resume(self) -> None:
        """Undo `pause`."""

    def ends(self) -> Mapping[TopicPartition, int]:
        """The end of what is followed as far as it was heard of. Asks nobody."""

    def commit(self, offsets: Mapping[TopicPartition, Position], *, wait: bool) -> None:
        """Have the group go on at these offsets, unless it was told so before. Failures are counted by `errors`, since
        they are a cache of ours; so nothing is sent while the last commit is not answered, nor where nobody answers.

        wait: until that is known to have arrived, or for seconds; for when reading has ended, as records that come
        meanwhile are dropped.
        """

    def errors(self) -> Sequence[ConveyordError]:
        """What went wrong since the last call and passes by itself."""

    def close(self) -> None:
        """Leave the group and let go of everything. Raises what the listener raised meanwhile.

        Where no broker answers, commits that are under way are not waited for longer than seconds.
        """
