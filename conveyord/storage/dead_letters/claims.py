"""What sinks lack of the letters that are there: queued, settled, withdrawn, or given up as it is read again."""

from __future__ import annotations

import json
import sqlite3
from abc import abstractmethod
from collections.abc import Collection, Sequence

from conveyord.storage.dead_letters.letters import Claim, Lane
from conveyord.storage.dead_letters.queries import IN_LANE, LetterQueries
from conveyord.storage.dead_letters.room import Room

ROW = 'pipeline, source, "partition", "offset", stage, part'
"""Which row of which record it is, and where it failed: a key without its variant."""

KEY = f"{ROW}, variant"

QUEUE = "UPDATE claims SET sequence = ?, again = NULL WHERE letter = ? AND sink = ? AND sequence IS NULL"

SETTLE = f"""
DELETE FROM claims WHERE (letter, sink) IN
    (SELECT letter, sink FROM claims JOIN letters ON id = letter WHERE {IN_LANE} AND sequence <= :up_to)
RETURNING letter
"""  # noqa: S608 - ours

OF_THESE = "id IN (SELECT value FROM json_each(:ids)) AND NOT EXISTS (SELECT 1 FROM claims WHERE letter = letters.id)"

EXPECT = "UPDATE claims SET again = 0, sequence = NULL WHERE letter = ? AND sink = ?"
COMING = "UPDATE claims SET again = 1 WHERE letter = ? AND sink = ? AND again = 0"
ON_THEIR_WAY = "SELECT letter, sink FROM claims JOIN letters ON id = letter WHERE again = 1 AND pipeline = :pipeline"

REPLAYED = f"""
UPDATE letters SET last_micros = :at, segment = NULL, position = NULL, length = NULL, crc = NULL WHERE {OF_THESE}
"""  # noqa: S608 - ours


TAKE_OVER = """
UPDATE OR IGNORE {table} SET pipeline = :name
WHERE pipeline = :former AND (:only IS NULL OR id IN (SELECT value FROM json_each(:only))) RETURNING id
"""


