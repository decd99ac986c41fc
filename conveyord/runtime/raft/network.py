"""Raft between processes, by `runtime/rpc`: messages one way, proposals for the leader, snapshots beside them.

| method | kind | what |
|---|---|---|
| `raft` | one-way | a message of the protocol, as `core/raft/codec.py` writes it; it may be lost |
| `raft.propose` | request | a command for the leader: what became of it |
| `raft.snapshot` | request on a bulk connection | an offer: from where on its bytes are wanted |
| `raft.chunk` | request on a bulk connection | bytes of what was offered: how many are there now |

A snapshot is checked and told to the node before its last chunk is answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from random import Random

import msgspec
import structlog
import trio

from conveyord.core.errors import OutcomeUnknown, Refused, Retryable
from conveyord.core.raft import snapshot_info
from conveyord.core.raft.codec import decode, encode
from conveyord.core.raft.messages import Dropped, Message
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import NodeId
from conveyord.core.wire.frames import Body
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.outcomes import Done, Outcome, Unknown
from conveyord.runtime.raft.ports import SnapshotSource
from conveyord.runtime.raft.receiving import OpenReceiver, Receiving
from conveyord.runtime.rpc.connection import Connection
from conveyord.runtime.rpc.dialing import Address, dial_once
from conveyord.runtime.rpc.greeting import BULK, Side
from conveyord.runtime.rpc.handlers import Handlers, Incoming
from conveyord.runtime.rpc.outcomes import NO_SUCH_METHOD, RemoteError
from conveyord.runtime.rpc.peer import Peer
from conveyord.runtime.rpc.tls import TlsContexts

log = structlog.get_logger(__name__)

FORWARD_SECONDS = 10.0  # for a leader to say what became of a command, before it is asked again
CHUNK_BYTES = 4 * 1024 * 1024
CHUNK_SECONDS = 60.0  # for one to be stored; the last one waits until all of it is checked
MESSAGE, PROPOSE, OFFER, CHUNK = "raft", "raft.propose", "raft.snapshot", "raft.chunk"

DONE, DROPPED, UNKNOWN = 0, 1, 2
_encode = msgspec.msgpack.Encoder().encode
_decode_outcome = msgspec.msgpack.Decoder(tuple[int, int, bytes, str, str | None]).decode
_decode_offset = msgspec.msgpack.Decoder(int).decode
_decode_offer = msgspec.msgpack.Decoder(tuple[int, bytes]).decode
_decode_place = msgspec.msgpack.Decoder(tuple[bytes, int]).decode


class Network:
    """The way to other members; for the trio thread. `Transport` of a driver, and `Forward` of a proposer."""

    def __init__(
        self,
        node: NodeId,
        side: Side,
        random: Random,
        open_receiver: OpenReceiver,
        *,
        tls: TlsContexts | None = None,
        may_speak: Callable[[Incoming], bool] = lambda incoming: bool(incoming.caller.node),
        vet: Callable[[bytes], str | None] = lambda _: None,
    ) -> None:
        """side: whose handlers get those of Raft. may_speak: whether a caller may use them: a member, not a client.

        vet: raises Refused for a command of another node that must not get into the log: one that this version, or
        another member's, could not apply would stop every node. Returns what it is about, see `Driver.propose`.
        """
        self._node = node
        self._side = side
        self._random = random
        self._tls = tls
        self._may_speak = may_speak
        self._vet = vet
        self._driver: Driver | None = None
        self._receiving = Receiving(open_receiver, self._on_snapshot)
        self._peers: dict[NodeId, tuple[Peer, trio.CancelScope]] = {}
        self._wanted: Mapping[NodeId, Address] = {}
        self._news = trio.Event()
        self._unflushed: set[Peer] = set()
        self.unknown_peers = 0
        """Messages to nodes whose address is not known."""
        self._serve(side.handlers)

    async def run(self, driver: Driver) -> None:
        """Carry what the driver sends and is sent, until cancelled."""
        self._driver = driver
        self._side.handlers.after_frames = driver.hurry
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    for node in self._peers.keys() - self._wanted.keys():
                        self._peers.pop(node)[1].cancel()
                    for node, address in self._wanted.items():
                        known = self._peers.get(node)
                        if known is not None and known[0].address == address:
                            continue
                        if known is not None:
                            known[1].cancel()
                        peer = Peer(self._side, address, self._random, expects=node, tls=self._tls)
                        scope = trio.CancelScope()
                        self._peers[node] = peer, scope
                        nursery.start_soon(_within, scope, peer)
                    await self._news.wait()
                    self._news = trio.Event()
        finally:
            self._driver = None

    def know(self, addresses: Mapping[NodeId, Address]) -> None:
        """Where the other members are, all of them."""
        self._wanted = {node: address for node, address in addresses.items() if node != self._node}
        self._news.set()

    def met(self, connection: Connection) -> None:
        """Someone has connected. A member that is waited for is dialled now, at the address known here.

        By those too who have nothing to say to it: its election could not hear their answers else, and would take a
        timeout more. An attempt that is under way goes on, and so does a connection to its earlier life until that is
        found dead.
        """
        self._is_there(connection.remote.node)

    def _is_there(self, node: NodeId) -> None:
        found = self._peers.get(node)
        if found is not None and found[0].connection is None:
            found[0].hurry()

    def peer(self, node: NodeId) -> Peer:
        """The way to one of them. Raises Retryable if its address is not known."""
        found = self._peers.get(node)
        if found is None:
            raise Retryable(f"the address of node {node} is not known here yet; try again")
        return found[0]

    def send(self, message: Message) -> None:
        """See `Transport`."""
        found = self._peers.get(message.to)
        if found is None:
            self.unknown_peers += 1
            return
        try:
            if found[0].send(MESSAGE, encode(message)):
                self._unflushed.add(found[0])
        except Refused:  # it takes no frames of that size: a setting of its own, which must not stop this node
            self._side.counters.dropped_messages["too_large"] += 1

    def flush(self) -> None:
        """See `Transport`."""
        while self._unflushed:
            connection = self._unflushed.pop().connection
            if connection is not None:
                connection.flush()

    async def __call__(self, leader: NodeId, data: bytes) -> Outcome:
        """See `Forward`."""
        try:
            answer = await self.peer(leader).call(PROPOSE, data, deadline_seconds=FORWARD_SECONDS)
        except (Retryable, OutcomeUnknown):
            raise
        except RemoteError as error:
            if error.code == NO_SUCH_METHOD:
                raise Retryable(f"node {leader} takes no proposals yet; try again") from error
            if isinstance(error, Refused):
                raise Refused(f"node {leader}: {error}") from error
            raise OutcomeUnknown(f"node {leader}: {error}") from error
        try:
            kind, index, reply, reason, hint = _decode_outcome(answer.payload)
        except msgspec.MsgspecError as error:
            raise OutcomeUnknown(f"node {leader} answered what is no outcome ({error}); run one version") from error
        if kind == DONE:
            return Done(index, reply)
        return Dropped(0, reason, hint) if kind == DROPPED else Unknown(reason)

    async def send_snapshot(self, peer: NodeId, term: int, snapshot: SnapshotSource) -> bool:
        """See `Transport`. It goes on where an earlier attempt ended, if that was the same snapshot."""
        info, address = snapshot.info, self.peer(peer).address
        async with dial_once(self._side, address, tls=self._tls, purpose=BULK, expects=peer) as connection:
            offer = _encode((term, snapshot_info.encode(info)))
            said = await connection.call(OFFER, offer, deadline_seconds=CHUNK_SECONDS)
            before = -1
            while (offset := _offset(peer, said.payload)) < info.file_bytes:
                if offset <= before:
                    raise Retryable(f"node {peer} has {offset} bytes of the snapshot, as before the last chunk")
                before = offset
                chunk = await trio.to_thread.run_sync(snapshot.read_chunk, offset, CHUNK_BYTES)
                place = _encode((info.digest, offset))
                said = await connection.call(CHUNK, place, chunk, deadline_seconds=CHUNK_SECONDS)
        return True

    # -------------------------------------------------------------------------- what others send

    def _serve(self, handlers: Handlers) -> None:
        handlers.inline(MESSAGE, self._on_message)
        handlers.unary(PROPOSE, self._on_propose)
        handlers.unary(OFFER, self._on_offer)
        handlers.unary(CHUNK, self._on_chunk)

    def _driven(self, incoming: Incoming) -> Driver:
        if not self._may_speak(incoming):
            raise Refused(f"{incoming.caller.node or 'a client'} is no member here, and must not use {incoming.method}")
        if self._driver is None:
            raise Retryable("this node takes no part yet; try again")
        return self._driver

    def _on_message(self, incoming: Incoming) -> None:
        driver, message = self._driven(incoming), decode(incoming.payload)
        if message.sender != incoming.caller.node:
            raise Refused(f"a message of node {message.sender} came from node {incoming.caller.node}")
        driver.receive(message, hurries=True)
        self._is_there(message.sender)

    async def _on_propose(self, incoming: Incoming) -> bytes:
        driver = self._driven(incoming)
        about = self._vet(incoming.payload)
        send, receive = trio.open_memory_channel[Outcome](1)
        number = driver.propose(incoming.payload, send.send_nowait, about=about)
        try:
            outcome = await receive.receive()
        finally:
            driver.forget(number)
        if isinstance(outcome, Done):
            return _encode((DONE, outcome.index, outcome.reply, "", None))
        if isinstance(outcome, Dropped):
            return _encode((DROPPED, 0, b"", outcome.reason, outcome.leader))
        return _encode((UNKNOWN, 0, b"", outcome.reason, None))

    async def _on_offer(self, incoming: Incoming) -> bytes:
        self._driven(incoming)
        term, info = _decode_offer(incoming.payload)
        return _encode(await self._receiving.offer(incoming.caller.node, term, snapshot_info.decode(info)))

    async def _on_chunk(self, incoming: Incoming) -> bytes:
        self._driven(incoming)
        digest, offset = _decode_place(incoming.payload)
        return _encode(await self._receiving.chunk(digest, offset, incoming.body))

    def _on_snapshot(self, sender: NodeId, term: int, info: SnapshotInfo) -> None:
        if self._driver is not None:
            self._driver.snapshot_received(sender, term, info.mark, info.membership)


def _offset(peer: NodeId, payload: Body) -> int:
    try:
        return _decode_offset(payload)
    except msgspec.MsgspecError as error:
        raise Retryable(f"node {peer} answered what is no place in a snapshot ({error}); run one version") from error


async def _within(scope: trio.CancelScope, peer: Peer) -> None:
    with scope:
        await peer.run()
