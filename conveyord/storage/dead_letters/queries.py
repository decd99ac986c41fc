"""What can be read from the index, on whichever connection: the writer's or a reader's."""

from __future__ import annotations

import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from conveyord.core.flow.dead_letters import DeadLetter, LetterKey
from conveyord.core.flow.positions import Partition
from conveyord.storage.dead_letters.faults import translated
from conveyord.storage.dead_letters.index import DIRECTORY, INDEX_FILE
from conveyord.storage.dead_letters.letters import EVERYTHING, Claim, Counters, Group, Lane, Selection, StoredLetter
from conveyord.storage.dead_letters.segments import DamagedFrame, Payload, Place, read_payload

LOOKS_MAX = 100  # moved so often while it is looked for: then something else is wrong
PAGE_LETTERS = 256  # read at a time by `select`, with their payloads

COLUMNS = (
    'id, pipeline, source, "partition", "offset", stage, part, variant, came_from, code, message, attempts, '
    "first_micros, last_micros, edited, "
    "(SELECT json_group_object(sink, sequence) FROM claims WHERE letter = letters.id), segment, position, length, crc"
)
NOTHING = Payload(None, None)

IN_LANE = "sink = :sink AND sequence IS NOT NULL AND pipeline = :pipeline AND stage = :stage"
"""Of a claim joined with its letter."""

QUEUED = f"""
SELECT sequence, {COLUMNS} FROM claims JOIN letters ON id = letter
WHERE {IN_LANE} AND sequence > :after ORDER BY sequence LIMIT :limit
"""  # noqa: S608 - ours
NOT_REPLAYED = "segment IS NOT NULL"

GROUPS = f"""
SELECT causes.pipeline, causes.stage, causes.code, letters.message, newest, count, first, last FROM
    (SELECT pipeline, stage, code, max(id) AS newest, count(*) AS count,
            min(first_micros) AS first, max(last_micros) AS last
        FROM letters NOT INDEXED WHERE {NOT_REPLAYED} AND {{where}} GROUP BY pipeline, stage, code) AS causes
JOIN letters ON letters.id = newest ORDER BY count DESC, causes.pipeline, causes.stage, causes.code
"""  # noqa: S608 - ours. Not indexed: SQLite would go along the unique index, and look up every row out of order.

SUCCESSORS = """
SELECT letters.id FROM letters JOIN claims ON letter = letters.id
WHERE came_from > 0 AND came_from IN (SELECT value FROM json_each(:ids)) AND sink = :sink
"""

UNTOLD = """
SELECT letters.id FROM letters JOIN claims ON letter = letters.id
WHERE pipeline = :pipeline AND sink = :sink AND source = :source AND "partition" = :partition AND "offset" >= :after
"""

Row = tuple[Any, ...]


def condition(selection: Selection) -> tuple[str, dict[str, object]]:
    """`selection` as a condition in SQL with its parameters."""
    parts: list[str] = []
    values: dict[str, object] = {}
    for column in ("pipeline", "stage", "code"):
        if (value := getattr(selection, column)) is not None:
            parts.append(f"{column} = :{column}")
            values[column] = value
    if selection.ids is not None:  # as one JSON text: SQLite limits the number of parameters
        parts.append("id IN (SELECT value FROM json_each(:ids))")
        values["ids"] = json.dumps(selection.ids)
    if selection.since_micros is not None:
        parts.append("last_micros >= :since")
        values["since"] = selection.since_micros
    if selection.until_micros is not None:
        parts.append("last_micros < :until")
        values["until"] = selection.until_micros
    return " AND ".join(parts) or "1", values


