"""Who may lead (Raft paper, 5.2 and 5.4.1), with the pre-vote and the refusals of Ongaro's thesis, 9.6 and 4.2.3.

A vote of any kind is refused within T of hearing a leader, whatever its term: a node that was cut off or removed must
not depose a leader that others hear. Only a candidate that its leader has asked to take over is exempt.
"""

from __future__ import annotations

from conveyord.core.raft.leadership import lead
from conveyord.core.raft.messages import TimeoutNow, VoteReply, VoteRequest
from conveyord.core.raft.quorum import Verdict, verdict
from conveyord.core.raft.state import Role, State

NEEDED_TIMEOUTS = 2  # for so long it may campaign: its own time runs out within them


def tick(state: State) -> None:
    """Campaign if it is time."""
    if state.now < state.election_at:
        return
    if state.may_lead:
        campaign(state, pre=True)
    else:
        state.follow(state.term, None)


def campaign(state: State, *, pre: bool, transfer: bool = False) -> None:
    """Ask everyone for a vote, this node first. A pre-vote changes nothing that is kept."""
    state.leader = None
    state.fail_forwarded()
    state.votes.clear()
    state.wait()
    if pre:
        state.role, term = Role.PRE_CANDIDATE, state.term + 1
        state.votes[state.node] = True
        _count(state)
    else:
        state.role = Role.CANDIDATE
        state.term += 1
        state.vote, term = state.node, state.term
        state.outbox.promise(VoteReply(state.node, state.node, term, granted=True))
    if state.role is not (Role.PRE_CANDIDATE if pre else Role.CANDIDATE):
        return  # alone: it has gone on already
    log = state.log
    for voter in sorted(state.membership.electorate - {state.node}):
        request = VoteRequest(state.node, voter, term, log.last, log.last_term, pre, transfer)
        # A vote is asked for by what the log has, so the log must have it for good.
        state.outbox.promise(request)


def is_refused_unheard(state: State, message: VoteRequest) -> bool:
    """Whether a vote must be ignored because a leader is there."""
    if message.transfer:
        return False
    heard = state.now < state.heard_at + state.options.election_timeout_seconds
    return state.role is Role.LEADER or (state.leader is not None and heard)


def on_vote_request(state: State, message: VoteRequest) -> None:
    """Vote once per term, for nobody whose log is older. The term of a real vote is this node's by now."""
    log = state.log
    is_new_enough = (message.last_term, message.last_index) >= (log.last_term, log.last)
    if not is_new_enough:
        state.needed_until = state.now + NEEDED_TIMEOUTS * state.options.election_timeout_seconds
    if message.pre:
        granted = is_new_enough and message.term > state.term
        term = message.term if granted else state.term
        state.outbox.promise(VoteReply(state.node, message.sender, term, granted, pre=True))
        return
    granted = is_new_enough and state.leader is None and state.vote in (None, message.sender)
    if granted:
        state.vote = message.sender
        state.wait()
    state.outbox.promise(VoteReply(state.node, message.sender, state.term, granted))


def on_vote_reply(state: State, message: VoteReply) -> None:
    """Count a vote of the campaign that is under way."""
    if message.pre:
        if state.role is not Role.PRE_CANDIDATE or (message.granted and message.term != state.term + 1):
            return
    elif state.role is not Role.CANDIDATE:
        return
    state.votes.setdefault(message.sender, message.granted)
    _count(state)


def _count(state: State) -> None:
    found = verdict(state.membership, state.votes)
    if found is Verdict.LOST:
        state.follow(state.term, None)
    elif found is Verdict.WON and state.role is Role.PRE_CANDIDATE:
        campaign(state, pre=False)
    elif found is Verdict.WON:
        lead(state)


def on_timeout_now(state: State, message: TimeoutNow) -> None:
    """The leader makes room: no pre-vote, and voters need not wait until they miss it."""
    if message.sender == state.leader and state.may_lead:
        campaign(state, pre=False, transfer=True)
