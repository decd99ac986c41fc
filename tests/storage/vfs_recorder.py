"""Records what SQLite and a Raft log's watermark do to their files, and makes of it what a power cut can leave.

A file is its content as of its last sync, and what was written since: of that a cut leaves any part, down to sectors of
512 bytes, which are whole or not there. Names are made and deleted in order, and are on disk when the directory is
synced.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import apsw

from conveyord.storage.raft_log import log as raft_log
from conveyord.storage.raft_log import watermark

SECTOR = 512
DIRSYNC_FLAGS = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL


@dataclass(frozen=True)
class Event:
    """what: create, write, truncate, sync, put (a file that is on disk takes the name), delete, directory (synced), or
    `mark`, where the test says how far it is.
    """

    what: str
    name: str = ""
    offset: int = 0
    data: bytes = b""


@dataclass(eq=False)
class File:
    durable: bytes = b""
    pending: list[Event] = field(default_factory=list)

    def sync(self) -> None:
        self.durable, self.pending = self.content([(one, None) for one in self.pending]), []

    def content(self, kept: list[tuple[Event, list[int] | None]]) -> bytes:
        """With these of the pending writes; of each the sectors that are named, or all."""
        content = bytearray(self.durable)
        for event, sectors in kept:
            if event.what == "truncate":
                del content[event.offset :]
                continue
            for start in range(event.offset // SECTOR * SECTOR, event.offset + len(event.data), SECTOR):
                if sectors is None or start in sectors:
                    first, end = max(start, event.offset), min(start + SECTOR, event.offset + len(event.data))
                    content.extend(bytes(max(0, end - len(content))))
                    content[first:end] = event.data[first - event.offset : end - event.offset]
        return bytes(content)


class Disk:
    """What is on disk for certain, and what may be, as events go by."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.durable = {name: File(content) for name, content in files.items()}
        self.current = dict(self.durable)
        self.names: list[tuple[str, File | None]] = []

    def take(self, event: Event) -> None:
        match event.what:
            case "create" | "put":
                self.current[event.name] = File(event.data)
                self.names.append((event.name, self.current[event.name]))
            case "delete":
                del self.current[event.name]
                self.names.append((event.name, None))
            case "write" | "truncate":
                self.current[event.name].pending.append(event)
            case "sync":
                self.current[event.name].sync()
            case "directory":
                for name, file in self.names:
                    _link(self.durable, name, file)
                self.names.clear()

    def image(self, choose: Random | bool) -> dict[str, bytes]:
        """Files after a power cut. choose: all of what is not certain is there, or nothing, or some by chance."""
        names = dict(self.durable)
        count = len(self.names) * choose if isinstance(choose, bool) else choose.randint(0, len(self.names))
        for name, file in self.names[:count]:
            _link(names, name, file)
        return {name: file.content(_kept(file.pending, choose)) for name, file in names.items()}


def _link(names: dict[str, File], name: str, file: File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file


def _kept(pending: list[Event], choose: Random | bool) -> list[tuple[Event, list[int] | None]]:
    if isinstance(choose, bool):
        return [(event, None) for event in pending] if choose else []
    kept: list[tuple[Event, list[int] | None]] = []
    share = choose.choice((0.2, 0.5, 0.9))
    for event in pending:
        if choose.random() < share:
            starts = range(event.offset // SECTOR * SECTOR, event.offset + len(event.data), SECTOR)
            torn = choose.random() < 0.3
            kept.append((event, [start for start in starts if choose.random() < 0.5] if torn else None))
    return kept


class Recorder(apsw.VFS):
    """A file system of SQLite's that notes what is done to files of one directory, in order."""

    def __init__(self, name: str, directory: Path) -> None:
        super().__init__(name, base="")
        self.name = name
        self.directory = directory
        self.events: list[Event] = []
        self.names = {path.name for path in directory.iterdir()} if directory.exists() else set()
        self.start = {name: (directory / name).read_bytes() for name in self.names}

    def note(self, what: str, path: str, offset: int = 0, data: bytes = b"") -> None:
        name = Path(path).name
        if what in ("write", "sync", "truncate") and name not in self.names:
            self.names.add(name)
            self.events.append(Event("create", name))
        self.events.append(Event(what, name, offset, data))

    def mark(self, value: object) -> None:
        self.events.append(Event("mark", str(value)))

    def xOpen(self, name: Any, flags: list[int]) -> RecordedFile:
        return RecordedFile(self, name, flags)

    def xDelete(self, filename: str, syncdir: bool) -> None:
        super().xDelete(filename, syncdir)
        self.names.discard(Path(filename).name)
        self.note("delete", filename)
        if syncdir:
            self.note("directory", filename)

    @contextmanager
    def recording(self) -> Iterator[Recorder]:
        """Also of what the log does without SQLite."""
        raise_to, sync, write_file = watermark.Watermark.raise_to, watermark.Watermark.sync, watermark.write_file
        sync_directory = raft_log.sync_directory
        mark = "raft.db-watermark"

        def raised(its: watermark.Watermark, sequence: int) -> None:
            raise_to(its, sequence)
            self.note("write", mark, 0, watermark._encoded(sequence))

        def synced(its: watermark.Watermark) -> None:
            sync(its)
            self.note("sync", mark)

        def written(path: Path, content: bytes) -> None:
            write_file(path, content)
            self.names.add(path.name)
            for what in ("put", "directory"):
                self.note(what, path.name, 0, content)

        def directory_synced(path: Path) -> None:
            sync_directory(path)
            self.note("directory", str(path))

        with (
            mock.patch.object(watermark.Watermark, "raise_to", raised),
            mock.patch.object(watermark.Watermark, "sync", synced),
            mock.patch.object(watermark, "write_file", written),
            mock.patch.object(raft_log, "sync_directory", directory_synced),
        ):
            yield self

    @property
    def syncs(self) -> int:
        """Of SQLite's files."""
        return sum(event.what == "sync" and not event.name.endswith("watermark") for event in self.events)


class RecordedFile(apsw.VFSFile):
    """One file of SQLite's."""

    def __init__(self, recorder: Recorder, name: Any, flags: list[int]) -> None:
        self._recorder = recorder
        self._name = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._syncs_directory = bool(flags[0] & DIRSYNC_FLAGS)
        super().__init__("", name, flags)

    def xWrite(self, data: Any, offset: int) -> None:
        super().xWrite(data, offset)
        self._recorder.note("write", self._name, offset, bytes(data))

    def xTruncate(self, newsize: int) -> None:
        super().xTruncate(newsize)
        self._recorder.note("truncate", self._name, newsize)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._recorder.note("sync", self._name)
        if self._syncs_directory:
            self._syncs_directory = False
            self._recorder.note("directory", self._name)