class ClaimStore(LetterQueries):
    """The part of the store that a replay, and a run that reads records again, change letters by."""

    @abstractmethod
    def _room(self) -> Room:
        """The room, which is made if there is none."""

    @abstractmethod
    def _existing(self) -> Room | None:
        """The room, None as long as there is no letter."""

    def queue(self, pipeline: str, claims: Sequence[Claim], *, above: int = 0) -> int:
        """Give each of `claims` that is not queued, on letters of `pipeline`, the next sequence number, in their order.

        Returns how many. Sequence numbers of a pipeline start at 1, only grow and are never given again. above: a
        number that a fence holds; those given are higher, even if this store was made anew since.
        """
        room = self._existing()
        if room is None:
            return 0
        with room.writing() as sql:
            row = sql.execute("SELECT last FROM sequences WHERE pipeline = ?", (pipeline,)).fetchone()
            first = last = max(row[0] if row else 0, above)
            for claim in claims:
                last += sql.execute(QUEUE, (last + 1, *claim)).rowcount
            sql.execute("INSERT OR REPLACE INTO sequences VALUES (?, ?)", (pipeline, last))
        return last - first

    def settle(self, lane: Lane, up_to_sequence: int, at_micros: int) -> list[int]:
        """What is still queued in `lane` up to `up_to_sequence` has arrived. Returns the ids of those letters.

        One that no other sink lacks was replayed, and its payload is dropped. Call it only when the fence of the
        sink covers that number: a letter that failed again has left the queue by its `put`, and one that was
        withdrawn too.
        """
        room = self._existing()
        if room is None:
            return []
        values = {**lane._asdict(), "up_to": up_to_sequence}
        with room.writing() as sql:
            ids = [letter for (letter,) in sql.execute(SETTLE, values).fetchall()]
            replayed = sql.execute(REPLAYED, {"ids": json.dumps(ids), "at": at_micros}).rowcount
            count(sql, "replayed", replayed)
        return ids

    def withdraw(self, claims: Sequence[Claim]) -> int:
        """Take `claims` out of the queue that were never sent, such as those on damaged letters. Returns how many."""
        room = self._existing()
        if not claims or room is None:
            return 0
        unqueue = "UPDATE claims SET sequence = NULL WHERE letter = ? AND sink = ? AND sequence IS NOT NULL"
        with room.writing() as sql:
            return sql.executemany(unqueue, claims).rowcount

    def expect(self, claims: Sequence[Claim]) -> None:
        """A run begins, and the sinks of `claims` have not passed their records: these may be read again.

        None of `claims` is on its way any more, neither by a replay nor by a run before.
        """
        room = self._existing()
        if not claims or room is None:
            return
        with room.writing() as sql:
            sql.executemany(EXPECT, claims)

    def come_again(self, claims: Sequence[Claim]) -> None:
        """The records of `claims`, which were expected, are about to go to their sinks once more.

        On disk on return, so that whoever finds a sink past such a record knows that it has it: see `on_their_way`.
        What failed again meanwhile, so that `put` has claimed it anew, stays as it is.
        """
        room = self._existing()
        if not claims or room is None:
            return
        with room.writing() as sql:
            sql.executemany(COMING, claims)

    def on_their_way(self, pipeline: str) -> list[Claim]:
        """What was read again for sinks and did not fail again: a claim falls once its sink is past the record."""
        return [Claim(*row) for row in self._fetch(ON_THEIR_WAY, {"pipeline": pipeline})]

    def give_up(self, pipeline: str, claims: Sequence[Claim], *, copied_to: int) -> int:
        """Take `claims` from letters of `pipeline`: those sinks have what the record has become since, or will get it.

        A letter for which no sink is left is deleted; returns how many are. copied_to: the highest id that was
        copied elsewhere. A letter up to there gets the same id again when its key comes back, so that whoever copies
        by id makes no second copy; where another row has its key by then, when the same content comes back. Other
        letters get ids above it, even if this store was made anew since.
        """
        room = self._room() if copied_to else self._existing()
        if room is None:
            return 0
        values = {"ids": json.dumps(sorted({claim.letter for claim in claims})), "of": pipeline, "copied_to": copied_to}
        with room.writing() as sql:
            if not sql.execute(
                "UPDATE sqlite_sequence SET seq = max(seq, ?) WHERE name = 'letters'", (copied_to,)
            ).rowcount:
                sql.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('letters', ?)", (copied_to,))
            sql.execute("DELETE FROM copied WHERE pipeline = :of AND id > :copied_to", values)
            sql.executemany("DELETE FROM claims WHERE letter = ? AND sink = ?", claims)
            kept = f"SELECT id, {KEY}, length, crc FROM letters WHERE id <= :copied_to AND {OF_THESE}"  # noqa: S608 - ours
            sql.execute(f"INSERT OR REPLACE INTO copied (id, {KEY}, length, crc) {kept}", values)
            dropped = sql.execute(f"DELETE FROM letters WHERE {OF_THESE}", values).rowcount  # noqa: S608 - ours
            count(sql, "read_again", dropped)
        return dropped

    def take_over(self, former: str, pipeline: str, *, only: Collection[int] | None = None) -> list[int]:
        """Letters of the pipeline `former`, and those that come back with an id, are `pipeline`'s from now on.

        One stays if `pipeline` has a letter of its key already. only: none but these, which an earlier call returned,
        and so takes back. Returns the ids of what was taken.
        """
        room = self._existing()
        if room is None:
            return []
        values = {"former": former, "name": pipeline, "only": None if only is None else json.dumps(sorted(only))}
        taken: list[int] = []
        with room.writing() as sql:
            for table in ("copied", "letters"):
                taken += [one for (one,) in sql.execute(TAKE_OVER.format(table=table), values).fetchall()]
            sql.execute(
                "INSERT INTO sequences SELECT :name, last FROM sequences WHERE pipeline = :former"
                " ON CONFLICT (pipeline) DO UPDATE SET last = max(last, excluded.last)",
                values,
            )
        return taken


def count(sql: sqlite3.Connection, name: str, number: int) -> None:
    """Add `number` to the counter of that name; see `Counters`."""
    if number:
        sql.execute(
            "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET count = count + excluded.count",
            (name, number),
        )
