"""How many frames of the present generation a write-ahead log has, against what SQLite says of it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from conveyord.storage.sqlite_wal import FRAME, HEADER, has_frames


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(tmp_path / "a.db", isolation_level=None)) as opened:
        opened.execute("PRAGMA journal_mode = WAL")
        opened.execute("PRAGMA wal_autocheckpoint = 0")
        opened.execute("CREATE TABLE t (value)")
        yield opened


def frames(wal: int) -> int:
    """As `has_frames` tells them."""
    return max((count for count in range(1, 500) if has_frames(wal, count)), default=0)


def test_frames_of_former_generations_do_not_count(connection: sqlite3.Connection, tmp_path: Path) -> None:
    wal = os.open(tmp_path / "a.db-wal", os.O_RDONLY)
    seen = list[int]()
    for generation in range(4):
        for _ in range(30 - 9 * generation):  # each is shorter than the one before, which lies behind it
            connection.execute("INSERT INTO t VALUES (zeroblob(3000))")
        seen.append(frames(wal))
        size = os.fstat(wal).st_size
        assert connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone() == (0, seen[-1], seen[-1])
        assert os.fstat(wal).st_size == size
    assert seen == sorted(seen, reverse=True)
    assert 0 < seen[-1] < seen[0] < 500
    os.close(wal)


@pytest.mark.parametrize("size", [0, 31, HEADER.size, HEADER.size + FRAME.size - 1])
def test_a_file_that_is_too_short_has_none(tmp_path: Path, size: int) -> None:
    path = tmp_path / "wal"
    path.write_bytes(bytes(size))
    with path.open("rb") as file:
        assert not has_frames(file.fileno(), 1)
