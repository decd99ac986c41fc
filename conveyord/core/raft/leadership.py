"""What a leader does beside replication: proposals, members, handing over, and stepping down when it should.

A leader that no quorum answers for T steps down, so two leaders never serve reads side by side for long, and clients
of the old one look for the new. So does one whose disk is sick: it first tries to hand over, then falls silent, as
followers would otherwise be fed heartbeats by a leader that can commit nothing.
"""

from __future__ import annotations

from conveyord.core.errors import Refused
from conveyord.core.raft import membership
from conveyord.core.raft.membership import Change, Standing
from conveyord.core.raft.messages import (
    Accepted,
    ChangeMembers,
    DiskHealth,
    Dropped,
    NotLeader,
    Propose,
    TimeoutNow,
    Transfer,
)
from conveyord.core.raft.progress import Progress
from conveyord.core.raft.quorum import has_quorum
from conveyord.core.raft.reading import answer
from conveyord.core.raft.replication import appended, send_entries, send_heartbeats, take, tell_commit
from conveyord.core.raft.state import NEVER, Leadership, Role, State
from conveyord.core.raft.types import ENTRY_BYTES, Entry, Kind, make_entry


def lead(state: State) -> None:
    """Begin to lead in the present term, with an empty entry that commits what is there."""
    log, now, options = state.log, state.now, state.options
    state.role, state.leader = Role.LEADER, state.node
    state.election_at = NEVER
    leading = state.leading = Leadership(
        first=log.last + 1,
        heartbeat_at=now + options.heartbeat_seconds,
        quorum_at=now + options.election_timeout_seconds,
        peers={peer: Progress(next=log.last + 1, acked_at=now) for peer in state.others},
    )
    appended(state, leading, log.append(state.term, Kind.NOOP, b"").index)


def resign(state: State) -> None:
    """Stop leading, within the term."""
    abandon(state)
    state.follow(state.term, None)


def abandon(state: State) -> None:
    """Tell those who wait for reads that nobody confirms them here."""
    if state.leading is not None:
        for asker in state.leading.reads.abandon():
            answer(state, asker, None)


def tick(state: State, leading: Leadership) -> None:
    """Do what is due by time."""
    if state.now >= leading.transfer_until:
        leading.transfer_to, leading.transfer_until = None, NEVER
        if not state.is_well:
            resign(state)
            return
    if state.now >= leading.quorum_at:
        timeout = state.options.election_timeout_seconds
        present = {peer for peer, progress in leading.peers.items() if progress.acked_at > state.now - timeout}
        if not has_quorum(state.membership, present | {state.node}):
            resign(state)
            return
        leading.quorum_at = state.now + timeout
    if state.now >= leading.heartbeat_at:
        send_heartbeats(state, leading)
        urge(state, leading)
    if state.now >= leading.tell_at:
        tell_commit(state, leading)


# ------------------------------------------------------------------------------ proposals


def on_propose(state: State, event: Propose) -> None:
    """Append commands, or say why not. All of one event go the same way unless the limit falls between them."""
    leading, log, answers = state.leading, state.log, state.outbox.answers
    if leading is None or leading.transfer_to is not None:
        answers.extend(_dropped(state, number) for number, _ in event.commands)
        return
    bytes_max = state.options.uncommitted_bytes
    # Followers may commit what this node's disk does not keep up with: that waits in memory as well.
    left = bytes_max - max(leading.uncommitted_bytes, log.size(log.stable + 1, log.last + 1))
    taken, index = list[bytes](), log.last
    for number, data in event.commands:
        if left <= 0:
            reason = f"{bytes_max} bytes wait to be committed or written here; try again later"
            answers.append(Dropped(number, reason, None))
            continue
        left -= len(data) + ENTRY_BYTES
        taken.append(data)
        index += 1
        answers.append(Accepted(number, index, state.term))
    if taken:
        appended(state, leading, log.append_all(state.term, event.kind, taken)[0].index)


def _dropped(state: State, number: int) -> Dropped:
    """For a node that does not lead, or not any more as soon as another has everything."""
    if state.leading is None:
        return NotLeader(number, "this node does not lead", state.leader)
    target = state.leading.transfer_to
    return Dropped(number, f"leadership goes to node {target}; try again there", target)


