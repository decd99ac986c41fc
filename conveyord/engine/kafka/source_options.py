"""The options of the `kafka` source."""

from __future__ import annotations

import datetime as dt
import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field

from conveyord.core.units import Bytes, Seconds
from conveyord.engine.kafka.choice import TopicChoice, pattern_mistake
from conveyord.engine.kafka.options import KafkaConfig, kafka_mistakes
from conveyord.engine.kafka.rows import Column
from conveyord.engine.kafka.starting import OnRecreated
from conveyord.engine.model_keys import NEEDED
from conveyord.engine.payloads.options import FORMAT_DESCRIPTION, Format, format_mistakes
from conveyord.engine.topic_mapping import MAPPING_DESCRIPTION, TopicMapping

_PLACE = re.compile(r"(.+)\[([0-9]+)\]")
START_WORDS = ("earliest", "latest", "committed")


class KafkaSourceConfig(KafkaConfig):
    """Reads topics of Kafka, and goes on where the sinks are: what they have decides, not the offsets of a group.

    Records of transactions are read once these are committed. Values are typed as JSON in files is: by the first
    16 MiB, then columns are added as they come. A value that cannot be read is a bad record. So are offsets that were
    deleted before they were read: a gap is a dead letter, or stops the run, or is passed over with --skip-bad; it is
    never silent.
    """

    topics: Annotated[str | tuple[str, ...], NEEDED] = Field(
        default=(),
        validation_alias=AliasChoices("topics", "topic"),
        description="Topics by name; or regular expressions, which begin with `^` and must match whole names. New "
        "topics that match are read from their start.",
        examples=[["flights"]],
    )
    exclude: tuple[str, ...] = Field(default=(), description="Names and expressions of topics to leave out.")
    topic_mapping: TopicMapping | None = Field(default=None, description=MAPPING_DESCRIPTION)
    group_id: str | None = Field(
        default=None,
        min_length=1,
        description="A consumer group whose offsets follow the sinks, so that tools for lag see this pipeline.",
    )
    assignment: Literal["all", "group"] = Field(
        default="all",
        description="`all`: this run reads every partition, and each record lands once. `group`: the runs with this "
        "`group_id` share the partitions among them; each hands over what it has committed. If one dies, what it had "
        "committed to its table since the last offsets of the group (`commit_group_every`) is read again by another.",
    )
    start: str = Field(
        default="earliest",
        description="Where to begin in a partition that a sink has nothing of: `earliest`, `latest`, `committed` (the "
        "group's offset, else the earliest), or a time such as 2026-01-31T12:00:00Z.",
    )
    start_offsets: dict[str, int] = Field(
        default={}, description="Or an offset, by partition.", examples=[{"flights[0]": 1000}]
    )
    follow: bool = Field(
        default=True, description="Go on for ever; false: stop at what was the end of each partition at the start."
    )
    format: Format = Field(default="json", description=FORMAT_DESCRIPTION)
    columns: tuple[Column, ...] = Field(
        default=(),
        description="What to add of what stands beside the value: `key`, `headers`, `timestamp`, `topic`, `partition`, "
        "`offset`, as columns `kafka_key` and so on.",
    )
    key_format: Literal["text", "bytes"] = Field(default="text", description="What the column `kafka_key` holds.")
    tombstones: Literal["drop", "keep"] = Field(
        default="drop",
        description="A record without a value is left out and counted as filtered, or kept as a row of nulls.",
    )
    event_time: str | None = Field(
        default=None, description="The column of the event time, for watermarks; `kafka_timestamp` if it is asked for."
    )
    lateness: Seconds = Field(default=5.0, ge=0, le=86400 * 7, description="How late a record may be by event time.")
    idle: Seconds = Field(
        default=30.0, gt=0, le=86400, description="A partition without records for so long holds event time no longer."
    )
    batch_bytes: Bytes = Field(
        default=8 * 1024 * 1024, ge=1024, le=256 * 1024 * 1024, description="Bytes of values decoded at a time."
    )
    batch_rows: int = Field(default=65_536, ge=1, le=10_000_000, description="Records decoded at a time, at most.")
    linger: Seconds = Field(
        default=0.25, ge=0, le=60, description="How long records wait for others to be decoded with."
    )
    prefetch: Bytes = Field(
        default=64 * 1024 * 1024,
        ge=1024 * 1024,
        le=8 * 1024**3,
        description="At so many bytes of values that wait, fetching pauses until half of them are gone.",
    )
    max_record_bytes: Bytes = Field(
        default=16 * 1024 * 1024, ge=1024, le=1024**3, description="A longer value is a bad record."
    )
    discover_every: Seconds = Field(
        default=10.0, ge=0.1, le=3600, description="How often to look for new topics and partitions."
    )
    on_recreated: OnRecreated = Field(
        default="fail",
        description="What to do about a topic that was deleted and made anew: `fail`, or `restart`, which reads the "
        "new one from its start. What was not read of the old one is lost then.",
    )
    outage_timeout: Seconds = Field(
        default=300.0,
        gt=0,
        le=86400 * 7,
        description="The run fails when nobody in the cluster has answered for so long, or when nothing has come of a "
        "partition that has more.",
    )
    release_timeout: Seconds = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="With assignment: group, how long the sinks have to commit what was read of partitions that go to "
        "another run. If they do not, this run stops and commits nothing more. Keep it below max.poll.interval.ms.",
    )
    commit_group_every: Seconds = Field(
        default=5.0, ge=0.1, le=3600, description="How often the group's offsets are brought up to date."
    )


