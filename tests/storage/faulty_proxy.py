"""A proxy before an object store that can break any of its answers."""

from __future__ import annotations

import http.client
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import unquote

from tests.storage.object_stores import Server

HOP_BY_HOP = frozenset({"connection", "transfer-encoding", "content-length"})
PIECES_OF_A_SLOW_BODY = 5

FaultKind = Literal["401", "403", "500", "503", "500-applied", "lost", "cut", "slow", "hang"]
"""A number: not applied, and said so. 500-applied: applied, but said otherwise. lost: applied, then the connection
is cut. cut: not applied, likewise. slow: the body comes in pieces. hang: no answer until the proxy stops."""
FOR_EVER = 10**9
UPLOAD_ID = re.compile(r"[?&]upload_id=(\w+)")

Answer = tuple[int, list[tuple[str, str]], bytes]
"""Status, headers, body."""


@dataclass(frozen=True)
class Fault:
    """What happens to the next requests of `method` whose target holds `path`, `times` times."""

    kind: FaultKind
    method: str
    path: str = ""
    times: int = 1


@dataclass
class Store:
    """A proxied server: what clients are told, and the faults that its proxy has yet to make."""

    server: Server
    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    met: list[str] = field(default_factory=list)
    """`METHOD target` of every request that met a fault."""
    requests: list[str] = field(default_factory=list)
    """`METHOD target` of all, not quoted."""

    def properties(self, warehouse: str = "wh") -> dict[str, str]:
        """Catalog properties."""
        return self.server.properties(warehouse, endpoint=self.endpoint)

    def take(self, request: str) -> FaultKind | None:
        """The fault that meets this request, one fewer of it from now on."""
        method, _, target = request.partition(" ")
        for number, fault in enumerate(self.faults):
            if fault.method == method and fault.path in target:
                left = [] if fault.times == 1 else [Fault(fault.kind, method, fault.path, fault.times - 1)]
                self.faults[number : number + 1] = left
                self.met.append(request)
                return fault.kind
        return None


@contextmanager
def faulty(server: Server) -> Iterator[Store]:
    """A proxy before `server`; all goes well until `faults` says otherwise."""
    stopped, uploads = threading.Event(), Uploads()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass(self) -> None:
            request = f"{self.command} {unquote(self.path)}"
            store.requests.append(request)
            body, kind = _body(self), store.take(request)
            if kind == "hang":
                stopped.wait()
            if kind in ("hang", "cut"):
                self.close_connection = True
                return
            if kind is not None and kind.isdigit():
                _answer(self, int(kind), [], _error(int(kind), server))
                return
            status, answered, content = uploads.asked(self) or uploads.noted(self, _forward(server, self, body))
            if kind == "lost":
                self.close_connection = True
            elif kind == "500-applied":
                _answer(self, 500, [], _error(500, server))
            else:
                answered = [(key, _through_proxy(key, value)) for key, value in answered]
                _answer(self, status, answered, content, slow=kind == "slow")

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815 - the base class's names

        def handle(self) -> None:
            with suppress(ConnectionError):  # a killed client
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    def _through_proxy(key: str, value: str) -> str:
        # Where a resumable upload goes on.
        return value.replace(server.endpoint, store.endpoint) if key.lower() == "location" else value

    http_server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http_server.daemon_threads = True
    store = Store(server, f"http://127.0.0.1:{http_server.server_port}")
    thread = threading.Thread(target=http_server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield store
    finally:
        stopped.set()
        http_server.shutdown()
        http_server.server_close()
        thread.join()


class Uploads:
    """What Google answers to a client that is not sure how far its resumable upload has come.

    fake-gcs-server takes the question for the end of an empty file (its issue 1362), and forgets uploads that ended.
    """

    def __init__(self) -> None:
        self._last: dict[str, Answer] = {}

    def asked(self, handler: BaseHTTPRequestHandler) -> Answer | None:
        """The answer, if this is the question or comes after the end."""
        found = UPLOAD_ID.search(handler.path)
        if found is None:
            return None
        last = self._last.get(found[1])
        if last is not None and last[0] == 200:
            return last
        question = handler.headers.get("Content-Range") == "bytes */*"
        return (last or (308, [], b"")) if question else None

    def noted(self, handler: BaseHTTPRequestHandler, answer: Answer) -> Answer:
        """`answer`, remembered if it is about a piece of an upload."""
        if (found := UPLOAD_ID.search(handler.path)) and handler.command == "PUT":
            self._last[found[1]] = answer
        return answer


def _forward(server: Server, handler: BaseHTTPRequestHandler, body: bytes) -> Answer:
    """Send the request on as it is. The header Host stays: signatures cover it."""
    headers = {key: value for key, value in handler.headers.items() if key.lower() not in HOP_BY_HOP}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    try:
        connection.request(handler.command, handler.path, body=body, headers=headers)
        response = connection.getresponse()
        return response.status, response.getheaders(), response.read()
    finally:
        connection.close()


def _error(status: int, server: Server) -> bytes:
    if server.scheme == "gs":
        return b'{"error": {"code": %d, "message": "switched"}}' % status
    code = {401: b"InvalidAccessKeyId", 403: b"AccessDenied"}.get(status, b"InternalError")
    return b"<Error><Code>%b</Code><Message>switched</Message></Error>" % code


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
