"""Keeps a table bounded: few snapshots, few metadata files, and no file on disk that nothing names.

pyiceberg's expiry only removes snapshots from the metadata; the files stay. Here the files that lose
their last reference are entered in the ledger, then the snapshots are expired, then the files are
deleted. A crash in between leaves entries that the next run looks at again. An entry is a suspicion:
whatever it says, a file that the table's present metadata can reach is never deleted.

Only tables that conveyord created are expired. On a table that was adopted only the pipeline's own
leftovers are deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

from conveyord.core.planning.committer import Failed
from conveyord.core.planning.fence import decode
from conveyord.storage.lake.ledger import TableLedger
from conveyord.storage.lake.outcomes import failure, within
from conveyord.storage.lake.table import ARCHIVE_PREFIX, CREATED_BY_KEY, DEADLINE_SECONDS, LakeTable

if TYPE_CHECKING:
    from uuid import UUID

    from pyiceberg.io import FileIO
    from pyiceberg.manifest import ManifestFile
    from pyiceberg.table import Table
    from pyiceberg.table.snapshots import Snapshot

EVERY_COMMITS = 20  # expiry costs about two commits; at 20 it is a tenth
SNAPSHOTS_KEPT = 50  # at one commit a minute most of an hour to look back; each costs 0.6 KB per commit
METADATA_NAME = re.compile(r"(\d+)-[0-9a-f-]{36}\.metadata\.json")


class Maintenance:
    """Maintains one table between the commits of its committer. Blocking.

    Nothing here may fail a batch that has landed: a failed round is left to the next one, and kept in
    `last_failure` for whoever asks.
    """

    def __init__(
        self,
        table: LakeTable,
        ledger: TableLedger,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
        snapshots_kept: int = SNAPSHOTS_KEPT,
    ) -> None:
        self._table = table
        self._ledger = ledger
        self._deadline_seconds = deadline_seconds
        self._snapshots_kept = snapshots_kept
        self._manifests: dict[str, tuple[ManifestFile, ...]] = {}
        self.last_failure: Failed | None = None

    def run(self, *, landed: int) -> None:
        """Expire old snapshots and delete what nothing references. `landed`: the last batch of this run."""
        self.last_failure = None
        try:
            within(self._deadline_seconds, lambda: self._run(landed))
        except Exception as error:  # noqa: BLE001 - `failure` decides every class, and raises our own bugs
            self.last_failure = failure(error, sent=True)

    def _run(self, landed: int) -> None:
        table = self._load()
        if CREATED_BY_KEY in table.properties:
            self._expire(table, landed)
            table = self._load()
        self._sweep(table, landed)
        if CREATED_BY_KEY in table.properties:
            self._delete_old_metadata(table)  # last: in an object store the right to list may be missing

    def _load(self) -> Table:
        return self._table.catalog.load_table(self._table.identifier)

    def _expire(self, table: Table, landed: int) -> None:
        from pyiceberg.table.update import AssertRefSnapshotId, AssertTableUUID, RemoveSnapshotsUpdate

        doomed = expirable(table, self._snapshots_kept)
        if not doomed:
            return
        kept = [s for s in table.metadata.snapshots if s.snapshot_id not in doomed]
        gone = [s for s in table.metadata.snapshots if s.snapshot_id in doomed]
        # Before the commit, so that a crash after it cannot lose the list.
        self._ledger.abandon(self._losing_last_reference(table, gone, kept), batch=landed)
        refs = table.metadata.refs.items()
        self._table.catalog.commit_table(
            table,
            (
                AssertTableUUID(uuid=table.metadata.table_uuid),
                # A branch or tag that moved onto an old snapshot meanwhile must win over its expiry.
                *(AssertRefSnapshotId(ref=name, snapshot_id=ref.snapshot_id) for name, ref in refs),
            ),
            (RemoveSnapshotsUpdate(snapshot_ids=sorted(doomed)),),
        )

    def _losing_last_reference(self, table: Table, gone: Iterable[Snapshot], kept: Iterable[Snapshot]) -> set[str]:
        """Files that are reachable from `gone` and not from `kept`."""
        from pyiceberg.table.snapshots import Operation

        gone, kept = list(gone), list(kept)
        before = {m.manifest_path: m for s in gone for m in self._manifests_of(table, s)}
        after = {m.manifest_path: m for s in kept for m in self._manifests_of(table, s)}
        self._manifests = {s.manifest_list: self._manifests[s.manifest_list] for s in kept}
        lost = {s.manifest_list for s in gone} | (before.keys() - after.keys())
        appends = all(s.summary is not None and s.summary.operation == Operation.APPEND for s in (*gone, *kept))
        if not (appends and _is_linear(table)):
            # Data files leave a table only through other operations or forgotten branches; without
            # them the head holds every file there ever was, and reading all manifests can be spared.
            orphaned = [manifest for path, manifest in before.items() if path not in after]
            lost |= _files_of(table, orphaned, live_only=False) - _files_of(table, after.values(), live_only=True)
        return lost

    def _sweep(self, table: Table, landed: int) -> None:
        """Delete the suspects that the table does not reference, and forget the others."""
        suspects = self._ledger.suspects(landed=landed)
        if not suspects:
            return
        doomed = set(suspects) - self._reachable(table, data=any(not _is_metadata(path) for path in suspects))
        for path in sorted(doomed):
            try:
                table.io.delete(path)
            except FileNotFoundError:
                continue  # entered before it was opened, and never opened
        self._ledger.settle(suspects)

    def _reachable(self, table: Table, *, data: bool) -> set[str]:
        """Everything that the present metadata names: lists, manifests, fence archives, and `data` files."""
        metadata = table.metadata
        manifests = {m.manifest_path: m for s in metadata.snapshots for m in self._manifests_of(table, s)}
        found = {snapshot.manifest_list for snapshot in metadata.snapshots} | manifests.keys()
        for key, value in metadata.properties.items():
            if key.startswith("conveyord.") and key.endswith(".fence"):
                archive = decode(value, where=key).archive
                found |= {archive.location} if archive is not None else set()
        if data:
            found |= _files_of(table, manifests.values(), live_only=False)
        return found

    def _delete_old_metadata(self, table: Table) -> None:
        """Delete metadata files that left the log, and those of commits that were refused.

        Files newer than the current one are left alone: a staged file of version v becomes current on top of
        version v - 1 or never. A catalog service writes and deletes metadata files itself.
        """
        from pyiceberg.catalog import MetastoreCatalog

        from conveyord.storage.lake.fileio import names_in

        if not isinstance(self._table.catalog, MetastoreCatalog):
            return
        log = [entry.metadata_file for entry in table.metadata.metadata_log]
        kept = {location.rsplit("/", 1)[-1] for location in (table.metadata_location, *log)}
        current = METADATA_NAME.fullmatch(table.metadata_location.rsplit("/", 1)[-1])
        if current is None:
            return  # a name that is not pyiceberg's: whoever gave it may have other rules
        directory = table.location_provider().new_metadata_location("")
        names = [name for name in names_in(table.io, directory) if METADATA_NAME.fullmatch(name) and name not in kept]
        owners = {name: _table_of(table.io, directory + name) for name in names}
        ours: set[UUID | None] = {table.metadata.table_uuid}
        if {*owners.values()} <= {*ours, None}:
            ours.add(None)  # nobody else has metadata here, so what is half written is ours as well
        for name in names:
            if owners[name] in ours and int(name.split("-")[0]) <= int(current[1]):
                with suppress(FileNotFoundError):
                    table.io.delete(directory + name)

    def _manifests_of(self, table: Table, snapshot: Snapshot) -> tuple[ManifestFile, ...]:
        """Manifests of a snapshot, remembered because lists are immutable and asked for again and again."""
        known = self._manifests.get(snapshot.manifest_list)
        if known is None:
            known = self._manifests[snapshot.manifest_list] = tuple(snapshot.manifests(table.io))
        return known


def expirable(table: Table, kept: int) -> set[int]:
    """Ids of the snapshots to expire: all but the newest `kept` and those that a branch or tag names.

    A branch keeps only its newest snapshot beyond `kept`; time travel into it is not promised.
    """
    newest_first = sorted(
        table.metadata.snapshots, key=lambda s: (s.sequence_number or 0, s.timestamp_ms), reverse=True
    )
    named = {ref.snapshot_id for ref in table.metadata.refs.values()}
    return {s.snapshot_id for s in newest_first[kept:]} - named


def _is_linear(table: Table) -> bool:
    """Whether every snapshot is an ancestor of the head, up to where history was expired."""
    parents = {snapshot.snapshot_id: snapshot.parent_snapshot_id for snapshot in table.metadata.snapshots}
    current, length = table.metadata.current_snapshot_id, 0
    while current is not None and current in parents:
        current, length = parents[current], length + 1
    return length == len(parents)


def _files_of(table: Table, manifests: Iterable[ManifestFile], *, live_only: bool) -> set[str]:
    from conveyord.storage.lake.manifests import referenced_files

    return {path for m in manifests for path in referenced_files(table.io, m, live_only=live_only)}


def _is_metadata(path: str) -> bool:
    name = path.rsplit("/", 1)[-1]
    return name.endswith(".avro") or name.startswith(ARCHIVE_PREFIX)


def _table_of(io: FileIO, location: str) -> UUID | None:
    """The table that a metadata file is of; None if it is half written.

    Another catalog may have given another table the same place, and so does this one after a table was renamed.
    """
    from pyiceberg.exceptions import ValidationError
    from pyiceberg.serializers import FromInputFile

    with suppress(FileNotFoundError, UnicodeDecodeError, ValidationError):
        return FromInputFile.table_metadata(io.new_input(location)).table_uuid
    return None
