"""Rows that are written together at the end of a transaction: the same as if each entry had written its own."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlite_utils import Database

from conveyord.core.state.codec import decode_reply
from conveyord.core.state.commands import ConfigDelete, ConfigPut, SettingChange
from conveyord.core.state.replies import No
from conveyord.core.state.rows import ConfigHead, ConfigRow
from conveyord.storage.state import pending
from conveyord.storage.state.pending import Pending
from conveyord.storage.state.schema import MIGRATIONS
from tests.storage.state.rig import Client, Log, Node


def test_what_is_written_together_is_what_is_written_one_by_one(tmp_path: Path) -> None:
    one, together = Node(tmp_path / "one"), Node(tmp_path / "together")
    log = Log()
    client = Client(log, one)
    client.set("events_max", 300)
    client.set("audit_max", 200)
    for at in range(500):
        client.add(ConfigPut(f"k{at % 90}", b"%d" % at))
        if at % 7 == 0:
            client.add(ConfigDelete(f"k{at % 50}"))
        if at % 100 == 50:
            client.add(SettingChange("events_max", 200 + at))
    expected = one.follow(log, batch=1)
    assert together.follow(log, batch=129)[-len(expected) :] == expected
    assert one.store.state_digest() == together.store.state_digest()
    for node in (one, together):
        node.store.close()


def test_more_heads_than_are_remembered_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "HEADS_MAX", 4)
    node = Node(tmp_path)
    client = Client(Log(), node)
    for at in range(20):
        client.add(ConfigPut(f"k{at % 10}", b"value"))
        client.add(ConfigDelete(f"k{(at + 5) % 10}"))
    entries = client.log.entries
    replies = [reply for at in range(0, len(entries), 7) for reply in node.apply(entries[at : at + 7])]
    codes = [reply.code if isinstance(reply, No) else "OK" for reply in map(decode_reply, replies)]
    assert codes == ["OK"] + ["OK", "NOT_FOUND"] * 5 + ["OK", "OK"] * 15
    with node.store.reader() as reader:
        keys = [key for (key,) in reader.connection.execute("SELECT key FROM config ORDER BY key")]
    assert keys == [f"k{at}" for at in range(5, 10)]
    node.store.close()


class CountedKey(str):
    """Every look into a dict, and every copy of one, asks for the hash of the key."""

    __slots__ = ()
    asked = 0

    def __hash__(self) -> int:
        CountedKey.asked += 1
        return super().__hash__()


def test_many_keys_of_one_transaction_cost_the_same_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pending, "HEADS_MAX", 50)
    connection = sqlite3.connect(":memory:")
    for migration in MIGRATIONS:
        migration(Database(connection, recursive_triggers=False, execute_plugins=False))
    cursor = connection.cursor()
    waiting = Pending(cursor)
    keys = [CountedKey(f"k{at}") for at in range(3_000)]
    CountedKey.asked = 0
    for at, key in enumerate(keys):
        assert waiting.config(key) is None
        waiting.put_config(ConfigRow(key, at, at, 7, b"value"))
        assert waiting.config(keys[0]) is not None
    for key in keys[:1_500]:
        waiting.delete_config(key)
    assert CountedKey.asked <= 8 * len(keys)
    waiting.write(cursor)
    assert len(waiting._heads) <= pending.HEADS_MAX
    assert waiting.config(keys[0]) is None
    assert waiting.config(keys[-1]) == ConfigHead(2_999, 2_999, 7)
    connection.close()
