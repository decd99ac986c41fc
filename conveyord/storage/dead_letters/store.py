"""Keeps dead letters: durable when `put` returns, one per key, within a budget, and replayed at most once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from conveyord.core.errors import ConfigError, Refused, StorageFull
from conveyord.core.flow.dead_letters import DeadLetter
from conveyord.core.units import format_bytes
from conveyord.storage.dead_letters.index import exists
from conveyord.storage.dead_letters.letters import EVERYTHING, Selection
from conveyord.storage.dead_letters.queries import LetterQueries, condition
from conveyord.storage.dead_letters.room import Room
from conveyord.storage.dead_letters.segments import Payload, frame_of

MESSAGE_CHARS_MAX = 4096  # a message may quote a whole value, which the payload holds anyway
INDEX_BYTES_PER_LETTER = 640  # a row and its five index entries, with paths of a usual length
PUTS_PER_EXPIRY = 100  # looking for old letters costs one look into an index
DEAD_SHARE_USUAL = 0.5  # compacting at half copies each byte about once more in its life
DEAD_SHARE_PRESSED = 0.125  # when the budget is reached, or someone purged: disk space counts more than writing

UPSERT = """
INSERT INTO letters (id, pipeline, source, "partition", "offset", stage, part, code, message, attempts,
    first_micros, last_micros, sinks, segment, position, length, crc)
VALUES ((SELECT id FROM copied WHERE (pipeline, source, "partition", "offset", stage, part) = (?1, ?2, ?3, ?4, ?5, ?6)),
    ?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)
ON CONFLICT (pipeline, source, "partition", "offset", stage, part) DO UPDATE SET
    code = excluded.code, message = excluded.message, attempts = attempts + excluded.attempts,
    last_micros = excluded.last_micros, state = 'dead', sequence = NULL, edited = 0,
    sinks = CASE WHEN state <> 'dead' OR sinks IS NULL THEN excluded.sinks WHEN excluded.sinks IS NULL THEN sinks ELSE
        (SELECT json_group_array(value) FROM
            (SELECT value FROM json_each(letters.sinks) UNION SELECT value FROM json_each(excluded.sinks))) END,
    segment = excluded.segment, position = excluded.position, length = excluded.length, crc = excluded.crc
"""

# A key may come back for other sinks. Where an earlier stage of a record with several rows was mended, a later one
# numbers its rows in another way, and the letter of one row would take the place of another's; and one that is queued
# waits for its own sinks, of which some may not be in the pipeline at the moment.
ASIDE = """
UPDATE letters SET part = -id
WHERE (pipeline, source, "partition", "offset", stage, part) = (?1, ?2, ?3, ?4, ?5, ?6)
    AND (state = 'queued' OR state = 'dead' AND (length, crc) <> (?15, ?16))
    AND sinks IS NOT NULL AND ?12 IS NOT NULL
    AND NOT EXISTS (SELECT 1 FROM json_each(sinks) AS kept JOIN json_each(?12) AS come ON kept.value = come.value)
"""

SETTLE = """
UPDATE letters SET state = 'replayed', sequence = NULL, last_micros = :at,
    segment = NULL, position = NULL, length = NULL, crc = NULL
WHERE pipeline = :of AND sequence <= :up_to AND state = 'queued'
"""
OTHERS = "(SELECT value FROM json_each(sinks) WHERE value NOT IN (SELECT value FROM json_each(:sinks)))"

SETTLE_IN_PART = f"""
UPDATE letters SET sinks = (SELECT json_group_array(value) FROM {OTHERS})
WHERE pipeline = :of AND sequence <= :up_to AND state = 'queued'
    AND EXISTS (SELECT 1 FROM json_each(sinks) WHERE value IN (SELECT value FROM json_each(:sinks)))
