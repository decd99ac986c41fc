"""Verbs at three nodes: changes of members, nodes that are away, and a majority that is."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.ctl.calling import Said, ctl
from tests.e2e.ctl.golden_files import as_text, check, same
from tests.e2e.ctl.nodes import RunningNode, running

pytestmark = pytest.mark.check

SECONDS_MAX = 60.0  # for anything that is waited for
FAST = '[cluster]\nelection_timeout = "300ms"\n'


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[RunningNode]]:
    home = tmp_path_factory.mktemp("three")
    with running(home, ("n1", "n2", "n3"), config=FAST) as started:
        token = json.loads(started[0].ask("tokens", "create", "all", "--role", "admin", "-o", "json").out)["token"]
        (home / "token").write_text(token)
        until(started, lambda states: len(leaders(states)) == 1 and len(states) == 3)
        yield started


def call(nodes: list[RunningNode], *arguments: str) -> Said:
    """Ask any of them, as an admin."""
    servers = [part for node in nodes for part in ("--server", node.server)]
    return ctl(nodes[0].home.parent, *arguments, *servers, "--token", "file:token")


def statuses(nodes: list[RunningNode]) -> list[dict[str, Any]]:
    """What each node says of itself; those that are away say nothing."""
    found = json.loads(call(nodes, "status", "--all", "-o", "json").out).get("nodes", ())
    return [one["status"] for one in found if one["status"] is not None]


def leaders(states: list[dict[str, Any]]) -> set[str]:
    return {str(one["leader"]) for one in states}


def until(nodes: list[RunningNode], holds: Any) -> list[dict[str, Any]]:
    """Wait until what the nodes say of themselves is so. They are asked again and again."""
    deadline = time.monotonic() + SECONDS_MAX
    while not holds(states := statuses(nodes)):
        assert time.monotonic() < deadline, states
        call(nodes, "members", "list", "--stale", "--wait", "200ms")
    return states


def check_loosely(name: str, arguments: tuple[str, ...], said: Said) -> None:
    """Compare without numbers and widths of columns, which differ with who leads since when."""
    text = same(as_text(arguments, said), ages=True).replace("127.0.0.1:#####", "ADDRESS")
    text = re.sub(r"is (pre-candidate|candidate|follower) in", "is ROLE in", text)
    text = re.sub(r"(?<!exit )(#s|\b\d+(\.\d+)*s?\b)", "#", text)
    check(f"three/{name}", re.sub(r" {2,}", "  ", text))


def until_standings(nodes: list[RunningNode], **wanted: str) -> None:
    """Wait until the cluster has these members, with these standings."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        reply = json.loads(call(nodes, "members", "list", "-o", "json").out)
        standings = {member["node"]: member["standing"] for member in reply["members"]}
        if standings == wanted:
            return
        assert time.monotonic() < deadline, standings
        call(nodes, "members", "list", "--after", str(reply["index"]), "--wait", "1s")


def until_unheard(leader: RunningNode, name: str) -> None:
    """Wait until the leader has not heard of a node for more than the three election timeouts that count as now."""
    deadline = time.monotonic() + SECONDS_MAX
    while True:
        peers = json.loads(leader.ask("status", "-o", "json").out)["peers"]
        if any(peer["node"] == name and peer["heard_seconds"] > 1.0 for peer in peers):
            return
        assert time.monotonic() < deadline, peers


def lead(nodes: list[RunningNode], name: str) -> None:
    """Have that node lead, and wait until all say so."""
    while leaders(statuses(nodes)) != {name}:
        call(nodes, "members", "transfer", name)
        until(nodes, lambda states: len(leaders(states)) == 1)


def test_leadership_goes_where_it_is_sent(nodes: list[RunningNode]) -> None:
    lead(nodes, "n2")
    said = call(nodes, "members", "transfer", "n1")
    assert (said.code, said.text) == (0, "node n1 leads\n")
    until(nodes, lambda states: leaders(states) == {"n1"})


@pytest.mark.parametrize("arguments", [("status", "--all"), ("status", "--all", "-o", "wide"), ("members", "list")])
def test_all_are_shown(nodes: list[RunningNode], arguments: tuple[str, ...]) -> None:
    lead(nodes, "n1")
    check_loosely("-".join(arguments), arguments, call(nodes, *arguments))


