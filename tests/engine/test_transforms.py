"""The transforms `passthrough`, `filter`, `sql_transform` and `json_flatten`, run over real channels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from conveyord.core.errors import BatchError, ConfigError
from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.contracts import OperatorContext, Transform
from conveyord.engine.messages import Ack, Batch, Eos, Message, Watermark
from conveyord.operators.transform_filter import FilterTransform
from conveyord.operators.transform_json_flatten import JsonFlattenTransform
from conveyord.operators.transform_passthrough import PassthroughTransform
from conveyord.operators.transform_sql_transform import SqlTransform

QUAKES = Path(__file__).parents[2] / "examples" / "data" / "earthquakes.jsonl"


def made(operator: type[Transform], listened: frozenset[str] = frozenset(), **options: Any) -> Any:
    context = OperatorContext(
        pipeline="default/test",
        stage="stage",
        data_dir=Path("unused"),
        threads=trio.CapacityLimiter(1),
        listened=listened,
    )
    return operator(operator.Config(**options), context)


def rows(*values: dict[str, Any]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pylist(list(values))


def message(data: pa.RecordBatch) -> Batch:
    span = Span(Partition("source", "p"), 0, data.num_rows)
    return Batch(data, (span,), Tally(read=data.num_rows), Ack(lambda: None))


class Taken:
    """An outbound that keeps what it gets."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.extra: list[dict[str, Batch]] = []

    async def send(self, message: Message, extra: Mapping[str, Batch] | None = None) -> None:
        self.messages.append(message)
        self.extra.append(dict(extra or {}))


async def through(transform: Transform, *messages: Message) -> list[Message]:
    """What comes out when `messages` and the end of the stream go in."""
    into, inbound = trio.open_memory_channel[Message](len(messages) + 1)
    for each in (*messages, Eos()):
        into.send_nowait(each)
    taken = Taken()
    await transform.run(inbound, taken)
    return taken.messages


DATA = rows({"a": 1, "s": "x"}, {"a": 2, "s": None}, {"a": None, "s": "z"})


@pytest.mark.parametrize(
    ("transform", "rows_out"),
    [
        (made(PassthroughTransform), 3),
        (made(FilterTransform, when="a > 1"), 1),
        (made(SqlTransform, query="SELECT a FROM input_data WHERE a IS NOT NULL"), 2),
        (made(JsonFlattenTransform), 3),
    ],
)
async def test_positions_accounting_and_watermarks_travel_on(transform: Transform, rows_out: int) -> None:
    first, second = message(DATA), message(DATA.slice(0, 0))
    out = await through(transform, first, Watermark(5), second)
    assert out[1] == Watermark(5)
    for sent, got in ((first, out[0]), (second, out[2])):
        assert isinstance(got, Batch)
        assert (got.spans, got.ack) == (sent.spans, sent.ack)
        assert got.tally.rows == got.data.num_rows
    assert out[0].data.num_rows == rows_out
    assert len(out) == 3


def test_passthrough_forwards_the_very_batch() -> None:
    sent = message(DATA)
    assert trio.run(through, made(PassthroughTransform), sent) == [sent]


@pytest.mark.parametrize("operator", [PassthroughTransform, FilterTransform, SqlTransform, JsonFlattenTransform])
def test_unknown_options_are_refused(operator: type[Transform]) -> None:
    with pytest.raises(ValidationError):
        operator.Config(colour="red")


# ---------------------------------------------------------------------------- filter


@given(st.lists(st.tuples(st.one_of(st.none(), st.integers(-3, 3)), st.one_of(st.none(), st.sampled_from("ab")))))
def test_filter_keeps_exactly_the_rows_where_the_condition_is_true(values: list[tuple[int | None, str | None]]) -> None:
    schema = pa.schema([("a", pa.int64()), ("s", pa.string())])
    data = pa.RecordBatch.from_pylist([{"a": a, "s": s} for a, s in values], schema=schema)
    kept = FILTER.apply(data)
    assert kept.schema == schema
    assert kept.to_pylist() == [
        {"a": a, "s": s} for a, s in values if (a is not None and a > 0) or s == "b"
    ]  # fmt: skip


FILTER: BatchTransform = made(FilterTransform, when="a > 0 OR s = 'b'")


def test_filter_returns_the_batch_itself_if_all_rows_stay() -> None:
    assert made(FilterTransform, when="a IS NULL OR a > 0 -- always").apply(DATA) is DATA


@given(st.lists(st.one_of(st.none(), st.integers(-3, 3)), max_size=9))
def test_the_output_dropped_has_exactly_the_rows_that_do_not_stay(values: list[int | None]) -> None:
    data = pa.record_batch({"a": pa.array(values, pa.int64()), "n": pa.array(range(len(values)), pa.int64())})
    transform = made(FilterTransform, listened=frozenset({"dropped"}), when="a > 0")
    kept, others = transform.apply_all(data)
    dropped = others["dropped"]
    assert kept.schema == dropped.schema == data.schema
    assert sorted(kept["n"].to_pylist() + dropped["n"].to_pylist()) == list(range(len(values)))
    assert all(value is not None and value > 0 for value in kept["a"].to_pylist())
    assert dropped["n"].to_pylist() == sorted(dropped["n"].to_pylist())


