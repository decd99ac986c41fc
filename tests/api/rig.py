"""A node with its API in this process: real log, state, sockets; a client beside it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import trio

from conveyord.api.access import LOCAL_FILE
from conveyord.api.service import ApiSettings, HttpService
from conveyord.cluster.node import Node
from conveyord.cluster.settings import NodeSettings
from conveyord.core.wire.heads import Hello
from conveyord.roles.router import RouterService
from conveyord.runtime.rpc.handlers import Admission
from conveyord.runtime.supervisor import supervise
from conveyord.storage.identity import take_identity

WAIT_SECONDS = 30.0
ELECTION_SECONDS = 0.3


@dataclass
class Served:
    """A node that serves. url: of its HTTP port. http: with no token, unless the node has open access."""

    node: Node
    service: HttpService
    data_dir: Path
    url: str
    rpc_port: int
    http: httpx.AsyncClient
    stop: trio.Event

    @property
    def local(self) -> dict[str, str]:
        """The headers that make one an admin at this node."""
        return {"authorization": f"Bearer {(self.data_dir / LOCAL_FILE).read_text(encoding='ascii').strip()}"}

    async def led(self) -> None:
        """Wait until it knows a leader and serves reads."""
        with trio.fail_after(WAIT_SECONDS):
            while (await self.http.get("/readyz")).status_code != 200:
                await trio.sleep(0.01)

    async def waited_for(self, count: int) -> None:
        """Wait until so many queries wait for a change."""
        with trio.fail_after(WAIT_SECONDS):
            while self.service.context.waiting.borrowed_tokens < count:
                await trio.sleep(0.01)

    async def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        """As a local admin."""
        headers = self.local | options.pop("headers", {})
        return await self.http.request(method, f"/api/v1{path}", headers=headers, **options)


async def listeners() -> list[trio.SocketListener]:
    return await trio.open_tcp_listeners(0, host="127.0.0.1")


@asynccontextmanager
async def serving(
    home: Path,
    *,
    access: str = "open",
    rpc: list[trio.SocketListener] | None = None,
    waits: bool = True,
    of_node: Mapping[str, Any] = MappingProxyType({}),
    **options: Any,
) -> AsyncIterator[Served]:
    """One node, which founds a cluster of its own. of_node, options: of `NodeSettings` and `ApiSettings`."""
    await trio.Path(home).mkdir(parents=True, exist_ok=True)
    rpc, http = rpc or await listeners(), await listeners()
    rpc_port, http_port = (one[0].socket.getsockname()[1] for one in (rpc, http))
    settings = NodeSettings(
        home,
        f"127.0.0.1:{rpc_port}",
        f"127.0.0.1:{http_port}",
        election_timeout_seconds=ELECTION_SECONDS,
        version="test",
        **of_node,
    )
    identity = await trio.to_thread.run_sync(take_identity, home)

    def admit_client(hello: Hello) -> Admission:
        return service.admit_client(hello)

    node = Node(settings, identity, rpc, admit_client=admit_client)
    api = ApiSettings(
        home,
        access,  # type: ignore[arg-type]
        rpc_address=settings.rpc_address,
        http_address=settings.http_address,
        roles=settings.roles,
        election_timeout_seconds=ELECTION_SECONDS,
    )
    service = HttpService(node, replace(api, **options), http, rpc_counters=node.side.counters)
    router = RouterService(node, ELECTION_SECONDS)
    scheme = "https" if "tls" in options else "http"
    url = f"{scheme}://127.0.0.1:{http_port}"
    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(supervise, [node, service, router], stop=stop, drain_seconds=WAIT_SECONDS))
        async with httpx.AsyncClient(base_url=url, timeout=WAIT_SECONDS, verify=False) as client:
            served = Served(node, service, home, url, rpc_port, client, stop)
            try:
                if waits:
                    await settled([served])
                yield served
            finally:
                stop.set()


@asynccontextmanager
async def cluster(home: Path, *, count: int = 3, **options: Any) -> AsyncIterator[list[Served]]:
    """Some nodes that found a cluster together. The first of the list leads."""
    rpc = [await listeners() for _ in range(count)]
    join = tuple(f"127.0.0.1:{one[0].socket.getsockname()[1]}" for one in rpc)
    async with AsyncExitStack() as stack:
        nodes = list[Served]()
        for number, one in enumerate(rpc):
            serves = serving(
                home / f"n{number}", rpc=one, waits=False, of_node={"expect": count, "join": join}, **options
            )
            nodes.append(await stack.enter_async_context(serves))
        await settled(nodes)
        leader = nodes[0].node.standing.leader  # type: ignore[union-attr]
        try:
            yield sorted(nodes, key=lambda node: node.node.identity.node != leader)
        finally:
            for node in nodes:
                node.stop.set()  # one after the other, the last ones would wait in vain for a majority


async def settled(nodes: list[Served]) -> None:
    """Wait until each node has heard that all are ready, and what the cluster is called."""
    with trio.fail_after(WAIT_SECONDS):
        for node in nodes:
            await node.led()
            while not await _is_settled(node, len(nodes)):
                await trio.sleep(0.02)


async def _is_settled(node: Served, count: int) -> bool:
    members = (await node.ask("GET", "/members", params={"stale": "true"})).json()["members"]
    named = await node.node.read(lambda view: view.cluster(), stale=True)
    return bool(named.value.id) and [one["state"] for one in members if one["standing"] == "voter"] == ["ready"] * count
