"""The state store: snapshots against copying the file, and applied entries against raw SQLite.

    python -m benchmarks.raft_snapshots [--bytes 1000000000] [--rounds 3] [--entries 60000] [--levels] [--json PATH]

Snapshots: one is taken of a state of `--bytes`, sent through a receiver in chunks of a megabyte, staged (unpacked,
checked by its digest and by SQLite, synced) and switched to. Beside each of both, in the same round, stands a copy of
the file by the kernel, with a sync. The ratio is their speed by ours: 1 is as fast as the copy. `--levels` tries other
levels and threads of zstd on the same state.

Applies: entries with a row of 200 bytes each, in transactions of 1, 64 and 1024; on the other side the same rows by
the same statements, one by one as entries are, and with the same settings. `sessions`: every entry is a command in a
session, with its reply; there the other side writes the rows of the session and of the reply too.

Disk: three times `--bytes`, and the snapshots, in a directory of its own below TMPDIR, removed at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import NamedTuple

from sqlite_utils import Database

from conveyord.core.raft.sessions import Sessions
from conveyord.core.raft.snapshot_info import SnapshotInfo
from conveyord.core.raft.types import BEGINNING, Entry, Kind, Mark, make_entry
from conveyord.storage.state_store import packing
from conveyord.storage.state_store.packing import pack
from conveyord.storage.state_store.receiving import SnapshotReceiver
from conveyord.storage.state_store.schema import Place
from conveyord.storage.state_store.store import Execute, StateStore

ROW_BYTES = 200
CHUNK_BYTES = 1_000_000
BATCHES = (1, 64, 1024)
KEYS = 100_000
CLIENTS = 64


def make_rows(database: Database) -> None:
    """What is replicated here."""
    database["jobs"].create({"id": int, "body": bytes}, pk="id")  # type: ignore[union-attr]


MIGRATIONS = (make_rows,)
PUT = "INSERT OR REPLACE INTO jobs VALUES (?, ?)"


def body(random: Random, number: int) -> bytes:
    """What a cluster would say of a block of rows: structure that repeats, and names that do not."""
    names = ", ".join(f'"s3://lake/orders/data/{random.getrandbits(128):032x}.parquet"' for _ in range(4))
    return (
        f'{{"pipeline": "default/orders-{number % 500}", "block": {number}, "first": {number * 977}, "end": '
        f'{number * 977 + random.randrange(977)}, "state": "committed", "worker": "builder-{random.randrange(40)}", '
        f'"files": [{names}], "bytes": {random.randrange(10**9)}, "attempts": 1, "error": null}}'
    ).encode()


def log(count: int) -> list[Entry]:
    """Entries without meaning: what they do follows from their number."""
    entries, chain = [], BEGINNING.chain
    for index in range(1, count + 1):
        entry = make_entry(chain, index, 1, Kind.COMMAND, b"x" * ROW_BYTES)
        entries.append(entry)
        chain = entry.chain
    return entries


def put(cursor: sqlite3.Cursor, _: Sessions, entries: Sequence[Entry]) -> list[bytes]:
    """A row for each."""
    return [_put(cursor, entry) for entry in entries]


def put_in_session(cursor: sqlite3.Cursor, sessions: Sessions, entries: Sequence[Entry]) -> list[bytes]:
    """A row for each, by clients that wait for each reply."""
    return [_put_in_session(cursor, sessions, entry) for entry in entries]


def _put(cursor: sqlite3.Cursor, entry: Entry) -> bytes:
    cursor.execute(PUT, (entry.index * 7919 % KEYS, entry.data))
    return b"ok"


def _put_in_session(cursor: sqlite3.Cursor, sessions: Sessions, entry: Entry) -> bytes:
    if entry.index <= CLIENTS:
        return b"%d" % sessions.register(entry.index)
    number, client = divmod(entry.index, CLIENTS)
    return sessions.apply(client + 1, number, number, lambda: _put(cursor, entry))


# ------------------------------------------------------------------------------ applies


def ours(directory: Path, entries: list[Entry], batch: int, execute: Execute) -> float:
    """Seconds to apply all entries."""
    with closing(StateStore.open(directory, migrations=MIGRATIONS)) as store:
        began = time.perf_counter()
        for first in range(0, len(entries), batch):
            store.apply(entries[first : first + batch], execute)
        return time.perf_counter() - began


REPLIES = b"\x81\xcd\x03\xe8\xc4\x02ok"  # one, as the store writes it


def raw(directory: Path, entries: list[Entry], batch: int, *, with_sessions: bool) -> float:
    """Seconds to write the same rows into the same tables."""
    StateStore.open(directory, migrations=MIGRATIONS).close()
    (path,) = directory.rglob("state.db")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 2048")
        began = time.perf_counter()
        for first in range(0, len(entries), batch):
            some = entries[first : first + batch]
            connection.execute("BEGIN IMMEDIATE")
            for entry in some:
                connection.execute(PUT, (entry.index * 7919 % KEYS, entry.data))
            if with_sessions:
                last = {entry.index % CLIENTS + 1: entry.index // CLIENTS for entry in some}
                rows = [(client, number, number, REPLIES) for client, number in last.items()]
                connection.executemany("INSERT OR REPLACE INTO raft_sessions VALUES (?, ?, ?, ?)", rows)
            connection.execute('UPDATE raft_applied SET "index" = ?, term = 1, chain = ?', (first, some[-1].chain))
            connection.execute("COMMIT")
        return time.perf_counter() - began


def applies(home: Path, count: int, rounds: int) -> dict[str, object]:
    """Entries per second, and the ratio to raw SQLite."""
    entries, result = log(count), dict[str, object]()
    for kind, execute in (("rows", put), ("sessions", put_in_session)):
        for batch in BATCHES:
            some = entries if batch > 1 else entries[: count // 4]
            pairs = []
            for _ in range(rounds):
                with tempfile.TemporaryDirectory(dir=home) as name:
                    we = ours(Path(name), some, batch, execute)
                with tempfile.TemporaryDirectory(dir=home) as name:
                    they = raw(Path(name), some, batch, with_sessions=execute is put_in_session)
                pairs.append((we, they))
            result[f"{kind}_by_{batch}"] = {
                "per_second": round(len(some) / statistics.median(we for we, _ in pairs)),
                "raw_per_second": round(len(some) / statistics.median(they for _, they in pairs)),
                "ratio": round(statistics.median(they / we for we, they in pairs), 2),
            }
    return result


# ------------------------------------------------------------------------------ snapshots


def filled(directory: Path, size: int) -> StateStore:
    """A store with a state of `size` bytes."""
    store, random, mark, batch = StateStore.open(directory, migrations=MIGRATIONS), Random(1), BEGINNING, 2_000

    def fill(cursor: sqlite3.Cursor, _: Sessions, entries: Sequence[Entry]) -> list[bytes]:
        for entry in entries:
            first = entry.index * batch
            cursor.executemany(PUT, ((first + at, body(random, first + at)) for at in range(batch)))
        return [b""] * len(entries)

    while store.path.stat().st_size < size:
        entry = make_entry(mark.chain, mark.index + 1, 1, Kind.COMMAND, b"")
        store.apply([entry], fill)
        mark = Mark(entry.index, entry.term, entry.chain)
    return store


class Cost(NamedTuple):
    """Wall and CPU seconds, and by how many bytes the process grew at most meanwhile."""

    wall: float
    cpu: float
    memory: int


def cost_of(act: Callable[[], object]) -> Cost:
    """What it takes."""
    Path("/proc/self/clear_refs").write_text("5")
    before, cpu, began = _memory("VmRSS"), time.process_time(), time.perf_counter()
    act()
    return Cost(time.perf_counter() - began, time.process_time() - cpu, _memory("VmHWM") - before)


def _memory(what: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def copied(path: Path, target: Path) -> None:
    """The kernel's copy, on disk when this returns."""
    shutil.copyfile(path, target)
    descriptor = os.open(target, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def restored(store: StateStore, content: Callable[[int, int], bytes], info: SnapshotInfo, directory: Path) -> None:
    """What a follower does with a snapshot, without the network."""
    with closing(SnapshotReceiver(directory, info, MIGRATIONS)) as receiver:
        while not receiver.is_complete:
            receiver.append(info.digest, receiver.offset, content(receiver.offset, CHUNK_BYTES))
        receiver.stage()
    store.switch(info.mark)


def one_round(store: StateStore, home: Path) -> Iterator[tuple[str, Cost]]:
    """Each step, and what it took."""
    for path in (home / "state" / "snapshots").glob("*"):
        path.unlink()
    still = home / "still.db"
    with store.reader() as reader, closing(sqlite3.connect(still)) as copy:
        reader.connection.backup(copy)  # a file that is not open: closing a plain copy's would give up SQLite's locks
    os.sync()
    for number in range(2):
        yield "copy", cost_of(lambda: copied(still, home / "copy.db"))
        (home / "copy.db").unlink()
        if number == 0:
            yield "take", cost_of(store.snapshots.take)
    still.unlink()
    newest = store.snapshots.newest()
    assert newest is not None
    with newest, closing(StateStore.open(home / "follower", migrations=MIGRATIONS)) as follower:
        yield "restore", cost_of(lambda: restored(follower, newest.read_chunk, newest.info, home / "follower"))
        assert follower.mark == store.mark
    shutil.rmtree(home / "follower")


def snapshots(store: StateStore, home: Path, rounds: int) -> dict[str, object]:
    """Megabytes of state per second, the ratio to the copy beside it, and how busy the machine was."""
    found: dict[str, list[Cost]] = {}
    loads = []
    for _ in range(rounds):
        loads.append(round(os.getloadavg()[0], 1))
        for step, cost in one_round(store, home):
            found.setdefault(step, []).append(cost)
    size = store.path.stat().st_size
    result: dict[str, object] = {"state_bytes": size, "load": loads}
    result["snapshot_bytes"] = max(path.stat().st_size for path in (home / "state" / "snapshots").iterdir())
    for step, costs in found.items():
        result[step] = {
            "mb_per_second": round(size / 1e6 / statistics.median(cost.wall for cost in costs)),
            "cpu_seconds": round(statistics.median(cost.cpu for cost in costs), 2),
            "memory_mb": round(max(cost.memory for cost in costs) / 1e6),
        }
    for number, step in enumerate(("take", "restore")):
        pairs = zip(found["copy"][number::2], found[step], strict=True)
        result[f"{step}_ratio"] = round(statistics.median(copy.wall / ours.wall for copy, ours in pairs), 2)
    return result


def levels(store: StateStore, home: Path) -> list[dict[str, object]]:
    """Seconds and size of packing alone, and of unpacking."""
    as_it_was = packing.ZSTD_LEVEL, packing.ZSTD_THREADS
    still, packed, result = home / "still.db", home / "packed", list[dict[str, object]]()
    with store.reader() as reader, closing(sqlite3.connect(still)) as copy:
        reader.connection.backup(copy)
    for level in (-5, -1, 1, 3):
        for threads in (0, 1, 2):
            packing.ZSTD_LEVEL, packing.ZSTD_THREADS = level, threads
            began = time.perf_counter()
            info = pack(still, packed, Place(store.mark, store.membership))
            done = time.perf_counter()
            packing.unpack(packed, None)
            figures = {"pack": round(done - began, 2), "unpack": round(time.perf_counter() - done, 2)}
            result.append({"level": level, "threads": threads, **figures, "mb": round(info.file_bytes / 1e6)})
    still.unlink()
    packed.unlink()
    packing.ZSTD_LEVEL, packing.ZSTD_THREADS = as_it_was
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bytes", type=int, default=1_000_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--entries", type=int, default=60_000)
    parser.add_argument("--levels", action="store_true")
    parser.add_argument("--json", type=Path, help="where to write the result")
    arguments = parser.parse_args()
    figures: dict[str, object] = {}
    with tempfile.TemporaryDirectory(prefix="conveyord-raft-snapshots-") as name:
        home = Path(name)
        if arguments.entries:
            figures["applies"] = applies(home, arguments.entries, arguments.rounds)
        if arguments.bytes:
            with closing(filled(home / "state", arguments.bytes)) as store:
                if arguments.levels:
                    figures["levels"] = levels(store, home)
                figures["snapshots"] = snapshots(store, home, arguments.rounds)
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
