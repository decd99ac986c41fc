"""The Raft log against bare SQLite: the same rows written in the same transactions, and read again.

    python -m benchmarks.raft_log [--rounds 7] [--entries 1000000] [--directory PATH] [--json PATH]

Writing: both sides on the same disk in turn, transaction by transaction, in WAL mode with `synchronous = FULL` and
`locking_mode = EXCLUSIVE`; ours also writes the hard state, the watermark, and reads a `Write`. Figures are medians of
rounds, ratios those of each round's entries per second. Loading: `RaftLog.load`, which verifies everything, against a
`SELECT` of the same rows; memory is the peak of a process that loads, above what it had before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import apsw

from conveyord.core.raft.messages import Write
from conveyord.core.raft.types import ROOT_CHAIN, Entry, HardState, Kind, make_entry
from conveyord.storage.raft_log.database import SCHEMA
from conveyord.storage.raft_log.log import RaftLog
from conveyord.storage.raft_log.writing import INSERT

DATA_BYTES = 200
# Entries of a transaction: transactions of a round. As many as take each side through a dozen checkpoints: with two of
# ours to one of theirs the round would measure where its end falls.
BATCHES = {1: 6000, 16: 3000, 64: 1600, 256: 800}
WARMING = 1200  # pages of transactions before the first that counts: one checkpoint, so that both write over old frames
SELECT = 'SELECT "index", term, kind, data, crc, chain FROM entries ORDER BY "index"'
LOAD_TRANSACTION = 1000


def made(count: int) -> Iterator[Entry]:
    chain = ROOT_CHAIN
    for index in range(1, count + 1):
        entry = make_entry(chain, index, 1, Kind.COMMAND, index.to_bytes(8, "big") * (DATA_BYTES // 8))
        chain = entry.chain
        yield entry


def writes(size: int, count: int) -> list[Write]:
    entries = made(size * count)
    return [
        Write(token, HardState(1, "n1", token * size), None, tuple(next(entries) for _ in range(size)), None)
        for token in range(count)
    ]


def bare(path: Path) -> apsw.Connection:
    connection = apsw.Connection(str(path))
    for setting in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL"):
        connection.execute(f"PRAGMA {setting}")
    return connection


def bare_write(connection: apsw.Connection, write: Write) -> None:
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(INSERT, write.entries)
    connection.execute("COMMIT")


def one_round(size: int, count: int, folder: Path) -> tuple[float, float]:
    """Entries per second of ours and of the bare one."""
    log = RaftLog(folder / "ours" / "raft.db", node="n1")
    log.load(0)
    connection = bare(folder / "bare.db")
    connection.execute(SCHEMA[0])
    warming = WARMING // (2 + size // 16)
    spent = {True: 0.0, False: 0.0}
    for number, write in enumerate(writes(size, warming + count)):
        # In turn: whoever comes second finds the entries in the processor's caches.
        for is_ours in (True, False) if number % 2 else (False, True):
            begun = time.perf_counter()
            if is_ours:
                log.write(write)
            else:
                bare_write(connection, write)
            if number >= warming:
                spent[is_ours] += time.perf_counter() - begun
    log.close()
    connection.close()
    return size * count / spent[True], size * count / spent[False]


def writing(rounds: int, directory: Path | None) -> dict[str, object]:
    results: dict[int, list[tuple[float, float]]] = {size: [] for size in BATCHES}
    for _ in range(rounds):
        for size, count in BATCHES.items():
            with tempfile.TemporaryDirectory(prefix="conveyord-raft-log-", dir=directory) as name:
                results[size].append(one_round(size, count, Path(name)))
    return {
        f"write_{size}": {
            "entries_per_second": round(statistics.median(ours for ours, _ in found)),
            "bare_entries_per_second": round(statistics.median(theirs for _, theirs in found)),
            "ratio": round(statistics.median(ours / theirs for ours, theirs in found), 2),
        }
        for size, found in results.items()
    }


def peak_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def peak_of_load(path: Path) -> None:
    """Run in a process of its own."""
    log = RaftLog(path, node="n1")
    before = peak_bytes()
    loaded = log.load(0)
    print(peak_bytes() - before, sum(len(entry.data) for entry in loaded.entries))
    log.close()


def loading(entries: int, rounds: int, directory: Path | None) -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="conveyord-raft-log-", dir=directory) as name:
        path = Path(name) / "raft.db"
        log = RaftLog(path, node="n1")
        log.load(0)
        source = made(entries)
        for number in range(0, entries, LOAD_TRANSACTION):
            taken = tuple(next(source) for _ in range(min(LOAD_TRANSACTION, entries - number)))
            log.write(Write(number, HardState(1, "n1", number), None, taken, None))
        log.close()
        times: list[tuple[float, float]] = []
        for _ in range(rounds):
            log = RaftLog(path, node="n1")
            begun = time.perf_counter()
            log.load(0)
            ours = time.perf_counter() - begun
            log.close()
            connection = bare(path)
            begun = time.perf_counter()
            assert sum(1 for _ in connection.execute(SELECT)) == entries
            times.append((ours, time.perf_counter() - begun))
            connection.close()
        child = [sys.executable, "-m", "benchmarks.raft_log", "--peak", str(path)]
        said = subprocess.run(child, check=True, capture_output=True, text=True).stdout.split()
        return {
            "entries": entries,
            "seconds": round(statistics.median(ours for ours, _ in times), 2),
            "select_seconds": round(statistics.median(theirs for _, theirs in times), 2),
            "times_the_select": round(statistics.median(ours / theirs for ours, theirs in times), 2),
            "file_bytes": path.stat().st_size,
            "peak_bytes": int(said[0]),
            "window_bytes": int(said[1]),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--entries", type=int, default=1_000_000, help="of the log that is loaded")
    parser.add_argument("--directory", type=Path, help="on the disk to be measured; else where temporary files lie")
    parser.add_argument("--json", type=Path, help="where to write the result")
    parser.add_argument("--peak", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        peak_of_load(arguments.peak)
        return
    figures = {
        "rounds": arguments.rounds,
        "data_bytes": DATA_BYTES,
        **writing(arguments.rounds, arguments.directory),
        "load": loading(arguments.entries, arguments.rounds, arguments.directory),
    }
    text = json.dumps(figures, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n")


if __name__ == "__main__":
    main()
