"""Three nodes: any of them answers, what the leader has to do is passed on, members come and go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from conveyord.cluster.ports import Removed
from tests.api.rig import WAIT_SECONDS, Served, cluster


@asynccontextmanager
async def ended_by(kind: type[Exception]) -> AsyncIterator[None]:
    """One or two of the nodes end by such an error, once the test is over or before."""
    try:
        yield
    except kind:
        return
    except ExceptionGroup as group:
        others = group.split(kind)[1]
        assert others is None, others
        return
    pytest.fail(f"no node ended by {kind.__name__}")


async def members_at(node: Served) -> dict[str, tuple[str, str]]:
    found = (await node.ask("GET", "/members")).json()["members"]
    return {one["node"]: (one["standing"], one["state"]) for one in found}


async def done(node: Served, method: str, path: str, **options: Any) -> dict[str, Any]:
    reply = await node.ask(method, path, **options)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def check_status(nodes: list[Served]) -> None:
    leader, follower, _ = nodes
    assert {one["node"] for one in (await done(leader, "GET", "/status"))["peers"]} == {
        node.node.identity.node for node in nodes[1:]
    }
    assert (await done(follower, "GET", "/status"))["peers"] == []
    for node, said in ((leader, "this node leads"), (follower, "leads in term")):
        why = await done(node, "GET", "/raft/why-no-leader")
        assert why["has_leader"]
        assert said in why["verdict"]
        assert len(why["findings"]) == 3


async def test_any_node_takes_and_answers_and_the_leader_tells_of_its_peers(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes:
        await check_status(nodes)
        for number, node in enumerate(nodes):
            put = await done(node, "PUT", f"/config/{number}", json={"value": "aGk="})
            for other in nodes:
                got = await done(other, "GET", f"/config/{number}")
                assert got["index"] >= put["index"]
                assert got["entry"]["changed"] == put["changed"]


async def test_a_token_is_good_at_every_node_as_soon_as_it_was_told(tmp_path: Path) -> None:
    async with cluster(tmp_path, access="tokens") as nodes:
        for _ in range(5):
            for node in nodes:
                made = await done(node, "POST", "/tokens", json={"name": "a", "role": "viewer"})
                for other in nodes:
                    headers = {"authorization": f"Bearer {made['token']}"}
                    reply = await other.http.get("/api/v1/settings", headers=headers)
                    assert reply.status_code == 200, reply.text


async def test_a_follower_passes_on_what_the_leader_has_to_do(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes:
        leader, asked, target = nodes
        node = target.node.identity.node
        moved = await done(asked, "POST", "/leader/transfer", json={"node": node})
        assert moved["leader"] == node
        with trio.fail_after(WAIT_SECONDS):
            while (await done(leader, "GET", "/status"))["leader"] != node:
                await trio.sleep(0.02)
        # The leader itself is demoted by way of a node that follows it: it hands over first, and the next one does it.
        await done(asked, "POST", f"/members/{node}/demote")
        status = await done(target, "GET", "/status")
        assert status["leader"] != node


async def test_a_node_that_is_up_is_removed_only_by_force_and_is_gone_then(tmp_path: Path) -> None:
    async with ended_by(Removed), cluster(tmp_path) as nodes:
        leader, asked, target = nodes
        node = target.node.identity.node
        refused = await asked.ask("DELETE", f"/members/{node}")
        assert (refused.status_code, refused.json()["code"]) == (409, "WRONG_STATE")
        await done(asked, "DELETE", f"/members/{node}", params={"force": "true"})
        for other in (leader, asked):
            assert node not in await members_at(other)
        again = await asked.ask("DELETE", f"/members/{node}", params={"force": "true"})
        assert again.status_code == 404, again.text


async def test_what_would_lose_the_quorum_is_refused(tmp_path: Path) -> None:
    async with ended_by(Removed), cluster(tmp_path) as nodes:
        leader, other, third = nodes
        await done(leader, "DELETE", f"/members/{third.node.identity.node}", params={"force": "true"})
        await done(leader, "DELETE", f"/members/{other.node.identity.node}", params={"force": "true"})
        only = leader.node.identity.node
        for ask in (
            ("DELETE", f"/members/{only}", {"params": {"force": "true"}}),
            ("POST", f"/members/{only}/demote", {}),
            ("POST", "/leader/transfer", {}),
        ):
            refused = await leader.ask(ask[0], ask[1], **ask[2])  # type: ignore[arg-type]
            assert (refused.status_code, refused.json()["code"]) == (409, "QUORUM"), refused.text


@pytest.mark.check
async def test_a_cluster_without_a_majority_says_so(tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes:
        first, second, third = nodes
        for node in (second, third):
            node.stop.set()
        with trio.fail_after(WAIT_SECONDS):
            while (why := await done(first, "GET", "/raft/why-no-leader"))["has_leader"]:
                await trio.sleep(0.05)
        assert "a majority of the voters is not reached: 1 of 3" in why["verdict"], why
        ready = await first.http.get("/readyz")
        assert ready.status_code == 503
        assert "[-] leader: no leader is known" in ready.text
