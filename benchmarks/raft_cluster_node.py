"""One node of `benchmarks.raft_cluster`: a member whose log takes a fixed time longer for every commit.

Reads one line of JSON from stdin: {"name", "home", "peers": {name: port}, "delay_seconds"}. Says `ready` on stdout when
it listens, and ends with its stdin. Times that it tells are those of `time.monotonic`, which all processes share.
"""

from __future__ import annotations

import gc
import json
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import structlog
import trio

from conveyord.core.raft.membership import NOBODY, Membership
from conveyord.core.raft.messages import Write
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import Mark, Options
from conveyord.core.state.codec import Codec
from conveyord.core.state.commands import ConfigPut
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.proposing import Request, SessionWriter
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.network import Network
from conveyord.runtime.raft.outcomes import Done, Outcome
from conveyord.runtime.raft.ports import LogPort
from conveyord.runtime.raft.proposer import Proposer
from conveyord.runtime.raft.snapshots import Policy
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
POLICY = Policy(every_bytes=10 << 20, kept_bytes=700 << 10)  # of the default, 64 and 16 MiB, a round would see none
PUT, READ, LOAD, LEADS = "bench.put", "bench.read", "bench.load", "bench.leads"
BUSY, TRANSFER, STALL = "bench.busy", "bench.transfer", "bench.stall"
KEYS = 1_000
VALUE = random.Random(0).randbytes(200)
REQUESTS = [Request(ConfigPut(f"k{number}", VALUE, None), "bench", 0) for number in range(KEYS)]
CALL_SECONDS = 30.0
# Of the process, as the daemon sets them:
SWITCH_SECONDS = 0.0005  # of Python's 5 ms: so long the event loop would wait for a thread that applies
GARBAGE = (100_000, 50, 1_000)  # of (700, 10, 10): the log's window alone is tens of thousands of objects to look at

Intervals = list[tuple[float, float]]


class SlowLog:
    """A real log on a disk that takes `delay_seconds` longer, and may stall."""

    def __init__(self, log: RaftLog, delay_seconds: float) -> None:
        self._log = log
        self._delay_seconds = delay_seconds
        self.stall_seconds = 0.0  # of the next write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    def write(self, write: Write) -> None:
        stall_seconds, self.stall_seconds = self.stall_seconds, 0.0
        self._log.write(write)
        time.sleep(self._delay_seconds + stall_seconds)


class Watched(Replica):
    """A replica that tells when a snapshot was taken, or came."""

    def __init__(self, store: StateStore, executor: Executor, busy: Intervals) -> None:
        super().__init__(store, executor.execute)
        self._busy = busy
        self.coming_since = 0.0

    def take_snapshot(self) -> Mark:
        begun = time.monotonic()
        mark = super().take_snapshot()
        self._busy.append((begun, time.monotonic()))
        return mark

    def switch(self, mark: Mark) -> None:
        super().switch(mark)
        self._busy.append((self.coming_since, time.monotonic()))


class Load:
    """Commands of one session, proposed at the leader itself, the next as soon as one is answered."""

    def __init__(self, driver: Driver, outstanding: int, end: float) -> None:
        self._driver, self._outstanding, self._end = driver, outstanding, end
        self._writer = SessionWriter(Codec(MACHINE.commands), "bench")
        self._session = self._number = self._answered = 0
        self._is_done = trio.Event()
        self.found: Intervals = []

    async def run(self) -> Intervals:
        """When each was proposed, and when it was answered."""
        send, receive = trio.open_memory_channel[Outcome](1)
        self._driver.propose(self._writer.register(), send.send_nowait)
        done = await receive.receive()
        assert isinstance(done, Done), done
        self._session = done.index
        for _ in range(self._outstanding):
            self._propose()
        await self._is_done.wait()
        return self.found

    def _propose(self) -> None:
        self._number += 1
        # They are answered in order, so those that were are the lowest.
        request = REQUESTS[self._number % KEYS]
        data = self._writer.command(self._session, self._number, self._answered + 1, request)
        self._driver.propose(data, partial(self._on_answer, time.monotonic()), about=request.command.about)

    def _on_answer(self, begun: float, outcome: Outcome) -> None:
        assert isinstance(outcome, Done), outcome
        now = time.monotonic()
        self.found.append((begun, now))
        self._answered += 1
        if now < self._end:
            self._propose()
        elif self._answered == self._number:
            self._is_done.set()


