"""A real embedded lake for tests: write rows, commit them, kill the run, look at the table."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
from pyiceberg.catalog import Catalog
from pyiceberg.exceptions import NoSuchTableError
from pyiceberg.manifest import DataFile
from pyiceberg.table import Table

from conveyord.core.flow.positions import Partition, Position, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.planning.fence import batch_key, decode, fence_key
from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.commit import Committed, TableCommitter
from conveyord.storage.lake.data_files import DataFileWriter, WriterOptions
from conveyord.storage.lake.fileio import local_path
from conveyord.storage.lake.ledger import Ledger
from conveyord.storage.lake.schemas import arrow_schema

NAME = "ns.t"
PIPELINE = "ns/p"
PARTITION = Partition("source", "file")
SCHEMA = pa.schema([pa.field("offset", pa.int64())])
ROWS_PER_BATCH = 3


@dataclass
class Run:
    """One run of the pipeline: what a process would hold in memory. Batch k covers offsets 3(k-1) to 3k."""

    data_dir: Path
    pipeline: str = PIPELINE
    catalog: Catalog | None = None
    deadline_seconds: float = 60.0
    waits: list[float] = field(default_factory=list)
    ledger: Any = None
    committer: Any = None

    def __post_init__(self) -> None:
        self.catalog = self.catalog or open_embedded(self.data_dir)
        self.book = Ledger(self.data_dir)
        self.ledger = self.book.for_table(self.pipeline)
        self.committer = TableCommitter(
            self.catalog,
            NAME,
            self.pipeline,
            self.ledger,
            random=Random(7),
            sleep=self.waits.append,
            deadline_seconds=self.deadline_seconds,
        )

    def open(self, **options: Any) -> Run:
        assert self.catalog is not None
        if self.committer.open(**options) is None:
            self.catalog.create_namespace_if_not_exists("ns")
            self.catalog.create_table(NAME, SCHEMA, properties=self.committer.initial_properties())
            self.committer.open(**options)
        return self

    @property
    def next_offset(self) -> int:
        return self.committer.fence.positions.get(PARTITION, Position(0)).offset

    def files(self, first: int, count: int = ROWS_PER_BATCH) -> list[DataFile]:
        """Rows `first` to `first + count`, each holding its offset, in data files that are known to the ledger."""
        assert self.catalog is not None
        table = self.catalog.load_table(NAME)
        writer = DataFileWriter(table, WriterOptions(target_file_bytes=1024 * 1024), self.ledger.intend)
        schema = arrow_schema(table)
        columns = [pa.array(range(first, first + count), pa.int64())]
        columns += [pa.nulls(count, field.type) for field in list(schema)[1:]]
        writer.write(pa.RecordBatch.from_arrays(columns, schema=schema))
        return list(writer.finish())

    def commit_next(self, *, files: list[DataFile] | None = None, rows: int = ROWS_PER_BATCH) -> Committed:
        assert self.catalog is not None
        first = self.next_offset
        metadata = self.catalog.load_table(NAME).metadata
        if files is None:
            files = self.files(first, rows) if rows else []
        span = Span(PARTITION, first, first + ROWS_PER_BATCH, mark="m")
        tally = Tally(read=ROWS_PER_BATCH, filtered=ROWS_PER_BATCH - rows)
        following = self.committer.fence.advanced([span], tally, rows)
        return self.committer.commit(
            files, following, spec_id=metadata.default_spec_id, schema_id=metadata.current_schema_id
        )

    def close(self) -> None:
        self.book.close()


def offsets(table: Table) -> list[int]:
    return sorted(table.scan().to_arrow()["offset"].to_pylist())


def assert_exactly_once(table: Table, pipeline: str = PIPELINE) -> int:
    """I3, I4 and I6 from the table alone. Returns the fence's batch number."""
    fence = decode(table.properties[fence_key(pipeline)], where="test")
    if fence.archive is not None:
        with table.io.new_input(fence.archive.location).open() as stream:
            fence = fence.loaded(stream.read())
    end = fence.positions.get(PARTITION, Position(0)).offset
    assert offsets(table) == list(range(fence.rows)), "I4, I6: every row below the fence once, none above it"
    assert end == fence.tally.read == fence.n * ROWS_PER_BATCH
    key = batch_key(pipeline)
    by_id = {s.snapshot_id: s for s in table.metadata.snapshots}
    numbers, snapshot = [], table.current_snapshot()
    while snapshot is not None:
        if snapshot.summary is not None and (seen := snapshot.summary.get(key)):
            numbers.append(int(seen))
        snapshot = by_id.get(snapshot.parent_snapshot_id) if snapshot.parent_snapshot_id else None
    assert numbers == list(range(fence.n, fence.n - len(numbers), -1)), "I3: no holes"
    assert fence.n == (numbers[0] if numbers else 0)
    return fence.n


def load(data_dir: Path) -> Table | None:
    try:
        return open_embedded(data_dir).load_table(NAME)
    except NoSuchTableError:
        return None


def files_on_disk(table: Table) -> set[str]:
    root = local_path(table.location())
    assert root is not None
    return {f"file://{path}" for path in root.rglob("*") if path.is_file()}


def files_reachable(table: Table) -> set[str]:
    """Everything the table's metadata names, by pyiceberg's own reading."""
    found = {table.metadata_location, *(entry.metadata_file for entry in table.metadata.metadata_log)}
    for snapshot in table.metadata.snapshots:
        found.add(snapshot.manifest_list)
        for manifest in snapshot.manifests(table.io):
            found.add(manifest.manifest_path)
            found |= {e.data_file.file_path for e in manifest.fetch_manifest_entry(table.io, discard_deleted=False)}
    for key, value in table.properties.items():
        if key.endswith(".fence") and (archive := decode(value, where=key).archive):
            found.add(archive.location)
    return found
