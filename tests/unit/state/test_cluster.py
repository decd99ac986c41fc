"""The cluster's id, history, protocol and settings."""

from __future__ import annotations

import msgpack
import pytest

from conveyord.core.state.cluster import KEY
from conveyord.core.state.commands import ClusterForm, ClusterRestored, MemberState, ProtocolRaise, SettingChange
from conveyord.core.state.replies import CONFLICT, INVALID, PROTOCOL, Ok
from conveyord.core.state.rows import CLUSTER, SETTINGS, Change, ClusterRow, Decision, SettingRow
from conveyord.core.state.settings import SETTINGS as KNOWN
from conveyord.core.state.settings import value_of
from tests.unit.state.rig import Memory, join


def test_a_cluster_is_formed_once() -> None:
    state = Memory()
    decision = state.do(ClusterForm("c1", 1), session=0)
    row = ClusterRow("c1", "c1", 1_000, 1, 1, 1)
    assert decision.reply == Ok(1)
    assert decision.rows == (row,)
    assert decision.events == (Change(CLUSTER, KEY, "put", msgpack.packb(row._asdict())),)
    assert state.do(ClusterForm("c1", 1), session=0) == Decision(Ok(1))
    assert state.no(ClusterForm("c2", 1)) == (
        CONFLICT,
        "this is cluster c1 already; c2 must have nodes of its own",
    )


def test_what_no_cluster_can_be() -> None:
    assert Memory().no(ClusterForm("", 1))[0] == INVALID
    assert Memory().no(ClusterForm("c", 0)) == (INVALID, "protocol 0; the first is 1")
    assert Memory().no(ProtocolRaise(0)) == (INVALID, "protocol 0; the first is 1")
    assert Memory().no(ClusterRestored("a b"))[0] == INVALID


def test_a_restore_begins_another_history() -> None:
    state = Memory()
    state.ok(ClusterForm("c1", 1))
    assert state.ok(ClusterRestored("h2")) == 2
    assert state.cluster() == ClusterRow("c1", "h2", 1_000, 1, 1, 2)


def test_the_protocol_is_raised_when_every_member_knows_it() -> None:
    state = Memory()
    assert state.no(ProtocolRaise(2)) == (PROTOCOL, "no member is known that speaks protocol 2; start one first")
    state.ok(join("n1", protocol_max=2))
    state.ok(join("n2", version="0.9"))
    assert state.no(ProtocolRaise(2)) == (
        PROTOCOL,
        "member n2 (version 0.9) speaks protocols 1 to 1, not 2; upgrade it or let it leave first",
    )
    state.ok(MemberState("n2", 1, "down"))
    assert state.no(ProtocolRaise(2))[0] == PROTOCOL, "it comes back as it was"
    state.ok(MemberState("n2", 1, "left"))
    assert state.ok(ProtocolRaise(2)) == 2
    assert state.cluster().protocol == 2
    decision = state.do(ProtocolRaise(1), session=0)
    assert (decision.reply, decision.rows) == (Ok(2), ()), "it is never lowered"


@pytest.mark.parametrize(("name", "value"), [("target_voters", 5), ("dead_server_seconds", 0), ("audit_max", 16)])
def test_a_setting_is_changed(name: str, value: int) -> None:
    state = Memory()
    assert value_of(state, name) == KNOWN[name].default
    before = state.do(SettingChange(name, KNOWN[name].default))
    assert (before.reply, before.rows) == (Ok(0), ()), "it is that already"
    decision = state.do(SettingChange(name, value, 0))
    if value == KNOWN[name].default:
        assert decision.rows == ()
        return
    assert decision.reply == Ok(2)
    assert decision.rows == (SettingRow(name, value, 2),)
    assert decision.events == (Change(SETTINGS, name, "put", msgpack.packb(value)),)
    assert value_of(state, name) == value
    assert state.no(SettingChange(name, KNOWN[name].default, 1)) == (
        CONFLICT,
        f"setting {name} was changed last at index 2, expected 1; read it again",
    )
    assert state.ok(SettingChange(name, KNOWN[name].default, 2)) == 4


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "voters",
            3,
            (
                "there is no setting 'voters'; there are target_voters, dead_server_seconds, events_max, "
                "event_bytes_max, audit_max"
            ),
        ),
        ("target_voters", 4, "target_voters = 4; write an odd number, as 4 survive no more than 3"),
        ("target_voters", 0, "target_voters = 0; write 1 to 9: how many routers vote"),
        ("target_voters", 11, "target_voters = 11; write 1 to 9: how many routers vote"),
        (
            "dead_server_seconds",
            59,
            "dead_server_seconds = 59; write 60 to 2592000, or 0 for off: after which a member that is down is removed",
        ),
        ("events_max", 15, "events_max = 15; write 16 to 1000000: events that are kept for watchers"),
    ],
)
def test_a_setting_that_cannot_be(name: str, value: int, message: str) -> None:
    assert Memory().no(SettingChange(name, value)) == (INVALID, message)