def test_what_nobody_listens_to_is_not_made() -> None:
    assert made(FilterTransform, when="a > 1").apply_all(DATA)[1] == {}


@pytest.mark.parametrize(
    "when",
    [
        "a",
        "a + 1",
        "count(*) > 1",
        "row_number() OVER (ORDER BY a DESC) > 1",
        "a IN (SELECT a FROM input_data)",
        "a > 1) AS keep, (a < 1",
        "unnest([true, false])",
        "a > 1) AS keep FROM input_data UNION ALL SELECT (true",
        "nowhere > 1",
        "a >",
        "a LIKE 5",
    ],
)
def test_what_is_no_condition_on_one_row_is_refused(when: str) -> None:
    with pytest.raises(ConfigError, match=r"filter\.when"):
        made(FilterTransform, when=when).apply(DATA)


def test_filter_failing_on_a_value_is_the_batchs_fault() -> None:
    with pytest.raises(BatchError, match=r"filter\.when failed on a value"):
        made(FilterTransform, when="cast(s AS int) > 1").apply(DATA)


def test_filter_follows_schemas_that_change_between_batches() -> None:
    transform = made(FilterTransform, when="a > 1")
    assert transform.apply(DATA).to_pylist() == [{"a": 2, "s": None}]
    assert transform.apply(rows({"a": 1.5, "b": {"c": 1}})).to_pylist() == [{"a": 1.5, "b": {"c": 1}}]
    assert transform.apply(DATA).num_rows == 1


# ---------------------------------------------------------------------------- json_flatten

_LEAVES = st.one_of(st.none(), st.integers(0, 9))
_NAMES = st.sampled_from(["a", "b", "a_b", "a_b_2"])


def _objects(depth: int) -> st.SearchStrategy[Any]:
    """Types as nested dicts of names, with None at the leaves."""
    inner = st.none() if depth == 0 else st.one_of(st.none(), _objects(depth - 1))
    return st.dictionaries(_NAMES, inner, min_size=1, max_size=3)


def _values(shape: Any) -> st.SearchStrategy[Any]:
    if shape is None:
        return _LEAVES
    return st.one_of(st.none(), st.fixed_dictionaries({name: _values(inner) for name, inner in shape.items()}))


def _type(shape: Any) -> pa.DataType:
    return pa.int64() if shape is None else pa.struct([(name, _type(inner)) for name, inner in shape.items()])


