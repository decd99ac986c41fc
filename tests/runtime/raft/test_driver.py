"""Drivers on real logs and states: commits, groups, reads, restarts, snapshots, members, and what ends one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from conveyord.core.errors import Corrupt, Refused, Retryable, StorageFull
from conveyord.core.raft.membership import Change, Membership, Standing
from conveyord.core.raft.messages import Dropped, Heartbeat, NotLeader
from conveyord.core.raft.state import Role
from conveyord.core.raft.types import Entry, Kind, Mark, make_entry
from conveyord.runtime.raft import driver, snapshots
from conveyord.runtime.raft.driver import COMMAND_BYTES_MAX, TICK
from conveyord.runtime.raft.outcomes import Done, Outcome, Unknown
from conveyord.runtime.raft.ports import StatePort
from conveyord.runtime.raft.snapshots import Policy
from tests.runtime.raft.rig import (
    WAIT_SECONDS,
    asked,
    cluster,
    compacted,
    left_behind,
    opened,
    proposed,
    reached,
    written,
)
from tests.sim.machine import command, register

NAMES = ("a", "b", "c")
SMALL = Policy(every_entries=40, kept_entries=10)


async def test_three_nodes_agree(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        for number in range(1, 21):
            outcome = await written(leader, session, number, number % 5, number)
            assert isinstance(outcome, Done)
            assert msgpack.unpackb(outcome.reply) is True
        await rig.agree({0: 20, 1: 16, 2: 17, 3: 18, 4: 19})
        digests = {member.store.state_digest() for member in rig.wires.members.values() if member.store is not None}
        assert len(digests) == 1


async def test_many_proposals_are_one_sync(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as rig:
        driver = await rig.leader()
        session = await opened(driver)
        before = driver._disk.writes
        outcomes = list[object]()

        async def write(number: int) -> None:
            data = command(session, number, 1, ("write", number % 10, number))
            outcomes.append(await proposed(driver, data))

        async with trio.open_nursery() as nursery:
            for number in range(1, 501):
                nursery.start_soon(write, number)
        assert len(outcomes) == 500
        assert all(isinstance(outcome, Done) for outcome in outcomes)
        assert driver._disk.writes - before <= 50


async def test_commands_about_different_objects_share_an_entry(tmp_path: Path) -> None:
    """So none of those about one: each finds its object at an index that only it has. Each is answered by itself."""
    async with cluster(tmp_path, "a") as rig:
        driver = await rig.leader()
        session = await opened(driver)
        before, done = driver.standing.commit, dict[int, Outcome]()
        keys = [1, 2, 3, 1, None, 2, 4]
        numbers = [
            driver.propose(
                command(session, number, 1, ("cas", key or 9, 5 if key == 3 else None, number)),
                partial(done.__setitem__, number),
                about=None if key is None else str(key),
            )
            for number, key in enumerate(keys, 1)
        ]
        driver.forget(numbers[1])
        with trio.fail_after(WAIT_SECONDS):
            await driver.until(lambda _: len(done) == len(keys) - 1)
        replies = {number: msgpack.unpackb(one.reply) for number, one in done.items() if isinstance(one, Done)}
        assert replies == {1: True, 3: False, 4: False, 5: True, 6: False, 7: True}
        index = {number: one.index for number, one in done.items() if isinstance(one, Done)}
        assert index[1] == index[3] != index[4] == index[6] == index[7]
        assert index[5] not in {index[1], index[4]}
        assert driver.standing.commit == before + 3
        await rig.agree({1: 1, 2: 2, 4: 7, 9: 5})


async def test_commands_about_one_object_stay_in_their_order(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as rig:
        driver = await rig.leader()
        session, done = await opened(driver), list[Outcome]()
        for number, key in enumerate((1, 1, 2, 1, 3, 3), 1):
            data = command(session, number, 1, ("write", key, number))
            driver.propose(data, done.append, about=str(key))
        with trio.fail_after(WAIT_SECONDS):
            await driver.until(lambda _: len(done) == 6)
        await rig.agree({1: 4, 2: 3, 3: 6})


async def test_of_commands_that_nobody_waits_for_nothing_is_left(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        old = await rig.leader()
        session = await opened(old)
        rig.wires.cut_off(old.node_id)
        for number in (1, 2, 3):
            old.forget(old.propose(command(session, number, 1, ("write", number, 1)), print, about=str(number)))
        await trio.testing.wait_all_tasks_blocked()
        assert old._bundles
        assert not old._answers
        await rig.leader(but=old.node_id)
        rig.wires.cuts.clear()
        with trio.fail_after(WAIT_SECONDS):
            while old._bundles:
                await trio.sleep(0.01)


async def test_of_a_bundle_that_is_lost_each_command_is_told_so(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        old = await rig.leader()
        session = await opened(old)
        other = next(driver for driver in rig.up if driver is not old)
        rig.wires.cut_off(old.node_id)
        lost, refused = dict[int, Outcome](), dict[int, Outcome]()
        for driver, told in ((old, lost), (other, refused)):
            for key in (1, 2, 3):
                data = command(session, key, 1, ("write", key, key))
                driver.propose(data, partial(told.__setitem__, key), about=str(key))
        new = await rig.leader(but=old.node_id)
        assert isinstance(await written(new, session, 4, 1, 4), Done)
        rig.wires.cuts.clear()
        with trio.fail_after(WAIT_SECONDS):
            await old.until(lambda _: len(lost) == 3)
        assert [type(lost[key]) for key in (1, 2, 3)] == [Dropped] * 3
        assert [type(refused[key]) for key in (1, 2, 3)] == [NotLeader] * 3
        assert len({one.number for one in refused.values() if isinstance(one, Dropped)}) == 3
        await rig.agree({1: 4})


async def test_a_follower_says_who_leads_and_reads_what_the_leader_has_committed(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        for member in rig.wires.members.values():
            if member.up is leader:
                continue
            outcome = await written(member.up, session, 1, 1, 1)
            assert isinstance(outcome, NotLeader)
            assert outcome.leader == leader.node_id
        for number in range(1, 11):
            done = await written(leader, session, number, 1, number)
            assert isinstance(done, Done)
            for member in rig.wires.members.values():
                assert await member.up.read_index() >= done.index
                assert member.values() == {1: number}


async def test_a_leader_that_is_cut_off_confirms_nothing_and_another_takes_over(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        old = await rig.leader()
        session = await opened(old)
        assert isinstance(await written(old, session, 1, 1, 1), Done)
        rig.wires.cut_off(old.node_id)
        answers = list[object]()
        old.propose(command(session, 2, 2, ("write", 1, 2)), answers.append)
        with pytest.raises(Retryable, match="no leader confirms"):
            await old.read_index()
        new = await rig.leader(but=old.node_id)
        assert isinstance(await written(new, session, 3, 1, 3), Done)
        assert answers == []
        rig.wires.cuts.clear()
        await rig.agree({1: 3})
        ((lost,),) = [answers]
        assert isinstance(lost, Dropped)
        assert "another leader" in lost.reason
        assert isinstance(await written(new, session, 2, 1, 2), Done), "it is safe to propose anew"


async def test_who_proposed_to_a_leader_that_was_cut_off_is_told_when_it_is_back(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        old = await rig.leader()
        session = await opened(old)
        rig.wires.cut_off(old.node_id)
        outcomes = list[Outcome]()
        for number in range(1, 6):
            old.propose(command(session, number, 1, ("write", 1, number)), outcomes.append)
            await old.until(lambda _: old._node.state.log.last > old.standing.commit)
        await rig.leader(but=old.node_id)
        assert outcomes == []
        rig.wires.cuts.clear()
        with trio.fail_after(WAIT_SECONDS):
            while len(outcomes) < 5:
                await trio.sleep(0.01)
        assert {type(outcome) for outcome in outcomes} == {Dropped, Unknown}
        await rig.agree({})


async def test_what_was_answered_outlives_that_all_nodes_are_stopped(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        members = list(rig.wires.members.values())
        for number in range(1, 6):
            leader = await rig.leader()
            session = await opened(leader)
            assert isinstance(await written(leader, session, 1, number, number), Done)
            for member in members:
                await member.stop()
            await rig.start(*members)
        await rig.agree({number: number for number in range(1, 6)})


async def test_who_was_away_gets_a_snapshot_of_what_was_compacted(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES, policy=SMALL) as rig:
        late, leader, session = await left_behind(rig, 200)
        await rig.start(late)
        await compacted(late.up, 100)
        last = await written(leader, session, 201, 1, 201)
        assert isinstance(last, Done)
        await reached(late.up, lambda standing: standing.applied >= last.index)
        assert late.values()[1] == 201
        await late.stop()
        await rig.start(late)
        await reached(late.up, lambda standing: standing.applied >= last.index)


class SlowApply:
    """A state that applies when the test says."""

    def __init__(self, state: StatePort) -> None:
        self._state = state
        self.goes_on = threading.Event()
        self.goes_on.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def apply(self, entries: Sequence[Entry]) -> Sequence[bytes]:
        assert self.goes_on.wait(WAIT_SECONDS)
        return self._state.apply(entries)


async def test_what_is_committed_is_answered_before_the_state_has_it_and_reads_wait(tmp_path: Path) -> None:
    states = list[SlowApply]()

    def slow(state: StatePort) -> StatePort:
        states.append(SlowApply(state))
        return states[-1]  # type: ignore[return-value]

    async with cluster(tmp_path, "a", state_of=slow) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        await reached(leader, lambda standing: standing.applied == standing.commit)
        states[0].goes_on.clear()
        done = await written(leader, session, 1, 1, 7)
        assert isinstance(done, Done)
        assert leader.standing.applied < done.index
        read = list[int]()

        async def reader() -> None:
            read.append(await leader.read_index())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reader)
            for _ in range(10):
                await leader.until(lambda standing: standing.commit >= done.index)
                await trio.testing.wait_all_tasks_blocked()
            assert read == []
            states[0].goes_on.set()
        assert read == [done.index]
        await rig.agree({1: 7})


async def put_off(leader: driver.Driver, follower: driver.Driver, session: int, outcomes: list[Outcome]) -> int:
    """Write, many at a time, so that there is always more to write, until the follower puts off applying."""
    number = 0
    with trio.fail_after(WAIT_SECONDS):
        while not number or follower._behind is None or not follower._behind.is_open:
            number += 1
            leader.propose(command(session, number, number, ("write", 1, number)), outcomes.append)
            await trio.sleep(0.001)
    return number


@pytest.mark.parametrize(("name", "many"), [("BEHIND_SECONDS", 1 << 20), ("BUSY_BEHIND_SECONDS", 1)])
async def test_a_follower_that_has_to_write_applies_later_unless_somebody_reads_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, many: int
) -> None:
    """For one time or the other, by how much there is."""
    monkeypatch.setattr(driver, name, 10 * WAIT_SECONDS)
    monkeypatch.setattr(driver, "BUSY_BYTES", many)
    async with cluster(tmp_path, *NAMES) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        follower = next(member.up for member in rig.wires.members.values() if member.up is not leader)
        outcomes = list[Outcome]()
        number = await put_off(leader, follower, session, outcomes)
        with trio.fail_after(WAIT_SECONDS):
            behind = follower.standing
            assert behind.applied < behind.commit
            assert await follower.read_index() >= behind.commit
            await leader.until(lambda _: len(outcomes) == number)
            for member in rig.wires.members.values():
                await member.up.read_index()
                assert member.values() == {1: number}
        assert all(isinstance(outcome, Done) for outcome in outcomes)


async def test_a_follower_that_becomes_the_leader_waits_no_longer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "BEHIND_SECONDS", 10 * WAIT_SECONDS)
    async with cluster(tmp_path, *NAMES) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        follower = next(member.up for member in rig.wires.members.values() if member.up is not leader)
        number = await put_off(leader, follower, session, [])
        leader.transfer(follower.node_id)
        await reached(follower, lambda now: now.role is Role.LEADER and now.applied == now.commit >= number)


async def test_members_that_are_busy_apply_at_different_times(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        await rig.leader()
        much = [make_entry(b"", 1, 1, Kind.COMMAND, bytes(driver.BUSY_BYTES))]
        seconds = {member._behind_seconds(much) for member in rig.up}
    assert len(seconds) == 3
    assert max(seconds) == driver.BUSY_BEHIND_SECONDS
    assert min(seconds) > driver.BEHIND_SECONDS


class SlowSnapshots:
    """A state whose snapshots take as long as the test says."""

    def __init__(self, state: StatePort) -> None:
        self._state = state
        self.begun = 0
        self.goes_on = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def take_snapshot(self) -> Mark:
        self.begun += 1
        assert self.goes_on.wait(WAIT_SECONDS)
        return self._state.take_snapshot()


async def test_what_is_applied_while_a_snapshot_is_taken_counts_for_the_next(tmp_path: Path) -> None:
    states = list[SlowSnapshots]()

    def slow(state: StatePort) -> StatePort:
        states.append(SlowSnapshots(state))
        return states[-1]  # type: ignore[return-value]

    async with cluster(tmp_path, "a", policy=SMALL, state_of=slow) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        for number in range(1, 91):
            assert isinstance(await written(leader, session, number, 1, number), Done)
        assert states[0].begun == 1
        states[0].goes_on.set()
        with trio.fail_after(WAIT_SECONDS):
            while leader._node.state.log.base.index == 0:
                await trio.sleep(0.01)
        for number in range(91, 101):
            assert isinstance(await written(leader, session, number, 1, number), Done)
        assert states[0].begun == 1


async def test_members_take_their_snapshots_at_different_times(tmp_path: Path) -> None:
    states = list[SlowSnapshots]()

    def slow(state: StatePort) -> StatePort:
        states.append(SlowSnapshots(state))
        return states[-1]  # type: ignore[return-value]

    async with cluster(tmp_path, *NAMES, policy=Policy(every_entries=300, kept_entries=10), state_of=slow) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        begun = list[int]()
        for number in range(1, 301):
            done = await written(leader, session, number, 1, number)
            assert isinstance(done, Done)
            for driver in rig.up:
                await reached(driver, lambda standing, done=done: standing.applied >= done.index)
            begun.append(sum(state.begun for state in states))
        assert [begun.count(count) for count in (0, 1, 2)] == pytest.approx([100] * 3, abs=20)
        for state in states:
            state.goes_on.set()


async def test_few_entries_are_compacted_too_if_there_is_much_in_them(tmp_path: Path) -> None:
    """And so much is kept for who is a little late."""
    policy = Policy(every_bytes=4_000, kept_bytes=1_000)
    async with cluster(tmp_path, "a", policy=policy) as rig:
        leader = await rig.leader()
        session, log = await opened(leader), leader._node.state.log
        kept, compact = list[int](), leader._disk.compact

        def noted(behind: Mark, index: int, members: Membership) -> None:
            kept.append(log.size(index + 1, behind.index + 1))
            compact(behind, index, members)

        leader._disk.compact = noted  # type: ignore[method-assign]
        for number in range(1, 201):
            assert isinstance(await written(leader, session, number, 1, number), Done)
        await compacted(leader, 100)
    assert len(kept) >= 3
    assert all(700 <= size <= 1_200 for size in kept[1:]), kept


async def test_a_snapshot_that_is_due_by_bytes_and_could_not_be_taken_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshots, "AGAIN_SECONDS", 0.01)
    states = list[FullDisk]()

    def full(state: StatePort) -> StatePort:
        states.append(FullDisk(state))
        return states[-1]  # type: ignore[return-value]

    async with cluster(tmp_path, "a", policy=Policy(every_bytes=256 * 100), state_of=full) as rig:
        leader = await rig.leader()
        session, number = await opened(leader), 0
        with trio.fail_after(WAIT_SECONDS):
            while states[0].asked < 2:
                number += 1
                assert isinstance(await written(leader, session, number, 1, number), Done)
                if states[0].asked:
                    await trio.sleep(0.02)
        assert number < 400, "not only when as much was applied again"


class FullDisk:
    """A state that has no room for its first snapshot."""

    def __init__(self, state: StatePort) -> None:
        self._state = state
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._state, name)

    def take_snapshot(self) -> Mark:
        self.asked += 1
        if self.asked == 1:
            raise StorageFull("no room; free space")
        return self._state.take_snapshot()


async def test_leadership_is_handed_over(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        leader = await rig.leader()
        heir = next(driver for driver in rig.up if driver is not leader)
        leader.transfer(heir.node_id)
        await reached(heir, lambda standing: standing.role is Role.LEADER)
        await reached(leader, lambda standing: standing.leader == heir.node_id)


async def test_a_node_joins_catches_up_and_becomes_a_voter(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES, policy=SMALL) as rig:
        leader = await rig.leader()
        session = await opened(leader)
        for number in range(1, 101):
            assert isinstance(await written(leader, session, number, 1, number), Done)
        new = rig.add("d")
        await rig.start(new)
        for standing in (Standing.LEARNER, Standing.VOTER):
            while True:
                outcome = await asked(partial(leader.change_members, [Change("d", standing)]))
                if isinstance(outcome, Done):
                    break
                await trio.sleep(0.02)  # it has not caught up, or the change before is under way
            await reached(new.up, lambda now, index=outcome.index: now.applied >= index)  # type: ignore[misc]
        assert new.values() == {1: 100}
        assert new.up._node.state.membership.voters == {"a", "b", "c", "d"}


async def test_who_waits_is_told_when_a_node_ends(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        leader = await rig.leader()
        rig.wires.cut_off(leader.node_id)
        answers = list[object]()
        leader.propose(register(), answers.append)
        await trio.sleep(0.05)
        told = list[str]()

        async def read() -> None:
            with pytest.raises(Retryable) as found:
                await leader.read_index()
            told.append(str(found.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            nursery.start_soon(rig.wires.members[leader.node_id].stop)
        assert len(told) == 1, "who waits for a read is not left to wait for ever"
        assert answers == [Unknown("this node has ended")]
        assert await proposed(leader, register()) == Dropped(leader._number, "this node has ended", None)
        with pytest.raises(Retryable, match="this node has ended"):
            await leader.read_index()


async def test_what_fails_in_a_hurried_turn_ends_the_node_and_not_who_hurried(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as rig:
        driver = await rig.leader()

        def damaged(*_: object) -> None:
            raise Corrupt("the logs differ")

        driver._node.step = damaged  # type: ignore[method-assign]
        driver.tell(TICK)
        driver.hurry()
        member = rig.wires.members["a"]
        with trio.fail_after(WAIT_SECONDS):
            await member.ended.wait()
        assert isinstance(member.trouble, Corrupt)


async def test_a_command_that_is_too_large_is_refused_and_the_largest_is_applied(tmp_path: Path) -> None:
    async with cluster(tmp_path, *NAMES) as rig:
        leader = await rig.leader()
        with pytest.raises(Refused, match="at most 4194304; keep what is large elsewhere"):
            leader.propose(bytes(COMMAND_BYTES_MAX + 1), lambda _: None)
        largest = command(0, 0, 0, ("write", bytes(COMMAND_BYTES_MAX - 100), 1))  # type: ignore[arg-type]
        outcome = await proposed(leader, largest)
        assert isinstance(outcome, Done)
        for member in rig.wires.members.values():
            await reached(member.up, lambda standing: standing.applied >= outcome.index)


async def test_a_message_for_another_node_is_refused(tmp_path: Path) -> None:
    async with cluster(tmp_path, "a") as rig:
        with pytest.raises(Refused, match="for node x came to node a"):
            rig.up[0].receive(Heartbeat("b", "x", 1, 0, 0))
