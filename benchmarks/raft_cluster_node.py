"""One node of `benchmarks.raft_cluster`: a member whose log takes a fixed time longer for every commit.

Reads one line of JSON from stdin: {"name", "home", "peers": {name: port}, "delay_seconds"}. Says `ready` on stdout when
it listens, and ends with its stdin.
"""

from __future__ import annotations

import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from conveyord.core.raft.membership import NOBODY, Membership
from conveyord.core.raft.messages import Write
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import Options
from conveyord.core.state.codec import Codec
from conveyord.core.state.commands import ConfigPut
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.proposing import Request, SessionWriter
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.network import Network
from conveyord.runtime.raft.ports import LogPort
from conveyord.runtime.raft.proposer import Proposer
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Admission, Handlers, Incoming
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.server import RpcServer
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.execute import Executor
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.store import StateStore

OPTIONS = Options(election_timeout_seconds=1.0, heartbeat_seconds=0.2)
PUT, LEADS, READ = "bench.put", "bench.leads", "bench.read"
KEYS = 1_000
CALL_SECONDS = 30.0
SWITCH_SECONDS = 0.0005  # of Python's 5 ms: so long the event loop would wait for a thread that applies


class SlowLog:
    """A real log on a disk that takes `delay_seconds` longer."""

    def __init__(self, log: RaftLog, delay_seconds: float) -> None:
        self._log = log
        self._delay_seconds = delay_seconds

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def write(self, write: Write) -> None:
        self._log.write(write)
        time.sleep(self._delay_seconds)


class Node:
    def __init__(self, driver: Driver, proposer: Proposer[Request]) -> None:
        self._driver = driver
        self._proposer = proposer
        self._puts = 0

    async def put(self, incoming: Incoming) -> bytes:
        self._puts += 1
        command = ConfigPut(f"k{self._puts % KEYS}", bytes(incoming.payload), None)
        done = await self._proposer.propose(Request(command, "bench", 0), seconds=CALL_SECONDS)
        return done.reply

    async def read(self, _: Incoming) -> bytes:
        return b"%d" % await self._driver.read_index()

    def leads(self, _: Incoming) -> bytes:
        return b"1" if self._driver.standing.role is Role.LEADER else b""


async def serve(name: str, home: str, peers: dict[str, int], delay_seconds: float) -> None:
    log = RaftLog(Path(home) / "raft" / "raft.db", node=name)
    if log.membership == NOBODY:
        log.found(Membership(frozenset(peers)))
    store = StateStore.open(Path(home) / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS)
    loaded = log.load(store.mark.index)
    raft = RaftNode(name, loaded, OPTIONS, random=random.SystemRandom().random, now=trio.current_time())
    side = Side(lambda: Me(name, 1, "bench"), Handlers(), Limits(), Counters())

    def receiver(info: SnapshotInfo) -> SnapshotReceiver:
        return SnapshotReceiver(Path(home) / "state", info, MIGRATIONS)

    network = Network(name, side, random.Random(name), receiver)
    slow: LogPort = SlowLog(log, delay_seconds)  # type: ignore[assignment]
    driver = Driver(raft, slow, Replica(store, Executor().execute), network)
    node = Node(driver, Proposer(driver, network, SessionWriter(Codec(MACHINE.commands), name)))
    side.handlers.unary(PUT, node.put)
    side.handlers.unary(READ, node.read)
    side.handlers.inline(LEADS, node.leads)
    listeners = await trio.open_tcp_listeners(peers[name], host="127.0.0.1")
    server = RpcServer(side, lambda *_: Admission())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(server.serve, listeners, drain=trio.Event()))
        nursery.start_soon(network.run, driver)
        await nursery.start(driver.run)
        network.know({peer: ("127.0.0.1", port) for peer, port in peers.items()})
        print("ready", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


def main() -> None:
    sys.setswitchinterval(SWITCH_SECONDS)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(partial(serve, **json.loads(sys.stdin.readline())))


if __name__ == "__main__":
    main()
