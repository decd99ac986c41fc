"""Positions of sinks that cannot keep them where they write, in `<data-dir>/positions.db`.

A sink that has made something durable elsewhere (a receiver said 200, a file was synced) stores here how far
it has got, and only then settles its batches. A crash between the two repeats what came after the last
stored position, so such a sink is at least once.

    with closing(RunPositions(data_dir)) as positions:
        key = SinkKey(pipeline="default/p", stage="out", destination="https://example.org/ingest")
        held = positions.load(key)                      # None: nothing was ever stored
        positions.store(key, batch.spans, batch.states)  # durable on return

Not in `runs.db`, for two reasons. That file only remembers what may be garbage, and says of itself that it may be
deleted; losing this one sends every record again. And that file is in WAL mode, in which SQLite before 3.51.3 can
lose a checkpoint when two connections make one, while every sink has a connection of its own here.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass
from pathlib import Path

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.flow.positions import Partition, Position, Positions, Span
from conveyord.storage.disk import sync_directory
from conveyord.storage.sqlite_errors import transaction, translated

POSITIONS_FILE = "positions.db"
LOCK_WAIT_SECONDS = 30  # other sinks of this process hold it for one small transaction at a time
SCHEMA_VERSION = 1

SCHEMA = """
CREATE TABLE positions (
    pipeline TEXT NOT NULL,
    stage TEXT NOT NULL,
    destination TEXT NOT NULL,
    source TEXT NOT NULL,
    "partition" TEXT NOT NULL,
    "offset" INTEGER NOT NULL,
    mark TEXT NOT NULL,
    PRIMARY KEY (pipeline, stage, destination, source, "partition")
) WITHOUT ROWID;
CREATE TABLE states (
    pipeline TEXT NOT NULL,
    stage TEXT NOT NULL,
    destination TEXT NOT NULL,
    source TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (pipeline, stage, destination, source)
) WITHOUT ROWID;
"""

_OF_SINK = "pipeline = ? AND stage = ? AND destination = ?"


@dataclass(frozen=True, slots=True)
class SinkKey:
    """Whose positions they are.

    destination: where the sink writes, without secrets. It is part of the key, so that another
    destination under the same name starts from the beginning instead of missing what went to the former.
    """

    pipeline: str
    stage: str
    destination: str


class RunPositions:
    """One connection to the positions of one data directory, whose lock the caller holds. Thread-safe, blocking.

    Every sink may have its own. Raises StorageFull if the disk is full or read-only, Corrupt if the file is
    damaged, Retryable if the disk fails otherwise.
    """

    def __init__(self, data_dir: Path) -> None:
        """Open the file, and create it durably if it is missing."""
        self._path = data_dir / POSITIONS_FILE
        self._lock = threading.Lock()
        with self._translating():
            data_dir.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                self._path, timeout=LOCK_WAIT_SECONDS, check_same_thread=False, isolation_level=None
            )
            try:
                self._prepare()
                sync_directory(data_dir)
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def load(self, key: SinkKey) -> Positions | None:
        """What was stored last for `key`, or None if nothing ever was."""
        with self._lock, self._translating(), transaction(self._connection, "BEGIN"):
            return self._load(key)

    def store(self, key: SinkKey, spans: Iterable[Span], states: Mapping[str, str]) -> None:
        """Move the positions of `key` to the end of `spans`, and replace the states of the sources that `states` names.

        Durable on return; all of it or nothing. Raises ValueError if a span leaves a gap or goes back: that is
        a bug upstream, and storing it would hide lost rows.
        """
        spans = tuple(spans)
        with self._lock, self._translating(), transaction(self._connection):
            moved = self._of(key, {span.partition for span in spans}).advanced(spans)
            self._write(key, moved, states)

    def take_over(self, key: SinkKey, former: str) -> Positions:
        """Move to `key` what the pipeline `former` has of the same sink, and return it.

        Done before, it changes nothing. Raises Refused if there is nothing to move, or both have positions.
        """
        old = SinkKey(former, key.stage, key.destination)
        what = f"sink {key.stage!r} to {key.destination}"
        with self._lock, self._translating(), transaction(self._connection):
            own, theirs = self._load(key), self._load(old)
            if own is not None and theirs is not None:
                raise Refused(f"{what}: both {former} and {key.pipeline} have positions; run without --adopt")
            if theirs is None:
                if own is None:
                    raise Refused(f"{what}: {former} has no positions to take over; run without --adopt to start anew")
                return own
            self._write(key, theirs, theirs.states)
            for table in ("positions", "states"):
                self._connection.execute(f"DELETE FROM {table} WHERE {_OF_SINK}", astuple(old))  # noqa: S608 - fixed
            return theirs

    def _prepare(self) -> None:
        # With a rollback journal that is cut and synced, a commit is durable when it returns, for any number of
        # connections; deleting the journal instead would need one more sync, of the directory.
        self._connection.execute("PRAGMA journal_mode = TRUNCATE")
        self._connection.execute("PRAGMA synchronous = FULL")
        with transaction(self._connection):  # another sink may be making the tables
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version == 0:
                for statement in SCHEMA.split(";")[:-1]:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
            elif version != SCHEMA_VERSION:
                raise self._damaged(f"its version is {version}, this conveyord knows {SCHEMA_VERSION}")

    def _load(self, key: SinkKey) -> Positions | None:
        rows = self._connection.execute(
            f'SELECT source, "partition", "offset", mark FROM positions WHERE {_OF_SINK}',  # noqa: S608 - fixed
            astuple(key),
        )
        positions = {Partition(source, name): Position(offset, mark) for source, name, offset, mark in rows}
        states = self._connection.execute(
            f"SELECT source, state FROM states WHERE {_OF_SINK}",  # noqa: S608 - fixed
            astuple(key),
        )
        found = Positions(positions, dict(states.fetchall()))
        return found if found or found.states else None

    def _of(self, key: SinkKey, partitions: Iterable[Partition]) -> Positions:
        """The stored positions of `partitions` alone: a job may have a hundred thousand others."""
        found = {}
        for partition in partitions:
            row = self._connection.execute(
                f'SELECT "offset", mark FROM positions WHERE {_OF_SINK} AND source = ? AND "partition" = ?',  # noqa: S608
                (*astuple(key), *partition),
            ).fetchone()
            if row is not None:
                found[partition] = Position(*row)
        return Positions(found)

    def _write(self, key: SinkKey, positions: Mapping[Partition, Position], states: Mapping[str, str]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?, ?, ?, ?)",
            ((*astuple(key), *partition, at.offset, at.mark) for partition, at in positions.items()),
        )
        self._connection.executemany(
            "INSERT OR REPLACE INTO states VALUES (?, ?, ?, ?, ?)",
            ((*astuple(key), source, state) for source, state in states.items()),
        )

    def _translating(self) -> AbstractContextManager[None]:
        return translated(self._path, damaged=self._damaged, promise="no position that was stored is lost")

    def _damaged(self, reason: object) -> Corrupt:
        return Corrupt(
            f"{self._path}: the positions of sinks cannot be read ({reason}); restore the file from a backup. Without "
            "it, if you delete it, every sink that keeps its positions there is sent every record again"
        )
