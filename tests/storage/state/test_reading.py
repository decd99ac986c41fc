"""Answers: what is there, and of which index."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from conveyord.core.errors import Retryable
from conveyord.core.raft.membership import Membership
from conveyord.core.state.commands import ClusterForm, ConfigPut, MemberState
from conveyord.core.state.rows import TOPICS, ClusterRow
from conveyord.core.state.settings import SETTINGS
from conveyord.storage.state.reading import Answer, Page, StateView
from conveyord.storage.state.watching import Topic
from tests.storage.state.rig import Client, Log, Node
from tests.storage.state.test_watching import install
from tests.unit.state.rig import join, token


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "state")
    yield node
    node.store.close()


def test_a_state_in_which_nothing_is(node: Node) -> None:
    with node.view() as view:
        assert view.index() == 0
        assert view.cluster() == Answer(0, ClusterRow())
        assert view.settings() == Answer(0, {name: (setting.default, 0) for name, setting in SETTINGS.items()})
        assert view.members() == Answer(0, ())
        assert view.member("n1") == view.config("a") == view.token("t") == Answer(0, None)
        assert view.config_page() == view.audit() == Answer(0, Page((), more=False))
        assert view.tokens() == Answer(0, ())
        assert view.topics() == Answer(0, dict.fromkeys(TOPICS, Topic()))


def test_there_is_nothing_to_read_before_there_is_a_state(tmp_path: Path) -> None:
    with StateView(tmp_path / "none") as view, pytest.raises(Retryable, match="there is no state to read"):
        view.index()


def test_everything_is_read_as_it_was_written(node: Node) -> None:
    client = Client(Log(), node)
    client.log.command(ClusterForm("c1", 1))
    client.ok(join())
    client.ok(token())
    changed = client.set("target_voters", 5)
    with node.view() as view:
        assert view.cluster() == Answer(5, ClusterRow("c1", "c1", 1_001, 1, 2, 2))
        assert view.settings().value["target_voters"] == (5, changed)
        (one,) = view.tokens().value
        assert view.token("t1") == Answer(5, one)
        assert (one.hash, one.changed) == (b"h" * 32, 4)


def test_a_node_is_what_members_and_raft_say_of_it(tmp_path: Path) -> None:
    members = Membership(frozenset({"n1"}), frozenset({"n2"}))
    node = Node(tmp_path / "state", membership=members)
    client = Client(Log(), node)
    client.ok(join("n1"))
    client.ok(join("n3"))
    client.ok(MemberState("n3", 1, "ready"))
    with node.view() as view:
        assert view.membership() == Answer(4, members)
        found = view.members()
        assert [(one.node, one.standing, one.row and one.row.state) for one in found.value] == [
            ("n1", "voter", "joining"),
            ("n2", "learner", None),
            ("n3", None, "ready"),
        ]
        assert view.member("n3") == Answer(4, found.value[2])
        client.log.membership(Membership(frozenset({"n3"}), frozenset(), frozenset({"n1"})))
        node.follow(client.log)
        assert [(one.node, one.standing) for one in view.members().value] == [("n1", "voter"), ("n3", "voter")]
    node.store.close()


def test_configuration_comes_in_pages(node: Node) -> None:
    client = Client(Log(), node)
    keys = ["a", "a/1", "a/2", "a/b/c", "a0", "b"]
    for key in reversed(keys):
        client.put(key, bytes(10))
    with node.view() as view:
        seen, after = list[str](), ""
        while True:
            answer = view.config_page("a", after=after, limit=2)
            assert answer.index == 7
            seen += [row.key for row in answer.value.items]
            if not answer.value.more:
                break
            after = seen[-1]
        assert seen == keys[:-1]
        assert [row.key for row in view.config_page("a/").value.items] == ["a/1", "a/2", "a/b/c"]
        assert view.config_page("a", limit=5).value.more is False
        assert [row.key for row in view.config_page(bytes_max=12).value.items] == ["a", "a/1"]
        assert view.config_page("none") == Answer(7, Page((), more=False))


def test_the_audit_comes_in_pages_the_newest_first(node: Node) -> None:
    client = Client(Log(), node)
    for at in range(5):
        client.put(f"k{at}")
    with node.view() as view:
        first = view.audit(limit=2).value
        assert [(row.index, row.target) for row in first.items] == [(6, "k4"), (5, "k3")]
        second = view.audit(before=5, limit=3).value
        assert [row.index for row in second.items] == [4, 3, 2]
        assert (first.more, second.more) == (True, False)


def test_a_page_of_the_audit_ends_behind_an_entry(node: Node) -> None:
    client = Client(Log(), node)
    client.put("k")
    client.log.bundle(*((ConfigPut(f"k{at}", b""), client.session, 10 + at) for at in range(3)))
    node.follow(client.log)
    client.number = 20
    client.put("k9")
    with node.view() as view:
        first = view.audit(limit=2).value
        assert [(row.index, row.target) for row in first.items] == [(4, "k9"), (3, "k2"), (3, "k1"), (3, "k0")]
        assert first.more
        assert [row.index for row in view.audit(before=3).value.items] == [2]
        assert not view.audit(before=2**63 - 1, limit=4).value.items[4:]


def test_an_answer_is_of_one_index_while_entries_are_applied(node: Node) -> None:
    """Every entry writes its own number under two keys in turn; so the answer for one says what the other is."""
    client = Client(Log(), node)
    for at in range(2_000):
        client.add(ConfigPut("a" if at % 2 else "b", b"%d" % at))
    wrong, done = list[object](), threading.Event()

    def read() -> None:
        with node.view() as view:
            while not done.is_set():
                index, page = view.config_page()
                newest = max((row.changed for row in page.items), default=1)
                if max(newest, 1) != max(index, 1):
                    wrong.append((index, page))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        node.follow(client.log, batch=3)
    finally:
        done.set()
        reader.join()
    assert not wrong


@pytest.mark.parametrize("asks_the_disk", [True, False])
def test_a_view_follows_a_switch(tmp_path: Path, node: Node, asks_the_disk: bool) -> None:
    client = Client(Log(), node)
    client.put("a", b"1")
    other = Node(tmp_path / "other")
    with StateView(other.directory) if asks_the_disk else other.view() as view:
        assert view.index() == 0
        install(node, other)
        assert view.index() == 2
        row = view.config("a").value
        assert row is not None
        assert row.value == b"1"
    other.store.close()
