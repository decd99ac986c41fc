"""All that one node knows, and the transitions that every concern needs.

| role | on | becomes |
|---|---|---|
| FOLLOWER | no leader heard for T to 2 T, and it may vote, and its disk is well | PRE_CANDIDATE |
| | its leader asks it to campaign | CANDIDATE |
| PRE_CANDIDATE | a quorum would vote for it | CANDIDATE |
| | a quorum would not, or a leader is heard, or its disk is sick | FOLLOWER |
| CANDIDATE | a quorum votes for it, its own vote on disk | LEADER |
| | a quorum does not, or a leader is heard, or its disk is sick | FOLLOWER |
| | nothing of that for T to 2 T | PRE_CANDIDATE |
| LEADER | no quorum heard for T; its disk is sick and nobody takes over; it is no voter any more | FOLLOWER |
| any | a message of a higher term, but for those of pre-votes, and votes that it must refuse | FOLLOWER |

A pre-candidate that hears nothing for T to 2 T begins again. What is refused is written in elections.py.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, unique

from conveyord.core.raft.log import Log
from conveyord.core.raft.membership import Membership, Memberships
from conveyord.core.raft.messages import ReadReady
from conveyord.core.raft.outbox import Outbox
from conveyord.core.raft.progress import Progress
from conveyord.core.raft.reads import LeaderReads
from conveyord.core.raft.types import HardState, NodeId, Options

NEVER = float("inf")


@unique
class Role(Enum):
    """See the table above."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre-candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"


@dataclass(slots=True, eq=False)
class Leadership:
    """What only a leader knows. first: the index of its own first entry. quorum_at: when it looks next who was heard.

    transfer_until: when it gives up handing over to `transfer_to`. uncommitted_bytes: of its own entries. tell_at: when
    peers are told of what is committed, if nothing that was sent to them until then has told them. foreseen: up to
    where entries were given out as likely to be committed.
    """

    first: int
    heartbeat_at: float
    quorum_at: float
    peers: dict[NodeId, Progress]
    reads: LeaderReads = field(default_factory=LeaderReads)
    uncommitted_bytes: int = 0
    transfer_to: NodeId | None = None
    transfer_until: float = NEVER
    tell_at: float = NEVER
    foreseen: int = 0


@dataclass(slots=True, eq=False)
class State:
    """One node. handed: up to where entries were given out to be applied. heard_at: when it last heard a leader.

    needed_until: until when its vote counts as needed, though it knows itself for no voter.
    asked: the number of the last own read that the leader was asked to confirm. forwarded: such reads by their
    numbers, the oldest first: the ticket, and when to give up.
    confirmed: a heap of reads that wait for the index before their ticket to be applied.
    """

    node: NodeId
    options: Options
    random: Callable[[], float]
    now: float
    log: Log
    memberships: Memberships
    outbox: Outbox
    term: int
    vote: NodeId | None
    commit: int
    applied: int
    handed: int
    election_at: float = 0.0
    heard_at: float = -NEVER
    needed_until: float = -NEVER
    role: Role = Role.FOLLOWER
    leader: NodeId | None = None
    is_well: bool = True
    is_fetching: bool = False
    votes: dict[NodeId, bool] = field(default_factory=dict)
    leading: Leadership | None = None
    asked: int = 0
    forwarded: OrderedDict[int, tuple[int, float]] = field(default_factory=OrderedDict)
    confirmed: list[tuple[int, int]] = field(default_factory=list)

    @property
    def membership(self) -> Membership:
        """Who is a member now."""
        return self.memberships.current

    @property
    def hard_state(self) -> HardState:
        """What must survive a crash."""
        return HardState(self.term, self.vote, self.commit)

    @property
    def may_lead(self) -> bool:
        """Whether it may ask for votes. Who has left may, until it knows that to be committed: if it alone has the
        entry that says so, nobody else would be elected (Ongaro's thesis, 4.2.2). So may who is to come, for a while
        after a candidate counted on its vote and it knew more than that one: an entry that it lacks makes it a voter
        there. Its own vote does not count then.
        """
        if not self.is_well:
            return False
        if self.node in self.membership.electorate or self.now < self.needed_until:
            return True
        return self.node in self.memberships.at(self.commit).electorate

    @property
    def others(self) -> list[NodeId]:
        """All other members, in an order that does not depend on hashing."""
        return sorted(self.membership.everyone - {self.node})

    @property
    def forwarded_until(self) -> float:
        """When to give up on the oldest read that was forwarded."""
        return next(iter(self.forwarded.values()))[1] if self.forwarded else NEVER

    def wait(self) -> None:
        """Draw when to campaign if nothing is heard."""
        timeout = self.options.election_timeout_seconds
        self.election_at = self.now + timeout * (1 + self.random())

    def follow(self, term: int, leader: NodeId | None) -> None:
        """Become a follower, in a term that is not below the present one."""
        assert term >= self.term, (term, self.term)
        if term > self.term:
            self.term, self.vote = term, None
        self.role = Role.FOLLOWER
        self.leading = None
        self.votes.clear()
        if leader != self.leader:
            self.leader = leader
            self.fail_forwarded()
        self.wait()

    def fail_forwarded(self) -> None:
        """The leader that was asked may never answer: let the readers ask again."""
        self.outbox.reads.extend(ReadReady(ticket, is_confirmed=False) for ticket, _ in self.forwarded.values())
        self.forwarded.clear()

    def truncate(self, first: int) -> None:
        """Drop the entries from `first` on; memberships in them are no longer in force."""
        assert first > self.commit, f"node {self.node}: entry {first} is committed (up to {self.commit})"
        self.log.truncate(first)
        self.memberships.truncated(first)
        self.outbox.truncated(first)
