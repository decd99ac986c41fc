"""One Iceberg table as the committer sees it: load a view, append pinned to that view.

Never through pyiceberg's transactions: they repeat refused commits on a newer head by themselves,
which adds rows twice, and copy the metadata a dozen times. `Catalog.commit_table` does neither.
It does not delete old metadata files either, which is therefore done here.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from conveyord.core.errors import Corrupt, Refused, Retryable
from conveyord.core.planning.committer import Appended, Failed, View
from conveyord.core.planning.fence import (
    ArchiveRef,
    Fence,
    batch_key,
    decode,
    encode,
    encode_archive,
    fence_key,
)
from conveyord.storage.lake.ledger import TableLedger
from conveyord.storage.lake.outcomes import failure, within

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.manifest import DataFile
    from pyiceberg.table import Table
    from pyiceberg.table.metadata import TableMetadata
    from pyiceberg.table.update import TableRequirement, TableUpdate

DEADLINE_SECONDS = 60.0  # a commit takes 10 ms locally and seconds on a loaded service
RETRIES_KEY = "commit.retry.num-retries"
RETRIES_DEFAULT = 4  # pyiceberg's, where the property is missing
CREATED_BY_KEY = "conveyord.created-by"
METADATA_VERSIONS_MAX = 20  # old metadata files; readers hold one for seconds, people look back a few
ARCHIVE_PREFIX = "conveyord-fence-"
FORMAT_VERSION = 2  # 1 has no sequence numbers, 3 cannot be written by pyiceberg 0.12


@dataclass(frozen=True, slots=True)
class FileBatch:
    """What one commit adds: the files, possibly none, and the fence that stands for them.

    merge: also rewrite small manifests as one. removed_keys: properties that go in the same commit.
    """

    files: Sequence[DataFile]
    fence: Fence
    merge: bool = False
    removed_keys: Sequence[str] = ()


class LakeTable:
    """Port to one table for one pipeline. Blocking; not thread-safe: one committer owns it.

    Every call to the catalog has a deadline. After it the call is abandoned and counts as unknown;
    an append is pinned to the view's head, so a late effect of it excludes or is excluded by the next.
    """

    def __init__(
        self,
        catalog: Catalog,
        identifier: str,
        pipeline: str,
        ledger: TableLedger,
        *,
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> None:
        self.catalog = catalog
        self.identifier = identifier
        self.pipeline = pipeline
        self._ledger = ledger
        self._deadline_seconds = deadline_seconds
        self._attempts: list[str] = []
        self._fitting: tuple[tuple[str, int, int], frozenset[int]] | None = None

    def load(self) -> View | Failed:
        """Read the table. Raises Corrupt for an unreadable fence, Refused for an unsupported format."""
        try:
            table = within(self._deadline_seconds, lambda: self.catalog.load_table(self.identifier))
        except Exception as error:  # noqa: BLE001 - `failure` decides every class, raises what it must not hide
            return failure(error, sent=False)
        return self._view(table)

    def append(self, view: View, batch: FileBatch) -> Appended | Failed:
        """Commit `batch` on the head of `view`, or fail; never on any other head."""
        from conveyord.storage.lake.manifests import AppendFiles

        table: Table = view.handle
        append = AppendFiles(table, merge=batch.merge)
        sent = False

        def work() -> TableMetadata:
            nonlocal sent
            self._ledger.intend_all(append.paths)
            self._attempts += append.paths
            fence = batch.fence
            snapshot = append.write(batch.files, {batch_key(self.pipeline): str(fence.n)})
            updates = _snapshot_updates(table, snapshot)
            updates += self._property_updates(fence, snapshot.sequence_number or 0, batch.removed_keys)
            sent = True
            return self.catalog.commit_table(table, _pinned(table), updates).metadata

        try:
            metadata = within(self._deadline_seconds, work)
        except Exception as error:  # noqa: BLE001 - as above
            return failure(error, sent=sent or isinstance(error, TimeoutError))
        self._delete_old_metadata(table, metadata)
        return Appended(append.snapshot_id)

    def put_fence(self, view: View, fence: Fence) -> Failed | None:
        """Store a first fence on a table as it stands, with the settings the protocol needs. No snapshot."""
        from pyiceberg.table.update import SetPropertiesUpdate

        table: Table = view.handle
        updates = self._property_updates(fence, fence.sequence, ())
        updates += (SetPropertiesUpdate(updates={RETRIES_KEY: "0"}),)
        try:
            within(self._deadline_seconds, lambda: self.catalog.commit_table(table, _pinned(table), updates))
        except Exception as error:  # noqa: BLE001 - as above
            return failure(error, sent=True)
        return None

    def take_attempts(self) -> list[str]:
        """Metadata paths of the appends since the last call, landed or not."""
        taken, self._attempts = self._attempts, []
        return taken

    def load_archive(self, view: View, fence: Fence) -> Fence:
        """`fence` with its archived positions. Raises Corrupt if the archive is missing or altered."""
        ref = fence.archive
        if ref is None:
            return fence
        table: Table = view.handle

        def read() -> bytes:
            with table.io.new_input(ref.location).open() as stream:
                return stream.read()

        try:
            return fence.loaded(within(self._deadline_seconds, read))
        except FileNotFoundError as error:
            raise Corrupt(
                f"fence archive {ref.location}: it is missing, but table {self.identifier} names it; restore"
                " the file from a backup of the warehouse, positions cannot be made up"
            ) from error
        except OSError as error:
            raise Retryable(f"fence archive {ref.location}: cannot be read now ({error}); run again later") from error

    def with_archive(self, view: View, fence: Fence) -> Fence:
        """`fence` with positions moved to a new archive, if it has outgrown its property. The archive is durable."""
        archived = fence.outgrown()
        if archived is None:
            return fence
        table: Table = view.handle
        body, sha256 = encode_archive(archived)
        # Never the name of an earlier one, even of equal bytes: that one may be in use, and writing truncates.
        name = f"{ARCHIVE_PREFIX}{sha256}-{uuid.uuid4().hex[:8]}.jsonl"
        location = table.location_provider().new_metadata_location(name)
        self._ledger.intend(location)
        try:
            with table.io.new_output(location).create() as stream:
                stream.write(body)
        except OSError as error:
            raise Retryable(f"fence archive {location}: cannot be written ({error}); run again later") from error
        return fence.with_archive(ArchiveRef(location, sha256, len(archived)), archived)

    def initial_properties(self) -> dict[str, str]:
        """What a table must be created with, beside the user's own properties."""
        return {
            "format-version": str(FORMAT_VERSION),
            RETRIES_KEY: "0",
            CREATED_BY_KEY: self.pipeline,
            "write.metadata.previous-versions-max": str(METADATA_VERSIONS_MAX),
            "write.metadata.delete-after-commit.enabled": "true",
            fence_key(self.pipeline): encode(Fence(0)),
        }

    def seen_as(self, view: View, pipeline: str) -> View:
        """The table of `view` as another pipeline would see it."""
        other = LakeTable(self.catalog, self.identifier, pipeline, self._ledger)
        return other._view(view.handle)

    def _view(self, table: Table) -> View:
        metadata = table.metadata
        if metadata.format_version != FORMAT_VERSION:
            raise Refused(
                f"table {self.identifier}: its format version is {metadata.format_version}, conveyord commits"
                f" to version {FORMAT_VERSION}; upgrade or recreate the table, or name another"
            )
        text = metadata.properties.get(fence_key(self.pipeline))
        where = f"table {self.identifier}, property {fence_key(self.pipeline)}"
        own_batch, own_snapshot, oldest = self._ancestry(metadata)
        head = metadata.current_snapshot()
        return View(
            uuid=str(metadata.table_uuid),
            head=head.snapshot_id if head else None,
            fence=None if text is None else decode(text, where=where),
            own_batch=own_batch,
            own_snapshot=own_snapshot,
            oldest_sequence=oldest,
            spec_id=metadata.default_spec_id,
            fitting_schemas=self._fitting_schemas(metadata),
            retries=_number(metadata.properties, RETRIES_KEY, RETRIES_DEFAULT),
            handle=table,
        )

    def _ancestry(self, metadata: TableMetadata) -> tuple[int | None, int | None, int | None]:
        """Batch and id of the newest own ancestor, and the sequence number where the walk ended."""
        by_id = {snapshot.snapshot_id: snapshot for snapshot in metadata.snapshots}
        key, oldest = batch_key(self.pipeline), None
        snapshot = metadata.current_snapshot()
        while snapshot is not None:
            oldest = snapshot.sequence_number
            seen = snapshot.summary.get(key) if snapshot.summary is not None else None
            if seen is not None and not seen.isdecimal():
                raise Corrupt(
                    f"table {self.identifier}, snapshot {snapshot.snapshot_id}: {key} is {seen!r}, not a batch"
                    " number; roll the table back to the snapshot before, or restore it"
                )
            if seen is not None:
                return int(seen), snapshot.snapshot_id, oldest
            parent = snapshot.parent_snapshot_id
            snapshot = by_id.get(parent) if parent is not None else None
        return None, None, oldest

    def _fitting_schemas(self, metadata: TableMetadata) -> frozenset[int]:
        from conveyord.storage.lake.schemas import fitting_schemas

        key = (str(metadata.table_uuid), metadata.current_schema_id, len(metadata.schemas))
        if self._fitting is None or self._fitting[0] != key:
            self._fitting = (key, fitting_schemas(metadata))
        return self._fitting[1]

    def _property_updates(self, fence: Fence, sequence: int, removed: Sequence[str]) -> tuple[TableUpdate, ...]:
        from pyiceberg.table.update import RemovePropertiesUpdate, SetPropertiesUpdate

        value = encode(replace(fence, sequence=sequence))
        updates: tuple[TableUpdate, ...] = (SetPropertiesUpdate(updates={fence_key(self.pipeline): value}),)
        if removed:
            updates += (RemovePropertiesUpdate(removals=list(removed)),)
        return updates

    def _delete_old_metadata(self, before: Table, after: TableMetadata) -> None:
        """Delete the metadata files that left the log. What cannot be deleted now, maintenance finds."""
        from pyiceberg.catalog import MetastoreCatalog

        if not isinstance(self.catalog, MetastoreCatalog):
            return  # a catalog service writes and deletes metadata files itself
        if after.properties.get("write.metadata.delete-after-commit.enabled") != "true":
            return
        kept = {entry.metadata_file for entry in after.metadata_log}
        for entry in before.metadata.metadata_log:
            if entry.metadata_file not in kept:
                with suppress(OSError):  # the commit has landed: garbage must not make it fail
                    before.io.delete(entry.metadata_file)


