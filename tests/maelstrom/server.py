"""What `node.py` runs: a member that takes requests of `lin-kv`, over conveyord's core, driver, log and state.

What a client is told that did not happen did not: code 11 only where a command is in no log. Where that is not known
the answer is 13, which Maelstrom takes for an open outcome.

Protocol: https://github.com/jepsen-io/maelstrom/blob/main/doc/protocol.md and doc/workloads.md.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from base64 import b64decode, b64encode
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import structlog
import trio

from conveyord.core.errors import OutcomeUnknown, Refused, Retryable
from conveyord.core.raft.codec import decode, encode
from conveyord.core.raft.membership import NOBODY, Membership
from conveyord.core.raft.messages import Dropped, Message
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.types import NodeId, Options
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.outcomes import Done, Outcome, Unknown
from conveyord.runtime.raft.ports import SnapshotSource
from conveyord.runtime.raft.proposer import Proposer
from conveyord.runtime.raft.snapshots import Policy
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state_store.replica import Replica
from conveyord.storage.state_store.store import StateStore
from tests.maelstrom.kv import MIGRATIONS, KvSession, execute, value_of
from tests.maelstrom.snapshots import Incoming, stream
from tests.maelstrom.wire import Wire

OPTIONS = Options(election_timeout_seconds=1.0, heartbeat_seconds=0.2)
POLICY = Policy(every_entries=2_000, kept_entries=500)
CALL_SECONDS = 5.0  # longer than clients wait
ANSWER_SECONDS = 1.0  # of another node, before it is asked again
CALLS_MAX = 1_000  # of clients, at a time
UNAVAILABLE, CRASH, NOT_SUPPORTED, MALFORMED, NO_KEY = 11, 13, 10, 12, 20

Body = dict[str, Any]


class Failed(Exception):
    """What a client is answered instead."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


