"""A journal of requests that were pushed to conveyord: on disk before anybody is told that they were taken.

It makes of a push what every other source has: records at offsets that can be read again. A request keeps its records
together; its offset is the number of records before it. What every sink has is deleted, the idempotency keys stay
for a while, so that a request that is sent again is known.

    journal = PushJournal(path)
    (taken,) = journal.append([Push(b"key", digest, 1, b'{"n": 1}')], now=clock(), bytes_max=2**30)
    journal.read(taken.first, bytes_max=8 * 2**20)      # the same records, in this run or in the next
    journal.settle(taken.end, Retention(...), now=clock())

One file a source, with one connection: SQLite's WAL, synced with every transaction. That there is one connection
matters, because SQLite before 3.51.3 can lose a checkpoint when two make one.
"""

from __future__ import annotations

import sqlite3
import threading
import uuid
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path

from conveyord.core.errors import Corrupt, Refused, Retryable
from conveyord.storage.disk import make_durable_directories, sync_directory
from conveyord.storage.spill.names import escaped
from conveyord.storage.sqlite_errors import transaction, translated

JOURNALS = "journals"
SCHEMA_VERSION = 1
WAL_BYTES_MAX = 64 * 1024 * 1024  # kept on disk for the next transactions; more is given back
PROMISE = "nothing that was taken is lost"
PRUNED_MAX = 10_000  # keys forgotten in one transaction, so that none takes long

SCHEMA = (
    "CREATE TABLE state (identity TEXT NOT NULL, next INTEGER NOT NULL, floor INTEGER NOT NULL)",
    """CREATE TABLE bodies (
        "first" INTEGER PRIMARY KEY, records INTEGER NOT NULL, checksum INTEGER NOT NULL, bytes INTEGER NOT NULL,
        body BLOB NOT NULL)""",
    """CREATE TABLE keys (
        number INTEGER PRIMARY KEY, "key" BLOB NOT NULL UNIQUE, digest BLOB NOT NULL, "first" INTEGER NOT NULL,
        records INTEGER NOT NULL, received INTEGER NOT NULL)""",
)


@dataclass(frozen=True, slots=True)
class Push:
    """One request. key: None for a request that cannot be known again. body: `records` lines.

    One without records is looked up, and is not remembered: there is nothing in it that could be taken twice.
    """

    key: bytes | None
    digest: bytes
    records: int
    body: bytes


