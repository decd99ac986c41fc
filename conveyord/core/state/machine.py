"""All commands, with what checks and what decides each of them, and the gate that a rolling upgrade goes through."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from conveyord.core.state import cluster, config, members, settings, tokens
from conveyord.core.state.commands import (
    ClusterForm,
    ClusterRestored,
    Command,
    ConfigDelete,
    ConfigPut,
    MemberForget,
    MemberJoin,
    MemberState,
    ProtocolRaise,
    SessionOpen,
    SettingChange,
    TokenCreate,
    TokenDelete,
    TokenRevoke,
)
from conveyord.core.state.replies import INVALID, PROTOCOL, SESSION_NEEDED, No
from conveyord.core.state.rows import Decision, Moment, View

PROTOCOL_MIN = 1
"""Of a cluster in which this program can still be a member."""
PROTOCOL_MAX = 1
"""The newest that this program knows: the highest `protocol` of its commands."""


class Handler(NamedTuple):
    """check: what can be refused without the state. decide: what the command does."""

    check: Callable[[Any], No | None]
    decide: Callable[[View, Moment, Any], Decision]


def _nothing_wrong(_: Command) -> None:
    return None


def _opened_outside(_: View, moment: Moment, __: SessionOpen) -> Decision:
    raise AssertionError(f"entry {moment.index}: who applies entries opens sessions")


HANDLERS: dict[type[Command], Handler] = {
    SessionOpen: Handler(_nothing_wrong, _opened_outside),
    ClusterForm: Handler(cluster.check_form, cluster.decide_form),
    ClusterRestored: Handler(cluster.check_restored, cluster.decide_restored),
    ProtocolRaise: Handler(cluster.check_raise, cluster.decide_raise),
    SettingChange: Handler(settings.check, settings.decide),
    MemberJoin: Handler(members.check_join, members.decide_join),
    MemberState: Handler(members.check_state, members.decide_state),
    MemberForget: Handler(members.check_forget, members.decide_forget),
    ConfigPut: Handler(config.check_put, config.decide_put),
    ConfigDelete: Handler(config.check_delete, config.decide_delete),
    TokenCreate: Handler(tokens.check_create, tokens.decide_create),
    TokenRevoke: Handler(tokens.check_revoke, tokens.decide_revoke),
    TokenDelete: Handler(tokens.check_revoke, tokens.decide_delete),
}


class Machine:
    """The commands that a program knows. Tests make others, to be a program of another version."""

    def __init__(self, handlers: Mapping[type[Command], Handler]) -> None:
        self.handlers = dict(handlers)

    @property
    def commands(self) -> tuple[type[Command], ...]:
        """Their types."""
        return tuple(self.handlers)

    @property
    def protocol_max(self) -> int:
        """The newest protocol of which it knows a command."""
        return max(command.protocol for command in self.handlers)

    def check(self, session: int, command: Command) -> No | None:
        """Whether it cannot be right, whatever the state is."""
        if session == 0 and not command.is_repeatable:
            return No(SESSION_NEEDED, f"{command.operation()} must not be applied twice; send it in a session")
        if session and isinstance(command, SessionOpen):
            return No(INVALID, f"{command.operation()} was sent in session {session}; send it in none")
        return self.handlers[type(command)].check(command)

    def may_propose(self, view: View, session: int, command: Command) -> No | None:
        """Whether it must not get into the log: it can never be right, or members do not know it yet.

        Those would stop at it, because they would differ from the others if they went on. The leader asks this before
        it appends what others forward, too.
        """
        if command.protocol > 1 and command.protocol > (spoken := view.cluster().protocol):
            return No(
                PROTOCOL,
                f"{command.operation()} needs protocol {command.protocol}, the cluster speaks {spoken}; upgrade all "
                "members, then raise it",
            )
        return self.check(session, command)

    def decide(self, view: View, moment: Moment, session: int, command: Command) -> Decision:
        """What a command does to the state."""
        check, decide = self.handlers[type(command)]
        # `check` has more to ask only of what comes in no session, or opens one; most does neither.
        wrong = check(command) if session and decide is not _opened_outside else self.check(session, command)
        return Decision(wrong) if wrong else decide(view, moment, command)


MACHINE = Machine(HANDLERS)
"""What this program knows."""