def on_change_members(state: State, event: ChangeMembers) -> None:
    """Append a membership, or say why not. At most one is uncommitted, and none before an entry of this term is
    committed (Ongaro's note on single-server changes, 2015, which holds for joint ones as well).
    """
    leading = state.leading
    if leading is None or leading.transfer_to is not None:
        state.outbox.answers.append(_dropped(state, event.number))
        return
    try:
        _check_change(state, leading, event.changes)
        wanted = state.membership.changed(event.changes)
    except Refused as error:
        state.outbox.answers.append(Dropped(event.number, str(error), None))
        return
    entry = _append_membership(state, leading, wanted)
    state.outbox.answers.append(Accepted(event.number, entry.index, entry.term))


def _check_change(state: State, leading: Leadership, changes: tuple[Change, ...]) -> None:
    if state.commit < leading.first:
        raise Refused("this leader has committed nothing yet; try again in a moment")
    if state.memberships.index > state.commit:
        raise Refused("the members are being changed already; wait until that change is committed")
    for change in changes:
        if change.standing is not Standing.VOTER or change.node in state.membership.voters:
            continue
        progress = leading.peers.get(change.node)
        lag = state.log.last - (0 if progress is None else progress.match)
        if progress is None or lag > state.options.promotion_lag:
            raise Refused(
                f"node {change.node} lacks {lag} entries, at most {state.options.promotion_lag} for a voter; "
                f"add it as a learner first, and promote it when it has caught up"
            )


def _append_membership(state: State, leading: Leadership, wanted: membership.Membership) -> Entry:
    index, previous = state.log.last + 1, state.log.chain(state.log.last)
    assert previous is not None
    entry = make_entry(previous, index, state.term, Kind.MEMBERSHIP, membership.encode(wanted))
    take(state, (entry,))
    for peer in state.others:
        if peer not in leading.peers:
            leading.peers[peer] = Progress(next=entry.index, acked_at=state.now)
    for peer in [peer for peer in leading.peers if peer not in wanted.everyone]:
        # It hears of its removal if it can: what is on its way still gets there.
        send_entries(state, leading, peer)
        del leading.peers[peer]
    appended(state, leading, entry.index)
    return entry


def after_commit(state: State, leading: Leadership) -> None:
    """Something was committed: leave a joint membership, go if this node is no longer in it, let a successor begin."""
    if state.memberships.index <= state.commit:
        if state.membership.is_joint:
            _append_membership(state, leading, state.membership.left())
        elif state.node not in state.membership.voters:
            on_transfer(state, Transfer())
            resign(state)


# ------------------------------------------------------------------------------ handing over


def on_transfer(state: State, event: Transfer) -> None:
    """Hand over to a voter that has everything, as soon as it has. Nothing is accepted meanwhile, for T at most."""
    leading = state.leading
    if leading is None or leading.transfer_to is not None:
        return
    voters = [peer for peer in leading.peers if peer in state.membership.voters]
    if event.to is None and voters:
        target = max(voters, key=lambda peer: (leading.peers[peer].match, leading.peers[peer].acked_at, peer))
    elif event.to in voters and event.to is not None:
        target = event.to
    else:
        return
    leading.transfer_to = target
    leading.transfer_until = state.now + state.options.election_timeout_seconds
    urge(state, leading)


def urge(state: State, leading: Leadership) -> None:
    """Have the successor campaign if it has everything. Said again with every heartbeat, as it may be lost."""
    target = leading.transfer_to
    if target is not None and target in leading.peers and leading.peers[target].match == state.log.last:
        state.outbox.send(TimeoutNow(state.node, target, state.term))


def on_disk_health(state: State, event: DiskHealth) -> None:
    """See the module. A candidate gives up: nobody would tell it again when it leads."""
    state.is_well = event.is_well
    if event.is_well or state.role is Role.FOLLOWER:
        return
    if state.leading is None:
        state.follow(state.term, None)
    else:
        on_transfer(state, Transfer())
        if state.leading.transfer_to is None:
            resign(state)