class LetterQueries(ABC):
    """Reads the letters of one directory, on the connection that a subclass has. Blocking.

    Where nothing failed yet there are no letters. Every method raises Corrupt if the index is damaged; a
    damaged payload only shows in its own letter.
    """

    def __init__(self, data_dir: Path) -> None:
        self._directory = data_dir / DIRECTORY
        self._index = self._directory / INDEX_FILE

    @abstractmethod
    def _connected(self) -> sqlite3.Connection | None:
        """The connection, None as long as there is no index."""

    def groups(self, selection: Selection = EVERYTHING) -> list[Group]:
        """The letters that are not replayed, by pipeline, stage and code, most letters first."""
        where, values = condition(selection)
        return [Group(*row) for row in self._fetch(GROUPS.format(where=where), values)]

    def get(self, letter_id: int) -> StoredLetter | None:
        """The letter of that id in whatever state, None if there is none."""
        row = self._row(letter_id)
        return None if row is None else self._loaded(row)

    def select(self, selection: Selection = EVERYTHING, *, payloads: bool = True) -> Iterator[StoredLetter]:
        """The letters that are not replayed and that `selection` means, by id. Read in pages, as they are asked for.

        payloads: read them too. Without, `raw`, `row` and `damage` are None.
        """
        where, values = condition(selection)
        after = 0
        while rows := self._page(where, values, after=after, limit=PAGE_LETTERS):
            for row in rows:
                yield self._loaded(row) if payloads else _letter(row)
            after = rows[-1][0]

    def count(self, selection: Selection = EVERYTHING) -> int:
        """How many letters `selection` means, replayed ones not counted."""
        where, values = condition(selection)
        query = f"SELECT count(*) FROM letters WHERE {NOT_REPLAYED} AND {where}"  # noqa: S608 - ours
        found = self._fetch(query, values)
        return int(found[0][0]) if found else 0

    def newer_than(self, pipeline: str, letter_id: int, limit: int) -> list[StoredLetter]:
        """Up to `limit` letters of `pipeline` whose first failure came after that of `letter_id`, by id."""
        where, values = condition(Selection(pipeline=pipeline))
        return [self._loaded(row) for row in self._page(where, values, after=letter_id, limit=limit)]

    def last_id(self, pipeline: str) -> int:
        """The id of the newest letter of `pipeline`, 0 if it has none."""
        found = self._fetch("SELECT max(id) FROM letters WHERE pipeline = :of", {"of": pipeline})
        return int(found[0][0] or 0) if found else 0

    def queued(self, lane: Lane, after_sequence: int, limit: int) -> list[tuple[int, StoredLetter]]:
        """Up to `limit` letters that are queued in `lane` beyond `after_sequence`, with their numbers, in order.

        One whose `damage` is set cannot be sent: report it and have it withdrawn before anything settles.
        """
        values = {**lane._asdict(), "after": after_sequence, "limit": limit}
        return [(row[0], self._loaded(row[1:])) for row in self._fetch(QUEUED, values)]

    def successors(self, sink: str, letters: Iterable[int]) -> list[Claim]:
        """What failed of these letters in later stages when they were on their way to `sink`, and it lacks."""
        found = self._fetch(SUCCESSORS, {"ids": json.dumps(list(letters)), "sink": sink})
        return [Claim(letter, sink) for (letter,) in found]

    def untold(self, lane: Lane, partition: Partition, after_sequence: int) -> list[Claim]:
        """What failed behind a stage that does not tell its rows apart, of letters of `lane` beyond a number.

        partition: the one that stands for the lane; such a letter has it in its key, for its record is not known.
        """
        place = {"source": partition.source, "partition": partition.name}
        found = self._fetch(UNTOLD, {**lane._asdict(), **place, "after": after_sequence})
        return [Claim(letter, lane.sink) for (letter,) in found]

    def counters(self) -> Counters:
        """What became of the letters that are gone."""
        return Counters(**dict(self._fetch("SELECT name, count FROM counters", {})))

    def _fetch(self, query: str, values: Mapping[str, object]) -> list[Row]:
        with translated(self._index):
            connection = self._connected()
            return [] if connection is None else connection.execute(query, values).fetchall()

    def _page(self, where: str, values: Mapping[str, object], *, after: int, limit: int) -> list[Row]:
        kept = f"SELECT {COLUMNS} FROM letters WHERE {NOT_REPLAYED} AND {where}"  # noqa: S608 - ours
        query = f"{kept} AND id > :after ORDER BY id LIMIT :limit"
        return self._fetch(query, {**values, "after": after, "limit": limit})

    def _row(self, letter_id: int) -> Row | None:
        rows = self._fetch(f"SELECT {COLUMNS} FROM letters WHERE id = :id", {"id": letter_id})  # noqa: S608 - ours
        return rows[0] if rows else None

    def _loaded(self, row: Row) -> StoredLetter:
        """The letter of a row with its payload. The writer may move that meanwhile, so it is looked for again."""
        letter = self._load_once(row)
        for _ in range(LOOKS_MAX):
            again = self._row(letter.id) if letter.damage is not None else None
            if again is None or again == row:
                break
            row, letter = again, self._load_once(again)
        return letter

    def _load_once(self, row: Row) -> StoredLetter:
        place = row[16:]
        if place[0] is None:
            return _letter(row)
        try:
            return _letter(row, payload=read_payload(self._directory, Place(*place)))
        except DamagedFrame as error:
            return _letter(row, damage=str(error))


def _letter(row: Row, *, payload: Payload = NOTHING, damage: str | None = None) -> StoredLetter:
    letter_id, pipeline, source, partition, offset, stage, part, variant = row[:8]
    came_from, code, message, attempts, first_micros, last_micros, edited, claims = row[8:16]
    claims = json.loads(claims)
    key = LetterKey(pipeline, Partition(source, partition), offset, stage, part, variant)
    return StoredLetter(
        id=letter_id,
        letter=DeadLetter(key, code, message, attempts, payload.raw, payload.row, frozenset(claims)),
        first_micros=first_micros,
        last_micros=last_micros,
        claims=claims,
        came_from=came_from,
        edited=bool(edited),
        damage=damage,
    )
