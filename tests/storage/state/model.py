"""What the state must be, in dicts: written down again from docs/state.md, without the code that decides.

A reply is ("ok", value) or ("no", code).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any

from conveyord.core.state.commands import (
    Command,
    ConfigDelete,
    ConfigPut,
    MemberForget,
    MemberJoin,
    MemberState,
    SettingChange,
    TokenCreate,
    TokenDelete,
    TokenRevoke,
)

SLACK = 64
MOVES = {
    "joining": {"ready", "draining", "down", "left"},
    "ready": {"draining", "down", "left"},
    "draining": {"ready", "down", "left"},
    "down": {"joining", "ready", "draining", "left"},
    "left": set(),
}


@dataclass
class Session:
    floor: int = 0
    replies: dict[int, Any] = field(default_factory=dict)


class Refusal(Exception):
    """A command is refused with this code."""


class Model:
    def __init__(self, sessions_max: int, window: int) -> None:
        self.index = 0
        self.sessions: OrderedDict[int, Session] = OrderedDict()
        self.sessions_max, self.window = sessions_max, window
        self.config: dict[str, tuple[int, int, bytes]] = {}  # created, changed, value
        self.members: dict[str, dict[str, Any]] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.settings: dict[str, tuple[int, int]] = {"events_max": (100_000, 0), "audit_max": (100_000, 0)}
        self.events = list[tuple[int, str, str, bool]]()  # index, topic, key, whether it is there now
        self.audit = list[tuple[int, str, str, str]]()  # index, operation, target, code
        self.compacted: dict[str, int] = {}

    # ----------------------------------------------------------------- sessions

    def open(self) -> tuple[str, Any]:
        self.index += 1
        self.sessions[self.index] = Session()
        if len(self.sessions) > self.sessions_max:
            self.sessions.popitem(last=False)
        return "ok", self.index

    def command(self, session: int, number: int, ack_below: int, at_ms: int, command: Command) -> tuple[str, Any]:
        return self.bundle((session, number, ack_below, at_ms, command))[0]

    def bundle(self, *commands: tuple[int, int, int, int, Command]) -> list[tuple[str, Any]]:
        self.index += 1
        replies = [self._command(*command) for command in commands]
        self._evict()
        return replies

    def _command(self, session: int, number: int, ack_below: int, at_ms: int, command: Command) -> tuple[str, Any]:
        if session == 0:
            if not command.is_repeatable:
                return self._audited(command, ("no", "SESSION_NEEDED"))
            return self._run(at_ms, command)
        found = self.sessions.get(session)
        if found is None:
            return "no", "SESSION_EXPIRED"
        self.sessions.move_to_end(session)
        if number < found.floor:
            return "no", "SESSION_EXPIRED"
        if number in found.replies:
            return found.replies[number]
        found.floor = max(found.floor, min(ack_below, number))
        found.replies = {key: reply for key, reply in found.replies.items() if key >= found.floor}
        if len(found.replies) >= self.window:
            return "no", "SESSION_WINDOW"
        reply = found.replies[number] = self._run(at_ms, command)
        return reply

    def _run(self, at_ms: int, command: Command) -> tuple[str, Any]:
        try:
            reply = "ok", getattr(self, f"_{type(command).__name__}")(at_ms, command)
        except Refusal as error:
            reply = "no", str(error)
        return self._audited(command, reply)

    def _audited(self, command: Command, reply: tuple[str, Any]) -> tuple[str, Any]:
        code = "OK" if reply[0] == "ok" else reply[1]
        self.audit.append((self.index, command.operation(), command.target, code))
        return reply

    def _evict(self) -> None:
        most = self.settings["events_max"][0]
        if len(self.events) > most:
            while len(self.events) > most - most // SLACK and (first := self.events[0][0]) != self.events[-1][0]:
                self.compacted |= {topic: index for index, topic, *_ in self.events if index == first}
                self.events = [event for event in self.events if event[0] != first]
        most = self.settings["audit_max"][0]
        if len(self.audit) > most:
            while len(self.audit) > most - most // SLACK and self.audit[0][0] != self.audit[-1][0]:
                self.audit = [row for row in self.audit if row[0] != self.audit[0][0]]

    # ----------------------------------------------------------------- commands, one event for each change

    def _changed(self, topic: str, key: str, there: bool = True) -> int:
        self.events.append((self.index, topic, key, there))
        return self.index

    def _ConfigPut(self, _: int, command: ConfigPut) -> int:
        self._cas(command.expect_index, self.config.get(command.key, (0, 0))[1])
        created = self.config.get(command.key, (self.index,))[0]
        self.config[command.key] = (created, self.index, command.value)
        return self._changed("config", command.key)

    def _ConfigDelete(self, _: int, command: ConfigDelete) -> int:
        self._cas(command.expect_index, self.config.get(command.key, (0, 0))[1])
        self._there(command.key in self.config)
        del self.config[command.key]
        return self._changed("config", command.key, False)

    def _SettingChange(self, _: int, command: SettingChange) -> int:
        value, changed = self.settings[command.name]
        if command.value < 16:
            raise Refusal("INVALID")
        self._cas(command.expect_index, changed)
        if value == command.value:
            return changed
        self.settings[command.name] = (command.value, self.index)
        return self._changed("settings", command.name)

    def _MemberJoin(self, _: int, command: MemberJoin) -> int:
        found = self.members.get(command.node)
        if found and found["incarnation"] > command.incarnation:
            raise Refusal("STALE")
        if found and found["incarnation"] == command.incarnation:
            if found["state"] == "left":
                raise Refusal("WRONG_STATE")
            if found["address"] != command.rpc_address:
                raise Refusal("DUPLICATE_NODE")
            return found["changed"]
        state = "draining" if found and found["state"] == "draining" else "joining"
        self.members[command.node] = {
            "incarnation": command.incarnation,
            "address": command.rpc_address,
            "state": state,
            "changed": self.index,
        }
        return self._changed("members", command.node)

    def _MemberState(self, _: int, command: MemberState) -> int:
        found = self.members.get(command.node)
        self._there(found is not None)
        if found["incarnation"] != command.incarnation:
            raise Refusal("STALE")
        self._cas(command.expect_index, found["changed"])
        if found["state"] == command.state:
            return found["changed"]
        if command.state not in MOVES[found["state"]]:
            raise Refusal("WRONG_STATE")
        found |= {"state": command.state, "changed": self.index}
        return self._changed("members", command.node)

    def _MemberForget(self, _: int, command: MemberForget) -> int:
        found = self.members.get(command.node)
        self._there(found is not None)
        self._cas(command.expect_index, found["changed"])
        if found["state"] != "left":
            raise Refusal("WRONG_STATE")
        del self.members[command.node]
        return self._changed("members", command.node, False)

    def _TokenCreate(self, at_ms: int, command: TokenCreate) -> int:
        if command.token in self.tokens:
            raise Refusal("EXISTS")
        if command.expires_at_ms is not None and command.expires_at_ms <= at_ms:
            raise Refusal("INVALID")
        self.tokens[command.token] = {
            "role": command.role,
            "expires": command.expires_at_ms,
            "revoked": False,
            "changed": self.index,
        }
        return self._changed("tokens", command.token)

    def _TokenRevoke(self, at_ms: int, command: TokenRevoke) -> int:
        found = self.tokens.get(command.token)
        self._there(found is not None)
        if found["revoked"]:
            return found["changed"]
        admins = {key for key, one in self.tokens.items() if one["role"] == "admin" and self._usable(one, at_ms)}
        if admins == {command.token} and not command.force:
            raise Refusal("LAST_ADMIN")
        found |= {"revoked": True, "changed": self.index}
        return self._changed("tokens", command.token)

    def _TokenDelete(self, at_ms: int, command: TokenDelete) -> int:
        found = self.tokens.get(command.token)
        self._there(found is not None)
        if self._usable(found, at_ms):
            raise Refusal("WRONG_STATE")
        del self.tokens[command.token]
        return self._changed("tokens", command.token, False)

    @staticmethod
    def _usable(token: dict[str, Any], at_ms: int) -> bool:
        return not token["revoked"] and (token["expires"] is None or token["expires"] > at_ms)

    @staticmethod
    def _cas(expected: int | None, changed: int) -> None:
        if expected is not None and expected != changed:
            raise Refusal("CONFLICT")

    @staticmethod
    def _there(found: bool) -> None:
        if not found:
            raise Refusal("NOT_FOUND")
