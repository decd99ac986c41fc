"""What nodes say to each other, what a driver tells a node, and what a node asks of its driver.

Every message has the term of its sender. Which cluster and which protocol version it belongs to is the transport's
matter; it drops what is foreign before it gets here.
"""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import Struct

from conveyord.core.raft.membership import Change, Membership
from conveyord.core.raft.types import Entry, HardState, Kind, Mark, NodeId

# ------------------------------------------------------------------------------ between nodes


@dataclass(frozen=True, slots=True)
class Message:
    """Base of all. term: of the sender, but for a pre-vote, where it is the term that it would campaign in."""

    sender: NodeId
    to: NodeId
    term: int


@dataclass(frozen=True, slots=True)
class VoteRequest(Message):
    """RequestVote (Raft paper, figure 2). last: of the candidate's log. transfer: its leader asked it to campaign."""

    last_index: int
    last_term: int
    pre: bool = False
    transfer: bool = False


@dataclass(frozen=True, slots=True)
class VoteReply(Message):
    """granted: for a pre-vote, in the term that was asked for."""

    granted: bool
    pre: bool = False


@dataclass(frozen=True, slots=True)
class Append(Message):
    """AppendEntries. Entries follow the previous one without a gap."""

    prev_index: int
    prev_term: int
    entries: tuple[Entry, ...]
    commit: int


@dataclass(frozen=True, slots=True)
class AppendReply(Message):
    """index: up to where the logs agree and are on disk; if rejected, the `prev_index` that was not there.

    hint_index, hint_term: where a rejecting log may agree at best.
    """

    index: int
    rejected: bool = False
    hint_index: int = 0
    hint_term: int = 0


@dataclass(frozen=True, slots=True)
class Heartbeat(Message):
    """commit: never beyond what the follower is known to have. round: of reads that wait to be confirmed."""

    commit: int
    round: int


@dataclass(frozen=True, slots=True)
class HeartbeatReply(Message):
    """Says that the sender of that round's heartbeat is still its leader."""

    round: int


@dataclass(frozen=True, slots=True)
class TimeoutNow(Message):
    """Campaign at once: the leader makes room for you."""


@dataclass(frozen=True, slots=True)
class ReadRequest(Message):
    """A follower's linearizable read, forwarded. number: the follower's own; it gives none twice, not even in another
    life, so that no late reply stands for a read that came after it.
    """

    number: int


@dataclass(frozen=True, slots=True)
class ReadReply(Message):
    """number: of the request. index: what must be applied before the read is answered; None if the leader cannot
    confirm it.
    """

    number: int
    index: int | None


# ------------------------------------------------------------------------------ from the driver


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed: `deadline` of the node was reached."""


@dataclass(frozen=True, slots=True)
class Receive:
    """A message has come."""

    message: Message


@dataclass(frozen=True, slots=True)
class Propose:
    """Entries to append, each with the number by which its `Accepted` or `Dropped` is told. kind: COMMAND or BUNDLE."""

    commands: tuple[tuple[int, bytes], ...]
    kind: Kind = Kind.COMMAND


@dataclass(frozen=True, slots=True)
class ChangeMembers:
    """Ask for other members. Answered like a proposal."""

    number: int
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """A linearizable read: `ReadReady` says when the applied state may answer it.

    One ticket may stand for any number of reads that have come before it. It stays within the node, and may be used
    again, for another read, once it is answered.
    """

    ticket: int


@dataclass(frozen=True, slots=True)
class Transfer:
    """Hand leadership over, to `to` or to whoever is closest."""

    to: NodeId | None = None


@dataclass(frozen=True, slots=True)
class Persisted:
    """Everything up to and with the `Write` of this token is on disk."""

    token: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The state contains everything up to this index."""

    index: int


