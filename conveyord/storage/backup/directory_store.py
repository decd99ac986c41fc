"""Backups in a directory: each file is on disk before it has its name."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from conveyord.core.errors import Corrupt, Refused, Retryable, StorageFull
from conveyord.storage.backup.stores import PART_BYTES, Stored
from conveyord.storage.disk import make_durable_directories, sync_directory, write_all
from conveyord.storage.sqlite_errors import FULL_ERRNOS, UNWRITABLE_ERRNOS


class DirectoryStore:
    """See `stores.Store`. It is made by the first write; nothing else makes it."""

    def __init__(self, directory: str) -> None:
        self._directory = Path(directory)

    def names(self) -> Mapping[str, Stored]:
        """See `Store`. Raises Refused if there is no such directory."""
        found = dict[str, Stored]()
        with self._telling(self._directory), os.scandir(self._directory) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # another node cleans up
                    if entry.is_file():
                        status = entry.stat()
                        found[entry.name] = Stored(status.st_size, status.st_mtime)
        return found

    def read(self, name: str) -> Iterator[bytes]:
        """See `Store`. Raises Corrupt where the disk cannot read what it has."""
        path = self._directory / name
        with self._telling(path), path.open("rb", buffering=0) as file:
            while part := self._part(file, path):
                yield part

    def write(self, name: str, parts: Iterable[bytes]) -> None:
        """See `Store`."""
        path = self._directory / name
        temporary = path.with_name(f"{name}.{secrets.token_hex(4)}.tmp")  # two may write the same backup at a time
        with self._telling(path):
            make_durable_directories(self._directory)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                offset = 0
                for part in parts:
                    write_all(descriptor, [part], offset)
                    offset += len(part)
                os.fsync(descriptor)
                temporary.rename(path)
            except Exception:
                with suppress(OSError):  # what could not be written is what counts
                    temporary.unlink()
                raise
            finally:
                os.close(descriptor)
            sync_directory(self._directory)

    def delete(self, name: str) -> None:
        """See `Store`."""
        path = self._directory / name
        with self._telling(path):
            path.unlink(missing_ok=True)
            sync_directory(self._directory)

    def _part(self, file: io.FileIO, path: Path) -> bytes:
        try:
            return file.read(PART_BYTES)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise Corrupt(f"{path}: the disk cannot read it ({error.strerror}); use another backup") from error

    @contextmanager
    def _telling(self, path: Path) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, NotADirectoryError) as error:
            raise Refused(
                f"{path}: {error.strerror}; check the URL of the backups, and that their disk is mounted"
            ) from error
        except OSError as error:
            reason = error.strerror or str(error)
            if error.errno in FULL_ERRNOS:
                raise StorageFull(f"{path}: {reason}; free space, or remove old backups, and run again") from error
            if error.errno in UNWRITABLE_ERRNOS:
                raise Refused(
                    f"{path}: {reason}; let the user of this process read and write {self._directory}, on a disk that "
                    "is mounted writable, then run again"
                ) from error
            raise Retryable(f"{path}: {reason}; check the disk, then run again") from error
