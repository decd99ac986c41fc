"""What the rest of a node (API, roles) sees of its cluster. `node.py: Node` is the real one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol, TypeVar

from conveyord.core.errors import ConveyordError, Refused
from conveyord.core.raft.membership import Change
from conveyord.core.raft.types import NodeId
from conveyord.core.state.commands import Command
from conveyord.core.wire.frames import Body
from conveyord.runtime.raft.driver import PeerStatus, Standing
from conveyord.runtime.rpc.handlers import Answer as RpcAnswer
from conveyord.runtime.rpc.handlers import Handlers
from conveyord.storage.identity import Identity
from conveyord.storage.state.reading import Answer, StateView
from conveyord.storage.state_store.snapshot_file import SnapshotFile

__all__ = ["Cluster", "CommandRefused", "Committed", "PeerStatus", "Removed"]

T = TypeVar("T")


class CommandRefused(Refused):
    """The state machine has refused a command. code: one of docs/state.md, such as `CONFLICT`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Removed(ConveyordError):
    """The cluster does not want this node any more: the process is to end well, and not to be started by itself."""

    code = "REMOVED"


class Committed(NamedTuple):
    """A command is committed. index: of its entry. value: of its reply, see docs/state.md. The state of this node may
    have it a little later: a linearizable read waits for that.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of it
    value: object


class Cluster(Protocol):
    """For the trio thread. Before the node is in a cluster, and where no leader is known, what needs one raises
    Retryable with a sentence that says what is waited for.
    """

    @property
    def identity(self) -> Identity:
        """Who this node is. cluster: None until it is in one."""

    @property
    def phase(self) -> str:
        """`seeking` (in no cluster yet), `member`, or `draining`."""

    @property
    def waiting(self) -> str:
        """What is waited for, in a sentence; empty if for nothing."""

    @property
    def standing(self) -> Standing | None:
        """Where the node stands in Raft; None while seeking."""

    @property
    def disk(self) -> str:
        """`ok`, `stalled` or `full`."""

    def peers(self) -> Sequence[PeerStatus]:
        """Those of the leader; empty at others."""

    async def read(self, question: Callable[[StateView], Answer[T]], *, stale: bool = False) -> Answer[T]:
        """Ask the state, in a thread. Linearizable unless `stale`. Raises what the question raises, and Retryable."""

    async def wait_beyond(self, topics: Collection[str], index: int, *, seconds: float) -> None:
        """Wait until some topic was changed behind `index`, for so long at most."""

    async def propose(self, command: Command, *, actor: str, seconds: float = 30.0) -> Committed:
        """Have a command applied, once, whoever leads. Raises CommandRefused, Retryable (it was not applied, and will
        not be), OutcomeUnknown.
        """

    async def change_members(self, changes: Sequence[Change], *, seconds: float = 30.0) -> int:
        """Have Raft's members changed; returns the index at which they are. At the leader only, Retryable elsewhere."""

    async def transfer(self, to: NodeId | None, *, seconds: float = 30.0) -> NodeId:
        """Hand leadership over; returns who leads. At the leader only, likewise."""

    async def ask(
        self, node: NodeId, method: str, payload: bytes, body: Body = b"", *, seconds: float = 30.0
    ) -> RpcAnswer:
        """Call a method of another member. Raises Retryable, OutcomeUnknown, RemoteError, as `Peer.call` does."""

    async def invite(self, address: str, *, seconds: float = 30.0) -> NodeId:
        """Tell the node at an RPC address, which is in no cluster yet, to join this one. Raises Refused, Retryable."""

    async def take_snapshot(self) -> SnapshotFile:
        """A new snapshot of the state as this node has it."""

    @property
    def handlers(self) -> Handlers:
        """What this node answers by RPC. To be complete before the node runs."""
