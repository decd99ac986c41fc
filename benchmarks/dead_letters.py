"""What dead letters cost against bare SQLite: listing them by cause, and keeping them.

The bare side is one table with the same columns, the payload among them, one unique key and no other index, in
WAL mode with synchronous = FULL; listing it is a GROUP BY. Ours writes payloads to checksummed segments with a
sync of their own, counts against a budget, and finds letters by time and by queue. Both sides are interleaved.
Wall time is what users wait for; where the disk is slow, the two syncs of a put are the whole of it.

    python -m benchmarks.dead_letters --letters 100000 --json out.json
"""

from __future__ import annotations

import argparse
import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from conveyord.core.flow.dead_letters import DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition
from conveyord.storage.dead_letters.reader import DeadLetterReader
from conveyord.storage.dead_letters.store import DeadLetterStore

ROUNDS = 9
BATCH = 1000
SINGLES = 200
RAW = b'{"id":1234567,"at":"2026-01-01T00:00:00.000Z","user":"u123456789@riders.example.com","price":"n/a"}' * 2

BARE = """
CREATE TABLE letters (
    id INTEGER PRIMARY KEY, pipeline TEXT, source TEXT, "partition" TEXT, "offset" INTEGER, stage TEXT, part INTEGER,
    code TEXT, message TEXT, attempts INTEGER, first_micros INTEGER, last_micros INTEGER, raw BLOB,
    UNIQUE (pipeline, source, "partition", "offset", stage, part)
)
"""
INSERT = "INSERT OR REPLACE INTO letters VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
GROUPS = "SELECT pipeline, stage, code, count(*), min(first_micros), max(last_micros) FROM letters GROUP BY 1, 2, 3"


def letter(number: int) -> DeadLetter:
    partition = Partition("source", f"/data/incoming/2026-01/events-{number % 50:04d}.jsonl")
    key = LetterKey(f"default/pipeline-{number % 4}", partition, number * 230, f"stage-{number % 5}")
    message = f"column 'price': \"n/a\" of record {number} is no double"
    return DeadLetter(key, f"CODE_{number % 3}", message, raw=RAW)


def bare(home: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(home / "bare.db", isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(BARE)
    return connection


def put_bare(connection: sqlite3.Connection, letters: Sequence[DeadLetter], at_micros: int) -> None:
    rows = []
    for each in letters:
        key = each.key
        place = (key.pipeline, *key.partition, key.offset, key.stage, key.part)
        rows.append((*place, each.code, each.message, 1, at_micros, at_micros, each.raw))
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(INSERT, rows)
    connection.execute("COMMIT")


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def compared(ours: list[float], theirs: list[float], each: int = 1) -> dict[str, float]:
    """Medians in microseconds per piece of work of `each`, and the median of the ratios of neighbours."""
    return {
        "ours_us": statistics.median(ours) * 1e6 / each,
        "bare_us": statistics.median(theirs) * 1e6 / each,
        "ratio": statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True)),
    }


def put_both(store: DeadLetterStore, connection: sqlite3.Connection, first: int, end: int, batch: int) -> Any:
    ours, theirs = [], []
    for start in range(first, end, batch):
        letters = [letter(number) for number in range(start, min(start + batch, end))]
        ours.append(seconds(lambda letters=letters, at=start: store.put(letters, at)))
        theirs.append(seconds(lambda letters=letters, at=start: put_bare(connection, letters, at)))
    return compared(ours, theirs, batch)


def run(home: Path, letters: int) -> dict[str, Any]:
    with (
        DeadLetterStore(home, budget_bytes=2**33, retention_seconds=None, at_micros=0) as store,
        closing(bare(home)) as connection,
    ):
        batches = put_both(store, connection, 0, letters, BATCH)
        singles = put_both(store, connection, letters, letters + SINGLES, 1)
        with DeadLetterReader(home) as reader:
            ours, theirs = [], []
            for _ in range(ROUNDS):
                ours.append(seconds(reader.groups))
                theirs.append(seconds(lambda: connection.execute(GROUPS).fetchall()))
            assert sum(group.count for group in reader.groups()) == letters + SINGLES
        used_bytes = store.used_bytes()
    command = [sys.executable, "-m", "conveyord", "dlq", "list", "--data-dir", str(home)]
    listed = [seconds(lambda: subprocess.run(command, check=True, capture_output=True)) for _ in range(ROUNDS)]
    empty = [sys.executable, "-m", "conveyord", "dlq", "list", "--data-dir", str(home / "none")]
    started = [seconds(lambda: subprocess.run(empty, check=True, capture_output=True)) for _ in range(ROUNDS)]
    return {
        "letters": letters,
        "groups": compared(ours, theirs),
        "command_list_seconds": statistics.median(listed),
        "command_list_of_nothing_seconds": statistics.median(started),
        f"put_{BATCH}_per_letter": batches,
        "put_1": singles,
        "bytes_per_letter": used_bytes / (letters + SINGLES),
        "payload_bytes": len(RAW),
    }


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--letters", type=int, default=100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as home:
        result = run(Path(home), options.letters)
    print(json.dumps(result, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
