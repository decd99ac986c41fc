"""A schema registry over real HTTP, as far as Confluent's clients and ours call it, and with faults on request."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Answer:
    """What the next requests get in place of a schema."""

    status: int
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)


class Registry:
    """What is registered, who asked for what, and what is to go wrong.

    authorization: what a request must bring, else it gets 401. faults: answers for the next requests, in turn; the
    last one stays if `faults_stay`.
    """

    def __init__(self) -> None:
        self.schemas: dict[int, dict[str, Any]] = {}
        self.subjects: dict[str, list[int]] = {}
        self.asked: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.authorization: str | None = None
        self.faults: list[Answer] = []
        self.faults_stay = False
        self.url = ""
        self.on_end = ExitStack()
        """What has to be closed with this, such as a client of Confluent's."""
        self._lock = Lock()

    def register(self, subject: str, schema: str, kind: str = "AVRO", references: Any = ()) -> int:
        """The id of a schema, which is a new one for a new schema."""
        found = {"schema": schema, "schemaType": kind, "references": list(references)}
        with self._lock:
            schema_id = next((one for one, other in self.schemas.items() if other == found), len(self.schemas) + 1)
            self.schemas[schema_id] = found
            versions = self.subjects.setdefault(subject, [])
            if schema_id not in versions:
                versions.append(schema_id)
        return schema_id

    def fault(self) -> Answer | None:
        with self._lock:
            if not self.faults:
                return None
            return self.faults[0] if self.faults_stay and len(self.faults) == 1 else self.faults.pop(0)

    def answer(self, method: str, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match [unquote(part) for part in path.strip("/").split("/")]:
            case ["schemas", "ids", number] if int(number) in self.schemas:
                found = self.schemas[int(number)]
                # Confluent leaves out what is the default.
                return 200, {key: value for key, value in found.items() if value and value != "AVRO"}
            case ["schemas", "ids", _]:
                return 404, {"error_code": 40403, "message": "Schema not found"}
            case ["subjects", subject, "versions"] if method == "POST":
                kind, references = body.get("schemaType") or "AVRO", body.get("references") or ()
                return 200, {"id": self.register(subject, body["schema"], kind, references)}
            case ["subjects", subject] if method == "POST" and subject in self.subjects:
                return self._version(subject, len(self.subjects[subject]))
            case ["subjects", subject, "versions", version] if subject in self.subjects:
                newest = len(self.subjects[subject])
                number = newest if version == "latest" else int(version)
                if 1 <= number <= newest:
                    return self._version(subject, number)
                return 404, {"error_code": 40402, "message": "Version not found"}
            case ["subjects", *_]:
                return 404, {"error_code": 40401, "message": "Subject not found"}
            case _:
                return 404, {"error_code": 404, "message": "HTTP 404 Not Found"}

    def _version(self, subject: str, number: int) -> tuple[int, dict[str, Any]]:
        schema_id = self.subjects[subject][number - 1]
        return 200, {"subject": subject, "version": number, "id": schema_id, **self.schemas[schema_id]}


@contextmanager
def running_registry(certificate: Path | None = None) -> Iterator[Registry]:
    """A registry on a free port of this machine. certificate: PEM with its key, for https."""
    registry = Registry()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._serve({})

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _serve(self, body: dict[str, Any]) -> None:
            registry.asked.append(self.path)
            registry.headers.append({key.lower(): value for key, value in self.headers.items()})
            if registry.authorization is not None and self.headers["authorization"] != registry.authorization:
                return self._send(Answer(401, b'{"error_code": 401, "message": "Unauthorized"}'))
            fault = registry.fault()
            if fault is not None:
                return self._send(fault)
            status, found = registry.answer(self.command, urlsplit(self.path).path, body)
            return self._send(Answer(status, json.dumps(found).encode()))

        def _send(self, answer: Answer) -> None:
            self.send_response(answer.status)
            self.send_header("content-type", "application/vnd.schemaregistry.v1+json")
            for name, value in {"content-length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.wfile.write(answer.body)
            except OSError:
                self.close_connection = True  # the client has had enough
            if int({"content-length": len(answer.body), **answer.headers}["content-length"]) != len(answer.body):
                self.close_connection = True

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            pass  # a client that hangs up in the middle of a handshake is part of the tests

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    registry.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{server.server_port}"
    try:
        yield registry
    finally:
        registry.on_end.close()
        server.shutdown()
        thread.join()
        server.server_close()
