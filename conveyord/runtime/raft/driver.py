"""One member of a cluster at work: the task that owns its node, and everything that the node asks for.

    driver = Driver(node, log, state, transport, settings)
    await nursery.start(driver.run)
    driver.propose(command, done)          # `done` is called with the outcome
    index = await driver.read_index()      # the state may answer a linearizable read then

Whatever happens to the node goes through one mailbox, and one task steps it: all that has gathered, then `ready`, with
no await between. So a hundred proposals that come while the disk is busy are one message and one sync. The leader's own
disk writes while its messages are on their way.

| thread or task | does |
|---|---|
| the owner | steps the node, hands out what it asks for, in no order but that of writes |
| raft-log | writes in groups, reads, compacts: disk.py |
| raft-state | applies, switches to snapshots: applying.py |
| watching | tells the node that its disk is stalled or full, and when it is well again |
| snapshots | takes them, has the log compacted, streams them to peers: snapshots.py |

What the log or the state raises ends `run`, and must end the process: nobody knows what is on disk (DESIGN.md, law 2).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import NamedTuple

import structlog
import trio

from conveyord.core.errors import Refused, Retryable
from conveyord.core.raft.bundles import Asked, bundled, pack, unpack
from conveyord.core.raft.membership import Change, Membership
from conveyord.core.raft.messages import (
    Accepted,
    Applied,
    ChangeMembers,
    Dropped,
    Event,
    Message,
    Persisted,
    Propose,
    Read,
    Ready,
    Receive,
    SnapshotReceived,
    Tick,
    Transfer,
)
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.progress import Mode
from conveyord.core.raft.proposals import Proposals
from conveyord.core.raft.state import Role
from conveyord.core.raft.tried import Tried
from conveyord.core.raft.types import Entry, Kind, Mark, NodeId, size_of
from conveyord.runtime.nurseries import unwrapped
from conveyord.runtime.raft.applying import Applying, Later
from conveyord.runtime.raft.disk import Disk
from conveyord.runtime.raft.health import Health
from conveyord.runtime.raft.outcomes import Done, Outcome, Unknown
from conveyord.runtime.raft.ports import LogPort, StatePort, Transport
from conveyord.runtime.raft.snapshots import Policy, Snapshots
from conveyord.runtime.rpc.deadlines import Deadlines

log = structlog.get_logger(__name__)

PROPOSALS_MAX = 65_536  # that wait for their outcome
COMMAND_BYTES_MAX = 4 * 1024 * 1024
MESSAGES_MAX = 10_000  # of others that wait for a turn; Raft tolerates that more are lost
# A follower that has to write applies so much later, if nobody reads there: what is committed meanwhile is applied
# together, and costs less. What a client waits for is the write.
BEHIND_SECONDS = 0.01
BUSY_BYTES, BUSY_BEHIND_SECONDS = 32 * 1024, 0.05  # where so much is committed at once, and later still
TICK = Tick()
ENDED = "this node has ended"
TAKEN = "another leader's entry took its place; propose it anew"
CUT = "another leader's log took the place of the end of this one; propose it again"

Answer = Callable[[Outcome], None]


class Standing(NamedTuple):
    """Where a node stands. leader: as far as it knows. applied: what its state has."""

    role: Role
    term: int
    leader: NodeId | None
    commit: int
    applied: int


class PeerStatus(NamedTuple):
    """How far another member is, as the leader knows. lag: entries that it misses. heard_seconds: since it answered."""

    node: NodeId
    match: int
    lag: int
    heard_seconds: float
    is_caught_up: bool
    gets_snapshot: bool


@dataclass(slots=True, eq=False)
class _Readers:
    """Those who wait for one ticket."""

    is_ready: trio.Event = field(default_factory=trio.Event)
    is_confirmed: bool = False


class Driver:
    """See the module. Methods are for the trio thread."""

    def __init__(
        self, node: RaftNode, log: LogPort, state: StatePort, transport: Transport, policy: Policy | None = None
    ) -> None:
        """log, state: those that `node` was loaded from. policy: when snapshots are taken."""
        self._node = node
        self._transport = transport
        self._mail: list[Event] = []
        self._messages = 0  # of others, among them
        self._woken = trio.Event()
        self._proposals = Proposals()
        self._asked: list[Asked] = []
        self._answers: dict[int, Answer] = {}
        self._bundles: dict[int, list[int]] = {}  # the commands of each, by the number that stands for them
        self._number = 0
        self._readers = _Readers()
        self._has_readers = False
        self._reading: dict[int, _Readers] = {}
        self._ticket = 0
        self._changed = trio.Event()
        self._standing = self.standing
        self._sleep = trio.CancelScope()
        self._disk = Disk(log, self.tell, self._on_install, self._on_written)
        self._applying = Applying(state, self._on_applied, self._on_tried, self._on_switched)
        self._behind: Later | None = None
        self._tried = Tried()
        self._health = Health(log, self._disk, self._applying, node.state.options.election_timeout_seconds, self.tell)
        self._snapshots = Snapshots(node, self._disk, state, transport, policy or Policy(), self.tell)
        self.deadlines = Deadlines()
        """Of who waits for answers, kept while `run` runs."""
        self._has_ended = False
        self._failure: Exception | None = None
        self.dropped_messages = 0
        self.on_new_leader: list[Callable[[NodeId], None]] = []
        """Called when another node is known to lead, this one included. They must not raise."""

    @property
    def node_id(self) -> NodeId:
        """Of this node."""
        return self._node.state.node

    @property
    def standing(self) -> Standing:
        """Where the node stands now."""
        state = self._node.state
        return Standing(state.role, state.term, state.leader, state.commit, state.applied)

    @property
    def trouble(self) -> str:
        """Why the disk is sick; empty if it is well."""
        return self._health.trouble

    @property
    def membership(self) -> Membership:
        """Who is a member, by the last entry in the log that says so, committed or not."""
        return self._node.state.membership

    def peers(self) -> tuple[PeerStatus, ...]:
        """The others, in the order of their ids, if this node leads."""
        state = self._node.state
        if state.leading is None:
            return ()
        now, last, found = trio.current_time(), state.log.last, state.leading.peers
        return tuple(
            PeerStatus(
                peer,
                one.match,
                last - one.match,
                now - one.acked_at,
                last - one.match <= state.options.promotion_lag,
                one.mode is Mode.SNAPSHOT,
            )
            for peer, one in sorted(found.items())
        )

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take part until cancelled. Raises what the log, the state or the node raises; see the module."""
        try:
            with unwrapped():
                async with trio.open_nursery() as nursery:
                    for task in (
                        self._disk.run,
                        self._applying.run,
                        self._health.run,
                        self._snapshots.run,
                        self.deadlines.run,
                    ):
                        nursery.start_soon(task)
                    task_status.started()
                    await self._own()
        finally:
            self._end()

    def _end(self) -> None:
        """Nobody waits any more for what will never come."""
        self._has_ended = True
        self._tell_all(Unknown(ENDED))
        for readers in (self._readers, *self._reading.values()):
            readers.is_ready.set()

    # -------------------------------------------------------------------------- what others ask for

    def propose(self, command: bytes, answer: Answer, *, about: str | None = None) -> int:
        """Have a command appended; `answer` is called with what becomes of it, in the trio thread, and must not raise.

        about: the object that it is about, if others may share its entry; the state must know bundles then. Returns the
        number by which `forget` knows it. The answer may never come while there is no majority. Raises Refused for a
        command that is too large: it would not fit a message, or the reserve of a full disk.
        """
        if len(command) > COMMAND_BYTES_MAX:
            raise Refused(
                f"a command of {len(command)} bytes, at most {COMMAND_BYTES_MAX}; keep what is large elsewhere"
            )
        self._number = number = self._number + 1
        self._answers[number] = answer
        if self._has_ended:
            self._answer(number, Dropped(number, ENDED, None))
        elif len(self._answers) > PROPOSALS_MAX:
            self._answer(number, Dropped(number, f"{PROPOSALS_MAX} proposals wait here; try again later", None))
        else:
            self._asked.append(Asked(number, command, about))
            self._woken.set()
        return number

    def change_members(self, changes: Sequence[Change], answer: Answer) -> int:
        """Ask for other members, likewise."""
        self._number = number = self._number + 1
        self._answers[number] = answer
        if self._has_ended:
            self._answer(number, Dropped(number, ENDED, None))
        self.tell(ChangeMembers(number, tuple(changes)))
        return number

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        self._answers.pop(number, None)

    async def read_index(self) -> int:
        """Wait until the state may answer a read that is linearizable from now on; returns the index that it has.

        Raises Retryable if no leader confirms it, or this node has ended; ask again.
        """
        if self._has_ended:
            raise Retryable(ENDED)
        readers, self._has_readers = self._readers, True
        self._woken.set()
        await readers.is_ready.wait()
        if not readers.is_confirmed:
            raise Retryable("no leader confirms reads at the moment; try again")
        return self._node.state.applied

    async def until(self, holds: Callable[[Standing], bool]) -> Standing:
        """Wait until something is so; it may be otherwise again by then."""
        while not holds(self.standing):
            await self._changed.wait()
        return self.standing

    def transfer(self, to: NodeId | None = None) -> None:
        """Hand leadership over, to `to` or to whoever is closest, if this node leads; `until` sees it come about."""
        self.tell(Transfer(to))

    def receive(self, message: Message, *, hurries: bool = False) -> None:
        """A message of another node has come. Some are dropped when too many wait.

        hurries: the caller calls `hurry` when it has told all that came, so the owner need not be woken.
        """
        if message.to != self.node_id:
            raise Refused(f"a Raft message for node {message.to} came to node {self.node_id}; mend its address")
        if self._messages >= MESSAGES_MAX:
            self.dropped_messages += 1
            return
        self._messages += 1
        self._mail.append(Receive(message))
        if not hurries:
            self._woken.set()

    def snapshot_received(self, sender: NodeId, term: int, mark: Mark, members: Membership) -> None:
        """A snapshot is staged: tell the node before the sender hears of it. term: in which it was asked to send it."""
        self.tell(SnapshotReceived(sender, term, mark, members))

    def tell(self, event: Event) -> None:
        """Put something into the mailbox."""
        self._mail.append(event)
        self._woken.set()

    # -------------------------------------------------------------------------- the owner

    async def _own(self) -> None:
        while True:
            with trio.CancelScope(deadline=self._node.deadline) as self._sleep:
                await self._woken.wait()
            self._woken = trio.Event()
            if self._failure is not None:
                raise self._failure
            self._turn()

    def hurry(self) -> None:
        """Take the turn now, and not after all tasks that are due: for who has just told all that there is to tell.

        A message, or the end of a write, would wait for a pass of the event loop otherwise, at each of the nodes that
        it goes through. What fails is raised by `run`: the caller has nothing to do with it.
        """
        if self._mail and self._failure is None and not self._has_ended:
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - see above
                self._failure = error
                self._woken.set()
            if self._node.deadline < self._sleep.deadline:
                self._sleep.deadline = self._node.deadline

    def _turn(self) -> None:
        """All that has gathered, and what follows from it."""
        node, now = self._node, trio.current_time()
        mail, self._mail, self._messages = self._mail, [], 0
        for event in mail:
            node.step(event, now)
        if self._asked:
            self._propose(now)
        if self._has_readers:
            self._ticket += 1
            self._reading[self._ticket] = self._readers
            self._readers, self._has_readers = _Readers(), False
            self._catch_up()
            node.step(Read(self._ticket), now)
        if now >= node.deadline:
            node.step(TICK, now)
        self._do(node.ready())
        self._note(self.standing)

    def _propose(self, now: float) -> None:
        """All that was asked, in as few entries as may be. Those about one object stay in their order."""
        asked, self._asked = self._asked, []
        for kind, bundles in groupby(bundled(asked), lambda bundle: Kind.COMMAND if len(bundle) == 1 else Kind.BUNDLE):
            self._node.step(Propose(tuple(map(self._proposal, bundles)), kind), now)

    def _proposal(self, bundle: Sequence[Asked]) -> tuple[int, bytes]:
        if len(bundle) == 1:
            return bundle[0].number, bundle[0].command
        self._number += 1
        self._bundles[self._number] = [one.number for one in bundle]
        return self._number, pack([one.command for one in bundle])

    def _do(self, ready: Ready) -> None:
        """Threads last: as soon as one has something to do, this one shares the interpreter with it."""
        for message in ready.messages:
            self._transport.send(message)
        if ready.messages:
            self._transport.flush()
        accepted = self._proposals.accepted
        for answer in ready.answers:
            if isinstance(answer, Accepted):
                accepted(answer)
            else:
                self._answer(answer.number, answer)
        self._answer_tried()
        for read in ready.reads:
            readers = self._reading.pop(read.ticket)
            readers.is_confirmed = read.is_confirmed
            readers.is_ready.set()
        if ready.write is not None:
            self._disk.write(ready.write)
            if ready.write.truncate_from is not None:
                for number in self._proposals.beyond(self._node.state.log.last):
                    self._answer(number, Unknown(CUT))
        for fetch in ready.fetches:
            self._disk.fetch(fetch)
        for peer in ready.snapshots:
            self._snapshots.send(peer, self._node.state.term)
        if ready.likely:
            self._applying.try_out(ready.likely)
        if ready.committed:
            self._apply(ready.committed, is_urgent=ready.write is None or self._node.state.role is Role.LEADER)

    def _apply(self, entries: tuple[Entry, ...], *, is_urgent: bool) -> None:
        if is_urgent or self._reading:
            self._applying.apply(entries)
        else:
            self._behind = self._applying.later(entries)
            self.deadlines.add(trio.current_time() + self._behind_seconds(entries), self._behind)

    def _catch_up(self) -> None:
        """Apply now what was to be applied later."""
        if self._behind is not None and self._behind.is_open:
            self._behind.expire()

    def _behind_seconds(self, entries: Sequence[Entry]) -> float:
        """Where much is to be applied, each member waits for another time: all do it at once otherwise, and a leader
        finds no majority that is quick to write.
        """
        if size_of(entries) < BUSY_BYTES:
            return BEHIND_SECONDS
        members = sorted(self.membership.everyone | {self.node_id})
        return BUSY_BEHIND_SECONDS * (1 - members.index(self.node_id) / (2 * len(members)))

    def _note(self, now: Standing) -> None:
        before, self._standing = self._standing, now
        if now == before:
            return
        if now[:3] != before[:3]:
            log.info(_sentence(before, now), node=self.node_id, term=now.term, leader=now.leader)
        if now.leader not in (None, before.leader):
            for tell in self.on_new_leader:
                tell(now.leader)
            if self.trouble and now.leader != self.node_id:
                # It may go on with them; here, nobody knows when the disk lets anyone tell what became of them.
                self._tell_all(Unknown(f"node {now.leader} leads, and here {self.trouble}"))
        if now.role is Role.LEADER and before.role is not Role.LEADER:
            self._catch_up()
        if now.role is not Role.LEADER and before.role is Role.LEADER:
            self._snapshots.give_up()
            self._tried = Tried()
            self._applying.forget()
        self._changed.set()
        self._changed = trio.Event()

    # -------------------------------------------------------------------------- what comes of it

    def _answer(self, number: int, outcome: Outcome) -> None:
        numbers = self._bundles.pop(number, None)
        if numbers is not None:
            self._answer_all(numbers, outcome)
            return
        answer = self._answers.pop(number, None)
        if answer is not None:
            answer(outcome)

    def _answer_all(self, numbers: Sequence[int], outcome: Outcome) -> None:
        """The commands of a bundle, by the outcome of its entry."""
        if isinstance(outcome, Done):
            for number, reply in zip(numbers, unpack(outcome.reply), strict=True):
                self._answer(number, Done(outcome.index, reply))
            return
        for number in numbers:
            self._answer(number, replace(outcome, number=number) if isinstance(outcome, Dropped) else outcome)

    def _tell_all(self, outcome: Outcome) -> None:
        answers, self._answers = self._answers, {}
        self._bundles.clear()
        for answer in answers.values():
            answer(outcome)

    def _on_applied(self, entries: Sequence[Entry], replies: Sequence[bytes]) -> None:
        self.tell(Applied(entries[-1].index))
        if self._proposals.wait_for(entries[0].index, entries[-1].index):  # none does if all was tried out before
            self._reply(entries, replies)
        self._snapshots.applied(entries[-1].index)

    def _on_tried(self, entries: Sequence[Entry], replies: Sequence[bytes]) -> None:
        if self._node.state.role is Role.LEADER:
            self._tried = Tried(entries, replies)
            self._answer_tried()

    def _answer_tried(self) -> None:
        """Answer what is committed by now. The state has it a little later, and reads wait for that."""
        state = self._node.state
        done, self._tried = self._tried.up_to(state.commit, state.log)
        self._reply(*done)

    def _reply(self, entries: Sequence[Entry], replies: Sequence[bytes]) -> None:
        """Entries are committed, and reply this: to who proposed them, if that was here."""
        for entry, reply in zip(entries, replies, strict=True):
            answered, lost = self._proposals.committed(entry.index, entry.term)
            for number in answered:
                self._answer(number, Done(entry.index, reply))
            for number in lost:
                self._answer(number, Dropped(number, TAKEN, None))

    def _on_written(self, persisted: Persisted) -> None:
        self._mail.append(persisted)
        self.hurry()

    def _on_install(self, mark: Mark) -> None:
        self._applying.switch(mark)

    def _on_switched(self, before: Mark, mark: Mark) -> None:
        log.info("the state is that of a snapshot now", node=self.node_id, index=mark.index, before=before.index)
        for number in self._proposals.skipped(mark.index):
            self._answer(number, Unknown("a snapshot has overtaken it"))
        self.tell(Applied(mark.index))
        self._snapshots.switched(mark.index)


def _sentence(before: Standing, now: Standing) -> str:
    if now.role is Role.LEADER:
        return "this node leads"
    if before.role is Role.LEADER:
        return "this node leads no more"
    if now.role is not Role.FOLLOWER:
        return "no leader is heard; this node asks for votes"
    return "another node leads" if now.leader is not None else "nobody is known to lead"
