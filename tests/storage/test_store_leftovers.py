"""What commits that were refused leave in an object store goes away, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pyiceberg.catalog import Catalog
from pyiceberg.table import Table

from conveyord.storage.lake import commit
from conveyord.storage.lake.catalog import open_catalog
from conveyord.storage.lake.fileio import names_in
from tests.storage.lake_rig import NAME, Run, assert_exactly_once, files_reachable
from tests.storage.object_stores import Kind, Server, Servers, servers_below

KINDS = ["moto", "moto-encrypted", "versitygw", "gcs"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers_below(tmp_path_factory.mktemp("stores")) as found:
        yield found


@pytest.fixture(params=["moto", *(pytest.param(kind, marks=pytest.mark.check) for kind in KINDS[1:])])
def catalog(request: pytest.FixtureRequest, tmp_path: Path, servers: Servers) -> Catalog:
    kind: Kind = request.param.partition("-")[0]
    server: Server = servers.get(kind)
    files = server.properties(f"{request.param}-{tmp_path.name}")
    if "encrypted" in request.param:
        files["s3.server-side-encryption"] = "AES256"
    return open_catalog("store", {"type": "sql", "uri": f"sqlite:///{tmp_path / 'store.db'}", **files})


def beaten(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let somebody else commit between the next staged metadata file and its commit. The paths of such files."""
    stage, lost = catalog._write_metadata, []

    def late(metadata: Any, io: Any, metadata_path: str) -> None:
        stage(metadata, io, metadata_path)
        monkeypatch.setattr(catalog, "_write_metadata", stage)
        lost.append(metadata_path)
        catalog.load_table(NAME).transaction().set_properties({"theirs": str(len(lost))}).commit_transaction()

    monkeypatch.setattr(catalog, "_write_metadata", late)
    return lost


def in_store(table: Table) -> set[str]:
    places = (f"{table.location()}/{part}/" for part in ("metadata", "data"))
    return {place + name for place in places for name in names_in(table.io, place)}


def test_metadata_of_refused_commits_is_deleted_and_nothing_that_is_named(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commit, "EVERY_COMMITS", 4)
    run = Run(tmp_path, catalog=catalog).open()
    run.commit_next()
    lost = beaten(catalog, monkeypatch)
    run.commit_next()
    assert len(lost) == 1
    table = catalog.load_table(NAME)
    assert set(lost) <= in_store(table), "the case under test: a refused commit left its metadata file"
    run.commit_next()
    run.commit_next()
    table = catalog.load_table(NAME)
    assert assert_exactly_once(table) == 4
    assert in_store(table) == files_reachable(table)


def test_metadata_that_may_still_become_current_stays(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody stages the version after the current one while maintenance looks, and commits it afterwards."""
    monkeypatch.setattr(commit, "EVERY_COMMITS", 1)
    run = Run(tmp_path, catalog=catalog).open()
    run.commit_next()
    stage = catalog._write_metadata

    def slowly(metadata: Any, io: Any, metadata_path: str) -> None:
        stage(metadata, io, metadata_path)
        run.committer._maintenance.run(landed=1)

    monkeypatch.setattr(catalog, "_write_metadata", slowly)
    catalog.load_table(NAME).transaction().set_properties({"theirs": "1"}).commit_transaction()
    monkeypatch.setattr(catalog, "_write_metadata", stage)
    assert catalog.load_table(NAME).properties["theirs"] == "1"
    run.commit_next()
    assert assert_exactly_once(catalog.load_table(NAME)) == 2


def test_a_store_that_may_not_be_listed_keeps_taking_commits(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object) -> list[str]:
        raise PermissionError("ListBucket: access denied")

    monkeypatch.setattr(commit, "EVERY_COMMITS", 1)
    run = Run(tmp_path, catalog=catalog).open()
    monkeypatch.setattr("conveyord.storage.lake.fileio.names_in", denied)
    run.commit_next()
    run.commit_next()
    assert "ListBucket" in run.committer._maintenance.last_failure.reason
    assert assert_exactly_once(catalog.load_table(NAME)) == 2
