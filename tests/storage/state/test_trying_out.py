"""What is tried out before it is committed: nobody sees it, it replies what `apply` will, and it can be taken back."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from conveyord.core.raft.types import Entry, Kind, make_entry
from conveyord.core.state.commands import ConfigPut
from conveyord.storage.state.execute import Executor
from conveyord.storage.state_store.replica import Replica
from tests.storage.state.rig import SESSIONS_MAX, WINDOW, Client, Log, Node, decoded
from tests.storage.state.script import make_log, state_of

COUNT = 900


def others(log: Log, first: int, count: int) -> list[Entry]:
    """What another leader could have put behind the entries before `first`."""
    chain, found = log.entries[first - 2].chain if first > 1 else bytes(8), list[Entry]()
    for index in range(first, first + count):
        like = log.entries[(index * 7) % len(log.entries)]
        kind, data = (like.kind, like.data) if like.kind is not Kind.MEMBERSHIP else (Kind.NOOP, b"")
        entry = make_entry(chain, index, 2, kind, data)
        chain = entry.chain
        found.append(entry)
    return found


class Tried:
    """A node to whom everything happens that may, round entries that are tried out."""

    def __init__(self, log: Log, directory: Path, seed: int) -> None:
        self.log, self.random = log, Random(seed)
        self.node = Node(directory, sessions_max=SESSIONS_MAX, window=WINDOW)
        self.replies = list[bytes]()
        self.kept = 0
        self.open()

    def open(self) -> None:
        self.replica = Replica(self.node.store, Executor().execute)

    @property
    def index(self) -> int:
        return self.replica.mark.index

    def next(self) -> list[Entry]:
        return self.log.entries[self.index : self.index + self.random.randint(1, 40)]

    def try_out(self) -> None:
        if self.random.random() < 0.3:
            self.replica.try_out(others(self.log, self.index + 1, self.random.randint(1, 20)))
            return
        tried = self.next()
        foreseen = self.replica.try_out(tried)
        with self.node.view() as view:
            assert view.index() == self.index, "nobody sees it"
        if self.random.random() < 0.7:
            applied = self.log.entries[self.index : self.index + self.random.choice([len(tried), len(tried) + 5, 1])]
            replies = self.replica.apply(applied)
            self.replies += replies
            assert replies[: len(foreseen)] == foreseen[: len(replies)]
            self.kept += 1

    def step(self) -> None:
        act = self.random.random()
        if act < 0.55:
            self.try_out()
        elif act < 0.8:
            self.replies += self.replica.apply(self.next())
        elif act < 0.85:
            self.replica.forget()
        elif act < 0.9:
            self.node.store.state_digest()
        elif act < 0.95 and self.index:
            self.replica.take_snapshot()
        elif act >= 0.95:
            self.node.reopen()
            self.open()


@pytest.mark.parametrize("seed", range(6))
def test_the_state_is_that_of_a_node_which_tried_nothing_out(tmp_path: Path, seed: int) -> None:
    log = make_log(seed, COUNT)
    tried = Tried(log, tmp_path / "tried", seed)
    while tried.index < COUNT:
        tried.step()
    replies = decoded(log.entries, tried.replies)
    digest = tried.node.store.state_digest()
    tried.node.store.close()
    assert tried.kept > 3
    assert f"{digest.hex()} {replies}" == state_of(log, tmp_path / "plain", 100)


def test_an_apply_goes_on_in_what_was_tried_out(tmp_path: Path) -> None:
    """Else trying out would spare nothing: every command is executed once."""
    log, node = Log(), Node(tmp_path)
    client = Client(log, node)
    node.follow(log)
    entries = [client.add(ConfigPut(f"k{number}", b"value")) for number in range(10)]
    executed = list[int]()

    def execute(cursor, sessions, entries):  # type: ignore[no-untyped-def]
        executed.extend(entry.index for entry in entries)
        return node.executor.execute(cursor, sessions, entries)

    foreseen = node.store.try_out(entries[:8], execute)
    assert node.store.apply(entries, execute)[:8] == foreseen
    assert executed == [entry.index for entry in entries]


def test_nobody_is_woken_by_what_was_taken_back(tmp_path: Path) -> None:
    """Who waits for a change behind an index would not wait at all, for ever, if one that never came counted."""
    log, node = Log(), Node(tmp_path)
    client = Client(log, node)
    node.follow(log)
    replica = Replica(node.store, node.executor.execute)
    fork = list(log.entries)
    lost = [client.add(ConfigPut(f"k{number}", b"value")) for number in range(5)]
    replica.try_out(lost)
    log.entries = fork
    replica.apply([log.add(Kind.NOOP, b"")])
    assert node.executor.take_touched() == {}
    put = client.add(ConfigPut("k", b"value"))
    replica.try_out([put])
    assert replica.apply([put]) != []
    assert node.executor.take_touched() == {"config": put.index}