class Node:
    """One node, from its `init` on."""

    def __init__(self, wire: Wire, node: NodeId, others: list[NodeId], home: Path, held: ExitStack) -> None:
        self._wire = wire
        self._others = frozenset(others) - {node}
        log = RaftLog(home / "raft" / "raft.db", node=node)
        held.callback(log.close)
        if log.membership == NOBODY:
            log.found(Membership(frozenset(others)))
        self._store = StateStore.open(home / "state", base=log.base, membership=log.membership, migrations=MIGRATIONS)
        held.callback(self._store.close)
        self._incoming = Incoming(home / "state", self._on_snapshot)
        loaded = log.load(self._store.mark.index)
        raft = RaftNode(node, loaded, OPTIONS, random=random.SystemRandom().random, now=trio.current_time())
        self.driver = Driver(raft, log, Replica(self._store, execute), self, POLICY)
        self._proposer: Proposer[list[Any]] = Proposer(self.driver, self._forward, KvSession())
        self._calls = trio.CapacityLimiter(CALLS_MAX)

    # -------------------------------------------------------------------------- to other nodes

    def send(self, message: Message) -> None:
        """See `Transport`."""
        self._wire.send(message.to, {"type": "raft", "data": b64encode(encode(message)).decode()})

    def flush(self) -> None:
        """See `Transport`: lines go as soon as they are written."""

    async def send_snapshot(self, peer: NodeId, term: int, snapshot: SnapshotSource) -> bool:
        """See `Transport`."""
        return await stream(snapshot, term, partial(self._wire.ask, peer, seconds=ANSWER_SECONDS))

    def _on_snapshot(self, sender: NodeId, term: int, offer: Any) -> None:
        self.driver.snapshot_received(sender, term, offer.mark, offer.membership)

    async def _forward(self, leader: NodeId, data: bytes) -> Outcome:
        body = {"type": "propose", "data": b64encode(data).decode()}
        kind, value, more = (await self._wire.ask(leader, body, seconds=ANSWER_SECONDS))["outcome"]
        if kind == "done":
            return Done(value, b64decode(more))
        return Dropped(0, value, more) if kind == "dropped" else Unknown(value)

    # -------------------------------------------------------------------------- from other nodes

    async def serve(self) -> None:
        """Take what comes, until nothing comes any more."""
        async with trio.open_nursery() as nursery:
            async for source, body in self._wire:
                if source not in self._others:
                    nursery.start_soon(self._answer_client, source, body)
                elif body["type"] == "raft":
                    self.driver.receive(decode(b64decode(body["data"])))
                elif body["type"] == "propose":
                    self.driver.propose(b64decode(body["data"]), partial(self._answer_proposal, source, body))
                elif body["type"] == "snapshot":
                    nursery.start_soon(self._take_snapshot, source, body)
            nursery.cancel_scope.cancel()

    async def _take_snapshot(self, source: NodeId, body: Body) -> None:
        self._wire.reply(source, body, {"type": "snapshot_ok", **await self._incoming.take(source, body)})

    def _answer_proposal(self, source: str, asked: Body, outcome: Outcome) -> None:
        if isinstance(outcome, Done):
            told = ["done", outcome.index, b64encode(outcome.reply).decode()]
        elif isinstance(outcome, Dropped):
            told = ["dropped", outcome.reason, outcome.leader]
        else:
            told = ["unknown", outcome.reason, None]
        self._wire.reply(source, asked, {"type": "proposed", "outcome": told})

    # -------------------------------------------------------------------------- clients

    async def _answer_client(self, client: str, body: Body) -> None:
        try:
            async with self._calls:
                answer = await self._done(body)
        except Failed as error:
            answer = {"type": "error", "code": error.code, "text": str(error)}
        except Retryable as error:
            answer = {"type": "error", "code": UNAVAILABLE, "text": str(error)}
        except OutcomeUnknown as error:
            answer = {"type": "error", "code": CRASH, "text": str(error)}
        except KeyError as error:
            answer = {"type": "error", "code": MALFORMED, "text": f"the field {error} is missing"}
        self._wire.reply(client, body, answer)

    async def _done(self, body: Body) -> Body:
        match body["type"]:
            case "read":
                return {"type": "read_ok", "value": await self._read(body["key"])}
            case "write":
                await self._change(["write", body["key"], body["value"]])
                return {"type": "write_ok"}
            case "cas":
                await self._change(["cas", body["key"], body["from"], body["to"]])
                return {"type": "cas_ok"}
            case other:
                raise Failed(NOT_SUPPORTED, f"{other!r} is not a request of lin-kv")

    async def _change(self, operation: list[Any]) -> None:
        done = await self._proposer.propose(operation, seconds=CALL_SECONDS)
        code, text = KvSession.reply(done.reply)
        if code:
            raise Failed(code, text)

    async def _read(self, key: Any) -> Any:
        with trio.move_on_after(CALL_SECONDS):
            while True:
                try:
                    await self.driver.read_index()
                    break
                except Retryable:
                    await trio.sleep(0.05)
            found = await trio.to_thread.run_sync(value_of, self._store, key)
            if found is None:
                raise Failed(NO_KEY, f"there is no key {key!r}")
            return json.loads(found)
        raise Failed(UNAVAILABLE, "no leader confirms reads")


def home_of(node: NodeId) -> Path:
    """Where a node keeps its data."""
    kept = os.environ.get("CONVEYORD_MAELSTROM_DIR")
    return Path(kept) / node if kept else Path(tempfile.mkdtemp(prefix=f"conveyord-maelstrom-{os.getpid()}-{node}-"))


async def main() -> None:
    async with Wire.opened() as wire:
        source, body = await wire.receive()
        if body["type"] != "init":
            raise Refused(f"the first message must be `init`, and was {body['type']!r}")
        with ExitStack() as held:
            node_id, others = body["node_id"], body["node_ids"]
            node = Node(wire, node_id, others, home_of(node_id), held)
            wire.node = node_id
            async with trio.open_nursery() as nursery:
                await nursery.start(node.driver.run)
                wire.reply(source, body, {"type": "init_ok"})
                await node.serve()
                nursery.cancel_scope.cancel()


def run() -> None:
    """What the script does."""
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    trio.run(main)
