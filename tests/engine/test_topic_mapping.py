"""`topic_mapping`: what each of its forms is lowered to, and what is refused, with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import AliasChoices, Field

from conveyord.core.pipeline.graph import Edge, Pipeline, Stage
from conveyord.engine.contracts import Mistakes, Operator, OperatorConfig, Source
from conveyord.engine.definitions import parse_pipelines
from conveyord.engine.formatting import format_definition, hide_secrets
from conveyord.engine.json_schema import definition_schema
from conveyord.engine.problems import DefinitionError
from conveyord.engine.reference import reference_of
from conveyord.engine.registry import Registry, installed, stage_config
from conveyord.engine.topic_mapping import MAPPING_DESCRIPTION, TopicMapping


class TopicsConfig(OperatorConfig):
    """Reads topics."""

    brokers: str = "localhost:9092"
    topics: str | tuple[str, ...] = Field(default=(), validation_alias=AliasChoices("topics", "topic"))
    exclude: tuple[str, ...] = ()
    topic_mapping: TopicMapping | None = Field(default=None, description=MAPPING_DESCRIPTION)


class TopicsSource(Source):
    """The options of a kafka source, as far as mappings go."""

    Config = TopicsConfig

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mistakes:
        assert isinstance(config, TopicsConfig)
        topics = [config.topics] if isinstance(config.topics, str) else config.topics
        try:
            for topic in topics:
                re.compile(topic)
        except re.error as error:
            return {"topics": f"{topic!r} is no regular expression: {error}"}
        return {}

    async def run(self, out: Any, *, fences: Any, drain: Any) -> None:
        raise NotImplementedError


@dataclass(frozen=True)
class OwnRegistry(Registry):
    own: Mapping[str, type[Operator]] = field(default_factory=dict)

    def operator(self, kind: Any, type_name: str) -> type[Operator]:
        found = self.own.get(f"{kind}.{type_name}")
        return super().operator(kind, type_name) if found is None else found


REGISTRY = OwnRegistry({**installed().by_name, "source.kafka": ()}, {"source.kafka": TopicsSource})
HEAD = "apiVersion: conveyor.etl/v1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n"


def spec(text: str) -> str:
    return HEAD + "".join(f"  {line}\n" for line in text.strip("\n").splitlines())


def load(*texts: str) -> Pipeline:
    files = {f"{chr(ord('a') + index)}.yaml": text.encode() for index, text in enumerate(texts)}
    (pipeline,) = parse_pipelines(files, registry=REGISTRY, environ={})
    return pipeline


def refused(*texts: str) -> list[str]:
    """The problems, each as `line:column: message`, the lines counted from the start of the file."""
    with pytest.raises(DefinitionError) as caught:
        load(*texts)
    return [f"{one.line}:{one.column}: {one.message}" for one in caught.value.problems]


LIST = """
source:
  type: kafka
  name: shop
  brokers: b:9092
  exclude: [shop.internal]
  topic_mapping:
    - topics: [shop.orders]
      table: raw.orders
      sql: SELECT id FROM input_data
      partition_by: ["day(at)"]
    - topics: ["^shop[.].*", other]
      table: raw.{topic}
      commit: {every: 5s}
      provenance: true
      tables_max: 20
