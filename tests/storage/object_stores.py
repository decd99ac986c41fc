"""Object stores that run on this machine, each as a process of its own with one empty bucket.

moto comes with the packages. The others are built by `.ci/object_stores`; a test that wants one which is
not there is skipped, with the reason.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILT = ROOT / ".cache" / "bin"
START_SECONDS_MAX = 60
BUCKET = "lake"
KEY_ID, SECRET, TOKEN = "conveyord-key", "conveyord-secret", "token-nobody-sees"

Kind = Literal["moto", "versitygw", "gcs"]
"""moto: imitates S3, checks neither signatures nor rights. versitygw: an S3 server. gcs: fake-gcs-server, which
imitates Google's JSON API and checks no tokens."""
BINARIES = {"versitygw": "versitygw-1.8.0", "gcs": "fake-gcs-server-1.56.1"}


@dataclass(frozen=True)
class Server:
    """A running store."""

    kind: Kind
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def scheme(self) -> str:
        return "gs" if self.kind == "gcs" else "s3"

    def properties(self, warehouse: str = "wh", *, endpoint: str | None = None) -> dict[str, str]:
        """Catalog properties, for the server itself or for a proxy before it."""
        place = {"warehouse": f"{self.scheme}://{BUCKET}/{warehouse}"}
        if self.kind == "gcs":
            token = {"gcs.oauth2.token": TOKEN, "gcs.oauth2.token-expires-at": "4102444800000"}
            return {**place, "gcs.service.host": endpoint or self.endpoint, **token}
        return {
            **place,
            "s3.endpoint": endpoint or self.endpoint,
            "s3.access-key-id": KEY_ID,
            "s3.secret-access-key": SECRET,
            "s3.region": "us-east-1",
        }


class Servers:
    """Starts each kind when it is first asked for, and keeps it."""

    def __init__(self, stack: ExitStack, directory: Path) -> None:
        self._stack = stack
        self._directory = directory
        self._running: dict[Kind, Server] = {}

    def get(self, kind: Kind) -> Server:
        """A running store of that kind; skips the test if it was not built."""
        if kind not in self._running:
            self._running[kind] = self._stack.enter_context(running(kind, self._directory))
        return self._running[kind]


@contextmanager
def servers_below(directory: Path) -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack, directory)


@contextmanager
def running(kind: Kind, directory: Path) -> Iterator[Server]:
    """Run a store that keeps what it must keep below `directory`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        server = Server(kind, probe.getsockname()[1])
    command, make_bucket = _commands(server, directory)
    with (directory / f"{kind}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not _answers(make_bucket):
            assert process.poll() is None, f"{kind} ended: {(directory / f'{kind}.log').read_text()}"
            assert time.monotonic() < deadline, f"{kind} does not answer after {START_SECONDS_MAX} s"
            time.sleep(0.05)
        yield server
    finally:
        process.kill()
        process.wait()


def _commands(server: Server, directory: Path) -> tuple[list[str], Callable[[], object]]:
    """How to start the store, and how to make its bucket or, where that is there, see that it answers."""
    port = str(server.port)
    if server.kind == "moto":
        url = f"{server.endpoint}/{BUCKET}"
        command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        return command, lambda: _ask("PUT", url)
    binary = BUILT / BINARIES[server.kind]
    if not binary.is_file():
        pytest.skip(f"{binary.relative_to(ROOT)} is not there: build it with .ci/object_stores")
    if server.kind == "versitygw":
        (directory / "buckets" / BUCKET).mkdir(parents=True)
        (directory / "attributes").mkdir()
        rights = ["--port", f"127.0.0.1:{port}", "--access", KEY_ID, "--secret", SECRET, "--health", "/health"]
        # Attributes in a directory beside the files: not every file system has extended attributes.
        backend = ["posix", "--sidecar", str(directory / "attributes"), str(directory / "buckets")]
        command = [str(binary), "--quiet", *rights, *backend]
        return command, lambda: _ask("GET", f"{server.endpoint}/health")
    places = ["-external-url", server.endpoint, "-public-host", f"127.0.0.1:{port}"]
    command = [str(binary), "-backend", "memory", "-scheme", "http", "-host", "127.0.0.1", "-port", port, *places]
    bucket = json.dumps({"name": BUCKET}).encode()
    return command, lambda: _ask("POST", f"{server.endpoint}/storage/v1/b?project=p", bucket)


def _ask(method: str, url: str, body: bytes | None = None) -> None:
    headers = {"Content-Type": "application/json"} if body else {}
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method=method), timeout=10):
        pass


def _answers(ask: Callable[[], object]) -> bool:
    try:
        ask()
    except OSError:
        return False
    return True
