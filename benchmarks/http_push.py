"""The listening `http` source against a bare loop without a journal: the same requests over loopback.

    python -m benchmarks.http_push [--requests 2000] [--rounds 5] [--json PATH]

Three servers, each a process of its own, take turns: the bare one reads a request with the same HTTP server, parses its
records, and answers; `accepted` is `conveyord run` that answers once they are in its journal, `committed` once an
Iceberg table has them, with commits 50 ms apart. 32 connections send at once, each its next request after the answer
to the one before. Sender and server share the machine, so only ratios mean something; what the server's own threads
took (`cpu`) is told beside the rate, because it depends less on what else runs.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import Any

import trio

from conveyord.engine.http.bodies import records_of
from conveyord.runtime.http_server import Answer, Head, Held, HttpServer, Limits, listen

CONNECTIONS = 32
SHAPES = (1, 100)  # records in a request
WAYS = ("bare", "accepted", "committed")
COMMIT_WITHIN = "50ms"
START_SECONDS_MAX = 30.0
BODY_BYTES_MAX = 64 * 1024 * 1024
LIMITS = Limits(BODY_BYTES_MAX, 4 * BODY_BYTES_MAX, 256, head_seconds=10, piece_seconds=30, request_seconds=60)


async def serve_bare(port: int) -> None:
    async def respond(_: Head, held: Held) -> Answer:
        await trio.lowlevel.checkpoint()
        found = records_of(held.body, encoding="identity", is_lines=True, bytes_max=BODY_BYTES_MAX)
        return Answer(202, json.dumps({"records": found.count}).encode())

    listeners = await listen("127.0.0.1", port)
    await HttpServer(lambda _: None, respond, LIMITS).serve(listeners, drain=trio.Event())


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def started(way: str, port: int, home: Path) -> subprocess.Popen[bytes]:
    if way == "bare":
        command = [sys.executable, "-m", "benchmarks.http_push", "--serve", str(port)]
        return subprocess.Popen(command)
    push = {"respond": way, "commit_within": COMMIT_WITHIN}
    source = {"type": "http", "mode": "push", "url": f"http://127.0.0.1:{port}/", "push": push}
    spec = {"source": source, "sink": {"type": "iceberg", "table": "ns.t"}}
    file = home / "p.yaml"
    file.write_text(f"apiVersion: conveyor.etl/v1\nkind: Pipeline\nmetadata: {{name: p}}\nspec: {json.dumps(spec)}\n")
    command = [str(Path(sys.executable).with_name("conveyord")), "run", str(file), "--data-dir", str(home / "data")]
    return subprocess.Popen([*command, "--log-level", "error"], stdout=subprocess.DEVNULL)


def request(number: int, records: int) -> bytes:
    body = b"".join(
        b'{"id":%d,"name":"name %d","value":%d.5,"place":{"zone":%d,"tag":"t%d"}}\n' % (n, n % 1000, n, n % 7, n % 13)
        for n in range(number * records, (number + 1) * records)
    )
    head = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/x-ndjson\r\n"
    return head + b"idempotency-key: k%d-%d\r\ncontent-length: %d\r\n\r\n" % (records, number, len(body)) + body


async def send(port: int, requests: list[bytes]) -> None:
    """Send requests one after the other on one connection."""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        for data in requests:
            await stream.send_all(data)
            said = b""
            while b"\r\n\r\n" not in said:
                said += await stream.receive_some(65_536)
            head, _, body = said.partition(b"\r\n\r\n")
            assert head.startswith((b"HTTP/1.1 202", b"HTTP/1.1 200")), said
            length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            while len(body) < length:
                body += await stream.receive_some(65_536)


async def send_all(port: int, requests: list[bytes]) -> float:
    """Seconds that all of them took."""
    began = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for first in range(CONNECTIONS):
            nursery.start_soon(send, port, requests[first::CONNECTIONS])
    return time.perf_counter() - began


def wait_until_up(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        with closing(socket.socket()) as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise SystemExit("the server does not listen")


def cpu_seconds(pid: int) -> float:
    """What a process has taken so far, all of its threads together."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one_round(way: str, count: int) -> dict[int, tuple[float, float]]:
    """Requests a second, and a second of CPU of the server, by records in a request."""
    with tempfile.TemporaryDirectory(prefix="conveyord-push-") as name:
        port = free_port()
        process = started(way, port, Path(name))
        try:
            wait_until_up(port)
            found = {}
            for records in SHAPES:
                requests = [request(number, records) for number in range(count + CONNECTIONS)]
                trio.run(send_all, port, requests[:CONNECTIONS])
                before = cpu_seconds(process.pid)
                rate = count / trio.run(send_all, port, requests[CONNECTIONS:])
                found[records] = rate, count / (cpu_seconds(process.pid) - before)
            return found
        finally:
            process.send_signal(signal.SIGKILL if way == "bare" else signal.SIGTERM)
            process.wait()


def ratio(runs: dict[str, list[dict[int, tuple[float, float]]]], way: str, records: int, at: int) -> float:
    """Of a way to the bare one, round by round."""
    return median(ours[records][at] / bare[records][at] for ours, bare in zip(runs[way], runs["bare"], strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2_000, help="of each shape, in each round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve is not None:
        trio.run(serve_bare, arguments.serve)
        return
    runs: dict[str, list[dict[int, tuple[float, float]]]] = {way: [] for way in WAYS}
    for _ in range(arguments.rounds):
        for way in WAYS:
            runs[way].append(one_round(way, arguments.requests))
    figures: dict[str, Any] = {"requests": arguments.requests, "rounds": arguments.rounds, "connections": CONNECTIONS}
    for records in SHAPES:
        figures[f"{records}_a_request"] = {
            kind: {
                "requests_per_second": {way: round(median(run[records][at] for run in runs[way])) for way in WAYS},
                "records_per_second": {
                    way: round(median(run[records][at] for run in runs[way]) * records) for way in WAYS
                },
                "of_bare": {way: round(ratio(runs, way, records, at), 3) for way in WAYS[1:]},
            }
            for at, kind in enumerate(("wall", "cpu"))
        }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
