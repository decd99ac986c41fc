"""What happened after an index: events in the order of the log, those of an entry together or not at all."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from typing import Literal, NamedTuple

from conveyord.storage.state.packed import unpack_changes


class Event(NamedTuple):
    """What became of `key`. number: within the entry. value: None if it is gone, else as docs/state.md says."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody wants of an event
    number: int
    topic: str
    key: str
    kind: Literal["put", "delete"]
    value: bytes | None


class Events(NamedTuple):
    """through: the cursor to go on from: everything up to it has been told. index: of the state that was read.

    If `through` is less than `index`, there may be more already. history: to be handed back with the cursor.
    """

    index: int  # type: ignore[assignment]  # as in `Event`
    through: int
    history: str
    events: tuple[Event, ...]


class Compacted(NamedTuple):
    """Events after the cursor are not kept any more: read what is there now, and go on from the index of that.

    oldest: the lowest cursor for these topics from which nothing is missing.
    """

    index: int  # type: ignore[assignment]  # as in `Event`
    oldest: int
    history: str


class Behind(NamedTuple):
    """The cursor is of another history than the state, or of a later place: a backup was restored, or it is no cursor
    of this cluster. Read what is there now, and go on from the index of that, with this history.

    A node that lags behind the one that was asked before says so too, so ask it again once it has applied the cursor.
    """

    index: int  # type: ignore[assignment]  # as in `Event`
    history: str


Watched = Events | Compacted | Behind


class Topic(NamedTuple):
    """newest: index of its last event. compacted_to: of the last that is not kept."""

    newest: int = 0
    compacted_to: int = 0


def read_topics(cursor: sqlite3.Cursor) -> dict[str, Topic]:
    """Those that ever had an event."""
    cursor.execute("SELECT topic, newest, compacted_to FROM topics")
    return {topic: Topic(newest, compacted_to) for topic, newest, compacted_to in cursor.fetchall()}


def read_events(
    cursor: sqlite3.Cursor, after: int, topics: Collection[str], *, limit: int, bytes_max: int
) -> tuple[int, list[Event]]:
    """Events after the index `after`, and the index up to which they are all there; 0 if to the end.

    limit, bytes_max: reading ends with the entry in which one of them is reached. So there is at least one entry.
    """
    events, size, wanted = list[Event](), 0, set(topics)
    rows = cursor.execute('SELECT "index", size, topics FROM events WHERE "index" > ? ORDER BY "index"', (after,))
    blobs = cursor.connection.cursor()  # of those that are wanted only
    for index, entry_bytes, found in rows:
        if wanted.isdisjoint(found.split(",")):
            continue
        if len(events) >= limit or size >= bytes_max:
            return events[-1].index, events
        size += entry_bytes
        (changed,) = blobs.execute('SELECT changed FROM events WHERE "index" = ?', (index,)).fetchone()
        for number, change in enumerate(unpack_changes(changed)):
            if change.topic in wanted:
                events.append(Event(index, number, change.topic, change.key, change.kind, change.value))
    return 0, events