"""


def test_each_entry_is_a_chain_of_its_own() -> None:
    pipeline = load(spec(LIST))
    base = {"brokers": "b:9092"}
    assert {stage.name: stage for stage in pipeline.stages} == {
        stage.name: stage
        for stage in (
            Stage(
                "shop-raw.orders", "source", "kafka", {**base, "topics": ["shop.orders"], "exclude": ["shop.internal"]}
            ),
            Stage("shop-raw.orders-sql", "transform", "sql_transform", {"query": "SELECT id FROM input_data"}),
            Stage("shop-raw.orders-table", "sink", "iceberg", {"table": "raw.orders", "partition_by": ["day(at)"]}),
            Stage(
                "shop-raw.topic",
                "source",
                "kafka",
                {**base, "topics": ["^shop[.].*", "other"], "exclude": ["shop.internal", "shop.orders"]},
            ),
            Stage(
                "shop-raw.topic-tables",
                "sink",
                "iceberg_topics",
                {"table": "raw.{topic}", "commit": {"every": "5s"}, "provenance": True, "tables_max": 20},
            ),
        )
    }
    assert set(pipeline.edges) == {
        Edge("shop-raw.orders", "shop-raw.orders-sql"),
        Edge("shop-raw.orders-sql", "shop-raw.orders-table"),
        Edge("shop-raw.topic", "shop-raw.topic-tables"),
    }


def test_every_stage_that_is_made_has_options_that_its_operator_takes() -> None:
    for stage in load(spec(LIST)).stages:
        stage_config(REGISTRY.operator(stage.kind, stage.type), dict(stage.options), stage=stage.name)


def test_every_form_with_either_spelling_is_lowered_to_the_same_graph() -> None:
    entry = "{iceberg_table: lake.orders, sql_transform: SELECT 1 AS a FROM input_data, partition_by: [a]}"
    bare = f"name: p\nsources:\n  - {{id: k, type: kafka, topic: orders, topic_mapping: {entry}}}\n"
    listed = spec("source: {type: kafka, name: k, topic_mapping: [{topics: orders, table: lake.orders, "
                  "sql: SELECT 1 AS a FROM input_data, partition_by: [a]}]}")  # fmt: skip
    by_topic = spec(f"source: {{type: kafka, name: k, topic_mapping: {{orders: {entry}}}}}")
    graph = spec(f"sources: [{{type: kafka, name: k, topics: [orders], topic_mapping: {entry}}}]")
    resource = f"apiVersion: conveyor.etl/v1\nkind: Source\nmetadata: {{name: k}}\nspec: {{type: kafka, topic: orders, topic_mapping: {entry}}}\n"  # noqa: E501
    nested = f"apiVersion: conveyor.etl/v1\nkind: Source\nmetadata: {{name: k}}\nspec: {{type: kafka, config: {{topic: orders, topic_mapping: {entry}}}}}\n"  # noqa: E501
    first = load(bare)
    assert [stage.name for stage in first.stages] == ["k-lake.orders", "k-lake.orders-sql", "k-lake.orders-table"]
    named = spec("source: {type: kafka, name: k}").replace("{type: kafka, name: k}", "k")
    for texts in ([listed], [by_topic], [graph], [named, resource], [named, nested]):
        assert load(*texts) == first


def test_one_topic_decides_the_table_and_several_leave_it_to_the_sink() -> None:
    one = load(spec("source: {type: kafka, topics: [a.b-c], topic_mapping: {table: 'raw.{topic}'}}"))
    assert one.of_kind("sink") == (Stage("source-raw.a_b_c-table", "sink", "iceberg", {"table": "raw.a_b_c"}),)
    many = load(spec("source: {type: kafka, topics: [a, b], topic_mapping: {table: 'raw.{topic}'}}"))
    assert [sink.type for sink in many.of_kind("sink")] == ["iceberg_topics"]
    all_in_one = load(spec("source: {type: kafka, topics: ['^a'], topic_mapping: {table: raw.all}}"))
    assert [sink.type for sink in all_in_one.of_kind("sink")] == ["iceberg"]


def test_an_entry_without_topics_takes_what_earlier_ones_leave() -> None:
    pipeline = load(
        spec("""
source:
  type: kafka
  topics: ["^shop.*"]
  topic_mapping:
    - {topics: shop1, table: raw.one}
    - {topics: [shop2, shop3], table: "raw.x_{topic}", name: rest}
    - {table: "raw.{topic}"}
""")
    )
    found = [(one.name, one.options["topics"], one.options.get("exclude")) for one in pipeline.of_kind("source")]
    assert found == [
        ("source-raw.one", ["shop1"], None),
        ("source-rest", ["shop2", "shop3"], ["shop1"]),
        ("source-raw.topic", ["^shop.*"], ["shop1", "shop2", "shop3"]),
    ]  # fmt: skip


def test_an_entry_that_is_put_before_others_renames_none() -> None:
    entries = [{"topics": f"t{number}", "table": f"raw.t{number}"} for number in range(3)]

    def names(some: list[dict[str, str]]) -> set[str]:
        text = spec(f"source: {{type: kafka, topic_mapping: {json.dumps(some)}}}")
        return {stage.name for stage in load(text).stages}

    assert names(entries[1:]) < names(entries)
    assert names(entries[::-1]) == names(entries)


def test_several_sources_may_map_topics_and_bad_records_may_have_a_sink() -> None:
    pipeline = load(
        spec("""
