"""The `tests:` of pipelines: real stages between given and expected rows, exact comparison, nothing outside touched."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.core.pipeline.graph import DeadLetterPolicy, Edge, Pipeline, PipelineTest, Stage
from conveyord.core.pipeline.trial import trial_of
from conveyord.engine.contracts import Inbound, Operator, OperatorConfig, Outbound, Sink, Source, Transform
from conveyord.engine.registry import Registry, installed
from conveyord.engine.testing import OutputVerdict, Verdict, run_tests
from conveyord.engine.testing.alignment import aligned
from conveyord.engine.testing.comparing import Row, compared, compared_letters
from conveyord.engine.testing.values import json_rows, same, types_of

QUERY = "SELECT id, 100 / (qty - 7) AS q, country FROM input_data"
FAN = Pipeline(
    namespace="default",
    name="fan",
    stages=(
        Stage("in", "source", "file_jsonl", {"path": "/nowhere/*.jsonl"}),
        Stage("keep", "transform", "filter", {"when": "qty > 5"}),
        Stage("calc", "transform", "sql_transform", {"query": QUERY}),
        Stage("all", "sink", "iceberg", {"table": "b.all"}),
        Stage("fr", "sink", "iceberg", {"table": "b.fr"}),
        Stage("rest", "sink", "iceberg", {"table": "b.rest"}),
        Stage("small", "sink", "iceberg", {"table": "b.small"}),
        Stage("dead", "sink", "iceberg", {"table": "b.dead"}),
    ),
    edges=(
        Edge("in", "all"),
        Edge("in", "keep"),
        Edge("keep", "calc"),
        Edge("calc", "fr", when="country = 'FR'"),
        Edge("calc", "rest", otherwise=True, on_slow="spill"),
        Edge("keep", "small", output="dropped"),
    ),
    dlq=DeadLetterPolicy(sink="dead"),
)
LINE = Pipeline(
    "default",
    "line",
    (
        Stage("source", "source", "file_jsonl", {"path": "x"}),
        Stage("calc", "transform", "sql_transform", {"query": QUERY}),
        Stage("sink", "sink", "iceberg", {"table": "a.b"}),
    ),
    (Edge("source", "calc"), Edge("calc", "sink")),
)


def row(number: int, qty: int, country: str = "FR") -> dict[str, Any]:
    return {"id": number, "qty": qty, "country": country}


def ran(pipeline: Pipeline, given: dict[str, Any], expect: dict[str, Any], registry: Registry | None = None) -> Verdict:
    test = PipelineTest("a test", given, expect)

    async def work() -> list[Verdict]:
        return await run_tests([(pipeline, test)], registry or installed(), threads=1)

    (verdict,) = trio.run(work)
    return verdict


def output(verdict: Verdict, name: str) -> OutputVerdict:
    assert verdict.error is None, verdict.error
    return next(output for output in verdict.outputs if output.output == name)


# ------------------------------------------------------------------------------ what runs


def test_rows_take_every_way_that_the_graph_has() -> None:
    rows = [row(1, 8), row(2, 9, "DE"), row(3, 7), row(4, 1)]
    verdict = ran(
        FAN,
        {"in": rows},
        {
            "in": rows,
            "all": rows,
            "keep": rows[:3],
            "keep.dropped": rows[3:],
            "small": rows[3:],
            "calc": [{"id": 1, "q": 100, "country": "FR"}, {"id": 2, "q": 50, "country": "DE"}],
            "fr": [{"id": 1, "q": 100, "country": "FR"}],
            "rest": [{"id": 2, "q": 50, "country": "DE"}],
            "dead_letters": [{"stage": "calc", "code": "BATCH_FAILED", "message": "divide", "row": row(3, 7)}],
        },
    )
    assert verdict.passed, verdict


ROWS = st.lists(st.tuples(st.integers(1, 12), st.sampled_from(["FR", "DE", None])), max_size=8)


@settings(max_examples=60)  # each one puts dead letters on disk, twice
@given(drawn=ROWS, at=st.integers(0, 7))
def test_any_rows_come_out_as_a_reading_of_the_definition_says(drawn: list[tuple[int, str | None]], at: int) -> None:
    rows = [{"id": number, "qty": qty, "country": country} for number, (qty, country) in enumerate(drawn)]
    # A first row that goes to `small` says what the types are, whatever else is drawn.
    rows = [row(-1, 0), *rows]
    good = [one for one in rows if one["qty"] > 5 and one["qty"] != 7]
    made = [{"id": one["id"], "q": int(100 / (one["qty"] - 7)), "country": one["country"]} for one in good]
    expect = {
        "fr": [one for one in made if one["country"] == "FR"],
        "rest": [one for one in made if one["country"] != "FR"],
        "small": [one for one in rows if one["qty"] <= 5],
        "dead": [{"row": one} for one in rows if one["qty"] == 7],
    }
    assert ran(FAN, {"in": rows}, expect).passed
    if made:
        wrong = {**made[at % len(made)], "q": 1_000}
        assert not ran(FAN, {"in": rows}, {"calc": [*made[: at % len(made)], wrong], "dead": expect["dead"]}).passed


def test_otherwise_means_the_same_when_nothing_else_is_expected() -> None:
    rows = [row(1, 8), row(2, 9, "DE")]
    assert ran(FAN, {"calc": rows}, {"rest": [{"id": 2, "q": 50, "country": "DE"}]}).passed


def test_rows_given_to_a_stage_are_all_that_arrives_there() -> None:
    verdict = ran(FAN, {"in": [row(1, 9)], "calc": [row(2, 8)]}, {"calc": [{"id": 2, "q": 100, "country": "FR"}]})
    assert verdict.passed, verdict
    assert ran(FAN, {"in": [row(1, 9)], "small": [row(2, 8)]}, {"small": [row(2, 8)], "in": [row(1, 9)]}).passed


def test_only_what_leads_to_an_expected_row_runs() -> None:
    trial = trial_of(FAN, PipelineTest("a", {"calc": [row(1, 8)]}, {"rest": []}))
    assert [stage.name for stage in trial.pipeline.stages] == ["given to calc", "calc", "rest", "beside 1"]
    trial = trial_of(FAN, PipelineTest("a", {"calc": [row(1, 8)]}, {"rest": [], "dead_letters": []}))
    assert [stage.name for stage in trial.pipeline.stages] == ["given to calc", "calc", "fr", "rest"]
    trial = trial_of(FAN, PipelineTest("a", {"in": []}, {"keep": []}))
    assert [stage.name for stage in trial.pipeline.stages] == ["in", "keep", "expected of keep"]
    assert all(edge.on_slow == "block" for edge in trial.pipeline.edges)


def test_a_condition_that_leads_away_from_the_expected_rows_is_not_asked() -> None:
    """Given rows need only the columns that matter: `country` is missing here."""
    pipeline = replace(LINE, edges=(Edge("source", "calc"), Edge("calc", "sink", when="country = 'FR'")))
    pipeline = replace(
        pipeline,
        stages=tuple(replace(s, type="passthrough", options={}) if s.name == "calc" else s for s in pipeline.stages),
    )
    assert ran(pipeline, {"calc": [{"id": 1}]}, {"calc": [{"id": 1}]}).passed


def test_sources_come_together_in_the_order_of_the_definition() -> None:
    two = Pipeline(
        "default",
        "two",
        (
            Stage("a", "source", "file_jsonl", {"path": "a"}),
            Stage("b", "source", "file_jsonl", {"path": "b"}),
            Stage("c", "source", "file_jsonl", {"path": "c"}),
            Stage("slow", "transform", "json_flatten"),
            Stage("sink", "sink", "iceberg", {"table": "a.b"}),
        ),
        (Edge("b", "sink"), Edge("a", "slow"), Edge("slow", "sink"), Edge("c", "sink")),
    )
    verdict = ran(two, {"b": [{"n": 3}], "a": [{"n": 1}, {"n": 2}]}, {"sink": [{"n": 1}, {"n": 2}, {"n": 3}], "c": []})
    assert verdict.passed, verdict


def test_branches_of_one_source_come_together_in_the_order_of_the_edges() -> None:
    diamond = replace(
        FAN,
        stages=(*FAN.stages[:2], Stage("sink", "sink", "iceberg", {"table": "a.b"})),
        edges=(Edge("in", "keep"), Edge("keep", "sink", output="dropped"), Edge("keep", "sink", when="country = 'FR'")),
        dlq=None,
    )
    given = {"in": [row(1, 8), row(2, 1), row(3, 9, "DE"), row(4, 2)]}
    assert ran(diamond, given, {"sink": [row(2, 1), row(4, 2), row(1, 8)]}).passed


# ------------------------------------------------------------------------------ what is not touched


@dataclass(frozen=True)
class _Point:
    """An entry point to a class of this file."""

    name: str
    loaded: type[Operator]
    value: str = "here"

    def load(self) -> type[Operator]:
        return self.loaded


class _Untouchable:
    Config = OperatorConfig
    delivery = "exactly-once"

    def __init__(self, *_: object) -> None:
        raise AssertionError("a test constructed a real source or sink")


class UntouchableSource(_Untouchable, Source):
    async def run(self, out: Any, **_: Any) -> None: ...


class UntouchableSink(_Untouchable, Sink):
    async def open(self) -> None: ...
    async def run(self, inbound: Inbound) -> None: ...
    def report(self) -> Any: ...


class Waiting(Transform):
    Config = OperatorConfig

    async def run(self, inbound: Inbound, outbound: Outbound) -> None:
        await trio.sleep_forever()


def with_types(**types: type[Operator]) -> Registry:
    points = {name.replace("_", "."): (_Point(name, loaded),) for name, loaded in types.items()}
    return Registry({**installed().by_name, **points})  # type: ignore[dict-item]


def test_real_sources_and_sinks_are_never_constructed() -> None:
    kinds = {"source": "x", "sink": "x"}
    stages = tuple(replace(stage, type=kinds.get(stage.kind, stage.type)) for stage in LINE.stages)
    registry = with_types(source_x=UntouchableSource, sink_x=UntouchableSink)
    expect = {"sink": [{"id": 1, "q": 100, "country": "FR"}], "source": [row(1, 8)]}
    assert ran(replace(LINE, stages=stages), {"source": [row(1, 8)]}, expect, registry).passed


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert not ran(FAN, {"in": [row(3, 7)]}, {"rest": []}).passed  # the dead letter was on disk
    assert list(tmp_path.iterdir()) == []


async def test_a_test_that_hangs_fails(autojump_clock: trio.testing.MockClock) -> None:
    stages = tuple(replace(s, type="x", options={}) if s.name == "calc" else s for s in LINE.stages)
    test = PipelineTest("a", {"source": [row(1, 8)]}, {"calc": []})
    registry = with_types(transform_x=Waiting)
    (verdict,) = await run_tests([(replace(LINE, stages=stages), test)], registry, threads=1)
    assert (verdict.code, verdict.passed) == ("TIMEOUT", False)


# ------------------------------------------------------------------------------ what fails


def test_a_bad_row_without_dlq_fails_the_test_with_its_reason() -> None:
    verdict = ran(LINE, {"source": [row(1, 8), row(3, 7)]}, {"sink": []})
    assert not verdict.passed
    assert verdict.code == "BATCH_FAILED"
    assert verdict.error is not None
    assert verdict.error.startswith("stage calc: sql_transform.query failed on a value")
    assert "bytes" not in verdict.error


def test_dead_letters_that_are_not_expected_fail_the_test() -> None:
    verdict = ran(FAN, {"calc": [row(3, 7)]}, {"calc": []})
    assert output(verdict, "calc").passed
    (unexpected,) = output(verdict, "dead_letters").differences
    assert unexpected.kind == "unexpected"
    assert output(verdict, "dead_letters").got[0]["row"] == row(3, 7)


def test_a_condition_that_fails_on_a_row_is_a_dead_letter_of_the_edge() -> None:
    edges = tuple(replace(edge, when="100 / (q - 50) > 0") if edge.target == "fr" else edge for edge in FAN.edges)
    rows = [row(1, 8), row(2, 9)]
    letter = {"stage": "calc/edges", "row": {"id": 2, "q": 50, "country": "FR"}}
    verdict = ran(
        replace(FAN, edges=edges), {"in": rows}, {"fr": [{"id": 1, "q": 100, "country": "FR"}], "dead": [letter]}
    )
    assert verdict.passed, verdict


def test_a_failed_output_says_where_rows_went() -> None:
    assert output(ran(FAN, {"in": [row(1, 1), row(2, 8)]}, {"calc": []}), "calc").notes == (
        "'keep' let 1 row go no further",
    )
    assert output(ran(FAN, {"calc": [row(1, 8)]}, {"small": [row(1, 8)]}), "small").notes == (
        "no given row can come here",
    )


def test_what_a_stage_refuses_fails_the_test_and_the_next_one_runs() -> None:
    async def work() -> list[Verdict]:
        no_column = PipelineTest("a", {"calc": [{"id": 1}]}, {"calc": []})
        fine = PipelineTest("b", {"calc": [row(1, 8)]}, {"calc": [{"id": 1, "q": 100, "country": "FR"}]})
        return await run_tests([(LINE, no_column), (LINE, fine)], installed(), threads=1)

    refused, fine = trio.run(work)
    assert refused.code == "CONFIG"
    assert "qty" in str(refused.error)
    assert fine.passed


def test_a_given_row_that_cannot_be_a_record_is_named() -> None:
    verdict = ran(LINE, {"calc": [row(1, 8), {"": 1}]}, {"calc": []})
    assert verdict.error is not None
    assert verdict.error.startswith("stage given to calc: given row 2 cannot be a record: ")


def test_rows_cannot_be_given_to_the_sink_of_dead_letters_nor_letters_expected_twice() -> None:
    with pytest.raises(ConfigError, match="dead letters only"):
        trial_of(FAN, PipelineTest("a", {"dead": []}, {"all": []}))
    with pytest.raises(ConfigError, match="both mean the dead letters"):
        trial_of(FAN, PipelineTest("a", {"in": []}, {"dead": [], "dead_letters": []}))


# ------------------------------------------------------------------------------ values

US = pa.timestamp("us")
UTC = pa.timestamp("us", "UTC")
STRUCT = pa.struct([("a", pa.int64()), ("b", pa.string())])


@pytest.mark.parametrize(
    ("expected", "value", "kind", "equal"),
    [
        (1, 1, pa.int64(), True),
        (1.0, 1, pa.int64(), True),
        (2**63 - 1, 2**63 - 1, pa.int64(), True),
        (2**63 - 2, 2**63 - 1, pa.int64(), False),
        (True, 1, pa.int64(), False),
        ("1", 1, pa.int64(), False),
        (1, 1.0, pa.float64(), True),
        (0.3, 0.1 + 0.2, pa.float64(), True),
        (1517966773840, 1517966773841.0, pa.float64(), False),
        (0.1, 0.1, pa.float32(), True),
        (0.1001, 0.1, pa.float32(), False),
        ("NaN", float("nan"), pa.float64(), True),
        ("Infinity", float("inf"), pa.float64(), True),
        ("1.0", 1.0, pa.float64(), False),
        (True, True, pa.bool_(), True),
        (1, True, pa.bool_(), False),
        ("a", "a", pa.string(), True),
        ("a", "a", pa.dictionary(pa.int8(), pa.string()), True),
        (1, "1", pa.string(), False),
        ("x", None, pa.string(), False),
        (None, None, pa.string(), True),
        (None, "x", pa.string(), False),
        ("2024-01-01T00:00:00Z", 1704067200000000, UTC, True),
        ("2024-01-01T01:00:00+01:00", 1704067200000000, UTC, True),
        ("2024-01-01 00:00:00.000", 1704067200000000, UTC, True),
        ("2024-01-01", 1704067200000000, UTC, True),
        ("2024-01-01T00:00:00+01:00", 1704067200000000, UTC, False),
        ("2024-01-01T01:00:00", 1704067200000000, pa.timestamp("us", "Europe/Paris"), False),
        ("2024-01-01T00:00:00", 1704067200000000, US, True),
        ("2024-01-01T00:00:00Z", 1704067200000000, US, False),
        ("2024-01-01T00:00:00.000001", 1704067200000000, US, False),
        ("soon", 1704067200000000, US, False),
        (1704067200000000, 1704067200000000, US, False),
        ("2024-01-01", 19723, pa.date32(), True),
        ("2024-01-02", 19723, pa.date32(), False),
        ("12:30:00", 45_000_000_000, pa.time64("us"), True),
        (1.5, "1.50", pa.decimal128(9, 2), True),
        ("1.5", "1.50", pa.decimal128(9, 2), True),
        (True, "1.00", pa.decimal128(9, 2), False),
        ("one", "1.00", pa.decimal128(9, 2), False),
        ("aGk=", b"hi", pa.binary(), True),
        ({"a": 1}, {"a": 1, "b": None}, STRUCT, True),
        ({"a": 1, "b": "x", "c": 2}, {"a": 1, "b": "x"}, STRUCT, False),
        ({"a": 1, "c": None}, {"a": 1}, STRUCT, True),
        ([1, 2], [1, 2], pa.list_(pa.int64()), True),
        ([2, 1], [1, 2], pa.list_(pa.int64()), False),
        ([1], [1, 2], pa.list_(pa.int64()), False),
        (["2024-01-01T00:00:00Z"], [1704067200000000], pa.list_(UTC), True),
        ([{"key": "a", "value": 1}], [("a", 1)], pa.map_(pa.string(), pa.int64()), True),
    ],
)
def test_an_expected_value_is_read_by_the_type_of_its_column(
    expected: Any, value: Any, kind: pa.DataType, equal: bool
) -> None:
    if pa.types.is_decimal(kind):
        array = pa.array([value]).cast(kind)
    elif isinstance(value, int) and not (pa.types.is_boolean(kind) or pa.types.is_integer(kind)):
        array = pa.array([value], pa.int32() if pa.types.is_date32(kind) else pa.int64()).cast(kind)
    else:
        array = pa.array([value], kind)
    data = pa.record_batch({"v": array})
    assert same(expected, json_rows(data)[0]["v"], types_of(data.schema)["v"]) is equal


def verdict_of(expected: Sequence[dict[str, Any]], got: Sequence[dict[str, Any]]) -> OutputVerdict:
    types = {name: pa.int64() for one in got for name in one}
    return compared("out", expected, [Row(one, types) for one in got])


def test_all_columns_count_and_null_is_the_same_as_absent() -> None:
    assert verdict_of([{"a": 1}], [{"a": 1, "b": None}]).passed
    assert verdict_of([{"a": 1, "b": None}], [{"a": 1}]).passed
    (difference,) = verdict_of([{"a": 1}], [{"a": 1, "b": 2}]).differences
    assert (difference.kind, difference.columns) == ("changed", ("b",))
    (difference,) = verdict_of([{"a": 1, "b": 2}], [{"a": 1}]).differences
    assert (difference.kind, difference.columns) == ("changed", ("b",))


def test_order_counts() -> None:
    assert not verdict_of([{"a": 1}, {"a": 2}], [{"a": 2}, {"a": 1}]).passed


@given(
    rows=st.lists(st.integers(0, 3), max_size=8),
    gone=st.sets(st.integers(0, 7), max_size=3),
    more=st.lists(st.integers(10, 12), max_size=3),
)
def test_rows_are_paired_with_as_few_changes_as_there_were(rows: list[int], gone: set[int], more: list[int]) -> None:
    got = [{"a": value, "n": 0} for at, value in enumerate(rows) if at not in gone]
    missing = len(rows) - len(got)
    verdict = verdict_of([{"a": value, "n": 0} for value in rows], got)
    assert [one.kind for one in verdict.differences] == ["missing"] * missing
    # Of all alignments the one found leaves no more rows without a counterpart than were put in.
    longer = verdict_of(got, [*got, *({"a": value, "n": 0} for value in more)])
    assert [one.kind for one in longer.differences] == ["unexpected"] * len(more)


@given(one=st.lists(st.integers(0, 2), max_size=7), other=st.lists(st.integers(0, 2), max_size=7))
def test_an_alignment_holds_every_row_once_and_in_order(one: list[int], other: list[int]) -> None:
    pairs = list(aligned(len(one), len(other), lambda a, b: float(one[a] != other[b])))
    assert [a for a, _ in pairs if a is not None] == list(range(len(one)))
    assert [b for _, b in pairs if b is not None] == list(range(len(other)))


def test_many_rows_are_paired_by_number() -> None:
    asked = []
    pairs = list(aligned(1_000, 1_001, lambda a, b: float(bool(asked.append((a, b)) or True))))
    assert pairs[:2] == [(0, 0), (1, 1)]
    assert pairs[-1] == (None, 1_000)
    assert len(asked) < 10


def test_letters_are_compared_by_what_is_said_of_them_in_any_order() -> None:
    text = {"stage": pa.string(), "code": pa.string(), "message": pa.string()}
    got = [
        Row({"stage": "a", "code": "X", "message": "Divide by zero"}, text),
        Row({"stage": "b", "code": "Y", "message": "no"}, text),
    ]
    assert compared_letters("dead", [{"stage": "b"}, {"message": "divide"}], got).passed
    assert compared_letters("dead", [{}, {}], got).passed
    (missing,) = compared_letters("dead", [{}, {}, {}], got).differences
    assert missing.kind == "missing"
    (changed,) = compared_letters("dead", [{"stage": "b", "code": "Z"}, {"stage": "a"}], got).differences
    assert (changed.kind, changed.columns) == ("changed", ("code",))
    kinds = [one.kind for one in compared_letters("dead", [{"stage": "c"}], got[:1]).differences]
    assert kinds == ["missing", "unexpected"]
