"""Bounded tables: what expiry removes is really gone, and nothing that is still named ever is."""

from __future__ import annotations

from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pytest

from conveyord.storage.lake import commit
from conveyord.storage.lake.catalog import open_embedded
from conveyord.storage.lake.fileio import local_path
from conveyord.storage.lake.ledger import LATE_LANDING_SECONDS, Ledger
from conveyord.storage.lake.maintenance import SNAPSHOTS_KEPT
from tests.storage.lake_rig import (
    NAME,
    SCHEMA,
    Run,
    assert_exactly_once,
    files_on_disk,
    files_reachable,
    load,
    offsets,
)


def often(run: Run, monkeypatch: pytest.MonkeyPatch, *, kept: int) -> Run:
    monkeypatch.setattr(commit, "EVERY_COMMITS", 2)
    run.committer._maintenance._snapshots_kept = kept
    return run


def test_snapshots_manifests_and_files_stay_bounded_over_many_commits(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    for _ in range(50):
        run.commit_next(rows=0)
    for _ in range(30):
        run.commit_next()
    table = load(tmp_path)
    assert len(table.metadata.snapshots) <= SNAPSHOTS_KEPT + commit.EVERY_COMMITS
    assert files_on_disk(table) == files_reachable(table)
    assert offsets(table) == list(range(150, 240))


def test_merged_manifests_keep_every_row_and_stay_few(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    for _ in range(60):
        run.commit_next()
    table = load(tmp_path)
    assert assert_exactly_once(table) == 60
    assert len(table.current_snapshot().manifests(table.io)) <= 4
    assert table.current_snapshot().summary["total-data-files"] == "60"


def test_files_that_an_overwrite_removed_are_deleted_with_the_last_snapshot_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = often(Run(tmp_path).open(), monkeypatch, kept=2)
    run.commit_next()
    run.commit_next()
    replaced = {path for path in files_reachable(load(tmp_path)) if path.endswith(".parquet")}
    load(tmp_path).overwrite(pa.table({"offset": list(range(6))}, schema=SCHEMA))
    for _ in range(4):
        run.commit_next()
    table = load(tmp_path)
    assert assert_exactly_once(table) == 6
    assert not any(local_path(path).exists() for path in replaced)
    assert files_on_disk(table) == files_reachable(table)


def test_a_tagged_snapshot_and_its_files_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = often(Run(tmp_path).open(), monkeypatch, kept=2)
    run.commit_next()
    table = load(tmp_path)
    tagged = table.current_snapshot().snapshot_id
    table.manage_snapshots().create_tag(tagged, "keep").commit()
    table.overwrite(pa.table({"offset": [0, 1, 2]}, schema=SCHEMA))
    for _ in range(6):
        run.commit_next()
    table = load(tmp_path)
    assert table.scan(snapshot_id=tagged).to_arrow()["offset"].to_pylist() == [0, 1, 2]
    assert files_reachable(table) <= files_on_disk(table)


def test_an_adopted_table_is_never_expired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_embedded(tmp_path)
    catalog.create_namespace("ns")
    table = catalog.create_table(NAME, SCHEMA, properties={"format-version": "2"})
    table.append(pa.table({"offset": [-1]}, schema=SCHEMA))
    run = often(Run(tmp_path).open(adopt=True), monkeypatch, kept=2)
    for _ in range(6):
        run.commit_next()
    assert len(load(tmp_path).metadata.snapshots) == 7


def test_leftovers_of_a_killed_run_wait_for_a_landing_of_the_next(tmp_path: Path) -> None:
    killed = Run(tmp_path).open()
    orphan = local_path(killed.files(0)[0].file_path)
    run = Run(tmp_path).open()
    assert orphan.exists(), "a commit of the killed run might still arrive and name it"
    run.commit_next()
    assert not orphan.exists()
    assert assert_exactly_once(load(tmp_path)) == 1


def test_a_suspect_that_turned_out_to_have_landed_is_kept(tmp_path: Path) -> None:
    killed = Run(tmp_path).open()
    files = killed.files(0)
    killed.commit_next(files=files)
    killed.ledger.intend(files[0].file_path)  # as if the process had died before it could settle them
    Run(tmp_path).open().commit_next()
    assert assert_exactly_once(load(tmp_path)) == 2


def test_files_of_a_run_in_progress_are_no_suspects(tmp_path: Path) -> None:
    run = Run(tmp_path).open()
    ahead = run.files(3)
    run.commit_next()
    assert local_path(ahead[0].file_path).exists()
    run.commit_next(files=ahead)
    assert assert_exactly_once(load(tmp_path)) == 2


def test_after_a_day_leftovers_are_suspects_without_a_landing(tmp_path: Path) -> None:
    now = [1_000_000.0]
    Run(tmp_path).open().files(0)
    table = load(tmp_path)
    ledger = Ledger(tmp_path, clock=lambda: now[0]).for_table("ns/p")
    ledger.bind(str(table.metadata.table_uuid))
    assert ledger.suspects(landed=None) == []
    import time

    now[0] = time.time() + LATE_LANDING_SECONDS + 1
    assert len(ledger.suspects(landed=None)) == 1


def test_suspicions_about_a_dropped_table_say_nothing_about_its_successor(tmp_path: Path) -> None:
    Run(tmp_path).open().files(0)
    open_embedded(tmp_path).drop_table(NAME)
    run = Run(tmp_path).open()
    run.commit_next()
    assert len(run.book.read("SELECT path FROM lake_files WHERE path LIKE ?", ("%.parquet",))) == 1


def test_a_failing_maintenance_does_not_fail_the_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = often(Run(tmp_path).open(), monkeypatch, kept=1)

    def broken(*_: object, **__: object) -> None:
        raise OSError(5, "io")

    monkeypatch.setattr(run.committer._maintenance, "_load", broken)
    run.commit_next()
    run.commit_next()
    assert run.committer._maintenance.last_failure is not None
    assert assert_exactly_once(load(tmp_path)) == 2


def test_metadata_of_another_table_in_the_same_place_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two catalogs may give two tables one place; deleting what the other names would make it unreadable."""
    run = often(Run(tmp_path).open(), monkeypatch, kept=2)
    run.commit_next()
    table = load(tmp_path)
    current = local_path(table.metadata_location)
    assert current is not None
    text = current.read_text(encoding="utf-8")
    refused = current.with_name(f"00000-{uuid4()}.metadata.json")
    others = current.with_name(f"00000-{uuid4()}.metadata.json")
    torn = current.with_name(f"00000-{uuid4()}.metadata.json")
    refused.write_text(text, encoding="utf-8")
    others.write_text(text.replace(str(table.metadata.table_uuid), str(uuid4())), encoding="utf-8")
    torn.write_text(text[:100], encoding="utf-8")
    for _ in range(4):
        run.commit_next()
    assert (refused.exists(), others.exists(), torn.exists()) == (False, True, True)
    others.unlink()
    for _ in range(4):
        run.commit_next()
    assert not torn.exists(), "with nobody else there it can only be ours"
