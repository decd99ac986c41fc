"""Nodes with certificates come together over real sockets, as docs/operations.md has it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.daemon.node_rig import ANSWERS, NodeProcess, end, start
from tests.runtime.rpc.node_certificates import NodeAuthority

pytestmark = pytest.mark.check
WAIT_SECONDS = 60.0


def home_of(tmp_path: Path, authority: NodeAuthority, name: str, *, cluster: str = "") -> Path:
    files = authority.issue(name)
    home = tmp_path / name
    home.mkdir()
    (home / "conveyord.toml").write_text(
        f"[node]\nid = '{name}'\n"
        f"[rpc.tls]\ncertificate = '{files.certificate}'\nkey = '{files.key}'\nca = '{files.ca}'\n[cluster]\n{cluster}"
    )
    return home


def members(node: NodeProcess) -> dict[str, Any]:
    found = node.get("/api/v1/members").json()["members"]
    return {one["node"]: one for one in found}


def test_a_node_with_a_certificate_joins_and_one_of_another_authority_does_not(tmp_path: Path) -> None:
    (tmp_path / "ours").mkdir()
    (tmp_path / "theirs").mkdir()
    ours, theirs = NodeAuthority(tmp_path / "ours"), NodeAuthority(tmp_path / "theirs")
    nodes = [start(home_of(tmp_path, ours, "n1"))]
    try:
        first = nodes[0].answers()
        join = f"join = ['{first.status()['rpc_address']}']\n"
        nodes.append(start(home_of(tmp_path, ours, "n2", cluster=join)))
        second = nodes[1].answers()
        assert second.put("by/second", "aGk=").status_code == 200
        assert first.get("/api/v1/config/by/second").status_code == 200
        assert second.status()["cluster"] == first.status()["cluster"]
        assert set(members(first)) == {"n1", "n2"}
        nodes.append(start(home_of(tmp_path, theirs, "n3", cluster=join)))
        third = nodes[2]
        assert first.running.saw("a connection was refused")
        assert not third.running.has_ended(), third.running.wait()
        assert not third.running.err().count(ANSWERS)
        third.running.send(signal.SIGTERM)
        ended = third.running.wait()
        ended.orderly(0)
        assert "a cluster is founded" not in ended.err
        assert set(members(first)) == {"n1", "n2"}
        second.stop().orderly(0)
        assert eventually_down(first)
        first.stop().orderly(0)
    finally:
        for node in nodes:
            end(node)


def test_a_node_that_is_removed_ends_well_and_says_so(tmp_path: Path) -> None:
    authority = NodeAuthority(tmp_path)
    nodes = [start(home_of(tmp_path, authority, "n1"))]
    try:
        first = nodes[0].answers()
        join = f"join = ['{first.status()['rpc_address']}']\n"
        nodes.append(start(home_of(tmp_path, authority, "n2", cluster=join)))
        second = nodes[1].answers()
        done = httpx.delete(
            f"{first.http}/api/v1/members/n2", params={"force": "true"}, timeout=60, headers=first.local
        )
        assert done.status_code == 200, done.text
        ended = second.running.wait()
        ended.orderly(0)
        assert "conveyord: node n2 was removed from cluster" in ended.err
        assert set(members(first)) == {"n1"}
        assert first.put("alone", "aGk=").status_code == 200
    finally:
        for node in nodes:
            end(node)


def eventually_down(node: NodeProcess) -> bool:
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            if node.get("/api/v1/members", params={"stale": "true"}).json()["members"][1]["state"] == "down":
                return True
        except httpx.HTTPError:
            pass
        time.sleep(0.02)
    return False
