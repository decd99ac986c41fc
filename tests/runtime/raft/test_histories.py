"""Clients on every node while nodes are cut off, stopped and started: what they are told is linearizable."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
import trio

from conveyord.core.errors import OutcomeUnknown, Retryable
from conveyord.core.raft.types import NodeId
from conveyord.runtime.raft.outcomes import Outcome
from conveyord.runtime.raft.proposer import Proposer
from conveyord.runtime.raft.snapshots import Policy
from tests.runtime.raft.rig import Member, Rig, cluster
from tests.sim.linear import NEVER, Op, is_linearizable
from tests.sim.machine import EXPIRED, command, register

NAMES = ("a", "b", "c")
CALL_SECONDS = 3.0
KEYS = 2
Command = tuple[Any, ...]


class KvSession:
    def register(self) -> bytes:
        return register()

    def command(self, session: int, number: int, ack_below: int, command: Command) -> bytes:
        return _encoded(session, number, ack_below, command)

    def about(self, command: Command) -> str:
        return str(command[1])

    def is_expired(self, reply: bytes) -> bool:
        return reply == EXPIRED


def _encoded(session: int, number: int, ack_below: int, operation: Command) -> bytes:
    return command(session, number, ack_below, operation)


def about(data: bytes) -> str | None:
    """What `KvSession` says of a command, of its bytes: None if it opens a session."""
    parts = msgpack.unpackb(data)
    return str(parts[4]) if parts else None


class Clients:
    """One register after the other is read, written, and compared and set. told: (key, operation)."""

    def __init__(self, rig: Rig, random: Random) -> None:
        self.rig, self.random = rig, random
        self.told = list[tuple[int, Op]]()
        self.answered = self.unknown = 0
        self._value = 0

    def proposer(self, member: Member) -> Proposer[Command]:
        return Proposer(member.up, partial(self._forward, member.name), KvSession())

    async def _forward(self, sender: NodeId, leader: NodeId, data: bytes) -> Outcome:
        """By a wire that may be cut before or behind the command."""
        cuts, peer = self.rig.wires.cuts, self.rig.wires.members[leader]
        if (sender, leader) in cuts or peer.driver is None:
            raise Retryable("cut")
        send, receive = trio.open_memory_channel[Outcome](1)
        number = peer.driver.propose(data, send.send_nowait, about=about(data))
        with trio.move_on_after(1.0):
            outcome = await receive.receive()
            if (leader, sender) not in cuts:
                return outcome
        if peer.driver is not None:
            peer.driver.forget(number)
        raise OutcomeUnknown("no answer came")

    async def client(self, member: Member, until: float) -> None:
        proposer = None
        while trio.current_time() < until:
            await trio.sleep(self.random.uniform(0, 0.05))
            if member.driver is None:
                proposer = None
                continue
            proposer = proposer or self.proposer(member)
            key = self.random.randrange(KEYS)
            if self.random.random() < 0.4:
                await self._read(member, key)
            else:
                await self._change(proposer, key)

    async def _read(self, member: Member, key: int) -> None:
        called, driver = trio.current_time(), member.up
        with trio.move_on_after(CALL_SECONDS):
            try:
                await driver.read_index()
            except Retryable:
                return
            value = member.values().get(key) if member.driver is driver else None
            if member.driver is driver:
                self.answered += 1
                self.told.append((key, Op("read", called, trio.current_time(), value)))

    async def _change(self, proposer: Proposer[Command], key: int) -> None:
        self._value += 1
        kind = self.random.choice(["write", "cas"])
        expected = None if kind == "write" else max(1, self._value - self.random.randint(1, 4))
        operation = (kind, key, self._value) if kind == "write" else (kind, key, expected, self._value)
        called, value = trio.current_time(), self._value
        try:
            done = await proposer.propose(operation, seconds=CALL_SECONDS)
        except OutcomeUnknown:
            self.unknown += 1
            self.told.append((key, Op(kind, called, NEVER, value, expected)))
        except Retryable:
            pass  # it did not happen
        else:
            self.answered += 1
            ok = bool(msgpack.unpackb(done.reply))
            self.told.append((key, Op(kind, called, trio.current_time(), value, expected, ok)))


async def trouble(rig: Rig, random: Random, until: float) -> None:
    """One thing after the other, never so much that no majority is left for long."""
    members = list(rig.wires.members.values())
    while trio.current_time() < until:
        await trio.sleep(random.uniform(0.2, 0.8))
        member = random.choice(members)
        acts: list[Callable[[], Any]] = [
            partial(rig.wires.cut_off, member.name),
            rig.wires.cuts.clear,
            partial(rig.wires.cuts.add, (member.name, random.choice(NAMES))),
        ]
        if random.random() < 0.3:
            await member.stop()
            await trio.sleep(random.uniform(0, 1.0))
            await rig.start(member)
        else:
            random.choice(acts)()
    rig.wires.cuts.clear()


@pytest.mark.parametrize(
    ("seed", "seconds"),
    [(1, 3.0), *(pytest.param(seed, 30.0, marks=pytest.mark.check) for seed in range(2, 6))],
)
async def test_what_clients_are_told_is_linearizable(tmp_path: Path, seed: int, seconds: float) -> None:
    random = Random(seed)
    async with cluster(tmp_path, *NAMES, policy=Policy(every_entries=60, kept_entries=10)) as rig:
        await rig.leader()
        clients = Clients(rig, random)
        until = trio.current_time() + seconds
        async with trio.open_nursery() as nursery:
            for member in list(rig.wires.members.values()) * 2:
                nursery.start_soon(clients.client, member, until)
            nursery.start_soon(trouble, rig, random, until)
        assert clients.answered > 20 * seconds / 5, (clients.answered, clients.unknown)
        for key in range(KEYS):
            history = [op for at, op in clients.told if at == key]
            assert is_linearizable(history), f"seed {seed}, key {key}: {len(history)} operations"
        leader = await rig.leader()
        await leader.read_index()
        await rig.agree(rig.wires.members[leader.node_id].values())
