"""Keeps dead letters: durable when `put` returns, one per key, within a budget, and replayed at most once."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from conveyord.core.errors import ConfigError, Refused, StorageFull
from conveyord.core.flow.dead_letters import PARTS_PER_LETTER, DeadLetter, LetterKey
from conveyord.core.units import format_bytes
from conveyord.storage.dead_letters.claims import KEY, ROW, ClaimStore, count
from conveyord.storage.dead_letters.index import exists
from conveyord.storage.dead_letters.letters import Claim, Selection
from conveyord.storage.dead_letters.queries import condition
from conveyord.storage.dead_letters.room import Room
from conveyord.storage.dead_letters.segments import DamagedFrame, Payload, Place, crc_of, frame_of, read_frame

MESSAGE_CHARS_MAX = 4096  # a message may quote a whole value, which the payload holds anyway
INDEX_BYTES_PER_LETTER = 720  # a row, its four index entries and two claims, with paths of a usual length
PUTS_PER_EXPIRY = 100  # looking for old letters costs one look into an index
DEAD_SHARE_USUAL = 0.5  # compacting at half copies each byte about once more in its life
DEAD_SHARE_PRESSED = 0.125  # when the budget is reached, or someone purged: disk space counts more than writing

NOT_QUEUED = "NOT EXISTS (SELECT 1 FROM claims WHERE letter = letters.id AND sequence IS NOT NULL)"

OF_ROW = f"({ROW}) = (:pipeline, :source, :partition, :offset, :stage, :part)"
OF_KEY = f"{OF_ROW} AND variant = :variant"

# What fails now takes the place of what was there under its key, for the sinks it comes with. If that was another row,
# and other sinks lack it still, it makes way: an earlier stage was mended meanwhile, and numbers rows in another way.
# So it does if its record is being read again: whether what became of the row arrives is not known yet.
# What was copied and read again gets its id back: the same row, or, if there is none, what had its key.
ANOTHER = f"SELECT id FROM letters WHERE {OF_KEY} AND (length, crc) <> (:length, :crc)"  # noqa: S608 - ours
SAME = f"SELECT segment, position FROM letters WHERE {OF_KEY} AND (length, crc) = (:length, :crc)"  # noqa: S608 - ours
LEAVE = "DELETE FROM claims WHERE letter = ? AND sink = ? AND again IS NULL"
MAKE_WAY = f"""
UPDATE letters SET variant = min(0, (SELECT min(variant) FROM letters WHERE {OF_ROW})) - 1
WHERE {OF_KEY} AND EXISTS (SELECT 1 FROM claims WHERE letter = letters.id)
"""  # noqa: S608 - ours
FORMER_ID = f"""
SELECT id FROM copied WHERE {OF_ROW} AND (variant = :variant OR (length, crc) = (:length, :crc))
ORDER BY (length, crc) = (:length, :crc) DESC, variant = :variant DESC LIMIT 1
"""  # noqa: S608 - ours
UPSERT = f"""
INSERT INTO letters (id, {KEY}, came_from, code, message, attempts, first_micros, last_micros,
    segment, position, length, crc)
VALUES (({FORMER_ID}), :pipeline, :source, :partition, :offset, :stage, :part, :variant,
    :part / {PARTS_PER_LETTER}, :code, :message, :attempts, :at, :at, :segment, :position, :length, :crc)
ON CONFLICT ({KEY}) DO UPDATE SET
    code = excluded.code, message = excluded.message, attempts = attempts + excluded.attempts,
    last_micros = excluded.last_micros, edited = 0,
    segment = excluded.segment, position = excluded.position, length = excluded.length, crc = excluded.crc
