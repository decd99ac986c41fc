"""Watches: ordered, each event once, of an entry all or none, resumable, and never silent about what is missing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.core.errors import ConfigError
from conveyord.core.raft.membership import Membership
from conveyord.core.state.commands import ClusterForm, ClusterRestored, SessionOpen
from conveyord.core.state.rows import CLUSTER, CONFIG, SETTINGS, STANDINGS
from conveyord.storage.state.schema import MIGRATIONS
from conveyord.storage.state.watching import Behind, Compacted, Event, Events, Topic
from conveyord.storage.state_store.receiving import SnapshotReceiver
from tests.storage.state.rig import FEW, Client, Log, Node, told

MANY = Membership(frozenset(f"n{at:02}" for at in range(20)))


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path / "state")
    yield node
    node.store.close()


@pytest.fixture
def client(node: Node) -> Client:
    return Client(Log(), node)


def test_events_come_in_order_and_a_cursor_goes_on_behind_them(node: Node, client: Client) -> None:
    first = client.put("a", b"1")
    client.put("b", b"2")
    client.delete("a")
    with node.view() as view:
        found = view.events_after(0)
        assert found == Events(
            first + 2,
            first + 2,
            "",
            (
                Event(first, 0, CONFIG, "a", "put", b"1"),
                Event(first + 1, 0, CONFIG, "b", "put", b"2"),
                Event(first + 2, 0, CONFIG, "a", "delete", None),
            ),
        )
        assert view.events_after(first + 2) == Events(first + 2, first + 2, "", ())
        client.put("c")
        assert [event.key for event in told(view, first + 2)] == ["c"]


def test_what_changes_nothing_makes_the_cursor_go_on(node: Node, client: Client) -> None:
    client.put("a")
    client.log.command(SessionOpen())
    node.follow(client.log)
    with node.view() as view:
        assert view.events_after(2) == Events(3, 3, "", ())
        assert view.events_after(2, [CLUSTER]) == Events(3, 3, "", ())


def test_a_topic_is_told_without_the_others(node: Node, client: Client) -> None:
    client.put("a")
    client.set("audit_max", 50)
    client.put("b")
    with node.view() as view:
        assert [event.topic for event in told(view, 0, [SETTINGS])] == [SETTINGS]
        assert [event.key for event in told(view, 0, [CONFIG])] == ["a", "b"]
        assert [event.key for event in told(view, 0, [CONFIG, SETTINGS])] == ["a", "audit_max", "b"]
        newest = view.topics().value
        assert newest[CONFIG] == Topic(4, 0)
        assert newest[SETTINGS] == Topic(3, 0)
        assert newest[CLUSTER] == Topic()


@given(limit=st.integers(1, 30), bytes_max=st.integers(1, 3_000))
def test_an_entry_is_told_as_a_whole_however_little_is_asked_for(
    tmp_path_factory: pytest.TempPathFactory, limit: int, bytes_max: int
) -> None:
    node = Node(tmp_path_factory.mktemp("state"))
    client = Client(Log(), node)
    client.put("a")
    client.log.membership(MANY)
    client.put("b", bytes(500))
    client.log.membership(Membership(frozenset({"n01"})))
    node.follow(client.log)
    with node.view() as view:
        whole = told(view, 0, limit=1_000_000, bytes_max=1 << 30)
        assert [len([event for event in whole if event.index == index]) for index in (2, 3, 4, 5)] == [1, 20, 1, 19]
        assert told(view, 0, limit=limit, bytes_max=bytes_max) == whole
        part = view.events_after(0, limit=limit, bytes_max=bytes_max)
        assert isinstance(part, Events)
        assert list(part.events) == [event for event in whole if event.index <= part.through]
        assert part.events
    node.store.close()


def test_a_change_of_members_is_told(node: Node, client: Client) -> None:
    client.log.membership(Membership(frozenset("ab"), frozenset("c")))
    client.log.membership(Membership(frozenset("a"), frozenset("c")))
    node.follow(client.log)
    with node.view() as view:
        assert [event[1:] for event in told(view, 0, [STANDINGS])] == [
            (0, STANDINGS, "a", "put", b"voter"),
            (1, STANDINGS, "b", "put", b"voter"),
            (2, STANDINGS, "c", "put", b"learner"),
            (0, STANDINGS, "b", "delete", b"gone"),
        ]


def test_a_cursor_before_what_is_kept_is_told_so(node: Node, client: Client) -> None:
    client.set("events_max", FEW)
    last = [client.put(f"k{at}") for at in range(40)][-1]
    with node.view() as view:
        found = view.events_after(0)
        assert isinstance(found, Compacted)
        assert found.index == last
        assert isinstance(view.events_after(found.oldest - 1), Compacted)
        kept = told(view, found.oldest)
        assert kept[0].index == found.oldest + 1
        assert kept[-1].index == last
        assert len(kept) <= FEW


def test_a_quiet_topic_is_not_compacted_by_a_loud_one(node: Node, client: Client) -> None:
    client.set("events_max", FEW)
    changed = client.set("audit_max", 50)
    for at in range(40):
        client.put(f"k{at}")
    with node.view() as view:
        assert view.events_after(0, [SETTINGS]) == Compacted(43, changed, "")
        assert view.events_after(changed, [SETTINGS]) == Events(43, 43, "", ())
        assert view.events_after(0, [CLUSTER]) == Events(43, 43, "", ()), "it never had one"
        assert view.events_after(0, [CLUSTER, SETTINGS]) == Compacted(43, changed, "")


def test_bytes_are_limited_too(node: Node, client: Client) -> None:
    client.set("event_bytes_max", 1 << 20)
    for at in range(12):
        client.put(f"k{at}", bytes(200_000))
    with node.view() as view:
        found = view.events_after(0)
        assert isinstance(found, Compacted)
        kept = told(view, found.oldest, bytes_max=1)
        assert 4 <= len(kept) <= 5
        assert node.executor._totals.event_bytes <= 1 << 20


def test_a_cursor_that_is_ahead_is_told_so(node: Node, client: Client) -> None:
    last = client.put("a")
    with node.view() as view:
        assert view.events_after(last + 1) == Behind(last, "")
        assert view.events_after(last + 1, [CLUSTER]) == Behind(last, "")


def test_a_restored_state_that_grew_past_a_cursor_is_told_by_its_history(node: Node, client: Client) -> None:
    client.log.command(ClusterForm("c1", 1))
    last = client.put("a")
    with node.view() as view:
        before = view.events_after(0)
        assert isinstance(before, Events)
        assert before.history == "c1"
        client.ok(ClusterRestored("h2"))
        client.put("b")
        assert view.events_after(before.through, history=before.history) == Behind(last + 2, "h2")
        assert isinstance(view.events_after(last + 2, history="h2"), Events)


def test_a_topic_that_there_is_not_is_refused(node: Node) -> None:
    with node.view() as view, pytest.raises(ConfigError) as caught:
        view.events_after(0, [CONFIG, "configs"])
    assert str(caught.value) == (
        "there is no topic 'configs' to watch; there are cluster, settings, members, standings, config, tokens"
    )


def test_touched_topics_are_told_once(node: Node, client: Client) -> None:
    client.put("a")
    client.set("audit_max", 50)
    assert node.executor.take_touched() == {CONFIG: 2, SETTINGS: 3}
    assert node.executor.take_touched() == {}


def install(source: Node, target: Node) -> None:
    """Take a snapshot of one node, and switch another to it."""
    info = source.store.snapshots.take()
    file = source.store.snapshots.newest()
    assert file is not None
    with file:
        content = file.path.read_bytes()
    receiver = SnapshotReceiver(target.directory, info, MIGRATIONS)
    while not receiver.is_complete:
        receiver.append(info.digest, receiver.offset, content[receiver.offset :][:10_000])
    receiver.stage()
    receiver.close()
    target.store.switch(info.mark)


def test_a_watcher_goes_on_across_an_install(tmp_path: Path, node: Node, client: Client) -> None:
    client.set("events_max", FEW * 4)
    lagging = Node(tmp_path / "lagging")
    lagging.follow(client.log)
    for at in range(100):
        client.put(f"k{at % 7}", b"%d" % at)
    client.log.membership(MANY)
    node.follow(client.log)
    with lagging.view() as theirs, node.view() as ours:
        assert theirs.index() == 2
        install(node, lagging)
        assert theirs.index() == ours.index() == 103
        assert lagging.store.state_digest() == node.store.state_digest()
        oldest = ours.events_after(0)
        assert oldest == theirs.events_after(0)
        assert isinstance(oldest, Compacted)
        assert told(theirs, oldest.oldest) == told(ours, oldest.oldest)
        for at in range(60):
            client.put(f"k{at % 7}", b"more %d" % at)
        lagging.follow(client.log, batch=7)
        assert lagging.store.state_digest() == node.store.state_digest()
        assert ours.events_after(0) == theirs.events_after(0)
        assert told(theirs, 150) == told(ours, 150)
    lagging.store.close()
