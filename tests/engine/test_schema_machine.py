"""Rows of any schema into one table, which others reshape meanwhile: DuckDB finds every value after every commit."""

from __future__ import annotations

import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from pyiceberg.table import Table
from pyiceberg.transforms import BucketTransform, IdentityTransform
from pyiceberg.types import DoubleType, IntegerType, LongType, StringType, StructType

from conveyord.core.flow.positions import Partition, Span
from conveyord.core.flow.tally import Tally
from conveyord.engine.contracts import OperatorContext
from conveyord.engine.iceberg_table import Lake
from conveyord.engine.messages import Ack, Batch
from conveyord.operators.sink_iceberg import IcebergConfig
from conveyord.storage.lake.catalog import open_embedded
from tests.engine.test_schema_properties import atoms_by_row, batches
from tests.storage.duckdb_reader import duckdb_tables, partitions_are_right

SOURCE = Partition("source", "a.jsonl")
ID, GROUP = "id", "group"  # columns that every row has, beside those that are drawn


class GrowingTable(RuleBasedStateMachine):
    """`records` are what the source has; the first `committed` of them are in the table, `taken` are written."""

    def __init__(self) -> None:
        super().__init__()
        self._directory = tempfile.TemporaryDirectory()
        self.data_dir = Path(self._directory.name)
        self.records: list[pa.RecordBatch] = []
        self.committed = 0
        self.taken = 0
        self.renames = 0
        self.theirs = 0

    @initialize(partitioned=st.booleans())
    def start(self, partitioned: bool) -> None:
        self.partition_by = (GROUP,) if partitioned else ()
        self._open()

    def _open(self) -> None:
        context = OperatorContext("ns/p", "sink", self.data_dir, trio.CapacityLimiter(1))
        config = IcebergConfig(table="ns.t", partition_by=self.partition_by)
        self.table = in_thread(lambda: Lake(config, context).table(config.table, adopt_from=None))
        positions = in_thread(self.table.open)
        assert (positions[SOURCE].offset if SOURCE in positions else 0) == self.committed

    def _close(self) -> None:
        in_thread(self.table.abort)
        in_thread(self.table.close)

    def _table(self) -> Table:
        return open_embedded(self.data_dir).load_table("ns.t")

    # ------------------------------------------------------------------ our side

    @rule(data=batches())
    def read(self, data: pa.RecordBatch) -> None:
        """The source reads records, of a schema of their own, and the sink writes them."""
        first = sum(record.num_rows for record in self.records)
        numbers = range(first, first + data.num_rows)
        data = data.append_column(ID, pa.array(numbers, pa.int64()))
        data = data.append_column(GROUP, pa.array([number % 3 for number in numbers], pa.int64()))
        self.records.append(data)
        self._write()

    def _write(self) -> None:
        while self.taken < len(self.records):
            data = self.records[self.taken]
            batch = Batch(data, (self._span(self.taken),), Tally(read=data.num_rows), Ack(lambda: None))
            in_thread(self.table.write, batch)
            self.taken += 1

    def _span(self, number: int) -> Span:
        return Span(SOURCE, number, number + 1)

    @precondition(lambda self: self.taken > self.committed)
    @rule()
    def commit(self) -> None:
        chosen = self.records[self.committed : self.taken]
        spans = [self._span(number) for number in range(self.committed, self.taken)]
        rows = sum(record.num_rows for record in chosen)
        assert in_thread(self.table.commit, spans, Tally(read=rows), {})
        self.committed = self.taken
        self._everything_is_found()

    @rule()
    def restart(self) -> None:
        """The process ends without a commit; the next one reads again what was not committed."""
        self._close()
        self.taken = self.committed
        self._open()
        self._write()

    # ------------------------------------------------------------------ others

    @precondition(lambda self: self.taken > 0)
    @rule(buckets=st.integers(2, 5), of_group=st.booleans())
    def they_partition(self, buckets: int, of_group: bool) -> None:
        table = self._table()
        held = {field.name for field in table.spec().fields}
        name = "by_group" if of_group else f"id_{buckets}"
        column, transform = (GROUP, IdentityTransform()) if of_group else (ID, BucketTransform(buckets))
        sources = {(field.source_id, str(field.transform)) for field in table.spec().fields}
        with table.update_spec() as update:
            if name in held:
                update.remove_field(name)
            elif (table.schema().find_field(column).field_id, str(transform)) not in sources:
                update.add_field(column, transform, name)

    @precondition(lambda self: self.taken > 0)
    @rule(column=st.sampled_from(["a", "b", "a__long", "a__json"]))
    def they_rename(self, column: str) -> None:
        table = self._table()
        if column not in [field.name for field in table.schema().fields]:
            return
        self.renames += 1
        with table.update_schema() as update:
            update.rename_column(column, f"renamed_{self.renames}")

    @precondition(lambda self: self.taken > 0)
    @rule(deep=st.booleans())
    def they_add(self, deep: bool) -> None:
        table = self._table()
        structs = [field.name for field in table.schema().fields if isinstance(field.field_type, StructType)]
        path: tuple[str, ...] = (structs[0],) if deep and structs else ()
        self.theirs += 1
        with table.update_schema() as update:
            update.add_column((*path, f"theirs_{self.theirs}"), StringType())

    @precondition(lambda self: self.theirs > 0)
    @rule()
    def they_drop_theirs(self) -> None:
        table = self._table()
        names = [name for name in table.schema().column_names if name.rpartition(".")[2].startswith("theirs_")]
        for name in names[:1]:
            with table.update_schema() as update:
                update.delete_column(tuple(name.split(".")))

    @precondition(lambda self: self.taken > 0)
    @rule()
    def they_widen(self) -> None:
        table = self._table()
        wider: dict[type, Any] = {IntegerType: LongType()}
        with table.update_schema() as update:
            for field in table.schema().fields:
                if (kind := wider.get(type(field.field_type))) is not None:
                    update.update_column(field.name, kind)
                elif str(field.field_type) == "float":
                    update.update_column(field.name, DoubleType())

    # ------------------------------------------------------------------ what must hold

    def _everything_is_found(self) -> None:
        wanted: dict[int, list[str]] = {}
        for record in self.records[: self.committed]:
            wanted |= dict(zip(record[ID].to_pylist(), atoms_by_row(record), strict=True))
        found: dict[int, list[str]] = {}
        table = self._table()
        for part in duckdb_tables(table):
            for batch in part.to_batches():
                atoms = dict(zip(batch[ID].to_pylist(), atoms_by_row(batch), strict=True))
                assert not atoms.keys() & found.keys(), "a row is there twice"
                found |= atoms
        assert found == wanted
        partitions_are_right(table)
        for number in list(wanted)[-2:]:
            assert table.scan(row_filter=f"{ID} == {number}", selected_fields=(ID,)).to_arrow().num_rows == 1

    def teardown(self) -> None:
        with suppress(AttributeError):  # it never started
            self._close()
        self._directory.cleanup()


def in_thread(work: Any, *arguments: Any) -> Any:
    """What a sink's blocking method returns, run where the engine runs it."""
    return trio.run(partial(trio.to_thread.run_sync, work, *arguments))


LEAN = settings(max_examples=6, stateful_step_count=12, suppress_health_check=list(HealthCheck), deadline=None)
LONG = settings(LEAN, max_examples=10, stateful_step_count=25)
LONGER = settings(LEAN, max_examples=300, stateful_step_count=40)

TestGrowingTable = GrowingTable.TestCase
TestGrowingTable.settings = LEAN


class LongGrowingTable(GrowingTable):
    """The same, for much longer."""


TestLongGrowingTable = pytest.mark.check(LongGrowingTable.TestCase)
TestLongGrowingTable.settings = LONG


class LongerGrowingTable(GrowingTable):
    """The same, for an hour."""


TestLongerGrowingTable = pytest.mark.soak(pytest.mark.timeout(7200)(LongerGrowingTable.TestCase))
TestLongerGrowingTable.settings = LONGER
