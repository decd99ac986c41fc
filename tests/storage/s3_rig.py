"""A real S3 interface over HTTP (moto), and a proxy before it that can break any of its answers."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal

START_SECONDS_MAX = 60
BUCKET = "lake"
HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length", "host"})
PIECES_OF_A_SLOW_BODY = 5

FaultKind = Literal["500", "503", "500-applied", "lost", "cut", "slow", "hang"]
"""500, 503: not applied, and said so. 500-applied: applied, but said otherwise. lost: applied, then the connection
is cut. cut: not applied, likewise. slow: the body comes in pieces. hang: no answer until the proxy stops."""


@dataclass(frozen=True)
class Fault:
    """What happens to the next requests of `method` whose path holds `path`, `times` times."""

    kind: FaultKind
    method: str
    path: str = ""
    times: int = 1


@dataclass
class Store:
    """An S3 endpoint: what clients are told, and the faults that its proxy has yet to make."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    """`METHOD path` of every request that met a fault."""
    requests: list[str] = field(default_factory=list)
    """`METHOD path?query` of all."""

    def properties(self, warehouse: str = "wh") -> dict[str, str]:
        """Catalog properties."""
        return {
            "warehouse": f"s3://{BUCKET}/{warehouse}",
            "s3.endpoint": self.endpoint,
            "s3.access-key-id": "key",
            "s3.secret-access-key": "secret",
            "s3.region": "us-east-1",
        }

    def take(self, method: str, path: str) -> FaultKind | None:
        """The fault that meets this request, one fewer of it from now on."""
        for number, fault in enumerate(self.faults):
            if fault.method == method and fault.path in path:
                left = [] if fault.times == 1 else [Fault(fault.kind, method, fault.path, fault.times - 1)]
                self.faults[number : number + 1] = left
                self.met.append(f"{method} {path}")
                return fault.kind
        return None


@contextmanager
def s3_server() -> Iterator[int]:
    """Run moto as a process with an empty bucket `BUCKET`; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while True:
            with suppress(OSError):
                status, _, _ = forward(port, "PUT", f"/{BUCKET}", {}, b"")
                assert status == 200
                break
            assert process.poll() is None, "moto ended"
            assert time.monotonic() < deadline, f"moto does not answer after {START_SECONDS_MAX} s"
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


def forward(
    port: int, method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Send one request to the server itself."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()
    finally:
        connection.close()


@contextmanager
def faulty(port: int) -> Iterator[Store]:
    """A proxy before the server at `port`; all goes well until `faults` says otherwise."""
    stopped = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            store.requests.append(f"{self.command} {self.path}")
            body, kind = _body(self), store.take(self.command, self.path)
            if kind == "hang":
                stopped.wait()
            if kind in ("hang", "cut"):
                self.close_connection = True
                return
            if kind in ("500", "503"):
                _answer(self, int(kind), [], b"<Error><Code>InternalError</Code></Error>")
                return
            headers = {key: value for key, value in self.headers.items() if key.lower() not in HOP_BY_HOP}
            status, answered, content = forward(port, self.command, self.path, headers, body)
            if kind == "lost":
                self.close_connection = True
            elif kind == "500-applied":
                _answer(self, 500, [], b"<Error><Code>InternalError</Code></Error>")
            else:
                _answer(self, status, answered, content, slow=kind == "slow")

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815 - the base class's names

        def handle(self) -> None:
            with suppress(ConnectionError):  # a killed client
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store = Store(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        stopped.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _body(handler: BaseHTTPRequestHandler) -> bytes:
    if handler.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
    body = bytearray()
    while size := int(handler.rfile.readline().split(b";")[0], 16):
        body += handler.rfile.read(size)
        handler.rfile.readline()
    while handler.rfile.readline().strip():  # trailers
        pass
    return bytes(body)


def _answer(
    handler: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes, *, slow: bool = False
) -> None:
    length = next((value for key, value in headers if key.lower() == "content-length"), str(len(body)))
    handler.send_response(status)
    for key, value in headers:
        if key.lower() not in HOP_BY_HOP | {"date", "server"}:
            handler.send_header(key, value)
    handler.send_header("Content-Length", length if handler.command == "HEAD" else str(len(body)))
    handler.end_headers()
    if handler.command == "HEAD":
        return
    size = len(body) // PIECES_OF_A_SLOW_BODY + 1 if slow else len(body) or 1
    for first in range(0, len(body), size):
        handler.wfile.write(body[first : first + size])
        handler.wfile.flush()
        if slow:
            time.sleep(0.05)  # the fault itself: no test waits for it to pass
