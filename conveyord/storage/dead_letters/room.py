"""The writer's hands: transactions that append to segments, and the space that they take."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from conveyord.storage.dead_letters.faults import translated
from conveyord.storage.dead_letters.index import INDEX_FILE, open_to_write
from conveyord.storage.dead_letters.segments import (
    DamagedFrame,
    Place,
    SegmentWriter,
    read_frame,
    segment_path,
    segments_on_disk,
)
from conveyord.storage.sqlite_errors import transaction

SEGMENT_BYTES_MAX = 16 * 1024 * 1024  # what compaction reads into memory and writes again at a time
SEGMENT_BYTES_MIN = 64 * 1024
SEGMENTS_PER_BUDGET = 16  # so that a small budget does not lie in one segment, which could not be compacted

REGISTER = """
INSERT INTO segments (id, end_bytes) VALUES (?, ?)
ON CONFLICT (id) DO UPDATE SET end_bytes = max(end_bytes, excluded.end_bytes)
"""


class Room:
    """Index and segments of one directory, opened as their only writer. Blocking, one thread at a time.

    A payload is on disk before the index names it, and no longer named by the index before it is deleted: a
    crash leaves bytes that nobody refers to, never a reference to bytes that are not there.
    """

    def __init__(self, directory: Path, *, budget_bytes: int) -> None:
        self._directory = directory
        self._index = directory / INDEX_FILE
        self._unmovable: set[int] = set()  # segments with a damaged frame, which compaction cannot empty
        self.connection = open_to_write(directory)
        share_bytes = budget_bytes // SEGMENTS_PER_BUDGET
        segment_bytes_max = min(max(share_bytes, SEGMENT_BYTES_MIN), SEGMENT_BYTES_MAX)
        self._segments = SegmentWriter(directory, segment_bytes_max=segment_bytes_max)
        try:
            with translated(self._index):
                self._resume()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give everything back. The last step of SQLite may fail on a full disk; its log stays, nothing is lost."""
        self._segments.abandon()
        with suppress(sqlite3.Error):
            self.connection.close()

    def _resume(self) -> None:
        known = dict(self.connection.execute("SELECT id, end_bytes FROM segments ORDER BY id").fetchall())
        for segment in segments_on_disk(self._directory):
            if segment not in known:  # a crash came before the index knew it, or after it had forgotten it
                segment_path(self._directory, segment).unlink()
        if known:
            self._segments.resume(*list(known.items())[-1])

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction. Segments in which no letter is left are deleted after it."""
        emptied: list[int] = []
        try:
            with translated(self._index), transaction(self.connection) as sql:
                yield sql
                active = self._segments.active or 0
                query = "DELETE FROM segments WHERE letters = 0 AND id <> ? RETURNING id"
                emptied = [segment for (segment,) in sql.execute(query, (active,)).fetchall()]
        except BaseException:
            self._segments.abandon()  # its end is uncertain now
            raise
        for segment in emptied:
            self._unmovable.discard(segment)
            with suppress(OSError):  # it is tried again when the directory is opened
                segment_path(self._directory, segment).unlink()

    def append(self, frames: Sequence[bytes]) -> list[Place]:
        """Put frames on disk, within `writing`, and say where they stand."""
        sql = self.connection
        newest = sql.execute("SELECT seq FROM sqlite_sequence WHERE name = 'segments'").fetchone()
        following = newest[0] + 1 if newest else 1
        with translated(segment_path(self._directory, self._segments.active or following)):
            places = self._segments.append(frames, next_segment=following)
        ends = {place.segment: place.position + place.length for place in places}
        sql.executemany(REGISTER, ends.items())
        return places

    def used_bytes(self) -> int:
        """Bytes on disk: of all segments, and of the pages of the index that are in use."""
        with translated(self._index):
            found = self.connection.execute(
                "SELECT (SELECT coalesce(sum(end_bytes), 0) FROM segments) + (page_count - freelist_count) * page_size"
                " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
            )
            return int(found.fetchone()[0])

    def compact(self, dead_share: float, *, segments_max: int | None, active: bool) -> None:
        """Empty segments of which at least `dead_share` belongs to no letter, most such bytes first.

        active: take the one that is written to as well. A segment with a damaged frame stays, for that letter.
        """
        with translated(self._index):
            rows = self.connection.execute(
                "SELECT id FROM segments WHERE letters > 0 AND end_bytes - live_bytes >= ? * end_bytes"
                " ORDER BY end_bytes - live_bytes DESC",
                (dead_share,),
            ).fetchall()
        spared = self._unmovable if active else {*self._unmovable, self._segments.active}
        for segment in [segment for (segment,) in rows if segment not in spared][:segments_max]:
            self._empty(segment)

    def seal(self) -> None:
        """Write no more to the newest segment, so that it is deleted once no letter is left in it."""
        self._segments.abandon()

    def shrink(self) -> None:
        """Give the index's unused pages back to the file system."""
        with translated(self._index):
            # Not `execute`, which takes one step of it and so frees one page.
            self.connection.executescript("PRAGMA incremental_vacuum")

    def _empty(self, segment: int) -> None:
        if segment == self._segments.active:
            self.seal()
        with self.writing() as sql:
            rows = sql.execute(
                "SELECT id, segment, position, length, crc FROM letters WHERE segment = ? ORDER BY position", (segment,)
            ).fetchall()
            moved: list[tuple[int, bytes]] = []
            for letter_id, *place in rows:
                try:
                    moved.append((letter_id, read_frame(self._directory, Place(*place))))
                except DamagedFrame:
                    self._unmovable.add(segment)
            places = self.append([frame for _, frame in moved])
            sql.executemany(
                "UPDATE letters SET segment = ?, position = ?, length = ?, crc = ? WHERE id = ?",
                [(*place, letter_id) for place, (letter_id, _) in zip(places, moved, strict=True)],
            )
