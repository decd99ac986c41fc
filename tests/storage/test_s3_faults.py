"""Tables in S3 whose requests fail, hang, are answered late or not at all: each batch lands once or is refused."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyiceberg.catalog import Catalog

from conveyord.core.errors import ConveyordError
from conveyord.storage.lake.catalog import open_catalog
from tests.storage.lake_rig import NAME, Run, assert_exactly_once
from tests.storage.s3_rig import Fault, FaultKind, Store, faulty, s3_server


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with s3_server() as running:
        yield running


@pytest.fixture
def store(port: int) -> Iterator[Store]:
    with faulty(port) as proxied:
        yield proxied


def catalog_of(tmp_path: Path, store: Store) -> Catalog:
    properties = {**store.properties(warehouse=tmp_path.name), "s3.request-timeout": "1"}
    return open_catalog("store", {"type": "sql", "uri": f"sqlite:///{tmp_path / 'store.db'}", **properties})


def run_of(tmp_path: Path, store: Store, **options: float) -> Run:
    return Run(tmp_path, catalog=catalog_of(tmp_path, store), **options).open()


def died(run: Run) -> None:
    """End `run` as the end of its process would: calls that it has given up do not outlive it."""
    for thread in threading.enumerate():
        if thread.name == "catalog-call":
            thread.join(60)
    run.close()


KINDS: list[FaultKind] = ["500", "503", "500-applied", "lost", "cut"]
# All files are written by multipart uploads: POST ?uploads, PUT ?partNumber, POST ?uploadId.
WRITES = [("PUT", "/data/"), ("POST", "/data/"), ("PUT", "/metadata/"), ("POST", "/metadata/")]
QUICK = {("500-applied", "PUT", "/data/"), ("lost", "POST", "/metadata/"), ("503", "PUT", "/metadata/")}


@pytest.mark.parametrize(
    ("kind", "method", "path"),
    [
        pytest.param(kind, *write, marks=[] if (kind, *write) in QUICK else pytest.mark.check)
        for kind in KINDS
        for write in WRITES
    ],
)
def test_a_request_that_fails_once_is_tried_again_by_the_client(
    tmp_path: Path, store: Store, kind: FaultKind, method: str, path: str
) -> None:
    run = run_of(tmp_path, store)
    store.faults.append(Fault(kind, method, path))
    run.commit_next()
    assert store.met
    run.commit_next()
    assert assert_exactly_once(catalog_of(tmp_path, store).load_table(NAME)) == 2


OFTEN = {("500", "/data/"), ("lost", ".avro"), ("cut", ".metadata.json"), ("hang", ".metadata.json")}


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        pytest.param(kind, path, marks=pytest.mark.check if (kind, path) in OFTEN else pytest.mark.soak)
        for kind in ("500", "lost", "cut", "hang")
        for path in ("/data/", ".avro", ".metadata.json")
    ],
)
def test_a_store_that_goes_on_failing_stops_the_run_and_the_next_goes_on(
    tmp_path: Path, store: Store, kind: FaultKind, path: str
) -> None:
    run = run_of(tmp_path, store, deadline_seconds=2.0)
    run.commit_next()
    store.faults += [Fault(kind, method, path, times=10_000) for method in ("PUT", "POST")]
    with pytest.raises((ConveyordError, OSError)):
        run.commit_next()
    died(run)
    store.faults.clear()
    again = run_of(tmp_path, store)
    while again.next_offset < 9:
        again.commit_next()
    assert assert_exactly_once(catalog_of(tmp_path, store).load_table(NAME)) == 3


def test_slow_bodies_are_read_to_their_ends(tmp_path: Path, store: Store) -> None:
    run = run_of(tmp_path, store)
    store.faults.append(Fault("slow", "GET", "", times=20))
    run.commit_next()
    run.commit_next()
    assert store.met
    assert assert_exactly_once(catalog_of(tmp_path, store).load_table(NAME)) == 2
