"""Files of the lake: a local one is on disk, with the directories above it, before anything can name it.

pyiceberg writes local files without syncing them, and syncs only its catalog: a power cut then leaves
a catalog that points at files which never reached the disk. `DurableFileIO` is named to pyiceberg by
the catalog property `py-io-impl`, which is not stored in tables, so other programs read them as usual.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import urlparse

import pyarrow as pa
from pyarrow.fs import FileSelector, FileSystem, FileType
from pyiceberg.io import (
    GCS_DEFAULT_LOCATION,
    GCS_PROJECT_ID,
    GCS_SERVICE_HOST,
    GCS_TOKEN,
    GCS_TOKEN_EXPIRES_AT_MS,
    FileIO,
    InputFile,
    InputStream,
    OutputFile,
    OutputStream,
)
from pyiceberg.io.pyarrow import PyArrowFile, PyArrowFileIO
from pyiceberg.typedef import EMPTY_DICT, Properties

from conveyord.core.errors import StorageFull
from conveyord.storage.disk import FULL_ERRNOS, make_directories, sync_directory

BUFFER_BYTES = 1024 * 1024  # one write call per megabyte; Parquet pages come in far smaller pieces
GCS_SCHEMES = ("gs://", "gcs://")
GCS_RETRY_SECONDS = 20.0  # its last wait comes on top: 35 s in all, within the deadline of a commit


def local_path(location: str) -> Path | None:
    """The path that a location names on this machine, or None for any other scheme."""
    if location.startswith("file:"):
        return Path(urlparse(location).path)  # not unquoted: pyiceberg reads it back as it stands
    return None if "://" in location else Path(location).absolute()


def names_in(io: FileIO, directory: str) -> list[str]:
    """Blocking. The names of the files directly in `directory`, a location that ends in a slash.

    Empty if there is no such directory, and for a FileIO of somebody's own. Raises OSError if it may not be listed.
    """
    from pyiceberg.io.fsspec import FsspecFileIO

    if isinstance(io, PyArrowFileIO):
        scheme, netloc, path = io.parse_location(directory, io.properties)
        # pyarrow takes a trailing slash for a part without a name.
        selector = FileSelector(path.rstrip("/"), allow_not_found=True)
        found = io.fs_by_scheme(scheme, netloc).get_file_info(selector)
        return [info.base_name for info in found if info.type == FileType.File]
    if isinstance(io, FsspecFileIO):
        store = io.get_fs(urlparse(directory).scheme)
        store.invalidate_cache()  # it answers from memory otherwise
        try:
            listed = store.ls(directory, detail=True)
        except FileNotFoundError:
            return []
        return [str(entry["name"]).rsplit("/", 1)[-1] for entry in listed if entry["type"] == "file"]
    return []


def storage_full(error: OSError, path: Path | str) -> StorageFull | None:
    """`error` as a sentence about a full or read-only disk, or None if it is about something else."""
    if error.errno not in FULL_ERRNOS:
        return None
    if error.errno == errno.EROFS:
        return StorageFull(f"{path}: the file system is read-only; mount it writable and run again")
    return StorageFull(f"{path}: {os.strerror(error.errno)}; free space and run again, nothing committed is lost")


class DurableOutputStream:
    """A local file being written. `close` returns once it and its directory entries are on disk.

    Leaving its context by an exception closes the file without syncing it: nobody will name it.
    """

    def __init__(self, path: Path, *, top: Path | None, overwrite: bool) -> None:
        self._path = path
        self._top = top
        self._existing = make_directories(path.parent)
        self._file = path.open("wb" if overwrite else "xb", buffering=BUFFER_BYTES)

    @property
    def closed(self) -> bool:
        return self._file.closed

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            raise storage_full(error, self._path) or error from error

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        try:
            self._file.flush()
        except OSError as error:
            raise storage_full(error, self._path) or error from error

    def close(self) -> None:
        if self._file.closed:
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._sync_directories()
        except OSError as error:
            raise storage_full(error, self._path) or error from error
        finally:
            with suppress(OSError):  # a second close repeats the failed flush; the first error is what counts
                self._file.close()

    def _sync_directories(self) -> None:
        # All of them every time, 24 us each when nothing changed: another thread may have created one
        # and not have synced it yet, while the commit that follows names our file.
        stop = self._existing if self._top is None else self._top
        for directory in self._path.parents:
            sync_directory(directory)
            if directory == stop or directory == self._existing and not directory.is_relative_to(stop):
                break

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        with suppress(OSError):  # the error on its way out says more than a failed flush of an abandoned file
            self._file.close()


class DurableOutputFile(PyArrowFile):
    """A local file to be. Reading it back is pyarrow's."""

    def __init__(self, location: str, path: Path, filesystem: FileSystem, *, top: Path | None) -> None:
        super().__init__(location, str(path), filesystem)
        self._local = path
        self._top = top

    def create(self, overwrite: bool = False) -> OutputStream:
        """Open the file for writing. Raises FileExistsError unless `overwrite`, StorageFull on a full disk."""
        try:
            return DurableOutputStream(self._local, top=self._top, overwrite=overwrite)
        except OSError as error:
            raise storage_full(error, self._local) or error from error


