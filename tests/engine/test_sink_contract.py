"""The sink `iceberg` under a schema contract: rows and values that its table has no place for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.table import Table

from conveyord.core.errors import BatchError, Refused
from conveyord.core.flow.tally import Tally
from conveyord.core.pipeline.graph import SchemaContract, SchemaPolicy
from conveyord.engine.copies import COPIED
from conveyord.operators.sink_iceberg import IcebergSink
from conveyord.storage.lake.catalog import open_embedded
from tests.engine.test_sink_iceberg import Letters, batch, batches, ended, keeping, rows, sink_in
from tests.storage.duckdb_reader import duckdb_rows

FREEZE = SchemaContract("freeze", "freeze", "freeze")
DISCARD = SchemaContract("freeze", "discard_value", "discard_value")
HELD = pa.record_batch(
    {
        "n": pa.array([-1]),
        "small": pa.array([0], pa.int32()),
        "o": pa.array([{"x": 1, "in": [{"y": "t"}]}]),
    }
)


async def filled(data_dir: Path) -> None:
    """A table with one row."""
    sink = sink_in(data_dir)
    await sink.open()
    await ended(sink, *batches(HELD))


def under(data_dir: Path, contract: SchemaContract, letters: Letters | None = None, **options: Any) -> IcebergSink:
    """A sink of another pipeline, which adds to the table."""
    sink = keeping(sink_in(data_dir), Letters() if letters is None else letters, adopt=True, **options)
    return IcebergSink(sink.config, replace(sink.context, pipeline="ns/q", contract=contract))


def table(data_dir: Path) -> Table:
    return open_embedded(data_dir).load_table("ns.t")


def names(data_dir: Path) -> list[str]:
    return sorted(table(data_dir).schema().column_names)


def numbers(data_dir: Path) -> list[int]:
    return sorted(number for number in table(data_dir).scan().to_arrow()["n"].to_pylist() if number >= 0)


async def test_a_missing_table_is_not_created_if_tables_are_frozen(tmp_path: Path) -> None:
    sink = under(tmp_path, SchemaContract("freeze"))
    with pytest.raises(Refused, match=r"^table ns\.t: it does not exist, and the pipeline's schema\.tables is freeze;"):
        await sink.open()
    await sink.close()
    assert not list((tmp_path / "warehouse").rglob("*"))


@pytest.mark.parametrize("size", [1, 7, 300])
@pytest.mark.parametrize("policy", ["freeze", "discard_row"])
async def test_exactly_the_rows_that_break_the_contract_are_set_aside_however_they_are_batched(
    tmp_path: Path, policy: SchemaPolicy, size: int
) -> None:
    await filled(tmp_path)
    before = names(tmp_path)
    random = Random(5)
    breaches: list[dict[str, Any]] = [{"new": 1}, {"small": 2**31}, {"o": {"z": 1}}, {"o": {"in": [{"q": 1}]}}]
    records = [{"n": n, **random.choice([{}, {"small": n}, {"o": {"x": n}}, *breaches])} for n in range(300)]
    bad = [record["n"] for record in records if any(record == {"n": record["n"], **breach} for breach in breaches)]
    assert len(bad) > 100
    letters = Letters()
    sink = under(tmp_path, SchemaContract("freeze", policy, policy), letters)
    await sink.open()
    await ended(sink, *batches(*(rows(*records[at : at + size]) for at in range(0, 300, size))))
    assert letters.values() == bad
    assert names(tmp_path) == before
    assert numbers(tmp_path) == sorted(set(range(300)) - set(bad))
    assert (sink.taken.rows, sink.taken.dead) == (300 - len(bad), len(bad))
    assert sink.report().discarded_values == 0


async def test_thousands_of_rows_of_one_batch_can_be_set_aside(tmp_path: Path) -> None:
    await filled(tmp_path)
    letters = Letters()
    sink = under(tmp_path, FREEZE, letters)
    await sink.open()
    extra = [n if n % 2 else None for n in range(10_000)]
    await ended(sink, *batches(pa.record_batch({"n": range(10_000), "new": extra})))
    assert len(letters.rejected) == 5_000
    assert sink.taken == Tally(read=10_000, dead=5_000)
    assert {str(one.error).partition(";")[0] for one in letters.rejected} == {
        "table ns.t: there is no column 'new', and the pipeline's schema.columns is freeze"
    }
    assert letters.rejected[0].row is not None
    assert letters.rejected[0].row.to_pylist() == [{"n": 1, "new": 1}]


async def test_without_letters_the_first_breach_stops_the_sink_and_names_its_place(tmp_path: Path) -> None:
    await filled(tmp_path)
    sink = under(tmp_path, FREEZE)
    sink = IcebergSink(sink.config, replace(sink.context, dead_letters=None))
    await sink.open()
    with pytest.raises(
        BatchError, match=r"^a\.jsonl bytes 0 to 10: table ns\.t: a long value does not fit column 'sma"
    ):
        await ended(sink, *batches(rows({"n": 1, "small": 2**31})))
    assert numbers(tmp_path) == []


async def test_values_that_are_left_out_are_counted_and_the_rows_arrive(tmp_path: Path) -> None:
    await filled(tmp_path)
    sink = under(tmp_path, DISCARD)
    await sink.open()
    first = rows({"n": 1, "new": 1, "small": 2**40}, {"n": 2, "new": None, "small": 5}, {"n": 3, "new": 3})
    second = rows({"n": 4, "o": {"x": 5, "in": [{"y": "a", "q": 1}, {"q": 2}]}})
    await ended(sink, *batches(first, second))
    assert sink.report().discarded_values == 5
    found = table(tmp_path).scan().to_arrow().sort_by("n").to_pylist()[1:]
    assert [one["small"] for one in found] == [None, 5, None, None]
    assert found[3]["o"] == {"x": 5, "in": [{"y": "a"}, {"y": None}]}
    assert names(tmp_path) == ["n", "o", "o.in", "o.in.element", "o.in.element.y", "o.x", "small"]


async def test_a_row_that_is_refused_for_something_else_counts_no_value_that_it_would_have_lost(tmp_path: Path) -> None:
    await filled(tmp_path)
    letters = Letters()
    contract = SchemaContract("freeze", "evolve", "discard_value")
    sink = under(tmp_path, contract, letters, columns_max=3)
    await sink.open()
    await ended(
        sink, *batches(rows({"n": 1, "small": 2**40}, {"n": 2, "small": 2**40, "new": 1}, {"n": 3, "small": 3}))
    )
    assert letters.values() == [2]
    assert sink.report().discarded_values == 1
    assert numbers(tmp_path) == [1, 3]


async def test_the_first_batch_decides_the_columns_of_a_new_table_and_the_second_is_held_to_them(
    tmp_path: Path,
) -> None:
    letters = Letters()
    sink = keeping(sink_in(tmp_path), letters)
    sink = IcebergSink(sink.config, replace(sink.context, contract=SchemaContract("evolve", "freeze", "freeze")))
    await sink.open()
    await ended(sink, *batches(rows({"n": 1, "a": 1}), rows({"n": 2, "b": 1}, {"n": 3, "a": 2})))
    assert letters.values() == [2]
    assert numbers(tmp_path) == [1, 3]


async def test_a_column_that_others_rename_is_missed_once_the_table_is_looked_at_again(tmp_path: Path) -> None:
    await filled(tmp_path)
    letters = Letters()
    sink = under(tmp_path, SchemaContract("freeze", "evolve", "freeze"), letters)
    await sink.open()
    with table(tmp_path).update_schema() as update:
        update.rename_column("small", "tiny")
    # The second batch needs a column, so the table is looked at: `small` is one that it lacks, too.
    await ended(sink, *batches(rows({"n": 1, "small": 7}), rows({"n": 2, "more": 1, "small": 8})))
    assert letters.rejected == []
    found = table(tmp_path).scan().to_arrow().sort_by("n").to_pylist()[1:]
    assert [(one["tiny"], one["more"], one["small"]) for one in found] == [(7, None, None), (None, 1, 8)]


async def test_copies_of_letters_are_never_set_aside(tmp_path: Path) -> None:
    await filled(tmp_path)
    letters = Letters()
    sink = under(tmp_path, FREEZE, letters)
    await sink.open()
    made = batch(rows({"n": 1, "new": 1}))
    partition = COPIED
    with pytest.raises(BatchError, match="no column 'new'"):
        await ended(sink, replace(made, spans=(replace(made.spans[0], partition=partition),)))
    assert letters.rejected == []


async def test_fields_types_and_conflicts_within_structs_lists_and_maps_evolve_where_they_are(tmp_path: Path) -> None:
    small = pa.struct([("x", pa.int32())])
    entries = pa.map_(pa.string(), small)
    first = pa.record_batch(
        {
            "n": pa.array([1]),
            "o": pa.array([{"x": 1}], small),
            "items": pa.array([[{"x": 1}]], pa.list_(small)),
            "m": pa.array([[("k", {"x": 1})]], entries),
        }
    )
    wide = pa.struct([("x", pa.int64()), ("new", pa.string())])
    second = pa.record_batch(
        {
            "n": pa.array([2]),
            "o": pa.array([{"x": 2**40, "new": "a"}], wide),
            "items": pa.array([[{"x": 2**40, "new": "b"}]], pa.list_(wide)),
            "m": pa.array([[("k", {"x": 2**40, "new": "c"})]], pa.map_(pa.string(), wide)),
        }
    )
    third = rows({"n": 3, "o": {"x": "t"}, "items": [{"x": 2.5}]})
    sink = sink_in(tmp_path)
    await sink.open()
    await ended(sink, *batches(first, second, third))
    found = sorted(duckdb_rows(table(tmp_path)), key=lambda row: row["n"])
    assert [row["o"] for row in found] == [
        {"x": 1, "new": None, "x__string": None},
        {"x": 2**40, "new": "a", "x__string": None},
        {"x": None, "new": None, "x__string": "t"},
    ]
    assert [row["items"] for row in found] == [
        [{"x": 1, "new": None, "x__double": None}],
        [{"x": 2**40, "new": "b", "x__double": None}],
        [{"x": None, "new": None, "x__double": 2.5}],
    ]
    assert [row["m"] for row in found] == [
        [{"k": "k", "v": {"x": 1, "new": None}}],
        [{"k": "k", "v": {"x": 2**40, "new": "c"}}],
        None,
    ]


async def test_keys_of_a_map_that_no_column_can_widen_for_go_to_a_sibling(tmp_path: Path) -> None:
    narrow, wide = pa.map_(pa.int32(), pa.string()), pa.map_(pa.int64(), pa.string())
    sink = sink_in(tmp_path)
    await sink.open()
    held = pa.record_batch({"n": pa.array([1]), "m": pa.array([[(1, "a")]], narrow)})
    fits = pa.record_batch({"n": pa.array([2, 3]), "m": pa.array([[(2, "b")], [(2**40, "c")]], wide)})
    await ended(sink, *batches(held, fits))
    found = sorted(duckdb_rows(table(tmp_path)), key=lambda row: row["n"])
    assert [(row["m"], row["m__map"]) for row in found] == [
        ([{"k": 1, "v": "a"}], None),
        ([{"k": 2, "v": "b"}], None),
        (None, [{"k": 2**40, "v": "c"}]),
    ]
