"""Nodes with real sockets, disks and threads in one event loop; each can be stopped, killed and started again."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from conveyord.cluster.node import Node
from conveyord.cluster.settings import NodeSettings
from conveyord.core.raft.state import Role
from conveyord.roles.router import RouterService
from conveyord.runtime.raft.snapshots import Policy
from conveyord.runtime.supervisor import supervise
from conveyord.storage.identity import take_identity

TIMEOUT_SECONDS = 0.3  # of elections
WAIT_SECONDS = 60.0


async def free_port() -> int:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = int(listeners[0].socket.getsockname()[1])
    for listener in listeners:
        await listener.aclose()
    return port


@dataclass(eq=False)
class Started:
    """A node of the rig. node: while it runs."""

    name: str
    home: Path
    port: int
    options: dict[str, object] = field(default_factory=dict)
    node: Node | None = None
    failure: Exception | None = None
    has_started: bool = False
    stop: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    has_ended: trio.Event = field(default_factory=trio.Event)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        self.stop, self.has_ended, self.scope = trio.Event(), trio.Event(), trio.CancelScope()
        self.failure, self.has_started = None, False
        try:
            with self.scope:
                await self._run(_Started(self, task_status))
        except Exception as error:  # noqa: BLE001 - tests look at it
            self.failure = error
            if not self.has_started:
                task_status.started()
        finally:
            self.node = None
            self.has_ended.set()

    async def _run(self, task_status: trio.TaskStatus[None]) -> None:
        options = {"election_timeout_seconds": TIMEOUT_SECONDS, "policy": Policy(), **self.options}
        settings = NodeSettings(self.home, self.address, f"127.0.0.1:{self.port + 1}", version="1", **options)  # type: ignore[arg-type]
        identity = await trio.to_thread.run_sync(partial(take_identity, self.home, node=self.name))
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.node = node = Node(settings, identity, listeners)
        services = [node]
        if "router" in settings.roles:
            services.append(RouterService(node, TIMEOUT_SECONDS))  # type: ignore[arg-type]
        await supervise(services, stop=self.stop, drain_seconds=10.0, task_status=task_status)


class _Started:
    """Remembers that a node told that it has started."""

    def __init__(self, one: Started, status: trio.TaskStatus[None]) -> None:
        self._one = one
        self._status = status

    def started(self, value: None = None) -> None:
        self._one.has_started = True
        self._status.started(value)


class Rig:
    def __init__(self, home: Path, nursery: trio.Nursery) -> None:
        self.home = home
        self.nursery = nursery
        self.nodes: dict[str, Started] = {}

    async def start(self, name: str, *, port: int = 0, **options: object) -> Started:
        """Start a node, for the first time or again."""
        found = self.nodes.get(name)
        if found is None:
            found = self.nodes[name] = Started(name, self.home / name, port or await free_port(), options)
        else:
            found.options |= options
        await self.nursery.start(found.run)
        return found

    async def stop(self, name: str) -> None:
        self.nodes[name].stop.set()
        await self.nodes[name].has_ended.wait()

    async def kill(self, name: str) -> None:
        """End it without a word, as far as that is possible within one process."""
        self.nodes[name].scope.cancel()
        await self.nodes[name].has_ended.wait()

    def leader(self) -> Started | None:
        found = [
            one
            for one in self.nodes.values()
            if one.node is not None and one.node.standing is not None and one.node.standing.role is Role.LEADER
        ]
        return max(found, key=lambda one: one.node.standing.term) if found else None  # type: ignore[union-attr]

    async def until(self, holds: Callable[[], object], what: str) -> None:
        with trio.move_on_after(WAIT_SECONDS):
            while not holds():
                await trio.sleep(0.02)
            return
        raise AssertionError(f"{what}: {self.seen()}")

    async def standings(self, name: str) -> dict[str, tuple[str | None, str]]:
        """By node: its standing and state, as the node `name` has it."""
        node = self.nodes[name].node
        assert node is not None
        found = await node.read(lambda view: view.members(), stale=True)
        return {one.node: (one.standing, one.row.state if one.row else "") for one in found.value}

    async def until_standings_of_leader(self, wanted: dict[str, tuple[str | None, str]]) -> None:
        """Wait until a leader's state has exactly these nodes, with their standing and state."""
        seen: object = None
        with trio.move_on_after(WAIT_SECONDS):
            while True:
                leader = self.leader()
                if leader is not None and (seen := await self.standings(leader.name)) == wanted:
                    return
                await trio.sleep(0.02)
        raise AssertionError(f"{seen} is not {wanted}; {self.seen()}")

    def seen(self) -> dict[str, object]:
        """What the nodes say."""
        return {
            name: one.failure or (one.node and (one.node.phase, one.node.waiting, one.node.standing))
            for name, one in self.nodes.items()
        }


@asynccontextmanager
async def rig(home: Path) -> AsyncIterator[Rig]:
    async with trio.open_nursery() as nursery:
        made = Rig(home, nursery)
        yield made
        nursery.cancel_scope.cancel()
