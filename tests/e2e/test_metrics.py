"""`conveyord run --metrics-port`: a real run is scraped over HTTP while it runs."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.harness import Job, Running

ENDLESS = {"type": "generate", "shape": "metrics", "rows_per_second": 2000.0, "batch_rows": 100}
PIPELINE, SINK = (("pipeline", "default/job"),), (("pipeline", "default/job"), ("sink", "sink"))
Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def port_of(running: Running) -> int:
    """The port that a run serves metrics on."""
    assert running.saw("serving metrics"), running.wait().err
    found = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", running.err())
    assert found is not None, running.err()
    return int(found[1])


def get(port: int, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, content type and body of one answer."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["content-type"], answer.read().decode()


def scrape(port: int) -> Figures:
    status, _, text = get(port)
    assert status == 200, text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def endless(home: Path) -> Job:
    return Job(home, source=ENDLESS, sink={"commit": {"every": "0.2s"}})


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    """An endless run that serves metrics, ended after the test in any case."""
    started = endless(tmp_path).start("--metrics-port", "0")
    yield started
    if started._ended is None:
        started.send(signal.SIGKILL)
        started.wait()


def test_a_run_is_scraped_while_it_runs(running: Running) -> None:
    port, seen = port_of(running), []

    def committed_twice() -> bool:
        seen.append(scrape(port))
        return seen[-1].get(("conveyord_sink_commits_total", SINK), 0) >= 2

    assert running.until(committed_twice), running.wait().err
    first, last = seen[0], seen[-1]
    counters = {key for key in last if key[0].startswith("conveyord_") and key[0].endswith("_total")}
    for before, after in pairwise(seen):
        assert all(before.get(key, 0) <= after.get(key, 0) for key in counters)
    assert last["conveyord_rows_in_total", PIPELINE] > first["conveyord_rows_in_total", PIPELINE]
    assert last["conveyord_sink_rows_total", SINK] > 0
    assert last["conveyord_sink_files_total", SINK] > 0
    assert last["conveyord_read_bytes_total", PIPELINE] > 0
    assert last["conveyord_oldest_uncommitted_seconds", PIPELINE] >= 0
    assert last["process_resident_memory_bytes", ()] > 0
    assert not [name for name, _ in last if name.startswith("conveyord_source_")]
    running.send(signal.SIGTERM)
    ended = running.wait()
    ended.orderly(0)
    assert ended.summary["status"] == "drained"
    assert ended.summary["rows_in"] >= last["conveyord_rows_in_total", PIPELINE]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_there_is_one_page_in_two_forms(running: Running) -> None:
    port = port_of(running)
    assert get(port)[:2] == (200, "text/plain; version=0.0.4; charset=utf-8")
    status, form, text = get(port, accept="application/openmetrics-text; version=1.0.0")
    assert (status, form.partition(";")[0], text.splitlines()[-1]) == (200, "application/openmetrics-text", "# EOF")
    assert get(port, method="HEAD")[::2] == (200, "")
    for path, method in (("/", "GET"), ("/metrics/x", "GET"), ("/metrics", "POST"), ("/metrics", "PUT")):
        status, form, text = get(port, path, method)
        assert (status, form, json.loads(text)["code"]) == (404, "application/problem+json", "NOT_FOUND")
    running.send(signal.SIGTERM)
    running.wait().orderly(0)


def test_clients_that_dawdle_hold_up_neither_the_run_nor_its_end(running: Running) -> None:
    port = port_of(running)
    dawdlers = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
    for number, dawdler in enumerate(dawdlers):
        dawdler.sendall(b"GET /metrics HTTP/1.1\r\nhost: x\r\n"[: number * 2])
    assert running.saw("committed", times=2)
    running.send(signal.SIGTERM)
    ended = running.wait()
    for dawdler in dawdlers:
        dawdler.close()
    ended.orderly(0)
    assert ended.summary["status"] == "drained"


@pytest.mark.parametrize("how", ["flag", "setting"])
def test_a_port_in_use_is_a_sentence_and_exit_code_2_before_anything_is_moved(tmp_path: Path, how: str) -> None:
    job = endless(tmp_path)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "conveyord.toml").write_text(f'[run]\nmetrics = "127.0.0.1:{port if how == "setting" else 1}"\n')
        ended = job.run(*(["--metrics-port", str(port)] if how == "flag" else []))
    ended.failed(rf"metrics cannot be served at 127\.0\.0\.1:{port}: Address already in use; take another", code=2)
    assert json.loads(ended.out)["error"]["code"] == "CONFIG"
    assert not job.data_dir.exists()


def test_a_host_that_is_not_here_is_a_sentence_and_exit_code_2(tmp_path: Path) -> None:
    job = endless(tmp_path)
    (tmp_path / "conveyord.toml").write_text('[run]\nmetrics = "192.0.2.1:9464"\n')  # an address of no machine
    job.run().failed(r"metrics cannot be served at 192\.0\.2\.1:9464: .*; check host and port", code=2)


def test_a_port_beyond_all_ports_is_refused(shell: Any, tmp_path: Path) -> None:
    ended = shell.run("run", "p.yaml", "--metrics-port", "65536", cwd=tmp_path)
    assert ended.code == 2
    assert "65536 is not in the range 0<=x<=65535" in ended.err
