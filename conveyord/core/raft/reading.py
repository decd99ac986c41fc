"""The way of a linearizable read through leader and follower; `reads.py` has its states."""

from __future__ import annotations

from heapq import heappop, heappush

from conveyord.core.raft.messages import Read, ReadReady, ReadReply, ReadRequest
from conveyord.core.raft.quorum import has_quorum
from conveyord.core.raft.reads import Asker
from conveyord.core.raft.replication import send_heartbeats
from conveyord.core.raft.state import Leadership, State


def on_read(state: State, event: Read) -> None:
    """Somebody here wants to read."""
    if len(state.forwarded) + len(state.confirmed) >= state.options.reads:
        answer(state, Asker(state.node, event.ticket), None)
    elif state.leading is not None:
        gather(state, state.leading, Asker(state.node, event.ticket))
    elif state.leader is not None:
        # Not the ticket, which the driver may use again: a late reply to an older read would stand for this one.
        state.asked += 1
        state.forwarded[state.asked] = event.ticket, state.now + state.options.election_timeout_seconds
        state.outbox.send(ReadRequest(state.node, state.leader, state.term, state.asked))
    else:
        answer(state, Asker(state.node, event.ticket), None)


def gather(state: State, leading: Leadership, asker: Asker) -> None:
    """Take a read, unless too many wait."""
    if len(leading.reads) < state.options.reads:
        leading.reads.gathered.append(asker)
    else:
        answer(state, asker, None)


def on_read_request(state: State, message: ReadRequest) -> None:
    """A follower forwards a read."""
    asker = Asker(message.sender, message.number)
    if state.leading is None:
        answer(state, asker, None)
    else:
        gather(state, state.leading, asker)


def on_read_reply(state: State, message: ReadReply) -> None:
    """The leader has confirmed a read of ours, or cannot."""
    found = state.forwarded.pop(message.number, None)
    if found is not None:
        answer(state, Asker(state.node, found[0]), message.index)


def answer(state: State, asker: Asker, index: int | None) -> None:
    """Tell who reads what must be applied first; None if it must ask again."""
    if asker.node != state.node:
        state.outbox.send(ReadReply(state.node, asker.node, state.term, asker.number, index))
    elif index is None:
        state.outbox.reads.append(ReadReady(asker.number, is_confirmed=False))
    else:
        heappush(state.confirmed, (index, asker.number))


def proceed(state: State) -> None:
    """Do for reads what has become possible: open a round, close one, hand over what is applied, give up on the old."""
    leading = state.leading
    if leading is not None and state.commit >= leading.first:
        _close_round(state, leading)
        if leading.reads.begin(state.commit):
            send_heartbeats(state, leading)
            _close_round(state, leading)  # who is alone has its quorum already
    while state.confirmed and state.confirmed[0][0] <= state.applied:
        state.outbox.reads.append(ReadReady(heappop(state.confirmed)[1], is_confirmed=True))
    while state.forwarded_until <= state.now:
        _, (ticket, _) = state.forwarded.popitem(last=False)
        state.outbox.reads.append(ReadReady(ticket, is_confirmed=False))


def _close_round(state: State, leading: Leadership) -> None:
    reads = leading.reads
    present = {peer for peer, progress in leading.peers.items() if progress.round >= reads.round}
    if reads.asked and has_quorum(state.membership, present | {state.node}):
        for asker in reads.confirm():
            answer(state, asker, reads.index)