sources:
  - {type: kafka, name: eu, topics: ["^a"], topic_mapping: {table: "eu.{topic}"}}
  - {type: kafka, name: us, topics: ["^a"], topic_mapping: {table: "us.{topic}"}}
sinks: [{type: iceberg, name: rejected, table: raw.rejected}]
dlq: {sink: rejected}
""")
    )
    assert {stage.name for stage in pipeline.stages} == {
        "eu-eu.topic", "eu-eu.topic-tables", "us-us.topic", "us-us.topic-tables", "rejected",
    }  # fmt: skip
    assert pipeline.dlq is not None
    assert pipeline.dlq.sink == "rejected"
    inline = load(
        spec("""
source: {type: kafka, topics: a, topic_mapping: {table: raw.a}}
dlq: {sink: {type: stdout_pretty}}
""")
    )
    assert inline.dlq is not None
    assert inline.dlq.sink == "dead-letters"


NO_COPIES = (
    "iceberg_topics cannot be the sink of dlq: copies of dead letters are of no topic, so there is no table for them; "
    "let dlq.sink be a sink iceberg"
)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            """
source: {type: kafka, topics: a, topic_mapping: {table: raw.a}}
dlq:
  sink: {type: iceberg_topics, table: "x.{topic}"}
""",
            "7:18",
        ),
        (
            """
sources: [{type: kafka, topics: a, name: a}]
sinks: [{type: iceberg_topics, name: rows, table: "x.{topic}"}, {type: iceberg_topics, name: bad, table: "y.{topic}"}]
edges: [[a, rows]]
dlq: {sink: bad}
""",
            "8:15",
        ),
    ],
)
def test_copies_of_dead_letters_need_one_table(text: str, place: str) -> None:
    assert refused(spec(text)) == [f"{place}: {NO_COPIES}"]


def test_copies_of_dead_letters_need_one_table_in_a_resource_too() -> None:
    resource = (
        "apiVersion: conveyor.etl/v1\nkind: Sink\nmetadata: {name: bad}\n"
        "spec: {type: iceberg_topics, table: 'y.{topic}'}\n"
    )
    pipeline = spec("source: {type: kafka, topics: a, topic_mapping: {table: raw.a}}\ndlq: {sink: bad}")
    assert refused(pipeline, resource) == [f"6:15: {NO_COPIES}"]


def test_a_frozen_schema_agrees_with_an_entry_that_does_not_evolve() -> None:
    pipeline = load(
        spec("""
