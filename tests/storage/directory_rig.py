"""Both kinds of directories that a pipeline writes exactly once, driven alike: commits of rows with a count each.

Commit k covers offsets 4(k-1) to 4k of one partition and, now and then, a file that ends with it. Rows bring a
column from commit 3 on, so the schema grows on the way.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.storage import commit_log
from conveyord.storage.jsonl_files import JsonlFiles, JsonlOptions
from conveyord.storage.parquet_dir.directory import DirectoryOptions, ParquetDirectory
from conveyord.storage.rolling import RollingOptions

PIPELINE = "ns/p"
PARTITION = Partition("source", "file")
ROWS = 4
GROWS_AT = 2 * ROWS
KINDS = ("parquet", "partitioned", "lines", "zstd", "single")


@dataclass
class Run:
    """One run of a pipeline: what a process would hold in memory."""

    root: Path
    kind: str
    pipeline: str = PIPELINE
    former: str | None = None
    driver: Any = field(init=False)
    positions: Positions = field(init=False)

    def __post_init__(self) -> None:
        if self.kind in {"parquet", "partitioned"}:
            options = DirectoryOptions(
                root=self.root,
                pipeline=self.pipeline,
                partition_by=("k", "bucket(2, offset)") if self.kind == "partitioned" else (),
                adopt_from=self.former,
                rolling=RollingOptions(file_rows_max=3),
            )
            self.driver = ParquetDirectory(options)
            return
        self.driver = JsonlFiles(
            JsonlOptions(
                path=self.root / "rows.jsonl" if self.kind == "single" else self.root,
                single=self.kind == "single",
                pipeline=self.pipeline,
                compression="zstd" if self.kind == "zstd" else "none",
                file_rows_max=None if self.kind == "single" else 6,
                adopt_from=self.former,
            )
        )

    def open(self) -> Run:
        self.positions = self.driver.open()
        return self

    @property
    def next_offset(self) -> int:
        return self.positions.get(PARTITION, Position(0)).offset

    def commit_next(self, rows: int = ROWS) -> int:
        """Write and commit the next offsets, of which only the first `rows` are rows. Returns the commits so far."""
        first = self.next_offset
        number = first // ROWS
        spans = [Span(PARTITION, first, first + ROWS, "m"), Span(Partition("source", f"finished-{number}"), 0, 9, "m")]
        self.write(first, rows)
        if isinstance(self.driver, ParquetDirectory):
            self.driver.cover(spans)
        self.driver.commit(spans, Tally(read=ROWS, filtered=ROWS - rows), {"source": f"state {number}"})
        self.positions = self.positions.advanced(spans)
        return number + 1

    def write(self, first: int, rows: int = ROWS) -> None:
        found = [
            {"offset": n, "k": f"k{n % 2}", **({"late": n} if n >= GROWS_AT else {})}
            for n in range(first, first + rows)
        ]
        if not found:
            return
        if isinstance(self.driver, JsonlFiles):
            for row in found:
                self.driver.write(memoryview(json.dumps(row).encode() + b"\n"), 1)
            return
        schema = pa.schema([("offset", pa.int64()), ("k", pa.string())])
        if first >= GROWS_AT or (self.driver.schema is not None and len(self.driver.schema) > 2):
            schema = schema.append(pa.field("late", pa.int64()))
        if self.driver.schema is None or not schema.equals(self.driver.schema):
            self.driver.shape(schema)
        self.driver.write(pa.RecordBatch.from_pylist(found, schema=schema))

    def close(self) -> None:
        self.driver.abort()
        self.driver.close()

    def die(self) -> None:
        """What the kernel does for a process that is gone."""
        self.driver.close()


def files(root: Path) -> list[Path]:
    """What a reader of the directory takes for data."""
    found = (path for path in root.rglob("*") if path.is_file() and commit_log.STATE_DIRECTORY not in path.parts)
    return sorted(found)


def rows_in(root: Path) -> Iterator[dict[str, Any]]:
    """The rows of all files, whoever wrote them; partition columns are not made of names."""
    for path in files(root):
        if path.suffix == ".parquet":
            yield from pq.ParquetFile(path).read().to_pylist()
        else:
            data = path.read_bytes()
            if path.suffix == ".zst":
                data = zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
            assert not data or data.endswith(b"\n"), f"{path.name} ends within a line"
            yield from map(json.loads, data.splitlines())


def offsets(root: Path) -> list[int]:
    return sorted(row["offset"] for row in rows_in(root))


def leftovers(root: Path) -> list[Path]:
    """Files that no commit will ever need."""
    state = root / commit_log.STATE_DIRECTORY
    return [path for path in state.rglob("*") if path.suffix in {".part", ".tmp"}]
