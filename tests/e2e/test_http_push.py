"""A listening `http` source as its senders see it: killed, drained, run again; every key answered is there once.

Senders do what the docs tell them to: they send a request until it is answered, with the same key.
"""

from __future__ import annotations

import faulthandler
import http.client
import json
import os
import random
import signal
import socket
import threading
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Self

import pytest

from tests.e2e.graph_rig import GraphJob, sink
from tests.e2e.harness import Job, Running, lines
from tests.e2e.test_disk_faults import fill, mounted

SEED = int(os.environ.get("CONVEYORD_SEED", "20240601"))
OFTEN = {"every": "0.1s"}
SENDERS = 4
PAUSE_SECONDS = 0.02  # before a request is sent again
IDS_PER_KEY = 7  # at most


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def push_source(**push: Any) -> dict[str, Any]:
    url = f"http://127.0.0.1:{free_port()}/events"
    return {"name": "in", "type": "http", "mode": "push", "url": url, "push": push}


def push_job(home: Path, *, push: dict[str, Any] | None = None, sink: dict[str, Any] | None = None) -> Job:
    return Job(home, source=push_source(**push or {}), sink=sink or {"commit": OFTEN})


def port_of(source: dict[str, Any]) -> int:
    return int(source["url"].split(":")[2].split("/")[0])


def listening(job: Job | GraphJob) -> Running:
    running = job.start()
    assert running.saw("listening"), running.wait().err
    return running


