"""One member of a cluster, as a pure machine: tell it what happened, take what is to be done.

    node.step(event, now)     # any number of times
    ready = node.ready()      # everything that follows from them; do it, then tell `Persisted`, `Applied`, ...

There is no await between the two in a driver, so no other task sees a state that is halfway. The machine reads no clock
and draws no randomness of its own: the same events lead to the same results. After Diego Ongaro and John Ousterhout,
"In Search of an Understandable Consensus Algorithm" (2014), and Ongaro's thesis (2014).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from conveyord.core.errors import Corrupt
from conveyord.core.raft import elections, leadership, reading, replication
from conveyord.core.raft.log import Log
from conveyord.core.raft.membership import NOBODY, Membership, Memberships
from conveyord.core.raft.messages import (
    Append,
    AppendReply,
    Applied,
    ChangeMembers,
    Compacted,
    DiskHealth,
    Event,
    Fetch,
    Fetched,
    Heartbeat,
    HeartbeatReply,
    Message,
    Persisted,
    Propose,
    Read,
    ReadReply,
    ReadRequest,
    Ready,
    Receive,
    SnapshotReceived,
    SnapshotSent,
    Tick,
    TimeoutNow,
    Transfer,
    VoteReply,
    VoteRequest,
)
from conveyord.core.raft.outbox import Outbox, Unsaved
from conveyord.core.raft.state import Leadership, Role, State
from conveyord.core.raft.types import BEGINNING, BLANK, Entry, HardState, Mark, NodeId, Options

NUMBERS = 1 << 48  # of reads, for lives to begin at: so many that no two of them ever meet


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a node finds on its disk.

    base: where the log begins, `membership` who was a member there. memberships: those of the log's entries, with
    their indices. runs: (first index, term) of the entries that are not in `entries`. entries: the newest, without a
    gap up to the last; at least all after the commit index of `hard_state`, and the last one. applied: by the state.
    """

    hard_state: HardState = BLANK
    base: Mark = BEGINNING
    membership: Membership = NOBODY
    memberships: Sequence[tuple[int, Membership]] = ()
    runs: Sequence[tuple[int, int]] = ()
    entries: Sequence[Entry] = ()
    applied: int = 0