def source_mistakes(config: KafkaSourceConfig) -> dict[Any, str]:
    """What is wrong with the options, by key. See `Operator.mistakes`."""
    found = kafka_mistakes(config) | {("format", *key): text for key, text in format_mistakes(config.format).items()}
    topics = topics_of(config)
    if not topics and config.topic_mapping is None:
        found["topics"] = "the source names no topic; add 'topics'"
    for key, texts in (("topics", topics), ("exclude", config.exclude)):
        for text in texts:
            if (mistake := pattern_mistake(text)) is not None:
                found[key] = mistake
    if config.start not in START_WORDS and time_ms_of(config.start) is None:
        found["start"] = "must be earliest, latest, committed, or a time with its zone, such as 2026-01-31T12:00:00Z"
    choice = None if found.keys() & {"topics", "exclude"} else choice_of(config)
    for name, offset in config.start_offsets.items():
        if choice is not None and (mistake := _start_mistake(name, offset, choice)) is not None:
            found["start_offsets", name] = mistake
    if config.group_id is None and (config.assignment == "group" or config.start == "committed"):
        found["assignment" if config.assignment == "group" else "start"] = "needs a group_id"
    if config.assignment == "group" and not config.follow:
        found["follow"] = "a member of a group cannot know the end of what it will be given; leave out follow: false"
    return found


def _start_mistake(name: str, offset: int, choice: TopicChoice) -> str | None:
    place = _PLACE.fullmatch(name)
    if place is None:
        return f"{name!r} is no partition; write TOPIC[NUMBER], such as flights[0]"
    if not choice.takes(place[1]):
        return f"topic {place[1]!r} is not read here; mend the name, or add it to 'topics'"
    return None if offset >= 0 else f"{offset} is no offset; the first is 0"


def topics_of(config: KafkaSourceConfig) -> tuple[str, ...]:
    """The topics as they are written."""
    return (config.topics,) if isinstance(config.topics, str) else config.topics


def choice_of(config: KafkaSourceConfig) -> TopicChoice:
    """Which topics it reads."""
    return TopicChoice(topics_of(config), config.exclude)


def time_ms_of(text: str) -> int | None:
    """Milliseconds since the epoch of a time with its zone; None if it is none."""
    try:
        at = dt.datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if at.tzinfo is None else round(at.timestamp() * 1000)