@dataclass(frozen=True, slots=True)
class Fetched:
    """Entries that were asked for by a `Fetch`, read from the disk; none of them if they were compacted meanwhile."""

    peer: NodeId
    first: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Compacted:
    """A snapshot of this node's state exists that is no older than this place in the log, which begins after it on disk
    now. So all up to there is applied, whether `Applied` has said so yet or not.
    """

    base: Mark


@dataclass(frozen=True, slots=True)
class SnapshotSent:
    """A stream to a peer ended. index: of the snapshot, if it arrived whole, was checked, and the node there was told
    (`SnapshotReceived`); else None.
    """

    peer: NodeId
    index: int | None


@dataclass(frozen=True, slots=True)
class SnapshotReceived:
    """A whole, checked snapshot lies beside the state. sender: the leader that sent it. term: in which it led when it
    was asked to (`Ready.snapshots`); not one in which it may lead no more.

    If the next `Ready` has no `Install` for it, it is not needed and may be deleted.
    """

    sender: NodeId
    term: int
    mark: Mark
    membership: Membership


@dataclass(frozen=True, slots=True)
class DiskHealth:
    """Whether the disk takes writes in time. A node whose disk does not hands leadership over and seeks none."""

    is_well: bool


Event = (
    Tick
    | Receive
    | Propose
    | ChangeMembers
    | Read
    | Transfer
    | Persisted
    | Applied
    | Fetched
    | Compacted
    | SnapshotSent
    | SnapshotReceived
    | DiskHealth
)

# ------------------------------------------------------------------------------ to the driver


@dataclass(frozen=True, slots=True)
class Install:
    """Switch to a snapshot that was received: state, log base and membership in one step."""

    mark: Mark
    membership: Membership


@dataclass(frozen=True, slots=True)
class Write:
    """One durable transaction: drop entries from `truncate_from` on, add `entries`, set the hard state.

    `Persisted(token)` tells that it is on disk. Messages that promise what is in it are not here: the node lets
    them out only then, so no driver can send them too early. A write that fails is never tried again (the pages
    may count as clean): the process ends, and reads what is there when it starts.
    """

    token: int
    hard_state: HardState | None
    truncate_from: int | None
    entries: tuple[Entry, ...]
    install: Install | None


class Accepted(Struct, frozen=True, gc=False):
    """A proposal is in the leader's log, at this index and term. It is not committed yet."""

    number: int
    index: int
    term: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """A proposal is in no log: it is safe to propose it anew. leader: whom to ask, if not this node again."""

    number: int
    reason: str
    leader: NodeId | None


@dataclass(frozen=True, slots=True)
class NotLeader(Dropped):
    """Another node leads: `leader`, as far as is known."""


@dataclass(frozen=True, slots=True)
class ReadReady:
    """The applied state may answer the read `ticket`; or, if not `is_confirmed`, ask again."""

    ticket: int
    is_confirmed: bool


@dataclass(frozen=True, slots=True)
class Fetch:
    """Read entries `[first, end)` from the disk, for `peer`: as many as `bytes_max` takes, but one at least.

    bytes_max: as `size_of` counts. peer: this node itself where they are to be applied.
    """

    peer: NodeId
    first: int
    end: int
    bytes_max: int


@dataclass(frozen=True, slots=True)
class Ready:
    """What is to be done, in any order and at the same time, but writes in the order of their tokens.

    committed: entries to apply, in order; they are on this node's disk. likely: a leader's, on their way to disks: the
    next that will be committed, all of them at once, unless it loses its place. A driver may see now what they will do,
    where that can be taken back. snapshots: peers to stream one to.
    """

    write: Write | None = None
    messages: tuple[Message, ...] = ()
    committed: tuple[Entry, ...] = ()
    answers: tuple[Accepted | Dropped, ...] = ()
    reads: tuple[ReadReady, ...] = ()
    fetches: tuple[Fetch, ...] = ()
    snapshots: tuple[NodeId, ...] = ()
    likely: tuple[Entry, ...] = ()
