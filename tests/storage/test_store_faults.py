"""Tables in object stores whose requests fail, hang, are answered late or not at all: each batch lands once or is
refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog

from conveyord.core.errors import ConveyordError
from conveyord.storage.lake.catalog import open_catalog
from tests.storage.faulty_proxy import FOR_EVER, Fault, FaultKind, Store, faulty
from tests.storage.lake_rig import NAME, Run, assert_exactly_once
from tests.storage.object_stores import Kind, Servers, servers_below

KINDS: list[Kind] = ["moto", "versitygw", "gcs"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    with servers_below(tmp_path_factory.mktemp("stores")) as found:
        yield found


@pytest.fixture
def proxied(servers: Servers, kind: Kind) -> Iterator[Store]:
    with faulty(servers.get(kind)) as store:
        yield store


def catalog_of(tmp_path: Path, properties: Callable[[str], dict[str, str]]) -> Catalog:
    files = {**properties(tmp_path.name), "s3.request-timeout": "1"}
    return open_catalog("store", {"type": "sql", "uri": f"sqlite:///{tmp_path / 'store.db'}", **files})


def run_of(tmp_path: Path, store: Store, **options: float) -> Run:
    return Run(tmp_path, catalog=catalog_of(tmp_path, store.properties), **options).open()


def landed(tmp_path: Path, store: Store) -> int:
    """The number of the last batch, if each is there once. Not read through the proxy: pyarrow may hold the lock
    that the proxy's threads need (see `GcsFile`)."""
    return assert_exactly_once(catalog_of(tmp_path, store.server.properties).load_table(NAME))


def died(run: Run) -> None:
    """End `run` as the end of its process would: calls that it has given up do not outlive it."""
    for thread in threading.enumerate():
        if thread.name == "catalog-call":
            thread.join(180)
    run.close()


FAULTS: list[FaultKind] = ["503", "500", "500-applied", "lost", "cut"]
# S3: POST ?uploads, PUT ?partNumber, POST ?uploadId. Google: POST, PUT.
WRITES = [("PUT", "/data/"), ("POST", "/data/"), ("PUT", "/metadata/"), ("POST", "/metadata/")]
QUICK = {("500-applied", "PUT", "/data/"), ("lost", "POST", "/metadata/"), ("503", "PUT", "/metadata/")}


@pytest.mark.parametrize(
    ("kind", "fault", "method", "path"),
    [
        pytest.param(
            kind, fault, *write, marks=[] if kind == "moto" and (fault, *write) in QUICK else pytest.mark.check
        )
        for kind in KINDS
        for fault in (FAULTS if kind == "moto" else FAULTS[1:])  # to clients a 503 is as a 500
        for write in WRITES
    ],
)
def test_a_request_that_fails_once_is_tried_again_by_the_client(
    tmp_path: Path, proxied: Store, fault: FaultKind, method: str, path: str
) -> None:
    run = run_of(tmp_path, proxied)
    proxied.faults.append(Fault(fault, method, path))
    run.commit_next()
    assert proxied.met
    run.commit_next()
    assert landed(tmp_path, proxied) == 2


OFTEN = {("500", "/data/"), ("lost", ".avro"), ("cut", ".metadata.json"), ("hang", ".metadata.json")}


def how_often(kind: Kind, fault: FaultKind, path: str) -> pytest.MarkDecorator:
    # Twenty seconds each; Google's client gives a silent server two minutes, and pyarrow has no setting for that.
    slow = kind != "moto" and path == ".metadata.json"
    return pytest.mark.check if (fault, path) in OFTEN and not slow else pytest.mark.soak


@pytest.mark.parametrize(
    ("kind", "fault", "path"),
    [
        pytest.param(kind, fault, path, marks=how_often(kind, fault, path))
        for kind in KINDS
        for fault in ("500", "lost", "cut", "hang")
        for path in ("/data/", ".avro", ".metadata.json")
    ],
)
def test_a_store_that_goes_on_failing_stops_the_run_and_the_next_goes_on(
    tmp_path: Path, proxied: Store, fault: FaultKind, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("conveyord.storage.lake.fileio.GCS_RETRY_SECONDS", 2.0)
    run = run_of(tmp_path, proxied, deadline_seconds=2.0)
    run.commit_next()
    proxied.faults += [Fault(fault, method, path, FOR_EVER) for method in ("PUT", "POST")]
    with pytest.raises((ConveyordError, OSError)):
        run.commit_next()
    died(run)
    proxied.faults.clear()
    again = run_of(tmp_path, proxied)
    while again.next_offset < 9:
        again.commit_next()
    assert landed(tmp_path, proxied) == 3


@pytest.mark.parametrize("kind", ["moto", *(pytest.param(kind, marks=pytest.mark.check) for kind in KINDS[1:])])
def test_slow_bodies_are_read_to_their_ends(tmp_path: Path, proxied: Store) -> None:
    run = run_of(tmp_path, proxied)
    proxied.faults.append(Fault("slow", "GET", "", times=20))
    run.commit_next()
    run.commit_next()
    assert proxied.met
    assert landed(tmp_path, proxied) == 2
