"""The files of a commit before it: written and synced where no reader looks, renamed into place after it."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from conveyord.storage.disk import sync_directory
from conveyord.storage.parquet_dir.hive import HivePartitioning
from conveyord.storage.parquet_dir.sealing import SealedFile
from conveyord.storage.rolling import Key, RollingOptions, RollingWriter

STAGED_DIRECTORY = "staged"
SUFFIX = ".part"  # not .parquet: DuckDB's `*` and `**` also find names that begin with a dot
BUFFER_BYTES = 1024 * 1024  # one write call per megabyte; Parquet pages come in far smaller pieces


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A finished file: its name in the staging directory, and its path below the directory that readers see."""

    staged: str
    path: str
    rows: int
    bytes: int


class StagingWriter(RollingWriter):
    """Blocking. Writes batches of one schema to files in a staging directory, which must exist."""

    def __init__(
        self,
        staging: Path,
        schema: pa.Schema,
        partitioning: HivePartitioning | None,
        options: RollingOptions,
        *,
        next_name: Callable[[], str],
        footer: Callable[[str], Mapping[str, str]],
    ) -> None:
        """next_name: of each new file, without a suffix. footer: what the file says of itself that belongs at a path,
        with UNSEALED in the place of its seal.
        """
        stored = schema if partitioning is None else pa.schema([schema.field(name) for name in partitioning.kept])
        super().__init__(stored.remove_metadata(), options)
        self._staging = staging
        self._partitioning = partitioning
        self._next_name = next_name
        self._footer_of = footer
        self._files: dict[str, StagedFile] = {}
        self.schema = schema
        """What `write` takes."""

    def finish(self) -> list[StagedFile]:
        """Close all files, in the order of their creation. They are on disk, but for their directory."""
        return [self._files.pop(path) for path in self._close_all()]

    def abort(self) -> None:
        """See `RollingWriter.abort`."""
        self._files = {}
        super().abort()

    def _split(self, batch: pa.RecordBatch) -> Iterable[tuple[Key, pa.RecordBatch]]:
        assert batch.schema.equals(self.schema), f"batch has {batch.schema}, the directory takes {self.schema}"
        if self._partitioning is not None:
            return self._partitioning.split(batch)
        return [((), batch)] if batch.num_rows else []

    def _create(self, key: Key) -> tuple[str, Any]:  # noqa: ARG002 - all are staged in one place
        path = str(self._staging / f"{self._next_name()}{SUFFIX}")
        self._note(path)
        raw = io.FileIO(path, "xb")
        return path, SealedFile(raw, BUFFER_BYTES)

    def _footer(self, key: Key, path: str, stream: SealedFile) -> Mapping[str, str]:
        stream.seal()
        return self._footer_of(self._final(key, path))

    def _finished(self, key: Key, path: str, *, size_bytes: int, metadata: pq.FileMetaData) -> None:
        self._files[path] = StagedFile(Path(path).name, self._final(key, path), metadata.num_rows, size_bytes)

    def _delete(self, path: str) -> None:
        Path(path).unlink()

    def _final(self, key: Key, path: str) -> str:
        """Where a staged file belongs, below the directory that readers see."""
        folder = "" if self._partitioning is None else f"{self._partitioning.path_of(key)}/"
        return f"{folder}{Path(path).stem}.parquet"


def publish(staging: Path, root: Path, files: Iterable[StagedFile]) -> None:
    """Rename files to where readers find them, on disk when this returns. Blocking; may be repeated at will.

    A file that is in neither place was published before and then deleted by someone, which is not our affair.
    """
    folders = set()
    for file in files:
        target = root / file.path
        with suppress(FileNotFoundError):  # published by an earlier attempt
            (staging / file.staged).stat()
            target.parent.mkdir(parents=True, exist_ok=True)
            (staging / file.staged).rename(target)
        folders.add(target.parent)
    # Also if nothing was left to rename: the process that renamed may have died before it synced.
    for folder in {above for below in folders for above in (below, *below.parents) if above.is_relative_to(root)}:
        with suppress(FileNotFoundError):
            sync_directory(folder)
    if folders:
        sync_directory(staging)


def clear(staging: Path) -> None:
    """Delete what no commit names, and make sure that there is a directory for what comes. Blocking."""
    staging.mkdir(exist_ok=True)
    for path in staging.iterdir():
        path.unlink()
    sync_directory(staging.parent)
