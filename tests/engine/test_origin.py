"""Dead letters name the record of the source that a poison row came from, whatever was done to it before."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.flow.positions import Partition
from conveyord.core.pipeline.graph import Edge, Stage
from conveyord.engine import origin as origin_module
from conveyord.engine.batch_transform import BatchTransform
from conveyord.engine.origin import Origin, Place, RecordRef, Selection, joined
from tests.engine import graph_rig
from tests.engine.graph_rig import (
    RECORD_BYTES,
    RepeatConfig,
    World,
    line,
    numbered,
    pipeline,
    run_now,
    sink,
    source,
    transform,
)

P = Partition("in", "p0")


def place_of(row: int) -> Place:
    return Place(RecordRef(P, row))


def rows(*values: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(values, pa.int64())})


def keep(*kept: int) -> Any:
    """A step that keeps some values."""
    return lambda data: data.filter(pa.array([n in kept for n in data.column("n").to_pylist()], pa.bool_()))


def repeat(counts: list[int]) -> Any:
    """A step that makes `counts[n]` rows of the value `n`."""
    return lambda data: rows(*(n for n in data.column("n").to_pylist() for _ in range(counts[n])))


@given(st.lists(st.lists(st.integers(0, 3), min_size=12, max_size=12), max_size=4), st.integers(0, 12))
def test_every_row_leads_back_to_its_record_and_its_part_of_it(steps: list[list[int]], count: int) -> None:
    origin, data = Origin(rows(*range(count)), place_of), rows(*range(count))
    for counts in steps:
        step = repeat(counts)
        origin, data = origin.through(step), step(data)
    values = data.column("n").to_pylist()
    parts = [values[:row].count(n) for row, n in enumerate(values)]
    assert [origin.place(row) for row in range(len(values))] == [
        Place(RecordRef(P, n), part) for n, part in zip(values, parts, strict=True)
    ]


def test_what_a_selection_kept_is_found_once_however_many_rows_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(mask: pa.BooleanArray) -> pa.Array:
        asked.append(mask)
        return pc.indices_nonzero(mask)

    monkeypatch.setattr(origin_module, "pc", SimpleNamespace(indices_nonzero=counted))
    mask = pa.array([n % 3 != 1 for n in range(90)])
    origin = Origin(rows(*range(90)), place_of).through(Selection(mask))
    assert [origin.place(row).record.offset for row in range(60)] == [n for n in range(90) if n % 3 != 1]
    assert len(asked) == 1


def test_a_joined_batch_leads_back_by_the_branch_that_a_row_came_by() -> None:
    whole = Origin(rows(0, 1, 2, 3), place_of)
    parts = [(keep(1)(whole.data), whole.through(keep(1))), (keep(0, 3)(whole.data), whole.through(keep(0, 3)))]
    data = pa.concat_batches([part for part, _ in parts])
    origin = joined([*parts], data)
    assert origin is not None
    assert [origin.place(row).record.offset for row in range(3)] == [1, 0, 3]
    assert joined([parts[0], (parts[1][0], None)], data) is None


ROADS: dict[str, list[Stage]] = {
    "nothing": [],
    "filter": [transform("a", "filter", when="n <> 2 AND v <> 9")],
    "flatten": [transform("a", "json_flatten")],
    "sql": [transform("a", "sql_transform", query="SELECT v, n * 2 AS m FROM input_data WHERE n > 3")],
    "repeat": [transform("a", "repeat")],
    "poison before": [transform("a", "sql_transform", query="SELECT *, 1 / (v - 4) AS q FROM input_data")],
    "much": [
        transform("a", "filter", when="n <> 2"),
        transform("b", "brittle", poison=[3, 4]),
        transform("c", "repeat"),
        transform("d", "json_flatten"),
        transform("e", "sql_transform", query="SELECT * FROM input_data WHERE o_x <> 8"),
    ],
}


@pytest.mark.parametrize("road", ROADS)
@pytest.mark.parametrize("batch_rows", [1, 7, 100])
def test_a_letter_has_offset_and_bytes_of_its_record(tmp_path: Path, road: str, batch_rows: int) -> None:
    table = numbered(45)
    world = World({"t": table})
    stages = [source(batch_rows=batch_rows), *ROADS[road], transform("last", "brittle", poison=[5, 7]), sink()]
    outcome = run_now(world, line(*stages), tmp_path)
    assert outcome.failed() == []
    letters = [stored.letter for stored in outcome.letters_of() if stored.letter.key.stage == "last"]
    assert letters
    for letter in letters:
        assert letter.raw is not None
        record = json.loads(letter.raw)
        assert letter.key.offset == record["n"] * RECORD_BYTES
        assert record["v"] in (5, 7)
        assert letter.row is not None
        row = pa.ipc.open_stream(letter.row).read_all().to_pylist()
        assert [each["v"] for each in row] == [record["v"]]
    dead = [record for record in table if record["v"] in (5, 7) and _arrives(road, record)]
    assert {letter.key.offset for letter in letters} == {record["n"] * RECORD_BYTES for record in dead}


def _arrives(road: str, record: dict[str, Any]) -> bool:
    if road == "sql":
        return bool(record["n"] > 3)
    return "repeat" not in str(ROADS[road]) or record["n"] % 3 > 0


def test_each_row_that_one_record_was_made_into_has_a_letter_of_its_own(tmp_path: Path) -> None:
    world = World({"t": numbered(6)})
    stages = [source(batch_rows=6), transform("a", "repeat"), transform("last", "brittle", poison=[5, 4]), sink()]
    outcome = run_now(world, line(*stages), tmp_path)
    keys = [stored.letter.key for stored in outcome.letters_of()]
    assert [(key.offset, key.part) for key in keys] == [(40, 0), (50, 0), (50, 1)]


def test_rows_that_left_by_another_output_lead_back_too(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    stages = [source(batch_rows=20), transform("a", "filter", when="v < 5"), transform("b", "brittle", poison=[7])]
    edges = [("in", "a"), ("a", "small"), Edge("a", "b", "dropped"), ("b", "out")]
    outcome = run_now(world, pipeline([*stages, sink("small"), sink()], edges), tmp_path)
    letters = [stored.letter for stored in outcome.letters_of()]
    assert [letter.key.offset for letter in letters] == [70, 170]
    assert [json.loads(letter.raw or b"")["n"] for letter in letters] == [7, 17]


def test_where_rows_cannot_be_told_apart_a_letter_has_the_beginning_of_the_batch(tmp_path: Path) -> None:
    world = World({"t": numbered(20)})
    stages = [source(batch_rows=10), transform("a", "reverse"), transform("last", "brittle", poison=[7]), sink()]
    letters = [stored.letter for stored in run_now(world, line(*stages), tmp_path).letters_of()]
    assert [(letter.key.offset, letter.key.part, letter.raw) for letter in letters] == [(0, 2, None), (100, 2, None)]


class Jealous(BatchTransform):
    """Notices when it is entered while it is at work."""

    Config = RepeatConfig
    met = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._inside = threading.Lock()
        self._other = threading.Event()

    def row_wise(self, data: pa.RecordBatch) -> bool:
        return True

    def apply(self, data: pa.RecordBatch) -> pa.RecordBatch:
        if not self._inside.acquire(blocking=False):
            Jealous.met = True
            self._other.set()
            return data
        try:
            if data.num_rows == 5:  # the second batch: the stage behind looks for the origin of a row of the first
                self._other.wait(timeout=0.2)
        finally:
            self._inside.release()
        return data


def test_looking_for_an_origin_never_enters_a_stage_that_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ran the query of one thread on the rows of another."""
    monkeypatch.setitem(graph_rig.RIG, ("transform", "jealous"), Jealous)
    world = World({"t": [{**row, "v": 7 if row["n"] == 3 else 1} for row in numbered(15)]})
    stages = [source(batch_rows=5), transform("a", "jealous"), transform("b", "brittle", poison=[7]), sink()]
    outcome = run_now(world, line(*stages), tmp_path, threads=4)
    assert len(outcome.letters_of()) == 1
    assert not Jealous.met
