"""The state of one node: SQL tables that are changed by entries of the log, and by nothing else.

    store = StateStore.open(directory, base=base, membership=members, migrations=MIGRATIONS)
    replies = store.apply(entries, execute)     # one transaction, with the index of the last entry in it
    store.switch(mark)                          # to a snapshot that `SnapshotReceiver` has staged

| | on | becomes |
|---|---|---|
| usable | `apply` and the disk is full | usable, as before: the same entries can be applied again |
| usable | `switch` | usable, of the next generation; after any error on the way, failed |
| usable | another error of the disk, or any of the caller's function | failed: refuses all until it is opened again |

What entries will do can be found out before it is known that they will be applied: `try_out` runs them in a transaction
and leaves that open, so nobody sees it. An `apply` that begins with the same entries goes on in it; whatever else comes
first takes it back.

Nothing is synced when entries are applied, as the log has them. So after a power cut the newest ones may be gone:
always whole transactions from the end of the WAL, whose frames carry checksums. `mark` is smaller then, the tables are
what they were at that mark, and the log applies the rest again. It must not have been compacted beyond what is on disk
here, so a snapshot counts as taken only when the state it was taken from is on disk as well (`snapshots.py`).
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self

from conveyord.core.errors import Corrupt, Refused, StorageFull
from conveyord.core.raft.membership import NOBODY, Membership, decode
from conveyord.core.raft.sessions import SESSIONS_MAX, WINDOW, Sessions
from conveyord.core.raft.types import BEGINNING, Entry, Kind, Mark, chain_after
from conveyord.storage.disk import make_durable_directories
from conveyord.storage.sqlite_errors import transaction
from conveyord.storage.state_store.connections import checkpoint, connect_to_write
from conveyord.storage.state_store.content import state_digest
from conveyord.storage.state_store.faults import damaged_state, translated
from conveyord.storage.state_store.layout import Layout
from conveyord.storage.state_store.reader import StateReader
from conveyord.storage.state_store.schema import Migration, Place, read_place, write_mark, write_place
from conveyord.storage.state_store.session_rows import load_sessions, store_changes
from conveyord.storage.state_store.shared_memory import ensure_room, take_room
from conveyord.storage.state_store.snapshot_file import SnapshotFile
from conveyord.storage.state_store.snapshots import Snapshots
from conveyord.storage.state_store.staging import check_staged, stage
from conveyord.storage.state_store.state_file import StateFile

# So much is written between two checkpoints. Whoever waits for the state then waits for the disk: with more it is for
# longer, with less it is more often, and the same pages are moved again and again.
WAL_BYTES = 4 * 1024 * 1024

Execute = Callable[[sqlite3.Cursor, Sessions, Sequence[Entry]], list[bytes]]
"""What entries do, and the reply of each: it depends on nothing but the tables, the sessions and the entries, however
many come at once, and changes nothing else. What it refuses it tells in the reply; an exception means that it cannot go
on, and nothing is applied. All of one transaction, and only those, come with the same cursor."""


class _Tried(NamedTuple):
    """What was run in the transaction that is open, by `cursor`: so many entries as there are replies. place: after
    them.
    """

    cursor: sqlite3.Cursor
    replies: list[bytes]
    place: Place


class StateStore:
    """The one read-write connection to a state, for one thread; the caller holds the directory's lock.

    path: the file of the state. generation: counts the states that were switched to; a reader of another generation
    reads what is not the state any more. snapshots: to be used from any thread. Raises StorageFull, Corrupt or
    Retryable for what the disk does.
    """

    def __init__(self, layout: Layout, migrations: Sequence[Migration], sessions_max: int, window: int) -> None:
        """Use `open`."""
        self._layout = layout
        self._migrations = migrations
        self._sessions = Sessions(sessions_max=sessions_max, window=window)
        self._failed: str | None = None
        self._tried: _Tried | None = None
        self.generation = max(layout.generations(), default=1)
        self._using = threading.Lock()  # the connection: by who applies, or by who begins a snapshot
        self._taking = threading.Lock()  # a snapshot; held for long, and taken before the other
        self._connection = self._connect()

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        base: Mark = BEGINNING,
        membership: Membership = NOBODY,
        migrations: Sequence[Migration] = (),
        sessions_max: int = SESSIONS_MAX,
        window: int = WINDOW,
    ) -> Self:
        """Blocking. Open the state in `directory`, or make one, so that it has everything that the log does not.

        base: where the log begins, `membership` who was a member there. If the state is older than that, the staged
        snapshot of exactly this mark is switched in, or else the newest one taken here that is not older. Staged ones
        that are not needed are removed. migrations: all of them, see `schema.py`. Raises Corrupt if what the log needs
        is not there, and Refused for a state of a newer conveyord.
        """
        layout = Layout(directory)
        with translated(directory):
            make_durable_directories(directory)
            layout.clear()
        ensure_room(directory)
        store = cls(layout, migrations, sessions_max, window)
        try:
            store._settle(base, membership)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Let go of the file. What was applied is in it. A snapshot that is being taken is completed."""
        with self._using:
            self._failed = "it was closed"
            self._close()

    @property
    def mark(self) -> Mark:
        """The last entry that is in the state."""
        return self._place.mark

    @property
    def membership(self) -> Membership:
        """Who was a member there."""
        return self._place.membership

    @property
    def snapshots(self) -> Snapshots:
        """Those of this state."""
        # Kept here, it would keep this store from being let go.
        return Snapshots(self._layout, self._between_applies, self._syncing, self._taking)

    def apply(self, entries: Sequence[Entry], execute: Execute) -> list[bytes]:
        """Apply `entries` in one transaction, and return their replies. Not synced; see above.

        entries: without a gap from `mark` on. Raises StorageFull if there is no room, and nothing was applied; Corrupt
        if they do not follow what is in the state, which is then another log's.
        """
        with self._using:
            self._check_usable()
            if not entries:
                return []
            self._check_follows(entries[0])
            if self._tried is not None and not _begin_with(entries, self._tried):
                self._forget()
            with self._taking_back():
                done = self._run(entries, execute)
                self._connection.execute("COMMIT")
            self._tried, self._place = None, done.place
            with (
                suppress(StorageFull),
                self._failing(),
            ):  # what was applied is in the WAL, which grows until there is room
                self._checkpoint()
            return done.replies

    def try_out(self, entries: Sequence[Entry], execute: Execute) -> list[bytes]:
        """What `apply` would reply; see above. Raises as it does. entries: one at least."""
        with self._using:
            self._check_usable()
            self._check_follows(entries[0])
            self._forget()
            with self._taking_back():
                self._tried = self._run(entries, execute)
            return self._tried.replies

    def forget(self) -> None:
        """Take back what was tried out, if anything was."""
        with self._using:
            self._forget()

    def _forget(self) -> None:
        if self._tried is not None:
            self._tried = None
            with self._failing():
                self._connection.execute("ROLLBACK")
            self._unlearn()

    def _unlearn(self) -> None:
        """What the sessions learned in memory was taken back: read them again. Without them nothing can go on."""
        try:
            with self._failing():
                load_sessions(self._connection, self.path, self._sessions)
        except StorageFull as error:
            self._failed = str(error)
            raise

    def switch(self, mark: Mark) -> None:
        """Make the snapshot that is staged for `mark` the state; it is on disk when this returns.

        A crash on the way leaves the old state or the new one, and what was staged until it is the state. Raises
        Corrupt if no snapshot of this mark is staged; the state is then as it was.
        """
        with self._using:
            self._switch(mark)

    def _switch(self, mark: Mark) -> None:
        self._check_usable()
        self._forget()
        assert mark.index > self.mark.index, (mark, self.mark)
        check_staged(self._layout, mark)
        ensure_room(self._layout.directory)  # later the old state is gone
        former = self.generation
        self._failed = f"switching to the snapshot of entry {mark.index} was not completed"
        with translated(self.path):
            self._close()
            self.generation = self._layout.promote(mark.index)
            self._connection = self._connect()
        self._failed = None
        # What cannot be removed now is when it is opened the next time.
        shutil.rmtree(self._layout.generation(former), ignore_errors=True)
        self._layout.discard_staged(up_to=mark.index)

    def reader(self) -> StateReader:
        """A read-only connection of its own, for the thread that calls this."""
        return StateReader(self._layout.directory)

    def state_digest(self) -> bytes:
        """What is in the tables, as 16 bytes: equal at replicas that are at the same mark. It reads all of them."""
        with self._using:
            self._check_usable()
            self._forget()
            with translated(self.path):
                return state_digest(self._connection)

    # -------------------------------------------------------------------------- opening

    def _connect(self) -> sqlite3.Connection:
        """Open the present generation, and read what is kept in memory of it."""
        self.path = self._layout.state(self.generation)
        self._wal = f"{self.path}-wal"
        with translated(self.path):
            self.path.parent.mkdir(exist_ok=True)
            if not self.path.exists():
                self.path.touch()
            self._file = StateFile(self.path)  # before there are locks that a reader's end could take
            try:
                connection = self._connect_to(self.path)
            except BaseException:
                self._file.close()
                raise
        self._checkpoint_at_bytes = WAL_BYTES
        return connection

    def _connect_to(self, path: Path) -> sqlite3.Connection:
        connection = connect_to_write(path, self._migrations)
        try:
            self._place = read_place(connection, path)
            load_sessions(connection, path, self._sessions)
            take_room(path)
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        self._tried = None
        self._connection.close()
        self._file.close()

    def _settle(self, base: Mark, membership: Membership) -> None:
        if self.mark.index < base.index:
            self._recover(base)
        elif self.mark.index == base.index and self.mark != base:
            raise damaged_state(self.path, f"it is of another log: at entry {base.index} it has term {self.mark.term}")
        with translated(self._layout.directory):
            self._layout.discard_staged()
        if self.mark.index == 0 and membership != self.membership:
            with self._failing(), transaction(self._connection):
                self._place = Place(self.mark, membership)
                write_place(self._connection.cursor(), self._place)

    def _recover(self, base: Mark) -> None:
        """Switch to a snapshot without which the log cannot go on."""
        if base.index in self._layout.all_staged():
            self.switch(base)
            return
        own = max(self._layout.all_snapshots(), default=0)
        if own < base.index:
            raise Corrupt(
                f"{self._layout.directory}: the state has entries up to {self.mark.index}, the log begins after "
                f"{base.index}, and no snapshot leads over the gap; bring this node back as a new member"
            )
        with SnapshotFile(self._layout.snapshot(own)) as snapshot:
            stage(self._layout, snapshot.path, snapshot.info, self._migrations)
        self.switch(snapshot.info.mark)

    # -------------------------------------------------------------------------- applying

    def _run(self, entries: Sequence[Entry], execute: Execute) -> _Tried:
        """Begin a transaction, or go on in the one of the first of `entries`; it stays open."""
        tried = self._tried
        if tried is None:
            tried = _Tried(self._connection.cursor(), [], self._place)
            tried.cursor.execute("BEGIN IMMEDIATE")
        rest = entries[len(tried.replies) :]
        if not rest:
            return tried
        last, cursor, membership = rest[-1], tried.cursor, tried.place.membership
        assert last.index - rest[0].index == len(rest) - 1, (rest[0].index, last.index, len(rest))
        kind = Kind.MEMBERSHIP
        for entry in rest:
            if entry.kind is kind:
                membership = decode(entry.data)
        replies = execute(cursor, self._sessions, rest)
        store_changes(cursor, self._sessions.take_changes())
        place = Place(Mark(last.index, last.term, last.chain), membership)
        if membership is tried.place.membership:
            write_mark(cursor, place.mark)
        else:
            write_place(cursor, place)
        return _Tried(cursor, tried.replies + replies, place)

    def _check_usable(self) -> None:
        if self._failed is not None:
            raise Refused(
                f"{self.path}: the state takes nothing more since it failed ({self._failed}); end the process and "
                "start it again"
            )

    def _check_follows(self, entry: Entry) -> None:
        assert entry.index == self.mark.index + 1, (entry.index, self.mark.index)
        if entry.chain != chain_after(self.mark.chain, entry.index, entry.term, entry.crc):
            raise damaged_state(self.path, f"entry {entry.index} of the log does not follow what is in it")

    @contextmanager
    def _taking_back(self) -> Iterator[None]:
        """After an error nothing is left of the transaction that is open, nor of what sessions learned in it."""
        try:
            with self._failing():
                yield
        except BaseException as error:
            self._tried = None
            with self._failing():
                if self._connection.in_transaction:  # SQLite has rolled back by itself after some errors
                    self._connection.execute("ROLLBACK")
            if isinstance(error, StorageFull):
                self._unlearn()
            raise

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """Refuse everything after an error, but for a full disk: SQLite has taken back what it did not complete."""
        try:
            with translated(self.path):
                yield
        except StorageFull:
            raise
        except BaseException as error:
            self._failed = str(error) or type(error).__name__
            raise

    def _checkpoint(self) -> None:
        """Move the WAL into the file, once enough is in it. Pages that a reader still needs stay for the next time."""
        size = os.stat(self._wal).st_size  # noqa: PTH116 - at every apply, and a Path takes longer than the call
        if size >= self._checkpoint_at_bytes:
            self._move_wal(size)

    def _move_wal(self, size: int) -> bool:
        """Move the WAL into the file. Says whether all of it is there now, and on disk.

        size: what the WAL has.
        """
        busy, frames, moved = True, -1, -1
        try:
            busy, frames, moved = checkpoint(self._connection)
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_FULL:
                raise  # nothing was lost by a full disk: the WAL has it all
        self._checkpoint_at_bytes = size + WAL_BYTES if busy else WAL_BYTES
        return 0 <= frames == moved

    @contextmanager
    def _between_applies(self) -> Iterator[bool]:
        """Nothing is applied meanwhile. Says whether all that was is in the file of the state, and on disk.

        It is not if a reader still needs what was there before, or if there is no room for it.
        """
        with self._using:
            self._check_usable()
            self._forget()
            with self._failing():
                is_in_file = self._move_wal(os.stat(self._wal).st_size)  # noqa: PTH116
            yield is_in_file

    @contextmanager
    def _syncing(self) -> Iterator[None]:
        """Refuse everything after any error: a second sync could report success for what the first has lost."""
        try:
            yield
        except OSError as error:
            self._failed = f"it could not be synced: {error}"
            raise


def _begin_with(entries: Sequence[Entry], tried: _Tried) -> bool:
    """Whether what was tried out are the first of `entries`."""
    count = len(tried.replies)
    return count <= len(entries) and entries[count - 1].chain == tried.place.mark.chain
