"""Backups in a bucket: as in a directory, and whatever the store does half-way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from conveyord.core.errors import ConveyordError, Refused, Retryable
from conveyord.core.raft.types import Mark
from conveyord.storage.backup.backups import LEFTOVER_SECONDS, Backups, open_backups
from conveyord.storage.backup.bucket_store import BucketStore
from conveyord.storage.backup.restoring import restore
from conveyord.storage.state_store.packing import pack
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from tests.storage.backup.rig import ABOUT, VOTERS, script, snapshot_of, start
from tests.storage.backup.test_backups import at
from tests.storage.faulty_proxy import FOR_EVER, Fault, FaultKind, faulty
from tests.storage.object_stores import BUCKET, Kind, Server, Servers, servers_below

KINDS = ["moto", pytest.param("versitygw", marks=pytest.mark.check)]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers_below(tmp_path_factory.mktemp("stores")) as found:
        yield found


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SnapshotFile]:
    with snapshot_of(tmp_path_factory.mktemp("taken"), script(20)) as found:
        yield found


def properties_of(server: Server, endpoint: str | None = None) -> dict[str, str]:
    found = server.properties(endpoint=endpoint)
    del found["warehouse"]
    return found


def opened(server: Server, place: str, endpoint: str | None = None) -> Backups:
    return open_backups(f"s3://{BUCKET}/{place}", properties_of(server, endpoint))


@pytest.mark.parametrize("kind", KINDS)
def test_backups_in_a_bucket_are_as_in_a_directory(
    tmp_path: Path, servers: Servers, kind: Kind, snapshot: SnapshotFile
) -> None:
    backups = opened(servers.get(kind), f"deep/{tmp_path.name}")
    assert backups.list() == ()
    manifests = [backups.create(snapshot, at(second)) for second in (1, 2, 3)]
    assert [one.manifest for one in backups.list()] == manifests[::-1]
    assert backups.fetch(manifests[0].id, tmp_path / "copy") == manifests[0]
    assert (tmp_path / "copy").read_bytes() == snapshot.path.read_bytes()
    assert backups.cleanup(keep=1) == (manifests[1].id, manifests[0].id)
    with pytest.raises(Refused, match=f"did you mean {manifests[2].id}"):
        backups.describe(manifests[0].id)
    restore(
        backups, manifests[2].id, tmp_path / "data", node="a", new_history="h1", expect_cluster="c1", force=False,
        actor="someone", at_ms=1,
    )  # fmt: skip
    assert start(tmp_path / "data").history == "h1"
    backups.delete(manifests[2].id)
    assert backups.list() == ()


def test_a_place_may_be_the_whole_bucket_and_others_beside_it_do_no_harm(
    servers: Servers, snapshot: SnapshotFile
) -> None:
    server = servers.get("moto")
    inner = opened(server, "inner").create(snapshot, ABOUT)
    outer = opened(server, "")
    made = outer.create(snapshot, at(1))
    assert [one.id for one in outer.list()] == [made.id]
    outer.delete(made.id)
    assert [one.id for one in opened(server, "inner").list()] == [inner.id]


def test_leftovers_go_by_the_clock_of_the_store(tmp_path: Path, servers: Servers, snapshot: SnapshotFile) -> None:
    server = servers.get("moto")
    store = BucketStore(BUCKET, tmp_path.name, properties_of(server))
    store.write("20261122T083015124Z-000000000013-abcdef.snapshot", [b"half"])
    for ahead, left in ((LEFTOVER_SECONDS - 600, 1), (LEFTOVER_SECONDS + 600, 0)):
        backups = Backups(store, now_seconds=lambda ahead=ahead: time.time() + ahead)  # type: ignore[misc]
        backups.create(snapshot, ABOUT)
        assert backups.cleanup(keep=1) == ()
        assert len(store.names()) == 2 + left


def test_a_bucket_that_is_not_there_is_named(servers: Servers, snapshot: SnapshotFile) -> None:
    backups = open_backups("s3://nowhere/x", properties_of(servers.get("moto")))
    for ask in (backups.list, lambda: backups.create(snapshot, ABOUT)):
        with pytest.raises(Refused, match=r"there is no bucket 'nowhere' at http://127.0.0.1:\d+; create it"):
            ask()


@pytest.mark.check
def test_a_store_that_does_not_answer_is_named(snapshot: SnapshotFile) -> None:
    backups = open_backups(
        "s3://bucket/x",
        {
            "s3.endpoint": "http://127.0.0.1:1",
            "s3.access-key-id": "k",
            "s3.secret-access-key": "hush",
            "s3.region": "x",
        },
    )
    for ask in (backups.list, lambda: backups.create(snapshot, ABOUT)):
        with pytest.raises(Retryable, match="http://127.0.0.1:1 failed for the bucket 'bucket'") as told:
            ask()
        assert "hush" not in str(told.value)


FAULTS = [
    ("403", "PUT", ".snapshot"),
    ("403", "PUT", ".json"),
    ("403", "POST", ".snapshot"),
    ("403", "GET", "list-type"),
    *(
        pytest.param(fault, *request, marks=pytest.mark.check)
        for fault in ("500", "cut", "lost", "500-applied")
        for request in (("PUT", ".snapshot"), ("POST", ".snapshot"), ("PUT", ".json"))
    ),
]


@pytest.mark.parametrize(("fault", "method", "path"), FAULTS)
def test_a_store_that_fails_for_good_leaves_no_half_backup(
    tmp_path: Path, servers: Servers, snapshot: SnapshotFile, fault: FaultKind, method: str, path: str
) -> None:
    server = servers.get("moto")
    with faulty(server) as proxied:
        backups = opened(server, tmp_path.name, proxied.endpoint)
        before = backups.create(snapshot, at(1))
        proxied.faults.append(Fault(fault, method, path, FOR_EVER))
        made, told = None, ""
        try:
            made = backups.create(snapshot, at(2))
        except (Refused, Retryable) as error:
            told = str(error)
        assert made is not None or f"'{BUCKET}'" in told
        assert proxied.met or method == "GET" or made is not None
    honest = opened(server, tmp_path.name)
    kept = {one.id: one.manifest for one in honest.list()}
    assert None not in kept.values()
    assert before.id in kept
    assert (made is not None) == (len(kept) == 2)


@pytest.mark.check
@pytest.mark.parametrize("fault", ["500", "cut", "503"])
def test_a_request_that_fails_once_is_asked_again(
    tmp_path: Path, servers: Servers, snapshot: SnapshotFile, fault: FaultKind
) -> None:
    server = servers.get("moto")
    with faulty(server) as proxied:
        backups = opened(server, tmp_path.name, proxied.endpoint)
        for method in ("PUT", "POST", "GET"):
            proxied.faults.append(Fault(fault, method))
        id_ = backups.create(snapshot, ABOUT).id
        assert backups.fetch(id_, tmp_path / "copy").id == id_
        assert proxied.met
    assert (tmp_path / "copy").read_bytes() == snapshot.path.read_bytes()


def test_a_download_that_ends_early_is_no_backup(tmp_path: Path, servers: Servers, snapshot: SnapshotFile) -> None:
    server = servers.get("moto")
    with faulty(server) as proxied:
        backups = opened(server, tmp_path.name, proxied.endpoint)
        id_ = backups.create(snapshot, ABOUT).id
        proxied.faults.append(Fault("403", "GET", ".snapshot", FOR_EVER))
        with pytest.raises(ConveyordError, match="denies access"):
            backups.fetch(id_, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.check
@pytest.mark.parametrize("kind", ["moto", "versitygw"])
@pytest.mark.parametrize("fault", ["403", "500", "cut"])
def test_an_upload_of_many_parts_that_fails_half_way_is_no_backup(
    tmp_path: Path, servers: Servers, kind: Kind, fault: FaultKind
) -> None:
    """pyarrow ends what it cannot go on with; then that is deleted."""
    server = servers.get(kind)
    (tmp_path / "state").write_bytes(Random(7).randbytes(32 << 20))
    pack(tmp_path / "state", tmp_path / "large", Place(Mark(12, 1, bytes(8)), VOTERS))
    with faulty(server) as proxied, SnapshotFile(tmp_path / "large") as large:
        backups = opened(server, tmp_path.name, proxied.endpoint)
        whole = backups.create(large, at(1))
        proxied.faults.append(Fault(fault, "PUT", "partNumber=2", FOR_EVER))
        with pytest.raises((Refused, Retryable)):
            backups.create(large, at(2))
        assert proxied.met
    honest = opened(server, tmp_path.name)
    assert [one.id for one in honest.list()] == [whole.id]
    assert honest.fetch(whole.id, tmp_path / "copy") == whole
    assert len(BucketStore(BUCKET, tmp_path.name, properties_of(server)).names()) == 2
