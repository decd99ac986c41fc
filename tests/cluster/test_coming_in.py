"""How nodes come into a cluster, and out of it."""

from __future__ import annotations

from pathlib import Path

from conveyord.core.state.commands import ConfigPut
from tests.cluster.rig import free_port, rig

VOTER, LEARNER = ("voter", "ready"), ("learner", "ready")


async def test_one_node_is_a_cluster(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        one = await made.start("a")
        await made.until_standings_of_leader({"a": VOTER})
        assert one.node is not None
        done = await one.node.propose(ConfigPut("k", b"v", None), actor="test")
        answer = await one.node.read(lambda view: view.config("k"))
        assert answer.value is not None
        assert answer.value.changed == done.index


async def test_three_are_founded_whatever_the_order_and_a_fourth_learns(tmp_path: Path) -> None:
    async with rig(tmp_path) as made:
        ports = {name: f"127.0.0.1:{await free_port()}" for name in "abc"}
        for name in "cab":
            await made.start(name, port=int(ports[name].rpartition(":")[2]), expect=3, join=tuple(ports.values()))
        await made.until_standings_of_leader(dict.fromkeys("abc", VOTER))
        await made.start("d", expect=3, join=(ports["b"],))
        await made.until_standings_of_leader({**dict.fromkeys("abc", VOTER), "d": LEARNER})
        fourth = made.nodes["d"].node
        assert fourth is not None
        await fourth.propose(ConfigPut("k", b"v", None), actor="test")
        answer = await fourth.read(lambda view: view.config("k"))
        assert answer.value is not None
        assert answer.value.value == b"v"
        clusters = {one.node.identity.cluster for one in made.nodes.values() if one.node}
        assert len(clusters) == 1
