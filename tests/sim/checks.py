"""What must hold after every event, whatever happened (notes/raft.md 2.3): the oracle of the simulation.

It looks at the platters, not at what nodes believe to be on disk.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from conveyord.core.raft.membership import NOBODY, Membership, decode
from conveyord.core.raft.messages import AppendReply, DiskHealth, Event, Message, Tick, VoteReply, VoteRequest
from conveyord.core.raft.quorum import has_quorum
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import Entry, HardState, Kind

STATE_EVERY = 4  # entries between two comparisons of whole states

if TYPE_CHECKING:
    from tests.sim.server import Server
    from tests.sim.world import World


class Violation(AssertionError):
    """An invariant does not hold."""


class Seen(NamedTuple):
    """What a server was when it was last looked at."""

    term: int
    commit: int
    last: int
    last_term: int
    role: Role


class Oracle:
    """Remembers everything that was ever true for good. newest: the last index that anybody has committed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.newest = 0
        self.membership = NOBODY
        self._memberships: list[tuple[int, Membership]] = []
        self._leaders: dict[int, str] = {}
        self._terms = {0}
        self._states: dict[int, bytes] = {}
        self._replies: dict[int, bytes] = {}
        self._ran: dict[tuple[int, int], int] = {}
        self._chains: dict[tuple[int, int], bytes] = {}
        self._committed: list[tuple[int, bytes]] = [(0, bytes(8))]
        self._committed_in = [0]
        self._votes: dict[tuple[str, int], str] = {}
        self._seen: dict[str, Seen] = {}
        self._hard: dict[str, HardState] = {}
        self._acknowledged: dict[str, tuple[int, int, bytes]] = {}

    def forget(self, server: str) -> None:
        """A server has crashed: what it held in memory is gone."""
        self._seen.pop(server, None)

    # -------------------------------------------------------------------------- after every event

    def after(self, server: Server, event: Event) -> None:
        """Check a server after an event of it."""
        state = server.node.state
        log = state.log
        if not state.is_well or type(event) is DiskHealth:
            self._sick(server, event)
        now = Seen(state.term, state.commit, log.last, log.last_term, state.role)
        before = self._seen.get(server.name)
        if before == now:
            return
        self._seen[server.name] = now
        if now.role is Role.CANDIDATE:
            self._terms.add(now.term)
        if now.term not in self._terms:
            self._fail(server, f"is in term {now.term}, which nobody has campaigned in")
        if not (log.stable <= now.last and now.commit <= now.last):
            self._fail(server, "has more stable or committed than it has")
        if before is not None:
            self._moves_on(server, before, now)
        if now.role is Role.LEADER:
            self._leads(server, now.term)
        entry = log.entry(now.last)
        if entry is not None:
            # Equal index and term mean equal logs up to there: the chains say so.
            known = self._chains.setdefault((entry.index, entry.term), entry.chain)
            if known != entry.chain:
                self._fail(server, f"its log up to {entry.index} is not that of others in its term")
        while self.newest < now.commit:
            self._newly_committed(server, self.newest + 1)
        if before is None or now.commit > before.commit:
            self._committed_the_same(server, now.commit)
        self._members_are_those_of_the_log(server)
        if now.role is Role.LEADER:
            self._changes_one_by_one(server)

    def _moves_on(self, server: Server, before: Seen, now: Seen) -> None:
        """Terms and commit indices never fall, and a leader drops nothing and commits by what is of its own term."""
        if not (now.term >= before.term):
            self._fail(server, f"the term went back from {before.term} to {now.term}")
        if not (now.commit >= before.commit):
            self._fail(server, f"the commit went back from {before.commit} to {now.commit}")
        if now.role is Role.LEADER and before.role is Role.LEADER and now.term == before.term:
            if not (now.last >= before.last):
                self._fail(server, f"leads and drops entries after {now.last}")
            if now.commit > before.commit:
                self._counted_its_own(server, now)

    def _counted_its_own(self, server: Server, now: Seen) -> None:
        term = server.node.state.log.term(now.commit)
        if term != now.term:
            self._fail(server, f"commits up to {now.commit}, which is of term {term}, in term {now.term}")

    def _leads(self, server: Server, term: int) -> None:
        """One leader per term, by the votes of a quorum, with all that is committed."""
        state = server.node.state
        first = self._leaders.get(term)
        if first is not None:
            if first != server.name:
                self._fail(server, f"leads in term {term}, as {first} does")
            return
        self._leaders[term] = server.name
        self._terms.add(term)
        voters = {voter for voter in state.membership.electorate if self._votes.get((voter, term)) == server.name}
        if server.disk.platter.hard_state[:2] == (term, server.name):
            voters.add(server.name)
        if not (has_quorum(state.membership, voters)):
            self._fail(server, f"leads in term {term} by the votes of {voters} only")
        newest = self.newest
        while self._committed_in[newest] > term:  # its votes came late: others have led and committed since
            newest -= 1
        chain = state.log.chain(newest)
        if state.log.last < newest or (chain is not None and chain != self._committed[newest][1]):
            self._fail(server, f"leads without committed entry {newest}")

    def _members_are_those_of_the_log(self, server: Server) -> None:
        """What is in force is the last committed membership, by entry or by snapshot, and what the log has after it."""
        state = server.node.state
        committed = next((one for index, one in reversed(self._memberships) if index <= state.commit), None)
        found = state.memberships.at(state.commit)
        if committed is not None and found != committed:
            self._fail(server, f"has {found} in force at {state.commit}, where {committed} is committed")
        known = [one for one in state.memberships._known if one[0] > state.commit]
        tail = state.log.tail(state.commit + 1)
        if known != [(entry.index, decode(entry.data)) for entry in tail if entry.kind is Kind.MEMBERSHIP]:
            self._fail(server, f"has {known} in force, which is not what its log has after {state.commit}")

    def _changes_one_by_one(self, server: Server) -> None:
        """One change of members at a time, and none before something of the leader's own term is committed."""
        state = server.node.state
        memberships, leading = state.memberships, state.leading
        if leading is not None and memberships.index >= leading.first > state.commit:
            self._fail(server, "changes members and has committed nothing in its term")
        if memberships.index > state.commit:
            under_way = sum(index > self.newest for index, _ in memberships._known)
            if under_way > 1:
                self._fail(server, f"{under_way} memberships are under way at once")

    def _sick(self, server: Server, event: Event) -> None:
        """A leader whose disk is sick hands over within T, or falls silent."""
        state = server.node.state
        if type(event) is DiskHealth:
            server.sick_at = float("inf") if event.is_well else min(server.sick_at, state.now)
        elif type(event) is Tick and state.role is Role.LEADER:
            timeout = state.options.election_timeout_seconds
            late = state.now - server.sick_at - timeout
            if not (late < 0.01):
                self._fail(server, f"leads on, {late:.2f} s after it should have handed over for its sick disk")

    # -------------------------------------------------------------------------- what is committed

    def _newly_committed(self, server: Server, index: int) -> None:
        state = server.node.state
        entry = state.log.entry(index)
        assert entry is not None, index
        self.newest = index
        self._committed.append((entry.term, entry.chain))
        self._committed_in.append(state.term)
        present = self._holders() | self.world.lost.keys()
        if not has_quorum(state.membership, present):
            self._fail(server, f"entry {index} is committed, on the disks of {sorted(present)} only")
        if entry.kind is Kind.MEMBERSHIP:
            self._changed(server, decode(entry.data))

    def _changed(self, server: Server, membership: Membership) -> None:
        counts, before = self.world.counts, self.membership
        counts["memberships"] += 1
        counts["joint memberships"] += membership.is_joint
        if before is not NOBODY:
            counts["promotions"] += len(membership.voters & before.learners)
        counts["leaders that left"] += server.name not in membership.voters and not membership.is_joint
        self.membership = membership
        self._memberships.append((self.newest, membership))

    def _holders(self) -> set[str]:
        """Whose disk has the newest committed entry."""
        index, chain = self.newest, self._committed[self.newest][1]
        return {name for name, other in self.world.servers.items() if other.disk.platter.has(index, chain)}

    def _committed_the_same(self, server: Server, commit: int) -> None:
        entry = server.node.state.log.entry(commit)
        if entry is not None:
            is_same = self._committed[commit] == (entry.term, entry.chain)
            if not is_same:
                self._fail(server, f"another entry is committed at {commit}")

    def landed(self, server: Server) -> None:
        """Something has reached a platter: it takes nothing back that was promised."""
        platter = server.disk.platter
        hard, before = platter.hard_state, self._hard.get(server.name)
        self._hard[server.name] = hard
        if before is not None:
            if not (hard.term >= before.term):
                self._fail(server, f"term {before.term} on its disk became {hard.term}")
            is_true = hard.term > before.term or before.vote is None or hard.vote == before.vote
            if not is_true:
                self._fail(server, f"its vote for {before.vote} on disk became one for {hard.vote}")
        term, index, chain = self._acknowledged.get(server.name, (0, 0, b""))
        if hard.term == term and not platter.has(index, chain):
            self._fail(server, f"drops entry {index}, which it has acknowledged in this term")
        is_voter = server.name in self.membership.electorate
        if is_voter and not platter.has(self.newest, self._committed[self.newest][1]):
            self._nobody_wins_without(server)

    def _nobody_wins_without(self, server: Server) -> None:
        """Those who lack the newest committed entry are no quorum. Whose disk is gone votes for nobody any more."""
        lacking = self.membership.electorate - self._holders() - self.world.lost.keys()
        if has_quorum(self.membership, lacking):
            self._fail(server, f"entry {self.newest} is committed, and gone from the disks of {sorted(lacking)}")

    # -------------------------------------------------------------------------- what is applied, read and said

    def applied(self, server: Server, entry: Entry) -> None:
        """An entry is applied."""
        if not (entry.index <= self.newest):
            self._fail(server, f"applies {entry.index}, which nobody has committed")
        if self._committed[entry.index][1] != entry.chain:
            self._fail(server, f"applies another entry at {entry.index}")
        is_on_disk = server.disk.platter.has(entry.index, entry.chain)
        if not is_on_disk:
            self._fail(server, f"applies {entry.index}, which is not on its disk")

    def became(self, server: Server, entry: Entry, reply: bytes) -> bytes | None:
        """An entry was applied: at every replica with the same reply and to the same effect, and a command once.

        Returns the whole state every few entries.
        """
        machine = server.machine
        known = self._replies.setdefault(entry.index, reply)
        if known != reply:
            self._fail(server, f"replies {reply!r} to entry {entry.index}, where others reply {known!r}")
        if machine.ran is not None:
            first = self._ran.setdefault(machine.ran, entry.index)
            if first != entry.index:
                self._fail(server, f"runs command {machine.ran} at {first} and at {entry.index}")
        if entry.index % STATE_EVERY:
            return None
        dump = machine.dump()
        known = self._states.setdefault(entry.index, dump)
        if known != dump:
            self._fail(server, f"its state at {entry.index} is not that of others")
        return machine.stored()

    def read(self, server: Server, committed: int) -> None:
        """A read is answered: from a state that has all that was committed when it came."""
        applied = server.machine.applied
        if not (applied >= committed):
            self._fail(server, f"reads at {applied} what was committed up to {committed} before")

    def leaves(self, server: Server, message: Message) -> None:
        """A message leaves: what it promises is on disk."""
        kind = type(message)
        if kind is VoteReply:
            assert isinstance(message, VoteReply)
            if message.granted and not message.pre:
                self._votes_once(server, message.term, message.to)
        elif kind is VoteRequest:
            assert isinstance(message, VoteRequest)
            if not message.pre:
                self._votes_once(server, message.term, server.name)
        elif kind is AppendReply:
            assert isinstance(message, AppendReply)
            if not message.rejected and message.term == server.node.state.term:
                self._has_acknowledged(server, message.term, message.index)

    def _has_acknowledged(self, server: Server, term: int, index: int) -> None:
        platter = server.disk.platter
        if platter.last < index or platter.hard_state.term < term:
            self._fail(server, f"acknowledges {index} in term {term}, and has {platter.last} on disk")
        chain = server.node.state.log.chain(index)
        if chain is None:
            return
        if not platter.has(index, chain):
            self._fail(server, f"acknowledges {index} and has another entry there on disk")
        if (term, index) > self._acknowledged.get(server.name, (0, 0))[:2]:
            self._acknowledged[server.name] = (term, index, chain)

    def _votes_once(self, server: Server, term: int, candidate: str) -> None:
        hard = server.disk.platter.hard_state
        is_on_disk = hard.term > term or (hard.term, hard.vote) == (term, candidate)
        if not is_on_disk:
            self._fail(server, f"votes in term {term} for {candidate}, and has {hard[:2]} on disk")
        voted = self._votes.setdefault((server.name, term), candidate)
        if voted != candidate:
            self._fail(server, f"votes for {voted} and {candidate} in term {term}")

    def _fail(self, server: Server, says: str) -> None:
        raise Violation(f"{server.name}: {says}")
