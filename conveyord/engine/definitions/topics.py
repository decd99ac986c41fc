"""Makes stages of a source's `topic_mapping`: for every entry a source, perhaps a query, and a sink.

Stages are named after the source and the entry, never after the entry's number: positions are kept by the name of
the source, and an entry that is put before others must not rename those.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from conveyord.core.pipeline.graph import SchemaContract, Stage
from conveyord.core.pipeline.manifest import MAPPING
from conveyord.core.pipeline.stages import check_name
from conveyord.core.pipeline.table_template import PLACEHOLDER, TableTemplate
from conveyord.engine.definitions.operators import OperatorChecks
from conveyord.engine.definitions.written import Written, value_at
from conveyord.engine.model_keys import spellings
from conveyord.engine.registry import validate_options
from conveyord.engine.topic_mapping import STORE_KEYS, MappingEntry, TopicEntry, entries_of
from conveyord.engine.yaml_source import Path

_OWN_KEYS = frozenset({"topics", "name", "sql", "auto_schema_evolution", *STORE_KEYS})
"""Keys of an entry that are no options of its sink."""

_CHECKED = {"topics": "topics", "query": "sql", "table": "table", "partition_by": "partition_by"}
"""Options of the stages of an entry to its own: the others stand beside the mapping, and were checked there."""

Report = Callable[[Path, str], None]
"""Takes what is wrong at a way within a mapping, its keys canonical."""


@dataclass(frozen=True, slots=True)
class WrittenMapping:
    """A mapping where it was written. is_abroad: in another resource than the pipeline's."""

    written: Written
    path: Path
    is_abroad: bool

    def place(self, within: Path) -> Path:
        """The way to a value of the mapping, whose last key is canonical, as it is spelled."""
        *above, last = (*self.path, *within)
        entry = value_at(self.written.value, tuple(above))
        if not within or not isinstance(entry, dict) or last in entry:
            return (*self.path, *within)
        others = (key for key in entry if spellings(TopicEntry).get(key) == last)
        return (*above, next(others, last))

    def report(self, within: Path, message: str) -> None:
        """Remember what is wrong with a value of the mapping."""
        self.written.at(self.place(within), message)

    def check(self, chain: Chain, operators: OperatorChecks) -> None:
        """Remember what the operators of a chain say of its topics and its query."""
        for stage in chain.stages:
            operator = operators.find(stage.kind, stage.type)
            if isinstance(operator, str):
                self.report(chain.path, operator)
                continue
            try:
                config = validate_options(operator, dict(stage.options))
            except ValidationError as error:
                reasons = "; ".join(detail["msg"] for detail in error.errors(include_input=False))
                self.report(chain.path, f"the {stage.kind} {stage.type} of this entry: {reasons}")
                continue
            for key, mistake in operator.mistakes(config).items():
                first = key if isinstance(key, str) else key[0]
                if first in _CHECKED:
                    self.report((*chain.path, _CHECKED[str(first)]), mistake)


@dataclass(frozen=True, slots=True)
class Chain:
    """The stages of one entry, each leading to the next. path: the way to the entry within the mapping."""

    stages: tuple[Stage, ...]
    path: Path


def chains_of(source: Stage, contract: SchemaContract, report: Report) -> list[Chain]:
    """The stages that stand for `source`, whose mapping is valid. What else is wrong with it is reported.

    contract: the pipeline's, which is that of every sink.
    """
    declared = {key: value for key, value in source.options.items() if key != MAPPING}
    entries = entries_of(source.options[MAPPING])
    offered = _listed(declared.get("topics"))
    names: dict[str, int] = {}
    places: dict[tuple[str, str], int] = {}
    taken: list[str] = []
    chains: list[Chain] = []
    if not entries:
        report((), f"{MAPPING!r} needs at least one entry, got none")
    for number, entry in enumerate(entries, 1):
        topics = _topics_of(entry, offered, report)
        _check_taken(entry, topics, taken, offered, report)
        _check_excluded(entry, topics, _listed(declared.get("exclude")), report)
        _check_contract(entry, contract, report)
        _check_store(entry, report)
        table = _table_of(entry.options["table"], topics)
        if TableTemplate(table).is_fixed and entry.options.get("tables_max") is not None:
            message = (
                f"there is one table, {table}, so this means nothing; remove it, or put {PLACEHOLDER} into 'table'"
            )
            report((*entry.path, "tables_max"), message)
        place = (table, str(entry.options.get("catalog", TopicEntry.model_fields["catalog"].default)))
        if (other := places.setdefault(place, number)) != number:
            message = f"entry {other} writes to {table} too; put their topics into one entry, or give one another table"
            report((*entry.path, "table"), message)
        name = entry.options.get("name") or _slug(table)
        if (other := names.setdefault(name, number)) != number and places[place] == number:
            report(entry.path, f"entry {other} is named {name!r} too; give one of them another 'name'")
        chains.append(Chain(tuple(_stages(source, declared, entry, topics, taken, name=name, table=table)), entry.path))
        try:
            check_name(max((stage.name for stage in chains[-1].stages), key=len))
        except ValueError as error:
            report(entry.path, f"the entry needs a 'name' of its own: {error}")
        taken = [*taken, *topics]
    return chains


