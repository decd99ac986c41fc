"""Writes the manifest and manifest list of one append, and keeps the number of manifests small.

pyiceberg's own append copies the whole table metadata a dozen times per commit; writing the two
files here and asking the catalog directly costs the same however many snapshots a table has.
"""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

from pyiceberg.avro.codecs import AvroCompressionCodec
from pyiceberg.io import FileIO
from pyiceberg.manifest import (
    DataFile,
    ManifestContent,
    ManifestEntry,
    ManifestEntryStatus,
    ManifestFile,
    ManifestWriter,
    write_manifest,
    write_manifest_list,
)
from pyiceberg.partitioning import PartitionSpec
from pyiceberg.table import Table
from pyiceberg.table.metadata import TableMetadata
from pyiceberg.table.snapshots import (
    Operation,
    Snapshot,
    SnapshotSummaryCollector,
    Summary,
    update_snapshot_summaries,
)

MERGE_EVERY_COMMITS = 20  # readers open every manifest; merging rewrites them, so not on every commit
MERGE_MIN_MANIFESTS = 10  # of one size class; fewer are not worth a rewrite
MERGE_MAX_FILES = 5_000  # entries in a merged manifest: about 2 MB, a tenth of a second to write


@dataclass(slots=True)
class AppendFiles:
    """The metadata files of one append, named before they are written so that they can be entered first."""

    table: Table
    merge: bool
    snapshot_id: int = 0
    manifest_list: str = ""
    manifests: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.snapshot_id = self.table.metadata.new_snapshot_id()
        unique = uuid.uuid4()
        provider = self.table.location_provider()
        self.manifest_list = provider.new_metadata_location(f"snap-{self.snapshot_id}-0-{unique}.avro")
        # One for the new files and one for each size class below MERGE_MAX_FILES.
        count = 1 + (len(str(MERGE_MAX_FILES)) if self.merge else 0)
        self.manifests = [provider.new_metadata_location(f"{unique}-m{number}.avro") for number in range(count)]

    @property
    def paths(self) -> list[str]:
        return [self.manifest_list, *self.manifests]

    def write(self, files: Sequence[DataFile], summary: Mapping[str, str]) -> Snapshot:
        """Blocking. Write the files for an append of `files` (there may be none) to the table's head.

        `summary` is added to the counts that Iceberg defines. Nothing refers to the result yet.
        """
        metadata, io = self.table.metadata, self.table.io
        parent = metadata.current_snapshot()
        manifests = [m for m in parent.manifests(io) if m.has_added_files() or m.has_existing_files()] if parent else []
        unused = list(self.manifests)
        if self.merge:
            manifests = self._merged(manifests, unused)
        if files:
            manifests = [self._added(files, unused.pop()), *manifests]
        sequence = metadata.next_sequence_number()
        with write_manifest_list(
            format_version=metadata.format_version,
            output_file=io.new_output(self.manifest_list),
            snapshot_id=self.snapshot_id,
            parent_snapshot_id=parent.snapshot_id if parent else None,
            sequence_number=sequence,
            avro_compression=_compression(metadata),
        ) as writer:
            writer.add_manifests(manifests)
        return Snapshot(
            snapshot_id=self.snapshot_id,
            parent_snapshot_id=parent.snapshot_id if parent else None,
            manifest_list=self.manifest_list,
            sequence_number=sequence,
            summary=_summary(metadata, files, parent, summary),
            schema_id=metadata.current_schema_id,
        )

    def _added(self, files: Sequence[DataFile], path: str) -> ManifestFile:
        with self._writer(path, self.table.spec()) as writer:
            for file in files:
                entry = ManifestEntry.from_args(
                    status=ManifestEntryStatus.ADDED, snapshot_id=self.snapshot_id, data_file=file
                )
                writer.add_entry(entry)
        return writer.to_manifest_file()

    def _merged(self, manifests: list[ManifestFile], unused: list[str]) -> list[ManifestFile]:
        """`manifests` with those of one size class written as one, as in a log-structured merge.

        Size classes are powers of ten of live files, so an entry is rewritten once per class and not
        on every merge. Only manifests of the default spec: an older spec may need a dropped column.
        """
        classes: defaultdict[int, list[ManifestFile]] = defaultdict(list)
        for manifest in manifests:
            live = _live_files(manifest)
            mergeable = manifest.content == ManifestContent.DATA and live * 2 <= MERGE_MAX_FILES
            if mergeable and manifest.partition_spec_id == self.table.metadata.default_spec_id:
                classes[len(str(live))].append(manifest)
        for candidates in classes.values():
            chosen = _fitting(candidates)
            if len(chosen) >= MERGE_MIN_MANIFESTS:
                rest = [manifest for manifest in manifests if manifest not in chosen]
                manifests = [*rest, self._rewritten(chosen, unused.pop())]
        return manifests

    def _rewritten(self, manifests: Sequence[ManifestFile], path: str) -> ManifestFile:
        with self._writer(path, self.table.spec()) as writer:
            for manifest in manifests:
                for entry in manifest.fetch_manifest_entry(self.table.io, discard_deleted=True):
                    writer.existing(entry)
        return writer.to_manifest_file()

    def _writer(self, path: str, spec: PartitionSpec) -> ManifestWriter:
        metadata = self.table.metadata
        return write_manifest(
            format_version=metadata.format_version,
            spec=spec,
            schema=metadata.schema(),
            output_file=self.table.io.new_output(path),
            snapshot_id=self.snapshot_id,
            avro_compression=_compression(metadata),
        )


def referenced_files(io: FileIO, manifest: ManifestFile, *, live_only: bool) -> set[str]:
    """Blocking. Paths of the data and delete files that a manifest lists."""
    entries = manifest.fetch_manifest_entry(io, discard_deleted=live_only)
    return {entry.data_file.file_path for entry in entries}


def _live_files(manifest: ManifestFile) -> int:
    return (manifest.added_files_count or 0) + (manifest.existing_files_count or 0)


def _fitting(manifests: Sequence[ManifestFile]) -> list[ManifestFile]:
    """The first of `manifests` that together stay below MERGE_MAX_FILES."""
    chosen, total = [], 0
    for manifest in manifests:
        total += _live_files(manifest)
        if total > MERGE_MAX_FILES:
            break
        chosen.append(manifest)
    return chosen


def _compression(metadata: TableMetadata) -> AvroCompressionCodec:
    from pyiceberg.table import TableProperties

    codec = metadata.properties.get(
        TableProperties.WRITE_AVRO_COMPRESSION, TableProperties.WRITE_AVRO_COMPRESSION_DEFAULT
    )
    return cast(AvroCompressionCodec, codec)


def _summary(
    metadata: TableMetadata, files: Sequence[DataFile], parent: Snapshot | None, extra: Mapping[str, str]
) -> Summary:
    collector = SnapshotSummaryCollector()
    spec, schema = metadata.spec(), metadata.schema()
    for file in files:
        collector.add_file(data_file=file, partition_spec=spec, schema=schema)
    return update_snapshot_summaries(
        summary=Summary(operation=Operation.APPEND, **collector.build(), **extra),
        previous_summary=parent.summary if parent is not None and parent.summary is not None else None,
    )
