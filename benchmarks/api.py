"""Requests a second of the REST interface on one node, against the same server answering a constant.

`python -m benchmarks.api` prints one line of JSON. The node and its clients are processes of their own; the clients
write HTTP by hand, so that they cost little. Rounds of all kinds are interleaved, and the median of each is told.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import structlog
import trio

from conveyord.api.service import LIMITS, ApiSettings, HttpService
from conveyord.cluster.node import Node
from conveyord.cluster.settings import NodeSettings
from conveyord.core.state.commands import ConfigPut
from conveyord.roles.router import RouterService
from conveyord.runtime.http_server import Answer, Head, Held, HttpServer
from conveyord.storage.identity import take_identity

ROUNDS = 7
SECONDS = 1.0
WAIT_SECONDS = 30.0
CLIENTS = 16
VALUE = "x" * 200
SWITCH_SECONDS = 0.0005
HEAD = "{} HTTP/1.1\r\nhost: 127.0.0.1\r\n"
PUT = json.dumps({"value": VALUE}).encode()
KINDS = {
    "constant": (HEAD.format("GET /constant") + "\r\n").encode(),
    "config.get stale": (HEAD.format("GET /api/v1/config/a?stale=true") + "\r\n").encode(),
    "config.get": (HEAD.format("GET /api/v1/config/a") + "\r\n").encode(),
    "config.put": (
        HEAD.format("PUT /api/v1/config/a") + f"content-type: application/json\r\ncontent-length: {len(PUT)}\r\n\r\n"
    ).encode()
    + PUT,
}


def nobody(head: Head) -> None:
    """Admit everything."""


async def constant(_: Head, __: Held) -> Answer:
    await trio.lowlevel.checkpoint()
    return Answer(200, b'{"index":1}', {"content-type": "application/json"})


async def serve(home: Path) -> None:
    rpc, http, bare = [await trio.open_tcp_listeners(0, host="127.0.0.1") for _ in range(3)]
    rpc_port, http_port, bare_port = (one[0].socket.getsockname()[1] for one in (rpc, http, bare))
    addresses = f"127.0.0.1:{rpc_port}", f"127.0.0.1:{http_port}"
    node = Node(NodeSettings(home, *addresses, version="bench"), take_identity(home), rpc)
    service = HttpService(node, ApiSettings(home, "open"), http)
    forever = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(node.run, drain=forever))
        await nursery.start(partial(service.run, drain=forever))
        await nursery.start(partial(RouterService(node, home, 1.0).run, drain=forever))
        nursery.start_soon(partial(HttpServer(nobody, constant, LIMITS).serve, bare, drain=forever))
        with trio.fail_after(WAIT_SECONDS):
            while node.phase != "member":  # noqa: ASYNC110 - a node tells nobody of its phase
                await trio.sleep(0.05)
        await node.propose(ConfigPut("a", VALUE.encode()), actor="bench")
        print(json.dumps([http_port, bare_port]), flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


async def ask(port: int, request: bytes, until: float, counts: list[int]) -> None:
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    count = 0
    async with stream:
        while time.monotonic() < until:
            await stream.send_all(request)
            data = await stream.receive_some(65536)
            assert data.startswith(b"HTTP/1.1 200 "), (request, data)
            count += 1
    counts.append(count)


async def round_of(port: int, request: bytes, clients: int) -> float:
    counts: list[int] = []
    until = time.monotonic() + SECONDS
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(ask, port, request, until, counts)
    return sum(counts) / SECONDS


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def main() -> None:
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "benchmarks.api", home]
        process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        async with process.stdout:
            http_port, bare_port = json.loads(await process.stdout.receive_some())
            before = rss_mib(process.pid)
            found: dict[str, list[float]] = {}
            for clients in (1, CLIENTS):
                for _ in range(ROUNDS):
                    for kind, request in KINDS.items():
                        port = bare_port if kind == "constant" else http_port
                        found.setdefault(f"{kind}, {clients}", []).append(await round_of(port, request, clients))
            rates = {kind: round(statistics.median(values)) for kind, values in found.items()}
            ratios = {
                kind: round(rate / rates[f"constant, {kind.rpartition(', ')[2]}"], 2) for kind, rate in rates.items()
            }
            memory = {"before_mib": round(before), "after_mib": round(rss_mib(process.pid))}
            print(json.dumps({"requests_per_second": rates, "of_constant": ratios, "rss": memory}))
        await process.stdin.aclose()
        await process.wait()


if __name__ == "__main__":
    sys.setswitchinterval(SWITCH_SECONDS)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    if len(sys.argv) > 1:
        trio.run(serve, Path(sys.argv[1]))
    else:
        trio.run(main)
