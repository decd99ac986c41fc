"""A small Iceberg REST catalog over HTTP, with switches for everything that can go wrong with an answer.

It keeps its tables in pyiceberg's SQL catalog. So it proves transport and the mapping of errors; the
rules of commits are pyiceberg's own, as in any test against the SQL catalog.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

from pyiceberg.catalog import Catalog
from pyiceberg.catalog.rest import CreateTableRequest, RestCatalog
from pyiceberg.exceptions import (
    CommitFailedException,
    NamespaceAlreadyExistsError,
    NoSuchNamespaceError,
    NoSuchTableError,
    TableAlreadyExistsError,
)
from pyiceberg.partitioning import UNPARTITIONED_PARTITION_SPEC
from pyiceberg.table import CommitTableRequest

from conveyord.storage.lake.catalog import FILE_IO


class RestServer:
    """`faults` holds what happens to the next commits: an empty queue means that they go well.

    ok, lost (applied, then the connection is cut), 500-applied, 504 (not applied), 409-applied, garbage
    (applied, answered with something else), 400, 401, 403, 429, 503, late (answered 504, applied by
    `release`), never (not answered before `release`, which applies it).
    """

    def __init__(self, backing: Catalog) -> None:
        self.backing = backing
        self.create_fault = "ok"
        """What happens to the next table that is created."""
        self.faults: deque[str] = deque()
        self.held: list[Any] = []
        self.commits = 0
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server.get(self)

            def do_HEAD(self) -> None:
                server.get(self)

            def do_POST(self) -> None:
                server.post(self)

            def log_message(self, *_: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self.http.server_port}"

    def client(self) -> Catalog:
        return RestCatalog("rest", uri=self.uri, **{"py-io-impl": FILE_IO})

    def get(self, handler: BaseHTTPRequestHandler) -> None:
        path, _, query = handler.path.partition("?")
        match path.split("/")[2:]:
            case ["config"]:
                answer(handler, 200, {"defaults": {}, "overrides": {}})
            case ["namespaces"]:
                parent = tuple(parse_qs(query).get("parent", [""])[0].split("\x1f")) if "parent" in query else ()
                answer(handler, 200, {"namespaces": [list(found) for found in self.backing.list_namespaces(parent)]})
            case ["namespaces", namespace]:
                self._namespace(handler, levels(namespace))
            case ["namespaces", namespace, "tables"]:
                found = self.backing.list_tables(levels(namespace))
                listed = [{"namespace": list(one[:-1]), "name": one[-1]} for one in found]
                answer(handler, 200, {"identifiers": listed})
            case ["namespaces", namespace, "tables", name]:
                self._table(handler, [*levels(namespace), name])

    def _namespace(self, handler: BaseHTTPRequestHandler, namespace: tuple[str, ...]) -> None:
        if self.backing.namespace_exists(namespace):
            answer(handler, 200, {"namespace": list(namespace), "properties": {}})
        else:
            answer(handler, 404, failed(404, "NoSuchNamespaceException", namespace))

    def _table(self, handler: BaseHTTPRequestHandler, parts: list[str]) -> None:
        try:
            with self._lock:
                table = self.backing.load_table(tuple(parts))
        except NoSuchTableError as error:
            answer(handler, 404, failed(404, "NoSuchTableException", error))
            return
        metadata = json.loads(table.metadata.model_dump_json(exclude_none=True))
        body = {"metadata-location": table.metadata_location, "metadata": metadata, "config": {}}
        answer(handler, 200, body)

    def post(self, handler: BaseHTTPRequestHandler) -> None:
        raw = handler.rfile.read(int(handler.headers["Content-Length"]))
        match handler.path.split("/")[2:]:
            case ["namespaces"]:
                answer(handler, *self._created(self._create_namespace, json.loads(raw)))
            case ["namespaces", namespace, "tables"]:
                fault, self.create_fault = self.create_fault, "ok"
                created = self._created(self._create_table, levels(namespace), json.loads(raw))
                self._answer_applied(handler, fault, created)
            case ["namespaces", namespace, "tables", name]:
                self._commit(handler, (CommitTableRequest.model_validate_json(raw), levels(namespace), name))

    def _created(self, create: Callable[..., tuple[int, Any]], *args: Any) -> tuple[int, Any]:
        try:
            with self._lock:
                return create(*args)
        except (NamespaceAlreadyExistsError, TableAlreadyExistsError) as error:
            return 409, failed(409, "AlreadyExistsException", error)
        except NoSuchNamespaceError as error:
            return 404, failed(404, "NoSuchNamespaceException", error)

    def _create_namespace(self, body: dict[str, Any]) -> tuple[int, Any]:
        self.backing.create_namespace(tuple(body["namespace"]))
        return 200, body

    def _create_table(self, namespace: tuple[str, ...], body: dict[str, Any]) -> tuple[int, Any]:
        request = CreateTableRequest.model_validate(
            {"location": None, "partition-spec": None, "write-order": None, **body}
        )
        assert not request.stage_create
        table = self.backing.create_table(
            (*namespace, request.name),
            schema=request.table_schema,
            partition_spec=request.partition_spec or UNPARTITIONED_PARTITION_SPEC,
            properties=request.properties,
        )
        metadata = json.loads(table.metadata.model_dump_json(exclude_none=True))
        return 200, {"metadata-location": table.metadata_location, "metadata": metadata, "config": {}}

    def _commit(self, handler: BaseHTTPRequestHandler, work: tuple[CommitTableRequest, tuple[str, ...], str]) -> None:
        self.commits += 1
        fault = self.faults.popleft() if self.faults else "ok"
        if fault == "late":
            self.held.append(work)
            answer(handler, 504, failed(504, "Late", "gateway timeout"))
        elif fault == "never":
            self.held.append(work)
            self.stopped.wait()
            handler.close_connection = True
        elif fault.isdigit():
            answer(handler, int(fault), failed(int(fault), "Fault", f"switched to {fault}"))
        else:
            self._answer_applied(handler, fault, self.apply(*work))

    def _answer_applied(self, handler: BaseHTTPRequestHandler, fault: str, result: tuple[int, Any]) -> None:
        if fault == "lost":
            handler.close_connection = True
            handler.connection.close()
        elif fault.endswith("-applied"):
            code = int(fault.partition("-")[0])
            answer(handler, code, failed(code, "Fault", f"applied, but {code}"))
        elif fault == "garbage":
            answer(handler, 200, {"hello": "world"})
        else:
            answer(handler, *result)

    def apply(self, request: CommitTableRequest, namespace: tuple[str, ...], name: str) -> tuple[int, Any]:
        try:
            with self._lock:
                table = self.backing.load_table((*namespace, name))
                done = self.backing.commit_table(table, request.requirements, request.updates)
        except (CommitFailedException, ValueError) as error:
            return 409, failed(409, "CommitFailedException", error)
        except NoSuchTableError as error:
            return 404, failed(404, "NoSuchTableException", error)
        return 200, json.loads(done.model_dump_json(exclude_none=True, by_alias=True))

    def release(self) -> list[int]:
        """Let everything arrive that was held back. Returns the codes that nobody gets to see."""
        held, self.held = self.held, []
        return [self.apply(*work)[0] for work in held]


def levels(namespace: str) -> tuple[str, ...]:
    """The levels of a namespace as it stands in a path."""
    return tuple(unquote(namespace).split("\x1f"))


def failed(code: int, kind: str, error: object) -> dict[str, Any]:
    return {"error": {"message": str(error), "type": kind, "code": code}}


def answer(handler: BaseHTTPRequestHandler, code: int, body: dict[str, Any]) -> None:
    data = json.dumps(body).encode()
    handler.send_response(code)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(data)))
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(data)


@contextmanager
def serving(backing: Catalog) -> Iterator[RestServer]:
    server = RestServer(backing)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.stopped.set()
        server.http.shutdown()
        server.http.server_close()
        thread.join()
