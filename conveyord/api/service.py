"""The API of a node as a service: its HTTP port, and its methods by RPC."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
import trio

from conveyord.api.access import Access, Mode, make_local_token
from conveyord.api.carrying_out import Desk
from conveyord.api.context import Context
from conveyord.api.figures import Figures, node_registry
from conveyord.api.rpc import Rpc
from conveyord.api.site import Site
from conveyord.cluster.ports import Cluster
from conveyord.core.errors import ConfigError, StorageFull
from conveyord.core.hosts import is_loopback
from conveyord.core.wire.heads import Hello
from conveyord.runtime.http_server import HttpServer, Limits
from conveyord.runtime.rpc.handlers import Admission
from conveyord.runtime.rpc.limits import Counters

log = structlog.get_logger(__name__)

LIMITS = Limits(
    body_bytes_max=512 * 1024,  # a configuration entry of 256 KiB in base64, and its JSON
    held_bytes_max=64 * 1024 * 1024,
    connections_max=1024,  # half of them may wait for changes
    head_seconds=10.0,
    piece_seconds=30.0,
    request_seconds=60.0,
    are_lengths_needed=False,
)


@dataclass(frozen=True, slots=True)
class ApiSettings:
    """access: `open`, for listeners on loopback alone, or `tokens`. data_dir: where the local token is written.

    rpc_address, http_address: where others reach this node. tls: asked for each connection, see
    `http_tls.ServerCertificate`; None for HTTP without TLS. backup_properties: of stores of backups.
    drain_seconds: for which a node that is being stopped waits for requests.
    """

    data_dir: Path
    access: Mode
    rpc_address: str = ""
    http_address: str = ""
    roles: tuple[str, ...] = ()
    election_timeout_seconds: float = 1.0
    are_metrics_open: bool = False
    backup_properties: Mapping[str, str] = field(default_factory=dict)
    tls: Callable[[], ssl.SSLContext] | None = None
    limits: Limits = LIMITS
    drain_seconds: float = 10.0


class HttpService:
    """See `supervisor.Service`. To be made before the node runs: it adds methods to what that answers by RPC."""

    name = "http"

    def __init__(
        self,
        cluster: Cluster,
        settings: ApiSettings,
        listeners: list[trio.SocketListener],
        *,
        rpc_counters: Counters | None = None,
    ) -> None:
        """listeners: closed when the service ends. Raises ConfigError for open access to the network."""
        if settings.access == "open":
            _check_loopback(listeners)
        self.settings = settings
        self._listeners = listeners
        figures = Figures(node_registry(cluster, rpc_counters or Counters()))
        self._access = Access(cluster, settings.access, now_ms=now_ms, on_refused=figures.token_refused)
        self.context = Context(
            cluster,
            now_ms,
            self._access.wait_for,
            rpc_address=settings.rpc_address,
            http_address=settings.http_address,
            roles=settings.roles,
            started_at=trio.current_time(),
            election_timeout_seconds=settings.election_timeout_seconds,
            backup_properties=settings.backup_properties,
        )
        desk = Desk(self.context, figures)
        self._rpc = Rpc(desk, self._access)
        self._rpc.add_to(cluster.handlers)
        self.site = Site(desk, self._access, figures, are_metrics_open=settings.are_metrics_open)
        self._server = HttpServer(self.site.admit, self.site.respond, settings.limits, tls=settings.tls)

    def admit_client(self, hello: Hello) -> Admission:
        """What a client of RPC may do that is no node. Raises Unwelcome."""
        return self._rpc.admit_client(hello)

    async def run(self, *, drain: trio.Event, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `drain` is set; then queries that wait are answered at once, and requests under way finished.

        For `drain_seconds`: one that takes longer gets no answer, as the cluster, which is drained next, needs time to
        hand over.
        """
        try:
            self._access.local = await trio.to_thread.run_sync(make_local_token, self.settings.data_dir)
        except OSError as error:
            raise StorageFull(
                f"{self.settings.data_dir}: the local token cannot be written ({error.strerror}); make room, or see "
                "whose directory it is"
            ) from error
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._access.run)
            nursery.start_soon(self._drain, drain, nursery.cancel_scope)
            task_status.started()
            await self._server.serve(self._listeners, drain=drain)
            nursery.cancel_scope.cancel()

    async def _drain(self, drain: trio.Event, serving: trio.CancelScope) -> None:
        await drain.wait()
        self.context.drain.set()
        await trio.sleep(self.settings.drain_seconds)
        log.warning("requests took too long to end, and are cut off", drain_seconds=self.settings.drain_seconds)
        serving.cancel()


def now_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000


def _check_loopback(listeners: list[trio.SocketListener]) -> None:
    for listener in listeners:
        host, port = listener.socket.getsockname()[:2]
        if not is_loopback(host):
            raise ConfigError(
                f"[http] listens on {host}:{port}, where others reach it, and its access is open; write access = "
                '"tokens", or listen on 127.0.0.1'
            )
