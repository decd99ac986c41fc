"""What a source says about tables for its topics: `topic_mapping`, in each of its forms.

A definition's loader makes stages of it (conveyord/engine/definitions/topics.py), so no source ever runs with one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, AliasChoices, Discriminator, Field, Tag

from conveyord.core.pipeline.stages import Name
from conveyord.core.pipeline.table_template import check_template
from conveyord.engine.iceberg_table import IcebergOptions
from conveyord.engine.model_keys import with_canonical_keys
from conveyord.engine.yaml_source import Path

ENTRIES_MAX = 64  # each is a source with a connection of its own

MAPPING_DESCRIPTION = (
    "Tables for topics, instead of sinks: a list of entries, one entry, or entries by topic or pattern. An entry has "
    "`table`, and may have `topics`, `sql`, `name` and the options of the sink iceberg_topics (docs/kafka-topics.md)."
)

STORE_KEYS = ("bucket", "endpoint", "access_key", "secret_key", "region")
"""Keys of an entry in one of the dialects that belong to a catalog here."""

_NOT_TAKEN: dict[str, Any] = {"not": {}}


class TopicEntry(IcebergOptions):
    """Some topics and the tables that they are written to."""

    table: Annotated[str, AfterValidator(check_template)] = Field(
        validation_alias=AliasChoices("table", "iceberg_table", "table_name"),
        description="`namespace.table`, where `{topic}` stands for the topic's name. Without it, all topics of the "
        "entry are written to this one table.",
        examples=["raw.{topic}"],
    )
    topics: str | Annotated[tuple[str, ...], Field(min_length=1)] | None = Field(
        default=None,
        validation_alias=AliasChoices("topics", "topic"),
        description="Names, and regular expressions that begin with `^`. Without it, all topics of the source that "
        "earlier entries do not take.",
    )
    name: Name | None = Field(
        default=None,
        description="The stages are called SOURCE-NAME. Without it, by the table. Positions are kept by it.",
    )
    sql: str | None = Field(
        default=None,
        min_length=1,
        validation_alias=AliasChoices("sql", "sql_transform"),
        description="A query over `input_data` that makes the rows of the table: see the transform sql_transform.",
    )
    auto_schema_evolution: bool | None = Field(
        default=None, description="What the pipeline's `schema` must say: false, that columns and types are frozen."
    )
    tables_max: int | None = Field(default=None, ge=1, le=10_000, description="See the sink iceberg_topics.")
    bucket: Any = Field(default=None, json_schema_extra=_NOT_TAKEN)
    endpoint: Any = Field(default=None, json_schema_extra=_NOT_TAKEN)
    access_key: Any = Field(default=None, json_schema_extra=_NOT_TAKEN)
    secret_key: Any = Field(default=None, json_schema_extra=_NOT_TAKEN)
    region: Any = Field(default=None, json_schema_extra=_NOT_TAKEN)


_LIST, _ONE, _BY_TOPIC = "list of entries", "one entry", "entries by topic"


def _form(value: object) -> str:
    """Which form a mapping has. Of the options of an entry, only two can be mappings."""
    if isinstance(value, list | tuple):
        return _LIST
    if isinstance(value, dict) and value and not {"commit", "catalog"} & value.keys():
        return _BY_TOPIC if all(isinstance(item, dict | TopicEntry) for item in value.values()) else _ONE
    return _ONE


TopicMapping = Annotated[
    Annotated[tuple[TopicEntry, ...], Field(max_length=ENTRIES_MAX), Tag(_LIST)]
    | Annotated[TopicEntry, Tag(_ONE)]
    | Annotated[dict[str, TopicEntry], Field(max_length=ENTRIES_MAX), Tag(_BY_TOPIC)],
    Discriminator(_form),
]
"""`topic_mapping` of a source."""


@dataclass(frozen=True, slots=True)
class MappingEntry:
    """One entry of a mapping, as written.

    path: the way to it within the mapping. options: with canonical keys. key: the topic or pattern that it stands
    under, where entries stand by topic.
    """

    path: Path
    options: Mapping[str, Any]
    key: str | None = None


def entries_of(value: Any) -> list[MappingEntry]:
    """The entries of a valid mapping, in its order."""
    form = _form(value)
    if form == _LIST:
        return [MappingEntry((index,), with_canonical_keys(TopicEntry, entry)) for index, entry in enumerate(value)]
    if form == _ONE:
        return [MappingEntry((), with_canonical_keys(TopicEntry, value))]
    return [MappingEntry((key,), with_canonical_keys(TopicEntry, entry), key) for key, entry in value.items()]