class Verdict(Enum):
    """What became of a request."""

    NEW = "it is in the journal now"
    KNOWN = "its key is known, with the same records: nothing was written"
    OTHER = "its key is known, with other records: nothing was written"
    FULL = "there is no room for it: nothing was written"


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of one request; where its records are, for NEW and KNOWN."""

    verdict: Verdict
    first: int = 0
    records: int = 0

    @property
    def end(self) -> int:
        """One past the offset of the last record."""
        return self.first + self.records


@dataclass(frozen=True, slots=True)
class Retention:
    """How long keys are known: the newest `keys_max`, for `seconds`. Those of what no sink has yet always are."""

    seconds: float
    keys_max: int


@dataclass(frozen=True, slots=True)
class Stored:
    """A request in the journal."""

    first: int
    records: int
    body: bytes


def journal_path(data_dir: Path, *, pipeline: str, stage: str) -> Path:
    """Where the journal of one source lies. Different names never share one. Creates nothing."""
    return data_dir / JOURNALS / escaped(pipeline) / f"{escaped(stage)}.db"


def take_over(path: Path, former: Path) -> bool:
    """Make the journal at `former` the one at `path`, if there is one. Returns whether it did.

    May be repeated, also after a crash. Blocking; the caller holds the lock of the data directory, and neither is open.
    Raises Refused if both hold requests or keys; else as `PushJournal` does.
    """
    if not former.exists():
        return False
    with translated(former, damaged=partial(_damaged, former), promise=PROMISE):
        _as_one_file(former)
        if path.exists() and not _as_one_file(path):
            raise Refused(
                f"{path}: both it and {former}, the journal of the pipeline's former name, hold requests or keys; move "
                "the one away that is not to be gone on with, or run without --adopt"
            )
        make_durable_directories(path.parent)
        former.rename(path)
        sync_directory(path.parent)
        sync_directory(former.parent)
    return True


def _as_one_file(path: Path) -> bool:
    """Fold what SQLite keeps beside a journal into it, so that it may be renamed. Returns whether it is empty."""
    journal = PushJournal(path)
    try:
        journal.fold()
        return journal.next == 0
    finally:
        journal.close()


def _damaged(path: Path, reason: object) -> Corrupt:
    return Corrupt(
        f"{path}: the journal of a push source is damaged ({reason}); restore the file from a backup. "
        "Without it, if you move it away, what was taken and is in no sink is lost, and no key is known"
    )


class PushJournal:
    """One journal, in a data directory whose lock the caller holds. Thread-safe, blocking.

    Raises StorageFull if the disk is full or read-only, Corrupt if the file is damaged, Retryable if the disk fails
    otherwise. After any of these from `append`, nothing of what was to be appended is there.
    """

    def __init__(self, path: Path) -> None:
        """Open the journal, and create it durably if it is missing."""
        self._path = path
        self._lock = threading.Lock()
        with self._translating():
            make_durable_directories(path.parent)
            self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            try:
                self._prepare()
                sync_directory(path.parent)
                self.identity, self.next, self.floor = self._state()
                (self.bytes,) = self._connection.execute("SELECT coalesce(sum(bytes), 0) FROM bodies").fetchone()
                (self._numbers,) = self._connection.execute("SELECT coalesce(max(number), 0) FROM keys").fetchone()
            except BaseException:
                self._connection.close()
                raise

    identity: str
    """Tells this journal from one that was lost."""
    next: int
    """The offset of the next record to be appended."""
    floor: int
    """What lies below was settled, and is deleted."""
    bytes: int
    """Of all bodies that are not settled."""

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def fold(self) -> None:
        """Bring everything into the one file: of its WAL, if that stays, no page counts any more."""
        with self._lock, self._translating():
            (is_busy, *_) = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if is_busy:
            raise Retryable(f"{self._path}: another process has it open; end that, then run again")

    def append(self, pushes: Sequence[Push], *, now: float, bytes_max: int) -> list[Taken]:
        """Take requests in, in order, in one transaction that is on disk on return. One verdict for each.

        now: seconds since the epoch. bytes_max: what the bodies of the journal may come to; a request that finds it
        empty is taken whatever its size.
        """
        with self._lock, self._translating():
            following, size, numbers = self.next, self.bytes, self._numbers
            taken: list[Taken] = []
            with transaction(self._connection):
                for push in pushes:
                    found = self._known(push)
                    if found is None and not push.records:
                        found = Taken(Verdict.NEW)
                    if found is None and size and size + len(push.body) > bytes_max:
                        found = Taken(Verdict.FULL)
                    if found is None:
                        found = Taken(Verdict.NEW, following, push.records)
                        numbers += push.key is not None
                        self._insert(push, found.first, number=numbers, now=now)
                        following, size = found.end, size + len(push.body)
                    taken.append(found)
                self._connection.execute("UPDATE state SET next = ?", (following,))
            self.next, self.bytes, self._numbers = following, size, numbers
            return taken

    def read(self, first: int, *, bytes_max: int) -> list[Stored]:
        """The requests from offset `first` on, in order: as many as fit `bytes_max`, and one at least if there is any.

        Raises Corrupt if one is missing or is not what was written.
        """
        found: list[Stored] = []
        with self._lock, self._translating():
            size, at = 0, first
            rows = self._connection.execute(
                'SELECT "first", records, checksum, body FROM bodies WHERE "first" >= ? ORDER BY "first"', (first,)
            )
            for stands_at, records, checksum, body in rows:
                if found and size + len(body) > bytes_max:
                    break
                if stands_at != at or zlib.crc32(body) != checksum:
                    raise self._damaged(f"record {at} is missing or is not what was written")
                found.append(Stored(at, records, body))
                size, at = size + len(body), at + records
            rows.close()
            if not found and first < self.next:
                raise self._damaged(f"record {first} is missing")
        return found

    def settle(self, floor: int, retention: Retention, *, now: float) -> None:
        """Every sink has what lies below `floor`: delete it, and forget keys that were kept long enough.

        On disk on return. `floor` is where a request begins or ends.
        """
        with self._lock, self._translating():
            with transaction(self._connection):
                (freed,) = self._connection.execute(
                    'SELECT coalesce(sum(bytes), 0) FROM bodies WHERE "first" < ?', (floor,)
                ).fetchone()
                self._connection.execute('DELETE FROM bodies WHERE "first" < ?', (floor,))
                self._connection.execute("UPDATE state SET floor = max(floor, ?)", (floor,))
                self._connection.execute(
                    "DELETE FROM keys WHERE number IN (SELECT number FROM keys WHERE "
                    '"first" + records <= ? AND (received < ? OR number <= ?) ORDER BY number LIMIT ?)',
                    (floor, now - retention.seconds, self._numbers - retention.keys_max, PRUNED_MAX),
                )
            self.floor = max(self.floor, floor)
            self.bytes -= freed

    def _known(self, push: Push) -> Taken | None:
        if push.key is None:
            return None
        row = self._connection.execute(
            'SELECT digest, "first", records FROM keys WHERE "key" = ?', (push.key,)
        ).fetchone()
        if row is None:
            return None
        digest, first, records = row
        return Taken(Verdict.KNOWN, first, records) if digest == push.digest else Taken(Verdict.OTHER)

    def _insert(self, push: Push, first: int, *, number: int, now: float) -> None:
        self._connection.execute(
            "INSERT INTO bodies VALUES (?, ?, ?, ?, ?)",
            (first, push.records, zlib.crc32(push.body), len(push.body), push.body),
        )
        if push.key is not None:
            self._connection.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?)",
                (number, push.key, push.digest, first, push.records, int(now)),
            )

    def _prepare(self) -> None:
        self._connection.execute("PRAGMA locking_mode = EXCLUSIVE")  # nobody else reads it: no shared memory is needed
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")  # with every transaction, not with every checkpoint
        self._connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            with transaction(self._connection):
                for statement in SCHEMA:
                    self._connection.execute(statement)
                self._connection.execute("INSERT INTO state VALUES (?, 0, 0)", (uuid.uuid4().hex[:16],))
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version != SCHEMA_VERSION:
            raise self._damaged(f"its version is {version}, this conveyord knows {SCHEMA_VERSION}")

    def _state(self) -> tuple[str, int, int]:
        row = self._connection.execute("SELECT identity, next, floor FROM state").fetchone()
        if row is None:
            raise self._damaged("its state is missing")
        identity, following, floor = row
        return identity, following, floor

    def _translating(self) -> AbstractContextManager[None]:
        return translated(self._path, damaged=self._damaged, promise=PROMISE)

    def _damaged(self, reason: object) -> Corrupt:
        return _damaged(self._path, reason)
