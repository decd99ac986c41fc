"""The backups in one place: made, listed, fetched, cleaned up.

    <id>.snapshot    the file of a snapshot, as docs/state-store.md describes it
    <id>.json        its manifest, written when that is there as a whole: without it there is no backup

Nothing that is not named so is ever read or deleted.
"""

from __future__ import annotations

import difflib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from conveyord.core.errors import ConfigError, Corrupt, Refused
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.storage.backup.manifest import (
    MANIFEST_BYTES_MAX,
    About,
    Manifest,
    checked,
    damaged,
    decode,
    encode,
    is_id,
    manifest_of,
)
from conveyord.storage.backup.stores import PART_BYTES, Store, Stored, open_store
from conveyord.storage.sqlite_errors import translated

LEFTOVER_SECONDS = 24 * 3600
"""So old is what an upload left that nobody continues: none takes that long."""

_MANIFEST, _SNAPSHOT = ".json", ".snapshot"
_TEMPORARY = re.compile(r"(\.[0-9a-f]{8})?\.tmp$")
IDS_SHOWN = 3


class Source(Protocol):
    """A snapshot to be stored: `storage/state_store/snapshot_file.py: SnapshotFile`."""

    @property
    def info(self) -> SnapshotInfo:
        """What it is."""

    def read_chunk(self, offset: int, bytes_max: int) -> bytes:
        """The bytes from `offset` on; none at the end."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A backup that is there. manifest: None if it cannot be used; then `fault` says why."""

    id: str
    manifest: Manifest | None
    fault: str | None = None


class Backups:
    """Blocking; usable from any thread. Raises Refused, StorageFull or Retryable for what the place does.

    Nothing is kept in memory between two calls, and a call holds no more than some parts of a file.
    """

    def __init__(self, store: Store, *, now_seconds: Callable[[], float] = time.time) -> None:
        """Use `open_backups`. now_seconds: Unix time."""
        self._store = store
        self._now_seconds = now_seconds

    def create(self, snapshot: Source, about: About) -> Manifest:
        """Store a snapshot as a backup; durable on return.

        Raises Corrupt if the snapshot is not what it says: nothing is stored then. What a crash leaves is no backup.
        """
        manifest = manifest_of(snapshot.info, about)
        self._store.write(manifest.id + _SNAPSHOT, checked(_chunks(snapshot), manifest))
        self._store.write(manifest.id + _MANIFEST, [encode(manifest)])
        return manifest

    def list(self) -> tuple[Listed, ...]:
        """All backups, the newest first. Of the snapshots only the sizes are looked at."""
        names = self._store.names()
        return tuple(self._listed(id_, names) for id_ in _ids(names))

    def describe(self, id_: str) -> Manifest:
        """One backup. Raises Refused if there is none of that id, Corrupt if it cannot be used."""
        names = self._store.names()
        self._check_known(id_, names)
        return self._manifest(id_, names)

    def fetch(self, id_: str, path: Path) -> Manifest:
        """Copy the snapshot of a backup to `path`, which is not synced. Raises Corrupt unless every byte is right.

        `path` is not there after an error.
        """
        manifest = self.describe(id_)
        try:
            with translated(path, damaged=Corrupt, promise="the backup is as it was"), path.open("wb") as file:
                for part in checked(self._store.read(id_ + _SNAPSHOT), manifest):
                    file.write(part)
        except BaseException:
            with suppress(OSError):
                path.unlink()
            raise
        return manifest

    def delete(self, id_: str) -> None:
        """Remove a backup, also a damaged one. Raises Refused if there is none of that id."""
        self._check_known(id_, self._store.names())
        self._remove(id_)

    def cleanup(self, *, keep: int) -> tuple[str, ...]:
        """Remove all but the newest `keep` whole backups of each cluster; returns the ids that are gone.

        Damaged ones do not count, and stay until somebody deletes them. What an upload left that was cut off more than
        a day ago goes as well. Raises ConfigError if `keep` is below 1: the newest whole one always stays.
        """
        if keep < 1:
            raise ConfigError(f"keep is {keep}, and the newest backup always stays; write 1 or more")
        kept, gone = dict[str, int](), list[str]()
        for listed in self.list():
            if listed.manifest is None:
                continue
            cluster = listed.manifest.cluster
            kept[cluster] = kept.get(cluster, 0) + 1
            if kept[cluster] > keep:
                self._remove(listed.id)
                gone.append(listed.id)
        names = self._store.names()
        for name in _leftovers(names):
            if names[name].modified_at_seconds < self._now_seconds() - LEFTOVER_SECONDS:
                self._store.delete(name)
        return tuple(gone)

    def _remove(self, id_: str) -> None:
        # In this order: a crash leaves bytes without a manifest, which are no backup and are cleaned up.
        self._store.delete(id_ + _MANIFEST)
        self._store.delete(id_ + _SNAPSHOT)

    def _listed(self, id_: str, names: Mapping[str, Stored]) -> Listed:
        try:
            return Listed(id_, self._manifest(id_, names))
        except (Corrupt, Refused) as error:
            return Listed(id_, None, str(error))

    def _manifest(self, id_: str, names: Mapping[str, Stored]) -> Manifest:
        if (size := names[id_ + _MANIFEST].size) > MANIFEST_BYTES_MAX:
            raise damaged(id_, f"its manifest has {size} bytes, at most {MANIFEST_BYTES_MAX}")
        manifest = decode(b"".join(self._store.read(id_ + _MANIFEST)), id_)
        snapshot = names.get(id_ + _SNAPSHOT)
        if snapshot is None:
            raise damaged(id_, "its snapshot is missing")
        if snapshot.size != manifest.file_bytes:
            raise damaged(id_, f"its snapshot has {snapshot.size} bytes, and had {manifest.file_bytes}")
        return manifest

    def _check_known(self, id_: str, names: Mapping[str, Stored]) -> None:
        known = _ids(names)
        if id_ in known:
            return
        if not known:
            raise Refused(f"there is no backup {id_!r}: none is in this place; check its URL, or make one first")
        near = difflib.get_close_matches(id_, known, IDS_SHOWN) or known[:IDS_SHOWN]
        raise Refused(f"there is no backup {id_!r}; did you mean {' or '.join(near)}? See conveyorctl backup list")


def open_backups(url: str, properties: Mapping[str, str]) -> Backups:
    """The backups below a URL; see `stores.open_store`. Nothing is read or made yet. Raises ConfigError."""
    return Backups(open_store(url, properties))


def _ids(names: Mapping[str, Stored]) -> list[str]:
    """The newest first."""
    return sorted((name[: -len(_MANIFEST)] for name in names if _is_manifest(name)), reverse=True)


def _is_manifest(name: str) -> bool:
    return name.endswith(_MANIFEST) and is_id(name[: -len(_MANIFEST)])


def _leftovers(names: Mapping[str, Stored]) -> list[str]:
    """What belongs to no backup: snapshots without a manifest, and files that did not get their name."""
    found = list[str]()
    for name in names:
        whole = _TEMPORARY.sub("", name)
        stem, dot, kind = whole.rpartition(".")
        is_ours = is_id(stem) and dot + kind in (_MANIFEST, _SNAPSHOT)
        if is_ours and (whole != name or (stem + _MANIFEST) not in names):
            found.append(name)
    return found


def _chunks(snapshot: Source) -> Iterator[bytes]:
    offset = 0
    while part := snapshot.read_chunk(offset, PART_BYTES):
        yield part
        offset += len(part)
