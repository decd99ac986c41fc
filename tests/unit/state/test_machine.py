"""The gate of a rolling upgrade, and which commands may be applied twice."""

from __future__ import annotations

from typing import ClassVar

import pytest

from conveyord.core.raft.membership import Membership
from conveyord.core.state.commands import (
    ClusterForm,
    Command,
    ConfigDelete,
    ConfigPut,
    MemberForget,
    MemberState,
    ProtocolRaise,
    SessionOpen,
    SettingChange,
    TokenDelete,
    TokenRevoke,
)
from conveyord.core.state.machine import HANDLERS, MACHINE, PROTOCOL_MAX, PROTOCOL_MIN, Handler, Machine
from conveyord.core.state.replies import INVALID, PROTOCOL, SESSION_NEEDED, No, Ok
from conveyord.core.state.rows import STANDINGS, Change, Decision, Gone, StandingRow
from conveyord.core.state.standings import decide_membership
from tests.unit.state.rig import Memory, join, token


class Ring(Command, frozen=True, tag="bell.ring"):
    """A command of a later version."""

    protocol: ClassVar[int] = 2
    times: int


NEWER = Machine({**HANDLERS, Ring: Handler(lambda _: None, lambda _, __, command: Decision(Ok(command.times)))})


def test_a_newer_command_waits_for_the_protocol() -> None:
    state = Memory(NEWER)
    assert NEWER.protocol_max == 2
    assert NEWER.may_propose(state, 1, Ring(3)) == No(
        PROTOCOL, "bell.ring needs protocol 2, the cluster speaks 1; upgrade all members, then raise it"
    )
    state.ok(join(protocol_max=2))
    state.ok(ProtocolRaise(2))
    assert NEWER.may_propose(state, 1, Ring(3)) is None
    assert state.ok(Ring(3)) == 3


def test_this_program_knows_what_it_says_it_knows() -> None:
    assert PROTOCOL_MIN <= MACHINE.protocol_max == PROTOCOL_MAX


def test_what_can_never_be_right_does_not_get_into_the_log() -> None:
    state = Memory()
    found = MACHINE.may_propose(state, 1, ConfigPut("a b", b""))
    assert isinstance(found, No)
    assert found.code == INVALID
    assert MACHINE.may_propose(state, 1, ConfigDelete("a")) is None, "whether it is there is decided later"


REPEATABLE = [
    SessionOpen(),
    ClusterForm("c", 1),
    ProtocolRaise(1),
    join(),
    SettingChange("audit_max", 20, 3),
    MemberState("n", 1, "ready", 3),
    MemberForget("n", 3),
    ConfigPut("k", b"", 3),
    ConfigDelete("k", 3),
]
ONCE = [
    SettingChange("audit_max", 20),
    MemberState("n", 1, "ready"),
    MemberForget("n"),
    ConfigPut("k", b""),
    ConfigPut("k", b"", 0),
    ConfigDelete("k"),
    token(),
    TokenRevoke("t"),
    TokenDelete("t"),
]


@pytest.mark.parametrize("command", REPEATABLE, ids=lambda command: command.operation())
def test_a_command_that_may_be_repeated_needs_no_session(command: Command) -> None:
    assert MACHINE.check(0, command) is None


@pytest.mark.parametrize("command", ONCE, ids=lambda command: command.operation())
def test_another_needs_one(command: Command) -> None:
    assert Memory().no(command, session=0) == (
        SESSION_NEEDED,
        f"{command.operation()} must not be applied twice; send it in a session",
    )


def test_a_session_is_opened_outside_of_any() -> None:
    assert Memory().no(SessionOpen(), session=4) == (
        INVALID,
        "session.open was sent in session 4; send it in none",
    )


def test_every_command_names_what_it_is_about() -> None:
    assert [command.target for command in (*REPEATABLE, *ONCE)] == [
        "", "c", "1", "n1", "audit_max", "n", "n", "k", "k", "audit_max", "n", "n", "k", "k", "k", "t1", "t", "t",
    ]  # fmt: skip


def test_watchers_are_told_what_became_of_a_node() -> None:
    state = Memory()
    first = Membership(frozenset("ab"), frozenset("c"))
    decision = decide_membership(state, 1, first)
    assert decision.rows == (StandingRow("a", "voter", 1), StandingRow("b", "voter", 1), StandingRow("c", "learner", 1))
    assert [(event.key, event.kind, event.value) for event in decision.events] == [
        ("a", "put", b"voter"),
        ("b", "put", b"voter"),
        ("c", "put", b"learner"),
    ]
    state.carry_out(decision)
    joint = Membership(frozenset("ac"), frozenset(), frozenset("ab"))
    decision = decide_membership(state, 2, joint)
    assert decision.events == (Change(STANDINGS, "c", "put", b"voter"),), "b votes until the change is done"
    state.carry_out(decision)
    decision = decide_membership(state, 3, joint.left())
    assert decision.rows == (Gone(STANDINGS, "b"),)
    assert decision.events == (Change(STANDINGS, "b", "delete", b"gone"),)
    state.carry_out(decision)
    assert decide_membership(state, 4, joint.left()) == Decision(Ok())


def test_only_what_concerns_its_target_alone_shares_an_entry() -> None:
    """The rest sees or changes more than one row, or counts rows: at one index it could not be told apart."""
    sharing = {type(command) for command in (*REPEATABLE, *ONCE) if command.about is not None}
    assert sharing == {ConfigPut, ConfigDelete}
    assert all(command.about in {None, command.target} for command in (*REPEATABLE, *ONCE))
