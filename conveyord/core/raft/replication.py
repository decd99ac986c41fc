"""How a leader's log gets to the others, and when an entry is committed (Raft paper, 5.3 and 5.4)."""

from __future__ import annotations

from collections.abc import Sequence

from conveyord.core.errors import Corrupt
from conveyord.core.raft.membership import Memberships, decode
from conveyord.core.raft.messages import (
    Append,
    AppendReply,
    Fetch,
    Fetched,
    Heartbeat,
    HeartbeatReply,
    Install,
    SnapshotReceived,
    SnapshotSent,
)
from conveyord.core.raft.progress import Mode
from conveyord.core.raft.quorum import committed_index
from conveyord.core.raft.state import NEVER, Leadership, State
from conveyord.core.raft.types import Entry, Kind, NodeId, are_whole, size_of

# ------------------------------------------------------------------------------ the leader


def appended(state: State, leading: Leadership, first: int) -> None:
    """Entries were added to the leader's log, from `first` on: count them, promise its own copy, and send them."""
    leading.uncommitted_bytes += state.log.size(first, state.log.last + 1)
    state.outbox.promise(AppendReply(state.node, state.node, state.term, state.log.last))
    broadcast(state, leading)


def broadcast(state: State, leading: Leadership) -> None:
    """Send every peer what it lacks, as far as its limits allow."""
    for peer in leading.peers:
        send_entries(state, leading, peer)


def send_entries(state: State, leading: Leadership, peer: NodeId, *, even_if_none: bool = False) -> None:
    """Send one peer what it lacks. even_if_none: one message at least, to tell the commit index or to probe."""
    progress, log = leading.peers[peer], state.log
    while progress.may_send(state.options):
        if progress.next > log.last and not even_if_none:
            return
        even_if_none = False
        prev_term = log.term(progress.next - 1)
        if prev_term is None:
            progress.snapshot()
            state.outbox.snapshots.append(peer)
            return
        most_bytes = min(state.options.append_bytes, progress.limit_bytes(state.options))
        entries = log.slice(progress.next, log.last + 1, most_bytes)
        if entries is None:
            progress.fetching = progress.next
            state.outbox.fetches.append(Fetch(peer, progress.next, log.window, most_bytes))
            return
        _send(state, leading, peer, prev_term, entries)


def _send(state: State, leading: Leadership, peer: NodeId, prev_term: int, entries: tuple[Entry, ...]) -> None:
    progress = leading.peers[peer]
    prev_index = progress.next - 1
    state.outbox.send(Append(state.node, peer, state.term, prev_index, prev_term, entries, state.commit))
    progress.sent(prev_index + len(entries), size_of(entries))
    progress.told = state.commit


def on_fetched(state: State, leading: Leadership, event: Fetched) -> None:
    """Entries for a peer have been read from the disk."""
    progress = leading.peers.get(event.peer)
    if progress is None or progress.fetching != event.first:
        return  # it has moved on meanwhile
    progress.fetching = None
    prev_term = state.log.term(event.first - 1)
    if event.entries and prev_term is not None and progress.next == event.first and progress.may_send(state.options):
        _send(state, leading, event.peer, prev_term, event.entries)
    send_entries(state, leading, event.peer)


def send_heartbeats(state: State, leading: Leadership) -> None:
    """Tell every peer that the leader is there, and which reads wait."""
    for peer, progress in leading.peers.items():
        commit = min(progress.match, state.commit)
        state.outbox.send(Heartbeat(state.node, peer, state.term, commit, leading.reads.round))
    leading.heartbeat_at = state.now + state.options.heartbeat_seconds


def on_append_reply(state: State, leading: Leadership, message: AppendReply) -> None:
    """A peer, or this node's own disk, says what it has."""
    if message.sender == state.node:
        advance_commit(state, leading)
        return
    progress = leading.peers.get(message.sender)
    if progress is None:
        return
    progress.acked_at = state.now
    if message.index > state.log.last and not message.rejected:
        raise Corrupt(
            f"node {message.sender} has {message.index} entries of this leader's log, which ends at {state.log.last}; "
            f"a disk has lost what was promised: look for the node whose log was replaced, and remove it"
        )
    if message.rejected:
        _on_rejected(state, leading, message)
        return
    if progress.agreed(message.index):
        # Only then: if every reply to an append that came out of order had all that follow it sent again, there would
        # be ever more of them.
        if progress.mode is Mode.PROBE or (progress.mode is Mode.SNAPSHOT and progress.match >= state.log.base.index):
            progress.replicate()
        advance_commit(state, leading)
    send_entries(state, leading, message.sender)
    # It may have been at a limit when something was committed, and nothing follows that would tell it.
    _owe_commit(state, leading)


def _on_rejected(state: State, leading: Leadership, message: AppendReply) -> None:
    progress = leading.peers[message.sender]
    expected = progress.next - 1 if progress.mode is Mode.PROBE else message.index
    if message.index <= progress.match or message.index != expected or progress.mode is Mode.SNAPSHOT:
        return  # of a message that is out of date
    log, last = state.log, min(message.hint_index, message.index - 1)
    # What would have to agree may be compacted here: then the next look must find that, and send a snapshot.
    agree = log.last_not_above(last, message.hint_term) if last >= log.base.index else log.base.index - 1
    progress.probe(agree + 1)
    send_entries(state, leading, message.sender, even_if_none=True)


