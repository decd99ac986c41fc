"""What goes wrong: acts on the network, on processes and on disks, from the list that a seed has drawn (faults.py)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from random import Random

from conveyord.core.raft.messages import Propose
from tests.sim.churn import Churn
from tests.sim.faults import ACTS
from tests.sim.machine import filler, register
from tests.sim.server import RESERVE_WRITES, RESTART_SECONDS, Server
from tests.sim.world import World

STALL_SECONDS_MAX = 30.0
FREEZE_SECONDS_MAX = 3.0  # so that peace is long enough for it to end
JUMP_SECONDS = (-1.0, 10.0)
HUNTED_SECONDS = 5.0
RACED_SECONDS = 0.005
REGISTERING_SHARE = 0.05  # of bursts


class Nemesis:
    """Acts every second or so, on its own list of faults. `heal` ends everything that it has begun."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(f"{world.seed}/nemesis")
        self.churn = Churn(world, self.random)
        self.acts: list[Callable[[], None]] = [getattr(self, name, None) or getattr(self.churn, name) for name in ACTS]
        self.acts = [act for name, act in zip(ACTS, self.acts, strict=True) if name in world.faults.acts]
        self.acts += [act for act in (self.hunt_leaders, self.race_snapshots) if act in self.acts] * 2
        self.is_healed = False
        self.hunts_until = self.hits_receivers_until = self.races_until = 0.0
        self.is_armed = False
        self.hunted: deque[str] = deque()
        world.saved = self._on_saved
        world.elected, world.committed, world.streamed = self._on_elected, self._on_committed, self._on_streamed
        world.at(1.5, self._act)
        if world.faults.bursts:
            world.at(1.5, self._burst)

    def _act(self) -> None:
        if self.is_healed or not self.acts:
            return
        act = self.random.choice(self.acts)
        self.world.counts["acts"] += 1
        self.world.tail.append((self.world.now, "nemesis", act.__name__))
        act()
        self.world.at(self.random.expovariate(1 / self.world.faults.pace), self._act)

    def heal(self) -> None:
        """End all faults, and start what is down."""
        self.is_healed, self.is_armed = True, False
        self.hunts_until = self.hits_receivers_until = self.races_until = 0.0
        world = self.world
        world.network.cuts.clear()
        world.faults.heal()
        for name in sorted(world.servers):
            server = world.servers[name]
            server.stalled_until = server.full_until = world.now
            server.fails_sync = server.dies_landed = False
            server.fuse = 0
            if server.is_up:
                server.space_returns()
                server.disk_goes_on()
            world.restart(name)

    def _pick(self) -> Server:
        return self.world.servers[self.random.choice(sorted(self.world.servers))]

    def _soon(self) -> float:
        return self.random.expovariate(1 / RESTART_SECONDS)

    # -------------------------------------------------------------------------- the network

    def cut_leader(self) -> None:
        """From all others, or from all but one."""
        leader = self.world.leader()
        if leader is not None:
            spared = self.random.choice([None, self._pick().name])
            self._cut_off(leader.name, spared)
            self._mend_later()

    def cut_one(self) -> None:
        self._cut_off(self._pick().name, None)
        self._mend_later()

    def _cut_off(self, name: str, spared: str | None) -> None:
        for other in self.world.servers:
            if other != spared:
                self.world.network.cuts |= {(name, other), (other, name)}

    def cut_one_way(self) -> None:
        name = self._pick().name
        is_deaf = self.random.choice([True, False, None])
        for other in self.world.servers:
            hears_not = self.random.random() < 0.5 if is_deaf is None else is_deaf
            self.world.network.cuts.add((other, name) if hears_not else (name, other))
        self._mend_later()

    def cut_in_two(self) -> None:
        names = sorted(self.world.servers)
        one = {name for name in names if self.random.random() < 0.5}
        self.world.network.cuts |= {(a, b) for a in names for b in names if (a in one) != (b in one)}
        self._mend_later()

    def cut_to_a_ring(self) -> None:
        """Each sees a majority, and no two see the same. Of three, two do not see each other."""
        names = sorted(self.world.servers)
        self.random.shuffle(names)
        count, reach = len(names), max(1, len(names) // 3)
        for one in range(count):
            for other in range(count):
                distance = min((one - other) % count, (other - one) % count)
                if distance > reach or (count == 3 and {one, other} == {0, 2}):
                    self.world.network.cuts.add((names[one], names[other]))
        self.world.counts["rings"] += 1
        self._mend_later()

    def flap(self) -> None:
        """A link, or all of a node's, comes and goes."""
        one, other = self._pick().name, self._pick().name
        others = [other] if one != other else sorted(self.world.servers)
        ways = {way for name in others for way in ((one, name), (name, one))}
        if self.random.random() < 0.3:
            ways = {(sender, to) for sender, to in ways if sender == one}
        self._flap(ways, self.random.randint(3, 20))

    def _flap(self, ways: set[tuple[str, str]], times: int) -> None:
        self.world.counts["flaps"] += 1
        if times % 2 and not self.is_healed:
            self.world.network.cuts |= ways
        else:
            self.world.network.cuts -= ways
        if times and not self.is_healed:
            self.world.at(self.random.uniform(0.01, 0.5), self._flap, ways, times - 1)

    def _mend_later(self) -> None:
        self.world.counts["cuts"] += 1
        self.world.at(self.random.expovariate(1.0), self.mend_network)

    def mend_network(self) -> None:
        self.world.network.cuts.clear()

    def reset_connection(self) -> None:
        """One connection, or all of a node; more often of the leader."""
        one, other = self.random.choice([self._pick(), self.world.leader() or self._pick()]).name, self._pick().name
        for name in [other] if one != other else sorted(self.world.servers):
            self.world.network.reset(one, name)
        self.world.counts["resets"] += 1

    # -------------------------------------------------------------------------- processes

    def crash(self) -> None:
        self.world.crash(self._pick().name, self._soon())

    def crash_all(self) -> None:
        for name in sorted(self.world.servers):
            self.world.crash(name, self._soon())

    def crash_leader(self) -> None:
        leader = self.world.leader()
        if leader is not None:
            self.world.crash(leader.name, self._soon())

    def crash_receivers(self) -> None:
        """For some seconds, who a snapshot is on its way to: the stream goes on when it is up again."""
        self.hits_receivers_until = self.world.now + self.random.uniform(3, 10)

    def _on_streamed(self, receiver: str) -> None:
        if self.world.now < self.hits_receivers_until:
            self.world.counts["crashes of receivers"] += 1
            delay = self.random.uniform(0, self.world.faults.stream)
            self.world.at(delay, self.world.crash, receiver, self._soon())

    def crash_inside_a_burst(self) -> None:
        """Between two of the things that one event leads to."""
        server = self.random.choice([self._pick(), self.world.leader() or self._pick()])
        server.fuse = self.random.randint(1, 20)
        self.world.counts["fuses"] += 1

    def crash_before_persisted(self) -> None:
        """When a write is on the platter, and the node has not been told."""
        self._pick().dies_landed = True
        self.world.counts["crashes before Persisted"] += 1

    def crash_at_commit(self) -> None:
        """The next leader that commits something ends while it tells the others."""
        self.is_armed = True

    def _on_committed(self, leader: Server) -> None:
        if self.is_armed:
            self.is_armed = False
            leader.fuse = self.random.randint(1, 2 * self.world.faults.nodes)
            self.world.counts["crashes at commit"] += 1

    def hunt_leaders(self) -> None:
        """For some seconds, whoever is elected is hit within milliseconds, while its first entries are on their way,
        and is down until others have been: quick successions of leaders with short logs (Raft paper, figure 8).
        """
        self.hunts_until = self.world.now + self.random.uniform(5, 15)
        leader = self.world.leader()
        if leader is not None:
            self._hit(leader)

    def _on_elected(self, leader: Server) -> None:
        if self.world.now < self.hunts_until:
            faults = self.world.faults
            turn = 2 * faults.latency + faults.disk
            if self.random.random() < 0.7:
                leader.later(0.0, leader.run, Propose(((0, filler()),) * self.random.randint(1, 20)))
            delay = self.random.choice([0.0, self.random.uniform(0, 2 * turn), self.random.uniform(0, 10 * turn)])
            leader.later(delay, self._hit, leader)

    def _hit(self, leader: Server) -> None:
        self.world.counts["hunted"] += 1
        hit = self.random.choice(["crash", "crash", "crash", "cut off", "mute"])
        if hit == "crash":
            self.world.crash(leader.name, HUNTED_SECONDS)
            self.hunted.append(leader.name)
            if len(self.hunted) > (self.world.faults.nodes - 1) // 2:
                self.world.restart(self.hunted.popleft())
            return
        ways = {(leader.name, other) for other in self.world.servers}
        if hit == "cut off":
            ways |= {(other, leader.name) for other in self.world.servers}
        self.world.network.cuts |= ways
        self.world.at(self.random.expovariate(1.0), self._mend, ways)

    def race_snapshots(self) -> None:
        """For some seconds, when a leader has taken a snapshot, somebody who has more than that in its log crashes, and
        starts again at once; a stream of that snapshot, asked for long ago, is the first thing that it hears of.
        """
        self.races_until = self.world.now + self.random.uniform(3, 10)

    def _on_saved(self, server: Server, index: int) -> None:
        if self.world.now >= self.races_until or server.node.state.leading is None:
            return
        others = [name for name, one in sorted(self.world.servers.items()) if one.disk.platter.last > index]
        name = self.random.choice(others) if others else server.name
        if name != server.name:
            self.world.counts["raced snapshots"] += 1
            self.world.crash(name, RACED_SECONDS)
            server.later(2 * RACED_SECONDS, server.send_late, name)

    def _mend(self, ways: set[tuple[str, str]]) -> None:
        self.world.network.cuts -= ways

    def freeze(self) -> None:
        """A process stands still, as in a pause of its machine."""
        seconds = min(FREEZE_SECONDS_MAX, self.random.expovariate(1.0))
        self._pick().frozen_until = self.world.now + seconds
        self.world.counts["freezes"] += 1

    def jump_clock(self) -> None:
        """A clock that should be monotonic is not."""
        server = self._pick()
        server.offset += self.random.choice([self.random.uniform(*JUMP_SECONDS), self.random.uniform(-0.3, 0.3)])
        self.world.counts["clock jumps"] += 1
        if server.is_up:
            server.looks_at_the_clock()

    # -------------------------------------------------------------------------- load

    def _burst(self) -> None:
        """Many proposals at once, which change nothing: they are of a session that nobody has. Now and then they open
        sessions instead, for which those of the clients expire.
        """
        if self.is_healed:
            return
        leader = self.world.leader()
        if leader is not None:
            count = self.random.randint(5, 60)
            size = self.random.choice([10, count])
            self.world.counts["bursts"] += 1
            data = register() if self.random.random() < REGISTERING_SHARE else filler()
            for _ in range(0, count, size):
                leader.run(Propose(((0, data),) * size))
            if self.random.random() < 0.2:  # while it is written, committed and applied
                self.world.at(self.random.uniform(0, 0.3), self.world.crash, self._pick().name, self._soon() / 2)
        self.world.at(self.random.expovariate(self.world.faults.bursts), self._burst)

    # -------------------------------------------------------------------------- disks

    def stall_disk(self) -> None:
        """Syncs take 0.1 to 30 s, more often short."""
        seconds = min(STALL_SECONDS_MAX, 0.1 * 300 ** self.random.random())
        self._pick().stalled_until = self.world.now + seconds
        self.world.counts["stalls"] += 1

    def fill_disk(self) -> None:
        """There is no space but for the reserve file. The node is told; the process ends if that is used up."""
        server = self._pick()
        seconds = self.random.expovariate(0.5)
        server.full_until = self.world.now + seconds
        server.reserve = self.random.choice([RESERVE_WRITES, 3, 0])
        self.world.counts["full disks"] += 1
        if server.is_up:
            server.space_is_gone()
        self.world.at(seconds, server.space_returns)

    def fail_sync(self) -> None:
        self._pick().fails_sync = True

    def flip_bit(self) -> None:
        """On a platter, of a minority at most. It is found when it is read: then nothing on that disk is believed."""
        server = self.random.choice([self._pick(), self.world.leader() or self._pick()])
        if not server.disk.is_damaged and self.world.may_lose(server.name) and server.disk.flip(self.random):
            self.world.counts["flipped bits"] += 1
            if self.random.random() < 0.4:
                self.world.crash(server.name, self._soon())

    def lose_disk(self) -> None:
        """A disk is gone, of a minority at most: the machine comes back as another node, with nothing."""
        server = self._pick()
        if self.world.may_lose(server.name):
            self.world.counts["lost disks"] += 1
            self.world.begin_anew(server.name)
