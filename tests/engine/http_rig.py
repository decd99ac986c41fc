"""An HTTP server in threads on 127.0.0.1 that answers as a test tells it to, faults included."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import trio

from conveyord.core.retry import Backoff
from conveyord.engine.contracts import OperatorContext, Retries

RETRIES = Retries(count_max=3, backoff=Backoff(base_seconds=0.001, cap_seconds=0.002))


@dataclass(frozen=True)
class Asked:
    """One request as the server saw it. headers: by lower-case name."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What the server says. length: what Content-Length claims, if not the truth."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None


HANG = "hang"
"""Never answer."""
RESET = "reset"
"""Break the connection instead of answering."""

Script = Callable[[Asked], Answer | str]


def said(value: Any, status: int = 200, **headers: str) -> Answer:
    """A JSON answer."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, json.dumps(value).encode(), {"content-type": "application/json", **named})


def zipped(body: bytes) -> Answer:
    return Answer(200, gzip.compress(body), {"content-encoding": "gzip"})


def one_by_one(*answers: Answer | str) -> Script:
    """These answers in turn, the last for ever."""
    left = list(answers)
    return lambda _: left.pop(0) if len(left) > 1 else left[0]


class Server:
    """See this module. `asked`: all requests so far, in the order in which they were read."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.asked: list[Asked] = []
        self.over = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.port: int = self._http.server_address[1]
        self.scheme = "http"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True)

    def url(self, path: str = "/") -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}{path}"

    def encrypt(self, certificate: Path, key: Path) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._http.socket = context.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.scheme = "https"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.over.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


def _handler(server: Server) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 20

        def _respond(self) -> None:
            parts = urlsplit(self.path)
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            asked = Asked(self.command, parts.path, dict(parse_qsl(parts.query)), headers, body)
            server.asked.append(asked)
            answer = server.script(asked)
            if isinstance(answer, str):
                if answer == HANG:
                    server.over.wait()
                else:  # a reset instead of an orderly end
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body) if answer.length is None else answer.length))
            self.end_headers()
            with suppress(OSError):  # a client that has had enough
                self.wfile.write(answer.body)
            self.close_connection = self.close_connection or answer.length is not None

        def __getattr__(self, name: str) -> object:
            if name.startswith("do_"):
                return self._respond
            raise AttributeError(name)

        def handle(self) -> None:
            with suppress(OSError):
                super().handle()

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


@contextmanager
def serving(script: Script, *, certificate: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """A server that runs until the end of the block."""
    server = Server(script)
    if certificate is not None:
        server.encrypt(*certificate)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def made_certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that nobody trusts, and its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        + ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
        + ["-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
    )
    return certificate, key


def context(data_dir: Path, stage: str, **more: Any) -> OperatorContext:
    return OperatorContext("default/p", stage, data_dir, trio.CapacityLimiter(2), **{"retries": RETRIES, **more})