"""  # noqa: S608 - ours

KEY = 'pipeline, source, "partition", "offset", stage, part'


class DeadLetterStore(LetterQueries):
    """The dead letters of one data directory, whose lock the caller holds; a context manager.

    Blocking; any thread, one at a time. Nothing is created before the first letter. `budget_bytes` bounds
    segments and index together; beside them up to 4 MiB of write-ahead log may lie on disk. Letters whose
    newest failure is older than `retention_seconds` (None: for ever) are deleted when the store is opened
    and now and then by `put`. Times come in as `at_micros`, microseconds since the epoch.

    Every method raises StorageFull if the disk is full or cannot be written, Corrupt if the index is damaged,
    and Retryable if the disk fails otherwise. After any of them nothing that was acknowledged is lost.
    """

    def __init__(self, data_dir: Path, *, budget_bytes: int, retention_seconds: float | None, at_micros: int) -> None:
        super().__init__(data_dir)
        self._budget_bytes = budget_bytes
        self._retention_seconds = retention_seconds
        self._opened: Room | None = None
        self._puts = 0
        self.expire(at_micros)

    def close(self) -> None:
        if self._opened is not None:
            self._opened.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ---------------------------------------------------------------- failures come in

    def put(self, letters: Sequence[DeadLetter], at_micros: int) -> None:
        """Keep `letters`; all of them are on disk when this returns, or none is promised.

        A key that is there already keeps its id and the time of its first failure; code, message and payload
        are replaced, attempts added up and sinks united. Another row for other sinks stays, under another part. A
        letter that was queued or replayed is dead again, for the sinks it now comes with: it failed again.
        Raises StorageFull, naming the budget, if they do not fit into it.
        """
        if not letters:
            return
        frames = [frame_of(Payload(letter.raw, letter.row)) for letter in letters]
        room = self._room()
        self._puts += 1
        if self._puts % PUTS_PER_EXPIRY == 0:
            self.expire(at_micros)
        self._make_room(sum(map(len, frames)) + INDEX_BYTES_PER_LETTER * len(frames), at_micros)
        with room.writing() as sql:
            rows = [
                (
                    *_key(letter),
                    letter.code,
                    _storable(letter.message),
                    letter.attempts,
                    at_micros,
                    at_micros,
                    _names(letter.sinks),
                    *place,
                )
                for letter, place in zip(letters, room.append(frames), strict=True)
            ]
            sql.executemany(ASIDE, rows)
            sql.executemany(UPSERT, rows)
        with suppress(StorageFull):  # `letters` are safe; what the disk lacks is met when more is put
            room.compact(DEAD_SHARE_USUAL, segments_max=1, active=False)

    # ---------------------------------------------------------------- replay

    def queue_replay(self, pipeline: str, selection: Selection, *, above: int = 0) -> int:
        """Give every letter of `pipeline` that is dead and selected the next sequence number, by id. Returns how many.

        Sequence numbers of a pipeline start at 1, only grow and are never given again. above: a number that a
        fence holds; those given are higher, even if this store was made anew since.
        """
        room = self._existing()
        if room is None:
            return 0
        where, values = condition(selection)
        with room.writing() as sql:
            values["of"] = pipeline
            query = f"SELECT id FROM letters WHERE pipeline = :of AND state = 'dead' AND {where}"  # noqa: S608 - ours
            ids = sorted(letter_id for (letter_id,) in sql.execute(query, values))
            row = sql.execute("SELECT last FROM sequences WHERE pipeline = ?", (pipeline,)).fetchone()
            last = max(row[0] if row else 0, above)
            sql.executemany(
                "UPDATE letters SET state = 'queued', sequence = ? WHERE id = ?",
                ((last + number, letter_id) for number, letter_id in enumerate(ids, start=1)),
            )
            sql.execute("INSERT OR REPLACE INTO sequences VALUES (?, ?)", (pipeline, last + len(ids)))
        return len(ids)

    def settle_replays(
        self,
        pipeline: str,
        up_to_sequence: int,
        at_micros: int,
        selection: Selection = EVERYTHING,
        *,
        sinks: Iterable[str] = (),
    ) -> int:
        """What is selected and still queued up to `up_to_sequence` has arrived at `sinks`. Returns how many letters.

        The payload of a letter for none but them is dropped. One that is for others as well stays queued for
        those, under its number, by which they can tell whether they have it. Call it only when the fences of `sinks`
        cover that number: a letter that failed again has left the queue by its `put`, and one that is withdrawn too.
        """
        room = self._existing()
        if room is None:
            return 0
        where, values = condition(selection)
        values |= {"at": at_micros, "of": pipeline, "up_to": up_to_sequence, "sinks": _names(sinks)}
        with room.writing() as sql:
            settled = sql.execute(f"{SETTLE} AND {where} AND NOT EXISTS {OTHERS}", values).rowcount
            _count(sql, "replayed", settled)
            less = sql.execute(f"{SETTLE_IN_PART} AND {where}", values).rowcount
        return settled + less

    def withdraw(self, ids: Sequence[int]) -> int:
        """Take letters out of the queue that were never sent, such as damaged ones: they are dead again."""
        room = self._existing()
        if not ids or room is None:
            return 0
        where, values = condition(Selection(ids=tuple(ids)))
        query = f"UPDATE letters SET state = 'dead', sequence = NULL WHERE state = 'queued' AND {where}"  # noqa: S608 - ours
        with room.writing() as sql:
            return sql.execute(query, values).rowcount

    def restrict(self, sinks: Mapping[int, Iterable[str]]) -> None:
        """Say which sinks letters are for from now on, by id: the others have what those stand for, or will get it."""
        room = self._existing()
        if not sinks or room is None:
            return
        with room.writing() as sql:
            sql.executemany(
                "UPDATE letters SET sinks = ? WHERE id = ?", [(_names(some), letter) for letter, some in sinks.items()]
            )

    # ---------------------------------------------------------------- people

    def edit(self, letter_id: int, *, raw: bytes | None = None, row: bytes | None = None) -> None:
        """Replace what a dead letter carries: its `raw` record if it failed at the source, else its `row`.

        Raises ConfigError if there is no such letter, and Refused if it is not dead (a queued one may be in a
        table already) or if it has a row and raw bytes are given: the record may have become several rows.
        """
        assert (raw is None) != (row is None), "give raw or row"
        found = self.get(letter_id)
        if found is None:
            raise ConfigError(f"there is no dead letter {letter_id}; `conveyord dlq list` shows those there are")
        if found.state != "dead":
            why = "was replayed" if found.state == "replayed" else "is queued for replay and may have arrived already"
            raise Refused(f"dead letter {letter_id} {why}; only one that is still dead can be edited")
        stage = found.letter.key.stage
        came_as_row = found.letter.row is not None or stage != found.letter.key.partition.source
        if raw is not None and came_as_row:
            raise Refused(f"dead letter {letter_id} failed at {stage!r} as a row; edit the row, not the record")
        payload = Payload(raw, None) if raw is not None else Payload(found.letter.raw, row)
        frame = frame_of(payload)
        self._make_room(len(frame), None)
        room = self._room()
        with room.writing() as sql:
            (place,) = room.append([frame])
            sql.execute(
                "UPDATE letters SET edited = 1, segment = ?, position = ?, length = ?, crc = ? WHERE id = ?",
                (*place, letter_id),
            )

    def purge(self, selection: Selection) -> int:
        """Delete the letters that `selection` means, in any state, and give their space back. Returns how many."""
        room = self._existing()
        if room is None:
            return 0
        room.seal()
        purged = self._delete(room, "purged", *condition(selection))
        room.compact(DEAD_SHARE_PRESSED, segments_max=None, active=True)
        room.shrink()
        return purged

    def drop(self, pipeline: str, ids: Sequence[int], *, copied_to: int) -> int:
        """Delete letters of `pipeline` whose records are read again. Returns how many.

        copied_to: the highest id that was copied elsewhere. A letter up to there gets the same id again when its
        key comes back, so that whoever copies by id makes no second copy. Other letters get ids above it, even if
        this store was made anew since.
        """
        room = self._room() if copied_to else self._existing()
        if room is None:
            return 0
        where, values = condition(Selection(pipeline=pipeline, ids=tuple(ids)))
        values["copied_to"] = copied_to
        with room.writing() as sql:
            if not sql.execute(
                "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'letters'", (copied_to,)
            ).rowcount:
                sql.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('letters', ?)", (copied_to,))
            sql.execute("DELETE FROM copied WHERE pipeline = :pipeline AND id > :copied_to", values)
            kept = f"SELECT id, {KEY} FROM letters WHERE id <= :copied_to AND {where}"  # noqa: S608 - ours
            sql.execute(f"INSERT OR REPLACE INTO copied (id, {KEY}) {kept}", values)
            dropped = sql.execute(f"DELETE FROM letters WHERE {where}", values).rowcount  # noqa: S608 - ours
            _count(sql, "read_again", dropped)
        return dropped

    def expire(self, at_micros: int) -> int:
        """Delete the letters whose newest failure is older than the retention. Returns how many.

        One that is queued stays: someone wants it replayed.
        """
        room = self._existing()
        if room is None or self._retention_seconds is None:
            return 0
        before = {"before": at_micros - int(self._retention_seconds * 1_000_000)}
        return self._delete(room, "expired", "last_micros < :before AND state <> 'queued'", before)

    def used_bytes(self) -> int:
        """What counts against the budget: segments as long as they are, and the used pages of the index."""
        room = self._existing()
        return 0 if room is None else room.used_bytes()

    # ---------------------------------------------------------------- inside

    def _room(self) -> Room:
        if self._opened is None:
            self._opened = Room(self._directory, budget_bytes=self._budget_bytes)
        return self._opened

    def _existing(self) -> Room | None:
        return self._room() if self._opened is not None or exists(self._directory) else None

    def _connected(self) -> sqlite3.Connection | None:
        room = self._existing()
        return None if room is None else room.connection

    def _delete(self, room: Room, counter: str, where: str, values: Mapping[str, object]) -> int:
        with room.writing() as sql:
            # A replayed letter was counted when it was settled.
            sql.execute(f"DELETE FROM letters WHERE state = 'replayed' AND {where}", values)  # noqa: S608 - ours
            deleted = sql.execute(f"DELETE FROM letters WHERE {where}", values).rowcount  # noqa: S608 - ours
            _count(sql, counter, deleted)
        return deleted

    def _make_room(self, incoming_bytes: int, at_micros: int | None) -> None:
        """Raise StorageFull unless so many bytes fit into the budget, once everything dispensable is gone."""
        room = self._room()
        if room.used_bytes() + incoming_bytes <= self._budget_bytes:
            return
        if at_micros is not None:
            self.expire(at_micros)
        with room.writing() as sql:
            sql.execute("DELETE FROM letters WHERE state = 'replayed'")
        room.compact(DEAD_SHARE_PRESSED, segments_max=None, active=True)
        used_bytes = room.used_bytes()
        if used_bytes + incoming_bytes > self._budget_bytes:
            raise StorageFull(
                f"{self._directory}: dead letters take {format_bytes(used_bytes)}, and {format_bytes(incoming_bytes)} "
                f"more do not fit into dead_letters.budget, {format_bytes(self._budget_bytes)}; make room with "
                "`conveyord dlq purge`, or raise dead_letters.budget in conveyord.toml"
            )


def _key(letter: DeadLetter) -> tuple[str, str, str, int, str, int]:
    key = letter.key
    return (key.pipeline, key.partition.source, key.partition.name, key.offset, key.stage, key.part)


def _names(sinks: Iterable[str] | None) -> str | None:
    return None if sinks is None else json.dumps(sorted(sinks))


def _storable(message: str) -> str:
    """`message` as SQLite can keep it: of limited length, and without halves of surrogate pairs."""
    if len(message) > MESSAGE_CHARS_MAX:
        message = message[: MESSAGE_CHARS_MAX - 1] + "…"
    return message.encode("utf-8", "backslashreplace").decode("utf-8")


def _count(sql: sqlite3.Connection, name: str, count: int) -> None:
    if count:
        sql.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET count = count + excluded.count",
            (name, count),
        )
