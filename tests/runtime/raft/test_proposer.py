"""Numbers of one session: thousands of callers at once, answered in any order, and none refused for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgpack
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from conveyord.core.errors import Retryable
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.messages import Heartbeat, Receive
from conveyord.core.raft.node import RaftNode
from conveyord.core.raft.sessions import WINDOW, Sessions
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.outcomes import Done, Outcome
from conveyord.runtime.raft.ports import LogPort, StatePort
from conveyord.runtime.raft.proposer import Proposer
from conveyord.runtime.raft.snapshots import Policy
from tests.runtime.raft.rig import WAIT_SECONDS, Member, Rig, Wire
from tests.runtime.raft.test_histories import KvSession

LEADER = "b"


class Led(Member):
    """A node that has heard of a leader, and whose clock stands still: so that one leads all the time."""

    async def drive(self, node: RaftNode, log: LogPort, state: StatePort, task_status: trio.TaskStatus[None]) -> None:
        node.step(Receive(Heartbeat(LEADER, self.name, 1, commit=0, round=1)), trio.current_time())
        self.driver = Driver(node, log, state, Wire(self.name, self.wires), self.policy)
        task_status.started()
        await trio.sleep_forever()


class Leader:
    """The other node: the real sessions, and commands that are applied and answered when the test says so.

    asked: (number, key) as they came. held: what waits for that.
    """

    def __init__(self) -> None:
        self.sessions = Sessions()
        self.index = 0
        self.asked = list[tuple[int, int]]()
        self.held = list[tuple[int, trio.Event]]()

    async def __call__(self, leader: str, data: bytes) -> Outcome:
        assert leader == LEADER
        parts = msgpack.unpackb(data)
        if parts:
            session, number, ack_below, _, key, _ = parts
            assert number - ack_below < WINDOW
            self.asked.append((number, key))
            await self._turn(number)
            reply = self.sessions.apply(session, number, ack_below, lambda: b"done")
            await self._turn(number)
        else:
            reply = msgpack.packb(self.sessions.register(self.index + 1))
        self.index += 1
        return Done(self.index, reply)

    async def _turn(self, number: int) -> None:
        event = trio.Event()
        self.held.append((number, event))
        await event.wait()

    async def let_go(self, random: Random) -> None:
        """One after the other, whichever, until cancelled."""
        while True:
            if self.held:
                at = random.randrange(len(self.held))
                self.held[at], self.held[-1] = self.held[-1], self.held[at]
                self.held.pop()[1].set()
            await trio.lowlevel.checkpoint()

    async def answer(self, number: int) -> None:
        """Apply this one, and answer it."""
        for _ in range(2):
            ((found,),) = [[pair for pair in self.held if pair[0] == number]]
            self.held.remove(found)
            found[1].set()
            await wait_all_tasks_blocked()


@asynccontextmanager
async def proposing(home: Path) -> AsyncIterator[tuple[Leader, Proposer[Any]]]:
    async with trio.open_nursery() as nursery:
        rig = Rig(home, nursery, Policy())
        member = rig.add("a", Membership(frozenset({"a", LEADER})), kind=Led)
        await rig.start(member)
        leader = Leader()
        yield leader, Proposer(member.up, leader, KvSession())
        await member.stop()


async def propose(proposer: Proposer[Any], key: int) -> None:
    done = await proposer.propose(("write", key, key), seconds=WAIT_SECONDS)
    assert done.reply == b"done"


@pytest.mark.parametrize("seed", range(3))
async def test_of_callers_at_once_none_is_refused_whatever_order_they_are_answered_in(
    tmp_path: Path, seed: int
) -> None:
    async with proposing(tmp_path) as (leader, proposer), trio.open_nursery() as letting:
        letting.start_soon(leader.let_go, Random(seed))
        came = list[int]()

        async def call(first: int) -> None:
            for key in (first, first + 1):
                came.append(key)
                await propose(proposer, key)

        async with trio.open_nursery() as nursery:
            for first in range(0, 4_000, 2):
                nursery.start_soon(call, first)
        letting.cancel_scope.cancel()
        assert [key for _, key in sorted(leader.asked)] == came, "whoever comes first has the lower number"
        assert [number for number, _ in sorted(leader.asked)] == list(range(1, 4_001))


async def test_who_waits_for_a_number_is_let_in_by_the_lowest_that_is_open_alone(tmp_path: Path) -> None:
    async with proposing(tmp_path) as (leader, proposer), trio.open_nursery() as nursery:
        for key in range(WINDOW):
            nursery.start_soon(propose, proposer, key)
        await wait_all_tasks_blocked()
        given_up = trio.CancelScope()

        async def give_up() -> None:
            with given_up:
                await propose(proposer, WINDOW)

        nursery.start_soon(give_up)
        await wait_all_tasks_blocked()
        nursery.start_soon(propose, proposer, WINDOW + 1)
        await wait_all_tasks_blocked()
        for number in (2, 3, WINDOW):
            await leader.answer(number)
        assert len(leader.asked) == WINDOW
        with pytest.raises(Retryable, match="not proposed within 0 s"):
            await proposer.propose(("write", 0, 0), seconds=0)
        given_up.cancel()
        await wait_all_tasks_blocked()
        await leader.answer(1)
        assert leader.asked[WINDOW:] == [(WINDOW + 1, WINDOW + 1)], "not the one that gave up"
        for key in range(3):
            nursery.start_soon(partial(propose, proposer, key))
        await wait_all_tasks_blocked()
        assert sorted(number for number, _ in leader.asked[WINDOW:]) == [WINDOW + 1, WINDOW + 2, WINDOW + 3]
        nursery.start_soon(leader.let_go, Random(1))
        for key in range(WINDOW):
            await propose(proposer, key)
        nursery.cancel_scope.cancel()