def _pinned(table: Table) -> tuple[TableRequirement, ...]:
    """Everything that was inspected and must still hold when the commit is applied."""
    from pyiceberg.table.update import (
        AssertCurrentSchemaId,
        AssertDefaultSpecId,
        AssertRefSnapshotId,
        AssertTableUUID,
    )

    metadata = table.metadata
    head = metadata.current_snapshot()
    return (
        AssertTableUUID(uuid=metadata.table_uuid),
        AssertRefSnapshotId(ref="main", snapshot_id=head.snapshot_id if head else None),
        AssertDefaultSpecId(default_spec_id=metadata.default_spec_id),
        AssertCurrentSchemaId(current_schema_id=metadata.current_schema_id),
    )


def _snapshot_updates(table: Table, snapshot: object) -> tuple[TableUpdate, ...]:
    from pyiceberg.table.refs import SnapshotRefType
    from pyiceberg.table.snapshots import Snapshot
    from pyiceberg.table.update import AddSnapshotUpdate, SetSnapshotRefUpdate

    assert isinstance(snapshot, Snapshot)
    main = table.metadata.refs.get("main")
    return (
        AddSnapshotUpdate(snapshot=snapshot),
        SetSnapshotRefUpdate(
            snapshot_id=snapshot.snapshot_id,
            ref_name="main",
            type=SnapshotRefType.BRANCH,
            # A ref is replaced as a whole: without these, a user's retention settings would be lost.
            min_snapshots_to_keep=main.min_snapshots_to_keep if main else None,
            max_snapshot_age_ms=main.max_snapshot_age_ms if main else None,
            max_ref_age_ms=main.max_ref_age_ms if main else None,
        ),
    )


def _number(properties: Mapping[str, str], key: str, default: int) -> int:
    text = properties.get(key)
    if text is None:
        return default
    try:
        return int(text)
    except ValueError:
        return -1  # whatever it means to others, it is not the 0 that the protocol needs
