"""The Raft log of one node: one durable transaction for everything that a `Write` asks.

    log = RaftLog(data_dir / "raft" / "raft.db", node="n1")
    state = StateStore.open(log.base.index)
    node = RaftNode("n1", log.load(state.applied), ...)
    log.write(ready.write)             # on disk on return
    log.compact(mark, membership)      # when a snapshot has taken the place of what is older

| state | on | becomes |
|---|---|---|
| opened | `load` | loaded: what it returned is on disk |
| loaded | a write finds the disk full | loaded, without the reserve; failed if even that was not enough |
| loaded | a write fails otherwise | failed: everything is refused; end the process, as nobody knows what is on disk |
| opened, loaded | what is stored is not what was written | quarantined: the files are moved aside, closed |

It is on apsw (docs/decisions/0008), which lets tests lose the power between any two writes. One sync a write; the first
after a checkpoint takes one more. docs/raft-log.md tells what is not promised.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import apsw

from conveyord.core.errors import Corrupt, OutcomeUnknown, Refused
from conveyord.core.raft.membership import Membership, decode
from conveyord.core.raft.messages import Write
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import Entry, Mark, NodeId, Options
from conveyord.storage.disk import make_durable_directories, sync_directory
from conveyord.storage.locks import owned
from conveyord.storage.raft_log import database, loading, quarantine, wal, watermark
from conveyord.storage.raft_log.head import Head
from conveyord.storage.raft_log.reserve import RESERVE_BYTES, Reserve
from conveyord.storage.raft_log.watermark import Watermark
from conveyord.storage.raft_log.writing import Step, commit, compaction, founding, step_of
from conveyord.storage.sqlite_errors import translated

CHECKPOINT_PAGES = 1000  # 4 MiB: some ten milliseconds, which the write that follows waits for
WINDOW_BYTES = Options().window_bytes  # as much as a node keeps itself
PROMISE = "nothing that was acknowledged is lost"


class RaftLog:
    """The only one who has the files open, and their directory locked. Blocking; one thread at a time.

    Raises Quarantined wherever it finds that what is stored is not what was written; it has let go of everything then.
    Not told from a crash, and so not found: damage to the last write of all before a power cut (see `wal`).
    """

    def __init__(self, path: Path, *, node: NodeId, reserve_bytes: int = RESERVE_BYTES, vfs: str | None = None) -> None:
        """Open the log of `node`, or make it. vfs: the name of one that SQLite knows, for its own files.

        Raises Refused if another process has it, or it is another node's, of a newer conveyord, or no Raft log at
        all; StorageFull if the disk is full or read-only, Retryable if it fails otherwise.
        """
        self._path = path
        self._node = node
        self._connection: apsw.Connection | None = None
        self._watermark: Watermark | None = None
        self._reserve = Reserve(self._beside("-reserve"), reserve_bytes)
        self._has_rubbish = False
        self._wal_pages = 0
        self._closed_because: str | None = None
        self._held = ExitStack()
        try:
            with self._translating():
                make_durable_directories(path.parent)
                self._held.enter_context(owned(path.parent))
                self._held.callback(self._disconnect)
                quarantine.refuse_if_spent(path, node)
                with self._judging():
                    self._head = self._open(vfs)
        except BaseException:
            self._held.close()
            raise

    @property
    def base(self) -> Mark:
        """Where the log begins. Known before `load`, as the state store asks for it."""
        return self._head.base

    @property
    def membership(self) -> Membership:
        """Who was a member there, likewise."""
        return decode(self._head.members)

    @property
    def has_reserve(self) -> bool:
        """Whether space is set aside. Without it the disk is full: propose nothing, and let another node lead."""
        return self._reserve.is_there

    def load(self, applied: int, *, window_bytes: int = WINDOW_BYTES) -> Loaded:
        """Verify everything, once. On return all of it is on disk, also what a killed process had not synced.

        applied: the last entry that is in the state. window_bytes: of the newest entries, which are handed over, by
        `size_of`. Raises Refused, and moves nothing aside, if an entry holds what only a newer conveyord knows, or if
        the log is new and the state is not.
        """
        connection = self._open_one()
        with self._translating():
            with self._judging():
                loaded = loading.load(connection, self._head, applied=applied, window_bytes=window_bytes)
                self._has_rubbish = loading.has_rubbish(connection, self._head)
            with self._writing():
                self._reserve.make()
                # Written but not synced, the last transaction would count as acknowledged from here on. And the frames
                # that a crash left behind it must not be mistaken for ours (see `wal`).
                self._checkpoint(connection, apsw.SQLITE_CHECKPOINT_TRUNCATE)
            if self._watermark is None:
                self._watermark = Watermark(self._beside("-watermark"), self._head.sequence)
        connection.set_wal_hook(self._count_pages)
        return loaded

    def write(self, write: Write) -> None:
        """Do all of it, durably, or nothing. After any error the object refuses everything.

        If the disk is full the reserve is given up for it, which `has_reserve` tells. Raises StorageFull if not even
        that was enough: nothing was written then. Raises OutcomeUnknown if the disk failed: whether the write is there
        the next process will see, and this one must end, as a second sync would report success whatever is lost.
        """
        connection = self._open_one()
        with self._writing():
            self._take(connection, step_of(connection, self._head, write))

    def found(self, membership: Membership) -> None:
        """Begin a cluster with these members: on each of them, in a log that holds nothing. Load it after that.

        May be repeated. Raises Refused if the log holds anything, or as `write` does.
        """
        connection = self._open_one()
        step = founding(self._head, membership)
        if self._watermark is None:
            self.load(0)  # an earlier process has made it: nothing is written before all is verified
        with self._writing():
            self._take(connection, step)

    def compact(self, base: Mark, membership: Membership) -> None:
        """Let the log begin after `base`, which a snapshot contains, with the membership in force there.

        Raises as `write` does. The entries are deleted by this and the next transactions, some in each; their space is
        used again, and the file does not shrink.
        """
        connection = self._open_one()
        if base.index > self._head.base.index:
            with self._writing():
                self._take(connection, compaction(connection, self._head, base, membership))

    def read(self, first: int, end: int, bytes_max: int) -> tuple[Entry, ...]:
        """Entries of `[first, end)` that are there: one at least, as many as `bytes_max` takes, by `size_of`.

        None at all if the first was compacted, or truncated meanwhile.
        """
        connection = self._open_one()
        with self._translating(), self._judging():
            if not self._head.base.index < first <= self._head.last_index:
                return ()
            return loading.read(connection, first, min(end, self._head.last_index + 1), bytes_max)

    def renew_reserve(self) -> bool:
        """Set space aside again if there is room for it; returns whether it is. To be asked now and then when full."""
        self._open_one()
        with self._translating():
            return self._reserve.make()

    def close(self) -> None:
        """Let go of the files and of the lock. May be called again."""
        self._closed_because = self._closed_because or "it is closed"
        self._held.close()

    def _open(self, vfs: str | None) -> Head:
        known = watermark.read_or_none(self._beside("-watermark"))
        if known is not None and not (self._path.exists() and self._path.stat().st_size):
            # SQLite would make an empty database of it, and delete the write-ahead log beside it.
            raise Corrupt("the file is missing or empty, though a log was here")
        self._connection = connection = database.connect(self._path, vfs)
        if database.is_blank(connection):
            if known is not None:
                raise Corrupt("the file holds nothing, though a log was here")
            head = database.make(connection, self._path, self._node)
            sync_directory(self._path.parent)
            self._watermark = Watermark(self._beside("-watermark"), head.sequence)
            return head
        head = database.read_head(connection, self._path, self._node)
        accepted, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
        if found := wal.lost(self._beside("-wal"), accepted=accepted):
            raise Corrupt(found)
        if known is not None and head.sequence < known:
            raise Corrupt(f"it holds {head.sequence} transactions, but {known} were on disk: the last ones are lost")
        return head

    def _take(self, connection: apsw.Connection, step: Step) -> None:
        mark = self._watermark
        assert mark is not None, "it is loaded before it is written to"
        if self._wal_pages >= CHECKPOINT_PAGES:
            mark.sync()
            # If the disk is full, the write-ahead log has everything, and grows on as long as there is room.
            with suppress(apsw.FullError):
                self._checkpoint(connection, apsw.SQLITE_CHECKPOINT_PASSIVE)
        sweeps = self._has_rubbish or step.head.base != self._head.base
        try:
            self._has_rubbish = commit(connection, step, sweeps=sweeps)
        except apsw.FullError:
            self._roll_back(connection)
            if not self._reserve.free():
                raise
            self._has_rubbish = commit(connection, step, sweeps=sweeps)
        mark.raise_to(step.head.sequence)
        self._head = step.head

    def _checkpoint(self, connection: apsw.Connection, mode: int) -> None:
        try:
            connection.wal_checkpoint(mode=mode)
        except apsw.FullError:
            if not self._reserve.free():
                raise
            connection.wal_checkpoint(mode=mode)

    def _roll_back(self, connection: apsw.Connection) -> None:
        if connection.in_transaction:  # SQLite has rolled back by itself after some errors
            connection.execute("ROLLBACK")

    def _count_pages(self, _connection: apsw.Connection, _name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def _open_one(self) -> apsw.Connection:
        if self._closed_because is not None or self._connection is None:
            raise Refused(
                f"{self._path}: nothing more is read or written here, as {self._closed_because}; end this process and "
                "start it again: it goes on from what is on disk"
            )
        return self._connection

    def _beside(self, suffix: str) -> Path:
        return self._path.with_name(self._path.name + suffix)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        with translated(self._path, damaged=Corrupt, promise=PROMISE):
            yield

    @contextmanager
    def _judging(self) -> Iterator[None]:
        """Reading: what is damaged is moved aside."""
        try:
            yield
        except (Corrupt, UnicodeDecodeError) as error:
            raise self._quarantined(str(error)) from error
        except apsw.Error as error:
            if database.is_damage(error):
                raise self._quarantined(str(error)) from error
            raise database.explained(error, self._path) from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Whatever goes wrong, nothing is tried after it."""
        before, self._closed_because = self._closed_because, "an earlier write failed"
        try:
            yield
        except apsw.FullError as error:
            raise database.explained(error, self._path) from error
        except apsw.SQLError:
            raise  # a statement of ours is wrong, not the file, which was verified
        except Corrupt as error:
            raise self._quarantined(str(error)) from error
        except (apsw.Error, OSError) as error:
            if isinstance(error, apsw.Error) and database.is_damage(error):
                raise self._quarantined(str(error)) from error
            raise OutcomeUnknown(
                f"{self._path}: {error}; whether this write is on disk is not known, and a second try could report "
                "success for what is lost: end this process, check the disk, then start it again"
            ) from error
        self._closed_because = before

    def _quarantined(self, found: str) -> quarantine.Quarantined:
        self._closed_because = "its files were moved aside"
        self._disconnect()
        error = quarantine.move_aside(self._path, self._node, found)
        self._held.close()
        return error

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        mark, self._watermark = self._watermark, None
        if connection is not None:
            connection.close()
        if mark is not None:
            mark.close()
