"""A state becomes the directory of a node that is a cluster of one, to which others can be added.

The log begins after the mark of the state, with the members of then, as if a snapshot had been installed. What makes
the node the only voter stands behind that, as entries of a term of its own which it could have written as a leader:

| entry | what it does |
|---|---|
| membership | the node is the only voter; watchers are told that the others are gone |
| `session.open`, `cluster.restored` | gives the cluster a history of its own: old cursors are worth nothing |
| `member.state`, `member.forget` | of each member that the state knows: whoever starts again joins anew |

So state, log and snapshots say the same of the members at every index, and there is no moment at which the node works
with the old history. The entries count as committed: the only one who is asked has them on disk.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from conveyord.core.errors import ConfigError
from conveyord.core.raft.membership import Membership, encode
from conveyord.core.raft.messages import Install, Write
from conveyord.core.raft.types import Entry, HardState, Kind, Mark, make_entry
from conveyord.core.state.codec import Codec
from conveyord.core.state.commands import ClusterRestored, Command, Envelope, MemberForget, MemberState, SessionOpen
from conveyord.core.state.machine import MACHINE
from conveyord.core.state.members import LEFT
from conveyord.core.state.names import wrong_id
from conveyord.core.state.rows import ClusterRow, MemberRow
from conveyord.storage.identity import Identity, keep_identity
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.state.tables import Tables
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.store import StateStore

NAME_CHARS_MAX = 64  # of an id, see core/state/names.py


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a state does not say. term: one that no entry of the cluster has. actor: on whose behalf. at_ms: Unix time.

    node, incarnation: as before its first start; the state may know of a later one. history: an id that was never used.
    """

    node: str
    incarnation: int
    history: str
    term: int
    actor: str
    at_ms: int


@dataclass(frozen=True, slots=True)
class Contents:
    """What of a state is needed to go on from it."""

    place: Place
    cluster: ClusterRow
    members: tuple[MemberRow, ...]


def contents_of(store: StateStore) -> Contents:
    """Blocking. What an open state says."""
    with store.reader() as reader:
        tables = Tables(reader.connection.cursor())
        return Contents(reader.place(), tables.cluster(), tuple(tables.members()))


def cluster_name(cluster_id: str, history: str) -> str:
    """What nodes of a restored cluster call it in their greetings, so that nodes of before are refused: an id.

    The cluster's id gives way where both are too long.
    """
    room = NAME_CHARS_MAX - len(history) - 1
    return f"{cluster_id[:room]}.{history}" if room > 0 else history


def is_named_after(name: str, cluster_id: str) -> bool:
    """Whether nodes that call their cluster `name` are of this one, be it restored or not.

    An id may have dots, so a cluster of another id can look so; never the other way round, but for endless histories.
    """
    histories = (name[at + 1 :] for at, char in enumerate(name) if char == ".")
    return name == cluster_id or any(cluster_name(cluster_id, history) == name for history in histories)


def check_names(*, history: str, node: str | None) -> None:
    """Raise ConfigError for what can be no id."""
    for what, value in (("history", history), ("node", node)):
        if value is not None and (wrong := wrong_id(what, value)) is not None:
            raise ConfigError(wrong.message)


def begin_alone(directory: Path, contents: Contents, beginning: Beginning) -> Identity:
    """Write `node.json` and the log of the node beside its state, which is in `directory` already; durable on return.

    Raises what `RaftLog` does.
    """
    mark, membership = contents.place
    entries = first_entries(mark, contents.members, beginning)
    log = RaftLog(directory / "raft" / "raft.db", node=beginning.node)
    try:
        log.load(0)
        hard_state = HardState(beginning.term, beginning.node, entries[-1].index)
        log.write(Write(0, hard_state, None, entries, Install(mark, membership)))
    finally:
        log.close()
    # Not below what the state knows of the node: before it has applied what forgets it, that is what it looks at.
    known = [row.incarnation for row in contents.members if row.node == beginning.node]
    incarnation = max(beginning.incarnation, *known, 0)
    name = cluster_name(contents.cluster.id, beginning.history)
    identity = Identity(beginning.node, incarnation, name, has_log=True)
    keep_identity(directory, identity)
    return identity


def first_entries(mark: Mark, members: Iterable[MemberRow], beginning: Beginning) -> tuple[Entry, ...]:
    """The entries after `mark`; see above."""
    codec, session = Codec(MACHINE.commands), mark.index + 2
    made = list[Entry]()

    def add(kind: Kind, data: bytes) -> None:
        chain = made[-1].chain if made else mark.chain
        made.append(make_entry(chain, mark.index + len(made) + 1, beginning.term, kind, data))

    def envelope(command: Command, number: int) -> bytes:
        its = session if number else 0
        return codec.encode(Envelope(its, number, number, beginning.at_ms, beginning.actor, command))

    add(Kind.MEMBERSHIP, encode(Membership(frozenset({beginning.node}))))
    add(Kind.COMMAND, envelope(SessionOpen(), 0))
    commands: list[Command] = [ClusterRestored(beginning.history)]
    for row in members:
        if row.state != LEFT:
            commands.append(MemberState(row.node, row.incarnation, LEFT))
        commands.append(MemberForget(row.node))
    for number, command in enumerate(commands, 1):
        add(Kind.COMMAND, envelope(command, number))
    return tuple(made)