def flattened(shape: Any, value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """The oracle: every leaf of `value` under its path."""
    if shape is None:
        return {path: value}
    found: dict[tuple[str, ...], Any] = {}
    for name, inner in shape.items():
        found |= flattened(inner, None if value is None else value[name], (*path, name))
    return found


@given(st.data(), _objects(2))
def test_flatten_keeps_every_leaf_of_every_row_under_a_name_of_its_own(data: st.DataObject, shape: Any) -> None:
    values = data.draw(
        st.lists(st.fixed_dictionaries({name: _values(inner) for name, inner in shape.items()}), max_size=4)
    )
    batch = pa.RecordBatch.from_pylist(values, schema=pa.schema(list(_type(shape))))
    cut = data.draw(st.integers(0, len(values)))
    flat = made(JsonFlattenTransform).apply(batch.slice(cut))
    flat.validate(full=True)
    assert len(set(flat.schema.names)) == len(flat.schema.names)
    paths = list(flattened(shape, None))
    for name, path in zip(flat.schema.names, paths, strict=True):
        assert re.fullmatch(re.escape("_".join(path)) + r"(_\d+)?", name)
    expected = [list(flattened(shape, value).values()) for value in values[cut:]]
    assert [list(row) for row in zip(*flat.to_pydict().values(), strict=True)] == expected


def test_flatten_names_colliding_columns_by_depth_then_place() -> None:
    flat = made(JsonFlattenTransform).apply(rows({"a": {"b": 1, "b_c": 2}, "a_b": 3, "a_b_2": 4, "x": {"y": 5}}))
    assert flat.to_pylist() == [{"a_b_3": 1, "a_b_c": 2, "a_b": 3, "a_b_2": 4, "x_y": 5}]


def test_flatten_leaves_flat_batches_alone() -> None:
    assert made(JsonFlattenTransform).apply(DATA) is DATA


def test_flatten_opens_no_more_levels_than_max_depth() -> None:
    data = rows({"a": {"b": {"c": 1}}})
    assert made(JsonFlattenTransform, max_depth=1, separator=".").apply(data).to_pylist() == [{"a.b": {"c": 1}}]
    assert made(JsonFlattenTransform, max_depth=2, separator=".").apply(data).to_pylist() == [{"a.b.c": 1}]


def test_flatten_ignores_what_lies_under_a_null_object() -> None:
    hidden = pa.StructArray.from_arrays([pa.array([1, 2])], names=["x"], mask=pa.array([False, True]))
    assert made(JsonFlattenTransform).apply(pa.RecordBatch.from_arrays([hidden], names=["s"])).to_pydict() == {
        "s_x": [1, None]
    }


ORDERS = rows(
    {"id": 1, "items": [{"sku": "a", "tags": ["t", "u"]}, {"sku": "b", "tags": []}], "notes": ["n"]},
    {"id": 2, "items": [], "notes": None},
    {"id": 3, "items": None, "notes": ["n", "m"]},
)


def test_lists_are_kept_unless_asked_for() -> None:
    assert made(JsonFlattenTransform).apply(ORDERS) is ORDERS


def test_exploding_makes_rows_side_by_side_then_inside_and_no_record_vanishes() -> None:
    exploded = made(JsonFlattenTransform, lists="explode").apply(ORDERS)
    exploded.validate(full=True)
    assert [tuple(row.values()) for row in exploded.to_pylist()] == [
        (1, "a", "t", "n"),
        (1, "a", "u", "n"),
        (1, "b", None, None),
        (2, None, None, None),
        (3, None, None, "n"),
        (3, None, None, "m"),
    ]
    assert exploded.schema.names == ["id", "items_sku", "items_tags", "notes"]


def test_exploding_named_columns_leaves_the_others() -> None:
    exploded = made(JsonFlattenTransform, lists=["items", "id"]).apply(ORDERS)
    assert exploded.schema.names == ["id", "items_sku", "items_tags", "notes"]
    assert exploded.column("id").to_pylist() == [1, 1, 2, 3]
    assert exploded.column("items_tags").to_pylist() == [["t", "u"], [], None, None]


@given(st.lists(st.one_of(st.none(), st.lists(st.one_of(st.none(), st.integers()), max_size=4)), max_size=8), st.data())
def test_exploding_keeps_elements_in_order(lists: list[list[int | None] | None], data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from([pa.list_(pa.decimal128(38)), pa.large_list(pa.decimal128(38))]))
    lists = [None if each is None else [None if v is None else v % 10**6 for v in each] for each in lists]
    batch = pa.RecordBatch.from_pydict({"n": pa.array(range(len(lists)), pa.int64()), "x": pa.array(lists, kind)})
    cut = data.draw(st.integers(0, len(lists)))
    exploded = made(JsonFlattenTransform, lists="explode").apply(batch.slice(cut))
    expected = [(n, v) for n, each in enumerate(lists) for v in (each or [None]) if n >= cut]
    assert list(zip(*exploded.to_pydict().values(), strict=True)) == expected


def test_fixed_size_lists_explode_too() -> None:
    data = pa.RecordBatch.from_pydict({"x": pa.array([[1, 2], None], pa.list_(pa.int64(), 2))})
    assert made(JsonFlattenTransform, lists="explode").apply(data).to_pydict() == {"x": [1, 2, None]}


# ---------------------------------------------------------------------------- together


def test_flatten_then_sql_on_real_earthquakes() -> None:
    data = pyarrow.json.read_json(QUAKES).combine_chunks().to_batches()[0]
    flat = made(JsonFlattenTransform, separator="_", max_depth=5).apply(data)
    query = (
        "SELECT id, to_timestamp_millis(properties_time) AS at, properties_mag AS mag, properties_place AS place "
        "FROM input_data WHERE properties_mag >= 2.5"
    )
    result = made(SqlTransform, query=query).apply(flat)
    strong = pc.greater_equal(pc.struct_field(data.column("properties"), "mag"), 2.5)
    expected = data.filter(strong)
    assert result.num_rows == expected.num_rows > 0
    assert result.column("id").equals(expected.column("id"))
    assert result.schema.types == [pa.string(), pa.timestamp("ms"), pa.float64(), pa.string()]
    assert pc.min(result.column("at")).as_py().year == 2018
    kept = made(FilterTransform, when="properties_mag >= 2.5").apply(flat)
    assert kept.column("id").equals(result.column("id"))


def test_views_of_strings_are_filtered_and_exploded_too() -> None:
    """Arrow 26 has no kernel for it."""
    data = pa.RecordBatch.from_pydict(
        {"s": pa.array(["a", "b"], pa.string_view()), "l": pa.array([["x", "y"], None], pa.list_(pa.string_view()))}
    )
    assert made(FilterTransform, when="s = 'b'").apply(data).to_pydict() == {"s": ["b"], "l": [None]}
    exploded = made(JsonFlattenTransform, lists="explode").apply(data)
    assert exploded.to_pydict() == {"s": ["a", "a", "b"], "l": ["x", "y", None]}
