"""What an entry does, and when a node must stop."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import ClassVar

import pytest

from conveyord.core.errors import Refused, StorageFull
from conveyord.core.raft.membership import Membership
from conveyord.core.raft.types import Kind
from conveyord.core.state.commands import Command, ConfigDelete, ConfigPut, ProtocolRaise, SessionOpen, SettingChange
from conveyord.core.state.machine import HANDLERS, Handler, Machine
from conveyord.core.state.replies import No, Ok
from conveyord.core.state.rows import CONFIG, STANDINGS, AuditRow, Change, ConfigRow, Decision
from conveyord.storage.state.reading import Answer, Page, StateView
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state.tables import PUT
from conveyord.storage.state.totals import Totals
from conveyord.storage.state.watching import Compacted, Event, Events
from conveyord.storage.state_store.store import StateStore
from tests.storage.state.rig import FEW, SESSIONS_MAX, WINDOW, Client, Log, Node, told
from tests.unit.state.rig import join


class Tag(Command, frozen=True, tag="config.tag"):
    """A command of a later version."""

    protocol: ClassVar[int] = 2
    key: str


def _tag(_: object, moment: object, command: Tag) -> Decision:
    row = ConfigRow(command.key, moment.index, moment.index, 1, b"")  # type: ignore[attr-defined]
    return Decision(Ok(moment.index), (row,), (Change(CONFIG, command.key, "put", b""),), (1, 1))  # type: ignore[attr-defined]


NEWER = Machine({**HANDLERS, Tag: Handler(lambda _: None, _tag)})


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "state", sessions_max=SESSIONS_MAX, window=WINDOW)
    yield node
    node.store.close()


def test_a_command_that_comes_again_is_done_once(node: Node) -> None:
    client = Client(Log(), node)
    client.put("a", b"1")
    client.log.command(ConfigPut("a", b"2"), client.session, client.number, client.number)
    assert node.follow(client.log) == [Ok(2)], "the first reply"
    with node.view() as view:
        row = view.config("a").value
        assert row is not None
        assert row.value == b"1"
        assert len(view.audit().value.items) == 1


def test_sessions_that_are_gone_are_told(node: Node) -> None:
    client = Client(Log(), node)
    for _ in range(SESSIONS_MAX):
        client.log.command(SessionOpen())
    client.log.command(ConfigPut("a", b""), client.session, 1, 1)
    assert node.follow(client.log)[-1] == No(
        "SESSION_EXPIRED", "session 1 has expired; register anew, and look before proposing again"
    )


def test_a_session_has_a_window(node: Node) -> None:
    client = Client(Log(), node)
    for number in range(1, WINDOW + 2):
        client.log.command(ConfigPut("a", b""), client.session, number, 1)
    assert node.follow(client.log)[-1] == No(
        "SESSION_WINDOW", "session 1 has 2 replies that it did not acknowledge, at most 2; wait for some of them"
    )


def test_entries_that_are_no_commands_have_no_reply(node: Node) -> None:
    log = Log()
    log.add(Kind.NOOP, b"")
    assert node.apply(log.entries) == [b""]


def test_what_needs_a_session_is_refused_without_one_and_audited(node: Node) -> None:
    log = Log()
    log.command(ConfigPut("a", b""))
    assert node.follow(log) == [No("SESSION_NEEDED", "config.put must not be applied twice; send it in a session")]
    with node.view() as view:
        (row,) = view.audit().value.items
        assert row == (1, 1_000, "someone", "config.put", "a", "SESSION_NEEDED")


def test_a_command_of_a_newer_version_stops_the_node_before_anything_of_the_batch(node: Node) -> None:
    client = Client(Log(NEWER), node)
    client.put("a")
    client.add(ConfigPut("b", b""))
    client.add(Tag("c"))
    before = node.store.state_digest()
    with pytest.raises(Refused, match=r"the command 'config.tag' that this conveyord does not know; upgrade this node"):
        node.follow(client.log)
    node.reopen()
    assert node.store.state_digest() == before
    with pytest.raises(Refused, match="upgrade this node"):
        node.follow(client.log)
    node.machine = NEWER
    node.reopen()
    assert node.follow(client.log) == [Ok(3), Ok(4)]


def test_a_rolling_upgrade(tmp_path: Path) -> None:
    old = Node(tmp_path / "old")
    new = Node(tmp_path / "new", NEWER)
    log = Log(NEWER)
    client = Client(log, new)
    client.ok(join("n1", protocol_max=2))
    client.ok(join("n2", protocol_max=1))
    with new.view() as view:
        view._machine = NEWER
        found = view.may_propose(client.session, Tag("x"))
        assert isinstance(found, No)
        assert found.code == "PROTOCOL"
        log.command(ProtocolRaise(2))
        assert new.follow(log) == [
            No("PROTOCOL", "member n2 (version 1.2.3) speaks protocols 1 to 1, not 2; upgrade it or let it leave first")
        ]
        old.follow(log)
        assert old.store.state_digest() == new.store.state_digest(), "both versions know all that was proposed"
        client.ok(join("n2", incarnation=2, protocol_max=2))
        old.follow(log)
        log.command(ProtocolRaise(2))
        assert new.follow(log) == [Ok(2)]
        with pytest.raises(Refused) as caught:
            old.follow(log)
        assert str(caught.value) == (
            "the cluster speaks protocol 2 at entry 6, this conveyord up to 1; upgrade this node to the version of "
            "the others"
        )
        assert view.may_propose(client.session, Tag("x")) is None
        client.ok(Tag("x"))
    old.machine = NEWER
    old.reopen()
    old.follow(log)
    assert old.store.state_digest() == new.store.state_digest()
    old.store.close()
    new.store.close()


def test_a_state_of_a_protocol_that_is_not_known_is_not_gone_on_with(node: Node) -> None:
    node.machine = NEWER
    node.reopen()
    client = Client(Log(NEWER), node)
    client.ok(join("n1", protocol_max=2))
    client.ok(ProtocolRaise(2))
    node.machine = Machine(HANDLERS)
    node.reopen()
    client.add(ConfigPut("a", b""))
    with pytest.raises(Refused, match="the cluster speaks protocol 2 at entry 4, this conveyord up to 1"):
        node.follow(client.log)


def test_a_lowered_limit_is_reached_step_by_step(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conveyord.storage.state.totals.ROWS_MAX", 10)
    client = Client(Log(), node)
    for at in range(60):
        client.put(f"k{at}")
    assert node.executor._totals.events == 60
    client.ok(SettingChange("events_max", FEW))
    assert node.executor._totals.events == 61 - 10
    counts = []
    for at in range(8):
        client.put(f"more{at}")
        counts.append(node.executor._totals.events)
    assert counts == [42, 33, 24, 16, 16, 16, 16, 16]


class Both(Command, frozen=True, tag="both"):
    """A command that tells of two topics."""


def test_a_command_may_tell_of_several_topics(tmp_path: Path) -> None:
    changes = (Change(CONFIG, "a", "put", b""), Change(STANDINGS, "b", "delete", None), Change(CONFIG, "c", "put", b""))
    machine = Machine({**HANDLERS, Both: Handler(lambda _: None, lambda *_: Decision(Ok(), (), changes))})
    node = Node(tmp_path / "state", machine)
    client = Client(Log(machine), node)
    client.ok(Both())
    with node.view() as view:
        found = view.events_after(0)
        assert isinstance(found, Events)
        assert [event[1:5] for event in found.events] == [
            (0, CONFIG, "a", "put"),
            (1, STANDINGS, "b", "delete"),
            (2, CONFIG, "c", "put"),
        ]
        assert [topic for topic, told in view.topics().value.items() if told.newest == 2] == [STANDINGS, CONFIG]
    assert node.executor.take_touched() == {CONFIG: 2, STANDINGS: 2}
    node.store.close()


def test_a_change_of_members_makes_room_for_itself(node: Node) -> None:
    client = Client(Log(), node)
    client.ok(SettingChange("events_max", FEW))
    for at in range(10):
        client.put(f"k{at}")
    client.log.membership(Membership(frozenset(f"n{at}" for at in range(12))))
    node.follow(client.log)
    assert node.executor._totals.events == FEW


def test_rows_go_in_company(node: Node) -> None:
    client = Client(Log(), node)
    client.ok(SettingChange("events_max", 640))
    client.ok(SettingChange("audit_max", 320))
    client.log.membership(Membership(frozenset(f"n{at}" for at in range(12))))
    for at in range(626):
        client.add(ConfigPut(f"k{at}", b""))
    node.follow(client.log)
    totals = node.executor._totals
    assert (totals.events, totals.audit) == (640, 315 + (2 + 626 - 321) % 6)
    client.put("one-too-many")
    assert totals.events == 641 - 2 - 12, "of the members all go, though fewer would do"
    with node.view() as view:
        assert view.topics().value[STANDINGS].compacted_to == 4
        found = view.events_after(0)
        assert isinstance(found, Compacted)
        assert found.oldest == 4


def test_after_a_full_disk_rows_are_counted_anew(node: Node) -> None:
    client = Client(Log(), node)
    client.put("a", b"123")
    client.log.command(SessionOpen())
    for at in range(40):
        client.add(ConfigPut(f"k{at}", bytes(20_000)))
    connection = node.store._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 100}")
    before = node.store.state_digest()
    for _ in range(2):
        with pytest.raises(StorageFull):
            node.follow(client.log)
        assert node.store.state_digest() == before
    connection.execute("PRAGMA max_page_count = 1000000")
    node.follow(client.log)
    with node.store.reader() as reader:
        counted = Totals(reader.connection.cursor())
    assert vars(counted) == vars(node.executor._totals)
    assert counted.config_entries == 41


def test_an_entry_that_could_not_be_written_is_not_counted_twice(node: Node) -> None:
    client = Client(Log(), node)
    client.put("a", b"123")
    client.log.membership(Membership(frozenset(f"{at:060}" for at in range(250))))
    connection = node.store._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    while node.executor._totals.events == 1:
        pages += 1
        connection.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(StorageFull):
            node.follow(client.log)
    assert node.executor._totals.events == 251, "they were counted, and then there was no room for them"
    connection.execute("PRAGMA max_page_count = 1000000")
    node.follow(client.log)
    assert node.executor._totals.events == 251


def test_one_executor_can_serve_one_store_after_the_other(tmp_path: Path) -> None:
    first, second = Node(tmp_path / "1"), Node(tmp_path / "2")
    log = Log()
    client = Client(log, first)
    client.put("a")
    second.executor = first.executor
    second.follow(log)
    assert second.store.state_digest() == first.store.state_digest()
    first.store.close()
    second.store.close()


def test_the_columns_of_a_table_are_the_fields_of_its_rows(node: Node) -> None:
    tables = dict(zip(PUT, ["cluster", "settings", "members", "standings", "config", "tokens"], strict=True))
    with node.store.reader() as reader:
        for kind, table in tables.items():
            columns = [row[1] for row in reader.connection.execute(f"PRAGMA table_info({table})")]
            fields = kind.__struct_fields__ if kind is ConfigRow else kind._fields
            assert tuple(columns[: len(fields)]) == fields
            assert columns[len(fields) :] == (["only"] if table == "cluster" else [])


def test_a_state_of_before_there_were_bundles_is_read_on(tmp_path: Path) -> None:
    with closing(StateStore.open(tmp_path, migrations=MIGRATIONS[:1])) as store:
        path = store.path
    events = [
        (3 * 4096, "config", "k", "put", 64 + 2, b"v"),
        (5 * 4096, "standings", "a", "put", 64 + 6, b"voter"),
        (5 * 4096 + 1, "config", "k", "delete", 64 + 1, None),
    ]
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO audit VALUES (7, 5, 'someone', 'config.put', 'k', 'OK')")
        connection.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?)", events)
        connection.execute("INSERT INTO topics VALUES ('config', 5, 0), ('standings', 5, 0)")
        connection.execute('UPDATE raft_applied SET "index" = 7')
    with closing(StateStore.open(tmp_path, migrations=MIGRATIONS)) as store, StateView(tmp_path) as view:
        assert view.audit() == Answer(7, Page((AuditRow(7, 5, "someone", "config.put", "k", "OK"),), more=False))
        assert told(view, 0) == [
            Event(3, 0, "config", "k", "put", b"v"),
            Event(5, 0, "standings", "a", "put", b"voter"),
            Event(5, 1, "config", "k", "delete", None),
        ]
        assert [event.key for event in told(view, 0, ["standings"])] == ["a"]
        with store.reader() as reader:
            totals = Totals(reader.connection.cursor())
    assert (totals.events, totals.event_bytes, totals.audit) == (3, 3 * 64 + 2 + 6 + 1, 1)


def test_commands_of_one_entry_are_each_decided_on_after_those_before(tmp_path: Path) -> None:
    node = Node(tmp_path)
    client = Client(Log(), node)
    client.put("gone")
    commands = [ConfigPut("a", b"1"), ConfigDelete("gone"), ConfigPut("b", b"2", 9), ConfigPut("no key", b"")]
    client.log.bundle(*((one, client.session, number) for number, one in enumerate(commands, 2)))
    assert [reply if isinstance(reply, Ok) else reply.code for reply in node.follow(client.log) if reply] == [
        Ok(3), Ok(3), "CONFLICT", "INVALID",
    ]  # fmt: skip
    client.log.bundle(*((one, client.session, number) for number, one in enumerate(commands, 2)))
    assert node.follow(client.log)[:2] == [Ok(3), Ok(3)], "what comes again is not decided on again"
    with node.view() as view:
        assert [(row.index, row.target, row.code) for row in view.audit().value.items][:4] == [
            (3, "no key", "INVALID"), (3, "b", "CONFLICT"), (3, "gone", "OK"), (3, "a", "OK"),
        ]  # fmt: skip
        events = told(view, 2)
    assert [(event.index, event.number, event.key, event.kind) for event in events] == [
        (3, 0, "a", "put"), (3, 1, "gone", "delete"),
    ]  # fmt: skip
    node.store.close()
