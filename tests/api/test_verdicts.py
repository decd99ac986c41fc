"""What is decided without a node: why nobody leads, who may stop voting, what a path means."""

from __future__ import annotations

import pytest

from conveyord.api.codes import Declined
from conveyord.api.diagnosis import Seen, Told, diagnosed
from conveyord.api.health import readiness, text
from conveyord.api.operations import BACKUP_CLEANUP, CONFIG_DELETE, CONFIG_GET, CONFIG_LIST, CONFIG_PUT, OPERATIONS
from conveyord.api.quorum import without_voter
from conveyord.api.routing import NotAllowed, Routes
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.state import Role
from conveyord.runtime.raft.driver import Standing

VOTERS = frozenset({"a", "b", "c"})
ADDRESSES = {"a": "10.0.0.1:7400", "b": "10.0.0.2:7400", "c": "10.0.0.3:7400"}
LOST = Standing(Role.FOLLOWER, 4, None, 9, 9)
LED = Standing(Role.FOLLOWER, 4, "b", 9, 9)
FOLLOWS = Told("follower", 4, "", "ok")


def seen(
    standing: Standing | None = LOST,
    *,
    phase: str = "member",
    disk: str = "ok",
    voters: frozenset[str] = VOTERS,
    **asked: Told | str,
) -> Seen:
    return Seen("a", phase, "", standing, disk, voters, ADDRESSES, asked)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (seen(None, phase="seeking"), "node a is in no cluster yet: it has not heard of one"),
        (seen(LED), "nothing is wrong: node b (10.0.0.2:7400) leads in term 4"),
        (seen(LED._replace(role=Role.LEADER, leader="a")), "nothing is wrong: this node leads in term 4"),
        (
            seen(b="connection refused", c="no answer within 4 s"),
            "a majority of the voters is not reached: 1 of 3, and 2 are needed; not reached: b (10.0.0.2:7400), c (10.",
        ),
        (seen(b=FOLLOWS, c="gone"), "an election is going on: 2 of 3 voters are reached, enough to elect a leader"),
        (
            seen(b=FOLLOWS._replace(leader="c"), c="gone"),
            "node c (10.0.0.3:7400) leads in term 4, says b, but does not reach this node",
        ),
        (
            seen(disk="full", b=FOLLOWS._replace(disk="stalled"), c="gone"),
            "no voter that is reached may lead, as its disk takes no writes: a (10.0.0.1:7400): full; b (10.0.0.2:7400",
        ),
        (seen(disk="full", b=FOLLOWS, c="gone"), "an election is going on: 2 of 3 voters are reached, enough to"),
        (seen(voters=frozenset()), "node a does not know yet who votes"),
        (
            seen(voters=frozenset({"b", "c"}), b="gone", c="gone"),
            "node a does not vote, and hears no leader; 0 of the 2 voters are reached",
        ),
        (
            seen(voters=frozenset({"b", "c"}), b=FOLLOWS._replace(leader="b"), c="gone"),
            "node b (10.0.0.2:7400) leads in term 4, says b, but does not reach this node",
        ),
        (seen(voters=frozenset({"a"})), "an election is going on: 1 of 1 voters are reached, enough to elect a leader"),
    ],
)
def test_why_nobody_leads(what: Seen, said: str) -> None:
    verdict = diagnosed(what)
    assert verdict.sentence.startswith(said), verdict.sentence
    assert what.standing is None or len(verdict.findings) >= 1 + len(what.asked)
    assert verdict.remedies or "nothing is wrong" in verdict.sentence


@pytest.mark.parametrize(
    ("voters", "node", "heard", "is_refused"),
    [
        ("a", "a", "a", True),
        ("ab", "b", "a", True),  # two are needed to agree that one of them goes
        ("ab", "b", "ab", False),
        ("abc", "c", "ab", False),
        ("abc", "c", "abc", False),
        ("abc", "b", "ab", True),  # a and c would be left, and c is silent
        ("abc", "c", "a", True),
        ("abcde", "e", "abc", False),
        ("abcde", "a", "abc", True),
        ("abcde", "e", "ab", True),
    ],
)
def test_a_voter_goes_only_where_a_majority_stays(voters: str, node: str, heard: str, is_refused: bool) -> None:
    why = without_voter(Membership(frozenset(voters)), node, set(heard))
    assert bool(why) == is_refused, why


ROUTES = Routes(OPERATIONS)


@pytest.mark.parametrize(
    ("method", "path", "operation", "fields"),
    [
        ("GET", "/config", CONFIG_LIST, {}),
        ("HEAD", "/config", CONFIG_LIST, {}),
        ("GET", "/config/a", CONFIG_GET, {"key": "a"}),
        ("PUT", "/config/a/b%2Fc", CONFIG_PUT, {"key": "a/b/c"}),
        ("DELETE", "/config/%C3%A4", CONFIG_DELETE, {"key": "ä"}),
        ("DELETE", "/config/a+b", CONFIG_DELETE, {"key": "a+b"}),
        ("POST", "/backups/cleanup", BACKUP_CLEANUP, {}),
    ],
)
def test_what_a_path_means(method: str, path: str, operation: object, fields: dict[str, str]) -> None:
    found = ROUTES.find(method, path)
    assert (found.operation, found.fields) == (operation, fields)


def test_what_a_path_does_not_mean() -> None:
    with pytest.raises(NotAllowed) as caught:
        ROUTES.find("GET", "/backups/cleanup")
    assert caught.value.allow == "POST"
    for path in ("", "/", "/config/", "//config", "/members//", "/members/a/b"):
        with pytest.raises(Declined) as refused:
            ROUTES.find("GET", path)
        assert refused.value.code == "NO_SUCH_PATH", path


@pytest.mark.parametrize(
    ("phase", "standing", "disk", "knows_tokens", "lines"),
    [
        ("member", LED, "ok", True, ["ready"]),
        ("seeking", None, "ok", True, ["[-] cluster: phase seeking: it looks for others", "not ready"]),
        ("member", LOST, "ok", True, ["[-] leader: no leader is known", "not ready"]),
        ("draining", LED, "ok", True, ["[-] cluster: phase draining: it looks for others", "not ready"]),
        ("member", LED._replace(commit=9_999), "ok", True, ["[-] state: 9990 committed entries are not", "not ready"]),
        (
            "member",
            LED,
            "the disk of the log is full; free space",
            True,
            ["[-] disk: the disk of the log", "not ready"],
        ),
        ("member", LED, "ok", False, ["[-] tokens: they were not read yet", "not ready"]),
    ],
)
def test_when_a_node_is_ready(
    phase: str, standing: Standing | None, disk: str, knows_tokens: bool, lines: list[str]
) -> None:
    looks = readiness(phase, "it looks for others", standing, disk, knows_tokens=knows_tokens)
    said = text(looks, is_verbose=False).splitlines()
    assert len(said) == len(lines)
    assert all(one.startswith(line) for one, line in zip(said, lines, strict=True)), said
    assert len(text(looks, is_verbose=True).splitlines()) == len(looks) + 1