class Node:
    """What the benchmark asks of a node. Its payloads and answers are JSON."""

    def __init__(self, driver: Driver, proposer: Proposer[Request], log: SlowLog, busy: Intervals) -> None:
        self._driver, self._proposer, self._log, self._busy = driver, proposer, log, busy
        self._puts = 0

    def serve(self, handlers: Handlers) -> None:
        handlers.unary(PUT, self.put)
        handlers.unary(READ, self.read)
        handlers.unary(LOAD, self.load)
        handlers.inline(LEADS, lambda _: b"1" if self._driver.standing.role is Role.LEADER else b"")
        handlers.inline(BUSY, lambda _: msgspec.json.encode(self._busy))
        handlers.inline(TRANSFER, self.transfer)
        handlers.inline(STALL, self.stall)

    async def put(self, incoming: Incoming) -> bytes:
        self._puts += 1
        command = ConfigPut(f"k{self._puts % KEYS}", bytes(incoming.payload), None)
        done = await self._proposer.propose(Request(command, "bench", 0), seconds=CALL_SECONDS)
        return done.reply

    async def read(self, _: Incoming) -> bytes:
        return b"%d" % await self._driver.read_index()

    async def load(self, incoming: Incoming) -> bytes:
        """Keep so many commands or reads under way: when each was asked for, and when it was answered."""
        kind, outstanding, seconds = msgspec.json.decode(incoming.payload, type=tuple[str, int, float])
        end = time.monotonic() + seconds
        if kind == READ:
            return msgspec.json.encode(await self._reads(outstanding, end))
        return msgspec.json.encode(await Load(self._driver, outstanding, end).run())

    async def _reads(self, outstanding: int, end: float) -> Intervals:
        found: Intervals = []

        async def reader() -> None:
            while (begun := time.monotonic()) < end:
                await self._driver.read_index()
                found.append((begun, time.monotonic()))

        async with trio.open_nursery() as nursery:
            for _ in range(outstanding):
                nursery.start_soon(reader)
        return found

    def transfer(self, _: Incoming) -> bytes:
        self._driver.transfer()
        return b"%f" % time.monotonic()

    def stall(self, incoming: Incoming) -> bytes:
        self._log.stall_seconds = float(incoming.payload)
        return b"%f" % time.monotonic()


async def serve(name: str, home: str, peers: dict[str, int], delay_seconds: float) -> None:
    log = RaftLog(Path(home) / "raft" / "raft.db", node=name)
    if log.membership == NOBODY:
        log.found(Membership(frozenset(peers)))
    store = StateStore.open(Path(home) / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS)
    loaded = log.load(store.mark.index)
    raft = RaftNode(name, loaded, OPTIONS, random=random.SystemRandom().random, now=trio.current_time())
    side = Side(lambda: Me(name, 1, "bench"), Handlers(), Limits(), Counters())
    busy: Intervals = []
    replica = Watched(store, Executor(), busy)

    def receiver(info: SnapshotInfo) -> SnapshotReceiver:
        replica.coming_since = time.monotonic()
        return SnapshotReceiver(Path(home) / "state", info, MIGRATIONS)

    network = Network(name, side, random.Random(name), receiver)
    slow = SlowLog(log, delay_seconds)
    port: LogPort = slow  # type: ignore[assignment]
    driver = Driver(raft, port, replica, network, POLICY)
    proposer = Proposer(driver, network, SessionWriter(Codec(MACHINE.commands), name))
    Node(driver, proposer, slow, busy).serve(side.handlers)
    listeners = await trio.open_tcp_listeners(peers[name], host="127.0.0.1")
    server = RpcServer(side, lambda *_: Admission(), on_connection=network.met)
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
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(partial(serve, **json.loads(sys.stdin.readline())))


if __name__ == "__main__":
    main()
