"""Reads a whole log and believes nothing: every checksum, the chain from the base to the end, terms, gaps, the end."""

from __future__ import annotations

import struct

import apsw

from conveyord.core.errors import Corrupt, Refused
from conveyord.core.raft.membership import Membership, decode
from conveyord.core.raft.node import Loaded
from conveyord.core.raft.types import BLANK, Entry, Kind, chain_after, crc_of, size_of
from conveyord.storage.raft_log.head import Head, Row

SELECT = 'SELECT "index", term, kind, data, crc, chain FROM entries WHERE "index" >= ? AND "index" < ? ORDER BY "index"'
KINDS = frozenset(Kind)
INDEX_END = 2**63 - 1  # no index reaches what SQLite can hold


def load(connection: apsw.Connection, head: Head, *, applied: int, window_bytes: int) -> Loaded:
    """Verify the log after its base, and hand it over as a node wants it. Raises Corrupt, or an error of SQLite, or
    Refused where it is whole and holds what only a newer conveyord knows, or is new and the state beside it is not.

    In memory are only the newest entries, up to `window_bytes` by `size_of`, or more if they may still change. Entries
    at or below the base are rubbish that was not swept yet, and are not looked at.
    """
    problems = connection.execute("PRAGMA quick_check(1)").fetchall()
    if problems != [("ok",)]:
        raise Corrupt(f"SQLite's check of its pages says: {problems[0][0]}")
    runs, memberships = list[tuple[int, int]](), list[tuple[int, Membership]]()
    last, last_term, chain = head.base.index, head.base.term, head.base.chain
    try:
        for index, term, kind, data, crc, its_chain in connection.execute(SELECT, (last + 1, INDEX_END)):
            if index != last + 1:
                raise Corrupt(f"after entry {last} follows entry {index}")
            if crc_of(index, term, kind, data) != crc:
                raise Corrupt(f"the checksum of entry {index} is wrong")
            chain = chain_after(chain, index, term, crc)
            if chain != its_chain:
                raise Corrupt(f"entry {index} does not continue the chain of those before it")
            if term != last_term:
                if term < last_term:
                    raise Corrupt(f"entry {index} has term {term}, the one before it {last_term}")
                runs.append((index, term))
                last_term = term
            if kind not in KINDS:
                raise Refused(
                    f"entry {index} of the log of node {head.node} is of kind {kind}, which this conveyord does not "
                    "know; run the newer one that wrote it"
                )
            if kind == Kind.MEMBERSHIP:
                memberships.append((index, _members(head, index, data)))
            last = index
    except (TypeError, struct.error) as error:  # a row tells the types of its values itself
        raise Corrupt(f"entry {last + 1} has values of other types") from error
    if (last, chain) != (head.last_index, head.last_chain):
        raise Corrupt(f"it ends with entry {last}, but was written up to entry {head.last_index}")
    if last_term > head.hard_state.term:
        raise Corrupt(f"entry {last} has term {last_term}, but the node's own is {head.hard_state.term}")
    if applied > last == 0 and head.hard_state == BLANK:
        raise Refused(
            f"the log of node {head.node} is new, and the state beside it has applied entry {applied}; move that state "
            f"away and start again. If node {head.node} was a member before, what it promised is gone with its log, "
            "and it must not vote under this name again: remove it from the cluster and give it a new node id"
        )
    if applied > last:
        raise Corrupt(f"it ends with entry {last}, but the state beside it has applied entry {applied}")
    entries = _window(connection, head, settled=max(head.hard_state.commit, applied), bytes_max=window_bytes)
    first = entries[0].index if entries else last + 1
    return Loaded(
        hard_state=head.hard_state,
        base=head.base,
        membership=decode(head.members),
        memberships=memberships,
        runs=[run for run in runs if run[0] < first],
        entries=entries,
        applied=applied,
    )


def _members(head: Head, index: int, data: bytes) -> Membership:
    try:
        return decode(data)
    except Refused as error:
        raise Refused(f"entry {index} of the log of node {head.node}: {error}") from error
    except Corrupt as error:
        raise Corrupt(f"entry {index}: {error}") from error


def _window(connection: apsw.Connection, head: Head, *, settled: int, bytes_max: int) -> list[Entry]:
    """settled: the last index that may not change any more. What is at hand may be read again later."""
    newest, size = list[Entry](), 0
    rows = connection.execute(f"{SELECT} DESC", (head.base.index + 1, INDEX_END))
    for row in rows:
        entry = _entry(row)
        size += size_of([entry])
        if newest and size > bytes_max and entry.index <= settled:
            break
        newest.append(entry)
    rows.close()
    return newest[::-1]


def has_rubbish(connection: apsw.Connection, head: Head) -> bool:
    """Whether entries were compacted and are not deleted yet."""
    return bool(connection.execute('SELECT 1 FROM entries WHERE "index" <= ? LIMIT 1', (head.base.index,)).fetchall())


def read(connection: apsw.Connection, first: int, end: int, bytes_max: int) -> tuple[Entry, ...]:
    """Entries of `[first, end)`, which must all be there: one, and as many more as `bytes_max` takes.

    Raises Corrupt.
    """
    found, size = list[Entry](), 0
    rows = connection.execute(SELECT, (first, end))
    try:
        for row in rows:
            if row[0] != first + len(found) or not _is_whole(row):
                raise Corrupt(f"entry {first + len(found)} is missing or is not what was written")
            entry = _entry(row)
            size += size_of([entry])
            if found and size > bytes_max:
                break
            found.append(entry)
    finally:
        rows.close()
    if not found:
        raise Corrupt(f"entry {first} is missing")
    return tuple(found)


def _is_whole(row: Row) -> bool:
    index, term, kind, data, crc, _ = row
    try:
        return bool(crc == crc_of(index, term, kind, data))
    except (TypeError, struct.error):  # a value that is of another type, or too large: a row tells its own types
        return False


def _entry(row: Row) -> Entry:
    index, term, kind, data, crc, chain = row
    return Entry(index, term, Kind(kind), data, crc, chain)