class RaftNode:
    """Not thread-safe: one task owns it."""

    def __init__(
        self, node: NodeId, loaded: Loaded, options: Options, *, random: Callable[[], float], now: float
    ) -> None:
        """random: numbers of [0, 1), for the times of elections and for where the numbers of reads begin: others in
        every life of the node. now: seconds of the clock that `step` is told.

        Raises Corrupt where the state or the hard state knows of entries that the log has not.
        """
        log = Log(loaded.base, runs=loaded.runs, entries=loaded.entries)
        memberships = Memberships(loaded.base.index, loaded.membership)
        for index, membership in loaded.memberships:
            memberships.appended(index, membership)
        hard, applied = loaded.hard_state, max(loaded.applied, loaded.base.index)
        commit = max(hard.commit, applied)
        if commit > log.last:
            raise Corrupt(
                f"node {node} has applied or committed entry {commit}, and its log ends at {log.last}: the log was "
                f"lost or replaced by an older one; remove this node and add it under a new name"
            )
        outbox = Outbox(node, Unsaved(hard, log.last + 1))
        self.state = State(
            node, options, random, now, log, memberships, outbox, hard.term, hard.vote, commit, applied, applied
        )
        self._fetched: tuple[Entry, ...] = ()
        self.state.wait()
        if self.state.membership.electorate == {node}:
            self.state.election_at = now  # there is nobody to wait for
        # A reply that is meant for an earlier life of this node must fit no read of this one.
        self.state.asked = int(random() * NUMBERS)

    @property
    def deadline(self) -> float:
        """When to `step` a `Tick` at the latest. It changes with every step."""
        state = self.state
        leading = state.leading
        if leading is None:
            return min(state.election_at, state.forwarded_until)
        return min(leading.heartbeat_at, leading.quorum_at, leading.transfer_until, leading.tell_at)

    def step(self, event: Event, now: float) -> None:
        """Take one event. `now` never goes back. Raises Corrupt where the logs of two nodes cannot both be right."""
        state = self.state
        state.now = max(now, state.now)
        commit = state.commit
        if isinstance(event, Receive):
            self._receive(event.message)
        else:
            self._driven(event)
        if state.leading is not None and state.commit > commit:
            leadership.after_commit(state, state.leading)
        if state.confirmed or state.forwarded or (state.leading is not None and state.leading.reads):
            reading.proceed(state)
        # What was committed before and is on disk may go, applied or not: it can be read again.
        state.log.shrink(min(commit, state.log.stable), state.options.window_bytes)

    def ready(self) -> Ready:
        """Take everything that is to be done now."""
        state = self.state
        write = state.outbox.write(state.hard_state, state.log)
        committed = self._committed()
        leading = state.leading
        likely = () if leading is None or committed else self._likely(leading)
        return state.outbox.take(write, committed, likely)

    def _committed(self) -> tuple[Entry, ...]:
        """Entries to apply, one batch at a time: the next when the state has this one."""
        state = self.state
        end = min(state.commit, state.log.stable)
        if state.handed >= end or state.applied < state.handed or state.is_fetching:
            return ()
        first = state.handed + 1
        entries: tuple[Entry, ...] | None = self._fetched
        self._fetched = ()
        if not entries or entries[0].index != first:
            entries = state.log.slice(first, end + 1, state.options.apply_bytes)
        if entries is None:
            state.is_fetching = True
            state.outbox.fetches.append(
                Fetch(state.node, first, min(end + 1, state.log.window), state.options.apply_bytes)
            )
            return ()
        state.handed = entries[-1].index
        return entries

    def _likely(self, leading: Leadership) -> tuple[Entry, ...]:
        """What comes next when all that is committed was applied, up to where a write ends: others write the same
        entries at once, so the commit index often goes from there to there. Only entries of this leader, who knows
        what is in them: those of another may be of a newer program, which nobody has to understand until then.
        """
        state = self.state
        first, end = state.applied + 1, state.outbox.end_of_write(state.log)
        if state.handed > state.applied or first < leading.first or not leading.foreseen < first <= end:
            return ()
        entries = state.log.slice(first, end + 1, state.options.apply_bytes)
        if entries is None:
            return ()
        leading.foreseen = entries[-1].index
        return entries

    # -------------------------------------------------------------------------- what the driver tells

    def _driven(self, event: Event) -> None:
        state, leading = self.state, self.state.leading
        match event:
            case Tick():
                if leading is None:
                    elections.tick(state)
                else:
                    leadership.tick(state, leading)
            case Propose():
                leadership.on_propose(state, event)
            case Persisted():
                for message in state.outbox.persisted(event.token, state.log):
                    if message.term == state.term:
                        self._dispatch(message)
            case Applied():
                state.applied = max(state.applied, event.index)
            case Read():
                reading.on_read(state, event)
            case ChangeMembers():
                leadership.on_change_members(state, event)
            case Transfer():
                leadership.on_transfer(state, event)
            case Fetched(peer=peer) if peer == state.node:
                state.is_fetching, self._fetched = False, event.entries
            case Fetched() if leading is not None:
                replication.on_fetched(state, leading, event)
            case Compacted() if event.base.index > state.log.base.index:  # else a snapshot has overtaken it
                assert event.base.index <= state.handed, (
                    f"{event.base} is in a snapshot, and was not given out to apply"
                )
                state.applied = max(state.applied, event.base.index)
                state.memberships.compacted(event.base.index)
                state.log.compact(event.base)
            case SnapshotSent() if leading is not None:
                replication.on_snapshot_sent(state, leading, event)
            case SnapshotReceived():
                if event.term >= state.term:
                    self._hear(event.sender, event.term)
                    replication.on_snapshot(state, event)
            case DiskHealth():
                leadership.on_disk_health(state, event)

    # -------------------------------------------------------------------------- what the others say

    def _receive(self, message: Message) -> None:
        state = self.state
        if message.term > state.term:
            if isinstance(message, VoteRequest) and elections.is_refused_unheard(state, message):
                return
            is_question = isinstance(message, VoteRequest) and message.pre
            is_promise = isinstance(message, VoteReply) and message.pre and message.granted
            if not is_question and not is_promise:
                leadership.abandon(state)
                state.follow(message.term, None)
        elif message.term < state.term:
            self._answer_stale(message)
            return
        self._dispatch(message)

    def _answer_stale(self, message: Message) -> None:
        """A leader or candidate of a past term must learn that it is past, or it may stay so for ever."""
        state = self.state
        if isinstance(message, Append | Heartbeat):
            state.outbox.promise(HeartbeatReply(state.node, message.sender, state.term, 0))
        elif isinstance(message, VoteRequest) and message.pre:
            state.outbox.promise(VoteReply(state.node, message.sender, state.term, granted=False, pre=True))

    def _dispatch(self, message: Message) -> None:
        state, leading = self.state, self.state.leading
        match message:
            case Append():
                self._hear(message.sender, message.term)
                replication.on_append(state, message)
            case Heartbeat():
                self._hear(message.sender, message.term)
                replication.on_heartbeat(state, message)
            case AppendReply() if leading is not None:
                replication.on_append_reply(state, leading, message)
                if message.sender == leading.transfer_to:
                    leadership.urge(state, leading)
            case HeartbeatReply() if leading is not None:
                replication.on_heartbeat_reply(state, leading, message)
            case VoteRequest():
                elections.on_vote_request(state, message)
            case VoteReply():
                elections.on_vote_reply(state, message)
            case TimeoutNow():
                elections.on_timeout_now(state, message)
            case ReadRequest():
                reading.on_read_request(state, message)
            case ReadReply():
                reading.on_read_reply(state, message)

    def _hear(self, leader: NodeId, term: int) -> None:
        """The leader of a term that is not past gave a sign of life."""
        state = self.state
        assert state.role is not Role.LEADER or term > state.term, f"two leaders in term {term}: {leader}, {state.node}"
        if term > state.term or state.role is not Role.FOLLOWER or state.leader != leader:
            leadership.abandon(state)
            state.follow(term, leader)
        state.heard_at = state.now
        state.wait()
