"""The commits of one pipeline to files of its own, one small manifest each, in a directory beside them.

`<directory>/commit-00000012.json` is commit 12: the fence (see `core/planning/fence.py`), and what the driver
says of its files. A manifest is written whole and synced before anything is acknowledged, so the newest
one is the truth about what was committed. The last few are kept, for people; nothing reads the older.

    _conveyord/default%2Ftrips/
        lock                    held by the run that writes
        commit-00000012.json
        positions-<digest>.txt  the positions that no longer move, once they are many
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.planning.fence import ArchiveRef, Fence, decode, encode, encode_archive
from conveyord.storage.disk import make_durable_directories, sync_directory, write_file
from conveyord.storage.spill.names import escaped

STATE_DIRECTORY = "_conveyord"
"""Readers of a directory of files pass over names that begin with an underscore."""

VERSION = 1
MANIFESTS_KEPT = 20  # enough to see what the last minutes brought; one is enough to go on
_NAME = re.compile(r"commit-(\d{8,})\.json")
_ARCHIVE = re.compile(r"positions-[0-9a-f]{64}\.txt")


def state_directory(directory: Path, pipeline: str, *more: str) -> Path:
    """Where the manifests of a pipeline that writes to `directory` lie. more: what it writes to in there."""
    return directory.joinpath(STATE_DIRECTORY, *(escaped(name) for name in (pipeline, *more)))


def short_digest(pipeline: str) -> str:
    """What tells the files of a pipeline from those of others whose names look alike in a file name."""
    return hashlib.sha256(pipeline.encode()).hexdigest()[:8]


def file_stem(pipeline: str) -> str:
    """The beginning of the names of all files that a pipeline writes."""
    return f"part-{re.sub('[^A-Za-z0-9_-]', '.', pipeline)[:80]}-{short_digest(pipeline)}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """One commit: how far the pipeline has been written, and what the driver of `sink` noted of its files."""

    fence: Fence = field(default_factory=lambda: Fence(0))
    notes: Mapping[str, Any] = field(default_factory=dict)
    sink: str = ""


def former_names(manifest: Manifest, pipeline: str) -> tuple[str, ...]:
    """Under which other names the pipeline wrote, the latest last: its files keep the name of their time."""
    notes = manifest.notes
    names = (*notes.get("formers", ()), notes.get("pipeline"))
    return tuple(dict.fromkeys(str(name) for name in names if name is not None and name != pipeline))


class CommitLog:
    """The manifests of one pipeline in one place. Blocking; one writer at a time, which its lock ensures.

    Raises OSError as the file system does.
    """

    def __init__(self, directory: Path, *, sink: str) -> None:
        """sink: the type of sink that writes; the commits of another are not gone on from."""
        self.directory = directory
        self._sink = sink
        self._lock: int | None = None
        self.took_over = False
        """Whether `open` took the commits of a former name over."""

    def open(self, *, former: Path | None = None) -> Manifest | None:
        """Become the only writer, and return the newest commit, or None if there is none. Creates the directory.

        former: the directory under the pipeline's former name, which is taken over for good.
        Raises Refused if another run or another type of sink writes here, or if there is nothing to take
        over or nowhere to take it; Corrupt if the newest manifest is damaged.
        """
        if former is not None:
            self._take_over(former)
        make_durable_directories(self.directory)
        self._lock = self._locked(self.directory)
        for path in self.directory.glob("*.tmp"):
            path.unlink()
        newest = self.newest()
        if newest is not None and newest.sink != self._sink:
            raise Refused(
                f"{self.directory}: holds the commits of a sink {newest.sink}, which {self._sink} cannot go on from; "
                "give this sink another path"
            )
        return newest

    def newest(self) -> Manifest | None:
        """The newest commit of whoever writes here. Raises Corrupt if its manifest is damaged."""
        numbers = self.numbers()
        return self._read(numbers[-1]) if numbers else None

    def write(self, fence: Fence, notes: Mapping[str, Any]) -> Fence:
        """Commit: durable on return. Returns the fence as it was stored.

        Raises OSError, and then it shows by `newest` whether it happened.
        """
        if (outgrown := fence.outgrown()) is not None:
            content, digest = encode_archive(outgrown)
            name = f"positions-{digest}.txt"
            write_file(self.directory / name, content)
            fence = fence.with_archive(ArchiveRef(name, digest, len(outgrown)), outgrown)
        body = {"version": VERSION, "sink": self._sink, "fence": json.loads(encode(fence)), "notes": notes}
        write_file(self._path(fence.n), json.dumps(body, separators=(",", ":")).encode() + b"\n")
        return fence

    def prune(self, newest: Fence) -> None:
        """Delete manifests before the last few, and archives that the newest does not name. Not synced."""
        kept = newest.archive.location if newest.archive is not None else None
        for number in self.numbers()[:-MANIFESTS_KEPT]:
            self._path(number).unlink(missing_ok=True)
        for path in self.directory.iterdir():
            if _ARCHIVE.fullmatch(path.name) and path.name != kept:
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another run write."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _path(self, number: int) -> Path:
        return self.directory / f"commit-{number:08d}.json"

    def numbers(self) -> list[int]:
        """Of the commits whose manifests are there, in order."""
        try:
            names = [path.name for path in self.directory.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(int(found[1]) for name in names if (found := _NAME.fullmatch(name)))

    def _read(self, number: int) -> Manifest:
        path = self._path(number)
        remedy = "restore it from a backup of the directory; without it nobody knows which rows were written"
        try:
            body = json.loads(path.read_bytes())
            if body["version"] != VERSION:
                raise Corrupt(f"{path}: version {body['version']!r}, this program reads {VERSION}; upgrade conveyord")
            fence, notes, sink = decode(json.dumps(body["fence"]), where=str(path)), body["notes"], str(body["sink"])
        except (ValueError, KeyError, TypeError) as error:
            raise Corrupt(f"{path}: not a manifest ({error!r}); {remedy}") from error
        if fence.n != number or not isinstance(notes, dict):
            raise Corrupt(f"{path}: it says of itself that it is commit {fence.n}; {remedy}")
        if fence.archive is not None:
            archive = self.directory / fence.archive.location
            try:
                fence = fence.loaded(archive.read_bytes())
            except FileNotFoundError as error:
                raise Corrupt(f"{archive}: missing, and {path.name} names it; {remedy}") from error
        return Manifest(fence, notes, sink)

    def _take_over(self, former: Path) -> None:
        if self.numbers():
            if CommitLog(former, sink=self._sink).numbers():
                raise Refused(f"{self.directory}: both it and {former} hold commits; remove the one not to go on")
            return  # it was taken over before
        if not CommitLog(former, sink=self._sink).numbers():
            raise Refused(f"{former}: holds no commits to take over; check the former name of the pipeline")
        lock = self._locked(former)
        try:
            with suppress(FileNotFoundError):  # a run that committed nothing may have opened it
                self._make_way(former)
            make_durable_directories(self.directory.parent)
            self.took_over = True
            former.rename(self.directory)
            sync_directory(self.directory.parent)
            sync_directory(former.parent)
        finally:
            os.close(lock)

    def _make_way(self, former: Path) -> None:
        """Remove this log, which holds no commits, but not those that other sinks of the pipeline have within it.

        They move to `former` and come back with it, so a crash on the way leaves something to take over.
        """
        for within in sorted(path for path in self.directory.iterdir() if path.is_dir()):
            if not CommitLog(within, sink="").numbers():
                shutil.rmtree(within)
                continue
            there = former / within.name
            if CommitLog(there, sink="").numbers():
                raise Refused(f"{within}: both it and {there} hold commits; remove the one not to go on")
            if there.exists():
                shutil.rmtree(there)
            within.rename(there)
        sync_directory(former)
        shutil.rmtree(self.directory)

    @staticmethod
    def _locked(directory: Path) -> int:
        refusal = f"{directory}: another run of this pipeline writes here; wait for it, or stop it"
        return locked(directory / "lock", refusal=refusal)


def locked(path: Path, *, refusal: str) -> int:
    """Lock a file, which is made if it is missing, until the descriptor that is returned is closed.

    Raises Refused, saying `refusal`, if somebody else has locked it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(lock)
        raise Refused(refusal) from error
    return lock