schema: {columns: freeze, types: freeze}
source: {type: kafka, topics: a, topic_mapping: {table: raw.a, auto_schema_evolution: false}}
""")
    )
    assert pipeline.schema.columns == "freeze"
    assert load(spec("source: {type: kafka, topics: a, topic_mapping: {table: raw.a, auto_schema_evolution: true}}"))


def source(options: str) -> str:
    return spec(f"source: {{type: kafka, {options}}}")


FROZEN = "schemas are frozen for a whole pipeline; write schema: {columns: freeze, types: freeze} beside 'source'"
OF_A_CATALOG = "belongs to a catalog; describe it in conveyord.toml with its store (docs/catalogs.md), and "
OF_A_CATALOG += "write catalog: NAME here"
REFUSED = {
    "own stages": (
        spec(
            "source: {type: kafka, topics: a, topic_mapping: {table: raw.a}}\nsteps: [{type: passthrough}]\n"
            "sink: {type: stdout_pretty}"
        ),
        [
            "6:3: 'topic_mapping' of the source writes to tables by itself; remove 'steps', or 'topic_mapping'",
            "7:3: 'topic_mapping' of the source writes to tables by itself; remove 'sink', or 'topic_mapping'",
        ],
    ),
    "own edges": (
        (
            "name: p\nsources: [{id: k, type: kafka, topic: a, topic_mapping: {table: raw.a}}]\n"
            "sinks: [{id: s, type: stdout_pretty}]\nedges: [[k, s]]\n"
        ),
        [
            "3:1: 'topic_mapping' of the source writes to tables by itself; remove 'sinks', or 'topic_mapping'",
            "4:1: 'topic_mapping' of the source writes to tables by itself; remove 'edges', or 'topic_mapping'",
        ],
    ),
    "another source": (
        spec(
            "sources:\n  - {type: kafka, topics: a, topic_mapping: {table: raw.a}}\n"
            "  - {type: kafka, name: x, topics: b}\n"
            "sinks: [{type: iceberg, table: a.b}]"
        ),
        [
            "7:7: 'x' maps no topics, and another source does; put it into a pipeline of its own",
            "8:3: 'topic_mapping' of the source writes to tables by itself; remove 'sinks', or 'topic_mapping'",
        ],
    ),
    "no table": (
        source("topics: a, topic_mapping: {sql: SELECT 1}"),
        ["5:36: the key 'table' is missing in 'topic_mapping'"],
    ),
    "no namespace": (
        source("topics: a, topic_mapping: {iceberg_table: user_events}"),
        ["5:67: the table 'user_events' has no namespace; write such as raw.user_events"],
    ),
    "misspelt": (
        source("topics: a, topic_mapping: [{table: raw.a, partitionby: [x]}]"),
        ["5:67: unknown key 'partitionby'; did you mean 'partition_by'?"],
    ),
    "by topic, misspelt": (
        source("topic_mapping: {orders: {tabel: raw.a}}"),
        [
            "5:41: the key 'table' is missing in 'orders'",
            "5:50: unknown key 'tabel'; did you mean 'table'?",
        ],
    ),
    "wrong type": (
        source("topics: a, topic_mapping: [5]"),
        ["5:52: item 1 of 'topic_mapping' must be a mapping, got 5"],
    ),
    "no entries": (
        source("topics: a, topic_mapping: []"),
        ["5:51: 'topic_mapping' needs at least one entry, got none"],
    ),
    "no topics": (
        source("topic_mapping: {table: raw.a}"),
        ["5:40: no topics are given; add 'topics' to the entry, or to the source for all its entries"],
    ),
    "bad SQL": (
        source("topics: a, topic_mapping: {table: raw.a, sql_transform: DROP TABLE x}"),
        None,
    ),
    "bad pattern": (
        source("topic_mapping: {topics: ['^(a'], table: raw.a}"),
        ["5:49: '^(a' is no regular expression: missing ), unterminated subpattern at position 1"],
    ),
    "taken": (
        source("topic_mapping: [{topics: ['^a.*'], table: raw.a}, {topics: [ab], table: raw.b}]"),
        ["5:84: an earlier entry takes 'ab'; put this one before it, or remove the topic"],
    ),
    "nothing left": (
        source("topics: [a, b], topic_mapping: [{table: raw.a}, {table: raw.b}]"),
        ["5:73: nothing is left for this entry: an earlier one takes all topics of the source; put this first"],
    ),
    "not offered": (
        source("topics: ['^a.*'], topic_mapping: [{topics: b, table: raw.a}]"),
        ["5:68: the source's 'topics' do not cover 'b'; add it there, or leave 'topics' to the entries"],
    ),
    "excluded": (
        source("exclude: ['^a.*'], topic_mapping: [{topics: [ab, b], table: raw.a}]"),
        ["5:69: the source's 'exclude' leaves out 'ab'; remove it from one of the two"],
    ),
    "one table, many": (
        source("topics: [a], topic_mapping: {table: 'raw.{topic}', tables_max: 5}"),
        ["5:88: there is one table, raw.a, so this means nothing; remove it, or put {topic} into 'table'"],
    ),
    "one table": (
        source(
            "topic_mapping: [{topics: ['^a'], table: 'raw.{topic}'}, {topics: ['^b'], iceberg_table: 'raw.{topic}'}]"
        ),
        ["5:113: entry 1 writes to raw.{topic} too; put their topics into one entry, or give one another table"],
    ),
    "one name": (
        source("topic_mapping: [{topics: a, table: raw.a, name: x}, {topics: b, table: raw.b, name: x}]"),
        ["5:77: entry 1 is named 'x' too; give one of them another 'name'"],
    ),
    "two topics": (
        source("topic_mapping: {a: {topics: b, table: raw.a}}"),
        ["5:53: the entry stands under its topic, 'a'; remove 'topics', or make the mapping a list"],
    ),
    "evolution": (
        source("topics: a, topic_mapping: {table: raw.a, auto_schema_evolution: false}"),
        [f"5:89: {FROZEN}"],
    ),
    "contradiction": (
        source("topics: a, topic_mapping: {table: raw.a, auto_schema_evolution: true}")
        + "  schema: {columns: freeze}\n",
        ["5:89: the pipeline's 'schema' says freeze for columns and evolve for types; remove one"],
    ),
    "store": (
        source("topics: a, topic_mapping: {table: raw.a, bucket: lake, secret_key: minioadmin}"),
        [
            f"5:74: 'bucket' {OF_A_CATALOG}",
            f"5:92: 'secret_key' {OF_A_CATALOG}",
        ],
    ),
    "long name": (
        source(f"topics: a, topic_mapping: {{table: raw.{'x' * 120}}}"),
        ["5:51: the entry needs a 'name' of its own: a name has at most 128 characters, this one has 137"],
    ),
    "another kind of source": (
        spec("source: {type: file_jsonl, path: x, topic_mapping: {table: raw.a}}"),
        ["5:39: 'topic_mapping': topics are mapped by a kafka source; write it there, or a sink for each table"],
    ),
    "beside the source": (
        spec("source: {type: kafka, topics: a}\nsink: {type: stdout_pretty}\ntopic_mapping: {table: raw.a}"),
        ["7:3: 'topic_mapping': topics are mapped by a kafka source; write it there, or a sink for each table"],
    ),
    "no sink": (source("topics: a"), ["4:1: the key 'sink' is missing in 'spec'"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_is_refused_where_it_stands(case: str) -> None:
    text, expected = REFUSED[case]
    found = refused(text)
    if expected is None:
        assert [one.partition(": ")[0] for one in found] == ["5:81"]
    else:
        assert found == expected


def test_a_source_without_tables_in_a_pipeline_without_a_sink_is_found_by_its_name() -> None:
    plain = "apiVersion: conveyor.etl/v1\nkind: Source\nmetadata: {name: k}\nspec: {type: kafka, topics: a}\n"
    assert refused(spec("source: k"), plain) == ["4:1: the key 'sink' is missing in 'spec'"]
    assert refused("name: p\nsources: [default/k]\n", plain) == ["1:1: the key 'sinks' is missing in the pipeline"]


def test_what_is_wrong_in_a_resource_is_told_there() -> None:
    with_mapping = "apiVersion: conveyor.etl/v1\nkind: Source\nmetadata: {name: k}\nspec:\n  type: kafka\n"
    with_mapping += "  config:\n    topics: a\n    topic_mapping:\n      - {table: raw.a, region: eu}\n"
    with pytest.raises(DefinitionError) as caught:
        load(spec("source: k"), with_mapping)
    (problem,) = caught.value.problems
    assert (problem.path, problem.line, problem.column) == ("b.yaml", 9, 32)


# ------------------------------------------------------------------------------ what is generated


def test_secrets_of_an_entry_are_shown_nowhere() -> None:
    entry = "{table: raw.a, secret_key: t0psecret, catalog: {uri: 'http://x', token: t0psecret}, tabel: x}"
    for mapping in (entry, f"[{entry}]", f"{{a: {entry}}}"):
        text = source(f"topics: a, topic_mapping: {mapping}")
        with pytest.raises(DefinitionError) as caught:
            load(text)
        assert "t0psecret" not in str(caught.value)
        assert "t0psecret" not in hide_secrets(text, REGISTRY)


def test_the_canonical_form_has_our_spelling_and_means_the_same() -> None:
    bare = "name: p\nsources: [{id: k, type: kafka, topic: orders, topic_mapping: [{iceberg_table: lake.orders, sql_transform: SELECT a FROM input_data}]}]\n"  # noqa: E501
    made = format_definition(bare.encode(), "p.yaml", REGISTRY)
    assert "table: lake.orders" in made
    assert "sql: SELECT a" in made
    assert load(made) == load(bare)
    assert format_definition(made.encode(), "p.yaml", REGISTRY) == made


SCHEMA = Draft202012Validator(definition_schema(REGISTRY))


def complaints(text: str) -> list[str]:
    return [f"{error.json_path}: {error.message}" for error in SCHEMA.iter_errors(yaml.safe_load(text))]


def test_the_schema_takes_what_loads() -> None:
    assert complaints(spec(LIST)) == []
    assert complaints("name: p\nsources: [{id: k, type: kafka, topic: a, topic_mapping: {iceberg_table: l.o}}]") == []
    assert complaints(spec("source: {type: kafka, topic_mapping: {a: {table: l.o}, ^b: {table: 'l.{topic}'}}}")) == []
    assert complaints(spec("source: k")) == []


@pytest.mark.parametrize("case", ["no table", "misspelt", "wrong type", "store", "no sink", "another kind of source"])
def test_the_schema_refuses_what_a_schema_can(case: str) -> None:
    assert complaints(REFUSED[case][0])


def test_the_reference_has_the_option() -> None:
    (option,) = [one for one in reference_of(REGISTRY, "source", "kafka").options if one.key == "topic_mapping"]
    assert not option.required
    assert "docs/kafka-topics.md" in option.description


# ------------------------------------------------------------------------------ any mapping

TOPIC = st.from_regex(r"[a-c][.-]?[0-2]", fullmatch=True)
ENTRY = st.fixed_dictionaries(
    {
        "topics": st.one_of(
            TOPIC, st.lists(st.one_of(TOPIC, st.sampled_from(["^a.*", "^[bc]"])), min_size=1, max_size=3)
        )
    },
    optional={"sql": st.just("SELECT 1 AS a FROM input_data"), "name": st.sampled_from(["x", "y"])},
)


@given(st.lists(st.tuples(ENTRY, st.sampled_from(["raw.all", "raw.{topic}", "eu.{topic}"])), min_size=1, max_size=4))
def test_whatever_the_entries_a_topic_is_read_by_the_first_that_takes_it_or_all_is_refused(
    entries: list[tuple[dict[str, Any], str]],
) -> None:
    given_entries = [{**entry, "table": table} for entry, table in entries]
    text = spec(f"source: {{type: kafka, topic_mapping: {json.dumps(given_entries)}}}")
    try:
        pipeline = load(text)
    except DefinitionError:
        return
    sources = pipeline.of_kind("source")
    assert len(sources) == len(given_entries)
    assert len({json.dumps(sink.options, sort_keys=True) for sink in pipeline.of_kind("sink")}) == len(sources)

    def takes(patterns: list[str], topic: str) -> bool:
        return any(re.fullmatch(one if one.startswith("^") else re.escape(one), topic) for one in patterns)

    for topic in (f"{letter}{mark}{number}" for letter in "abc" for mark in ("", ".", "-") for number in "012"):
        readers = [
            number
            for number, stage in enumerate(sources)
            if takes(stage.options["topics"], topic) and not takes(stage.options.get("exclude", []), topic)
        ]
        wanted = [
            number
            for number, entry in enumerate(given_entries)
            if takes([entry["topics"]] if isinstance(entry["topics"], str) else entry["topics"], topic)
        ]
        assert readers == wanted[:1]


PAGE = Path(__file__).resolve().parents[2] / "docs" / "kafka-topics.md"
EXAMPLES = re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda text: text.splitlines()[0])
def test_an_example_of_the_documentation_loads(example: str) -> None:
    assert load(example).edges


def test_the_documentation_has_examples() -> None:
    assert len(EXAMPLES) >= 3