class Senders:
    """Threads that send numbered records, each request until it is answered. `ids`: of those that were."""

    def __init__(self, source: dict[str, Any], *, seed: int) -> None:
        self._port = port_of(source)
        self._lock = threading.Lock()
        self._next = 0
        self._over = threading.Event()
        self.ids: list[int] = []
        self.statuses: Counter[int | str] = Counter()
        self._threads = [threading.Thread(target=self._send, args=(seed + n,), daemon=True) for n in range(SENDERS)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def finish(self) -> None:
        """Let every sender get the answer that it waits for."""
        self._over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request is not answered"

    def _send(self, seed: int) -> None:
        rng, connection = random.Random(seed), http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._over.is_set():
            with self._lock:
                first, self._next = self._next, self._next + rng.randint(1, IDS_PER_KEY)
                ids = range(first, self._next)
            status: int | str = 0
            while status not in (200, 202):
                headers = {"content-type": "application/x-ndjson", "idempotency-key": f"key-{first}"}
                try:
                    connection.request("POST", "/events", lines(ids), headers)  # connects if it is not
                    answer = connection.getresponse()
                    status, body = answer.status, json.loads(answer.read())
                except (OSError, http.client.HTTPException) as error:
                    status = type(error).__name__
                    connection.close()
                with self._lock:
                    self.statuses[status] += 1
                if status not in (200, 202):
                    self._over.wait(PAUSE_SECONDS)
            assert body["records"] == len(ids)
            with self._lock:
                self.ids += ids
        connection.close()


def kill_loop(job: Job | GraphJob, source: dict[str, Any], *, kills: int) -> Senders:
    """Kill `kills` runs while records are sent, then drain one. Returns what was answered."""
    faulthandler.cancel_dump_traceback_later()  # no hang, and its dump of the threads can crash
    rng = random.Random(SEED)
    print(f"seed={SEED}")
    with Senders(source, seed=SEED) as senders:
        for _ in range(kills):
            running = job.start()
            if rng.random() < 0.8:
                running.saw("listening")
            if rng.random() < 0.6:
                running.saw("committed", times=rng.randint(1, 3))
            assert running.killed_after(rng.uniform(0.0, 0.4))
        running = listening(job)
        assert running.saw("committed")
        senders.finish()
        running.send(signal.SIGTERM)
        ended = running.wait()
    ended.orderly(0)
    print(f"answers: {dict(senders.statuses)}, records: {len(senders.ids)}")
    assert senders.ids
    return senders


def kill_job(job: Job, *, kills: int) -> Senders:
    """`kill_loop`, and count the table."""
    senders = kill_loop(job, job.source, kills=kills)
    job.holds(senders.ids)
    job.audit()
    return senders


@pytest.mark.parametrize("respond", ["accepted", "committed"])
def test_every_key_is_there_once_after_a_few_kills(tmp_path: Path, respond: str) -> None:
    kill_job(push_job(tmp_path, push={"respond": respond, "commit_within": "50ms"}), kills=2)


@pytest.mark.check
@pytest.mark.timeout(900)
@pytest.mark.parametrize("respond", ["accepted", "committed"])
def test_every_key_is_there_once_after_many_kills(tmp_path: Path, respond: str) -> None:
    often = {"commit": OFTEN, "provenance": True}
    job = push_job(tmp_path, push={"respond": respond, "commit_within": "50ms"}, sink=often)
    senders = kill_job(job, kills=20)
    assert senders.statuses[202 if respond == "accepted" else 200] > 20


@pytest.mark.soak
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("respond", ["accepted", "committed"])
def test_every_key_is_there_once_after_200_kills(tmp_path: Path, respond: str) -> None:
    kill_job(push_job(tmp_path, push={"respond": respond, "commit_within": "50ms"}), kills=200)


@pytest.mark.check
@pytest.mark.timeout(900)
@pytest.mark.parametrize("respond", ["accepted", "committed"])
def test_every_key_is_there_once_in_sinks_of_different_speed(tmp_path: Path, respond: str) -> None:
    """A quick sink, one behind a spill and a limit of its pace, and one that commits late: all lag differently."""
    source = push_source(respond=respond, commit_within="50ms", commit_timeout="2s")
    job = GraphJob(tmp_path, sources=[source])
    job.transforms = [{"name": "limit", "type": "rate_limit", "rows_per_second": 1500.0, "burst": "0.1s"}]
    job.sinks = [sink("quick", commit=OFTEN), sink("slow", commit=OFTEN), sink("late", commit={"every": "0.7s"})]
    job.edges = [["in", "quick"], {"from": "in", "to": "limit", "on_slow": "spill"}, ["limit", "slow"], ["in", "late"]]
    senders = kill_loop(job, source, kills=6)
    job.hold(quick=senders.ids, slow=senders.ids, late=senders.ids)
    for name in ("quick", "slow", "late"):
        job.table(name).audit()


def test_a_drain_under_load_answers_what_is_in_the_table_and_the_next_run_the_rest(tmp_path: Path) -> None:
    job = push_job(tmp_path, push={"respond": "committed", "commit_within": "50ms"}, sink={"commit": {"every": "60s"}})
    with Senders(job.source, seed=SEED) as senders:
        running = listening(job)
        assert running.saw("committed", times=2)
        running.send(signal.SIGTERM)
        ended = running.wait()
        ended.orderly(0)
        assert ended.summary["status"] == "drained"
        answered, there = list(senders.ids), set(job.ids())
        assert set(answered) <= there
        running = listening(job)
        senders.finish()
        running.send(signal.SIGTERM)
        running.wait().orderly(0)
    job.holds(senders.ids)
    # A connection that a draining node has closed: by how far the request had come.
    cut = {"ConnectionRefusedError", "ConnectionResetError", "BrokenPipeError", "RemoteDisconnected"}
    assert set(senders.statuses) <= cut | {200}


def test_pipelines_that_run_together_have_a_journal_each(tmp_path: Path) -> None:
    job, other = push_job(tmp_path), push_job(tmp_path)
    other.name, other.table = "other", "ns.u"
    assert job.file != other.file
    running = job.start(other.file)
    assert running.saw("listening", times=2)
    with Senders(job.source, seed=1) as here, Senders(other.source, seed=2) as there:
        assert running.until(lambda: len(here.ids) > 20 and len(there.ids) > 20)
    running.send(signal.SIGTERM)
    running.wait().orderly(0)
    job.holds(here.ids)
    other.holds(there.ids)


def test_a_dry_run_says_that_the_address_is_taken_and_makes_no_journal(tmp_path: Path) -> None:
    job = push_job(tmp_path)
    port = port_of(job.source)
    with closing(socket.create_server(("127.0.0.1", port))):
        ended = job.run("--dry-run")
    assert ended.code == 1, ended.out + ended.err
    assert "stop what listens there" in ended.out + ended.err
    assert not (job.data_dir / "journals").exists()
    assert job.run("--dry-run").code == 0


def test_a_disk_that_fills_up_turns_senders_away_until_there_is_room(tmp_path: Path) -> None:
    """The journal alone stands on the full disk, so that the run lives on."""
    job = push_job(tmp_path, push={"respond": "accepted"})
    place = job.data_dir / "journals"
    with mounted("ext4", tmp_path / "image", place):
        running = listening(job)
        with Senders(job.source, seed=SEED) as senders:
            assert running.until(lambda: senders.statuses[202] > 20)
            ballast = fill(place, leave_bytes=0)
            assert running.until(lambda: senders.statuses[503] > 20)
            ballast.unlink()
            before = senders.statuses[202]
            assert running.until(lambda: senders.statuses[202] > before + 20)
        running.send(signal.SIGTERM)
        ended = running.wait()
        ended.orderly(0)
        assert "requests cannot be taken" in ended.err
        job.holds(senders.ids)


def test_what_was_accepted_before_a_stage_failed_goes_on_with_the_next_run(tmp_path: Path) -> None:
    job = push_job(tmp_path)
    job.steps = [{"type": "sql_transform", "query": "SELECT id, CAST(name AS BIGINT) AS number FROM input_data"}]
    running = listening(job)
    sent = 0

    def send() -> bool:
        """Send one more record, and the poison second. Whether it was accepted."""
        with closing(http.client.HTTPConnection("127.0.0.1", port_of(job.source), timeout=60)) as connection:
            headers = {"content-type": "application/json", "idempotency-key": str(sent)}
            body = json.dumps({"id": sent, "name": "no number" if sent == 1 else "1"})
            try:
                connection.request("POST", "/events", body, headers)
                return connection.getresponse().status == 202
            except (OSError, http.client.HTTPException):
                return False

    while send():
        sent += 1
    running.wait().failed("no number")
    assert sent >= 2
    job.steps = []
    running = listening(job)
    assert send(), "the one that was not answered"
    assert running.until(lambda: len(job.ids()) == sent + 1)
    running.send(signal.SIGTERM)
    running.wait().orderly(0)
    job.holds(range(sent + 1))


@pytest.mark.parametrize("kind", ["push", "follow"])
def test_a_stage_that_fails_ends_a_run_whose_source_has_nothing_more_to_send(tmp_path: Path, kind: str) -> None:
    job = push_job(tmp_path)
    if kind == "follow":
        job.source = {"type": "file_jsonl", "path": "in/*", "follow": True, "poll_every": "20ms"}
        (job.input / "a.jsonl").write_bytes(lines(range(3)))
    job.steps = [{"type": "sql_transform", "query": "SELECT CAST(name AS BIGINT) AS number FROM input_data"}]
    running = job.start()
    if kind == "push":
        assert running.saw("listening")
        with closing(http.client.HTTPConnection("127.0.0.1", port_of(job.source), timeout=60)) as connection:
            headers = {"content-type": "application/x-ndjson", "idempotency-key": "k"}
            connection.request("POST", "/events", lines(range(3)), headers)
            assert connection.getresponse().status == 202
    running.wait().failed("name 0")
