"""Clusters of real processes: killed, frozen, restarted one after the other, replaced."""

from __future__ import annotations

import base64
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.processes import NodeProcess, Processes, Unanswered, processes, until

VOTER = ("voter", "ready")
THREE = dict.fromkeys("abc", VOTER)


def put(node: NodeProcess, key: str, value: bytes) -> dict[str, Any]:
    body = {"value": base64.b64encode(value).decode()}
    status, answer = until_answer(node, "PUT", f"/config/{key}", body)
    assert status == 200, answer
    return answer


def get(node: NodeProcess, key: str) -> bytes:
    status, answer = until_answer(node, "GET", f"/config/{key}")
    assert status == 200, answer
    return base64.b64decode(answer["entry"]["value"])


def answer_of(node: NodeProcess, method: str, path: str, body: object) -> tuple[int, dict[str, Any]] | None:
    """What it says, unless it is not there yet, or knows no leader."""
    try:
        status, answer = node.ask(method, path, body, seconds=30.0)
    except Unanswered as error:
        if error.may_have_happened:
            raise
        return None
    return None if status == 503 else (status, answer)


def until_answer(node: NodeProcess, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
    """What the node says once it has more to say than that no leader is known."""
    found = until(lambda: answer_of(node, method, path, body), "an answer")
    assert isinstance(found, tuple)
    return found


@pytest.mark.parametrize(
    "names", [pytest.param("abc", id="three"), pytest.param("abcde", id="five", marks=pytest.mark.check)]
)
def test_the_leader_is_killed_and_what_was_acknowledged_is_there(tmp_path: Path, names: str) -> None:
    with processes(tmp_path) as made:
        made.found(names)
        leader = made.until_leader()
        put(leader, "k", b"before")
        leader.kill()
        new = made.until_leader(other_than=leader.name)
        assert get(new, "k") == b"before"
        put(new, "k", b"after")
        leader.start()
        made.until_members(dict.fromkeys(names, VOTER))
        assert get(leader, "k") == b"after"


@pytest.mark.check
def test_a_frozen_leader_is_replaced_and_follows_when_it_wakes(tmp_path: Path) -> None:
    with processes(tmp_path) as made:
        made.found("abc")
        leader = made.until_leader()
        leader.signal(signal.SIGSTOP)
        others = [node for node in made.nodes.values() if node is not leader]
        put(others[0], "k", b"v")
        leader.signal(signal.SIGCONT)
        assert get(leader, "k") == b"v"  # it does not answer from what it had
        made.until_members(THREE)


@pytest.mark.check
def test_a_rolling_restart_keeps_answering(tmp_path: Path) -> None:
    with processes(tmp_path) as made:
        made.found("abc")
        for number, name in enumerate("abc"):
            node = made.nodes[name]
            assert node.stop() == 0
            other = made.nodes["abc"[(number + 1) % 3]]
            put(other, f"k{number}", b"v")
            node.start()
            made.until_members(THREE)
        for node in made.nodes.values():
            assert [get(node, f"k{number}") for number in range(3)] == [b"v"] * 3


@pytest.mark.check
def test_a_dead_node_is_replaced(tmp_path: Path) -> None:
    with processes(tmp_path) as made:
        made.found("abc")
        leader = made.until_leader()
        put(leader, "k", b"v")
        dead = next(node for node in made.nodes.values() if node is not leader)
        dead.kill()
        new = made.add("d", settings={"cluster": {"join": [leader.rpc], "expect": 3}})
        new.start()
        made.until_members({**THREE, dead.name: ("voter", "down"), "d": ("learner", "ready")})
        status, answer = until_answer(leader, "DELETE", f"/members/{dead.name}")
        assert status == 200, answer
        rest = {name: VOTER for name in "abcd" if name != dead.name}
        made.until_members(rest)
        assert get(new, "k") == b"v"


def remove_all(made: Processes) -> None:
    for node in made.nodes.values():
        assert node.stop() == 0, made.seen()


@pytest.mark.check
def test_all_are_stopped_and_started_again(tmp_path: Path) -> None:
    with processes(tmp_path) as made:
        made.found("abc")
        put(made.nodes["b"], "k", b"v")
        remove_all(made)
        for node in made.nodes.values():
            node.start()
        made.until_members(THREE)
        assert get(made.nodes["c"], "k") == b"v"


@pytest.mark.check
def test_a_rolling_upgrade_between_two_protocols(tmp_path: Path) -> None:
    """Old nodes and new ones work together; what is new can be used once the last is new, and no old one comes back."""
    with processes(tmp_path) as made:
        made.found("abc")
        newer = {"value": base64.b64encode(b"v").decode()}
        for number, name in enumerate("abc"):
            node = made.nodes[name]
            assert node.stop() == 0
            node.module = "tests.cluster.next_version"
            put(made.nodes["abc"[(number + 1) % 3]], f"k{number}", b"v")
            node.start()
            made.until_members(THREE)
            if number < 2:
                status, answer = until_answer(node, "PUT", "/config/v2-key", newer)
                assert (status, answer["code"]) == (409, "PROTOCOL"), answer
        until(lambda: made.nodes["a"].ask("PUT", "/config/v2-key", newer)[0] == 200, made.seen)
        for node in made.nodes.values():
            assert get(node, "v2-key") == b"v"
            assert [get(node, f"k{number}") for number in range(3)] == [b"v"] * 3
        old = made.nodes["b"]
        assert old.stop() == 0
        old.module = "conveyord"
        old.start()
        until(lambda: not old.is_up, made.seen)
        assert "upgrade" in old.log.read_text()
