"""One process of the simulated cluster: what a driver does round the core, and how it dies."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING, Any, get_args

from conveyord.core.raft.messages import (
    Accepted,
    Applied,
    Compacted,
    DiskHealth,
    Event,
    Fetch,
    Fetched,
    Message,
    Persisted,
    Propose,
    Read,
    Ready,
    Receive,
    SnapshotReceived,
    SnapshotSent,
    Tick,
)
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.proposals import Proposals
from conveyord.core.raft.tried import Tried
from conveyord.core.raft.types import Entry, Mark
from tests.sim.disk import Disk, Quarantined, Snapshot, take_snapshot
from tests.sim.machine import Machine

if TYPE_CHECKING:
    from tests.sim.world import World

Answer = Callable[[str, Any], None]
NEVER = float("inf")
GRAIN_SECONDS = 1e-6  # a clock that is read twice may differ by a rounding error
TICK = Tick()
# For the trace: names of classes would be hashed otherwise in every process.
KINDS = {kind: number for number, kind in enumerate((*get_args(Event), *Message.__subclasses__()))}
READS_PER_SYNC = 10  # in the same time
RESTART_SECONDS = 0.5  # of a process that ended by itself, on average
RESERVE_WRITES = 20  # what the reserve file of a full disk takes
RESUME_SECONDS = 0.1  # until a stream goes on after its receiver has started again


class Died(Exception):
    """The process has ended in the middle of what it was doing."""


class Server:
    """A node, its disk, the state, and who waits for answers. After a crash it begins on its platter.

    fuse: how many more things it does before it ends, if it is to. stalled_until, full_until: of its disk. streams: of
    snapshots to it, that go on when it is up again.
    """

    def __init__(self, world: World, name: str, disk: Disk) -> None:
        self.world, self.name, self.disk = world, name, disk
        self.number = world.next_number()
        self.random = Random(f"{world.seed}/{name}")
        skew = world.faults.skew
        self.rate = 1 + self.random.uniform(-skew, skew)
        self.offset = self.random.uniform(0, 1_000) if skew else 0.0
        self.stalled_until = self.frozen_until = self.full_until = 0.0
        self.fails_sync = self.dies_landed = False
        self.streams: list[tuple[Any, ...]] = []
        self.start()

    def start(self) -> None:
        """Come up on what is on disk. Raises Quarantined."""
        disk, world = self.disk, self.world
        self.machine = Machine(disk.states[-1] if disk.states else None)
        loaded = disk.load(self.machine.applied)
        self.node = RaftNode(self.name, loaded, world.options, random=self.random.random, now=self.clock)
        self.is_up = True
        self.life = world.next_number()
        self.fuse = 0
        self.proposals = Proposals()
        self.tried = Tried()
        self.told: dict[int, bytes] = {}
        self.waiting: dict[int, Answer] = {}
        self.readers: dict[int, tuple[int, Answer]] = {}
        self.tickets = 0  # the same ones in every life
        self.is_landing = self.is_saving = self.was_leader = False
        self.wake_at = self.sick_at = NEVER
        self.reserve = RESERVE_WRITES
        world.network.starts(self.name)
        self.run(TICK)
        if world.now < self.full_until:
            self.run(DiskHealth(is_well=False))
        for act, *arguments in self.streams:
            world.at(self.random.uniform(0.0, RESUME_SECONDS), act, *arguments)
        self.streams.clear()
        if self.random.random() < world.faults.late_streams:
            world.at(self.random.uniform(0.0, RESUME_SECONDS), world.send_late, self.name)

    @property
    def clock(self) -> float:
        """This machine's own idea of time."""
        return self.world.now * self.rate + self.offset

    def later(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do something, unless this process is dead by then; not while it is frozen."""
        self.world.at(seconds, self._alive, self.life, act, arguments)

    def _alive(self, life: int, act: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if life != self.life or not self.is_up:
            return
        if self.world.now < self.frozen_until:
            self.world.at(self.frozen_until - self.world.now, self._alive, life, act, arguments)
        else:
            act(*arguments)

    def run(self, event: Event) -> None:
        """One event and everything that follows from it at once."""
        if not self.is_up:
            return
        world, node, state = self.world, self.node, self.node.state
        world.events += 1
        now = world.now * self.rate + self.offset
        commit = state.commit
        node.step(event, now)
        kind = event.message if type(event) is Receive else event
        world.trace = hash((world.trace, self.number, KINDS[type(kind)], state.term, state.commit, world.now))
        world.tail.append((world.now, self.name, kind, state.role, state.term, state.commit, state.log.last))
        world.oracle.after(self, event)
        is_leader = state.leading is not None
        if is_leader and commit < state.commit and world.committed is not None:
            world.committed(self)
        try:
            self._do(node.ready())
        except Died:
            world.crash(self.name, self.random.expovariate(1 / RESTART_SECONDS))
            return
        if is_leader != self.was_leader:
            self.was_leader = is_leader
            self.tried = Tried()
            world.counts["elections"] += is_leader
            if is_leader and world.elected is not None:
                world.elected(self)
        at = world.now + max(0.0, node.deadline - now) / self.rate + GRAIN_SECONDS
        if at < self.wake_at:
            self.wake_at = at
            self.later(at - world.now, self._wake, at)

    def _wake(self, at: float) -> None:
        if at != self.wake_at:
            return
        self.wake_at = NEVER
        rest = (self.node.deadline - self.clock) / self.rate
        if rest > GRAIN_SECONDS:  # something was heard meanwhile
            self.wake_at = self.world.now + rest
            self.later(rest, self._wake, self.wake_at)
        else:
            self.run(TICK)

    def _burn(self) -> None:
        """One more thing is about to be done."""
        if self.fuse:
            self.fuse -= 1
            if not self.fuse:
                raise Died

    def _do(self, ready: Ready) -> None:
        world = self.world
        if ready.write is not None:
            self._burn()
            world.counts["truncations"] += ready.write.truncate_from is not None
            world.counts["installs"] += ready.write.install is not None
            self.disk.cache.append(ready.write)
            self._land_next()
        for message in ready.messages:
            self._burn()
            world.oracle.leaves(self, message)
            world.network.send(message)
        for answer in ready.answers:
            if isinstance(answer, Accepted):
                self.proposals.accepted(answer)
            else:
                world.counts["dropped"] += 1
                self._answer(answer.number, "dropped", answer.leader)
        self._answer_tried()
        for read in ready.reads:
            self._read_is_ready(read.ticket, read.is_confirmed)
        for fetch in ready.fetches:
            world.counts["fetches"] += 1
            self.later(self.random.expovariate(READS_PER_SYNC / world.faults.disk), self._fetched, fetch)
        for peer in ready.snapshots:
            world.counts["streams"] += 1
            self.later(self.random.uniform(0.0, 0.05), self._send_snapshot, peer, self.node.state.term)
            if world.faults.late_streams and self.random.random() < world.faults.late_streams:
                self.later(self.random.expovariate(1.0), self.send_late, peer)
        if ready.likely:
            self._try_out(ready.likely)
        if ready.committed:
            seconds = self.random.expovariate(1 / world.faults.apply) if world.faults.apply else 0.0
            self.later(seconds, self._apply_all, ready.committed)

    # -------------------------------------------------------------------------- the state and its clients

    def _try_out(self, entries: tuple[Entry, ...]) -> None:
        """See what entries would reply, in a state that is thrown away."""
        trial = Machine(self.machine.stored())
        self.tried = Tried(entries, [trial.apply(entry) for entry in entries])

    def _answer_tried(self) -> None:
        """What is committed is answered before it is applied."""
        state = self.node.state
        done, self.tried = self.tried.up_to(state.commit, state.log)
        for entry, reply in zip(*done, strict=True):
            self.world.counts["answered before applied"] += 1
            self.told[entry.index] = reply
            self._reply(entry, reply)

    def _reply(self, entry: Entry, reply: bytes) -> None:
        answered, lost = self.proposals.committed(entry.index, entry.term)
        for number in answered:
            self._answer(number, "ok", reply)
        for number in lost:
            self.world.counts["lost"] += 1
            self._answer(number, "dropped", None)

    def _apply_all(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            if entry.index > self.machine.applied:  # else a snapshot has come between
                self.world.oracle.applied(self, entry)
                self._apply(entry)
        self.run(Applied(self.machine.applied))
        if not self.is_saving and self.machine.applied >= self._snapshot_index() + self.world.faults.threshold:
            self.is_saving = True
            self.later(self.random.uniform(0.0, 0.05), self.save)

    def _apply(self, entry: Entry) -> None:
        world, machine = self.world, self.machine
        reply = machine.apply(entry)
        world.counts["repeated"] += machine.repeated
        dump = world.oracle.became(self, entry, reply)
        if dump is not None:
            self.disk.keep_state(dump)
        assert self.told.pop(entry.index, reply) == reply, f"{self.name}: entry {entry.index} was answered otherwise"
        self._reply(entry, reply)

    def _answer(self, number: int, kind: str, value: Any) -> None:
        answer = self.waiting.pop(number, None)
        if answer is not None:
            answer(kind, value)

    def _read_is_ready(self, ticket: int, is_confirmed: bool) -> None:
        found = self.readers.pop(ticket, None)
        if found is None:
            return
        committed, reader = found
        if is_confirmed:
            self.world.counts["reads"] += 1
            self.world.oracle.read(self, committed)
        reader("ok" if is_confirmed else "again", self)

    def propose(self, data: bytes, answer: Answer) -> None:
        """A client's command."""
        number = self.world.next_number()
        self.waiting[number] = answer
        self.run(Propose(((number, data),)))

    def read(self, answer: Answer) -> None:
        """A client's linearizable read."""
        self.tickets += 1
        self.readers[self.tickets] = (self.world.oracle.newest, answer)
        self.run(Read(self.tickets))

    # -------------------------------------------------------------------------- the disk

    def _land_next(self) -> None:
        if self.is_landing or not self.disk.cache:
            return
        self.is_landing = True
        stall = self._stall()
        self.later(stall + self.random.expovariate(1 / self.world.faults.disk), self._landed)

    def _stall(self) -> float:
        """How long the disk will still do nothing. It is reported as sick when a write has waited for T."""
        stall = max(0.0, self.stalled_until - self.world.now)
        timeout = self.world.options.election_timeout_seconds
        if stall > timeout:
            self.later(timeout, self._is_late, self.disk.cache[0].token)
        return stall

    def _is_late(self, token: int) -> None:
        if self.disk.cache and self.disk.cache[0].token <= token and self.node.state.is_well:
            self.world.counts["late writes"] += 1
            self.run(DiskHealth(is_well=False))

    def _landed(self) -> None:
        world, disk = self.world, self.disk
        if not self.is_landing or not disk.cache:
            return  # it has landed already
        if world.now < self.stalled_until:
            self.later(self._stall(), self._landed)
            return
        if self.fails_sync:
            self.fails_sync = False
            world.counts["fsync errors"] += 1
            world.crash(self.name, self.random.expovariate(1 / RESTART_SECONDS))
            return
        count = len(disk.cache) if world.faults.has_group_commit else 1
        if world.now < self.full_until:
            self.reserve -= count
            if self.reserve < 0:
                world.counts["ended for want of space"] += 1
                world.crash(self.name, max(self.full_until - world.now, 0.1))
                return
        token = 0
        for _ in range(count):
            write = disk.land()
            token = write.token
            world.oracle.landed(self)
            if write.install is not None:
                self._installed()
        if self.dies_landed:
            self.dies_landed = False
            world.crash(self.name, self.random.expovariate(1 / RESTART_SECONDS))
            return
        self.is_landing = False
        if not self.node.state.is_well and world.now >= self.full_until:
            self.run(DiskHealth(is_well=True))
        self.run(Persisted(token))
        if self.is_up:
            self._land_next()

    def space_is_gone(self) -> None:
        """The disk is full but for the reserve."""
        if self.node.state.is_well:
            self.run(DiskHealth(is_well=False))

    def space_returns(self) -> None:
        """Somebody has made room on a full disk."""
        if self.is_up and self.world.now >= self.full_until:
            self.reserve = RESERVE_WRITES
            if not self.node.state.is_well:
                self.run(DiskHealth(is_well=True))

    def disk_goes_on(self) -> None:
        """A stall has ended sooner than it was to."""
        if self.is_landing:
            self.later(0.0, self._landed)

    def looks_at_the_clock(self) -> None:
        """The clock has jumped: what was to happen then may be due."""
        self.wake_at = NEVER
        self.later(0.0, self.run, TICK)

    def _installed(self) -> None:
        snapshot = self.disk.platter.snapshot
        assert snapshot is not None
        for index in range(self.machine.applied + 1, snapshot.mark.index + 1):
            for number in self.proposals.skipped(index):
                self._answer(number, "unknown", None)
        self.machine = Machine(snapshot.state)
        self.later(0.0, self.run, Applied(self.machine.applied))

    def _snapshot_index(self) -> int:
        snapshot = self.disk.platter.snapshot
        return 0 if snapshot is None else snapshot.mark.index

    def save(self) -> None:
        """Take a snapshot of the state, and compact the log behind it."""
        self.is_saving = False
        state, index = self.node.state, self.machine.applied
        entry = self.disk.platter.entry(index)
        if entry is None or index <= state.log.base.index or self.disk.installs:
            return
        membership = state.memberships.at(index)
        stored = self.machine.stored()
        snapshot = take_snapshot(Mark(index, entry.term, entry.chain), membership, stored)
        keep = self.random.choice([0, 0, self.random.randint(0, 30)])
        base = self.disk.save(snapshot, stored, keep, state.memberships.at)
        self.world.counts["snapshots"] += 1
        if base is not None:
            self.run(Compacted(base))
        if self.world.saved is not None:
            self.world.saved(self, index)

    def _fetched(self, fetch: Fetch) -> None:
        try:
            found = self.disk.read(fetch.first, fetch.end, fetch.bytes_max)
        except Quarantined:
            self._found_damage()
        else:
            self.run(Fetched(fetch.peer, fetch.first, found))

    def _found_damage(self) -> None:
        """It ends; when it starts it finds the same again, and is set aside."""
        self.world.counts["damage found at work"] += 1
        self.world.crash(self.name, self.random.expovariate(1 / RESTART_SECONDS))

    # -------------------------------------------------------------------------- snapshots for others

    def _send_snapshot(self, peer: str, term: int, *, is_late: bool = False) -> None:
        """Stream the newest snapshot. term: in which this node led when that was wanted; it may not lead any more.
        is_late: the leader has been told that this stream failed, and it has not.
        """
        snapshot, faults = self.disk.platter.snapshot, self.world.faults
        if snapshot is not None and not snapshot.is_whole():
            self._found_damage()
            return
        fails = not is_late and self.random.random() < faults.failed_streams
        if snapshot is None or peer not in self.world.servers or fails:
            self.world.counts["streams that failed"] += 1
            self.later(self.random.expovariate(1 / faults.stream), self.run, SnapshotSent(peer, None))
            return
        event = SnapshotReceived(self.name, term, snapshot.mark, snapshot.membership)
        if self.world.streamed is not None:
            self.world.streamed(peer)
        life = 0 if is_late else self.life
        self.world.at(self.random.expovariate(1 / faults.stream), self._arrive, life, peer, snapshot, event, True)

    def send_late(self, peer: str) -> None:
        """Begin a stream that was asked for a while ago, and waited for its turn or for the peer to be there."""
        if self.node.state.leading is not None:
            self.world.counts["late streams"] += 1
            self._send_snapshot(peer, self.node.state.term, is_late=True)

    def _arrive(self, life: int, peer: str, snapshot: Snapshot, event: SnapshotReceived, may_wait: bool) -> None:
        """The last byte of a stream arrives at a peer. If that is down or cut off, the stream goes on once more when
        it is there again.
        """
        world, other = self.world, self.world.servers.get(peer)
        if other is not None and not other.is_up and may_wait:
            other.streams.append((self._arrive, life, peer, snapshot, event, False))
            return
        is_cut = bool({(self.name, peer), (peer, self.name)} & world.network.cuts)
        index: int | None = None
        if other is not None and other.is_up and not is_cut and world.now >= other.frozen_until:
            index = snapshot.mark.index
            other.disk.received[index] = snapshot
            other.run(event)
        if life == self.life:
            self.later(self.random.expovariate(1 / world.faults.latency), self.run, SnapshotSent(peer, index))
