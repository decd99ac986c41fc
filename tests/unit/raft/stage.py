"""A cluster that tells what happens, and moves by hand: the stage of the transcripts.

Nothing moves by itself. `write` lines say what a node asks of its disk, `disk` lines that it is there; a message is
told when it arrives, or that it was lost. Every node has a disk that outlives a crash, and the smallest replicated
state that shows what sessions do: a counter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from conveyord.core.raft.membership import NOBODY, Membership, decode
from conveyord.core.raft.messages import (
    Accepted,
    Applied,
    Fetched,
    Message,
    Persisted,
    Ready,
    Receive,
    Write,
)
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.sessions import SessionExpired, Sessions
from conveyord.core.raft.types import BEGINNING, BLANK, Entry, HardState, Kind, Mark, NodeId, Options, size_of
from tests.unit.raft import telling
from tests.unit.raft.rig import Cluster


@dataclass(slots=True)
class Platter:
    """What a crash leaves."""

    hard_state: HardState = BLANK
    base: Mark = BEGINNING
    membership: Membership = NOBODY
    entries: list[Entry] = field(default_factory=list)

    def land(self, write: Write) -> None:
        """One transaction."""
        if write.install is not None:
            self.base, self.membership, self.entries = write.install.mark, write.install.membership, []
        if write.truncate_from is not None:
            del self.entries[write.truncate_from - self.base.index - 1 :]
        self.entries += write.entries
        self.hard_state = write.hard_state or self.hard_state

    def loaded(self, applied: int) -> Loaded:
        """What a node that starts finds."""
        changes = [(entry.index, decode(entry.data)) for entry in self.entries if entry.kind is Kind.MEMBERSHIP]
        return Loaded(self.hard_state, self.base, self.membership, changes, (), self.entries, applied)


class Counter:
    """`register` opens a session; `SESSION.NUMBER<ACKNOWLEDGED +N` adds once, and replies with the sum."""

    def __init__(self) -> None:
        self.sum, self.sessions = 0, Sessions(sessions_max=2)

    def apply(self, entry: Entry) -> str:
        """The reply."""
        words = entry.data.decode()
        if words == "register":
            return f"session {self.sessions.register(entry.index)}"
        head, plus, number = words.partition("+")
        if not plus:
            return ""
        session, _, rest = head.partition(".")
        at, _, below = rest.partition("<")
        try:
            return self.sessions.apply(int(session), int(at), int(below), lambda: self._add(int(number))).decode()
        except SessionExpired:
            return "SESSION_EXPIRED"

    def _add(self, number: int) -> bytes:
        self.sum += number
        return b"sum %d" % self.sum


class Stage(Cluster):
    """A cluster that tells. Everything that is said since the last look is in `said`."""

    def __init__(self, names: str, membership: Membership, loaded: dict[NodeId, Loaded], options: Options) -> None:
        self.said = list[str]()
        self.slow = set[NodeId]()
        self.cuts = list[Callable[[Message], bool]]()
        self.platters = {name: Platter(membership=membership) for name in names}
        self.counters = {name: Counter() for name in names}
        self.known = dict[NodeId, tuple[str, int]]()
        self.lost = dict[NodeId, int]()
        for name, found in loaded.items():
            self.platters[name].entries, self.platters[name].hard_state = list(found.entries), found.hard_state
        super().__init__(names, loaded=loaded, options=options, membership=membership)
        self.cut = self._is_cut
        self._look()

    def _is_cut(self, message: Message) -> bool:
        return any(cut(message) for cut in self.cuts)

    def say(self, text: str) -> None:
        """Tell."""
        self.said.append(text)

    def seen(self, name: NodeId, ready: Ready) -> None:
        """Tell what became of a node, and what it asks for."""
        state, old = self[name].node.state, self.known[name]
        new = self.known[name] = (telling.role(state), state.commit)
        if new[0] != old[0]:
            self.say(f"  {name}: {new[0]}")
        for answer in ready.answers:
            is_in = isinstance(answer, Accepted)
            at = telling.place(answer.index, answer.term) if isinstance(answer, Accepted) else f"({answer.reason})"
            self.say(f"  {name}: proposal {answer.number} {'accepted at' if is_in else 'dropped'} {at}")
        if ready.write is not None:
            self.say(f"  {name}: write {telling.write(ready.write)}")
        for fetch in ready.fetches:
            self.say(f"  {name}: fetch {fetch.first} to {fetch.end - 1} for {fetch.peer}")
        for peer in ready.snapshots:
            self.say(f"  {name}: snapshot wanted for {peer}")
        if new[1] != old[1]:
            self.say(f"  {name}: commit {new[1]}")
        for entry in ready.committed:
            reply = self.counters[name].apply(entry) if entry.kind is Kind.COMMAND else ""
            self.say(f"  {name}: apply {entry.index} {telling.content(entry)}{f' -> {reply}' if reply else ''}")
        for read in ready.reads:
            self.say(f"  {name}: read {read.ticket} {'may be answered' if read.is_confirmed else 'must ask again'}")

    def _look(self) -> None:
        for name, rig in self.rigs.items():
            self.known[name] = (telling.role(rig.node.state), rig.node.state.commit)

    def start(self, name: NodeId, loaded: Loaded, *, share: float = 0.5) -> object:  # type: ignore[override]
        """As before; what it begins with is no news."""
        rig = super().start(name, loaded, share=share)
        rig.node.state.asked = 0  # else it is a number that nobody likes to read
        self.known[name] = (telling.role(rig.node.state), rig.node.state.commit)
        return rig

    def sync(self, name: NodeId) -> None:
        """Not for a node whose disk is slow."""
        if name not in self.slow:
            self.persist(name)

    def persist(self, name: NodeId) -> None:
        """What was written reaches the disk."""
        for _ in range(len(self[name].writes)):
            self.land(name)

    def land(self, name: NodeId) -> None:
        """The first thing that was written reaches the disk."""
        write = self[name].writes.pop(0)
        self.platters[name].land(write)
        self.say(f"{name}'s disk: write {write.token}")
        self.step(name, Persisted(write.token))
        if write.install is not None:
            self.step(name, Applied(write.install.mark.index))

    def deliver(self, *, only: Callable[[Message], bool] = lambda message: True) -> list[Message]:
        """One round of what is in the mail; what is cut, or for who is down, is lost."""
        due = [message for message in self.mail if only(message)]
        self.mail = [message for message in self.mail if not only(message)]
        for message in due:
            if message.to not in self.rigs or self.cut(message):
                self.say(f"{telling.message(message)}: lost")
            else:
                self.say(telling.message(message))
                self.step(message.to, Receive(message))
        return due

    def fetched(self, name: NodeId) -> None:
        """Answer the first thing that a node wants to read from its disk."""
        fetch, platter = self[name].fetches.pop(0), self.platters[name]
        found = list[Entry]()
        for entry in platter.entries[fetch.first - platter.base.index - 1 : fetch.end - platter.base.index - 1]:
            if found and size_of([*found, entry]) > fetch.bytes_max:
                break
            found.append(entry)
        self.step(name, Fetched(fetch.peer, fetch.first, tuple(found)))

    def crash(self, name: NodeId) -> None:
        """What did not reach the disk is lost. The state has what was applied: replay gives the rest again."""
        self.lost[name] = self[name].node.state.applied
        del self.rigs[name]

    def restart(self, name: NodeId) -> None:
        """On what is on its disk."""
        self.start(name, self.platters[name].loaded(self.lost.pop(name)))
