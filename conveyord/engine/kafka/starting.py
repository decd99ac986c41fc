"""Where reading begins in each partition, from what the sinks have and what is there. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from conveyord.core.errors import ConfigError, Refused
from conveyord.core.flow.positions import Partition, Position, Positions
from conveyord.core.flow.record_log import Extent, Topic, TopicPartition
from conveyord.core.units import counted

OnRecreated = Literal["fail", "restart"]

SIGNED_BY = " by "


@dataclass(frozen=True, slots=True)
class Beginning:
    """How one partition is read: from `at` on, under the name `partition`, with `mark`.

    cuts: offsets at which a batch must end. skip_to: another member of the group has read what lies between. lost_to:
    what lies between, and was not read by another, is gone. fetch_at: where the log is read from.
    """

    partition: Partition
    mark: str
    at: int
    cuts: tuple[int, ...] = ()
    skip_to: int | None = None
    lost_to: int | None = None

    @property
    def fetch_at(self) -> int:
        return max(self.at, self.skip_to or 0, self.lost_to or 0)


def beginning(
    stage: str,
    place: TopicPartition,
    topic: Topic,
    extent: Extent,
    *,
    held: Sequence[Positions],
    first: int,
    handed_over: int | None,
    on_recreated: OnRecreated,
) -> Beginning:
    """Where to begin in the partition `place`.

    held: by sink. first: where to begin if a sink has nothing of it. handed_over: the group's offset, if another
    member may have read the partition up to there. Raises Refused if what the sinks have is of another topic of that
    name, or lies beyond the end; ConfigError if `first` or `handed_over` does.
    """
    partition, known = _recognised(stage, place, topic, held, on_recreated)
    if partition.name != str(place):
        first = extent.first  # where to begin was said of the topic before
    at = min([*(position.offset for position in known), *([first] if len(known) < len(held) else [])])
    cuts = tuple(sorted({position.offset for position in known}))
    beyond = max(cuts, default=0)
    if beyond > extent.end:
        raise Refused(
            f"{place}: a sink holds its records up to offset {beyond}, but the partition ends at {extent.end}; were "
            "records lost there, or was it restored from a backup? Set the table back, or rename the pipeline to "
            "start anew"
        )
    if handed_over is not None and handed_over > extent.end:
        raise ConfigError(
            f"{place}: the group has read up to offset {handed_over}, but the partition ends at {extent.end}; were "
            "records lost there, or was it restored from a backup? Set the group's offset back "
            "(kafka-consumer-groups --reset-offsets), or take another group_id"
        )
    skip_to = handed_over if handed_over is not None and handed_over > beyond and known else None
    if not known:
        if handed_over is not None:
            at = handed_over  # wherever this run were to begin: what others have not read is read by nobody else
        if at > extent.end:
            raise ConfigError(
                f"{place}: reading is to begin at offset {at}, but the partition ends at {extent.end}; name an offset "
                "that is there, or another start"
            )
    lost_to = extent.first if max(at, skip_to or 0) < extent.first else None
    return Beginning(partition, topic.incarnation, at, cuts, skip_to, lost_to)


def _recognised(
    stage: str, place: TopicPartition, topic: Topic, held: Sequence[Positions], on_recreated: OnRecreated
) -> tuple[Partition, list[Position]]:
    """The name under which the positions of this very topic are kept, and those positions."""
    plain = Partition(stage, str(place))
    known = [positions[plain] for positions in held if plain in positions]
    strange = [position for position in known if not same_log(position.mark, topic.incarnation)]
    if not strange:
        return plain, known
    if on_recreated == "fail":
        raise Refused(
            f"{place}: a sink holds its records up to offset {strange[0].offset}, but of another topic of that name, "
            "or in another cluster: it was deleted and made anew. Set on_recreated to restart to read the new one from "
            "its start beside what is there, or rename the pipeline to start anew"
        )
    renewed = Partition(stage, f"{place}@{digest_of(topic.incarnation)}")
    return renewed, [positions[renewed] for positions in held if renewed in positions]


def signed(mark: str, run: str) -> str:
    """A mark for the group, which is told who has committed it. run: an id that no other run has."""
    return f"{mark}{SIGNED_BY}{run}"


def unsigned(mark: str) -> tuple[str, str]:
    """The mark and the run that `signed` was given; no run if somebody else committed it."""
    plain, _, run = mark.partition(SIGNED_BY)
    return plain, run


def same_log(mark: str, incarnation: str) -> bool:
    """Whether two marks may be of one topic. One without a topic's id was taken where brokers tell none."""
    cluster, _, topic = mark.partition("/")
    other_cluster, _, other_topic = incarnation.partition("/")
    return cluster == other_cluster and (topic == other_topic or not topic or not other_topic)


def digest_of(incarnation: str) -> str:
    """Eight hex digits that tell one incarnation of a topic from the next in the names of its partitions."""
    return hashlib.sha256(incarnation.encode()).hexdigest()[:8]


def gap_sentence(place: TopicPartition, first: int, end: int) -> str:
    """What to say of offsets that were deleted before they were read."""
    return (
        f"{counted(end - first, 'offset')} from {first} on were deleted before they were read: retention, or somebody, "
        f"was faster; {place} begins at {end} now"
    )
