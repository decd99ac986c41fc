"""Backups by the API of a real node: many at once, of what was acknowledged, and of stores that do not answer."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

import httpx
import pytest
import structlog
import trio

from conveyord.cluster import member
from conveyord.runtime.raft.snapshots import Policy
from conveyord.storage.backup.backups import open_backups
from conveyord.storage.backup.restoring import validate
from tests.api.rig import WAIT_SECONDS, Served, cluster, serving

BACKUPS = 6
ROUNDS = 3
OFTEN = {"policy": Policy(every_entries=50, kept_entries=10)}


async def backed_up(node: Served, store: str, ids: list[str]) -> None:
    reply = await node.ask("POST", "/backups", json={"store": store})
    assert reply.status_code == 200, reply.text
    ids.append(reply.json()["backup"]["id"])


async def write_on(node: Served, name: str, enough: trio.Event) -> None:
    for number in itertools.count():
        if enough.is_set():
            return
        reply = await node.ask("PUT", f"/config/{name}/{number % 100}", json={"value": "AAAA" * 500})
        assert reply.status_code == 200, reply.text


async def test_many_at_once_and_snapshots_beside_them_are_all_whole(tmp_path: Path) -> None:
    store, ids = f"file://{tmp_path}/backups", list[str]()
    enough = trio.Event()
    async with serving(tmp_path / "node", of_node=OFTEN) as node, trio.open_nursery() as writing:
        for name in "abcd":
            writing.start_soon(write_on, node, name, enough)
        for _ in range(ROUNDS):
            async with trio.open_nursery() as asking:
                for _ in range(BACKUPS):
                    asking.start_soon(backed_up, node, store, ids)
        enough.set()
    assert len(ids) == BACKUPS * ROUNDS
    for id_ in set(ids):
        scratch = tmp_path / f"of-{id_}"
        scratch.mkdir()
        validate(open_backups(store, {}), id_, scratch, expect_cluster=None, data_dir=None, force=False)


async def test_one_has_all_that_was_acknowledged_unless_it_may_be_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(member, "READ_SECONDS", 1.0)
    store = f"file://{tmp_path}/backups"
    async with cluster(tmp_path) as (leader, follower, other):
        written = await leader.ask("PUT", "/config/a", json={"value": ""})
        made = await follower.ask("POST", "/backups", json={"store": store})
        assert made.json()["backup"]["state_index"] >= written.json()["index"]
        for node in (leader, other):
            node.stop.set()
        with trio.fail_after(WAIT_SECONDS):
            while follower.node.standing is None or follower.node.standing.leader is not None:
                await trio.sleep(0.01)
        alone = await follower.ask("POST", "/backups", json={"store": store})
        assert (alone.status_code, alone.json()["code"]) == (503, "UNAVAILABLE"), alone.text
        stale = await follower.ask("POST", "/backups", json={"store": store, "stale": True})
        assert stale.status_code == 200, stale.text


def silent_store() -> tuple[socket.socket, dict[str, str]]:
    """A store that takes connections and never answers, and what leads there."""
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, {
        "s3.endpoint": f"http://127.0.0.1:{listener.getsockname()[1]}",
        "s3.region": "x",
        "s3.access-key-id": "a",
        "s3.secret-access-key": "b",
    }


def open_snapshots(home: Path) -> list[str]:
    links = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    return [str(link) for link in links if str(link).startswith(str(home / "state" / "snapshots"))]


async def test_a_store_that_does_not_answer_holds_up_no_end(tmp_path: Path) -> None:
    """Two threads wait for it, the others for those: their files are closed, and the cluster has time to hand over."""
    listener, properties = silent_store()
    ended = list[str]()

    async def ask(node: Served) -> None:
        try:
            await node.ask("POST", "/backups", json={"store": "s3://bucket/x"})
        except httpx.RemoteProtocolError:
            ended.append("without an answer")

    with structlog.testing.capture_logs() as logs:
        served = serving(tmp_path, backup_properties=properties, drain_seconds=0.2)
        async with served as node, trio.open_nursery() as asking:
            for _ in range(4):
                asking.start_soon(ask, node)
            with trio.fail_after(WAIT_SECONDS):
                while node.service.context.backups.statistics().tasks_waiting < 2:
                    await trio.sleep(0.01)
            assert len(open_snapshots(tmp_path)) == 4
            node.stop.set()
        assert len(open_snapshots(tmp_path)) == 2  # of the threads, which wait for the store
    listener.close()
    with trio.fail_after(WAIT_SECONDS):
        while open_snapshots(tmp_path):
            await trio.sleep(0.01)
    assert ended == ["without an answer"] * 4
    said = [line["event"] for line in logs]
    assert "requests took too long to end, and are cut off" in said
    assert "not drained in time, and cancelled" not in said
