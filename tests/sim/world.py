"""A cluster in virtual time: the real core on simulated disks, networks and clocks, all drawn from one seed.

There is no event loop: the world is a heap of moments. Nothing in it depends on hashing or on the time of day, so a
seed stands for one history.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable
from random import Random
from typing import Any

from conveyord.core.raft.membership import NOBODY, Membership
from conveyord.core.raft.state import Role
from tests.sim.checks import Oracle, Violation
from tests.sim.disk import Disk, Quarantined
from tests.sim.faults import Faults
from tests.sim.network import Network
from tests.sim.server import Server

EVENTS_MAX = 80_000  # in one second: three times what seven nodes had whose messages all came out of order
TAIL = 60


class World:
    """Everything. counts: what happened, for the report and for the check that it did happen.

    trace: a hash of every event so far and of what it led to. tail: the last of them. lost: by the name of a server
    whose disk is gone, the name that its machine goes by now. elected, committed, streamed, saved: called with a server
    that begins to lead, or whose leading has just committed something, or with who a snapshot is on its way to, or
    with who has taken one, and its index.
    """

    def __init__(self, seed: int, faults: Faults) -> None:
        self.seed, self.faults, self.options = seed, faults, faults.options
        self.random = Random(f"{seed}/world")
        self.now = 0.0
        self.servers: dict[str, Server] = {}
        self.oracle = Oracle(self)
        self.network = Network(self)
        self.counts: Counter[str] = Counter()
        self.events = 0
        self._second, self._events_max = 0.0, EVENTS_MAX
        self.trace = 0
        self.tail: deque[tuple[Any, ...]] = deque(maxlen=TAIL)
        self.lost: dict[str, str] = {}
        self.elected: Callable[[Server], None] | None = None
        self.committed: Callable[[Server], None] | None = None
        self.streamed: Callable[[str], None] | None = None
        self.saved: Callable[[Server, int], None] | None = None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._serial = 0
        self._renamed = 0

    def told_trace(self) -> str:
        """The hash of all that has happened, the same in every process."""
        return f"{self.trace & (1 << 64) - 1:016x}"

    def next_number(self) -> int:
        """A number that was not used before."""
        self._serial += 1
        return self._serial

    def at(self, seconds: float, act: Callable[..., None], *arguments: Any) -> None:
        """Do something later."""
        self._serial += 1
        heapq.heappush(self._heap, (self.now + seconds, self._serial, act, arguments))

    def run_until(self, moment: float) -> None:
        """Let time pass."""
        heap = self._heap
        while heap and heap[0][0] <= moment:
            self.now, _, act, arguments = heapq.heappop(heap)
            if self.now >= self._second:
                self._second, self._events_max = self.now + 1.0, self.events + EVENTS_MAX
            act(*arguments)
            if self.events > self._events_max:
                raise Violation(f"more than {EVENTS_MAX} events in a second: messages without an end")
        self.now = moment

    def boot(self, name: str, membership: Membership = NOBODY) -> Server:
        """Start a node on an empty disk: one of the first, with the members, or one that is to join."""
        self.servers[name] = Server(self, name, Disk(membership, self.faults.window))
        return self.servers[name]

    def another_name(self, name: str) -> str:
        """What a machine is called that was called `name`, when it begins anew."""
        self._renamed += 1
        return f"{name.split('.', maxsplit=1)[0]}.{self._renamed}"

    def crash(self, name: str, restart_seconds: float) -> None:
        """End a process, and start it again later. What was on its way to the disk is lost, or a part of it."""
        server = self.servers.get(name)
        if server is None or not server.is_up:
            return
        server.is_up = False
        server.disk.crash(self.random)
        self.oracle.landed(server)
        self.oracle.forget(name)
        self.counts["crashes"] += 1
        self.at(restart_seconds, self.restart, name)

    def restart(self, name: str) -> None:
        """Start a process on what is on its disk; on nothing, under another name, if that is not what it was."""
        server = self.servers.get(name)
        if server is None or server.is_up:
            return
        try:
            server.start()
        except Quarantined:
            self.counts["quarantines"] += 1
            self.begin_anew(name)

    def begin_anew(self, name: str) -> None:
        """The disk of a server is gone: what it promised is forgotten, so nobody may speak in its name again."""
        self.servers[name].is_up = False
        self.oracle.forget(name)
        del self.servers[name]
        anew = self.another_name(name)
        self.lost[name] = anew
        self.boot(anew)

    def leader(self) -> Server | None:
        """The leader of the highest term that is up, if there is one."""
        found = [server for server in self.servers.values() if server.is_up and server.node.state.role is Role.LEADER]
        return max(found, key=lambda server: server.node.state.term, default=None)

    def send_late(self, peer: str) -> None:
        """The leader sends a snapshot that it has long been asked for."""
        leader = self.leader()
        if leader is not None and leader.name != peer:
            leader.send_late(peer)

    def may_lose(self, name: str) -> bool:
        """Whether a majority stays intact in every membership that is in any log, if this disk is gone as well."""
        intact = {one for one, server in self.servers.items() if not server.disk.is_damaged and one != name}
        return all(self.is_quorum(membership, intact) for membership in self._memberships())

    def is_quorum(self, membership: Membership, present: set[str]) -> bool:
        """Whether those who are present could agree on something. Nobody is a quorum of no members."""
        sets = [one for one in (membership.voters, membership.outgoing) if one]
        return all(len(one & present) > len(one) // 2 for one in sets)

    def intact(self) -> set[str]:
        """Servers whose disk has all that was written to it."""
        return {name for name, server in self.servers.items() if not server.disk.is_damaged}

    def _memberships(self) -> list[Membership]:
        found = list[Membership]()
        for server in self.servers.values():
            found += [membership for _, membership in server.node.state.memberships._known]
            if not server.disk.is_damaged:
                found.append(server.disk.platter.members_at(server.disk.platter.last))
        return found
