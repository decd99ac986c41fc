"""A cluster whose network, disks and clock the test holds in its hands.

Nothing moves by itself: messages wait in `mail` and writes in `writes` until the test lets them go. `settle` lets
everything go until nothing is left.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import (
    Accepted,
    Applied,
    Dropped,
    Event,
    Fetch,
    Message,
    Persisted,
    Propose,
    ReadReady,
    Ready,
    Receive,
    Tick,
    Write,
)
from conveyord.core.raft.node import Loaded, RaftNode
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import BEGINNING, Entry, Kind, Mark, NodeId, Options, make_entry

DEFAULTS = Options()
T = DEFAULTS.election_timeout_seconds


def entries_of(terms: Iterable[int], *, after: Mark = BEGINNING) -> list[Entry]:
    """Commands of these terms, one after the other."""
    found, chain = list[Entry](), after.chain
    for index, term in enumerate(terms, after.index + 1):
        found.append(make_entry(chain, index, term, Kind.COMMAND, b"%d/%d" % (index, term)))
        chain = found[-1].chain
    return found


@dataclass(eq=False)
class Rig:
    """One node and what it has asked for that was not done yet."""

    node: RaftNode
    writes: list[Write] = field(default_factory=list)
    applied: list[Entry] = field(default_factory=list)
    likely: list[tuple[bytes, ...]] = field(default_factory=list)
    answers: list[Accepted | Dropped] = field(default_factory=list)
    reads: list[ReadReady] = field(default_factory=list)
    fetches: list[Fetch] = field(default_factory=list)
    snapshots: list[NodeId] = field(default_factory=list)


class Cluster:
    """Nodes by name. Elections come at T exactly unless `random` says otherwise, in the order of the names."""

    def __init__(
        self,
        names: str = "abc",
        *,
        loaded: dict[NodeId, Loaded] | None = None,
        options: Options = DEFAULTS,
        membership: Membership | None = None,
        tell_seconds: float = 0.0,
    ) -> None:
        """tell_seconds: in the place of that of `options`; what is committed is told at once, so that nothing moves by
        time alone.
        """
        self.now = 0.0
        self.options = replace(options, tell_seconds=tell_seconds)
        self.mail: list[Message] = []
        self.cut: Callable[[Message], bool] = lambda message: False
        self.membership = Membership(frozenset(names)) if membership is None else membership
        self.rigs: dict[NodeId, Rig] = {}
        for number, name in enumerate(names):
            found = (loaded or {}).get(name) or Loaded(membership=self.membership)
            self.start(name, found, share=number / len(names))

    def start(self, name: NodeId, loaded: Loaded, *, share: float = 0.5) -> Rig:
        """Start a node, or start it anew on what it has."""
        node = RaftNode(name, loaded, self.options, random=lambda: share, now=self.now)
        self.rigs[name] = Rig(node)
        return self.rigs[name]

    def __getitem__(self, name: NodeId) -> Rig:
        return self.rigs[name]

    def step(self, name: NodeId, event: Event) -> None:
        """One event; what it leads to is put where it waits."""
        rig = self.rigs[name]
        rig.node.step(event, self.now)
        self._take(name)

    def seen(self, name: NodeId, ready: Ready) -> None:
        """A node has asked for this. For those who watch."""

    def _take(self, name: NodeId) -> None:
        rig = self.rigs[name]
        ready = rig.node.ready()
        self.seen(name, ready)
        self.mail += ready.messages
        rig.answers += ready.answers
        rig.reads += ready.reads
        rig.fetches += ready.fetches
        rig.snapshots += ready.snapshots
        if ready.likely:
            rig.likely.append(tuple(entry.data for entry in ready.likely))
        if ready.write is not None:
            rig.writes.append(ready.write)
        if ready.committed:
            rig.applied += ready.committed
            self.step(name, Applied(ready.committed[-1].index))

    def sync(self, name: NodeId) -> None:
        """All writes of a node reach its disk."""
        rig = self.rigs[name]
        while rig.writes:
            token = rig.writes[-1].token
            rig.writes.clear()
            self.step(name, Persisted(token))

    def deliver(self, *, only: Callable[[Message], bool] = lambda message: True) -> list[Message]:
        """Deliver what is in the mail now, but for what is cut or not to be. Returns what was delivered."""
        due = [message for message in self.mail if only(message)]
        self.mail = [message for message in self.mail if not only(message)]
        due = [message for message in due if message.to in self.rigs and not self.cut(message)]
        for message in due:
            self.step(message.to, Receive(message))
        return due

    def settle(self) -> None:
        """Let everything go until nothing is left."""
        for _ in range(1_000):
            for name in self.rigs:
                self.sync(name)
            if not self.mail:
                return
            self.deliver()
        raise AssertionError(f"messages without an end: {self.mail[:5]}")

    def wait(self, seconds: float, *, settle: bool = True) -> None:
        """Let time pass; deadlines are kept in their order."""
        until = self.now + seconds
        while True:
            due = min((rig.node.deadline, name) for name, rig in self.rigs.items())
            if due[0] > until:
                break
            self.now = max(self.now, due[0])
            self.step(due[1], Tick())
            if settle:
                self.settle()
        self.now = until

    def elect(self, name: NodeId) -> Rig:
        """Make `name` the leader, by letting its time run out first."""
        self.rigs[name].node.state.election_at = self.now
        for rig in self.rigs.values():
            rig.node.state.heard_at = -float("inf")
        self.step(name, Tick())
        self.settle()
        assert self.rigs[name].node.state.role is Role.LEADER
        return self.rigs[name]

    def propose(self, name: NodeId, *commands: bytes) -> None:
        """Propose commands, numbered from zero."""
        self.step(name, Propose(tuple(enumerate(commands))))

    def roles(self) -> dict[NodeId, Role]:
        """What everyone is."""
        return {name: rig.node.state.role for name, rig in self.rigs.items()}

    def leader(self) -> NodeId | None:
        """The leader of the highest term, if there is one."""
        leading = [(rig.node.state.term, name) for name, rig in self.rigs.items() if rig.node.state.leading]
        return max(leading)[1] if leading else None

    def commands(self) -> dict[NodeId, list[bytes]]:
        """The commands that everyone has applied."""
        found = defaultdict(list)
        for name, rig in self.rigs.items():
            found[name] = [entry.data for entry in rig.applied if entry.kind is Kind.COMMAND]
        return dict(found)

    def terms(self, name: NodeId) -> list[int]:
        """The terms of a node's log, as far as it is in memory."""
        log = self.rigs[name].node.state.log
        return [entry.term for at in range(log.window, log.last + 1) if (entry := log.entry(at)) is not None]
