"""Members: who comes, in which state they are, and what of older messages is not believed."""

from __future__ import annotations

from itertools import product

import msgpack
import pytest

from conveyord.core.state import names
from conveyord.core.state.commands import ClusterForm, MemberForget, MemberState
from conveyord.core.state.members import DRAINING, LEFT, TRANSITIONS
from conveyord.core.state.replies import (
    CONFLICT,
    DUPLICATE_NODE,
    INVALID,
    LIMIT,
    NOT_FOUND,
    PROTOCOL,
    STALE,
    WRONG_STATE,
    Ok,
)
from conveyord.core.state.rows import MEMBERS, Change, Gone, MemberRow
from tests.unit.state.rig import Memory, join

WAYS = {
    "joining": [],
    "ready": ["ready"],
    "draining": ["draining"],
    "down": ["down"],
    "left": ["left"],
}


def member_in(state: str) -> Memory:
    memory = Memory()
    memory.ok(join())
    for to in WAYS[state]:
        memory.ok(MemberState("n1", 1, to))
    return memory


def test_a_node_that_is_started_joins() -> None:
    memory = Memory()
    decision = memory.do(join())
    row = MemberRow(
        "n1", "10.0.0.1:7400", "10.0.0.1:7480", "router,sidecar", "1.2.3", 1, 1, 1, "joining", 1000, 1000, 1
    )
    assert decision.reply == Ok(1)
    assert decision.rows == (row,)
    (event,) = decision.events
    assert (event.topic, event.key, event.kind) == (MEMBERS, "n1", "put")
    assert event.value is not None
    assert msgpack.unpackb(event.value) == row._asdict()
    assert list(msgpack.unpackb(event.value)) == list(MemberRow._fields)


def test_the_same_start_told_twice_changes_nothing() -> None:
    memory = member_in("ready")
    decision = memory.do(join())
    assert decision.reply == Ok(2)
    assert (decision.rows, decision.events) == ((), ())


@pytest.mark.parametrize(
    "other",
    [{"rpc_address": "10.0.0.2:7400"}, {"http_address": "10.0.0.2:1"}, {"roles": ("router",)}, {"version": "2"}],
)
def test_two_nodes_with_one_id_are_told_apart(other: dict[str, object]) -> None:
    memory = member_in("ready")
    code, message = memory.no(join(**other))
    assert code == DUPLICATE_NODE
    assert message == (
        f"node n1 runs at 10.0.0.1:7400 as incarnation 1, and at {other.get('rpc_address', '10.0.0.1:7400')} as the "
        "same; stop one of the two, and give it a data directory of its own"
    )


@pytest.mark.parametrize("before", TRANSITIONS)
def test_a_node_that_is_started_again_joins_again_or_goes_on_draining(before: str) -> None:
    memory = member_in(before)
    memory.at_ms = 2_000
    memory.ok(join(incarnation=2, rpc_address="[::1]:7400", version="1.3.0"))
    row = memory.member("n1")
    assert row is not None
    assert row.state == (DRAINING if before == DRAINING else "joining")
    assert (row.rpc_address, row.version, row.incarnation, row.joined_at_ms) == ("[::1]:7400", "1.3.0", 2, 1_000)
    assert row.changed_at_ms == (1_000 if before in ("joining", "draining") else 2_000)


def test_a_message_of_an_earlier_start_is_not_believed() -> None:
    memory = Memory()
    memory.ok(join(incarnation=5))
    assert memory.no(join(incarnation=4)) == (STALE, "node n1 is at incarnation 5, this is of 4; start it anew")
    assert memory.no(MemberState("n1", 4, "left")) == (
        STALE,
        "this is of incarnation 4 of node n1, which is at 5 now",
    )


def test_a_node_that_left_must_be_started_again() -> None:
    memory = member_in(LEFT)
    assert memory.no(join()) == (WRONG_STATE, "node n1 has left; start it again to let it join")