def _stages(
    source: Stage,
    declared: Mapping[str, Any],
    entry: MappingEntry,
    topics: Sequence[str],
    taken: Sequence[str],
    *,
    name: str,
    table: str,
) -> Iterator[Stage]:
    exclude = [*_listed(declared.get("exclude")), *taken]
    options = {**declared, "topics": list(topics), **({"exclude": exclude} if exclude else {})}
    yield Stage(f"{source.name}-{name}", "source", source.type, options)
    if entry.options.get("sql") is not None:
        yield Stage(f"{source.name}-{name}-sql", "transform", "sql_transform", {"query": entry.options["sql"]})
    sink = {key: value for key, value in entry.options.items() if key not in _OWN_KEYS and value is not None}
    if TableTemplate(table).is_fixed:
        sink.pop("tables_max", None)  # has been refused
        yield Stage(f"{source.name}-{name}-table", "sink", "iceberg", {**sink, "table": table})
    else:
        yield Stage(f"{source.name}-{name}-tables", "sink", "iceberg_topics", {**sink, "table": table})


def _listed(topics: Any) -> list[str]:
    return [topics] if isinstance(topics, str) else list(topics or ())


def _is_pattern(topic: str) -> bool:
    return topic.startswith("^")


def _topics_of(entry: MappingEntry, offered: Sequence[str], report: Report) -> list[str]:
    """What an entry takes, of what the source offers if it says so."""
    if entry.key is not None and "topics" in entry.options:
        message = f"the entry stands under its topic, {entry.key!r}; remove 'topics', or make the mapping a list"
        report((*entry.path, "topics"), message)
    own = [entry.key] if entry.key is not None else _listed(entry.options.get("topics"))
    if not own and not offered:
        report(entry.path, "no topics are given; add 'topics' to the entry, or to the source for all its entries")
    for topic in own:
        if offered and not _is_offered(topic, offered):
            message = f"the source's 'topics' do not cover {topic!r}; add it there, or leave 'topics' to the entries"
            report(_at_topics(entry), message)
    return own or list(offered)


def _is_offered(topic: str, offered: Sequence[str]) -> bool:
    return topic in offered or (not _is_pattern(topic) and any(_matches(pattern, topic) for pattern in offered))


def _matches(pattern: str, topic: str) -> bool:
    """Whether a pattern surely takes a topic: it matches the whole of its name."""
    try:
        return _is_pattern(pattern) and re.fullmatch(pattern, topic) is not None
    except re.error:  # the source says so
        return False


def _check_taken(
    entry: MappingEntry, topics: Sequence[str], taken: Sequence[str], offered: Sequence[str], report: Report
) -> None:
    """An entry that can get nothing, or not what it names, is a mistake in the order of the entries."""
    if offered and set(offered) <= set(taken) and topics == list(offered):
        report(
            entry.path, "nothing is left for this entry: an earlier one takes all topics of the source; put this first"
        )
        return
    for topic in topics:
        if topic in taken or (not _is_pattern(topic) and any(_matches(pattern, topic) for pattern in taken)):
            report(_at_topics(entry), f"an earlier entry takes {topic!r}; put this one before it, or remove the topic")


def _check_excluded(entry: MappingEntry, topics: Sequence[str], excluded: Sequence[str], report: Report) -> None:
    for topic in topics:
        if topic in excluded or (not _is_pattern(topic) and any(_matches(pattern, topic) for pattern in excluded)):
            report(_at_topics(entry), f"the source's 'exclude' leaves out {topic!r}; remove it from one of the two")


def _at_topics(entry: MappingEntry) -> Path:
    return entry.path if entry.key is not None or "topics" not in entry.options else (*entry.path, "topics")


def _check_contract(entry: MappingEntry, contract: SchemaContract, report: Report) -> None:
    """Tables of one pipeline have one contract; an entry can only agree with it."""
    evolves = entry.options.get("auto_schema_evolution")
    is_frozen = contract.columns == contract.types == "freeze"
    if evolves is False and not is_frozen:
        message = (
            "schemas are frozen for a whole pipeline; write schema: {columns: freeze, types: freeze} beside 'source'"
        )
        report((*entry.path, "auto_schema_evolution"), message)
    elif evolves is True and (contract.columns, contract.types) != ("evolve", "evolve"):
        message = (
            f"the pipeline's 'schema' says {contract.columns} for columns and {contract.types} for types; remove one"
        )
        report((*entry.path, "auto_schema_evolution"), message)


def _check_store(entry: MappingEntry, report: Report) -> None:
    """Where files lie is a catalog's matter."""
    for key in STORE_KEYS:
        if key in entry.options:
            message = (
                f"{key!r} belongs to a catalog; describe it in conveyord.toml with its store (docs/catalogs.md), and "
                "write catalog: NAME here"
            )
            report((*entry.path, key), message)


def _table_of(template: str, topics: Sequence[str]) -> str:
    """The template; the table itself where that can be known, because there is one topic."""
    if len(topics) == 1 and not _is_pattern(topics[0]):
        return TableTemplate(template).table_of(topics[0])
    return template


def _slug(table: str) -> str:
    """A part of a stage's name for a table."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", table.replace(PLACEHOLDER, "topic")).strip("._-") or "table"
