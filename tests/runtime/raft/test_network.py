"""Raft over real sockets: proposals that are forwarded, snapshots that are streamed, and who may not speak."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio

from conveyord.core.errors import Refused, Retryable
from conveyord.core.raft.codec import encode
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import TimeoutNow
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.state import Role
from conveyord.core.retry import Backoff
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.network import MESSAGE, PROPOSE, Network
from conveyord.runtime.raft.outcomes import Done
from conveyord.runtime.raft.ports import LogPort, StatePort
from conveyord.runtime.raft.proposer import Proposer
from conveyord.runtime.raft.receiving import Receiving
from conveyord.runtime.raft.snapshots import Policy
from conveyord.runtime.rpc.dialing import dial_once
from conveyord.runtime.rpc.greeting import Me, Side
from conveyord.runtime.rpc.handlers import Admission, Handlers
from conveyord.runtime.rpc.limits import Counters, Limits
from conveyord.runtime.rpc.server import RpcServer
from conveyord.storage.state_store.receiving import SnapshotReceiver
from tests.runtime.raft.rig import WAIT_SECONDS, Member, Rig, cluster, left_behind, opened, reached, written
from tests.runtime.raft.test_histories import KvSession, about
from tests.sim.machine import register
from tests.storage.kv_state import MIGRATIONS

NAMES = ("a", "b", "c")
FORBIDDEN = b"\xc1"


def vetted(data: bytes) -> str | None:
    if data == FORBIDDEN:
        raise Refused("nobody could apply this")
    return about(data)


def side_of(node: str) -> Side:
    return Side(lambda: Me(node, 1, "test"), Handlers(), Limits(), Counters())


@dataclass(eq=False)
class Remote(Member):
    """A member that others reach by a socket, at the same port in every life."""

    port: int = 0
    side: Side = field(default_factory=lambda: side_of(""))
    network: Network | None = None

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    async def drive(self, node: RaftNode, log: LogPort, state: StatePort, task_status: trio.TaskStatus[None]) -> None:
        self.side = side_of(self.name)
        self.network = Network(self.name, self.side, Random(self.name), self._receiver, vet=vetted)
        self.driver = driver = Driver(node, log, state, self.network, self.policy)
        listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listeners[0].socket.getsockname()[1]
        server = RpcServer(self.side, lambda *_: Admission(), on_connection=self.network.met)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(server.serve, listeners, drain=trio.Event()))
            nursery.start_soon(self.network.run, driver)
            await driver.run(task_status=task_status)

    def _receiver(self, info: SnapshotInfo) -> SnapshotReceiver:
        return SnapshotReceiver(self.home / "state", info, MIGRATIONS)

    def proposer(self) -> Proposer[Any]:
        assert self.network is not None
        return Proposer(self.up, self.network, KvSession())


def introduce(rig: Rig) -> list[Remote]:
    """Tell everybody where the others are."""
    members = [member for member in rig.wires.members.values() if isinstance(member, Remote)]
    for member in members:
        if member.network is not None:
            member.network.know({other.name: other.address for other in members})
    return members


async def test_any_node_takes_commands_and_the_leader_has_them_applied_once(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES, kind=Remote) as rig:
        members = introduce(rig)
        await rig.leader()
        proposers = [member.proposer() for member in members]

        async def propose(proposer: Proposer[Any], key: int) -> None:
            for value in range(20):
                done = await proposer.propose(("write", key, value), seconds=WAIT_SECONDS)
                assert isinstance(done, Done)

        async with trio.open_nursery() as nursery:
            for key, proposer in enumerate(proposers * 5):
                nursery.start_soon(propose, proposer, key)
        await rig.agree(dict.fromkeys(range(15), 19))


async def test_a_node_that_was_away_gets_a_snapshot_over_its_own_connection(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES, kind=Remote, policy=Policy(every_entries=40, kept_entries=10)) as rig:
        introduce(rig)
        late, _, _ = await left_behind(rig, 150)
        await rig.start(late)
        introduce(rig)
        await reached(late.up, lambda standing: standing.applied >= 150)
        assert late.up._node.state.log.base.index >= 100
        assert late.values() == {1: 150}


async def test_who_comes_back_is_dialled_at_once_by_all_who_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Backoff, "delay_seconds", lambda *_: 10 * WAIT_SECONDS)
    async with cluster(tmp_path, *NAMES, kind=Remote) as rig:
        members = introduce(rig)
        await rig.leader()
        back, *others = members
        await back.stop()
        monkeypatch.setattr(Network, "send", lambda *_: None)  # what it asked for in an election would be too late
        await rig.start(back)
        introduce(rig)
        with trio.fail_after(WAIT_SECONDS):
            for other in others:
                assert other.network is not None
                while other.network.peer(back.name).connection is None:
                    await trio.sleep(0.01)


async def test_a_stream_of_which_nothing_arrives_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def stuck(*_: object) -> int:
        return 0

    monkeypatch.setattr(Receiving, "chunk", stuck)
    async with cluster(tmp_path, *NAMES, kind=Remote) as rig:
        members = introduce(rig)
        leader = await rig.leader()
        await opened(leader)
        sender = next(member for member in members if member.up is leader)
        other = next(member for member in members if member.up is not leader)
        assert sender.store is not None
        assert sender.network is not None
        sender.store.snapshots.take()
        snapshot = sender.store.snapshots.newest()
        assert snapshot is not None
        with (
            snapshot,
            trio.fail_after(WAIT_SECONDS),
            pytest.raises(Retryable, match="0 bytes of the snapshot, as before"),
        ):
            await sender.network.send_snapshot(other.name, 1, snapshot)


async def test_who_is_heard_again_is_dialled_at_once(tmp_path: Path) -> None:
    """Else a node that comes back takes no part while the others wait to try it again."""
    async with cluster(tmp_path, *NAMES, kind=Remote) as rig:
        members = introduce(rig)
        leader = await rig.leader()
        late = next(member for member in members if member.up is not leader)
        for member in members:
            if member is not late and member.network is not None:
                member.network.peer(late.name)._backoff = Backoff(base_seconds=10_000.0, cap_seconds=10_000.0)
        await late.stop()
        session = await opened(leader)
        await trio.sleep(0.5)  # each has tried in vain, and waits
        await rig.start(late)
        introduce(rig)
        done = await written(leader, session, 1, 1, 1)
        assert isinstance(done, Done)
        await reached(late.up, lambda standing: standing.applied >= done.index)


async def test_who_is_no_member_may_not_speak_raft_and_nobody_for_another(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", kind=Remote) as rig:
        (member,) = introduce(rig)
        await rig.leader()
        async with dial_once(side_of(""), member.address) as client:
            with pytest.raises(Refused, match="a client is no member here"):
                await client.call(PROPOSE, register(), deadline_seconds=WAIT_SECONDS)
        async with dial_once(side_of("x"), member.address) as liar:
            assert liar.send(MESSAGE, encode(TimeoutNow("y", "a", 99)))
            with trio.fail_after(WAIT_SECONDS):
                while not member.side.counters.failed_requests["refused"]:
                    await trio.sleep(0.01)
        assert member.up.standing.role is Role.LEADER
        assert member.up.standing.term < 99


async def test_what_nobody_could_apply_does_not_get_into_the_log(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES, kind=Remote) as rig:
        members = introduce(rig)
        leader = await rig.leader()
        other = next(member for member in members if member.up is not leader)
        assert other.network is not None
        last = leader._node.state.log.last
        with pytest.raises(Refused, match="nobody could apply this"):
            await other.network(leader.node_id, FORBIDDEN)
        assert leader._node.state.log.last == last


async def test_a_node_whose_address_is_not_known_is_not_proposed_to(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a", kind=Remote) as rig:
        (member,) = introduce(rig)
        assert isinstance(member, Remote)
        assert member.network is not None
        with pytest.raises(Retryable, match="the address of node z is not known"):
            await member.network("z", b"")
        assert Membership(frozenset({"a"})) == member.up._node.state.membership


async def test_a_command_does_not_wait_for_a_former_leader_that_hangs(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES, kind=Remote) as rig:
        members = introduce(rig)
        leader = await rig.leader()
        asking = next(member for member in members if member.up is not leader)
        assert asking.network is not None
        network, asked = asking.network, list[str]()

        async def hanging(to: str, data: bytes) -> Any:
            asked.append(to)
            if to == leader.node_id:
                await trio.sleep_forever()
            return await network(to, data)

        proposer = Proposer(asking.up, hanging, KvSession())
        async with trio.open_nursery() as nursery:

            async def hand_over() -> None:
                while not asked:
                    await trio.sleep(0.01)
                leader.transfer(None)

            nursery.start_soon(hand_over)
            with trio.fail_after(WAIT_SECONDS):
                await proposer.propose(("write", 1, 1), seconds=WAIT_SECONDS)
        assert asked[0] == leader.node_id