def test_the_leader_knows_how_far_its_peers_are(nodes: list[RunningNode]) -> None:
    lead(nodes, "n1")
    arguments = ("status",)
    check_loosely("status-of-leader", arguments, call(nodes[:1], *arguments))


def test_a_follower_carries_out_what_it_is_asked(nodes: list[RunningNode]) -> None:
    lead(nodes, "n1")
    assert call(nodes[2:], "config", "put", "via/n3", "1").code == 0
    assert call(nodes[1:2], "config", "get", "via/n3", "--raw").text == "1"


def test_members_are_demoted_and_promoted(nodes: list[RunningNode]) -> None:
    """By hand, and by the cluster itself, which has as many voters as it is told to."""
    lead(nodes, "n1")
    assert call(nodes, "members", "demote", "n3").text == "node n3 does not vote\n"
    until_standings(nodes, n1="voter", n2="voter", n3="voter")
    assert call(nodes, "members", "promote", "n3").text == "node n3 votes\n"
    assert call(nodes, "settings", "set", "target_voters", "1").code == 0
    until_standings(nodes, n1="voter", n2="learner", n3="learner")
    check_loosely("promote-too-many", ("members", "promote", "n3"), call(nodes, "members", "promote", "n3"))
    check_loosely("transfer-to-learner", ("members", "transfer", "n3"), call(nodes, "members", "transfer", "n3"))
    assert call(nodes, "settings", "set", "target_voters", "3").code == 0
    until_standings(nodes, n1="voter", n2="voter", n3="voter")


def test_a_blocking_read_ends_with_the_change(nodes: list[RunningNode]) -> None:
    index = json.loads(call(nodes, "config", "list", "-o", "json").out)["index"]
    assert call(nodes[1:2], "config", "put", "awaited", "1").code == 0
    said = call(nodes[2:], "config", "list", "--prefix", "await", "--after", str(index), "--wait", "60s", "-o", "json")
    assert [one["key"] for one in json.loads(said.out)["entries"]] == ["awaited"]


def test_nodes_that_are_away_are_shown_and_told(nodes: list[RunningNode]) -> None:
    """The last test of these nodes: it ends them."""
    lead(nodes, "n1")
    until_standings(nodes, n1="voter", n2="voter", n3="voter")
    nodes[2].kill()
    arguments = ("status", "--all")
    said = call(nodes[:1], *arguments)
    assert said.code == 4
    check_loosely("one-is-away", arguments, said)
    assert call(nodes[:2], "config", "put", "two/of/three", "1").code == 0
    # The first server is the one that is away: the next is asked.
    assert call([nodes[2], nodes[1]], "config", "get", "two/of/three", "--raw").text == "1"
    until_unheard(nodes[0], "n3")
    refused = call(nodes[:2], "members", "remove", "n2", "--yes", "--force")
    check_loosely("quorum-kept", ("members", "remove", "n2", "--yes", "--force"), refused)

    nodes[1].kill()
    deadline = time.monotonic() + SECONDS_MAX
    while "a majority" not in (said := call([nodes[2], nodes[0]], "raft", "why-no-leader")).text:
        assert time.monotonic() < deadline, said
    check_loosely("why-no-leader", ("raft", "why-no-leader"), said)
    put = call(nodes[:1], "config", "put", "one/of/three", "1", "--timeout", "2s")
    assert put.code in (1, 124), put
    assert call(nodes[:1], "config", "get", "two/of/three", "--raw", "--stale").text == "1"
    nodes[0].kill()
    nobody = call(nodes, "raft", "why-no-leader")
    assert nobody.code == 1
    check_loosely("nobody-is-there", ("raft", "why-no-leader"), nobody)


def test_without_a_cluster_a_node_is_seeking(tmp_path: Path) -> None:
    """One of three that are to found a cluster together, alone."""
    from tests.e2e.ctl.nodes import alone

    with alone(tmp_path, "n1", expect=3) as node:
        deadline = time.monotonic() + SECONDS_MAX
        while "not reached" not in (said := node.ask("status")).text:
            assert time.monotonic() < deadline, said
        check_loosely("seeking", ("status",), said)
        waited = node.ask("status", "--wait", "300ms")
        assert waited.code == 124
        check_loosely("seeking-waited", ("status", "--wait", "300ms"), waited)
        check_loosely("seeking-write", ("config", "put", "a", "1"), node.ask("config", "put", "a", "1"))
        check_loosely("seeking-why", ("raft", "why-no-leader"), node.ask("raft", "why-no-leader"))
