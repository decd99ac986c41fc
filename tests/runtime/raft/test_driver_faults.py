"""Disks that stall, fill up and fail under a driver; what it takes part in meanwhile, and what ends it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import trio

from conveyord.core.errors import OutcomeUnknown, StorageFull
from conveyord.core.raft.messages import Write
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import Entry, Mark
from conveyord.runtime.raft import applying, health
from conveyord.runtime.raft.driver import Driver
from conveyord.runtime.raft.outcomes import Done, Outcome, Unknown
from conveyord.runtime.raft.ports import LogPort, StatePort
from conveyord.runtime.raft.snapshots import Policy
from tests.runtime.raft.rig import WAIT_SECONDS, Rig, cluster, left_behind, opened, reached, written
from tests.sim.machine import command

NAMES = ("a", "b", "c")
SMALL = Policy(every_entries=40, kept_entries=10)


class SickLog:
    """A real log whose disk does as the test says."""

    def __init__(self, log: LogPort) -> None:
        self._log = log
        self.goes_on = threading.Event()
        self.goes_on.set()
        self.fails = False
        self.is_full = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._log, name)

    @property
    def has_reserve(self) -> bool:
        return not self.is_full and self._log.has_reserve

    def write(self, write: Write) -> None:
        if self.fails:
            raise OutcomeUnknown("the disk failed; end this process")
        assert self.goes_on.wait(WAIT_SECONDS)
        self._log.write(write)


class FullState:
    """A real state whose disk has no room for so many attempts."""

    def __init__(self, state: StatePort, switch_refusals: int) -> None:
        self._state = state
        self.refusals = 0
        self.switch_refusals = switch_refusals

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def try_out(self, entries: Sequence[Entry]) -> Sequence[bytes]:
        if self.refusals:
            raise StorageFull("no room; free space")
        return self._state.try_out(entries)

    def apply(self, entries: Sequence[Entry]) -> Sequence[bytes]:
        if self.refusals:
            self.refusals -= 1
            raise StorageFull("no room; free space")
        return self._state.apply(entries)

    def switch(self, mark: Mark) -> None:
        if self.switch_refusals:
            self.switch_refusals -= 1
            raise StorageFull("no room; free space")
        self._state.switch(mark)


class Sick:
    """Members' logs by the order in which they were opened."""

    def __init__(self) -> None:
        self.logs = list[SickLog]()
        self.states = list[FullState]()
        self.switch_refusals = 0

    def log(self, log: LogPort) -> LogPort:
        self.logs.append(SickLog(log))
        return self.logs[-1]  # type: ignore[return-value]

    def state(self, state: StatePort) -> StatePort:
        self.states.append(FullState(state, self.switch_refusals))
        return self.states[-1]  # type: ignore[return-value]

    def of(self, driver: Driver) -> SickLog:
        return self.logs[NAMES.index(driver.node_id)]


async def led_by_another(rig: Rig, old: Driver, session: int) -> Driver:
    """Another node leads and commits."""
    new = await rig.leader(but=old.node_id)
    assert isinstance(await written(new, session, 2, 1, 2), Done)
    return new


async def test_a_leader_whose_disk_stalls_hands_over_and_follows_when_it_is_well(tmp_path: Path) -> None:
    sick = Sick()
    async with cluster(tmp_path, *NAMES, log_of=sick.log) as rig:
        old = await rig.leader()
        session = await opened(old)
        sick.of(old).goes_on.clear()
        outcomes = list[Outcome]()
        old.propose(command(session, 1, 1, ("write", 1, 1)), outcomes.append)
        await led_by_another(rig, old, session)
        assert "a write waits" in old._health.trouble
        assert [type(outcome) for outcome in outcomes] == [Done], "the others have it"
        assert old.standing.applied < outcomes[0].index  # type: ignore[union-attr]
        sick.of(old).goes_on.set()
        await rig.agree({1: 2})
        with trio.fail_after(WAIT_SECONDS):
            while old._health.trouble:
                await trio.sleep(0.01)


async def test_a_leader_whose_disk_stalls_tells_of_what_nobody_else_has(tmp_path: Path) -> None:
    sick = Sick()
    async with cluster(tmp_path, *NAMES, log_of=sick.log) as rig:
        old = await rig.leader()
        session = await opened(old)
        sick.of(old).goes_on.clear()
        rig.wires.cut_off(old.node_id)
        outcomes = list[Outcome]()
        old.propose(command(session, 1, 1, ("write", 1, 1)), outcomes.append)
        await led_by_another(rig, old, session)
        assert outcomes == []
        rig.wires.cuts.clear()
        with trio.fail_after(WAIT_SECONDS):
            while not outcomes:
                await trio.sleep(0.01)
        assert [type(outcome) for outcome in outcomes] == [Unknown], "it may be long until its own disk tells"
        sick.of(old).goes_on.set()
        await rig.agree({1: 2})


async def test_a_leader_whose_disk_is_full_hands_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "RENEW_SECONDS", 0.05)
    sick = Sick()
    async with cluster(tmp_path, *NAMES, log_of=sick.log) as rig:
        old = await rig.leader()
        session = await opened(old)
        sick.of(old).is_full = True
        await led_by_another(rig, old, session)
        sick.of(old).is_full = False
        await rig.agree({1: 2})


async def test_a_write_that_fails_ends_the_node_and_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    sick = Sick()
    async with cluster(tmp_path, *NAMES, log_of=sick.log) as rig:
        old = await rig.leader()
        session = await opened(old)
        rig.wires.cut_off(old.node_id)  # else the others commit it, and it would be known
        sick.of(old).fails = True
        answers = list[object]()
        old.propose(command(session, 1, 1, ("write", 1, 1)), answers.append)
        member = rig.wires.members[old.node_id]
        with trio.fail_after(WAIT_SECONDS):
            await member.ended.wait()
        assert isinstance(member.trouble, OutcomeUnknown)
        assert answers == [Unknown("this node has ended")]
        await led_by_another(rig, old, session)


async def test_a_state_without_room_is_tried_again_and_nothing_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(applying, "AGAIN_SECONDS", 0.05)
    sick = Sick()
    async with cluster(tmp_path, "a", state_of=sick.state) as rig:
        driver = await rig.leader()
        session = await opened(driver)
        sick.states[0].refusals = 3
        assert isinstance(await written(driver, session, 1, 1, 1), Done)
        assert sick.states[0].refusals == 0
        await reached(driver, lambda standing: standing.role is Role.LEADER)
        await rig.agree({1: 1})


async def test_a_snapshot_waits_until_there_is_room_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applying, "AGAIN_SECONDS", 0.05)
    sick = Sick()
    async with cluster(tmp_path, *NAMES, policy=SMALL, state_of=sick.state) as rig:
        late, _, _ = await left_behind(rig, 200)
        sick.switch_refusals = 3
        await rig.start(late)
        await reached(late.up, lambda standing: standing.applied >= 200)
        assert sick.states[-1].switch_refusals == 0
        await rig.agree({1: 200})
