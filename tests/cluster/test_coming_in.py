"""How nodes come into a cluster, come back to it, and leave it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import trio

from conveyord.cluster.ports import Removed
from conveyord.cluster.watching import WatchedState
from conveyord.core.errors import Refused, Retryable, StorageFull
from conveyord.core.raft.membership import Change, Standing
from conveyord.core.raft.types import Entry
from conveyord.core.state.commands import ConfigPut, MemberForget, MemberState, SettingChange
from conveyord.core.state.settings import DEAD_SERVER_SECONDS, TARGET_VOTERS
from conveyord.runtime.raft.network import Network
from conveyord.runtime.rpc.connection import Connection
from tests.cluster.rig import Rig, Started, free_port, rig

VOTER, LEARNER = ("voter", "ready"), ("learner", "ready")
THREE = dict.fromkeys("abc", VOTER)


async def three(made: Rig, **options: object) -> dict[str, str]:
    """Three voters; their addresses."""
    ports = {name: await free_port() for name in "abc"}
    join = tuple(f"127.0.0.1:{port}" for port in ports.values())
    for name, port in ports.items():
        await made.start(name, port=port, expect=3, join=join, **options)
    await made.until_standings_of_leader(THREE)
    return dict(zip("abc", join, strict=True))


async def put(one: Started, key: str, value: bytes) -> int:
    assert one.node is not None
    return (await one.node.propose(ConfigPut(key, value, None), actor="test")).index


async def get(one: Started, key: str) -> bytes | None:
    assert one.node is not None
    found = await one.node.read(lambda view: view.config(key))
    return None if found.value is None else found.value.value


async def test_one_node_is_a_cluster(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        one = await made.start("a")
        await made.until_standings_of_leader({"a": VOTER})
        await put(one, "k", b"v")
        assert await get(one, "k") == b"v"
        await made.stop("a")
        assert one.failure is None
        again = await made.start("a")
        await made.until_standings_of_leader({"a": VOTER})
        assert await get(again, "k") == b"v"
        assert again.node is not None
        assert again.node.identity.incarnation == 2


async def test_three_are_founded_whatever_the_order_and_a_fourth_learns(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        ports = {name: f"127.0.0.1:{await free_port()}" for name in "abc"}
        for name in "cab":
            await made.start(name, port=int(ports[name].rpartition(":")[2]), expect=3, join=tuple(ports.values()))
        await made.until_standings_of_leader(THREE)
        fourth = await made.start("d", expect=3, join=(ports["b"],))
        await made.until_standings_of_leader({**THREE, "d": LEARNER})
        await put(fourth, "k", b"v")
        assert await get(made.nodes["a"], "k") == b"v"
        assert len({one.node.identity.cluster for one in made.nodes.values() if one.node}) == 1


async def test_founding_goes_on_where_all_were_killed_amid_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        ports = {name: await free_port() for name in "abc"}
        join = tuple(f"127.0.0.1:{port}" for port in ports.values())
        for round_ in range(6):
            for name, port in ports.items():
                await made.start(name, port=port, expect=3, join=join)
            if round_ == 5:
                break
            await made.until(lambda: any((made.home / name / "founding.json").exists() for name in "abc"), "a promise")
            for name in ports:
                await made.kill(name)
        await made.until_standings_of_leader(THREE)


async def test_a_node_that_comes_back_elsewhere_is_found(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await three(made)
        leader = made.leader()
        assert leader is not None
        moved = next(name for name in "abc" if name != leader.name)
        await made.stop(moved)
        await made.until_standings_of_leader({**THREE, moved: ("voter", "down")})
        made.nodes[moved].port = await free_port()
        again = await made.start(moved)
        await made.until_standings_of_leader(THREE)
        await put(again, "k", b"v")
        assert await get(again, "k") == b"v"


async def test_the_others_are_told_that_a_node_has_come_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    met, found = Network.met, set[tuple[str, str]]()

    def noted(network: Network, connection: Connection) -> None:
        met(network, connection)
        found.add((network._node, connection.remote.node))

    monkeypatch.setattr(Network, "met", noted)
    async with rig(tmp_path) as made:
        await three(made)
        await made.stop("c")
        found.clear()
        await made.start("c")
        await made.until(lambda: found >= {("a", "c"), ("b", "c")}, "both others meet c")


async def test_the_leader_is_killed_and_another_leads(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await three(made)
        leader = made.leader()
        assert leader is not None
        await made.kill(leader.name)
        other = next(made.nodes[name] for name in "abc" if name != leader.name)
        await put(other, "k", b"v")
        await made.until_standings_of_leader({**THREE, leader.name: ("voter", "down")})
        await made.start(leader.name)
        await made.until_standings_of_leader(THREE)


async def test_a_leader_that_is_stopped_hands_over(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await three(made)
        leader = made.leader()
        assert leader is not None
        term = leader.node.standing.term  # type: ignore[union-attr]
        await made.stop(leader.name)
        new = made.leader()
        assert new is not None
        assert new.node.standing.term == term + 1  # type: ignore[union-attr]  # nobody had to wait and see
        await made.until_standings_of_leader({**THREE, leader.name: ("voter", "down")})


async def test_a_dead_voter_is_replaced_where_that_is_the_policy(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        join = tuple((await three(made)).values())
        await made.start("d", expect=3, join=join)
        await made.until_standings_of_leader({**THREE, "d": LEARNER})
        leader = made.leader()
        assert leader is not None
        dead = next(name for name in "abc" if name != leader.name)
        await made.kill(dead)
        await made.until_standings_of_leader({**THREE, "d": LEARNER, dead: ("voter", "down")})
        with pytest.raises(Refused, match="60"):
            await leader.node.propose(SettingChange(DEAD_SERVER_SECONDS, 5, None), actor="test")  # type: ignore[union-attr]


async def test_target_voters_is_kept_up_and_down(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        one = await made.start("a")
        await made.start("b", join=(one.address,))
        await made.until_standings_of_leader({"a": VOTER, "b": VOTER})
        await made.start("c", join=(one.address,))
        await made.start("s", join=(one.address,), roles=("sidecar",))
        await made.until_standings_of_leader({**THREE, "s": LEARNER})
        leader = made.leader()
        assert leader is not None
        assert leader.node is not None
        await leader.node.propose(SettingChange(TARGET_VOTERS, 1, None), actor="test")
        others = {name: LEARNER for name in "abcs" if name != leader.name}
        await made.until_standings_of_leader({leader.name: VOTER, **others})


async def test_a_node_that_is_removed_ends_and_may_come_back(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await three(made)
        leader = made.leader()
        assert leader is not None
        assert leader.node is not None
        gone = next(name for name in "abc" if name != leader.name)
        await leader.node.propose(MemberState(gone, 1, "left", None), actor="test")
        await made.until(lambda: isinstance(made.nodes[gone].failure, Removed), "removed")
        await made.until_standings_of_leader({**THREE, gone: (None, "left")})
        await leader.node.propose(MemberForget(gone, None), actor="test")
        await made.start(gone)
        await made.until_standings_of_leader(THREE)


async def test_a_node_that_was_removed_while_it_could_not_be_reached_hears_of_it(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        addresses = await three(made)
        leader = made.leader()
        assert leader is not None
        assert leader.node is not None
        gone = next(name for name in "abc" if name != leader.name)
        await made.kill(gone)
        await leader.node.change_members([Change(gone, Standing.GONE)])
        await leader.node.propose(MemberState(gone, 1, "left", None), actor="test")
        assert addresses
        await made.start(gone)  # a new start: it is let in again, as a learner first
        await made.until_standings_of_leader(THREE)


async def test_who_is_refused(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await three(made, secret="right")
        address = made.nodes["a"].address
        wrong = await made.start("x", join=(address,), secret="wrong", expect=3)
        await made.until(lambda: wrong.node and "the secret of this cluster" in wrong.node.waiting, "told")
        assert made.nodes["a"].node is not None
        assert made.nodes["a"].node.side.counters.refused_connections["wrong_secret"] > 0
        await made.stop("x")

        foreign = await made.start("y", secret="right")  # a cluster of its own
        await made.until(lambda: foreign.node and foreign.node.phase == "member", "its own")
        await made.stop("y")
        with pytest.raises(Refused, match="belongs to node y"):
            raise (await started_on(made, "z", made.home / "y")).failure or AssertionError

        copied = json.loads((made.home / "b" / "node.json").read_text())
        (made.home / "copy").mkdir()
        (made.home / "copy" / "node.json").write_text(
            json.dumps({**copied, "incarnation": copied["incarnation"] - 1, "has_log": False})
        )
        twin = Started("b", made.home / "copy", await free_port(), {"join": (address,), "secret": "right"})
        await made.nursery.start(twin.run)
        await made.until(lambda: twin.failure, "the twin is refused")
        assert "two processes" in str(twin.failure) or "stop one of the two" in str(twin.failure)

        wiped = await made.start("b2", join=(address,), secret="right", expect=3)
        await made.until_standings_of_leader({**THREE, "b2": LEARNER})
        assert wiped.node is not None


async def started_on(made: Rig, name: str, home: Path) -> Started:
    one = Started(name, home, await free_port())
    await made.nursery.start(one.run)
    return one


@pytest.mark.parametrize("starts", [1, 2])
async def test_a_node_with_an_empty_disk_is_not_taken_for_the_one_it_was(tmp_path: Path, starts: int) -> None:
    """However often it is started without its data, and whatever incarnation it was at."""
    async with rig(tmp_path) as made:
        addresses = await three(made)
        for _ in range(starts):
            await made.stop("b")
            await made.start("b")
            await made.until_standings_of_leader(THREE)
        await made.stop("b")
        (made.home / "b").rename(made.home / "b-lost")
        for _ in range(4):
            again = await made.start("b", join=tuple(addresses.values()))
            await made.until(lambda: again.failure, "refused")  # noqa: B023
            assert "is a member, and comes without its data" in str(again.failure)
        leader = made.leader()
        assert leader is not None
        assert leader.node is not None
        row = (await leader.node.read(lambda view: view.member("b"))).value
        assert row is not None
        assert row.row is not None
        await leader.node.propose(MemberState("b", row.row.incarnation, "left", None), actor="test")
        await made.until_standings_of_leader({**THREE, "b": (None, "left")})
        await leader.node.propose(MemberForget("b", None), actor="test")
        await made.start("b")
        await made.until_standings_of_leader(THREE)


async def test_a_node_that_lags_says_once_that_it_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig(tmp_path) as made:
        await three(made)
        leader = made.leader()
        assert leader is not None
        assert leader.node is not None
        late = next(made.nodes[name] for name in "abc" if name != leader.name)
        full, apply = False, WatchedState.apply

        def applying(state: WatchedState, entries: Sequence[Entry]) -> Sequence[bytes]:
            if full and state._replica._store._layout.directory == late.home / "state":
                raise StorageFull("no room")
            return apply(state, entries)

        monkeypatch.setattr(WatchedState, "apply", applying)
        await leader.node.propose(MemberState(late.name, 1, "down", None), actor="test")
        full = True
        await trio.sleep(0.5)
        before = leader.node.standing
        await trio.sleep(2.0)
        after = leader.node.standing
        full = False
        assert before is not None
        assert after is not None
        assert after.commit - before.commit < 10  # it was hundreds in a second
        await made.until_standings_of_leader(THREE)


async def test_a_node_that_has_lost_its_log_and_state_does_not_begin_anew(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        await three(made)
        await made.stop("b")
        for name in ("raft", "state"):
            shutil.rmtree(made.home / "b" / name)
        again = await made.start("b")
        await made.until(lambda: again.failure, "refused")
        assert "raft.db is missing, and node b has had it" in str(again.failure)


async def test_what_needs_a_cluster_says_what_is_waited_for(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        one = await made.start("a", expect=3, join=("127.0.0.1:1",))
        assert one.node is not None
        await made.until(lambda: one.node and "routers" in one.node.waiting, "it waits")
        with pytest.raises(Retryable, match=r"1 of 3 routers are there \(a\); not reached: 127.0.0.1:1"):
            await put(one, "k", b"v")


async def test_a_node_that_waits_is_invited(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        first = await made.start("a")
        await made.until_standings_of_leader({"a": VOTER})
        second = await made.start("b", expect=3)
        await made.until(lambda: second.node and "routers" in second.node.waiting, "it waits")
        assert first.node is not None
        assert await first.node.invite(second.address) == "b"
        await made.until_standings_of_leader({"a": VOTER, "b": VOTER})
        with pytest.raises(Refused, match="already; only one that is in none"):
            await first.node.invite(second.address)


async def test_one_of_two_voters_is_removed_with_its_own_vote(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        first = await made.start("a")
        await made.start("b", join=(first.address,))
        await made.until_standings_of_leader({"a": VOTER, "b": VOTER})
        leader = made.leader()
        assert leader is not None
        assert leader.node is not None
        gone = "b" if leader.name == "a" else "a"
        await leader.node.propose(MemberState(gone, 1, "left", None), actor="test")
        await made.until(lambda: isinstance(made.nodes[gone].failure, Removed), "removed")
        await made.until_standings_of_leader({leader.name: VOTER, gone: (None, "left")})
        await put(leader, "k", b"v")


async def test_a_node_that_is_to_join_founds_nothing_while_nobody_is_there(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        port = await free_port()
        late = await made.start("b", join=(f"127.0.0.1:{port}",))
        await made.until(lambda: late.node and "founds no cluster" in late.node.waiting, "it waits")
        await made.start("a", port=port)
        await made.until_standings_of_leader({"a": VOTER, "b": VOTER})