class GcsFile(PyArrowFile):
    """A file in Google Cloud Storage, opened without stopping the process.

    pyarrow opens a seekable file at the first touch, whatever that is, and holds Python's global lock until the
    store has answered: no thread runs, no deadline passes and no signal arrives until then. Metadata, which is
    read as a whole anyway, is therefore read as a stream. Data files are opened as pyarrow does.
    """

    def open(self, seekable: bool = True) -> InputStream:
        """Open the file for reading. Raises FileNotFoundError, PermissionError."""
        if self.location.endswith(".parquet"):
            return super().open(seekable)
        with super().open(seekable=False) as stream:
            whole: InputStream = pa.BufferReader(stream.read())
        return whole


class DurableFileIO(PyArrowFileIO):
    """pyarrow's FileIO, except that local files and their directories are synced when they are closed.

    In Google Cloud Storage it gives up what fails after `GCS_RETRY_SECONDS`. A subclass, because a FileIO is looked
    at by what it derives from in places outside pyiceberg.
    """

    def __init__(self, properties: Properties = EMPTY_DICT) -> None:
        super().__init__(properties)
        warehouse = properties.get("warehouse")
        self._top = local_path(warehouse) if warehouse else None

    def new_input(self, location: str) -> PyArrowFile:
        plain = super().new_input(location)
        if not location.startswith(GCS_SCHEMES):
            return plain
        scheme, netloc, path = self.parse_location(location, self.properties)
        return GcsFile(location, path, self.fs_by_scheme(scheme, netloc))

    def new_output(self, location: str) -> PyArrowFile:
        path = local_path(location)
        if path is None:
            return super().new_output(location)
        return DurableOutputFile(location, path, self.fs_by_scheme("file", ""), top=self._top)

    def delete(self, location: str | InputFile | OutputFile) -> None:
        """Delete one file. Raises FileNotFoundError if it is not there."""
        path = local_path(location if isinstance(location, str) else location.location)
        if path is None:
            super().delete(location)
            return
        try:
            path.unlink()
        except OSError as error:
            raise storage_full(error, path) or error from error

    def _initialize_gcs_fs(self) -> FileSystem:
        """pyiceberg's, with the two settings that it does not pass on: how long to try, and the project.

        Without a limit Google's client repeats a request that fails for a quarter of an hour.
        """
        from pyarrow.fs import GcsFileSystem  # not every build of pyarrow has it

        options: dict[str, object] = {"retry_time_limit": timedelta(seconds=GCS_RETRY_SECONDS)}
        if token := self.properties.get(GCS_TOKEN):
            options["access_token"] = token
        if expires := self.properties.get(GCS_TOKEN_EXPIRES_AT_MS):
            options["credential_token_expiration"] = datetime.fromtimestamp(int(expires) / 1000, tz=UTC)
        if location := self.properties.get(GCS_DEFAULT_LOCATION):
            options["default_bucket_location"] = location
        if project := self.properties.get(GCS_PROJECT_ID):
            options["project_id"] = project
        if host := self.properties.get(GCS_SERVICE_HOST):
            parsed = urlparse(host)
            options["scheme"], options["endpoint_override"] = parsed.scheme, parsed.netloc
        return GcsFileSystem(**options)
