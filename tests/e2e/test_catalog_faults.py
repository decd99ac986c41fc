"""A REST catalog whose answers to commits are lost, late, wrong or missing, below the real process.

The server keeps its tables in the embedded catalog of the same data directory, so that what landed can
be counted and audited without it.
"""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conveyord.storage.lake.catalog import open_embedded
from tests.e2e.harness import Job, Running, conveyord, lines
from tests.storage.rest_catalog import RestServer

# Handlers that never answered keep their sockets until the server goes away.
pytestmark = [
    pytest.mark.usefixtures("unclosed_files"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

RECORDS = 12_000


@pytest.fixture
def job(tmp_path: Path) -> Job:
    source = {"type": "file_jsonl", "path": "in/*", "block_bytes": 65536}
    made = Job(tmp_path, source=source, sink={"commit": {"rows": 1_000}})
    (made.input / "a.jsonl").write_bytes(lines(range(RECORDS)))
    made.data_dir.mkdir()
    return made


@pytest.fixture
def server(job: Job) -> Iterator[RestServer]:
    from threading import Thread

    with closing(open_embedded(job.data_dir)) as backing:
        running = RestServer(backing)
        thread = Thread(target=running.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        job.sink["catalog"] = {"type": "rest", "uri": running.uri}
        yield running
        running.stopped.set()
        running.http.shutdown()
        running.http.server_close()
        thread.join()


def is_exactly_once(job: Job) -> None:
    assert job.run().succeeded()["rows_in"] == 0
    job.holds(range(RECORDS))
    job.audit()
    assert not job.orphans()


def test_whatever_the_catalog_answers_every_record_lands_once(job: Job, server: RestServer) -> None:
    server.faults += ["ok", "lost", "503", "500-applied", "ok", "409-applied", "504", "garbage", "429", "502"]
    job.run().succeeded()
    assert not server.faults
    is_exactly_once(job)


@pytest.mark.check
@pytest.mark.parametrize("fault", ["lost", "500-applied", "503-applied"])
def test_a_table_whose_creation_was_not_confirmed_is_written_once(job: Job, server: RestServer, fault: str) -> None:
    server.create_fault = fault
    if job.run().code:
        job.run().succeeded()
    is_exactly_once(job)


@pytest.mark.check
def test_a_commit_that_lands_after_its_run_was_killed_is_not_repeated(job: Job, server: RestServer) -> None:
    server.faults += ["ok", "never"]
    running = job.start()
    assert held_back(running, server)
    running.send(signal.SIGKILL)
    running.wait()
    landed = server.release()
    assert landed == [200]
    job.run().succeeded()
    is_exactly_once(job)


@pytest.mark.check
def test_a_commit_of_a_killed_run_that_arrives_after_the_next_run_began_is_refused(
    job: Job, server: RestServer
) -> None:
    server.faults += ["ok", "never"]
    running = job.start()
    assert held_back(running, server)
    running.send(signal.SIGKILL)
    running.wait()
    job.run().succeeded()
    assert server.release() == [409]
    is_exactly_once(job)


@pytest.mark.check
def test_commits_that_land_after_the_client_gave_up_are_not_repeated(job: Job, server: RestServer) -> None:
    server.faults += ["ok", "late", "ok", "late", "late"]
    running = job.start()
    while running.until(lambda: bool(server.held)):
        server.release()
    running.wait().succeeded()
    is_exactly_once(job)


@pytest.mark.parametrize(
    "lands",
    [pytest.param(True, marks=pytest.mark.check), pytest.param(False, marks=pytest.mark.soak)],
    ids=["landed", "did not land"],
)
def test_a_catalog_that_never_answers_is_given_up_and_looked_at(job: Job, server: RestServer, lands: bool) -> None:
    server.faults += ["ok", "never"]
    running = job.start()
    assert held_back(running, server)
    if lands:
        assert server.release() == [200]
    running.wait().succeeded()
    assert server.release() == ([] if lands else [409])
    is_exactly_once(job)


@pytest.mark.check
def test_a_catalog_that_keeps_failing_ends_the_run_and_the_next_goes_on(job: Job, server: RestServer) -> None:
    server.faults += ["ok", "ok", *["503"] * 60]
    job.run().failed(r"table ns\.t", "catalog", "503|ServiceUnavailable|Unavailable")
    server.faults.clear()
    job.run().succeeded()
    is_exactly_once(job)


@pytest.mark.check
@pytest.mark.parametrize("fault", ["400", "401", "403"])
def test_a_catalog_that_denies_a_commit_ends_the_run_at_once(job: Job, server: RestServer, fault: str) -> None:
    server.faults += ["ok", fault, fault]  # pyiceberg itself repeats a request after the first 401
    job.run().failed(r"table ns\.t", "catalog|refuse", fault)
    assert server.commits <= 3
    server.faults.clear()
    job.run().succeeded()
    is_exactly_once(job)


@pytest.mark.check
def test_a_catalog_that_is_not_there_is_named(job: Job) -> None:
    job.sink["catalog"] = {"type": "rest", "uri": "http://127.0.0.1:9"}
    job.run().failed("127.0.0.1", "catalog")


def held_back(running: Running, server: RestServer) -> bool:
    return running.until(lambda: bool(server.held))


@pytest.mark.check
def test_a_catalog_that_is_silent_from_the_start_is_given_up(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"a":1}\n')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        (tmp_path / "p.yaml").write_text(
            "apiVersion: conveyor.etl/v1\nkind: Pipeline\nmetadata: {name: p}\nspec:\n"
            "  source: {type: file_jsonl, path: a.jsonl}\n"
            f"  sink: {{type: iceberg, table: a.b, catalog: {{type: rest, uri: '{uri}'}}}}\n"
        )
        ended = conveyord("run", "p.yaml", "--data-dir", "data", "-o", "json", cwd=tmp_path)
    ended.failed("did not answer within 60 s")
