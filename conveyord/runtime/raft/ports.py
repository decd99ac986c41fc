"""What a node rests on: its log, its state, and the way to others. `storage/` and `runtime/rpc` have the real ones.

Log and state are blocking, and each is used by one thread only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Message, Write
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import Entry, Mark, NodeId


class LogPort(Protocol):
    """`storage/raft_log/log.py: RaftLog`, which says what each of these raises."""

    @property
    def has_reserve(self) -> bool:
        """Whether the disk takes more than what must be written. Asked by any thread."""

    def write(self, write: Write) -> None:
        """Do all of it, durably, or nothing."""

    def compact(self, base: Mark, membership: Membership) -> None:
        """Begin after `base`, with the membership in force there."""

    def read(self, first: int, end: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries of `[first, end)`: one at least, or none at all if they are not there any more."""

    def renew_reserve(self) -> bool:
        """Set space aside again, if there is room for it."""


class SnapshotSource(Protocol):
    """A snapshot that is being sent: `storage/state_store/snapshot_file.py: SnapshotFile`. Blocking, in any thread."""

    @property
    def info(self) -> SnapshotInfo:
        """What it is."""

    def read_chunk(self, offset: int, bytes_max: int) -> bytes:
        """The bytes from `offset` on; none at the end."""

    def close(self) -> None:
        """Let go of it."""


class Receiver(Protocol):
    """A snapshot that is coming: `storage/state_store/receiving.py: SnapshotReceiver`, which says what these raise.

    Blocking, in any thread, one call at a time.
    """

    offset: int
    """How many bytes of it came."""

    @property
    def is_complete(self) -> bool:
        """Whether all did."""

    def append(self, digest: bytes, offset: int, data: bytes) -> None:
        """Take the next bytes."""

    def stage(self) -> None:
        """Check all of it, and make it a state that can be switched to; durable on return."""

    def close(self) -> None:
        """Let go of it; what came stays."""


class StatePort(Protocol):
    """`storage/state_store/replica.py: Replica`. One thread, but for the methods of snapshots."""

    @property
    def mark(self) -> Mark:
        """The last entry that is in the state."""

    def try_out(self, entries: Sequence[Entry]) -> Sequence[bytes]:
        """What `apply` would reply. It does not change what anyone sees; it spares an `apply` that begins with the same
        entries their work. Raises StorageFull if there is no room.
        """

    def forget(self) -> None:
        """Take back what was tried out."""

    def apply(self, entries: Sequence[Entry]) -> Sequence[bytes]:
        """Apply entries that follow it; their replies. Raises StorageFull with nothing applied: then again later."""

    def switch(self, mark: Mark) -> None:
        """Make the snapshot that is staged for `mark` the state."""

    def take_snapshot(self) -> Mark:
        """Take one of the state as it is; returns what it has. In any thread, one at a time."""

    def open_snapshot(self, since: int) -> SnapshotSource | None:
        """The newest one, if it has entry `since` or later. In any thread."""


class Transport(Protocol):
    """The way to other nodes. For the trio thread."""

    def send(self, message: Message) -> None:
        """Take a message along, or drop it, but do not wait."""

    def flush(self) -> None:
        """What was sent is all, for now."""

    async def send_snapshot(self, peer: NodeId, term: int, snapshot: SnapshotSource) -> bool:
        """Stream a snapshot to a peer, as the leader of `term`. Whether the peer has all of it, and its node was told
        before it said so.
        """
