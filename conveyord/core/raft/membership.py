"""Who votes, who only listens, and how that changes without ever having two majorities.

Changes of voters go through a joint membership (Raft paper, section 6; Ongaro's thesis, 4.3): the entry that names
both sets counts as soon as it is in the log, and agreement needs a majority of each. Its successor, which names the
new set alone, is appended by the leader once the joint one is committed. Learners are no part of any majority, so
they come and go in one step.

| membership | on | becomes |
|---|---|---|
| simple | `changed` with voters | joint: new voters and, outgoing, the old; demoted ones wait in `demoted` |
| simple | `changed` with learners only | simple |
| joint | its entry is committed: `left` | simple: the new voters; the demoted are learners |
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, unique

import msgpack
import msgspec

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.types import NodeId

MEMBERS_MAX = 255

_Names = list[NodeId]
_decode = msgspec.msgpack.Decoder(tuple[_Names, _Names, _Names, _Names]).decode


@unique
class Standing(Enum):
    """What a change makes of a node."""

    VOTER = "voter"
    LEARNER = "learner"
    GONE = "gone"


@dataclass(frozen=True, slots=True)
class Change:
    """One node, and what it is to be."""

    node: NodeId
    standing: Standing


@dataclass(frozen=True, slots=True)
class Membership:
    """outgoing: the voters before, while both sets must agree; else empty. demoted: they become learners then."""

    voters: frozenset[NodeId] = frozenset()
    learners: frozenset[NodeId] = frozenset()
    outgoing: frozenset[NodeId] = frozenset()
    demoted: frozenset[NodeId] = frozenset()

    @property
    def is_joint(self) -> bool:
        """Whether two majorities are needed."""
        return bool(self.outgoing)

    @property
    def electorate(self) -> frozenset[NodeId]:
        """Everyone whose vote may count."""
        return self.voters | self.outgoing

    @property
    def everyone(self) -> frozenset[NodeId]:
        """Everyone who gets the log."""
        return self.voters | self.outgoing | self.learners

    def changed(self, changes: Iterable[Change]) -> Membership:
        """The membership to append for `changes`. Raises Refused where that is not possible, and says why."""
        if self.is_joint:
            raise Refused("the members are being changed already; wait until that change is committed")
        voters, learners = set(self.voters), set(self.learners)
        named = set[NodeId]()
        for change in changes:
            if change.node in named:
                raise Refused(f"node {change.node} is named twice in one change of members; name it once")
            named.add(change.node)
            if change.standing is Standing.GONE and change.node not in self.everyone:
                raise Refused(f"node {change.node} is no member; nothing to remove")
            voters.discard(change.node)
            learners.discard(change.node)
            if change.standing is not Standing.GONE:
                (voters if change.standing is Standing.VOTER else learners).add(change.node)
        if not voters:
            raise Refused("the change would leave no voter; keep at least one")
        if len(voters) + len(learners) > MEMBERS_MAX:
            raise Refused(f"{len(voters) + len(learners)} members, at most {MEMBERS_MAX}; run the others as clients")
        if voters == self.voters:
            return Membership(self.voters, frozenset(learners))
        demoted = frozenset(learners & self.voters)
        return Membership(frozenset(voters), frozenset(learners) - demoted, self.voters, demoted)

    def left(self) -> Membership:
        """What follows a joint membership."""
        return Membership(self.voters, self.learners | self.demoted)


NOBODY = Membership()
"""What a node knows that is to join: it campaigns for nothing until the log or a snapshot tells it who is there."""


def encode(membership: Membership) -> bytes:
    """The data of a membership entry: the same bytes for the same membership, everywhere."""
    sets = (membership.voters, membership.learners, membership.outgoing, membership.demoted)
    return bytes(msgpack.packb([sorted(one) for one in sets]))


def decode(data: bytes) -> Membership:
    """The inverse of `encode`. The data is checked by the entry's crc before.

    Raises Refused for anything that `encode` does not write: to leave out what is not understood could be to count a
    wrong majority. Raises Corrupt for what is no msgpack at all.
    """
    try:
        return Membership(*map(frozenset, _decode(data)))
    except msgspec.ValidationError as error:
        raise Refused(
            f"the members are told in a form that is not known here ({error}), so a newer conveyord wrote it; upgrade "
            "this node"
        ) from error
    except ValueError as error:  # also a name that is no UTF-8
        raise Corrupt(f"what tells the members is not what was written: {error}") from error


class Memberships:
    """The membership in force: the last one in the log, committed or not, as section 6 of the paper demands.

    Those before it are kept down to the last committed one, because a truncation brings them back.
    """

    def __init__(self, index: int, membership: Membership) -> None:
        """index: where the log begins, and `membership` what was in force there."""
        self._known = [(index, membership)]

    @property
    def current(self) -> Membership:
        """What is in force."""
        return self._known[-1][1]

    @property
    def index(self) -> int:
        """The index of the entry that put it in force."""
        return self._known[-1][0]

    def appended(self, index: int, membership: Membership) -> None:
        """An entry with a membership is in the log."""
        self._known.append((index, membership))

    def truncated(self, first: int) -> None:
        """Entries from `first` on are gone."""
        while self._known[-1][0] >= first:
            self._known.pop()

    def at(self, index: int) -> Membership:
        """What was in force at `index`, which is not before the log's beginning."""
        return next(membership for at, membership in reversed(self._known) if at <= index)

    def compacted(self, index: int) -> None:
        """The log begins at `index` now."""
        self._known = [(index, self.at(index)), *(known for known in self._known if known[0] > index)]