RETURNING id
"""  # noqa: S608 - ours
CLAIM = "INSERT OR REPLACE INTO claims (letter, sink) VALUES (?, ?)"


class DeadLetterStore(ClaimStore):
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
        are replaced, attempts added up and sinks united, none of those it now comes with is queued any more: it
        failed again. Another row that other sinks lack stays, as another variant, and so does one whose record is read
        again. So do letters that come together under one key: they are different rows, and none of them is lost.
        Raises StorageFull, naming the budget, if they do not fit into it.
        """
        if not letters:
            return
        framed = [(letter, frame_of(Payload(letter.raw, letter.row))) for letter in _told_apart(letters)]
        room = self._room()
        self._puts += 1
        if self._puts % PUTS_PER_EXPIRY == 0:
            self.expire(at_micros)
        incoming = [len(frame) + INDEX_BYTES_PER_LETTER for _, frame in framed]
        if room.used_bytes() + sum(incoming) > self._budget_bytes:  # what failed again may lie there already
            there = [self._place_of(letter, frame) for letter, frame in framed]
            incoming = [size for size, place in zip(incoming, there, strict=True) if place is None]
        self._make_room(sum(incoming), at_micros)
        with room.writing() as sql:
            claims: list[Claim] = []
            there = [self._place_of(letter, frame) for letter, frame in framed]
            fresh = iter(room.append([frame for (_, frame), place in zip(framed, there, strict=True) if place is None]))
            for (letter, _), place in zip(framed, there, strict=True):
                values = _values(letter, place or next(fresh), at_micros)
                if another := sql.execute(ANOTHER, values).fetchone():
                    sql.executemany(LEAVE, [Claim(another[0], sink) for sink in letter.sinks])
                    sql.execute(MAKE_WAY, values)
                (letter_id,) = sql.execute(UPSERT, values).fetchone()
                claims += [Claim(letter_id, sink) for sink in letter.sinks]
            sql.executemany(CLAIM, claims)
        with suppress(StorageFull):  # `letters` are safe; what the disk lacks is met when more is put
            room.compact(DEAD_SHARE_USUAL, segments_max=1, active=False)

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
        if any(claim.letter == letter_id for claim in self.on_their_way(found.letter.key.pipeline)):
            raise Refused(
                f"dead letter {letter_id} is of a record that a run was reading again when it ended early, so it may "
                "have arrived already; run the pipeline once more first"
            )
        before = self.get(found.came_from)
        if before is not None and (lacking := before.claims.keys() & found.claims.keys()):
            is_queued = any(before.claims[sink] is not None for sink in lacking)
            purge = f"mend and replay that one first, or delete it with `conveyord dlq purge --id {before.id}`"
            raise Refused(
                f"dead letter {letter_id} is what became of dead letter {before.id}, which will be sent once more, so "
                f"that an edit would be lost; {'finish that with `conveyord dlq replay` first' if is_queued else purge}"
            )
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

    def expire(self, at_micros: int) -> int:
        """Delete the letters whose newest failure is older than the retention. Returns how many.

        One that is queued stays: someone wants it replayed.
        """
        room = self._existing()
        if room is None or self._retention_seconds is None:
            return 0
        before = {"before": at_micros - int(self._retention_seconds * 1_000_000)}
        return self._delete(room, "expired", f"last_micros < :before AND {NOT_QUEUED}", before)

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
            sql.execute(f"DELETE FROM letters WHERE segment IS NULL AND {where}", values)  # noqa: S608 - ours
            deleted = sql.execute(f"DELETE FROM letters WHERE {where}", values).rowcount  # noqa: S608 - ours
            count(sql, counter, deleted)
        return deleted

    def _place_of(self, letter: DeadLetter, frame: bytes) -> Place | None:
        """Where just this stands already, whole, as the content of the letter of that key."""
        length, crc = len(frame), crc_of(frame)
        at = {**_key(letter), "length": length, "crc": crc}
        for segment, position in self._room().connection.execute(SAME, at).fetchall():
            place = Place(segment, position, length, crc)
            with suppress(DamagedFrame):
                return place if read_frame(self._directory, place) == frame else None
        return None

    def _make_room(self, incoming_bytes: int, at_micros: int | None) -> None:
        """Raise StorageFull unless so many bytes fit into the budget, once everything dispensable is gone."""
        room = self._room()
        if room.used_bytes() + incoming_bytes <= self._budget_bytes:
            return
        if at_micros is not None:
            self.expire(at_micros)
        with room.writing() as sql:
            sql.execute("DELETE FROM letters WHERE segment IS NULL")
        room.compact(DEAD_SHARE_PRESSED, segments_max=None, active=True)
        used_bytes = room.used_bytes()
        if used_bytes + incoming_bytes > self._budget_bytes:
            raise StorageFull(
                f"{self._directory}: dead letters take {format_bytes(used_bytes)}, and {format_bytes(incoming_bytes)} "
                f"more do not fit into dead_letters.budget, {format_bytes(self._budget_bytes)}; make room with "
                "`conveyord dlq purge`, or raise dead_letters.budget in conveyord.toml"
            )


def _told_apart(letters: Sequence[DeadLetter]) -> list[DeadLetter]:
    """`letters`, each under a key of its own: where some share one, all but the first become variants of it."""
    taken: set[LetterKey] = set()
    apart = []
    for letter in letters:
        key = letter.key
        while key in taken:
            key = replace(key, variant=max(key.variant, 0) + 1)
        taken.add(key)
        apart.append(letter if key is letter.key else replace(letter, key=key))
    return apart


def _key(letter: DeadLetter) -> dict[str, object]:
    key = letter.key
    return {
        "pipeline": key.pipeline,
        "source": key.partition.source,
        "partition": key.partition.name,
        "offset": key.offset,
        "stage": key.stage,
        "part": key.part,
        "variant": key.variant,
    }


def _values(letter: DeadLetter, place: Place, at_micros: int) -> dict[str, object]:
    """The parameters of the statements that put a letter."""
    return {
        **_key(letter),
        "code": letter.code,
        "message": _storable(letter.message),
        "attempts": letter.attempts,
        "at": at_micros,
        **place._asdict(),
    }


def _storable(message: str) -> str:
    """`message` as SQLite can keep it: of limited length, and without halves of surrogate pairs."""
    if len(message) > MESSAGE_CHARS_MAX:
        message = message[: MESSAGE_CHARS_MAX - 1] + "…"
    return message.encode("utf-8", "backslashreplace").decode("utf-8")
