"""Sink `parquet_dir`: rows into a directory of Parquet files, exactly once and without a catalog.

How that holds is told in `storage/parquet_dir/directory.py`. Types are settled as for tables: a column keeps its
type from file to file, and a value that does not fit goes to a sibling column (`engine/schema`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from pydantic import Field

from conveyord.core.errors import Refused
from conveyord.core.flow.positions import Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.units import Bytes
from conveyord.engine.committing import CommitPolicy, CommittingSink, finish
from conveyord.engine.contracts import OperatorConfig, OperatorContext, SinkReport
from conveyord.engine.failures import storage_errors
from conveyord.engine.growing import Piece, Room
from conveyord.engine.messages import Batch
from conveyord.engine.poison import Salvaged
from conveyord.storage.parquet_dir.directory import DirectoryOptions, ParquetDirectory
from conveyord.storage.parquet_dir.hive import check_values
from conveyord.storage.rolling import RollingOptions


class ParquetFilePolicy(OperatorConfig):
    """When a file is full: at whichever comes first, and at every commit."""

    rows: int | None = Field(default=None, ge=1, description="Rows in one file, at most. None: no limit.")
    bytes: Bytes = Field(
        default=128 * 1024 * 1024, ge=64 * 1024, description="A file is closed when this much is written to it."
    )


class ParquetDirConfig(OperatorConfig):
    """Writes rows into a directory of Parquet files (zstd), exactly once. For DuckDB, Spark, Arrow, Polars.

    Files appear when a commit is done, none is changed afterwards, and a directory may be shared with other
    pipelines and programs. `_conveyord` in it keeps the positions: move it with the files, and delete it with them.
    Columns that come later are in later files; DuckDB reads all with `union_by_name`.
    """

    path: str = Field(
        min_length=1,
        description="The directory, made if missing; relative to the working directory.",
        examples=["out/quakes"],
    )
    partition_by: tuple[str, ...] = Field(
        default=(),
        description="Hive partitions, such as `country=DE/at_day=2024-01-01/`: `column`, "
        "`year|month|day|hour(column)`, `bucket(n, column)`, `truncate(n, column)`. A column named as it is stands in "
        "the directory's name and not in the files. A row with a date or time that only a bucket can tell, of no year "
        "from 0001 to 9999, is bad. May be changed later; files that are there stay where they are.",
    )
    file: ParquetFilePolicy = Field(default_factory=ParquetFilePolicy)
    commit: CommitPolicy = Field(default_factory=CommitPolicy)
    columns_max: int = Field(
        default=2_000, ge=1, le=100_000, description="Refuse to let the files grow beyond this many columns."
    )


class ParquetDirSink(CommittingSink):
    """See docs/operators.md."""

    Config = ParquetDirConfig
    delivery = "exactly-once"
    keeps_contract = True

    @classmethod
    def mistakes(cls, config: OperatorConfig) -> Mapping[str, str]:
        """See `Operator.mistakes`."""
        assert isinstance(config, ParquetDirConfig)
        if "://" in config.path:
            return {"path": f"{config.path!r} is no local directory; parquet_dir writes to local file systems only"}
        return {}

    def __init__(self, config: OperatorConfig, context: OperatorContext) -> None:
        super().__init__(config, context)
        options = DirectoryOptions(
            root=Path(self.config.path).absolute(),
            pipeline=context.pipeline,
            partition_by=self.config.partition_by,
            adopt_from=context.adopt_from,
            rolling=RollingOptions(target_file_bytes=self.config.file.bytes, file_rows_max=self.config.file.rows),
        )
        self._directory = ParquetDirectory(options)

    async def open(self) -> Positions:
        """See `Sink.open`. Raises Refused if the pipeline must not write there."""
        with storage_errors(self.what):
            held = await self.context.in_thread(self._directory.open)
        self.took_over = self._directory.took_over
        if self._directory.schema is None and self.context.contract.tables == "freeze":
            raise Refused(
                f"{self.what}: it holds no columns yet, and the pipeline's schema.tables is freeze; let tables evolve"
            )
        return held

    async def close(self) -> None:
        """See `Operator.close`. What was not committed is deleted; what cannot be is deleted by the next run."""
        await finish(self._directory.abort, self._directory.close)

    @property
    def what(self) -> str:
        """See `CommittingSink.what`."""
        return f"directory {self.config.path}"

    @property
    def destination(self) -> str:
        """See `Sink.destination`."""
        return f"path {Path(self.config.path).resolve()}"

    def write(self, batch: Batch) -> Salvaged[Piece]:
        """See `CommittingSink.write`."""
        directory = self._directory
        check = partial(check_values, expressions=self.config.partition_by)
        room = Room(directory.schema, what=self.what, columns_max=self.config.columns_max, check=check)
        accepted = room.accept(batch, self.context)
        self.discarded += room.discarded
        if len(room.schema) and (directory.schema is None or not room.schema.equals(directory.schema)):
            directory.shape(room.schema)
        directory.cover(batch.spans)
        for piece in accepted.pieces:
            if piece.rows.num_rows:
                directory.write(piece.under(directory.schema))
        return accepted

    @property
    def bytes_staged(self) -> int:
        """See `CommittingSink.bytes_staged`."""
        return self._directory.bytes_staged

    def commit(self, spans: Sequence[Span], tally: Tally, states: Mapping[str, str]) -> bool:
        """See `CommittingSink.commit`."""
        self._directory.commit(spans, tally, states)
        return True

    def report(self) -> SinkReport:
        """See `Sink.report`. Rows count once they are committed."""
        written = self._directory
        committed = written.rows_committed, written.files_committed, written.commits
        return SinkReport(self.context.stage, *committed, discarded_values=self.discarded_values)