def on_heartbeat_reply(state: State, leading: Leadership, message: HeartbeatReply) -> None:
    """A peer follows this leader still."""
    progress = leading.peers.get(message.sender)
    if progress is None:
        return
    progress.acked_at = state.now
    progress.round = max(progress.round, message.round)
    progress.heard(state.options)
    if progress.match < state.log.last:
        # Lost appends show only when something follows them, so something must.
        send_entries(state, leading, message.sender, even_if_none=True)


def on_snapshot_sent(state: State, leading: Leadership, event: SnapshotSent) -> None:
    """A stream ended. If it did not arrive, the next look at the peer asks for another."""
    progress = leading.peers.get(event.peer)
    if progress is None or progress.mode is not Mode.SNAPSHOT:
        return
    progress.probe(progress.next if event.index is None else event.index + 1)
    if event.index is None:
        progress.is_waiting = True  # until its next sign of life: it may be gone
        return
    send_entries(state, leading, event.peer, even_if_none=True)


def advance_commit(state: State, leading: Leadership) -> None:
    """Commit what a quorum has on disk, if it is of this term: an older entry counts only with one after it (5.4.2)."""
    match = {peer: progress.match for peer, progress in leading.peers.items()}
    match[state.node] = state.log.stable
    index = committed_index(state.membership, match)
    if index <= state.commit or state.log.term(index) != state.term:
        return
    leading.uncommitted_bytes -= state.log.size(max(state.commit + 1, leading.first), index + 1)
    state.commit = index
    broadcast(state, leading)
    _owe_commit(state, leading)


def _owe_commit(state: State, leading: Leadership) -> None:
    """See to it that every peer learns what is committed: by the next entries that go to it, or else in a moment.

    A message of its own at once would cost each peer a turn and the leader a reply, just when the leader applies what
    it is waited for, and under load the next entries are about to go out.
    """
    if state.options.tell_seconds == 0:
        tell_commit(state, leading)
    elif leading.tell_at == NEVER and any(progress.told < state.commit for progress in leading.peers.values()):
        leading.tell_at = state.now + state.options.tell_seconds


def tell_commit(state: State, leading: Leadership) -> None:
    """Tell those peers what is committed that nothing has told. Who is at its limits is told after its next reply."""
    leading.tell_at = NEVER
    for peer, progress in leading.peers.items():
        if progress.told < state.commit:
            send_entries(state, leading, peer, even_if_none=True)


# ------------------------------------------------------------------------------ the followers


def on_append(state: State, message: Append) -> None:
    """Take a leader's entries, or say where the logs may agree. The sender is known to be the leader of this term."""
    log = state.log
    if not are_whole(message.entries):
        return  # damaged on its way or on the leader's disk: it will be sent again
    if message.prev_index < state.commit:
        # All of it up to here is committed: the leader has the same.
        known = state.commit - message.prev_index
        _check_committed(state, message, known)
        if known > len(message.entries):
            _agree(state, message, state.commit)
            return
        prev_index, entries = state.commit, message.entries[known:]
    else:
        prev_index, entries = message.prev_index, message.entries
        if log.term(prev_index) != message.prev_term:
            _reject(state, message)
            return
    first = log.conflict(entries)
    if first is not None:
        if first <= log.last:
            state.truncate(first)
        take(state, entries[first - prev_index - 1 :])
    end = prev_index + len(entries)
    state.commit = max(state.commit, min(message.commit, end))
    _agree(state, message, end)


def _check_committed(state: State, message: Append, known: int) -> None:
    """The newest place that both speak of and that is committed here must be the same."""
    index, term = message.prev_index, message.prev_term
    if message.entries:
        index, term = message.entries[min(known, len(message.entries)) - 1][:2]
    ours = state.log.term(index)
    if ours not in (None, term):
        raise Corrupt(
            f"entry {index} is committed here with term {ours}, and node {message.sender} has term {term} there; "
            f"a disk has lost what was promised: look for the node whose log was replaced, and remove it"
        )


def take(state: State, entries: Sequence[Entry]) -> None:
    """Add entries to the log; a membership among them is in force from now on."""
    state.log.extend(entries)
    membership = Kind.MEMBERSHIP
    for entry in entries:
        if entry.kind is membership:
            state.memberships.appended(entry.index, decode(entry.data))


def _agree(state: State, message: Append, index: int) -> None:
    state.outbox.promise(AppendReply(state.node, message.sender, state.term, index))


def _reject(state: State, message: Append) -> None:
    hint = state.log.last_not_above(message.prev_index, message.prev_term)
    hint_term = state.log.term(hint)
    assert hint_term is not None
    reply = AppendReply(state.node, message.sender, state.term, message.prev_index, True, hint, hint_term)
    state.outbox.promise(reply)


def on_heartbeat(state: State, message: Heartbeat) -> None:
    """The leader is there. It names no commit index that this node is not known to have."""
    state.commit = max(state.commit, min(message.commit, state.log.last))
    state.outbox.send(HeartbeatReply(state.node, message.sender, state.term, message.round))


def on_snapshot(state: State, event: SnapshotReceived) -> None:
    """Put a snapshot in the place of the log, unless the log has all of it."""
    mark, log = event.mark, state.log
    if mark.index > state.commit:
        if log.term(mark.index) == mark.term:
            state.commit = mark.index  # what follows it in the log stays
        else:
            log.reset(mark)
            state.memberships = Memberships(mark.index, event.membership)
            state.commit = state.handed = mark.index
            state.outbox.installed(Install(mark, event.membership))
    state.outbox.promise(AppendReply(state.node, event.sender, state.term, state.commit))
