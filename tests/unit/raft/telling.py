"""Short, stable words for what nodes say, write and are: the language of the transcripts.

`3@2` is entry 3 with term 2; `log 1 1 2*7` are the terms of a log; `{abcd & abc, learners e}` is a joint membership.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

from conveyord.core.raft.log import Log
from conveyord.core.raft.membership import Membership, decode
from conveyord.core.raft.messages import (
    Append,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    ReadReply,
    ReadRequest,
    TimeoutNow,
    VoteReply,
    VoteRequest,
    Write,
)
from conveyord.core.raft.state import Role, State
from conveyord.core.raft.types import Entry, Kind

RUN = 4  # equal terms that are counted, not listed


def members(membership: Membership) -> str:
    """Who votes, and who else there is."""
    parts = ["".join(sorted(membership.voters))]
    parts[0] += f" & {''.join(sorted(membership.outgoing))}" if membership.outgoing else ""
    parts += [f"learners {''.join(sorted(membership.learners))}"] if membership.learners else []
    parts += [f"demoted {''.join(sorted(membership.demoted))}"] if membership.demoted else []
    return f"{{{', '.join(parts)}}}"


def content(entry: Entry) -> str:
    """What an entry is for."""
    if entry.kind is Kind.MEMBERSHIP:
        return members(decode(entry.data))
    return "noop" if entry.kind is Kind.NOOP else entry.data.decode()


def place(index: int, term: int) -> str:
    """Where in a log."""
    return f"{index}@{term}"


def entries(found: Iterable[Entry]) -> str:
    """Entries one by one, or the first and the last of many."""
    listed = [f"{place(entry.index, entry.term)} {content(entry)}" for entry in found]
    if len(listed) > RUN:
        listed = [listed[0], f"... {len(listed)} entries ...", listed[-1]]
    return f"[{', '.join(listed)}]"


def message(found: Message) -> str:
    """One message, with who sends it to whom and the term that it has."""
    return f"{found.sender}>{found.to} t{found.term} {_says(found)}"


def _says(found: Message) -> str:
    match found:
        case VoteRequest():
            name = "PreVote" if found.pre else "Vote"
            return f"{name} log {place(found.last_index, found.last_term)}{' transfer' if found.transfer else ''}"
        case VoteReply():
            return f"{'PreVoteReply' if found.pre else 'VoteReply'} {'yes' if found.granted else 'no'}"
        case Append():
            after = place(found.prev_index, found.prev_term)
            return f"Append after {after} {entries(found.entries)} commit {found.commit}"
        case AppendReply() if found.rejected:
            return f"AppendReply lacks {found.index}, perhaps {place(found.hint_index, found.hint_term)}"
        case AppendReply():
            return f"AppendReply has {found.index}"
        case Heartbeat():
            return f"Heartbeat commit {found.commit} round {found.round}"
        case HeartbeatReply():
            return f"HeartbeatReply round {found.round}"
        case TimeoutNow():
            return "TimeoutNow"
        case ReadRequest():
            return f"ReadRequest {found.number}"
        case ReadReply():
            return f"ReadReply {found.number} {'refused' if found.index is None else f'at {found.index}'}"
    raise AssertionError(found)


def write(found: Write) -> str:
    """One transaction."""
    parts = list[str]()
    if found.install is not None:
        mark = found.install.mark
        parts.append(f"snapshot {place(mark.index, mark.term)} {members(found.install.membership)}")
    parts += [f"drop from {found.truncate_from}"] if found.truncate_from is not None else []
    parts += [entries(found.entries)] if found.entries else []
    if found.hard_state is not None:
        term, vote, commit = found.hard_state
        parts.append(f"term {term} vote {vote or '-'} commit {commit}")
    return ", ".join(parts)


def role(state: State) -> str:
    """What a node is."""
    follows = state.leader if state.role is Role.FOLLOWER and state.leader else None
    return f"{state.role.value}{f' of {follows}' if follows else ''}, term {state.term}"


def log(found: Log) -> str:
    """The terms of a log, after its base if it was compacted."""
    base = found.base
    listed = [f"({place(base.index, base.term)})"] if base.index else []
    terms = [found.term(index) for index in range(base.index + 1, found.last + 1)]
    for term, run in groupby(terms):
        length = len(list(run))
        listed += [f"{term}*{length}"] if length > RUN else [str(term)] * length
    return " ".join(listed) or "-"
