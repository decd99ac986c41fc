"""The state against what it must be in dicts: whatever commands come, again and out of sessions, in whatever cuts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from conveyord.core.raft.types import Kind
from conveyord.core.state.commands import (
    Command,
    ConfigDelete,
    ConfigPut,
    MemberForget,
    MemberState,
    SessionOpen,
    SettingChange,
    TokenDelete,
    TokenRevoke,
)
from conveyord.core.state.replies import Ok
from conveyord.storage.state.totals import Totals
from conveyord.storage.state.watching import Compacted
from tests.storage.state.model import Model
from tests.storage.state.rig import FEW, SESSIONS_MAX, WINDOW, Log, Node, told
from tests.unit.state.rig import join, token

KEYS = st.sampled_from(["a", "a/b", "c"])
NODES = st.sampled_from(["n1", "n2"])
TOKENS = st.sampled_from(["t1", "t2", "t3"])
STATES = st.sampled_from(["joining", "ready", "draining", "down", "left"])
EXPECTED = st.none() | st.integers(-3, 0)  # 0: that nothing is there; others: that many indices ago, see `_placed`
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(ConfigPut, KEYS, st.binary(max_size=3), EXPECTED),
    st.builds(ConfigDelete, KEYS, EXPECTED),
    st.builds(join, NODES, st.integers(1, 3), rpc_address=st.sampled_from(["a:1", "b:1"])),
    st.builds(MemberState, NODES, st.integers(1, 3), STATES, EXPECTED),
    st.builds(MemberForget, NODES, EXPECTED),
    st.builds(token, TOKENS, st.sampled_from(["admin", "viewer"]), expires_at_ms=st.sampled_from([None, 5, 10])),
    st.builds(TokenRevoke, TOKENS, st.booleans()),
    st.builds(TokenDelete, TOKENS),
    st.builds(SettingChange, st.sampled_from(["events_max", "audit_max"]), st.integers(14, 20), EXPECTED),
)
ABOUT = st.one_of(st.builds(ConfigPut, KEYS, st.binary(max_size=3)), st.builds(ConfigDelete, KEYS))


class State(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp())
        self.node = Node(self.directory / "state", sessions_max=SESSIONS_MAX, window=WINDOW)
        self.log = Log()
        self.model = Model(SESSIONS_MAX, WINDOW)
        self.expected = list[Any]()
        self.opened = list[int]()
        self.view = self.node.view()

    def teardown(self) -> None:
        self.view.close()
        self.node.store.close()
        shutil.rmtree(self.directory)

    @initialize(few=st.booleans())
    def begin(self, few: bool) -> None:
        self.open()
        if few:
            for number, name in enumerate(["events_max", "audit_max"], 1):
                self._add(self.opened[0], number, 0, 1, SettingChange(name, FEW))

    @rule()
    def open(self) -> None:
        self.log.command(SessionOpen(), at_ms=1)
        self.expected.append(self.model.open())
        self.opened.append(self.log.last.index)

    @rule(
        back=st.integers(0, SESSIONS_MAX + 1),
        number=st.integers(1, 30),
        ack=st.integers(0, 30),
        at_ms=st.integers(1, 12),
        command=COMMANDS,
    )
    def command(self, back: int, number: int, ack: int, at_ms: int, command: Command) -> None:
        session = self.opened[-back] if 0 < back <= len(self.opened) else 0
        self._add(session, number, ack, at_ms, self._placed(command))

    @rule(commands=st.lists(COMMANDS, min_size=10, max_size=25))
    def many(self, commands: list[Command]) -> None:
        """In a session of their own, one after the other."""
        self.open()
        for number, command in enumerate(commands, 1):
            self._add(self.opened[-1], number, number, 7, self._placed(command))

    @rule(commands=st.lists(ABOUT, min_size=2, unique_by=lambda command: command.key), number=st.integers(1, 30))
    def bundle(self, commands: list[ConfigPut | ConfigDelete], number: int) -> None:
        """In one entry, all of the newest session, which may have had some of their numbers before."""
        session = self.opened[-1]
        numbered = list(enumerate(commands, number))
        self.log.bundle(*((command, session, at, 0, 7) for at, command in numbered))
        self.expected += self.model.bundle(*((session, at, 0, 7, command) for at, command in numbered))

    @rule()
    def noop(self) -> None:
        self.log.add(Kind.NOOP, b"")
        self.model.index += 1
        self.expected.append(None)

    @precondition(lambda self: self.expected)
    @rule(batch=st.integers(1, 12))
    def apply(self, batch: int) -> None:
        replies = self.node.follow(self.log, batch=batch)
        assert [self._outcome(reply) for reply in replies] == self.expected
        self.expected = []

    @rule()
    def restart(self) -> None:
        self.node.reopen()

    @invariant()
    def everything_is_as_it_must_be(self) -> None:
        if self.expected:
            return  # some of it was not applied yet
        model, view = self.model, self.view
        assert view.index() == model.index
        rows = view.config_page().value.items
        assert {row.key: (row.created, row.changed, row.value) for row in rows} == model.config
        members = [member.row for member in view.members().value]
        assert {
            row.node: (row.incarnation, row.rpc_address, row.state, row.changed) for row in members if row is not None
        } == {key: (m["incarnation"], m["address"], m["state"], m["changed"]) for key, m in model.members.items()}
        assert {row.id: (row.role, row.revoked_at_ms is not None, row.changed) for row in view.tokens().value} == {
            key: (one["role"], one["revoked"], one["changed"]) for key, one in model.tokens.items()
        }
        assert {name: view.settings().value[name] for name in model.settings} == model.settings
        audit = view.audit(limit=1_000).value.items
        assert [(row.index, row.operation, row.target, row.code) for row in reversed(audit)] == model.audit
        for topics in (["config"], ["members", "tokens"], ["config", "members", "settings", "tokens"]):
            self._check_watch(topics)
        self._check_totals()

    def _check_watch(self, topics: list[str]) -> None:
        oldest = max(self.model.compacted.get(topic, 0) for topic in topics)
        if oldest:
            assert self.view.events_after(oldest - 1, topics) == Compacted(self.model.index, oldest, "")
        events = told(self.view, oldest, topics, limit=5)
        expected = [event for event in self.model.events if event[1] in topics and event[0] > oldest]
        assert [(event.index, event.topic, event.key, event.kind == "put") for event in events] == expected

    def _check_totals(self) -> None:
        with self.node.store.reader() as reader:
            counted = Totals(reader.connection.cursor())
        if self.node.executor._next:
            assert vars(counted) == vars(self.node.executor._totals)

    def _add(self, session: int, number: int, ack: int, at_ms: int, command: Command) -> None:
        self.log.command(command, session, number, ack, at_ms)
        self.expected.append(self.model.command(session, number, ack, at_ms, command))

    def _placed(self, command: Command) -> Command:
        """An expected index that may be right."""
        expected = getattr(command, "expect_index", None)
        if not expected:
            return command
        changed = [row[1] for row in self.model.config.values()] + [m["changed"] for m in self.model.members.values()]
        return msgspec.structs.replace(command, expect_index=sorted([1, *changed])[expected % (len(changed) + 1)])

    @staticmethod
    def _outcome(reply: Any) -> Any:
        if reply is None:
            return None
        return ("ok", reply.value) if isinstance(reply, Ok) else ("no", reply.code)


TestState = State.TestCase