def test_the_protocol_of_the_cluster_must_be_known() -> None:
    memory = Memory()
    memory.ok(ClusterForm("c", 3))
    assert memory.no(join(protocol_max=2)) == (
        PROTOCOL,
        "the cluster speaks protocol 3, node n1 (version 1.2.3) 1 to 2; run a version that knows it",
    )
    assert memory.no(join(protocol_min=4, protocol_max=9))[0] == PROTOCOL
    assert memory.ok(join(protocol_min=3, protocol_max=4))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"node": "a b"},
            "'a b' is no id of a node; write up to 64 letters, digits, '.', '_', '-'; a letter or digit first",
        ),
        ({"node": "n" * 65}, None),
        ({"rpc_address": "10.0.0.1"}, "'10.0.0.1' is no RPC address; write host:port, IPv6 as [::1]:7400"),
        ({"http_address": "a:0"}, "'a:0' is no HTTP address; write host:port, IPv6 as [::1]:7400"),
        ({"http_address": "a:65536"}, None),
        ({"http_address": "a:1\n"}, None),
        ({"rpc_address": "a" * 300 + ":1"}, None),
        (
            {"roles": ()},
            "roles ''; name some of builder, ingestion, router, scheduler, sidecar, in this order, each once",
        ),
        ({"roles": ("sidecar", "router")}, None),
        ({"roles": ("router", "router")}, None),
        ({"roles": ("cook",)}, None),
        ({"version": ""}, "the version has 0 characters; write 1 to 128, none of them for control"),
        ({"version": "1\x7f"}, None),
        ({"protocol_min": 2}, "protocols 2 to 1; write the lowest first, from 1 on"),
        ({"protocol_min": 0}, None),
    ],
)
def test_what_a_node_says_of_itself_is_checked(wrong: dict[str, object], message: str | None) -> None:
    code, said = Memory().no(join(**wrong))
    assert code == INVALID
    assert message in (None, said)


@pytest.mark.parametrize(("before", "after"), list(product(TRANSITIONS, TRANSITIONS)))
def test_a_member_moves_as_the_table_says(before: str, after: str) -> None:
    memory = member_in(before)
    memory.at_ms = 9_000
    command = MemberState("n1", 1, after)
    found = memory.member("n1")
    assert found is not None
    if before == after:
        assert memory.do(command).reply == Ok(found.changed)
        assert memory.member("n1") == found
    elif after in TRANSITIONS[before]:
        assert memory.ok(command) == memory.index
        assert memory.member("n1") == found._replace(state=after, changed_at_ms=9_000, changed=memory.index)
    else:
        can = ", ".join(TRANSITIONS[before]) or "nothing until it is started again"
        assert memory.no(command) == (
            WRONG_STATE,
            f"node n1 is {before} and cannot be {after}; it can be {can}",
        )


def test_a_state_that_is_none_and_a_node_that_is_none() -> None:
    assert Memory().no(MemberState("n1", 1, "asleep")) == (
        INVALID,
        "'asleep' is no state of a member; write one of joining, ready, draining, down, left",
    )
    assert Memory().no(MemberState("n1", 1, "ready")) == (NOT_FOUND, "no member is called n1; start it first")
    assert Memory().no(MemberForget("n1")) == (NOT_FOUND, "no member is called n1; nothing to forget")


def test_a_member_is_changed_at_the_expected_index_only() -> None:
    memory = member_in("ready")
    message = "member n1 was changed last at index 2, expected 1; read it again"
    assert memory.no(MemberState("n1", 1, "left", 1)) == (CONFLICT, message)
    assert memory.no(MemberForget("n1", 1)) == (CONFLICT, message)
    assert memory.ok(MemberState("n1", 1, "left", 2))


def test_only_who_left_is_forgotten() -> None:
    memory = member_in("down")
    assert memory.no(MemberForget("n1")) == (
        WRONG_STATE,
        "node n1 is down; only one that has left can be forgotten",
    )
    memory.ok(MemberState("n1", 1, "left"))
    decision = memory.do(MemberForget("n1"))
    assert decision.rows == (Gone(MEMBERS, "n1"),)
    assert decision.events == (Change(MEMBERS, "n1", "delete", None),)


def test_there_can_only_be_so_many() -> None:
    memory = Memory()
    memory.ok(join())
    row = memory.member("n1")
    memory.rows[MEMBERS] |= {f"x{at}": row for at in range(names.MEMBERS_MAX - 1)}
    assert memory.no(join("n2")) == (
        LIMIT,
        "there are 1024 members, at most that many; forget those that have left",
    )
    assert memory.ok(join(incarnation=2))
