"""What pyiceberg does that the commit protocol must step around. A new version that differs fails here.

Each trap is shown with pyiceberg alone, so that a failure says which assumption no longer holds.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyiceberg.catalog import Catalog, load_catalog
from pyiceberg.exceptions import CommitFailedException
from pyiceberg.expressions import EqualTo
from pyiceberg.manifest import DataFile
from pyiceberg.schema import Schema
from pyiceberg.table import Table
from pyiceberg.table.refs import SnapshotRefType
from pyiceberg.table.snapshots import Operation, Snapshot, Summary
from pyiceberg.table.update import AddSnapshotUpdate, AssertRefSnapshotId, SetSnapshotRefUpdate
from pyiceberg.transforms import BucketTransform
from pyiceberg.types import DoubleType, IntegerType, LongType, NestedField

from conveyord.storage.lake.catalog import open_embedded

SCHEMA = pa.schema([pa.field("id", pa.int64())])


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    opened = load_catalog(
        "plain",
        type="sql",
        uri=f"sqlite:///{tmp_path / 'plain.db'}",
        warehouse=f"file://{tmp_path}/warehouse",
    )
    opened.create_namespace("ns")
    return opened


def rows(*ids: int) -> pa.Table:
    return pa.table({"id": list(ids)}, schema=SCHEMA)


def create(catalog: Catalog, **properties: str) -> Table:
    return catalog.create_table("ns.t", SCHEMA, properties={"format-version": "2", **properties})


def data_files(table: Table, data: pa.Table) -> list[DataFile]:
    from pyiceberg.io.pyarrow import _dataframe_to_data_files

    return list(_dataframe_to_data_files(table.metadata, data, table.io))


def fast_append(table: Table, files: list[DataFile]) -> None:
    with table.transaction() as transaction, transaction.update_snapshot().fast_append() as append:
        for file in files:
            append.append_data_file(file)


def two_committers_append_the_same_files(catalog: Catalog) -> None:
    one, two = catalog.load_table("ns.t"), catalog.load_table("ns.t")
    files = data_files(one, rows(1, 2, 3))
    fast_append(one, files)
    fast_append(two, files)


def test_by_default_a_refused_append_is_repeated_on_the_newer_head_and_lands_twice(catalog: Catalog) -> None:
    create(catalog, **{"commit.retry.min-wait-ms": "1", "commit.retry.max-wait-ms": "2"})
    two_committers_append_the_same_files(catalog)
    assert len(catalog.load_table("ns.t").scan().to_arrow()) == 6


def test_with_retries_set_to_zero_the_second_append_is_refused(catalog: Catalog) -> None:
    create(catalog, **{"commit.retry.num-retries": "0"})
    with pytest.raises(CommitFailedException):
        two_committers_append_the_same_files(catalog)
    assert len(catalog.load_table("ns.t").scan().to_arrow()) == 3


def test_commit_table_itself_never_repeats_whatever_the_property_says(catalog: Catalog) -> None:
    table = create(catalog)
    stale = catalog.load_table("ns.t")
    table.append(rows(1))
    requirement = AssertRefSnapshotId(ref="main", snapshot_id=None)
    with pytest.raises(CommitFailedException, match="created concurrently"):
        catalog.commit_table(stale, (requirement,), snapshot_updates(stale, snapshot_id=7))


def test_added_files_are_filed_under_the_present_spec_whatever_they_were_written_for(
    catalog: Catalog,
) -> None:
    """Files partitioned by bucket(4) and committed under bucket(64): the scan is right, look-ups lose rows."""
    table = create(catalog)
    with table.update_spec() as update:
        update.add_field("id", BucketTransform(4), "b")
    table = catalog.load_table("ns.t")
    files = data_files(table, rows(*range(40)))
    with catalog.load_table("ns.t").update_spec() as update:
        update.remove_field("b")
        update.add_field("id", BucketTransform(64), "c")
    fast_append(catalog.load_table("ns.t"), files)
    table = catalog.load_table("ns.t")
    assert len(table.scan().to_arrow()) == 40
    found = sum(len(table.scan(row_filter=EqualTo("id", value)).to_arrow()) for value in range(40))
    assert found < 20


def snapshot_updates(table: Table, *, snapshot_id: int, sequence: int = 1) -> tuple[Any, ...]:
    parent = table.metadata.current_snapshot_id
    snapshot = Snapshot(
        snapshot_id=snapshot_id,
        parent_snapshot_id=parent,
        manifest_list="file:///nowhere",
        sequence_number=sequence,
        summary=Summary(Operation.APPEND),
        schema_id=0,
    )
    ref = SetSnapshotRefUpdate(snapshot_id=snapshot_id, ref_name="main", type=SnapshotRefType.BRANCH)
    return AddSnapshotUpdate(snapshot=snapshot), ref


def test_a_snapshot_id_can_be_used_once(catalog: Catalog) -> None:
    table = create(catalog)
    catalog.commit_table(table, (), snapshot_updates(table, snapshot_id=4242))
    table = catalog.load_table("ns.t")
    with pytest.raises(ValueError, match="Snapshot with id 4242 already exists"):
        catalog.commit_table(table, (), snapshot_updates(table, snapshot_id=4242, sequence=2))


def test_a_sequence_number_that_passed_excludes_a_late_append_even_after_a_rollback(catalog: Catalog) -> None:
    table = create(catalog)
    catalog.commit_table(table, (), snapshot_updates(table, snapshot_id=1))
    table = catalog.load_table("ns.t")
    catalog.commit_table(table, (), snapshot_updates(table, snapshot_id=2, sequence=2))
    with pytest.raises(ValueError, match="older than last sequence number"):
        catalog.commit_table(table, (), snapshot_updates(table, snapshot_id=3, sequence=2))


def test_commit_table_leaves_old_metadata_files_that_a_transaction_would_delete(catalog: Catalog) -> None:
    table = create(
        catalog,
        **{"write.metadata.delete-after-commit.enabled": "true", "write.metadata.previous-versions-max": "1"},
    )
    for number in range(1, 5):
        table = catalog.load_table("ns.t")
        catalog.commit_table(table, (), snapshot_updates(table, snapshot_id=number, sequence=number))
    metadata = list((Path(table.location().removeprefix("file://")) / "metadata").glob("*.metadata.json"))
    assert len(metadata) == 5


def test_expiry_removes_snapshots_and_leaves_every_file(catalog: Catalog) -> None:
    table = create(catalog)
    table.append(rows(1))
    table.overwrite(rows(2))
    root = Path(table.location().removeprefix("file://"))
    before = set(root.rglob("*.parquet")) | set(root.rglob("snap-*.avro"))
    expiring = table.maintenance.expire_snapshots()
    current = table.metadata.current_snapshot_id
    expiring.by_ids([s.snapshot_id for s in table.metadata.snapshots if s.snapshot_id != current]).commit()
    assert len(catalog.load_table("ns.t").metadata.snapshots) == 1
    assert before <= set(root.rglob("*"))


def test_expiry_drops_a_tag_together_with_its_snapshot(catalog: Catalog) -> None:
    """Why expiry asserts every ref it has seen: the catalog would not object."""
    from pyiceberg.table.update import RemoveSnapshotsUpdate

    table = create(catalog)
    table.append(rows(1))
    first = table.metadata.current_snapshot_id
    table.append(rows(2))
    table.manage_snapshots().create_tag(first, "keep").commit()
    catalog.commit_table(table, (), (RemoveSnapshotsUpdate(snapshot_ids=[first]),))
    assert "keep" not in catalog.load_table("ns.t").metadata.refs


def synced_files(monkeypatch: pytest.MonkeyPatch, work: Any) -> set[str]:
    """What this process fsyncs through Python. SQLite and Arrow call the system directly, or not at all."""
    synced: set[str] = set()
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.add(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", recorded)
        work()
    return synced


def test_plain_pyiceberg_syncs_nothing_of_a_local_warehouse(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    assert synced_files(monkeypatch, lambda: create(catalog).append(rows(1))) == set()


def test_through_our_file_io_every_file_and_its_directories_are_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    catalog = open_embedded(tmp_path / "data")
    catalog.create_namespace("ns")

    def metadata_and_manifests() -> None:
        create(catalog).append(rows(1))

    synced = synced_files(monkeypatch, metadata_and_manifests)
    table = catalog.load_table("ns.t")
    root = Path(table.location().removeprefix("file://"))
    assert {str(path) for path in root.rglob("*")} <= synced
    assert {str(root), str(root.parent), str(root.parent.parent)} <= synced


def test_long_to_double_is_no_promotion(catalog: Catalog) -> None:
    with (
        pytest.raises(Exception, match="Cannot change column type"),
        create(catalog).update_schema() as update,
    ):
        update.update_column("id", DoubleType())


def test_int_to_long_is_a_promotion(catalog: Catalog) -> None:
    schema = Schema(NestedField(1, "id", IntegerType(), required=False))
    table = catalog.create_table("ns.t", schema)
    with table.update_schema() as update:
        update.update_column("id", LongType())
    assert catalog.load_table("ns.t").schema().find_type("id") == LongType()


@pytest.mark.parametrize("kind", [pa.null(), pa.timestamp("ns")])
def test_null_and_nanosecond_columns_are_refused_by_a_version_2_table(catalog: Catalog, kind: pa.DataType) -> None:
    with pytest.raises(Exception, match=r"(?i)null|unsupported|nanosecond"):
        catalog.create_table("ns.t", pa.schema([pa.field("x", kind)]), properties={"format-version": "2"})


def test_a_file_uri_is_taken_as_it_stands_without_unquoting(catalog: Catalog) -> None:
    from pyiceberg.io.pyarrow import PyArrowFileIO

    assert PyArrowFileIO.parse_location("file:///a%20b")[2] == "/a%20b"
