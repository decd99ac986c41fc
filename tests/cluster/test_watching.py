"""Reads and waits of a node, beside what changes the state."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from conveyord.core.errors import ConfigError, Retryable
from conveyord.core.state.commands import ConfigPut, SettingChange
from conveyord.core.state.rows import CONFIG, SETTINGS, TOKENS
from conveyord.runtime.raft.snapshots import Policy
from conveyord.storage.state.watching import Compacted, Events
from tests.cluster.rig import Rig, rig
from tests.cluster.test_coming_in import VOTER, put, three


async def one(made: Rig) -> object:
    await made.start("a")
    await made.until_standings_of_leader({"a": VOTER})
    return made.nodes["a"]


async def test_who_waits_is_woken_by_what_it_waits_for_and_nothing_else(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await one(made)
        node = made.nodes["a"].node
        assert node is not None
        start = await put(made.nodes["a"], "k", b"0")
        woken = list[str]()

        async def wait(topic: str) -> None:
            await node.wait_beyond((topic,), start, seconds=60.0)
            woken.append(topic)

        async with trio.open_nursery() as nursery:
            for topic in (CONFIG, SETTINGS):
                nursery.start_soon(wait, topic)
            await made.until(
                lambda: all(node.member.watches._waiting[topic] for topic in (CONFIG, SETTINGS)), "they wait"
            )
            await put(made.nodes["a"], "k", b"1")
            await made.until(lambda: woken == [CONFIG], "woken")
            await node.propose(SettingChange("events_max", 500, None), actor="test")
            await made.until(lambda: woken == [CONFIG, SETTINGS], "woken")
        await node.wait_beyond((CONFIG,), start, seconds=60.0)  # it is so already
        await node.wait_beyond((TOKENS,), start, seconds=0.05)
        with pytest.raises(ConfigError, match="there is no topic 'noise'"):
            await node.wait_beyond(("noise",), start, seconds=1.0)


async def test_every_event_is_seen_once_in_order_while_others_write(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await three(made)
        seen: dict[str, list[int]] = {name: [] for name in "abc"}

        async def watch(name: str) -> None:
            node, cursor = made.nodes[name].node, 0
            assert node is not None
            while len(seen[name]) < 150:
                found = (await node.read(lambda view: answer_of(view, cursor), stale=True)).value  # noqa: B023
                assert isinstance(found, Events)
                seen[name] += [int(event.value or b"") for event in found.events]
                cursor = found.through
                await node.wait_beyond((CONFIG,), cursor, seconds=0.2)

        async def write(name: str, first: int) -> None:
            for number in range(first, 150, 3):
                await put(made.nodes[name], f"k{number % 5}", b"%d" % number)

        async with trio.open_nursery() as nursery:
            for number, name in enumerate("abc"):
                nursery.start_soon(watch, name)
                nursery.start_soon(write, name, number)
        assert sorted(seen["a"]) == list(range(150))
        assert seen["a"] == seen["b"] == seen["c"]


def answer_of(view: object, cursor: int) -> object:
    from conveyord.storage.state.reading import Answer, StateView

    assert isinstance(view, StateView)
    return Answer(view.index(), view.events_after(cursor, (CONFIG,)))


async def test_a_node_that_gets_a_snapshot_wakes_who_waits_there(tmp_path: Path) -> None:
    policy = Policy(every_entries=40, kept_entries=5)
    async with rig(tmp_path) as made:
        await three(made, policy=policy)
        leader = made.leader()
        assert leader is not None
        late = next(name for name in "abc" if name != leader.name)
        await made.kill(late)
        last = 0
        for number in range(120):
            last = await put(leader, f"k{number % 7}", b"%d" % number)
        again = await made.start(late)
        await made.until(lambda: again.node and again.node.phase == "member", "it is there")
        assert again.node is not None
        with trio.fail_after(60.0):
            while again.node.member.driver.standing.applied < last:
                await again.node.wait_beyond((CONFIG,), last - 1, seconds=1.0)
        found = await again.node.read(lambda view: view.config("k0"))
        assert found.value is not None
        assert found.value.value == b"119"


async def test_a_watcher_that_is_too_late_is_told_so(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await one(made)
        node = made.nodes["a"].node
        assert node is not None
        await node.propose(SettingChange("events_max", 16, None), actor="test")
        for number in range(60):
            await put(made.nodes["a"], "k", b"%d" % number)
        found = (await node.read(lambda view: answer_of(view, 3))).value  # type: ignore[arg-type,return-value]
        assert isinstance(found, Compacted)


async def test_reads_of_a_node_that_ends_are_refused(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await one(made)
        node = made.nodes["a"].node
        assert node is not None
        refused = 0

        async def read() -> None:
            nonlocal refused
            try:
                while True:
                    await node.read(lambda view: view.config("k"), stale=True)
            except Retryable:
                refused += 1

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
            await trio.sleep(0.1)
            await made.stop("a")
        assert refused == 20


async def test_many_reads_at_once_are_answered_together(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await one(made)
        node = made.nodes["a"].node
        assert node is not None
        for number in range(10):
            await node.propose(ConfigPut(f"k{number}", b"%d" % number, None), actor="test")
        answers = dict[int, bytes]()

        async def read(number: int) -> None:
            found = await node.read(lambda view: view.config(f"k{number % 10}"))
            assert found.value is not None
            answers[number] = found.value.value

        with trio.fail_after(60.0):
            async with trio.open_nursery() as nursery:
                for number in range(500):
                    nursery.start_soon(read, number)
        assert answers == {number: b"%d" % (number % 10) for number in range(500)}
