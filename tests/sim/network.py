"""The network between nodes: delays, losses, cuts, and connections that break with half of what was under way."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from conveyord.core.raft.messages import Append, Message, Receive

if TYPE_CHECKING:
    from tests.sim.world import World


class Link:
    """One direction of a connection. What was sent before it broke and would arrive after `cut_at` is lost."""

    __slots__ = ("cut_at", "free_at", "is_far", "life")

    def __init__(self, *, is_far: bool) -> None:
        self.is_far = is_far
        self.free_at = 0.0
        self.life = 0
        self.cut_at = 0.0


class Network:
    """cuts: who cannot get anything to whom. connects_at: when who has started again will have connections."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.random = Random(f"{world.seed}/network")
        self.cuts: set[tuple[str, str]] = set()
        self._far = f"n{world.faults.nodes - 1}"
        self.connects_at: dict[str, float] = {}
        self._links: dict[tuple[str, str], Link] = {}

    def send(self, message: Message) -> None:
        """Put a message on its way: in order, unless this world reorders."""
        world, faults, random = self.world, self.world.faults, self.random.random
        way = (message.sender, message.to)
        link = self._links.get(way)
        if link is None:
            link = self._links[way] = Link(is_far=self._far in way)
        copies = 1
        if faults.twice and random() < faults.twice:
            copies = 2
            world.counts["duplicates"] += 1
        for _ in range(copies):
            if faults.loss and random() < faults.loss:
                world.counts["losses"] += 1
                continue
            latency = faults.far if link.is_far and faults.far else faults.latency
            delay = self.random.expovariate(1 / latency)
            if faults.tail and random() < faults.tail:
                delay += self.random.expovariate(1 / world.options.election_timeout_seconds)
                world.counts["tails"] += 1
            at = world.now + delay
            if not faults.reorder:
                at = link.free_at = max(at, link.free_at)
            elif at < link.free_at:
                world.counts["reordered"] += 1
            else:
                link.free_at = at
            world.at(at - world.now, self._deliver, message, link, link.life)

    def reset(self, one: str, other: str) -> None:
        """Break the connection: of what is under way a first part still arrives, in both directions."""
        for way in ((one, other), (other, one)):
            link = self._links.get(way)
            if link is not None:
                link.life += 1
                link.cut_at = self.world.now + self.random.uniform(0, self.world.faults.latency)
                link.free_at = self.world.now

    def starts(self, name: str) -> None:
        """A process has started, and its connections are not there yet."""
        if self.world.faults.reconnect:
            self.connects_at[name] = self.world.now + self.random.uniform(0, self.world.faults.reconnect)

    def _connects(self, message: Message) -> bool:
        now, ends = self.world.now, self.connects_at
        return now < ends.get(message.sender, 0.0) or now < ends.get(message.to, 0.0)

    def _deliver(self, message: Message, link: Link, life: int) -> None:
        world = self.world
        server = world.servers.get(message.to)
        if server is None or not server.is_up or (message.sender, message.to) in self.cuts:
            return
        if self.connects_at and self._connects(message):
            world.counts["before connections"] += 1
            return
        if life != link.life and world.now > link.cut_at:
            world.counts["lost by resets"] += 1
            return
        if world.now < server.frozen_until:
            world.at(server.frozen_until - world.now, self._deliver, message, link, life)
            return
        damage = world.faults.damage
        if damage and isinstance(message, Append) and message.entries and self.random.random() < damage:
            message = _bent(message)
            world.counts["damaged"] += 1
        server.run(Receive(message))


def _bent(message: Append) -> Append:
    *whole, last = message.entries
    bent = last._replace(data=last.data + b"!")
    return Append(
        message.sender,
        message.to,
        message.term,
        message.prev_index,
        message.prev_term,
        (*whole, bent),
        message.commit,
    )
