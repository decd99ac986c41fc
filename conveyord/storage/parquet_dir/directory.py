"""One pipeline's writing end of a directory of Parquet files: exactly once, without a catalog.

A directory has no commit of its own: whoever lists it sees one file after the other appear. So the commit is a
manifest of ours, and what readers see follows from it:

1. Files are written to `_conveyord/<pipeline>/staged/*.part`, where no reader looks, and synced there.
2. The manifest of commit n (`commit_log.py`) names them, where each belongs, and the positions up to which
   records are in them. Once it is on disk, commit n has happened.
3. The files are renamed into place, each under a name that follows from the pipeline, n and a count alone, and
   the directories synced. Only then are batches acknowledged.

On opening, step 3 is done again for the newest manifest, whatever came of it before: that is harmless as often as one
likes. What else is staged belongs to no commit and is deleted; its records are read again. So a record is in the
directory once, wherever the process or the power went.

What a reader may see while a commit is published: some files of it and not yet the others. Each file is whole, and
none is ever replaced or withdrawn. A reader that wants whole commits takes the files that manifests name.

Positions are also in the footer of every file (key `conveyord`), so that a copy without manifests can be examined. So
are where the file belongs and a digest of it, by which `directory_audit.py` knows copies and what was changed.
Files that others put there are left alone, and files of ours that were deleted are not missed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from conveyord.core.errors import ConfigError, Corrupt, Refused
from conveyord.core.flow.positions import Partition, Positions, Span
from conveyord.core.flow.tally import Tally
from conveyord.core.planning.fence import Fence
from conveyord.storage.commit_log import STATE_DIRECTORY, CommitLog, Manifest, file_stem, former_names, state_directory
from conveyord.storage.disk import sync_directory
from conveyord.storage.parquet_dir.hive import HivePartitioning
from conveyord.storage.parquet_dir.sealing import SEAL_KEY, UNSEALED
from conveyord.storage.parquet_dir.staging import STAGED_DIRECTORY, StagedFile, StagingWriter, clear, publish
from conveyord.storage.rolling import RollingOptions

SINK = "parquet_dir"
FOOTER_KEY = "conveyord"
FOOTER_PARTITIONS_MAX = 1_000  # a commit of more source files than this says so; its manifest has them all


@dataclass(frozen=True, slots=True)
class DirectoryOptions:
    """Where files go, for whom, and how. adopt_from: a former name of the pipeline."""

    root: Path
    pipeline: str
    partition_by: tuple[str, ...] = ()
    adopt_from: str | None = None
    rolling: RollingOptions = field(default_factory=RollingOptions)


class ParquetDirectory:
    """Blocking. Calls must not overlap; each may come from another thread. Raises OSError as files do."""

    def __init__(self, options: DirectoryOptions) -> None:
        self._options = options
        self._log = CommitLog(state_directory(options.root, options.pipeline), sink=SINK)
        self._staging = self._log.directory / STAGED_DIRECTORY
        self._fence = Fence(0)
        self._formers: tuple[str, ...] = ()
        self._writer: StagingWriter | None = None
        self._staged: list[StagedFile] = []
        self._moved: dict[Partition, Span] = {}
        self._count = 0
        self._is_committing = False
        self.schema: pa.Schema | None = None
        """What `write` takes: the columns of the directory's files so far, or None while there are none."""
        self.rows_committed = 0
        self.files_committed = 0
        self.commits = 0

    def open(self) -> Positions:
        """Finish what an earlier run committed, delete what it did not, and return how far it got.

        Raises Refused if another run writes here, Corrupt if the newest manifest is damaged.
        """
        root, former = self._options.root, self._options.adopt_from
        if root.exists() and not root.is_dir():
            raise ConfigError(f"path {str(root)!r} is a file; name a directory, which may be new")
        newest = self._log.open(former=None if former is None else state_directory(root, former)) or Manifest()
        publish(self._staging, root, files_of(newest, self._log.directory))
        clear(self._staging)
        self._fence = newest.fence
        self._formers = former_names(newest, self._options.pipeline)
        self._use(_union([_schema_of(newest), *self._schemas_of_others()]))
        return newest.fence.positions

    @property
    def took_over(self) -> bool:
        """Whether `open` took over what the pipeline committed under its former name."""
        return self._log.took_over

    def shape(self, schema: pa.Schema) -> None:
        """Let files that begin from now on have columns as `schema`. Raises ConfigError for what cannot be."""
        if self._writer is not None:
            self._staged += self._writer.finish()
        self._use(schema)

    def write(self, batch: pa.RecordBatch) -> None:
        """Write rows, with exactly `schema`, to files that nobody sees yet."""
        assert self._writer is not None, "a directory is shaped before it is written"
        self._writer.write(batch)

    def cover(self, spans: Iterable[Span]) -> None:
        """The next rows are of these records: for the footers of files that end within a commit."""
        for span in spans:
            earlier = self._moved.pop(span.partition, span)
            self._moved[span.partition] = Span(span.partition, earlier.first, span.end, span.mark)

    @property
    def bytes_staged(self) -> int:
        """About how many bytes the next commit would add."""
        staged = sum(file.bytes for file in self._staged)
        return staged + (self._writer.bytes_written + self._writer.buffered_bytes if self._writer else 0)

    def commit(self, spans: Iterable[Span], tally: Tally, states: Mapping[str, str]) -> None:
        """Put the rows written since the last commit into the directory, with the positions of their records.

        On return they are there, on disk. If this raises, whether they are is seen by the next `open`.
        """
        if self._writer is not None:
            self._staged += self._writer.finish()
        files = self._staged
        rows = sum(file.rows for file in files)
        fence = self._fence.advanced(spans, tally, rows, states)
        self._refuse_taken(files)
        sync_directory(self._staging)
        self._is_committing = True
        self._fence = self._log.write(fence, self._notes(files))
        publish(self._staging, self._options.root, files)
        self._log.prune(self._fence)
        self._is_committing = False
        self._staged, self._moved, self._count = [], {}, 0
        self.rows_committed += rows
        self.files_committed += len(files)
        self.commits += 1

    def abort(self) -> None:
        """Delete the files that no manifest names or may name. The writer is of no more use."""
        if self._writer is not None:
            self._writer.abort()
        if not self._is_committing:
            for file in self._staged:
                (self._staging / file.staged).unlink(missing_ok=True)

    def close(self) -> None:
        """Let another run write."""
        self._log.close()

    def _use(self, schema: pa.Schema | None) -> None:
        if schema is None or len(schema) == 0:
            return
        partition_by = self._options.partition_by
        self._writer = StagingWriter(
            self._staging,
            schema,
            HivePartitioning(schema, partition_by) if partition_by else None,
            self._options.rolling,
            next_name=self._next_name,
            footer=self._footer,
        )
        self.schema = schema

    def _next_name(self) -> str:
        self._count += 1
        return f"{file_stem(self._options.pipeline)}-{self._fence.n + 1:08d}-{self._count:05d}"

    def _footer(self, path: str) -> dict[str, str]:
        moved = list(self._moved.values())
        named = moved[-FOOTER_PARTITIONS_MAX:]
        said = {
            "pipeline": self._options.pipeline,
            "commit": self._fence.n + 1,
            "path": path,
            "positions": [[*span.partition, span.first, span.end, span.mark] for span in named],
            "partitions": len(moved),
            SEAL_KEY: UNSEALED,
        }
        return {FOOTER_KEY: json.dumps(said, separators=(",", ":"))}

    def _notes(self, files: Iterable[StagedFile]) -> dict[str, Any]:
        schema = None if self.schema is None else base64.b64encode(self.schema.serialize()).decode("ascii")
        return {
            "pipeline": self._options.pipeline,
            "formers": list(self._formers),
            "partition_by": list(self._options.partition_by),
            "files": [asdict(file) for file in files],
            "schema": schema,
        }

    def _refuse_taken(self, files: Iterable[StagedFile]) -> None:
        """A name is given once, so a file that has it says that manifests were lost: its rows would be doubled."""
        for file in files:
            target = self._options.root / file.path
            if target.exists():
                raise Refused(
                    f"{target}: exists already, but {self._log.directory} knows of no such commit; restore that "
                    f"directory from a backup, or delete the files of {self._options.pipeline} to write all anew"
                )

    def _schemas_of_others(self) -> list[pa.Schema | None]:
        """What the other pipelines that write to this directory have as columns: a column is to have one type."""
        found = []
        for place in sorted((self._options.root / STATE_DIRECTORY).iterdir()):
            if place != self._log.directory and place.is_dir():
                with suppress(Corrupt):  # it is for the run of that pipeline to say so
                    found.append(_schema_of(CommitLog(place, sink=SINK).newest()))
        return found


def files_of(manifest: Manifest, where: Path) -> list[StagedFile]:
    """The files of a commit, whose manifest lies in `where`. Raises Corrupt if it does not say them."""
    try:
        return [StagedFile(**file) for file in manifest.notes.get("files", [])]
    except TypeError as error:
        raise Corrupt(f"{where}: commit {manifest.fence.n} does not say its files ({error}); restore it") from error


def _schema_of(manifest: Manifest | None) -> pa.Schema | None:
    text = None if manifest is None else manifest.notes.get("schema")
    return None if text is None else pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def _union(schemas: Iterable[pa.Schema | None]) -> pa.Schema | None:
    """Every column under its first type."""
    fields: dict[str, pa.Field] = {}
    for schema in schemas:
        for column in schema or ():
            fields.setdefault(column.name, column)
    return pa.schema(list(fields.values())) if fields else None
